//! Agents: who they are, where that comes from, and what became of it.

use serde_json::{Value, json};

use crate::harness::{Daemon, Folder, TOKEN};

fn put(daemon: &Daemon, id: &str, body: &Value) -> crate::harness::Answer {
    daemon.call("PUT", &format!("/agent/{id}"), Some(body))
}

/// Goal: definitions come from the binary, from files and over HTTP; what was changed last counts, every version is kept and
/// can be put in force again, and what could run commands comes in by files only.
#[test]
fn definitions_are_kept_checked_and_taken_back() {
    let folder = Folder::new("agents");
    let place = folder.path().join("agents");
    std::fs::create_dir_all(&place).expect("a folder");
    std::fs::write(place.join("runner.toml"), "description = \"Runs\"\n[tools]\nexec = [\"git\"]\n").expect("a file");
    std::fs::write(place.join("broken.toml"), "modle = \"x\"\n").expect("a file");
    let mut daemon = Daemon::start_in(folder.path());
    let ids = |daemon: &Daemon| {
        daemon
            .get("/agents")
            .items()
            .iter()
            .map(|one| one["id"].as_str().expect("an id").to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(ids(&daemon), ["aman", "runner"]);
    assert!(daemon.log().contains("Did you mean model?"), "{}", daemon.log());
    let shown = daemon.get("/agent/runner").json;
    assert_eq!(
        (&shown["origin"], &shown["status"], &shown["tools"]["exec"][0]),
        (&json!("file"), &json!("idle"), &json!("git"))
    );

    assert_eq!(put(&daemon, "helper", &json!({ "description": "one" })).status, 201);
    let again = put(&daemon, "helper", &json!({ "description": "two", "max_steps": 4 }));
    assert_eq!((again.status, &again.json["max_steps"], &again.json["origin"]), (200, &json!(4), &json!("api")));
    let token = format!("Bearer {TOKEN}");
    let toml = [("authorization", token.as_str()), ("content-type", "application/toml")];
    let written = daemon.send_bytes("PUT", "/agent/helper", &toml, b"description = \"three\" # kept\n");
    assert_eq!(written.status, 200, "{written:?}");
    assert!(daemon.get("/agent/helper").json["text"].as_str().expect("text").contains("# kept"));
    let versions = daemon.get("/agent/helper/versions").items();
    assert_eq!((versions.len(), &versions[0]["current"]), (3, &json!(true)), "{versions:?}");

    for (id, body, status, code) in [
        ("helper", json!({ "tools": { "exec": ["sh"] } }), 403, "exec_not_allowed"),
        ("helper", json!({ "instrctions": "x" }), 400, "invalid_input"),
        ("Helper", json!({}), 400, "invalid_input"),
        ("helper", json!([1]), 400, "invalid_input"),
    ] {
        let answer = put(&daemon, id, &body);
        assert_eq!((answer.status, answer.code()), (status, code), "{answer:?}");
    }
    assert_eq!(put(&daemon, "helper?dry_run=true", &json!({ "description": "tried" })).status, 200);
    let body = json!({ "version": versions[2]["version"].to_string() });
    assert_eq!(daemon.post("/agent/helper/rollback", &body).code(), "confirmation_required");
    let back = daemon.post_confirmed("/agent/helper/rollback", &body);
    assert_eq!((back.status, &back.json["description"]), (200, &json!("one")), "{back:?}");

    // The condition is put together with others: a comment at its end takes none of them along.
    let hears = json!({ "on": ["note.*"], "when": ".data.n == 1 # the first" });
    assert_eq!(put(&daemon, "hears", &hears).status, 201);
    // What it was once allowed may not come back over HTTP, either.
    std::fs::write(place.join("runner.toml"), "description = \"Walks\"\n").expect("a file");
    let reloaded = daemon.post("/agent/runner/reload", &json!({}));
    assert_eq!((reloaded.status, &reloaded.json["description"]), (200, &json!("Walks")), "{reloaded:?}");
    let runs = daemon.get("/agent/runner/versions").items().pop().expect("the first");
    let body = json!({ "version": runs["version"].to_string() });
    assert_eq!(daemon.post_confirmed("/agent/runner/rollback", &body).code(), "exec_not_allowed");
    assert_eq!(daemon.post("/agent/helper/reload", &json!({})).status, 409);
    let off = daemon.post("/agent/aman/status", &json!({ "status": "disabled" }));
    assert_eq!((off.status, &off.json["status"]), (200, &json!("disabled")), "{off:?}");
    assert_eq!(daemon.call("DELETE", "/agent/runner", None).json["deleted"], true);
    daemon.kill();
    daemon.again();
    assert_eq!(ids(&daemon), ["aman", "hears", "helper"], "what was removed does not come back with its file");
    assert_eq!(daemon.get("/agent/helper").json["description"], "one");
    assert_eq!(daemon.get("/agent/aman").json["status"], "disabled");
    let told = daemon.wait("the status to be told", || {
        let told = daemon.recent("aman.agent.status");
        told.iter().any(|event| event["data"]["status"] == "disabled").then_some(told)
    });
    assert_eq!(told[0]["source"], "aman/agents", "{told:?}");
}

/// Goal: no agent is called as a route is, wherever it comes from, and what agents cost is for administrators.
#[test]
fn names_of_routes_and_costs_are_kept() {
    let folder = Folder::new("agents-names");
    let place = folder.path().join("agents");
    std::fs::create_dir_all(&place).expect("a folder");
    std::fs::write(place.join("start.toml"), "").expect("a file");
    let daemon = Daemon::start_in(folder.path());
    assert!(daemon.log().contains("'start' is reserved"), "{}", daemon.log());
    for (method, id) in [("PUT", "start"), ("PUT", "shutdown"), ("DELETE", "start"), ("PUT", "start?dry_run=true")] {
        let answer = daemon.call(method, &format!("/agent/{id}"), Some(&json!({})));
        assert_eq!((answer.status, answer.code()), (400, "reserved_name"), "{method} {id}: {answer:?}");
        assert!(answer.json["detail"].as_str().is_some_and(|text| text.contains("is reserved")), "{answer:?}");
    }
    let made = daemon.post("/auth/token", &json!({ "sub": "phone", "scope": "chat" }));
    let narrow = format!("Bearer {}", made.json["token"].as_str().expect("a token"));
    for path in ["/agents", "/agent/aman"] {
        let seen = daemon.send("GET", path, &[("authorization", &narrow)], None);
        let one = if path == "/agents" { seen.json["items"][0].clone() } else { seen.json.clone() };
        assert_eq!((seen.status, &one["usage"]), (200, &Value::Null), "costs are for administrators: {seen:?}");
    }
    assert!(daemon.get("/agent/aman").json["usage"]["today"].is_object());
}

/// Goal: the command line shows and changes agents.
#[test]
fn the_command_line_shows_and_changes_agents() {
    let daemon = Daemon::start();
    let file = daemon.home().join("inbox.toml");
    std::fs::write(&file, "description = \"Sorts what comes in\"\n").expect("a file");
    let path = file.display().to_string();
    let run = |args: &[&str]| {
        let (code, out, error) = daemon.cli(args);
        assert_eq!(code, 0, "{args:?}: {out}{error}");
        out
    };
    assert!(run(&["agent", "put", "inbox", &path, "--dry-run"]).contains("Nothing was touched"));
    assert!(run(&["agent", "put", "inbox", &path]).contains("aman chat --agent inbox"));
    assert!(run(&["agent", "list"]).contains("Sorts what comes in"));
    assert!(run(&["agent", "show", "inbox", "--source"]).contains("description = "));
    assert!(run(&["agent", "disable", "inbox"]).contains("disabled"));
    assert!(run(&["agent", "enable", "inbox"]).contains("idle"));
    std::fs::write(&file, "description = \"Another\"\n").expect("a file");
    run(&["agent", "put", "inbox", &path]);
    assert!(run(&["agent", "versions", "inbox"]).contains("current"));
    let versions = daemon.get("/agent/inbox/versions").items();
    let first = versions[1]["version"].to_string();
    assert!(run(&["agent", "rollback", "inbox", &first, "--yes"]).contains("idle"));
    assert!(run(&["agent", "show", "inbox"]).contains("Sorts"));
    assert!(run(&["agent", "remove", "inbox", "--yes"]).contains("Removed"));
    let (code, _, error) = daemon.cli(&["agent", "show", "inbox"]);
    assert!(code != 0 && error.contains("no agent 'inbox'"), "{error}");
}
