//! What plugins ask of agents: their definitions, sessions and turns. The bus hands it to whoever runs agents; nothing of it is
//! staged, but a delivery that is made again finds the sessions and turns that it made before.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use aman_plugin_host::{
    AgentDefinition, AgentShown, AgentStatus, AgentStored, Asked, Attachment, Caller, Error as Refusal, Frame, Message,
    MessagePage, NewSession, NewTurn as Wants, Reply, Retry, Role, Session, SessionPage, SessionState, TurnAnswer,
    TurnFailure, TurnFrames, TurnInfo, TurnOutcome,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use tokio::runtime::Handle;

use super::Api;
use super::acts::invalid;
use super::convert::{refusal, trust_of};
use crate::bus::Bus;
use crate::bus::agency::{Answering, Asker, BegunTurn, Frames, NewTurn, Request, Said};
use crate::clock::parse_rfc3339;
use crate::error::Error;
use crate::event::{Event, Trust, read_json};
use crate::package::AgentRight;

/// Longest key of a session or a turn, in bytes.
const KEY_BYTES_MAX: usize = 200;
/// After so long without news of a turn whoever looks at it is told that it still waits.
const SILENCE: Duration = Duration::from_secs(15);

/// What a call is part of, and which of its questions this is.
pub(super) struct Within<'a> {
    /// The event that it handles.
    pub cause: Option<&'a Arc<Event>>,
    /// Names the question, the same when the work is done again; none where nothing is done again by itself.
    pub key: Option<String>,
}

impl Within<'_> {
    /// A call whose effects are not staged.
    pub const DIRECT: Within<'static> = Within { cause: None, key: None };

    /// The key that the plugin gives, or the one of this question, which never is the same.
    fn key(&self, given: Option<String>) -> Result<Option<String>, Refusal> {
        match given {
            Some(given) if given.is_empty() || given.len() > KEY_BYTES_MAX => {
                Err(invalid("key", format!("must have 1 to {KEY_BYTES_MAX} bytes")))
            }
            Some(given) => Ok(Some(format!("given/{given}"))),
            None => Ok(self.key.as_ref().map(|key| format!("work/{key}"))),
        }
    }
}

impl Api {
    /// Denies what the manifest does not ask for.
    fn may_agents(&self, right: AgentRight) -> Result<(), Refusal> {
        if self.manifest.permissions.agents.contains(&right) {
            return Ok(());
        }
        Err(Refusal::Denied(format!("the manifest does not ask for agents = [\"{}\"]", right.name())))
    }

    fn asker(&self, caller: &Caller, cause: Option<&Arc<Event>>) -> Result<Asker, Refusal> {
        Ok(Asker {
            principal: self.source(),
            trust: Api::trust(caller, cause.map(AsRef::as_ref)),
            trace: caller.trace_id.parse().map_err(|()| invalid("trace-id", "is no trace"))?,
            cause: cause.cloned(),
        })
    }

    /// Asks on the daemon's runtime; it ends even if the call does not.
    async fn ask(&self, right: AgentRight, caller: &Caller, request: Request) -> Result<Value, Refusal> {
        self.ask_within(right, caller, None, request).await
    }

    /// As [`Api::ask`], for what an event led to.
    async fn ask_within(
        &self,
        right: AgentRight,
        caller: &Caller,
        cause: Option<&Arc<Event>>,
        request: Request,
    ) -> Result<Value, Refusal> {
        self.may_agents(right)?;
        let (asker, bus) = (self.asker(caller, cause)?, self.bus().clone());
        on(&self.services.inner.runtime, async move { (bus.agency()?.ask)(asker, request).await }).await
    }

    pub(super) async fn list_agents(&self, caller: &Caller) -> Result<Vec<AgentShown>, Refusal> {
        let shown = self.ask(AgentRight::Read, caller, Request::Agents).await?;
        Ok(shown.as_array().into_iter().flatten().map(agent).collect())
    }

    pub(super) async fn read_agent(&self, caller: &Caller, id: &str) -> Result<AgentDefinition, Refusal> {
        let shown = self.ask(AgentRight::Read, caller, Request::Agent(id.to_owned())).await?;
        Ok(AgentDefinition { agent: agent(&shown), json: shown["definition"].to_string(), extensions: Vec::new() })
    }

