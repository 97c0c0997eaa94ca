//! Ollama's own chat: one JSON document a line.

use serde_json::{Value, json};

use super::{count, object, openai, text};
use crate::models::draft::Draft;
use crate::models::error::ModelError;
use crate::models::{Message, Request, Stop, Usage};

pub(super) fn body(model: &str, request: &Request, window: Option<usize>) -> Value {
    let mut messages = Vec::new();
    if !request.system.is_empty() {
        messages.push(json!({ "role": "system", "content": request.system }));
    }
    messages.extend(request.messages.iter().map(message));
    let mut body = json!({ "model": model, "messages": messages, "stream": true });
    if !request.tools.is_empty() {
        body["tools"] = openai::tools(request);
    }
    let options = [
        ("num_predict", request.max_tokens.map(Value::from)),
        ("temperature", request.temperature.map(Value::from)),
        // Without it Ollama looks at 4,096 tokens, and drops the rest without a word.
        ("num_ctx", window.map(Value::from)),
    ];
    for (name, value) in options {
        if let Some(value) = value {
            body["options"][name] = value;
        }
    }
    body
}

fn message(message: &Message) -> Value {
    match message {
        Message::User { text, images } => {
            let images: Vec<&str> = images.iter().map(|image| image.base64.as_str()).collect();
            json!({ "role": "user", "content": text, "images": images })
        }
        Message::Assistant { text, calls } => {
            let call = |call: &crate::models::ToolCall| json!({ "function": { "name": call.name, "arguments": object(&call.arguments) } });
            let calls: Vec<Value> = calls.iter().map(call).collect();
            json!({ "role": "assistant", "content": text, "tool_calls": calls })
        }
        Message::Tool { name, text, .. } => json!({ "role": "tool", "content": text, "tool_name": name }),
    }
}

pub(super) fn read(value: &Value, draft: &mut Draft) -> Result<(), ModelError> {
    if value.get("error").is_some() {
        return Err(ModelError::of_stream(value));
    }
    let message = &value["message"];
    if text(message, "thinking").is_some() {
        draft.thought();
    }
    draft.text(text(message, "content").unwrap_or_default());
    for call in message["tool_calls"].as_array().into_iter().flatten() {
        let function = &call["function"];
        let arguments = function.get("arguments").cloned().unwrap_or_else(|| json!({}));
        draft.whole_call(text(call, "id"), text(function, "name").unwrap_or_default(), arguments);
    }
    if value["done"] == true {
        draft.stop = Some(if text(value, "done_reason") == Some("length") { Stop::Length } else { Stop::End });
        if value.get("eval_count").is_some() {
            draft.usage = Some(Usage {
                // Missing when all of it was in the cache.
                input: count(value, "prompt_eval_count"),
                output: count(value, "eval_count"),
                cached: 0,
                estimated: false,
            });
        }
        draft.end();
    }
    Ok(())
}
