//! What turns the outside into events: folders, webhooks, programs, polled addresses, MQTT topics; and the one registry
//! that pauses, resumes, changes and shows them while the daemon runs.
//!
//! What is changed that way stands in the database before the file's settings, so it survives a restart; the file stays
//! as its owner wrote it.

mod change;
mod command;
pub mod explore;
mod feed;
pub mod files;
mod mapping;
mod mqtt;
mod poll;
mod running;
mod view;
pub mod webhook;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use serde_json::{Map, Value};

use crate::bus::{Bus, StateWrite};
use crate::config::{self, Applied, Paths};
use crate::egress::Egress;
use crate::error::Error;
use crate::sandbox::Sandbox;
use crate::store::Tx;
use crate::store::sources as rows;
use crate::tasks::Supervisor;
use running::Running;
use webhook::Hook;

/// What sources work with.
#[derive(Clone)]
pub struct Surroundings {
    /// The bus.
    pub bus: Bus,
    /// Runs their tasks.
    pub supervisor: Supervisor,
    /// Runs commands.
    pub sandbox: Sandbox,
    /// The way out of polls.
    pub egress: Egress,
    /// Where things are.
    pub paths: Paths,
}

/// Every source; cheap to clone.
#[derive(Clone)]
pub struct Sources {
    inner: Arc<Inner>,
}

struct Inner {
    with: Surroundings,
    entries: ArcSwap<BTreeMap<String, Arc<Entry>>>,
    /// Held by whoever pauses, resumes or changes.
    changing: tokio::sync::Mutex<()>,
}

struct Entry {
    /// As the file has it.
    file: config::sources::Source,
    now: Mutex<Now>,
}

/// How a source stands at present.
struct Now {
    /// With what was changed.
    source: config::sources::Source,
    /// What was changed, by key.
    changes: Map<String, Value>,
    paused: bool,
    running: Running,
}

/// What a hook's caller meets.
pub enum Door {
    /// The hook.
    Open(Arc<Hook>),
    /// It is switched off.
    Paused,
}

