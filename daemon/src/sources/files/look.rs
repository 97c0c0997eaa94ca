//! One look at the disk while it goes on: walks folders, compares each file with its row.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::UNIX_EPOCH;

use crate::error::Error;
use crate::store::files::{self, Seen, Update};

use super::compare::{Arrival, content_differs};
use super::dirty::Due;
use super::scan::{Found, Scanner};
use super::watch::is_below;

/// One look, while it goes on.
pub(super) struct Round<'s> {
    /// Who looks.
    pub scanner: &'s mut Scanner,
    /// What was found so far.
    pub found: Found,
    /// Due paths with their hints.
    pub due: HashMap<Vec<u8>, Due>,
    /// Files that differ, but got new hints meanwhile: they are looked at again.
    pub held: Vec<(Vec<u8>, Seen)>,
    /// The root's file system.
    pub root_device: u64,
    baseline: bool,
    /// Entries of the root itself, once it was listed.
    pub root_entries: usize,
    visited: HashSet<Vec<u8>>,
    /// Folders that could not be listed: what is known below them stays.
    unknown: Vec<Vec<u8>>,
    real_folders: HashMap<Vec<u8>, bool>,
}

impl<'s> Round<'s> {
    /// Nothing was looked at yet.
    pub fn new(scanner: &'s mut Scanner, baseline: bool, root_device: u64, due: Vec<Due>) -> Round<'s> {
        Round {
            scanner,
            found: Found::default(),
            due: due.into_iter().map(|due| (due.path.clone(), due)).collect(),
            held: Vec::new(),
            root_device,
            baseline,
            root_entries: 0,
            visited: HashSet::new(),
            unknown: Vec::new(),
            real_folders: HashMap::new(),
        }
    }

    /// Looks at every due path.
    pub fn examine_due(&mut self) -> Result<(), Error> {
        let mut paths: Vec<Vec<u8>> = self.due.keys().cloned().collect();
        // A folder comes before what is in it, so that nothing is looked at twice.
        paths.sort();
        for path in paths {
            if !self.visited.contains(parent(&path)) {
                self.examine(&path)?;
            }
        }
        Ok(())
    }

    fn examine(&mut self, path: &[u8]) -> Result<(), Error> {
        if !self.is_real_folder(parent(path)) {
            return self.vanished(path);
        }
        match fs::symlink_metadata(self.full(path)) {
            Ok(found) if found.is_dir() && self.scanner.filter.takes_folder(path) => {
                if let Some(known) = self.known(path)? {
                    self.missing(path.to_vec(), known);
                }
                self.walk(path)
            }
            Ok(found) if found.is_file() && self.scanner.filter.takes_file(path) => {
                self.vanished_below(path)?;
                let known = self.known(path)?;
                self.present(path.to_vec(), known, &found);
                Ok(())
            }
            Ok(_) => self.vanished(path),
            Err(error) if is_gone(&error) => self.vanished(path),
            Err(error) => {
                self.problem(path, &error);
                Ok(())
            }
        }
    }

    /// Looks at a folder and everything below it.
    pub fn walk(&mut self, top: &[u8]) -> Result<(), Error> {
        let mut stack = vec![top.to_vec()];
        while let Some(folder) = stack.pop() {
            if !self.visited.contains(&folder) {
                self.list(folder, &mut stack)?;
            }
        }
        self.vanished_below(top)?;
        let visited = &self.visited;
        self.scanner.watches.forget_below(top, |folder| visited.contains(folder));
        Ok(())
    }

    fn list(&mut self, folder: Vec<u8>, stack: &mut Vec<Vec<u8>>) -> Result<(), Error> {
        // Watched first: what comes after the listing is hinted at.
        self.scanner.watches.add(&folder);
        let rows = self.rows_in(&folder)?;
        let entries = match fs::read_dir(self.full(&folder)) {
            Ok(entries) => entries,
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) => {
                self.problem(&folder, &error);
                self.unknown.push(folder);
                return Ok(());
            }
        };
        let mut rows: HashMap<Vec<u8>, Seen> = rows.into_iter().collect();
        for entry in entries {
            let looked = entry.and_then(|entry| Ok((entry.file_type()?, entry)));
            let (kind, entry) = match looked {
                Ok(looked) => looked,
                Err(error) if is_gone(&error) => continue,
                Err(error) => {
                    self.problem(&folder, &error);
                    self.unknown.push(folder);
                    return Ok(());
                }
            };
            self.root_entries += usize::from(folder.is_empty());
            let path = join(&folder, entry.file_name().as_bytes());
            if kind.is_dir() && self.scanner.filter.takes_folder(&path) {
                stack.push(path);
            } else if kind.is_file() && self.scanner.filter.takes_file(&path) {
                match entry.metadata() {
                    Ok(found) => {
                        let known = rows.remove(&path);
                        self.present(path, known, &found);
                    }
                    Err(error) if is_gone(&error) => {}
                    Err(error) => {
                        rows.remove(&path);
                        self.problem(&path, &error);
                    }
                }
            }
        }
        self.visited.insert(folder);
        for (path, seen) in rows {
            self.missing(path, seen);
        }
        Ok(())
    }

