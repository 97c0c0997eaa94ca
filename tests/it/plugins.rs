//! Plugins through the real daemon: installed, agreed to, called, upgraded, gone back, switched off, misbehaving.

mod acts;
mod data;
mod events;
mod kills;
mod load;
mod talks;
mod trust;

use std::path::Path;
use std::process::Command;

use aman::package::pack::Content;
use rusqlite::Connection;
use serde_json::{Value, json};

use crate::bundled_plugins;
use crate::harness::{Answer, Daemon, Folder, TOKEN, manifest};
use crate::package as packages;

/// The manifest of a plugin with routes, the tool `probe_it` and a page, without its version.
pub const MANIFEST: &str = r#"
name = "probe"
description = "A probe"
interface = "0.1"
component = "plugin.wasm"
[[routes]]
method = "GET"
path = "/t"
[[routes]]
method = "GET"
path = "/sse"
[[routes]]
method = "GET"
path = "/trap"
[[routes]]
method = "GET"
path = "/loops"
[[tools]]
name = "probe_it"
description = "Probes"
schema = "schemas/probe.json"
[[pages]]
id = "main"
title = "Probe"
path = "ui/index.html"
[limits]
time = "200ms"
"#;

/// Guests that the tests of the plugin host make of their text, and keep the same.
pub const ONE: &[u8] = include_bytes!("../fixtures/guests/one.wasm");
pub const TWO: &[u8] = include_bytes!("../fixtures/guests/two.wasm");

/// The package of a plugin that says `text` ("one" or "two"); `more` goes behind its manifest.
fn packed(version: &str, text: &str, more: &str) -> Vec<u8> {
    package(&format!("version = \"{version}\"\n{MANIFEST}{more}"), if text == "one" { ONE } else { TWO })
}

/// The component of a plugin of the repository, built from its source.
fn built(name: &str) -> Vec<u8> {
    let packed = bundled_plugins::package(name);
    let tar = Command::new("tar").arg("-xzOf").arg(packed).arg("plugin.wasm").output().expect("tar starts");
    assert!(tar.status.success(), "{}", String::from_utf8_lossy(&tar.stderr));
    tar.stdout
}

/// Writes the folder of a plugin.
fn write(folder: &Path, manifest: &str, component: &[u8]) {
    for (name, bytes) in [
        ("plugin.toml", manifest.as_bytes()),
        ("plugin.wasm", component),
        ("schemas/probe.json", br#"{"type":"object","properties":{"n":{"type":"integer"}}}"#),
        ("ui/index.html", b"<h1>Probe</h1>"),
    ] {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().expect("it has one")).expect("a folder");
        std::fs::write(path, bytes).expect("a file");
    }
}

/// What goes into a package, not signed yet; the error says why it makes none.
fn content(manifest: &str, component: &[u8]) -> Result<Content, aman::error::Error> {
    let folder = Folder::new("plugin");
    write(folder.path(), manifest, component);
    Content::read(folder.path())
}

/// A package of this manifest and component, without a signature.
pub fn package(manifest: &str, component: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    content(manifest, component).expect("a sound plugin").write(&mut packed).expect("in memory");
    packed
}

/// Why a package of this manifest is refused, if it is.
pub fn try_package(manifest: &str) -> Option<String> {
    content(manifest, ONE).err().map(|error| error.to_string())
}

/// What its component needs.
pub const PUBLISH: &str = "[permissions]\npublish = [\"test.**\"]\n";
const EVENTS: &str = "[[events]]\ntypes = [\"in.*\"]\n";

/// Installs as `query` says.
fn install_with(daemon: &Daemon, packed: &[u8], query: &str) -> Answer {
    let token = format!("Bearer {TOKEN}");
    let headers = [("authorization", token.as_str()), ("content-type", "application/gzip")];
    daemon.send_bytes("POST", &format!("/plugin/install?{query}"), &headers, packed)
}

/// As [`install_with`], for packages without a signature.
pub fn install(daemon: &Daemon, packed: &[u8], query: &str) -> Answer {
    install_with(daemon, packed, &format!("allow_unsigned=true&{query}"))
}

/// Installs it, and gives what is answered.
pub fn installed(daemon: &Daemon, packed: &[u8], query: &str) -> Value {
    let answer = install(daemon, packed, query);
    assert_eq!(answer.status, 201, "{answer:?}; {}", daemon.log());
    answer.json
}

