//! Whether a model answers. Nobody is asked for that unless somebody wants to know, and then once a minute.

use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use serde::Serialize;
use tokio::sync::Mutex;

use super::error::ErrorKind;
use super::registry::Models;

/// How long an answer counts.
const GOOD_FOR: Duration = Duration::from_secs(60);
/// How long all providers together may take to answer: less than a request may.
const LOOK_WAIT: Duration = Duration::from_secs(25);

/// Whether a model answers. Names no host, path or key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Standing {
    /// True when one answered in the last minute.
    pub ok: bool,
    /// What was found.
    pub detail: String,
}

/// What was found last.
#[derive(Default)]
pub(super) struct Last {
    known: ArcSwapOption<(Instant, Standing)>,
    /// Held by whoever asks.
    asking: Mutex<()>,
}

impl Last {
    /// What was found in the last minute.
    fn fresh(&self) -> Option<Standing> {
        let known = self.known.load_full()?;
        (known.0.elapsed() < GOOD_FOR).then(|| known.1.clone())
    }

    fn set(&self, standing: &Standing) {
        self.known.store(Some((Instant::now(), standing.clone()).into()));
    }

    /// A model answered.
    pub fn answered(&self) {
        self.set(&Standing { ok: true, detail: "a model answers".to_owned() });
    }

    /// Others may be asked from now on.
    pub fn forget(&self) {
        self.known.store(None);
    }
}

impl Models {
    /// What is known without asking anybody; older than a minute it does not count.
    pub fn standing(&self) -> Standing {
        let unknown = || Standing { ok: false, detail: "not asked in the last minute".to_owned() };
        self.shared.last.fresh().unwrap_or_else(unknown)
    }

    /// Whether a provider of the default chain is there and lets us in; asks only when nobody knows since a minute.
    pub async fn probe(&self) -> Standing {
        if let Some(known) = self.shared.last.fresh() {
            return known;
        }
        let _asking = self.shared.last.asking.lock().await;
        if let Some(known) = self.shared.last.fresh() {
            return known;
        }
        // What is not remembered would be asked again at once.
        let late = |_| Standing { ok: false, detail: "the providers do not answer in time".to_owned() };
        let standing = tokio::time::timeout(LOOK_WAIT, self.look()).await.unwrap_or_else(late);
        self.shared.last.set(&standing);
        standing
    }

    async fn look(&self) -> Standing {
        let state = self.state().await;
        let chain = match state.chain("", &[]) {
            Ok(chain) => chain.into_iter().map(|(provider, _)| provider).collect(),
            // Without a default agents may still name models.
            Err(_) => state.providers.clone(),
        };
        let mut why = None;
        for provider in &chain {
            match provider.probe(&self.shared.egress).await {
                Ok(()) => return Standing { ok: true, detail: "a provider answers".to_owned() },
                Err(error) => {
                    let id = &provider.config.id;
                    tracing::debug!(provider = id, error = error.detail, "A provider does not answer a probe.");
                    why = why.or(Some(error.kind));
                }
            }
        }
        let detail = match why {
            None => "no provider configured",
            Some(ErrorKind::Auth) => "the provider refuses the key",
            Some(ErrorKind::Overloaded) => "the provider is overloaded",
            Some(ErrorKind::Timeout) => "the provider does not answer in time",
            Some(ErrorKind::Invalid) => "the provider cannot be asked as it is configured",
            Some(_) => "the provider cannot be reached or answers with an error",
        };
        Standing { ok: false, detail: detail.to_owned() }
    }
}
