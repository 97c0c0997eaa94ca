//! The log in files: `aman.log`, and `aman.log.1`, `aman.log.2` … of before. One thread writes them.
//!
//! Whoever logs hands a line to a bounded queue and goes on: a slow or full disk costs lines, never time. What was lost
//! is counted, and told in the log as soon as it takes a line again. The thread sleeps until a line comes.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::config::LogFiles;

/// The file that is written now; a number is added to the names of older ones.
pub const NAME: &str = "aman.log";
/// Lines and bytes that may wait for the disk; the next line is lost.
const LINES_MAX: usize = 8192;
const BYTES_MAX: usize = 8 << 20;
/// What goes to the disk in one write.
const BATCH_BYTES: usize = 64 << 10;
/// How long an ending program waits for its last lines.
const LAST_LINES_WAIT: Duration = Duration::from_secs(1);

enum Job {
    Line(Vec<u8>),
    /// Answered once every line before it was tried.
    Flush(SyncSender<()>),
}

/// Where lines are handed in; cheap to clone.
#[derive(Clone)]
pub struct Queue {
    /// Bounded by what waits: a channel that is bounded itself takes all its room from the start.
    jobs: Sender<Job>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Bytes of the lines that wait.
    waiting: AtomicUsize,
    /// Lines that wait.
    lines: AtomicUsize,
    /// Lines that no file holds.
    lost: AtomicU64,
    /// Taken by the thread that writes.
    receiver: Mutex<Option<Receiver<Job>>>,
}

impl Queue {
    /// A queue that nobody writes down yet.
    pub fn new() -> Queue {
        let (jobs, receiver) = channel();
        let shared = Shared { receiver: Mutex::new(Some(receiver)), ..Shared::default() };
        Queue { jobs, shared: Arc::new(shared) }
    }

    /// Begins to write the files; `note` makes a line of a text. A file that cannot be written is told on standard error,
    /// and tried again with the next line.
    pub fn open(&self, files: &LogFiles, note: fn(&str) -> String) -> io::Result<()> {
        let Some(jobs) = self.shared.receiver.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return Ok(());
        };
        let writer = Files { limits: files.clone(), open: None, note, shared: Arc::clone(&self.shared) };
        std::thread::Builder::new().name("aman-log".to_owned()).spawn(move || writer.run(&jobs)).map(drop)
    }

    /// Lines that no file holds.
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }

    /// Waits until the lines handed in so far were tried, a second at the most.
    pub fn wait_written(&self) {
        let (done, wait) = sync_channel(1);
        let until = Instant::now() + LAST_LINES_WAIT;
        if self.jobs.send(Job::Flush(done)).is_err() {
            return;
        }
        let _late: Result<(), RecvTimeoutError> = wait.recv_timeout(until.saturating_duration_since(Instant::now()));
    }
}

