//! Agents: which there are, and every definition that they ever had.

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Serialize;

use super::Tx;
use crate::clock::Millis;
use crate::error::Error;

/// Definitions of one agent that are kept.
const KEPT: i64 = 200;

/// Where a definition came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// HTTP.
    Api,
    /// The folder `agents` beside the configuration.
    File,
    /// This binary.
    Bundled,
}

/// An agent as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentRow {
    /// Its id.
    pub id: String,
    /// The definition that is in force; none = removed.
    pub digest: Option<String>,
    /// Where that came from.
    pub origin: Origin,
    /// The content of its file that was taken over last.
    pub file_digest: Option<String>,
    /// True when it was switched off.
    pub disabled: bool,
    /// When it was last changed.
    pub updated_ms: Millis,
}

/// A definition as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefinitionRow {
    /// Its place in the history.
    pub number: i64,
    /// SHA-256 of its text, hex.
    pub digest: String,
    /// TOML.
    pub text: String,
    /// Who changed it.
    pub principal: String,
    /// When it was put in force.
    pub created_ms: Millis,
}

fn unread(error: rusqlite::Error) -> Error {
    Error::internal("reading agents")(error)
}

fn unwritten(error: rusqlite::Error) -> Error {
    Error::internal("writing agents")(error)
}

/// Every agent by id, removed ones included.
pub fn all(conn: &Connection) -> Result<Vec<AgentRow>, Error> {
    let of_row = |row: &Row<'_>| {
        Ok(AgentRow {
            id: row.get(0)?,
            digest: row.get(1)?,
            origin: match row.get::<_, i64>(2)? {
                1 => Origin::File,
                2 => Origin::Bundled,
                _ => Origin::Api,
            },
            file_digest: row.get(3)?,
            disabled: row.get(4)?,
            updated_ms: row.get(5)?,
        })
    };
    conn.prepare_cached("SELECT id, digest, origin, file_digest, disabled, updated_ms FROM agent ORDER BY id")
        .and_then(|mut s| s.query_map([], of_row)?.collect())
        .map_err(unread)
}

/// Stores an agent, or replaces it.
pub fn put(tx: &Tx<'_>, row: &AgentRow) -> Result<(), Error> {
    tx.conn
        .prepare_cached(
            "INSERT OR REPLACE INTO agent (id, digest, origin, file_digest, disabled, updated_ms) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )
        .and_then(|mut s| {
            let origin = row.origin as i64;
            s.execute(params![row.id, row.digest, origin, row.file_digest, row.disabled, row.updated_ms])
        })
        .map(drop)
        .map_err(unwritten)
}

/// Adds a definition to the history of an agent, unless it is the newest there; the oldest go when there are too many.
pub fn define(tx: &Tx<'_>, agent: &str, new: &DefinitionRow) -> Result<(), Error> {
    let newest: Option<String> = tx
        .conn
        .prepare_cached("SELECT digest FROM agent_definition WHERE agent = ?1 ORDER BY number DESC LIMIT 1")
        .and_then(|mut s| s.query_row([agent], |row| row.get(0)).optional())
        .map_err(unread)?;
    if newest.as_ref() == Some(&new.digest) {
        return Ok(());
    }
    tx.conn
        .prepare_cached(
            "INSERT INTO agent_definition (agent, digest, text, principal, created_ms) VALUES (?1, ?2, ?3, ?4, ?5)",
        )
        .and_then(|mut s| s.execute(params![agent, new.digest, new.text, new.principal, new.created_ms]))
        .map_err(unwritten)?;
    tx.conn
        .prepare_cached(
            "DELETE FROM agent_definition WHERE agent = ?1 AND number <= (SELECT number FROM agent_definition \
             WHERE agent = ?1 ORDER BY number DESC LIMIT 1 OFFSET ?2) AND number IS NOT (SELECT max(number) FROM \
             agent_definition WHERE agent = ?1 AND principal NOT LIKE 'plugin/%')",
        )
        .and_then(|mut s| s.execute(params![agent, KEPT]))
        .map(drop)
        .map_err(unwritten)
}

/// The newest definition of an agent with this digest.
pub fn definition(conn: &Connection, agent: &str, digest: &str) -> Result<Option<DefinitionRow>, Error> {
    conn.prepare_cached(
        "SELECT number, digest, text, principal, created_ms FROM agent_definition WHERE agent = ?1 AND digest = ?2 \
         ORDER BY number DESC LIMIT 1",
    )
    .and_then(|mut s| s.query_row([agent, digest], definition_of).optional())
    .map_err(unread)
}

/// The newest definition of an agent that no plugin made; it is kept however many follow.
pub fn newest_of_operator(conn: &Connection, agent: &str) -> Result<Option<DefinitionRow>, Error> {
    conn.prepare_cached(
        "SELECT number, digest, text, principal, created_ms FROM agent_definition WHERE agent = ?1 AND principal NOT LIKE \
         'plugin/%' ORDER BY number DESC LIMIT 1",
    )
    .and_then(|mut s| s.query_row([agent], definition_of).optional())
    .map_err(unread)
}

/// The definitions that an agent had, newest first.
pub fn definitions(conn: &Connection, agent: &str) -> Result<Vec<DefinitionRow>, Error> {
    conn.prepare_cached(
        "SELECT number, digest, text, principal, created_ms FROM agent_definition WHERE agent = ?1 ORDER BY number DESC",
    )
    .and_then(|mut s| s.query_map([agent], definition_of)?.collect())
    .map_err(unread)
}

fn definition_of(row: &Row<'_>) -> rusqlite::Result<DefinitionRow> {
    Ok(DefinitionRow {
        number: row.get(0)?,
        digest: row.get(1)?,
        text: row.get(2)?,
        principal: row.get(3)?,
        created_ms: row.get(4)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Durability, Store};

    /// Goal: the history of an agent has an end, whoever writes it, and never loses what its operator said last.
    #[tokio::test]
    async fn a_history_is_bounded_and_keeps_the_operators_word() {
        let folder = std::env::temp_dir().join(format!("aman-history-{}", crate::id::fresh()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let store = Store::open(&folder.join("aman.db"), Durability::Normal).expect("a database");
        let row = |n: usize, principal: &str| DefinitionRow {
            number: 0,
            digest: n.to_string(),
            text: String::new(),
            principal: principal.to_owned(),
            created_ms: 0,
        };
        let all = KEPT as usize + 20;
        let write = move |tx: &mut Tx<'_>| {
            define(tx, "both", &row(0, "owner"))?;
            for n in 1..all {
                define(tx, "both", &row(n, "plugin/p"))?;
                define(tx, "plugins", &row(n, "plugin/p"))?;
            }
            Ok(())
        };
        store.write(write).await.expect("written");
        for (agent, oldest, more) in [("both", "0", 1), ("plugins", "20", 0)] {
            let kept = store.read(move |conn| definitions(conn, agent)).await.expect("read");
            assert_eq!((kept.len(), kept.last().map(|row| row.digest.as_str())), (KEPT as usize + more, Some(oldest)));
        }
        std::fs::remove_dir_all(&folder).expect("it is there");
    }
}
