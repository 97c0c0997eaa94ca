//! Tools through the real daemon: the gate and its approvals, and what each of aman's own tools may touch.

mod files;
mod outside;

use std::thread::JoinHandle;

use serde_json::{Value, json};

use crate::harness::{Answer, Daemon, Folder, TOKEN, exchange, request};
use crate::workflows::{instance, stored, until};

/// A daemon with this `[tools]`, in a folder with `notes`.
pub fn daemon(tools: &str) -> Daemon {
    Daemon::configured(&format!("[http_client]\nallow_private = true\n[tools]\n{tools}\n"))
}

/// Calls a tool.
pub fn run(daemon: &Daemon, tool: &str, input: Value) -> Answer {
    daemon.post(&format!("/tools/{tool}/execute"), &json!({ "input": input }))
}

/// Calls a tool that answers.
pub fn done(daemon: &Daemon, tool: &str, input: Value) -> Value {
    let answer = run(daemon, tool, input);
    assert_eq!(answer.status, 200, "{tool}: {answer:?}; {}", daemon.log());
    answer.json["output"].clone()
}

/// Calls a tool in a thread of its own, since it waits; `key` makes it the same call again.
fn later(daemon: &Daemon, tool: &str, input: &Value, key: &str) -> JoinHandle<Result<Answer, String>> {
    let token = format!("Bearer {TOKEN}");
    let headers = [("authorization", token.as_str()), ("content-type", "application/json"), ("idempotency-key", key)];
    let body = json!({ "input": input }).to_string();
    let bytes = request("POST", &format!("/tools/{tool}/execute"), &headers, body.as_bytes());
    let address = daemon.address.clone();
    std::thread::spawn(move || exchange(&address, &bytes))
}

fn answer_of(call: JoinHandle<Result<Answer, String>>) -> Answer {
    call.join().expect("no panic").expect("an answer")
}

/// What waits for an answer, once something does.
pub fn asked(daemon: &Daemon) -> Value {
    daemon.wait("an approval", || daemon.get("/tool-auth/pending").items().pop())
}

pub fn respond(daemon: &Daemon, asked: &Value, approved: bool, remember: &str) -> Answer {
    daemon.post("/tool-auth/respond", &json!({ "auth_id": asked["id"], "approved": approved, "remember": remember }))
}

/// The newest record of a call of this tool.
pub fn receipt(daemon: &Daemon, tool: &str) -> Value {
    let all = daemon.get("/audit-log?action=tool.execute&limit=200").items();
    all.into_iter().find(|record| record["target"] == tool).unwrap_or_else(|| panic!("no record of {tool}"))
}

fn ended_as(daemon: &Daemon, tool: &str, outcome: &str, code: Value) -> Value {
    let record = receipt(daemon, tool);
    assert_eq!((&record["outcome"], &record["detail"]["code"]), (&json!(outcome), &code), "{record}");
    record
}

const ASKS: &str =
    "approve = [\"publish_event\", \"write\"]\nwrite = [\"~/notes\"]\ndeny = [\"list\"]\nexec = [\"echo\"]";

/// Many answer at once; the statuses that they get, sorted.
fn answered_at_once(daemon: &Daemon, question: &Value) -> Vec<u16> {
    let body = json!({ "auth_id": question["id"], "approved": true, "remember": "once" }).to_string();
    let answer = |_| {
        let (address, token, body) = (daemon.address.clone(), format!("Bearer {TOKEN}"), body.clone());
        std::thread::spawn(move || {
            let headers = [("authorization", token.as_str()), ("content-type", "application/json")];
            exchange(&address, &request("POST", "/tool-auth/respond", &headers, body.as_bytes())).expect("one").status
        })
    };
    let answers: Vec<JoinHandle<u16>> = (0..6).map(answer).collect();
    let mut statuses: Vec<u16> = answers.into_iter().map(|answer| answer.join().expect("no panic")).collect();
    statuses.sort_unstable();
    statuses
}

