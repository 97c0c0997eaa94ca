//! Brings a database to this version: numbered SQL files, each applied once in a transaction, checked by digest.

use std::collections::BTreeMap;

use rusqlite::{Connection, TransactionBehavior, params};

use crate::error::Error;
use crate::id::{random_bytes, sha256_hex};

const MIGRATIONS: &[(&str, &str)] = &[
    ("0001_core", include_str!("../../../schemas/sql/0001_core.sql")),
    ("0002_skills", include_str!("../../../schemas/sql/0002_skills.sql")),
    ("0003_files", include_str!("../../../schemas/sql/0003_files.sql")),
    ("0004_cron", include_str!("../../../schemas/sql/0004_cron.sql")),
    ("0005_sources", include_str!("../../../schemas/sql/0005_sources.sql")),
    ("0006_overrides", include_str!("../../../schemas/sql/0006_overrides.sql")),
    ("0007_tokens", include_str!("../../../schemas/sql/0007_tokens.sql")),
    ("0008_retention", include_str!("../../../schemas/sql/0008_retention.sql")),
    ("0009_plugin_data", include_str!("../../../schemas/sql/0009_plugin_data.sql")),
    ("0010_plugins", include_str!("../../../schemas/sql/0010_plugins.sql")),
    ("0011_plugin_rest", include_str!("../../../schemas/sql/0011_plugin_rest.sql")),
    ("0012_workflows", include_str!("../../../schemas/sql/0012_workflows.sql")),
    ("0013_notifications", include_str!("../../../schemas/sql/0013_notifications.sql")),
    ("0014_skill_contents", include_str!("../../../schemas/sql/0014_skill_contents.sql")),
    ("0015_workflow_retention", include_str!("../../../schemas/sql/0015_workflow_retention.sql")),
    ("0016_chat", include_str!("../../../schemas/sql/0016_chat.sql")),
    ("0017_agents", include_str!("../../../schemas/sql/0017_agents.sql")),
    ("0018_tools", include_str!("../../../schemas/sql/0018_tools.sql")),
    ("0019_mind", include_str!("../../../schemas/sql/0019_mind.sql")),
];

/// Applies what is missing, all or nothing. Refuses a database that a newer aman wrote, or whose applied files differ
/// from the ones in this binary.
pub fn apply(conn: &mut Connection) -> Result<(), Error> {
    let version: usize = conn
        .pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))
        .map_err(Error::internal("reading the schema version"))
        .map(|v| usize::try_from(v).unwrap_or(usize::MAX))?;
    if version > MIGRATIONS.len() {
        return Err(Error::Internal {
            context: "opening the database",
            source: format!(
                "it has schema version {version}, this aman knows {}. Start the newer aman, or restore a backup.",
                MIGRATIONS.len()
            )
            .into(),
        });
    }
    if version > 0 {
        check_digests(conn, version)?;
    }
    if version == MIGRATIONS.len() {
        return Ok(());
    }
    let tx = conn
        .transaction_with_behavior(TransactionBehavior::Exclusive)
        .map_err(Error::internal("migrating the database"))?;
    build(&tx, &MIGRATIONS[version..]).map_err(Error::internal("migrating the database"))?;
    if version == 0 {
        let node = u32::from_be_bytes(random_bytes());
        tx.execute("INSERT INTO meta (key, value) VALUES ('node', ?1)", [node])
            .map_err(Error::internal("migrating the database"))?;
    }
    let version = i64::try_from(MIGRATIONS.len()).unwrap_or(0);
    tx.pragma_update(None, "user_version", version).map_err(Error::internal("migrating the database"))?;
    tx.commit().map_err(Error::internal("migrating the database"))?;
    // The room that making the tables took is given back.
    conn.execute_batch("PRAGMA shrink_memory").map_err(Error::internal("migrating the database"))
}

fn build(conn: &Connection, migrations: &[(&str, &str)]) -> rusqlite::Result<()> {
    conn.execute_batch(
        "CREATE TABLE IF NOT EXISTS migration (name TEXT PRIMARY KEY, sha256 TEXT NOT NULL) STRICT, WITHOUT ROWID;",
    )?;
    for (name, sql) in migrations {
        conn.execute_batch(sql)?;
        let digest = sha256_hex(sql.as_bytes());
        conn.execute("INSERT INTO migration (name, sha256) VALUES (?1, ?2)", params![name, digest])?;
    }
    Ok(())
}

