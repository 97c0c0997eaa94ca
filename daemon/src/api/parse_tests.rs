use hyper::header::HeaderValue;

use super::*;
use crate::id::{SpanId, TraceId};

fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (name.parse().expect("name"), HeaderValue::from_static(value))).collect()
}

fn read(pairs: &[(&'static str, &'static str)], body: &str) -> Result<Pushed, Problem> {
    push(&headers(pairs), body.as_bytes(), None, 1_000)
}

fn plain(body: &str) -> NewEvent {
    read(&[], body).expect(body).events.remove(0)
}

/// The codes and fields that a body is refused with.
fn refused(pairs: &[(&'static str, &'static str)], body: &str) -> String {
    match read(pairs, body) {
        Ok(pushed) => {
            pushed.events.iter().map(|e| e.check().map_or_else(|e| e.to_string(), |()| "good".into())).collect()
        }
        Err(problem) => {
            let fields: Vec<String> = problem.fields.into_iter().map(|f| f.field).collect();
            format!("{} {}", problem.code, fields.join(",")).trim_end().to_owned()
        }
    }
}

#[test]
fn plain_json_takes_old_and_new_names() {
    let event = plain(
        r#"{"source":"me","event_type":"a.b","payload":{"x": [1,2]},"agent_id":"g","priority":"high",
            "delivery":"at_most_once","ttl_ms":500,"dedup_key":"k","subject":"s","time":"2026-01-01T00:00:00Z","id":"i"}"#,
    );
    assert_eq!((event.source.as_str(), event.kind.as_str()), ("me", "a.b"));
    assert_eq!(event.data, Data::Json(r#"{"x": [1,2]}"#.to_owned()));
    assert_eq!((event.priority, event.delivery), (Priority::High, Delivery::AtMostOnce));
    assert_eq!(event.expires_ms, Some(1_500));
    assert_eq!(event.dedup_key.as_deref(), Some("k"));
    assert_eq!(event.agent_id.as_deref(), Some("g"));
    assert_eq!(event.id.as_deref(), Some("i"));
    assert_eq!(plain(r#"{"source":"me","type":"a"}"#).data, Data::None);
    assert_eq!(plain(r#"{"source":"me","type":"a","data":null,"id":null}"#).data, Data::None);
    assert_eq!(plain(r#"{"source":"me","type":"a","data":0}"#).data, Data::Json("0".to_owned()));
    assert_eq!(plain(r#"{"sourc\u0065":"m\u00e9","type":"a"}"#).source, "mé");
}

#[test]
fn plain_json_names_what_is_wrong() {
    for (body, want) in [
        ("", "invalid_input source,type"),
        ("{}", "invalid_input source,type"),
        ("[]", "invalid_input body"),
        ("{", "invalid_input body"),
        ("{\"source\":\"a\"} x", "invalid_input body"),
        (r#"{"source":1,"type":"a"}"#, "invalid_input source"),
        (r#"{"source":"","type":"a"}"#, "invalid_input source"),
        (r#"{"source":"m","type":"a","event_type":"a"}"#, "invalid_input event_type"),
        (r#"{"source":"m","type":"a","data":1,"payload":1}"#, "invalid_input payload"),
        (r#"{"source":"m","type":"a","dedup_key":"a","dedupkey":"b"}"#, "invalid_input dedupkey"),
        (r#"{"source":"m","type":"a","type":"b"}"#, "invalid_input type"),
        (r#"{"source":"m","type":"a","paylod":1}"#, "invalid_input paylod"),
        (r#"{"source":"m","type":"a","priority":"urgent"}"#, "invalid_input priority"),
        (r#"{"source":"m","type":"a","priority":1}"#, "invalid_input priority"),
        (r#"{"source":"m","type":"a","delivery":"maybe"}"#, "invalid_input delivery"),
        (r#"{"source":"m","type":"a","ttl_ms":0}"#, "invalid_input ttl_ms"),
        (r#"{"source":"m","type":"a","ttl_ms":"5"}"#, "invalid_input ttl_ms"),
        (r#"{"source":"m","type":"a","ttl_ms":1,"expirytime":"2030-01-01T00:00:00Z"}"#, "invalid_input expirytime"),
        (r#"{"source":"m","type":"a","expirytime":"soon"}"#, "invalid_input expirytime"),
        (r#"{"source":"m","type":"a","data":1,"data_base64":"AA=="}"#, "invalid_input data_base64"),
        (r#"{"source":"m","type":"a","data_base64":"?"}"#, "invalid_input data_base64"),
        (r#"{"source":"m","type":"a","data":"\ud800"}"#, "invalid_input data"),
        (r#"{"source":"m","type":"a","id":"recent"}"#, "invalid_input id"),
        (r#"{"source":"m","type":"a","traceparent":"x"}"#, "invalid_input traceparent"),
        (r#"{"source":"m","type":"a","trust":"owner"}"#, "reserved_attribute trust"),
        (r#"{"source":"m","type":"a","amansequence":"1"}"#, "reserved_attribute amansequence"),
        (r#"{"source":"m","type":"a","traceid":null}"#, "good"),
    ] {
        assert_eq!(refused(&[], body), want, "{body}");
    }
    assert_eq!(refused(&[("content-type", "text/plain")], "x"), "unsupported_media_type");
    assert_eq!(refused(&[("content-type", "application/cloudevents+avro")], "x"), "unsupported_media_type");
    let good = r#"{"source":"m","type":"a"}"#;
    assert_eq!(refused(&[("content-type", "Application/JSON; charset=utf-8")], good), "good");
}

#[test]
fn structured_keeps_extensions() {
    let kind = [("content-type", "application/cloudevents+json; charset=utf-8")];
    let body = r#"{"specversion":"1.0","source":"m","type":"a","comexample":1,"flag":true,"datacontenttype":"text/plain",
        "data":"hé"}"#;
    let event = read(&kind, body).expect("good").events.remove(0);
    assert_eq!(event.extensions["comexample"], 1);
    assert_eq!(event.extensions["flag"], true);
    assert_eq!(event.data, Data::Text("hé".to_owned()));
    assert_eq!(refused(&kind, r#"{"source":"m","type":"a"}"#), "invalid_input specversion");
    assert_eq!(refused(&kind, r#"{"specversion":"0.3","source":"m","type":"a"}"#), "invalid_input specversion");
    let nested = refused(&kind, r#"{"specversion":"1.0","source":"m","type":"a","x":{}}"#);
    assert!(nested.starts_with("x:"), "{nested}");
    let bytes = read(&kind, r#"{"specversion":"1.0","source":"m","type":"a","data_base64":"AP8="}"#).expect("good");
    assert_eq!(bytes.events[0].data, Data::Binary(vec![0, 255]));
    let claims =
        r#"{"specversion":"1.0","source":"m","type":"a","datacontenttype":"application/json","data_base64":"AP8="}"#;
    assert_eq!(refused(&kind, claims), "invalid_input data");
    assert_eq!(plain(r#"{"specversion":"1.0","source":"m","type":"a","x":"kept"}"#).extensions["x"], "kept");
}

#[test]
fn a_batch_names_its_events() {
    let kind = [("content-type", "application/cloudevents-batch+json")];
    let good = r#"{"specversion":"1.0","source":"m","type":"a"}"#;
    let pushed = read(&kind, &format!("[{good},{good}]")).expect("good");
    assert_eq!((pushed.events.len(), pushed.batch), (2, true));
    assert_eq!(read(&kind, "[]").expect("none").events.len(), 0);
    let bad = format!(r#"[{good},{{"specversion":"1.0","source":"m"}},{{"specversion":"1.0","source":1,"type":"a"}}]"#);
    assert_eq!(refused(&kind, &bad), "invalid_input /1/type,/2/source");
    assert_eq!(refused(&kind, &format!("[{good},1]")), "invalid_input /1");
    assert_eq!(refused(&kind, good), "invalid_input body");
    assert_eq!(refused(&kind, &format!("[{}{good}]", format!("{good},").repeat(1000))), "invalid_input body");
}

#[test]
fn binary_mode_reads_headers() {
    let all = [("ce-specversion", "1.0"), ("ce-type", "a"), ("ce-source", "m%C3%A9"), ("ce-comexample", "v")];
    let with = |kind: &'static str, body: &[u8]| {
        let mut headers = headers(&all);
        if !kind.is_empty() {
            headers.insert("content-type", HeaderValue::from_static(kind));
        }
        push(&headers, body, None, 0).map(|mut pushed| pushed.events.remove(0))
    };
    let event = with("application/octet-stream", b"\x00\xff").expect("good");
    assert_eq!((event.source.as_str(), event.data), ("mé", Data::Binary(vec![0, 255])));
    assert_eq!(event.extensions["comexample"], "v");
    assert_eq!(event.content_type.as_deref(), Some("application/octet-stream"));
    assert_eq!(with("text/plain", "hé".as_bytes()).expect("good").data, Data::Text("hé".to_owned()));
    assert_eq!(with("text/plain", b"\xff").expect("good").data, Data::Binary(vec![255]));
    assert_eq!(with("", b"{}").expect("good").data, Data::Json("{}".to_owned()));
    assert_eq!(with("application/json", b"").expect("good").data, Data::None);
    assert!(with("application/json", b"{").is_err());
    assert_eq!(refused(&[("ce-type", "a"), ("ce-source", "m")], ""), "invalid_input specversion");
    let reserved = [("ce-specversion", "1.0"), ("ce-type", "a"), ("ce-source", "m"), ("ce-trust", "owner")];
    assert_eq!(refused(&reserved, ""), "reserved_attribute trust");
}

#[test]
fn a_trace_comes_from_the_event_or_the_request() {
    let from = Traceparent { trace: TraceId([7; 16]), span: SpanId([1; 8]) };
    let body = br#"{"source":"m","type":"a"}"#;
    let pushed = push(&HeaderMap::new(), body, Some(from), 0).expect("good");
    assert_eq!((pushed.events[0].trace, pushed.events[0].parent), (Some(from.trace), Some(from.span)));
    let own = br#"{"source":"m","type":"a","traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}"#;
    let pushed = push(&HeaderMap::new(), own, Some(from), 0).expect("good");
    assert_eq!(pushed.events[0].trace, "0af7651916cd43dd8448eb211c80319c".parse().ok());
    assert_eq!(pushed.events[0].parent, "b7ad6b7169203331".parse().ok());
}
