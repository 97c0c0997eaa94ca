//! The audit log: what changes is recorded in the transaction that changes it; refusals before authentication are
//! counted and recorded once a minute; and the handlers that read it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use hyper::{HeaderMap, StatusCode, Uri};
use serde_json::{Value, json};

use super::auth::Principal;
use super::body::{self, Reply};
use super::problem::Problem;
use super::query::{self, Query};
use super::routes::Route;
use super::{App, Call};
use crate::bus::Origin;
use crate::clock::{self, Clock, Millis};
use crate::error::Error;
use crate::event::NewEvent;
use crate::id::TraceId;
use crate::store::audit::{self, Filter, Head, Outcome, Record};
use crate::store::{Store, Tx};

const OPERATOR_CHARS_MAX: usize = 100;
const REFUSALS_EVERY: Duration = Duration::from_secs(60);
/// So many wrong or missing tokens within [`REFUSALS_EVERY`] are told; a few are a program that was set up wrong.
const WRONG_TOKENS_TOLD: u64 = 20;

/// The record of a request that is being handled. Exactly one is written: by the handler in the transaction of its
/// change, or else by [`Draft::settle`].
#[derive(Clone)]
pub struct Draft {
    /// `None` on routes that are not audited.
    inner: Option<Arc<Inner>>,
}

struct Inner {
    clock: Clock,
    action: &'static str,
    target: String,
    principal: String,
    claimed_operator: Option<String>,
    trace: String,
    /// What is changed, once a change outside the database has begun.
    begun: OnceLock<String>,
    /// True once the record is in a transaction that is to commit.
    written: AtomicBool,
    /// True when there is nothing to record.
    skipped: AtomicBool,
}

impl Draft {
    /// A draft for a request to `route`.
    pub(super) fn new(
        app: &App,
        route: &Route,
        principal: Option<&Principal>,
        headers: &HeaderMap,
        uri: &Uri,
        trace: TraceId,
    ) -> Draft {
        let Some(action) = route.audited else { return Draft { inner: None } };
        let operator = headers.get("x-aman-operator").map(|value| {
            let text = String::from_utf8_lossy(value.as_bytes());
            text.chars().filter(|c| !c.is_control()).take(OPERATOR_CHARS_MAX).collect::<String>()
        });
        Draft {
            inner: Some(Arc::new(Inner {
                clock: app.clock.clone(),
                action,
                target: uri.path().to_owned(),
                principal: principal.map_or("anonymous", |p| &p.name).to_owned(),
                claimed_operator: operator.filter(|text| !text.trim().is_empty()),
                trace: trace.to_string(),
                begun: OnceLock::new(),
                written: AtomicBool::new(false),
                skipped: AtomicBool::new(false),
            })),
        }
    }

    /// Records that a change begins whose effect is outside the database; its end is recorded as usual, or by the next
    /// start as unknown.
    pub fn begin(&self, tx: &Tx<'_>, target: &str, detail: Value) -> Result<(), Error> {
        let Some(inner) = &self.inner else { return Ok(()) };
        audit::append(tx, &inner.as_record(target, Outcome::Begun, StatusCode::ACCEPTED, detail))?;
        // A second beginning of one request would be a bug of its handler; the first one stands.
        let _first = inner.begun.set(target.to_owned());
        Ok(())
    }

    /// Records the change as done, in its own transaction. `target` is the thing that was changed.
    pub fn record(&self, tx: &Tx<'_>, target: &str, detail: Value) -> Result<(), Error> {
        self.record_with(tx, target, detail, None, None)
    }

    /// As [`Draft::record`], with the digests of the thing before and after.
    pub fn record_with(
        &self,
        tx: &Tx<'_>,
        target: &str,
        detail: Value,
        before_digest: Option<String>,
        after_digest: Option<String>,
    ) -> Result<(), Error> {
        let Some(inner) = &self.inner else { return Ok(()) };
        let record = inner.as_record(target, Outcome::Done, StatusCode::OK, detail);
        audit::append(tx, &Record { before_digest, after_digest, ..record })?;
        inner.written.store(true, Ordering::Release);
        Ok(())
    }

    /// Who claims to ask.
    pub(super) fn operator(&self) -> Option<String> {
        self.inner.as_ref().and_then(|inner| inner.claimed_operator.clone())
    }

