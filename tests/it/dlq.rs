//! Dead letters: how they come about, how they are listed, grouped, tried again and thrown away.

use std::collections::BTreeSet;
use std::fs;

use serde_json::{Value, json};

use crate::harness::{Answer, Daemon, Folder, write_skill};

/// Dies in the way that the event's type says, until the file `heal/on` is there.
const SCRIPT: &str = r#"event=$(cat)
[ -e "$AMAN_DATA/heal/on" ] && exit 0
case "$event" in
    *'"type":"die.reject"'*) echo "no number 17" >&2; exit 65 ;;
    *'"type":"die.slow"'*) exec sleep 60 ;;
esac
echo "broken pipe 4711" >&2
exit 3
"#;

fn start(folder: &Folder) -> Daemon {
    let rights = "aman.permissions: read:$AMAN_DATA/heal";
    let settings = ["aman.on: die.*", "aman.timeout: 1s", "aman.retry: attempts=2 base=1ms max=1ms", rights];
    write_skill(folder.path(), "dies", &[&settings[..], &["aman.concurrency: \"8\""]].concat(), SCRIPT);
    fs::create_dir(folder.path().join("heal")).expect("a folder");
    let daemon = Daemon::start_in(folder.path());
    assert_eq!(daemon.post("/skill/dlq-summary/disable", &json!({})).status, 200);
    daemon
}

fn heal(daemon: &Daemon) {
    fs::write(daemon.home().join("heal/on"), "").expect("the mark is set");
}

fn letters(daemon: &Daemon, query: &str) -> Vec<Value> {
    daemon.all(&format!("/dlq?limit=1000&{query}"))
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_else(|| panic!("{name} in {value}"))
}

fn retry(daemon: &Daemon, letter: &Value) -> Answer {
    daemon.post_confirmed(&format!("/dlq/{}/retry", text(letter, "id")), &json!({"reason": "mended"}))
}

/// Goal: a letter holds the event, every error, the attempts and the times; the same cause has the same fingerprint
/// whatever numbers its message holds.
#[test]
fn letters_say_what_happened() {
    let folder = Folder::new("dlq");
    let daemon = start(&folder);
    for (kind, data) in [("die.reject", 1), ("die.reject", 2), ("die.fail", 3), ("die.slow", 4)] {
        daemon.push(kind, json!({"n": data}));
    }
    daemon.settle();
    let all = letters(&daemon, "");
    assert_eq!(all.len(), 4);
    for letter in &all {
        let kind = text(&letter["event"], "type");
        let (reason, attempts, said) = match kind {
            "die.reject" => ("rejected", 1, "no number 17"),
            "die.fail" => ("attempts_exhausted", 2, "broken pipe 4711"),
            _ => ("timeout", 2, "1 s"),
        };
        assert_eq!((text(letter, "reason"), letter["attempts"].as_u64()), (reason, Some(attempts)), "{letter}");
        assert!(letter["error_chain"].to_string().contains(said), "{letter}");
        assert_eq!(letter["consumer"], "skill/dies");
        assert!(letter["event"]["data"]["n"].is_i64(), "the payload is kept: {letter}");
        assert!(text(letter, "first_failed_at") <= text(letter, "last_failed_at"));
        assert!(text(letter, "expires_at") > text(letter, "last_failed_at"));
        let dump = daemon.dump(text(&letter["event"], "id"));
        assert_eq!((&dump["deliveries"][0]["id"], &dump["deliveries"][0]["status"]), (&letter["id"], &json!("dead")));
        assert_eq!(dump["deliveries"][0]["failures"].as_array().map(Vec::len), usize::try_from(attempts).ok());
        let told =
            daemon.recent("aman.delivery.dead").into_iter().find(|one| one["data"]["delivery_id"] == letter["id"]);
        let told = told.expect("each death is an event");
        assert_eq!((&told["causationid"], &told["data"]["reason"]), (&letter["event"]["id"], &letter["reason"]));
    }
    let prints: BTreeSet<&str> = all.iter().map(|letter| text(letter, "fingerprint")).collect();
    assert_eq!(prints.len(), 3, "one for each cause");
}

