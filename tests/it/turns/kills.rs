//! Turns whose daemon ends between two calls, or in the middle of one. The calls are commands that count themselves in a file.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use super::{HELD, ask, daemon_in, finished, pending};
use crate::harness::{Daemon, Folder};
use crate::models::stub::{Reply, Stub};

/// Who may run `sh`, and is asked each time.
const RUNNER: &str = "[tools]\nexec = [\"sh\"]\nwrite = [\"~/counted\"]\n";

/// A folder for what commands count.
fn folder(name: &str) -> Folder {
    let folder = Folder::new(name);
    std::fs::create_dir(folder.path().join("counted")).expect("a folder");
    folder
}

/// Arguments of a call that writes a line, then does the rest.
fn counting(folder: &Folder, file: &str, rest: &str) -> Value {
    let place = folder.path().join("counted").join(file).display().to_string();
    json!({ "argv": ["sh", "-c", format!("echo begun >> {place}; {}", rest.replace("FILE", &place))] })
}

/// What was counted so far.
fn counted(folder: &Folder, file: &str) -> Vec<String> {
    let text = std::fs::read_to_string(folder.path().join("counted").join(file)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// The results of tools that a request shows.
fn results(request: &str) -> Vec<String> {
    let body = request.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let body: Value = serde_json::from_str(body).expect("JSON");
    let messages = body["messages"].as_array().expect("messages").iter();
    messages.filter(|message| message["role"] == "tool").map(|message| message["content"].to_string()).collect()
}

/// The question about a call whose arguments hold this.
fn question(daemon: &Daemon, part: &str) -> Value {
    daemon.wait("the question", || pending(daemon).into_iter().find(|one| one["arguments"].to_string().contains(part)))
}

fn yes(daemon: &Daemon, question: &Value) {
    let answer = json!({ "auth_id": question["id"], "approved": true });
    assert_eq!(daemon.post("/tool-auth/respond", &answer).status, 200);
}

/// Outcomes of all calls of `exec` that are on record, with what follows the turn in the call's key.
fn outcomes(daemon: &Daemon) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let records = daemon.all("/audit-log?action=tool.execute&limit=100");
    let mut all: Vec<(String, String)> =
        records.iter().map(|one| (text(&one["detail"]["key"]), text(&one["outcome"]))).collect();
    all.sort();
    assert_eq!(daemon.get("/audit-log/verify").json["ok"], true);
    all
}

/// Status of each step of the journal that is a call: 1 done, 2 failed, 3 unknown.
fn steps(daemon: &Daemon) -> Vec<i64> {
    let db = rusqlite::Connection::open(daemon.home().join("aman.db")).expect("the database");
    let mut steps =
        db.prepare("SELECT status FROM turn_step WHERE kind = 1 ORDER BY turn, number").expect("the journal");
    steps.query_map([], |row| row.get(0)).expect("rows").collect::<Result<_, _>>().expect("numbers")
}

/// Goal: one answer asks for three calls, and the daemon is killed before the first, between any two and behind the last: each
/// command runs once, whether the person agrees before the turn is taken up again or behind that; no answer that had come is
/// asked for again.
#[test]
fn a_kill_in_each_gap_between_calls_repeats_nothing() {
    let folder = folder("turn-gaps");
    let calls: Vec<(String, Value)> =
        (1..=3).map(|n| (format!("call-{n}"), counting(&folder, "calls", &format!(": call {n}")))).collect();
    let ends = AtomicUsize::new(0);
    let stub = Stub::thinking(move |request| {
        if results(request).is_empty() {
            let calls: Vec<(&str, &str, Value)> =
                calls.iter().map(|(id, input)| (id.as_str(), "exec", input.clone())).collect();
            return Reply::calls("Three things.", &calls);
        }
        let end = Reply::words(&["all ", "done"]);
        if ends.fetch_add(1, Ordering::Relaxed) == 0 { end.waiting(0, HELD) } else { end }
    });
    let mut daemon = daemon_in(&folder, &stub, &[("runner", RUNNER)], "");
    let id = ask(&daemon, "runner");
    for n in 1..=3 {
        let asked = question(&daemon, &format!(": call {n}"));
        assert_eq!(counted(&folder, "calls").len(), n - 1, "nothing is done before the yes");
        daemon.kill();
        daemon.again();
        if n == 2 {
            daemon.wait("the turn to go on", || (daemon.get("/agent/runner").json["status"] == "busy").then_some(()));
        }
        assert_eq!(question(&daemon, &format!(": call {n}"))["id"], asked["id"]);
        yes(&daemon, &asked);
    }
    daemon.wait("the model to be asked again", || (stub.requests().len() == 2).then_some(()));
    daemon.kill();
    daemon.again();
    assert_eq!(finished(&daemon, &id)["text"], "all done");
    assert_eq!(counted(&folder, "calls"), ["begun"; 3]);
    // The second answer was cut off, and asked for once more.
    assert_eq!(stub.requests().len(), 3);
    let outcomes = outcomes(&daemon);
    assert!(outcomes.len() == 3 && outcomes.iter().all(|(_, outcome)| outcome == "done"), "{outcomes:?}");
    assert_eq!(steps(&daemon), [1, 1, 1]);
    assert_eq!(daemon.recent("aman.agent.turn.ended").len(), 1);
}

/// Goal: a command that had begun when the daemon was killed is not run again; its step and its one record say that nobody
/// knows, and so is the model told.
#[test]
fn a_call_that_had_begun_is_not_made_again() {
    for remember in ["once", "always"] {
        is_not_made_again(remember);
    }
}

/// As above. A yes for always comes while nobody is at work on the turn, so that its rule is there before.
fn is_not_made_again(remember: &str) {
    let folder = folder("turn-lost");
    let input = counting(&folder, "lost", "sleep 60; echo ended >> FILE");
    let stub = Stub::thinking(move |request| match results(request).pop() {
        None => Reply::call("", "call-1", "exec", &input),
        Some(result) => Reply::words(&["it said: ", &result]),
    });
    let mut daemon = daemon_in(&folder, &stub, &[("runner", RUNNER)], "");
    let id = ask(&daemon, "runner");
    let asked = question(&daemon, "lost");
    let status = |daemon: &Daemon, status: &str| {
        assert_eq!(daemon.post("/agent/runner/status", &json!({ "status": status })).status, 200);
    };
    if remember == "always" {
        status(&daemon, "disabled");
        daemon.kill();
        daemon.again();
    }
    let answer = json!({ "auth_id": asked["id"], "approved": true, "remember": remember });
    assert_eq!(daemon.post("/tool-auth/respond", &answer).status, 200);
    if remember == "always" {
        status(&daemon, "idle");
    }
    daemon.wait("the command to run", || (!counted(&folder, "lost").is_empty()).then_some(()));
    daemon.kill();
    daemon.again();
    let said = finished(&daemon, &id)["text"].as_str().expect("text").to_owned();
    assert!(said.contains("nobody knows whether it was done"), "{said}");
    assert_eq!((counted(&folder, "lost"), stub.requests().len()), (vec!["begun".to_owned()], 2));
    assert_eq!(steps(&daemon), [3]);
    let outcomes = outcomes(&daemon);
    assert!(outcomes.len() == 1 && outcomes[0].1 == "unknown", "{outcomes:?}");
    // What was allowed to an agent goes with it.
    assert_eq!(daemon.get("/tool-auth/rules").items().len(), usize::from(remember == "always"));
    assert_eq!(daemon.call("DELETE", "/agent/runner", None).json["deleted"], true);
    assert!(daemon.get("/tool-auth/rules").items().is_empty());
    let record = daemon.all("/audit-log?action=tool.execute&limit=100").remove(0);
    let detail = &record["detail"];
    assert_eq!(
        (&record["target"], &detail["code"], &detail["agent"], &detail["approval"], &detail["digest"]),
        (&json!("exec"), &json!("tool_unknown_outcome"), &json!("runner"), &asked["id"], &asked["digest"]),
        "{record}"
    );
}

/// Goal: a daemon that is told to end lets a call end that can in the time there is, and goes on behind it; one that takes
/// longer is cut off, is not made again, and the model is told. Nobody is asked again for what was answered.
#[test]
fn the_end_of_the_daemon_waits_for_a_call_or_says_that_nobody_knows() {
    let folder = folder("turn-ends");
    let quick = counting(&folder, "quick", "sleep 0.4; echo ended >> FILE");
    let slow = counting(&folder, "slow", "sleep 60; echo ended >> FILE");
    let stub = Stub::thinking(move |request| match results(request).pop() {
        None if request.contains("THE QUICK ONE") => Reply::call("", "call-1", "exec", &quick),
        None => Reply::call("", "call-1", "exec", &slow),
        Some(result) => Reply::words(&["it said: ", &result]),
    });
    let quick = format!("instructions = \"THE QUICK ONE\"\n{RUNNER}");
    let agents = [("quick", quick.as_str()), ("slow", RUNNER)];
    let mut daemon = daemon_in(&folder, &stub, &agents, "[runtime]\ndrain_timeout = \"2s\"\n");
    let ids = ["quick", "slow"].map(|agent| ask(&daemon, agent));
    for file in ["quick", "slow"] {
        yes(&daemon, &question(&daemon, &format!("/{file}")));
    }
    daemon
        .wait("both to run", || ["quick", "slow"].iter().all(|file| !counted(&folder, file).is_empty()).then_some(()));
    assert_eq!(daemon.terminate(), Some(0));
    assert_eq!(stub.requests().len(), 2, "an ending daemon asks no model");
    daemon.again();
    let [quick, slow] = ids.map(|id| finished(&daemon, &id)["text"].as_str().expect("text").to_owned());
    assert!(quick.contains("exit code 0"), "{quick}");
    assert!(slow.contains("Nobody knows whether it was done"), "{slow}");
    assert_eq!(
        (counted(&folder, "quick").join(" "), counted(&folder, "slow").join(" ")),
        ("begun ended".into(), "begun".into())
    );
    assert_eq!(stub.requests().len(), 4);
    let mut outcomes: Vec<String> = outcomes(&daemon).into_iter().map(|(_, outcome)| outcome).collect();
    outcomes.sort();
    assert_eq!(outcomes, ["done", "unknown"]);
}
