//! The room that the database takes: how much is used, and giving back what is not.

use rusqlite::Connection;
use serde::Serialize;

use super::Tx;
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
