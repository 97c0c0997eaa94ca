//! Skills through the real binary: what scripts may say and touch, who runs, and what the bundled ones do with files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::harness::{Daemon, Folder};

/// Writes a skill with one script below `folder`.
fn skill(folder: &Path, name: &str, metadata: &[&str], script: &str) -> PathBuf {
    let path = folder.join(name);
    fs::create_dir_all(path.join("scripts")).expect("a folder for the skill");
    let metadata: String = metadata.iter().map(|line| format!("  {line}\n")).collect();
    let text =
        format!("---\nname: {name}\ndescription: A test.\nmetadata:\n  aman.run: sh scripts/run.sh\n{metadata}---\n");
    fs::write(path.join("SKILL.md"), text).expect("SKILL.md");
    fs::write(path.join("scripts/run.sh"), script).expect("script");
    path
}

/// A daemon in a folder that `prepare` filled; keep the folder as long as the daemon.
fn daemon_with(toml: &str, prepare: impl FnOnce(&Path)) -> (Daemon, Folder) {
    let folder = Folder::new("skills");
    fs::write(folder.path().join("aman.toml"), toml).expect("aman.toml");
    prepare(folder.path());
    (Daemon::start_in(folder.path()), folder)
}

/// The delivery of an event to a skill, once it has ended.
pub fn ended(daemon: &Daemon, event: &str, skill: &str) -> Value {
    let consumer = format!("skill/{skill}");
    daemon.wait(&format!("the end of the delivery to {consumer}"), || {
        let dump = daemon.dump(event);
        let delivery = dump["deliveries"].as_array()?.iter().find(|one| one["consumer"] == consumer.as_str())?.clone();
        let status = delivery["status"].as_str()?;
        matches!(status, "done" | "dead" | "discarded" | "expired").then_some(delivery)
    })
}

/// Why an event did or did not reach a skill.
fn reason(daemon: &Daemon, event: &str, skill: &str) -> String {
    let why = daemon.get(&format!("/events/{event}/why")).json;
    let consumer = format!("skill/{skill}");
    let considered = why["considered"].as_array().expect("considered is a list");
    let one = considered.iter().find(|one| one["consumer"] == consumer.as_str());
    one.unwrap_or_else(|| panic!("{consumer} is not in {why}"))["reason"].as_str().expect("a reason").to_owned()
}

/// Files below a folder that do not lie in hidden folders.
fn files(folder: &Path) -> BTreeSet<PathBuf> {
    let (mut found, mut folders) = (BTreeSet::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
            if !entry.path().is_dir() {
                found.insert(entry.path());
            } else if !hidden {
                folders.push(entry.path());
            }
        }
    }
    found
}

/// Goal: each way a script can end has its meaning, and what was wrong is said.
#[test]
fn exit_codes_and_answers_decide() {
    let cases = [
        ("fine", "exit 0", "done", 1, ""),
        ("answers", "echo '{\"result\": {\"n\": 1}}'", "done", 1, ""),
        ("rejects", "echo no >&2; exit 65", "dead", 1, "65"),
        ("again", "exit 75", "dead", 2, "75"),
        ("fails", "exit 3", "dead", 2, "exit code 3"),
        ("killed", "kill -9 $$", "dead", 2, "9"),
        ("chatty", "echo all is well", "dead", 1, "not one JSON object"),
        ("unknown", "echo '{\"publish\": [], \"mails\": []}'", "dead", 1, "unknown field `mails`"),
        ("reserved", "echo '{\"publish\": [{\"type\": \"aman.ready\"}]}'", "dead", 1, "publish/0: type"),
        ("flood", "yes '{}'", "dead", 1, "1 MiB"),
    ];
    let (daemon, _folder) = daemon_with("", |home| {
        for (name, script, ..) in cases {
            let on = format!("aman.on: t.{name}");
            skill(&home.join("skills"), name, &[&on, "aman.retry: attempts=2 base=1ms max=1ms"], script);
        }
    });
    let events: Vec<String> = cases.iter().map(|(name, ..)| daemon.push(&format!("t.{name}"), json!({}))).collect();
    for ((name, _, status, attempts, error), event) in cases.iter().zip(&events) {
        let delivery = ended(&daemon, event, name);
        assert_eq!(
            (&delivery["status"], &delivery["attempt"]),
            (&json!(status), &json!(attempts)),
            "{name}: {delivery}"
        );
        let said = delivery["error"].to_string();
        assert!(said.contains(error), "{name}: {said}");
    }
    let shown = daemon.get("/skill/rejects").json;
    assert_eq!((&shown["stats"]["runs"], &shown["stats"]["failures"]), (&json!(1), &json!(1)), "{shown}");
    assert!(shown["stats"]["last_error"].as_str().is_some_and(|said| said.contains("stderr: no")), "{shown}");
}

