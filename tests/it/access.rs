//! Who gets in, and how: minted tokens, tickets, the login of a browser, rates, repeated requests, TLS, Unix socket.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};

use crate::harness::{Answer, Daemon, PATIENCE, Stream, TOKEN, command, request};

/// Mints a token: its id and itself.
fn mint(daemon: &Daemon, sub: &str, scope: &str) -> (String, String) {
    let answer = daemon.post("/auth/token", &json!({ "sub": sub, "scope": scope }));
    assert_eq!(answer.status, 201, "{answer:?}");
    let text = |name: &str| answer.json[name].as_str().expect("a text").to_owned();
    (text("id"), text("token"))
}

/// A request with this token.
fn by(daemon: &Daemon, token: &str, method: &str, path: &str, body: Option<&Value>) -> Answer {
    daemon.send(method, path, &[("authorization", &format!("Bearer {token}"))], body)
}

/// Status and code of a request with this token.
fn told(daemon: &Daemon, token: &str, method: &str, path: &str) -> (u16, String) {
    let answer = by(daemon, token, method, path, Some(&json!({ "source": "test", "type": "a.b" })));
    (answer.status, answer.code().to_owned())
}

/// Goal: a minted token opens what its scopes say and nothing else, acts under its own name, and is trusted less.
#[test]
fn scopes() {
    let daemon = Daemon::start();
    let reads = ["/events/recent", "/dlq", "/dlq/depth", "/events/types"];
    let routes: Vec<(&str, &str, &str)> = reads
        .iter()
        .map(|path| ("GET", *path, "events:read"))
        .chain([("POST", "/events/push", "events:write"), ("POST", "/auth/ticket", "events:read")])
        .chain([("GET", "/skills", "admin"), ("POST", "/auth/token", "admin"), ("POST", "/dlq/x/discard", "admin")])
        .collect();
    for scope in ["events:read", "events:write", "chat", "admin", "events:read events:write"] {
        let (_, token) = mint(&daemon, "anna", scope);
        for (method, path, needed) in &routes {
            let (status, code) = told(&daemon, &token, method, path);
            let may = scope == "admin" || scope.split(' ').any(|own| own == *needed);
            let narrow = (status, code.as_str()) == (403, "insufficient_scope");
            assert_eq!(!narrow, may, "{scope}: {method} {path}: {status} {code}");
            assert!(status != 401 && status < 500, "{scope}: {method} {path}: {status} {code}");
        }
    }
    let (_, writer) = mint(&daemon, "anna", "events:write");
    let pushed = by(&daemon, &writer, "POST", "/events/push", Some(&json!({ "source": "s", "type": "c.d" })));
    let id = pushed.json["id"].as_str().expect("an id").to_owned();
    assert_eq!(daemon.dump(&id)["event"]["trust"], "paired");
    let (_, admin) = mint(&daemon, "root", "admin");
    let pushed = by(&daemon, &admin, "POST", "/events/push", Some(&json!({ "source": "s", "type": "c.d" })));
    assert_eq!(daemon.dump(pushed.json["id"].as_str().expect("an id"))["event"]["trust"], "owner");
    let narrow = Stream::open(&daemon, "/events/stream", &[("x-aman-token", writer.as_str())]);
    assert_eq!(narrow.status, 403);
    let audited = daemon.get("/audit-log?action=dlq.discard&principal=anna&outcome=refused").json;
    assert!(
        audited["items"].as_array().is_some_and(|items| items.iter().any(|item| item["status"] == 403)),
        "{audited}"
    );
}

