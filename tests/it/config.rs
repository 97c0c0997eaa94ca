//! The configuration: layers, changes while the daemon runs, safe mode, schemas of event types, `aman config`.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Daemon, Folder, PATIENCE, Stream, command, on_terminal};
use crate::peer::Peer;

/// A setting as `/runtime/config` shows it.
fn setting(daemon: &Daemon, key: &str) -> Value {
    let items = daemon.get("/runtime/config").items();
    items.into_iter().find(|item| item["key"] == key).unwrap_or_else(|| panic!("{key} is shown"))
}

fn set(daemon: &Daemon, changes: Value) -> Value {
    let answer = daemon.post_confirmed("/config/set", &json!({ "changes": changes }));
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json
}

/// Goal: a change over HTTP holds at once where it can, says when it cannot, is kept, recorded, and can be taken back.
#[test]
fn changes_are_live_kept_and_recorded() {
    let mut daemon = Daemon::configured("[http]\npublic_stream = \"metadata\"\n");
    assert_eq!(setting(&daemon, "http.public_stream")["origin"], "file");
    assert_eq!(setting(&daemon, "http.bind")["origin"], "env");
    let mut open = Stream::open(&daemon, "/events/stream", &[]);
    assert_eq!(open.status, 200);
    let answer = set(&daemon, json!({ "http.public_stream": "off", "bus.durability": "normal" }));
    assert_eq!((&answer["version"], &answer["applied"]), (&json!(1), &json!(["http.public_stream"])));
    assert_eq!(answer["requires_restart"], json!(["bus.durability"]));
    assert_eq!(Stream::open(&daemon, "/events/stream", &[]).status, 401, "it holds at once");
    assert_eq!(open.next(), None, "also for those that were let in before");
    assert_eq!(setting(&daemon, "http.public_stream")["origin"], "override");
    assert_eq!(setting(&daemon, "bus.durability")["running"], "full");
    let record = daemon.get("/audit-log?action=config.set").items()[0].clone();
    assert_eq!((&record["target"], &record["outcome"]), (&json!("config"), &json!("done")));
    assert_ne!(record["before_digest"], record["after_digest"]);
    assert!(record["detail"].to_string().contains("http.public_stream"), "{record}");
    daemon.kill();
    daemon.again();
    assert_eq!(Stream::open(&daemon, "/events/stream", &[]).status, 401, "it is kept");
    let durability = setting(&daemon, "bus.durability");
    assert_eq!((&durability["value"], durability.get("running")), (&json!("normal"), None));
    let answer = set(&daemon, json!({ "http.public_stream": null }));
    assert_eq!(answer["items"][0]["value"], "metadata", "the layer below holds again");
    assert_eq!(setting(&daemon, "http.public_stream")["origin"], "file");
    assert_eq!(daemon.get("/runtime/config").json["version"], 2, "versions grow only");
}

/// Goal: each setting that is said to be live is.
#[test]
fn live_settings_hold_at_once() {
    let daemon = Daemon::start();
    set(&daemon, json!({ "http.strict_confirm": true }));
    assert_eq!(daemon.post("/dlq/x/discard", &json!({})).code(), "confirmation_required");
    set(&daemon, json!({ "http.allowed_hosts": ["aman.local"] }));
    assert_eq!(daemon.send("GET", "/health/live", &[("host", "Aman.Local:1")], None).status, 200);
    set(&daemon, json!({ "http.allowed_hosts": [] }));
    assert_eq!(daemon.send("GET", "/health/live", &[("host", "aman.local")], None).status, 421);
    set(&daemon, json!({ "debug.force_enable_debug_endpoints": true }));
    assert_eq!(daemon.post("/inject-event", &json!({ "source": "t", "type": "a" })).status, 202);
    set(&daemon, json!({ "bus.dedup_window": "1ms" }));
    let keyed = json!({ "source": "t", "type": "a", "dedup_key": "k" });
    daemon.post("/events/push", &keyed);
    daemon.wait("the key to be forgotten", || {
        (daemon.post("/events/push", &keyed).json["deduplicated"] == false).then_some(())
    });
    assert!(!daemon.log().contains("DEBUG") && !daemon.log().contains("TRACE"));
    set(&daemon, json!({ "log.level": "trace" }));
    daemon.wait("more to be logged", || {
        daemon.get("/health");
        let log = daemon.log();
        (log.contains("DEBUG") || log.contains("TRACE")).then_some(())
    });
    set(&daemon, json!({ "http.owner_rate_limit": 1 }));
    daemon.wait("the limit", || (daemon.get("/dlq/depth").status == 429).then_some(()));
}

