//! Every end that a call of a tool in a turn can have: what its step says, what the model is told, what is on record, and that
//! nothing was done that must not be. And budgets: less is spent first, then nothing.

use std::path::Path;

use serde_json::{Value, json};

use super::{ask, finished, pending};
use crate::harness::{Daemon, Folder};
use crate::models::stub::{Reply, Stub};

/// Steps of the journal as they are stored.
const DONE: i64 = 1;
const FAILED: i64 = 2;

/// One way for a call to end.
struct Case {
    /// The agent, and what its file says besides.
    agent: &'static str,
    definition: &'static str,
    tool: &'static str,
    input: fn(&str) -> Value,
    /// What becomes of the question about it; none = nobody is asked.
    answer: Option<Answer>,
    step: i64,
    /// What the model is told.
    told: &'static str,
    outcome: &'static str,
    code: Option<&'static str>,
    /// What is in the file that it would write.
    file: Option<&'static str>,
}

#[derive(Clone, Copy, PartialEq)]
enum Answer {
    Yes,
    No,
    /// Yes, when the file is no longer what it was.
    Late,
    Never,
}

fn note(agent: &str) -> Value {
    json!({ "path": format!("~/notes/{agent}.txt"), "content": "written" })
}

const ASKS: &str = "[tools]\nwrite = [\"~/notes\"]\napprove = [\"write\"]";

#[rustfmt::skip]
const CASES: [Case; 8] = [
    Case { agent: "refused", definition: "[tools]\nwrite = [\"~/notes\"]\ndeny = [\"write\"]", tool: "write", input: note,
        answer: None, step: FAILED, told: "Refused (tool_denied)", outcome: "refused", code: Some("tool_denied"), file: None },
    Case { agent: "approved", definition: ASKS, tool: "write", input: note, answer: Some(Answer::Yes), step: DONE,
        told: "approved.txt", outcome: "done", code: None, file: Some("written") },
    Case { agent: "denied", definition: ASKS, tool: "write", input: note, answer: Some(Answer::No), step: FAILED,
        told: "Refused (approval_denied)", outcome: "refused", code: Some("approval_denied"), file: None },
    Case { agent: "changed", definition: ASKS, tool: "write", input: note, answer: Some(Answer::Late), step: FAILED,
        told: "Refused (approval_changed)", outcome: "refused", code: Some("approval_changed"), file: Some("changed meanwhile") },
    Case { agent: "tainted", definition: "trust = \"web\"\n[tools]\nexec = [\"touch\"]\nwrite = [\"~/notes\"]", tool: "exec",
        input: |agent| json!({ "argv": ["touch", format!("~/notes/{agent}.txt")] }), answer: None, step: FAILED,
        told: "Refused (trust_too_low)", outcome: "refused", code: Some("trust_too_low"), file: None },
    Case { agent: "alone", definition: "[tools]\nwrite = [\"~/notes\"]\napprove = [\"write\"]\nunattended = true", tool: "write",
        input: note, answer: None, step: FAILED, told: "Refused (no_approver)", outcome: "refused", code: Some("no_approver"),
        file: None },
    // Whom it asks has nothing left to spend.
    Case { agent: "spender", definition: "", tool: "delegate", input: |_| json!({ "agent": "poor", "task": "case poor" }),
        answer: None, step: FAILED, told: "The budget of agent/poor does not suffice", outcome: "failed",
        code: Some("tool_failed"), file: None },
    Case { agent: "expired", definition: ASKS, tool: "write", input: note, answer: Some(Answer::Never), step: FAILED,
        told: "Refused (approval_expired)", outcome: "refused", code: Some("approval_expired"), file: None },
];

/// The messages that a request shows.
fn messages(request: &str) -> Vec<Value> {
    let (_, body) = request.split_once("\r\n\r\n").expect("a body");
    let body: Value = serde_json::from_str(body).expect("JSON");
    body["messages"].as_array().expect("messages").clone()
}

/// A model that asks for the call of the case that the agent's instructions name, then says what came of it.
fn model() -> Stub {
    Stub::thinking(|request| {
        let messages = messages(request);
        if let Some(result) = messages.iter().rev().find(|message| message["role"] == "tool") {
            return Reply::words(&[&format!("it said: {}", result["content"])]);
        }
        let system = messages[0]["content"].to_string();
        let case = CASES.iter().find(|case| system.contains(&format!("case {}.", case.agent))).expect("a case");
        Reply::call("", "call-1", case.tool, &(case.input)(case.agent))
    })
}

