//! Chat: sessions with agents, over HTTP and on the command line. The model is a script: a file of answers, no model.

mod cli;
mod streams;

use serde_json::{Value, json};

use aman::store::chat::MESSAGES_MAX;

use crate::harness::{Answer, Daemon, Folder, Stream, TOKEN};

/// Answers of the scripted model. What is slow says forty words, one every 25 ms.
const SCRIPT: &str = r#"
turns:
  - when: { text: hello }
    say: "Hello there, my friend."
    usage: { input: 11, output: 5 }
  - when: { text: slow }
    say: ["w1 ", "w2 ", "w3 ", "w4 ", "w5 ", "w6 ", "w7 ", "w8 ", "w9 ", "w10 ", "w11 ", "w12 ", "w13 ", "w14 ", "w15 ",
      "w16 ", "w17 ", "w18 ", "w19 ", "w20 ", "w21 ", "w22 ", "w23 ", "w24 ", "w25 ", "w26 ", "w27 ", "w28 ", "w29 ", "w30 ",
      "w31 ", "w32 ", "w33 ", "w34 ", "w35 ", "w36 ", "w37 ", "w38 ", "w39 ", "w40"]
    delay: 25ms
  - when: { text: broken }
    fails: [{ kind: auth }, { kind: auth }, { kind: auth }]
    say: "mended"
  - when: { text: "" }
    say: "You said: {text}"
"#;

/// A daemon whose agents answer by [`SCRIPT`].
pub fn scripted(more: &str) -> Daemon {
    scripted_with("", more)
}

/// As [`scripted`], with more keys of `[models]`.
fn scripted_with(models: &str, more: &str) -> Daemon {
    let folder = Folder::new("chat");
    std::fs::write(folder.path().join("script.yaml"), SCRIPT).expect("the script");
    let path = folder.path().join("script.yaml");
    let toml = format!(
        "{more}\n[models]\ndefault = \"demo/script\"\n{models}\n[providers.demo]\nkind = \"script\"\npath = \"{}\"\n",
        path.display()
    );
    std::fs::write(folder.path().join("aman.toml"), toml).expect("aman.toml");
    Daemon::start_keeping(folder)
}

pub fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_else(|| panic!("{name} is no text in {value}"))
}

/// A new session.
pub fn begin(daemon: &Daemon) -> String {
    let begun = daemon.post("/chat/session/create", &json!({}));
    assert_eq!(begun.status, 201, "{begun:?}");
    text(&begun.json, "id").to_owned()
}

pub fn place(session: &str, what: &str) -> String {
    format!("/chat/session/{session}{what}")
}

pub fn state(daemon: &Daemon, session: &str) -> Value {
    let state = daemon.get(&place(session, "/state"));
    assert_eq!(state.status, 200, "{state:?}");
    state.json
}

/// Waits until no turn is under way.
pub fn rest(daemon: &Daemon, session: &str) -> Value {
    daemon.wait("the turn's end", || Some(state(daemon, session)).filter(|state| state["state"] == "idle"))
}

/// Says something and waits for the answer's end.
pub fn say(daemon: &Daemon, session: &str, words: &str) -> Value {
    let said = daemon.post(&place(session, "/send"), &json!({ "text": words }));
    assert_eq!(said.status, 202, "{said:?}");
    rest(daemon, session);
    said.json
}

/// Role and text of each message.
fn lines(messages: &Value) -> Vec<(String, String)> {
    let messages = messages.as_array().expect("messages");
    messages.iter().map(|one| (text(one, "role").to_owned(), text(one, "text").to_owned())).collect()
}

fn said(role: &str, words: &str) -> (String, String) {
    (role.to_owned(), words.to_owned())
}

fn refused(answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status, answer.code()), (status, code), "{answer:?}");
}

