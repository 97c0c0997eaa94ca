//! Copies of the database: made while the daemon works, verified before they are called done, restored into a folder of
//! their own.

mod plugin_databases;

use std::collections::{BTreeMap, HashMap};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};
use serde::Serialize;
use serde_json::json;

use super::{Committed, Counters, Tx, audit, check, disk, migrate, retention};
use crate::clock::Millis;
use crate::error::Error;
use crate::id::Ids;

/// Pages that are copied before the disk is left to others for a moment.
const STEP_PAGES: i32 = 512;
const STEP_PAUSE: Duration = Duration::from_millis(1);
/// How often a source that is locked is tried again.
const BUSY_MAX: u32 = 5000;
/// How far row numbers are moved on by a restore: further than the daemon whose copy this is can have come since.
const NUMBERS_SKIPPED: i64 = 1_000_000_000;
/// Tables whose rows are counted.
const COUNTED: [&str; 6] = ["event", "delivery", "dead_letter", "outbox", "audit", "notification"];

/// A copy that was made and verified.
#[derive(Debug, Clone, Serialize)]
pub struct Made {
    /// Where it is.
    pub file: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// The newest event in it.
    pub sequence: i64,
    /// Rows by table.
    pub rows: BTreeMap<&'static str, i64>,
    /// Audit records whose chain was checked.
    pub audit_records: i64,
    /// Files of the private databases of plugins that it holds.
    pub plugin_databases: Vec<String>,
}

/// A database, and the folder of the private databases of plugins that belong to it.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The database's file.
    pub db: &'a Path,
    /// Where each plugin has its own.
    pub plugins: &'a Path,
}

fn failed(what: &'static str) -> impl Fn(rusqlite::Error) -> Error {
    move |error| Error::internal(what)(error)
}

fn rows(conn: &Connection) -> Result<BTreeMap<&'static str, i64>, Error> {
    let count = |table: &&'static str| {
        let sql = format!("SELECT count(*) FROM {table}");
        conn.query_row(&sql, [], |row| row.get(0)).map(|rows| (*table, rows)).map_err(failed("counting rows"))
    };
    COUNTED.iter().map(count).collect()
}

/// A file that is being made, and goes again if it is not finished.
struct Partial {
    path: PathBuf,
    done: bool,
}

impl Partial {
    /// Makes an empty file beside `target` that only its owner reads.
    fn new(target: &Path) -> Result<Partial, Error> {
        let name = target.file_name().ok_or_else(|| Error::invalid("file", "must be a path that ends with a name."))?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}.partial", std::process::id()));
        let path = target.with_file_name(hidden);
        let _left_over = std::fs::remove_file(&path);
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| Error::invalid("file", format!("cannot be made: {}: {error}.", path.display())))?;
        Ok(Partial { path, done: false })
    }

    /// Puts the file on the disk under its name; replaces what is there only if `force` is given.
    fn finish(mut self, target: &Path, force: bool) -> Result<(), Error> {
        let io = |error| Error::internal("putting the copy on the disk")(error);
        File::open(&self.path).and_then(|file| file.sync_all()).map_err(io)?;
        let named = if force { std::fs::rename(&self.path, target) } else { name_new(&self.path, target) };
        named.map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => taken(target),
            _ => io(error),
        })?;
        self.done = true;
        let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.done {
            let _gone = std::fs::remove_file(&self.path);
        }
        for end in ["-journal", "-wal", "-shm"] {
            let mut name = self.path.clone().into_os_string();
            name.push(end);
            let _gone = std::fs::remove_file(name);
        }
    }
}

/// Gives a file a name that is free; fails when it is taken, also when that happened only just now. Where no file can have
/// two names, as on a USB stick, only a name that is taken before is noticed.
fn name_new(from: &Path, to: &Path) -> std::io::Result<()> {
    match std::fs::hard_link(from, to) {
        Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::Unsupported) => {
            if to.symlink_metadata().is_ok() {
                return Err(ErrorKind::AlreadyExists.into());
            }
            std::fs::rename(from, to)
        }
        linked => linked.and_then(|()| std::fs::remove_file(from)),
    }
}

fn taken(target: &Path) -> Error {
    let reason = format!("{} is there already. Choose another name, or replace it with --force.", target.display());
    Error::conflict("already_exists", reason)
}

/// Copies `source` as it is now into `partial`. Neither the writer nor other readers wait for it: the copy is of one
/// moment, read beside them.
fn copy(source: &Connection, partial: &Path) -> Result<Connection, Error> {
    let what = "copying the database";
    let mut copy = Connection::open(partial).map_err(failed(what))?;
    let backup = Backup::new(source, &mut copy).map_err(failed(what))?;
    let mut busy = 0;
    loop {
        match backup.step(STEP_PAGES).map_err(failed(what))? {
            StepResult::Done => break,
            StepResult::More => {}
            _ if busy == BUSY_MAX => return Err(locked()),
            _ => busy += 1,
        }
        std::thread::sleep(STEP_PAUSE);
    }
    drop(backup);
    // One file, without companions.
    let mode: String = copy.query_row("PRAGMA journal_mode = DELETE", [], |row| row.get(0)).map_err(failed(what))?;
    if mode != "delete" {
        return Err(Error::internal(what)(format!("the copy stays in mode {mode}")));
    }
    Ok(copy)
}

