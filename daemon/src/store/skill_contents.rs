//! The contents that skills had, by digest: kept when they are first seen, read to be compared or brought back.

use rusqlite::{Connection, params};

use super::Tx;
use crate::error::Error;
use crate::id::sha256_hex;

/// Contents of a skill that stay, whatever their size: the present one and the one before.
const KEPT_MIN: usize = 2;

/// A file of a content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// From the skill's folder, with slashes.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// What it holds.
    pub bytes: Vec<u8>,
}

fn unwritten(error: rusqlite::Error) -> Error {
    Error::internal("keeping the content of a skill")(error)
}

fn unread(error: rusqlite::Error) -> Error {
    Error::internal("reading the content of a skill")(error)
}

/// Whether the content with this digest is kept.
pub fn is_kept(conn: &Connection, digest: &str) -> Result<bool, Error> {
    conn.prepare_cached("SELECT 1 FROM skill_file WHERE content = ?1 LIMIT 1")
        .and_then(|mut s| s.exists([digest]))
        .map_err(unread)
}

/// Keeps a content under its digest.
pub fn keep(tx: &Tx<'_>, digest: &str, files: &[Kept]) -> Result<(), Error> {
    for file in files {
        let blob = sha256_hex(&file.bytes);
        tx.conn
            .prepare_cached("INSERT OR IGNORE INTO skill_blob (digest, bytes) VALUES (?1, ?2)")
            .and_then(|mut s| s.execute(params![blob, file.bytes]))
            .map_err(unwritten)?;
        tx.conn
            .prepare_cached("INSERT OR REPLACE INTO skill_file (content, path, mode, blob) VALUES (?1, ?2, ?3, ?4)")
            .and_then(|mut s| s.execute(params![digest, file.path, file.mode, blob]))
            .map_err(unwritten)?;
    }
    Ok(())
}

/// The files of a content by path; none when it is not kept.
pub fn files(conn: &Connection, digest: &str) -> Result<Vec<Kept>, Error> {
    conn.prepare_cached(
        "SELECT f.path, f.mode, b.bytes FROM skill_file f JOIN skill_blob b ON b.digest = f.blob \
         WHERE f.content = ?1 ORDER BY f.path",
    )
    .and_then(|mut s| {
        s.query_map([digest], |row| Ok(Kept { path: row.get(0)?, mode: row.get(1)?, bytes: row.get(2)? }))?.collect()
    })
    .map_err(unread)
}

/// Forgets contents of `name` beyond its newest `most` and beyond `bytes_max` bytes in all, save the newest two; and what no
/// content holds any more. The newest is `present`, also when its entry of the history is an old one as yet.
pub fn trim(tx: &Tx<'_>, name: &str, present: &str, most: usize, bytes_max: i64) -> Result<(), Error> {
    let sizes: Vec<(String, i64)> = tx
        .conn
        .prepare_cached(
            "SELECT f.content, sum(length(b.bytes)) FROM skill_file f JOIN skill_blob b ON b.digest = f.blob \
             JOIN (SELECT digest, max(id) AS newest FROM skill_version WHERE name = ?1 GROUP BY digest) v \
             ON v.digest = f.content GROUP BY f.content \
             ORDER BY f.content = ?2 DESC, v.newest DESC",
        )
        .and_then(|mut s| s.query_map([name, present], |row| Ok((row.get(0)?, row.get(1)?)))?.collect())
        .map_err(unread)?;
    let mut bytes = 0_i64;
    let gone: Vec<&String> = sizes
        .iter()
        .enumerate()
        .filter(|(place, (_, size))| {
            bytes = bytes.saturating_add(*size);
            *place >= most || (*place >= KEPT_MIN && bytes > bytes_max)
        })
        .map(|(_, (content, _))| content)
        .collect();
    for content in &gone {
        // Two skills may have had the same content.
        let shared = tx
            .conn
            .prepare_cached("SELECT 1 FROM skill_version WHERE digest = ?1 AND name <> ?2 LIMIT 1")
            .and_then(|mut s| s.exists(params![content, name]))
            .map_err(unread)?;
        if !shared {
            tx.conn
                .prepare_cached("DELETE FROM skill_file WHERE content = ?1")
                .and_then(|mut s| s.execute([content]))
                .map_err(unwritten)?;
        }
    }
    if !gone.is_empty() {
        let sql =
            "DELETE FROM skill_blob WHERE NOT EXISTS (SELECT 1 FROM skill_file f WHERE f.blob = skill_blob.digest)";
        tx.conn.execute(sql, []).map_err(unwritten)?;
    }
    Ok(())
}