    /// Leaves no record: nothing is changed, as in a dry run.
    pub fn skip(&self) {
        if let Some(inner) = &self.inner {
            inner.skipped.store(true, Ordering::Release);
        }
    }

    /// True when nothing is changed, so that there is nothing to record.
    pub(super) fn is_skipped(&self) -> bool {
        self.inner.as_ref().is_some_and(|inner| inner.skipped.load(Ordering::Acquire))
    }

    /// Records what the handler did not. A handler that fails has committed nothing, so a failure is always recorded.
    pub(super) async fn settle(self, app: &App, result: Result<Reply, Problem>) -> Result<Reply, Problem> {
        let Some(inner) = self.inner else { return result };
        if inner.skipped.load(Ordering::Acquire) {
            return result;
        }
        let (outcome, status, detail) = match &result {
            Ok(_) if inner.written.load(Ordering::Acquire) => return result,
            Ok(reply) => (Outcome::Done, reply.status, json!({})),
            Err(problem) => {
                let refused = problem.status.is_client_error() || problem.code == "draining";
                let outcome = if refused { Outcome::Refused } else { Outcome::Failed };
                (outcome, problem.status, json!({ "code": problem.code }))
            }
        };
        let record = inner.as_record(inner.begun.get().unwrap_or(&inner.target), outcome, status, detail);
        match app.store.write(move |tx| audit::append(tx, &record)).await {
            Ok(_) => result,
            // A change that is not recorded must not look like a success.
            Err(error) => result.and(Err(error.into())),
        }
    }
}

impl Inner {
    fn as_record(&self, target: &str, outcome: Outcome, status: StatusCode, detail: Value) -> Record {
        Record {
            at_ms: self.clock.now_ms(),
            principal: self.principal.clone(),
            claimed_operator: self.claimed_operator.clone(),
            action: self.action.to_owned(),
            target: target.to_owned(),
            outcome,
            status: status.as_u16(),
            trace: Some(self.trace.clone()),
            detail,
            before_digest: None,
            after_digest: None,
        }
    }
}

/// Refusals by code and status.
type Counts = BTreeMap<(&'static str, u16), u64>;

/// Refusals before authentication. They are written by a timer that the first of them starts; what could not be written
/// is kept for the next time.
#[derive(Default)]
pub struct Refusals {
    counts: Mutex<Counts>,
    /// True while a timer runs.
    armed: AtomicBool,
}

impl Refusals {
    /// Counts `problem` and hands it back.
    pub(super) fn count(&self, app: &Arc<App>, problem: Problem) -> Problem {
        self.add([((problem.code, problem.status.as_u16()), 1)].into());
        if !self.armed.swap(true, Ordering::AcqRel) {
            let app = Arc::clone(app);
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(REFUSALS_EVERY).await;
                    // What is counted from here on is taken below or begins a timer of its own.
                    app.refusals.armed.store(false, Ordering::Release);
                    app.refusals.write_now(&app).await;
                    let is_left = !app.refusals.lock().is_empty();
                    if !is_left || app.refusals.armed.swap(true, Ordering::AcqRel) {
                        return;
                    }
                }
            });
        }
        problem
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, more: Counts) {
        let mut counts = self.lock();
        for (reason, count) in more {
            *counts.entry(reason).or_default() += count;
        }
    }

    /// Writes what was counted, one record a reason.
    pub(super) async fn write_now(&self, app: &App) {
        let counts = std::mem::take(&mut *self.lock());
        if let Err(error) = self.write(&app.store, app.clock.now_ms(), counts.clone()).await {
            tracing::error!(chain = error.chain().join(": "), "Refusals could not be recorded; they are kept.");
            return;
        }
        tell(app, &counts).await;
    }

    /// Writes `counts`, or adds them to what is counted since.
    async fn write(&self, store: &Store, at_ms: Millis, counts: Counts) -> Result<(), Error> {
        if counts.is_empty() {
            return Ok(());
        }
        let record = move |((code, status), count): (&(&'static str, u16), &u64)| Record {
            at_ms,
            principal: "anonymous".to_owned(),
            claimed_operator: None,
            action: "http.refused".to_owned(),
            target: (*code).to_owned(),
            outcome: Outcome::Refused,
            status: *status,
            trace: None,
            detail: json!({ "count": count }),
            before_digest: None,
            after_digest: None,
        };
        let records: Vec<Record> = counts.iter().map(record).collect();
        let written =
            store.write(move |tx| records.iter().try_for_each(|record| audit::append(tx, record).map(drop))).await;
        if written.is_err() {
            self.add(counts);
        }
        written
    }
}

