//! The contents that skills had: kept, compared, brought back, whatever becomes of the folder.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{Daemon, Folder, TOKEN, request, write_skill};

/// Skills are read when a test says so, and not while it is half-way with its changes.
const BY_HAND: &str = "[skills]\nwatch = false\n";

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_else(|| panic!("{name} is no text in {value}"))
}

fn digest(daemon: &Daemon, name: &str) -> String {
    text(&daemon.get(&format!("/skill/{name}")).json, "digest").to_owned()
}

/// A home whose skills are read only when somebody asks.
fn home() -> Folder {
    let folder = Folder::new("history");
    fs::write(folder.path().join("aman.toml"), BY_HAND).expect("aman.toml");
    folder
}

/// Every file below a folder with what it holds.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![folder.to_owned()]);
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else {
                let name = entry.path().strip_prefix(folder).expect("below").display().to_string();
                found.insert(name, fs::read(entry.path()).expect("readable"));
            }
        }
    }
    found
}

fn reload(daemon: &Daemon) {
    let report = daemon.post("/skills/reload", &json!({}));
    assert_eq!((report.status, &report.json["failed"]), (200, &json!([])), "{report:?}");
}

/// Goal: a content of several files, in folders and of any bytes, comes back byte for byte with its modes, runs again, and
/// going back is an entry of the history; what was there before can be had again.
#[test]
fn contents_come_back_whole() {
    let folder = home();
    let skill = folder.path().join("skills/many");
    write_skill(folder.path(), "many", &["aman.on: t.many", "aman.version: '1.0'"], "echo '{\"result\": 1}'");
    fs::create_dir_all(skill.join("data/deep")).expect("folders");
    fs::write(skill.join("data/deep/bytes.bin"), [0, 159, 146, 150]).expect("a file");
    fs::write(skill.join("tool.sh"), "#!/bin/sh\n").expect("a file");
    fs::set_permissions(skill.join("tool.sh"), fs::Permissions::from_mode(0o755)).expect("ours");
    let mut daemon = Daemon::start_in(folder.path());
    let first = digest(&daemon, "many");
    write_skill(folder.path(), "many", &["aman.on: t.many", "aman.version: '2.0'"], "echo '{\"result\": 2}'");
    fs::remove_dir_all(skill.join("data")).expect("ours");
    fs::write(skill.join("new.txt"), "ü\n").expect("a file");
    reload(&daemon);
    // Neither name nor bytes: the digest stays what it is.
    fs::set_permissions(skill.join("tool.sh"), fs::Permissions::from_mode(0o711)).expect("ours");
    let second = digest(&daemon, "many");
    let diff = daemon.get("/skill/many/diff").json;
    assert_eq!((text(&diff, "from"), text(&diff, "to")), (first.as_str(), second.as_str()));
    let changes: Vec<(&str, &str)> =
        diff["files"].as_array().expect("files").iter().map(|one| (text(one, "path"), text(one, "change"))).collect();
    assert!(changes.contains(&("data/deep/bytes.bin", "removed")) && changes.contains(&("new.txt", "added")), "{diff}");
    let bytes = diff["files"].as_array().expect("files").iter().find(|one| one["path"] == "data/deep/bytes.bin");
    let bytes = bytes.expect("it is told");
    assert_eq!((&bytes["diff"], &bytes["old_size"], &bytes["new_size"]), (&Value::Null, &json!(4), &Value::Null));
    assert!(diff.to_string().contains("+ü") && diff.to_string().contains("-  aman.version: '1.0'"), "{diff}");
    let body = json!({ "digest": &first[..8] });
    assert_eq!(daemon.post("/skill/many/rollback", &body).code(), "confirmation_required");
    let dry = daemon.post_confirmed("/skill/many/rollback?dry_run=true", &body);
    assert_eq!((dry.status, text(&dry.json, "from"), text(&dry.json, "to")), (200, second.as_str(), first.as_str()));
    assert!(skill.join("new.txt").exists() && daemon.all("/audit-log?action=skill.rollback&outcome=done").is_empty());
    let back = daemon.post_confirmed("/skill/many/rollback", &body);
    assert_eq!((back.status, text(&back.json, "digest")), (200, first.as_str()), "{back:?}");
    assert_eq!(fs::read(skill.join("data/deep/bytes.bin")).expect("it is back"), [0, 159, 146, 150]);
    assert!(!skill.join("new.txt").exists());
    let mode = fs::metadata(skill.join("tool.sh")).expect("it is back").permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
    let left: Vec<_> = fs::read_dir(folder.path().join("skills")).expect("the folder").flatten().collect();
    assert_eq!(left.len(), 1, "nothing else is left: {left:?}");
    let id = daemon.push("t.many", json!({}));
    daemon.settle();
    assert_eq!(daemon.dump(&id)["deliveries"][0]["result"], 1);
    let versions = daemon.get("/skill/many/versions").items();
    let digests: Vec<&str> = versions.iter().map(|one| text(one, "digest")).collect();
    assert_eq!(digests, [first.as_str(), second.as_str(), first.as_str()]);
    let records = daemon.all("/audit-log?action=skill.rollback&outcome=done");
    assert_eq!((records.len(), records[0]["target"].as_str()), (1, Some("many")));
    // Also after a kill, and by its version.
    daemon.kill();
    daemon.again();
    let (code, out, error) = daemon.cli(&["skill", "rollback", "many", "2.0", "--yes"]);
    assert_eq!(code, 0, "{out} {error}");
    assert_eq!((digest(&daemon, "many"), skill.join("new.txt").exists()), (second, true));
    let mode = fs::metadata(skill.join("tool.sh")).expect("it is back").permissions().mode();
    assert_eq!(mode & 0o777, 0o711, "modes that changed alone come back as well");
    let (_, out, _) = daemon.cli(&["skill", "diff", "many"]);
    assert!(out.contains("added: new.txt"), "{out}");
    let (_, out, _) = daemon.cli(&["skill", "versions", "many"]);
    assert_eq!(out.lines().count(), 5, "{out}");
}

