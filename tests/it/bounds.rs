//! Lists that are bounded in bytes, not only in rows, and row numbers that are never used twice.

use serde_json::json;

use super::harness::{Daemon, Folder, TOKEN, write_skill};

const LARGE: usize = 900_000;

/// Goal: a page of dead letters holds some megabytes whatever its limit says, and the pages together hold all; so does
/// a group that is tried again.
#[test]
fn pages_of_large_dead_letters_are_short() {
    let folder = Folder::new("bounds");
    let settings = ["aman.on: big.*", "aman.retry: attempts=1 base=1ms max=1ms", "aman.concurrency: \"8\""];
    write_skill(folder.path(), "breaks", &settings, "cat > /dev/null; exit 65");
    let daemon = Daemon::start_in(folder.path());
    (0..14).for_each(|_| drop(daemon.push("big.x", json!("x".repeat(LARGE)))));
    daemon.settle();
    let first = daemon.get("/dlq?limit=1000&consumer=skill/breaks");
    assert!(first.items().len() < 14 && first.json["next_cursor"].is_string(), "{}", first.items().len());
    assert!(first.body.len() < 12 << 20, "{}", first.body.len());
    let all = daemon.all("/dlq?limit=1000&consumer=skill/breaks");
    assert_eq!(all.len(), 14);
    let fingerprint = json!({ "fingerprint": all[0]["fingerprint"] });
    let dry = daemon.post_confirmed("/dlq/retry?dry_run=true", &fingerprint);
    let done = daemon.post_confirmed("/dlq/retry", &fingerprint);
    assert_eq!((&dry.json["retried"], &done.json["retried"]), (&json!(14), &json!(14)));
}

/// Goal: a trace of large events is cut where it becomes too large, and says so.
#[test]
fn traces_of_large_events_are_cut() {
    let daemon = Daemon::start();
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let parent = format!("00-{trace}-b7ad6b7169203331-01");
    let event = json!({ "source": "s", "type": "big.x", "data": "x".repeat(LARGE) });
    for _ in 0..14 {
        let headers = [("x-aman-token", TOKEN), ("traceparent", parent.as_str())];
        assert_eq!(daemon.send("POST", "/events/push", &headers, Some(&event)).status, 202);
    }
    let shown = daemon.get(&format!("/events/trace/{trace}"));
    let events = shown.json["events"].as_array().map_or(0, Vec::len);
    assert!((5..14).contains(&events) && shown.json["truncated"] == true, "{events}");
    assert!(shown.body.len() < 12 << 20, "{}", shown.body.len());
}

fn push(daemon: &Daemon) -> i64 {
    let answer = daemon.post("/events/push", &json!({ "source": "s", "type": "a.b" }));
    answer.json["sequence"].as_i64().expect("a sequence")
}

/// Goal: with durability = normal, a power loss takes the newest events but gives none of their numbers out again; a
/// clean end passes over none.
#[test]
fn numbers_are_not_used_twice_after_a_power_loss() {
    let folder = Folder::new("numbers");
    let home = folder.path();
    std::fs::write(home.join("aman.toml"), "[bus]\ndurability = \"normal\"\n").expect("aman.toml");
    let mut daemon = Daemon::start_in(home);
    let first = push(&daemon);
    assert_eq!(daemon.terminate(), Some(0));
    daemon.again();
    assert_eq!(push(&daemon), first + 1, "a clean end");
    // The commit that reserves numbers is put on disk, and with it the log up to there; all that follows is lost with
    // the power.
    let on_disk = ["aman.db", "aman.db-wal"].map(|name| (name, std::fs::read(home.join(name)).expect("the file")));
    let last = (0..50).map(|_| push(&daemon)).fold(0, i64::max);
    daemon.kill();
    for (name, bytes) in on_disk {
        std::fs::write(home.join(name), bytes).expect("written");
    }
    let _gone = std::fs::remove_file(home.join("aman.db-shm"));
    daemon.again();
    let next = push(&daemon);
    assert!(next > last, "{next} after {last}");
    assert_eq!(push(&daemon), next + 1);
}
