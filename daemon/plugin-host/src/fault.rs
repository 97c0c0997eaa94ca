//! What can go wrong with a plugin, as a type that the daemon acts on.

use std::fmt;

use crate::values::{Error, Words};

/// Why a plugin could not be loaded, or why a call of it has no answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// The guest trapped (panicked), or answered what the interface does not allow. Its instance is gone.
    Trap {
        /// What happened, with what the guest last wrote to its standard error.
        message: String,
    },
    /// The call took too long. Its instance is gone.
    Timeout {
        /// Which limit, and how long it is.
        message: String,
    },
    /// A limit was reached; for all but [`Which::Calls`] and [`Which::Streams`] the instance is gone.
    Limit {
        /// Which one.
        which: Which,
        /// Its size, and what to do.
        message: String,
    },
    /// Where only success is possible (the beginning of an instance, the middle of a stream), the guest answered an error.
    Failed(Error),
    /// The plugin does not export what was called.
    Missing {
        /// The interface, such as `aman:plugin/tools`.
        export: &'static str,
    },
    /// The component imports what its manifest does not ask for.
    Denied {
        /// The interfaces, such as `aman:plugin/kv`.
        imports: Vec<String>,
    },
    /// This is no plugin that the daemon can run.
    Refused {
        /// Why, and what to do.
        reason: String,
    },
    /// The compiled code is not there, is of another version of the daemon or was changed: compile it again.
    Damaged {
        /// What is wrong with it.
        reason: String,
    },
    /// The plugin was closed.
    Closed,
    /// A fault of the machine or of the daemon, not of the plugin.
    Internal {
        /// For the log.
        reason: String,
    },
}

/// A limit of [`crate::Limits`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Which {
    /// Linear memory of an instance.
    Memory,
    /// Elements or number of tables, instances or memories inside one instance of the plugin.
    Tables,
    /// Depth of calls.
    Stack,
    /// Bytes that one call may answer, or hand to the host at once; pieces of a stream without content.
    Output,
    /// Calls that wait for an instance.
    Calls,
    /// Streamed bodies at once.
    Streams,
    /// Handles of resources.
    Handles,
}

impl Which {
    /// Its name in metrics and answers.
    pub fn name(self) -> &'static str {
        match self {
            Which::Memory => "memory",
            Which::Tables => "tables",
            Which::Stack => "stack",
            Which::Output => "output",
            Which::Calls => "calls",
            Which::Streams => "streams",
            Which::Handles => "handles",
        }
    }
}

impl Fault {
    /// Whether the plugin misbehaved, which counts towards its quarantine; not when it is just busy, closed or not there.
    pub fn is_misbehaviour(&self) -> bool {
        match self {
            Fault::Trap { .. } | Fault::Timeout { .. } | Fault::Failed(_) => true,
            Fault::Limit { which, .. } => !matches!(which, Which::Calls | Which::Streams),
            Fault::Missing { .. }
            | Fault::Denied { .. }
            | Fault::Refused { .. }
            | Fault::Damaged { .. }
            | Fault::Closed
            | Fault::Internal { .. } => false,
        }
    }

    pub(crate) fn refused(reason: impl Into<String>) -> Fault {
        Fault::Refused { reason: reason.into() }
    }

    pub(crate) fn internal(reason: impl Into<String>) -> Fault {
        Fault::Internal { reason: reason.into() }
    }

    pub(crate) fn trap(message: impl Into<String>) -> Fault {
        Fault::Trap { message: message.into() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Trap { message } => write!(f, "the plugin crashed: {message}"),
            Fault::Timeout { message } => write!(f, "the plugin took too long: {message}"),
            Fault::Limit { which, message } => {
                write!(f, "the plugin reached its limit of {}: {message}", which.name())
            }
            Fault::Failed(error) => write!(f, "the plugin failed: {}", Words(error)),
            Fault::Missing { export } => write!(f, "the plugin does not export {export}"),
            Fault::Denied { imports } => write!(
                f,
                "the component imports {}, which its manifest does not ask for; add the permission to plugin.toml, or build \
                 the component without it",
                imports.join(", ")
            ),
            Fault::Refused { reason } => write!(f, "the component cannot be run: {reason}"),
            Fault::Damaged { reason } => write!(f, "the compiled code cannot be used: {reason}; compile it again"),
            Fault::Closed => f.write_str("the plugin was closed"),
            Fault::Internal { reason } => write!(f, "the plugin host failed: {reason}"),
        }
    }
}

impl std::error::Error for Fault {}
