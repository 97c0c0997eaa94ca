//! Tools for files: what they do, and what they cannot be made to touch.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use serde_json::{Value, json};

use super::{daemon, done, run};
use crate::harness::Daemon;

const GRANTS: &str = "read = [\"~/docs\", \"/proc\", \"/dev\"]\nwrite = [\"~/notes\", \"~/skills\"]";

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Goal: files are read piece by piece, written at once, edited exactly, listed, found and searched.
#[test]
fn files_are_read_written_and_searched() {
    let daemon = daemon(GRANTS);
    let home = daemon.home();
    std::fs::create_dir(home.join("docs")).expect("a folder");
    std::fs::create_dir(home.join("notes")).expect("a folder");
    let lines: String = (1..=5000).map(|n| format!("line {n} of many, which is long enough\n")).collect();
    std::fs::write(home.join("docs/long.txt"), &lines).expect("a file");
    let first = done(&daemon, "read", json!({ "path": "~/docs/long.txt" }));
    let shown = first["content"].as_str().expect("a text");
    assert!(
        shown.starts_with("line 1 of") && shown.contains("of 5000; go on with offset"),
        "{}",
        &shown[shown.len() - 80..]
    );
    let some = done(&daemon, "read", json!({ "path": "~/docs/long.txt", "offset": 4999, "limit": 1 }));
    assert!(some["content"].as_str().is_some_and(|text| text.starts_with("line 4999 of")), "{some}");

    let made = done(&daemon, "write", json!({ "path": "~/notes/a/b/c.md", "content": "one two two" }));
    assert_eq!((&made["made"], text(&home.join("notes/a/b/c.md")).as_str()), (&json!(true), "one two two"));
    let edit = |old: &str, new: &str, more: Value| {
        let mut input = json!({ "path": "~/notes/a/b/c.md", "old": old, "new": new });
        input.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        run(&daemon, "edit", input)
    };
    assert_eq!(edit("two", "2", json!({})).code(), "tool_failed", "it is there twice");
    assert_eq!(edit("three", "3", json!({})).code(), "tool_failed", "it is not there");
    assert_eq!(edit("one", "1", json!({ "expected_digest": "0".repeat(64) })).code(), "tool_failed");
    assert_eq!(edit("one", "1", json!({ "expected_digest": made["digest"] })).status, 200);
    assert_eq!(edit("two", "2", json!({ "all": true })).status, 200);
    std::fs::write(home.join("notes/many"), "x".repeat(1 << 20)).expect("a file");
    let huge = json!({ "path": "~/notes/many", "old": "x", "new": "y".repeat(100 << 10), "all": true });
    assert_eq!(run(&daemon, "edit", huge).code(), "tool_failed", "it would have 100 GiB");
    std::fs::remove_file(home.join("notes/many")).expect("it goes");
    assert_eq!(text(&home.join("notes/a/b/c.md")), "1 2 2");
    let script = home.join("notes/run.sh");
    std::fs::write(&script, "old").expect("a file");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o750)).expect("a mode");
    done(&daemon, "write", json!({ "path": "~/notes/run.sh", "content": "new" }));
    assert_eq!(std::fs::metadata(&script).expect("it is there").permissions().mode() & 0o777, 0o750);

    let listed = done(&daemon, "list", json!({ "path": "~/notes" }));
    assert_eq!(
        listed["items"],
        json!([{ "name": "a", "kind": "folder", "bytes": listed["items"][0]["bytes"] },
        { "name": "run.sh", "kind": "file", "bytes": 3 }])
    );
    let found = done(&daemon, "find", json!({ "path": "~/notes", "pattern": "*.md" }));
    assert_eq!(found["items"], json!(["~/notes/a/b/c.md"]));
    let lines = done(
        &daemon,
        "grep",
        json!({ "path": "~/docs", "pattern": "LINE 49[0-9]{2} ", "ignore_case": true, "limit": 3 }),
    );
    assert_eq!(
        (lines["items"].as_array().map(Vec::len), &lines["items"][0]["line"], &lines["more"]),
        (Some(3), &json!(4900), &json!(true))
    );
    assert_eq!(run(&daemon, "grep", json!({ "path": "~/docs", "pattern": "(" })).fields(), ["input/pattern"]);
}

