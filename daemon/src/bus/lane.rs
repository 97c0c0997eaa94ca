//! A consumer's lane: a task that takes what is ready from the store and starts its attempts.
//!
//! A lane acts on what it reads; a wake-up only tells it when to look. It sleeps until it is woken or the next waiting
//! retry is due, so an idle daemon has no timer. Lanes share nothing: a slow consumer delays no other. A lane outlives
//! its consumer's absence, so that no attempt of a consumer that comes back meets one that still runs.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::dispatch;
use super::publish::Bus;
use super::router::Entry;
use super::settle::Settled;
use super::{Concurrency, Standing};
use crate::clock::Millis;
use crate::error::Error;
use crate::event::Priority;
use crate::id::DeliveryId;
use crate::store::deliveries::{self, Page, Ready};

/// Rows that a lane reads ahead.
const READ_AHEAD: usize = 128;
/// A waiting retry is looked at again after at most this long, so that a clock that jumped cannot hold it for ever.
const LOOK_AGAIN_MAX: Duration = Duration::from_secs(60);
/// How long after a failure to read, or an abnormal end, a lane looks again.
const TROUBLE_WAIT_MS: Millis = 1000;
/// Ranks: high, normal, low.
const RANKS: usize = 3;

/// The bus's handle on a lane.
pub struct Lane {
    signal: Arc<Signal>,
    entry: Arc<arc_swap::ArcSwap<Entry>>,
}

#[derive(Default)]
struct Signal {
    notify: Notify,
    /// Ranks with new deliveries since the last look, a bit each.
    ranks: AtomicU8,
    /// Everything is to be read anew: an older delivery was opened again, or the consumer changed.
    anew: AtomicBool,
}

impl Lane {
    /// Starts a lane. It looks for work once it is woken.
    pub(super) fn start(bus: &Bus, entry: &Arc<Entry>) -> Lane {
        let signal = Arc::new(Signal::default());
        let shared = Arc::new(arc_swap::ArcSwap::from(Arc::clone(entry)));
        let runner = Runner {
            bus: bus.clone(),
            entry: Arc::clone(&shared),
            signal: Arc::clone(&signal),
            stop: bus.inner.stop.clone(),
            running: JoinSet::new(),
            attempts: HashMap::new(),
            in_flight: HashSet::new(),
            buffer: BTreeMap::new(),
            cursor: [0; RANKS],
            more: [false; RANKS],
            freed: Vec::new(),
            due: false,
            due_ms: None,
            later: false,
        };
        bus.inner.lane_tasks.spawn(runner.run());
        Lane { signal, entry: shared }
    }

    /// Has the lane look for new deliveries of this priority.
    pub fn wake(&self, priority: Priority) {
        let bit = 1_u8 << u32::try_from(priority.code().clamp(0, 2)).unwrap_or(0);
        self.signal.ranks.fetch_or(bit, Ordering::AcqRel);
        self.signal.notify.notify_one();
    }

    /// Has the lane read everything anew.
    pub fn look_anew(&self) {
        self.signal.anew.store(true, Ordering::Release);
        self.signal.notify.notify_one();
    }

    /// Gives the lane what its consumer is now, and has it look.
    pub(super) fn set(&self, entry: Arc<Entry>) {
        self.store(entry);
        self.look_anew();
    }

    /// Gives the lane what its consumer is now, before the bus delivers.
    pub(super) fn store(&self, entry: Arc<Entry>) {
        self.entry.store(entry);
    }

    /// Keeps the lane and everything that waits in it, and begins nothing more, until the consumer comes back.
    pub(super) fn rest(&self) {
        let now = self.entry.load();
        let spec = super::ConsumerSpec { standing: Standing::Disabled, ..now.spec.clone() };
        let (own_rules, rule_ids, consumer) = (now.own_rules, now.rule_ids.clone(), Arc::clone(&now.consumer));
        self.entry.store(Arc::new(Entry { id: now.id, since: now.since, spec, own_rules, rule_ids, consumer }));
    }
}

struct Runner {
    bus: Bus,
    entry: Arc<arc_swap::ArcSwap<Entry>>,
    signal: Arc<Signal>,
    stop: CancellationToken,
    running: JoinSet<Ended>,
    /// Which task runs which delivery, for tasks that end abnormally.
    attempts: HashMap<Id, DeliveryId>,
    in_flight: HashSet<DeliveryId>,
    /// What was read ahead, by rank and age; by age alone for a serial consumer.
    buffer: BTreeMap<(i64, DeliveryId), Ready>,
    /// For each rank, the last delivery that was looked at.
    cursor: [i64; RANKS],
    /// For each rank, whether there may be deliveries behind the cursor.
    more: [bool; RANKS],
    /// Keys whose oldest delivery ended: the next one of each may run.
    freed: Vec<String>,
    /// Retries may be due.
    due: bool,
    /// When the next retry is due.
    due_ms: Option<Millis>,
    /// Everything will be read anew once what went wrong may be over.
    later: bool,
}

