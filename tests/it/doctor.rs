//! `aman doctor --security`: what it finds, with and without a daemon; what `--fix` changes; the list of its checks.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{Daemon, Folder, command, write_skill};
use crate::tidy::golden_at;

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("the file is ours");
}

fn mode_of(path: &Path) -> u32 {
    fs::metadata(path).expect("it is there").permissions().mode() & 0o7777
}

/// Exit code, and each check by its id.
fn doctor(home: &Path, arguments: &[&str]) -> (i32, BTreeMap<String, Value>, Value) {
    let output = command(home).args(["doctor", "--json"]).args(arguments).output().expect("the binary starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let document: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let checks = document["checks"].as_array().expect("checks").iter();
    let checks = checks.map(|check| (check["id"].as_str().expect("an id").to_owned(), check.clone())).collect();
    (output.status.code().unwrap_or(-1), checks, document)
}

/// A folder of a daemon that ran once, with the modes that it makes itself.
fn used_home() -> Folder {
    let folder = Folder::new("doctor");
    mode(folder.path(), 0o700);
    let mut daemon = Daemon::try_start_in(folder.path(), &[("AMAN_HTTP_TOKEN", "")]).expect("it starts");
    assert_eq!(daemon.terminate(), Some(0));
    folder
}

/// Goal: what a daemon leaves behind after a plain start is closed to others, and the checks say so without a daemon.
#[test]
fn a_plain_home_is_closed() {
    let folder = used_home();
    let (code, checks, document) = doctor(folder.path(), &["--security"]);
    let failed: Vec<&Value> = checks.values().filter(|check| check["status"] == "fail").collect();
    assert!(code == 0 && failed.is_empty(), "{failed:?}");
    // Root, kernel and machine are what they are; everything that aman makes itself is right.
    assert_eq!(mode_of(&folder.path().join("aman.db")), 0o600);
    for id in [
        "token_mode",
        "database_mode",
        "config_mode",
        "folder_mode",
        "parent_folders",
        "log_mode",
        "backup_mode",
        "skill_writable",
        "tls_key_mode",
        "plain_secrets",
        "bind",
        "auth_none",
        "database_integrity",
        "inotify",
        "clock",
    ] {
        assert_eq!(checks[id]["status"], "ok", "{}", checks[id]);
    }
    let general = ["ready", "same_version", "access", "event_time", "dead_letters", "sources", "sinks", "jobs"];
    for id in general.iter().chain(&["skill_permissions", "tokens_admin", "audit_chain"]) {
        assert_eq!(checks[*id]["status"], "skip", "only a daemon can tell: {}", checks[*id]);
    }
    assert!(document["ok"] == true && checks["bind"]["severity"] == "medium");
    let (_, general, _) = doctor(folder.path(), &[]);
    assert!(general.contains_key("clock") && !general.contains_key("token_mode"));
    assert_eq!(doctor(folder.path(), &["--security"]).1.len(), checks.len());
}

/// Goal: rights that others have on files are found, each with its id, and `--fix` takes them away and nothing else.
#[test]
fn open_files_are_found_and_closed() {
    let folder = used_home();
    let home = folder.path();
    write_skill(home, "mine", &["aman.on: a.b"], "exit 0");
    fs::write(home.join("aman.toml"), "[http]\ntoken = \"in-the-file-0123456789\"\n").expect("aman.toml");
    fs::create_dir(home.join("backups")).expect("a folder");
    fs::copy(home.join("aman.db"), home.join("backups/monday.db")).expect("a copy");
    fs::write(home.join("backups/notes.txt"), "no database").expect("a file");
    let outside = Folder::new("outside");
    fs::write(outside.path().join("target"), "others may write this").expect("a file");
    std::os::unix::fs::symlink(outside.path().join("target"), home.join("skills/mine/link")).expect("a link");
    for (path, bits) in [
        ("", 0o755),
        ("token", 0o644),
        ("signing.key", 0o640),
        ("aman.db", 0o644),
        ("aman.toml", 0o644),
        ("logs/aman.log", 0o644),
        ("logs", 0o755),
        ("backups/monday.db", 0o644),
        ("backups/notes.txt", 0o644),
        ("skills/mine/scripts/run.sh", 0o777),
    ] {
        mode(&home.join(path), bits);
    }
    mode(&outside.path().join("target"), 0o666);
    let wanted = [
        ("token_mode", "fail", "token"),
        ("database_mode", "warn", "aman.db"),
        ("config_mode", "fail", "aman.toml"),
        ("folder_mode", "warn", "0755"),
        ("log_mode", "warn", "aman.log"),
        ("backup_mode", "fail", "monday.db"),
        ("skill_writable", "fail", "run.sh"),
        ("plain_secrets", "warn", "http.token"),
    ];
    let (code, checks, _) = doctor(home, &["--security"]);
    assert_eq!(code, 1);
    for (id, status, text) in wanted {
        let check = &checks[id];
        assert!(check["status"] == status && check["message"].as_str().is_some_and(|m| m.contains(text)), "{check}");
        assert!(check["do"].is_string(), "{check}");
    }
    assert!(!checks["plain_secrets"].to_string().contains("in-the-file"), "the secret itself is not shown");
    assert!(!checks["backup_mode"].to_string().contains("notes.txt"), "it is no copy of a database");

    let (_, checks, document) = doctor(home, &["--security", "--fix"]);
    for (id, ..) in wanted.iter().filter(|(id, ..)| *id != "plain_secrets") {
        assert_eq!(checks[*id]["status"], "ok", "{}", checks[*id]);
    }
    let fixed = document["fixed"].to_string();
    assert!(fixed.contains("run.sh") && fixed.contains("monday.db") && !fixed.contains("notes.txt"), "{fixed}");
    for (path, bits) in
        [("", 0o700), ("token", 0o600), ("skills/mine/scripts/run.sh", 0o755), ("backups/notes.txt", 0o644)]
    {
        assert_eq!(mode_of(&home.join(path)), bits, "{path}");
    }
    assert_eq!(mode_of(&outside.path().join("target")), 0o666, "what a link leads to stays as it is");
    Daemon::start_in(home);
}

/// Goal: a folder above that everybody can write, files of another user, and a damaged database are found.
#[test]
fn places_that_others_rule() {
    let above = Folder::new("above");
    let home = above.path().join("home");
    fs::create_dir(&home).expect("a folder");
    mode(&home, 0o700);
    let mut daemon = Daemon::start_in(&home);
    daemon.terminate();
    mode(above.path(), 0o777);
    let (code, checks, _) = doctor(&home, &["--security"]);
    assert!(code == 1 && checks["parent_folders"]["status"] == "fail", "{}", checks["parent_folders"]);
    mode(above.path(), 0o1777);
    assert_eq!(doctor(&home, &["--security"]).1["parent_folders"]["status"], "ok");
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(home.join("token"), Some(65_534), None).ok();
        std::os::unix::fs::chown(home.join("signing.key"), Some(65_534), None).expect("root may");
        let check = doctor(&home, &["--security"]).1["token_mode"].clone();
        assert!(check["status"] == "fail" && check["message"].to_string().contains("65534"), "{check}");
    }
    let database = home.join("aman.db");
    let bytes = fs::read(&database).expect("a database");
    for (damaged, what) in [(&bytes[..5000], "cut off"), (&[0_u8; 8192][..], "zeros"), (&b"SQL"[..], "a few bytes")] {
        fs::write(&database, damaged).expect("ours");
        let check = doctor(&home, &[]).1["database_integrity"].clone();
        assert_eq!(check["status"], "fail", "{what}: {check}");
    }
    fs::write(&database, &bytes).expect("ours");
    assert_eq!(doctor(&home, &[]).1["database_integrity"]["status"], "ok");
}

