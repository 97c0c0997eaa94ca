//! Agents to clients of OpenAI's chat completions: each agent is a model. Off unless the file says `[http] openai = true`.
//!
//! Such a client keeps the conversation itself and sends all of it each time. What goes on from an answer that was given here
//! goes on in the session of that answer; any other conversation begins a session that is told what was said before.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use serde_json::{Value, json};

use super::again::hash;
use super::body::{self, Body, Fields, Reply};
use super::chat::visitor;
use super::mcp::admit;
use super::problem::Problem;
use super::query::Query;
use super::turn_stream::TurnStream;
use super::{App, Call};
use crate::agents::frames::{Frame, Kind as Told, Viewer};
use crate::agents::{Asked, Asking, Audit, Visitor, WantedSession, attachments};
use crate::clock::{Millis, parse_rfc3339};
use crate::error::Error;
use crate::event::Trust;
use crate::id::{TraceId, fresh};
use crate::redact;
use crate::store::Tx;
use crate::store::chat::{self as rows, Attachment, Kind, NewMessage, Role};

/// Conversations that can be gone on with in their session.
const KNOWN_MAX: usize = 256;
/// Messages of one request.
const MESSAGES_MAX: usize = 1000;
/// How often an answer that is waited for looks whether the daemon shuts down.
const LOOK: Duration = Duration::from_millis(500);
/// What decides how a model chooses its words: an agent has its own, so these are taken and change nothing.
const OF_THE_AGENT: [&str; 16] = [
    "temperature",
    "top_p",
    "frequency_penalty",
    "presence_penalty",
    "seed",
    "logit_bias",
    "max_tokens",
    "max_completion_tokens",
    "stop",
    "user",
    "metadata",
    "service_tier",
    "reasoning_effort",
    "verbosity",
    "parallel_tool_calls",
    "safety_identifier",
];
/// What a client may only leave out, or say as here, and why.
const FIXED: [(&str, &[&str], &str); 9] = [
    ("tools", &["[]"], "An agent has tools of its own, which its definition names; it calls none of the client."),
    ("functions", &["[]"], "An agent has tools of its own, which its definition names; it calls none of the client."),
    ("tool_choice", &["\"none\"", "\"auto\""], "An agent decides itself which of its tools it calls."),
    ("function_call", &["\"none\"", "\"auto\""], "An agent decides itself which of its tools it calls."),
    ("n", &["1"], "An agent gives one answer."),
    ("logprobs", &["false"], "An agent gives no probabilities."),
    ("response_format", &["{\"type\":\"text\"}"], "An agent answers in text."),
    ("modalities", &["[\"text\"]"], "An agent answers in text."),
    ("store", &["false", "true"], "Every conversation is kept here."),
];

/// Which session a conversation was answered in, by a digest of all that was said, the newest last.
#[derive(Default)]
pub struct Conversations(Mutex<VecDeque<([u8; 32], String)>>);

impl Conversations {
    /// Takes it: whoever goes on from the same place once more, as after an edit, goes another way.
    fn take(&self, key: &[u8; 32]) -> Option<String> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = known.iter().position(|(one, _)| one == key)?;
        known.remove(at).map(|(_, session)| session)
    }

    fn keep(&self, key: [u8; 32], session: String) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(one, _)| *one != key);
        known.push_back((key, session));
        if known.len() > KNOWN_MAX {
            known.pop_front();
        }
    }
}

/// Something that was said before.
#[derive(Debug, Clone, PartialEq)]
struct Said {
    role: Role,
    text: String,
}

/// A conversation as a client sends it.
#[derive(Debug)]
struct Conversation {
    before: Vec<Said>,
    text: String,
    attachments: Vec<Attachment>,
}

impl Conversation {
    /// Names this conversation, up to what `more` adds to what was said before.
    fn key(&self, who: &str, agent: &str, more: &[Said]) -> [u8; 32] {
        let mut parts: Vec<&[u8]> = vec![who.as_bytes(), agent.as_bytes()];
        for said in self.before.iter().chain(more) {
            parts.extend([said.role.name().as_bytes(), said.text.as_bytes()]);
        }
        hash(&parts)
    }
}

