//! The rules that hold for every request, and the stream: over raw sockets against the real binary.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use serde_json::json;

use super::harness::{Answer, Daemon, Stream, TOKEN, signal};

const CLOSE: &str = "connection: close\r\n";

fn bearer() -> String {
    format!("Bearer {TOKEN}")
}

/// One answer to `head` and `CLOSE`: its status and code.
fn raw(daemon: &Daemon, head: &str) -> (u16, String) {
    let answer = daemon.raw(format!("{head}{CLOSE}\r\n").as_bytes()).expect("an answer");
    (answer.status, answer.code().to_owned())
}

/// All that a HEAD request is answered; there must be no body.
fn head(daemon: &Daemon, path: &str) -> String {
    let mut socket = daemon.connect();
    let request = format!("HEAD {path} HTTP/1.1\r\nhost: localhost\r\n{CLOSE}\r\n");
    socket.write_all(request.as_bytes()).expect("sent");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("an answer");
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    answer
}

/// Goal: what is no HTTP request, or one for somebody else, gets a problem and never a handler.
#[test]
fn requests_for_nobody() {
    let daemon = Daemon::start();
    let long = format!("GET / HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n", "a".repeat(200_000));
    let many = format!("GET / HTTP/1.1\r\nhost: localhost\r\n{}", "x: 1\r\n".repeat(200));
    for (head, status, code) in [
        ("\u{1}\r\n", 400, "malformed_request"),
        (long.as_str(), 431, "headers_too_large"),
        (many.as_str(), 431, "headers_too_large"),
        ("GET /health HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: gzip, chunked\r\n", 501, "unsupported_coding"),
        (
            "GET /health HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked, chunked\r\n",
            501,
            "unsupported_coding",
        ),
        (
            "GET /health HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
            501,
            "unsupported_coding",
        ),
        (
            "GET /health HTTP/1.1\r\nhost: localhost\r\ncontent-length: 18446744073709551615\r\n",
            431,
            "headers_too_large",
        ),
        ("GET /health HTTP/1.1\r\n", 400, "invalid_input"),
        ("GET /health HTTP/1.0\r\n", 421, "host_not_allowed"),
        ("GET /health HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\n", 400, "invalid_input"),
        ("GET /health HTTP/1.1\r\nhost: evil.example\r\n", 421, "host_not_allowed"),
        ("GET http://evil.example/health HTTP/1.1\r\nhost: localhost\r\n", 400, "invalid_input"),
        ("GET /nowhere HTTP/1.1\r\nhost: evil.example\r\n", 421, "host_not_allowed"),
        ("GET /nowhere HTTP/1.1\r\nhost: localhost\r\norigin: http://evil.example\r\n", 403, "origin_not_allowed"),
        ("GET /nowhere HTTP/1.1\r\nhost: localhost\r\n", 404, "route_not_found"),
        ("OPTIONS * HTTP/1.1\r\nhost: localhost\r\n", 404, "route_not_found"),
        ("CONNECT localhost:1 HTTP/1.1\r\nhost: localhost:1\r\n", 404, "route_not_found"),
        ("PUT /runtime/status HTTP/1.1\r\nhost: localhost\r\n", 405, "method_not_allowed"),
        ("GET /runtime/status HTTP/1.1\r\nhost: localhost\r\n", 401, "unauthorized"),
    ] {
        let shown = &head[..head.len().min(80)];
        assert_eq!(raw(&daemon, head), (status, code.to_owned()), "{shown}");
    }
}

/// Goal: who calls a path or a method that is not there is told which would be.
#[test]
fn near_misses_are_told_what_is_near() {
    let daemon = Daemon::start();
    let answer = |method: &str, path: &str| daemon.send(method, path, &[], None);
    for (path, near) in [("/events/recents", "Is /events/recent meant?"), ("/skil/x", "Is /skill/x meant?"), ("/?", "")]
    {
        let told = answer("GET", path);
        assert!(told.status == 200 || told.json["detail"].as_str().is_some_and(|text| text.contains(near)), "{told:?}");
    }
    assert!(!answer("GET", "/nothing/like/it").json["detail"].to_string().contains("meant"));
    let told = answer("PUT", "/runtime/status");
    assert_eq!((told.status, told.header("allow")), (405, Some("GET, HEAD")));
    assert!(told.json["detail"].as_str().is_some_and(|text| text.contains("GET, HEAD")), "{told:?}");
}

