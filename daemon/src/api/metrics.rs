//! Metrics: Prometheus text, the same figures as JSON for people, and a short form for streams.

use std::fmt::{Display, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use hyper::StatusCode;
use serde_json::{Map, Value, json};

use super::body::{Body, Reply, ok};
use super::problem::Problem;
use super::query::Query;
use super::{App, Call};
use crate::budget::ALL;
use crate::clock::rfc3339;
use crate::error::Error;
use crate::store::{dead_letters, deliveries, outbox};
use crate::telemetry;

/// Consumers that get a label of their own; the rest is summed up as `other`, so that labels stay bounded.
const CONSUMERS_MAX: usize = 100;

/// Writes the Prometheus text format 0.0.4.
#[derive(Default)]
struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(self.0, "# HELP aman_{name} {help}\n# TYPE aman_{name} {kind}\n");
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let _ = write!(self.0, "aman_{name}");
        for (n, (label, text)) in labels.iter().enumerate() {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{label}=\"{text}\"", if n == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.head(name, kind, help);
        self.line(name, &[], value);
    }
}

/// What the kernel says of this process; zero where it says nothing.
struct Process {
    rss_bytes: u64,
    cpu_s: f64,
    open_fds: usize,
    threads: u64,
}

impl Process {
    fn read() -> Process {
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096);
        let hertz = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // The second field is the program's name in parentheses and may hold anything.
        let rest: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let field = |n: usize| rest.get(n).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        #[allow(clippy::cast_precision_loss)] // ticks of a process stay far below 2^52
        let cpu_s = (field(11) + field(12)) as f64 / hertz.max(1) as f64;
        Process {
            rss_bytes: field(21) * page.unsigned_abs(),
            cpu_s,
            open_fds: std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count),
            threads: field(17),
        }
    }
}

