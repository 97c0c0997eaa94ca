//! How many effects a trace may have.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::id::TraceId;

/// How many effects each trace had within an hour, so that consumers that feed each other in breadth end like those that
/// do so in depth, and a program that gives all its events the same trace does not. Counts live in memory.
#[derive(Default)]
pub(super) struct Chains(Mutex<HashMap<TraceId, Budget>>);

/// What a trace had since its hour began.
struct Budget {
    effects: usize,
    since: Instant,
}

impl Chains {
    const EFFECTS_MAX: usize = 10_000;
    const TRACES_MAX: usize = 4096;
    const HOUR: Duration = Duration::from_secs(3600);

    /// Adds effects to a trace; false when that is more than one cause may have.
    pub fn admit(&self, trace: TraceId, effects: usize) -> bool {
        if effects == 0 {
            return true;
        }
        let now = Instant::now();
        let mut budgets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if budgets.len() >= Chains::TRACES_MAX && !budgets.contains_key(&trace) {
            // Whatever is over, and if that is not enough the half that had least: a loop is not forgotten for others.
            budgets.retain(|_, budget| now.duration_since(budget.since) < Chains::HOUR);
            if budgets.len() >= Chains::TRACES_MAX {
                let mut spent: Vec<usize> = budgets.values().map(|budget| budget.effects).collect();
                let (_, middle, _) = spent.select_nth_unstable(Chains::TRACES_MAX / 2);
                budgets.retain(|_, budget| budget.effects > *middle);
            }
        }
        let budget = budgets.entry(trace).or_insert(Budget { effects: 0, since: now });
        if now.duration_since(budget.since) >= Chains::HOUR {
            *budget = Budget { effects: 0, since: now };
        }
        budget.effects = budget.effects.saturating_add(effects);
        budget.effects <= Chains::EFFECTS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a trace has its budget, others have theirs, and however many there are, memory holds a bounded number.
    #[test]
    fn budgets_of_traces_are_bounded() {
        let chains = Chains::default();
        let trace = |n: u32| TraceId(std::array::from_fn(|at| n.to_be_bytes().get(at).copied().unwrap_or(1)));
        assert!(chains.admit(trace(0), Chains::EFFECTS_MAX) && !chains.admit(trace(0), 1));
        for n in 1..20_000 {
            assert!(chains.admit(trace(n), 200), "{n}");
        }
        assert!(!chains.admit(trace(0), 1), "others do not give it a new hour");
        let kept = |chains: &Chains| chains.0.lock().expect("nobody panicked").len();
        assert!(kept(&chains) <= Chains::TRACES_MAX, "{}", kept(&chains));
        assert!(chains.admit(trace(19_999), Chains::EFFECTS_MAX - 200) && !chains.admit(trace(19_999), 1));
        for budget in chains.0.lock().expect("nobody panicked").values_mut() {
            budget.since = budget.since.checked_sub(Chains::HOUR).expect("the machine runs for longer");
        }
        assert!(chains.admit(trace(19_999), 1), "an hour later it begins anew");
    }
}
