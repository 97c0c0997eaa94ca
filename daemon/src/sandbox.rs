//! Runs a command that may do only what it was granted, ends everything it started, and says what was enforced.
//!
//! The daemon starts its own program again as `aman __sandbox` (see [`child_main`]), which limits itself before the
//! command begins; so nothing here needs `unsafe`:
//!
//! ```text
//! daemon ── socket ──▶ guard (`__sandbox`)            makes namespaces, waits, kills, reports exact exit codes
//!                        └─▶ inner (`__sandbox inner`)  limits itself; pid 1 of the new PID namespace
//!                              └─▶ the command            (without a PID namespace `inner` becomes the command)
//! ```
//!
//! The daemon's end of the socket is the leash: it closes when the daemon dies in whatever way, and the guard then kills
//! everything. Grants become handles (`grants`), a root of its own (`mounts`), Landlock rules (`landlocked`) and refused
//! system calls (`filter`). A feature this machine lacks is left out and [`Enforced`] says so.

mod attend;
mod filter;
mod folder;
mod grants;
mod guard;
mod inner;
mod landlocked;
mod mounts;
mod permissions;
mod wire;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout};
use tokio::sync::{OnceCell, mpsc};
use tokio_util::sync::CancellationToken;

pub use folder::WorkFolder;
pub use grants::{Guard, Place, make_folder};
pub use permissions::{Permissions, Places};
pub use wire::{Enforced, Filesystem, Limits, Network, NetworkGuard, Private, ProcessGuard};
use wire::{Failure, Job, Note};

/// Where a command without a slash in its name is looked for, and a fitting `PATH` for its environment.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How long a command may tidy up between SIGTERM and SIGKILL.
pub const GRACE: Duration = Duration::from_secs(1);

/// How long after the end of the command its output may still arrive; only a process stuck in the kernel needs it.
const DRAIN: Duration = Duration::from_millis(500);

/// The same for output that is handed on as it comes, and so waits for whoever takes it.
const HAND_ON_DRAIN: Duration = Duration::from_secs(60);

/// How much longer than limit and grace the guard may take before it is given up.
const GUARD_SLACK: Duration = Duration::from_secs(5);

/// The name of the lock file below the run folder that every process of a sandbox holds.
const LOCK_FILE: &str = "scripts.lock";

/// What to run and what it may touch.
#[derive(Debug, Clone)]
pub struct Spec {
    /// The command and its arguments. No shell reads them. A name with a slash counts from `dir`, one without is
    /// looked for in [`PATH`].
    pub argv: Vec<String>,
    /// The folder the command starts in; readable only if `read` or `write` covers it.
    pub dir: PathBuf,
    /// The whole environment: nothing is inherited.
    pub env: Vec<(String, String)>,
    /// What the command reads from its standard input, then end of file.
    pub stdin: Bytes,
    /// A folder that was made for it to work in, wherever that lies.
    pub own: Option<PathBuf>,
    /// Files and folders (with all below) it may read and execute, besides the system's own. Missing ones are skipped; a
    /// link anywhere on the way, or what reaches something [`Private`], is refused.
    pub read: Vec<PathBuf>,
    /// Files and folders (with all below) it may also write. The same holds for them.
    pub write: Vec<PathBuf>,
    /// What network it gets.
    pub net: Network,
    /// How much it may use.
    pub limits: Limits,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this exit code.
    Exited(i32),
    /// By this signal, which the sandbox did not send.
    Signalled(i32),
    /// Ended by the sandbox: the time limit passed.
    TimedOut,
    /// Ended by the sandbox: the caller cancelled.
    Cancelled,
    /// Ended by the sandbox: more on stdout than `stdout_bytes_max`.
    OutputTooLarge,
}

/// What a command left behind. Nothing it started is alive any more.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub exit: Exit,
    /// Its standard output, at most `stdout_bytes_max`.
    pub stdout: Vec<u8>,
    /// The beginning of its standard error, at most `stderr_bytes_max`.
    pub stderr: Vec<u8>,
    /// Whether standard error was longer than what is kept.
    pub stderr_truncated: bool,
    /// From the start of the sandbox to its end.
    pub duration: Duration,
    /// What was really in force during this run.
    pub enforced: Enforced,
}

