//! The one thread that writes: drains the queue into a transaction, commits, answers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};
use tokio::sync::oneshot;

use super::{BATCH_MAX, CommitHook, Committed, Counters, Tx, events, storage};
use crate::error::Error;
use crate::id::Ids;

/// A lingering writer gathers more into one commit; it pays only when commits are slow and callers are many.
const LINGER_DIVISOR: u32 = 30;
const LINGER_MAX: Duration = Duration::from_millis(1);

/// A queued change.
pub(super) struct Job {
    isolated: bool,
    change: Box<dyn Change>,
}

trait Change: Send {
    /// Runs inside the transaction; false = failed, and the answer holds the error.
    fn run(&mut self, tx: &mut Tx<'_>) -> bool;
    /// The database's own error, when that is what failed.
    fn database_error(&self) -> Option<&rusqlite::Error>;
    /// Answers the caller; `undone` when the transaction did not commit.
    fn answer(self: Box<Self>, undone: Option<&str>);
}

struct Pending<R, F> {
    change: Option<F>,
    result: Option<Result<R, Error>>,
    answer: oneshot::Sender<Result<R, Error>>,
}

impl Job {
    pub(super) fn new<R, F>(isolated: bool, change: F, answer: oneshot::Sender<Result<R, Error>>) -> Job
    where
        R: Send + 'static,
        F: FnOnce(&mut Tx<'_>) -> Result<R, Error> + Send + 'static,
    {
        Job { isolated, change: Box::new(Pending { change: Some(change), result: None, answer }) }
    }
}

impl<R, F> Change for Pending<R, F>
where
    R: Send,
    F: FnOnce(&mut Tx<'_>) -> Result<R, Error> + Send,
{
    fn run(&mut self, tx: &mut Tx<'_>) -> bool {
        let Some(change) = self.change.take() else { return true };
        // A panic in one change must not end the thread that everyone's changes go through.
        let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| change(tx)));
        let result = ran.unwrap_or_else(|_| Err(Error::internal("changing the database")("the change panicked")));
        let ok = result.is_ok();
        self.result = Some(result);
        ok
    }

    fn database_error(&self) -> Option<&rusqlite::Error> {
        match &self.result {
            Some(Err(Error::Internal { source, .. })) => source.downcast_ref(),
            _ => None,
        }
    }

    fn answer(self: Box<Self>, undone: Option<&str>) {
        let result = match (self.result, undone) {
            (Some(Ok(value)), None) => Ok(value),
            (Some(Err(error)), None) => Err(error),
            (_, Some(why)) => Err(storage(why)),
            (None, None) => Err(storage("the change did not run")),
        };
        // A caller that went away does not mind.
        let _ = self.answer.send(result);
    }
}

pub(super) struct Writer {
    pub conn: Connection,
    pub ids: Ids,
    pub counters: Counters,
    pub queue: Receiver<Job>,
    pub queued: Arc<AtomicUsize>,
    pub commits: Arc<AtomicU64>,
    pub hook: Arc<OnceLock<CommitHook>>,
    pub trouble: Arc<Trouble>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.trouble.set("the writer has stopped", true);
    }
}

/// Why nothing can be written, for as long as it is so.
#[derive(Default)]
pub(super) struct Trouble {
    now: Mutex<Option<&'static str>>,
    for_good: OnceLock<&'static str>,
}

impl Trouble {
    fn set(&self, why: &'static str, for_good: bool) {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
        if for_good {
            let _ = self.for_good.set(why);
        }
    }

    fn clear(&self) {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// What stands in the way of writing now.
    pub fn now(&self) -> Option<&'static str> {
        self.for_good().or(*self.now.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What only an operator can mend.
    pub fn for_good(&self) -> Option<&'static str> {
        self.for_good.get().copied()
    }
}

impl Writer {
    /// Works until every [`super::Store`] handle is gone.
    pub fn run(mut self) {
        let mut last_commit = Duration::ZERO;
        let mut batch: Vec<Job> = Vec::new();
        while let Ok(first) = self.queue.recv() {
            batch.push(first);
            self.gather(&mut batch, last_commit);
            self.queued.fetch_sub(batch.len(), Ordering::Relaxed);
            let begun = Instant::now();
            let done = self.transact(&mut batch);
            last_commit = begun.elapsed();
            match done {
                Ok(committed) => {
                    self.commits.fetch_add(1, Ordering::Relaxed);
                    self.trouble.clear();
                    // Before the answers: whoever has one may ask the streams for what it was told.
                    if let Some(hook) = self.hook.get() {
                        hook(committed);
                    }
                    for job in batch.drain(..) {
                        job.change.answer(None);
                    }
                }
                Err(undone) => self.fail(&mut batch, &undone),
            }
        }
    }

