//! Runs aman's plugins: WebAssembly components in a sandbox with limits. The only crate that knows wasmtime.
//!
//! [`Host`] compiles components (in a child process) and loads the code; a [`Plugin`] is called from any runtime and runs
//! its guests on a runtime of their own; what a guest may do reaches the daemon through [`HostApi`]; what goes wrong is a
//! [`Fault`]. Guests see the interface in schemas/wit.
//!
//! Nothing is made before the first plugin is loaded: no engine, no thread, no timer.

mod agents;
mod api;
mod bindings;
mod body;
mod compile;
mod engine;
mod fault;
mod imports;
mod inspect;
mod instance;
pub mod limits;
mod plugin;
mod state;
mod values;
mod wasi;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

pub use api::{HostApi, Reply, TurnFrames};
pub use body::BodyStream;
pub use compile::{Artifact, COMPONENT_BYTES_MAX, compile_child, sha256_hex};
pub use fault::{Fault, Which};
pub use inspect::{INTERFACE, Surface};
pub use limits::{Isolation, Limits};
pub use plugin::{Plugin, Stats};
pub use values::*;

use compile::Cache;
use engine::Machine;
use limits::Rates;
use state::Common;

/// What a manifest asks for and the operator has granted, as far as imports depend on it. Which types, hosts and sizes is
/// for [`HostApi`] to decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Grants {
    /// `bus`.
    pub publish: bool,
    /// `kv`.
    pub kv: bool,
    /// `sql`.
    pub sql: bool,
    /// `http-client`.
    pub http: bool,
    /// `workflows`.
    pub workflows: bool,
    /// `notify`.
    pub notify: bool,
    /// `list` and `read` of `agents`.
    pub agents_read: bool,
    /// `put` and `remove` of `agents`.
    pub agents_manage: bool,
    /// `chat`.
    pub chat: bool,
}

/// What a plugin is loaded with.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Its name, which the guest is told.
    pub name: String,
    /// Its version, which the guest is told.
    pub version: String,
    /// Its compiled code, as the daemon's database knows it.
    pub artifact: Artifact,
    /// What it may import.
    pub grants: Grants,
    /// What it may use; the host clamps it.
    pub limits: Limits,
}

/// Compiles and loads plugins. Making one costs nothing.
pub struct Host {
    cache: Cache,
    machine: Mutex<Weak<Machine>>,
}

impl Host {
    /// A host that keeps compiled code in the folder `cache` (made with mode 0700 when it is needed), and compiles by
    /// running `compiler`, a program and its arguments, to which it appends the path of the output: the daemon gives its
    /// own program and the command whose `main` calls [`compile_child`].
    pub fn new(cache: PathBuf, compiler: Vec<OsString>) -> Host {
        Host { cache: Cache::new(cache, compiler), machine: Mutex::new(Weak::new()) }
    }

    /// The machine, made when there is none.
    fn machine(&self) -> Result<Arc<Machine>, Fault> {
        let mut place = self.machine.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(machine) = place.upgrade() {
            return Ok(machine);
        }
        let machine = Arc::new(Machine::new()?);
        *place = Arc::downgrade(&machine);
        Ok(machine)
    }

    /// Compiles a component in a child process and keeps the code in the cache. Takes seconds; needs a tokio runtime with
    /// I/O and processes. [`Fault::Refused`] says what is wrong with the component.
    pub async fn compile(&self, component: &[u8]) -> Result<Artifact, Fault> {
        compile::check_component(component)?;
        let machine = self.machine()?;
        self.cache.compile(component, &machine.compatibility).await
    }

    /// Loads compiled code and holds what it imports against its grants. Reads the file and blocks for about a
    /// millisecond; no code of the guest runs yet: see [`Plugin::probe`].
    ///
    /// [`Fault::Damaged`] means: compile the component again. It is what comes after an update of the daemon, too.
    pub fn load(&self, setup: Setup) -> Result<Plugin, Fault> {
        let machine = self.machine()?;
        let component = self.cache.load(&machine.engine, &machine.compatibility, &setup.artifact)?;
        let ty = component.component_type();
        let imports: Vec<&str> = ty.imports(&machine.engine).map(|(name, _)| name).collect();
        let exports: Vec<&str> = ty.exports(&machine.engine).map(|(name, _)| name).collect();
        let surface = inspect::surface(&imports, &exports, &setup.grants)?;
        let misfit = |error: wasmtime::Error| {
            Fault::refused(format!("it does not fit the interface {INTERFACE} of this daemon: {error:#}"))
        };
        let pre = if surface.wasi {
            let mut linker = machine.linker.clone();
            wasi::link(&mut linker, &component).map_err(misfit)?;
            linker.instantiate_pre(&component)
        } else {
            machine.linker.instantiate_pre(&component)
        };
        let common = Common {
            name: setup.name,
            version: setup.version,
            grants: setup.grants,
            rates: Rates::new(),
            ticker: Arc::clone(&machine.ticker),
        };
        Plugin::new(machine, common, pre.map_err(misfit)?, surface, setup.limits.clamped())
    }

    /// Removes all compiled code but that of these components, named by their digests, and what a crash left; blocks.
    pub fn forget_all_but(&self, component_sha256s: &[String]) {
        self.cache.forget_all_but(component_sha256s);
    }

    /// Removes the compiled code of a component; plugins that run go on.
    pub fn forget(&self, artifact: &Artifact) {
        self.cache.forget(&artifact.component_sha256);
    }
}
