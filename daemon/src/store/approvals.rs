//! Calls of tools that the person is asked about, and the rules that the person made of answers.

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use super::Tx;
use crate::clock::Millis;
use crate::error::Error;
use crate::event::Trust;

/// Questions that may wait at one time.
const PENDING_MAX: i64 = 200;
/// Rules at the most.
const RULES_MAX: i64 = 1000;
/// How long answered questions are kept.
const KEPT_MS: Millis = 90 * 86_400_000;

/// How a question stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Nobody has answered yet.
    Pending,
    /// Somebody said yes.
    Approved,
    /// Somebody said no.
    Denied,
    /// Nobody answered in time.
    Expired,
    /// Whoever asked does not want it any more.
    Withdrawn,
}

const STATUSES: [Status; 5] = [Status::Pending, Status::Approved, Status::Denied, Status::Expired, Status::Withdrawn];

impl Status {
    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Status::Pending => "pending",
            Status::Approved => "approved",
            Status::Denied => "denied",
            Status::Expired => "expired",
            Status::Withdrawn => "withdrawn",
        }
    }

    fn code(self) -> i64 {
        STATUSES.iter().position(|one| *one == self).and_then(|at| i64::try_from(at).ok()).unwrap_or(0)
    }

    fn of_code(code: i64) -> Status {
        usize::try_from(code).ok().and_then(|at| STATUSES.get(at)).copied().unwrap_or(Status::Withdrawn)
    }
}

/// For how long an answer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Remember {
    /// For this call.
    #[default]
    Once,
    /// For what the pattern fits, in this session.
    Session,
    /// For what the pattern fits, until it is revoked.
    Always,
}

impl Remember {
    /// Reads its name.
    pub fn of_name(name: &str) -> Option<Remember> {
        match name {
            "once" => Some(Remember::Once),
            "session" => Some(Remember::Session),
            "always" => Some(Remember::Always),
            _ => None,
        }
    }

    fn code(self) -> i64 {
        match self {
            Remember::Once => 0,
            Remember::Session => 1,
            Remember::Always => 2,
        }
    }

    fn of_code(code: i64) -> Remember {
        match code {
            1 => Remember::Session,
            2 => Remember::Always,
            _ => Remember::Once,
        }
    }
}

/// A question to the person.
#[derive(Debug, Clone, PartialEq)]
pub struct Approval {
    /// A UUIDv7.
    pub id: String,
    /// The call's key.
    pub key: String,
    /// SHA-256 of exactly what would run, hex.
    pub digest: String,
    /// The tool.
    pub tool: String,
    /// Who offers it.
    pub source: String,
    /// JSON, without secrets.
    pub arguments: String,
    /// What it would touch, in words.
    pub preview: Option<String>,
    /// What a rule made of it would allow.
    pub pattern: String,
    /// Why it is asked.
    pub reason: String,
    /// True when no rule may be made of it.
    pub once: bool,
    /// Whose turn it is.
    pub agent: Option<String>,
    /// The session of that turn.
    pub session: Option<String>,
    /// Who is behind the call.
    pub principal: String,
    /// The lowest trust of what led to it.
    pub trust: Trust,
    /// Its trace.
    pub trace: String,
    /// See [`Status`].
    pub status: Status,
    /// See [`Remember`].
    pub remember: Remember,
    /// Who answered.
    pub answered_by: Option<String>,
    /// When it was asked.
    pub created_ms: Millis,
    /// Until when it can be answered.
    pub expires_ms: Millis,
    /// When it was answered.
    pub answered_ms: Option<Millis>,
    /// When the call began to run behind a yes, which holds for one run; none = it did not, or may be repeated at will.
    pub begun_ms: Option<Millis>,
}

impl Approval {
    /// True for a yes that was used, and for a question that was taken back: the same call is asked about anew.
    pub fn is_over(&self) -> bool {
        self.begun_ms.is_some() || self.status == Status::Withdrawn
    }
}

fn failed(error: rusqlite::Error) -> Error {
    Error::internal("storing an approval")(error)
}

fn unread(error: rusqlite::Error) -> Error {
    Error::internal("reading approvals")(error)
}

const COLUMNS: &str = "id, key, digest, tool, arguments, preview, pattern, reason, once, agent, session, principal, trust, \
    trace, status, remember, answered_by, created_ms, expires_ms, answered_ms, source, begun_ms";

