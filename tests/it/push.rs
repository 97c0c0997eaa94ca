//! `POST /events/push`: every form in, byte for byte; everything bad refused by name, with nothing stored.

mod bad;

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::harness::{Answer, Daemon, Folder, TOKEN, write_skill};

const PLAIN: &str = "application/json";
const CLOUD: &str = "application/cloudevents+json";
const BATCH: &str = "application/cloudevents-batch+json";

fn push_at(daemon: &Daemon, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let headers = [&[("x-aman-token", TOKEN)], headers].concat();
    daemon.send_bytes("POST", path, &headers, body)
}

fn push(daemon: &Daemon, kind: &str, body: &str) -> Answer {
    push_at(daemon, "/events/push", &[("content-type", kind)], body.as_bytes())
}

fn sequence(daemon: &Daemon) -> i64 {
    daemon.get("/runtime/status").json["sequence"].as_i64().expect("a sequence")
}

/// The attributes of `binary` that every binary event has.
const CE: [(&str, &str); 3] = [("ce-specversion", "1.0"), ("ce-source", "s"), ("ce-type", "t.a")];

/// The answer to a good push has its shape; gives the stored event as text.
fn stored(daemon: &Daemon, answer: &Answer) -> String {
    assert_eq!(answer.status, 202, "{answer:?}");
    let mut names: Vec<&str> = answer.json.as_object().expect("an object").keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["deduplicated", "id", "sequence", "target", "trace_id", "type"]);
    let stored = answer.json["sequence"].as_i64().expect("a sequence");
    daemon.wait("the sequence to be told", || (sequence(daemon) >= stored).then_some(()));
    let id = answer.json["id"].as_str().expect("an id").replace('%', "%25").replace('/', "%2F").replace(' ', "%20");
    let dump = daemon.get(&format!("/events/dump/{id}"));
    assert_eq!(dump.status, 200, "{dump:?}");
    assert_eq!(dump.json["event"]["traceid"], answer.json["trace_id"]);
    String::from_utf8(dump.body).expect("UTF-8")
}

