//! Skills: folders with a `SKILL.md`. This is their registry: what is there, what may run, what the bus knows of it.

mod answer;
pub mod author;
mod by_agent;
mod clear;
mod folder;
mod front;
mod history;
mod load;
mod manifest;
mod run;
mod stats;
mod tools;
mod view;
mod watch;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, Weak};
use std::time::Duration;

use serde::Serialize;
use serde_json::json;

pub use crate::sandbox::{Permissions, Places};
pub use by_agent::{Agency, ForAgent};
pub use folder::File;
pub use load::{Failed, Place, SearchPath, Shadowed};
pub use manifest::{Manifest, Run, Schedule, check_name};
pub use tools::SkillTools;
pub use view::{Shown, Text, Trigger, VersionShown};

use crate::bundled;
use crate::bus::{Bus, Consumer, ConsumerSpec, Origin, Standing};
use crate::clock::Clock;
use crate::error::Error;
use crate::event::{NewEvent, Trust};
use crate::sandbox::{Private, Sandbox};
use crate::store::skills::{self as records, Decided};
use crate::store::{Store, Tx, skill_words};
use by_agent::Thinker;
use load::{Found, Scan};
use run::{OnChange, Refuser, Runner, Script, Surroundings};
use stats::Stats;

/// How much longer than a script's own limit the bus waits, so that the sandbox ends it and says so.
const SLACK: Duration = Duration::from_secs(10);
/// Why a skill that needs a model does not run.
const NO_MODEL: &str = "no model configured";
/// How long an attempt of an agent may take in all, waiting for approvals included: these expire before.
const TURN_MAX: Duration = Duration::from_secs(48 * 3600);

/// Where skills lie and what they work with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the skills of the binary are unpacked; the first search path.
    pub bundled: PathBuf,
    /// The data folder's `skills`; the second search path.
    pub own: PathBuf,
    /// `[skills] paths`.
    pub configured: Vec<PathBuf>,
    /// `~/.agents/skills`; none when `AMAN_HOME` is set.
    pub agents: Option<PathBuf>,
    /// Every attempt gets a folder below it; emptied at start.
    pub work: PathBuf,
    /// This program's file.
    pub binary: PathBuf,
    /// What `~` and `$AMAN_DATA` stand for.
    pub places: Places,
    /// What no permission may reach.
    pub private: Private,
}

impl Settings {
    fn search_paths(&self) -> Vec<SearchPath> {
        let at = |place| move |path: &PathBuf| SearchPath { place, path: path.clone() };
        let own = [at(Place::Bundled)(&self.bundled), at(Place::Data)(&self.own)];
        own.into_iter()
            .chain(self.configured.iter().map(at(Place::Configured)))
            .chain(self.agents.iter().map(at(Place::Agents)))
            .collect()
    }
}

/// What a reload found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Reloaded {
    /// Names that are new.
    pub added: Vec<String>,
    /// Names whose content, place or standing is another one.
    pub changed: Vec<String>,
    /// Names that are gone, or broken now.
    pub removed: Vec<String>,
    /// What could not be loaded.
    pub failed: Vec<Failed>,
    /// What another skill of the same name hides.
    pub shadowed: Vec<Shadowed>,
}

/// A skill as the registry holds it.
struct Skill {
    found: Found,
    enabled: bool,
    trusted: bool,
    /// True when it needs a model and there is none.
    no_model: bool,
    stats: Arc<Stats>,
}

impl Skill {
    fn standing(&self) -> Standing {
        if !self.trusted {
            Standing::Untrusted
        } else if !self.enabled || self.no_model {
            Standing::Disabled
        } else {
            Standing::Active
        }
    }

    /// Why it does not run; none when it does.
    fn reason(&self) -> Option<String> {
        let name = &self.found.manifest.name;
        if !self.trusted {
            Some(format!(
                "its content {} is not trusted; read it, then enable '{name}' with this digest",
                self.found.content.digest
            ))
        } else if !self.enabled {
            Some(format!("it is switched off; enable '{name}' to let it run"))
        } else if self.no_model {
            Some(NO_MODEL.to_owned())
        } else {
            None
        }
    }

    /// True when the bus has to hear of it as `self` after `before`.
    fn differs(&self, before: &Skill) -> bool {
        let key = |skill: &Skill| (skill.standing(), skill.enabled, skill.found.place);
        key(self) != key(before)
            || self.found.content.digest != before.found.content.digest
            || self.found.path != before.found.path
    }
}

/// The skills of this daemon; cheap to clone.
#[derive(Clone)]
pub struct Skills {
    inner: Arc<Inner>,
}

