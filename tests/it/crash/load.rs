//! The load: clients that push, an operator that changes things, files that land, a reader that resumes.

use std::fmt::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fastrand::Rng;
use serde_json::Value;

use super::Shared;
use crate::harness::{Answer, Daemon, Stream, TOKEN, exchange, request};

/// Events for scripts that one thread pushes at the most: they are what takes long.
const SCRIPTED_MAX: usize = 90;
/// Events of one batch at the most.
const BATCH_MAX: usize = 12;

/// An event that was acknowledged.
#[derive(Debug, Clone)]
pub struct Acked {
    pub nonce: String,
    pub id: String,
    pub sequence: i64,
    pub kind: String,
    pub mode: &'static str,
    /// JSON text as it was sent.
    pub data: String,
}

/// A change that was asked for.
#[derive(Debug, Clone)]
pub struct Change {
    /// Its `x-aman-operator`.
    pub operator: String,
    pub path: String,
    /// The answer's status; none when there was no answer.
    pub status: Option<u16>,
}

/// Everything that the load did.
#[derive(Default)]
pub struct Load {
    pub acked: Vec<Acked>,
    /// Events that may or may not be there: pushed once without a key, and not answered.
    pub unanswered: Vec<String>,
    pub changes: Vec<Change>,
    /// Files that were dropped.
    pub files: usize,
}

/// An event before it is acknowledged.
struct Item {
    nonce: String,
    kind: &'static str,
    mode: &'static str,
    data: String,
    json: String,
}

/// How a push can be repeated when there was no answer.
#[derive(Clone, Copy, PartialEq)]
enum Key {
    None,
    Id,
    Dedup,
    Idempotency,
}

