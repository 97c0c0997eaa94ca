//! The lifecycle events of the standard: what becomes of instances and tasks, told in the order in which it happened.

use serde_json::{Value, json};

use super::{define, instance, put, start, stored, until};
use crate::harness::Daemon;

const PREFIX: &str = "io.serverlessworkflow.";

/// What was told of an instance, in order.
fn told(daemon: &Daemon, id: &str) -> Vec<Value> {
    let mut all = daemon.recent("io.serverlessworkflow.**");
    all.retain(|event| event["subject"] == id);
    all.reverse();
    all
}

/// The types without what is the same in all of them; of tasks with their pointer.
fn kinds(told: &[Value]) -> Vec<String> {
    let kind = |event: &Value| {
        let kind = event["type"].as_str().and_then(|kind| kind.strip_prefix(PREFIX)?.strip_suffix(".v1"));
        let kind = kind.unwrap_or_else(|| panic!("{event}"));
        match event["data"]["task"].as_str() {
            Some(task) => format!("{kind} {task}"),
            None => kind.strip_prefix("workflow.").unwrap_or(kind).to_owned(),
        }
    };
    told.iter().map(kind).collect()
}

/// Goal: every state that the standard names is told once and in order, with the data that it wants, also over a kill.
#[test]
fn instances_tell_what_becomes_of_them() {
    let mut daemon = Daemon::start();
    let ears = "{l: {listen: {to: {one: {with: {type: go.on}}}}}}";
    stored(&daemon, "ears", &format!("do: [{ears}, {{w: {{wait: PT1H}}}}]"));
    stored(&daemon, "outer", "do: [{r: {run: {workflow: {namespace: test, name: ears, version: latest}}}}]");
    stored(&daemon, "fails", "do: [{r: {raise: {error: {type: 'https://e/x', status: 500, title: No}}}}]");
    stored(&daemon, "quick", "do: [{s: {set: {n: 1}}}]");
    let id = start(&daemon, "ears", json!({}));
    until(&daemon, &id, "waiting");
    let path = |what: &str| format!("/workflow-instance/{id}/{what}");
    assert_eq!(daemon.post(&path("pause"), &json!({})).status, 200);
    daemon.kill();
    daemon.again();
    assert_eq!(daemon.post(&path("resume"), &json!({})).status, 200);
    assert_eq!(daemon.post(&path("event"), &json!({ "type": "go.on" })).status, 200);
    daemon.wait("the event to be heard", || (instance(&daemon, &id)["current"] == "/do/1/w").then_some(()));
    assert_eq!(daemon.post_confirmed(&path("cancel"), &json!({})).status, 200);
    let all = told(&daemon, &id);
    let wanted = ["started", "correlation-started", "suspended", "resumed", "correlation-completed", "cancelled"];
    assert_eq!(kinds(&all), wanted);
    let name = format!("ears-{id}.test");
    assert!(all.iter().all(|event| event["data"]["name"] == name && event["source"] == "workflow/ears"), "{all:?}");
    let reference = json!({ "name": "ears", "namespace": "test", "version": "1.0.0" });
    assert_eq!(all[0]["data"]["definition"], reference, "{all:?}");
    for (event, when) in all.iter().zip(["started", "started", "suspended", "resumed", "completed", "cancelled"]) {
        let at = event["data"][format!("{when}At")].as_str().unwrap_or_default();
        assert!(aman::clock::parse_rfc3339(at).is_some(), "{event}");
    }

    let id = start(&daemon, "quick", json!({}));
    until(&daemon, &id, "completed");
    let all = told(&daemon, &id);
    assert_eq!(
        (kinds(&all), &all[1]["data"]["output"]),
        (vec!["started".into(), "completed".into()], &json!({ "n": 1 }))
    );
    let id = start(&daemon, "fails", json!({}));
    until(&daemon, &id, "faulted");
    let all = told(&daemon, &id);
    assert_eq!(
        (kinds(&all), &all[1]["data"]["error"]["title"]),
        (vec!["started".into(), "faulted".into()], &json!("No"))
    );

    let outer = start(&daemon, "outer", json!({}));
    let inner = || daemon.get("/workflow-instances?workflow=ears&status=waiting").items().pop();
    let inner = daemon.wait("the inner one", inner)["id"].as_str().expect("an id").to_owned();
    assert_eq!(daemon.post_confirmed(&format!("/workflow-instance/{outer}/cancel"), &json!({})).status, 200);
    for id in [&outer, &inner] {
        let all = daemon.wait("its end to be told", || Some(kinds(&told(&daemon, id))).filter(|all| all.len() > 1));
        assert_eq!((all.first(), all.last()), (Some(&"started".to_owned()), Some(&"cancelled".to_owned())), "{all:?}");
    }
}

