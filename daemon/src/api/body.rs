//! Bodies: capped JSON in, JSON out.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use serde::Serialize;
use serde_json::{Map, Value};

use super::problem::Problem;
use super::stream::Stream;
use crate::error::{Error, FieldError};
use crate::event;
use crate::id::TraceId;

/// How long a client may take to send its body.
const BODY_WAIT: Duration = Duration::from_secs(20);

/// What is sent: bytes that are there, or a stream that goes on.
pub enum Body {
    /// All of it; `None` once it is sent.
    Full(Option<Bytes>),
    /// Server-sent events.
    Stream(Box<Stream>),
}

impl Body {
    /// A body of these bytes.
    pub fn full(bytes: impl Into<Bytes>) -> Body {
        Body::Full(Some(bytes.into()))
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::convert::Infallible>>> {
        match &mut *self {
            Body::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Body::Stream(stream) => stream.poll_bytes(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Full(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Body::Stream(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Body::Stream(_) => SizeHint::default(),
        }
    }
}

/// What a handler answers.
pub struct Reply {
    /// HTTP status.
    pub status: StatusCode,
    /// Media type of the body.
    pub content_type: &'static str,
    /// Headers beyond those that every answer has.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// What is sent.
    pub body: Body,
    /// The trace that the request began, when that is not the request's own.
    pub trace: Option<TraceId>,
}

/// An answer of JSON text that is already written.
pub fn raw(status: StatusCode, json: impl Into<Bytes>) -> Reply {
    Reply { status, content_type: "application/json", headers: Vec::new(), body: Body::full(json), trace: None }
}

/// An answer with `value` as JSON.
pub fn reply(status: StatusCode, value: &impl Serialize) -> Result<Reply, Problem> {
    let json = serde_json::to_vec(value).map_err(Error::internal("encoding an answer"))?;
    Ok(raw(status, json))
}

/// 200 with `value` as JSON.
pub fn ok(value: &impl Serialize) -> Result<Reply, Problem> {
    reply(StatusCode::OK, value)
}

/// Reads a whole body of at most `bytes_max` bytes.
pub async fn bytes(headers: &HeaderMap, mut body: Incoming, bytes_max: usize) -> Result<Bytes, Problem> {
    let too_large = || {
        let detail = format!("The body may have at most {bytes_max} bytes.");
        Problem::new((StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"), detail)
    };
    if body.size_hint().exact().is_some_and(|n| n > bytes_max as u64) {
        return Err(too_large());
    }
    if headers.contains_key(hyper::header::CONTENT_ENCODING) {
        let detail = "Send the body as it is, without Content-Encoding.";
        return Err(Problem::new((StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type"), detail));
    }
    let read = async {
        // Most bodies are one frame: no copy then.
        let mut first = Bytes::new();
        let mut whole: Vec<u8> = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else {
                return Err(Error::invalid("body", "could not be read: it was cut off or is broken.").into());
            };
            let Ok(data) = frame.into_data() else { continue };
            if first.len().max(whole.len()) + data.len() > bytes_max {
                return Err(too_large());
            }
            if first.is_empty() && whole.is_empty() {
                first = data;
            } else {
                if whole.is_empty() {
                    whole.extend_from_slice(&std::mem::take(&mut first));
                }
                whole.extend_from_slice(&data);
            }
        }
        Ok(if whole.is_empty() { first } else { whole.into() })
    };
    match tokio::time::timeout(BODY_WAIT, read).await {
        Ok(result) => result,
        Err(_) => {
            let detail = format!("The body did not arrive within {} s.", BODY_WAIT.as_secs());
            Err(Problem::new((StatusCode::REQUEST_TIMEOUT, "request_timeout"), detail))
        }
    }
}

/// The media type of a request without its parameters, in lower case; `None` when there is none.
pub fn media_type(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get(CONTENT_TYPE) else { return Ok(None) };
    let text = value.to_str().map_err(|_| unsupported("(unreadable)"))?;
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    Ok((!essence.is_empty()).then_some(essence))
}

/// 415 for a media type that the route does not take.
pub fn unsupported(given: &str) -> Problem {
    let detail = format!("Content-Type '{given}' is not taken here. Send application/json (with curl: --json).");
    Problem::new((StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type"), detail)
}

/// True for the media types that hold JSON.
pub fn is_json(essence: &str) -> bool {
    essence == "application/json" || essence == "text/json" || essence.ends_with("+json")
}

/// The fields of a JSON object, taken one by one; what is wrong is gathered, what nobody takes is refused by name.
pub struct Fields {
    left: Map<String, Value>,
    known: Vec<&'static str>,
    wrong: Vec<FieldError>,
}

impl Fields {
    /// Reads `bytes` as a JSON object; nothing counts as `{}`.
    pub fn read(headers: &HeaderMap, bytes: &[u8]) -> Result<Fields, Problem> {
        if let Some(essence) = media_type(headers)?
            && !is_json(&essence)
        {
            return Err(unsupported(&essence));
        }
        let left = if bytes.iter().all(u8::is_ascii_whitespace) {
            Map::new()
        } else {
            event::read_json::<Map<String, Value>>(bytes)
                .map_err(|error| Error::invalid("body", format!("must be a JSON object: {error}.")))?
        };
        Ok(Fields { left, known: Vec::new(), wrong: Vec::new() })
    }

    /// An optional text; `null` counts as absent.
    pub fn text(&mut self, name: &'static str) -> Option<String> {
        self.known.push(name);
        match self.left.remove(name) {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Some(text),
            Some(_) => {
                self.wrong.push(FieldError { field: name.to_owned(), reason: "must be a string.".to_owned() });
                None
            }
        }
    }

    /// Any value; `null` counts as absent.
    pub fn value(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        self.left.remove(name).filter(|value| !value.is_null())
    }

    /// A text that must be there; empty once something is wrong.
    pub fn required_text(&mut self, name: &'static str) -> String {
        let wrong_before = self.wrong.len();
        let text = self.text(name).filter(|text| !text.is_empty());
        if text.is_none() && self.wrong.len() == wrong_before {
            self.wrong.push(FieldError { field: name.to_owned(), reason: "is required.".to_owned() });
        }
        text.unwrap_or_default()
    }

    /// Every field that is left, for whoever reads them in his own way.
    pub fn rest(&mut self) -> Map<String, Value> {
        std::mem::take(&mut self.left)
    }

    /// Every field, for routes that look at them elsewhere.
    pub fn into_map(self) -> Map<String, Value> {
        self.left
    }

    /// Refuses what is wrong and what is unknown.
    pub fn done(mut self) -> Result<(), Problem> {
        for name in self.left.keys() {
            self.wrong.push(FieldError { field: name.clone(), reason: unknown(name, &self.known) });
        }
        if self.wrong.is_empty() {
            return Ok(());
        }
        Err(Error::Invalid { code: "invalid_input", fields: self.wrong }.into())
    }
}

/// Why an unknown field is refused, with the known name that is nearest.
pub fn unknown(name: &str, known: &[&str]) -> String {
    let near = known.iter().map(|k| (distance(name, k), *k)).min();
    match near {
        Some((away, near)) if away <= 1 + near.len() / 3 => format!("is no field of this request. Is '{near}' meant?"),
        _ if known.is_empty() => "is no field of this request, which takes none.".to_owned(),
        _ => format!("is no field of this request. Known: {}.", known.join(", ")),
    }
}

/// Edits (insert, remove, replace) between two names.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().collect());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut corner = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let replaced = corner + usize::from(x != y);
            corner = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(corner + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    type Wrong = Vec<(String, String)>;

    fn check(json: &str) -> Result<(Option<String>, String), Wrong> {
        let wrong = |problem: Problem| problem.fields.into_iter().map(|f| (f.field, f.reason)).collect::<Wrong>();
        let mut fields = Fields::read(&HeaderMap::new(), json.as_bytes()).map_err(wrong)?;
        let (reason, name) = (fields.text("reason"), fields.required_text("fingerprint"));
        fields.done().map_err(wrong)?;
        Ok((reason, name))
    }

    #[test]
    fn fields_are_named_when_wrong() {
        assert_eq!(check(r#"{"fingerprint":"a"}"#), Ok((None, "a".to_owned())));
        assert_eq!(check(r#"{"fingerprint":"a","reason":null}"#), Ok((None, "a".to_owned())));
        let names = |json: &str| check(json).unwrap_err().into_iter().map(|(f, _)| f).collect::<Vec<_>>().join(",");
        assert_eq!(names(""), "fingerprint");
        assert_eq!(names(" \n"), "fingerprint");
        assert_eq!(names("[]"), "body");
        assert_eq!(names("{"), "body");
        assert_eq!(names(r#"{"fingerprint":"","reason":1}"#), "reason,fingerprint");
        let wrong = check(r#"{"fingerprint":"a","reasn":"x"}"#).unwrap_err();
        assert_eq!(wrong[0].0, "reasn");
        assert!(wrong[0].1.contains("'reason'"), "{}", wrong[0].1);
    }

    #[test]
    fn distances() {
        assert_eq!((distance("", "abc"), distance("kitten", "sitting"), distance("a", "a")), (3, 3, 0));
    }
}
