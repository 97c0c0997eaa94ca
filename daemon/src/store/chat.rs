//! Conversations: sessions and their messages. A transcript is only ever added to: what is said anew, instead of something
//! earlier, is a branch beside it, and the session shows the branch that ends with its head.

mod listing;
mod removal;

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use super::Tx;
use super::turns::{self, TurnRow};
use crate::clock::Millis;
use crate::error::Error;
use crate::event::Trust;
use crate::models::{ToolCall, Usage};
use crate::redact;
use crate::text::words::spaced;

pub use listing::{Filter, Hit, search, sessions};
pub(super) use removal::{DUE_BACKGROUND, DUE_HIDDEN, DUE_PERSONS, remove_due};
pub use removal::{hide, hide_all, purge};

/// Messages that one session may have, on all its branches.
pub const MESSAGES_MAX: i64 = 10_000;
/// Bytes of text and attachments after which a reading of messages ends; the one that passes it is still read.
pub const READ_BYTES_MAX: usize = 4 << 20;

/// Who talks in a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A person.
    Person,
    /// An event, or a schedule.
    Event,
    /// Another agent, or a workflow.
    Asked,
    /// A plugin, which made it and has it as its own.
    Plugin,
}

impl Kind {
    /// The names in JSON, in the order of the codes.
    pub const NAMES: [&'static str; 4] = ["person", "event", "asked", "plugin"];

    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        Kind::NAMES[self as usize]
    }

    /// Reads [`Kind::name`] back.
    pub fn of_name(name: &str) -> Option<Kind> {
        [Kind::Person, Kind::Event, Kind::Asked, Kind::Plugin].into_iter().find(|kind| kind.name() == name)
    }

    fn of_code(code: i64) -> Kind {
        match code {
            0 => Kind::Person,
            1 => Kind::Event,
            3 => Kind::Plugin,
            _ => Kind::Asked,
        }
    }
}

/// Whose words a message has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A person's, or of what takes their place.
    User,
    /// The agent's.
    Assistant,
    /// A tool's: what came of a call.
    Tool,
}

impl Role {
    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }

    fn of_code(code: i64) -> Role {
        match code {
            0 => Role::User,
            1 => Role::Assistant,
            _ => Role::Tool,
        }
    }
}

/// A session as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRow {
    /// Its row number.
    pub number: i64,
    /// Its id.
    pub id: String,
    /// Its agent.
    pub agent: String,
    /// Its title; none yet, or one that was given or made.
    pub title: Option<String>,
    /// True when the title was given.
    pub titled: bool,
    /// Who talks in it.
    pub kind: Kind,
    /// Who began it.
    pub principal: String,
    /// The lowest of what is in it.
    pub trust: Trust,
    /// Goes up with every change that a client could miss.
    pub version: i64,
    /// The newest message of the branch that is shown.
    pub head: Option<i64>,
    /// How many messages there are, on all branches.
    pub messages: i64,
    /// True when it takes no messages any more.
    pub closed: bool,
    /// When it was made.
    pub created_ms: Millis,
    /// When it was last changed.
    pub updated_ms: Millis,
}

/// A session that is to be stored.
#[derive(Debug, Clone)]
pub struct NewSession {
    /// Its id.
    pub id: String,
    /// Its agent.
    pub agent: String,
    /// Its title, if one is given.
    pub title: Option<String>,
    /// Who talks in it.
    pub kind: Kind,
    /// Who begins it.
    pub principal: String,
    /// How far they are believed.
    pub trust: Trust,
    /// Now.
    pub at_ms: Millis,
}

/// A file or a picture that came with a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Its name, without a path.
    pub name: String,
    /// For example `text/plain` or `image/png`.
    pub media_type: String,
    /// Its text, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Its bytes in base64, if it is a picture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base64: Option<String>,
}

/// What belongs to a message besides its text.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Body {
    /// Calls that an assistant asks for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// The call that a tool's message answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub call_id: Option<String>,
    /// That tool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
    /// True when the call failed or was refused.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub is_error: bool,
    /// True when an answer was stopped before its end.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stopped: bool,
    /// What came with a user's message.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<Attachment>,
    /// The model that answered, as `provider/model`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What its answer took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// A message that is to be appended.
