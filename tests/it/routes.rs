//! The routes that ask: health, metrics, runtime, recent, types, dump, trace, why; and the rules that all routes share.

mod why;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use aman::api::auth::Scope;
use aman::api::routes;
use serde_json::{Value, json};

use crate::harness::{Daemon, Folder, TOKEN, write_skill};

fn object<'a>(value: &'a Value, path: &str) -> &'a serde_json::Map<String, Value> {
    value.pointer(path).and_then(Value::as_object).unwrap_or_else(|| panic!("{path} is no object in {value}"))
}

/// Goal: health says in one shape whether the daemon lives, serves and has a model, and names no path or host.
#[test]
fn health_has_one_shape() {
    let daemon = Daemon::start();
    for (path, status, word) in [
        ("/health/live", 200, "ok"),
        ("/health/ready", 200, "ok"),
        ("/health", 200, "ok"),
        ("/health/llm", 503, "unavailable"),
    ] {
        let answer = daemon.send("GET", path, &[], None);
        assert_eq!((answer.status, &answer.json["status"]), (status, &json!(word)), "{path}");
        assert_eq!(answer.json["phase"], "ready");
        for (name, check) in object(&answer.json, "/checks") {
            assert!(check["ok"].is_boolean() && check["detail"].is_string(), "{path} {name}: {check}");
        }
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let home = daemon.home().display().to_string();
        assert!(!text.contains(&home) && !text.contains(&daemon.address) && !text.contains(TOKEN), "{text}");
    }
    let llm = daemon.send("GET", "/health/llm", &[], None).json;
    assert_eq!(llm["checks"]["llm"], json!({"ok": false, "detail": "no provider configured"}));
}

/// The value of a metric with these labels.
fn metric(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().expect("a number")
}

