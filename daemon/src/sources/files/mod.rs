//! Folders of files: what changes in them becomes `file.created|changed|removed|renamed`.
//!
//! Truth is the difference between the disk and the rows of `file_seen`, which commit together with the events that
//! tell of it: so nothing is told twice or not at all, whenever the daemon ends. The kernel's messages only hint at where
//! to look ([`watch`], [`dirty`]); a start, an overflow and a folder that came back are the same comparison over
//! everything ([`scan`], [`look`], [`compare`]). A file is told of once it is complete ([`settle`]).
//!
//! Only regular files count; symlinks are neither followed nor told of (the root itself may be one). An idle source has
//! no timer.

mod compare;
mod dirty;
mod entry;
mod filter;
mod look;
mod message;
mod mounts;
mod run;
mod scan;
mod settle;
mod watch;
mod writers;

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::bus::Bus;
use crate::clock::Millis;
use crate::config;
use crate::error::Error;
use crate::event::Trust;
use crate::store::files;
use crate::tasks::Supervisor;

use dirty::Dirty;
use filter::Filter;
use scan::Scanner;
use watch::Hints;

/// How long a path must rest before it is looked at, unless configured.
pub const SETTLE_DEFAULT: Duration = Duration::from_millis(100);
/// Bounds of the configured time.
pub const SETTLE_RANGE: std::ops::RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(60);
/// Longest id of a source, in bytes.
pub const ID_BYTES_MAX: usize = 64;

/// What the first sight of a folder means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Initial {
    /// What is there becomes known without events.
    #[default]
    Baseline,
    /// Every file that is there is told as created.
    Emit,
}

/// A folder to watch.
#[derive(Debug, Clone)]
pub struct FileSourceConfig {
    /// Letters, digits, `_` and `-`; the source of the events is `files/<id>`.
    pub id: String,
    /// The folder; absolute.
    pub root: PathBuf,
    /// Which files, as glob patterns against the path below the root; none means all.
    pub patterns: Vec<String>,
    /// Which files and folders not, besides version control and temporary names.
    pub ignore: Vec<String>,
    /// See [`Initial`].
    pub initial: Initial,
    /// How long a path must rest before it is looked at; within [`SETTLE_RANGE`].
    pub settle: Duration,
    /// How far its events are believed.
    pub trust: Trust,
}

impl FileSourceConfig {
    /// Every file of a folder, with the usual settings.
    pub fn new(id: impl Into<String>, root: impl Into<PathBuf>) -> FileSourceConfig {
        FileSourceConfig {
            id: id.into(),
            root: root.into(),
            patterns: Vec::new(),
            ignore: Vec::new(),
            initial: Initial::Baseline,
            settle: SETTLE_DEFAULT,
            trust: Trust::Owner,
        }
    }

    /// What the configuration says of a source; the rest is as usual.
    pub fn of(source: &config::FileSource) -> FileSourceConfig {
        FileSourceConfig {
            patterns: source.patterns.clone(),
            ignore: source.ignore.clone(),
            initial: if source.emit_initial { Initial::Emit } else { Initial::Baseline },
            trust: source.trust,
            ..FileSourceConfig::new(source.id.clone(), source.path.clone())
        }
    }

    /// Checks everything that can be checked without the disk; the error names the field.
    pub fn check(&self) -> Result<(), Error> {
        self.checked().map(drop)
    }

    fn checked(&self) -> Result<Filter, Error> {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        if !(1..=ID_BYTES_MAX).contains(&self.id.len()) || !self.id.bytes().all(good) {
            let reason = format!("must be 1 to {ID_BYTES_MAX} letters, digits, '_' or '-'.");
            return Err(Error::invalid("id", reason));
        }
        if !self.root.is_absolute() || self.root.parent().is_none() {
            return Err(Error::invalid("path", "must be an absolute path of a folder, not of the whole disk."));
        }
        if !SETTLE_RANGE.contains(&self.settle) {
            return Err(Error::invalid("settle", "must be between 10 ms and 60 s."));
        }
        Filter::new(&self.patterns, &self.ignore)
    }
}

/// How a source stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It has not looked at its folder yet.
    Starting,
    /// The kernel tells of every change.
    Watching,
    /// Not every folder can be watched, so everything is compared once a minute as well.
    Polling,
    /// The folder is not there; nothing is told about its files until it is back.
    Missing,
    /// Switched off by the operator; what changes meanwhile is told after.
    Paused,
    /// Ended.
    Stopped,
}