/// Goal: what a script asks for happens, in its name, and can be traced.
#[test]
fn effects_are_applied() {
    let script = r#"event=$(cat); n=$(printf %s "$event" | "$AMAN_BIN" jq '.data.n + 1')
        printf '{"publish": [{"type": "t.answer", "subject": "s", "data": {"n": %d}}], "notify": [{"title": "Hi"}]}' "$n""#;
    let (daemon, _folder) = daemon_with("", |home| {
        skill(&home.join("skills"), "adds", &["aman.on: t.ask", "aman.when: '.data.n > 1'"], script);
    });
    let small = daemon.push("t.ask", json!({"n": 1}));
    let event = daemon.push("t.ask", json!({"n": 41}));
    assert_eq!(ended(&daemon, &event, "adds")["status"], "done");
    let answers = daemon.recent("t.answer");
    assert_eq!(answers.len(), 1, "{answers:?}");
    let answer = &answers[0];
    let parts = (&answer["source"], &answer["subject"], &answer["data"]["n"], &answer["causationid"]);
    assert_eq!(parts, (&json!("skill/adds"), &json!("s"), &json!(42), &json!(event)));
    assert_eq!(reason(&daemon, &small, "adds"), "condition_false");
    assert_eq!(reason(&daemon, &event, "adds"), "matched");
    let why = daemon.get(&format!("/events/{event}/why")).json;
    let kinds: BTreeSet<&str> =
        why["effects"].as_array().expect("effects").iter().filter_map(|effect| effect["kind"].as_str()).collect();
    assert!(kinds.contains("event") && kinds.contains("notification"), "{why}");
}

/// Goal: a script sees the promised variables, its own folder of this attempt, and nothing of the daemon's.
#[test]
fn surroundings_are_scrubbed() {
    let script = r#"
        touch "$AMAN_WORK_DIR/mine"
        names=$(env | cut -d= -f1 | sort | tr '\n' ' ')
        token=hidden; cat "$AMAN_DATA/token" "$AMAN_DATA/aman.db" > /dev/null 2>&1 && token=seen
        other=kept; touch "$AMAN_DATA/made" 2> /dev/null && other=made
        self=kept; touch "$AMAN_SKILL_DIR/made" 2> /dev/null && self=made
        printf '{"publish": [{"type": "t.seen", "data": {"names": "%s", "home": "%s", "work": "%s", "pwd": "%s",
            "token": "%s", "other": "%s", "self": "%s", "files": %d, "delivery": "%s", "attempt": "%s"}}]}' \
            "$names" "$HOME" "$AMAN_WORK_DIR" "$(pwd)" "$token" "$other" "$self" "$(ls "$HOME" | wc -l)" \
            "$AMAN_DELIVERY_ID" "$AMAN_ATTEMPT""#;
    let folder = Folder::new("skills");
    skill(&folder.path().join("skills"), "looks", &["aman.on: t.look"], script);
    let leak = [("LEAK", "secret"), ("LD_PRELOAD", ""), ("AMAN_LOG", "info")];
    let daemon = Daemon::try_start_in(folder.path(), &leak).expect("it starts");
    let event = daemon.push("t.look", json!({}));
    let delivery = ended(&daemon, &event, "looks");
    assert_eq!(delivery["status"], "done", "{delivery}");
    let seen = daemon.recent("t.seen")[0]["data"].clone();
    let names: Vec<&str> = seen["names"].as_str().expect("names").split_whitespace().collect();
    let promised = [
        "AMAN_ATTEMPT",
        "AMAN_BIN",
        "AMAN_DATA",
        "AMAN_DELIVERY_ID",
        "AMAN_EVENT_ID",
        "AMAN_SKILL_DIR",
        "AMAN_WORK_DIR",
        "HOME",
        "LANG",
        "PATH",
        "PWD",
        "PYTHONDONTWRITEBYTECODE",
        "TMPDIR",
    ];
    // The shell itself adds PWD, and some shells `_`, SHLVL and OLDPWD.
    let others: Vec<_> = names.iter().filter(|name| !promised.contains(name)).collect();
    assert!(others.iter().all(|name| ["_", "SHLVL", "OLDPWD"].contains(name)), "{names:?}");
    assert_eq!(seen["home"], seen["work"]);
    assert_eq!((&seen["files"], &seen["attempt"], &seen["delivery"]), (&json!(1), &json!("1"), &delivery["id"]));
    assert_eq!(Path::new(seen["pwd"].as_str().expect("a path")), folder.path().join("skills/looks"));
    assert!(!Path::new(seen["work"].as_str().expect("a path")).exists(), "the work folder is gone after the attempt");
    let enforced = daemon.get("/skill/looks").json["enforced"].clone();
    if enforced["filesystem"].as_str().is_some_and(|by| by.starts_with("landlock")) {
        let touched = (&seen["token"], &seen["other"], &seen["self"]);
        assert_eq!(touched, (&json!("hidden"), &json!("kept"), &json!("kept")));
    }
}