#[derive(Debug, Clone)]
pub struct NewMessage {
    /// Its id; see [`crate::id::fresh`].
    pub id: String,
    /// The turn that it comes from, or that answers it.
    pub turn: Option<i64>,
    /// Whose words.
    pub role: Role,
    /// The words.
    pub text: String,
    /// The rest.
    pub body: Body,
    /// How far its content is believed.
    pub trust: Trust,
    /// Now.
    pub at_ms: Millis,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// Its row number; the numbers of a branch go up.
    pub number: i64,
    /// The session's version with it.
    pub version: i64,
}

/// A message as it is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct MessageRow {
    /// Its row number.
    pub number: i64,
    /// Its id.
    pub id: String,
    /// The message before it.
    pub parent: Option<i64>,
    /// The id of that.
    pub parent_id: Option<String>,
    /// The turn that it comes from, or that answers it.
    pub turn: Option<i64>,
    /// Whose words.
    pub role: Role,
    /// The words.
    pub text: String,
    /// The rest.
    pub body: Body,
    /// How far its content is believed.
    pub trust: Trust,
    /// When it was appended.
    pub created_ms: Millis,
}

impl MessageRow {
    /// About how many bytes its text and what belongs to it have.
    pub fn bytes(&self) -> usize {
        let attached = |one: &Attachment| {
            one.text.as_ref().map_or(0, String::len) + one.base64.as_ref().map_or(0, String::len) + one.name.len()
        };
        let calls = self.body.tool_calls.iter().map(|call| call.arguments.to_string().len()).sum::<usize>();
        256 + self.text.len() + calls + self.body.attachments.iter().map(attached).sum::<usize>()
    }
}

fn unread(error: rusqlite::Error) -> Error {
    Error::internal("reading a conversation")(error)
}

fn unwritten(error: rusqlite::Error) -> Error {
    Error::internal("writing a conversation")(error)
}

const COLUMNS: &str = "number, id, agent, title, titled, kind, principal, trust, version, head, messages, closed, created_ms, \
    updated_ms";

fn session_of(row: &Row<'_>) -> rusqlite::Result<SessionRow> {
    Ok(SessionRow {
        number: row.get(0)?,
        id: row.get(1)?,
        agent: row.get(2)?,
        title: row.get(3)?,
        titled: row.get(4)?,
        kind: Kind::of_code(row.get(5)?),
        principal: row.get(6)?,
        trust: Trust::of_code(row.get(7)?),
        version: row.get(8)?,
        head: row.get(9)?,
        messages: row.get(10)?,
        closed: row.get(11)?,
        created_ms: row.get(12)?,
        updated_ms: row.get(13)?,
    })
}

/// Stores a session; it has no messages yet.
pub fn create(tx: &Tx<'_>, new: &NewSession) -> Result<SessionRow, Error> {
    let title = new.title.as_deref().map(redact::text);
    tx.conn
        .prepare_cached(
            "INSERT INTO session (id, agent, title, titled, kind, principal, trust, version, messages, closed, created_ms, \
             updated_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 1, 0, 0, ?8, ?8)",
        )
        .and_then(|mut s| {
            s.execute(params![
                new.id,
                new.agent,
                title,
                title.is_some(),
                new.kind as i64,
                new.principal,
                new.trust.code(),
                new.at_ms
            ])
        })
        .map_err(unwritten)?;
    by_number(tx.conn, tx.conn.last_insert_rowid())?.ok_or_else(|| Error::not_found("session", new.id.clone()))
}

/// The session of that id, unless it was removed.
pub fn session(conn: &Connection, id: &str) -> Result<Option<SessionRow>, Error> {
    conn.prepare_cached(&format!("SELECT {COLUMNS} FROM session WHERE id = ?1 AND closed < 2"))
        .and_then(|mut s| s.query_row([id], session_of).optional())
        .map_err(unread)
}

/// As [`session`], in a transaction that writes.
pub fn session_in(tx: &Tx<'_>, id: &str) -> Result<Option<SessionRow>, Error> {
    session(tx.conn, id)
}

/// Whether an id is one of a session, also of one that is being removed.
pub fn is_known_in(tx: &Tx<'_>, id: &str) -> Result<bool, Error> {
    tx.conn.prepare_cached("SELECT 1 FROM session WHERE id = ?1").and_then(|mut s| s.exists([id])).map_err(unread)
}

