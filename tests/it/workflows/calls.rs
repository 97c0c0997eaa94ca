//! `call: http` and `call: openapi`: what is sent, what is made of the answer, and that no secret is seen.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::{completed, instance, start, stored, until};
use crate::harness::{Daemon, Folder};
use crate::peer::Peer;

const JSON: [(&str, &str); 1] = [("content-type", "application/json")];
const OPEN: &str = "[http_client]\nallow_private = true\n";

/// The only request to `target`.
fn only(peer: &Peer, target: &str) -> String {
    let asked = peer.asked(target);
    assert_eq!(asked.len(), 1, "{target} of {:?}", peer.requests());
    asked[0].clone()
}

/// Goal: an operation is found in its document, its parameters go where the document says, and what does not fit it is an
/// error before anything is sent.
#[test]
fn openapi_operations_are_called() {
    let (peer, daemon) = (Peer::start(), Daemon::configured(OPEN));
    let parameter =
        |name: &str, place: &str, required: bool| json!({ "name": name, "in": place, "required": required });
    let three = json!({
        "openapi": "3.0.3",
        "servers": [{ "url": "/{stage}/api", "variables": { "stage": { "default": "beta" } } }],
        "components": { "parameters": { "shelf": parameter("shelf", "path", true) } },
        "paths": { "/shelves/{shelf}/books": {
            "parameters": [{ "$ref": "#/components/parameters/shelf" }],
            "get": { "operationId": "listBooks", "parameters": [parameter("tag", "query", false), parameter("x-reader", "header", false)] },
            "post": { "operationId": "addBook", "requestBody": { "content": { "application/json": {} } } },
        } },
    });
    let two = json!({
        "swagger": "2.0", "host": peer.url().trim_start_matches("http://"), "basePath": "/v2", "schemes": ["https", "http"],
        "paths": { "/loan": { "post": { "operationId": "lend", "parameters": [parameter("book", "formData", true), parameter("days", "formData", false)] } } },
    });
    peer.page("/docs/three.json", "200 OK", &JSON, &three.to_string());
    peer.page("/docs/two.yaml", "200 OK", &[("content-type", "application/yaml")], &two.to_string());
    let books = "/beta/api/shelves/a%20b/books";
    peer.page(&format!("{books}?tag=x&tag=y%26z"), "200 OK", &JSON, "[{\"id\": 1}, {\"id\": 2}]");
    peer.page(books, "201 Created", &JSON, "{\"id\": 3}");
    peer.page("/v2/loan", "200 OK", &JSON, "{\"ok\": true}");
    let call = |document: &str, rest: &str| {
        format!(
            "do: [{{c: {{call: openapi, with: {{document: {{endpoint: '{}/docs/{document}'}}, {rest}}}}}}}]",
            peer.url()
        )
    };
    let list = "operationId: listBooks, parameters: {shelf: '${ .shelf }', tag: '${ .tags }', x-reader: 7}, authentication: {basic: {username: Ada, password: '${ .code }'}}";
    stored(&daemon, "list", &call("three.json", list).replace("}}}]", "}, output: {as: 'map(.id)'}}}]"));
    let input = json!({ "shelf": "a b", "tags": ["x", "y&z"], "code": "c:d" });
    assert_eq!(completed(&daemon, "list", input), json!([1, 2]));
    let request = only(&peer, &format!("{books}?tag=x&tag=y%26z"));
    let basic = format!("authorization: Basic {}\r\n", BASE64.encode("Ada:c:d"));
    assert!(
        request.starts_with("GET ") && request.contains("x-reader: 7\r\n") && request.contains(&basic),
        "{request}"
    );
    assert!(!only(&peer, "/docs/three.json").contains("authorization"), "the document is asked for without them");

    let add = "operationId: addBook, parameters: {shelf: a b, title: '${ .title }', pages: 9}, output: response";
    stored(&daemon, "add", &call("three.json", add));
    let answer = completed(&daemon, "add", json!({ "title": "Bees" }));
    assert_eq!((&answer["statusCode"], &answer["content"]), (&json!(201), &json!({ "id": 3 })));
    assert_eq!(answer["request"]["uri"], format!("{}{books}", peer.url()));
    assert!(only(&peer, books).ends_with("{\"pages\":9,\"title\":\"Bees\"}"), "{:?}", peer.asked(books));
    stored(&daemon, "lend", &call("two.yaml", "operationId: lend, parameters: {book: a&b, days: 3}"));
    assert_eq!(completed(&daemon, "lend", json!({})), json!({ "ok": true }));
    let request = only(&peer, "/v2/loan");
    assert!(request.ends_with("book=a%26b&days=3") && request.contains("x-www-form-urlencoded"), "{request}");

    let before = peer.requests().len();
    for (name, rest, kind, said) in [
        ("unknown", "operationId: burn", "configuration", "burn"),
        ("missing", "operationId: addBook, parameters: {title: x}", "validation", "shelf"),
        ("surplus", "operationId: listBooks, parameters: {shelf: x, colour: red}", "validation", "colour"),
    ] {
        stored(&daemon, name, &call("three.json", rest));
        let id = start(&daemon, name, json!({}));
        let error = until(&daemon, &id, "faulted")["error"].clone();
        assert!(error["type"].as_str().is_some_and(|one| one.ends_with(kind)), "{error}");
        assert!(error["detail"].as_str().is_some_and(|detail| detail.contains(said)), "{error}");
    }
    assert!(peer.requests()[before..].iter().all(|request| request.starts_with("GET /docs/")), "{:?}", peer.requests());
}

