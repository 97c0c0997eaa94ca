//! Plugins: WebAssembly components that were installed. This is their registry: what is there, what was agreed to, which
//! version runs. The only module that knows the crate that runs them.

mod change;
mod consumer;
mod health;
pub mod host;
mod install;
mod polls;
mod running;
mod serve;
mod tools;
mod view;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use aman_plugin_host::{Artifact, Host};
pub use aman_plugin_host::{Caller, Request};
pub use change::AuditVersions;
pub use install::{Asked, Audit, Installed};
pub use running::{CallFault, Running};
pub use serve::{Kind, Payload, Refusal, Served, Stream};
pub use view::{PageShown, Shown, ShownVersion, Used};

use tokio_util::sync::CancellationToken;

use crate::bus::Bus;
use crate::error::Error;
use crate::package::{Envelope, Grant, Manifest, Route};
use crate::store::plugins as records;
use host::Services;

/// The argument by which the daemon's program becomes the compiler of components.
const COMPILE_ARG: &str = "__compile";

/// The file that this process is to write compiled code to, if it was started for that.
pub fn compiles() -> Option<PathBuf> {
    let mut args = std::env::args_os().skip(1);
    let is_compiler = args.next().is_some_and(|arg| arg == COMPILE_ARG);
    args.next().filter(|_| is_compiler).map(PathBuf::from)
}

/// Compiles the component on standard input into the file `output`; the exit code. Nothing else may run in the process.
pub fn compile_main(output: &Path) -> i32 {
    aman_plugin_host::compile_child(output)
}

/// A route that a plugin wants to be served.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The plugin.
    pub plugin: Arc<str>,
    /// The route, as its manifest has it.
    pub route: Route,
    /// The longest that a call may take.
    pub time_max: std::time::Duration,
    /// How the plugin spells errors on a listener of its own.
    pub errors: Option<Arc<Envelope>>,
}

/// Puts routes in force, all or none; with `true` only says whether that would go.
pub type Mounter = Box<dyn Fn(Vec<Wanted>, bool) -> Result<(), Error> + Send + Sync>;

/// What every plugin works with.
pub struct Ground {
    /// Compiles and loads.
    pub host: Host,
    /// The host functions.
    pub services: Services,
    /// The bus.
    pub bus: Bus,
    /// Where versions, staged packages and compiled code lie.
    pub folder: PathBuf,
    /// Cancelled when the daemon ends.
    pub ending: CancellationToken,
}

impl Ground {
    /// Where the files of a version lie.
    fn place(&self, name: &str, digest: &str) -> PathBuf {
        self.folder.join(name).join(digest)
    }

    fn staging(&self) -> PathBuf {
        self.folder.join(".staging")
    }
}

/// A version whose files are there.
#[derive(Clone)]
struct Version {
    row: records::Version,
    /// What is wrong with its manifest, for this version of the daemon.
    manifest: Result<Arc<Manifest>, String>,
}

/// A plugin.
#[derive(Clone)]
struct Known {
    record: records::Plugin,
    versions: Vec<Version>,
    /// The version that may run and is switched on.
    running: Option<Arc<Running>>,
}

impl Known {
    fn version(&self, digest: Option<&String>) -> Option<&Version> {
        let digest = digest?;
        self.versions.iter().find(|version| version.row.digest == *digest)
    }

    /// The version that may run.
    fn present(&self) -> Option<&Version> {
        self.version(self.record.digest.as_ref())
    }

    fn granted(&self) -> Vec<Grant> {
        serde_json::from_str(&self.record.granted).unwrap_or_default()
    }

    /// False for a name that was uninstalled and is kept with its data.
    fn is_there(&self) -> bool {
        self.record.digest.is_some() || self.record.pending.is_some()
    }
}

/// The plugins; cheap to clone.
#[derive(Clone)]
pub struct Plugins {
    inner: Arc<Inner>,
}

