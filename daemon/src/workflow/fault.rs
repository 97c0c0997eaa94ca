//! Errors as the DSL defines them: RFC 7807 problem details whose `instance` is the pointer of the task.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Where the standard error types live (DSL reference, "Standard Error Types").
const BASE: &str = "https://serverlessworkflow.io/spec/1.0.0/errors/";

/// Where published examples and the conformance scenarios of the DSL say that they live: earlier homes, and one that is
/// spelt wrong there.
const OTHER_BASES: [&str; 5] = [
    "https://serverlessworkflow.io/dsl/errors/types/",
    "https://serverlessworkflow.io.io/dsl/errors/types/",
    "https://open-workflow-specification.org/spec/1.0.0/errors/",
    "https://open-workflow-specification.org/dsl/errors/types/",
    "https://https://serverlessworkflow.io/spec/1.0.0/errors/",
];
const STANDARD: [&str; 8] = [
    "configuration",
    "validation",
    "expression",
    "authentication",
    "authorization",
    "timeout",
    "communication",
    "runtime",
];

/// An error of a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fault {
    /// URI of its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Status as of HTTP.
    pub status: i64,
    /// A short summary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// What happened this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Pointer of the task that it comes from; empty until it is raised.
    #[serde(default)]
    pub instance: String,
    /// True when nobody knows whether the task's side effect happened.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unknown: bool,
}

impl Fault {
    /// An error of a standard type, such as `communication`.
    pub fn new(kind: &str, status: i64, title: &str, detail: impl Into<String>) -> Fault {
        Fault {
            kind: standard(kind),
            status,
            title: Some(title.to_owned()),
            detail: Some(detail.into()),
            instance: String::new(),
            unknown: false,
        }
    }

    /// An expression that could not be evaluated, or gave what cannot be used.
    pub fn expression(detail: impl Into<String>) -> Fault {
        Fault::new("expression", 400, "Expression failed", detail)
    }

    /// Data that does not fit its schema.
    pub fn validation(detail: impl Into<String>) -> Fault {
        Fault::new("validation", 400, "Invalid data", detail)
    }

    /// A setting that is missing or wrong.
    pub fn configuration(detail: impl Into<String>) -> Fault {
        Fault::new("configuration", 400, "Not configured", detail)
    }

    /// Something that may not be done.
    pub fn authorization(detail: impl Into<String>) -> Fault {
        Fault::new("authorization", 403, "Not allowed", detail)
    }

    /// Something that took too long.
    pub fn timeout(detail: impl Into<String>) -> Fault {
        Fault::new("timeout", 408, "Timed out", detail)
    }

    /// A failure of the runtime or of a process.
    pub fn runtime(detail: impl Into<String>) -> Fault {
        Fault::new("runtime", 500, "Failed", detail)
    }

    /// The same error, whose side effect may have happened.
    #[must_use]
    pub fn unknown(mut self) -> Fault {
        self.unknown = true;
        self
    }

    /// The same error, raised by the task at `pointer` unless it names another place.
    #[must_use]
    pub fn at(mut self, pointer: &str) -> Fault {
        if self.instance.is_empty() {
            pointer.clone_into(&mut self.instance);
        }
        self
    }

    /// As expressions and answers show it.
    pub fn to_value(&self) -> Value {
        let mut shown = json!({ "type": self.kind, "status": self.status, "instance": self.instance });
        for (name, text) in [("title", &self.title), ("detail", &self.detail)] {
            if let Some(text) = text {
                shown[name] = text.as_str().into();
            }
        }
        shown
    }
}

/// Whether two URIs name the same type of error: a standard one has more than one home.
pub fn same_type(one: &str, other: &str) -> bool {
    fn name(uri: &str) -> Option<&str> {
        let bases = OTHER_BASES.iter().chain([&BASE]);
        bases.filter_map(|base| uri.strip_prefix(*base)).find(|name| STANDARD.contains(name))
    }
    one == other || name(one).is_some_and(|known| name(other) == Some(known))
}

/// The URI of a standard error type.
pub fn standard(kind: &str) -> String {
    format!("{BASE}{kind}")
}
