//! What the file sources know of their folders: one row per source, one per file.
//!
//! Paths are bytes relative to the source's root, components separated by `/`, without one at either end.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::Tx;
use crate::clock::Millis;
use crate::error::Error;

/// A file source as the database knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceRow {
    /// Number of the source in the rows of its files.
    pub id: i64,
    /// The watched folder.
    pub root: Vec<u8>,
    /// The patterns that its rows were gathered with, as the source wrote them.
    pub filter: String,
    /// The root's file system when everything was last compared.
    pub device: Option<i64>,
    /// When its first sight of the folder was complete; none before.
    pub baselined_ms: Option<Millis>,
}

/// What tells one state of a file from another, and one file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Bytes.
    pub size: i64,
    /// Time of the last change of its content, nanoseconds since 1970 UTC.
    pub mtime_ns: i64,
    /// Its number in its file system.
    pub inode: i64,
    /// Its file system; 0 = the one of the source's root.
    pub device: i64,
    /// When it was made, nanoseconds since 1970 UTC, where the file system tells.
    pub born_ns: Option<i64>,
}

/// A change of what is known of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update {
    /// The file is there, in this state.
    Put(Vec<u8>, Seen),
    /// The file is gone.
    Forget(Vec<u8>),
}

fn failed(error: rusqlite::Error) -> Error {
    Error::internal("storing the state of files")(error)
}

fn unread(error: rusqlite::Error) -> Error {
    Error::internal("reading the state of files")(error)
}

/// The source of that name, if it was ever registered.
pub fn source(conn: &Connection, name: &str) -> Result<Option<SourceRow>, Error> {
    conn.prepare_cached("SELECT id, root, filter, device, baselined_ms FROM file_source WHERE name = ?1")
        .and_then(|mut statement| {
            let row = |row: &Row<'_>| {
                Ok(SourceRow {
                    id: row.get(0)?,
                    root: row.get(1)?,
                    filter: row.get(2)?,
                    device: row.get(3)?,
                    baselined_ms: row.get(4)?,
                })
            };
            statement.query_row([name], row).optional()
        })
        .map_err(unread)
}

/// Registers the source and returns its number. Another root than before means that everything known of it is forgotten
/// and its first sight is still to come; the patterns of a known source stay until [`note_compared`].
pub fn register(tx: &mut Tx<'_>, name: &str, root: &[u8], filter: &str) -> Result<i64, Error> {
    if let Some(known) = source(tx.conn, name)? {
        if known.root != root {
            execute(tx, "DELETE FROM file_seen WHERE source = ?1", params![known.id])?;
            execute(
                tx,
                "UPDATE file_source SET root = ?2, filter = ?3, device = NULL, baselined_ms = NULL WHERE id = ?1",
                params![known.id, root, filter],
            )?;
        }
        return Ok(known.id);
    }
    execute(tx, "INSERT INTO file_source (name, root, filter) VALUES (?1, ?2, ?3)", params![name, root, filter])?;
    Ok(tx.conn.last_insert_rowid())
}

/// Notes that the first sight of the source's folder is complete.
pub fn mark_baselined(tx: &mut Tx<'_>, source: i64, now_ms: Millis) -> Result<(), Error> {
    execute(tx, "UPDATE file_source SET baselined_ms = ?2 WHERE id = ?1", params![source, now_ms])
}

/// Notes the root's file system and the patterns with which everything was compared.
pub fn note_compared(tx: &mut Tx<'_>, source: i64, device: i64, filter: &str) -> Result<(), Error> {
    execute(tx, "UPDATE file_source SET device = ?2, filter = ?3 WHERE id = ?1", params![source, device, filter])
}

/// Applies `updates` in order.
pub fn apply(tx: &mut Tx<'_>, source: i64, updates: &[Update]) -> Result<(), Error> {
    for update in updates {
        match update {
            Update::Put(path, seen) => {
                let (folder, name) = split(path);
                execute(
                    tx,
                    "INSERT OR REPLACE INTO file_seen (source, folder, name, size, mtime_ns, inode, device, born_ns) \
                     VALUES (?1,?2,?3,?4,?5,?6,?7,?8)",
                    params![source, folder, name, seen.size, seen.mtime_ns, seen.inode, seen.device, seen.born_ns],
                )?;
            }
            Update::Forget(path) => {
                let (folder, name) = split(path);
                execute(
                    tx,
                    "DELETE FROM file_seen WHERE source = ?1 AND folder = ?2 AND name = ?3",
                    params![source, folder, name],
                )?;
            }
        }
    }
    Ok(())
}

