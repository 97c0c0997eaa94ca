//! How a skill has been doing since the daemon started; kept in memory, shared by all versions of the skill.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;

use crate::bus::{Failure, Outcome};
use crate::clock::{Millis, rfc3339};
use crate::sandbox::Enforced;

/// Durations that the median is taken of.
const KEPT: usize = 128;

/// Counts of one skill.
#[derive(Debug, Default)]
pub struct Stats(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    runs: u64,
    failures: u64,
    last_run_ms: Option<Millis>,
    last_error: Option<String>,
    durations: VecDeque<Duration>,
    enforced: Option<Enforced>,
}

/// What is shown of the counts.
#[derive(Debug, Clone, Serialize)]
pub struct Shown {
    /// Attempts since the start of the daemon.
    pub runs: u64,
    /// Those that failed.
    pub failures: u64,
    /// When the last attempt ended.
    pub last_run: Option<String>,
    /// What the last failed attempt said.
    pub last_error: Option<String>,
    /// Median of the last durations, in milliseconds.
    pub p50_ms: Option<u64>,
}

impl Stats {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an attempt that ended at `now_ms`.
    pub fn record(&self, outcome: &Outcome, took: Duration, now_ms: Millis) {
        let mut counts = self.counts();
        counts.runs += 1;
        counts.last_run_ms = Some(now_ms);
        if counts.durations.len() == KEPT {
            counts.durations.pop_front();
        }
        counts.durations.push_back(took);
        let failure: Option<&Failure> = match outcome {
            Outcome::Done(_) | Outcome::Postponed(_) => None,
            Outcome::Retry(failure, _) | Outcome::Reject(failure) => Some(failure),
        };
        if let Some(failure) = failure {
            counts.failures += 1;
            counts.last_error = Some(failure.chain.join("; "));
        }
    }

    /// Keeps what was in force during a run.
    pub fn enforced(&self, enforced: Enforced) {
        self.counts().enforced = Some(enforced);
    }

    /// What was in force during the last run.
    pub fn last_enforced(&self) -> Option<Enforced> {
        self.counts().enforced.clone()
    }

    /// The counts as they are now.
    pub fn shown(&self) -> Shown {
        let counts = self.counts();
        let mut durations: Vec<_> = counts.durations.iter().copied().collect();
        durations.sort_unstable();
        let median = durations.get(durations.len().saturating_sub(1) / 2);
        Shown {
            runs: counts.runs,
            failures: counts.failures,
            last_run: counts.last_run_ms.map(rfc3339),
            last_error: counts.last_error.clone(),
            p50_ms: median.map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
        }
    }
}
