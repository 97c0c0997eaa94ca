//! How a skill has been doing: counted in memory, shared by all its versions, and kept in the database after every run.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;

use crate::bus::{Failure, Outcome};
use crate::clock::{Millis, rfc3339};
use crate::redact;
use crate::sandbox::Enforced;
use crate::store::skills as records;

/// Durations that the median is taken of.
const KEPT: usize = 128;
/// Characters of the last error.
const ERROR_CHARS_MAX: usize = 4096;

/// Counts of one skill.
#[derive(Debug, Default)]
pub struct Stats(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    runs: i64,
    failures: i64,
    last_run_ms: Option<Millis>,
    last_error: Option<String>,
    took_ms: VecDeque<u64>,
    enforced: Option<Enforced>,
}

/// What is shown of the counts.
#[derive(Debug, Clone, Serialize)]
pub struct Shown {
    /// Attempts that ended, over all starts of the daemon.
    pub runs: i64,
    /// Those that failed.
    pub failures: i64,
    /// When the last attempt ended.
    pub last_run: Option<String>,
    /// What the last failed attempt said.
    pub last_error: Option<String>,
    /// Median of the last durations, in milliseconds.
    pub p50_ms: Option<u64>,
}

impl Stats {
    /// Goes on from what is kept.
    pub fn of(kept: &records::Stats) -> Stats {
        Stats(Mutex::new(Counts {
            runs: kept.runs,
            failures: kept.failures,
            last_run_ms: Some(kept.last_run_ms),
            last_error: kept.last_error.clone(),
            took_ms: kept.took_ms.iter().copied().take(KEPT).collect(),
            enforced: None,
        }))
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an attempt that ended at `now_ms`; gives what is to be kept of all.
    pub fn record(&self, outcome: &Outcome, took: Duration, now_ms: Millis) -> records::Stats {
        let mut counts = self.counts();
        counts.runs += 1;
        counts.last_run_ms = Some(now_ms);
        if counts.took_ms.len() == KEPT {
            counts.took_ms.pop_front();
        }
        counts.took_ms.push_back(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
        let failure: Option<&Failure> = match outcome {
            Outcome::Done(_) | Outcome::Postponed(_) => None,
            Outcome::Retry(failure, _) | Outcome::Reject(failure) | Outcome::Buried(failure, _) => Some(failure),
        };
        if let Some(failure) = failure {
            counts.failures += 1;
            let said = failure.chain.join("; ");
            counts.last_error = Some(redact::text(&said).chars().take(ERROR_CHARS_MAX).collect());
        }
        records::Stats {
            runs: counts.runs,
            failures: counts.failures,
            last_run_ms: now_ms,
            last_error: counts.last_error.clone(),
            took_ms: counts.took_ms.iter().copied().collect(),
        }
    }

    /// Keeps what was in force during a run.
    pub fn enforced(&self, enforced: Enforced) {
        self.counts().enforced = Some(enforced);
    }

    /// What was in force during the last run since the start.
    pub fn last_enforced(&self) -> Option<Enforced> {
        self.counts().enforced.clone()
    }

    /// The counts as they are now.
    pub fn shown(&self) -> Shown {
        let counts = self.counts();
        let mut took: Vec<_> = counts.took_ms.iter().copied().collect();
        took.sort_unstable();
        Shown {
            runs: counts.runs,
            failures: counts.failures,
            last_run: counts.last_run_ms.map(rfc3339),
            last_error: counts.last_error.clone(),
            p50_ms: took.get(took.len().saturating_sub(1) / 2).copied(),
        }
    }
}
