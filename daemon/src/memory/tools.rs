//! Memory as tools of agents: `memory_search`, `memory_save`, `memory_forget`. An agent sees its own facts and the shared
//! ones, and forgets only its own.

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{Memory, NewFact, Of, Shown, TAG_CHARS_MAX, TAGS_MAX, TEXT_CHARS_MAX, Writer};
use crate::error::Error;
use crate::event::Trust;
use crate::tools::{Call, Calling, Output, Permission, Provider, Tool, ToolFailure};

/// Facts that a search gives without a limit, and at the most.
const COUNT: (usize, usize) = (10, 50);

/// The provider.
pub struct MemoryTools(pub Memory);

fn tool(name: &str, description: &str, permission: Permission, schema: Value) -> Tool {
    Tool {
        name: name.to_owned(),
        description: description.to_owned(),
        schema,
        source: "builtin".to_owned(),
        permission,
        // Saying the same twice, or forgetting what is forgotten, changes nothing.
        repeatable: true,
    }
}

fn object(properties: Value, required: &[&str]) -> Value {
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}

impl Provider for MemoryTools {
    fn tools(&self) -> Vec<Tool> {
        let text = json!({ "type": "string", "minLength": 1, "maxLength": TEXT_CHARS_MAX,
            "description": "One fact in one or two sentences, clear without this conversation." });
        let tag = json!({ "type": "string", "minLength": 1, "maxLength": TAG_CHARS_MAX, "pattern": "^\\S+$" });
        vec![
            tool(
                "memory_search",
                "Looks for facts that were remembered in earlier conversations. Every word must be there; without words \
                 it gives the newest.",
                Permission::Read,
                object(
                    json!({
                        "query": { "type": "string", "maxLength": 256 },
                        "limit": { "type": "integer", "minimum": 1, "maximum": COUNT.1 },
                    }),
                    &[],
                ),
            ),
            tool(
                "memory_save",
                "Remembers a fact for later conversations: what the person likes, decided or asked to be remembered. Not \
                 for passwords, nor for what is only true now.",
                Permission::Remember,
                object(
                    json!({
                        "text": text,
                        "tags": { "type": "array", "maxItems": TAGS_MAX, "items": tag },
                        "shared": { "type": "boolean", "description": "True when every agent should know it." },
                    }),
                    &["text"],
                ),
            ),
            tool(
                "memory_forget",
                "Forgets a fact of this agent, by the id that memory_search gives.",
                Permission::Remember,
                object(json!({ "id": { "type": "string", "minLength": 1, "maxLength": 64 } }), &["id"]),
            ),
        ]
    }

    fn call<'a>(&'a self, call: &'a Call, _: &'a CancellationToken) -> Calling<'a> {
        Box::pin(async move {
            match call.tool.as_str() {
                "memory_search" => self.search(call).await,
                "memory_save" => self.save(call).await,
                "memory_forget" => self.forget(call).await,
                other => Err(ToolFailure::Failed(format!("Memory has no tool {other}."))),
            }
        })
    }
}

impl MemoryTools {
    async fn search(&self, call: &Call) -> Result<Output, ToolFailure> {
        let of = call.caller.agent.clone().map_or(Of::All, Of::Agent);
        let query = call.arguments["query"].as_str().unwrap_or_default();
        let limit = call.arguments["limit"].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(COUNT.0);
        let limit = limit.clamp(1, COUNT.1);
        let found = match query.trim() {
            "" => self.0.list(of, None, limit).await,
            words => self.0.search(of, words, limit).await,
        };
        let found = found.map_err(failed)?;
        let trust = found.iter().map(|fact| fact.trust).min().unwrap_or(Trust::Owner);
        let line = |fact: &Shown| {
            let day = fact.updated_at.get(..10).unwrap_or_default();
            format!("{} [{}, {day}, {}] {}\n", fact.id, fact.source, fact.trust.name(), fact.text)
        };
        let mut text: String = found.iter().map(line).collect();
        if text.is_empty() {
            text.push_str("Nothing is remembered about that.");
        }
        text.truncate(text.floor_char_boundary(Output::BYTES_MAX));
        Ok(Output { text, value: Some(json!({ "items": found })), trust })
    }

    async fn save(&self, call: &Call) -> Result<Output, ToolFailure> {
        let tags = call.arguments["tags"].as_array().into_iter().flatten();
        let shared = call.arguments["shared"].as_bool().unwrap_or(false);
        let new = NewFact {
            agent: call.caller.agent.clone().filter(|_| !shared),
            text: call.arguments["text"].as_str().unwrap_or_default().to_owned(),
            tags: tags.filter_map(|tag| tag.as_str().map(str::to_owned)).collect(),
        };
        let (fact, is_new) = self.0.remember(new, writer(call), Box::new(|_, _| Ok(()))).await.map_err(failed)?;
        let text = if is_new { "It is remembered" } else { "It was remembered already" };
        Ok(answer(format!("{text}, as {}.", fact.id), &json!(fact)))
    }

    async fn forget(&self, call: &Call) -> Result<Output, ToolFailure> {
        let id = call.arguments["id"].as_str().unwrap_or_default();
        let of = call.caller.agent.clone().map_or(Of::All, Of::Agent);
        match self.0.forget(id, of, writer(call), Box::new(|_, _| Ok(()))).await {
            Ok(()) => Ok(answer(format!("{id} is forgotten."), &json!({ "id": id, "forgotten": true }))),
            Err(Error::NotFound { .. }) => {
                let text = format!("There is no memory {id} of this agent; what is shared only the person forgets.");
                Ok(answer(text, &json!({ "id": id, "forgotten": false })))
            }
            Err(error) => Err(failed(error)),
        }
    }
}

fn answer(text: String, value: &Value) -> Output {
    Output { text, value: Some(value.clone()), trust: Trust::Owner }
}

fn writer(call: &Call) -> Writer {
    let caller = &call.caller;
    let source = match (&caller.agent, &caller.session) {
        (Some(agent), Some(session)) => format!("agent/{agent} session/{session}"),
        (Some(agent), None) => format!("agent/{agent}"),
        (None, _) => caller.principal.clone(),
    };
    Writer { source, trust: caller.trust }
}

fn failed(error: Error) -> ToolFailure {
    match error {
        Error::Forbidden { code, reason } => ToolFailure::Refused(code, reason),
        Error::Invalid { fields, .. } => match fields.into_iter().next() {
            Some(field) => ToolFailure::Arguments(format!("/{}", field.field), field.reason),
            None => ToolFailure::Failed("The arguments are wrong.".to_owned()),
        },
        other => ToolFailure::Failed(other.to_string()),
    }
}