/// Goal: what may not be set over HTTP, and what is wrong, is refused by name, and nothing is changed.
#[test]
fn refusals_name_the_key() {
    let daemon = Daemon::start();
    for (key, value, status, code) in [
        ("http.token", json!("0123456789abcdef"), 403, "not_settable"),
        ("http.auth", json!("none"), 403, "not_settable"),
        ("http.allow_remote", json!(true), 403, "not_settable"),
        ("http.tls.key", json!("/tmp/key"), 403, "not_settable"),
        ("skills.paths", json!(["/tmp"]), 403, "not_settable"),
        ("sources.x.command", json!(["sh"]), 403, "not_settable"),
        ("http.allowed_hosts", json!(["env:HOME"]), 403, "not_settable"),
        ("http.public_steam", json!("off"), 400, "invalid_input"),
        ("http.public_stream", json!("loud"), 400, "invalid_input"),
        ("http.bind", json!("0.0.0.0:1"), 400, "invalid_input"),
        ("log.level", json!("aman=loud"), 400, "invalid_input"),
        ("bus.max_pending", json!("many"), 400, "invalid_input"),
        ("bus.max_pending", json!({ "a": null }), 400, "invalid_input"),
    ] {
        let answer = daemon.post_confirmed("/config/set", &json!({ "changes": { key: value } }));
        assert_eq!((answer.status, answer.code()), (status, code), "{key}: {answer:?}");
        assert!(answer.json["detail"].as_str().is_some_and(|text| text.contains(key)), "{key}: {answer:?}");
    }
    let near = daemon.post_confirmed("/config/set", &json!({ "changes": { "http.public_steam": "off" } }));
    assert!(near.json["detail"].as_str().is_some_and(|text| text.contains("http.public_stream")), "{near:?}");
    for body in [json!({}), json!({ "changes": {} }), json!({ "changes": [] }), json!({ "changes": {}, "x": 1 })] {
        assert_eq!(daemon.post_confirmed("/config/set", &body).status, 400, "{body}");
    }
    assert_eq!(daemon.post("/config/set", &json!({ "changes": {} })).code(), "confirmation_required");
    let old = json!({ "changes": { "log.level": "warn" }, "expected_version": 7 });
    assert_eq!(daemon.post_confirmed("/config/set", &old).code(), "version_conflict");
    assert_eq!(daemon.get("/runtime/config").json["version"], 0);
}

/// Goal: a dry run says what would happen and changes nothing, not even the audit log.
#[test]
fn dry_runs_touch_nothing() {
    let daemon = Daemon::start();
    let body = json!({ "changes": { "http.strict_confirm": true }, "expected_version": 0 });
    let answer = daemon.post_confirmed("/config/set?dry_run=true", &body);
    assert_eq!((answer.status, &answer.json["dry_run"], &answer.json["version"]), (200, &json!(true), &json!(0)));
    assert_eq!(answer.json["items"][0]["before"], false);
    assert_eq!(answer.json["items"][0]["value"], true);
    assert_eq!(setting(&daemon, "http.strict_confirm")["value"], false);
    fs::write(daemon.home().join("aman.toml"), "[log]\nlevel = \"warn\"\n").expect("aman.toml");
    let answer = daemon.post("/config/reload?dry_run=true", &json!({}));
    assert_eq!(answer.json["applied"], json!(["log.level"]), "{answer:?}");
    assert_eq!(setting(&daemon, "log.level")["value"], "info");
    let wrong = json!({ "changes": { "http.strict_confirm": 1 } });
    assert_eq!(daemon.post_confirmed("/config/set?dry_run", &wrong).status, 400);
    assert_eq!(daemon.get("/audit-log").items(), Vec::<Value>::new());
}

/// Goal: a file that was broken while the daemon ran or stood still is told everywhere; the last good one is in force.
#[test]
fn a_broken_file_is_safe_mode() {
    let folder = Folder::new("safe");
    let file = folder.path().join("aman.toml");
    fs::write(&file, "[http]\nstrict_confirm = true\n").expect("aman.toml");
    let mut daemon = Daemon::start_in(folder.path());
    for broken in ["[http\n", "[http]\nstrict_confirm = 3\n", "[log]\nlevel = \"aman=loud\"\n"] {
        fs::write(&file, broken).expect("aman.toml");
        let told = daemon.recent("aman.config.broken").len();
        let answer = daemon.post("/config/reload", &json!({}));
        assert_eq!((answer.status, answer.code()), (409, "invalid_config"), "{answer:?}");
        assert_eq!(daemon.recent("aman.config.broken").len(), told + 1, "an event tells of it");
        assert_eq!(daemon.get("/runtime/status").json["safe_mode"], true);
        daemon.kill();
        daemon.again();
        assert_eq!(daemon.recent("aman.config.broken").len(), told + 2, "an event tells of it at a start");
        assert_eq!(daemon.get("/runtime/status").json["safe_mode"], true);
        assert_eq!(setting(&daemon, "http.strict_confirm")["value"], true, "the last good file is in force");
        let shown = daemon.get("/runtime/config").json;
        assert!(shown["error"].as_str().is_some_and(|text| text.len() > 10), "{shown}");
        let health = daemon.send("GET", "/health", &[], None);
        assert_eq!((health.status, &health.json["checks"]["config"]["ok"]), (200, &json!(false)));
        let (code, out, _) = daemon.cli(&["doctor"]);
        assert!(code != 0 && out.contains("safe mode"), "{code} {out}");
        assert!(daemon.log().contains("safe mode"));
    }
    fs::write(&file, "[http]\nstrict_confirm = false\n").expect("aman.toml");
    assert_eq!(daemon.post("/config/reload", &json!({})).status, 200);
    assert_eq!(daemon.get("/runtime/status").json["safe_mode"], false);
    assert_eq!(setting(&daemon, "http.strict_confirm")["value"], false);
    let fresh = Folder::new("never-good");
    fs::write(fresh.path().join("aman.toml"), "[http\n").expect("aman.toml");
    let log = Daemon::try_start_in(fresh.path(), &[]).err().expect("without a good file it does not start");
    assert!(log.contains("line 1"), "{log}");
}