/// Goal: the time limit ends everything that a script started.
#[test]
fn time_limit_ends_the_whole_group() {
    let mark = format!("{}.{}", 90_000, std::process::id());
    let script = format!("sleep {mark} & (sleep {mark} & sleep {mark}) & sleep {mark}");
    let (daemon, _folder) = daemon_with("", |home| {
        skill(
            &home.join("skills"),
            "sleeps",
            &["aman.on: t.sleep", "aman.timeout: 1s", "aman.retry: attempts=1"],
            &script,
        );
    });
    let event = daemon.push("t.sleep", json!({}));
    let delivery = ended(&daemon, &event, "sleeps");
    assert_eq!(delivery["status"], "dead");
    assert!(delivery["error"].to_string().contains("took longer than its 1 s"), "{delivery}");
    let alive = fs::read_dir("/proc").expect("/proc").flatten().filter(|process| {
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        line.starts_with(b"sleep\0") && String::from_utf8_lossy(&line).contains(&mark)
    });
    assert_eq!(alive.count(), 0, "nothing that the script started is alive");
}

/// Goal: switched off means off, at once and after a restart, and /why says so.
#[test]
fn disabled_skills_do_not_run() {
    let (mut daemon, _folder) = daemon_with("", |home| {
        skill(&home.join("skills"), "works", &["aman.on: t.work"], "exit 0");
        skill(&home.join("skills"), "thinks", &["aman.on: t.work", "aman.run: agent"], "exit 0");
        let text = "---\nname: reads\ndescription: Text only.\nmetadata: {aman.on: t.work}\n---\nRead me.\n";
        fs::create_dir_all(home.join("skills/reads")).expect("folder");
        fs::write(home.join("skills/reads/SKILL.md"), text).expect("file");
        // The first `aman.run` is the helper's; an agent has another.
        let path = home.join("skills/thinks/SKILL.md");
        let text = fs::read_to_string(&path).expect("file").replace("  aman.run: sh scripts/run.sh\n", "");
        fs::write(path, text).expect("file");
    });
    let off = daemon.post("/skill/works/disable", &json!({}));
    assert_eq!((off.status, &off.json["enabled"], &off.json["standing"]), (200, &json!(false), &json!("disabled")));
    let event = daemon.push("t.work", json!({}));
    assert_eq!(reason(&daemon, &event, "works"), "disabled");
    assert_eq!(reason(&daemon, &event, "thinks"), "disabled");
    assert_eq!(daemon.dump(&event)["deliveries"], json!([]));
    let thinks = daemon.get("/skill/thinks").json;
    assert_eq!((&thinks["kind"], &thinks["reason"]), (&json!("agent"), &json!("no model configured")), "{thinks}");
    let reads = daemon.get("/skill/reads").json;
    assert_eq!((&reads["kind"], &reads["triggers"]), (&json!("instructions"), &json!([{"on": "t.work"}])), "{reads}");
    assert!(
        daemon.get("/skill/reads/content").json["content"].as_str().is_some_and(|text| text.ends_with("Read me.\n"))
    );
    daemon.kill();
    daemon.again();
    assert_eq!(daemon.get("/skill/works").json["enabled"], false);
    let on = daemon.post("/skill/works/enable", &json!({}));
    assert_eq!((on.status, &on.json["standing"]), (200, &json!("active")), "{on:?}");
    let event = daemon.push("t.work", json!({}));
    assert_eq!(ended(&daemon, &event, "works")["status"], "done");
    assert_eq!(daemon.get("/skill/nobody").status, 404);
    assert_eq!(daemon.post("/skill/nobody/enable", &json!({})).code(), "not_found");
}