/// See [`Plugins`].
pub struct Inner {
    ground: Arc<Ground>,
    /// Held while something is changed, so that changes follow each other.
    changing: tokio::sync::Mutex<()>,
    /// Held while a package is unpacked and compiled, one at a time.
    installing: tokio::sync::Mutex<()>,
    known: RwLock<BTreeMap<String, Known>>,
    mounter: OnceLock<Mounter>,
}

impl Inner {
    /// The version of a plugin that runs.
    pub fn running(&self, name: &str) -> Option<Arc<Running>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).get(name)?.running.clone()
    }

    fn known(&self, name: &str) -> Option<Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    fn all(&self) -> Vec<Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The routes of everything that runs, with those of `other` in place of what runs under its name.
    fn routes(&self, other: Option<&Manifest>) -> Vec<Wanted> {
        let running: Vec<Arc<Manifest>> =
            self.all().iter().filter_map(|known| Some(Arc::clone(&known.running.as_ref()?.manifest))).collect();
        let others = running.iter().map(AsRef::as_ref).filter(|own| other.is_none_or(|other| other.name != own.name));
        others.chain(other).flat_map(wanted).collect()
    }

    /// Refuses routes and tools that somebody else has already.
    fn check_conflicts(&self, manifest: &Manifest) -> Result<(), Error> {
        if let Some(mounter) = self.mounter.get() {
            mounter(self.routes(Some(manifest)), true)?;
        }
        for known in self.all() {
            let Some(running) = known.running.filter(|running| running.manifest.name != manifest.name) else {
                continue;
            };
            let taken = |tool: &&crate::package::Tool| running.manifest.tools.iter().any(|own| own.name == tool.name);
            if let Some(tool) = manifest.tools.iter().find(taken) {
                let reason = format!("The plugin '{}' offers a tool '{}' already.", running.manifest.name, tool.name);
                return Err(Error::conflict("already_exists", reason));
            }
        }
        Ok(())
    }

    /// Serves the routes of what runs now.
    fn mount(&self) -> Result<(), Error> {
        self.mounter.get().map_or(Ok(()), |mounter| mounter(self.routes(None), false))
    }
}

fn wanted(manifest: &Manifest) -> Vec<Wanted> {
    let (plugin, limits): (Arc<str>, _) = (manifest.name.as_str().into(), &manifest.limits);
    // A call may wait as long for an instance as it may run, and its body has a time of its own.
    let time_max = limits.time * 2 + limits.wait + std::time::Duration::from_secs(25);
    let wanted = |route: &Route| Wanted {
        plugin: Arc::clone(&plugin),
        route: route.clone(),
        time_max,
        errors: manifest.errors.clone(),
    };
    manifest.routes.iter().map(wanted).collect()
}

impl Plugins {
    /// Registers everything that was installed below `<data>/plugins`; no code is loaded. What is wrong with one of them
    /// is told, and keeps the others from nothing.
    pub async fn start(bus: &Bus, services: Services, data: &Path, program: &Path) -> Result<Plugins, Error> {
        let folder = data.join("plugins");
        let compiler: Vec<OsString> = vec![program.into(), COMPILE_ARG.into()];
        let host = Host::new(folder.join(".code"), compiler);
        let ground = Arc::new(Ground { host, services, bus: bus.clone(), folder, ending: CancellationToken::new() });
        let (rows, versions) = bus.store().read(records::all).await?;
        let rests = bus.store().read(records::rests).await?;
        let mut by_name: BTreeMap<String, Vec<Version>> = BTreeMap::new();
        for row in versions {
            let manifest = Manifest::parse(&row.manifest).map(Arc::new).map_err(|error| error.to_string());
            by_name.entry(row.name.clone()).or_default().push(Version { row, manifest });
        }
        let known: BTreeMap<String, Known> = rows
            .into_iter()
            .map(|record| {
                let versions = by_name.remove(&record.name).unwrap_or_default();
                let mut known = Known { record, versions, running: None };
                known.running = running_of(&ground, &known, rests.get(&known.record.name));
                (known.record.name.clone(), known)
            })
            .collect();
        install::clean(&ground, &known).await;
        let inner = Inner {
            ground,
            changing: tokio::sync::Mutex::new(()),
            installing: tokio::sync::Mutex::new(()),
            known: RwLock::new(known),
            mounter: OnceLock::new(),
        };
        let plugins = Plugins { inner: Arc::new(inner) };
        let all = plugins.inner.all();
        bus.register(all.iter().filter_map(|known| plugins.consumer(known)).collect()).await?;
        Ok(plugins)
    }

