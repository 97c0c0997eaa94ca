//! Builds every part once, in order, and takes them down in reverse.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::TcpListener;

use crate::agents::{self, Agents};
use crate::api::auth::Auth;
use crate::api::listen::{self, Listener};
use crate::api::{self, App, Lifecycle, Parts, Phase, Server};
use crate::budget::Budget;
use crate::bundled;
use crate::bus::{self, Bus, Consumer, ConsumerSpec};
use crate::clock::{Clock, is_plausible, rfc3339};
use crate::config::{self, Config, Paths};
use crate::cron::Cron;
use crate::egress::Egress;
use crate::error::Error;
use crate::lock::{self, Locked};
use crate::mcp;
use crate::memory::{Memory, MemoryTools};
use crate::models::Models;
use crate::notifications;
use crate::outbox::{self, Sink, Sinks};
use crate::pages;
use crate::plugins::Plugins;
use crate::plugins::host::Services;
use crate::registry::Registry;
use crate::sandbox::{Places, Private, Sandbox};
use crate::skills::{self, Agency, ForAgent, SkillTools, Skills};
use crate::soul::{SkillLine, Soul};
use crate::sources::explore::Explore;
use crate::sources::{self, Sources, Surroundings};
use crate::store::{Durability, Store, audit};
use crate::tasks::Supervisor;
use crate::telemetry;
use crate::tools::{self, Tools};
use crate::upkeep::Upkeep;
use crate::workflows::{self, Workflows};

/// How long a killed predecessor's scripts may take to end.
const STRAYS_WAIT: Duration = Duration::from_secs(10);
/// Files that are not for connections to this daemon: the database, scripts, watched folders, calls.
const FILES_SPARE: u64 = 1024;
/// How long tasks and connections may take to end once the work is drained.
const END_GRACE: Duration = Duration::from_secs(5);

/// How long after the start its code is let go: by then the first looks of sources and of upkeep are done.
const START_IS_OVER: Duration = Duration::from_secs(2);

/// How long the last spans may take to reach their collector.
const TRACES_GRACE: Duration = Duration::from_secs(3);

/// A running daemon.
pub struct Daemon {
    address: SocketAddr,
    url: String,
    bus: Bus,
    server: Server,
    supervisor: Supervisor,
    lifecycle: Arc<Lifecycle>,
    cron: Cron,
    sources: Sources,
    plugins: Plugins,
    workflows: Workflows,
    agents: Agents,
    tools: Tools,
    config: Config,
    /// Held for as long as the daemon runs.
    _lock: Locked,
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
    let lock = claim(&config, &clock).await?;
    let lifecycle = Arc::new(Lifecycle::default());
    let (config, store) = open_store(config)?;
    telemetry::open_files(&config);
    let (listener, address) = bind(&config).await?;
    let bus = new_bus(&config, &store, &clock);
    lifecycle.enter(Phase::Secrets);
    let auth = auth(&config)?;
    lifecycle.enter(Phase::Recovery);
    close_audit(&store, &clock).await?;
    wait_for_strays(&config).await?;
    let (soul, memory, budget) = mind(&config, &bus).await?;
    lifecycle.enter(Phase::Consumers);
    let supervisor = Supervisor::new();
    let sandbox = Sandbox::new(&config.paths.runtime).with_private(private(&config));
    bus.register(vec![notifications::consumer()]).await?;
    let skills = start_skills(&config, &bus, &sandbox, &supervisor).await?;
    bus.register(consumers).await?;
    outbox::start(&bus, &supervisor, sinks);
    let egress = Egress::new(config.allow_private);
    let (tools, explore) = tools(&config, &bus, (&soul, &memory), (&sandbox, &egress));
    let models = Models::new(&config.models, &egress);
    let sinks = Sinks::start(&config.sinks, &bus, &egress, &supervisor).await?;
    let plugins = start_plugins(&config, &bus, &egress).await?;
    tools.offer("plugins", Arc::new(plugins.clone()));
    let workflows = Workflows::start(&bus, &egress, &sandbox, workflow_settings(&config, &tools)).await?;
    let agents = start_agents(&config, &bus, &skills, (&models, &tools), (&soul, &memory, &budget)).await?;
    // Everyone who consumes is there: what waits from the last run may now have effects.
    bus.start().await;
    agents.end_orphans().await?;
    tools.run();
    let mcp = start_mcp(&config, &tools, &supervisor, (&sandbox, &egress, clock));
    settle_config(&config, &bus).await;
    let upkeep = Upkeep::start(&bus, &supervisor, config.bus.retention, config.backup.clone());
    lifecycle.enter(Phase::Workflows);
    workflows.run(&supervisor);
    let cron = Cron::start(&bus, &supervisor, &config.cron).await?;
    tools.offer("cron", Arc::new(cron.clone()));
    lifecycle.enter(Phase::Sources);
    let sources = start_sources(&config, &bus, &supervisor, (sandbox, egress)).await?;
    let parts = Parts {
        bus: bus.clone(),
        skills,
        cron: cron.clone(),
        supervisor: supervisor.clone(),
        lifecycle: Arc::clone(&lifecycle),
        sources: sources.clone(),
        sinks,
        upkeep,
        plugins: plugins.clone(),
        workflows: workflows.clone(),
        agents: agents.clone(),
        explore,
        mcp,
        tools: tools.clone(),
        soul,
        memory,
        budget,
        models,
    };
    let (server, url) = serve(&config, auth, parts, (listener, address)).await?;
    ready(&lifecycle, &store, address);
    #[rustfmt::skip]
    let daemon = Daemon {
        address, url, bus, server, supervisor, lifecycle, cron, sources, plugins, workflows, agents, tools, config,
        _lock: lock,
    };
    Ok(daemon)
}