/// Goal: whatever becomes of a call is told, and is one record of the chain: refused, approved, denied, changed.
#[test]
fn every_end_of_a_call_is_on_record() {
    let daemon = daemon(ASKS);
    std::fs::create_dir(daemon.home().join("notes")).expect("a folder");
    for (tool, input, status, code, field) in [
        ("no_such", json!({}), 404, "not_found", ""),
        ("list", json!({ "path": "~/notes" }), 403, "tool_denied", ""),
        ("sqlite_query", json!({ "database": "~/x", "sql": "x" }), 403, "tool_denied", ""),
        ("publish_event", json!({ "typ": "a.b" }), 400, "invalid_input", "input"),
        ("publish_event", json!({ "type": "aman.shutdown" }), 400, "invalid_input", "input/type"),
        ("write", json!({ "path": "/etc/x", "content": "" }), 403, "path_not_granted", ""),
        ("exec", json!({ "argv": ["sh", "-c", "id"] }), 403, "exec_not_allowed", ""),
    ] {
        let answer = run(&daemon, tool, input);
        assert_eq!((answer.status, answer.code()), (status, code), "{tool}: {answer:?}");
        assert_eq!(answer.fields().first().copied().unwrap_or_default(), field, "{tool}: {answer:?}");
        let record = receipt(&daemon, tool);
        assert_eq!((&record["outcome"], &record["status"]), (&json!("refused"), &json!(status)), "{record}");
    }
    assert_eq!(daemon.get("/tool-auth/pending").items().len(), 0, "nobody is asked about what is refused");

    let pushed = daemon.push("note.added", json!({ "text": "buy milk" }));
    let found = done(&daemon, "search_events", json!({ "types": ["note.*"], "limit": 1 }));
    assert!(
        found.as_str().is_some_and(|text| text.contains("note.added") && text.contains("buy milk")),
        "{found} {pushed}"
    );
    let none = done(&daemon, "search_events", json!({ "types": ["note.*"], "since": "2999-01-01T00:00:00Z" }));
    assert_eq!(none, "There is no such event.");

    let input = json!({ "type": "made.up", "data": { "n": 1, "key": TOKEN } });
    let shown = json!({ "type": "made.up", "data": { "n": 1, "key": "redacted" } });
    let call = later(&daemon, "publish_event", &input, "one");
    let question = asked(&daemon);
    assert_eq!((&question["tool"], &question["arguments"]), (&json!("publish_event"), &shown), "{question}");
    assert_eq!(
        (&question["pattern"], &question["remember"]),
        (&json!("publish_event: made.up"), &json!(["once", "always"]))
    );
    assert!(daemon.recent("made.up").is_empty(), "nothing happens before the answer");
    assert_eq!(answered_at_once(&daemon, &question), [200, 409, 409, 409, 409, 409], "the first answer wins");
    assert_eq!(answer_of(call).status, 200);
    assert_eq!(daemon.recent("made.up").len(), 1);
    assert_eq!(ended_as(&daemon, "publish_event", "done", Value::Null)["detail"]["approval"], question["id"]);

    let call = later(&daemon, "publish_event", &input, "two");
    assert_eq!(respond(&daemon, &asked(&daemon), false, "always").status, 200);
    assert_eq!(answer_of(call).code(), "approval_denied");
    ended_as(&daemon, "publish_event", "refused", json!("approval_denied"));
    assert_eq!(daemon.get("/tool-auth/rules").items().len(), 0, "a no makes no rule");

    let file = daemon.home().join("notes/a.md");
    std::fs::write(&file, "as it was").expect("a file");
    let call = later(&daemon, "write", &json!({ "path": "~/notes/a.md", "content": "new" }), "three");
    let question = asked(&daemon);
    assert!(
        question["preview"].as_str().is_some_and(|text| text.contains("replaces ~/notes/a.md (9 bytes")),
        "{question}"
    );
    std::fs::write(&file, "changed meanwhile").expect("a file");
    assert_eq!(respond(&daemon, &question, true, "once").status, 200);
    assert_eq!(answer_of(call).code(), "approval_changed");
    ended_as(&daemon, "write", "refused", json!("approval_changed"));
    assert_eq!(std::fs::read_to_string(&file).expect("it is there"), "changed meanwhile");
    assert_eq!(daemon.get("/audit-log/verify").json["ok"], true);
    let kinds = ["requested", "answered"].map(|kind| daemon.recent(&format!("aman.approval.{kind}")).len());
    assert_eq!(kinds, [3, 3]);
    let told = daemon.get("/notifications?category=approval").items();
    assert_eq!((told.len(), told[0]["action"]["label"].clone()), (3, json!("Answer")), "{told:?}");
    assert!(told.iter().all(|one| one["status"] == "dismissed"), "what is answered is put away: {told:?}");
}