/// What is asked.
#[derive(Debug)]
struct Wanted {
    agent: String,
    conversation: Conversation,
    stream: bool,
    usage: bool,
}

/// `GET /v1/models`: the agents that are switched on.
pub(super) async fn models(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    admit(app.tuned.load().openai, "This API", "http.openai")?;
    Query::read(&call, &[])?;
    let agents = app.agents.list().await?;
    let data: Vec<Value> = agents.iter().filter(|agent| agent["enabled"] == true).map(model).collect();
    body::ok(&json!({ "object": "list", "data": data }))
}

/// `GET /v1/models/{id}`
pub(super) async fn show(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    admit(app.tuned.load().openai, "This API", "http.openai")?;
    Query::read(&call, &[])?;
    body::ok(&model(&app.agents.get(call.param("id")).await?))
}

fn model(agent: &Value) -> Value {
    let created = agent["updated_at"].as_str().and_then(parse_rfc3339).unwrap_or(0) / 1000;
    json!({ "id": agent["id"], "object": "model", "created": created, "owned_by": "aman" })
}

/// `POST /v1/chat/completions`
pub(super) async fn complete(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    admit(app.tuned.load().openai, "This API", "http.openai")?;
    Query::read(&call, &[])?;
    let wanted = wanted(call.fields().await?)?;
    let who = visitor(&call);
    app.agents.ready(&wanted.agent)?;
    let (session, viewer) = begin(&app, &call, &who, &wanted).await?;
    let Wanted { agent, conversation, stream, usage } = wanted;
    let ending = Ending {
        key: Box::new(move |answer| {
            let said = |role, text: &str| Said { role, text: text.to_owned() };
            conversation.key(
                &who.principal,
                &agent,
                &[said(Role::User, &conversation.text), said(Role::Assistant, answer)],
            )
        }),
        session,
    };
    let head = Head {
        id: format!("chatcmpl-{}", fresh()),
        created: app.clock.now_ms() / 1000,
        model: viewer.about().agent.clone(),
    };
    let chunks = Chunks {
        head,
        usage,
        answer: Answer::default(),
        ending: Some(ending),
        shown: String::new(),
        begun: false,
        over: false,
    };
    if stream {
        return Ok(TurnStream::reply_as(&app, viewer, call.principal.as_ref(), Some(Box::new(chunks))));
    }
    whole(&app, viewer, chunks).await
}

