//! A listener of a plugin's own, through the real daemon: its routes at `/` behind the daemon's gate, errors as the plugin
//! spells them, ports that are taken, changes while requests run.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use serde_json::{Value, json};

use crate::access::{exchange_tls, with_tls};
use crate::harness::{Answer, Daemon, PATIENCE, TOKEN, exchange, free_address, manifest, request};
use crate::plugins::{ONE, TWO, body, installed, package};

/// A plugin whose routes are at both listeners, at its own only, open to anyone, and misbehaving.
const ROUTES: &str = r#"
[[routes]]
method = "GET"
path = "/t"
[[routes]]
method = "POST"
path = "/t"
body = "1KiB"
[[routes]]
method = "GET"
path = "/open/{id}"
public = true
[[routes]]
method = "GET"
path = "/"
listener = true
[[routes]]
method = "GET"
path = "/health"
listener = true
public = true
[[routes]]
method = "GET"
path = "/trap"
[[routes]]
method = "GET"
path = "/endless"
[permissions]
publish = ["test.**"]
"#;

const ERRORS: &str = r#"
[errors]
envelope = """
{ status: (if .code == "method_not_allowed" then 404 else .status end),
  headers: { "X-Product": "other" },
  body: { success: false, error: { code: (.code | ascii_upcase), message: .detail }, method: .method, allow: .allow, timestamp: .time } }
"""
"#;

fn packed(name: &str, version: &str, component: &[u8], more: &str) -> Vec<u8> {
    package(&format!("{}{ROUTES}{more}", manifest(name, version)), component)
}

fn bound(name: &str, bind: &str) -> String {
    format!("[plugin.{name}]\nbind = \"{bind}\"\n")
}

