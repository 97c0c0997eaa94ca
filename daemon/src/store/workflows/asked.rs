//! What others ask of instances: prepared beside their work, kept with it, and applied in the transaction that ends it.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension};
use serde::{Deserialize, Serialize};

use super::progress::{Waiting, waiting};
use super::{Brought, InstanceRow, Kind, Tx, bring, start, unread};
use crate::error::Error;

/// Code of the conflict when somebody else has started an instance with the same key meanwhile.
pub const KEY_TAKEN: &str = "workflow_key_taken";

/// A change of an instance that was checked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Starts it.
    Start(Box<InstanceRow>),
    /// Gives an event to this one alone.
    Signal {
        /// Its row number.
        instance: i64,
        /// Its id; empty in what was kept before it was written down.
        #[serde(default)]
        id: String,
        /// The event, JSON.
        body: String,
    },
}

/// Applies changes in their order, and gives the places of the events whose instance has ended. [`KEY_TAKEN`] when the id
/// that somebody was told would not be the instance's; `invalid_state` when too much waits for the instance of an event.
pub fn apply(tx: &Tx<'_>, changes: &[Change]) -> Result<Vec<usize>, Error> {
    let mut late = Vec::new();
    for (n, change) in changes.iter().enumerate() {
        match change {
            Change::Start(row) if !start(tx, row)?.1 => return Err(taken()),
            Change::Start(_) => {}
            Change::Signal { instance, body, .. } => match bring(tx, *instance, Kind::Signal, body)? {
                Brought::Taken => {}
                Brought::Ended => late.push(n),
                Brought::Full => return Err(full()),
            },
        }
    }
    Ok(late)
}

/// As [`apply`]; `invalid_state` also when the instance of an event has ended.
pub fn apply_all(tx: &Tx<'_>, changes: &[Change]) -> Result<(), Error> {
    if apply(tx, changes)?.is_empty() { Ok(()) } else { Err(ended()) }
}

/// Whether [`apply_all`] would succeed after everything that was written before; the error says why not.
pub fn check(tx: &Tx<'_>, changes: &[Change]) -> Result<(), Error> {
    let mut waits: HashMap<i64, Waiting> = HashMap::new();
    for change in changes {
        match change {
            Change::Start(_) if is_taken(tx.conn, change)? => return Err(taken()),
            Change::Start(_) => {}
            Change::Signal { instance, body, .. } => {
                let before = match waits.remove(instance) {
                    Some(waiting) => waiting,
                    None => room(tx.conn, *instance)?,
                };
                let waiting = waits.entry(*instance).or_insert(before);
                if !waiting.leaves_room() {
                    return Err(full());
                }
                waiting.add(body);
            }
        }
    }
    Ok(())
}

/// Whether an event for this instance alone would be taken up now; `invalid_state` says why not.
pub fn may_hear(conn: &Connection, instance: i64) -> Result<(), Error> {
    if room(conn, instance)?.leaves_room() { Ok(()) } else { Err(full()) }
}

/// What waits for an instance that has not ended.
fn room(conn: &Connection, instance: i64) -> Result<Waiting, Error> {
    let open = conn
        .prepare_cached("SELECT 1 FROM workflow_instance WHERE number = ?1 AND status < 3")
        .and_then(|mut s| s.exists([instance]))
        .map_err(unread)?;
    if open { waiting(conn, instance) } else { Err(ended()) }
}

fn ended() -> Error {
    Error::conflict("invalid_state", "It has ended, and waits for nothing. Start a new instance if one is wanted.")
}

fn full() -> Error {
    let reason =
        "Too much waits for it already. Look at it and send this again later; a paused one goes on with `resume`.";
    Error::conflict("invalid_state", reason)
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
