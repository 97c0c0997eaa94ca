//! A source at work, whatever its kind: started, switched off and on, ended.

use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Surroundings;
use super::command::CommandSource;
use super::feed::{Feed, Health};
use super::files::{FileSource, FileSourceConfig, State};
use super::mapping::Frame;
use super::mqtt::MqttSource;
use super::poll::PollSource;
use super::webhook::Hook;
use crate::bus::cadence::Cadence;
use crate::clock::Millis;
use crate::config::sources::{Mapping, Source, SourceKind};
use crate::error::Error;

/// Nothing is missed.
const NOT_SILENT: i64 = i64::MIN;

/// A source at work; cheap to clone.
#[derive(Clone)]
pub(super) enum Running {
    /// A folder.
    Files(Arc<Files>),
    /// A hook.
    Hook(Arc<Watched>),
    /// Anything that has a task.
    Task(Arc<Task>),
    /// It could not be started.
    Failed(Arc<Failed>),
}

/// A folder and its watch.
pub(super) struct Files {
    pub source: FileSource,
    watch: Watch,
}

/// A hook and its watch.
pub(super) struct Watched {
    hook: Arc<Hook>,
    watch: Watch,
}

/// A source that could not be started.
pub(super) struct Failed {
    name: String,
    why: String,
}

/// A source with a task.
pub(super) struct Task {
    source: Source,
    feed: Arc<Feed>,
    /// Ends the present run.
    stop: Mutex<CancellationToken>,
    /// Held while the task runs.
    alive: Arc<tokio::sync::Mutex<()>>,
    watch: Watch,
}

/// Misses events of one source; runs while the source does.
struct Watch {
    id: String,
    every: Option<Duration>,
    stop: Mutex<CancellationToken>,
    silent_since: Arc<AtomicI64>,
}

/// The name of a source's events.
fn name(source: &Source) -> String {
    let kind = match source.kind {
        SourceKind::Webhook(_) => "hook",
        _ => source.kind.name(),
    };
    format!("{kind}/{}", source.id)
}

fn frame(source: &Source, mapping: &Mapping, default: &str) -> Frame {
    let kind = mapping.kind.clone().unwrap_or_else(|| default.to_owned());
    Frame { source: name(source), kind, mapping: mapping.clone() }
}

impl Running {
    /// Checks what can be checked without starting it.
    pub fn check(source: &Source) -> Result<(), Error> {
        match &source.kind {
            SourceKind::Files(files) => FileSourceConfig::of(files).check(),
            _ => Ok(()),
        }
    }

    /// Starts a source, or only gets it ready when it is paused.
    pub async fn start(source: &Source, with: &Surroundings, paused: bool) -> Result<Running, Error> {
        let running = match &source.kind {
            SourceKind::Files(files) => {
                Running::check(source)?;
                let made = if files.id == "default" { std::fs::create_dir_all(&files.path) } else { Ok(()) };
                let config = FileSourceConfig::of(files);
                let started = match made {
                    Ok(()) => FileSource::start(config, with.bus.clone(), &with.supervisor, paused).await,
                    Err(error) => Err(Error::internal("making the inbox")(error)),
                };
                match started {
                    Ok(files) => Running::Files(Arc::new(Files { source: files, watch: Watch::of(source) })),
                    Err(error) => {
                        let why = error.chain().join(": ");
                        tracing::error!(id = source.id, why, "A source could not be started.");
                        return Ok(Running::Failed(Arc::new(Failed { name: name(source), why })));
                    }
                }
            }
            SourceKind::Webhook(config) => {
                let hook = Arc::new(Hook::new(&source.id, config, with.bus.clone()));
                Running::Hook(Arc::new(Watched { hook, watch: Watch::of(source) }))
            }
            SourceKind::Command(config) => Task::ready(source, frame(source, &config.mapping, "command.output"), with),
            SourceKind::HttpPoll(config) => Task::ready(source, frame(source, &config.mapping, "http.changed"), with),
            SourceKind::Mqtt(config) => Task::ready(source, frame(source, &config.mapping, "mqtt.message"), with),
        };
        running.begin(with, paused);
        Ok(running)
    }

    fn begin(&self, with: &Surroundings, paused: bool) {
        match self {
            Running::Task(task) if !paused => task.begin(with),
            Running::Files(_) | Running::Task(_) | Running::Hook(_) | Running::Failed(_) => {}
        }
        if !paused {
            self.watch(with, None);
        }
    }

    /// Begins to miss events, those since `from_ms` only if that is given.
    fn watch(&self, with: &Surroundings, from_ms: Option<Millis>) {
        let Some((watch, every)) = self.watched().and_then(|watch| Some((watch, watch.every?))) else { return };
        let stop = with.supervisor.stop_token().child_token();
        *watch.stop.lock().unwrap_or_else(PoisonError::into_inner) = stop.clone();
        let (running, silent_since) = (self.clone(), Arc::clone(&watch.silent_since));
        let (id, source, bus) = (watch.id.clone(), self.name(), with.bus.clone());
        with.supervisor.spawn(format!("cadence/{id}"), move || {
            let cadence = Cadence { id: id.clone(), source: source.clone(), every, from_ms, bus: bus.clone() };
            let (running, silent_since, stop) = (running.clone(), Arc::clone(&silent_since), stop.clone());
            async move {
                let last = move || running.health().last_event_ms;
                let silent =
                    move |since: Option<Millis>| silent_since.store(since.unwrap_or(NOT_SILENT), Ordering::Release);
                cadence.run(last, silent, stop).await
            }
        });
    }

