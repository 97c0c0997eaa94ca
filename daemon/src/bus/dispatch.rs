//! Delivery: one lane per consumer takes what is ready from the store, runs the attempts, settles them.
//!
//! A lane acts on what it reads; a wake-up only tells it when to look. It sleeps until it is woken or the next waiting
//! retry is due, so an idle daemon has no timer. Lanes share nothing: a slow consumer delays no other.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::publish::{Bus, Inner};
use super::router::Entry;
use super::settle::{self, Settled};
use super::{Attempt, Concurrency, Failure, Outcome};
use crate::clock::Millis;
use crate::error::Error;
use crate::event::{Delivery as Mode, Priority};
use crate::id::DeliveryId;
use crate::store::dead_letters::Reason;
use crate::store::deliveries::{self, Ready};

/// Rows that a lane reads ahead.
const READ_AHEAD: usize = 128;
/// How long a cancelled attempt may take to clean up before it is dropped.
const CANCEL_GRACE: Duration = Duration::from_secs(5);
/// A waiting retry is looked at again after at most this long, so that a clock that jumped cannot hold it for ever.
const LOOK_AGAIN_MAX: Duration = Duration::from_secs(60);

/// The bus's handle on a consumer's lane. Dropping it ends the lane.
pub struct Lane {
    signal: Arc<Signal>,
    entry: Arc<arc_swap::ArcSwap<Entry>>,
    stop: CancellationToken,
}

#[derive(Default)]
struct Signal {
    notify: Notify,
    /// The most urgent rank among the wake-ups since the last look; `i64::MAX` = none.
    rank: AtomicI64,
}

