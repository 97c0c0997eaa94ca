//! What the person is told: by rules and by consumers, once for what is alike, within a budget; and where it comes out.

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::harness::{Daemon, Folder, Stream, TOKEN, write_skill};
use crate::peer::Peer;
use crate::workflows::stored;

/// Tells what the event's data are.
const TELLS: &str = r#""$AMAN_BIN" jq -c '{notify: .data.notify}'"#;

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_else(|| panic!("{name} is no text in {value}"))
}

/// A daemon with a skill that tells what it is asked for.
fn teller(toml: &str) -> (Daemon, Folder) {
    let folder = Folder::new("told");
    std::fs::write(folder.path().join("aman.toml"), toml).expect("aman.toml");
    write_skill(folder.path(), "tells", &["aman.on: t.tell", "aman.retry: attempts=1"], TELLS);
    (Daemon::start_in(folder.path()), folder)
}

fn tell(daemon: &Daemon, notify: Value) -> String {
    let id = daemon.push("t.tell", json!({ "notify": [notify] }));
    daemon.settle();
    id
}

fn unread(daemon: &Daemon) -> i64 {
    daemon.get("/notifications/unread-count").json["count"].as_i64().expect("a count")
}

fn told_by(daemon: &Daemon, event: &str) -> Vec<String> {
    let why = daemon.get(&format!("/events/{event}/why")).json;
    let effects = why["effects"].as_array().expect("effects");
    let told = effects.iter().filter(|effect| effect["kind"] == "notification");
    told.map(|effect| text(effect, "id").to_owned()).collect()
}

/// Goal: what dies is told once for one cause, counted, explained, and linked to; put away, it is told anew.
#[test]
fn dead_letters_are_told_once() {
    let folder = Folder::new("told");
    write_skill(folder.path(), "dies", &["aman.on: t.die"], "echo 'no <b>paper</b>' >&2; exit 65");
    let mut daemon = Daemon::start_in(folder.path());
    let mut stream = Stream::open(&daemon, "/events/stream?types=aman.notification.**", &[("x-aman-token", TOKEN)]);
    let first = daemon.push("t.die", json!({}));
    for _ in 0..2 {
        daemon.push("t.die", json!({}));
    }
    daemon.settle();
    let shown = daemon.get("/notifications").items();
    assert_eq!(shown.len(), 1, "{shown:?}");
    let one = &shown[0];
    let words = ["severity", "category", "status", "title", "consumer"].map(|name| text(one, name));
    assert_eq!(words, ["error", "skill", "unread", "skill/dies failed for good", "notifications"]);
    assert_eq!(one["count"], 3, "{one}");
    assert!(
        text(one, "message").contains("no <b>paper</b>") && text(one, "message").contains("aman dlq retry"),
        "{one}"
    );
    let link = text(&one["action"], "url");
    assert_eq!(daemon.get(link).status, 200, "{link}");
    let frame = stream.next().expect("the stream tells of it");
    assert_eq!(frame.data["data"]["id"], one["id"], "{}", frame.data);
    for dead in daemon.recent("aman.delivery.dead") {
        assert_eq!(told_by(&daemon, text(&dead, "id")), [text(one, "id")], "each death knows where it was told");
    }
    assert_eq!(daemon.recent("aman.notification.created").len(), 1);
    assert!(told_by(&daemon, &first).is_empty(), "the skill itself told nothing");
    daemon.kill();
    daemon.again();
    assert_eq!((daemon.get("/notifications").items().len(), unread(&daemon)), (1, 1), "it outlives a kill");
    let id = text(one, "id");
    assert_eq!(daemon.post(&format!("/notifications/{id}/dismiss"), &json!({})).json["status"], "dismissed");
    daemon.push("t.die", json!({}));
    daemon.settle();
    let active = daemon.get("/notifications?active_only=true").items();
    assert_eq!((active.len(), &active[0]["count"]), (1, &json!(1)), "{active:?}");
    assert_ne!(text(&active[0], "id"), id);
}