/// Goal: each filter of the list chooses, counts and groups agree with the list, bad filters are named.
#[test]
fn lists_counts_and_groups_agree() {
    let folder = Folder::new("dlq");
    let daemon = start(&folder);
    for (source, kind) in [("a", "die.reject"), ("b", "die.reject"), ("b", "die.fail")] {
        assert_eq!(daemon.post("/events/push", &json!({"source": source, "type": kind})).status, 202);
    }
    daemon.settle();
    let print = text(&letters(&daemon, "type=die.fail")[0], "fingerprint").to_owned();
    for (query, count) in [
        ("reason=rejected", 2),
        ("reason=attempts_exhausted", 1),
        ("reason=unknown_outcome", 0),
        ("source=b", 2),
        ("source=b&reason=rejected", 1),
        ("type=die.reject", 2),
        ("type=die.*", 0),
        ("consumer=skill/dies", 3),
        ("consumer=skill/other", 0),
        (&format!("fingerprint={print}"), 1),
    ] {
        assert_eq!(letters(&daemon, query).len(), count, "{query}");
    }
    assert_eq!(daemon.get("/dlq/depth").json, json!({"depth": 3, "by_consumer": {"skill/dies": 3}}));
    let groups = daemon.get("/dlq/groups").items();
    let counts: Vec<(&str, u64)> =
        groups.iter().map(|group| (text(group, "reason"), group["count"].as_u64().expect("a count"))).collect();
    assert_eq!(counts.iter().copied().collect::<BTreeSet<_>>(), [("rejected", 2), ("attempts_exhausted", 1)].into());
    assert!(groups.iter().any(|group| group["fingerprint"] == print.as_str()));
    assert_eq!(daemon.all("/dlq/groups?limit=1"), groups);
    for (path, field) in [
        ("/dlq?reason=bad_luck", "reason"),
        ("/dlq?limit=x", "limit"),
        ("/dlq?limit=0", "limit"),
        ("/dlq?cursor=x", "cursor"),
        ("/dlq?resaon=rejected", "resaon"),
        ("/dlq/depth?x=1", "x"),
        ("/dlq/groups?x=1", "x"),
        ("/dlq/groups?limit=0", "limit"),
    ] {
        let answer = daemon.get(path);
        assert_eq!((answer.status, answer.fields()), (400, vec![field]), "{path}");
    }
    assert_eq!(daemon.get("/dlq?limit=999999").status, 200, "a limit over the cap is clamped");
}