/// Goal: with a daemon, the settings in force, skills, tokens and the audit log are looked at as well.
#[test]
fn a_running_daemon_is_asked() {
    let folder = Folder::new("asked");
    let home = folder.path();
    let toml = "[http]\npublic_stream = \"full\"\nallowed_origins = [\"null\"]\nallow_remote = true\n\
        [http_client]\nallow_private = true\n[debug]\nforce_enable_debug_endpoints = true\n\
        [sources.hook]\nkind = \"webhook\"\n[sources.poll]\nkind = \"http_poll\"\nurl = \"https://192.0.2.1/\"\n[sinks.out]\nkind = \"webhook\"\nurl = \"http://192.0.2.1/\"\ntypes = [\"a.**\"]\n\
        secret = \"env:OUT\"\n[sinks.lost]\nkind = \"ntfy\"\nurl = \"https://lost.invalid/\"\ntopic = \"a-topic-of-mine\"\n\
        [sources.gone]\nkind = \"http_poll\"\nurl = \"https://gone.invalid/\"\n";
    fs::create_dir_all(home.join("skills/half")).expect("a folder");
    fs::write(home.join("skills/half/SKILL.md"), "---\nname: other\n---\n").expect("a skill that cannot be loaded");
    fs::create_dir_all(home.join("workflows")).expect("a folder");
    fs::write(home.join("workflows/bad.yaml"), "do: nothing\n").expect("a workflow that cannot be read");
    fs::write(home.join("aman.toml"), toml).expect("aman.toml");
    write_skill(home, "greedy", &["aman.on: a.b", "aman.permissions: 'write:~'"], "exit 0");
    let daemon = Daemon::try_start_in(home, &[("OUT", "0123456789abcdef")]).unwrap_or_else(|log| panic!("{log}"));
    for (sub, scope, ttl) in [("boss", "admin", "1d"), ("old", "events:read", "366d"), ("good", "events:read", "1d")] {
        let answer = daemon.post("/auth/token", &json!({ "sub": sub, "scope": scope, "ttl": ttl }));
        assert_eq!(answer.status, 201, "{answer:?}");
    }
    let changed = daemon.call("PUT", "/source/poll/config", Some(&json!({ "url": "http://192.0.2.1/" })));
    assert_eq!(changed.status, 200, "{changed:?}");
    // OUT is not known to the command line, which needs it for nothing.
    let (_, checks, _) = doctor(home, &["--security"]);
    assert_eq!(checks["config"]["status"], "ok", "{}", checks["config"]);
    for (id, text) in [
        ("public_stream", "data"),
        ("allowed_origins", "null"),
        ("allow_remote", ""),
        ("egress_private", ""),
        ("debug_endpoints", ""),
        ("webhook_verify", "hook"),
        ("source_transport", "poll"),
        ("sink_transport", "out"),
        ("skill_permissions", "greedy"),
        ("tokens_admin", "boss"),
        ("tokens_long", "old"),
        ("sources", "gone: 'gone.invalid' cannot be resolved"),
        ("sinks", "lost: 'lost.invalid' cannot be resolved"),
        ("skills", "half/SKILL.md: "),
        ("workflows", "bad.yaml: "),
    ] {
        let check = &checks[id];
        assert!(check["status"] == "warn" && check["message"].as_str().is_some_and(|m| m.contains(text)), "{check}");
        assert!(check["do"].is_string(), "{check}");
    }
    let (_, glance, _) = daemon.cli(&["status"]);
    for text in ["skill ", "half/SKILL.md: ", "workflow ", "Needs you:", "→ "] {
        assert!(glance.contains(text), "{text}: {glance}");
    }
    assert!(!checks["tokens_admin"].to_string().contains("good,") && checks["audit_chain"]["status"] == "ok");
    let answer = daemon.post_confirmed("/config/set", &json!({ "changes": { "http.public_stream": "off" } }));
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(doctor(home, &["--security"]).1["public_stream"]["status"], "ok", "what is in force counts");
    drop(daemon);
    // Without it, a file that is broken elsewhere is still read for what it allows.
    fs::write(home.join("aman.toml"), "[http]\nauth = \"none\"\n[bus]\nmax_pending = 0\n").expect("aman.toml");
    let (code, checks, _) = doctor(home, &["--security"]);
    assert!(code == 1 && checks["auth_none"]["status"] == "fail" && checks["config"]["status"] == "fail", "{checks:?}");
    fs::write(home.join("aman.toml"), "[http\n").expect("aman.toml");
    assert_eq!(doctor(home, &["--security"]).1["auth_none"]["status"], "skip");
}

