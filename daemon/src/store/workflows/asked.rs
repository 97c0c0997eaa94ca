//! What others ask of instances: prepared beside their work, kept with it, and applied in the transaction that ends it.

use rusqlite::{Connection, OptionalExtension};
use serde::{Deserialize, Serialize};

use super::{InstanceRow, Kind, Tx, bring, start, unread};
use crate::error::Error;

/// Code of the conflict when somebody else has started an instance with the same key meanwhile.
pub const KEY_TAKEN: &str = "workflow_key_taken";

/// A change of an instance that was checked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Starts it.
    Start(Box<InstanceRow>),
    /// Gives an event to this one alone; nothing when it has ended meanwhile.
    Signal {
        /// Its row number.
        instance: i64,
        /// The event, JSON.
        body: String,
    },
}

/// Applies changes in their order. False when an event found its instance ended, or with more waiting for it than it may
/// have. [`KEY_TAKEN`] when the id that somebody was told would not be the instance's.
pub fn apply(tx: &Tx<'_>, changes: &[Change]) -> Result<bool, Error> {
    let mut taken_up = true;
    for change in changes {
        match change {
            Change::Start(row) if !start(tx, row)?.1 => return Err(taken()),
            Change::Start(_) => {}
            Change::Signal { instance, body } => taken_up &= bring(tx, *instance, Kind::Signal, body)?,
        }
    }
    Ok(taken_up)
}

/// As [`apply`], for whoever hears how it went: `invalid_state` when an event was not taken up.
pub fn apply_all(tx: &Tx<'_>, changes: &[Change]) -> Result<(), Error> {
    if apply(tx, changes)? {
        return Ok(());
    }
    let reason = "It has ended, or too much waits for it already. Look at it; a paused one goes on with `resume`.";
    Err(Error::conflict("invalid_state", reason))
}

/// Whether [`apply`] would succeed after everything that was written before; the error says why not.
pub fn check(tx: &Tx<'_>, changes: &[Change]) -> Result<(), Error> {
    changes.iter().try_for_each(|change| if is_taken(tx.conn, change)? { Err(taken()) } else { Ok(()) })
}

/// Whether it is the start of an instance whose key another one has.
fn is_taken(conn: &Connection, change: &Change) -> Result<bool, Error> {
    let Change::Start(row) = change else { return Ok(false) };
    let Some(key) = &row.dedup else { return Ok(false) };
    Ok(with_key(conn, &row.workflow, key)?.is_some())
}

/// Without the starts whose keys were taken since they were checked: for what must take effect although a crash came between.
pub fn untaken(conn: &Connection, changes: Vec<Change>) -> Result<Vec<Change>, Error> {
    let mut left = Vec::with_capacity(changes.len());
    for change in changes {
        if !is_taken(conn, &change)? {
            left.push(change);
        }
    }
    Ok(left)
}

fn taken() -> Error {
    Error::conflict(KEY_TAKEN, "An instance with this key was started by somebody else meanwhile.")
}

/// The id of the instance of a workflow that was started with this key.
pub fn with_key(conn: &Connection, workflow: &str, key: &str) -> Result<Option<String>, Error> {
    conn.prepare_cached("SELECT id FROM workflow_instance WHERE workflow = ?1 AND dedup = ?2")
        .and_then(|mut s| s.query_row([workflow, key], |row| row.get(0)).optional())
        .map_err(unread)
}

/// The workflow of the instance with this id.
pub fn workflow_of(conn: &Connection, id: &str) -> Result<Option<String>, Error> {
    conn.prepare_cached("SELECT workflow FROM workflow_instance WHERE id = ?1")
        .and_then(|mut s| s.query_row([id], |row| row.get(0)).optional())
        .map_err(unread)
}
