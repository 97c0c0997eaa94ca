//! Random operations through the API, compared with a small model of what the bus must do.

mod compare;

use std::collections::{BTreeMap, HashMap};

use fastrand::Rng;
use serde_json::{Value, json};

use crate::harness::{Answer, Daemon, Folder, Seed, TOKEN, write_skill};

/// Operations of one run.
const OPERATIONS: usize = 300;
/// Operations between two comparisons.
const COMPARE_EVERY: usize = 12;

/// Has one effect for each even `n`.
const EVEN: &str = "skill/even";
/// Takes every `m.*`; rejects what is bad while the file `heal/on` is not there.
const PICKY: &str = "skill/picky";

/// A delivery in the model.
#[derive(Debug, Clone, PartialEq)]
struct Delivery {
    /// `open`, or as the daemon names its end.
    status: &'static str,
    /// How often it was given up.
    deaths: u64,
    /// A kill may have cut an attempt off, which then counts as one.
    cut: bool,
}

/// An event in the model.
#[derive(Debug, Clone)]
struct Event {
    id: String,
    sequence: i64,
    trace: String,
    source: &'static str,
    kind: &'static str,
    data: Value,
    expired: bool,
    /// What was decided for whom when it was stored.
    reasons: BTreeMap<&'static str, &'static str>,
    deliveries: BTreeMap<&'static str, Delivery>,
    /// For an event that has had an effect: what was decided for the effect.
    effect: Option<&'static str>,
}

impl Event {
    /// As `/events/{id}/why` says it.
    fn status(&self) -> &'static str {
        let any = |status: &str| self.deliveries.values().any(|delivery| delivery.status == status);
        match () {
            () if any("open") => "pending",
            () if any("dead") => "dead_lettered",
            () if any("expired") => "expired",
            () if self.deliveries.is_empty() => "unmatched",
            () => "handled",
        }
    }
}

/// What the daemon must hold.
#[derive(Default)]
struct Model {
    events: Vec<Event>,
    /// Place of the event that has the key: (source, `id:` or `key:` and the key).
    keys: HashMap<(&'static str, String), usize>,
    even_on: bool,
    picky_on: bool,
    healed: bool,
    /// Audit records.
    records: usize,
    /// Pushes with an `Idempotency-Key`: key, body, answer.
    answered: Vec<(String, Value, Value)>,
}

impl Model {
    fn decide(&self, kind: &str, data: &Value) -> BTreeMap<&'static str, &'static str> {
        let mut reasons = BTreeMap::new();
        if kind == "m.a" || kind == "m.b" {
            let reason = match data["n"].as_i64() {
                _ if !self.even_on => "disabled",
                None => "condition_error",
                Some(n) if n % 2 == 0 => "matched",
                Some(_) => "condition_false",
            };
            reasons.insert(EVEN, reason);
        }
        if kind.starts_with("m.") && kind.split('.').count() == 2 {
            reasons.insert(PICKY, if self.picky_on { "matched" } else { "disabled" });
        }
        reasons
    }

    /// Takes a pushed event and what was answered for it.
    fn push(&mut self, sent: &Sent, accepted: &Value) {
        let keys = [("id", &sent.id), ("key", &sent.dedup_key)];
        let keys: Vec<_> = keys
            .into_iter()
            .filter_map(|(what, key)| Some((sent.source, format!("{what}:{}", key.as_ref()?))))
            .collect();
        let told = (accepted["id"].as_str().expect("an id"), accepted["sequence"].as_i64().expect("a sequence"));
        if let Some(first) = keys.iter().find_map(|key| self.keys.get(key)) {
            let first = &self.events[*first];
            assert_eq!((told.0, told.1), (first.id.as_str(), first.sequence), "{accepted}");
            assert_eq!(accepted["deduplicated"], true, "{accepted}");
            return;
        }
        assert_eq!(accepted["deduplicated"], false, "{accepted}");
        assert!(self.events.last().is_none_or(|last| last.sequence < told.1), "{accepted}");
        let reasons = self.decide(sent.kind, &sent.data);
        let matched = reasons.iter().filter(|(_, reason)| **reason == "matched");
        let deliveries =
            matched.map(|(consumer, _)| (*consumer, Delivery { status: "open", deaths: 0, cut: false })).collect();
        self.keys.extend(keys.into_iter().map(|key| (key, self.events.len())));
        self.events.push(Event {
            id: told.0.to_owned(),
            sequence: told.1,
            trace: accepted["trace_id"].as_str().expect("a trace").to_owned(),
            source: sent.source,
            kind: sent.kind,
            data: sent.data.clone(),
            expired: sent.expired,
            reasons,
            deliveries,
            effect: None,
        });
    }

