//! Agents as plugins ask them. Neither knows the other: whoever runs agents tells the bus how ([`Agency`]), and plugins ask the
//! bus. What is shown of agents, sessions and messages is what HTTP shows of them.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use serde_json::Value;

use super::publish::Bus;
use crate::error::Error;
use crate::event::{Event, Trust};
use crate::id::TraceId;

/// Who asks.
#[derive(Debug, Clone)]
pub struct Asker {
    /// Its name as a principal, `plugin/<name>`.
    pub principal: String,
    /// How far what it asks is believed; see [`Agency`].
    pub trust: Trust,
    /// The trace that it belongs to.
    pub trace: TraceId,
    /// The event that led to it.
    pub cause: Option<Arc<Event>>,
}

/// What is asked for, and answered at once.
#[derive(Debug, Clone)]
pub enum Request {
    /// Every agent: a list.
    Agents,
    /// One agent with its definition.
    Agent(String),
    /// A definition is to be stored: `{agent, is_new}`.
    Put {
        /// The agent.
        id: String,
        /// All of its definition.
        definition: Value,
    },
    /// An agent is to be removed.
    Remove(String),
    /// A session is wanted.
    Create {
        /// Its agent; none = the default one.
        agent: Option<String>,
        /// Its title; none = one is made of the first words.
        title: Option<String>,
        /// Names it among all sessions of whoever asks; none = it is another one each time.
        key: Option<String>,
    },
    /// The asker's sessions: `{items, next}`.
    Sessions {
        /// Only those with this agent.
        agent: Option<String>,
        /// `next` of the page before.
        after: Option<String>,
        /// As many of them.
        rows_max: usize,
    },
    /// How a session stands.
    Session(String),
    /// Messages of a session: `{items, next}`.
    History {
        /// The session.
        session: String,
        /// `next` of the page before.
        after: Option<String>,
        /// As many of them.
        rows_max: usize,
    },
    /// The turn that is under way in a session is to stop: `{stopped}`.
    Stop(String),
    /// A session is to be removed.
    Delete(String),
    /// Every turn that the asker has under way is to stop.
    StopAll,
}

/// What is said.
#[derive(Debug, Clone)]
pub enum Said {
    /// More words, with attachments as HTTP takes them.
    Send {
        /// The words.
        text: String,
        /// A list.
        attachments: Value,
    },
    /// Other words in the place of earlier ones.
    Edit {
        /// The id of the message with the earlier ones.
        message: String,
        /// The words.
        text: String,
    },
    /// The last words once more.
    Retry,
}

/// A turn that is wanted.
#[derive(Debug, Clone)]
pub struct NewTurn {
    /// The session.
    pub session: String,
    /// What is to be answered.
    pub said: Said,
    /// The version of the session that was seen; none = any.
    pub expected_version: Option<i64>,
    /// Names the turn within its session; none = it is another one each time.
    pub key: Option<String>,
}

/// What happens in a turn: a name and its data; none at the end. It is polled by one task at a time.
pub type Frames = Box<dyn FnMut(&mut Context<'_>) -> Poll<Option<(&'static str, Value)>> + Send + Sync>;

/// A turn that is on disk, and goes on whoever looks.
pub struct BegunTurn {
    /// Its id.
    pub id: String,
    /// Its session.
    pub session: String,
    /// Its trace.
    pub trace: String,
    /// False when it was there already.
    pub is_new: bool,
    /// What happens in it, from its begin.
    pub frames: Frames,
}

/// The future of an answer.
pub type Answering<T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send>>;

/// What agents do for others, as whoever runs them says it. Whoever asks is believed no further than plugins, and every change
/// has a record in the audit log with their name.
pub struct Agency {
    /// Answers a request.
    pub ask: Box<dyn Fn(Asker, Request) -> Answering<Value> + Send + Sync>,
    /// Has a turn taken.
    pub turn: Box<dyn Fn(Asker, NewTurn) -> Answering<BegunTurn> + Send + Sync>,
    /// What came of a turn of the asker's, once it has ended: `{status, text, message_id, error}`; none before.
    pub answer: Box<dyn Fn(Asker, String) -> Answering<Option<Value>> + Send + Sync>,
}

impl Bus {
    /// Sets what agents do for others; only the first call counts.
    pub fn serve_agency(&self, agency: Agency) {
        let _first = self.inner.agency.set(agency);
    }

    /// What agents do for others.
    pub fn agency(&self) -> Result<&Agency, Error> {
        let starting =
            || Error::Busy { code: "starting", what: "Agents are not there yet.".to_owned(), retry_after_ms: 1000 };
        self.inner.agency.get().ok_or_else(starting)
    }

    /// Counts something that has no event as its cause among what its trace may lead to: `Conflict` `causation_loop` when that
    /// is too much, so that agents and plugins that ask each other come to an end.
    pub fn admit_to_trace(&self, trace: TraceId) -> Result<(), Error> {
        if self.inner.chains.admit(trace, 1) {
            return Ok(());
        }
        let reason = "This trace has led to as much as one cause may lead to within an hour. Break the loop.";
        Err(Error::conflict("causation_loop", reason))
    }
}
