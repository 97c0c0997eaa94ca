//! Compiling a component in a child process, and loading what came out.
//!
//! The compiler gets bytes from strangers and may need hundreds of megabytes, so it runs apart: the daemon starts its own
//! program again as `aman __compile OUTPUT`, hands it the component on standard input and takes the code from the file.
//! What is loaded later is checked against the digest that the daemon keeps: code that was changed on the disk would run
//! outside the sandbox.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::resource::{Resource, setrlimit};
use ring::digest::{Context, SHA256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wasmtime::Engine;
use wasmtime::component::Component;

use crate::engine;
use crate::fault::Fault;

/// Largest component, in bytes.
pub const COMPONENT_BYTES_MAX: usize = 64 << 20;
/// Largest compiled code, in bytes.
const CODE_BYTES_MAX: u64 = 512 << 20;
/// Address space of the compiling child, in bytes.
const CHILD_MEMORY_BYTES: u64 = 3 << 30;
/// Processor time of the compiling child, in seconds.
const CHILD_CPU_SECONDS: u64 = 120;
/// How long a compilation may take altogether.
const CHILD_TIME: Duration = Duration::from_secs(300);
/// How much of what the child complains about is kept, in bytes.
const COMPLAINT_BYTES_MAX: u64 = 4 << 10;

/// The exit code of a child that refused the component and said why.
const EXIT_REFUSED: i32 = 65;

/// Compiled code as it lies in the cache. Keep the two digests in the database: [`crate::Host::load`] needs them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// SHA-256 of the component, in hexadecimal.
    pub component_sha256: String,
    /// SHA-256 of the compiled code, in hexadecimal.
    pub sha256: String,
    /// Size of the compiled code.
    pub bytes: u64,
}

/// The SHA-256 of `bytes` in hexadecimal, as artifacts are named by it.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(ring::digest::digest(&SHA256, bytes).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Refuses what is no component in its binary form, before anything reads further.
pub(crate) fn check_component(bytes: &[u8]) -> Result<(), Fault> {
    if bytes.len() > COMPONENT_BYTES_MAX {
        return Err(Fault::refused(format!("it has {} bytes; at most {COMPONENT_BYTES_MAX}", bytes.len())));
    }
    match bytes.get(..8) {
        Some(b"\0asm\x0d\0\x01\0") => Ok(()),
        Some(b"\0asm\x01\0\0\0") => Err(Fault::refused(
            "it is a core module and no component; build it for wasm32-wasip2, or make a component of it with wasm-tools",
        )),
        Some([0x7f, b'E', b'L', b'F', ..]) => Err(Fault::refused(
            "it is compiled code; send the component that it was made of, the daemon compiles it itself",
        )),
        _ => Err(Fault::refused("it is no WebAssembly component")),
    }
}

/// What `aman __compile OUTPUT` does: reads a component from standard input, compiles it and writes the code to OUTPUT.
/// Complains on standard error. Returns the process's exit code.
///
/// It limits its own memory, time and output first; nothing else may run in the process.
pub fn compile_child(output: &Path) -> i32 {
    let (message, code) = match compile_here(output) {
        Ok(()) => return 0,
        Err(Fault::Refused { reason }) => (reason, EXIT_REFUSED),
        Err(fault) => (fault.to_string(), 70),
    };
    let _told = std::io::stderr().write_all(message.as_bytes());
    code
}

