//! A clock that jumps by hours, and one that shows 1970; in this process, with a clock that the test moves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use aman::bus::{
    Attempt, Concurrency, Consumer, ConsumerSpec, Delivered, Effects, Failure, Origin, Outcome, Publish, RetryPolicy,
    Rule, Standing,
};
use aman::clock::{Clock, parse_rfc3339};
use aman::config::{Flags, load};
use aman::event::{NewEvent, Trust, TypePattern};
use aman::start::{Daemon, Extras, start_with};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::harness::{Answer, Folder, PATIENCE, TOKEN, exchange, request};

const HOUR: i64 = 3_600_000;

/// Fails its first attempt, then does it once there is a permit; the first event of type `a.die` is rejected once instead.
struct SecondTime {
    made: AtomicUsize,
    gate: Semaphore,
    killed: AtomicBool,
}

impl Default for SecondTime {
    fn default() -> SecondTime {
        SecondTime { made: AtomicUsize::new(0), gate: Semaphore::new(1000), killed: AtomicBool::new(false) }
    }
}

impl Consumer for SecondTime {
    fn deliver(&self, attempt: Attempt) -> Delivered<'_> {
        self.made.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            let dies = attempt.event.sent.kind == "a.die";
            if dies && !self.killed.swap(true, Ordering::SeqCst) {
                return Outcome::Reject(Failure::new("dead"));
            }
            if attempt.number == 1 && !dies {
                return Outcome::Retry(Failure::new("not yet"), None);
            }
            self.gate.acquire().await.expect("never closed").forget();
            Outcome::Done(Effects::default())
        })
    }
}

fn spec() -> ConsumerSpec {
    ConsumerSpec {
        name: "internal/second-time".to_owned(),
        kind: "internal",
        rules: vec![Rule { pattern: TypePattern::parse("a.*").expect("a pattern"), condition: None }],
        concurrency: Concurrency::Parallel(4),
        retry: RetryPolicy { base: Duration::from_secs(30), jitter: false, ..RetryPolicy::default() },
        timeout: Duration::from_secs(10),
        trust: Trust::Owner,
        standing: Standing::Active,
        acts_outside: false,
    }
}

struct Bench {
    daemon: Daemon,
    clock: Clock,
    consumer: Arc<SecondTime>,
    folder: Folder,
}

impl Bench {
    async fn start(at_ms: i64) -> Bench {
        let (folder, clock, consumer) = (Folder::new("clock"), Clock::manual(at_ms), Arc::<SecondTime>::default());
        let daemon = run(&folder, &clock, &consumer).await;
        Bench { daemon, clock, consumer, folder }
    }

    async fn again(self) -> Bench {
        let Bench { daemon, clock, consumer, folder } = self;
        daemon.stop().await;
        let daemon = run(&folder, &clock, &consumer).await;
        Bench { daemon, clock, consumer, folder }
    }

    async fn push(&self) -> String {
        self.push_of("a.b").await
    }

    async fn push_of(&self, kind: &str) -> String {
        self.push_event(NewEvent::new("test", kind, &json!(1))).await
    }

    async fn push_event(&self, event: NewEvent) -> String {
        let origin = Origin { principal: "test".to_owned(), trust: Trust::Owner, internal: false };
        let publish = Publish::one(event, origin);
        self.daemon.bus().publish(publish).await.expect("it is stored").remove(0).id
    }

    async fn ask(&self, method: &'static str, path: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
        let mut all = vec![("content-type", "application/json")];
        all.extend_from_slice(headers);
        let bytes = request(method, path, &all, body.to_string().as_bytes());
        let address = self.daemon.address().to_string();
        let answer = tokio::task::spawn_blocking(move || exchange(&address, &bytes)).await.expect("it ran");
        answer.expect("an answer")
    }

    async fn owner(&self, method: &'static str, path: &str, body: &Value) -> Answer {
        self.ask(method, path, &[("x-aman-token", TOKEN)], body).await
    }