/// A daemon whose models are `stub/m` and, where it is to save, `stub/small`.
fn start(home: &Path, stub: &Stub, agents: &[(&str, String)]) -> Daemon {
    let toml = format!(
        "[models]\ndefault = \"stub/m\"\ncheap = \"stub/small\"\nmax_retries = 0\n[providers.stub]\nkind = \"openai\"\n\
         url = \"{}\"\nmodels = [\"m\", \"small\"]\n",
        stub.url()
    );
    std::fs::write(home.join("aman.toml"), toml).expect("aman.toml");
    for folder in ["agents", "notes"] {
        std::fs::create_dir_all(home.join(folder)).expect("a folder");
    }
    for (id, text) in agents {
        std::fs::write(home.join(format!("agents/{id}.toml")), text).expect("an agent");
    }
    Daemon::start_in(home)
}

/// The steps of an agent's turns that are of this kind: 0 answers, 1 calls.
fn steps(daemon: &Daemon, agent: &str, kind: i64) -> Vec<(String, i64, String)> {
    let db = rusqlite::Connection::open(daemon.home().join("aman.db")).expect("the database");
    let text = "SELECT s.name, s.status, s.body FROM turn_step s JOIN turn t ON t.number = s.turn \
                WHERE t.agent = ?1 AND s.kind = ?2 ORDER BY s.turn, s.number";
    let mut found = db.prepare(text).expect("the journal");
    let rows = found.query_map(rusqlite::params![agent, kind], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
    rows.expect("rows").collect::<Result<_, _>>().expect("steps")
}

/// Records of an action that are about an agent.
fn records(daemon: &Daemon, action: &str, agent: &str) -> Vec<Value> {
    let mut all = daemon.all(&format!("/audit-log?action={action}&limit=100"));
    let scope = format!("\"agent/{agent}\"");
    all.retain(|record| record["detail"]["agent"] == agent || record.to_string().contains(&scope));
    all
}

/// Answers the question of a case.
fn answer(daemon: &Daemon, case: &Case, answer: Answer) {
    let asked = daemon.wait("the question", || pending(daemon).into_iter().find(|one| one["agent"] == case.agent));
    let file = daemon.home().join(format!("notes/{}.txt", case.agent));
    assert!(!file.exists(), "{}: nothing is done before the answer", case.agent);
    if answer == Answer::Never {
        return;
    }
    if answer == Answer::Late {
        std::fs::write(file, "changed meanwhile").expect("a file");
    }
    let body = json!({ "auth_id": asked["id"], "approved": answer != Answer::No });
    assert_eq!(daemon.post("/tool-auth/respond", &body).status, 200);
    let answered = daemon.all("/audit-log?action=approval.respond&limit=100");
    assert_eq!(answered.iter().filter(|record| record["target"] == asked["id"]).count(), 1, "{answered:?}");
}

/// Goal: refused, approved, denied, changed after the approval, expired, tainted, without anybody to ask, over budget: each end of
/// a call is in its step, told to the model, in the audit log just once, and has done what it may, which is nothing but once.
#[test]
fn every_end_of_a_call_in_a_turn_is_told_and_on_record() {
    let (folder, stub) = (Folder::new("turn-cases"), model());
    let agent = |case: &Case| format!("instructions = \"case {}.\"\n{}", case.agent, case.definition);
    let mut agents: Vec<(&str, String)> = CASES.iter().map(|case| (case.agent, agent(case))).collect();
    agents.push(("poor", "[budget]\nday_tokens = 10".to_owned()));
    let daemon = start(folder.path(), &stub, &agents);
    for case in &CASES {
        if case.answer == Some(Answer::Never) {
            let toml = std::fs::read_to_string(folder.path().join("aman.toml")).expect("aman.toml");
            let toml = format!("{toml}[tools]\napproval_time = \"1s\"\n");
            std::fs::write(folder.path().join("aman.toml"), toml).expect("aman.toml");
            assert_eq!(daemon.post("/config/reload", &json!({})).status, 200);
        }
        let (name, id) = (case.agent, ask(&daemon, case.agent));
        if let Some(wanted) = case.answer {
            answer(&daemon, case, wanted);
        }
        let said = finished(&daemon, &id)["text"].as_str().expect("text").to_owned();
        assert!(said.contains(case.told), "{name}: {said}");
        let steps = steps(&daemon, name, 1);
        assert_eq!(steps.len(), 1, "{name}: {steps:?}");
        assert_eq!((steps[0].0.as_str(), steps[0].1), (case.tool, case.step), "{name}: {steps:?}");
        assert!(steps[0].2.contains(case.told), "{name}: {steps:?}");
        let records = records(&daemon, "tool.execute", name);
        assert_eq!(records.len(), 1, "{name}: {records:?}");
        assert_eq!(
            (&records[0]["outcome"], &records[0]["detail"]["code"], &records[0]["target"]),
            (&json!(case.outcome), &json!(case.code), &json!(case.tool)),
            "{}",
            records[0]
        );
        let file = std::fs::read_to_string(daemon.home().join(format!("notes/{name}.txt"))).ok();
        assert_eq!(file.as_deref(), case.file, "{name}");
    }
    assert_eq!(records(&daemon, "approval.expire", "expired").len(), 1);
    assert_eq!(records(&daemon, "budget.reserve", "poor").len(), 1);
    assert_eq!(
        (pending(&daemon).len(), steps(&daemon, "poor", 0).len()),
        (0, 0),
        "nobody waits, and no model was paid"
    );
    let (code, out, error) = daemon.cli(&["audit", "verify"]);
    assert_eq!(code, 0, "{out} {error}");
}

/// Goal: where a budget runs low the cheaper model is asked; where it is spent nobody is, the turn ends with its reason, and the
/// person is told, once.
#[test]
fn a_budget_saves_first_and_then_ends_the_turn() {
    let folder = Folder::new("turn-budget");
    // The first answer takes it beyond the soft limit, the second beyond the hard one.
    let stub = Stub::thinking(|request| {
        let results = messages(request).iter().filter(|message| message["role"] == "tool").count();
        let cost = if results == 0 { 850_000 } else { 200_000 };
        Reply::call("", &format!("call-{results}"), "memory_save", &json!({ "text": format!("fact {results}") }))
            .costing(cost)
    });
    let saver = "max_tokens = 50\n[budget]\nday_tokens = 1000000".to_owned();
    let daemon = start(folder.path(), &stub, &[("saver", saver)]);
    let id = ask(&daemon, "saver");
    daemon.until(&id, "dead");
    let asked: Vec<Value> = stub
        .requests()
        .iter()
        .map(|request| {
            let (_, body) = request.split_once("\r\n\r\n").expect("a body");
            serde_json::from_str::<Value>(body).expect("JSON")["model"].clone()
        })
        .collect();
    assert_eq!(asked, ["m", "small"], "first what is wanted, then what is cheap, then nobody");
    assert_eq!(steps(&daemon, "saver", 0).len(), 2);
    let calls: Vec<i64> = steps(&daemon, "saver", 1).into_iter().map(|(_, status, _)| status).collect();
    assert_eq!(calls, [DONE, DONE], "what was asked for before the end is done");
    assert_eq!(records(&daemon, "tool.execute", "saver").len(), 2);
    let letters = daemon.get("/dlq?consumer=agent/saver").items();
    assert!(
        letters[0]["error_chain"].to_string().contains("The budget of agent/saver does not suffice"),
        "{letters:?}"
    );
    let db = rusqlite::Connection::open(daemon.home().join("aman.db")).expect("the database");
    let error: String = db.query_row("SELECT error FROM turn", [], |row| row.get(0)).expect("one turn");
    assert!(error.contains("\"over_budget\""), "{error}");
    let refused = records(&daemon, "budget.reserve", "saver");
    assert!(refused.len() == 1 && refused[0]["outcome"] == "refused", "{refused:?}");
    let told = daemon.get("/notifications").items();
    let told: Vec<&Value> = told.iter().filter(|one| one["category"] == "budget").collect();
    assert_eq!(told.len(), 1, "{told:?}");
    let usage = daemon.get("/usage").json;
    let saver = usage["items"].as_array().expect("items").iter().find(|one| one["scope"] == "agent/saver").cloned();
    let saver = saver.unwrap_or_default();
    assert_eq!(
        (&saver["calls"], &saver["input"], &saver["refused"]),
        (&json!(2), &json!(1_050_000), &json!(1)),
        "{usage}"
    );
}
