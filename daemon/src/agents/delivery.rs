//! A delivery to an agent, from its event to its settlement: which turn it is, what the turn is taken with, and what is stored
//! when it ends: all of it with the settlement, or nothing.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::context;
use super::frames::{About, Kind as FrameKind};
use super::note::Note;
use super::turn::{End, Fault, Said, Turn};
use super::{Agent, AtWork, CALL, Definition, Inner, MESSAGE, consumer_name};
use crate::bus::{Attempt, Effects, Failure, Outcome};
use crate::error::Error;
use crate::event::{Event, NewEvent};
use crate::id::{TraceId, fresh};
use crate::models::Usage;
use crate::registry::Schema;
use crate::soul::{FactLine, PromptParts};
use crate::store::Tx;
use crate::store::chat::{self, Body, Kind, MessageRow, NewMessage, NewSession, Role, SessionRow};
use crate::store::turns::{self, NewTurn, Status, TurnRow};
use crate::tools::Policy;

/// The event that tells of the end of a turn.
const ENDED: &str = "aman.agent.turn.ended";
/// How soon work is looked at again for an agent that was switched off in this moment; whoever has it waits for the agent then.
const AWAY: Duration = Duration::from_secs(1);
/// Longest text of an answer in the event that tells of it, in bytes.
const TOLD_BYTES_MAX: usize = 4 << 10;

/// A delivery that an agent is to take as a turn.
pub(super) struct Job {
    /// Who takes it.
    pub agent: String,
    /// Whose delivery it is: the agent's own, or a skill's.
    pub consumer: String,
    /// The delivery.
    pub attempt: Attempt,
    /// After so many attempts it is given up.
    pub attempts_max: u32,
    /// The skill whose delivery it is: its name, and what it says is to be done.
    pub skill: Option<(String, String)>,
    /// The tools that it may use of those that the agent has.
    pub allowed_tools: Option<String>,
    /// How long it may work, in place of what the agent says.
    pub time_max: Option<Duration>,
}

/// What somebody asks an agent by an event of type [`CALL`].
#[derive(Deserialize)]
struct Asked {
    #[serde(default)]
    prompt: String,
    /// What is said to the session in place of what a model would answer.
    #[serde(default)]
    answer: Option<String>,
    /// Who started what asks; workflows say so.
    #[serde(default)]
    principal: String,
    #[serde(default)]
    session: Option<String>,
    /// True when the session is made if it is not there.
    #[serde(default)]
    make: bool,
    /// The tools that may be used of those that the agent has, as a skill says it.
    #[serde(default)]
    allowed_tools: Option<String>,
    #[serde(default)]
    output: Option<Value>,
    /// What `output` says, read.
    #[serde(skip)]
    form: Option<Schema>,
}

/// A turn that is open, and where it belongs.
struct Opened {
    turn: TurnRow,
    session: SessionRow,
    path: Vec<MessageRow>,
    steps: VecDeque<turns::StepRow>,
    /// What the event asks, if it is a call.
    asked: Option<Asked>,
}

