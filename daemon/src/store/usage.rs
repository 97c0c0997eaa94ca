//! What calls of models cost: reserved before each call, settled after it; counted by day and of all time.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::Tx;
use crate::clock::Millis;
use crate::error::Error;

/// Stands in the place of a day for all of them together.
pub const EVER: &str = "";
/// Everything together.
pub const ALL: &str = "all";
/// Days of one scope that are kept. They are counted, not measured: a clock that shows another century takes nothing away.
const DAYS_MAX: i64 = 400;
/// Tokens that are spent.
const SPENT: &str = "input + output + lost";

/// What was used of a budget.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Used {
    /// Whose: `all`, `agent/<id>`, `session/<id>`, `job/<consumer>`.
    pub scope: String,
    /// `2026-11-22`, or [`EVER`].
    pub day: String,
    /// Calls that ended.
    pub calls: u64,
    /// Tokens that were asked.
    pub input: u64,
    /// Tokens that were answered.
    pub output: u64,
    /// Tokens of calls whose end nobody knows.
    pub lost: u64,
    /// Millionths of the currency.
    pub micros: u64,
    /// Calls that would have been too much.
    pub refused: u64,
    /// Limits whose end was told: 1 tokens, 2 money.
    pub told: u8,
}

impl Used {
    /// Tokens altogether.
    pub fn tokens(&self) -> u64 {
        self.input.saturating_add(self.output).saturating_add(self.lost)
    }
}

/// What a call may cost at most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    /// The call's.
    pub key: String,
    /// Whose budgets it counts for.
    pub scopes: Vec<String>,
    /// The day that it counts for.
    pub day: String,
    /// Tokens.
    pub tokens: u64,
    /// Millionths of the currency.
    pub micros: u64,
}

/// What a call did cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// Tokens that were asked.
    pub input: u64,
    /// Tokens that were answered.
    pub output: u64,
    /// Tokens that nobody knows about.
    pub lost: u64,
    /// Millionths of the currency.
    pub micros: u64,
}

fn unwritten(error: rusqlite::Error) -> Error {
    Error::internal("counting what models cost")(error)
}

fn unread(error: rusqlite::Error) -> Error {
    Error::internal("reading what models cost")(error)
}

fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

const COLUMNS: &str = "scope, day, calls, input, output, lost, micros, refused, told";

fn used(row: &Row<'_>) -> rusqlite::Result<Used> {
    let count = |n: usize| row.get::<_, i64>(n).map(|number| number.unsigned_abs());
    Ok(Used {
        scope: row.get(0)?,
        day: row.get(1)?,
        calls: count(2)?,
        input: count(3)?,
        output: count(4)?,
        lost: count(5)?,
        micros: count(6)?,
        refused: count(7)?,
        told: row.get(8)?,
    })
}

fn reservation(row: &Row<'_>) -> rusqlite::Result<Reservation> {
    let (scopes, tokens, micros): (String, i64, i64) = (row.get(1)?, row.get(3)?, row.get(4)?);
    Ok(Reservation {
        key: row.get(0)?,
        scopes: serde_json::from_str(&scopes).unwrap_or_default(),
        day: row.get(2)?,
        tokens: tokens.unsigned_abs(),
        micros: micros.unsigned_abs(),
    })
}

/// Every reservation that is not settled.
pub fn reservations(conn: &Connection) -> Result<Vec<Reservation>, Error> {
    conn.prepare_cached("SELECT key, scopes, day, tokens, micros FROM reservation ORDER BY created_ms, key")
        .and_then(|mut s| s.query_map([], reservation)?.collect())
        .map_err(unread)
}

/// As [`reservations`], inside a change.
pub fn reservations_in(tx: &Tx<'_>) -> Result<Vec<Reservation>, Error> {
    reservations(tx.conn)
}

