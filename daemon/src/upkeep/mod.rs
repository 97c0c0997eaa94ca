//! Upkeep: removes what was kept long enough, and gives the room back, so that the database stays as large as
//! `[bus] retention` says; and makes copies of it as `[backup]` says.
//!
//! A run goes in small steps on the writer, with a pause after each, so that pushes hardly notice. It begins at the
//! start, when the oldest row is due, when the database has grown past its limit, and when the limits change: no timer
//! ticks in between.

mod backups;
mod run;

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use serde_json::{Value, json};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use crate::bus::{Bus, Origin};
use crate::clock::Millis;
use crate::config::{self, Retention};
use crate::error::Error;
use crate::event::NewEvent;
use crate::store::audit::{self, Outcome, Record};
use crate::store::retention::{self, Aged};
use crate::store::{Store, Tx, space};
use crate::tasks::Supervisor;

pub use backups::{Backups, Standing};
pub use run::Report;

/// The type of the event that tells of a run.
const PRUNED: &str = "aman.retention.pruned";
/// The type of the event that tells that the limit of size cannot be kept.
const FULL: &str = "aman.retention.full";
/// Runs are this far apart at the least, or a hundredth of the shortest age if that is less, and not below the second.
const GAP_MAX: Duration = Duration::from_secs(3600);
const GAP_MIN: Duration = Duration::from_secs(1);
/// The longest sleep; a clock that jumps cannot hold a run for longer.
const SLEEP_MAX: Duration = Duration::from_secs(86_400);
/// How long a clock that would have everything removed must run on before it is believed: at the start of a machine it
/// may be wrong until it was set.
const DOUBT: Duration = Duration::from_secs(600);
/// A clock that is ahead of what has passed by this was set, or the machine slept.
const LEAP_MS: Millis = 3_600_000;
const DAY_MS: Millis = 86_400_000;

/// Counts since the start.
#[derive(Debug, Default)]
pub struct Counts {
    /// Runs that removed something.
    pub runs: AtomicU64,
    /// Events removed.
    pub events: AtomicU64,
    /// Bytes given back to the disk.
    pub given_back: AtomicU64,
    /// When the last run ended; 0 = none did.
    pub last_ms: AtomicI64,
}

/// A handle; cheap to clone.
#[derive(Clone)]
pub struct Upkeep {
    inner: Arc<Inner>,
    backups: Backups,
}

struct Inner {
    bus: Bus,
    policy: ArcSwap<Retention>,
    /// Changes whenever the policy does.
    changed: watch::Sender<()>,
    /// Held by the run.
    running: Mutex<()>,
    stop: CancellationToken,
    counts: Counts,
    /// Outlives an abnormal end of the task.
    trusted: std::sync::Mutex<Trusted>,
}

