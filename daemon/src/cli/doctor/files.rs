//! Who could read or change the daemon's files.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::geteuid;

use super::catalogue::Id;
use super::{Check, Fix, Verdict};
use crate::cli::out::count;
use crate::config::Paths;
use crate::telemetry;

/// Entries of skill folders that are looked at.
const ENTRIES_MAX: usize = 20_000;
const DEPTH_MAX: usize = 8;
/// Offenders that are named.
const NAMED_MAX: usize = 3;
/// How often, and after how long, a database that looks wrong is looked at again.
const LOOKS_AGAIN: usize = 5;
const LOOK_PAUSE: Duration = Duration::from_millis(50);
const YEAR: Duration = Duration::from_secs(365 * 86_400);
/// All rights of the group and of others; and their rights to change.
const ALL_RIGHTS: u32 = 0o077;
const WRITE_RIGHTS: u32 = 0o022;
/// How every SQLite database begins.
const SQLITE: &[u8] = b"SQLite format 3\0";
const HELP: &str = "`aman doctor --security --fix` takes the rights away.";

/// What is looked at.
pub struct Places<'a> {
    /// The daemon's own places.
    pub paths: &'a Paths,
    /// Where log files are.
    pub logs: PathBuf,
    /// The private key of TLS.
    pub tls_key: Option<PathBuf>,
    /// Folders of skills besides the data folder's.
    pub skill_paths: Vec<PathBuf>,
    /// True when the configuration file holds secrets as they are.
    pub holds_secrets: bool,
}

/// All checks of modes and owners.
pub fn checks(places: &Places<'_>) -> Vec<Check> {
    let paths = places.paths;
    let database: Vec<PathBuf> = ["", "-wal", "-shm"].map(|end| with_end(&paths.db_file, end)).into();
    let config = [paths.config_file.clone(), paths.state.join("last-good.toml")];
    let config_bits = if places.holds_secrets { ALL_RIGHTS } else { WRITE_RIGHTS };
    let folders = [paths.data.clone(), paths.state.clone(), paths.runtime.clone()];
    let look = Look { owner: fs::metadata(&paths.data).map_or_else(|_| geteuid().as_raw(), |found| found.uid()) };
    let mut checks = vec![
        look.at(Id::TokenMode, &[paths.token_file.clone(), paths.signing_key_file.clone()], ALL_RIGHTS),
        look.at(Id::DatabaseMode, &database, ALL_RIGHTS),
        look.at(Id::ConfigMode, &config, config_bits),
        look.at(Id::FolderMode, &folders, ALL_RIGHTS),
        look.above(&[&paths.data, &paths.state, &paths.runtime, &paths.config_file]),
        look.at(Id::LogMode, &telemetry::log_files(&places.logs), ALL_RIGHTS),
        look.at(Id::BackupMode, &backups(paths), ALL_RIGHTS),
        look.skills(std::iter::once(&paths.data.join("skills")).chain(&places.skill_paths)),
    ];
    checks.push(match &places.tls_key {
        Some(key) => look.at(Id::TlsKeyMode, std::slice::from_ref(key), ALL_RIGHTS),
        None => Check::ok(Id::TlsKeyMode, "no TLS is configured"),
    });
    checks.push(token_age(&paths.token_file));
    checks
}

fn with_end(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    PathBuf::from(name)
}

struct Look {
    /// Whose files they are to be; root's are as good.
    owner: u32,
}

/// What is wrong with the files of one check.
#[derive(Default)]
struct Found {
    looked: usize,
    wrong: Vec<String>,
    fixes: Vec<Fix>,
    /// Others can change something, or own it.
    change: bool,
}

impl Found {
    fn check(self, id: Id) -> Check {
        if self.wrong.is_empty() {
            let message =
                if self.looked == 0 { "none is there".to_owned() } else { format!("{} looked at", self.looked) };
            return Check::ok(id, message);
        }
        let more = self.wrong.len().saturating_sub(NAMED_MAX);
        let mut message = self.wrong[..self.wrong.len().min(NAMED_MAX)].join("; ");
        if more > 0 {
            message.push_str(&format!("; and {more} more"));
        }
        let advice = if self.fixes.is_empty() { "Give them to the user who runs aman, with chown." } else { HELP };
        let secret = matches!(id, Id::TokenMode | Id::TlsKeyMode | Id::ConfigMode | Id::BackupMode);
        let status = if self.change || secret { Verdict::Fail } else { Verdict::Warn };
        Check { fixes: self.fixes, ..Check::new(id, status, message, Some(advice.to_owned())) }
    }

    fn note(&mut self, path: &Path, found: &Metadata, owner: u32, bits: u32) {
        self.looked += 1;
        let (mode, shown) = (found.mode() & 0o7777, path.display());
        if found.uid() != owner && found.uid() != 0 {
            self.change = true;
            self.wrong.push(format!("{shown} belongs to user {}", found.uid()));
        } else if mode & bits != 0 {
            self.change |= mode & bits & WRITE_RIGHTS != 0;
            self.wrong.push(format!("{shown} has mode {mode:04o}"));
            self.fixes.push(Fix { path: path.to_owned(), bits });
        }
    }
}

impl Look {
    /// Files and folders that must not give others `bits`. Links are looked at as what they lead to, and never changed.
    fn at(&self, id: Id, paths: &[PathBuf], bits: u32) -> Check {
        let mut found = Found::default();
        for path in paths {
            // What is not there gives nothing away; what cannot be seen is another check's matter.
            let Ok(metadata) = fs::metadata(path) else { continue };
            // In a closed folder a file may be open: nobody gets that far. Tokens and keys are closed all the same.
            let parent = path.parent().and_then(|folder| fs::metadata(folder).ok());
            let closed = parent.is_some_and(|folder| folder.mode() & ALL_RIGHTS == 0 && folder.uid() == self.owner);
            let bits = if closed && matches!(id, Id::DatabaseMode | Id::LogMode) { 0 } else { bits };
            found.note(path, &metadata, self.owner, bits);
        }
        found.check(id)
    }

