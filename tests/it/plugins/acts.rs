//! Plugins that start, signal and read workflows and notify: only as their manifest says, at once in routes, with the end of
//! the delivery in handlers, with the trust and the cause of what they act for.

use std::sync::OnceLock;

use serde_json::{Value, json};

use super::{built, install, installed, package};
use crate::harness::{Answer, Daemon};
use crate::workflows::{instance, room, start, stored, until};

/// Everything that the plugin's component needs.
const ALL: &str = "workflows = [{ name = \"order-*\", may = [\"start\", \"signal\", \"read\"] }]\nnotify = true\n\
                   sql = \"256KiB\"\n";
/// Waits for `order.paid`, and ends with what came.
const WAITS: &str = "do: [{hear: {listen: {to: {one: {with: {type: order.paid}}}}}}]";

/// The component, built from its source.
fn component() -> &'static [u8] {
    static BUILT: OnceLock<Vec<u8>> = OnceLock::new();
    BUILT.get_or_init(|| built("acts"))
}

fn packed(version: &str, permissions: &str) -> Vec<u8> {
    let manifest = format!(
        "name = \"acts\"\nversion = \"{version}\"\ndescription = \"d\"\ninterface = \"0.1\"\n\
         component = \"plugin.wasm\"\n[permissions]\n{permissions}\
         [[routes]]\nmethod = \"POST\"\npath = \"/acts\"\n[[events]]\ntypes = [\"acts.do\"]\n\
         [limits]\nmax_instances = 1\n"
    );
    package(&manifest, component())
}

fn daemon(toml: &str) -> Daemon {
    let daemon = Daemon::configured(toml);
    installed(&daemon, &packed("1.0.0", ALL), "approve=true");
    stored(&daemon, "order-a", WAITS);
    stored(&daemon, "other", WAITS);
    daemon
}

fn act(daemon: &Daemon, told: &Value) -> Answer {
    daemon.post("/api/v1/acts", told)
}

/// What the plugin says it did.
fn acted(daemon: &Daemon, told: &Value) -> Value {
    let answer = act(daemon, told);
    assert_eq!(answer.status, 200, "{answer:?}; {}", daemon.log());
    answer.json
}

fn detail(answer: &Answer) -> &str {
    answer.json["detail"].as_str().unwrap_or_default()
}

fn started_by_plugin(daemon: &Daemon) -> Vec<Value> {
    let all = daemon.all("/workflow-instances?limit=100").into_iter();
    all.filter(|one| one["started_by"] == "plugin/acts").collect()
}

fn told_by_plugin(daemon: &Daemon) -> Vec<Value> {
    daemon.all("/notifications?limit=100").into_iter().filter(|one| one["consumer"] == "plugin/acts").collect()
}

fn attempts(daemon: &Daemon, event: &str) -> Value {
    let dump = daemon.dump(event);
    let all = dump["deliveries"].as_array().cloned().unwrap_or_default();
    all.into_iter().find(|delivery| delivery["consumer"] == "plugin/acts").unwrap_or_else(|| panic!("{dump}"))
}

