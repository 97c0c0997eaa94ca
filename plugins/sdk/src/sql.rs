//! The plugin's own SQLite database.

use crate::Result;
use crate::bindings::aman::plugin::sql as host;

pub use crate::bindings::aman::plugin::sql::{Rows, Statement, Value};

/// A statement with values for `?1` and on.
pub fn statement(sql: &str, params: impl IntoIterator<Item = Value>) -> Statement {
    Statement { sql: sql.to_owned(), params: params.into_iter().collect() }
}

/// Runs a statement that returns no rows, and says how many rows it changed.
pub fn execute(sql: &str, params: impl IntoIterator<Item = Value>) -> Result<u64> {
    host::execute(&statement(sql, params))
}

/// Runs a statement that returns rows: at most 10,000 of them and 4 MiB.
pub fn query(sql: &str, params: impl IntoIterator<Item = Value>) -> Result<Rows> {
    host::query(&statement(sql, params))
}

/// Runs at most 1,000 statements in one transaction, all or none.
pub fn batch(statements: &[Statement]) -> Result<Vec<u64>> {
    host::batch(statements)
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Value {
        Value::Text(text)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Value {
        Value::Integer(number)
    }
}
