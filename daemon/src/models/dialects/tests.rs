use serde_json::json;

use super::*;
use crate::models::{Answer, Delta, Message, Stop, ToolCall, ToolSpec, Usage};

/// Reads a recorded answer in pieces of `size` bytes: what was told, and what came of it.
fn play(dialect: Dialect, kind: &str, recorded: &[u8], size: usize) -> Result<(Vec<Delta>, Answer), ModelError> {
    let head =
        Heard { status: 200, headers: vec![("content-type".into(), kind.into())], body: bytes::Bytes::default() };
    let (mut frames, mut draft, mut told) = (Frames::of(&head), Draft::default(), Vec::new());
    for part in recorded.chunks(size) {
        for document in frames.feed(part)? {
            read(dialect, &document, &mut draft)?;
            told.extend(draft.take_news());
        }
    }
    if let Some(document) = frames.rest() {
        read(dialect, &document, &mut draft)?;
    }
    told.extend(draft.take_news());
    Ok((told, draft.finish("p/m", &Request::default())?))
}

fn told_text(told: &[Delta]) -> String {
    told.iter().map(|delta| if let Delta::Text(text) = delta { text.as_str() } else { "" }).collect()
}

const OPENAI: &str = "\
: comment\n\
data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}],\"usage\":null}\n\n\
data: {\"choices\":[{\"index\":0,\"delta\":{\"reasoning_content\":\"hm\"}}]}\r\n\r\n\
data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Grüß \"}}]}\n\n\
data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"dich 😀\"}}]}\n\n\
data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0,\"id\":\"a\",\"function\":{\"name\":\"read\",\"arguments\":\"\"}}]}}]}\n\n\
data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":1,\"id\":\"b\",\"function\":{\"name\":\"list\",\"arguments\":\"{\\\"x\"}}]}}]}\n\n\
data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0,\"function\":{\"arguments\":\"{\\\"path\\\":\"}}]}}]}\n\n\
data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":1,\"function\":{\"arguments\":\"\\\":1}\"}},{\"index\":0,\"function\":{\"arguments\":\"\\\"ü\\\"}\"}}]}}]}\n\n\
data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"tool_calls\"}]}\n\n\
data: {\"choices\":[],\"usage\":{\"prompt_tokens\":12,\"completion_tokens\":34,\"prompt_tokens_details\":{\"cached_tokens\":5}}}\n\n\
data: [DONE]\n\n";

const ANTHROPIC: &str = "\
event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":7,\"cache_read_input_tokens\":5,\"output_tokens\":1}}}\n\n\
event: ping\ndata: {\"type\":\"ping\"}\n\n\
event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n\
event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"Grüß dich 😀\"}}\n\n\
event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\n\
event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":1,\"content_block\":{\"type\":\"tool_use\",\"id\":\"a\",\"name\":\"read\",\"input\":{}}}\n\n\
event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":1,\"delta\":{\"type\":\"input_json_delta\",\"partial_json\":\"{\\\"path\\\":\"}}\n\n\
event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":1,\"delta\":{\"type\":\"input_json_delta\",\"partial_json\":\"\\\"ü\\\"}\"}}\n\n\
event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":2,\"content_block\":{\"type\":\"tool_use\",\"id\":\"b\",\"name\":\"list\"}}\n\n\
event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":2,\"delta\":{\"type\":\"input_json_delta\",\"partial_json\":\"{\\\"x\\\":1}\"}}\n\n\
event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"tool_use\"},\"usage\":{\"output_tokens\":34}}\n\n\
event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";

const GEMINI: &str = "\
data: {\"candidates\":[{\"content\":{\"role\":\"model\",\"parts\":[{\"text\":\"hm\",\"thought\":true},{\"text\":\"Grüß \"}]}}]}\r\n\r\n\
data: {\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"dich 😀\"},{\"functionCall\":{\"name\":\"read\",\"args\":{\"path\":\"ü\"}}}]}}]}\r\n\r\n\
data: {\"candidates\":[{\"content\":{\"parts\":[{\"functionCall\":{\"name\":\"list\",\"args\":{\"x\":1}}}]},\"finishReason\":\"STOP\"}],\
\"usageMetadata\":{\"promptTokenCount\":12,\"candidatesTokenCount\":30,\"thoughtsTokenCount\":4,\"cachedContentTokenCount\":5}}\r\n\r\n";

const OLLAMA: &str = "\
{\"message\":{\"role\":\"assistant\",\"content\":\"\",\"thinking\":\"hm\"},\"done\":false}\n\
{\"message\":{\"role\":\"assistant\",\"content\":\"Grüß \"},\"done\":false}\n\
{\"message\":{\"role\":\"assistant\",\"content\":\"dich 😀\"},\"done\":false}\n\
{\"message\":{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[{\"function\":{\"name\":\"read\",\"arguments\":{\"path\":\"ü\"}}},\
{\"function\":{\"name\":\"list\",\"arguments\":{\"x\":1}}}]},\"done\":false}\n\
{\"message\":{\"role\":\"assistant\",\"content\":\"\"},\"done\":true,\"done_reason\":\"stop\",\"prompt_eval_count\":12,\"eval_count\":34}";

