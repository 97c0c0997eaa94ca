//! What starts instances without anybody asking for them.

use serde_json::{Value, json};

use super::{completed, instance, millis, start, stored, until};
use crate::harness::Daemon;

/// Every instance of a workflow, oldest first.
fn instances(daemon: &Daemon, name: &str) -> Vec<Value> {
    let mut found = daemon.all(&format!("/workflow-instances?workflow={name}&limit=100"));
    found.reverse();
    found
}

/// Waits until so many instances of a workflow have completed, and gives them, oldest first.
fn ended(daemon: &Daemon, name: &str, count: usize) -> Vec<Value> {
    daemon.wait(&format!("{count} completed instances of {name}: {:?}", instances(daemon, name)), || {
        let done = |found: &Vec<Value>| found.iter().filter(|one| one["status"] == "completed").count() >= count;
        Some(instances(daemon, name)).filter(done)
    })
}

/// Goal: `after` counts from the end of one run to the start of the next, `every` from start to start, whatever runs;
/// `cron` follows the clock.
#[test]
fn time_plans_start_instances() {
    let daemon = Daemon::start();
    stored(&daemon, "after", "schedule: {after: {seconds: 1}}\ndo: [{w: {wait: {milliseconds: 700}}}]");
    stored(&daemon, "every", "schedule: {every: PT1S}\ndo: [{w: {wait: {milliseconds: 2500}}}]");
    stored(&daemon, "planned", "schedule: {cron: '* * * * * *'}\ndo: [{a: {set: {x: 1}}}]");
    let runs = ended(&daemon, "after", 3);
    for pair in runs.windows(2) {
        let (over, next) = (millis(&pair[0]["updated_at"]), millis(&pair[1]["created_at"]));
        assert!(next >= over + 1000, "the next one began {} ms after the end", next - over);
        assert_eq!(pair[0]["status"], "completed", "never two at once");
    }
    let runs = ended(&daemon, "every", 2);
    assert!(millis(&runs[1]["created_at"]) < millis(&runs[0]["updated_at"]), "it does not wait for the one before");
    let starts: Vec<i64> = runs.iter().map(|one| millis(&one["created_at"])).collect();
    assert!(starts.windows(2).all(|pair| pair[1] - pair[0] >= 500), "{starts:?}");
    let runs = ended(&daemon, "planned", 2);
    assert!(runs.iter().all(|one| one["started_by"] != Value::Null && one["cause"] != Value::Null), "{runs:?}");
    let whole = daemon.get("/workflow/after").json;
    assert_eq!(whole["schedule"], json!({ "after": { "seconds": 1 } }), "{whole}");
}

/// Goal: `schedule.on` starts one instance for each set of events that belong together, with all of them as its input.
#[test]
fn sets_of_events_start_instances() {
    let daemon = Daemon::start();
    let correlated = |kind: &str| format!("{{with: {{type: {kind}}}, correlate: {{order: {{from: .data.order}}}}}}");
    let (paid, packed) = (correlated("shop.paid"), correlated("shop.packed"));
    let takes = "do: [{a: {set: {got: '${ $workflow.input | map([.type, .data.order]) }'}}}]";
    stored(&daemon, "ship", &format!("schedule: {{on: {{all: [{paid}, {packed}]}}}}\n{takes}"));
    stored(
        &daemon,
        "any",
        &format!(
            "schedule: {{on: {{any: [{{with: {{type: shop.paid, data: '${{ .sum > 9 }}'}}}}, {{with: {{type: shop.lost}}}}]}}}}\n{takes}"
        ),
    );
    for (kind, order) in
        [("shop.paid", 1), ("shop.paid", 2), ("shop.packed", 3), ("shop.packed", 2), ("shop.packed", 1)]
    {
        daemon.push(kind, json!({ "order": order, "sum": order * 6 }));
    }
    let got = |name: &str, count: usize| -> Vec<Value> {
        ended(&daemon, name, count).iter().map(|one| one["output"]["got"].clone()).collect()
    };
    let set = |first: &str, second: &str, order: i64| json!([[first, order], [second, order]]);
    assert_eq!(got("ship", 2), [set("shop.paid", "shop.packed", 2), set("shop.paid", "shop.packed", 1)]);
    assert_eq!(got("any", 1), [json!([["shop.paid", 2]])], "a filter over the data");
    // What it heard of a set survives.
    let mut daemon = daemon;
    daemon.settle();
    daemon.kill();
    daemon.again();
    daemon.push("shop.paid", json!({ "order": 3, "sum": 1 }));
    daemon.push("shop.lost", json!({ "order": 9 }));
    assert_eq!(ended(&daemon, "ship", 3)[2]["output"]["got"], set("shop.packed", "shop.paid", 3));
    assert_eq!(ended(&daemon, "any", 2)[1]["output"]["got"], json!([["shop.lost", 9]]));
}

/// Goal: a listener with `until` that is killed between its events goes on with what it has heard.
#[test]
fn a_listener_goes_on_after_a_crash() {
    let mut daemon = Daemon::start();
    stored(
        &daemon,
        "counts",
        "do: [{l: {listen: {to: {any: [{with: {type: tick.told}, correlate: {id: {from: .data.id, expect: '${ .id }'}}}], until: 'map(.n) | add >= 6'}}}}, {s: {set: {sum: '${ map(.n) | add }'}}}]",
    );
    let (one, two) = (start(&daemon, "counts", json!({ "id": 1 })), start(&daemon, "counts", json!({ "id": 2 })));
    for id in [&one, &two] {
        until(&daemon, id, "waiting");
    }
    let tell = |daemon: &Daemon, id: i64, n: i64| daemon.push("tick.told", json!({ "id": id, "n": n }));
    tell(&daemon, 1, 2);
    tell(&daemon, 2, 5);
    daemon.settle();
    daemon.kill();
    daemon.again();
    tell(&daemon, 1, 3);
    tell(&daemon, 3, 9);
    daemon.settle();
    assert_eq!(instance(&daemon, &one)["status"], "waiting");
    tell(&daemon, 1, 4);
    tell(&daemon, 2, 1);
    assert_eq!(until(&daemon, &one, "completed")["output"], json!({ "sum": 9 }));
    assert_eq!(until(&daemon, &two, "completed")["output"], json!({ "sum": 6 }));
    stored(&daemon, "still", "do: [{a: {set: {ok: 1}}}]");
    assert_eq!(completed(&daemon, "still", json!({})), json!({ "ok": 1 }));
}
