//! Messages for the person: told once however often they are asked for, acknowledged, dismissed.

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Tx;
use crate::clock::Millis;
use crate::error::Error;
use crate::id::DeliveryId;

/// How loud a notification is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know.
    #[default]
    Info,
    /// Worth a look.
    Warning,
    /// Something failed.
    Error,
    /// Act now.
    Critical,
}

impl Severity {
    /// From quiet to loud.
    pub const ALL: [Severity; 4] = [Severity::Info, Severity::Warning, Severity::Error, Severity::Critical];

    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Error => "error",
            Severity::Critical => "critical",
        }
    }

    /// The one of that name.
    pub fn of_name(name: &str) -> Option<Severity> {
        Severity::ALL.into_iter().find(|severity| severity.name() == name)
    }

    /// The number that stands for it in the database.
    fn code(self) -> i64 {
        self as i64
    }

    fn of_code(code: i64) -> Severity {
        Severity::ALL.into_iter().find(|severity| severity.code() == code).unwrap_or(Severity::Critical)
    }
}

/// How much one consumer may tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Notifications in an hour; what is told again does not count. 0 = no limit.
    pub per_hour: u32,
    /// What is told again within this time of the last time is counted instead of told, in milliseconds.
    pub window_ms: Millis,
}

/// A message to be told, without secrets.
#[derive(Debug, Clone, PartialEq)]
pub struct New {
    /// Its id, should it be told.
    pub id: String,
    /// How loud.
    pub severity: Severity,
    /// What it is about, for filters.
    pub category: String,
    /// Who tells it.
    pub consumer: String,
    /// One line.
    pub title: String,
    /// The rest.
    pub message: String,
    /// JSON with `label` and `url`.
    pub action: Option<String>,
    /// What is alike has the same.
    pub fingerprint: String,
    /// The id of the event that it is about, and its trace.
    pub event: Option<(String, String)>,
    /// The delivery whose effect it is.
    pub delivery: Option<DeliveryId>,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// It is a new notification.
    New,
    /// It was told already: counted there.
    Again,
    /// Its consumer told too much within an hour; nothing was stored.
    TooMuch,
}

/// A notification.
#[derive(Debug, Clone, PartialEq)]
pub struct Notification {
    /// Row number: its place among all.
    pub number: i64,
    /// Its id.
    pub id: String,
    /// When it was first told.
    pub at_ms: Millis,
    /// When it was last told.
    pub last_ms: Millis,
    /// How often.
    pub count: i64,
    /// How loud.
    pub severity: Severity,
    /// What it is about.
    pub category: String,
    /// Who told it.
    pub consumer: String,
    /// One line.
    pub title: String,
    /// The rest.
    pub message: String,
    /// `label` and `url`, or null.
    pub action: Value,
    /// The event that it is about.
    pub event: Option<String>,
    /// Its trace.
    pub trace: Option<String>,
    /// When somebody took note of it.
    pub acked_ms: Option<Millis>,
    /// When somebody put it away.
    pub dismissed_ms: Option<Millis>,
}

fn unwritten(error: rusqlite::Error) -> Error {
    Error::internal("writing a notification")(error)
}

fn unread(error: rusqlite::Error) -> Error {
    Error::internal("reading notifications")(error)
}