/// Makes the folders and takes them for this daemon alone.
async fn claim(config: &Config, clock: &Clock) -> Result<Locked, Error> {
    config.paths.make()?;
    let lock = lock::lock(&config.paths).await?;
    warn_of(config, clock);
    Ok(lock)
}

fn new_bus(config: &Config, store: &Store, clock: &Clock) -> Bus {
    let bus = Bus::new(store.clone(), clock.clone(), bus::Settings::of(&config.bus));
    bus.traces().configure(config.telemetry.as_ref(), store.ids().node);
    bus.set_types(types(config));
    bus
}

/// Answers from here on, and says where.
async fn serve(
    config: &Config,
    auth: Auth,
    parts: Parts,
    (listener, address): (TcpListener, SocketAddr),
) -> Result<(Server, String), Error> {
    let app = app(config, auth, parts).await?;
    let server = Server::start(app, listeners(config, listener)?);
    let url = format!("{}://{address}", if config.http.tls.is_some() { "https" } else { "http" });
    write_address(&config.paths, &url)?;
    Ok((server, url))
}

impl Daemon {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it listens, as a URL without a path.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The cron jobs, for tests in this process.
    pub fn cron(&self) -> &Cron {
        &self.cron
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
        let Daemon {
            bus, server, supervisor, lifecycle, cron, sources, plugins, workflows, agents, tools, config, ..
        } = self;
        tracing::info!("Shutting down.");
        lifecycle.begin_drain();
        bus.live().wake();
        agents.frames().wake();
        cron.stop().await;
        sources.stop().await;
        plugins.stop();
        let grace = config.drain_timeout;
        if !tokio::join!(bus.drain(grace), workflows.stop(grace)).0 {
            tracing::warn!("Some work was cut off at shutdown; the next start takes it up.");
        }
        tools.stop();
        server.stop(END_GRACE).await;
        if !supervisor.end(END_GRACE).await {
            tracing::warn!("A background task did not end in time.");
        }
        bus.traces().stop(TRACES_GRACE).await;
        tell_audit_head(bus.store()).await;
        if let Err(error) = bus.store().checkpoint().await {
            tracing::warn!(error = error.chain().join(": "), "The write-ahead log was not moved into the database.");
        }
        let _gone = std::fs::remove_file(&config.paths.address_file);
        let _gone = config.http.socket.as_ref().map(std::fs::remove_file);
        tracing::info!("Stopped.");
    }
}

