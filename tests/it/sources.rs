//! The registry of sources over HTTP and the command line; programs and polled addresses as sources.

use serde_json::{Value, json};

use crate::harness::{Answer, Daemon, Folder, TOKEN};
use crate::peer::Peer;

fn put(daemon: &Daemon, path: &str, body: &Value) -> Answer {
    daemon.call("PUT", path, Some(body))
}

fn source(daemon: &Daemon, id: &str) -> Value {
    daemon.get(&format!("/event-source/{id}")).json
}

/// Goal: every source is shown with its kind, health and settings, under both names, and a stranger is told apart.
#[test]
fn sources_are_shown() {
    let folder = Folder::new("watched");
    let path = folder.path().display();
    let daemon = Daemon::configured(&format!(
        "[sources.inbox]\nkind = \"files\"\npath = \"{path}\"\n\
         [sources.gh]\nkind = \"webhook\"\nverify = {{ scheme = \"github\", secret = \"canary-secret\" }}\n"
    ));
    for list in ["/event-sources", "/sources"] {
        let items = daemon.get(list).items();
        let ids: Vec<&str> = items.iter().filter_map(|item| item["id"].as_str()).collect();
        assert_eq!(ids, ["default", "gh", "inbox"]);
        let first = daemon.get(&format!("{list}?limit=1"));
        assert_eq!((first.items().len(), first.json["next_cursor"].is_string()), (1, true));
        let paged: Vec<Value> = daemon.all(&format!("{list}?limit=1"));
        assert_eq!(
            paged.iter().map(|item| item["id"].as_str()).collect::<Vec<_>>(),
            [Some("default"), Some("gh"), Some("inbox")]
        );
    }
    let gh = source(&daemon, "gh");
    assert_eq!(
        (&gh["kind"], &gh["source"], &gh["trust"], &gh["health"]),
        (&json!("webhook"), &json!("hook/gh"), &json!("web"), &json!("ok"))
    );
    assert_eq!(gh["config"]["verify"], json!({ "scheme": "github", "secret": { "populated": true } }));
    assert_eq!(daemon.get("/source/inbox").json["path"], json!(path.to_string()));
    for missing in ["/event-source/nobody", "/source/nobody"] {
        assert_eq!(daemon.get(missing).code(), "not_found");
    }
    let channel = daemon.post("/im-channel/telegram/main/reload", &json!({}));
    assert_eq!((channel.status, channel.code()), (404, "not_found"));
    let all = format!("{}{}", daemon.get("/event-sources").json, daemon.log());
    assert!(!all.contains("canary-secret"));
}

/// Goal: a paused source tells nothing, stays paused over a restart, and tells what it missed once it goes on.
#[test]
fn a_pause_holds_over_restarts_and_loses_nothing() {
    let folder = Folder::new("watched");
    let home = Folder::new("home");
    let toml = format!("[sources.inbox]\nkind = \"files\"\npath = \"{}\"\n", folder.path().display());
    std::fs::write(home.path().join("aman.toml"), toml).expect("aman.toml");
    let mut daemon = Daemon::start_in(home.path());
    let paused = daemon.post("/event-source/inbox/pause", &json!({}));
    assert_eq!((paused.status, &paused.json["state"]), (200, &json!("paused")));
    assert_eq!(daemon.post("/source/inbox/pause", &json!({})).code(), "invalid_state");
    std::fs::write(folder.path().join("late.txt"), "x").expect("a file");
    daemon.kill();
    daemon.again();
    assert_eq!(source(&daemon, "inbox")["health"], "paused");
    assert!(daemon.recent("file.created").is_empty());
    assert_eq!(daemon.post("/source/inbox/resume", &json!({})).status, 200);
    let event = daemon.wait("the missed file", || daemon.recent("file.created").pop());
    assert_eq!(event["data"]["name"], "late.txt");
    let actions: Vec<Value> = daemon.get("/audit-log").items().into_iter().map(|row| row["action"].clone()).collect();
    assert_eq!(actions.iter().filter(|action| **action == "source.pause").count(), 2, "{actions:?}");
    assert!(actions.contains(&json!("source.resume")), "{actions:?}");
}