/// Agrees to what waits.
pub fn approved(daemon: &Daemon, name: &str) -> Answer {
    let digest = daemon.get(&format!("/plugin/{name}")).json["pending"]["digest"].clone();
    daemon.post_confirmed(&format!("/plugin/{name}/approve"), &json!({ "digest": digest }))
}

/// The body as text.
pub fn body(answer: &Answer) -> String {
    String::from_utf8_lossy(&answer.body).into_owned()
}

/// Goal: what needs no consent runs at once and is served at once; it survives a kill; pages, tools and streams work.
#[test]
fn installed_served_and_kept() {
    let mut daemon = Daemon::start();
    assert_eq!(daemon.get("/api/v1/t").status, 404);
    let manifest = packed("1.0.0", "one", PUBLISH);
    let token = format!("Bearer {TOKEN}");
    let headers = [("authorization", token.as_str()), ("content-type", "application/gzip")];
    let unsigned = daemon.send_bytes("POST", "/plugin/install", &headers, &manifest);
    assert_eq!((unsigned.status, unsigned.code()), (403, "unsigned_plugin"));
    let waiting = installed(&daemon, &manifest, "");
    assert_eq!(waiting["status"], "pending_consent");
    assert_eq!(waiting["added"][0]["key"], "publish test.**");
    assert_eq!(daemon.get("/api/v1/t").status, 404);
    assert_eq!(daemon.post("/plugin/probe/approve", &json!({})).code(), "confirmation_required");
    let unseen = daemon.post_confirmed("/plugin/probe/approve", &json!({}));
    assert_eq!((unseen.status, unseen.fields()), (400, vec!["digest"]), "nobody agrees unseen");
    assert_eq!(approved(&daemon, "probe").json["state"], "active");
    for _ in 0..2 {
        let answer = daemon.get("/api/v1/t");
        assert_eq!((answer.status, body(&answer).as_str()), (200, "one"), "{}", daemon.log());
        assert!(answer.header("content-security-policy").is_some_and(|policy| policy.starts_with("sandbox")));
        assert_eq!(daemon.send("GET", "/api/v1/t", &[], None).status, 401);
        assert_eq!(daemon.call("POST", "/api/v1/t", None).status, 405);
        assert!(body(&daemon.get("/api/v1/sse")).contains("data: 1\n\ndata: 1\n\ndata: 1\n\n"));
        let page = daemon.send("GET", "/ui/plugin/probe/index.html", &[("sec-fetch-site", "cross-site")], None);
        assert_eq!((page.status, page.header("content-type")), (200, Some("text/html")));
        assert_eq!(daemon.get("/ui/plugin/probe/..%2fplugin.toml").status, 404);
        let pages = daemon.send("GET", "/ui/pages", &[], None).json;
        assert_eq!(pages["items"][0]["url"], "/ui/plugin/probe/index.html");
        let able = daemon.get("/capabilities").items();
        assert!(able.iter().any(|tool| tool["name"] == "probe_it" && tool["source"] == "plugin/probe"), "{able:?}");
        let called = daemon.post("/tools/probe_it/execute", &json!({ "input": { "n": 1 } }));
        assert_eq!((called.status, &called.json["output"]), (200, &Value::Null), "{called:?}");
        let wrong = daemon.post("/tools/probe_it/execute", &json!({ "input": { "n": "x" } }));
        assert_eq!((wrong.status, &wrong.json["errors"][0]["field"]), (400, &json!("input/n")));
        daemon.kill();
        daemon.again();
    }
    let gone = daemon.post("/plugin/probe/uninstall", &json!({ "purge_data": true }));
    assert_eq!(gone.json["deleted"], true, "{gone:?}");
    assert_eq!(daemon.get("/api/v1/t").status, 404);
    assert_eq!(daemon.get("/plugin/probe").status, 404);
    assert!(!daemon.home().join("plugins/probe").exists());
    assert_eq!(daemon.get("/audit-log/verify").json["ok"], true);
    let actions = daemon.get("/audit-log?action=plugin.install").items();
    assert!(actions.iter().any(|row| row["outcome"] == "begun") && actions.iter().any(|row| row["outcome"] == "done"));
}

