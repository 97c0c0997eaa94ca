//! Changes of what is installed: consent, switching on and off, going back, uninstalling. Each is recorded first, together
//! with its audit row, and then put in force; what can fail is tried before.

use std::sync::{Arc, PoisonError};

use super::install::{remove, take};
use super::{Known, Plugins, Running, Version, host, polls, running_of};
use crate::bus::StateWrite;
use crate::error::Error;
use crate::package::Manifest;
use crate::store::plugins as records;

/// What the audit log gets to know of a change of versions.
pub type AuditVersions =
    Box<dyn FnOnce(&mut crate::store::Tx<'_>, Option<String>, Option<String>) -> Result<(), Error> + Send>;

impl Plugins {
    fn there(&self, name: &str) -> Result<Known, Error> {
        self.inner.known(name).filter(Known::is_there).ok_or_else(|| Error::not_found("plugin", name))
    }

    fn stamped(&self, known: &Known) -> records::Plugin {
        records::Plugin { updated_ms: self.inner.ground.bus.clock().now_ms(), ..known.record.clone() }
    }

    /// Agrees to what the waiting version asks for. With a digest only if that is the version that waits.
    pub async fn approve(&self, name: &str, digest: Option<String>, audit: AuditVersions) -> Result<(), Error> {
        let _alone = self.inner.changing.lock().await;
        let known = self.there(name)?;
        let Some(pending) = known.record.pending.clone() else {
            return Err(Error::conflict("invalid_state", format!("Nothing of '{name}' waits for consent.")));
        };
        if let Some(digest) = digest.filter(|digest| *digest != pending) {
            let reason = format!("What waits for consent is {pending} now, not {digest}. Look at it again.");
            return Err(Error::conflict("version_conflict", reason));
        }
        self.switch(&known, pending, audit).await
    }

    /// Goes back to the version before.
    pub async fn rollback(&self, name: &str, audit: AuditVersions) -> Result<(), Error> {
        let _alone = self.inner.changing.lock().await;
        let known = self.there(name)?;
        let Some(previous) = known.record.previous.clone() else {
            return Err(Error::conflict("invalid_state", format!("There is no version of '{name}' to go back to.")));
        };
        self.switch(&known, previous, audit).await
    }

    async fn switch(&self, known: &Known, to: String, audit: AuditVersions) -> Result<(), Error> {
        let manifest = manifest_of(known, &to)?;
        self.inner.check_conflicts(&manifest)?;
        let mut record = self.stamped(known);
        let before = record.digest.clone();
        take(&mut record, to.clone(), &manifest.grants())?;
        self.turn(record, None, Box::new(move |tx| audit(tx, before, Some(to)))).await
    }

    /// Switches it on, and ends its rest if it has one.
    pub async fn enable(&self, name: &str, audit: StateWrite) -> Result<(), Error> {
        let _alone = self.inner.changing.lock().await;
        let known = self.there(name)?;
        if let Some(digest) = &known.record.digest {
            self.inner.check_conflicts(manifest_of(&known, digest)?.as_ref())?;
        }
        let rests = name.to_owned();
        let state: StateWrite = Box::new(move |tx| {
            records::end_rest(tx, &rests)?;
            audit(tx)
        });
        self.turn(records::Plugin { enabled: true, ..self.stamped(&known) }, None, state).await?;
        if let Some(running) = self.inner.running(name) {
            running.end_rest();
        }
        Ok(())
    }

    /// Switches it off: its routes are gone, what is for it waits.
    pub async fn disable(&self, name: &str, audit: StateWrite) -> Result<(), Error> {
        let _alone = self.inner.changing.lock().await;
        let known = self.there(name)?;
        self.turn(records::Plugin { enabled: false, ..self.stamped(&known) }, None, audit).await
    }

    /// Removes it. Without `purge` its data stay, and with them its name and the key of its publisher.
    pub async fn uninstall(&self, name: &str, purge: bool, audit: StateWrite) -> Result<(), Error> {
        let _alone = self.inner.changing.lock().await;
        let Some(known) = self.inner.known(name).filter(|known| purge || known.is_there()) else {
            return Err(Error::not_found("plugin", name));
        };
        let mut record = self.stamped(&known);
        (record.digest, record.previous, record.pending) = (None, None, None);
        "[]".clone_into(&mut record.granted);
        if !purge {
            return self.turn(record, None, audit).await;
        }
        let gone = name.to_owned();
        let state: StateWrite = Box::new(move |tx| {
            records::forget(tx, &gone)?;
            host::purge_rows(tx, &gone)?;
            audit(tx)
        });
        self.put_in_force(record, None, None, state, true).await?;
        self.inner.known.write().unwrap_or_else(PoisonError::into_inner).remove(name);
        let (services, name) = (self.inner.ground.services.clone(), name.to_owned());
        let purged = tokio::task::spawn_blocking(move || services.purge_files(&name)).await;
        purged.map_err(Error::internal("removing a plugin's data"))?
    }

    /// Tries what the record wants to run, records it with its audit row, and puts it in force.
    pub(super) async fn turn(
        &self,
        record: records::Plugin,
        added: Option<Version>,
        audit: StateWrite,
    ) -> Result<(), Error> {
        let before = self.inner.known(&record.name);
        let is_other = before.as_ref().is_none_or(|before| before.record.digest != record.digest);
        let mut versions = before.map(|known| known.versions).unwrap_or_default();
        versions.retain(|version| added.as_ref().is_none_or(|added| added.row.digest != version.row.digest));
        versions.extend(added.clone());
        let next = Known { record: record.clone(), versions, running: None };
        let running = self.next_running(&next).await?;
        let row = added.map(|version| version.row);
        let stored = record.clone();
        let state: StateWrite = Box::new(move |tx| {
            if let Some(row) = row {
                records::put_version(tx, &row)?;
            }
            records::put(tx, &stored)?;
            if is_other {
                records::end_rest(tx, &stored.name)?;
            }
            audit(tx)
        });
        self.put_in_force(record, Some(next.versions), running, state, false).await
    }

    /// What is to run: the same as now, or another version that was loaded and has begun well.
    async fn next_running(&self, next: &Known) -> Result<Option<Arc<Running>>, Error> {
        let now = self.inner.running(&next.record.name);
        if let Some(now) =
            now.filter(|now| next.record.enabled && Some(&now.version.digest) == next.record.digest.as_ref())
        {
            return Ok(Some(now));
        }
        let Some(running) = running_of(&self.inner.ground, next, None) else { return Ok(None) };
        let begun = match running.check().await {
            Ok(()) => running.probe().await,
            Err(error) => Err(error),
        };
        if let Err(error) = begun {
            running.close().await;
            return Err(error);
        }
        Ok(Some(running))
    }

    async fn put_in_force(
        &self,
        record: records::Plugin,
        versions: Option<Vec<Version>>,
        running: Option<Arc<Running>>,
        state: StateWrite,
        is_gone: bool,
    ) -> Result<(), Error> {
        let inner = &self.inner;
        inner.ground.bus.store().write(move |tx| state(tx)).await?;
        let name = record.name.clone();
        let before = inner.known(&name);
        let named = [&record.digest, &record.previous, &record.pending];
        let known = before.as_ref().map(|known| known.versions.clone()).unwrap_or_default();
        let (kept, gone): (Vec<Version>, Vec<Version>) = versions
            .unwrap_or(known)
            .into_iter()
            .partition(|version| named.iter().any(|digest| digest.as_ref() == Some(&version.row.digest)));
        let now = Known { record, versions: kept, running: running.clone() };
        inner.known.write().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), now.clone());
        match self.consumer(&now) {
            Some(consumer) => inner.ground.bus.register(vec![consumer]).await?,
            None => inner.ground.bus.unregister(&[format!("plugin/{name}")]),
        }
        inner.mount()?;
        let old = before.and_then(|known| known.running);
        let is_same = old.as_ref().zip(running.as_ref()).is_some_and(|(old, new)| Arc::ptr_eq(old, new));
        if !is_same {
            if let Some(running) = &running {
                polls::start(running, &inner.ground.bus);
            }
            if let Some(old) = old {
                if running.is_none() {
                    old.cut.cancel();
                }
                let closing = async move { old.close().await };
                // Data are removed only once nobody uses them; else nobody waits for the calls that run.
                if is_gone { closing.await } else { drop(tokio::spawn(closing)) }
            }
        }
        self.sweep(gone).await;
        Ok(())
    }

    /// Removes the files of versions that nothing names any more. Their code may still run; it is mapped.
    async fn sweep(&self, gone: Vec<Version>) {
        let places: Vec<_> =
            gone.iter().map(|version| self.inner.ground.place(&version.row.name, &version.row.digest)).collect();
        gone.iter().for_each(|version| self.forget_code(&version.row));
        let swept = tokio::task::spawn_blocking(move || {
            for place in places {
                remove(&place);
                // Goes only when it is empty.
                let _kept = place.parent().map(std::fs::remove_dir);
            }
        });
        if let Err(error) = swept.await {
            tracing::warn!(%error, "Files of old versions of a plugin were not removed.");
        }
    }
}

fn manifest_of(known: &Known, digest: &String) -> Result<Arc<Manifest>, Error> {
    let version = known.version(Some(digest)).ok_or_else(|| Error::not_found("version", digest))?;
    version.manifest.clone().map_err(|reason| {
        let reason = format!("This aman cannot run {} of '{}': {reason}", version.row.version, known.record.name);
        Error::conflict("invalid_state", reason)
    })
}