/// Goal: settings change live and durably; wrong ones are named; what names a path, a command or a secret is refused.
#[test]
fn settings_change_live_and_what_is_dangerous_is_refused() {
    let folder = Folder::new("watched");
    let home = Folder::new("home");
    let toml = format!(
        "[sources.inbox]\nkind = \"files\"\npath = \"{}\"\n[sources.cmd]\nkind = \"command\"\ncommand = \"sleep 100\"\n",
        folder.path().display()
    );
    std::fs::write(home.path().join("aman.toml"), toml).expect("aman.toml");
    let mut daemon = Daemon::start_in(home.path());
    for (id, body) in [
        ("inbox", json!({ "path": "/etc" })),
        ("inbox", json!({ "kind": "command" })),
        ("cmd", json!({ "command": ["sh", "-c", "id"] })),
        ("cmd", json!({ "env": { "A": "file:/etc/passwd" } })),
        ("cmd", json!({ "write": ["/"] })),
        ("cmd", json!({ "net": "any" })),
    ] {
        let answer = put(&daemon, &format!("/event-source/{id}/config"), &body);
        assert_eq!((answer.status, answer.code()), (403, "exec_not_allowed"), "{body}: {answer:?}");
    }
    for (body, field) in [
        (json!({ "initial": "maybe" }), "initial"),
        (json!({ "patterns": "*.md" }), "patterns"),
        (json!({ "patterns": ["a{"] }), "patterns"),
        (json!({ "pattern": ["*.md"] }), "pattern"),
        (json!({ "expect_every": "soon" }), "expect_every"),
        (json!({ "trust": "nobody" }), "trust"),
    ] {
        let answer = put(&daemon, "/event-source/inbox/config", &body);
        assert_eq!(answer.status, 400, "{body}: {answer:?}");
        assert!(answer.fields().iter().any(|named| named.starts_with(field)), "{body}: {answer:?}");
    }
    assert_eq!(put(&daemon, "/event-source/nobody/config", &json!({})).code(), "not_found");
    let shown = source(&daemon, "inbox")["config"].clone();
    let mut wanted = shown.clone();
    wanted["patterns"] = json!(["*.md"]);
    let answer = put(&daemon, "/event-source/inbox/config", &wanted);
    assert_eq!((answer.status, &answer.json["changed"]), (200, &json!(["patterns"])), "{answer:?}");
    let lands = |daemon: &Daemon, tag: &str| {
        std::fs::write(folder.path().join(format!("{tag}.txt")), "x").expect("a file");
        std::fs::write(folder.path().join(format!("{tag}.md")), "x").expect("a file");
        let has = |name: &str| daemon.recent("file.created").iter().any(|event| event["data"]["name"] == name);
        daemon.wait("the wanted file", || has(&format!("{tag}.md")).then_some(()));
        assert!(!has(&format!("{tag}.txt")));
    };
    lands(&daemon, "one");
    daemon.kill();
    daemon.again();
    lands(&daemon, "two");
    let back = put(&daemon, "/source/inbox/config", &json!({}));
    assert_eq!((back.status, &back.json["config"]), (200, &shown));
}

/// Goal: a source that is silent for too long is told of, once, and is well again after its next event.
#[test]
fn silence_is_told_once() {
    let daemon = Daemon::configured(
        "[sources.quiet]\nkind = \"webhook\"\nexpect_every = \"1s\"\n[sources.never]\nkind = \"webhook\"\n",
    );
    let alert = daemon.wait("the alert", || daemon.recent("aman.source.silent").pop());
    assert_eq!((&alert["data"]["id"], &alert["source"]), (&json!("quiet"), &json!("aman/sources")));
    daemon.wait("the state", || (source(&daemon, "quiet")["health"] == "silent").then_some(()));
    assert!(source(&daemon, "quiet")["detail"].as_str().is_some_and(|text| text.starts_with("No event since ")));
    assert_eq!(daemon.post("/hooks/quiet", &json!({ "n": 1 })).status, 202);
    daemon.wait("the second alert", || (daemon.recent("aman.source.silent").len() == 2).then_some(()));
    let alerts = daemon.recent("aman.source.silent");
    assert!(alerts.iter().all(|alert| alert["data"]["id"] == "quiet"));
    assert!(alerts[0]["data"]["last_event_at"].is_string() && alerts[1]["data"]["last_event_at"].is_null());
    assert_eq!(source(&daemon, "never")["health"], "ok");
}

