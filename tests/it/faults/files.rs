//! The database's files and the lock, changed by hand while the daemon runs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use super::{degraded, healthy, nothing_lost, refused, told, try_push};
use crate::harness::{Daemon, Folder};

const PARTS: [&str; 3] = ["aman.db", "aman.db-wal", "aman.db-shm"];

fn move_parts(from: &Path, to: &Path, parts: &[&str]) {
    parts.iter().for_each(|part| fs::rename(from.join(part), to.join(part)).expect("a file of the database"));
}

/// Goal: whatever part of the database is removed under the daemon, the next push is refused, never acknowledged into
/// the void; everything is saved to a copy that a new daemon starts with.
#[test]
fn a_removed_database_is_noticed_and_saved() {
    for parts in [&PARTS[..], &PARTS[..1], &PARTS[1..2], &PARTS[1..]] {
        let mut daemon = Daemon::start();
        let stored: Vec<String> = (0..20).map(|n| daemon.push("a.b", json!(n))).collect();
        parts.iter().for_each(|part| fs::remove_file(daemon.home().join(part)).expect("a file of the database"));
        let answer = try_push(&daemon, "a.b", &json!("void"));
        refused(&answer, "database_moved", "aman db restore");
        degraded(&daemon, "database_moved");
        nothing_lost(&daemon, &stored);
        let copy = daemon.wait("the copy", || {
            let saved = daemon.log().contains("everything in it was saved");
            let names = fs::read_dir(daemon.home()).expect("its folder").flatten().map(|entry| entry.file_name());
            let mut copies = names.filter(|name| name.to_string_lossy().starts_with("aman-saved-"));
            copies.next().filter(|_| saved).map(|name| daemon.home().join(name))
        });
        assert_eq!(told(&daemon), 1, "{}", daemon.log());
        assert_eq!(copy.metadata().expect("the copy").permissions().mode() & 0o777, 0o600);
        assert_eq!(daemon.terminate(), Some(0));
        let restored = Folder::new("restored");
        fs::copy(copy, restored.path().join("aman.db")).expect("the copy can be copied");
        nothing_lost(&Daemon::start_in(restored.path()), &stored);
    }
}

/// Goal: an idle daemon whose database was removed says so in its health before anybody pushes.
#[test]
fn health_notices_a_removed_database() {
    let daemon = Daemon::start();
    daemon.push("a.b", json!(1));
    fs::remove_file(daemon.home().join("aman.db")).expect("the database");
    degraded(&daemon, "database_moved");
    let (_, out, _) = daemon.cli(&["doctor"]);
    assert!(out.contains("removed, moved or replaced"), "{out}");
}

/// Goal: a database that was moved away and comes back is used again by itself; nothing is lost, and nothing was
/// written to the stranger that stood in its place.
#[test]
fn a_database_that_comes_back() {
    let (mut daemon, aside) = (Daemon::start(), Folder::new("aside"));
    let mut stored = vec![daemon.push("a.b", json!(1))];
    let (home, aside) = (daemon.home().to_owned(), aside.path());
    move_parts(&home, aside, &PARTS);
    refused(&try_push(&daemon, "a.b", &json!(2)), "database_moved", "Put the files back");
    fs::write(home.join("aman.db"), b"a stranger").expect("a file");
    refused(&try_push(&daemon, "a.b", &json!(2)), "database_moved", "Put the files back");
    degraded(&daemon, "database_moved");
    for path in ["/db/check", "/db/stats"] {
        let answer = daemon.get(path);
        assert_eq!((answer.status, answer.code()), (503, "database_moved"), "{path}: {answer:?}");
    }
    assert_eq!(fs::read(home.join("aman.db")).expect("the stranger"), b"a stranger");
    move_parts(aside, &home, &PARTS);
    healthy(&daemon);
    stored.push(daemon.push("a.b", json!(3)));
    daemon.wait("the event that tells of it", || (daemon.recent("aman.storage.recovered").len() == 1).then_some(()));
    assert_eq!(daemon.terminate(), Some(0));
    daemon.again();
    nothing_lost(&daemon, &stored);
}

/// Goal: a database or a log that is cut short under the daemon is noticed before anything more is acknowledged.
#[test]
fn a_truncated_database_is_noticed() {
    for (part, len) in [("aman.db", 0), ("aman.db", 4096 * 3), ("aman.db-wal", 0), ("aman.db-wal", 5000)] {
        let mut daemon = Daemon::start();
        (0..20).for_each(|n| drop(daemon.push("a.b", json!(n))));
        // The end moves the log into the database, so that both have something to lose.
        daemon.terminate();
        daemon.again();
        (0..20).for_each(|n| drop(daemon.push("a.b", json!(n))));
        let file = fs::File::options().write(true).open(daemon.home().join(part)).expect("a file of the database");
        file.set_len(len).expect("it can be cut");
        // In a row of commits only their ends are looked at; this is not one.
        std::thread::sleep(std::time::Duration::from_millis(100));
        let answer = try_push(&daemon, "a.b", &json!("void"));
        refused(&answer, "database_damaged", "aman db restore");
        assert_eq!(daemon.get("/health").status, 503, "{part} {len}");
        assert_eq!(daemon.get("/health/live").status, 200);
        assert!(told(&daemon) >= 1, "{}", daemon.log());
    }
}

/// Goal: another program may have SQLite empty the log at any moment, as tools for backups do; nothing is refused for it.
#[test]
fn another_program_may_empty_the_log() {
    let daemon = Daemon::start();
    let done = AtomicBool::new(false);
    let ids: Vec<String> = std::thread::scope(|scope| {
        scope.spawn(|| {
            let db = rusqlite::Connection::open(daemon.home().join("aman.db")).expect("the database");
            while !done.load(Ordering::Relaxed) {
                let emptied = db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
                emptied.expect("SQLite does it");
                std::thread::sleep(std::time::Duration::from_millis(3));
            }
        });
        let pad = |n: usize| "p".repeat(if n.is_multiple_of(7) { 60_000 } else { 10 });
        let ids = (0..400).map(|n| try_push(&daemon, "a.b", &json!(pad(n)))).map(|answer| {
            assert_eq!(answer.status, 202, "{answer:?}; {}", daemon.log());
            answer.json["id"].as_str().expect("an id").to_owned()
        });
        let ids = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| ids.collect()));
        done.store(true, Ordering::Relaxed);
        ids.unwrap_or_else(|refused| std::panic::resume_unwind(refused))
    });
    nothing_lost(&daemon, &ids);
    assert_eq!(told(&daemon), 0, "{}", daemon.log());
}

/// Goal: no second daemon on the same data, whatever became of the lock file; the refusal says who holds it.
#[test]
fn a_removed_lock_lets_nobody_in() {
    let daemon = Daemon::start();
    let lock = daemon.home().join("aman.lock");
    let refuse = |what: &str| {
        let log = Daemon::try_start_in(daemon.home(), &[]).err().unwrap_or_else(|| panic!("it started: {what}"));
        let wanted = format!("Another aman (process {}) works with the data", daemon.pid());
        assert!(log.contains(&wanted) && log.contains("Stop it"), "{what}: {log}");
    };
    refuse("with the lock");
    fs::remove_file(&lock).expect("the lock");
    refuse("without the lock");
    fs::write(&lock, "").expect("a file");
    refuse("with another lock");
    nothing_lost(&daemon, &[daemon.push("a.b", json!(1))]);
}
