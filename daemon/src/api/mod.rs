//! The only module that serves HTTP: accept loop, connection limit, drain. What a request goes through is in
//! [`handle`], who may do what in [`routes`] and [`auth`].

pub mod again;
mod agents;
pub mod audit;
pub mod auth;
pub mod body;
mod chat;
pub mod config;
mod cron;
mod db;
mod dlq;
mod events;
mod explore;
mod fronts;
pub mod gate;
mod guests;
mod handle;
mod health;
pub mod jwt;
pub mod listen;
mod login;
mod mcp;
mod mcp_servers;
mod memory;
mod metrics;
mod models;
mod notifications;
mod openai;
pub mod openapi;
pub mod parse;
mod plugins;
pub mod problem;
mod pulse;
mod query;
pub mod rates;
pub mod routes;
mod runtime;
mod secrets;
mod sinks;
mod skills;
mod socket;
mod soul;
mod sources;
mod stream;
mod tokens;
mod tools;
mod turn_stream;
mod usage;
mod why;
mod words;
mod workflows;

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::{HeaderMap, StatusCode, Uri};
use hyper_util::rt::TokioTimer;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::agents::Agents;
use crate::budget::Budget;
use crate::bus::Bus;
use crate::bus::live::Live;
use crate::clock::Clock;
use crate::config::Config;
use crate::cron::Cron;
use crate::error::Error;
use crate::id::{TraceId, Traceparent};
use crate::mcp::Servers;
use crate::memory::Memory;
use crate::models::Models;
use crate::outbox::Sinks;
use crate::plugins::Plugins;
use crate::skills::Skills;
use crate::soul::Soul;
use crate::sources::Sources;
use crate::sources::explore::Explore;
use crate::store::{Store, overrides, tokens as tokens_stored};
use crate::tasks::Supervisor;
use crate::tools::Tools;
use crate::upkeep::Upkeep;
use crate::workflows::Workflows;
use auth::{Auth, Principal};
use fronts::{Front, Fronts};
use gate::Gate;
use listen::{Conn, Listener};
use problem::Problem;
use rates::Rates;
use routes::{Mounted, Table};
pub use runtime::{Lifecycle, Phase};

/// Request line and headers together, in bytes.
const HEADER_BYTES_MAX: usize = 32 << 10;
/// How long the first byte of a request, and then its headers, may take; also how long an idle connection is kept.
const HEADER_WAIT: Duration = Duration::from_secs(30);
/// What a connection buffers at the most, in each direction.
const BUFFER_BYTES_MAX: usize = 64 << 10;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// So long after the last connection that could not be accepted all is well again.
const ACCEPT_CALM: Duration = Duration::from_secs(1);

/// What the API must be told.
pub struct Settings {
    /// How callers authenticate.
    pub auth: Auth,
    /// Connections at a time; more wait to be accepted.
    pub connections_max: usize,
    /// The configuration in force.
    pub config: Config,
}

/// What the API calls.
pub struct Parts {
    /// The bus; store, clock and live tail come with it.
    pub bus: Bus,
    /// The registry of skills.
    pub skills: Skills,
    /// The cron jobs.
    pub cron: Cron,
    /// The background tasks, to show them.
    pub supervisor: Supervisor,
    /// Where the daemon stands.
    pub lifecycle: Arc<Lifecycle>,
    /// What brings events in.
    pub sources: Sources,
    /// Where events go.
    pub sinks: Sinks,
    /// Retention.
    pub upkeep: Upkeep,
    /// What was installed.
    pub plugins: Plugins,
    /// What explorations gather from.
    pub explore: Explore,
    /// The workflows.
    pub workflows: Workflows,
    /// The agents.
    pub agents: Agents,
    /// The servers whose tools are offered.
    pub mcp: Servers,
    /// What can be called, and the gate before it.
    pub tools: Tools,
    /// Who the assistant is.
    pub soul: Soul,
    /// What agents remember.
    pub memory: Memory,
    /// What models may cost.
    pub budget: Budget,
    /// The language models.
    pub models: Models,
}

