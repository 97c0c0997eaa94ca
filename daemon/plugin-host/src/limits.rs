//! Memory, time, output and rates: what a plugin may use, and the accounts that hold it to that.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use wasmtime::ResourceLimiter;

use crate::engine::TABLE_ELEMENTS;
use crate::fault::Which;

/// Longest key of the key-value store, in bytes.
pub const KEY_BYTES_MAX: usize = 512;
/// Longest value of the key-value store, in bytes.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// Most data of one event, in bytes.
pub const EVENT_BYTES_MAX: usize = 1 << 20;
/// Most events that one poll may return.
pub const POLLED_MAX: usize = 1_000;
/// Most that one call may stage: events, changes of the key-value store, and bytes of both.
pub const STAGED_EVENTS_MAX: usize = 256;
/// See [`STAGED_EVENTS_MAX`].
pub const STAGED_CHANGES_MAX: usize = 1_000;
/// See [`STAGED_EVENTS_MAX`].
pub const STAGED_BYTES_MAX: usize = 8 << 20;
/// Most starts and signals of workflows and notifications that one call may stage.
pub const STAGED_ACTS_MAX: usize = 64;
/// Most bytes of the input of a workflow, or of the data of a signal.
pub const INPUT_BYTES_MAX: usize = 1 << 20;
/// Longest definition of an agent, in bytes.
pub const DEFINITION_BYTES_MAX: usize = 256 << 10;
/// Attachments of one message.
pub const ATTACHMENTS_MAX: usize = 8;
/// Longest text that is said to an agent, in bytes, and all bytes of what comes with it.
pub const SAID_BYTES_MAX: usize = 512 << 10;
/// See [`SAID_BYTES_MAX`].
pub const ATTACHED_BYTES_MAX: usize = 8 << 20;
/// Most sessions or messages of one page.
pub const PAGE_ITEMS_MAX: u32 = 100;
/// Turns that one call may look at, at once.
pub const TURNS_MAX: usize = 16;
/// Most statements in one batch of SQL.
pub const STATEMENTS_MAX: usize = 1_000;
/// Longest body of an outgoing request, in bytes.
pub const OUTGOING_BYTES_MAX: usize = 1 << 20;
/// Most bytes of all headers of a response, or of an outgoing request.
pub const HEADER_BYTES_MAX: usize = 32 << 10;
/// Longest message of a log line, in bytes; longer ones are cut.
pub const LOG_MESSAGE_BYTES_MAX: usize = 4 << 10;
/// Longest name or value of a field of a log line, in bytes; longer ones are cut.
pub const LOG_FIELD_BYTES_MAX: usize = 1 << 10;
/// Most fields of a log line; further ones are left out.
pub const LOG_FIELDS_MAX: usize = 16;
/// Longest sleep of a guest, in milliseconds.
pub const SLEEP_MS_MAX: u32 = 60_000;
/// Most random bytes that one call gives.
pub const RANDOM_BYTES_MAX: u32 = 65_536;
/// How long an outgoing request may take unless it says otherwise.
pub const OUTGOING_TIME: Duration = Duration::from_secs(30);

/// Log lines that a plugin may write in a second; further ones are dropped.
const LOG_LINES_PER_SECOND: u32 = 100;
/// Operations on `kv`, `sql` and `bus` that a plugin may start in a second.
const STORE_CALLS_PER_SECOND: u32 = 50_000;
/// Outgoing requests that a plugin may start in a second.
const OUTGOING_PER_SECOND: u32 = 50;
/// Starts and signals of workflows, and notifications, that a plugin may ask for in a second.
const ACTS_PER_SECOND: u32 = 1_000;
/// Changes of agents and sessions, and turns, that a plugin may ask for in a second.
const ASKS_PER_SECOND: u32 = 200;

/// Elements of tables, altogether, in one instance of a plugin.
const TABLE_ELEMENTS_MAX: usize = 100_000;
/// Core instances in one instance of a plugin; a Python guest has about 20.
const CORE_INSTANCES_MAX: usize = 100;
/// Tables, and memories, in one instance of a plugin.
const TABLES_MAX: usize = 100;
const MEMORIES_MAX: usize = 8;

/// Whether instances are used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Isolation {
    /// An instance serves call after call.
    #[default]
    Pooled,
    /// Each call gets a fresh instance.
    PerCall,
}

/// What a plugin may use. [`Limits::clamped`] holds what a manifest asks for to what the host allows at most.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Linear memory of one instance.
    pub memory_bytes: usize,
    /// Running time of a call.
    pub time: Duration,
    /// How long a call may wait, altogether, in outgoing requests, sleeps and turns of agents.
    pub wait: Duration,
    /// Calls at once; each has an instance.
    pub max_instances: usize,
    /// Streamed bodies at once; each has an instance, besides the `max_instances`.
    pub max_streams: usize,
    /// Calls that may wait for an instance; further ones are refused.
    pub max_waiting: usize,
    /// After how many calls an instance is replaced.
    pub max_calls_per_instance: u32,
    /// What a call may answer, and what it may hand to the host at once.
    pub output_bytes: usize,
    /// Whether instances are used again.
    pub isolation: Isolation,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            memory_bytes: 64 << 20,
            time: Duration::from_secs(5),
            wait: Duration::from_secs(600),
            max_instances: 4,
            max_streams: 16,
            max_waiting: 256,
            max_calls_per_instance: 10_000,
            output_bytes: 8 << 20,
            isolation: Isolation::Pooled,
        }
    }
}

