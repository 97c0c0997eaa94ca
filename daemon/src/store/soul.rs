//! Every text of the soul that was in force, newest last.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::Tx;
use crate::clock::Millis;
use crate::error::Error;

/// Texts that are kept.
pub const VERSIONS_MAX: u32 = 200;

/// Where a text came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// It comes with aman.
    Bundled,
    /// Over HTTP.
    Api,
    /// Somebody edited the file.
    File,
}

impl Origin {
    const ALL: [Origin; 3] = [Origin::Bundled, Origin::Api, Origin::File];

    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Origin::Bundled => "bundled",
            Origin::Api => "api",
            Origin::File => "file",
        }
    }

    fn code(self) -> i64 {
        self as i64
    }

    fn of_code(code: i64) -> Origin {
        Origin::ALL.into_iter().find(|origin| origin.code() == code).unwrap_or(Origin::Api)
    }
}

/// A text that was in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// Its place among all.
    pub number: i64,
    /// SHA-256 of the text, hex.
    pub digest: String,
    /// The text; empty in lists.
    pub text: String,
    /// Where it came from.
    pub origin: Origin,
    /// Who brought it.
    pub principal: String,
    /// False until its file is written.
    pub placed: bool,
    /// Since when.
    pub created_ms: Millis,
}

fn unwritten(error: rusqlite::Error) -> Error {
    Error::internal("recording the soul")(error)
}

fn unread(error: rusqlite::Error) -> Error {
    Error::internal("reading the soul's history")(error)
}

const COLUMNS: &str = "number, digest, text, origin, principal, placed, created_ms";

fn version(row: &Row<'_>) -> rusqlite::Result<Version> {
    Ok(Version {
        number: row.get(0)?,
        digest: row.get(1)?,
        text: row.get(2)?,
        origin: Origin::of_code(row.get(3)?),
        principal: row.get(4)?,
        placed: row.get(5)?,
        created_ms: row.get(6)?,
    })
}

/// The newest text and the one before it.
pub fn newest_two(conn: &Connection) -> Result<[Option<Version>; 2], Error> {
    let mut found = conn
        .prepare_cached(&format!("SELECT {COLUMNS} FROM soul_version ORDER BY number DESC LIMIT 2"))
        .and_then(|mut s| s.query_map([], version)?.collect::<rusqlite::Result<Vec<Version>>>())
        .map_err(unread)?
        .into_iter();
    Ok([found.next(), found.next()])
}

/// Adds `new`, whose number is not looked at, as the newest; the oldest beyond [`VERSIONS_MAX`] go. Gives its number.
pub fn add(tx: &Tx<'_>, new: &Version) -> Result<i64, Error> {
    let row = params![new.digest, new.text, new.origin.code(), new.principal, new.placed, new.created_ms];
    tx.conn
        .prepare_cached(
            "INSERT INTO soul_version (digest, text, origin, principal, placed, created_ms) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )
        .and_then(|mut s| s.execute(row))
        .map_err(unwritten)?;
    let number = tx.conn.last_insert_rowid();
    tx.conn
        .prepare_cached("DELETE FROM soul_version WHERE number <= ?1")
        .and_then(|mut s| s.execute([number - i64::from(VERSIONS_MAX)]))
        .map_err(unwritten)?;
    Ok(number)
}

/// Notes that the file of a text is written.
pub fn placed(tx: &Tx<'_>, number: i64) -> Result<(), Error> {
    tx.conn
        .prepare_cached("UPDATE soul_version SET placed = 1 WHERE number = ?1")
        .and_then(|mut s| s.execute([number]))
        .map(drop)
        .map_err(unwritten)
}

/// Texts below `before`, newest first, without what they say.
pub fn list(conn: &Connection, before: Option<i64>, rows_max: usize) -> Result<Vec<Version>, Error> {
    let rows_max = i64::try_from(rows_max).unwrap_or(i64::MAX);
    conn.prepare_cached(
        "SELECT number, digest, '', origin, principal, placed, created_ms FROM soul_version WHERE number < ?1 \
         ORDER BY number DESC LIMIT ?2",
    )
    .and_then(|mut s| s.query_map(params![before.unwrap_or(i64::MAX), rows_max], version)?.collect())
    .map_err(unread)
}

/// The text of that number.
pub fn numbered(conn: &Connection, number: i64) -> Result<Option<Version>, Error> {
    conn.prepare_cached(&format!("SELECT {COLUMNS} FROM soul_version WHERE number = ?1"))
        .and_then(|mut s| s.query_row([number], version).optional())
        .map_err(unread)
}

/// The newest of each text whose digest begins so, two at the most.
pub fn beginning(conn: &Connection, digest: &str) -> Result<Vec<Version>, Error> {
    let end = format!("{digest}g");
    conn.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM soul_version WHERE number IN (SELECT max(number) FROM soul_version \
         WHERE digest >= ?1 AND digest < ?2 GROUP BY digest) ORDER BY number DESC LIMIT 2"
    ))
    .and_then(|mut s| s.query_map([digest, &end], version)?.collect())
    .map_err(unread)
}
