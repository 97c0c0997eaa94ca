//! Many at once: slow calls hold up nobody, and what comes for an instance finds room or is refused.

use serde_json::{Value, json};

use super::lasting::{PRIVATE, silent};
use super::{completed, instance, start, stored, until};
use crate::harness::{Daemon, PATIENCE, TOKEN};

/// Instances that call at the same time; more than may be at work.
const CALLERS: usize = 80;

/// Bytes that may wait for one instance, in which the one that passes this still counts.
const INBOX_BYTES_MAX: usize = 4 << 20;

/// Sends a paused instance so much of a type that there is room for just one more. Gives the number of events.
pub fn fill(daemon: &Daemon, id: &str, kind: &str) -> usize {
    let send = |bytes: usize| {
        let event = json!({ "type": kind, "data": "x".repeat(bytes) });
        let answer = daemon.post(&format!("/workflow-instance/{id}/event"), &event);
        assert_eq!(answer.status, 200, "{answer:?}");
    };
    (0..5).for_each(|_| send(700_000));
    let database = rusqlite::Connection::open(daemon.home().join("aman.db")).expect("the database");
    let sum = "SELECT sum(octet_length(body)) FROM workflow_inbox";
    let waiting: i64 = database.query_row(sum, [], |row| row.get(0)).expect("a sum");
    let waiting = usize::try_from(waiting).expect("it is not negative");
    let around = waiting / 5 - 700_000;
    send(INBOX_BYTES_MAX - waiting - around - 1);
    6
}

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

/// Goal: nothing that was acknowledged is lost: for what finds no room its sender hears so, and can send it again.
#[test]
fn what_finds_no_room_is_refused() {
    let daemon = Daemon::start();
    stored(&daemon, "ears", "do: [{l: {listen: {to: {any: [{with: {type: tick.tock}}], until: 'length == 8'}}}}]");
    let id = start(&daemon, "ears", json!({}));
    until(&daemon, &id, "waiting");
    let path = |what: &str| format!("/workflow-instance/{id}/{what}");
    assert_eq!(daemon.post(&path("pause"), &json!({})).status, 200);
    assert_eq!(fill(&daemon, &id, "tick.tock"), 6);
    let send = |n: u64| daemon.post(&path("event"), &json!({ "type": "tick.tock", "data": n }));
    assert_eq!(send(7).status, 200);
    let full = send(8);
    assert_eq!((full.status, full.code()), (409, "invalid_state"), "{full:?}");
    assert!(full.json["detail"].as_str().is_some_and(|text| text.contains("Too much waits for it")), "{full:?}");
    assert_eq!(daemon.post(&path("resume"), &json!({})).status, 200);
    daemon.wait("room for it", || (send(8).status == 200).then_some(()));
    let output = until(&daemon, &id, "completed")["output"].clone();
    assert_eq!((output.as_array().map(Vec::len), &output[6], &output[7]), (Some(8), &json!(7), &json!(8)));
}
