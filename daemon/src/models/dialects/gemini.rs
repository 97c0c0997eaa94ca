//! Google's Gemini API (`streamGenerateContent`).

use serde_json::{Value, json};

use super::{count, object, text, turns};
use crate::models::draft::Draft;
use crate::models::error::{ErrorKind, ModelError};
use crate::models::{Message, Request, Stop, Usage};

/// What Google gives for calls whose signature is not known, as those that another model asked for: Gemini 3 refuses calls
/// without any (ai.google.dev/gemini-api/docs/thought-signatures).
const NO_SIGNATURE: &str = "skip_thought_signature_validator";

pub(super) fn body(model: &str, request: &Request) -> Value {
    let turns = turns(&request.messages, |message| parts(model, message)).into_iter();
    let contents: Vec<Value> = turns.map(|(role, parts)| json!({ "role": role, "parts": parts })).collect();
    let mut body = json!({ "contents": contents });
    if !request.system.is_empty() {
        body["systemInstruction"] = json!({ "parts": [{ "text": request.system }] });
    }
    if !request.tools.is_empty() {
        let tools: Vec<Value> = request
            .tools
            .iter()
            .map(|tool| json!({ "name": tool.name, "description": tool.description, "parametersJsonSchema": tool.schema }))
            .collect();
        body["tools"] = json!([{ "functionDeclarations": tools }]);
    }
    if let Some(tokens) = request.max_tokens {
        body["generationConfig"]["maxOutputTokens"] = tokens.into();
    }
    if let Some(temperature) = request.temperature {
        body["generationConfig"]["temperature"] = temperature.into();
    }
    body
}

fn parts(model: &str, message: &Message) -> (&'static str, Vec<Value>) {
    let words = |text: &str| (!text.is_empty()).then(|| json!({ "text": text }));
    match message {
        Message::User { text, images } => {
            let image = |image: &crate::models::Image| json!({ "inlineData": { "mimeType": image.media_type, "data": image.base64 } });
            ("user", images.iter().map(image).chain(words(text)).collect())
        }
        Message::Assistant { text, calls } => {
            let calls = calls.iter().map(|call| {
                let mut part = json!({ "functionCall": { "name": call.name, "args": object(&call.arguments) } });
                if model.starts_with("gemini-3") {
                    part["thoughtSignature"] = NO_SIGNATURE.into();
                }
                part
            });
            ("model", words(text).into_iter().chain(calls).collect())
        }
        Message::Tool { name, text, is_error, .. } => {
            let said = if *is_error { "error" } else { "result" };
            ("user", vec![json!({ "functionResponse": { "name": name, "response": { said: text } } })])
        }
    }
}

pub(super) fn read(value: &Value, draft: &mut Draft) -> Result<(), ModelError> {
    if value.get("error").is_some() {
        return Err(ModelError::of_stream(value));
    }
    if let Some(usage) = value.get("usageMetadata") {
        draft.usage = Some(Usage {
            input: count(usage, "promptTokenCount"),
            // Thoughts are paid as what is answered.
            output: count(usage, "candidatesTokenCount") + count(usage, "thoughtsTokenCount"),
            cached: count(usage, "cachedContentTokenCount"),
            estimated: false,
        });
    }
    if let Some(reason) = value.get("promptFeedback").and_then(|feedback| text(feedback, "blockReason")) {
        return Err(ModelError::new(ErrorKind::Filtered, format!("It does not answer that: {reason}.")));
    }
    let Some(candidate) = value.get("candidates").and_then(|all| all.get(0)) else { return Ok(()) };
    for part in candidate["content"]["parts"].as_array().into_iter().flatten() {
        if let Some(call) = part.get("functionCall") {
            let arguments = call.get("args").cloned().unwrap_or_else(|| json!({}));
            draft.whole_call(text(call, "id"), text(call, "name").unwrap_or_default(), arguments);
        } else if part["thought"] == true {
            draft.thought();
        } else {
            draft.text(text(part, "text").unwrap_or_default());
        }
    }
    match text(candidate, "finishReason") {
        None => {}
        Some("STOP") => draft.stop = Some(Stop::End),
        Some("MAX_TOKENS") => draft.stop = Some(Stop::Length),
        Some("MALFORMED_FUNCTION_CALL" | "UNEXPECTED_TOOL_CALL" | "OTHER") => {
            let reason = format!("It gave up: {}.", candidate["finishReason"]);
            return Err(ModelError::new(ErrorKind::Broken, reason));
        }
        // SAFETY, RECITATION, BLOCKLIST, PROHIBITED_CONTENT, SPII and whatever else keeps an answer back.
        Some(_) => draft.stop = Some(Stop::Filtered),
    }
    Ok(())
}