/// Writes the audit record of what was done, in the transaction that ends it.
pub type Recorder = Box<dyn FnOnce(&Tx<'_>, Value) -> Result<(), Error> + Send>;

impl Upkeep {
    /// Starts the task that keeps to `policy`, and the one that makes the copies that are `wanted`.
    pub fn start(bus: &Bus, supervisor: &Supervisor, policy: Retention, wanted: config::Backups) -> Upkeep {
        let now_ms = bus.clock().now_ms();
        let trusted = Trusted::new(bus.store().newest_at_open().unwrap_or(now_ms), now_ms);
        let inner = Inner {
            bus: bus.clone(),
            policy: ArcSwap::from_pointee(policy),
            changed: watch::Sender::new(()),
            running: Mutex::new(()),
            stop: supervisor.stop_token(),
            counts: Counts::default(),
            trusted: std::sync::Mutex::new(trusted),
        };
        let backups = Backups::start(bus, supervisor, wanted);
        let upkeep = Upkeep { inner: Arc::new(inner), backups };
        let task = upkeep.clone();
        supervisor.spawn("retention", move || {
            let task = task.clone();
            async move { task.work().await }
        });
        upkeep
    }

    /// Changes how long everything is kept, from now on.
    pub fn retune(&self, policy: Retention) {
        if **self.inner.policy.load() != policy {
            self.inner.policy.store(Arc::new(policy));
            self.inner.changed.send_replace(());
        }
    }

    fn policy(&self) -> Retention {
        **self.inner.policy.load()
    }

    /// How long a dead letter is kept after its last failure; none = for ever.
    pub fn letters_kept_ms(&self) -> Option<Millis> {
        millis(self.policy().dead_letters)
    }

    /// The copies of the database.
    pub fn backups(&self) -> &Backups {
        &self.backups
    }

    /// Counts since the start.
    pub fn counts(&self) -> &Counts {
        &self.inner.counts
    }

    fn store(&self) -> &Store {
        self.inner.bus.store()
    }

    /// Removes what is due now, whoever asks. `Conflict` while another run goes on.
    pub async fn prune(&self, record: Recorder) -> Result<Report, Error> {
        let _running = self.inner.running.try_lock().map_err(|_| in_progress())?;
        let (report, done) = run::Run::new(self, self.policy()).all().await;
        if done.is_err() && !report.is_worth_telling() {
            return done.map(|()| report);
        }
        let report = self.end(report, record).await;
        done.and(report)
    }

    /// What [`Upkeep::prune`] would remove; as far as that can be counted in a while.
    pub async fn due(&self) -> Result<Report, Error> {
        let (policy, ids, now_ms) = (self.policy(), self.store().ids(), self.now_ms());
        self.store().read_alone(move |conn| run::preview(conn, ids, &policy, now_ms)).await
    }

    /// Gives all free pages back to the disk; how many bytes that were. `Conflict` while a run goes on.
    pub async fn vacuum(&self, record: Recorder) -> Result<Value, Error> {
        let _running = self.inner.running.try_lock().map_err(|_| in_progress())?;
        let before = self.store().read(space::read).await?;
        let bytes = run::give_back(self, 0).await?;
        let after = self.store().read(space::read).await?;
        let told = json!({ "given_back": bytes, "before": before, "after": after });
        let detail = told.clone();
        self.store().write(move |tx| record(tx, detail)).await?;
        Ok(told)
    }

    async fn work(&self) -> Result<(), Error> {
        let (mut changed, mut growth) = (self.inner.changed.subscribe(), self.store().growth());
        loop {
            changed.mark_unchanged();
            growth.mark_unchanged();
            let wait = match self.doubt() {
                Some(doubt) => doubt,
                None => self.run_once().await?,
            };
            let until = tokio::time::Instant::now() + wait;
            loop {
                tokio::select! {
                    () = self.inner.stop.cancelled() => return Ok(()),
                    () = tokio::time::sleep_until(until) => break,
                    told = changed.changed() => if told.is_err() { return Ok(()) } else { break },
                    told = growth.changed() => match told {
                        Ok(()) if self.is_too_large().await? => break,
                        Ok(()) => {}
                        Err(_) => return Ok(()),
                    },
                }
            }
        }
    }

    fn now_ms(&self) -> Millis {
        self.inner.bus.clock().now_ms()
    }

    /// How long to wait before the clock is believed, when it says that all of something is to go.
    fn doubt(&self) -> Option<Duration> {
        let age_ms = shortest(&self.policy()).and_then(millis)?;
        let mut trusted = self.inner.trusted.lock().unwrap_or_else(PoisonError::into_inner);
        let (ahead_ms, left) = trusted.look(self.now_ms(), age_ms.max(DAY_MS))?;
        tracing::warn!(
            ahead_h = ahead_ms / 3_600_000,
            wait_s = left.as_secs(),
            "The clock is far ahead of what it said before. In case it is wrong, retention waits."
        );
        Some(left)
    }

    async fn is_too_large(&self) -> Result<bool, Error> {
        let limit = self.inner.policy.load().max_size;
        Ok(limit > 0 && self.store().read(space::read).await?.used_bytes().unsigned_abs() > limit)
    }

    /// One run of the task; how long to sleep after it.
    async fn run_once(&self) -> Result<Duration, Error> {
        let Ok(_running) = self.inner.running.try_lock() else { return Ok(GAP_MIN) };
        let policy = self.policy();
        let (report, done) = run::Run::new(self, policy).all().await;
        let young_ms = report.young_ms;
        if report.is_worth_telling() {
            let at_ms = self.now_ms();
            let record = move |tx: &Tx<'_>, detail| {
                let record = Record {
                    at_ms,
                    principal: "aman".to_owned(),
                    claimed_operator: None,
                    action: audit::PRUNE.to_owned(),
                    target: "retention".to_owned(),
                    outcome: Outcome::Done,
                    status: 200,
                    trace: None,
                    detail,
                    before_digest: None,
                    after_digest: None,
                };
                audit::append(tx, &record).map(drop)
            };
            let told = self.end(report, Box::new(record)).await;
            done.and(told.map(drop))?;
        } else {
            done?;
        }
        self.sleep(&policy, young_ms).await
    }

    /// Records a run, removes the audit records that are due, gives room back and tells of it.
    async fn end(&self, mut report: Report, record: Recorder) -> Result<Report, Error> {
        report.audit = run::audit(self, &report, record).await?;
        let space = self.store().read(space::read).await?;
        // What is about to be needed again is not given back.
        let keep_pages = ((space.pages - space.free_pages) / 10).max(256);
        report.given_back = run::give_back(self, keep_pages).await?;
        let counts = &self.inner.counts;
        counts.runs.fetch_add(1, Ordering::Relaxed);
        counts.events.fetch_add(report.events.unsigned_abs(), Ordering::Relaxed);
        counts.last_ms.store(self.now_ms(), Ordering::Relaxed);
        tracing::info!(
            events = report.events,
            bytes = report.bytes,
            given_back = report.given_back,
            "Retention removed what was kept long enough."
        );
        if report.is_full {
            tracing::warn!("The database is larger than bus.retention.max_size, and nothing more may be removed.");
            self.tell(FULL, &report).await;
        }
        if report.is_worth_telling() {
            self.tell(PRUNED, &report).await;
        }
        Ok(report)
    }

    /// Publishes what a run did, also while pushes are refused: that is when the run was needed most.
    async fn tell(&self, kind: &str, report: &Report) {
        self.inner.bus.announce(NewEvent::new("aman/retention", kind, &json!(report)), Origin::own("aman")).await;
    }

    /// How long nothing will be due: until the oldest row is, and no longer than what comes now takes to become due.
    async fn sleep(&self, policy: &Retention, young_ms: Option<Millis>) -> Result<Duration, Error> {
        // Keys and tokens expire even where everything else is kept for ever.
        let shortest = shortest(policy).unwrap_or(SLEEP_MAX);
        let policy = *policy;
        let next_ms = self
            .store()
            .read(move |conn| {
                let mut due = vec![young_ms.zip(millis(policy.max_age))];
                due.push(retention::oldest_aged(conn, Aged::DeadLetters)?.zip(millis(policy.dead_letters)));
                due.push(retention::oldest_aged(conn, Aged::Notifications)?.zip(millis(policy.notifications)));
                due.push(retention::oldest_aged(conn, Aged::CronRuns)?.zip(millis(policy.cron_runs)));
                due.push(retention::oldest_aged(conn, Aged::Instances)?.zip(millis(policy.workflows)));
                due.push(retention::oldest_aged(conn, Aged::Sessions)?.zip(millis(policy.sessions)));
                let background = retention::oldest_aged(conn, Aged::BackgroundSessions)?;
                due.push(background.zip(millis(policy.background_sessions)));
                due.push(audit::oldest_ms(conn)?.zip(millis(policy.audit)));
                Ok(due.into_iter().flatten().map(|(at, age)| at.saturating_add(age)).min())
            })
            .await?;
        let gap = (shortest / 100).clamp(GAP_MIN, GAP_MAX);
        let longest = shortest.clamp(gap, SLEEP_MAX);
        let wait = next_ms
            .map_or(longest, |next| Duration::from_millis(next.saturating_sub(self.now_ms()).max(0).unsigned_abs()));
        Ok(wait.clamp(gap, longest))
    }
}

