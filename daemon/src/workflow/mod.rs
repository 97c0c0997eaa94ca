//! Workflows in the CNCF Serverless Workflow DSL 1.0: definitions, their checks, data flow and the machine that runs
//! them step by step. Pure: whoever runs the machine stores its state, tells it the time and does what it asks for.
//!
//! ```text
//! text ─▶ document (values with line and column) ─▶ check (unsupported, schema) ─▶ definition (tasks, expressions)
//!                                                                                   └─▶ machine: state ─▶ state, wishes
//! ```

mod blocks;
mod build;
mod catch;
mod check;
mod definition;
mod duration;
mod fault;
mod keys;
mod links;
mod listen;
mod machine;
mod mermaid;
mod size;
mod state;
mod template;
#[cfg(test)]
mod tests;
mod time;

pub use blocks::emitted;
pub use catch::APPROVAL;
pub use check::{Problem, load, parse, refused};
pub use definition::{
    Call, Definition, Digest, Http, Journal, Kind, OpenApi, Output, Process, Read, Return, Run, Schedule, Task, TaskId,
    Tell,
};
pub use fault::{Fault, standard};
pub use links::{Filter, Strategy, Until};
pub use listen::Listening;
pub use machine::{Env, Machine, Stop};
pub use mermaid::{Marks, render};
pub use size::STATE_BYTES_MAX;
pub use state::{Action, Child, Ended, Fiber, Frame, Inner, Signal, State, Step, StepStatus, Waiting, Wishes};
pub use template::{Formula, Scope, Template, scope};

/// Reads YAML or JSON into a value, within the bounds of definitions; the error says what is wrong with it.
pub fn read(text: &str) -> Result<serde_json::Value, String> {
    crate::text::document::Document::read(text).map(|document| document.value).map_err(|(_, why)| why)
}