struct Inner {
    settings: Settings,
    surroundings: Arc<Surroundings>,
    store: Store,
    bus: Bus,
    clock: Clock,
    sandbox: Sandbox,
    loaded: RwLock<BTreeMap<String, Arc<Skill>>>,
    /// What could not be loaded the last time.
    failed: RwLock<Vec<Failed>>,
    /// Who does what is for agents.
    agency: OnceLock<Agency>,
    /// Set while a reload waits to begin that a run asked for: one is enough for all who ask.
    asked: AtomicBool,
    /// Held while something changes, so that changes follow each other.
    changing: tokio::sync::Mutex<()>,
}

impl Skills {
    /// Unpacks the bundled skills, loads all and registers them with the bus. A bad skill is reported and left out.
    pub async fn start(settings: Settings, bus: &Bus, sandbox: Sandbox) -> Result<(Skills, Reloaded), Error> {
        let (unpack_to, work, own) = (settings.bundled.clone(), settings.work.clone(), settings.own.clone());
        tokio::task::spawn_blocking(move || {
            if let Err(error) = std::fs::create_dir_all(&own) {
                tracing::warn!(path = %own.display(), %error, "The folder for skills could not be made.");
            }
            if let Err(error) = clear::remove(&work) {
                tracing::warn!(path = %work.display(), %error, "What scripts left could not be removed.");
            }
            std::fs::create_dir_all(&work).map_err(Error::internal("making the folder for scripts' work"))?;
            bundled::unpack_skills(&unpack_to)
        })
        .await
        .map_err(Error::internal("unpacking the bundled skills"))??;
        let surroundings = Surroundings {
            data: settings.places.data.clone(),
            work: settings.work.clone(),
            binary: settings.binary.clone(),
        };
        let skills = Skills {
            inner: Arc::new(Inner {
                surroundings: Arc::new(surroundings),
                store: bus.store().clone(),
                bus: bus.clone(),
                clock: bus.clock().clone(),
                sandbox,
                loaded: RwLock::default(),
                failed: RwLock::default(),
                agency: OnceLock::new(),
                asked: AtomicBool::new(false),
                changing: tokio::sync::Mutex::default(),
                settings,
            }),
        };
        let report = skills.reload(|_| Ok(())).await?;
        Ok((skills, report))
    }