/// A program that runs on, and ends with its input: see [`Sandbox::attend`].
#[derive(Debug)]
pub struct Attended {
    /// What it reads; once this is dropped it has a few seconds to end.
    pub stdin: ChildStdin,
    /// What it writes.
    pub stdout: ChildStdout,
    /// What it has to say besides.
    pub stderr: ChildStderr,
    /// Who attends it; ends after it, with its exit code.
    pub attendant: Child,
}

/// Why a command did not run.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// There is no such command.
    #[error("command '{command}' was not found{}", if command.contains('/') { "" } else { " in /usr/local/bin, /usr/bin, /bin and their sbin folders" })]
    CommandNotFound {
        /// `argv[0]` as given.
        command: String,
    },
    /// The command is there and the system refused to start it.
    #[error("command '{command}' could not be started: {reason}")]
    CommandFailed {
        /// `argv[0]` as given.
        command: String,
        /// The system's reason.
        reason: String,
    },
    /// A field of the [`Spec`] cannot work.
    #[error("{field}: {reason}")]
    Invalid {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A permission that is not given, whoever asks for it.
    #[error("permission '{grant}' is refused: {reason}")]
    Refused {
        /// `read:PATH` or `write:PATH`.
        grant: String,
        /// Why, and what to do.
        reason: String,
    },
    /// The sandbox itself could not be set up; the command did not run.
    #[error("sandbox set-up failed, {step}: {reason}")]
    Setup {
        /// What was being done.
        step: String,
        /// The system's reason.
        reason: String,
    },
}

impl SandboxError {
    fn setup(step: &str, reason: impl ToString) -> SandboxError {
        SandboxError::Setup { step: step.to_owned(), reason: reason.to_string() }
    }
}

impl From<Failure> for SandboxError {
    fn from(failure: Failure) -> SandboxError {
        match failure {
            Failure::NotFound { command } => SandboxError::CommandNotFound { command },
            Failure::Command { command, reason } => SandboxError::CommandFailed { command, reason },
            Failure::Dir { reason } => SandboxError::Invalid { field: "dir", reason },
            Failure::Grant { grant, reason } => SandboxError::Refused { grant, reason },
            Failure::Setup { step, reason } => SandboxError::Setup { step, reason },
        }
    }
}

/// Runs commands in sandboxes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sandbox {
    shared: Arc<Shared>,
}

#[derive(Debug, Clone)]
struct Shared {
    /// What is executed as `__sandbox`.
    program: PathBuf,
    /// `scripts.lock` below the run folder.
    lock: PathBuf,
    namespaces: bool,
    private: Private,
    probed: OnceCell<Enforced>,
}

impl Sandbox {
    /// A sandbox that re-executes the running program. `run_dir` must exist; the lock file lives there.
    pub fn new(run_dir: &Path) -> Sandbox {
        Sandbox::with_program(run_dir, Path::new("/proc/self/exe"))
    }

    /// As [`Sandbox::new`] with another `program` that dispatches `__sandbox` to [`child_main`].
    pub fn with_program(run_dir: &Path, program: &Path) -> Sandbox {
        Sandbox {
            shared: Arc::new(Shared {
                program: program.to_owned(),
                lock: run_dir.join(LOCK_FILE),
                namespaces: true,
                private: Private::default(),
                probed: OnceCell::new(),
            }),
        }
    }

    /// The same sandbox on a machine without namespaces: process groups, Landlock, filter and limits remain.
    pub fn without_namespaces(&self) -> Sandbox {
        let shared = Shared { namespaces: false, probed: OnceCell::new(), ..Shared::clone(&self.shared) };
        Sandbox { shared: Arc::new(shared) }
    }

    /// The same sandbox, which refuses every grant that reaches what is `private`.
    pub fn with_private(&self, private: Private) -> Sandbox {
        Sandbox { shared: Arc::new(Shared { private, ..Shared::clone(&self.shared) }) }
    }

