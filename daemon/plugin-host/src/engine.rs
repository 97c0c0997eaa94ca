//! The machine that runs guests: wasmtime's engine, a tokio runtime of its own, and the thread that ticks.
//!
//! It is made for the first plugin and goes with the last: a daemon without plugins has none of it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::Thread;
use std::time::Duration;

use tokio::runtime::{Handle, Runtime};
use wasmtime::component::{HasSelf, Linker};
use wasmtime::{Config, Enabled, Engine, EngineWeak, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig};

use crate::bindings::Plugin as World;
use crate::fault::Fault;
use crate::state::State;

/// How often a running guest looks at the clock, and lets others run.
const TICK: Duration = Duration::from_millis(10);
/// After how many ticks without a guest the ticking thread sleeps until it is woken.
const IDLE_TICKS: u32 = 20;
/// Instances of plugins, linear memories and stacks at once, over all plugins.
const SLOTS: u32 = 256;
/// Core instances and tables at once, over all plugins.
const CORE_SLOTS: u32 = 2_048;
/// Elements of one table.
pub(crate) const TABLE_ELEMENTS: usize = 20_000;
/// Bytes of a linear memory that are cleared for the next instance instead of being given back to the system.
const MEMORY_KEPT: usize = 256 << 10;
/// As `MEMORY_KEPT`, for a table.
const TABLE_KEPT: usize = 16 << 10;
/// Linear memories without an instance that keep their content's pages.
const WARM_SLOTS: u32 = 16;
/// Depth of a guest's own stack, in bytes.
const STACK_BYTES: usize = 512 << 10;
/// Threads that run guests where there are processors for them; see [`threads`].
const THREADS_MAX: usize = 2;
/// Threads on which host functions block.
const BLOCKING_THREADS: usize = 2;
/// After so many turns the guests' runtime looks at its timers: a turn of a guest that computes takes a tick.
const TIMERS_EVERY: u32 = 8;

/// What decides how code is compiled; the same for the compiling child and for the daemon.
fn config() -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .cranelift_opt_level(OptLevel::Speed)
        .generate_address_map(false)
        .native_unwind_info(false)
        .max_wasm_stack(STACK_BYTES)
        .memory_reservation(4 << 30);
    config
}

/// An engine that compiles only. It reserves no address space, since the child's is limited.
pub(crate) fn compiling() -> wasmtime::Result<Engine> {
    Engine::new(config().allocation_strategy(InstanceAllocationStrategy::OnDemand))
}

fn pool() -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::default();
    pool.total_component_instances(SLOTS)
        .total_memories(SLOTS)
        .total_stacks(SLOTS)
        .total_core_instances(CORE_SLOTS)
        .total_tables(CORE_SLOTS)
        .max_memory_size(4 << 30)
        .max_memories_per_module(8)
        .max_tables_per_module(16)
        .table_elements(TABLE_ELEMENTS)
        .linear_memory_keep_resident(MEMORY_KEPT)
        .table_keep_resident(TABLE_KEPT)
        .max_unused_warm_slots(WARM_SLOTS)
        .pagemap_scan(Enabled::Auto);
    pool
}

/// The engine that runs guests. Where a terabyte of address space is not to be had, instances are made one by one, which
/// is slower and runs the same code.
fn running() -> wasmtime::Result<Engine> {
    let pooled = Engine::new(config().allocation_strategy(InstanceAllocationStrategy::Pooling(pool())));
    pooled.or_else(|_no_room| compiling())
}

/// Names the engine: code that one engine compiled runs in each that has the same name.
pub(crate) fn compatibility(engine: &Engine) -> String {
    let mut hasher = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// Threads that run guests. Those that compute without an end take a processor each, and one is left for the daemon.
/// They take turns, so a thread alone serves the others, too.
fn threads() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    processors.saturating_sub(1).clamp(1, THREADS_MAX)
}

/// See the module.
pub(crate) struct Machine {
    pub engine: Engine,
    /// With all functions of the interface.
    pub linker: Linker<State>,
    /// See [`compatibility`].
    pub compatibility: String,
    pub ticker: Arc<Ticker>,
    runtime: Option<Runtime>,
}