impl Limits {
    /// These limits, each moved into what the host allows.
    pub fn clamped(&self) -> Limits {
        Limits {
            memory_bytes: self.memory_bytes.clamp(1 << 20, 512 << 20),
            time: self.time.clamp(Duration::from_millis(10), Duration::from_secs(60)),
            wait: self.wait.min(Duration::from_secs(3_600)),
            max_instances: self.max_instances.clamp(1, 16),
            max_streams: self.max_streams.min(64),
            max_waiting: self.max_waiting.min(1_024),
            max_calls_per_instance: self.max_calls_per_instance.max(1),
            output_bytes: self.output_bytes.clamp(64 << 10, 64 << 20),
            isolation: self.isolation,
        }
    }
}

/// The account of one instance's memory. It notes what it refused, since the guest only traps later, as if by itself.
#[derive(Debug)]
pub(crate) struct Limiter {
    memory_bytes_max: usize,
    memory_bytes: usize,
    table_elements: usize,
    refused: Option<Which>,
}

impl Limiter {
    pub fn new(limits: &Limits) -> Limiter {
        Limiter { memory_bytes_max: limits.memory_bytes, memory_bytes: 0, table_elements: 0, refused: None }
    }

    /// What was refused since the last time somebody asked.
    pub fn take_refused(&mut self) -> Option<Which> {
        self.refused.take()
    }

    /// Whether so little memory is left that the instance had better be replaced.
    pub fn is_nearly_full(&self) -> bool {
        self.memory_bytes > self.memory_bytes_max / 4 * 3
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            // The guest's own limit.
            return Ok(false);
        }
        let after = self.memory_bytes.saturating_add(desired.saturating_sub(current));
        if after > self.memory_bytes_max {
            self.refused = Some(Which::Memory);
            return Ok(false);
        }
        self.memory_bytes = after;
        Ok(true)
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if let Some(maximum) = maximum.filter(|maximum| desired > *maximum) {
            if maximum >= TABLE_ELEMENTS {
                // Not the guest's own limit, but the room that the engine has for a table.
                self.refused = Some(Which::Tables);
            }
            return Ok(false);
        }
        let after = self.table_elements.saturating_add(desired.saturating_sub(current));
        if after > TABLE_ELEMENTS_MAX {
            self.refused = Some(Which::Tables);
            return Ok(false);
        }
        self.table_elements = after;
        Ok(true)
    }

    fn table_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.refused = Some(Which::Tables);
        Ok(())
    }

    fn memory_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.refused = Some(Which::Memory);
        Ok(())
    }

    fn instances(&self) -> usize {
        CORE_INSTANCES_MAX
    }

    fn tables(&self) -> usize {
        TABLES_MAX
    }

    fn memories(&self) -> usize {
        MEMORIES_MAX
    }
}

/// Counts what a plugin does in each second, over all its instances.
#[derive(Debug)]
pub(crate) struct Rates {
    origin: Instant,
    log: Rate,
    store: Rate,
    outgoing: Rate,
    acts: Rate,
    asks: Rate,
}

impl Rates {
    pub fn new() -> Rates {
        let rate = |per_second| Rate { per_second, window: AtomicU64::new(0) };
        Rates {
            origin: Instant::now(),
            log: rate(LOG_LINES_PER_SECOND),
            store: rate(STORE_CALLS_PER_SECOND),
            outgoing: rate(OUTGOING_PER_SECOND),
            acts: rate(ACTS_PER_SECOND),
            asks: rate(ASKS_PER_SECOND),
        }
    }

    fn second(&self) -> u64 {
        self.origin.elapsed().as_secs()
    }

    /// Whether one more log line may be written.
    pub fn may_log(&self) -> bool {
        self.log.take(self.second())
    }

    /// Whether one more operation of a store may begin.
    pub fn may_store(&self) -> bool {
        self.store.take(self.second())
    }

    /// Whether one more workflow may be started or signalled, or one more notification sent.
    pub fn may_act(&self) -> bool {
        self.acts.take(self.second())
    }

    /// Whether one more change of agents or sessions, or one more turn, may be asked for.
    pub fn may_ask(&self) -> bool {
        self.asks.take(self.second())
    }

    /// Whether one more request may be sent.
    pub fn may_send(&self) -> bool {
        self.outgoing.take(self.second())
    }
}

/// So many in each second; the window holds the second in its upper half and the count in its lower.
#[derive(Debug)]
struct Rate {
    per_second: u32,
    window: AtomicU64,
}

