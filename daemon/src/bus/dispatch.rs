//! Delivery: lanes are placed and drained here, and an attempt is run from its claim to its settlement.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::lane::Lane;
use super::publish::{Bus, Inner};
use super::retry::RetryPolicy;
use super::router::Entry;
use super::settle::{self, Settled, Unsettled};
use super::{Attempt, Failure, Outcome, spans};
use crate::clock::Millis;
use crate::error::Error;
use crate::event::Delivery as Mode;
use crate::store::dead_letters::Reason;
use crate::store::deliveries::{self, Ready};
use crate::telemetry::traces;

/// How long a cancelled attempt may take to clean up before it is dropped.
const CANCEL_GRACE: Duration = Duration::from_secs(5);
/// The longest wait that a consumer may ask for itself, besides its policy's own.
const ASKED_WAIT_MAX: Duration = Duration::from_secs(3600);
/// Deliveries of one step of giving up.
const GIVEN_UP_AT_ONCE: i64 = 256;
/// How long to wait at the least before what the store refused is tried again.
const REFUSED_WAIT: Duration = Duration::from_millis(500);

/// The longest that any retry of this policy waits, in milliseconds.
pub(super) fn longest_wait_ms(policy: &RetryPolicy) -> Millis {
    i64::try_from(policy.max.max(ASKED_WAIT_MAX).as_millis()).unwrap_or(i64::MAX / 4)
}

impl Bus {
    /// Recovers what the last run left and begins to deliver. A disk that takes nothing only delays that.
    pub async fn start(&self) {
        self.inner.lane_tasks.spawn(super::storage::tell_of_faults(self.clone()));
        if self.begin().await.is_err() {
            self.try_again(|bus| async move { bus.begin().await.is_ok() });
        }
    }