impl Inner {
    /// Takes a delivery as a turn, or goes on with the turn that it is.
    pub(super) async fn deliver(self: &Arc<Self>, job: Job) -> Outcome {
        let agent = match self.agent(&job.agent) {
            Ok(agent) if !agent.row.disabled => agent,
            Ok(_) => return Outcome::Postponed(AWAY),
            Err(error) => return Outcome::Reject(Failure::new(error.to_string())),
        };
        let asked = match asked(&job.attempt.event) {
            // Only a workflow says for whom it was started.
            Ok(Some(Asked { answer: Some(text), session: Some(session), principal, .. }))
                if job.attempt.event.sent.source.starts_with("workflow/") =>
            {
                let trust = job.attempt.event.trust.min(agent.definition.trust);
                return self.note(&job, Note { session, principal, text, trust }).await;
            }
            Ok(asked) => asked,
            Err(error) => return Outcome::Reject(Failure { chain: error.chain(), timed_out: false }),
        };
        let opened = match self.open(&job, &agent, asked).await {
            Ok(Some(opened)) => opened,
            Ok(None) => return Outcome::Done(Effects::default()),
            Err(
                error @ (Error::Invalid { .. }
                | Error::Forbidden { .. }
                | Error::NotFound { .. }
                | Error::Conflict { .. }),
            ) => {
                return Outcome::Reject(Failure { chain: error.chain(), timed_out: false });
            }
            Err(error) => return Outcome::Retry(Failure { chain: error.chain(), timed_out: false }, None),
        };
        let _busy = self.busy(&job.agent);
        let (cancel, stopped) = (job.attempt.cancel.child_token(), Arc::new(AtomicBool::new(false)));
        let at_work = AtWork { session: opened.session.number, cancel: cancel.clone(), stopped: Arc::clone(&stopped) };
        let number = opened.turn.number;
        self.at_work(|all| all.insert(number, at_work));
        // Whoever stops it from now on finds it at work; whoever did before has written so.
        let now = self.bus.store().read_here(move |conn| turns::by_number(conn, number)).await;
        if matches!(now, Ok(Some(row)) if row.stopped_by.is_some()) {
            stopped.store(true, Ordering::Release);
            cancel.cancel();
        }
        let outcome = match self.turn(&job, &agent, opened, (cancel, stopped)).await {
            Ok(mut turn) => {
                let end = if job.attempt.number > job.attempts_max { End::too_often() } else { turn.take().await };
                self.trouble(&job.agent, &end);
                self.settle(&job, turn, end).await
            }
            Err(error) => Outcome::Retry(Failure { chain: error.chain(), timed_out: false }, None),
        };
        self.at_work(|all| all.remove(&number));
        outcome
    }

    /// The turn that a delivery is, made when it is not there yet; none when there is nothing (more) to do.
    async fn open(
        self: &Arc<Self>,
        job: &Job,
        agent: &Arc<Agent>,
        asked: Option<Asked>,
    ) -> Result<Option<Opened>, Error> {
        let (event, consumer) = (Arc::clone(&job.attempt.event), job.consumer.clone());
        let sequence = event.sequence;
        let found = self.bus.store().read(move |conn| turns::of_delivery(conn, sequence, &consumer)).await?;
        let turn = match found {
            Some(turn) => turn,
            // Its session was removed.
            None if event.sent.kind == MESSAGE => return Ok(None),
            None => self.begin(job, agent, asked.as_ref()).await?,
        };
        if turn.status == Status::Done || turn.status == Status::Stopped {
            return Ok(None);
        }
        if turn.status == Status::Failed {
            let (number, now_ms) = (turn.number, self.now_ms());
            self.bus.store().write(move |tx| turns::run(tx, number, now_ms)).await?;
        }
        let read = move |conn: &_| {
            let Some(session) = chat::by_number(conn, turn.session)? else { return Ok(None) };
            let path = chat::path_to(conn, Some(turn.message), context::ROWS_MAX, context::BYTES_MAX)?;
            let steps = turns::steps(conn, turn.number)?.into();
            Ok(Some(Opened { turn, session, path, steps, asked }))
        };
        self.bus.store().read(read).await
    }

