//! Folders that are removed, before the start and under the running daemon.

use std::fs;

use serde_json::json;

use super::{nothing_lost, runs, write_waiting_skill};
use crate::harness::{Daemon, Folder};

/// Goal: whatever folder is missing at the start is made again, and the daemon works.
#[test]
fn missing_at_the_start() {
    let mut daemon = Daemon::start();
    let ids = [daemon.push("a.b", json!(1))];
    daemon.terminate();
    for folder in ["inbox", "skills", "logs", "run", "bundled"] {
        drop(fs::remove_dir_all(daemon.home().join(folder)));
    }
    daemon.again();
    nothing_lost(&daemon, &ids);
    fs::write(daemon.home().join("inbox/note.txt"), "hello").expect("the inbox is there again");
    daemon.wait("the file to be told", || (!daemon.recent("file.created").is_empty()).then_some(()));
}

/// Goal: an inbox that is removed is shown as missing, and watched again once it is back.
#[test]
fn the_inbox_is_removed_and_comes_back() {
    let daemon = Daemon::start();
    let inbox = daemon.home().join("inbox");
    fs::remove_dir_all(&inbox).expect("the inbox can be removed");
    let source = daemon.wait("the source to say so", || {
        let source = daemon.get("/event-source/default").json;
        (source["state"] == "missing").then_some(source)
    });
    assert!(source["detail"].to_string().contains("until it is back"), "{source}");
    fs::create_dir(&inbox).expect("it comes back");
    fs::write(inbox.join("second.txt"), "2").expect("a file");
    daemon.wait("the second file", || {
        daemon.recent("file.created").iter().any(|event| event["data"]["name"] == "second.txt").then_some(())
    });
}

/// Goal: with its folders for work, logs and skills removed, a delivery that began still ends, later ones work, and
/// nothing is lost.
#[test]
fn working_folders_are_removed_under_the_daemon() {
    let folder = Folder::new("folders");
    write_waiting_skill(folder.path());
    let mut daemon = Daemon::start_in(folder.path());
    let first = daemon.push("work.do", json!(1));
    daemon.wait("the script to begin", || (runs(folder.path()) == 1).then_some(()));
    for gone in ["run", "logs"] {
        drop(fs::remove_dir_all(folder.path().join(gone)));
    }
    fs::write(folder.path().join("runs/go"), "").expect("the script may end");
    let second = daemon.push("work.do", json!(2));
    for id in [&first, &second] {
        daemon.until(id, "done");
    }
    fs::remove_dir_all(folder.path().join("skills")).expect("the skills can be removed");
    daemon.wait("the skill to be gone", || {
        daemon.post("/skills/reload", &json!({}));
        (daemon.get("/skill/waiting").status == 404).then_some(())
    });
    let third = daemon.push("work.do", json!(3));
    assert_eq!(daemon.get("/health").status, 200);
    daemon.kill();
    daemon.again();
    nothing_lost(&daemon, &[first, second, third]);
}