/// Has the turn taken: in the session that the conversation goes on in, or in a new one.
async fn begin(app: &Arc<App>, call: &Call, who: &Visitor, wanted: &Wanted) -> Result<(String, Viewer), Problem> {
    let conversation = &wanted.conversation;
    let key = conversation.key(&who.principal, &wanted.agent, &[]);
    if !conversation.before.is_empty()
        && let Some(session) = app.conversations.take(&key)
    {
        // It may be closed or removed by now, or somebody else talks in it: then this goes its own way.
        match ask(app, call, who, &session, conversation).await {
            Ok(viewer) => return Ok((session, viewer)),
            Err(Error::NotFound { .. } | Error::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // What cannot be answered leaves no session behind.
    let texts = conversation.before.iter().map(|said| said.text.as_str()).chain([conversation.text.as_str()]);
    app.agents.admit_new(&wanted.agent, texts).await?;
    let (before, trust, now_ms) = (conversation.before.clone(), who.trust, app.clock.now_ms());
    let seed: Audit = Box::new(move |tx: &mut Tx<'_>, shown: &Value| {
        seed(tx, shown["id"].as_str().unwrap_or_default(), before, trust, now_ms)
    });
    let session = WantedSession { agent: Some(wanted.agent.clone()), title: None, kind: Kind::Person };
    let made = app.agents.create_session(who, session, seed).await?;
    let session = made["id"].as_str().unwrap_or_default().to_owned();
    let viewer = ask(app, call, who, &session, conversation).await?;
    Ok((session, viewer))
}

async fn ask(app: &App, call: &Call, who: &Visitor, session: &str, said: &Conversation) -> Result<Viewer, Error> {
    let (draft, target) = (call.draft.clone(), session.to_owned());
    let audit: Audit = Box::new(move |tx: &mut Tx<'_>, answer: &Value| {
        let detail =
            json!({ "message_id": answer["message_id"], "turn_id": answer["turn_id"], "agent_id": answer["agent_id"] });
        draft.record(tx, &target, detail)
    });
    let asked = Asked::Send { text: said.text.clone(), attachments: said.attachments.clone() };
    let asking = Asking { asked, expected_version: None, trace: call.trace };
    Ok(app.agents.ask(who, session, asking, audit).await?.viewer)
}

/// Tells a new session what was said before.
fn seed(tx: &mut Tx<'_>, session: &str, before: Vec<Said>, trust: Trust, at_ms: Millis) -> Result<(), Error> {
    let row = rows::session_in(tx, session)?.ok_or_else(|| Error::not_found("session", session))?;
    for Said { role, text } in before {
        let new = NewMessage { id: fresh(), turn: None, role, text, body: rows::Body::default(), trust, at_ms };
        rows::append(tx, row.number, &new)?;
    }
    Ok(())
}

/// Reads a request.
fn wanted(mut fields: Fields) -> Result<Wanted, Problem> {
    let agent = fields.required_text("model");
    let messages = fields.value("messages");
    for (name, allowed, why) in FIXED {
        if let Some(value) = fields.value(name)
            && !allowed.contains(&value.to_string().as_str())
        {
            return Err(Error::invalid_as("unsupported_parameter", name, why).into());
        }
    }
    for name in OF_THE_AGENT {
        fields.value(name);
    }
    let (stream, options) = (fields.value("stream"), fields.value("stream_options"));
    fields.done()?;
    let flag = |name: &str, value: Option<Value>| match value {
        None => Ok(false),
        Some(Value::Bool(flag)) => Ok(flag),
        Some(_) => Err(Error::invalid(name, "must be true or false.")),
    };
    let stream = flag("stream", stream)?;
    let usage = flag("stream_options.include_usage", options.and_then(|given| given.get("include_usage").cloned()))?;
    let Some(Value::Array(messages)) = messages else {
        return Err(Error::invalid("messages", "is required: a list of what was said.").into());
    };
    Ok(Wanted { agent, conversation: conversation(messages)?, stream, usage })
}

/// What was said, the last of it apart. Instructions of the client stand before what the person says next: an agent has a soul
/// of its own, and takes them as the person's words.
fn conversation(messages: Vec<Value>) -> Result<Conversation, Error> {
    if messages.len() > MESSAGES_MAX {
        return Err(Error::invalid("messages", format!("has {} items; at most {MESSAGES_MAX}.", messages.len())));
    }
    let (mut before, mut told, mut found) = (Vec::new(), String::new(), Vec::new());
    let last = messages.len().saturating_sub(1);
    for (n, message) in messages.into_iter().enumerate() {
        let place = format!("messages[{n}]");
        let (text, pictures) = content(&place, &message)?;
        let role = match message["role"].as_str() {
            Some("system" | "developer") => {
                told.push_str(&text);
                told.push_str("\n\n");
                continue;
            }
            Some("user") => Role::User,
            Some("assistant") if message.get("tool_calls").is_none_or(Value::is_null) => Role::Assistant,
            Some("assistant" | "tool" | "function") => {
                let why = "is of a tool of the client, and an agent has none of these; it calls its own.";
                return Err(Error::invalid_as("unsupported_parameter", place, why));
            }
            _ => return Err(Error::invalid(format!("{place}.role"), "must be system, developer, user or assistant.")),
        };
        if !pictures.is_empty() && n < last {
            return Err(Error::invalid(format!("{place}.content"), "may have pictures in the last message only."));
        }
        let text = if role == Role::User { format!("{}{text}", std::mem::take(&mut told)) } else { text };
        found = pictures;
        before.push(Said { role, text });
    }
    match before.pop() {
        Some(Said { role: Role::User, text }) if told.is_empty() && !text.trim().is_empty() => {
            Ok(Conversation { before, text, attachments: found })
        }
        _ => Err(Error::invalid("messages", "must end with something that the user says.")),
    }
}

/// The text of a message, and its pictures.
fn content(place: &str, message: &Value) -> Result<(String, Vec<Attachment>), Error> {
    let place = format!("{place}.content");
    let parts = match &message["content"] {
        Value::String(text) => return Ok((text.clone(), Vec::new())),
        Value::Null => return Ok((String::new(), Vec::new())),
        Value::Array(parts) => parts,
        _ => return Err(Error::invalid(place, "must be a text, or a list of parts.")),
    };
    let (mut texts, mut pictures) = (Vec::new(), Vec::new());
    for part in parts {
        match (part["type"].as_str(), part["text"].as_str(), part["image_url"]["url"].as_str()) {
            (Some("text"), Some(text), _) => texts.push(text.to_owned()),
            (Some("image_url"), _, Some(url)) if url.starts_with("data:") => {
                pictures.push(json!({ "name": "picture", "data": url }));
            }
            _ => {
                let why = "may have parts of type text, and image_url with a data: URL.";
                return Err(Error::invalid_as("unsupported_parameter", place, why));
            }
        }
    }
    let pictures = if pictures.is_empty() { Vec::new() } else { attachments::read(&Value::Array(pictures))? };
    Ok((texts.join("\n"), pictures))
}

/// What an answer is so far.
#[derive(Default)]
struct Answer {
    /// The words since the last tool: the answer, once it ended.
    text: String,
    input: u64,
    output: u64,
    cached: u64,
    /// How it failed.
    failed: Option<(String, String)>,
}

impl Answer {
    /// Takes in what happened; the words that a client is shown of it.
    fn take(&mut self, frame: &Frame) -> Option<String> {
        match frame.kind {
            Told::Token => {
                let text = frame.data["text"].as_str().unwrap_or_default();
                self.text.push_str(text);
                return Some(text.to_owned());
            }
            Told::Start | Told::Restart | Told::ToolResult => {
                let had_words = !std::mem::take(&mut self.text).is_empty();
                return had_words.then(|| "\n\n".to_owned());
            }
            Told::ApprovalRequired => {
                let (tool, id) = (frame.data["tool"].as_str(), frame.data["auth_id"].as_str());
                let (tool, id) = (tool.unwrap_or_default(), id.unwrap_or_default());
                return Some(format!("\n\n[aman waits for your approval of {tool}: `aman approve`, {id}]\n\n"));
            }
            Told::Usage => {
                let count = |name: &str| frame.data[name].as_u64().unwrap_or(0);
                self.input += count("input");
                self.output += count("output");
                self.cached += count("cached");
            }
            Told::Error => {
                let text = |name: &str| frame.data[name].as_str().unwrap_or_default().to_owned();
                self.failed = Some((text("code"), text("detail")));
            }
            Told::ToolCall | Told::Done => {}
        }
        None
    }

    fn usage(&self) -> Value {
        json!({
            "prompt_tokens": self.input,
            "completion_tokens": self.output,
            "total_tokens": self.input + self.output,
            "prompt_tokens_details": { "cached_tokens": self.cached },
        })
    }
}

/// What every answer to one request begins with.
struct Head {
    id: String,
    created: Millis,
    model: String,
}

/// The name of a conversation, made with its answer.
type KeyOf = Box<dyn FnOnce(&str) -> [u8; 32] + Send + Sync>;

/// How a conversation is kept that ended well.
struct Ending {
    /// Its name, with the answer.
    key: KeyOf,
    session: String,
}

/// A turn as chunks of a completion.
pub struct Chunks {
    head: Head,
    usage: bool,
    answer: Answer,
    ending: Option<Ending>,
    /// All words that the client has of it, which it sends back next time.
    shown: String,
    begun: bool,
    over: bool,
}

impl Chunks {
    fn chunk(&self, delta: Value, finish: Value) -> Bytes {
        let mut chunk = json!({
            "id": self.head.id,
            "object": "chat.completion.chunk",
            "created": self.head.created,
            "model": self.head.model,
            "choices": [{ "index": 0, "delta": delta, "finish_reason": finish, "logprobs": null }],
        });
        if self.usage {
            chunk["usage"] = Value::Null;
        }
        line(&chunk)
    }

    /// The next bytes for a client; none at the end.
    pub fn poll_bytes(&mut self, app: &App, viewer: &mut Viewer, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if !std::mem::replace(&mut self.begun, true) {
            return Poll::Ready(Some(self.chunk(json!({ "role": "assistant", "content": "" }), Value::Null)));
        }
        loop {
            if self.over {
                return Poll::Ready(None);
            }
            match viewer.poll_next(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(frame)) => {
                    if let Some(words) = self.answer.take(&frame) {
                        self.shown.push_str(&words);
                        return Poll::Ready(Some(self.chunk(json!({ "content": words }), Value::Null)));
                    }
                }
                Poll::Ready(None) => return Poll::Ready(Some(self.last(app))),
            }
        }
    }

    /// The end of a stream.
    fn last(&mut self, app: &App) -> Bytes {
        self.over = true;
        let mut out = Vec::new();
        match &self.answer.failed {
            Some((code, detail)) => out.extend_from_slice(&line(&envelope(code, detail, "server_error", None))),
            None => {
                out.extend_from_slice(&self.chunk(json!({}), json!("stop")));
                if self.usage {
                    let mut chunk =
                        json!({ "id": self.head.id, "object": "chat.completion.chunk", "created": self.head.created });
                    chunk["model"] = self.head.model.as_str().into();
                    chunk["choices"] = json!([]);
                    chunk["usage"] = self.answer.usage();
                    out.extend_from_slice(&line(&chunk));
                }
                self.keep(app);
            }
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
        out.into()
    }

    fn keep(&mut self, app: &App) {
        if let Some(Ending { key, session }) = self.ending.take() {
            app.conversations.keep(key(&self.shown), session);
        }
    }
}

fn line(value: &Value) -> Bytes {
    format!("data: {value}\n\n").into()
}

/// Waits for the end of a turn, and gives it as one answer.
async fn whole(app: &Arc<App>, mut viewer: Viewer, mut chunks: Chunks) -> Result<Reply, Problem> {
    loop {
        match tokio::time::timeout(LOOK, viewer.next()).await {
            Ok(Some(frame)) => drop(chunks.answer.take(&frame)),
            Ok(None) => break,
            Err(_) if app.lifecycle.is_draining() => return Err(super::draining()),
            Err(_) => {}
        }
    }
    if let Some((code, detail)) = &chunks.answer.failed {
        return Err(Problem::new((StatusCode::BAD_GATEWAY, "turn_failed"), format!("{code}: {detail}")));
    }
    chunks.shown.clone_from(&chunks.answer.text);
    chunks.keep(app);
    let Chunks { head, answer, .. } = chunks;
    body::ok(&json!({
        "id": head.id,
        "object": "chat.completion",
        "created": head.created,
        "model": head.model,
        "choices": [{
            "index": 0,
            "message": { "role": "assistant", "content": answer.text, "refusal": null },
            "finish_reason": "stop",
            "logprobs": null,
        }],
        "usage": answer.usage(),
    }))
}

/// An error as OpenAI spells it.
fn envelope(code: &str, message: &str, kind: &str, param: Option<&str>) -> Value {
    json!({ "error": { "message": redact::text(message), "type": kind, "param": param.map(redact::text), "code": code } })
}

/// A refusal as clients of this API read it.
pub(super) fn refusal(problem: Problem, path: &str, trace: TraceId) -> Reply {
    problem.log(path, trace);
    let kind = match problem.status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        429 => "rate_limit_error",
        400..500 => "invalid_request_error",
        _ => "server_error",
    };
    let details = problem.fields.iter().map(|field| format!("{}: {}", field.field, field.reason));
    let details = details.collect::<Vec<_>>().join(" ");
    let message = if details.is_empty() { problem.detail.clone() } else { details };
    let param = problem.fields.first().map(|field| field.field.clone());
    let shown = envelope(problem.code, &message, kind, param.as_deref()).to_string();
    let status = problem.status;
    Reply {
        status,
        content_type: "application/json",
        headers: problem.into_headers(),
        body: Body::full(shown),
        trace: None,
    }
}
