//! The audit log: one record for each change, in a chain that shows what was altered.

use std::collections::BTreeMap;

use aman::api::routes;
use rusqlite::Connection;
use serde_json::{Value, json};

use crate::harness::{Daemon, Folder, TOKEN, write_skill};

fn records(daemon: &Daemon, query: &str) -> Vec<Value> {
    daemon.all(&format!("/audit-log?limit=1000&{query}"))
}

/// A request in the name of `operator`; its status.
fn act(daemon: &Daemon, operator: &str, path: &str, confirm: bool, body: &Value) -> u16 {
    let mut headers = vec![("x-aman-token", TOKEN), ("x-aman-operator", operator)];
    headers.extend(confirm.then_some(("x-aman-confirm", "yes")));
    daemon.send("POST", path, &headers, Some(body)).status
}

/// Goal: each request that changes, or would change, something has exactly one record that says who, what, on what, how
/// it ended and in which trace; what changes nothing has none.
#[test]
fn every_change_has_one_record() {
    let folder = Folder::new("audit");
    write_skill(folder.path(), "works", &["aman.on: t.a"], "exit 65");
    let daemon = Daemon::start_in(folder.path());
    daemon.push("t.a", json!({}));
    daemon.settle();
    let letter = daemon.all("/dlq?limit=1")[0]["id"].as_str().expect("a letter").to_owned();
    let (retry, discard) = (format!("/dlq/{letter}/retry"), format!("/dlq/{letter}/discard"));
    let cases: [(&str, bool, Value, u16, &str, &str, &str); 16] = [
        ("/skill/works/disable", false, json!({}), 200, "skill.disable", "done", "works"),
        ("/skill/works/disable", false, json!({}), 200, "skill.disable", "done", "works"),
        ("/skill/works/enable", false, json!({}), 200, "skill.enable", "done", "works"),
        ("/skill/works/enable", false, json!({"digest": "x"}), 400, "skill.enable", "refused", "/skill/works/enable"),
        ("/skill/works/enable", false, json!({"x": 1}), 400, "skill.enable", "refused", "/skill/works/enable"),
        ("/skill/none/enable", false, json!({}), 404, "skill.enable", "refused", "/skill/none/enable"),
        ("/skills/reload", false, json!({}), 200, "skill.reload", "done", "skills"),
        ("/skills/reload", false, json!([]), 400, "skill.reload", "refused", "/skills/reload"),
        (&retry, false, json!({}), 409, "dlq.retry", "refused", &retry),
        ("/dlq/none/retry", true, json!({}), 404, "dlq.retry", "refused", "/dlq/none/retry"),
        ("/dlq/retry", true, json!({"fingerprint": "none"}), 404, "dlq.retry", "refused", "/dlq/retry"),
        (&discard, false, json!({"reason": "r"}), 200, "dlq.discard", "done", &letter),
        (&discard, false, json!({}), 409, "dlq.discard", "refused", &discard),
        (&retry, true, json!({}), 409, "dlq.retry", "refused", &retry),
        ("/agent/start", false, json!({}), 200, "agent.start", "done", "/agent/start"),
        ("/agent/shutdown", false, json!({}), 409, "agent.shutdown", "refused", "/agent/shutdown"),
    ];
    for (n, (path, confirm, body, status, action, outcome, target)) in cases.iter().enumerate() {
        let operator = format!("anna-{n}");
        assert_eq!(act(&daemon, &operator, path, *confirm, body), *status, "{path} {body}");
        let found = records(&daemon, &format!("operator={operator}"));
        assert_eq!(found.len(), 1, "{path} {body}: {found:?}");
        let record = &found[0];
        let told = (&record["action"], &record["outcome"], &record["target"], &record["status"], &record["principal"]);
        let expected = (&json!(action), &json!(outcome), &json!(target), &json!(status), &json!("owner"));
        assert_eq!(told, expected, "{path} {body}");
        assert_eq!(record["trace_id"].as_str().map(str::len), Some(32), "{record}");
    }
    for (path, body) in [
        ("/events/push", json!({"source": "s", "type": "t"})),
        ("/events/push", json!({})),
        ("/inject-event", json!({})),
        ("/dlq/retry?dry_run=true", json!({"fingerprint": "none"})),
    ] {
        act(&daemon, "bob", path, true, &body);
    }
    assert_eq!(records(&daemon, "operator=bob"), Vec::<Value>::new(), "ingestion and dry runs are not recorded");
    assert_eq!(records(&daemon, "").len(), cases.len());
}

/// Goal: no audited route is forgotten: each writes one record of its action even when it is refused.
#[test]
fn every_audited_route_records() {
    let daemon = Daemon::start();
    let mut expected = 0;
    for route in routes::core() {
        let Some(action) = route.audited else { continue };
        let path = route.path.replace("{id}", "none").replace("{name}", "none");
        let operator = format!("op{expected}");
        let headers = [("x-aman-token", TOKEN), ("x-aman-operator", operator.as_str())];
        daemon.send(route.method.as_str(), &path, &headers, Some(&json!({"no_such_field": 1})));
        let found = records(&daemon, &format!("operator={operator}"));
        assert_eq!(found.len(), 1, "{} {path}", route.method);
        assert_eq!((&found[0]["action"], &found[0]["outcome"]), (&json!(action), &json!("refused")), "{path}");
        expected += 1;
    }
    assert_eq!(records(&daemon, "").len(), expected);
}

