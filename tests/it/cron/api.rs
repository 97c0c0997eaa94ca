//! Cron over HTTP and by the command line, in the real binary.

use serde_json::{Value, json};

use crate::harness::{Daemon, Folder, TOKEN, wait, write_skill};

/// Goal: a job can be added, seen, changed, previewed, run and removed; each change is on record, dry runs are not.
#[test]
fn the_life_of_a_job() {
    let daemon = Daemon::start();
    let job =
        json!({ "id": "digest", "expression": "0 8 * * 1-5", "timezone": "Europe/Berlin", "payload": { "n": 1 } });
    let dry = daemon.post("/cron/add?dry_run=true", &job);
    assert_eq!((dry.status, &dry.json["dry_run"]), (200, &json!(true)), "{dry:?}");
    assert_eq!(dry.json["next"].as_array().map(Vec::len), Some(5));
    assert_eq!(daemon.get("/cron/digest").code(), "not_found");
    let added = daemon.post("/cron/add", &job);
    assert_eq!((added.status, added.header("location")), (201, Some("/cron/digest")), "{added:?}");
    for (field, value) in [
        ("id", json!("digest")),
        ("origin", json!("api")),
        ("timezone", json!("Europe/Berlin")),
        ("type", json!("cron.fired")),
        ("misfire", json!("run_once")),
        ("overlap", json!("skip")),
        ("enabled", json!(true)),
    ] {
        assert_eq!(added.json[field], value, "{field}");
    }
    assert_eq!(daemon.post("/cron/add", &job).code(), "already_exists");
    let next = daemon.get("/cron/digest/next?count=3");
    assert_eq!(next.items().len(), 3);
    for item in next.items() {
        let local = item["local"].as_str().expect("a local time");
        assert!(local.contains("T08:00:00+0") && local.ends_with("[Europe/Berlin]"), "{local}");
    }
    let patch = json!({ "misfire": { "within": "10m" }, "payload": { "m": 2 }, "timezone": null });
    let dry = daemon.post("/cron/digest/update?dry_run=true", &patch);
    assert_eq!((&dry.json["timezone"], &dry.json["dry_run"]), (&json!("UTC"), &json!(true)));
    assert_eq!(daemon.get("/cron/digest").json["timezone"], "Europe/Berlin");
    let changed = daemon.post("/cron/digest/update", &patch).json;
    assert_eq!((&changed["timezone"], &changed["misfire"]), (&json!("UTC"), &json!({ "within": "10m" })));
    assert_eq!(changed["payload"], json!({ "n": 1, "m": 2 }));
    let token = format!("Bearer {TOKEN}");
    let headers = [("authorization", token.as_str()), ("idempotency-key", "once")];
    let run = daemon.send("POST", "/cron/digest/run", &headers, Some(&json!({})));
    assert_eq!(run.status, 200, "{run:?}");
    // The same request again is answered the same, and nothing runs.
    assert_eq!(daemon.send("POST", "/cron/digest/run", &headers, Some(&json!({}))).json, run.json);
    assert_eq!(daemon.recent("cron.fired").len(), 1);
    let id = run.json["event_id"].as_str().expect("an id").to_owned();
    assert!(id.starts_with("digest@") && id.contains("-manual-"), "{id}");
    assert_eq!(daemon.dump(&id)["event"]["data"], json!({ "n": 1, "m": 2 }));
    daemon.wait("the end of the run", || {
        let runs = daemon.get("/cron/digest/runs").items();
        (runs[0]["status"] == "done" && runs[0]["kind"] == "manual" && runs[0]["event_id"] == id.as_str()).then_some(())
    });
    assert_eq!(daemon.get("/cron").items().len(), 1);
    assert_eq!(daemon.get("/cron/digest/runs?status=failed").items().len(), 0);
    let removed = daemon.post("/cron/digest/remove", &json!({}));
    assert_eq!(removed.json["deleted"], true, "{removed:?}");
    assert_eq!(daemon.get("/cron/digest/runs").code(), "not_found");
    let actions: Vec<Value> =
        daemon.get("/audit-log?limit=100").items().into_iter().map(|record| record["action"].clone()).collect();
    let cron = |action: &str| actions.iter().filter(|known| **known == action).count();
    // The one that was refused is on record too.
    assert_eq!(
        (cron("cron.add"), cron("cron.update"), cron("cron.run"), cron("cron.remove")),
        (2, 1, 1, 1),
        "{actions:?}"
    );
}

