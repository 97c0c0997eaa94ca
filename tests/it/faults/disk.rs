//! Full and read-only disks.

use serde_json::json;

use super::{Disk, degraded, healthy, nothing_lost, refused, run, runs, text, told, try_push, write_waiting_skill};
use crate::harness::{Daemon, Folder, Stream, TOKEN, write_skill};
use crate::peer::Peer;

const BIG: usize = 100_000;

/// Goal: a disk that gets full refuses new events and says so once; reads and streams go on; what ends meanwhile is
/// settled once, afterwards; it recovers by itself and tells of it; nothing that was acknowledged is lost.
#[test]
fn a_full_disk_recovers_by_itself() {
    let Some(disk) = Disk::tmpfs(48) else { return };
    disk.configure("[bus]\nkeep_free_mib = 0\n");
    write_waiting_skill(&disk.home);
    let mut daemon = Daemon::start_in(&disk.home);
    let work = daemon.push("work.do", json!({}));
    daemon.wait("the script to begin", || (runs(&disk.home) == 1).then_some(()));
    let mut live = Stream::open(&daemon, "/events/stream?types=big.one,aman.**", &[("x-aman-token", TOKEN)]);
    disk.fill(1 << 20);
    let mut stored = vec![work.clone()];
    let full = loop {
        let answer = try_push(&daemon, "big.one", &json!("x".repeat(BIG)));
        match answer.status {
            202 => stored.push(answer.json["id"].as_str().expect("an id").to_owned()),
            _ => break answer,
        }
        assert!(stored.len() < 1000, "a disk of 48 MiB takes no 100 MB");
    };
    refused(&full, "disk_full", "Free some space");
    disk.fill(0);
    for _ in 0..50 {
        refused(&try_push(&daemon, "big.one", &json!("x".repeat(BIG))), "disk_full", "Free some space");
    }
    degraded(&daemon, "disk_full");
    nothing_lost(&daemon, &stored);
    for _ in 1..stored.len() {
        assert_eq!(live.next().expect("what was stored was streamed").event, "big.one");
    }
    std::fs::write(disk.home.join("runs/go"), "").expect("an empty file needs no room");
    daemon.wait("the script to end", || daemon.log().contains("Nothing new can be stored").then_some(()));
    assert_eq!(told(&daemon), 1, "{}", daemon.log());

    disk.empty();
    healthy(&daemon);
    daemon.until(&work, "done");
    assert_eq!((runs(&disk.home), daemon.recent("work.done").len()), (1, 1));
    let told_of = live.next().expect("an event tells of the end");
    assert_eq!(
        (told_of.event.as_str(), &told_of.data["data"]["code"]),
        ("aman.storage.recovered", &json!("disk_full"))
    );
    let audit = daemon.get("/audit-log?action=storage.recovered").json;
    assert_eq!(audit["items"].as_array().map(Vec::len), Some(1), "{audit}");
    stored.push(daemon.push("big.one", json!("again")));
    daemon.kill();
    daemon.again();
    nothing_lost(&daemon, &stored);
    assert_eq!(daemon.recent("big.one").len() + 1, stored.len(), "what was refused is not there");
}

/// Goal: before the disk is full, new work is refused while what is under way is still settled.
#[test]
fn little_space_is_kept_for_work_under_way() {
    let Some(disk) = Disk::tmpfs(64) else { return };
    disk.configure("[bus]\nkeep_free_mib = 16\n");
    write_waiting_skill(&disk.home);
    let daemon = Daemon::start_in(&disk.home);
    let work = daemon.push("work.do", json!({}));
    daemon.wait("the script to begin", || (runs(&disk.home) == 1).then_some(()));
    disk.fill(24 << 20);
    daemon.push("a.b", json!(1));
    let detail = daemon.get("/health").json["checks"]["store"]["detail"].to_string();
    assert!(detail.contains("below 16 MiB nothing new is taken"), "{detail}");
    disk.fill(12 << 20);
    let low = daemon.wait("a refusal", || Some(try_push(&daemon, "a.b", &json!(2))).filter(|got| got.status != 202));
    refused(&low, "disk_full", "Free some space");
    degraded(&daemon, "disk_full");
    std::fs::write(disk.home.join("runs/go"), "").expect("there is room");
    daemon.until(&work, "done");
    assert_eq!(daemon.recent("work.done").len(), 1);
    disk.empty();
    healthy(&daemon);
    daemon.push("a.b", json!(3));
    daemon.wait("the event that tells of it", || (daemon.recent("aman.storage.recovered").len() == 1).then_some(()));
    assert_eq!(told(&daemon), 1, "{}", daemon.log());
}

