//! `aman db`: figures, checks that find damage, copies made under load, restores that touch nothing that is there.

use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::{Value, json};

use crate::harness::{Daemon, Folder, TOKEN, command, write_skill};

const QUIET: &str = "[sources.none]\nkind = \"webhook\"\n";

fn read(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| panic!("one document: {text}"))
}

fn shown(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Runs the command line without a daemon in `home`.
fn offline(home: &Path, args: &[&str]) -> (i32, String, String) {
    let output = command(home).args(args).output().expect("the binary starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

/// A daemon with events, effects and a dead letter.
fn worked() -> (Daemon, Vec<String>) {
    let daemon = Daemon::configured(QUIET);
    write_skill(daemon.home(), "well", &["aman.on: work.*"], "echo '{\"publish\":[{\"type\":\"effect.made\"}]}'");
    write_skill(daemon.home(), "never", &["aman.on: die.*"], "exit 65");
    assert_eq!(daemon.post("/skills/reload", &json!({})).status, 200);
    let mut ids: Vec<String> =
        (0..200).map(|n| daemon.push("plain.one", json!({ "n": n, "pad": "x".repeat(2000) }))).collect();
    ids.push(daemon.push("work.one", json!(1)));
    ids.push(daemon.push("die.one", json!(1)));
    daemon.settle();
    (daemon, ids)
}

/// Goal: the figures are right, for people and for programs; a vacuum and a check of a healthy database say so.
#[test]
fn figures_and_a_clean_bill() {
    let (daemon, ids) = worked();
    let stats = daemon.get("/db/stats").json;
    let rows = |table: &str| {
        let found = stats["tables"].as_array().expect("tables").iter().find(|one| one["name"] == table).cloned();
        found.expect(table)["rows"].as_i64().expect("a number")
    };
    let events = stats["events"]["count"].as_i64().expect("a number");
    assert!(events >= ids.len() as i64 + 2 && rows("event") == events, "{stats}");
    assert_eq!((rows("delivery") >= 2, rows("dead_letter"), rows("meta") >= 1), (true, 1, true), "{stats}");
    assert_eq!(stats["events"]["last_day"], events);
    assert_eq!((&stats["gives_back"], stats["free_bytes"].is_i64()), (&json!(true), true));
    let (code, out, _) = daemon.cli(&["db", "stats"]);
    assert!(code == 0 && out.contains("growth") && out.contains("dead_letter"), "{out}");
    let (code, out, err) = daemon.cli(&["db", "check"]);
    assert!(code == 0 && out.contains("ok    structure") && !out.contains("FAIL"), "{out}{err}");
    let (code, out, err) = daemon.cli(&["db", "check", "--offline", "--json"]);
    assert_eq!((code, &read(&out)["ok"]), (0, &json!(true)), "{out}{err}");
    assert_eq!(daemon.cli(&["db", "vacuum"]).0, 0);
    let (code, out, err) = daemon.cli(&["db", "prune", "--dry-run"]);
    assert!(code == 0 && out.contains("This would be removed:"), "{out}{err}");
    assert_eq!(daemon.cli(&["db", "prune"]).0, 2, "no terminal is there to ask on");
    let (code, out, err) = daemon.cli(&["db", "prune", "--yes"]);
    assert!(code == 0 && out.contains("This was removed:"), "{out}{err}");
}

/// Goal: a copy that is made while events come in is whole and holds what was acknowledged before it began; restored
/// into a new folder it gives the same answers, and its numbers go on above all that were used since.
#[test]
fn a_copy_under_load_restores_to_the_same_answers() {
    let (daemon, ids) = worked();
    let folder = Folder::new("backup");
    let file = folder.path().join("copy.db");
    let (go_on, pushed) = (AtomicBool::new(true), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while go_on.load(Ordering::Relaxed) {
                    daemon.push("load.one", json!("x".repeat(500)));
                    pushed.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        daemon.wait("some load", || (pushed.load(Ordering::Relaxed) > 20).then_some(()));
        let (code, out, err) = daemon.cli(&["db", "backup", shown(&file), "--json"]);
        go_on.store(false, Ordering::Relaxed);
        assert_eq!(code, 0, "{out}{err}");
        assert!(read(&out)["rows"]["event"].as_i64().is_some_and(|rows| rows > 220), "{out}");
    });
    assert_eq!(file.metadata().expect("the copy").permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 1, "nothing else is left");
    let (code, _, err) = daemon.cli(&["db", "backup", shown(&file)]);
    assert!(code == 1 && err.contains("--force"), "{err}");
    assert_eq!(daemon.cli(&["db", "backup", shown(&file), "--force"]).0, 0);
    let live = daemon.home().join("aman.db");
    let linked = folder.path().join("linked.db");
    std::os::unix::fs::symlink(&live, &linked).expect("a link");
    for name in [&live, &linked, &daemon.home().join("aman.db-wal")] {
        let (code, _, err) = daemon.cli(&["db", "backup", shown(name), "--force"]);
        assert!(code == 1 && err.contains("is the database itself"), "{name:?}: {err}");
    }
    let newest = daemon.push("after.copy", json!(1));
    let head = daemon.get("/runtime/status").json["sequence"].as_i64().expect("a number");

    let (code, _, err) = daemon.cli(&["db", "restore", shown(&file), "--to", shown(daemon.home())]);
    assert!(code == 1 && err.contains("not empty"), "{err}");
    let to = folder.path().join("restored");
    let (code, out, err) = daemon.cli(&["db", "restore", shown(&file), "--to", shown(&to)]);
    assert!(code == 0 && out.contains("AMAN_HOME="), "{out}{err}");
    assert_eq!(daemon.cli(&["db", "restore", shown(&file), "--to", shown(&to)]).0, 1, "the folder is there by now");
    std::fs::write(to.join("aman.toml"), QUIET).expect("aman.toml");
    let restored = Daemon::start_in(&to);
    for id in &ids {
        assert_eq!(restored.dump(id), daemon.dump(id), "{id}");
    }
    assert_eq!(restored.get("/dlq").json, daemon.get("/dlq").json);
    assert_eq!(restored.get(&format!("/events/dump/{newest}")).status, 404);
    let next = restored.post("/events/push", &json!({ "source": "test", "type": "after.one" })).json;
    assert!(next["sequence"].as_i64().is_some_and(|number| number > head), "{next}");
    assert_eq!(restored.get("/audit-log/verify").json["ok"], true);
    assert_eq!(restored.get("/audit-log?action=db.restore").items().len(), 1);
}

/// Goal: what plugins keep in databases of their own is in the backup and in the folder that is restored, as it was; a
/// damaged one is found, and named.
#[test]
fn private_databases_of_plugins_are_in_the_backup() {
    let (daemon, folder) = (Daemon::configured(QUIET), Folder::new("private"));
    let own = daemon.home().join("plugins/.data");
    std::fs::create_dir_all(&own).expect("a folder");
    let db = rusqlite::Connection::open(own.join("feeds.db")).expect("a database");
    let fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000) \
        INSERT INTO t SELECT i, randomblob(1000) FROM n";
    db.execute_batch(&format!("PRAGMA journal_mode = WAL; CREATE TABLE t (a, b); {fill}")).expect("a table");
    let sum = |path: &Path| {
        let db = rusqlite::Connection::open(path).expect("a database");
        let sql = "SELECT count(*) || ' ' || sum(a) || ' ' || hex(max(b)) FROM t";
        db.query_row(sql, [], |row| row.get::<_, String>(0)).expect("the table")
    };
    // The copy may be called as the database of a plugin is.
    let (file, to) = (folder.path().join("feeds.db"), folder.path().join("restored"));
    // Beside a plugin that works with it.
    let (code, out, err) = daemon.cli(&["db", "backup", shown(&file)]);
    assert!(code == 0 && out.contains("the private database of a plugin"), "{out}{err}");
    assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 1, "nothing else is left");
    assert_eq!(daemon.cli(&["db", "check", shown(&file)]).0, 0);
    let (code, out, err) = daemon.cli(&["db", "restore", shown(&file), "--to", shown(&to), "--json"]);
    assert_eq!((code, &read(&out)["plugin_databases"]), (0, &json!(["feeds.db"])), "{out}{err}");
    let restored = to.join("plugins/.data/feeds.db");
    assert_eq!(restored.metadata().expect("it is there").permissions().mode() & 0o777, 0o600);
    assert_eq!(sum(&restored), sum(&own.join("feeds.db")));
    let copied = rusqlite::Connection::open(to.join("aman.db")).expect("the restored one");
    assert!(!copied.table_exists(None, "plugin_database").expect("a look"));
    drop(db);
    damage(&own.join("feeds.db"), 3);
    let again = folder.path().join("again.db");
    let (code, _, err) = daemon.cli(&["db", "backup", shown(&again)]);
    assert!(code == 1 && err.contains("'feeds' is damaged") && !again.exists(), "{err}");
}

/// Writes over the middle of a page of the file.
fn damage(file: &Path, page: u64) {
    let mut open = std::fs::File::options().read(true).write(true).open(file).expect("the file");
    let mut was = [0_u8; 64];
    open.seek(SeekFrom::Start(page * 4096)).and_then(|_| open.read_exact(&mut was)).expect("a page");
    let other: Vec<u8> = was.iter().map(|byte| byte ^ 0x5a).collect();
    open.seek(SeekFrom::Start(page * 4096)).and_then(|_| open.write_all(&other)).expect("a page");
}

/// Goal: a damaged page is found, in the database and in a backup; no copy of a damaged database is called a backup,
/// and none is restored.
#[test]
fn damage_is_found() {
    let (mut daemon, _) = worked();
    let folder = Folder::new("damage");
    let good = folder.path().join("good.db");
    assert_eq!(daemon.cli(&["db", "backup", shown(&good)]).0, 0);
    assert_eq!(daemon.terminate(), Some(0));
    let home = daemon.home().to_owned();
    let db = home.join("aman.db");
    assert_eq!(offline(&home, &["db", "check", "--offline"]).0, 0);
    let pages = db.metadata().expect("the database").len() / 4096;
    (pages / 2..pages / 2 + 10).for_each(|page| damage(&db, page));
    let (code, out, err) = offline(&home, &["db", "check", "--offline", "--json"]);
    assert_eq!((code, &read(&out)["ok"]), (1, &json!(false)), "{out}{err}");
    let (code, out, _) = offline(&home, &["db", "check", "--offline"]);
    assert!(code == 1 && out.contains("FAIL  structure") && out.contains("aman db restore"), "{out}");

    let bad = folder.path().join("bad.db");
    let (code, _, err) = offline(&home, &["db", "backup", shown(&bad)]);
    assert!(code == 1 && !bad.exists(), "{err}");
    assert_eq!(offline(&home, &["db", "check", shown(&good)]).0, 0);
    let pages = good.metadata().expect("the backup").len() / 4096;
    (pages / 2..pages / 2 + 10).for_each(|page| damage(&good, page));
    let to = folder.path().join("restored");
    let (code, _, err) = offline(&home, &["db", "restore", shown(&good), "--to", shown(&to)]);
    assert!(code == 1 && err.contains("damaged") && !to.join("aman.db").exists(), "{err}");
    assert_eq!(offline(&home, &["db", "check", shown(&folder.path().join("none.db"))]).0, 1);
}

/// Goal: rows that do not fit together are found, each by its rule.
#[test]
fn rows_that_do_not_fit_are_found() {
    let (mut daemon, _) = worked();
    daemon.kill();
    let home = daemon.home().to_owned();
    let fits = |sql: &str| {
        let db = rusqlite::Connection::open(home.join("aman.db")).expect("the database");
        db.execute_batch(&format!("PRAGMA foreign_keys = OFF; {sql}")).expect(sql);
        drop(db);
        let (code, out, err) = offline(&home, &["db", "check", "--offline", "--json"]);
        let report = read(&out);
        let bad: Vec<String> = report["checks"]
            .as_array()
            .expect("checks")
            .iter()
            .filter(|one| one["ok"] == false)
            .map(|one| one["check"].as_str().unwrap_or_default().to_owned())
            .collect();
        assert_eq!(code == 0, bad.is_empty(), "{out}{err}");
        bad
    };
    assert_eq!(fits(""), Vec::<String>::new());
    assert_eq!(fits("DROP INDEX delivery_open; CREATE INDEX mine ON event (source)"), ["schema"]);
    let made = "CREATE INDEX delivery_open ON delivery (consumer, status, rank, id) WHERE status < 3";
    assert_eq!(fits(made), Vec::<String>::new(), "an index more does no harm");
    assert_eq!(fits("CREATE TRIGGER t AFTER INSERT ON event BEGIN DELETE FROM event; END"), ["schema"]);
    assert_eq!(fits("DROP TRIGGER t"), Vec::<String>::new());
    assert_eq!(fits("UPDATE delivery SET status = 3 WHERE status = 5"), ["dead letters belong to dead deliveries"]);
    assert_eq!(
        fits("UPDATE delivery SET status = 5 WHERE id IN (SELECT delivery FROM dead_letter)"),
        Vec::<String>::new()
    );
    assert_eq!(fits("UPDATE audit SET principal = 'nobody' WHERE seq = 1"), ["audit chain"]);
    let lost = fits("DELETE FROM event WHERE type = 'work.one'");
    assert!(lost.contains(&"deliveries have their event".to_owned()), "{lost:?}");
}

/// Goal: the routes are the operator's, and what they do is on record.
#[test]
fn the_routes_are_the_operators() {
    let daemon = Daemon::configured(QUIET);
    for (method, path) in [("GET", "/db/stats"), ("GET", "/db/check"), ("POST", "/db/vacuum"), ("POST", "/db/prune")] {
        assert_eq!(daemon.send(method, path, &[], None).status, 401, "{path}");
        let answer =
            daemon.send(method, &format!("{path}?x=1"), &[("x-aman-token", TOKEN), ("x-aman-confirm", "yes")], None);
        assert_eq!((answer.status, answer.code()), (400, "invalid_input"), "{path}");
    }
    // Retention looks through the database when the daemon starts, and one of the two waits for the other.
    daemon.wait("a vacuum", || (daemon.post("/db/vacuum", &json!({})).status == 200).then_some(()));
    assert_eq!(daemon.get("/audit-log?action=db.vacuum&outcome=done").items().len(), 1);
}

/// Copies of the daemon's own in a folder, the oldest first.
fn own_copies(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| name.ends_with("Z.db"));
    names.sort();
    names
}

