//! Jobs as tools: agents plan jobs of their own, see them and remove them, and have no hand in those of others.

use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use super::Cron;
use crate::error::Error;
use crate::event::Trust;
use crate::tools::{Call, Calling, Output, Permission, Preview, Provider, Tool, ToolFailure};

/// Before the ids of the jobs of agents, and then the agent's.
const PREFIX: &str = "agent";

/// The beginning of the ids of a caller's jobs; a caller that is no agent has those of everybody. Ids of agents have no dots,
/// so the jobs of `a` are not those of `a-b`.
fn prefix(call: &Call) -> String {
    call.caller.agent.as_ref().map_or_else(String::new, |agent| format!("{PREFIX}.{agent}."))
}

/// The id that a call means, whether it is given with its beginning or without.
fn id(call: &Call) -> String {
    let (given, prefix) = (call.arguments["id"].as_str().unwrap_or_default(), prefix(call));
    if given.starts_with(&prefix) { given.to_owned() } else { format!("{prefix}{given}") }
}

fn failure(error: Error) -> ToolFailure {
    match error {
        Error::Invalid { fields, .. } => {
            let first = fields.first().map(|field| field.field.clone()).unwrap_or_default();
            let all: Vec<String> = fields.iter().map(|field| format!("{}: {}", field.field, field.reason)).collect();
            ToolFailure::Arguments(format!("/{first}"), all.join(" "))
        }
        other => ToolFailure::Failed(other.to_string()),
    }
}

fn tool(name: &str, permission: Permission, repeatable: bool, description: &str, schema: Value) -> Tool {
    let (name, description) = (name.to_owned(), description.to_owned());
    Tool { name, description, schema, source: "builtin".to_owned(), permission, repeatable }
}

/// What is shown of a job, with what a model needs of it.
fn brief(job: &Value) -> Value {
    let names = [
        "id",
        "description",
        "expression",
        "timezone",
        "type",
        "payload",
        "skill",
        "workflow",
        "agent_id",
        "enabled",
        "next_at",
    ];
    let shown: Map<String, Value> = names
        .iter()
        .filter(|name| !job[**name].is_null())
        .map(|name| ((*name).to_owned(), job[*name].clone()))
        .collect();
    Value::Object(shown)
}

fn said(text: String, value: Value) -> Output {
    Output { text, value: Some(value), trust: Trust::Owner }
}

impl Cron {
    async fn plan_job(&self, call: &Call) -> Result<Output, ToolFailure> {
        let Value::Object(mut fields) = call.arguments.clone() else {
            return Err(ToolFailure::Arguments(String::new(), "must be an object".to_owned()));
        };
        fields.remove("id");
        // What an agent plans for nobody else comes back to itself.
        if !fields.contains_key("skill") && !fields.contains_key("workflow") {
            fields.extend(call.caller.agent.as_ref().map(|agent| ("agent_id".to_owned(), agent.as_str().into())));
        }
        // The gate writes the record.
        let changed = self.add(&id(call), fields, false, Box::new(|_, _| Ok(()))).await.map_err(failure)?;
        let job = brief(&changed.shown);
        Ok(said(format!("Planned {}: {}, next {}.", job["id"], job["description"], job["next_at"]), job))
    }

    async fn list_jobs(&self, call: &Call) -> Result<Output, ToolFailure> {
        let prefix = prefix(call);
        let jobs = self.list().await.map_err(failure)?;
        let is_own = |job: &&Value| job["id"].as_str().is_some_and(|id| id.starts_with(&prefix));
        let items: Vec<Value> = jobs.iter().filter(is_own).map(brief).collect();
        let mut text: String = items.iter().map(|job| format!("{job}\n")).collect();
        if items.is_empty() {
            text.push_str("[no jobs]");
        }
        Ok(said(text, json!({ "items": items })))
    }

    async fn remove_job(&self, call: &Call) -> Result<Output, ToolFailure> {
        let id = id(call);
        self.remove(&id, Box::new(|_, _| Ok(()))).await.map_err(failure)?;
        Ok(said(format!("Removed {id}."), json!({ "id": id, "deleted": true })))
    }
}

impl Provider for Cron {
    fn tools(&self) -> Vec<Tool> {
        let id = || json!({ "type": "string", "minLength": 1, "maxLength": 64, "description": "Its name: lower-case letters, digits and '-'" });
        let text = |what: &str| json!({ "type": "string", "minLength": 1, "maxLength": 255, "description": what });
        vec![
            tool(
                "schedule_add",
                Permission::Act,
                false,
                "Plans a job by a cron expression. It publishes an event of the type, which comes back to you with the payload, \
                 or runs a skill or a workflow.",
                json!({
                    "type": "object",
                    "required": ["id", "expression"],
                    "additionalProperties": false,
                    "properties": {
                        "id": id(),
                        "expression": text("minute hour day month weekday, as 0 9 * * MON-FRI"),
                        "timezone": text("An IANA zone, as Europe/Berlin; UTC without one"),
                        "type": text("The type of the event; cron.fired unless given"),
                        "payload": { "description": "The data of the event: any JSON" },
                        "skill": text("A skill to run"),
                        "workflow": text("A workflow to start"),
                    },
                }),
            ),
            tool(
                "schedule_list",
                Permission::Read,
                true,
                "Lists the jobs that you planned, with when they run next.",
                json!({ "type": "object", "additionalProperties": false, "properties": {} }),
            ),
            tool(
                "schedule_remove",
                Permission::Act,
                false,
                "Removes a job that you planned.",
                json!({ "type": "object", "required": ["id"], "additionalProperties": false, "properties": { "id": id() } }),
            ),
        ]
    }

    fn preview(&self, call: &Call) -> Result<Preview, ToolFailure> {
        if call.tool == "schedule_list" {
            return Ok(Preview::default());
        }
        // What a job does is believed like the owner: nothing that is not may leave one behind.
        let lasts = (call.tool == "schedule_add").then_some(Permission::Remember);
        let id = id(call);
        Ok(Preview { permission: lasts, ..Preview::about(id.clone(), id) })
    }

    fn call<'a>(&'a self, call: &'a Call, _cancel: &'a CancellationToken) -> Calling<'a> {
        Box::pin(async move {
            match call.tool.as_str() {
                "schedule_add" => self.plan_job(call).await,
                "schedule_list" => self.list_jobs(call).await,
                _ => self.remove_job(call).await,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::id::TraceId;
    use crate::tools::Caller;

    #[test]
    fn agents_mean_jobs_of_their_own_only() {
        let call = |agent: Option<&str>, id: &str| Call {
            key: String::new(),
            tool: "schedule_remove".to_owned(),
            arguments: json!({ "id": id }),
            caller: Caller {
                principal: "owner".to_owned(),
                agent: agent.map(str::to_owned),
                session: None,
                trust: Trust::Owner,
                trace: TraceId::random(),
                cause: None,
                policy: Arc::default(),
            },
        };
        for (agent, given, wanted) in [
            (Some("a"), "daily", "agent.a.daily"),
            (Some("a"), "agent.a.daily", "agent.a.daily"),
            (Some("a"), "agent.a-b.daily", "agent.a.agent.a-b.daily"),
            (Some("a"), "b-daily", "agent.a.b-daily"),
            (Some("a-b"), "daily", "agent.a-b.daily"),
            (None, "daily", "daily"),
        ] {
            let id = id(&call(agent, given));
            assert_eq!(id, wanted);
            assert_eq!(crate::schedule::check_id(&id), Ok(()));
        }
    }
}
