//! The private database of a plugin: a SQLite file of its own with a size limit, in which the plugin's SQL runs.
//!
//! The SQL is anybody's. It reaches this file only, changes no setting that matters, ends when its time is over, and
//! answers no more than fits. One table of the file is the daemon's: what a delivery that changed the file asked for
//! besides, written with its changes, so that after a crash the delivery ends with that instead of running again.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::limits::Limit;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, OptionalExtension, params, params_from_iter};

use super::deliveries;
use crate::clock::Millis;
use crate::error::Error;
use crate::id::DeliveryId;

/// A value of SQLite's.
pub type Value = rusqlite::types::Value;

/// Code of what SQL may not do here.
pub const DENIED: &str = "plugin_sql_denied";
/// Code of a constraint that does not hold.
pub const CONSTRAINT: &str = "plugin_sql_constraint";
/// Code of a file, a result or a text that would become too big.
pub const TOO_MUCH: &str = "plugin_sql_limit";
/// Code of statements that took too long.
pub const TOO_LONG: &str = "plugin_sql_timeout";

/// Rows, and bytes of their values, that one query may answer.
const ROWS_MAX: usize = 10_000;
const ROWS_BYTES_MAX: usize = 4 << 20;
/// Longest value, row and SQL text; also bounds functions that take time by the length of their arguments.
const VALUE_BYTES_MAX: i32 = 2 << 20;
const SQL_BYTES_MAX: i32 = 256 << 10;
/// What the daemon itself may write into one row.
const KEPT_BYTES_MAX: i32 = 64 << 20;
const PAGE_BYTES: u64 = 4096;
/// The smallest file in which tables and the daemon's own have room.
const PAGES_MIN: u64 = 16;
/// So many steps of SQLite's machine between two looks at the clock. Each can write a long value to a temporary file.
const STEPS: i32 = 100;
/// What one call may write besides its file's quota: changes are written to the log first, sorting to temporary files,
/// the same page of those again and again.
const SPILL_BYTES_MAX: u64 = 256 << 20;
/// How often a call that goes on is asked how much it wrote.
const SPILL_LOOK: Duration = Duration::from_millis(20);
/// Rows of finished work that are kept until somebody looks which of them are still needed.
const KEPT_MIN: usize = 64;
/// Beginning of the names of tables that are the daemon's.
const OWN: &str = "aman_";
/// PRAGMAs that tell something, with any argument.
pub(super) const PRAGMAS_READ: [&str; 13] = [
    "application_id",
    "data_version",
    "defer_foreign_keys",
    "foreign_key_check",
    "foreign_key_list",
    "index_info",
    "index_list",
    "index_xinfo",
    "quick_check",
    "table_info",
    "table_list",
    "table_xinfo",
    "user_version",
];
/// PRAGMAs that may be asked and not set.
const PRAGMAS_ASKED: [&str; 5] = ["encoding", "foreign_keys", "freelist_count", "page_count", "page_size"];
/// Virtual tables that may be made.
pub(super) const MODULES: [&str; 3] = ["fts5", "fts5vocab", "rtree"];
pub(super) const FUNCTIONS_DENIED: [&str; 2] = ["load_extension", "fts3_tokenizer"];

const CONFIGURE: &str = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA busy_timeout = 2000; \
    PRAGMA foreign_keys = ON; PRAGMA temp_store = FILE; PRAGMA cache_size = -1024; PRAGMA mmap_size = 0; \
    PRAGMA wal_autocheckpoint = 500; PRAGMA journal_size_limit = 1048576; PRAGMA cell_size_check = ON;";
const TABLE: &str = "CREATE TABLE IF NOT EXISTS aman_settled (\
    work TEXT PRIMARY KEY, number INTEGER NOT NULL, effects BLOB NOT NULL, at_ms INTEGER NOT NULL) STRICT;";

/// One statement and its parameters.
#[derive(Debug, Clone)]
pub struct Statement {
    /// The SQL text.
    pub sql: String,
    /// Values for `?1` and on.
    pub params: Vec<Value>,
}

/// What a query found.
#[derive(Debug, Clone, PartialEq)]
pub struct Rows {
    /// Names of the columns.
    pub columns: Vec<String>,
    /// Values, one for each column.
    pub rows: Vec<Vec<Value>>,
}

