//! Saying something to an agent: the message, the turn that answers it, and the event that has the turn taken, in one
//! transaction. Whoever is answered can rely on it that all three are on disk.

use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

use super::consumer::name as consumer_name;
use super::frames::{About, Viewer};
use super::sessions::{Visitor, made_title, under_way};
use super::{Agents, Audit, Inner, MESSAGE};
use crate::bus::{Origin, Publish, StateWrite};
use crate::clock::Millis;
use crate::error::Error;
use crate::event::{Event, NewEvent, Priority, Trust};
use crate::id::{self, TraceId};
use crate::models::ErrorKind;
use crate::redact;
use crate::store::Tx;
use crate::store::chat::{self as rows, Attachment, Body, MessageRow, NewMessage, Role, SessionRow};
use crate::store::events::Cause;
use crate::store::turns::{self, NewTurn};

/// Characters of a person's text.
pub const SAID_CHARS_MAX: usize = 100_000;
/// When to look again for a model that somebody may have started.
const NO_MODEL_RETRY_MS: u64 = 30_000;

/// What is to be answered.
#[derive(Debug, Clone)]
pub enum Asked {
    /// More words.
    Send {
        /// The words.
        text: String,
        /// What comes with them.
        attachments: Vec<Attachment>,
    },
    /// Other words in the place of earlier ones: a branch beside them, with what came with them.
    Edit {
        /// The id of the message with the earlier ones.
        message: String,
        /// The words.
        text: String,
    },
    /// The last words of the person once more: a branch beside what answered them.
    Retry,
}

/// A request for a turn.
#[derive(Debug, Clone)]
pub struct Asking {
    /// What is to be answered.
    pub asked: Asked,
    /// The version of the session that the asker has seen; none = any.
    pub expected_version: Option<i64>,
    /// The trace that it belongs to.
    pub trace: TraceId,
}

/// What is particular to a turn that no person asks for.
#[derive(Debug, Clone, Default)]
pub(super) struct Errand {
    /// The id of the turn; `Conflict` `already_exists` when it is there. None = a fresh one.
    pub turn: Option<String>,
    /// The event that led to it.
    pub cause: Option<Arc<Event>>,
    /// So many turns may the asker have under way; none = any number.
    pub open_max: Option<i64>,
}

/// A turn that will be taken.
pub struct Begun {
    /// `{message_id, turn_id, session_id, version, trace_id}`.
    pub shown: Value,
    /// Looks at it from its begin.
    pub viewer: Viewer,
}

/// What the transaction works with.
struct Plan {
    about: About,
    asked: Asked,
    errand: Errand,
    expected_version: Option<i64>,
    trust: Trust,
    /// Who asks; the session's principal, unless an administrator does.
    asker: String,
    message: String,
    now_ms: Millis,
}

impl Agents {
    /// Has a turn taken. `Conflict` `in_progress` while another one is under way in the session, `version_conflict` when it
    /// changed since it was seen, `invalid_state` when it is closed or its agent is not there; `Forbidden` `soul_boundary`,
    /// `Invalid` `content_policy`, `Busy` `no_model`.
    pub async fn ask(&self, who: &Visitor, session: &str, asking: Asking, audit: Audit) -> Result<Begun, Error> {
        self.ask_on(who, session, asking, Errand::default(), audit).await
    }