/// Goal: what is said is stored with its turn before it is acknowledged, answered, and kept over a kill.
#[test]
fn what_is_said_is_answered_and_kept() {
    let mut daemon = scripted("");
    let session = begin(&daemon);
    let before = state(&daemon, &session);
    assert_eq!((text(&before, "state"), &before["title"], &before["version"]), ("idle", &Value::Null, &json!(1)));
    let sent = say(&daemon, &session, "hello, Jürgen\nand a second line");
    let after = state(&daemon, &session);
    assert_eq!(
        lines(&after["messages"]),
        [said("user", "hello, Jürgen\nand a second line"), said("assistant", "Hello there, my friend.")]
    );
    assert_eq!(text(&after, "title"), "hello, Jürgen");
    assert!(after["version"].as_i64() > sent["version"].as_i64(), "{sent} {after}");
    assert_eq!(after["messages"][0]["id"], sent["message_id"]);
    assert_eq!(after["messages"][1]["parent_id"], sent["message_id"]);
    assert_eq!((&after["turn"]["id"], text(&after["turn"], "status")), (&sent["turn_id"], "done"));
    let event = daemon.recent("aman.agent.message").remove(0);
    assert_eq!((text(&event, "source"), text(&event, "subject")), ("agent/aman", session.as_str()));
    assert_eq!(text(&event, "traceid"), text(&sent, "trace_id"));
    assert!(!event["data"].to_string().contains("Jürgen"), "events hold no words: {event}");
    let records = daemon.get("/audit-log?action=chat.send").items();
    assert_eq!((records.len(), text(&records[0], "target")), (1, session.as_str()));
    assert!(!records[0].to_string().contains("Jürgen"), "{}", records[0]);
    daemon.kill();
    daemon.again();
    assert_eq!(state(&daemon, &session)["messages"], after["messages"]);
    // A message that is acknowledged outlives a kill together with its turn.
    let sent = daemon.post(&place(&session, "/send"), &json!({ "text": "slow" }));
    assert_eq!(sent.status, 202, "{sent:?}");
    daemon.kill();
    daemon.again();
    let after = rest(&daemon, &session);
    let last = lines(&after["messages"]).pop().expect("an answer");
    assert!(last.0 == "assistant" && last.1.starts_with("w1 w2 ") && last.1.ends_with("w40"), "{last:?}");
}

/// Goal: one turn at a time; who saw an older state is told; a stop keeps what came; what is closed stays closed.
#[test]
fn turns_and_versions_do_not_cross() {
    let daemon = scripted("");
    let session = begin(&daemon);
    let send = |body: Value| daemon.post(&place(&session, "/send"), &body);
    let version = state(&daemon, &session)["version"].as_i64().expect("a version");
    let conflict = send(json!({ "text": "hello", "expected_version": version + 7 }));
    refused(&conflict, 409, "version_conflict");
    assert!(text(&conflict.json, "detail").contains(&format!("version {version} ")), "{conflict:?}");
    assert_eq!(send(json!({ "text": "slow", "expected_version": version })).status, 202);
    refused(&send(json!({ "text": "hello" })), 409, "in_progress");
    refused(&daemon.call("DELETE", &place(&session, ""), None), 409, "in_progress");
    refused(&daemon.post(&place(&session, "/retry"), &json!({})), 409, "in_progress");
    daemon.wait("words", || {
        let mut stream = Stream::open(&daemon, &place(&session, "/stream"), &[("x-aman-token", TOKEN)]);
        std::iter::from_fn(|| stream.next()).any(|frame| frame.event == "token").then_some(())
    });
    let stopped = daemon.post(&place(&session, "/stop"), &json!({}));
    assert_eq!((stopped.status, &stopped.json["stopped"]), (200, &json!(true)), "{stopped:?}");
    let after = rest(&daemon, &session);
    assert_eq!(text(&after["turn"], "status"), "stopped");
    let last = after["messages"].as_array().and_then(|all| all.last().cloned()).expect("a message");
    assert!(text(&last, "text").starts_with("w1 ") && last["stopped"] == true, "{last}");
    assert_eq!(daemon.post(&place(&session, "/stop"), &json!({})).json["stopped"], false);
    assert_eq!(text(&daemon.post(&place(&session, "/close"), &json!({})).json, "state"), "closed");
    refused(&send(json!({ "text": "hello" })), 409, "invalid_state");
    refused(&daemon.post(&place(&session, "/close"), &json!({})), 409, "invalid_state");
    for (body, field) in [
        (json!({}), "text"),
        (json!({ "text": "  \n" }), "text"),
        (json!({ "text": "a\u{0}b" }), "text"),
        (json!({ "text": "x".repeat(100_001) }), "text"),
        (json!({ "text": "x", "expected_version": "1" }), "expected_version"),
        (json!({ "text": "x", "txt": 1 }), "txt"),
        (
            json!({ "text": "x", "attachments": [{ "text": "a", "media_type": "application/pdf" }] }),
            "/attachments/0/media_type",
        ),
    ] {
        let answer = send(body);
        assert_eq!((answer.status, answer.fields()), (400, vec![field]), "{answer:?}");
    }
}

