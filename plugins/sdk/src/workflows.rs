//! Workflows of the daemon: started, signalled and read. In `Events::handle` and `Source::poll` starts and signals take
//! effect with the call's end.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::bindings::aman::plugin::workflows as host;
use crate::{Error, Result};

pub use crate::bindings::aman::plugin::workflows::{Instance, NewInstance, SignalEvent, Started, Status, read};

/// Starts an instance with this input; its id.
pub fn start(workflow: &str, input: &impl Serialize) -> Result<String> {
    start_with(workflow, input, None).map(|started| started.id)
}

/// As [`start`], unless this plugin has started one of this workflow with the same key: then that one it is.
pub fn start_once(workflow: &str, key: &str, input: &impl Serialize) -> Result<Started> {
    start_with(workflow, input, Some(key.to_owned()))
}

fn start_with(workflow: &str, input: &impl Serialize, dedup_key: Option<String>) -> Result<Started> {
    let input = Some(serde_json::to_string(input)?);
    host::start(&NewInstance { workflow: workflow.to_owned(), input, dedup_key, extensions: Vec::new() })
}

/// Sends an event of this type to one instance; an [`Error::Conflict`] when it does not wait for it.
pub fn signal(id: &str, kind: &str, data: &impl Serialize) -> Result<()> {
    let data = Some(serde_json::to_string(data)?);
    host::signal(id, &SignalEvent { type_: kind.to_owned(), data, extensions: Vec::new() })
}

impl Status {
    /// Whether it does nothing more.
    pub fn is_ended(self) -> bool {
        matches!(self, Status::Completed | Status::Faulted | Status::Cancelled)
    }
}

impl Instance {
    /// What it came to; an error before it is completed.
    pub fn result<T: DeserializeOwned>(&self) -> Result<T> {
        let output = self.output.as_deref().ok_or_else(|| Error::Conflict(format!("{} has no output yet", self.id)))?;
        Ok(serde_json::from_str(output)?)
    }
}
