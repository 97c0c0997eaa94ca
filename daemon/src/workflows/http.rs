//! `call: http`: one request through the egress guard, and what is made of its answer.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value, json};

use super::Inner;
use super::actions::Job;
use crate::egress::{Ask, EgressError, Heard, Method, Url, status_text};
use crate::event::is_json;
use crate::telemetry::traces;
use crate::workflow::{Call, Fault, Kind, Output};

/// Bytes of an answer.
const BYTES_MAX: usize = 4 << 20;
/// How long a call may take when its task says nothing shorter.
const TIME_MAX: Duration = Duration::from_secs(120);
const REDIRECTS_MAX: u8 = 5;

/// A request as a task wants it.
pub(super) struct Wanted {
    /// The method, in upper case.
    pub method: String,
    /// Where.
    pub url: String,
    /// Headers.
    pub headers: Vec<(String, String)>,
    /// What is sent.
    pub body: Bytes,
    /// Whether redirections are followed, and are no errors.
    pub redirect: bool,
    /// What of the answer is wanted.
    pub output: Output,
}

/// Does the call of a task.
pub(super) async fn call(inner: &Arc<Inner>, job: &Job) -> Result<Value, Fault> {
    let Kind::Call(Call::Http(http)) = &job.definition.tasks[job.task].kind else {
        return Err(Fault::runtime("is no HTTP call"));
    };
    let args = &job.args["http"];
    let method = args["method"].as_str().ok_or_else(|| Fault::expression("with.method is no text"))?;
    let mut url = args["uri"].as_str().unwrap_or_default().to_owned();
    for (name, value) in fields(&args["query"], "with.query")? {
        let pair = |value: &Value| format!("{}={}", encoded(&name), encoded(&text(value)));
        let pairs: Vec<String> = match &value {
            Value::Array(all) => all.iter().map(pair).collect(),
            Value::Null => continue,
            one => vec![pair(one)],
        };
        url.push(if url.contains('?') { '&' } else { '?' });
        url.push_str(&pairs.join("&"));
    }
    let mut headers: Vec<(String, String)> =
        fields(&args["headers"], "with.headers")?.into_iter().map(|(name, value)| (name, text(&value))).collect();
    authorize(&mut headers, &args["authorization"]);
    let body = body_of(&args["body"], &mut headers);
    let wanted = Wanted {
        method: method.to_ascii_uppercase(),
        url,
        headers,
        body,
        redirect: http.redirect,
        output: http.output,
    };
    send(inner, wanted, &job.key).await
}

/// Adds the credentials.
pub(super) fn authorize(headers: &mut Vec<(String, String)>, authorization: &Value) {
    if let (Some(scheme), Some(parameter)) = (authorization["scheme"].as_str(), authorization["parameter"].as_str()) {
        headers.retain(|(name, _)| !name.eq_ignore_ascii_case("authorization"));
        headers.push(("authorization".to_owned(), format!("{scheme} {parameter}")));
    }
}

/// What is sent: a text as it is when the headers say that it is no JSON, anything else as JSON.
pub(super) fn body_of(body: &Value, headers: &mut Vec<(String, String)>) -> Bytes {
    if body.is_null() {
        return Bytes::new();
    }
    let kind = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-type")).map(|(_, kind)| kind.clone());
    match (body, kind) {
        (Value::String(text), Some(kind)) if !is_json(&essence(&kind)) => Bytes::from(text.clone()),
        (body, kind) => {
            if kind.is_none() {
                headers.push(("content-type".to_owned(), "application/json".to_owned()));
            }
            Bytes::from(body.to_string())
        }
    }
}

/// Sends a request and reads its answer as the DSL says.
pub(super) async fn send(inner: &Arc<Inner>, wanted: Wanted, key: &str) -> Result<Value, Fault> {
    let Wanted { method, url, mut headers, body, redirect, output } = wanted;
    let parsed = Url::parse(&url).map_err(|why| Fault::configuration(format!("the address {why}")))?;
    let verb: Method =
        method.parse().map_err(|_| Fault::configuration(format!("'{}' is no HTTP method", method.escape_debug())))?;
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("idempotency-key")) {
        headers.push(("idempotency-key".to_owned(), key.to_owned()));
    }
    let shown = request(&method, &url, &headers);
    let ask = Ask {
        method: verb,
        url: parsed,
        headers,
        body,
        bytes_max: BYTES_MAX,
        time_max: TIME_MAX,
        redirects_max: if redirect { REDIRECTS_MAX } else { 0 },
    };
    // Whom a definition calls is its author's choice.
    let heard = traces::telling(inner.egress.ask(ask)).await.map_err(fault)?;
    let good = if redirect { 200..400 } else { 200..300 };
    if !good.contains(&heard.status) {
        let detail = String::from_utf8_lossy(&heard.body[..heard.body.len().min(500)]).into_owned();
        let title = status_text(heard.status);
        return Err(Fault::new("communication", i64::from(heard.status), &title, detail));
    }
    Ok(match output {
        Output::Raw => Value::String(BASE64.encode(&heard.body)),
        Output::Content => content(&heard)?,
        Output::Response => {
            let headers: Map<String, Value> =
                heard.headers.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
            json!({
                "request": shown,
                "statusCode": heard.status,
                "headers": headers,
                "content": content(&heard)?,
            })
        }
    })
}

