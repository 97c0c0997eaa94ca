//! Retention: what goes when, what stays, and that nobody is left with half of anything.

use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::harness::{Daemon, Stream, TOKEN, wait, write_skill};

const TOKENED: [(&str, &str); 1] = [("x-aman-token", TOKEN)];

fn config(retention: &str) -> String {
    format!("[bus]\nretention = {{ {retention} }}\n[sources.none]\nkind = \"webhook\"\n")
}

/// Pushes events in batches; the body of each has `bytes` bytes. Gives the ids.
fn push_many(daemon: &Daemon, kind: &str, count: usize, bytes: usize) -> Vec<String> {
    let headers = [TOKENED[0], ("content-type", "application/cloudevents-batch+json")];
    let one = json!({ "specversion": "1.0", "source": "s", "type": kind, "data": "x".repeat(bytes) });
    let mut ids = Vec::new();
    while ids.len() < count {
        let batch: Vec<Value> = vec![one.clone(); (count - ids.len()).min(500).min(900_000 / (bytes + 200))];
        let answer = daemon.send("POST", "/events/push", &headers, Some(&batch.into()));
        assert_eq!(answer.status, 202, "{answer:?}");
        let items = answer.json["items"].as_array().expect("items").clone();
        ids.extend(items.iter().map(|item| item["id"].as_str().expect("an id").to_owned()));
    }
    ids
}

fn set(daemon: &Daemon, key: &str, value: &str) {
    let answer = daemon.post_confirmed("/config/set", &json!({ "changes": { key: value } }));
    assert_eq!(answer.status, 200, "{answer:?}");
}

fn wait_gone(daemon: &Daemon, id: &str) -> Value {
    daemon.wait("the event to be removed", || {
        let answer = daemon.get(&format!("/events/dump/{id}"));
        (answer.status == 404).then_some(answer.json)
    })
}

/// Ends the daemon, has everything be a year older, and starts it again: it doubts its clock then, so that only who asks
/// for it removes anything.
fn age_by_a_year(daemon: &mut Daemon) {
    daemon.kill();
    let db = Connection::open(daemon.home().join("aman.db")).expect("the database");
    let year_ms = 365_i64 * 86_400_000;
    db.execute("UPDATE event SET received_ms = received_ms - ?1", [year_ms]).expect("update");
    drop(db);
    daemon.again();
    wait("the doubt", || daemon.log().contains("retention waits").then_some(()), || daemon.log());
}

fn assert_chain_holds(daemon: &Daemon) -> Value {
    let verdict = daemon.get("/audit-log/verify").json;
    assert_eq!(verdict["ok"], true, "{verdict}");
    verdict
}