    /// Ends what is open, as the consumers do.
    fn settle(&mut self) {
        let (healed, picky_on) = (self.healed, self.picky_on);
        for event in &mut self.events {
            let bad = event.data["bad"] == true && !healed;
            for (consumer, delivery) in &mut event.deliveries {
                match delivery.status {
                    "open" if event.expired => delivery.status = "expired",
                    "open" if *consumer == PICKY && bad => {
                        (delivery.status, delivery.deaths) = ("dead", delivery.deaths + 1);
                    }
                    "open" => {
                        delivery.status = "done";
                        if *consumer == EVEN {
                            event.effect = Some(if picky_on { "matched" } else { "disabled" });
                        }
                    }
                    _ => {}
                }
            }
        }
    }
}

/// An event that is pushed.
#[derive(Clone)]
struct Sent {
    source: &'static str,
    kind: &'static str,
    data: Value,
    id: Option<String>,
    dedup_key: Option<String>,
    expired: bool,
}

impl Sent {
    fn random(rng: &mut Rng) -> Sent {
        let kinds = ["m.a", "m.a", "m.b", "m.c", "m.c.deep", "x.y", "x.z", "x.y.z"];
        let mut data = json!({ "n": rng.i64(0..10) });
        if rng.u8(..3) == 0 {
            data["bad"] = true.into();
        }
        if rng.u8(..8) == 0 {
            data = json!("no object");
        }
        // Few keys, so that some come again.
        let key = |rng: &mut Rng| (rng.u8(..4) == 0).then(|| rng.u8(..20).to_string());
        Sent {
            source: ["s1", "s2"][rng.usize(..2)],
            kind: kinds[rng.usize(..kinds.len())],
            data,
            id: key(rng).map(|key| format!("i/{key}")),
            dedup_key: key(rng),
            expired: rng.u8(..15) == 0,
        }
    }

    fn body(&self) -> Value {
        let mut body = json!({ "specversion": "1.0", "source": self.source, "type": self.kind, "data": self.data });
        for (name, value) in [("id", &self.id), ("dedupkey", &self.dedup_key)] {
            if let Some(value) = value {
                body[name] = value.as_str().into();
            }
        }
        if self.expired {
            body["expirytime"] = "2020-01-01T00:00:00Z".into();
        }
        body
    }
}

/// The daemon beside its model.
struct Run {
    daemon: Daemon,
    model: Model,
    rng: Rng,
}

impl Run {
    fn start(folder: &Folder, rng: Rng) -> Run {
        let home = folder.path();
        let even =
            r#"cat > /dev/null; printf '{"publish": [{"type": "m.effect", "data": {"of": "%s"}}]}' "$AMAN_EVENT_ID""#;
        write_skill(home, "even", &["aman.on: m.a m.b", "aman.when: '.data.n % 2 == 0'"], even);
        let picky = r#"case $(cat) in *'"bad":true'*) [ -e "$AMAN_DATA/heal/on" ] || exit 65 ;; esac"#;
        write_skill(
            home,
            "picky",
            &["aman.on: m.*", "aman.permissions: read:$AMAN_DATA/heal", "aman.concurrency: \"4\""],
            picky,
        );
        std::fs::create_dir(home.join("heal")).expect("a folder");
        let daemon = Daemon::start_in(home);
        assert_eq!(daemon.post("/skill/dlq-summary/disable", &json!({})).status, 200);
        Run { daemon, model: Model { even_on: true, picky_on: true, records: 1, ..Model::default() }, rng }
    }