fn locked() -> Error {
    Error::Busy { code: "storage", what: "Another program has locked the database.".to_owned(), retry_after_ms: 1000 }
}

fn whole(conn: &Connection, what: &str) -> Result<check::Report, Error> {
    let report = check::all(conn);
    match report.first_fault() {
        None => Ok(report),
        Some(fault) => Err(Error::conflict("damaged", format!("{what} is damaged ({fault}). Nothing was kept of it."))),
    }
}

/// Copies the database `from` to the file `to`, whether a daemon works with it or not, and verifies the copy: structure,
/// rows, audit chain. `Conflict` when `to` is there and `force` is not given, or when the copy is not whole.
pub fn make(from: Place<'_>, to: &Path, force: bool) -> Result<Made, Error> {
    if disk::is_of(from.db, to) {
        let reason = format!("{} is the database itself. Choose another name.", to.display());
        return Err(Error::conflict("already_exists", reason));
    }
    if !force && to.symlink_metadata().is_ok() {
        return Err(taken(to));
    }
    let source = check::open(from.db)?;
    let partial = Partial::new(to)?;
    // Holds the moment: what is committed from now on is not in the copy.
    source.execute_batch("BEGIN").map_err(failed("reading the database"))?;
    let there = rows(&source)?;
    let mut copied = copy(&source, &partial.path)?;
    drop(source);
    let report = whole(&copied, "The copy")?;
    let here = rows(&copied)?;
    if here != there {
        return Err(Error::internal("verifying the copy")(format!("it has {here:?} rows, the database {there:?}")));
    }
    let sequence = migrate::counter(&copied, "event")?;
    // After the database: work that ended in between is found settled there and runs again without a second effect.
    let plugin_databases = plugin_databases::take(from.plugins, &mut copied, to)?;
    copied.close().map_err(|(_, error)| Error::internal("closing the copy")(error))?;
    partial.finish(to, force)?;
    let bytes = std::fs::metadata(to).map_or(0, |file| file.len());
    let audit_records = report.audit_records;
    Ok(Made { file: to.to_owned(), bytes, sequence, rows: here, audit_records, plugin_databases })
}

/// Restores the copy `from` into a new data folder, which is that of `to`.
///
/// The copy is verified first. Row numbers go on far above those of the copy, so that none names two things even if the
/// daemon whose copy it is went on. `Conflict` when the folder is there and not empty.
pub fn restore(from: &Path, place: Place<'_>, now_ms: Millis) -> Result<Made, Error> {
    let (target, to) = (place.db, place.db.parent().unwrap_or(Path::new(".")));
    if to.symlink_metadata().is_ok() && std::fs::read_dir(to).map_or(true, |mut entries| entries.next().is_some()) {
        let reason = format!(
            "{} is there and not empty. A backup is restored into a new folder only. What an interrupted restore left can be \
             removed.",
            to.display()
        );
        return Err(Error::conflict("already_exists", reason));
    }
    let source = check::open(from)?;
    whole(&source, "The backup")?;
    let made = |error| Error::invalid("to", format!("cannot be made: {}: {error}.", to.display()));
    DirBuilder::new().recursive(true).mode(0o700).create(to).map_err(made)?;
    let partial = Partial::new(target)?;
    let copied = copy(&source, &partial.path)?;
    let plugin_databases = plugin_databases::put(&copied, place.plugins)?;
    move_on(&copied, from, now_ms)?;
    let report = whole(&copied, "The restored database")?;
    let (rows, sequence) = (rows(&copied)?, migrate::counter(&copied, "event")?);
    copied.close().map_err(|(_, error)| Error::internal("closing the copy")(error))?;
    partial.finish(target, false)?;
    let bytes = std::fs::metadata(target).map_or(0, |file| file.len());
    let audit_records = report.audit_records;
    Ok(Made { file: target.to_owned(), bytes, sequence, rows, audit_records, plugin_databases })
}

/// Skips row numbers, and records the restore.
fn move_on(conn: &Connection, from: &Path, now_ms: Millis) -> Result<(), Error> {
    let next = |number: i64| (number / NUMBERS_SKIPPED + 1) * NUMBERS_SKIPPED;
    let counters = Counters {
        sequence: next(migrate::counter(conn, "event")?),
        delivery: next(migrate::counter(conn, "delivery")?),
    };
    conn.execute_batch("BEGIN IMMEDIATE").map_err(failed("restoring the database"))?;
    let ids = Ids { node: migrate::node(conn)? };
    let tx = Tx { conn, ids, counters, committed: Committed::default(), types: HashMap::new(), ending: false };
    retention::keep_floors(&tx)?;
    audit::append(
        &tx,
        &audit::Record {
            at_ms: now_ms,
            principal: "owner".to_owned(),
            claimed_operator: None,
            action: "db.restore".to_owned(),
            target: "database".to_owned(),
            outcome: audit::Outcome::Done,
            status: 200,
            trace: None,
            detail: json!({ "from": from.display().to_string(), "sequence": counters.sequence }),
            before_digest: None,
            after_digest: None,
        },
    )?;
    conn.execute_batch("COMMIT").map_err(failed("restoring the database"))
}