/// Figures that have to be read from the database.
struct Stored {
    open: Vec<(String, i64)>,
    dead: Vec<(String, i64)>,
    outbox: Vec<(&'static str, i64)>,
}

async fn stored(app: &App) -> Result<Stored, Error> {
    app.store
        .read(|conn| {
            Ok(Stored {
                open: deliveries::open_counts(conn)?,
                dead: dead_letters::depth(conn)?,
                outbox: outbox::counts(conn)?,
            })
        })
        .await
}

/// The largest counts with their names, the rest as `other`.
fn bounded(mut counts: Vec<(String, i64)>) -> Vec<(String, i64)> {
    counts.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    if counts.len() > CONSUMERS_MAX {
        let rest = counts.split_off(CONSUMERS_MAX).into_iter().map(|(_, count)| count).sum();
        counts.push(("other".to_owned(), rest));
    }
    counts
}

/// `GET /metrics`
pub(super) async fn prometheus(app: Arc<App>, _: Call) -> Result<Reply, Problem> {
    let mut text = Text(String::with_capacity(8192));
    text.head("build_info", "gauge", "The version that runs.");
    text.line("build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    requests(&app, &mut text);
    bus(&app, &mut text);
    let stored = stored(&app).await?;
    text.head("deliveries_open", "gauge", "Deliveries that wait or run, by consumer.");
    for (consumer, count) in bounded(stored.open) {
        text.line("deliveries_open", &[("consumer", &consumer)], count);
    }
    text.head("dlq_depth", "gauge", "Dead letters, by consumer.");
    for (consumer, count) in bounded(stored.dead) {
        text.line("dlq_depth", &[("consumer", &consumer)], count);
    }
    text.head("outbox_open", "gauge", "What is to leave the machine, by status.");
    for (status, count) in stored.outbox {
        text.line("outbox_open", &[("status", status)], count);
    }
    usage(&app, &mut text).await?;
    plugins(&app, &mut text);
    process(&app, &mut text);
    Ok(Reply {
        status: StatusCode::OK,
        content_type: "text/plain; version=0.0.4; charset=utf-8",
        headers: Vec::new(),
        body: Body::full(text.0),
        trace: None,
    })
}

/// What models cost. Of agents those that used most have a label; the rest is in the sums only.
async fn usage(app: &App, text: &mut Text) -> Result<(), Error> {
    let (today, ever) = app.budget.usage(ALL).await?;
    text.one("model_calls_total", "counter", "Calls of models that ended.", ever.calls);
    text.head("model_tokens_total", "counter", "Tokens: asked, answered, and of calls whose end nobody knows.");
    for (kind, tokens) in [("input", ever.input), ("output", ever.output), ("lost", ever.lost)] {
        text.line("model_tokens_total", &[("kind", kind)], tokens);
    }
    text.one("model_cost_total", "counter", "What models cost, in units of the price table.", ever.money);
    text.one("budget_day_tokens", "gauge", "Tokens that were used today (UTC).", today.tokens);
    text.one("budget_day_cost", "gauge", "What models cost today, in units of the price table.", today.money);
    text.one("budget_reserved_tokens", "gauge", "Tokens that calls under way may use.", today.reserved);
    text.one("budget_day_refused", "gauge", "Calls that the day's budget did not suffice for today.", today.refused);
    text.head("agent_tokens_total", "counter", "Tokens, by agent.");
    for one in app.budget.largest("agent/", CONSUMERS_MAX).await? {
        text.line("agent_tokens_total", &[("agent", one.scope.trim_start_matches("agent/"))], one.tokens);
    }
    Ok(())
}

fn plugins(app: &App, text: &mut Text) {
    let used = app.plugins.used();
    text.head("plugins_calls_total", "counter", "Calls of plugins since their code was loaded.");
    for one in &used {
        text.line("plugins_calls_total", &[("plugin", &one.name)], one.calls);
    }
    text.head("plugins_faults_total", "counter", "Faults of plugins, by kind.");
    for one in &used {
        for (kind, count) in &one.faults.faults {
            text.line("plugins_faults_total", &[("plugin", &one.name), ("fault", kind)], count);
        }
    }
    text.head("plugins_instances", "gauge", "Instances of plugins that run, wait or stream.");
    for one in &used {
        text.line("plugins_instances", &[("plugin", &one.name)], one.instances);
    }
    text.head("plugins_resting", "gauge", "1 = a plugin failed too often and rests.");
    for one in &used {
        text.line("plugins_resting", &[("plugin", &one.name)], u8::from(one.faults.rests_ms.is_some()));
    }
    app.plugins.services().write_metrics(&mut text.0);
}

fn requests(app: &App, text: &mut Text) {
    text.head("http_requests_total", "counter", "Answers, by route and class of status.");
    for mounted in app.front.table().all() {
        let (method, path) = (mounted.route.method.as_str(), mounted.route.path.as_str());
        for (class, count) in ["1xx", "2xx", "3xx", "4xx", "5xx"].iter().zip(mounted.answers.iter()) {
            let count = count.load(Relaxed);
            if count > 0 {
                text.line("http_requests_total", &[("method", method), ("route", path), ("status", class)], count);
            }
        }
    }
    let counters = &app.counters;
    text.one(
        "http_unrouted_total",
        "counter",
        "Requests refused before a route was found.",
        counters.refused.load(Relaxed),
    );
    text.one("http_panics_total", "counter", "Handlers that panicked.", counters.panics.load(Relaxed));
    text.one("http_connections", "gauge", "Open connections.", counters.connections.load(Relaxed));
    text.one("streams", "gauge", "Open event streams.", counters.streams.load(Relaxed));
}

fn bus(app: &App, text: &mut Text) {
    let (stats, store) = (app.bus.stats(), app.store.stats());
    text.one("events_total", "counter", "Events stored since the start.", stats.published.load(Relaxed));
    text.one(
        "events_deduplicated_total",
        "counter",
        "Pushes of an event that was there.",
        stats.deduplicated.load(Relaxed),
    );
    text.one("events_refused_total", "counter", "Pushes refused by back-pressure.", stats.refused.load(Relaxed));
    text.one("events_sequence", "gauge", "Sequence of the newest event.", app.live.head().0);
    text.one("attempts_total", "counter", "Attempts to deliver.", stats.attempts.load(Relaxed));
    text.head("deliveries_total", "counter", "Attempts that ended, by how.");
    let ends =
        [("done", &stats.done), ("retrying", &stats.retried), ("dead", &stats.dead), ("expired", &stats.expired)];
    for (status, count) in ends {
        text.line("deliveries_total", &[("status", status)], count.load(Relaxed));
    }
    text.one("deliveries_pending", "gauge", "Deliveries that wait or run.", stats.pending.load(Relaxed));
    text.one("write_queue_depth", "gauge", "Changes that wait for the writer.", store.queued);
    text.one("commits_total", "counter", "Transactions committed.", store.commits);
    text.one("database_bytes", "gauge", "Size of the database with its log.", store.bytes);
    text.one("wal_bytes", "gauge", "Size of the write-ahead log.", store.wal_bytes);
    let upkeep = app.upkeep.counts();
    text.one("retention_runs_total", "counter", "Runs of retention that removed something.", upkeep.runs.load(Relaxed));
    text.one("retention_events_total", "counter", "Events removed by retention.", upkeep.events.load(Relaxed));
    text.one(
        "retention_given_back_bytes_total",
        "counter",
        "Bytes given back to the disk.",
        upkeep.given_back.load(Relaxed),
    );
    text.one(
        "retention_last_run_seconds",
        "gauge",
        "When the last such run ended, in seconds since 1970.",
        upkeep.last_ms.load(Relaxed) / 1000,
    );
    text.one("ready", "gauge", "1 when the daemon serves.", u8::from(app.lifecycle.is_ready()));
}

fn process(app: &App, text: &mut Text) {
    let process = Process::read();
    text.one("process_resident_memory_bytes", "gauge", "Resident memory.", process.rss_bytes);
    text.one("process_cpu_seconds_total", "counter", "CPU time, user and system.", process.cpu_s);
    text.one("process_open_fds", "gauge", "Open file descriptors.", process.open_fds);
    text.one("process_threads", "gauge", "Threads.", process.threads);
    let spans = app.bus.traces().counts();
    text.head("telemetry_spans_total", "counter", "Spans by what became of them; dropped ones nobody has.");
    for (outcome, count) in [("exported", &spans.exported), ("dropped", &spans.dropped)] {
        text.line("telemetry_spans_total", &[("outcome", outcome)], count.load(Relaxed));
    }
    text.one("log_lines_lost_total", "counter", "Lines that no log file holds.", telemetry::lines_lost());
}

/// What `aman.metrics` frames hold: cheap to gather, so that many streams may ask.
pub(super) fn snapshot(app: &App) -> Value {
    let stats = app.bus.stats();
    json!({
        "time": rfc3339(app.clock.now_ms()),
        "sequence": app.live.head().0,
        "published": stats.published.load(Relaxed),
        "pending": stats.pending.load(Relaxed),
        "done": stats.done.load(Relaxed),
        "retried": stats.retried.load(Relaxed),
        "dead": stats.dead.load(Relaxed),
        "streams": app.counters.streams.load(Relaxed),
        "connections": app.counters.connections.load(Relaxed),
    })
}

/// `GET /debug/metrics`: everything that is counted, as JSON.
pub(super) async fn debug(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    let (stats, store, process) = (app.bus.stats(), app.store.stats(), Process::read());
    let stored = stored(&app).await?;
    let object =
        |counts: Vec<(String, i64)>| counts.into_iter().map(|(name, n)| (name, n.into())).collect::<Map<_, _>>();
    let routes: Vec<Value> = app
        .front
        .table()
        .all()
        .iter()
        .map(|mounted| {
            let answers: Vec<u64> = mounted.answers.iter().map(|count| count.load(Relaxed)).collect();
            json!({ "method": mounted.route.method.as_str(), "path": mounted.route.path, "answers": answers })
        })
        .collect();
    let consumers: Vec<Value> = app
        .bus
        .router()
        .entries()
        .iter()
        .map(|entry| json!({ "name": entry.spec.name, "kind": entry.spec.kind, "rules": entry.spec.rules.len() }))
        .collect();
    ok(&json!({
        "time": rfc3339(app.clock.now_ms()),
        "bus": {
            "sequence": app.live.head().0,
            "published": stats.published.load(Relaxed),
            "deduplicated": stats.deduplicated.load(Relaxed),
            "refused": stats.refused.load(Relaxed),
            "attempts": stats.attempts.load(Relaxed),
            "done": stats.done.load(Relaxed),
            "retried": stats.retried.load(Relaxed),
            "dead": stats.dead.load(Relaxed),
            "expired": stats.expired.load(Relaxed),
            "pending": stats.pending.load(Relaxed),
            "open_by_consumer": object(stored.open),
            "dlq_by_consumer": object(stored.dead),
            "outbox": object(stored.outbox.into_iter().map(|(status, n)| (status.to_owned(), n)).collect()),
            "consumers": consumers,
        },
        "store": store,
        "http": {
            "connections": app.counters.connections.load(Relaxed),
            "streams": app.counters.streams.load(Relaxed),
            "stream_listeners": app.live.listeners(),
            "unrouted": app.counters.refused.load(Relaxed),
            "panics": app.counters.panics.load(Relaxed),
            "routes": routes,
        },
        "process": {
            "resident_bytes": process.rss_bytes,
            "cpu_s": process.cpu_s,
            "open_fds": process.open_fds,
            "threads": process.threads,
        },
        "tasks": app.supervisor.status(),
    }))
}
