//! The plugins in JavaScript and Python.

use serde_json::json;

use super::{install, tool};
use crate::harness::Daemon;

/// Goal: short links are made, followed, listed and removed, each name once, and last beyond a kill.
#[test]
fn javascript_keeps_links() {
    let mut daemon = Daemon::start();
    install(&daemon, "js-links");
    let made = daemon.post("/api/v1/links", &json!({ "url": "https://example.org", "name": "home" }));
    assert_eq!((made.status, &made.json["name"], &made.json["by"]), (201, &json!("home"), &json!("owner")), "{made:?}");
    let free = daemon.post("/api/v1/links", &json!({ "url": "https://example.org/a/long/address?q=1" }));
    let name = free.json["name"].as_str().expect("a name").to_owned();
    assert_eq!((free.status, name.len()), (201, 6), "{free:?}");
    let taken = daemon.post("/api/v1/links", &json!({ "url": "https://example.com", "name": "home" }));
    assert_eq!((taken.status, taken.code()), (409, "invalid_state"), "{taken:?}");
    for body in [json!({}), json!({ "url": "javascript:alert(1)" }), json!({ "url": "https://a.b", "name": "../x" })] {
        let wrong = daemon.post("/api/v1/links", &body);
        assert_eq!((wrong.status, wrong.code()), (400, "invalid_input"), "{body}: {wrong:?}");
    }
    daemon.kill();
    daemon.again();
    let followed = daemon.get("/api/v1/links/home");
    assert_eq!((followed.status, followed.header("location")), (302, Some("https://example.org")), "{followed:?}");
    assert_eq!(daemon.send("GET", "/api/v1/links/home", &[], None).status, 401);
    assert_eq!(daemon.get("/api/v1/links").items().len(), 2);
    assert_eq!(daemon.call("DELETE", "/api/v1/links/home", None).status, 204);
    for (method, path) in [("GET", "/api/v1/links/home"), ("DELETE", "/api/v1/links/home")] {
        assert_eq!(daemon.call(method, path, None).code(), "not_found", "{method}");
    }
    let left = daemon.get("/api/v1/links").items();
    assert_eq!((left.len(), &left[0]["name"]), (1, &json!(name)));
}

/// Goal: the tool and the route calculate exactly, and refuse in words what they do not.
#[test]
fn python_calculates() {
    let daemon = Daemon::start();
    install(&daemon, "py-calculator");
    assert_eq!(daemon.get("/capabilities").json["items"][0]["name"], "calculate");
    for (expression, result, exact) in [
        ("0.1 + 0.2", json!(0.3), "3/10"),
        ("(12.5 * 3 + 1) / 7", json!(5.5), "11/2"),
        ("2 ** 100", json!(1_267_650_600_228_229_401_496_703_205_376_f64), "1267650600228229401496703205376"),
        ("max(1, sqrt(16), -3) // 3", json!(1), "1"),
    ] {
        let output = tool(&daemon, "calculate", &json!({ "expression": expression }));
        assert_eq!(output["exact"], exact, "{output}");
        assert_eq!(output["result"].as_f64(), result.as_f64(), "{output}");
    }
    let answer = daemon.get("/api/v1/calculate?expression=(12.5*3%2B1)/7");
    assert_eq!((answer.status, &answer.json["exact"]), (200, &json!("11/2")), "{answer:?}");
    for (expression, said) in [
        ("1/0", "divides by zero"),
        ("__import__('os')", "no function here"),
        ("9**9**9**9", "too large"),
        ("(1", "cannot be read"),
        ("True", "truth value"),
    ] {
        let query = expression.replace('\'', "%27").replace(' ', "%20");
        let answer = daemon.get(&format!("/api/v1/calculate?expression={query}"));
        assert_eq!((answer.status, answer.code()), (400, "invalid_input"), "{expression}: {answer:?}");
        assert!(answer.json["detail"].as_str().is_some_and(|text| text.contains(said)), "{expression}: {answer:?}");
    }
    assert_eq!(daemon.get("/api/v1/calculate").status, 400);
}