/// Goal: metrics are Prometheus text with names of our own, and count what happened.
#[test]
fn metrics_are_prometheus_text() {
    let folder = Folder::new("metrics");
    write_skill(folder.path(), "dies", &["aman.on: t.die"], "exit 65");
    let daemon = Daemon::start_in(folder.path());
    daemon.post("/skill/dlq-summary/disable", &json!({}));
    for _ in 0..3 {
        daemon.push("t.die", json!({}));
    }
    daemon.settle();
    let answer = daemon.send("GET", "/metrics", &[], None);
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("text/plain; version=0.0.4; charset=utf-8")));
    let text = String::from_utf8(answer.body).expect("UTF-8");
    let mut typed = BTreeSet::new();
    for line in text.lines() {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["#", "TYPE", name, kind] => {
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert!(typed.insert(name.to_owned()), "one head for each: {line}");
            }
            ["#", "HELP", ..] => {}
            _ => {
                let name = line.split(['{', ' ']).next().expect("a name");
                assert!(name.starts_with("aman_") && typed.contains(name), "{line}");
            }
        }
    }
    assert_eq!(metric(&text, "aman_dlq_depth{consumer=\"skill/dies\"}"), 3.0);
    assert_eq!(metric(&text, "aman_deliveries_total{status=\"dead\"}"), 3.0);
    assert_eq!(metric(&text, "aman_events_total"), 7.0, "three pushes, three deaths, told once");
    let pushes = "aman_http_requests_total{method=\"POST\",route=\"/events/push\",status=\"2xx\"}";
    assert_eq!(metric(&text, pushes), 3.0);
    let bus = daemon.get("/debug/metrics").json["bus"].clone();
    assert_eq!((&bus["published"], &bus["dead"]), (&json!(7), &json!(3)), "{bus}");
    assert_eq!(bus["dlq_by_consumer"], json!({"skill/dies": 3}));
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/bin/promtool");
    if tool.exists() {
        let mut check = Command::new(tool)
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("promtool");
        std::io::Write::write_all(&mut check.stdin.take().expect("piped"), text.as_bytes()).expect("written");
        let output = check.wait_with_output().expect("promtool ends");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Goal: the status says where the daemon stands; the configuration shows each value with its origin, secrets never.
#[test]
fn runtime_tells_everything_but_secrets() {
    let folder = Folder::new("runtime");
    let toml = "[http]\ntoken = \"in-the-file-4711\"\npublic_stream = \"full\"\n[runtime]\ndrain_timeout = \"7s\"\n";
    std::fs::write(folder.path().join("aman.toml"), toml).expect("aman.toml");
    let daemon = Daemon::try_start_in(folder.path(), &[("AMAN_BUS_MAX_PENDING", "77")]).expect("it starts");
    let status = daemon.get("/runtime/status").json;
    for (name, value) in [
        ("phase", json!("ready")),
        ("ready", json!(true)),
        ("live", json!(true)),
        ("draining", json!(false)),
        ("auth", json!("token")),
        ("safe_mode", json!(false)),
        ("sequence", json!(0)),
    ] {
        assert_eq!(status[name], value, "{name}");
    }
    assert!(status["version"].is_string() && status["uptime_s"].is_u64(), "{status}");
    assert!(object(&status, "/subsystems").contains_key("store"), "{status}");
    let answer = daemon.get("/runtime/config");
    let items: BTreeMap<String, Value> =
        answer.items().into_iter().map(|item| (item["key"].as_str().expect("a key").to_owned(), item)).collect();
    let of = |key: &str| (items[key]["value"].clone(), items[key]["origin"].as_str().expect("an origin").to_owned());
    assert_eq!(of("http.token"), (json!({"populated": true}), "env".to_owned()));
    assert_eq!(of("runtime.drain_timeout"), (json!("7s"), "file".to_owned()));
    assert_eq!(of("bus.max_pending"), (json!(77), "env".to_owned()));
    assert_eq!(of("bus.dedup_window").1, "default");
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    assert!(!text.contains(TOKEN) && !text.contains("in-the-file-4711"), "{text}");
    assert!(!daemon.log().contains(TOKEN) && !daemon.log().contains("in-the-file-4711"));
    let start = daemon.post("/agent/start", &json!({}));
    assert_eq!((start.status, &start.json["status"]), (200, &json!("running")));
}

/// Goal: on every route an unknown parameter and an unknown field are refused by name; nothing counts as `{}`, and a
/// missing Content-Type as JSON.
#[test]
fn unknown_names_are_refused_everywhere() {
    let daemon = Daemon::start();
    let token = [("x-aman-token", TOKEN), ("x-aman-confirm", "yes")];
    for route in routes::core().iter().filter(|route| route.scope != Scope::Public) {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let path = route.path.replace("{trace_id}", trace).replace("{id}", "none").replace("{name}", "none");
        let method = route.method.as_str();
        // These are off unless they are asked for.
        if ["/inject-event", "/mcp"].contains(&path.as_str()) || path.starts_with("/v1/") {
            continue;
        }
        let parameter = daemon.send(method, &format!("{path}?no_such_name=1"), &token, None);
        assert_eq!((parameter.status, parameter.fields()), (400, vec!["no_such_name"]), "{method} {path}");
        if method == "POST" {
            if path == "/plugin/install" {
                // Its body is a package, never JSON.
                let json = daemon.send_bytes(method, &path, &token, b"{}");
                assert_eq!((json.status, json.code()), (415, "unsupported_media_type"), "{method} {path}");
                continue;
            }
            let body = json!({"no_such_field": 1, "source": "s", "type": "t"});
            let field = daemon.send_bytes(method, &path, &token, body.to_string().as_bytes());
            assert_eq!(field.status, 400, "{method} {path}: {field:?}");
            assert!(field.fields().contains(&"no_such_field"), "{method} {path}: {field:?}");
            let other = daemon.send_bytes(method, &path, &[token[0], token[1], ("content-type", "text/csv")], b"a,b");
            assert_eq!((other.status, other.code()), (415, "unsupported_media_type"), "{method} {path}");
            let large = daemon.send_bytes(method, &path, &token, &vec![b' '; route.body_bytes_max + 1]);
            assert_eq!((large.status, large.code()), (413, "body_too_large"), "{method} {path}");
        }
    }
    assert_eq!(daemon.send_bytes("POST", "/skills/reload", &token, b"").status, 200);
    assert_eq!(daemon.send_bytes("POST", "/skills/reload", &token, b" \n").status, 200);
}

/// Goal: pages of recent events are stable while events come in, limits are clamped, cursors belong to their list.
#[test]
fn recent_pages_are_stable() {
    let daemon = Daemon::start();
    for n in 0..25 {
        daemon.push(if n % 2 == 0 { "t.even" } else { "t.odd" }, json!(n));
    }
    for (filter, expected) in
        [("", (0..25).rev().collect::<Vec<_>>()), ("&types=*.odd", (0..25).rev().filter(|n| n % 2 == 1).collect())]
    {
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = daemon.get(&format!("/events/recent?limit=4&cursor={cursor}{filter}"));
            seen.extend(page.items().iter().filter_map(|event| event["data"].as_i64()));
            daemon.push("t.odd", json!("new"));
            match page.json["next_cursor"].as_str() {
                Some(next) => next.clone_into(&mut cursor),
                None => break,
            }
        }
        assert_eq!(seen, expected, "{filter}");
    }
    assert!(daemon.get("/events/recent?limit=99999").items().len() > 25);
    assert_eq!(daemon.get("/events/recent").items().len().min(50), daemon.get("/events/recent").items().len());
    let foreign = daemon.get("/events/types?limit=1").json["next_cursor"].as_str().expect("more types").to_owned();
    for (query, field) in [
        ("limit=0", "limit"),
        ("limit=1.5", "limit"),
        ("cursor=!", "cursor"),
        ("types=a..b", "types"),
        (&format!("cursor={foreign}"), "cursor"),
    ] {
        let answer = daemon.get(&format!("/events/recent?{query}"));
        assert_eq!((answer.status, answer.fields()), (400, vec![field]), "{query}");
    }
}