/// What is odd, and no reason not to start.
fn warn_of(config: &Config, clock: &Clock) {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    if !is_plausible(clock.now_ms()) {
        let (now, what_to_do) = (rfc3339(clock.now_ms()), "Set it, as with `timedatectl set-ntp true`.");
        tracing::warn!(now, what_to_do, "The machine's clock is wrong, and with it schedules, expiry and event times.");
    }
}

/// Writes the head of the audit log to the daemon's log: a copy outside the database for `aman audit verify --head`.
async fn tell_audit_head(store: &Store) {
    if let Ok(Some(head)) = store.read(audit::noted).await {
        tracing::info!(head = format!("{}:{}", head.seq, head.hash), "The audit log's newest record.");
    }
}

fn auth(config: &Config) -> Result<Auth, Error> {
    if !config.http.auth {
        tracing::warn!("http.auth is \"none\": every program of every user of this machine is let in as the owner.");
        return Ok(Auth::None);
    }
    Ok(Auth::token_and_mint(config::token(config)?.expose(), &config::signing_key(config)?))
}

/// Everything that is listened on: `tcp`, encrypted if a certificate is configured, and the Unix socket if there is one.
fn listeners(config: &Config, tcp: TcpListener) -> Result<Vec<Listener>, Error> {
    let mut listeners = match &config.http.tls {
        Some((cert, key)) => vec![Listener::Tls(tcp, listen::tls(cert, key)?)],
        None => vec![Listener::Tcp(tcp)],
    };
    if config.http.tls.is_none() && !config.http.bind.ip().is_loopback() {
        tracing::warn!("http.bind is not loopback and http.tls is not set: tokens cross the network unencrypted.");
    }
    if let Some(path) = &config.http.socket {
        listeners.push(listen::unix(path)?);
    }
    Ok(listeners)
}

fn write_address(paths: &Paths, url: &str) -> Result<(), Error> {
    let making = paths.address_file.with_extension("new");
    std::fs::write(&making, format!("{url}\n"))
        .and_then(|()| std::fs::rename(&making, &paths.address_file))
        .map_err(Error::internal("writing the address file"))
}

/// Opens the database, and puts what was set over HTTP above the other layers of the configuration.
fn open_store(config: Config) -> Result<(Config, Store), Error> {
    let open = |config: &Config| {
        let durability = if config.bus.full_durability { Durability::Full } else { Durability::Normal };
        Store::open(&config.paths.db_file, durability)
    };
    let store = open(&config)?;
    let full = config.bus.full_durability;
    let config = api::config::with_stored(config, &store)?;
    telemetry::set_filter(&config.log.level)?;
    if config.bus.full_durability == full {
        return Ok((config, store));
    }
    drop(store);
    let store = open(&config)?;
    Ok((config, store))
}

/// Tells of safe mode, or keeps a copy of the file for the day on which it is broken.
async fn settle_config(config: &Config, bus: &Bus) {
    if let Some(error) = &config.broken {
        tracing::error!(error, "The configuration file is broken: safe mode, with the last one that was good.");
        return api::config::tell_broken(bus, config, error).await;
    }
    config.keep_copy();
}

fn ready(lifecycle: &Lifecycle, store: &Store, address: SocketAddr) {
    store.widen();
    lifecycle.enter(Phase::Ready);
    tracing::info!(%address, version = env!("CARGO_PKG_VERSION"), "Ready.");
    // Once: what the start ran through needs no memory of this process any more.
    tokio::spawn(async {
        tokio::time::sleep(START_IS_OVER).await;
        match tokio::task::spawn_blocking(pages::let_go_of_code).await {
            Ok(Ok(bytes)) => tracing::debug!(bytes, "Let go of the code that only the start needed."),
            Ok(Err(error)) => tracing::debug!(%error, "The code of the start stays mapped."),
            Err(_) => {}
        }
    });
}