/// Goal: a letter that is tried again runs the same event under the same id; what fails again adds up, what ends well
/// leaves the queue; every other state refuses.
#[test]
fn retries_run_the_same_delivery() {
    let folder = Folder::new("dlq");
    let daemon = start(&folder);
    let event = daemon.push("die.reject", json!({}));
    daemon.settle();
    let letter = letters(&daemon, "")[0].clone();
    let path = format!("/dlq/{}/retry", text(&letter, "id"));
    assert_eq!(daemon.post(&path, &json!({})).code(), "confirmation_required");
    let dry = daemon.post_confirmed(&format!("{path}?dry_run=true"), &json!({}));
    assert_eq!((dry.status, &dry.json["dry_run"], &dry.json["event_id"]), (200, &json!(true), &json!(event)));
    assert_eq!(letters(&daemon, ""), std::slice::from_ref(&letter), "a dry run touches nothing");

    let answer = retry(&daemon, &letter);
    let id = &letter["id"];
    assert_eq!(answer.json, json!({"id": id, "delivery_id": id, "event_id": event, "status": "retrying"}));
    daemon.settle();
    let again = letters(&daemon, "");
    assert_eq!((again.len(), &again[0]["id"], &again[0]["attempts"]), (1, id, &json!(2)));
    assert_eq!(again[0]["first_failed_at"], letter["first_failed_at"]);
    let counted = |wanted: u64| {
        let delivery = daemon.dump(&event)["deliveries"][0].clone();
        let numbers: Vec<u64> = delivery["failures"]
            .as_array()
            .expect("failures")
            .iter()
            .filter_map(|one| one["attempt"].as_u64())
            .collect();
        assert_eq!(
            (delivery["attempt"].as_u64(), numbers),
            (Some(wanted), vec![1, 2]),
            "one count for all: {delivery}"
        );
    };
    counted(2);
    let told: Vec<u64> =
        daemon.recent("aman.delivery.dead").iter().filter_map(|one| one["data"]["attempts"].as_u64()).collect();
    assert_eq!(told, [2, 1], "newest first, the event of a death counts alike");

    heal(&daemon);
    assert_eq!(retry(&daemon, &letter).status, 200);
    daemon.settle();
    assert_eq!(letters(&daemon, ""), Vec::<Value>::new());
    let delivery = daemon.delivery(&event);
    assert_eq!((&delivery["id"], &delivery["status"]), (id, &json!("done")), "{delivery}");
    assert_eq!(delivery["failures"].as_array().map(Vec::len), Some(2), "what failed stays known");
    counted(3);
    for what in ["retry", "discard"] {
        let refused = daemon.post_confirmed(&format!("/dlq/{}/{what}", text(&letter, "id")), &json!({}));
        assert_eq!((refused.status, refused.code()), (409, "invalid_state"), "{what}");
    }
}

/// Goal: a letter that is thrown away stays as a tombstone: out of the queue, known to the event, not to be revived.
#[test]
fn discarded_letters_stay_known() {
    let folder = Folder::new("dlq");
    let mut daemon = start(&folder);
    let event = daemon.push("die.reject", json!({}));
    daemon.settle();
    let letter = letters(&daemon, "")[0].clone();
    let path = format!("/dlq/{}/discard", text(&letter, "id"));
    let answer = daemon.post(&path, &json!({"reason": "not worth it"}));
    assert_eq!((answer.status, &answer.json["status"]), (200, &json!("discarded")), "no confirmation is needed");
    daemon.kill();
    daemon.again();
    assert_eq!(letters(&daemon, ""), Vec::<Value>::new());
    assert_eq!(daemon.get("/dlq/depth").json["depth"], 0);
    assert_eq!(daemon.outcome(&event), "discarded");
    assert_eq!(daemon.post(&path, &json!({})).code(), "invalid_state");
    assert_eq!(retry(&daemon, &letter).code(), "invalid_state");
    let records = daemon.all("/audit-log?limit=10&action=dlq.discard&outcome=done");
    assert_eq!((records.len(), &records[0]["detail"]["reason"]), (1, &json!("not worth it")));
}

/// Goal: while its consumer is off a letter that is tried again waits, and cannot be tried twice; it runs once it is on.
#[test]
fn a_retry_waits_for_its_consumer() {
    let folder = Folder::new("dlq");
    let daemon = start(&folder);
    let event = daemon.push("die.reject", json!({}));
    daemon.settle();
    let letter = letters(&daemon, "")[0].clone();
    heal(&daemon);
    daemon.post("/skill/dies/disable", &json!({}));
    assert_eq!(retry(&daemon, &letter).status, 200);
    for _ in 0..2 {
        let again = retry(&daemon, &letter);
        assert_eq!((again.status, again.code()), (409, "in_progress"));
    }
    assert_eq!(daemon.outcome(&event), "pending");
    daemon.post("/skill/dies/enable", &json!({}));
    daemon.settle();
    assert_eq!(daemon.outcome(&event), "done");
}

