//! aman as a server of the Model Context Protocol, to the client of the official package: in its newest version and in an
//! old one, with narrow tokens, and with a person who is asked.

use std::process::Command;

use serde_json::{Value, json};

use crate::contract::{client, file};
use crate::harness::{Daemon, TOKEN, write_skill};

const ON: &str = "[http]\nmcp = true\n";

/// What the client tells, line by line.
fn talk(daemon: &Daemon, token: &str, mode: &str, answer: &str, calls: &[String]) -> Result<Vec<Value>, String> {
    let url = format!("http://{}/mcp", daemon.address);
    let mut talking = Command::new(client("python"));
    talking.arg(file("mcp_client.py")).args([&url, token, mode, answer]).args(calls);
    let output = talking.output().expect("the client runs");
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect())
}

fn token(daemon: &Daemon, scope: &str) -> String {
    let made = daemon.post("/auth/token", &json!({ "sub": "editor", "scope": scope }));
    made.json["token"].as_str().unwrap_or_else(|| panic!("{made:?}")).to_owned()
}

fn names(line: &Value) -> Vec<&str> {
    line["tools"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Goal: clients of every version find the tools that their token allows, and nothing else; what they do is audited as if
/// they had used the routes. Off, nobody gets in.
#[test]
fn clients_of_every_version_are_served() {
    let daemon = Daemon::configured(ON);
    let calls = [
        "publish_event {\"type\": \"note.added\", \"data\": {\"n\": 7}}".to_owned(),
        "search_events {\"types\": \"note.*\", \"limit\": 1}".to_owned(),
        "publish_event {\"type\": \"aman.mine\"}".to_owned(),
        "why {\"event\": \"17000\"}".to_owned(),
        "list_skills {}".to_owned(),
        "read_skill {\"name\": \"folder-digest\"}".to_owned(),
        "start_workflow {\"workflow\": \"none\"}".to_owned(),
    ];
    for (mode, protocol) in [("legacy", "2025-11-25"), ("auto", "2026-07-28")] {
        let said = talk(&daemon, TOKEN, mode, "nobody", &calls).unwrap_or_else(|why| panic!("{mode}: {why}"));
        assert_eq!((&said[0]["protocol"], &said[0]["server"]), (&json!(protocol), &json!("aman")), "{}", said[0]);
        assert_eq!(names(&said[0]).len(), 9, "{}", said[0]);
        let failed: Vec<bool> = said[1..].iter().map(|line| line["failed"] == true).collect();
        assert_eq!(failed, [false, false, true, true, false, false, true], "{said:?}");
        assert_eq!(said[2]["value"]["items"][0]["data"], json!({ "n": 7 }), "{}", said[2]);
        assert_eq!(said[2]["value"]["items"][0]["id"], said[1]["value"]["id"]);
        let codes: Vec<&Value> = [3, 4, 7].map(|n| &said[n]["value"]["code"]).to_vec();
        assert_eq!(codes, ["reserved_name", "not_found", "not_found"], "{said:?}");
        assert!(said[6]["value"]["content"].as_str().is_some_and(|text| text.contains("folder-digest")), "{}", said[6]);
    }
    let audited = daemon.all("/audit-log?action=workflow.create");
    assert_eq!((audited.len(), &audited[0]["outcome"]), (2, &json!("refused")), "{audited:?}");

    let chat = talk(&daemon, &token(&daemon, "chat"), "auto", "nobody", &[]).expect("it may talk");
    assert_eq!(names(&chat[0]), [""; 0]);
    let reading = token(&daemon, "chat events:read");
    let reader = talk(&daemon, &reading, "auto", "nobody", &["list_dead_letters {}".to_owned()]).expect("it may read");
    assert_eq!(names(&reader[0]), ["search_events", "why", "list_dead_letters"]);
    assert_eq!(reader[1]["value"]["items"], json!([]));
    let stranger = talk(&daemon, &reading, "auto", "nobody", &["publish_event {\"type\": \"a.b\"}".to_owned()]);
    assert!(stranger.expect_err("there is no such tool for it").contains("no tool 'publish_event'"));
    assert!(talk(&daemon, &token(&daemon, "events:read"), "auto", "nobody", &[]).is_err());

    let list = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list" });
    let bearer = format!("Bearer {TOKEN}");
    let accept = ("accept", "application/json, text/event-stream");
    let foreign = [("authorization", bearer.as_str()), accept, ("origin", "https://evil.example")];
    assert_eq!(daemon.send("POST", "/mcp", &foreign, Some(&list)).code(), "origin_not_allowed");
    assert_eq!(daemon.send("POST", "/mcp", &[accept], Some(&list)).status, 401);
    let plain = daemon.send("POST", "/mcp", &[("authorization", &bearer), accept], Some(&list));
    assert_eq!((plain.status, plain.json["result"]["tools"].as_array().map(Vec::len)), (200, Some(9)), "{plain:?}");
    assert_eq!(daemon.get("/mcp").status, 405);
    let set = daemon.post_confirmed("/config/set", &json!({ "changes": { "http.mcp": false } }));
    assert_eq!(set.code(), "not_settable");
    std::fs::write(daemon.home().join("aman.toml"), "").expect("aman.toml");
    assert_eq!(daemon.post("/config/reload", &json!({})).status, 200);
    assert_eq!(daemon.send("POST", "/mcp", &[("authorization", &bearer), accept], Some(&list)).code(), "switched_off");
}

/// Goal: what needs a person's word is asked for where the client can ask, and refused with the way out where it cannot.
#[test]
fn the_person_is_asked_before_a_dead_letter_is_tried_again() {
    let daemon = Daemon::configured(ON);
    write_skill(daemon.home(), "dies", &["aman.on: die.now"], "echo no; exit 65\n");
    assert_eq!(daemon.post("/skills/reload", &json!({})).status, 200);
    daemon.push("die.now", json!({}));
    let letter = daemon.wait("a dead letter", || daemon.all("/dlq?limit=10").into_iter().next());
    let retry = [format!("retry_dead_letter {}", json!({ "id": letter["id"], "reason": "mended" }))];
    let retried = |daemon: &Daemon| {
        daemon.all("/audit-log?action=dlq.retry").iter().filter(|row| row["outcome"] == "done").count()
    };
    for (mode, answer, outcome) in
        [("legacy", "accept", "cannot ask"), ("auto", "nobody", "cannot ask"), ("auto", "decline", "did not agree")]
    {
        let said = talk(&daemon, TOKEN, mode, answer, &retry).unwrap_or_else(|why| panic!("{mode}: {why}"));
        let last = said.last().expect("a line");
        assert!(last["failed"] == true && last["text"].as_str().is_some_and(|text| text.contains(outcome)), "{said:?}");
        assert_eq!(said.iter().any(|line| line["asked"].is_string()), answer == "decline", "{said:?}");
    }
    assert_eq!(retried(&daemon), 0);
    let said = talk(&daemon, TOKEN, "auto", "accept", &retry).expect("it talks");
    assert!(said[1]["asked"].as_str().is_some_and(|text| text.contains("Retry a dead letter")), "{said:?}");
    assert_eq!((&said[2]["failed"], &said[2]["value"]["status"]), (&json!(false), &json!("retrying")), "{said:?}");
    assert_eq!(retried(&daemon), 1);
}
