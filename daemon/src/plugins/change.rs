//! Changes of what is installed: consent, switching on and off, going back, uninstalling. Each is recorded first, together
//! with its audit row, and then put in force; what can fail is tried before.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::install::{blocking, remove, take};
use super::{Known, Plugins, Running, Version, consumer, host, polls, running_of};
use crate::bus::StateWrite;
use crate::bus::agency::{Asker, Request};
use crate::clock::Millis;
use crate::error::Error;
use crate::event::Trust;
use crate::id::TraceId;
use crate::package::Manifest;
use crate::store::Tx;
use crate::store::plugins as records;

/// How long to wait at the least before what the store refused is tried again.
const REFUSED_WAIT: Duration = Duration::from_millis(500);

/// What the audit log gets to know of a change of versions.
pub type AuditVersions = Box<dyn FnOnce(&mut Tx<'_>, Option<String>, Option<String>) -> Result<(), Error> + Send>;

impl Plugins {
    fn there(&self, name: &str) -> Result<Known, Error> {
        self.inner.known(name).filter(Known::is_there).ok_or_else(|| Error::not_found("plugin", name))
    }

    fn stamped(&self, known: &Known) -> records::Plugin {
        records::Plugin { updated_ms: self.inner.ground.bus.clock().now_ms(), ..known.record.clone() }
    }

    /// Agrees to what the waiting version asks for, which must be the one with this digest: nobody agrees unseen.
    pub async fn approve(&self, name: &str, digest: Option<String>, audit: AuditVersions) -> Result<(), Error> {
        let _alone = self.inner.changing.lock().await;
        let known = self.there(name)?;
        let Some(pending) = known.record.pending.clone() else {
            return Err(Error::conflict(
                "invalid_state",
                format!("Nothing of '{name}' waits for consent. GET /plugin/{{name}} shows how it stands."),
            ));
        };
        let Some(digest) = digest else {
            let reason = "is required: the one of what you agree to, as GET /plugin/{name} shows it at pending.digest.";
            return Err(Error::invalid("digest", reason));
        };
        if digest != pending {
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
            return Err(Error::conflict(
                "invalid_state",
                format!("There is no version of '{name}' to go back to. Install the package of the one you want."),
            ));
        };
        self.switch(&known, previous, audit).await
    }

    async fn switch(&self, known: &Known, to: String, audit: AuditVersions) -> Result<(), Error> {
        let manifest = manifest_of(known, &to)?;
        self.inner.check_conflicts(&manifest)?;
        let mut record = self.stamped(known);
        let before = record.digest.clone();
        take(&mut record, to.clone(), &manifest.grants())?;
        // Going back says nothing of what waits for consent.
        record.pending = known.record.pending.clone().filter(|pending| *pending != to);
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
        if purge {
            self.purge(known, audit).await?;
        } else {
            self.turn(record, None, audit).await?;
        }
        // What waited for it would hold its events for ever, and meet whoever gets the name next.
        let given_up = self.inner.ground.bus.give_up(&consumer::name(name), Millis::MAX).await;
        match given_up {
            Ok(0) => {}
            Ok(waiting) => {
                tracing::warn!(plugin = name, waiting, "Events that waited for a plugin were given up with it.")
            }
            // What is recorded holds: the next installation of that name gives them up.
            Err(error) => {
                let error = error.chain().join(": ");
                tracing::warn!(plugin = name, error, "Events that wait for a plugin that is gone were not given up.");
            }
        }
        Ok(())
    }

    /// Removes a plugin with all its data: one transaction once nobody works with them any more, and its files around it.
    async fn purge(&self, known: Known, audit: StateWrite) -> Result<(), Error> {
        let name = known.record.name.clone();
        self.show(Known { running: None, ..known.clone() }).await;
        if let Some(old) = &known.running {
            self.quiet(old).await;
        }
        let mut alone = self.inner.ground.services.alone_with(&name).await;
        let (put_aside, alone) = blocking(move || Ok((alone.put_aside(), alone))).await?;
        let gone = name.clone();
        let state = move |tx: &mut Tx<'_>| {
            records::forget(tx, &gone)?;
            host::purge_rows(tx, &gone)?;
            audit(tx)
        };
        let purged = match put_aside {
            Ok(()) => self.inner.ground.bus.store().write(state).await,
            Err(error) => Err(error),
        };
        if let Err(error) = purged {
            let (put_back, _alone) = blocking(move || Ok((alone.put_back(), alone))).await?;
            let rests = self.inner.ground.bus.store().read(records::rests).await.unwrap_or_default();
            let running = running_of(&self.inner.ground, &known, rests.get(&name));
            self.show(Known { running: running.clone(), ..known }).await;
            if let Some(running) = &running {
                polls::start(running, &self.inner.ground.bus).await;
            }
            return put_back.and(Err(error));
        }
        self.inner.known.write().unwrap_or_else(PoisonError::into_inner).remove(&name);
        self.inner.ground.bus.unregister(&[consumer::name(&name)]).await;
        let (removed, _alone) = blocking(move || Ok((alone.remove(), alone))).await?;
        if let Err(error) = removed {
            // It is out of everybody's way; the next start tries again.
            tracing::warn!(plugin = name, error = error.chain().join(": "), "A plugin's database was not removed.");
        }
        self.sweep(known.versions).await;
        Ok(())
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
        self.put_in_force(Known { record, versions: next.versions, running }, state).await
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

    /// Records a change and puts it in force. An error means that nothing was changed: once it is recorded, it holds.
    async fn put_in_force(&self, next: Known, state: StateWrite) -> Result<(), Error> {
        let inner = &self.inner;
        inner.ground.bus.store().write(move |tx| state(tx)).await?;
        let before = inner.known(&next.record.name).and_then(|known| known.running);
        let record = &next.record;
        let named = [&record.digest, &record.previous, &record.pending];
        let is_named = |version: &Version| named.iter().any(|digest| digest.as_ref() == Some(&version.row.digest));
        let (versions, gone): (Vec<Version>, Vec<Version>) = next.versions.iter().cloned().partition(is_named);
        let running = next.running.clone();
        self.show(Known { versions, ..next }).await;
        let is_same = before.as_ref().zip(running.as_ref()).is_some_and(|(old, new)| Arc::ptr_eq(old, new));
        if !is_same {
            if let Some(running) = &running {
                polls::start(running, &inner.ground.bus).await;
            }
            if let Some(old) = before {
                let (plugins, is_off) = (self.clone(), running.is_none());
                // Nobody waits for the calls that run.
                drop(tokio::spawn(async move {
                    if is_off {
                        plugins.quiet(&old).await;
                    } else {
                        old.close().await;
                    }
                }));
            }
        }
        self.sweep(gone).await;
        Ok(())
    }

    /// Ends what a plugin that is switched off does: its bodies are cut, the turns that it asked agents for are stopped, and its
    /// calls end.
    async fn quiet(&self, old: &Arc<Running>) {
        old.cut.cancel();
        // Calls that wait for a turn end with it; one that asks for another in this moment is stopped with the last of them.
        self.stop_turns(&old.version.name).await;
        old.close().await;
        if self.running(&old.version.name).is_none() {
            self.stop_turns(&old.version.name).await;
        }
    }

    async fn stop_turns(&self, name: &str) {
        let bus = &self.inner.ground.bus;
        let Ok(agency) = bus.agency() else { return };
        let (principal, trust, trace) = (consumer::name(name), Trust::Plugin, TraceId::random());
        let asker = Asker { principal, trust, trace, cause: None };
        if let Err(error) = (agency.ask)(asker, Request::StopAll).await {
            tracing::warn!(plugin = name, error = error.chain().join(": "), "Turns that a plugin asked for go on.");
        }
    }

    /// Lets callers, the bus and HTTP see what a plugin is now. What the disk refuses is tried until it takes it.
    async fn show(&self, now: Known) {
        let (inner, name) = (&self.inner, now.record.name.clone());
        inner.known.write().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), now.clone());
        while let Err(error) = self.tell_bus(&now).await {
            tracing::error!(plugin = name, error = error.chain().join(": "), "A plugin's rules are not in force yet.");
            tokio::time::sleep(REFUSED_WAIT).await;
            inner.ground.bus.store().until_writable().await;
        }
        if let Err(error) = inner.mount() {
            tracing::error!(plugin = name, error = error.chain().join(": "), "A plugin's routes cannot be served.");
        }
    }

    /// Has the events of plugins that do not run wait for them.
    pub(super) async fn pause(&self, names: &[String]) {
        let _alone = self.inner.changing.lock().await;
        for known in names.iter().filter_map(|name| self.inner.known(name)) {
            self.show(known).await;
        }
    }

    async fn tell_bus(&self, now: &Known) -> Result<(), Error> {
        let bus = &self.inner.ground.bus;
        match self.consumer(now) {
            Some(consumer) => bus.register(vec![consumer]).await,
            None => {
                bus.unregister(&[consumer::name(&now.record.name)]).await;
                Ok(())
            }
        }
    }

    /// Removes the files of versions that nothing names any more. Their code may still run; it is mapped.
    async fn sweep(&self, gone: Vec<Version>) {
        let plugins = self.clone();
        let swept = blocking(move || {
            for version in gone {
                plugins.forget_code(&version.row);
                let place = plugins.inner.ground.place(&version.row.name, &version.row.digest);
                remove(&place);
                // Goes only when it is empty.
                let _kept = place.parent().map(std::fs::remove_dir);
            }
            Ok(())
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