/// Goal: a session that has as many messages as it may takes no more, says so, and keeps what is in it.
#[test]
fn a_session_does_not_grow_without_end() {
    let mut daemon = scripted("");
    let session = begin(&daemon);
    let first = say(&daemon, &session, "hello");
    let before = state(&daemon, &session);
    daemon.kill();
    let db = rusqlite::Connection::open(daemon.home().join("aman.db")).expect("the database");
    let full =
        db.execute("UPDATE session SET messages = ?1 WHERE id = ?2", rusqlite::params![MESSAGES_MAX - 1, session]);
    assert_eq!(full.expect("it is there"), 1);
    drop(db);
    daemon.again();
    // The last that fits has its answer.
    say(&daemon, &session, "the last");
    let after = state(&daemon, &session);
    assert_eq!(lines(&after["messages"]).last(), Some(&said("assistant", "You said: the last")), "{after}");
    let more = daemon.post(&place(&session, "/send"), &json!({ "text": "more" }));
    refused(&more, 409, "invalid_state");
    assert!(text(&more.json, "detail").contains("Begin a new one"), "{more:?}");
    let edit = json!({ "message_id": first["message_id"], "text": "anew" });
    refused(&daemon.post(&place(&session, "/edit"), &edit), 409, "invalid_state");
    let kept = state(&daemon, &session);
    assert_eq!((&kept["messages"], &kept["state"]), (&after["messages"], &json!("idle")));
    assert_eq!(kept["messages"][1], before["messages"][1]);
}

