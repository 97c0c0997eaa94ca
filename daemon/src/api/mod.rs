//! The only module that serves HTTP: accept loop, connection limit, drain. What a request goes through is in
//! [`handle`], who may do what in [`routes`] and [`auth`].

pub mod again;
pub mod audit;
pub mod auth;
pub mod body;
pub mod config;
mod cron;
mod db;
mod dlq;
mod events;
pub mod gate;
mod guests;
mod handle;
mod health;
pub mod jwt;
pub mod listen;
mod login;
mod metrics;
pub mod openapi;
pub mod parse;
mod plugins;
pub mod problem;
mod query;
pub mod rates;
pub mod routes;
mod runtime;
mod secrets;
mod sinks;
mod skills;
mod socket;
mod sources;
mod stream;
mod tokens;
mod why;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::{HeaderMap, StatusCode, Uri};
use hyper_util::rt::TokioTimer;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::bus::Bus;
use crate::bus::live::Live;
use crate::clock::Clock;
use crate::config::Config;
use crate::cron::Cron;
use crate::error::Error;
use crate::id::TraceId;
use crate::outbox::Sinks;
use crate::plugins::Plugins;
use crate::skills::Skills;
use crate::sources::Sources;
use crate::store::{Store, overrides, tokens as tokens_stored};
use crate::tasks::Supervisor;
use crate::upkeep::Upkeep;
use auth::{Auth, Principal};
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
    bus: Bus,
    store: Store,
    live: Live,
    clock: Clock,
    skills: Skills,
    cron: Cron,
    supervisor: Supervisor,
    lifecycle: Arc<Lifecycle>,
    sources: Sources,
    sinks: Sinks,
    upkeep: Upkeep,
    plugins: Plugins,
    connections_max: usize,
    tuned: ArcSwap<config::Tuned>,
    configured: config::Configured,
    gate: Gate,
    rates: Rates,
    /// Held by whoever checks the database.
    checking: tokio::sync::Mutex<()>,
    turns: again::Turns,
    routes: ArcSwap<Table>,
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
    /// The trace that the client gave.
    parent_trace: Option<TraceId>,
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
    let detail = "The daemon is shutting down and takes no new work.";
    Problem::new((StatusCode::SERVICE_UNAVAILABLE, "draining"), detail).retry_after_ms(5000)
}

impl App {
    /// Puts the API together. Fails only when the route table is unsound.
    pub fn new(settings: Settings, parts: Parts) -> Result<Arc<App>, Error> {
        let Parts { bus, skills, cron, supervisor, lifecycle, sources, sinks, upkeep, plugins } = parts;
        let Settings { auth, connections_max, config } = settings;
        let clock = bus.clock().clone();
        let cookie = format!("aman_session_{:08x}", bus.store().ids().node);
        let gate = Gate::new(auth, clock.clone(), cookie);
        let now_ms = clock.now_ms();
        let version = bus.store().read_now(overrides::all)?.version;
        bus.store().read_now(|conn| tokens_stored::good(conn, now_ms))?.iter().for_each(|token| gate.add(token));
        let app = Arc::new(App {
            store: bus.store().clone(),
            live: bus.live().clone(),
            clock,
            bus,
            skills,
            cron,
            supervisor,
            lifecycle,
            sources,
            sinks,
            upkeep,
            plugins,
            rates: Rates::new(config::limits(&config)),
            checking: tokio::sync::Mutex::new(()),
            turns: again::Turns::default(),
            tuned: ArcSwap::from_pointee(config::Tuned::of(&config, config.http.tls.is_some())),
            configured: config::Configured::new(config, version),
            connections_max,
            gate,
            routes: ArcSwap::from_pointee(Table::new(routes::core(), None)?),
            counters: Counters::default(),
            rooms: body::Rooms::default(),
            refusals: audit::Refusals::default(),
            public_streams: Arc::new(Semaphore::new(stream::PUBLIC_STREAMS_MAX)),
            running: TaskTracker::new(),
        });
        let mounting = Arc::downgrade(&app);
        app.plugins.open(Box::new(move |wanted, is_trial| {
            mounting.upgrade().map_or(Ok(()), |app| app.mount(wanted, is_trial))
        }));
        Ok(app)
    }
}

