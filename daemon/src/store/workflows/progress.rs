//! How instances come along: their journal, what reaches them, and what they wait for.

use rusqlite::{Connection, Row, params};

use super::{
    ENDED_KEPT, INBOX_BYTES_MAX, INBOX_ROWS_MAX, InstanceRow, PRUNED_AT_ONCE, PRUNED_STEPS_AT_ONCE, STEPS_KEPT, Status,
    Tx, current, unread, unwritten,
};
use crate::clock::Millis;
use crate::error::Error;
use crate::event::Trust;

/// A row of the journal, its values as JSON without secrets.
#[derive(Debug, Clone)]
pub struct StepRow {
    /// Its number.
    pub number: i64,
    /// Pointer of the task.
    pub task: String,
    /// How it stands.
    pub status: String,
    /// Counts from 1.
    pub attempt: u32,
    /// When it began.
    pub started_ms: Millis,
    /// When it ended.
    pub ended_ms: Option<Millis>,
    /// Its input.
    pub input: Option<String>,
    /// Its output.
    pub output: Option<String>,
    /// Its error.
    pub error: Option<String>,
}

/// An event type that an instance waits for.
#[derive(Debug, Clone, PartialEq)]
pub struct ListenerRow {
    /// Empty = any.
    pub kind: String,
    /// The instance.
    pub instance: i64,
    /// The row of the journal of the task that listens.
    pub step: i64,
    /// That task's number.
    pub task: i64,
    /// Its definition.
    pub digest: String,
    /// What correlations must be, JSON.
    pub expected: String,
}

/// Something that came for an instance.
#[derive(Debug, Clone)]
pub struct InboxRow {
    /// Its number.
    pub id: i64,
    /// See [`Kind`].
    pub kind: Kind,
    /// JSON.
    pub body: String,
}

/// What came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An event of the bus.
    Event,
    /// An event for this instance alone.
    Signal,
    /// The end of an instance that it started: `{key, output}` or `{key, error}`.
    Ended,
    /// More events came than wait for one instance: what came after the last one is lost to it.
    Full,
}

/// Where an instance has come to.
#[derive(Debug, Clone)]
pub struct Advance {
    /// The instance.
    pub number: i64,
    /// How it stands.
    pub status: Status,
    /// Where it stands, JSON.
    pub state: Option<String>,
    /// Its output, JSON without secrets.
    pub output: Option<String>,
    /// Its error, JSON without secrets.
    pub error: Option<String>,
    /// Pointer of the task that it is at.
    pub current: Option<String>,
    /// When it goes on by itself.
    pub due_ms: Option<Millis>,
    /// Rows of the journal.
    pub steps: Vec<StepRow>,
    /// Everything it waits for; none = as before.
    pub listeners: Option<Vec<ListenerRow>>,
    /// Everything up to this row of its inbox was looked at.
    pub seen: i64,
    /// How far it is trusted; never more than before.
    pub trust: Trust,
}

/// What came for an instance, oldest first.
pub fn inbox(conn: &Connection, instance: i64, after: i64, limit: usize) -> Result<Vec<InboxRow>, Error> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let of_row = |row: &Row<'_>| {
        let kind = match row.get::<_, i64>(1)? {
            1 => Kind::Signal,
            2 => Kind::Ended,
            3 => Kind::Full,
            _ => Kind::Event,
        };
        Ok(InboxRow { id: row.get(0)?, kind, body: row.get(2)? })
    };
    conn.prepare_cached(
        "SELECT id, kind, body FROM workflow_inbox WHERE instance = ?1 AND id > ?2 ORDER BY id LIMIT ?3",
    )
    .and_then(|mut s| s.query_map([instance, after, limit], of_row)?.collect())
    .map_err(unread)
}

/// What became of something that was brought to an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Brought {
    /// It will look at it.
    Taken,
    /// It has ended.
    Ended,
    /// So much waits for it already that it will not see this.
    Full,
}

