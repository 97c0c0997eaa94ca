//! Why an event reached a consumer, and why it did not reach another.

use std::collections::HashSet;

use serde::Serialize;
use serde_json::{Map, Value};

use super::Standing;
use super::publish::Bus;
use super::router::{Decision, Entry, Reason, Router, decode, describe, describe_rule, values};
use crate::error::Error;
use crate::event::Event;
use crate::store::{consumers, events};

/// What was, or would be, decided for one consumer.
#[derive(Debug, Clone, Serialize)]
pub struct Considered {
    /// Name of the consumer.
    pub consumer: String,
    /// Its kind.
    pub kind: String,
    /// True when it got, or would get, the event.
    pub matched: bool,
    /// The rule that decided, in words; for a type that matches nothing, its patterns.
    pub rule: String,
    /// Why.
    pub reason: Reason,
    /// `then` = decided when the event was stored, `now` = evaluated for this answer.
    pub evaluated: &'static str,
    /// What the condition read, by path.
    pub values: Map<String, Value>,
    /// The message of a condition that could not be evaluated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Which consumers an explanation covers, besides those that were decided then.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    /// Every consumer there is.
    pub all: bool,
    /// This one.
    pub consumer: Option<String>,
}

impl Bus {
    /// What was decided for `event` when it was stored; and, as far as `scope` asks, what is evaluated now.
    pub async fn explain(&self, event: Event, scope: Scope) -> Result<Vec<Considered>, Error> {
        let router = self.router();
        self.store()
            .read(move |conn| {
                let value = event.to_value();
                let decided = decode(events::decision(conn, event.sequence)?.as_deref());
                let mut considered = Vec::new();
                for decision in decided {
                    let Some(rule) = consumers::rule(conn, decision.rule)? else { continue };
                    considered.push(Considered {
                        matched: decision.reason == Reason::Matched,
                        rule: describe(&rule.pattern, &rule.condition),
                        values: values(&rule.condition, &value),
                        consumer: rule.consumer,
                        kind: rule.kind,
                        reason: decision.reason,
                        evaluated: "then",
                        error: decision.error,
                    });
                }
                let known: HashSet<String> = considered.iter().map(|one| one.consumer.clone()).collect();
                if scope.all || scope.consumer.is_some() {
                    let rest = router.entries().iter().filter(|entry| !known.contains(&entry.spec.name));
                    considered.extend(rest.map(|entry| evaluate(entry, &event, &value, true)));
                }
                if let Some(name) = &scope.consumer {
                    if !considered.iter().any(|one| one.consumer == *name) {
                        return Err(Error::not_found("consumer", name));
                    }
                    considered.retain(|one| one.consumer == *name);
                }
                Ok(considered)
            })
            .await
    }
}

/// Who would get an event that is not stored: every consumer whose type pattern matches.
pub(super) fn consider_now(router: &Router, event: &Event) -> Vec<Considered> {
    let value = event.to_value();
    let candidates = router.entries().iter().filter(|entry| !entry.rules_for(&event.sent.kind).is_empty());
    candidates.map(|entry| evaluate(entry, event, &value, false)).collect()
}

fn evaluate(entry: &Entry, event: &Event, value: &Value, stored: bool) -> Considered {
    let rules = entry.rules_for(&event.sent.kind);
    let decision = match entry.spec.standing {
        _ if rules.is_empty() => Decision { rule: 0, reason: Reason::TypeMismatch, error: None },
        // It matches by type now and was not considered then: it, or the rule, came after the event.
        _ if stored => Decision { rule: entry.rule_ids[rules[0]], reason: Reason::AddedLater, error: None },
        Standing::Disabled => Decision { rule: entry.rule_ids[rules[0]], reason: Reason::Disabled, error: None },
        Standing::Untrusted => Decision { rule: entry.rule_ids[rules[0]], reason: Reason::Untrusted, error: None },
        Standing::Active | Standing::Paused => entry.decide(rules.into_iter(), &mut || event.to_json()),
    };
    let rule = entry.rule_ids.iter().position(|id| *id == decision.rule).map(|r| &entry.spec.rules[r]);
    let condition = rule.and_then(|rule| rule.condition.as_ref()).map_or("", |c| c.source());
    let patterns = || entry.spec.rules.iter().map(|rule| rule.pattern.as_str()).collect::<Vec<_>>().join(" ");
    Considered {
        consumer: entry.spec.name.clone(),
        kind: entry.spec.kind.to_owned(),
        matched: decision.reason == Reason::Matched,
        rule: rule.map_or_else(patterns, describe_rule),
        reason: decision.reason,
        evaluated: "now",
        values: values(condition, value),
        error: decision.error,
    }
}