/// Goal: neither `..`, links, devices nor what the kernel shows lead out of a grant; what is the daemon's own stays its
/// own; and of what fails nothing is left.
#[test]
fn grants_cannot_be_left() {
    let daemon = daemon(GRANTS);
    let home = daemon.home().to_owned();
    for folder in ["docs/inner", "notes", "elsewhere"] {
        std::fs::create_dir_all(home.join(folder)).expect("a folder");
    }
    std::fs::write(home.join("elsewhere/secret"), "secret").expect("a file");
    for folder in ["docs", "notes"] {
        symlink(home.join("elsewhere"), home.join(folder).join("way")).expect("a link");
        symlink(home.join("elsewhere/secret"), home.join(folder).join("one")).expect("a link");
        symlink("../elsewhere/secret", home.join(folder).join("near")).expect("a link");
        std::fs::hard_link(home.join("aman.toml"), home.join(folder).join("hard")).expect("a link");
        std::fs::hard_link(home.join("aman.db"), home.join(folder).join("db")).expect("a link");
    }
    nix::unistd::mkfifo(&home.join("docs/pipe"), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    refused(&daemon, &home);
    let listed = done(&daemon, "list", json!({ "path": "~/docs" }));
    let kinds: Vec<(&str, &str)> = listed["items"]
        .as_array()
        .expect("items")
        .iter()
        .map(|item| (item["name"].as_str().expect("a name"), item["kind"].as_str().expect("a kind")))
        .collect();
    assert!(kinds.contains(&("way", "not followed")) && kinds.contains(&("hard", "not followed")), "{kinds:?}");
    assert!(kinds.contains(&("pipe", "other")) && kinds.contains(&("inner", "folder")), "{kinds:?}");
    let found = done(&daemon, "grep", json!({ "path": "~/docs", "pattern": "secret|token|tools" }));
    assert_eq!(found["items"], json!([]), "nothing is found behind a link");
    assert_eq!(text(&home.join("elsewhere/secret")), "secret");
    assert!(text(&home.join("aman.toml")).contains("[tools]"));
    assert!(!home.join("skills/x").exists(), "nothing is left of what was refused");
    let left = done(&daemon, "find", json!({ "path": "~/notes", "pattern": "*.tmp" }));
    assert_eq!(left["items"], json!([]));
}

fn refused(daemon: &Daemon, home: &Path) {
    let escape = format!("{}/docs/../elsewhere/secret", home.display());
    for (path, field) in [
        ("~/docs/../elsewhere/secret", "input/path"),
        (escape.as_str(), "input/path"),
        ("docs/x", "input/path"),
        ("~/elsewhere/secret", ""),
        ("~/docsx", ""),
        ("/etc/passwd", ""),
        ("~/docs/way/secret", ""),
        ("~/docs/one", ""),
        ("~/docs/near", ""),
        ("~/docs/hard", ""),
        ("~/docs/db", ""),
        ("~/docs/pipe", ""),
        ("/dev/zero", ""),
        ("/proc/self/environ", ""),
        ("/proc/1/root/etc/passwd", ""),
    ] {
        let answer = run(daemon, "read", json!({ "path": path }));
        let expected = if field.is_empty() { (403, "path_not_granted") } else { (400, "invalid_input") };
        assert_eq!((answer.status, answer.code()), expected, "read {path}: {answer:?}");
        assert_eq!(answer.fields().first().copied().unwrap_or_default(), field, "{path}");
    }
    for path in [
        "~/docs/new.md",
        "~/notes/way/new.md",
        "~/notes/way/deep/new.md",
        "~/notes/one",
        "~/notes/near",
        "~/notes/hard",
        "~/notes/db",
        "~/skills/x/SKILL.md",
        "/dev/null",
    ] {
        let answer = run(daemon, "write", json!({ "path": path, "content": "pwned" }));
        assert_eq!((answer.status, answer.code()), (403, "path_not_granted"), "write {path}: {answer:?}");
    }
    assert!(!home.join("elsewhere/deep").exists());
}