/// Goal: finished events go when they are old enough and say so afterwards; work that is open and dead letters stay
/// with all that belongs to them; duplicates of what went are still duplicates, numbers go on, and cursors that point
/// below are told.
#[test]
fn old_events_go_and_what_is_open_stays() {
    let mut daemon = Daemon::configured(&config("max_age = \"0s\""));
    write_skill(daemon.home(), "later", &["aman.on: hold.*"], "exit 75");
    write_skill(daemon.home(), "never", &["aman.on: die.*"], "exit 65");
    write_skill(daemon.home(), "well", &["aman.on: work.*"], "echo '{\"publish\":[{\"type\":\"effect.made\"}]}'");
    assert_eq!(daemon.post("/skills/reload", &json!({})).status, 200);
    let first = daemon.push("plain.one", json!(1));
    let worked = daemon.push("work.one", json!(1));
    let held = daemon.push("hold.one", json!(1));
    let keyed = json!({ "source": "test", "type": "keyed.one", "id": "the-id" });
    let keyed = daemon.post("/events/push", &keyed).json;
    let dead = daemon.push("die.one", json!(1));
    let last = push_many(&daemon, "plain.many", 600, 100).pop().expect("an id");
    daemon.wait("the dead letter", || (daemon.get("/dlq/depth").json["depth"] == 1).then_some(()));
    daemon.wait("the effect", || (daemon.recent("effect.made").len() == 1).then_some(()));
    daemon.wait("a failed attempt", || ["retrying", "dead"].contains(&daemon.outcome(&held).as_str()).then_some(()));

    set(&daemon, "bus.retention.max_age", "1s");
    let gone = wait_gone(&daemon, &last);
    assert_eq!(gone["code"], "pruned", "{gone}");
    assert!(gone["detail"].as_str().is_some_and(|text| text.contains("removed by retention on 20")), "{gone}");
    for id in [&first, &worked] {
        for path in [format!("/events/dump/{id}"), format!("/events/{id}/why")] {
            assert_eq!(daemon.get(&path).code(), "pruned", "{path}");
        }
    }
    assert_eq!(daemon.get(&format!("/events/trace/{}", first.replace('-', ""))).code(), "pruned");
    assert_eq!(daemon.get("/events/dump/01a20118-8cd6-7000-8000-0001e334e5c6").code(), "not_found");
    assert_eq!(daemon.outcome(&dead), "dead");
    assert_eq!(daemon.get("/dlq").items().iter().filter(|item| item["event"]["type"] == "die.one").count(), 1);
    assert_eq!(daemon.dump(&held)["event"]["type"], "hold.one");

    let again = daemon.post("/events/push", &json!({ "source": "test", "type": "keyed.one", "id": "the-id" })).json;
    assert_eq!((&again["deduplicated"], &again["sequence"]), (&json!(true), &keyed["sequence"]), "{again}");
    assert_eq!(again["trace_id"], keyed["trace_id"]);

    let told = daemon.wait("the event that tells", || daemon.recent("aman.retention.pruned").pop());
    assert!(told["data"]["events"].as_i64().is_some_and(|events| events > 0), "{told}");
    let rows = daemon.get("/audit-log?action=db.prune&principal=aman").items();
    assert!(!rows.is_empty() && rows[0]["target"] == "retention");
    assert_chain_holds(&daemon);

    // The first of the events is gone: a client that saw it and comes back is told, then gets what is left.
    let mut stream = Stream::open(&daemon, "/events/stream?since=1", &TOKENED);
    let reset = stream.next().expect("a frame");
    assert_eq!(reset.event, "aman.reset");
    assert_eq!(reset.data["reason"], "older_than_retention");
    let shown = stream.next().expect("a frame");
    assert_eq!(shown.event, "hold.one");
    let mut oldest = Stream::open(&daemon, "/events/stream?since=0", &TOKENED);
    assert_eq!(oldest.next().expect("a frame").event, "hold.one");

    let before = daemon.get("/runtime/status").json["sequence"].as_i64().expect("a number");
    daemon.kill();
    daemon.again();
    assert_eq!(daemon.get(&format!("/events/dump/{first}")).code(), "pruned");
    let next = daemon.post("/events/push", &json!({ "source": "test", "type": "after.one" })).json;
    assert!(next["sequence"].as_i64().is_some_and(|number| number > before), "{next}");
}

/// Goal: whatever was held back and goes later than its neighbours, every event that went says so.
#[test]
fn every_event_that_went_says_so() {
    let daemon = Daemon::configured(&config("max_age = \"0s\""));
    write_skill(daemon.home(), "never", &["aman.on: die.*"], "exit 65");
    assert_eq!(daemon.post("/skills/reload", &json!({})).status, 200);
    let mut ids = push_many(&daemon, "plain.many", 4, 10);
    ids.push(daemon.push("die.one", json!(1)));
    ids.extend(push_many(&daemon, "plain.many", 5, 10));
    daemon.settle();
    set(&daemon, "bus.retention.max_age", "1s");
    wait_gone(&daemon, &ids[9]);
    assert_eq!(daemon.get(&format!("/events/dump/{}", ids[4])).status, 200, "its letter holds it");
    set(&daemon, "bus.retention.max_age", "0s");
    ids.extend(push_many(&daemon, "plain.many", 300, 10));
    let letter = daemon.get("/dlq").items().remove(0)["id"].as_str().expect("an id").to_owned();
    assert_eq!(daemon.post_confirmed(&format!("/dlq/{letter}/discard"), &json!({})).status, 200);
    set(&daemon, "bus.retention.max_age", "1s");
    wait_gone(&daemon, &ids[309]);
    for (n, id) in ids.iter().enumerate() {
        let answer = daemon.get(&format!("/events/dump/{id}"));
        assert_eq!((answer.status, answer.code()), (404, "pruned"), "event {n}: {answer:?}");
    }
    let mut stream = Stream::open(&daemon, "/events/stream?since=20", &TOKENED);
    assert_eq!(stream.next().expect("a frame").data["reason"], "older_than_retention");
}

