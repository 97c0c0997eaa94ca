//! Looks whether a database is whole: SQLite's own structures, the schema, the audit chain, and what the daemon relies on.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};
use serde::Serialize;

use super::{audit, migrate};
use crate::error::Error;

/// Faults of one check that are told.
const FAULTS_MAX: usize = 20;

/// Rules about rows: a name, what a row that breaks it is, and a query for such rows.
const RULES: &[(&str, &str, &str)] = &[
    (
        "deliveries have their event",
        "delivery",
        "SELECT id FROM delivery d WHERE NOT EXISTS (SELECT 1 FROM event e WHERE e.sequence = d.event) LIMIT 20",
    ),
    (
        "events have their deliveries",
        "event",
        "SELECT sequence FROM event e WHERE e.delivery_count > (SELECT count(*) FROM delivery d NOT INDEXED \
         WHERE d.id >= e.delivery_first AND d.id < e.delivery_first + e.delivery_count AND d.event = e.sequence) LIMIT 20",
    ),
    (
        "dead letters belong to dead deliveries",
        "delivery",
        "SELECT l.delivery FROM dead_letter l LEFT JOIN delivery d ON d.id = l.delivery \
         WHERE l.state = 0 AND d.status IS NOT 5 LIMIT 20",
    ),
    (
        "letters that are tried again have an open delivery",
        "delivery",
        "SELECT l.delivery FROM dead_letter l LEFT JOIN delivery d ON d.id = l.delivery \
         WHERE l.state = 1 AND (d.status IS NULL OR d.status > 4) LIMIT 20",
    ),
    (
        "unsent intents have their delivery",
        "outbox row",
        "SELECT o.id FROM outbox o WHERE o.status < 2 AND o.delivery IS NOT NULL \
         AND NOT EXISTS (SELECT 1 FROM delivery d WHERE d.id = o.delivery) LIMIT 20",
    ),
    (
        "what was removed is not there",
        "event",
        "SELECT e.sequence FROM pruned p JOIN event e ON e.sequence >= p.first AND e.sequence <= p.last LIMIT 20",
    ),
    (
        "numbers go on",
        "counter",
        "SELECT m.value FROM meta m WHERE (m.key = 'event_floor' AND m.value < (SELECT max(last) FROM pruned))",
    ),
];

/// One thing that was looked at.
#[derive(Debug, Clone, Serialize)]
pub struct Checked {
    /// What.
    pub check: &'static str,
    /// True when nothing is wrong.
    pub ok: bool,
    /// What is wrong; at most 20 of each.
    pub faults: Vec<String>,
}

/// What looking at a database found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// True when nothing is wrong.
    pub ok: bool,
    /// Everything that was looked at.
    pub checks: Vec<Checked>,
    /// Audit records that were checked.
    pub audit_records: i64,
}

impl Report {
    /// The first fault, for an error.
    pub fn first_fault(&self) -> Option<String> {
        let bad = self.checks.iter().find(|checked| !checked.ok)?;
        Some(format!("{}: {}", bad.check, bad.faults.first().map_or("failed", String::as_str)))
    }
}

fn checked(check: &'static str, found: rusqlite::Result<Vec<String>>) -> Checked {
    let faults = found.unwrap_or_else(|error| vec![error.to_string()]);
    Checked { check, ok: faults.is_empty(), faults }
}

fn texts(conn: &Connection, sql: &str) -> rusqlite::Result<Vec<String>> {
    let mut statement = conn.prepare(sql)?;
    let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
    rows.take(FAULTS_MAX).collect()
}

/// SQLite's own look at pages, trees and indexes. Reads the whole file.
pub fn structure(conn: &Connection) -> Checked {
    let found = texts(conn, &format!("PRAGMA integrity_check({FAULTS_MAX})"));
    checked("structure", found.map(|lines| lines.into_iter().filter(|line| line != "ok").collect()))
}

/// Looks at everything. What cannot be read is a fault, not an error.
pub fn all(conn: &Connection) -> Report {
    let mut checks = vec![structure(conn)];
    let references = conn.prepare("PRAGMA foreign_key_check").and_then(|mut statement| {
        let row = |row: &rusqlite::Row<'_>| {
            let (table, id): (String, Option<i64>) = (row.get(0)?, row.get(1)?);
            Ok(format!("row {} of {table} refers to nothing", id.unwrap_or(0)))
        };
        statement.query_map([], row)?.take(FAULTS_MAX).collect()
    });
    checks.push(checked("references", references));
    let schema = migrate::check(conn).unwrap_or_else(|error| vec![error.chain().join(": ")]);
    checks.push(checked("schema", Ok(schema)));
    let mut audit_records = 0;
    let chain = match audit::verify(conn, None) {
        Ok(verdict) => {
            audit_records = verdict.checked;
            verdict.bad.map(|(seq, _)| format!("record {seq} was changed, or one before it is missing"))
        }
        Err(error) => Some(error.chain().join(": ")),
    };
    checks.push(checked("audit chain", Ok(chain.into_iter().collect())));
    for (name, thing, sql) in RULES {
        let rows = conn.prepare(sql).and_then(|mut statement| {
            let rows = statement.query_map([], |row| Ok(format!("{thing} {}", row.get::<_, i64>(0)?)))?;
            rows.collect()
        });
        checks.push(checked(name, rows));
    }
    Report { ok: checks.iter().all(|checked| checked.ok), checks, audit_records }
}

/// As [`all`] for a file, whether a daemon works with it or not. Changes nothing in it.
pub fn file(path: &Path) -> Result<Report, Error> {
    let conn = open(path)?;
    Ok(all(&conn))
}

/// Opens a file to read. `NotFound` when it is not there.
pub(super) fn open(path: &Path) -> Result<Connection, Error> {
    match path.metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            let reason = format!("{} cannot be read: {error}. Do this as the user who runs aman.", path.display());
            return Err(Error::conflict("data_unusable", reason));
        }
        Ok(found) if found.is_file() => {}
        _ => return Err(Error::not_found("database", path.display().to_string())),
    }
    // Not read-only: a file in WAL mode that nobody has open needs its index made anew.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)
        .or_else(|_| Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY))
        .map_err(Error::internal("opening the database"))?;
    conn.execute_batch("PRAGMA busy_timeout = 5000; PRAGMA query_only = ON; PRAGMA cache_size = -8000;")
        .map_err(Error::internal("opening the database"))?;
    Ok(conn)
}