/// What the end of an attempt means for the lane.
struct Ended {
    id: DeliveryId,
    key: Option<String>,
    settled: Settled,
}

impl Runner {
    async fn run(mut self) {
        loop {
            self.fill().await;
            let due = self.sleep_for();
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                Some(ended) = self.running.join_next_with_id(), if !self.running.is_empty() => self.ended(ended),
                () = self.signal.notify.notified() => self.woken(),
                () = tokio::time::sleep(due.unwrap_or_default()), if due.is_some() => {
                    (self.due, self.due_ms) = (true, None);
                }
            }
        }
        while self.running.join_next().await.is_some() {}
    }

    fn woken(&mut self) {
        let ranks = self.signal.ranks.swap(0, Ordering::AcqRel);
        for (rank, more) in self.more.iter_mut().enumerate() {
            *more |= ranks & (1 << rank) != 0;
        }
        if self.signal.anew.swap(false, Ordering::AcqRel) {
            self.later = false;
            self.buffer.clear();
            (self.cursor, self.more, self.due) = ([0; RANKS], [true; RANKS], true);
        }
    }

    /// Starts as many attempts as may run side by side, reading on when it runs out.
    async fn fill(&mut self) {
        // What was cut off is settled first: an attempt that begins before would be taken for one of the last run.
        if !self.bus.inner.delivering.load(Ordering::Acquire) || self.later {
            return;
        }
        let entry = self.entry.load_full();
        if entry.spec.standing != Standing::Active {
            // What waits stays, and is read anew when the consumer is active again.
            self.buffer.clear();
            self.due_ms = None;
            return;
        }
        let (serial, width) = match entry.spec.concurrency {
            Concurrency::Serial => (true, 1),
            Concurrency::Parallel(width) => (false, width.max(1)),
        };
        while self.running.len() < width && !self.stop.is_cancelled() {
            let read = if serial { self.read_serial(&entry).await } else { self.read_parallel(&entry).await };
            if let Err(error) = read {
                tracing::error!(consumer = entry.spec.name, error = ?error, "Deliveries could not be read.");
                self.read_again_later();
                return;
            }
            let Some((_, ready)) = self.buffer.pop_first() else { return };
            self.begin(&entry, ready);
        }
    }

    fn begin(&mut self, entry: &Arc<Entry>, ready: Ready) {
        let (id, bus, entry) = (ready.id, self.bus.clone(), Arc::clone(entry));
        self.in_flight.insert(id);
        let handle = self.running.spawn(async move {
            let key = ready.key.clone();
            let settled = dispatch::attempt(&bus, &entry, ready).await;
            Ended { id, key, settled }
        });
        self.attempts.insert(handle.id(), id);
    }

    /// A serial consumer: the oldest open delivery goes first and, while it waits for a retry, holds the rest.
    async fn read_serial(&mut self, entry: &Entry) -> Result<(), Error> {
        let wanted = self.due || self.more.iter().any(|more| *more);
        // While the oldest waits, what comes in behind it changes nothing.
        let held = self.due_ms.is_some() && !self.due;
        if !wanted || held || !self.buffer.is_empty() {
            return Ok(());
        }
        (self.due, self.due_ms) = (false, None);
        let (ids, id, now_ms) = (self.bus.store().ids(), entry.id, self.bus.clock().now_ms());
        let read = move |conn: &_| deliveries::serial(conn, ids, id, READ_AHEAD);
        let page = self.bus.store().read_for_lane(read).await?;
        self.more = [page.more; RANKS];
        let never_ms = self.never_ms(entry, now_ms);
        for ready in page.ready {
            if !is_due(&ready, now_ms, never_ms) || self.in_flight.contains(&ready.id) {
                if self.buffer.is_empty() {
                    self.due_ms = ready.next_ms;
                }
                // What was not taken is read again when this one is over.
                self.more = [!self.buffer.is_empty(); RANKS];
                return Ok(());
            }
            self.buffer.insert((0, ready.id), ready);
        }
        Ok(())
    }

    /// A parallel consumer: due retries, then what is new, then what keys have freed; all sorted by the buffer.
    async fn read_parallel(&mut self, entry: &Entry) -> Result<(), Error> {
        let (ids, id, now_ms) = (self.bus.store().ids(), entry.id, self.bus.clock().now_ms());
        let never_ms = self.never_ms(entry, now_ms);
        for key in std::mem::take(&mut self.freed) {
            let read = move |conn: &_| deliveries::of_key(conn, ids, id, &key);
            if let Some(ready) = self.bus.store().read_for_lane(read).await?
                && is_due(&ready, now_ms, never_ms)
            {
                self.take(ready);
            }
        }
        // Whatever else was read ahead: a retry may be more urgent than all of it.
        if self.due && self.retries_at_hand() < READ_AHEAD / 2 {
            let read = move |conn: &_| {
                let page = deliveries::due(conn, ids, id, (now_ms, never_ms), READ_AHEAD)?;
                Ok((page, deliveries::next_retry(conn, id, (now_ms, never_ms))?))
            };
            let (page, next) = self.bus.store().read_for_lane(read).await?;
            (self.due, self.due_ms) = (page.more, next);
            page.ready.into_iter().for_each(|ready| self.take(ready));
        }
        for rank in 0..RANKS {
            // What is less urgent than what is at hand is left where it is.
            while self.more[rank] && self.at_hand(rank) < READ_AHEAD / 2 {
                let from = (i64::try_from(rank).unwrap_or(0), self.cursor[rank]);
                let read = move |conn: &_| deliveries::pending(conn, ids, id, from, READ_AHEAD);
                let Page { ready, last, more } = self.bus.store().read_for_lane(read).await?;
                self.more[rank] = more;
                self.cursor[rank] = last.map_or(self.cursor[rank], |last| last.0);
                ready.into_iter().for_each(|ready| self.take(ready));
            }
        }
        Ok(())
    }

    /// How much of this rank or a more urgent one was read ahead.
    fn at_hand(&self, rank: usize) -> usize {
        let rank = i64::try_from(rank).unwrap_or(0);
        self.buffer.range(..(rank + 1, DeliveryId(0))).count()
    }

    fn retries_at_hand(&self) -> usize {
        self.buffer.values().filter(|ready| ready.next_ms.is_some()).count()
    }

    fn take(&mut self, ready: Ready) {
        if !self.in_flight.contains(&ready.id) {
            self.buffer.insert((ready.event.sent.priority.code(), ready.id), ready);
        }
    }

    fn ended(&mut self, ended: Result<(Id, Ended), JoinError>) {
        match ended {
            Ok((task, ended)) => {
                self.attempts.remove(&task);
                self.in_flight.remove(&ended.id);
                let serial = self.entry.load().spec.concurrency == Concurrency::Serial;
                match ended.settled {
                    Settled::Waits(at_ms) => {
                        let known_ms = self.due_ms.unwrap_or(at_ms);
                        let never_ms = self.never_ms(&self.entry.load(), self.bus.clock().now_ms());
                        // The nearer would hide the other, which is due if the clock was set back since it was stored.
                        self.due |= known_ms.max(at_ms) > never_ms;
                        self.due_ms = Some(known_ms.min(at_ms));
                        if serial {
                            // It goes before what was read ahead.
                            self.buffer.clear();
                            self.due = true;
                        }
                    }
                    Settled::Ended if !serial => self.freed.extend(ended.key),
                    Settled::Ended => {}
                    Settled::Untouched => {
                        self.buffer.clear();
                        self.read_again_later();
                    }
                }
            }
            Err(error) => {
                tracing::error!(%error, "An attempt's task ended abnormally; its delivery is looked at again.");
                if let Some(id) = self.attempts.remove(&error.id()) {
                    self.in_flight.remove(&id);
                }
                self.read_again_later();
            }
        }
    }

    /// Everything is read anew, but not at once: what went wrong may go wrong again.
    fn read_again_later(&mut self) {
        if std::mem::replace(&mut self.later, true) {
            return;
        }
        let (signal, bus, stop) = (Arc::clone(&self.signal), self.bus.clone(), self.stop.clone());
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(TROUBLE_WAIT_MS.unsigned_abs())).await;
            tokio::select! {
                () = stop.cancelled() => {}
                () = bus.store().until_writable() => {}
            }
            signal.anew.store(true, Ordering::Release);
            signal.notify.notify_one();
        });
    }

    /// A retry that is stored for later than this was stored by a clock that was ahead of the present one.
    fn never_ms(&self, entry: &Entry, now_ms: Millis) -> Millis {
        now_ms.saturating_add(dispatch::longest_wait_ms(&entry.spec.retry)).saturating_add(TROUBLE_WAIT_MS)
    }

    fn sleep_for(&self) -> Option<Duration> {
        let (due_ms, now_ms) = (self.due_ms?, self.bus.clock().now_ms());
        if due_ms > self.never_ms(&self.entry.load(), now_ms) {
            // The clock was set back: what it is due by now is read anew.
            return Some(Duration::ZERO);
        }
        let wait = (due_ms - now_ms).max(0);
        Some(Duration::from_millis(wait.unsigned_abs()).min(LOOK_AGAIN_MAX))
    }
}

/// False while it waits for its next attempt. One that would wait longer than until `never_ms` was stored by a clock that
/// was ahead.
fn is_due(ready: &Ready, now_ms: Millis, never_ms: Millis) -> bool {
    ready.next_ms.is_none_or(|at| at <= now_ms || at > never_ms)
}