/// What a source tells of itself.
#[derive(Debug, Clone, Serialize)]
pub struct SourceHealth {
    /// Its id.
    pub id: String,
    /// Always `files`.
    pub kind: &'static str,
    /// The folder.
    pub path: String,
    /// See [`State`].
    pub state: State,
    /// What the state means and what to do about it; empty when all is well.
    pub detail: String,
    /// Folders that the kernel watches for it.
    pub watched_dirs: usize,
    /// Files that are known.
    pub files: u64,
    /// Events since the start.
    pub events: u64,
    /// When the last event was stored.
    pub last_event_ms: Option<Millis>,
    /// Changes that could not be told, since the start.
    pub skipped: u64,
    /// What last went wrong.
    pub last_error: Option<String>,
}

/// A running source; cheap to clone. It ends with its supervisor, or by [`FileSource::stop`].
#[derive(Clone)]
pub struct FileSource {
    inner: Arc<Inner>,
}

struct Inner {
    config: FileSourceConfig,
    name: String,
    filter_text: String,
    bus: Bus,
    stop: CancellationToken,
    /// Held while the task runs.
    running: tokio::sync::Mutex<()>,
    hints: Arc<Hints>,
    scanner: Arc<Mutex<Scanner>>,
    baselined: AtomicBool,
    /// True when everything was compared just now and watched since.
    looked: AtomicBool,
    paused: AtomicBool,
    health: Mutex<SourceHealth>,
}

impl FileSource {
    /// Starts to watch a folder. At the first sight of it, its baseline is durable before this answers, and so it is for
    /// files that other patterns than before take; what changed since an earlier run is told afterwards, in the background.
    ///
    /// `Invalid` names a bad field. A folder that is not there is no error: the source waits for it. One that is `paused`
    /// tells nothing until [`FileSource::resume`].
    pub async fn start(
        config: FileSourceConfig,
        bus: Bus,
        supervisor: &Supervisor,
        paused: bool,
    ) -> Result<FileSource, Error> {
        let filter = config.checked()?;
        let store = bus.store().clone();
        let name = format!("files/{}", config.id);
        let known = store.read_now(|conn| files::source(conn, &name))?;
        let known = known.filter(|row| row.root == config.root.as_os_str().as_bytes());
        let hints = Arc::new(Hints::new(Dirty::new(config.settle)));
        let id = known.as_ref().map_or(0, |row| row.id);
        let mut scanner = Scanner::new(config.root.clone(), filter.clone(), id, store.clone(), Arc::clone(&hints));
        let mut files = 0;
        if let Some(row) = &known {
            scanner.device = row.device;
            files = store.read_now(|conn| files::count(conn, row.id))?;
            if row.filter != filter.text() && config.initial == Initial::Baseline {
                scanner.filter_before = Filter::of_text(&row.filter);
            }
        }
        let other_patterns = scanner.filter_before.is_some();
        let inner = Arc::new(Inner {
            health: Mutex::new(SourceHealth::starting(&config, files)),
            filter_text: filter.text().to_owned(),
            name,
            bus,
            stop: supervisor.stop_token().child_token(),
            running: tokio::sync::Mutex::new(()),
            hints,
            scanner: Arc::new(Mutex::new(scanner)),
            baselined: AtomicBool::new(known.is_some_and(|row| row.baselined_ms.is_some())),
            looked: AtomicBool::new(false),
            paused: AtomicBool::new(paused),
            config,
        });
        if !inner.baselined.load(Ordering::Acquire) {
            inner.first_sight().await?;
        } else if other_patterns {
            inner.first_sight_of_patterns().await?;
        }
        let task = Arc::clone(&inner);
        supervisor.spawn(inner.name.clone(), move || Arc::clone(&task).run());
        Ok(FileSource { inner })
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.inner.config.id
    }

    /// How it stands.
    pub fn health(&self) -> SourceHealth {
        self.inner.health().clone()
    }

    /// Looks at nothing until [`FileSource::resume`].
    pub fn pause(&self) {
        self.inner.paused.store(true, Ordering::Release);
        self.inner.hints.wake.notify_one();
    }

    /// Goes on after a pause: what changed meanwhile is told.
    pub fn resume(&self) {
        self.inner.paused.store(false, Ordering::Release);
        self.inner.hints.dirty().rescan_at(Instant::now());
        self.inner.hints.wake.notify_one();
    }

    /// Ends this source; what is being stored is finished.
    pub async fn stop(&self) {
        self.inner.stop.cancel();
        let _ended = self.inner.running.lock().await;
    }
}

impl SourceHealth {
    fn starting(config: &FileSourceConfig, files: u64) -> SourceHealth {
        SourceHealth {
            id: config.id.clone(),
            kind: "files",
            path: config.root.to_string_lossy().into_owned(),
            state: State::Starting,
            detail: String::new(),
            watched_dirs: 0,
            files,
            events: 0,
            last_event_ms: None,
            skipped: 0,
            last_error: None,
        }
    }
}

impl Inner {
    fn health(&self) -> MutexGuard<'_, SourceHealth> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
