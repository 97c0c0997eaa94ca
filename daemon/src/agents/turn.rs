//! A turn, from the message to the answer: the model is asked, what it asks for is done, and it is asked again. Each step is
//! in the journal before the next one begins; what is there already is not done again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::frames::{Kind as FrameKind, TurnFrames};
use super::{Definition, Inner};
use crate::bus::StateWrite;
use crate::error::Error;
use crate::event::{Event, Trust};
use crate::id::TraceId;
use crate::models::{Answer, Message, Stop, ToolCall, Usage};
use crate::registry::Schema;
use crate::store::chat::{Body, Role};
use crate::store::turns::{Kind, StepRow, StepStatus, TurnRow, write_step};
use crate::store::{Tx, audit};
use crate::tools::{Call, Caller, Notice, Output, Permission, Policy, ToolFailure, from_outside};

/// What the model is told of a call that a crash cut off.
const UNKNOWN: &str =
    "It was cut off by the end of the daemon, and nobody knows whether it was done. Look before you do it again.";
/// What stands in the transcript for a call that a stop came before.
const NOT_BEGUN: &str = "The turn was stopped before this was done.";
/// How often an answer that does not fit the wanted form is asked for again.
const FORM_TRIES: usize = 2;

/// Why a turn has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// Stable, for programs.
    pub code: &'static str,
    /// For people: what happened, and what to do.
    pub detail: String,
    /// True when it may work later without any change.
    pub again: bool,
    /// When, if somebody said so.
    pub after: Option<Duration>,
}

impl Fault {
    pub fn new(code: &'static str, detail: impl Into<String>) -> Fault {
        Fault { code, detail: detail.into(), again: false, after: None }
    }
}

/// How the work on a turn came to its end.
#[derive(Debug)]
pub(super) enum End {
    /// It has an answer, and its value if a form was wanted.
    Answered(String, Option<Value>),
    /// Somebody stopped it.
    Stopped,
    /// The daemon ends: it goes on with the next start.
    Cut,
    /// It has no answer.
    Failed(Fault),
}

impl End {
    /// The end of a turn that was begun and cut off again and again.
    pub fn too_often() -> End {
        let detail =
            "It was begun often and never came to an end, each time because the daemon ended. Its log says why.";
        End::Failed(Fault::new("interrupted", detail))
    }
}

/// Something that was said in the turn and belongs into the transcript.
#[derive(Debug, Clone)]
pub(super) struct Said {
    pub role: Role,
    pub text: String,
    pub body: Body,
    pub trust: Trust,
}

/// What a turn is taken with.
pub(super) struct Turn {
    pub inner: Arc<Inner>,
    pub definition: Arc<Definition>,
    pub row: TurnRow,
    pub trace: TraceId,
    /// The event whose delivery it is.
    pub cause: Arc<Event>,
    /// What the model is told before everything else.
    pub system: String,
    /// The job that pays for it besides the agent and the session.
    pub job: Option<String>,
    /// The form that the answer must have.
    pub form: Option<Schema>,
    pub policy: Arc<Policy>,
    pub frames: TurnFrames,
    /// Ends the work: a stop, or the end of the daemon.
    pub cancel: CancellationToken,
    /// True when it is a stop.
    pub stopped: Arc<AtomicBool>,
    /// The conversation; from `own` on it is the turn's.
    pub said: Vec<Message>,
    pub own: usize,
    /// What the turn adds to the transcript.
    pub transcript: Vec<Said>,
    /// What the journal has, and was not gone through yet.
    pub journal: VecDeque<StepRow>,
    /// The number of the next step.
    pub next: i64,
    /// The lowest trust of what led to it and of everything that it read.
    pub trust: Trust,
    /// How long it may work.
    pub limit: Duration,
    /// How long it may still work.
    pub left: Duration,
    /// Words of an answer that is on its way.
    pub partial: String,
    /// What all answers took.
    pub usage: Usage,
}

