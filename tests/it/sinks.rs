//! Ways out: signed webhooks that are tried again, wait as they are told, and end when the other side is gone.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::hmac;
use serde_json::{Value, json};

use crate::harness::{Daemon, Folder, command};
use crate::peer::Peer;

const STANDARD: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

fn toml(peer: &Peer, private: bool) -> String {
    format!(
        "[http_client]\nallow_private = {private}\n[sinks.out]\nkind = \"webhook\"\nurl = \"{}/in\"\n\
         types = [\"order.*\"]\nwhen = \".data.n > 0\"\nsecret = [\"{STANDARD}\", \"plain-secret\"]\n\
         headers = {{ x-extra = \"yes\" }}\n",
        peer.url()
    )
}

fn header<'a>(request: &'a str, name: &str) -> &'a str {
    let prefix = format!("{name}: ");
    request.lines().find_map(|line| line.strip_prefix(prefix.as_str())).unwrap_or_default()
}

fn body(request: &str) -> &str {
    request.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

/// Goal: a fitting event is sent once, as a CloudEvent, with a signature for each secret over the bytes that are sent.
#[test]
fn fitting_events_are_sent_signed() {
    let peer = Peer::start();
    let daemon = Daemon::configured(&toml(&peer, true));
    daemon.push("order.paid", json!({ "n": 0 }));
    daemon.push("other.paid", json!({ "n": 1 }));
    let id = daemon.push("order.paid", json!({ "n": 1 }));
    daemon.wait("the call", || (!peer.requests().is_empty()).then_some(()));
    daemon.settle();
    let requests = peer.requests();
    assert_eq!(requests.len(), 1);
    let request = &requests[0];
    assert!(request.starts_with("POST /in HTTP/1.1\r\n") && header(request, "x-extra") == "yes", "{request}");
    assert_eq!(header(request, "content-type"), "application/cloudevents+json");
    let sent: Value = serde_json::from_str(body(request)).expect("JSON");
    assert_eq!((&sent["id"], &sent["type"], &sent["data"]), (&json!(id), &json!("order.paid"), &json!({ "n": 1 })));
    let content =
        [header(request, "webhook-id"), ".", header(request, "webhook-timestamp"), ".", body(request)].concat();
    let made: Vec<String> = [BASE64.decode(&STANDARD[6..]).expect("base64"), b"plain-secret".to_vec()]
        .iter()
        .map(|key| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), content.as_bytes()))
        .map(|tag| format!("v1,{}", BASE64.encode(tag)))
        .collect();
    assert_eq!(header(request, "webhook-signature"), made.join(" "));
    let why = daemon.get(&format!("/events/{id}/why")).json;
    assert!(why["effects"].as_array().is_some_and(|all| all.iter().any(|e| e["kind"] == "outgoing")), "{why}");
}

