//! `[bus] retention`: how long everything is kept.

use std::time::Duration;

use super::settings::Layers;

/// The smallest limit of the database's size that is taken, in bytes: below it hardly anything could be kept.
const SIZE_MIN: u64 = 1 << 20;

/// How long everything is kept; a zero = for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Events, with all that came of them, once all work on them is done.
    pub max_age: Duration,
    /// Bytes of the database above which the oldest finished events go before their time.
    pub max_size: u64,
    /// Dead letters that nobody decided about, and with them their events.
    pub dead_letters: Duration,
    /// Messages for the person.
    pub notifications: Duration,
    /// The ledger of cron slots.
    pub cron_runs: Duration,
    /// Ended instances of workflows, and definitions that nothing uses.
    pub workflows: Duration,
    /// Conversations of persons that nothing was added to.
    pub sessions: Duration,
    /// The same of conversations that events, schedules and others began.
    pub background_sessions: Duration,
    /// Audit records.
    pub audit: Duration,
}

impl Retention {
    pub(super) fn read(layers: &mut Layers) -> Retention {
        let retention = Retention {
            max_age: layers.duration("bus.retention.max_age"),
            max_size: layers.size("bus.retention.max_size", 0..=u64::MAX),
            dead_letters: layers.duration("bus.retention.dead_letters"),
            notifications: layers.duration("bus.retention.notifications"),
            cron_runs: layers.duration("bus.retention.cron_runs"),
            workflows: layers.duration("bus.retention.workflows"),
            sessions: layers.duration("bus.retention.sessions"),
            background_sessions: layers.duration("bus.retention.background_sessions"),
            audit: layers.duration("bus.retention.audit"),
        };
        if retention.max_size > 0 && retention.max_size < SIZE_MIN {
            layers.wrong("bus.retention.max_size", "must be at least 1MiB, or 0 for no limit.");
        }
        retention
    }
}