/// Goal: a source that tells something is silent no more, at once.
#[test]
fn an_event_ends_the_silence() {
    let daemon = Daemon::configured("[sources.quiet]\nkind = \"webhook\"\nexpect_every = \"4s\"\n");
    daemon.wait("the silence", || (source(&daemon, "quiet")["health"] == "silent").then_some(()));
    assert_eq!(daemon.post("/hooks/quiet", &json!({})).status, 202);
    let now = source(&daemon, "quiet");
    assert_eq!(
        (&now["health"], &now["silent_since"], &now["detail"]),
        (&json!("ok"), &Value::Null, &json!("")),
        "{now}"
    );
}

/// Goal: a pause is no silence: time counts from its end.
#[test]
fn a_pause_is_no_silence() {
    let daemon = Daemon::configured("[sources.quiet]\nkind = \"webhook\"\nexpect_every = \"1s\"\n");
    assert_eq!(daemon.post("/hooks/quiet", &json!({})).status, 202);
    assert_eq!(daemon.post("/source/quiet/pause", &json!({})).status, 200);
    let watched = || daemon.get("/runtime/status").json["subsystems"].get("cadence/quiet").is_some();
    daemon.wait("nobody to miss it", || (!watched()).then_some(()));
    std::thread::sleep(std::time::Duration::from_millis(1500));
    let mark = daemon.dump(&daemon.push("t.mark", Value::Null))["event"]["time"].clone();
    assert_eq!(daemon.post("/source/quiet/resume", &json!({})).status, 200);
    assert!(watched());
    // Both are written alike, so they sort as texts.
    let later = |alert: &Value| alert["data"]["since"].as_str() >= mark.as_str();
    daemon.wait("an alert of the time since", || daemon.recent("aman.source.silent").iter().any(later).then_some(()));
    assert!(
        daemon.recent("aman.source.silent").iter().all(|alert| later(alert) || alert["time"].as_str() < mark.as_str())
    );
}

/// Goal: settings with which a source cannot start are refused, and nothing of them stays; what could not start can later.
#[test]
fn settings_that_cannot_work_are_not_kept() {
    let daemon = Daemon::start();
    let inbox = daemon.home().join("inbox");
    daemon.wait("the inbox", || inbox.is_dir().then_some(()));
    std::fs::remove_dir(&inbox).expect("it is empty");
    std::fs::write(&inbox, "in the way").expect("a file");
    let wanted = json!({ "patterns": ["*.md"] });
    let refused = put(&daemon, "/source/default/config", &wanted);
    assert_eq!((refused.status, refused.code()), (409, "invalid_state"), "{refused:?}");
    let shown = source(&daemon, "default");
    assert_eq!((&shown["health"], &shown["changed"]), (&json!("failing"), &json!([])), "{shown}");
    std::fs::remove_file(&inbox).expect("ours");
    let taken = put(&daemon, "/source/default/config", &wanted);
    assert_eq!((taken.status, &taken.json["changed"]), (200, &json!(["patterns"])), "{taken:?}");
    daemon.wait("it to be well", || (source(&daemon, "default")["health"] == "ok").then_some(()));
}

/// Goal: the command line lists, shows, pauses and resumes.
#[test]
fn the_command_line_knows_sources() {
    let daemon = Daemon::start();
    let (code, list, _) = daemon.cli(&["source", "list"]);
    assert!(code == 0 && list.contains("default") && list.contains("files"), "{list}");
    let (code, shown, _) = daemon.cli(&["source", "show", "default"]);
    assert!(code == 0 && shown.contains("inbox"), "{shown}");
    for (word, wanted) in [("pause", 0), ("pause", 3), ("resume", 0), ("resume", 3)] {
        let (code, out, err) = daemon.cli(&["source", word, "default"]);
        assert_eq!(code, wanted, "{word}: {out} {err}");
    }
}