fn approval(row: &Row<'_>) -> rusqlite::Result<Approval> {
    Ok(Approval {
        id: row.get(0)?,
        key: row.get(1)?,
        digest: row.get(2)?,
        tool: row.get(3)?,
        arguments: row.get(4)?,
        preview: row.get(5)?,
        pattern: row.get(6)?,
        reason: row.get(7)?,
        once: row.get(8)?,
        agent: row.get(9)?,
        session: row.get(10)?,
        principal: row.get(11)?,
        trust: Trust::of_code(row.get(12)?),
        trace: row.get(13)?,
        status: Status::of_code(row.get(14)?),
        remember: Remember::of_code(row.get(15)?),
        answered_by: row.get(16)?,
        created_ms: row.get(17)?,
        expires_ms: row.get(18)?,
        answered_ms: row.get(19)?,
        source: row.get(20)?,
        begun_ms: row.get(21)?,
    })
}

fn one(conn: &Connection, column: &str, value: &str) -> Result<Option<Approval>, Error> {
    conn.prepare_cached(&format!("SELECT {COLUMNS} FROM approval WHERE {column} = ?1"))
        .and_then(|mut s| s.query_row([value], approval).optional())
        .map_err(unread)
}

/// The question of a call.
pub fn by_key(conn: &Connection, key: &str) -> Result<Option<Approval>, Error> {
    one(conn, "key", key)
}

/// The question of this id.
pub fn by_id(conn: &Connection, id: &str) -> Result<Approval, Error> {
    one(conn, "id", id)?.ok_or_else(|| Error::not_found("approval", id))
}

/// Asks, unless the call was asked about already; gives the question as it stands, and whether it is new. `overloaded`
/// when too many wait.
pub fn ask(tx: &Tx<'_>, new: &Approval) -> Result<(Approval, bool), Error> {
    match one(tx.conn, "key", &new.key)? {
        Some(known) if known.is_over() => {
            tx.conn
                .prepare_cached("UPDATE approval SET key = 'over/' || id WHERE id = ?1")
                .and_then(|mut s| s.execute([&known.id]))
                .map_err(failed)?;
        }
        Some(known) => return Ok((known, false)),
        None => {}
    }
    let waiting: i64 = tx
        .conn
        .prepare_cached("SELECT count(*) FROM approval WHERE status = 0")
        .and_then(|mut s| s.query_row([], |row| row.get(0)))
        .map_err(unread)?;
    if waiting >= PENDING_MAX {
        let what = format!("{waiting} calls of tools wait for an approval, which is the most.");
        return Err(Error::Busy { code: "overloaded", what, retry_after_ms: 10_000 });
    }
    tx.conn
        .prepare_cached(
            "DELETE FROM approval WHERE number IN (SELECT number FROM approval ORDER BY number LIMIT 100)
             AND status > 0 AND created_ms < ?1",
        )
        .and_then(|mut s| s.execute([new.created_ms - KEPT_MS]))
        .map_err(failed)?;
    tx.conn
        .prepare_cached(&format!(
            "INSERT INTO approval ({COLUMNS}) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16,?17,?18,?19,?20,?21,?22)"
        ))
        .and_then(|mut s| {
            s.execute(params![
                new.id,
                new.key,
                new.digest,
                new.tool,
                new.arguments,
                new.preview,
                new.pattern,
                new.reason,
                new.once,
                new.agent,
                new.session,
                new.principal,
                new.trust.code(),
                new.trace,
                new.status.code(),
                new.remember.code(),
                new.answered_by,
                new.created_ms,
                new.expires_ms,
                new.answered_ms,
                new.source,
                new.begun_ms
            ])
        })
        .map_err(failed)?;
    Ok((new.clone(), true))
}

/// Every question that waits, oldest first.
pub fn pending(conn: &Connection) -> Result<Vec<Approval>, Error> {
    conn.prepare_cached(&format!("SELECT {COLUMNS} FROM approval WHERE status = 0 ORDER BY number"))
        .and_then(|mut s| s.query_map([], approval)?.collect())
        .map_err(unread)
}

