//! What the API shows of skills.

use std::path::Path;
use std::sync::{Arc, PoisonError};

use serde::Serialize;
use serde_json::{Value, json};

use super::folder::File;
use super::load::{self, Failed, Place};
use super::manifest::{Run, Schedule};
use super::{Skill, Skills, folder, stats};
use crate::bus::{Concurrency, Standing};
use crate::clock::rfc3339;
use crate::error::Error;
use crate::sandbox::Permissions;
use crate::sandbox::{Enforced, Network, NetworkGuard};
use crate::store::skill_words::{self, Hit};
use crate::store::skills as records;
use crate::text::words;

/// Entries of a skill's history that are shown.
const VERSIONS_MAX: usize = 200;

/// What may be searched for.
const SEARCH_CHARS_MAX: usize = 256;
const SEARCH_WORDS_MAX: usize = 16;
/// Characters of a description in the place of a snippet.
const SNIPPET_CHARS: usize = 200;

/// What brings an event to a skill.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Trigger {
    /// Events of a type.
    Event {
        /// Type pattern.
        on: String,
        /// jq condition.
        #[serde(skip_serializing_if = "Option::is_none")]
        when: Option<String>,
    },
    /// A time plan.
    Time(Schedule),
}

/// A skill, for whoever asks.
#[derive(Debug, Clone, Serialize)]
pub struct Shown {
    /// Its name.
    pub name: String,
    /// What its `SKILL.md` says.
    pub version: String,
    /// What it does and when to use it.
    pub description: String,
    /// Whether it is switched on.
    pub enabled: bool,
    /// Whether its content may run.
    pub trusted: bool,
    /// `active`, `disabled` or `untrusted`.
    pub standing: &'static str,
    /// Why it does not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// `script`, `agent` or `instructions`.
    pub kind: &'static str,
    /// What brings an event to it.
    pub triggers: Vec<Trigger>,
    /// What it may touch.
    pub permissions: Permissions,
    /// `serial`, or how many at the same time.
    pub concurrency: Value,
    /// How long one attempt may take, in milliseconds.
    pub timeout_ms: u64,
    /// Its tags.
    pub tags: Vec<String>,
    /// SHA-256 over its files, hex: the version of record.
    pub digest: String,
    /// Where it lies: `bundled`, `data`, `configured`, `agents`.
    pub place: Place,
    /// Its folder.
    pub path: String,
    /// What is odd about it.
    pub warnings: Vec<String>,
    /// How it has been doing.
    pub stats: stats::Shown,
    /// What is in force when it runs, never what is wished for; none for a skill without a script, or without sandbox.
    pub enforced: Option<Enforced>,
}

/// The text and the files of a skill.
#[derive(Debug, Clone, Serialize)]
pub struct Text {
    /// Its name.
    pub name: String,
    /// SHA-256 over its files, hex.
    pub digest: String,
    /// Its `SKILL.md`.
    pub content: String,
    /// All its files.
    pub files: Vec<File>,
}

/// An entry of a skill's history.
#[derive(Debug, Clone, Serialize)]
pub struct VersionShown {
    /// What its `SKILL.md` said.
    pub version: String,
    /// SHA-256 over its files, hex.
    pub digest: String,
    /// When this content was first seen in its place of the history.
    pub created_at: String,
    /// Whether it is what is loaded now.
    pub current: bool,
}

impl Skills {
    /// All skills by name.
    pub fn list(&self) -> Vec<Shown> {
        let loaded = self.inner.loaded.read().unwrap_or_else(PoisonError::into_inner).clone();
        loaded.values().map(|skill| show(skill, self.inner.sandbox.probed())).collect()
    }

