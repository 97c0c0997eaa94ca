//! Whose package it is, what it may do, and which requests it gets: nothing without consent, nothing of somebody else's.

use aman::package::key::{self, SigningKey};
use serde_json::json;

use super::{MANIFEST, ONE, PUBLISH, TWO, body, content, install_with, installed, package};
use crate::harness::{Answer, Daemon, Folder, TOKEN, manifest};

const ECHO: &[u8] = include_bytes!("../../fixtures/guests/echo.wasm");

/// A publisher of packages.
struct Publisher {
    key: SigningKey,
}

impl Publisher {
    fn new() -> Publisher {
        let folder = Folder::new("key");
        let pair = key::generate(None).expect("a pair of keys");
        let file = folder.path().join("secret.key");
        std::fs::write(&file, pair.secret_file).expect("a file");
        Publisher { key: SigningKey::read(&file, || Err("it has no password".to_owned())).expect("its own key") }
    }

    /// A package of `version` that this publisher names; signed by `signer`.
    fn package(&self, version: &str, text: &str, more: &str, signer: Option<&Publisher>) -> Vec<u8> {
        let head = format!("version = \"{version}\"\npublisher = \"{}\"\n", self.key.public_key());
        let mut content =
            content(&format!("{head}{MANIFEST}{more}"), if text == "one" { ONE } else { TWO }).expect("a sound plugin");
        if let Some(signer) = signer {
            let signature = signer.key.sign(content.sums(), "probe").expect("a signature");
            content.sign(signature);
        }
        let mut packed = Vec::new();
        content.write(&mut packed).expect("in memory");
        packed
    }
}

fn code(answer: &Answer) -> (u16, &str) {
    (answer.status, answer.code())
}

/// Goal: the first publisher is trusted, nobody else from then on, also after the plugin was uninstalled; only with its
/// data its publisher is forgotten.
#[test]
fn the_first_publisher_is_trusted_and_nobody_else() {
    let daemon = Daemon::start();
    let (first, second) = (Publisher::new(), Publisher::new());
    let signed = |publisher: &Publisher, version: &str| publisher.package(version, "one", PUBLISH, Some(publisher));
    let forged = first.package("1.0.0", "one", PUBLISH, Some(&second));
    assert_eq!(code(&install_with(&daemon, &forged, "approve=true")), (400, "invalid_plugin"));
    let done = install_with(&daemon, &signed(&first, "1.0.0"), "approve=true");
    assert_eq!((done.status, done.json["signed_by"].as_str().map(str::len)), (201, Some(16)), "{done:?}");
    let shown = daemon.get("/plugin/probe").json;
    assert_eq!(shown["publisher"], json!(first.key.public_key()));
    for (packed, query, wanted) in [
        (signed(&second, "1.1.0"), "approve=true", (403, "publisher_changed")),
        (first.package("1.1.0", "two", PUBLISH, None), "approve=true&allow_unsigned=true", (403, "publisher_changed")),
        (super::packed("1.1.0", "two", PUBLISH), "approve=true&allow_unsigned=true", (403, "publisher_changed")),
        (signed(&first, "0.9.0"), "approve=true", (409, "plugin_downgrade")),
    ] {
        assert_eq!(code(&install_with(&daemon, &packed, query)), wanted);
        assert_eq!(daemon.get("/plugin/probe").json, shown, "nothing has changed");
    }
    assert_eq!(install_with(&daemon, &signed(&first, "1.1.0"), "").status, 201);
    let back = install_with(&daemon, &signed(&first, "0.9.0"), "allow_downgrade=true");
    assert_eq!((back.status, &back.json["version"]), (201, &json!("0.9.0")));
    assert_eq!(daemon.post("/plugin/probe/uninstall", &json!({})).json["data_kept"], true);
    assert_eq!(code(&install_with(&daemon, &signed(&second, "2.0.0"), "approve=true")), (403, "publisher_changed"));
    assert_eq!(daemon.post("/plugin/probe/uninstall", &json!({ "purge_data": true })).status, 200);
    assert_eq!(install_with(&daemon, &signed(&second, "0.1.0"), "approve=true").status, 201);
}