/// Notes what a call may cost; the same call again replaces what it noted.
pub fn reserve(tx: &Tx<'_>, new: &Reservation, now_ms: Millis) -> Result<(), Error> {
    let scopes = serde_json::to_string(&new.scopes).map_err(Error::internal("counting what models cost"))?;
    let row = params![new.key, scopes, new.day, whole(new.tokens), whole(new.micros), now_ms];
    tx.conn
        .prepare_cached(
            "INSERT OR REPLACE INTO reservation (key, scopes, day, tokens, micros, created_ms) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )
        .and_then(|mut s| s.execute(row))
        .map(drop)
        .map_err(unwritten)
}

/// Ends a reservation, and counts what its call did cost for the day on which it began. False when there is none of that
/// key (any more): what it may have cost is counted already.
pub fn settle(tx: &Tx<'_>, key: &str, spent: Spent) -> Result<bool, Error> {
    let ended = tx
        .conn
        .prepare_cached("DELETE FROM reservation WHERE key = ?1 RETURNING key, scopes, day, tokens, micros")
        .and_then(|mut s| s.query_row([key], reservation).optional())
        .map_err(unwritten)?;
    let Some(ended) = ended else { return Ok(false) };
    for scope in &ended.scopes {
        count(tx, (scope, &ended.day), 1, spent)?;
        count(tx, (scope, EVER), 1, spent)?;
    }
    Ok(true)
}

/// Ends a reservation whose call cost nothing.
pub fn release(tx: &Tx<'_>, key: &str) -> Result<bool, Error> {
    tx.conn
        .prepare_cached("DELETE FROM reservation WHERE key = ?1")
        .and_then(|mut s| s.execute([key]))
        .map(|rows| rows > 0)
        .map_err(unwritten)
}

fn count(tx: &Tx<'_>, (scope, day): (&str, &str), calls: i64, spent: Spent) -> Result<(), Error> {
    let row =
        params![scope, day, calls, whole(spent.input), whole(spent.output), whole(spent.lost), whole(spent.micros)];
    tx.conn
        .prepare_cached(
            "INSERT INTO usage (scope, day, calls, input, output, lost, micros, refused, told) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 0, 0) ON CONFLICT (scope, day) DO UPDATE SET calls = calls + ?3, \
             input = input + ?4, output = output + ?5, lost = lost + ?6, micros = micros + ?7",
        )
        .and_then(|mut s| s.execute(row))
        .map_err(unwritten)?;
    tx.conn
        .prepare_cached(
            "DELETE FROM usage WHERE scope = ?1 AND day <> '' AND day <= (SELECT day FROM usage WHERE scope = ?1 \
             AND day <> '' ORDER BY day DESC LIMIT 1 OFFSET ?2)",
        )
        .and_then(|mut s| s.execute(params![scope, DAYS_MAX]))
        .map(drop)
        .map_err(unwritten)
}

/// Counts a call that would have been too much, and notes the limits (as [`Used::told`]) whose end is told with it. Gives
/// those that were not told before.
pub fn refuse(tx: &Tx<'_>, (scope, day): (&str, &str), told: u8) -> Result<u8, Error> {
    let before = of(tx.conn, scope, day)?.told;
    count(tx, (scope, day), 0, Spent::default())?;
    tx.conn
        .prepare_cached("UPDATE usage SET refused = refused + 1, told = told | ?3 WHERE scope = ?1 AND day = ?2")
        .and_then(|mut s| s.execute(params![scope, day, told]))
        .map_err(unwritten)?;
    Ok(told & !before)
}

/// What was used; nothing when no row says anything.
pub fn of(conn: &Connection, scope: &str, day: &str) -> Result<Used, Error> {
    let found = conn
        .prepare_cached(&format!("SELECT {COLUMNS} FROM usage WHERE scope = ?1 AND day = ?2"))
        .and_then(|mut s| s.query_row([scope, day], used).optional())
        .map_err(unread)?;
    Ok(found.unwrap_or_else(|| Used { scope: scope.to_owned(), day: day.to_owned(), ..Used::default() }))
}

/// As [`of`], inside a change.
pub fn of_in(tx: &Tx<'_>, scope: &str, day: &str) -> Result<Used, Error> {
    of(tx.conn, scope, day)
}

/// What was used on a day, by scope, without the first `skip`; those whose name begins with `prefix`.
pub fn list(conn: &Connection, day: &str, prefix: &str, (skip, rows_max): (usize, usize)) -> Result<Vec<Used>, Error> {
    let [skip, rows_max] = [skip, rows_max].map(|count| i64::try_from(count).unwrap_or(i64::MAX));
    conn.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM usage WHERE day = ?1 AND substr(scope, 1, length(?2)) = ?2 \
         ORDER BY scope LIMIT ?3 OFFSET ?4"
    ))
    .and_then(|mut s| s.query_map(params![day, prefix, rows_max, skip], used)?.collect())
    .map_err(unread)
}

/// Those of all time whose name begins with `prefix` and that used the most tokens.
pub fn largest(conn: &Connection, prefix: &str, rows_max: usize) -> Result<Vec<Used>, Error> {
    let rows_max = i64::try_from(rows_max).unwrap_or(i64::MAX);
    conn.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM usage WHERE day = '' AND substr(scope, 1, length(?1)) = ?1 \
         ORDER BY {SPENT} DESC, scope LIMIT ?2"
    ))
    .and_then(|mut s| s.query_map(params![prefix, rows_max], used)?.collect())
    .map_err(unread)
}