impl Entry {
    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sources {
    /// Starts every source. One that cannot work is shown as failed; only settings that are wrong are an error.
    pub async fn start(defined: &[config::sources::Source], with: Surroundings) -> Result<Sources, Error> {
        let mut entries = BTreeMap::new();
        for file in defined {
            entries.insert(file.id.clone(), Arc::new(entry(file, &with, None).await?));
        }
        let entries = ArcSwap::from_pointee(entries);
        Ok(Sources { inner: Arc::new(Inner { with, entries, changing: tokio::sync::Mutex::default() }) })
    }

    /// What putting `defined` in force would change.
    pub fn plan(&self, defined: &[config::sources::Source]) -> Applied {
        let entries = self.inner.entries.load();
        let before = entries.values().map(|entry| (entry.file.id.as_str(), &entry.file));
        Applied::plan("sources", before, defined.iter().map(|source| (source.id.as_str(), source)))
    }

    /// Puts what the file says by now in force. What a source knows, such as how far it has read, stays with its id; one
    /// that cannot be changed goes on as it was.
    pub async fn apply(&self, defined: &[config::sources::Source]) -> Applied {
        let _alone = self.inner.changing.lock().await;
        let mut applied = self.plan(defined);
        let mut entries = BTreeMap::clone(&self.inner.entries.load());
        for id in &applied.stopped {
            if let Some(before) = entries.remove(id) {
                let running = before.now().running.clone();
                running.stop().await;
            }
        }
        self.inner.entries.store(Arc::new(entries.clone()));
        for file in defined {
            if !applied.touches(&file.id) {
                continue;
            }
            match entry(file, &self.inner.with, entries.get(&file.id)).await {
                Ok(entry) => drop(entries.insert(file.id.clone(), Arc::new(entry))),
                Err(error) => applied.fail(&file.id, &error),
            }
            self.inner.entries.store(Arc::new(entries.clone()));
        }
        applied
    }

    fn entry(&self, id: &str) -> Result<Arc<Entry>, Error> {
        self.inner.entries.load().get(id).cloned().ok_or_else(|| Error::not_found("source", id))
    }

    /// Every source as JSON, by id.
    pub fn list(&self) -> Vec<Value> {
        self.inner.entries.load().values().map(|entry| view::source(&entry.now())).collect()
    }

    /// One source as JSON.
    pub fn show(&self, id: &str) -> Result<Value, Error> {
        Ok(view::source(&self.entry(id)?.now()))
    }

    /// How every source stands in a few words, by the name of its task.
    pub fn status(&self) -> Vec<(String, Value)> {
        self.inner.entries.load().values().map(|entry| view::status(&entry.now())).collect()
    }

    /// The hook `id`.
    pub fn hook(&self, id: &str) -> Result<Door, Error> {
        let entries = self.inner.entries.load();
        let now = entries.get(id).map(|entry| entry.now());
        let found = now.as_ref().and_then(|now| Some((now.running.hook()?, now.paused)));
        match found {
            Some((_, true)) => Ok(Door::Paused),
            Some((hook, false)) => Ok(Door::Open(hook)),
            None => Err(Error::not_found("hook", id)),
        }
    }

    /// Switches a source off or on again, durably; `record` commits with that. Fails with `invalid_state` when it is so
    /// already.
    pub async fn set_paused(&self, id: &str, paused: bool, record: StateWrite) -> Result<Value, Error> {
        let _alone = self.inner.changing.lock().await;
        let entry = self.entry(id)?;
        if entry.now().paused == paused {
            let reason = format!("The source '{id}' is {} already.", if paused { "paused" } else { "running" });
            return Err(Error::conflict("invalid_state", reason));
        }
        self.commit(record, id, move |tx, id, now_ms| rows::set_paused(tx, id, paused, now_ms)).await?;
        let running = entry.now().running.clone();
        running.set_paused(paused, &self.inner.with).await;
        entry.now().paused = paused;
        self.show(id)
    }

    /// Replaces what is changed of a source's settings, and applies it; settings that are not named go back to those of
    /// the file. `record` commits with it. `Invalid` names wrong settings, `Forbidden` those that only the file can have.
    pub async fn configure(&self, id: &str, wanted: Map<String, Value>, record: StateWrite) -> Result<Value, Error> {
        let _alone = self.inner.changing.lock().await;
        let entry = self.entry(id)?;
        let changes = change::changes(&entry.file, wanted)?;
        let source = change::merged(&entry.file, &changes, &self.inner.with.paths)?;
        Running::check(&source)?;
        let text = (!changes.is_empty()).then(|| Value::Object(changes.clone()).to_string());
        let (with, paused) = (&self.inner.with, entry.now().paused);
        let now = replace(Some(&entry), source, changes, paused, with).await?;
        let stored = self.commit(record, id, move |tx, id, now_ms| rows::set_changes(tx, id, text.as_deref(), now_ms));
        if let Err(error) = stored.await {
            now.running.stop().await;
            go_back(&entry, with).await?;
            return Err(error);
        }
        *entry.now() = now;
        self.show(id)
    }

    async fn commit(
        &self,
        record: StateWrite,
        id: &str,
        change: impl FnOnce(&mut Tx<'_>, &str, i64) -> Result<(), Error> + Send + 'static,
    ) -> Result<(), Error> {
        let (id, now_ms) = (id.to_owned(), self.inner.with.bus.clock().now_ms());
        let write = move |tx: &mut Tx<'_>| {
            change(tx, &id, now_ms)?;
            record(tx)
        };
        self.inner.with.bus.store().write(write).await
    }

    /// Ends every source; what is being stored is finished.
    pub async fn stop(&self) {
        for entry in self.inner.entries.load_full().values() {
            let running = entry.now().running.clone();
            running.stop().await;
        }
    }
}

/// A source at work with the file's settings and what was changed of them, in the place of `before`. When it cannot start,
/// `before` runs on.
async fn entry(
    file: &config::sources::Source,
    with: &Surroundings,
    before: Option<&Arc<Entry>>,
) -> Result<Entry, Error> {
    let id = file.id.clone();
    let changed = with.bus.store().read_now(|conn| rows::changed(conn, &id))?;
    let changes = changed.changes.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    let (source, changes) = match change::merged(file, &changes, &with.paths) {
        Ok(source) => (source, changes),
        Err(error) => {
            let why = error.to_string();
            tracing::warn!(id, why, "Changed settings of a source do not fit its file any more; they are off.");
            (file.clone(), Map::new())
        }
    };
    Running::check(&source)?;
    let now = replace(before, source, changes, changed.paused, with).await?;
    Ok(Entry { file: file.clone(), now: Mutex::new(now) })
}

/// Starts `source` in the place of `before`. When it cannot start, `before` runs on.
async fn replace(
    before: Option<&Arc<Entry>>,
    source: config::sources::Source,
    changes: Map<String, Value>,
    paused: bool,
    with: &Surroundings,
) -> Result<Now, Error> {
    if let Some(before) = before {
        let running = before.now().running.clone();
        running.stop().await;
    }
    let running = Running::start(&source, with, paused).await;
    let why = match (&running, before) {
        (Ok(Running::Failed(_)), Some(_)) | (Err(_), Some(_)) => {
            running.as_ref().map_or_else(|error| error.chain().join(": "), |failed| failed.health().detail)
        }
        _ => return Ok(Now { source, changes, paused, running: running? }),
    };
    if let Some(before) = before {
        go_back(before, with).await?;
    }
    Err(Error::conflict("invalid_state", why))
}

/// Starts `before` again as it was.
async fn go_back(before: &Entry, with: &Surroundings) -> Result<(), Error> {
    let (source, paused) = {
        let now = before.now();
        (now.source.clone(), now.paused)
    };
    let running = Running::start(&source, with, paused).await?;
    before.now().running = running;
    Ok(())
}