    /// Makes the attempt whenever the store may take it, until it succeeds or the daemon ends. Waits for nothing of that.
    pub(super) fn try_again<F>(&self, attempt: impl Fn(Bus) -> F + Send + 'static)
    where
        F: Future<Output = bool> + Send,
    {
        let bus = self.clone();
        self.inner.lane_tasks.spawn(async move {
            loop {
                tokio::select! {
                    () = bus.inner.stop.cancelled() => return,
                    () = bus.pause_until_writable() => {}
                }
                if attempt(bus.clone()).await {
                    return;
                }
            }
        });
    }

    /// Waits until trying again what the store refused makes sense: when its fault is over, and not at once.
    pub(super) async fn pause_until_writable(&self) {
        tokio::time::sleep(REFUSED_WAIT).await;
        self.store().until_writable().await;
    }

    async fn begin(&self) -> Result<(), Error> {
        for entry in self.router().entries() {
            settle::recover(self, entry).await.inspect_err(|error| {
                tracing::error!(error = ?error, "What was cut off could not be settled; deliveries wait until it is.");
            })?;
        }
        self.inner.delivering.store(true, Ordering::Release);
        if let Ok(lanes) = self.inner.lanes.lock() {
            lanes.values().for_each(Lane::look_anew);
        }
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

    /// Gives up, in small steps, what came until `until_ms` and waits for a consumer that was removed for good or is away
    /// for long: it would hold its events for ever, and meet whoever gets the name next. Between steps the writer is left to
    /// others. How many deliveries; not all of them when the daemon ends meanwhile.
    pub async fn give_up(&self, consumer: &str, until_ms: Millis) -> Result<i64, Error> {
        let mut all = 0;
        loop {
            let (name, begun) = (consumer.to_owned(), Instant::now());
            let look = move |conn: &_| deliveries::open_of(conn, &name, until_ms, GIVEN_UP_AT_ONCE);
            let open = self.store().read(look).await?;
            if open.is_empty() {
                return Ok(all);
            }
            let now_ms = self.clock().now_ms();
            let given_up = self.store().write(move |tx| deliveries::give_up(tx, &open, now_ms)).await?;
            self.inner.tell_ended();
            all += given_up;
            tokio::select! {
                biased;
                () = self.inner.stop.cancelled() => return Ok(all),
                () = tokio::time::sleep(begun.elapsed()) => {}
            }
        }
    }

    /// Gives each entry a lane, or its lane the new entry. What waits for it begins, once the bus delivers.
    pub(super) async fn place_lanes(&self, entries: &[Arc<Entry>]) -> Result<(), Error> {
        let known = |entry: &Entry| self.inner.lanes.lock().is_ok_and(|lanes| lanes.contains_key(&entry.id));
        for entry in entries {
            // A consumer that comes back while the daemon runs may have left something half done in an earlier run.
            if !known(entry) && self.inner.delivering.load(Ordering::Acquire) {
                settle::recover(self, entry).await?;
            }
            let Ok(mut lanes) = self.inner.lanes.lock() else { continue };
            let lane = lanes.entry(entry.id).or_insert_with(|| Lane::start(self, entry));
            if self.inner.delivering.load(Ordering::Acquire) {
                lane.set(Arc::clone(entry));
            } else {
                lane.store(Arc::clone(entry));
            }
        }
        Ok(())
    }
}

/// What is to become of a delivery after an attempt.
pub(super) enum End {
    /// It worked, and its effects are stored.
    Done(Settled),
    /// Its event is too old.
    Expires,
    /// It is given up.
    Dies(Reason, Failure),
    /// It was given up, and what its consumer had to say of that is stored.
    Died(Settled, Reason, Failure),
    /// It waits so long for another attempt.
    Waits(Duration, Failure),
    /// The attempt did not begin, and is made so much later.
    Postponed(Duration),
    /// Nobody knows, or nothing happened.
    Untold(Settled),
}

/// Runs one attempt from claim to settlement.
pub(super) async fn attempt(bus: &Bus, entry: &Arc<Entry>, ready: Ready) -> Settled {
    let span = spans::attempt(bus, entry, &ready);
    let end = attempted(bus, entry, &ready).await;
    let span = span.and_then(|span| spans::ended(span, &end));
    let settled = match end {
        End::Done(settled) | End::Untold(settled) | End::Died(settled, ..) => settled,
        End::Expires => settle::expire(bus, entry, &ready).await,
        End::Dies(reason, failure) => settle::die(bus, entry, &ready, reason, failure).await,
        End::Waits(wait, failure) => settle::wait(bus, &ready, wait, failure).await,
        End::Postponed(wait) => settle::postpone(bus, &ready, wait).await,
    };
    if let Some(span) = span {
        bus.traces().record(span);
    }
    settled
}

/// Makes an attempt; what worked is settled with its effects.
async fn attempted(bus: &Bus, entry: &Arc<Entry>, ready: &Ready) -> End {
    let inner: &Inner = &bus.inner;
    if let Some(absence) = entry.consumer.absence() {
        tokio::select! {
            later = absence => if let Some(later) = later {
                return End::Postponed(later);
            },
            // Nothing was noted of it: the next start begins anew.
            () = inner.abort.cancelled() => return End::Untold(Settled::Ended),
        }
    }
    let now_ms = inner.clock.now_ms();
    if ready.event.is_expired(now_ms) {
        return End::Expires;
    }
    if ready.attempt >= entry.spec.retry.max_attempts {
        let failure = Failure::new("Every attempt was cut off by the end of the daemon.");
        return End::Dies(Reason::AttemptsExhausted, failure);
    }
    let once = ready.event.sent.delivery == Mode::AtMostOnce;
    if entry.spec.acts_outside || once {
        let (id, outside) = (ready.id, entry.spec.acts_outside);
        let lease_ms = now_ms + i64::try_from(entry.spec.timeout.as_millis()).unwrap_or(i64::MAX / 4);
        match inner.store.write_hot(move |tx| deliveries::claim(tx, id, lease_ms, outside)).await {
            Ok(true) => {}
            Ok(false) => return End::Untold(Settled::Ended),
            Err(error) => {
                tracing::debug!(%error, "A claim could not be stored; the lane tries again.");
                return End::Untold(settle::unclaim(bus, ready).await);
            }
        }
    }
    inner.stats.attempts.fetch_add(1, Ordering::Relaxed);
    let number = ready.attempt + 1;
    match run(inner, entry, ready, number).await {
        Ran::Outcome(Outcome::Done(effects)) => match settle::done(bus, entry, ready, effects).await {
            Ok(settled) => End::Done(settled),
            Err(Unsettled::Dies(reason, failure)) => End::Dies(reason, failure),
            Err(Unsettled::Failed(failure)) => failed(entry, ready, failure, None),
        },
        Ran::Outcome(Outcome::Reject(failure)) => End::Dies(Reason::Rejected, failure),
        Ran::Outcome(Outcome::Buried(failure, effects)) => {
            match settle::buried(bus, entry, ready, &failure, *effects).await {
                Ok(settled) => End::Died(settled, Reason::Rejected, failure),
                Err(unstored) => failed(entry, ready, unstored, None),
            }
        }
        Ran::Outcome(Outcome::Retry(failure, after)) => failed(entry, ready, failure, after),
        Ran::Outcome(Outcome::Postponed(wait)) => End::Postponed(wait),
        // Not settled: the next start recovers it as cut off.
        Ran::Aborted => End::Untold(Settled::Ended),
    }
}

/// A failed attempt: it waits for another one, or was the last.
fn failed(entry: &Entry, ready: &Ready, failure: Failure, after: Option<Duration>) -> End {
    let once = ready.event.sent.delivery == Mode::AtMostOnce;
    let drawn = entry.spec.retry.wait_drawn(ready.attempt + 1, fastrand::f64());
    match drawn.map(|wait| after.map_or(wait, |after| after.min(ASKED_WAIT_MAX))) {
        Some(wait) if !once => End::Waits(wait, failure),
        _ if failure.timed_out => End::Dies(Reason::Timeout, failure),
        _ => End::Dies(Reason::AttemptsExhausted, failure),
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
    let mut task = match spans::handling(inner, ready, number) {
        None => tokio::spawn(async move { consumer.deliver(attempt).await }),
        traced => tokio::spawn(traces::within(traced, async move { consumer.deliver(attempt).await })),
    };
    let limit = entry.spec.timeout;
    let timed_out = tokio::select! {
        biased;
        ended = &mut task => return ran(ended),
        () = tokio::time::sleep(limit) => true,
        () = inner.abort.cancelled() => false,
    };
    cancel.cancel();
    let late = tokio::time::timeout(CANCEL_GRACE, &mut task).await;
    task.abort();
    if let Ok(Ok(postponed @ Outcome::Postponed(_))) = late {
        return Ran::Outcome(postponed);
    }
    if !timed_out {
        // What ended in the last moment has ended; anything else was cut off, and the next start takes it up.
        return match late {
            Ok(Ok(outcome @ (Outcome::Done(_) | Outcome::Reject(_) | Outcome::Buried(..)))) => Ran::Outcome(outcome),
            _ => Ran::Aborted,
        };
    }
    // An attempt that ended well while it was being cancelled has still run out of time.
    let mut failure = Failure::new(format!("The attempt took longer than {} ms.", limit.as_millis()));
    if let Ok(Ok(Outcome::Retry(inner, _) | Outcome::Reject(inner) | Outcome::Buried(inner, _))) = late {
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
