//! A damaged database, a damaged log, a database that is gone while its log is there.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::json;

use super::{nothing_lost, told, try_push};
use crate::harness::Daemon;

const PAGE: u64 = 4096;

fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    let file = fs::File::options().write(true).open(path).expect("a file of the database");
    file.write_all_at(bytes, at).expect("it can be damaged");
}

fn stored(daemon: &Daemon, count: usize) -> Vec<String> {
    (0..count).map(|n| daemon.push("a.b", json!({ "n": n, "pad": "p".repeat(500) }))).collect()
}

/// Goal: a named pipe where the log should be is refused by name; it does not hold up the start.
#[test]
fn a_log_that_is_no_file() {
    let mut daemon = Daemon::start();
    assert_eq!(daemon.terminate(), Some(0));
    let wal = daemon.home().join("aman.db-wal");
    let _gone = fs::remove_file(&wal);
    nix::unistd::mkfifo(&wal, nix::sys::stat::Mode::S_IRWXU).expect("a named pipe");
    let log = Daemon::try_start_in(daemon.home(), &[]).err().expect("it cannot start");
    assert!(log.contains("aman.db-wal' is a named pipe") && log.contains("Move it away"), "{log}");
}

/// Goal: wherever a page of the database is damaged, the daemon refuses to start or says so once it meets the page;
/// it says what to do, shows what can be read, writes nothing more, and an event is told as unreadable, never as gone.
#[test]
fn a_damaged_page_is_told() {
    let mut daemon = Daemon::start();
    let ids = stored(&daemon, 200);
    assert_eq!(daemon.terminate(), Some(0));
    let db = daemon.home().join("aman.db");
    let good = fs::read(&db).expect("the database");
    let pages = good.len() as u64 / PAGE;
    let (mut refused, mut noticed) = (0, 0);
    for page in [0, 1, 2, pages / 3, pages / 2, pages * 2 / 3, pages - 8, pages - 2] {
        overwrite(&db, page * PAGE, &[0xAA; PAGE as usize]);
        let damaged = fs::read(&db).expect("the database");
        match Daemon::try_start_in(daemon.home(), &[]) {
            Err(log) => {
                assert!(log.contains("aman db check") && log.contains("aman db restore"), "page {page}: {log}");
                assert!(
                    fs::read(&db).expect("the database") == damaged,
                    "page {page}: a refused start changed it: {log}"
                );
                refused += 1;
            }
            Ok(mut started) => {
                let answers = ids.iter().map(|id| started.get(&format!("/events/dump/{id}")));
                let bad = answers.filter(|answer| answer.status != 200).inspect(|answer| {
                    assert_eq!((answer.status, answer.code()), (503, "database_damaged"), "page {page}: {answer:?}");
                });
                if bad.count() > 0 {
                    assert_eq!(try_push(&started, "a.b", &json!(1)).code(), "database_damaged", "page {page}");
                    assert_eq!(started.get("/health").json["status"], "degraded");
                    assert!(told(&started) > 0 && started.log().contains("aman db check"), "{}", started.log());
                    noticed += 1;
                }
                started.kill();
            }
        }
        for part in ["aman.db-wal", "aman.db-shm"] {
            drop(fs::remove_file(daemon.home().join(part)));
        }
        fs::write(&db, &good).expect("the good one");
        fs::write(daemon.home().join("stderr.log"), "").expect("a new log");
    }
    assert!(refused > 0 && noticed > 0, "{refused} starts refused, {noticed} damages met");
    daemon.again();
    nothing_lost(&daemon, &ids);
}

/// Goal: garbage behind the log's end loses nothing and is not worth a word; damage in its middle loses what comes
/// after, which is said by the log, an event and the audit log, and the log is kept as it was found.
#[test]
fn a_damaged_log_is_recovered_as_far_as_it_goes() {
    // The header of a frame, which says what it is and whether it commits; and the page in it.
    [0, 2000].into_iter().for_each(damaged_within_a_frame);
}

fn damaged_within_a_frame(offset: u64) {
    let mut daemon = Daemon::start();
    let mut ids = stored(&daemon, 50);
    daemon.kill();
    let wal = daemon.home().join("aman.db-wal");
    let end = fs::metadata(&wal).expect("the log").len();
    overwrite(&wal, end, &[0x5A; 10_000]);
    daemon.again();
    nothing_lost(&daemon, &ids);
    assert!(!daemon.log().contains("log is damaged"), "{}", daemon.log());
    ids.extend(stored(&daemon, 50));
    daemon.kill();

    let good = fs::read(&wal).expect("the log");
    let frame = 24 + u64::from(u32::from_be_bytes(good[8..12].try_into().expect("four bytes")));
    // Among what was stored after the first end: a new database alone fills half of the log.
    let damaged_at = 32 + (end + good.len() as u64) / 2 / frame * frame + offset;
    overwrite(&wal, damaged_at, &[0x5A; 100]);
    let found = fs::read(&wal).expect("the log");
    daemon.again();
    let there = ids.iter().take_while(|id| daemon.get(&format!("/events/dump/{id}")).status == 200).count();
    assert!((1..ids.len()).contains(&there), "what was before the damage is there: {there}");
    nothing_lost(&daemon, &ids[..there]);
    let told = daemon.wait("the event that tells of it", || daemon.recent("aman.storage.lost").pop());
    let lost = told["data"]["transactions"].as_u64().expect("a number");
    assert!(lost >= (ids.len() - there) as u64, "{lost} transactions for {} events", ids.len() - there);
    let kept = told["data"]["kept"].as_str().expect("a path");
    assert!(fs::read(kept).expect("the copy") == found, "the log was kept as it was found");
    let log = daemon.log();
    assert!(log.contains("The write-ahead log is damaged") && log.contains("aman db restore"), "{log}");
    assert_eq!(daemon.get("/audit-log?action=storage.lost").items().len(), 1);
    let after = daemon.push("a.b", json!("after"));
    daemon.kill();
    daemon.again();
    nothing_lost(&daemon, &[after]);
}

/// Goal: a database that is gone or empty while its log still holds everything is not begun anew over it.
#[test]
fn a_log_without_its_database_is_kept() {
    let mut daemon = Daemon::start();
    let ids = stored(&daemon, 20);
    daemon.kill();
    let (db, wal) = (daemon.home().join("aman.db"), daemon.home().join("aman.db-wal"));
    let (good, log_bytes) = (fs::read(&db).expect("the database"), fs::read(&wal).expect("the log"));
    for make in [|db: &Path| fs::remove_file(db), |db: &Path| fs::write(db, "")] {
        make(&db).expect("the database can be taken away");
        let log = Daemon::try_start_in(daemon.home(), &[]).err().expect("it must not start");
        assert!(log.contains("is gone or empty while") && log.contains("aman db restore"), "{log}");
        assert!(fs::read(&wal).expect("the log") == log_bytes, "the log was changed");
        fs::write(daemon.home().join("stderr.log"), "").expect("a new log");
    }
    fs::write(&db, good).expect("the database comes back");
    daemon.again();
    nothing_lost(&daemon, &ids);
}
