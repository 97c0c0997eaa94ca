//! Who changed what: a chain of rows, each holding the hash of the one before. The newest one's number and hash are noted
//! beside the chain in the same transaction, so that rows which are removed at its end show, too.

use ring::digest::{SHA256, digest};
use rusqlite::{Connection, OptionalExtension, Row, ToSql, params};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Tx;
use crate::clock::{Millis, rfc3339};
use crate::error::Error;
use crate::id::hex;
use crate::redact;

/// How a change ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It begins; its effect is outside the database.
    Begun,
    /// It was made.
    Done,
    /// It was not allowed.
    Refused,
    /// It was tried and failed.
    Failed,
    /// It was begun, and the daemon ended before it was known how it ended.
    Unknown,
}

impl Outcome {
    /// Its name in JSON and in the database.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Begun => "begun",
            Outcome::Done => "done",
            Outcome::Refused => "refused",
            Outcome::Failed => "failed",
            Outcome::Unknown => "unknown",
        }
    }
}

/// One change, as it is to be recorded.
#[derive(Debug, Clone)]
pub struct Record {
    /// When.
    pub at_ms: Millis,
    /// Who, authenticated.
    pub principal: String,
    /// Who, as claimed by `x-aman-operator`.
    pub claimed_operator: Option<String>,
    /// What was done, for example `dlq.retry`.
    pub action: String,
    /// What it was done to.
    pub target: String,
    /// How it ended.
    pub outcome: Outcome,
    /// HTTP status of the answer.
    pub status: u16,
    /// Trace of the request.
    pub trace: Option<String>,
    /// Anything else worth keeping; never a secret.
    pub detail: Value,
    /// Digest of the thing before.
    pub before_digest: Option<String>,
    /// Digest of the thing after.
    pub after_digest: Option<String>,
}

/// A record as it stands in the chain.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its place in the chain, from 1.
    pub seq: i64,
    /// What it records; `outcome` as text, since old rows may know others.
    pub body: Value,
    /// Hash of the entry before.
    pub prev_hash: String,
    /// Hash of this entry.
    pub hash: String,
}

/// The newest record: whoever keeps it elsewhere can tell later that the chain still holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Its number.
    pub seq: i64,
    /// Its hash.
    pub hash: String,
}

impl Head {
    /// Reads `SEQ:HASH`.
    pub fn read(text: &str) -> Option<Head> {
        let (seq, hash) = text.split_once(':')?;
        let is_hash = hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        let seq = seq.parse().ok().filter(|seq| *seq > 0 && is_hash)?;
        Some(Head { seq, hash: hash.to_ascii_lowercase() })
    }
}

fn unwritten(error: rusqlite::Error) -> Error {
    Error::internal("writing the audit log")(error)
}

fn unread(error: rusqlite::Error) -> Error {
    Error::internal("reading the audit log")(error)
}

fn redacted(record: &Record) -> Record {
    let mut clean = record.clone();
    redact::string(&mut clean.principal);
    clean.claimed_operator.iter_mut().for_each(redact::string);
    redact::string(&mut clean.target);
    redact::value(&mut clean.detail);
    clean
}

/// Appends a record to the chain and returns its number.
pub fn append(tx: &Tx<'_>, record: &Record) -> Result<i64, Error> {
    let last = tx
        .conn
        .prepare_cached("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1")
        .and_then(|mut s| s.query_row([], |row| Ok(Head { seq: row.get(0)?, hash: row.get(1)? })).optional())
        .map_err(unwritten)?;
    // No number twice, even when the rows at the end are gone.
    let begins = anchor(tx.conn)?.map(|anchor| Head { seq: anchor.seq, hash: anchor.hash });
    let known = begins.into_iter().chain(noted(tx.conn)?).chain(last);
    let last = known.reduce(|one, other| if other.seq > one.seq { other } else { one });
    let (seq, prev_hash) = last.map_or_else(|| (1, "0".repeat(64)), |last| (last.seq + 1, last.hash));
    let record = &redacted(record);
    let detail = record.detail.to_string();
    let body = body(
        seq,
        record.at_ms,
        &record.principal,
        record.claimed_operator.as_deref(),
        &record.action,
        &record.target,
        record.outcome.name(),
        i64::from(record.status),
        record.trace.as_deref(),
        &detail,
        record.before_digest.as_deref(),
        record.after_digest.as_deref(),
    );
    let hash = hash_of(&prev_hash, &body);
    tx.conn
        .prepare_cached(
            "INSERT INTO audit (seq, at_ms, principal, claimed_operator, action, target, outcome, status, trace, detail, \
             before_digest, after_digest, prev_hash, hash) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14)",
        )
        .and_then(|mut s| {
            s.execute(params![
                seq,
                record.at_ms,
                record.principal,
                record.claimed_operator,
                record.action,
                record.target,
                record.outcome.name(),
                record.status,
                record.trace,
                detail,
                record.before_digest,
                record.after_digest,
                prev_hash,
                hash
            ])
        })
        .map_err(unwritten)?;
    tx.conn
        .prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES ('audit_head', ?1)")
        .and_then(|mut s| s.execute([format!("{seq}:{hash}")]))
        .map_err(unwritten)?;
    Ok(seq)
}

