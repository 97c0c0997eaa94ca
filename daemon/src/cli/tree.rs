//! Draws a trace: every event and delivery under what caused it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::explain::error_text;
use super::out::{text, time};

/// Deeper levels are not drawn; the daemon's own cap on causation is 64.
const DEPTH_MAX: usize = 200;

/// A node's name: events and deliveries may have equal ids.
type Key = (Kind, String);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Event,
    Delivery,
}

/// What is drawn, and what stands under what.
struct Graph {
    labels: BTreeMap<Key, String>,
    /// In the order of the answer.
    order: Vec<Key>,
    children: BTreeMap<Key, Vec<Key>>,
}

/// The lines of `{trace_id, events, deliveries, edges, cycle?}`.
pub fn draw(answer: &Value) -> Vec<String> {
    let graph = Graph::of(answer);
    let mut lines = vec![format!("trace {}", text(&answer["trace_id"]))];
    let below: BTreeSet<&Key> = graph.children.values().flatten().collect();
    let mut drawn = BTreeSet::new();
    let roots: Vec<&Key> = graph.order.iter().filter(|key| !below.contains(key)).collect();
    for (at, root) in roots.iter().enumerate() {
        graph.branch(root, "", at + 1 == roots.len(), 0, &mut drawn, &mut lines);
    }
    // Only a cycle has no root; nothing of it may be left out for that.
    for key in &graph.order {
        if !drawn.contains(key) {
            graph.branch(key, "", true, 0, &mut drawn, &mut lines);
        }
    }
    if !matches!(answer["cycle"], Value::Null | Value::Bool(false)) {
        lines.push(format!("cycle: {}", text(&answer["cycle"])));
    }
    lines
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

impl Graph {
    fn of(answer: &Value) -> Graph {
        let mut graph = Graph { labels: BTreeMap::new(), order: Vec::new(), children: BTreeMap::new() };
        for event in items(&answer["events"]) {
            graph.add((Kind::Event, text(&event["id"])), event_label(event));
        }
        for delivery in items(&answer["deliveries"]) {
            graph.add((Kind::Delivery, text(&delivery["id"])), delivery_label(delivery));
        }
        for edge in items(&answer["edges"]) {
            if let (Some(from), Some(to)) = (graph.end(&edge["from"]), graph.end(&edge["to"])) {
                graph.join(from, to);
            }
        }
        graph.join_by_attributes(answer);
        graph
    }

    fn add(&mut self, key: Key, label: String) {
        if self.labels.insert(key.clone(), label).is_none() {
            self.order.push(key);
        }
    }

    /// An end of an edge names an event or a delivery; a number, or a name that no event has, is a delivery.
    fn end(&self, value: &Value) -> Option<Key> {
        let name = text(value);
        let bare = name.trim_start_matches("delivery/").trim_start_matches("delivery:").to_owned();
        let (event, delivery) = ((Kind::Event, name), (Kind::Delivery, bare));
        let known = |key: &Key| self.labels.contains_key(key);
        if value.is_number() && known(&delivery) {
            return Some(delivery);
        }
        [event, delivery].into_iter().find(known)
    }

    fn join(&mut self, from: Key, to: Key) {
        let children = self.children.entry(from).or_default();
        if !children.contains(&to) {
            children.push(to);
        }
    }

    /// Where no edge leads to a node, its own attributes say what it belongs under.
    fn join_by_attributes(&mut self, answer: &Value) {
        let below: BTreeSet<Key> = self.children.values().flatten().cloned().collect();
        for (kind, list, parents) in [
            (Kind::Event, "events", ["causationid", "causation_id", "cause"]),
            (Kind::Delivery, "deliveries", ["event_id", "event", "sequence"]),
        ] {
            for item in items(&answer[list]) {
                let key = (kind, text(&item["id"]));
                let parent = parents.iter().map(|name| (Kind::Event, text(&item[*name])));
                let parent = parent.into_iter().find(|parent| self.labels.contains_key(parent) && *parent != key);
                if let (false, Some(parent)) = (below.contains(&key), parent) {
                    self.join(parent, key);
                }
            }
        }
    }

    fn branch(
        &self,
        key: &Key,
        indent: &str,
        last: bool,
        depth: usize,
        drawn: &mut BTreeSet<Key>,
        lines: &mut Vec<String>,
    ) {
        let (corner, deeper) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        let label = self.labels.get(key).cloned().unwrap_or_default();
        if !drawn.insert(key.clone()) {
            lines.push(format!("{indent}{corner}{label} (shown above)"));
            return;
        }
        lines.push(format!("{indent}{corner}{label}"));
        let children = self.children.get(key).map(Vec::as_slice).unwrap_or_default();
        if depth >= DEPTH_MAX {
            if !children.is_empty() {
                lines.push(format!("{indent}{deeper}└─ …"));
            }
            drawn.extend(children.iter().cloned());
            return;
        }
        let indent = format!("{indent}{deeper}");
        for (at, child) in children.iter().enumerate() {
            self.branch(child, &indent, at + 1 == children.len(), depth + 1, drawn, lines);
        }
    }
}

fn event_label(event: &Value) -> String {
    let mut label = format!("{} from {}", text(&event["type"]), text(&event["source"]));
    let subject = text(&event["subject"]);
    if !subject.is_empty() {
        label.push_str(&format!(" [{subject}]"));
    }
    let at = time(&event["time"]);
    format!("{label}  {}  {at}", text(&event["id"])).trim_end().to_owned()
}

fn delivery_label(delivery: &Value) -> String {
    let mut label = format!("→ {}: {}", text(&delivery["consumer"]), text(&delivery["status"]));
    let attempt = delivery["attempt"].as_u64().unwrap_or(0);
    if attempt > 1 {
        label.push_str(&format!(", attempt {attempt}"));
    }
    let next = time(&delivery["next_at"]);
    if !next.is_empty() {
        label.push_str(&format!(", next try {next}"));
    }
    let error = error_text(&delivery["error"]);
    if !error.is_empty() {
        label.push_str(&format!(": {error}"));
    }
    label
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(id: &str, cause: Option<&str>) -> Value {
        json!({ "id": id, "type": "t", "source": "s", "causationid": cause })
    }

    #[test]
    fn events_stand_under_the_delivery_that_made_them() {
        let answer = json!({
            "trace_id": "ab", "events": [event("a", None), event("b", Some("a")), event("c", Some("a"))],
            "deliveries": [
                { "id": 1, "consumer": "skill/x", "status": "done", "attempt": 1 },
                { "id": 2, "consumer": "skill/y", "status": "dead", "attempt": 3, "error": "boom" }],
            "edges": [{ "from": "a", "to": 1 }, { "from": "a", "to": 2 }, { "from": 1, "to": "b" }],
        });
        assert_eq!(
            draw(&answer),
            [
                "trace ab",
                "└─ t from s  a",
                "   ├─ → skill/x: done",
                "   │  └─ t from s  b",
                "   ├─ → skill/y: dead, attempt 3: boom",
                "   └─ t from s  c"
            ]
        );
    }

    #[test]
    fn a_cycle_is_drawn_once() {
        let answer = json!({ "trace_id": "ab", "cycle": true, "events": [event("a", Some("b")), event("b", Some("a"))],
            "edges": [{ "from": "a", "to": "b" }, { "from": "b", "to": "a" }] });
        assert_eq!(
            draw(&answer),
            ["trace ab", "└─ t from s  a", "   └─ t from s  b", "      └─ t from s  a (shown above)", "cycle: true"]
        );
    }
}