/// Tells `new`, unless one that is alike, at least as loud and not dismissed was told within the window: that one counts
/// it. With no `limits` there is no budget, and the window is an hour.
pub fn tell(tx: &Tx<'_>, new: &New, now_ms: Millis, limits: Option<Limits>) -> Result<Told, Error> {
    const HOUR_MS: Millis = 3_600_000;
    let window_ms = limits.map_or(HOUR_MS, |limits| limits.window_ms);
    // A time ahead of now was written by a clock that was; it is no reason to be silent for as long.
    let alike: Option<String> = tx
        .conn
        .prepare_cached(
            "SELECT id FROM notification WHERE fingerprint = ?1 AND dismissed_ms IS NULL AND last_ms > ?2 \
             AND last_ms <= ?3 AND severity >= ?4 ORDER BY last_ms DESC LIMIT 1",
        )
        .and_then(|mut s| {
            let range = params![new.fingerprint, now_ms - window_ms, now_ms, new.severity.code()];
            s.query_row(range, |row| row.get(0)).optional()
        })
        .map_err(unwritten)?;
    if let Some(id) = alike {
        tx.conn
            .prepare_cached(
                "UPDATE notification SET count = count + 1, last_ms = ?2, message = ?3, action = ?4, \
                 event = ?5, trace = ?6 WHERE id = ?1",
            )
            .and_then(|mut s| {
                let (event, trace) = new.event.clone().unzip();
                s.execute(params![id, now_ms, new.message, new.action, event, trace])
            })
            .map_err(unwritten)?;
        cause(tx, new, &id)?;
        return Ok(Told::Again);
    }
    if let Some(per_hour) = limits.map(|limits| i64::from(limits.per_hour)).filter(|most| *most > 0) {
        let told: i64 = tx
            .conn
            .prepare_cached("SELECT count(*) FROM notification WHERE consumer = ?1 AND at_ms > ?2 AND at_ms <= ?3")
            .and_then(|mut s| s.query_row(params![new.consumer, now_ms - HOUR_MS, now_ms], |row| row.get(0)))
            .map_err(unwritten)?;
        if told >= per_hour {
            return Ok(Told::TooMuch);
        }
    }
    insert(tx, new, now_ms)?;
    Ok(Told::New)
}

fn insert(tx: &Tx<'_>, new: &New, now_ms: Millis) -> Result<(), Error> {
    tx.conn
        .prepare_cached(
            "INSERT INTO notification (id, at_ms, last_ms, count, severity, category, consumer, title, message, action, \
             fingerprint, event, trace) VALUES (?1, ?2, ?2, 1, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
        )
        .and_then(|mut s| {
            let (event, trace) = new.event.clone().unzip();
            s.execute(params![
                new.id,
                now_ms,
                new.severity.code(),
                new.category,
                new.consumer,
                new.title,
                new.message,
                new.action,
                new.fingerprint,
                event,
                trace
            ])
        })
        .map_err(unwritten)?;
    cause(tx, new, &new.id)
}

fn cause(tx: &Tx<'_>, new: &New, id: &str) -> Result<(), Error> {
    let Some(delivery) = new.delivery else { return Ok(()) };
    tx.conn
        .prepare_cached("INSERT OR IGNORE INTO notification_cause (delivery, notification) VALUES (?1, ?2)")
        .and_then(|mut s| s.execute(params![delivery.0, id]))
        .map(drop)
        .map_err(unwritten)
}

/// What a delivery told, also what was told before: id and title.
pub fn of_delivery(conn: &Connection, delivery: DeliveryId) -> Result<Vec<(String, String)>, Error> {
    conn.prepare_cached(
        "SELECT n.id, n.title FROM notification_cause c JOIN notification n ON n.id = c.notification \
         WHERE c.delivery = ?1 ORDER BY n.number LIMIT 1000",
    )
    .map_err(unread)?
    .query_map([delivery.0], |row| Ok((row.get(0)?, row.get(1)?)))
    .and_then(Iterator::collect)
    .map_err(unread)
}

/// What a list is asked for.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only what nobody dismissed.
    pub active_only: bool,
    /// Only these; none = all.
    pub severities: Vec<Severity>,
    /// Only of this category.
    pub category: Option<String>,
}

impl Filter {
    /// The severities as bits.
    fn bits(&self) -> i64 {
        let wanted = if self.severities.is_empty() { &Severity::ALL[..] } else { &self.severities };
        wanted.iter().fold(0, |bits, severity| bits | 1 << severity.code())
    }

    fn among(&self) -> &'static str {
        if self.active_only { "dismissed_ms IS NULL AND" } else { "" }
    }
}

const COLUMNS: &str = "number, id, at_ms, last_ms, count, severity, category, consumer, title, message, action, event, \
    trace, acked_ms, dismissed_ms";