fn compile_here(output: &Path) -> Result<(), Fault> {
    let failed = |what: &str, error: &dyn std::fmt::Display| Fault::internal(format!("{what}: {error}"));
    // Whoever started it may die; nobody would want the code any more.
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)
        .map_err(|error| failed("tying the compiler to the daemon", &error))?;
    for (resource, most) in [
        (Resource::RLIMIT_AS, CHILD_MEMORY_BYTES),
        (Resource::RLIMIT_CPU, CHILD_CPU_SECONDS),
        (Resource::RLIMIT_FSIZE, CODE_BYTES_MAX),
        (Resource::RLIMIT_CORE, 0),
    ] {
        setrlimit(resource, most, most).map_err(|error| failed("limiting the compiler", &error))?;
    }
    let mut component = Vec::new();
    let read = std::io::stdin().take(COMPONENT_BYTES_MAX as u64 + 1).read_to_end(&mut component);
    read.map_err(|error| failed("reading the component", &error))?;
    check_component(&component)?;
    let engine = engine::compiling().map_err(|error| failed("making the engine", &error))?;
    let code = engine.precompile_component(&component).map_err(|error| Fault::refused(format!("{error:#}")))?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(output)
        .map_err(|error| failed("creating the file of the code", &error))?;
    let written = file.write_all(&code).and_then(|()| file.sync_all());
    written.map_err(|error| failed("writing the code", &error))
}

/// The folder with compiled code.
pub(crate) struct Cache {
    folder: PathBuf,
    /// The program that compiles and its arguments, which the output's path follows.
    compiler: Vec<OsString>,
    /// One compilation at a time: each may need much memory.
    one: tokio::sync::Semaphore,
}

impl Cache {
    pub fn new(folder: PathBuf, compiler: Vec<OsString>) -> Cache {
        Cache { folder, compiler, one: tokio::sync::Semaphore::new(1) }
    }