/// The newest record as it was noted when it was written; none in an empty log.
pub fn noted(conn: &Connection) -> Result<Option<Head>, Error> {
    let text: Option<String> = conn
        .prepare_cached("SELECT value FROM meta WHERE key = 'audit_head'")
        .and_then(|mut s| s.query_row([], |row| row.get(0)).optional())
        .map_err(unread)?;
    Ok(text.and_then(|text| Head::read(&text)))
}

#[allow(clippy::too_many_arguments)] // one argument a column: the hash must cover every one of them
fn body(
    seq: i64,
    at_ms: Millis,
    principal: &str,
    claimed_operator: Option<&str>,
    action: &str,
    target: &str,
    outcome: &str,
    status: i64,
    trace: Option<&str>,
    detail: &str,
    before_digest: Option<&str>,
    after_digest: Option<&str>,
) -> Value {
    json!({
        "seq": seq, "time": rfc3339(at_ms), "principal": principal, "claimed_operator": claimed_operator,
        "action": action, "target": target, "outcome": outcome, "status": status, "trace_id": trace,
        "detail": serde_json::from_str::<Value>(detail).unwrap_or(Value::Null),
        "before_digest": before_digest, "after_digest": after_digest,
    })
}

/// SHA-256 over the previous hash and the record as JSON with its keys in alphabetical order.
fn hash_of(prev_hash: &str, body: &Value) -> String {
    let mut bytes = prev_hash.as_bytes().to_vec();
    bytes.push(b'\n');
    bytes.extend_from_slice(body.to_string().as_bytes());
    hex(digest(&SHA256, &bytes).as_ref())
}

const COLUMNS: &str = "seq, at_ms, principal, claimed_operator, action, target, outcome, status, trace, detail, \
    before_digest, after_digest, prev_hash, hash";

fn entry_of(row: &Row<'_>) -> rusqlite::Result<Entry> {
    let text = |column: usize| row.get::<_, Option<String>>(column);
    let seq = row.get(0)?;
    let body = body(
        seq,
        row.get(1)?,
        &row.get::<_, String>(2)?,
        text(3)?.as_deref(),
        &row.get::<_, String>(4)?,
        &row.get::<_, String>(5)?,
        &row.get::<_, String>(6)?,
        row.get(7)?,
        text(8)?.as_deref(),
        &row.get::<_, String>(9)?,
        text(10)?.as_deref(),
        text(11)?.as_deref(),
    );
    Ok(Entry { seq, body, prev_hash: row.get(12)?, hash: row.get(13)? })
}

/// Which records a listing wants; `None` = any.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Action name.
    pub action: Option<String>,
    /// Claimed operator.
    pub operator: Option<String>,
    /// Principal.
    pub principal: Option<String>,
    /// Outcome name.
    pub outcome: Option<String>,
    /// Not before.
    pub since_ms: Option<Millis>,
    /// Before.
    pub until_ms: Option<Millis>,
}

