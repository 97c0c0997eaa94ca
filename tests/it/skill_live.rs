//! Skills that change while the daemon runs: seen at once, trusted as agreed, and never half.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{Daemon, Folder, write_skill};
use crate::skills::ended;

fn gone(daemon: &Daemon, name: &str) -> Option<()> {
    (daemon.get(&format!("/skill/{name}")).status == 404).then_some(())
}

fn shown(daemon: &Daemon, name: &str) -> Option<Value> {
    let answer = daemon.get(&format!("/skill/{name}"));
    (answer.status == 200).then_some(answer.json)
}

/// Goal: a skill that comes, changes, moves and goes is seen without being asked for, in the data folder without a word.
#[test]
fn changes_are_seen_at_once() {
    let mut daemon = Daemon::start();
    let (home, skills) = (daemon.home().to_owned(), daemon.home().join("skills"));
    write_skill(&home, "live", &["aman.on: t.live"], "echo '{\"result\": 1}'");
    daemon.wait("the new skill", || shown(&daemon, "live"));
    let event = daemon.push("t.live", json!({}));
    assert_eq!(ended(&daemon, &event, "live")["result"], 1);
    let first = shown(&daemon, "live").expect("it is there")["digest"].clone();

    write_skill(&home, "live", &["aman.on: t.live t.more"], "echo '{\"result\": 2}'");
    daemon.wait("the change", || {
        let now = shown(&daemon, "live")?;
        (now["digest"] != first && now["triggers"].as_array().map(Vec::len) == Some(2)).then_some(())
    });
    let event = daemon.push("t.more", json!({}));
    assert_eq!(ended(&daemon, &event, "live")["result"], 2);
    assert_eq!(daemon.get("/skills/search?q=live").items().len(), 1);

    // Into a folder of folders, which is watched from then on, too.
    fs::create_dir_all(skills.join("group/deep")).expect("ours");
    fs::rename(skills.join("live"), skills.join("group/deep/live")).expect("ours");
    daemon.wait("the move", || shown(&daemon, "live")?["path"].as_str()?.ends_with("group/deep/live").then_some(()));
    let stats = shown(&daemon, "live").expect("there")["stats"].clone();
    assert_eq!(stats["runs"], 2, "the counts go with the name: {stats}");
    fs::write(skills.join("group/deep/live/scripts/run.sh"), "echo oh >&2; exit 65").expect("ours");
    let moved = shown(&daemon, "live").expect("there")["digest"].clone();
    daemon.wait("the change in a deeper folder", || (shown(&daemon, "live")?["digest"] != moved).then_some(()));
    let event = daemon.push("t.live", json!({}));
    assert_eq!(ended(&daemon, &event, "live")["status"], "dead");

    fs::remove_dir_all(skills.join("group")).expect("ours");
    daemon.wait("the removal", || gone(&daemon, "live"));
    assert!(daemon.get("/skills/search?q=live").items().is_empty());
    daemon.wait("all of it to be told", || {
        let told = daemon.recent("aman.skills.changed");
        let named = |key: &str| told.iter().filter(|event| event["data"][key] == json!(["live"])).count();
        (named("added") == 1 && named("removed") == 1 && named("changed") >= 3).then_some(())
    });

    // Removed and put back, over a restart: it goes on counting.
    daemon.kill();
    daemon.again();
    write_skill(&home, "live", &["aman.on: t.live"], "exit 0");
    let stats = daemon.wait("it is back", || shown(&daemon, "live"))["stats"].clone();
    assert_eq!((&stats["runs"], &stats["failures"]), (&json!(3), &json!(1)), "{stats}");
    assert!(stats["last_error"].as_str().is_some_and(|said| said.contains("oh")), "{stats}");
    assert!(stats["p50_ms"].as_u64().is_some() && stats["last_run"].is_string(), "{stats}");
    // The whole folder goes and comes back.
    fs::rename(&skills, home.join("away")).expect("ours");
    daemon.wait("all gone", || gone(&daemon, "live"));
    fs::rename(home.join("away"), &skills).expect("ours");
    daemon.wait("all back", || shown(&daemon, "live"));
}

