//! One version of a plugin that may run. Its code is loaded with its first call; its faults are counted and told; and
//! when there are too many, it rests for a while and comes back by itself.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use aman_plugin_host::{
    Answer, Artifact, Caller, Event, Fault, Grants, Isolation, Limits, Outcome, Plugin, Request, Response, Setup,
    Staged, Stats,
};
use arc_swap::{ArcSwap, ArcSwapOption};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::health::{Health, Shown as ShownHealth};
use super::host::{Api, Staging};
use super::polls::Polled;
use super::{Ground, artifact_of, tools};
use crate::error::Error;
use crate::id::TraceId;
use crate::package::{AgentRight, Manifest, Package};
use crate::registry::Schema;
use crate::store::plugins as records;

/// Streamed bodies of one plugin at once.
const STREAMS_MAX: usize = 16;
/// Calls that may wait for an instance.
const WAITING_MAX: usize = 256;

/// Why a call of a plugin has no answer.
#[derive(Debug)]
pub enum CallFault {
    /// It misbehaved, or could not be loaded.
    Fault(Fault),
    /// It misbehaved too often and rests; after this time it comes back.
    Resting(Duration),
    /// Another version took its place, or it was switched off.
    Closed,
}

impl CallFault {
    /// What happened, as a sentence for people.
    pub fn text(&self) -> String {
        match self {
            CallFault::Fault(fault) => format!("{fault}."),
            CallFault::Resting(left) => {
                format!("The plugin failed too often and rests; it comes back in {} s.", left.as_secs() + 1)
            }
            CallFault::Closed => "The plugin was switched off or replaced.".to_owned(),
        }
    }
}

/// See the module.
pub struct Running {
    /// What it says of itself.
    pub manifest: Arc<Manifest>,
    /// Its record.
    pub version: records::Version,
    /// Its files.
    pub folder: PathBuf,
    /// The daemon as it sees it.
    pub api: Arc<Api>,
    /// What it polls.
    pub sources: Vec<Arc<Polled>>,
    /// Ends its polls.
    pub stop: CancellationToken,
    /// Ends the bodies that it streams: when it is switched off, and with the daemon.
    pub cut: CancellationToken,
    ground: Arc<Ground>,
    /// Its compiled code, as it was compiled last.
    code: ArcSwap<Artifact>,
    loaded: ArcSwapOption<Plugin>,
    loading: tokio::sync::Mutex<()>,
    closed: AtomicBool,
    /// Calls that were let in and have not ended.
    calls: TaskTracker,
    schemas: OnceLock<Arc<BTreeMap<String, Schema>>>,
    health: Health,
}

impl Running {
    /// A version that is not loaded yet.
    pub fn new(ground: &Arc<Ground>, version: records::Version, manifest: Arc<Manifest>, folder: PathBuf) -> Running {
        Running {
            api: Api::of(&version.name, &manifest, &ground.services),
            sources: manifest.sources.iter().map(|source| Polled::new(&version.name, source)).collect(),
            stop: ground.ending.child_token(),
            cut: ground.ending.child_token(),
            ground: Arc::clone(ground),
            code: ArcSwap::from_pointee(artifact_of(&version)),
            loaded: ArcSwapOption::empty(),
            loading: tokio::sync::Mutex::new(()),
            closed: AtomicBool::new(false),
            calls: TaskTracker::new(),
            schemas: OnceLock::new(),
            health: Health::new(&version, &ground.bus),
            manifest,
            version,
            folder,
        }
    }

    /// Goes on with a rest that began before the daemon did.
    #[must_use]
    pub fn with_rest(self, rest: &records::Rest) -> Running {
        self.health.take_up(rest);
        self
    }

    fn setup(&self, artifact: Artifact) -> Setup {
        let (permissions, limits) = (&self.manifest.permissions, &self.manifest.limits);
        let small = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        Setup {
            name: self.version.name.clone(),
            version: self.version.version.clone(),
            artifact,
            grants: Grants {
                publish: !permissions.publish.is_empty(),
                kv: permissions.kv.is_some(),
                sql: permissions.sql.is_some(),
                http: !permissions.http.is_empty(),
                workflows: !permissions.workflows.is_empty(),
                notify: permissions.notify,
                agents_read: permissions.agents.contains(&AgentRight::Read),
                agents_manage: permissions.agents.contains(&AgentRight::Manage),
                chat: permissions.agents.contains(&AgentRight::Chat),
            },
            limits: Limits {
                memory_bytes: small(limits.memory),
                time: limits.time,
                wait: limits.wait,
                max_instances: limits.max_instances,
                max_streams: STREAMS_MAX,
                max_waiting: WAITING_MAX,
                max_calls_per_instance: u32::try_from(limits.max_calls_per_instance).unwrap_or(u32::MAX),
                output_bytes: small(limits.output),
                isolation: if limits.per_call { Isolation::PerCall } else { Isolation::Pooled },
            },
        }
    }