    pub(super) async fn put_agent(
        &self,
        caller: &Caller,
        (id, text): (&str, &str),
        cause: Option<&Arc<Event>>,
    ) -> Result<AgentStored, Refusal> {
        let definition = read_json(text.as_bytes())
            .map_err(|error| invalid("definition", format!("is no JSON that can be kept: {error}")))?;
        let request = Request::Put { id: id.to_owned(), definition };
        let stored = self.ask_within(AgentRight::Manage, caller, cause, request).await?;
        Ok(AgentStored { agent: agent(&stored["agent"]), is_new: stored["is_new"] == true })
    }

    pub(super) async fn remove_agent(&self, caller: &Caller, id: &str) -> Result<(), Refusal> {
        self.ask(AgentRight::Manage, caller, Request::Remove(id.to_owned())).await.map(drop)
    }

    pub(super) async fn create_session(
        &self,
        caller: &Caller,
        new: NewSession,
        within: Within<'_>,
    ) -> Result<Session, Refusal> {
        let request = Request::Create { key: within.key(new.key)?, agent: new.agent, title: new.title };
        let shown = self.ask_within(AgentRight::Chat, caller, within.cause, request).await;
        shown.map(|shown| session(&shown))
    }

    pub(super) async fn list_sessions(
        &self,
        caller: &Caller,
        (agent, after, limit): (Option<String>, Option<String>, u32),
    ) -> Result<SessionPage, Refusal> {
        let request = Request::Sessions { agent, after, rows_max: limit as usize };
        let shown = self.ask(AgentRight::Chat, caller, request).await?;
        let sessions = shown["items"].as_array().into_iter().flatten().map(session).collect();
        Ok(SessionPage { sessions, next: text(&shown, "next") })
    }

    pub(super) async fn read_session(&self, caller: &Caller, id: &str) -> Result<Session, Refusal> {
        self.ask(AgentRight::Chat, caller, Request::Session(id.to_owned())).await.map(|shown| session(&shown))
    }

    pub(super) async fn read_history(
        &self,
        caller: &Caller,
        (session, after, limit): (&str, Option<String>, u32),
    ) -> Result<MessagePage, Refusal> {
        let request = Request::History { session: session.to_owned(), after, rows_max: limit as usize };
        let shown = self.ask(AgentRight::Chat, caller, request).await?;
        let messages = shown["items"].as_array().into_iter().flatten().map(message).collect();
        Ok(MessagePage { messages, next: text(&shown, "next") })
    }

    pub(super) async fn stop_session(&self, caller: &Caller, id: &str) -> Result<bool, Refusal> {
        let shown = self.ask(AgentRight::Chat, caller, Request::Stop(id.to_owned())).await?;
        Ok(shown["stopped"] == true)
    }

    pub(super) async fn delete_session(&self, caller: &Caller, id: &str) -> Result<(), Refusal> {
        self.ask(AgentRight::Chat, caller, Request::Delete(id.to_owned())).await.map(drop)
    }

    /// Has a turn taken, and looks at it.
    pub(super) async fn begin_turn(
        &self,
        caller: &Caller,
        wants: Wants,
        within: Within<'_>,
    ) -> Result<(TurnInfo, Watched), Refusal> {
        self.may_agents(AgentRight::Chat)?;
        let (asker, bus, runtime) =
            (self.asker(caller, within.cause)?, self.bus().clone(), &self.services.inner.runtime);
        let wanted = NewTurn {
            key: within.key(wants.key)?,
            session: wants.session,
            said: said(wants.asked),
            expected_version: wants.expected_version.map(|version| i64::try_from(version).unwrap_or(i64::MAX)),
        };
        let (begins, asks) = (bus.clone(), asker.clone());
        let begun = on(runtime, async move { (begins.agency()?.turn)(asks, wanted).await }).await?;
        let BegunTurn { id, session, trace, is_new, frames } = begun;
        let info = TurnInfo { id: id.clone(), session, trace_id: trace, is_new, extensions: Vec::new() };
        Ok((info, Watched { bus, runtime: runtime.clone(), asker, turn: id, frames, over: false }))
    }

