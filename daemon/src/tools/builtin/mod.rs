//! aman's own tools: files, commands, the web, databases, and what the bus can do. Each is granted by name, as a folder, a
//! command or a host; nothing is granted by default.

mod acts;
mod definitions;
mod edit;
mod exec;
mod fetch;
mod html;
mod look;
mod reach;
mod sqlite;
mod web;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{Call, Calling, Output, Policy, Preview, Provider, Settings, Tool, ToolFailure};
use crate::bus::Bus;
use crate::egress::Egress;
use crate::event::Trust;
use crate::sandbox::{Places, Private, Sandbox};

/// What aman's own tools work with.
#[derive(Clone)]
pub struct Ground {
    /// The way out.
    pub egress: Egress,
    /// Runs commands.
    pub sandbox: Sandbox,
    /// What no tool may reach, whatever is granted.
    pub private: Private,
    /// What `~` stands for.
    pub places: Places,
    /// Where commands get folders to work in.
    pub work: PathBuf,
}

/// See the module.
pub(super) struct Builtin {
    shared: Arc<Shared>,
    tools: OnceLock<Vec<Tool>>,
}

/// What the tools share with the threads that they block.
struct Shared {
    ground: Ground,
    bus: Bus,
    settings: Arc<ArcSwap<Settings>>,
}

impl Builtin {
    pub fn new(ground: Ground, bus: &Bus, settings: &Arc<ArcSwap<Settings>>) -> Builtin {
        let shared = Shared { ground, bus: bus.clone(), settings: Arc::clone(settings) };
        Builtin { shared: Arc::new(shared), tools: OnceLock::new() }
    }

    fn all(&self) -> &[Tool] {
        self.tools.get_or_init(definitions::all)
    }

    fn is_there(&self, name: &str) -> bool {
        name != "web_search" || self.shared.settings.load().search.is_some()
    }

    /// Runs what blocks where that holds up nobody.
    async fn blocking(
        &self,
        call: &Call,
        cancel: &CancellationToken,
        run: fn(&Shared, &Call, &CancellationToken) -> Result<Output, ToolFailure>,
    ) -> Result<Output, ToolFailure> {
        let (shared, call, cancel) = (Arc::clone(&self.shared), call.clone(), cancel.child_token());
        // Whoever drops the call ends it.
        let _ended = cancel.clone().drop_guard();
        let done = tokio::task::spawn_blocking(move || run(&shared, &call, &cancel)).await;
        done.unwrap_or_else(|error| Err(ToolFailure::Unknown(error.to_string())))
    }
}

impl Provider for Builtin {
    fn tools(&self) -> Vec<Tool> {
        self.all().iter().filter(|tool| self.is_there(&tool.name)).cloned().collect()
    }

    fn tool(&self, name: &str) -> Option<Tool> {
        self.all().iter().find(|tool| tool.name == name && self.is_there(name)).cloned()
    }

    fn is_granted(&self, tool: &str, policy: &Policy) -> bool {
        match tool {
            "read" | "list" | "find" | "grep" => !policy.read.is_empty() || !policy.write.is_empty(),
            "write" | "edit" => !policy.write.is_empty(),
            "exec" => !policy.exec.is_empty(),
            "sqlite_query" => !policy.sqlite.is_empty(),
            _ => true,
        }
    }

    fn preview(&self, call: &Call) -> Result<Preview, ToolFailure> {
        match call.tool.as_str() {
            "read" | "list" | "find" | "grep" => look::preview(&self.shared, call),
            "write" | "edit" => edit::preview(&self.shared, call),
            "exec" => exec::preview(&self.shared, call),
            "http_fetch" => fetch::preview(call),
            "sqlite_query" => sqlite::preview(&self.shared, call),
            "publish_event" | "start_workflow" => acts::preview(call),
            _ => Ok(Preview::default()),
        }
    }

    fn call<'a>(&'a self, call: &'a Call, cancel: &'a CancellationToken) -> Calling<'a> {
        Box::pin(async move {
            match call.tool.as_str() {
                "read" => self.blocking(call, cancel, look::read).await,
                "list" => self.blocking(call, cancel, look::list).await,
                "find" => self.blocking(call, cancel, look::find).await,
                "grep" => self.blocking(call, cancel, look::grep).await,
                "write" => self.blocking(call, cancel, edit::write).await,
                "edit" => self.blocking(call, cancel, edit::edit).await,
                "sqlite_query" => self.blocking(call, cancel, sqlite::query).await,
                "exec" => exec::run(&self.shared, call).await,
                "http_fetch" => fetch::fetch(&self.shared, call).await,
                "web_search" => web::search(&self.shared, call).await,
                "search_events" => acts::search(&self.shared, call).await,
                "publish_event" => acts::publish(&self.shared, call).await,
                "start_workflow" => acts::start_workflow(&self.shared, call).await,
                other => Err(ToolFailure::Failed(format!("there is no tool '{other}' here"))),
            }
        })
    }
}

/// An argument that is a text; empty when it is not there.
fn text<'a>(call: &'a Call, name: &str) -> &'a str {
    call.arguments[name].as_str().unwrap_or_default()
}

/// An argument that is a number.
fn number(call: &Call, name: &str) -> Option<usize> {
    call.arguments[name].as_u64().and_then(|number| usize::try_from(number).ok())
}

/// An answer out of what the owner of this machine has.
fn said(text: impl Into<String>, value: Option<Value>) -> Output {
    Output { text: text.into(), value, trust: Trust::Owner }
}

fn failed(why: impl Into<String>) -> ToolFailure {
    ToolFailure::Failed(why.into())
}
