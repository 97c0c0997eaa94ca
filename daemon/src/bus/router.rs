//! Which consumers an event matches, and why the others do not. An immutable snapshot, swapped as a whole.
//!
//! Patterns sit in a tree by type segment, so the cost of an event follows what it matches, not how many consumers
//! there are.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value};

use super::{Consumer, ConsumerSpec, Rule, Standing};
use crate::event::TypePattern;
use crate::expr::Limits;
use crate::id::{ConsumerId, EventSeq};
use crate::store::events::Match;

/// A registered consumer.
pub struct Entry {
    /// Number of its record.
    pub id: ConsumerId,
    /// It can match events after this one.
    pub since: EventSeq,
    /// What the bus knows of it; rules that others linked to it come after its own.
    pub spec: ConsumerSpec,
    /// How many of its rules are its own.
    pub own_rules: usize,
    /// Numbers of its rules, in the order of `spec.rules`.
    pub rule_ids: Vec<i64>,
    /// Who gets the events.
    pub consumer: Arc<dyn Consumer>,
}

/// Why a consumer does or does not get an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It gets it.
    Matched,
    /// None of its type patterns matches.
    TypeMismatch,
    /// The type matches, the condition does not hold.
    ConditionFalse,
    /// The type matches, the condition could not be evaluated.
    ConditionError,
    /// It would match but is switched off.
    Disabled,
    /// It would match but its content is not trusted.
    Untrusted,
    /// It was added, or got this rule, after the event was stored.
    AddedLater,
}

impl Reason {
    fn letter(self) -> &'static str {
        match self {
            Reason::Matched => "m",
            Reason::TypeMismatch => "t",
            Reason::ConditionFalse => "f",
            Reason::ConditionError => "e",
            Reason::Disabled => "d",
            Reason::Untrusted => "u",
            Reason::AddedLater => "l",
        }
    }

    fn of_letter(letter: &str) -> Reason {
        match letter {
            "m" => Reason::Matched,
            "f" => Reason::ConditionFalse,
            "e" => Reason::ConditionError,
            "d" => Reason::Disabled,
            "u" => Reason::Untrusted,
            "l" => Reason::AddedLater,
            _ => Reason::TypeMismatch,
        }
    }
}

/// What was decided for one consumer.
#[derive(Debug, Clone)]
pub struct Decision {
    /// The rule that decided.
    pub rule: i64,
    /// Why.
    pub reason: Reason,
    /// The message of a condition that could not be evaluated.
    pub error: Option<String>,
}

#[derive(Default)]
struct Node {
    literal: HashMap<Box<str>, Node>,
    star: Option<Box<Node>>,
    /// Rules that match whatever follows, if at least one segment does.
    open_end: Vec<Place>,
    /// Rules that end here.
    here: Vec<Place>,
}

/// An entry and one of its rules, by index.
type Place = (usize, usize);

/// The snapshot.
#[derive(Default)]
pub struct Router {
    entries: Vec<Arc<Entry>>,
    tree: Node,
    /// Rules for everything that is for an agent, by its id: other events do not meet them.
    agents: HashMap<String, Vec<Place>>,
}

/// The condition of a rule for what is for this agent: whatever has its id, save what agents publish, unless it is meant to
/// be for one.
pub fn for_agent(id: &str) -> String {
    let id = Value::from(id);
    format!(
        ".agentid == {id} and ((.source | startswith(\"agent/\") | not) or .type == \"aman.agent.message\" or .type == \"aman.agent.call\")"
    )
}

/// The agent that a rule is for, when it is of everything and its condition is [`for_agent`]'s.
fn agent_of(rule: &Rule) -> Option<String> {
    let condition = rule.condition.as_ref().filter(|_| rule.pattern.as_str() == "**")?.source();
    let quoted = condition.strip_prefix(".agentid == ")?;
    let id = serde_json::Deserializer::from_str(quoted).into_iter::<String>().next()?.ok()?;
    (for_agent(&id) == condition).then_some(id)
}

impl Router {
    /// Builds the tree over `entries`.
    pub fn new(entries: Vec<Arc<Entry>>) -> Router {
        let (mut tree, mut agents) = (Node::default(), HashMap::<String, Vec<Place>>::new());
        for (n, entry) in entries.iter().enumerate() {
            for (r, rule) in entry.spec.rules.iter().enumerate() {
                match agent_of(rule) {
                    Some(id) => agents.entry(id).or_default().push((n, r)),
                    None => insert(&mut tree, &rule.pattern, (n, r)),
                }
            }
        }
        Router { entries, tree, agents }
    }

    /// Every registered consumer.
    pub fn entries(&self) -> &[Arc<Entry>] {
        &self.entries
    }

    /// The consumer of that name.
    pub fn by_name(&self, name: &str) -> Option<&Arc<Entry>> {
        self.entries.iter().find(|entry| entry.spec.name == name)
    }

    /// The consumer with that number.
    pub fn by_id(&self, id: ConsumerId) -> Option<&Arc<Entry>> {
        self.entries.iter().find(|entry| entry.id == id)
    }

