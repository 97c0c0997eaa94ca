//! How many requests a second each principal may make.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use hyper::StatusCode;

use super::auth::Principal;
use super::problem::Problem;
use crate::event::Trust;

/// Principals that are remembered; those that used nothing of late make room.
const PRINCIPALS_MAX: usize = 4096;

/// Requests a second; 0 = no limit. Twice as many may come at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Of the owner.
    pub owner: u32,
    /// Of every other principal.
    pub others: u32,
}

/// What each principal may still do at once.
pub struct Rates {
    limits: Mutex<Limits>,
    left: Mutex<HashMap<Arc<str>, (f64, Instant)>>,
}

impl Rates {
    /// Rates within `limits`.
    pub fn new(limits: Limits) -> Rates {
        Rates { limits: Mutex::new(limits), left: Mutex::default() }
    }

    /// Changes the limits from now on.
    pub fn retune(&self, limits: Limits) {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    /// Counts a request of `principal`, or refuses it.
    pub fn admit(&self, principal: &Principal) -> Result<(), Problem> {
        let limits = *self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = if principal.trust == Trust::Owner { limits.owner } else { limits.others };
        if limit == 0 { Ok(()) } else { self.admit_at(&principal.name, f64::from(limit), Instant::now()) }
    }

    fn admit_at(&self, name: &Arc<str>, per_s: f64, now: Instant) -> Result<(), Problem> {
        let burst = 2.0 * per_s;
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        if left.len() >= PRINCIPALS_MAX && !left.contains_key(name) {
            left.retain(|_, (_, since)| (now - *since).as_secs_f64() < 2.0);
        }
        let (tokens, since) = left.entry(Arc::clone(name)).or_insert((burst, now));
        let refilled = per_s.mul_add(now.saturating_duration_since(*since).as_secs_f64(), *tokens).min(burst);
        (*tokens, *since) = (if refilled < 1.0 { refilled } else { refilled - 1.0 }, now);
        drop(left);
        if refilled < 1.0 {
            let detail = format!(
                "'{name}' may make {per_s} requests a second. Wait for Retry-After, or raise http.rate_limit (of the owner: \
                 http.owner_rate_limit)."
            );
            return Err(Problem::new((StatusCode::TOO_MANY_REQUESTS, "rate_limited"), detail).retry_after_ms(1000));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_has_a_burst_and_a_rate() {
        let rates = Rates::new(Limits { owner: 0, others: 10 });
        let (anna, ben): (Arc<str>, Arc<str>) = ("anna".into(), "ben".into());
        let begin = Instant::now();
        let passed = |who: &Arc<str>, at: u64, tries: usize| {
            (0..tries).filter(|_| rates.admit_at(who, 10.0, begin + Duration::from_millis(at)).is_ok()).count()
        };
        assert_eq!(passed(&anna, 0, 30), 20);
        assert_eq!(passed(&ben, 0, 1), 1, "others are not concerned");
        assert_eq!(passed(&anna, 500, 30), 5);
        assert_eq!(passed(&anna, 60_000, 30), 20);
        assert!(rates.admit(&Principal::owner()).is_ok());
    }
}
