//! The key of a provider, said by everybody who could say it: the model (also over several pieces), its calls of tools, the
//! provider's own errors, people. Nothing that aman writes or answers holds it, nor is it told to the model.

use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::{TOKEN, assert_clean, files, send};
use crate::harness::{Answer, Daemon, Folder, Stream, command};
use crate::models::stub::{Reply, Stub};

/// The key; see [`super::TRACES`].
const KEY: &str = "canary-model/\"key\" 77ab01";

/// What the model answers: it repeats the key wherever a model can say something, or the provider does in an error.
fn think(request: &str) -> Reply {
    let body = request.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let body: Value = serde_json::from_str(body).expect("JSON");
    let messages = body["messages"].as_array().expect("messages");
    if messages.iter().any(|message| message["role"] == "user" && message["content"].to_string().contains("fail")) {
        let error = json!({ "error": { "message": format!("Incorrect API key provided: {KEY}."), "code": KEY } });
        return Reply::status("401 Unauthorized", "content-type: application/json\r\n", &error.to_string());
    }
    match messages.iter().filter(|message| message["role"] == "tool").count() {
        0 => {
            let arguments = json!({ "text": format!("The key is {KEY}."), "tags": ["key"] });
            Reply::call(&format!("I know {KEY}. "), "call-0", "memory_save", &arguments)
        }
        1 => Reply::call("", "call-1", "memory_search", &json!({ "query": KEY })),
        2 => Reply::call("", "call-2", "no_such_tool", &json!({ KEY: [KEY] })),
        _ => Reply::words(&["It is cana", "ry-model/\"k", "ey\" 77", "ab01", ", is it not?"]),
    }
}

/// Reads the stream of everything until two turns have ended well, and one as a dead letter.
fn listen(daemon: &Daemon) -> std::thread::JoinHandle<Vec<String>> {
    let mut stream = Stream::open(daemon, "/events/stream", &[("x-aman-token", TOKEN)]);
    std::thread::spawn(move || {
        let (mut lines, mut ended) = (Vec::new(), 0);
        while ended < 3 {
            let Ok(line) = stream.line() else { break };
            ended +=
                usize::from(["event: aman.agent.turn.ended", "event: aman.delivery.dead"].contains(&line.as_str()));
            lines.push(line);
        }
        lines
    })
}

/// A daemon whose agents ask `stub`, which is let in with the key.
fn start(home: &Path, stub: &Stub, env: &[(&str, &str)]) -> Daemon {
    let config = format!(
        "[models]\ndefault = \"stub/m\"\nmax_retries = 0\n[providers.stub]\nkind = \"openai\"\nurl = \"{}\"\n\
         key = \"env:CANARY_MODEL\"\nmodels = [\"m\"]\n",
        stub.url()
    );
    std::fs::write(home.join("aman.toml"), config).expect("aman.toml");
    std::fs::create_dir_all(home.join("agents")).expect("a folder");
    for (agent, text) in [
        ("talker", "instructions = \"Talk.\"\n"),
        ("worker", "instructions = \"Work.\"\n[tools]\napprove = [\"memory_save\"]\n"),
    ] {
        std::fs::write(home.join(format!("agents/{agent}.toml")), text).expect("an agent");
    }
    Daemon::try_start_in(home, env).unwrap_or_else(|log| panic!("it did not start: {log}"))
}

fn post(daemon: &Daemon, path: &str, body: &Value) -> Answer {
    send(daemon, "POST", path, &[("content-type", "application/json")], body.to_string().as_bytes())
}

fn get(daemon: &Daemon, path: &str) -> Answer {
    send(daemon, "GET", path, &[], b"")
}

/// Three turns: one that waits for an approval, one of a chat, and one whose provider refuses the key.
fn talk(daemon: &Daemon) {
    let push = |what: &str| {
        let event =
            json!({ "source": "test", "type": "t.work", "agent_id": "worker", "data": { "do": what, "key": KEY } });
        assert_eq!(post(daemon, "/events/push", &event).status, 202);
    };
    push("work");
    let asked = daemon.wait("an approval", || get(daemon, "/tool-auth/pending").items().pop());
    let answer = json!({ "auth_id": asked["id"], "approved": true });
    assert_eq!(post(daemon, "/tool-auth/respond", &answer).status, 200);
    let session = post(daemon, "/chat/session/create", &json!({ "agent_id": "talker", "title": KEY }));
    let session = format!("/chat/session/{}", session.json["id"].as_str().expect("a session"));
    let said = post(daemon, &format!("{session}/send"), &json!({ "text": format!("What is {KEY}?") }));
    assert_eq!(said.status, 202, "{said:?}");
    daemon.wait("the answer", || {
        let state = get(daemon, &format!("{session}/state")).json;
        (state["state"] == "idle" && state.to_string().contains("is it not")).then_some(())
    });
    for path in ["/history", "/export?format=md", "/export?format=json", "/state"] {
        assert_eq!(get(daemon, &format!("{session}{path}")).status, 200, "{path}");
    }
    push("fail");
}

