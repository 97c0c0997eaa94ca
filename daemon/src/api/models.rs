//! Language models: listed and tried.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::body::{self, Reply};
use super::problem::Problem;
use super::query::Query;
use super::{App, Call};
use crate::error::Error;
use crate::models::{Candidate, Delta, ErrorKind, Message, ModelError, Request};

/// What is asked when the caller has no question.
const PROMPT: &str = "Answer with the word ready.";
/// Longest question, in bytes.
const PROMPT_BYTES_MAX: usize = 16 << 10;
/// Longest answer to a trial, in tokens.
const TOKENS_MAX: u32 = 512;

/// `GET /models`, by provider.
pub(super) async fn list(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &["limit", "cursor"])?.page("models", app.models.list().await)
}

/// `POST /models/test`: 200 with how it ended, however that was. One model is asked, once.
pub(super) async fn test(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    let mut fields = call.fields().await?;
    let (model, prompt) = (fields.text("model").unwrap_or_default(), fields.text("prompt"));
    fields.done()?;
    let prompt = prompt.unwrap_or_else(|| PROMPT.to_owned());
    if prompt.len() > PROMPT_BYTES_MAX {
        return Err(Error::invalid("prompt", format!("must have at most {PROMPT_BYTES_MAX} bytes.")).into());
    }
    // A secret that was pasted by mistake stays here.
    let prompt = crate::redact::text(&prompt).into_owned();
    let answer = match app.models.resolve(&model).await {
        // Whoever resolves finds one at least.
        Ok(chain) => ask(&app, &chain[0], prompt).await,
        Err(error) if error.kind == ErrorKind::Invalid => return Err(Error::invalid("model", error.detail).into()),
        Err(error) => with_failure(json!({ "model": null }), &error),
    };
    let target = answer["model"].as_str().unwrap_or("none").to_owned();
    let (draft, detail) = (call.draft.clone(), json!({ "outcome": answer["outcome"], "detail": answer["detail"] }));
    app.store.write(move |tx| draft.record(tx, &target, detail)).await?;
    body::ok(&answer)
}

async fn ask(app: &App, model: &Candidate, prompt: String) -> Value {
    let request = Request {
        model: model.id.clone(),
        messages: vec![Message::User { text: prompt, images: Vec::new() }],
        max_tokens: Some(TOKENS_MAX),
        ..Request::default()
    };
    let (begun, mut first_token) = (Instant::now(), None);
    let mut on = |_: Delta| {
        first_token.get_or_insert_with(|| begun.elapsed());
    };
    let outcome = app.models.try_one(request, &mut on).await;
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let mut answer = json!({
        "model": model.id,
        "scripted": model.scripted,
        "first_token_ms": first_token.map(millis),
        "total_ms": millis(begun.elapsed()),
    });
    match outcome {
        Ok(said) => {
            answer["outcome"] = "answered".into();
            answer["text"] = said.text.into();
            answer["usage"] = json!(said.usage);
            answer
        }
        Err(error) => with_failure(answer, &error),
    }
}

fn with_failure(mut answer: Value, error: &ModelError) -> Value {
    answer["outcome"] = "failed".into();
    answer["kind"] = error.kind.name().into();
    answer["detail"] = error.detail.as_str().into();
    answer
}