    /// A regular file is at `path`.
    fn present(&mut self, path: Vec<u8>, known: Option<Seen>, found: &Metadata) {
        let seen = state(found, self.root_device);
        if known == Some(seen) {
            return;
        }
        let hinted = self.due.contains_key(&path);
        // Without a hint, another file of equal size and time is the same one: some file systems number anew.
        let same = known.is_some_and(|known| {
            let same_file = (known.inode, known.born_ns) == (seen.inode, seen.born_ns);
            !content_differs(&known, &seen) && (same_file || !hinted)
        });
        let newly_wanted =
            known.is_none() && self.scanner.filter_before.as_ref().is_some_and(|before| !before.takes_file(&path));
        if same || newly_wanted || self.baseline {
            self.found.updates.push(Update::Put(path, seen));
        } else if self.scanner.hints.dirty().waits(&path) {
            self.held.push((path, seen));
        } else {
            let touched_ns = nanoseconds(found.ctime(), found.ctime_nsec());
            self.found.differences.arrived.insert(path, Arrival { found: seen, known, touched_ns });
        }
    }

    fn missing(&mut self, path: Vec<u8>, seen: Seen) {
        if self.baseline || !self.scanner.filter.takes_file(&path) {
            self.found.updates.push(Update::Forget(path));
        } else {
            self.found.differences.missing.insert(path, seen);
        }
    }

    /// Neither a file nor a folder that matters is at `path` any more.
    fn vanished(&mut self, path: &[u8]) -> Result<(), Error> {
        if let Some(known) = self.known(path)? {
            self.missing(path.to_vec(), known);
        }
        self.scanner.watches.forget_below(path, |_| false);
        self.vanished_below(path)
    }

    fn vanished_below(&mut self, top: &[u8]) -> Result<(), Error> {
        let (store, source) = (&self.scanner.store, self.scanner.source);
        let folders = store.read_now(|conn| files::folders_below(conn, source, top))?;
        for folder in folders {
            let unknown = |unknown: &Vec<u8>| *unknown == folder || unknown.is_empty() || is_below(&folder, unknown);
            if !self.visited.contains(&folder) && !self.unknown.iter().any(unknown) {
                for (path, seen) in self.rows_in(&folder)? {
                    self.missing(path, seen);
                }
            }
        }
        Ok(())
    }

    /// True when no part of the path below the root is a symlink or gone.
    fn is_real_folder(&mut self, folder: &[u8]) -> bool {
        if folder.is_empty() {
            return true;
        }
        if let Some(known) = self.real_folders.get(folder) {
            return *known;
        }
        let real = self.is_real_folder(parent(folder))
            && fs::symlink_metadata(self.full(folder)).is_ok_and(|found| found.is_dir());
        self.real_folders.insert(folder.to_vec(), real);
        real
    }

    fn known(&self, path: &[u8]) -> Result<Option<Seen>, Error> {
        let source = self.scanner.source;
        self.scanner.store.read_now(|conn| files::seen(conn, source, path))
    }

    fn rows_in(&self, folder: &[u8]) -> Result<Vec<(Vec<u8>, Seen)>, Error> {
        let source = self.scanner.source;
        self.scanner.store.read_now(|conn| files::in_folder(conn, source, folder))
    }

    /// The absolute path.
    pub fn full(&self, path: &[u8]) -> PathBuf {
        self.scanner.root.join(OsStr::from_bytes(path))
    }

    fn problem(&mut self, path: &[u8], error: &std::io::Error) {
        let text = format!("'{}' cannot be looked at: {error}.", self.full(path).display());
        self.found.problem.get_or_insert(text);
    }
}

/// The folder that `path` lies in; the root is the empty path.
pub(super) fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(b"", |at| &path[..at])
}

/// The path of `name` in `folder`.
pub(super) fn join(folder: &[u8], name: &[u8]) -> Vec<u8> {
    if folder.is_empty() { name.to_vec() } else { [folder, b"/", name].concat() }
}

fn is_gone(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

fn nanoseconds(seconds: i64, part: i64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(part)
}

fn state(found: &Metadata, root_device: u64) -> Seen {
    let born = found.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    Seen {
        size: i64::try_from(found.size()).unwrap_or(i64::MAX),
        mtime_ns: nanoseconds(found.mtime(), found.mtime_nsec()),
        inode: found.ino().cast_signed(),
        device: if found.dev() == root_device { 0 } else { found.dev().cast_signed() },
        born_ns: born.and_then(|since| i64::try_from(since.as_nanos()).ok()),
    }
}