/// Goal: `raw`, `content` and `response` are what the standard says, for JSON and for other bytes.
#[test]
fn answers_are_read_as_the_task_says() {
    let (peer, daemon) = (Peer::start(), Daemon::configured(OPEN));
    peer.page(
        "/json",
        "200 OK",
        &[("content-type", "application/problem+json; charset=utf-8"), ("x-n", "1")],
        "{\"a\": [1]}",
    );
    peer.page("/text", "200 OK", &[("content-type", "text/plain")], "hello");
    peer.page("/bytes", "200 OK", &[("content-type", "image/png")], "\u{1}\u{2}");
    peer.page("/none", "204 No Content", &[], "");
    peer.page("/lies", "200 OK", &JSON, "{not json");
    for output in ["raw", "content", "response"] {
        let with = format!(
            "method: get, endpoint: '{}/{{what}}', headers: {{accept: '*/*', cookie: secret=1}}, output: {output}",
            peer.url()
        );
        stored(&daemon, output, &format!("do: [{{c: {{call: http, with: {{{with}}}}}}}]"));
    }
    let read = |output: &str, what: &str| completed(&daemon, output, json!({ "what": what }));
    let base64 = |text: &str| json!(BASE64.encode(text));
    assert_eq!(read("raw", "json"), base64("{\"a\": [1]}"));
    assert_eq!(read("raw", "text"), base64("hello"));
    assert_eq!(read("raw", "none"), json!(""));
    assert_eq!(read("content", "json"), json!({ "a": [1] }));
    assert_eq!(read("content", "text"), json!("hello"));
    assert_eq!(read("content", "bytes"), base64("\u{1}\u{2}"));
    assert_eq!(read("content", "none"), Value::Null);
    let whole = read("response", "json");
    assert_eq!(
        (&whole["statusCode"], &whole["content"], &whole["headers"]["x-n"]),
        (&json!(200), &json!({ "a": [1] }), &json!("1"))
    );
    let request = &whole["request"];
    assert_eq!((&request["method"], &request["uri"]), (&json!("get"), &json!(format!("{}/json", peer.url()))));
    assert_eq!(
        (&request["headers"]["accept"], &request["headers"]["cookie"]),
        (&json!("*/*"), &Value::Null),
        "{request}"
    );
    assert_eq!(read("response", "none")["statusCode"], 204);
    let id = start(&daemon, "content", json!({ "what": "lies" }));
    let error = until(&daemon, &id, "faulted")["error"].clone();
    assert!(error["type"].as_str().is_some_and(|kind| kind.ends_with("/communication")), "{error}");
}