/// Goal: bodies have limits, types and a rule for being absent.
#[test]
fn bodies() {
    let daemon = Daemon::start();
    let token = bearer();
    let send = |kind: &str, body: &[u8]| {
        let headers = [("authorization", token.as_str()), ("content-type", kind)];
        let answer = daemon.send_bytes("POST", "/events/push", &headers, body);
        (answer.status, answer.code().to_owned())
    };
    let good = br#"{"source":"test","type":"a.b"}"#;
    let (too_large, large) = (
        vec![b' '; (1 << 20) + 1],
        format!("{{\"source\":\"test\",\"type\":\"a\",\"data\":\"{}\"}}", "x".repeat(1_000_000)),
    );
    assert_eq!(send("application/json", &too_large), (413, "body_too_large".to_owned()));
    assert_eq!(send("application/json", large.as_bytes()).0, 202);
    assert_eq!(send("text/html", good), (415, "unsupported_media_type".to_owned()));
    assert_eq!(send("application/json", b"{"), (400, "invalid_input".to_owned()));
    assert_eq!(send("application/json", b""), (400, "invalid_input".to_owned()));
    let untyped = daemon.send_bytes("POST", "/events/push", &[("authorization", &token)], good);
    assert_eq!(untyped.status, 202);
    let chunked = format!(
        "POST /events/push HTTP/1.1\r\nhost: localhost\r\nauthorization: {token}\r\ntransfer-encoding: chunked\r\n{CLOSE}\r\n"
    );
    let mut bytes = chunked.into_bytes();
    for _ in 0..20 {
        bytes.extend_from_slice(b"10000\r\n");
        bytes.extend_from_slice(&[b'a'; 65536]);
        bytes.extend_from_slice(b"\r\n");
    }
    let answer = daemon.raw(&bytes).expect("an answer although the body goes on");
    assert_eq!((answer.status, answer.code()), (413, "body_too_large"));
}

/// Goal: a listed origin gets what its browser needs, a HEAD what a GET would, and answers have no cache.
#[test]
fn listed_origins_and_head() {
    let daemon = Daemon::configured("[http]\nallowed_origins = [\"https://app.example\"]\n");
    let origin = ("origin", "https://app.example");
    let preflight = [origin, ("access-control-request-method", "POST"), ("sec-fetch-site", "cross-site")];
    let answer = daemon.send("OPTIONS", "/events/push", &preflight, None);
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.example"));
    assert!(answer.header("access-control-allow-headers").is_some_and(|all| all.contains("authorization")));
    assert!(answer.header("access-control-allow-methods").is_some_and(|all| all.contains("PATCH")));
    let refused = daemon.send("POST", "/events/push", &[origin], None);
    assert_eq!((refused.status, refused.header("access-control-allow-origin")), (401, Some("https://app.example")));
    assert!(refused.header("www-authenticate").is_some());
    let alive = head(&daemon, "/health/live");
    assert!(alive.starts_with("HTTP/1.1 200 ") && alive.contains("\r\ncache-control: no-store\r\n"), "{alive}");
    assert!(alive.contains("\r\ncontent-length: ") && !alive.contains("\r\ncontent-length: 0\r\n"), "{alive}");
    assert!(head(&daemon, "/events/stream").contains("\r\ncontent-type: text/event-stream\r\n"));
}

/// Goal: a change is recorded once, done or refused; reading and pushing are not; the chain holds.
#[test]
fn one_record_for_a_change() {
    let daemon = Daemon::start();
    let token = bearer();
    let by = [("authorization", token.as_str()), ("x-aman-operator", "anna")];
    assert_eq!(daemon.send("POST", "/skills/reload", &by, None).status, 200);
    assert_eq!(daemon.send("POST", "/skill/none/disable", &by, None).status, 404);
    assert_eq!(daemon.send("POST", "/dlq/x/retry", &by, None).code(), "confirmation_required");
    assert_eq!(daemon.send("POST", "/dlq/x/retry", &by, Some(&json!({ "reasn": 1 }))).status, 409);
    let confirmed = [by[0], by[1], ("x-aman-confirm", " Yes ")];
    assert_eq!(daemon.send("POST", "/dlq/x/retry", &confirmed, Some(&json!({ "reasn": 1 }))).status, 400);
    assert_eq!(daemon.send("POST", "/dlq/x/retry?dry_run=true", &confirmed, None).status, 404);
    daemon.push("a.b", json!(1));
    daemon.get("/events/recent");
    let log = daemon.get("/audit-log?operator=anna");
    let items = log.json["items"].as_array().expect("items");
    let shown: Vec<String> = items
        .iter()
        .map(|item| format!("{} {} {}", item["action"], item["outcome"], item["status"]).replace('"', ""))
        .collect();
    let refused = |status: u16| format!("dlq.retry refused {status}");
    let want = [
        refused(404),
        refused(400),
        refused(409),
        refused(409),
        "skill.disable refused 404".to_owned(),
        "skill.reload done 200".to_owned(),
    ];
    assert_eq!(shown, want);
    assert!(items.iter().all(|item| item["principal"] == "owner"));
    let all = daemon.get("/audit-log").json["items"].as_array().map_or(0, Vec::len);
    assert_eq!(all, want.len());
    let verdict = daemon.get("/audit-log/verify").json;
    assert_eq!((&verdict["ok"], &verdict["checked"]), (&json!(true), &json!(want.len())));
    let page = daemon.get("/audit-log?limit=4").json;
    let rest = daemon.get(&format!("/audit-log?limit=4&cursor={}", page["next_cursor"].as_str().expect("more")));
    assert_eq!((rest.json["items"].as_array().map(Vec::len), &rest.json["next_cursor"]), (Some(2), &json!(null)));
}

