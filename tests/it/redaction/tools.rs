//! Secrets of programs and services whose tools agents use, said by those themselves: in results, errors, greetings and pages; and
//! by models in what they ask for. Nothing holds them: questions to the person, exports, what other programs are answered.

use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::{TOKEN, assert_clean, send};
use crate::harness::{Daemon, Folder, Stream, command};
use crate::mcp::node_server;
use crate::models::stub::{Reply, Stub};
use crate::peer::Peer;

/// Of the provider, of a program's environment, of a service's headers, of the search; see [`super::TRACES`].
const MODEL: &str = "canary-model/\"key\" 77ab01";
const PROGRAM: &str = "canary-program\\5d11e0";
const SERVICE: &str = "canary-service-9a+x=y";
const SEARCH: &str = "canary-search&c0ffee";
const ALL: [&str; 5] = [MODEL, PROGRAM, SERVICE, SEARCH, TOKEN];

/// Everything that is to be said by nobody.
fn all() -> String {
    ALL.join(", ")
}

/// The calls that the model asks for, one after the other: what a person is asked about first, since later nothing is believed.
fn calls(peer: &str) -> Vec<(&'static str, Value)> {
    vec![
        ("exec", json!({ "argv": ["echo", all()] })),
        ("write", json!({ "path": format!("~/notes/{SEARCH}.txt"), "content": all() })),
        ("vault_get-env", json!({})),
        ("vault_echo", json!({ "message": all() })),
        ("vault_echo", json!({ "mesage": all() })),
        ("web_search", json!({ "query": "tea" })),
        ("http_fetch", json!({ "url": format!("{peer}/page") })),
        ("http_fetch", json!({ "url": format!("{peer}/away") })),
        ("publish_event", json!({ "type": "leak.tool", "data": { "said": all() }, "subject": SERVICE })),
    ]
}

/// What the model answers: the next of its calls, or, to a person, all that it knows, in pieces.
fn think(request: &str, peer: &str) -> Reply {
    let body = request.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let body: Value = serde_json::from_str(body).expect("JSON");
    let messages = body["messages"].as_array().expect("messages");
    let done = messages.iter().filter(|message| message["role"] == "tool").count();
    match calls(peer).get(done).filter(|_| messages[0]["content"].to_string().contains("Do the work.")) {
        Some((tool, input)) => Reply::call(&format!("I say {}. ", all()), &format!("call-{done}"), tool, input),
        None => {
            let all: Vec<char> = all().chars().collect();
            let pieces: Vec<String> = all.chunks(5).map(|piece| piece.iter().collect()).collect();
            let pieces: Vec<&str> = ["You said: "].into_iter().chain(pieces.iter().map(String::as_str)).collect();
            Reply::words(&pieces)
        }
    }
}

/// A web server that repeats every secret that it was told, as an address that needs credentials, as a search and as pages.
fn gossip() -> Peer {
    let peer = Peer::start();
    let challenge = format!("Bearer error=\"{}\"", SERVICE);
    peer.answer("401 Unauthorized", &[("www-authenticate", challenge.as_str())], &format!("{} is not let in", all()));
    let found = json!({ "results": [{ "title": all(), "url": format!("https://t/{SEARCH}"), "content": all() }] });
    peer.page("/search?q=tea", "200 OK", &[("content-type", "application/json")], &found.to_string());
    peer.page("/page", "200 OK", &[("content-type", "text/html; charset=utf-8")], &format!("<p>{}</p>", all()));
    peer.page("/away", "302 Found", &[("location", "http://localhost:1/canary-search&c0ffee")], &all());
    peer
}

