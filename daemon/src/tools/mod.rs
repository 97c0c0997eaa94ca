//! Tools: what agents, workflows and people can have done, from whatever offers it, through one gate.
//!
//! A call passes it in this order: the tool exists, the caller's [`Policy`] has it, its arguments fit its schema, its trust
//! suffices, no boundary of the soul is in the way, and the person agrees where they must be asked ([`approvals`]). What
//! came of it, whatever it was, is one record of the audit chain.

mod approvals;
mod builtin;
mod gate;
pub mod pattern;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

pub use approvals::{Notice, Pending, RuleShown};
pub use builtin::Ground;
pub use gate::from_outside;

use crate::bus::Bus;
use crate::config::{Search, ToolsConfig};
use crate::event::{Event, Trust};
use crate::id::TraceId;
use crate::registry::Schema;
pub use crate::store::approvals::{Answer, Remember, Status};

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
    /// Writes memory or soul, or leaves a job behind that is believed like the owner.
    Remember,
    /// Runs commands.
    Exec,
    /// Whatever a plugin's or another program's tool does: nobody here can know.
    Foreign,
}

impl Permission {
    /// The least trust that a caller needs; what is below it is refused, and no approval helps. Of what is left, callers
    /// below [`Trust::Paired`] need an approval for everything but reading and asking hosts that they were granted.
    pub fn least(self) -> Trust {
        match self {
            Permission::Read | Permission::Net | Permission::Act | Permission::Write | Permission::Foreign => {
                Trust::Unknown
            }
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
    /// Patterns of names (`*` = any characters) that it has; none = all. What needs a grant needs it all the same, and an
    /// agent is asked about tools of others ([`Permission::Foreign`]) unless a pattern here, other than `*`, names them.
    pub allow: Vec<String>,
    /// Patterns of names that it does not have, whatever `allow` says.
    pub deny: Vec<String>,
    /// Patterns of names that are asked about, besides those that always are; a rule that was made of an answer counts.
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
    /// True for what people and workflows may use: an agent has its own. Not part of a definition.
    #[serde(skip)]
    pub of_people: bool,
    /// The names of the tools that are left of all this; none = all of them. Not part of a definition.
    #[serde(skip)]
    pub only: Option<Vec<String>>,
}

/// Names that skills of the Agent Skills specification have for tools that are called otherwise here.
const CALLED_OTHERWISE: [(&str, &str); 5] =
    [("bash", "exec"), ("glob", "find"), ("ls", "list"), ("webfetch", "http_fetch"), ("websearch", "web_search")];

impl Policy {
    /// What is left of it for a skill whose `allowed-tools` (names with spaces between, as `Read Bash(git:*)`) say this. Reading
    /// skills stays. A restriction in brackets counts for commands; other tools that have one are left out, since nobody would
    /// see to it.
    #[must_use]
    pub fn limited_to(&self, allowed: &str) -> Policy {
        let (mut only, mut commands, mut any_command) = (vec!["read_skill".to_owned()], Vec::new(), false);
        for word in words_of(allowed) {
            let (name, within) = word.split_once('(').map_or((word.as_str(), None), |(name, rest)| (name, Some(rest)));
            let lower = name.to_ascii_lowercase();
            let known =
                CALLED_OTHERWISE.iter().find(|(theirs, _)| *theirs == lower).map(|(_, ours)| (*ours).to_owned());
            let is_exec = known.as_deref().unwrap_or(&lower) == "exec";
            match within {
                Some(within) if is_exec => commands.extend(
                    within.split([' ', ':', '*', ')']).next().filter(|word| !word.is_empty()).map(str::to_owned),
                ),
                Some(_) => continue,
                None => any_command |= is_exec,
            }
            // Tools of others are called as they are called.
            only.extend(known.or((lower != name).then_some(lower)));
            only.push(name.to_owned());
        }
        let mut left = Policy { only: Some(only), ..self.clone() };
        if !any_command {
            left.exec.retain(|command| commands.contains(command));
        }
        left
    }
}

/// The words of a text, a part in brackets with the word before it.
fn words_of(text: &str) -> Vec<String> {
    let (mut words, mut depth) = (vec![String::new()], 0_usize);
    for c in text.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ' ' | ',' | '\n' | '\t' if depth == 0 => {
                words.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(word) = words.last_mut() {
            word.push(c);
        }
    }
    words.retain(|word| !word.is_empty());
    words
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

impl ToolFailure {
    /// How far its words are believed, of a tool that can do that; none = it is gone, and was somebody else's.
    pub fn trust(&self, tool: Option<Permission>) -> Trust {
        let is_theirs = match self {
            ToolFailure::Arguments(..) => tool.is_none_or(|tool| tool == Permission::Foreign),
            // All other refusals are in the words of the gate.
            ToolFailure::Refused(code, _) if !["host_not_granted", "plugin_denied"].contains(code) => false,
            ToolFailure::Refused(..) | ToolFailure::Failed(_) | ToolFailure::Unknown(_) => {
                tool.is_none_or(|tool| matches!(tool, Permission::Net | Permission::Foreign))
            }
        };
        if is_theirs { Trust::Web } else { Trust::Owner }
    }
}

/// The future of a call.
pub type Calling<'a> = Pin<Box<dyn Future<Output = Result<Output, ToolFailure>> + Send + 'a>>;

/// What a call would touch, as its provider sees it: shown by an approval, and part of what the approval is bound to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Preview {
    /// Beyond the arguments, in words: a resolved path and what is there, a host, a program.
    pub text: Option<String>,
    /// What rules are compared with: `git status -s`, `example.org`, `~/notes/a.md`.
    pub subject: String,
    /// What a rule made of this call would allow (see [`pattern::fits`]); empty = every call of the tool.
    pub pattern: String,
    /// Why the person must be asked although the tool itself is granted, as for a host that nobody named. A caller that
    /// is not trusted is refused instead.
    pub asks: Option<String>,
    /// What this call can do, where that is more than its tool usually does.
    pub permission: Option<Permission>,
}

impl Preview {
    /// A call about `subject`, of which `pattern` would be a rule, with nothing more to say.
    pub fn about(subject: impl Into<String>, pattern: impl Into<String>) -> Preview {
        Preview { subject: subject.into(), pattern: pattern.into(), ..Preview::default() }
    }
}

/// Whoever offers tools: aman itself, plugins, other programs.
pub trait Provider: Send + Sync {
    /// What it has now.
    fn tools(&self) -> Vec<Tool>;

    /// One of them.
    fn tool(&self, name: &str) -> Option<Tool> {
        self.tools().into_iter().find(|tool| tool.name == name)
    }

    /// Whether a policy grants what the tool cannot do without, as a folder. The default needs no grant.
    fn is_granted(&self, _tool: &str, _policy: &Policy) -> bool {
        true
    }

    /// Does it; the gate has let it pass, and its arguments fit the schema. Ends soon after `cancel`; whoever does not is
    /// dropped.
    fn call<'a>(&'a self, call: &'a Call, cancel: &'a CancellationToken) -> Calling<'a>;

    /// What a call would touch. `Err` when it may not be done at all. May block for a moment, as files do. The default has
    /// nothing to add.
    fn preview(&self, _call: &Call) -> Result<Preview, ToolFailure> {
        Ok(Preview::default())
    }
}

/// Says why a tool may not be called with these arguments, whoever calls: the boundaries of the soul.
pub type Admit = Arc<dyn Fn(&str, &Value) -> Result<(), String> + Send + Sync>;

/// What the gate can be told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What people and workflows may use; agents bring their own.
    pub policy: Arc<Policy>,
    /// How long an approval can be answered.
    pub approval_time: Duration,
    /// How the web is searched; none = not at all.
    pub search: Option<Search>,
}

