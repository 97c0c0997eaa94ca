//! `SOUL.md` on the disk: whether it is another one than before, and how a new one takes its place.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::content::BYTES_MAX;
use crate::plain;

const NAME: &str = "SOUL.md";
/// A text that is complete, and not yet in its place.
const STAGED: &str = ".SOUL.md.new";
/// What a person wrote that could not be used, when another text takes its place.
const BROKEN: &str = "SOUL.broken.md";

/// What tells one state of a file from another without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified_ns: (i64, i64),
    changed_ns: (i64, i64),
}

/// Where the file is.
pub(super) struct Place {
    folder: PathBuf,
    file: PathBuf,
}

impl Place {
    pub fn new(folder: PathBuf) -> Place {
        Place { file: folder.join(NAME), folder }
    }

    /// Its path.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// How it is now; none when there is no file.
    pub fn stamp(&self) -> Option<Stamp> {
        let found = match self.file.metadata() {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            // Reading it says why.
            Err(_) => return Some(Stamp { device: 0, inode: 0, bytes: 0, modified_ns: (0, 0), changed_ns: (0, 0) }),
        };
        Some(Stamp {
            device: found.dev(),
            inode: found.ino(),
            bytes: found.len(),
            modified_ns: (found.mtime(), found.mtime_nsec()),
            changed_ns: (found.ctime(), found.ctime_nsec()),
        })
    }

    /// What it says, or why that cannot be read.
    pub fn read(&self) -> Result<String, String> {
        plain::read(&self.file, BYTES_MAX as u64).map_err(|error| error.to_string())
    }

    /// Writes `text` beside the file, down to the disk.
    pub fn stage(&self, text: &str) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let staged = self.staged();
        let _leftover = fs::remove_file(&staged);
        let mut out = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&staged)?;
        let written = out.write_all(text.as_bytes()).and_then(|()| out.sync_all());
        if written.is_err() {
            self.unstage();
        }
        written
    }

    /// Puts the staged text in the place of the file. A `broken` one that is there is kept beside it.
    pub fn put(&self, broken: bool) -> io::Result<()> {
        let (staged, target) = (self.staged(), self.target());
        if broken {
            fs::rename(&target, target.with_file_name(BROKEN))?;
        }
        fs::rename(&staged, &target)?;
        staged.parent().map_or(Ok(()), |folder| fs::File::open(folder)?.sync_all())
    }

    /// Removes a staged text.
    pub fn unstage(&self) {
        let _gone = fs::remove_file(self.staged());
    }

    /// Where the file really is: a link, as programs make that look after such files, stays one.
    fn target(&self) -> PathBuf {
        self.file.canonicalize().unwrap_or_else(|_| self.file.clone())
    }

    fn staged(&self) -> PathBuf {
        self.target().with_file_name(STAGED)
    }
}