/// Goal: what is asked for wrongly is named; nothing is minted then.
#[test]
fn minting_is_checked() {
    let daemon = Daemon::start();
    for (body, field) in [
        (json!({}), "sub"),
        (json!({ "sub": "a" }), "scope"),
        (json!({ "sub": "a", "scope": "events" }), "scope"),
        (json!({ "sub": "a", "scope": " " }), "scope"),
        (json!({ "sub": "owner", "scope": "chat" }), "sub"),
        (json!({ "sub": "Anonymous", "scope": "chat" }), "sub"),
        (json!({ "sub": "a/b", "scope": "chat" }), "sub"),
        (json!({ "sub": "a".repeat(65), "scope": "chat" }), "sub"),
        (json!({ "sub": "a", "scope": "chat", "ttl": "0s" }), "ttl"),
        (json!({ "sub": "a", "scope": "chat", "ttl": "367d" }), "ttl"),
        (json!({ "sub": "a", "scope": "chat", "ttl": "soon" }), "ttl"),
        (json!({ "sub": "a", "scope": "chat", "until": "x" }), "until"),
    ] {
        let answer = daemon.post("/auth/token", &body);
        assert_eq!((answer.status, answer.fields().contains(&field)), (400, true), "{body}: {answer:?}");
    }
    assert_eq!(daemon.get("/auth/token").items(), Vec::<Value>::new());
    assert_eq!(daemon.call("DELETE", "/auth/token", None).fields(), ["id"]);
    assert_eq!(daemon.call("DELETE", "/auth/token?id=x", None).code(), "not_found");
}

/// Goal: a token is good until it ends or is revoked, over restarts, and not once its row is gone; its stream ends too.
#[test]
fn tokens_live_and_end() {
    let mut daemon = Daemon::start();
    let (id, token) = mint(&daemon, "anna", "events:read");
    let short = daemon.post("/auth/token", &json!({ "sub": "b", "scope": "events:read", "ttl": "1s" }));
    let short = short.json["token"].as_str().expect("a token").to_owned();
    let key = daemon.home().join("signing.key");
    assert_eq!(std::fs::metadata(&key).expect("a key").permissions().mode() & 0o777, 0o600);
    let text = std::fs::read_to_string(&key).expect("a key");
    daemon.kill();
    daemon.again();
    assert_eq!(std::fs::read_to_string(&key).expect("a key"), text);
    assert_eq!(by(&daemon, &token, "GET", "/dlq", None).status, 200);
    daemon.wait("its end", || (by(&daemon, &short, "GET", "/dlq", None).status == 401).then_some(()));
    let altered = format!("{}A.{}", &token[..token.len() / 2], &token[token.len() / 2..]);
    for wrong in [altered.as_str(), token.trim_end_matches(|c| c != '.'), &format!("{token}A")] {
        assert_eq!(by(&daemon, wrong, "GET", "/dlq", None).status, 401, "{wrong}");
    }
    // Each credential that is shown must be good, and all the same caller's.
    let both = [("authorization", format!("Bearer {token}")), ("x-aman-token", TOKEN.to_owned())];
    let both: Vec<(&str, &str)> = both.iter().map(|(name, value)| (*name, value.as_str())).collect();
    assert_eq!(daemon.send("GET", "/dlq", &both, None).status, 401);
    let twice = format!("Bearer {token}");
    assert_eq!(daemon.send("GET", "/dlq", &[("authorization", &twice), ("x-aman-token", &token)], None).status, 200);
    let mut stream = Stream::open(&daemon, "/events/stream", &[("authorization", &twice)]);
    assert_eq!(stream.status, 200);
    let listed = daemon.get("/auth/token").items();
    let shown: Vec<String> = listed.iter().map(|t| format!("{} {}", t["sub"], t["status"]).replace('"', "")).collect();
    assert_eq!(shown, ["b expired", "anna good"]);
    assert!(listed.iter().all(|token| token.get("token").is_none() && token["minted_by"] == "owner"));
    assert_eq!(daemon.call("DELETE", &format!("/auth/token?id={id}"), None).json, json!({ "deleted": true }));
    assert_eq!(by(&daemon, &token, "GET", "/dlq", None).status, 401);
    daemon.push("a.b", json!(1));
    assert_eq!(stream.next(), None, "a stream ends with its token");
    daemon.kill();
    daemon.again();
    assert_eq!(by(&daemon, &token, "GET", "/dlq", None).status, 401, "revoked for good");
    assert_eq!(daemon.get("/auth/token").items()[1]["status"], "revoked");
    let actions: Vec<Value> = daemon.get("/audit-log").items().iter().map(|row| row["action"].clone()).collect();
    assert_eq!(actions.iter().filter(|action| **action == "token.create").count(), 2);
    assert_eq!(actions.iter().filter(|action| **action == "token.revoke").count(), 1);
}