    /// What this machine can enforce for a command with default limits and no network, found once by trying it.
    pub async fn probe(&self) -> Result<&Enforced, SandboxError> {
        self.shared
            .probed
            .get_or_try_init(|| async {
                let spec = Spec {
                    argv: Vec::new(),
                    dir: PathBuf::from("/"),
                    env: Vec::new(),
                    stdin: Bytes::new(),
                    own: None,
                    read: Vec::new(),
                    write: Vec::new(),
                    net: Network::None,
                    limits: Limits::default(),
                };
                Ok(self.supervise(spec, CancellationToken::new(), None).await?.enforced)
            })
            .await
    }

    /// What [`Sandbox::probe`] found, once it has.
    pub fn probed(&self) -> Option<&Enforced> {
        self.shared.probed.get()
    }

    /// Runs one command to its end and returns when nothing it started is alive any more.
    ///
    /// The time limit counts from this call. On time-out and on `cancel` the command gets SIGTERM, [`GRACE`] later
    /// everything gets SIGKILL. Dropping the future kills everything, too.
    pub async fn run(&self, spec: Spec, cancel: CancellationToken) -> Result<Finished, SandboxError> {
        check(&spec)?;
        self.supervise(spec, cancel, None).await
    }

    /// As [`Sandbox::run`], with standard output given piece by piece to `pieces` instead of kept. The command waits
    /// while nobody takes them; `stdout_bytes_max` does not count.
    pub async fn stream(
        &self,
        spec: Spec,
        cancel: CancellationToken,
        pieces: mpsc::Sender<Bytes>,
    ) -> Result<Finished, SandboxError> {
        check(&spec)?;
        self.supervise(spec, cancel, Some(pieces)).await
    }