/// Counts since the start that no other module keeps.
#[derive(Debug, Default)]
pub(in crate::api) struct Counters {
    /// Open connections.
    connections: AtomicUsize,
    /// Open streams.
    streams: AtomicUsize,
    /// Requests refused before a route was found or its caller known.
    refused: AtomicU64,
    /// Handlers that panicked.
    panics: AtomicU64,
    /// When a connection could not be accepted.
    unaccepted: Mutex<Option<Instant>>,
}

impl Counters {
    /// Notes that a connection could not be accepted.
    fn starves(&self) {
        *self.unaccepted.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Whether connections wait that cannot be accepted. While they do, it is tried again and again.
    fn is_starved(&self) -> bool {
        let last = *self.unaccepted.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_some_and(|last| last.elapsed() <= ACCEPT_CALM)
    }
}

/// Handles of everything that handlers call.
pub struct App {
    parts: Parts,
    store: Store,
    live: Live,
    clock: Clock,
    /// Conversations of clients that keep them themselves.
    conversations: openai::Conversations,
    connections_max: usize,
    tuned: ArcSwap<config::Tuned>,
    configured: config::Configured,
    gate: Gate,
    rates: Rates,
    /// Held by whoever checks the database.
    checking: tokio::sync::Mutex<()>,
    turns: again::Turns,
    /// Where the API is.
    front: Arc<Front>,
    /// Where plugins are at addresses of their own.
    fronts: Fronts,
    counters: Counters,
    rooms: body::Rooms,
    refusals: audit::Refusals,
    public_streams: Arc<Semaphore>,
    /// Handlers that run to their end whatever the client does.
    running: TaskTracker,
}

/// A request on its way to its handler: the caller is known, the body is not read yet.
pub struct Call {
    uri: Uri,
    headers: HeaderMap,
    body: Option<Incoming>,
    /// The body, once it was read for an `Idempotency-Key`.
    read: Option<bytes::Bytes>,
    /// The room that the body takes until the request is answered.
    room: body::Room,
    params: routes::Params,
    route: Arc<Mounted>,
    principal: Option<Principal>,
    /// The trace that the client gave, and the span in it that asks.
    parent: Option<Traceparent>,
    /// The trace of the request: that one, or a new one.
    trace: TraceId,
    head_only: bool,
    draft: audit::Draft,
    again: again::Again,
}

impl Call {
    /// A value of the path; the route table guarantees that it is there.
    fn param(&self, name: &str) -> &str {
        self.params.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    /// The whole body.
    async fn bytes(&mut self) -> Result<bytes::Bytes, Problem> {
        if let Some(read) = &self.read {
            return Ok(read.clone());
        }
        match self.body.take() {
            Some(body) => body::bytes(&self.headers, body, self.route.route.body_bytes_max, &mut self.room).await,
            None => Ok(bytes::Bytes::new()),
        }
    }

    /// Lets go of the body, which is kept elsewhere: its room is given back with its end, not with the answer.
    fn leave(&mut self, bytes: bytes::Bytes) -> bytes::Bytes {
        self.read = None;
        self.room.leave_to(bytes)
    }

    /// The body as the fields of a JSON object.
    async fn fields(&mut self) -> Result<body::Fields, Problem> {
        let bytes = self.bytes().await?;
        body::Fields::read(&self.headers, &bytes)
    }
}

/// 503 while the daemon shuts down.
fn draining() -> Problem {
    let detail = "The daemon is shutting down and takes no new work. Try again once it runs again.";
    Problem::new((StatusCode::SERVICE_UNAVAILABLE, "draining"), detail).retry_after_ms(5000)
}

/// What handlers call is called as if it were the API's own.
impl Deref for App {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.parts
    }
}

impl App {
    /// Puts the API together. Fails only when the route table is unsound.
    pub async fn new(settings: Settings, parts: Parts) -> Result<Arc<App>, Error> {
        let Settings { auth, connections_max, config } = settings;
        let fronts = Fronts::new(&config);
        let bus = parts.bus.clone();
        let clock = bus.clock().clone();
        let cookie = format!("aman_session_{:08x}", bus.store().ids().node);
        let gate = Gate::new(auth, clock.clone(), cookie);
        let now_ms = clock.now_ms();
        let version = bus.store().read_now(overrides::all)?.version;
        bus.store().read_now(|conn| tokens_stored::good(conn, now_ms))?.iter().for_each(|token| gate.add(token));
        let app = Arc::new(App {
            store: bus.store().clone(),
            live: bus.live().clone(),
            parts,
            clock,
            conversations: openai::Conversations::default(),
            rates: Rates::new(config::limits(&config)),
            checking: tokio::sync::Mutex::new(()),
            turns: again::Turns::default(),
            tuned: ArcSwap::from_pointee(config::Tuned::of(&config, config.http.tls.is_some())),
            configured: config::Configured::new(config, version),
            connections_max,
            gate,
            front: Arc::new(Front::of_daemon(Table::new(routes::core(), None)?)),
            fronts,
            counters: Counters::default(),
            rooms: body::Rooms::default(),
            refusals: audit::Refusals::default(),
            public_streams: Arc::new(Semaphore::new(stream::PUBLIC_STREAMS_MAX)),
            running: TaskTracker::new(),
        });
        app.mount_plugins().await;
        Ok(app)
    }