/// Goal: the command line mints, lists and revokes.
#[test]
fn tokens_by_command() {
    let daemon = Daemon::start();
    let (code, token, errors) = daemon.cli(&["token", "create", "ci", "--scope", "events:read,chat", "--quiet"]);
    assert_eq!(code, 0, "{errors}");
    let token = token.trim();
    assert_eq!(by(&daemon, token, "GET", "/dlq", None).status, 200);
    let (_, listed, _) = daemon.cli(&["token", "list"]);
    assert!(listed.contains("ci") && listed.contains("events:read chat") && !listed.contains(token), "{listed}");
    let id = daemon.get("/auth/token").items()[0]["id"].as_str().expect("an id").to_owned();
    assert_eq!(daemon.cli(&["token", "revoke", &id]).0, 0);
    assert_eq!(by(&daemon, token, "GET", "/dlq", None).status, 401);
    assert_eq!(daemon.cli(&["token", "create", "ci", "--scope", "all"]).0, 1);
    assert_eq!(daemon.cli(&["token", "revoke", "x"]).0, 1);
}

/// Goal: a ticket opens one stream with all that its holder may see, once; another text opens none.
#[test]
fn tickets() {
    let daemon = Daemon::start();
    let (_, reader) = mint(&daemon, "anna", "events:read");
    let take = || {
        let answer = by(&daemon, &reader, "POST", "/auth/ticket", None);
        assert_eq!(answer.status, 201, "{answer:?}");
        format!("/events/stream?ticket={}", answer.json["ticket"].as_str().expect("a ticket"))
    };
    let path = take();
    let wrong = daemon.send("GET", "/events/stream?ticket=x", &[], None);
    assert_eq!((wrong.status, wrong.code()), (401, "unauthorized"));
    assert_eq!(daemon.send("GET", &format!("{path}&types=a..b"), &[], None).status, 400);
    let mut stream = Stream::open(&daemon, &path, &[]);
    daemon.push("a.b", json!({ "secret": 1 }));
    assert_eq!(stream.next().expect("a frame").data["data"], json!({ "secret": 1 }));
    assert_eq!(daemon.send("GET", &path, &[], None).status, 401, "once");
    let path = take();
    let raced: Vec<u16> = std::thread::scope(|scope| {
        let open = || scope.spawn(|| Stream::open(&daemon, &path, &[]).status);
        let opened: Vec<_> = (0..4).map(|_| open()).collect();
        opened.into_iter().map(|one| one.join().expect("it answers")).collect()
    });
    assert_eq!(raced.iter().filter(|status| **status == 200).count(), 1, "{raced:?}");
}

/// The value of the session header in the page that ends a login.
fn session_of(page: &str) -> &str {
    let (_, rest) = page.split_once("name=\"aman-session\" content=\"").expect("the session");
    rest.split_once('"').expect("its end").0
}