    /// As [`Agents::ask`], for somebody else than a person.
    pub(super) async fn ask_on(
        &self,
        who: &Visitor,
        session: &str,
        asking: Asking,
        errand: Errand,
        audit: Audit,
    ) -> Result<Begun, Error> {
        let row = self.inner.seen(who, session).await?;
        check_open(&row)?;
        let definition = self.ready(&row.agent).map_err(|error| without_agent(error, &row.agent))?;
        self.inner.admit(&definition, &asking.asked).await?;
        // Another model is asked for the title: it sees no more than the agent's.
        let first = match &asking.asked {
            Asked::Send { text, .. } if row.title.is_none() && row.kind == rows::Kind::Person => {
                Some(redact::text(text).into_owned())
            }
            _ => None,
        };
        let turn = errand.turn.clone().unwrap_or_else(id::fresh);
        let cause = errand.cause.clone().map(|event| Cause { event, delivery: None, span: None });
        let about = About {
            session: row.id.clone(),
            turn: turn.clone(),
            agent: row.agent.clone(),
            principal: row.principal.clone(),
            trace: asking.trace,
        };
        let message = id::fresh();
        let event = event(&row, &message, &turn, asking.trace);
        let plan = Plan {
            about,
            asked: asking.asked,
            errand,
            expected_version: asking.expected_version,
            trust: who.trust,
            asker: who.principal.clone(),
            message,
            now_ms: self.inner.now_ms(),
        };
        let begun: Arc<Mutex<Option<Begun>>> = Arc::default();
        let (inner, slot) = (Arc::clone(&self.inner), Arc::clone(&begun));
        let state: StateWrite = Box::new(move |tx| {
            let shown = plan.store(tx)?;
            audit(tx, &shown)?;
            // Before the commit, after which the turn may begin at any moment: nothing of it is missed.
            let viewer = inner.frames.view(plan.about);
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(Begun { shown, viewer });
            Ok(())
        });
        let origin = Origin { principal: who.principal.clone(), trust: who.trust, internal: true };
        let publish = Publish { events: vec![event], origin, idempotency: None, state: Some(state) };
        let published = self.inner.bus.publish_caused(publish, cause).await;
        let begun = begun.lock().unwrap_or_else(PoisonError::into_inner).take();
        match (published, begun) {
            (Ok(_), Some(begun)) => {
                if let Some(said) = first {
                    self.inner.entitle(definition, &said, row.number, begun.viewer.clone());
                }
                Ok(begun)
            }
            (Ok(_), None) => Err(Error::internal("beginning a turn")("nothing was stored")),
            (Err(error), begun) => {
                if begun.is_some() {
                    self.inner.frames.forget(session, Some(&turn));
                }
                Err(error)
            }
        }
    }

    /// Whether an agent could be asked, in a new session in which all this is said: see [`Agents::ask`].
    pub async fn admit_new(&self, agent: &str, mut texts: impl Iterator<Item = &str>) -> Result<(), Error> {
        let definition = self.ready(agent)?;
        texts.try_for_each(|text| self.inner.parts.soul.admit_text(text))?;
        self.inner.admit_model(&definition).await
    }

    /// Looks at the turn of a session that is under way, from its begin, or once more at the last one. `Conflict`
    /// `invalid_state` when there is none.
    pub async fn look_on(&self, who: &Visitor, session: &str) -> Result<Viewer, Error> {
        let row = self.inner.seen(who, session).await?;
        let open = self.inner.bus.store().read(move |conn| turns::open_of_session(conn, row.number)).await?;
        let known = self.inner.frames.watch(session);
        match (open, known) {
            (Some(open), known) if known.as_ref().is_none_or(|viewer| viewer.about().turn != open.id) => {
                // It waits for its delivery, as after a restart.
                let trace = open.trace.parse().map_err(|()| Error::internal("reading a turn")("its trace is none"))?;
                let (session, turn) = (open.session_id, open.id);
                Ok(self.inner.frames.view(About { session, turn, agent: open.agent, principal: row.principal, trace }))
            }
            (_, Some(known)) => Ok(known),
            (_, None) => {
                let reason = "No turn is under way in this session. Its history has what was said.";
                Err(Error::conflict("invalid_state", reason))
            }
        }
    }
}