/// Goal: secrets come from variables and files; what is wrong is named and never shows the value.
#[test]
fn secrets_are_references() {
    let folder = Folder::new("secrets");
    let file = folder.path().join("aman.toml");
    fs::write(folder.path().join("token.txt"), "token-from-a-file-1\n").expect("a file");
    let start = |reference: &str, env: &[(&str, &str)]| {
        fs::write(&file, format!("[http]\ntoken = \"{reference}\"\n")).expect("aman.toml");
        let unset = [("AMAN_HTTP_TOKEN", "")];
        Daemon::try_start_in(folder.path(), &[&unset, env].concat())
    };
    let given = format!("file:{}", folder.path().join("token.txt").display());
    for (reference, token) in [(given.as_str(), "token-from-a-file-1"), ("env:MINE", "token-of-a-variable")] {
        let daemon = start(reference, &[("MINE", "token-of-a-variable")]).expect("it starts");
        assert_eq!(daemon.send("GET", "/skills", &[("x-aman-token", token)], None).status, 200, "{reference}");
        let shown = daemon.send("GET", "/runtime/config", &[("x-aman-token", token)], None);
        assert!(!String::from_utf8_lossy(&shown.body).contains(token));
        assert!(String::from_utf8_lossy(&shown.body).contains("\"populated\":true"));
    }
    fs::remove_file(folder.path().join("logs/last-good.toml")).expect("the copy of the good file");
    for (reference, said) in [
        ("env:NOBODY_SET_THIS", "NOBODY_SET_THIS"),
        ("file:/nowhere/at/all", "/nowhere/at/all"),
        ("short-secret", "16 characters"),
    ] {
        fs::write(folder.path().join("stderr.log"), "").expect("an empty log");
        let log = start(reference, &[]).err().unwrap_or_else(|| panic!("{reference} is refused"));
        assert!(log.contains(said) && log.contains("http.token") && !log.contains("short-secret"), "{log}");
    }
}

/// Goal: a copy of the file that cannot be kept is told, and keeps no reload from its effect.
#[test]
fn a_reload_needs_no_copy() {
    let daemon = Daemon::start();
    let copy = daemon.home().join("logs/last-good.toml");
    let _old = fs::remove_file(&copy);
    fs::create_dir(&copy).expect("what cannot be a copy");
    fs::write(daemon.home().join("aman.toml"), "[http]\nstrict_confirm = true\n").expect("aman.toml");
    let answer = daemon.post_confirmed("/config/reload", &json!({}));
    assert_eq!((answer.status, &answer.json["applied"]), (200, &json!(["http.strict_confirm"])), "{answer:?}");
    assert_eq!(daemon.post("/dlq/x/discard", &json!({})).code(), "confirmation_required");
    assert!(daemon.log().contains("No copy of the configuration"), "{}", daemon.log());
}

