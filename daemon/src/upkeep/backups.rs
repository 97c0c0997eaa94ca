//! Copies of the database by `[backup]`: made, verified, and the oldest removed.
//!
//! The folder is the truth: the name of a copy says when it was made, so nothing else has to be remembered, and who moves a
//! copy away has another made in its place. What is named otherwise is never touched.

use std::cmp::Reverse;
use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use nix::sys::statvfs::statvfs;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::bus::{Bus, Origin};
use crate::clock::{Millis, parse_rfc3339, rfc3339};
use crate::config;
use crate::error::Error;
use crate::event::NewEvent;
use crate::store::backup::{self, Place};
use crate::tasks::Supervisor;

/// The type of the event that tells of a copy.
const MADE: &str = "aman.backup.made";
/// The type of the event that tells that there is none.
const FAILED: &str = "aman.backup.failed";
/// When a copy that failed is tried again.
const AGAIN_MS: Millis = 3_600_000;
/// A copy whose name is this far ahead was made by a clock that was wrong.
const AHEAD_MS: Millis = 3_600_000;
/// The longest sleep while copies are wanted; a machine that slept, or a clock that was set, is noticed within it.
const SLEEP_MAX: Duration = Duration::from_secs(3600);

/// How the copies stand.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Standing {
    /// `backup.every`; empty = the daemon makes none.
    pub every: String,
    /// How many stay.
    pub keep: usize,
    /// Where they are.
    pub folder: PathBuf,
    /// How many are there.
    pub copies: usize,
    /// When the newest was made.
    pub newest_at: Option<String>,
    /// When the next is made.
    pub next_at: Option<String>,
    /// Since when none could be made.
    pub failing_since: Option<String>,
    /// Why.
    pub error: Option<String>,
}

/// The task that makes copies; cheap to clone.
#[derive(Clone)]
pub struct Backups {
    inner: Arc<Inner>,
}

struct Inner {
    bus: Bus,
    wanted: ArcSwap<config::Backups>,
    /// Changes whenever `wanted` does.
    changed: watch::Sender<()>,
    stop: CancellationToken,
    standing: ArcSwap<Standing>,
}

/// Tries that made no copy.
struct Failing {
    since_ms: Millis,
    last_ms: Millis,
    reason: String,
}

impl Backups {
    pub(super) fn start(bus: &Bus, supervisor: &Supervisor, wanted: config::Backups) -> Backups {
        let inner = Inner {
            bus: bus.clone(),
            wanted: ArcSwap::from_pointee(wanted),
            changed: watch::Sender::new(()),
            stop: supervisor.stop_token(),
            standing: ArcSwap::default(),
        };
        let backups = Backups { inner: Arc::new(inner) };
        let task = backups.clone();
        supervisor.spawn("backup", move || {
            let task = task.clone();
            async move { task.work().await }
        });
        backups
    }

    /// Changes what is copied, from now on.
    pub fn retune(&self, wanted: &config::Backups) {
        if **self.inner.wanted.load() != *wanted {
            self.inner.wanted.store(Arc::new(wanted.clone()));
            self.inner.changed.send_replace(());
        }
    }

    /// How the copies stand.
    pub fn standing(&self) -> Arc<Standing> {
        self.inner.standing.load_full()
    }

    async fn work(&self) -> Result<(), Error> {
        let mut changed = self.inner.changed.subscribe();
        let mut failing: Option<Failing> = None;
        loop {
            changed.mark_unchanged();
            let wanted = self.inner.wanted.load_full();
            let due_ms = self.look(&wanted, failing.as_ref()).await?;
            let now_ms = self.now_ms();
            if due_ms.is_some_and(|due_ms| due_ms <= now_ms) {
                failing = self.make(&wanted, failing).await?;
                continue;
            }
            let left = due_ms.map(|due| Duration::from_millis((due - now_ms).unsigned_abs()).min(SLEEP_MAX));
            tokio::select! {
                () = self.inner.stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(left.unwrap_or_default()), if left.is_some() => {}
                told = changed.changed() => match told {
                    // Other settings may be what it takes.
                    Ok(()) => failing = None,
                    Err(_) => return Ok(()),
                },
            }
        }
    }

    fn now_ms(&self) -> Millis {
        self.inner.bus.clock().now_ms()
    }