/// Goal: what consumers tell keeps its severity, category and link; what they call alike is told once unless it is worse.
#[test]
fn consumers_tell_with_all_particulars() {
    let (daemon, _folder) = teller("");
    let full = |severity: &str, title: &str| {
        json!({ "title": title, "message": "é\n2", "severity": severity, "category": "printer", "fingerprint": "paper",
            "action": { "label": "Shop", "url": "https://example.org/paper" } })
    };
    let first = tell(&daemon, full("warning", "Paper is low"));
    let again = tell(&daemon, full("info", "Paper is low, again"));
    let one = daemon.get("/notifications").items().remove(0);
    assert_eq!(told_by(&daemon, &first), told_by(&daemon, &again));
    let words = ["severity", "category", "title", "message", "consumer", "event_id"].map(|name| text(&one, name));
    assert_eq!(words, ["warning", "printer", "Paper is low", "é\n2", "skill/tells", again.as_str()]);
    assert_eq!(one["action"], json!({ "label": "Shop", "url": "https://example.org/paper" }));
    assert_eq!(text(&daemon.dump(&again)["event"], "traceid"), text(&one, "trace_id"));
    // Taken note of, it still counts what is like it; what is worse is news.
    daemon.post(&format!("/notifications/{}/ack", text(&one, "id")), &json!({}));
    tell(&daemon, full("warning", "Paper is low"));
    assert_eq!(unread(&daemon), 0);
    tell(&daemon, full("critical", "There is no paper"));
    assert_eq!(unread(&daemon), 1);
    let shown = daemon.get("/notifications?severity=critical,error").items();
    assert_eq!((shown.len(), text(&shown[0], "title")), (1, "There is no paper"));
    // Without a fingerprint the same text is alike, and another text is not.
    for title in ["Hi", "Hi", "Ho"] {
        tell(&daemon, json!({ "title": title }));
    }
    let plain = daemon.get("/notifications?category=skill").items();
    let counts: Vec<_> = plain.iter().map(|one| (text(one, "title"), one["count"].as_i64())).collect();
    assert_eq!(counts, [("Ho", Some(1)), ("Hi", Some(2))]);
    for wrong in [
        json!({ "title": "x", "category": "Two words" }),
        json!({ "title": "x", "action": { "label": "Run", "url": "javascript:alert(1)" } }),
        json!({ "title": "x", "colour": "red" }),
    ] {
        let event = tell(&daemon, wrong);
        let dump = daemon.dump(&event);
        assert_eq!(dump["deliveries"][0]["status"], "dead", "{dump}");
    }
}

/// Goal: a consumer that tells too much is cut short, and that is told; others are not concerned.
#[test]
fn who_tells_too_much_is_summed_up() {
    let (daemon, folder) = teller("[notifications]\nper_hour = 3\n");
    write_skill(folder.path(), "other", &["aman.on: t.other"], TELLS);
    daemon.post("/skills/reload", &json!({}));
    for n in 0..6 {
        let severity = if n == 5 { "error" } else { "info" };
        tell(&daemon, json!({ "title": format!("Number {n}"), "severity": severity }));
    }
    daemon.push("t.other", json!({ "notify": [{ "title": "Mine" }] }));
    daemon.settle();
    let shown = daemon.get("/notifications").items();
    let titles: Vec<&str> = shown.iter().map(|one| text(one, "title")).collect();
    let rest = "There is more of skill/tells than is shown";
    assert_eq!(titles, ["Mine", rest, rest, "Number 2", "Number 1", "Number 0"]);
    assert_eq!((&shown[2]["count"], text(&shown[2], "severity")), (&json!(2), "warning"), "{shown:?}");
    assert_eq!((&shown[1]["count"], text(&shown[1], "severity")), (&json!(1), "error"), "what is worse is told");
    assert!(text(&shown[1], "message").contains("The last: Number 5"), "{shown:?}");
    assert_eq!(daemon.recent("aman.notification.created").len(), 6);
}