    async fn load_code(&self, artifact: Artifact) -> Result<Plugin, Fault> {
        let (ground, setup) = (Arc::clone(&self.ground), self.setup(artifact));
        let loading = tokio::task::spawn_blocking(move || ground.host.load(setup));
        loading.await.unwrap_or_else(|error| Err(Fault::Internal { reason: error.to_string() }))
    }

    /// Loads the code; compiles it again when it was damaged, or belongs to another version of the daemon.
    async fn load(&self) -> Result<Plugin, Fault> {
        let reason = match self.load_code(Artifact::clone(&self.code.load())).await {
            Err(Fault::Damaged { reason }) => reason,
            loaded => return loaded,
        };
        tracing::info!(plugin = self.version.name, reason, "The code of a plugin is compiled again.");
        let internal = |reason: String| Fault::Internal { reason };
        let path = self.folder.join(&self.manifest.component);
        let component =
            tokio::fs::read(&path).await.map_err(|error| internal(format!("{}: {error}", path.display())))?;
        let wanted = self.version.component_sha256.clone();
        let checked = tokio::task::spawn_blocking(move || {
            (aman_plugin_host::sha256_hex(&component) == wanted).then_some(component)
        });
        let Some(component) = checked.await.map_err(|error| internal(error.to_string()))? else {
            let reason = "its component is not the one that was installed; install the plugin again".to_owned();
            return Err(Fault::Refused { reason });
        };
        let artifact = self.ground.host.compile(&component).await?;
        let (component, code, bytes) = (artifact.component_sha256.clone(), artifact.sha256.clone(), artifact.bytes);
        let stored = self.ground.bus.store().write(move |tx| records::set_code(tx, &component, &code, bytes)).await;
        stored.map_err(|error| internal(error.chain().join(": ")))?;
        self.code.store(Arc::new(artifact.clone()));
        self.load_code(artifact).await
    }

    /// The loaded plugin. Loading goes on without the caller that began it: a compilation that began anew with each call
    /// that runs out of time would never end.
    async fn plugin(self: &Arc<Self>) -> Result<Arc<Plugin>, CallFault> {
        if let Some(plugin) = self.loaded.load_full() {
            return Ok(plugin);
        }
        let running = Arc::clone(self);
        let loading = tokio::spawn(async move { running.load_once().await });
        loading.await.unwrap_or_else(|error| Err(CallFault::Fault(Fault::Internal { reason: error.to_string() })))
    }

    /// Loads it, unless somebody else just did.
    async fn load_once(&self) -> Result<Arc<Plugin>, CallFault> {
        let _alone = self.loading.lock().await;
        if let Some(plugin) = self.loaded.load_full() {
            return Ok(plugin);
        }
        if self.closed.load(Ordering::Acquire) {
            return Err(CallFault::Closed);
        }
        let plugin = self.load().await.map(Arc::new).map_err(CallFault::Fault)?;
        self.loaded.store(Some(Arc::clone(&plugin)));
        Ok(plugin)
    }

    /// Loads the code and holds what it exports against the manifest; nothing of it runs.
    pub async fn check(self: &Arc<Self>) -> Result<(), Error> {
        let plugin = self.plugin().await.map_err(refusal)?;
        let (surface, manifest) = (plugin.surface(), &self.manifest);
        for (wanted, exported, section, export) in [
            (!manifest.routes.is_empty(), surface.http_handler, "routes", "http-handler"),
            (!manifest.events.is_empty(), surface.events, "events", "events"),
            (!manifest.tools.is_empty(), surface.tools, "tools", "tools"),
            (!manifest.sources.is_empty(), surface.source, "sources", "source"),
        ] {
            if wanted && !exported {
                let reason = format!("stands in plugin.toml, but the component does not export aman:plugin/{export}.");
                return Err(Error::invalid_as(crate::package::FAULT, section, reason));
            }
        }
        Ok(())
    }

    /// Starts an instance, as the first call would.
    pub async fn probe(self: &Arc<Self>) -> Result<(), Error> {
        let plugin = self.plugin().await.map_err(refusal)?;
        let probed = plugin.probe(self.api.clone(), self.caller(TraceId::random())).await;
        probed.map_err(|fault| refusal(CallFault::Fault(fault)))
    }

    /// The plugin itself as a caller, in `trace`.
    pub fn caller(&self, trace: TraceId) -> Caller {
        Caller {
            principal: format!("plugin/{}", self.version.name),
            trust: aman_plugin_host::Trust::Plugin,
            trace_id: trace.to_string(),
            extensions: Vec::new(),
        }
    }

    /// Keeps the plugin from being closed until the token is dropped, unless it is closed already.
    pub fn hold(&self) -> Result<TaskTrackerToken, CallFault> {
        let token = self.calls.token();
        if self.closed.load(Ordering::Acquire) { Err(CallFault::Closed) } else { Ok(token) }
    }

    /// Lets a call in, unless the plugin rests or is closed. It is not closed before the token is dropped.
    async fn enter(self: &Arc<Self>) -> Result<(Arc<Plugin>, TaskTrackerToken), CallFault> {
        let token = self.hold()?;
        self.health.admit().map_err(CallFault::Resting)?;
        let plugin = self.plugin().await.map_err(|fault| match fault {
            CallFault::Fault(fault) => self.health.note(fault),
            fault => fault,
        });
        Ok((plugin?, token))
    }