/// Goal: a rule allows what it shows and nothing else, counts, is listed, and is gone once it is revoked.
#[test]
fn rules_allow_what_they_show() {
    let daemon = daemon(ASKS);
    let echo = |word: &str| json!({ "argv": ["echo", "hello", word] });
    let call = later(&daemon, "exec", &echo("you"), "one");
    let question = asked(&daemon);
    assert_eq!(question["pattern"], "exec: echo hello *", "{question}");
    assert_eq!(respond(&daemon, &question, true, "session").fields(), ["remember"], "there is no session");
    assert_eq!(respond(&daemon, &question, true, "always").status, 200);
    let answer = answer_of(call);
    assert_eq!((answer.status, &answer.json["output"]["stdout"]), (200, &json!("hello you\n")), "{answer:?}");
    assert_eq!(done(&daemon, "exec", echo("others"))["stdout"], "hello others\n", "nobody is asked");
    let rules = daemon.get("/tool-auth/rules").items();
    assert_eq!((&rules[0]["pattern"], &rules[0]["uses"]), (&json!("exec: echo hello *"), &json!(1)), "{rules:?}");
    assert_eq!(receipt(&daemon, "exec")["detail"]["rule"], rules[0]["id"]);
    let fed = |word: &str| json!({ "argv": ["echo", "hello", word], "stdin": "input" });
    let long = "x".repeat(5000);
    for (key, input, remember) in
        [("fed", fed("you"), json!(["once", "always"])), ("long", json!({ "argv": ["echo", long] }), json!(["once"]))]
    {
        let call = later(&daemon, "exec", &input, key);
        let question = asked(&daemon);
        assert_eq!(question["remember"], remember, "{question}");
        assert_eq!(respond(&daemon, &question, false, "once").status, 200, "another input is asked about");
        assert_eq!(answer_of(call).code(), "approval_denied");
    }
    let id = rules[0]["id"].as_str().expect("an id");
    let call = later(&daemon, "exec", &json!({ "argv": ["echo", "goodbye"] }), "two");
    assert_eq!(respond(&daemon, &asked(&daemon), false, "once").status, 200, "other words are asked about");
    assert_eq!(answer_of(call).code(), "approval_denied");
    assert_eq!(daemon.call("DELETE", &format!("/tool-auth/rules?id={id}"), None).json["deleted"], true);
    assert_eq!(daemon.call("DELETE", &format!("/tool-auth/rules?id={id}"), None).status, 404);
    let call = later(&daemon, "exec", &echo("you"), "three");
    assert_eq!(respond(&daemon, &asked(&daemon), false, "once").status, 200, "and what it allowed is, too");
    assert_eq!(answer_of(call).code(), "approval_denied");
    assert_eq!(daemon.get("/audit-log?action=approval.revoke&outcome=done").items().len(), 1);
}

/// Goal: what nobody answers expires by itself; it is told, on record, and cannot be answered any more.
#[test]
fn what_nobody_answers_expires() {
    let daemon = daemon(&format!("{ASKS}\napproval_time = \"1s\""));
    let call = later(&daemon, "publish_event", &json!({ "type": "too.late" }), "one");
    let question = asked(&daemon);
    assert_eq!(answer_of(call).code(), "approval_expired");
    ended_as(&daemon, "publish_event", "refused", json!("approval_expired"));
    assert_eq!(respond(&daemon, &question, true, "once").status, 409);
    assert!(daemon.recent("too.late").is_empty());
    assert_eq!(daemon.recent("aman.approval.expired")[0]["data"]["id"], question["id"]);
    assert_eq!(daemon.get("/audit-log?action=approval.expire").items()[0]["target"], question["id"]);
    assert_eq!(daemon.get("/tool-auth/pending").items().len(), 0);
}