/// Goal: what is wrong is refused by the name of its field, and nothing is stored.
#[test]
fn what_is_wrong_is_named() {
    let daemon = Daemon::start();
    let with = |name: &str, value: Value| {
        let mut job = json!({ "id": "x", "expression": "* * * * *" });
        job[name] = value;
        job
    };
    for (name, value) in [
        ("id", json!("add")),
        ("id", json!("A b")),
        ("id", Value::Null),
        ("expression", json!("never")),
        ("expression", json!("0 0 30 2 *")),
        ("timezone", json!("Europe/Atlantis")),
        ("type", json!("aman.x")),
        ("workflow", json!("w")),
        ("skill", json!("nobody")),
        ("misfire", json!("maybe")),
        ("jitter_s", json!(-3)),
        ("surprise", json!(1)),
    ] {
        let answer = daemon.post("/cron/add", &with(name, value.clone()));
        assert_eq!((answer.status, answer.code(), answer.fields()), (400, "invalid_input", vec![name]), "{value}");
    }
    assert!(daemon.get("/cron").items().is_empty());
    assert_eq!(daemon.post("/cron/add", &with("enabled", json!(false))).status, 201);
    for (path, body, status) in [
        ("/cron/x/update", json!({ "id": "y" }), 400),
        ("/cron/x/update", json!({ "expression": null }), 400),
        ("/cron/x/run", json!({ "now": true }), 400),
        ("/cron/none/run", json!({}), 404),
        ("/cron/none/update", json!({}), 404),
        ("/cron/none/remove", json!({}), 404),
    ] {
        assert_eq!(daemon.post(path, &body).status, status, "{path} {body}");
    }
    for (path, status) in [("/cron/add", 405), ("/cron/x/next?count=0", 400), ("/cron/x/runs?status=odd", 400)] {
        assert_eq!(daemon.get(path).status, status, "{path}");
    }
}

/// Goal: the plan of a skill is a job; it and a job for a skill reach that skill and no other, and `/why` says so.
#[test]
fn skills_are_reached() {
    let folder = Folder::new("cron-skills");
    let home = folder.path();
    let script = "read -r event; printf '{\"publish\":[{\"type\":\"ran.'\"${AMAN_SKILL_DIR##*/}\"'\"}]}'";
    write_skill(home, "planned", &["aman.schedule: \"* * * * * *\"", "aman.timezone: Europe/Berlin"], script);
    write_skill(home, "asked", &[], script);
    write_skill(home, "other", &["aman.on: x.y"], script);
    std::fs::write(
        home.join("aman.toml"),
        "[cron.ask]\nexpression = \"0 0 1 1 *\"\nskill = \"asked\"\n[cron.lost]\nexpression = \"* * * * * *\"\nskill = \"gone\"\n",
    )
    .expect("aman.toml");
    let mut daemon = Daemon::start_in(home);
    let job = daemon.get("/cron/skill:planned").json;
    assert_eq!(
        (&job["origin"], &job["timezone"], &job["skill"]),
        (&json!("skill"), &json!("Europe/Berlin"), &json!("planned"))
    );
    daemon.wait("a run by plan", || (!daemon.recent("ran.planned").is_empty()).then_some(()));
    let run = daemon.post("/cron/ask/run", &json!({}));
    assert_eq!(run.status, 200, "{run:?}");
    daemon.wait("the run that was asked for", || (!daemon.recent("ran.asked").is_empty()).then_some(()));
    let id = run.json["event_id"].as_str().expect("an id");
    let why = daemon.get(&format!("/events/{}/why", id.replace(':', "%3A"))).json;
    let matched: Vec<&Value> =
        why["considered"].as_array().expect("a list").iter().filter(|one| one["matched"] == true).collect();
    assert_eq!((matched.len(), &matched[0]["consumer"]), (1, &json!("skill/asked")), "{why}");
    assert!(daemon.recent("ran.other").is_empty());
    daemon.wait("a slot without its skill", || {
        let runs = daemon.get("/cron/lost/runs").items();
        (!runs.is_empty() && runs.iter().all(|run| run["reason"] == "skill_missing")).then_some(())
    });
    // What is defined elsewhere is switched here, and changed and removed there.
    assert_eq!(daemon.post("/cron/ask/update", &json!({ "expression": "@daily" })).code(), "invalid_state");
    assert_eq!(daemon.post("/cron/skill:planned/remove", &json!({})).code(), "invalid_state");
    assert_eq!(daemon.post("/cron/skill:planned/update", &json!({ "enabled": false })).json["enabled"], false);
    assert_eq!(daemon.post("/skill/asked/disable", &json!({})).status, 200);
    assert_eq!(daemon.post("/cron/ask/run", &json!({})).code(), "invalid_state");
    // A reload without the skill takes its job away; another start without a job in the file too.
    std::fs::remove_dir_all(home.join("skills/planned")).expect("the skill can be removed");
    assert_eq!(daemon.post("/skills/reload", &json!({})).status, 200);
    daemon.wait("the end of the job", || (daemon.get("/cron/skill:planned").status == 404).then_some(()));
    daemon.kill();
    std::fs::write(home.join("aman.toml"), "[cron.ask]\nexpression = \"@daily\"\n").expect("aman.toml");
    daemon.again();
    let left: Vec<Value> = daemon.get("/cron").items().into_iter().map(|job| job["id"].clone()).collect();
    assert_eq!(left, [json!("ask")]);
    assert_eq!(daemon.get("/cron/ask").json["expression"], "@daily");
}

