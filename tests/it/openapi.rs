//! `/openapi.json`: what is committed, what is served, and whether answers are as it says.

use aman::api::openapi;
use serde_json::{Value, json};

use crate::harness::{Answer, Daemon};
use crate::tidy;

/// Goal: the committed document is the one that the route table gives.
#[test]
fn golden_document_is_the_committed_one() {
    assert_eq!(openapi::undocumented(), Vec::<String>::new(), "see daemon/src/api/openapi/operations.rs");
    let text = serde_json::to_string_pretty(&openapi::document()).expect("JSON") + "\n";
    tidy::golden_at("schemas/openapi.json", &text, "run scripts/bless");
}

/// Goal: anybody may read it, and it is the committed one.
#[test]
fn it_is_served_to_everybody() {
    let daemon = Daemon::start();
    let answer = daemon.send("GET", "/openapi.json", &[], None);
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    assert_eq!(answer.json, openapi::document());
    assert_eq!(answer.json["openapi"], "3.1.0");
}

/// The schema of an answer of this status, with the components that it refers to.
fn schema(document: &Value, method: &str, path: &str, status: u16) -> Value {
    let operation = &document["paths"][path][method.to_lowercase()];
    let mut answer = &operation["responses"][status.to_string()];
    assert!(!answer.is_null(), "{method} {path} does not document {status}");
    if let Some(reference) = answer["$ref"].as_str() {
        answer = document.pointer(reference.trim_start_matches('#')).expect("the reference leads somewhere");
    }
    let content = answer["content"].as_object().expect("content");
    let (_, content) = content.iter().find(|(media, _)| media.ends_with("json")).expect("JSON");
    json!({ "allOf": [content["schema"]], "components": document["components"] })
}

fn check(document: &Value, (method, path): (&str, &str), answer: &Answer) {
    let schema = schema(document, method, path, answer.status);
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    let faults: Vec<String> =
        validator.iter_errors(&answer.json).map(|fault| format!("{} at {}", fault, fault.instance_path())).collect();
    assert_eq!(faults, Vec::<String>::new(), "{method} {path}: {}", answer.json);
}

/// Goal: real answers, good and bad, fit the schemas of the document.
#[test]
fn answers_are_as_documented() {
    let daemon = Daemon::start();
    let document = openapi::document();
    let id = daemon.push("some.thing", json!({ "n": 1 }));
    let trace = daemon.dump(&id)["event"]["traceid"].as_str().expect("a trace").to_owned();
    for path in [
        "/health",
        "/health/live",
        "/health/ready",
        "/health/llm",
        "/runtime/status",
        "/runtime/config",
        "/debug/metrics",
        "/events/recent",
        "/events/types",
        "/dlq",
        "/dlq/depth",
        "/dlq/groups",
        "/audit-log",
        "/audit-log/verify",
        "/skills",
        "/llm-skills",
    ] {
        check(&document, ("GET", path), &daemon.get(path));
        check(&document, ("GET", path), &daemon.get(&format!("{path}?nonsense=1")));
    }
    let skills = daemon.get("/skills").items();
    let skill = skills[0]["name"].as_str().expect("a bundled skill").to_owned();
    for (path, real) in [
        ("/events/dump/{id}", format!("/events/dump/{id}")),
        ("/events/dump/{id}", "/events/dump/nothing".to_owned()),
        ("/events/{id}/why", format!("/events/{id}/why?all=true")),
        ("/events/trace/{trace_id}", format!("/events/trace/{trace}")),
        ("/events/trace/{trace_id}", "/events/trace/x".to_owned()),
        ("/skills/search", "/skills/search?q=file".to_owned()),
        ("/skill/{name}", format!("/skill/{skill}")),
        ("/skill/{name}/content", format!("/skill/{skill}/content")),
        ("/skill/{name}/versions", format!("/skill/{skill}/versions")),
    ] {
        check(&document, ("GET", path), &daemon.get(&real));
    }
    let pushed = json!({ "source": "test", "type": "a.b" });
    for (path, body) in [
        ("/events/push", pushed.clone()),
        ("/events/push", json!({ "source": "aman", "type": "a.b" })),
        ("/events/push", json!([])),
        ("/inject-event", pushed),
        ("/dlq/retry", json!({ "fingerprint": "none" })),
        ("/skills/reload", json!({})),
        ("/config/set", json!({ "changes": { "log.level": "warn" } })),
        ("/config/set", json!({ "changes": { "http.token": "x" } })),
        ("/config/set", json!({ "changes": { "nothing.such": 1 } })),
        ("/config/reload", json!({})),
    ] {
        check(&document, ("POST", path), &daemon.post(path, &body));
        check(&document, ("POST", path), &daemon.post_confirmed(path, &body));
    }
    let refused = daemon.send("GET", "/skills", &[], None);
    check(&document, ("GET", "/skills"), &refused);
    assert_eq!(refused.status, 401);
}
