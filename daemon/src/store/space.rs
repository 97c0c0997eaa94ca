//! The room that the database takes: how much is used, and giving back what is not.

use rusqlite::{Connection, OptionalExtension};
use serde::Serialize;

use super::Tx;
use crate::clock::Millis;
use crate::error::Error;

/// Pages that one step gives back.
const STEP_PAGES: i64 = 64;

fn unread(error: rusqlite::Error) -> Error {
    Error::internal("measuring the database")(error)
}

/// The pages of the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Space {
    /// Bytes of a page.
    pub page_bytes: i64,
    /// Pages of the file.
    pub pages: i64,
    /// Pages that hold nothing.
    pub free_pages: i64,
    /// True when free pages can be given back while the daemon runs.
    pub incremental: bool,
}

impl Space {
    /// Bytes of pages that hold something.
    pub fn used_bytes(self) -> i64 {
        (self.pages - self.free_pages) * self.page_bytes
    }

    /// Bytes of pages that hold nothing.
    pub fn free_bytes(self) -> i64 {
        self.free_pages * self.page_bytes
    }
}

/// Measures.
pub fn read(conn: &Connection) -> Result<Space, Error> {
    let value = |name: &str| conn.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).map_err(unread);
    Ok(Space {
        page_bytes: value("page_size")?,
        pages: value("page_count")?,
        free_pages: value("freelist_count")?,
        incremental: value("auto_vacuum")? == 2,
    })
}

/// Moves a few pages from the end of the file into free ones, and cuts the file there. True when more than `keep_pages`
/// free ones are left to give back.
pub fn give_back(tx: &mut Tx<'_>, keep_pages: i64) -> Result<bool, Error> {
    let before = read(tx.conn)?;
    let step = STEP_PAGES.min(before.free_pages - keep_pages);
    if step <= 0 || !before.incremental {
        return Ok(false);
    }
    let failed = |error| Error::internal("giving space back")(error);
    let mut statement = tx.conn.prepare(&format!("PRAGMA incremental_vacuum({step})")).map_err(failed)?;
    let mut rows = statement.query([]).map_err(failed)?;
    // Each row is a page.
    while rows.next().map_err(failed)?.is_some() {}
    drop(rows);
    let after = read(tx.conn)?;
    Ok(after.free_pages < before.free_pages && after.free_pages > keep_pages)
}

/// A table with its indexes.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Table {
    /// Its name.
    pub name: String,
    /// Rows.
    pub rows: i64,
    /// Bytes of its pages.
    pub bytes: i64,
    /// Bytes of its indexes.
    pub index_bytes: i64,
}

/// Every table, largest first. Reads the whole file.
pub fn tables(conn: &Connection) -> Result<Vec<Table>, Error> {
    // A table without row numbers is an index itself: its rows lie on inner pages, too.
    let sql = "SELECT m.tbl_name, m.type = 'table', sum(s.pgsize), \
        sum(CASE WHEN s.pagetype = 'leaf' OR m.sql LIKE '%WITHOUT ROWID%' THEN s.ncell ELSE 0 END) \
        FROM dbstat s JOIN sqlite_schema m ON m.name = s.name GROUP BY s.name";
    let mut all: std::collections::BTreeMap<String, Table> = std::collections::BTreeMap::new();
    let mut statement = conn.prepare(sql).map_err(unread)?;
    let mut rows = statement.query([]).map_err(unread)?;
    while let Some(row) = rows.next().map_err(unread)? {
        let name: String = row.get(0).map_err(unread)?;
        let (bytes, cells): (i64, i64) = (row.get(2).map_err(unread)?, row.get(3).map_err(unread)?);
        let table = all.entry(name.clone()).or_insert_with(|| Table { name, ..Table::default() });
        if row.get(1).map_err(unread)? {
            (table.bytes, table.rows) = (table.bytes + bytes, cells);
        } else {
            table.index_bytes += bytes;
        }
    }
    let mut tables: Vec<Table> = all.into_values().collect();
    tables.sort_by_key(|table| -(table.bytes + table.index_bytes));
    Ok(tables)
}

/// Events, oldest and newest.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Span {
    /// Sequence of the oldest that is kept.
    pub oldest: Option<i64>,
    /// When it came.
    pub oldest_ms: Option<Millis>,
    /// Sequence of the newest.
    pub newest: Option<i64>,
    /// When it came.
    pub newest_ms: Option<Millis>,
    /// How many came since a day ago.
    pub last_day: i64,
}

/// From when to when the events are.
pub fn span(conn: &Connection, now_ms: Millis) -> Result<Span, Error> {
    let at = |rest: &str, from: i64| {
        conn.prepare_cached(&format!(
            "SELECT sequence, received_ms FROM event WHERE sequence >= ?1 ORDER BY sequence {rest} LIMIT 1"
        ))
        .and_then(|mut s| s.query_row([from], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Millis>(1)?))).optional())
        .map_err(unread)
    };
    let (Some(oldest), Some(newest)) = (at("", 0)?, at("DESC", 0)?) else { return Ok(Span::default()) };
    let day_ago = now_ms - 86_400_000;
    // Halves the range: sequences go by time, but for clocks that were set.
    let (mut low, mut high) = (oldest.0, newest.0 + 1);
    while low < high {
        let middle = low + (high - low) / 2;
        match at("", middle)? {
            Some((_, at_ms)) if at_ms < day_ago => low = middle + 1,
            _ => high = middle,
        }
    }
    let last_day =
        conn.query_row("SELECT count(*) FROM event WHERE sequence >= ?1", [low], |row| row.get(0)).map_err(unread)?;
    Ok(Span {
        oldest: Some(oldest.0),
        oldest_ms: Some(oldest.1),
        newest: Some(newest.0),
        newest_ms: Some(newest.1),
        last_day,
    })
}
