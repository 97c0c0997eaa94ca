//! Agents: who they are, and the turns that they take. A message is an event, a turn its delivery, and every answer of a
//! model and every result of a tool a step in the journal: whatever cuts a turn off, it goes on behind its last step.

mod consumer;
pub mod definition;
pub mod frames;
mod registry;
mod view;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

use consumer::name as consumer_name;
pub use definition::{Definition, check_id};
pub use registry::{Change, Put};

use crate::bus::{Bus, Origin};
use crate::clock::Millis;
use crate::error::Error;
use crate::event::NewEvent;
use crate::store::Tx;
use crate::store::agents::AgentRow;
use crate::store::turns as rows;

/// Who publishes what is told of agents.
const SOURCE: &str = "aman/agents";
/// The agent that answers when none is named.
pub const DEFAULT: &str = "aman";

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
    held: Mutex<Held>,
    /// Held while agents are changed.
    changing: tokio::sync::Mutex<()>,
}

/// What is in memory of the tables.
#[derive(Default)]
struct Held {
    agents: BTreeMap<String, Arc<Agent>>,
    /// Definitions that could not be read: the agent's id, and why.
    left_out: BTreeMap<String, String>,
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
    pub async fn start(bus: &Bus, settings: Settings) -> Result<Agents, Error> {
        let agents = Agents {
            inner: Arc::new(Inner {
                bus: bus.clone(),
                settings,
                held: Mutex::default(),
                changing: tokio::sync::Mutex::default(),
            }),
        };
        agents.inner.load().await?;
        agents.inner.end_orphans().await?;
        Ok(agents)
    }

    /// What an agent is now. `NotFound` when there is none of this id.
    pub fn definition(&self, id: &str) -> Result<Arc<Definition>, Error> {
        Ok(Arc::clone(&self.inner.agent(id)?.definition))
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
}

impl Inner {
    fn now_ms(&self) -> Millis {
        self.bus.clock().now_ms()
    }

    fn held<R>(&self, look: impl FnOnce(&mut Held) -> R) -> R {
        look(&mut self.held.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn agent(&self, id: &str) -> Result<Arc<Agent>, Error> {
        self.held(|held| held.agents.get(id).cloned()).ok_or_else(|| Error::not_found("agent", id))
    }

    /// Ends the turns whose deliveries have ended without them, so that their sessions can go on.
    async fn end_orphans(&self) -> Result<(), Error> {
        let now_ms = self.now_ms();
        let ended = self.bus.store().write(move |tx| rows::end_orphans(tx, now_ms)).await?;
        if ended > 0 {
            tracing::warn!(ended, "Turns of agents have ended with their deliveries.");
        }
        Ok(())
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