/// Records, newest first, those before `before`; at most `limit`.
pub fn list(conn: &Connection, filter: &Filter, before: Option<i64>, limit: usize) -> Result<Vec<Entry>, Error> {
    let before = before.unwrap_or(i64::MAX);
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut sql = format!("SELECT {COLUMNS} FROM audit WHERE seq < ?1");
    let mut values: Vec<&dyn ToSql> = vec![&before];
    let texts = [
        ("action =", &filter.action),
        ("claimed_operator =", &filter.operator),
        ("principal =", &filter.principal),
        ("outcome =", &filter.outcome),
    ];
    for (test, value) in &texts {
        if let Some(value) = value {
            values.push(value);
            sql.push_str(&format!(" AND {test} ?{}", values.len()));
        }
    }
    for (test, value) in [("at_ms >=", &filter.since_ms), ("at_ms <", &filter.until_ms)] {
        if let Some(value) = value {
            values.push(value);
            sql.push_str(&format!(" AND {test} ?{}", values.len()));
        }
    }
    values.push(&limit);
    sql.push_str(&format!(" ORDER BY seq DESC LIMIT ?{}", values.len()));
    conn.prepare_cached(&sql)
        .map_err(unread)?
        .query_map(values.as_slice(), entry_of)
        .and_then(Iterator::collect)
        .map_err(unread)
}

/// The action under which removed records are on record; `detail.audit` tells the last of them.
pub const PRUNE: &str = "db.prune";

/// Where the chain begins since its older records were removed: the last of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anchor {
    /// Its number.
    pub seq: i64,
    /// Its hash.
    pub hash: String,
}

/// Where the chain begins; none while every record is there.
pub fn anchor(conn: &Connection) -> Result<Option<Anchor>, Error> {
    let text: Option<String> = conn
        .prepare_cached("SELECT value FROM meta WHERE key = 'audit_anchor'")
        .and_then(|mut s| s.query_row([], |row| row.get(0)).optional())
        .map_err(unread)?;
    text.map(|text| serde_json::from_str(&text).map_err(Error::internal("reading where the audit log begins")))
        .transpose()
}

/// The last of the records that all came at `cutoff_ms` or before it, and how many there are; none when all of them only
/// tell of such removals, or each would be followed by another one.
pub fn due(conn: &Connection, cutoff_ms: Millis) -> Result<Option<(Anchor, i64)>, Error> {
    let mut statement =
        conn.prepare_cached("SELECT seq, hash, at_ms, action FROM audit ORDER BY seq").map_err(unread)?;
    let mut rows = statement.query([]).map_err(unread)?;
    let mut found: Option<(Anchor, i64)> = None;
    let mut others = false;
    while let Some(row) = rows.next().map_err(unread)? {
        if row.get::<_, Millis>(2).map_err(unread)? > cutoff_ms {
            break;
        }
        let anchor = Anchor { seq: row.get(0).map_err(unread)?, hash: row.get(1).map_err(unread)? };
        found = Some((anchor, found.map_or(1, |(_, count)| count + 1)));
        others |= row.get_ref(3).map_err(unread)?.as_str().map_err(|error| unread(error.into()))? != PRUNE;
    }
    Ok(found.filter(|_| others))
}

/// When the oldest record was made.
pub fn oldest_ms(conn: &Connection) -> Result<Option<Millis>, Error> {
    conn.prepare_cached("SELECT at_ms FROM audit ORDER BY seq LIMIT 1")
        .and_then(|mut s| s.query_row([], |row| row.get(0)).optional())
        .map_err(unread)
}

/// Removes the oldest `rows` records up to `through`, which a record of action [`PRUNE`] names already: a chain that
/// begins later than that was cut by someone else. Gives how many went.
pub fn remove(tx: &mut Tx<'_>, through: i64, rows: i64) -> Result<usize, Error> {
    let last: Option<(i64, String)> = tx
        .conn
        .prepare_cached(
            "SELECT seq, hash FROM (SELECT seq, hash FROM audit WHERE seq <= ?1 ORDER BY seq LIMIT ?2) \
             ORDER BY seq DESC LIMIT 1",
        )
        .and_then(|mut s| s.query_row([through, rows], |row| Ok((row.get(0)?, row.get(1)?))).optional())
        .map_err(unwritten)?;
    let Some((seq, hash)) = last else { return Ok(0) };
    let anchor = serde_json::to_string(&Anchor { seq, hash }).map_err(Error::internal("encoding an anchor"))?;
    tx.conn
        .execute("INSERT OR REPLACE INTO meta (key, value) VALUES ('audit_anchor', ?1)", [anchor])
        .and_then(|_| tx.conn.execute("DELETE FROM audit WHERE seq <= ?1", [seq]))
        .map_err(unwritten)
}

