//! `[errors]` of `plugin.toml`: how a plugin spells errors on a listener of its own, as a jq expression over the problem. The
//! daemon evaluates it, so it answers for a plugin that is dead, and for requests that never reach one.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use crate::expr::{Expr, Limits};

/// What an evaluation may use. Errors are answered to anybody, so it is little.
const LIMITS: Limits = Limits {
    time: Duration::from_millis(250),
    input_bytes: 256 << 10,
    outputs: 1,
    output_bytes: 64 << 10,
    memory: 8 << 20,
};
/// What an expression is tried with before anybody relies on it: status, code, `Allow` and seconds of `Retry-After`.
const SAMPLES: [(u16, &str, Option<&str>, Option<u64>); 20] = [
    (400, "malformed_request", None, None),
    (400, "invalid_input", None, None),
    (401, "unauthorized", None, None),
    (403, "insufficient_scope", None, None),
    (404, "route_not_found", None, None),
    (405, "method_not_allowed", Some("GET, HEAD"), None),
    (408, "request_timeout", None, None),
    (409, "invalid_state", None, None),
    (413, "body_too_large", None, None),
    (415, "unsupported_media_type", None, None),
    (421, "host_not_allowed", None, None),
    (429, "rate_limited", None, Some(1)),
    (431, "headers_too_large", None, None),
    (500, "internal", None, None),
    (501, "unsupported_coding", None, None),
    (502, "plugin_trap", None, None),
    (503, "overloaded", None, Some(2)),
    (503, "plugin_unavailable", None, Some(5)),
    (504, "plugin_timeout", None, None),
    (504, "timeout", None, None),
];

/// How a plugin spells errors.
pub struct Envelope {
    expr: Expr,
    /// That it failed was told.
    told: AtomicBool,
}

/// An error as the plugin spells it.
#[derive(Debug, PartialEq, Eq)]
pub struct Spelled {
    /// 400 to 599.
    pub status: u16,
    /// What the plugin adds; nothing of it is checked.
    pub headers: Vec<(String, String)>,
    /// The media type, unless a header says otherwise.
    pub content_type: &'static str,
    /// The body.
    pub body: String,
}

impl fmt::Debug for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Envelope").field(&self.expr.source()).finish()
    }
}

impl Serialize for Envelope {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        json!({ "envelope": self.expr.source() }).serialize(to)
    }
}

impl Envelope {
    /// Compiles the expression, and tries it with every kind of error that there is; the error is a sentence.
    pub fn compile(text: &str) -> Result<Envelope, String> {
        let expr = Expr::compile(text).map_err(|error| error.to_string())?;
        let envelope = Envelope { expr, told: AtomicBool::new(false) };
        for (status, code, allow, retry_after_s) in SAMPLES {
            let is_read = code != "malformed_request" && code != "headers_too_large";
            let errors = if code == "invalid_input" { json!([{ "field": "a", "reason": "b" }]) } else { json!([]) };
            let sample = json!({
                "type": format!("urn:aman:error:{code}"), "title": "Error", "status": status, "detail": "What happened.",
                "instance": if is_read { "/a" } else { "" }, "code": code, "message": "What happened.",
                "trace_id": "0af7651916cd43dd8448eb211c80319c", "errors": errors, "allow": allow,
                "retry_after_s": retry_after_s, "method": is_read.then_some("GET"), "time": "2026-01-02T03:04:05.678Z",
            });
            envelope.spell(&sample).map_err(|why| format!("fails for a {status} {code}: {why}"))?;
        }
        Ok(envelope)
    }

    /// What `problem` is spelled as; blocks for a short while.
    pub fn spell(&self, problem: &Value) -> Result<Spelled, String> {
        let outputs = self.expr.run_value(problem, &LIMITS).map_err(|error| format!("{error}."))?;
        let Some(Value::Object(mut given)) = outputs.into_iter().next() else {
            return Err(
                "it must give one object {status, headers, body}; status and headers may be missing.".to_owned()
            );
        };
        let status = match given.remove("status") {
            None => problem["status"].as_u64(),
            Some(status) => status.as_u64(),
        };
        let status = status.and_then(|status| u16::try_from(status).ok()).filter(|status| (400..600).contains(status));
        let status = status.ok_or("its status must be a whole number from 400 to 599.")?;
        let headers = match given.remove("headers") {
            None => Vec::new(),
            Some(Value::Object(headers)) => texts(headers)?,
            Some(_) => return Err("its headers must be an object of texts.".to_owned()),
        };
        let body = given.remove("body").unwrap_or_default();
        if let Some(other) = given.keys().next() {
            return Err(format!("it gives '{other}', which is none of status, headers and body."));
        }
        let (content_type, body) = match body {
            Value::Null => ("text/plain; charset=utf-8", String::new()),
            Value::String(text) => ("text/plain; charset=utf-8", text),
            json => ("application/json", json.to_string()),
        };
        Ok(Spelled { status, headers, content_type, body })
    }

    /// Says in the log, once, that it failed.
    pub fn tell(&self, plugin: &str, why: &str) {
        if !self.told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                plugin,
                why,
                "A plugin's [errors] envelope fails; such errors are answered as the daemon's own."
            );
        }
    }
}

fn texts(headers: Map<String, Value>) -> Result<Vec<(String, String)>, String> {
    let text = |(name, value): (String, Value)| match value {
        Value::String(text) => Ok((name.to_ascii_lowercase(), text)),
        _ => Err(format!("its header '{name}' must be a text.")),
    };
    headers.into_iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_answer_is_refused_before_anybody_relies_on_it() {
        for (text, said) in [
            (".detail", "one object"),
            ("{body: 1}, {body: 2}", "more than 1"),
            ("empty", "one object"),
            ("{status: 200}", "400 to 599"),
            ("{status: \"404\"}", "400 to 599"),
            ("{headers: [1]}", "object of texts"),
            ("{headers: {a: 1}}", "must be a text"),
            ("{error: .detail}", "'error'"),
            ("{body: (.allow | ascii_downcase)}", "400 malformed_request"),
            ("{body: [range(1e9)]}", "memory"),
            ("{body", "line 1"),
            ("{body: env}", "env"),
        ] {
            let error = Envelope::compile(text).expect_err(text);
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn problems_are_spelled() {
        let spelled = |text: &str| {
            let envelope = Envelope::compile(text).expect(text);
            let spelled = envelope.spell(&json!({ "status": 404, "detail": "gone" })).expect(text);
            (spelled.status, spelled.content_type, spelled.body)
        };
        let json = "application/json";
        assert_eq!(spelled("{body: {error: .detail}}"), (404, json, "{\"error\":\"gone\"}".to_owned()));
        let text = "{status: 422, headers: {\"X-A\": \"b\"}, body: .detail}";
        assert_eq!(spelled(text), (422, "text/plain; charset=utf-8", "gone".to_owned()));
        assert_eq!(spelled("{}").2, "");
    }
}
