//! Target 15: what instances that wait cost, how soon the daemon is there again with them, and how late they wake.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::workflow_tasks::{millis, put, start};
use crate::daemon::Aman;
use crate::proc::Threads;
use crate::report::{Row, Wanted};
use crate::{Bench, Res};

/// Between the start of those that are to wake and the first of them to wake.
const AHEAD: Duration = Duration::from_secs(10);
const APART_MS: u64 = 10;
const SETTLE: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(300);
const PAGE: u64 = 200;

pub fn run(bench: &mut Bench) -> Res<()> {
    bench.sample_disk(15)?;
    let (sleepers, wakers) = (bench.count(10_000, 1_000), bench.count(1_000, 200));
    let mut aman = Aman::start(&bench.folder("workflow-waits")?.join("aman"))?;
    put(&aman, "sleeper", "", "do: [{w: {wait: PT9H}}]")?;
    put(&aman, "starter", "", &starter("sleeper", "{}"))?;
    start(&aman, "starter", &json!({ "count": sleepers }))?;
    asleep(&aman, "sleeper", sleepers)?;
    let mut starts = Vec::new();
    for _ in 0..bench.turns() {
        aman = aman.crash_and_start()?;
        starts.push(aman.start.as_secs_f64() * 1000.0);
    }
    let name = format!("start after SIGKILL, {sleepers} instances wait");
    bench.report.add(Row::cost(15, &name, "ms", &starts, Wanted::AtMost(1000.0)));
    std::thread::sleep(SETTLE);
    let (begun, before) = (Instant::now(), Threads::of(aman.proc.pid())?);
    std::thread::sleep(bench.secs(20.0));
    let (cpu_us, woken) = Threads::of(aman.proc.pid())?.since(&before);
    let secs = begun.elapsed().as_secs_f64();
    let name = format!("idle CPU, {sleepers} instances wait");
    let row = Row::cost(15, &name, "%", &[cpu_us as f64 / secs / 10_000.0], Wanted::AtMost(1.0));
    bench.report.add(row.note(format!("threads run {:.1} times a second", woken as f64 / secs)));
    let late = lateness(&aman, wakers)?;
    let name = |what: &str| format!("{what} that one of {wakers} woke late, {sleepers} wait");
    let at = |share: f64| late[((late.len() - 1) as f64 * share).round() as usize];
    bench.report.add(Row::cost(15, &name("median"), "ms", &[at(0.5)], Wanted::Nothing));
    bench.report.add(Row::cost(15, &name("99th percentile"), "ms", &[at(0.99)], Wanted::AtMost(50.0)));
    bench.report.add(Row::cost(15, &name("most"), "ms", &[at(1.0)], Wanted::AtMost(50.0)));
    Ok(())
}

/// A workflow that starts `.count` instances of another.
fn starter(name: &str, input: &str) -> String {
    format!(
        "do: [{{l: {{for: {{in: '[range(.count)]'}}, do: [{{s: {{run: {{workflow: {{namespace: bench, name: {name}, version: latest, input: {input}}}, await: false}}}}}}]}}}}]"
    )
}

/// Waits until so many instances wait.
fn asleep(aman: &Aman, name: &str, count: u64) -> Res<()> {
    let until = Instant::now() + PATIENCE;
    loop {
        let shown: Value = serde_json::from_str(&aman.get(&format!("/workflow/{name}"))?)?;
        let busy = |status: &str| -> Res<bool> {
            let page: Value =
                serde_json::from_str(&aman.get(&format!("/workflow-instances?status={status}&limit=1"))?)?;
            Ok(page["items"].as_array().is_some_and(|items| !items.is_empty()))
        };
        if shown["open_instances"] == count && !busy("pending")? && !busy("running")? {
            return Ok(());
        }
        if Instant::now() > until {
            return Err(format!("of {count} instances only {} came to wait", shown["open_instances"]).into());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// How many milliseconds after their times instances ended that waited for them, sorted. The times are a little apart.
fn lateness(aman: &Aman, count: u64) -> Res<Vec<f64>> {
    let wait = "${ {milliseconds: ([.at - $task.startedAt.epoch.milliseconds, 0] | max)} }";
    put(aman, "waker", "", &format!("do: [{{w: {{wait: '{wait}'}}}}]"))?;
    let at = format!("${{ $workflow.startedAt.epoch.milliseconds + {} + $index * {APART_MS} }}", AHEAD.as_millis());
    put(aman, "wakes", "", &starter("waker", &format!("{{at: '{at}'}}")))?;
    start(aman, "wakes", &json!({ "count": count }))?;
    std::thread::sleep(AHEAD + Duration::from_millis(count * APART_MS));
    let until = Instant::now() + PATIENCE;
    loop {
        let (mut late, mut cursor) = (Vec::new(), String::new());
        loop {
            let path = format!("/workflow-instances?workflow=waker&status=completed&limit={PAGE}{cursor}");
            let page: Value = serde_json::from_str(&aman.get(&path)?)?;
            for item in page["items"].as_array().into_iter().flatten() {
                let at = item["input"]["at"].as_i64().ok_or("an instance without its time")?;
                if millis(&item["created_at"])? > at {
                    return Err("an instance began after its time; the machine is too busy for this".into());
                }
                late.push((millis(&item["updated_at"])? - at) as f64);
            }
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        if late.len() as u64 >= count {
            late.sort_by(f64::total_cmp);
            return Ok(late);
        }
        if Instant::now() > until {
            return Err(format!("of {count} instances only {} woke", late.len()).into());
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}