fn start(home: &Path, stub: &Stub, peer: &Peer, env: &[(&str, &str)]) -> Daemon {
    let (vault, stub, peer) = (node_server("everything", &["stdio"]), stub.url(), peer.url());
    let config = format!(
        "[http]\nmcp = true\nopenai = true\n[http_client]\nallow_private = true\n\
         [models]\ndefault = \"stub/m\"\nmax_retries = 0\n\
         [providers.stub]\nkind = \"openai\"\nurl = \"{stub}\"\nkey = \"env:CANARY_MODEL\"\nmodels = [\"m\"]\n\
         [mcp.vault]\ncommand = {vault}\nenv = {{ VAULT_KEY = \"env:CANARY_PROGRAM\" }}\n\
         [mcp.gate]\nurl = \"{peer}/mcp\"\nheaders = {{ authorization = \"env:CANARY_SERVICE\" }}\n\
         [tools]\nhosts = [\"127.0.0.1\"]\n\
         [tools.search]\nurl = \"{peer}/search?q={{query}}\"\nkey = \"env:CANARY_SEARCH\"\n"
    );
    std::fs::write(home.join("aman.toml"), config).expect("aman.toml");
    for folder in ["agents", "notes"] {
        std::fs::create_dir_all(home.join(folder)).expect("a folder");
    }
    let worker = "instructions = \"Do the work.\"\n[tools]\nallow = [\"*\", \"vault_*\"]\napprove = [\"write\"]\n\
                  exec = [\"echo\"]\nwrite = [\"~/notes\"]\nhosts = [\"127.0.0.1\"]\n";
    std::fs::write(home.join("agents/worker.toml"), worker).expect("an agent");
    Daemon::try_start_in(home, env).unwrap_or_else(|log| panic!("it did not start: {log}"))
}

fn post(daemon: &Daemon, path: &str, body: &Value) -> crate::harness::Answer {
    let headers = [("content-type", "application/json"), ("accept", "application/json, text/event-stream")];
    send(daemon, "POST", path, &headers, body.to_string().as_bytes())
}

fn get(daemon: &Daemon, path: &str) -> crate::harness::Answer {
    send(daemon, "GET", path, &[], b"")
}

/// Has the worker's turn taken; every question is shown everywhere, and answered. Gives its session.
fn work(daemon: &Daemon) -> String {
    let event = json!({ "source": "test", "type": "t.work", "agent_id": "worker", "data": { "say": all() } });
    assert_eq!(post(daemon, "/events/push", &event).status, 202);
    let mut session = String::new();
    // Behind the first result of others every act is asked about.
    for (tool, answer) in [("exec", "--no"), ("write", "--no"), ("vault_echo", "--yes"), ("publish_event", "--no")] {
        let asked = daemon.wait("a question", || {
            get(daemon, "/tool-auth/pending").items().into_iter().find(|one| one["tool"] == tool)
        });
        assert!(asked["arguments"].to_string().contains("redacted"), "{asked}");
        let has_preview = ["exec", "write"].contains(&tool);
        assert!(!has_preview || asked["preview"].to_string().contains("redacted"), "{asked}");
        let id = asked["id"].as_str().expect("an id");
        for arguments in [&["approve"][..], &["approve", id, answer], &["approve", "list"]] {
            let output =
                command(daemon.home()).args(arguments).env("AMAN_HTTP_TOKEN", TOKEN).output().expect("it runs");
            assert_clean(&format!("the output of {arguments:?}"), &[output.stdout, output.stderr].concat());
        }
        asked["session"].as_str().expect("a session").clone_into(&mut session);
    }
    daemon.wait("the turn to end", || {
        (get(daemon, &format!("/chat/session/{session}/state")).json["turn"]["status"] == "done").then_some(())
    });
    session
}

/// What other programs ask: the chat of OpenAI, tools of MCP, tools by name.
fn ask_as_others(daemon: &Daemon) {
    for stream in [false, true] {
        let body = json!({ "model": "aman", "stream": stream, "messages": [{ "role": "user", "content": all() }] });
        let said = post(daemon, "/v1/chat/completions", &body);
        let text = String::from_utf8_lossy(&said.body).into_owned();
        assert!(said.status == 200 && text.contains("redacted"), "{text}");
    }
    assert_eq!(post(daemon, "/v1/chat/completions", &json!({ "model": SERVICE, "messages": [] })).status, 400);
    assert_eq!(post(daemon, "/v1/chat/completions", &json!({ "model": "aman", SERVICE: 1 })).status, 400);
    assert_eq!(get(daemon, "/v1/models").status, 200);
    for (tool, input) in [
        ("publish_event", json!({ "type": "leak.mcp", "data": all() })),
        ("publish_event", json!({ "type": SERVICE })),
        ("search_events", json!({ "types": "leak.*" })),
        ("search_events", json!({ "types": "aman.**" })),
        ("why", json!({ "event": SERVICE })),
        ("list_dead_letters", json!({})),
        ("read_skill", json!({ "name": SERVICE })),
        (SERVICE, json!({})),
    ] {
        let params = json!({ "name": tool, "arguments": input });
        let said =
            post(daemon, "/mcp", &json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params }));
        assert_eq!(said.status, 200, "{tool}: {said:?}");
    }
    for (tool, input) in [
        ("vault_get-env", json!({})),
        ("vault_echo", json!({ "message": all() })),
        ("vault_echo", json!({ SERVICE: all() })),
        ("web_search", json!({ "query": "tea" })),
        (SERVICE, json!({})),
    ] {
        let said = post(daemon, &format!("/tools/{}/execute", tool), &json!({ "input": input }));
        assert!([200, 400, 404].contains(&said.status), "{tool}: {said:?}");
    }
}