/// Goal: a content that changed outside the data folder does not run before it was looked at; not even when nobody
/// told the daemon of the change.
#[test]
fn changed_content_is_untrusted() {
    let others = Folder::new("configured");
    let path = skill(others.path(), "theirs", &["aman.on: t.ask"], "echo '{\"publish\": [{\"type\": \"t.old\"}]}'");
    let toml = format!("[skills]\npaths = [{:?}]\n", others.path().display().to_string());
    let (mut daemon, _folder) = daemon_with(&toml, |_| {});
    let event = daemon.push("t.ask", json!({}));
    assert_eq!(ended(&daemon, &event, "theirs")["status"], "done", "trusted at first sight");
    let before = daemon.get("/skill/theirs").json["digest"].clone();

    fs::write(path.join("scripts/run.sh"), "echo '{\"publish\": [{\"type\": \"t.new\"}]}'").expect("script");
    let waiting = daemon.push("t.ask", json!({}));
    daemon.wait("the change to be noticed", || (daemon.get("/skill/theirs").json["trusted"] == false).then_some(()));
    assert!(daemon.recent("t.new").is_empty(), "the new content has not run");
    let event = daemon.push("t.ask", json!({}));
    assert_eq!(reason(&daemon, &event, "theirs"), "untrusted");

    daemon.kill();
    daemon.again();
    let shown = daemon.get("/skill/theirs").json;
    assert_eq!((&shown["trusted"], &shown["standing"]), (&json!(false), &json!("untrusted")), "{shown}");
    let digest = shown["digest"].clone();
    assert_ne!(digest, before);
    assert_eq!(daemon.post("/skill/theirs/enable", &json!({})).code(), "invalid_state");
    assert_eq!(daemon.post("/skill/theirs/enable", &json!({"digest": before})).code(), "version_conflict");
    assert_eq!(daemon.post("/skill/theirs/enable", &json!({"digest": digest})).json["standing"], "active");
    assert_eq!(ended(&daemon, &waiting, "theirs")["status"], "done", "what waited goes on");
    assert_eq!(daemon.recent("t.new").len(), 1);
}