/// Goal: with everything removed and the daemon killed, numbers still go on.
#[test]
fn numbers_go_on_after_everything_went() {
    let mut daemon = Daemon::configured(&config("max_age = \"1s\""));
    let last = push_many(&daemon, "plain.many", 50, 10).pop().expect("an id");
    wait_gone(&daemon, &last);
    daemon.wait("the last of them", || daemon.recent("plain.many").is_empty().then_some(()));
    let before = daemon.get("/runtime/status").json["sequence"].as_i64().expect("a number");
    daemon.kill();
    let db = Connection::open(daemon.home().join("aman.db")).expect("the database");
    // As if the last run had taken its own event along.
    db.execute("DELETE FROM event", []).expect("delete");
    drop(db);
    daemon.again();
    let next = daemon.post("/events/push", &json!({ "source": "test", "type": "after.one" })).json;
    assert!(next["sequence"].as_i64().is_some_and(|number| number >= before), "{before} {next}");
}

/// Goal: killed at any moment of its work, retention leaves whole events behind, and ends its work at the next start.
#[test]
fn killed_while_it_removes() {
    let mut daemon = Daemon::configured(&config("max_age = \"0s\""));
    write_skill(daemon.home(), "well", &["aman.on: work.*"], "exit 0");
    assert_eq!(daemon.post("/skills/reload", &json!({})).status, 200);
    for _ in 0..5 {
        daemon.push("work.one", json!(1));
    }
    let mut ids = push_many(&daemon, "plain.many", 6000, 300);
    daemon.settle();
    let db = Connection::open(daemon.home().join("aman.db")).expect("the database");
    let of_first = "SELECT count(*) FROM event WHERE type = 'plain.many'";
    let mut left = db.query_row(of_first, [], |row| row.get::<_, i64>(0)).expect("a count");
    drop(db);
    let mut met = 0;
    for _ in 0..4 {
        set(&daemon, "bus.retention.max_age", "1s");
        let db = Connection::open(daemon.home().join("aman.db")).expect("the database");
        let begun = || db.query_row(of_first, [], |row| row.get::<_, i64>(0)).is_ok_and(|now| now < left).then_some(());
        daemon.wait("a first step", begun);
        drop(db);
        daemon.kill();
        let db = Connection::open(daemon.home().join("aman.db")).expect("the database");
        let count = |sql: &str| db.query_row(sql, [], |row| row.get::<_, i64>(0)).expect(sql);
        let lone =
            "SELECT count(*) FROM delivery d WHERE NOT EXISTS (SELECT 1 FROM event e WHERE e.sequence = d.event)";
        assert_eq!(count(lone), 0);
        let missing = "SELECT count(*) FROM event e WHERE delivery_count > (SELECT count(*) FROM delivery d \
            WHERE d.id >= e.delivery_first AND d.id < e.delivery_first + e.delivery_count)";
        assert_eq!(count(missing), 0);
        let unrecorded = "SELECT count(*) FROM event e JOIN pruned p ON e.sequence BETWEEN p.first AND p.last";
        assert_eq!(count(unrecorded), 0);
        met += i64::from(count(of_first) > 0);
        drop(db);
        daemon.again();
        assert_chain_holds(&daemon);
        ids.extend(push_many(&daemon, "plain.many", 500, 300));
        let db = Connection::open(daemon.home().join("aman.db")).expect("the database");
        left = db.query_row(of_first, [], |row| row.get::<_, i64>(0)).expect("a count");
    }
    assert!(met > 0, "no kill met a removal");
    for id in [&ids[0], &ids[5999], ids.last().expect("an id")] {
        assert_eq!(wait_gone(&daemon, id)["code"], "pruned");
    }
}

