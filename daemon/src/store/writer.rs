//! The one thread that writes: drains the queue into a transaction, commits, answers.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};
use tokio::sync::oneshot;

use super::disk::{self, Files};
use super::fault::{Ending, Fault, Trouble};
use super::{BATCH_MAX, CommitHook, Committed, Counters, Durability, Tx, events, migrate};
use crate::clock::rfc3339;
use crate::error::Error;
use crate::id::Ids;

/// A lingering writer gathers more into one commit; it pays only when commits are slow and callers are many.
const LINGER_DIVISOR: u32 = 30;
const LINGER_MAX: Duration = Duration::from_millis(1);
/// Row numbers that are reserved at a time; each time costs one sync of the disk.
const RESERVED_AHEAD: i64 = 100_000;
/// While writing, the free space of the disk is asked for this often at the most.
const SPACE_LOOK: Duration = Duration::from_secs(1);
/// Before a commit the files are looked at unless the last commit, which looks at its end, was just now.
const FILES_LOOK: Duration = Duration::from_millis(20);
/// The first and the longest wait between two tries to write again. While all is well nothing is tried.
const PROBE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// Pages by which the database grows before it is told.
const GROWTH_PAGES: i64 = 1024;

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
    fn answer(self: Box<Self>, undone: Option<Fault>);
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

    fn answer(self: Box<Self>, undone: Option<Fault>) {
        let result = match (self.result, undone) {
            (Some(Ok(value)), None) => Ok(value),
            (Some(Err(error)), None) => Err(error),
            (_, Some(fault)) => Err(fault.error()),
            (None, None) => Err(Fault::Refused.error()),
        };
        // A caller that went away does not mind.
        let _ = self.answer.send(result);
    }
}

pub(super) struct Writer {
    pub conn: Connection,
    pub path: PathBuf,
    pub durability: Durability,
    pub files: Files,
    pub ids: Ids,
    pub counters: Counters,
    /// Numbers up to these are noted on disk as given out; none where each commit is on disk before it is told.
    pub reserved: Option<Counters>,
    pub queue: Receiver<Job>,
    pub queued: Arc<AtomicUsize>,
    pub commits: Arc<AtomicU64>,
    pub pages: tokio::sync::watch::Sender<i64>,
    pub hook: Arc<OnceLock<CommitHook>>,
    /// Commits that streams and lanes have not heard of, since it is not certain yet that they last; one at the most for
    /// each fault of the files.
    pub untold: Vec<Committed>,
    pub trouble: Arc<Trouble>,
    /// Bytes of the disk that are left free for work that is under way.
    pub keep_free: Arc<AtomicU64>,
    pub ending: Ending,
}

impl Writer {
    /// Works until every [`super::Store`] handle is gone.
    pub fn run(mut self) {
        let mut last_commit = Duration::ZERO;
        let (mut last_look, mut last_space): (Option<Instant>, Option<Instant>) = (None, None);
        let mut batch: Vec<Job> = Vec::new();
        loop {
            let first = match self.trouble.now() {
                None => self.queue.recv().ok(),
                Some(_) => self.recover(),
            };
            let Some(first) = first else { break };
            batch.push(first);
            self.gather(&mut batch, last_commit);
            self.queued.fetch_sub(batch.len(), Ordering::Relaxed);
            if last_space.is_none_or(|at| at.elapsed() > SPACE_LOOK) {
                last_space = Some(Instant::now());
                self.look_at_space();
            }
            // In a row of commits the one before has just looked.
            let rested = last_look.is_none_or(|at| at.elapsed() > FILES_LOOK);
            let missing = if rested { self.files.look(&self.conn) } else { None };
            if let Some(fault) = missing.or(self.trouble.now().filter(|fault| fault.blocks_all())) {
                self.fail(&mut batch, &Undone::files(fault, ""));
                continue;
            }
            let begun = Instant::now();
            let done = self.transact(&mut batch);
            last_commit = begun.elapsed();
            match done {
                Ok((committed, reserving)) => self.committed(&mut batch, committed, reserving),
                Err(undone) => self.fail(&mut batch, &undone),
            }
            last_look = Some(Instant::now());
        }
        if self.trouble.now() == Some(Fault::Moved) {
            // Closing would remove the log at the path, which may be another database's by now.
            std::mem::forget(self.conn);
        }
        drop(self.ending);
    }

    fn committed(&mut self, batch: &mut Vec<Job>, committed: Committed, reserving: Option<Counters>) {
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.untold.push(committed);
        let unreserved = reserving.and_then(|reserving| self.make_durable(reserving).err());
        if let Some(fault) = self.files.look(&self.conn) {
            return self
                .fail(batch, &Undone::files(fault, "The last commit went to files that have changed under aman."));
        }
        if let Some(error) = unreserved {
            // A power loss could give the numbers of this commit out again: nobody is told of them.
            return self.fail(batch, &Undone::files(Fault::DiskError, &error.to_string()));
        }
        // Before the answers: whoever has one may ask the streams for what it was told.
        for committed in std::mem::take(&mut self.untold) {
            if let Some(hook) = self.hook.get() {
                hook(committed);
            }
        }
        for job in batch.drain(..) {
            job.change.answer(None);
        }
    }