/// Goal: what the manifest does not ask for is refused by name, when the plugin is installed and when it tries; it is shown
/// before, afterwards, and as what an upgrade adds.
#[test]
fn nothing_is_done_that_was_not_agreed_to() {
    let daemon = Daemon::start();
    let refused = install(&daemon, &packed("1.0.0", "sql = \"256KiB\"\n"), "approve=true");
    assert_eq!((refused.status, refused.code()), (400, "invalid_plugin"), "{refused:?}");
    assert!(refused.json.to_string().contains("aman:plugin/notify, aman:plugin/workflows"), "{refused:?}");
    for (grant, said) in [
        ("workflows = [{ name = \"Order\", may = [\"start\"] }]\n", "the name of a workflow"),
        ("workflows = [{ name = \"*-order\", may = [\"start\"] }]\n", "the name of a workflow"),
        ("workflows = [{ name = \"order\", may = [] }]\n", "start, signal, read"),
        ("workflows = [{ name = \"order\", may = [\"cancel\"] }]\n", "start, signal, read"),
        ("workflows = [{ name = \"order\" }]\n", "may"),
    ] {
        let manifest = format!(
            "name = \"acts\"\nversion = \"1.0.0\"\ndescription = \"d\"\ninterface = \"0.1\"\n\
             component = \"plugin.wasm\"\n[permissions]\n{grant}"
        );
        let why = super::try_package(&manifest).unwrap_or_default();
        assert!(why.contains(said), "{grant}: {why}");
    }
    let little = "workflows = [{ name = \"order-a\", may = [\"start\"] }]\nnotify = true\nsql = \"256KiB\"\n";
    let waiting = installed(&daemon, &packed("1.0.0", little), "");
    assert_eq!(waiting["status"], "pending_consent");
    installed(&daemon, &packed("1.0.0", little), "approve=true");
    let shown = daemon.get("/plugin/acts").json;
    let words: Vec<&str> =
        shown["granted"].as_array().expect("a list").iter().filter_map(|one| one["text"].as_str()).collect();
    for text in ["start the workflow 'order-a'", "show you notifications"] {
        assert!(words.contains(&text), "{words:?}");
    }
    assert_eq!(shown["permissions"]["workflows"], json!([{ "name": "order-a", "may": ["start"] }]));
    assert_eq!(shown["permissions"]["notify"], true);

    stored(&daemon, "order-a", WAITS);
    stored(&daemon, "order-b", WAITS);
    let id = acted(&daemon, &json!({ "start": [{ "workflow": "order-a", "input": {} }] }))["started"]["id"].clone();
    let id = id.as_str().expect("an id");
    for (told, said) in [
        (json!({ "start": [{ "workflow": "order-b", "input": {} }] }), "start the workflow 'order-b'"),
        (json!({ "signal": [{ "id": id, "type": "order.paid", "data": 1 }] }), "signal the workflow 'order-a'"),
        (json!({ "read": id }), "read the workflow 'order-a'"),
    ] {
        let answer = act(&daemon, &told);
        assert_eq!((answer.status, answer.code()), (403, "plugin_denied"), "{answer:?}");
        assert!(detail(&answer).contains(&format!("the manifest does not ask to {said}")), "{answer:?}");
    }
    assert_eq!(started_by_plugin(&daemon).len(), 1);

    let more = installed(&daemon, &packed("1.1.0", ALL), "");
    let added: Vec<&str> =
        more["added"].as_array().expect("a list").iter().filter_map(|one| one["key"].as_str()).collect();
    assert_eq!(added, ["workflows read order-*", "workflows signal order-*", "workflows start order-*"]);
    let (_, out, _) = daemon.cli(&["plugin", "show", "acts"]);
    assert!(out.contains("read instances of any workflow whose name begins with 'order-'"), "{out}");
    assert!(act(&daemon, &json!({ "read": id })).status == 403, "until somebody agrees");
}

/// Goal: in a route a start, a signal and a notification are done when it answers; a key is one instance; what comes of it is
/// seen by the plugin and by everybody, and says who started it and how far it is trusted.
#[test]
fn routes_act_at_once() {
    let daemon = daemon("[plugin.acts]\nsecrets = { KEY = \"canary-of-acts\" }\n");
    let order =
        json!({ "start": [{ "workflow": "order-a", "input": { "n": 1, "key": "canary-of-acts" }, "key": "7" }] });
    let first = acted(&daemon, &order)["started"].clone();
    let id = first["id"].as_str().expect("an id").to_owned();
    let shown = instance(&daemon, &id);
    assert_eq!(
        (&first["is_new"], &shown["workflow"], &shown["trust"]),
        (&json!(true), &json!("order-a"), &json!("plugin"))
    );
    assert_eq!((&shown["started_by"], &shown["input"]["n"]), (&json!("plugin/acts"), &json!(1)), "{shown}");
    assert!(!shown.to_string().contains("canary"), "{shown}");
    assert_eq!(acted(&daemon, &order)["started"], json!({ "id": id, "is_new": false }), "a key is one instance");
    let own = daemon.post("/workflow/order-a/create", &json!({ "dedup_key": "7" }));
    assert_ne!(own.json["id"], json!(id), "and each plugin has keys of its own");
    until(&daemon, &id, "waiting");
    let read = acted(&daemon, &json!({ "read": id }))["read"].clone();
    assert_eq!(
        (&read["status"], &read["is_ended"], &read["output"]),
        (&json!("Status::Waiting"), &json!(false), &Value::Null)
    );

    let deaf = act(&daemon, &json!({ "signal": [{ "id": id, "type": "order.lost", "data": 1 }] }));
    assert_eq!((deaf.status, deaf.code()), (409, "invalid_state"), "{deaf:?}");
    acted(&daemon, &json!({ "signal": [{ "id": id, "type": "order.paid", "data": { "euro": 5 } }] }));
    let ended = until(&daemon, &id, "completed");
    assert_eq!(ended["output"], json!([{ "euro": 5 }]), "{ended}");
    let read = acted(&daemon, &json!({ "read": id }))["read"].clone();
    assert_eq!((&read["status"], &read["output"]), (&json!("Status::Completed"), &json!("[{\"euro\":5}]")), "{read}");
    assert!(read["took_ms"].is_u64(), "{read}");

    // What a plugin says to the owner's own instance makes it a plugin's word.
    let owners = start(&daemon, "order-a", json!({}));
    assert_eq!(until(&daemon, &owners, "waiting")["trust"], "owner");
    acted(&daemon, &json!({ "signal": [{ "id": owners, "type": "order.paid", "data": 1 }] }));
    assert_eq!(until(&daemon, &owners, "completed")["trust"], "plugin");

    acted(&daemon, &json!({ "notify": [{ "title": "Paid", "message": "canary-of-acts", "url": "/workflows" }] }));
    let told = told_by_plugin(&daemon).remove(0);
    let words = ["title", "category", "severity", "message"].map(|name| told[name].as_str().unwrap_or_default());
    assert_eq!((words[0], words[1], words[2], words[3].contains("canary")), ("Paid", "plugin", "warning", false));
    assert_eq!(told["action"], json!({ "label": "Look", "url": "/workflows" }));
    for (told, status, said) in [
        (json!({ "notify": [{ "title": "a\nb" }] }), 400, "title"),
        (json!({ "notify": [{ "title": "a", "url": "javascript:alert(1)" }] }), 400, "action.url"),
        (json!({ "start": [{ "workflow": "order-none", "input": 1 }] }), 404, "order-none"),
        (json!({ "start": [{ "workflow": "order-a", "input": 1, "key": "" }] }), 400, "dedup-key"),
        (json!({ "signal": [{ "id": "none", "type": "order.paid" }] }), 404, "none"),
        (json!({ "signal": [{ "id": id, "type": "order..paid" }] }), 400, "type"),
        (json!({ "signal": [{ "id": id, "type": "order.paid" }] }), 409, "ended"),
        (json!({ "read": "none" }), 404, "none"),
    ] {
        let answer = act(&daemon, &told);
        assert!(answer.status == status && answer.json.to_string().contains(said), "{told}: {answer:?}");
    }
    stored(&daemon, "order-a", &format!("input: {{schema: {{document: {{type: object}}}}}}\n{WAITS}"));
    let misfit = act(&daemon, &json!({ "start": [{ "workflow": "order-a", "input": 1 }] }));
    assert_eq!((misfit.status, misfit.fields()), (400, vec!["input"]), "{misfit:?}");
    assert_eq!(daemon.get("/audit-log/verify").json["ok"], true);
}

