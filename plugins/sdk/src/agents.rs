//! The agents of the daemon: listed, read, made, changed and removed. Nothing of it waits for a call's end. Talking with them is
//! in [`crate::chat`].

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Result;
use crate::bindings::aman::plugin::agents as host;

pub use crate::bindings::aman::plugin::agents::{Agent, Definition, Status, Stored, list, read, remove};

/// Makes an agent, or changes what one is: the definition is the whole of it, as `schemas/agent.schema.json` describes it.
pub fn put(id: &str, definition: &impl Serialize) -> Result<Stored> {
    host::put(id, &serde_json::to_string(definition)?)
}

impl Definition {
    /// What it says.
    pub fn value<T: DeserializeOwned>(&self) -> Result<T> {
        Ok(serde_json::from_str(&self.json)?)
    }
}
