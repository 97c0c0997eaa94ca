//! The one way through: everything enters by [`Bus::publish`], is matched by the [`router`], delivered by
//! [`dispatch`], and what consumers ask for ([`effects`]) is applied where their delivery is settled.

pub mod agency;
mod awaited;
pub mod cadence;
mod chains;
mod dispatch;
pub mod effects;
pub mod explain;
mod flows;
mod lane;
mod links;
pub mod live;
mod notices;
mod overload;
mod publish;
pub mod retry;
pub mod router;
mod settle;
mod spans;
mod storage;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::event::{Event, Trust, TypePattern};
use crate::expr::Expr;
use crate::id::DeliveryId;

pub use awaited::Awaited;
pub use effects::{Action, Effects, Failure, NewIntent, NewNotification, Outcome, Severity, StateWrite};
pub use flows::{Flows, NewInstance, NewSignal, Preparing, Wanted};
pub use notices::{Notices, OwnEvent, put_away};
pub use publish::{Accepted, Bus, Idempotency, Origin, Publish, Settings, Stats};
pub use retry::RetryPolicy;

/// Which deliveries of one consumer may run side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Concurrency {
    /// One at a time in sequence order; a waiting retry holds the rest.
    Serial,
    /// At most this many; equal partition keys keep order, higher priority first among the ready.
    Parallel(usize),
}

/// When a consumer wants an event: its type matches and, if there is one, its condition holds.
#[derive(Debug, Clone)]
pub struct Rule {
    /// The types.
    pub pattern: TypePattern,
    /// jq over the event; wanted when the first output is neither null nor false.
    pub condition: Option<Expr>,
}

/// Whether a consumer may get events now. What it would have got is explained by `/why` all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It gets what matches.
    Active,
    /// Switched off for a while: what matches waits for it.
    Paused,
    /// Switched off by the operator.
    Disabled,
    /// Its content is not trusted (yet).
    Untrusted,
}

impl Standing {
    /// Whether a delivery is made of what matches.
    pub fn takes(self) -> bool {
        matches!(self, Standing::Active | Standing::Paused)
    }
}

/// What the bus must know of a consumer.
#[derive(Debug, Clone)]
pub struct ConsumerSpec {
    /// Unique, for example `skill/inbox-triage`; also the source of its events.
    pub name: String,
    /// `skill`, `workflow`, `plugin`, `agent` or `internal`.
    pub kind: &'static str,
    /// Any of them brings an event to it, once.
    pub rules: Vec<Rule>,
    /// See [`Concurrency`].
    pub concurrency: Concurrency,
    /// What happens after a failed attempt.
    pub retry: RetryPolicy,
    /// How long one attempt may take.
    pub timeout: Duration,
    /// Its effects are trusted no further than this.
    pub trust: Trust,
    /// See [`Standing`].
    pub standing: Standing,
    /// True when an attempt can act outside the settling transaction (a script, an outgoing call): such attempts are
    /// claimed durably before they run, so that a crash cannot hide that they began.
    pub acts_outside: bool,
}

/// One attempt to deliver an event.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// What to deliver.
    pub event: Arc<Event>,
    /// The delivery, the same over all attempts.
    pub delivery: DeliveryId,
    /// The delivery's id as programs see it.
    pub delivery_id: String,
    /// Counts from 1.
    pub number: u32,
    /// Ends the attempt: time limit, or the daemon stops.
    pub cancel: CancellationToken,
}

/// A time plan that a consumer brings along.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Cron expression.
    pub expression: String,
    /// IANA zone it is meant in; none = UTC.
    pub timezone: Option<String>,
}

/// The future of an attempt.
pub type Delivered<'a> = Pin<Box<dyn Future<Output = Outcome> + Send + 'a>>;

/// Waits until a consumer is there again; how long to wait before it is asked once more, when that was no use.
pub type Absence<'a> = Pin<Box<dyn Future<Output = Option<Duration>> + Send + 'a>>;

/// Whoever gets events. It answers with an [`Outcome`] and writes no table of the bus.
pub trait Consumer: Send + Sync {
    /// Handles one event. May be called again for the same delivery after a failure or a crash.
    fn deliver(&self, attempt: Attempt) -> Delivered<'_>;

    /// Asked before anything is noted of an attempt: `None` when it can begin, which is the usual. Whoever is away for a
    /// while, and says so here, costs no attempt, also when the daemon dies meanwhile.
    fn absence(&self) -> Option<Absence<'_>> {
        None
    }

    /// The time plan by which it wants to run, besides its rules.
    fn plan(&self) -> Option<Plan> {
        None
    }
}