/// Publishes `aman.security.refused` for what looks like somebody who does not belong: a page of another site, a name that
/// is not the daemon's own, many wrong tokens.
async fn tell(app: &App, counts: &Counts) {
    let looks_bad = |code: &str, count: u64| match code {
        "host_not_allowed" | "origin_not_allowed" | "rate_limited" => true,
        _ => count >= WRONG_TOKENS_TOLD,
    };
    for ((code, status), count) in counts.iter().filter(|((code, _), count)| looks_bad(code, **count)) {
        let data = json!({ "code": code, "status": status, "count": count, "seconds": REFUSALS_EVERY.as_secs() });
        app.bus.announce(NewEvent::new("aman/http", "aman.security.refused", &data), Origin::own("aman/http")).await;
    }
}

fn entry_json(entry: audit::Entry) -> Value {
    let mut body = entry.body;
    body["prev_hash"] = entry.prev_hash.into();
    body["hash"] = entry.hash.into();
    body
}

/// `GET /audit-log`
pub(super) async fn list(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    let query =
        Query::read(&call, &["action", "operator", "principal", "outcome", "since", "until", "limit", "cursor"])?;
    let time = |name: &str| query.parsed(name, "must be an RFC 3339 time with an offset.", clock::parse_rfc3339);
    let filter = Filter {
        action: query.text("action"),
        operator: query.text("operator"),
        principal: query.text("principal"),
        outcome: query.text("outcome"),
        since_ms: time("since")?,
        until_ms: time("until")?,
    };
    let (limit, before) = (query.limit()?, query.cursor::<1>("audit")?.map(|[seq]| seq));
    let mut entries = app.store.read(move |conn| audit::list(conn, &filter, before, limit + 1)).await?;
    let next_cursor = query::cut(&mut entries, limit, "audit", |entry| entry.seq);
    let items: Vec<Value> = entries.into_iter().map(entry_json).collect();
    body::ok(&json!({ "items": items, "next_cursor": next_cursor }))
}

/// `GET /audit-log/verify`
pub(super) async fn verify(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    let query = Query::read(&call, &["head"])?;
    let kept = query.parsed("head", "must be SEQ:HASH, as an earlier answer gave it.", Head::read)?;
    let verdict = app.store.read(move |conn| audit::verify(conn, kept.as_ref())).await?;
    let mut answer = json!({ "ok": verdict.bad.is_none(), "checked": verdict.checked });
    if verdict.pruned_to > 0 {
        answer["pruned_to"] = verdict.pruned_to.into();
    }
    if let Some((first_bad, fault)) = verdict.bad {
        answer["first_bad"] = first_bad.into();
        answer["fault"] = fault.name().into();
    }
    answer["head"] = verdict.head.map(|head| format!("{}:{}", head.seq, head.hash)).into();
    body::ok(&answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Durability;

    #[tokio::test]
    async fn refusals_that_cannot_be_written_are_kept() {
        let folder = std::env::temp_dir().join(format!("aman-refusals-{}", crate::id::fresh()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let store = Store::open(&folder.join("aman.db"), Durability::Normal).expect("a database");
        let refusals = Refusals::default();
        refusals.add([(("unauthorized", 401), 2)].into());
        let counts = std::mem::take(&mut *refusals.lock());
        store
            .write(|tx| tx.rename_table_for_test("audit", "elsewhere"))
            .await
            .expect("a database that takes no record");
        refusals.add([(("unauthorized", 401), 1), (("host_not_allowed", 421), 1)].into());
        refusals.write(&store, 0, counts).await.expect_err("no table");
        assert_eq!(*refusals.lock(), [(("unauthorized", 401), 3), (("host_not_allowed", 421), 1)].into());
        store.write(|tx| tx.rename_table_for_test("elsewhere", "audit")).await.expect("as it was");
        let counts = std::mem::take(&mut *refusals.lock());
        refusals.write(&store, 0, counts).await.expect("written");
        let verdict = store.read(|conn| audit::verify(conn, None)).await.expect("a verdict");
        assert_eq!((verdict.checked, verdict.bad), (2, None));
        drop(store);
        std::fs::remove_dir_all(&folder).expect("removed");
    }
}
