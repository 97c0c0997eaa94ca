//! The only module that serves HTTP: accept loop, connection limit, drain. What a request goes through is in
//! [`handle`], who may do what in [`routes`] and [`auth`].

pub mod audit;
pub mod auth;
pub mod body;
mod dlq;
mod events;
mod handle;
mod health;
mod metrics;
mod parse;
pub mod problem;
mod query;
pub mod routes;
mod runtime;
mod skills;
mod socket;
mod stream;
mod why;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::{HeaderMap, StatusCode, Uri};
use hyper_util::rt::TokioTimer;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::bus::Bus;
use crate::bus::live::Live;
use crate::clock::Clock;
use crate::config::PublicStream;
use crate::error::Error;
use crate::id::TraceId;
use crate::skills::Skills;
use crate::sources::files::FileSource;
use crate::store::Store;
use crate::tasks::Supervisor;
use auth::{Auth, Gate, Places, Principal};
use problem::Problem;
use routes::{Mounted, Route, Table};
pub use runtime::{Lifecycle, Phase};

/// Request line and headers together, in bytes.
const HEADER_BYTES_MAX: usize = 32 << 10;
/// How long the first byte of a request, and then its headers, may take; also how long an idle connection is kept.
const HEADER_WAIT: Duration = Duration::from_secs(30);
/// What a connection buffers at the most, in each direction.
const BUFFER_BYTES_MAX: usize = 64 << 10;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the API must be told.
pub struct Settings {
    /// How callers authenticate.
    pub auth: Auth,
    /// Hosts and origins beyond the daemon's own.
    pub places: Places,
    /// See [`PublicStream`].
    pub public_stream: PublicStream,
    /// Asks for confirmation of more than the usual.
    pub strict_confirm: bool,
    /// Lets `/inject-event` in.
    pub debug_endpoints: bool,
    /// Connections at a time; more wait to be accepted.
    pub connections_max: usize,
    /// The effective configuration without secrets, each key with its origin, as `/runtime/config` shows it.
    pub config: Value,
}

/// What the API calls.
pub struct Parts {
    /// The bus; store, clock and live tail come with it.
    pub bus: Bus,
    /// The registry of skills.
    pub skills: Skills,
    /// The background tasks, to show them.
    pub supervisor: Supervisor,
    /// Where the daemon stands.
    pub lifecycle: Arc<Lifecycle>,
    /// The watched folders, to show them.
    pub sources: Vec<FileSource>,
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
}

/// Handles of everything that handlers call.
pub struct App {
    bus: Bus,
    store: Store,
    live: Live,
    clock: Clock,
    skills: Skills,
    supervisor: Supervisor,
    lifecycle: Arc<Lifecycle>,
    sources: Vec<FileSource>,
    settings: Settings,
    gate: Gate,
    routes: ArcSwap<Table>,
    counters: Counters,
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
    params: routes::Params,
    route: Arc<Mounted>,
    principal: Option<Principal>,
    /// The trace that the client gave.
    parent_trace: Option<TraceId>,
    head_only: bool,
    draft: audit::Draft,
}

impl Call {
    /// A value of the path; the route table guarantees that it is there.
    fn param(&self, name: &str) -> &str {
        self.params.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    /// The whole body.
    async fn bytes(&mut self) -> Result<bytes::Bytes, Problem> {
        match self.body.take() {
            Some(body) => body::bytes(&self.headers, body, self.route.route.body_bytes_max).await,
            None => Ok(bytes::Bytes::new()),
        }
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
        let Parts { bus, skills, supervisor, lifecycle, sources } = parts;
        let mut settings = settings;
        let gate = Gate::new(std::mem::replace(&mut settings.auth, Auth::None));
        Ok(Arc::new(App {
            store: bus.store().clone(),
            live: bus.live().clone(),
            clock: bus.clock().clone(),
            bus,
            skills,
            supervisor,
            lifecycle,
            sources,
            settings,
            gate,
            routes: ArcSwap::from_pointee(Table::new(routes::core())?),
            counters: Counters::default(),
            refusals: audit::Refusals::default(),
            public_streams: Arc::new(Semaphore::new(stream::PUBLIC_STREAMS_MAX)),
            running: TaskTracker::new(),
        }))
    }

    /// Replaces the routes that are not the core's; all or nothing.
    pub fn mount(&self, added: Vec<Route>) -> Result<(), Error> {
        let mut routes = routes::core();
        routes.extend(added);
        self.routes.store(Arc::new(Table::new(routes)?));
        Ok(())
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
    /// Serves `listener` until [`Server::stop`].
    pub fn start(app: Arc<App>, listener: TcpListener) -> Server {
        let server = Server {
            app: Arc::clone(&app),
            closing: CancellationToken::new(),
            abort: CancellationToken::new(),
            connections: TaskTracker::new(),
        };
        let accepting = Accepting {
            app,
            closing: server.closing.clone(),
            abort: server.abort.clone(),
            connections: server.connections.clone(),
        };
        server.connections.spawn(accepting.run(listener));
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
}

impl Accepting {
    async fn run(self, listener: TcpListener) {
        let permits = Arc::new(Semaphore::new(self.app.settings.connections_max));
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(HEADER_WAIT)
            .max_header_size(HEADER_BYTES_MAX)
            .max_buf_size(BUFFER_BYTES_MAX);
        loop {
            let accepted = async {
                let permit = Arc::clone(&permits).acquire_owned().await;
                (permit, listener.accept().await)
            };
            let (permit, accepted) = tokio::select! {
                biased;
                () = self.closing.cancelled() => return,
                accepted = accepted => accepted,
            };
            match (permit, accepted) {
                (Ok(permit), Ok((stream, _))) => self.serve(&http, stream, permit),
                // Out of file descriptors, mostly: wait for some to come back rather than spin.
                (_, Err(error)) => {
                    tracing::warn!(%error, "A connection could not be accepted.");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                (Err(_), _) => return,
            }
        }
    }

    fn serve(&self, http: &http1::Builder, stream: TcpStream, permit: OwnedSemaphorePermit) {
        let _ = stream.set_nodelay(true);
        let (app, closing, abort) = (Arc::clone(&self.app), self.closing.clone(), self.abort.clone());
        let served = Arc::clone(&self.app);
        let connection = http.serve_connection(
            socket::Socket::new(stream),
            hyper::service::service_fn(move |request| {
                // Boxed, so that an idle connection does not hold the room of a request.
                let answer = Box::pin(handle::handle(Arc::clone(&served), request));
                async move { Ok::<_, std::convert::Infallible>(answer.await) }
            }),
        );
        self.connections.spawn(async move {
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
            drop(permit);
        });
    }
}