/// Goal: saying something anew, and having it answered once more, are branches: nothing that was said is lost.
#[test]
fn what_is_said_anew_is_a_branch() {
    let daemon = scripted("");
    let session = begin(&daemon);
    let first = say(&daemon, &session, "hello");
    let second = say(&daemon, &session, "the second");
    let edit = json!({ "message_id": first["message_id"], "text": "the first anew" });
    let edited = daemon.post(&place(&session, "/edit"), &edit);
    assert_eq!(edited.status, 202, "{edited:?}");
    let shown = rest(&daemon, &session);
    assert_eq!(
        lines(&shown["messages"]),
        [said("user", "the first anew"), said("assistant", "You said: the first anew")]
    );
    assert_eq!(shown["messages"][0]["parent_id"], Value::Null);
    let again = daemon.post(&place(&session, "/retry"), &json!({}));
    assert_eq!((again.status, &again.json["message_id"]), (202, &edited.json["message_id"]), "{again:?}");
    rest(&daemon, &session);
    let history = daemon.get(&place(&session, "/history")).json["items"].clone();
    assert_eq!(lines(&history).len(), 2, "{history}");
    let all = daemon.get(&place(&session, "/history?branches=all")).items();
    assert_eq!(all.len(), 7, "{all:?}");
    let answers = all.iter().filter(|one| one["parent_id"] == edited.json["message_id"]).count();
    assert_eq!(answers, 2, "both answers to it are there: {all:?}");
    assert!(all.iter().any(|one| one["id"] == second["message_id"]));
    let answer = all.iter().find(|one| one["role"] == "assistant").expect("an answer");
    let wrong = daemon.post(&place(&session, "/edit"), &json!({ "message_id": answer["id"], "text": "x" }));
    assert_eq!((wrong.status, wrong.fields()), (400, vec!["message_id"]), "{wrong:?}");
    refused(&daemon.post(&place(&session, "/edit"), &json!({ "message_id": "none", "text": "x" })), 404, "not_found");
    refused(&daemon.post(&place(&begin(&daemon), "/retry"), &json!({})), 409, "invalid_state");
    // Pages stay in order while more is said.
    let mut seen = Vec::new();
    let page = daemon.get(&place(&session, "/history?branches=all&limit=3"));
    seen.extend(page.items());
    say(&daemon, &session, "more");
    let mut cursor = text(&page.json, "next_cursor").to_owned();
    loop {
        let page = daemon.get(&place(&session, &format!("/history?branches=all&limit=3&cursor={cursor}")));
        seen.extend(page.items());
        match page.json["next_cursor"].as_str() {
            Some(next) => next.clone_into(&mut cursor),
            None => break,
        }
    }
    let ids: std::collections::BTreeSet<&str> = seen.iter().map(|one| text(one, "id")).collect();
    assert_eq!((seen.len(), ids.len()), (9, 9));
}

/// Goal: a token of the scope `chat` sees the sessions of its own principal, and to it others are not there.
#[test]
fn sessions_of_others_are_not_there() {
    let daemon = scripted("");
    let mint = |sub: &str, scope: &str| {
        let minted = daemon.post("/auth/token", &json!({ "sub": sub, "scope": scope }));
        format!("Bearer {}", text(&minted.json, "token"))
    };
    let (ada, bob) = (mint("ada", "chat"), mint("bob", "chat events:read"));
    let as_who = |who: &str, method: &str, path: &str, body: Option<Value>| {
        daemon.send(method, path, &[("authorization", who)], body.as_ref())
    };
    let begun = as_who(&ada, "POST", "/chat/session/create", Some(json!({ "title": "Secret plans" })));
    let session = text(&begun.json, "id").to_owned();
    assert_eq!((text(&begun.json, "principal"), text(&begun.json, "trust")), ("ada", "paired"));
    let sent = as_who(&ada, "POST", &place(&session, "/send"), Some(json!({ "text": "hello zanzibar" })));
    assert_eq!(sent.status, 202, "{sent:?}");
    rest(&daemon, &session);
    for (method, what) in [
        ("GET", "/state"),
        ("GET", "/history"),
        ("GET", "/export"),
        ("GET", "/stream"),
        ("POST", "/send"),
        ("POST", "/retry"),
        ("POST", "/stop"),
        ("POST", "/rename"),
        ("POST", "/close"),
        ("DELETE", ""),
    ] {
        let body = match what {
            "/send" => Some(json!({ "text": "x" })),
            "/rename" => Some(json!({ "title": "x" })),
            _ => (method == "POST").then(|| json!({})),
        };
        refused(&as_who(&bob, method, &place(&session, what), body), 404, "not_found");
    }
    let found = |who: &str| {
        let list = as_who(who, "GET", "/chat/sessions", None).items().len();
        (list, as_who(who, "GET", "/chat/search?q=zanzibar", None).items().len())
    };
    let owner = format!("Bearer {TOKEN}");
    assert_eq!((found(&ada), found(&bob), found(&owner)), ((1, 1), (0, 0), (1, 1)));
    assert_eq!(as_who(&ada, "GET", &place(&session, "/history"), None).items()[0]["trust"], "paired");
    refused(&as_who(&mint("eve", "events:read"), "GET", "/chat/sessions", None), 403, "insufficient_scope");
}

