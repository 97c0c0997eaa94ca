//! What changed between two polls.

use std::collections::BTreeMap;

use aman_plugin::Value;
use serde::{Deserialize, Serialize};

/// A state as Home Assistant gives it, without what is not used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub entity_id: String,
    pub state: String,
    #[serde(default)]
    pub attributes: Value,
    #[serde(default)]
    pub last_changed: String,
}

/// What is remembered of a state. The time tells of changes there and back between two polls.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Known {
    state: String,
    changed: String,
}

/// Which entities count: names, and beginnings that end with `*`, separated by commas; all when there is none.
pub struct Wanted(Vec<String>);

impl Wanted {
    pub fn parse(text: &str) -> Wanted {
        Wanted(text.split(',').map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect())
    }

    pub fn has(&self, entity: &str) -> bool {
        let fits = |part: &String| part.strip_suffix('*').map_or(entity == part, |start| entity.starts_with(start));
        self.0.is_empty() || self.0.iter().any(fits)
    }
}

/// See [`changes`].
pub struct Found {
    /// The state before, none for an entity that is new, and the state now.
    pub changes: Vec<(Option<String>, State)>,
    /// What is to be remembered.
    pub known: BTreeMap<String, Known>,
    /// Whether more changed than fitted.
    pub more: bool,
}

/// What is different from `before`, at most `most`; nothing at the first poll, which only learns the states. What did
/// not fit is remembered as it was, so it is found by the next poll.
pub fn changes(before: Option<&BTreeMap<String, Known>>, states: Vec<State>, wanted: &Wanted, most: usize) -> Found {
    let mut found = Found { changes: Vec::new(), known: BTreeMap::new(), more: false };
    for state in states.into_iter().filter(|state| wanted.has(&state.entity_id)) {
        let known = Known { state: state.state.clone(), changed: state.last_changed.clone() };
        let old = before.and_then(|before| before.get(&state.entity_id));
        if before.is_none() || old == Some(&known) {
            found.known.insert(state.entity_id, known);
        } else if found.changes.len() < most {
            found.known.insert(state.entity_id.clone(), known);
            found.changes.push((old.map(|old| old.state.clone()), state));
        } else {
            found.more = true;
            found.known.extend(old.map(|old| (state.entity_id, old.clone())));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(entity: &str, state: &str, changed: &str) -> State {
        let (entity_id, state) = (entity.to_owned(), state.to_owned());
        State { entity_id, state, attributes: Value::Null, last_changed: changed.to_owned() }
    }

    fn told(found: &Found) -> Vec<(&str, Option<&str>, &str)> {
        found
            .changes
            .iter()
            .map(|(before, now)| (now.entity_id.as_str(), before.as_deref(), now.state.as_str()))
            .collect()
    }

    #[test]
    fn only_changes_become_events() {
        let all = Wanted::parse("");
        let first = changes(None, vec![state("a.x", "on", "1"), state("b.y", "7", "1")], &all, 10);
        assert!(told(&first).is_empty() && first.known.len() == 2);
        let now = vec![state("a.x", "off", "2"), state("b.y", "7", "1"), state("c.z", "new", "2")];
        let second = changes(Some(&first.known), now.clone(), &all, 10);
        assert_eq!(told(&second), [("a.x", Some("on"), "off"), ("c.z", None, "new")]);
        assert!(told(&changes(Some(&second.known), now, &all, 10)).is_empty());
        let back = changes(Some(&second.known), vec![state("a.x", "off", "3")], &all, 10);
        assert_eq!(told(&back), [("a.x", Some("off"), "off")], "there and back between two polls");
        assert_eq!(back.known.len(), 1, "what is gone is forgotten");
    }

    #[test]
    fn what_does_not_fit_comes_with_the_next_poll() {
        let all = Wanted::parse("");
        let old: Vec<State> = (0..5).map(|n| state(&format!("a.x{n}"), "off", "1")).collect();
        let new: Vec<State> = (0..5).map(|n| state(&format!("a.x{n}"), "on", "2")).collect();
        let mut known = changes(None, old, &all, 2).known;
        let mut count = 0;
        for more in [true, true, false] {
            let found = changes(Some(&known), new.clone(), &all, 2);
            assert_eq!(found.more, more);
            count += found.changes.len();
            known = found.known;
        }
        assert_eq!(count, 5);
    }

    #[test]
    fn entities_are_chosen_by_name_and_beginning() {
        let wanted = Wanted::parse("light.*, sensor.door");
        for (entity, has) in
            [("light.kitchen", true), ("sensor.door", true), ("sensor.door_2", false), ("switch.a", false)]
        {
            assert_eq!(wanted.has(entity), has, "{entity}");
        }
        assert!(Wanted::parse(" , ").has("anything"));
    }
}
