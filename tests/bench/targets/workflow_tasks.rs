//! Target 14: what it costs to keep a journal of tasks: one by one beside as many durable commits of one row, and in groups.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::daemon::{self, Aman};
use crate::reference::sqlite;
use crate::report::{Row, Wanted};
use crate::stats::{Pairs, median};
use crate::{Bench, Res};

/// Tasks of the measured workflows.
const TASKS: u32 = 1000;
/// Instances that run side by side.
const MANY: usize = 16;
const PATIENCE: Duration = Duration::from_secs(120);

pub fn run(bench: &mut Bench) -> Res<()> {
    bench.sample_disk(14)?;
    let folder = bench.folder("workflow-tasks")?;
    let aman = Aman::start(&folder.join("aman"))?;
    let tasks: String = (0..TASKS).map(|n| format!("  - t{n}: {{set: {{n: '${{ .n + 1 }}'}}}}\n")).collect();
    put(&aman, "grouped", "", &format!("do:\n{tasks}"))?;
    put(&aman, "strict", ", metadata: {aman.journal: strict}", &format!("do:\n{tasks}"))?;
    for name in ["strict", "grouped"] {
        took_ms(&aman, name, 1)?;
    }
    let (mut strict, mut grouped, mut many) = (Pairs::default(), Vec::new(), Vec::new());
    for _ in 0..bench.turns() {
        let commits = sqlite::run(&folder, 1, Duration::ZERO, bench.secs(1.0), &daemon::data("bench.tick"))?;
        strict.push(took_ms(&aman, "strict", 1)?, f64::from(TASKS) / commits.rate * 1000.0);
        grouped.push(f64::from(TASKS) / took_ms(&aman, "grouped", 1)? * 1000.0);
        many.push(f64::from(TASKS) * MANY as f64 / took_ms(&aman, "grouped", MANY)? * 1000.0);
    }
    let name = format!("{TASKS} set tasks, each journaled by itself");
    let against = format!("{TASKS} durable commits of one row");
    bench.report.add(Row::ratio(14, &name, "ms", &strict, &against, Wanted::AtMost(2.0)));
    let each = format!("{:.1} ms for {TASKS}", f64::from(TASKS) / median(&grouped) * 1000.0);
    let row = Row::cost(14, "set tasks in groups, one instance", "/s", &grouped, Wanted::AtLeast(20_000.0));
    bench.report.add(row.note(format!("{each}, from the request to its end")));
    let name = format!("set tasks in groups, {MANY} instances at once");
    bench.report.add(Row::cost(14, &name, "/s", &many, Wanted::Nothing));
    Ok(())
}

/// Stores a definition; `more` goes into its `document`.
pub fn put(aman: &Aman, name: &str, more: &str, body: &str) -> Res<()> {
    let text = format!("document: {{dsl: 1.0.3, namespace: bench, name: {name}, version: 1.0.0{more}}}\n{body}");
    aman.call("PUT", &format!("/workflow/{name}"), "application/yaml", text.as_bytes()).map(drop)
}

/// Starts an instance and gives its id.
pub fn start(aman: &Aman, name: &str, input: &Value) -> Res<String> {
    let body = json!({ "input": input }).to_string();
    let answer: Value = serde_json::from_str(&aman.call(
        "POST",
        &format!("/workflow/{name}/create"),
        "application/json",
        body.as_bytes(),
    )?)?;
    Ok(answer["id"].as_str().ok_or("an instance without an id")?.to_owned())
}

/// Milliseconds from the first request to the last end of `count` instances, as the daemon's own clock has it.
fn took_ms(aman: &Aman, name: &str, count: usize) -> Res<f64> {
    let ids: Vec<String> = (0..count).map(|_| start(aman, name, &json!({ "n": 0 }))).collect::<Res<_>>()?;
    let until = Instant::now() + PATIENCE;
    loop {
        let page = aman.get(&format!("/workflow-instances?workflow={name}&status=completed&limit={count}"))?;
        let page: Value = serde_json::from_str(&page)?;
        let items = page["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        if ids.iter().all(|id| items.iter().any(|item| item["id"] == id.as_str())) {
            let times = |field: &str| items.iter().map(|item| millis(&item[field])).collect::<Res<Vec<i64>>>();
            let (first, last) = (times("created_at")?.into_iter().min(), times("updated_at")?.into_iter().max());
            let took = last.unwrap_or_default() - first.unwrap_or_default();
            return Ok(took.max(1) as f64);
        }
        if Instant::now() > until {
            return Err(format!("instances of {name} never end").into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A time of an answer as milliseconds.
pub fn millis(time: &Value) -> Res<i64> {
    let text = time.as_str().ok_or("an answer without a time")?;
    aman::clock::parse_rfc3339(text).ok_or_else(|| format!("no time: {text}").into())
}