impl Settings {
    /// As `[tools]` says.
    pub fn of(config: &ToolsConfig) -> Settings {
        let ToolsConfig { allow, deny, approve, read, write, hosts, exec, sqlite, approval_time, search } = config;
        let policy = Policy {
            allow: allow.clone(),
            deny: deny.clone(),
            approve: approve.clone(),
            read: read.clone(),
            write: write.clone(),
            hosts: hosts.clone(),
            exec: exec.clone(),
            sqlite: sqlite.clone(),
            unattended: false,
            of_people: true,
            only: None,
        };
        Settings { policy: Arc::new(policy), approval_time: *approval_time, search: search.clone() }
    }
}

/// Everything that is offered, and the gate before it; cheap to clone.
#[derive(Clone)]
pub struct Tools {
    inner: Arc<Inner>,
}

struct Inner {
    bus: Bus,
    admit: Admit,
    settings: Arc<ArcSwap<Settings>>,
    offered: RwLock<BTreeMap<String, Arc<dyn Provider>>>,
    /// Schemas that are ready, by tool.
    schemas: Mutex<HashMap<String, Arc<Schema>>>,
    approvals: approvals::Approvals,
    /// Cancelled when the daemon ends: what waits for an answer waits on after the next start.
    ending: CancellationToken,
}

