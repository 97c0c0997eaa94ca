//! What the API shows of agents.

use serde_json::{Value, json};

use super::Agent;
use crate::clock::rfc3339;
use crate::store::agents::DefinitionRow;

/// An agent without its definition.
pub(super) fn agent(agent: &Agent) -> Value {
    let (row, definition) = (&agent.row, &agent.definition);
    let reason = {
        let state = agent.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        state.trouble.clone()
    };
    json!({
        "id": row.id,
        "status": agent.status(),
        "reason": reason,
        "description": definition.description,
        "model": definition.model,
        "fallback": definition.fallback,
        "tools": definition.tools,
        "skills": definition.skills,
        "budget": definition.budget,
        "on": definition.on.iter().map(|pattern| pattern.as_str()).collect::<Vec<_>>(),
        "when": definition.when.as_ref().map(|when| when.source()),
        "trust": definition.trust,
        "turn_timeout_ms": u64::try_from(definition.turn_timeout.as_millis()).unwrap_or(u64::MAX),
        "max_steps": definition.max_steps,
        "concurrency": definition.concurrency,
        "enabled": !row.disabled,
        "origin": row.origin,
        "digest": definition.digest,
        "updated_at": rfc3339(row.updated_ms),
    })
}

/// A definition of the history.
pub(super) fn version(row: &DefinitionRow, current: bool) -> Value {
    json!({
        "version": row.number,
        "digest": row.digest,
        "created_at": rfc3339(row.created_ms),
        "principal": row.principal,
        "current": current,
    })
}