    /// Rules whose type pattern matches `kind`, grouped by consumer, in order of registration; those for everything of one
    /// agent only when it is for that one.
    pub fn candidates(&self, kind: &str, agent: Option<&str>) -> Candidates {
        let mut places = agent.and_then(|agent| self.agents.get(agent)).cloned().unwrap_or_default();
        let segments: Vec<&str> = kind.split('.').collect();
        collect(&self.tree, &segments, &mut places);
        places.sort_unstable();
        Candidates { places }
    }

    /// True when deciding needs an expression to run, which is kept off the async threads.
    pub fn needs_conditions(&self, candidates: &Candidates) -> bool {
        candidates.places.iter().any(|&(n, r)| {
            let entry = &self.entries[n];
            entry.spec.standing.takes() && entry.spec.rules[r].condition.is_some()
        })
    }

    /// Decides for every candidate. `json` is the event as consumers see it; it is made only when a condition needs it.
    pub fn decide(&self, candidates: &Candidates, mut json: impl FnMut() -> Vec<u8>) -> (Vec<Match>, Vec<Decision>) {
        let (mut matches, mut decisions) = (Vec::new(), Vec::new());
        let mut bytes: Option<Vec<u8>> = None;
        for group in candidates.places.chunk_by(|a, b| a.0 == b.0) {
            let entry = &self.entries[group[0].0];
            let decision = match entry.spec.standing {
                Standing::Disabled => entry.decision(group[0].1, Reason::Disabled, None),
                Standing::Untrusted => entry.decision(group[0].1, Reason::Untrusted, None),
                Standing::Active | Standing::Paused => {
                    entry.decide(group.iter().map(|place| place.1), &mut || bytes.get_or_insert_with(&mut json).clone())
                }
            };
            if decision.reason == Reason::Matched {
                matches.push(Match { consumer: entry.id });
            }
            decisions.push(decision);
        }
        (matches, decisions)
    }
}

/// An event may be larger as JSON than the body that brought it: escapes, base64.
fn limits() -> Limits {
    Limits { input_bytes: 8 << 20, ..Limits::default() }
}

/// Rules whose type pattern matched.
pub struct Candidates {
    places: Vec<Place>,
}

impl Candidates {
    /// True when no consumer's type pattern matches.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }
}

impl Entry {
    fn decision(&self, rule: usize, reason: Reason, error: Option<String>) -> Decision {
        Decision { rule: self.rule_ids.get(rule).copied().unwrap_or(0), reason, error }
    }

    /// The first rule that holds; else what stood in the way of the last one.
    pub fn decide(&self, rules: impl Iterator<Item = usize>, json: &mut dyn FnMut() -> Vec<u8>) -> Decision {
        let mut last = self.decision(0, Reason::TypeMismatch, None);
        for r in rules {
            let Some(condition) = &self.spec.rules[r].condition else {
                return self.decision(r, Reason::Matched, None);
            };
            match condition.test(&json(), &limits()) {
                Ok(true) => return self.decision(r, Reason::Matched, None),
                Ok(false) => last = self.decision(r, Reason::ConditionFalse, None),
                Err(error) => last = self.decision(r, Reason::ConditionError, Some(error.to_string())),
            }
        }
        last
    }

    /// Indexes of the rules whose type pattern matches.
    pub fn rules_for(&self, kind: &str) -> Vec<usize> {
        let rules = self.spec.rules.iter().enumerate();
        rules.filter(|(_, rule)| rule.pattern.matches(kind)).map(|(r, _)| r).collect()
    }
}

fn insert(tree: &mut Node, pattern: &TypePattern, place: Place) {
    let mut node = tree;
    for segment in pattern.segments() {
        match segment {
            "**" => return node.open_end.push(place),
            "*" => node = node.star.get_or_insert_default(),
            literal => node = node.literal.entry(literal.into()).or_default(),
        }
    }
    node.here.push(place);
}

fn collect(node: &Node, segments: &[&str], out: &mut Vec<Place>) {
    let Some((first, rest)) = segments.split_first() else {
        return out.extend(&node.here);
    };
    out.extend(&node.open_end);
    if let Some(next) = node.literal.get(*first) {
        collect(next, rest, out);
    }
    if let Some(next) = &node.star {
        collect(next, rest, out);
    }
}

/// Decisions as they are stored with the event: `[[rule, letter, error?], …]`; none when no type pattern matched.
pub fn encode(decisions: &[Decision]) -> Option<String> {
    if decisions.is_empty() {
        return None;
    }
    let rows = decisions.iter().map(|d| match &d.error {
        Some(error) => serde_json::json!([d.rule, d.reason.letter(), error]),
        None => serde_json::json!([d.rule, d.reason.letter()]),
    });
    Some(Value::Array(rows.collect()).to_string())
}

/// Reads [`encode`] back.
pub fn decode(stored: Option<&str>) -> Vec<Decision> {
    let rows: Vec<Vec<Value>> = stored.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    rows.iter()
        .filter_map(|row| {
            Some(Decision {
                rule: row.first()?.as_i64()?,
                reason: Reason::of_letter(row.get(1)?.as_str()?),
                error: row.get(2).and_then(Value::as_str).map(str::to_owned),
            })
        })
        .collect()
}

