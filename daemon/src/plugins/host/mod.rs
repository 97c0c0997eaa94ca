//! What the daemon does for plugins: the one implementation of [`HostApi`], and what it works with.
//!
//! [`Api`] serves routes and tools, where everything takes effect at once; [`Staging`] serves one delivery or poll, whose
//! effects commit with its end.

mod acts;
mod agents;
mod convert;
mod http;
mod metrics;
mod sql;
mod staging;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aman_plugin_host::{
    AgentDefinition, AgentShown, AgentStored, Caller, Error as Refusal, HostApi, Instance, KvChange, KvPage, Level,
    MessagePage, Metric, NewEvent as Sent, NewInstance, NewSession, NewTurn, Notification, OutgoingRequest,
    OutgoingResponse, Reply, Rows, Session, SessionPage, SignalEvent, Started, Statement, TurnAnswer, TurnFrames,
    TurnInfo,
};
use arc_swap::ArcSwap;
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::{OwnedMutexGuard, OwnedRwLockWriteGuard, RwLock};

use crate::bus::{Bus, Origin, Publish};
use crate::config::plugins::PluginSection;
use crate::egress::Egress;
use crate::error::Error;
use crate::event::{NewEvent, Trust};
use crate::package::Manifest;
use crate::redact;
use crate::store::private::Private;
use crate::store::{Tx, chat, plugin_data};

pub use convert::{trust_from, trust_of};
pub use staging::{Begun, Ready, Staging, Work};

use agents::Within;
use convert::{change_of, refusal};
use metrics::Metrics;

/// The end of the name of a private database whose plugin is being removed.
const ASIDE: &str = ".gone";

/// What the host functions of all plugins work with; cheap to clone.
#[derive(Clone)]
pub struct Services {
    inner: Arc<Inner>,
}

struct Inner {
    bus: Bus,
    egress: Egress,
    folder: PathBuf,
    /// The daemon's own: what is polled on the guests' must not do I/O there, nor be cut off half-way.
    runtime: Handle,
    sections: ArcSwap<BTreeMap<String, PluginSection>>,
    rooms: Mutex<HashMap<String, Arc<Room>>>,
    metrics: Metrics,
}

/// What a plugin has, whichever of its versions runs.
struct Room {
    plugin: String,
    /// Its private database, opened when it is first needed. Whoever holds it is alone with it.
    sql: Arc<tokio::sync::Mutex<Option<Private>>>,
    sql_file: PathBuf,
    /// Held to write by a delivery whose SQL is committed, until the rest of it is: nobody may change a key in between.
    gate: Arc<RwLock<()>>,
}

impl Services {
    /// Services over `bus` and `egress`, with private databases in `folder`. Must be called in the daemon's runtime.
    pub fn new(bus: &Bus, egress: &Egress, folder: &Path, sections: &[PluginSection]) -> Services {
        let inner = Inner {
            bus: bus.clone(),
            egress: egress.clone(),
            folder: folder.to_owned(),
            runtime: Handle::current(),
            sections: ArcSwap::default(),
            rooms: Mutex::default(),
            metrics: Metrics::default(),
        };
        let services = Services { inner: Arc::new(inner) };
        services.configure(sections);
        services
    }

    /// Puts what the configuration says of plugins in force, at once.
    pub fn configure(&self, sections: &[PluginSection]) {
        let named = sections.iter().map(|section| (section.name.clone(), section.clone())).collect();
        self.inner.sections.store(Arc::new(named));
    }

    /// Appends the metrics that plugins made, as Prometheus text.
    pub fn write_metrics(&self, out: &mut String) {
        self.inner.metrics.write(out);
    }

    /// Waits until nobody works with the data of a plugin, and keeps it so.
    pub async fn alone_with(&self, plugin: &str) -> Alone {
        let room = self.room(plugin);
        // In the order in which a delivery takes them.
        let open = Arc::clone(&room.sql).lock_owned().await;
        let closed = Arc::clone(&room.gate).write_owned().await;
        Alone { services: self.clone(), room, open, _closed: closed }
    }

    /// Undoes what a crash left of a removal: databases that were put aside are put back if `is_kept` says that their
    /// plugin is still there, and removed if not; blocks.
    pub fn settle_files(&self, is_kept: impl Fn(&str) -> bool) -> std::io::Result<()> {
        let entries = match std::fs::read_dir(&self.inner.folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let aside = entry?.path();
            let name = aside.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(ASIDE));
            let Some((file, plugin)) = name.and_then(|file| Some((file, file.split_once(".db")?.0))) else { continue };
            if is_kept(plugin) {
                std::fs::rename(&aside, aside.with_file_name(file))?;
            } else {
                std::fs::remove_file(&aside)?;
            }
        }
        Ok(())
    }

    fn room(&self, plugin: &str) -> Arc<Room> {
        let mut rooms = self.inner.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        let make = || {
            Arc::new(Room {
                plugin: plugin.to_owned(),
                sql: Arc::default(),
                sql_file: self.inner.folder.join(format!("{plugin}.db")),
                gate: Arc::default(),
            })
        };
        Arc::clone(rooms.entry(plugin.to_owned()).or_insert_with(make))
    }
}