/// Gives an instance something to look at.
pub fn bring(tx: &Tx<'_>, instance: i64, kind: Kind, body: &str) -> Result<Brought, Error> {
    let open = tx
        .conn
        .prepare_cached("UPDATE workflow_instance SET status = 1 WHERE number = ?1 AND status < 3")
        .and_then(|mut s| s.execute([instance]))
        .map_err(unwritten)?;
    if open == 0 {
        return Ok(Brought::Ended);
    }
    // Its children are as many as it started itself; nothing else may fill the disk.
    let waiting = match kind {
        Kind::Event | Kind::Signal => waiting(tx.conn, instance)?,
        Kind::Ended | Kind::Full => Waiting::default(),
    };
    let (kind, body) = match kind {
        _ if waiting.leaves_room() => (kind, body),
        // Whoever sends a signal is told; of events the instance is.
        Kind::Event if !waiting.is_told => (Kind::Full, "{}"),
        _ => return Ok(Brought::Full),
    };
    tx.conn
        .prepare_cached("INSERT INTO workflow_inbox (instance, kind, body) VALUES (?1, ?2, ?3)")
        .and_then(|mut s| s.execute(params![instance, kind as i64, body]))
        .map(|_| if kind == Kind::Full { Brought::Full } else { Brought::Taken })
        .map_err(unwritten)
}

/// How much waits for an instance.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    rows: i64,
    bytes: i64,
    /// The instance will be told that it was too much.
    is_told: bool,
}

impl Waiting {
    /// Whether one more may come.
    pub(super) fn leaves_room(&self) -> bool {
        !self.is_told && self.rows < INBOX_ROWS_MAX && self.bytes < INBOX_BYTES_MAX
    }

    /// Counts one that is to come.
    pub(super) fn add(&mut self, body: &str) {
        self.rows += 1;
        self.bytes = self.bytes.saturating_add(i64::try_from(body.len()).unwrap_or(i64::MAX));
    }
}

/// How much waits for an instance.
pub(super) fn waiting(conn: &Connection, instance: i64) -> Result<Waiting, Error> {
    let of_row = |row: &Row<'_>| Ok(Waiting { rows: row.get(0)?, bytes: row.get(1)?, is_told: row.get(2)? });
    conn.prepare_cached(
        "SELECT count(*), coalesce(sum(octet_length(body)), 0), coalesce(max(kind = 3), 0) FROM workflow_inbox \
         WHERE instance = ?1",
    )
    .and_then(|mut s| s.query_row([instance], of_row))
    .map_err(unread)
}

/// Who of a workflow may wait for an event of this type.
pub fn listeners(conn: &Connection, workflow: &str, kind: &str, sequence: i64) -> Result<Vec<ListenerRow>, Error> {
    let of_row = |row: &Row<'_>| {
        Ok(ListenerRow {
            kind: row.get(0)?,
            instance: row.get(1)?,
            step: row.get(2)?,
            task: row.get(3)?,
            digest: row.get(4)?,
            expected: row.get(5)?,
        })
    };
    conn.prepare_cached(
        "SELECT type, instance, step, task, digest, expected FROM workflow_listener \
         WHERE workflow = ?1 AND type IN (?2, '') AND since < ?3",
    )
    .and_then(|mut s| s.query_map(params![workflow, kind, sequence], of_row)?.collect())
    .map_err(unread)
}

/// Writes where an instance has come to. False when it has ended meanwhile: then nothing is written.
pub fn advance(tx: &Tx<'_>, to: &Advance, workflow: &str, now_ms: Millis) -> Result<bool, Error> {
    let changed = tx
        .conn
        .prepare_cached(
            "UPDATE workflow_instance SET status = ?2, state = ?3, output = ?4, error = ?5, current = ?6, due_ms = ?7, \
             updated_ms = ?8, trust = min(trust, ?9) WHERE number = ?1 AND status < 3",
        )
        .and_then(|mut s| {
            s.execute(params![
                to.number,
                to.status as i64,
                to.state,
                to.output,
                to.error,
                to.current,
                to.due_ms,
                now_ms,
                to.trust.code()
            ])
        })
        .map_err(unwritten)?;
    if changed == 0 {
        return Ok(false);
    }
    for step in &to.steps {
        put_step(tx, to.number, step)?;
    }
    if let Some(last) = to.steps.iter().map(|step| step.number).max().filter(|last| *last > STEPS_KEPT) {
        tx.conn
            .prepare_cached("DELETE FROM workflow_step WHERE instance = ?1 AND number <= ?2")
            .and_then(|mut s| s.execute([to.number, last - STEPS_KEPT]))
            .map_err(unwritten)?;
    }
    if to.seen > 0 {
        tx.conn
            .prepare_cached("DELETE FROM workflow_inbox WHERE instance = ?1 AND id <= ?2")
            .and_then(|mut s| s.execute([to.number, to.seen]))
            .map_err(unwritten)?;
    }
    if let Some(listeners) = &to.listeners {
        set_listeners(tx, to.number, workflow, listeners)?;
    }
    if to.status.is_ended() {
        close(tx, to.number, workflow)?;
    } else {
        // What came while this was made is looked at next.
        tx.conn
            .prepare_cached(
                "UPDATE workflow_instance SET status = 1 WHERE number = ?1 AND status = 2 \
                 AND EXISTS (SELECT 1 FROM workflow_inbox WHERE instance = ?1)",
            )
            .and_then(|mut s| s.execute([to.number]))
            .map_err(unwritten)?;
    }
    Ok(true)
}