    /// As [`Api::begin_turn`], for whoever does not care how it is looked at.
    pub(super) async fn watch_turn(
        &self,
        caller: &Caller,
        wants: Wants,
        within: Within<'_>,
    ) -> Result<(TurnInfo, Box<dyn TurnFrames>), Refusal> {
        let (info, watched) = self.begin_turn(caller, wants, within).await?;
        Ok((info, Box::new(watched)))
    }

    /// Has a turn taken, and waits for its end.
    pub(super) async fn take_turn(
        &self,
        caller: &Caller,
        wants: Wants,
        within: Within<'_>,
    ) -> Result<TurnAnswer, Refusal> {
        let (info, mut watched) = self.begin_turn(caller, wants, within).await?;
        while watched.frame().await?.is_some() {}
        let outcome = watched.outcome().await?.ok_or_else(goes_on)?;
        Ok(answer(info, &outcome))
    }
}

/// Runs it where I/O is done; it ends even if whoever waits does not.
async fn on<T: Send + 'static>(
    runtime: &Handle,
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Refusal> {
    let done = runtime.spawn(work).await;
    done.map_err(|error| refusal(Error::internal("asking an agent for a plugin")(error)))?.map_err(refusal)
}

fn goes_on() -> Refusal {
    let reason = "aman does not tell how the turn stands now; it goes on, and its session shows what comes of it";
    Refusal::Unavailable(Retry { reason: reason.to_owned(), after_ms: Some(1000) })
}

/// A turn that a plugin looks at.
pub(super) struct Watched {
    bus: Bus,
    runtime: Handle,
    asker: Asker,
    turn: String,
    frames: Frames,
    over: bool,
}

