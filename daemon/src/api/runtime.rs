//! Where the daemon stands, and the routes that ask or change it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Instant;

use hyper::StatusCode;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::body::{self, Reply};
use super::problem::Problem;
use super::query::Query;
use super::{App, Call};
use crate::store::fault::Fault;

/// How far the start has come; shutting down is [`Lifecycle::is_draining`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The store and the bus open.
    Bus,
    /// Secrets are resolved.
    Secrets,
    /// What a crash cut off is settled.
    Recovery,
    /// Skills, plugins and agents register.
    Consumers,
    /// Workflows and cron begin.
    Workflows,
    /// Sources begin.
    Sources,
    /// Everything serves.
    Ready,
}

impl Phase {
    const ALL: [Phase; 7] =
        [Phase::Bus, Phase::Secrets, Phase::Recovery, Phase::Consumers, Phase::Workflows, Phase::Sources, Phase::Ready];

    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Bus => "bus",
            Phase::Secrets => "secrets",
            Phase::Recovery => "recovery",
            Phase::Consumers => "consumers",
            Phase::Workflows => "workflows",
            Phase::Sources => "sources",
            Phase::Ready => "ready",
        }
    }
}

/// Where the daemon stands: moved on by whoever starts and ends it, asked by the API.
pub struct Lifecycle {
    phase: AtomicU8,
    draining: AtomicBool,
    started: Instant,
    shutdown: CancellationToken,
}

impl Default for Lifecycle {
    fn default() -> Lifecycle {
        Lifecycle {
            phase: AtomicU8::new(0),
            draining: AtomicBool::new(false),
            started: Instant::now(),
            shutdown: CancellationToken::new(),
        }
    }
}

impl Lifecycle {
    /// Moves on to `phase`.
    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    /// How far the start has come.
    pub fn phase(&self) -> Phase {
        let number = usize::from(self.phase.load(Ordering::Acquire));
        Phase::ALL.get(number).copied().unwrap_or(Phase::Ready)
    }

    /// Begins to shut down: new work is refused with 503 `draining`; streams end when they are woken next, see
    /// [`crate::bus::live::Live::wake`].
    pub fn begin_drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// True once it shuts down.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Asks for a shutdown, as `POST /agent/shutdown` does.
    pub fn request_shutdown(&self) {
        self.shutdown.cancel();
    }

    /// Cancelled when somebody asked for a shutdown.
    pub fn shutdown_requested(&self) -> &CancellationToken {
        &self.shutdown
    }

    pub(super) fn phase_name(&self) -> &'static str {
        if self.is_draining() { "draining" } else { self.phase().name() }
    }

    pub(super) fn is_ready(&self) -> bool {
        self.phase() == Phase::Ready && !self.is_draining()
    }

    /// Refuses new work while the daemon starts or shuts down.
    pub(super) fn admit_work(&self) -> Result<(), Problem> {
        if self.is_draining() {
            return Err(super::draining());
        }
        if self.phase() < Phase::Sources {
            let detail =
                "The daemon is starting and takes no work yet. Try again in a second; GET /health/ready says when.";
            return Err(Problem::new((StatusCode::SERVICE_UNAVAILABLE, "starting"), detail).retry_after_ms(1000));
        }
        Ok(())
    }
}

/// `POST /agent/start`: the daemon runs already, so this only says how it stands.
pub(super) async fn start(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    call.fields().await?.done()?;
    if app.lifecycle.is_draining() {
        return Err(super::draining());
    }
    let status = if app.lifecycle.is_ready() { "running" } else { "starting" };
    body::ok(&json!({ "status": status }))
}

/// `POST /agent/shutdown`
pub(super) async fn shutdown(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    call.fields().await?.done()?;
    let draft = call.draft.clone();
    app.store.write(move |tx| draft.record(tx, "daemon", json!({}))).await?;
    app.lifecycle.begin_drain();
    app.live.wake();
    app.agents.frames().wake();
    app.lifecycle.request_shutdown();
    body::reply(StatusCode::ACCEPTED, &json!({ "status": "draining" }))
}

/// `GET /runtime/status`
pub(super) async fn status(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    let lifecycle = &app.lifecycle;
    body::ok(&json!({
        "phase": lifecycle.phase_name(),
        "ready": lifecycle.is_ready(),
        "live": true,
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_s": lifecycle.started.elapsed().as_secs(),
        "draining": lifecycle.is_draining(),
        "auth": app.gate.name(),
        "safe_mode": app.configured.is_broken(),
        "sequence": app.live.head().0,
        "subsystems": subsystems(&app),
        "usage": app.budget.status().await?,
    }))
}

fn subsystems(app: &App) -> BTreeMap<String, Value> {
    let mut all: BTreeMap<String, Value> =
        app.supervisor.status().into_iter().map(|(name, status)| (name, json!(status))).collect();
    for (name, mut shown) in app.sources.status() {
        shown["task"] = all.remove(&name).unwrap_or_default();
        all.insert(name, shown);
    }
    if let Some(backup) = all.get_mut("backup") {
        backup["copies"] = json!(*app.upkeep.backups().standing());
    }
    let failed = app.skills.failed();
    let state = if failed.is_empty() { "running" } else { "degraded" };
    all.insert("skills".to_owned(), json!({ "state": state, "loaded": app.skills.list().len(), "failed": failed }));
    if let Some(workflows) = all.get_mut("workflows") {
        let left_out = app.workflows.left_out().into_iter();
        workflows["left_out"] = left_out.map(|(place, error)| json!({ "place": place, "error": error })).collect();
    }
    let left_out: Vec<Value> =
        app.agents.left_out().into_iter().map(|(id, error)| json!({ "id": id, "error": error })).collect();
    let state = if left_out.is_empty() { "running" } else { "degraded" };
    all.insert("agents".to_owned(), json!({ "state": state, "left_out": left_out }));
    for shown in app.plugins.sources() {
        all.insert(format!("plugin/{}", shown["id"].as_str().unwrap_or_default()), shown);
    }
    all.insert("models".to_owned(), json!({ "state": "running", "standing": app.models.standing() }));
    let soul = app.soul.info();
    let state = if soul.problem.is_none() { "running" } else { "degraded" };
    all.insert("soul".to_owned(), json!({ "state": state, "name": soul.name, "problem": soul.problem }));
    let store = app.store.stats();
    let state = match store.fault {
        None => "running",
        Some(fault) if fault.is_final() => "failed",
        Some(_) => "degraded",
    };
    let error =
        store.fault.map(|fault| json!({ "code": fault.code(), "why": fault.what(), "what_to_do": fault.advice() }));
    let (queued, free) = (store.queued, store.free_bytes);
    all.insert(
        "store".to_owned(),
        json!({ "state": state, "error": store.fault.map(Fault::what), "fault": error, "queued": queued, "free_bytes": free }),
    );
    all
}