/// Goal: events of a type with a schema must fit it, whoever pushes them; the fault is named by its path.
#[test]
fn schemas_validate_pushes() {
    let folder = Folder::new("schemas");
    fs::create_dir_all(folder.path().join("schemas")).expect("a folder");
    let schema = json!({
        "type": "object",
        "required": ["amount"],
        "properties": { "amount": { "type": "number" }, "lines": { "items": { "type": "string" } } },
    });
    fs::write(folder.path().join("schemas/order.created.json"), schema.to_string()).expect("a schema");
    fs::write(folder.path().join("schemas/order.broken.json"), "{\"type\": 7}").expect("a schema");
    let daemon = Daemon::start_in(folder.path());
    assert!(daemon.log().contains("order.broken.json"), "{}", daemon.log());
    let event = |data: Value| json!({ "source": "shop", "type": "order.created", "data": data });
    assert_eq!(daemon.post("/events/push", &event(json!({ "amount": 1 }))).status, 202);
    for (data, field) in [
        (json!({ "amount": "1" }), "data/amount"),
        (json!({}), "data"),
        (json!(null), "data"),
        (json!({ "amount": 1, "lines": ["a", 2] }), "data/lines/1"),
    ] {
        for path in ["/events/push", "/events/push?dry_run=true"] {
            let answer = daemon.post(path, &event(data.clone()));
            assert_eq!((answer.status, answer.fields()), (400, vec![field]), "{answer:?}");
        }
    }
    let one = |data: Value| json!({ "specversion": "1.0", "source": "shop", "type": "order.created", "data": data });
    let batch = json!([one(json!({ "amount": 1 })), one(json!({ "amount": true }))]);
    let headers = [("x-aman-token", crate::harness::TOKEN), ("content-type", "application/cloudevents-batch+json")];
    let answer = daemon.send("POST", "/events/push", &headers, Some(&batch));
    assert_eq!((answer.status, answer.fields()), (400, vec!["/1/data/amount"]), "{answer:?}");
    assert_eq!(daemon.recent("order.created").len(), 1);
    assert_eq!(daemon.post("/events/push", &json!({ "source": "s", "type": "order.other" })).status, 202);
    let types = daemon.get("/events/types").items();
    let of = |kind: &str| types.iter().find(|item| item["type"] == kind).cloned().unwrap_or_default();
    assert_eq!(of("order.created")["schema"], schema);
    assert!(of("order.other").get("schema").is_none());
    fs::write(folder.path().join("schemas/order.other.json"), "{\"type\":\"object\"}").expect("a schema");
    assert_eq!(daemon.post("/config/reload", &json!({})).status, 200);
    assert_eq!(daemon.post("/events/push", &json!({ "source": "s", "type": "order.other" })).status, 400);
}

