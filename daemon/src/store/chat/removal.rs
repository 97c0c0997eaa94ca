//! How conversations go: hidden at once, and then row by row, so that nobody has to wait for it.

use rusqlite::{OptionalExtension, params};

use super::{Kind, unwritten};
use crate::clock::Millis;
use crate::error::Error;
use crate::store::Tx;

/// Messages, and turns, that go in one step.
const STEP_ROWS: i64 = 100;

/// Which sessions go by age: conditions over the table, with the time as `?1`. One that is hidden already goes on going.
pub(in crate::store) const DUE_PERSONS: &str = "kind = 0 AND (closed = 2 OR updated_ms <= ?1 AND NOT EXISTS \
    (SELECT 1 FROM turn t WHERE t.session = session.number AND t.status < 2))";
/// As [`DUE_PERSONS`], of those that no person talks in.
pub(in crate::store) const DUE_BACKGROUND: &str = "kind > 0 AND (closed = 2 OR updated_ms <= ?1 AND NOT EXISTS \
    (SELECT 1 FROM turn t WHERE t.session = session.number AND t.status < 2))";
/// Those that were removed, and of which rows are left.
pub(in crate::store) const DUE_HIDDEN: &str = "closed = 2 AND updated_ms <= ?1";

/// Hides a session from everybody; its rows go with [`purge`].
pub fn hide(tx: &Tx<'_>, session: i64) -> Result<(), Error> {
    tx.overwriting(|| {
        tx.conn
            .execute("UPDATE session SET closed = 2, title = NULL, head = NULL WHERE number = ?1", [session])
            .map(drop)
            .map_err(unwritten)
    })
}

/// As [`hide`], of all sessions of a kind that a principal has; their rows go with the next run of retention.
pub fn hide_all(tx: &Tx<'_>, principal: &str, kind: Kind) -> Result<(), Error> {
    tx.overwriting(|| {
        let sql = "UPDATE session SET closed = 2, title = NULL, head = NULL WHERE principal = ?1 AND kind = ?2";
        tx.conn.execute(sql, params![principal, kind as i64]).map(drop).map_err(unwritten)
    })
}

/// Removes a step of a session's rows: its messages with their words, its turns with their journals, and at last what was
/// allowed in it and itself. True when something is left.
pub fn purge(tx: &Tx<'_>, session: i64) -> Result<bool, Error> {
    tx.overwriting(|| step(tx, session))
}

fn step(tx: &Tx<'_>, session: i64) -> Result<bool, Error> {
    let some = |sql: &str| -> Result<Vec<i64>, Error> {
        tx.conn
            .prepare_cached(sql)
            .and_then(|mut s| s.query_map(params![session, STEP_ROWS], |row| row.get(0))?.collect())
            .map_err(unwritten)
    };
    let remove = |sql: &str, number: i64| {
        tx.conn.prepare_cached(sql).and_then(|mut s| s.execute([number])).map(drop).map_err(unwritten)
    };
    let messages = some("SELECT number FROM message WHERE session = ?1 LIMIT ?2")?;
    for number in &messages {
        remove("DELETE FROM message_words WHERE rowid = ?1", *number)?;
        remove("DELETE FROM message WHERE number = ?1", *number)?;
    }
    if !messages.is_empty() {
        return Ok(true);
    }
    let turns = some("SELECT number FROM turn WHERE session = ?1 LIMIT ?2")?;
    for number in &turns {
        remove("DELETE FROM turn_step WHERE turn = ?1", *number)?;
        remove("DELETE FROM turn WHERE number = ?1", *number)?;
    }
    if !turns.is_empty() {
        return Ok(true);
    }
    // What was asked about in it, and allowed for it alone; that it was is in the audit chain.
    remove("DELETE FROM approval WHERE session = (SELECT id FROM session WHERE number = ?1)", session)?;
    remove("DELETE FROM approval_rule WHERE session = (SELECT id FROM session WHERE number = ?1)", session)?;
    // What it cost still counts for its agent, its job and its day.
    remove("DELETE FROM usage WHERE scope = (SELECT 'session/' || id FROM session WHERE number = ?1)", session)?;
    remove("DELETE FROM session WHERE number = ?1", session)?;
    Ok(false)
}

/// Removes a step of a session that is due, and hides it first. How many sessions are gone with it, and whether there may
/// be more to do.
pub(in crate::store) fn remove_due(tx: &Tx<'_>, due: &str, cutoff_ms: Millis) -> Result<(i64, bool), Error> {
    let session: Option<i64> = tx
        .conn
        .prepare_cached(&format!("SELECT number FROM session WHERE {due} LIMIT 1"))
        .and_then(|mut s| s.query_row([cutoff_ms], |row| row.get(0)).optional())
        .map_err(unwritten)?;
    let Some(session) = session else { return Ok((0, false)) };
    hide(tx, session)?;
    Ok((i64::from(!purge(tx, session)?), true))
}