/// Goal: a database that grows past its limit loses its oldest events, keeps the newest, and its file shrinks again.
#[test]
fn the_limit_of_size_is_kept() {
    let daemon = Daemon::configured(&config("max_age = \"30d\", max_size = \"2MiB\""));
    let ids = push_many(&daemon, "big.one", 1500, 10_000);
    let db = daemon.home().join("aman.db");
    let size = |path: &std::path::Path| std::fs::metadata(path).expect("the database").len();
    daemon.wait("the first to go", || (daemon.get(&format!("/events/dump/{}", ids[0])).status == 404).then_some(()));
    daemon.wait("the file to shrink", || (size(&db) < 6 << 20).then_some(()));
    let rows = daemon.get("/audit-log?action=db.prune").items();
    assert!(rows[0]["detail"]["for_size"].as_i64().is_some_and(|events| events > 0), "{rows:?}");
    assert_eq!(daemon.get(&format!("/events/dump/{}", ids[1499])).status, 200);
}

/// Goal: a preview says what would go and touches nothing; the order to do it is confirmed and on record once.
#[test]
fn a_preview_touches_nothing() {
    let mut daemon = Daemon::configured(&config("max_age = \"30d\""));
    push_many(&daemon, "plain.many", 700, 100);
    age_by_a_year(&mut daemon);
    let young = daemon.push("young.one", json!(1));
    let dry = daemon.post_confirmed("/db/prune?dry_run=true", &json!({})).json;
    assert_eq!((&dry["events"], &dry["dry_run"]), (&json!(700), &json!(true)), "{dry}");
    assert_eq!(daemon.post("/db/prune", &json!({})).code(), "confirmation_required");
    assert_eq!(daemon.post_confirmed("/db/prune", &json!({ "x": 1 })).status, 400);
    assert_eq!(daemon.recent("plain.many").len(), 700);
    let done = daemon.post_confirmed("/db/prune", &json!({})).json;
    assert_eq!((&done["events"], &done["complete"]), (&json!(700), &json!(true)), "{done}");
    assert_eq!(
        (daemon.recent("plain.many").len(), daemon.dump(&young)["event"]["type"].as_str()),
        (0, Some("young.one"))
    );
    let types = daemon.get("/events/types").items();
    let known = |kind: &str| types.iter().any(|seen| seen["type"] == kind);
    assert_eq!((known("plain.many"), known("young.one")), (false, true), "{types:?}");
    assert_eq!(daemon.get("/audit-log?action=db.prune&principal=owner&outcome=done").items().len(), 1);
    assert_eq!(daemon.post("/db/vacuum", &json!({})).status, 200);
    let metrics = daemon.get("/metrics");
    assert!(String::from_utf8_lossy(&metrics.body).contains("aman_retention_runs_total"));
}

/// Goal: audit records go when they are old; the rest is a chain that still proves itself, and a further record that is
/// missing shows.
#[test]
fn the_audit_chain_holds_after_its_beginning_went() {
    let mut daemon = Daemon::configured(&config("max_age = \"0s\", audit = \"2s\""));
    for _ in 0..20 {
        assert_eq!(daemon.post("/skills/reload", &json!({})).status, 200);
    }
    let verdict = daemon.wait("the records to go", || {
        let verdict = assert_chain_holds(&daemon);
        verdict["pruned_to"].as_i64().is_some_and(|to| to >= 20).then_some(verdict)
    });
    assert!(verdict["checked"].as_i64().is_some_and(|checked| checked >= 1), "{verdict}");
    set(&daemon, "bus.retention.audit", "1h");
    for _ in 0..5 {
        assert_eq!(daemon.post("/skills/reload", &json!({})).status, 200);
    }
    assert_chain_holds(&daemon);
    daemon.kill();
    let db = Connection::open(daemon.home().join("aman.db")).expect("the database");
    let oldest = "SELECT seq, hash FROM audit ORDER BY seq LIMIT 1";
    let next = "SELECT seq, hash FROM audit ORDER BY seq LIMIT 1 OFFSET 4";
    let row = |sql: &str| db.query_row(sql, [], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)));
    let (_, (seq, hash)) = (row(oldest).expect("a row"), row(next).expect("a row"));
    // Whoever cuts the chain and moves its beginning along is found out: no record allows it.
    db.execute("DELETE FROM audit WHERE seq <= ?1", [seq]).expect("delete");
    let anchor = json!({ "seq": seq, "hash": hash }).to_string();
    db.execute("UPDATE meta SET value = ?1 WHERE key = 'audit_anchor'", [anchor]).expect("update");
    drop(db);
    daemon.again();
    let verdict = daemon.get("/audit-log/verify").json;
    assert_eq!((&verdict["ok"], &verdict["first_bad"]), (&json!(false), &json!(seq)), "{verdict}");
}