impl Write for Queue {
    /// Takes one whole line. It never waits and never fails; a line that finds no room is counted.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let shared = &self.shared;
        let waiting = shared.waiting.fetch_add(line.len(), Ordering::Relaxed) + line.len();
        let lines = shared.lines.fetch_add(1, Ordering::Relaxed) + 1;
        let is_full = waiting > BYTES_MAX || lines > LINES_MAX;
        if is_full || self.jobs.send(Job::Line(line.to_vec())).is_err() {
            shared.waiting.fetch_sub(line.len(), Ordering::Relaxed);
            shared.lines.fetch_sub(1, Ordering::Relaxed);
            shared.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The file that is written now.
struct Open {
    file: File,
    /// Device and number: another file of the same name is another file.
    identity: (u64, u64),
    bytes: u64,
    begun: SystemTime,
}

struct Files {
    limits: LogFiles,
    /// None after a failure; the next batch tries again.
    open: Option<Open>,
    note: fn(&str) -> String,
    shared: Arc<Shared>,
}

impl Files {
    fn run(mut self, jobs: &Receiver<Job>) {
        let (mut told, mut failing) = (0, false);
        let mut batch = Vec::with_capacity(BATCH_BYTES);
        while let Ok(first) = jobs.recv() {
            let (mut lines, mut flushed) = (0, None);
            let mut next = Some(first);
            while let Some(job) = next {
                match job {
                    Job::Line(line) => {
                        self.shared.waiting.fetch_sub(line.len(), Ordering::Relaxed);
                        self.shared.lines.fetch_sub(1, Ordering::Relaxed);
                        batch.extend_from_slice(&line);
                        lines += 1;
                    }
                    Job::Flush(done) => flushed = Some(done),
                }
                next = if batch.len() < BATCH_BYTES && flushed.is_none() { jobs.try_recv().ok() } else { None };
            }
            let lost = self.shared.lost.load(Ordering::Relaxed);
            if lost > told {
                let text =
                    format!("{} lines of this log are lost: the disk was too slow, or took nothing.", lost - told);
                batch.splice(..0, (self.note)(&text).into_bytes());
            }
            match self.append(&batch) {
                Ok(()) => (told, failing) = (lost, false),
                Err(error) => {
                    self.open = None;
                    self.shared.lost.fetch_add(lines, Ordering::Relaxed);
                    let folder = self.limits.dir.display();
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%folder, %error, "The log files take nothing; what is logged is lost to them.");
                    }
                }
            }
            batch.clear();
            // Who waits for this may have given up; that is its right.
            let _heard = flushed.map(|done| done.try_send(()));
        }
    }

    fn append(&mut self, batch: &[u8]) -> io::Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        self.keep_in_bounds(batch.len())?;
        let open = self.open.as_mut().ok_or(io::ErrorKind::NotFound)?;
        let written = open.file.write_all(batch);
        open.bytes += batch.len() as u64;
        written
    }

    /// Puts the file aside when it is full or old, and opens it anew when somebody else moved it.
    fn keep_in_bounds(&mut self, more: usize) -> io::Result<()> {
        let path = self.limits.dir.join(NAME);
        let there = fs::metadata(&path).ok().map(|found| (found.dev(), found.ino()));
        if self.open.as_ref().map(|open| open.identity) != there || there.is_none() {
            self.reopen()?;
        }
        let Some(open) = &self.open else { return Ok(()) };
        let old = open.begun.elapsed().is_ok_and(|age| age > self.limits.age_max);
        if open.bytes > 0 && (open.bytes + more as u64 > self.limits.bytes_max || old) {
            self.rotate()?;
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let dir = &self.limits.dir;
        let numbered = |number: u32| dir.join(format!("{NAME}.{number}"));
        for number in (1..self.limits.keep).rev() {
            match fs::rename(numbered(number), numbered(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if self.limits.keep == 0 {
            fs::remove_file(dir.join(NAME))?;
        } else {
            fs::rename(dir.join(NAME), numbered(1))?;
        }
        self.reopen()
    }

    fn reopen(&mut self) -> io::Result<()> {
        self.open = None;
        let dir = &self.limits.dir;
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        self.forget_old();
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(dir.join(NAME))?;
        let found = file.metadata()?;
        if found.is_file() && found.mode() & 0o077 != 0 {
            file.set_permissions(fs::Permissions::from_mode(0o600))?;
        }
        let begun = found.created().or_else(|_| found.modified()).unwrap_or_else(|_| SystemTime::now());
        self.open = Some(Open { file, identity: (found.dev(), found.ino()), bytes: found.len(), begun });
        Ok(())
    }

    /// Removes files that are too old, and those above the number to be kept, as after the number was lowered.
    fn forget_old(&self) {
        for (number, path) in numbered(&self.limits.dir) {
            let last_line = fs::metadata(&path).and_then(|found| found.modified());
            let old = last_line.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > self.limits.age_max));
            if old || number > self.limits.keep {
                // It is tried again at the next rotation.
                drop(fs::remove_file(path));
            }
        }
    }
}

/// The files that were put aside, by their number: the newest first.
fn numbered(dir: &Path) -> Vec<(u32, PathBuf)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(NAME)?.strip_prefix('.')?.parse().ok());
        found.extend(number.map(|number: u32| (number, entry.path())));
    }
    found.sort();
    found
}

