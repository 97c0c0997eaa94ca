//! Cron in this process, with a clock that the test moves: every slot fires once, whatever becomes of the clock and of
//! the daemon. The parts: over HTTP and the command line, and through `kill -9`.

mod api;
mod kill;

use std::sync::Arc;
use std::time::Duration;

use aman::bus::{
    Attempt, Concurrency, Consumer, ConsumerSpec, Delivered, Effects, Failure, Outcome, RetryPolicy, Rule, Standing,
};
use aman::clock::{Clock, parse_rfc3339};
use aman::config::{Flags, load};
use aman::event::{Trust, TypePattern};
use aman::start::{Daemon, Extras, start_with};
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;

use crate::harness::{Folder, PATIENCE, exchange, request};

const MINUTE: i64 = 60_000;

/// A daemon whose clock stands still until it is moved.
struct Bench {
    daemon: Daemon,
    clock: Clock,
    folder: Folder,
    consumers: Vec<(ConsumerSpec, Arc<dyn Consumer>)>,
}

impl Bench {
    async fn start(at: &str, consumers: Vec<(ConsumerSpec, Arc<dyn Consumer>)>) -> Bench {
        let (folder, clock) = (Folder::new("cron"), Clock::manual(parse_rfc3339(at).expect(at)));
        let daemon = run(&folder, &clock, &consumers).await;
        Bench { daemon, clock, folder, consumers }
    }

    /// Stops the daemon, moves the clock by `ms` and starts it again.
    async fn again_after(self, ms: i64) -> Bench {
        let Bench { daemon, clock, folder, consumers } = self;
        daemon.stop().await;
        clock.advance(ms);
        let daemon = run(&folder, &clock, &consumers).await;
        Bench { daemon, clock, folder, consumers }
    }

    async fn add(&self, id: &str, definition: Value) {
        let Value::Object(fields) = definition else { panic!("a definition is an object") };
        self.daemon.cron().add(id, fields, false, Box::new(|_, _| Ok(()))).await.expect("the job is added");
    }

    /// Moves the clock and has the engine look.
    async fn pass(&self, ms: i64) {
        self.clock.advance(ms);
        self.look().await;
    }

    async fn look(&self) {
        self.daemon.cron().look().await.expect("what is due can be done");
    }

    /// The ledger, oldest first: `MM:SS status reason`.
    async fn ledger(&self, id: &str) -> Vec<String> {
        let runs = self.daemon.cron().runs(id, None, None, 1000).await.expect("the job is there");
        let mut shown: Vec<(String, String)> = runs
            .iter()
            .map(|(_, run)| {
                let at = run["scheduled_at"].as_str().expect("a time");
                let reason = run["reason"].as_str().map(|text| format!(" {text}")).unwrap_or_default();
                let text = format!("{} {}{reason}", &at[11..16], run["status"].as_str().expect("a status"));
                (at.to_owned(), text)
            })
            .collect();
        shown.sort();
        shown.into_iter().map(|(_, text)| text).collect()
    }

    /// The ids of the events of a type, oldest first.
    async fn events(&self, kind: &str) -> Vec<Value> {
        let token = std::fs::read_to_string(self.folder.path().join("token")).expect("the token");
        let (address, path) = (self.daemon.address().to_string(), format!("/events/recent?limit=1000&types={kind}"));
        let asked = request("GET", &path, &[("authorization", &format!("Bearer {}", token.trim()))], b"");
        let answer = tokio::task::spawn_blocking(move || exchange(&address, &asked)).await.expect("it does not panic");
        let mut items = answer.expect("an answer").items();
        items.reverse();
        items
    }

    async fn fired(&self) -> Vec<String> {
        self.events("cron.fired").await.iter().map(|event| event["id"].as_str().expect("an id").to_owned()).collect()
    }

