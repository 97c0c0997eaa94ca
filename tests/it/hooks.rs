//! Webhooks: each scheme's signatures over the bytes as they came, replays, old calls, mapping, and hooks without a scheme.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::hmac;
use serde_json::{Value, json};

use crate::harness::{Answer, Daemon, TOKEN};

const SECRET: &str = "a-secret-of-the-sender";
/// Of the examples of Standard Webhooks.
const STANDARD: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const BODY: &str = "{\"type\": \"order.paid\",  \"id\": \"evt_1\", \"data\": {\"n\": 1}}";

fn now_s() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    i64::try_from(now).expect("a time")
}

fn mac(secret: &[u8], parts: &[&str]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), parts.concat().as_bytes()).as_ref().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

type Headers = Vec<(&'static str, String)>;

/// The headers of a good call at `at_s`.
fn signed(scheme: &str, id: &str, at_s: i64, body: &str) -> Headers {
    let at = at_s.to_string();
    match scheme {
        "standard" => {
            let key = BASE64.decode(&STANDARD[6..]).expect("base64");
            let made = BASE64.encode(mac(&key, &[id, ".", &at, ".", body]));
            let all = format!("v1a,AAAA v1,bm90IHRoaXM= v1,{made}");
            vec![("webhook-id", id.to_owned()), ("webhook-timestamp", at), ("webhook-signature", all)]
        }
        "github" => vec![
            ("x-hub-signature-256", format!("sha256={}", hex(&mac(SECRET.as_bytes(), &[body])))),
            ("x-github-delivery", id.to_owned()),
            ("x-github-event", "pull_request".to_owned()),
        ],
        "gitlab" => vec![("x-gitlab-token", SECRET.to_owned()), ("x-gitlab-event-uuid", id.to_owned())],
        "slack" => {
            let made = hex(&mac(SECRET.as_bytes(), &["v0:", &at, ":", body]));
            vec![("x-slack-signature", format!("v0={made}")), ("x-slack-request-timestamp", at)]
        }
        "stripe" => {
            let made = hex(&mac(SECRET.as_bytes(), &[&at, ".", body]));
            vec![("stripe-signature", format!("t={at},v0=00,v1={},v1={made}", "00".repeat(32)))]
        }
        "hmac" => {
            let made = BASE64.encode(mac(SECRET.as_bytes(), &[&at, ".", body]));
            vec![("x-shop-hmac", format!("h={made}")), ("x-shop-time", at), ("x-shop-id", id.to_owned())]
        }
        other => panic!("no scheme {other}"),
    }
}

fn daemon() -> Daemon {
    let mut toml = String::new();
    for scheme in ["github", "gitlab", "slack", "stripe"] {
        toml.push_str(&format!(
            "[sources.{scheme}]\nkind = \"webhook\"\nverify = {{ scheme = \"{scheme}\", secret = [\"old\", \"{SECRET}\"] }}\n"
        ));
    }
    toml.push_str(&format!(
        "[sources.standard]\nkind = \"webhook\"\nverify = {{ scheme = \"standard\", secret = \"{STANDARD}\" }}\n\
         [sources.hmac]\nkind = \"webhook\"\ntype = \"shop.call\"\nverify = {{ scheme = \"hmac\", secret = \"{SECRET}\", \
         header = \"X-Shop-Hmac\", prefix = \"h=\", encoding = \"base64\", timestamp_header = \"X-Shop-Time\", \
         id_header = \"X-Shop-Id\" }}\n\
         [sources.open]\nkind = \"webhook\"\n\
         [sources.mapped]\nkind = \"webhook\"\n\
         map = '.headers[\"x-kind\"] as $kind | .body.items[]? | {{type: $kind, data: ., subject: .name}}'\n"
    ));
    Daemon::configured(&toml)
}

fn call(daemon: &Daemon, hook: &str, headers: &Headers, body: &str) -> Answer {
    let mut all: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    all.push(("content-type", "application/json"));
    daemon.send_bytes("POST", &format!("/hooks/{hook}"), &all, body.as_bytes())
}

/// Goal: a good call is durable and answered 202 at once; the same again is the same event; the bytes stay as they came.
#[test]
fn good_calls_become_events_once() {
    let daemon = daemon();
    for (scheme, kind) in [
        ("standard", "webhook.order.paid"),
        ("github", "github.pull_request"),
        ("gitlab", "webhook.received"),
        ("slack", "slack.order.paid"),
        ("stripe", "stripe.order.paid"),
        ("hmac", "shop.call"),
    ] {
        let first = call(&daemon, scheme, &signed(scheme, "delivery-1", now_s(), BODY), BODY);
        assert_eq!((first.status, &first.json["type"]), (202, &json!(kind)), "{scheme}: {first:?}");
        let event = daemon.dump(first.json["id"].as_str().expect("an id"))["event"].clone();
        let wanted: Value = serde_json::from_str(BODY).expect("JSON");
        assert_eq!((&event["source"], &event["trust"]), (&json!(format!("hook/{scheme}")), &json!("web")));
        assert_eq!(event["data"], wanted);
        if scheme == "slack" {
            continue;
        }
        // Signed anew, as senders do when they try again.
        let again = call(&daemon, scheme, &signed(scheme, "delivery-1", now_s() - 1, BODY), BODY);
        assert_eq!((again.status, &again.json["deduplicated"]), (202, &json!(true)), "{scheme}: {again:?}");
        assert_eq!(again.json["id"], first.json["id"], "{scheme}");
    }
}

/// Goal: whatever is changed about a call, it is refused and nothing is stored; what is old or early too.
#[test]
fn bad_calls_are_refused() {
    let daemon = daemon();
    for scheme in ["standard", "github", "gitlab", "slack", "stripe", "hmac"] {
        let refused = |headers: &Headers, body: &str, what: &str| {
            let answer = call(&daemon, scheme, headers, body);
            assert_eq!((answer.status, answer.code()), (401, "signature_invalid"), "{scheme} {what}: {answer:?}");
            assert!(!format!("{:?}", answer.json).contains(SECRET), "{scheme} {what}");
        };
        let good = signed(scheme, "d", now_s(), BODY);
        refused(&Vec::new(), BODY, "without headers");
        for n in 0..good.len().min(if scheme == "github" || scheme == "gitlab" { 1 } else { 3 }) {
            let mut bad = good.clone();
            if bad[n].0 == "x-shop-id" {
                continue;
            }
            bad[n].1.push('1');
            refused(&bad, BODY, bad[n].0);
            let mut twice = good.clone();
            twice.push(good[n].clone());
            refused(&twice, BODY, "a header twice");
        }
        if scheme != "gitlab" {
            refused(&good, &BODY.replace("  ", " "), "other bytes of the same JSON");
        }
        if !["github", "gitlab"].contains(&scheme) {
            refused(&signed(scheme, "d", now_s() - 310, BODY), BODY, "too old");
            refused(&signed(scheme, "d", now_s() + 310, BODY), BODY, "too early");
            assert_eq!(call(&daemon, scheme, &signed(scheme, "d", now_s() - 290, BODY), BODY).status, 202);
        }
    }
    assert_eq!(daemon.recent("**").iter().filter(|event| event["source"] == "hook/github").count(), 0);
    let refusals = daemon.get("/event-source/github").json["last_error"].clone();
    assert!(refusals.is_string());
}

/// Goal: Slack's question whether the address is ours is answered, when it is signed.
#[test]
fn slack_s_challenge_is_answered() {
    let daemon = daemon();
    let body = "{\"type\":\"url_verification\",\"challenge\":\"3eZbrw1a\"}";
    let answer = call(&daemon, "slack", &signed("slack", "", now_s(), body), body);
    assert_eq!((answer.status, &answer.json["challenge"]), (200, &json!("3eZbrw1a")));
    assert_eq!(call(&daemon, "slack", &Vec::new(), body).status, 401);
}

/// Goal: a hook that nobody signs for needs a token; jq makes events of a call; what it cannot read is a 400.
#[test]
fn hooks_without_a_scheme_need_a_token() {
    let daemon = daemon();
    let none = call(&daemon, "open", &Vec::new(), BODY);
    assert_eq!((none.status, none.code()), (401, "unauthorized"));
    assert_eq!(call(&daemon, "open", &vec![("x-aman-token", "wrong".to_owned())], BODY).status, 401);
    let token = vec![("x-aman-token", TOKEN.to_owned()), ("x-kind", "item.seen".to_owned())];
    assert_eq!(call(&daemon, "open", &token, BODY).status, 202);
    assert_eq!(call(&daemon, "open", &token, "{").status, 400);
    let form =
        daemon.send_bytes("POST", "/hooks/open", &[("x-aman-token", TOKEN), ("content-type", "text/plain")], b"hi");
    assert_eq!(daemon.dump(form.json["id"].as_str().expect("an id"))["event"]["data"], "hi");
    let body = "{\"items\":[{\"name\":\"a\"},{\"name\":\"b\"}]}";
    let mapped = call(&daemon, "mapped", &token, body);
    assert_eq!((mapped.status, mapped.items().len()), (202, 2), "{mapped:?}");
    let subjects: Vec<Value> = daemon.recent("item.seen").iter().map(|event| event["subject"].clone()).collect();
    assert_eq!(subjects, ["b", "a"]);
    assert_eq!(call(&daemon, "mapped", &token, "{}").items().len(), 0);
    let bad = vec![("x-aman-token", TOKEN.to_owned()), ("x-kind", "not a type".to_owned())];
    assert_eq!(call(&daemon, "mapped", &bad, body).status, 400);
    for missing in ["nobody", "default"] {
        assert_eq!(call(&daemon, missing, &token, BODY).code(), "not_found");
    }
}

/// Goal: a paused hook asks its sender to come again; what is stored survives kill -9 at once.
#[test]
fn paused_hooks_ask_to_come_again_and_answers_are_durable() {
    let mut daemon = daemon();
    let headers = signed("github", "d-1", now_s(), BODY);
    assert_eq!(call(&daemon, "github", &headers, BODY).status, 202);
    daemon.kill();
    daemon.again();
    assert_eq!(call(&daemon, "github", &headers, BODY).json["deduplicated"], true);
    assert_eq!(daemon.post("/event-source/github/pause", &json!({})).status, 200);
    let paused = call(&daemon, "github", &headers, BODY);
    assert_eq!((paused.status, paused.code()), (503, "source_paused"));
    assert!(paused.header("retry-after").is_some());
}
