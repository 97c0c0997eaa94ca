//! Builds every part once, in order, and takes them down in reverse.

use std::fs::{File, OpenOptions, TryLockError};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;

use crate::api::auth::{Auth, Places};
use crate::api::{self, App, Lifecycle, Parts, Phase, Server};
use crate::bus::{self, Bus, Consumer, ConsumerSpec};
use crate::clock::Clock;
use crate::config::{self, Config, Paths};
use crate::error::Error;
use crate::outbox::{self, Sink};
use crate::sandbox::Sandbox;
use crate::skills::{self, Skills};
use crate::sources::files::{FileSource, FileSourceConfig};
use crate::store::{Durability, Store, audit};
use crate::tasks::Supervisor;

/// How long the lock of a killed predecessor may linger: a process that it was starting holds it until its own program
/// runs.
const LOCK_WAIT: Duration = Duration::from_secs(2);
const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// How long a killed predecessor's scripts may take to end.
const STRAYS_WAIT: Duration = Duration::from_secs(10);
/// How long tasks and connections may take to end once the work is drained.
const END_GRACE: Duration = Duration::from_secs(5);

/// A running daemon.
pub struct Daemon {
    address: SocketAddr,
    bus: Bus,
    server: Server,
    supervisor: Supervisor,
    lifecycle: Arc<Lifecycle>,
    sources: Vec<FileSource>,
    config: Config,
    /// Held for as long as the daemon runs.
    _lock: File,
}

/// Starts the daemon; it serves when this returns.
pub async fn start(config: Config) -> Result<Daemon, Error> {
    start_with(config, Extras::default()).await
}

/// What tests and benchmarks in this process bring along.
#[derive(Default)]
pub struct Extras {
    /// The time.
    pub clock: Clock,
    /// Consumers besides the skills.
    pub consumers: Vec<(ConsumerSpec, Arc<dyn Consumer>)>,
    /// Ways out of the machine.
    pub sinks: Vec<Arc<dyn Sink>>,
}

/// As [`start`], with [`Extras`].
pub async fn start_with(config: Config, extras: Extras) -> Result<Daemon, Error> {
    let Extras { clock, consumers, sinks } = extras;
    config.paths.make()?;
    let lock = lock(&config.paths).await?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let lifecycle = Arc::new(Lifecycle::default());
    let listener = TcpListener::bind(config.http.bind).await.map_err(|error| {
        Error::invalid("http.bind", format!("{} cannot be listened on: {error}.", config.http.bind))
    })?;
    let address = listener.local_addr().map_err(Error::internal("reading the listening address"))?;
    let durability = if config.bus.full_durability { Durability::Full } else { Durability::Normal };
    let store = Store::open(&config.paths.db_file, durability)?;
    let bus = Bus::new(store.clone(), clock.clone(), bus_settings(&config));
    lifecycle.enter(Phase::Secrets);
    let auth = if config.http.auth { Auth::token(config::token(&config)?.expose()) } else { Auth::None };
    lifecycle.enter(Phase::Recovery);
    let now_ms = clock.now_ms();
    store.write(move |tx| audit::close_begun(tx, now_ms)).await?;
    if !Sandbox::wait_for_strays(&config.paths.runtime, STRAYS_WAIT).await.unwrap_or(false) {
        tracing::warn!("Scripts of an earlier run are still there; they may act beside those of this run.");
    }
    lifecycle.enter(Phase::Consumers);
    let supervisor = Supervisor::new();
    let sandbox = Sandbox::new(&config.paths.runtime);
    let (skills, report) = Skills::start(skill_settings(&config), &bus, sandbox).await?;
    for failed in &report.failed {
        tracing::warn!(path = failed.path, error = failed.error, "A skill could not be loaded.");
    }
    bus.register(consumers).await?;
    bus.start().await;
    outbox::start(&bus, &supervisor, sinks);
    lifecycle.enter(Phase::Workflows);
    lifecycle.enter(Phase::Sources);
    let mut sources = Vec::new();
    for source in &config.sources {
        let folder = source.path.clone();
        let source = FileSource::start(source_config(source)?, bus.clone(), &supervisor).await?;
        tracing::info!(folder = %folder.display(), "Files that land in this folder become events.");
        sources.push(source);
    }
    let parts = Parts {
        bus: bus.clone(),
        skills,
        supervisor: supervisor.clone(),
        lifecycle: Arc::clone(&lifecycle),
        sources: sources.clone(),
    };
    let app = App::new(api_settings(&config, auth), parts)?;
    let server = Server::start(app, listener);
    write_address(&config.paths, address)?;
    lifecycle.enter(Phase::Ready);
    tracing::info!(%address, version = env!("CARGO_PKG_VERSION"), "Ready.");
    Ok(Daemon { address, bus, server, supervisor, lifecycle, sources, config, _lock: lock })
}

