//! Anthropic's messages.

use serde_json::{Value, json};

use super::{count, object, text, turns};
use crate::models::draft::Draft;
use crate::models::error::ModelError;
use crate::models::{Message, Request, Stop, Usage};

/// The version of the API that this is written for.
pub(super) const VERSION: &str = "2023-06-01";
/// The API wants a limit; every model that is offered takes this one.
const MAX_TOKENS: u32 = 8_192;

pub(super) fn body(model: &str, request: &Request) -> Value {
    let max_tokens = request.max_tokens.unwrap_or(MAX_TOKENS);
    let turns = turns(&request.messages, parts).into_iter();
    let messages: Vec<Value> = turns.map(|(role, content)| json!({ "role": role, "content": content })).collect();
    let mut body = json!({ "model": model, "max_tokens": max_tokens, "messages": messages, "stream": true });
    if !request.system.is_empty() {
        body["system"] = request.system.as_str().into();
    }
    if !request.tools.is_empty() {
        let tools = request
            .tools
            .iter()
            .map(|tool| json!({ "name": tool.name, "description": tool.description, "input_schema": tool.schema }));
        body["tools"] = tools.collect();
    }
    if let Some(temperature) = request.temperature {
        // Elsewhere it goes to 2.
        body["temperature"] = temperature.min(1.0).into();
    }
    body
}

/// Results of calls are the user's.
fn parts(message: &Message) -> (&'static str, Vec<Value>) {
    // An empty text is refused.
    let words = |text: &str| (!text.is_empty()).then(|| json!({ "type": "text", "text": text }));
    match message {
        Message::User { text, images } => {
            let image = |image: &crate::models::Image| {
                let source = json!({ "type": "base64", "media_type": image.media_type, "data": image.base64 });
                json!({ "type": "image", "source": source })
            };
            ("user", images.iter().map(image).chain(words(text)).collect())
        }
        Message::Assistant { text, calls } => {
            let calls = calls.iter().map(|call| {
                let input = object(&call.arguments);
                json!({ "type": "tool_use", "id": plain(&call.id), "name": call.name, "input": input })
            });
            ("assistant", words(text).into_iter().chain(calls).collect())
        }
        Message::Tool { call_id, text, is_error, .. } => {
            let id = plain(call_id);
            let result = json!({ "type": "tool_result", "tool_use_id": id, "content": text, "is_error": is_error });
            ("user", vec![result])
        }
    }
}

/// Ids of other providers may have characters that are refused here.
fn plain(id: &str) -> String {
    id.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect()
}

pub(super) fn read(value: &Value, draft: &mut Draft) -> Result<(), ModelError> {
    let place = count(value, "index");
    match text(value, "type").unwrap_or_default() {
        "message_start" => usage(&value["message"]["usage"], draft),
        "content_block_start" => {
            let block = &value["content_block"];
            match text(block, "type") {
                Some("tool_use") => draft.call(place, text(block, "id"), text(block, "name")),
                _ => draft.text(text(block, "text").unwrap_or_default()),
            }
        }
        "content_block_delta" => {
            let delta = &value["delta"];
            match text(delta, "type") {
                Some("text_delta") => draft.text(text(delta, "text").unwrap_or_default()),
                Some("input_json_delta") => draft.arguments(place, text(delta, "partial_json").unwrap_or_default()),
                _ => draft.thought(),
            }
        }
        "message_delta" => {
            usage(&value["usage"], draft);
            draft.stop = match text(&value["delta"], "stop_reason") {
                None => draft.stop,
                Some("max_tokens" | "model_context_window_exceeded") => Some(Stop::Length),
                Some("refusal") => Some(Stop::Filtered),
                Some("tool_use") => Some(Stop::Calls),
                Some(_) => Some(Stop::End),
            };
        }
        "message_stop" => draft.end(),
        "error" => return Err(ModelError::of_stream(value)),
        // A sign of life, the end of a block, or what a later version sends.
        _ => {}
    }
    Ok(())
}

/// Counts come in two parts, and later ones stand for earlier ones.
fn usage(usage: &Value, draft: &mut Draft) {
    if !usage.is_object() {
        return;
    }
    let known = draft.usage.unwrap_or_default();
    let read = count(usage, "cache_read_input_tokens");
    let input = count(usage, "input_tokens") + read + count(usage, "cache_creation_input_tokens");
    draft.usage = Some(Usage {
        input: input.max(known.input),
        output: count(usage, "output_tokens").max(known.output),
        cached: read.max(known.cached),
        estimated: false,
    });
}