/// Goal: what a handler asked for before it fails never was; tried again it happens once, also beside SQL of its own and
/// over a kill; it carries on the trace and the cause of its event.
#[test]
fn handlers_act_with_the_end_of_their_delivery() {
    for sql in [false, true] {
        let mut daemon = daemon("");
        let waits = acted(&daemon, &json!({ "start": [{ "workflow": "order-a", "input": 0, "key": "waits" }] }));
        let waits = waits["started"]["id"].as_str().expect("an id").to_owned();
        until(&daemon, &waits, "waiting");
        let told = |then: &str| {
            json!({
                "sql": sql, "then": then, "notify": [{ "title": format!("Told, then {then}") }],
                "start": [{ "workflow": "order-a", "input": then, "key": then }, { "workflow": "order-a", "input": then }],
                "signal": [{ "id": waits, "type": "order.paid", "data": then }],
            })
        };
        for then in ["fail", "trap"] {
            let event = daemon.push("acts.do", told(then));
            daemon.wait("a failed attempt", || {
                attempts(&daemon, &event)["failures"].as_array().filter(|all| !all.is_empty()).map(drop)
            });
            assert_eq!((started_by_plugin(&daemon).len(), told_by_plugin(&daemon).len()), (1, 0), "after {then}");
            assert_eq!(instance(&daemon, &waits)["status"], "waiting", "after {then}");
            // It would be tried for long; switched off and purged, what waits is given up.
            assert_eq!(daemon.post("/plugin/acts/uninstall", &json!({})).status, 200);
            daemon.settle();
            installed(&daemon, &packed("1.0.0", ALL), "approve=true");
        }
        let event = daemon.push("acts.do", told("fail once"));
        daemon.settle();
        assert_eq!(attempts(&daemon, &event)["attempt"], 2);
        let check = |daemon: &Daemon| {
            let all = started_by_plugin(daemon);
            let new: Vec<&Value> = all.iter().filter(|one| one["input"] == "fail once").collect();
            assert_eq!((all.len(), new.len()), (3, 2), "{all:?}");
            for one in new {
                assert_eq!((&one["cause"]["id"], &one["trust"]), (&json!(event), &json!("plugin")), "{one}");
                assert_eq!(one["trace_id"], daemon.dump(&event)["event"]["traceid"], "{one}");
            }
            let told = told_by_plugin(daemon);
            assert_eq!(
                (told.len(), &told[0]["count"], &told[0]["event_id"]),
                (1, &json!(1), &json!(event)),
                "{told:?}"
            );
            assert_eq!(until(daemon, &waits, "completed")["output"], json!(["fail once"]));
        };
        check(&daemon);
        daemon.kill();
        daemon.again();
        daemon.settle();
        check(&daemon);
        // The same key once more: the instance is there, and the other one is new.
        daemon.push(
            "acts.do",
            json!({ "sql": sql, "start": [
            { "workflow": "order-a", "input": "again", "key": "fail once" },
            { "workflow": "order-a", "input": "again", "key": "twice" },
            { "workflow": "order-a", "input": "again", "key": "twice" },
        ] }),
        );
        daemon.settle();
        assert_eq!(started_by_plugin(&daemon).len(), 4);
        // What may not be done makes a dead letter that says so.
        let dead = daemon.push("acts.do", json!({ "start": [{ "workflow": "other", "input": 1 }] }));
        daemon.settle();
        let failed = attempts(&daemon, &dead);
        assert!(failed["status"] == "dead" && failed.to_string().contains("start the workflow 'other'"), "{failed}");
    }
}