    /// Looks into the folder; when the next copy is due.
    async fn look(&self, wanted: &Arc<config::Backups>, failing: Option<&Failing>) -> Result<Option<Millis>, Error> {
        let mut standing = Standing {
            every: wanted.every.clone(),
            keep: wanted.keep,
            folder: wanted.folder.clone(),
            failing_since: failing.map(|failing| rfc3339(failing.since_ms)),
            error: failing.map(|failing| failing.reason.clone()),
            ..Standing::default()
        };
        let mut due_ms = None;
        if !wanted.every.is_empty() {
            let folder = wanted.folder.clone();
            let found = blocking(move || Ok(copies(&folder))).await?;
            let now_ms = self.now_ms();
            let newest_ms = newest_ms(&found, now_ms);
            due_ms = wanted.due_ms(newest_ms, now_ms);
            if let Some(failing) = failing {
                due_ms = due_ms.map(|due_ms| due_ms.max(failing.last_ms.saturating_add(AGAIN_MS)));
            }
            (standing.copies, standing.newest_at) = (found.len(), newest_ms.map(rfc3339));
            standing.next_at = due_ms.map(rfc3339);
        }
        self.inner.standing.store(Arc::new(standing));
        Ok(due_ms)
    }

    /// Makes a copy and tells of it; gives what is to be known of a failure.
    async fn make(&self, wanted: &Arc<config::Backups>, failing: Option<Failing>) -> Result<Option<Failing>, Error> {
        let (database, now_ms) = (self.inner.bus.store().path().to_owned(), self.now_ms());
        let with = Arc::clone(wanted);
        let made = tokio::select! {
            () = self.inner.stop.cancelled() => return Ok(failing),
            made = blocking(move || make(&database, &with, now_ms)) => made,
        };
        let error = match made {
            Ok((made, removed)) => {
                tracing::info!(file = %made.file.display(), bytes = made.bytes, removed, "The database was copied.");
                self.tell(
                    MADE,
                    &json!({ "file": made.file, "bytes": made.bytes, "sequence": made.sequence, "removed": removed }),
                )
                .await;
                return Ok(None);
            }
            Err(error) => error,
        };
        let reason = crate::redact::text(&error.chain().join(": ")).into_owned();
        // One and the same reason is told once, not every hour.
        if failing.as_ref().is_none_or(|before| before.reason != reason) {
            tracing::error!(reason, "The database could not be copied.");
            self.tell(FAILED, &json!({ "reason": reason, "folder": wanted.folder })).await;
        }
        let since_ms = failing.map_or(now_ms, |before| before.since_ms);
        Ok(Some(Failing { since_ms, last_ms: now_ms, reason }))
    }

    async fn tell(&self, kind: &str, data: &Value) {
        self.inner.bus.announce(NewEvent::new("aman/backup", kind, data), Origin::own("aman")).await;
    }
}

async fn blocking<R: Send + 'static>(work: impl FnOnce() -> Result<R, Error> + Send + 'static) -> Result<R, Error> {
    tokio::task::spawn_blocking(work).await.map_err(Error::internal("copying the database"))?
}

/// The file's name of a copy that was made then.
fn name(at_ms: Millis) -> String {
    format!("aman-{}.db", rfc3339(at_ms).replace(':', ""))
}

/// When the copy of this name was made; none for what is no copy of ours.
fn made_ms(name: &str) -> Option<Millis> {
    let (date, time) = name.strip_prefix("aman-")?.strip_suffix(".db")?.split_once('T')?;
    parse_rfc3339(&format!("{date}T{}:{}:{}", time.get(..2)?, time.get(2..4)?, time.get(4..)?))
}

/// When the newest copy was made, of those of which `now_ms` can tell. What a clock that was ahead made says nothing of how
/// old it is; a clock that is only put right is no reason for another copy.
fn newest_ms(copies: &[(Millis, PathBuf)], now_ms: Millis) -> Option<Millis> {
    copies.iter().map(|(at_ms, _)| *at_ms).find(|at_ms| *at_ms <= now_ms.saturating_add(AHEAD_MS))
}

/// The copies that are too many when `keep` stay, of which `made` is one: first those of which nobody can tell how old they
/// are, then the oldest.
fn too_many(mut copies: Vec<(Millis, PathBuf)>, made: &Path, keep: usize, now_ms: Millis) -> Vec<PathBuf> {
    copies.retain(|(_, path)| path != made);
    copies.sort_by_key(|(at_ms, _)| (*at_ms > now_ms.saturating_add(AHEAD_MS), Reverse(*at_ms)));
    copies.into_iter().map(|(_, path)| path).skip(keep.saturating_sub(1)).collect()
}

/// The copies in the folder, the newest first.
fn copies(folder: &Path) -> Vec<(Millis, PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<_> =
        entries.filter_map(|entry| Some((made_ms(entry.file_name().to_str()?)?, entry.path()))).collect();
    found.sort_by(|a, b| b.cmp(a));
    found
}

