//! The durable truth: one SQLite file, one thread that writes it, a few connections that read it.
//!
//! Every change is a closure over a [`Tx`]. The writer thread drains whatever is queued into one transaction, commits
//! (with `durability = full` that is an fsync), hands what was appended to the commit hook and answers every caller.
//! The only module with SQL.

pub mod agents;
pub mod approvals;
pub mod audit;
pub mod backup;
mod base64_bytes;
pub mod chat;
pub mod check;
pub mod consumers;
pub mod cron;
pub mod dead_letters;
pub mod deliveries;
mod disk;
pub mod events;
pub mod fault;
pub mod files;
pub mod meant;
pub mod memory;
mod migrate;
pub mod notifications;
pub mod outbox;
pub mod overrides;
pub mod plugin_data;
pub mod plugins;
pub mod private;
pub mod query;
pub mod retention;
pub mod sinks;
pub mod skill_contents;
pub mod skill_words;
pub mod skills;
pub mod soul;
pub mod sources;
pub mod space;
pub mod tokens;
pub mod turns;
pub mod usage;
pub mod wal;
pub mod workflows;
mod writer;

use std::collections::{HashMap, HashSet};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::clock::Millis;
use crate::error::Error;
use crate::event::{Event, Priority};
use crate::id::{ConsumerId, DeliveryId, EventSeq, Ids};
use crate::telemetry::traces::Draft;
use disk::{Files, Identity};
use fault::{Ending, Fault, Trouble};
use wal::Lost;
use writer::Job;

/// Operations that may wait for the writer; one more is refused as `overloaded`.
pub const QUEUE_MAX: usize = 8192;
/// Operations that share one transaction at the most.
pub const BATCH_MAX: usize = 1024;
const READERS: usize = 5;
const LANE_READERS: usize = 2;
/// Questions that take long, side by side.
const READERS_ALONE: usize = 2;
const WRITE_FLAGS: OpenFlags = OpenFlags::SQLITE_OPEN_READ_WRITE.union(OpenFlags::SQLITE_OPEN_NO_MUTEX);
/// A log that became longer is cut to this after a checkpoint.
const WAL_BYTES_KEPT: u64 = 64 << 20;
const READ_WAIT: Duration = Duration::from_secs(20);

/// What a committed transaction added, for the streams and the dispatcher.
#[derive(Debug, Default)]
pub struct Committed {
    /// New events in order of sequence.
    pub events: Vec<Arc<Event>>,
    /// Consumers with new deliveries, and of which priorities.
    pub woken: HashSet<(ConsumerId, Priority)>,
    /// Consumers whose old deliveries were opened again.
    pub anew: Vec<ConsumerId>,
    /// Deliveries that were opened, less those that ended.
    pub deliveries: i64,
    /// True when an intent was added to the outbox.
    pub intents: bool,
    /// For the spans of events that were stored, or were there already (true).
    pub drafts: Vec<(Arc<Event>, Box<Draft>, bool)>,
}

/// A connection that reads, as [`Store::read`] hands it out.
pub type Reading = Connection;

/// Called on the writer thread after each commit; must not block.
pub type CommitHook = Box<dyn Fn(Committed) + Send + Sync>;

/// How long a write survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// An acknowledged write survives power loss.
    Full,
    /// An acknowledged write survives a crash of the process, not of the machine.
    Normal,
}

/// Numbers that rows get. They live with the writer, so that no number is used twice even after pruning.
#[derive(Debug, Clone, Copy)]
struct Counters {
    sequence: i64,
    delivery: i64,
}

impl Counters {
    /// True while every number up to these is reserved by `reserved`.
    fn within(self, reserved: Counters) -> bool {
        self.sequence <= reserved.sequence && self.delivery <= reserved.delivery
    }
}

/// A write transaction, and what becomes visible when it commits.
pub struct Tx<'a> {
    pub(in crate::store) conn: &'a Connection,
    ids: Ids,
    counters: Counters,
    committed: Committed,
    types: HashMap<String, events::TypeCount>,
    /// True when the daemon ends: numbers that were reserved are free again.
    ending: bool,
}