/// Goal: a broken job in the file is told by its setting.
#[test]
fn a_broken_job_in_the_file_is_named() {
    let folder = Folder::new("cron-broken");
    std::fs::write(folder.path().join("aman.toml"), "[cron.digest]\nexpression = \"soon\"\n").expect("aman.toml");
    let Err(log) = Daemon::try_start_in(folder.path(), &[]) else { panic!("the daemon takes a broken job") };
    assert!(log.contains("cron.digest.expression"), "{log}");
}

/// Goal: each command of `aman cron` does what it says.
#[test]
fn the_command_line() {
    let daemon = Daemon::start();
    let run = |args: &[&str], code: i32, part: &str| {
        let (exit, out, complaint) = daemon.cli(&[&["cron"], args].concat());
        assert_eq!(exit, code, "aman cron {args:?}: {out}{complaint}");
        assert!(out.contains(part) || complaint.contains(part), "aman cron {args:?}: {out}{complaint}");
    };
    run(&["list"], 0, "No job yet");
    run(&["add", "tick", "0 8 * * *", "--timezone", "Mars/Base"], 1, "timezone");
    run(&["add", "tick", "0 8 * * *", "--dry-run"], 0, "Nothing was touched");
    run(&["add", "tick", "0 8 * * *", "--misfire", "within=10m", "--type", "a.b"], 0, "Added tick");
    run(&["show", "tick"], 0, "08:00");
    run(&["list"], 0, "a.b");
    run(&["next", "tick", "--count", "2"], 0, "T08:00:00");
    run(&["update", "tick", "--disable"], 0, "switched off");
    run(&["run", "tick"], 0, "Running tick");
    run(&["runs", "tick"], 0, "manual");
    run(&["remove", "tick"], 2, "--yes");
    run(&["remove", "tick", "--yes"], 0, "Removed tick");
    run(&["show", "tick"], 1, "tick");
    wait("the event of the run", || (!daemon.recent("a.b").is_empty()).then_some(()), || daemon.log());
}

/// Goal: a job that somebody added is not taken over by the configuration, which says so, and outlives it.
#[test]
fn the_configuration_takes_no_job_of_somebody_else() {
    let daemon = Daemon::start();
    let added = json!({ "id": "mine", "expression": "0 20 * * *" });
    assert_eq!(daemon.post("/cron/add", &added).status, 201);
    let file = daemon.home().join("aman.toml");
    std::fs::write(&file, "[cron.mine]\nexpression = \"0 21 * * *\"\n").expect("aman.toml");
    let reloaded = daemon.post("/config/reload", &json!({}));
    assert_eq!(reloaded.json["failed"][0]["field"], "cron.mine", "{reloaded:?}");
    std::fs::write(&file, "").expect("aman.toml");
    assert_eq!(daemon.post("/config/reload", &json!({})).status, 200);
    let kept = daemon.get("/cron/mine").json;
    assert_eq!((&kept["origin"], &kept["expression"]), (&json!("api"), &json!("0 20 * * *")));
}
