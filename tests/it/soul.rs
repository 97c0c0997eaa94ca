//! The soul: written over HTTP and by hand, checked, kept, brought back, and what it forbids.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::chat;
use crate::harness::{Answer, Daemon, Folder, TOKEN, exchange, request};

const BOUNDED: &str = "---\nname: Otto\nboundaries:\n  - name: no-payments\n    topic: [bank transfer, '/\\biban\\b/']\n    \
                       tools: [memory_forget]\n    says: You pay yourself.\npreferences: {tone: dry}\n---\n\nYou are brief.\n";

fn named(name: &str) -> String {
    format!("---\nname: {name}\n---\n\nText of {name}.\n")
}

fn update(daemon: &Daemon, content: &str) -> Answer {
    daemon.post("/soul/update", &json!({ "content": content }))
}

fn info(daemon: &Daemon) -> Value {
    daemon.get("/soul/info").json
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_else(|| panic!("{name} is no text in {value}"))
}

/// Goal: a text is checked before anything changes, is in force, in the file and on record after.
#[test]
fn texts_are_checked_and_kept() {
    let daemon = Daemon::start();
    let first = info(&daemon);
    assert_eq!((text(&first, "name"), text(&first, "origin"), &first["problem"]), ("aman", "bundled", &Value::Null));
    assert!(text(&first, "last_changed_at").starts_with("20"), "{first}");
    let file = daemon.home().join("soul/SOUL.md");
    assert!(!file.exists(), "the text that comes with aman needs none");
    for (body, field) in [
        (json!({}), "content"),
        (json!({ "content": "no front matter" }), "front matter"),
        (json!({ "content": "---\nname: a\nboundaries:\n  - {name: b, topic: '/(/'}\n---\n" }), "boundaries/0/topic"),
        (json!({ "content": format!("---\nname: a\n---\nThe token is {TOKEN}.") }), "content"),
        (json!({ "content": named("a"), "expected_digest": "xyz" }), "expected_digest"),
        (json!({ "content": named("a"), "extra": 1 }), "extra"),
    ] {
        let refused = daemon.post("/soul/update", &body);
        assert_eq!((refused.status, refused.fields()), (400, vec![field]), "{body}: {refused:?}");
        assert!(!String::from_utf8_lossy(&refused.body).contains(TOKEN), "{refused:?}");
    }
    let broken = update(&daemon, "---\nname: a\nboundaries:\n  - {name: b, topic: '/(/'}\n---\n");
    assert!(text(&broken.json, "detail").contains("line 4"), "{broken:?}");
    let dry = daemon.post("/soul/update?dry_run=true", &json!({ "content": BOUNDED }));
    assert_eq!((dry.status, text(&dry.json, "name"), &dry.json["dry_run"]), (200, "Otto", &json!(true)), "{dry:?}");
    assert_eq!(info(&daemon)["digest"], first["digest"]);
    let stale = daemon.post("/soul/update", &json!({ "content": BOUNDED, "expected_digest": "0".repeat(64) }));
    assert_eq!((stale.status, stale.code()), (409, "version_conflict"), "{stale:?}");
    let done = daemon.post("/soul/update", &json!({ "content": BOUNDED, "expected_digest": first["digest"] }));
    assert_eq!((done.status, text(&done.json, "name")), (200, "Otto"), "{done:?}");
    assert_eq!(fs::read_to_string(&file).expect("the file"), BOUNDED);
    assert_eq!(daemon.get("/soul/raw").json["raw"], BOUNDED);
    let prompt = daemon.get("/soul/system-prompt").json;
    for wanted in ["You are Otto.", "You are brief.", "- no-payments; topics: bank transfer", "- tone: dry"] {
        assert!(text(&prompt, "system_prompt").contains(wanted), "{prompt}");
    }
    let prompt = daemon.get("/soul/system-prompt?agent_id=aman").json;
    assert!(text(&prompt, "system_prompt").starts_with("You are Otto, working as the agent aman."), "{prompt}");
    assert_eq!(daemon.get("/soul/system-prompt?agent_id=nobody").status, 404);
    let record = daemon.all("/audit-log?action=soul.update&outcome=done").remove(0);
    assert_eq!(
        (&record["before_digest"], &record["after_digest"]),
        (&first["digest"], &done.json["digest"]),
        "{record}"
    );
    assert_eq!(daemon.recent("aman.soul.changed").len(), 1);
    // Twice the same is no new text.
    assert_eq!(update(&daemon, BOUNDED).status, 200);
    assert_eq!(daemon.get("/soul/versions").items().len(), 2);
}