/// Goal: a reload finds what came, changed and went; a broken skill is named with its field and disturbs nobody.
#[test]
fn reload_reports() {
    let (daemon, folder) = daemon_with("[skills]\nwatch = false\n", |home| {
        skill(&home.join("skills"), "stays", &["aman.on: t.a"], "exit 0");
        skill(&home.join("skills"), "goes", &["aman.on: t.a"], "exit 0");
    });
    let skills = folder.path().join("skills");
    skill(&skills, "comes", &["aman.on: t.a", "aman.onn: x"], "exit 0");
    skill(&skills, "stays", &["aman.on: t.b"], "exit 0");
    skill(&skills, "broken", &["aman.on: t..a", "aman.timeout: soon"], "exit 0");
    skill(&skills, "inbox-triage", &["aman.on: t.a"], "exit 0");
    fs::remove_dir_all(skills.join("goes")).expect("removable");
    let report = daemon.post("/skills/reload", &json!({})).json;
    assert_eq!((&report["added"], &report["changed"]), (&json!(["comes"]), &json!(["stays"])), "{report}");
    assert_eq!(report["removed"], json!(["goes"]));
    let failed = &report["failed"][0];
    assert!(failed["path"].as_str().is_some_and(|path| path.ends_with("broken/SKILL.md")), "{report}");
    for field in ["metadata.aman.on:", "metadata.aman.timeout:"] {
        assert!(failed["error"].as_str().is_some_and(|error| error.contains(field)), "{report}");
    }
    assert_eq!(report["shadowed"][0]["name"], "inbox-triage");
    assert!(daemon.get("/skill/comes").json["warnings"][0].as_str().is_some_and(|odd| odd.contains("aman.on?")));
    let names: Vec<Value> =
        daemon.get("/skills").json["items"].as_array().expect("a list").iter().map(|one| one["name"].clone()).collect();
    assert_eq!(names, ["comes", "dlq-summary", "folder-digest", "inbox-triage", "stays"]);
    let event = daemon.push("t.b", json!({}));
    assert_eq!(ended(&daemon, &event, "stays")["status"], "done");
    // In the data folder a change needs no word, even when nobody asked for a reload.
    fs::write(skills.join("stays/scripts/run.sh"), "echo '{\"result\": \"new\"}'").expect("script");
    let event = daemon.push("t.b", json!({}));
    assert_eq!(ended(&daemon, &event, "stays")["status"], "done");
    assert_eq!(daemon.post("/skills/reload", &json!({})).json["changed"], json!([]), "the run has noticed it");
}

/// Names that break careless scripts.
const NASTY: [&str; 14] = [
    "plain.pdf",
    "two words.txt",
    "-rf",
    "--help.md",
    "it's \"quoted\".png",
    "$HOME `id` $(id).csv",
    "back\\slash\\n.md",
    "new\nline.jpg",
    "ends with a new line\n",
    "*?[a-z].zip",
    "ünïcödé 日本語 🗂.epub",
    " spaces around ",
    "%s%d%n.eml",
    "Invoice ACME 2026-03-14.pdf",
];

/// Puts a file into the inbox in one step, as programs do that care.
fn drop_file(home: &Path, name: &str, text: &str) {
    let making = home.join("dropping.tmp");
    fs::write(&making, text).expect("file");
    fs::rename(making, home.join("inbox").join(name)).expect("moved into the inbox");
}

/// The `document.filed` events: where from and where to.
fn filed(daemon: &Daemon) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    daemon
        .recent("document.filed")
        .iter()
        .map(|event| (text(&event["data"]["from"]), text(&event["data"]["to"])))
        .collect()
}

/// Goal: every file of the inbox ends filed, whatever it is called, none is overwritten, and all of it is written down.
#[test]
fn inbox_is_triaged() {
    let daemon = Daemon::start();
    let home = daemon.home();
    for name in NASTY {
        drop_file(home, name, name);
    }
    drop_file(home, "half.part", "not complete");
    daemon.wait("every file to be filed", || (filed(&daemon).len() == NASTY.len()).then_some(()));
    for name in NASTY {
        let to = filed(&daemon).into_iter().find(|(from, _)| Path::new(from) == home.join("inbox").join(name));
        let (_, to) = to.unwrap_or_else(|| panic!("{name:?} is in no event"));
        assert_eq!(fs::read_to_string(&to).ok().as_deref(), Some(name), "{to:?}");
        assert_eq!(Path::new(&to).file_name().and_then(|n| n.to_str()), Some(name));
    }
    assert!(home.join("filed/invoices/2026-03/Invoice ACME 2026-03-14.pdf").exists());
    let left = files(&home.join("inbox"));
    assert_eq!(left, BTreeSet::from([home.join("inbox/half.part")]));

    drop_file(home, "plain.pdf", "another one");
    daemon.wait("the second of a name", || (filed(&daemon).len() == NASTY.len() + 1).then_some(()));
    let (_, to) = filed(&daemon).remove(0);
    assert!(to.ends_with("/plain-1.pdf"), "{to}");
    let journal = fs::read_to_string(home.join("filed/journal.md")).expect("a journal");
    assert_eq!(journal.lines().filter(|line| line.starts_with("- ")).count(), NASTY.len() + 1, "{journal}");

    fs::write(home.join("inbox-rules.txt"), "mine name *.own\r\nleave name *\n").expect("rules");
    drop_file(home, "by others.txt", "stays");
    drop_file(home, "a.own", "by own rules");
    daemon.wait("the file by own rules", || files(&home.join("filed/mine")).into_iter().next());
    // The digest counts the same changes, each once; what the source takes for half a file is no change yet.
    let digest = daemon.wait("the digest", || files(&home.join("digests")).into_iter().next());
    let lines = || fs::read_to_string(&digest).unwrap_or_default().matches(" created `").count();
    daemon.wait("every creation in the digest", || (lines() == NASTY.len() + 3).then_some(()));
    assert!(home.join("inbox/by others.txt").exists());
}