    /// Starts a program of the operator's own, which is not confined and may run on. It and everything it started end
    /// soon after its input does, so also with the daemon, however that dies. `env` is its whole environment.
    pub fn attend(&self, argv: &[String], dir: &Path, env: &[(String, String)]) -> std::io::Result<Attended> {
        let mut attendant = tokio::process::Command::new(&self.shared.program)
            .args([wire::SUBCOMMAND, wire::ATTEND])
            .args(argv)
            .env_clear()
            .envs(env.iter().map(|(name, value)| (name, value)))
            .current_dir(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let missing = || std::io::Error::other("a pipe is missing");
        Ok(Attended {
            stdin: attendant.stdin.take().ok_or_else(missing)?,
            stdout: attendant.stdout.take().ok_or_else(missing)?,
            stderr: attendant.stderr.take().ok_or_else(missing)?,
            attendant,
        })
    }

    async fn supervise(
        &self,
        spec: Spec,
        cancel: CancellationToken,
        pieces: Option<mpsc::Sender<Bytes>>,
    ) -> Result<Finished, SandboxError> {
        let started = Instant::now();
        let limits = spec.limits.clone();
        let (leash, mut guard) = self.start_guard()?;
        let (stdout, stderr) = (guard.stdout.take(), guard.stderr.take());
        let too_large = CancellationToken::new();
        let (mut out, mut err) = (Capped::new(limits.stdout_bytes_max), Capped::new(limits.stderr_bytes_max));
        let stop = async {
            tokio::select! {
                () = tokio::time::sleep(limits.time) => Exit::TimedOut,
                () = cancel.cancelled() => Exit::Cancelled,
                () = too_large.cancelled() => Exit::OutputTooLarge,
            }
        };
        let talk = converse(leash, self.job(spec), guard.id(), stop);
        let talk = tokio::time::timeout(limits.time + GRACE + GUARD_SLACK, talk);
        let (note, stopped) = {
            let drain = if pieces.is_some() { HAND_ON_DRAIN } else { DRAIN };
            let taking = async {
                match pieces {
                    Some(pieces) => hand_on(stdout, pieces).await,
                    None => out.fill(stdout, Some(&too_large)).await,
                }
            };
            let readers = async { tokio::join!(taking, err.fill(stderr, None)) };
            let (mut readers, mut talk) = (std::pin::pin!(readers), std::pin::pin!(talk));
            let mut drained = false;
            let ended = loop {
                tokio::select! {
                    ended = &mut talk => break ended,
                    _ = &mut readers, if !drained => drained = true,
                }
            };
            if !drained {
                // Late output is only lost where a process cannot be killed; then the run must still end.
                let _late = tokio::time::timeout(drain, &mut readers).await;
            }
            ended.unwrap_or_else(|_| Err(SandboxError::setup("wait for the guard", "it does not answer")))
        }?;
        let _reaped = tokio::time::timeout(DRAIN, guard.wait()).await;
        let (exit, enforced) = match note {
            Note::Ended { exit_code: Some(code), enforced, .. } => (Exit::Exited(code), enforced),
            Note::Ended { signal, enforced, .. } => (Exit::Signalled(signal.unwrap_or(9)), enforced),
            Note::Failed(failure) if stopped.is_none() => return Err(failure.into()),
            Note::Failed(_) | Note::Map | Note::Ready(_) => (Exit::Cancelled, Enforced::default()),
        };
        // The output may cross its limit in the last instant, after the command ended by itself.
        let stopped = stopped.or_else(|| out.overflowed.then_some(Exit::OutputTooLarge));
        Ok(Finished {
            exit: stopped.unwrap_or(exit),
            stdout: out.kept,
            stderr: err.kept,
            stderr_truncated: err.overflowed,
            duration: started.elapsed(),
            enforced,
        })
    }

    fn start_guard(&self) -> Result<(UnixStream, Child), SandboxError> {
        let fail = |error: std::io::Error| SandboxError::setup("start the guard", error);
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(fail)?;
        ours.set_nonblocking(true).map_err(fail)?;
        let leash = UnixStream::from_std(ours).map_err(fail)?;
        let guard = tokio::process::Command::new(&self.shared.program)
            .arg(wire::SUBCOMMAND)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(fail)?;
        Ok((leash, guard))
    }

    fn job(&self, spec: Spec) -> (Job, Bytes) {
        let program = std::fs::canonicalize(&self.shared.program).unwrap_or_else(|_| self.shared.program.clone());
        let job = Job {
            argv: spec.argv,
            dir: spec.dir,
            env: spec.env,
            own: spec.own,
            read: spec.read,
            write: spec.write,
            private: self.shared.private.clone(),
            net: spec.net,
            limits: spec.limits,
            lock: self.shared.lock.clone(),
            program,
            namespaces: self.shared.namespaces,
        };
        (job, spec.stdin)
    }

    /// Waits until no process of an earlier daemon's sandboxes is alive; `false` when some still are after `timeout`.
    ///
    /// Call it after taking the daemon's own lock and before the first claim of a delivery. They end by themselves as
    /// soon as their daemon is gone, so this takes milliseconds.
    pub async fn wait_for_strays(run_dir: &Path, timeout: Duration) -> std::io::Result<bool> {
        let deadline = Instant::now() + timeout;
        let mut file = wire::open_lock(&run_dir.join(LOCK_FILE))?;
        loop {
            // Dropping the lock at once gives the file back to the sandboxes of this daemon.
            file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(_free) => return Ok(true),
                Err((file, Errno::EWOULDBLOCK | Errno::EINTR)) => file,
                Err((_, errno)) => return Err(errno.into()),
            };
            if Instant::now() >= deadline {
                return Ok(false);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Entry of the hidden subcommand `aman __sandbox`; the caller exits with what it returns.
///
/// Must be the very first thing `main` does: no thread may exist yet, because namespaces are made by single-threaded
/// processes only.
pub fn child_main() -> i32 {
    match std::env::args_os().nth(2) {
        Some(stage) if stage == wire::INNER => inner::main(),
        Some(stage) if stage == wire::ATTEND => attend::main(),
        _ => guard::main(),
    }
}

fn check(spec: &Spec) -> Result<(), SandboxError> {
    let invalid = |field, reason: &str| Err(SandboxError::Invalid { field, reason: reason.to_owned() });
    match spec.argv.first() {
        None => return invalid("argv", "must name a command"),
        Some(command) if command.is_empty() => return invalid("argv", "must not begin with an empty word"),
        Some(_) => {}
    }
    if spec.argv.iter().any(|word| word.contains('\0')) {
        return invalid("argv", "must not contain a NUL character");
    }
    if !spec.dir.is_absolute() {
        return invalid("dir", "must be an absolute path");
    }
    if spec.env.iter().any(|(name, value)| name.is_empty() || name.contains(['=', '\0']) || value.contains('\0')) {
        return invalid("env", "names must be free of '=' and not empty, and nothing may contain a NUL character");
    }
    if spec.own.iter().any(|path| !path.is_absolute()) {
        return invalid("own", "must be an absolute path");
    }
    if spec.read.iter().any(|path| !path.is_absolute()) {
        return invalid("read", "must be absolute paths");
    }
    if spec.write.iter().any(|path| !path.is_absolute()) {
        return invalid("write", "must be absolute paths");
    }
    Ok(())
}

/// Hands the job to the guard and listens to it until its last word; asks it once to end the command when `stop` fires.
async fn converse(
    leash: UnixStream,
    (job, stdin): (Job, Bytes),
    guard_pid: Option<u32>,
    stop: impl Future<Output = Exit>,
) -> Result<(Note, Option<Exit>), SandboxError> {
    let lost = |error: std::io::Error| SandboxError::setup("talk to the guard", error);
    let (from_guard, mut to_guard): (OwnedReadHalf, OwnedWriteHalf) = leash.into_split();
    let head = wire::frame(&job, stdin.len()).map_err(|e| SandboxError::setup("write down the job", e))?;
    to_guard.write_all(&head).await.map_err(lost)?;
    to_guard.write_all(&stdin).await.map_err(lost)?;
    let mut lines = BufReader::new(from_guard).lines();
    let mut stop = std::pin::pin!(stop);
    let mut stopped = None;
    loop {
        tokio::select! {
            line = lines.next_line() => {
                let line = line.map_err(lost)?.ok_or_else(|| SandboxError::setup("wait for the guard", "it died"))?;
                let note = serde_json::from_str(&line).map_err(|e| SandboxError::setup("understand the guard", e))?;
                let Note::Map = note else { return Ok((note, stopped)) };
                let answer = if guard_pid.is_some_and(map_all_ids) { wire::MAPPED } else { wire::NOT_MAPPED };
                to_guard.write_all(&[answer]).await.map_err(lost)?;
            }
            reason = &mut stop, if stopped.is_none() => {
                let order = if reason == Exit::OutputTooLarge { wire::KILL } else { wire::TERMINATE };
                stopped = Some(reason);
                // A guard that has just ended cannot be asked; its last word is already in the socket.
                let _too_late = to_guard.write_all(&[order]).await;
            }
        }
    }
}

/// Gives the guard's user namespace every user and group this process knows, each as itself; only root may do that.
///
/// With that a root daemon's command still reads what root may read, and holds no power over the machine itself.
fn map_all_ids(pid: u32) -> bool {
    ["uid_map", "gid_map"].iter().all(|map| {
        let Ok(known) = std::fs::read_to_string(format!("/proc/self/{map}")) else { return false };
        let same: String = known
            .lines()
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                let (inside, _outside, count) = (words.next()?, words.next()?, words.next()?);
                Some(format!("{inside} {inside} {count}\n"))
            })
            .collect();
        std::fs::write(format!("/proc/{pid}/{map}"), same).is_ok()
    })
}

/// Gives everything that is read to `pieces`; reads on without giving when nobody is there to take it.
async fn hand_on(from: Option<impl AsyncRead + Unpin>, pieces: mpsc::Sender<Bytes>) {
    let Some(mut from) = from else { return };
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        let _nobody = pieces.send(Bytes::copy_from_slice(&buffer[..n])).await;
    }
}

/// The beginning of a stream.
struct Capped {
    kept: Vec<u8>,
    bytes_max: usize,
    overflowed: bool,
}

impl Capped {
    fn new(bytes_max: u64) -> Capped {
        Capped { kept: Vec::new(), bytes_max: usize::try_from(bytes_max).unwrap_or(usize::MAX), overflowed: false }
    }

    /// Reads to the end, so that the writer never blocks; keeps the beginning and cancels `on_overflow` past the limit.
    async fn fill(&mut self, from: Option<impl AsyncRead + Unpin>, on_overflow: Option<&CancellationToken>) {
        let Some(mut from) = from else { return };
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(n @ 1..) = from.read(&mut buffer).await {
            let room = n.min(self.bytes_max - self.kept.len());
            self.kept.extend_from_slice(&buffer[..room]);
            if room < n {
                self.overflowed = true;
                if let Some(token) = on_overflow {
                    token.cancel();
                }
            }
        }
    }
}