/// When the next question expires; none when none waits.
pub fn next_expiry(conn: &Connection) -> Result<Option<Millis>, Error> {
    conn.prepare_cached("SELECT min(expires_ms) FROM approval WHERE status = 0")
        .and_then(|mut s| s.query_row([], |row| row.get(0)))
        .map_err(unread)
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The question.
    pub id: String,
    /// Yes or no.
    pub approved: bool,
    /// For how long; a rule is made of what is more than once.
    pub remember: Remember,
    /// Who answers.
    pub principal: String,
}

/// Answers a question; the first answer wins: `invalid_state` for every other one, and for one that comes too late.
pub fn answer(tx: &Tx<'_>, answer: &Answer, now_ms: Millis) -> Result<Approval, Error> {
    let asked = by_id(tx.conn, &answer.id)?;
    let over = match asked.status {
        Status::Pending if asked.expires_ms > now_ms => None,
        Status::Pending | Status::Expired => Some("has expired: it was not answered in time".to_owned()),
        Status::Withdrawn => Some("was withdrawn: whoever asked does not wait any more".to_owned()),
        Status::Approved | Status::Denied => {
            let by = asked.answered_by.as_deref().unwrap_or("somebody");
            Some(format!("was answered already, by {by}: {}", asked.status.name()))
        }
    };
    if let Some(over) = over {
        return Err(Error::conflict("invalid_state", format!("The approval {} {over}.", asked.id)));
    }
    let remember = if answer.approved { answer.remember } else { Remember::Once };
    if remember != Remember::Once && asked.once {
        let reason =
            "must be once: the call follows from content that is not trusted, and no rule is made of such a call.";
        return Err(Error::invalid("remember", reason));
    }
    if remember == Remember::Session && asked.session.is_none() {
        return Err(Error::invalid("remember", "must be once or always: this call belongs to no session."));
    }
    let status = if answer.approved { Status::Approved } else { Status::Denied };
    tx.conn
        .prepare_cached(
            "UPDATE approval SET status = ?2, remember = ?3, answered_by = ?4, answered_ms = ?5 WHERE id = ?1 AND status = 0",
        )
        .and_then(|mut s| s.execute(params![asked.id, status.code(), remember.code(), answer.principal, now_ms]))
        .map_err(failed)?;
    if remember != Remember::Once {
        let session = asked.session.as_deref().filter(|_| remember == Remember::Session);
        add_rule(tx, &asked, session, &answer.principal, now_ms)?;
    }
    by_id(tx.conn, &answer.id)
}

/// Ends every question whose time is over, and gives them.
pub fn expire(tx: &Tx<'_>, now_ms: Millis) -> Result<Vec<Approval>, Error> {
    let due: Vec<Approval> = tx
        .conn
        .prepare_cached(&format!("SELECT {COLUMNS} FROM approval WHERE status = 0 AND expires_ms <= ?1"))
        .and_then(|mut s| s.query_map([now_ms], approval)?.collect())
        .map_err(unread)?;
    tx.conn
        .prepare_cached("UPDATE approval SET status = 3, answered_ms = ?1 WHERE status = 0 AND expires_ms <= ?1")
        .and_then(|mut s| s.execute([now_ms]))
        .map_err(failed)?;
    Ok(due)
}

/// Takes a question back that nobody has answered. The same call again is asked about anew.
pub fn withdraw(tx: &Tx<'_>, id: &str, now_ms: Millis) -> Result<(), Error> {
    tx.conn
        .prepare_cached("UPDATE approval SET status = 4, answered_ms = ?2 WHERE id = ?1 AND status = 0")
        .and_then(|mut s| s.execute(params![id, now_ms]))
        .map(drop)
        .map_err(failed)
}

/// Revokes everything that was allowed to an agent that goes.
pub fn forget_agent(tx: &Tx<'_>, agent: &str) -> Result<(), Error> {
    tx.conn
        .prepare_cached("DELETE FROM approval_rule WHERE agent = ?1")
        .and_then(|mut s| s.execute([agent]))
        .map(drop)
        .map_err(failed)
}

/// Marks a yes as used, as its call begins to run. False when somebody else has used it.
pub fn use_up(tx: &Tx<'_>, id: &str, now_ms: Millis) -> Result<bool, Error> {
    tx.conn
        .prepare_cached("UPDATE approval SET begun_ms = ?2 WHERE id = ?1 AND status = 1 AND begun_ms IS NULL")
        .and_then(|mut s| s.execute(params![id, now_ms]))
        .map(|changed| changed > 0)
        .map_err(failed)
}

