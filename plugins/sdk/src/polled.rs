//! What a poll found.

use crate::{NewEvent, Polled};

impl Polled {
    /// These events, at most 1,000 and in order; the cursor stays away unless it is given.
    pub fn new(events: Vec<NewEvent>) -> Polled {
        Polled { events, cursor: None, next_ms: None, extensions: Vec::new() }
    }

    /// With what the next poll gets as its cursor; stored together with the events.
    pub fn cursor(mut self, cursor: impl Into<String>) -> Polled {
        self.cursor = Some(cursor.into());
        self
    }

    /// With the time to the next poll instead of the manifest's; 0 means at once, because there is more.
    pub fn next_ms(mut self, next_ms: u64) -> Polled {
        self.next_ms = Some(next_ms);
        self
    }
}
