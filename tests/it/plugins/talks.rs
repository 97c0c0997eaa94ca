//! Plugins that are an API over agents: they manage them and talk with them as far as their manifest says, in sessions of their
//! own, trusted no further than plugins. The model is a script.

use std::sync::OnceLock;

use serde_json::{Value, json};

use super::{built, install, installed, package};
use crate::harness::{Answer, Daemon, Folder, Frame, Stream, TOKEN};
use crate::tools::{asked, receipt, respond};

const SCRIPT: &str = r#"
turns:
  - when: { text: slow }
    say: ["w1 ", "w2 ", "w3 ", "w4 ", "w5 ", "w6 ", "w7 ", "w8 ", "w9 ", "w10 ", "w11 ", "w12 ", "w13 ", "w14 ", "w15 ",
      "w16 ", "w17 ", "w18 ", "w19 ", "w20"]
    delay: 100ms
  - when: { text: crawl }
    say: ["w1 ", "w2 ", "w3 ", "w4 ", "w5 ", "w6 ", "w7 ", "w8 ", "w9 ", "w10"]
    delay: 2s
  - when: { text: publish }
    calls: [{ name: publish_event, arguments: { type: made.up, data: { n: 1 } } }]
  - when: { text: "", after: publish_event }
    say: "It is published."
  - when: { text: run }
    calls: [{ name: exec, arguments: { argv: [echo, pwned] } }]
  - when: { text: "", after: exec }
    say: "exec: {text}"
  - when: { text: remember }
    calls: [{ name: memory_save, arguments: { text: "the owner likes it" } }]
  - when: { text: "", after: memory_save }
    say: "memory: {text}"
  - when: { text: search }
    calls: [{ name: search_events, arguments: {} }]
  - when: { text: "", after: search_events }
    say: "events: {text}"
  - when: { text: hiccup }
    fails: [{ kind: auth }]
    say: "well again"
  - when: { text: broken }
    fails: [{ kind: auth }, { kind: auth }, { kind: auth }]
    say: "mended"
  - when: { text: "" }
    say: "You said: {text}"
"#;
const ALL: &str = "agents = [\"read\", \"chat\", \"manage\"]\nkv = \"64KiB\"\n";

fn component() -> &'static [u8] {
    static BUILT: OnceLock<Vec<u8>> = OnceLock::new();
    BUILT.get_or_init(|| built("talks"))
}

fn packed(version: &str, permissions: &str, limits: &str) -> Vec<u8> {
    let manifest = format!(
        "name = \"talks\"\nversion = \"{version}\"\ndescription = \"d\"\ninterface = \"0.1\"\n\
         component = \"plugin.wasm\"\n[permissions]\n{permissions}\
         [[routes]]\nmethod = \"POST\"\npath = \"/talks\"\n[[routes]]\nmethod = \"POST\"\npath = \"/talks/stream\"\n\
         [[events]]\ntypes = [\"talks.do\"]\n\
         [[tools]]\nname = \"ask_aman\"\ndescription = \"Asks\"\nschema = \"schemas/probe.json\"\n{limits}"
    );
    package(&manifest, component())
}

/// A daemon with the plugin, an agent that may run a command, and a webhook that brings the plugin events from the web.
fn daemon() -> Daemon {
    let folder = Folder::new("talks");
    let script = folder.path().join("script.yaml");
    std::fs::write(&script, SCRIPT).expect("the script");
    let toml = format!(
        "[models]\ndefault = \"demo/script\"\n[providers.demo]\nkind = \"script\"\npath = \"{}\"\n\
         [sources.web]\nkind = \"webhook\"\ntype = \"talks.do\"\n",
        script.display()
    );
    std::fs::write(folder.path().join("aman.toml"), toml).expect("aman.toml");
    std::fs::create_dir_all(folder.path().join("agents")).expect("a folder");
    let runner =
        "description = \"Runs\"\n[tools]\nexec = [\"echo\"]\nread = [\"~/notes\"]\n[budget]\nday_tokens = 100000\n";
    std::fs::write(folder.path().join("agents/runner.toml"), runner).expect("an agent");
    let daemon = Daemon::start_keeping(folder);
    installed(&daemon, &packed("1.0.0", ALL, ""), "approve=true");
    daemon
}