/// Goal: what cannot be brought back says why, and nothing changes; outside the data folder going back is agreeing.
#[test]
fn what_cannot_come_back_says_why() {
    let (folder, mine) = (Folder::new("history"), Folder::new("mine"));
    let toml = format!("{BY_HAND}paths = [{:?}]\n", mine.path().join("skills"));
    fs::write(folder.path().join("aman.toml"), toml).expect("aman.toml");
    write_skill(mine.path(), "mine", &["aman.on: t.mine"], "exit 0");
    let daemon = Daemon::start_in(folder.path());
    let first = digest(&daemon, "mine");
    write_skill(mine.path(), "mine", &["aman.on: t.mine"], "exit 1");
    reload(&daemon);
    assert_eq!(daemon.get("/skill/mine").json["trusted"], false);
    let back = daemon.post_confirmed("/skill/mine/rollback", &json!({ "digest": first }));
    assert_eq!((&back.json["trusted"], text(&back.json, "digest")), (&json!(true), first.as_str()), "{back:?}");
    for (path, body, status, code) in [
        ("/skill/mine/rollback", json!({ "digest": first }), 409, "invalid_state"),
        ("/skill/mine/rollback", json!({ "digest": "0000000000" }), 404, "not_found"),
        ("/skill/mine/rollback", json!({}), 400, "invalid_input"),
        ("/skill/mine/rollback", json!({ "digest": first, "version": "1" }), 400, "invalid_input"),
        ("/skill/nobody/rollback", json!({ "digest": first }), 404, "not_found"),
        ("/skill/dlq-summary/rollback", json!({ "version": "1.0.0" }), 409, "invalid_state"),
    ] {
        let answer = daemon.post_confirmed(path, &body);
        assert_eq!((answer.status, answer.code()), (status, code), "{path} {body}: {answer:?}");
    }
    assert_eq!(daemon.get("/skill/mine/diff?from=unheard").status, 404);
    assert_eq!(digest(&daemon, "mine"), first);
}