/// Goal: outside the data folder a change does not run before it is agreed to; the list, an event and a notification say so,
/// and going back to what was agreed is agreed.
#[test]
fn a_change_elsewhere_waits_for_a_word() {
    let (home, mine) = (Folder::new("live"), Folder::new("mine"));
    let toml = format!("[skills]\npaths = [{:?}]\n", mine.path().join("skills"));
    fs::write(home.path().join("aman.toml"), toml).expect("aman.toml");
    let daemon = Daemon::start_in(home.path());
    // The path appears only now.
    write_skill(mine.path(), "theirs", &["aman.on: t.ask"], "echo '{\"result\": \"old\"}'");
    let first = daemon.wait("the skill", || shown(&daemon, "theirs"));
    assert_eq!(first["standing"], "active", "trusted at first sight");
    let script = mine.path().join("skills/theirs/scripts/run.sh");
    fs::write(&script, "echo '{\"result\": \"new\"}'").expect("ours");
    let now = daemon.wait("the change", || shown(&daemon, "theirs").filter(|now| now["trusted"] == false));
    assert!(now["reason"].as_str().is_some_and(|why| why.contains(now["digest"].as_str().unwrap_or("?"))), "{now}");
    let event = daemon.push("t.ask", json!({}));
    assert_eq!(daemon.dump(&event)["deliveries"], json!([]), "it does not run");
    let (_, out, _) = daemon.cli(&["skill", "list"]);
    assert!(out.lines().any(|line| line.contains("theirs") && line.contains("untrusted")), "{out}");
    assert!(daemon.get("/llm-skills").items().iter().all(|one| one["name"] != "theirs"));
    let told = daemon.wait("the event", || daemon.recent("aman.skill.untrusted").into_iter().next());
    assert_eq!((&told["subject"], &told["data"]["digest"]), (&json!("theirs"), &now["digest"]));
    daemon.wait("the notification", || {
        daemon.get("/notifications").items().into_iter().find(|one| one["category"] == "security")
    });
    fs::write(&script, "echo '{\"result\": \"old\"}'").expect("ours");
    daemon.wait("what was agreed", || shown(&daemon, "theirs").filter(|now| now["trusted"] == true));
    let event = daemon.push("t.ask", json!({}));
    assert_eq!(ended(&daemon, &event, "theirs")["result"], "old");
}

/// Goal: one that breaks is told once with its reason, and disturbs nobody; repaired it goes on.
#[test]
fn a_broken_one_is_told() {
    let daemon = Daemon::start();
    let home = daemon.home().to_owned();
    write_skill(&home, "breaks", &["aman.on: t.b"], "exit 0");
    write_skill(&home, "stays", &["aman.on: t.b"], "exit 0");
    daemon.wait("both", || shown(&daemon, "breaks").and(shown(&daemon, "stays")));
    write_skill(&home, "breaks", &["aman.on: t..b"], "exit 0");
    daemon.wait("the break", || gone(&daemon, "breaks"));
    let told = daemon.wait("the event", || daemon.recent("aman.skill.broken").into_iter().next());
    assert!(told["data"]["error"].as_str().is_some_and(|why| why.contains("metadata.aman.on:")), "{told}");
    daemon.wait("the notification", || {
        let all = daemon.get("/notifications").items();
        all.into_iter().find(|one| one["category"] == "skill" && one["title"] == "A skill cannot be loaded")
    });
    write_skill(&home, "stays", &["aman.on: t.b"], "exit 0 # other");
    daemon.wait("another change", || {
        let told = daemon.recent("aman.skills.changed");
        told.iter().any(|event| event["data"]["changed"] == json!(["stays"])).then_some(())
    });
    assert_eq!(daemon.recent("aman.skill.broken").len(), 1, "it is told once");
    write_skill(&home, "breaks", &["aman.on: t.b"], "exit 0");
    daemon.wait("the repair", || shown(&daemon, "breaks"));
    let event = daemon.push("t.b", json!({}));
    assert_eq!(ended(&daemon, &event, "breaks")["status"], "done");
}