/// Goal: SIGKILL at any moment leaves no file lost, filed twice or written down twice.
#[test]
fn triage_survives_kills() {
    const ROUNDS: usize = 4;
    const FILES: usize = 6;
    let (mut daemon, folder) = daemon_with("", |_| {});
    let home = folder.path();
    for round in 0..ROUNDS {
        for n in 0..FILES {
            drop_file(home, &format!("{round}-{n}.txt"), &format!("content {round}-{n}"));
        }
        // Some work is done by then, some is under way, some is not begun.
        let some = (round + 1) * FILES / 2;
        daemon.wait("some files to be filed", || (files(&home.join("filed")).len() > some).then_some(()));
        std::thread::sleep(std::time::Duration::from_millis(u64::try_from(round).unwrap_or(0) * 17));
        daemon.kill();
        daemon.again();
    }
    let all = ROUNDS * FILES;
    daemon.wait("every file to be filed", || (filed(&daemon).len() >= all).then_some(()));
    daemon.wait("the inbox to be empty", || files(&home.join("inbox")).is_empty().then_some(()));
    let targets: BTreeSet<String> = filed(&daemon).into_iter().map(|(_, to)| to).collect();
    assert_eq!((filed(&daemon).len(), targets.len()), (all, all), "each file has one event");
    let mut contents = BTreeSet::new();
    for to in &targets {
        contents.insert(fs::read_to_string(to).expect("a filed file"));
    }
    assert_eq!(contents.len(), all);
    let documents = files(&home.join("filed")).into_iter().filter(|path| !path.ends_with("journal.md"));
    assert_eq!(documents.count(), all, "no file is there twice");
    let journal = fs::read_to_string(home.join("filed/journal.md")).expect("a journal");
    assert_eq!(journal.lines().filter(|line| line.starts_with("- ")).count(), all, "{journal}");
}

/// Goal: what dies is summed up by its fingerprint, and the summary's own failures start no circle.
#[test]
fn dead_letters_are_summed_up() {
    let (daemon, folder) = daemon_with("", |home| {
        skill(&home.join("skills"), "dies", &["aman.on: t.die"], "echo 'it`s <b>over</b>' >&2; exit 65");
    });
    for _ in 0..3 {
        daemon.push("t.die", json!({}));
    }
    let report = folder.path().join("reports/dead-letters.md");
    let read = || fs::read_to_string(&report).unwrap_or_default();
    daemon.wait("three letters in the report", || read().contains("- 3 letters").then_some(()));
    assert_eq!(read().matches("\n## skill/dies").count(), 1, "{}", read());
    assert!(!read().contains("<b>"), "{}", read());
    let dead = daemon.recent("aman.delivery.dead");
    assert_eq!(dead.len(), 3);
    for event in &dead {
        assert_eq!(ended(&daemon, event["id"].as_str().expect("an id"), "dlq-summary")["status"], "done");
    }
    // A summary that cannot be written dies itself; that death is not summed up.
    fs::remove_dir_all(folder.path().join("reports")).expect("removable");
    fs::write(folder.path().join("reports"), "in the way").expect("file");
    daemon.push("t.die", json!({}));
    daemon.wait("the death of the summary", || {
        daemon.get("/dlq?consumer=skill/dlq-summary").json["items"].get(0).map(|_| ())
    });
    let told = daemon.recent("aman.delivery.dead");
    assert!(told.iter().all(|event| event["data"]["consumer"] != "skill/dlq-summary"), "{told:?}");
}