    /// Notes when little space is left, while there still is some to end what was begun.
    fn look_at_space(&self) {
        let keep = self.keep_free.load(Ordering::Relaxed);
        let free = self.path.parent().and_then(disk::free_bytes).unwrap_or(u64::MAX);
        match self.trouble.now() {
            None if free < keep => self.trouble.set(Some(Fault::LowSpace), &format!("{free} bytes are free")),
            // Some more than needed, so that it does not come and go.
            Some(Fault::LowSpace) if free >= keep.saturating_add(keep / 8) => self.trouble.set(None, ""),
            _ => {}
        }
    }

    /// Waits until writing works again or, when only new work is refused, for the next change. None: the end.
    fn recover(&mut self) -> Option<Job> {
        let mut wait = PROBE.0;
        while let Some(fault) = self.trouble.now() {
            let job = if fault.is_final() {
                self.queue.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                self.queue.recv_timeout(wait)
            };
            match job {
                Ok(job) if !fault.blocks_all() => return Some(job),
                Ok(job) => {
                    self.queued.fetch_sub(1, Ordering::Relaxed);
                    job.change.answer(Some(fault));
                }
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {
                    self.probe(fault);
                    wait = (wait * 2).min(PROBE.1);
                }
            }
        }
        self.queue.recv().ok()
    }

    /// Tries whether what stood in the way is over.
    fn probe(&mut self, fault: Fault) {
        if let Some(fault) = self.files.look(&self.conn) {
            return self.trouble.set(Some(fault), "");
        }
        if fault == Fault::LowSpace {
            return self.look_at_space();
        }
        let keep = self.keep_free.load(Ordering::Relaxed);
        let free = self.path.parent().and_then(disk::free_bytes).unwrap_or(u64::MAX);
        if fault == Fault::DiskFull && free < keep.max(disk::LITTLE_BYTES) {
            return;
        }
        match self.try_to_write() {
            Ok(()) => self.trouble.set(None, ""),
            Err(undone) => self.undone(&undone),
        }
    }

    fn try_to_write(&mut self) -> Result<(), Undone> {
        if matches!(self.trouble.now(), Some(Fault::DiskError | Fault::ReadOnly | Fault::Refused)) {
            // SQLite may hold a handle that has gone bad.
            let conn = Connection::open_with_flags(&self.path, super::WRITE_FLAGS)?;
            super::configure(&conn, self.durability).map_err(|error| Undone::from_error(&error))?;
            self.conn = conn;
        }
        self.roll_back();
        execute(&self.conn, "BEGIN IMMEDIATE")?;
        execute(&self.conn, "INSERT OR REPLACE INTO meta (key, value) VALUES ('probe', zeroblob(16384))")?;
        execute(&self.conn, "DELETE FROM meta WHERE key = 'probe'")?;
        execute(&self.conn, "COMMIT")?;
        if self.reserved.is_some() {
            self.files.sync_log().map_err(|error| Undone::files(Fault::DiskError, &error.to_string()))?;
        }
        self.files.look(&self.conn).map_or(Ok(()), |fault| Err(Undone::files(fault, "")))
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

    /// Commits the batch; numbers that this reserved are not on disk yet.
    fn transact(&mut self, batch: &mut [Job]) -> Result<(Committed, Option<Counters>), Undone> {
        execute(&self.conn, "BEGIN IMMEDIATE")?;
        let mut tx = Tx {
            conn: &self.conn,
            ids: self.ids,
            counters: self.counters,
            committed: Committed::default(),
            types: HashMap::new(),
            ending: false,
        };
        for job in batch.iter_mut() {
            if job.isolated {
                run_isolated(job, &mut tx)?;
            } else if !job.change.run(&mut tx) {
                return Err(Undone::by(job.change.database_error()));
            }
        }
        events::flush_types(&mut tx)?;
        let reserving = match self.reserved {
            Some(reserved) if !tx.ending && !tx.counters.within(reserved) => Some(reserve(tx.conn, tx.counters)?),
            _ => None,
        };
        let pages = tx.conn.prepare_cached("PRAGMA page_count")?.query_row([], |row| row.get(0))?;
        execute(tx.conn, "COMMIT")?;
        let (counters, committed, ending) = (tx.counters, tx.committed, tx.ending);
        self.counters = counters;
        self.tell_growth(pages);
        if ending && self.reserved.is_some() {
            self.reserved = Some(Counters { sequence: 0, delivery: 0 });
        }
        Ok((committed, reserving))
    }

    /// Puts the reservation on disk before any of its numbers is told.
    fn make_durable(&mut self, reserving: Counters) -> std::io::Result<()> {
        self.files.sync_log()?;
        self.reserved = Some(reserving);
        Ok(())
    }

    fn tell_growth(&self, pages: i64) {
        let told = *self.pages.borrow();
        if pages >= told + GROWTH_PAGES || pages < told {
            self.pages.send_if_modified(|known| std::mem::replace(known, pages) < pages);
        }
    }

    /// Undoes the transaction, tells every caller, and leaves the daemon able to try again.
    fn fail(&mut self, batch: &mut Vec<Job>, undone: &Undone) {
        self.undone(undone);
        // What the callers hear is what was found out about it.
        let fault = self.trouble.now().filter(|fault| fault.blocks_all()).unwrap_or(undone.fault);
        for job in batch.drain(..) {
            job.change.answer(Some(fault));
        }
    }

    fn undone(&mut self, undone: &Undone) {
        self.roll_back();
        if !undone.lasts {
            tracing::error!(error = undone.detail, "A transaction was not committed; its callers were told.");
            return;
        }
        let fault = match (self.files.look(&self.conn), self.path.parent()) {
            (Some(fault), _) => fault,
            (None, Some(folder)) if undone.fault == Fault::DiskError => disk::behind_error(folder),
            (None, _) => undone.fault,
        };
        let new = self.trouble.now() != Some(fault);
        self.trouble.set(Some(fault), &undone.detail);
        if new && fault == Fault::Moved && self.files.is_unlinked() {
            self.save();
        }
    }

    fn roll_back(&self) {
        if !self.conn.is_autocommit()
            && let Err(error) = execute(&self.conn, "ROLLBACK")
        {
            tracing::error!(%error, "The database could not be rolled back.");
        }
    }

    /// The files have no name any more, and end with this process: what is in them is written to a new one.
    fn save(&self) {
        let now = rfc3339(crate::clock::Clock::System.now_ms()).replace([':', '-'], "");
        let copy = self.path.with_file_name(format!("aman-saved-{now}.db"));
        // SQLite writes into an empty file that is there, and would make one that everybody may read.
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&copy);
        let saved = made.map_err(|error| error.to_string()).and_then(|_| {
            self.conn.execute("VACUUM INTO ?1", [copy.to_string_lossy()]).map_err(|error| {
                // Half a copy under a name that promises a whole one would be worse than none.
                let _gone = std::fs::remove_file(&copy);
                error.to_string()
            })
        });
        match saved {
            Ok(_) => tracing::error!(copy = %copy.display(), "The database was removed; everything in it was saved."),
            Err(error) => tracing::error!(error, copy = %copy.display(), "The database was removed and not saved."),
        }
    }
}