fn put_step(tx: &Tx<'_>, instance: i64, step: &StepRow) -> Result<(), Error> {
    tx.conn
        .prepare_cached(
            "INSERT OR REPLACE INTO workflow_step \
             (instance, number, task, status, attempt, started_ms, ended_ms, input, output, error) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        )
        .and_then(|mut s| {
            s.execute(params![
                instance,
                step.number,
                step.task,
                step.status,
                step.attempt,
                step.started_ms,
                step.ended_ms,
                step.input,
                step.output,
                step.error
            ])
        })
        .map(drop)
        .map_err(unwritten)
}

fn set_listeners(tx: &Tx<'_>, instance: i64, workflow: &str, wanted: &[ListenerRow]) -> Result<(), Error> {
    let steps: Vec<i64> = wanted.iter().map(|one| one.step).collect();
    let kept = serde_json::to_string(&steps).map_err(Error::internal("writing workflows"))?;
    tx.conn
        .prepare_cached(
            "DELETE FROM workflow_listener WHERE instance = ?1 AND step NOT IN (SELECT value FROM json_each(?2))",
        )
        .and_then(|mut s| s.execute(params![instance, kept]))
        .map_err(unwritten)?;
    let since = tx.sequence().0;
    for one in wanted {
        tx.conn
            .prepare_cached(
                "INSERT INTO workflow_listener (workflow, type, instance, step, task, digest, since, expected) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) \
                 ON CONFLICT DO UPDATE SET expected = excluded.expected",
            )
            .and_then(|mut s| {
                s.execute(params![workflow, one.kind, instance, one.step, one.task, one.digest, since, one.expected])
            })
            .map_err(unwritten)?;
    }
    Ok(())
}

/// Removes what an ended instance waited for, and old ended ones of its workflow.
fn close(tx: &Tx<'_>, number: i64, workflow: &str) -> Result<(), Error> {
    for sql in ["DELETE FROM workflow_listener WHERE instance = ?1", "DELETE FROM workflow_inbox WHERE instance = ?1"] {
        tx.conn.prepare_cached(sql).and_then(|mut s| s.execute([number])).map_err(unwritten)?;
    }
    let old: Vec<i64> = tx
        .conn
        .prepare_cached(
            "SELECT number FROM workflow_instance WHERE workflow = ?1 AND status > 2 AND number <= \
             (SELECT number FROM workflow_instance WHERE workflow = ?1 ORDER BY number DESC LIMIT 1 OFFSET ?2) \
             ORDER BY number LIMIT ?3",
        )
        .and_then(|mut s| s.query_map(params![workflow, ENDED_KEPT, PRUNED_AT_ONCE], |row| row.get(0))?.collect())
        .map_err(unwritten)?;
    // A journal may be long; what is left of it goes with the next end.
    let mut room = PRUNED_STEPS_AT_ONCE;
    for number in old {
        let journal = "DELETE FROM workflow_step WHERE (instance, number) IN \
             (SELECT instance, number FROM workflow_step WHERE instance = ?1 LIMIT ?2)";
        let gone = tx.conn.prepare_cached(journal).and_then(|mut s| s.execute(params![number, room]));
        room -= i64::try_from(gone.map_err(unwritten)?).unwrap_or(i64::MAX);
        if room <= 0 {
            break;
        }
        let instance = "DELETE FROM workflow_instance WHERE number = ?1";
        tx.conn.prepare_cached(instance).and_then(|mut s| s.execute([number])).map_err(unwritten)?;
    }
    Ok(())
}

/// Ends an instance from outside; `kept` says that another one may take its place, which needs to know where it stood. False
/// when it had ended.
pub fn cancel(tx: &Tx<'_>, number: i64, workflow: &str, kept: bool, now_ms: Millis) -> Result<bool, Error> {
    let changed = tx
        .conn
        .execute(
            "UPDATE workflow_instance SET status = 5, due_ms = NULL, state = CASE WHEN ?3 THEN state END, \
             current = NULL, updated_ms = ?2 WHERE number = ?1 AND status < 3",
            params![number, now_ms, kept],
        )
        .map_err(unwritten)?;
    if changed == 0 {
        return Ok(false);
    }
    tx.conn
        .execute(
            "UPDATE workflow_step SET status = 'cancelled', ended_ms = ?2 WHERE instance = ?1 AND ended_ms IS NULL",
            params![number, now_ms],
        )
        .map_err(unwritten)?;
    close(tx, number, workflow)?;
    Ok(true)
}

/// Ends an instance by an error, where it stands. False when it had ended.
pub fn fault(tx: &Tx<'_>, number: i64, workflow: &str, error: &str, now_ms: Millis) -> Result<bool, Error> {
    let changed = tx
        .conn
        .execute(
            "UPDATE workflow_instance SET status = 4, due_ms = NULL, error = ?2, updated_ms = ?3 \
             WHERE number = ?1 AND status < 3",
            params![number, error, now_ms],
        )
        .map_err(unwritten)?;
    if changed == 1 {
        close(tx, number, workflow)?;
    }
    Ok(changed == 1)
}

/// Ends the unfinished instances that an instance started and waited for, with those below them; all of them, or those
/// whose keys are not among `awaited`, a JSON list. Gives them. `kept` as for [`cancel`].
pub fn cancel_below(
    tx: &Tx<'_>,
    parent: i64,
    awaited: &str,
    kept: bool,
    now_ms: Millis,
) -> Result<Vec<InstanceRow>, Error> {
    let below: Vec<(i64, String)> = tx
        .conn
        .prepare_cached(
            "WITH RECURSIVE below (number, workflow) AS (\
             SELECT number, workflow FROM workflow_instance WHERE parent = ?1 AND awaited = 1 AND status < 3 \
             AND parent_key NOT IN (SELECT value FROM json_each(?2)) \
             UNION ALL SELECT i.number, i.workflow FROM below JOIN workflow_instance i ON i.parent = below.number \
             WHERE i.awaited = 1 AND i.status < 3) SELECT number, workflow FROM below",
        )
        .and_then(|mut s| s.query_map(params![parent, awaited], |row| Ok((row.get(0)?, row.get(1)?)))?.collect())
        .map_err(unwritten)?;
    let mut gone = Vec::with_capacity(below.len());
    for (number, workflow) in below {
        if cancel(tx, number, &workflow, kept, now_ms)? {
            gone.extend(current(tx, number)?);
        }
    }
    Ok(gone)
}

/// Pauses an instance or lets it go on. False when it has ended, or stands so already.
pub fn hold(tx: &Tx<'_>, number: i64, hold: bool, now_ms: Millis) -> Result<bool, Error> {
    tx.conn
        .execute(
            "UPDATE workflow_instance SET hold = ?2, updated_ms = ?3 WHERE number = ?1 AND status < 3 AND hold <> ?2",
            params![number, hold, now_ms],
        )
        .map(|changed| changed == 1)
        .map_err(unwritten)
}

/// Has a faulted instance go on from `state`. False when it is not faulted.
pub fn reopen(tx: &Tx<'_>, number: i64, state: Option<&str>, now_ms: Millis) -> Result<bool, Error> {
    tx.conn
        .execute(
            "UPDATE workflow_instance SET status = 1, hold = 0, state = ?2, error = NULL, updated_ms = ?3 \
             WHERE number = ?1 AND status = 4",
            params![number, state, now_ms],
        )
        .map(|changed| changed == 1)
        .map_err(unwritten)
}

/// The newest rows of an instance's journal, oldest first.
pub fn steps(conn: &Connection, instance: i64, limit: usize) -> Result<Vec<StepRow>, Error> {
    let of_row = |row: &Row<'_>| {
        Ok(StepRow {
            number: row.get(0)?,
            task: row.get(1)?,
            status: row.get(2)?,
            attempt: row.get(3)?,
            started_ms: row.get(4)?,
            ended_ms: row.get(5)?,
            input: row.get(6)?,
            output: row.get(7)?,
            error: row.get(8)?,
        })
    };
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut rows: Vec<StepRow> = conn
        .prepare_cached(
            "SELECT number, task, status, attempt, started_ms, ended_ms, input, output, error FROM workflow_step \
             WHERE instance = ?1 ORDER BY number DESC LIMIT ?2",
        )
        .and_then(|mut s| s.query_map([instance, limit], of_row)?.collect())
        .map_err(unread)?;
    rows.reverse();
    Ok(rows)
}
