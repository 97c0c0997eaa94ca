//! Real servers: llmock, which speaks three dialects, fails on purpose and judges how its clients cope; and llama.cpp with
//! small weights. `scripts/setup test` installs both.

use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use aman::models::{ErrorKind, Stop, ToolSpec};
use serde_json::{Value, json};

use super::*;
use crate::clients::Client;
use crate::contract::client;
use crate::harness::{exchange, free_address, request, wait};

/// llmock, until it is dropped.
struct Mock {
    child: Child,
    address: String,
}

impl Mock {
    fn start() -> Mock {
        let address = free_address();
        let port = address.rsplit(':').next().unwrap_or_default();
        let child = Command::new(client("llmock"))
            .args(["serve", "-h", "127.0.0.1", "-p", port, "--log-level", "warning"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("llmock starts");
        let mock = Mock { child, address };
        wait("llmock to listen", || TcpStream::connect(&mock.address).ok(), String::new);
        mock
    }

    fn control(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let asked = request(method, path, &[("content-type", "application/json")], body.as_bytes());
        let answer = exchange(&self.address, &asked).expect("llmock answers");
        assert!(answer.status < 300, "{answer:?}");
        answer.json
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        let _dead = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// A question with a tool, and what came before it.
fn with_tool(model: &str, messages: Vec<Message>) -> Request {
    let schema = json!({ "type": "object", "properties": { "city": { "type": "string" } }, "required": ["city"],
        "additionalProperties": false });
    let tool = ToolSpec { name: "get_weather".into(), description: "The weather in a city.".into(), schema };
    Request { model: model.into(), messages, tools: vec![tool], ..Request::default() }
}

/// Goal: against a server that others wrote each dialect gets a whole answer in spite of a refusal and a stream that ends
/// too early, asks for tools and takes their results; and that server finds nothing wrong with how we behaved.
#[tokio::test]
async fn llmock_finds_nothing_wrong() {
    let mock = Mock::start();
    let dialects = [
        ("openai", "/v1", "gpt-4o-mini"),
        ("anthropic", "/anthropic/v1", "claude-sonnet-4-5"),
        ("gemini", "/gemini/v1beta", "gemini-2.5-flash"),
    ];
    let mut toml = String::new();
    for (kind, path, _) in dialects {
        let address = &mock.address;
        toml += &format!(
            "[providers.{kind}]\nkind = \"{kind}\"\nurl = \"http://{address}{path}\"\nkey = \"none-at-all\"\n"
        );
        let only = json!({ "provider": kind });
        let behaviors = json!([
            { "type": "fail", "status": 429, "retry_after": 1, "match": only },
            { "type": "stream_fault", "kind": "truncate", "after_chunks": 5, "match": { "provider": kind, "stream": true } },
            { "type": "reply", "text": "All is well today in every way.", "times": 2, "match": only },
        ]);
        mock.control("POST", "/_llmock/scenario", &json!({ "behaviors": behaviors }));
    }
    let models = models(&toml);
    let play = async |kind: &str, model: &str| {
        let (id, cancel) = (format!("{kind}/{model}"), CancellationToken::new());
        let user = Message::User { text: "How is the weather in Paris?".into(), images: Vec::new() };
        let mut told = String::new();
        let mut on = |delta| match delta {
            Delta::Text(text) => told.push_str(&text),
            Delta::Call { name, .. } => told.push_str(&name),
            Delta::Restart => told.push('|'),
        };
        let first = Request { model: id.clone(), messages: vec![user.clone()], ..Request::default() };
        let answer = models.ask(first, &mut on, &cancel).await.unwrap_or_else(|error| panic!("{kind}: {error}"));
        assert_eq!((answer.text.as_str(), answer.model.as_str()), ("All is well today in every way.", id.as_str()));
        assert!(told.ends_with("|All is well today in every way.") && !told.starts_with('|'), "{kind}: {told}");
        assert!(!answer.usage.estimated && answer.usage.output > 0, "{kind}: {:?}", answer.usage);
        let asked = models.ask(with_tool(&id, vec![user.clone()]), &mut |_| {}, &cancel).await;
        let asked = asked.unwrap_or_else(|error| panic!("{kind}: {error}"));
        assert_eq!((asked.stop, asked.calls.len(), asked.calls[0].name.as_str()), (Stop::Calls, 1, "get_weather"));
        assert!(asked.calls[0].arguments["city"].is_string(), "{kind}: {asked:?}");
        let (call_id, name) = (asked.calls[0].id.clone(), asked.calls[0].name.clone());
        let messages = vec![
            user,
            Message::Assistant { text: asked.text, calls: asked.calls },
            Message::Tool { call_id, name, text: "Sunny.".into(), is_error: false },
        ];
        let last = models.ask(with_tool(&id, messages), &mut |_| {}, &cancel).await;
        let last = last.unwrap_or_else(|error| panic!("{kind}: {error}"));
        assert!(last.stop == Stop::End && !last.text.is_empty(), "{kind}: {last:?}");
    };
    let [a, b, c] = dialects;
    tokio::join!(play(a.0, a.2), play(b.0, b.2), play(c.0, c.2));
    let verdict = mock.control("GET", "/_llmock/verdict", &Value::Null);
    assert_eq!((&verdict["passed"], &verdict["findings"]), (&json!(true), &json!([])), "{verdict}");
    assert_eq!(verdict["faults_injected"], 6, "{verdict}");
}

/// Goal: without any configuration llama.cpp is found on this machine and asked, with weights that really think; once it is
/// gone, that is told.
#[tokio::test]
async fn llama_cpp_is_found_and_answers() {
    let address = free_address();
    let port = address.rsplit(':').next().unwrap_or_default();
    let llama = Client::start("python", &["llama.py", port]);
    let url = llama.line();
    let models = models(&format!("[models]\ndetect = \"http://127.0.0.1:1 {url}\"\nmax_retries = 0\n"));
    let [shown] = <[_; 1]>::try_from(models.list().await).expect("one model");
    assert_eq!((shown.provider.as_str(), shown.kind, shown.found), ("llamacpp", "openai", true), "{shown:?}");
    assert_eq!((shown.id.as_str(), shown.window), ("llamacpp/SmolLM2-135M-Instruct.Q4_1", 1024));
    assert!(models.probe().await.ok);
    let messages = vec![Message::User { text: "What is the capital of France?".into(), images: Vec::new() }];
    let (mut told, cancel) = (String::new(), CancellationToken::new());
    let mut on = |delta| {
        if let Delta::Text(text) = delta {
            told.push_str(&text);
        }
    };
    let request = Request { messages, max_tokens: Some(4), temperature: Some(0.0), ..Request::default() };
    let answer = models.ask(request.clone(), &mut on, &cancel).await.expect("it answers");
    assert_eq!((answer.text.as_str(), answer.stop), (told.as_str(), Stop::Length));
    assert!(!told.is_empty() && answer.usage.output == 4 && answer.usage.input > 4, "{answer:?}");
    drop(llama);
    assert_eq!(models.ask(request.clone(), &mut |_| {}, &cancel).await.expect_err("gone").kind, ErrorKind::Broken);
    assert_eq!(models.ask(request, &mut |_| {}, &cancel).await.expect_err("gone").kind, ErrorKind::None);
}
