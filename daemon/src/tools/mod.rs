//! Tools: what agents, workflows and people can have done, from whatever offers it, through one gate.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::event::{Event, Trust};
use crate::id::TraceId;

/// What a call of a tool can do, from harmless to grave. The trust of a caller decides by it (see [`Permission::least`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Permission {
    /// Reads what the agent was granted; can be done again at will.
    Read,
    /// Asks hosts that the agent was granted.
    Net,
    /// Publishes events, starts workflows, plans jobs, asks other agents.
    Act,
    /// Changes what the agent was granted to write.
    Write,
    /// Writes memory or soul.
    Remember,
    /// Runs commands.
    Exec,
    /// Whatever a plugin's or another program's tool does: nobody here can know.
    Foreign,
}

impl Permission {
    /// The least trust that a caller needs; what is below it is refused, and no approval helps.
    pub fn least(self) -> Trust {
        match self {
            Permission::Read | Permission::Net => Trust::Unknown,
            Permission::Act | Permission::Write | Permission::Foreign => Trust::Plugin,
            Permission::Remember | Permission::Exec => Trust::Paired,
        }
    }
}

/// A tool as it is listed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tool {
    /// Its name; no two have the same. Tools of MCP servers are `<server>_<tool>`.
    pub name: String,
    /// What it does and when to use it.
    pub description: String,
    /// JSON Schema of its arguments.
    pub schema: Value,
    /// `builtin`, `plugin/<name>`, `mcp/<server>` or `agent`.
    pub source: String,
    /// What a call can do.
    pub permission: Permission,
    /// True when doing it twice is as doing it once: after a crash it is simply done again.
    pub repeatable: bool,
}

/// Who calls, for whom, and what they may do: a value that travels with the call.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Who is behind it: an authenticated principal, or a consumer.
    pub principal: String,
    /// The agent whose turn it is.
    pub agent: Option<String>,
    /// The session of that turn.
    pub session: Option<String>,
    /// The lowest trust of everything that led to the call, what the turn has read included.
    pub trust: Trust,
    /// The trace that it belongs to.
    pub trace: TraceId,
    /// The event that led to it.
    pub cause: Option<Arc<Event>>,
    /// What the agent may use.
    pub policy: Arc<Policy>,
}

/// What an agent may use, from its definition.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Patterns of names (`*` = any characters) that it has; none = all that need no grant.
    pub allow: Vec<String>,
    /// Patterns of names that it does not have, whatever `allow` says.
    pub deny: Vec<String>,
    /// Patterns of names that are asked about each time, besides those that always are.
    pub approve: Vec<String>,
    /// Folders that may be read.
    pub read: Vec<String>,
    /// Folders that may be written, and read.
    pub write: Vec<String>,
    /// Hosts that may be called without asking, as `example.org` or `*.example.org`.
    pub hosts: Vec<String>,
    /// Commands that may be run at all, by their first word; each run is asked about unless a rule allows it.
    pub exec: Vec<String>,
    /// SQLite databases that may be queried; with `rw:` before it, changed.
    pub sqlite: Vec<String>,
    /// True when nobody is there to answer: what would be asked is refused at once.
    pub unattended: bool,
}

/// A call.
#[derive(Debug, Clone)]
pub struct Call {
    /// The same whenever the same call is made again, as after a crash.
    pub key: String,
    /// The tool.
    pub tool: String,
    /// Its arguments.
    pub arguments: Value,
    /// Who calls.
    pub caller: Caller,
}

/// What a tool answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Output {
    /// For a model; at most [`Output::BYTES_MAX`].
    pub text: String,
    /// For programs; none = the text is all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
    /// How far the content is believed. Who reads it is believed no further from then on.
    pub trust: Trust,
}

impl Output {
    /// Longest text, in bytes.
    pub const BYTES_MAX: usize = 64 << 10;
}

/// Why a tool did not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolFailure {
    /// The arguments are wrong: a pointer into them, and what would be right.
    Arguments(String, String),
    /// It may not do that: a stable code, and what would allow it.
    Refused(&'static str, String),
    /// It failed, and did nothing or says what it did.
    Failed(String),
    /// It was cut off, and nobody knows whether it did it.
    Unknown(String),
}

/// The future of a call.
pub type Calling<'a> = Pin<Box<dyn Future<Output = Result<Output, ToolFailure>> + Send + 'a>>;

/// Whoever offers tools: aman itself, plugins, other programs.
pub trait Provider: Send + Sync {
    /// What it has now.
    fn tools(&self) -> Vec<Tool>;

    /// Does it; the gate has let it pass, and its arguments fit the schema. Ends soon after `cancel`.
    fn call<'a>(&'a self, call: &'a Call, cancel: &'a CancellationToken) -> Calling<'a>;

    /// What a call would touch beyond the arguments, in words, so that an approval shows it: a resolved path, a host.
    /// `Err` when it may not be done at all. The default has nothing to add.
    fn preview(&self, _call: &Call) -> Result<Option<String>, ToolFailure> {
        Ok(None)
    }
}

/// Everything that is offered; cheap to clone.
#[derive(Clone, Default)]
pub struct Tools {
    offered: Arc<RwLock<BTreeMap<String, Arc<dyn Provider>>>>,
}

impl Tools {
    /// Takes up a provider under a name; whoever had it before is replaced.
    pub fn offer(&self, name: &str, provider: Arc<dyn Provider>) {
        self.offered.write().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), provider);
    }

    /// Forgets a provider.
    pub fn withdraw(&self, name: &str) {
        self.offered.write().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// Every tool there is, by name.
    pub fn list(&self) -> Vec<Tool> {
        let offered = self.offered.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<Tool> = offered.values().flat_map(|provider| provider.tools()).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }
}