/// Notes the next range of numbers, beyond those that this transaction used.
fn reserve(conn: &Connection, used: Counters) -> Result<Counters, Undone> {
    let next = Counters { sequence: used.sequence + RESERVED_AHEAD, delivery: used.delivery + RESERVED_AHEAD };
    migrate::reserve(conn, next.sequence, next.delivery).map_err(|error| Undone::from_error(&error))?;
    Ok(next)
}

fn run_isolated(job: &mut Job, tx: &mut Tx<'_>) -> Result<(), Undone> {
    let (counters, events) = (tx.counters, tx.committed.events.len());
    let types = std::mem::take(&mut tx.types);
    let (deliveries, drafts) = (tx.committed.deliveries, tx.committed.drafts.len());
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
        tx.committed.drafts.truncate(drafts);
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
    fault: Fault,
    detail: String,
    /// False when the next transaction may well succeed.
    lasts: bool,
}

impl Undone {
    /// The files are not what they were.
    fn files(fault: Fault, detail: &str) -> Undone {
        Undone { fault, detail: detail.to_owned(), lasts: true }
    }

    fn by(error: Option<&rusqlite::Error>) -> Undone {
        let fault = Fault::of(error);
        let busy = || error.and_then(rusqlite::Error::sqlite_error_code) == Some(ErrorCode::DatabaseBusy);
        let lasts = fault != Fault::Refused || busy();
        Undone { fault, detail: error.map_or_else(|| "a change failed".to_owned(), ToString::to_string), lasts }
    }

    fn from_error(error: &Error) -> Undone {
        match error {
            Error::Internal { source, .. } => Undone::by(source.downcast_ref()),
            _ => Undone::files(Fault::Refused, &error.to_string()),
        }
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

impl Tx<'_> {
    /// Runs `change` so that what it removes is overwritten in the file, not only marked as free. What it adds to an index of
    /// words belongs in here as well: that may move others there, and leave what they were.
    pub(in crate::store) fn overwriting<R>(&self, change: impl FnOnce() -> Result<R, Error>) -> Result<R, Error> {
        let failed = |error| Error::internal("removing for good")(error);
        let set = |sql: &str| self.conn.query_row(sql, [], |_| Ok(())).map_err(failed);
        set("PRAGMA secure_delete = ON")?;
        let changed = change().and_then(|done| {
            // An index of words keeps its changes until a savepoint.
            self.conn.execute_batch("SAVEPOINT overwritten; RELEASE overwritten").map_err(failed).map(|()| done)
        });
        set("PRAGMA secure_delete = OFF")?;
        changed
    }
}