/// Goal: a file system that becomes read-only under the daemon: refused, said once, reads go on; after it was mounted
/// anew everything is there and what was cut off is done.
#[test]
fn a_disk_that_becomes_read_only() {
    let Some(disk) = Disk::ext4(64) else { return };
    disk.configure("[bus]\nkeep_free_mib = 0\n");
    write_waiting_skill(&disk.home);
    // What the test itself wrote is to survive as well.
    nix::unistd::sync();
    let mut daemon = Daemon::start_in(&disk.home);
    let work = daemon.push("work.do", json!({}));
    let mut stored = vec![work.clone(), daemon.push("a.b", json!(1))];
    daemon.wait("the script to begin", || (runs(&disk.home) == 1).then_some(()));
    disk.remount("abort");
    for _ in 0..20 {
        let answer = try_push(&daemon, "a.b", &json!(2));
        refused(&answer, "disk_read_only", "mount it writable");
    }
    degraded(&daemon, "disk_read_only");
    assert_eq!(daemon.recent("a.b").len(), 1, "reads go on");
    assert_eq!(told(&daemon), 1, "{}", daemon.log());
    daemon.kill();
    disk.unmount();
    disk.mount_image();
    std::fs::write(disk.home.join("runs/go"), "").expect("it is writable again");
    daemon.again();
    nothing_lost(&daemon, &stored);
    daemon.until(&work, "done");
    assert_eq!(daemon.recent("work.done").len(), 1);
    stored.push(daemon.push("a.b", json!(3)));
    nothing_lost(&daemon, &stored);
}

/// Goal: a start on a read-only disk is refused with the place and what to do, and changes nothing; on the same disk
/// mounted writable it starts with everything.
#[test]
fn a_start_on_a_read_only_disk() {
    let Some(disk) = Disk::ext4(64) else { return };
    disk.configure("[bus]\nkeep_free_mib = 0\n");
    let mut daemon = Daemon::start_in(&disk.home);
    let stored = [daemon.push("a.b", json!(1))];
    daemon.kill();
    disk.remount("ro");
    let log = Daemon::try_start_in(&disk.home, &[]).err().expect("it cannot start");
    assert!(log.contains("aman.lock cannot be used") && log.contains("Make its folder writable"), "{log}");
    disk.remount("rw");
    daemon.again();
    nothing_lost(&daemon, &stored);
}

/// A daemon in `home` of this folder, on a disk that has this fault while the file `on` is there.
fn on_fake_disk(folder: &Folder, fault: &str) -> Daemon {
    let (home, library) = (folder.path().join("home"), folder.path().join("disk.so"));
    let source = format!("{}/../tests/fixtures/disk.c", env!("CARGO_MANIFEST_DIR"));
    run("cc", &["-shared", "-fPIC", "-O1", "-o", &text(&library), &source, "-ldl"]);
    let (library, on, prefix) = (text(&library), text(&folder.path().join("on")), text(&home.join("aman.")));
    let env = [
        ("LD_PRELOAD", library.as_str()),
        ("AMAN_TEST_FAULT", fault),
        ("AMAN_TEST_SWITCH", &on),
        ("AMAN_TEST_PREFIX", &prefix),
    ];
    Daemon::try_start_in(&home, &env).expect("it starts")
}

/// Goal: a disk that becomes read-only and then writable again, as after `mount -o remount,rw`: refused with what to do,
/// reads go on, and without a restart everything goes on by itself; what ended meanwhile is settled once, nothing is lost.
/// The disk is a fake: a library in the daemon answers as the kernel would.
#[test]
fn a_read_only_disk_that_becomes_writable_again() {
    let folder = Folder::new("rofs");
    let (home, switch) = (folder.path().join("home"), folder.path().join("on"));
    std::fs::create_dir(&home).expect("a folder");
    write_waiting_skill(&home);
    let mut daemon = on_fake_disk(&folder, "read-only");
    let work = daemon.push("work.do", json!({}));
    let mut stored = vec![work.clone(), daemon.push("a.b", json!(1))];
    daemon.wait("the script to begin", || (runs(&home) == 1).then_some(()));
    std::fs::write(&switch, "").expect("a file");
    for n in 0..20 {
        refused(&try_push(&daemon, "a.b", &json!(n)), "disk_read_only", "mount it writable");
    }
    degraded(&daemon, "disk_read_only");
    nothing_lost(&daemon, &stored);
    std::fs::write(home.join("runs/go"), "").expect("a file");
    // Longer than the writer's first try takes to come; nothing tells of it.
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!(try_push(&daemon, "a.b", &json!(1)).code(), "disk_read_only");
    assert_eq!(told(&daemon), 1, "{}", daemon.log());
    std::fs::remove_file(&switch).expect("a file");
    healthy(&daemon);
    stored.push(daemon.push("a.b", json!(2)));
    daemon.until(&work, "done");
    assert_eq!((runs(&home), daemon.recent("work.done").len(), daemon.recent("a.b").len()), (1, 1, 2));
    daemon.wait("the event that tells of it", || (daemon.recent("aman.storage.recovered").len() == 1).then_some(()));
    daemon.kill();
    daemon.again();
    nothing_lost(&daemon, &stored);
}

