//! Facts that agents remember, and the full-text index over them.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::Tx;
use crate::clock::Millis;
use crate::error::Error;
use crate::event::Trust;
use crate::text::words::spaced;

/// A fact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    /// Its place among all.
    pub number: i64,
    /// Its id.
    pub id: String,
    /// Whose it is; none = every agent's.
    pub agent: Option<String>,
    /// What it says.
    pub text: String,
    /// Words that it is filed under, with spaces between them.
    pub tags: String,
    /// Who says so.
    pub source: String,
    /// How far that one is believed.
    pub trust: Trust,
    /// Since when.
    pub created_ms: Millis,
    /// When it was last changed, or said again.
    pub updated_ms: Millis,
}

/// Which facts are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose<'a> {
    /// Everybody's.
    All,
    /// Those of an agent, and the shared ones.
    Agent(&'a str),
    /// Only those that belong to no agent.
    Shared,
}

impl Whose<'_> {
    /// A condition on `m`, and the agent for it.
    fn condition(&self) -> (&'static str, &str) {
        match self {
            Whose::All => ("?1 = ''", ""),
            Whose::Agent(agent) => ("(m.agent IS NULL OR m.agent = ?1)", agent),
            Whose::Shared => ("m.agent IS NULL AND ?1 = ''", ""),
        }
    }
}

fn unwritten(error: rusqlite::Error) -> Error {
    Error::internal("writing a memory")(error)
}

fn unread(error: rusqlite::Error) -> Error {
    Error::internal("reading memories")(error)
}

const COLUMNS: &str = "m.number, m.id, m.agent, m.text, m.tags, m.source, m.trust, m.created_ms, m.updated_ms";

fn fact(row: &Row<'_>) -> rusqlite::Result<Fact> {
    Ok(Fact {
        number: row.get(0)?,
        id: row.get(1)?,
        agent: row.get(2)?,
        text: row.get(3)?,
        tags: row.get(4)?,
        source: row.get(5)?,
        trust: Trust::of_code(row.get(6)?),
        created_ms: row.get(7)?,
        updated_ms: row.get(8)?,
    })
}

/// Stores a new fact, whose number is not looked at, and gives its number.
pub fn insert(tx: &Tx<'_>, new: &Fact) -> Result<i64, Error> {
    let row =
        params![new.id, new.agent, new.text, new.tags, new.source, new.trust.code(), new.created_ms, new.updated_ms];
    tx.overwriting(|| {
        tx.conn
            .prepare_cached(
                "INSERT INTO memory (id, agent, text, tags, source, trust, created_ms, updated_ms) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )
            .and_then(|mut s| s.execute(row))
            .map_err(unwritten)?;
        let number = tx.conn.last_insert_rowid();
        index(tx, number, new).map(|()| number)
    })
}

/// Replaces what a fact says; it is named by its number.
pub fn update(tx: &Tx<'_>, fact: &Fact) -> Result<(), Error> {
    let row = params![fact.number, fact.text, fact.tags, fact.source, fact.trust.code(), fact.updated_ms];
    tx.overwriting(|| {
        tx.conn
            .prepare_cached(
                "UPDATE memory SET text = ?2, tags = ?3, source = ?4, trust = ?5, updated_ms = ?6 WHERE number = ?1",
            )
            .and_then(|mut s| s.execute(row))
            .map_err(unwritten)?;
        unindex(tx, fact.number)?;
        index(tx, fact.number, fact)
    })
}

/// Removes a fact for good; false when it was not there.
pub fn delete(tx: &Tx<'_>, id: &str) -> Result<bool, Error> {
    tx.overwriting(|| {
        let number: Option<i64> = tx
            .conn
            .prepare_cached("DELETE FROM memory WHERE id = ?1 RETURNING number")
            .and_then(|mut s| s.query_row([id], |row| row.get(0)).optional())
            .map_err(unwritten)?;
        number.map_or(Ok(false), |number| unindex(tx, number).map(|()| true))
    })
}

fn index(tx: &Tx<'_>, number: i64, fact: &Fact) -> Result<(), Error> {
    tx.conn
        .prepare_cached("INSERT INTO memory_words (rowid, text, tags) VALUES (?1, ?2, ?3)")
        .and_then(|mut s| s.execute(params![number, spaced(&fact.text), spaced(&fact.tags)]))
        .map(drop)
        .map_err(unwritten)
}

fn unindex(tx: &Tx<'_>, number: i64) -> Result<(), Error> {
    tx.conn
        .prepare_cached("DELETE FROM memory_words WHERE rowid = ?1")
        .and_then(|mut s| s.execute([number]))
        .map(drop)
        .map_err(unwritten)
}

/// The fact of that id, inside a change.
pub fn find_in(tx: &Tx<'_>, id: &str) -> Result<Option<Fact>, Error> {
    find(tx.conn, id)
}

/// The fact of that id.
pub fn find(conn: &Connection, id: &str) -> Result<Option<Fact>, Error> {
    conn.prepare_cached(&format!("SELECT {COLUMNS} FROM memory m WHERE m.id = ?1"))
        .and_then(|mut s| s.query_row([id], fact).optional())
        .map_err(unread)
}

/// The fact of this agent that says exactly this.
pub fn same(tx: &Tx<'_>, agent: Option<&str>, text: &str) -> Result<Option<Fact>, Error> {
    tx.conn
        .prepare_cached(&format!("SELECT {COLUMNS} FROM memory m WHERE m.agent IS ?1 AND m.text = ?2 LIMIT 1"))
        .and_then(|mut s| s.query_row(params![agent, text], fact).optional())
        .map_err(unread)
}

/// How many facts an agent has of its own, or how many are shared; and how many there are altogether.
pub fn counts(tx: &Tx<'_>, agent: Option<&str>) -> Result<(i64, i64), Error> {
    tx.conn
        .prepare_cached("SELECT (SELECT count(*) FROM memory WHERE agent IS ?1), (SELECT count(*) FROM memory)")
        .and_then(|mut s| s.query_row([agent], |row| Ok((row.get(0)?, row.get(1)?))))
        .map_err(unread)
}

/// Facts below `before`, newest first.
pub fn list(conn: &Connection, whose: Whose<'_>, before: Option<i64>, rows_max: usize) -> Result<Vec<Fact>, Error> {
    let (condition, agent) = whose.condition();
    let rows_max = i64::try_from(rows_max).unwrap_or(i64::MAX);
    conn.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM memory m WHERE {condition} AND m.number < ?2 ORDER BY m.number DESC LIMIT ?3"
    ))
    .and_then(|mut s| s.query_map(params![agent, before.unwrap_or(i64::MAX), rows_max], fact)?.collect())
    .map_err(unread)
}

/// Facts that fit an expression of the index, best first.
pub fn search(conn: &Connection, whose: Whose<'_>, wanted: &str, rows_max: usize) -> Result<Vec<Fact>, Error> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let (condition, agent) = whose.condition();
    let rows_max = i64::try_from(rows_max).unwrap_or(i64::MAX);
    conn.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM memory_words w JOIN memory m ON m.number = w.rowid \
         WHERE {condition} AND w.memory_words MATCH ?2 ORDER BY bm25(memory_words, 1.0, 2.0), m.number DESC LIMIT ?3"
    ))
    .and_then(|mut s| s.query_map(params![agent, wanted, rows_max], fact)?.collect())
    .map_err(unread)
}