impl Turn {
    /// Takes the turn.
    pub async fn take(&mut self) -> End {
        let mut form_tries = 0;
        loop {
            let is_new = self.journal.is_empty();
            let answer = match self.answer().await {
                Ok(answer) => answer,
                Err(end) => return end,
            };
            self.says(&answer);
            for (n, call) in answer.calls.iter().enumerate() {
                if let Err(end) = self.call(call).await {
                    self.not_begun(&answer.calls[n..]);
                    return end;
                }
            }
            if !answer.calls.is_empty() {
                continue;
            }
            if answer.stop == Stop::Filtered && answer.text.is_empty() {
                return End::Failed(Fault::new("filtered", "The provider of the model holds this answer back."));
            }
            match self.formed(&answer.text) {
                Ok(value) => return End::Answered(answer.text, value),
                // What the journal has was counted by the attempt that it is of.
                Err(reason) if !is_new || form_tries < FORM_TRIES => {
                    form_tries += usize::from(is_new);
                    let text = format!("That is not the form that is wanted: {reason} Answer with that JSON only.");
                    self.hears(text);
                }
                Err(reason) => {
                    let detail = format!("The model does not answer in the form that is wanted: {reason}");
                    return End::Failed(Fault::new("output_invalid", detail));
                }
            }
        }
    }

    /// Why the work must end now, if it must.
    pub fn ended(&self) -> Option<End> {
        if self.stopped.load(Ordering::Acquire) {
            return Some(End::Stopped);
        }
        if self.cancel.is_cancelled() || self.inner.bus.is_draining() {
            return Some(End::Cut);
        }
        if self.next > i64::try_from(self.definition.max_steps).unwrap_or(i64::MAX) {
            let detail = format!(
                "It took {} steps without coming to an answer; max_steps of the agent says how many it may take.",
                self.definition.max_steps
            );
            return Some(End::Failed(Fault::new("too_many_steps", detail)));
        }
        self.left.is_zero().then(|| self.too_long())
    }

    /// The end of a turn that worked for longer than it may.
    pub fn too_long(&self) -> End {
        let detail = format!(
            "It worked for longer than {} s; turn_timeout of the agent, or aman.timeout of the skill, says how long it may.",
            self.limit.as_secs()
        );
        End::Failed(Fault::new("turn_timeout", detail))
    }

    /// Counts time that was worked.
    pub fn worked(&mut self, since: Instant) {
        self.left = self.left.saturating_sub(since.elapsed());
    }

    /// The key of a step, the same whenever it is taken up again.
    pub fn key(&self, step: i64) -> String {
        format!("{}/{step}", self.row.id)
    }

    /// Takes an answer of the model up.
    fn says(&mut self, answer: &Answer) {
        self.partial.clear();
        self.usage.input += answer.usage.input;
        self.usage.output += answer.usage.output;
        self.usage.cached += answer.usage.cached;
        self.usage.estimated |= answer.usage.estimated;
        let usage = &answer.usage;
        self.frames.emit(
            FrameKind::Usage,
            json!({ "model": answer.model, "input": usage.input, "output": usage.output, "cached": usage.cached,
                "estimated": usage.estimated }),
        );
        self.said.push(Message::Assistant { text: answer.text.clone(), calls: answer.calls.clone() });
        let body = Body {
            tool_calls: answer.calls.clone(),
            model: Some(answer.model.clone()),
            usage: Some(answer.usage),
            ..Body::default()
        };
        let said = Said { role: Role::Assistant, text: answer.text.clone(), body, trust: self.trust };
        self.transcript.push(said);
    }

    /// Tells the model something that nobody said.
    fn hears(&mut self, text: String) {
        self.said.push(Message::User { text: text.clone(), images: Vec::new() });
        self.transcript.push(Said { role: Role::User, text, body: Body::default(), trust: self.trust });
    }

    /// The value of an answer, if a form is wanted.
    fn formed(&self, text: &str) -> Result<Option<Value>, String> {
        let Some(form) = &self.form else { return Ok(None) };
        let value: Value = crate::event::read_json(unfenced(text).as_bytes()).map_err(|error| format!("{error}."))?;
        match form.check("", "the schema", &value) {
            Ok(()) => Ok(Some(value)),
            Err(error) => Err(error.to_string()),
        }
    }