/// Goal: with durability = "normal", an event whose number could not be put on the disk is told to nobody, streams included;
/// once the disk works again it is, in its place. The disk is a fake, as above.
#[test]
fn numbers_that_are_not_on_the_disk_are_not_told() {
    let folder = Folder::new("nosync");
    let (home, switch) = (folder.path().join("home"), folder.path().join("on"));
    std::fs::create_dir(&home).expect("a folder");
    std::fs::write(home.join("aman.toml"), "[bus]\ndurability = \"normal\"\n").expect("aman.toml");
    let daemon = on_fake_disk(&folder, "no-sync");
    let mut live = Stream::open(&daemon, "/events/stream?types=a.b,aman.storage.**", &[("x-aman-token", TOKEN)]);
    std::fs::write(&switch, "").expect("a file");
    let refused = try_push(&daemon, "a.b", &json!(1));
    assert_eq!((refused.status, refused.code()), (503, "storage"), "{refused:?}");
    live.set_patience(std::time::Duration::from_secs(1));
    assert!(live.try_next().is_err(), "nobody was told that it is stored");
    live.set_patience(crate::harness::PATIENCE);
    std::fs::remove_file(&switch).expect("a file");
    healthy(&daemon);
    let heard = [live.next(), live.next()].map(|frame| frame.expect("a frame").event);
    assert_eq!(heard, ["a.b", "aman.storage.recovered"]);
    assert_eq!(daemon.recent("a.b").len(), 1);
}

/// Goal: a copy is made also where no file can have two names, as on a USB stick, and replaces nothing there either. The disk
/// is a fake, as above.
#[test]
fn copies_are_made_where_there_are_no_links() {
    let folder = Folder::new("nolinks");
    let home = folder.path().join("home");
    std::fs::create_dir(&home).expect("a folder");
    std::fs::write(folder.path().join("on"), "").expect("a file");
    let daemon = on_fake_disk(&folder, "no-links");
    // Of the files that the fake is about.
    std::fs::write(home.join("aman.toml"), "[backup]\nevery = \"24h\"\nfolder = \"~/aman.copies\"\n")
        .expect("aman.toml");
    let reloaded = daemon.post("/config/reload", &json!({}));
    assert_eq!(reloaded.status, 200, "{reloaded:?}");
    let made = daemon.wait("the copy", || daemon.recent("aman.backup.made").pop());
    let file = made["data"]["file"].as_str().expect("a path").to_owned();
    assert!(file.starts_with(&text(&home.join("aman.copies"))), "{made}");
    let copies = std::fs::read_dir(home.join("aman.copies")).expect("the folder").count();
    assert_eq!(copies, 1, "nothing else is left");
    let (code, _, err) = daemon.cli(&["db", "backup", &file]);
    assert!(code == 1 && err.contains("is there already"), "{err}");
}