/// Goal: a skill in a folder of folders is one like any other; one that was broken or removed comes back, and what was
/// broken stays in the history.
#[test]
fn nested_broken_and_removed_ones_come_back() {
    let folder = home();
    let work = folder.path().join("skills/work/mail");
    write_nested(&work, "nested", "exit 0");
    let daemon = Daemon::start_in(folder.path());
    let (first, skill) = (digest(&daemon, "nested"), work.join("nested"));
    let shown = daemon.get("/skill/nested").json;
    assert_eq!(Path::new(text(&shown, "path")), skill.as_path());
    write_nested(&work, "nested", "exit 1");
    reload(&daemon);
    let second = digest(&daemon, "nested");
    fs::write(skill.join("SKILL.md"), "no front matter").expect("a file");
    let report = daemon.post("/skills/reload", &json!({})).json;
    assert_eq!((&report["removed"], report["failed"].as_array().map(Vec::len)), (&json!(["nested"]), Some(1)));
    let versions = daemon.get("/skill/nested/versions").items();
    assert!(versions.iter().all(|one| one["current"] == false), "{versions:?}");
    let back = daemon.post_confirmed("/skill/nested/rollback", &json!({ "digest": second }));
    assert_eq!((back.status, text(&back.json, "digest")), (200, second.as_str()), "{back:?}");
    let versions = daemon.get("/skill/nested/versions").items();
    assert_eq!((versions.len(), &versions[1]["version"]), (4, &json!("?")), "what was broken is kept: {versions:?}");
    fs::remove_dir_all(&skill).expect("ours");
    reload(&daemon);
    assert_eq!(daemon.get("/skill/nested").status, 404);
    let back = daemon.post_confirmed("/skill/nested/rollback", &json!({ "digest": first }));
    assert_eq!((back.status, text(&back.json, "digest")), (200, first.as_str()), "{back:?}");
    assert_eq!(files(&skill)["scripts/run.sh"], b"exit 0");
    // What cannot be kept is not thrown away.
    symlink("/etc/hostname", skill.join("link")).expect("a link");
    let refused = daemon.post_confirmed("/skill/nested/rollback", &json!({ "digest": second }));
    assert_eq!((refused.status, refused.code()), (409, "invalid_state"), "{refused:?}");
    assert!(text(&refused.json, "detail").contains("symbolic link"), "{refused:?}");
    assert!(skill.join("link").symlink_metadata().is_ok());
}

/// A skill directly in `parent`.
fn write_nested(parent: &Path, name: &str, script: &str) {
    let text = format!(
        "---\nname: {name}\ndescription: A test.\nmetadata: {{aman.on: t.n, aman.run: sh scripts/run.sh}}\n---\n"
    );
    fs::create_dir_all(parent.join(name).join("scripts")).expect("folders");
    fs::write(parent.join(name).join("SKILL.md"), text).expect("SKILL.md");
    fs::write(parent.join(name).join("scripts/run.sh"), script).expect("a script");
}

/// Goal: SIGKILL at any moment of a rollback leaves the old files or the new ones, and nothing beside them after the start.
#[test]
fn a_killed_rollback_leaves_no_mixture() {
    let folder = home();
    let skill = folder.path().join("skills/big");
    let fill = |what: &str| {
        write_skill(folder.path(), "big", &["aman.on: t.big"], &format!("echo {what}"));
        for n in 0..60 {
            fs::write(skill.join(format!("scripts/{n}.txt")), format!("{what} {n}").repeat(500)).expect("a file");
        }
    };
    fill("first");
    let (mut daemon, one) = (Daemon::start_in(folder.path()), files(&skill));
    let first = digest(&daemon, "big");
    fill("second");
    reload(&daemon);
    let (second, two) = (digest(&daemon, "big"), files(&skill));
    // The kills are spread over the time that it takes here.
    let begun = std::time::Instant::now();
    assert_eq!(daemon.post_confirmed("/skill/big/rollback", &json!({ "digest": first })).status, 200);
    let took = begun.elapsed();
    let (mut done, mut undone) = (0, 0);
    for round in 0..12_u32 {
        let (wanted, before) = if digest(&daemon, "big") == first { (&second, &one) } else { (&first, &two) };
        let body = json!({ "digest": wanted }).to_string();
        let token = format!("Bearer {TOKEN}");
        let headers =
            [("authorization", token.as_str()), ("x-aman-confirm", "yes"), ("content-type", "application/json")];
        let bytes = request("POST", "/skill/big/rollback", &headers, body.as_bytes());
        let address = daemon.address.clone();
        let asking = std::thread::spawn(move || crate::harness::exchange(&address, &bytes));
        std::thread::sleep(took * round / 9);
        daemon.kill();
        let _whatever = asking.join();
        let now = files(&skill);
        assert!(now == one || now == two, "round {round}: a mixture of {} files", now.len());
        if &now == before {
            undone += 1
        } else {
            done += 1
        }
        daemon.again();
        let left: Vec<_> = fs::read_dir(folder.path().join("skills")).expect("a folder").flatten().collect();
        assert_eq!(left.len(), 1, "nothing is left beside it: {left:?}");
        assert_eq!(files(&skill), now);
    }
    crate::harness::say(&format!("{done} rollbacks were done, {undone} were not"));
    let verdict = daemon.get("/audit-log/verify").json;
    assert_eq!(verdict["ok"], true, "{verdict}");
}

