//! Ways out: signed webhooks that are tried again, wait as they are told, and end when the other side is gone.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::hmac;
use serde_json::{Value, json};

use crate::harness::{Daemon, Folder};
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
    daemon.settle();
    // The second event's delivery ends after the first intent was looked at, for they are settled in order.
    daemon.push("order.paid", json!({ "n": 2 }));
    daemon.settle();
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
    sender.settle();
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
