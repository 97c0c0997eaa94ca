//! A loaded plugin: its pool of instances, and the calls from outside.

use std::collections::VecDeque;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use wasmtime::component::InstancePre;

use crate::api::HostApi;
use crate::bindings::exports::aman::plugin::http_handler;
use crate::body::{BodyStream, Live};
use crate::engine::Machine;
use crate::fault::{Fault, Which};
use crate::inspect::Surface;
use crate::instance::{Done, Exports, Instance, Job};
use crate::limits::{Isolation, Limits, Meter};
use crate::state::{Call, Common, Mode, State};
use crate::values::{Answer, Body, Caller, Event, Outcome, Polled, Request, Response, Staged};

/// How long an instance without calls is kept.
const IDLE_TIME: Duration = Duration::from_secs(60);

/// What a plugin has done and holds, for `/metrics` and people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Calls that began, with those that wait for an instance; not pieces of streams.
    pub calls: u64,
    /// Calls that ended in a fault.
    pub faults: u64,
    /// Instances that were made.
    pub instances_made: u64,
    /// Instances that wait for a call.
    pub idle: usize,
    /// Calls that run.
    pub running: usize,
    /// Calls that wait for an instance.
    pub waiting: usize,
    /// Streamed bodies that are not at their end.
    pub streams: usize,
}

/// A loaded plugin; a handle that is cheap to clone. When the last handle and the last stream are gone, so is the code.
#[derive(Clone)]
pub struct Plugin {
    shared: Arc<Shared>,
}

/// What the handles of a plugin share.
pub(crate) struct Shared {
    pub machine: Arc<Machine>,
    common: Arc<Common>,
    pre: InstancePre<State>,
    exports: Exports,
    surface: Surface,
    limits: Limits,
    permits: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    waiting: AtomicUsize,
    /// New calls are refused.
    is_closing: AtomicBool,
    pool: Mutex<Pool>,
    calls: AtomicU64,
    faults: AtomicU64,
    made: AtomicU64,
}

/// The instances without a call; the one that was used last is at the end and goes first.
#[derive(Default)]
struct Pool {
    idle: VecDeque<Idle>,
    /// A task waits to drop the oldest.
    is_watched: bool,
    /// Nothing is kept any more.
    is_closed: bool,
}

struct Idle {
    instance: Box<Instance>,
    since: Instant,
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plugin").field("name", &self.shared.common.name).finish_non_exhaustive()
    }
}

/// Runs `work` until the meter says that its time is over.
pub(crate) async fn within<T>(
    plugin: &Shared,
    meter: &Meter,
    // Pinned by whoever calls: large futures that are handed on are copied, and kept twice.
    mut work: Pin<&mut impl Future<Output = Result<T, Fault>>>,
) -> Result<T, Fault> {
    meter.start();
    let _running = Running::new(plugin);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            // Asked only when the work waits: most calls are over without a timer. A little more than what is left, so
            // that a guest that computes is ended by its own tick, which knows better where it was.
            () = async { tokio::time::sleep(meter.left() + Duration::from_millis(50)).await } => {
                if meter.left_to_run().is_zero() {
                    return Err(Fault::Timeout { message: meter.message() });
                }
            }
        }
    }
}

/// Counts as a running guest as long as it lives.
struct Running<'a> {
    plugin: &'a Shared,
}