/// Goal: an upgrade that asks for more says what, in words, and does not run before somebody agreed to just that; a
/// package without a signature runs only for those who say so, and stays marked.
#[test]
fn what_is_added_is_said_and_waits() {
    let daemon = Daemon::start();
    let unsigned = super::packed("1.0.0", "one", PUBLISH);
    assert_eq!(code(&install_with(&daemon, &unsigned, "approve=true")), (403, "unsigned_plugin"));
    assert_eq!(daemon.get("/plugins").items().len(), 0);
    installed(&daemon, &unsigned, "approve=true");
    assert!(daemon.get("/plugin/probe").json["signed_by"].is_null());
    let wide = "[permissions]\npublish = [\"test.**\", \"door.*\"]\nkv = \"2MiB\"\n\
                http = [{ host = \"*.example.org\", methods = [\"GET\", \"POST\"] }]\n";
    let waiting = installed(&daemon, &super::packed("1.1.0", "two", wide), "");
    assert_eq!((&waiting["status"], &waiting["replaces"]), (&json!("pending_consent"), &json!("1.0.0")));
    let shown = daemon.get("/plugin/probe").json;
    let added: Vec<&str> = shown["pending"]["added"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|grant| grant["text"].as_str())
        .collect();
    assert_eq!(
        added,
        [
            "send GET requests to any host below example.org",
            "send POST requests to any host below example.org",
            "keep keys and values of its own, up to 2048 KiB",
            "publish events of type door.*",
        ]
    );
    assert_eq!(body(&daemon.get("/api/v1/t")), "one", "what was agreed to serves on");
    let (exit, text, _) = daemon.cli(&["plugin", "show", "probe"]);
    assert!(exit == 0 && text.contains("publish events of type door.*"), "{text}");
    let agreed = daemon.post_confirmed("/plugin/probe/approve", &json!({ "digest": shown["pending"]["digest"] }));
    assert_eq!((&agreed.json["version"], &agreed.json["pending"]), (&json!("1.1.0"), &json!(null)));
    assert_eq!(body(&daemon.get("/api/v1/t")), "two");
    // Less than before needs nobody; going back to more was agreed to once.
    assert_eq!(installed(&daemon, &super::packed("1.2.0", "one", PUBLISH), "")["status"], "active");
    let again = installed(&daemon, &super::packed("1.3.0", "one", wide), "");
    assert_eq!((&again["status"], again["added"].as_array().map(Vec::len)), (&json!("pending_consent"), Some(4)));
    assert_eq!(daemon.post_confirmed("/plugin/probe/rollback", &json!({})).json["version"], "1.1.0");
    assert_eq!(daemon.get("/plugin/probe").json["pending"]["version"], "1.3.0", "what waits waits on");
}

/// Goal: a public route and a route outside of /api/v1 are there only with consent.
#[test]
fn public_and_root_routes_need_consent() {
    let daemon = Daemon::start();
    let manifest = format!(
        "version = \"1.0.0\"\n{MANIFEST}[[routes]]\nmethod = \"GET\"\npath = \"/p\"\npublic = true\n\
         [[routes]]\nmethod = \"GET\"\npath = \"/hi\"\nroot = true\n{PUBLISH}"
    )
    .replace("[limits]\ntime = \"200ms\"\n", "");
    let packed = package(&manifest, ONE);
    let waiting = installed(&daemon, &packed, "");
    assert_eq!(waiting["status"], "pending_consent");
    let keys: Vec<&str> =
        waiting["added"].as_array().expect("a list").iter().filter_map(|grant| grant["key"].as_str()).collect();
    assert_eq!(keys, ["public GET /api/v1/p", "publish test.**", "root GET /hi"]);
    assert_eq!((daemon.get("/api/v1/p").status, daemon.get("/hi").status), (404, 404));
    assert_eq!(super::approved(&daemon, "probe").status, 200);
    let nobody = |path: &str| daemon.send("GET", path, &[], None).status;
    assert_eq!((nobody("/api/v1/p"), nobody("/hi"), nobody("/api/v1/t")), (200, 401, 401));
    assert_eq!((daemon.get("/hi").status, daemon.get("/api/v1/hi").status), (200, 404));
    let foreign = [("origin", "https://evil.example"), ("sec-fetch-site", "cross-site")];
    assert_eq!(daemon.send("GET", "/api/v1/p", &foreign, None).status, 403);
    let answer = daemon.send("GET", "/api/v1/p", &[], None);
    assert!(answer.header("content-security-policy").is_some_and(|policy| policy.contains("default-src 'none'")));
}