    /// The folders above: who can rename one of them can put another in its place.
    fn above(&self, paths: &[&PathBuf]) -> Check {
        let folders: BTreeSet<&Path> = paths.iter().flat_map(|path| path.ancestors().skip(1)).collect();
        let mut wrong = Vec::new();
        for folder in folders {
            let Ok(found) = fs::metadata(folder) else { continue };
            let (mode, shown) = (found.mode() & 0o7777, folder.display());
            if found.uid() != self.owner && found.uid() != 0 {
                wrong.push(format!("{shown} belongs to user {}", found.uid()));
            } else if mode & WRITE_RIGHTS != 0 && mode & 0o1000 == 0 {
                wrong.push(format!("{shown} has mode {mode:04o}"));
            }
        }
        if wrong.is_empty() {
            return Check::ok(Id::ParentFolders, "only root and this user can change them");
        }
        let advice = "chmod go-w them, or keep aman's folders elsewhere: who writes there can replace what is below.";
        Check::fail(Id::ParentFolders, wrong.join("; "), advice)
    }

    fn skills<'a>(&self, roots: impl Iterator<Item = &'a PathBuf>) -> Check {
        let mut found = Found::default();
        for root in roots {
            self.walk(root, 0, &mut found);
        }
        let cut = found.looked >= ENTRIES_MAX;
        let check = found.check(Id::SkillWritable);
        if cut && check.status == Verdict::Ok {
            return Check::warn(
                Id::SkillWritable,
                "Too many files to look at all",
                "Keep fewer files with the skills.",
            );
        }
        check
    }

    fn walk(&self, path: &Path, depth: usize, found: &mut Found) {
        let Ok(metadata) = fs::symlink_metadata(path) else { return };
        if found.looked >= ENTRIES_MAX || depth > DEPTH_MAX || metadata.is_symlink() {
            return;
        }
        found.note(path, &metadata, self.owner, WRITE_RIGHTS);
        if metadata.is_dir() {
            for entry in fs::read_dir(path).into_iter().flatten().flatten() {
                self.walk(&entry.path(), depth + 1, found);
            }
        }
    }
}

/// Copies of the database, known by how they begin.
fn backups(paths: &Paths) -> Vec<PathBuf> {
    let folders = [paths.data.clone(), paths.data.join("backups")];
    let entries = folders.iter().flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten());
    let is_copy = |path: &PathBuf| {
        let mut head = [0; SQLITE.len()];
        *path != paths.db_file
            && path.is_file()
            && fs::File::open(path).and_then(|mut file| file.read_exact(&mut head)).is_ok()
            && head == SQLITE
    };
    entries.take(ENTRIES_MAX).map(|entry| entry.path()).filter(is_copy).collect()
}

fn token_age(file: &Path) -> Check {
    let Ok(changed) = fs::metadata(file).and_then(|found| found.modified()) else {
        return Check::ok(Id::TokenAge, "no token file is there");
    };
    let age = changed.elapsed().unwrap_or_default();
    let days = age.as_secs() / 86_400;
    if age < YEAR {
        return Check::ok(Id::TokenAge, format!("{} old", count(days, "day")));
    }
    let advice = format!("Delete {} and restart for a new one; tell the programs that use it.", file.display());
    Check::warn(Id::TokenAge, format!("The static token is {days} days old and never ends"), advice)
}

/// Whether the database begins as a database does, and has the size that it says.
///
/// Source: the SQLite file format, section "The Database Header".
pub fn database_integrity(file: &Path) -> Check {
    let mut check = database_head(file);
    // A daemon that moves its log into the database changes size and header one after the other.
    for _ in 0..LOOKS_AGAIN {
        if check.status != Verdict::Fail {
            break;
        }
        std::thread::sleep(LOOK_PAUSE);
        check = database_head(file);
    }
    check
}

fn database_head(file: &Path) -> Check {
    let id = Id::DatabaseIntegrity;
    let advice = "Stop the daemon, keep a copy of all aman.db* files, and restore a backup.";
    let mut head = [0_u8; 100];
    let read = fs::File::open(file).and_then(|mut opened| opened.read_exact(&mut head).map(|()| opened.metadata()));
    let bytes = match read {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Check::ok(id, "no database is there yet"),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            return Check::fail(id, format!("{} is cut off", file.display()), advice);
        }
        Err(error) => return Check::skip(id, format!("{}: {error}", file.display())),
        Ok(found) => found.map_or(0, |found| found.len()),
    };
    let number = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let page = match u64::from(u16::from_be_bytes([head[16], head[17]])) {
        1 => 65_536,
        size => size,
    };
    if !head.starts_with(SQLITE) || page < 512 || !page.is_power_of_two() {
        return Check::fail(id, format!("{} does not begin as a database does", file.display()), advice);
    }
    // The count of pages holds only if it was written by whoever changed the file last.
    let counted = number(24) == number(92) && number(28) > 0;
    if bytes % page != 0 || (counted && bytes < u64::from(number(28)) * page) {
        let message = format!("{} has {bytes} bytes, less than it says or no whole pages", file.display());
        return Check::fail(id, message, advice);
    }
    Check::ok(id, format!("{} of {page} bytes; `aman db check` reads them all", count(bytes / page, "page")))
}