/// Requests that go wrong, with the key where they may hold a text, and everything that can be read.
fn ask_everything(daemon: &Daemon) {
    for (path, body) in [
        ("/memory", json!({ "text": "a", "agent_id": KEY })),
        ("/memory", json!({ "text": format!("{KEY}!") })),
        ("/soul/update", json!({ "content": format!("---\nname: {KEY}\n---\n") })),
        ("/soul/rollback", json!({ "digest": KEY })),
        ("/tools/memory_search/execute", json!({ "input": { "query": KEY } })),
        ("/tools/memory_search/execute", json!({ "input": { KEY: 1 } })),
        ("/models/test", json!({ "prompt": format!("fail {KEY}") })),
        ("/models/test", json!({ "model": KEY })),
        ("/chat/session/create", json!({ "agent_id": KEY })),
    ] {
        post(daemon, path, &body);
    }
    for path in [
        "/soul/info",
        "/soul/system-prompt?agent_id=worker",
        "/memory/export?format=md",
        "/usage?day=all",
        "/chat/sessions",
        "/chat/search?q=redacted",
        "/dlq",
        "/dlq/groups",
        "/audit-log?limit=1000",
        "/events/recent?limit=1000",
        "/notifications",
        "/tool-auth/rules",
        "/agents",
        "/models",
        "/health/llm",
        "/runtime/config",
        "/debug/metrics",
    ] {
        assert!([200, 503].contains(&get(daemon, path).status), "{path}");
    }
}

/// Goal: turns in which everybody repeats the key leave it nowhere: answers, streams, journal, approvals, memory, audit, dead
/// letters, problems, logs, outputs of commands, files; and the model hears of it no more.
#[test]
fn no_key_of_a_provider_is_written_anywhere() {
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let keeping = Arc::clone(&seen);
    let stub = Stub::thinking(move |request| {
        keeping.lock().expect("not poisoned").push(request.to_owned());
        think(request)
    });
    let folder = Folder::new("canary-agents");
    let home = folder.path();
    let env = [("AMAN_HTTP_TOKEN", TOKEN), ("CANARY_MODEL", KEY), ("AMAN_LOG_LEVEL", "trace")];
    let daemon = start(home, &stub, &env);
    let heard = listen(&daemon);
    talk(&daemon);
    let lines = heard.join().expect("the stream is read");
    assert!(lines.iter().any(|line| line.contains("redacted")), "what was said is told without the key");
    assert_clean("the stream", lines.join("\n").as_bytes());
    daemon.wait("a dead letter", || (get(&daemon, "/dlq/depth").json["depth"] != 0).then_some(()));
    let known = get(&daemon, "/memory").items();
    assert!(known.iter().all(|fact| fact["text"] == "The key is redacted."), "{known:?}");
    ask_everything(&daemon);
    for arguments in
        [&["memory", "list"][..], &["soul", "prompt", "--agent", "worker"], &["dlq", "list"], &["logs", "-n", "100000"]]
    {
        let output = command(home).args(arguments).envs(env).output().expect("the binary starts");
        assert_clean(&format!("the output of {arguments:?}"), &[output.stdout, output.stderr].concat());
    }
    nothing_is_left(daemon, home, &seen.lock().expect("not poisoned"));
}

/// Ends the daemon, and asserts that neither what the provider was asked nor any file of it holds a secret.
pub fn nothing_is_left(mut daemon: Daemon, home: &Path, seen: &[String]) {
    for request in seen {
        let (head, body) = request.split_once("\r\n\r\n").expect("a request");
        assert!(head.contains("canary-model"), "the provider is let in with the key");
        assert_clean("what the model is told", body.as_bytes());
    }
    assert_eq!(daemon.terminate(), Some(0));
    let mut all = Vec::new();
    files(home, &mut all);
    assert!(all.iter().any(|path| path.ends_with("aman.db")));
    for path in all.iter().filter(|path| !path.ends_with("token")) {
        assert_clean(&path.display().to_string(), path.display().to_string().as_bytes());
        assert_clean(&path.display().to_string(), &std::fs::read(path).expect("a file"));
    }
}