    /// Lets plugins mount their routes, now and whenever one changes.
    async fn mount_plugins(self: &Arc<App>) {
        let mounting = Arc::downgrade(self);
        let mounter = Box::new(move |wanted, is_trial| {
            mounting.upgrade().map_or(Ok(()), |app: Arc<App>| app.mount(wanted, is_trial))
        });
        self.plugins.open(mounter).await;
    }
}

/// What the connections of all listeners share.
#[derive(Clone)]
struct Serving {
    /// Stops accepting, and lets connections end after their present request.
    closing: CancellationToken,
    /// Ends connections at once.
    abort: CancellationToken,
    connections: TaskTracker,
    permits: Arc<Semaphore>,
    /// Encrypts what comes over TCP; none = it is plain.
    tls: Option<TlsAcceptor>,
}

impl Serving {
    /// Serves `listener` as `front` until `closing`.
    fn accept(&self, app: &Arc<App>, front: &Arc<Front>, listener: Listener, closing: CancellationToken) {
        let serving = Serving { closing, ..self.clone() };
        let accepting = Accepting { app: Arc::clone(app), front: Arc::clone(front), serving };
        let permits = Arc::clone(&self.permits);
        permits.add_permits(1);
        self.connections.spawn(async move {
            accepting.run(listener).await;
            if let Ok(permit) = permits.acquire().await {
                permit.forget();
            }
        });
    }
}

/// The running server.
pub struct Server {
    app: Arc<App>,
    serving: Serving,
}

impl Server {
    /// Serves `listeners`, and those of plugins, until [`Server::stop`].
    pub fn start(app: Arc<App>, listeners: Vec<Listener>) -> Server {
        let serving = Serving {
            closing: CancellationToken::new(),
            abort: CancellationToken::new(),
            connections: TaskTracker::new(),
            // Each listener brings one along, to hold while it waits for its next connection.
            permits: Arc::new(Semaphore::new(app.connections_max.saturating_sub(1))),
            tls: listeners.iter().find_map(Listener::acceptor),
        };
        for listener in listeners {
            serving.accept(&app, &app.front, listener, serving.closing.clone());
        }
        app.fronts.serve(&app, serving.clone());
        Server { app, serving }
    }