/// Goal: a crash between the two renames of a file system that cannot exchange folders is put in order by the next start.
#[test]
fn leftovers_of_a_crash_are_put_in_order() {
    let folder = home();
    let skills = folder.path().join("skills");
    write_skill(folder.path(), "moved", &["aman.on: t.a"], "exit 0");
    write_skill(folder.path(), "there", &["aman.on: t.a"], "exit 0");
    fs::rename(skills.join("moved"), skills.join(".moved.aman-old")).expect("ours");
    for left in [".moved.aman-new", ".there.aman-new", ".there.aman-old"] {
        fs::create_dir_all(skills.join(left).join("scripts")).expect("ours");
        fs::write(skills.join(left).join("scripts/half"), "x").expect("ours");
    }
    fs::create_dir(skills.join(".mine")).expect("ours");
    let daemon = Daemon::start_in(folder.path());
    for name in ["moved", "there"] {
        assert_eq!(daemon.get(&format!("/skill/{name}")).status, 200);
        assert_eq!(files(&skills.join(name)).len(), 2, "{name}");
    }
    let mut left: Vec<_> = fs::read_dir(&skills).expect("a folder").flatten().map(|entry| entry.file_name()).collect();
    left.sort();
    assert_eq!(left, [".mine", "moved", "there"]);
}

/// Goal: a content that comes back after it was forgotten is kept again; a dry run tells of the folder as it is, loaded or not.
#[test]
fn what_was_forgotten_is_kept_again() {
    let folder = home();
    let write = |n: u32| write_skill(folder.path(), "often", &["aman.on: t.a"], &format!("exit {n}"));
    write(0);
    let daemon = Daemon::start_in(folder.path());
    let first = digest(&daemon, "often");
    for n in 1..=51 {
        write(n);
        reload(&daemon);
    }
    let gone = daemon.post_confirmed("/skill/often/rollback", &json!({ "digest": first }));
    assert_eq!((gone.status, gone.code()), (409, "invalid_state"), "{gone:?}");
    write(0);
    reload(&daemon);
    assert_eq!(daemon.get("/skill/often/diff").status, 200, "both are kept");
    write(52);
    let dry = daemon.post_confirmed("/skill/often/rollback?dry_run=true", &json!({ "digest": first }));
    assert!(dry.status == 200 && dry.json.to_string().contains("-exit 52"), "{dry:?}");
    let back = daemon.post_confirmed("/skill/often/rollback", &json!({ "digest": first }));
    assert_eq!((back.status, digest(&daemon, "often")), (200, first), "{back:?}");
    let record = daemon.all("/audit-log?action=skill.rollback&outcome=done").remove(0);
    assert_eq!(record["before_digest"], dry.json["from"], "{record}");
}

/// Goal: comparing what differs everywhere takes a bounded time and a bounded answer.
#[test]
fn large_differences_are_bounded() {
    let folder = home();
    let skill = folder.path().join("skills/wide");
    write_skill(folder.path(), "wide", &["aman.on: t.a"], "exit 0");
    let lines = |seed: u64| -> String { (0..20_000).map(|n| format!("{}\n", (n * 7919 + seed) % 99_991)).collect() };
    let write = |seed: u64| {
        for n in 0..40_u64 {
            fs::write(skill.join(format!("{n}.txt")), lines(seed + n)).expect("a file");
        }
        fs::write(skill.join("odd\nname.txt"), format!("{seed}")).expect("a file");
    };
    write(1);
    let daemon = Daemon::start_in(folder.path());
    write(50_000);
    reload(&daemon);
    let diff = daemon.get("/skill/wide/diff");
    assert_eq!(diff.status, 200, "{}", diff.status);
    let all = diff.json["files"].as_array().expect("files").clone();
    assert_eq!(all.len(), 41);
    assert!(diff.body.len() < 3 << 20, "{} bytes", diff.body.len());
    assert!(all.iter().any(|one| one["diff"].is_null()) && all.iter().any(|one| one["diff"].is_string()));
    let diffs: Vec<&str> = all.iter().filter_map(|one| one["diff"].as_str()).collect();
    assert!(diffs.iter().map(|diff| diff.len()).sum::<usize>() <= 1 << 20);
    assert!(diffs.iter().any(|diff| diff.ends_with("\n…\n")), "what is cut says so");
}