    /// Stores the session, the message and the turn of an event that is no message.
    async fn begin(self: &Arc<Self>, job: &Job, agent: &Arc<Agent>, asked: Option<&Asked>) -> Result<TurnRow, Error> {
        let event = Arc::clone(&job.attempt.event);
        let (text, kind, session, make) = match asked {
            Some(Asked { prompt, session, make, .. }) => {
                self.parts.soul.admit_text(prompt)?;
                (prompt.clone(), Kind::Asked, session.clone(), *make || session.is_none())
            }
            None => (context::event_text(&event), Kind::Event, None, true),
        };
        let trust = event.trust.min(agent.definition.trust);
        let principal = event.principal.clone();
        let (agent, consumer, now_ms) = (job.agent.clone(), job.consumer.clone(), self.now_ms());
        let title = format!("{} from {}", event.sent.kind, event.sent.source);
        let write = move |tx: &mut Tx<'_>| {
            let known = match &session {
                Some(id) => chat::session_in(tx, id)?,
                None => None,
            };
            let session = match known {
                // Nobody's conversation but the caller's own: what is said in it taints it.
                Some(session)
                    if session.agent == agent
                        && !session.closed
                        && session.kind == kind
                        && (make || session.principal == principal) =>
                {
                    session
                }
                None if make => {
                    let title = (kind == Kind::Event).then_some(title);
                    let id = session.unwrap_or_else(fresh);
                    let principal = principal.clone();
                    let agent = agent.clone();
                    chat::create(tx, &NewSession { id, agent, title, kind, principal, trust, at_ms: now_ms })?
                }
                _ => return Err(Error::not_found("session", session.unwrap_or_default())),
            };
            let body = Body::default();
            let message = NewMessage { id: fresh(), turn: None, role: Role::User, text, body, trust, at_ms: now_ms };
            let message = chat::append(tx, session.number, &message)?;
            let new = NewTurn {
                id: fresh(),
                session: session.number,
                agent,
                consumer: consumer.clone(),
                message: message.number,
                event: Some(event.sequence),
                trace: event.trace,
                trust,
                principal,
                created_ms: now_ms,
            };
            turns::begin(tx, &new)?;
            turns::of_delivery_in(tx, event.sequence, &consumer)?.ok_or_else(|| Error::not_found("turn", new.id))
        };
        self.bus.store().write(write).await
    }

    /// Puts together what a turn is taken with.
    async fn turn(
        self: &Arc<Self>,
        job: &Job,
        agent: &Arc<Agent>,
        opened: Opened,
        (cancel, stopped): (tokio_util::sync::CancellationToken, Arc<AtomicBool>),
    ) -> Result<Turn, Error> {
        let Opened { turn: row, session, path, steps, asked } = opened;
        let (definition, event) = (Arc::clone(&agent.definition), Arc::clone(&job.attempt.event));
        let (said, read) = context::history(&path);
        let text = path.last().map_or("", |message| message.text.as_str());
        let allowed = asked.as_ref().and_then(|asked| asked.allowed_tools.clone()).or(job.allowed_tools.clone());
        let form = asked.and_then(|asked| asked.form);
        let policy = allowed.map_or_else(|| definition.tools.clone(), |allowed| definition.tools.limited_to(&allowed));
        let system = self.system(job, agent, &policy, text).await?;
        let trace = row.trace.parse().unwrap_or(TraceId([0; 16]));
        let limit = job.time_max.unwrap_or(definition.turn_timeout);
        let about = About {
            session: session.id.clone(),
            turn: row.id.clone(),
            agent: job.agent.clone(),
            principal: session.principal.clone(),
            trace,
        };
        let frames = self.frames.turn(about);
        let message = path.last().map(|message| message.id.clone());
        frames.emit(
            FrameKind::Start,
            json!({ "turn_id": row.id, "session_id": session.id, "message_id": message, "agent_id": job.agent }),
        );
        Ok(Turn {
            inner: Arc::clone(self),
            trust: row.trust.min(read).min(definition.trust),
            limit,
            left: limit,
            policy: Arc::new(policy),
            own: said.len().saturating_sub(1),
            job: job_of(job),
            definition,
            row,
            trace,
            cause: event,
            system,
            form,
            frames,
            cancel,
            stopped,
            said,
            transcript: Vec::new(),
            journal: steps,
            next: 1,
            partial: String::new(),
            usage: Usage::default(),
        })
    }

    /// What the model is told before everything else.
    async fn system(&self, job: &Job, agent: &Agent, policy: &Policy, text: &str) -> Result<String, Error> {
        let mut instructions = agent.definition.instructions.clone();
        if let Some((name, body)) = &job.skill {
            instructions.push_str(&format!("\n\nAn event called for the skill '{name}'. Do what it says:\n\n{body}"));
        }
        self.prompt((&job.agent, &agent.definition), policy, &instructions, text).await
    }

    /// What the model of an agent is told that may use these tools, with these instructions, where this was said.
    pub(super) async fn prompt(
        &self,
        (id, definition): (&str, &Definition),
        policy: &Policy,
        instructions: &str,
        text: &str,
    ) -> Result<String, Error> {
        let facts = match definition.recall {
            0 => Vec::new(),
            count => self.parts.memory.recall(id, text, count).await?,
        };
        let facts: Vec<FactLine> = facts
            .into_iter()
            .map(|fact| FactLine { text: fact.text, source: fact.source, trust: fact.trust })
            .collect();
        let skills = (self.parts.skills)(&definition.skills);
        Ok(self.parts.soul.system_prompt(&PromptParts {
            agent_name: id,
            agent_instructions: instructions.trim(),
            skills: &skills,
            facts: &facts,
            tools: self.parts.tools.list_for(policy, definition.trust).len(),
            now_ms: self.now_ms(),
        }))
    }

    /// What the end of a turn means for its delivery.
    async fn settle(self: &Arc<Self>, job: &Job, mut turn: Turn, end: End) -> Outcome {
        let (status, text, value, fault) = match end {
            // Not by the end of the daemon: a step could not be written, and the log says why. That attempt counts.
            End::Cut if !job.attempt.cancel.is_cancelled() && !self.bus.is_draining() => {
                return Outcome::Retry(Failure::new("A step of the turn could not be written."), None);
            }
            End::Cut => return Outcome::Postponed(Duration::ZERO),
            End::Answered(text, value) => (Status::Done, text, value, None),
            End::Stopped => (Status::Stopped, turn.keep_partial(), None, None),
            End::Failed(fault) => (Status::Failed, turn.keep_partial(), None, Some(fault)),
        };
        // A person sees why, and asks again; whatever else waits for it is tried again and then a dead letter.
        if let Some(fault) = fault.as_ref().filter(|_| job.attempt.event.sent.kind != MESSAGE) {
            let failure = Failure { chain: vec![fault.detail.clone()], timed_out: fault.code == "turn_timeout" };
            if fault.again && job.attempt.number < job.attempts_max {
                return Outcome::Retry(failure, fault.after);
            }
            let stored = self.stored(&turn, status, &text, value, Some(fault));
            let (frames, data) = (turn.frames.clone(), json!({ "code": fault.code, "detail": fault.detail }));
            let effects = Effects {
                publish: vec![stored.event],
                state: Some(stored.state),
                trust: Some(turn.trust),
                stored: Some(Box::new(move || frames.emit(FrameKind::Error, data))),
                ..Effects::default()
            };
            return Outcome::Buried(failure, Box::new(effects));
        }
        let stored = self.stored(&turn, status, &text, value, fault.as_ref());
        let (frames, message) = (turn.frames.clone(), stored.message.clone());
        let told = move || match &fault {
            Some(fault) => frames.emit(FrameKind::Error, json!({ "code": fault.code, "detail": fault.detail })),
            None => frames.emit(FrameKind::Done, json!({ "message_id": message, "status": status })),
        };
        Outcome::Done(Effects {
            publish: vec![stored.event],
            result: Some(stored.result),
            state: Some(stored.state),
            trust: Some(turn.trust),
            stored: Some(Box::new(told)),
            ..Effects::default()
        })
    }

    /// What is stored of a turn that ended.
    fn stored(&self, turn: &Turn, status: Status, text: &str, value: Option<Value>, fault: Option<&Fault>) -> Stored {
        let error = fault.map(|fault| json!({ "code": fault.code, "detail": fault.detail }));
        let messages: Vec<NewMessage> =
            turn.transcript.iter().map(|said| self.message(turn.row.number, said)).collect();
        let message = messages.last().filter(|last| last.role == Role::Assistant).map(|last| last.id.clone());
        let mut told = json!({
            "agent": turn.row.agent, "session": turn.row.session_id, "turn": turn.row.id, "message": message,
            "status": status, "error": error, "usage": turn.usage,
        });
        let mut result = json!({
            "turn_id": turn.row.id, "session_id": turn.row.session_id, "message_id": message, "status": status,
            "error": error, "trust": turn.trust.name(),
        });
        // Events and deliveries are seen by others than the session is, and outlive it: no words of a chat are in them.
        if turn.cause.sent.kind != MESSAGE {
            let short = &text[..text.floor_char_boundary(TOLD_BYTES_MAX)];
            (told["text"], told["cut"]) = (json!(short), json!(short.len() < text.len()));
            (result["text"], result["value"]) = (json!(text), json!(value));
        }
        let mut event = NewEvent::new(turn.row.consumer.clone(), ENDED, &told);
        event.subject = Some(turn.row.session_id.clone());
        let end = turns::End { status, error, trust: turn.trust };
        let (row, now_ms) = (turn.row.clone(), self.now_ms());
        let state = move |tx: &mut Tx<'_>| {
            // Whoever stopped it while nobody was at work on it may have gone on since.
            if turns::by_number_in(tx, row.number)?.is_none_or(|now| now.status == Status::Stopped) {
                return Ok(());
            }
            // What came of an earlier try stays, beside this one.
            if let Some(session) = chat::session_in(tx, &row.session_id)? {
                if session.head != Some(row.message) {
                    chat::set_head(tx, row.session, Some(row.message), now_ms)?;
                }
                messages.iter().try_for_each(|message| chat::append(tx, row.session, message).map(drop))?;
                chat::touch(tx, row.session, now_ms)?;
            }
            turns::end(tx, row.number, &end, now_ms)
        };
        Stored { message, event, result, state: Box::new(state) }
    }

    fn message(&self, turn: i64, said: &Said) -> NewMessage {
        NewMessage {
            id: fresh(),
            turn: Some(turn),
            role: said.role,
            text: said.text.clone(),
            body: said.body.clone(),
            trust: said.trust,
            at_ms: self.now_ms(),
        }
    }

    /// Notes whether an agent is in trouble.
    fn trouble(self: &Arc<Self>, agent: &str, end: &End) {
        let trouble = match end {
            End::Failed(fault) => Some(fault.detail.clone()),
            End::Answered(..) => None,
            End::Stopped | End::Cut => return,
        };
        if let Ok(agent) = self.agent(agent) {
            self.moves(&agent, |state| state.trouble = trouble);
        }
    }
}