/// Goal: who answers notifications by notifications ends as every loop does, as a dead letter that says so; what is told at
/// the end of a chain is shown all the same, and goes no further.
#[test]
fn answers_to_notifications_end() {
    let folder = Folder::new("told");
    let toml = "[bus]\nmax_causation_depth = 3\n[notifications]\nper_hour = 0\n";
    std::fs::write(folder.path().join("aman.toml"), toml).expect("aman.toml");
    let answers = r#"printf '{"notify":[{"title":"Again %s"}]}' "$AMAN_EVENT_ID""#;
    write_skill(folder.path(), "answers", &["aman.on: aman.notification.created"], answers);
    for (name, on, publishes) in
        [("one", "t.one", "t.two"), ("two", "t.two", "t.three"), ("three", "t.three", "t.tell")]
    {
        let script = format!("echo '{{\"publish\":[{{\"type\":\"{publishes}\"}}]}}'");
        write_skill(folder.path(), name, &[format!("aman.on: {on}").as_str()], &script);
    }
    let script = "echo '{\"notify\":[{\"title\":\"At the end\"}]}'";
    write_skill(folder.path(), "tells", &["aman.on: t.tell"], script);
    let daemon = Daemon::start_in(folder.path());
    daemon.push("t.tell", json!({}));
    let letter = daemon.wait("the end of the loop", || daemon.get("/dlq").items().pop());
    assert_eq!((&letter["consumer"], &letter["reason"]), (&json!("skill/answers"), &json!("causation_loop")));
    daemon.settle();
    let told = daemon.recent("aman.notification.created").len();
    assert_eq!((told, daemon.get("/notifications").items().len()), (3, 3), "{}", daemon.log());
    daemon.push("t.one", json!({}));
    daemon.settle();
    let shown = daemon.get("/notifications").items();
    let first = shown.last().expect("the oldest");
    assert_eq!((text(first, "title"), &first["count"]), ("At the end", &json!(2)), "{shown:?}");
    // Told anew, it is shown, and no event.
    daemon.post(&format!("/notifications/{}/dismiss", text(first, "id")), &json!({}));
    daemon.push("t.one", json!({}));
    daemon.settle();
    let shown = daemon.get("/notifications?active_only=true").items();
    assert_eq!((text(&shown[0], "title"), daemon.recent("aman.notification.created").len()), ("At the end", told));
    assert_eq!(daemon.get("/dlq").items().len(), 1);
}

/// Goal: a workflow that asks whenever it hears of a question ends as every loop does; its last question is asked all the
/// same.
#[test]
fn questions_about_questions_end() {
    let daemon = Daemon::configured("[bus]\nmax_causation_depth = 3\n[notifications]\nper_hour = 0\n");
    write_skill(daemon.home(), "tells", &["aman.on: t.tell"], "echo '{\"notify\":[{\"title\":\"First\"}]}'");
    assert_eq!(daemon.post("/skills/reload", &json!({})).status, 200);
    stored(
        &daemon,
        "asks",
        "schedule: {on: {one: {with: {type: aman.notification.created}}}}\n\
         do: [{q: {call: aman.approve, with: {title: May I?, message: Please.}}}]",
    );
    daemon.push("t.tell", json!({}));
    daemon.wait("the last question", || (daemon.get("/notifications").items().len() >= 4).then_some(()));
    daemon.push("t.last", json!({}));
    daemon.settle();
    let waiting = daemon.get("/workflow-instances?workflow=asks&status=waiting&limit=1000").items().len();
    assert_eq!((waiting, daemon.recent("aman.notification.created").len()), (3, 3));
}

