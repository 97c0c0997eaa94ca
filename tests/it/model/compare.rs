//! What the daemon shows, compared with the model while nothing is under way.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{Delivery, EVEN, Event, PICKY, Run};

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_else(|| panic!("{name} is no text in {value}"))
}

/// True when the pattern takes the type: the rule once more, in other words.
fn fits(pattern: &str, kind: &str) -> bool {
    let (mut pattern, mut kind) = (pattern.split('.'), kind.split('.'));
    loop {
        match (pattern.next(), kind.next()) {
            (Some("**"), Some(_)) => return true,
            (Some(segment), Some(given)) if segment == "*" || segment == given => {}
            (None, None) => return true,
            _ => return false,
        }
    }
}

impl Run {
    /// Compares everything.
    pub fn compare(&mut self) {
        let history = self.history();
        self.compare_filters(&history);
        self.compare_types(&history);
        for _ in 0..4 {
            if let Some(event) = self.rng.choice(&self.model.events).cloned() {
                self.compare_event(&event, &history);
            }
        }
        self.compare_letters();
        let records = self.daemon.all(&format!("/audit-log?limit={}", self.rng.usize(1..60)));
        assert_eq!(records.len(), self.model.records, "audit records: {:?}", &records[..records.len().min(4)]);
        let verdict = self.daemon.get("/audit-log/verify").json;
        assert_eq!((&verdict["ok"], &verdict["checked"]), (&json!(true), &json!(records.len())));
        let skill = self.daemon.get("/skill/even").json;
        assert_eq!(skill["enabled"], self.model.even_on, "{skill}");
    }

    /// Every event, newest first; the model's are among them in their order, each effect is there once.
    fn history(&mut self) -> Vec<Value> {
        let limit = self.rng.usize(20..200);
        let history = self.daemon.all(&format!("/events/recent?limit={limit}"));
        let sequences: Vec<i64> =
            history.iter().map(|event| text(event, "amansequence").parse().expect("a number")).collect();
        assert!(sequences.windows(2).all(|two| two[0] > two[1]), "newest first, no doubles");
        let status = self.daemon.get("/runtime/status").json;
        assert_eq!(status["sequence"].as_i64(), sequences.first().copied().or(Some(0)), "{status}");
        let pushed: Vec<(&str, &str, &Value)> = history
            .iter()
            .rev()
            .filter(|event| ["s1", "s2"].contains(&text(event, "source")))
            .map(|event| (text(event, "id"), text(event, "type"), &event["data"]))
            .collect();
        let known: Vec<_> =
            self.model.events.iter().map(|event| (event.id.as_str(), event.kind, &event.data)).collect();
        assert_eq!(pushed, known);
        let mut caused: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        for event in history.iter().filter(|event| event["causationid"].is_string()) {
            *caused.entry((text(event, "type"), text(event, "correlationid"))).or_default() += 1;
        }
        for event in &self.model.events {
            // Several sources may use an id: what they caused is counted together.
            let same: Vec<&Event> = self.model.events.iter().filter(|other| other.id == event.id).collect();
            let effects = same.iter().filter(|event| event.effect.is_some()).count() as u64;
            let deaths = same.iter().flat_map(|event| event.deliveries.values()).map(|delivery| delivery.deaths).sum();
            let count = |kind: &str| caused.get(&(kind, event.id.as_str())).copied().unwrap_or(0);
            assert_eq!((count("m.effect"), count("aman.delivery.dead")), (effects, deaths), "{event:?}");
        }
        history
    }

    fn compare_filters(&mut self, history: &[Value]) {
        let patterns = ["m.*", "m.**", "*.a", "x.y", "x.*.z", "**", "*", "aman.**", "m.a,x.z", "nobody.here"];
        let wanted = patterns[self.rng.usize(..patterns.len())];
        let source = ["", "s1", "s2", "skill/even", "nobody"][self.rng.usize(..5)];
        let limit = self.rng.usize(1..50);
        let found = self.daemon.all(&format!("/events/recent?limit={limit}&types={wanted}&source={source}"));
        let expected: Vec<&Value> = history
            .iter()
            .filter(|event| wanted.split(',').any(|pattern| fits(pattern, text(event, "type"))))
            .filter(|event| source.is_empty() || event["source"] == source)
            .collect();
        assert_eq!(found.iter().collect::<Vec<_>>(), expected, "types={wanted} source={source}");
    }

    fn compare_types(&mut self, history: &[Value]) {
        let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
        for event in history {
            *counts.entry(text(event, "type")).or_default() += 1;
        }
        let limit = self.rng.usize(1..6);
        let shown = self.daemon.all(&format!("/events/types?limit={limit}"));
        let shown: Vec<(&str, u64)> =
            shown.iter().map(|seen| (text(seen, "type"), seen["count"].as_u64().expect("a count"))).collect();
        assert_eq!(shown, counts.into_iter().collect::<Vec<_>>());
    }

    fn compare_event(&self, event: &Event, history: &[Value]) {
        let id = event.id.replace('/', "%2F");
        let ambiguous = self.model.events.iter().filter(|other| other.id == event.id).count() > 1;
        if ambiguous {
            let answer = self.daemon.get(&format!("/events/dump/{id}"));
            assert_eq!((answer.status, answer.code()), (409, "ambiguous_id"), "{answer:?}");
        }
        let dump = self.daemon.get(&format!("/events/dump/{id}?source={}", event.source)).json;
        let sequence = event.sequence.to_string();
        let listed = history.iter().find(|one| one["amansequence"] == sequence.as_str());
        assert_eq!(Some(&dump["event"]), listed);
        let deliveries: BTreeMap<&str, &str> = dump["deliveries"]
            .as_array()
            .unwrap_or_else(|| panic!("{dump}"))
            .iter()
            .map(|delivery| (text(delivery, "consumer"), text(delivery, "status")))
            .collect();
        let known: BTreeMap<&str, &str> =
            event.deliveries.iter().map(|(consumer, delivery)| (*consumer, delivery.status)).collect();
        assert_eq!(deliveries, known, "{event:?}");
        self.compare_why(event, &id, history);
        if !ambiguous {
            self.compare_trace(event, history);
        }
    }

