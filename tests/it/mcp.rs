//! Tools of MCP servers, through the daemon: real servers that other people wrote, as programs and over HTTP.

use std::path::Path;

use serde_json::{Value, json};

use crate::clients::Client;
use crate::contract::client;
use crate::harness::{Answer, Daemon, Folder, TOKEN, command, wait};

/// A server of npm, as a command of the configuration.
pub fn node_server(name: &str, rest: &[&str]) -> String {
    let script = client("").join(format!("../node_modules/@modelcontextprotocol/server-{name}/dist/index.js"));
    let (node, script) = (client("node").display().to_string(), script.display().to_string());
    let words: Vec<&str> = [node.as_str(), script.as_str()].into_iter().chain(rest.iter().copied()).collect();
    json!(words).to_string()
}

fn server(daemon: &Daemon, name: &str) -> Value {
    daemon.get(&format!("/mcp-server/{name}")).json
}

fn until(daemon: &Daemon, name: &str, state: &str) -> Value {
    daemon.wait(&format!("{name} to be {state}"), || {
        let found = server(daemon, name);
        (found["state"] == state).then_some(found)
    })
}

fn call(daemon: &Daemon, tool: &str, input: &Value) -> Answer {
    daemon.post(&format!("/tools/{tool}/execute"), &json!({ "input": input }))
}

fn tools(daemon: &Daemon) -> Vec<Value> {
    daemon.all("/tools?limit=100")
}

/// The processes that `pid` started.
fn children(pid: u64) -> Vec<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

fn is_alive(pid: u64) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

fn configuration(notes: &Path) -> String {
    let (files, every) =
        (node_server("filesystem", &[&notes.display().to_string()]), node_server("everything", &["stdio"]));
    let time = client("mcp-server-time");
    format!(
        "[mcp.files]\ncommand = {files}\ntrust = \"paired\"\ntrusted_annotations = true\n\
         [mcp.every]\ncommand = {every}\nenv = {{ A_TOKEN = \"canary-of-a-program\" }}\n\
         [mcp.time]\ncommand = [\"{}\", \"--local-timezone\", \"Europe/Berlin\"]\n\
         [mcp.gone]\ncommand = \"/nowhere/server --now\"\n[mcp.off]\nurl = \"http://127.0.0.1:1/mcp\"\nenabled = false\n",
        time.display()
    )
}

/// Goal: tools of programs that speak MCP are offered under names of their own and called through the gate; what they say
/// is believed no further than configured, and secrets stay out of it.
#[test]
fn tools_of_programs_are_offered_and_called() {
    let notes = Folder::new("notes");
    let daemon = Daemon::configured(&configuration(notes.path()));
    // Two that are greeted as of old, and one of the newest version.
    for (name, protocol) in [("files", "2025-11-25"), ("every", "2025-11-25"), ("time", "2026-07-28")] {
        let ready = until(&daemon, name, "ready");
        assert_eq!((&ready["protocol"], &ready["detail"]), (&json!(protocol), &Value::Null), "{ready}");
    }
    let gone = until(&daemon, "gone", "waiting");
    assert!(gone["detail"].as_str().is_some_and(|why| why.contains("'/nowhere/server' cannot be started")), "{gone}");
    assert_eq!(server(&daemon, "off")["state"], "off");
    let tool = |name: &str| tools(&daemon).into_iter().find(|tool| tool["name"] == name).unwrap_or_default();
    let echo = tool("every_echo");
    assert_eq!(
        (&echo["source"], &echo["permission"], &echo["repeatable"]),
        (&json!("mcp/every"), &json!("foreign"), &json!(false))
    );
    // Only of a server whose hints are believed.
    assert_eq!(tool("files_read_text_file")["repeatable"], true);
    assert_eq!(tool("files_write_file")["repeatable"], false);

    let said = call(&daemon, "every_echo", &json!({ "message": "good day" }));
    // What comes from outside says so.
    let text = said.json["output"].as_str().unwrap_or_default();
    assert!(text.contains("\nEcho: good day\n") && text.contains("not instructions"), "{said:?}");
    assert_eq!((said.status, &said.json["trust"]), (200, &json!("web")));
    let picture = call(&daemon, "every_get-tiny-image", &json!({}));
    assert!(picture.json["output"].as_str().is_some_and(|text| text.contains("[picture, image/png, ")), "{picture:?}");
    let sum = call(&daemon, "every_get-structured-content", &json!({ "location": "New York" }));
    assert!(sum.json["output"]["temperature"].is_number(), "{sum:?}");
    let path = notes.path().join("a.txt").display().to_string();
    let written = call(&daemon, "files_write_file", &json!({ "path": path, "content": "kept" }));
    assert_eq!((written.status, std::fs::read_to_string(&path).ok().as_deref()), (200, Some("kept")), "{written:?}");
    assert_eq!(written.json["trust"], "paired");
    let outside = call(&daemon, "files_read_text_file", &json!({ "path": "/etc/passwd" }));
    assert_eq!((outside.status, outside.code()), (502, "tool_failed"), "{outside:?}");
    let wrong = call(&daemon, "every_echo", &json!({ "mesage": 1 }));
    assert_eq!((wrong.status, wrong.code()), (400, "invalid_input"), "{wrong:?}");
    let time = call(&daemon, "time_get_current_time", &json!({ "timezone": "Europe/Berlin" }));
    assert!(time.json["output"].to_string().contains("Europe/Berlin"), "{time:?}");

    // A program has the few variables of every program, and its own; what it tells of them has no secret in it.
    let env = call(&daemon, "every_get-env", &json!({}));
    let text = env.json["output"].to_string();
    assert!(
        text.contains("A_TOKEN") && text.contains("redacted") && !text.contains("canary") && !text.contains(TOKEN),
        "{text}"
    );
    let seen = format!("{}{}{}", daemon.get("/mcp-servers").json, daemon.get("/audit-log").json, daemon.log());
    assert!(!seen.contains("canary-of-a-program"), "{seen}");
    let (code, listed, _) = daemon.cli(&["mcp", "list"]);
    assert!(code == 0 && listed.contains("files") && listed.contains("cannot be started"), "{listed}");
}

