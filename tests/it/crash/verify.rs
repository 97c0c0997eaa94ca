//! What must hold after the last kill, read through the API.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::load::{Acked, Load};
use crate::harness::{Daemon, say};

/// A stored event as `/events/recent` shows it, its data as text.
#[derive(Deserialize)]
struct Stored {
    id: String,
    source: String,
    #[serde(rename = "type")]
    kind: String,
    amansequence: String,
    data: Option<Box<RawValue>>,
    causationid: Option<String>,
    partitionkey: Option<String>,
}

impl Stored {
    fn sequence(&self) -> i64 {
        self.amansequence.parse().expect("a sequence")
    }

    fn data(&self) -> Value {
        self.data.as_ref().map_or(Value::Null, |raw| serde_json::from_str(raw.get()).expect("JSON"))
    }
}

#[derive(Deserialize)]
struct Page {
    items: Vec<Stored>,
    next_cursor: Option<String>,
}

/// A delivery with what the test knows of it.
struct Delivery {
    event: usize,
    consumer: String,
    id: String,
    status: String,
    /// How often its dead letter was, or may have been, tried again.
    retries: usize,
    cut_off: bool,
}

/// Waits until every dropped file was told, filed, and told to be gone.
pub fn wait_for_files(daemon: &Daemon, files: usize) {
    let wanted = ["file.created", "file.removed", "document.filed"];
    daemon.wait(&format!("{files} files to be filed"), || {
        let types = daemon.get("/events/types?limit=1000").items();
        let count = |kind: &str| types.iter().find(|seen| seen["type"] == kind).and_then(|seen| seen["count"].as_u64());
        wanted.iter().all(|kind| count(kind).unwrap_or(0) >= files as u64).then_some(())
    });
}

/// Every event, in order of its sequence.
fn history(daemon: &Daemon) -> Vec<Stored> {
    let (mut all, mut cursor) = (Vec::new(), String::new());
    loop {
        let answer = daemon.get(&format!("/events/recent?limit=1000&cursor={cursor}"));
        let page: Page = serde_json::from_slice(&answer.body).unwrap_or_else(|error| panic!("{error}: {answer:?}"));
        all.extend(page.items);
        match page.next_cursor {
            Some(next) => cursor = next,
            None => break,
        }
    }
    all.reverse();
    assert!(all.windows(2).all(|two| two[0].sequence() < two[1].sequence()), "sequences grow and are unique");
    let ids: HashSet<(&str, &str)> = all.iter().map(|event| (event.source.as_str(), event.id.as_str())).collect();
    assert_eq!(ids.len(), all.len(), "ids are unique");
    all
}

/// Checks everything; `streamed` is what the stream showed.
pub fn everything(daemon: &Daemon, load: &Load, streamed: &[(i64, String)]) {
    let history = history(daemon);
    let known: Vec<(i64, String)> = history.iter().map(|event| (event.sequence(), event.id.clone())).collect();
    assert!(known == streamed, "the stream shows {} events, the list {}", streamed.len(), known.len());
    pushed(load, &history);
    files(&history, load.files);
    let deliveries = deliveries(daemon, load, &history);
    effects(&history, &deliveries);
    deaths(daemon, load, &history, &deliveries);
    runs(daemon, load, &history, &deliveries);
    order(&history, &deliveries);
    audit(daemon, load);
    let cut_off = deliveries.iter().filter(|delivery| delivery.cut_off).count();
    assert!(cut_off > 0, "no kill cut an attempt off: this run has shown nothing about scripts");
    say(&format!(
        "{} events, {} acknowledged, {} unanswered, {} deliveries, {cut_off} cut off, {} changes, {} files",
        history.len(),
        load.acked.len(),
        load.unanswered.len(),
        deliveries.len(),
        load.changes.len(),
        load.files
    ));
}

/// What was acknowledged is there once, as it was sent; what was not is there at most once; there is nothing else.
fn pushed(load: &Load, history: &[Stored]) {
    let mut by_nonce: HashMap<String, Vec<&Stored>> = HashMap::new();
    for event in history.iter().filter(|event| event.source == "load") {
        let nonce = event.data()["n"].as_str().expect("a nonce").to_owned();
        by_nonce.entry(nonce).or_default().push(event);
    }
    for (nonce, events) in &by_nonce {
        assert_eq!(events.len(), 1, "{nonce} is there {} times", events.len());
    }
    for acked in &load.acked {
        let event = by_nonce.remove(&acked.nonce).unwrap_or_else(|| panic!("acknowledged and lost: {acked:?}"))[0];
        let told = (event.id.as_str(), event.sequence(), event.kind.as_str());
        assert_eq!(told, (acked.id.as_str(), acked.sequence, acked.kind.as_str()));
        assert_eq!(event.data.as_ref().map(|raw| raw.get()), Some(acked.data.as_str()), "{acked:?}");
    }
    for nonce in by_nonce.keys() {
        assert!(load.unanswered.contains(nonce), "{nonce} was never sent, or answered twice");
    }
}

