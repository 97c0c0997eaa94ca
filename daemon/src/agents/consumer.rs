//! The consumer behind an agent: what is for it, and what it asked for, as deliveries.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::{Agent, Inner};
use crate::bus::{
    Attempt, Concurrency, Consumer, ConsumerSpec, Delivered, Failure, Outcome, RetryPolicy, Rule, Standing, router,
};
use crate::error::Error;
use crate::event::TypePattern;
use crate::expr::Expr;

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
            let Some(_inner) = self.agents.upgrade() else {
                return Outcome::Retry(Failure::new("the daemon ends"), None);
            };
            tracing::debug!(agent = self.id, event = attempt.event.id(), "An event for an agent.");
            Outcome::Reject(Failure::new("agents take no turns yet"))
        })
    }
}

impl Inner {
    /// What the bus gets for an agent.
    pub(super) fn consumer(self: &Arc<Self>, agent: &Agent) -> Result<(ConsumerSpec, Arc<dyn Consumer>), Error> {
        let (id, definition) = (&agent.row.id, &agent.definition);
        let mut rules = vec![rule("**", &router::for_agent(id))?];
        // What it says itself does not begin another turn.
        let own = format!(".source != {}", serde_json::Value::from(name(id)));
        let condition = match &definition.when {
            Some(when) => format!("{own} and ({})", when.source()),
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
            retry: RetryPolicy { max_attempts: ATTEMPTS_MAX, base: Duration::from_secs(1), ..RetryPolicy::default() },
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
