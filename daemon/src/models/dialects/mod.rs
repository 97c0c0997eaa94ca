//! The words in which APIs are asked, and in which they answer. Pure.

mod anthropic;
mod gemini;
mod ollama;
mod openai;

use serde_json::{Map, Value};

use super::draft::Draft;
use super::error::{ErrorKind, ModelError};
use super::{Image, Message, Request};
use crate::config::models::Dialect;
use crate::egress::Heard;
use crate::sse::{Lines, Parser};

/// Largest piece of an answer that comes at once, in bytes.
const FRAME_BYTES_MAX: usize = 4 << 20;
/// Tokens that one answer can count; a provider that says more is not believed.
const COUNT_MAX: u64 = 1 << 32;

/// What of a request an API does not take; found out by asking.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quirks {
    /// It knows no `stream_options`.
    no_stream_options: bool,
    /// It wants `max_completion_tokens` in place of `max_tokens`.
    completion_tokens: bool,
    /// It takes no `temperature`.
    no_temperature: bool,
}

impl Quirks {
    /// What a refusal teaches besides; none when it teaches nothing.
    pub fn learn(self, status: u16, body: &[u8]) -> Option<Quirks> {
        if status != 400 && status != 422 {
            return None;
        }
        let text = String::from_utf8_lossy(body);
        let more = Quirks {
            no_stream_options: self.no_stream_options || text.contains("stream_options"),
            completion_tokens: self.completion_tokens || text.contains("max_completion_tokens"),
            no_temperature: self.no_temperature
                || (text.contains("temperature") && text.to_lowercase().contains("support")),
        };
        (more != self).then_some(more)
    }
}

/// The path, below the provider's address, at which `model` is asked for a stream.
pub fn path(dialect: Dialect, model: &str) -> String {
    match dialect {
        Dialect::OpenAi => "/chat/completions".to_owned(),
        Dialect::Anthropic => "/messages".to_owned(),
        Dialect::Gemini => format!("/models/{model}:streamGenerateContent?alt=sse"),
        Dialect::Ollama => "/api/chat".to_owned(),
    }
}

/// The path, below the provider's address, that lists models and costs nothing.
pub fn listing(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::OpenAi | Dialect::Anthropic | Dialect::Gemini => "/models",
        Dialect::Ollama => "/api/tags",
    }
}

/// The headers that let in whoever has `key`, and those that the API cannot do without.
pub fn headers(dialect: Dialect, key: Option<&str>) -> Vec<(String, String)> {
    let header = |name: &str, value: String| (name.to_owned(), value);
    let entry = key.map(|key| match dialect {
        Dialect::OpenAi | Dialect::Ollama => header("authorization", format!("Bearer {key}")),
        Dialect::Anthropic => header("x-api-key", key.to_owned()),
        Dialect::Gemini => header("x-goog-api-key", key.to_owned()),
    });
    let version = (dialect == Dialect::Anthropic).then(|| header("anthropic-version", anthropic::VERSION.to_owned()));
    entry.into_iter().chain(version).collect()
}

/// What is posted there. `window`: how much the model shall look at, where that is told.
pub fn body(dialect: Dialect, model: &str, request: &Request, quirks: Quirks, window: Option<usize>) -> Value {
    match dialect {
        Dialect::OpenAi => openai::body(model, request, quirks),
        Dialect::Anthropic => anthropic::body(model, request),
        Dialect::Gemini => gemini::body(model, request),
        Dialect::Ollama => ollama::body(model, request, window),
    }
}

/// Takes one document of an answer into the draft.
pub fn read(dialect: Dialect, document: &str, draft: &mut Draft) -> Result<(), ModelError> {
    if document.trim() == "[DONE]" {
        draft.end();
        return Ok(());
    }
    let unread = |_| ModelError::new(ErrorKind::Broken, format!("It sent what is no JSON: {document}"));
    let value: Value = serde_json::from_str(document).map_err(unread)?;
    match dialect {
        Dialect::OpenAi => openai::read(&value, draft),
        Dialect::Anthropic => anthropic::read(&value, draft),
        Dialect::Gemini => gemini::read(&value, draft),
        Dialect::Ollama => ollama::read(&value, draft),
    }?;
    draft.check()
}

/// Cuts an answer into JSON documents, wherever its bytes were cut.
pub enum Frames {
    /// One an event.
    Events(Box<Parser>),
    /// One a line.
    Lines(Lines),
    /// All of it is one.
    Whole(Vec<u8>),
}

impl Frames {
    /// As the head of the answer says.
    pub fn of(head: &Heard) -> Frames {
        let kind = head.header("content-type").unwrap_or_default();
        if kind.starts_with("application/x-ndjson") {
            Frames::Lines(Lines::new(FRAME_BYTES_MAX))
        } else if kind.starts_with("application/json") {
            Frames::Whole(Vec::new())
        } else {
            Frames::Events(Box::new(Parser::new(FRAME_BYTES_MAX)))
        }
    }

    /// Takes the next bytes and gives the documents that they complete.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Vec<String>, ModelError> {
        let mut documents = Vec::new();
        let overlong = match self {
            Frames::Events(parser) => {
                documents.extend(parser.feed(bytes).into_iter().map(|frame| frame.data));
                parser.is_overlong()
            }
            Frames::Lines(lines) => {
                lines.feed(bytes, |line| documents.extend(document(line)));
                lines.is_overlong()
            }
            Frames::Whole(all) => {
                all.extend_from_slice(bytes);
                all.len() > FRAME_BYTES_MAX
            }
        };
        if overlong {
            return Err(ModelError::new(ErrorKind::Broken, "It sent more at once than can be taken."));
        }
        Ok(documents)
    }

    /// The last document, which nothing ended but the end of the answer.
    pub fn rest(self) -> Option<String> {
        match self {
            Frames::Events(parser) => parser.rest().map(|frame| frame.data),
            Frames::Lines(lines) => document(lines.rest()),
            Frames::Whole(all) => document(&all),
        }
    }
}

fn document(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    (!text.trim().is_empty()).then(|| text.into_owned())
}

/// A text of an object; none when it is missing, null or empty.
fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key)?.as_str().filter(|text| !text.is_empty())
}

/// A count; 0 when it is missing.
fn count(value: &Value, key: &str) -> u64 {
    value.get(key).and_then(Value::as_u64).unwrap_or(0).min(COUNT_MAX)
}

/// Arguments as an object, which some APIs insist on.
fn object(arguments: &Value) -> Value {
    match arguments {
        Value::Object(_) => arguments.clone(),
        other => Value::Object(Map::from_iter([("input".to_owned(), other.clone())])),
    }
}

/// The conversation in turns: what belongs to one role is one turn, as some APIs insist.
fn turns<'a>(messages: &'a [Message], parts: impl Fn(&'a Message) -> (&'static str, Vec<Value>)) -> Turns {
    let mut turns = Turns::new();
    for (role, parts) in messages.iter().map(parts) {
        match turns.last_mut().filter(|(last, _)| *last == role) {
            Some((_, together)) => together.extend(parts),
            None if parts.is_empty() => {}
            None => turns.push((role, parts)),
        }
    }
    turns
}

/// Roles, each with its parts.
type Turns = Vec<(&'static str, Vec<Value>)>;

/// A picture as an address that holds it.
fn data_url(image: &Image) -> String {
    format!("data:{};base64,{}", image.media_type, image.base64)
}

#[cfg(test)]
mod tests;