/// Goal: types are counted, with when the newest came.
#[test]
fn types_are_counted() {
    let daemon = Daemon::start();
    for (kind, count) in [("a.x", 3), ("a.y", 1), ("b", 2)] {
        for _ in 0..count {
            daemon.push(kind, json!({}));
        }
    }
    let seen = daemon.all("/events/types?limit=2");
    let counts: Vec<(&str, u64)> = seen
        .iter()
        .map(|one| (one["type"].as_str().expect("a type"), one["count"].as_u64().expect("a count")))
        .collect();
    assert_eq!(counts, [("a.x", 3), ("a.y", 1), ("b", 2)]);
    let newest = daemon.recent("b")[0]["time"].clone();
    assert_eq!(seen[2]["last_seen"], newest);
}

/// Goal: an event is found by its id, whatever characters that has; what is not there is not found.
#[test]
fn events_are_found_by_any_id() {
    let daemon = Daemon::start();
    for (id, path) in [
        ("a b", "a%20b"),
        ("a/b?c#d", "a%2Fb%3Fc%23d"),
        ("100%", "100%25"),
        ("ü☃", "%C3%BC%E2%98%83"),
        ("..", "%2E%2E"),
        ("a+b", "a+b"),
    ] {
        let answer = daemon.post("/events/push", &json!({"source": "s", "type": "t", "id": id}));
        assert_eq!(answer.status, 202, "{answer:?}");
        assert_eq!(daemon.get(&format!("/events/dump/{path}")).json["event"]["id"], id);
        assert_eq!(daemon.get(&format!("/events/{path}/why")).json["event"]["id"], id);
    }
    for path in ["/events/dump/none", "/events/none/why", "/events/dump/a%20b?source=other"] {
        let answer = daemon.get(path);
        assert_eq!((answer.status, answer.code()), (404, "not_found"), "{path}");
    }
    for (path, status) in [
        ("/events/trace/0af7651916cd43dd8448eb211c80319c", 404),
        ("/events/trace/x", 400),
        ("/events/trace/00000000000000000000000000000000", 400),
        ("/events/dump/%ff", 400),
    ] {
        assert_eq!(daemon.get(path).status, status, "{path}");
    }
}