impl Rate {
    fn take(&self, second: u64) -> bool {
        let mut old = self.window.load(Ordering::Relaxed);
        loop {
            let count = if old >> 32 == second { old & 0xffff_ffff } else { 0 };
            if count >= u64::from(self.per_second) {
                return false;
            }
            let new = second << 32 | (count + 1);
            match self.window.compare_exchange_weak(old, new, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => old = now,
            }
        }
    }
}

/// The account of a call's time: how long it ran, and how long it waited in functions that count as waiting.
///
/// Shared by the guest's own ticks and by whoever watches the call from outside; times are nanoseconds since `origin`.
#[derive(Debug)]
pub(crate) struct Meter {
    origin: Instant,
    time: Duration,
    wait: Duration,
    started: AtomicU64,
    waited: AtomicU64,
    /// Since when it waits; 0 when it does not.
    waiting: AtomicU64,
}

impl Meter {
    pub fn new(limits: &Limits) -> Meter {
        Meter {
            origin: Instant::now(),
            time: limits.time,
            wait: limits.wait,
            started: AtomicU64::new(0),
            waited: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX).max(1)
    }

    /// A new call begins.
    pub fn start(&self) {
        self.waited.store(0, Ordering::Relaxed);
        self.waiting.store(0, Ordering::Relaxed);
        self.started.store(self.now(), Ordering::Relaxed);
    }

    fn running(&self, now: u64) -> Duration {
        let waiting = match self.waiting.load(Ordering::Relaxed) {
            0 => 0,
            since => now.saturating_sub(since),
        };
        let away = self.waited.load(Ordering::Relaxed).saturating_add(waiting);
        Duration::from_nanos(now.saturating_sub(self.started.load(Ordering::Relaxed)).saturating_sub(away))
    }

    /// How much longer the call may run; zero when its time is over.
    pub fn left_to_run(&self) -> Duration {
        self.time.saturating_sub(self.running(self.now()))
    }

    /// How much longer the call may wait.
    pub fn left_to_wait(&self) -> Duration {
        self.wait.saturating_sub(Duration::from_nanos(self.waited.load(Ordering::Relaxed)))
    }

    /// How long from now the call certainly need not be looked at.
    pub fn left(&self) -> Duration {
        let wait = if self.waiting.load(Ordering::Relaxed) == 0 { Duration::ZERO } else { self.left_to_wait() };
        self.left_to_run() + wait
    }

    /// The limit of the running time in words.
    pub fn message(&self) -> String {
        format!("a call may run for {} ms", self.time.as_millis())
    }

    /// From now on the call waits, until the guard is dropped.
    pub fn pause(&self) -> Waiting<'_> {
        self.waiting.store(self.now(), Ordering::Relaxed);
        Waiting { meter: self }
    }
}

/// A call waits as long as this lives.
pub(crate) struct Waiting<'a> {
    meter: &'a Meter,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let since = self.meter.waiting.swap(0, Ordering::Relaxed);
        let waited = self.meter.now().saturating_sub(since);
        self.meter.waited.fetch_add(waited, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a rate allows its number in each second and no more.
    #[test]
    fn rates_begin_anew_each_second() {
        let rate = Rate { per_second: 3, window: AtomicU64::new(0) };
        let taken = |second: u64| (0..5).filter(|_| rate.take(second)).count();
        assert_eq!((taken(0), taken(0), taken(1), taken(7)), (3, 0, 3, 3));
    }

    /// Goal: what the limiter refused is known once.
    #[test]
    fn limiter_notes_what_it_refused() {
        let mut limiter = Limiter::new(&Limits { memory_bytes: 1 << 20, ..Limits::default() });
        assert!(limiter.memory_growing(0, 1 << 19, None).expect("the limiter answers"));
        assert!(limiter.memory_growing(0, 1 << 19, None).expect("the limiter answers"), "memories add up");
        assert!(!limiter.memory_growing(1 << 19, (1 << 19) + 1, None).expect("the limiter answers"));
        assert_eq!((limiter.take_refused(), limiter.take_refused()), (Some(Which::Memory), None));
        assert!(limiter.is_nearly_full());
    }

    /// Goal: waiting does not count as running, and is limited by itself.
    #[test]
    fn waiting_is_not_running() {
        let limits = Limits { time: Duration::from_secs(5), wait: Duration::from_secs(100), ..Limits::default() };
        let meter = Meter::new(&limits);
        meter.start();
        meter.waited.store(40_000_000_000, Ordering::Relaxed);
        meter.started.store(0, Ordering::Relaxed);
        assert!(meter.left_to_run() >= Duration::from_secs(4), "{:?}", meter.left_to_run());
        assert_eq!(meter.left_to_wait(), Duration::from_secs(60));
        let waiting = meter.pause();
        assert!(meter.left() > Duration::from_secs(60));
        drop(waiting);
        assert!(meter.left() <= Duration::from_secs(5));
    }
}
