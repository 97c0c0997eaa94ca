//! `/events/stream`: live, resumed, filtered; what it tells whom; slow readers; heartbeats; its end.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Daemon, Stream, TOKEN, signal};

const TOKENED: [(&str, &str); 1] = [("x-aman-token", TOKEN)];

fn batch(daemon: &Daemon, events: &[Value]) {
    let headers = [("x-aman-token", TOKEN), ("content-type", "application/cloudevents-batch+json")];
    let answer = daemon.send("POST", "/events/push", &headers, Some(&events.into()));
    assert_eq!(answer.status, 202, "{answer:?}");
}

fn event(kind: &str, data: &Value) -> Value {
    json!({"specversion": "1.0", "source": "s", "type": kind, "data": data})
}

/// Sequences of the next `count` frames.
fn sequences(stream: &mut Stream, count: usize) -> Vec<i64> {
    let read = (0..count).map(|_| stream.next().expect("a frame").id.parse().expect("a sequence"));
    read.collect()
}

/// Goal: streams that come and go at any time while events are pushed show every event once, in order, wherever they
/// resume; a resumed one is told from disk and goes on live without a seam.
#[test]
fn resumed_streams_have_no_seam() {
    const EVENTS: usize = 1200;
    let daemon = Daemon::start();
    let all: Vec<i64> = (1..=EVENTS as i64).collect();
    std::thread::scope(|scope| {
        for pusher in 0..3 {
            let daemon = &daemon;
            scope.spawn(move || {
                for n in (0..EVENTS / 3).step_by(4) {
                    let kind = format!("p{pusher}.n");
                    batch(daemon, &[0, 1, 2, 3].map(|more| event(&kind, &json!(n + more))));
                }
            });
        }
        for reader in 0..6_u64 {
            let (daemon, all) = (&daemon, &all);
            scope.spawn(move || {
                let (mut rng, mut seen): (_, Vec<i64>) = (fastrand::Rng::with_seed(reader), Vec::new());
                while seen.len() < EVENTS {
                    let last = seen.last().copied().unwrap_or(0);
                    let text = last.to_string();
                    // The header is newer than the address, as with a browser that comes back.
                    let mut stream = match reader % 2 {
                        0 => Stream::open(daemon, &format!("/events/stream?since={last}"), &TOKENED),
                        _ => Stream::open(daemon, "/events/stream?since=0", &[TOKENED[0], ("last-event-id", &text)]),
                    };
                    let some = rng.usize(1..300).min(EVENTS - seen.len());
                    seen.extend(sequences(&mut stream, some));
                }
                assert_eq!(&seen, all, "reader {reader}");
            });
        }
    });
}

/// Goal: without a cursor a stream is live: what is pushed after its headers came arrives, nothing older does; the head
/// of the answer is what browsers and proxies need.
#[test]
fn live_from_the_moment_of_its_headers() {
    let daemon = Daemon::start();
    for round in 0..30 {
        daemon.push("t.old", json!(round));
        let before = daemon.recent("**").len() as i64;
        daemon.wait("the head", || (daemon.get("/runtime/status").json["sequence"] == before).then_some(()));
        let mut stream = Stream::open(&daemon, "/events/stream", &TOKENED);
        let header =
            |name: &str| stream.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        assert_eq!((stream.status, header("content-type")), (200, Some("text/event-stream")));
        assert_eq!(header("x-accel-buffering"), Some("no"));
        assert!(header("cache-control").is_some_and(|value| value.contains("no-cache")));
        assert_eq!(stream.line().expect("a line"), "retry: 2000", "sent at connect, before any event");
        let id = daemon.push("t.new", json!({"n": round}));
        let frame = stream.next().expect("a frame");
        assert_eq!((frame.event.as_str(), &frame.data["id"]), ("t.new", &json!(id)));
        assert_eq!(frame.data, daemon.dump(&id)["event"], "a frame holds the event as it is stored");
        assert_eq!(frame.id, frame.data["amansequence"].as_str().expect("a sequence"));
    }
}