/// What the person allowed once for all.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// A UUIDv7.
    pub id: String,
    /// For whose turns; none = for calls that no agent makes.
    pub agent: Option<String>,
    /// For which session; none = for every.
    pub session: Option<String>,
    /// The tool.
    pub tool: String,
    /// Who offers it.
    pub source: String,
    /// Which calls of it.
    pub pattern: String,
    /// Who allowed it.
    pub principal: String,
    /// How many calls it has let pass.
    pub uses: i64,
    /// When it was made.
    pub created_ms: Millis,
}

const RULE_COLUMNS: &str = "id, agent, session, tool, pattern, principal, uses, created_ms, source";

fn rule(row: &Row<'_>) -> rusqlite::Result<Rule> {
    Ok(Rule {
        id: row.get(0)?,
        agent: row.get(1)?,
        session: row.get(2)?,
        tool: row.get(3)?,
        pattern: row.get(4)?,
        principal: row.get(5)?,
        uses: row.get(6)?,
        created_ms: row.get(7)?,
        source: row.get(8)?,
    })
}

fn add_rule(
    tx: &Tx<'_>,
    asked: &Approval,
    session: Option<&str>,
    principal: &str,
    now_ms: Millis,
) -> Result<(), Error> {
    let (known, all): (i64, i64) = tx
        .conn
        .prepare_cached(
            "SELECT count(*) FILTER (WHERE tool = ?1 AND pattern = ?2 AND agent IS ?3 AND session IS ?4 AND source = ?5), \
             count(*) FROM approval_rule",
        )
        .and_then(|mut s| {
            let same = params![asked.tool, asked.pattern, asked.agent, session, asked.source];
            s.query_row(same, |row| Ok((row.get(0)?, row.get(1)?)))
        })
        .map_err(unread)?;
    if known > 0 {
        return Ok(());
    }
    if all >= RULES_MAX {
        let reason = format!("must be once: there are {RULES_MAX} rules, which is the most. Revoke some first.");
        return Err(Error::invalid("remember", reason));
    }
    tx.conn
        .prepare_cached(
            "INSERT INTO approval_rule (id, agent, session, tool, pattern, principal, uses, created_ms, source) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0, ?7, ?8)",
        )
        .and_then(|mut s| {
            let (id, Approval { agent, tool, pattern, source, .. }) = (crate::id::fresh(), asked);
            s.execute(params![id, agent, session, tool, pattern, principal, now_ms, source])
        })
        .map(drop)
        .map_err(failed)
}

/// Every rule, oldest first.
pub fn rules(conn: &Connection) -> Result<Vec<Rule>, Error> {
    conn.prepare_cached(&format!("SELECT {RULE_COLUMNS} FROM approval_rule ORDER BY number"))
        .and_then(|mut s| s.query_map([], rule)?.collect())
        .map_err(unread)
}

/// The rules for a tool, by its name and who offers it, that count for `agent` in `session`.
pub fn rules_for(
    conn: &Connection,
    (tool, source): (&str, &str),
    agent: Option<&str>,
    session: Option<&str>,
) -> Result<Vec<Rule>, Error> {
    conn.prepare_cached(&format!(
        "SELECT {RULE_COLUMNS} FROM approval_rule WHERE tool = ?1 AND agent IS ?2 AND (session IS NULL OR session = ?3) \
         AND source = ?4 ORDER BY number"
    ))
    .and_then(|mut s| s.query_map(params![tool, agent, session, source], rule)?.collect())
    .map_err(unread)
}

/// Counts a call that a rule has let pass.
pub fn used(tx: &Tx<'_>, id: &str) -> Result<(), Error> {
    tx.conn
        .prepare_cached("UPDATE approval_rule SET uses = uses + 1 WHERE id = ?1")
        .and_then(|mut s| s.execute([id]))
        .map(drop)
        .map_err(failed)
}

/// Revokes a rule and gives it.
pub fn revoke(tx: &Tx<'_>, id: &str) -> Result<Rule, Error> {
    tx.conn
        .prepare_cached(&format!("DELETE FROM approval_rule WHERE id = ?1 RETURNING {RULE_COLUMNS}"))
        .and_then(|mut s| s.query_row([id], rule).optional())
        .map_err(failed)?
        .ok_or_else(|| Error::not_found("approval rule", id))
}
