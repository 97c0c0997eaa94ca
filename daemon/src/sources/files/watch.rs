//! The kernel's hints: one watch for each folder, translated into what [`Dirty`] notes.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind, RenameMode};
use notify::{ErrorKind, Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

use super::dirty::{Dirty, Hint};
use super::filter::Filter;

/// What is shared between the kernel's messenger and the source's task.
#[derive(Debug)]
pub struct Hints {
    dirty: Mutex<Dirty>,
    /// Wakes the source's task.
    pub wake: Notify,
}

impl Hints {
    /// Nothing noted yet.
    pub fn new(dirty: Dirty) -> Hints {
        Hints { dirty: Mutex::new(dirty), wake: Notify::new() }
    }

    /// What is noted.
    pub fn dirty(&self) -> MutexGuard<'_, Dirty> {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The watches of one root. Each folder is watched by itself and before it is listed: so nothing slips between the
/// two, folders that are left out cost no watch, and no symlink is followed.
pub struct Watches {
    root: PathBuf,
    watcher: Option<RecommendedWatcher>,
    watched: HashSet<Vec<u8>>,
    /// Why not everything is watched, and what to do about it.
    pub trouble: Option<String>,
}

impl Watches {
    /// Watches nothing yet; what is watched later is noted in `hints`.
    pub fn new(root: &Path, filter: &Filter, hints: &Arc<Hints>) -> Watches {
        let translate = Translate { root: root.to_owned(), filter: filter.clone(), hints: Arc::clone(hints) };
        let config = notify::Config::default().with_follow_symlinks(false);
        let made = RecommendedWatcher::new(move |event| translate.take(event), config);
        let (watcher, trouble) = match made {
            Ok(watcher) => (Some(watcher), None),
            Err(error) => (None, Some(explain(&error))),
        };
        Watches { root: root.to_owned(), watcher, watched: HashSet::new(), trouble }
    }

    /// Watches nothing and never will.
    pub fn none(root: &Path) -> Watches {
        Watches { root: root.to_owned(), watcher: None, watched: HashSet::new(), trouble: None }
    }

    /// True when folders can be watched at all.
    pub fn is_live(&self) -> bool {
        self.watcher.is_some()
    }

    /// Watches a folder, if it can be.
    pub fn add(&mut self, folder: &[u8]) {
        let path = self.root.join(OsStr::from_bytes(folder));
        let Some(watcher) = &mut self.watcher else { return };
        match watcher.watch(&path, RecursiveMode::NonRecursive) {
            Ok(()) => drop(self.watched.insert(folder.to_vec())),
            // It vanished: its parent's hints tell the rest.
            Err(error) if is_gone(&error) => drop(self.watched.remove(folder)),
            Err(error) => {
                self.watched.remove(folder);
                self.trouble = Some(explain(&error));
            }
        }
    }

    /// Watches the folder above the root, for the time when the root is not there.
    pub fn add_parent(&mut self) {
        if let (Some(watcher), Some(parent)) = (&mut self.watcher, self.root.parent())
            && let Err(error) = watcher.watch(parent, RecursiveMode::NonRecursive)
        {
            tracing::debug!(%error, "The folder above a watched folder cannot be watched.");
        }
    }

    /// Forgets folders that are not there any more.
    pub fn forget_below(&mut self, folder: &[u8], is_there: impl Fn(&[u8]) -> bool) {
        let inside = |path: &[u8]| folder.is_empty() || path == folder || is_below(path, folder);
        self.watched.retain(|path| !inside(path) || is_there(path));
    }

    /// True when the kernel tells of changes in this folder.
    pub fn covers(&self, folder: &[u8]) -> bool {
        self.watched.contains(folder)
    }

    /// How many folders are watched.
    pub fn count(&self) -> usize {
        self.watched.len()
    }
}

/// True when `path` lies below `folder`, which is not the root.
pub fn is_below(path: &[u8], folder: &[u8]) -> bool {
    path.len() > folder.len() && path.starts_with(folder) && path[folder.len()] == b'/'
}

fn is_gone(error: &notify::Error) -> bool {
    match &error.kind {
        ErrorKind::PathNotFound => true,
        ErrorKind::Io(error) => {
            matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
        }
        _ => false,
    }
}

/// What a failed watch means to the operator.
fn explain(error: &notify::Error) -> String {
    let full = "The kernel's limit of watched folders is reached. Raise it with 'sysctl \
                fs.inotify.max_user_watches=524288' (and in /etc/sysctl.d, to keep it), watch fewer folders, or ignore \
                large ones; until then the folder is compared with what is known once a minute.";
    match &error.kind {
        ErrorKind::MaxFilesWatch => full.to_owned(),
        ErrorKind::Io(io) if io.raw_os_error() == Some(28) => full.to_owned(),
        ErrorKind::Io(io) if io.raw_os_error() == Some(24) => {
            "The kernel's limit of programs that watch folders is reached. Raise it with 'sysctl \
             fs.inotify.max_user_instances=512' (and in /etc/sysctl.d, to keep it) and check 'ulimit -n'; until then the \
             folder is compared with what is known once a minute."
                .to_owned()
        }
        _ => format!("A folder cannot be watched ({error}); the folder is compared with what is known once a minute."),
    }
}

/// Turns the kernel's messages into hints, on the messenger's thread.
struct Translate {
    root: PathBuf,
    filter: Filter,
    hints: Arc<Hints>,
}

impl Translate {
    fn take(&self, event: notify::Result<Event>) {
        let now = Instant::now();
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                tracing::warn!(%error, "The kernel's messages about a watched folder were cut off.");
                return self.wake_if(self.hints.dirty().overflow(now));
            }
        };
        if event.need_rescan() {
            tracing::warn!("The kernel dropped messages about a watched folder; everything is compared.");
            return self.wake_if(self.hints.dirty().overflow(now));
        }
        if let EventKind::Modify(ModifyKind::Name(RenameMode::Both)) = event.kind {
            if let [from, to] = event.paths.as_slice()
                && let (Some(from), Some(to)) = (self.relative(from), self.relative(to))
            {
                self.hints.dirty().moved(from, to, now);
            }
            return;
        }
        let Some(path) = event.paths.first().and_then(|path| self.relative(path)) else { return };
        if let Some(hint) = self.hint(event.kind, path) {
            self.wake_if(self.hints.dirty().hint(path, hint, now));
        }
    }

    fn wake_if(&self, earlier: bool) {
        if earlier {
            self.hints.wake.notify_one();
        }
    }

    fn relative<'p>(&self, path: &'p Path) -> Option<&'p [u8]> {
        path.strip_prefix(&self.root).ok().map(|path| path.as_os_str().as_bytes())
    }

    /// What an event means, if its path matters. The root itself is the empty path.
    fn hint(&self, kind: EventKind, path: &[u8]) -> Option<Hint> {
        let (hint, of_file, of_folder) = match kind {
            EventKind::Access(AccessKind::Open(_)) => (Hint::Opened, true, false),
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => (Hint::Closed, true, false),
            EventKind::Create(CreateKind::Folder) => (Hint::Folder, false, true),
            EventKind::Create(_) => (Hint::Created, true, false),
            EventKind::Modify(ModifyKind::Name(RenameMode::To)) => (Hint::Arrived, true, true),
            EventKind::Modify(ModifyKind::Name(_)) | EventKind::Remove(_) => (Hint::Left, true, true),
            EventKind::Modify(ModifyKind::Metadata(_)) => (Hint::Touched, true, true),
            EventKind::Modify(_) => (Hint::Written, true, false),
            EventKind::Access(_) | EventKind::Any | EventKind::Other => return None,
        };
        if path.is_empty() {
            return (hint != Hint::Opened).then_some(hint);
        }
        let matters = (of_file && self.filter.takes_file(path)) || (of_folder && self.filter.takes_folder(path));
        matters.then_some(hint)
    }
}
