//! Agents: who they are, and the turns that they take. A message is an event, a turn its delivery, and every answer of a
//! model and every result of a tool a step in the journal: whatever cuts a turn off, it goes on behind its last step.

mod agency;
mod ask;
pub mod attachments;
mod consumer;
mod context;
pub mod definition;
mod delegate;
mod delivery;
pub mod explore;
pub mod frames;
pub mod idle;
mod narrow;
mod note;
mod registry;
mod send;
mod sessions;
mod title;
mod transcript;
mod turn;
mod view;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

pub use consumer::SkillRun;
use consumer::name as consumer_name;
pub use definition::{Definition, check_id};
pub use registry::{Change, Put};
pub use send::{Asked, Asking, Begun, SAID_CHARS_MAX, check_text};
pub use sessions::{Format, HITS_MAX, Range, Visitor, WantedSession};

use crate::budget::Budget;
use crate::bus::{Bus, Origin, Standing};
use crate::clock::Millis;
use crate::error::Error;
use crate::event::NewEvent;
use crate::memory::Memory;
use crate::models::Models;
use crate::soul::{SkillLine, Soul};
use crate::store::Tx;
use crate::store::agents::AgentRow;
use crate::store::turns::{self as rows, TurnRow};
use crate::tools::Tools;

/// The JSON Schema of a definition.
pub const SCHEMA: &str = include_str!("../../../schemas/agent.schema.json");
/// Who publishes what is told of agents.
const SOURCE: &str = "aman/agents";
/// The agent that answers when none is named.
pub const DEFAULT: &str = "aman";

/// The type of the event that brings a message of a session.
pub const MESSAGE: &str = "aman.agent.message";
/// The type of the event that asks an agent for something: `{prompt, session?, output?}`.
pub const CALL: &str = "aman.agent.call";
/// How long a stop waits for the end of what it stops.
const STOP_WAIT: Duration = Duration::from_secs(5);
/// How long to wait at the least before what the disk refused is tried again.
const REFUSED_WAIT: Duration = Duration::from_millis(500);

/// The skills whose names fit patterns, for the index that an agent is told of.
pub type SkillIndex = Arc<dyn Fn(&[String]) -> Vec<SkillLine> + Send + Sync>;

/// What turns are taken with.
#[derive(Clone)]
pub struct Surroundings {
    /// Who thinks.
    pub models: Models,
    /// What can be done.
    pub tools: Tools,
    /// Who it is.
    pub soul: Soul,
    /// What it knows.
    pub memory: Memory,
    /// What it may cost.
    pub budget: Budget,
    /// What it can read up.
    pub skills: SkillIndex,
}

/// What a change writes besides, in the same transaction; it is given the answer to the change.
pub type Audit = Box<dyn FnOnce(&mut Tx<'_>, &Value) -> Result<(), Error> + Send>;

/// What agents are made with.
pub struct Settings {
    /// Where definitions lie as files.
    pub folder: PathBuf,
    /// Whether agents that run commands may come in over HTTP.
    pub allow_exec: bool,
}

/// The agents of this daemon; cheap to clone.
#[derive(Clone)]
pub struct Agents {
    inner: Arc<Inner>,
}

struct Inner {
    bus: Bus,
    settings: Settings,
    parts: Surroundings,
    frames: frames::Frames,
    /// Turns that are being taken, by their number.
    at_work: Mutex<HashMap<i64, AtWork>>,
    held: Mutex<Held>,
    /// Held while agents are changed.
    changing: tokio::sync::Mutex<()>,
    /// Told when an agent is another one, or gone.
    changed: tokio::sync::Notify,
}

/// What is in memory of the tables.
#[derive(Default)]
struct Held {
    agents: BTreeMap<String, Arc<Agent>>,
    /// Definitions that could not be read: the agent's id, and why.
    left_out: BTreeMap<String, String>,
}

/// A turn that is being taken.
struct AtWork {
    session: i64,
    cancel: CancellationToken,
    /// True when it is cancelled because somebody stopped it.
    stopped: Arc<AtomicBool>,
}

/// An agent that is there.
struct Agent {
    row: AgentRow,
    definition: Arc<Definition>,
    state: Arc<Mutex<State>>,
}

/// What an agent does at the moment; it outlives changes of the definition.
#[derive(Default)]
struct State {
    /// Turns that it is taking.
    turns: usize,
    /// Why its last turn failed, until one works.
    trouble: Option<String>,
    /// What was told last.
    told: Option<&'static str>,
}

impl Agent {
    fn status(&self) -> &'static str {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.status_of(&state)
    }

    fn status_of(&self, state: &State) -> &'static str {
        if self.row.disabled {
            "disabled"
        } else if state.turns > 0 {
            "busy"
        } else if state.trouble.is_some() {
            "error"
        } else {
            "idle"
        }
    }
}