/// Goal: what was said is found by its words in any script, written out in either form, and gone when it is removed.
#[test]
fn history_is_found_written_out_and_removed() {
    let mut daemon = scripted("");
    let session = begin(&daemon);
    let odd = "# zebra <b>Straße</b>\n- 日本語のテスト `x`\n```\n\u{202e}İstanbul";
    say(&daemon, &session, odd);
    say(&daemon, &begin(&daemon), "zebra of another session");
    for (words, hits) in [
        ("zebra", 4),
        ("zebra%20stra", 2),
        ("%E6%97%A5%E6%9C%AC", 2),
        ("istanbul", 2),
        ("%22%20%27%20*%20OR", 0),
        ("(((", 0),
        ("%C3%A9", 0),
        ("zebra%20nowhere", 0),
    ] {
        let found = daemon.get(&format!("/chat/search?q={words}"));
        assert_eq!((found.status, found.items().len()), (200, hits), "{words}: {found:?}");
    }
    let hit = daemon.get("/chat/search?q=stra%C3%9Fe").items().remove(0);
    assert!(text(&hit, "snippet").contains("Straße") && hit["session_id"] == session.as_str(), "{hit}");
    assert_eq!(daemon.get("/chat/search").status, 400);
    let written = daemon.get(&place(&session, "/export"));
    let markdown = String::from_utf8(written.body.clone()).expect("text");
    assert_eq!(written.header("content-type"), Some("text/markdown; charset=utf-8"));
    assert!(markdown.contains("\n> \\# zebra \\<b\\>") && markdown.contains("日本語"), "{markdown}");
    assert_eq!(
        markdown.lines().filter(|line| line.starts_with('#')).count(),
        3,
        "a title and two messages: {markdown}"
    );
    let json = daemon.get(&place(&session, "/export?format=json")).json;
    assert_eq!((&json["session"]["id"], lines(&json["messages"])[0].1.as_str()), (&json!(session), odd));
    assert_eq!(daemon.get(&place(&session, "/export?format=pdf")).fields(), ["format"]);
    let renamed = daemon.post(&place(&session, "/rename"), &json!({ "title": "  Zoo " }));
    assert_eq!(text(&renamed.json, "title"), "Zoo");
    say(&daemon, &session, "more of it");
    assert_eq!(text(&state(&daemon, &session), "title"), "Zoo", "a title that was given stays");
    let gone = daemon.call("DELETE", &place(&session, ""), None);
    assert_eq!(gone.json["deleted"], true, "{gone:?}");
    refused(&daemon.get(&place(&session, "/state")), 404, "not_found");
    assert_eq!(daemon.get("/chat/search?q=zebra").items().len(), 2, "the other session's");
    assert_eq!(daemon.recent("aman.agent.message").len(), 3, "events stay");
    let record = daemon.get("/audit-log?action=chat.delete").items().remove(0);
    assert_eq!((text(&record, "target"), &record["detail"]["messages"]), (session.as_str(), &json!(4)));
    let secret = begin(&daemon);
    say(&daemon, &secret, "hello quaggazanzibar");
    assert_eq!(daemon.call("DELETE", &place(&secret, ""), None).status, 200);
    daemon.terminate();
    let file = std::fs::read(daemon.home().join("aman.db")).expect("the database");
    assert!(!file.windows(6).any(|bytes| bytes == b"quagga"), "what is removed is overwritten");
}