fn act(daemon: &Daemon, told: &Value) -> Answer {
    daemon.post("/api/v1/talks", told)
}

fn acted(daemon: &Daemon, told: &Value) -> Value {
    let answer = act(daemon, told);
    assert_eq!(answer.status, 200, "{told}: {answer:?}; {}", daemon.log());
    answer.json
}

/// A session of the plugin's.
fn session(daemon: &Daemon) -> String {
    let made = acted(daemon, &json!({ "do": "create" }));
    made["id"].as_str().expect("an id").to_owned()
}

fn say(daemon: &Daemon, session: &str, words: &str) -> Value {
    acted(daemon, &json!({ "do": "say", "session": session, "text": words }))
}

/// Waits until no turn is under way in a session.
fn rest(daemon: &Daemon, session: &str) {
    let state = || acted(daemon, &json!({ "do": "read", "session": session }))["state"].clone();
    daemon.wait("the turn's end", || (state() == "SessionState::Idle").then_some(()));
}

/// Sessions of plugins as their owner sees them.
fn sessions(daemon: &Daemon) -> Vec<Value> {
    daemon.all("/chat/sessions?kind=plugin&limit=100")
}

fn records(daemon: &Daemon, action: &str) -> Vec<Value> {
    let all = daemon.all(&format!("/audit-log?action={action}&limit=100")).into_iter();
    all.filter(|row| row["principal"] == "plugin/talks").collect()
}

/// Goal: what the manifest does not ask for is refused by name, when the plugin is installed and when it tries; it is shown
/// before, afterwards, and as what an upgrade adds.
#[test]
fn nothing_is_asked_that_was_not_agreed_to() {
    let daemon = Daemon::start();
    for (grant, said) in
        [("agents = [\"write\"]\n", "read, chat, manage"), ("agents = [\"chat\", \"chat\"]\n", "each once")]
    {
        let manifest = format!(
            "name = \"talks\"\nversion = \"1.0.0\"\ndescription = \"d\"\ninterface = \"0.1\"\n\
             component = \"plugin.wasm\"\n[permissions]\n{grant}"
        );
        let why = super::try_package(&manifest).unwrap_or_default();
        assert!(why.contains(said), "{grant}: {why}");
    }
    for (little, named) in
        [("", "aman:plugin/agents, aman:plugin/chat"), ("agents = [\"read\"]\n", "imports aman:plugin/chat")]
    {
        let refused = install(&daemon, &packed("1.0.0", &format!("{little}kv = \"64KiB\"\n"), ""), "approve=true");
        assert_eq!((refused.status, refused.code()), (400, "invalid_plugin"), "{refused:?}");
        assert!(refused.json.to_string().contains(named), "{refused:?}");
    }
    let some = "agents = [\"read\", \"chat\"]\nkv = \"64KiB\"\n";
    let waiting = installed(&daemon, &packed("1.0.0", some, ""), "");
    assert_eq!(waiting["status"], "pending_consent");
    installed(&daemon, &packed("1.0.0", some, ""), "approve=true");
    let shown = daemon.get("/plugin/talks").json;
    assert_eq!(shown["permissions"]["agents"], json!(["read", "chat"]));
    let words = shown["granted"].to_string();
    assert!(words.contains("talk with your agents") && words.contains("see your agents"), "{words}");
    for told in
        [json!({ "do": "put agent", "id": "a", "definition": {} }), json!({ "do": "remove agent", "id": "aman" })]
    {
        let denied = act(&daemon, &told);
        assert_eq!((denied.status, denied.code()), (403, "plugin_denied"), "{denied:?}");
        assert!(denied.json.to_string().contains("manage"), "{denied:?}");
    }
    let more = installed(&daemon, &packed("1.1.0", ALL, ""), "");
    assert_eq!(
        (&more["status"], &more["added"][0]["key"]),
        (&json!("pending_consent"), &json!("agents manage")),
        "{more}"
    );
    let (_, out, _) = daemon.cli(&["plugin", "show", "talks"]);
    assert!(out.contains("make, change and remove agents"), "{out}");
    assert_eq!(act(&daemon, &json!({ "do": "remove agent", "id": "aman" })).status, 403, "until somebody agrees");
}