/// The request as answers show it, without credentials.
fn request(method: &str, url: &str, headers: &[(String, String)]) -> Value {
    let open =
        |name: &str| !["authorization", "cookie", "proxy-authorization"].contains(&name.to_ascii_lowercase().as_str());
    let headers: Map<String, Value> = headers
        .iter()
        .filter(|(name, _)| open(name))
        .map(|(name, value)| (name.clone(), value.as_str().into()))
        .collect();
    json!({ "method": method.to_ascii_lowercase(), "uri": url, "headers": headers })
}

/// A media type without its parameters, in lower case.
fn essence(kind: &str) -> String {
    kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Whether an answer of this media type is text; without a type it may be.
fn is_text(essence: &str) -> bool {
    essence.is_empty() || essence.starts_with("text/") || essence == "application/xml" || essence.ends_with("+xml")
}

/// JSON as JSON, text as text, anything else as base64.
fn content(heard: &Heard) -> Result<Value, Fault> {
    let essence = essence(heard.header("content-type").unwrap_or_default());
    if heard.body.is_empty() {
        return Ok(Value::Null);
    }
    if is_json(&essence) {
        return crate::event::read_json(&heard.body).map_err(|error| {
            Fault::new("communication", 502, "Invalid answer", format!("it says that it is JSON and is not: {error}"))
        });
    }
    match std::str::from_utf8(&heard.body) {
        Ok(text) if is_text(&essence) => Ok(text.into()),
        _ => Ok(Value::String(BASE64.encode(&heard.body))),
    }
}

/// What went wrong on the way.
pub(super) fn fault(error: EgressError) -> Fault {
    match error {
        EgressError::Refused(why) => Fault::authorization(why),
        EgressError::NotSent(why) => Fault::new("communication", 503, "Not reachable", why),
        EgressError::Unknown(why) => Fault::new("communication", 504, "No answer", why).unknown(),
        EgressError::BadAnswer(why) => Fault::new("communication", 502, "Invalid answer", why).unknown(),
        EgressError::TooLong(why) => Fault::new("communication", 502, "Answer too long", why),
    }
}

fn fields(value: &Value, what: &str) -> Result<Vec<(String, Value)>, Fault> {
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Object(fields) => Ok(fields.iter().map(|(name, value)| (name.clone(), value.clone())).collect()),
        _ => Err(Fault::expression(format!("{what} is no object"))),
    }
}

/// A value as it stands in a header or an address.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// A text as it stands in a query or a path.
pub(super) fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string().replace("%2E", ".").replace("%2D", "-").replace("%5F", "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: only what says that it is JSON is read as JSON.
    #[test]
    fn answers_are_what_their_media_type_says() {
        let heard = |kind: &str, body: &'static str| Heard {
            status: 200,
            headers: vec![("content-type".to_owned(), kind.to_owned())],
            body: Bytes::from(body),
        };
        for (kind, body, wanted) in [
            ("application/json", "[1]", json!([1])),
            ("Application/JSON; charset=utf-8", "[1]", json!([1])),
            ("application/problem+json", "{\"a\":1}", json!({ "a": 1 })),
            ("application/x-notjson", "[1]", json!("WzFd")),
            ("application/ndjson", "[1]\n[2]", json!("WzFdClsyXQ==")),
            ("text/plain", "[1]", json!("[1]")),
            ("application/atom+xml", "<a/>", json!("<a/>")),
        ] {
            assert_eq!(content(&heard(kind, body)).expect("content"), wanted, "{kind}");
        }
        let body = |kind: &str| body_of(&json!("x"), &mut vec![("Content-Type".to_owned(), kind.to_owned())]);
        assert_eq!(body("application/jsonish"), Bytes::from("x"));
        assert_eq!(body("application/vnd.a+json; v=1"), Bytes::from("\"x\""));
    }
}