/// Goal: data comes out as it went in, in each of the forms.
#[test]
fn data_is_kept_byte_for_byte() {
    let daemon = Daemon::start();
    let odd = r#"{"a":1.0,"b":1e2,"c":-0,"d":12345678901234567890123,"e":"\u00e9\/","f":[ ],"a":2,"g":1E+2}"#;
    for data in [odd, "1.0", "-0.0", "18446744073709551616", "\"text\"", "[]", "{}", "false", r#""\ud83d\ude00""#] {
        for (kind, body) in [
            (PLAIN, format!(r#"{{"source":"s","type":"t","data":{data}}}"#)),
            (PLAIN, format!(r#"{{"source":"s","event_type":"t","payload":{data}}}"#)),
            (CLOUD, format!(r#"{{"specversion":"1.0","source":"s","type":"t","data":{data}}}"#)),
            (
                "application/cloudevents+json; charset=utf-8",
                format!(r#"{{"data":{data},"type":"t","source":"s","specversion":"1.0"}}"#),
            ),
        ] {
            let text = stored(&daemon, &push(&daemon, kind, &body));
            assert!(text.contains(&format!("\"data\":{data}")), "{body}: {text}");
        }
        let headers = [&CE[..], &[("content-type", "application/json")]].concat();
        let text = stored(&daemon, &push_at(&daemon, "/events/push", &headers, data.as_bytes()));
        assert!(text.contains(&format!("\"data\":{data}")), "binary {data}: {text}");
    }
    let text = "line\r\nbreak\t\u{0}\u{7f} \"quoted\" \\ ü 🗂 <x/>";
    for kind in ["text/plain; charset=utf-8", "application/xml", "image/svg+xml", "text/csv"] {
        let headers = [&CE[..], &[("content-type", kind)]].concat();
        let event = stored(&daemon, &push_at(&daemon, "/events/push", &headers, text.as_bytes()));
        let event: Value = serde_json::from_str(&event).expect("JSON");
        assert_eq!((&event["event"]["data"], &event["event"]["datacontenttype"]), (&json!(text), &json!(kind)));
        let body = json!({"specversion": "1.0", "source": "s", "type": "t", "datacontenttype": kind, "data": text});
        let event: Value =
            serde_json::from_str(&stored(&daemon, &push(&daemon, CLOUD, &body.to_string()))).expect("JSON");
        assert_eq!((&event["event"]["data"], &event["event"]["datacontenttype"]), (&json!(text), &json!(kind)));
    }
    let bytes: Vec<u8> = (0..=255).collect();
    let base64 = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0+P0BBQkNERUZHSElKS0xNTk9QUVJTVFVWV1hZWltcXV5fYGFiY2RlZmdoaWprbG1ub3BxcnN0dXZ3eHl6e3x9fn+AgYKDhIWGh4iJiouMjY6PkJGSk5SVlpeYmZqbnJ2en6ChoqOkpaanqKmqq6ytrq+wsbKztLW2t7i5uru8vb6/wMHCw8TFxsfIycrLzM3Oz9DR0tPU1dbX2Nna29zd3t/g4eLj5OXm5+jp6uvs7e7v8PHy8/T19vf4+fr7/P3+/w==";
    let headers = [&CE[..], &[("content-type", "application/octet-stream")]].concat();
    let event = stored(&daemon, &push_at(&daemon, "/events/push", &headers, &bytes));
    assert!(event.contains(&format!("\"data_base64\":\"{base64}\"")), "{event}");
    let body = json!({"specversion": "1.0", "source": "s", "type": "t", "data_base64": base64});
    assert!(stored(&daemon, &push(&daemon, CLOUD, &body.to_string())).contains(base64));
}

/// Goal: every attribute that a producer may set is kept, those that it left out are made.
#[test]
fn attributes_are_kept() {
    let daemon = Daemon::start();
    let long = "ü".repeat(127);
    let cases: [(&str, Value, Value); 8] = [
        (
            PLAIN,
            json!({"agent_id": "a1"}),
            json!({"agentid": "a1", "priority": "normal", "specversion": "1.0", "trust": "owner"}),
        ),
        (
            PLAIN,
            json!({"priority": "high", "delivery": "exactly_once"}),
            json!({"priority": "high", "delivery": "exactly_once"}),
        ),
        (
            PLAIN,
            json!({"dedup_key": "k", "subject": "what", "id": "my id"}),
            json!({"dedupkey": "k", "subject": "what", "id": "my id"}),
        ),
        (
            PLAIN,
            json!({"time": "2026-01-31T08:00:00+02:00", "id": long}),
            json!({"time": "2026-01-31T08:00:00+02:00", "id": long}),
        ),
        (
            CLOUD,
            json!({"specversion": "1.0", "flag": true, "count": -7, "word": "x y"}),
            json!({"flag": true, "count": -7, "word": "x y"}),
        ),
        (
            CLOUD,
            json!({"specversion": "1.0", "partitionkey": "p", "agentid": "a", "dedupkey": "k2"}),
            json!({"partitionkey": "p", "agentid": "a", "dedupkey": "k2"}),
        ),
        (
            CLOUD,
            json!({"specversion": "1.0", "expirytime": "2099-01-01T00:00:00Z", "nothing": null}),
            json!({"nothing": null}),
        ),
        (PLAIN, json!({"data": null, "subject": null}), json!({"data": null, "subject": null, "data_base64": null})),
    ];
    for (kind, sent, expected) in cases {
        let mut body = json!({"source": "s", "type": "t"});
        body.as_object_mut().expect("an object").extend(sent.as_object().expect("an object").clone());
        let answer = push(&daemon, kind, &body.to_string());
        let text = stored(&daemon, &answer);
        let event = serde_json::from_str::<Value>(&text).expect("JSON")["event"].clone();
        for (name, value) in expected.as_object().expect("an object") {
            assert_eq!(&event[name], value, "{body}: {event}");
        }
        let target = sent["agent_id"].as_str().or(sent["agentid"].as_str());
        assert_eq!(answer.json["target"], target.map_or("global".to_owned(), |agent| format!("agent:{agent}")));
        assert!(event["time"].is_string() && event["id"].is_string(), "{event}");
    }
    let headers =
        [&CE[..], &[("ce-subject", "Euro%20%E2%82%AC%20%F0%9F%98%80"), ("ce-myext", "7"), ("ce-id", "b/1")]].concat();
    let event = serde_json::from_str::<Value>(&stored(&daemon, &push_at(&daemon, "/events/push", &headers, b"")))
        .expect("JSON");
    let event = &event["event"];
    assert_eq!((&event["subject"], &event["myext"], &event["id"]), (&json!("Euro € 😀"), &json!("7"), &json!("b/1")));
}

/// Goal: the same key is the same event: per source for `id` and `dedupkey`, per request for `Idempotency-Key`.
#[test]
fn duplicates_are_one_event() {
    let daemon = Daemon::start();
    let first = push(&daemon, PLAIN, r#"{"source":"s","type":"t","id":"1","dedup_key":"k","data":1}"#);
    assert_eq!(first.json["deduplicated"], false);
    for again in [
        r#"{"source":"s","type":"t","id":"1","data":2}"#,
        r#"{"source":"s","type":"other","id":"1"}"#,
        r#"{"source":"s","type":"t","dedup_key":"k"}"#,
        r#"{"source":"s","type":"t","id":"2","dedup_key":"k"}"#,
    ] {
        let answer = push(&daemon, PLAIN, again);
        let told = (answer.status, &answer.json["deduplicated"], &answer.json["id"], &answer.json["sequence"]);
        assert_eq!(told, (202, &json!(true), &json!("1"), &first.json["sequence"]), "{again}");
    }
    assert_eq!((sequence(&daemon), &daemon.dump("1")["event"]["data"]), (1, &json!(1)));
    for other in [r#"{"source":"s2","type":"t","id":"1","dedup_key":"k"}"#, r#"{"source":"s","type":"t","id":"k"}"#] {
        assert_eq!(push(&daemon, PLAIN, other).json["deduplicated"], false, "{other}");
    }
    let item = r#"{"specversion":"1.0","source":"b","type":"t","id":"1"}"#;
    let batch = push(&daemon, BATCH, &format!("[{item},{item}]"));
    let told: Vec<Value> = batch.items().iter().map(|one| one["deduplicated"].clone()).collect();
    assert_eq!(told, [false, true]);
}

/// Goal: the same request with the same key has one effect and one answer, also when many come at once.
#[test]
fn idempotent_requests_have_one_effect() {
    let daemon = Daemon::start();
    let body = r#"[{"specversion":"1.0","source":"s","type":"t"},{"specversion":"1.0","source":"s","type":"t"}]"#;
    let headers = [("content-type", BATCH), ("idempotency-key", "one")];
    let answers: Vec<Answer> = std::thread::scope(|scope| {
        let send = || push_at(&daemon, "/events/push", &headers, body.as_bytes());
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(send)).collect();
        threads.into_iter().map(|thread| thread.join().expect("an answer")).collect()
    });
    for answer in &answers {
        assert_eq!((answer.status, &answer.json), (202, &answers[0].json), "{answer:?}");
    }
    assert_eq!(sequence(&daemon), 2, "one batch was stored");
    let other = push_at(&daemon, "/events/push", &headers, body.replace("\"s\"", "\"z\"").as_bytes());
    assert_eq!((other.status, other.code()), (422, "idempotency_mismatch"));
    let key = [("content-type", BATCH), ("idempotency-key", "two")];
    assert_eq!(push_at(&daemon, "/events/push", &key, body.as_bytes()).json["items"][0]["sequence"], 3);
    // What was refused is not remembered: mended, it may use the same key.
    let key = [("content-type", PLAIN), ("idempotency-key", "three")];
    assert_eq!(push_at(&daemon, "/events/push", &key, br#"{"source":"s"}"#).status, 400);
    assert_eq!(push_at(&daemon, "/events/push", &key, br#"{"source":"s","type":"t"}"#).status, 202);
    for key in ["", &"k".repeat(256)] {
        let headers = [("content-type", PLAIN), ("idempotency-key", key)];
        let answer = push_at(&daemon, "/events/push", &headers, br#"{"source":"s","type":"t"}"#);
        assert_eq!((answer.status, answer.fields()), (400, vec!["Idempotency-Key"]), "{key:?}: {answer:?}");
    }
}

/// Goal: a dry run says who would get the event and why, refuses what a push refuses, and stores nothing.
#[test]
fn dry_runs_touch_nothing() {
    let folder = Folder::new("dry");
    write_skill(folder.path(), "big", &["aman.on: t.*", "aman.when: .data.n > 5"], "exit 0");
    write_skill(folder.path(), "off", &["aman.on: t.a"], "exit 0");
    let daemon = Daemon::start_in(folder.path());
    daemon.post("/skill/off/disable", &json!({}));
    for (n, matched, reason) in [(9, vec!["skill/big"], "matched"), (1, vec![], "condition_false")] {
        let body = json!({"source": "s", "type": "t.a", "data": {"n": n}});
        let answer = daemon.post("/events/push?dry_run=true", &body);
        assert_eq!(
            (answer.status, &answer.json["dry_run"], &answer.json["matched"]),
            (200, &json!(true), &json!(matched))
        );
        let considered = answer.json["considered"].as_array().expect("considered");
        let of =
            |name: &str| considered.iter().find(|one| one["consumer"] == name).unwrap_or_else(|| panic!("{answer:?}"));
        assert_eq!((&of("skill/big")["reason"], &of("skill/off")["reason"]), (&json!(reason), &json!("disabled")));
        assert_eq!(of("skill/big")["values"], json!({".data.n": n}), "{answer:?}");
    }
    let batch = r#"[{"specversion":"1.0","source":"s","type":"t.a"},{"specversion":"1.0","source":"s","type":"x"}]"#;
    let headers = [("content-type", BATCH), ("idempotency-key", "k")];
    let dry = push_at(&daemon, "/events/push?dry_run=true", &headers, batch.as_bytes());
    assert_eq!((dry.status, dry.items().len()), (200, 2));
    assert_eq!(push_at(&daemon, "/events/push?dry_run=true", &headers, b"[{}]").status, 400);
    let reserved = daemon.post("/events/push?dry_run=true", &json!({"source": "aman", "type": "t"}));
    assert_eq!((reserved.status, reserved.code()), (403, "reserved_name"));
    assert_eq!(sequence(&daemon), 0);
    assert_eq!(
        push_at(&daemon, "/events/push", &headers, batch.as_bytes()).items()[0]["sequence"],
        1,
        "the key is free"
    );
}

/// Goal: an event past its time is stored and not delivered, and says so.
#[test]
fn expired_events_are_not_delivered() {
    let folder = Folder::new("ttl");
    write_skill(folder.path(), "runs", &["aman.on: t.a"], "exit 0");
    let daemon = Daemon::start_in(folder.path());
    let late =
        push(&daemon, CLOUD, r#"{"specversion":"1.0","source":"s","type":"t.a","expirytime":"2020-01-01T00:00:00Z"}"#);
    let soon = push(&daemon, PLAIN, r#"{"source":"s","type":"t.a","ttl_ms":60000}"#);
    daemon.settle();
    for (answer, delivery, status) in [(late, "expired", "expired"), (soon, "done", "handled")] {
        let id = answer.json["id"].as_str().expect("an id");
        let why = daemon.get(&format!("/events/{id}/why")).json;
        assert_eq!((&why["status"], &why["deliveries"][0]["status"]), (&json!(status), &json!(delivery)), "{why}");
        let at: String = why["event"]["expirytime"].as_str().expect("when it expires").to_owned();
        let year = 1970
            + SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs() / 31_557_600;
        assert!(delivery == "expired" || at[..4].parse::<u64>().is_ok_and(|shown| shown.abs_diff(year) <= 1), "{at}");
    }
}

/// Goal: a batch of 1,000 is one unit; its answers are in the order of its events.
#[test]
fn a_full_batch_is_stored_in_order() {
    let daemon = Daemon::start();
    let items: Vec<String> =
        (0..1000).map(|n| format!(r#"{{"specversion":"1.0","source":"s","type":"t.n{n}"}}"#)).collect();
    let answer = push(&daemon, BATCH, &format!("[{}]", items.join(",")));
    assert_eq!(answer.status, 202);
    for (n, one) in answer.items().iter().enumerate() {
        assert_eq!((&one["type"], &one["sequence"]), (&json!(format!("t.n{n}")), &json!(n + 1)));
    }
    assert_eq!(answer.items().len(), 1000);
    let empty = push(&daemon, BATCH, "[]");
    assert_eq!((empty.status, empty.json), (202, json!({"items": []})));
}

/// Goal: a trace begun elsewhere goes on: by header or by attribute, and in every effect.
#[test]
fn traces_go_on() {
    let folder = Folder::new("trace");
    write_skill(folder.path(), "acts", &["aman.on: t.a"], r#"echo '{"publish": [{"type": "t.effect"}]}'"#);
    let daemon = Daemon::start_in(folder.path());
    let parent = |trace: &str| format!("00-{trace}-b7ad6b7169203331-01");
    let (header, attribute) = ("0af7651916cd43dd8448eb211c80319c", "11f7651916cd43dd8448eb211c80319c");
    let by_header = [("content-type", PLAIN), ("traceparent", &parent(header))];
    let one = push_at(&daemon, "/events/push", &by_header, br#"{"source":"s","type":"t.a"}"#);
    let body = format!(r#"{{"specversion":"1.0","source":"s","type":"t.a","traceparent":"{}"}}"#, parent(attribute));
    let headers = [("content-type", CLOUD), by_header[1]];
    let two = push_at(&daemon, "/events/push", &headers, body.as_bytes());
    daemon.settle();
    for (answer, trace) in [(one, header), (two, attribute)] {
        assert_eq!(answer.json["trace_id"], trace);
        assert!(answer.header("traceparent").is_some_and(|text| text.contains(trace)), "{answer:?}");
        let shown = daemon.get(&format!("/events/trace/{trace}")).json;
        let types: Vec<&Value> =
            shown["events"].as_array().expect("events").iter().map(|event| &event["type"]).collect();
        assert_eq!(types, ["t.a", "t.effect"]);
        let edge = json!({"from": shown["events"][0]["id"], "to": shown["events"][1]["id"]});
        assert_eq!(shown["edges"], json!([edge]));
        assert_eq!(shown["events"][1]["causationid"], answer.json["id"]);
        assert_eq!(shown["deliveries"].as_array().map(Vec::len), Some(1), "{shown}");
    }
}

/// Goal: no JSON makes the daemon parse a text inside it once more, which would have a depth limit of its own; and what is
/// accepted can be read again by everyone.
#[test]
fn json_in_json_stays_text() {
    let daemon = Daemon::start();
    let mut bomb = format!("{}{}", "[".repeat(100), "]".repeat(100));
    while bomb.len() < 200_000 {
        let inner = bomb.replace('\\', "\\u005c").replace('"', "\\u0022");
        bomb = format!("{}{{\"$serde_json::private::RawValue\":\"{inner}\"}}{}", "[".repeat(99), "]".repeat(99));
    }
    let deep = |levels: usize| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
    let token = [("authorization", "Bearer test-token-0123456789")];
    let cases = [
        (format!(r#"{{"source":"s","type":"a.b","data":{bomb}}}"#), 400),
        (format!(r#"{{"source":"s","type":"a.b","foo":{bomb}}}"#), 400),
        (format!(r#"{{"source":"s","type":"a.b","data":{}}}"#, deep(101)), 400),
        (format!(r#"{{"source":"s","type":"a.b","data":{}}}"#, deep(100)), 202),
    ];
    for (body, status) in &cases {
        let answer = daemon.send_bytes("POST", "/events/push", &token, body.as_bytes());
        assert_eq!(answer.status, *status, "{}", &body[..body.len().min(60)]);
    }
    let reason = format!(r#"{{"reason":{bomb}}}"#);
    assert_eq!(daemon.send_bytes("POST", "/dlq/x/discard", &token, reason.as_bytes()).status, 400);
    let (code, out, err) = daemon.cli(&["event", "recent"]);
    assert!(code == 0 && out.contains("a.b"), "{out}{err}");
    let id = daemon.recent("a.b")[0]["id"].as_str().expect("an id").to_owned();
    assert!(daemon.get(&format!("/events/{id}/why")).json["event"]["data"].is_array());
}