/// Whether somebody may say this at all.
pub fn check_text(text: &str) -> Result<(), Error> {
    if text.trim().is_empty() {
        return Err(Error::invalid("text", "must have more than blanks."));
    }
    let chars = text.chars().count();
    if chars > SAID_CHARS_MAX {
        let reason = format!("has {chars} characters; at most {SAID_CHARS_MAX}. Attach longer texts as files.");
        return Err(Error::invalid("text", reason));
    }
    if text.contains('\0') {
        return Err(Error::invalid("text", "must not contain null characters."));
    }
    Ok(())
}

fn check_open(row: &SessionRow) -> Result<(), Error> {
    if row.closed {
        return Err(Error::conflict("invalid_state", "This session is closed. Begin a new one to talk on."));
    }
    Ok(())
}

fn without_agent(error: Error, agent: &str) -> Error {
    match error {
        Error::NotFound { .. } => {
            let reason = format!("The agent '{agent}' of this session was removed. Begin a session with another one.");
            Error::conflict("invalid_state", reason)
        }
        other => other,
    }
}

/// The event that has the turn taken. It holds none of the words: events outlive a conversation that is removed.
fn event(row: &SessionRow, message: &str, turn: &str, trace: TraceId) -> NewEvent {
    let data = json!({ "session": row.id, "message": message, "turn": turn });
    NewEvent {
        agent_id: Some(row.agent.clone()),
        subject: Some(row.id.clone()),
        partition_key: Some(row.id.clone()),
        priority: Priority::High,
        trace: Some(trace),
        ..NewEvent::new(consumer_name(&row.agent), MESSAGE, &data)
    }
}

impl Errand {
    fn check(&self, tx: &Tx<'_>, plan: &Plan) -> Result<(), Error> {
        if self.turn.is_some() && turns::by_id_in(tx, &plan.about.turn)?.is_some() {
            return Err(Error::conflict("already_exists", "This turn is there already."));
        }
        let Some(open_max) = self.open_max else { return Ok(()) };
        if rows::open_turns_in(tx, &plan.asker, rows::Kind::Plugin)? < open_max {
            return Ok(());
        }
        let what = format!("{open_max} turns are under way for {}; wait for the end of one.", plan.asker);
        Err(Error::Busy { code: "overloaded", what, retry_after_ms: 1000 })
    }
}

impl Plan {
    /// Checks what may have changed meanwhile, and stores message and turn.
    fn store(&self, tx: &Tx<'_>) -> Result<Value, Error> {
        self.errand.check(tx, self)?;
        let gone = || Error::not_found("session", self.about.session.clone());
        let row = rows::session_in(tx, &self.about.session)?.ok_or_else(gone)?;
        check_open(&row)?;
        if let Some(expected) = self.expected_version.filter(|expected| *expected != row.version) {
            let reason = format!(
                "The session is at version {} by now, and {expected} was expected. Look at its state, and send again if \
                 you still want to.",
                row.version
            );
            return Err(Error::conflict("version_conflict", reason));
        }
        // One whose delivery has ended holds up nobody.
        turns::end_orphans(tx, Some(row.number), self.now_ms)?;
        if rows::open_turn_in(tx, row.number)?.is_some() {
            return Err(under_way());
        }
        let (number, message) = match &self.asked {
            Asked::Send { text, attachments } => (self.append(tx, &row, text, attachments.clone())?, &self.message),
            Asked::Edit { message, text } => {
                let earlier = self.edited(tx, &row, message)?;
                rows::set_head(tx, row.number, earlier.parent, self.now_ms)?;
                (self.append(tx, &row, text, earlier.body.attachments)?, &self.message)
            }
            Asked::Retry => {
                let last = last_of_user(tx, &row)?;
                rows::set_head(tx, row.number, Some(last.number), self.now_ms)?;
                (last.number, &last.id.clone())
            }
        };
        let turn = self.begin(tx, &row, number)?;
        rows::set_turn(tx, number, turn)?;
        let version = rows::by_number_in(tx, row.number)?.map_or(row.version, |row| row.version);
        Ok(json!({
            "message_id": message,
            "turn_id": self.about.turn,
            "session_id": row.id,
            "agent_id": row.agent,
            "version": version,
            "trace_id": self.about.trace.to_string(),
        }))
    }

