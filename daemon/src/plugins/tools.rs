//! The tools of plugins, behind the gate that every tool is behind.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::host::trust_of;
use super::running::{CallFault, Running};
use super::serve::{Kind, Refusal};
use super::{Caller, Plugins};
use crate::error::Error;
use crate::event::Trust;
use crate::registry::Schema;
use crate::tools::{Call, Calling, Output, Permission, Provider, Tool, ToolFailure};

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

fn shown(running: &Running, tool: &crate::package::Tool, schema: &Schema) -> Tool {
    Tool {
        name: tool.name.clone(),
        description: tool.description.clone(),
        schema: schema.value().clone(),
        source: format!("plugin/{}", running.manifest.name),
        permission: Permission::Foreign,
        repeatable: false,
    }
}

impl Plugins {
    /// The version that runs and has a tool of that name.
    fn offering(&self, name: &str) -> Option<Arc<Running>> {
        let offers = |running: &Arc<Running>| running.manifest.tools.iter().any(|tool| tool.name == name);
        self.inner.all().into_iter().filter_map(|known| known.running).find(offers)
    }

    async fn call_tool(&self, call: &Call) -> Result<Output, ToolFailure> {
        // As the gate answers for a name that nobody offers: a plugin may be switched off after the gate has looked.
        let gone = || ToolFailure::Refused("tool_unknown", "its plugin was switched off; nothing was done".to_owned());
        let caller = Caller {
            principal: call.caller.principal.clone(),
            trust: trust_of(call.caller.trust),
            trace_id: call.caller.trace.to_string(),
            extensions: Vec::new(),
        };
        let (name, input) = (call.tool.as_str(), call.arguments.to_string());
        let running = self.offering(name).ok_or_else(gone)?;
        let mut called = running.tool(caller.clone(), name, input.clone()).await;
        if matches!(called, Err(CallFault::Closed))
            && let Some(running) = self.offering(name)
        {
            // Another version took its place; the old one has not seen the call.
            called = running.tool(caller, name, input).await;
        }
        let said = match called {
            Err(CallFault::Closed) => return Err(gone()),
            Err(fault) => return Err(failure(Refusal::of_fault(&fault))),
            Ok(Err(said)) => return Err(failure(Refusal::of_words(&said))),
            Ok(Ok(text)) => text,
        };
        let value = if said.trim().is_empty() {
            Value::Null
        } else {
            crate::event::read_json(said.as_bytes())
                .map_err(|error| ToolFailure::Failed(format!("the plugin answered what is no JSON: {error}")))?
        };
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        Ok(Output { text, value: Some(value), trust: Trust::Plugin })
    }
}

/// What a plugin's refusal comes to. What was cut off in the middle may have acted before.
fn failure(refusal: Refusal) -> ToolFailure {
    match refusal.kind {
        Kind::SaysInvalid => {
            let pointer = refusal.field.map(|field| format!("/{field}")).unwrap_or_default();
            ToolFailure::Arguments(pointer, refusal.detail)
        }
        Kind::SaysDenied => ToolFailure::Refused("plugin_denied", refusal.detail),
        Kind::Trap | Kind::Timeout | Kind::Limit => ToolFailure::Unknown(refusal.detail),
        Kind::Absent
        | Kind::Unavailable
        | Kind::Internal
        | Kind::SaysNotFound
        | Kind::SaysConflict
        | Kind::SaysFailed => ToolFailure::Failed(refusal.detail),
    }
}

impl Provider for Plugins {
    fn tools(&self) -> Vec<Tool> {
        let mut all = Vec::new();
        for running in self.inner.all().into_iter().filter_map(|known| known.running) {
            match running.schemas() {
                Ok(schemas) => all.extend(
                    running
                        .manifest
                        .tools
                        .iter()
                        .filter_map(|tool| Some(shown(&running, tool, schemas.get(&tool.name)?))),
                ),
                Err(error) => {
                    let error = error.chain().join(": ");
                    tracing::warn!(plugin = running.manifest.name, error, "A plugin's tools cannot be shown.");
                }
            }
        }
        all
    }

    fn tool(&self, name: &str) -> Option<Tool> {
        let running = self.offering(name)?;
        let schemas = running.schemas().ok()?;
        let tool = running.manifest.tools.iter().find(|tool| tool.name == name)?;
        Some(shown(&running, tool, schemas.get(name)?))
    }

    fn call<'a>(&'a self, call: &'a Call, _cancel: &'a CancellationToken) -> Calling<'a> {
        // Dropping the call ends the guest.
        Box::pin(self.call_tool(call))
    }
}
