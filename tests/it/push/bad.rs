//! What a push refuses.

use serde_json::{Value, json};

use super::{BATCH, CE, CLOUD, PLAIN, push_at, sequence};
use crate::harness::{Answer, Daemon};

/// A refused push: content type, body, status, code, fields that are named.
type Bad = (&'static str, String, u16, &'static str, Vec<String>);

fn invalid(kind: &'static str, body: impl Into<String>, fields: &[&str]) -> Bad {
    (kind, body.into(), 400, "invalid_input", fields.iter().map(|field| (*field).to_owned()).collect())
}

/// A good event with one member changed.
fn with(member: &str, value: &str) -> String {
    let mut good = vec![("specversion", "\"1.0\""), ("source", "\"s\""), ("type", "\"t.a\"")];
    good.retain(|(name, _)| *name != member);
    let good: Vec<String> = good.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    format!("{{{},\"{member}\":{value}}}", good.join(","))
}

fn plain(member: &str, value: &str) -> String {
    with(member, value).replace("\"specversion\":\"1.0\",", "")
}

fn texts() -> Vec<Bad> {
    let mut all = Vec::new();
    let (long, huge) = (format!("\"{}\"", "a".repeat(256)), format!("\"{}\"", "a".repeat(4097)));
    for value in ["\"\"", "\"a..b\"", "\".a\"", "\"a.\"", "\"a b\"", "\"ä\"", "\"a/b\"", "7", "[]", &long] {
        all.push(invalid(CLOUD, with("type", value), &["type"]));
    }
    for value in ["\"\"", "\"a\\u0000b\"", "\"a\\nb\"", "1", "{}", &huge] {
        all.push(invalid(CLOUD, with("source", value), &["source"]));
    }
    for value in [
        "\"\"",
        "\"\\u007f\"",
        "\"recent\"",
        "\"push\"",
        "\"stream\"",
        "\"types\"",
        "\"dump\"",
        "\"trace\"",
        "5",
        &long,
    ] {
        all.push(invalid(PLAIN, plain("id", value), &["id"]));
    }
    for name in ["subject", "partitionkey", "dedupkey", "myextension"] {
        all.push(invalid(CLOUD, with(name, "\"a\\tb\""), &[name]));
        all.push(invalid(CLOUD, with(name, &huge), &[name]));
    }
    all.push(invalid(CLOUD, with("agentid", &long), &["agentid"]));
    all
}

fn values() -> Vec<Bad> {
    let mut all = Vec::new();
    for value in ["\"2026-01-01T00:00:00\"", "\"2026-13-01T00:00:00Z\"", "\"tomorrow\"", "0", "\"\""] {
        all.push(invalid(CLOUD, with("time", value), &["time"]));
        all.push(invalid(CLOUD, with("expirytime", value), &["expirytime"]));
    }
    for value in ["0", "-1", "1.5", "\"5\"", "true", "99999999999999999999"] {
        all.push(invalid(PLAIN, plain("ttl_ms", value), &["ttl_ms"]));
    }
    for value in ["\"urgent\"", "1", "\"\"", "\"High\""] {
        all.push(invalid(PLAIN, plain("priority", value), &["priority"]));
        all.push(invalid(CLOUD, with("delivery", value), &["delivery"]));
    }
    for value in ["1.5", "[]", "{}", "2147483648", "-2147483649", "1e2"] {
        all.push(invalid(CLOUD, with("ext", value), &["ext"]));
    }
    for name in ["Ext", "my_ext", "ext-a", "ext.a", ""] {
        all.push(invalid(CLOUD, with(name, "\"x\""), &[name]));
    }
    for value in ["\"\"", "\"00-0-0-0\"", "\"00-00000000000000000000000000000000-b7ad6b7169203331-01\""] {
        all.push(invalid(CLOUD, with("traceparent", value), &["traceparent"]));
    }
    for value in ["\"0.3\"", "1.0", "\"\"", "null"] {
        all.push(invalid(CLOUD, with("specversion", value), &["specversion"]));
    }
    for value in ["\"?\"", "\"YQ\"", "7"] {
        all.push(invalid(CLOUD, with("data_base64", value), &["data_base64"]));
    }
    all.push(invalid(CLOUD, with("data", "1,\"data_base64\":\"YQ==\""), &["data_base64"]));
    all.push(invalid(CLOUD, with("data", "1e400"), &["data"]));
    all.push(invalid(CLOUD, with("data", "\"\\ud800\""), &["data"]));
    all.push(invalid(CLOUD, with("data", &format!("{}{}", "[".repeat(200), "]".repeat(200))), &["data"]));
    all.push(invalid(PLAIN, plain("ttl_ms", "5,\"expirytime\":\"2099-01-01T00:00:00Z\""), &["expirytime"]));
    all
}

