//! `/events/{id}/why`: each reason, then and now, with what conditions read, what came of it and where it came from.

use serde_json::{Value, json};

use crate::harness::{Daemon, Folder, write_skill};

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_else(|| panic!("{name} in {value}"))
}

fn why(daemon: &Daemon, id: &str, query: &str) -> Value {
    let answer = daemon.get(&format!("/events/{id}/why?{query}"));
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json
}

/// What was considered for a skill.
fn considered(why: &Value, skill: &str) -> Value {
    let name = format!("skill/{skill}");
    let list = why["considered"].as_array().expect("considered");
    list.iter().find(|one| one["consumer"] == name.as_str()).unwrap_or_else(|| panic!("{name} in {why}")).clone()
}

/// Goal: for each consumer the reason that decided, then for those whose type matched, now for the rest when asked; also
/// after the rules have changed, and after a restart.
#[test]
fn every_reason_is_told() {
    let folder = Folder::new("why");
    let home = folder.path();
    write_skill(home, "wants", &["aman.on: t.*", "aman.when: .data.n > 5"], "exit 0");
    write_skill(home, "unwilling", &["aman.on: t.a x.y", "aman.when: .data.n > 50 and .source == \"test\""], "exit 0");
    write_skill(home, "confused", &["aman.on: t.a", "aman.when: .data.n | ltrimstr(1) | error"], "exit 0");
    write_skill(home, "off", &["aman.on: t.a"], "exit 0");
    write_skill(home, "other", &["aman.on: o.**"], "exit 0");
    let mut daemon = Daemon::start_in(home);
    daemon.post("/skill/off/disable", &json!({}));
    let id = daemon.push("t.a", json!({"n": 7}));
    daemon.settle();
    write_skill(home, "late", &["aman.on: t.a"], "exit 0");
    assert_eq!(daemon.post("/skills/reload", &json!({})).json["added"], json!(["late"]));

    let decided = [
        ("wants", true, "matched", "then"),
        ("unwilling", false, "condition_false", "then"),
        ("confused", false, "condition_error", "then"),
        ("off", false, "disabled", "then"),
        ("other", false, "type_mismatch", "now"),
        ("late", false, "added_later", "now"),
    ];
    for round in ["at once", "with other rules", "after a restart"] {
        let (short, all) = (why(&daemon, &id, ""), why(&daemon, &id, "all=true"));
        assert_eq!(short["considered"].as_array().map(Vec::len), Some(4), "{short}");
        for (skill, matched, reason, evaluated) in decided {
            let one = considered(&all, skill);
            let told = (one["matched"].as_bool(), text(&one, "reason"), text(&one, "evaluated"), text(&one, "kind"));
            assert_eq!(told, (Some(matched), reason, evaluated, "skill"), "{round} {skill}");
            let asked = why(&daemon, &id, &format!("consumer=skill/{skill}"));
            assert_eq!(asked["considered"], json!([one]), "{round} {skill}");
        }
        assert_eq!(considered(&all, "wants")["values"], json!({".data.n": 7}));
        assert_eq!(considered(&all, "unwilling")["values"][".data.n"], 7);
        assert!(text(&considered(&all, "unwilling"), "rule").contains(".data.n > 50"), "{all}");
        assert!(text(&considered(&all, "other"), "rule").contains("o.**"), "{all}");
        assert!(considered(&all, "confused")["error"].is_string(), "{all}");
        match round {
            // What was decided then does not change with the rules.
            "at once" => {
                write_skill(
                    home,
                    "unwilling",
                    &["aman.on: t.a x.y", "aman.when: .data.n > 50 and .source == \"test\""],
                    "exit 0 # new",
                );
                daemon.post("/skill/off/enable", &json!({}));
                daemon.post("/skill/wants/disable", &json!({}));
            }
            "with other rules" => {
                daemon.kill();
                daemon.again();
            }
            _ => {}
        }
    }
    let unknown = daemon.get(&format!("/events/{id}/why?consumer=skill/nobody"));
    assert_eq!((unknown.status, unknown.code()), (404, "not_found"));
    let bad = daemon.get(&format!("/events/{id}/why?all=maybe"));
    assert_eq!((bad.status, bad.fields()), (400, vec!["all"]));
}

