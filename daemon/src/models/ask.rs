//! Asks until somebody answers: again after a while, then whoever is next.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::error::{ErrorKind, ModelError};
use super::provider::{Asking, Provider};
use super::registry::{Models, State};
use super::{Answer, Delta, Request};
use crate::redact;

/// The first wait before a model is asked again; it doubles.
const WAIT_FIRST: Duration = Duration::from_millis(500);
const WAIT_MAX: Duration = Duration::from_secs(10);
/// Who is asked to wait longer asks another model, or tells how long.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

/// Passes on what comes, without secrets, and takes it back when it is void.
struct Telling<'a> {
    on: &'a mut (dyn FnMut(Delta) + Send),
    words: redact::Pieces,
    /// True when something was told that nothing took back.
    told: bool,
}

impl Telling<'_> {
    fn tell(&mut self, delta: Delta) {
        let delta = match delta {
            Delta::Text(text) => Delta::Text(self.words.add(&text)),
            other => other,
        };
        if delta != Delta::Text(String::new()) {
            self.told = true;
            (self.on)(delta);
        }
    }

    /// Tells what was held back, and takes secrets out of the whole answer.
    fn end(&mut self, mut answer: Answer) -> Answer {
        let rest = self.words.end();
        if !rest.is_empty() {
            (self.on)(Delta::Text(rest));
        }
        redact::string(&mut answer.text);
        for call in &mut answer.calls {
            redact::string(&mut call.id);
            redact::string(&mut call.name);
            redact::value(&mut call.arguments);
        }
        answer
    }

    /// What was told is void.
    fn restart(&mut self) {
        self.words = redact::Pieces::default();
        if std::mem::take(&mut self.told) {
            (self.on)(Delta::Restart);
        }
    }
}

impl Models {
    /// Asks, and gives the whole answer; `on` is told of it while it comes. Who does not answer is asked again, and after
    /// that the next of the chain is. Ends at once with `cancel`; what was told until then stands.
    pub async fn ask(
        &self,
        request: Request,
        on: &mut (dyn FnMut(Delta) + Send),
        cancel: &CancellationToken,
    ) -> Result<Answer, ModelError> {
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(ModelError::cancelled()),
            answer = self.ask_chain(&request, on, usize::MAX) => answer,
        }
    }

    /// Asks one model once, and nobody else: whether it answers.
    pub async fn try_one(&self, request: Request, on: &mut (dyn FnMut(Delta) + Send)) -> Result<Answer, ModelError> {
        self.ask_chain(&request, on, 1).await
    }

    /// Asks at most so many models; a single one is asked only once.
    async fn ask_chain(
        &self,
        request: &Request,
        on: &mut (dyn FnMut(Delta) + Send),
        models_max: usize,
    ) -> Result<Answer, ModelError> {
        let state = self.state().await;
        let mut chain = state.chain(&request.model, &request.fallback)?;
        chain.truncate(models_max);
        let retries_max = if models_max == 1 { 0 } else { state.config.max_retries };
        let (mut telling, mut failed) = (Telling { on, words: redact::Pieces::default(), told: false }, Vec::new());
        for (provider, model) in &chain {
            telling.restart();
            match self.ask_model(&state, (provider, model), request, &mut telling, retries_max).await {
                Ok(answer) => {
                    self.shared.last.answered();
                    return Ok(telling.end(answer));
                }
                Err(error) => {
                    let (id, kind) = (format!("{}/{model}", provider.config.id), error.kind);
                    tracing::warn!(model = id, kind = kind.name(), error = error.detail, "A model did not answer.");
                    failed.push((id, error));
                    // A provider that holds an answer back is not gone round.
                    if kind == ErrorKind::Filtered {
                        break;
                    }
                }
            }
        }
        self.search_again(&state);
        Err(together(failed))
    }

    async fn ask_model(
        &self,
        state: &Arc<State>,
        (provider, model): (&Provider, &str),
        request: &Request,
        telling: &mut Telling<'_>,
        retries_max: u32,
    ) -> Result<Answer, ModelError> {
        let asking = Asking {
            egress: &self.shared.egress,
            provider: &provider.config.id,
            model,
            request,
            first: state.config.first_token_timeout,
            between: state.config.token_timeout,
        };
        let mut retries = 0;
        loop {
            let error = match provider.ask(&asking, &mut |delta| telling.tell(delta)).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let wait = backoff(retries).max(error.retry_after.unwrap_or_default());
            if !error.kind.may_pass() || retries >= retries_max || wait > RETRY_AFTER_MAX {
                return Err(error);
            }
            retries += 1;
            let (id, wait_ms) = (asking.id(), u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
            tracing::info!(model = id, retries, wait_ms, error = error.detail, "A model is asked again.");
            telling.restart();
            sleep(wait).await;
        }
    }
}

/// How long to wait before a model is asked again for the `retries`th time: doubling, and up to a half more, so that those
/// who were refused together do not come back together.
fn backoff(retries: u32) -> Duration {
    let wait = WAIT_FIRST.saturating_mul(2_u32.saturating_pow(retries)).min(WAIT_MAX);
    wait.mul_f64(1.0 + fastrand::f64() / 2.0)
}

/// Why nobody of the chain answered: the kind is the first one's, who was the one that was wanted.
fn together(failed: Vec<(String, ModelError)>) -> ModelError {
    let said: Vec<String> = failed.iter().map(|(id, error)| format!("{id}: {}", error.detail)).collect();
    let retry_after = failed.iter().filter_map(|(_, error)| error.retry_after).min();
    let kind = failed.first().map_or(ErrorKind::None, |(_, error)| error.kind);
    ModelError { retry_after, ..ModelError::new(kind, said.join(" ")) }
}