/// Goal: files and pictures come along within limits; the same request twice is one message.
#[test]
fn attachments_come_along_and_keys_are_honoured() {
    let daemon = scripted("");
    let session = begin(&daemon);
    let png = "iVBORw0KGgpyZXN0";
    let body = json!({ "text": "hello", "attachments": [
        { "name": "a.txt", "text": "é" }, { "name": "b.png", "data": format!("data:image/png;base64,{png}") } ] });
    let headers = [("x-aman-token", TOKEN), ("idempotency-key", "once")];
    let first = daemon.send("POST", &place(&session, "/send"), &headers, Some(&body));
    assert_eq!(first.status, 202, "{first:?}");
    rest(&daemon, &session);
    let again = daemon.send("POST", &place(&session, "/send"), &headers, Some(&body));
    assert_eq!((again.status, &again.json), (202, &first.json));
    let other = daemon.send("POST", &place(&session, "/send"), &headers, Some(&json!({ "text": "hello" })));
    refused(&other, 422, "idempotency_mismatch");
    let state = rest(&daemon, &session);
    assert_eq!(state["message_count"], 2, "{state}");
    let attached = [
        json!({ "name": "a.txt", "media_type": "text/plain", "bytes": 2 }),
        json!({ "name": "b.png", "media_type": "image/png", "bytes": 12 }),
    ];
    assert_eq!(state["messages"][0]["attachments"], json!(attached));
    let export = daemon.get(&place(&session, "/export?format=json")).json;
    assert_eq!(export["messages"][0]["attachments"][1]["base64"], png);
    let large = json!({ "text": "x", "attachments": [{ "media_type": "image/png", "data": "A".repeat(6 << 20) }] });
    let answer = daemon.post(&place(&session, "/send"), &large);
    assert_eq!((answer.status, answer.fields()), (400, vec!["/attachments/0/data"]));
    let key = [("x-aman-token", TOKEN), ("idempotency-key", "begin")];
    let begun = || daemon.send("POST", "/chat/session/create", &key, Some(&json!({})));
    assert_eq!(begun().json, begun().json);
}

/// Goal: a cheap model makes a title behind the first answer, which is no change that a client must know of.
#[test]
fn a_cheap_model_makes_the_title() {
    let folder = Folder::new("cheap");
    let cheap = folder.path().join("cheap.yaml");
    std::fs::write(&cheap, "turns:\n  - say: \"\\n **\\\"Greetings\\\"**\\n\"\n").expect("the script");
    let daemon = scripted_with(
        "cheap = \"small/script\"",
        &format!("[providers.small]\nkind = \"script\"\npath = \"{}\"\n", cheap.display()),
    );
    let session = begin(&daemon);
    say(&daemon, &session, "hello");
    let before = state(&daemon, &session)["version"].clone();
    daemon.wait("the title", || (state(&daemon, &session)["title"] == "Greetings").then_some(()));
    assert_eq!(state(&daemon, &session)["version"], before);
    assert_eq!(state(&daemon, &session)["usage"]["calls"], 2, "it is paid for");
}

/// Goal: without a model everything but an answer works, and it is said what to do; a model that fails is told as well.
#[test]
fn no_model_and_a_broken_one_are_told() {
    let daemon = Daemon::configured("[models]\ndetect = \"\"\n");
    let session = begin(&daemon);
    let answer = daemon.post(&place(&session, "/send"), &json!({ "text": "hello" }));
    refused(&answer, 503, "no_model");
    assert!(text(&answer.json, "detail").contains("Ollama") && answer.header("retry-after").is_some(), "{answer:?}");
    assert_eq!(state(&daemon, &session)["message_count"], 0);
    refused(&daemon.post("/chat/session/create", &json!({ "agent_id": "nobody" })), 404, "not_found");
    drop(daemon);
    let daemon = scripted("");
    let session = begin(&daemon);
    let mut stream = streams::send(&daemon, &session, "broken");
    let frames: Vec<_> = std::iter::from_fn(|| stream.next()).collect();
    let last = frames.last().expect("frames");
    assert_eq!((last.event.as_str(), text(&last.data, "code")), ("error", "model_auth"), "{frames:?}");
    let after = rest(&daemon, &session);
    assert_eq!((text(&after["turn"], "status"), text(&after["turn"]["error"], "code")), ("failed", "model_auth"));
}