/// Goal: agents are listed, read, made, changed and removed in the plugin's name, and with nothing that its operator did not
/// give them.
#[test]
fn agents_are_managed_within_bounds() {
    let daemon = daemon();
    let list = acted(&daemon, &json!({ "do": "list agents" }));
    let ids: Vec<&str> = list.as_array().expect("a list").iter().filter_map(|one| one["id"].as_str()).collect();
    assert_eq!(ids, ["aman", "runner"]);
    let put =
        |id: &str, definition: Value| act(&daemon, &json!({ "do": "put agent", "id": id, "definition": definition }));
    let made = put(
        "clerk",
        json!({ "description": "Files", "instructions": "Be brief.", "tools": { "allow": ["memory_*"] } }),
    );
    assert_eq!(
        (made.status, &made.json["is_new"], &made.json["agent"]["trust"]),
        (200, &json!(true), &json!("Trust::Plugin"))
    );
    let read = acted(&daemon, &json!({ "do": "read agent", "id": "clerk" }));
    assert_eq!(
        (&read["definition"]["instructions"], &read["agent"]["description"]),
        (&json!("Be brief."), &json!("Files"))
    );
    assert_eq!(
        (&read["definition"]["trust"], &read["agent"]["status"]),
        (&json!("plugin"), &json!("Status::Idle")),
        "{read}"
    );
    assert_eq!(daemon.get("/agent/clerk/versions").items()[0]["principal"], "plugin/talks");
    assert_eq!(put("clerk", json!({ "description": "Files more" })).json["is_new"], false, "its own it may change");

    for (id, definition, status, said) in [
        ("runner", json!({ "tools": { "exec": ["echo"] } }), 403, "http.allow_exec_definitions"),
        ("new", json!({ "tools": { "read": ["~"] } }), 403, "tools.read names '~'"),
        ("new", json!({ "tools": { "hosts": ["*"] } }), 403, "tools.hosts"),
        ("new", json!({ "on": ["**"] }), 403, "on names"),
        ("runner", json!({ "tools": { "read": ["~/notes"] } }), 403, "budget.day_tokens"),
        ("new", json!({ "trust": "owner" }), 400, "trust"),
        ("new", json!({ "modle": "x" }), 400, "modle"),
        ("start", json!({}), 400, "reserved"),
        ("No", json!({}), 400, "lower-case"),
    ] {
        let answer = put(id, definition.clone());
        assert_eq!(answer.status, status, "{definition}: {answer:?}");
        assert!(answer.json.to_string().contains(said), "{definition}: {answer:?}");
    }
    assert_eq!(daemon.get("/agent/new").status, 404);
    // What the operator gave it stays; what it is told may change, and is trusted less from then on.
    let kept = put("runner", json!({ "tools": { "read": ["~/notes"] }, "budget": { "day_tokens": 10 } }));
    assert_eq!((kept.status, &kept.json["agent"]["trust"]), (200, &json!("Trust::Plugin")), "{kept:?}");

    // Removed and made anew it is as its operator left it.
    assert_eq!(daemon.post("/agent/clerk/status", &json!({ "status": "disabled" })).status, 200);
    acted(&daemon, &json!({ "do": "remove agent", "id": "clerk" }));
    assert_eq!(put("clerk", json!({ "description": "Files again" })).status, 200);
    assert_eq!(daemon.get("/agent/clerk").json["status"], "disabled");
    acted(&daemon, &json!({ "do": "remove agent", "id": "clerk" }));
    assert_eq!(daemon.get("/agent/clerk").status, 404);
    assert_eq!(act(&daemon, &json!({ "do": "remove agent", "id": "clerk" })).status, 404);
    let outcomes =
        |action: &str, outcome: &str| records(&daemon, action).iter().filter(|row| row["outcome"] == outcome).count();
    assert_eq!((outcomes("agent.put", "done"), outcomes("agent.put", "refused")), (4, 5));
    let gone = records(&daemon, "agent.delete").remove(0);
    assert_eq!((&gone["target"], gone["before_digest"].is_string()), (&json!("clerk"), true), "{gone}");
    assert_eq!(daemon.get("/audit-log/verify").json["ok"], true);
}