/// Goal: the one-time URL logs a browser in once; then cookie and header together open, and neither alone does.
#[test]
fn login() {
    let daemon = Daemon::start();
    let (code, url, errors) = daemon.cli(&["open"]);
    assert_eq!(code, 0, "{errors}");
    let path = url.trim().strip_prefix(&format!("http://{}", daemon.address)).expect("its own address").to_owned();
    let typed = [("sec-fetch-site", "none"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
    let linked = [("sec-fetch-site", "cross-site"), typed[1], typed[2]];
    assert_eq!(daemon.send("GET", &path, &linked, None).code(), "origin_not_allowed", "not by another site's link");
    assert_eq!(daemon.send("GET", &path, &[("sec-purpose", "prefetch")], None).status, 405);
    assert_eq!(daemon.send("GET", "/auth/open?code=x", &typed, None).status, 401);
    assert_eq!(daemon.send("GET", "/auth/open", &typed, None).fields(), ["code"]);
    let page = daemon.send("GET", &path, &typed, None);
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let cookie = page.header("set-cookie").expect("a cookie").to_owned();
    for part in ["; HttpOnly", "; SameSite=Strict", "; Path=/", "; Max-Age="] {
        assert!(cookie.contains(part), "{part} in {cookie}");
    }
    assert_eq!((page.header("cache-control"), page.header("referrer-policy")), (Some("no-store"), Some("no-referrer")));
    let policy = page.header("content-security-policy").expect("a policy");
    assert!(
        policy.contains("default-src 'none'") && policy.contains("script-src 'sha256-") && !policy.contains("unsafe")
    );
    let again = daemon.send("GET", &path, &typed, None);
    assert_eq!((again.status, again.code()), (401, "unauthorized"), "once");
    let browser = [typed[0], typed[1], typed[2], ("accept", "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8")];
    let told = daemon.send("GET", &path, &browser, None);
    assert_eq!((told.status, told.header("content-type")), (401, Some("text/html; charset=utf-8")));
    assert!(told.header("www-authenticate").is_some() && told.header("content-security-policy").is_some());
    assert!(String::from_utf8_lossy(&told.body).contains("Run <code>aman open</code>"), "a person is told what to do");
    let pair = cookie.split(';').next().expect("a pair");
    let body = String::from_utf8(page.body.clone()).expect("text");
    let session = session_of(&body);
    let (cookie, header) = (("cookie", pair), ("x-aman-session", session));
    let with = |headers: &[(&str, &str)]| daemon.send("GET", "/skills", headers, None).status;
    assert_eq!(with(&[cookie, header]), 200);
    assert_eq!(with(&[("cookie", &format!("x=1; {pair}; y=2")), header]), 200);
    assert_eq!(with(&[cookie]), 401, "a cookie alone is nothing");
    assert_eq!(with(&[header]), 401);
    assert_eq!(with(&[cookie, ("x-aman-session", "wrong")]), 401);
    assert_eq!(with(&[("cookie", &pair.replace('=', "=0")), header]), 401);
    assert_eq!(with(&[cookie, header, ("x-aman-token", "wrong")]), 401);
    assert_eq!(with(&[cookie, header, ("x-aman-token", TOKEN)]), 200);
    let with_token = daemon.send("GET", "/skills", &[cookie, ("x-aman-token", TOKEN)], None);
    assert_eq!(with_token.status, 200, "other daemons' cookies are in nobody's way");
    let own = format!("http://{}", daemon.address);
    let written =
        [cookie, header, ("origin", own.as_str()), ("sec-fetch-site", "same-origin"), ("host", &daemon.address)];
    assert_eq!(daemon.send("POST", "/auth/ticket", &written, None).status, 201);
    let foreign = [cookie, header, ("origin", "http://localhost:1")];
    assert_eq!(daemon.send("POST", "/auth/ticket", &foreign, None).code(), "origin_not_allowed");
    let (_, reader) = mint(&daemon, "anna", "events:read");
    assert_eq!(by(&daemon, &reader, "POST", "/auth/open", None).status, 403);
}

/// Goal: a browser that logs out is out, and its cookie is taken back; a token alone has nothing to log out of.
#[test]
fn logging_out_ends_the_session() {
    let daemon = Daemon::start();
    let made = daemon.post("/auth/open", &json!({}));
    let page = daemon.send("GET", made.json["path"].as_str().expect("a path"), &[], None);
    let body = String::from_utf8(page.body.clone()).expect("text");
    let cookie = page.header("set-cookie").expect("a cookie").split(';').next().expect("a pair");
    let both = [("cookie", cookie), ("x-aman-session", session_of(&body))];
    assert_eq!(daemon.send("POST", "/auth/logout", &both[..1], None).status, 401, "a cookie alone ends nothing");
    assert_eq!(daemon.post("/auth/logout", &json!({})).fields(), ["x-aman-session"]);
    assert_eq!(daemon.send("GET", "/skills", &both, None).status, 200);
    let out = daemon.send("POST", "/auth/logout", &both, None);
    assert_eq!((out.status, &out.json["ended"]), (200, &json!(true)));
    assert!(out.header("set-cookie").is_some_and(|cookie| cookie.contains("=; ") && cookie.contains("Max-Age=0")));
    assert_eq!(daemon.send("GET", "/skills", &both, None).status, 401);
    assert_eq!(daemon.send("POST", "/auth/logout", &both, None).status, 401);
    let recorded = daemon.get("/audit-log?action=auth.logout&outcome=done").items();
    assert_eq!(recorded.len(), 1);
}

/// Goal: what opens once is made anew by each request, and never kept for an Idempotency-Key.
#[test]
fn single_use_secrets_are_not_kept() {
    let daemon = Daemon::start();
    let headers = [("x-aman-token", TOKEN), ("idempotency-key", "same")];
    for (path, name) in [("/auth/ticket", "ticket"), ("/auth/open", "path")] {
        let [first, second] = [0, 1].map(|_| daemon.send("POST", path, &headers, None));
        assert_eq!((first.status, second.status), (201, 201));
        assert_ne!(first.json[name], second.json[name], "{path}");
    }
}

/// Goal: the session of a minted admin's login ends with that token.
#[test]
fn sessions_end_with_their_token() {
    let daemon = Daemon::start();
    let (id, admin) = mint(&daemon, "anna", "admin");
    let made = by(&daemon, &admin, "POST", "/auth/open", None);
    let page = daemon.send("GET", made.json["path"].as_str().expect("a path"), &[], None);
    let body = String::from_utf8(page.body.clone()).expect("text");
    let cookie = page.header("set-cookie").expect("a cookie").split(';').next().expect("a pair");
    let both = [("cookie", cookie), ("x-aman-session", session_of(&body))];
    assert_eq!(daemon.send("GET", "/skills", &both, None).status, 200);
    assert_eq!(daemon.call("DELETE", &format!("/auth/token?id={id}"), None).status, 200);
    assert_eq!(daemon.send("GET", "/skills", &both, None).status, 401);
}

/// Goal: the page comes to whoever navigates to it, with nothing in it but itself; other uses from other sites do not.
#[test]
fn the_page() {
    let daemon = Daemon::start();
    let page = daemon.send("GET", "/", &[], None);
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let text = String::from_utf8(page.body.clone()).expect("text");
    assert!(text.contains("<title>aman</title>") && !text.contains(TOKEN) && !text.contains("http://"), "{text}");
    let policy = page.header("content-security-policy").expect("a policy");
    for part in ["default-src 'none'", "frame-ancestors 'none'", "connect-src 'self'", "require-trusted-types-for"] {
        assert!(policy.contains(part), "{part} in {policy}");
    }
    let linked = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
    assert_eq!(daemon.send("GET", "/", &linked, None).status, 200);
    for dest in ["iframe", "image", "empty"] {
        let used = [linked[0], linked[1], ("sec-fetch-dest", dest)];
        assert_eq!(daemon.send("GET", "/", &used, None).code(), "origin_not_allowed", "{dest}");
    }
    assert_eq!(daemon.send("GET", "/", &[linked[0]], None).code(), "origin_not_allowed");
}

/// Goal: each principal has its own rate, and is told when to come again.
#[test]
fn rates() {
    let daemon = Daemon::configured("[http]\nrate_limit = 5\n");
    let ((_, anna), (_, ben)) = (mint(&daemon, "anna", "events:read"), mint(&daemon, "ben", "events:read"));
    let refused = (0..1000).map(|_| by(&daemon, &anna, "GET", "/dlq/depth", None)).find(|answer| answer.status != 200);
    let refused = refused.expect("a limit");
    assert_eq!((refused.status, refused.code(), refused.header("retry-after")), (429, "rate_limited", Some("1")));
    assert_eq!(by(&daemon, &ben, "GET", "/dlq/depth", None).status, 200);
    assert!((0..100).all(|_| daemon.get("/dlq/depth").status == 200), "the owner has no limit here");
    daemon.wait("the next turn", || (by(&daemon, &anna, "GET", "/dlq/depth", None).status == 200).then_some(()));
    let owner = Daemon::configured("[http]\nowner_rate_limit = 5\n");
    assert!((0..1000).any(|_| owner.get("/dlq/depth").status == 429));
}

/// Goal: the same request with the same key is one request; another with that key is refused; a failure is not kept.
#[test]
fn repeated_requests() {
    let mut daemon = Daemon::start();
    let token = format!("Bearer {TOKEN}");
    let post = |daemon: &Daemon, key: &str, body: &Value| {
        daemon.send("POST", "/auth/token", &[("authorization", &token), ("idempotency-key", key)], Some(body))
    };
    let good = json!({ "sub": "anna", "scope": "events:read" });
    let first = post(&daemon, "k1", &good);
    assert_eq!((first.status, first.header("location")), (201, Some("/auth/token")));
    daemon.kill();
    daemon.again();
    let second = post(&daemon, "k1", &good);
    assert_eq!((second.status, &second.json), (201, &first.json), "the same answer, the token too");
    assert_eq!(second.header("location"), Some("/auth/token"));
    assert_eq!(by(&daemon, second.json["token"].as_str().expect("a token"), "GET", "/dlq", None).status, 200);
    let other = post(&daemon, "k1", &json!({ "sub": "ben", "scope": "events:read" }));
    assert_eq!((other.status, other.code()), (422, "idempotency_mismatch"));
    assert_eq!(post(&daemon, "k2", &json!({ "sub": "anna" })).status, 400);
    assert_eq!(post(&daemon, "k2", &good).status, 201, "a refusal is not kept");
    assert_eq!(post(&daemon, "", &good).status, 400);
    let (_, admin) = mint(&daemon, "root", "admin");
    let theirs = [("x-aman-token", admin.as_str()), ("idempotency-key", "k1")];
    assert_ne!(daemon.send("POST", "/auth/token", &theirs, Some(&good)).json["id"], first.json["id"]);
    let raced: Vec<Answer> = std::thread::scope(|scope| {
        let posts: Vec<_> = (0..8).map(|_| scope.spawn(|| post(&daemon, "k3", &good))).collect();
        posts.into_iter().map(|one| one.join().expect("it answers")).collect()
    });
    let mut ids: Vec<&str> = raced.iter().filter_map(|answer| answer.json["id"].as_str()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 1, "{raced:?}");
    assert!(raced.iter().all(|answer| answer.status == 201 || answer.code() == "in_progress"), "{raced:?}");
    let made = daemon.get("/audit-log?action=token.create&outcome=done&limit=100").items().len();
    assert_eq!(made, 5, "one record for each that was made");
}

/// Goal: without authentication everybody of this machine is in, which is said aloud; beyond loopback it is refused.
#[test]
fn no_authentication() {
    let daemon = Daemon::configured("[http]\nauth = \"none\"\n");
    let status = daemon.send("GET", "/runtime/status", &[], None);
    assert_eq!((status.status, &status.json["auth"]), (200, &json!("none")));
    assert!(daemon.log().contains("let in as the owner"), "{}", daemon.log());
    assert_eq!(daemon.post("/auth/token", &json!({ "sub": "a", "scope": "chat" })).code(), "invalid_state");
    assert_eq!(daemon.send("POST", "/auth/ticket", &[], None).status, 201);
    let evil = [("origin", "http://evil.example")];
    assert_eq!(daemon.send("GET", "/runtime/status", &evil, None).code(), "origin_not_allowed");
    std::fs::write(daemon.home().join("aman.toml"), "[http]\nauth = \"none\"\nallow_remote = true\n").expect("written");
    let output = command(daemon.home()).env("AMAN_HTTP_BIND", "0.0.0.0:0").arg("serve").output().expect("it starts");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && told.contains("http.bind"), "{told}");
}

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/tls")).join(name)
}

