//! A look at the disk: what differs from what is known. Blocking; runs off the async threads.

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::error::Error;
use crate::store::Store;
use crate::store::files::Update;

use super::compare::Differences;
use super::dirty::{Again, Due};
use super::filter::Filter;
use super::look::{Round, join};
use super::watch::{Hints, Watches};

/// What to look at.
#[derive(Debug, Default)]
pub struct Work {
    /// The whole tree.
    pub everything: bool,
    /// These paths, and what the hints told of them.
    pub due: Vec<Due>,
    /// True at the first sight: what is there becomes known without events, finished or not.
    pub baseline: bool,
}

/// What a look at the disk gave.
#[derive(Debug, Default)]
pub struct Found {
    /// What has to become events.
    pub differences: Differences,
    /// What becomes known without an event.
    pub updates: Vec<Update>,
    /// What was not complete, and when to look again.
    pub put_off: Vec<(Due, Again)>,
    /// Why something could not be looked at; what is known of it stays.
    pub problem: Option<String>,
    /// Set when everything was compared and its file system or patterns are other ones than before: the root's file
    /// system, to be noted.
    pub compared: Option<i64>,
}

/// What a look at the disk led to.
#[derive(Debug)]
pub enum Look {
    /// The root is there.
    Found(Found),
    /// The root is not there, for this reason: nothing is known about its files.
    RootGone(String),
}

/// Looks at one root.
pub struct Scanner {
    /// The watched folder.
    pub root: PathBuf,
    /// Which files matter.
    pub filter: Filter,
    /// The filter that the rows were gathered with, while it is another one.
    pub filter_before: Option<Filter>,
    /// Number of the source in the database.
    pub source: i64,
    /// The root's file system when everything was last compared.
    pub device: Option<i64>,
    /// Where the rows are.
    pub store: Store,
    /// The kernel's watches.
    pub watches: Watches,
    /// Where the watches note their hints.
    pub hints: Arc<Hints>,
    root_number: Option<(u64, u64)>,
}

impl Scanner {
    /// A scanner that watches nothing until its first look.
    pub fn new(root: PathBuf, filter: Filter, source: i64, store: Store, hints: Arc<Hints>) -> Scanner {
        let watches = Watches::none(&root);
        Scanner { root, filter, filter_before: None, source, device: None, store, watches, hints, root_number: None }
    }

    /// Compares what `work` names with what is known.
    pub fn look(&mut self, mut work: Work) -> Result<Look, Error> {
        let number = match self.number_of_root() {
            Ok(number) => number,
            Err(why) => return Ok(self.root_gone(why)),
        };
        if self.root_number != Some(number) || (work.everything && !self.watches.is_live()) {
            // Another folder than the one that is watched, or a new try after there were no watches at all.
            self.watches = Watches::new(&self.root, &self.filter, &self.hints);
            self.root_number = Some(number);
            work.everything = true;
        } else if work.everything {
            self.watches.trouble = None;
        }
        let mut round = Round::new(self, work.baseline, number.0, work.due);
        if work.everything {
            round.walk(b"")?;
        } else {
            round.examine_due()?;
        }
        let root_is_empty = work.everything && round.root_entries == 0;
        round.settle();
        let mut found = round.found;
        if self.number_of_root() != Ok(number) {
            return Ok(self.root_gone("It vanished while it was looked at.".to_owned()));
        }
        let device = number.0.cast_signed();
        if root_is_empty && self.device.is_some_and(|known| known != device) && !found.differences.missing.is_empty() {
            let why = "It is empty and on another file system than before: its own is not mounted.";
            return Ok(self.root_gone(why.to_owned()));
        }
        if work.everything {
            let news = self.device != Some(device) || self.filter_before.is_some();
            found.compared = news.then_some(device);
            self.device = Some(device);
            self.filter_before = None;
        }
        Ok(Look::Found(found))
    }

    /// Ends watching; the next look begins anew.
    pub fn stop_watching(&mut self) {
        self.watches = Watches::none(&self.root);
        self.root_number = None;
    }

    /// Watches new folders, and the folders in them, before anyone looks at their files.
    pub fn watch_folders(&mut self, folders: Vec<Vec<u8>>) {
        let mut stack = folders;
        while let Some(folder) = stack.pop() {
            let path = self.root.join(OsStr::from_bytes(&folder));
            if self.root_number.is_none() || !fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir()) {
                continue;
            }
            self.watches.add(&folder);
            for entry in fs::read_dir(&path).into_iter().flatten().flatten() {
                let inside = join(&folder, entry.file_name().as_bytes());
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) && self.filter.takes_folder(&inside) {
                    stack.push(inside);
                }
            }
        }
    }

    /// True when the root is another folder than the one that is watched, or gone, or back.
    pub fn root_changed(&self) -> bool {
        self.number_of_root().ok() != self.root_number
    }

    fn root_gone(&mut self, why: String) -> Look {
        self.watches = Watches::new(&self.root, &self.filter, &self.hints);
        self.watches.add_parent();
        self.root_number = None;
        Look::RootGone(why)
    }

    fn number_of_root(&self) -> Result<(u64, u64), String> {
        match fs::metadata(&self.root) {
            Ok(found) if found.is_dir() => Ok((found.dev(), found.ino())),
            Ok(_) => Err("It is not a folder.".to_owned()),
            Err(error) if error.kind() == ErrorKind::NotFound => Err("It does not exist.".to_owned()),
            Err(error) => Err(format!("It cannot be looked at: {error}.")),
        }
    }
}