/// Goal: a turn is answered whole in a session of the plugin's, which it alone and the owner see, pages through and removes; the
/// same key is the same turn; what cannot be done is told in words.
#[test]
fn turns_are_answered_in_sessions_of_its_own() {
    let daemon = daemon();
    let id = session(&daemon);
    let first = say(&daemon, &id, "good day");
    assert_eq!((&first["text"], &first["outcome"]), (&json!("You said: good day"), &json!("Outcome::Done")), "{first}");
    let state = daemon.get(&format!("/chat/session/{id}/state")).json;
    assert_eq!(
        (&state["kind"], &state["principal"], &state["trust"]),
        (&json!("plugin"), &json!("plugin/talks"), &json!("plugin"))
    );
    assert_eq!(state["messages"][1]["id"], first["message"]);
    let with_note = json!({ "do": "say", "session": id, "text": "read", "note": "a note", "key": "once" });
    let keyed = acted(&daemon, &with_note);
    let again = acted(&daemon, &with_note);
    assert_eq!((&again["turn"], &again["text"]), (&keyed["turn"], &keyed["text"]));
    assert_eq!((&keyed["is_new"], &again["is_new"]), (&json!(true), &json!(false)));
    let retried = acted(&daemon, &json!({ "do": "say", "session": id }));
    assert_eq!(retried["text"], keyed["text"], "the last words once more");
    let mine = daemon.get(&format!("/chat/session/{id}/history")).items()[0]["id"].clone();
    let edited = acted(&daemon, &json!({ "do": "say", "session": id, "text": "good night", "edit": mine }));
    assert_eq!(edited["text"], "You said: good night");

    let page = acted(&daemon, &json!({ "do": "history", "session": id }));
    let texts: Vec<&str> =
        page["messages"].as_array().expect("a list").iter().filter_map(|one| one["text"].as_str()).collect();
    assert_eq!((texts, &page["next"]), (vec!["good night", "You said: good night"], &Value::Null), "{page}");
    assert_eq!(
        (&page["messages"][0]["role"], &page["messages"][1]["trust"]),
        (&json!("Role::User"), &json!("Trust::Plugin"))
    );
    say(&daemon, &id, "more");
    let page = acted(&daemon, &json!({ "do": "history", "session": id }));
    let next = acted(&daemon, &json!({ "do": "history", "session": id, "after": page["next"] }));
    assert_eq!((&next["messages"][0]["text"], &next["next"]), (&json!("more"), &Value::Null), "{next}");

    let others = daemon.post("/chat/session/create", &json!({ "title": "Mine" })).json["id"].clone();
    for told in ["read", "history", "say", "stop", "delete"] {
        let answer = act(&daemon, &json!({ "do": told, "session": others, "text": "let me in" }));
        assert_eq!(answer.status, 404, "{told}: {answer:?}");
    }
    // What a call looked at ends with it, whatever the guest keeps.
    acted(&daemon, &json!({ "do": "keep", "session": id, "text": "keep this" }));
    let stale = act(&daemon, &json!({ "do": "look at kept" }));
    assert!(stale.status == 409 && stale.json.to_string().contains("is over"), "{stale:?}");
    rest(&daemon, &id);
    let named = |key: &str| acted(&daemon, &json!({ "do": "create", "key": key }))["id"].clone();
    assert_eq!(named("chat 7"), named("chat 7"), "a key is one session");
    let (second, third) = (named("chat 8"), named("chat 9"));
    let page = acted(&daemon, &json!({ "do": "sessions" }));
    assert_eq!((&page["sessions"][0]["id"], &page["sessions"][1]["id"]), (&third, &second), "{page}");
    let others = acted(&daemon, &json!({ "do": "sessions", "after": page["next"] }));
    assert_eq!((others["sessions"].as_array().map(Vec::len), &others["next"]), (Some(2), &Value::Null), "{others}");
    assert_eq!(acted(&daemon, &json!({ "do": "sessions", "agent": "runner" }))["sessions"], json!([]));

    for (told, status, said) in [
        (json!({ "do": "say", "session": id, "text": " " }), 400, "text"),
        (json!({ "do": "say", "session": id, "text": "x", "version": 1 }), 409, "version"),
        (json!({ "do": "say", "session": id, "text": "x", "key": "k".repeat(201) }), 400, "key"),
        (json!({ "do": "say", "session": id, "text": "x", "note": "", "notes": 9 }), 400, "attachments"),
        (json!({ "do": "create", "agent": "nobody" }), 404, "nobody"),
        (json!({ "do": "sessions", "after": "x" }), 400, "after"),
    ] {
        let answer = act(&daemon, &told);
        assert!(answer.status == status && answer.json.to_string().contains(said), "{told}: {answer:?}");
    }
    let failed = say(&daemon, &id, "broken");
    assert_eq!((&failed["outcome"], &failed["failure"]), (&json!("Outcome::Failed"), &json!("model_auth")), "{failed}");
    acted(&daemon, &json!({ "do": "delete", "session": id }));
    assert_eq!(act(&daemon, &json!({ "do": "read", "session": id })).status, 404);
    assert_eq!((sessions(&daemon).len(), records(&daemon, "chat.delete").len()), (3, 1));
    let sent = records(&daemon, "chat.send");
    assert_eq!((sent.len(), sent[0]["target"] == id.as_str()), (5, true), "{sent:?}");
    assert_eq!((records(&daemon, "chat.create").len(), records(&daemon, "chat.retry").len()), (4, 1));
}