/// Each file was told once, filed once, and told to be gone once.
fn files(history: &[Stored], files: usize) {
    for (kind, field) in [("file.created", "path"), ("document.filed", "from"), ("file.removed", "path")] {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for event in history.iter().filter(|event| event.kind == kind) {
            *counts.entry(event.data()[field].as_str().expect("a path").to_owned()).or_default() += 1;
        }
        assert_eq!((counts.len(), counts.values().sum::<usize>()), (files, files), "{kind}: {counts:?}");
    }
}

/// Every delivery of the events that can have some; each has ended.
fn deliveries(daemon: &Daemon, load: &Load, history: &[Stored]) -> Vec<Delivery> {
    let mut found = Vec::new();
    for (event, stored) in history.iter().enumerate() {
        if stored.kind == "load.plain" {
            continue;
        }
        let dump = daemon.get(&format!("/events/dump/{}", stored.id));
        for one in dump.json["deliveries"].as_array().unwrap_or_else(|| panic!("{dump:?}")) {
            let text = |name: &str| one[name].as_str().unwrap_or_default().to_owned();
            let (id, status) = (text("id"), text("status"));
            let ended = ["done", "expired", "dead", "discarded"].contains(&status.as_str());
            assert!(ended && one["ended_at"].is_string(), "{}: {one}", stored.id);
            let retry = format!("/dlq/{id}/retry");
            let asked = load.changes.iter().filter(|c| c.path == retry && c.status.is_none_or(|status| status == 200));
            let cut_off = one["failures"].to_string().contains("cut off");
            found.push(Delivery { event, consumer: text("consumer"), retries: asked.count(), id, status, cut_off });
        }
        let consumers: HashSet<&str> = found.iter().filter(|d| d.event == event).map(|d| d.consumer.as_str()).collect();
        assert_eq!(consumers.len(), dump.json["deliveries"].as_array().map_or(0, Vec::len), "one each: {dump:?}");
    }
    found
}

const SCRIPTED: [&str; 2] = ["skill/side-by-side", "skill/in-turn"];

/// A delivery that is done has had its one effect; any other has had none.
fn effects(history: &[Stored], deliveries: &[Delivery]) {
    let mut counts: HashMap<(&str, &str), usize> = HashMap::new();
    for event in history.iter().filter(|event| event.kind == "load.effect") {
        let cause = event.causationid.as_deref().expect("a cause");
        assert_eq!(event.data()["cause"], cause);
        *counts.entry((event.source.as_str(), cause)).or_default() += 1;
    }
    for delivery in deliveries.iter().filter(|delivery| SCRIPTED.contains(&delivery.consumer.as_str())) {
        let cause = history[delivery.event].id.as_str();
        let count = counts.remove(&(delivery.consumer.as_str(), cause)).unwrap_or(0);
        let expected = usize::from(delivery.status == "done");
        assert_eq!(count, expected, "{} of {cause} is {} and has {count} effects", delivery.consumer, delivery.status);
    }
    assert!(counts.is_empty(), "effects without a delivery: {counts:?}");
}

/// Each death is told once, and has a reason that the delivery mode allows.
fn deaths(daemon: &Daemon, load: &Load, history: &[Stored], deliveries: &[Delivery]) {
    let mut told: HashMap<String, usize> = HashMap::new();
    for event in history.iter().filter(|event| event.kind == "aman.delivery.dead") {
        *told.entry(event.data()["delivery_id"].as_str().expect("a delivery").to_owned()).or_default() += 1;
    }
    for delivery in deliveries {
        let count = told.remove(&delivery.id).unwrap_or(0);
        let is_dead = ["dead", "discarded"].contains(&delivery.status.as_str());
        let range = usize::from(is_dead)..=usize::from(is_dead) + delivery.retries;
        assert!(range.contains(&count), "{} is {}: {count} deaths told", delivery.id, delivery.status);
    }
    assert!(told.is_empty(), "deaths of nobody: {told:?}");
    let modes: HashMap<&str, &Acked> = load.acked.iter().map(|acked| (acked.id.as_str(), acked)).collect();
    let letters = daemon.all("/dlq?limit=50");
    for letter in &letters {
        let id = letter["event"]["id"].as_str().expect("an id");
        let (reason, mode) = (letter["reason"].as_str().expect("a reason"), modes.get(id).map(|acked| acked.mode));
        let allowed: &[&str] = match mode {
            Some("at_most_once") => &["interrupted", "rejected", "attempts_exhausted"],
            Some("exactly_once") => &["unknown_outcome", "rejected", "attempts_exhausted"],
            Some(_) => &["rejected", "attempts_exhausted"],
            // Pushed and not answered: its mode is not in the list.
            None => continue,
        };
        assert!(allowed.contains(&reason), "{reason} with {mode:?}: {letter}");
    }
    let dead = deliveries.iter().filter(|delivery| delivery.status == "dead").count();
    assert_eq!(letters.len(), dead, "the list of dead letters holds the dead deliveries");
}

