//! Asking the model once: what it is shown, what that may cost, and what came of it, which is in the journal before anything
//! follows from it.

use std::time::Instant;

use serde_json::json;

use super::context;
use super::frames::Kind as FrameKind;
use super::turn::{End, Fault, Turn};
use crate::budget::{Budget, Scopes};
use crate::event::Trust;
use crate::models::{self, Answer, Delta, ErrorKind, ModelError, Request, ToolSpec, Usage};
use crate::store::turns::{self, Kind, StepStatus};

/// Tokens of an answer, where the agent does not say.
const ANSWER_TOKENS: usize = 4096;
/// How often the view is made half as large when a model finds it too long.
const SHRINKS: u32 = 3;

impl Turn {
    /// The model's next answer: out of the journal, or new and then in it.
    pub(super) async fn answer(&mut self) -> Result<Answer, End> {
        if let Some(step) = self.journal.pop_front() {
            self.next += 1;
            let answer: Answer = serde_json::from_value(step.body["answer"].clone()).map_err(|error| {
                End::Failed(Fault::new("journal_broken", format!("Step {} cannot be read: {error}", step.number)))
            })?;
            let trust = step.body["trust"].as_str().and_then(Trust::of_name).unwrap_or_default();
            self.trust = self.trust.min(trust);
            self.frames.words(&answer.text);
            return Ok(answer);
        }
        let mut shrinks = 0;
        loop {
            if let Some(end) = self.ended() {
                return Err(end);
            }
            match self.ask(shrinks).await {
                Err(End::Failed(fault)) if fault.code == "model_too_long" && shrinks < SHRINKS => shrinks += 1,
                other => return other,
            }
        }
    }

    async fn ask(&mut self, shrinks: u32) -> Result<Answer, End> {
        let parts = self.inner.parts.clone();
        let tools: Vec<ToolSpec> = parts
            .tools
            .list_for(&self.policy, self.trust)
            .into_iter()
            .map(|tool| ToolSpec { name: tool.name, description: tool.description, schema: tool.schema })
            .collect();
        let number = self.next;
        let key = self.key(number);
        let mut request = self.request(self.definition.model.clone(), tools, shrinks);
        let (input, output) = (request.tokens(), request.max_tokens.map_or(ANSWER_TOKENS as u64, u64::from));
        let price = parts.models.dearest(&request.model, &request.fallback);
        let micros = price.map_or(0, |price| Usage { input, output, ..Usage::default() }.cost(&price));
        let scopes = Scopes {
            agent: self.row.agent.clone(),
            session: Some(self.row.session_id.clone()),
            job: self.job.clone(),
            limits: self.definition.budget.clone(),
        };
        let reserved = parts
            .budget
            .reserve(&key, &scopes, input + output, micros)
            .await
            .map_err(|error| End::Failed(Fault { again: true, ..Fault::new("storage", error.to_string()) }))?;
        match reserved {
            Err(over) => return Err(End::Failed(Fault::new("over_budget", over.to_string()))),
            Ok(reserved) if reserved.soft => {
                if let Some(cheaper) = parts.models.cheaper(&request.model) {
                    request = self.request(cheaper, request.tools, shrinks);
                }
            }
            Ok(_) => {}
        }
        let model = request.model.clone();
        let asked = self.listen(request).await;
        match asked {
            Ok(answer) => self.answered(number, key, answer).await,
            Err(end) => {
                // A refusal costs nothing; what was cut off was read, and answered as far as it came.
                let was_read = match &end {
                    End::Failed(fault) => matches!(fault.code, "turn_timeout" | "model_timeout"),
                    _ => true,
                };
                let input = if was_read || !self.partial.is_empty() { Some(input) } else { None };
                self.give_back(&key, &model, input).await;
                Err(end)
            }
        }
    }