/// Goal: every text can be had again, by its number or its digest, as a new entry of the history, which survives a kill.
#[test]
fn earlier_texts_come_back() {
    let mut daemon = Daemon::start();
    let first = info(&daemon);
    assert_eq!(update(&daemon, BOUNDED).status, 200);
    assert_eq!(daemon.post("/soul/rollback", &json!({ "version": 1 })).code(), "confirmation_required");
    for (body, status, code) in [
        (json!({}), 400, "invalid_input"),
        (json!({ "version": 1, "digest": "abcd" }), 400, "invalid_input"),
        (json!({ "version": 77 }), 404, "not_found"),
        (json!({ "digest": "ffffffff" }), 404, "not_found"),
        (json!({ "version": 2 }), 409, "invalid_state"),
    ] {
        let refused = daemon.post_confirmed("/soul/rollback", &body);
        assert_eq!((refused.status, refused.code()), (status, code), "{body}: {refused:?}");
    }
    let back = daemon.post_confirmed("/soul/rollback", &json!({ "digest": text(&first, "digest")[..8] }));
    assert_eq!(
        (back.status, &back.json["digest"], text(&back.json, "origin")),
        (200, &first["digest"], "api"),
        "{back:?}"
    );
    let versions = daemon.get("/soul/versions?limit=2");
    let numbers: Vec<i64> = versions.items().iter().filter_map(|one| one["version"].as_i64()).collect();
    assert_eq!((numbers, versions.json["next_cursor"].is_string()), (vec![3, 2], true));
    assert_eq!(versions.items()[0]["current"], true);
    assert_eq!(daemon.all("/soul/versions?limit=1").len(), 3);
    daemon.kill();
    daemon.again();
    assert_eq!(info(&daemon)["digest"], first["digest"]);
    let (code, out, error) = daemon.cli(&["soul", "rollback", "2", "--yes"]);
    assert_eq!((code, text(&info(&daemon), "name")), (0, "Otto"), "{out} {error}");
    assert_eq!(daemon.get("/audit-log/verify").json["ok"], true);
}

/// Goal: what is saved in the file is in force with the next look, is in the history, and survives; a broken file, or none,
/// changes nothing but what is told, and is kept when another text takes its place.
#[test]
fn the_file_may_be_edited_by_hand() {
    let folder = Folder::new("soul");
    let file = folder.path().join("soul/SOUL.md");
    let write = |text: &str| {
        fs::create_dir_all(folder.path().join("soul")).expect("a folder");
        fs::write(&file, text).expect("the file");
    };
    write(&named("first"));
    let mut daemon = Daemon::start_in(folder.path());
    assert_eq!((text(&info(&daemon), "name"), text(&info(&daemon), "origin")), ("first", "file"));
    write(&named("second"));
    assert_eq!(text(&info(&daemon), "name"), "second");
    daemon.wait("the history", || (daemon.get("/soul/versions").items().len() == 3).then_some(()));
    let record = daemon.all("/audit-log?action=soul.edit").remove(0);
    assert_eq!((text(&record, "principal"), &record["after_digest"]), ("file", &info(&daemon)["digest"]), "{record}");
    write("---\nname: third\nboundarys: []\n---\n");
    let broken = info(&daemon);
    assert_eq!(text(&broken, "name"), "second");
    assert!(text(&broken, "problem").contains("line 3") && text(&broken, "problem").contains("boundaries"), "{broken}");
    assert_eq!(daemon.get("/runtime/status").json["subsystems"]["soul"]["state"], "degraded");
    daemon.wait("a notification", || {
        let told = daemon.get("/notifications").items();
        told.iter().any(|one| one["category"] == "soul").then_some(())
    });
    daemon.kill();
    daemon.again();
    assert_eq!((text(&info(&daemon), "name"), info(&daemon)["problem"].is_string()), ("second", true));
    assert_eq!(update(&daemon, &named("fourth")).status, 200);
    assert_eq!(info(&daemon)["problem"], Value::Null);
    let kept = fs::read_to_string(folder.path().join("soul/SOUL.broken.md")).expect("what was broken is kept");
    assert!(kept.contains("third"), "{kept}");
    fs::remove_file(&file).expect("ours");
    assert_eq!((text(&info(&daemon), "name"), info(&daemon)["problem"].is_string()), ("fourth", true));
    assert_eq!(update(&daemon, &named("fourth")).status, 200);
    assert_eq!(
        (fs::read_to_string(&file).expect("it is back"), info(&daemon)["problem"].clone()),
        (named("fourth"), Value::Null)
    );
    // A link stays one.
    let real = folder.path().join("dotfiles.md");
    fs::rename(&file, &real).expect("ours");
    std::os::unix::fs::symlink(&real, &file).expect("a link");
    assert_eq!(update(&daemon, &named("fifth")).status, 200);
    assert!(file.symlink_metadata().expect("there").is_symlink());
    assert_eq!(fs::read_to_string(&real).expect("the real one"), named("fifth"));
    assert_eq!(daemon.get("/audit-log/verify").json["ok"], true);
}

