//! When to try again. Pure.

use std::time::Duration;

/// How the wait grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backoff {
    /// Always the base.
    Fixed,
    /// Doubles with every failed attempt.
    Exponential,
}

/// What happens after a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts in all; then the delivery is dead. At least 1.
    pub max_attempts: u32,
    /// How the wait grows.
    pub backoff: Backoff,
    /// The first wait.
    pub base: Duration,
    /// The longest wait.
    pub max: Duration,
    /// Draws the wait between zero and its full length, so that failures do not come back in step.
    pub jitter: bool,
}

impl Default for RetryPolicy {
    /// Five attempts, exponential with full jitter, from 100 ms to 60 s.
    fn default() -> RetryPolicy {
        RetryPolicy {
            max_attempts: 5,
            backoff: Backoff::Exponential,
            base: Duration::from_millis(100),
            max: Duration::from_secs(60),
            jitter: true,
        }
    }
}

impl RetryPolicy {
    /// How long to wait after failed attempt number `attempt` (from 1) before jitter; `None` once the delivery is dead.
    ///
    /// Never overflows: growth saturates at `max`.
    /// Source: capped exponential backoff with full jitter (M. Brooker, AWS Architecture Blog, 2015).
    pub fn wait(&self, attempt: u32) -> Option<Duration> {
        if attempt >= self.max_attempts {
            return None;
        }
        let factor = match self.backoff {
            Backoff::Fixed => 1,
            Backoff::Exponential => 1_u32.checked_shl(attempt.saturating_sub(1)).unwrap_or(u32::MAX),
        };
        Some(self.base.saturating_mul(factor).min(self.max))
    }

    /// The wait of [`RetryPolicy::wait`] after jitter; `draw` is a random number from 0.0 to 1.0.
    pub fn wait_drawn(&self, attempt: u32, draw: f64) -> Option<Duration> {
        let full = self.wait(attempt)?;
        Some(if self.jitter { full.mul_f64(draw.clamp(0.0, 1.0)) } else { full })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_end() {
        let policy = RetryPolicy { jitter: false, ..RetryPolicy::default() };
        let waits: Vec<_> = (1..=5).map(|n| policy.wait(n).map(|d| d.as_millis())).collect();
        assert_eq!(waits, [Some(100), Some(200), Some(400), Some(800), None]);
        let long = RetryPolicy { max_attempts: u32::MAX, ..policy };
        assert_eq!(long.wait(33), Some(Duration::from_secs(60)));
        assert_eq!(long.wait(4_000_000), Some(Duration::from_secs(60)));
        let fixed = RetryPolicy { backoff: Backoff::Fixed, ..policy };
        assert_eq!(fixed.wait(4), Some(Duration::from_millis(100)));
        let jittered = RetryPolicy::default();
        assert_eq!(jittered.wait_drawn(1, 0.5), Some(Duration::from_millis(50)));
        assert_eq!(jittered.wait_drawn(5, 0.5), None);
    }
}
