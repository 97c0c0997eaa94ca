//! The bus with scripted consumers in this process: retries, order, priorities, effects, dead letters, the outbox.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aman::bus::{
    Accepted, Attempt, Concurrency, Consumer, ConsumerSpec, Delivered, Effects, Failure, NewIntent, NewNotification,
    Origin, Outcome, Publish, RetryPolicy, Rule, Severity, Standing,
};
use aman::config::{Flags, load};
use aman::event::{Delivery, NewEvent, Priority, Trust, TypePattern};
use aman::expr::Expr;
use aman::id::DeliveryId;
use aman::outbox::{Sending, Sent, Sink};
use aman::start::{Daemon, Extras, start_with};
use aman::store::deliveries::{Record, Status};
use aman::store::{dead_letters, deliveries, events, outbox};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};

use crate::harness::{Folder, PATIENCE, exchange, request, wait};

/// What a scripted consumer does with an attempt.
#[derive(Clone)]
enum Step {
    Done,
    Publish(Vec<NewEvent>),
    Everything,
    Retry(&'static str),
    RetryAfter(u64),
    /// A change of state that the database refuses.
    BadState,
    Reject(&'static str),
    Hang,
    Panic,
    /// Waits until the test lets it go on.
    Hold,
}

struct Scripted {
    steps: Mutex<VecDeque<Step>>,
    /// What every attempt does once the script is over.
    then: Step,
    seen: mpsc::UnboundedSender<Attempt>,
    gate: Arc<Semaphore>,
}

impl Consumer for Scripted {
    fn deliver(&self, attempt: Attempt) -> Delivered<'_> {
        let _listening = self.seen.send(attempt.clone());
        let next = self.steps.lock().expect("not poisoned").pop_front();
        let step = next.unwrap_or_else(|| self.then.clone());
        Box::pin(async move {
            match step {
                Step::Done => Outcome::Done(Effects::default()),
                Step::Publish(publish) => Outcome::Done(Effects { publish, ..Effects::default() }),
                Step::Everything => Outcome::Done(everything()),
                Step::Retry(why) => Outcome::Retry(Failure::new(why).within("outer"), None),
                Step::RetryAfter(ms) => Outcome::Retry(Failure::new("later"), Some(Duration::from_millis(ms))),
                Step::BadState => Outcome::Done(Effects {
                    state: Some(Box::new(|_| Err(aman::error::Error::conflict("invalid_state", "scripted")))),
                    ..Effects::default()
                }),
                Step::Reject(why) => Outcome::Reject(Failure::new(why)),
                Step::Hang => std::future::pending().await,
                Step::Panic => panic!("scripted"),
                Step::Hold => {
                    self.gate.acquire().await.expect("never closed").forget();
                    Outcome::Done(Effects::default())
                }
            }
        })
    }
}

fn everything() -> Effects {
    Effects {
        publish: vec![NewEvent::new("scripted", "made.one", &json!({"n": 1}))],
        notify: vec![NewNotification {
            title: "t".into(),
            message: "m".into(),
            severity: Severity::Warning,
            ..NewNotification::default()
        }],
        outgoing: vec![NewIntent { sink: "test".into(), payload: json!({"to": "x"}), ttl: Duration::from_secs(60) }],
        result: Some(json!({"answer": 42})),
        ..Effects::default()
    }
}

/// What a test holds of its consumer.
struct Handle {
    seen: mpsc::UnboundedReceiver<Attempt>,
    gate: Arc<Semaphore>,
}

impl Handle {
    async fn next(&mut self) -> Attempt {
        tokio::time::timeout(PATIENCE, self.seen.recv()).await.expect("an attempt in time").expect("the consumer lives")
    }
}

fn spec(name: &str, pattern: &str) -> ConsumerSpec {
    ConsumerSpec {
        name: name.to_owned(),
        kind: "internal",
        rules: vec![Rule { pattern: TypePattern::parse(pattern).expect("pattern"), condition: None }],
        concurrency: Concurrency::Serial,
        retry: RetryPolicy { base: Duration::from_millis(1), ..RetryPolicy::default() },
        timeout: Duration::from_secs(10),
        trust: Trust::Owner,
        standing: Standing::Active,
        acts_outside: false,
    }
}

fn scripted(spec: ConsumerSpec, steps: &[Step], then: Step) -> ((ConsumerSpec, Arc<dyn Consumer>), Handle) {
    let (seen, receiver) = mpsc::unbounded_channel();
    let gate = Arc::new(Semaphore::new(0));
    let consumer = Scripted { steps: Mutex::new(steps.iter().cloned().collect()), then, seen, gate: gate.clone() };
    ((spec, Arc::new(consumer)), Handle { seen: receiver, gate })
}

struct Bench {
    daemon: Daemon,
    _folder: Folder,
}

async fn start(consumers: Vec<(ConsumerSpec, Arc<dyn Consumer>)>, sinks: Vec<Arc<dyn Sink>>) -> Bench {
    let folder = Folder::new("bus");
    let daemon = start_in(&folder, consumers, sinks).await;
    Bench { daemon, _folder: folder }
}

async fn start_in(
    folder: &Folder,
    consumers: Vec<(ConsumerSpec, Arc<dyn Consumer>)>,
    sinks: Vec<Arc<dyn Sink>>,
) -> Daemon {
    let flags =
        Flags { home: Some(folder.path().to_owned()), bind: Some("127.0.0.1:0".to_owned()), ..Flags::default() };
    let config = load(&flags).expect("an empty configuration is valid");
    start_with(config, Extras { consumers, sinks, ..Extras::default() }).await.expect("the daemon starts")
}

impl Bench {
    async fn push(&self, event: NewEvent) -> Accepted {
        let origin = Origin { principal: "owner".into(), trust: Trust::Owner, internal: false };
        let accepted = self.daemon.bus().publish(Publish::one(event, origin)).await.expect("accepted");
        accepted.into_iter().next().expect("one answer")
    }