/// Goal: the daemon makes a copy as soon as one is due, keeps the newest, leaves other files alone, and tells of it; the copy
/// is whole and holds what was acknowledged.
#[test]
fn the_daemon_makes_copies_by_itself() {
    let daemon = Daemon::configured(QUIET);
    daemon.push("kept.one", json!(1));
    let folder = daemon.home().join("backups");
    std::fs::create_dir(&folder).expect("a folder");
    for name in ["aman-2026-01-01T030000.000Z.db", "aman-2026-01-02T030000.000Z.db", "aman-2026-01-01.db", "notes.txt"]
    {
        std::fs::write(folder.join(name), "old").expect("a file");
    }
    std::fs::write(folder.join(".aman-2026-01-03T030000.000Z.db.99999999.partial"), "begun").expect("a file");
    let set = |changes: Value| daemon.post_confirmed("/config/set", &json!({ "changes": changes }));
    assert_eq!(set(json!({ "backup.every": "soon" })).status, 400);
    assert_eq!(set(json!({ "backup.folder": "/tmp" })).code(), "not_settable", "a path is set in the file only");
    assert_eq!(set(json!({ "backup.keep": 2, "backup.every": "0 3 * * *" })).status, 200);
    let made = daemon.wait("the copy", || daemon.recent("aman.backup.made").pop());
    assert_eq!((&made["source"], &made["data"]["removed"]), (&json!("aman/backup"), &json!(1)), "{made}");
    let copies = own_copies(&folder);
    assert_eq!((copies.len(), copies[0].as_str()), (2, "aman-2026-01-02T030000.000Z.db"), "{copies:?}");
    let newest = folder.join(&copies[1]);
    assert_eq!(made["data"]["file"], shown(&newest));
    assert!(folder.join("aman-2026-01-01.db").exists() && folder.join("notes.txt").exists(), "others stay");
    assert!(!folder.join(".aman-2026-01-03T030000.000Z.db.99999999.partial").exists(), "what was never finished goes");
    assert_eq!(std::fs::metadata(&newest).expect("a copy").permissions().mode() & 0o777, 0o600);
    let (code, out, _) = offline(daemon.home(), &["db", "check", shown(&newest)]);
    assert_eq!(code, 0, "{out}");
    let stands = daemon.wait("the copy to be counted", || {
        let copies = daemon.get("/db/stats").json["backup"].clone();
        (copies["copies"] == 2).then_some(copies)
    });
    assert!(
        stands["error"].is_null() && stands["next_at"].as_str().is_some_and(|at| at.contains("T03:00:00")),
        "{stands}"
    );
    assert!(daemon.cli(&["db", "stats"]).1.contains("2 in "));
    assert!(daemon.cli(&["doctor"]).1.contains("ok    backups"));
    assert_eq!(set(json!({ "backup.every": "" })).status, 200);
    daemon.wait("the end of the plan", || daemon.get("/db/stats").json["backup"]["next_at"].is_null().then_some(()));
}