/// Goal: an upgrade that asks for more waits while the old version serves, consent switches it, a rollback goes back; an
/// older one is refused; routes that somebody else has are refused by name.
#[test]
fn upgrades_wait_for_consent_and_can_be_taken_back() {
    let daemon = Daemon::start();
    installed(&daemon, &packed("1.0.0", "one", PUBLISH), "approve=true");
    let more = format!("{PUBLISH}kv = \"1MiB\"\n");
    let planned = install(&daemon, &packed("1.1.0", "two", &more), "dry_run=true");
    assert_eq!((planned.status, &planned.json["status"]), (200, &json!("pending_consent")), "{planned:?}");
    assert!(daemon.get("/plugin/probe").json["pending"].is_null());
    let waiting = installed(&daemon, &packed("1.1.0", "two", &more), "");
    assert_eq!((&waiting["added"][0]["key"], &waiting["replaces"]), (&json!("kv"), &json!("1.0.0")));
    assert_eq!(body(&daemon.get("/api/v1/t")), "one");
    assert_eq!(daemon.get("/plugin/probe").json["pending"]["version"], "1.1.0");
    let wrong = daemon.post_confirmed("/plugin/probe/approve", &json!({ "digest": "0".repeat(64) }));
    assert_eq!(wrong.code(), "version_conflict");
    assert_eq!(approved(&daemon, "probe").json["version"], "1.1.0");
    let digest = daemon.get("/plugin/probe").json["digest"].clone();
    let nothing = daemon.post_confirmed("/plugin/probe/approve", &json!({ "digest": digest }));
    assert_eq!((nothing.status, nothing.code()), (409, "invalid_state"));
    assert_eq!(body(&daemon.get("/api/v1/t")), "two");
    assert_eq!(install(&daemon, &packed("1.0.5", "one", PUBLISH), "").code(), "plugin_downgrade");
    assert_eq!(daemon.post_confirmed("/plugin/probe/rollback", &json!({})).json["version"], "1.0.0");
    assert_eq!(body(&daemon.get("/api/v1/t")), "one");
    let other = packed("1.0.0", "one", PUBLISH);
    let more = "permissions = { publish = [\"test.**\"] }\n[[routes]]\nmethod = \"GET\"\npath = \"/t\"\n";
    let clash = package(&format!("{}{more}", manifest("other", "1.0.0")), ONE);
    let refused = install(&daemon, &clash, "approve=true");
    assert_eq!((refused.status, refused.code()), (409, "already_exists"));
    assert!(refused.json["detail"].as_str().is_some_and(|text| text.contains("'probe'")), "{refused:?}");
    assert_eq!(install(&daemon, &other, "").status, 201);
}

/// Goal: a plugin that crashes is 502, one that hangs 504; too often, and it rests and comes back by itself; it is told.
#[test]
fn misbehaviour_ends_in_a_rest_and_comes_back() {
    let daemon = Daemon::start();
    installed(&daemon, &packed("1.0.0", "one", PUBLISH), "approve=true");
    let hung = daemon.get("/api/v1/loops");
    assert_eq!((hung.status, hung.code()), (504, "plugin_timeout"), "{hung:?}");
    for _ in 0..4 {
        let crashed = daemon.get("/api/v1/trap");
        assert_eq!((crashed.status, crashed.code()), (502, "plugin_trap"), "{crashed:?}");
    }
    let resting = daemon.get("/api/v1/t");
    assert_eq!((resting.status, resting.code()), (503, "plugin_unavailable"));
    assert!(resting.header("retry-after").is_some());
    assert_eq!(daemon.get("/plugin/probe").json["state"], "quarantined");
    daemon.wait("the quarantine is told", || daemon.recent("aman.plugin.quarantined").pop());
    daemon.wait("it comes back", || (daemon.get("/api/v1/t").status == 200).then_some(()));
    let told = daemon.wait("the first failure is told", || daemon.recent("aman.plugin.failed").pop());
    assert_eq!(told["data"]["plugin"], "probe");
    let rows = daemon.get("/audit-log?action=plugin.quarantined").items();
    assert_eq!(rows.len(), 1);
    let metrics = body(&daemon.get("/metrics"));
    assert!(metrics.contains("aman_plugins_faults_total{plugin=\"probe\",fault=\"trap\"} 4"), "{metrics}");
}