/// Goal: a stream shows what is pushed after it opened, resumes without gap or duplicate, and filters.
#[test]
fn streams_resume_and_filter() {
    let daemon = Daemon::start();
    let token = bearer();
    let with = [("authorization", token.as_str())];
    let mut live = Stream::open(&daemon, "/events/stream", &with);
    for n in 0..5 {
        daemon.push(if n % 2 == 0 { "even.x" } else { "odd.x" }, json!(n));
    }
    let first: Vec<_> = (0..5).map(|_| live.next().expect("a frame")).collect();
    assert_eq!(first.iter().map(|f| f.data["data"].as_i64()).collect::<Vec<_>>(), (0..5).map(Some).collect::<Vec<_>>());
    assert_eq!((first[0].event.as_str(), first[0].id.as_str()), ("even.x", "1"));
    let mut resumed = Stream::open(&daemon, "/events/stream?since=4", &[with[0], ("last-event-id", "2")]);
    assert_eq!((0..3).map(|_| resumed.next().expect("a frame").id).collect::<Vec<_>>(), ["3", "4", "5"]);
    let mut oldest =
        Stream::open(&daemon, "/events/stream?types=odd.*&named=false", &[with[0], ("last-event-id", "0")]);
    let odd: Vec<_> = (0..2).map(|_| oldest.next().expect("a frame")).collect();
    assert_eq!((odd[0].id.as_str(), odd[1].id.as_str(), odd[0].event.as_str()), ("2", "4", ""));
    let mut ahead = Stream::open(&daemon, "/events/stream?since=99", &with);
    let reset = ahead.next().expect("a frame");
    assert_eq!((reset.event.as_str(), reset.id.as_str()), ("aman.reset", ""));
    assert_eq!((&reset.data["oldest"], &reset.data["sequence"]), (&json!(1), &json!(5)));
    daemon.push("odd.y", json!(5));
    assert_eq!(ahead.next().expect("a frame").id, "6");
    assert_eq!(oldest.next().expect("a frame").id, "6");
    let trace = daemon.recent("odd.y")[0]["traceid"].as_str().expect("a trace").to_owned();
    let mut traced = Stream::open(&daemon, &format!("/events/stream?since=0&trace_id={trace}"), &with);
    assert_eq!(traced.next().expect("a frame").id, "6");
    for bad in ["since=x", "types=a..b", "trace_id=1", "named=2", "sinc=1"] {
        assert_eq!(daemon.get(&format!("/events/stream?{bad}")).status, 400, "{bad}");
    }
}

/// Goal: without a token a stream tells when and what, never the content, and only so many are let in.
#[test]
fn public_streams() {
    let daemon = Daemon::start();
    assert_eq!(daemon.send("GET", "/events/stream", &[("x-aman-token", "wrong")], None).status, 401);
    let mut open: Vec<Stream> = (0..32).map(|_| Stream::open(&daemon, "/events/stream", &[])).collect();
    let more = daemon.send("GET", "/events/stream", &[], None);
    assert_eq!((more.status, more.code(), more.header("retry-after").is_some()), (503, "overloaded", true));
    daemon.push("a.b", json!({ "secret": 1 }));
    let frame = open[31].next().expect("a frame");
    let mut names: Vec<&String> = frame.data.as_object().expect("an object").keys().collect();
    names.sort();
    assert_eq!(names, ["amansequence", "id", "priority", "source", "specversion", "time", "traceid", "type"]);
    drop(open);
    daemon.wait("a place", || {
        let mut stream = Stream::open(&daemon, "/events/stream?since=0", &[]);
        (stream.status == 200).then(|| stream.next())
    });
    let closed = Daemon::configured("[http]\npublic_stream = \"off\"\n");
    assert_eq!(closed.send("GET", "/events/stream", &[], None).status, 401);
    let full = Daemon::configured("[http]\npublic_stream = \"full\"\n");
    full.push("a.b", json!({ "open": 1 }));
    let mut stream = Stream::open(&full, "/events/stream?since=0", &[]);
    assert_eq!(stream.next().expect("a frame").data["data"], json!({ "open": 1 }));
}