impl Tx<'_> {
    /// The id maker of this database.
    pub fn ids(&self) -> Ids {
        self.ids
    }

    fn next_sequence(&mut self) -> EventSeq {
        self.counters.sequence += 1;
        EventSeq(self.counters.sequence)
    }

    fn next_delivery(&mut self) -> DeliveryId {
        self.counters.delivery += 1;
        DeliveryId(self.counters.delivery)
    }

    /// The newest sequence, this transaction's own events included.
    pub fn sequence(&self) -> EventSeq {
        EventSeq(self.counters.sequence)
    }

    /// Makes a table unusable, for tests of what cannot be written.
    #[cfg(test)]
    pub fn rename_table_for_test(&self, from: &str, to: &str) -> Result<(), Error> {
        self.conn
            .execute_batch(&format!("ALTER TABLE {from} RENAME TO {to}"))
            .map_err(Error::internal("renaming a table"))
    }

    /// Has the consumer read all its work anew once this transaction is committed.
    pub fn look_anew(&mut self, consumer: ConsumerId) {
        self.committed.anew.push(consumer);
    }

    /// Has the consumer look for work once this transaction is committed.
    pub fn wake(&mut self, consumer: ConsumerId, priority: Priority) {
        self.committed.woken.insert((consumer, priority));
    }
}

/// A handle to the database; cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    ids: Ids,
    /// Bounded by `queued`: a channel that is bounded itself takes all its room from the start.
    jobs: std::sync::mpsc::Sender<Job>,
    queued: Arc<AtomicUsize>,
    commits: Arc<AtomicU64>,
    /// Pages of the database, told whenever it has grown by a good deal.
    pages: tokio::sync::watch::Sender<i64>,
    hook: Arc<OnceLock<CommitHook>>,
    readers: Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
    /// For questions that take long.
    alone: Arc<Semaphore>,
    /// For the lanes alone, so that no slow question over HTTP holds up a delivery.
    lane_permits: Arc<Semaphore>,
    head_at_open: EventSeq,
    newest_at_open: Option<Millis>,
    deliveries_at_open: i64,
    trouble: Arc<Trouble>,
    identity: Identity,
    keep_free: Arc<AtomicU64>,
    lost: Option<Lost>,
}

/// What the store tells of itself.
#[derive(Debug, Serialize)]
pub struct Stats {
    /// Operations that wait for the writer.
    pub queued: usize,
    /// Transactions committed since the start.
    pub commits: u64,
    /// Bytes of the database file and its write-ahead log.
    pub bytes: u64,
    /// Bytes of the write-ahead log.
    pub wal_bytes: u64,
    /// Bytes free on its disk; none when the disk does not say.
    pub free_bytes: Option<u64>,
    /// Below this nothing new is taken.
    pub keep_free_bytes: u64,
    /// Why nothing, or nothing new, can be stored at the moment.
    pub fault: Option<Fault>,
}

impl Store {
    /// Opens or makes the database at `path`, applies what migrations are missing and starts the writer thread.
    ///
    /// Refuses a damaged database with what to do, and changes nothing then.
    pub fn open(path: &Path, durability: Durability) -> Result<Store, Error> {
        let lost = wal::examine(path)?;
        Store::open_examined(path, durability, lost).map_err(|error| unopened(path, error))
    }