/// Goal: lists are paged, filtered and stable; what is asked wrongly is named; every change is on record.
#[test]
fn the_routes_keep_to_the_contract() {
    let (daemon, _folder) = teller("[debug]\nforce_enable_debug_endpoints = true\n");
    let all: Vec<Value> = (0..5)
        .map(|n| json!({ "title": format!("N{n}"), "severity": if n % 2 == 0 { "info" } else { "error" } }))
        .collect();
    daemon.push("t.tell", json!({ "notify": all }));
    daemon.settle();
    let page = daemon.get("/notifications?limit=2").json;
    let titles = |items: &[Value]| items.iter().map(|one| text(one, "title").to_owned()).collect::<Vec<_>>();
    let next = text(&page, "next_cursor").to_owned();
    tell(&daemon, json!({ "title": "meanwhile" }));
    assert_eq!(titles(&daemon.get(&format!("/notifications?limit=9&cursor={next}")).items()), ["N2", "N1", "N0"]);
    assert_eq!(titles(&daemon.get("/notifications?limit=2&offset=1").items()), ["N4", "N3"]);
    let id = text(&daemon.get("/notifications?severity=error").items()[0], "id").to_owned();
    assert_eq!(daemon.get(&format!("/notifications/{id}")).json["title"], "N3");
    for (path, field) in [
        ("/notifications?severity=loud", "severity"),
        ("/notifications?offset=x", "offset"),
        ("/notifications?active_only=maybe", "active_only"),
        ("/notifications?cursor=xx", "cursor"),
    ] {
        let answer = daemon.get(path);
        assert_eq!((answer.status, answer.fields()), (400, vec![field]), "{path}");
    }
    let change = |id: &str, what: &str| daemon.post(&format!("/notifications/{id}/{what}"), &json!({}));
    assert_eq!(change("nobody", "ack").status, 404);
    let noted = change(&id, "ack").json;
    assert_eq!((text(&noted, "status"), noted["acknowledged_at"].is_string()), ("acknowledged", true));
    assert_eq!(change(&id, "ack").json, noted, "twice is once");
    let away = change(&id, "dismiss").json;
    assert_eq!(change(&id, "dismiss").json, away);
    let refused = change(&id, "ack");
    assert_eq!((refused.status, refused.code()), (409, "invalid_state"));
    assert_eq!(
        daemon.post("/notifications/dismiss-all", &json!({ "severity": "error" })).json,
        json!({ "dismissed": 1 })
    );
    assert_eq!(daemon.post("/notifications/dismiss-all", &json!({ "severity": "bad" })).fields(), ["severity"]);
    assert_eq!(unread(&daemon), 4);
    assert_eq!(daemon.post("/notifications/dismiss-all", &json!({})).json, json!({ "dismissed": 4 }));
    assert_eq!(daemon.get("/notifications?active_only").items().len(), 0);
    let made = daemon.post("/notifications/test", &json!({ "title": "Try", "severity": "critical" }));
    assert_eq!((made.status, text(&made.json, "category"), unread(&daemon)), (200, "test", 1), "{made:?}");
    for (body, field) in [
        (json!({ "title": "a\nb" }), "title"),
        (json!({ "severity": "loud" }), "severity"),
        (json!({ "action": [] }), "action"),
        (json!({ "action": { "label": "x", "url": "ftp://x" } }), "action.url"),
        (json!({ "colour": "red" }), "colour"),
    ] {
        assert_eq!(daemon.post("/notifications/test", &body).fields(), [field], "{body}");
    }
    let records = |action: &str| daemon.all(&format!("/audit-log?action={action}&outcome=done")).len();
    let counts = ["ack", "dismiss", "dismiss_all", "test"].map(|what| records(&format!("notification.{what}")));
    assert_eq!(counts, [2, 2, 2, 1]);
}

/// Goal: trials are for those who asked for them; the command line shows, notes and puts away.
#[test]
fn the_command_line_works() {
    let (daemon, _folder) = teller("");
    let refused = daemon.post("/notifications/test", &json!({}));
    assert_eq!((refused.status, refused.code()), (403, "debug_disabled"));
    let (code, out, _) = daemon.cli(&["notification", "list"]);
    assert_eq!((code, out.as_str()), (0, "Nothing new for you. With --dismissed it shows what you put away.\n"));
    tell(&daemon, json!({ "title": "Look \u{1b}[31mhere", "message": "at this" }));
    tell(&daemon, json!({ "title": "Look here", "message": "at this" }));
    let (_, out, _) = daemon.cli(&["notification", "list"]);
    assert!(out.contains("Look here") && out.contains("skill"), "{out}");
    let id = text(&daemon.get("/notifications").items()[0], "id").to_owned();
    for (words, wanted) in [(["show", &id], "at this"), (["ack", &id], "is noted"), (["dismiss", &id], "is put away")] {
        let (code, out, error) = daemon.cli(&[&["notification"], &words[..]].concat());
        assert!(code == 0 && out.contains(wanted), "{words:?}: {out} {error}");
    }
    let (_, out, _) = daemon.cli(&["notification", "list", "--dismissed"]);
    assert!(out.contains("dismissed"), "{out}");
}