fn read_everything(daemon: &Daemon, session: &str, env: &[(&str, &str)]) {
    let chat = format!("/chat/session/{session}");
    for path in [
        &format!("{chat}/history"),
        &format!("{chat}/export?format=md"),
        &format!("{chat}/export?format=json"),
        &format!("{chat}/stream"),
        "/chat/sessions?kind=all",
        "/mcp-servers",
        "/mcp-server/gate",
        "/tools",
        "/capabilities",
        "/memory/export?format=json",
        "/events/recent?limit=1000",
        "/audit-log?limit=1000",
        "/notifications",
        "/runtime/config",
        "/debug/metrics",
    ] {
        let answer = get(daemon, path);
        assert!([200, 400].contains(&answer.status), "{path}: {answer:?}");
    }
    for arguments in [
        &["mcp", "list"][..],
        &["mcp", "show", "gate"],
        &["mcp", "show", "vault"],
        &["session", "export", session],
        &["session", "show", session],
        &["doctor"],
        &["audit", "list", "--json"],
        &["logs", "-n", "100000"],
    ] {
        let output = command(daemon.home()).args(arguments).envs(env.iter().copied()).output().expect("it runs");
        assert_clean(&format!("the output of {arguments:?}"), &[output.stdout, output.stderr].concat());
    }
}

/// Goal: whoever repeats the secrets of tools, in whatever place, leaves them nowhere: questions and their previews, results,
/// transcripts, exports, answers to other programs, events, audit, logs, files; and the model hears of none.
#[test]
fn no_secret_of_a_tool_is_written_anywhere() {
    let (peer, seen): (Peer, Arc<Mutex<Vec<String>>>) = (gossip(), Arc::default());
    let (keeping, url) = (Arc::clone(&seen), peer.url());
    let stub = Stub::thinking(move |request| {
        keeping.lock().expect("not poisoned").push(request.to_owned());
        think(request, &url)
    });
    let folder = Folder::new("canary-tools");
    let home = folder.path();
    let env = [
        ("AMAN_HTTP_TOKEN", TOKEN),
        ("CANARY_MODEL", MODEL),
        ("CANARY_PROGRAM", PROGRAM),
        ("CANARY_SERVICE", SERVICE),
        ("CANARY_SEARCH", SEARCH),
        ("AMAN_LOG_LEVEL", "trace"),
    ];
    let daemon = start(home, &stub, &peer, &env);
    let mut stream = Stream::open(&daemon, "/events/stream", &[("x-aman-token", TOKEN)]);
    let server = |name: &str, wanted: &str| {
        daemon.wait("the server", || {
            let shown = get(&daemon, &format!("/mcp-server/{name}")).json;
            (shown["state"] == wanted).then_some(shown)
        })
    };
    server("vault", "ready");
    assert!(server("gate", "waiting")["detail"].is_string(), "it was refused, and says how");
    assert!(peer.requests().iter().any(|request| request.contains("canary-service")), "the service is told its secret");
    let session = work(&daemon);
    let shown = get(&daemon, &format!("/chat/session/{session}/history?limit=100")).items();
    let results: Vec<&Value> = shown.iter().filter(|message| message["role"] == "tool").collect();
    assert_eq!(results.len(), calls("").len(), "{results:?}");
    for (n, what) in [(2, "VAULT_KEY"), (3, "redacted"), (5, "redacted"), (6, "redacted")] {
        assert!(results[n]["text"].to_string().contains(what), "{}", results[n]);
    }
    ask_as_others(&daemon);
    read_everything(&daemon, &session, &env);
    let mut lines = Vec::new();
    while !lines.iter().any(|line: &String| line.contains("leak.mcp")) {
        lines.push(stream.line().expect("the stream goes on"));
    }
    assert_clean("the stream", lines.join("\n").as_bytes());
    super::agents::nothing_is_left(daemon, home, &seen.lock().expect("not poisoned"));
}
