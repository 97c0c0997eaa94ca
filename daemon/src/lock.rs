//! One daemon for each data folder: locks that a removed file does not open.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::config::Paths;
use crate::error::Error;
use crate::plain;

/// How long the lock of a killed predecessor may linger: a process that it was starting holds it until its own program
/// runs.
const WAIT: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(10);

/// Held for as long as the daemon runs: the lock file, which says who holds it, and the data folder itself, which nobody
/// can take away without taking the database with it.
pub struct Locked {
    _folder: Option<File>,
    _file: File,
}

/// Locks the data folder for this process; `already_running` names the process that has it.
pub async fn lock(paths: &Paths) -> Result<Locked, Error> {
    let until = Instant::now() + WAIT;
    let folder = File::open(&paths.data).map_err(|error| unusable(&paths.data, &error))?;
    let folder = match acquire(&folder, until).await {
        Ok(true) => Some(folder),
        Ok(false) => return Err(taken(paths, &folder)),
        // Some network file systems lock no folders; the file alone has to do.
        Err(_) => None,
    };
    loop {
        let mut file = open(&paths.lock_file)?;
        match acquire(&file, until).await {
            // Somebody may have removed or replaced it while this waited: then another process locks the new one.
            Ok(true) if !is_at(&file, &paths.lock_file) => {}
            Ok(true) => {
                // For people only: the lock is what counts.
                let _noted = file.set_len(0).and_then(|()| file.rewind());
                let _noted = writeln!(file, "{}", std::process::id());
                return Ok(Locked { _folder: folder, _file: file });
            }
            Ok(false) => return Err(taken(paths, &file)),
            Err(error) => return Err(unusable(&paths.lock_file, &error)),
        }
    }
}

fn open(path: &Path) -> Result<File, Error> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).read(true).write(true);
    plain::open(&mut options, path).map_err(|error| unusable(path, &error))
}

fn unusable(path: &Path, error: &std::io::Error) -> Error {
    let reason = format!(
        "{} cannot be used: {error}. Make its folder writable for this user, free some space, or choose another AMAN_HOME.",
        path.display()
    );
    Error::conflict("data_unusable", reason)
}

/// False when another process holds it until then.
async fn acquire(file: &File, until: Instant) -> std::io::Result<bool> {
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::WouldBlock) if Instant::now() < until => tokio::time::sleep(PAUSE).await,
            Err(TryLockError::WouldBlock) => return Ok(false),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    let same = |a: std::fs::Metadata, b: std::fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
    file.metadata().and_then(|held| Ok(same(held, std::fs::metadata(path)?))).unwrap_or(false)
}

fn taken(paths: &Paths, file: &File) -> Error {
    let holder = holder(file).or_else(|| {
        let mut text = String::new();
        File::open(&paths.lock_file).and_then(|file| file.take(32).read_to_string(&mut text)).ok()?;
        text.trim().parse().ok()
    });
    let who = holder.map_or_else(String::new, |pid| format!(" (process {pid})"));
    let data = paths.data.display();
    let reason = format!("Another aman{who} works with the data in {data}. Stop it, or choose another AMAN_HOME.");
    Error::conflict("already_running", reason)
}

/// The process that holds a lock on this file, as the kernel tells.
fn holder(file: &File) -> Option<u32> {
    let inode = file.metadata().ok()?.ino().to_string();
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    // 1: FLOCK  ADVISORY  WRITE 3301 fe:00:131122 0 EOF
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let held = words.get(1) == Some(&"FLOCK") && words.get(5)?.rsplit(':').next() == Some(&inode);
        held.then(|| words.get(4)?.parse().ok()).flatten()
    })
}