impl Daemon {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The bus, for tests and benchmarks in this process.
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Ends once somebody asks the daemon to shut down over HTTP.
    pub async fn shutdown_asked(&self) {
        self.lifecycle.shutdown_requested().cancelled().await;
    }

    /// Walks the start back: sources, new work, running deliveries, connections, disk.
    pub async fn stop(self) {
        let Daemon { bus, server, supervisor, lifecycle, sources, config, .. } = self;
        tracing::info!("Shutting down.");
        lifecycle.begin_drain();
        bus.live().wake();
        for source in sources {
            source.stop().await;
        }
        if !bus.drain(config.drain_timeout).await {
            tracing::warn!("Some work was cut off at shutdown; the next start takes it up.");
        }
        server.stop(END_GRACE).await;
        if !supervisor.end(END_GRACE).await {
            tracing::warn!("A background task did not end in time.");
        }
        if let Err(error) = bus.store().checkpoint().await {
            tracing::warn!(error = error.chain().join(": "), "The write-ahead log was not moved into the database.");
        }
        let _gone = std::fs::remove_file(&config.paths.address_file);
        tracing::info!("Stopped.");
    }
}

async fn lock(paths: &Paths) -> Result<File, Error> {
    let open = OpenOptions::new().create(true).truncate(false).write(true).open(&paths.lock_file);
    let file = open.map_err(Error::internal("opening the lock file"))?;
    let until = Instant::now() + LOCK_WAIT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < until => tokio::time::sleep(LOCK_PAUSE).await,
            Err(TryLockError::WouldBlock) => {
                let data = paths.data.display();
                let reason =
                    format!("Another aman works with the data in {data}. Stop it, or choose another AMAN_HOME.");
                return Err(Error::conflict("already_running", reason));
            }
            Err(TryLockError::Error(error)) => return Err(Error::internal("locking the data folder")(error)),
        }
    }
}

fn write_address(paths: &Paths, address: SocketAddr) -> Result<(), Error> {
    let making = paths.address_file.with_extension("new");
    std::fs::write(&making, format!("http://{address}\n"))
        .and_then(|()| std::fs::rename(&making, &paths.address_file))
        .map_err(Error::internal("writing the address file"))
}

fn bus_settings(config: &Config) -> bus::Settings {
    bus::Settings {
        dedup_window_ms: i64::try_from(config.bus.dedup_window.as_millis()).unwrap_or(i64::MAX / 2),
        max_causation_depth: config.bus.max_causation_depth,
        max_pending: config.bus.max_pending,
        ..bus::Settings::default()
    }
}

fn skill_settings(config: &Config) -> skills::Settings {
    let paths = &config.paths;
    let agents = paths.home_dir.as_ref().filter(|_| !paths.portable).map(|home| home.join(".agents/skills"));
    skills::Settings {
        bundled: paths.data.join("bundled/skills"),
        own: paths.data.join("skills"),
        configured: config.skill_paths.clone(),
        agents,
        work: paths.runtime.join("work"),
        binary: std::env::current_exe().unwrap_or_else(|_| PathBuf::from("aman")),
        places: skills::Places { home: paths.home_dir.clone(), data: paths.data.clone() },
        secrets: vec![paths.token_file.clone(), paths.db_file.clone()],
    }
}

fn source_config(source: &config::FileSource) -> Result<FileSourceConfig, Error> {
    if source.id == "default" {
        std::fs::create_dir_all(&source.path).map_err(Error::internal("making the inbox"))?;
    }
    Ok(FileSourceConfig::of(source))
}

fn api_settings(config: &Config, auth: Auth) -> api::Settings {
    let lower = |texts: &[String]| texts.iter().map(|text| text.to_lowercase()).collect();
    api::Settings {
        auth,
        places: Places { hosts: lower(&config.http.allowed_hosts), origins: lower(&config.http.allowed_origins) },
        public_stream: config.http.public_stream,
        strict_confirm: config.http.strict_confirm,
        debug_endpoints: config.debug_endpoints,
        connections_max: config.http.max_connections,
        config: serde_json::json!({
            "items": config.effective,
            "config_file": config.paths.config_file,
            "data": config.paths.data,
            "state": config.paths.state,
            "runtime": config.paths.runtime,
        }),
    }
}