/// Goal: whatever lies among the skills, each good one is loaded and each other one is named with its reason.
#[test]
fn odd_folders_are_named_and_disturb_nobody() {
    let home = Folder::new("live");
    fs::write(home.path().join("aman.toml"), "[skills]\nwatch = false\n").expect("aman.toml");
    let skills = home.path().join("skills");
    let good = |name: &str| write_skill(home.path(), name, &["aman.on: t.a"], "exit 0");
    ["good", "linked", "large", "crowded", "deep", "bytes", "latin"].into_iter().for_each(good);
    symlink("/etc/hostname", skills.join("linked/host")).expect("a link");
    fs::File::create(skills.join("large/huge")).and_then(|file| file.set_len(17 << 20)).expect("a large file");
    (0..501).for_each(|n| fs::write(skills.join(format!("crowded/{n}")), "").expect("a file"));
    fs::create_dir_all(skills.join("deep").join("d/".repeat(12))).expect("folders");
    fs::write(skills.join("bytes").join(OsStr::from_bytes(b"na\xffme")), "x").expect("a file");
    fs::write(skills.join("latin/SKILL.md"), b"---\nname: latin\ndescription: \xe4\n---\n").expect("a file");
    symlink(skills.join("good"), skills.join("alias")).expect("a link");
    let raw = skills.join(OsStr::from_bytes(b"sk\xffll"));
    fs::create_dir(&raw).and_then(|()| fs::copy(skills.join("good/SKILL.md"), raw.join("SKILL.md"))).expect("a folder");
    nix::unistd::mkfifo(&skills.join("bytes/pipe"), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let odd = ["it's \"quoted\" ünïcödé 日本語.txt", "new\nline", "-rf", "back\\slash", " spaces "];
    odd.iter().for_each(|name| fs::write(skills.join("good").join(name), "x").expect("a file"));
    let daemon = Daemon::start_in(home.path());
    let report = daemon.post("/skills/reload", &json!({})).json;
    let failed = report["failed"].as_array().expect("a list").clone();
    for (name, reason) in [
        ("linked", "symbolic link"),
        ("large", "16 MiB"),
        ("crowded", "500 files"),
        ("deep", "deeper than"),
        ("bytes", "skill is made of plain files|no UTF-8"),
        ("latin", "not UTF-8"),
        ("alias", "symbolic link"),
        ("sk\u{fffd}ll", "no UTF-8"),
    ] {
        let told =
            failed.iter().find(|one| one["path"].as_str().is_some_and(|path| path.contains(&format!("skills/{name}"))));
        let error = told.unwrap_or_else(|| panic!("{name} is not told: {report}"))["error"].to_string();
        assert!(reason.split('|').any(|reason| error.contains(reason)), "{name}: {error}");
    }
    assert_eq!(failed.len(), 8, "{report}");
    let content = daemon.get("/skill/good/content").json;
    let names: Vec<&str> =
        content["files"].as_array().expect("files").iter().filter_map(|f| f["path"].as_str()).collect();
    assert!(odd.iter().all(|name| names.contains(name)), "{names:?}");
    let event = daemon.push("t.a", json!({}));
    assert_eq!(ended(&daemon, &event, "good")["status"], "done");
}

/// Goal: names that differ in case only, and names that break the rules, end as one name each, and a renamed folder is the
/// same skill.
#[test]
fn names_are_tamed_and_renames_are_the_same_skill() {
    let home = Folder::new("live");
    let skills = home.path().join("skills");
    write_skill(home.path(), "cased", &["aman.on: t.a"], "exit 0");
    fs::rename(skills.join("cased"), skills.join("Cased")).expect("ours");
    let daemon = Daemon::start_in(home.path());
    let before = shown(&daemon, "cased").expect("it is loaded under its name");
    assert!(before["warnings"][0].as_str().is_some_and(|odd| odd.starts_with("name:")), "{before}");
    fs::rename(skills.join("Cased"), skills.join("cased")).expect("ours");
    let after = daemon.wait("the rename", || {
        shown(&daemon, "cased").filter(|now| now["path"].as_str().is_some_and(|path| path.ends_with("/cased")))
    });
    assert_eq!((&after["digest"], &after["warnings"]), (&before["digest"], &json!([])));
    assert_eq!(daemon.get("/skill/cased/versions").items().len(), 1, "its content is the same");
    let event = daemon.push("t.a", json!({}));
    assert_eq!(ended(&daemon, &event, "cased")["status"], "done");
    // A second one with its name is hidden, and says by what.
    copy(&skills.join("cased"), &skills.join("CASED"));
    let report = daemon.wait("the second", || {
        let report = daemon.post("/skills/reload", &json!({})).json;
        (report["shadowed"].as_array().map(Vec::len) == Some(1)).then_some(report)
    });
    assert_eq!(report["shadowed"][0]["name"], "cased", "{report}");
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.join("scripts")).expect("ours");
    for file in ["SKILL.md", "scripts/run.sh"] {
        fs::copy(from.join(file), to.join(file)).expect("ours");
    }
}