/// The data of a plugin with nobody else at work in them.
pub struct Alone {
    services: Services,
    room: Arc<Room>,
    open: OwnedMutexGuard<Option<Private>>,
    _closed: OwnedRwLockWriteGuard<()>,
}

impl Alone {
    fn files(&self) -> impl Iterator<Item = (PathBuf, PathBuf)> {
        let file = self.room.sql_file.clone().into_os_string();
        ["-wal", "-shm", ""].into_iter().map(move |suffix| {
            let (mut file, mut aside) = (file.clone(), file.clone());
            file.push(suffix);
            aside.push(suffix);
            aside.push(ASIDE);
            (file.into(), aside.into())
        })
    }

    /// Puts the private database aside: removed with [`Alone::remove`], put back with [`Alone::put_back`], or, after a
    /// crash, by [`Services::settle_files`]. Blocks.
    pub fn put_aside(&mut self) -> Result<(), Error> {
        *self.open = None;
        self.files().try_for_each(|(file, aside)| if_there(std::fs::rename(file, aside)))
    }

    /// Undoes [`Alone::put_aside`]; blocks.
    pub fn put_back(&self) -> Result<(), Error> {
        self.files().try_for_each(|(file, aside)| if_there(std::fs::rename(aside, file)))
    }

    /// Removes what was put aside, and the metrics; blocks.
    pub fn remove(&self) -> Result<(), Error> {
        self.services.inner.metrics.forget(&self.room.plugin);
        self.files().try_for_each(|(_, aside)| if_there(std::fs::remove_file(aside)))
    }
}

/// What was done to a file, which need not be there.
fn if_there(done: std::io::Result<()>) -> Result<(), Error> {
    match done {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::internal("removing the database of a plugin")(error))
        }
        _ => Ok(()),
    }
}

/// Removes the keys and values of a plugin, and its sessions with agents.
pub fn purge_rows(tx: &mut Tx<'_>, plugin: &str) -> Result<(), Error> {
    plugin_data::purge(tx, plugin)?;
    chat::hide_all(tx, &format!("plugin/{plugin}"), chat::Kind::Plugin)
}

/// How much of what it may keep a plugin keeps, in bytes; no quota = not granted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Keys and values.
    pub kv_bytes: u64,
    /// What the manifest asks for.
    pub kv_quota: Option<u64>,
    /// The private database.
    pub sql_bytes: u64,
    /// What the manifest asks for.
    pub sql_quota: Option<u64>,
}

/// The daemon as one version of a plugin sees it, as its manifest grants.
pub struct Api {
    services: Services,
    room: Arc<Room>,
    manifest: Arc<Manifest>,
}

impl Api {
    /// Host functions for `plugin`, a plugin that was approved with `manifest`.
    pub fn of(plugin: &str, manifest: &Arc<Manifest>, services: &Services) -> Arc<Api> {
        Arc::new(Api { services: services.clone(), room: services.room(plugin), manifest: Arc::clone(manifest) })
    }

    /// What the plugin keeps.
    pub async fn usage(&self) -> Result<Usage, Error> {
        let plugin = self.room.plugin.clone();
        let kv_bytes = self.bus().store().read(move |conn| plugin_data::bytes(conn, &plugin)).await?;
        let sql_bytes = std::fs::metadata(&self.room.sql_file).map_or(0, |file| file.len());
        let permissions = &self.manifest.permissions;
        Ok(Usage { kv_bytes, kv_quota: permissions.kv, sql_bytes, sql_quota: permissions.sql })
    }

    /// How long its sources may be silent, if its operator says so.
    pub fn expect_every(&self) -> Option<Duration> {
        self.services.inner.sections.load().get(&self.room.plugin)?.expect_every
    }

    /// The event that the plugin means, with everything that the daemon adds; checked, and allowed by the manifest.
    pub fn new_event(&self, sent: Sent) -> Result<NewEvent, Refusal> {
        self.may_publish(&sent.type_)?;
        let event = convert::event(sent, &self.source(), self.bus().clock().now_ms()).map_err(refusal)?;
        event.check().and_then(|()| self.bus().types().check(&event.kind, &event.data)).map_err(refusal)?;
        Ok(event)
    }