/// When SQL must end.
#[derive(Debug, Clone)]
pub struct Until {
    /// At the latest then.
    pub deadline: Instant,
    /// At once when this is true.
    pub cancelled: Arc<AtomicBool>,
}

/// An open private database. Blocks; one user at a time.
pub struct Private {
    conn: Connection,
    /// True while SQL of the plugin is read.
    foreign: Arc<AtomicBool>,
    quota: u64,
    /// See [`SPILL_BYTES_MAX`].
    spill_max: u64,
    /// Rows of the daemon's table, and at how many somebody looks which of them are still needed.
    kept: usize,
    kept_max: usize,
}

impl Private {
    /// Opens or makes the database at `path`, which may have `quota` bytes.
    pub fn open(path: &Path, quota: u64) -> Result<Private, Error> {
        // SQLite gives its other files the rights of this one. What is wrong with the place is told by the line after.
        let _made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let mut conn = Connection::open(path).map_err(faulty)?;
        let foreign = Arc::new(AtomicBool::new(false));
        secure(&mut conn, &foreign).map_err(faulty)?;
        let kept = kept(&conn)?;
        let mut private =
            Private { conn, foreign, quota: 0, spill_max: SPILL_BYTES_MAX, kept, kept_max: KEPT_MIN.max(2 * kept) };
        private.set_quota(quota)?;
        Ok(private)
    }

    /// Lets the file have `quota` bytes; what it has already it keeps.
    pub fn set_quota(&mut self, quota: u64) -> Result<(), Error> {
        if self.quota != quota {
            let pages = (quota / PAGE_BYTES).max(PAGES_MIN).min(u64::from(u32::MAX / 2));
            self.conn.execute_batch(&format!("PRAGMA max_page_count = {pages}")).map_err(faulty)?;
            self.quota = quota;
        }
        Ok(())
    }

    /// Bytes of the file.
    pub fn bytes(&self) -> Result<u64, Error> {
        let pages: i64 = self.conn.pragma_query_value(None, "page_count", |row| row.get(0)).map_err(faulty)?;
        Ok(pages.unsigned_abs() * PAGE_BYTES)
    }

    /// True between [`Private::begin`] and its end; what SQLite breaks off by itself ends it, too.
    pub fn is_begun(&self) -> bool {
        !self.conn.is_autocommit()
    }

    /// Begins a transaction of several calls.
    pub fn begin(&self) -> Result<(), Error> {
        self.own("BEGIN IMMEDIATE")
    }

    /// Ends it without a trace.
    pub fn roll_back(&self) {
        if self.is_begun()
            && let Err(error) = self.own("ROLLBACK")
        {
            tracing::error!(error = ?error, "A transaction of a plugin could not be undone.");
        }
    }

    fn own(&self, sql: &str) -> Result<(), Error> {
        self.conn.execute_batch(sql).map_err(|error| self.refused(&error, None))
    }

    /// Runs statements that return no rows, all or none, and says how many rows each changed.
    pub fn execute(&mut self, statements: &[Statement], until: &Until) -> Result<Vec<u64>, Error> {
        self.whole(until, |conn| {
            let mut counts = Vec::with_capacity(statements.len());
            for statement in statements {
                let before = conn.total_changes();
                let changed = conn.prepare_cached(&statement.sql)?.execute(params_from_iter(&statement.params))?;
                // What changes no rows leaves the count of the statement before it.
                counts.push(if conn.total_changes() == before { 0 } else { u64::try_from(changed).unwrap_or(0) });
            }
            Ok(Ok(counts))
        })
    }

    /// Runs a statement that returns rows.
    pub fn query(&mut self, statement: &Statement, until: &Until) -> Result<Rows, Error> {
        self.whole(until, |conn| {
            let mut prepared = conn.prepare_cached(&statement.sql)?;
            let columns: Vec<String> = prepared.column_names().map(str::to_owned).collect();
            let mut found = prepared.query(params_from_iter(&statement.params))?;
            let (mut rows, mut bytes) = (Vec::new(), 0);
            while let Some(row) = found.next()? {
                let values = (0..columns.len()).map(|column| row.get_ref(column).map(owned));
                let values = values.collect::<rusqlite::Result<Vec<Value>>>()?;
                bytes += values.iter().map(weight).sum::<usize>();
                if rows.len() == ROWS_MAX || bytes > ROWS_BYTES_MAX {
                    let reason = format!(
                        "a query may answer {ROWS_MAX} rows and {ROWS_BYTES_MAX} bytes; ask for less with LIMIT"
                    );
                    return Ok(Err(Error::conflict(TOO_MUCH, reason)));
                }
                rows.push(values);
            }
            Ok(Ok(Rows { columns, rows }))
        })
    }

