//! Tells of back-pressure: pushes that were refused leave no trace of their own, so the bus makes one.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

use super::publish::{Bus, Origin};
use crate::event::NewEvent;

/// The source of these events, and who is said to have published them.
const NAME: &str = "aman/bus";
/// It is told at most once in this time.
const TOLD_EVERY: Duration = Duration::from_secs(3600);
/// How long refusals are counted before they are told.
const COUNTED_FOR: Duration = Duration::from_secs(2);

/// When back-pressure was last told.
#[derive(Default)]
pub(super) struct Overload(Mutex<Option<Instant>>);

impl Overload {
    /// True when it is time to tell of it; then it counts as told.
    fn is_due(&self, now: Instant) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let due = told.is_none_or(|last| now.saturating_duration_since(last) >= TOLD_EVERY);
        if due {
            *told = Some(now);
        }
        due
    }
}

impl Bus {
    /// Tells of refused pushes by `aman.bus.overloaded`, past the limits that refuse them.
    pub(super) fn tell_overload(&self) {
        if !self.inner.overload.is_due(Instant::now()) {
            return;
        }
        let bus = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(COUNTED_FOR).await;
            let stats = bus.stats();
            let count = |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
            let data = json!({
                "refused": count(&stats.refused),
                "pending": stats.pending.load(std::sync::atomic::Ordering::Relaxed),
                "max_pending": bus.inner.settings.load().max_pending,
            });
            tracing::warn!(%data, "Events are refused: more is waiting than the daemon lets wait.");
            bus.announce(NewEvent::new(NAME, "aman.bus.overloaded", &data), Origin::own(NAME)).await;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_once_an_hour() {
        let (overload, begin) = (Overload::default(), Instant::now());
        let due = |s: u64| overload.is_due(begin + Duration::from_secs(s));
        assert_eq!([due(0), due(1), due(3599), due(3600), due(3601)], [true, false, false, true, false]);
    }
}