    /// Waits until `check` says yes of the job.
    async fn until(&self, id: &str, check: impl Fn(&Value) -> bool) -> Value {
        let waiting = async {
            loop {
                self.look().await;
                let job = self.daemon.cron().get(id).await.expect("the job is there");
                if check(&job) {
                    return job;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("in time")
    }
}

async fn run(folder: &Folder, clock: &Clock, consumers: &[(ConsumerSpec, Arc<dyn Consumer>)]) -> Daemon {
    // What hangs at the end of a daemon is not waited for long.
    std::fs::write(folder.path().join("aman.toml"), "[runtime]\ndrain_timeout = \"100ms\"\n").expect("aman.toml");
    let flags =
        Flags { home: Some(folder.path().to_owned()), bind: Some("127.0.0.1:0".to_owned()), ..Flags::default() };
    let config = load(&flags).expect("the configuration is valid");
    let extras = Extras { clock: clock.clone(), consumers: consumers.to_vec(), ..Extras::default() };
    start_with(config, extras).await.expect("the daemon starts")
}

fn consumer(consumer: Arc<dyn Consumer>) -> (ConsumerSpec, Arc<dyn Consumer>) {
    let spec = ConsumerSpec {
        name: "test/cron".to_owned(),
        kind: "internal",
        rules: vec![Rule { pattern: TypePattern::parse("cron.fired").expect("a pattern"), condition: None }],
        concurrency: Concurrency::Parallel(8),
        retry: RetryPolicy::default(),
        timeout: PATIENCE,
        trust: Trust::Owner,
        standing: Standing::Active,
        acts_outside: false,
    };
    (spec, consumer)
}

/// Ends an attempt for every permit.
struct Gate(Arc<Semaphore>);

impl Consumer for Gate {
    fn deliver(&self, _: Attempt) -> Delivered<'_> {
        Box::pin(async {
            self.0.acquire().await.expect("never closed").forget();
            Outcome::Done(Effects::default())
        })
    }
}

/// Fails every attempt.
struct Broken;

impl Consumer for Broken {
    fn deliver(&self, _: Attempt) -> Delivered<'_> {
        Box::pin(async { Outcome::Reject(Failure::new("no paper").within("printing")) })
    }
}

/// Goal: a slot fires when it is due and never again, however often the engine looks; its event says which slot it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_fires_once() {
    let bench = Bench::start("2026-11-22T08:00:30Z", Vec::new()).await;
    bench.add("tick", json!({ "expression": "* * * * *" })).await;
    bench.look().await;
    assert!(bench.fired().await.is_empty());
    bench.pass(MINUTE / 2).await;
    bench.look().await;
    let events = bench.events("cron.fired").await;
    assert_eq!(events.len(), 1);
    let event = &events[0];
    assert_eq!(
        (&event["id"], &event["source"], &event["subject"], &event["scheduledtime"], &event["trust"]),
        (
            &json!("tick@2026-11-22T08:01:00Z"),
            &json!("cron/tick"),
            &json!("tick"),
            &json!("2026-11-22T08:01:00.000Z"),
            &json!("owner")
        )
    );
    assert_eq!(event["data"], json!({ "job": "tick", "scheduled_at": "2026-11-22T08:01:00.000Z", "manual": false }));
    for _ in 0..3 {
        bench.pass(MINUTE).await;
    }
    assert_eq!(bench.fired().await.len(), 4);
    assert_eq!(bench.ledger("tick").await, ["08:01 done", "08:02 done", "08:03 done", "08:04 done"]);
}

/// Goal: a clock that jumps ahead (or a machine that slept) leaves slots to the policy; one that is set back repeats
/// none; one that is set back far is taken as right from then on.
#[tokio::test(flavor = "multi_thread")]
async fn clocks_jump() {
    let bench = Bench::start("2026-11-22T08:00:30Z", Vec::new()).await;
    bench.add("tick", json!({ "expression": "* * * * *" })).await;
    bench.pass(MINUTE).await;
    bench.pass(5 * MINUTE).await;
    let expected = [
        "08:01 done",
        "08:02 skipped misfire",
        "08:03 skipped misfire",
        "08:04 skipped misfire",
        "08:05 skipped misfire",
        "08:06 done",
    ];
    // 30 s after the slot is not late yet.
    assert_eq!(bench.ledger("tick").await.last().map(String::as_str), Some("08:06 done"));
    assert_eq!(bench.ledger("tick").await.len(), expected.len());
    let fired = bench.fired().await;
    bench.pass(-60 * MINUTE).await;
    bench.pass(59 * MINUTE).await;
    assert_eq!(bench.fired().await, fired, "what was set back is waited for");
    bench.pass(MINUTE + MINUTE / 2).await;
    assert_eq!(bench.fired().await.len(), fired.len() + 1);
    // Set back by a day: the same minutes of the day before fire, each once.
    bench.pass(-24 * 60 * MINUTE).await;
    bench.pass(MINUTE).await;
    bench.pass(MINUTE).await;
    let fired = bench.fired().await;
    assert_eq!(fired.iter().filter(|id| id.contains("@2026-11-21")).count(), 2, "{fired:?}");
    // And forward again: the slots that have rows do not fire a second time.
    bench.pass(24 * 60 * MINUTE - 4 * MINUTE).await;
    for _ in 0..6 {
        bench.pass(MINUTE).await;
    }
    let mut ids = bench.fired().await;
    let all = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), all, "no slot fires twice");
}