    /// Runs SQL of the plugin in a transaction of its own, or in a part of the one that is begun.
    fn whole<R>(
        &mut self,
        until: &Until,
        run: impl FnOnce(&Connection) -> rusqlite::Result<Result<R, Error>>,
    ) -> Result<R, Error> {
        let (begin, end, undo) = if self.is_begun() {
            ("SAVEPOINT call", "RELEASE call", "ROLLBACK TO call; RELEASE call")
        } else {
            ("BEGIN", "COMMIT", "ROLLBACK")
        };
        self.own(begin)?;
        let (watch, mut spill) = (until.clone(), Spill::new(self.quota.saturating_add(self.spill_max)));
        let spilled = Arc::clone(&spill.over);
        let over = move || {
            let now = Instant::now();
            watch.cancelled.load(Ordering::Relaxed) || now > watch.deadline || spill.is_over(now)
        };
        self.conn.progress_handler(STEPS, Some(over)).map_err(faulty)?;
        self.foreign.store(true, Ordering::Relaxed);
        let done = run(&self.conn);
        self.foreign.store(false, Ordering::Relaxed);
        self.conn.progress_handler(0, None::<fn() -> bool>).map_err(faulty)?;
        let done = done.map_err(|error| match error.sqlite_error_code() {
            Some(ErrorCode::OperationInterrupted) if spilled.load(Ordering::Relaxed) => {
                let reason = "the SQL writes more to temporary files than it may; sort and join less at once";
                Error::conflict(TOO_MUCH, reason)
            }
            _ => self.refused(&error, Some(until)),
        });
        let done = done.flatten();
        let ended = done.and_then(|done| self.own(end).map(|()| done));
        if ended.is_err() && self.is_begun() {
            self.own(undo)?;
        }
        ended
    }

    /// What `work` left behind when it changed this file in its run `number`.
    pub fn settled(&self, work: &str, number: i64) -> Result<Option<Vec<u8>>, Error> {
        self.conn
            .query_row(
                "SELECT effects FROM aman_settled WHERE work = ?1 AND number = ?2",
                params![work, number],
                |row| row.get(0),
            )
            .optional()
            .map_err(faulty)
    }

    /// Notes with the changes of `work` what it asked for besides, and makes both last.
    pub fn settle(&mut self, work: &str, number: i64, effects: &[u8], now_ms: Millis) -> Result<(), Error> {
        let limit = |bytes| self.conn.set_limit(Limit::SQLITE_LIMIT_LENGTH, bytes);
        limit(KEPT_BYTES_MAX).map_err(faulty)?;
        let noted = self.conn.execute(
            "INSERT OR REPLACE INTO aman_settled (work, number, effects, at_ms) VALUES (?1, ?2, ?3, ?4)",
            params![work, number, effects, now_ms],
        );
        limit(VALUE_BYTES_MAX).map_err(faulty)?;
        noted.map_err(|error| self.refused(&error, None))?;
        self.own("COMMIT")?;
        // A poll replaces its one row.
        self.kept += usize::from(!work.starts_with("poll/"));
        Ok(())
    }

    /// Deliveries whose rows may have had their time; empty while there are few.
    pub fn old_deliveries(&self) -> Result<Vec<DeliveryId>, Error> {
        if self.kept < self.kept_max {
            return Ok(Vec::new());
        }
        let read = || {
            let mut statement = self.conn.prepare("SELECT number FROM aman_settled WHERE work NOT GLOB 'poll/*'")?;
            let rows = statement.query_map([], |row| row.get(0).map(DeliveryId))?;
            rows.collect::<rusqlite::Result<Vec<DeliveryId>>>()
        };
        read().map_err(faulty)
    }

    /// Drops the rows of deliveries that can never run again, within the transaction that is begun.
    pub fn forget(&mut self, over: &[DeliveryId]) -> Result<(), Error> {
        let mut statement = self
            .conn
            .prepare("DELETE FROM aman_settled WHERE number = ?1 AND work NOT GLOB 'poll/*'")
            .map_err(faulty)?;
        for id in over {
            statement.execute([id.0]).map_err(faulty)?;
        }
        drop(statement);
        // Anew: what polls replaced and what was undone was counted, too.
        self.kept = kept(&self.conn)?;
        self.kept_max = KEPT_MIN.max(2 * self.kept);
        Ok(())
    }