/// The settings with which a daemon speaks HTTPS.
pub fn with_tls() -> String {
    format!("[http.tls]\ncert = {:?}\nkey = {:?}\n", fixture("cert.pem"), fixture("key.pem"))
}

/// Sends these bytes encrypted, and reads one whole answer.
pub fn exchange_tls(mut socket: TcpStream, bytes: &[u8]) -> Answer {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(fixture("cert.pem")).expect("a certificate")).expect("a root");
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").expect("a name");
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut stream = rustls::Stream::new(&mut client, &mut socket);
    stream.write_all(bytes).expect("sent");
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("a whole answer");
    Answer::read(&bytes).expect("an answer")
}

/// Goal: with a certificate the daemon speaks HTTPS only, its own programs find it, and broken files are named.
#[test]
fn tls() {
    let toml = with_tls();
    let daemon = Daemon::configured(&toml);
    let headers = [("x-aman-token", TOKEN), ("origin", "https://localhost")];
    let answer = exchange_tls(daemon.connect(), &request("GET", "/runtime/status", &headers, b""));
    assert_eq!(answer.status, 200);
    let mut plain: TcpStream = daemon.connect();
    plain.write_all(&request("GET", "/health", &[], b"")).expect("sent");
    let mut answer = Vec::new();
    let _reset = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"), "plain HTTP gets no answer");
    let (code, out, errors) = daemon.cli(&["status"]);
    assert_eq!(code, 0, "{out}{errors}");
    let (_, url, _) = daemon.cli(&["open"]);
    assert!(url.starts_with(&format!("https://{}/auth/open?code=", daemon.address)), "{url}");
    let other = crate::harness::Folder::new("other");
    for (broken, named) in [
        (toml.replace("key.pem", "none.pem"), "http.tls.key"),
        (toml.replace("cert.pem", "none.pem"), "http.tls.cert"),
        (toml.replace("key.pem", "cert.pem"), "http.tls.key"),
        (format!("[http.tls]\ncert = {:?}\n", fixture("cert.pem")), "http.tls.key"),
    ] {
        std::fs::write(other.path().join("aman.toml"), broken).expect("written");
        let output = command(other.path()).arg("serve").output().expect("it starts");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && told.contains(named), "{named}: {told}");
    }
}