/// Goal: redirections are errors unless the task says otherwise; then those of GET are followed, and credentials go to
/// nobody but the host that was named.
#[test]
fn redirections_are_followed_when_wanted() {
    let (peer, other, daemon) = (Peer::start(), Peer::start(), Daemon::configured(OPEN));
    let away = format!("{}/there", other.url());
    peer.page("/here", "302 Found", &[("location", "/next?a=1")], "");
    peer.page("/next?a=1", "307 Temporary Redirect", &[("location", "next")], "");
    peer.page("/next", "200 OK", &JSON, "{\"got\": 1}");
    peer.page("/away", "301 Moved Permanently", &[("location", &away)], "");
    peer.page("/circle", "302 Found", &[("location", "/circle")], "");
    peer.page("/plain", "304 Not Modified", &[], "");
    other.page("/there", "200 OK", &JSON, "{\"got\": 2}");
    let auth = "authentication: {bearer: {token: canary-of-a-redirect}}";
    for (name, method, redirect) in [("follow", "get", true), ("stay", "get", false), ("post", "post", true)] {
        let with = format!(
            "method: {method}, endpoint: {{uri: '{}/{{path}}', {auth}}}, headers: {{x-key: k}}, redirect: {redirect}, output: response",
            peer.url()
        );
        stored(&daemon, name, &format!("do: [{{c: {{call: http, with: {{{with}}}}}}}]"));
    }
    let answer = |name: &str, path: &str| completed(&daemon, name, json!({ "path": path }));
    assert_eq!(answer("follow", "here")["content"], json!({ "got": 1 }));
    assert!(
        only(&peer, "/next").contains("authorization: Bearer canary-of-a-redirect"),
        "the same host is asked alike"
    );
    assert_eq!(answer("follow", "away")["content"], json!({ "got": 2 }));
    let told = only(&other, "/there");
    assert!(!told.contains("canary") && !told.contains("x-key"), "{told}");
    assert_eq!(answer("follow", "circle")["statusCode"], 302, "it ends somewhere");
    assert_eq!(answer("follow", "plain")["statusCode"], 304);
    assert_eq!(answer("post", "here")["statusCode"], 302, "what may act is not sent elsewhere");
    for (name, path, status) in [("stay", "here", 302), ("stay", "plain", 304)] {
        let id = start(&daemon, name, json!({ "path": path }));
        let error = until(&daemon, &id, "faulted")["error"].clone();
        assert_eq!((&error["status"], &error["instance"]), (&json!(status), &json!("/do/0/c")), "{error}");
    }
}

/// A workflow that calls `url` with each kind of credential and tells an event of all it saw.
fn asking(url: &str) -> String {
    let uses = "use: {secrets: [person, plain, from_env], authentications: {person: {basic: {use: person}}, machine: {bearer: {use: from_env}}, simple: {bearer: {use: plain}}}}\n";
    let call = |name: &str, path: &str, auth: &str, more: &str| {
        format!(
            "{{{name}: {{call: http, with: {{method: get, endpoint: {{uri: '{}/{path}', authentication: {{use: {auth}}}}}, output: response{more}}}, export: {{as: '{{by: $authorization}}'}}}}}}",
            url
        )
    };
    let keyed = format!(
        "{{key: {{input: {{from: '{{k: $secrets.from_env.key}}'}}, call: http, with: {{method: get, endpoint: '{}/query', query: {{key: '${{ .k }}'}}}}}}}}",
        url
    );
    let tell =
        "{tell: {emit: {event: {with: {source: 'https://t.invalid', type: secret.told, data: '${ [., $context] }'}}}}}";
    let tasks = [
        call("a", "basic", "person", ""),
        call("b", "bearer", "machine", ""),
        call("c", "plain", "simple", ""),
        keyed,
        tell.to_owned(),
        call("d", "angry", "person", ""),
    ];
    format!("{uses}do: [{}]", tasks.join(", "))
}

