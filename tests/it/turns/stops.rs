//! Stops in the middle of a tool that takes its time: of a command, and of a call of another program.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{asks_for, daemon_in, pending};
use crate::clients::Client;
use crate::harness::{Daemon, Folder, say};
use crate::models::stub::{Reply, Stub};

/// How long a stop may take here: it is done within 100 ms where nothing else is at work, which is said, and these tests run
/// beside others. The tools would take a minute.
const SOON: Duration = Duration::from_secs(2);

/// Begins a session in which the agent calls its tool.
fn begin(daemon: &Daemon) -> String {
    let session = daemon.post("/chat/session/create", &json!({ "agent_id": "worker" })).json["id"].clone();
    let place = format!("/chat/session/{}", session.as_str().expect("an id"));
    assert_eq!(daemon.post(&format!("{place}/send"), &json!({ "text": "run-0" })).status, 202);
    place
}

/// Stops the turn in the middle of its tool, and looks that everything says so.
fn stop(daemon: &Daemon, stub: &Stub, place: &str, what: &str) {
    let begun = Instant::now();
    let stopped = daemon.post(&format!("{place}/stop"), &json!({}));
    let took = begun.elapsed();
    assert_eq!((stopped.status, &stopped.json["stopped"]), (200, &json!(true)), "{stopped:?}");
    say(&format!("A stop in the middle of {what} took {:.1} ms.", took.as_secs_f64() * 1e3));
    assert!(took < SOON, "{took:?}");
    // Who stopped it is answered when the turn has ended.
    let state = daemon.get(&format!("{place}/state")).json;
    assert_eq!((&state["state"], &state["turn"]["status"]), (&json!("idle"), &json!("stopped")), "{state}");
    let last = state["messages"].as_array().and_then(|all| all.last().cloned()).expect("a message");
    let text = last["text"].as_str().unwrap_or_default();
    assert!(last["role"] == "tool" && last["is_error"] == true && text.contains("Nobody knows whether"), "{last}");
    let records = daemon.all("/audit-log?action=tool.execute&limit=100");
    assert!(records.len() == 1 && records[0]["outcome"] == "unknown", "{records:?}");
    assert_eq!(stub.requests().len(), 1, "the model is not asked again");
}

/// Goal: a stop ends a command with everything that it started.
#[test]
fn a_stop_ends_a_command() {
    let folder = Folder::new("stop-exec");
    std::fs::create_dir(folder.path().join("notes")).expect("a folder");
    let beat = folder.path().join("notes/beat");
    let script = format!("(while :; do echo x >> {}; sleep 0.02; done) & trap '' TERM; wait", beat.display());
    let input = json!({ "argv": ["sh", "-c", script] });
    let stub = Stub::thinking(move |_| Reply::call("", "call-1", "exec", &input));
    let daemon = daemon_in(&folder, &stub, &[("worker", "[tools]\nexec = [\"sh\"]\nwrite = [\"~/notes\"]")], "");
    let place = begin(&daemon);
    let asked = daemon.wait("the question", || pending(&daemon).pop());
    let yes = json!({ "auth_id": asked["id"], "approved": true });
    assert_eq!(daemon.post("/tool-auth/respond", &yes).status, 200);
    let beats = || std::fs::metadata(&beat).map_or(0, |found| found.len());
    daemon.wait("the command to run", || (beats() > 0).then_some(()));
    stop(&daemon, &stub, &place, "a command");
    let stopped = Instant::now();
    daemon.wait("the command to be gone", || {
        let before = beats();
        std::thread::sleep(Duration::from_millis(200));
        (beats() == before).then_some(())
    });
    assert!(stopped.elapsed() < SOON, "{:?}", stopped.elapsed());
}

/// Goal: a stop ends the wait for another program, which stays connected.
#[test]
fn a_stop_ends_the_wait_for_another_program() {
    let server = Client::start("python", &["mcp_server.py", "0"]);
    let besides = format!("[mcp.web]\nurl = \"http://127.0.0.1:{}/mcp\"\ntimeout = \"120s\"\n", server.line());
    let (folder, stub) = (Folder::new("stop-mcp"), asks_for("web_wait", "{\"seconds\": 60}"));
    let daemon = daemon_in(&folder, &stub, &[("worker", "[tools]\nallow = [\"web_wait\"]")], &besides);
    let shown = |wanted: &dyn Fn(&Value) -> bool| {
        daemon.wait("the server", || Some(daemon.get("/mcp-server/web").json).filter(|shown| wanted(shown)))
    };
    shown(&|shown| shown["state"] == "ready");
    let place = begin(&daemon);
    shown(&|shown| shown["calls"] == 1);
    stop(&daemon, &stub, &place, "a call of another program");
    assert_eq!(shown(&|_| true)["state"], "ready");
}