/// Goal: a definition says whether its tasks are told, too, or nothing; workflows that hear of workflows end.
#[test]
fn definitions_say_what_is_told() {
    let daemon = Daemon::start();
    let metadata =
        |text: String, tell: &str| text.replace("1.0.0}", &format!("1.0.0, metadata: {{aman.events: {tell}}}}}"));
    let raise = "{r: {raise: {error: {type: 'https://e/x', status: 500}}}}";
    let body = format!(
        "do: [{{s: {{set: {{n: 1}}}}}}, {{no: {{if: 'false', set: {{n: 2}}}}}}, {{t: {{try: [{raise}], catch: {{retry: {{limit: {{attempt: {{count: 1}}}}}}, do: [{{d: {{set: {{n: 3}}}}}}]}}}}}}]"
    );
    assert_eq!(put(&daemon, "tasks", &metadata(define("tasks", &body), "tasks")).status, 201);
    assert_eq!(put(&daemon, "mute", &metadata(define("mute", &body), "none")).status, 201);
    let wrong = put(&daemon, "wrong", &metadata(define("wrong", &body), "some"));
    assert_eq!((wrong.status, wrong.fields()), (400, vec!["/document/metadata/aman.events"]), "{wrong:?}");
    let mute = start(&daemon, "mute", json!({}));
    let id = start(&daemon, "tasks", json!({}));
    until(&daemon, &id, "completed");
    let (set, tried, raised, done) = ("/do/0/s", "/do/2/t", "/do/2/t/try/0/r", "/do/2/t/catch/do/0/d");
    let begun = |task: &str| [format!("task.created {task}"), format!("task.started {task}")];
    let mut wanted = vec!["started".to_owned()];
    wanted.extend(begun(set).into_iter().chain([format!("task.completed {set}")]));
    wanted.extend(begun(tried));
    wanted.extend(begun(raised).into_iter().chain([format!("task.faulted {raised}")]));
    wanted
        .extend(begun(raised).into_iter().chain([format!("task.retried {raised}"), format!("task.faulted {raised}")]));
    wanted.extend(begun(done).into_iter().chain([format!("task.completed {done}"), format!("task.completed {tried}")]));
    wanted.push("completed".to_owned());
    let all = told(&daemon, &id);
    assert_eq!(kinds(&all), wanted);
    let names: Vec<&Value> = all.iter().filter_map(|event| event["data"].get("workflow")).collect();
    assert!(!names.is_empty() && names.iter().all(|name| **name == format!("tasks-{id}.test")), "{all:?}");
    until(&daemon, &mute, "completed");
    assert!(told(&daemon, &mute).is_empty());

    // One starts after every end, its own included; one waits for anything that such an event would be.
    let after = "schedule: {on: {one: {with: {type: io.serverlessworkflow.workflow.completed.v1}}}}";
    stored(&daemon, "after", &format!("{after}\ndo: [{{s: {{set: {{n: 1}}}}}}]"));
    stored(&daemon, "any", "schedule: {on: {one: {with: {source: workflow/quick}}}}\ndo: [{s: {set: {n: 1}}}]");
    stored(&daemon, "quick", "do: [{s: {set: {n: 1}}}]");
    let id = start(&daemon, "quick", json!({}));
    until(&daemon, &id, "completed");
    let instances = |name: &str| daemon.get(&format!("/workflow-instances?workflow={name}")).items();
    let next = daemon.wait("the next one", || instances("after").pop().filter(|one| one["status"] == "completed"));
    assert_eq!(next["cause"]["lifecycle"], true, "{next}");
    daemon.settle();
    assert_eq!((instances("after").len(), instances("any").len()), (1, 0));
}