/// Goal: each filter lets through what it names, live and from disk alike; what it hides leaves no gap for a resume.
#[test]
fn filters_choose_frames() {
    let daemon = Daemon::start();
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let mut traced = event("a.traced", &json!(1));
    traced["traceparent"] = format!("00-{trace}-b7ad6b7169203331-01").into();
    let mut meant = event("b.meant", &json!(2));
    meant["agentid"] = "agent-1".into();
    let events = [event("a.b", &json!(3)), event("a.b.c", &json!(4)), traced, meant, event("z", &json!(5))];
    let cases: [(&str, &[&str]); 9] = [
        ("types=a.*", &["a.b", "a.traced"]),
        ("types=a.**", &["a.b", "a.b.c", "a.traced"]),
        ("types=*.b,z", &["a.b", "z"]),
        ("types=**", &["a.b", "a.b.c", "a.traced", "b.meant", "z"]),
        ("types=a", &[]),
        ("agent_id=agent-1", &["b.meant"]),
        ("agent_id=agent-1&types=a.**", &[]),
        ("trace_id=0af7651916cd43dd8448eb211c80319c", &["a.traced"]),
        ("types=a.**&trace_id=0af7651916cd43dd8448eb211c80319c", &["a.traced"]),
    ];
    let mut live: Vec<Stream> =
        cases.iter().map(|(query, _)| Stream::open(&daemon, &format!("/events/stream?{query}"), &TOKENED)).collect();
    batch(&daemon, &events);
    // The end of what can come: an event that each of the filters lets through.
    let mut last = event("a.b", &json!("end"));
    (last["agentid"], last["traceparent"]) = ("agent-1".into(), format!("00-{trace}-b7ad6b7169203331-01").into());
    let mut end = event("z", &json!("end"));
    (end["agentid"], end["traceparent"]) = (last["agentid"].clone(), last["traceparent"].clone());
    let mut alone = last.clone();
    alone["type"] = "a".into();
    batch(&daemon, &[last, end, alone]);
    for ((query, types), live) in cases.iter().zip(&mut live) {
        let from_disk = Stream::open(&daemon, &format!("/events/stream?since=0&{query}"), &TOKENED);
        for mut stream in [from_disk, std::mem::replace(live, Stream::open(&daemon, "/events/stream", &TOKENED))] {
            let mut seen = Vec::new();
            loop {
                let frame = stream.next().expect("a frame");
                if frame.data["data"] == "end" {
                    break;
                }
                seen.push(frame.event);
            }
            assert_eq!(&seen, types, "{query}");
        }
    }
}

/// Goal: `named=false` is for `onmessage`: no event name, the rest unchanged.
#[test]
fn frames_may_be_nameless() {
    let daemon = Daemon::start();
    daemon.push("t.a", json!(1));
    let mut nameless = Stream::open(&daemon, "/events/stream?since=0&named=false", &TOKENED);
    let mut named = Stream::open(&daemon, "/events/stream?since=0", &TOKENED);
    for _ in 0..2 {
        let (one, two) = (nameless.next().expect("a frame"), named.next().expect("a frame"));
        assert_eq!((one.event.as_str(), two.event.as_str()), ("", "t.a"));
        assert_eq!((one.id, one.data), (two.id, two.data));
        daemon.push("t.a", json!(2));
    }
}

/// Goal: a cursor from another life of the database is answered with a reset that says where to begin, and the stream
/// goes on from there; a bad cursor is refused by name.
#[test]
fn foreign_cursors_are_reset() {
    let daemon = Daemon::start();
    daemon.push("t.a", json!(1));
    for (path, headers) in
        [("/events/stream", vec![TOKENED[0], ("last-event-id", "77")]), ("/events/stream?since=77", vec![TOKENED[0]])]
    {
        let mut stream = Stream::open(&daemon, path, &headers);
        let reset = stream.next().expect("a frame");
        assert_eq!((reset.event.as_str(), reset.id.as_str(), &reset.data["oldest"]), ("aman.reset", "", &json!(1)));
        let id = daemon.push("t.a", json!(2));
        assert_eq!(stream.next().expect("a frame").data["id"], id.as_str());
    }
    for (query, header, field) in [("since=-1", "", "since"), ("", "x", "Last-Event-ID"), ("", "1.5", "Last-Event-ID")]
    {
        let path = format!("/events/stream?{query}");
        let answer = daemon.send("GET", &path, &[TOKENED[0], ("last-event-id", header)], None);
        assert_eq!((answer.status, answer.fields()), (400, vec![field]), "{query} {header}");
    }
}