    /// Waits until the delivery of this event has this status and as many attempts were made.
    async fn until(&self, id: &str, status: &str, attempts: usize) {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let dump = self.owner("GET", &format!("/events/dump/{id}"), &json!({})).await.json;
            let made = self.consumer.made.load(Ordering::SeqCst);
            if dump["deliveries"][0]["status"] == status && made == attempts {
                return;
            }
            assert!(std::time::Instant::now() < deadline, "not {status} after {attempts}, {made} made: {dump}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn run(folder: &Folder, clock: &Clock, consumer: &Arc<SecondTime>) -> Daemon {
    // Commits that take no time find retries in every order.
    let toml = format!("[http]\ntoken = \"{TOKEN}\"\n[bus]\ndurability = \"normal\"\n");
    std::fs::write(folder.path().join("aman.toml"), toml).expect("aman.toml");
    let flags =
        Flags { home: Some(folder.path().to_owned()), bind: Some("127.0.0.1:0".to_owned()), ..Flags::default() };
    let consumers = vec![(spec(), Arc::clone(consumer) as Arc<dyn Consumer>)];
    let extras = Extras { clock: clock.clone(), consumers, ..Extras::default() };
    start_with(load(&flags).expect("it is valid"), extras).await.expect("the daemon starts")
}

fn noon() -> i64 {
    parse_rfc3339("2026-11-22T12:00:00Z").expect("a time")
}

/// Goal: a retry that waits when the clock jumps, forward or back, is made once: it neither waits for hours nor runs
/// twice, with and without a restart in between; what comes after the jump is delivered at once.
#[tokio::test(flavor = "multi_thread")]
async fn retries_survive_jumps() {
    for jump in [5 * HOUR, -5 * HOUR, -50 * HOUR] {
        for restart in [false, true] {
            let mut bench = Bench::start(noon()).await;
            let first = bench.push().await;
            bench.until(&first, "retrying", 1).await;
            bench.clock.advance(jump);
            if restart {
                bench = bench.again().await;
            }
            // It wakes the lane; by itself the lane looks at a clock that was set within a minute.
            let second = bench.push().await;
            bench.until(&second, "retrying", 3).await;
            bench.until(&first, "done", 3).await;
            bench.clock.advance(HOUR);
            let third = bench.push().await;
            bench.until(&third, "retrying", 5).await;
            bench.until(&second, "done", 5).await;
            assert_eq!(bench.owner("GET", "/dlq", &json!({})).await.items().len(), 0);
            bench.daemon.stop().await;
        }
    }
}

/// Milliseconds of processor time that this process has taken.
fn worked_ms() -> i64 {
    let used = getrusage(UsageWho::RUSAGE_SELF).expect("the kernel counts");
    used.user_time().num_milliseconds() + used.system_time().num_milliseconds()
}

/// Goal: an attempt that runs while its row still says when it was to be tried by a clock that was ahead keeps nobody busy.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_set_back_keeps_nobody_busy() {
    let bench = Bench::start(noon()).await;
    let first = bench.push().await;
    bench.until(&first, "retrying", 1).await;
    bench.consumer.gate.forget_permits(1000);
    bench.clock.advance(-5 * HOUR);
    let second = bench.push().await;
    bench.until(&second, "retrying", 3).await;
    let before = worked_ms();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let worked = worked_ms() - before;
    assert!(worked < 300, "{worked} ms of work while everything waits");
    bench.consumer.gate.add_permits(2);
    bench.until(&first, "done", 3).await;
    bench.daemon.stop().await;
}

/// Goal: what an older event of its key held back when the clock was set back follows that event at once.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_key_held_back_follows_after_a_jump() {
    let bench = Bench::start(noon()).await;
    let keyed = |kind: &str| NewEvent { partition_key: Some("k".to_owned()), ..NewEvent::new("test", kind, &json!(1)) };
    let dead = bench.push_event(keyed("a.die")).await;
    bench.until(&dead, "dead", 1).await;
    let held = bench.push_event(keyed("a.b")).await;
    bench.until(&held, "retrying", 2).await;
    bench.consumer.gate.forget_permits(1000);
    bench.clock.advance(-5 * HOUR);
    let letter = bench.owner("GET", "/dlq", &json!({})).await.items().remove(0);
    let path = format!("/dlq/{}/retry", letter["id"].as_str().expect("an id"));
    let headers = [("x-aman-token", TOKEN), ("x-aman-confirm", "yes")];
    assert_eq!(bench.ask("POST", &path, &headers, &json!({})).await.status, 200);
    bench.until(&dead, "pending", 3).await;
    bench.consumer.gate.add_permits(2);
    bench.until(&dead, "done", 4).await;
    bench.until(&held, "done", 4).await;
    bench.daemon.stop().await;
}

