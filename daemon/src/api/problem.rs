//! What goes wrong as RFC 9457 problem details: the one place where errors become statuses.

use std::borrow::Cow;

use hyper::header::{ALLOW, CONNECTION, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Method, StatusCode};
use serde::Serialize;
use serde_json::{Value, json};

use super::body::{Body, Reply};
use crate::clock::{Clock, rfc3339};
use crate::error::{Error, FieldError};
use crate::id::TraceId;
use crate::redact;

/// An answer that is no success. Made from an [`Error`], or for what only HTTP knows (401, 405, 413 …).
#[derive(Debug)]
pub struct Problem {
    /// HTTP status, 400 to 599.
    pub status: StatusCode,
    /// Stable code; each has a section in `schemas/errors.md`.
    pub code: &'static str,
    /// What happened and what to do, for people.
    pub detail: String,
    /// Broken fields, if that is what is wrong.
    pub fields: Vec<FieldError>,
    headers: Vec<(HeaderName, HeaderValue)>,
    /// What failed inside, outermost first; for the log only.
    chain: Option<String>,
}

impl Problem {
    /// How to show a token, for whoever showed nothing.
    pub const HOW_TO_SHOW: &str = "Send a token as 'Authorization: Bearer <token>' or 'x-aman-token: <token>'. The owner's is in \
                                   the file 'token' of the data folder unless http.token is set.";

    /// A problem without further headers.
    pub fn new((status, code): (StatusCode, &'static str), detail: impl Into<String>) -> Problem {
        Problem { status, code, detail: detail.into(), fields: Vec::new(), headers: Vec::new(), chain: None }
    }

    /// 401, with the scheme that would work.
    pub fn unauthorized(detail: &str) -> Problem {
        let mut problem = Problem::new((StatusCode::UNAUTHORIZED, "unauthorized"), detail);
        problem.headers.push((WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"aman\"")));
        problem
    }

