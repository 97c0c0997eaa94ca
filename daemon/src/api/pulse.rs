//! The heartbeat of a stream: a comment now and then while there is nothing else to send, so that both sides notice when
//! the other one is gone.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::socket::Peer;

const HEARTBEAT: Duration = Duration::from_secs(15);
/// Heartbeats to a client that has closed its sending half, and the pause before each: the first makes a client that is
/// gone say so, the second finds it gone.
const PROBES: u8 = 2;
const PROBE_PAUSE: Duration = Duration::from_secs(1);
/// A heartbeat as bytes.
pub const BEAT: &[u8] = b": \n\n";

/// What is due.
pub enum Due {
    /// A heartbeat.
    Beat,
    /// What was to come at the time that [`Pulse::also_at`] set.
    Other,
}

/// See the module.
pub struct Pulse {
    timer: Pin<Box<Sleep>>,
    sent_at: Instant,
    /// When something else is due.
    other_at: Option<Instant>,
    /// Its connection, once it is on one.
    peer: Option<Arc<Peer>>,
    /// Heartbeats that are still to follow soon; `None` while the client sends.
    probes: Option<u8>,
}

impl Pulse {
    /// Begins now; `other_at` is when something else is due.
    pub fn new(other_at: Option<Instant>) -> Pulse {
        let now = Instant::now();
        let timer = Box::pin(tokio::time::sleep_until(other_at.unwrap_or(now + HEARTBEAT)));
        Pulse { timer, sent_at: now, other_at, peer: None, probes: None }
    }

    /// Lets it hear of its client's end.
    pub fn attend(&mut self, peer: Arc<Peer>) {
        peer.set_streaming(true);
        self.peer = Some(peer);
    }

    /// Notes that something was sent.
    pub fn sent(&mut self) {
        self.sent_at = Instant::now();
    }

    /// Sets when something else is due next.
    pub fn also_at(&mut self, at: Instant) {
        self.other_at = Some(at);
        self.arm();
    }

    /// Waits for what is due while there is nothing to send.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Due> {
        if self.probes.is_none() && self.peer.as_ref().is_some_and(|peer| peer.is_silent()) {
            self.probes = Some(PROBES);
            self.arm();
        }
        loop {
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let now = Instant::now();
            if self.other_at.is_some_and(|due| due <= now) {
                return Poll::Ready(Due::Other);
            }
            if now >= self.sent_at + self.pause() {
                self.probes = self.probes.map(|left| left.saturating_sub(1));
                self.sent_at = now;
                self.arm();
                return Poll::Ready(Due::Beat);
            }
            self.arm();
        }
    }

    /// How long after the last bytes a heartbeat follows.
    fn pause(&self) -> Duration {
        if self.probes.is_some_and(|left| left > 0) { PROBE_PAUSE } else { HEARTBEAT }
    }

    fn arm(&mut self) {
        let heartbeat = self.sent_at + self.pause();
        self.timer.as_mut().reset(self.other_at.map_or(heartbeat, |at| at.min(heartbeat)));
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        if let Some(peer) = &self.peer {
            peer.set_streaming(false);
        }
    }
}
