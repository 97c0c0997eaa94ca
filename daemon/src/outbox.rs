//! Sends what is to leave the machine. Each sink has a lane: intent → sending → sent, unknown or failed.
//!
//! An intent is marked as sending before the first byte leaves, so a crash cannot hide that it may have arrived: at a
//! sink that is idempotent it is sent again under the same key, elsewhere it ends as unknown and is never repeated.

mod desktop;
mod lane;
mod message;
mod mqtt;
mod ntfy;
mod sinks;
mod spans;
mod view;
mod webhook;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::bus::retry::Backoff;
use crate::bus::{Bus, RetryPolicy};
use crate::egress::EgressError;
use crate::tasks::Supervisor;

pub use sinks::Sinks;

use lane::Lane;

/// The longest wait for another attempt, also when the other side asks for more.
const WAIT_MAX: Duration = Duration::from_secs(86_400);

/// How an attempt to send ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sent {
    /// The other side has it.
    Yes,
    /// The other side does not have it, and may take it later; after this time if it said one.
    Later(String, Option<Duration>),
    /// Nobody knows whether the other side has it.
    Unknown(String),
    /// The other side will never take it.
    Refused(String),
}

impl From<EgressError> for Sent {
    /// What became of a call without an answer. Refused addresses may be good ones later: names move.
    fn from(unheard: EgressError) -> Sent {
        match unheard {
            EgressError::Refused(why) | EgressError::NotSent(why) => Sent::Later(why, None),
            EgressError::Unknown(why) | EgressError::BadAnswer(why) | EgressError::TooLong(why) => Sent::Unknown(why),
        }
    }
}

/// Tries until the intent's own limit ends it, with waits that grow from `base` to `max`.
fn patient(base: Duration, max: Duration) -> RetryPolicy {
    RetryPolicy { max_attempts: u32::MAX, backoff: Backoff::Exponential, base, max, jitter: true }
}

/// The future of an attempt to send.
pub type Sending<'a> = Pin<Box<dyn Future<Output = Sent> + Send + 'a>>;

/// A way out of the machine.
pub trait Sink: Send + Sync {
    /// The name that intents give.
    fn name(&self) -> &str;
    /// True when sending the same key twice has the effect of sending it once.
    fn is_idempotent(&self) -> bool;
    /// How often and how long to try.
    fn retry(&self) -> RetryPolicy;
    /// Sends `payload`; `key` is the same for every attempt.
    fn send<'a>(&'a self, key: &'a str, payload: &'a Value) -> Sending<'a>;
}

/// Starts a lane for each sink.
pub fn start(bus: &Bus, supervisor: &Supervisor, sinks: Vec<Arc<dyn Sink>>) {
    for sink in sinks {
        Lane::default().start(bus, supervisor, &sink, supervisor.stop_token());
    }
}