/// Goal: a signal that finds no room when its delivery ends is not lost: the delivery fails with all that it asked for, says
/// why, and is done once there is room. One that would find no room already is refused to the plugin.
#[test]
fn signals_find_room_or_are_tried_again() {
    for sql in [false, true] {
        let daemon = daemon("");
        let ears = "do: [{l: {listen: {to: {any: [{with: {type: order.paid}}], until: 'length == 8'}}}}]";
        stored(&daemon, "order-ears", ears);
        let id = start(&daemon, "order-ears", json!({}));
        until(&daemon, &id, "waiting");
        assert_eq!(daemon.post(&format!("/workflow-instance/{id}/pause"), &json!({})).status, 200);
        assert_eq!(room::fill(&daemon, &id, "order.paid"), 6);
        // Each of them would find room, and both do not.
        let signal = |n: u64| json!({ "id": id, "type": "order.paid", "data": n });
        let title = "Told with the signals";
        let told = json!({ "sql": sql, "signal": [signal(7), signal(8)], "notify": [{ "title": title }] });
        let event = daemon.push("acts.do", told);
        daemon.until(&event, "dead");
        let dead = attempts(&daemon, &event).to_string();
        assert!(dead.contains("Too much waits for it already"), "{dead}");
        assert!(told_by_plugin(&daemon).is_empty(), "nothing of it was done");

        assert_eq!(act(&daemon, &json!({ "signal": [signal(7)] })).status, 200);
        let full = act(&daemon, &json!({ "signal": [signal(8)] }));
        assert_eq!((full.status, full.code()), (409, "invalid_state"), "{full:?}");
        assert_eq!(daemon.post(&format!("/workflow-instance/{id}/resume"), &json!({})).status, 200);
        daemon.wait("the seven to be heard", || {
            let again = act(&daemon, &json!({ "signal": [signal(0)] }));
            (again.status == 200).then_some(())
        });
        assert_eq!(until(&daemon, &id, "completed")["output"].as_array().map(Vec::len), Some(8));
        // By now nobody waits for it, which its next attempt says.
        let letter = daemon.get("/dlq").items().pop().expect("a dead letter");
        let path = format!("/dlq/{}/retry", letter["id"].as_str().expect("an id"));
        assert_eq!(daemon.post_confirmed(&path, &json!({ "reason": "room" })).status, 200);
        daemon.wait("what its next attempt says", || {
            attempts(&daemon, &event).to_string().contains("It has ended").then_some(())
        });
    }
}

/// Goal: what a plugin tells is counted when it is alike and summed up when it is too much, from routes and handlers together,
/// and of one call there may be so much.
#[test]
fn notifications_have_a_budget() {
    let daemon = daemon("[notifications]\nper_hour = 3\n");
    let tell = |title: &str| json!({ "notify": [{ "title": title }] });
    acted(&daemon, &tell("Alike"));
    for _ in 0..2 {
        daemon.push("acts.do", tell("Alike"));
    }
    for n in 0..3 {
        daemon.push("acts.do", tell(&format!("Number {n}")));
    }
    daemon.settle();
    acted(&daemon, &tell("One more"));
    let told = told_by_plugin(&daemon);
    let mut titles: Vec<&str> = told.iter().filter_map(|one| one["title"].as_str()).collect();
    titles.sort_unstable();
    assert_eq!(titles, ["Alike", "Number 0", "Number 1", "There is more of plugin/acts than is shown"]);
    let count = |title: &str| told.iter().find(|one| one["title"] == title).map(|one| one["count"].clone());
    assert_eq!((count("Alike"), count(titles[3])), (Some(json!(3)), Some(json!(2))), "{told:?}");
    let many: Vec<Value> = (0..65).map(|n| json!({ "title": format!("Many {n}") })).collect();
    let event = daemon.push("acts.do", json!({ "notify": many }));
    daemon.wait("a failed attempt", || attempts(&daemon, &event)["failures"][0].is_object().then_some(()));
    assert!(attempts(&daemon, &event).to_string().contains("64 starts, signals and notifications"));
}