/// Goal: a question survives SIGKILL; the same call finds it, is not asked about twice, and runs once.
#[test]
fn questions_survive_a_kill() {
    let folder = Folder::new("home");
    std::fs::write(folder.path().join("aman.toml"), format!("[tools]\n{ASKS}\n")).expect("aman.toml");
    let mut daemon = Daemon::start_in(folder.path());
    let input = json!({ "type": "after.all" });
    let call = later(&daemon, "publish_event", &input, "one");
    let question = asked(&daemon);
    daemon.kill();
    assert!(call.join().expect("no panic").is_err(), "nobody answered");
    daemon.again();
    let call = later(&daemon, "publish_event", &input, "one");
    assert_eq!(asked(&daemon)["id"], question["id"]);
    assert_eq!(respond(&daemon, &question, true, "once").status, 200);
    assert_eq!(answer_of(call).status, 200);
    assert_eq!(answer_of(later(&daemon, "publish_event", &input, "one")).status, 200, "the same answer again");
    assert_eq!(daemon.recent("after.all").len(), 1);
    // A daemon that ends well does not wait for answers, and keeps the question.
    let call = later(&daemon, "publish_event", &json!({ "type": "later.on" }), "two");
    let question = asked(&daemon);
    assert_eq!(daemon.terminate(), Some(0));
    let _cut = call.join().expect("no panic");
    daemon.again();
    assert_eq!(asked(&daemon)["id"], question["id"]);
}

/// Goal: what follows from content of the web loses commands and new hosts, whoever would agree, and is asked about each
/// time it writes; no rule is made of that.
#[test]
fn tainted_calls_lose_what_they_must_not_have() {
    let sources = ["run", "ask", "keep", "plan", "table", "save"]
        .map(|name| format!("[sources.{name}]\nkind = \"webhook\"\ntype = \"web.{name}\"\n"));
    let grants = format!("{ASKS}\nhosts = [\"example.org\"]\nsqlite = [\"rw:~/n.db\"]\n");
    let daemon = Daemon::configured(&format!("{}[tools]\n{grants}", sources.concat()));
    std::fs::create_dir(daemon.home().join("notes")).expect("a folder");
    let call = |name: &str, tool: &str, input: &Value| {
        let tasks = format!("do: [{{t: {{call: aman.tool, with: {{name: {tool}, input: {input}}}}}}}]");
        stored(&daemon, name, &format!("schedule: {{on: {{one: {{with: {{type: web.{name}}}}}}}}}\n{tasks}"));
        let token = format!("Bearer {TOKEN}");
        let body = json!({ "text": "do what I say" });
        let sent = daemon.send("POST", &format!("/hooks/{name}"), &[("authorization", &token)], Some(&body));
        assert!(sent.status < 300, "{sent:?}");
        let started = || daemon.get(&format!("/workflow-instances?workflow={name}")).items().pop();
        daemon.wait("the instance", started)["id"].as_str().expect("an id").to_owned()
    };
    for (name, tool, input) in [
        ("run", "exec", json!({ "argv": ["echo", "pwned"] })),
        ("ask", "http_fetch", json!({ "url": "https://evil.example/" })),
        ("keep", "memory_save", json!({ "text": "the owner likes it" })),
        ("plan", "schedule_add", json!({ "id": "later", "expression": "0 9 * * *" })),
    ] {
        let id = call(name, tool, &input);
        let ended = until(&daemon, &id, "faulted");
        assert!(ended["error"]["detail"].as_str().is_some_and(|why| why.contains("trust_too_low")), "{tool}: {ended}");
        let record = ended_as(&daemon, tool, "refused", json!("trust_too_low"));
        assert_eq!(
            (&record["detail"]["trust"], &record["principal"]),
            (&json!("web"), &json!(format!("workflow/{name}")))
        );
    }
    assert_eq!(daemon.get("/tool-auth/pending").items().len(), 0, "nobody can agree to that");
    let change = json!({ "database": "~/n.db", "sql": "CREATE TABLE t (n)" });
    let _waiting = call("table", "sqlite_query", &change);
    let question = asked(&daemon);
    assert_eq!((&question["tool"], &question["remember"]), (&json!("sqlite_query"), &json!(["once"])), "{question}");
    assert_eq!(respond(&daemon, &question, false, "once").status, 200);
    let id = call("save", "write", &json!({ "path": "~/notes/found.md", "content": "it" }));
    let question = asked(&daemon);
    assert_eq!((&question["trust"], &question["remember"]), (&json!("web"), &json!(["once"])), "{question}");
    assert_eq!(respond(&daemon, &question, true, "always").fields(), ["remember"]);
    assert_eq!(respond(&daemon, &question, true, "once").status, 200);
    assert_eq!(until(&daemon, &id, "completed")["output"]["bytes"], 2, "{}", instance(&daemon, &id));
    assert_eq!(std::fs::read_to_string(daemon.home().join("notes/found.md")).expect("it is there"), "it");
}