/// What must not be repeated ran once, and once more for each time that the operator asked for it.
fn runs(daemon: &Daemon, load: &Load, history: &[Stored], deliveries: &[Delivery]) {
    let log = std::fs::read_to_string(daemon.home().join("runs/log")).expect("scripts have run");
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for line in log.lines() {
        *counts.entry(line.split_once(' ').expect("event and delivery").1).or_default() += 1;
    }
    let modes: HashMap<&str, &Acked> = load.acked.iter().map(|acked| (acked.id.as_str(), acked)).collect();
    for delivery in deliveries.iter().filter(|delivery| SCRIPTED.contains(&delivery.consumer.as_str())) {
        let count = counts.get(delivery.id.as_str()).copied().unwrap_or(0);
        assert!(delivery.status != "done" || count > 0, "{} is done and never ran", delivery.id);
        let Some(acked) = modes.get(history[delivery.event].id.as_str()) else { continue };
        let once = match acked.mode {
            "at_most_once" => true,
            // Repeated after a failure of its own only.
            "exactly_once" => acked.kind != "load.flaky",
            _ => false,
        };
        assert!(!once || count <= 1 + delivery.retries, "{} of {acked:?} ran {count} times", delivery.id);
    }
}

/// Effects come in the order of their causes: all of a serial consumer's, and those with the same key of the other one.
fn order(history: &[Stored], deliveries: &[Delivery]) {
    let effects: HashMap<(&str, &str), i64> = history
        .iter()
        .filter(|event| event.kind == "load.effect")
        .map(|event| ((event.source.as_str(), event.causationid.as_deref().unwrap_or_default()), event.sequence()))
        .collect();
    let mut lines: BTreeMap<(&str, &str), Vec<i64>> = BTreeMap::new();
    // What the operator tried again is out of order because he wanted it.
    for delivery in deliveries.iter().filter(|delivery| delivery.status == "done" && delivery.retries == 0) {
        let (event, consumer) = (&history[delivery.event], delivery.consumer.as_str());
        let line = match (consumer, event.partitionkey.as_deref()) {
            ("skill/in-turn", _) => "",
            ("skill/side-by-side", Some(key)) => key,
            _ => continue,
        };
        lines.entry((consumer, line)).or_default().push(effects[&(consumer, event.id.as_str())]);
    }
    assert_eq!(lines.len(), 4, "{lines:?}");
    for (line, effects) in lines {
        assert!(effects.is_sorted(), "{line:?} is out of order: {effects:?}");
    }
}

/// The chain is whole; each change that was answered has exactly one record, any other at most one.
fn audit(daemon: &Daemon, load: &Load) {
    let mut records = daemon.all("/audit-log?limit=100");
    records.reverse();
    for (n, record) in records.iter().enumerate() {
        assert_eq!(record["seq"], n + 1, "numbers have no gaps");
        assert!(n == 0 || record["prev_hash"] == records[n - 1]["hash"], "{record}");
    }
    let verdict = daemon.get("/audit-log/verify").json;
    assert_eq!((&verdict["ok"], &verdict["checked"]), (&Value::Bool(true), &Value::from(records.len())), "{verdict}");
    let mut by_operator: HashMap<&str, Vec<&Value>> = HashMap::new();
    for record in &records {
        by_operator.entry(record["claimed_operator"].as_str().unwrap_or("")).or_default().push(record);
    }
    for change in &load.changes {
        let found = by_operator.get(change.operator.as_str()).map_or(&[][..], Vec::as_slice);
        match change.status {
            Some(status) => {
                assert_eq!(found.len(), 1, "{change:?}: {found:?}");
                assert_eq!(found[0]["status"], status, "{change:?}: {found:?}");
            }
            None => assert!(found.len() <= 1, "{change:?}: {found:?}"),
        }
    }
}