impl Tools {
    /// A gate with nothing behind it.
    pub fn new(bus: &Bus, admit: Admit, settings: Settings) -> Tools {
        Tools {
            inner: Arc::new(Inner {
                bus: bus.clone(),
                admit,
                settings: Arc::new(ArcSwap::from_pointee(settings)),
                offered: RwLock::default(),
                schemas: Mutex::default(),
                approvals: approvals::Approvals::default(),
                ending: CancellationToken::new(),
            }),
        }
    }

    /// Offers aman's own tools.
    pub fn offer_builtin(&self, ground: Ground) {
        let builtin = builtin::Builtin::new(ground, &self.inner.bus, &self.inner.settings);
        self.offer("builtin", Arc::new(builtin));
    }

    /// Sees to what waited for an approval when the daemon ended; once everybody who consumes events is there.
    pub fn run(&self) {
        self.watch_expiry();
    }

    /// Ends the wait of whoever still waits for an answer; the questions stay.
    pub fn stop(&self) {
        self.inner.ending.cancel();
    }

    /// Takes up a provider under a name; whoever had it before is replaced. Of two tools of one name the one counts whose
    /// provider's name sorts first: aman's own under `builtin`, then `mcp/…`, then `plugins`.
    pub fn offer(&self, name: &str, provider: Arc<dyn Provider>) {
        self.inner.offered.write().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), provider);
    }

    /// Forgets a provider.
    pub fn withdraw(&self, name: &str) {
        self.inner.offered.write().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// The tool of that name.
    pub fn get(&self, name: &str) -> Option<Tool> {
        self.find(name).map(|(tool, _)| tool)
    }

    /// Every tool there is, by name. Of two with one name the first provider's counts.
    pub fn list(&self) -> Vec<Tool> {
        self.tools_of(|_, _| true)
    }

    /// The tools that a caller of this trust with this policy may be shown.
    pub fn list_for(&self, policy: &Policy, trust: Trust) -> Vec<Tool> {
        self.tools_of(|tool, provider| {
            trust >= tool.permission.least()
                && gate::is_allowed(&tool.name, policy)
                && provider.is_granted(&tool.name, policy)
        })
    }

    fn tools_of(&self, wanted: impl Fn(&Tool, &dyn Provider) -> bool) -> Vec<Tool> {
        let mut all: BTreeMap<String, Tool> = BTreeMap::new();
        for provider in self.providers() {
            for tool in provider.tools().into_iter().filter(|tool| wanted(tool, provider.as_ref())) {
                all.entry(tool.name.clone()).or_insert(tool);
            }
        }
        all.into_values().collect()
    }

    fn providers(&self) -> Vec<Arc<dyn Provider>> {
        self.inner.offered.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The tool of that name, and who has it.
    fn find(&self, name: &str) -> Option<(Tool, Arc<dyn Provider>)> {
        self.providers().into_iter().find_map(|provider| Some((provider.tool(name)?, provider)))
    }

    /// What people and workflows may use.
    pub fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.inner.settings.load().policy)
    }

    /// Puts other settings in force; calls that are under way keep theirs.
    pub fn configure(&self, settings: Settings) {
        self.inner.settings.store(Arc::new(settings));
    }
}