/// Goal: each dialect gives the same answer, wherever its bytes are cut.
#[test]
fn answers_are_read_wherever_they_are_cut() {
    for (dialect, kind, recorded, cached) in [
        (Dialect::OpenAi, "text/event-stream", OPENAI, 5),
        (Dialect::Anthropic, "text/event-stream; charset=utf-8", ANTHROPIC, 5),
        (Dialect::Gemini, "text/event-stream", GEMINI, 5),
        (Dialect::Ollama, "application/x-ndjson", OLLAMA, 0),
    ] {
        for size in 1..=recorded.len() {
            let (told, answer) = play(dialect, kind, recorded.as_bytes(), size)
                .unwrap_or_else(|error| panic!("{dialect:?} in parts of {size}: {error}"));
            assert_eq!((told_text(&told).as_str(), answer.text.as_str()), ("Grüß dich 😀", "Grüß dich 😀"));
            let calls: Vec<_> = answer.calls.iter().map(|call| (call.name.as_str(), call.arguments.clone())).collect();
            assert_eq!(calls, [("read", json!({ "path": "ü" })), ("list", json!({ "x": 1 }))], "{dialect:?} {size}");
            assert_eq!(answer.stop, Stop::Calls);
            assert_eq!(answer.usage, Usage { input: 12, output: 34, cached, estimated: false }, "{dialect:?}");
            let heard: Vec<&Delta> = told.iter().filter(|delta| matches!(delta, Delta::Call { .. })).collect();
            assert_eq!(heard.len(), 2);
            let Delta::Call { id, name } = heard[0] else { panic!("{heard:?}") };
            assert_eq!((id, name), (&answer.calls[0].id, &answer.calls[0].name));
        }
    }
}

/// Goal: what is cut off anywhere before its end is no answer, and is never taken for one.
#[test]
fn what_is_cut_off_is_an_error() {
    for (dialect, kind, recorded, end) in [
        (Dialect::OpenAi, "text/event-stream", OPENAI, "\"finish_reason\""),
        (Dialect::Anthropic, "text/event-stream", ANTHROPIC, "\"stop_reason\""),
        (Dialect::Gemini, "text/event-stream", GEMINI, "\"finishReason\""),
        (Dialect::Ollama, "application/x-ndjson", OLLAMA, "\"done\":true"),
    ] {
        for length in 0..recorded.find(end).expect("an end") {
            let error = play(dialect, kind, &recorded.as_bytes()[..length], 7).expect_err("cut off");
            assert_eq!(error.kind, ErrorKind::Broken, "{dialect:?} after {length}");
        }
    }
}

/// Goal: what servers do besides what is documented is understood.
#[test]
fn odd_servers_are_understood() {
    let sse = "text/event-stream";
    let whole = "{\"choices\":[{\"message\":{\"content\":\"hi\",\"tool_calls\":[{\"function\":{\"name\":\"f\",\
                 \"arguments\":{\"a\":1}}}]},\"finish_reason\":\"stop\"}]}";
    let (_, answer) = play(Dialect::OpenAi, "application/json", whole.as_bytes(), 5).expect("not streamed");
    assert_eq!((answer.text.as_str(), &answer.calls[0].arguments), ("hi", &json!({ "a": 1 })));
    // No index, no id: one call after the other. Without [DONE], and with an empty usage.
    let bare = "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":\"{\"}}]}}]}\n\n\
                data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"function\":{\"arguments\":\"}\"}}]}}]}\n\n\
                data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"function\":{\"name\":\"g\",\"arguments\":\"{}\"}}]},\"finish_reason\":\"stop\"}]}";
    let (_, answer) = play(Dialect::OpenAi, sse, bare.as_bytes(), 100).expect("bare");
    let names: Vec<&str> = answer.calls.iter().map(|call| call.name.as_str()).collect();
    assert_eq!((names, answer.usage.estimated, answer.stop), (vec!["f", "g"], true, Stop::Calls));
    // Several calls at one index, told apart by their ids.
    let same = "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0,\"id\":\"a\",\"function\":{\"name\":\"f\",\"arguments\":\"{}\"}},\
                {\"index\":0,\"id\":\"b\",\"function\":{\"name\":\"f\",\"arguments\":\"{}\"}}]},\"finish_reason\":\"tool_calls\"}]}\n\n";
    assert_eq!(play(Dialect::OpenAi, sse, same.as_bytes(), 100).expect("same index").1.calls.len(), 2);
    let boasts = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"},\"finish_reason\":\"stop\"}],\
                  \"usage\":{\"prompt_tokens\":18446744073709551615,\"completion_tokens\":1}}\n\n";
    let (_, answer) = play(Dialect::OpenAi, sse, boasts.as_bytes(), 100).expect("counts");
    assert_eq!(answer.usage.input, 1 << 32, "a count that would break all others is not believed");
    let places: Vec<String> = (0..200_000).map(|n| format!("{{\"index\":{n}}}")).collect();
    let floods = format!("data: {{\"choices\":[{{\"delta\":{{\"tool_calls\":[{}]}}}}]}}\n\n", places.join(","));
    assert_eq!(play(Dialect::OpenAi, sse, floods.as_bytes(), 4096).expect_err("a flood").kind, ErrorKind::Broken);
    for (dialect, text, kind) in [
        (
            Dialect::OpenAi,
            "data: {\"error\":{\"message\":\"later\",\"type\":\"rate_limit_error\"}}\n\n",
            ErrorKind::Overloaded,
        ),
        (Dialect::OpenAi, "data: <html>\n\n", ErrorKind::Broken),
        (
            Dialect::Anthropic,
            "data: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"O\"}}\n\n",
            ErrorKind::Overloaded,
        ),
        (
            Dialect::Gemini,
            "data: {\"error\":{\"code\":503,\"status\":\"UNAVAILABLE\",\"message\":\"x\"}}\n\n",
            ErrorKind::Overloaded,
        ),
        (Dialect::Gemini, "data: {\"promptFeedback\":{\"blockReason\":\"SAFETY\"}}\n\n", ErrorKind::Filtered),
    ] {
        assert_eq!(play(dialect, sse, text.as_bytes(), 100).expect_err(text).kind, kind, "{text}");
    }
}

