//! One provider at work: a question, and its answer as it streams in.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::de::IgnoredAny;
use tokio::time::{Instant, timeout_at};

use super::dialects::{self, Frames, Quirks};
use super::draft::Draft;
use super::error::{ErrorKind, ModelError};
use super::{Answer, Delta, Request, script};
use crate::clock::Clock;
use crate::config::models::{self, Dialect, ProviderKind};
use crate::egress::{Ask, Egress, Leg, Method, Streamed, Url};

/// Longest answer on the wire, in bytes; each token may come in some hundred of them.
const STREAM_BYTES_MAX: usize = 128 << 20;
/// What is read of an error, and how long that may take.
const ERROR_BYTES_MAX: usize = 64 << 10;
const ERROR_WAIT: Duration = Duration::from_secs(5);
/// How long the counts may take that follow a finished answer.
const COUNTS_WAIT: Duration = Duration::from_secs(3);
/// How long one answer may take, however lively it is.
const ANSWER_WAIT: Duration = Duration::from_secs(1800);
/// How long a provider may take to say that it is there.
const PROBE_WAIT: Duration = Duration::from_secs(10);
/// Models whose quirks are remembered.
const QUIRKS_MAX: usize = 1000;
/// What a local model looks at unless its owner says more.
const LOCAL_WINDOW: usize = 8_192;

/// Who offers models, with what was learned of it.
#[derive(Debug)]
pub struct Provider {
    /// As it is configured.
    pub config: models::Provider,
    quirks: Mutex<BTreeMap<String, Quirks>>,
    failed: script::Failed,
}

/// One question.
pub struct Asking<'a> {
    /// The way out.
    pub egress: &'a Egress,
    /// The provider's id.
    pub provider: &'a str,
    /// The model, without the provider.
    pub model: &'a str,
    /// What is asked.
    pub request: &'a Request,
    /// How long the first token may take.
    pub first: Duration,
    /// How long each further token may take.
    pub between: Duration,
}

impl Asking<'_> {
    /// `provider/model`.
    pub fn id(&self) -> String {
        format!("{}/{}", self.provider, self.model)
    }
}

/// How an API is reached.
struct Http<'a> {
    dialect: Dialect,
    url: &'a Url,
    headers: Vec<(String, String)>,
    private: bool,
}

impl Http<'_> {
    fn ask(&self, method: Method, path: &str, body: Bytes, bytes_max: usize) -> Result<(Ask, Leg), ModelError> {
        let place = format!("{}{path}", self.url.to_string().trim_end_matches('/'));
        let url =
            Url::parse(&place).map_err(|why| ModelError::new(ErrorKind::Invalid, format!("Its address {why}")))?;
        let ask = Ask {
            method,
            url,
            headers: vec![("content-type".to_owned(), "application/json".to_owned())],
            body,
            bytes_max,
            // Whoever asks has a limit of its own.
            time_max: Duration::from_secs(86_400),
            redirects_max: 0,
        };
        Ok((ask, Leg { headers: self.headers.clone(), private: self.private }))
    }
}

impl Provider {
    /// A provider that nobody asked yet.
    pub fn new(config: models::Provider) -> Provider {
        Provider { config, quirks: Mutex::default(), failed: script::Failed::default() }
    }

    /// Tokens that its models may look at.
    pub fn window(&self) -> usize {
        let usual = match &self.config.kind {
            ProviderKind::Script { .. } => 32_768,
            ProviderKind::Http { dialect: Dialect::Anthropic, .. } => 200_000,
            ProviderKind::Http { dialect: Dialect::Gemini, .. } => 1_000_000,
            ProviderKind::Http { dialect: Dialect::OpenAi, url, .. } if url.is_tls() => 128_000,
            ProviderKind::Http { .. } => LOCAL_WINDOW,
        };
        self.config.window.unwrap_or(usual)
    }