fn shapes() -> Vec<Bad> {
    let mut all = vec![
        invalid(PLAIN, "", &["source", "type"]),
        invalid(PLAIN, "{}", &["source", "type"]),
        invalid(CLOUD, "{}", &["specversion", "source", "type"]),
        invalid(PLAIN, r#"{"source":"s"}"#, &["type"]),
        invalid(PLAIN, plain("evnt_type", "1"), &["evnt_type"]),
        invalid(PLAIN, r#"{"sourc":"s","type":"t"}"#, &["sourc", "source"]),
        invalid(PLAIN, plain("event_type", "\"t\""), &["event_type"]),
        invalid(PLAIN, plain("data", "1,\"payload\":2"), &["payload"]),
        invalid(PLAIN, plain("dedup_key", "\"a\",\"dedupkey\":\"b\""), &["dedupkey"]),
        invalid(CLOUD, with("subject", "\"a\",\"subject\":\"b\""), &["subject"]),
        invalid(PLAIN, r#"{"source":1,"type":"a..b","prioritty":"x"}"#, &["source", "prioritty"]),
    ];
    for text in ["{", "[]", "null", "7", "\"x\"", "{}{}", "{'a':1}", "{\"source\":}", "\u{feff}{}", "{\"a\":1,}"] {
        all.push(invalid(PLAIN, text, &["body"]));
    }
    for text in ["", "{}", "null", "[1", "{\"specversion\":\"1.0\"}"] {
        all.push(invalid(BATCH, text, &["body"]));
    }
    let good = with("subject", "\"x\"");
    all.push(invalid(BATCH, format!("[{good},{good},{good},{}]", with("type", "\"a..b\"")), &["/3/type"]));
    all.push(invalid(
        BATCH,
        format!("[{},{good},{}]", with("source", "1"), with("priority", "\"x\"")),
        &["/0/source", "/2/priority"],
    ));
    all.push(invalid(BATCH, format!("[{good},7]"), &["/1"]));
    all.push(invalid(BATCH, format!("[{}]", with("ext", "[]")), &["/0/ext"]));
    all.push(invalid(BATCH, format!("[{}]", vec![good.as_str(); 1001].join(",")), &["body"]));
    all
}

fn reserved() -> Vec<Bad> {
    let mut all = Vec::new();
    for name in ["amansequence", "traceid", "correlationid", "causationid", "trust"] {
        let field = vec![name.to_owned()];
        all.push((CLOUD, with(name, "\"1\""), 400, "reserved_attribute", field.clone()));
        all.push((PLAIN, plain(name, "1"), 400, "reserved_attribute", field));
        let batch = format!("[{},{}]", with("subject", "\"x\""), with(name, "\"1\""));
        all.push((BATCH, batch, 400, "reserved_attribute", vec![format!("/1/{name}")]));
    }
    for source in [
        "aman",
        "aman/bus",
        "amanda",
        "files/x",
        "cron/x",
        "hook/x",
        "skill/x",
        "workflow/x",
        "plugin/x",
        "agent/x",
        "mqtt/x",
        "command/x",
    ] {
        all.push((CLOUD, with("source", &format!("\"{source}\"")), 403, "reserved_name", vec![]));
    }
    for kind in ["aman.ready", "aman.a.b"] {
        all.push((PLAIN, plain("type", &format!("\"{kind}\"")), 403, "reserved_name", vec![]));
        all.push((
            BATCH,
            format!("[{},{}]", with("subject", "\"x\""), with("type", &format!("\"{kind}\""))),
            403,
            "reserved_name",
            vec![],
        ));
    }
    for kind in [
        "text/plain",
        "application/xml",
        "application/cloudevents+avro",
        "application/cloudevents-batch+xml",
        "multipart/form-data",
    ] {
        all.push((kind, with("subject", "\"x\""), 415, "unsupported_media_type", vec![]));
    }
    all.push((PLAIN, plain("data", &format!("\"{}\"", "x".repeat(1 << 20))), 413, "body_too_large", vec![]));
    all
}

/// A problem as the contract wants it, which names these fields.
fn check(answer: &Answer, status: u16, code: &str, fields: &[String], what: &str) {
    let shown: String = what.chars().take(300).collect();
    assert_eq!((answer.status, answer.code()), (status, code), "{shown}: {answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    let problem = &answer.json;
    assert_eq!((&problem["status"], &problem["instance"]), (&json!(status), &json!("/events/push")), "{shown}");
    for name in ["type", "title", "detail", "message", "trace_id"] {
        assert!(problem[name].as_str().is_some_and(|text| !text.is_empty()), "{shown}: {name} of {problem}");
    }
    assert_eq!(problem["detail"], problem["message"]);
    assert_eq!(answer.fields(), fields, "{shown}: {problem}");
}

/// Goal: bad input is a 4xx problem that names the field; nothing of it is stored, and nothing panics.
#[test]
fn bad_input_is_named_and_not_stored() {
    let daemon = Daemon::start();
    let cases = [texts(), values(), shapes(), reserved()].concat();
    for (kind, body, status, code, fields) in &cases {
        let answer = push_at(&daemon, "/events/push", &[("content-type", kind)], body.as_bytes());
        check(&answer, *status, code, fields, &format!("{kind}: {body}"));
    }
    let bytes: [(&str, &[u8]); 3] = [(PLAIN, b"{\"source\":\"\xff\"}"), (CLOUD, b"\xff\xfe"), (BATCH, b"[\xc3]")];
    for (kind, body) in bytes {
        let answer = push_at(&daemon, "/events/push", &[("content-type", kind)], body);
        check(&answer, 400, "invalid_input", &["body".to_owned()], kind);
    }
    assert_eq!(sequence(&daemon), 0, "nothing was stored");
    assert_eq!(daemon.recent("**"), Vec::<Value>::new());
    assert_eq!(daemon.get("/debug/metrics").json["http"]["panics"], 0);
    assert_eq!(daemon.get("/audit-log").items().len(), 0, "ingestion is not audited");
}

/// Goal: the binary form refuses by header name what the others refuse by member.
#[test]
fn bad_headers_are_named_and_not_stored() {
    let daemon = Daemon::start();
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a [u8], &'a [&'a str]);
    let cases: [Case<'_>; 12] = [
        (&CE[..2], b"", &["type"]),
        (&[CE[0], CE[2]], b"", &["source"]),
        (&CE[1..], b"", &["specversion"]),
        (&[("ce-specversion", "0.3"), CE[1], CE[2]], b"", &["specversion"]),
        (&[CE[0], CE[1], CE[2], ("ce-type", "u")], b"", &["type"]),
        (&[CE[0], CE[1], CE[2], ("ce-data", "x")], b"", &["data"]),
        (&[CE[0], CE[1], CE[2], ("ce-datacontenttype", "text/plain")], b"", &["datacontenttype"]),
        (&[CE[0], CE[1], CE[2], ("ce-subject", "%ff")], b"", &["subject"]),
        (&[CE[0], CE[1], CE[2], ("ce-subject", "a%00b")], b"", &["subject"]),
        (&[CE[0], CE[1], CE[2], ("ce-time", "now")], b"", &["time"]),
        (&[CE[0], CE[1], CE[2], ("content-type", "application/json")], b"{", &["data"]),
        (&[CE[0], CE[1], CE[2], ("content-type", "application/json")], b"\xff", &["data"]),
    ];
    for (headers, body, fields) in cases {
        let answer = push_at(&daemon, "/events/push", headers, body);
        let fields: Vec<String> = fields.iter().map(|field| (*field).to_owned()).collect();
        check(&answer, 400, "invalid_input", &fields, &format!("{headers:?}"));
    }
    let answer = push_at(&daemon, "/events/push", &[CE[0], CE[1], CE[2], ("ce-trust", "owner")], b"");
    check(&answer, 400, "reserved_attribute", &["trust".to_owned()], "ce-trust");
    let gzip = push_at(&daemon, "/events/push", &[("content-encoding", "gzip")], b"x");
    check(&gzip, 415, "unsupported_media_type", &[], "gzip");
    for (query, field) in [("dry=1", "dry"), ("dry_run=maybe", "dry_run"), ("dry_run=1&dry_run=1", "dry_run")] {
        let path = format!("/events/push?{query}");
        let answer = push_at(&daemon, &path, &[("content-type", PLAIN)], br#"{"source":"s","type":"t"}"#);
        check(&answer, 400, "invalid_input", &[field.to_owned()], query);
    }
    assert_eq!(sequence(&daemon), 0, "nothing was stored");
}
