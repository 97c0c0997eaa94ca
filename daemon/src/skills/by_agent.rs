//! The consumer behind a skill with `aman.run: agent`: an agent takes the delivery as a turn, with the skill's text as what is to
//! be done. Who agents are is none of its business: whoever runs them hands it down.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::folder::Content;
use super::front;
use super::load::SKILL_FILE;
use super::manifest::Manifest;
use super::run::{OnChange, check_content, keep_stats, plan};
use super::stats::Stats;
use crate::bus::{Absence, Attempt, Consumer, Delivered, Failure, Outcome, Plan};
use crate::clock::Clock;
use crate::plain;
use crate::store::Store;

/// Largest `SKILL.md`, in bytes.
const TEXT_BYTES_MAX: u64 = 256 << 10;

/// A delivery to a skill that an agent is to take.
#[derive(Debug)]
pub struct ForAgent {
    /// The agent; none = the default one.
    pub agent: Option<String>,
    /// The skill.
    pub skill: String,
    /// What is to be done.
    pub instructions: String,
    /// The tools that the skill says it needs, as it says it; none = it does not say.
    pub allowed_tools: Option<String>,
    /// The delivery.
    pub attempt: Attempt,
    /// After so many attempts it is given up.
    pub attempts_max: u32,
    /// How long the work may take; none = as the agent says.
    pub time_max: Option<Duration>,
}

/// The future of a turn.
pub type Taking = Pin<Box<dyn Future<Output = Outcome> + Send>>;
/// The future of an end.
pub type Waiting = Pin<Box<dyn Future<Output = ()> + Send>>;
/// Says how to wait for an agent, if it is away.
pub type Absent = dyn Fn(Option<&str>) -> Option<Waiting> + Send + Sync;
/// The future of a question.
pub type Answering = Pin<Box<dyn Future<Output = bool> + Send>>;

/// Whoever runs agents, as far as skills need it.
#[derive(Clone)]
pub struct Agency {
    /// Takes a delivery as a turn.
    pub take: Arc<dyn Fn(ForAgent) -> Taking + Send + Sync>,
    /// Waits until an agent (none = the default one) is switched on; none when it is.
    pub absence: Arc<Absent>,
    /// Whether there is a model that could answer.
    pub has_model: Arc<dyn Fn() -> Answering + Send + Sync>,
}

/// Has an agent do what a skill says.
pub struct Thinker {
    /// What the skill says of itself.
    pub manifest: Arc<Manifest>,
    /// Its folder.
    pub folder: PathBuf,
    /// Its content when it was loaded.
    pub content: Content,
    /// Counts, shared with the registry.
    pub stats: Arc<Stats>,
    /// Keeps the counts.
    pub store: Store,
    /// Tells the time for the counts.
    pub clock: Clock,
    /// See [`OnChange`].
    pub on_change: OnChange,
    /// Who does it.
    pub agency: Agency,
}

impl Consumer for Thinker {
    fn deliver(&self, attempt: Attempt) -> Delivered<'_> {
        Box::pin(async move {
            let begun = Instant::now();
            let outcome = self.attempt(attempt).await;
            let counts = self.stats.record(&outcome, begun.elapsed(), self.clock.now_ms());
            keep_stats(&self.store, &self.manifest.name, counts);
            outcome
        })
    }

    fn absence(&self) -> Option<Absence<'_>> {
        let away = (self.agency.absence)(self.manifest.agent.as_deref())?;
        Some(Box::pin(async move {
            away.await;
            // Meanwhile the skill may have been switched off, or be another one: it is looked at anew.
            Some(Duration::ZERO)
        }))
    }

    fn plan(&self) -> Option<Plan> {
        plan(&self.manifest)
    }
}

impl Thinker {
    async fn attempt(&self, attempt: Attempt) -> Outcome {
        if let Err(failure) = check_content(&self.folder, &self.content, &self.on_change).await {
            return Outcome::Retry(failure, Some(Duration::from_secs(1)));
        }
        let path = self.folder.join(SKILL_FILE);
        let read = tokio::task::spawn_blocking(move || plain::read(&path, TEXT_BYTES_MAX)).await;
        let text = match read {
            Ok(Ok(text)) => text,
            Ok(Err(error)) => return Outcome::Retry(Failure::new(error.to_string()), None),
            Err(error) => return Outcome::Retry(Failure::new(error.to_string()), None),
        };
        let wanted = ForAgent {
            agent: self.manifest.agent.clone(),
            skill: self.manifest.name.clone(),
            instructions: front::body(&text).to_owned(),
            allowed_tools: self.manifest.allowed_tools.clone(),
            attempt,
            attempts_max: self.manifest.retry.max_attempts,
            time_max: self.manifest.time_max(),
        };
        (self.agency.take)(wanted).await
    }
}