/// Goal: the filters choose, and pages stay whole while records are added.
#[test]
fn lists_are_filtered_and_stable() {
    let daemon = Daemon::start();
    for n in 0..12 {
        act(&daemon, if n % 3 == 0 { "anna" } else { "bob" }, "/skills/reload", false, &json!({}));
    }
    act(&daemon, "anna", "/skill/none/disable", false, &json!({}));
    let all = records(&daemon, "");
    assert_eq!(
        all.iter().map(|record| record["seq"].as_i64()).collect::<Vec<_>>(),
        (1..=13).rev().map(Some).collect::<Vec<_>>()
    );
    let time = |n: usize| all[n]["time"].as_str().expect("a time").replace('+', "%2B");
    let since = format!("since={}", time(0));
    let until = format!("until={}", time(12));
    let count =
        |wanted: &dyn Fn(&str) -> bool| all.iter().filter(|r| wanted(r["time"].as_str().expect("a time"))).count();
    let (late, early) = (count(&|at| at >= time(0).as_str()), count(&|at| at < time(12).as_str()));
    for (query, expected) in [
        ("operator=anna", 5),
        ("operator=anna&action=skill.reload", 4),
        ("action=skill.disable", 1),
        ("outcome=refused", 1),
        ("outcome=done", 12),
        ("principal=owner", 13),
        ("principal=nobody", 0),
        (since.as_str(), late),
        (until.as_str(), early),
    ] {
        assert_eq!(records(&daemon, query).len(), expected, "{query}");
    }
    for (query, field) in [
        ("since=yesterday", "since"),
        ("until=1", "until"),
        ("limit=-1", "limit"),
        ("cursor=x", "cursor"),
        ("actoin=x", "actoin"),
    ] {
        let answer = daemon.get(&format!("/audit-log?{query}"));
        assert_eq!((answer.status, answer.fields()), (400, vec![field]), "{query}");
    }
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = daemon.get(&format!("/audit-log?limit=4&cursor={cursor}"));
        seen.extend(page.items());
        act(&daemon, "carl", "/skills/reload", false, &json!({}));
        match page.json["next_cursor"].as_str() {
            Some(next) => next.clone_into(&mut cursor),
            None => break,
        }
    }
    assert_eq!(seen, all);
}