/// Goal: one request tries every letter of a cause again and no other; dry it only tells which.
#[test]
fn groups_are_tried_again_together() {
    let folder = Folder::new("dlq");
    let daemon = start(&folder);
    let rejected: BTreeSet<String> = (0..5).map(|n| daemon.push("die.reject", json!({"n": n}))).collect();
    let failed = daemon.push("die.fail", json!({}));
    daemon.settle();
    let print = text(&letters(&daemon, "reason=rejected")[0], "fingerprint").to_owned();
    let body = json!({"fingerprint": print});
    let ids = |answer: &Answer| -> BTreeSet<String> {
        answer.items().iter().map(|item| text(item, "event_id").to_owned()).collect()
    };
    assert_eq!(daemon.post("/dlq/retry", &body).code(), "confirmation_required");
    let dry = daemon.post_confirmed("/dlq/retry?dry_run=true", &body);
    assert_eq!((dry.status, ids(&dry), &dry.json["dry_run"]), (200, rejected.clone(), &json!(true)));
    assert_eq!(letters(&daemon, "").len(), 6);
    heal(&daemon);
    let answer = daemon.post_confirmed("/dlq/retry", &body);
    assert_eq!((answer.status, ids(&answer), &answer.json["retried"]), (200, rejected.clone(), &json!(5)));
    daemon.settle();
    let left = letters(&daemon, "");
    assert_eq!((left.len(), text(&left[0]["event"], "id")), (1, failed.as_str()));
    assert!(rejected.iter().all(|id| daemon.outcome(id) == "done"));
    for (body, status, code) in [
        (json!({"fingerprint": print}), 404, "not_found"),
        (json!({}), 400, "invalid_input"),
        (json!({"fingerprint": 7}), 400, "invalid_input"),
        (json!({"fingerprint": "x", "reason": "y"}), 400, "invalid_input"),
    ] {
        let answer = daemon.post_confirmed("/dlq/retry", &body);
        assert_eq!((answer.status, answer.code()), (status, code), "{body}");
    }
    let records = daemon.all("/audit-log?limit=10&action=dlq.retry&outcome=done");
    assert_eq!((records.len(), &records[0]["detail"]["count"]), (1, &json!(5)), "one record for the whole group");
}

/// Goal: a list that grows while it is paged through shows each letter that was there once.
#[test]
fn pages_are_stable_under_deaths() {
    let folder = Folder::new("dlq");
    let daemon = start(&folder);
    let before: BTreeSet<String> = (0..20).map(|n| daemon.push("die.reject", json!({"n": n}))).collect();
    daemon.settle();
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = daemon.get(&format!("/dlq?limit=3&cursor={cursor}"));
        seen.extend(page.items().iter().map(|letter| text(&letter["event"], "id").to_owned()));
        daemon.push("die.reject", json!("new"));
        daemon.settle();
        match page.json["next_cursor"].as_str() {
            Some(next) => next.clone_into(&mut cursor),
            None => break,
        }
    }
    assert_eq!(seen.len(), before.len(), "nothing twice, nothing new");
    assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), before);
}

/// Goal: what is no letter is not found, whatever it looks like; bad bodies are named before that.
#[test]
fn what_is_no_letter_is_not_found() {
    let folder = Folder::new("dlq");
    let daemon = start(&folder);
    let event = daemon.push("t.nobody", json!({}));
    for id in ["x", "0", "-1", "9223372036854775807", &event, "00000000-0000-7000-8000-000000000000", "%20"] {
        for what in ["retry", "discard", "retry?dry_run=true"] {
            let answer = daemon.post_confirmed(&format!("/dlq/{id}/{what}"), &json!({}));
            assert_eq!((answer.status, answer.code()), (404, "not_found"), "{id} {what}");
        }
    }
    for (body, field) in [(json!({"reasn": "x"}), "reasn"), (json!({"reason": 1}), "reason"), (json!([]), "body")] {
        for what in ["retry", "discard"] {
            let answer = daemon.post_confirmed(&format!("/dlq/x/{what}"), &body);
            assert_eq!((answer.status, answer.fields()), (400, vec![field]), "{what} {body}");
        }
    }
}