fn item(thread: u64, number: usize, scripted: &mut usize, key: Key, rng: &mut Rng) -> Item {
    let nonce = format!("{thread}-{number}");
    let act = *scripted < SCRIPTED_MAX && rng.u8(..6) == 0;
    *scripted += usize::from(act);
    let scripts = ["load.act", "load.act", "load.act", "load.turn", "load.reject", "load.flaky"];
    let other = if rng.u8(..60) == 0 { "load.switched" } else { "load.plain" };
    let kind = if act { scripts[rng.usize(..scripts.len())] } else { other };
    let mode = ["at_least_once", "exactly_once", "at_most_once"][rng.usize(..3)];
    // Written in a way that no JSON library would: kept as it is, or not kept.
    let padding = "x".repeat(if rng.u8(..50) == 0 { 20_000 } else { rng.usize(..40) });
    let data = format!(r#"{{"n":"{nonce}", "x":1.0,"e":1e2, "big":12345678901234567890123,"s":"\u00e9 {padding}"}}"#);
    let mut json =
        format!(r#"{{"specversion":"1.0","source":"load","type":"{kind}","data":{data},"delivery":"{mode}""#);
    let mut add = |name: &str, value: &str| write!(json, r#","{name}":"{value}""#).expect("a string takes anything");
    match key {
        Key::Id => add("id", &format!("load-{nonce}")),
        Key::Dedup => add("dedupkey", &format!("key-{nonce}")),
        Key::None | Key::Idempotency => {}
    }
    if rng.bool() {
        add("priority", ["low", "normal", "high"][rng.usize(..3)]);
    }
    if rng.bool() {
        add("partitionkey", ["a", "b", "c"][rng.usize(..3)]);
    }
    if act && rng.u8(..12) == 0 {
        add("expirytime", "2020-01-01T00:00:00Z");
    }
    json.push('}');
    Item { nonce, kind, mode, data, json }
}

/// Pushes until the load is over, and repeats what can be repeated until it is answered. Gives the nonces of what was
/// not answered.
pub fn push(shared: &Shared, thread: u64, mut rng: Rng) -> Vec<String> {
    let (mut number, mut scripted, mut newest, mut unanswered) = (0, 0, 0, Vec::new());
    while !shared.is_over() {
        let key = [Key::None, Key::Id, Key::Dedup, Key::Idempotency][rng.usize(..4)];
        let batch = rng.u8(..3) == 0;
        let count = if batch { rng.usize(1..=BATCH_MAX) } else { 1 };
        let items: Vec<Item> = (0..count).map(|n| item(thread, number + n, &mut scripted, key, &mut rng)).collect();
        number += count;
        match deliver(shared, &items, batch, key) {
            Some(answer) => newest = acknowledged(shared, items, &answer, newest),
            None => unanswered.extend(items.into_iter().map(|item| item.nonce)),
        }
        std::thread::sleep(Duration::from_millis(rng.u64(..6)));
    }
    unanswered
}

/// Sends a push, as often as its key allows; none when it was not answered.
fn deliver(shared: &Shared, items: &[Item], batch: bool, key: Key) -> Option<Answer> {
    let texts: Vec<&str> = items.iter().map(|item| item.json.as_str()).collect();
    let (body, form) = if batch {
        (format!("[{}]", texts.join(",")), "application/cloudevents-batch+json")
    } else {
        (texts.concat(), "application/cloudevents+json")
    };
    let idempotency = format!("request-{}", items[0].nonce);
    let mut headers = vec![("x-aman-token", TOKEN), ("content-type", form)];
    if key == Key::Idempotency {
        headers.push(("idempotency-key", &idempotency));
    }
    let bytes = request("POST", "/events/push", &headers, body.as_bytes());
    loop {
        match exchange(&shared.address(), &bytes) {
            Ok(answer) if answer.status == 202 => return Some(answer),
            // Refused before anything was stored.
            Ok(answer) if answer.status == 503 => {}
            Ok(answer) => panic!("a good push was refused: {answer:?}"),
            Err(_) if key == Key::None || shared.failed.load(Ordering::Acquire) => return None,
            Err(_) => {}
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Keeps what was acknowledged; new events have higher sequences than all before. Gives the highest.
fn acknowledged(shared: &Shared, items: Vec<Item>, answer: &Answer, mut newest: i64) -> i64 {
    let one = [answer.json.clone()];
    let accepted = answer.json["items"].as_array().map_or(&one[..], Vec::as_slice);
    assert_eq!(accepted.len(), items.len(), "{answer:?}");
    let mut acked = Vec::new();
    for (item, accepted) in items.into_iter().zip(accepted) {
        let sequence = accepted["sequence"].as_i64().expect("a sequence");
        assert!(sequence > newest, "{}: sequence {sequence} after {newest}: {accepted}", item.nonce);
        newest = sequence;
        assert_eq!(accepted["type"], item.kind);
        let id = accepted["id"].as_str().expect("an id").to_owned();
        let Item { nonce, kind, mode, data, .. } = item;
        acked.push(Acked { nonce, id, sequence, kind: kind.to_owned(), mode, data });
    }
    shared.acked.lock().expect("not poisoned").extend(acked);
    newest
}

/// Changes things that are audited until the load is over: retries and discards dead letters, switches a skill.
pub fn operate(shared: &Shared, mut rng: Rng) {
    for number in 0.. {
        if shared.is_over() {
            return;
        }
        let token = ("x-aman-token", TOKEN);
        let path = match rng.u8(..6) {
            0 => "/skill/switched/disable".to_owned(),
            1 => "/skill/switched/enable".to_owned(),
            2 => "/skill/nobody/enable".to_owned(),
            what => {
                let listed = exchange(&shared.address(), &request("GET", "/dlq?limit=20", &[token], b""));
                let letters = listed.map(|answer| answer.json["items"].clone()).unwrap_or_default();
                let letters = letters.as_array().into_iter().flatten();
                // A thrown away letter of the triage would be a file that nobody files.
                let letters = letters.filter(|letter| letter["event"]["source"] == "load");
                let ids: Vec<&str> = letters.filter_map(|letter| letter["id"].as_str()).collect();
                let id = rng.choice(&ids).copied().unwrap_or("none");
                format!("/dlq/{id}/{}", if what == 3 { "discard" } else { "retry" })
            }
        };
        let operator = format!("op-{number}");
        let headers = [token, ("x-aman-confirm", "yes"), ("x-aman-operator", &operator)];
        let answer = exchange(&shared.address(), &request("POST", &path, &headers, b"{}"));
        let status = answer.ok().map(|answer| answer.status);
        shared.changes.lock().expect("not poisoned").push(Change { operator, path, status });
        std::thread::sleep(Duration::from_millis(rng.u64(10..60)));
    }
}

/// Tries again what the triage of files was killed at five times.
pub fn revive_triage(daemon: &Daemon, shared: &Shared) {
    daemon.settle();
    for (number, letter) in daemon.all("/dlq?limit=1000&consumer=skill/inbox-triage").iter().enumerate() {
        assert_eq!(letter["reason"], "attempts_exhausted", "{letter}");
        let path = format!("/dlq/{}/retry", letter["id"].as_str().expect("an id"));
        let operator = format!("end-{number}");
        let headers = [("x-aman-token", TOKEN), ("x-aman-confirm", "yes"), ("x-aman-operator", operator.as_str())];
        let status = Some(daemon.send("POST", &path, &headers, None).status);
        shared.changes.lock().expect("not poisoned").push(Change { operator, path, status });
    }
}

/// Drops up to two files into the inbox, each in one step. Gives how many.
pub fn drop_files(home: &Path, from: usize, rng: &mut Rng) -> usize {
    let count = rng.usize(..3);
    for n in from..from + count {
        let making = home.join("dropping.tmp");
        std::fs::write(&making, format!("file {n}")).expect("a file");
        std::fs::rename(making, home.join(format!("inbox/drop-{n}.txt"))).expect("moved into the inbox");
    }
    count
}

/// Reads the stream from the beginning and resumes after each cut until `end`: (sequence, id) of every event.
pub fn read_stream(shared: &Shared, end: &AtomicBool) -> Vec<(i64, String)> {
    let mut seen: Vec<(i64, String)> = Vec::new();
    let token = format!("Bearer {TOKEN}");
    loop {
        // Once nothing is added any more, one whole reading without a new frame is the end.
        let last_round = end.load(Ordering::Acquire);
        let before = seen.len();
        let cursor = seen.last().map_or(0, |(sequence, _)| *sequence).to_string();
        let headers = [("authorization", token.as_str()), ("last-event-id", &cursor)];
        if let Ok(mut stream) = Stream::connect(&shared.address(), "/events/stream", &headers) {
            stream.set_patience(Duration::from_secs(1));
            while let Ok(frame) = stream.try_next() {
                assert_ne!(frame.event, "aman.reset", "{frame:?}");
                let sequence: i64 = frame.id.parse().expect("a sequence");
                assert!(seen.last().is_none_or(|(last, _)| sequence > *last), "{sequence} came again: {frame:?}");
                assert_eq!(frame.data["amansequence"], Value::String(frame.id));
                seen.push((sequence, frame.data["id"].as_str().expect("an id").to_owned()));
            }
        }
        if last_round && seen.len() == before {
            return seen;
        }
    }
}