/// Goal: a failing other side is tried again under the same id, as late as it asks, also over a kill of the daemon.
#[test]
fn failed_calls_are_tried_again_under_the_same_id() {
    let peer = Peer::start();
    peer.answer("500 Internal Server Error", &[("retry-after", "1")], "");
    let home = Folder::new("home");
    std::fs::write(home.path().join("aman.toml"), toml(&peer, true)).expect("aman.toml");
    let mut daemon = Daemon::start_in(home.path());
    daemon.push("order.paid", json!({ "n": 1 }));
    daemon.wait("two calls", || (peer.requests().len() >= 2).then_some(()));
    daemon.kill();
    peer.answer("204 No Content", &[], "");
    let before = peer.requests().len();
    daemon.again();
    // The answer that was there before is given once more.
    daemon.wait("the good call", || (peer.requests().len() >= before + 2).then_some(()));
    let ids: Vec<String> = peer.requests().iter().map(|request| header(request, "webhook-id").to_owned()).collect();
    assert!(!ids[0].is_empty() && ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    let done = peer.requests().len();
    daemon.push("order.paid", json!({ "n": 2 }));
    daemon.wait("the next event", || (peer.requests().len() > done).then_some(()));
    assert_ne!(header(&peer.requests()[done], "webhook-id"), ids[0]);
}

/// Goal: 410 ends a sink for good, durably and with an event; another address is called again.
#[test]
fn a_sink_whose_other_side_is_gone_is_off() {
    let peer = Peer::start();
    peer.answer("410 Gone", &[], "");
    let home = Folder::new("home");
    std::fs::write(home.path().join("aman.toml"), toml(&peer, true)).expect("aman.toml");
    let mut daemon = Daemon::start_in(home.path());
    daemon.push("order.paid", json!({ "n": 1 }));
    let told = daemon.wait("the event", || daemon.recent("aman.sink.disabled").pop());
    assert_eq!(told["data"]["id"], "out");
    let off = |daemon: &Daemon| {
        let id = daemon.push("order.paid", json!({ "n": 2 }));
        let why = daemon.get(&format!("/events/{id}/why")).json;
        let considered = why["considered"].as_array().cloned().unwrap_or_default();
        considered.iter().any(|one| one["consumer"] == "sink/out" && one["reason"] == "disabled")
    };
    daemon.wait("the sink to be off", || off(&daemon).then_some(()));
    daemon.terminate();
    daemon.again();
    assert!(off(&daemon));
    assert_eq!(peer.requests().len(), 1);
    daemon.terminate();
    let next = Peer::start();
    std::fs::write(home.path().join("aman.toml"), toml(&next, true)).expect("aman.toml");
    daemon.again();
    daemon.push("order.paid", json!({ "n": 3 }));
    daemon.wait("a call of the new address", || (!next.requests().is_empty()).then_some(()));
}

/// Goal: without leave no private address is called.
#[test]
fn private_addresses_are_not_called() {
    let peer = Peer::start();
    let daemon = Daemon::configured(&toml(&peer, false));
    daemon.push("order.paid", json!({ "n": 1 }));
    let tried = daemon.wait("an attempt", || {
        let sink = daemon.get("/sink/out").json;
        (sink["retries"].as_i64() > Some(0)).then_some(sink)
    });
    assert!(tried["detail"].as_str().is_some_and(|why| why.contains("allow_private")), "{tried}");
    assert!(peer.requests().is_empty());
}

/// Goal: one daemon's sink and another's hook understand each other over HTTPS; an unknown certificate is not trusted, and
/// what could not be sent for that arrives once it is.
#[test]
fn a_sink_and_a_hook_meet_over_https() {
    let fixture = |name: &str| format!("{}/../tests/fixtures/tls/{name}", env!("CARGO_MANIFEST_DIR"));
    let (cert, key) = (fixture("cert.pem"), fixture("key.pem"));
    let receiver = Daemon::configured(&format!(
        "[http.tls]\ncert = {cert:?}\nkey = {key:?}\n\
         [sources.in]\nkind = \"webhook\"\nverify = {{ scheme = \"standard\", secret = \"{STANDARD}\" }}\n"
    ));
    let port = receiver.address.rsplit(':').next().unwrap_or_default();
    let home = Folder::new("from");
    let sink = format!(
        "[http_client]\nallow_private = true\n[sinks.out]\nkind = \"webhook\"\ntypes = [\"order.paid\"]\n\
         url = \"https://localhost:{port}/hooks/in\"\nsecret = \"{STANDARD}\"\n"
    );
    std::fs::write(home.path().join("aman.toml"), sink).expect("aman.toml");
    let sender = Daemon::start_in(home.path());
    sender.push("order.paid", json!({ "n": 1 }));
    sender.wait("an attempt", || (sender.get("/sink/out").json["retries"].as_i64() > Some(0)).then_some(()));
    assert!(receiver.cli(&["event", "recent", "--json"]).1.contains("\"items\":[]"));
    drop(sender);
    let sender = Daemon::try_start_in(home.path(), &[("SSL_CERT_FILE", &cert)]).expect("it starts");
    sender.push("order.paid", json!({ "n": 2 }));
    let stored = || {
        let (_, out, _) = receiver.cli(&["event", "recent", "--json"]);
        serde_json::from_str::<Value>(&out).ok().and_then(|page| page["items"].as_array().cloned()).unwrap_or_default()
    };
    let both = || {
        let events = stored();
        let came = |n: i64| events.iter().filter(|e| e["source"] == "hook/in" && e["data"]["data"]["n"] == n).count();
        (came(1) == 1 && came(2) == 1).then_some(())
    };
    sender.wait("both events", both);
}

/// Goal: a sink is shown without its secrets; switched off, what is for it waits, also over a kill; switched on, it is sent.
#[test]
fn a_paused_sink_keeps_what_is_for_it() {
    let peer = Peer::start();
    let home = Folder::new("home");
    let text = toml(&peer, true).replace("/in\"", "/in?key=canary-of-the-url\"");
    std::fs::write(home.path().join("aman.toml"), text).expect("aman.toml");
    let mut daemon = Daemon::start_in(home.path());
    let sink = |daemon: &Daemon| daemon.get("/sink/out").json;
    let listed = daemon.get("/sinks");
    let shown = String::from_utf8_lossy(&listed.body).into_owned();
    assert_eq!(listed.items()[0]["id"], "out");
    assert!(!shown.contains("canary") && !shown.contains(STANDARD) && !shown.contains("plain-secret"), "{shown}");
    assert_eq!((&sink(&daemon)["state"], &sink(&daemon)["health"]), (&json!("idle"), &json!("ok")));
    assert_eq!(daemon.post("/sink/out/resume", &json!({})).code(), "invalid_state");
    assert_eq!(daemon.post("/sink/out/pause", &json!({})).json["paused"], true);
    assert_eq!(daemon.post("/sink/out/pause", &json!({})).code(), "invalid_state");
    let first = daemon.push("order.paid", json!({ "n": 1 }));
    daemon.settle();
    daemon.kill();
    daemon.again();
    daemon.push("order.paid", json!({ "n": 2 }));
    daemon.settle();
    let paused = sink(&daemon);
    assert_eq!((&paused["state"], &paused["queue"]["waiting"]), (&json!("paused"), &json!(2)), "{paused}");
    assert!(paused["queue"]["oldest_at"].is_string() && peer.requests().is_empty(), "{paused}");
    let (code, out, _) = daemon.cli(&["sink", "list"]);
    assert!(code == 0 && out.contains("paused") && out.contains("out"), "{out}");
    assert_eq!(daemon.cli(&["sink", "resume", "out"]).0, 0);
    daemon.wait("both calls", || (peer.requests().len() == 2).then_some(()));
    let sent: Value = serde_json::from_str(body(&peer.requests()[0])).expect("JSON");
    assert_eq!(sent["id"], json!(first));
    daemon.wait("the count", || (sink(&daemon)["sent"] == 2).then_some(()));
    let audit = daemon.get("/audit-log").items();
    let actions: Vec<&str> = audit.iter().filter_map(|record| record["action"].as_str()).collect();
    assert_eq!(actions.iter().filter(|action| action.starts_with("sink.")).count(), 4, "refusals too: {actions:?}");
    for (method, path) in [("GET", "/sink/no"), ("POST", "/sink/no/pause"), ("POST", "/sink/no/test")] {
        assert_eq!(daemon.call(method, path, None).code(), "not_found", "{path}");
    }
}

/// Goal: a trial shows what would be sent, sends it signed, and says how that ended; nothing of it is stored.
#[test]
fn a_sink_can_be_tried() {
    let peer = Peer::start();
    let daemon = Daemon::configured(&toml(&peer, true));
    let dry = daemon.post("/sink/out/test?dry_run=true", &json!({ "data": { "n": 7 } }));
    assert_eq!((dry.status, &dry.json["event"]["data"]["n"]), (200, &json!(7)), "{dry:?}");
    assert!(peer.requests().is_empty() && daemon.get("/audit-log").items().is_empty());
    let tried = daemon.post("/sink/out/test", &json!({ "data": { "n": 7 } }));
    assert_eq!((tried.status, &tried.json["outcome"]), (200, &json!("sent")), "{tried:?}");
    let request = peer.requests().remove(0);
    assert_eq!(header(&request, "webhook-id"), tried.json["event"]["id"].as_str().unwrap_or_default());
    assert!(header(&request, "webhook-signature").starts_with("v1,") && body(&request).contains("aman.sink.test"));
    assert_eq!(daemon.recent("aman.sink.test").len(), 0);
    peer.answer("500 Internal Server Error", &[], "");
    let failed = daemon.post("/sink/out/test", &json!({}));
    assert_eq!((failed.status, &failed.json["outcome"]), (200, &json!("not_sent")), "{failed:?}");
    assert!(failed.json["detail"].as_str().is_some_and(|why| why.contains("500")), "{failed:?}");
    let (code, _, err) = daemon.cli(&["sink", "test", "out"]);
    assert!(code == 1 && err.contains("500"), "{code} {err}");
    assert_eq!(daemon.post("/sink/out/test", &json!({ "date": 1 })).status, 400);
    let recorded = daemon.get("/audit-log?action=sink.test").items();
    assert_eq!(recorded[1]["detail"]["outcome"], "not_sent", "{recorded:?}");
    assert_eq!(
        command(daemon.home()).args(["sink", "test", "out", "--data", "{"]).status().expect("it runs").code(),
        Some(2)
    );
}

/// Goal: a sink that is off after 410 says so, and is called again once it is resumed; what failed can be sent again.
#[test]
fn a_sink_that_is_gone_can_be_resumed() {
    let peer = Peer::start();
    peer.answer("410 Gone", &[], "");
    peer.answer("204 No Content", &[], "");
    let mut daemon = Daemon::configured(&toml(&peer, true));
    let id = daemon.push("order.paid", json!({ "n": 1 }));
    let state = |daemon: &Daemon| daemon.get("/sink/out").json;
    daemon.wait("the end", || (state(&daemon)["state"] == "gone").then_some(()));
    daemon.wait("the event", || daemon.recent("aman.sink.disabled").pop());
    assert_eq!((&state(&daemon)["health"], &state(&daemon)["enabled"]), (&json!("failing"), &json!(false)));
    daemon.kill();
    daemon.again();
    assert_eq!(state(&daemon)["state"], "gone");
    let failed = daemon.get("/sink/out/failures?limit=1").items().remove(0);
    assert_eq!((&failed["outcome"], &failed["event"]["id"]), (&json!("failed"), &json!(id)), "{failed}");
    assert!(failed["error"].as_str().is_some_and(|why| why.contains("410")), "{failed}");
    let key = failed["id"].as_str().expect("a key").to_owned();
    let again = format!("/sink/out/failure/{key}/retry");
    assert_eq!(daemon.post(&again, &json!({})).code(), "invalid_state");
    assert_eq!(daemon.post("/sink/out/resume", &json!({})).json["enabled"], true);
    let (code, out, err) = daemon.cli(&["sink", "failures", "out"]);
    assert!(code == 0 && out.contains(&key) && out.contains("order.paid"), "{out}{err}");
    assert_eq!(daemon.cli(&["sink", "retry", "out", "--all"]).0, 0);
    daemon.wait("the call", || (state(&daemon)["sent"] == 1).then_some(()));
    assert_eq!(header(&peer.requests()[1], "webhook-id"), key);
    assert_eq!(daemon.get("/sink/out/failures").items(), Vec::<Value>::new());
    assert_eq!(daemon.post(&again, &json!({})).code(), "not_found");
    daemon.push("order.paid", json!({ "n": 2 }));
    daemon.wait("the next call", || (peer.requests().len() == 3).then_some(()));
    daemon.wait("the count", || (state(&daemon)["sent"] == 2).then_some(()));
}

/// Goal: what was to be sent by a sink that was taken out of the configuration does not wait for ever: once it is too old
/// it is given up, also what was being sent when the daemon was killed, and shown as that when the sink is there again.
#[test]
fn what_a_removed_sink_left_is_given_up() {
    let peer = Peer::start();
    peer.answer("503 Service Unavailable", &[("retry-after", "3600")], "");
    let mut daemon = Daemon::configured(&toml(&peer, true));
    let id = daemon.push("order.paid", json!({ "n": 1 }));
    daemon.wait("the call", || (daemon.get("/sink/out").json["retries"] == 1).then_some(()));
    daemon.push("order.paid", json!({ "n": 2 }));
    daemon.wait("the next call", || (daemon.get("/sink/out").json["retries"] == 2).then_some(()));
    assert_eq!(daemon.terminate(), Some(0));
    let database = rusqlite::Connection::open(daemon.home().join("aman.db")).expect("the database");
    assert_eq!(database.execute("UPDATE outbox SET expires_ms = 1 WHERE status = 0", []).expect("two wait"), 2);
    // As a kill leaves it that comes while the other side is being called.
    let sending = "UPDATE outbox SET status = 1 WHERE id = (SELECT max(id) FROM outbox)";
    assert_eq!(database.execute(sending, []).expect("the second"), 1);
    drop(database);
    std::fs::write(daemon.home().join("aman.toml"), "").expect("written");
    daemon.again();
    daemon.wait("the end", || daemon.log().contains("by sinks that are not there any more").then_some(()));
    assert_eq!(daemon.terminate(), Some(0));
    std::fs::write(daemon.home().join("aman.toml"), toml(&peer, true)).expect("written");
    daemon.again();
    let failures = daemon.get("/sink/out/failures").items();
    let outcomes: Vec<&Value> = failures.iter().map(|failed| &failed["outcome"]).collect();
    assert_eq!(outcomes, [&json!("unknown"), &json!("failed")], "{failures:?}");
    let failed = &failures[1];
    assert_eq!(&failed["event"]["id"], &json!(id), "{failed}");
    assert!(failed["error"].as_str().is_some_and(|why| why.contains("too old")), "{failed}");
    assert_eq!(peer.requests().len(), 2);
}

/// Goal: a sink that was taken out of the configuration is shown as long as something waits for it; that can be given up,
/// is on record and among the failures, and can be sent once the sink is back.
#[test]
fn what_a_removed_sink_left_can_be_discarded() {
    let peer = Peer::start();
    peer.answer("503 Service Unavailable", &[("retry-after", "3600")], "");
    let daemon = Daemon::configured(&toml(&peer, true));
    let id = daemon.push("order.paid", json!({ "n": 1 }));
    daemon.wait("the call", || (daemon.get("/sink/out").json["retries"] == 1).then_some(()));
    let configure = |text: &str| {
        std::fs::write(daemon.home().join("aman.toml"), text).expect("aman.toml");
        let reloaded = daemon.post("/config/reload", &json!({}));
        assert_eq!(reloaded.status, 200, "{reloaded:?}");
    };
    configure("[http_client]\nallow_private = true\n");
    let shown = daemon.get("/sinks").items().remove(0);
    assert_eq!(
        (&shown["state"], &shown["health"], &shown["queue"]["waiting"]),
        (&json!("removed"), &json!("failing"), &json!(1))
    );
    assert!(shown["detail"].as_str().is_some_and(|why| why.contains("aman sink discard out")), "{shown}");
    assert_eq!(daemon.get("/sink/out").json, shown);
    let (code, out, _) = daemon.cli(&["sink", "list"]);
    assert!(code == 0 && out.contains("removed"), "{out}");
    assert_eq!(daemon.post("/sink/out/resume", &json!({})).code(), "not_found");
    assert_eq!(daemon.post("/sink/out/discard", &json!({})).code(), "confirmation_required");
    assert_eq!(daemon.post_confirmed("/sink/nobody/discard", &json!({})).code(), "not_found");
    let (code, out, err) = daemon.cli(&["sink", "discard", "out", "--yes"]);
    assert!(code == 0 && out.contains("1 message given up"), "{out}{err}");
    assert_eq!(daemon.get("/sinks").items(), Vec::<Value>::new());
    let failed = daemon.get("/sink/out/failures").items().remove(0);
    assert_eq!((&failed["event"]["id"], &failed["error"]), (&json!(id), &json!("It was discarded.")), "{failed}");
    let recorded = daemon.get("/audit-log?action=sink.discard&outcome=done").items();
    assert_eq!((recorded.len(), &recorded[0]["detail"]["discarded"]), (1, &json!(1)), "{recorded:?}");
    peer.answer("204 No Content", &[], "");
    configure(&toml(&peer, true));
    // The answer that was there before is given once more.
    assert_eq!(daemon.post("/sink/out/test", &json!({})).json["outcome"], "not_sent");
    assert_eq!(daemon.cli(&["sink", "retry", "out", "--all"]).0, 0);
    daemon.wait("the message", || (daemon.get("/sink/out").json["sent"] == 1).then_some(()));
}
