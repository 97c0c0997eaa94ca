//! What must last: keys of calls without an answer, events of ends, what instances wait for, schedules, and bounds.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::{Value, json};

use super::{define, instance, put, start, stored, until};
use crate::harness::{Daemon, Folder, Seed};
use crate::peer::Peer;

pub const PRIVATE: &str = "[http_client]\nallow_private = true\n";

/// A server that leaves its first `silent` requests without an answer. Gives its address and the requests as they come.
pub fn silent(silent: usize) -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/", listener.local_addr().expect("an address"));
    let (told, requests) = channel();
    std::thread::spawn(move || {
        let mut open: Vec<TcpStream> = Vec::new();
        for (n, connection) in listener.incoming().flatten().enumerate() {
            let mut connection = connection;
            let mut head = vec![0; 8192];
            let read = connection.read(&mut head).unwrap_or(0);
            if told.send(String::from_utf8_lossy(&head[..read]).into_owned()).is_err() {
                return;
            }
            if n >= silent {
                let answer = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";
                let _sent = connection.write_all(answer.as_bytes());
            } else {
                open.push(connection);
            }
        }
    });
    (url, requests)
}

fn key_of(request: &str) -> String {
    let key = request.lines().find_map(|line| line.strip_prefix("idempotency-key: "));
    key.unwrap_or_else(|| panic!("no key: {request}")).to_owned()
}

/// Goal: a call that its own time limit cut off is repeated with its key, by `retry` and by hand, and says that its outcome
/// is unknown.
#[test]
fn a_call_that_timed_out_is_repeated_with_its_key() {
    let daemon = Daemon::configured(PRIVATE);
    let (url, requests) = silent(2);
    let call = |url: &str| {
        format!("call: http, with: {{method: post, endpoint: '{url}'}}, timeout: {{after: {{milliseconds: 400}}}}")
    };
    let retry = "catch: {retry: {delay: {milliseconds: 10}, limit: {attempt: {count: 5}}}}";
    stored(&daemon, "tried", &format!("do: [{{t: {{try: [{{c: {{{}}}}}], {retry}}}}}]", call(&url)));
    let id = start(&daemon, "tried", json!({}));
    until(&daemon, &id, "completed");
    let keys: Vec<String> = requests.try_iter().map(|request| key_of(&request)).collect();
    assert_eq!(keys.len(), 3);
    assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");

    let (url, requests) = silent(1);
    stored(&daemon, "plain", &format!("do: [{{c: {{{}}}}}]", call(&url)));
    let id = start(&daemon, "plain", json!({}));
    let shown = until(&daemon, &id, "faulted");
    let detail = shown["error"]["detail"].as_str().unwrap_or_default().to_owned();
    assert!(shown["error"]["status"] == 408 && detail.contains("unknown_outcome"), "{shown}");
    assert_eq!(daemon.post_confirmed(&format!("/workflow-instance/{id}/retry"), &json!({})).status, 200);
    until(&daemon, &id, "completed");
    let keys: Vec<String> = requests.try_iter().map(|request| key_of(&request)).collect();
    assert!(keys.len() == 2 && keys[0] == keys[1], "{keys:?}");
}

/// Goal: a workflow that a time limit of its parent cut off is started again with the keys of its calls, by `retry` and by
/// hand, also when another one stands between.
#[test]
fn a_workflow_that_timed_out_is_repeated_with_its_keys() {
    let daemon = Daemon::configured(PRIVATE);
    let run = |name: &str| format!("run: {{workflow: {{namespace: test, name: {name}, version: latest}}}}");
    let limit = "timeout: {after: {milliseconds: 700}}";
    let retry = "catch: {retry: {delay: {milliseconds: 10}, limit: {attempt: {count: 20}}}}";
    for (name, below, by_hand) in [("tried", "inner", false), ("far", "middle", false), ("plain", "middle", true)] {
        let (url, requests) = silent(2);
        let first = "{s: {set: {n: 1}}}, {w: {wait: {milliseconds: 1}}}";
        stored(
            &daemon,
            "inner",
            &format!("do: [{first}, {{c: {{call: http, with: {{method: post, endpoint: '{url}'}}}}}}]"),
        );
        stored(&daemon, "middle", &format!("do: [{{m: {{{}}}}}]", run("inner")));
        let task = format!("{{r: {{{}, {limit}}}}}", run(below));
        let body = if by_hand { task } else { format!("{{t: {{try: [{task}], {retry}}}}}") };
        stored(&daemon, name, &format!("do: [{body}]"));
        let id = start(&daemon, name, json!({}));
        daemon.wait(&format!("{name} to complete"), || {
            let shown = instance(&daemon, &id);
            if by_hand && shown["status"] == "faulted" {
                let detail = shown["error"]["detail"].as_str().unwrap_or_default();
                assert!(detail.contains("unknown_outcome"), "{shown}");
                daemon.post_confirmed(&format!("/workflow-instance/{id}/retry"), &json!({}));
            }
            (shown["status"] == "completed").then_some(())
        });
        let keys: Vec<String> = requests.try_iter().map(|request| key_of(&request)).collect();
        assert_eq!(keys.len(), 3, "{name}: {keys:?}");
        assert!(keys.iter().all(|key| *key == keys[0]), "{name}: {keys:?}");
    }
    // A call that was answered is another one when it is made again.
    let all = daemon.all("/workflow-instances?workflow=inner&limit=100");
    let ended = |one: &Value| ["completed", "cancelled"].iter().any(|status| one["status"] == *status);
    assert!(all.iter().all(ended), "{all:?}");
}