/// Goal: no credential, nothing of the connection and nothing of a proxy reaches a plugin, whatever its case or place; what
/// it answers sets no cookie and opens nothing to other origins.
#[test]
fn credentials_are_never_passed_on() {
    let daemon = Daemon::start();
    let routes = "[[routes]]\nmethod = \"GET\"\npath = \"/echo\"\n[[routes]]\nmethod = \"POST\"\npath = \"/echo\"\n\
        [[routes]]\nmethod = \"GET\"\npath = \"/open\"\npublic = true\n";
    let echo = package(&format!("{}{routes}", manifest("echo", "1.0.0")), ECHO);
    let installed = install_with(&daemon, &echo, "approve=true&allow_unsigned=true");
    assert_eq!(installed.status, 201, "{installed:?}");
    let bearer = format!("Bearer {TOKEN}");
    let sent = [
        ("Authorization", bearer.as_str()),
        ("X-Aman-Token", TOKEN),
        ("x-aman-operator", "somebody"),
        ("Cookie", "aman_session_00000000=canary"),
        ("X-Forwarded-For", "10.1.2.3"),
        ("forwarded", "for=10.1.2.3"),
        ("x-real-ip", "10.1.2.3"),
        ("te", "trailers"),
        ("connection", "x-hop"),
        ("x-hop", "canary"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("idempotency-key", "canary"),
        ("proxy-authorization", "canary"),
        ("accept", "text/plain"),
        ("x-mine", "1"),
        ("set-cookie", "canary=1"),
        ("access-control-allow-origin", "*"),
        ("content-security-policy", "default-src *"),
    ];
    for (method, path) in [("GET", "/api/v1/echo"), ("POST", "/api/v1/echo"), ("GET", "/api/v1/open")] {
        let answer = daemon.send_bytes(method, path, &sent, b"");
        assert_eq!(answer.status, 200, "{method} {path}: {answer:?}");
        let told = body(&answer);
        let names: Vec<&str> = told.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
        let passed = ["accept", "x-mine", "set-cookie", "access-control-allow-origin", "content-security-policy"];
        assert_eq!(names, passed, "{method} {path}");
        assert!(!told.contains(TOKEN), "{told}");
        assert_eq!((answer.header("x-mine"), answer.header("set-cookie")), (Some("1"), None), "{answer:?}");
        assert_eq!(answer.header("access-control-allow-origin"), None);
        assert!(answer.header("content-security-policy").is_some_and(|policy| policy.starts_with("sandbox;")));
    }
}

/// Goal: no route takes requests away from the daemon or from another plugin, also where the paths only overlap.
#[test]
fn routes_take_nothing_from_others() {
    let daemon = Daemon::start();
    let route = |name: &str, path: &str, root: bool| {
        let more = format!(
            "permissions = {{ publish = [\"test.**\"] }}\n[[routes]]\nmethod = \"GET\"\npath = \"{path}\"\nroot = {root}\n"
        );
        let package = package(&format!("{}{more}", manifest(name, "1.0.0")), ONE);
        install_with(&daemon, &package, "approve=true&allow_unsigned=true")
    };
    assert_eq!(route("first", "/a/{id}", false).status, 201);
    for (path, root, owner) in [
        ("/a/{other}", false, "'first'"),
        ("/a/b", false, "'first'"),
        ("/a/{*all}", false, "'first'"),
        ("/api/v1/a/b", true, "'first'"),
        ("/plugin/second/approve", true, "aman itself"),
        ("/ui/plugin/first/index.html", true, "aman itself"),
        ("/health/live", true, "aman itself"),
    ] {
        let refused = route("second", path, root);
        assert_eq!(code(&refused), (409, "already_exists"), "{path}");
        assert!(refused.json["detail"].as_str().is_some_and(|text| text.contains(owner)), "{refused:?}");
    }
    assert_eq!(route("second", "/a/{id}/more", false).status, 201);
    assert_eq!(route("third", "/site/{*rest}", true).status, 201);
    assert_eq!((daemon.get("/api/v1/a/1").status, daemon.get("/site/x/y").status), (200, 200));
}