/// Goal: a job that is switched off and a skill whose content changed are told.
#[test]
fn jobs_and_changed_skills_are_told() {
    let folder = Folder::new("told");
    let mine = Folder::new("mine");
    let toml = format!(
        "[skills]\npaths = [{:?}]\n[cron.often]\nexpression = \"* * * * * *\"\nskill = \"fails\"\nmax_failures = 1\n",
        mine.path().join("skills")
    );
    std::fs::write(folder.path().join("aman.toml"), toml).expect("aman.toml");
    write_skill(folder.path(), "fails", &["aman.on: t.none", "aman.retry: attempts=1"], "exit 65");
    write_skill(mine.path(), "mine", &["aman.on: t.mine"], "exit 0");
    let daemon = Daemon::start_in(folder.path());
    write_skill(mine.path(), "mine", &["aman.on: t.mine"], "exit 1");
    for _ in 0..2 {
        daemon.post("/skills/reload", &json!({}));
    }
    let told = daemon.wait("three notifications", || {
        let told = daemon.get("/notifications").items();
        let categories: Vec<String> = told.iter().map(|one| text(one, "category").to_owned()).collect();
        ["cron", "security", "skill"].iter().all(|wanted| categories.iter().any(|one| one == wanted)).then_some(told)
    });
    let of = |category: &str| {
        let found: Vec<&Value> = told.iter().filter(|one| one["category"] == category).collect();
        assert_eq!(found.len(), 1, "{told:?}");
        found[0].clone()
    };
    assert_eq!(text(&of("cron"), "title"), "The cron job 'often' was switched off");
    let security = of("security");
    let digest = text(&daemon.get("/skill/mine").json, "digest").to_owned();
    assert!(text(&security, "message").contains(&digest) && security["count"] == 1, "{security}");
    assert_eq!(daemon.get(text(&security["action"], "url")).json["digest"], digest.as_str());
}

/// Goal: back-pressure is told, although it refuses everything else.
#[test]
fn back_pressure_is_told() {
    let folder = Folder::new("told");
    std::fs::write(folder.path().join("aman.toml"), "[bus]\nmax_pending = 1\n").expect("aman.toml");
    write_skill(folder.path(), "slow", &["aman.on: t.slow"], "sleep 20");
    let daemon = Daemon::start_in(folder.path());
    let refused = daemon.wait("a refused push", || {
        let answer = daemon.post("/events/push", &json!({ "source": "test", "type": "t.slow" }));
        (answer.status == 503).then_some(answer)
    });
    assert_eq!(refused.code(), "overloaded");
    let told = daemon.wait("the notification", || daemon.get("/notifications?category=bus").items().pop());
    assert!(text(&told, "message").contains("1 may"), "{told}");
}

