//! Cron in the real binary, killed around its slots.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use aman::clock::parse_rfc3339;
use serde_json::json;

use crate::harness::{Daemon, Seed};

/// Goal: with a slot every second and `kill -9` at any moment, every slot has one row and one event, and none is missing.
#[test]
fn killed_around_slots() {
    let seed = Seed::take();
    let mut rng = seed.rng(1);
    let mut daemon = Daemon::start();
    let job = json!({
        "id": "second", "expression": "* * * * * *", "overlap": "allow", "misfire": { "run_all": { "max": 100 } },
    });
    assert_eq!(daemon.post("/cron/add", &job).status, 201);
    for _ in 0..4 {
        daemon.wait("another slot", || {
            let before = daemon.recent("cron.fired").len();
            std::thread::sleep(Duration::from_millis(rng.u64(300..1400)));
            (daemon.recent("cron.fired").len() > before).then_some(())
        });
        daemon.kill();
        std::thread::sleep(Duration::from_millis(rng.u64(0..1500)));
        daemon.again();
    }
    daemon.wait("the last slot", || {
        let runs = daemon.get("/cron/second/runs?limit=1").items();
        (runs.first().is_some_and(|run| run["status"] == "done")).then_some(())
    });
    assert_eq!(daemon.post("/cron/second/update", &json!({ "enabled": false })).status, 200);
    daemon.settle();
    let mut fired: BTreeMap<String, usize> = BTreeMap::new();
    for event in daemon.recent("cron.fired") {
        *fired.entry(event["id"].as_str().expect("an id").to_owned()).or_default() += 1;
    }
    assert!(fired.values().all(|count| *count == 1), "{fired:?}");
    let runs = daemon.all("/cron/second/runs?limit=100");
    let keys: BTreeSet<String> = runs.iter().map(|run| run["key"].as_str().expect("a key").to_owned()).collect();
    assert_eq!(keys.len(), runs.len(), "one row a slot");
    assert_eq!(keys, fired.keys().cloned().collect(), "an event for every row, a row for every event");
    let mut at: Vec<i64> =
        runs.iter().map(|run| run["scheduled_at"].as_str().and_then(parse_rfc3339).expect("a time")).collect();
    at.sort_unstable();
    assert!(at.len() > 4 && at.windows(2).all(|pair| pair[1] - pair[0] == 1000), "no slot is missing: {at:?}");
}

/// Goal: a job that is not due costs the disk nothing.
#[test]
fn nothing_is_written_between_slots() {
    let daemon = Daemon::start();
    let job = json!({ "id": "yearly", "expression": "@yearly" });
    assert_eq!(daemon.post("/cron/add", &job).status, 201);
    // What a start writes may take a while to end.
    daemon.writes_nothing_for(Duration::from_millis(1600));
}