fn in_progress() -> Error {
    Error::conflict("in_progress", "Retention or a vacuum is at work already. Wait for its end.")
}

/// A length of time in milliseconds; none for zero, which stands for ever.
fn millis(age: Duration) -> Option<Millis> {
    Millis::try_from(age.as_millis()).ok().filter(|age| *age > 0)
}

/// The shortest time that anything is kept; none when everything is for ever.
fn shortest(policy: &Retention) -> Option<Duration> {
    let ages = [
        policy.max_age,
        policy.dead_letters,
        policy.notifications,
        policy.cron_runs,
        policy.workflows,
        policy.sessions,
        policy.background_sessions,
        policy.audit,
    ];
    ages.into_iter().filter(|age| !age.is_zero()).min()
}

/// How far the clock is believed. What is stored while it is wrong proves nothing, so it is compared with what it said
/// before its last leap, and at a start with the newest event of the runs before.
struct Trusted {
    /// What the clock said when it was last believed.
    known_ms: Millis,
    /// The start, or the last leap.
    since: Instant,
    looked: Instant,
    looked_ms: Millis,
}

impl Trusted {
    fn new(known_ms: Millis, now_ms: Millis) -> Trusted {
        Trusted { known_ms, since: Instant::now(), looked: Instant::now(), looked_ms: now_ms }
    }