    async fn deliveries(&self, accepted: &Accepted) -> Vec<Record> {
        let sequence = aman::id::EventSeq(accepted.sequence);
        self.daemon.bus().store().read(move |conn| deliveries::of_event(conn, sequence)).await.expect("readable")
    }

    /// Waits until every delivery of the event has ended.
    async fn ended(&self, accepted: &Accepted) -> Vec<Record> {
        let ended = async {
            loop {
                let records = self.deliveries(accepted).await;
                if records.iter().all(|record| !record.status.is_open()) {
                    return records;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, ended).await.expect("deliveries end in time")
    }

    async fn letters(&self) -> Vec<dead_letters::Letter> {
        let ids = self.daemon.bus().store().ids();
        let list = move |conn: &_| dead_letters::list(conn, ids, &dead_letters::Filter::default(), None, 100);
        self.daemon.bus().store().read(list).await.expect("readable").0
    }

    async fn effects(&self, accepted: &Accepted) -> Vec<(aman::event::Event, Option<DeliveryId>)> {
        let (ids, sequence) = (self.daemon.bus().store().ids(), aman::id::EventSeq(accepted.sequence));
        let read = move |conn: &_| {
            let effects = events::effects_of(conn, ids, sequence)?.into_iter();
            // They are told without their data.
            let whole = effects.map(|(effect, delivery)| {
                let found = events::by_sequence(conn, ids, effect.sequence)?.expect("an effect is an event");
                Ok::<_, aman::error::Error>((found, delivery))
            });
            whole.collect()
        };
        self.daemon.bus().store().read(read).await.expect("readable")
    }
}

fn event(kind: &str) -> NewEvent {
    NewEvent::new("test", kind, &Value::Null)
}

/// Goal: how an attempt ends decides what becomes of the delivery, and the dead letter tells the whole story.
#[tokio::test(flavor = "multi_thread")]
async fn outcomes_decide() {
    type Case = (&'static str, Vec<Step>, Step, Status, u32, Option<&'static str>);
    let cases: [Case; 9] = [
        ("plain", vec![], Step::Done, Status::Done, 1, None),
        ("recovers", vec![Step::Retry("a"), Step::Retry("b")], Step::Done, Status::Done, 3, None),
        ("exhausts", vec![], Step::Retry("down"), Status::Dead, 5, Some("attempts_exhausted")),
        ("rejects", vec![], Step::Reject("bad"), Status::Dead, 1, Some("rejected")),
        ("hangs", vec![], Step::Hang, Status::Dead, 2, Some("timeout")),
        ("panics", vec![Step::Panic], Step::Done, Status::Done, 2, None),
        ("state", vec![Step::BadState], Step::Done, Status::Done, 2, None),
        ("stateless", vec![], Step::BadState, Status::Dead, 5, Some("attempts_exhausted")),
        ("invalid", vec![], Step::Publish(vec![event("not a type")]), Status::Dead, 1, Some("rejected")),
    ];
    for (name, steps, then, status, count, reason) in cases {
        let mut spec = spec(&format!("test/{name}"), "a.b");
        if name == "hangs" {
            (spec.timeout, spec.retry.max_attempts) = (Duration::from_millis(20), 2);
        }
        let (consumer, _handle) = scripted(spec, &steps, then);
        let bench = start(vec![consumer], Vec::new()).await;
        let accepted = bench.push(event("a.b")).await;
        let records = bench.ended(&accepted).await;
        assert_eq!((records.len(), records[0].status, records[0].attempt), (1, status, count), "{name}");
        let letters = bench.letters().await;
        assert_eq!(letters.first().map(|l| l.reason.as_str()), reason, "{name}");
        assert_eq!(letters.first().map(|l| l.attempts), reason.and(Some(count)), "{name}");
        if name == "exhausts" {
            assert_eq!(letters[0].chain, ["outer", "down"]);
            assert_eq!(records[0].failures.len(), 5);
            let told = bench.effects(&accepted).await;
            assert_eq!(told[0].0.sent.kind, "aman.delivery.dead");
            assert_eq!(told[0].0.sent.data.to_value()["consumer"], "test/exhausts");
        }
        bench.daemon.stop().await;
    }
}

/// Goal: a serial consumer sees events in order even when one fails for a while; nothing overtakes it.
#[tokio::test(flavor = "multi_thread")]
async fn serial_keeps_order_over_retries() {
    let (consumer, mut handle) =
        scripted(spec("test/serial", "a.*"), &[Step::Retry("x"), Step::Retry("x")], Step::Done);
    let bench = start(vec![consumer], Vec::new()).await;
    let mut pushed = Vec::new();
    for n in 0..5 {
        // Priority does not matter to a serial consumer.
        let priority = if n % 2 == 0 { Priority::Low } else { Priority::High };
        pushed.push(bench.push(NewEvent { priority, ..event("a.b") }).await.sequence);
    }
    let mut seen = Vec::new();
    for _ in 0..7 {
        seen.push(handle.next().await.event.sequence.0);
    }
    let first = pushed[0];
    assert_eq!(seen[..3], [first, first, first]);
    assert_eq!(seen[2..], pushed[..]);
}

/// Goal: a parallel consumer keeps order within a key, lets other keys pass, and takes higher priority first.
#[tokio::test(flavor = "multi_thread")]
async fn parallel_orders_by_key_and_priority() {
    let spec = ConsumerSpec { concurrency: Concurrency::Parallel(2), ..spec("test/parallel", "a.b") };
    let (consumer, mut handle) = scripted(spec, &[], Step::Hold);
    let bench = start(vec![consumer], Vec::new()).await;
    let keyed = |key: &str, subject: &str| NewEvent {
        partition_key: Some(key.to_owned()),
        subject: Some(subject.to_owned()),
        ..event("a.b")
    };
    for (key, subject) in [("k", "k1"), ("k", "k2"), ("l", "l1")] {
        bench.push(keyed(key, subject)).await;
    }
    let mut running = vec![subject(&handle.next().await), subject(&handle.next().await)];
    running.sort();
    assert_eq!(running, ["k1", "l1"], "k2 waits for k1");
    for (subject, priority) in [("low", Priority::Low), ("normal", Priority::Normal), ("high", Priority::High)] {
        bench.push(NewEvent { priority, ..keyed(subject, subject) }).await;
    }
    let mut order = Vec::new();
    for _ in 0..4 {
        // One place at a time, or two attempts would race to be seen first.
        handle.gate.add_permits(1);
        order.push(subject(&handle.next().await));
    }
    assert_eq!(order[0], "high");
    assert_eq!(order[3], "low");
}

fn subject(attempt: &Attempt) -> String {
    attempt.event.sent.subject.clone().unwrap_or_default()
}

/// Goal: everything a consumer asks for is there once, caused by the event, no more trusted than either.
#[tokio::test(flavor = "multi_thread")]
async fn effects_commit_with_the_settlement() {
    let spec = ConsumerSpec { trust: Trust::Plugin, ..spec("test/effects", "a.b") };
    let (consumer, _handle) = scripted(spec, &[Step::Retry("first")], Step::Everything);
    let bench = start(vec![consumer], Vec::new()).await;
    let accepted = bench.push(event("a.b")).await;
    let records = bench.ended(&accepted).await;
    assert_eq!(records[0].result, Some(json!({"answer": 42})));
    let effects = bench.effects(&accepted).await;
    let [(made, from), (told, _)] = effects.as_slice() else { panic!("two effects, not {effects:?}") };
    assert_eq!((told.sent.kind.as_str(), told.trust), ("aman.notification.created", Trust::Plugin));
    assert_eq!(*from, Some(records[0].id));
    assert_eq!((made.trust, made.depth, made.principal.as_str()), (Trust::Plugin, 1, "test/effects"));
    assert_eq!(made.causation.as_deref(), Some(accepted.id.as_str()));
    assert_eq!(made.correlation.as_deref(), Some(accepted.id.as_str()));
    assert_eq!(made.trace.to_string(), accepted.trace_id);
    let delivery = records[0].id;
    let other =
        bench.daemon.bus().store().read(move |conn| outbox::effects_of(conn, delivery)).await.expect("readable");
    assert_eq!(other.iter().map(|(kind, ..)| *kind).collect::<Vec<_>>(), ["outgoing", "notification"]);
}

/// Goal: a consumer that reacts to itself is stopped by the cap on causation, and says so.
#[tokio::test(flavor = "multi_thread")]
async fn loops_end_as_dead_letters() {
    let (consumer, _handle) = scripted(spec("test/loop", "a.b"), &[], Step::Publish(vec![event("a.b")]));
    let bench = start(vec![consumer], Vec::new()).await;
    bench.push(event("a.b")).await;
    let letters = loop {
        let letters = bench.letters().await;
        if !letters.is_empty() {
            break letters;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    };
    assert_eq!((letters[0].reason.as_str(), letters[0].event.depth), ("causation_loop", 64));
}

/// Goal: modes and expiry: at_most_once fails once for good, an old event is not delivered.
#[tokio::test(flavor = "multi_thread")]
async fn modes_and_expiry() {
    let (consumer, _handle) = scripted(spec("test/modes", "a.b"), &[], Step::Retry("no"));
    let bench = start(vec![consumer], Vec::new()).await;
    let once = bench.push(NewEvent { delivery: Delivery::AtMostOnce, ..event("a.b") }).await;
    let record = bench.ended(&once).await.remove(0);
    assert_eq!((record.status, record.attempt), (Status::Dead, 1));
    let old = bench.push(NewEvent { expires_ms: Some(1), ..event("a.b") }).await;
    let record = bench.ended(&old).await.remove(0);
    assert_eq!((record.status, record.attempt), (Status::Expired, 0));
}

/// Goal: a consumer that hangs delays no other, and a condition decides who gets what.
#[tokio::test(flavor = "multi_thread")]
async fn consumers_do_not_delay_each_other() {
    let (stuck, mut stuck_handle) = scripted(spec("test/stuck", "a.b"), &[], Step::Hold);
    let mut picky = spec("test/picky", "a.*");
    picky.rules[0].condition = Some(Expr::compile(".data.n > 1").expect("a condition"));
    let (picky, mut picky_handle) = scripted(picky, &[], Step::Done);
    let bench = start(vec![stuck, picky], Vec::new()).await;
    let mut last = None;
    for n in 1..=3 {
        last = Some(bench.push(NewEvent::new("test", "a.b", &json!({"n": n}))).await);
    }
    stuck_handle.next().await;
    let seen =
        [picky_handle.next().await, picky_handle.next().await].map(|a| a.event.sent.data.to_value()["n"].clone());
    assert_eq!(seen, [json!(2), json!(3)]);
    let waiting = bench.deliveries(&last.expect("pushed")).await;
    assert_eq!(waiting[0].status, Status::Pending);
}

struct TestSink {
    answers: Mutex<VecDeque<Sent>>,
    sent: mpsc::UnboundedSender<String>,
    idempotent: bool,
}

impl Sink for TestSink {
    fn name(&self) -> &str {
        "test"
    }
    fn is_idempotent(&self) -> bool {
        self.idempotent
    }
    fn retry(&self) -> RetryPolicy {
        RetryPolicy { base: Duration::from_millis(1), ..RetryPolicy::default() }
    }
    fn send<'a>(&'a self, key: &'a str, _: &'a Value) -> Sending<'a> {
        let _listening = self.sent.send(key.to_owned());
        let answer = self.answers.lock().expect("not poisoned").pop_front();
        Box::pin(async move {
            match answer {
                Some(answer) => answer,
                None => std::future::pending().await,
            }
        })
    }
}

/// Goal: an intent is sent until it is known to have arrived; when nobody knows, only an idempotent sink is asked again.
#[tokio::test(flavor = "multi_thread")]
async fn the_outbox_says_what_it_knows() {
    let later = || Sent::Later("busy".into(), None);
    let unknown = || Sent::Unknown("connection lost".into());
    let cases = [
        (false, vec![later(), Sent::Yes], outbox::Status::Sent, 2),
        (false, vec![unknown()], outbox::Status::Unknown, 1),
        (true, vec![unknown(), Sent::Yes], outbox::Status::Sent, 2),
        (false, vec![Sent::Refused("gone".into())], outbox::Status::Failed, 1),
    ];
    for (idempotent, answers, status, tries) in cases {
        let (sent, mut keys) = mpsc::unbounded_channel();
        let sink = Arc::new(TestSink { answers: Mutex::new(answers.into()), sent, idempotent });
        let (consumer, _handle) = scripted(spec("test/out", "a.b"), &[], Step::Everything);
        let bench = start(vec![consumer], vec![sink]).await;
        bench.push(event("a.b")).await;
        let mut key = String::new();
        for n in 0..tries {
            let next = tokio::time::timeout(PATIENCE, keys.recv()).await.expect("sent in time").expect("a key");
            assert!(n == 0 || next == key, "the key stays the same");
            key = next;
        }
        let ended = async {
            loop {
                let key = key.clone();
                let read = bench.daemon.bus().store().read(move |conn| outbox::by_key(conn, &key)).await;
                let intent = read.expect("readable").expect("the intent is there");
                if !matches!(intent.status, outbox::Status::Intent | outbox::Status::Sending) {
                    return intent;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let intent = tokio::time::timeout(PATIENCE, ended).await.expect("ends in time");
        assert_eq!((intent.status, intent.attempt), (status, tries));
    }
}

/// Goal: what a clock that was ahead had wait is sent once the clock is set back, not when it has caught up.
#[tokio::test(flavor = "multi_thread")]
async fn sending_survives_a_clock_set_back() {
    let (folder, clock) = (Folder::new("clock"), aman::clock::Clock::manual(1_795_000_000_000));
    let (sent, mut keys) = mpsc::unbounded_channel();
    let answers = [Sent::Later("busy".into(), Some(Duration::from_secs(60))), Sent::Yes, Sent::Yes].into();
    let sink: Arc<dyn Sink> = Arc::new(TestSink { answers: Mutex::new(answers), sent, idempotent: true });
    let (consumer, _handle) = scripted(spec("test/out", "a.b"), &[], Step::Everything);
    let flags =
        Flags { home: Some(folder.path().to_owned()), bind: Some("127.0.0.1:0".to_owned()), ..Flags::default() };
    let extras = Extras { clock: clock.clone(), consumers: vec![consumer], sinks: vec![sink] };
    let daemon = start_with(load(&flags).expect("it is valid"), extras).await.expect("the daemon starts");
    let bench = Bench { daemon, _folder: folder };
    bench.push(event("a.b")).await;
    let mut next = async || tokio::time::timeout(PATIENCE, keys.recv()).await.expect("sent in time").expect("a key");
    let first = next().await;
    let key = first.clone();
    let waits = async || {
        let key = key.clone();
        let read = bench.daemon.bus().store().read(move |conn| outbox::by_key(conn, &key)).await;
        read.expect("readable").expect("the intent is there").status == outbox::Status::Intent
    };
    while !waits().await {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    clock.advance(-5 * 86_400_000);
    // It wakes the lane; by itself the lane looks at a clock that was set within a minute.
    bench.push(event("a.b")).await;
    let sent = [next().await, next().await];
    assert!(sent.contains(&first) && sent[0] != sent[1], "{first} {sent:?}");
}

/// Goal: what was being sent when the daemon ended is unknown, or sent again under the same key.
#[tokio::test(flavor = "multi_thread")]
async fn sending_that_was_cut_off() {
    for (idempotent, status) in [(false, outbox::Status::Unknown), (true, outbox::Status::Sent)] {
        let folder = Folder::new("cut");
        let (sent, mut keys) = mpsc::unbounded_channel();
        let hanging = Arc::new(TestSink { answers: Mutex::default(), sent, idempotent });
        let (consumer, _handle) = scripted(spec("test/out", "a.b"), &[], Step::Everything);
        let daemon = start_in(&folder, vec![consumer], vec![hanging]).await;
        let bench = Bench { daemon, _folder: Folder::new("unused") };
        bench.push(event("a.b")).await;
        let key = tokio::time::timeout(PATIENCE, keys.recv()).await.expect("sent in time").expect("a key");
        bench.daemon.stop().await;
        let (sent, _keys) = mpsc::unbounded_channel();
        let answering = Arc::new(TestSink { answers: Mutex::new([Sent::Yes].into()), sent, idempotent });
        let daemon = start_in(&folder, Vec::new(), vec![answering]).await;
        let ended = async {
            loop {
                let key = key.clone();
                let read = daemon.bus().store().read(move |conn| outbox::by_key(conn, &key)).await;
                let intent = read.expect("readable").expect("the intent is there");
                if intent.status == status {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, ended).await.expect("ends in time");
    }
}

/// A sink whose task never comes far.
struct PanickingSink;

impl Sink for PanickingSink {
    fn name(&self) -> &str {
        "test"
    }
    fn is_idempotent(&self) -> bool {
        true
    }
    fn retry(&self) -> RetryPolicy {
        RetryPolicy::default()
    }
    fn send<'a>(&'a self, _: &'a str, _: &'a Value) -> Sending<'a> {
        panic!("scripted")
    }
}

/// Goal: a background task that fails whenever it is started again is a failed check of `/health`; the daemon goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_always_fails_is_told() {
    let (consumer, _handle) = scripted(spec("test/out", "a.b"), &[], Step::Everything);
    let bench = start(vec![consumer], vec![Arc::new(PanickingSink)]).await;
    let address = bench.daemon.address().to_string();
    let health = || exchange(&address, &request("GET", "/health", &[], b"")).expect("an answer");
    assert_eq!(health().json["checks"]["tasks"]["ok"], true);
    bench.push(event("a.b")).await;
    let told =
        wait("the check", || Some(health()).filter(|now| now.json["checks"]["tasks"]["ok"] == false), String::new);
    assert_eq!((told.status, &told.json["status"]), (200, &json!("ok")));
    assert!(told.json["checks"]["tasks"]["detail"].as_str().is_some_and(|text| text.starts_with("1 failed")));
}

/// Goal: a dead letter that is tried again runs the same path under the same id, and is settled for good when it works.
#[tokio::test(flavor = "multi_thread")]
async fn rejected_then_replayed() {
    let steps = [Step::Reject("bad"), Step::Reject("still bad")];
    let (consumer, mut handle) = scripted(spec("test/replay", "a.b"), &steps, Step::Done);
    let bench = start(vec![consumer], Vec::new()).await;
    let accepted = bench.push(event("a.b")).await;
    for round in 1..=2_u32 {
        bench.ended(&accepted).await;
        let [letter] = <[_; 1]>::try_from(bench.letters().await).expect("one letter");
        assert_eq!(letter.attempts, round);
        let id = letter.id;
        bench.daemon.bus().store().write(move |tx| dead_letters::retry(tx, id, None)).await.expect("retried");
        assert_eq!(handle.next().await.delivery, id);
    }
    handle.next().await;
    let records = bench.ended(&accepted).await;
    assert_eq!(records[0].status, Status::Done);
    assert!(bench.letters().await.is_empty());
}

/// Goal: a dead letter that is tried again after its event has expired is over: it is not "being tried" for ever, and holds
/// nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_letter_whose_event_expires_is_over() {
    let (consumer, mut handle) = scripted(spec("test/late", "a.b"), &[Step::Reject("bad")], Step::Done);
    let bench = start(vec![consumer], Vec::new()).await;
    let soon = bench.daemon.bus().clock().now_ms() + 1500;
    let accepted = bench.push(NewEvent { expires_ms: Some(soon), ..event("a.b") }).await;
    handle.next().await;
    bench.ended(&accepted).await;
    let id = bench.letters().await.remove(0).id;
    while bench.daemon.bus().clock().now_ms() <= soon {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let store = bench.daemon.bus().store();
    store.write(move |tx| dead_letters::retry(tx, id, None)).await.expect("retried");
    let record = bench.ended(&accepted).await.remove(0);
    assert_eq!(record.status, Status::Expired);
    let refused = store.write(move |tx| dead_letters::retry(tx, id, None)).await.expect_err("it is over");
    assert!(refused.to_string().contains("expired"), "{refused}");
    let ids = store.ids();
    let (_, state) = store.read(move |conn| dead_letters::find(conn, ids, id)).await.expect("readable").expect("there");
    assert_eq!(state, 3, "it holds its event no longer");
}

/// Goal: a retry that is due has its turn by its priority, however much of less urgent work was read ahead.
#[tokio::test(flavor = "multi_thread")]
async fn urgent_retries_go_before_what_was_read_ahead() {
    let spec = ConsumerSpec { concurrency: Concurrency::Parallel(1), ..spec("test/urgent", "a.b") };
    let steps = [Step::Hold, Step::Hold, Step::RetryAfter(50), Step::Hold];
    let (consumer, mut handle) = scripted(spec, &steps, Step::Done);
    let bench = start(vec![consumer], Vec::new()).await;
    let push = async |subject: &str, priority: Priority| {
        bench.push(NewEvent { priority, subject: Some(subject.to_owned()), ..event("a.b") }).await
    };
    push("first", Priority::Normal).await;
    assert_eq!(subject(&handle.next().await), "first");
    for _ in 0..130 {
        push("low", Priority::Low).await;
    }
    handle.gate.add_permits(1);
    assert_eq!(subject(&handle.next().await), "low");
    for _ in 0..300 {
        push("normal", Priority::Normal).await;
    }
    push("urgent", Priority::High).await;
    // The lane hears of it.
    tokio::time::sleep(Duration::from_millis(100)).await;
    handle.gate.add_permits(1);
    assert_eq!(subject(&handle.next().await), "urgent");
    assert_eq!(subject(&handle.next().await), "normal");
    tokio::time::sleep(Duration::from_millis(300)).await;
    handle.gate.add_permits(1);
    let mut before = 0;
    while subject(&handle.next().await) != "urgent" {
        before += 1;
    }
    assert!(before < 50, "{before} others went first");
}

/// Goal: every waiting retry of a parallel consumer runs when it is due, though nothing else wakes it.
#[tokio::test(flavor = "multi_thread")]
async fn all_waiting_retries_run() {
    let spec = ConsumerSpec { concurrency: Concurrency::Parallel(8), ..spec("test/waiting", "a.b") };
    let steps = [30, 60, 90, 120].map(Step::RetryAfter);
    let (consumer, _handle) = scripted(spec, &steps, Step::Done);
    let bench = start(vec![consumer], Vec::new()).await;
    let mut pushed = Vec::new();
    for _ in 0..4 {
        pushed.push(bench.push(event("a.b")).await);
    }
    for accepted in &pushed {
        assert_eq!(bench.ended(accepted).await[0].status, Status::Done);
    }
}

/// Goal: consumers of everything that all fail leave one dead letter each for the event, for each death of it and for what
/// the person is told of these, no more.
#[tokio::test(flavor = "multi_thread")]
async fn deaths_do_not_breed() {
    let (one, _one) = scripted(spec("test/one", "**"), &[], Step::Reject("no"));
    let (two, _two) = scripted(spec("test/two", "**"), &[], Step::Reject("no"));
    let bench = start(vec![one, two], Vec::new()).await;
    let accepted = bench.push(event("a.b")).await;
    bench.ended(&accepted).await;
    let letters = loop {
        let letters = bench.letters().await;
        if letters.len() >= 10 {
            break letters;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    };
    // A sentinel goes through the same lanes after everything that could still breed.
    let last = bench.push(event("c.d")).await;
    bench.ended(&last).await;
    assert_eq!(letters.len(), 10);
    let of_first = bench.letters().await.iter().filter(|l| l.event.trace.to_string() == accepted.trace_id).count();
    assert_eq!(of_first, 10, "two for the event, for each of its two deaths, for each of two notifications");
}

/// Goal: a consumer that goes and comes back goes on where it was, one at a time, and misses nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_comes_back_goes_on() {
    let (consumer, mut handle) = scripted(spec("test/back", "a.b"), &[Step::Hold], Step::Done);
    let again = consumer.clone();
    let bench = start(vec![consumer], Vec::new()).await;
    let mut pushed = Vec::new();
    for _ in 0..3 {
        pushed.push(bench.push(event("a.b")).await);
    }
    handle.next().await;
    bench.daemon.bus().unregister(&["test/back".to_owned()]).await;
    assert!(bench.deliveries(&bench.push(event("a.b")).await).await.is_empty(), "nobody listens now");
    bench.daemon.bus().register(vec![again]).await.expect("registered");
    assert_eq!(bench.deliveries(&pushed[1]).await[0].status, Status::Pending, "the first attempt still runs");
    handle.gate.add_permits(1);
    for accepted in &pushed {
        let record = bench.ended(accepted).await.remove(0);
        assert_eq!((record.status, record.attempt), (Status::Done, 1));
    }
}

/// Goal: consumers that come while others go are at work when they are registered, every time.
#[tokio::test(flavor = "multi_thread")]
async fn consumers_come_while_others_go() {
    let bench = start(Vec::new(), Vec::new()).await;
    let bus = bench.daemon.bus().clone();
    let going = tokio::spawn(async move {
        loop {
            bus.unregister(&["test/nobody".to_owned()]).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    for round in 0..30 {
        let named = |n: usize| scripted(spec(&format!("test/{round}-{n}"), &format!("r{round}.x")), &[], Step::Done).0;
        bench.daemon.bus().register((0..5).map(named).collect()).await.expect("registered");
        let accepted = bench.push(event(&format!("r{round}.x"))).await;
        let records = bench.ended(&accepted).await;
        assert_eq!((records.len(), records[0].status), (5, Status::Done), "{records:?}");
    }
    going.abort();
}

/// Goal: a panic in one change is that change's error; the writer goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_panic_does_not_end_the_writer() {
    let bench = start(Vec::new(), Vec::new()).await;
    let store = bench.daemon.bus().store();
    let panicked = store.write(|_| -> Result<(), aman::error::Error> { panic!("scripted") }).await;
    assert!(panicked.is_err());
    bench.push(event("a.b")).await;
}