    fn may_publish(&self, kind: &str) -> Result<(), Refusal> {
        if kind.starts_with("aman.") {
            return Err(Refusal::Denied(format!("'{kind}' begins with 'aman.', which only the daemon uses")));
        }
        if self.manifest.permissions.publish.iter().any(|pattern| pattern.matches(kind)) {
            return Ok(());
        }
        Err(Refusal::Denied(format!("the manifest does not ask to publish '{kind}'")))
    }

    fn bus(&self) -> &Bus {
        &self.services.inner.bus
    }

    fn source(&self) -> String {
        format!("plugin/{}", self.room.plugin)
    }

    fn kv_quota(&self) -> Result<u64, Refusal> {
        self.manifest.permissions.kv.ok_or_else(|| Refusal::Denied("the manifest does not ask for kv".to_owned()))
    }
}

impl HostApi for Api {
    fn check_publish(&self, event: &Sent) -> Result<(), Refusal> {
        self.new_event(event.clone()).map(drop)
    }

    fn stage_publish(&self, _event: Sent) -> Result<(), Refusal> {
        Err(Refusal::Internal("nothing is staged here".to_owned()))
    }

    fn publish<'a>(&'a self, caller: &'a Caller, event: Sent) -> Reply<'a, String> {
        let trust = trust_from(caller.trust).min(Trust::Plugin);
        let trace = caller.trace_id.parse().ok();
        let publish = self.new_event(event).map(|event| {
            // Reserved names were refused above; this source is ours to use.
            let origin = Origin { principal: self.source(), trust, internal: true };
            Publish::one(NewEvent { trace, ..event }, origin)
        });
        Box::pin(async move {
            let (bus, publish) = (self.bus().clone(), publish?);
            // It ends even if the call does not.
            let accepted = self.services.inner.runtime.spawn(async move { bus.publish(publish).await }).await;
            let accepted = accepted.map_err(|error| refusal(Error::internal("publishing for a plugin")(error)))?;
            let mut accepted = accepted.map_err(refusal)?;
            accepted.pop().map(|one| one.id).ok_or_else(|| Refusal::Internal("one event has one id".to_owned()))
        })
    }

    fn kv_get<'a>(&'a self, key: &'a str) -> Reply<'a, Option<Vec<u8>>> {
        Box::pin(async move {
            self.kv_quota()?;
            let (plugin, key) = (self.room.plugin.clone(), key.to_owned());
            // Guests have threads of their own: a slow disk holds up other guests for a moment, and nobody else.
            self.bus().store().read_here(move |conn| plugin_data::get(conn, &plugin, &key)).await.map_err(refusal)
        })
    }

