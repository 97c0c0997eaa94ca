//! `sqlite_query`: one statement in a database that was granted.

use std::path::PathBuf;
use std::time::Duration;

use nix::sys::stat::SFlag;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{Shared, failed, number, said, text};
use crate::sandbox::{Guard, Place};
use crate::store::query::{self, Found, Query, Unasked};
use crate::tools::{Call, Output, Permission, Policy, Preview, ToolFailure};

/// How long a statement may take.
const TIME_MAX: Duration = Duration::from_secs(10);
/// Rows, unless the call says how many.
const ROWS: usize = 100;
/// Before the path of a database that may be changed.
const WRITABLE: &str = "rw:";

/// The database that a call means, and whether it may be changed.
fn granted(shared: &Shared, policy: &Policy, path: &str) -> Result<(PathBuf, bool), ToolFailure> {
    let places = &shared.ground.places;
    let wanted = places.expand(path).map_err(|why| ToolFailure::Arguments("/database".to_owned(), why))?;
    let grants = policy.sqlite.iter().filter_map(|grant| {
        let (path, write) = grant.strip_prefix(WRITABLE).map_or((grant.as_str(), false), |path| (path, true));
        Some((places.expand(path).ok()?, write))
    });
    let fitting = grants.filter(|(path, _)| *path == wanted);
    fitting.max_by_key(|(_, write)| *write).ok_or_else(|| {
        let named: Vec<&str> = policy.sqlite.iter().take(8).map(String::as_str).collect();
        let reason = format!("'{path}' is no database that was granted; those are {}.", named.join(", "));
        ToolFailure::Refused("path_not_granted", reason)
    })
}

/// Whether a statement could change anything, going by its first word: what only reads and begins otherwise counts too.
fn may_change(sql: &str) -> bool {
    let word: String = sql.trim_start().chars().take_while(char::is_ascii_alphabetic).collect();
    !["SELECT", "VALUES", "EXPLAIN"].iter().any(|reads| reads.eq_ignore_ascii_case(&word))
}

fn place(shared: &Shared, path: &std::path::Path, write: bool) -> Result<Place, ToolFailure> {
    let shown = shared.ground.places.shown(path);
    let refused = |why: &str| ToolFailure::Refused("path_not_granted", format!("'{shown}' cannot be used: {why}."));
    let found = Guard::new(&shared.ground.private).find(path, write).map_err(|why| refused(&why))?;
    let place = found.ok_or_else(|| failed(format!("there is no '{shown}'")))?;
    if place.is(SFlag::S_IFREG) { Ok(place) } else { Err(refused("it is no plain file")) }
}

pub(super) fn preview(shared: &Shared, call: &Call) -> Result<Preview, ToolFailure> {
    let (path, write) = granted(shared, &call.caller.policy, text(call, "database"))?;
    let shown = shared.ground.places.shown(&path);
    let changes = write && may_change(text(call, "sql"));
    let what = format!("{} {shown}: {}", if changes { "changes" } else { "reads" }, text(call, "sql"));
    let permission = changes.then_some(Permission::Write);
    // Who agreed to reading has not agreed to changing.
    let about = if changes { format!("(changes) {shown}") } else { shown };
    Ok(Preview { text: Some(what), permission, ..Preview::about(about.clone(), about) })
}

pub(super) fn query(shared: &Shared, call: &Call, cancel: &CancellationToken) -> Result<Output, ToolFailure> {
    let (path, write) = granted(shared, &call.caller.policy, text(call, "database"))?;
    let place = place(shared, &path, write)?;
    let none = Vec::new();
    let asked = Query {
        path: &place.path,
        // What was let pass as reading can do no more.
        write: write && may_change(text(call, "sql")),
        sql: text(call, "sql"),
        params: call.arguments["params"].as_array().unwrap_or(&none),
        rows_max: number(call, "limit").unwrap_or(ROWS),
        time_max: TIME_MAX,
    };
    let cancel = cancel.clone();
    let found = query::run(&asked, move || cancel.is_cancelled()).map_err(|why| match why {
        Unasked::Denied(why) => ToolFailure::Refused("tool_denied", why),
        Unasked::Failed(why) => failed(why),
    })?;
    Ok(said(
        table(&found),
        Some(json!({
            "columns": found.columns, "rows": found.rows, "more": found.more, "changed": found.changed,
        })),
    ))
}

/// For models: a line of names, then a line of JSON for each row.
fn table(found: &Found) -> String {
    if found.columns.is_empty() {
        return format!("{} rows changed", found.changed);
    }
    let mut lines = format!("{}\n", json!(found.columns));
    for row in &found.rows {
        lines.push_str(&format!("{}\n", json!(row)));
    }
    if found.more {
        lines.push_str("[there are more rows; use LIMIT and OFFSET]\n");
    }
    lines
}
