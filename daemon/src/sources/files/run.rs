//! The task of a source: waits for hints, looks, stores what happened.

use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crate::bus::{Origin, Publish};
use crate::error::Error;
use crate::store::files::{self, Update};

use super::compare::{Change, Differences, explain};
use super::message;
use super::mounts::Mounts;
use super::scan::{Found, Look, Scanner, Work};
use super::{Initial, Inner, State};

/// Events that are stored together at the most.
const EVENTS_PER_PUBLISH: usize = 500;
/// Rows that are stored together without events at the most.
const ROWS_PER_WRITE: usize = 2000;
/// Between two comparisons of everything while not every folder is watched.
const POLL: Duration = Duration::from_secs(60);
/// The first and the longest wait for a folder that is not there.
const MISSING: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));
/// The bounds of a wait after the bus refused.
const BUSY_MS: (u64, u64) = (100, 30_000);

/// The daemon is stopping: what was found is found again at the next start.
struct Stopping;

impl Inner {
    /// Runs until the source is stopped. Begins with a comparison of everything, so it may be called again.
    pub(super) async fn run(self: Arc<Self>) -> Result<(), Error> {
        let _running = self.running.lock().await;
        let mounts = Mounts::open();
        let mut missing_wait = MISSING.0;
        if !self.looked.swap(false, Ordering::AcqRel) {
            self.hints.dirty().rescan_at(Instant::now());
        }
        while !self.stop.is_cancelled() {
            if self.paused.load(Ordering::Acquire) {
                self.with_scanner(Scanner::stop_watching).await?;
                self.hints.dirty().clear();
                self.tell(State::Paused, "Paused: what changes meanwhile is told after it is resumed.");
            } else {
                self.step(&mut missing_wait).await?;
            }
            let next = self.hints.dirty().arm();
            let deadline = async move {
                match next {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = self.hints.wake.notified() => {}
                () = deadline => {}
                () = mounts.changed() => {
                    if self.with_scanner(|scanner| scanner.root_changed()).await? {
                        self.hints.dirty().rescan_at(Instant::now());
                    }
                }
            }
        }
        self.with_scanner(Scanner::stop_watching).await?;
        self.tell(State::Stopped, "");
        Ok(())
    }

    /// The first sight of the folder, if it is there: without events, or with all of them.
    pub(super) async fn first_sight(&self) -> Result<(), Error> {
        if self.config.initial == Initial::Emit {
            self.mark_baselined(Vec::new(), None).await?;
            return Ok(());
        }
        match self.look(Work { everything: true, due: Vec::new(), baseline: true }).await? {
            Look::Found(found) => {
                self.keep_baseline(found).await?;
                self.looked.store(true, Ordering::Release);
            }
            Look::RootGone(why) => self.tell(State::Missing, &why),
        }
        Ok(())
    }

    /// Files that only the new patterns take become known without events; the rest is compared again by the task.
    pub(super) async fn first_sight_of_patterns(&self) -> Result<(), Error> {
        if let Look::Found(found) = self.look(Work { everything: true, ..Work::default() }).await? {
            self.keep(Found { differences: Differences::default(), put_off: Vec::new(), ..found }).await?;
        }
        Ok(())
    }

    /// Does what is due.
    async fn step(&self, missing_wait: &mut Duration) -> Result<(), Error> {
        let folders = self.hints.dirty().take_folders();
        if !folders.is_empty() {
            self.with_scanner(move |scanner| scanner.watch_folders(folders)).await?;
        }
        let (everything, due) = self.hints.dirty().take_due(Instant::now());
        if !everything && due.is_empty() {
            return Ok(());
        }
        let baseline = !self.baselined.load(Ordering::Acquire);
        match self.look(Work { everything: everything || baseline, due, baseline }).await? {
            Look::Found(found) if baseline => self.keep_baseline(found).await?,
            Look::Found(found) => self.keep(found).await?,
            Look::RootGone(why) => {
                let mut dirty = self.hints.dirty();
                dirty.clear();
                dirty.rescan_at(Instant::now() + *missing_wait);
                *missing_wait = (*missing_wait * 2).min(MISSING.1);
                drop(dirty);
                self.tell(State::Missing, &format!("{why} Nothing is told about its files until it is back."));
                return Ok(());
            }
        }
        *missing_wait = MISSING.0;
        Ok(())
    }

    async fn look(&self, work: Work) -> Result<Look, Error> {
        let (look, trouble, watched) = self
            .with_scanner(move |scanner| {
                let look = scanner.look(work);
                (look, scanner.watches.trouble.clone(), scanner.watches.count())
            })
            .await?;
        let look = look?;
        self.health().watched_dirs = watched;
        if let Look::Found(found) = &look {
            match trouble {
                Some(why) => {
                    self.tell(State::Polling, &why);
                    self.hints.dirty().rescan_at(Instant::now() + POLL);
                }
                None => self.tell(State::Watching, ""),
            }
            if let Some(problem) = &found.problem {
                self.trouble(problem);
            }
        }
        Ok(look)
    }

    /// Stores the first sight; only then it counts, so a crash in between begins it anew.
    async fn keep_baseline(&self, found: Found) -> Result<(), Error> {
        let mut updates = found.updates;
        while updates.len() > ROWS_PER_WRITE {
            let rest = updates.split_off(ROWS_PER_WRITE);
            self.register(updates, None).await?;
            updates = rest;
        }
        self.mark_baselined(updates, found.compared).await
    }

    async fn mark_baselined(&self, updates: Vec<Update>, device: Option<i64>) -> Result<(), Error> {
        self.register(updates, Some(device)).await?;
        self.baselined.store(true, Ordering::Release);
        Ok(())
    }

    /// Registers the source with rows of its first sight; with a second value, the first sight is complete.
    async fn register(&self, updates: Vec<Update>, complete: Option<Option<i64>>) -> Result<(), Error> {
        let root = self.config.root.as_os_str().as_bytes().to_vec();
        let (name, filter, now_ms) = (self.name.clone(), self.filter_text.clone(), self.bus.clock().now_ms());
        let change = rows_added(&updates);
        let source = self
            .bus
            .store()
            .write(move |tx| {
                let source = files::register(tx, &name, &root, &filter)?;
                files::apply(tx, source, &updates)?;
                if let Some(device) = complete {
                    files::mark_baselined(tx, source, now_ms)?;
                    if let Some(device) = device {
                        files::note_compared(tx, source, device, &filter)?;
                    }
                }
                Ok(source)
            })
            .await?;
        self.count_files(change);
        self.with_scanner(move |scanner| scanner.source = source).await
    }

    /// Stores what happened; what was not complete is put off.
    async fn keep(&self, found: Found) -> Result<(), Error> {
        {
            let mut dirty = self.hints.dirty();
            for (due, again) in found.put_off {
                dirty.put_off(&due, again, Instant::now());
            }
        }
        let source = self.with_scanner(|scanner| scanner.source).await?;
        for rows in found.updates.chunks(ROWS_PER_WRITE) {
            let Ok(()) = self.store_rows(source, rows.to_vec()).await? else { return Ok(()) };
        }
        if !found.updates.is_empty() {
            let files = self.bus.store().read(move |conn| files::count(conn, source)).await?;
            self.health().files = files;
        }
        let changes = explain(found.differences);
        for batch in changes.chunks(EVENTS_PER_PUBLISH) {
            let Ok(()) = self.publish(source, batch).await? else { return Ok(()) };
        }
        if let Some(device) = found.compared {
            let filter = self.filter_text.clone();
            self.bus.store().write(move |tx| files::note_compared(tx, source, device, &filter)).await?;
        }
        Ok(())
    }

    /// Stores the events of `changes` with the rows that say so. Waits while the bus has no room.
    async fn publish(&self, source: i64, changes: &[Change]) -> Result<Result<(), Stopping>, Error> {
        loop {
            match self.try_publish(source, changes).await {
                Ok(()) => return Ok(Ok(())),
                Err(Error::Busy { code, what, retry_after_ms }) => {
                    if let Err(stopping) = self.wait_for_room(code, &what, retry_after_ms).await {
                        return Ok(Err(stopping));
                    }
                }
                Err(Error::Internal { context, source }) => return Err(Error::Internal { context, source }),
                Err(refused) if changes.len() == 1 => {
                    // What the bus will never take must not hold up the rest: the row is kept, the change is counted.
                    self.trouble(&format!("A change could not be told: {refused}"));
                    self.health().skipped += 1;
                    return self.store_rows(source, changes[0].updates()).await;
                }
                Err(_) => {
                    for change in changes {
                        let one = Box::pin(self.publish(source, std::slice::from_ref(change)));
                        let Ok(()) = one.await? else { return Ok(Err(Stopping)) };
                    }
                    return Ok(Ok(()));
                }
            }
        }
    }

    async fn try_publish(&self, source: i64, changes: &[Change]) -> Result<(), Error> {
        let root = &self.config.root;
        let events = changes.iter().map(|change| message::event(&self.name, root, change)).collect();
        let updates: Vec<Update> = changes.iter().flat_map(Change::updates).collect();
        let added = rows_added_by(changes);
        let origin = Origin { principal: self.name.clone(), trust: self.config.trust, internal: true };
        let state = Box::new(move |tx: &mut crate::store::Tx<'_>| files::apply(tx, source, &updates));
        self.bus.publish(Publish { events, origin, idempotency: None, state: Some(state) }).await?;
        self.count_files(added);
        let mut health = self.health();
        health.events += u64::try_from(changes.len()).unwrap_or(0);
        health.last_event_ms = Some(self.bus.clock().now_ms());
        Ok(())
    }

    async fn store_rows(&self, source: i64, updates: Vec<Update>) -> Result<Result<(), Stopping>, Error> {
        loop {
            let rows = updates.clone();
            match self.bus.store().write(move |tx| files::apply(tx, source, &rows)).await {
                Ok(()) => return Ok(Ok(())),
                Err(Error::Busy { code, what, retry_after_ms }) => {
                    if let Err(stopping) = self.wait_for_room(code, &what, retry_after_ms).await {
                        return Ok(Err(stopping));
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits until trying again makes sense; the source is paused meanwhile, its hints are kept.
    async fn wait_for_room(&self, code: &str, what: &str, retry_after_ms: u64) -> Result<(), Stopping> {
        if code == "draining" {
            self.stop.cancelled().await;
            return Err(Stopping);
        }
        self.trouble(what);
        let store = self.bus.store();
        // A disk that takes nothing says itself when it is over.
        let wait = match store.takes_new() {
            Err(_) => Duration::from_millis(BUSY_MS.0),
            Ok(()) => Duration::from_millis(retry_after_ms.clamp(BUSY_MS.0, BUSY_MS.1)),
        };
        let room = async {
            tokio::time::sleep(wait).await;
            store.until_clear().await;
        };
        tokio::select! {
            () = self.stop.cancelled() => Err(Stopping),
            () = room => Ok(()),
        }
    }

    /// Runs `work` with the scanner, off the async threads.
    async fn with_scanner<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Scanner) -> R + Send + 'static,
    ) -> Result<R, Error> {
        let scanner = Arc::clone(&self.scanner);
        tokio::task::spawn_blocking(move || work(&mut scanner.lock().unwrap_or_else(PoisonError::into_inner)))
            .await
            .map_err(Error::internal("looking at a watched folder"))
    }

    fn tell(&self, state: State, detail: &str) {
        let mut health = self.health();
        if health.state != state {
            tracing::info!(source = self.name, ?state, detail, "A file source changed its state.");
        }
        health.state = state;
        detail.clone_into(&mut health.detail);
    }

    fn trouble(&self, what: &str) {
        let mut health = self.health();
        if health.last_error.as_deref() != Some(what) {
            tracing::warn!(source = self.name, what, "A file source met a problem.");
        }
        health.last_error = Some(what.to_owned());
    }

    fn count_files(&self, added: i64) {
        let mut health = self.health();
        health.files = health.files.saturating_add_signed(added);
    }
}

/// How many more files are known after updates of the first sight, where nothing is known twice.
fn rows_added(updates: &[Update]) -> i64 {
    updates
        .iter()
        .map(|update| match update {
            Update::Put(..) => 1,
            Update::Forget(_) => -1,
        })
        .sum()
}

/// How many more files are known after these changes.
fn rows_added_by(changes: &[Change]) -> i64 {
    changes
        .iter()
        .map(|change| match change {
            Change::Created { .. } => 1,
            Change::Removed { .. } => -1,
            Change::Changed { .. } | Change::Renamed { .. } => 0,
        })
        .sum()
}
