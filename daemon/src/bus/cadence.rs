//! Misses events: a source that is expected to tell something now and then, and does not, is told of itself.
//!
//! One timer a source, set to the moment at which its silence would be too long.

use std::time::Duration;

use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{Bus, Origin};
use crate::clock::{Millis, rfc3339};
use crate::error::Error;
use crate::event::NewEvent;
use crate::store::sources as rows;

/// Newest events among which the last one of a source is looked for at a start.
const ROWS_MAX: u32 = 200_000;

/// Watches one source.
pub struct Cadence {
    /// The source's id.
    pub id: String,
    /// What its events say of their source.
    pub source: String,
    /// How long it may be silent.
    pub every: Duration,
    /// Silence before it counts for nothing.
    pub from_ms: Option<Millis>,
    /// The bus.
    pub bus: Bus,
}

impl Cadence {
    /// Runs until `stop`. `last` is when the source last told something since the start; `silent` is told the present
    /// state.
    pub async fn run(
        &self,
        last: impl Fn() -> Option<Millis> + Send,
        silent: impl Fn(Option<Millis>) + Send,
        stop: CancellationToken,
    ) -> Result<(), Error> {
        let source = self.source.clone();
        let before = self.bus.store().read(move |conn| rows::last_event_ms(conn, &source, ROWS_MAX)).await?;
        let begun_ms = self.bus.clock().now_ms();
        let every_ms = i64::try_from(self.every.as_millis()).unwrap_or(i64::MAX / 2);
        let mut told = None;
        loop {
            let heard = last().or(before);
            let now_ms = self.bus.clock().now_ms();
            let base = heard.unwrap_or(begun_ms).max(self.from_ms.unwrap_or(Millis::MIN));
            if told != Some(base) {
                silent(None);
            }
            let left_ms = base.saturating_add(every_ms) - now_ms;
            let wait = if left_ms > 0 {
                Duration::from_millis(left_ms.unsigned_abs())
            } else {
                if told != Some(base) {
                    silent(Some(base));
                    self.tell(heard, base, now_ms).await;
                    told = Some(base);
                }
                self.every
            };
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn tell(&self, heard: Option<Millis>, base: Millis, now_ms: Millis) {
        let since = rfc3339(base);
        tracing::warn!(source = self.source, since, "A source has told nothing for longer than expected.");
        let data = json!({
            "id": self.id,
            "source": self.source,
            "message": format!("No event of {} since {since}.", self.source),
            "last_event_at": heard.map(rfc3339),
            "since": since,
            "expect_every_s": self.every.as_secs(),
            "silent_s": (now_ms - base) / 1000,
        });
        let event = NewEvent {
            subject: Some(self.source.clone()),
            // One silence is told once within `bus.dedup_window`, whatever restarts meanwhile.
            dedup_key: Some(format!("silent/{}/{base}", self.id)),
            ..NewEvent::new("aman/sources", "aman.source.silent", &data)
        };
        self.bus.announce(event, Origin::own("aman")).await;
    }
}