/// What the plugin's route streams of a turn.
fn streamed(daemon: &Daemon, told: &Value) -> Stream {
    let path = ("POST", "/api/v1/talks/stream");
    let stream =
        Stream::request(&daemon.address, path, &[("x-aman-token", TOKEN)], &told.to_string()).expect("a stream");
    assert_eq!(stream.status, 200, "{}", daemon.log());
    stream
}

/// Goal: a turn is streamed by the plugin's route as the daemon streams it, the person's approval in its middle; whoever leaves
/// stops nothing.
#[test]
fn turns_are_streamed_and_the_person_is_asked() {
    let daemon = daemon();
    let id = session(&daemon);
    let mut stream = streamed(&daemon, &json!({ "session": id, "text": "publish it" }));
    let mut seen: Vec<Frame> = Vec::new();
    while seen.last().is_none_or(|frame| frame.event != "approval_required") {
        seen.push(stream.next().unwrap_or_else(|| panic!("{seen:?}; {}", daemon.log())));
    }
    assert_eq!(acted(&daemon, &json!({ "do": "read", "session": id }))["state"], "SessionState::Waiting");
    let question = asked(&daemon);
    assert_eq!((&question["tool"], &question["trust"]), (&json!("publish_event"), &json!("plugin")), "{question}");
    assert_eq!((&question["principal"], &question["session"]), (&json!("plugin/talks"), &json!(id)), "{question}");
    assert!(daemon.recent("made.up").is_empty());
    assert_eq!(respond(&daemon, &question, true, "once").status, 200);
    seen.extend(std::iter::from_fn(|| stream.next()));
    let mut names: Vec<&str> = seen.iter().map(|frame| frame.event.as_str()).collect();
    names.dedup();
    let wanted = ["start", "usage", "tool_call", "approval_required", "tool_result", "token", "usage", "done"];
    assert_eq!(names, wanted, "{seen:?}");
    let words: String =
        seen.iter().filter_map(|frame| frame.data["text"].as_str().filter(|_| frame.event == "token")).collect();
    assert_eq!((words.as_str(), daemon.recent("made.up").len()), ("It is published.", 1));

    let mut left = streamed(&daemon, &json!({ "session": id, "text": "slow" }));
    assert_eq!(left.next().map(|frame| frame.event).as_deref(), Some("start"));
    let busy = act(&daemon, &json!({ "do": "say", "session": id, "text": "x" }));
    assert_eq!((busy.status, busy.code()), (409, "invalid_state"), "{busy:?}");
    drop(left);
    rest(&daemon, &id);
    let history = daemon.all(&format!("/chat/session/{id}/history?limit=50"));
    assert!(history.last().is_some_and(|last| last["text"].as_str().is_some_and(|text| text.ends_with("w20"))));

    let told = json!({ "session": id, "text": "slow", "key": "k" });
    let mut first = streamed(&daemon, &told);
    assert_eq!(first.next().map(|frame| frame.event).as_deref(), Some("start"));
    assert_eq!(acted(&daemon, &json!({ "do": "stop", "session": id })), json!(true));
    let last = std::iter::from_fn(|| first.next()).last().expect("an end");
    assert_eq!((last.event.as_str(), &last.data["status"]), ("done", &json!("stopped")));
    let again: Vec<Frame> = std::iter::from_fn({
        let mut stream = streamed(&daemon, &told);
        move || stream.next()
    })
    .collect();
    assert_eq!(again.last().map(|frame| &frame.data["status"]), Some(&json!("stopped")), "the same turn: {again:?}");
}

