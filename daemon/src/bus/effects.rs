//! What a consumer answers, and what it may ask for: its effects are applied in the transaction that settles it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::Error;
use crate::event::NewEvent;
use crate::store::Tx;

/// A change of the consumer's own tables that commits with the delivery.
pub type StateWrite = Box<dyn FnOnce(&mut Tx<'_>) -> Result<(), Error> + Send>;

/// What a consumer asks for. All of it commits with the delivery, or none.
#[derive(Default)]
pub struct Effects {
    /// New events; their trust is the lower of the cause's and the consumer's.
    pub publish: Vec<NewEvent>,
    /// Messages for the person.
    pub notify: Vec<NewNotification>,
    /// What is to leave the machine.
    pub outgoing: Vec<NewIntent>,
    /// Kept with the delivery, for whoever asks.
    pub result: Option<Value>,
    /// A change of the consumer's own tables.
    pub state: Option<StateWrite>,
}

/// How loud a notification is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know.
    #[default]
    Info,
    /// Worth a look.
    Warning,
    /// Something failed.
    Error,
    /// Act now.
    Critical,
}

impl Severity {
    /// Its name in JSON and in the database.
    pub fn name(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Error => "error",
            Severity::Critical => "critical",
        }
    }
}

/// A message for the person.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewNotification {
    /// One line.
    pub title: String,
    /// The rest.
    #[serde(default)]
    pub message: String,
    /// How loud.
    #[serde(default)]
    pub severity: Severity,
}

/// Something that is to leave the machine through the sink of that name.
#[derive(Debug, Clone, PartialEq)]
pub struct NewIntent {
    /// Name of the sink.
    pub sink: String,
    /// What it gets.
    pub payload: Value,
    /// After this time it is not sent any more.
    pub ttl: Duration,
}

/// Why an attempt failed: outermost message first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Messages from the outside in; never empty.
    pub chain: Vec<String>,
    /// True when the attempt was ended by its time limit.
    pub timed_out: bool,
}

impl Failure {
    /// A failure with one message.
    pub fn new(message: impl Into<String>) -> Failure {
        Failure { chain: vec![message.into()], timed_out: false }
    }

    /// Puts what was being done before the chain.
    #[must_use]
    pub fn within(mut self, message: impl Into<String>) -> Failure {
        self.chain.insert(0, message.into());
        self
    }
}

/// How an attempt ended.
pub enum Outcome {
    /// It worked; these are its effects.
    Done(Effects),
    /// It failed and may work later: after the consumer's back-off, or after the time given here.
    Retry(Failure, Option<Duration>),
    /// It failed and cannot work: dead letter at once.
    Reject(Failure),
    /// It did not begin, because the consumer is away: it is tried again after this time, and counts as no attempt.
    Postponed(Duration),
}