    fn kv_list<'a>(&'a self, prefix: &'a str, after: Option<&'a str>, limit: u32) -> Reply<'a, KvPage> {
        Box::pin(async move {
            self.kv_quota()?;
            let (plugin, prefix, after) = (self.room.plugin.clone(), prefix.to_owned(), after.map(str::to_owned));
            // One more, to know whether there is more.
            let read = move |conn: &_| plugin_data::list(conn, &plugin, &prefix, after.as_deref(), limit + 1);
            let mut keys = self.bus().store().read(read).await.map_err(refusal)?;
            let more = keys.len() > limit as usize;
            keys.truncate(limit as usize);
            let next = keys.last().filter(|_| more).cloned();
            Ok(KvPage { keys, next })
        })
    }

    fn kv_change<'a>(&'a self, change: KvChange) -> Reply<'a, bool> {
        Box::pin(async move {
            let (quota, plugin) = (self.kv_quota()?, self.room.plugin.clone());
            let gate = Arc::clone(&self.room.gate).read_owned().await;
            let changes = [change_of(change)];
            let write = move |tx: &mut Tx<'_>| {
                let _open = gate;
                plugin_data::change(tx, &plugin, &changes, quota)
            };
            match self.bus().store().write(write).await {
                Ok(()) => Ok(true),
                Err(Error::Conflict { code: plugin_data::SWAP_LOST, .. }) => Ok(false),
                Err(error) => Err(refusal(error)),
            }
        })
    }

    fn sql_execute<'a>(&'a self, statements: Vec<Statement>) -> Reply<'a, Vec<u64>> {
        Box::pin(self.execute_now(statements))
    }

    fn sql_query<'a>(&'a self, statement: Statement) -> Reply<'a, Rows> {
        Box::pin(self.query_now(statement))
    }

    fn http_send<'a>(&'a self, caller: &'a Caller, request: OutgoingRequest) -> Reply<'a, OutgoingResponse> {
        let trace = caller.trace_id.parse().ok();
        Box::pin(self.send(request, trace.and_then(|trace| self.bus().traces().context(trace, None))))
    }

    fn workflow_start<'a>(&'a self, caller: &'a Caller, instance: NewInstance) -> Reply<'a, Started> {
        Box::pin(self.start_now(caller, instance))
    }

    fn workflow_signal<'a>(&'a self, caller: &'a Caller, id: &'a str, event: SignalEvent) -> Reply<'a, ()> {
        Box::pin(self.signal_now(caller, id, event))
    }

    fn notify<'a>(&'a self, caller: &'a Caller, notification: Notification) -> Reply<'a, ()> {
        Box::pin(self.notify_now(caller, notification))
    }

    fn workflow_read<'a>(&'a self, id: &'a str) -> Reply<'a, Instance> {
        Box::pin(self.look_at(id))
    }

    fn agents_list<'a>(&'a self, caller: &'a Caller) -> Reply<'a, Vec<AgentShown>> {
        Box::pin(self.list_agents(caller))
    }

    fn agent_read<'a>(&'a self, caller: &'a Caller, id: &'a str) -> Reply<'a, AgentDefinition> {
        Box::pin(self.read_agent(caller, id))
    }

    fn agent_put<'a>(&'a self, caller: &'a Caller, id: &'a str, definition: &'a str) -> Reply<'a, AgentStored> {
        Box::pin(self.put_agent(caller, (id, definition), None))
    }

    fn agent_remove<'a>(&'a self, caller: &'a Caller, id: &'a str) -> Reply<'a, ()> {
        Box::pin(self.remove_agent(caller, id))
    }

    fn chat_create<'a>(&'a self, caller: &'a Caller, session: NewSession) -> Reply<'a, Session> {
        Box::pin(self.create_session(caller, session, Within::DIRECT))
    }

    fn chat_list<'a>(
        &'a self,
        caller: &'a Caller,
        agent: Option<String>,
        after: Option<String>,
        limit: u32,
    ) -> Reply<'a, SessionPage> {
        Box::pin(self.list_sessions(caller, (agent, after, limit)))
    }

    fn chat_read<'a>(&'a self, caller: &'a Caller, session: &'a str) -> Reply<'a, Session> {
        Box::pin(self.read_session(caller, session))
    }

    fn chat_history<'a>(
        &'a self,
        caller: &'a Caller,
        session: &'a str,
        after: Option<String>,
        limit: u32,
    ) -> Reply<'a, MessagePage> {
        Box::pin(self.read_history(caller, (session, after, limit)))
    }

    fn chat_turn<'a>(&'a self, caller: &'a Caller, turn: NewTurn) -> Reply<'a, TurnAnswer> {
        Box::pin(self.take_turn(caller, turn, Within::DIRECT))
    }

    fn chat_stream<'a>(&'a self, caller: &'a Caller, turn: NewTurn) -> Reply<'a, (TurnInfo, Box<dyn TurnFrames>)> {
        Box::pin(self.watch_turn(caller, turn, Within::DIRECT))
    }

    fn chat_stop<'a>(&'a self, caller: &'a Caller, session: &'a str) -> Reply<'a, bool> {
        Box::pin(self.stop_session(caller, session))
    }

    fn chat_delete<'a>(&'a self, caller: &'a Caller, session: &'a str) -> Reply<'a, ()> {
        Box::pin(self.delete_session(caller, session))
    }

    fn settings(&self) -> Vec<(String, String)> {
        let sections = self.services.inner.sections.load();
        let settings = sections.get(&self.room.plugin).map(|section| &section.settings);
        settings.into_iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    fn setting(&self, key: &str) -> Option<String> {
        self.services.inner.sections.load().get(&self.room.plugin)?.settings.get(key).cloned()
    }

    fn log(&self, caller: &Caller, level: Level, message: &str, fields: &[(String, String)]) {
        let (plugin, trace) = (self.room.plugin.as_str(), caller.trace_id.as_str());
        let fields: BTreeMap<&str, &str> = fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let fields = if fields.is_empty() { None } else { serde_json::to_string(&fields).ok() };
        // What is not text is made visible, so that no plugin writes what looks like another line, or moves a cursor.
        let message: String = message.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
        let message = redact::text(&message);
        match level {
            Level::Debug => tracing::debug!(plugin, trace, fields, "{message}"),
            Level::Info => tracing::info!(plugin, trace, fields, "{message}"),
            Level::Warn => tracing::warn!(plugin, trace, fields, "{message}"),
            Level::Error => tracing::error!(plugin, trace, fields, "{message}"),
        }
    }

    fn metric(&self, name: &str, change: Metric, labels: &[(String, String)]) -> Result<(), Refusal> {
        self.services.inner.metrics.change(&self.room.plugin, name, change, labels)
    }

    fn now_ms(&self) -> u64 {
        self.bus().clock().now_ms().max(0).unsigned_abs()
    }
}