    /// What came of the calls that a stop came before.
    fn not_begun(&mut self, calls: &[ToolCall]) {
        // Only of this answer: some models count their calls anew in each.
        let own = self.transcript.iter().rev().take_while(|said| said.role == Role::Tool);
        let known: Vec<String> = own.filter_map(|said| said.body.call_id.clone()).collect();
        for call in calls.iter().filter(|call| !known.contains(&call.id)) {
            self.results(call, NOT_BEGUN.to_owned(), true, Trust::Owner);
        }
    }

    /// Has a call done, unless the journal knows what came of it.
    async fn call(&mut self, call: &ToolCall) -> Result<(), End> {
        let arguments = call.arguments.clone();
        self.frames.emit(FrameKind::ToolCall, json!({ "id": call.id, "name": call.name, "arguments": arguments }));
        let number = self.next;
        if let Some(step) = self.journal.pop_front() {
            self.next += 1;
            if step.status != StepStatus::Begun {
                let (text, trust) = (step.body["text"].as_str().unwrap_or_default(), &step.body["trust"]);
                let trust = trust.as_str().and_then(Trust::of_name).unwrap_or_default();
                self.results(call, text.to_owned(), step.status != StepStatus::Done, trust);
                return Ok(());
            }
            let tools = &self.inner.parts.tools;
            if !tools.may_repeat(&call.name, &self.key(number)).await {
                let record = tools.cut_off(&self.made(call, number)).await;
                let step = self.ended_step(number, call, StepStatus::Unknown, UNKNOWN, Trust::Owner);
                self.write_with(step, move |tx| audit::append(tx, &record).map(drop)).await?;
                self.results(call, UNKNOWN.to_owned(), true, Trust::Owner);
                return Ok(());
            }
            self.next = number;
        }
        if let Some(end) = self.ended() {
            return Err(end);
        }
        if !self.is_repeatable(&call.name) {
            self.write(self.step(number, Kind::Tool, &call.name, StepStatus::Begun, json!({ "call": call }))).await?;
        }
        self.next += 1;
        // What a call came to that the end of the daemon cut off is found out by the next start.
        let (done, stored) = self.run(call, number).await.ok_or(End::Cut)?;
        let (status, text, trust) = told(done, &call.name, self.permission(&call.name));
        if !stored {
            self.write(self.ended_step(number, call, status, &text, trust)).await?;
        }
        self.results(call, text, status != StepStatus::Done, trust);
        self.ended().filter(|end| !matches!(end, End::Failed(_))).map_or(Ok(()), Err)
    }

    fn is_repeatable(&self, tool: &str) -> bool {
        self.inner.parts.tools.get(tool).is_some_and(|known| known.repeatable)
    }

    /// What a tool can do; none when it is gone.
    fn permission(&self, tool: &str) -> Option<Permission> {
        self.inner.parts.tools.get(tool).map(|tool| tool.permission)
    }