/// Goal: whoever calls the plugin, no turn of it has commands or memory; what comes from the web is trusted as the web.
#[test]
fn turns_are_trusted_no_further_than_what_led_to_them() {
    let daemon = daemon();
    for (words, tool, trust) in [
        ("run it", "exec", "plugin"),
        ("remember it", "memory_save", "plugin"),
        ("search it", "search_events", "plugin"),
    ] {
        let answer = acted(&daemon, &json!({ "do": "ask", "agent": "runner", "text": words }));
        assert!(answer["text"].as_str().is_some_and(|text| text.contains("trust_too_low")), "{answer}");
        let record = receipt(&daemon, tool);
        assert_eq!((&record["outcome"], &record["detail"]["trust"]), (&json!("refused"), &json!(trust)), "{record}");
        assert_eq!(record["principal"], "plugin/talks", "{record}");
    }
    let token = format!("Bearer {TOKEN}");
    let told = json!({ "do": "ask", "agent": "runner", "text": "run it" });
    let sent = daemon.send("POST", "/hooks/web", &[("authorization", &token)], Some(&told));
    let event = sent.json["id"].as_str().unwrap_or_else(|| panic!("{sent:?}")).to_owned();
    daemon.until(&event, "done");
    let record = receipt(&daemon, "exec");
    assert_eq!((&record["outcome"], &record["detail"]["trust"]), (&json!("refused"), &json!("web")), "{record}");
    let done = acted(&daemon, &json!({ "do": "last" }));
    let turn = daemon.recent("aman.agent.message").remove(0);
    assert_eq!((&turn["causationid"], &turn["trust"]), (&json!(event), &json!("web")), "{turn}");
    assert_eq!(done["trace"], daemon.dump(&event)["event"]["traceid"]);
    assert_eq!(daemon.get("/tool-auth/pending").items().len(), 0, "nobody can agree to that");
    // A tool that asks is trusted as its caller is, and no further than plugins.
    let asked = daemon.post("/tools/ask_aman/execute", &json!({ "input": { "do": "ask", "text": "by a tool" } }));
    assert_eq!((asked.status, &asked.json["output"]["text"]), (200, &json!("You said: by a tool")), "{asked:?}");
}

