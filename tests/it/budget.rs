//! Budgets: room is reserved before a call and settled after, whatever the clock does and however the daemon ends.

use std::sync::Arc;

use aman::budget::{Budget, Limit, Limits, Reserved, Scopes, Settings, Unit};
use aman::bus::{self, Bus};
use aman::clock::Clock;
use aman::models::Usage;
use aman::store::{Durability, Reading, Store, audit};
use serde_json::{Value, json};

use crate::harness::{Daemon, Folder};

const DAY: i64 = 86_400_000;
/// 2026-11-22, noon in UTC.
const NOON: i64 = 1_795_348_800_000;

struct Bench {
    budget: Budget,
    bus: Bus,
    clock: Clock,
    folder: Folder,
}

impl Bench {
    async fn start(tokens: u64) -> Bench {
        Bench::start_in(Folder::new("budget"), tokens).await
    }

    async fn start_in(folder: Folder, tokens: u64) -> Bench {
        let store = Store::open(&folder.path().join("aman.db"), Durability::Normal).expect("a database");
        let clock = Clock::manual(NOON);
        let bus = Bus::new(store, clock.clone(), bus::Settings::default());
        let settings = Settings { day: Limit { tokens, micros: 0 }, soft: 0.8 };
        let budget = Budget::start(&bus, settings).await.expect("budgets");
        Bench { budget, bus, clock, folder }
    }

    /// Reserves for an agent without limits of its own: whether it may, and should save.
    async fn reserve(&self, key: &str, tokens: u64) -> Option<bool> {
        let scopes = Scopes { agent: "a".to_owned(), ..Scopes::default() };
        let tried = self.budget.reserve(key, &scopes, tokens, 0).await.expect("the database answers");
        tried.ok().map(|Reserved { soft }| soft)
    }

    async fn spend(&self, key: &str, tokens: u64) -> bool {
        let usage = Usage { input: tokens, output: 0, cached: 0, estimated: false };
        self.reserve(key, tokens).await.is_some() && self.budget.settle(key, usage, 0).await.expect("settled")
    }

    async fn refusals(&self) -> usize {
        let find = |conn: &Reading| audit::list(conn, &audit::Filter::default(), None, 100);
        let rows = self.bus.store().read(find).await.expect("records");
        rows.iter().filter(|row| row.body["action"] == "budget.reserve" && row.body["outcome"] == "refused").count()
    }
}

/// Goal: calls side by side get exactly as much as there is; what was not used, or not called, is there again.
#[tokio::test]
async fn room_is_taken_once() {
    let bench = Arc::new(Bench::start(100).await);
    let tries = (0..40).map(|n| {
        let bench = Arc::clone(&bench);
        tokio::spawn(async move { bench.reserve(&format!("k{n}"), 10).await.is_some() })
    });
    let mut got = Vec::new();
    for (n, one) in tries.enumerate() {
        if one.await.expect("no panic") {
            got.push(format!("k{n}"));
        }
    }
    assert_eq!(got.len(), 10);
    // The same call again has its room already.
    assert_eq!(bench.reserve(&got[0], 10).await, Some(true));
    assert_eq!(bench.reserve("more", 1).await, None);
    let used = Usage { input: 2, output: 1, cached: 0, estimated: false };
    assert!(bench.budget.settle(&got[0], used, 7_000_000).await.expect("settled"));
    assert!(!bench.budget.settle(&got[0], used, 7_000_000).await.expect("once only"));
    assert!(bench.budget.release(&got[1]).await.expect("released"));
    let (today, ever) = bench.budget.usage("agent/a").await.expect("read");
    assert_eq!((today.calls, today.tokens, today.reserved, ever.tokens), (1, 3, 80, 3));
    assert!((today.money - 7.0).abs() < 1e-9, "{today:?}");
    assert_eq!((bench.reserve("seven", 7).await, bench.reserve("eleven", 11).await), (Some(true), None));
    for key in &got[2..] {
        assert!(bench.budget.release(key).await.expect("released"));
    }
    assert_eq!(bench.reserve("little", 60).await, Some(false), "70 of 100 is no reason to save yet");
    assert_eq!(bench.reserve("more", 11).await, Some(true), "81 is");
}

/// Goal: each limit holds on its own, and says whose it is; money as well as tokens.
#[tokio::test]
async fn each_limit_holds() {
    let bench = Bench::start(0).await;
    let limits = Limits { day_tokens: 1000, session_tokens: 100, job_money: 0.5, ..Limits::default() };
    let scopes = |session: &str, job: &str| Scopes {
        agent: "a".to_owned(),
        session: Some(session.to_owned()),
        job: Some(job.to_owned()),
        limits: limits.clone(),
    };
    for (key, session, job, tokens, micros, over) in [
        ("1", "s1", "cron/x", 90, 400_000, None),
        ("2", "s1", "cron/y", 20, 0, Some(("session/s1", Unit::Tokens))),
        ("3", "s2", "cron/x", 20, 200_000, Some(("job/cron/x", Unit::Money))),
        ("4", "s2", "cron/y", 20, 200_000, None),
        ("5", "s3", "cron/z", 900, 0, Some(("agent/a", Unit::Tokens))),
    ] {
        let tried = bench.budget.reserve(key, &scopes(session, job), tokens, micros).await.expect("an answer");
        assert_eq!(tried.as_ref().err().map(|over| (over.scope.as_str(), over.unit)), over, "{key}");
        if let Err(over) = tried {
            assert!(over.to_string().contains("aman usage") && over.to_string().contains(&over.scope), "{over}");
        }
    }
}