/// Goal: each policy for missed slots, after the daemon was down; then two more restarts inside the newest slot.
#[tokio::test(flavor = "multi_thread")]
async fn missed_slots_follow_the_policy_and_restarts_repeat_none() {
    let mut bench = Bench::start("2026-11-22T08:00:30Z", Vec::new()).await;
    for (id, misfire) in [
        ("skip", json!("skip")),
        ("once", json!("run_once")),
        ("all", json!({ "run_all": { "max": 2 } })),
        ("near", json!({ "within": "3m" })),
        ("far", json!({ "within": "1m" })),
    ] {
        // The newest slot, 08:03, is two minutes old when the daemon is back at 08:05.
        bench.add(id, json!({ "expression": "1-3 * * * *", "misfire": misfire })).await;
    }
    bench = bench.again_after(4 * MINUTE + MINUTE / 2).await;
    bench.look().await;
    let skipped = |minute: u32| format!("08:0{minute} skipped misfire");
    let done = |minute: u32| format!("08:0{minute} done");
    assert_eq!(bench.ledger("skip").await, [skipped(1), skipped(2), skipped(3)]);
    assert_eq!(bench.ledger("once").await, [skipped(1), skipped(2), done(3)]);
    assert_eq!(bench.ledger("all").await, [skipped(1), done(2), done(3)]);
    assert_eq!(bench.ledger("near").await, [skipped(1), skipped(2), done(3)]);
    assert_eq!(bench.ledger("far").await, [skipped(1), skipped(2), skipped(3)]);
    let fired = bench.fired().await;
    assert_eq!(fired.len(), 4);
    for _ in 0..2 {
        bench = bench.again_after(1000).await;
        bench.look().await;
        assert_eq!(bench.fired().await, fired);
    }
    // A restart across the next slot, and two inside it.
    bench = bench.again_after(56 * MINUTE + 5000).await;
    bench.look().await;
    let ids: Vec<String> = bench.fired().await.into_iter().skip(fired.len()).collect();
    assert_eq!(ids.len(), 5, "the slot at 09:01 is not late: every job runs: {ids:?}");
    for _ in 0..2 {
        bench = bench.again_after(5000).await;
        bench.look().await;
        assert_eq!(bench.fired().await.len(), fired.len() + 5);
    }
}

/// Goal: what becomes of slots while a run goes on, over a restart as well.
#[tokio::test(flavor = "multi_thread")]
async fn overlaps_follow_the_policy() {
    let gate = Arc::new(Semaphore::new(0));
    let mut bench = Bench::start("2026-11-22T08:00:30Z", vec![consumer(Arc::new(Gate(gate.clone())))]).await;
    for overlap in ["skip", "queue_one", "allow"] {
        bench.add(overlap, json!({ "expression": "* * * * *", "overlap": overlap })).await;
    }
    for _ in 0..3 {
        bench.pass(MINUTE).await;
    }
    assert_eq!(bench.ledger("skip").await, ["08:01 running", "08:02 skipped overlap", "08:03 skipped overlap"]);
    assert_eq!(bench.ledger("queue_one").await, ["08:01 running", "08:02 queued", "08:03 skipped overlap"]);
    assert_eq!(bench.ledger("allow").await, ["08:01 running", "08:02 running", "08:03 running"]);
    bench = bench.again_after(1000).await;
    bench.look().await;
    assert_eq!(bench.fired().await.len(), 5, "a restart begins nothing anew");
    gate.add_permits(5);
    bench.until("queue_one", |job| job["queued"] == 0).await;
    gate.add_permits(1);
    bench.until("queue_one", |job| job["running"] == 0).await;
    bench.until("allow", |job| job["running"] == 0).await;
    bench.until("skip", |job| job["running"] == 0).await;
    assert_eq!(bench.ledger("queue_one").await, ["08:01 done", "08:02 done", "08:03 skipped overlap"]);
    assert_eq!(bench.fired().await.len(), 6);
}

