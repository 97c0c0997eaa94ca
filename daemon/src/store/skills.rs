//! Skills: what was decided about each name, and the history of its contents.

use rusqlite::{Connection, OptionalExtension, params};

use super::Tx;
use crate::clock::Millis;
use crate::error::Error;

/// Entries of the history of one name that are kept.
const VERSIONS_MAX: u32 = 1000;

/// What was decided about a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    /// The skill's name.
    pub name: String,
    /// On or off; none when nobody decided.
    pub enabled: Option<bool>,
    /// Digest of the content that may run.
    pub trusted: Option<String>,
}

/// A content as it was found on the disk.
#[derive(Debug, Clone)]
pub struct Found {
    /// The skill's name.
    pub name: String,
    /// SHA-256 over all its files, hex.
    pub digest: String,
    /// What its `SKILL.md` says.
    pub version: String,
    /// Where it lies: `bundled`, `data`, `configured`, `agents`.
    pub origin: String,
    /// Its folder.
    pub path: String,
    /// Whether this content may run.
    pub trusted: bool,
}

/// One entry of a skill's history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// What its `SKILL.md` said.
    pub version: String,
    /// SHA-256 over all its files, hex.
    pub digest: String,
    /// What kind of place it lay in, as [`Found::origin`].
    pub origin: String,
    /// Where it lay.
    pub path: String,
    /// When this content was first seen in its place of the history.
    pub first_seen_ms: Millis,
}

fn unwritten(error: rusqlite::Error) -> Error {
    Error::internal("recording a skill")(error)
}

fn unread(error: rusqlite::Error) -> Error {
    Error::internal("reading the skills' records")(error)
}

/// What was decided about every name ever seen.
pub fn decided(conn: &Connection) -> Result<Vec<Decided>, Error> {
    conn.prepare_cached("SELECT name, enabled, trusted FROM skill ORDER BY name")
        .and_then(|mut s| {
            s.query_map([], |row| Ok(Decided { name: row.get(0)?, enabled: row.get(1)?, trusted: row.get(2)? }))?
                .collect()
        })
        .map_err(unread)
}

/// Records that a content was found: makes the name known, trusts the content if it is to be, and adds to the history
/// when it differs from the newest entry there.
pub fn see(tx: &Tx<'_>, found: &Found, at_ms: Millis) -> Result<(), Error> {
    let newest: Option<String> = tx
        .conn
        .prepare_cached("SELECT digest FROM skill_version WHERE name = ?1 ORDER BY id DESC LIMIT 1")
        .and_then(|mut s| s.query_row([&found.name], |row| row.get(0)).optional())
        .map_err(unread)?;
    if newest.as_deref() != Some(found.digest.as_str()) {
        tx.conn
            .prepare_cached(
                "INSERT INTO skill_version (name, digest, version, origin, path, first_seen_ms) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )
            .and_then(|mut s| {
                s.execute(params![found.name, found.digest, found.version, found.origin, found.path, at_ms])
            })
            .map_err(unwritten)?;
        tx.conn
            .prepare_cached(
                "DELETE FROM skill_version WHERE name = ?1 AND id <= \
                 (SELECT id FROM skill_version WHERE name = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
            )
            .and_then(|mut s| s.execute(params![found.name, VERSIONS_MAX]))
            .map_err(unwritten)?;
    }
    let trusted = found.trusted.then_some(&found.digest);
    tx.conn
        .prepare_cached(
            "INSERT INTO skill (name, trusted, updated_ms) VALUES (?1, ?2, ?3) \
             ON CONFLICT (name) DO UPDATE SET trusted = ?2, updated_ms = ?3 \
             WHERE ?2 IS NOT NULL AND trusted IS NOT ?2",
        )
        .and_then(|mut s| s.execute(params![found.name, trusted, at_ms]))
        .map_err(unwritten)?;
    Ok(())
}

/// Switches a name on or off; `trusted` is the digest that may run from now on, none leaves that as it is.
pub fn decide(tx: &Tx<'_>, name: &str, enabled: bool, trusted: Option<&str>, at_ms: Millis) -> Result<(), Error> {
    tx.conn
        .prepare_cached(
            "INSERT INTO skill (name, enabled, trusted, updated_ms) VALUES (?1, ?2, ?3, ?4) \
             ON CONFLICT (name) DO UPDATE SET enabled = ?2, trusted = coalesce(?3, trusted), updated_ms = ?4",
        )
        .and_then(|mut s| s.execute(params![name, enabled, trusted, at_ms]))
        .map_err(unwritten)?;
    Ok(())
}

/// The history of a name, newest first, at most `rows_max` entries.
pub fn versions(conn: &Connection, name: &str, rows_max: usize) -> Result<Vec<Version>, Error> {
    let rows_max = i64::try_from(rows_max).unwrap_or(i64::MAX);
    conn.prepare_cached(
        "SELECT version, digest, origin, path, first_seen_ms FROM skill_version WHERE name = ?1 \
         ORDER BY id DESC LIMIT ?2",
    )
    .and_then(|mut s| {
        s.query_map(params![name, rows_max], |row| {
            Ok(Version {
                version: row.get(0)?,
                digest: row.get(1)?,
                origin: row.get(2)?,
                path: row.get(3)?,
                first_seen_ms: row.get(4)?,
            })
        })?
        .collect()
    })
    .map_err(unread)
}

/// How a skill has been doing, over all starts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stats {
    /// Attempts that ended.
    pub runs: i64,
    /// Those that failed.
    pub failures: i64,
    /// When the last one ended.
    pub last_run_ms: Millis,
    /// What the last failed one said.
    pub last_error: Option<String>,
    /// How long the last ones took, oldest first.
    pub took_ms: Vec<u64>,
}

/// The counts of every name that ever ran.
pub fn stats(conn: &Connection) -> Result<Vec<(String, Stats)>, Error> {
    conn.prepare_cached("SELECT name, runs, failures, last_run_ms, last_error, took_ms FROM skill_stats")
        .and_then(|mut s| {
            let row = |row: &rusqlite::Row<'_>| {
                let took: String = row.get(5)?;
                let stats = Stats {
                    runs: row.get(1)?,
                    failures: row.get(2)?,
                    last_run_ms: row.get(3)?,
                    last_error: row.get(4)?,
                    took_ms: serde_json::from_str(&took).unwrap_or_default(),
                };
                Ok((row.get(0)?, stats))
            };
            s.query_map([], row)?.collect()
        })
        .map_err(unread)
}

/// Keeps the counts of a name, unless later ones are kept already.
pub fn keep_stats(tx: &Tx<'_>, name: &str, stats: &Stats) -> Result<(), Error> {
    let took = serde_json::to_string(&stats.took_ms).map_err(Error::internal("recording a skill"))?;
    tx.conn
        .prepare_cached(
            "INSERT INTO skill_stats (name, runs, failures, last_run_ms, last_error, took_ms) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (name) DO UPDATE SET \
             runs = ?2, failures = ?3, last_run_ms = ?4, last_error = ?5, took_ms = ?6 WHERE ?2 >= runs",
        )
        .and_then(|mut s| {
            s.execute(params![name, stats.runs, stats.failures, stats.last_run_ms, stats.last_error, took])
        })
        .map(drop)
        .map_err(unwritten)
}