    fn open_examined(path: &Path, durability: Durability, lost: Option<Lost>) -> Result<Store, Error> {
        // SQLite gives its other files the rights of this one. What is wrong with the place is told by the line after.
        let _made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let mut conn = Connection::open(path).map_err(Error::internal("opening the database"))?;
        configure(&conn, durability)?;
        migrate::apply(&mut conn)?;
        let ids = Ids { node: migrate::node(&conn)? };
        let counters =
            Counters { sequence: migrate::counter(&conn, "event")?, delivery: migrate::counter(&conn, "delivery")? };
        // One now, which shows that it can be read; the others when they are needed.
        let readers = vec![open_reader(path)?];
        let (jobs, queue) = std::sync::mpsc::channel();
        let hook: Arc<OnceLock<CommitHook>> = Arc::default();
        let pages = tokio::sync::watch::Sender::new(space::read(&conn)?.pages);
        let (queued, commits, trouble) = (Arc::default(), Arc::default(), Arc::<Trouble>::default());
        let (newest_at_open, deliveries_at_open) = (retention::newest_ms(&conn)?, deliveries::open_count(&conn)?);
        let files = Files::open(path).map_err(Error::internal("looking at the files of the database"))?;
        let identity = files.identity();
        let keep_free: Arc<AtomicU64> = Arc::default();
        let writer = writer::Writer {
            conn,
            path: path.to_owned(),
            durability,
            files,
            ids,
            counters,
            reserved: (durability == Durability::Normal).then_some(Counters { sequence: 0, delivery: 0 }),
            queue,
            queued: Arc::clone(&queued),
            commits: Arc::clone(&commits),
            pages: pages.clone(),
            hook: Arc::clone(&hook),
            untold: Vec::new(),
            trouble: Arc::clone(&trouble),
            keep_free: Arc::clone(&keep_free),
            ending: Ending(Arc::clone(&trouble)),
        };
        std::thread::Builder::new()
            .name("aman-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(Error::internal("starting the writer thread"))?;
        Ok(Store {
            inner: Arc::new(Inner {
                path: path.to_owned(),
                ids,
                jobs,
                queued,
                commits,
                pages,
                hook,
                permits: Arc::new(Semaphore::new(1)),
                lane_permits: Arc::new(Semaphore::new(1)),
                readers: Mutex::new(readers),
                head_at_open: EventSeq(counters.sequence),
                newest_at_open,
                deliveries_at_open,
                alone: Arc::new(Semaphore::new(READERS_ALONE)),
                trouble,
                identity,
                keep_free,
                lost,
            }),
        })
    }

    /// What the start could not read of a damaged log.
    pub fn lost(&self) -> Option<&Lost> {
        self.inner.lost.as_ref()
    }

    /// Leaves this many bytes of the disk free for work that is under way: below, [`Store::takes_new`] refuses.
    pub fn keep_free(&self, bytes: u64) {
        self.inner.keep_free.store(bytes, Ordering::Relaxed);
    }

    /// Refuses new work while little space is left, or nothing can be stored at all.
    pub fn takes_new(&self) -> Result<(), Error> {
        self.inner.trouble.now().map_or(Ok(()), |fault| Err(fault.error()))
    }

    /// Waits until work that is under way can be stored; at once while all is well.
    pub async fn until_writable(&self) {
        let mut watch = self.inner.trouble.watch();
        let stored = |fault: &Option<Fault>| !fault.is_some_and(Fault::blocks_all);
        if watch.wait_for(stored).await.is_err() {
            // The store is gone, and with it whoever could write.
            std::future::pending::<()>().await;
        }
    }

    /// Waits until new work is taken; at once while all is well.
    pub async fn until_clear(&self) {
        if self.inner.trouble.watch().wait_for(Option::is_none).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Hears of every fault and of its end.
    pub fn faults(&self) -> tokio::sync::watch::Receiver<Option<Fault>> {
        self.inner.trouble.watch()
    }

    /// Looks whether the open files are still those at their path; the writer, if it sleeps, is told to look itself.
    fn look(&self) -> Option<Fault> {
        let known = self.inner.trouble.now();
        if known.is_some_and(Fault::blocks_all) || self.inner.identity.is_at(&self.inner.path) {
            return known;
        }
        let (answer, _) = oneshot::channel();
        // With a full queue the writer does not sleep.
        let is_full = self.inner.queued.fetch_add(1, Ordering::Relaxed) >= QUEUE_MAX;
        if is_full || self.inner.jobs.send(Job::new(true, |_: &mut Tx<'_>| Ok(()), answer)).is_err() {
            self.inner.queued.fetch_sub(1, Ordering::Relaxed);
        }
        Some(Fault::Moved)
    }

    /// The id maker of this database.
    pub fn ids(&self) -> Ids {
        self.inner.ids
    }

    /// The newest sequence when the database was opened.
    pub fn head_at_open(&self) -> EventSeq {
        self.inner.head_at_open
    }

    /// When the newest event was stored that was there when the database was opened.
    pub fn newest_at_open(&self) -> Option<Millis> {
        self.inner.newest_at_open
    }

    /// Deliveries that were open when the database was opened.
    pub fn deliveries_at_open(&self) -> i64 {
        self.inner.deliveries_at_open
    }

    /// Sets who hears of commits; only the first call counts.
    pub fn on_commit(&self, hook: CommitHook) {
        let _ = self.inner.hook.set(hook);
    }

    /// Runs `change` in the next transaction, alone in its savepoint: an error undoes just this change.
    ///
    /// Answers after the commit. The caller may vanish; the change stands.
    pub async fn write<R, F>(&self, change: F) -> Result<R, Error>
    where
        R: Send + 'static,
        F: FnOnce(&mut Tx<'_>) -> Result<R, Error> + Send + 'static,
    {
        self.submit(true, change).await
    }

    /// As [`Store::write`] without the savepoint, for the hot paths: `change` must fail only when the database does,
    /// since an error rolls back everything that shares the transaction.
    pub async fn write_hot<R, F>(&self, change: F) -> Result<R, Error>
    where
        R: Send + 'static,
        F: FnOnce(&mut Tx<'_>) -> Result<R, Error> + Send + 'static,
    {
        self.submit(false, change).await
    }

    async fn submit<R, F>(&self, isolated: bool, change: F) -> Result<R, Error>
    where
        R: Send + 'static,
        F: FnOnce(&mut Tx<'_>) -> Result<R, Error> + Send + 'static,
    {
        if let Some(fault) = self.inner.trouble.now().filter(|fault| fault.blocks_all()) {
            return Err(fault.error());
        }
        let (answer, answered) = oneshot::channel();
        let is_full = self.inner.queued.fetch_add(1, Ordering::Relaxed) >= QUEUE_MAX;
        if is_full || self.inner.jobs.send(Job::new(isolated, change, answer)).is_err() {
            self.inner.queued.fetch_sub(1, Ordering::Relaxed);
            if !is_full {
                return Err(Fault::Stopped.error());
            }
            return Err(Error::Busy {
                code: "overloaded",
                what: "The queue of writes is full.".to_owned(),
                retry_after_ms: 1000,
            });
        }
        match answered.await {
            Ok(result) => result,
            Err(_) => Err(Fault::Stopped.error()),
        }
    }

    /// Runs `query` on a read-only connection, off the async threads.
    pub async fn read<R, F>(&self, query: F) -> Result<R, Error>
    where
        R: Send + 'static,
        F: FnOnce(&Connection) -> Result<R, Error> + Send + 'static,
    {
        self.read_with(&self.inner.permits, query).await
    }

    /// As [`Store::read`], but on the calling thread if a connection is free: for what a page or two of the database answer,
    /// where going to another thread and back would cost more than that, and for threads that may wait for the disk now
    /// and then.
    pub async fn read_here<R, F>(&self, query: F) -> Result<R, Error>
    where
        R: Send + 'static,
        F: FnOnce(&Connection) -> Result<R, Error> + Send + 'static,
    {
        match self.inner.permits.try_acquire() {
            Ok(_permit) => self.inner.with_reader(query),
            Err(_) => self.read(query).await,
        }
    }

    /// As [`Store::read`], over connections that only the lanes of the bus use.
    pub async fn read_for_lane<R, F>(&self, query: F) -> Result<R, Error>
    where
        R: Send + 'static,
        F: FnOnce(&Connection) -> Result<R, Error> + Send + 'static,
    {
        self.read_with(&self.inner.lane_permits, query).await
    }

    async fn read_with<R, F>(&self, permits: &Arc<Semaphore>, query: F) -> Result<R, Error>
    where
        R: Send + 'static,
        F: FnOnce(&Connection) -> Result<R, Error> + Send + 'static,
    {
        let (permit, inner) = (permit(permits).await?, Arc::clone(&self.inner));
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            inner.with_reader(query)
        })
        .await
        .map_err(Error::internal("reading the database"))?
    }

    /// Lets as many read side by side as ever will. Until then few do: in a start each question is short, and one more connection,
    /// which reads all definitions of tables first, takes longer than to wait for another's.
    pub fn widen(&self) {
        self.inner.permits.add_permits(READERS - LANE_READERS - 1);
        self.inner.lane_permits.add_permits(LANE_READERS - 1);
    }

    /// Runs `query` on a connection of its own, off the async threads: for the few questions that take long.
    pub async fn read_alone<R, F>(&self, query: F) -> Result<R, Error>
    where
        R: Send + 'static,
        F: FnOnce(&Connection) -> Result<R, Error> + Send + 'static,
    {
        let (permit, inner) = (permit(&self.inner.alone).await?, Arc::clone(&self.inner));
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            query(&inner.another_reader()?)
        })
        .await
        .map_err(Error::internal("reading the database"))?
    }

    /// Changes whenever the database has grown by 4 MiB or so.
    pub fn growth(&self) -> tokio::sync::watch::Receiver<i64> {
        self.inner.pages.subscribe()
    }

    /// The database's file.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Runs `query` on the calling thread; for start-up, where nothing else runs yet.
    pub fn read_now<R>(&self, query: impl FnOnce(&Connection) -> Result<R, Error>) -> Result<R, Error> {
        self.inner.with_reader(query)
    }

    /// Moves the write-ahead log into the database file, for a clean end: after it no number needs to be passed over.
    pub async fn checkpoint(&self) -> Result<(), Error> {
        let ending = self.write(|tx| {
            tx.ending = true;
            migrate::reserve(tx.conn, 0, 0)
        });
        if let Err(error) = ending.await {
            tracing::warn!(error = error.chain().join(": "), "The next start passes over some numbers.");
        }
        self.checkpoint_as("TRUNCATE").await
    }

    /// Moves as much of the write-ahead log into the database file as nobody minds. Shrinks the file to its pages.
    pub async fn checkpoint_gently(&self) -> Result<(), Error> {
        self.checkpoint_as("PASSIVE").await
    }

    async fn checkpoint_as(&self, mode: &'static str) -> Result<(), Error> {
        if let Some(fault) = self.look().filter(|fault| fault.blocks_all()) {
            return Err(fault.error());
        }
        let path = self.inner.path.clone();
        tokio::task::spawn_blocking(move || {
            let conn =
                Connection::open_with_flags(path, WRITE_FLAGS).map_err(Error::internal("opening the database"))?;
            conn.pragma_update(None, "wal_checkpoint", mode).or_else(ignore_rows).map_err(Error::internal("checkpoint"))
        })
        .await
        .map_err(Error::internal("checkpoint"))?
    }

    /// The share of the write queue that is in use, 0.0 to 1.0.
    pub fn load(&self) -> f64 {
        let queued = u32::try_from(self.inner.queued.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
        f64::from(queued) / f64::from(u32::try_from(QUEUE_MAX).unwrap_or(u32::MAX))
    }

    /// Figures for status and metrics.
    pub fn stats(&self) -> Stats {
        let size = |path: PathBuf| std::fs::metadata(path).map_or(0, |m| m.len());
        let wal_bytes = size(disk::beside(&self.inner.path, "-wal"));
        Stats {
            queued: self.inner.queued.load(Ordering::Relaxed),
            commits: self.inner.commits.load(Ordering::Relaxed),
            bytes: size(self.inner.path.clone()) + wal_bytes,
            wal_bytes,
            free_bytes: self.inner.path.parent().and_then(disk::free_bytes),
            keep_free_bytes: self.inner.keep_free.load(Ordering::Relaxed),
            fault: self.look(),
        }
    }
}

impl Inner {
    fn with_reader<R>(&self, query: impl FnOnce(&Connection) -> Result<R, Error>) -> Result<R, Error> {
        let taken = self.readers.lock().ok().and_then(|mut free| free.pop());
        let conn = match taken {
            Some(conn) => conn,
            None => self.another_reader()?,
        };
        let result = query(&conn);
        if let Err(Error::Internal { source, .. }) = &result
            && let Some(error) = source.downcast_ref::<rusqlite::Error>()
            && matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
        {
            // Writing on could make it worse.
            self.trouble.set(Some(Fault::Damaged), &error.to_string());
            return Err(Fault::Damaged.error());
        }
        if let Ok(mut free) = self.readers.lock()
            && free.len() < READERS
        {
            free.push(conn);
        }
        result
    }

    /// One more connection to the database that is open, not to whatever is at its path by now.
    fn another_reader(&self) -> Result<Connection, Error> {
        let ours = || self.identity.is_at(&self.path).then_some(()).ok_or_else(|| Fault::Moved.error());
        ours()?;
        let conn = open_reader(&self.path)?;
        ours().map(|()| conn)
    }
}

async fn permit(permits: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Error> {
    let acquired = tokio::time::timeout(READ_WAIT, Arc::clone(permits).acquire_owned()).await;
    acquired.ok().and_then(Result::ok).ok_or_else(|| Error::Busy {
        code: "overloaded",
        what: "All connections for reading are in use.".to_owned(),
        retry_after_ms: 1000,
    })
}

/// Why the database could not be opened, with what to do about it.
fn unopened(path: &Path, error: Error) -> Error {
    let Error::Internal { source, .. } = &error else { return error };
    let Some(cause) = source.downcast_ref::<rusqlite::Error>() else { return error };
    let fault = match (Fault::of(Some(cause)), path.parent()) {
        (Fault::Refused, _) => return error,
        (Fault::DiskError, Some(folder)) => disk::behind_error(folder),
        (fault, _) => fault,
    };
    let (what, advice) = (fault.what(), fault.advice());
    let reason = format!("{} cannot be used: {what} ({cause}). Nothing was changed. {advice}", path.display());
    Error::conflict(fault.code(), reason)
}

fn ignore_rows(error: rusqlite::Error) -> rusqlite::Result<()> {
    match error {
        rusqlite::Error::ExecuteReturnedResults => Ok(()),
        other => Err(other),
    }
}

fn configure(conn: &Connection, durability: Durability) -> Result<(), Error> {
    make_incremental(conn).map_err(Error::internal("configuring the database"))?;
    let mode: String = conn
        .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))
        .map_err(Error::internal("configuring the database"))?;
    if !mode.eq_ignore_ascii_case("wal") {
        // Without it readers and the writer lock each other out, and what is acknowledged depends on luck.
        return Err(Error::Internal {
            context: "opening the database",
            source: format!(
                "{} cannot have a write-ahead log (its journal mode is '{mode}'), mostly because its file system shares \
                 no memory between processes. Put the data folder on a local disk: AMAN_HOME, or XDG_DATA_HOME.",
                conn.path().unwrap_or("the database")
            )
            .into(),
        });
    }
    let synchronous = match durability {
        Durability::Full => "FULL",
        Durability::Normal => "NORMAL",
    };
    conn.execute_batch(&format!(
        "PRAGMA synchronous = {synchronous}; PRAGMA busy_timeout = 5000;
         PRAGMA foreign_keys = OFF; PRAGMA temp_store = MEMORY; PRAGMA cache_size = -16000;
         PRAGMA wal_autocheckpoint = 4000; PRAGMA journal_size_limit = {WAL_BYTES_KEPT};"
    ))
    .map_err(Error::internal("configuring the database"))?;
    conn.set_prepared_statement_cache_capacity(128);
    Ok(())
}

/// A file that was made so can give space back later, in small steps. Said before the first table is made, the only time
/// that it means something: said again it would be a write, and a start that ends in a refusal must not have written.
fn make_incremental(conn: &Connection) -> rusqlite::Result<()> {
    let pages: i64 = conn.pragma_query_value(None, "page_count", |row| row.get(0))?;
    if pages == 0 { conn.execute_batch("PRAGMA auto_vacuum = INCREMENTAL") } else { Ok(()) }
}

fn open_reader(path: &Path) -> Result<Connection, Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags).map_err(Error::internal("opening the database to read"))?;
    conn.execute_batch("PRAGMA busy_timeout = 5000; PRAGMA query_only = ON; PRAGMA cache_size = -2000;")
        .map_err(Error::internal("configuring the database"))?;
    conn.set_prepared_statement_cache_capacity(64);
    Ok(conn)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_without_a_write_ahead_log_is_refused() {
        // A database in memory cannot have one, as a file on some network file systems cannot.
        let conn = Connection::open_in_memory().expect("memory");
        let error = configure(&conn, Durability::Full).expect_err("refused");
        let told = error.chain().join(": ");
        assert!(told.contains("write-ahead log") && told.contains("local disk"), "{told}");
    }
}