/// The exit code and what the command line said.
fn ran(home: &Path, args: &[&str], env: &[(&str, &str)]) -> (i32, String, String) {
    let output = command(home).args(args).envs(env.iter().copied()).output().expect("the binary starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

/// Goal: `aman config` shows, checks and changes the file with its comments, and the running daemon follows.
#[test]
fn the_command_line_edits_the_file() {
    let folder = Folder::new("cli");
    let file = folder.path().join("aman.toml");
    fs::write(&file, "# mine\n[log]\nlevel = \"info\" # loud enough\n").expect("aman.toml");
    let cli = |args: &[&str], env: &[(&str, &str)]| ran(folder.path(), args, env);
    assert_eq!(cli(&["config", "path"], &[]).1.trim(), file.display().to_string());
    assert_eq!(cli(&["config", "get", "log.level"], &[]), (0, "info\n".to_owned(), String::new()), "without a daemon");
    let hook =
        ["sources.door.kind=webhook", "sources.door.verify.scheme=github", "sources.door.verify.secret=env:NOT_HERE"];
    let (code, out, err) = cli(&[&["config", "set"], hook.as_slice()].concat(), &[]);
    assert!(code == 0 && out.contains("No daemon runs"), "{out}{err}");
    assert!(err.contains("sources.door.verify.secret") && err.contains("NOT_HERE, which is not set"), "{err}");
    assert_eq!(cli(&[&["config", "set"], hook.as_slice()].concat(), &[("NOT_HERE", "a-secret-of-mine")]).2, "");
    assert_eq!(cli(&["config", "set", "--unset", "sources.door"], &[]).0, 0);
    assert_eq!(cli(&["config", "reload"], &[]).0, 1, "there is nobody to reload");
    let daemon = Daemon::start_in(folder.path());
    let (code, out, err) = cli(&["config", "set", "log.level", "warn"], &[]);
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains("In force now: log.level"), "{out}");
    let text = fs::read_to_string(&file).expect("aman.toml");
    assert_eq!(text, "# mine\n[log]\nlevel = \"warn\" # loud enough\n");
    assert_eq!(setting(&daemon, "log.level")["value"], "warn");
    let (code, out, _) = cli(&["config", "set", "bus.durability", "normal"], &[]);
    assert!(code == 0 && out.contains("after a restart: bus.durability"), "{out}");
    let before = fs::read_to_string(&file).expect("aman.toml");
    let (code, _, err) = cli(&["config", "set", "sources.papers.kind", "files"], &[]);
    assert!(code == 1 && err.contains("sources.papers.kind=\"files\" sources.papers.path=…"), "{err}");
    for args in
        [["log.level=debug", "bus.max_pending=none"], ["log.level=debug", "log.leevl=warn"], ["log.level=debug", "a"]]
    {
        assert_ne!(cli(&[&["config", "set"], args.as_slice()].concat(), &[]).0, 0, "{args:?}");
        assert_eq!(fs::read_to_string(&file).expect("aman.toml"), before, "all or nothing: {args:?}");
    }
    let both = ["config", "set", "sources.papers.kind=files", "sources.papers.path=~/papers"];
    let (code, out, err) = cli(&both, &[]);
    assert!(code == 0 && out.contains("In force now: sources.papers"), "{out}{err}");
    assert_eq!(cli(&["config", "set", "--unset", "sources.papers"], &[]).0, 0);
    assert_eq!(fs::read_to_string(&file).expect("aman.toml"), before);
    fs::write(&file, before.replace("warn", "debug")).expect("aman.toml");
    let (code, out, _) = cli(&["config", "reload", "--dry-run"], &[]);
    assert!(code == 0 && out.contains("Would be in force: log.level"), "{out}");
    let (code, out, _) = cli(&["config", "reload"], &[]);
    assert!(code == 0 && out.contains("In force now: log.level"), "{out}");
    assert!(cli(&["config", "reload"], &[]).1.contains("Nothing that takes effect now"));
    fs::write(&file, "[http\n").expect("aman.toml");
    let (code, _, err) = cli(&["config", "reload"], &[]);
    assert!(code == 3 && err.contains("line 1"), "{code} {err}");
    fs::write(&file, &before).expect("aman.toml");
    assert_eq!(cli(&["config", "reload"], &[]).0, 0);
}

/// Goal: what is wrong is not written, an override asks first, and an editor's mistake is kept apart.
#[test]
fn the_command_line_keeps_what_is_right() {
    let (folder, before) = (Folder::new("cli-right"), "# mine\n[log]\nlevel = \"warn\" # loud enough\n");
    let file = folder.path().join("aman.toml");
    fs::write(&file, before).expect("aman.toml");
    let cli = |args: &[&str], env: &[(&str, &str)]| ran(folder.path(), args, env);
    let daemon = Daemon::start_in(folder.path());
    let (code, _, err) = cli(&["config", "set", "bus.max_pending", "none"], &[]);
    assert!(code == 1 && err.contains("bus.max_pending"), "{err}");
    assert_eq!(fs::read_to_string(&file).expect("aman.toml"), before, "what is wrong is not written");
    let (code, _, err) = cli(&["config", "set", "http.publicstream", "off"], &[]);
    assert!(code == 2 && err.contains("http.public_stream"), "an unknown key is refused with a suggestion: {err}");
    assert_eq!(fs::read_to_string(&file).expect("aman.toml"), before, "and not written");
    let (code, _, err) = cli(&["config", "get", "http.publicstream"], &[]);
    assert!(code == 2 && err.contains("http.public_stream"), "{err}");
    assert_eq!(cli(&["config", "set", "--override", "log.level", "error"], &[]).0, 2, "it asks first");
    assert_eq!(cli(&["config", "set", "--override", "--yes", "log.level", "error"], &[]).0, 0);
    assert_eq!(setting(&daemon, "log.level")["origin"], "override");
    assert_eq!(cli(&["config", "set", "--override", "--yes", "--unset", "log.level"], &[]).0, 0);
    let editor = [("EDITOR", "sh -c 'echo \"[http\" > \"$0\"'")];
    let (code, _, err) = cli(&["config", "edit"], &editor);
    assert!(code == 1 && err.contains("line 1") && err.contains("kept in"), "{err}");
    let editor = [("EDITOR", "sh -c 'echo \"# edited\" > \"$0\"'")];
    assert_eq!(cli(&["config", "edit"], &editor).0, 0);
    assert_eq!(fs::read_to_string(&file).expect("aman.toml"), "# edited\n");
    assert_eq!(cli(&["config", "check"], &[]).0, 0);
    fs::write(folder.path().join("other.toml"), "[bus]\nmax_pending = \"x\"\n").expect("a file");
    let (code, _, err) = cli(&["config", "check", &folder.path().join("other.toml").display().to_string()], &[]);
    assert!(code == 1 && err.contains("bus.max_pending"), "{code} {err}");
}

/// Goal: the command line needs none of the daemon's secrets: it works without its variables, and asks no keyring. The
/// program that asks the keyring is a fake here.
#[test]
fn the_command_line_needs_no_secret() {
    let folder = Folder::new("unseen");
    let (home, bin) = (folder.path(), folder.path().join("bin"));
    fs::create_dir(&bin).expect("a folder");
    let fake = "#!/bin/sh\necho asked >> \"${0%/bin/*}/asked\"\nprintf %s a-secret-of-the-keyring\n";
    fs::write(bin.join("secret-tool"), fake).expect("a fake");
    fs::set_permissions(bin.join("secret-tool"), fs::Permissions::from_mode(0o755)).expect("it can run");
    let file = home.join("aman.toml");
    let sink = |id: &str, secret: &str| {
        format!(
            "[sinks.{id}]\nkind = \"webhook\"\ntypes = [\"a\"]\nurl = \"https://localhost/\"\n\
             headers = {{ x-key = \"{secret}\" }}\nsecret = \"{secret}\"\n"
        )
    };
    let logs = home.join("my-logs");
    let text = format!("[log]\ndir = \"{}\"\n", logs.display())
        + &sink("a", "env:OUT")
        + &sink("b", "keyring:aman/b")
        + "[sources.hook]\nkind = \"webhook\"\nverify = { scheme = \"github\", secret = \"env:OUT\" }\n\
           [plugin.home]\nsecrets = { HA = \"env:OUT\" }\n";
    fs::write(&file, text).expect("aman.toml");
    fs::create_dir(&logs).expect("a folder");
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    let daemon = Daemon::try_start_in(home, &[("OUT", "0123456789abcdef"), ("PATH", &path)]);
    let _daemon = daemon.unwrap_or_else(|log| panic!("{log}"));
    let asked = || fs::read_to_string(home.join("asked")).unwrap_or_default().lines().count();
    let cli = |args: &[&str]| {
        let output = command(home).args(args).env("PATH", &path).output().expect("the binary starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap_or(-1), format!("{}{}", text(&output.stdout), text(&output.stderr)))
    };
    let before = asked();
    assert!(before > 0, "the daemon asked");
    for args in [&["status"][..], &["sink", "list"], &["config", "get"], &["logs"], &["doctor", "--security"]] {
        let (code, said) = cli(args);
        assert!(!said.contains("OUT"), "{args:?}: {said}");
        assert!(code == 0 || args[0] == "doctor", "{args:?}: {said}");
    }
    assert_eq!(asked(), before, "nothing but the daemon asks the keyring");
    let (code, said) = cli(&["config", "set", "log.level", "debug"]);
    assert!(code == 0 && said.contains("In force now: log.level"), "{said}");
    let (code, said) = cli(&["config", "check"]);
    assert!(code == 1 && said.contains("OUT, which is not set"), "who asks for a check is told: {said}");
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(&file, Some(65_534), Some(65_534)).expect("root may");
        assert_eq!(cli(&["config", "set", "log.level", "info"]).0, 0);
        let found = fs::metadata(&file).expect("aman.toml");
        assert_eq!((found.uid(), found.mode() & 0o777), (65_534, 0o600), "the file stays its owner's");
    }
}

/// Goal: with a daemon that was started with another file, that file is the one that is shown and changed.
#[test]
fn the_file_of_the_running_daemon_is_the_one_that_changes() {
    let folder = Folder::new("other-file");
    let file = folder.path().join("other.toml");
    fs::write(&file, "[log]\nlevel = \"warn\"\n").expect("a file");
    let mut serve = command(folder.path());
    serve.args(["serve", "--config"]).arg(&file).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut daemon = serve.spawn().expect("the binary starts");
    let mut line = String::new();
    BufReader::new(daemon.stdout.take().expect("stdout is piped")).read_line(&mut line).expect("it gets ready");
    let cli = |args: &[&str]| {
        let output = command(folder.path()).args(args).output().expect("the binary starts");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let (path, set) = (cli(&["config", "path"]), cli(&["config", "set", "log.level", "debug"]));
    daemon.kill().expect("it is ours");
    daemon.wait().expect("it ends");
    assert_eq!(path.trim(), file.display().to_string());
    assert!(set.contains("In force now: log.level"), "{set}");
    assert_eq!(fs::read_to_string(&file).expect("a file"), "[log]\nlevel = \"debug\"\n");
    assert!(!folder.path().join("aman.toml").exists());
}

/// Goal: an edit that cannot be used is told, offered again, and only a good one replaces the file; what somebody else
/// changed meanwhile is not overwritten.
#[test]
fn a_broken_edit_is_offered_again() {
    let folder = Folder::new("edit");
    let (file, editor) = (folder.path().join("aman.toml"), folder.path().join("editor.sh"));
    fs::write(&file, "# mine\n[log]\nlevel = \"info\" # loud enough\n").expect("aman.toml");
    let edit = |script: &str, answers: &str| {
        fs::write(&editor, script).expect("an editor");
        let mut terminal = on_terminal(folder.path(), "config edit");
        terminal.env("EDITOR", format!("sh {}", editor.display()));
        let mut child = terminal.spawn().expect("script is there");
        let mut stdin = child.stdin.take().expect("stdin is piped");
        std::io::Write::write_all(&mut stdin, answers.as_bytes()).expect("it reads the answers");
        let output = child.wait_with_output().expect("it ends");
        drop(stdin);
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let twice = "if [ -e \"$0.once\" ]; then sed -i s/aman=loud/warn/ \"$1\"; else touch \"$0.once\"; sed -i s/info/aman=loud/ \"$1\"; fi";
    let (done, said) = edit(twice, "y\n");
    assert!(done && said.contains("log.level") && said.contains("Edit it again?"), "{said}");
    let text = fs::read_to_string(&file).expect("aman.toml");
    assert!(text.starts_with("# mine\n") && text.contains("level = \"warn\" # loud enough"), "{text}");
    let before = text;
    let (done, said) = edit("echo [http > \"$1\"", "n\n");
    assert!(!done && said.contains("kept in"), "{said}");
    assert_eq!(fs::read_to_string(&file).expect("aman.toml"), before);
    let sneaky = format!("echo '# theirs' > {}; echo '# ours' > \"$1\"", file.display());
    let (done, said) = edit(&sneaky, "");
    assert!(!done && said.contains("somebody else"), "{said}");
    assert_eq!(fs::read_to_string(&file).expect("aman.toml"), "# theirs\n");
}

/// A sink for `order.*` at `peer`.
fn sink(id: &str, peer: &Peer) -> String {
    format!(
        "[sinks.{id}]\nkind = \"webhook\"\ntypes = [\"order.*\"]\nsecret = \"a-secret-for-this\"\nurl = \"{}\"\n",
        peer.url()
    )
}

/// Goal: sources, sinks and cron jobs of the file take effect while the daemon runs: new ones start, changed ones change,
/// others stop; what waits is sent, to the new place; what cannot be done leaves the old one running and says so.
#[test]
fn sources_sinks_and_jobs_change_while_it_runs() {
    let (old, new) = (Peer::start(), Peer::start());
    old.answer("500 Internal Server Error", &[], "");
    let folder = Folder::new("live");
    let inbox = folder.path().join("watched");
    fs::create_dir(&inbox).expect("a folder");
    let head = "[http_client]\nallow_private = true\n";
    let watched = |more: &str| format!("[sources.papers]\nkind = \"files\"\npath = {inbox:?}\n{more}\n");
    let hook = "[sources.door]\nkind = \"webhook\"\n";
    let job = |id: &str, hour: u8| format!("[cron.{id}]\nexpression = \"0 {hour} 1 1 *\"\n");
    let write = |parts: &[String]| fs::write(folder.path().join("aman.toml"), parts.concat()).expect("aman.toml");
    write(&[head.to_owned(), watched(""), sink("out", &old), job("yearly", 1), job("gone", 2)]);
    let daemon = Daemon::start_in(folder.path());
    let seen = |wanted: usize| {
        daemon.wait("the files", || (daemon.recent("file.created").len() == wanted).then_some(()));
    };
    daemon.push("order.paid", json!({ "n": 1 }));
    daemon.wait("the failed call", || (!old.requests().is_empty()).then_some(()));
    write(&[
        head.to_owned(),
        watched("ignore = [\"*.tmp\"]"),
        hook.to_owned(),
        sink("out", &new),
        sink("more", &new).replace("order.*", "other.*"),
        job("yearly", 3),
        job("new", 4),
    ]);
    let said = |answer: &Value| ["started", "changed", "stopped"].map(|key| answer[key].clone());
    let wanted = [
        json!(["sinks.more", "cron.new", "sources.door"]),
        json!(["sinks.out", "cron.yearly", "sources.papers"]),
        json!(["cron.gone"]),
    ];
    let dry = daemon.post("/config/reload?dry_run=true", &json!({}));
    assert_eq!(said(&dry.json), wanted, "{dry:?}");
    assert_eq!(daemon.get("/event-source/door").status, 404, "a dry run starts nothing");
    let done = daemon.post("/config/reload", &json!({}));
    assert_eq!((done.status, said(&done.json)), (200, wanted), "{done:?}");
    assert_eq!((&done.json["failed"], &done.json["requires_restart"]), (&json!([]), &json!([])), "{done:?}");
    assert_eq!(daemon.post("/hooks/door", &json!({ "a": 1 })).status, 202);
    assert_eq!((daemon.get("/cron/new").status, daemon.get("/cron/gone").status), (200, 404));
    assert_eq!(daemon.get("/cron/yearly").json["expression"], "0 3 1 1 *");
    daemon.wait("what waited, at the new place", || (new.requests().len() == 1).then_some(()));
    fs::write(inbox.join("a.tmp"), "x").expect("a file");
    fs::write(inbox.join("a.txt"), "x").expect("a file");
    seen(1);
    write(&[head.to_owned(), watched("patterns = [\"[\"]"), hook.to_owned()]);
    let partly = daemon.post("/config/reload", &json!({}));
    assert_eq!((partly.status, &partly.json["failed"][0]["field"]), (200, &json!("sources.papers")), "{partly:?}");
    assert_eq!(daemon.get("/event-source/papers").json["config"]["ignore"], json!(["*.tmp"]), "the old one runs on");
    fs::write(inbox.join("b.txt"), "x").expect("a file");
    seen(2);
    let (sink, job) = (daemon.get("/sink/out"), daemon.get("/cron/yearly"));
    assert_eq!((&sink.json["state"], job.status), (&json!("removed"), 404), "{sink:?}");
    let calls = new.requests().len();
    daemon.push("order.paid", json!({ "n": 2 }));
    daemon.settle();
    assert_eq!((new.requests().len(), old.requests().len()), (calls, 1));
    write(&[head.to_owned(), "[sources]\n".to_owned()]);
    let last = daemon.post("/config/reload", &json!({}));
    assert_eq!(last.json["stopped"], json!(["sources.door", "sources.papers"]), "{last:?}");
    let left: Vec<Value> = daemon.get("/sources").items().iter().map(|source| source["id"].clone()).collect();
    assert_eq!((left, daemon.post("/hooks/door", &json!({})).status), (vec![json!("default")], 404));
    write(&[head.to_owned(), "[sources.default]\nenabled = false\n".to_owned()]);
    assert_eq!(daemon.post("/config/reload", &json!({})).json["stopped"], json!(["sources.default"]));
    assert_eq!(daemon.get("/sources").items(), Vec::<Value>::new());
}

/// Goal: a polled address that was told of is not told of again because its settings changed, and a secret whose file was
/// replaced is used after a reload though the configuration reads the same.
#[test]
fn what_a_source_knows_stays_and_secrets_are_read_anew() {
    let (peer, target) = (Peer::start(), Peer::start());
    peer.answer("200 OK", &[("content-type", "text/plain")], "the same");
    let folder = Folder::new("kept");
    let key = folder.path().join("key");
    fs::write(&key, "first-secret-1").expect("a secret");
    let write = |every: &str| {
        let text = format!(
            "[http_client]\nallow_private = true\n[sources.page]\nkind = \"http_poll\"\nurl = \"{}/page\"\nevery = \"{every}\"\n\
             [sources.door]\nkind = \"webhook\"\nverify = {{ scheme = \"gitlab\", secret = \"file:{}\" }}\n{}",
            peer.url(),
            key.display(),
            sink("out", &target),
        );
        fs::write(folder.path().join("aman.toml"), text).expect("aman.toml");
    };
    write("1s");
    let daemon = Daemon::start_in(folder.path());
    daemon.wait("the page", || (daemon.recent("http.changed").len() == 1).then_some(()));
    write("2s");
    let answer = daemon.post("/config/reload", &json!({}));
    assert_eq!(answer.json["changed"], json!(["sources.page"]), "{answer:?}");
    let asked = peer.requests().len();
    daemon.wait("more questions", || (peer.requests().len() >= asked + 2).then_some(()));
    assert_eq!(daemon.recent("http.changed").len(), 1);
    let knock = |token: &str| daemon.send("POST", "/hooks/door", &[("x-gitlab-token", token)], Some(&json!({}))).status;
    assert_eq!((knock("first-secret-1"), knock("second-secret")), (202, 401));
    fs::write(&key, "second-secret").expect("a secret");
    let answer = daemon.post("/config/reload", &json!({}));
    assert_eq!(answer.json["changed"], json!(["sources.door"]), "{answer:?}");
    assert_eq!((knock("first-secret-1"), knock("second-secret")), (401, 202));
}

/// Goal: what is no plain file where one must be ends the start at once, with the path and what to do.
#[test]
fn special_files_end_the_start() {
    let make = |path: &Path, kind: &str| match kind {
        "pipe" => nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).expect("a named pipe"),
        "socket" => drop(std::os::unix::net::UnixListener::bind(path).expect("a socket")),
        "folder" => fs::create_dir(path).expect("a folder"),
        _ => std::os::unix::fs::symlink("/dev/zero", path).expect("a link to a device"),
    };
    for name in ["token", "signing.key", "aman.toml", "aman.lock", "run/scripts.lock"] {
        for (kind, said) in
            [("pipe", "a named pipe"), ("socket", "a socket"), ("folder", "a folder"), ("device", "a device")]
        {
            let folder = Folder::new("special");
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().expect("it has a folder")).expect("a folder");
            make(&path, kind);
            let mut child = command(folder.path())
                .env_remove("AMAN_HTTP_TOKEN")
                .arg("serve")
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .expect("the binary starts");
            let deadline = Instant::now() + PATIENCE;
            let ended = loop {
                if let Some(status) = child.try_wait().expect("waiting works") {
                    break Some(status);
                }
                if Instant::now() > deadline {
                    child.kill().expect("it is ours");
                    break None;
                }
                std::thread::sleep(Duration::from_millis(5));
            };
            let mut log = String::new();
            child.stderr.take().expect("piped").read_to_string(&mut log).expect("text");
            assert!(ended.is_some_and(|status| !status.success()), "{name} as {kind}: {ended:?} {log}");
            assert!(log.contains(said) && log.contains(name), "{name} as {kind}: {log}");
        }
    }
}