    fn settle(&mut self) {
        self.daemon.settle();
        self.model.settle();
    }

    fn push(&self, headers: &[(&str, &str)], body: &Value) -> Answer {
        let token = ("x-aman-token", TOKEN);
        let form = if body.is_array() { "application/cloudevents-batch+json" } else { "application/cloudevents+json" };
        let headers = [&[token, ("content-type", form)], headers].concat();
        self.daemon.send("POST", "/events/push", &headers, Some(body))
    }

    fn push_one(&mut self) {
        let sent = Sent::random(&mut self.rng);
        let answer = self.push(&[], &sent.body());
        assert_eq!(answer.status, 202, "{answer:?}");
        self.model.push(&sent, &answer.json);
    }

    fn push_batch(&mut self) {
        let count = self.rng.usize(1..6);
        let mut batch: Vec<Sent> = (0..count).map(|_| Sent::random(&mut self.rng)).collect();
        let again = self.rng.choice(&batch).cloned();
        batch.extend(again);
        let body: Vec<Value> = batch.iter().map(Sent::body).collect();
        let answer = self.push(&[], &body.into());
        assert_eq!(answer.status, 202, "{answer:?}");
        for (sent, accepted) in batch.iter().zip(answer.items()) {
            self.model.push(sent, &accepted);
        }
    }

    fn push_with_key(&mut self) {
        if let Some((key, body, first)) = self.rng.choice(&self.model.answered).cloned() {
            let again = self.push(&[("idempotency-key", &key)], &body);
            assert_eq!((again.status, &again.json), (202, &first), "{key}");
            let body = Sent::random(&mut self.rng).body();
            let other = self.push(&[("idempotency-key", &key)], &body);
            assert!(other.status == 422 && other.code() == "idempotency_mismatch" || other.json == first, "{other:?}");
        }
        let (key, sent) = (format!("k-{}", self.rng.u32(..)), Sent::random(&mut self.rng));
        let answer = self.push(&[("idempotency-key", &key)], &sent.body());
        assert_eq!(answer.status, 202, "{answer:?}");
        self.model.push(&sent, &answer.json);
        self.model.answered.push((key, sent.body(), answer.json));
    }

    fn push_nothing(&mut self) {
        let good = Sent::random(&mut self.rng).body();
        let mut bad = good.clone();
        bad["type"] = "not..good".into();
        assert_eq!(self.push(&[], &bad).status, 400);
        let answer = self.push(&[], &json!([good, bad]));
        assert_eq!((answer.status, answer.fields()), (400, vec!["/1/type"]), "{answer:?}");
        let dry = self.daemon.call("POST", "/events/push?dry_run=true", Some(&good));
        assert_eq!((dry.status, &dry.json["dry_run"]), (200, &json!(true)), "{dry:?}");
    }

