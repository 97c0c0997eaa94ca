//! Tokens that were minted: the list of their ids decides which are good. The tokens themselves are not stored.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::Tx;
use crate::clock::Millis;
use crate::error::Error;

/// What was minted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Its id, a UUIDv7.
    pub jti: String,
    /// The principal that it names.
    pub sub: String,
    /// Names of scopes, separated by spaces.
    pub scope: String,
    /// Who minted it.
    pub minted_by: String,
    /// When it was minted.
    pub issued_ms: Millis,
    /// From when on it is no longer good.
    pub expires_ms: Millis,
    /// When it was revoked.
    pub revoked_ms: Option<Millis>,
}

fn failed(error: rusqlite::Error) -> Error {
    Error::internal("storing a token")(error)
}

fn unread(error: rusqlite::Error) -> Error {
    Error::internal("reading the tokens")(error)
}

const COLUMNS: &str = "jti, sub, scope, minted_by, issued_ms, expires_ms, revoked_ms";

fn token(row: &Row<'_>) -> rusqlite::Result<Token> {
    Ok(Token {
        jti: row.get(0)?,
        sub: row.get(1)?,
        scope: row.get(2)?,
        minted_by: row.get(3)?,
        issued_ms: row.get(4)?,
        expires_ms: row.get(5)?,
        revoked_ms: row.get(6)?,
    })
}

/// Adds `token`.
pub fn add(tx: &Tx<'_>, token: &Token) -> Result<(), Error> {
    tx.conn
        .execute(
            "INSERT INTO token (jti, sub, scope, minted_by, issued_ms, expires_ms) VALUES (?1,?2,?3,?4,?5,?6)",
            params![token.jti, token.sub, token.scope, token.minted_by, token.issued_ms, token.expires_ms],
        )
        .map(|_| ())
        .map_err(failed)
}

/// Revokes the token `jti` and gives it; one that was revoked before stays as it was.
pub fn revoke(tx: &Tx<'_>, jti: &str, now_ms: Millis) -> Result<Token, Error> {
    tx.conn
        .execute("UPDATE token SET revoked_ms = ?2 WHERE jti = ?1 AND revoked_ms IS NULL", params![jti, now_ms])
        .map_err(failed)?;
    tx.conn
        .query_row(&format!("SELECT {COLUMNS} FROM token WHERE jti = ?1"), [jti], token)
        .optional()
        .map_err(failed)?
        .ok_or_else(|| Error::not_found("token", jti))
}

/// The newest tokens below row `before`, at most `limit`, with their rows.
pub fn list(conn: &Connection, before: Option<i64>, limit: usize) -> Result<Vec<(i64, Token)>, Error> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let sql = format!("SELECT {COLUMNS}, id FROM token WHERE id < ?1 ORDER BY id DESC LIMIT ?2");
    conn.prepare_cached(&sql)
        .and_then(|mut s| {
            let rows = s.query_map(params![before.unwrap_or(i64::MAX), limit], |row| Ok((row.get(7)?, token(row)?)))?;
            rows.collect()
        })
        .map_err(unread)
}

/// Every token that is neither revoked nor expired.
pub fn good(conn: &Connection, now_ms: Millis) -> Result<Vec<Token>, Error> {
    let sql = format!("SELECT {COLUMNS} FROM token WHERE revoked_ms IS NULL AND expires_ms > ?1");
    conn.prepare(&sql).and_then(|mut s| s.query_map([now_ms], token)?.collect()).map_err(unread)
}