/// Goal: a conversation with pictures, calls and results is put into each dialect's words.
#[test]
fn requests_are_put_into_words() {
    let call = |id: &str, name: &str| ToolCall { id: id.into(), name: name.into(), arguments: json!({ "a": 1 }) };
    let result = |id: &str, name: &str, is_error| Message::Tool {
        call_id: id.into(),
        name: name.into(),
        text: "came".into(),
        is_error,
    };
    let image = Image { media_type: "image/png".into(), base64: "QUJD".into() };
    let request = Request {
        system: "be kind".into(),
        messages: vec![
            Message::User { text: "look".into(), images: vec![image] },
            Message::Assistant { text: String::new(), calls: vec![call("x.1", "f"), call("y", "g")] },
            result("x.1", "f", false),
            result("y", "g", true),
            Message::User { text: "and?".into(), images: Vec::new() },
        ],
        tools: vec![ToolSpec { name: "f".into(), description: "does f".into(), schema: json!({ "type": "object" }) }],
        max_tokens: Some(9),
        temperature: Some(1.5),
        ..Request::default()
    };
    let said = |dialect| body(dialect, "gemini-3-x", &request, Quirks::default(), Some(99));
    let openai = said(Dialect::OpenAi);
    assert_eq!(openai["messages"][1]["content"][1]["image_url"]["url"], "data:image/png;base64,QUJD");
    assert_eq!(openai["messages"][2]["tool_calls"][0]["function"]["arguments"], "{\"a\":1}");
    assert_eq!(openai["messages"][3], json!({ "role": "tool", "tool_call_id": "x.1", "content": "came" }));
    assert_eq!((&openai["stream_options"]["include_usage"], &openai["max_tokens"]), (&json!(true), &json!(9)));
    let learned = Quirks::default().learn(400, b"unknown field stream_options").expect("learned");
    let learned = learned.learn(400, b"use 'max_completion_tokens'; 'temperature' is not supported").expect("more");
    assert!(learned.learn(400, b"stream_options").is_none() && learned.learn(500, b"x").is_none());
    let adapted = body(Dialect::OpenAi, "m", &request, learned, None);
    assert!(adapted.get("stream_options").is_none() && adapted.get("temperature").is_none());
    assert_eq!((&adapted["max_completion_tokens"], adapted.get("max_tokens")), (&json!(9), None));
    let anthropic = said(Dialect::Anthropic);
    assert_eq!(anthropic["messages"].as_array().map(Vec::len), Some(3), "{anthropic}");
    let results = &anthropic["messages"][2]["content"];
    assert_eq!(results[0]["tool_use_id"], anthropic["messages"][1]["content"][0]["id"]);
    assert_eq!((&results[1]["is_error"], &results[2]["text"]), (&json!(true), &json!("and?")));
    assert_eq!((&anthropic["system"], &anthropic["temperature"]), (&json!("be kind"), &json!(1.0)));
    let gemini = said(Dialect::Gemini);
    assert_eq!(gemini["contents"][1]["role"], "model");
    assert_eq!(gemini["contents"][1]["parts"][0]["thoughtSignature"], "skip_thought_signature_validator");
    assert_eq!(gemini["contents"][2]["parts"][1]["functionResponse"]["response"], json!({ "error": "came" }));
    assert_eq!(gemini["generationConfig"], json!({ "maxOutputTokens": 9, "temperature": 1.5 }));
    let ollama = said(Dialect::Ollama);
    assert_eq!(ollama["messages"][2]["tool_calls"][1]["function"]["arguments"], json!({ "a": 1 }));
    assert_eq!(ollama["options"], json!({ "num_predict": 9, "temperature": 1.5, "num_ctx": 99 }));
    assert_eq!(path(Dialect::Gemini, "m"), "/models/m:streamGenerateContent?alt=sse");
}