    /// Accepts no more, lets open requests end within `grace`, then ends what is left. Streams must have been ended.
    pub async fn stop(self, grace: Duration) {
        let Serving { closing, abort, connections, .. } = &self.serving;
        closing.cancel();
        connections.close();
        self.app.running.close();
        let ended = async {
            connections.wait().await;
            self.app.running.wait().await;
        };
        if tokio::time::timeout(grace, ended).await.is_err() {
            tracing::warn!(connections = connections.len(), "Connections were cut off at shutdown.");
            abort.cancel();
        }
        self.app.refusals.write_now(&self.app).await;
    }
}

struct Accepting {
    app: Arc<App>,
    front: Arc<Front>,
    serving: Serving,
}

impl Accepting {
    async fn run(self, listener: Listener) {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(HEADER_WAIT)
            .half_close(true)
            .max_header_size(HEADER_BYTES_MAX)
            .max_buf_size(BUFFER_BYTES_MAX);
        let mut told = false;
        loop {
            let accepted = async {
                let permit = Arc::clone(&self.serving.permits).acquire_owned().await;
                (permit, listener.accept().await)
            };
            let (permit, accepted) = tokio::select! {
                biased;
                () = self.serving.closing.cancelled() => return,
                accepted = accepted => accepted,
            };
            match (permit, accepted) {
                (Ok(permit), Ok(accepted)) => {
                    if told && !self.app.counters.is_starved() {
                        told = false;
                        tracing::info!("Connections are accepted again.");
                    }
                    self.serve(&http, accepted, permit);
                }
                // Out of file descriptors, mostly: wait for some to come back rather than spin, and say it once, also when
                // a single connection gets in between.
                (_, Err(error)) => {
                    self.app.counters.starves();
                    if !std::mem::replace(&mut told, true) {
                        let what_to_do = "Close programs that hold connections, or raise the limit (`ulimit -n`).";
                        tracing::error!(%error, what_to_do, "Connections cannot be accepted; those that wait do so.");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                (Err(_), _) => return,
            }
        }
    }

    fn serve(&self, http: &http1::Builder, accepted: listen::Accepted, permit: OwnedSemaphorePermit) {
        let (app, front) = (Arc::clone(&self.app), Arc::clone(&self.front));
        let (closing, abort) = (self.serving.closing.clone(), self.serving.abort.clone());
        let http = http.clone();
        match accepted {
            listen::Accepted::Ready(conn) => {
                self.serving.connections.spawn(serve((app, front), http, conn, permit, (closing, abort)));
            }
            listen::Accepted::Tls(handshake) => {
                self.serving.connections.spawn(async move {
                    let conn = tokio::select! {
                        conn = handshake => conn,
                        () = closing.cancelled() => None,
                    };
                    if let Some(conn) = conn {
                        Box::pin(serve((app, front), http, conn, permit, (closing, abort))).await;
                    }
                });
            }
        }
    }
}

/// Serves one connection to its end.
async fn serve(
    (app, front): (Arc<App>, Arc<Front>),
    http: http1::Builder,
    conn: Conn,
    _permit: OwnedSemaphorePermit,
    (closing, abort): (CancellationToken, CancellationToken),
) {
    let (served, peer, ending) = (Arc::clone(&app), Arc::new(socket::Peer::default()), closing.clone());
    let connection = http.serve_connection(
        socket::Socket::new(conn, Arc::clone(&front), Arc::clone(&peer)),
        hyper::service::service_fn(move |request| {
            // Boxed, so that an idle connection does not hold the room of a request.
            let answer = Box::pin(handle::handle(Arc::clone(&served), Arc::clone(&front), request));
            let (peer, ends) = (Arc::clone(&peer), ending.clone());
            async move {
                let mut answer = answer.await;
                match answer.body_mut() {
                    body::Body::Stream(stream) => stream.attend(peer),
                    body::Body::Turn(stream) => stream.attend(peer),
                    body::Body::Guest(stream) => stream.end_with(ends),
                    body::Body::Full(_) => {}
                }
                Ok::<_, std::convert::Infallible>(answer)
            }
        }),
    );
    app.counters.connections.fetch_add(1, Ordering::Relaxed);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        biased;
        _ = connection.as_mut() => {}
        () = closing.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                _ = connection => {}
                () = abort.cancelled() => {}
            }
        }
    }
    app.counters.connections.fetch_sub(1, Ordering::Relaxed);
}