/// Goal: a copy that a clock made which was ahead stops no later one, and does not stay in its place.
#[test]
fn a_copy_of_a_clock_that_was_ahead_stops_no_other() {
    let folder = Folder::new("ahead");
    let place = folder.path().join("backups");
    std::fs::create_dir(&place).expect("a folder");
    std::fs::write(place.join("aman-2099-01-01T030000.000Z.db"), "old").expect("a file");
    let toml = format!("[backup]\nevery = \"24h\"\nkeep = 1\n{QUIET}");
    std::fs::write(folder.path().join("aman.toml"), toml).expect("aman.toml");
    let daemon = Daemon::start_in(folder.path());
    daemon.wait("the copy", || daemon.recent("aman.backup.made").pop());
    let stands = daemon.wait("the next plan", || {
        let stands = daemon.get("/db/stats").json["backup"].clone();
        (stands["copies"] == 1).then_some(stands)
    });
    let copies = own_copies(&place);
    assert!(copies.len() == 1 && !copies[0].contains("2099"), "{copies:?}");
    assert!(stands["next_at"].as_str().is_some_and(|at| !at.starts_with("2099")), "{stands}");
    assert_eq!(daemon.recent("aman.backup.made").len(), 1, "one is enough for a day");
}

/// Goal: while pushes are refused the daemon's own news are not: copies, silent sources, broken files, and a start with
/// such a file.
#[test]
fn what_the_daemon_tells_is_never_refused() {
    let folder = Folder::new("overloaded");
    let toml = "[bus]\nmax_pending = 1\n[sources.quiet]\nkind = \"webhook\"\nexpect_every = \"3s\"\n";
    let file = folder.path().join("aman.toml");
    std::fs::write(&file, toml).expect("aman.toml");
    write_skill(folder.path(), "later", &["aman.on: hold.*", "aman.retry: attempts=5 base=24h max=24h"], "exit 75");
    let mut daemon = Daemon::start_in(folder.path());
    (0..2).for_each(|_| drop(daemon.push("hold.one", json!(1))));
    let refused = || {
        let answer = daemon.post("/events/push", &json!({ "source": "test", "type": "one.more" }));
        (answer.status, answer.code().to_owned()) == (503, "overloaded".to_owned())
    };
    assert!(refused() && daemon.post("/hooks/quiet", &json!({})).status == 503);
    daemon.wait("the alert", || daemon.recent("aman.source.silent").pop());
    let set = daemon.post_confirmed("/config/set", &json!({ "changes": { "backup.every": "24h" } }));
    assert_eq!(set.status, 200, "{set:?}");
    daemon.wait("the copy", || daemon.recent("aman.backup.made").pop());
    assert!(refused());
    std::fs::write(&file, "[http\n").expect("aman.toml");
    assert_eq!(daemon.post("/config/reload", &json!({})).code(), "invalid_config");
    assert_eq!(daemon.recent("aman.config.broken").len(), 1);
    daemon.kill();
    daemon.again();
    assert_eq!(daemon.recent("aman.config.broken").len(), 2, "it starts, and tells of it");
}

