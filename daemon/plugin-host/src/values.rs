//! The values that pass between the daemon and plugins.
//!
//! They are the records of the newest interface as they stand in schemas/wit, where each field is explained; older
//! interfaces are translated to them.

use std::fmt;

use crate::bindings::aman::plugin as imported;
use crate::bindings::exports::aman::plugin as exported;
use crate::body::BodyStream;

pub use exported::events::Outcome;
pub use exported::http_handler::Request;
pub use exported::source::Polled;
pub use imported::agents::{
    Agent as AgentShown, Definition as AgentDefinition, Status as AgentStatus, Stored as AgentStored,
};
pub use imported::chat::{
    Answer as TurnAnswer, Asked, Attachment, Edited, Failure as TurnFailure, Frame, Message, MessagePage, NewSession,
    NewTurn, Outcome as TurnOutcome, Role, Said, Session, SessionPage, SessionState, TurnInfo,
};
pub use imported::http_client::{Request as OutgoingRequest, Response as OutgoingResponse};
pub use imported::kv::Page as KvPage;
pub use imported::log::Level;
pub use imported::notify::{Action, Notification, Severity};
pub use imported::sql::{Rows, Statement, Value as SqlValue};
pub use imported::types::{Attribute, Caller, Delivery, Error, Event, InvalidField, NewEvent, Priority, Retry, Trust};
pub use imported::workflows::{Instance, NewInstance, SignalEvent, Started, Status};

/// What a plugin answers: its result, or its own word for why there is none. That is no [`crate::Fault`].
pub type Answer<T> = Result<T, Error>;

/// A change of a plugin's key-value store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvChange {
    /// Sets the value of a key.
    Set {
        /// 1 to [`crate::limits::KEY_BYTES_MAX`] bytes.
        key: String,
        /// At most [`crate::limits::VALUE_BYTES_MAX`] bytes.
        value: Vec<u8>,
    },
    /// Sets the value of a key if it is the expected one.
    ///
    /// Staged, it means that the guest was told it is. If it is not any more when the effects commit, none of them may
    /// take effect, and the delivery is tried again.
    Swap {
        /// As in `Set`.
        key: String,
        /// None: there is no value.
        expected: Option<Vec<u8>>,
        /// As in `Set`.
        value: Vec<u8>,
    },
    /// Removes a key.
    Delete {
        /// As in `Set`.
        key: String,
    },
}

impl KvChange {
    /// The key that it changes.
    pub fn key(&self) -> &str {
        match self {
            KvChange::Set { key, .. } | KvChange::Swap { key, .. } | KvChange::Delete { key } => key,
        }
    }
}

/// What a call changed that is to take effect with the end of its delivery, in the order of the calls. What else it asked for
/// is kept in the object that the daemon made for the call.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Staged {
    /// Changes of the key-value store.
    pub kv: Vec<KvChange>,
}

/// A change of a metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Metric {
    /// Adds to a counter.
    Count(u64),
    /// Sets a gauge.
    Gauge(f64),
}

/// A plugin's answer to a request. Names and values of headers are as the plugin wrote them: check them.
#[derive(Debug)]
pub struct Response {
    /// 200 to 599.
    pub status: u16,
    /// At most [`crate::limits::HEADER_BYTES_MAX`] bytes altogether.
    pub headers: Vec<(String, String)>,
    /// What follows.
    pub body: Body,
}

/// The body of a [`Response`].
#[derive(Debug)]
pub enum Body {
    /// All of it.
    Bytes(Vec<u8>),
    /// To be pulled piece by piece.
    Stream(BodyStream),
}

/// An error in words, for logs and people.
pub struct Words<'a>(pub &'a Error);

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, text) = match self.0 {
            Error::Denied(text) => ("denied", text),
            Error::NotFound(text) => ("not found", text),
            Error::Invalid(field) => return write!(f, "invalid {}: {}", field.field, field.reason),
            Error::Conflict(text) => ("conflict", text),
            Error::Limit(text) => ("limit", text),
            Error::Unavailable(retry) => ("unavailable", &retry.reason),
            Error::Timeout(text) => ("timeout", text),
            Error::Internal(text) => ("internal", text),
        };
        if text.is_empty() { f.write_str(kind) } else { write!(f, "{kind}: {text}") }
    }
}