/// Goal: whatever is altered in the database while the daemon is down shows, with the first bad record; an unaltered
/// chain goes on over restarts and kills.
#[test]
fn what_was_altered_shows() {
    let folder = Folder::new("audit");
    let mut daemon = Daemon::start_in(folder.path());
    for n in 0..5 {
        act(&daemon, &format!("op{n}"), "/skills/reload", false, &json!({}));
        if n == 2 {
            daemon.kill();
            daemon.again();
        }
    }
    let verify = |daemon: &Daemon| daemon.get("/audit-log/verify").json;
    let whole = verify(&daemon);
    assert_eq!((&whole["ok"], &whole["checked"]), (&json!(true), &json!(5)));
    let head = whole["head"].as_str().expect("a head").to_owned();
    assert!(head.starts_with("5:") && head.len() == 66, "{head}");
    assert_eq!(daemon.terminate(), Some(0));
    let database = Connection::open(folder.path().join("aman.db")).expect("the database");
    database.execute_batch("CREATE TABLE kept AS SELECT * FROM audit").expect("a copy");
    let altered: [(&str, i64); 16] = [
        ("DELETE FROM audit WHERE seq = 5", 5),
        ("DELETE FROM audit WHERE seq > 2", 3),
        ("DELETE FROM audit", 1),
        ("UPDATE audit SET at_ms = at_ms + 1 WHERE seq = 3", 3),
        ("UPDATE audit SET principal = 'other' WHERE seq = 3", 3),
        ("UPDATE audit SET claimed_operator = NULL WHERE seq = 3", 3),
        ("UPDATE audit SET action = 'skill.enable' WHERE seq = 1", 1),
        ("UPDATE audit SET target = 'x' WHERE seq = 3", 3),
        ("UPDATE audit SET outcome = 'refused' WHERE seq = 3", 3),
        ("UPDATE audit SET status = 404 WHERE seq = 5", 5),
        ("UPDATE audit SET trace = NULL WHERE seq = 3", 3),
        ("UPDATE audit SET detail = '{\"x\":1}' WHERE seq = 3", 3),
        ("UPDATE audit SET before_digest = 'x', after_digest = 'y' WHERE seq = 3", 3),
        ("UPDATE audit SET hash = prev_hash WHERE seq = 3", 3),
        ("DELETE FROM audit WHERE seq = 3", 4),
        (
            "UPDATE audit SET seq = 9 WHERE seq = 2; UPDATE audit SET seq = 2 WHERE seq = 3; UPDATE audit SET seq = 3 WHERE seq = 9",
            2,
        ),
    ];
    // The first one as somebody would do it, the rest beside a daemon that reads what is there.
    database.execute_batch(altered[0].0).expect("altered");
    daemon.again();
    for (sql, first_bad) in altered {
        database.execute_batch("DELETE FROM audit; INSERT INTO audit SELECT * FROM kept").expect("as it was");
        assert_eq!(verify(&daemon)["ok"], true, "before {sql}");
        database.execute_batch(sql).expect("altered");
        let verdict = verify(&daemon);
        assert_eq!((&verdict["ok"], &verdict["first_bad"]), (&json!(false), &json!(first_bad)), "{sql}");
    }
    database
        .execute_batch("DELETE FROM audit; INSERT INTO audit SELECT * FROM kept; DROP TABLE kept")
        .expect("as it was");
    act(&daemon, "op9", "/skills/reload", false, &json!({}));
    let whole = verify(&daemon);
    assert_eq!((&whole["ok"], &whole["checked"]), (&json!(true), &json!(6)), "the chain goes on");
    // Whoever removes the end and changes the note of it as well is found out by a head that was kept elsewhere.
    let kept = |head: &str| daemon.get(&format!("/audit-log/verify?head={head}")).json;
    assert_eq!(kept(&head)["ok"], true, "an older head is still in the chain");
    database
        .execute_batch(
            "DELETE FROM audit WHERE seq > 4; \
             UPDATE meta SET value = (SELECT seq || ':' || hash FROM audit WHERE seq = 4) WHERE key = 'audit_head'",
        )
        .expect("altered");
    assert_eq!(verify(&daemon)["ok"], true, "this is what a chain alone cannot show");
    assert_eq!((&kept(&head)["ok"], &kept(&head)["fault"]), (&json!(false), &json!("missing")));
    act(&daemon, "op10", "/skills/reload", false, &json!({}));
    assert_eq!((&kept(&head)["first_bad"], &kept(&head)["fault"]), (&json!(5), &json!("replaced")));
    let (code, out, _) = daemon.cli(&["audit", "verify", "--head", &head]);
    assert!(code == 1 && out.contains("record 5 is not the one"), "{out}");
    assert_eq!(daemon.get("/audit-log/verify?head=x").fields(), ["head"]);
}

/// Goal: rows that were removed at the end while the daemon was off show, and their numbers are not used again.
#[test]
fn a_cut_end_shows_for_ever() {
    let folder = Folder::new("audit");
    let mut daemon = Daemon::start_in(folder.path());
    (0..3).for_each(|n| assert_eq!(act(&daemon, &format!("op{n}"), "/skills/reload", false, &json!({})), 200));
    assert_eq!(daemon.terminate(), Some(0));
    let database = Connection::open(folder.path().join("aman.db")).expect("the database");
    database.execute_batch("DELETE FROM audit WHERE seq = 3").expect("altered");
    drop(database);
    daemon.again();
    assert_eq!(act(&daemon, "op4", "/skills/reload", false, &json!({})), 200);
    let verdict = daemon.get("/audit-log/verify").json;
    assert_eq!((&verdict["ok"], &verdict["first_bad"], &verdict["checked"]), (&json!(false), &json!(4), &json!(2)));
    assert!(daemon.log().contains("The audit log's newest record."), "a copy of the head is outside the database");
}

/// Goal: refusals before authentication do not flood the log: one row for each reason, with how often.
#[test]
fn early_refusals_are_counted() {
    let mut daemon = Daemon::start();
    for _ in 0..7 {
        assert_eq!(daemon.send("POST", "/skills/reload", &[("x-aman-token", "wrong")], None).status, 401);
    }
    for _ in 0..3 {
        assert_eq!(daemon.send("GET", "/health", &[("host", "evil.example")], None).status, 421);
    }
    assert_eq!(daemon.send("GET", "/health", &[("origin", "http://evil.example")], None).status, 403);
    assert_eq!(records(&daemon, "").len(), 0, "not one row each");
    // What was counted is written at the end, if not before.
    assert_eq!(daemon.terminate(), Some(0));
    daemon.again();
    let counted: BTreeMap<String, (u64, u64)> = records(&daemon, "action=http.refused")
        .iter()
        .map(|record| {
            let numbers =
                (record["status"].as_u64().expect("a status"), record["detail"]["count"].as_u64().expect("a count"));
            (record["target"].as_str().expect("a reason").to_owned(), numbers)
        })
        .collect();
    let expected = [("unauthorized", (401, 7)), ("host_not_allowed", (421, 3)), ("origin_not_allowed", (403, 1))];
    assert_eq!(counted, expected.map(|(reason, numbers)| (reason.to_owned(), numbers)).into());
    assert_eq!(daemon.get("/audit-log/verify").json["ok"], true);
}