    fn refused(&self, error: &rusqlite::Error, until: Option<&Until>) -> Error {
        refused(error, until, self.quota)
    }
}

/// How much a call writes. `max_page_count` bounds the file alone: what is sorted, joined or changed over and over goes to
/// temporary files and to the log, which nothing of SQLite's bounds.
struct Spill {
    bytes_max: u64,
    /// When to look again, and what this thread had written at the first look.
    next: Instant,
    begun: Option<u64>,
    over: Arc<AtomicBool>,
}

impl Spill {
    fn new(bytes_max: u64) -> Spill {
        Spill { bytes_max, next: Instant::now() + SPILL_LOOK, begun: None, over: Arc::default() }
    }

    fn is_over(&mut self, now: Instant) -> bool {
        if now < self.next {
            return false;
        }
        self.next = now + SPILL_LOOK;
        let Some(written) = written_by_this_thread() else { return false };
        let over = written.saturating_sub(*self.begun.get_or_insert(written)) > self.bytes_max;
        self.over.fetch_or(over, Ordering::Relaxed);
        over
    }
}

/// Bytes that this thread wrote to files since it began; none where the kernel does not count them. Source: proc(5).
fn written_by_this_thread() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/io").ok()?;
    text.lines().find_map(|line| line.strip_prefix("wchar: "))?.parse().ok()
}

/// Which of `ids` can never run again: done, expired, discarded or removed.
pub fn over(conn: &Connection, ids: &[DeliveryId]) -> Result<Vec<DeliveryId>, Error> {
    let mut found = Vec::new();
    for id in ids {
        if !deliveries::may_run(conn, *id)? {
            found.push(*id);
        }
    }
    Ok(found)
}

fn kept(conn: &Connection) -> Result<usize, Error> {
    let kept: i64 = conn.query_row("SELECT count(*) FROM aman_settled", [], |row| row.get(0)).map_err(faulty)?;
    Ok(usize::try_from(kept).unwrap_or(0))
}

fn secure(conn: &mut Connection, foreign: &Arc<AtomicBool>) -> rusqlite::Result<()> {
    for (config, on) in [
        (DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true),
        (DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false),
        (DbConfig::SQLITE_DBCONFIG_WRITABLE_SCHEMA, false),
        (DbConfig::SQLITE_DBCONFIG_ENABLE_FTS3_TOKENIZER, false),
    ] {
        conn.set_db_config(config, on)?;
    }
    conn.execute_batch(CONFIGURE)?;
    conn.execute_batch(TABLE)?;
    for (limit, most) in [
        (Limit::SQLITE_LIMIT_LENGTH, VALUE_BYTES_MAX),
        (Limit::SQLITE_LIMIT_SQL_LENGTH, SQL_BYTES_MAX),
        (Limit::SQLITE_LIMIT_COLUMN, 200),
        (Limit::SQLITE_LIMIT_EXPR_DEPTH, 100),
        (Limit::SQLITE_LIMIT_COMPOUND_SELECT, 50),
        (Limit::SQLITE_LIMIT_VDBE_OP, 100_000),
        (Limit::SQLITE_LIMIT_ATTACHED, 0),
        (Limit::SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 200),
        (Limit::SQLITE_LIMIT_VARIABLE_NUMBER, 1_000),
        (Limit::SQLITE_LIMIT_TRIGGER_DEPTH, 10),
        (Limit::SQLITE_LIMIT_WORKER_THREADS, 0),
    ] {
        conn.set_limit(limit, most)?;
    }
    conn.set_prepared_statement_cache_capacity(16);
    let foreign = Arc::clone(foreign);
    conn.authorizer(Some(move |context: AuthContext<'_>| {
        if !foreign.load(Ordering::Relaxed) || may(&context.action) {
            Authorization::Allow
        } else {
            Authorization::Deny
        }
    }))
}

fn is_own(table: &str) -> bool {
    table.get(..OWN.len()).is_some_and(|start| start.eq_ignore_ascii_case(OWN))
}

