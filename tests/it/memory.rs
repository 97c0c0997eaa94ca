//! Memory: facts with their source, found in any language, corrected, forgotten, exported; and who may write them.

use aman::bus::{self, Bus};
use aman::clock::Clock;
use aman::error::Error;
use aman::event::Trust;
use aman::memory::{Change, Memory, NewFact, Of, Writer};
use aman::store::{Durability, Store};
use serde_json::{Value, json};

use crate::harness::{Answer, Daemon, Folder};

fn add(daemon: &Daemon, body: Value) -> Answer {
    let answer = daemon.post("/memory", &body);
    assert_eq!(answer.status, 201, "{body}: {answer:?}");
    answer
}

fn id(answer: &Answer) -> String {
    answer.json["id"].as_str().expect("an id").to_owned()
}

fn texts(answer: &Answer) -> Vec<String> {
    answer.items().iter().map(|one| one["text"].as_str().expect("a text").to_owned()).collect()
}

/// Goal: facts are remembered with who said them, found by words of any script, corrected, forgotten; what is wrong is named.
#[test]
fn facts_are_kept_found_and_forgotten() {
    let mut daemon = Daemon::start();
    for (body, fields) in [
        (json!({}), vec!["text"]),
        (json!({ "text": " \n" }), vec!["text"]),
        (json!({ "text": "a".repeat(2001) }), vec!["text"]),
        (json!({ "text": "a\u{0}" }), vec!["text"]),
        (json!({ "text": "a", "tags": "b" }), vec!["tags"]),
        (json!({ "text": "a", "tags": ["ok", "not ok"] }), vec!["tags/1"]),
        (json!({ "text": "a", "agent_id": "No Agent" }), vec!["agent_id"]),
        (json!({ "text": "a", "nonsense": 1 }), vec!["nonsense"]),
    ] {
        let refused = daemon.post("/memory", &body);
        assert_eq!((refused.status, refused.fields()), (400, fields), "{body}: {refused:?}");
    }
    let tea = add(&daemon, json!({ "text": "Likes green tea, never coffee.", "tags": ["drinks"] }));
    assert_eq!(tea.header("location"), Some(format!("/memory/{}", id(&tea)).as_str()));
    assert_eq!(
        (&tea.json["source"], &tea.json["trust"], &tea.json["agent_id"]),
        (&json!("owner"), &json!("owner"), &Value::Null)
    );
    add(&daemon, json!({ "text": "Der Drucker heißt Jürgen.", "agent_id": "aman" }));
    add(&daemon, json!({ "text": "東京に住んでいる", "agent_id": "other" }));
    let again = daemon.post("/memory", &json!({ "text": "Likes green tea, never coffee.", "tags": ["tea"] }));
    assert_eq!(
        (again.status, id(&again), &again.json["tags"]),
        (200, id(&tea), &json!(["drinks", "tea"])),
        "{again:?}"
    );
    for (query, wanted) in [
        ("q=TEA", vec!["Likes green tea, never coffee."]),
        ("q=cof%20gre", vec!["Likes green tea, never coffee."]),
        ("q=tea%20beer", vec![]),
        ("q=drinks", vec!["Likes green tea, never coffee."]),
        ("q=jurgen", vec!["Der Drucker heißt Jürgen."]),
        ("q=%E6%9D%B1%E4%BA%AC", vec!["東京に住んでいる"]),
        ("q=%22OR%22%20*%20NOT", vec![]),
        ("q=tokyo&agent_id=aman", vec![]),
        ("agent_id=aman", vec!["Der Drucker heißt Jürgen.", "Likes green tea, never coffee."]),
        ("shared", vec!["Likes green tea, never coffee."]),
        ("agent_id=nobody", vec!["Likes green tea, never coffee."]),
    ] {
        assert_eq!(texts(&daemon.get(&format!("/memory?{query}"))), wanted, "{query}");
    }
    assert_eq!(daemon.all("/memory?limit=1").len(), 3);
    let path = format!("/memory/{}", id(&tea));
    let edited = daemon.post(&path, &json!({ "text": "Likes black tea." }));
    assert_eq!((edited.status, &edited.json["tags"]), (200, &json!(["drinks", "tea"])), "{edited:?}");
    assert_eq!((texts(&daemon.get("/memory?q=green")).len(), texts(&daemon.get("/memory?q=black")).len()), (0, 1));
    assert_eq!(daemon.post(&path, &json!({})).status, 400);
    let taken = daemon.post(&path, &json!({ "text": "Likes black tea.", "tags": [] }));
    assert_eq!((taken.status, &taken.json["tags"]), (200, &json!([])), "{taken:?}");
    daemon.kill();
    daemon.again();
    assert_eq!(daemon.get(&path).json["text"], "Likes black tea.");
    assert_eq!(daemon.call("DELETE", &path, None).json, json!({ "deleted": true }));
    assert_eq!((daemon.call("DELETE", &path, None).status, daemon.get(&path).status), (404, 404));
    assert_eq!(texts(&daemon.get("/memory?q=tea")), Vec::<String>::new());
    let other = id(&daemon.post("/memory", &json!({ "text": "Gone soon." })));
    assert_eq!(daemon.call("DELETE", &format!("/memory?id={other}"), None).status, 200);
    assert_eq!(daemon.call("DELETE", "/memory", None).fields(), ["id"]);
    for action in ["memory.add", "memory.edit", "memory.forget"] {
        let records = daemon.all(&format!("/audit-log?action={action}&outcome=done"));
        assert!(!records.is_empty(), "{action} is on record");
        assert!(!json!(records).to_string().contains("tea"), "and what was forgotten is not: {records:?}");
    }
}

