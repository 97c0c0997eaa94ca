//! Events for a plugin that is away: switched off, resting, or of a daemon that was killed. They wait, and cost nothing.

use serde_json::{Value, json};

use super::load::assert_handled_once;
use super::{EVENTS, PUBLISH, installed, packed};
use crate::harness::Daemon;

fn push(daemon: &Daemon, count: usize) -> Vec<String> {
    (0..count).map(|n| daemon.push("in.one", json!({ "n": n }))).collect()
}

fn delivery(daemon: &Daemon, id: &str) -> Value {
    let dump = daemon.dump(id);
    let all = dump["deliveries"].as_array().cloned().unwrap_or_default();
    let own = all.into_iter().find(|delivery| delivery["consumer"] == "plugin/probe");
    own.unwrap_or_else(|| panic!("no delivery: {dump}"))
}

/// Makes a plugin rest.
fn exhaust(daemon: &Daemon) {
    for _ in 0..5 {
        assert_eq!(daemon.get("/api/v1/trap").status, 502);
    }
    assert_eq!(daemon.get("/plugin/probe").json["state"], "quarantined");
}

/// Goal: what comes while a plugin is switched off is for it once it is back, also after a kill in between; `/why` says
/// that it matched, and no attempt is counted.
#[test]
fn events_wait_for_a_plugin_that_is_switched_off() {
    let mut daemon = Daemon::start();
    installed(&daemon, &packed("1.0.0", "one", &format!("{EVENTS}{PUBLISH}")), "approve=true");
    let mut pushed = push(&daemon, 3);
    assert_handled_once(&daemon, &pushed);
    assert_eq!(daemon.post_confirmed("/plugin/probe/disable", &json!({})).json["state"], "disabled");
    let while_off = push(&daemon, 5);
    assert_eq!(delivery(&daemon, &while_off[0])["status"], "pending");
    let why = daemon.get(&format!("/events/{}/why", while_off[0])).json;
    assert!(why.to_string().contains("plugin/probe"), "{why}");
    pushed.extend(while_off);
    daemon.kill();
    daemon.again();
    assert_eq!(daemon.get("/plugin/probe").json["state"], "disabled");
    pushed.extend(push(&daemon, 2));
    assert_eq!(daemon.recent("test.kind").len(), 3);
    assert_eq!(daemon.post("/plugin/probe/enable", &json!({})).json["state"], "active");
    assert_handled_once(&daemon, &pushed);
    assert!(pushed.iter().all(|id| delivery(&daemon, id)["attempt"] == 1));
}

/// Goal: what comes while a plugin rests is handled when it is back; neither the rest nor switching it off meanwhile
/// counts as an attempt; a new version takes what waits at once.
#[test]
fn events_wait_for_a_plugin_that_rests() {
    let daemon = Daemon::start();
    let with = format!("{EVENTS}{PUBLISH}");
    installed(&daemon, &packed("1.0.0", "one", &with), "approve=true");
    exhaust(&daemon);
    let mut pushed = push(&daemon, 3);
    assert_handled_once(&daemon, &pushed);
    exhaust(&daemon);
    pushed.extend(push(&daemon, 3));
    // One of them waits within its attempt; that the plugin goes away is not its fault.
    assert_eq!(daemon.post_confirmed("/plugin/probe/disable", &json!({})).json["state"], "disabled");
    pushed.extend(push(&daemon, 1));
    installed(&daemon, &packed("1.1.0", "two", &with), "approve=true");
    assert_eq!(daemon.post("/plugin/probe/enable", &json!({})).json["state"], "active");
    assert_handled_once(&daemon, &pushed);
    for id in &pushed {
        let delivery = delivery(&daemon, id);
        assert_eq!(
            (&delivery["attempt"], delivery["failures"].as_array().map(Vec::len)),
            (&json!(1), Some(0)),
            "{delivery}"
        );
    }
}

/// Goal: a daemon that ends while a plugin rests, in good order at once or by a kill, charges nothing for it: events that
/// are delivered at most once are not lost.
#[test]
fn events_that_wait_for_a_rest_outlive_the_daemon() {
    let mut daemon = Daemon::start();
    installed(&daemon, &packed("1.0.0", "one", &format!("{EVENTS}{PUBLISH}")), "approve=true");
    exhaust(&daemon);
    let once = json!({ "source": "test", "type": "in.one", "data": {}, "delivery": "at_most_once" });
    let answer = daemon.post("/events/push", &once);
    assert_eq!(answer.status, 202, "{answer:?}");
    let pushed = vec![answer.json["id"].as_str().expect("an id").to_owned()];
    assert_eq!(daemon.terminate(), Some(0));
    daemon.again();
    assert_ne!(delivery(&daemon, &pushed[0])["status"], "dead");
    daemon.kill();
    daemon.again();
    assert_handled_once(&daemon, &pushed);
    assert_eq!(delivery(&daemon, &pushed[0])["attempt"], 1);
}

/// Goal: what waits for a plugin that never comes back holds its events no longer than events are kept.
#[test]
fn waiting_ends_when_events_do() {
    let daemon = Daemon::configured("[bus.retention]\nmax_age = \"3s\"\n");
    installed(&daemon, &packed("1.0.0", "one", &format!("{EVENTS}{PUBLISH}")), "approve=true");
    assert_eq!(daemon.post_confirmed("/plugin/probe/disable", &json!({})).json["state"], "disabled");
    let pushed = daemon.push("in.one", json!({}));
    assert_eq!(daemon.outcome(&pushed), "pending");
    daemon
        .wait("it goes with its event", || (daemon.get(&format!("/events/dump/{pushed}")).status == 404).then_some(()));
    assert!(daemon.log().contains("given up"), "{}", daemon.log());
    assert_eq!(daemon.post("/plugin/probe/enable", &json!({})).json["state"], "active");
    daemon.settle();
    assert_eq!(daemon.recent("test.kind").len(), 0);
}