/// What comes first.
enum News {
    Frame(Option<(&'static str, Value)>),
    Silence,
    Stopping,
}

impl Watched {
    /// What came of the turn; none before its end.
    async fn outcome(&self) -> Result<Option<Value>, Refusal> {
        let (bus, asker, turn) = (self.bus.clone(), self.asker.clone(), self.turn.clone());
        let look = async move {
            let answering: Answering<Option<Value>> = (bus.agency()?.answer)(asker, turn);
            answering.await
        };
        on(&self.runtime, look).await
    }

    async fn frame(&mut self) -> Result<Option<Frame>, Refusal> {
        if self.over {
            return Ok(None);
        }
        let stopping = self.bus.stopping().clone();
        let frames = &mut self.frames;
        let news = tokio::select! {
            biased;
            frame = poll_fn(|cx| frames(cx)) => News::Frame(frame),
            () = stopping.cancelled() => News::Stopping,
            () = tokio::time::sleep(SILENCE) => News::Silence,
        };
        match news {
            News::Frame(Some((kind, data))) => Ok(Some(self.told(kind, &data))),
            News::Stopping => Err(refusal(Error::Busy {
                code: "draining",
                what: "aman shuts down; the turn goes on with its next start".to_owned(),
                retry_after_ms: 5000,
            })),
            // Whoever told of it may be gone; what is stored counts.
            News::Frame(None) => match self.outcome().await? {
                Some(outcome) => Ok(Some(self.end(&outcome))),
                None => Err(goes_on()),
            },
            News::Silence => match self.outcome().await? {
                None => Ok(Some(Frame { kind: "waiting".to_owned(), data: "{}".to_owned() })),
                Some(outcome) => match self.at_once().await {
                    Some((kind, data)) => Ok(Some(self.told(kind, &data))),
                    None => Ok(Some(self.end(&outcome))),
                },
            },
        }
    }

    /// A frame that is there.
    async fn at_once(&mut self) -> Option<(&'static str, Value)> {
        let frames = &mut self.frames;
        poll_fn(|cx| match frames(cx) {
            Poll::Ready(frame) => Poll::Ready(frame),
            Poll::Pending => Poll::Ready(None),
        })
        .await
    }

    fn told(&mut self, kind: &str, data: &Value) -> Frame {
        self.over = matches!(kind, "done" | "error");
        Frame { kind: kind.to_owned(), data: data.to_string() }
    }

    fn end(&mut self, outcome: &Value) -> Frame {
        match outcome["status"].as_str() {
            Some("failed") => self.told("error", &outcome["error"]),
            status => self.told("done", &json!({ "message_id": outcome["message_id"], "status": status })),
        }
    }
}

impl TurnFrames for Watched {
    fn next(&mut self) -> Reply<'_, Option<Frame>> {
        Box::pin(self.frame())
    }
}

/// Names a turn that is asked for within some work, by the words as well: who says something else asks for another one.
pub(super) fn name_of(wants: &Wants) -> String {
    match &wants.asked {
        Asked::Send(said) => format!("{}\nsend\n{}", wants.session, said.text),
        Asked::Edit(edited) => format!("{}\nedit\n{}\n{}", wants.session, edited.message, edited.text),
        Asked::Retry => format!("{}\nretry", wants.session),
    }
}

fn said(asked: Asked) -> Said {
    match asked {
        Asked::Send(said) => {
            Said::Send { text: said.text, attachments: said.attachments.into_iter().map(attachment).collect() }
        }
        Asked::Edit(edited) => Said::Edit { message: edited.message, text: edited.text },
        Asked::Retry => Said::Retry,
    }
}

/// As HTTP takes it.
fn attachment(one: Attachment) -> Value {
    json!({ "name": one.name, "media_type": one.media_type, "data": BASE64.encode(one.data) })
}

fn text(shown: &Value, key: &str) -> Option<String> {
    shown[key].as_str().map(str::to_owned)
}

fn some(shown: &Value, key: &str) -> String {
    text(shown, key).unwrap_or_default()
}

fn time_ms(shown: &Value, key: &str) -> u64 {
    shown[key].as_str().and_then(parse_rfc3339).unwrap_or(0).max(0).unsigned_abs()
}

fn trust(shown: &Value) -> aman_plugin_host::Trust {
    trust_of(shown["trust"].as_str().and_then(Trust::of_name).unwrap_or_default())
}

fn agent(shown: &Value) -> AgentShown {
    AgentShown {
        id: some(shown, "id"),
        status: match shown["status"].as_str() {
            Some("busy") => AgentStatus::Busy,
            Some("error") => AgentStatus::Error,
            Some("disabled") => AgentStatus::Disabled,
            _ => AgentStatus::Idle,
        },
        description: some(shown, "description"),
        model: some(shown, "model"),
        trust: trust(shown),
        digest: some(shown, "digest"),
        updated_ms: time_ms(shown, "updated_at"),
        extensions: Vec::new(),
    }
}

fn session(shown: &Value) -> Session {
    Session {
        id: some(shown, "id"),
        agent: some(shown, "agent_id"),
        title: text(shown, "title"),
        state: match shown["state"].as_str() {
            Some("running") => SessionState::Running,
            Some("waiting") => SessionState::Waiting,
            Some("closed") => SessionState::Closed,
            _ => SessionState::Idle,
        },
        version: shown["version"].as_u64().unwrap_or(0),
        messages: shown["message_count"].as_u64().unwrap_or(0),
        trust: trust(shown),
        created_ms: time_ms(shown, "created_at"),
        updated_ms: time_ms(shown, "updated_at"),
        extensions: Vec::new(),
    }
}

fn message(shown: &Value) -> Message {
    const FIELDS: [&str; 6] = ["id", "role", "text", "parent_id", "trust", "created_at"];
    let more = shown.as_object().into_iter().flatten().filter(|(name, _)| !FIELDS.contains(&name.as_str()));
    let more: serde_json::Map<String, Value> = more.map(|(name, value)| (name.clone(), value.clone())).collect();
    Message {
        id: some(shown, "id"),
        role: match shown["role"].as_str() {
            Some("assistant") => Role::Assistant,
            Some("tool") => Role::Tool,
            _ => Role::User,
        },
        text: some(shown, "text"),
        parent: text(shown, "parent_id"),
        more: Value::Object(more).to_string(),
        trust: trust(shown),
        created_ms: time_ms(shown, "created_at"),
        extensions: Vec::new(),
    }
}

fn answer(turn: TurnInfo, outcome: &Value) -> TurnAnswer {
    let error = &outcome["error"];
    TurnAnswer {
        turn,
        outcome: match outcome["status"].as_str() {
            Some("done") => TurnOutcome::Done,
            Some("stopped") => TurnOutcome::Stopped,
            _ => TurnOutcome::Failed,
        },
        text: some(outcome, "text"),
        message: text(outcome, "message_id"),
        failure: error.is_object().then(|| TurnFailure { code: some(error, "code"), detail: some(error, "detail") }),
        extensions: Vec::new(),
    }
}