    fn http(&self) -> Option<Http<'_>> {
        let ProviderKind::Http { dialect, url, key, headers, private } = &self.config.kind else { return None };
        let mut all = dialects::headers(*dialect, key.as_ref().map(|key| key.expose()));
        all.extend(headers.iter().map(|(name, value)| (name.clone(), value.expose().to_owned())));
        Some(Http { dialect: *dialect, url, headers: all, private: *private })
    }

    /// Asks once; tells what comes, as it comes. Dropping this ends the connection.
    pub async fn ask(&self, asking: &Asking<'_>, tell: &mut (dyn FnMut(Delta) + Send)) -> Result<Answer, ModelError> {
        match (&self.config.kind, self.http()) {
            (ProviderKind::Script { path }, _) => script::answer(path, &self.failed, asking, tell).await,
            (_, Some(http)) => self.over_http(&http, asking, tell).await,
            (ProviderKind::Http { .. }, None) => Err(ModelError::new(ErrorKind::Invalid, "It cannot be asked.")),
        }
    }

    async fn over_http(
        &self,
        http: &Http<'_>,
        asking: &Asking<'_>,
        tell: &mut (dyn FnMut(Delta) + Send),
    ) -> Result<Answer, ModelError> {
        let deadline = Instant::now() + asking.first;
        loop {
            let quirks = self.quirks(asking.model);
            let body = dialects::body(http.dialect, asking.model, asking.request, quirks, Some(self.window()));
            let path = dialects::path(http.dialect, asking.model);
            let (ask, leg) = http.ask(Method::POST, &path, body.to_string().into(), STREAM_BYTES_MAX)?;
            let opened = timeout_at(deadline, asking.egress.open(ask, leg)).await.map_err(|_| late(asking.first))?;
            let streamed = opened.map_err(|error| ModelError::of_egress(&error))?;
            if streamed.head.is_success() {
                return listen(http.dialect, streamed, deadline, asking, tell).await;
            }
            let (status, retry_after) = (streamed.head.status, streamed.head.retry_after(Clock::System.now_ms()));
            let said = start_of(streamed).await;
            match quirks.learn(status, &said).filter(|_| http.dialect == Dialect::OpenAi) {
                Some(learned) => self.learn(asking.model, learned),
                None => return Err(ModelError::of_status(status, &said, retry_after)),
            }
        }
    }

    fn quirks(&self, model: &str) -> Quirks {
        self.quirks.lock().unwrap_or_else(PoisonError::into_inner).get(model).copied().unwrap_or_default()
    }

    fn learn(&self, model: &str, learned: Quirks) {
        let mut quirks = self.quirks.lock().unwrap_or_else(PoisonError::into_inner);
        if quirks.len() >= QUIRKS_MAX {
            quirks.clear();
        }
        quirks.insert(model.to_owned(), learned);
    }

    /// Whether it is there and lets us in; costs no tokens.
    pub async fn probe(&self, egress: &Egress) -> Result<(), ModelError> {
        let Some(http) = self.http() else {
            let ProviderKind::Script { path } = self.config.kind.clone() else { return Ok(()) };
            let checked = tokio::task::spawn_blocking(move || script::check(&path)).await;
            return checked.map_err(|error| ModelError::new(ErrorKind::Broken, error.to_string()))?;
        };
        let path = dialects::listing(http.dialect);
        let (ask, leg) = http.ask(Method::GET, path, Bytes::new(), ERROR_BYTES_MAX)?;
        let opened = tokio::time::timeout(PROBE_WAIT, egress.open(ask, leg)).await.map_err(|_| late(PROBE_WAIT))?;
        let streamed = opened.map_err(|error| ModelError::of_egress(&error))?;
        let status = streamed.head.status;
        // Some servers answer questions and list nothing.
        if streamed.head.is_success() || status == 404 || status == 405 {
            return Ok(());
        }
        Err(ModelError::of_status(status, &start_of(streamed).await, None))
    }
}

fn late(wait: Duration) -> ModelError {
    ModelError::new(ErrorKind::Timeout, format!("No token came within {} s.", wait.as_secs_f64()))
}

/// The beginning of what an error says.
async fn start_of(mut streamed: Streamed) -> Vec<u8> {
    let (mut said, deadline) = (Vec::new(), Instant::now() + ERROR_WAIT);
    while said.len() < ERROR_BYTES_MAX
        && let Ok(Ok(Some(bytes))) = timeout_at(deadline, streamed.next()).await
    {
        said.extend_from_slice(&bytes);
    }
    said.truncate(ERROR_BYTES_MAX);
    said
}

/// Reads an answer to its end, and tells of it while it comes.
async fn listen(
    dialect: Dialect,
    mut streamed: Streamed,
    mut deadline: Instant,
    asking: &Asking<'_>,
    tell: &mut (dyn FnMut(Delta) + Send),
) -> Result<Answer, ModelError> {
    let last = Instant::now() + ANSWER_WAIT;
    let (mut frames, mut draft, mut waited) = (Frames::of(&streamed.head), Draft::default(), asking.first);
    while !draft.is_ended() {
        let bytes = match timeout_at(deadline, streamed.next()).await {
            Ok(Ok(Some(bytes))) => bytes,
            Ok(Ok(None)) => break,
            // What is missing is no part of the answer.
            Ok(Err(_)) | Err(_) if draft.stop.is_some() => break,
            Ok(Err(error)) => return Err(ModelError::of_egress(&error)),
            Err(_) => return Err(late(waited)),
        };
        for document in frames.feed(&bytes)? {
            dialects::read(dialect, &document, &mut draft)?;
            draft.take_news().into_iter().for_each(&mut *tell);
        }
        // Signs of life without a token do not count: a provider could give them for ever.
        if draft.take_life() {
            waited = asking.between;
            deadline = last.min(Instant::now() + waited);
        }
        if draft.stop.is_some() {
            deadline = deadline.min(Instant::now() + COUNTS_WAIT);
        }
    }
    // Half a document is what a broken connection leaves; that the answer has no end is told below.
    let is_whole = |text: &String| text.trim() == "[DONE]" || serde_json::from_str::<IgnoredAny>(text).is_ok();
    if let Some(document) = frames.rest().filter(|text| !draft.is_ended() && is_whole(text)) {
        dialects::read(dialect, &document, &mut draft)?;
        draft.take_news().into_iter().for_each(&mut *tell);
    }
    draft.finish(&asking.id(), asking.request)
}
