//! Conversations with agents, in sessions of the plugin's own. A turn goes on whatever becomes of the call that asked for it.
//!
//! ```no_run
//! use aman_plugin::{Response, Result, chat};
//!
//! fn whole(question: &str) -> Result<String> {
//!     let session = chat::create(None)?;
//!     chat::say(&session.id, question)?.words()
//! }
//!
//! fn streamed(session: &str, question: &str) -> Result<Response> {
//!     Ok(Response::turn(chat::Turn::send(session, question).watch()?))
//! }
//! ```

use serde::de::DeserializeOwned;

use crate::bindings::aman::plugin::chat as host;
use crate::{Error, Response, Result, Value};

pub use crate::bindings::aman::plugin::chat::{
    Answer, Attachment, Failure, Frame, Message, MessagePage, NewSession, Outcome, Role, Session, SessionPage,
    SessionState, TurnInfo, delete, history, list, read, stop,
};

/// Creates a session with an agent; none is the daemon's own.
pub fn create(agent: Option<&str>) -> Result<Session> {
    create_with(agent, None)
}

/// As [`create`], unless this plugin has created one with the same key: then that one it is.
pub fn create_once(agent: Option<&str>, key: &str) -> Result<Session> {
    create_with(agent, Some(key.to_owned()))
}

fn create_with(agent: Option<&str>, key: Option<String>) -> Result<Session> {
    host::create(&NewSession { agent: agent.map(str::to_owned), title: None, key, extensions: Vec::new() })
}

/// Says something, and waits for the answer.
pub fn say(session: &str, text: impl Into<String>) -> Result<Answer> {
    Turn::send(session, text).take()
}

/// A turn that is wanted.
pub struct Turn(host::NewTurn);

impl Turn {
    /// An answer to more words.
    pub fn send(session: &str, text: impl Into<String>) -> Turn {
        Turn::of(session, host::Asked::Send(host::Said { text: text.into(), attachments: Vec::new() }))
    }

    /// An answer to other words in the place of earlier ones.
    pub fn edit(session: &str, message: &str, text: impl Into<String>) -> Turn {
        Turn::of(session, host::Asked::Edit(host::Edited { message: message.to_owned(), text: text.into() }))
    }

    /// Another answer to the last words.
    pub fn retry(session: &str) -> Turn {
        Turn::of(session, host::Asked::Retry)
    }

    fn of(session: &str, asked: host::Asked) -> Turn {
        let session = session.to_owned();
        Turn(host::NewTurn { session, asked, expected_version: None, key: None, extensions: Vec::new() })
    }

    /// With a text file or a picture; only [`Turn::send`] takes them.
    pub fn attach(mut self, name: &str, media_type: &str, data: impl Into<Vec<u8>>) -> Turn {
        if let host::Asked::Send(said) = &mut self.0.asked {
            let (name, media_type) = (name.to_owned(), media_type.to_owned());
            said.attachments.push(Attachment { name, media_type, data: data.into() });
        }
        self
    }

    /// Equal keys within a session are one turn.
    pub fn key(mut self, key: impl Into<String>) -> Turn {
        self.0.key = Some(key.into());
        self
    }

    /// An [`Error::Conflict`] when the session is at another version by now.
    pub fn expect_version(mut self, version: u64) -> Turn {
        self.0.expected_version = Some(version);
        self
    }

    /// Has it taken, and waits for its end.
    pub fn take(self) -> Result<Answer> {
        host::turn(&self.0)
    }

    /// Has it taken, and looks at it while it is.
    pub fn watch(self) -> Result<Watched> {
        let (info, stream) = host::stream_turn(&self.0)?;
        Ok(Watched { info, stream })
    }
}

/// A turn that is looked at: its frames, to the last one.
pub struct Watched {
    /// Which turn it is.
    pub info: TurnInfo,
    stream: host::TurnStream,
}

impl Iterator for Watched {
    type Item = Result<Frame>;

    fn next(&mut self) -> Option<Result<Frame>> {
        self.stream.next().transpose()
    }
}

impl Frame {
    /// Whether nothing follows it.
    pub fn is_end(&self) -> bool {
        matches!(self.kind.as_str(), "done" | "error")
    }

    /// Its data.
    pub fn value<T: DeserializeOwned>(&self) -> Result<T> {
        Ok(serde_json::from_str(&self.data)?)
    }

    /// The words, if it is a `token`.
    pub fn words(&self) -> Option<String> {
        let data: Value = (self.kind == "token").then(|| serde_json::from_str(&self.data).ok())??;
        data["text"].as_str().map(str::to_owned)
    }

    /// It as a server-sent event, as the daemon's own API sends it; `waiting` is a comment, which keeps a connection alive.
    pub fn event(&self) -> String {
        if self.kind == "waiting" {
            ": waiting\n\n".to_owned()
        } else {
            format!("event: {}\ndata: {}\n\n", self.kind, self.data)
        }
    }
}

impl Answer {
    /// The agent's words; an error when the turn failed, or was stopped before it had an answer.
    pub fn words(self) -> Result<String> {
        match self.failure {
            Some(Failure { code, detail }) => Err(Error::unavailable(format!("the agent failed ({code}): {detail}"))),
            None if matches!(self.outcome, Outcome::Done) => Ok(self.text),
            None => Err(Error::unavailable("the turn was stopped before it had an answer")),
        }
    }
}

impl Response {
    /// A turn as server-sent events, as `POST /chat/session/{id}/send` streams it.
    pub fn turn(turn: Watched) -> Response {
        let pieces = turn.map(|frame| frame.map(|frame| frame.event().into_bytes()));
        Response::stream("text/event-stream", pieces).header("cache-control", "no-store")
    }
}