/// Settles what the audit log says was begun, and tells its head.
async fn close_audit(store: &Store, clock: &Clock) -> Result<(), Error> {
    let now_ms = clock.now_ms();
    store.write(move |tx| audit::close_begun(tx, now_ms)).await?;
    tell_audit_head(store).await;
    Ok(())
}

async fn app(config: &Config, auth: Auth, parts: Parts) -> Result<Arc<App>, Error> {
    let connections_max = affordable(config.http.max_connections);
    App::new(api::Settings { auth, connections_max, config: config.clone() }, parts).await
}

async fn bind(config: &Config) -> Result<(TcpListener, SocketAddr), Error> {
    let unusable = |error| Error::invalid("http.bind", format!("{} cannot be listened on: {error}.", config.http.bind));
    let listener = TcpListener::bind(config.http.bind).await.map_err(unusable)?;
    let address = listener.local_addr().map_err(Error::internal("reading the listening address"))?;
    Ok((listener, address))
}

/// The types whose data must fit a schema.
fn types(config: &Config) -> Registry {
    let (types, faults) = Registry::load(&config.paths.data.join("schemas"));
    faults.iter().for_each(|fault| tracing::warn!("{fault}"));
    types
}

async fn wait_for_strays(config: &Config) -> Result<(), Error> {
    let ended = Sandbox::wait_for_strays(&config.paths.runtime, STRAYS_WAIT).await;
    if !ended.map_err(|error| Error::invalid("scripts.lock", format!("cannot be locked: {error}.")))? {
        tracing::warn!("Scripts of an earlier run are still there; they may act beside those of this run.");
    }
    Ok(())
}

/// What agents are, know and may cost. Everything that is tainted by an earlier run is settled when this returns.
async fn mind(config: &Config, bus: &Bus) -> Result<(Soul, Memory, Budget), Error> {
    let soul = Soul::start(bus, config.paths.data.join("soul"), bundled::SOUL).await?;
    soul.configure(&config.denied);
    let budget = Budget::start(bus, api::config::budget(config)).await?;
    Ok((soul, Memory::new(bus), budget))
}

async fn start_sources(
    config: &Config,
    bus: &Bus,
    supervisor: &Supervisor,
    (sandbox, egress): (Sandbox, Egress),
) -> Result<Sources, Error> {
    let (bus, supervisor, paths) = (bus.clone(), supervisor.clone(), config.paths.clone());
    Sources::start(&config.sources, Surroundings { bus, supervisor, sandbox, egress, paths }).await
}

async fn start_skills(config: &Config, bus: &Bus, sandbox: &Sandbox, supervisor: &Supervisor) -> Result<Skills, Error> {
    let (skills, report) = Skills::start(skill_settings(config), bus, sandbox.clone()).await?;
    for failed in &report.failed {
        tracing::warn!(path = failed.path, error = failed.error, "A skill could not be loaded.");
    }
    skills.run(supervisor, config.skills_watch);
    Ok(skills)
}

async fn start_plugins(config: &Config, bus: &Bus, egress: &Egress) -> Result<Plugins, Error> {
    let services = Services::new(bus, egress, &config.paths.plugin_data, &config.plugins);
    let program = std::env::current_exe().map_err(Error::internal("finding this program"))?;
    Plugins::start(bus, services, &config.paths.data, &program).await
}

/// What explorations gather from, as a tool.
fn start_explore(config: &Config, tools: &Tools, (sandbox, egress): (&Sandbox, &Egress)) -> Explore {
    let (egress, sandbox, work) = (egress.clone(), sandbox.clone(), config.paths.runtime.join("work/explore"));
    let with = sources::explore::Surroundings { egress, sandbox, tools: tools.clone(), work };
    let explore = Explore::new(&config.explore, with);
    tools.offer("builtin/explore", Arc::new(explore.clone()));
    explore
}