/// Makes a copy, then removes those that are too many; how many that were.
fn make(database: &Path, wanted: &config::Backups, now_ms: Millis) -> Result<(backup::Made, usize), Error> {
    let folder = &wanted.folder;
    let unusable = |error| Error::invalid("backup.folder", format!("{} cannot be used: {error}.", folder.display()));
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(unusable)?;
    for entry in fs::read_dir(folder).map_err(unusable)?.flatten() {
        if is_left_over(&entry.file_name().to_string_lossy()) {
            let _gone = fs::remove_file(entry.path());
        }
    }
    let bytes_of = |file: &Path| fs::metadata(file).map_or(0, |file| file.len());
    let of_plugins = fs::read_dir(&wanted.plugin_data).into_iter().flatten().flatten();
    let needed = of_plugins.fold(bytes_of(database), |sum, entry| sum.saturating_add(bytes_of(&entry.path())));
    let found = statvfs(folder).map_err(|error| unusable(error.into()))?;
    let free = found.blocks_available().saturating_mul(found.fragment_size());
    if free < needed.saturating_add(wanted.keep_free_bytes) {
        let reason = format!(
            "has {free} bytes free; the copy takes {needed}, and bus.keep_free_mib stay free. Make room, or name another."
        );
        return Err(Error::invalid("backup.folder", reason));
    }
    let from = Place { db: database, plugins: &wanted.plugin_data };
    let made = backup::make(from, &folder.join(name(now_ms)), false)?;
    let mut removed = 0;
    for old in too_many(copies(folder), &made.file, wanted.keep, now_ms) {
        match fs::remove_file(&old) {
            Ok(()) => removed += 1,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(%error, file = %old.display(), "An old copy of the database stays."),
        }
    }
    Ok((made, removed))
}

/// True for what a process that is gone had begun to copy, `.NAME.db.PID.partial`, and for what SQLite has beside it.
fn is_left_over(name: &str) -> bool {
    let whole = ["-journal", "-wal", "-shm"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
    let inner = whole.strip_prefix('.').and_then(|name| name.strip_suffix(".partial"));
    let Some((name, pid)) = inner.and_then(|inner| inner.rsplit_once('.')) else { return false };
    let gone = |pid: u32| pid == std::process::id() || !Path::new("/proc").join(pid.to_string()).exists();
    name.ends_with(".db") && pid.parse().is_ok_and(gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a copy that a clock made which was ahead neither stands for a new one nor outlives those that came after it.
    #[test]
    fn copies_of_a_clock_that_was_ahead_count_for_nothing() {
        const HOUR_MS: Millis = 3_600_000;
        let now_ms = 1_795_000_000_000;
        let copies = |hours: &[i64]| -> Vec<(Millis, PathBuf)> {
            hours.iter().map(|hour| (now_ms + hour * HOUR_MS, PathBuf::from(hour.to_string()))).collect()
        };
        assert_eq!(newest_ms(&copies(&[9000, 20, -5, -30]), now_ms), Some(now_ms - 5 * HOUR_MS));
        assert_eq!(newest_ms(&copies(&[9000]), now_ms), None);
        assert_eq!(newest_ms(&copies(&[1, -5]), now_ms), Some(now_ms + HOUR_MS), "a clock that was put right");
        let gone = |hours: &[i64], keep: usize| -> Vec<String> {
            let gone = too_many(copies(hours), Path::new("0"), keep, now_ms);
            gone.iter().map(|path| path.display().to_string()).collect()
        };
        assert_eq!(gone(&[9000, 20, 0, -5, -30], 3), ["9000", "20"]);
        assert_eq!(gone(&[9000, 20, 0, -5, -30], 1), ["-5", "-30", "9000", "20"]);
        assert_eq!(gone(&[9000, 0], 2), Vec::<String>::new());
        assert_eq!(gone(&[0, -5, -30], 2), ["-30"]);
    }

    #[test]
    fn names_say_when_and_others_are_left_alone() {
        let at_ms = 1_795_000_000_123;
        assert_eq!(made_ms(&name(at_ms)), Some(at_ms));
        for other in ["aman.db", "aman-2026-11-22.db", "aman-mon.db", "notes-2026-11-22T030000.000Z.db", "aman-T.db"] {
            assert_eq!(made_ms(other), None, "{other}");
        }
        // No process has a number above 2^22.
        for (left, wanted) in [
            (".aman.db.99999999.partial", true),
            (".aman.db.99999999.partial-journal", true),
            (".aman.db.1.partial", false),
            (".notes.txt.99999999.partial", false),
            (".aman.db.partial", false),
            ("aman.db", false),
        ] {
            assert_eq!(is_left_over(left), wanted, "{left}");
        }
    }
}