fn execute(tx: &Tx<'_>, sql: &str, values: impl rusqlite::Params) -> Result<(), Error> {
    tx.conn.prepare_cached(sql).and_then(|mut statement| statement.execute(values)).map(|_| ()).map_err(failed)
}

/// What is known of the file at `path`.
pub fn seen(conn: &Connection, source: i64, path: &[u8]) -> Result<Option<Seen>, Error> {
    let (folder, name) = split(path);
    conn.prepare_cached(
        "SELECT folder, name, size, mtime_ns, inode, device, born_ns FROM file_seen \
         WHERE source = ?1 AND folder = ?2 AND name = ?3",
    )
    .and_then(|mut statement| statement.query_row(params![source, folder, name], from_row).optional())
    .map(|found| found.map(|(_, seen)| seen))
    .map_err(unread)
}

/// The known files that lie directly in `folder`.
pub fn in_folder(conn: &Connection, source: i64, folder: &[u8]) -> Result<Vec<(Vec<u8>, Seen)>, Error> {
    conn.prepare_cached(
        "SELECT folder, name, size, mtime_ns, inode, device, born_ns FROM file_seen WHERE source = ?1 AND folder = ?2",
    )
    .and_then(|mut statement| statement.query_map(params![source, folder], from_row)?.collect())
    .map_err(unread)
}

/// `folder` and every folder below it that holds known files.
pub fn folders_below(conn: &Connection, source: i64, folder: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
    let (from, to) = range(folder);
    conn.prepare_cached(
        "SELECT folder FROM file_seen WHERE source = ?1 AND folder = ?2 GROUP BY folder UNION \
         SELECT folder FROM file_seen WHERE source = ?1 AND folder >= ?3 AND folder < ?4 GROUP BY folder",
    )
    .and_then(|mut statement| statement.query_map(params![source, folder, from, to], |row| row.get(0))?.collect())
    .map_err(unread)
}

/// How many files of the source are known.
pub fn count(conn: &Connection, source: i64) -> Result<u64, Error> {
    conn.prepare_cached("SELECT count(*) FROM file_seen WHERE source = ?1")
        .and_then(|mut statement| statement.query_row([source], |row| row.get::<_, i64>(0)))
        .map(|count| u64::try_from(count).unwrap_or(0))
        .map_err(unread)
}

/// The bounds of the folders below `folder`: from its name with `/`, to before its name with the byte after `/`.
fn range(folder: &[u8]) -> (Vec<u8>, Vec<u8>) {
    if folder.is_empty() {
        // Every non-empty name: 0xFF is the highest byte, and no component is as long as this.
        return (vec![0], vec![0xFF; 4096]);
    }
    ([folder, b"/"].concat(), [folder, b"0"].concat())
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<(Vec<u8>, Seen)> {
    let (mut path, name): (Vec<u8>, Vec<u8>) = (row.get(0)?, row.get(1)?);
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(&name);
    let seen = Seen {
        size: row.get(2)?,
        mtime_ns: row.get(3)?,
        inode: row.get(4)?,
        device: row.get(5)?,
        born_ns: row.get(6)?,
    };
    Ok((path, seen))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_split_at_the_last_slash() {
        assert_eq!(split(b"a/b/c.md"), (&b"a/b"[..], &b"c.md"[..]));
        assert_eq!(split(b"c.md"), (&b""[..], &b"c.md"[..]));
    }

    #[test]
    fn a_range_holds_what_lies_below() {
        let inside = |folder: &[u8], path: &[u8]| {
            let (from, to) = range(folder);
            from.as_slice() <= path && path < to.as_slice()
        };
        assert!(inside(b"a", b"a/b") && inside(b"a", b"a/b/c") && inside(b"", b"a") && inside(b"", b"\xFFx/y"));
        assert!(!inside(b"a", b"a") && !inside(b"a", b"ab") && !inside(b"a", b"a.b") && !inside(b"a", b"a-b/c"));
    }
}