/// Connects to MCP servers in the background.
fn start_mcp(
    config: &Config,
    tools: &Tools,
    supervisor: &Supervisor,
    (sandbox, egress, clock): (&Sandbox, &Egress, Clock),
) -> mcp::Servers {
    let home = config.paths.home_dir.clone();
    let surroundings = mcp::Surroundings { egress: egress.clone(), sandbox: sandbox.clone(), home, clock };
    mcp::Servers::start(&config.mcp, surroundings, tools, supervisor)
}

/// The gate before the tools, and aman's own behind it; and what explorations gather from, which is among them.
fn tools(
    config: &Config,
    bus: &Bus,
    (soul, memory): (&Soul, &Memory),
    (sandbox, egress): (&Sandbox, &Egress),
) -> (Tools, Explore) {
    let soul = soul.clone();
    let admit = Arc::new(move |tool: &str, arguments: &serde_json::Value| soul.admit_tool(tool, arguments));
    let tools = Tools::new(bus, admit, tools::Settings::of(&config.tools));
    tools.offer_builtin(tools::Ground {
        egress: egress.clone(),
        sandbox: sandbox.clone(),
        private: private(config),
        places: Places { home: config.paths.home_dir.clone(), data: config.paths.data.clone() },
        work: config.paths.runtime.join("work/tools"),
    });
    tools.offer("builtin/memory", Arc::new(MemoryTools(memory.clone())));
    let explore = start_explore(config, &tools, (sandbox, egress));
    (tools, explore)
}

async fn start_agents(
    config: &Config,
    bus: &Bus,
    skills: &Skills,
    (models, tools): (&Models, &Tools),
    (soul, memory, budget): (&Soul, &Memory, &Budget),
) -> Result<Agents, Error> {
    let surroundings = agents::Surroundings {
        models: models.clone(),
        tools: tools.clone(),
        soul: soul.clone(),
        memory: memory.clone(),
        budget: budget.clone(),
        skills: index_of(skills),
    };
    let agents = Agents::start(bus, surroundings, agent_settings(config)).await?;
    introduce(skills, &agents, tools, models).await?;
    Ok(agents)
}

/// Where agents lie.
fn agent_settings(config: &Config) -> agents::Settings {
    agents::Settings { folder: config.paths.agents(), allow_exec: config.http.allow_exec_definitions }
}

/// The skills as agents are told of them.
fn index_of(skills: &Skills) -> agents::SkillIndex {
    let skills = skills.clone();
    Arc::new(move |patterns| {
        let lines = skills.index(patterns).into_iter();
        lines.map(|(name, description)| SkillLine { name, description }).collect()
    })
}

/// Skills and agents know nothing of each other: what one does for the other is handed down here.
async fn introduce(skills: &Skills, agents: &Agents, tools: &Tools, models: &Models) -> Result<(), Error> {
    let readers = agents.clone();
    let may_read = move |agent: Option<&str>, skill: &str| agent.is_none_or(|agent| readers.may_read(agent, skill));
    tools.offer("builtin/skills", Arc::new(SkillTools { skills: skills.clone(), may_read: Arc::new(may_read) }));
    let (takers, models) = (agents.clone(), models.clone());
    let take = move |wanted: ForAgent| {
        let agents = takers.clone();
        let skill = agents::SkillRun {
            agent: wanted.agent,
            skill: wanted.skill,
            instructions: wanted.instructions,
            allowed_tools: wanted.allowed_tools,
            attempt: wanted.attempt,
            attempts_max: wanted.attempts_max,
            time_max: wanted.time_max,
        };
        let taking: std::pin::Pin<Box<dyn Future<Output = _> + Send>> =
            Box::pin(async move { agents.run_skill(skill).await });
        taking
    };
    let has_model = move || {
        let models = models.clone();
        let looking: std::pin::Pin<Box<dyn Future<Output = bool> + Send>> =
            Box::pin(async move { models.resolve("").await.is_ok() });
        looking
    };
    let waiters = agents.clone();
    let absence = move |agent: Option<&str>| waiters.absence(agent.unwrap_or(agents::DEFAULT));
    let agency = Agency { take: Arc::new(take), absence: Arc::new(absence), has_model: Arc::new(has_model) };
    skills.serve_agents(agency).await
}

