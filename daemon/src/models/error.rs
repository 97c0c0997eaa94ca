//! Why a model gave no answer, as far as whoever asked acts differently on it.

use std::fmt;
use std::time::Duration;

use serde_json::Value;

use crate::egress::{EgressError, status_text};
use crate::redact;

/// Longest detail, in characters; what providers say beyond that helps nobody.
const DETAIL_CHARS_MAX: usize = 400;

/// What kind of failure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// No model is configured, and none was found.
    None,
    /// The provider refuses the key, or the account has nothing left.
    Auth,
    /// The provider has too much to do, or was asked too often.
    Overloaded,
    /// It took too long.
    Timeout,
    /// It could not be reached, broke off, or answered what cannot be read.
    Broken,
    /// What it was asked is longer than the model's window.
    TooLong,
    /// The provider does not want to answer that.
    Filtered,
    /// Whoever asked wants no answer any more.
    Cancelled,
    /// There is no such model, or the request is wrong in another way that no repetition cures.
    Invalid,
}

impl ErrorKind {
    /// Its name in answers and logs.
    pub fn name(self) -> &'static str {
        match self {
            ErrorKind::None => "no_model",
            ErrorKind::Auth => "auth",
            ErrorKind::Overloaded => "overloaded",
            ErrorKind::Timeout => "timeout",
            ErrorKind::Broken => "broken",
            ErrorKind::TooLong => "too_long",
            ErrorKind::Filtered => "filtered",
            ErrorKind::Cancelled => "cancelled",
            ErrorKind::Invalid => "invalid",
        }
    }

    /// True when the same model may answer if it is asked again.
    pub fn may_pass(self) -> bool {
        matches!(self, ErrorKind::Overloaded | ErrorKind::Timeout | ErrorKind::Broken)
    }
}

/// Why there is no answer. Holds no key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelError {
    /// See [`ErrorKind`].
    pub kind: ErrorKind,
    /// What happened, in words for people.
    pub detail: String,
    /// How long the provider asks to wait.
    pub retry_after: Option<Duration>,
}

impl ModelError {
    /// An error; `detail` loses secrets, line breaks and what is too much of it.
    pub fn new(kind: ErrorKind, detail: impl AsRef<str>) -> ModelError {
        let clean = redact::text(detail.as_ref());
        let words = clean.chars().map(|c| if c.is_control() { ' ' } else { c });
        let mut detail: String = words.take(DETAIL_CHARS_MAX).collect();
        if clean.chars().nth(DETAIL_CHARS_MAX).is_some() {
            detail.push('…');
        }
        ModelError { kind, detail, retry_after: None }
    }

    /// Nobody waits for the answer any more.
    pub(super) fn cancelled() -> ModelError {
        ModelError::new(ErrorKind::Cancelled, "It was stopped.")
    }

    /// A connection that failed.
    pub(super) fn of_egress(error: &EgressError) -> ModelError {
        let kind = match error {
            EgressError::Refused(_) => ErrorKind::Invalid,
            EgressError::NotSent(_) | EgressError::Unknown(_) | EgressError::BadAnswer(_) | EgressError::TooLong(_) => {
                ErrorKind::Broken
            }
        };
        ModelError::new(kind, error.to_string())
    }

    /// An answer other than 2xx, with what its body says.
    pub(super) fn of_status(status: u16, body: &[u8], retry_after: Option<Duration>) -> ModelError {
        let said = match serde_json::from_slice::<Value>(body) {
            Ok(value) => Said::of(&value),
            Err(_) => Said { text: String::from_utf8_lossy(body).trim().to_owned(), code: String::new() },
        };
        let kind = said.kind().unwrap_or(match status {
            300..=399 | 404 | 405 | 501 => ErrorKind::Invalid,
            401..=403 => ErrorKind::Auth,
            408 => ErrorKind::Timeout,
            413 => ErrorKind::TooLong,
            429 | 503 | 529 => ErrorKind::Overloaded,
            400..=499 => ErrorKind::Invalid,
            _ => ErrorKind::Broken,
        });
        let hint =
            if (300..400).contains(&status) { " Redirects are not followed: give the address itself." } else { "" };
        let detail = match said.text.as_str() {
            "" => format!("It answered {}.{hint}", status_text(status)),
            text => format!("It answered {}: {text}{hint}", status_text(status)),
        };
        ModelError { retry_after, ..ModelError::new(kind, detail) }
    }