    /// What could not be loaded the last time.
    pub fn failed(&self) -> Vec<Failed> {
        self.inner.failed.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// One skill.
    pub fn get(&self, name: &str) -> Result<Shown, Error> {
        Ok(show(&self.inner.skill(name)?, self.inner.sandbox.probed()))
    }

    /// The text and the list of files of a skill, as they are on the disk now.
    pub async fn content(&self, name: &str) -> Result<Text, Error> {
        let (name, path) = (name.to_owned(), self.inner.skill(name)?.found.path.clone());
        tokio::task::spawn_blocking(move || read(name, &path)).await.map_err(Error::internal("reading a skill"))?
    }

    /// The contents a skill had, newest first; also of one that is broken or gone.
    pub async fn versions(&self, name: &str) -> Result<Vec<VersionShown>, Error> {
        let loaded = self.inner.skill(name).map(|skill| skill.found.content.digest.clone()).ok();
        let wanted = name.to_owned();
        let rows = self.inner.store.read(move |conn| records::versions(conn, &wanted, VERSIONS_MAX)).await?;
        if rows.is_empty() {
            return Err(Error::not_found("skill", name));
        }
        let shown = rows.into_iter().enumerate().map(|(n, row)| VersionShown {
            current: n == 0 && loaded.as_ref() == Some(&row.digest),
            version: row.version,
            digest: row.digest,
            created_at: rfc3339(row.first_seen_ms),
        });
        Ok(shown.collect())
    }

    /// The skills that have every word of `text`, best first. A hit in a name shows what the skill is for.
    pub async fn search(&self, text: &str, count_max: usize) -> Result<Vec<Hit>, Error> {
        let (chars, words) = (text.chars().count(), words::words(text).count());
        if chars > SEARCH_CHARS_MAX || words > SEARCH_WORDS_MAX {
            let reason =
                format!("has {words} words of {chars} characters; at most {SEARCH_WORDS_MAX} of {SEARCH_CHARS_MAX}.");
            return Err(Error::invalid("q", reason));
        }
        let text = text.to_owned();
        let mut hits = self.inner.store.read_alone(move |conn| skill_words::search(conn, &text, count_max)).await?;
        for hit in &mut hits {
            if hit.field == "name"
                && let Ok(skill) = self.inner.skill(&hit.name)
            {
                hit.snippet = skill.found.manifest.description.chars().take(SNIPPET_CHARS).collect();
            }
        }
        Ok(hits)
    }
}

fn read(name: String, path: &Path) -> Result<Text, Error> {
    let unreadable =
        |why: String| Error::conflict("invalid_state", format!("The skill '{name}' cannot be read: {why}"));
    let now = folder::read(path).map_err(unreadable)?;
    let content = load::text(path).map_err(unreadable)?;
    Ok(Text { digest: now.digest, content, files: now.files, name })
}

pub(super) fn show(skill: &Arc<Skill>, probed: Option<&Enforced>) -> Shown {
    let (found, manifest) = (&skill.found, &skill.found.manifest);
    let events = manifest
        .rules
        .iter()
        .map(|rule| Trigger::Event { on: rule.pattern.as_str().to_owned(), when: manifest.when.clone() });
    Shown {
        name: manifest.name.clone(),
        version: manifest.version.clone(),
        description: manifest.description.clone(),
        enabled: skill.enabled,
        trusted: skill.trusted,
        standing: match skill.standing() {
            Standing::Active => "active",
            Standing::Disabled | Standing::Paused => "disabled",
            Standing::Untrusted => "untrusted",
        },
        reason: skill.reason(),
        kind: manifest.kind(),
        triggers: events.chain(manifest.schedule.clone().map(Trigger::Time)).collect(),
        permissions: manifest.permissions.clone(),
        concurrency: match manifest.concurrency {
            Concurrency::Serial => json!("serial"),
            Concurrency::Parallel(number) => json!(number),
        },
        timeout_ms: u64::try_from(manifest.timeout.as_millis()).unwrap_or(u64::MAX),
        tags: manifest.tags.clone(),
        digest: found.content.digest.clone(),
        place: found.place,
        path: found.path.display().to_string(),
        warnings: manifest.told(),
        stats: skill.stats.shown(),
        enforced: enforced(skill, probed),
    }
}

/// What was in force during its last run; before the first, what this machine does for a script with its rights.
fn enforced(skill: &Skill, probed: Option<&Enforced>) -> Option<Enforced> {
    let Run::Script(_) = skill.found.manifest.run else { return None };
    skill.stats.last_enforced().or_else(|| {
        let mut expected = probed?.clone();
        if skill.found.manifest.permissions.net == Network::Any {
            expected.network = NetworkGuard::Allowed;
        }
        Some(expected)
    })
}