    /// Switches it off or on.
    pub async fn set_paused(&self, paused: bool, with: &Surroundings) {
        match (self, paused) {
            (Running::Files(files), true) => files.source.pause(),
            (Running::Files(files), false) => files.source.resume(),
            (Running::Task(task), true) => task.end().await,
            (Running::Task(task), false) => task.begin(with),
            (Running::Hook(_) | Running::Failed(_), _) => {}
        }
        match self.watched() {
            Some(watch) if paused => watch.end(),
            // While it was paused it could tell nothing.
            _ => self.watch(with, Some(with.bus.clock().now_ms())),
        }
    }

    /// Ends it; what is being stored is finished.
    pub async fn stop(&self) {
        if let Some(watch) = self.watched() {
            watch.end();
        }
        match self {
            Running::Files(files) => files.source.stop().await,
            Running::Task(task) => task.end().await,
            Running::Hook(_) | Running::Failed(_) => {}
        }
    }

    /// The name of its events' source.
    pub fn name(&self) -> String {
        match self {
            Running::Files(files) => format!("files/{}", files.source.id()),
            Running::Hook(watched) => watched.hook.feed.frame.source.clone(),
            Running::Task(task) => task.feed.frame.source.clone(),
            Running::Failed(failed) => failed.name.clone(),
        }
    }

    /// The hook, if it is one.
    pub fn hook(&self) -> Option<Arc<Hook>> {
        match self {
            Running::Hook(watched) => Some(Arc::clone(&watched.hook)),
            _ => None,
        }
    }

    /// How it stands.
    pub fn health(&self) -> Health {
        match self {
            Running::Files(files) => {
                let health = files.source.health();
                let state = match health.state {
                    State::Starting => "starting",
                    State::Watching => "watching",
                    State::Polling => "polling",
                    State::Missing => "missing",
                    State::Paused => "paused",
                    State::Stopped => "stopped",
                };
                Health {
                    state,
                    detail: health.detail,
                    events: health.events,
                    last_event_ms: health.last_event_ms,
                    skipped: health.skipped,
                    last_error: health.last_error,
                }
            }
            Running::Hook(watched) => watched.hook.feed.health().clone(),
            Running::Task(task) => task.feed.health().clone(),
            Running::Failed(failed) => {
                let why = failed.why.clone();
                Health { state: "failed", detail: why.clone(), last_error: Some(why), ..Health::default() }
            }
        }
    }

    /// Since when it tells nothing, when that is too long. What came since ends the silence at once.
    pub fn silent_since(&self) -> Option<Millis> {
        let since = self.watched()?.silent_since.load(Ordering::Acquire);
        let heard = self.health().last_event_ms.is_some_and(|last_ms| last_ms > since);
        (since != NOT_SILENT && !heard).then_some(since)
    }

    fn watched(&self) -> Option<&Watch> {
        match self {
            Running::Files(files) => Some(&files.watch),
            Running::Hook(watched) => Some(&watched.watch),
            Running::Task(task) => Some(&task.watch),
            Running::Failed(_) => None,
        }
    }
}

impl Task {
    fn ready(source: &Source, frame: Frame, with: &Surroundings) -> Running {
        Running::Task(Arc::new(Task {
            source: source.clone(),
            feed: Arc::new(Feed::new(&source.id, frame, with.bus.clone(), "starting")),
            stop: Mutex::default(),
            alive: Arc::default(),
            watch: Watch::of(source),
        }))
    }

    fn begin(self: &Arc<Task>, with: &Surroundings) {
        let stop = with.supervisor.stop_token().child_token();
        *self.stop.lock().unwrap_or_else(PoisonError::into_inner) = stop.clone();
        let (task, with_all) = (Arc::clone(self), with.clone());
        with.supervisor.spawn(self.feed.frame.source.clone(), move || {
            let (task, with, stop) = (Arc::clone(&task), with_all.clone(), stop.clone());
            async move {
                let _alive = task.alive.lock().await;
                task.run(&with, stop).await
            }
        });
    }

    async fn run(&self, with: &Surroundings, stop: CancellationToken) -> Result<(), Error> {
        let feed = Arc::clone(&self.feed);
        match &self.source.kind {
            SourceKind::Command(config) => {
                let own_dir = with.paths.runtime.join("work").join(Path::new(&format!("source-{}", self.source.id)));
                let (config, sandbox) = (config.clone(), with.sandbox.clone());
                CommandSource { feed, config, sandbox, own_dir }.run(stop).await
            }
            SourceKind::HttpPoll(config) => {
                PollSource { feed, config: config.clone(), egress: with.egress.clone() }.run(stop).await
            }
            SourceKind::Mqtt(config) => {
                MqttSource { feed, config: config.clone(), egress: with.egress.clone() }.run(stop).await
            }
            SourceKind::Files(_) | SourceKind::Webhook(_) => Ok(()),
        }
    }

    async fn end(&self) {
        self.stop.lock().unwrap_or_else(PoisonError::into_inner).cancel();
        let _ended = self.alive.lock().await;
        self.feed.well("stopped");
    }
}

impl Watch {
    fn of(source: &Source) -> Watch {
        Watch {
            id: source.id.clone(),
            every: source.expect_every,
            stop: Mutex::default(),
            silent_since: Arc::new(AtomicI64::new(NOT_SILENT)),
        }
    }

    fn end(&self) {
        self.stop.lock().unwrap_or_else(PoisonError::into_inner).cancel();
        self.silent_since.store(NOT_SILENT, Ordering::Release);
    }
}