/// Goal: the lines of a program become events; what is no line of JSON is counted; it is started again when it ends.
#[test]
fn lines_of_a_program_become_events() {
    let daemon = Daemon::configured(
        "[sources.clock]\nkind = \"command\"\ncommand = [\"sh\", \"-c\", '''\n\
         echo '{\"type\":\"tick.first\",\"data\":{\"n\":1},\"subject\":\"s\"}'\n\
         echo 'not json'\n\
         echo '{\"other\":true}'\n\
         printf '[1,2]'\n''']\n\
         [sources.text]\nkind = \"command\"\ncommand = \"echo hello\"\nevery = \"1s\"\nformat = \"text\"\n\
         type = \"said\"\n\
         [sources.mapped]\nkind = \"command\"\nevery = \"1h\"\ncommand = \"echo '{\\\"a\\\":[1,2,3]}'\"\n\
         map = '.a[] | {type: \"part\", data: ., id: .}'\n\
         [sources.broken]\nkind = \"command\"\ncommand = \"no-such-command-here\"\n",
    );
    let all = |types: &str| daemon.recent(types);
    daemon.wait("two runs", || (all("tick.first").len() >= 2).then_some(()));
    let first = &all("tick.first")[0];
    assert_eq!(
        (&first["source"], &first["trust"], &first["subject"]),
        (&json!("command/clock"), &json!("owner"), &json!("s"))
    );
    let data: Vec<Value> = all("command.output").iter().rev().take(2).map(|event| event["data"].clone()).collect();
    assert_eq!(data, [json!({ "other": true }), json!([1, 2])]);
    let clock = source(&daemon, "clock");
    assert!(clock["skipped"].as_u64() >= Some(1), "{clock}");
    daemon.wait("two texts", || (all("said").len() >= 2).then_some(()));
    assert_eq!(all("said")[0]["data"], "hello");
    daemon.wait("the mapped parts", || (all("part").len() == 3).then_some(()));
    let broken = daemon.wait("the failure", || Some(source(&daemon, "broken")).filter(|s| s["health"] == "failing"));
    assert!(broken["detail"].as_str().is_some_and(|text| text.contains("no-such-command-here")), "{broken}");
}

/// Goal: nothing of a program that a source runs outlives a pause or the daemon.
#[test]
fn a_program_ends_with_its_source() {
    let mut daemon = Daemon::configured(
        "[sources.long]\nkind = \"command\"\ncommand = [\"sh\", \"-c\", \"echo 1; exec sleep 4711.25\"]\n",
    );
    let alive = || {
        let found = std::process::Command::new("pgrep").args(["-f", "^sleep 4711.25"]).output().expect("pgrep");
        !found.stdout.is_empty()
    };
    let starts = |n: usize| daemon.wait("a start", || (daemon.recent("command.output").len() == n).then_some(()));
    starts(1);
    assert!(alive());
    assert_eq!(daemon.post("/event-source/long/pause", &json!({})).status, 200);
    assert!(!alive());
    assert_eq!(daemon.post("/event-source/long/resume", &json!({})).status, 200);
    starts(2);
    daemon.kill();
    crate::harness::wait("the end of the program", || (!alive()).then_some(()), String::new);
}

fn polled(peer: &Peer, extra: &str) -> String {
    format!(
        "[http_client]\nallow_private = true\n[sources.feed]\nkind = \"http_poll\"\nurl = \"{}/feed\"\nevery = \"1s\"\n\
         headers = {{ authorization = \"env:FEED_TOKEN\" }}\n{extra}",
        peer.url()
    )
}