/// Goal: a clock that is set back and forth gives no day twice; a call counts for the day on which it began.
#[tokio::test]
async fn no_day_comes_twice() {
    let bench = Bench::start(100).await;
    assert!(bench.spend("today", 90).await);
    assert_eq!(bench.reserve("late", 10).await, Some(true));
    bench.clock.advance(DAY);
    assert!(bench.spend("tomorrow", 95).await);
    let late = Usage { input: 10, output: 0, cached: 0, estimated: false };
    assert!(bench.budget.settle("late", late, 0).await.expect("settled"));
    assert_eq!(bench.budget.usage("all").await.expect("read").0.tokens, 95, "it began yesterday");
    for _ in 0..3 {
        bench.clock.advance(-DAY);
        assert_eq!((bench.reserve("x", 1).await, bench.budget.usage("all").await.expect("read").0.tokens), (None, 100));
        bench.clock.advance(DAY);
        assert_eq!(bench.reserve("y", 6).await, None);
    }
    assert_eq!(bench.budget.usage("all").await.expect("read").1.tokens, 195);
}

/// Goal: the end of a limit is told and recorded once a day, however many calls run into it; refusals are counted.
#[tokio::test]
async fn the_end_is_told_once_a_day() {
    let bench = Bench::start(10).await;
    for n in 0..5 {
        assert_eq!(bench.reserve(&format!("k{n}"), 11).await, None);
    }
    assert_eq!((bench.refusals().await, bench.budget.usage("all").await.expect("read").0.refused), (1, 5));
    bench.clock.advance(DAY);
    assert_eq!(bench.reserve("next", 11).await, None);
    assert_eq!(bench.refusals().await, 2);
    bench.clock.advance(-DAY);
    assert_eq!(bench.reserve("back", 11).await, None);
    assert_eq!(bench.refusals().await, 2);
    let Bench { budget, bus, folder, .. } = bench;
    drop((budget, bus));
    let bench = Bench::start_in(folder, 10).await;
    assert_eq!(bench.reserve("restarted", 11).await, None);
    assert_eq!(bench.refusals().await, 2, "also after a restart");
}

/// Goal: what a crash left reserved counts as spent, once, and is seen in status, metrics, list and command line; a limit
/// that is set live holds at once.
#[test]
fn what_a_crash_left_counts_as_spent() {
    let mut daemon = Daemon::start();
    daemon.kill();
    let db = rusqlite::Connection::open(daemon.home().join("aman.db")).expect("the database");
    let today = aman::clock::rfc3339(Clock::System.now_ms())[..10].to_owned();
    let insert =
        "INSERT INTO reservation (key, scopes, day, tokens, micros, created_ms) VALUES (?1, ?2, ?3, 1200, 2500000, 0)";
    db.execute(insert, ["t1/0", "[\"all\",\"agent/aman\",\"session/s\"]", &today]).expect("a row");
    drop(db);
    for _ in 0..2 {
        daemon.again();
        let usage = daemon.get("/usage").json;
        let agent = usage["items"].as_array().expect("items").iter().find(|one| one["scope"] == "agent/aman").cloned();
        let wanted = json!({
            "scope": "agent/aman", "day": today, "calls": 1, "tokens": 1200, "input": 0, "output": 0, "lost": 1200,
            "money": 2.5, "reserved": 0, "refused": 0,
        });
        assert_eq!(agent, Some(wanted), "{usage}");
        daemon.kill();
    }
    daemon.again();
    let scopes = |path: &str| -> Vec<String> {
        daemon.all(path).iter().map(|one| one["scope"].as_str().unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(scopes("/usage?day=all&limit=1"), ["agent/aman", "all", "session/s"]);
    assert_eq!(scopes("/usage?day=all&scope=session/&limit=9"), ["session/s"]);
    assert_eq!(daemon.get("/usage?day=2020-01-01").items(), Vec::<Value>::new());
    assert_eq!(daemon.get("/usage?day=2020-1-1").fields(), ["day"]);
    let status = daemon.get("/runtime/status").json;
    assert_eq!((&status["usage"]["tokens"], &status["usage"]["lost"]), (&json!(1200), &json!(1200)), "{status}");
    let metrics = String::from_utf8(daemon.get("/metrics").body).expect("text");
    for line in [
        "aman_model_tokens_total{kind=\"lost\"} 1200",
        "aman_agent_tokens_total{agent=\"aman\"} 1200",
        "aman_model_cost_total 2.5",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    let (code, out, error) = daemon.cli(&["usage"]);
    assert!(code == 0 && out.contains("agent/aman") && out.contains("1200"), "{out} {error}");
    let changes = json!({ "changes": { "budget.day_tokens": 5000, "budget.day_money": 1.5, "budget.soft": 0.5 } });
    let set = daemon.post_confirmed("/config/set", &changes);
    assert_eq!((set.status, set.json["applied"].as_array().map(Vec::len)), (200, Some(3)), "{set:?}");
    assert_eq!(daemon.get("/usage").json["limits"], json!({ "day_tokens": 5000, "day_money": 1.5, "soft": 0.5 }));
    let wrong = daemon.post_confirmed("/config/set", &json!({ "changes": { "budget.day_money": -1 } }));
    assert_eq!(wrong.fields(), ["changes.budget.day_money"], "{wrong:?}");
}