    /// Reads all skills from the disk again. `audit` is written in the same transaction as what is recorded of them.
    pub async fn reload<A>(&self, audit: A) -> Result<Reloaded, Error>
    where
        A: FnOnce(&mut Tx<'_>) -> Result<(), Error> + Send + 'static,
    {
        let _alone = self.inner.changing.lock().await;
        self.inner.load(None, audit).await
    }

    /// Switches a skill on. `digest` names the content that the caller has seen: it is needed for one that is not
    /// trusted, and refused as `version_conflict` when it is not the content that is loaded.
    pub async fn enable<A>(&self, name: &str, digest: Option<&str>, audit: A) -> Result<Shown, Error>
    where
        A: FnOnce(&mut Tx<'_>) -> Result<(), Error> + Send + 'static,
    {
        let _alone = self.inner.changing.lock().await;
        let skill = self.inner.skill(name)?;
        let current = &skill.found.content.digest;
        match digest {
            Some(digest) if digest != current => Err(Error::conflict(
                "version_conflict",
                format!("The content of '{name}' is {current} now, not {digest}. Look at it again."),
            )),
            None if !skill.trusted => Err(Error::conflict(
                "invalid_state",
                format!("The content of '{name}' is not trusted. Read it, then enable it with its digest {current}."),
            )),
            _ => self.decide(&skill, true, audit).await,
        }
    }

    /// Switches a skill off. Deliveries that wait for it wait on.
    pub async fn disable<A>(&self, name: &str, audit: A) -> Result<Shown, Error>
    where
        A: FnOnce(&mut Tx<'_>) -> Result<(), Error> + Send + 'static,
    {
        let _alone = self.inner.changing.lock().await;
        let skill = self.inner.skill(name)?;
        self.decide(&skill, false, audit).await
    }

    /// Records the decision and its audit row in one transaction, then tells the bus.
    async fn decide<A>(&self, skill: &Arc<Skill>, enabled: bool, audit: A) -> Result<Shown, Error>
    where
        A: FnOnce(&mut Tx<'_>) -> Result<(), Error> + Send + 'static,
    {
        let inner = &self.inner;
        let name = skill.found.manifest.name.clone();
        // Switching off decides nothing about the content.
        let trust = enabled.then(|| skill.found.content.digest.clone());
        let (key, now_ms) = (name.clone(), inner.clock.now_ms());
        inner
            .store
            .write(move |tx| {
                records::decide(tx, &key, enabled, trust.as_deref(), now_ms)?;
                audit(tx)
            })
            .await?;
        let decided = Arc::new(Skill {
            found: skill.found.clone(),
            enabled,
            trusted: skill.trusted || enabled,
            no_model: skill.no_model,
            stats: Arc::clone(&skill.stats),
        });
        inner.bus.register(inner.consumer(&decided).into_iter().collect()).await?;
        inner.loaded.write().unwrap_or_else(PoisonError::into_inner).insert(name, Arc::clone(&decided));
        Ok(view::show(&decided, inner.sandbox.probed()))
    }

    /// Sets who does what is for agents, and has skills that wait for that run.
    pub async fn serve_agents(&self, agency: Agency) -> Result<(), Error> {
        let _first = self.inner.agency.set(agency);
        self.refresh().await
    }

    /// Looks again whether skills that need a model can run.
    pub async fn refresh(&self) -> Result<(), Error> {
        let loaded = self.inner.loaded.read().unwrap_or_else(PoisonError::into_inner).clone();
        if loaded.values().all(|skill| skill.found.manifest.run != Run::Agent) {
            return Ok(());
        }
        self.reload(|_| Ok(())).await.map(drop)
    }

    fn weak(&self) -> Weak<Inner> {
        Arc::downgrade(&self.inner)
    }
}

impl Inner {
    fn skill(&self, name: &str) -> Result<Arc<Skill>, Error> {
        let loaded = self.loaded.read().unwrap_or_else(PoisonError::into_inner);
        loaded.get(name).cloned().ok_or_else(|| Error::not_found("skill", name))
    }

    /// Reads all skills; whoever calls holds `changing`. `agreed` names a skill and the content of it that may run from now on.
    async fn load<A>(self: &Arc<Self>, agreed: Option<(&str, &str)>, audit: A) -> Result<Reloaded, Error>
    where
        A: FnOnce(&mut Tx<'_>) -> Result<(), Error> + Send + 'static,
    {
        let (paths, places) = (self.settings.search_paths(), self.settings.places.clone());
        let scan = tokio::task::spawn_blocking(move || load::scan(&paths, &places))
            .await
            .map_err(Error::internal("loading the skills"))?;
        let decided = self.store.read(records::decided).await?;
        let mut decided: BTreeMap<String, Decided> = decided.into_iter().map(|one| (one.name.clone(), one)).collect();
        if let Some((name, digest)) = agreed {
            let unknown = || Decided { name: name.to_owned(), enabled: None, trusted: None };
            decided.entry(name.to_owned()).or_insert_with(unknown).trusted = Some(digest.to_owned());
        }
        let before = self.loaded.read().unwrap_or_else(PoisonError::into_inner).clone();
        let kept_stats = self.kept_stats(&scan, &before).await?;
        let Scan { found, failed, shadowed } = scan;
        let no_model = self.has_no_model(&found).await;
        let mut now: BTreeMap<String, Arc<Skill>> = found
            .into_iter()
            .map(|(name, found)| {
                let stats = before.get(&name).map(|before| Arc::clone(&before.stats));
                let stats = stats.or_else(|| kept_stats.get(&name).map(|kept| Arc::new(Stats::of(kept))));
                let skill = self.assess(found, decided.get(&name), stats.unwrap_or_default(), no_model);
                (name, Arc::new(skill))
            })
            .collect();
        keep_unfinished(&before, &mut now, &failed);
        let gone = self.keep(&now).await?;
        self.record(&now, gone, audit).await?;
        let report = compare(&before, &now, failed, shadowed);
        self.tell_bus(&before, &now, &report).await?;
        self.tell_untrusted(&now, &decided).await;
        log(&report);
        self.failed.write().unwrap_or_else(PoisonError::into_inner).clone_from(&report.failed);
        *self.loaded.write().unwrap_or_else(PoisonError::into_inner) = now;
        Ok(report)
    }

    /// The counts that are kept, if a skill was found that is not loaded.
    async fn kept_stats(
        &self,
        scan: &Scan,
        before: &BTreeMap<String, Arc<Skill>>,
    ) -> Result<BTreeMap<String, records::Stats>, Error> {
        if scan.found.keys().all(|name| before.contains_key(name)) {
            return Ok(BTreeMap::new());
        }
        Ok(self.store.read(records::stats).await?.into_iter().collect())
    }

    fn assess(&self, found: Found, decided: Option<&Decided>, stats: Arc<Stats>, no_model: bool) -> Skill {
        let data = &self.settings.places.data;
        // What came with the daemon and reaches beyond its data folder waits for a word of its owner.
        let reaches_out = found.place == Place::Bundled && found.manifest.permissions.writes_outside(data).is_some();
        Skill {
            enabled: decided.and_then(|decided| decided.enabled).unwrap_or(!reaches_out),
            trusted: load::is_trusted(found.place, &found.content.digest, decided),
            no_model: no_model && found.manifest.run == Run::Agent,
            stats,
            found: self.warn_of_refusal(found),
        }
    }

    /// A permission that the sandbox will refuse is told before the first event meets it.
    fn warn_of_refusal(&self, mut found: Found) -> Found {
        let refused = found.manifest.permissions.reaching(&self.settings.private);
        let warning = refused.map(|(path, private)| {
            let (path, private) = (path.display(), private.display());
            format!("metadata.aman.permissions: {path} reaches the daemon's own {private}; the script will be refused.")
        });
        if let Some(warning) = warning {
            Arc::make_mut(&mut found.manifest).warnings.push(warning);
        }
        found
    }

    /// Whether there is nobody to do what is for agents; asked only when something is.
    async fn has_no_model(&self, found: &BTreeMap<String, Found>) -> bool {
        if found.values().all(|found| found.manifest.run != Run::Agent) {
            return true;
        }
        match self.agency.get() {
            Some(agency) => !(agency.has_model)().await,
            None => true,
        }
    }

    async fn record<A>(&self, now: &BTreeMap<String, Arc<Skill>>, gone: Vec<String>, audit: A) -> Result<(), Error>
    where
        A: FnOnce(&mut Tx<'_>) -> Result<(), Error> + Send + 'static,
    {
        let seen: Vec<records::Found> = now
            .values()
            .map(|skill| records::Found {
                name: skill.found.manifest.name.clone(),
                digest: skill.found.content.digest.clone(),
                version: skill.found.manifest.version.clone(),
                origin: skill.found.place.name().to_owned(),
                path: skill.found.path.display().to_string(),
                trusted: skill.trusted,
            })
            .collect();
        let now_ms = self.clock.now_ms();
        self.store
            .write(move |tx| {
                seen.iter().try_for_each(|one| records::see(tx, one, now_ms))?;
                gone.iter().try_for_each(|name| skill_words::remove(tx, name))?;
                audit(tx)
            })
            .await
    }

    async fn tell_bus(
        self: &Arc<Self>,
        before: &BTreeMap<String, Arc<Skill>>,
        now: &BTreeMap<String, Arc<Skill>>,
        report: &Reloaded,
    ) -> Result<(), Error> {
        let fresh = report.added.iter().chain(&report.changed).filter_map(|name| now.get(name));
        let consumers: Vec<_> = fresh.filter_map(|skill| self.consumer(skill)).collect();
        if !consumers.is_empty() {
            self.bus.register(consumers).await?;
        }
        let acts = |skills: &BTreeMap<String, Arc<Skill>>, name: &String| {
            skills.get(name).is_some_and(|skill| skill.found.manifest.run != Run::Nothing)
        };
        let gone: Vec<String> = before
            .keys()
            .filter(|name| acts(before, name) && !acts(now, name))
            .map(|name| format!("skill/{name}"))
            .collect();
        if !gone.is_empty() {
            self.bus.unregister(&gone).await;
        }
        Ok(())
    }

    /// Publishes `aman.skill.untrusted` for each skill whose content is another one than its owner agreed to.
    async fn tell_untrusted(&self, now: &BTreeMap<String, Arc<Skill>>, decided: &BTreeMap<String, Decided>) {
        let agreed = |name: &String| decided.get(name).is_some_and(|decided| decided.trusted.is_some());
        for (name, skill) in now.iter().filter(|(name, skill)| !skill.trusted && agreed(name)) {
            let digest = &skill.found.content.digest;
            let event = NewEvent {
                subject: Some(name.clone()),
                // One content is told once within `bus.dedup_window`, however often the skills are read.
                dedup_key: Some(format!("untrusted/{name}/{digest}")),
                ..NewEvent::new(
                    "aman/skills",
                    "aman.skill.untrusted",
                    &json!({ "name": name, "digest": digest, "path": skill.found.path }),
                )
            };
            self.bus.announce(event, Origin::own("aman/skills")).await;
        }
    }

    /// What the bus gets for a skill; nothing for one that only has text.
    fn consumer(self: &Arc<Self>, skill: &Arc<Skill>) -> Option<(ConsumerSpec, Arc<dyn Consumer>)> {
        let manifest = &skill.found.manifest;
        if manifest.run == Run::Nothing {
            return None;
        }
        let spec = ConsumerSpec {
            name: format!("skill/{}", manifest.name),
            kind: "skill",
            rules: manifest.rules.clone(),
            concurrency: manifest.concurrency,
            retry: manifest.retry,
            timeout: if manifest.run == Run::Agent { TURN_MAX } else { manifest.timeout + SLACK },
            trust: Trust::Owner,
            standing: skill.standing(),
            acts_outside: true,
        };
        let consumer: Arc<dyn Consumer> = match (&manifest.run, skill.reason(), self.agency.get()) {
            (Run::Script(argv), None, _) => Arc::new(Runner {
                script: Script {
                    manifest: Arc::clone(manifest),
                    argv: argv.clone(),
                    folder: skill.found.path.clone(),
                    surroundings: Arc::clone(&self.surroundings),
                    sandbox: self.sandbox.clone(),
                },
                content: skill.found.content.clone(),
                stats: Arc::clone(&skill.stats),
                store: self.store.clone(),
                clock: self.clock.clone(),
                on_change: reload_later(Skills { inner: Arc::clone(self) }.weak()),
            }),
            (Run::Agent, None, Some(agency)) => Arc::new(Thinker {
                manifest: Arc::clone(manifest),
                folder: skill.found.path.clone(),
                content: skill.found.content.clone(),
                stats: Arc::clone(&skill.stats),
                store: self.store.clone(),
                clock: self.clock.clone(),
                on_change: reload_later(Skills { inner: Arc::clone(self) }.weak()),
                agency: agency.clone(),
            }),
            (_, reason, _) => Arc::new(Refuser {
                why: format!("the skill may not run: {}", reason.unwrap_or_default()),
                manifest: Arc::clone(manifest),
            }),
        };
        Some((spec, consumer))
    }
}

/// Reads the skills again, without holding up who asks.
fn reload_later(inner: Weak<Inner>) -> OnChange {
    Arc::new(move || {
        let Some(inner) = inner.upgrade() else { return };
        if inner.asked.swap(true, Ordering::AcqRel) {
            return;
        }
        tokio::spawn(async move {
            drop(inner.changing.lock().await);
            // What changes from here on this reload may miss, so the next to ask gets one of its own.
            inner.asked.store(false, Ordering::Release);
            if let Err(error) = (Skills { inner }).reload(|_| Ok(())).await {
                tracing::warn!(%error, "The skills could not be read again.");
            }
        });
    })
}

/// A skill in whose folder somebody writes at this moment stays what it was: the reading after that finds it complete, and
/// until then no run takes it for what was loaded.
fn keep_unfinished(before: &BTreeMap<String, Arc<Skill>>, now: &mut BTreeMap<String, Arc<Skill>>, failed: &[Failed]) {
    let folders: Vec<_> = failed.iter().filter_map(|failed| failed.unfinished.as_ref()).collect();
    for (name, skill) in before.iter().filter(|(_, skill)| folders.contains(&&skill.found.path)) {
        now.entry(name.clone()).or_insert_with(|| Arc::clone(skill));
    }
}

fn compare(
    before: &BTreeMap<String, Arc<Skill>>,
    now: &BTreeMap<String, Arc<Skill>>,
    failed: Vec<Failed>,
    shadowed: Vec<Shadowed>,
) -> Reloaded {
    let changed = now.iter().filter(|(name, skill)| before.get(*name).is_some_and(|old| skill.differs(old)));
    Reloaded {
        added: now.keys().filter(|name| !before.contains_key(*name)).cloned().collect(),
        changed: changed.map(|(name, _)| name.clone()).collect(),
        removed: before.keys().filter(|name| !now.contains_key(*name)).cloned().collect(),
        failed,
        shadowed,
    }
}

fn log(report: &Reloaded) {
    for Failed { path, error, .. } in &report.failed {
        tracing::warn!(path, error, "A skill was left out.");
    }
    for Shadowed { name, path, by } in &report.shadowed {
        tracing::warn!(name, path, by, "A skill is hidden by another of the same name.");
    }
    let (added, changed, removed) = (report.added.len(), report.changed.len(), report.removed.len());
    tracing::info!(added, changed, removed, failed = report.failed.len(), "Skills were loaded.");
}