fn workflow_settings(config: &Config, tools: &Tools) -> workflows::Settings {
    let paths = &config.paths;
    workflows::Settings {
        folder: paths.data.join("workflows"),
        work: paths.runtime.join("work/workflows"),
        secrets: config.workflow_secrets.clone(),
        allow_exec: config.http.allow_exec_definitions,
        tools: tools.clone(),
        places: Places { home: paths.home_dir.clone(), data: paths.data.clone() },
    }
}

/// Where skills lie by this configuration, and what no script may touch.
pub fn skill_settings(config: &Config) -> skills::Settings {
    let paths = &config.paths;
    skills::Settings {
        bundled: paths.data.join("bundled/skills"),
        own: paths.data.join("skills"),
        configured: config.skill_paths.clone(),
        agents: agents(config),
        work: paths.runtime.join("work"),
        binary: std::env::current_exe().unwrap_or_else(|_| PathBuf::from("aman")),
        places: Places { home: paths.home_dir.clone(), data: paths.data.clone() },
        private: private(config),
    }
}

/// Where skills lie that other programs know, too; an instance that has all it needs in its folder does not look there.
fn agents(config: &Config) -> Option<PathBuf> {
    let paths = &config.paths;
    paths.home_dir.as_ref().filter(|_| !paths.portable).map(|home| home.join(".agents/skills"))
}

/// As many connections as this process may have with files to spare for everything else; raises its limit if it may.
fn affordable(wanted: usize) -> usize {
    let limit = || getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((u64::MAX, u64::MAX));
    let (soft, hard) = limit();
    let needed = u64::try_from(wanted).unwrap_or(u64::MAX).saturating_add(FILES_SPARE);
    if soft < needed {
        // What it may not raise it lives with.
        let _raised = setrlimit(Resource::RLIMIT_NOFILE, needed.min(hard), hard);
    }
    let (soft, _) = limit();
    let possible = usize::try_from(soft - FILES_SPARE.min(soft / 2)).unwrap_or(usize::MAX);
    if possible < wanted {
        tracing::warn!(wanted, possible, "Fewer connections than http.max_connections: raise `ulimit -n` for more.");
    }
    wanted.min(possible)
}

/// What no script may read or write, whatever its permissions say.
fn private(config: &Config) -> Private {
    let paths = &config.paths;
    let beside_db = |suffix: &str| {
        let mut name = paths.db_file.clone().into_os_string();
        name.push(suffix);
        PathBuf::from(name)
    };
    let mut hidden = vec![
        paths.token_file.clone(),
        paths.signing_key_file.clone(),
        paths.db_file.clone(),
        beside_db("-wal"),
        beside_db("-shm"),
        paths.lock_file.clone(),
        paths.config_file.clone(),
        paths.state.clone(),
        paths.runtime.clone(),
        paths.data.join("backups"),
    ];
    hidden.extend(config.http.tls.iter().map(|(_, key)| key.clone()));
    hidden.extend(config.http.socket.clone());
    // What plugins keep is theirs.
    hidden.push(paths.plugin_data.clone());
    // Copies hold everything.
    hidden.push(config.backup.folder.clone());
    // Whoever writes there decides what runs next, and with which permissions; what plugins were compiled to even runs in
    // the daemon itself.
    let mut unwritable: Vec<PathBuf> = ["bundled", "skills", "schemas", "soul", "plugins", "workflows"]
        .iter()
        .map(|folder| paths.data.join(folder))
        .collect();
    unwritable.extend(config.skill_paths.iter().cloned());
    unwritable.push(paths.agents());
    unwritable.extend(agents(config));
    Private { hidden, unwritable }
}