/// Goal: credentials of `use.authentications` come from secrets, reach the server that is called, and are seen nowhere:
/// not in journals, answers that repeat them, errors, events, logs, the audit log, or the database.
#[test]
fn secrets_reach_servers_and_nobody_else() {
    let (peer, folder) = (Peer::start(), Folder::new("secrets"));
    let canaries = ["canary-pass-91", "canary-token-92", "canary-plain-93", "canary-env-94"];
    let basic = BASE64.encode(format!("Ada:{}", canaries[0]));
    std::fs::write(
        folder.path().join("person.json"),
        json!({ "username": "Ada", "password": canaries[0] }).to_string(),
    )
    .expect("a file");
    let toml = format!(
        "{OPEN}[workflows]\nsecrets = {{ person = \"file:{}/person.json\", plain = \"{}\", from_env = \"env:BOOK_TOKEN\" }}\n",
        folder.path().display(),
        canaries[2]
    );
    std::fs::write(folder.path().join("aman.toml"), toml).expect("aman.toml");
    let env = json!({ "token": canaries[1], "key": canaries[3] }).to_string();
    let daemon = Daemon::try_start_in(folder.path(), &[("BOOK_TOKEN", &env)]).expect("it starts");
    let echo = json!({ "you": format!("Basic {basic}"), "and": canaries.join(" ") }).to_string();
    for path in ["/basic", "/bearer", "/plain", "/query?key=canary-env-94"] {
        peer.page(path, "200 OK", &[("content-type", "application/json"), ("x-echo", canaries[1])], &echo);
    }
    peer.page("/angry", "403 Forbidden", &[], &format!("no {}", canaries.join(" ")));
    stored(&daemon, "library", &asking(&peer.url()));
    let id = start(&daemon, "library", json!({}));
    let shown = until(&daemon, &id, "faulted");
    assert_eq!(shown["error"]["status"], 403, "{shown}");
    for (path, wanted) in [
        ("/basic", format!("authorization: Basic {basic}\r\n")),
        ("/bearer", "authorization: Bearer canary-token-92\r\n".to_owned()),
        ("/plain", "authorization: Bearer canary-plain-93\r\n".to_owned()),
        ("/query?key=canary-env-94", "GET /query?key=canary-env-94".to_owned()),
    ] {
        let request = only(&peer, path);
        assert!(request.contains(&wanted), "{request}");
    }
    daemon.settle();
    let told = daemon.wait("what it told", || daemon.recent("secret.told").pop());
    let (_, table, _) = daemon.cli(&["workflow", "show-instance", &id]);
    let mut seen = vec![
        ("the instance", instance(&daemon, &id).to_string()),
        ("the list", daemon.get("/workflow-instances").json.to_string()),
        ("the event", told.to_string()),
        ("all events", json!(daemon.recent("aman.*,secret.*")).to_string()),
        ("the notifications", daemon.get("/notifications").json.to_string()),
        ("the audit log", daemon.get("/audit-log?limit=100").json.to_string()),
        ("the configuration", daemon.get("/config").json.to_string()),
        ("the log", daemon.log()),
        ("the table", table),
    ];
    for file in ["aman.db", "aman.db-wal"] {
        let bytes = std::fs::read(folder.path().join(file)).unwrap_or_default();
        seen.push((file, String::from_utf8_lossy(&bytes).into_owned()));
    }
    for (place, text) in seen {
        for canary in canaries.iter().copied().chain([basic.as_str()]) {
            assert!(!text.contains(canary), "{canary} is seen in {place}");
        }
    }
}