/// How many sessions of a kind a principal has.
pub fn count_in(tx: &Tx<'_>, principal: &str, kind: Kind) -> Result<i64, Error> {
    tx.conn
        .prepare_cached("SELECT count(*) FROM session WHERE principal = ?1 AND kind = ?2 AND closed < 2")
        .and_then(|mut s| s.query_row(params![principal, kind as i64], |row| row.get(0)))
        .map_err(unread)
}

/// How many turns are under way in the sessions of a kind that a principal has.
pub fn open_turns_in(tx: &Tx<'_>, principal: &str, kind: Kind) -> Result<i64, Error> {
    tx.conn
        .prepare_cached(
            "SELECT count(*) FROM turn t JOIN session s ON s.number = t.session \
             WHERE t.status < 2 AND s.principal = ?1 AND s.kind = ?2",
        )
        .and_then(|mut s| s.query_row(params![principal, kind as i64], |row| row.get(0)))
        .map_err(unread)
}

/// Those of the sessions of a kind that a principal has in which a turn is under way, by their numbers.
pub fn at_work(conn: &Connection, principal: &str, kind: Kind) -> Result<Vec<i64>, Error> {
    conn.prepare_cached(
        "SELECT DISTINCT s.number FROM turn t JOIN session s ON s.number = t.session \
         WHERE t.status < 2 AND s.principal = ?1 AND s.kind = ?2",
    )
    .and_then(|mut s| s.query_map(params![principal, kind as i64], |row| row.get(0))?.collect())
    .map_err(unread)
}

/// The agent's last words in a turn that ended: the id of the message, and the text.
pub fn answer_of(conn: &Connection, turn: i64) -> Result<Option<(String, String)>, Error> {
    conn.prepare_cached("SELECT id, text FROM message WHERE turn = ?1 AND role = 1 ORDER BY number DESC LIMIT 1")
        .and_then(|mut s| s.query_row([turn], |row| Ok((row.get(0)?, row.get(1)?))).optional())
        .map_err(unread)
}

/// The session with that number, unless it was removed.
pub fn by_number(conn: &Connection, number: i64) -> Result<Option<SessionRow>, Error> {
    conn.prepare_cached(&format!("SELECT {COLUMNS} FROM session WHERE number = ?1 AND closed < 2"))
        .and_then(|mut s| s.query_row([number], session_of).optional())
        .map_err(unread)
}

/// As [`by_number`], in a transaction that writes.
pub fn by_number_in(tx: &Tx<'_>, number: i64) -> Result<Option<SessionRow>, Error> {
    by_number(tx.conn, number)
}