/// Goal: what was forgotten or corrected is not in the file any more, neither as a fact nor as words of the index.
#[test]
fn what_is_forgotten_is_out_of_the_file() {
    let mut daemon = Daemon::start();
    let fact = add(&daemon, json!({ "text": "Xylophones are quokkaesque.", "tags": ["zwieback"] }));
    let other = add(&daemon, json!({ "text": "Likes tea and kumquats." }));
    for n in 0..20 {
        add(&daemon, json!({ "text": format!("Number {n} stays.") }));
    }
    let kept = |daemon: &mut Daemon| {
        assert_eq!(daemon.terminate(), Some(0));
        let text = String::from_utf8_lossy(&std::fs::read(daemon.home().join("aman.db")).expect("the database"))
            .to_lowercase();
        ["xylophones", "quokkaesque", "zwieback", "kumquats"].map(|word| text.contains(word))
    };
    assert_eq!(kept(&mut daemon), [true; 4], "they are where this test looks");
    daemon.again();
    assert_eq!(daemon.call("DELETE", &format!("/memory/{}", id(&fact)), None).status, 200);
    assert_eq!(daemon.post(&format!("/memory/{}", id(&other)), &json!({ "text": "Likes tea." })).status, 200);
    assert_eq!(kept(&mut daemon), [false; 4]);
}

/// Goal: everything can be taken along, as JSON and as Markdown, and the command line does all of it.
#[test]
fn memory_is_exported_and_edited_by_command() {
    let daemon = Daemon::start();
    let (code, out, error) = daemon.cli(&["memory", "add", "Lives in\nRiga.", "--tag", "home,city"]);
    assert_eq!(code, 0, "{out} {error}");
    let (id, _) = out.split_once(' ').expect("an id");
    assert_eq!(daemon.cli(&["memory", "add", "Own.", "--agent", "helper"]).0, 0);
    let markdown = daemon.get("/memory/export?format=md");
    assert_eq!(markdown.header("content-type"), Some("text/markdown; charset=utf-8"));
    let text = String::from_utf8(markdown.body).expect("UTF-8");
    let wanted = "# Memory\n\n## Shared by all agents\n\n- Lives in Riga. #city #home (owner, owner, ";
    assert!(text.starts_with(wanted) && text.contains("\n## helper\n\n- Own. (owner, owner, "), "{text}");
    let json = daemon.get("/memory/export").json;
    assert_eq!(
        (json["items"][0]["text"].as_str(), json["items"].as_array().map(Vec::len)),
        (Some("Lives in\nRiga."), Some(2))
    );
    let file = daemon.home().join("export.json");
    let (code, out, error) =
        daemon.cli(&["memory", "export", "--to", &file.display().to_string(), "--agent", "helper"]);
    assert_eq!(code, 0, "{out} {error}");
    let kept: Value = serde_json::from_slice(&std::fs::read(&file).expect("a file")).expect("JSON");
    assert_eq!(kept["items"].as_array().map(Vec::len), Some(2));
    assert!(daemon.cli(&["memory", "edit", id, "Lives in Tartu."]).1.contains("is corrected"));
    assert!(daemon.cli(&["memory", "search", "tartu"]).1.contains("Lives in Tartu."));
    assert!(daemon.cli(&["memory", "list"]).1.contains("helper"));
    assert!(daemon.cli(&["memory", "forget", id]).1.contains("is forgotten"));
    assert!(daemon.cli(&["memory", "search", "tartu"]).1.contains("Nothing"));
    assert_eq!(daemon.cli(&["memory", "forget", id]).0, 1);
}