/// Goal: a delivery that is made again finds the session and the turn that it asked for before, after a failure and after a kill
/// in the middle of the turn.
#[test]
fn a_redelivery_asks_nothing_twice() {
    let mut daemon = daemon();
    let event = daemon.push("talks.do", json!({ "do": "ask", "text": "once", "fail once": true }));
    daemon.until(&event, "done");
    assert_eq!(daemon.delivery(&event)["attempt"], 2);
    let done = acted(&daemon, &json!({ "do": "last" }));
    assert_eq!((&done["text"], &done["is_new"]), (&json!("You said: once"), &json!(false)), "{done}");
    assert_eq!((sessions(&daemon).len(), records(&daemon, "chat.send").len()), (1, 1));

    let event = daemon.push("talks.do", json!({ "do": "ask", "text": "slow" }));
    daemon.wait("the turn", || sessions(&daemon).iter().any(|one| one["state"] == "running").then_some(()));
    daemon.kill();
    daemon.again();
    daemon.until(&event, "done");
    let done = acted(&daemon, &json!({ "do": "last" }));
    assert!(done["text"].as_str().is_some_and(|text| text.ends_with("w20")), "{done}");
    assert_eq!((sessions(&daemon).len(), records(&daemon, "chat.send").len()), (2, 2));
    // A turn that came to no answer is no answer: the next attempt has it taken anew.
    let event = daemon.push("talks.do", json!({ "do": "ask", "text": "hiccup", "must answer": true }));
    daemon.until(&event, "done");
    assert_eq!((acted(&daemon, &json!({ "do": "last" })), sessions(&daemon).len()), (json!("well again"), 3));
    // Another event with the same words is another conversation.
    let other = daemon.push("talks.do", json!({ "do": "ask", "text": "once" }));
    daemon.until(&other, "done");
    assert_eq!(sessions(&daemon).len(), 4);
}

/// Goal: a call waits as long as its manifest lets it; the turn goes on, over an upgrade too, and the same key waits for it again.
#[test]
fn a_call_waits_as_long_as_it_may() {
    let daemon = daemon();
    let id = session(&daemon);
    let hasty = packed("1.1.0", ALL, "[limits]\nwait = \"500ms\"\n");
    installed(&daemon, &hasty, "");
    let told = json!({ "do": "say", "session": id, "text": "slow", "key": "k" });
    let late = act(&daemon, &told);
    assert_eq!((late.status, late.code()), (504, "plugin_timeout"), "{late:?}");
    assert_eq!(
        daemon.get("/plugin/talks").json["health"]["rests_until"],
        Value::Null,
        "that is no fault of the plugin"
    );
    installed(&daemon, &packed("1.2.0", ALL, ""), "");
    let done = acted(&daemon, &told);
    assert_eq!((&done["is_new"], &done["outcome"]), (&json!(false), &json!("Outcome::Done")), "{done}");
    assert!(done["text"].as_str().is_some_and(|text| text.ends_with("w20")), "{done}");
    assert_eq!(records(&daemon, "chat.send").len(), 1);
}

/// Goal: a guest that opens turn after turn gets so many; switched off, its turns are stopped, and its sessions go with its data.
#[test]
fn many_turns_are_bounded_and_end_with_the_plugin() {
    let daemon = daemon();
    let running = |daemon: &Daemon| sessions(daemon).iter().filter(|one| one["state"] == "running").count();
    let waiting = std::thread::scope(|scope| {
        let call = scope.spawn(|| act(&daemon, &json!({ "do": "ask", "text": "crawl" })));
        daemon.wait("the first turn", || (running(&daemon) == 1).then_some(()));
        let hoard = |drop: bool| daemon.post("/api/v1/talks/stream", &json!({ "hoard": 24, "drop": drop }));
        let hoarded = hoard(false);
        assert_eq!((&hoarded.json["kept"], &hoarded.json["refused"]), (&json!(15), &json!(9)), "{hoarded:?}");
        let dropped = hoard(true);
        assert_eq!((&dropped.json["refused"], running(&daemon)), (&json!(24), 16), "{dropped:?}");
        assert_eq!(daemon.post_confirmed("/plugin/talks/disable", &json!({})).status, 200);
        call.join().expect("an answer")
    });
    assert_eq!((waiting.status, &waiting.json["outcome"]), (200, &json!("Outcome::Stopped")), "{waiting:?}");
    daemon.wait("the end of its turns", || (running(&daemon) == 0).then_some(()));
    let stopped = daemon.recent("aman.agent.turn.ended");
    assert!(stopped.iter().any(|event| event["data"]["status"] == "stopped"), "{stopped:?}");
    assert_eq!(daemon.get("/health").status, 200);
    let gone = daemon.post("/plugin/talks/uninstall", &json!({ "purge_data": true }));
    assert_eq!((gone.status, sessions(&daemon).len()), (200, 0), "{gone:?}");
}