/// Goal: what was stored and could not be told so, because the files were gone for a moment, is found again without a
/// restart: the claim of an attempt, an intent that is being sent, the run of a cron job. The disk is a fake, as above.
#[test]
fn what_was_stored_without_an_answer_is_found() {
    let peer = Peer::start();
    for (look, what) in [(2, "cron"), (3, "claim"), (4, "sending")] {
        let folder = Folder::new("look");
        let (home, switch) = (folder.path().join("home"), folder.path().join("on"));
        std::fs::create_dir(&home).expect("a folder");
        let toml = format!(
            "[http_client]\nallow_private = true\n[sources.none]\nkind = \"webhook\"\n[sinks.out]\nkind = \"webhook\"\n\
             secret = \"plain-secret\"\nurl = \"{}/in\"\ntypes = [\"send.it\"]\n[cron.job]\nexpression = \"@yearly\"\n",
            peer.url()
        );
        std::fs::write(home.join("aman.toml"), toml).expect("aman.toml");
        write_skill(&home, "well", &["aman.on: work.do"], "exit 0");
        let daemon = on_fake_disk(&folder, &format!("look-{look}"));
        // Connections that read are open from now on, so that only commits look.
        for kind in ["work.do", "send.it"] {
            daemon.push(kind, json!(1));
        }
        daemon.settle();
        daemon.wait("the first message", || (daemon.get("/sink/out").json["sent"] == 1).then_some(()));
        // The next commit is the one that is meant.
        daemon.writes_nothing_for(std::time::Duration::from_millis(300));
        std::fs::write(&switch, "").expect("a file");
        match what {
            "cron" => assert_eq!(daemon.post("/cron/job/run", &json!({})).code(), "database_moved"),
            "claim" => daemon.until(&daemon.push("work.do", json!(2)), "done"),
            _ => drop(daemon.push("send.it", json!(2))),
        }
        daemon.wait("the fault", || (!switch.exists()).then_some(()));
        healthy(&daemon);
        match what {
            "cron" => daemon.wait("the end of the run", || {
                let runs = daemon.get("/cron/job/runs").items();
                (runs.len() == 1 && runs[0]["status"] == "done").then_some(())
            }),
            "claim" => daemon.settle(),
            _ => daemon.wait("the message", || (daemon.get("/sink/out").json["sent"] == 2).then_some(())),
        }
    }
}

/// Goal: an event of the daemon's own that was stored although the disk seemed gone is not stored again. The disk is a fake, as
/// above.
#[test]
fn what_the_daemon_tells_is_stored_once() {
    let folder = Folder::new("told");
    let (home, switch) = (folder.path().join("home"), folder.path().join("on"));
    std::fs::create_dir(&home).expect("a folder");
    std::fs::write(home.join("aman.toml"), "").expect("aman.toml");
    let daemon = on_fake_disk(&folder, "look-1");
    daemon.push("a.b", json!(1));
    daemon.writes_nothing_for(std::time::Duration::from_millis(300));
    std::fs::write(home.join("aman.toml"), "[").expect("aman.toml");
    std::fs::write(&switch, "").expect("a file");
    assert_eq!(daemon.post("/config/reload", &json!({})).status, 409);
    daemon.wait("the fault", || (!switch.exists()).then_some(()));
    daemon.wait("the disk", || (try_push(&daemon, "a.b", &json!(2)).status == 202).then_some(()));
    daemon.wait("the event", || (!daemon.recent("aman.config.broken").is_empty()).then_some(()));
    daemon.writes_nothing_for(std::time::Duration::from_secs(1));
    assert_eq!(daemon.recent("aman.config.broken").len(), 1);
}

/// Goal: a rollback for which the disk has no room says so and leaves everything as it was; with room it works.
#[test]
fn a_rollback_on_a_full_disk_changes_nothing() {
    let Some(disk) = Disk::tmpfs(8) else { return };
    let (home, skill) = (Folder::new("home"), disk.home.join("skills/big"));
    let toml = format!("[skills]\nwatch = false\npaths = [{:?}]\n", disk.home.join("skills"));
    std::fs::write(home.path().join("aman.toml"), toml).expect("aman.toml");
    write_skill(&disk.home, "big", &["aman.on: t.big"], "exit 0");
    std::fs::write(skill.join("data.bin"), vec![7; 2 << 20]).expect("room for it");
    let daemon = Daemon::start_in(home.path());
    let digest = || daemon.get("/skill/big").json["digest"].as_str().expect("a digest").to_owned();
    let first = digest();
    std::fs::remove_file(skill.join("data.bin")).expect("ours");
    assert_eq!(daemon.post("/skills/reload", &json!({})).status, 200);
    let second = digest();
    disk.fill(1 << 20);
    let body = json!({ "digest": first });
    refused(&daemon.post_confirmed("/skill/big/rollback", &body), "disk_full", "nothing was changed");
    assert_eq!(daemon.post("/skills/reload", &json!({})).json["changed"], json!([]));
    assert_eq!((digest(), skill.join("data.bin").exists()), (second, false));
    let shown = daemon.get("/skill/big").json;
    assert_eq!(shown["standing"], "untrusted", "it was changed and not agreed to");
    let left: Vec<_> = std::fs::read_dir(disk.home.join("skills")).expect("a folder").flatten().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    disk.empty();
    let back = daemon.post_confirmed("/skill/big/rollback", &body);
    assert_eq!((back.status, digest()), (200, first), "{back:?}");
}