impl Agents {
    /// Reads all agents, takes over what is in the folder and in this binary, and registers them with the bus.
    pub async fn start(bus: &Bus, parts: Surroundings, settings: Settings) -> Result<Agents, Error> {
        let agents = Agents {
            inner: Arc::new(Inner {
                bus: bus.clone(),
                settings,
                parts,
                frames: frames::Frames::default(),
                at_work: Mutex::default(),
                held: Mutex::default(),
                changing: tokio::sync::Mutex::default(),
                changed: tokio::sync::Notify::new(),
            }),
        };
        let delegate = delegate::Delegate { agents: Arc::downgrade(&agents.inner) };
        agents.inner.parts.tools.offer("agents", Arc::new(delegate));
        bus.serve_agency(agency::agency(&agents.inner));
        agents.inner.load().await?;
        agents.end_orphans().await?;
        Ok(agents)
    }

    /// Ends the turns whose deliveries have ended without them, so that their sessions can go on: before the bus starts, and
    /// once more behind that, when it has given up what was cut off too often.
    pub async fn end_orphans(&self) -> Result<(), Error> {
        let now_ms = self.inner.now_ms();
        let over = self.inner.bus.store().write(move |tx| rows::end_orphans(tx, None, now_ms)).await?;
        if !over.is_empty() {
            tracing::warn!(ended = over.len(), "Turns of agents have ended with their deliveries.");
        }
        self.inner.tell_over(&over);
        Ok(())
    }

    /// What an agent is now. `NotFound` when there is none of this id.
    pub fn definition(&self, id: &str) -> Result<Arc<Definition>, Error> {
        Ok(Arc::clone(&self.inner.agent(id)?.definition))
    }

    /// Waits until an agent is switched on, or removed, or the daemon ends; none when it is on, or not there.
    pub fn absence(&self, id: &str) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        let away = |agents: &Agents, id: &str| agents.inner.agent(id).is_ok_and(|agent| agent.row.disabled);
        if !away(self, id) {
            return None;
        }
        let (agents, id) = (self.clone(), id.to_owned());
        Some(Box::pin(async move {
            let stopping = agents.inner.bus.stopping();
            loop {
                let changed = agents.inner.changed.notified();
                tokio::pin!(changed);
                // Whoever is told of it looks once more, so that no change in between is missed.
                changed.as_mut().enable();
                if !away(&agents, &id) {
                    return;
                }
                tokio::select! {
                    () = stopping.cancelled() => return,
                    () = changed => {}
                }
            }
        }))
    }

    /// As [`Agents::definition`], for whoever wants something of it: `invalid_state` when it is switched off.
    pub fn ready(&self, id: &str) -> Result<Arc<Definition>, Error> {
        let agent = self.inner.agent(id)?;
        if agent.row.disabled {
            let reason = format!("The agent '{id}' is switched off; switch it on with `aman agent enable {id}`.");
            return Err(Error::conflict("invalid_state", reason));
        }
        Ok(Arc::clone(&agent.definition))
    }

    /// What the model of an agent is told before everything else, where nothing was said yet.
    pub async fn prompt(&self, id: &str) -> Result<String, Error> {
        let definition = self.definition(id)?;
        self.inner.prompt((id, &definition), &definition.tools, &definition.instructions, "").await
    }
}

impl Agents {
    /// What happens in turns, as it happens.
    pub fn frames(&self) -> &frames::Frames {
        &self.inner.frames
    }

    /// Stops the turns of a session that have not ended, keeps what came, and waits for their end; `record` commits with the
    /// wish to stop, which holds over a restart. Whether there was any.
    pub async fn stop(
        &self,
        session: i64,
        by: &str,
        record: impl FnOnce(&mut Tx<'_>, bool) -> Result<(), Error> + Send + 'static,
    ) -> Result<bool, Error> {
        let inner = &self.inner;
        // First of all, what is at work ends; what begins in this moment finds the wish in the database.
        inner.interrupt(session);
        let (by, now_ms, here) = (by.to_owned(), inner.now_ms(), Arc::clone(inner));
        let write = move |tx: &mut Tx<'_>| {
            let mut over = rows::end_orphans(tx, Some(session), now_ms)?;
            let turns = rows::stop(tx, session, &by, now_ms)?;
            let any = !(over.is_empty() && turns.is_empty());
            for turn in turns.into_iter().filter(|turn| here.rests(turn)) {
                let end = rows::End { status: rows::Status::Stopped, error: None, trust: turn.trust };
                rows::end(tx, turn.number, &end, now_ms)?;
                over.push(TurnRow { status: end.status, ..turn });
            }
            record(tx, any)?;
            Ok((any, over))
        };
        let mut ended = inner.bus.ended();
        let (any, over) = inner.bus.store().write(write).await?;
        inner.tell_over(&over);
        inner.interrupt(session);
        let over = async {
            while inner.bus.store().read(move |conn| rows::open_of_session(conn, session)).await?.is_some() {
                if ended.changed().await.is_err() {
                    break;
                }
            }
            Ok::<(), Error>(())
        };
        // Whoever asked is answered also when a turn of another session is before this one.
        match tokio::time::timeout(STOP_WAIT, over).await {
            Ok(over) => over.map(|()| any),
            Err(_) => Ok(any),
        }
    }
}