/// Goal: SIGTERM ends streams and idle connections, and the daemon ends by itself, soon.
#[test]
fn the_end_is_clean() {
    let mut daemon = Daemon::start();
    let mut stream = Stream::open(&daemon, "/events/stream", &[]);
    let mut idle = daemon.connect();
    idle.write_all(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n").expect("sent");
    let mut some = [0; 4096];
    assert!(idle.read(&mut some).expect("an answer") > 0);
    let begun = Instant::now();
    signal(daemon.pid(), "TERM");
    assert_eq!(stream.next(), None);
    assert_eq!(idle.read(&mut some).expect("the end"), 0);
    assert_eq!(daemon.terminate(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

/// Goal: a shutdown over HTTP needs confirmation, is recorded, and is an end like any other.
#[test]
fn shutdown_over_http() {
    let mut daemon = Daemon::start();
    assert_eq!(daemon.post("/agent/shutdown", &json!({})).code(), "confirmation_required");
    let answer: Answer = daemon.post_confirmed("/agent/shutdown", &json!({}));
    assert_eq!((answer.status, &answer.json["status"]), (202, &json!("draining")));
    assert_eq!(daemon.terminate(), Some(0));
    daemon.again();
    let done = daemon.get("/audit-log?action=agent.shutdown&outcome=done").json;
    assert_eq!(done["items"].as_array().map(Vec::len), Some(1));
}

/// Goal: the parser's answer and the stored event agree for each of the forms of a push.
#[test]
fn forms_of_a_push() {
    let daemon = Daemon::start();
    let token = bearer();
    let push = |headers: &[(&str, &str)], body: &str| {
        let headers: Vec<_> = [("authorization", token.as_str())].into_iter().chain(headers.iter().copied()).collect();
        daemon.send_bytes("POST", "/events/push", &headers, body.as_bytes())
    };
    let binary = push(
        &[
            ("ce-specversion", "1.0"),
            ("ce-id", "b1"),
            ("ce-source", "s"),
            ("ce-type", "t"),
            ("ce-note", "hi"),
            ("content-type", "text/plain"),
        ],
        "plain text",
    );
    assert_eq!((binary.status, &binary.json["id"]), (202, &json!("b1")));
    let stored = daemon.dump("b1");
    assert_eq!((&stored["event"]["data"], &stored["event"]["note"]), (&json!("plain text"), &json!("hi")));
    assert_eq!(stored["event"]["datacontenttype"], "text/plain");
    let kind = [("content-type", "application/cloudevents-batch+json")];
    let batch = push(
        &kind,
        r#"[{"specversion":"1.0","source":"s","type":"t","agentid":"a1"},{"specversion":"1.0","source":"s","type":"u"}]"#,
    );
    assert_eq!((batch.status, batch.json["items"].as_array().map(Vec::len)), (202, Some(2)));
    assert_eq!(batch.json["items"][0]["target"], "agent:a1");
    let before = daemon.recent("**").len();
    let bad = push(
        &kind,
        r#"[{"specversion":"1.0","source":"s","type":"t"},{"specversion":"1.0","source":"s","type":"no..good"}]"#,
    );
    assert_eq!((bad.status, &bad.json["errors"][0]["field"]), (400, &json!("/1/type")));
    assert_eq!(daemon.recent("**").len(), before, "all or nothing");
    let same = push(&[], r#"{"source":"s","type":"t","id":"b1"}"#);
    assert_eq!(
        (same.status, &same.json["deduplicated"], &same.json["sequence"]),
        (202, &json!(true), &binary.json["sequence"])
    );
    let other = push(&[], r#"{"source":"other","type":"t","id":"b1"}"#);
    assert_eq!(other.json["deduplicated"], false);
    assert_eq!(daemon.get("/events/dump/b1").code(), "ambiguous_id");
    assert_eq!(daemon.get("/events/dump/b1?source=other").status, 200);
    let key = [("idempotency-key", "k")];
    let (one, two) = (push(&key, r#"{"source":"s","type":"t"}"#), push(&key, r#"{"source":"s","type":"t"}"#));
    assert_eq!((one.status, &one.json), (202, &two.json));
    assert_eq!(push(&key, r#"{"source":"s","type":"z"}"#).code(), "idempotency_mismatch");
    let dry = daemon.post("/events/push?dry_run=true", &json!({ "source": "s", "type": "file.created" }));
    assert_eq!((dry.status, &dry.json["dry_run"]), (200, &json!(true)));
    let traced = push(
        &[("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")],
        r#"{"source":"s","type":"t"}"#,
    );
    assert_eq!(traced.json["trace_id"], "0af7651916cd43dd8448eb211c80319c");
    assert!(traced.header("traceparent").is_some_and(|value| value.contains("0af7651916cd43dd8448eb211c80319c")));
    assert_eq!(
        daemon.get("/events/trace/0af7651916cd43dd8448eb211c80319c").json["events"].as_array().map(Vec::len),
        Some(1)
    );
}