/// What checking the chain found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Records that were checked.
    pub checked: i64,
    /// The first record that is not as it was written, or not there any more, and what is wrong with it.
    pub bad: Option<(i64, Fault)>,
    /// The newest record, as it was noted when it was written.
    pub head: Option<Head>,
    /// The newest record that retention removed, 0 = none.
    pub pruned_to: i64,
}

/// What is wrong with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Its number, link or hash does not fit.
    Altered,
    /// It was written, and is gone with all that followed.
    Missing,
    /// It is not the one that the caller kept the hash of.
    Replaced,
}

impl Fault {
    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Fault::Altered => "altered",
            Fault::Missing => "missing",
            Fault::Replaced => "replaced",
        }
    }
}

/// Checks every record against the one before, the newest against what was noted of it, where the chain begins against
/// the record that says so, and whether the record that the caller `kept` the hash of is still the same.
pub fn verify(conn: &Connection, kept: Option<&Head>) -> Result<Verdict, Error> {
    // One moment for the chain and the note.
    let moment = conn.unchecked_transaction().map_err(unread)?;
    let head = noted(&moment)?;
    let begins = anchor(&moment)?.unwrap_or_else(|| Anchor { seq: 0, hash: "0".repeat(64) });
    let mut statement = moment.prepare(&format!("SELECT {COLUMNS} FROM audit ORDER BY seq")).map_err(unread)?;
    let mut rows = statement.query([]).map_err(unread)?;
    let mut verdict = Verdict { checked: 0, bad: None, head, pruned_to: begins.seq };
    let mut prev_hash = begins.hash;
    let mut allowed: Option<Anchor> = None;
    while let Some(row) = rows.next().map_err(unread)? {
        let entry = entry_of(row).map_err(unread)?;
        let linked = entry.seq == begins.seq + verdict.checked + 1 && entry.prev_hash == prev_hash;
        if !linked || hash_of(&prev_hash, &entry.body) != entry.hash {
            return Ok(Verdict { bad: Some((entry.seq, Fault::Altered)), ..verdict });
        }
        if kept.is_some_and(|kept| kept.seq == entry.seq && kept.hash != entry.hash) {
            return Ok(Verdict { bad: Some((entry.seq, Fault::Replaced)), ..verdict });
        }
        if entry.body["action"] == PRUNE
            && let Ok(anchor) = serde_json::from_value(entry.body["detail"]["audit"].clone())
        {
            allowed = Some(anchor);
        }
        verdict.checked += 1;
        prev_hash = entry.hash;
    }
    let last = begins.seq + verdict.checked;
    let noted = verdict.head.as_ref().map_or((0, ""), |head| (head.seq, head.hash.as_str()));
    if begins.seq > 0 && allowed.is_none_or(|allowed| allowed.seq < begins.seq) {
        verdict.bad = Some((begins.seq, Fault::Altered));
    } else if noted.0 > last || kept.is_some_and(|kept| kept.seq > last) {
        verdict.bad = Some((last + 1, Fault::Missing));
    } else if last > 0 && noted != (last, prev_hash.as_str()) {
        // The note itself was changed.
        verdict.bad = Some((last, Fault::Altered));
    }
    Ok(verdict)
}

/// Marks what was begun and never finished: called once at start-up, when nothing can still be running.
pub fn close_begun(tx: &Tx<'_>, at_ms: Millis) -> Result<usize, Error> {
    let begun: Vec<Entry> = tx
        .conn
        .prepare(&format!(
            "SELECT {COLUMNS} FROM audit b WHERE outcome = 'begun' AND NOT EXISTS (SELECT 1 FROM audit e \
             WHERE e.seq > b.seq AND e.action = b.action AND e.target = b.target AND e.outcome <> 'begun')"
        ))
        .and_then(|mut s| s.query_map([], entry_of)?.collect())
        .map_err(unread)?;
    for entry in &begun {
        let text = |name: &str| entry.body[name].as_str().unwrap_or_default().to_owned();
        append(
            tx,
            &Record {
                at_ms,
                principal: text("principal"),
                claimed_operator: entry.body["claimed_operator"].as_str().map(str::to_owned),
                action: text("action"),
                target: text("target"),
                outcome: Outcome::Unknown,
                status: 500,
                trace: entry.body["trace_id"].as_str().map(str::to_owned),
                detail: json!({ "begun": entry.seq }),
                before_digest: None,
                after_digest: None,
            },
        )?;
    }
    Ok(begun.len())
}
