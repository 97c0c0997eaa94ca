//! SIGKILL at random moments over a mix of workflows.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde_json::{Value, json};

use super::{instance, stored};
use crate::harness::{Daemon, Folder, Seed};
use crate::peer::Peer;

/// Kills over one run.
const KILLS: usize = 12;

/// Goal: whatever is killed when, every instance ends with the data that it would have had, no call is repeated without
/// its key, and no event is emitted twice.
#[test]
fn killed_instances_go_on_with_the_same_data() {
    let seed = Seed::take();
    let mut rng = seed.rng(1);
    let (folder, peer) = (Folder::new("killed"), Peer::start());
    std::fs::write(folder.path().join("aman.toml"), "[http_client]\nallow_private = true\n").expect("aman.toml");
    let mut daemon = Daemon::start_in(folder.path());
    let url = peer.url();
    stored(
        &daemon,
        "steps",
        "do: [{l: {for: {in: '[range(60)]'}, do: [{a: {set: {n: '${ (if $index == 0 then 0 else .n end) + 1 }', at: '${ $index }'}}}]}}, {w: {wait: {milliseconds: 120}}}, {e: {emit: {event: {with: {source: 'https://t', type: mix.done, subject: '${ $workflow.id }', data: '${ . }'}}}}}, {o: {set: {n: '${ .data.n }'}}}]",
    );
    stored(
        &daemon,
        "calls",
        &format!(
            "do: [{{s: {{set: {{n: '${{ .n }}'}}, export: {{as: '${{ {{n: .n}} }}'}}}}}}, {{a: {{call: http, with: {{method: post, endpoint: '{url}/one', body: {{id: '${{ $workflow.id }}'}}}}}}}}, {{w: {{wait: {{milliseconds: 80}}}}}}, {{b: {{call: http, with: {{method: post, endpoint: '{url}/two', body: {{id: '${{ $workflow.id }}'}}}}}}}}, {{o: {{set: {{n: '${{ $context.n }}'}}}}}}]"
        ),
    );
    stored(
        &daemon,
        "forks",
        "do: [{f: {fork: {branches: [{a: {wait: {milliseconds: 60}}}, {b: {do: [{x: {wait: {milliseconds: 90}}}, {y: {set: {n: 60}}}]}}]}}}, {o: {set: {n: '${ .[1].n }'}}}]",
    );
    stored(
        &daemon,
        "outer",
        "do: [{r: {run: {workflow: {namespace: test, name: steps, version: latest}}}}, {o: {set: {n: '${ .n }'}}}]",
    );
    let mut ids = Vec::new();
    for round in 0..KILLS {
        for name in ["steps", "calls", "forks", "outer"] {
            let body = json!({ "input": { "n": 60 }, "dedup_key": format!("{name}-{round}") });
            let answer = daemon.post(&format!("/workflow/{name}/create"), &body);
            assert_eq!(answer.status, 201, "{answer:?}");
            ids.push(answer.json["id"].as_str().expect("an id").to_owned());
        }
        std::thread::sleep(Duration::from_millis(rng.u64(0..250)));
        daemon.kill();
        daemon.again();
    }
    for id in &ids {
        let shown = daemon.wait("every instance to end", || {
            Some(instance(&daemon, id))
                .filter(|shown| ["completed", "faulted"].contains(&shown["status"].as_str().unwrap_or_default()))
        });
        assert_eq!((&shown["status"], &shown["output"]["n"]), (&json!("completed"), &json!(60)), "{shown}");
    }
    one_key_for_each_call(&peer);
    let mut told: HashMap<String, usize> = HashMap::new();
    for event in daemon.recent("mix.done") {
        *told.entry(event["subject"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
    }
    assert_eq!(told.len(), 2 * KILLS, "those started here and those within others all emit: {told:?}");
    assert!(told.values().all(|count| *count == 1), "{told:?}");
}

/// However often it was repeated.
fn one_key_for_each_call(peer: &Peer) {
    let mut keys: HashMap<(String, String), Vec<String>> = HashMap::new();
    for request in peer.requests() {
        let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
        let key = request.lines().find_map(|line| line.strip_prefix("idempotency-key: ")).expect("a key").to_owned();
        let body: Value = serde_json::from_str(request.rsplit("\r\n").next().unwrap_or_default()).expect("a body");
        let id = body["id"].as_str().expect("an id").to_owned();
        let known = keys.entry((path, id)).or_default();
        if !known.contains(&key) {
            known.push(key);
        }
    }
    assert_eq!(keys.len(), 2 * KILLS, "each of them called both");
    assert!(keys.values().all(|known| known.len() == 1), "one key for one call: {keys:?}");
    let all: HashSet<&String> = keys.values().flatten().collect();
    assert_eq!(all.len(), keys.len(), "no key for two calls: {keys:?}");
}