/// See [`Inner::stored`].
struct Stored {
    message: Option<String>,
    event: NewEvent,
    result: Value,
    state: crate::bus::StateWrite,
}

impl Turn {
    /// Takes the words of an answer that was cut off into the transcript; gives them.
    fn keep_partial(&mut self) -> String {
        let text = std::mem::take(&mut self.partial);
        if !text.is_empty() {
            let body = Body { stopped: true, ..Body::default() };
            self.transcript.push(Said { role: Role::Assistant, text: text.clone(), body, trust: self.trust });
        }
        text
    }
}

/// What is asked by an event of type [`CALL`]; none for any other. `Invalid` when it can never be answered.
fn asked(event: &Event) -> Result<Option<Asked>, Error> {
    if event.sent.kind != CALL {
        return Ok(None);
    }
    let asked = serde_json::from_value(event.sent.data.to_value());
    let mut asked: Asked =
        asked.map_err(|error| Error::invalid("data", format!("is no call of an agent: {error}.")))?;
    if let Some(schema) = asked.output.take() {
        asked.form = Some(Schema::new(schema).map_err(|reason| Error::invalid("output", reason))?);
    }
    Ok(Some(asked))
}

/// Who pays for a turn besides the agent and the session: the skill, or the schedule behind it.
fn job_of(job: &Job) -> Option<String> {
    if job.consumer != consumer_name(&job.agent) {
        return Some(job.consumer.clone());
    }
    let source = &job.attempt.event.sent.source;
    ["cron/", "workflow/"].iter().any(|kind| source.starts_with(kind)).then(|| source.clone())
}
