//! The files of the open database and the disk they are on: still the same ones, as long as they were, with room left.
//!
//! SQLite goes on with the files it has open after they were removed or replaced, and says that it committed. Whoever
//! is told "stored" must find it after the next start, so the writer looks here before it answers.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::statvfs::statvfs;
use rusqlite::Connection;

use super::fault::Fault;
use super::wal::word;

/// What a write-ahead log begins with, but for its last bit. Source: SQLite's file format, "The Write-Ahead Log".
pub(super) const WAL_MAGIC: u32 = 0x377f_0682;
/// The length of the log's header.
pub(super) const WAL_HEADER_BYTES: usize = 32;
/// Below this an error of the disk is taken for a full one: SQLite tells some of them as errors of their own.
const NOTHING_LEFT_BYTES: u64 = 256 << 10;
/// A disk that was full is written again when at least this much is free.
pub(super) const LITTLE_BYTES: u64 = 1 << 20;

/// `path` with `-wal` or `-shm` behind it.
pub(super) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(ending);
    PathBuf::from(name)
}

/// Which files were opened: device and number of the database, its log and the log's index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity([(u64, u64); 3]);

impl Identity {
    /// Of what is at `path` now, with the length of database and log.
    fn at(path: &Path) -> io::Result<(Identity, u64, u64)> {
        let [db, wal, shm] = [path.to_owned(), beside(path, "-wal"), beside(path, "-shm")].map(std::fs::metadata);
        let (db, wal, shm) = (db?, wal?, shm?);
        Ok((Identity([&db, &wal, &shm].map(|found| (found.dev(), found.ino()))), db.len(), wal.len()))
    }

    /// True while the same files are at `path`.
    pub fn is_at(self, path: &Path) -> bool {
        Identity::at(path).is_ok_and(|(now, ..)| now == self)
    }
}

/// True when `path` is a file of the database at `db`, by whatever name.
pub(super) fn is_of(db: &Path, path: &Path) -> bool {
    let file = |path: &Path| std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    let ours = [db.to_owned(), beside(db, "-wal"), beside(db, "-shm")];
    file(path).is_some_and(|there| ours.iter().any(|own| file(own) == Some(there)))
}

/// The open files, as the writer left them.
pub(super) struct Files {
    path: PathBuf,
    identity: Identity,
    /// The log. SQLite locks nothing in it, so a second handle does no harm; one of the database would end SQLite's
    /// locks when it is closed.
    wal: File,
    /// The database, by a handle that reads nothing and that no lock depends on.
    db: File,
    db_len: u64,
    wal_len: u64,
    /// What the log begins with.
    wal_header: [u8; WAL_HEADER_BYTES],
}

impl Files {
    /// Of a database that was just opened and read, so that all its files are there.
    pub fn open(path: &Path) -> io::Result<Files> {
        let (identity, db_len, wal_len) = Identity::at(path)?;
        let wal = File::open(beside(path, "-wal"))?;
        let db = OpenOptions::new().read(true).custom_flags(OFlag::O_PATH.bits()).open(path)?;
        let mut wal_header = [0; WAL_HEADER_BYTES];
        if wal_len != 0 {
            wal.read_exact_at(&mut wal_header, 0)?;
        }
        Ok(Files { path: path.to_owned(), identity, wal, db, db_len, wal_len, wal_header })
    }

    /// Which files they are.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// True when the database, its log or the log's index has no name any more: the next end would lose it.
    pub fn is_unlinked(&self) -> bool {
        let gone = |file: &File| file.metadata().is_ok_and(|found| found.nlink() == 0);
        gone(&self.db) || gone(&self.wal)
    }

    /// Compares what is there with what the last look left. Costs four calls of the kernel.
    pub fn look(&mut self, conn: &Connection) -> Option<Fault> {
        let Ok((now, db_len, wal_len)) = Identity::at(&self.path) else { return Some(Fault::Moved) };
        if now != self.identity {
            return Some(Fault::Moved);
        }
        // A vacuum makes the database shorter, and then it has just the pages that SQLite knows of.
        if db_len < self.db_len && db_len < known_len(conn) {
            return Some(Fault::CutShort);
        }
        let mut header = [0; WAL_HEADER_BYTES];
        if wal_len != 0 {
            let begins = self.wal.read_exact_at(&mut header, 0).is_ok() && word(&header, 0) & !1 == WAL_MAGIC;
            // SQLite empties the log, also when another program asks it to, and begins each new round with new salts:
            // within one round the log only grows.
            if !begins || (wal_len < self.wal_len && header == self.wal_header) {
                return Some(Fault::CutShort);
            }
        }
        (self.db_len, self.wal_len, self.wal_header) = (db_len, wal_len, header);
        None
    }

    /// Puts everything that was committed on disk.
    pub fn sync_log(&self) -> io::Result<()> {
        self.wal.sync_data()
    }
}

fn known_len(conn: &Connection) -> u64 {
    let number = |name| conn.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).unwrap_or(i64::MAX);
    number("page_count").saturating_mul(number("page_size")).unsigned_abs()
}

/// Bytes that this user may still write to the disk of `folder`; none when the disk does not say.
pub fn free_bytes(folder: &Path) -> Option<u64> {
    let found = statvfs(folder).ok()?;
    Some(found.blocks_available().saturating_mul(found.fragment_size()))
}

/// What is behind an error of the disk that `folder` is on, which SQLite tells without its cause: found by writing there.
pub(super) fn behind_error(folder: &Path) -> Fault {
    if free_bytes(folder).is_some_and(|free| free < NOTHING_LEFT_BYTES) {
        return Fault::DiskFull;
    }
    let probe = folder.join("aman.probe");
    let written = std::fs::write(&probe, [0; 4096]);
    let _gone = std::fs::remove_file(&probe);
    match written.map_err(|error| error.kind()) {
        Err(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => Fault::DiskFull,
        Err(io::ErrorKind::ReadOnlyFilesystem) => Fault::ReadOnly,
        _ => Fault::DiskError,
    }
}