/// Goal: what a run did is done, on record and told, also while pushes are refused.
#[test]
fn a_run_is_told_while_pushes_are_refused() {
    let mut daemon = Daemon::configured(&config("max_age = \"30d\"").replace("[bus]\n", "[bus]\nmax_pending = 1\n"));
    write_skill(daemon.home(), "later", &["aman.on: hold.*"], "exit 75");
    assert_eq!(daemon.post("/skills/reload", &json!({})).status, 200);
    push_many(&daemon, "plain.many", 20, 10);
    (0..2).for_each(|_| drop(daemon.push("hold.one", json!(1))));
    age_by_a_year(&mut daemon);
    let full = daemon.post("/events/push", &json!({ "source": "test", "type": "one.more" }));
    assert_eq!((full.status, full.code()), (503, "overloaded"), "{full:?}");
    let done = daemon.post_confirmed("/db/prune", &json!({}));
    assert_eq!((done.status, &done.json["events"], &done.json["held"]), (200, &json!(20), &json!(2)), "{done:?}");
    assert_eq!(daemon.get("/audit-log?action=db.prune&principal=owner&outcome=done").items().len(), 1);
    assert_eq!(daemon.recent("aman.retention.pruned").len(), 1);
}

/// Goal: what waits for a consumer that was removed waits as long as events are kept, and holds them no longer.
#[test]
fn what_a_removed_consumer_left_is_given_up() {
    let daemon = Daemon::configured(&config("max_age = \"0s\""));
    write_skill(daemon.home(), "later", &["aman.on: hold.*", "aman.retry: attempts=5 base=24h max=24h"], "exit 75");
    assert_eq!(daemon.post("/skills/reload", &json!({})).status, 200);
    let ids = push_many(&daemon, "hold.one", 600, 10);
    daemon.until(&ids[0], "retrying");
    set(&daemon, "bus.retention.max_age", "1s");
    daemon.push("plain.one", json!(1));
    wait_gone(&daemon, &daemon.push("plain.two", json!(1)));
    assert_eq!(daemon.outcome(&ids[599]), "pending", "it may still run");
    std::fs::remove_dir_all(daemon.home().join("skills/later")).expect("it is ours");
    assert_eq!(daemon.post("/skills/reload", &json!({})).status, 200);
    ids.iter().for_each(|id| assert_eq!(wait_gone(&daemon, id)["code"], "pruned"));
    daemon.settle();
}

/// Goal: a dead letter that nobody decided about goes at its time, and lets its event go; a time that is changed counts
/// for letters that are there, too.
#[test]
fn dead_letters_go_at_their_time() {
    let daemon = Daemon::configured(&config("max_age = \"1s\", dead_letters = \"0s\""));
    write_skill(daemon.home(), "never", &["aman.on: die.*"], "exit 65");
    assert_eq!(daemon.post("/skills/reload", &json!({})).status, 200);
    let dead = daemon.push("die.one", json!(1));
    let letter = daemon.wait("the letter", || daemon.get("/dlq").items().pop());
    assert_eq!(letter["expires_at"], Value::Null, "{letter}");
    set(&daemon, "bus.retention.dead_letters", "30d");
    assert!(daemon.get("/dlq").items()[0]["expires_at"].as_str().is_some_and(|at| at > "2026"));
    set(&daemon, "bus.retention.dead_letters", "2s");
    // Its delivery is open until it dies, and its letter holds it then.
    assert_eq!(wait_gone(&daemon, &dead)["code"], "pruned");
    assert_eq!(daemon.get("/dlq/depth").json["depth"], 0);
    assert_chain_holds(&daemon);
}

