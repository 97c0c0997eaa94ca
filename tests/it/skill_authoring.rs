//! `aman skill new | validate | test`: no daemon is needed.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Daemon, Folder, command, write_skill};

/// Runs `aman skill …` in a home without a daemon.
fn skill(home: &Folder, args: &[&str]) -> (i32, String, String) {
    ran(command(home.path()).arg("skill").args(args))
}

fn ran(command: &mut Command) -> (i32, String, String) {
    let output = command.output().expect("the binary starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

/// Goal: a new skill is good by every rule, does something, and runs as soon as a daemon is there.
#[test]
fn a_new_skill_works_as_it_is() {
    let home = Folder::new("author");
    let (code, out, error) = skill(&home, &["new", "greet"]);
    assert_eq!(code, 0, "{out} {error}");
    let folder = home.path().join("skills/greet");
    let (code, out, _) = skill(&home, &["validate", "greet"]);
    assert!(code == 0 && out.trim_end().ends_with("greet: good"), "{out}");
    let event = folder.join("assets/event.json");
    let event = event.to_str().expect("UTF-8");
    let (code, out, error) = skill(&home, &["test", "greet", "--event", event]);
    assert_eq!(code, 0, "{out} {error}");
    assert!(out.contains("event hello.said {\"text\":\"Hello, Ada!\"}"), "{out}");
    let (code, out, _) = skill(&home, &["test", folder.to_str().expect("UTF-8"), "--event", event, "--json"]);
    let tried: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((code, &tried["outcome"], &tried["matches"]), (0, &json!("done"), &json!(true)), "{out}");
    let (code, _, error) = skill(&home, &["new", "greet"]);
    assert!(code == 1 && error.contains("already"), "{error}");
    for bad in ["", "Greet", "../x", "a/b", "-a", "a--b", &"x".repeat(65)] {
        let (code, out, error) = skill(&home, &["new", bad]);
        assert_ne!(code, 0, "{bad:?}: {out} {error}");
    }
    let elsewhere = home.path().join("some/where");
    assert_eq!(skill(&home, &["new", "grüße", "--into", elsewhere.to_str().expect("UTF-8")]).0, 0);
    assert_eq!(skill(&home, &["validate", elsewhere.join("grüße/SKILL.md").to_str().expect("UTF-8")]).0, 0);
    let daemon = Daemon::start_in(home.path());
    daemon.push("hello.asked", json!({}));
    daemon.settle();
    assert_eq!(daemon.recent("hello.said")[0]["data"]["text"], "Hello, world!");
    // Beside a daemon that runs, made there: it reacts at once.
    assert_eq!(daemon.cli(&["skill", "new", "second"]).0, 0);
    daemon.wait("the new skill", || (daemon.get("/skill/second").status == 200).then_some(()));
}

/// Goal: every rule of the Agent Skills specification is checked, and who breaks one in a clear way is loaded all the same.
#[test]
fn rules_are_checked_strictly() {
    let home = Folder::new("author");
    let cases = [
        ("fine", "name: fine\ndescription: Does it.", "good", ""),
        ("other", "name: another\ndescription: d", "loads", "name"),
        ("upper", "name: Upper\ndescription: d", "loads", "name"),
        ("nameless", "description: d", "loads", "name"),
        ("long", &format!("name: long\ndescription: {}", "x".repeat(1025)), "loads", "description"),
        ("empty", "name: empty\ndescription: ''", "broken", "description"),
        ("colon", "name: colon\ndescription: Use when: always", "loads", "front matter"),
        ("listed", "name: listed\ndescription: d\nallowed-tools: [Bash, Read]", "loads", "allowed-tools"),
        ("extra", "name: extra\ndescription: d\nversion: 1", "loads", "version"),
        ("nested", "name: nested\ndescription: d\nmetadata: {author: {name: me}}", "loads", "metadata.author"),
        ("wide", &format!("name: wide\ndescription: d\ncompatibility: {}", "x".repeat(501)), "loads", "compatibility"),
        ("timed", "name: timed\ndescription: d\nmetadata: {aman.timeout: soon}", "broken", "metadata.aman.timeout"),
        ("both", "name: Both\nmetadata: {aman.on: a..b}", "broken", "description metadata.aman.on name"),
        ("yaml", "name: [", "broken", "name"),
        ("flow", "name: flow\nnote: {", "broken", "front matter"),
    ];
    for (name, front, ..) in &cases {
        let folder = home.path().join("skills").join(name);
        fs::create_dir_all(&folder).expect("a folder");
        fs::write(folder.join("SKILL.md"), format!("---\n{front}\n---\nDo it.\n")).expect("SKILL.md");
    }
    for (name, _, verdict, fields) in &cases {
        let (code, out, error) = skill(&home, &["validate", name, "--json"]);
        let checked: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{name}: {out} {error}"));
        let one = &checked["skills"][0];
        let found = match (one["ok"] == true, one["loads"] == true) {
            (true, _) => "good",
            (false, true) => "loads",
            (false, false) => "broken",
        };
        let mut named: Vec<&str> =
            one["errors"].as_array().expect("errors").iter().filter_map(|e| e["field"].as_str()).collect();
        named.sort_unstable();
        assert_eq!(
            (found, named.join(" ").as_str(), code == 0),
            (*verdict, *fields, *verdict == "good"),
            "{name}: {out}"
        );
    }
    let (code, out, _) = skill(&home, &["validate", "nowhere"]);
    assert!(code == 1 && out.contains("broken"), "{out}");
    let daemon = Daemon::start_in(home.path());
    let report = daemon.post("/skills/reload", &json!({})).json;
    let broken = cases.iter().filter(|(_, _, verdict, _)| *verdict == "broken").count();
    assert_eq!(report["failed"].as_array().map(Vec::len), Some(broken), "{report}");
    assert!(daemon.get("/skill/upper").json["warnings"][0].as_str().is_some_and(|odd| odd.starts_with("name:")));
    assert_eq!(daemon.get("/skill/another").status, 200, "it goes by the name that it says");
}

/// Goal: a trial says whether and why such an event reaches the skill and how it ends; it publishes nothing, and scripts that
/// are not there are told.
#[test]
fn trials_tell_and_do_nothing() {
    let home = Folder::new("author");
    write_skill(
        home.path(),
        "tries",
        &["aman.on: t.a", "aman.when: .data.n > 1"],
        "cat >&2; exit $(\"$AMAN_BIN\" jq -n 0)",
    );
    write_skill(home.path(), "rejects", &["aman.on: t.a"], "echo bad >&2; exit 65");
    write_skill(home.path(), "slow", &["aman.on: t.a", "aman.timeout: 300ms"], "sleep 60");
    write_skill(home.path(), "tells", &["aman.on: t.a"], "echo '{\"notify\": [{\"title\": \"Hi\"}], \"result\": [1]}'");
    write_skill(home.path(), "peeks", &["aman.on: t.a"], "cat \"$AMAN_DATA/token\" || exit 65");
    fs::write(home.path().join("token"), "secret").expect("a file");
    fs::remove_file(home.path().join("skills/slow/scripts/run.sh")).expect("ours");
    let (_, out, _) = skill(&home, &["validate", "slow"]);
    assert!(out.contains("names 'scripts/run.sh', which is no file"), "{out}");
    write_skill(home.path(), "slow", &["aman.on: t.a", "aman.timeout: 300ms"], "sleep 60");
    let event = home.path().join("event.json");
    let event = event.to_str().expect("UTF-8");
    let cases = [
        ("tries", json!({ "type": "t.a", "data": { "n": 2 } }), 0, "\"n\":2"),
        ("tries", json!({ "type": "t.a", "data": { "n": 1 } }), 1, "aman.when does not hold"),
        ("tries", json!({ "type": "t.b" }), 1, "no pattern for the type t.b"),
        ("rejects", json!({ "event": { "type": "t.a" }, "deliveries": [] }), 1, "exit code 65"),
        ("slow", json!({ "type": "t.a" }), 1, "took longer"),
        ("tells", json!({ "type": "t.a" }), 0, "notification (info) Hi"),
        ("peeks", json!({ "type": "t.a" }), 1, "rejected"),
    ];
    for (name, given, wanted, said) in cases {
        fs::write(event, given.to_string()).expect("a file");
        let (code, out, error) = skill(&home, &["test", name, "--event", event]);
        assert!(code == wanted && out.contains(said), "{name} {given}: {code} {out} {error}");
        assert!(!out.contains("secret"), "{out}");
    }
    fs::write(event, json!({ "type": "t.b", "data": { "n": 3 } }).to_string()).expect("a file");
    let (code, out, _) = skill(&home, &["test", "tries", "--event", event, "--anyway"]);
    assert!(code == 1 && out.contains("done"), "it ran, and would not have: {out}");
    for (given, said) in [
        ("{", "no JSON object"),
        ("[]", "no JSON object"),
        ("{}", "type: is required"),
        ("{\"type\": 1}", "type: must be"),
    ] {
        fs::write(event, given).expect("a file");
        let (code, _, error) = skill(&home, &["test", "tries", "--event", event]);
        assert!(code == 1 && error.contains(said), "{given}: {error}");
    }
    let (code, _, error) = skill(&home, &["test", "tries", "--event", "/nowhere.json"]);
    assert!(code == 1 && error.contains("/nowhere.json"), "{error}");
    assert!(!home.path().join("aman.db").exists(), "no daemon was needed");
}

/// Goal: no script gets to write where skills of other programs are loaded from, nor around it.
#[test]
fn folders_that_skills_are_loaded_from_are_not_granted() {
    let home = Folder::new("author");
    let (event, folder) = (home.path().join("event.json"), home.path().join("skills/plants"));
    fs::write(&event, json!({ "type": "t.a" }).to_string()).expect("a file");
    fs::create_dir_all(home.path().join(".agents/skills")).expect("a folder");
    for place in ["~/.agents/skills", "~/.agents"] {
        let metadata = ["aman.on: t.a".to_owned(), format!("aman.permissions: \"write:{place}\"")];
        let metadata: Vec<&str> = metadata.iter().map(String::as_str).collect();
        write_skill(home.path(), "plants", &metadata, "mkdir \"$HOME/.agents/skills/more\"");
        // As at a desk: the XDG folders below HOME, no folder of its own.
        let mut at_a_desk = command(home.path());
        at_a_desk.env_remove("AMAN_HOME").args(["skill", "test"]).arg(&folder).arg("--event").arg(&event);
        let (code, out, error) = ran(&mut at_a_desk);
        assert!(code == 1 && out.contains("permission '") && out.contains("is refused"), "{place}: {out} {error}");
        assert!(!home.path().join(".agents/skills/more").exists());
    }
}