impl<'a> Running<'a> {
    fn new(plugin: &'a Shared) -> Running<'a> {
        plugin.machine.ticker.enter();
        Running { plugin }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.plugin.machine.ticker.leave();
    }
}

impl Shared {
    fn pool(&self) -> MutexGuard<'_, Pool> {
        // Nothing panics while it is held.
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps an instance for the next call, unless it had better be replaced.
    pub fn keep(self: &Arc<Shared>, instance: Box<Instance>) {
        let worn = self.limits.isolation == Isolation::PerCall
            || instance.calls >= self.limits.max_calls_per_instance
            || instance.is_nearly_full();
        if worn {
            return;
        }
        let mut pool = self.pool();
        if pool.is_closed || pool.idle.len() >= self.limits.max_instances {
            return;
        }
        pool.idle.push_back(Idle { instance, since: Instant::now() });
        if !std::mem::replace(&mut pool.is_watched, true) {
            let plugin = Arc::downgrade(self);
            self.machine.runtime().spawn(async move {
                let mut next = Instant::now() + IDLE_TIME;
                loop {
                    tokio::time::sleep_until(next).await;
                    let Some(plugin) = plugin.upgrade() else { return };
                    match plugin.drop_idle() {
                        Some(then) => next = then,
                        None => return,
                    }
                }
            });
        }
    }

    /// Drops the instances that were idle for too long, and says when to look again.
    fn drop_idle(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut old = Vec::new();
        let mut pool = self.pool();
        while let Some(idle) = pool.idle.pop_front_if(|idle| idle.since + IDLE_TIME <= now) {
            old.push(idle);
        }
        let next = pool.idle.front().map(|idle| idle.since + IDLE_TIME);
        pool.is_watched = next.is_some();
        drop(pool);
        drop(old);
        next
    }

    /// Lets a call wait for the right to run, unless too many do.
    fn queue(self: &Arc<Shared>) -> Result<Waiter, Fault> {
        // Counted before the look at `is_closing`: whoever closes sees it, or it sees that.
        let waiter = Waiter::new(self);
        if self.is_closing.load(Ordering::SeqCst) {
            return Err(Fault::Closed);
        }
        // Those for whom there is an instance do not wait; they have only not begun yet.
        let room = self.limits.max_waiting + self.permits.available_permits();
        if self.waiting.load(Ordering::SeqCst) > room {
            return Err(busy(format!("{} calls wait already", self.limits.max_waiting)));
        }
        Ok(waiter)
    }

    /// The right to run a call. Waited for on the guests' runtime, where calls that end hand it on without a detour.
    async fn admit(&self) -> Result<OwnedSemaphorePermit, Fault> {
        if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            return Ok(permit);
        }
        match tokio::time::timeout(self.limits.time, Arc::clone(&self.permits).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_closed)) => Err(Fault::Closed),
            Err(_elapsed) => Err(busy(format!(
                "all {} instances were busy for {} ms",
                self.limits.max_instances,
                self.limits.time.as_millis()
            ))),
        }
    }

    /// Runs a job in an instance. Runs on the guests' runtime; when it is dropped, so is the instance.
    async fn serve(self: Arc<Shared>, waiter: Waiter, call: Call, job: Job) -> Result<Served, Fault> {
        let permit = self.admit().await?;
        drop(waiter);
        let idle = self.pool().idle.pop_back().map(|idle| idle.instance);
        let meter = match &idle {
            Some(instance) => Arc::clone(&instance.meter),
            None => Arc::new(Meter::new(&self.limits)),
        };
        let work = pin!(async {
            let mut instance = match idle {
                Some(mut instance) => {
                    instance.take_up(call);
                    instance
                }
                None => {
                    self.made.fetch_add(1, Ordering::Relaxed);
                    let common = Arc::clone(&self.common);
                    let call = (Arc::clone(&meter), call);
                    // Rare, so that its room is not in the task of each call.
                    Box::pin(Instance::begin(&self.pre, &self.exports, common, &self.limits, call)).await?
                }
            };
            let done = instance.perform(job).await?;
            Ok((instance, done))
        });
        let (mut instance, done) = within(&self, &meter, work).await?;
        if let Done::Http(Ok(response)) = done {
            return self.answer(instance, response, permit);
        }
        let staged = instance.lay_down().map(|call| call.staged).unwrap_or_default();
        self.keep(instance);
        Ok(Served { done: Reply::Done(done), staged })
    }

    fn answer(
        self: &Arc<Shared>,
        mut instance: Box<Instance>,
        response: http_handler::Response,
        permit: OwnedSemaphorePermit,
    ) -> Result<Served, Fault> {
        let http_handler::Response { status, headers, body, extensions: _ } = response;
        let body = match body {
            http_handler::Body::Bytes(bytes) => {
                instance.lay_down();
                self.keep(instance);
                Body::Bytes(bytes)
            }
            http_handler::Body::Streamed(resource) => {
                drop(permit);
                let Ok(permit) = Arc::clone(&self.streams).try_acquire_owned() else {
                    let message = format!("{} streamed bodies are open already", self.limits.max_streams);
                    return Err(Fault::Limit { which: Which::Streams, message });
                };
                Body::Stream(BodyStream::new(Arc::clone(self), Live { instance, resource, permit }))
            }
        };
        Ok(Served { done: Reply::Http(Response { status, headers, body }), staged: Staged::default() })
    }
}

