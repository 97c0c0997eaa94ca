//! Plugins as they are shown.

use serde::Serialize;
use serde_json::{Value, json};

use super::health;
use super::{Known, Plugins, Version};
use crate::clock::rfc3339;
use crate::error::Error;
use crate::package::{Grant, Manifest};

/// A plugin as it is shown.
#[derive(Debug, Clone, Serialize)]
pub struct Shown {
    /// Its name.
    pub name: String,
    /// `active`, `quarantined`, `disabled`, `pending_consent` or `failed`.
    pub state: &'static str,
    /// Why it is as it is, and what to do; empty when all is well.
    pub reason: String,
    /// The version that may run; null before the first consent.
    pub version: Option<String>,
    /// The digest of that version.
    pub digest: Option<String>,
    /// What its manifest says it does.
    pub description: Option<String>,
    /// Key id that signed it.
    pub signed_by: Option<String>,
    /// The public key that its packages must be signed with.
    pub publisher: Option<String>,
    /// Methods and paths of its routes.
    pub routes: Vec<String>,
    /// What was agreed to, in words.
    pub granted: Vec<Grant>,
    /// The version that waits for consent.
    pub pending: Option<ShownVersion>,
    /// The version before, for a rollback.
    pub previous: Option<ShownVersion>,
    /// When it was last changed.
    pub changed_at: String,
}

/// Another version of a plugin.
#[derive(Debug, Clone, Serialize)]
pub struct ShownVersion {
    /// Its version.
    pub version: String,
    /// Names its content.
    pub digest: String,
    /// Key id that signed it.
    pub signed_by: Option<String>,
    /// When it was installed.
    pub installed_at: String,
    /// What it may do beyond what was agreed to.
    pub added: Vec<Grant>,
    /// What it no longer asks for.
    pub removed: Vec<Grant>,
}

/// A page of a plugin.
#[derive(Debug, Clone, Serialize)]
pub struct PageShown {
    /// Its id within the plugin.
    pub id: String,
    /// What people read.
    pub title: String,
    /// The plugin.
    pub plugin: String,
    /// Where it is.
    pub url: String,
}

fn other(version: &Version, granted: &[Grant]) -> ShownVersion {
    let wants = version.manifest.as_ref().map(|manifest| manifest.grants()).unwrap_or_default();
    ShownVersion {
        version: version.row.version.clone(),
        digest: version.row.digest.clone(),
        signed_by: version.row.signed_by.clone(),
        installed_at: rfc3339(version.row.installed_ms),
        added: Grant::widened(&wants, granted),
        removed: Grant::widened(granted, &wants),
    }
}

impl Known {
    fn state(&self) -> (&'static str, String) {
        if self.record.digest.is_none() {
            let todo = "Look at what it asks for, then `aman plugin approve` it, or uninstall it.";
            return ("pending_consent", todo.to_owned());
        }
        let waits = self.record.pending.as_ref().map_or("", |_| "A newer version waits for consent.");
        if !self.record.enabled {
            return ("disabled", waits.to_owned());
        }
        if let Some(Err(reason)) = self.present().map(|version| version.manifest.as_ref()) {
            return ("failed", format!("This aman cannot run it: {reason}"));
        }
        match &self.running {
            None => ("failed", "Its routes or files clash with others; the log says with whom.".to_owned()),
            Some(running) => match running.rests() {
                Some(left) => (
                    "quarantined",
                    format!(
                        "It failed too often and comes back by itself in {} s; `aman plugin enable {}` ends that now.",
                        left.as_secs() + 1,
                        self.record.name
                    ),
                ),
                None => ("active", waits.to_owned()),
            },
        }
    }

    fn shown_manifest(&self) -> Option<&Manifest> {
        let version = self.present().or_else(|| self.version(self.record.pending.as_ref()))?;
        version.manifest.as_deref().ok()
    }

    fn show(&self) -> Shown {
        let (state, reason) = self.state();
        let (present, granted, manifest) = (self.present(), self.granted(), self.shown_manifest());
        let routes = manifest.iter().flat_map(|manifest| &manifest.routes);
        Shown {
            name: self.record.name.clone(),
            state,
            reason,
            version: present.map(|version| version.row.version.clone()),
            digest: self.record.digest.clone(),
            description: manifest.map(|manifest| manifest.description.clone()),
            signed_by: present.and_then(|version| version.row.signed_by.clone()),
            publisher: self.record.publisher.clone(),
            routes: routes.map(|route| route.shown()).collect(),
            pending: self.version(self.record.pending.as_ref()).map(|version| other(version, &granted)),
            previous: self.version(self.record.previous.as_ref()).map(|version| other(version, &granted)),
            granted,
            changed_at: rfc3339(self.record.updated_ms),
        }
    }
}

/// What one plugin has used since the start of the daemon, for metrics.
pub struct Used {
    /// Its name.
    pub name: String,
    /// Calls since its code was loaded.
    pub calls: u64,
    /// Instances that run, wait and stream.
    pub instances: usize,
    /// Faults by kind.
    pub faults: health::Shown,
}

impl Plugins {
    /// All plugins, by name.
    pub fn list(&self) -> Vec<Shown> {
        self.inner.all().iter().filter(|known| known.is_there()).map(Known::show).collect()
    }

    /// One plugin with its manifest, how it is and what it uses.
    pub async fn detail(&self, name: &str) -> Result<Value, Error> {
        let known = self.inner.known(name).filter(Known::is_there).ok_or_else(|| Error::not_found("plugin", name))?;
        let mut shown = serde_json::to_value(known.show()).map_err(Error::internal("showing a plugin"))?;
        shown["manifest"] = json!(known.shown_manifest());
        shown["permissions"] = json!(known.shown_manifest().map(|manifest| &manifest.permissions));
        let Some(running) = &known.running else { return Ok(shown) };
        shown["health"] = json!(running.health());
        let stats = running.stats().map(|stats| {
            json!({
                "calls": stats.calls, "faults": stats.faults, "instances_made": stats.instances_made,
                "idle": stats.idle, "running": stats.running, "waiting": stats.waiting, "streams": stats.streams,
            })
        });
        shown["used"] = json!({ "loaded": stats.is_some(), "code_bytes": running.version.code_bytes, "calls": stats });
        shown["used"]["storage"] = json!(running.api.usage().await?);
        Ok(shown)
    }

    /// The pages of everything that runs.
    pub fn pages(&self) -> Vec<PageShown> {
        let all = self.inner.all();
        let running = all.iter().filter_map(|known| known.running.as_ref());
        let pages = running.flat_map(|running| {
            running.manifest.pages.iter().map(|page| PageShown {
                id: page.id.clone(),
                title: page.title.clone(),
                plugin: running.manifest.name.clone(),
                url: format!("/ui/plugin/{}/{}", running.manifest.name, page.path.trim_start_matches("ui/")),
            })
        });
        pages.collect()
    }

    /// What everything that runs has used.
    pub fn used(&self) -> Vec<Used> {
        let all = self.inner.all();
        let used = all.iter().filter_map(|known| known.running.as_ref()).map(|running| {
            let stats = running.stats();
            Used {
                name: running.manifest.name.clone(),
                calls: stats.map_or(0, |stats| stats.calls),
                instances: stats.map_or(0, |stats| stats.running + stats.idle + stats.streams),
                faults: running.health(),
            }
        });
        used.collect()
    }
}
