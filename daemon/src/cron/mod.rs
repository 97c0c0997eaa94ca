//! Cron: a due job is a published event.
//!
//! The ledger in the database says what became of every slot; a row commits with the event of its run, so a slot fires
//! once whatever happens to the daemon or to the clock. What wakes the engine carries no data: it looks for itself.

mod commands;
mod engine;
mod plan;
mod sync;
mod tools;
mod view;
mod wake;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{Mutex, Notify};
use tokio_util::sync::CancellationToken;

use crate::bus::Bus;
use crate::clock::{Millis, rfc3339};
use crate::config::Applied;
use crate::error::Error;
use crate::id::sha256_hex;
use crate::schedule::Job;
use crate::store::Tx;
use crate::store::cron::{JobRow, Origin, Slot, Status};
use crate::tasks::Supervisor;

/// Jobs at the most.
const JOBS_MAX: usize = 1000;
/// How long the end of the engine is waited for.
const END_WAIT: Duration = Duration::from_secs(5);

/// The jobs of this daemon; cheap to clone.
#[derive(Clone)]
pub struct Cron {
    inner: Arc<Inner>,
}

struct Inner {
    bus: Bus,
    state: Mutex<State>,
    /// Told when there is something to look at.
    hint: Arc<Notify>,
    stop: CancellationToken,
    ended: CancellationToken,
}

/// What is in memory of the tables; changed only after they were.
#[derive(Default)]
struct State {
    jobs: BTreeMap<String, Held>,
    /// The links that the bus has: consumer, type, source.
    linked: Vec<(String, String, String)>,
    /// The count of changes among the consumers that the jobs of skills were last read at; none = never.
    synced: Option<u64>,
    /// A change failed, and may have been stored all the same: everything is read again.
    unsure: bool,
}

/// A job and what it has going on.
struct Held {
    row: JobRow,
    job: Job,
    /// Slots whose events are not all delivered.
    running: Vec<Slot>,
    /// Slots that wait for the end of those, oldest first.
    queued: VecDeque<Slot>,
    /// The first slot after the cursor.
    next_ms: Option<Millis>,
}

impl Held {
    fn new(row: JobRow, job: Job) -> Held {
        let next_ms = job.schedule.next(row.cursor_ms);
        Held { row, job, running: Vec::new(), queued: VecDeque::new(), next_ms }
    }

    fn set_cursor(&mut self, cursor_ms: Millis) {
        self.row.cursor_ms = cursor_ms;
        self.next_ms = self.job.schedule.next(cursor_ms);
    }

    /// When its next slot is due; none when it is off.
    fn due_ms(&self) -> Option<Millis> {
        let next_ms = self.next_ms.filter(|_| self.row.enabled)?;
        Some(next_ms + put_off_ms(&self.row.id, &self.job, next_ms))
    }
}

/// What a change writes besides, in the same transaction; it is given the answer to the change.
pub type Audit = Box<dyn FnOnce(&mut Tx<'_>, &Value) -> Result<(), Error> + Send>;

impl Cron {
    /// Loads the jobs, takes over those of the configuration and of the skills, and starts the engine. The skills must be
    /// registered with the bus, and the bus be started.
    pub async fn start(bus: &Bus, supervisor: &Supervisor, configured: &[(String, Job)]) -> Result<Cron, Error> {
        let cron = Cron {
            inner: Arc::new(Inner {
                bus: bus.clone(),
                state: Mutex::default(),
                hint: Arc::default(),
                stop: CancellationToken::new(),
                ended: CancellationToken::new(),
            }),
        };
        {
            let mut state = cron.inner.state.lock().await;
            cron.inner.load(&mut state).await?;
            cron.inner.take_configured(&mut state, configured).await?;
            cron.inner.take_skills(&mut state).await?;
            cron.inner.adopt_open(&mut state).await?;
        }
        let (inner, stop) = (Arc::clone(&cron.inner), supervisor.stop_token());
        supervisor.spawn("cron", move || Arc::clone(&inner).run(stop.clone()));
        Ok(cron)
    }

    /// What putting the jobs of the configuration file in force would change.
    pub async fn plan(&self, configured: &[(String, Job)]) -> Applied {
        self.inner.state.lock().await.plan(configured)
    }

    /// Puts the jobs of the configuration file in force as it is by now. The ledger stays, and what a job has going on
    /// goes on.
    pub async fn apply(&self, configured: &[(String, Job)]) -> Applied {
        let mut state = self.inner.state.lock().await;
        let theirs = |id: &&String| state.jobs.get(*id).is_some_and(|held| held.row.origin == Origin::Api);
        let theirs: Vec<String> = configured.iter().map(|(id, _)| id).filter(theirs).cloned().collect();
        let mut applied = state.plan(configured);
        if let Err(error) = self.inner.take_configured(&mut state, configured).await {
            state.unsure = true;
            let all = [&applied.started, &applied.changed, &applied.stopped].map(Clone::clone).concat();
            all.iter().for_each(|id| applied.fail(id, &error));
        }
        let reason = "A job of this id was added with `aman cron add`. Remove that one, or choose another id.";
        theirs.iter().for_each(|id| applied.fail(id, &Error::conflict("already_exists", reason)));
        self.inner.hint.notify_one();
        applied
    }

    /// Does everything that is due now, and answers when it is done; for tests that move the clock.
    pub async fn look(&self) -> Result<(), Error> {
        self.inner.look().await.map(drop)
    }

    /// Publishes nothing any more.
    pub async fn stop(&self) {
        self.inner.stop.cancel();
        let _late = tokio::time::timeout(END_WAIT, self.inner.ended.cancelled()).await;
    }
}

/// The source of a job's events.
fn source_of(id: &str) -> String {
    format!("cron/{id}")
}

/// `digest@2026-11-22T08:00:00Z`: the key of a slot, and the id of its event.
fn key_of(id: &str, slot_ms: Millis) -> String {
    format!("{id}@{}", rfc3339(slot_ms).replace(".000Z", "Z"))
}

/// By how much a slot is put off: anything up to the job's jitter, and the same for the same slot after a restart.
fn put_off_ms(id: &str, job: &Job, slot_ms: Millis) -> Millis {
    if job.jitter_s == 0 {
        return 0;
    }
    let digits = &sha256_hex(key_of(id, slot_ms).as_bytes())[..12];
    Millis::from_str_radix(digits, 16).unwrap_or(0) % (job.jitter_ms() + 1)
}

/// A row of the ledger as it is written first.
fn slot(id: &str, slot_ms: Millis, status: Status, now_ms: Millis) -> Slot {
    Slot {
        id: 0,
        key: key_of(id, slot_ms),
        job: id.to_owned(),
        slot_ms,
        until_ms: None,
        manual: false,
        status,
        reason: None,
        made_ms: now_ms,
        started_ms: (status == Status::Running).then_some(now_ms),
        ended_ms: (status == Status::Skipped).then_some(now_ms),
        error: None,
    }
}

impl Inner {
    fn now_ms(&self) -> Millis {
        self.bus.clock().now_ms()
    }
}