/// Whether SQL of a plugin may do this.
fn may(action: &AuthAction<'_>) -> bool {
    let among = |names: &[&str], name: &str| names.iter().any(|known| known.eq_ignore_ascii_case(name));
    match action {
        AuthAction::Select | AuthAction::Recursive | AuthAction::Reindex { .. } => true,
        AuthAction::Function { function_name } => !among(&FUNCTIONS_DENIED, function_name),
        AuthAction::Pragma { pragma_name, pragma_value } => {
            among(&PRAGMAS_READ, pragma_name) || (pragma_value.is_none() && among(&PRAGMAS_ASKED, pragma_name))
        }
        AuthAction::CreateVtable { table_name, module_name } => !is_own(table_name) && among(&MODULES, module_name),
        AuthAction::Read { table_name, .. }
        | AuthAction::Insert { table_name }
        | AuthAction::Update { table_name, .. }
        | AuthAction::Delete { table_name }
        | AuthAction::CreateTable { table_name }
        | AuthAction::CreateIndex { table_name, .. }
        | AuthAction::CreateTrigger { table_name, .. }
        | AuthAction::DropTable { table_name }
        | AuthAction::DropIndex { table_name, .. }
        | AuthAction::DropTrigger { table_name, .. }
        | AuthAction::DropVtable { table_name, .. }
        | AuthAction::AlterTable { table_name, .. }
        | AuthAction::Analyze { table_name } => !is_own(table_name),
        AuthAction::CreateView { view_name } | AuthAction::DropView { view_name } => !is_own(view_name),
        // ATTACH, DETACH, transactions, savepoints, everything temporary, and what is not known.
        _ => false,
    }
}

fn owned(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(number) => Value::Integer(number),
        ValueRef::Real(number) => Value::Real(number),
        // SQLite does not look whether a text is one.
        ValueRef::Text(text) => Value::Text(String::from_utf8_lossy(text).into_owned()),
        ValueRef::Blob(bytes) => Value::Blob(bytes.to_vec()),
    }
}

fn weight(value: &Value) -> usize {
    match value {
        Value::Null | Value::Integer(_) | Value::Real(_) => 16,
        Value::Text(text) => 16 + text.len(),
        Value::Blob(bytes) => 16 + bytes.len(),
    }
}

fn faulty(error: rusqlite::Error) -> Error {
    Error::internal("working with the private database of a plugin")(error)
}

/// What an error of SQLite's means to whoever wrote the SQL.
fn refused(error: &rusqlite::Error, until: Option<&Until>, quota: u64) -> Error {
    use rusqlite::Error as Sql;
    let text = || error.to_string();
    match error {
        Sql::SqliteFailure(failure, _) => match failure.code {
            ErrorCode::AuthorizationForStatementDenied => {
                Error::Forbidden { code: DENIED, reason: format!("{}: this SQL does what plugins may not do", text()) }
            }
            ErrorCode::OperationInterrupted if until.is_some() => {
                Error::conflict(TOO_LONG, "the SQL took longer than it may, and was ended")
            }
            ErrorCode::DiskFull => {
                Error::conflict(TOO_MUCH, format!("the database may have {quota} bytes, or the disk is full"))
            }
            ErrorCode::TooBig => Error::conflict(TOO_MUCH, format!("a value may have {VALUE_BYTES_MAX} bytes")),
            ErrorCode::ConstraintViolation => Error::conflict(CONSTRAINT, text()),
            ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => Error::Busy {
                code: "storage",
                what: "The plugin's database is in use.".to_owned(),
                retry_after_ms: 1000,
            },
            ErrorCode::SystemIoFailure
            | ErrorCode::CannotOpen
            | ErrorCode::DatabaseCorrupt
            | ErrorCode::NotADatabase
            | ErrorCode::OutOfMemory
            | ErrorCode::ReadOnly
            | ErrorCode::FileLockingProtocolFailed
            | ErrorCode::PermissionDenied => Error::internal("working with the private database of a plugin")(text()),
            _ => Error::invalid("sql", text()),
        },
        Sql::ExecuteReturnedResults => Error::invalid("sql", "it returns rows; use query for it"),
        Sql::MultipleStatement => Error::invalid("sql", "there is more than one statement; use batch for several"),
        Sql::SqlInputError { error: failure, .. } if failure.code == ErrorCode::AuthorizationForStatementDenied => {
            Error::Forbidden { code: DENIED, reason: format!("{}: this SQL does what plugins may not do", text()) }
        }
        _ => Error::invalid("sql", text()),
    }
}

#[cfg(test)]
mod tests;