    fn compare_why(&self, event: &Event, id: &str, history: &[Value]) {
        let why = self.daemon.get(&format!("/events/{id}/why?source={}", event.source)).json;
        assert_eq!(why["status"], event.status(), "{event:?}: {why}");
        let considered = |list: &Value| -> BTreeMap<String, String> {
            let list = list["considered"].as_array().unwrap_or_else(|| panic!("{list}"));
            let of = |one: &Value| (text(one, "consumer").to_owned(), text(one, "reason").to_owned());
            list.iter().filter(|one| one["evaluated"] == "then").map(of).collect()
        };
        let known: BTreeMap<String, String> =
            event.reasons.iter().map(|(consumer, reason)| ((*consumer).to_owned(), (*reason).to_owned())).collect();
        assert_eq!(considered(&why), known, "{event:?}");
        let effects = why["effects"].as_array().unwrap_or_else(|| panic!("{why}"));
        let count = |kind: &str| effects.iter().filter(|effect| effect["type"] == kind).count() as u64;
        let deaths: u64 = event.deliveries.values().map(|delivery| delivery.deaths).sum();
        let expected = (u64::from(event.effect.is_some()), deaths);
        assert_eq!((count("m.effect"), count("aman.delivery.dead")), expected, "{why}");
        let Some(reason) = event.effect else { return };
        let effect = effects.iter().find(|effect| effect["type"] == "m.effect").expect("counted above");
        assert_eq!(effect["consumer"], EVEN);
        let effect = history.iter().find(|one| one["id"] == effect["id"]).expect("it is listed");
        let why = self.daemon.get(&format!("/events/{}/why", text(effect, "id"))).json;
        assert_eq!(considered(&why), BTreeMap::from([(PICKY.to_owned(), reason.to_owned())]), "{why}");
        assert_eq!(why["ancestors"][0]["sequence"], event.sequence, "{why}");
    }

    fn compare_trace(&self, event: &Event, history: &[Value]) {
        let trace = self.daemon.get(&format!("/events/trace/{}", event.trace)).json;
        let shown: Vec<&Value> = trace["events"].as_array().unwrap_or_else(|| panic!("{trace}")).iter().collect();
        let expected: Vec<&Value> = history.iter().rev().filter(|one| one["traceid"] == event.trace.as_str()).collect();
        assert_eq!(shown, expected);
        let edges: BTreeSet<(&str, &str)> = trace["edges"]
            .as_array()
            .expect("edges")
            .iter()
            .map(|edge| (text(edge, "from"), text(edge, "to")))
            .collect();
        let caused = expected.iter().filter(|one| one["causationid"].is_string());
        let caused: BTreeSet<(&str, &str)> = caused.map(|one| (text(one, "causationid"), text(one, "id"))).collect();
        assert_eq!(edges, caused);
    }

    fn compare_letters(&mut self) {
        let dead: BTreeMap<i64, (&Event, &Delivery)> = self
            .model
            .events
            .iter()
            .filter_map(|event| {
                Some((event, event.deliveries.get(PICKY).filter(|delivery| delivery.status == "dead")?))
            })
            .map(|(event, delivery)| (event.sequence, (event, delivery)))
            .collect();
        let letters = self.daemon.all(&format!("/dlq?limit={}", self.rng.usize(1..9)));
        let sequence = |letter: &Value| text(&letter["event"], "amansequence").parse::<i64>().expect("a number");
        assert_eq!(letters.iter().map(sequence).collect::<BTreeSet<_>>(), dead.keys().copied().collect());
        assert_eq!(letters.len(), dead.len(), "no letter comes twice");
        assert!(letters.windows(2).all(|two| text(&two[0], "last_failed_at") >= text(&two[1], "last_failed_at")));
        for letter in &letters {
            assert_eq!((text(letter, "consumer"), text(letter, "reason")), (PICKY, "rejected"), "{letter}");
            let (delivery, attempts) = (dead[&sequence(letter)].1, letter["attempts"].as_u64().expect("attempts"));
            let counted = attempts == delivery.deaths || (delivery.cut && attempts > delivery.deaths);
            assert!(counted, "{delivery:?}: {letter}");
        }
        for (field, value) in [("source", "s1"), ("type", "m.c"), ("reason", "timeout"), ("consumer", PICKY)] {
            let found = self.daemon.all(&format!("/dlq?limit=1000&{field}={value}"));
            let expected = dead.values().filter(|(event, _)| match field {
                "source" => event.source == value,
                "type" => event.kind == value,
                field => field == "consumer",
            });
            assert_eq!(found.len(), expected.count(), "{field}={value}");
        }
        let depth = self.daemon.get("/dlq/depth").json;
        let by_consumer = if dead.is_empty() { json!({}) } else { json!({ PICKY: dead.len() }) };
        assert_eq!(depth, json!({ "depth": dead.len(), "by_consumer": by_consumer }));
        let groups = self.daemon.get("/dlq/groups?limit=1000").items();
        let counts: Vec<u64> = groups.iter().filter_map(|group| group["count"].as_u64()).collect();
        assert_eq!(counts, if dead.is_empty() { vec![] } else { vec![dead.len() as u64] }, "{groups:?}");
    }
}
