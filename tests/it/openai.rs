//! Agents to the client of the official package `openai`: listed, asked, streamed; errors as that client reads them.

use std::process::Command;

use serde_json::{Value, json};

use crate::contract::{client, file};
use crate::harness::{Daemon, Folder, TOKEN};

/// What a model says here, whoever asks.
const SCRIPT: &str = "turns:\n- say: Good day to you, too.\n  usage: {input: 10, output: 5}\n\
    - say: [Now it, ' is', ' evening.']\n  usage: {input: 20, output: 5}\n- say: Still.\n";

/// Goal: a conversation that the client keeps is one session here, answered whole or streamed, with its usage; what agents do not
/// do is refused in the client's own terms; off, nobody gets in.
#[test]
fn agents_are_models_to_other_programs() {
    let folder = Folder::new("openai");
    let script = folder.path().join("turns.yaml");
    std::fs::write(&script, SCRIPT).expect("the script");
    let toml = format!(
        "[http]\nopenai = true\n[models]\ndefault = \"demo/script\"\n[providers.demo]\nkind = \"script\"\npath = \"{}\"\n",
        script.display()
    );
    let daemon = Daemon::configured(&toml);
    let made = daemon.post("/auth/token", &json!({ "sub": "editor", "scope": "chat" }));
    let token = made.json["token"].as_str().expect("a token");
    let mut talking = Command::new(client("python"));
    let output = talking.arg(file("openai_client.py")).args([&format!("http://{}/v1", daemon.address), token]).output();
    let output = output.expect("the client runs");
    assert!(output.status.success(), "{} {}", String::from_utf8_lossy(&output.stderr), daemon.log());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert!(said[0]["models"].as_array().is_some_and(|all| all.contains(&json!("aman"))), "{}", said[0]);
    assert_eq!(said[1], json!({ "said": "Good day to you, too.", "finish": "stop", "tokens": 15, "model": "aman" }));
    assert_eq!(said[2], json!({ "said": "Now it is evening.", "finish": "stop", "tokens": 25 }), "{}", said[2]);
    let codes: Vec<(&Value, &Value)> = said[4..].iter().map(|line| (&line["status"], &line["code"])).collect();
    let wanted = [(400, "unsupported_parameter"), (404, "not_found"), (400, "invalid_input")];
    let wanted: Vec<(Value, Value)> = wanted.iter().map(|(status, code)| (json!(status), json!(code))).collect();
    assert_eq!(codes, wanted.iter().map(|(status, code)| (status, code)).collect::<Vec<_>>(), "{said:?}");

    let sessions = daemon.all("/chat/sessions?limit=10");
    assert_eq!(
        sessions.len(),
        2,
        "a conversation that goes on stays in its session, an edited one begins another: {sessions:?}"
    );
    let id = sessions.last().expect("two")["id"].as_str().expect("an id");
    let history = daemon.all(&format!("/chat/session/{id}/history?limit=50"));
    let texts: Vec<&str> = history.iter().filter_map(|one| one["text"].as_str()).collect();
    assert_eq!(
        texts,
        ["Be brief.\n\nGood day", "Good day to you, too.", "And now?", "Now it is evening."],
        "{history:?}"
    );
    let audited = daemon.all("/audit-log?action=chat.complete");
    let done = audited.iter().filter(|row| row["outcome"] == "done" && row["principal"] == "editor").count();
    assert_eq!((audited.len(), done), (6, 3), "{audited:?}");

    let wrong = daemon.send("GET", "/v1/models", &[("authorization", "Bearer wrong")], None);
    assert_eq!((wrong.status, &wrong.json["error"]["code"]), (401, &json!("unauthorized")), "{wrong:?}");
    std::fs::write(daemon.home().join("aman.toml"), "").expect("aman.toml");
    assert_eq!(daemon.post("/config/reload", &json!({})).status, 200);
    let bearer = format!("Bearer {TOKEN}");
    let off = daemon.send("GET", "/v1/models", &[("authorization", &bearer)], None);
    assert_eq!((off.status, &off.json["error"]["code"]), (403, &json!("switched_off")), "{off:?}");
}

/// Goal: what cannot be answered is refused before anything is stored: no session is left behind without a model, and what a client
/// says was said before passes the same rules as what it says now.
#[test]
fn a_refused_conversation_leaves_nothing_behind() {
    let folder = Folder::new("openai-refused");
    let script = folder.path().join("turns.yaml");
    std::fs::write(&script, SCRIPT).expect("the script");
    let without = "[http]\nopenai = true\n[models]\ndetect = \"\"\n[content_policy]\ndeny = [\"gold\"]\n";
    let mut daemon = Daemon::configured(without);
    let ask = |daemon: &Daemon, before: &str| {
        let messages = json!([{ "role": "user", "content": before }, { "role": "assistant", "content": "So?" },
            { "role": "user", "content": "Go on" }]);
        daemon.post("/v1/chat/completions", &json!({ "model": "aman", "messages": messages }))
    };
    let none = ask(&daemon, "Good day");
    assert_eq!((none.status, &none.json["error"]["code"]), (503, &json!("no_model")), "{none:?}");
    let provider = format!("[providers.demo]\nkind = \"script\"\npath = \"{}\"\n", script.display());
    let with = without.replace("detect = \"\"", "default = \"demo/script\"") + &provider;
    std::fs::write(daemon.home().join("aman.toml"), with).expect("aman.toml");
    daemon.kill();
    daemon.again();
    let refused = ask(&daemon, "Where is the gold?");
    assert_eq!((refused.status, &refused.json["error"]["code"]), (400, &json!("content_policy")), "{refused:?}");
    assert_eq!(daemon.get("/chat/sessions").items().len(), 0);
    let good = ask(&daemon, "Good day");
    assert_eq!((good.status, daemon.get("/chat/sessions").items().len()), (200, 1), "{good:?}");
}