/// The running server.
pub struct Server {
    app: Arc<App>,
    /// Stops accepting, and lets connections end after their present request.
    closing: CancellationToken,
    /// Ends connections at once.
    abort: CancellationToken,
    connections: TaskTracker,
}

impl Server {
    /// Serves `listeners` until [`Server::stop`].
    pub fn start(app: Arc<App>, listeners: Vec<Listener>) -> Server {
        let server = Server {
            app: Arc::clone(&app),
            closing: CancellationToken::new(),
            abort: CancellationToken::new(),
            connections: TaskTracker::new(),
        };
        // Each listener holds one while it waits for its next connection.
        let idle = listeners.len().saturating_sub(1);
        let permits = Arc::new(Semaphore::new(app.connections_max + idle));
        for listener in listeners {
            let accepting = Accepting {
                app: Arc::clone(&app),
                closing: server.closing.clone(),
                abort: server.abort.clone(),
                connections: server.connections.clone(),
                permits: Arc::clone(&permits),
            };
            server.connections.spawn(accepting.run(listener));
        }
        server
    }

    /// Accepts no more, lets open requests end within `grace`, then ends what is left. Streams must have been ended.
    pub async fn stop(self, grace: Duration) {
        self.closing.cancel();
        self.connections.close();
        self.app.running.close();
        let ended = async {
            self.connections.wait().await;
            self.app.running.wait().await;
        };
        if tokio::time::timeout(grace, ended).await.is_err() {
            tracing::warn!(connections = self.connections.len(), "Connections were cut off at shutdown.");
            self.abort.cancel();
        }
        self.app.refusals.write_now(&self.app).await;
    }
}

struct Accepting {
    app: Arc<App>,
    closing: CancellationToken,
    abort: CancellationToken,
    connections: TaskTracker,
    permits: Arc<Semaphore>,
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
                let permit = Arc::clone(&self.permits).acquire_owned().await;
                (permit, listener.accept().await)
            };
            let (permit, accepted) = tokio::select! {
                biased;
                () = self.closing.cancelled() => return,
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
        let (app, closing, abort) = (Arc::clone(&self.app), self.closing.clone(), self.abort.clone());
        let http = http.clone();
        match accepted {
            listen::Accepted::Ready(conn) => {
                self.connections.spawn(serve(app, http, conn, permit, (closing, abort)));
            }
            listen::Accepted::Tls(handshake) => {
                self.connections.spawn(async move {
                    let conn = tokio::select! {
                        conn = handshake => conn,
                        () = closing.cancelled() => None,
                    };
                    if let Some(conn) = conn {
                        Box::pin(serve(app, http, conn, permit, (closing, abort))).await;
                    }
                });
            }
        }
    }
}

/// Serves one connection to its end.
async fn serve(
    app: Arc<App>,
    http: http1::Builder,
    conn: Conn,
    _permit: OwnedSemaphorePermit,
    (closing, abort): (CancellationToken, CancellationToken),
) {
    let (served, peer) = (Arc::clone(&app), Arc::new(socket::Peer::default()));
    let connection = http.serve_connection(
        socket::Socket::new(conn, Arc::clone(&peer)),
        hyper::service::service_fn(move |request| {
            // Boxed, so that an idle connection does not hold the room of a request.
            let (answer, peer) = (Box::pin(handle::handle(Arc::clone(&served), request)), Arc::clone(&peer));
            async move {
                let mut answer = answer.await;
                if let body::Body::Stream(stream) = answer.body_mut() {
                    stream.attend(peer);
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