    /// Makes the call; none when the end of the daemon cut it off. What came of it is in the journal with the call's record in
    /// the audit log, if that is true. Time in which it waits for an approval does not count, and a daemon that ends does not
    /// wait for one.
    async fn run(&mut self, call: &ToolCall, number: i64) -> Option<(Result<Output, ToolFailure>, bool)> {
        let made = self.made(call, number);
        let (mut begun, asks, asked) = (Instant::now(), Arc::new(AtomicBool::new(false)), Arc::new(Notify::new()));
        let notice = asking(self.frames.clone(), Arc::clone(&asks), Arc::clone(&asked));
        let (tools, cancel, late_now) = (&self.inner.parts.tools, self.cancel.child_token(), AtomicBool::new(false));
        let again = self.is_repeatable(&call.name);
        let cut = |done: &Result<Output, ToolFailure>| {
            let ends = cancel.is_cancelled() && !late_now.load(Ordering::Acquire);
            // What had begun and must not be done twice has come to that: nobody will know more of it.
            let lost = matches!(done, Err(ToolFailure::Unknown(_))) && !again;
            ends && !self.stopped.load(Ordering::Acquire) && done.is_err() && !lost
        };
        let keep = |done: &Result<Output, ToolFailure>| (!cut(done)).then(|| self.kept(call, number, done));
        let stopping = self.inner.bus.stopping();
        let mut calling = Box::pin(tools.call_kept(made, keep, &cancel, &notice));
        let mut late = Box::pin(tokio::time::sleep(self.left));
        let (done, stored) = loop {
            let waits = asks.load(Ordering::Acquire);
            tokio::select! {
                done = &mut calling => break done,
                // An approval that is asked for in this moment is not to be missed.
                () = &mut late, if !waits && !cancel.is_cancelled() => {
                    if asks.load(Ordering::Acquire) {
                        late = Box::pin(tokio::time::sleep(self.left));
                    } else {
                        late_now.store(true, Ordering::Release);
                        cancel.cancel();
                    }
                }
                () = stopping.cancelled(), if waits && !cancel.is_cancelled() => cancel.cancel(),
                () = asked.notified() => if waits && !asks.load(Ordering::Acquire) {
                    // From the person's yes on it works again.
                    begun = Instant::now();
                    late = Box::pin(tokio::time::sleep(self.left));
                },
            }
        };
        drop(calling);
        let cut = cut(&done);
        if !asks.load(Ordering::Acquire) {
            self.worked(begun);
        }
        (!cut).then_some((done, stored))
    }

    /// What goes into the journal of a call that ended.
    fn kept(&self, call: &ToolCall, number: i64, done: &Result<Output, ToolFailure>) -> StateWrite {
        let (status, text, trust) = told(done.clone(), &call.name, self.permission(&call.name));
        let (turn, step) = (self.row.number, self.ended_step(number, call, status, &text, trust));
        Box::new(move |tx| write_step(tx, turn, &step))
    }

    fn made(&self, call: &ToolCall, number: i64) -> Call {
        Call {
            key: self.key(number),
            tool: call.name.clone(),
            arguments: call.arguments.clone(),
            caller: Caller {
                principal: self.row.principal.clone(),
                agent: Some(self.row.agent.clone()),
                session: Some(self.row.session_id.clone()),
                trust: self.trust,
                trace: self.trace,
                cause: Some(Arc::clone(&self.cause)),
                policy: Arc::clone(&self.policy),
            },
        }
    }

    /// Takes up what came of a call.
    fn results(&mut self, call: &ToolCall, text: String, is_error: bool, trust: Trust) {
        self.trust = self.trust.min(trust);
        self.frames.emit(
            FrameKind::ToolResult,
            json!({ "id": call.id, "name": call.name, "text": text, "is_error": is_error }),
        );
        self.said.push(Message::Tool {
            call_id: call.id.clone(),
            name: call.name.clone(),
            text: text.clone(),
            is_error,
        });
        let body = Body { call_id: Some(call.id.clone()), tool: Some(call.name.clone()), is_error, ..Body::default() };
        self.transcript.push(Said { role: Role::Tool, text, body, trust });
    }

    /// A step that begins now.
    pub fn step(&self, number: i64, kind: Kind, name: &str, status: StepStatus, body: Value) -> StepRow {
        let now_ms = self.inner.now_ms();
        let ended_ms = (status != StepStatus::Begun).then_some(now_ms);
        StepRow { number, kind, name: name.to_owned(), status, body, started_ms: now_ms, ended_ms }
    }

    fn ended_step(&self, number: i64, call: &ToolCall, status: StepStatus, text: &str, trust: Trust) -> StepRow {
        let body = json!({ "call": call, "text": text, "trust": trust.name() });
        self.step(number, Kind::Tool, &call.name, status, body)
    }

    /// Writes a step to the journal; waits for a disk that takes nothing.
    pub async fn write(&self, step: StepRow) -> Result<(), End> {
        self.write_with(step, |_| Ok(())).await
    }

