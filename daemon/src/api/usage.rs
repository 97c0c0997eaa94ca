//! What models cost, by day and by whose it is.

use std::sync::Arc;

use serde_json::json;

use super::body::{self, Reply};
use super::problem::Problem;
use super::query::{self, Query};
use super::{App, Call};
use crate::error::Error;

/// `GET /usage`: by scope; of today, of another `day`, or with `day=all` of all time.
pub(super) async fn list(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    let asked = Query::read(&call, &["day", "scope", "limit", "cursor"])?;
    let day = match asked.get("day") {
        None | Some("today") => Some(app.budget.today()),
        Some("all") => None,
        Some(day) if is_day(day) => Some(day.to_owned()),
        Some(_) => return Err(Error::invalid("day", "must be a day such as 2026-11-22, today or all.").into()),
    };
    let prefix = asked.text("scope").unwrap_or_default();
    let (limit, skip) = (asked.limit()?, asked.cursor::<1>("usage")?.map_or(0, |[n]| usize::try_from(n).unwrap_or(0)));
    let mut items = app.budget.list(day.clone(), prefix, (skip, limit + 1)).await?;
    let more = items.len() > limit;
    items.truncate(limit);
    let place = i64::try_from(skip + items.len()).unwrap_or(i64::MAX);
    let next_cursor = more.then(|| query::cursor("usage", &[place]));
    body::ok(&json!({ "day": day, "items": items, "next_cursor": next_cursor, "limits": app.budget.limits() }))
}

/// True for what is written like a day; one that never was has used nothing.
fn is_day(text: &str) -> bool {
    let fits = |(n, b): (usize, u8)| if matches!(n, 4 | 7) { b == b'-' } else { b.is_ascii_digit() };
    text.len() == 10 && text.bytes().enumerate().all(fits)
}