fn rewrite(daemon: &Daemon, toml: &str) {
    std::fs::write(daemon.home().join("aman.toml"), toml).expect("aman.toml");
    let answer = daemon.post("/config/reload", &json!({}));
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// Where the plugin listens, once it does.
fn address(daemon: &Daemon, name: &str) -> String {
    daemon.wait("the plugin's listener", || {
        let shown = daemon.get(&format!("/plugin/{name}")).json["listener"]["url"].take();
        shown.as_str().and_then(|url| url.strip_prefix("http://")).map(str::to_owned)
    })
}

fn send(address: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    exchange(address, &request(method, path, headers, body)).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
}

fn own(address: &str, method: &str, path: &str) -> Answer {
    send(address, method, path, &[("authorization", &format!("Bearer {TOKEN}"))], b"")
}

/// Goal: a plugin's listener serves its routes at `/` and nothing else, behind the same gate as the API, with the same
/// counters and audit; each change of the plugin and of the configuration takes effect at once; the drain ends it.
#[test]
fn routes_are_at_the_root_behind_the_same_gate() {
    let mut daemon = Daemon::configured(&bound("probe", "127.0.0.1:0"));
    installed(&daemon, &packed("probe", "1.0.0", ONE, ""), "");
    assert_eq!(daemon.get("/plugin/probe").json["listener"]["state"], "off", "nobody agreed yet");
    let shown = crate::plugins::approved(&daemon, "probe").json;
    assert_eq!(shown["listener"]["state"], "listening", "{shown}");
    let at = address(&daemon, "probe");
    assert_eq!(body(&own(&at, "GET", "/t")), "one");
    assert_eq!(body(&own(&at, "GET", "/")), "one");
    for (path, status) in [("/t", 401), ("/open/x", 200), ("/health", 200), ("/nothing", 404), ("/plugins", 404)] {
        assert_eq!(send(&at, "GET", path, &[], b"").status, status, "{path}");
    }
    for path in ["/api/v1/t", "/events/recent", "/ui/pages", "/ui/plugin/probe/index.html", "/metrics"] {
        assert_eq!(own(&at, "GET", path).code(), "route_not_found", "{path}");
    }
    assert_eq!(daemon.get("/api/v1/health").status, 404, "that route is on its own listener only");
    let evil = [("host", "evil.example")];
    assert_eq!(send(&at, "GET", "/health", &evil, b"").code(), "host_not_allowed");
    for path in ["/health", "/", "/ui/plugin/x"] {
        let page = [("origin", "https://evil.example"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
        assert_eq!(send(&at, "GET", path, &page, b"").code(), "origin_not_allowed", "{path}");
    }
    let wrong = own(&at, "DELETE", "/t");
    assert_eq!((wrong.status, wrong.header("allow")), (405, Some("GET, POST, HEAD")));
    let metrics = body(&daemon.get("/metrics"));
    assert!(metrics.contains("route=\"/api/v1/open/{id}\",status=\"2xx\"} 1"), "{metrics}");
    assert!(metrics.contains("route=\"probe:/health\",status=\"2xx\"} 1"), "{metrics}");
    own(&at, "POST", "/t");
    assert_eq!(daemon.get("/audit-log?action=plugin.call").items()[0]["target"], "/t");
    // Another version answers at the same place.
    installed(&daemon, &packed("probe", "1.1.0", TWO, ""), "approve=true");
    assert_eq!(body(&own(&at, "GET", "/t")), "two");
    assert_eq!(daemon.post_confirmed("/plugin/probe/disable", &json!({})).json["listener"]["state"], "off");
    daemon.wait("the listener is gone", || TcpStream::connect(&at).is_err().then_some(()));
    assert_eq!(daemon.post("/plugin/probe/enable", &json!({})).json["state"], "active");
    let (at, next) = (address(&daemon, "probe"), free_address());
    rewrite(&daemon, &bound("probe", &next));
    daemon.wait("the old address is gone", || TcpStream::connect(&at).is_err().then_some(()));
    assert_eq!(body(&own(&next, "GET", "/t")), "two");
    rewrite(&daemon, "");
    daemon.wait("the address is gone", || TcpStream::connect(&next).is_err().then_some(()));
    assert!(daemon.get("/plugin/probe").json["listener"].is_null());
    assert_eq!(body(&daemon.get("/api/v1/t")), "two");
    rewrite(&daemon, &bound("probe", &next));
    assert_eq!(address(&daemon, "probe"), next);
    assert_eq!(daemon.terminate(), Some(0), "{}", daemon.log());
    assert!(TcpStream::connect(&next).is_err());
    daemon.again();
    assert_eq!(body(&own(&next, "GET", "/t")), "two", "it is back after a restart");
    daemon.post("/plugin/probe/uninstall", &json!({}));
    daemon.wait("the listener is gone", || TcpStream::connect(&next).is_err().then_some(()));
}

/// Goal: a taken port is told by every means there is, harms nothing else, and is taken as soon as it is free; requests
/// that run when a listener ends are answered; the address must be loopback.
#[test]
fn a_taken_port_is_told_and_tried_again() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let at = taken.local_addr().expect("an address").to_string();
    let daemon = Daemon::configured(&bound("probe", &at));
    installed(&daemon, &packed("probe", "1.0.0", ONE, ""), "approve=true");
    let shown = daemon.get("/plugin/probe").json;
    assert_eq!((&shown["state"], &shown["listener"]["state"]), (&json!("active"), &json!("failing")));
    let why = shown["listener"]["error"].as_str().unwrap_or_default();
    assert!(why.contains(&at) && why.contains("in use") && why.contains("[plugin.probe] bind"), "{why}");
    assert_eq!(body(&daemon.get("/api/v1/t")), "one");
    assert!(daemon.cli(&["plugin", "show", "probe"]).1.contains(&at));
    assert!(daemon.cli(&["doctor"]).1.contains("cannot be listened on"));
    drop(taken);
    assert_eq!(address(&daemon, "probe"), at);
    assert!(daemon.cli(&["plugin", "show", "probe"]).1.contains(&format!("http://{at}")));
    // The request is on its way when the listener ends.
    let headers = [("authorization", &*format!("Bearer {TOKEN}")), ("expect", "100-continue")];
    let whole = request("POST", "/t", &headers, b"0123456789");
    let (begin, rest) = whole.split_at(whole.len() - 10);
    let mut stream = TcpStream::connect(&at).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    stream.write_all(begin).expect("it reads");
    let mut goes_on = [0; 25];
    stream.read_exact(&mut goes_on).expect("it waits for the body");
    assert_eq!(&goes_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    let mut events = TcpStream::connect(&at).expect("it listens");
    events.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    let token = format!("Bearer {TOKEN}");
    events.write_all(&request("GET", "/endless", &[("authorization", &token)], b"")).expect("it reads");
    events.read_exact(&mut [0; 4096]).expect("it streams");
    rewrite(&daemon, "");
    std::io::copy(&mut events, &mut std::io::sink()).expect("a stream ends with its listener");
    daemon.wait("nobody else gets in", || TcpStream::connect(&at).is_err().then_some(()));
    stream.write_all(rest).expect("it still reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("one"), "{answer}");
    std::fs::write(daemon.home().join("aman.toml"), bound("probe", "0.0.0.0:8080")).expect("aman.toml");
    let refused = daemon.post("/config/reload", &json!({}));
    assert_eq!((refused.status, refused.code()), (409, "invalid_config"));
    assert_eq!(refused.json["errors"][0]["field"], "plugin.probe.bind", "{refused:?}");
    // What the gate was not made for is not let in by a reload either.
    let open = format!("[http]\ntoken = \"{TOKEN}\"\nallow_remote = true\n{}", bound("probe", "0.0.0.0:0"));
    rewrite(&daemon, &open);
    let listener = daemon.get("/plugin/probe").json["listener"].take();
    assert!(listener["error"].as_str().is_some_and(|why| why.contains("restart")), "{listener}");
}

/// Goal: every error at a plugin's listener is spelled as the plugin wants, whoever finds it; the API's are not.
#[test]
fn errors_are_spelled_as_the_plugin_wants() {
    let daemon = Daemon::configured(&bound("probe", "127.0.0.1:0"));
    installed(&daemon, &packed("probe", "1.0.0", ONE, ERRORS), "approve=true");
    let at = address(&daemon, "probe");
    let token = format!("Bearer {TOKEN}");
    let auth = ("authorization", token.as_str());
    let check = |answer: Answer, status: u16, code: &str| {
        assert_eq!((answer.status, &answer.json["error"]["code"]), (status, &json!(code)), "{answer:?}");
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(answer.header("x-product"), Some("other"));
        assert!(answer.json["success"] == false && answer.json["timestamp"].is_string(), "{answer:?}");
        assert!(answer.header("content-security-policy").is_some_and(|policy| policy.starts_with("sandbox")));
        answer
    };
    check(own(&at, "GET", "/nothing"), 404, "ROUTE_NOT_FOUND");
    let wrong = check(own(&at, "DELETE", "/t"), 404, "METHOD_NOT_ALLOWED");
    assert_eq!((wrong.header("allow"), &wrong.json["allow"]), (Some("GET, POST, HEAD"), &json!("GET, POST, HEAD")));
    assert_eq!(wrong.json["method"], "DELETE");
    let nobody = check(send(&at, "GET", "/t", &[], b""), 401, "UNAUTHORIZED");
    assert!(nobody.header("www-authenticate").is_some());
    check(send(&at, "GET", "/t", &[("host", "evil.example")], b""), 421, "HOST_NOT_ALLOWED");
    check(send(&at, "POST", "/t", &[auth], &[b'x'; 2000]), 413, "BODY_TOO_LARGE");
    check(send(&at, "POST", "/t", &[auth, ("content-encoding", "gzip")], b"x"), 415, "UNSUPPORTED_MEDIA_TYPE");
    let raw = |bytes: &str| exchange(&at, bytes.as_bytes()).expect("an answer");
    let chunked = format!("POST /t HTTP/1.1\r\nhost: localhost\r\nauthorization: {token}\r\n");
    let chunked = raw(&format!("{chunked}transfer-encoding: chunked\r\nconnection: close\r\n\r\nzz\r\n"));
    check(chunked, 400, "INVALID_INPUT");
    let broken = check(raw("GET /t\u{1} nonsense\r\n\r\n"), 400, "MALFORMED_REQUEST");
    assert!(broken.json["method"].is_null());
    let long = format!("GET /t HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "y".repeat(40 << 10));
    check(raw(&long), 431, "HEADERS_TOO_LARGE");
    for _ in 0..5 {
        check(own(&at, "GET", "/trap"), 502, "PLUGIN_TRAP");
    }
    let rests = check(own(&at, "GET", "/t"), 503, "PLUGIN_UNAVAILABLE");
    assert!(rests.header("retry-after").is_some());
    assert_eq!(daemon.get("/api/v1/t").code(), "plugin_unavailable");
    assert_eq!(daemon.call("DELETE", "/api/v1/t", None).code(), "method_not_allowed");
    for (envelope, said) in [
        ("{body: .detail, colour: 1}", "colour"),
        ("{status: 200}", "400 to 599"),
        ("{body: (.allow | ascii_downcase)}", "fails for a 400"),
        ("{", "errors.envelope"),
    ] {
        let more = format!("[errors]\nenvelope = '{envelope}'\n");
        let bad = crate::plugins::try_package(&format!("{}{ROUTES}{more}", manifest("other", "1.0.0")));
        assert!(bad.as_ref().is_some_and(|why| why.contains(said)), "{envelope}: {bad:?}");
    }
}

/// Goal: with a certificate the listeners of plugins are encrypted, too.
#[test]
fn listeners_are_encrypted_when_the_daemon_is() {
    let mut daemon = Daemon::configured("");
    installed(&daemon, &packed("probe", "1.0.0", ONE, ERRORS), "approve=true");
    daemon.kill();
    let at = free_address();
    std::fs::write(daemon.home().join("aman.toml"), with_tls() + &bound("probe", &at)).expect("aman.toml");
    daemon.again();
    let ask = |path: &str| {
        let socket = TcpStream::connect(&at).unwrap_or_else(|error| panic!("{error}; {}", daemon.log()));
        exchange_tls(socket, &request("GET", path, &[], b""))
    };
    assert_eq!(body(&ask("/health")), "one");
    assert_eq!(ask("/t").json["error"]["code"], "UNAUTHORIZED");
    assert!(exchange(&at, &request("GET", "/health", &[], b"")).is_err(), "plain HTTP gets no answer");
}

/// Goal: two plugins that imitate products with the same paths serve side by side, each on its own listener.
#[test]
fn the_same_paths_on_two_listeners() {
    let daemon = Daemon::configured(&format!("{}{}", bound("a", "127.0.0.1:0"), bound("b", "127.0.0.1:0")));
    let only = |name: &str, component: &[u8]| {
        let routes = "[[routes]]\nmethod = \"GET\"\npath = \"/beasts\"\nlistener = true\n";
        let may = "permissions = { publish = [\"test.**\"] }\n";
        package(&format!("{}{may}{routes}", manifest(name, "1.0.0")), component)
    };
    for (name, component, says) in [("a", ONE, "one"), ("b", TWO, "two")] {
        let shown = installed(&daemon, &only(name, component), "approve=true");
        assert_eq!(shown["routes"], json!(["GET /beasts on its own listener"]));
        let answer = own(&address(&daemon, name), "GET", "/beasts");
        assert_eq!(body(&answer), says, "{answer:?}");
        assert!(daemon.get("/api/v1/beasts").status == 404 && daemon.get("/beasts").status == 404);
    }
    let listed: Vec<Value> = daemon.get("/plugins").items();
    assert!(listed.iter().all(|plugin| plugin["listener"]["state"] == "listening"), "{listed:?}");
}