/// Goal: notifications reach an ntfy topic and a signed webhook, each told once, with the token and with what a person needs.
#[test]
fn sinks_carry_notifications() {
    let (ntfy, hook) = (Peer::start(), Peer::start());
    let toml = format!(
        "[http_client]\nallow_private = true\n\
         [sinks.phone]\nkind = \"ntfy\"\nurl = \"{}\"\ntopic = \"my-alerts-7f3a\"\ntoken = \"tk_0123456789\"\n\
         when = '.data.severity != \"info\"'\n\
         [sinks.hook]\nkind = \"webhook\"\nurl = \"{}/in\"\nsecret = \"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\"\n\
         types = [\"aman.notification.*\"]\n",
        ntfy.url(),
        hook.url()
    );
    let (daemon, _folder) = teller(&toml);
    tell(&daemon, json!({ "title": "Quiet" }));
    let loud = json!({ "title": "Ü: paper", "message": "a <b>", "severity": "critical",
        "action": { "label": "Shop", "url": "https://example.org/p" } });
    tell(&daemon, loud.clone());
    tell(&daemon, loud);
    daemon.wait("the calls", || (!ntfy.requests().is_empty() && hook.requests().len() >= 2).then_some(()));
    daemon.settle();
    let sent = ntfy.requests();
    assert_eq!(sent.len(), 1, "{sent:?}");
    assert!(
        sent[0].starts_with("POST / HTTP/1.1") && sent[0].contains("authorization: Bearer tk_0123456789"),
        "{}",
        sent[0]
    );
    let body: Value = serde_json::from_str(sent[0].split_once("\r\n\r\n").expect("a body").1).expect("JSON");
    let key = text(&body, "sequence_id").to_owned();
    assert_eq!(
        body,
        json!({ "topic": "my-alerts-7f3a", "title": "Ü: paper", "message": "a <b>", "priority": 5,
            "tags": ["rotating_light"], "click": "https://example.org/p", "sequence_id": key })
    );
    assert!((1..=64).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'), "{key}");
    assert_eq!(hook.requests().len(), 2);
    assert!(hook.requests()[0].contains("webhook-signature: v1,"), "{}", hook.requests()[0]);
    let shown = daemon.get("/sink/phone").json;
    assert_eq!((text(&shown, "kind"), &shown["sent"]), ("ntfy", &json!(1)));
    assert!(!shown.to_string().contains("tk_0123456789"), "{shown}");
    // A server that does not take it now gets it later; a topic that cannot be is named.
    ntfy.answer("429 Too Many Requests", &[("retry-after", "1")], "");
    ntfy.answer("200 OK", &[], "{}");
    tell(&daemon, json!({ "title": "Later", "severity": "error" }));
    daemon.wait("the second try", || (ntfy.requests().len() == 3).then_some(()));
    let broken = Folder::new("told");
    std::fs::write(broken.path().join("aman.toml"), "[sinks.x]\nkind = \"ntfy\"\ntopic = \"a/b\"\n")
        .expect("aman.toml");
    let (_, out, error) = run(broken.path(), &["config", "check"]);
    assert!(format!("{out}{error}").contains("sinks.x.topic"), "{out}{error}");
}

fn run(home: &std::path::Path, words: &[&str]) -> (i32, String, String) {
    let output = crate::harness::command(home).args(words).output().expect("the binary starts");
    let said = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status.code().unwrap_or(-1), said(output.stdout), said(output.stderr))
}

/// Goal: the desktop gets what is told by `notify-send`, as text and no options; without it the sink says what is missing.
/// The program is a stand-in that writes down what it is given.
#[test]
fn the_desktop_is_told() {
    let folder = Folder::new("desktop");
    let bin = folder.path().join("bin");
    std::fs::create_dir(&bin).expect("a folder");
    std::fs::write(folder.path().join("aman.toml"), "[sinks.desk]\nkind = \"desktop\"\n").expect("aman.toml");
    write_skill(folder.path(), "tells", &["aman.on: t.tell"], TELLS);
    let mut daemon = Daemon::try_start_in(folder.path(), &[("PATH", &bin.display().to_string())]).expect("it starts");
    tell(&daemon, json!({ "title": "--help", "message": "a <b>", "severity": "critical" }));
    let missing = daemon.wait("a failed try", || {
        let sink = daemon.get("/sink/desk").json;
        (sink["retries"].as_i64() > Some(0)).then_some(sink)
    });
    assert!(text(&missing, "detail").contains("libnotify"), "{missing}");
    daemon.terminate();
    let (program, heard) = (bin.join("notify-send"), folder.path().join("heard"));
    let script = format!("#!/bin/sh\nfor word in \"$@\"; do echo \"$word\"; done >> '{}'\n", heard.display());
    std::fs::write(&program, script).expect("a program");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
    let daemon = Daemon::try_start_in(folder.path(), &[("PATH", &bin.display().to_string())]).expect("it starts");
    let answer = daemon.post("/sink/desk/test", &json!({ "data": { "n": 1 } })).json;
    assert_eq!(answer["outcome"], "sent", "{answer}");
    let lines = daemon.wait("both messages", || {
        let heard = std::fs::read_to_string(&heard).unwrap_or_default();
        (heard.contains("--help") && heard.contains("aman.sink.test")).then_some(heard)
    });
    assert!(lines.contains("--urgency=critical\n--\n--help\na &lt;b&gt;\n"), "{lines}");
}