/// Counts as waiting as long as it lives.
struct Waiter(Arc<Shared>);

impl Waiter {
    fn new(plugin: &Arc<Shared>) -> Waiter {
        plugin.waiting.fetch_add(1, Ordering::SeqCst);
        Waiter(Arc::clone(plugin))
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

fn busy(message: String) -> Fault {
    Fault::Limit { which: Which::Calls, message }
}

/// The result of a job.
struct Served {
    done: Reply,
    staged: Staged,
}

enum Reply {
    Http(Response),
    Done(Done),
}

impl Plugin {
    pub(crate) fn new(
        machine: Arc<Machine>,
        common: Common,
        pre: InstancePre<State>,
        surface: Surface,
        limits: Limits,
    ) -> Result<Plugin, Fault> {
        let exports = Exports::find(&pre, &surface).map_err(|error| Fault::refused(format!("{error:#}")))?;
        let shared = Shared {
            machine,
            common: Arc::new(common),
            pre,
            exports,
            surface,
            permits: Arc::new(Semaphore::new(limits.max_instances)),
            streams: Arc::new(Semaphore::new(limits.max_streams)),
            limits,
            waiting: AtomicUsize::new(0),
            is_closing: AtomicBool::new(false),
            pool: Mutex::default(),
            calls: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            made: AtomicU64::new(0),
        };
        Ok(Plugin { shared: Arc::new(shared) })
    }

    /// What the component imports and exports.
    pub fn surface(&self) -> &Surface {
        &self.shared.surface
    }

    /// The limits in force.
    pub fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    /// See [`Stats`].
    pub fn stats(&self) -> Stats {
        let shared = &self.shared;
        Stats {
            calls: shared.calls.load(Ordering::Relaxed),
            faults: shared.faults.load(Ordering::Relaxed),
            instances_made: shared.made.load(Ordering::Relaxed),
            idle: shared.pool().idle.len(),
            running: shared.limits.max_instances.saturating_sub(shared.permits.available_permits()),
            waiting: shared.waiting.load(Ordering::Relaxed),
            streams: shared.limits.max_streams.saturating_sub(shared.streams.available_permits()),
        }
    }

    async fn run(&self, call: Call, job: Job) -> Result<Served, Fault> {
        let shared = &self.shared;
        shared.calls.fetch_add(1, Ordering::Relaxed);
        let served = async {
            let waiter = shared.queue()?;
            let task = shared.machine.runtime().spawn(Arc::clone(shared).serve(waiter, call, job));
            match AbortOnDropHandle::new(task).await {
                Ok(served) => served,
                Err(ended) => Err(Fault::internal(format!("the task of a call ended: {ended}"))),
            }
        };
        let served = served.await;
        if served.is_err() {
            shared.faults.fetch_add(1, Ordering::Relaxed);
        }
        served
    }

    /// Makes an instance, or takes one that is there: shows that the plugin begins. It is kept for the first call.
    pub async fn probe(&self, api: Arc<dyn HostApi>, caller: Caller) -> Result<(), Fault> {
        self.run(Call::new(api, caller, Mode::Begin), Job::Probe).await.map(drop)
    }

    /// Handles a request to a route. What the guest changes takes effect at once.
    ///
    /// The request's `caller` says who asks. Take credentials, hop-by-hop and forwarding headers out before.
    pub async fn call_http(&self, api: Arc<dyn HostApi>, request: Request) -> Result<Answer<Response>, Fault> {
        let call = Call::new(api, request.caller.clone(), Mode::Direct);
        match self.run(call, Job::Http(request)).await?.done {
            Reply::Http(response) => Ok(Ok(response)),
            Reply::Done(Done::Http(Err(error))) => Ok(Err(error)),
            Reply::Done(_) => Err(other_answer()),
        }
    }

    /// Handles an event. What the guest published and changed comes back staged, and counts only with `Outcome::Done`.
    ///
    /// Dropping the future ends the guest within about 10 ms.
    pub async fn handle_event(
        &self,
        api: Arc<dyn HostApi>,
        caller: Caller,
        event: Event,
    ) -> Result<(Outcome, Staged), Fault> {
        let served = self.run(Call::new(api, caller, Mode::Staged), Job::Event(event)).await?;
        match served.done {
            Reply::Done(Done::Event(Outcome::Done)) => Ok((Outcome::Done, served.staged)),
            Reply::Done(Done::Event(outcome)) => Ok((outcome, Staged::default())),
            Reply::Done(_) | Reply::Http(_) => Err(other_answer()),
        }
    }

    /// Runs a tool; `input` and the answer are JSON texts, which the guest's author promises and nobody has checked.
    pub async fn call_tool(
        &self,
        api: Arc<dyn HostApi>,
        caller: Caller,
        name: String,
        input: String,
    ) -> Result<Answer<String>, Fault> {
        match self.run(Call::new(api, caller, Mode::Direct), Job::Tool { name, input }).await?.done {
            Reply::Done(Done::Tool(answer)) => Ok(answer),
            Reply::Done(_) | Reply::Http(_) => Err(other_answer()),
        }
    }

    /// Polls the source `id`. What comes back staged takes effect together with the polled events and the cursor.
    pub async fn poll_source(
        &self,
        api: Arc<dyn HostApi>,
        caller: Caller,
        id: String,
        cursor: Option<String>,
    ) -> Result<(Answer<Polled>, Staged), Fault> {
        let served = self.run(Call::new(api, caller, Mode::Staged), Job::Poll { id, cursor }).await?;
        match served.done {
            Reply::Done(Done::Poll(Ok(polled))) => Ok((Ok(polled), served.staged)),
            Reply::Done(Done::Poll(Err(error))) => Ok((Err(error), Staged::default())),
            Reply::Done(_) | Reply::Http(_) => Err(other_answer()),
        }
    }

    /// Refuses new calls with [`Fault::Closed`], waits for those that run or wait and drops the idle instances. Streams go
    /// on until they end or are dropped. Calls end by their own limits; whoever closes may stop waiting before.
    pub async fn close(&self) {
        let shared = &self.shared;
        shared.is_closing.store(true, Ordering::SeqCst);
        let all = u32::try_from(shared.limits.max_instances).unwrap_or(u32::MAX);
        while let Ok(permits) = shared.permits.acquire_many(all).await {
            if shared.waiting.load(Ordering::SeqCst) == 0 {
                shared.permits.close();
                break;
            }
            // A call was let in that has not begun yet; it goes first.
            drop(permits);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let idle = {
            let mut pool = shared.pool();
            pool.is_closed = true;
            std::mem::take(&mut pool.idle)
        };
        drop(idle);
    }
}

fn other_answer() -> Fault {
    Fault::internal("a call was answered with the answer of another")
}