/// What of the schema is not as this program makes it: tables and indexes that are missing or other ones, and triggers.
pub fn check(conn: &Connection) -> Result<Vec<String>, Error> {
    let unread = |error| Error::internal("reading the schema")(error);
    let version: i64 = conn.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(unread)?;
    let applied = usize::try_from(version).unwrap_or(0);
    if !(1..=MIGRATIONS.len()).contains(&applied) {
        let known = MIGRATIONS.len();
        return Ok(vec![format!("version {version} is none that this aman knows; it knows 1 to {known}")]);
    }
    check_digests(conn, applied)?;
    let fresh = Connection::open_in_memory().map_err(unread)?;
    build(&fresh, &MIGRATIONS[..applied]).map_err(unread)?;
    let (wanted, found) = (objects(&fresh).map_err(unread)?, objects(conn).map_err(unread)?);
    let mut faults: Vec<String> = wanted
        .iter()
        .filter(|(name, text)| found.get(*name) != Some(text))
        .map(|(name, _)| format!("{name} is {}", if found.contains_key(name) { "changed" } else { "missing" }))
        .collect();
    // What else somebody added changes nothing of what aman does.
    faults.extend(found.keys().filter(|name| name.starts_with("trigger ")).map(|name| format!("{name} is not aman's")));
    Ok(faults)
}

/// Everything in the schema by kind and name, with its text.
fn objects(conn: &Connection) -> rusqlite::Result<BTreeMap<String, String>> {
    let sql =
        "SELECT type || ' ' || name, coalesce(sql, '') FROM sqlite_schema WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'";
    conn.prepare(sql)?.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

fn check_digests(conn: &Connection, applied: usize) -> Result<(), Error> {
    for (name, sql) in &MIGRATIONS[..applied] {
        let stored: String = conn
            .query_row("SELECT sha256 FROM migration WHERE name = ?1", [name], |row| row.get(0))
            .map_err(Error::internal("reading the applied migrations"))?;
        if stored != sha256_hex(sql.as_bytes()) {
            return Err(Error::Internal {
                context: "opening the database",
                source: format!("its schema file {name} is not the one in this aman").into(),
            });
        }
    }
    Ok(())
}

/// The number of this database inside the ids it makes.
pub fn node(conn: &Connection) -> Result<u32, Error> {
    conn.query_row("SELECT value FROM meta WHERE key = 'node'", [], |row| row.get(0))
        .map_err(Error::internal("reading the database's number"))
}

/// Notes that numbers up to these may have been given out (0 = none but those in the tables).
///
/// With `durability = normal` the newest transactions can be lost with the power, and their numbers would be used again:
/// a cursor or an id would then mean two events. What is noted here was on disk before any such number was told.
pub fn reserve(conn: &Connection, sequence: i64, delivery: i64) -> Result<(), Error> {
    let mut statement = conn
        .prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)")
        .map_err(Error::internal("reserving row numbers"))?;
    for (key, value) in [("event_reserved", sequence), ("delivery_reserved", delivery)] {
        statement.execute(params![key, value]).map_err(Error::internal("reserving row numbers"))?;
    }
    Ok(())
}

/// The highest row number ever used in `event` or `delivery`: the highest there, the floor that pruning left, or what was
/// reserved before an end that was not clean.
pub fn counter(conn: &Connection, table: &str) -> Result<i64, Error> {
    let column = if table == "event" { "sequence" } else { "id" };
    let highest: i64 = conn
        .query_row(&format!("SELECT coalesce(max({column}), 0) FROM {table}"), [], |row| row.get(0))
        .map_err(Error::internal("reading the highest row number"))?;
    let floor: i64 = conn
        .query_row(
            "SELECT coalesce(max(value), 0) FROM meta WHERE key IN (?1 || '_floor', ?1 || '_reserved')",
            [table],
            |row| row.get(0),
        )
        .map_err(Error::internal("reading the row number floor"))?;
    Ok(highest.max(floor))
}
