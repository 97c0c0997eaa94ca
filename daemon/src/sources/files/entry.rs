//! What the hints told of one path, and what follows from them. Pure.

use std::time::{Duration, Instant};

use super::dirty::{Again, Evidence, Hint, STABLE};

/// A path that never rests is looked at after this many times its settling time.
const RESTLESS: u32 = 10;

/// One path that waits to be looked at.
#[derive(Debug)]
pub(super) struct Entry {
    /// The first hint.
    pub first: Instant,
    /// The newest hint.
    pub last: Instant,
    /// Closed after the last write, or moved in.
    pub complete: bool,
    /// Seen being written.
    pub grew: bool,
    /// How often it was opened, by readers too, whose closes are not told.
    pub opens: u32,
    /// How often a writer closed it.
    pub closes: u32,
    /// How often it was put off since the newest hint.
    pub tries: u32,
    /// As [`super::dirty::Due`] says.
    pub touched_ns: Option<i64>,
    /// When to look, if not as soon as it rested.
    pub again: Option<Again>,
}

impl Entry {
    /// Nothing is known but that there was a hint.
    pub fn new(now: Instant) -> Entry {
        Entry {
            first: now,
            last: now,
            complete: false,
            grew: false,
            opens: 0,
            closes: 0,
            tries: 0,
            touched_ns: None,
            again: None,
        }
    }

    /// Takes in a hint.
    pub fn note(&mut self, hint: Hint, now: Instant) {
        if hint == Hint::Opened {
            self.opens = self.opens.saturating_add(1);
            return;
        }
        self.last = now;
        (self.tries, self.touched_ns) = (0, None);
        match hint {
            Hint::Created => {
                (self.complete, self.grew, self.opens, self.closes) = (false, false, 0, 0);
                self.again = Some(Again::At(now + STABLE));
            }
            Hint::Written => {
                (self.complete, self.grew) = (false, true);
                // Whoever writes has it open, even if that was not seen.
                self.opens = self.opens.max(self.closes.saturating_add(1));
                self.again = Some(Again::At(now + STABLE));
            }
            Hint::Closed => {
                self.complete = true;
                self.closes = self.closes.saturating_add(1);
                self.again = None;
            }
            Hint::Arrived | Hint::Folder => {
                (self.complete, self.opens, self.closes) = (true, 0, 0);
                self.again = None;
            }
            Hint::Left => self.again = None,
            Hint::Touched | Hint::Opened => {}
        }
    }

    /// When to look at it; none when only a hint can tell.
    pub fn due(&self, settle: Duration) -> Option<Instant> {
        let rested = self.last + settle;
        match &self.again {
            None => Some(rested.min(self.first + settle * RESTLESS)),
            Some(Again::At(at)) => Some(rested.max(*at)),
            Some(Again::With(_)) => Some(rested),
            Some(Again::OnHint) => None,
        }
    }

    /// How sure it is that it is complete.
    pub fn evidence(&self) -> Evidence {
        match self.complete {
            true if self.opens > self.closes => Evidence::Reopened,
            true => Evidence::Complete,
            false if self.grew || self.opens > self.closes => Evidence::Growing,
            false => Evidence::None,
        }
    }
}