fn of_row(row: &Row<'_>) -> rusqlite::Result<Notification> {
    let action: Option<String> = row.get(10)?;
    Ok(Notification {
        number: row.get(0)?,
        id: row.get(1)?,
        at_ms: row.get(2)?,
        last_ms: row.get(3)?,
        count: row.get(4)?,
        severity: Severity::of_code(row.get(5)?),
        category: row.get(6)?,
        consumer: row.get(7)?,
        title: row.get(8)?,
        message: row.get(9)?,
        action: action.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default(),
        event: row.get(11)?,
        trace: row.get(12)?,
        acked_ms: row.get(13)?,
        dismissed_ms: row.get(14)?,
    })
}

/// Newest first, those before the row `before`, without the first `offset`.
pub fn list(
    conn: &Connection,
    filter: &Filter,
    before: Option<i64>,
    offset: usize,
    rows_max: usize,
) -> Result<Vec<Notification>, Error> {
    let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    conn.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM notification WHERE {} number < ?1 AND (?2 & (1 << severity)) <> 0 \
         AND (?3 IS NULL OR category = ?3) ORDER BY number DESC LIMIT ?4 OFFSET ?5",
        filter.among()
    ))
    .map_err(unread)?
    .query_map(
        params![before.unwrap_or(i64::MAX), filter.bits(), filter.category, number(rows_max), number(offset)],
        of_row,
    )
    .and_then(Iterator::collect)
    .map_err(unread)
}

/// How many nobody acknowledged or dismissed.
pub fn unread_count(conn: &Connection) -> Result<i64, Error> {
    conn.prepare_cached("SELECT count(*) FROM notification WHERE dismissed_ms IS NULL AND acked_ms IS NULL")
        .and_then(|mut s| s.query_row([], |row| row.get(0)))
        .map_err(unread)
}

/// The notification `id`.
pub fn find(conn: &Connection, id: &str) -> Result<Notification, Error> {
    conn.prepare_cached(&format!("SELECT {COLUMNS} FROM notification WHERE id = ?1"))
        .and_then(|mut s| s.query_row([id], of_row).optional())
        .map_err(unread)?
        .ok_or_else(|| Error::not_found("notification", id))
}

/// Notes that somebody knows of it. The first time counts; `invalid_state` when it was dismissed.
pub fn acknowledge(tx: &Tx<'_>, id: &str, now_ms: Millis) -> Result<Notification, Error> {
    let found = find(tx.conn, id)?;
    if found.dismissed_ms.is_some() {
        return Err(Error::conflict("invalid_state", format!("The notification '{id}' was dismissed already.")));
    }
    if found.acked_ms.is_none() {
        let sql = "UPDATE notification SET acked_ms = ?2 WHERE id = ?1";
        tx.conn.prepare_cached(sql).and_then(|mut s| s.execute(params![id, now_ms])).map_err(unwritten)?;
    }
    find(tx.conn, id)
}

/// Puts it away. The first time counts.
pub fn dismiss(tx: &Tx<'_>, id: &str, now_ms: Millis) -> Result<Notification, Error> {
    let sql = "UPDATE notification SET dismissed_ms = ?2 WHERE id = ?1 AND dismissed_ms IS NULL";
    tx.conn.prepare_cached(sql).and_then(|mut s| s.execute(params![id, now_ms])).map_err(unwritten)?;
    find(tx.conn, id)
}

/// Puts away what was told with this fingerprint: it is not to be done any more.
pub fn dismiss_alike(tx: &Tx<'_>, fingerprint: &str, now_ms: Millis) -> Result<(), Error> {
    let sql = "UPDATE notification SET dismissed_ms = ?2 WHERE fingerprint = ?1 AND dismissed_ms IS NULL";
    tx.conn.prepare_cached(sql).and_then(|mut s| s.execute(params![fingerprint, now_ms])).map(drop).map_err(unwritten)
}

/// Puts away all that `filter` means; how many there were.
pub fn dismiss_all(tx: &Tx<'_>, filter: &Filter, now_ms: Millis) -> Result<usize, Error> {
    tx.conn
        .prepare_cached(
            "UPDATE notification SET dismissed_ms = ?1 WHERE dismissed_ms IS NULL \
             AND (?2 & (1 << severity)) <> 0 AND (?3 IS NULL OR category = ?3)",
        )
        .and_then(|mut s| s.execute(params![now_ms, filter.bits(), filter.category]))
        .map_err(unwritten)
}
