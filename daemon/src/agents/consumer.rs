//! The consumer behind an agent: what is for it, and what it asked for, as deliveries.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::delivery::Job;
use super::{Agent, Agents, DEFAULT, Inner};
use crate::bus::{
    Attempt, Concurrency, Consumer, ConsumerSpec, Delivered, Outcome, RetryPolicy, Rule, Standing, router,
};
use crate::error::Error;
use crate::event::TypePattern;
use crate::expr::Expr;
use crate::tools::pattern;

/// How long an attempt may take in all, waiting for approvals included: these expire before.
const ATTEMPT_MAX: Duration = Duration::from_secs(48 * 3600);
/// Attempts, those that the end of the daemon cut off included, before a turn is given up.
const ATTEMPTS_MAX: u32 = 8;

/// The name of an agent's consumer.
pub(super) fn name(agent: &str) -> String {
    format!("agent/{agent}")
}

/// Gets the events of one agent.
struct Events {
    agents: Weak<Inner>,
    id: String,
}

impl Consumer for Events {
    fn deliver(&self, attempt: Attempt) -> Delivered<'_> {
        Box::pin(async move {
            let Some(inner) = self.agents.upgrade() else { return Outcome::Postponed(Duration::ZERO) };
            let job = Job {
                agent: self.id.clone(),
                consumer: name(&self.id),
                attempt,
                attempts_max: ATTEMPTS_MAX,
                skill: None,
                allowed_tools: None,
                time_max: None,
            };
            inner.deliver(job).await
        })
    }
}

/// A delivery to a skill that an agent is to take.
pub struct SkillRun {
    /// The agent; none = [`DEFAULT`].
    pub agent: Option<String>,
    /// The skill.
    pub skill: String,
    /// What is to be done.
    pub instructions: String,
    /// The tools that it may use of those that the agent has, as the skill says it.
    pub allowed_tools: Option<String>,
    /// The delivery.
    pub attempt: Attempt,
    /// After so many attempts it is given up.
    pub attempts_max: u32,
    /// How long the work may take; none = as the agent says.
    pub time_max: Option<Duration>,
}

impl Agents {
    /// Takes a delivery to a skill as a turn. What comes of it is stored with that delivery.
    pub async fn run_skill(&self, run: SkillRun) -> Outcome {
        let job = Job {
            agent: run.agent.unwrap_or_else(|| DEFAULT.to_owned()),
            consumer: format!("skill/{}", run.skill),
            attempt: run.attempt,
            attempts_max: run.attempts_max,
            skill: Some((run.skill, run.instructions)),
            allowed_tools: run.allowed_tools,
            time_max: run.time_max,
        };
        self.inner.deliver(job).await
    }

    /// Whether an agent may read a skill.
    pub fn may_read(&self, agent: &str, skill: &str) -> bool {
        self.definition(agent).is_ok_and(|definition| pattern::any(&definition.skills, skill))
    }
}

impl Inner {
    /// What the bus gets for an agent.
    pub(super) fn consumer(self: &Arc<Self>, agent: &Agent) -> Result<(ConsumerSpec, Arc<dyn Consumer>), Error> {
        let (id, definition) = (&agent.row.id, &agent.definition);
        let mut rules = vec![rule("**", &router::for_agent(id))?];
        // What it says itself does not begin another turn, nor does word of what it does at the moment: each turn would
        // tell of two more.
        let own = format!(".source != {} and .source != \"{}\"", serde_json::Value::from(name(id)), super::SOURCE);
        let condition = match &definition.when {
            // The line break ends a comment that the condition may end with.
            Some(when) => format!("{own} and ({}\n)", when.source()),
            None => own,
        };
        for pattern in &definition.on {
            rules.push(rule(pattern.as_str(), &condition)?);
        }
        let spec = ConsumerSpec {
            name: name(id),
            kind: "agent",
            rules,
            concurrency: Concurrency::Parallel(definition.concurrency),
            // Attempts are counted by the turn, which must be there to end.
            retry: RetryPolicy {
                max_attempts: ATTEMPTS_MAX * 100,
                base: Duration::from_secs(1),
                ..RetryPolicy::default()
            },
            timeout: ATTEMPT_MAX,
            trust: definition.trust,
            // What comes for one that is switched off waits for it.
            standing: if agent.row.disabled { Standing::Paused } else { Standing::Active },
            acts_outside: true,
        };
        Ok((spec, Arc::new(Events { agents: Arc::downgrade(self), id: id.clone() })))
    }
}

fn rule(pattern: &str, condition: &str) -> Result<Rule, Error> {
    let pattern = TypePattern::parse(pattern).map_err(|reason| Error::invalid("on", reason))?;
    let condition = Expr::compile(condition).map_err(|error| Error::invalid("when", error.message))?;
    Ok(Rule { pattern, condition: Some(condition) })
}
