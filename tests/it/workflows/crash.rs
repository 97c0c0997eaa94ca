//! SIGKILL at random moments over a mix of workflows.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::{define, instance};
use crate::harness::{Daemon, Folder, Seed};
use crate::peer::Peer;

/// Kills over one run.
const KILLS: usize = 50;
/// Every so many rounds commands are run as well.
const COMMANDS_EVERY: usize = 5;
/// The number that every workflow comes to.
const N: usize = 20;
/// Workflows that are started in each round.
const LIGHT: [&str; 6] = ["steps", "calls", "forks", "outer", "tries", "ears"];
/// Those that run commands.
const HEAVY: [&str; 3] = ["shell", "shell-once", "script"];

/// Goal: whatever is killed when, every instance ends with the data that it would have had, nothing that acts outside is
/// repeated without its key, no event is emitted twice, and none is missed.
#[test]
fn killed_instances_go_on_with_the_same_data() {
    let seed = Seed::take();
    let mut rng = seed.rng(1);
    let (folder, peer, flaky) = (Folder::new("killed"), Peer::start(), Peer::start());
    for n in 0..KILLS {
        flaky.answer(if n % 2 == 0 { "503 Service Unavailable" } else { "200 OK" }, &[], "");
    }
    flaky.answer("200 OK", &[], "");
    let (flows, effects) = (folder.path().join("workflows"), folder.path().join("effects"));
    [&flows, &effects].into_iter().for_each(|place| std::fs::create_dir_all(place).expect("a folder"));
    std::fs::write(folder.path().join("aman.toml"), "[http_client]\nallow_private = true\n").expect("aman.toml");
    for (name, body) in definitions(&peer.url(), &flaky.url(), &effects) {
        std::fs::write(flows.join(format!("{name}.yaml")), define(name, &body)).expect("a file");
    }
    let mut daemon = Daemon::start_in(folder.path());
    let mut ids: Vec<(&str, String)> = Vec::new();
    for round in 0..KILLS {
        let heavy = HEAVY.iter().filter(|_| round % COMMANDS_EVERY == 0);
        for name in LIGHT.iter().chain(heavy) {
            let body = json!({ "input": { "n": N }, "dedup_key": format!("{name}-{round}") });
            let answer = daemon.post(&format!("/workflow/{name}/create"), &body);
            assert_eq!(answer.status, 201, "{answer:?}");
            ids.push((name, answer.json["id"].as_str().expect("an id").to_owned()));
        }
        daemon.push("mix.born", json!({ "n": N }));
        ids.iter().filter(|(name, _)| *name == "ears").rev().take(3).for_each(|(_, id)| call(&daemon, id));
        std::thread::sleep(Duration::from_millis(rng.u64(0..250)));
        daemon.kill();
        daemon.again();
    }
    ids.iter().for_each(|(name, id)| ends(&daemon, name, id));
    let born = daemon.wait("those that events started to end", || {
        let born = daemon.all("/workflow-instances?workflow=born&limit=1000");
        born.iter().all(|one| one["status"] == "completed").then_some(born)
    });
    assert_eq!(born.len(), KILLS, "each event that was taken has started one");
    one_key_for_each_call(&peer);
    one_key_for_each_command(&effects);
    let mut told: HashMap<String, usize> = HashMap::new();
    for event in daemon.recent("mix.done") {
        *told.entry(event["subject"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
    }
    assert_eq!(told.len(), 2 * KILLS, "those started here and those within others all emit: {told:?}");
    assert!(told.values().all(|count| *count == 1), "{told:?}");
}

/// What is run, by name.
fn definitions(url: &str, flaky: &str, effects: &Path) -> Vec<(&'static str, String)> {
    let post = |url: &str| {
        format!("call: http, with: {{method: post, endpoint: '{url}', body: {{id: '${{ $workflow.id }}'}}}}")
    };
    let (one, two, side) = (post(&format!("{url}/one")), post(&format!("{url}/two")), post(&format!("{url}/side")));
    let done = "{o: {set: {n: '${ $workflow.input.n }'}}}";
    let log = effects.join("log").display().to_string();
    let shell = |tag: &str| {
        json!(format!("printf '%s\\n' \"{tag} $AMAN_INSTANCE_ID $AMAN_IDEMPOTENCY_KEY\" >> {log}")).to_string()
    };
    let python = json!(format!(
        "import os\nwith open('{log}', 'a') as f: f.write('script %s %s\\n' % (os.environ['AMAN_INSTANCE_ID'], os.environ['AMAN_IDEMPOTENCY_KEY']))"
    ));
    let rights = "aman.permissions: 'write:$AMAN_DATA/effects'";
    let again = format!("metadata: {{{rights}, aman.idempotent: true}}");
    vec![
        (
            "steps",
            format!("do: [{{l: {{for: {{in: '[range({N})]'}}, do: [{{a: {{set: {{n: '${{ (if $index == 0 then 0 else .n end) + 1 }}', at: '${{ $index }}'}}}}}}]}}}}, {{w: {{wait: {{milliseconds: 120}}}}}}, {{e: {{emit: {{event: {{with: {{source: 'https://t', type: mix.done, subject: '${{ $workflow.id }}', data: '${{ . }}'}}}}}}}}}}, {{o: {{set: {{n: '${{ .data.n }}'}}}}}}]"),
        ),
        (
            "calls",
            format!("do: [{{s: {{set: {{n: '${{ .n }}'}}, export: {{as: '${{ {{n: .n}} }}'}}}}}}, {{a: {{{one}}}}}, {{w: {{wait: {{milliseconds: 80}}}}}}, {{b: {{{two}}}}}, {{o: {{set: {{n: '${{ $context.n }}'}}}}}}]"),
        ),
        (
            "forks",
            format!("do: [{{f: {{fork: {{branches: [{{a: {{wait: {{milliseconds: 60}}}}}}, {{b: {{do: [{{x: {{wait: {{milliseconds: 90}}}}}}, {{y: {{set: {{n: {N}}}}}}}]}}}}, {{c: {{{side}}}}}]}}}}}}, {{o: {{set: {{n: '${{ .[1].n }}'}}}}}}]"),
        ),
        (
            "outer",
            "do: [{r: {run: {workflow: {namespace: test, name: steps, version: latest}}}}, {o: {set: {n: '${ .n }'}}}]".to_owned(),
        ),
        (
            "tries",
            format!("do: [{{t: {{try: [{{c: {{{}}}}}], catch: {{errors: {{with: {{status: 503}}}}, retry: {{delay: {{milliseconds: 30}}, limit: {{attempt: {{count: 60}}}}}}}}}}}}, {done}]", post(&format!("{flaky}/tries"))),
        ),
        (
            "ears",
            "do: [{l: {listen: {to: {one: {with: {type: mix.call}, correlate: {id: {from: .subject, expect: '${ $workflow.id }'}}}}}}}, {o: {set: {n: '${ .[0].n }'}}}]".to_owned(),
        ),
        ("born", "schedule: {on: {one: {with: {type: mix.born}}}}\ndo: [{w: {wait: {milliseconds: 20}}}, {o: {set: {n: '${ $workflow.input[0].data.n }'}}}]".to_owned()),
        ("shell", format!("do: [{{a: {{run: {{shell: {{command: {}}}}}, {again}}}}}, {done}]", shell("shell"))),
        ("shell-once", format!("do: [{{a: {{run: {{shell: {{command: {}}}}}, metadata: {{{rights}}}}}}}, {done}]", shell("once"))),
        ("script", format!("do: [{{a: {{run: {{script: {{language: python, code: {python}}}}}, {again}}}}}, {done}]")),
    ]
}

/// What an instance of `ears` waits for.
fn call(daemon: &Daemon, id: &str) {
    let event = json!({ "source": "test", "type": "mix.call", "subject": id, "data": { "n": N } });
    assert_eq!(daemon.post("/events/push", &event).status, 202);
}

/// Waits for the end of an instance, and does for it what only others can do.
fn ends(daemon: &Daemon, name: &str, id: &str) {
    let shown = daemon.wait(&format!("{name} {id} to end"), || {
        let shown = instance(daemon, id);
        match shown["status"].as_str() {
            Some("completed") => return Some(shown),
            Some("waiting") if name == "ears" => call(daemon, id),
            // Nobody knows how far it came; whoever looked may have it done again.
            Some("faulted") if name == "shell-once" => {
                assert_eq!(shown["error"]["title"], "unknown_outcome", "{shown}");
                assert_eq!(daemon.post_confirmed(&format!("/workflow-instance/{id}/retry"), &json!({})).status, 200);
            }
            Some("faulted" | "cancelled") => panic!("{name}: {shown}"),
            _ => {}
        }
        None
    });
    assert_eq!(shown["output"]["n"], N, "{name}: {shown}");
}

/// However often it was repeated.
fn one_key_for_each_call(peer: &Peer) {
    let mut keys: HashMap<(String, String), HashSet<String>> = HashMap::new();
    for request in peer.requests() {
        let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
        let key = request.lines().find_map(|line| line.strip_prefix("idempotency-key: ")).expect("a key").to_owned();
        let body: Value = serde_json::from_str(request.rsplit("\r\n").next().unwrap_or_default()).expect("a body");
        let id = body["id"].as_str().expect("an id").to_owned();
        keys.entry((path, id)).or_default().insert(key);
    }
    assert_eq!(keys.len(), 3 * KILLS, "each instance has called what it calls");
    assert!(keys.values().all(|known| known.len() == 1), "one key for one call: {keys:?}");
    let all: HashSet<&String> = keys.values().flatten().collect();
    assert_eq!(all.len(), keys.len(), "no key for two calls: {keys:?}");
}

/// As for calls: what a command has left behind it left with one key.
fn one_key_for_each_command(effects: &Path) {
    let log = std::fs::read_to_string(effects.join("log")).expect("what commands did");
    let mut keys: HashMap<&str, HashSet<&str>> = HashMap::new();
    for line in log.lines() {
        let (what, key) = line.rsplit_once(' ').expect("what and its key");
        keys.entry(what).or_default().insert(key);
    }
    assert_eq!(keys.len(), HEAVY.len() * KILLS.div_ceil(COMMANDS_EVERY), "each has run: {keys:?}");
    assert!(keys.values().all(|known| known.len() == 1), "one key for one command: {keys:?}");
}