    /// As [`Turn::write`], together with something else.
    async fn write_with<F>(&self, step: StepRow, more: F) -> Result<(), End>
    where
        F: Fn(&mut Tx<'_>) -> Result<(), Error> + Send + Sync + 'static,
    {
        let turn = self.row.number;
        let write = move |tx: &mut Tx<'_>| {
            more(tx)?;
            write_step(tx, turn, &step)
        };
        self.inner.keep(&self.cancel, write).await.ok_or(End::Cut)
    }
}

/// Tells that a call waits for the person, and notes how long it does.
fn asking(frames: TurnFrames, asks: Arc<AtomicBool>, asked: Arc<Notify>) -> impl Fn(Notice) + Send + Sync {
    move |notice: Notice| {
        asks.store(matches!(notice, Notice::Asks(_)), Ordering::Release);
        asked.notify_one();
        let Notice::Asks(pending) = notice else { return };
        let mut data = json!(pending);
        data["auth_id"] = data["id"].clone();
        frames.emit(FrameKind::ApprovalRequired, data);
    }
}

/// What came of a call, in words for a model, and how far they are believed. They are marked like everything that comes from
/// outside.
fn told(done: Result<Output, ToolFailure>, name: &str, tool: Option<Permission>) -> (StepStatus, String, Trust) {
    let trust = match &done {
        Ok(output) => output.trust,
        Err(failure) => failure.trust(tool),
    };
    let says = |why: String| from_outside(name, trust, why);
    let (status, text) = match done {
        Ok(output) => (StepStatus::Done, output.text),
        Err(ToolFailure::Arguments(pointer, why)) => {
            let place = if pointer.is_empty() { "arguments".to_owned() } else { pointer };
            let why = says(format!("{place}: {why}"));
            (StepStatus::Failed, format!("The arguments are wrong; nothing was done. {why}"))
        }
        Err(ToolFailure::Refused(code, why)) => (StepStatus::Failed, format!("Refused ({code}): {}", says(why))),
        Err(ToolFailure::Failed(why)) => (StepStatus::Failed, format!("It failed: {}", says(why))),
        Err(ToolFailure::Unknown(why)) => {
            let why = says(why);
            let text = format!("Nobody knows whether it was done: {why} Look before you do it again.");
            (StepStatus::Unknown, text)
        }
    };
    (status, text, trust)
}

/// A text without the fence that models like to put around JSON.
fn unfenced(text: &str) -> &str {
    let text = text.trim();
    let inner =
        text.strip_prefix("```json").or_else(|| text.strip_prefix("```")).and_then(|rest| rest.strip_suffix("```"));
    inner.unwrap_or(text).trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_may_have_written_is_not_believed() {
        let refused = |code| Err(ToolFailure::Refused(code, String::new()));
        let arguments = || Err(ToolFailure::Arguments(String::new(), String::new()));
        let failed = || Err(ToolFailure::Failed(String::new()));
        for (done, tool, wanted) in [
            (refused("host_not_granted"), Some(Permission::Net), Trust::Web),
            (refused("plugin_denied"), Some(Permission::Foreign), Trust::Web),
            (refused("plugin_denied"), None, Trust::Web),
            (refused("no_approver"), Some(Permission::Foreign), Trust::Owner),
            (refused("tool_unknown"), None, Trust::Owner),
            (arguments(), Some(Permission::Foreign), Trust::Web),
            (arguments(), None, Trust::Web),
            (arguments(), Some(Permission::Net), Trust::Owner),
            (failed(), Some(Permission::Net), Trust::Web),
            (failed(), None, Trust::Web),
            (failed(), Some(Permission::Read), Trust::Owner),
        ] {
            let (_, text, trust) = told(done.clone(), "x", tool);
            assert_eq!(trust, wanted, "{done:?} of {tool:?}");
            assert_eq!(text.contains("comes from outside (x, "), wanted == Trust::Web, "{text}");
        }
    }
}
