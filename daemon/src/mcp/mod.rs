//! Servers of the Model Context Protocol: programs that are started and web services that are called, whose tools the
//! daemon offers as its own, under names of their own.
//!
//! Each `[mcp.<name>]` is one task: it connects, keeps the list of tools as the server says it is, and connects again, ever
//! more slowly, when the connection ends. Connected and idle it waits for the server only. What a server says is believed
//! as far as its section says, by default as a page of the web.

mod http;
mod names;
mod server;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use serde_json::Value;

use crate::clock::Clock;
use crate::config::Applied;
use crate::config::mcp::{McpServer, plan};
use crate::egress::Egress;
use crate::error::Error;
use crate::sandbox::Sandbox;
use crate::tasks::Supervisor;
use crate::tools::Tools;
use server::{Entry, Offer};

/// What servers are reached with.
#[derive(Clone)]
pub struct Surroundings {
    /// The way out.
    pub egress: Egress,
    /// What attends programs.
    pub sandbox: Sandbox,
    /// The person's home: where programs start when nothing else is said.
    pub home: Option<PathBuf>,
    /// The time.
    pub clock: Clock,
}

/// Every configured server; cheap to clone.
#[derive(Clone)]
pub struct Servers {
    inner: Arc<Inner>,
}

struct Inner {
    surroundings: Surroundings,
    tools: Tools,
    supervisor: Supervisor,
    entries: ArcSwap<BTreeMap<String, Arc<Entry>>>,
    /// Held by whoever changes them.
    changing: tokio::sync::Mutex<()>,
    /// Held by whoever gives names to tools, so that no two get the same.
    naming: Mutex<()>,
}

/// The name under which the tools of a server are offered.
fn provider(name: &str) -> String {
    format!("mcp/{name}")
}

impl Servers {
    /// Begins to connect to every server; waits for none.
    pub fn start(
        configured: &[McpServer],
        surroundings: Surroundings,
        tools: &Tools,
        supervisor: &Supervisor,
    ) -> Servers {
        let servers = Servers {
            inner: Arc::new(Inner {
                surroundings,
                tools: tools.clone(),
                supervisor: supervisor.clone(),
                entries: ArcSwap::default(),
                changing: tokio::sync::Mutex::default(),
                naming: Mutex::default(),
            }),
        };
        let entries = configured.iter().map(|one| (one.name.clone(), servers.begin(one))).collect();
        servers.inner.entries.store(Arc::new(entries));
        servers
    }

    /// What putting `configured` in force would change.
    pub fn plan(&self, configured: &[McpServer]) -> Applied {
        let now: Vec<McpServer> = self.inner.entries.load().values().map(|entry| entry.configured.clone()).collect();
        plan(&now, configured)
    }

    /// Puts what the file says by now in force. Calls that are under way at a server that goes or changes are cut off.
    pub async fn apply(&self, configured: &[McpServer]) -> Applied {
        let _alone = self.inner.changing.lock().await;
        let applied = self.plan(configured);
        let mut entries = BTreeMap::clone(&self.inner.entries.load());
        for name in &applied.stopped {
            if let Some(entry) = entries.remove(name) {
                self.inner.tools.withdraw(&provider(name));
                entry.end().await;
            }
        }
        for one in configured.iter().filter(|one| applied.touches(&one.name)) {
            if let Some(before) = entries.get(&one.name) {
                before.end().await;
            }
            entries.insert(one.name.clone(), self.begin(one));
        }
        self.inner.entries.store(Arc::new(entries));
        applied
    }

    fn begin(&self, configured: &McpServer) -> Arc<Entry> {
        let entry = Arc::new(Entry::new(configured.clone(), self.inner.surroundings.clock.clone()));
        let name = provider(&configured.name);
        if !configured.enabled {
            self.inner.tools.withdraw(&name);
            return entry;
        }
        self.inner.tools.offer(&name, Arc::new(Offer(Arc::clone(&entry))));
        let (running, inner) = (Arc::clone(&entry), Arc::clone(&self.inner));
        let stop = self.inner.supervisor.stop_token();
        self.inner.supervisor.spawn(name, move || Arc::clone(&running).run(Arc::clone(&inner), stop.clone()));
        entry
    }

    fn entry(&self, name: &str) -> Result<Arc<Entry>, Error> {
        self.inner.entries.load().get(name).cloned().ok_or_else(|| Error::not_found("MCP server", name))
    }

    /// All of them as JSON, by name.
    pub fn list(&self) -> Vec<Value> {
        self.inner.entries.load().values().map(|entry| entry.show()).collect()
    }

    /// One of them.
    pub fn show(&self, name: &str) -> Result<Value, Error> {
        Ok(self.entry(name)?.show())
    }

    /// Connects anew, at once.
    pub fn reconnect(&self, name: &str) -> Result<Value, Error> {
        let entry = self.entry(name)?;
        if !entry.configured.enabled {
            let reason = format!("The MCP server '{name}' is switched off: [mcp.{name}] has enabled = false.");
            return Err(Error::conflict("invalid_state", reason));
        }
        entry.reconnect();
        Ok(entry.show())
    }

    /// How many are connected, of how many that are switched on.
    pub fn ready(&self) -> (usize, usize) {
        let entries = self.inner.entries.load();
        let on = entries.values().filter(|entry| entry.configured.enabled);
        (on.clone().filter(|entry| entry.is_ready()).count(), on.count())
    }
}