/// Goal: memory is tools of agents: they save, search and forget through the gate, and saving twice is saving once.
#[test]
fn memory_is_tools() {
    let daemon = Daemon::start();
    let call = |tool: &str, input: Value| daemon.post(&format!("/tools/{tool}/execute"), &json!({ "input": input }));
    let tools = daemon.get("/tools?limit=1000").items();
    for (name, permission) in [("memory_search", "read"), ("memory_save", "remember"), ("memory_forget", "remember")] {
        let tool = tools.iter().find(|tool| tool["name"] == name).unwrap_or_else(|| panic!("no {name}"));
        assert_eq!((&tool["permission"], &tool["repeatable"]), (&json!(permission), &json!(true)), "{tool}");
    }
    let saved = call("memory_save", json!({ "text": "The gate code is in the drawer.", "tags": ["home"] }));
    assert_eq!(saved.status, 200, "{saved:?}");
    let id = saved.json["output"]["id"].as_str().expect("an id").to_owned();
    let again = call("memory_save", json!({ "text": "The gate code is in the drawer." }));
    assert_eq!(again.json["output"]["id"], id.as_str());
    assert_eq!(call("memory_save", json!({ "text": "" })).status, 400);
    assert_eq!(call("memory_save", json!({ "words": "x" })).status, 400);
    let found = call("memory_search", json!({ "query": "gate" }));
    assert_eq!(found.json["output"]["items"][0]["text"], "The gate code is in the drawer.");
    assert_eq!(call("memory_search", json!({})).json["output"]["items"].as_array().map(Vec::len), Some(1));
    assert_eq!(call("memory_forget", json!({ "id": id })).json["output"]["forgotten"], true);
    assert_eq!(call("memory_forget", json!({ "id": id })).json["output"]["forgotten"], false);
}

/// Goal: below paired nobody writes, corrects or forgets; a secret that is known is not remembered; recalling prefers rare
/// words and fills up with what is new; an agent sees its own and the shared ones only.
#[tokio::test]
async fn who_is_not_believed_writes_nothing() {
    let folder = Folder::new("memory");
    let store = Store::open(&folder.path().join("aman.db"), Durability::Normal).expect("a database");
    let memory = Memory::new(&Bus::new(store, Clock::manual(1_795_362_000_000), bus::Settings::default()));
    let by = |trust| Writer { source: "somebody".to_owned(), trust };
    let fact = |agent: Option<&str>, text: &str| NewFact {
        agent: agent.map(str::to_owned),
        text: text.to_owned(),
        tags: Vec::new(),
    };
    let none = || Box::new(|_: &mut aman::store::Tx<'_>, _: &aman::memory::Shown| Ok(()));
    let (known, _) = memory.remember(fact(None, "Known."), by(Trust::Paired), none()).await.expect("paired may");
    for trust in [Trust::Unknown, Trust::Web, Trust::Plugin, Trust::Group] {
        let refused = |error: Error| matches!(error, Error::Forbidden { code: "trust_too_low", .. });
        let change = Change { text: Some("Other.".to_owned()), tags: None };
        assert!(refused(memory.remember(fact(None, "New."), by(trust), none()).await.expect_err("no")), "{trust:?}");
        assert!(refused(memory.edit(&known.id, change, by(trust), none()).await.expect_err("no")), "{trust:?}");
        assert!(refused(memory.forget(&known.id, Of::All, by(trust), none()).await.expect_err("no")), "{trust:?}");
    }
    assert_eq!(memory.list(Of::All, None, 9).await.expect("read"), [known]);
    aman::redact::learn("canary-of-the-memory");
    let (kept, _) =
        memory.remember(fact(None, "It is canary-of-the-memory."), by(Trust::Owner), none()).await.expect("kept");
    assert_eq!(kept.text, "It is redacted.");
    for (agent, text) in [
        (Some("a"), "The invoice of the tax office is due in May."),
        (Some("a"), "The cat is called Mia."),
        (Some("b"), "The tax number is secret to b."),
        (None, "The house is old."),
    ] {
        memory.remember(fact(agent, text), by(Trust::Owner), none()).await.expect("remembered");
    }
    let recalled = memory.recall("a", "When are the invoices for the tax office due?", 2).await.expect("read");
    assert_eq!(recalled[0].text, "The invoice of the tax office is due in May.");
    let all: Vec<String> = memory.recall("a", "?", 9).await.expect("read").into_iter().map(|one| one.text).collect();
    assert_eq!(all.len(), 5, "its own and the shared ones: {all:?}");
    assert!(!all.iter().any(|text| text.contains("secret to b")), "{all:?}");
}