/// Goal: a copy that cannot be made is told, as an event and by the doctor, and made as soon as it can be.
#[test]
fn a_copy_that_fails_is_told() {
    let folder = Folder::new("unusable");
    let place = folder.path().join("place");
    std::fs::write(&place, "no folder").expect("a file");
    std::fs::write(
        folder.path().join("aman.toml"),
        format!("[backup]\nevery = \"24h\"\nfolder = \"{}\"\n{QUIET}", place.display()),
    )
    .expect("aman.toml");
    let daemon = Daemon::start_in(folder.path());
    let failed = daemon.wait("the event", || daemon.recent("aman.backup.failed").pop());
    assert!(failed["data"]["reason"].as_str().is_some_and(|reason| reason.contains("place")), "{failed}");
    let (code, out, _) = daemon.cli(&["doctor"]);
    assert!(code == 1 && out.contains("FAIL  backups"), "{out}");
    std::fs::remove_file(&place).expect("it is ours");
    let set = daemon.post_confirmed("/config/set", &json!({ "changes": { "backup.keep": 3 } }));
    assert_eq!(set.status, 200, "{set:?}");
    daemon.wait("the copy", || daemon.recent("aman.backup.made").pop());
    assert_eq!((own_copies(&place).len(), daemon.recent("aman.backup.failed").len()), (1, 1));
    daemon.wait("the doctor to say so", || daemon.cli(&["doctor"]).1.contains("ok    backups").then_some(()));
}
