//! Work for agents that have nothing to do: a skill that is made for idle time, done in a session to which the same work comes
//! back.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Agents, CALL, DEFAULT, consumer_name};
use crate::bus::{Awaited, Origin, Publish, StateWrite};
use crate::error::Error;
use crate::event::{NewEvent, Trust};
use crate::id::{EventSeq, TraceId, fresh, sha256_hex};

/// Tag of the skills that are made for idle time.
pub const TAG: &str = "idle_run";
/// The kinds of idle time; such a skill has one of them as a tag as well.
pub const KINDS: [&str; 3] = ["work", "study", "fun"];

/// Idle work that is wanted.
pub struct NewIdle {
    /// The agent; none = [`DEFAULT`].
    pub agent: Option<String>,
    /// The skill's name.
    pub skill: String,
    /// What it says is to be done.
    pub instructions: String,
    /// The tools that it says it needs.
    pub allowed_tools: Option<String>,
    /// What it belongs to; the same project and work go on in the same session.
    pub project: Option<String>,
    /// Which piece of that.
    pub work: Option<String>,
    /// Who asks.
    pub principal: String,
    /// How far they are believed.
    pub trust: Trust,
    /// The trace that it belongs to.
    pub trace: TraceId,
}

/// Idle work that was begun.
pub struct IdleRun {
    /// Its id.
    pub id: String,
    /// The session in which it is done.
    pub session: String,
    /// The agent.
    pub agent: String,
    sequence: EventSeq,
}

impl Agents {
    /// Every agent that is switched on and has nothing to do.
    pub fn idle(&self) -> Vec<(String, bool)> {
        self.inner.held(|held| held.agents.iter().map(|(id, agent)| (id.clone(), agent.status() == "idle")).collect())
    }

    /// Begins idle work; `record` commits with it. `invalid_state` when the agent has something to do.
    pub async fn begin_idle(&self, new: NewIdle, record: impl FnOnce(&str) -> StateWrite) -> Result<IdleRun, Error> {
        let agent = new.agent.unwrap_or_else(|| DEFAULT.to_owned());
        self.ready(&agent)?;
        let status = self.inner.agent(&agent)?.status();
        if status != "idle" {
            let reason = format!("The agent '{agent}' is {status}, not idle. Wait for the end of what it does.");
            return Err(Error::conflict("invalid_state", reason));
        }
        let session = session_of(&agent, &new.skill, new.project.as_deref(), new.work.as_deref());
        let place =
            |name: &str, value: Option<&String>| value.map_or_else(String::new, |value| format!("{name}: {value}\n"));
        let prompt = format!(
            "You have time. Do what the skill '{}' says; if you began it before, go on where you were.\n{}{}\n{}",
            new.skill,
            place("project", new.project.as_ref()),
            place("work", new.work.as_ref()),
            new.instructions
        );
        let id = fresh();
        let data = json!({ "prompt": prompt, "session": session, "make": true, "skill": new.skill,
            "allowed_tools": new.allowed_tools });
        let mut event = NewEvent::new(super::SOURCE, CALL, &data);
        (event.id, event.agent_id, event.trace) = (Some(id.clone()), Some(agent.clone()), Some(new.trace));
        event.partition_key = Some(session.clone());
        let origin = Origin { principal: new.principal, trust: new.trust, internal: true };
        let state = Some(record(&id));
        let accepted = self.inner.bus.publish(Publish { state, ..Publish::one(event, origin) }).await?;
        let sequence = EventSeq(accepted.first().map_or(0, |one| one.sequence));
        Ok(IdleRun { id, session, agent, sequence })
    }

    /// Waits for the end of idle work, for a while; none when it goes on.
    pub async fn end_of_idle(&self, run: &IdleRun, patience: Duration) -> Result<Option<Value>, Error> {
        let consumer = consumer_name(&run.agent);
        match tokio::time::timeout(patience, self.inner.bus.end_of(run.sequence, &consumer)).await {
            Err(_) => Ok(None),
            Ok(ended) => Ok(Some(match ended? {
                Awaited::Done(result) => json!({ "status": result["status"], "text": result["text"] }),
                Awaited::Failed(why) => json!({ "status": "failed", "error": why }),
                Awaited::Expired | Awaited::Missed | Awaited::Forgotten => json!({ "status": "failed" }),
            })),
        }
    }
}

/// The session of idle work: always the same one for the same piece of work, and a new one for what belongs to none.
fn session_of(agent: &str, skill: &str, project: Option<&str>, work: Option<&str>) -> String {
    if project.is_none() && work.is_none() {
        return fresh();
    }
    let whole = format!("{agent}\n{skill}\n{}\n{}", project.unwrap_or_default(), work.unwrap_or_default());
    let hex = sha256_hex(whole.as_bytes());
    // A UUID of the version for whatever one likes (RFC 9562, 5.8).
    format!("{}-{}-8{}-8{}-{}", &hex[..8], &hex[8..12], &hex[12..15], &hex[15..18], &hex[18..30])
}
