//! The tool by which agents read skills: they are told names and descriptions, and read the rest when they need it.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{Skill, Skills};
use crate::error::Error;
use crate::event::Trust;
use crate::plain;
use crate::tools::{Call, Calling, Output, Permission, Provider, Tool, ToolFailure, pattern};

/// The tool's name.
const READ_SKILL: &str = "read_skill";

/// Says whether an agent (the first) may read a skill.
pub type MayRead = Arc<dyn Fn(Option<&str>, &str) -> bool + Send + Sync>;

/// Offers [`READ_SKILL`].
pub struct SkillTools {
    /// The skills.
    pub skills: Skills,
    /// Who may read what.
    pub may_read: MayRead,
}

impl Skills {
    /// The tools that a skill says it needs, as it says it; none when it does not.
    pub fn allowed_tools(&self, name: &str) -> Result<Option<String>, Error> {
        Ok(self.inner.skill(name)?.found.manifest.allowed_tools.clone())
    }

    /// The skills whose content is trusted and whose names fit one of `patterns`: name and description.
    pub fn index(&self, patterns: &[String]) -> Vec<(String, String)> {
        let loaded = self.inner.loaded.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let told = |skill: &&Arc<Skill>| skill.trusted && pattern::any(patterns, &skill.found.manifest.name);
        let line = |skill: &Arc<Skill>| {
            let manifest = &skill.found.manifest;
            (manifest.name.clone(), manifest.description.clone())
        };
        loaded.values().filter(told).map(line).collect()
    }
}

impl Provider for SkillTools {
    fn tools(&self) -> Vec<Tool> {
        vec![Tool {
            name: READ_SKILL.to_owned(),
            description:
                "Reads the instructions of a skill, or one of its files. Do so before you do what a skill is for."
                    .to_owned(),
            schema: json!({
                "type": "object",
                "properties": {
                    "name": { "type": "string", "description": "The skill's name, as it is listed" },
                    "file": { "type": "string", "description": "A file of the skill in place of its instructions" },
                },
                "required": ["name"],
                "additionalProperties": false,
            }),
            source: "builtin".to_owned(),
            permission: Permission::Read,
            repeatable: true,
        }]
    }

    fn call<'a>(&'a self, call: &'a Call, _cancel: &'a CancellationToken) -> Calling<'a> {
        Box::pin(async move {
            let text = |key: &str| call.arguments[key].as_str();
            let name = text("name").unwrap_or_default();
            let known = self.skills.index(&["*".to_owned()]).iter().any(|(known, _)| known == name);
            if !known || !(self.may_read)(call.caller.agent.as_deref(), name) {
                let why =
                    format!("there is no skill '{}' that could be read; read one that is listed.", name.escape_debug());
                return Err(ToolFailure::Arguments("/name".to_owned(), why));
            }
            self.read(name, text("file")).await
        })
    }
}

impl SkillTools {
    async fn read(&self, name: &str, file: Option<&str>) -> Result<Output, ToolFailure> {
        let failed = |error: Error| ToolFailure::Failed(error.chain().join(": "));
        let content = self.skills.content(name).await.map_err(failed)?;
        let files: Vec<String> = content.files.iter().map(|file| file.path.clone()).collect();
        let Some(file) = file else {
            let text = super::front::body(&content.content).to_owned();
            let listed = if files.len() > 1 { format!("\n\nIts files: {}", files.join(", ")) } else { String::new() };
            return Ok(Output { text: text + &listed, value: Some(json!({ "files": files })), trust: Trust::Owner });
        };
        if !files.iter().any(|known| known == file) {
            let why = format!("the skill has no file '{}'; it has {}.", file.escape_debug(), files.join(", "));
            return Err(ToolFailure::Arguments("/file".to_owned(), why));
        }
        let folder = self.skills.get(name).map_err(failed)?.path;
        let path = std::path::Path::new(&folder).join(file);
        let read = tokio::task::spawn_blocking(move || plain::read(&path, Output::BYTES_MAX as u64));
        match read.await {
            Ok(Ok(text)) => Ok(Output { text, value: None::<Value>, trust: Trust::Owner }),
            Ok(Err(error)) => Err(ToolFailure::Failed(format!("'{file}' cannot be read as text: {error}"))),
            Err(error) => Err(ToolFailure::Failed(error.to_string())),
        }
    }
}
