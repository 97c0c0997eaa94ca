//! SQL of a tool in a database of the person: one statement, in that file alone, for a while, and no more rows than fit.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::fallible_iterator::FallibleIterator;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::limits::Limit;
use rusqlite::types::{Value as Sql, ValueRef};
use rusqlite::{Batch, Connection, ErrorCode, OpenFlags, Statement, params_from_iter};
use serde_json::Value;

use super::private::{FUNCTIONS_DENIED, MODULES, PRAGMAS_READ};

/// How long a statement waits for others that use the database.
const BUSY: Duration = Duration::from_secs(2);
/// Steps of SQLite's machine between two looks at the clock.
const STEPS: i32 = 1000;
/// Longest value that SQL may read or make, in bytes, and longest pattern of LIKE and GLOB: nothing interrupts a function, so
/// what a single one can be given must be small.
const VALUE_BYTES_MAX: i32 = 1 << 20;
const PATTERN_BYTES_MAX: i32 = 1000;
/// Longest value that is shown, in bytes.
const SHOWN_BYTES_MAX: usize = 8 << 10;
/// Bytes of an answer.
const ROWS_BYTES_MAX: usize = 128 << 10;

/// What to run.
pub struct Query<'a> {
    /// The file, free of links.
    pub path: &'a Path,
    /// True when it may be changed.
    pub write: bool,
    /// One statement.
    pub sql: &'a str,
    /// Values for `?1` and on.
    pub params: &'a [Value],
    /// Rows at the most.
    pub rows_max: usize,
    /// How long it may take.
    pub time_max: Duration,
}

/// What came of it.
#[derive(Debug, PartialEq)]
pub struct Found {
    /// Names of the columns; none for a statement that gives no rows.
    pub columns: Vec<String>,
    /// Values, one for each column.
    pub rows: Vec<Vec<Value>>,
    /// True when there are more rows.
    pub more: bool,
    /// Rows that were changed.
    pub changed: u64,
}

/// Why it did not run.
#[derive(Debug, PartialEq)]
pub enum Unasked {
    /// The SQL may not do that here.
    Denied(String),
    /// The SQL or the file is wrong; nothing was changed.
    Failed(String),
}

/// Opens the file and runs the statement; ends soon after `is_cancelled` says so. What changes something is one
/// transaction.
pub fn run(query: &Query<'_>, is_cancelled: impl Fn() -> bool + Send + 'static) -> Result<Found, Unasked> {
    let mut conn = open(query).map_err(|error| Unasked::Failed(format!("the database cannot be opened: {error}")))?;
    let until = Instant::now() + query.time_max;
    conn.progress_handler(STEPS, Some(move || is_cancelled() || Instant::now() > until)).map_err(|e| said(&e))?;
    let mut batch = Batch::new(&conn, query.sql);
    let Some(mut statement) = batch.next().map_err(|error| said(&error))? else {
        return Err(Unasked::Failed("the SQL is empty".to_owned()));
    };
    if !matches!(batch.next(), Ok(None)) {
        return Err(Unasked::Failed("the SQL has more than one statement; send one at a time".to_owned()));
    }
    if !query.write && !statement.readonly() {
        return Err(Unasked::Denied("this database is granted for reading only".to_owned()));
    }
    asked(&mut statement, query).map_err(|error| said(&error)).map(|found| Found { changed: conn.changes(), ..found })
}

fn open(query: &Query<'_>) -> rusqlite::Result<Connection> {
    let access = if query.write { OpenFlags::SQLITE_OPEN_READ_WRITE } else { OpenFlags::SQLITE_OPEN_READ_ONLY };
    let flags = access | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let mut conn = Connection::open_with_flags(query.path, flags)?;
    conn.busy_timeout(BUSY)?;
    for (config, on) in [
        (DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true),
        (DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false),
        (DbConfig::SQLITE_DBCONFIG_WRITABLE_SCHEMA, false),
    ] {
        conn.set_db_config(config, on)?;
    }
    for (limit, most) in [
        (Limit::SQLITE_LIMIT_LENGTH, VALUE_BYTES_MAX),
        (Limit::SQLITE_LIMIT_LIKE_PATTERN_LENGTH, PATTERN_BYTES_MAX),
        (Limit::SQLITE_LIMIT_ATTACHED, 0),
        (Limit::SQLITE_LIMIT_WORKER_THREADS, 0),
    ] {
        conn.set_limit(limit, most)?;
    }
    if !query.write {
        conn.execute_batch("PRAGMA query_only = ON")?;
    }
    conn.authorizer(Some(
        |context: AuthContext<'_>| {
            if may(&context.action) { Authorization::Allow } else { Authorization::Deny }
        },
    ))?;
    Ok(conn)
}