/// Goal: SIGKILL at any moment of an update leaves the old text or the new one in force, and the same in the file.
#[test]
fn a_killed_update_is_whole_or_not_at_all() {
    let folder = Folder::new("soul-kill");
    let mut daemon = Daemon::start_in(folder.path());
    assert_eq!(update(&daemon, &named("n0")).status, 200);
    let begun = std::time::Instant::now();
    assert_eq!(update(&daemon, &named("n1")).status, 200);
    let took = begun.elapsed();
    let (mut before, mut done) = ("n1".to_owned(), 0);
    for round in 0..8_u32 {
        let wanted = format!("round{round}");
        let body = json!({ "content": named(&wanted) }).to_string();
        let token = format!("Bearer {TOKEN}");
        let headers = [("authorization", token.as_str()), ("content-type", "application/json")];
        let bytes = request("POST", "/soul/update", &headers, body.as_bytes());
        let address = daemon.address.clone();
        let asking = std::thread::spawn(move || exchange(&address, &bytes));
        std::thread::sleep(took * round / 6);
        daemon.kill();
        let answered = asking.join().expect("no panic").is_ok_and(|answer| answer.status == 200);
        daemon.again();
        let now = text(&info(&daemon), "name").to_owned();
        assert!(now == wanted || (now == before && !answered), "round {round}: {now}");
        assert_eq!(fs::read_to_string(folder.path().join("soul/SOUL.md")).expect("the file"), named(&now));
        assert_eq!(info(&daemon)["problem"], Value::Null);
        let newest = daemon.get("/soul/versions?limit=1").items().remove(0);
        assert_eq!((text(&newest, "origin"), &newest["digest"]), ("api", &info(&daemon)["digest"]), "{newest}");
        done += u32::from(now == wanted);
        before = now;
    }
    crate::harness::say(&format!("{done} of 8 updates were done"));
    let left: Vec<_> = fs::read_dir(folder.path().join("soul")).expect("the folder").flatten().collect();
    assert!(left.len() <= 2, "nothing piles up: {left:?}");
}

/// Goal: a boundary forbids tools that it names and arguments that have its topics, for the owner too, and says which it is;
/// what is allowed again is allowed at once.
#[test]
fn boundaries_forbid_calls_of_tools() {
    let daemon = Daemon::start();
    let call = |tool: &str, input: Value| daemon.post(&format!("/tools/{tool}/execute"), &json!({ "input": input }));
    assert_eq!(update(&daemon, BOUNDED).status, 200);
    for (tool, input, status) in [
        ("memory_forget", json!({ "id": "x" }), 403),
        ("memory_save", json!({ "text": "Make the BÁNK-Transfer." }), 403),
        ("memory_save", json!({ "text": "x", "tags": ["IBAN"] }), 403),
        ("memory_save", json!({ "text": "Transfer the bank." }), 200),
        ("memory_search", json!({ "query": "banks" }), 200),
    ] {
        let answer = call(tool, input.clone());
        assert_eq!(answer.status, status, "{tool} {input}: {answer:?}");
        if status == 403 {
            assert_eq!(answer.code(), "soul_boundary", "{answer:?}");
            let detail = text(&answer.json, "detail");
            assert!(detail.contains("no-payments") && detail.contains("You pay yourself."), "{detail}");
        }
    }
    let refused = daemon.all("/audit-log?action=tool.call&outcome=refused");
    assert!(refused.len() >= 3 || !daemon.all("/audit-log?outcome=refused").is_empty(), "each is on record");
    assert_eq!(update(&daemon, &named("free")).status, 200);
    assert_eq!(call("memory_save", json!({ "text": "Make the bank transfer." })).status, 200);
}