/// Goal: people read a table with advice, and `--fix` alone is a usage error.
#[test]
fn people_read_it_too() {
    let folder = used_home();
    mode(&folder.path().join("token"), 0o644);
    let run = |arguments: &[&str]| {
        let output = command(folder.path()).args(arguments).output().expect("the binary starts");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, out) = run(&["doctor", "--security"]);
    assert!(
        code == Some(1) && out.contains("FAIL  token_mode") && out.contains("→ `aman doctor --security --fix`"),
        "{out}"
    );
    let (code, out) = run(&["doctor", "--security", "--fix"]);
    assert!(code == Some(0) && out.contains("fixed ") && out.contains("ok    token_mode"), "{out}");
    assert_eq!(run(&["doctor", "--fix"]).0, Some(2));
}

/// Goal: the documentation lists every check there is.
#[test]
fn golden_checks_are_documented() {
    let text = format!(
        "# What `aman doctor` checks\n\nEach check has an id that stays what it is. With `--json` it is one of `checks`: `{{id, status, severity, message, do}}`; \
         `status` is\n`ok`, `skip` (it could not be looked at), `warn` or `fail`, and one `fail` makes the exit code 1. `aman doctor --security` runs all\n\
         of them. `--fix` takes rights from files and folders that give others too many, and changes nothing else.\n\n{}",
        aman::cli::doctor_table()
    );
    golden_at("daemon/docs/doctor.md", &text, "run scripts/bless");
}