/// A rule in words: its pattern, and its condition if it has one.
pub fn describe(pattern: &str, condition: &str) -> String {
    if condition.is_empty() { pattern.to_owned() } else { format!("{pattern} when {condition}") }
}

/// [`describe`] for a rule that is in force.
pub fn describe_rule(rule: &Rule) -> String {
    describe(rule.pattern.as_str(), rule.condition.as_ref().map_or("", |c| c.source()))
}

/// The values in `event` that a condition reads, by path.
pub fn values(condition: &str, event: &Value) -> Map<String, Value> {
    let Ok(expr) = crate::expr::Expr::compile(condition) else { return Map::new() };
    let at = |path: &str| {
        path.trim_start_matches('.')
            .split('.')
            .filter(|key| !key.is_empty())
            .fold(event, |value, key| &value[key])
            .clone()
    };
    expr.paths().iter().map(|path| (path.clone(), at(path))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::{Attempt, Concurrency, Delivered, Effects, Outcome, RetryPolicy};
    use crate::event::Trust;
    use crate::expr::Expr;
    use std::time::Duration;

    struct Nobody;
    impl Consumer for Nobody {
        fn deliver(&self, _: Attempt) -> Delivered<'_> {
            Box::pin(async { Outcome::Done(Effects::default()) })
        }
    }

    fn entry(id: i64, rules: &[(&str, &str)], standing: Standing) -> Arc<Entry> {
        let rules: Vec<Rule> = rules
            .iter()
            .map(|(pattern, condition)| Rule {
                pattern: TypePattern::parse(pattern).expect("pattern"),
                condition: (!condition.is_empty()).then(|| Expr::compile(condition).expect("condition")),
            })
            .collect();
        Arc::new(Entry {
            id: ConsumerId(id),
            since: EventSeq(0),
            own_rules: rules.len(),
            rule_ids: (0..rules.len()).map(|r| id * 10 + i64::try_from(r).expect("few")).collect(),
            spec: ConsumerSpec {
                name: format!("test/{id}"),
                kind: "internal",
                rules,
                concurrency: Concurrency::Serial,
                retry: RetryPolicy::default(),
                timeout: Duration::from_secs(1),
                trust: Trust::Owner,
                standing,
                acts_outside: false,
            },
            consumer: Arc::new(Nobody),
        })
    }

    #[test]
    fn decides_by_pattern_condition_and_standing() {
        let router = Router::new(vec![
            entry(1, &[("a.b", "")], Standing::Active),
            entry(2, &[("a.*", ".data.n > 5")], Standing::Active),
            entry(3, &[("a.**", "")], Standing::Disabled),
            entry(4, &[("x.y", ""), ("a.b", ".data.n | error")], Standing::Active),
            entry(5, &[("a", "")], Standing::Active),
            entry(6, &[("a.b", ".data.n == 1"), ("*.b", "")], Standing::Untrusted),
        ]);
        let candidates = router.candidates("a.b", None);
        assert!(router.needs_conditions(&candidates));
        let (matches, decisions) = router.decide(&candidates, || br#"{"data":{"n":3}}"#.to_vec());
        assert_eq!(matches.iter().map(|m| m.consumer.0).collect::<Vec<_>>(), [1]);
        let got: Vec<_> = decisions.iter().map(|d| (d.rule, d.reason)).collect();
        let wanted = [
            (10, Reason::Matched),
            (20, Reason::ConditionFalse),
            (30, Reason::Disabled),
            (41, Reason::ConditionError),
            (60, Reason::Untrusted),
        ];
        assert_eq!(got, wanted);
        let back = decode(encode(&decisions).as_deref());
        assert_eq!(back.iter().map(|d| (d.rule, d.reason)).collect::<Vec<_>>(), wanted);
        assert!(back[3].error.is_some());
        assert!(router.candidates("b", None).places.is_empty());
    }

    #[test]
    fn what_is_for_an_agent_costs_others_nothing() {
        let (own, like) = (for_agent("a\"b"), format!("{} or true", for_agent("x")));
        let router = Router::new(vec![
            entry(1, &[("**", &own)], Standing::Active),
            entry(2, &[("**", &like)], Standing::Active),
        ]);
        let met = |agent| router.candidates("t", agent).places;
        assert_eq!((met(None), met(Some("x")), met(Some("a\"b"))), (vec![(1, 0)], vec![(1, 0)], vec![(0, 0), (1, 0)]));
        let decided = |source: &str, kind: &str| {
            let json = serde_json::json!({"agentid": "a\"b", "source": source, "type": kind}).to_string();
            router.decide(&router.candidates(kind, Some("a\"b")), || json.clone().into_bytes()).0.len()
        };
        assert_eq!((decided("hook/x", "t"), decided("agent/c", "t"), decided("agent/c", "aman.agent.call")), (2, 1, 2));
    }
}