    /// Takes what is queued; with company, waits a small part of the last commit's time for more.
    fn gather(&self, batch: &mut Vec<Job>, last_commit: Duration) {
        let drain = |batch: &mut Vec<Job>| {
            while batch.len() < BATCH_MAX
                && let Ok(job) = self.queue.try_recv()
            {
                batch.push(job);
            }
        };
        drain(batch);
        if batch.len() < 2 || batch.len() == BATCH_MAX {
            return;
        }
        let until = Instant::now() + (last_commit / LINGER_DIVISOR).min(LINGER_MAX);
        while batch.len() < BATCH_MAX {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            match self.queue.recv_timeout(left) {
                Ok(job) => batch.push(job),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return,
            }
            drain(batch);
        }
    }

    fn transact(&mut self, batch: &mut [Job]) -> Result<Committed, Undone> {
        execute(&self.conn, "BEGIN IMMEDIATE")?;
        let mut tx = Tx {
            conn: &self.conn,
            ids: self.ids,
            counters: self.counters,
            committed: Committed::default(),
            types: HashMap::new(),
        };
        for job in batch.iter_mut() {
            if job.isolated {
                run_isolated(job, &mut tx)?;
            } else if !job.change.run(&mut tx) {
                return Err(Undone::by(job.change.database_error()));
            }
        }
        events::flush_types(&mut tx)?;
        execute(tx.conn, "COMMIT")?;
        self.counters = tx.counters;
        Ok(tx.committed)
    }

    /// Undoes the transaction, tells every caller, and leaves the daemon able to try again.
    fn fail(&mut self, batch: &mut Vec<Job>, undone: &Undone) {
        if !self.conn.is_autocommit()
            && let Err(error) = execute(&self.conn, "ROLLBACK")
        {
            tracing::error!(%error, "The database could not be rolled back.");
        }
        tracing::error!(error = undone.detail, "A transaction was not committed; its callers were told.");
        self.trouble.set(undone.why, undone.for_good);
        for job in batch.drain(..) {
            job.change.answer(Some(undone.why));
        }
    }
}

fn run_isolated(job: &mut Job, tx: &mut Tx<'_>) -> Result<(), Undone> {
    let (counters, events) = (tx.counters, tx.committed.events.len());
    let types = std::mem::take(&mut tx.types);
    let deliveries = tx.committed.deliveries;
    execute(tx.conn, "SAVEPOINT change")?;
    if !job.change.run(tx) {
        if let Some(error) = job.change.database_error()
            && is_machine_failure(error)
        {
            return Err(Undone::by(Some(error)));
        }
        execute(tx.conn, "ROLLBACK TO change")?;
        // What was woken stays woken: looking for work in vain costs nothing.
        tx.counters = counters;
        tx.committed.events.truncate(events);
        tx.committed.deliveries = deliveries;
        tx.types.clear();
    }
    for (kind, count) in types {
        events::add_count(&mut tx.types, kind, count);
    }
    execute(tx.conn, "RELEASE change")?;
    Ok(())
}

/// Why a transaction did not commit.
struct Undone {
    why: &'static str,
    for_good: bool,
    detail: String,
}

impl Undone {
    fn by(error: Option<&rusqlite::Error>) -> Undone {
        let (why, for_good) = match error.and_then(rusqlite::Error::sqlite_error_code) {
            Some(ErrorCode::DiskFull) => ("the disk is full", false),
            Some(ErrorCode::ReadOnly) => ("the disk is read-only", false),
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => ("the database is damaged", true),
            Some(ErrorCode::SystemIoFailure) => ("the disk answered with an error", false),
            _ => ("the database refused the write", false),
        };
        Undone { why, for_good, detail: error.map_or_else(|| "a change failed".to_owned(), ToString::to_string) }
    }
}

impl From<rusqlite::Error> for Undone {
    fn from(error: rusqlite::Error) -> Undone {
        Undone::by(Some(&error))
    }
}

/// True for failures of the machine, which spoil the transaction for everyone in it.
fn is_machine_failure(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(
            ErrorCode::DiskFull
                | ErrorCode::ReadOnly
                | ErrorCode::DatabaseCorrupt
                | ErrorCode::NotADatabase
                | ErrorCode::SystemIoFailure
                | ErrorCode::OutOfMemory
        )
    )
}

fn execute(conn: &Connection, sql: &str) -> rusqlite::Result<()> {
    conn.prepare_cached(sql)?.execute([]).map(|_| ())
}