impl Lane {
    /// Has the lane look for work.
    pub fn wake(&self, priority: Priority) {
        self.signal.rank.fetch_min(priority.code(), Ordering::AcqRel);
        self.signal.notify.notify_one();
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Bus {
    /// Recovers what the last run left and begins to deliver. Consumers must be registered before.
    pub async fn start(&self) -> Result<(), Error> {
        settle::recover(self).await?;
        let store = self.store().clone();
        let woken = store.read(deliveries::consumers_with_work).await?;
        if let Ok(lanes) = self.inner.lanes.lock() {
            for (consumer, priority) in woken {
                if let Some(lane) = lanes.get(&consumer) {
                    lane.wake(priority);
                }
            }
        }
        let bus = self.clone();
        self.inner.lane_tasks.spawn(async move {
            if let Ok(counts) = bus.store().read(deliveries::open_counts).await {
                let waiting: i64 = counts.iter().map(|(_, count)| count).sum();
                bus.inner.stats.pending.store(waiting, Ordering::Relaxed);
            }
        });
        Ok(())
    }

    /// Refuses new work, lets attempts end for up to `grace`, then cancels them; what was cut off is recovered at the
    /// next start. True when everything ended by itself.
    pub async fn drain(&self, grace: Duration) -> bool {
        self.inner.draining.store(true, Ordering::Release);
        self.inner.stop.cancel();
        self.inner.lane_tasks.close();
        if tokio::time::timeout(grace, self.inner.lane_tasks.wait()).await.is_ok() {
            return true;
        }
        self.inner.abort.cancel();
        let _ = tokio::time::timeout(CANCEL_GRACE + Duration::from_secs(1), self.inner.lane_tasks.wait()).await;
        false
    }

    /// Gives each entry a lane, or its lane the new entry.
    pub(super) fn place_lanes(&self, entries: &[Arc<Entry>]) {
        let Ok(mut lanes) = self.inner.lanes.lock() else { return };
        for entry in entries {
            if let Some(lane) = lanes.get(&entry.id) {
                lane.entry.store(Arc::clone(entry));
                lane.wake(Priority::High);
                continue;
            }
            let signal = Arc::new(Signal { notify: Notify::new(), rank: AtomicI64::new(i64::MAX) });
            let shared = Arc::new(arc_swap::ArcSwap::from(Arc::clone(entry)));
            let stop = self.inner.stop.child_token();
            let runner = Runner {
                bus: self.clone(),
                entry: Arc::clone(&shared),
                signal: Arc::clone(&signal),
                stop: stop.clone(),
                in_flight: HashSet::new(),
                running: JoinSet::new(),
                buffer: VecDeque::new(),
                more: false,
                due_ms: None,
            };
            self.inner.lane_tasks.spawn(runner.run());
            lanes.insert(entry.id, Lane { signal, entry: shared, stop });
        }
    }
}

struct Runner {
    bus: Bus,
    entry: Arc<arc_swap::ArcSwap<Entry>>,
    signal: Arc<Signal>,
    stop: CancellationToken,
    in_flight: HashSet<DeliveryId>,
    running: JoinSet<Ended>,
    buffer: VecDeque<Ready>,
    /// There may be ready deliveries beyond the buffer.
    more: bool,
    /// When the next waiting retry is due.
    due_ms: Option<Millis>,
}

/// What the end of an attempt means for the lane.
struct Ended {
    id: DeliveryId,
    /// Its end can make others ready: a key or the whole lane was held.
    frees: bool,
    /// When it is tried again.
    again_ms: Option<Millis>,
}

impl Runner {
    async fn run(mut self) {
        loop {
            self.fill().await;
            let due = self.sleep_for();
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                Some(ended) = self.running.join_next(), if !self.running.is_empty() => self.ended(ended),
                () = self.signal.notify.notified() => self.woken(),
                () = tokio::time::sleep(due.unwrap_or_default()), if due.is_some() => {
                    // Due retries go first: what was read ahead is read again behind them.
                    self.buffer.clear();
                    (self.more, self.due_ms) = (true, None);
                }
            }
        }
        while self.running.join_next().await.is_some() {}
    }

    /// Starts as many attempts as may run side by side, reading on when it runs out.
    async fn fill(&mut self) {
        let entry = self.entry.load_full();
        if entry.spec.standing != super::Standing::Active {
            // What was delivered to it before stays, and runs when it is active again.
            self.buffer.clear();
            return;
        }
        let width = match entry.spec.concurrency {
            Concurrency::Serial => 1,
            Concurrency::Parallel(width) => width.max(1),
        };
        while self.running.len() < width && !self.stop.is_cancelled() {
            if self.buffer.is_empty() && self.more {
                self.read(&entry).await;
            }
            let Some(ready) = self.buffer.pop_front() else { return };
            self.in_flight.insert(ready.id);
            let frees = ready.keyed || entry.spec.concurrency == Concurrency::Serial;
            let (bus, entry) = (self.bus.clone(), Arc::clone(&entry));
            self.running.spawn(async move {
                let id = ready.id;
                let again_ms = match attempt(&bus, &entry, ready).await {
                    Settled::Waits(at_ms) => Some(at_ms),
                    Settled::Ended => None,
                };
                Ended { id, frees, again_ms }
            });
        }
    }

    async fn read(&mut self, entry: &Entry) {
        self.signal.rank.store(i64::MAX, Ordering::Release);
        self.more = false;
        let (ids, id, now_ms) = (self.bus.store().ids(), entry.id, self.bus.clock().now_ms());
        let serial = entry.spec.concurrency == Concurrency::Serial;
        let limit = self.in_flight.len() + READ_AHEAD;
        let read = self.bus.store().read(move |conn| {
            if serial {
                return Ok((deliveries::serial(conn, ids, id, READ_AHEAD)?, None));
            }
            Ok((deliveries::parallel(conn, ids, id, now_ms, limit)?, deliveries::next_retry(conn, id)?))
        });
        match read.await {
            Ok((found, next)) => {
                self.more = found.len() >= READ_AHEAD.min(limit);
                self.due_ms = next.filter(|at| *at > now_ms);
                self.take(found, serial, now_ms);
            }
            Err(error) => {
                tracing::error!(consumer = entry.spec.name, error = ?error, "Deliveries could not be read.");
                self.due_ms = Some(now_ms + 1000);
            }
        }
    }

    fn take(&mut self, found: Vec<Ready>, serial: bool, now_ms: Millis) {
        for ready in found {
            if serial && (self.in_flight.contains(&ready.id) || ready.next_ms.is_some_and(|at| at > now_ms)) {
                // The oldest one holds the rest.
                if !self.in_flight.contains(&ready.id) && self.buffer.is_empty() {
                    self.due_ms = ready.next_ms;
                }
                self.more = false;
                return;
            }
            if !self.in_flight.contains(&ready.id) {
                self.buffer.push_back(ready);
            }
        }
        if self.buffer.is_empty() {
            self.more = false;
        }
    }

    fn ended(&mut self, ended: Result<Ended, tokio::task::JoinError>) {
        match ended {
            Ok(ended) => {
                self.in_flight.remove(&ended.id);
                self.more |= ended.frees;
                if let Some(at_ms) = ended.again_ms {
                    self.due_ms = Some(self.due_ms.map_or(at_ms, |due| due.min(at_ms)));
                    if self.entry.load().spec.concurrency == Concurrency::Serial {
                        // It goes before what was read ahead.
                        self.buffer.clear();
                    }
                }
            }
            Err(error) => {
                tracing::error!(%error, "An attempt's task ended abnormally; its lane reads again.");
                self.in_flight.clear();
                self.more = true;
            }
        }
    }

    fn woken(&mut self) {
        self.more = true;
        let urgent = self.signal.rank.load(Ordering::Acquire);
        let parallel = self.entry.load().spec.concurrency != Concurrency::Serial;
        if parallel && self.buffer.front().is_some_and(|next| urgent < next.event.sent.priority.code()) {
            self.buffer.clear();
        }
    }

    fn sleep_for(&self) -> Option<Duration> {
        let wait = (self.due_ms? - self.bus.clock().now_ms()).max(0);
        Some(Duration::from_millis(wait.unsigned_abs()).min(LOOK_AGAIN_MAX))
    }
}

/// Runs one attempt from claim to settlement.
async fn attempt(bus: &Bus, entry: &Arc<Entry>, ready: Ready) -> Settled {
    let inner: &Inner = &bus.inner;
    let now_ms = inner.clock.now_ms();
    if ready.event.is_expired(now_ms) {
        return settle::expire(bus, entry, &ready).await;
    }
    if ready.attempt >= entry.spec.retry.max_attempts {
        let failure = Failure::new("Every attempt was cut off by the end of the daemon.");
        return settle::die(bus, entry, &ready, Reason::AttemptsExhausted, failure).await;
    }
    let once = ready.event.sent.delivery == Mode::AtMostOnce;
    if entry.spec.acts_outside || once {
        let (id, outside) = (ready.id, entry.spec.acts_outside);
        let lease_ms = now_ms + i64::try_from(entry.spec.timeout.as_millis()).unwrap_or(i64::MAX / 4);
        match inner.store.write_hot(move |tx| deliveries::claim(tx, id, lease_ms, outside)).await {
            Ok(true) => {}
            Ok(false) => return Settled::Ended,
            Err(error) => {
                tracing::warn!(%error, "A claim could not be stored; the lane tries again.");
                tokio::time::sleep(Duration::from_secs(1)).await;
                return Settled::Waits(inner.clock.now_ms());
            }
        }
    }
    inner.stats.attempts.fetch_add(1, Ordering::Relaxed);
    let number = ready.attempt + 1;
    match run(inner, entry, &ready, number).await {
        Ran::Outcome(Outcome::Done(effects)) => settle::done(bus, entry, &ready, effects).await,
        Ran::Outcome(Outcome::Reject(failure)) => settle::die(bus, entry, &ready, Reason::Rejected, failure).await,
        Ran::Outcome(Outcome::Retry(failure, after)) => {
            let drawn = entry.spec.retry.wait_drawn(number, fastrand::f64());
            match drawn.map(|wait| after.unwrap_or(wait)) {
                Some(wait) if !once => settle::wait(bus, &ready, wait, failure).await,
                _ if failure.timed_out => settle::die(bus, entry, &ready, Reason::Timeout, failure).await,
                _ => settle::die(bus, entry, &ready, Reason::AttemptsExhausted, failure).await,
            }
        }
        // Not settled: the next start recovers it as cut off.
        Ran::Aborted => Settled::Ended,
    }
}

enum Ran {
    Outcome(Outcome),
    Aborted,
}

/// Runs the consumer under its time limit, apart from the lane, so that a panic is a failed attempt.
async fn run(inner: &Inner, entry: &Arc<Entry>, ready: &Ready, number: u32) -> Ran {
    let cancel = inner.abort.child_token();
    let attempt = Attempt {
        event: Arc::clone(&ready.event),
        delivery: ready.id,
        delivery_id: inner.store.ids().delivery(ready.event.received_ms, ready.id).to_string(),
        number,
        cancel: cancel.clone(),
    };
    let consumer = Arc::clone(&entry.consumer);
    let mut task = tokio::spawn(async move { consumer.deliver(attempt).await });
    let limit = entry.spec.timeout;
    let timed_out = tokio::select! {
        ended = &mut task => return ran(ended),
        () = tokio::time::sleep(limit) => true,
        () = inner.abort.cancelled() => false,
    };
    cancel.cancel();
    let late = tokio::time::timeout(CANCEL_GRACE, &mut task).await;
    task.abort();
    if !timed_out {
        return Ran::Aborted;
    }
    // An attempt that ended well while it was being cancelled has still run out of time.
    let mut failure = Failure::new(format!("The attempt took longer than {} ms.", limit.as_millis()));
    if let Ok(Ok(Outcome::Retry(inner, _) | Outcome::Reject(inner))) = late {
        failure.chain.extend(inner.chain);
    }
    failure.timed_out = true;
    Ran::Outcome(Outcome::Retry(failure, None))
}

fn ran(ended: Result<Outcome, tokio::task::JoinError>) -> Ran {
    Ran::Outcome(ended.unwrap_or_else(|error| {
        tracing::error!(%error, "A consumer panicked; the attempt counts as failed.");
        Outcome::Retry(Failure::new("The consumer ended abnormally; see the log."), None)
    }))
}
