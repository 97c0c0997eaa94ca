//! What a damaged write-ahead log would lose, found out before SQLite opens it: SQLite takes everything up to the first
//! damaged frame, drops the rest and says nothing.
//!
//! Source: SQLite's file format, sections "WAL File Format" and "Checksum Algorithm".

use std::fs::OpenOptions;
use std::io::{self, BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::disk::{WAL_HEADER_BYTES as HEADER_BYTES, WAL_MAGIC, beside};
use crate::clock::{Clock, rfc3339};
use crate::error::Error;
use crate::plain;

const FRAME_HEADER_BYTES: usize = 24;

/// What the log has behind its first damaged place.
#[derive(Debug, Clone)]
pub struct Lost {
    /// Transactions at the most. One of them may have been under way when the power failed, and was never acknowledged.
    pub transactions: u64,
    /// Where the log was kept as it was found.
    pub kept: PathBuf,
}

/// Looks at the files of the database at `path` before they are opened. Refuses a database that is gone while its log is
/// there, which SQLite would throw away. Keeps a copy of a damaged log.
pub(super) fn examine(path: &Path) -> Result<Option<Lost>, Error> {
    let wal = beside(path, "-wal");
    let reading = |error| Error::internal("reading the write-ahead log")(error);
    let file = match plain::open(OpenOptions::new().read(true), &wal) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::InvalidInput => return Err(reading(error)),
        Err(_) => return Ok(None),
    };
    let len = file.metadata().map_err(reading)?.len();
    if len > HEADER_BYTES as u64 && std::fs::metadata(path).map_or(0, |found| found.len()) == 0 {
        let (db, wal) = (path.display(), wal.display());
        let reason = format!(
            "{db} is gone or empty while {wal} still holds data. Nothing was changed. Put the database back, or move \
             {wal} away and run `aman db restore` with the last good backup."
        );
        return Err(Error::conflict("database_damaged", reason));
    }
    let transactions = lost(&mut BufReader::with_capacity(1 << 18, file)).map_err(reading)?;
    if transactions == 0 {
        return Ok(None);
    }
    let now = rfc3339(Clock::System.now_ms()).replace([':', '-'], "");
    let kept = beside(path, &format!("-wal.damaged-{now}"));
    std::fs::copy(&wal, &kept).map_err(Error::internal("keeping a copy of the damaged write-ahead log"))?;
    tracing::error!(
        transactions,
        kept = %kept.display(),
        "The write-ahead log is damaged: what came before is used, at most so many transactions after it are lost. \
         Compare with the programs that sent events since, or restore a backup with `aman db restore`."
    );
    Ok(Some(Lost { transactions, kept }))
}

pub(super) fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map_or(0, u32::from_be_bytes)
}

fn checksum(bytes: &[u8], big_endian: bool, (mut a, mut b): (u32, u32)) -> (u32, u32) {
    let read = |four: &[u8]| {
        let four = four.try_into().unwrap_or_default();
        if big_endian { u32::from_be_bytes(four) } else { u32::from_le_bytes(four) }
    };
    for eight in bytes.chunks_exact(8) {
        a = a.wrapping_add(read(&eight[..4])).wrapping_add(b);
        b = b.wrapping_add(read(&eight[4..])).wrapping_add(a);
    }
    (a, b)
}

/// Commits of the log's present round that stand behind its first damaged frame.
fn lost(log: &mut impl Read) -> io::Result<u64> {
    let mut header = [0; HEADER_BYTES];
    if !fill(log, &mut header)? {
        return Ok(0);
    }
    let big_endian = word(&header, 0) & 1 == 1;
    let mut sum = checksum(&header[..24], big_endian, (0, 0));
    let mut good = word(&header, 0) & !1 == WAL_MAGIC && sum == (word(&header, 24), word(&header, 28));
    let page = usize::try_from(word(&header, 8)).unwrap_or(0);
    let page = if good && (512..=65_536).contains(&page) { page } else { 4096 };
    let mut salts = good.then(|| (word(&header, 16), word(&header, 20)));
    let (mut frame, mut lost, mut strange) = (vec![0; FRAME_HEADER_BYTES + page], 0, 0);
    while fill(log, &mut frame)? {
        let commits = word(&frame, 4) != 0 && word(&frame, 0) != 0;
        // Without a readable header the first frame tells which round this is.
        let known = *salts.get_or_insert((word(&frame, 8), word(&frame, 12)));
        let same = known == (word(&frame, 8), word(&frame, 12)) && known != (0, 0);
        if good {
            sum = checksum(&frame[FRAME_HEADER_BYTES..], big_endian, checksum(&frame[..8], big_endian, sum));
            good = same && sum == (word(&frame, 16), word(&frame, 20));
        }
        // A frame with a commit's marks may itself be what is damaged. One with other salts is a leftover of an earlier
        // round, unless frames of this round follow: then its header is what is damaged, and it may have been a commit.
        if same && !good {
            lost += u64::from(commits) + std::mem::take(&mut strange);
        } else if !same {
            strange += 1;
        }
    }
    Ok(lost)
}

/// Fills `bytes`; false at the end, also in the middle of them.
fn fill(log: &mut impl Read, bytes: &mut [u8]) -> io::Result<bool> {
    match log.read_exact(bytes) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}
