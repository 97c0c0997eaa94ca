//! Many at once: slow calls hold up nobody, and what comes for an instance finds room or is refused.

use serde_json::{Value, json};

use super::lasting::{PRIVATE, silent};
use super::{completed, instance, start, stored};
use crate::harness::{Daemon, PATIENCE, TOKEN};

/// Instances that call at the same time; more than may be at work.
const CALLERS: usize = 80;

/// Pushes so many events of a type together.
fn push_many(daemon: &Daemon, kind: &str, count: usize) {
    let event =
        |n: usize| json!({ "specversion": "1.0", "id": aman::id::fresh(), "source": "test", "type": kind, "data": n });
    let batch: Vec<Value> = (0..count).map(event).collect();
    let token = format!("Bearer {TOKEN}");
    let headers = [("authorization", token.as_str()), ("content-type", "application/cloudevents-batch+json")];
    assert_eq!(daemon.send("POST", "/events/push", &headers, Some(&json!(batch))).status, 202);
}

/// Goal: while more instances than may be at work wait for calls that are not answered, others run, hear events and are
/// cancelled as ever; and one that waits for a call itself hears everything that came while it was paused.
#[test]
fn slow_calls_hold_up_nobody() {
    let daemon = Daemon::configured(PRIVATE);
    let (url, requests) = silent(CALLERS + 1);
    let call = format!("call: http, with: {{method: post, endpoint: '{url}'}}");
    stored(&daemon, "calls", &format!("do: [{{c: {{{call}}}}}]"));
    stored(&daemon, "quick", "do: [{s: {set: {n: 1}}}]");
    let ears = "{l: {listen: {to: {any: [{with: {type: tick.tock}}], until: 'length == 300'}}}}";
    stored(&daemon, "both", &format!("do: [{{f: {{fork: {{branches: [{{c: {{{call}}}}}, {ears}]}}}}}}]"));
    let ids: Vec<String> = (0..CALLERS).map(|_| start(&daemon, "calls", json!({}))).collect();
    let both = start(&daemon, "both", json!({}));
    for n in 0..=CALLERS {
        requests.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("only {n} calls are under way"));
    }
    assert_eq!(completed(&daemon, "quick", json!({})), json!({ "n": 1 }));

    let path = |what: &str| format!("/workflow-instance/{both}/{what}");
    assert_eq!(daemon.post(&path("pause"), &json!({})).status, 200);
    push_many(&daemon, "tick.tock", 300);
    daemon.settle();
    assert_eq!(daemon.post(&path("resume"), &json!({})).status, 200);
    let heard = daemon.wait("the branch that listens to end", || {
        let steps = instance(&daemon, &both)["steps"].as_array().cloned().unwrap_or_default();
        steps.into_iter().find(|step| step["task"] == "/do/0/f/fork/branches/1/l" && step["status"] == "completed")
    });
    assert_eq!(heard["output"].as_array().map(Vec::len), Some(300), "{heard}");
    for id in ids.iter().chain([&both]) {
        let answer = daemon.post_confirmed(&format!("/workflow-instance/{id}/cancel"), &json!({}));
        assert_eq!(answer.json["status"], "cancelled", "{answer:?}");
    }
}