/// Goal: a plugin that rests does so after a kill as well, for as long as was left, and its next rest is twice as long;
/// its operator ends a rest at once and for good, and another version begins without one.
#[test]
fn a_rest_outlives_the_daemon_and_ends_by_command() {
    let mut daemon = Daemon::start();
    installed(&daemon, &packed("1.0.0", "one", &format!("{EVENTS}{PUBLISH}")), "approve=true");
    let until = |daemon: &Daemon| daemon.get("/plugin/probe").json["health"]["rests_until"].as_str().map(str::to_owned);
    let crash = |daemon: &Daemon| {
        for _ in 0..5 {
            daemon.get("/api/v1/trap");
        }
        daemon.wait("the quarantine is told", || until(daemon))
    };
    crash(&daemon);
    daemon.wait("it comes back", || (daemon.get("/api/v1/t").status == 200).then_some(()));
    let told = daemon.recent("aman.plugin.quarantined").len();
    crash(&daemon);
    daemon.wait("the quarantine is stored", || (daemon.recent("aman.plugin.quarantined").len() > told).then_some(()));
    daemon.kill();
    // As if it were a longer one, so that it is not over before a slow machine has looked.
    let stored = Connection::open(daemon.home().join("aman.db")).expect("the database");
    stored.execute("UPDATE plugin_rest SET until_ms = until_ms + 120000", []).expect("a row");
    drop(stored);
    daemon.again();
    let shown = daemon.get("/plugin/probe").json;
    assert_eq!((&shown["state"], &shown["health"]["rests"]), (&json!("quarantined"), &json!(2)), "{shown}");
    let left_ms = shown["health"]["rests_ms"].as_u64().expect("it still rests");
    assert!((60_000..=130_000).contains(&left_ms), "{shown}");
    assert!(shown["health"]["last_fault"].is_string() && daemon.get("/api/v1/t").code() == "plugin_unavailable");
    assert!(daemon.cli(&["plugin", "show", "probe"]).1.contains("rests until"));
    daemon.push("in.one", json!({}));
    let (code, _, error) = daemon.cli(&["plugin", "enable", "probe"]);
    assert_eq!(code, 0, "{error}");
    assert_eq!(daemon.get("/plugin/probe").json["state"], "active");
    assert_eq!(body(&daemon.get("/api/v1/t")), "one");
    daemon.settle();
    assert_eq!(daemon.recent("test.kind").len(), 1, "what waited for the end of the rest goes on at once");
    daemon.kill();
    daemon.again();
    let shown = daemon.get("/plugin/probe").json;
    assert_eq!((&shown["state"], &shown["health"]["rests"]), (&json!("active"), &json!(0)), "{shown}");
    crash(&daemon);
    let with = packed("1.1.0", "two", &format!("{EVENTS}{PUBLISH}"));
    assert_eq!(installed(&daemon, &with, "approve=true")["status"], "active");
    assert_eq!(body(&daemon.get("/api/v1/t")), "two");
    daemon.kill();
    daemon.again();
    assert_eq!(body(&daemon.get("/api/v1/t")), "two");
}

/// Goal: a source is polled, its events are stored, and a plugin that is switched off polls no more.
#[test]
fn sources_are_polled_and_stop() {
    let daemon = Daemon::start();
    let with = format!("{EVENTS}[[sources]]\nid = \"tick\"\nevery = \"1s\"\n{PUBLISH}");
    installed(&daemon, &packed("1.0.0", "one", &with), "approve=true");
    daemon.wait("two polls", || (daemon.recent("test.kind").len() >= 2).then_some(()));
    let found = daemon.recent("test.kind");
    assert_eq!((&found[0]["source"], &found[0]["trust"]), (&json!("plugin/probe"), &json!("plugin")));
    assert_eq!(daemon.post_confirmed("/plugin/probe/disable", &json!({})).json["state"], "disabled");
    assert_eq!(daemon.get("/api/v1/t").status, 404);
    let polled = daemon.recent("test.kind").len();
    // Two polls would have come; a slow machine can only hide them.
    std::thread::sleep(std::time::Duration::from_millis(2500));
    assert_eq!(daemon.recent("test.kind").len(), polled);
    assert_eq!(daemon.post("/plugin/probe/enable", &json!({})).json["state"], "active");
    assert_eq!(daemon.get("/api/v1/t").status, 200);
    daemon.wait("a poll again", || (daemon.recent("test.kind").len() > polled).then_some(()));
}