    /// Hands on what a call came to; a fault is counted, and may send the plugin to rest.
    fn leave<T>(&self, plugin: &Arc<Plugin>, called: Result<T, Fault>) -> Result<T, CallFault> {
        called.map_err(|fault| {
            if fault == Fault::Closed {
                return CallFault::Closed;
            }
            let fault = self.health.note(fault);
            if self.health.admit().is_err() {
                self.unload(plugin);
            }
            fault
        })
    }

    /// Lets go of its instances; the next call loads it anew.
    fn unload(&self, plugin: &Arc<Plugin>) {
        let before = self.loaded.compare_and_swap(plugin, None);
        if before.as_ref().is_some_and(|before| Arc::ptr_eq(before, plugin)) {
            let plugin = Arc::clone(plugin);
            tokio::spawn(async move { plugin.close().await });
        }
    }

    /// Answers a request, which is taken only when the plugin is not closed.
    pub async fn http(self: &Arc<Self>, request: &mut Option<Request>) -> Result<Answer<Response>, CallFault> {
        let (plugin, _open) = self.enter().await?;
        let Some(request) = request.take() else { return Err(CallFault::Closed) };
        self.leave(&plugin, plugin.call_http(self.api.clone(), request).await)
    }

    /// Handles an event, with the effects that commit with its delivery.
    pub async fn event(
        self: &Arc<Self>,
        api: Arc<Staging>,
        caller: Caller,
        event: Event,
    ) -> Result<(Outcome, Staged), CallFault> {
        let (plugin, _open) = self.enter().await?;
        self.leave(&plugin, plugin.handle_event(api, caller, event).await)
    }

    /// Calls a tool with JSON that its schema was held against.
    pub async fn tool(
        self: &Arc<Self>,
        caller: Caller,
        name: &str,
        input: String,
    ) -> Result<Answer<String>, CallFault> {
        let (plugin, _open) = self.enter().await?;
        self.leave(&plugin, plugin.call_tool(self.api.clone(), caller, name.to_owned(), input).await)
    }

    /// Polls a source.
    pub async fn poll(
        self: &Arc<Self>,
        api: Arc<Staging>,
        id: &str,
        cursor: Option<String>,
    ) -> Result<(Answer<aman_plugin_host::Polled>, Staged), CallFault> {
        let (plugin, _open) = self.enter().await?;
        let caller = self.caller(TraceId::random());
        self.leave(&plugin, plugin.poll_source(api, caller, id.to_owned(), cursor).await)
    }

    /// The schemas of its tools, read when they are first wanted: a few small files.
    pub fn schemas(&self) -> Result<Arc<BTreeMap<String, Schema>>, Error> {
        if let Some(known) = self.schemas.get() {
            return Ok(Arc::clone(known));
        }
        let read = Arc::new(tools::schemas(self)?);
        Ok(Arc::clone(self.schemas.get_or_init(|| read)))
    }

    /// Notes a fault in the middle of a stream.
    pub fn note(&self, fault: Fault) -> CallFault {
        self.health.note(fault)
    }

    /// How it is.
    pub fn health(&self) -> ShownHealth {
        self.health.show()
    }

    /// How long it still rests; none when it does not.
    pub fn rests(&self) -> Option<Duration> {
        self.health.admit().err()
    }

    /// Waits until it does not rest.
    pub async fn rested(&self) {
        self.health.rested().await;
    }

    /// Ends its rest before its time.
    pub fn end_rest(&self) {
        self.health.end_rest();
    }

    /// Whether the daemon ends.
    pub fn is_ending(&self) -> bool {
        self.ground.ending.is_cancelled()
    }

    /// Counts of the code that is loaded; none when it is not.
    pub fn stats(&self) -> Option<Stats> {
        self.loaded.load().as_ref().map(|plugin| plugin.stats())
    }

    /// Takes no more calls, and waits for those that run.
    pub async fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.stop.cancel();
        self.calls.close();
        self.calls.wait().await;
        let _alone = self.loading.lock().await;
        if let Some(plugin) = self.loaded.swap(None) {
            plugin.close().await;
        }
    }
}

/// A fault of a component that is being installed or switched on.
fn refusal(fault: CallFault) -> Error {
    match fault {
        CallFault::Fault(Fault::Internal { reason }) => Error::internal("running a plugin")(reason),
        fault => Error::invalid_as(crate::package::FAULT, "component", fault.text()),
    }
}

/// The record of a package whose component was compiled.
pub fn version_of(package: &Package, artifact: &Artifact, now_ms: crate::clock::Millis) -> records::Version {
    records::Version {
        name: package.manifest.name.clone(),
        digest: package.digest.clone(),
        version: package.manifest.version.to_string(),
        manifest: package.manifest_text.clone(),
        signed_by: package.signed_by.clone(),
        component_sha256: artifact.component_sha256.clone(),
        code_sha256: artifact.sha256.clone(),
        code_bytes: artifact.bytes,
        installed_ms: now_ms,
    }
}
