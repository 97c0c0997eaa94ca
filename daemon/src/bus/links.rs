//! The registry of consumers, and the links to them: rules that somebody else adds to a consumer's own, so that what he
//! publishes reaches it whatever it listens to, decided and explained like any rule.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, PoisonError};

use super::publish::Bus;
use super::router::{Entry, Router};
use super::{Consumer, ConsumerSpec, Rule};
use crate::error::Error;
use crate::id::ConsumerId;
use crate::store::consumers;

/// What each owner links: names of consumers and rules for them.
#[derive(Default)]
pub(super) struct Links {
    by_owner: std::sync::Mutex<BTreeMap<String, Vec<(String, Rule)>>>,
    /// Held while consumers are added or changed, so that changes follow each other.
    changing: tokio::sync::Mutex<()>,
}

impl Links {
    fn of(&self, consumer: &str) -> Vec<Rule> {
        let by_owner = self.by_owner.lock().unwrap_or_else(PoisonError::into_inner);
        let all = by_owner.values().flatten().filter(|(name, _)| name == consumer);
        all.map(|(_, rule)| rule.clone()).collect()
    }

    /// Replaces what `owner` links; the names of all consumers that it is about, before and after.
    fn replace(&self, owner: &str, links: Vec<(String, Rule)>) -> HashSet<String> {
        let mut by_owner = self.by_owner.lock().unwrap_or_else(PoisonError::into_inner);
        let now: Vec<String> = links.iter().map(|(name, _)| name.clone()).collect();
        let before = by_owner.insert(owner.to_owned(), links).unwrap_or_default();
        before.into_iter().map(|(name, _)| name).chain(now).collect()
    }
}

impl Bus {
    /// Adds consumers, or replaces those of the same name, in one step; work that waits for them begins.
    pub async fn register(&self, added: Vec<(ConsumerSpec, Arc<dyn Consumer>)>) -> Result<(), Error> {
        let _alone = self.inner.links.changing.lock().await;
        let entries = self.number(added).await?;
        // Lanes first: an event that matches a new consumer finds its lane to wake.
        self.place_lanes(&entries).await?;
        self.inner.router.rcu(|old| {
            let new_ids: HashSet<ConsumerId> = entries.iter().map(|entry| entry.id).collect();
            let kept = old.entries().iter().filter(|entry| !new_ids.contains(&entry.id));
            Router::new(kept.chain(&entries).cloned().collect())
        });
        self.inner.consumers.send_modify(|count| *count += 1);
        Ok(())
    }

    /// Removes consumers. What waits for them waits on, and goes on when they come back.
    pub async fn unregister(&self, names: &[String]) {
        // A consumer that is being added has its lane before it is in the router: its lane would be taken for one that is
        // left behind.
        let _alone = self.inner.links.changing.lock().await;
        self.inner.router.rcu(|old| {
            let kept = old.entries().iter().filter(|entry| !names.contains(&entry.spec.name));
            Router::new(kept.cloned().collect())
        });
        let router = self.router();
        if let Ok(lanes) = self.inner.lanes.lock() {
            lanes.iter().filter(|(id, _)| router.by_id(**id).is_none()).for_each(|(_, lane)| lane.rest());
        }
        self.inner.consumers.send_modify(|count| *count += 1);
    }

    /// Sets the rules that `owner` adds to other consumers, by their names; it replaces what the same owner linked
    /// before. A consumer that is not there gets its rules when it comes.
    pub async fn link(&self, owner: &str, links: Vec<(String, Rule)>) -> Result<(), Error> {
        let _alone = self.inner.links.changing.lock().await;
        let names = self.inner.links.replace(owner, links);
        let router = self.router();
        let present: Vec<Arc<Entry>> =
            router.entries().iter().filter(|entry| names.contains(&entry.spec.name)).cloned().collect();
        let own = present.iter().map(|entry| {
            let mut spec = entry.spec.clone();
            spec.rules.truncate(entry.own_rules);
            (spec, Arc::clone(&entry.consumer))
        });
        let linked = self.number(own.collect()).await?;
        // A consumer that was removed meanwhile stays removed.
        self.inner.router.rcu(|old| {
            let replaced = old.entries().iter().map(|entry| {
                let at = present.iter().position(|before| Arc::ptr_eq(before, entry));
                at.map_or_else(|| Arc::clone(entry), |at| Arc::clone(&linked[at]))
            });
            Router::new(replaced.collect())
        });
        let router = self.router();
        let there = |entry: &&Arc<Entry>| router.by_id(entry.id).is_some_and(|now| Arc::ptr_eq(now, entry));
        let placed: Vec<Arc<Entry>> = linked.iter().filter(there).cloned().collect();
        self.place_lanes(&placed).await
    }

    /// Gives consumers and all their rules the numbers of their records.
    async fn number(&self, added: Vec<(ConsumerSpec, Arc<dyn Consumer>)>) -> Result<Vec<Arc<Entry>>, Error> {
        let with_links = added.into_iter().map(|(mut spec, consumer)| {
            let own_rules = spec.rules.len();
            spec.rules.extend(self.inner.links.of(&spec.name));
            (spec, own_rules, consumer)
        });
        let added: Vec<_> = with_links.collect();
        let names: Vec<_> = added
            .iter()
            .map(|(spec, ..)| {
                let rules = spec.rules.iter().map(|rule| {
                    let condition = rule.condition.as_ref().map_or("", |c| c.source());
                    (rule.pattern.as_str().to_owned(), condition.to_owned())
                });
                (spec.name.clone(), spec.kind, rules.collect::<Vec<_>>())
            })
            .collect();
        let numbers = self
            .inner
            .store
            .write(move |tx| {
                let mut numbers = Vec::with_capacity(names.len());
                for (name, kind, rules) in &names {
                    let (id, since) = consumers::ensure(tx, name, kind)?;
                    let rules = rules
                        .iter()
                        .map(|(pattern, condition)| consumers::ensure_rule(tx, id, pattern, condition))
                        .collect::<Result<Vec<_>, _>>()?;
                    numbers.push((id, since, rules));
                }
                Ok(numbers)
            })
            .await?;
        let entries = added.into_iter().zip(numbers).map(|((spec, own_rules, consumer), (id, since, rule_ids))| {
            Arc::new(Entry { id, since, spec, own_rules, rule_ids, consumer })
        });
        Ok(entries.collect())
    }
}
