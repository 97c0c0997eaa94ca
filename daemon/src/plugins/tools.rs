//! The tools of plugins: what there is, and calling one with arguments that its schema allows.

use std::collections::BTreeMap;
use std::fs;

use serde::Serialize;
use serde_json::Value;

use super::running::{CallFault, Running};
use super::serve::{Kind, Refusal};
use super::{Caller, Plugins};
use crate::error::Error;
use crate::registry::Schema;

/// A tool as it is listed.
#[derive(Debug, Clone, Serialize)]
pub struct ToolShown {
    /// Its name; no two plugins that run have the same.
    pub name: String,
    /// What it does and when to use it.
    pub description: String,
    /// JSON Schema of its arguments.
    pub schema: Value,
    /// `plugin/<name>`.
    pub source: String,
    /// Who may call it.
    pub permission: &'static str,
}

/// The schemas of a plugin's tools by the tool's name, as they lie in its folder.
pub(super) fn schemas(running: &Running) -> Result<BTreeMap<String, Schema>, Error> {
    let read = |tool: &crate::package::Tool| {
        let path = running.folder.join(&tool.schema);
        let wrong = Error::internal("reading the schema of a tool");
        let text = fs::read(&path).map_err(wrong)?;
        let schema = crate::event::read_json(&text).map_err(Error::internal("reading the schema of a tool"))?;
        let compiled = Schema::new(schema)
            .map_err(|reason| Error::invalid_as(crate::package::FAULT, tool.schema.clone(), reason))?;
        Ok((tool.name.clone(), compiled))
    };
    running.manifest.tools.iter().map(read).collect()
}

impl Plugins {
    /// Every tool of every plugin that runs, by name.
    pub async fn tools(&self) -> Vec<ToolShown> {
        let mut shown = Vec::new();
        for known in self.inner.all() {
            let Some(running) = known.running else { continue };
            let schemas = match running.schemas().await {
                Ok(schemas) => schemas,
                Err(error) => {
                    let error = error.chain().join(": ");
                    tracing::warn!(plugin = running.manifest.name, error, "A plugin's tools cannot be shown.");
                    continue;
                }
            };
            shown.extend(running.manifest.tools.iter().filter_map(|tool| {
                Some(ToolShown {
                    name: tool.name.clone(),
                    description: tool.description.clone(),
                    schema: schemas.get(&tool.name)?.value().clone(),
                    source: format!("plugin/{}", running.manifest.name),
                    permission: "admin",
                })
            }));
        }
        shown.sort_by(|a, b| a.name.cmp(&b.name));
        shown
    }

    /// Calls a tool. With `dry_run` only its arguments are checked.
    pub async fn call_tool(
        &self,
        caller: Caller,
        name: &str,
        input: &Value,
        dry_run: bool,
    ) -> Result<Result<Value, Refusal>, Error> {
        let offers = |running: &Running| running.manifest.tools.iter().any(|tool| tool.name == name);
        let offered = || self.inner.all().into_iter().filter_map(|known| known.running).find(|running| offers(running));
        let Some(running) = offered() else { return Err(Error::not_found("tool", name)) };
        let schemas = running.schemas().await?;
        let schema = schemas.get(name).ok_or_else(|| Error::not_found("tool", name))?;
        schema.check("input", &format!("the schema of {name}"), input)?;
        if dry_run {
            return Ok(Ok(Value::Null));
        }
        let mut called = running.tool(caller.clone(), name, input.to_string()).await;
        if matches!(called, Err(CallFault::Closed))
            && let Some(running) = offered()
        {
            // Another version took its place; the old one has not seen the call.
            called = running.tool(caller, name, input.to_string()).await;
        }
        Ok(match called {
            Err(fault) => Err(Refusal::of_fault(&fault)),
            Ok(Err(said)) => Err(Refusal::of_words(&said)),
            Ok(Ok(text)) if text.trim().is_empty() => Ok(Value::Null),
            Ok(Ok(text)) => crate::event::read_json(text.as_bytes()).map_err(|error| Refusal {
                kind: Kind::Trap,
                detail: format!("The tool answered what is no JSON: {error}."),
                field: None,
                retry_after_ms: None,
            }),
        })
    }
}