/// Goal: each state of an event is told, the first that holds.
#[test]
fn every_status_is_told() {
    let folder = Folder::new("why");
    let home = folder.path();
    write_skill(home, "fine", &["aman.on: t.fine t.both t.late"], "exit 0");
    write_skill(home, "dies", &["aman.on: t.dies t.both"], "exit 65");
    let gate = "while [ ! -e \"$AMAN_DATA/heal/on\" ]; do sleep 0.02; done";
    write_skill(home, "waits", &["aman.on: t.waits", "aman.permissions: read:$AMAN_DATA/heal"], gate);
    std::fs::create_dir(home.join("heal")).expect("a folder");
    let daemon = Daemon::start_in(home);
    let waits = daemon.push("t.waits", json!({}));
    let late = json!({"specversion": "1.0", "source": "test", "type": "t.late", "expirytime": "2020-01-01T00:00:00Z"});
    let late = text(&daemon.post("/events/push", &late).json, "id").to_owned();
    let ids: Vec<String> = ["t.none", "t.fine", "t.dies", "t.both"].map(|kind| daemon.push(kind, json!({}))).into();
    assert_eq!(why(&daemon, &waits, "")["status"], "pending");
    std::fs::write(home.join("heal/on"), "").expect("the mark is set");
    daemon.settle();
    let expected = ["unmatched", "handled", "dead_lettered", "dead_lettered"];
    for (id, status) in ids.iter().zip(expected).chain([(&waits, "handled"), (&late, "expired")]) {
        assert_eq!(why(&daemon, id, "")["status"], status, "{id}");
    }
    for letter in daemon.all("/dlq?limit=50&consumer=skill/dies") {
        daemon.post(&format!("/dlq/{}/discard", text(&letter, "id")), &json!({}));
    }
    assert_eq!(why(&daemon, &ids[2], "")["status"], "handled", "somebody has dealt with it");
}

/// Goal: effects and ancestors lead along a chain in both directions; the trace shows it whole, with its edges.
#[test]
fn chains_can_be_followed() {
    let folder = Folder::new("why");
    let publish =
        |kind: &str| format!(r#"echo '{{"publish": [{{"type": "{kind}"}}], "notify": [{{"title": "Told"}}]}}'"#);
    write_skill(folder.path(), "one", &["aman.on: c.a"], &publish("c.b"));
    write_skill(folder.path(), "two", &["aman.on: c.b"], &publish("c.c"));
    let daemon = Daemon::start_in(folder.path());
    let root = daemon.push("c.a", json!({}));
    daemon.settle();
    let trace = text(&daemon.dump(&root)["event"], "traceid").to_owned();
    let shown = daemon.get(&format!("/events/trace/{trace}")).json;
    let all = shown["events"].as_array().expect("events");
    let (told, events): (Vec<&Value>, Vec<&Value>) =
        all.iter().partition(|event| event["type"] == "aman.notification.created");
    let ids: Vec<&str> = events.iter().map(|event| text(event, "id")).collect();
    assert_eq!(events.iter().map(|event| text(event, "type")).collect::<Vec<_>>(), ["c.a", "c.b", "c.c"]);
    assert_eq!(told.len(), 2, "each skill told something of its own");
    let edges = shown["edges"].as_array().expect("edges");
    for edge in [[ids[0], ids[1]], [ids[1], ids[2]], [ids[0], text(told[0], "id")], [ids[1], text(told[1], "id")]] {
        assert!(edges.contains(&json!({ "from": edge[0], "to": edge[1] })), "{edge:?} in {edges:?}");
    }
    assert_eq!(edges.len(), 4);
    assert_eq!(shown["trace_id"], trace.as_str());
    let deliveries = shown["deliveries"].as_array().expect("deliveries");
    assert_eq!(deliveries.iter().map(|one| text(one, "event_id")).collect::<Vec<_>>(), ids[..2]);
    for (event, (source, trust)) in
        events.iter().zip([("test", "owner"), ("skill/one", "owner"), ("skill/two", "owner")])
    {
        assert_eq!((text(event, "source"), text(event, "trust")), (source, trust));
        assert_eq!(text(event, "correlationid"), root);
    }
    let first = why(&daemon, ids[0], "");
    let effects = first["effects"].as_array().expect("effects");
    let kinds: Vec<&str> = effects.iter().map(|effect| text(effect, "kind")).collect();
    assert_eq!(kinds, ["event", "event", "notification"]);
    assert_eq!((text(&effects[0], "id"), text(&effects[0], "consumer")), (ids[1], "skill/one"));
    assert_eq!(first["ancestors"], json!([]));
    let last = why(&daemon, ids[2], "");
    let ancestors: Vec<&str> =
        last["ancestors"].as_array().expect("ancestors").iter().map(|one| text(one, "id")).collect();
    assert_eq!(ancestors, [ids[1], ids[0]]);
    assert_eq!(last["effects"], json!([]));
}

/// Goal: a chain that feeds itself ends in a dead letter, not in a busy daemon.
#[test]
fn loops_end() {
    let folder = Folder::new("loop");
    std::fs::write(folder.path().join("aman.toml"), "[bus]\nmax_causation_depth = 4\n").expect("aman.toml");
    write_skill(folder.path(), "again", &["aman.on: l.a"], r#"echo '{"publish": [{"type": "l.a"}]}'"#);
    let daemon = Daemon::start_in(folder.path());
    let root = daemon.push("l.a", json!({}));
    daemon.settle();
    assert_eq!(daemon.recent("l.a").len(), 5, "the first and four that follow");
    let letters = daemon.all("/dlq?limit=50");
    assert_eq!((letters.len(), text(&letters[0], "reason")), (1, "causation_loop"), "{letters:?}");
    assert_eq!(letters[0]["event"]["correlationid"], root.as_str());
}