/// Goal: where runs may go on beside each other, what waited for room has it before what is due later.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_room_is_not_overtaken() {
    let gate = Arc::new(Semaphore::new(0));
    let bench = Bench::start("2026-11-22T08:00:30Z", vec![consumer(Arc::new(Gate(gate.clone())))]).await;
    let job = json!({ "expression": "* * * * *", "overlap": "allow", "misfire": { "run_all": { "max": 100 } } });
    bench.add("many", job).await;
    bench.pass(50 * MINUTE).await;
    bench.pass(60 * MINUTE).await;
    let job = bench.daemon.cron().get("many").await.expect("the job is there");
    // The newest slot is on time, and there is no room for it.
    assert_eq!((&job["running"], &job["queued"]), (&json!(100), &json!(9)), "{job}");
    gate.add_permits(4);
    bench.until("many", |job| job["running"] == 100 && job["queued"] == 5).await;
    bench.pass(MINUTE).await;
    let ledger = bench.ledger("many").await;
    assert_eq!(ledger.last().map(String::as_str), Some("09:51 skipped overlap"), "{ledger:?}");
    gate.add_permits(1000);
    bench.until("many", |job| job["running"] == 0 && job["queued"] == 0).await;
    let ledger = bench.ledger("many").await;
    assert_eq!(ledger.iter().filter(|line| line.ends_with("done")).count(), 109, "{ledger:?}");
}

/// Goal: a job whose runs fail is switched off, says so by an event, and can be switched on again.
#[tokio::test(flavor = "multi_thread")]
async fn a_failing_job_is_switched_off() {
    let bench = Bench::start("2026-11-22T08:00:30Z", vec![consumer(Arc::new(Broken))]).await;
    bench.add("report", json!({ "expression": "* * * * *", "max_failures": 2 })).await;
    bench.pass(MINUTE).await;
    let job = bench.until("report", |job| job["running"] == 0).await;
    assert_eq!((&job["enabled"], &job["failures"]), (&json!(true), &json!(1)));
    bench.pass(MINUTE).await;
    let job = bench.until("report", |job| job["running"] == 0).await;
    assert_eq!((&job["enabled"], &job["next_at"]), (&json!(false), &Value::Null));
    assert!(job["disabled_reason"].as_str().is_some_and(|text| text.contains("printing: no paper")), "{job}");
    assert_eq!(job["last_run"]["error"], "printing: no paper");
    bench.pass(5 * MINUTE).await;
    assert_eq!(bench.ledger("report").await, ["08:01 failed", "08:02 failed"]);
    let told = bench.events("aman.cron.disabled").await;
    assert_eq!((told.len(), &told[0]["data"]["job"], &told[0]["source"]), (1, &json!("report"), &json!("aman/cron")));
    let patch: Map<String, Value> = [("enabled".to_owned(), json!(true))].into_iter().collect();
    let changed = bench.daemon.cron().update("report", patch, false, Box::new(|_, _| Ok(()))).await.expect("changed");
    assert_eq!((&changed.shown["failures"], &changed.shown["disabled_reason"]), (&json!(0), &Value::Null));
    bench.pass(MINUTE).await;
    assert_eq!(bench.ledger("report").await.len(), 3, "what passed while it was off is no missed slot");
}

/// Goal: jitter puts a slot off by a part that a restart does not change, and no further than it says.
#[tokio::test(flavor = "multi_thread")]
async fn jitter_is_bounded_and_steady() {
    let mut bench = Bench::start("2026-11-22T08:00:00Z", Vec::new()).await;
    for n in 0..20 {
        bench.add(&format!("job-{n}"), json!({ "expression": "1 * * * *", "jitter_s": 600 })).await;
    }
    let mut counts = Vec::new();
    for minute in 0..12 {
        bench = if minute == 5 { bench.again_after(MINUTE).await } else { bench };
        if minute != 5 {
            bench.pass(MINUTE).await;
        }
        bench.look().await;
        counts.push(bench.fired().await.len());
    }
    assert_eq!(counts.last(), Some(&20), "{counts:?}");
    assert!(counts[0] < 10 && counts[6] < 20 && counts[6] > 2, "they are spread: {counts:?}");
    bench.pass(30 * MINUTE).await;
    assert_eq!(bench.fired().await.len(), 20);
}
