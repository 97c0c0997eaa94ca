//! The command line against a real daemon: what people read, what programs get, exit codes.

use serde_json::{Value, json};

use crate::harness::Daemon;

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Goal: a person can push, see, and understand an event, and programs get the daemon's own answer.
#[test]
fn push_see_why() {
    let daemon = Daemon::start();
    let (code, out, err) =
        daemon.cli(&["event", "push", "--type", "mail.received", "--data", r#"{"from":"ann"}"#, "--json"]);
    assert_eq!((code, err.as_str()), (0, ""));
    let id = json_of(&out)["id"].as_str().expect("an id").to_owned();
    let (code, out, _) = daemon.cli(&["event", "recent", "--types", "mail.*"]);
    assert!(code == 0 && out.contains(&id) && out.contains("mail.received"), "{out}");
    let (code, out, _) = daemon.cli(&["why", &id]);
    assert!(code == 0 && out.contains("unmatched"), "{out}");
    let (code, out, _) = daemon.cli(&["why", &id, "--all"]);
    assert!(code == 0 && out.contains("skill/inbox-triage") && out.contains("type"), "{out}");
    let (code, out, _) = daemon.cli(&["event", "show", &id, "--json"]);
    assert_eq!((code, &json_of(&out)["event"]["data"]), (0, &json!({"from": "ann"})));
    let sequence = json_of(&out)["event"]["amansequence"].as_str().expect("a sequence").to_owned();
    for named in [sequence.as_str(), &id[..30]] {
        let (code, out, err) = daemon.cli(&["why", named]);
        assert!(code == 0 && out.starts_with(&format!("Event {id}")), "{named}: {out}{err}");
    }
    let trace = json_of(&out)["event"]["traceid"].as_str().expect("a trace").to_owned();
    let (code, out, _) = daemon.cli(&["event", "trace", &trace]);
    assert!(code == 0 && out.contains(&id), "{out}");
    let (code, out, _) = daemon.cli(&["event", "types", "--json"]);
    assert_eq!((code, &json_of(&out)["items"][0]["type"]), (0, &json!("mail.received")));
}

/// Goal: a dead letter can be listed, tried again and discarded; what needs confirmation says so with exit code 2.
#[test]
fn dead_letters() {
    let daemon = Daemon::start();
    crate::harness::write_skill(daemon.home(), "broken", &["aman.on: broken.*"], "exit 65");
    let (code, out, err) = daemon.cli(&["skill", "reload"]);
    assert!(code == 0 && out.contains("broken"), "{out}{err}");
    let id = daemon.push("broken.one", json!({}));
    let letter = daemon.wait("a dead letter", || daemon.get("/dlq").json["items"][0]["id"].as_str().map(str::to_owned));
    let (code, out, _) = daemon.cli(&["dlq", "list"]);
    assert!(code == 0 && out.contains("rejected") && out.contains("skill/broken"), "{out}");
    let (code, out, err) = daemon.cli(&["dlq", "groups"]);
    assert!(code == 0 && out.contains("skill/broken"), "{out}{err}");
    let (code, _, err) = daemon.cli(&["dlq", "retry", &letter]);
    assert!(code == 2 && err.contains("--yes"), "{code} {err}");
    let (code, out, err) = daemon.cli(&["dlq", "retry", &letter, "--yes"]);
    assert_eq!(code, 0, "{out}{err}");
    daemon.wait("the second death", || {
        let again = daemon.get("/dlq").json["items"][0]["attempts"].as_i64();
        (again == Some(2)).then_some(())
    });
    for named in [&letter, &letter[..30], &id] {
        let (code, out, err) = daemon.cli(&["why", named]);
        assert!(code == 0 && out.contains(&id) && out.contains("dead after 2 attempts"), "{named}: {out}{err}");
    }
    let (code, _, err) = daemon.cli(&["why", &id[..5]]);
    assert!(code == 3 && err.contains("begin so") && err.contains(&id), "{code} {err}");
    let (code, out, err) = daemon.cli(&["dlq", "discard", &letter]);
    assert_eq!(code, 0, "{out}{err}");
    let (code, _, err) = daemon.cli(&["dlq", "discard", &letter]);
    assert!(code == 3 && err.contains("discarded"), "{code} {err}");
    let (code, out, _) = daemon.cli(&["audit", "verify"]);
    assert!(code == 0 && out.contains("whole"), "{out}");
    let (code, out, _) = daemon.cli(&["audit", "list", "--json"]);
    assert!(code == 0 && json_of(&out)["items"][0]["target"].as_str().is_some_and(|t| t.contains(&letter)), "{out}");
    assert!(daemon.cli(&["why", &id]).1.contains("discarded"));
}

/// Goal: usage errors are 2, missing things and a missing daemon are 1, and each says what to do.
#[test]
fn errors_say_what_to_do() {
    let mut daemon = Daemon::start();
    let cases: [(&[&str], i32, &str); 8] = [
        (&["event", "show", "nothing"], 1, "`aman event recent`"),
        (&["why", "99999"], 1, "no event '99999'"),
        (&["status", "--token", "0123456789abcdef"], 1, "does not know the token in --token"),
        (&["skill", "show", "nothing"], 1, "`aman skill list`"),
        (&["event", "show", "nothing"], 1, "no event 'nothing'"),
        (&["event", "push", "--type", "a..b", "--data", "{}"], 1, "type"),
        (&["event", "push", "--type", "a.b", "--data", "{"], 2, "data"),
        (&["no-such-command"], 2, "unrecognized"),
    ];
    for (args, wanted, text) in cases {
        let (code, _, err) = daemon.cli(args);
        assert!(code == wanted && err.contains(text), "{args:?}: {code} {err}");
    }
    let (code, out, _) = daemon.cli(&["doctor"]);
    assert!(code == 0 && out.contains("0 fail"), "{out}");
    daemon.kill();
    let (code, _, err) = daemon.cli(&["status"]);
    assert!(code == 1 && err.contains("aman serve"), "{err}");
}