    /// A change of a dead letter, or of what is none.
    fn decide_letter(&mut self, what: &str) {
        self.settle();
        let letters = self.daemon.all("/dlq?limit=7");
        self.model.records += 1;
        let Some(letter) = self.rng.choice(&letters).cloned() else {
            let answer = self.daemon.post_confirmed(&format!("/dlq/none/{what}"), &json!({}));
            assert_eq!((answer.status, answer.code()), (404, "not_found"));
            return;
        };
        let path = format!("/dlq/{}/{what}", letter["id"].as_str().expect("an id"));
        let answer = self.daemon.post_confirmed(&path, &json!({ "reason": "model" }));
        assert_eq!((answer.status, &answer.json["event_id"]), (200, &letter["event"]["id"]), "{answer:?}");
        let sequence = letter["event"]["amansequence"].as_str().and_then(|text| text.parse().ok());
        let is_it = |event: &&mut Event| Some(event.sequence) == sequence;
        let event = self.model.events.iter_mut().find(is_it).expect("a letter of a known event");
        let delivery = event.deliveries.get_mut(PICKY).expect("only this one rejects");
        assert_eq!(delivery.status, "dead", "{letter}");
        delivery.status = if what == "retry" { "open" } else { "discarded" };
        if what == "discard" {
            self.model.records += 1;
            let again = self.daemon.post_confirmed(&path, &json!({}));
            assert_eq!((again.status, again.code()), (409, "invalid_state"), "{again:?}");
        }
    }

    fn retry_group(&mut self) {
        self.settle();
        let groups = self.daemon.get("/dlq/groups?limit=1000").items();
        self.model.records += 1;
        let fingerprint = groups.first().map_or("none", |group| group["fingerprint"].as_str().expect("a fingerprint"));
        let answer = self.daemon.post_confirmed("/dlq/retry", &json!({ "fingerprint": fingerprint }));
        let mut dead = 0;
        for event in &mut self.model.events {
            for delivery in event.deliveries.values_mut().filter(|delivery| delivery.status == "dead") {
                delivery.status = "open";
                dead += 1;
            }
        }
        match dead {
            0 => assert_eq!(answer.status, 404, "{answer:?}"),
            // All rejections have the same cause.
            dead => assert_eq!((answer.status, &answer.json["retried"]), (200, &json!(dead)), "{answer:?}"),
        }
    }

    fn set(&mut self, name: &str, on: bool) {
        // What is open would wait for as long as its consumer is off.
        self.settle();
        self.model.records += 1;
        let path = format!("/skill/{name}/{}", if on { "enable" } else { "disable" });
        let answer = self.daemon.post(&path, &json!({}));
        assert_eq!((answer.status, &answer.json["enabled"]), (200, &json!(on)), "{answer:?}");
    }

    fn switch(&mut self) {
        if self.rng.bool() {
            // More often on than off.
            let on = !self.model.even_on || self.rng.bool();
            self.set("even", on);
            self.model.even_on = on;
        } else {
            self.set("picky", false);
            self.model.picky_on = false;
            self.push_one();
            self.set("picky", true);
            self.model.picky_on = true;
        }
    }

    fn step(&mut self) {
        match self.rng.u8(..100) {
            0..40 => self.push_one(),
            40..52 => self.push_batch(),
            52..58 => self.push_with_key(),
            58..63 => self.push_nothing(),
            63..73 => self.decide_letter("retry"),
            73..78 => self.decide_letter("discard"),
            78..81 => self.retry_group(),
            81..90 => self.switch(),
            90..94 => {
                self.settle();
                self.model.healed = !self.model.healed;
                let mark = self.daemon.home().join("heal/on");
                let done = if self.model.healed { std::fs::write(mark, "") } else { std::fs::remove_file(mark) };
                done.expect("the mark is set");
            }
            94..97 => {
                let all = self.model.events.iter_mut().flat_map(|event| event.deliveries.values_mut());
                all.filter(|delivery| delivery.status == "open").for_each(|delivery| delivery.cut = true);
                self.daemon.kill();
                self.daemon.again();
            }
            _ => {
                assert_eq!(self.daemon.terminate(), Some(0));
                self.daemon.again();
            }
        }
    }
}

/// Goal: whatever is done in whatever order, the daemon holds and shows what the model says.
#[test]
fn random_operations() {
    let seed = Seed::take();
    let folder = Folder::new("model");
    let mut run = Run::start(&folder, seed.rng(0));
    for number in 1..=OPERATIONS {
        run.step();
        if number % COMPARE_EVERY == 0 {
            run.settle();
            run.compare();
        }
    }
}