/// Goal: whenever the daemon is killed, an instance that faulted has told so once.
#[test]
fn a_fault_and_its_event_come_together() {
    let seed = Seed::take();
    let mut rng = seed.rng(1);
    let mut daemon = Daemon::start();
    stored(
        &daemon,
        "fails",
        "do: [{w: {wait: {milliseconds: 20}}}, {r: {raise: {error: {type: 'https://e/x', status: 500, title: No}}}}]",
    );
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.extend((0..40).map(|_| start(&daemon, "fails", json!({}))));
        std::thread::sleep(Duration::from_millis(rng.u64(0..100)));
        daemon.kill();
        daemon.again();
    }
    ids.iter().for_each(|id| drop(until(&daemon, id, "faulted")));
    let mut told: HashMap<String, usize> = HashMap::new();
    for event in daemon.recent("aman.workflow.faulted") {
        *told.entry(event["subject"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
    }
    let silent: Vec<&String> = ids.iter().filter(|id| told.get(*id) != Some(&1)).collect();
    assert!(silent.is_empty(), "of {} these told not once: {silent:?}", ids.len());
}

/// Goal: instances of a removed workflow, and of an old version that is taken up again, hear what they wait for.
#[test]
fn instances_outlive_their_definition() {
    let peer = Peer::start();
    let mut daemon = Daemon::configured(PRIVATE);
    let listen = |kind: &str| format!("{{l: {{listen: {{to: {{one: {{with: {{type: {kind}}}}}}}}}}}}}");
    stored(
        &daemon,
        "ears",
        &format!("schedule: {{on: {{one: {{with: {{type: ear.grown}}}}}}}}\ndo: [{}]", listen("ear.rung")),
    );
    daemon.push("ear.grown", json!({}));
    let waiting = || daemon.get("/workflow-instances?workflow=ears&status=waiting").items().pop();
    let id = daemon.wait("the instance", waiting)["id"].as_str().expect("an id").to_owned();
    assert_eq!(daemon.call("DELETE", "/workflow/ears", None).json["deleted"], true);
    daemon.kill();
    daemon.again();
    daemon.push("ear.grown", json!({}));
    daemon.push("ear.rung", json!({ "n": 1 }));
    assert_eq!(until(&daemon, &id, "completed")["output"], json!([{ "n": 1 }]));
    assert_eq!(daemon.all("/workflow-instances?workflow=ears&limit=10").len(), 1, "nothing starts what was removed");
    daemon.wait("nobody to be there any more", || {
        let late = daemon.push("ear.rung", json!({}));
        let why = daemon.get(&format!("/events/{late}/why")).json;
        (!why.to_string().contains("workflow/ears")).then_some(())
    });

    peer.answer("503 Service Unavailable", &[], "");
    peer.answer("200 OK", &[], "");
    let call = format!("{{c: {{call: http, with: {{method: post, endpoint: '{}/'}}}}}}", peer.url());
    stored(&daemon, "aged", &format!("do: [{call}, {}]", listen("old.kind")));
    let id = start(&daemon, "aged", json!({}));
    until(&daemon, &id, "faulted");
    stored(&daemon, "aged", &format!("do: [{}]", listen("new.kind")));
    assert_eq!(daemon.post_confirmed(&format!("/workflow-instance/{id}/retry"), &json!({})).status, 200);
    until(&daemon, &id, "waiting");
    daemon.push("old.kind", json!({ "n": 2 }));
    assert_eq!(until(&daemon, &id, "completed")["output"], json!([{ "n": 2 }]));
}

/// Goal: the end of an instance by hand is an end like any other for its schedule, and for what it waits for.
#[test]
fn a_cancelled_instance_ends_neither_its_schedule_nor_leaves_children() {
    let daemon = Daemon::start();
    stored(&daemon, "again", "schedule: {after: {seconds: 1}}\ndo: [{w: {wait: PT1H}}]");
    let waiting = |name: &str| daemon.get(&format!("/workflow-instances?workflow={name}&status=waiting")).items();
    let first = daemon.wait("the first", || waiting("again").pop())["id"].as_str().expect("an id").to_owned();
    assert_eq!(daemon.post_confirmed(&format!("/workflow-instance/{first}/cancel"), &json!({})).status, 200);
    let second = daemon.wait("the next one", || waiting("again").pop());
    assert_ne!(second["id"].as_str(), Some(first.as_str()));

    stored(&daemon, "inner", "do: [{w: {wait: PT1H}}]");
    let run = "run: {workflow: {namespace: test, name: inner, version: latest}}";
    stored(
        &daemon,
        "outer",
        &format!(
            "do: [{{t: {{try: [{{r: {{{run}, timeout: {{after: {{milliseconds: 300}}}}}}}}], catch: {{do: [{{s: {{set: {{late: true}}}}}}]}}}}}}]"
        ),
    );
    let id = start(&daemon, "outer", json!({}));
    assert_eq!(until(&daemon, &id, "completed")["output"], json!({ "late": true }));
    let inner = daemon.get("/workflow-instances?workflow=inner").items().pop().expect("one was started");
    until(&daemon, inner["id"].as_str().expect("an id"), "cancelled");
}

/// Goal: a workflow that nobody waits for any more when its start would be stored is not started.
#[test]
fn a_workflow_that_lost_its_race_is_not_started() {
    let daemon = Daemon::start();
    stored(&daemon, "inner", "do: [{w: {wait: PT1H}}]");
    let run = "run: {workflow: {namespace: test, name: inner, version: latest}}";
    let fork = format!("{{f: {{fork: {{compete: true, branches: [{{a: {{{run}}}}}, {{b: {{set: {{won: 1}}}}}}]}}}}}}");
    stored(&daemon, "outer", &format!("do: [{fork}]"));
    let id = start(&daemon, "outer", json!({}));
    assert_eq!(until(&daemon, &id, "completed")["output"], json!({ "won": 1 }));
    assert!(daemon.get("/workflow-instances?workflow=inner").items().is_empty(), "it was left before");
}

/// Goal: a removed workflow gets no more events once its last instance was cancelled with its parent.
#[test]
fn a_removed_workflow_hears_nothing_after_its_last_instance() {
    let daemon = Daemon::start();
    stored(&daemon, "ears", "do: [{l: {listen: {to: {one: {with: {type: ear.rung}}}}}}]");
    stored(&daemon, "outer", "do: [{r: {run: {workflow: {namespace: test, name: ears, version: latest}}}}]");
    let id = start(&daemon, "outer", json!({}));
    daemon.wait("the inner one", || daemon.get("/workflow-instances?workflow=ears&status=waiting").items().pop());
    assert_eq!(daemon.call("DELETE", "/workflow/ears", None).status, 200);
    let hears = || {
        let event = daemon.push("ear.pulled", json!({}));
        let why = daemon.get(&format!("/events/{event}/why?all=true")).json;
        why.to_string().contains("workflow/ears")
    };
    assert!(hears(), "its instance listens still");
    assert_eq!(daemon.post_confirmed(&format!("/workflow-instance/{id}/cancel"), &json!({})).status, 200);
    assert!(!hears(), "nobody is there any more");
}

/// Goal: a stored definition or state that cannot be read any more ends the instances that need it, says so, and takes no
/// events from the others.
#[test]
fn what_cannot_be_read_ends_only_those_who_need_it() {
    let mut daemon = Daemon::start();
    let ears = |n: usize| {
        format!("do: [{{s: {{set: {{n: {n}}}}}}}, {{l: {{listen: {{to: {{one: {{with: {{type: ear.rung}}}}}}}}}}}}]")
    };
    let listening = |n: usize| {
        stored(&daemon, "ears", &ears(n));
        let id = start(&daemon, "ears", json!({}));
        until(&daemon, &id, "waiting");
        id
    };
    let [old, garbled, well] = [1, 2, 2].map(listening);
    let digest = instance(&daemon, &old)["digest"].as_str().expect("a digest").to_owned();
    daemon.kill();
    let database = rusqlite::Connection::open(daemon.home().join("aman.db")).expect("the database");
    for (sql, of) in [
        ("UPDATE workflow_definition SET text = 'do: [' WHERE digest = ?1", &digest),
        ("UPDATE workflow_instance SET state = '{' WHERE id = ?1", &garbled),
    ] {
        assert_eq!(database.execute(sql, [of]).expect("it is changed"), 1);
    }
    drop(database);
    daemon.again();
    daemon.push("ear.rung", json!({ "heard": 1 }));
    assert_eq!(until(&daemon, &well, "completed")["output"], json!([{ "heard": 1 }]));
    for id in [&old, &garbled] {
        let shown = until(&daemon, id, "faulted");
        assert!(shown["error"]["detail"].as_str().is_some_and(|text| !text.is_empty()), "{shown}");
        daemon.wait("the event that tells of it", || {
            daemon.recent("aman.workflow.faulted").into_iter().find(|one| one["subject"] == json!(id))
        });
        let again = daemon.post_confirmed(&format!("/workflow-instance/{id}/retry"), &json!({}));
        assert!(again.status >= 400, "{again:?}");
    }
    daemon.settle();
}

/// Goal: an instance that is taken up again hears of what ended while it had ended itself.
#[test]
fn a_retried_instance_hears_of_children_that_ended_meanwhile() {
    let peer = Peer::start();
    let daemon = Daemon::configured(PRIVATE);
    stored(&daemon, "inner", "do: [{l: {listen: {to: {one: {with: {type: go.on}}}}}}]");
    let run = "run: {workflow: {namespace: test, name: inner, version: latest}}";
    let call = format!("call: http, with: {{method: post, endpoint: '{}/'}}", peer.url());
    stored(
        &daemon,
        "outer",
        &format!(
            "do: [{{f: {{fork: {{branches: [{{a: {{{run}}}}}, {{b: {{do: [{{w: {{wait: {{milliseconds: 200}}}}}}, {{c: {{{call}}}}}]}}}}]}}}}}}]"
        ),
    );
    peer.answer("503 Service Unavailable", &[], "");
    peer.answer("200 OK", &[("content-type", "application/json")], "{}");
    let id = start(&daemon, "outer", json!({}));
    until(&daemon, &id, "faulted");
    let inner = daemon.get("/workflow-instances?workflow=inner").items().pop().expect("one was started");
    let inner = inner["id"].as_str().expect("an id");
    until(&daemon, inner, "waiting");
    daemon.push("go.on", json!(7));
    until(&daemon, inner, "completed");
    assert_eq!(daemon.post_confirmed(&format!("/workflow-instance/{id}/retry"), &json!({})).status, 200);
    assert_eq!(until(&daemon, &id, "completed")["output"], json!([[7], {}]));
}

/// Goal: an instance that holds too much ends with an error that says so, and nothing grows without bound.
#[test]
fn an_instance_holds_a_bounded_amount() {
    let daemon = Daemon::start();
    let big = "{b: {set: {x: '${ \"0123456789\" * 150000 }'}}}";
    let mut nested = "{w: {wait: PT1H}}".to_owned();
    for n in 0..8 {
        nested = format!("{{d{n}: {{do: [{nested}]}}}}");
    }
    stored(&daemon, "deep", &format!("do: [{big}, {nested}]"));
    let branches: Vec<String> = (0..50).map(|n| format!("{{f{n}: {{set: {{n: {n}}}}}}}")).collect();
    stored(&daemon, "wide", &format!("do: [{big}, {{f: {{fork: {{branches: [{}]}}}}}}]", branches.join(", ")));
    let many: Vec<String> = (0..20).map(|n| format!("n{n}: '${{ .x }}'")).collect();
    stored(&daemon, "many", &format!("do: [{big}, {{m: {{set: {{{}}}}}}}]", many.join(", ")));
    for name in ["deep", "wide", "many"] {
        let id = start(&daemon, name, json!({}));
        let error = until(&daemon, &id, "faulted")["error"].clone();
        assert_eq!(error["title"], "Too much data", "{name}: {error}");
        assert!(error["detail"].as_str().is_some_and(|text| text.contains("MiB")), "{name}: {error}");
        // Taken up again it ends in the same way, and does not go round and round.
        assert_eq!(daemon.post_confirmed(&format!("/workflow-instance/{id}/retry"), &json!({})).status, 200);
        assert_eq!(until(&daemon, &id, "faulted")["error"]["title"], "Too much data", "{name}");
        daemon.wait("it to be told twice", || {
            let told = daemon.recent("aman.workflow.faulted");
            (told.iter().filter(|one| one["subject"] == json!(id)).count() == 2).then_some(())
        });
    }
    daemon.writes_nothing_for(Duration::from_millis(300));

    stored(&daemon, "ears", "do: [{l: {listen: {to: {any: [{with: {type: tick.tock}}], until: 'length == 5000'}}}}]");
    let id = start(&daemon, "ears", json!({}));
    until(&daemon, &id, "waiting");
    assert_eq!(daemon.post(&format!("/workflow-instance/{id}/pause"), &json!({})).status, 200);
    let event = json!({ "source": "test", "type": "tick.tock", "data": { "n": 1 } });
    for _ in 0..2 {
        let batch: Vec<Value> = (0..600)
            .map(|_| json!({ "specversion": "1.0", "id": aman::id::fresh(), "source": "test", "type": "tick.tock", "data": event["data"] }))
            .collect();
        let token = format!("Bearer {}", crate::harness::TOKEN);
        let headers = [("authorization", token.as_str()), ("content-type", "application/cloudevents-batch+json")];
        assert_eq!(daemon.send("POST", "/events/push", &headers, Some(&json!(batch))).status, 202);
    }
    daemon.settle();
    let more = daemon.post(&format!("/workflow-instance/{id}/event"), &json!({ "type": "tick.tock" }));
    assert_eq!((more.status, more.code()), (409, "invalid_state"), "{more:?}");
    assert_eq!(daemon.post(&format!("/workflow-instance/{id}/resume"), &json!({})).status, 200);
    let error = until(&daemon, &id, "faulted")["error"].clone();
    assert!(
        error["title"] == "Too much data" && error["detail"].as_str().is_some_and(|text| text.contains("events")),
        "{error}"
    );
    // What it had lost is known; it may listen on.
    assert_eq!(daemon.post_confirmed(&format!("/workflow-instance/{id}/retry"), &json!({})).status, 200);
    until(&daemon, &id, "waiting");
}

/// Goal: ended instances and definitions that nothing uses go by their age; what is open stays, with its definition.
#[test]
fn old_instances_and_definitions_go() {
    let folder = Folder::new("old-flows");
    std::fs::write(folder.path().join("aman.toml"), "[bus]\nretention = { workflows = \"1s\" }\n").expect("aman.toml");
    let daemon = Daemon::start_in(folder.path());
    let version = |n: usize| {
        define("old", &format!("do: [{{s: {{set: {{n: {n}}}}}}}, {{w: {{wait: '${{ {{seconds: .n}} }}'}}}}]"))
    };
    assert_eq!(put(&daemon, "old", &version(0)).status, 201);
    let done = start(&daemon, "old", json!({}));
    until(&daemon, &done, "completed");
    assert_eq!(put(&daemon, "old", &version(3600)).status, 200);
    let open = start(&daemon, "old", json!({}));
    until(&daemon, &open, "waiting");
    assert_eq!(put(&daemon, "old", &version(1)).status, 200);
    let versions = || daemon.get("/workflow/old").json["versions"].as_array().map_or(0, Vec::len);
    let prune = || daemon.post_confirmed("/db/prune", &json!({})).json;
    let gone = daemon.wait("the old ones to go", || {
        let report = prune();
        (daemon.get(&format!("/workflow-instance/{done}")).status == 404 && versions() == 2).then_some(report)
    });
    assert!(gone.get("workflow_instances").is_some(), "{gone}");
    assert_eq!(instance(&daemon, &open)["status"], "waiting");
    assert_eq!(daemon.post_confirmed(&format!("/workflow-instance/{open}/cancel"), &json!({})).status, 200);
    daemon.wait("the rest to go", || {
        prune();
        (daemon.get(&format!("/workflow-instance/{open}")).status == 404 && versions() == 1).then_some(())
    });
    let now = start(&daemon, "old", json!({}));
    until(&daemon, &now, "completed");
}