/// Whether SQL may do this: everything within the one file.
fn may(action: &AuthAction<'_>) -> bool {
    let among = |names: &[&str], name: &str| names.iter().any(|known| known.eq_ignore_ascii_case(name));
    match action {
        AuthAction::Attach { .. }
        | AuthAction::Detach { .. }
        | AuthAction::Transaction { .. }
        | AuthAction::Savepoint { .. }
        | AuthAction::Unknown { .. } => false,
        AuthAction::Function { function_name } => !among(&FUNCTIONS_DENIED, function_name),
        AuthAction::Pragma { pragma_name, .. } => among(&PRAGMAS_READ, pragma_name),
        AuthAction::CreateVtable { module_name, .. } => among(&MODULES, module_name),
        _ => true,
    }
}

fn asked(statement: &mut Statement<'_>, query: &Query<'_>) -> rusqlite::Result<Found> {
    let params: Vec<Sql> = query.params.iter().map(given).collect();
    let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
    let mut found = Found { columns, rows: Vec::new(), more: false, changed: 0 };
    let (width, mut bytes) = (found.columns.len(), 0);
    let mut rows = statement.query(params_from_iter(params))?;
    while let Some(row) = rows.next()? {
        if found.rows.len() == query.rows_max || bytes > ROWS_BYTES_MAX {
            found.more = true;
            // What changes rows and shows them must come to its end.
            if query.write {
                continue;
            }
            break;
        }
        let values: Vec<Value> = (0..width).map(|column| row.get_ref(column).map(shown)).collect::<Result<_, _>>()?;
        bytes += values.iter().map(|value| value.as_str().map_or(16, str::len)).sum::<usize>();
        found.rows.push(values);
    }
    Ok(found)
}

fn given(value: &Value) -> Sql {
    match value {
        Value::Null | Value::Array(_) | Value::Object(_) => Sql::Null,
        Value::Bool(yes) => Sql::Integer(i64::from(*yes)),
        Value::Number(number) => {
            number.as_i64().map_or_else(|| Sql::Real(number.as_f64().unwrap_or_default()), Sql::Integer)
        }
        Value::String(text) => Sql::Text(text.clone()),
    }
}

fn shown(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(number) => number.into(),
        ValueRef::Real(number) => number.into(),
        ValueRef::Text(text) if text.len() > SHOWN_BYTES_MAX => {
            format!("{} [cut; {} bytes]", String::from_utf8_lossy(&text[..SHOWN_BYTES_MAX]), text.len()).into()
        }
        ValueRef::Text(text) => String::from_utf8_lossy(text).into(),
        ValueRef::Blob(bytes) => format!("[{} bytes]", bytes.len()).into(),
    }
}

fn said(error: &rusqlite::Error) -> Unasked {
    match error.sqlite_error_code() {
        Some(ErrorCode::OperationInterrupted) => {
            Unasked::Failed("the SQL took longer than it may, and was ended".to_owned())
        }
        Some(ErrorCode::AuthorizationForStatementDenied) => Unasked::Denied(
            "ATTACH, transactions, loading of extensions and most PRAGMAs are not allowed here".to_owned(),
        ),
        Some(ErrorCode::ReadOnly) => Unasked::Denied("this database is granted for reading only".to_owned()),
        // So SQLite says it of functions.
        _ if error.to_string().contains("ot authorized to use") => Unasked::Denied(error.to_string()),
        _ => Unasked::Failed(error.to_string()),
    }
}
