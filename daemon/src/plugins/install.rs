//! Installing a package: staged, checked, compiled, agreed to, moved to its place, recorded, put in force. Whatever fails
//! on the way leaves nothing behind.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aman_plugin_host::{Artifact, Fault};
use bytes::Bytes;
use serde::Serialize;

use super::running::{Running, version_of};
use super::{Ground, Known, Plugins, Version, artifact_of, consumer};
use crate::clock::Millis;
use crate::error::Error;
use crate::id;
use crate::package::{FAULT, Grant, Manifest, Package, Permissions, Unpacked};
use crate::store::Tx;
use crate::store::plugins as records;

/// What the caller says of an installation.
#[derive(Debug, Clone, Copy, Default)]
pub struct Asked {
    /// Agrees to everything that it asks for.
    pub approve: bool,
    /// Takes a package without a signature.
    pub allow_unsigned: bool,
    /// Takes a version that is older than the present one.
    pub allow_downgrade: bool,
    /// Only says what would be.
    pub dry_run: bool,
}

/// Writes the beginning of an installation into the audit log.
pub type AuditBegin = Box<dyn FnOnce(&mut Tx<'_>, &str) -> Result<(), Error> + Send>;
/// Writes its end, in the transaction of the change.
pub type AuditDone = Box<dyn FnOnce(&mut Tx<'_>, &Installed) -> Result<(), Error> + Send>;

/// Writes the record of the audit log: of the beginning, and of the end together with the change.
pub struct Audit {
    /// Gets the plugin's name.
    pub begin: AuditBegin,
    /// Gets what is answered.
    pub done: AuditDone,
}

/// What an installation came to, or would.
#[derive(Debug, Clone, Serialize)]
pub struct Installed {
    /// The plugin.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Names its content.
    pub digest: String,
    /// Key id that signed it; null = unsigned.
    pub signed_by: Option<String>,
    /// What its manifest asks for.
    pub permissions: Permissions,
    /// Methods and paths of its routes.
    pub routes: Vec<String>,
    /// `active`, `disabled` or `pending_consent`.
    pub status: &'static str,
    /// Everything that it may do, in words.
    pub grants: Vec<Grant>,
    /// What of it was not agreed to yet.
    pub added: Vec<Grant>,
    /// The version that runs until then, or that it takes the place of.
    pub replaces: Option<String>,
    /// True when nothing was changed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

/// A folder that is removed unless it was moved away.
struct Staged(PathBuf);

impl Drop for Staged {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// Removes a folder, if it is there.
pub(super) fn remove(folder: &Path) {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(folder = %folder.display(), %error, "A folder of plugins could not be removed.");
        }
        _ => {}
    }
}

/// Runs what touches the disk where it holds up nobody.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(Error::internal("working on a plugin's files"))?
}

/// Settles what a crash left: staged packages, versions and code that no record names, data that were being removed.
pub(super) async fn clean(ground: &Arc<Ground>, known: &BTreeMap<String, Known>) {
    let (ground, staging) = (Arc::clone(ground), ground.staging());
    let names: Vec<String> = known.keys().cloned().collect();
    let components = known.values().flat_map(|known| &known.versions);
    let components: Vec<String> = components.map(|version| version.row.component_sha256.clone()).collect();
    let named: Vec<PathBuf> = known
        .values()
        .flat_map(|known| known.versions.iter().map(|version| ground.place(&known.record.name, &version.row.digest)))
        .collect();
    let cleaned = blocking(move || {
        remove(&staging);
        ground.host.forget_all_but(&components);
        let children = |folder: &Path| fs::read_dir(folder).map(|read| read.flatten().collect()).unwrap_or_default();
        let plugins: Vec<fs::DirEntry> = children(&ground.folder);
        for plugin in plugins.iter().filter(|entry| !entry.file_name().to_string_lossy().starts_with('.')) {
            let versions: Vec<fs::DirEntry> = children(&plugin.path());
            for version in versions.iter().map(fs::DirEntry::path).filter(|path| !named.contains(path)) {
                tracing::info!(path = %version.display(), "What an unfinished change of a plugin left is removed.");
                remove(&version);
            }
            // Goes only when it is empty.
            let _kept = fs::remove_dir(plugin.path());
        }
        let is_kept = |plugin: &str| names.iter().any(|name| name == plugin);
        ground.services.settle_files(is_kept).map_err(Error::internal("settling the removal of a plugin's data"))
    });
    if let Err(error) = cleaned.await {
        tracing::warn!(
            error = error.chain().join(": "),
            "What unfinished changes of plugins left could not be removed."
        );
    }
}

impl Plugins {
    /// Installs a package, or a new version of what is there.
    pub async fn install(&self, packed: Bytes, asked: Asked, audit: Audit) -> Result<Installed, Error> {
        // Others may change plugins while this one is compiled, which can take long. Whoever waited for that would keep a
        // whole package in memory meanwhile.
        let Ok(_installing) = self.inner.installing.try_lock() else {
            return Err(Error::Busy {
                code: "overloaded",
                what: "Another package is being installed, which may take a minute; one is at a time.".to_owned(),
                retry_after_ms: 5000,
            });
        };
        let staged = Staged(self.inner.ground.staging().join(id::fresh()));
        let done = self.install_staged(packed, &staged.0, asked, audit).await;
        blocking(move || {
            drop(staged);
            Ok(())
        })
        .await?;
        done
    }

    async fn install_staged(
        &self,
        packed: Bytes,
        staging: &Path,
        asked: Asked,
        audit: Audit,
    ) -> Result<Installed, Error> {
        let into = staging.to_owned();
        let package = blocking(move || {
            fs::create_dir_all(&into).map_err(Error::internal("making a folder for a package"))?;
            Package::open(&packed[..], &into)
        })
        .await?;
        check_policy(&package, self.inner.known(&package.manifest.name).as_ref(), asked)?;
        let artifact = self.compile(&package).await?;
        let _alone = self.inner.changing.lock().await;
        let known = self.inner.known(&package.manifest.name);
        let manifest = Arc::new(package.manifest.clone());
        let row = version_of(&package, &artifact, self.inner.ground.bus.clock().now_ms());
        let done = match check_policy(&package, known.as_ref(), asked) {
            Ok(()) => self.decide(known, package, manifest, row.clone(), asked, audit).await,
            Err(error) => Err(error),
        };
        if done.is_err() || asked.dry_run {
            let plugins = self.clone();
            blocking(move || {
                plugins.forget_code(&row);
                Ok(())
            })
            .await?;
        }
        done
    }

    async fn compile(&self, package: &Package) -> Result<Artifact, Error> {
        let component = tokio::fs::read(package.component()).await.map_err(Error::internal("reading a component"))?;
        self.inner.ground.host.compile(&component).await.map_err(|fault| match fault {
            Fault::Internal { reason } => Error::internal("compiling a component")(reason),
            fault => Error::invalid_as(FAULT, package.manifest.component.clone(), format!("{fault}.")),
        })
    }

    /// Removes compiled code that no version needs.
    pub(super) fn forget_code(&self, row: &records::Version) {
        let needed = |version: &Version| version.row.component_sha256 == row.component_sha256;
        if !self.inner.all().iter().any(|known| known.versions.iter().any(needed)) {
            self.inner.ground.host.forget(&artifact_of(row));
        }
    }

    async fn decide(
        &self,
        known: Option<Known>,
        package: Package,
        manifest: Arc<Manifest>,
        row: records::Version,
        asked: Asked,
        audit: Audit,
    ) -> Result<Installed, Error> {
        let ground = &self.inner.ground;
        let name = manifest.name.clone();
        let tried = Running::new(ground, row.clone(), Arc::clone(&manifest), package.folder.clone());
        let tried = Arc::new(tried);
        let checked = tried.check().await;
        tried.close().await;
        checked?;
        tried.schemas()?;
        self.inner.check_conflicts(&manifest)?;
        let grants = manifest.grants();
        let granted = known.as_ref().filter(|known| known.record.digest.is_some()).map(Known::granted);
        let added = Grant::widened(&grants, &granted.unwrap_or_default());
        let may_run = added.is_empty() || asked.approve;
        let record = record_after(known.as_ref(), &package, &row, &grants, may_run, ground.bus.clock().now_ms())?;
        let status = match (may_run, record.enabled) {
            (false, _) => "pending_consent",
            (true, false) => "disabled",
            (true, true) => "active",
        };
        let replaces = known.as_ref().and_then(Known::present).map(|version| version.row.version.clone());
        let installed = Installed {
            name: name.clone(),
            version: row.version.clone(),
            digest: row.digest.clone(),
            signed_by: row.signed_by.clone(),
            permissions: manifest.permissions.clone(),
            routes: manifest.routes.iter().map(|route| route.shown()).collect(),
            status,
            grants,
            added,
            replaces,
            dry_run: asked.dry_run,
        };
        if asked.dry_run {
            return Ok(installed);
        }
        let Audit { begin, done } = audit;
        let begun = name.clone();
        ground.bus.store().write(move |tx| begin(tx, &begun)).await?;
        let place = ground.place(&name, &row.digest);
        if !known.as_ref().is_some_and(Known::is_there) {
            // What a crash left of who had the name before.
            ground.bus.give_up(&consumer::name(&name), Millis::MAX).await?;
        }
        let is_new = known.as_ref().and_then(|known| known.version(Some(&row.digest))).is_none();
        let (from, to, files) = (package.folder, place.clone(), package.files);
        blocking(move || if is_new || !is_whole(&to, &files) { move_to(&from, &to) } else { Ok(()) }).await?;
        let answer = installed.clone();
        let version = Version { row, manifest: Ok(manifest) };
        let turned = self.turn(record, Some(version), Box::new(move |tx| done(tx, &answer))).await;
        if turned.is_err() && is_new {
            blocking(move || {
                remove(&place);
                Ok(())
            })
            .await?;
        }
        turned.map(|()| installed)
    }
}

/// Whether everything of a package lies at its place as it was.
fn is_whole(place: &Path, files: &BTreeMap<String, Unpacked>) -> bool {
    files.iter().all(|(name, file)| {
        let path = place.join(name);
        fs::metadata(&path).is_ok_and(|found| found.is_file() && found.len() == file.size)
            && fs::read(&path).is_ok_and(|bytes| id::sha256_hex(&bytes) == file.sha256)
    })
}

/// Moves a staged package to its place, durably.
fn move_to(from: &Path, to: &Path) -> Result<(), Error> {
    let wrong = Error::internal::<std::io::Error>;
    let parent = to.parent().unwrap_or(to);
    fs::create_dir_all(parent).map_err(wrong("making a plugin's folder"))?;
    // What an unfinished change left under this digest, or what became of it since it was installed.
    remove(to);
    fs::rename(from, to).map_err(wrong("moving a package to its place"))?;
    for folder in [parent, parent.parent().unwrap_or(parent)] {
        fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(wrong("making a package durable"))?;
    }
    Ok(())
}

/// Whose package it is, and whether it is older than what is there.
fn check_policy(package: &Package, known: Option<&Known>, asked: Asked) -> Result<(), Error> {
    let manifest = &package.manifest;
    let name = &manifest.name;
    let key = package.signed_by.as_ref().and(manifest.publisher.as_ref());
    let pinned = known.and_then(|known| known.record.publisher.as_ref());
    if let Some(pinned) = pinned
        && key != Some(pinned)
    {
        let given = if key.is_some() { "has the key of another publisher" } else { "is not signed" };
        let reason = format!(
            "'{name}' was installed with signed packages, and this one {given}. If its publisher has a new key, uninstall it \
             with its data (purge_data), then install this one."
        );
        return Err(Error::Forbidden { code: "publisher_changed", reason });
    }
    if key.is_none() && !asked.allow_unsigned {
        let reason = format!(
            "The package of '{name}' is not signed: nobody vouches that it is what its author made. If you know where it \
             is from, install it with ?allow_unsigned=true (--allow-unsigned)."
        );
        return Err(Error::Forbidden { code: "unsigned_plugin", reason });
    }
    let present = known.and_then(|known| known.present().or_else(|| known.version(known.record.pending.as_ref())));
    let older = present.and_then(|version| semver::Version::parse(&version.row.version).ok());
    if let Some(present) = older.filter(|present| *present > manifest.version && !asked.allow_downgrade) {
        let reason = format!(
            "'{name}' is there as {present}, which is newer than {}. Go back with a rollback, or with \
             ?allow_downgrade=true (--allow-downgrade).",
            manifest.version
        );
        return Err(Error::Conflict { code: "plugin_downgrade", reason });
    }
    Ok(())
}

/// The record of the plugin once the package is there.
fn record_after(
    known: Option<&Known>,
    package: &Package,
    row: &records::Version,
    grants: &[Grant],
    may_run: bool,
    now_ms: Millis,
) -> Result<records::Plugin, Error> {
    let before = known.map(|known| known.record.clone());
    let was_there = known.is_some_and(Known::is_there);
    let key = package.signed_by.as_ref().and(package.manifest.publisher.clone());
    let mut record = before.unwrap_or_else(|| records::Plugin {
        name: row.name.clone(),
        enabled: true,
        digest: None,
        previous: None,
        pending: None,
        publisher: None,
        granted: "[]".to_owned(),
        updated_ms: now_ms,
    });
    record.enabled |= !was_there;
    record.publisher = record.publisher.or(key);
    record.updated_ms = now_ms;
    if may_run {
        take(&mut record, row.digest.clone(), grants)?;
    } else if record.digest.as_ref() != Some(&row.digest) {
        record.pending = Some(row.digest.clone());
    }
    Ok(record)
}

/// Makes `digest` the version that may run.
pub(super) fn take(record: &mut records::Plugin, digest: String, grants: &[Grant]) -> Result<(), Error> {
    record.granted = serde_json::to_string(grants).map_err(Error::internal("recording what was agreed to"))?;
    if record.digest.as_ref() != Some(&digest) {
        record.previous = record.digest.replace(digest);
    }
    record.pending = None;
    Ok(())
}
