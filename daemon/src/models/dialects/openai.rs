//! OpenAI's chat completions, as OpenAI documents them and as others serve them.

use serde_json::{Value, json};

use super::{Quirks, count, data_url, text};
use crate::models::draft::Draft;
use crate::models::error::ModelError;
use crate::models::{Message, Request, Stop, ToolCall, ToolSpec, Usage};

pub(super) fn body(model: &str, request: &Request, quirks: Quirks) -> Value {
    let mut messages = Vec::new();
    if !request.system.is_empty() {
        messages.push(json!({ "role": "system", "content": request.system }));
    }
    messages.extend(request.messages.iter().map(message));
    let mut body = json!({ "model": model, "messages": messages, "stream": true });
    if !quirks.no_stream_options {
        body["stream_options"] = json!({ "include_usage": true });
    }
    if !request.tools.is_empty() {
        body["tools"] = tools(request);
    }
    if let Some(tokens) = request.max_tokens {
        body[if quirks.completion_tokens { "max_completion_tokens" } else { "max_tokens" }] = tokens.into();
    }
    if let Some(temperature) = request.temperature.filter(|_| !quirks.no_temperature) {
        body["temperature"] = temperature.into();
    }
    body
}

/// The tools, as others write them, too.
pub(super) fn tools(request: &Request) -> Value {
    let tool = |tool: &ToolSpec| {
        let function = json!({ "name": tool.name, "description": tool.description, "parameters": tool.schema });
        json!({ "type": "function", "function": function })
    };
    request.tools.iter().map(tool).collect()
}

fn message(message: &Message) -> Value {
    match message {
        Message::User { text, images } if images.is_empty() => json!({ "role": "user", "content": text }),
        Message::User { text, images } => {
            let mut parts = vec![json!({ "type": "text", "text": text })];
            let part = |image| json!({ "type": "image_url", "image_url": { "url": data_url(image) } });
            parts.extend(images.iter().map(part));
            json!({ "role": "user", "content": parts })
        }
        Message::Assistant { text, calls } if calls.is_empty() => json!({ "role": "assistant", "content": text }),
        Message::Assistant { text, calls } => {
            let calls: Vec<Value> = calls.iter().map(call).collect();
            let content = if text.is_empty() { Value::Null } else { text.as_str().into() };
            json!({ "role": "assistant", "content": content, "tool_calls": calls })
        }
        Message::Tool { call_id, text, .. } => json!({ "role": "tool", "tool_call_id": call_id, "content": text }),
    }
}

/// Arguments travel as JSON in a text.
fn call(call: &ToolCall) -> Value {
    let arguments = match &call.arguments {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    json!({ "id": call.id, "type": "function", "function": { "name": call.name, "arguments": arguments } })
}

pub(super) fn read(value: &Value, draft: &mut Draft) -> Result<(), ModelError> {
    if value.get("error").is_some_and(|error| !error.is_null()) {
        return Err(ModelError::of_stream(value));
    }
    if let Some(usage) = value.get("usage").filter(|usage| usage.is_object()) {
        let cached = usage.get("prompt_tokens_details").map_or(0, |details| count(details, "cached_tokens"));
        draft.usage = Some(Usage {
            input: count(usage, "prompt_tokens"),
            output: count(usage, "completion_tokens"),
            cached,
            estimated: false,
        });
    }
    let Some(choice) = value.get("choices").and_then(|choices| choices.get(0)) else { return Ok(()) };
    // Servers that do not stream send the message whole.
    if let Some(delta) = choice.get("delta").or_else(|| choice.get("message")) {
        if text(delta, "reasoning_content").or_else(|| text(delta, "reasoning")).is_some() {
            draft.thought();
        }
        draft.text(text(delta, "content").unwrap_or_default());
        let refusal = text(delta, "refusal");
        draft.text(refusal.unwrap_or_default());
        if refusal.is_some() {
            draft.stop = Some(Stop::Filtered);
        }
        for call in delta.get("tool_calls").and_then(Value::as_array).into_iter().flatten() {
            read_call(call, draft);
        }
    }
    let stop = match text(choice, "finish_reason") {
        None => return Ok(()),
        Some("length") => Stop::Length,
        Some("content_filter") => Stop::Filtered,
        Some("tool_calls" | "function_call") => Stop::Calls,
        Some(_) => Stop::End,
    };
    // A refusal ends with "stop" as well.
    draft.stop = draft.stop.or(Some(stop));
    Ok(())
}

/// A piece of a call. Pieces of several calls come in any order, told apart by `index`; servers without it send one call
/// after the other.
fn read_call(call: &Value, draft: &mut Draft) {
    let function = call.get("function").unwrap_or(&Value::Null);
    let (id, name) = (text(call, "id"), text(function, "name"));
    let arguments = function.get("arguments").unwrap_or(&Value::Null);
    if let Value::Object(_) = arguments {
        draft.whole_call(id, name.unwrap_or_default(), arguments.clone());
        return;
    }
    let place = call.get("index").and_then(Value::as_u64).unwrap_or_else(|| {
        let is_new = match id {
            Some(id) => draft.last_id() != Some(id),
            None => name.is_some(),
        };
        draft.last_place().filter(|_| !is_new).unwrap_or_else(|| draft.next_place())
    });
    draft.call(place, id, name);
    draft.arguments(place, arguments.as_str().unwrap_or_default());
}