/// Goal: the Unix socket is this user's only, still asks for the token, and outlives a crash of its daemon.
#[test]
fn unix_socket() {
    let folder = crate::harness::Folder::new("socket");
    let path = folder.path().join("aman.sock");
    let mut daemon = Daemon::configured(&format!("[http]\nsocket = {path:?}\nmax_connections = 1\n"));
    let ask = |headers: &[(&str, &str)]| {
        let mut socket = UnixStream::connect(&path).expect("it listens");
        socket.set_read_timeout(Some(PATIENCE)).expect("a time limit");
        socket.write_all(&request("GET", "/runtime/status", headers, b"")).expect("sent");
        let mut bytes = Vec::new();
        socket.read_to_end(&mut bytes).expect("an answer");
        Answer::read(&bytes).expect("HTTP").status
    };
    assert_eq!((ask(&[]), ask(&[("x-aman-token", TOKEN)])), (401, 200));
    assert_eq!(daemon.get("/runtime/status").status, 200, "one place is enough for each of two listeners");
    assert_eq!(std::fs::metadata(&path).expect("a socket").permissions().mode() & 0o777, 0o600);
    let url = format!("unix:{}", path.display());
    assert_eq!(daemon.cli(&["status", "--url", &url]).0, 0);
    daemon.kill();
    daemon.again();
    assert_eq!(ask(&[("x-aman-token", TOKEN)]), 200);
    if nix::unistd::geteuid().is_root() {
        // Whatever the mode is: another user is refused.
        let open = |path: &std::path::Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("a mode")
        };
        open(folder.path(), 0o755);
        open(&path, 0o666);
        let mut stranger = std::process::Command::new("setpriv");
        stranger.args(["--reuid=65534", "--clear-groups", "--inh-caps=-all"]).arg(env!("CARGO_BIN_EXE_aman"));
        stranger.args(["status", "--url", &url, "--home", "/nonexistent", "--token", TOKEN]);
        if let Ok(output) = stranger.output() {
            assert!(!output.status.success(), "{output:?}");
        }
        daemon.wait("the refusal", || daemon.log().contains("another user was refused").then_some(()));
    }
    assert_eq!(daemon.terminate(), Some(0));
    assert!(!path.exists(), "a clean end removes it");
    std::fs::write(&path, "mine").expect("a file");
    let output = command(daemon.home()).arg("serve").output().expect("it starts");
    assert!(String::from_utf8_lossy(&output.stderr).contains("http.socket"), "{output:?}");
    assert_eq!(std::fs::read_to_string(&path).expect("kept"), "mine");
}
