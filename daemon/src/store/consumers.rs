//! Consumers and their rules: numbered once, remembered for good, so that old decisions can be explained.

use rusqlite::{Connection, OptionalExtension, params};

use super::Tx;
use crate::error::Error;
use crate::id::{ConsumerId, EventSeq};

fn failed(error: rusqlite::Error) -> Error {
    Error::internal("recording a consumer")(error)
}

/// The record of a consumer: made at first sight, found later. `since` is the sequence after which it could match.
pub fn ensure(tx: &Tx<'_>, name: &str, kind: &str) -> Result<(ConsumerId, EventSeq), Error> {
    let known = tx
        .conn
        .prepare_cached("SELECT id, since FROM consumer WHERE name = ?1")
        .and_then(|mut s| s.query_row([name], |row| Ok((ConsumerId(row.get(0)?), EventSeq(row.get(1)?)))).optional())
        .map_err(failed)?;
    if let Some(known) = known {
        return Ok(known);
    }
    let since = tx.sequence();
    tx.conn
        .prepare_cached("INSERT INTO consumer (name, kind, since) VALUES (?1, ?2, ?3)")
        .and_then(|mut s| s.execute(params![name, kind, since.0]))
        .map_err(failed)?;
    Ok((ConsumerId(tx.conn.last_insert_rowid()), since))
}

/// The number of a rule of `consumer`.
pub fn ensure_rule(tx: &Tx<'_>, consumer: ConsumerId, pattern: &str, condition: &str) -> Result<i64, Error> {
    let known = tx
        .conn
        .prepare_cached("SELECT id FROM rule WHERE consumer = ?1 AND pattern = ?2 AND condition = ?3")
        .and_then(|mut s| s.query_row(params![consumer.0, pattern, condition], |row| row.get(0)).optional())
        .map_err(failed)?;
    if let Some(known) = known {
        return Ok(known);
    }
    tx.conn
        .prepare_cached("INSERT INTO rule (consumer, pattern, condition) VALUES (?1, ?2, ?3)")
        .and_then(|mut s| s.execute(params![consumer.0, pattern, condition]))
        .map_err(failed)?;
    Ok(tx.conn.last_insert_rowid())
}

/// A rule that was in force when an event was decided.
#[derive(Debug, Clone)]
pub struct PastRule {
    /// Name of its consumer.
    pub consumer: String,
    /// Kind of its consumer.
    pub kind: String,
    /// Type pattern.
    pub pattern: String,
    /// jq condition, '' = none.
    pub condition: String,
}

/// The rule with this number.
pub fn rule(conn: &Connection, id: i64) -> Result<Option<PastRule>, Error> {
    conn.prepare_cached(
        "SELECT c.name, c.kind, r.pattern, r.condition FROM rule r JOIN consumer c ON c.id = r.consumer WHERE r.id = ?1",
    )
    .and_then(|mut s| {
        s.query_row([id], |row| {
            Ok(PastRule { consumer: row.get(0)?, kind: row.get(1)?, pattern: row.get(2)?, condition: row.get(3)? })
        })
        .optional()
    })
    .map_err(|error| Error::internal("reading a rule")(error))
}