/// Goal: a limit that makes no sense is refused by name; a clock that would have everything removed is doubted first.
#[test]
fn limits_are_checked_and_a_strange_clock_is_doubted() {
    let daemon = Daemon::configured(&config("max_age = \"30d\""));
    for (key, value) in [("bus.retention.max_size", "10KiB"), ("bus.retention.max_age", "soon")] {
        let answer = daemon.post_confirmed("/config/set", &json!({ "changes": { key: value } }));
        assert_eq!((answer.status, answer.code()), (400, "invalid_input"), "{answer:?}");
    }
    let mut daemon = daemon;
    daemon.push("plain.one", json!(1));
    age_by_a_year(&mut daemon);
    // What came in by the same clock proves nothing.
    daemon.push("plain.two", json!(1));
    set(&daemon, "bus.retention.max_age", "29d");
    let doubts = || (daemon.log().matches("retention waits").count() > 1).then_some(());
    daemon.wait("another doubt", doubts);
    assert_eq!(daemon.recent("plain.one").len(), 1);
}

/// Goal: pushes go on while a large part of the database is removed, and none is lost or refused.
#[test]
fn pushes_go_on_meanwhile() {
    let count = std::env::var("AMAN_TEST_PRUNE").ok().and_then(|text| text.parse().ok()).unwrap_or(5_000);
    let daemon = Daemon::configured(&config("max_age = \"0s\""));
    let ids = push_many(&daemon, "plain.many", count, 300);
    let quiet = push_times(&daemon, |_, n| n < 300);
    set(&daemon, "bus.retention.max_age", "1s");
    let begun = Instant::now();
    let last = format!("/events/dump/{}", ids[count - 1]);
    let busy = push_times(&daemon, |daemon, n| n % 50 != 0 || daemon.get(&last).status == 200);
    // Those that came meanwhile are old by now, too: every one is there or on record.
    let sequence = daemon.get("/runtime/status").json["sequence"].as_i64().expect("a number");
    let db = Connection::open(daemon.home().join("aman.db")).expect("the database");
    // Every number up to the last is that of an event or of one that is on record as removed; one look sees one moment.
    let known = "SELECT (SELECT count(*) FROM event) + (SELECT coalesce(sum(last - first + 1), 0) FROM pruned), \
        max((SELECT coalesce(max(sequence), 0) FROM event), (SELECT coalesce(max(last), 0) FROM pruned))";
    let (known, newest) = db.query_row(known, [], |row| Ok((row.get(0)?, row.get(1)?))).expect("a count");
    let (known, newest): (i64, i64) = (known, newest);
    assert!(
        known == newest && newest >= sequence,
        "{known} of {newest} numbers are accounted for, {sequence} were told"
    );
    let took = begun.elapsed();
    crate::harness::say(&format!(
        "{count} events removed in {took:?}; a push took p50/p99/max {:?} before and {:?} meanwhile ({} pushes)",
        percentiles(&quiet),
        percentiles(&busy),
        busy.len()
    ));
}

fn push_times(daemon: &Daemon, go_on: impl Fn(&Daemon, usize) -> bool) -> Vec<Duration> {
    let mut times = Vec::new();
    while go_on(daemon, times.len() + 1) && times.len() < 200_000 {
        let begun = Instant::now();
        daemon.push("live.one", json!(times.len()));
        times.push(begun.elapsed());
    }
    times
}

fn percentiles(times: &[Duration]) -> [Duration; 3] {
    let mut sorted = times.to_vec();
    sorted.sort();
    [sorted[sorted.len() / 2], sorted[sorted.len() * 99 / 100], sorted[sorted.len() - 1]]
}