impl Machine {
    pub fn new() -> Result<Machine, Fault> {
        let failed = |what: &str, error: String| Fault::internal(format!("{what}: {error}"));
        let engine = running().map_err(|error| failed("making the engine", format!("{error:#}")))?;
        let mut linker = Linker::new(&engine);
        World::add_to_linker::<State, HasSelf<State>>(&mut linker, |state| state)
            .map_err(|error| failed("linking the interface", format!("{error:#}")))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads())
            .max_blocking_threads(BLOCKING_THREADS)
            .event_interval(TIMERS_EVERY)
            .thread_name("aman-guest")
            // What needs the network runs on the daemon's runtime; without it a thread that waits is woken for less.
            .enable_time()
            .build()
            .map_err(|error| failed("starting the runtime", error.to_string()))?;
        let ticker = Ticker::start(engine.weak()).map_err(|error| failed("starting the ticker", error.to_string()))?;
        let compatibility = compatibility(&engine);
        Ok(Machine { engine, linker, compatibility, ticker, runtime: Some(runtime) })
    }

    /// Where guests run.
    pub fn runtime(&self) -> &Handle {
        self.runtime.as_ref().expect("the runtime is there until the machine is dropped").handle()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.ticker.stop();
        if let Some(runtime) = self.runtime.take() {
            // The last plugin may be dropped in async code, where waiting for threads is not allowed.
            runtime.shutdown_background();
        }
    }
}

/// Advances the engine's epoch while a guest runs; otherwise its thread sleeps.
pub(crate) struct Ticker {
    running: AtomicUsize,
    asleep: AtomicBool,
    stopped: AtomicBool,
    thread: std::sync::OnceLock<Thread>,
}

impl Ticker {
    fn start(engine: EngineWeak) -> std::io::Result<Arc<Ticker>> {
        let ticker = Arc::new(Ticker {
            running: AtomicUsize::new(0),
            asleep: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            thread: std::sync::OnceLock::new(),
        });
        let state = Arc::clone(&ticker);
        let thread = std::thread::Builder::new().name("aman-tick".to_owned()).spawn(move || state.run(&engine))?;
        let _first = ticker.thread.set(thread.thread().clone());
        Ok(ticker)
    }

    fn run(&self, engine: &EngineWeak) {
        let mut idle_ticks = 0;
        while !self.stopped.load(Ordering::SeqCst) {
            idle_ticks = if self.running.load(Ordering::SeqCst) == 0 { idle_ticks + 1 } else { 0 };
            if idle_ticks > IDLE_TICKS {
                // Announced before the count is read again: whoever enters after that sees it and wakes the thread.
                self.asleep.store(true, Ordering::SeqCst);
                while self.running.load(Ordering::SeqCst) == 0 && !self.stopped.load(Ordering::SeqCst) {
                    std::thread::park();
                }
                self.asleep.store(false, Ordering::SeqCst);
                idle_ticks = 0;
            }
            std::thread::sleep(TICK);
            match engine.upgrade() {
                Some(engine) => engine.increment_epoch(),
                None => return,
            }
        }
    }

    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// A guest runs from now on, until [`Ticker::leave`].
    pub fn enter(&self) {
        self.running.fetch_add(1, Ordering::SeqCst);
        if self.asleep.load(Ordering::SeqCst) {
            self.wake();
        }
    }

    /// See [`Ticker::enter`].
    pub fn leave(&self) {
        self.running.fetch_sub(1, Ordering::SeqCst);
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what the child compiles, the daemon can run.
    #[test]
    fn both_engines_are_compatible() {
        let compiling = compiling().expect("the compiling engine can be made");
        let running = running().expect("the running engine can be made");
        assert_eq!(compatibility(&compiling), compatibility(&running));
    }

    /// Goal: nothing ticks while no guest runs.
    #[test]
    fn ticker_sleeps_without_guests() {
        let engine = compiling().expect("the engine can be made");
        let ticker = Ticker::start(engine.weak()).expect("a thread can be started");
        let wait_for = |asleep: bool| {
            let deadline = std::time::Instant::now() + Duration::from_secs(60);
            while ticker.asleep.load(Ordering::SeqCst) != asleep {
                assert!(std::time::Instant::now() < deadline, "asleep never became {asleep}");
                std::thread::yield_now();
            }
        };
        wait_for(true);
        ticker.enter();
        wait_for(false);
        ticker.leave();
        wait_for(true);
        ticker.stop();
    }
}