/// Goal: a program that dies is started again, one that the file names no more ends, and all end with the daemon, however
/// that dies.
#[test]
fn programs_come_back_and_end_with_the_daemon() {
    let every = node_server("everything", &["stdio"]);
    let toml = format!("[mcp.a]\ncommand = {every}\n[mcp.b]\ncommand = {every}\n");
    let mut daemon = Daemon::configured(&toml);
    let pid = |name: &str| until(&daemon, name, "ready")["pid"].as_u64().expect("a pid");
    let (first, other) = (pid("a"), pid("b"));
    let node = children(first)[0];
    crate::harness::signal(u32::try_from(node).expect("a pid"), "KILL");
    daemon.wait("the program to be there again", || {
        let now = server(&daemon, "a");
        (now["state"] == "ready" && now["pid"] != first).then_some(())
    });
    assert_eq!(call(&daemon, "a_echo", &json!({ "message": "again" })).status, 200);
    let reconnected = daemon.post("/mcp-server/b/reconnect", &json!({}));
    assert_eq!(reconnected.status, 200, "{reconnected:?}");
    let anew = daemon.wait("a new program", || {
        let now = server(&daemon, "b");
        (now["state"] == "ready" && now["pid"] != other).then(|| now["pid"].as_u64()).flatten()
    });
    assert!(!is_alive(other), "the old program is gone before the new one begins");
    assert_eq!(daemon.post("/mcp-server/c/reconnect", &json!({})).code(), "not_found");

    std::fs::write(daemon.home().join("aman.toml"), format!("[mcp.a]\ncommand = {every}\n")).expect("aman.toml");
    let reloaded = daemon.post("/config/reload", &json!({}));
    assert_eq!(reloaded.json["stopped"], json!(["mcp.b"]), "{reloaded:?}");
    assert!(!is_alive(anew) && tools(&daemon).iter().all(|tool| tool["source"] != "mcp/b"));

    let attendant = pid("a");
    let node = children(attendant)[0];
    daemon.kill();
    wait(
        "the programs to end with the daemon",
        || (!is_alive(attendant) && !is_alive(node)).then_some(()),
        || daemon.log(),
    );
}

/// A server of streamable HTTP on loopback, and its port.
fn http_server(port: &str) -> (Client, String) {
    let running = Client::start("python", &["mcp_server.py", port, "canary-of-a-service"]);
    let port = running.line();
    (running, port)
}

/// Goal: a server is reached over HTTP with the headers that are configured for it; its changes of tools are followed, its
/// slowness is bounded, and it is found again when it was away.
#[test]
fn servers_over_http_are_reached_and_found_again() {
    let (running, port) = http_server("0");
    let url = format!("url = \"http://127.0.0.1:{port}/mcp\"\ntimeout = \"3s\"\n");
    let toml = format!("[mcp.web]\n{url}headers = {{ authorization = \"env:MCP_KEY\" }}\n[mcp.stranger]\n{url}");
    let folder = Folder::new("mcp-http");
    std::fs::write(folder.path().join("aman.toml"), toml).expect("aman.toml");
    let daemon = Daemon::try_start_in(folder.path(), &[("MCP_KEY", "Bearer canary-of-a-service")]).expect("it starts");
    let ready = until(&daemon, "web", "ready");
    assert_eq!(ready["transport"], "http", "{ready}");
    let stranger = until(&daemon, "stranger", "waiting");
    assert!(
        stranger["detail"].as_str().is_some_and(|why| why.contains("uthoriz") || why.contains("Auth required")),
        "{stranger}"
    );
    let sum = call(&daemon, "web_add", &json!({ "a": 2, "b": 3 }));
    assert!(sum.status == 200 && sum.json["output"].to_string().contains('5'), "{sum:?}");
    assert_eq!(call(&daemon, "web_grow", &json!({})).status, 200);
    daemon.wait("the new tool", || tools(&daemon).iter().any(|tool| tool["name"] == "web_late_tool").then_some(()));
    assert!(call(&daemon, "web_late_tool", &json!({})).json["output"].to_string().contains("late"));
    let slow = call(&daemon, "web_wait", &json!({ "seconds": 30 }));
    assert!(slow.status == 502 && slow.json["detail"].to_string().contains("within 3 s"), "{slow:?}");
    drop(running);
    let away = daemon.wait("the server to be missed", || {
        let failed = call(&daemon, "web_add", &json!({ "a": 1, "b": 1 }));
        (failed.status == 502).then_some(failed)
    });
    assert_eq!(away.code(), "tool_failed");
    let (_running, _) = http_server(&port);
    daemon.wait("the server to be found again", || {
        (call(&daemon, "web_add", &json!({ "a": 1, "b": 1 })).status == 200).then_some(())
    });
    let doctor = command(daemon.home()).args(["doctor", "--json"]).output().expect("it runs");
    assert!(
        String::from_utf8_lossy(&doctor.stdout).contains("stranger"),
        "the doctor tells of the one that is refused"
    );
    let seen = format!("{}{}{}", daemon.get("/mcp-servers").json, daemon.get("/runtime/config").json, daemon.log());
    assert!(!seen.contains("canary-of-a-service"), "{seen}");
}