/// Goal: the door for tests is shut unless the configuration opens it.
#[test]
fn injecting_needs_the_debug_setting() {
    let event = json!({"source": "s", "type": "t"});
    let shut = Daemon::start().post("/inject-event", &event);
    assert_eq!((shut.status, shut.code()), (403, "debug_disabled"));
    let open = Daemon::configured("[debug]\nforce_enable_debug_endpoints = true\n");
    let answer = open.post("/inject-event", &event);
    assert_eq!((answer.status, &answer.json["sequence"]), (202, &json!(1)));
}

/// Goal: above the mark of what may wait, pushes are refused before anything is stored, with when to come back; what
/// was accepted is worked off, and then there is room again.
#[test]
fn too_much_is_refused_and_nothing_is_shed() {
    let folder = Folder::new("busy");
    std::fs::write(folder.path().join("aman.toml"), "[bus]\nmax_pending = 5\n").expect("aman.toml");
    let gate = "while [ ! -e \"$AMAN_DATA/heal/on\" ]; do sleep 0.02; done";
    write_skill(folder.path(), "waits", &["aman.on: t.wait", "aman.permissions: read:$AMAN_DATA/heal"], gate);
    std::fs::create_dir(folder.path().join("heal")).expect("a folder");
    let daemon = Daemon::start_in(folder.path());
    let mut accepted = Vec::new();
    let refused = loop {
        let answer = daemon.post("/events/push", &json!({"source": "s", "type": "t.wait"}));
        if answer.status != 202 {
            break answer;
        }
        accepted.push(answer.json["id"].as_str().expect("an id").to_owned());
        assert!(accepted.len() < 100, "nobody stopped it");
    };
    assert_eq!((refused.status, refused.code()), (503, "overloaded"));
    assert!(refused.header("retry-after").is_some_and(|after| after.parse::<u64>().is_ok_and(|s| s >= 1)));
    assert!(accepted.len() >= 5, "{}", accepted.len());
    assert_eq!(daemon.recent("t.wait").len(), accepted.len(), "what was refused is not stored");
    std::fs::write(folder.path().join("heal/on"), "").expect("the mark is set");
    daemon.settle();
    assert!(accepted.iter().all(|id| daemon.outcome(id) == "done"));
    assert_eq!(daemon.post("/events/push", &json!({"source": "s", "type": "t.wait"})).status, 202);
}

/// Goal: a shutdown lets what runs end, refuses what is new, exits with 0, and leaves nothing to be repeated.
#[test]
fn shutdown_drains() {
    let folder = Folder::new("drain");
    let script = "echo run >> \"$AMAN_DATA/heal/runs\"; while [ ! -e \"$AMAN_DATA/heal/on\" ]; do sleep 0.02; done";
    write_skill(folder.path(), "waits", &["aman.on: t.wait", "aman.permissions: write:$AMAN_DATA/heal"], script);
    let mut daemon = Daemon::start_in(folder.path());
    let id = daemon.push("t.wait", json!({}));
    let runs = folder.path().join("heal/runs");
    daemon.wait("the script", || runs.exists().then_some(()));
    assert_eq!(daemon.post_confirmed("/agent/shutdown", &json!({})).status, 202);
    let refused = daemon.post("/events/push", &json!({"source": "s", "type": "t"}));
    assert_eq!((refused.status, refused.code()), (503, "draining"), "{refused:?}");
    assert!(refused.header("retry-after").is_some());
    let health = daemon.send("GET", "/health/ready", &[], None);
    assert_eq!((health.status, &health.json["phase"]), (503, &json!("draining")));
    assert_eq!(daemon.send("GET", "/health/live", &[], None).status, 200);
    std::fs::write(folder.path().join("heal/on"), "").expect("the mark is set");
    assert_eq!(daemon.ended_within(Duration::from_secs(10)), Some(0));
    daemon.again();
    let delivery = daemon.delivery(&id);
    assert_eq!((&delivery["status"], &delivery["attempt"]), (&json!("done"), &json!(1)), "{delivery}");
    assert_eq!(std::fs::read_to_string(&runs).expect("runs"), "run\n");
}