    fn path(&self, component_sha256: &str, compatibility: &str) -> Result<PathBuf, Fault> {
        if component_sha256.len() != 64 || !component_sha256.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(Fault::internal("a component's digest has 64 hexadecimal digits"));
        }
        Ok(self.folder.join(format!("{component_sha256}-{compatibility}.code")))
    }

    /// Compiles `component` in a child and puts the code into the cache.
    pub async fn compile(&self, component: &[u8], compatibility: &str) -> Result<Artifact, Fault> {
        check_component(component)?;
        let component_sha256 = sha256_hex(component);
        let path = self.path(&component_sha256, compatibility)?;
        let _one = self.one.acquire().await.map_err(|_closed| Fault::Closed)?;
        let failed = |what: &str, error: std::io::Error| Fault::internal(format!("{what}: {error}"));
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)
            .map_err(|error| failed("making the folder of compiled code", error))?;
        let unfinished = Unfinished { path: path.with_extension("new.tmp") };
        unfinished.remove();
        self.run_child(component, &unfinished.path).await?;
        let folder = self.folder.clone();
        let kept = tokio::task::spawn_blocking(move || {
            let file = File::open(&unfinished.path).map_err(|error| failed("opening the compiled code", error))?;
            let (sha256, bytes) = digest(&file).map_err(|error| failed("reading the compiled code", error))?;
            // What an engine of before made of the same component is of no use any more.
            forget(&folder, |name, of| name.starts_with(&component_sha256) && of != unfinished.path);
            std::fs::rename(&unfinished.path, &path)
                .and_then(|()| File::open(&folder)?.sync_all())
                .map_err(|error| failed("keeping the compiled code", error))?;
            Ok(Artifact { component_sha256, sha256, bytes })
        });
        kept.await.unwrap_or_else(|error| Err(Fault::internal(format!("keeping the compiled code: {error}"))))
    }

    async fn run_child(&self, component: &[u8], output: &Path) -> Result<(), Fault> {
        let failed = |what: &str, error: std::io::Error| Fault::internal(format!("{what}: {error}"));
        let (program, arguments) =
            self.compiler.split_first().ok_or_else(|| Fault::internal("no program that compiles is set"))?;
        let mut child = tokio::process::Command::new(program)
            .args(arguments)
            .arg(output)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| failed("starting the compiler", error))?;
        let (mut stdin, mut stderr) =
            (child.stdin.take().expect("it is piped"), child.stderr.take().expect("it is piped"));
        let talk = async {
            let feed = async {
                // A child that ends early says why on its standard error.
                let _fed = stdin.write_all(component).await;
                drop(stdin);
            };
            let mut complaint = Vec::new();
            let listen = async {
                let mut most = (&mut stderr).take(COMPLAINT_BYTES_MAX);
                let _heard = most.read_to_end(&mut complaint).await;
                let _rest = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
            };
            tokio::join!(feed, listen);
            (child.wait().await, complaint)
        };
        let Ok((status, complaint)) = tokio::time::timeout(CHILD_TIME, talk).await else {
            return Err(Fault::refused(format!("compiling it took more than {} s", CHILD_TIME.as_secs())));
        };
        let status = status.map_err(|error| failed("waiting for the compiler", error))?;
        let complaint = String::from_utf8_lossy(&complaint).trim().to_owned();
        match status.code() {
            Some(0) => Ok(()),
            Some(EXIT_REFUSED) => Err(Fault::refused(complaint)),
            Some(code) => Err(Fault::internal(format!("the compiler ended with code {code}: {complaint}"))),
            None => Err(Fault::refused(format!(
                "the compiler was ended ({status}); it may use {} MiB of memory and {CHILD_CPU_SECONDS} s, and its code may \
                 have {} MiB",
                CHILD_MEMORY_BYTES >> 20,
                CODE_BYTES_MAX >> 20
            ))),
        }
    }

    /// Loads code from the cache, if it is what was compiled.
    pub fn load(&self, engine: &Engine, compatibility: &str, artifact: &Artifact) -> Result<Component, Fault> {
        let path = self.path(&artifact.component_sha256, compatibility)?;
        let damaged = |reason: String| Fault::Damaged { reason };
        let file = File::open(&path).map_err(|error| damaged(format!("it cannot be opened: {error}")))?;
        let (sha256, _bytes) = digest(&file).map_err(|error| damaged(format!("it cannot be read: {error}")))?;
        if sha256 != artifact.sha256 {
            return Err(damaged("it is not what the daemon compiled".to_owned()));
        }
        #[allow(unsafe_code, reason = "the one way to load compiled code without the compiler")]
        // SAFETY: wasmtime trusts the file: it must hold what `Engine::precompile_component` of the same version made.
        // The digest of what our own child wrote was kept in the daemon's database, and this very file (opened once, and
        // named here by its descriptor) has just been read and has that digest. It is mapped, so it must not change
        // while the component lives: the cache's folder belongs to the daemon's user alone (0700), and files in it are
        // only ever replaced by renaming, which leaves a mapped file as it is.
        let component = unsafe { Component::deserialize_file(engine, format!("/proc/self/fd/{}", file.as_raw_fd())) };
        // Code that is what we compiled and still does not load asks for more than the engine has.
        component.map_err(|error| Fault::refused(format!("{error:#}")))
    }

    /// Removes the code of a component, for all engines; running plugins keep what they have.
    pub fn forget(&self, component_sha256: &str) {
        forget(&self.folder, |name, _| name.starts_with(component_sha256));
    }

    /// Removes everything but the code of these components.
    pub fn forget_all_but(&self, component_sha256s: &[String]) {
        let is_of = |name: &str, sha256: &String| name.starts_with(sha256.as_str()) && name.ends_with(".code");
        forget(&self.folder, |name, _| !component_sha256s.iter().any(|sha256| is_of(name, sha256)));
    }
}

/// Removes the files of `folder` that are meant, by their name and path.
fn forget(folder: &Path, is_meant: impl Fn(&str, &Path) -> bool) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten().filter(|entry| is_meant(&entry.file_name().to_string_lossy(), &entry.path())) {
        // What stays is found again at the next start, or when the same component is compiled.
        let _removed = std::fs::remove_file(entry.path());
    }
}

/// A file that is removed unless it was renamed.
struct Unfinished {
    path: PathBuf,
}

impl Unfinished {
    fn remove(&self) {
        let _removed = std::fs::remove_file(&self.path);
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        self.remove();
    }
}

/// The SHA-256 of a file in hexadecimal, and its size.
fn digest(mut file: &File) -> std::io::Result<(String, u64)> {
    let (mut context, mut buffer, mut bytes) = (Context::new(&SHA256), vec![0; 64 << 10], 0);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((hex(context.finish().as_ref()), bytes)),
            read => {
                context.update(&buffer[..read]);
                bytes += read as u64;
            }
        }
    }
}