/// Counts a turn as long as it is held.
struct Busy {
    inner: Arc<Inner>,
    agent: String,
}

impl Drop for Busy {
    fn drop(&mut self) {
        if let Ok(agent) = self.inner.agent(&self.agent) {
            self.inner.moves(&agent, |state| state.turns = state.turns.saturating_sub(1));
        }
    }
}

impl Inner {
    fn at_work<R>(&self, look: impl FnOnce(&mut HashMap<i64, AtWork>) -> R) -> R {
        look(&mut self.at_work.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Ends what is at work for a session.
    fn interrupt(&self, session: i64) {
        self.at_work(|all| {
            for turn in all.values().filter(|turn| turn.session == session) {
                turn.stopped.store(true, Ordering::Release);
                turn.cancel.cancel();
            }
        });
    }

    /// Notes that an agent takes one more turn.
    fn busy(self: &Arc<Self>, agent: &str) -> Busy {
        if let Ok(agent) = self.agent(agent) {
            self.moves(&agent, |state| state.turns += 1);
        }
        Busy { inner: Arc::clone(self), agent: agent.to_owned() }
    }

    /// Writes what must not be lost, and waits for a disk that takes nothing; none when `cancel` comes before, or the change
    /// is refused for good.
    async fn keep<F>(&self, cancel: &CancellationToken, change: F) -> Option<()>
    where
        F: Fn(&mut Tx<'_>) -> Result<(), Error> + Send + Sync + 'static,
    {
        let change = Arc::new(change);
        loop {
            let change = Arc::clone(&change);
            match self.bus.store().write(move |tx| change(tx)).await {
                Ok(()) => return Some(()),
                Err(Error::Busy { .. }) => {}
                Err(error) => {
                    tracing::error!(error = error.chain().join(": "), "A step of a turn could not be written.");
                    return None;
                }
            }
            tokio::select! {
                () = cancel.cancelled() => return None,
                () = async {
                    tokio::time::sleep(REFUSED_WAIT).await;
                    self.bus.store().until_writable().await;
                } => {}
            }
        }
    }

    fn now_ms(&self) -> Millis {
        self.bus.clock().now_ms()
    }

    fn held<R>(&self, look: impl FnOnce(&mut Held) -> R) -> R {
        look(&mut self.held.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn agent(&self, id: &str) -> Result<Arc<Agent>, Error> {
        self.held(|held| held.agents.get(id).cloned()).ok_or_else(|| Error::not_found("agent", id))
    }

    /// Whether nobody is at work on a turn, and nothing came of it yet or its agent is away: it can end at once.
    fn rests(&self, turn: &TurnRow) -> bool {
        let is_away = self.agent(&turn.agent).map_or(true, |agent| agent.row.disabled)
            || self.bus.router().by_name(&turn.consumer).is_none_or(|entry| entry.spec.standing != Standing::Active);
        (is_away || turn.status == rows::Status::Pending) && !self.at_work(|all| all.contains_key(&turn.number))
    }

    /// Tells whoever looks at turns that ended without being taken.
    fn tell_over(&self, over: &[TurnRow]) {
        for turn in over {
            let Some(viewer) = self.frames.watch(&turn.session_id).filter(|one| one.about().turn == turn.id) else {
                continue;
            };
            let frames = self.frames.turn(viewer.about().clone());
            match &turn.error {
                Some(error) => frames.emit(frames::Kind::Error, error.clone()),
                None => frames.emit(frames::Kind::Done, json!({ "message_id": null, "status": turn.status })),
            }
        }
    }

    /// Changes what an agent does, and tells of it when its status is another one by that.
    fn moves(self: &Arc<Self>, agent: &Agent, change: impl FnOnce(&mut State)) {
        let (before, now, trouble) = {
            let mut state = agent.state.lock().unwrap_or_else(PoisonError::into_inner);
            change(&mut state);
            let now = agent.status_of(&state);
            if state.told == Some(now) {
                return;
            }
            (state.told.replace(now), now, state.trouble.clone())
        };
        let data = json!({ "id": agent.row.id, "status": now, "previous": before, "reason": trouble });
        let event =
            NewEvent { subject: Some(agent.row.id.clone()), ..NewEvent::new(SOURCE, "aman.agent.status", &data) };
        let bus = self.bus.clone();
        tokio::spawn(async move { bus.announce(event, Origin::own(SOURCE)).await });
    }
}