/// Goal: a poll asks with the ETag it knows, tells a change once, and knows it over a restart.
#[test]
fn a_poll_tells_changes_once() {
    let peer = Peer::start();
    peer.answer("200 OK", &[("etag", "\"v1\""), ("content-type", "application/json")], "{\"v\":1}");
    peer.answer("304 Not Modified", &[], "");
    let home = Folder::new("home");
    std::fs::write(home.path().join("aman.toml"), polled(&peer, "")).expect("aman.toml");
    let env = [("FEED_TOKEN", "Bearer canary")];
    let mut daemon = Daemon::try_start_in(home.path(), &env).expect("it starts");
    daemon.wait("three questions", || (peer.requests().len() >= 3).then_some(()));
    let requests = peer.requests();
    assert!(requests[0].contains("authorization: Bearer canary") && !requests[0].contains("if-none-match"));
    assert!(requests[1].contains("if-none-match: \"v1\""), "{}", requests[1]);
    let events = daemon.recent("http.changed");
    assert_eq!((events.len(), &events[0]["data"], &events[0]["trust"]), (1, &json!({ "v": 1 }), &json!("web")));
    daemon.terminate();
    let asked = peer.requests().len();
    let daemon = Daemon::try_start_in(home.path(), &env).expect("it starts");
    daemon.wait("a question after the restart", || (peer.requests().len() > asked).then_some(()));
    assert!(peer.requests()[asked].contains("if-none-match: \"v1\""));
    peer.answer("200 OK", &[("etag", "\"v2\"")], "{\"v\":2}");
    daemon.wait("the change", || (daemon.recent("http.changed").len() == 2).then_some(()));
    assert!(!daemon.log().contains("canary") && !daemon.get("/event-source/feed").json.to_string().contains("canary"));
}

/// Goal: a failing poll says why and waits as it is told; a redirect is followed without the credentials.
#[test]
fn a_poll_backs_off_and_follows_redirects_carefully() {
    let (peer, other) = (Peer::start(), Peer::start());
    peer.answer("503 Service Unavailable", &[("retry-after", "2")], "");
    let home = Folder::new("home");
    let map = "map = '.items[] | {type: \"item\", id: .id, data: .}'\n";
    std::fs::write(home.path().join("aman.toml"), polled(&peer, map)).expect("aman.toml");
    let daemon = Daemon::try_start_in(home.path(), &[("FEED_TOKEN", "Bearer canary")]).expect("it starts");
    let failing = daemon.wait("the failure", || Some(source(&daemon, "feed")).filter(|s| s["health"] == "failing"));
    assert!(failing["detail"].as_str().is_some_and(|text| text.contains("503")), "{failing}");
    other.answer("200 OK", &[], "{\"items\":[{\"id\":7},{\"id\":8}]}");
    peer.answer("302 Found", &[("location", &format!("{}/moved", other.url()))], "");
    daemon.wait("both items", || (daemon.recent("item").len() == 2).then_some(()));
    assert!(other.requests()[0].starts_with("GET /moved ") && !other.requests()[0].contains("canary"));
    daemon.wait("its recovery", || (source(&daemon, "feed")["health"] == "ok").then_some(()));
}

/// Goal: without leave nothing private is called, not by name, not by redirect; and no token is needed to learn that.
#[test]
fn private_addresses_are_not_polled() {
    let peer = Peer::start();
    let port = peer.url().rsplit(':').next().expect("a port").to_owned();
    let daemon = Daemon::configured(&format!(
        "[sources.a]\nkind = \"http_poll\"\nurl = \"http://localhost:{port}/\"\n\
         [sources.b]\nkind = \"http_poll\"\nurl = \"http://[::ffff:127.0.0.1]:{port}/\"\n"
    ));
    for id in ["a", "b"] {
        let failing = daemon.wait("the refusal", || Some(source(&daemon, id)).filter(|s| s["health"] == "failing"));
        assert!(failing["detail"].as_str().is_some_and(|text| text.contains("private address")), "{failing}");
    }
    assert!(peer.requests().is_empty());
    assert_eq!(daemon.send("GET", "/event-sources", &[("x-aman-token", &TOKEN[1..])], None).status, 401);
}