    /// An error that came instead of more of an answer.
    pub(super) fn of_stream(error: &Value) -> ModelError {
        let said = Said::of(error);
        let kind = said.kind().unwrap_or(ErrorKind::Broken);
        ModelError::new(kind, format!("It broke off: {}", said.text))
    }
}

impl fmt::Display for ModelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl std::error::Error for ModelError {}

/// What a provider says of an error.
struct Said {
    text: String,
    /// Its names for the error, in lower case.
    code: String,
}

impl Said {
    /// Reads the forms that are around: `{error: {message, type, code, status}}`, `{error: "…"}`, the same in a list, and
    /// `{message}` or `{detail}`.
    fn of(value: &Value) -> Said {
        let value = value.get(0).unwrap_or(value);
        let error = value.get("error").filter(|error| !error.is_null()).unwrap_or(value);
        let text = match error {
            Value::String(text) => text.clone(),
            other => ["message", "detail", "msg"].iter().find_map(|key| other.get(key)).map_or_else(
                || other.to_string(),
                |text| text.as_str().map_or_else(|| text.to_string(), str::to_owned),
            ),
        };
        let codes = ["code", "type", "status"].iter().filter_map(|key| error.get(key));
        let codes: Vec<String> = codes.map(|code| code.to_string().trim_matches('"').to_lowercase()).collect();
        Said { text, code: codes.join(" ") }
    }

    /// What its words mean, where they are clearer than a status.
    fn kind(&self) -> Option<ErrorKind> {
        let text = self.text.to_lowercase();
        let code = |names: &[&str]| names.iter().any(|name| self.code.contains(name));
        let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
        if code(&["context_length_exceeded", "exceed_context_size"])
            || says(&["context length", "context size", "prompt is too long", "input token count", "context window"])
        {
            return Some(ErrorKind::TooLong);
        }
        if code(&["content_filter", "content_policy"]) {
            return Some(ErrorKind::Filtered);
        }
        if code(&["insufficient_quota", "invalid_api_key", "authentication_error", "permission_error", "billing_error"])
            || says(&["api key not valid", "invalid api key"])
        {
            return Some(ErrorKind::Auth);
        }
        if code(&["overloaded", "rate_limit", "resource_exhausted", "unavailable", "429", "503", "529"]) {
            return Some(ErrorKind::Overloaded);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_providers_say_is_told_apart() {
        for (status, body, wanted, text) in [
            (401, "{\"error\":{\"message\":\"bad key\"}}", ErrorKind::Auth, "bad key"),
            (429, "{\"error\":{\"message\":\"slow\",\"type\":\"rate_limit_error\"}}", ErrorKind::Overloaded, "slow"),
            (429, "{\"error\":{\"message\":\"pay\",\"code\":\"insufficient_quota\"}}", ErrorKind::Auth, "pay"),
            (400, "{\"error\":{\"message\":\"x\",\"code\":\"context_length_exceeded\"}}", ErrorKind::TooLong, "x"),
            (400, "{\"error\":{\"message\":\"prompt is too long: 9\"}}", ErrorKind::TooLong, "long"),
            (400, "[{\"error\":{\"code\":400,\"message\":\"API key not valid.\"}}]", ErrorKind::Auth, "valid"),
            (400, "{\"error\":\"unknown field\"}", ErrorKind::Invalid, "unknown field"),
            (404, "{\"error\":\"model 'x' not found\"}", ErrorKind::Invalid, "not found"),
            (422, "{\"detail\":[{\"loc\":1}]}", ErrorKind::Invalid, "loc"),
            (500, "oh\nno", ErrorKind::Broken, "oh no"),
            (503, "", ErrorKind::Overloaded, "503"),
            (
                529,
                "{\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"O\"}}",
                ErrorKind::Overloaded,
                "O",
            ),
            (307, "", ErrorKind::Invalid, "Redirects"),
        ] {
            let error = ModelError::of_status(status, body.as_bytes(), None);
            assert_eq!(error.kind, wanted, "{status} {body}");
            assert!(error.detail.contains(text), "{error}");
        }
        redact::learn("canary-of-a-provider");
        let long = format!("canary-of-a-provider {}", "x".repeat(1000));
        let detail = ModelError::new(ErrorKind::Broken, long).detail;
        assert!(!detail.contains("canary") && detail.chars().count() == DETAIL_CHARS_MAX + 1, "{detail}");
    }
}