    /// 405, with the methods that would work.
    pub fn method_not_allowed(path: &str, allow: &str) -> Problem {
        let detail = format!("{path} answers {allow} only. Use one of these methods.");
        let mut problem = Problem::new((StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"), detail);
        problem.headers.extend(HeaderValue::from_str(allow).ok().map(|value| (ALLOW, value)));
        problem
    }

    /// 500: the client learns nothing but where to look; `chain` goes to the log with the request's trace.
    pub fn internal(chain: String) -> Problem {
        let detail = "The daemon failed. Its log says more, under this trace_id: `aman logs`.";
        let problem = Problem::new((StatusCode::INTERNAL_SERVER_ERROR, "internal"), detail);
        Problem { chain: Some(chain), ..problem }
    }

    /// Adds `Retry-After`, rounded up to whole seconds.
    #[must_use]
    pub fn retry_after_ms(mut self, after_ms: u64) -> Problem {
        self.headers.push((RETRY_AFTER, HeaderValue::from(after_ms.div_ceil(1000).max(1))));
        self
    }

    /// Ends the connection after the answer, for requests whose end is not certain.
    #[must_use]
    pub fn closing(mut self) -> Problem {
        self.headers.push((CONNECTION, HeaderValue::from_static("close")));
        self
    }

    /// Says in the log what failed inside, if that is what happened.
    pub fn log(&self, path: &str, trace: TraceId) {
        if let Some(chain) = &self.chain {
            tracing::error!(trace_id = %trace, path, chain, "A request failed inside.");
        }
    }

    /// The headers that HTTP asks for.
    pub fn into_headers(self) -> Vec<(HeaderName, HeaderValue)> {
        self.headers
    }

    /// The answer that is sent.
    pub fn reply(self, path: &str, trace: TraceId) -> Reply {
        self.log(path, trace);
        Reply {
            status: self.status,
            content_type: "application/problem+json",
            body: Body::full(self.json(path, trace).to_string()),
            headers: self.headers,
            trace: None,
        }
    }

    /// What a plugin's own envelope is made of: the problem, what its headers say, the method if one could be read, and
    /// the time.
    pub fn seen(&self, method: Option<&Method>, path: &str, trace: TraceId) -> Value {
        let header = |wanted: HeaderName| {
            let found = self.headers.iter().find(|(name, _)| *name == wanted);
            found.and_then(|(_, value)| value.to_str().ok())
        };
        let mut seen = self.json(path, trace);
        seen["allow"] = header(ALLOW).into();
        seen["retry_after_s"] = header(RETRY_AFTER).and_then(|text| text.parse::<u64>().ok()).into();
        seen["method"] = method.map(Method::as_str).into();
        seen["time"] = rfc3339(Clock::System.now_ms()).into();
        seen
    }

    fn json(&self, path: &str, trace: TraceId) -> Value {
        #[derive(Serialize)]
        struct Field<'a> {
            field: Cow<'a, str>,
            reason: Cow<'a, str>,
        }
        let fields = self.fields.iter();
        let errors: Vec<Field<'_>> =
            fields.map(|f| Field { field: redact::text(&f.field), reason: redact::text(&f.reason) }).collect();
        let detail = redact::text(&self.detail);
        json!({
            "type": format!("urn:aman:error:{}", self.code),
            "title": self.status.canonical_reason().unwrap_or("Error"),
            "status": self.status.as_u16(),
            "detail": detail,
            "instance": redact::text(path),
            "code": self.code,
            "message": detail,
            "trace_id": trace.to_string(),
            "errors": errors,
        })
    }
}

/// Where those of a kind that are there can be seen, for whoever named one that is not.
fn listed(kind: &str) -> &'static str {
    match kind {
        "event" | "trace" => " GET /events/recent lists the newest (`aman event recent`).",
        "dead letter" => " GET /dlq lists them (`aman dlq list`).",
        "group of dead letters" => " GET /dlq/groups lists them (`aman dlq groups`).",
        "skill" => " GET /skills lists them (`aman skill list`).",
        "source" => " GET /event-sources lists them (`aman source list`).",
        "hook" => " A hook is a source of kind webhook; GET /event-sources lists them (`aman source list`).",
        "sink" => " GET /sinks lists them (`aman sink list`).",
        "failed sending" => " GET /sink/{id}/failures lists them (`aman sink failures`).",
        "cron job" => " GET /cron lists them (`aman cron list`).",
        "workflow" => " GET /workflows lists them (`aman workflow list`).",
        "workflow instance" => " GET /workflow-instances lists them (`aman workflow instances`).",
        "plugin" => " GET /plugins lists them (`aman plugin list`).",
        "agent" => " GET /agents lists them (`aman agent list`).",
        "version" => " GET /agent/{id}/versions or /plugins lists them (`aman agent versions`, `aman plugin show`).",
        "version of the soul" => " GET /soul/versions lists them (`aman soul versions`).",
        "memory" => " GET /memory lists them (`aman memory list`).",
        "tool" => " GET /tools lists them (`aman tool list`).",
        "approval" => " GET /tool-auth/pending lists those that wait (`aman approve`).",
        "approval rule" => " GET /tool-auth/rules lists them (`aman approve rules`).",
        "MCP server" => " GET /mcp-servers lists them (`aman mcp list`).",
        "page" => " GET /ui/pages lists them.",
        "notification" => " GET /notifications lists them (`aman notification list`).",
        "session" => " GET /chat/sessions lists yours (`aman session list`).",
        "message" => " GET /chat/session/{id}/history lists them.",
        "token" => " GET /auth/token lists them (`aman token list`).",
        _ => "",
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Problem {
        let status_and_code = match &error {
            Error::NotFound { .. } => (StatusCode::NOT_FOUND, "not_found"),
            Error::Invalid { code, .. } => (StatusCode::BAD_REQUEST, *code),
            Error::Forbidden { code, .. } => (StatusCode::FORBIDDEN, *code),
            Error::Conflict { code, .. } => (StatusCode::CONFLICT, *code),
            Error::Mismatch { code, .. } => (StatusCode::UNPROCESSABLE_ENTITY, *code),
            Error::Busy { code, .. } => (StatusCode::SERVICE_UNAVAILABLE, *code),
            Error::Internal { .. } => return Problem::internal(error.chain().join(": ")),
        };
        let mut problem = Problem::new(status_and_code, error.to_string());
        if let Error::NotFound { kind, .. } = &error {
            problem.detail.push_str(listed(kind));
        }
        match error {
            Error::Invalid { fields, .. } => Problem { fields, ..problem },
            Error::Busy { retry_after_ms, .. } => problem.retry_after_ms(retry_after_ms),
            Error::NotFound { .. }
            | Error::Forbidden { .. }
            | Error::Conflict { .. }
            | Error::Mismatch { .. }
            | Error::Internal { .. } => problem,
        }
    }
}