/// Goal: what a plugin polls is a source like any other: listed, shown, paused over a restart, resumed, and missed.
#[test]
fn what_a_plugin_polls_is_a_source_like_any_other() {
    let mut daemon = Daemon::configured("[plugin.probe]\nexpect_every = \"1s\"\n");
    let sources = "[[sources]]\nid = \"tick\"\nevery = \"1s\"\n[[sources]]\nid = \"slow\"\nevery = \"1d\"\n";
    installed(&daemon, &packed("1.0.0", "one", &format!("{sources}{PUBLISH}")), "approve=true");
    let source = |daemon: &Daemon, id: &str| daemon.get(&format!("/event-source/{id}")).json;
    daemon.wait("two polls", || (source(&daemon, "probe.tick")["polls"].as_u64()? >= 2).then_some(()));
    let ids: Vec<Value> = daemon.get("/event-sources").items().iter().map(|one| one["id"].clone()).collect();
    assert_eq!(ids, [json!("default"), json!("probe.slow"), json!("probe.tick")]);
    let tick = source(&daemon, "probe.tick");
    for (key, wanted) in [
        ("kind", json!("plugin")),
        ("source", json!("plugin/probe")),
        ("trust", json!("plugin")),
        ("paused", json!(false)),
        ("config", json!({ "every_s": 1 })),
        ("expect_every_s", json!(1)),
    ] {
        assert_eq!(tick[key], wanted, "{key}: {tick}");
    }
    assert!(tick["events"].as_u64() >= Some(2), "{tick}");
    assert!(tick["last_poll_at"].is_string() && tick["next_poll_at"].is_string() && tick["last_event_at"].is_string());
    assert!(daemon.cli(&["source", "list"]).1.contains("probe.slow"));
    let missed = daemon.wait("the slow one is missed", || {
        daemon.recent("aman.source.silent").into_iter().find(|event| event["data"]["id"] == "probe.slow")
    });
    assert_eq!(missed["data"]["source"], "plugin/probe");
    assert_eq!(source(&daemon, "probe.slow")["health"], "silent");
    let (code, _, error) = daemon.cli(&["source", "pause", "probe.tick"]);
    assert_eq!(code, 0, "{error}");
    assert_eq!(daemon.post("/event-source/probe.tick/pause", &json!({})).code(), "invalid_state");
    assert_eq!(daemon.call("PUT", "/event-source/probe.tick/config", Some(&json!({}))).code(), "not_settable");
    assert_eq!(daemon.get("/event-source/probe.none").code(), "not_found");
    let polls = |daemon: &Daemon| source(daemon, "probe.tick")["polls"].as_u64().expect("a number");
    daemon.wait("what runs ends", || (source(&daemon, "probe.tick")["state"] == "paused").then_some(()));
    daemon.kill();
    daemon.again();
    let before = polls(&daemon);
    let tick = source(&daemon, "probe.tick");
    assert_eq!((&tick["state"], &tick["health"]), (&json!("paused"), &json!("paused")), "{tick}");
    assert!(tick["next_poll_at"].is_null() && tick["last_poll_at"].is_string() && before >= 2, "{tick}");
    installed(&daemon, &packed("1.1.0", "two", &format!("{sources}{PUBLISH}")), "approve=true");
    assert_eq!(source(&daemon, "probe.tick")["state"], "paused", "also after an upgrade");
    assert_eq!(daemon.post("/event-source/probe.tick/resume", &json!({})).json["paused"], false);
    daemon.wait("it goes on", || (polls(&daemon) > before).then_some(()));
    let rows = daemon.get("/audit-log?action=source.pause").items();
    assert!(rows.iter().any(|row| row["target"] == "probe.tick" && row["outcome"] == "done"), "{rows:?}");
    for _ in 0..5 {
        daemon.get("/api/v1/trap");
    }
    let tick = source(&daemon, "probe.tick");
    assert_eq!((&tick["state"], &tick["health"]), (&json!("resting"), &json!("failing")), "{tick}");
    assert_eq!(daemon.post("/plugin/probe/enable", &json!({})).json["state"], "active");
    let before = polls(&daemon);
    daemon.wait("it goes on", || (polls(&daemon) > before).then_some(()));
    assert_eq!(daemon.post_confirmed("/plugin/probe/disable", &json!({})).json["state"], "disabled");
    assert_eq!(daemon.get("/event-source/probe.tick").code(), "not_found");
}

/// Goal: nothing hostile is installed over HTTP, nothing of it stays, and the daemon serves on.
#[test]
fn hostile_packages_leave_nothing() {
    let daemon = Daemon::start();
    for (name, packed, said) in packages::hostile() {
        let answer = install(&daemon, &packed, "approve=true");
        assert_eq!(answer.status, 400, "{name}: {answer:?}");
        let text = answer.json["detail"].as_str().unwrap_or_default();
        assert!(text.contains(said), "{name}: {text}");
    }
    assert_eq!(daemon.get("/plugins").items(), Vec::<Value>::new());
    let left = std::fs::read_dir(daemon.home().join("plugins/.staging")).expect("the folder").count();
    assert_eq!(left, 0);
    assert_eq!(daemon.get("/health/ready").status, 200);
}