/// All files of the log that are there, the newest first.
pub fn all(dir: &Path) -> Vec<PathBuf> {
    let older = numbered(dir).into_iter().map(|(_, path)| path);
    std::iter::once(dir.join(NAME)).filter(|path| path.exists()).chain(older).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(name: &str) -> LogFiles {
        let dir = std::env::temp_dir().join(format!("aman-log-test-{name}-{:016x}", fastrand::u64(..)));
        LogFiles { dir, bytes_max: 64, keep: 2, age_max: Duration::from_secs(3600) }
    }

    fn note(text: &str) -> String {
        format!("note {text}\n")
    }

    fn line(queue: &mut Queue, text: &str) {
        queue.write_all(format!("{text}\n").as_bytes()).expect("it never fails");
        queue.wait_written();
    }

    fn read(limits: &LogFiles, name: &str) -> String {
        fs::read_to_string(limits.dir.join(name)).unwrap_or_default()
    }

    #[test]
    fn full_files_are_put_aside_and_the_oldest_goes() {
        let limits = limits("rotation");
        let mut queue = Queue::new();
        line(&mut queue, "before it is open");
        queue.open(&limits, note).expect("the folder is ours");
        for n in 1..=4 {
            line(&mut queue, &format!("{n} {}", "x".repeat(50)));
        }
        let texts: Vec<String> = [NAME, "aman.log.1", "aman.log.2"].map(|name| read(&limits, name)).into();
        let firsts: Vec<&str> = texts.iter().map(|text| &text[..1]).collect();
        assert_eq!(firsts, ["4", "3", "2"], "{texts:?}");
        assert_eq!(all(&limits.dir).len(), 3);
        for path in all(&limits.dir) {
            assert_eq!(fs::metadata(path).expect("a file").mode() & 0o777, 0o600);
        }
        assert_eq!(fs::metadata(&limits.dir).expect("a folder").mode() & 0o777, 0o700);
        assert_eq!(queue.lost(), 0);
        drop(fs::remove_dir_all(&limits.dir));
    }

    #[test]
    fn old_files_go_and_a_moved_one_is_made_anew() {
        let limits = limits("age");
        fs::create_dir_all(&limits.dir).expect("a folder");
        let (old, extra) = (limits.dir.join("aman.log.1"), limits.dir.join("aman.log.7"));
        fs::write(&extra, "one too many").expect("a file");
        let file = File::create(&old).expect("a file");
        file.set_modified(SystemTime::now() - Duration::from_secs(7200)).expect("ours");
        let mut queue = Queue::new();
        queue.open(&limits, note).expect("the folder is ours");
        line(&mut queue, "none");
        assert!(!old.exists() && !extra.exists());
        line(&mut queue, "one");
        fs::rename(limits.dir.join(NAME), limits.dir.join("elsewhere")).expect("ours");
        line(&mut queue, "two");
        assert_eq!(read(&limits, NAME), "two\n");
        drop(fs::remove_dir_all(&limits.dir));
    }

    #[test]
    fn what_the_disk_does_not_take_is_counted_and_told() {
        let limits = limits("full");
        fs::create_dir_all(&limits.dir).expect("a folder");
        std::os::unix::fs::symlink("/dev/full", limits.dir.join(NAME)).expect("a link");
        let mut queue = Queue::new();
        queue.open(&limits, note).expect("it can be opened");
        line(&mut queue, "one");
        line(&mut queue, "two");
        assert_eq!(queue.lost(), 2);
        fs::remove_file(limits.dir.join(NAME)).expect("ours");
        line(&mut queue, "three");
        let text = read(&limits, NAME);
        assert!(text.starts_with("note 2 lines of this log are lost") && text.ends_with("\nthree\n"), "{text}");
        drop(fs::remove_dir_all(&limits.dir));
    }
}