/// Goal: credentials end when the clock says so and are never good for longer than they were given for by a clock that
/// is set back; wrong tokens and request rates go by another clock, so that no jump locks anybody out.
#[tokio::test(flavor = "multi_thread")]
async fn credentials_survive_jumps() {
    let bench = Bench::start(noon()).await;
    let wanted = json!({ "sub": "jumps", "scope": "events:read", "ttl": "1h" });
    let made = bench.owner("POST", "/auth/token", &wanted).await;
    assert_eq!(made.status, 201, "{made:?}");
    let token = made.json["token"].as_str().expect("a token").to_owned();
    let status = async |path: &str| bench.ask("GET", path, &[("x-aman-token", &token)], &json!({})).await.status;
    assert_eq!(status("/events/recent").await, 200);
    for _ in 0..30 {
        bench.ask("GET", "/events/recent", &[("x-aman-token", "wrong-wrong-wrong")], &json!({})).await;
    }
    for jump in [-5 * HOUR, 5 * HOUR] {
        bench.clock.advance(jump);
        assert_eq!(bench.owner("GET", "/events/recent", &json!({})).await.status, 200, "the owner after {jump}");
        assert_eq!(status("/events/recent").await, 200, "the token after {jump}");
    }
    bench.clock.advance(2 * HOUR);
    assert_eq!(status("/events/recent").await, 401, "its hour is over");
    bench.daemon.stop().await;
}

/// Goal: a clock that leaps far ahead has nothing removed, whatever is stored by it meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_leap_removes_nothing() {
    let bench = Bench::start(noon()).await;
    let id = bench.push_of("plain.one").await;
    bench.clock.advance(40 * 24 * HOUR);
    bench.push_of("plain.two").await;
    let change = json!({ "changes": { "bus.retention.max_age": "29d", "bus.retention.notifications": "29d" } });
    let headers = [("x-aman-token", TOKEN), ("x-aman-confirm", "yes")];
    assert_eq!(bench.ask("POST", "/config/set", &headers, &change).await.status, 200);
    // The change has retention look at once; there is nothing to see when it only looks.
    for _ in 0..100 {
        assert_eq!(bench.owner("GET", &format!("/events/dump/{id}"), &json!({})).await.status, 200);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let due = bench.ask("POST", "/db/prune?dry_run=true", &headers, &json!({})).await;
    assert!(due.json["events"].as_i64() >= Some(1), "by the clock it is due, and nothing else holds it: {due:?}");
    bench.daemon.stop().await;
}

/// Goal: a machine whose clock begins in 1970, as without a battery, serves and stores; its health says that the clock
/// is wrong; when the clock is set, everything goes on and nothing is lost or repeated.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_at_1970() {
    let bench = Bench::start(0).await;
    let first = bench.push().await;
    bench.until(&first, "retrying", 1).await;
    let health = bench.owner("GET", "/health", &json!({})).await;
    assert_eq!((health.status, &health.json["checks"]["clock"]["ok"]), (200, &json!(false)), "{health:?}");
    assert!(health.json["checks"]["clock"]["detail"].to_string().contains("set it"), "{health:?}");
    bench.clock.advance(noon());
    let second = bench.push().await;
    bench.until(&second, "retrying", 3).await;
    bench.until(&first, "done", 3).await;
    assert_eq!(bench.owner("GET", "/health", &json!({})).await.json["checks"]["clock"]["ok"], true);
    let bench = bench.again().await;
    bench.clock.advance(HOUR);
    let third = bench.push().await;
    bench.until(&third, "retrying", 5).await;
    bench.until(&second, "done", 5).await;
    bench.daemon.stop().await;
}