    fn append(&self, tx: &Tx<'_>, row: &SessionRow, text: &str, attachments: Vec<Attachment>) -> Result<i64, Error> {
        let new = NewMessage {
            id: self.message.clone(),
            turn: None,
            role: Role::User,
            text: text.to_owned(),
            body: Body { attachments, ..Body::default() },
            trust: self.trust,
            at_ms: self.now_ms,
        };
        let appended = rows::append(tx, row.number, &new)?;
        if row.title.is_none()
            && let Some(title) = made_title(&redact::text(text))
        {
            rows::set_title(tx, row.number, &title, false, self.now_ms)?;
        }
        Ok(appended.number)
    }

    /// The message that is said anew: one of the person's own.
    fn edited(&self, tx: &Tx<'_>, row: &SessionRow, id: &str) -> Result<MessageRow, Error> {
        let found = rows::message_in(tx, row.number, id)?.ok_or_else(|| Error::not_found("message", id))?;
        if found.role != Role::User {
            let reason = "names no message of yours. What you said can be said anew; what the agent said, retried.";
            return Err(Error::invalid("message_id", reason));
        }
        Ok(found)
    }

    fn begin(&self, tx: &Tx<'_>, row: &SessionRow, message: i64) -> Result<i64, Error> {
        let new = NewTurn {
            id: self.about.turn.clone(),
            session: row.number,
            agent: row.agent.clone(),
            consumer: consumer_name(&row.agent),
            message,
            event: None,
            trace: self.about.trace,
            // What is in the session is read again.
            trust: self.trust.min(row.trust),
            principal: self.asker.clone(),
            created_ms: self.now_ms,
        };
        turns::begin(tx, &new)
    }
}

/// The person's last words on the branch that is shown.
fn last_of_user(tx: &Tx<'_>, row: &SessionRow) -> Result<MessageRow, Error> {
    let mut next = row.head;
    while let Some(number) = next {
        let Some(message) = rows::numbered_in(tx, number)? else { break };
        if message.role == Role::User {
            return Ok(message);
        }
        next = message.parent;
    }
    Err(Error::conflict("invalid_state", "Nothing was said yet that could be answered once more. Send something."))
}

impl Inner {
    /// Whether the soul, the policy of content and the models let it be said at all.
    async fn admit(&self, definition: &super::Definition, asked: &Asked) -> Result<(), Error> {
        match asked {
            Asked::Send { text, attachments } => {
                let texts = attachments.iter().filter_map(|one| one.text.as_ref());
                std::iter::once(text).chain(texts).try_for_each(|text| self.parts.soul.admit_text(text))?;
            }
            Asked::Edit { text, .. } => self.parts.soul.admit_text(text)?,
            Asked::Retry => {}
        }
        self.admit_model(definition).await
    }

    /// Whether there is a model that an agent could ask.
    pub(super) async fn admit_model(&self, definition: &super::Definition) -> Result<(), Error> {
        match self.parts.models.resolve(&definition.model).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind == ErrorKind::None => Err(no_model()),
            Err(error) => {
                let reason = format!("The model of this agent cannot be asked: {}", error.detail);
                Err(Error::conflict("invalid_state", reason))
            }
        }
    }
}

/// 503 while there is nobody who could think.
fn no_model() -> Error {
    let what = "There is no model yet. Run Ollama or llama.cpp on this machine, which aman finds by itself, or name a \
                provider in the configuration: [providers.<id>] with kind, url and key, and [models] default = \
                \"<id>/<model>\". Everything else works without one.";
    Error::Busy { code: "no_model", what: what.to_owned(), retry_after_ms: NO_MODEL_RETRY_MS }
}
