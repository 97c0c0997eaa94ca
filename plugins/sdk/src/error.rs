//! Making errors, and making them of others.

use crate::{Error, InvalidField, Retry};

impl Error {
    /// A field breaks a rule; the same call cannot succeed. The reason is for the person who reads it.
    pub fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Invalid(InvalidField { field: field.into(), reason: reason.into() })
    }

    /// The named thing does not exist.
    pub fn not_found(what: impl Into<String>) -> Error {
        Error::NotFound(what.into())
    }

    /// It does not work now and may work later; when is left to the host.
    pub fn unavailable(reason: impl Into<String>) -> Error {
        Error::Unavailable(Retry { reason: reason.into(), after_ms: None })
    }

    /// A fault of the plugin.
    pub fn internal(reason: impl Into<String>) -> Error {
        Error::Internal(reason.into())
    }

    /// Whether the same call may succeed later.
    pub fn may_pass(&self) -> bool {
        matches!(self, Error::Conflict(_) | Error::Limit(_) | Error::Unavailable(_) | Error::Timeout(_))
    }

    /// In words, without its kind.
    pub fn reason(&self) -> String {
        match self {
            Error::Denied(reason)
            | Error::NotFound(reason)
            | Error::Conflict(reason)
            | Error::Limit(reason)
            | Error::Timeout(reason)
            | Error::Internal(reason) => reason.clone(),
            Error::Invalid(wrong) => format!("{}: {}", wrong.field, wrong.reason),
            Error::Unavailable(retry) => retry.reason.clone(),
        }
    }
}

/// JSON that was not as it should be. For what a caller sent prefer [`crate::Request::body_json`], which names the field.
impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Error {
        Error::invalid("json", format!("{error}."))
    }
}