/// Appends a message to the branch that is shown: it becomes the head, the session's version goes up, and what user and
/// assistant say is indexed. Secrets in it are made unreadable. `Conflict` `invalid_state` when a user speaks in a full session.
pub fn append(tx: &Tx<'_>, session: i64, new: &NewMessage) -> Result<Appended, Error> {
    let (head, messages): (Option<i64>, i64) = tx
        .conn
        .prepare_cached("SELECT head, messages FROM session WHERE number = ?1 AND closed < 2")
        .and_then(|mut s| s.query_row([session], |row| Ok((row.get(0)?, row.get(1)?))).optional())
        .map_err(unwritten)?
        .ok_or_else(|| Error::not_found("session", session.to_string()))?;
    // What a turn that was let in comes to has been paid for and done.
    if messages >= MESSAGES_MAX && new.role == Role::User {
        let reason = format!("This session has {MESSAGES_MAX} messages, which is the most. Begin a new one.");
        return Err(Error::conflict("invalid_state", reason));
    }
    let text = redact::text(&new.text);
    let body = encoded(&new.body)?;
    tx.conn
        .prepare_cached(
            "INSERT INTO message (id, session, parent, turn, role, text, body, trust, created_ms) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )
        .and_then(|mut s| {
            let (role, trust) = (new.role as i64, new.trust.code());
            s.execute(params![new.id, session, head, new.turn, role, text, body, trust, new.at_ms])
        })
        .map_err(unwritten)?;
    let number = tx.conn.last_insert_rowid();
    if new.role != Role::Tool && !text.is_empty() {
        tx.overwriting(|| {
            tx.conn
                .prepare_cached("INSERT INTO message_words (rowid, text) VALUES (?1, ?2)")
                .and_then(|mut s| s.execute(params![number, spaced(&text)]))
                .map_err(unwritten)
        })?;
    }
    let version = tx
        .conn
        .prepare_cached(
            "UPDATE session SET head = ?2, version = version + 1, messages = messages + 1, trust = min(trust, ?3), \
             updated_ms = max(updated_ms, ?4) WHERE number = ?1 RETURNING version",
        )
        .and_then(|mut s| s.query_row(params![session, number, new.trust.code(), new.at_ms], |row| row.get(0)))
        .map_err(unwritten)?;
    Ok(Appended { number, version })
}

fn encoded(body: &Body) -> Result<Option<String>, Error> {
    if *body == Body::default() {
        return Ok(None);
    }
    let mut value = serde_json::to_value(body).map_err(Error::internal("storing a message"))?;
    redact::value(&mut value);
    Ok(Some(value.to_string()))
}

/// Notes which turn answers a message; the newest, when it is answered again.
pub fn set_turn(tx: &Tx<'_>, message: i64, turn: i64) -> Result<(), Error> {
    tx.conn
        .prepare_cached("UPDATE message SET turn = ?2 WHERE number = ?1")
        .and_then(|mut s| s.execute(params![message, turn]))
        .map(drop)
        .map_err(unwritten)
}

/// Shows the branch that ends with `head`; what was said behind it stays, and is shown no more. The version goes up.
pub fn set_head(tx: &Tx<'_>, session: i64, head: Option<i64>, now_ms: Millis) -> Result<(), Error> {
    change(tx, session, now_ms, "head = ?3", head)
}

/// Sets the title; `given` ones are not made anew.
pub fn set_title(tx: &Tx<'_>, session: i64, title: &str, given: bool, now_ms: Millis) -> Result<(), Error> {
    let sql = if given { "titled = 1, title = ?3" } else { "title = CASE titled WHEN 1 THEN title ELSE ?3 END" };
    change(tx, session, now_ms, sql, redact::text(title))
}

/// Sets a title that was made, unless one was given by now. It is no change of the conversation: the version stays.
pub fn retitle(tx: &Tx<'_>, session: i64, title: &str) -> Result<(), Error> {
    tx.conn
        .prepare_cached("UPDATE session SET title = ?2 WHERE number = ?1 AND titled = 0 AND closed < 2")
        .and_then(|mut s| s.execute(params![session, redact::text(title)]))
        .map(drop)
        .map_err(unwritten)
}

/// Lets a session take no messages any more.
pub fn close(tx: &Tx<'_>, session: i64, now_ms: Millis) -> Result<(), Error> {
    change(tx, session, now_ms, "closed = ?3", 1)
}

/// Says that something changed that is not in these tables, as the end of a turn.
pub fn touch(tx: &Tx<'_>, session: i64, now_ms: Millis) -> Result<(), Error> {
    change(tx, session, now_ms, "closed = closed + ?3", 0)
}

fn change(tx: &Tx<'_>, session: i64, now_ms: Millis, what: &str, value: impl rusqlite::ToSql) -> Result<(), Error> {
    let sql = format!(
        "UPDATE session SET version = version + 1, updated_ms = max(updated_ms, ?2), {what} WHERE number = ?1 AND closed < 2"
    );
    tx.conn
        .prepare_cached(&sql)
        .and_then(|mut s| s.execute(params![session, now_ms, value]))
        .map(drop)
        .map_err(unwritten)
}

const MESSAGE: &str = "SELECT m.number, m.id, m.parent, p.id, m.turn, m.role, m.text, m.body, m.trust, m.created_ms \
    FROM message m LEFT JOIN message p ON p.number = m.parent";

fn message_of(row: &Row<'_>) -> rusqlite::Result<MessageRow> {
    let body: Option<String> = row.get(7)?;
    // What cannot be read any more is left out rather than the whole conversation.
    let body = body.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    Ok(MessageRow {
        number: row.get(0)?,
        id: row.get(1)?,
        parent: row.get(2)?,
        parent_id: row.get(3)?,
        turn: row.get(4)?,
        role: Role::of_code(row.get(5)?),
        text: row.get(6)?,
        body,
        trust: Trust::of_code(row.get(8)?),
        created_ms: row.get(9)?,
    })
}

/// The message of that id in a session.
pub fn message(conn: &Connection, session: i64, id: &str) -> Result<Option<MessageRow>, Error> {
    conn.prepare_cached(&format!("{MESSAGE} WHERE m.id = ?2 AND m.session = ?1"))
        .and_then(|mut s| s.query_row(params![session, id], message_of).optional())
        .map_err(unread)
}

/// As [`message`], in a transaction that writes.
pub fn message_in(tx: &Tx<'_>, session: i64, id: &str) -> Result<Option<MessageRow>, Error> {
    message(tx.conn, session, id)
}

/// The message with that number.
pub fn numbered(conn: &Connection, number: i64) -> Result<Option<MessageRow>, Error> {
    conn.prepare_cached(&format!("{MESSAGE} WHERE m.number = ?1"))
        .and_then(|mut s| s.query_row([number], message_of).optional())
        .map_err(unread)
}

/// As [`numbered`], in a transaction that writes.
pub fn numbered_in(tx: &Tx<'_>, number: i64) -> Result<Option<MessageRow>, Error> {
    numbered(tx.conn, number)
}

/// The branch that ends with `head`, oldest first, without what is before its last `rows_max` messages or `bytes_max`
/// bytes: then the first has a parent.
pub fn path_to(
    conn: &Connection,
    head: Option<i64>,
    rows_max: usize,
    bytes_max: usize,
) -> Result<Vec<MessageRow>, Error> {
    let (mut found, mut bytes, mut next) = (Vec::new(), 0, head);
    while let Some(number) = next.filter(|_| found.len() < rows_max && bytes < bytes_max) {
        let Some(message) = numbered(conn, number)? else { break };
        bytes += message.bytes();
        next = message.parent;
        found.push(message);
    }
    found.reverse();
    Ok(found)
}

/// A page of the branch that ends with `head`, oldest first: what follows the message `after`.
pub fn page(conn: &Connection, head: Option<i64>, after: Option<i64>, rows_max: usize) -> Result<Page, Error> {
    // The numbers of a branch go up, so the walk back can end where the page before it did.
    let numbers: Vec<i64> = conn
        .prepare_cached(
            "WITH RECURSIVE branch (number) AS (SELECT ?1 WHERE ?1 > ?2 UNION ALL SELECT m.parent FROM branch b \
             JOIN message m ON m.number = b.number WHERE m.parent > ?2) \
             SELECT number FROM branch ORDER BY number LIMIT ?3",
        )
        .and_then(|mut s| {
            let rows_max = i64::try_from(rows_max).unwrap_or(i64::MAX);
            s.query_map(params![head, after.unwrap_or(0), rows_max], |row| row.get(0))?.collect()
        })
        .map_err(unread)?;
    bounded(numbers.into_iter().map(|number| numbered(conn, number)))
}

/// A page of all that was said, on whichever branch, oldest first: what follows the message `after`.
pub fn page_of_all(conn: &Connection, session: i64, after: Option<i64>, rows_max: usize) -> Result<Page, Error> {
    let mut statement = conn
        .prepare_cached(&format!("{MESSAGE} WHERE m.session = ?1 AND m.number > ?2 ORDER BY m.number LIMIT ?3"))
        .map_err(unread)?;
    let rows_max = i64::try_from(rows_max).unwrap_or(i64::MAX);
    let rows = statement.query_map(params![session, after.unwrap_or(0), rows_max], message_of).map_err(unread)?;
    bounded(rows.map(|row| row.map(Some).map_err(unread)))
}

/// Messages that were asked for, as many as [`READ_BYTES_MAX`] lets through.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    /// Oldest first.
    pub messages: Vec<MessageRow>,
    /// True when there would have been more of what was asked for.
    pub is_cut: bool,
}

fn bounded(messages: impl Iterator<Item = Result<Option<MessageRow>, Error>>) -> Result<Page, Error> {
    let (mut messages, mut found, mut bytes) = (messages.peekable(), Vec::new(), 0);
    for message in messages.by_ref() {
        let Some(message) = message? else { continue };
        bytes += message.bytes();
        found.push(message);
        if bytes >= READ_BYTES_MAX {
            break;
        }
    }
    Ok(Page { messages: found, is_cut: messages.peek().is_some() })
}

/// The turn of a session that has not ended, as [`turns::open_of_session`], in a transaction that writes.
pub fn open_turn_in(tx: &Tx<'_>, session: i64) -> Result<Option<TurnRow>, Error> {
    turns::open_of_session(tx.conn, session)
}