    /// How far the clock is ahead, and how long to wait before that is believed, if it is by more than `age_ms`.
    fn look(&mut self, now_ms: Millis, age_ms: Millis) -> Option<(Millis, Duration)> {
        let passed_ms = Millis::try_from(self.looked.elapsed().as_millis()).unwrap_or(Millis::MAX);
        let expected_ms = self.looked_ms.saturating_add(passed_ms);
        if now_ms.saturating_sub(expected_ms) > LEAP_MS {
            // One leap after the other: what was believed before the first one counts.
            if self.since.elapsed() >= DOUBT {
                self.known_ms = expected_ms;
            }
            self.since = Instant::now();
        }
        (self.looked, self.looked_ms) = (Instant::now(), now_ms);
        let (ahead_ms, left) = (now_ms.saturating_sub(self.known_ms), DOUBT.saturating_sub(self.since.elapsed()));
        (ahead_ms > age_ms && !left.is_zero()).then_some((ahead_ms, left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: whatever is stored meanwhile, a clock that leaps is not believed until it has run on for a while, nor one
    /// that is wrong from the start; one that is set back is.
    #[test]
    fn a_clock_that_leaps_is_doubted() {
        let begun_ms = 1_000 * DAY_MS;
        let look = |trusted: &mut Trusted, days: i64| {
            let doubt = trusted.look(begun_ms + days * DAY_MS, 30 * DAY_MS);
            doubt.map(|(ahead_ms, left)| (ahead_ms / DAY_MS, left > DOUBT / 2))
        };
        let mut trusted = Trusted::new(begun_ms, begun_ms);
        assert_eq!(look(&mut trusted, 0), None);
        assert_eq!(look(&mut trusted, 40), Some((40, true)));
        assert_eq!(look(&mut trusted, 40), Some((40, true)), "it stays in doubt, whatever came in");
        assert_eq!(look(&mut trusted, 41), Some((41, true)), "a second leap proves nothing of the first");
        assert_eq!(look(&mut trusted, 0), None, "it was set right");
        assert_eq!(look(&mut trusted, 20), None, "a machine that slept");
        let mut wrong_at_start = Trusted::new(begun_ms, begun_ms + 365 * DAY_MS);
        assert_eq!(look(&mut wrong_at_start, 365), Some((365, true)));
        let mut later = Trusted::new(begun_ms, begun_ms);
        later.since = later.since.checked_sub(2 * DOUBT).expect("the machine runs for longer");
        assert_eq!(look(&mut later, 40), Some((40, true)));
        later.since = later.since.checked_sub(2 * DOUBT).expect("the machine runs for longer");
        assert_eq!(look(&mut later, 40), None, "it has run on");
    }
}