/// Goal: without a token a stream shows that something happened and nothing of what; the same event in full with one.
#[test]
fn the_public_view_holds_no_content() {
    let daemon = Daemon::start();
    let mut public = Stream::open(&daemon, "/events/stream?since=0", &[]);
    let mut full = Stream::open(&daemon, "/events/stream?since=0", &TOKENED);
    let mut secret = event("t.a", &json!({"password": "hunter2"}));
    (secret["subject"], secret["note"], secret["agentid"]) = ("hunter2".into(), "hunter2".into(), "hunter2".into());
    batch(&daemon, &[secret]);
    let (shown, whole) = (public.next().expect("a frame").data, full.next().expect("a frame").data);
    let names: BTreeSet<&str> = shown.as_object().expect("an object").keys().map(String::as_str).collect();
    let allowed = ["amansequence", "id", "priority", "source", "specversion", "time", "traceid", "type"];
    assert_eq!(names, BTreeSet::from(allowed));
    assert!(!shown.to_string().contains("hunter2"), "{shown}");
    assert!(names.iter().all(|name| shown[name] == whole[name]), "{shown} {whole}");
    assert_eq!(whole["data"], json!({"password": "hunter2"}));
}

/// Goal: a stream asked for metrics shows them at once and again, without moving its cursor.
#[test]
fn metrics_frames_come() {
    let daemon = Daemon::start();
    let mut stream = Stream::open(&daemon, "/events/stream?metrics=true", &TOKENED);
    for _ in 0..2 {
        let frame = stream.next().expect("a frame");
        assert_eq!((frame.event.as_str(), frame.id.as_str()), ("aman.metrics", ""));
        assert!(frame.data["sequence"].is_i64() && frame.data["pending"].is_i64(), "{frame:?}");
    }
}

/// Goal: a silent stream is kept alive by a comment every 15 s.
#[test]
fn heartbeats_come() {
    let daemon = Daemon::start();
    let mut stream = Stream::open(&daemon, "/events/stream", &[]);
    let begun = Instant::now();
    let mut line = stream.line().expect("a line");
    while !line.starts_with(':') {
        line = stream.line().expect("a line");
    }
    let waited = begun.elapsed();
    assert!((Duration::from_secs(14)..Duration::from_secs(17)).contains(&waited), "{waited:?}");
}

/// Goal: a reader that takes nothing is cut off after a while and can resume without loss; nobody else notices it.
#[test]
fn a_stalled_reader_is_cut_off() {
    let daemon = Daemon::start();
    let mut stalled = daemon.connect();
    let request = format!("GET /events/stream HTTP/1.0\r\nhost: localhost\r\nx-aman-token: {TOKEN}\r\n\r\n");
    stalled.write_all(request.as_bytes()).expect("sent");
    daemon.wait("the stream", || (daemon.get("/debug/metrics").json["http"]["streams"] == 1).then_some(()));
    let mut reader = Stream::open(&daemon, "/events/stream", &TOKENED);
    // Far more than the buffers between the two hold.
    let (big, mut pushed) = ("x".repeat(200_000), 0);
    for _ in 0..100 {
        batch(&daemon, &[event("t.big", &json!(big)), event("t.big", &json!(big))]);
        pushed += 2;
        assert_eq!(sequences(&mut reader, 2), [pushed - 1, pushed], "the other stream is not held up");
    }
    daemon.wait("the end of the stalled stream", || {
        (daemon.get("/debug/metrics").json["http"]["streams"] == 1).then_some(())
    });
    daemon.push("t.small", json!(1));
    assert_eq!(sequences(&mut reader, 1), [pushed + 1]);
    let mut taken = Vec::new();
    let _reset = stalled.read_to_end(&mut taken);
    let text = String::from_utf8_lossy(&taken);
    assert!(text.len() < 200 * big.len(), "it was cut off before the end");
    let whole = text.split("\n\n").filter(|frame| frame.contains("data: {") && frame.ends_with('}'));
    let last = whole.filter_map(|frame| frame.lines().find_map(|line| line.strip_prefix("id: "))).last();
    let last: i64 = last.and_then(|id| id.parse().ok()).unwrap_or(0);
    let mut resumed = Stream::open(&daemon, &format!("/events/stream?since={last}"), &TOKENED);
    let rest = usize::try_from(pushed + 1 - last).expect("something is left");
    assert_eq!(sequences(&mut resumed, rest), (last + 1..=pushed + 1).collect::<Vec<_>>());
}

/// Goal: SIGTERM ends every stream after what it had to show, and the daemon exits well.
#[test]
fn the_end_of_the_daemon_ends_streams() {
    let mut daemon = Daemon::start();
    let mut streams: Vec<Stream> = (0..5).map(|_| Stream::open(&daemon, "/events/stream", &TOKENED)).collect();
    daemon.push("t.last", json!(1));
    for stream in &mut streams {
        assert_eq!(stream.next().expect("a frame").event, "t.last");
    }
    signal(daemon.pid(), "TERM");
    for stream in &mut streams {
        assert_eq!(stream.next(), None);
    }
    assert_eq!(daemon.terminate(), Some(0));
}