/// Goal: a message with a topic of a boundary is 403, one that fits the content policy 400, before anything is stored, and
/// neither says what was found; what is allowed again is allowed at once.
#[test]
fn messages_are_refused_by_boundary_and_policy() {
    let daemon = chat::scripted("[content_policy]\ndeny = ['\\b\\d{16}\\b', 'forbidden']");
    assert_eq!(update(&daemon, BOUNDED).status, 200);
    let session = chat::begin(&daemon);
    let send = |words: &str| daemon.post(&chat::place(&session, "/send"), &json!({ "text": words }));
    for (words, status, code) in [
        ("Please make a BANK-transfer, hello", 403, "soul_boundary"),
        ("hello, my card is 1234567812345678", 400, "content_policy"),
        ("hello, FORBIDDEN", 400, "content_policy"),
    ] {
        let refused = send(words);
        assert_eq!((refused.status, refused.code()), (status, code), "{words}: {refused:?}");
        let body = String::from_utf8_lossy(&refused.body).to_lowercase();
        assert!(!body.contains("1234") && !body.contains("forbidden,") && !body.contains("bank"), "{body}");
    }
    assert_eq!(chat::state(&daemon, &session)["messages"], json!([]));
    assert_eq!(update(&daemon, &named("free")).status, 200);
    chat::say(&daemon, &session, "hello, make the bank transfer");
}

/// Goal: the command line shows, checks, writes and prints the soul; a broken text is named with its line.
#[test]
fn the_command_line_writes_it() {
    let daemon = Daemon::start();
    let file = |name: &str, text: &str| {
        let path = daemon.home().join(name);
        fs::write(&path, text).expect("a file");
        path.display().to_string()
    };
    let (good, bad) = (file("good.md", BOUNDED), file("bad.md", "---\nname: a\nname: b\n---\n"));
    let (code, out, _) = daemon.cli(&["soul", "check", &good]);
    assert_eq!((code, out.as_str()), (0, "It is good: Otto, 1 boundary.\n"));
    let (code, _, error) = daemon.cli(&["soul", "check", &bad]);
    assert!(code == 1 && error.contains("line 3"), "{code} {error}");
    let (code, out, error) = daemon.cli(&["soul", "edit", "--from", &good]);
    assert!(code == 0 && out.contains("Otto has this soul"), "{out} {error}");
    // An editor that writes another name.
    let script = daemon.home().join("editor.sh");
    fs::write(&script, "sed -i 's/name: Otto/name: Emil/' \"$1\"\n").expect("a script");
    let mut edit = crate::harness::command(daemon.home());
    let edited =
        edit.args(["soul", "edit"]).env("EDITOR", format!("sh {}", script.display())).output().expect("it starts");
    assert!(String::from_utf8_lossy(&edited.stdout).contains("Emil has this soul"), "{edited:?}");
    let (_, out, _) = daemon.cli(&["soul", "show"]);
    assert!(out.contains("Emil") && out.contains("no-payments") && out.contains("bank transfer"), "{out}");
    assert!(daemon.cli(&["soul", "show", "--raw"]).1.contains("name: Emil"));
    assert!(daemon.cli(&["soul", "prompt"]).1.contains("You are Emil."));
    let (_, out, _) = daemon.cli(&["soul", "versions"]);
    assert_eq!(out.lines().count(), 4, "{out}");
    assert!(!Path::new(&good).with_extension("new").exists());
}

/// Goal: patterns of the content policy are checked when they are set, and hold without a restart.
#[test]
fn the_content_policy_is_live_and_checked() {
    let daemon = Daemon::start();
    let set =
        |value: Value| daemon.post_confirmed("/config/set", &json!({ "changes": { "content_policy.deny": value } }));
    for (wrong, why) in [(json!(["("]), "rule 1"), (json!(["a", "x*"]), "rule 2"), (json!("a"), "list")] {
        let refused = set(wrong);
        assert_eq!((refused.status, refused.fields()), (400, vec!["changes.content_policy.deny"]), "{refused:?}");
        assert!(text(&refused.json, "detail").contains(why), "{refused:?}");
    }
    let done = set(json!(["\\b\\d{16}\\b"]));
    assert_eq!((done.status, &done.json["applied"]), (200, &json!(["content_policy.deny"])), "{done:?}");
}