    /// Says how routes are served, serves those of what runs, and begins to poll its sources. What cannot be served is
    /// left out, and told.
    pub async fn open(&self, mounter: Mounter) {
        let inner = &self.inner;
        if inner.mounter.set(mounter).is_err() {
            return;
        }
        let mut left_out = Vec::new();
        while let Err(error) = inner.mount() {
            // One plugin's routes at a time, in the order of names: the first that clashes stays out.
            let reason = error.to_string();
            let Some(name) = self.clashing() else {
                tracing::error!(reason, "The routes of plugins cannot be served.");
                break;
            };
            tracing::error!(plugin = name, reason, "A plugin's routes clash with others; it is left out.");
            let mut known = inner.known.write().unwrap_or_else(PoisonError::into_inner);
            left_out.push(name.clone());
            known.entry(name).and_modify(|known| known.running = None);
        }
        if !left_out.is_empty() {
            let plugins = self.clone();
            tokio::spawn(async move { plugins.pause(&left_out).await });
        }
        for known in inner.all() {
            if let Some(running) = &known.running {
                polls::start(running, &inner.ground.bus).await;
            }
        }
    }

    /// The first plugin whose routes clash with the core's or with those of plugins before it.
    fn clashing(&self) -> Option<String> {
        let mounter = self.inner.mounter.get()?;
        let mut so_far: Vec<Wanted> = Vec::new();
        self.inner.all().iter().filter_map(|known| known.running.as_ref()).find_map(|running| {
            so_far.extend(wanted(&running.manifest));
            mounter(so_far.clone(), true).is_err().then(|| running.manifest.name.clone())
        })
    }

    /// The host functions, for who changes their settings.
    pub fn services(&self) -> &Services {
        &self.inner.ground.services
    }

    /// The version of a plugin that runs.
    pub fn running(&self, name: &str) -> Option<Arc<Running>> {
        self.inner.running(name)
    }

    /// Ends all polls and streams.
    pub fn stop(&self) {
        self.inner.ground.ending.cancel();
    }

    /// What the bus gets for a plugin; nothing for one that wants no events.
    fn consumer(&self, known: &Known) -> Option<(crate::bus::ConsumerSpec, Arc<dyn crate::bus::Consumer>)> {
        let manifest = known.present()?.manifest.as_ref().ok()?;
        let spec = consumer::spec(manifest, known.running.is_some())?;
        let events = consumer::Events { plugins: Arc::downgrade(&self.inner), name: known.record.name.clone() };
        Some((spec, Arc::new(events)))
    }
}

/// The version of a plugin that is to run, not loaded yet, with what is left of a rest.
fn running_of(ground: &Arc<Ground>, known: &Known, rest: Option<&records::Rest>) -> Option<Arc<Running>> {
    let version = known.present().filter(|_| known.record.enabled)?;
    let name = &known.record.name;
    let manifest = match &version.manifest {
        Ok(manifest) => Arc::clone(manifest),
        Err(reason) => {
            tracing::error!(plugin = name, reason, "A plugin cannot be run by this version of aman; it is left out.");
            return None;
        }
    };
    let place = ground.place(name, &version.row.digest);
    let running = Running::new(ground, version.row.clone(), manifest, place);
    Some(Arc::new(match rest {
        Some(rest) => running.with_rest(rest),
        None => running,
    }))
}

fn artifact_of(row: &records::Version) -> Artifact {
    Artifact { component_sha256: row.component_sha256.clone(), sha256: row.code_sha256.clone(), bytes: row.code_bytes }
}