    /// What the model is asked, as large as its window and `shrinks` let it be.
    fn request(&self, model: String, tools: Vec<ToolSpec>, shrinks: u32) -> Request {
        let window = self.inner.parts.models.window(&model) >> shrinks;
        let answer = self.definition.max_tokens.map_or(ANSWER_TOKENS, |tokens| tokens as usize).min(window / 4);
        let mut request = Request {
            model,
            fallback: self.definition.fallback.clone(),
            system: self.system.clone(),
            messages: Vec::new(),
            tools,
            max_tokens: self.definition.max_tokens,
            temperature: self.definition.temperature,
        };
        let fixed = usize::try_from(request.tokens()).unwrap_or(usize::MAX);
        let room = window.saturating_sub(answer).saturating_sub(fixed).max(window / 8);
        request.messages = context::fit(&self.said, self.own, room);
        request
    }

    /// Asks, and tells of the words as they come.
    async fn listen(&mut self, request: Request) -> Result<Answer, End> {
        let (begun, frames, mut partial) = (Instant::now(), self.frames.clone(), String::new());
        let mut on = |delta: Delta| match delta {
            Delta::Text(text) => {
                frames.words(&text);
                partial.push_str(&text);
            }
            // It is told with its arguments, once they are whole.
            Delta::Call { .. } => {}
            Delta::Restart => {
                partial.clear();
                frames.emit(FrameKind::Restart, json!({}));
            }
        };
        let models = self.inner.parts.models.clone();
        let asked = tokio::time::timeout(self.left, models.ask(request, &mut on, &self.cancel)).await;
        self.partial = partial;
        self.worked(begun);
        match asked {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) if error.kind == ErrorKind::Cancelled => Err(self.ended().unwrap_or(End::Cut)),
            Ok(Err(error)) => Err(End::Failed(fault(error))),
            Err(_) => Err(self.too_long()),
        }
    }

    /// Writes an answer to the journal, with what it cost.
    async fn answered(&mut self, number: i64, key: String, answer: Answer) -> Result<Answer, End> {
        let price = self.inner.parts.models.price(&answer.model);
        let micros = price.map_or(0, |price| answer.usage.cost(&price));
        let body = json!({ "answer": answer, "micros": micros, "trust": self.trust.name() });
        let step = self.step(number, Kind::Answer, &answer.model, StepStatus::Done, body);
        let (turn, usage, now_ms) = (self.row.number, answer.usage, self.inner.now_ms());
        let write = move |tx: &mut crate::store::Tx<'_>| {
            turns::run(tx, turn, now_ms)?;
            turns::write_step(tx, turn, &step)?;
            Budget::settle_in(tx, &key, usage, micros).map(drop)
        };
        self.inner.keep(&self.cancel, write).await.ok_or(End::Cut)?;
        self.next += 1;
        Ok(answer)
    }

    /// Settles what was reserved for an answer that did not come: nothing, or the `input` that the model has read and what
    /// had come of its answer.
    async fn give_back(&self, key: &str, model: &str, input: Option<u64>) {
        let budget = &self.inner.parts.budget;
        let settled = match input {
            None => budget.release(key).await,
            Some(input) => {
                let price = self.inner.parts.models.price(model);
                let output = models::estimate(&self.partial);
                let usage = Usage { input, output, estimated: true, ..Usage::default() };
                budget.settle(key, usage, price.map_or(0, |price| usage.cost(&price))).await
            }
        };
        if let Err(error) = settled {
            tracing::debug!(%error, "What was reserved for a call counts until the next start.");
        }
    }
}

/// Why there is no answer, in words for the person.
fn fault(error: ModelError) -> Fault {
    let (code, says) = match error.kind {
        ErrorKind::None => ("no_model", ""),
        ErrorKind::Auth => ("model_auth", "The provider of the model does not let aman in; look at its key. "),
        ErrorKind::Overloaded => ("model_overloaded", "The model has too much to do; try again later. "),
        ErrorKind::Timeout => ("model_timeout", "The model did not answer in time. "),
        ErrorKind::Broken => ("model_broken", "The model could not be reached, or broke off. "),
        ErrorKind::TooLong => ("model_too_long", "This is longer than the model can look at. "),
        ErrorKind::Filtered => ("filtered", "The provider of the model does not want to answer that. "),
        ErrorKind::Cancelled => ("stopped", "It was stopped. "),
        ErrorKind::Invalid => ("model_invalid", "The model cannot be asked like that; look at the name of the model. "),
    };
    Fault { code, detail: format!("{says}{}", error.detail), again: error.kind.may_pass(), after: error.retry_after }
}
