//! What daemon, guard and inner stage say to each other, and what callers are told about enforcement.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::plain;

/// First argument of the program when it is a part of a sandbox.
pub(super) const SUBCOMMAND: &str = "__sandbox";
/// Second argument of the second stage.
pub(super) const INNER: &str = "inner";
/// The same where a program is attended; its words follow.
pub(super) const ATTEND: &str = "attend";

/// Daemon to guard: the user namespace has its users.
pub(super) const MAPPED: u8 = b'm';
/// Daemon to guard: the user namespace is as it was.
pub(super) const NOT_MAPPED: u8 = b'n';
/// Daemon to guard: SIGTERM now, SIGKILL after the grace.
pub(super) const TERMINATE: u8 = b'T';
/// Daemon to guard: SIGKILL now.
pub(super) const KILL: u8 = b'K';

/// A job is a few paths and an environment; more is a mistake.
const JOB_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// What network a command gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// The machine's own.
    Any,
    /// None, not even loopback.
    None,
}

/// How much a command may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Time by the clock; processor time of each process is held to the same.
    pub time: Duration,
    /// More on standard output ends the command.
    pub stdout_bytes_max: u64,
    /// More on standard error is read and dropped.
    pub stderr_bytes_max: u64,
    /// Address space of each process.
    pub memory_bytes_max: u64,
    /// Processes and threads alive at the same time.
    pub processes_max: u64,
    /// Open files of each process.
    pub files_max: u64,
    /// Size of each file it writes.
    pub file_bytes_max: u64,
}

impl Default for Limits {
    /// 30 s, 1 MiB out, 64 KiB of log, 1 GiB of address space, 128 processes, 256 open files, 1 GiB a file.
    fn default() -> Limits {
        Limits {
            time: Duration::from_secs(30),
            stdout_bytes_max: 1 << 20,
            stderr_bytes_max: 64 << 10,
            memory_bytes_max: 1 << 30,
            processes_max: 128,
            files_max: 256,
            file_bytes_max: 1 << 30,
        }
    }
}

/// What kept the command to the files it was granted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Filesystem {
    /// Nothing but the rights of the daemon's user.
    #[default]
    None,
    /// A root of its own that holds only those.
    Mounts,
    /// Landlock of this ABI, besides a root of its own where there is one.
    Landlock(u32),
}

impl Serialize for Filesystem {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Filesystem::None => serializer.serialize_str("none"),
            Filesystem::Mounts => serializer.serialize_str("mounts"),
            Filesystem::Landlock(abi) => serializer.serialize_str(&format!("landlock abi {abi}")),
        }
    }
}

impl<'de> Deserialize<'de> for Filesystem {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Filesystem, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "mounts" {
            return Ok(Filesystem::Mounts);
        }
        let abi = text.strip_prefix("landlock abi ").and_then(|abi| abi.parse().ok());
        Ok(abi.map_or(Filesystem::None, Filesystem::Landlock))
    }
}

/// What kept the command off the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum NetworkGuard {
    /// A network namespace of its own: nothing is reachable.
    #[serde(rename = "namespace")]
    Namespace,
    /// No sockets at all: the system calls that make them are refused.
    #[serde(rename = "filter")]
    Filter,
    /// Landlock only: TCP is refused, other protocols are not.
    #[serde(rename = "partial")]
    Partial,
    /// Nothing, though no network was asked for.
    #[default]
    #[serde(rename = "none")]
    None,
    /// The network was granted.
    #[serde(rename = "allowed")]
    Allowed,
}

/// What makes sure that everything the command started has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ProcessGuard {
    /// The kernel ends the whole PID namespace with its first process.
    #[serde(rename = "pid namespace")]
    PidNamespace,
    /// The process group and all that is left are killed by the guard, as far as it lives itself.
    #[default]
    #[serde(rename = "group")]
    Group,
}

/// What was really in force, never what was wished for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Enforced {
    /// Files.
    pub filesystem: Filesystem,
    /// Network.
    pub network: NetworkGuard,
    /// Processes.
    pub processes: ProcessGuard,
    /// Each limit in force, in words.
    pub limits: Vec<String>,
    /// What is open although it should not be, in sentences: this machine has no means against it.
    pub gaps: Vec<String>,
}

/// What belongs to the daemon, so that no grant may reach it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Private {
    /// Files and folders that no command may read.
    pub hidden: Vec<PathBuf>,
    /// Files and folders that no command may write.
    pub unwritable: Vec<PathBuf>,
}

/// All that a run needs, from daemon to guard to inner stage; only standard input travels beside it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Job {
    /// Empty for a probe: set up everything, run nothing.
    pub argv: Vec<String>,
    pub dir: PathBuf,
    pub env: Vec<(String, String)>,
    /// See [`super::Spec::own`].
    pub own: Option<PathBuf>,
    pub read: Vec<PathBuf>,
    pub write: Vec<PathBuf>,
    pub private: Private,
    pub net: Network,
    pub limits: Limits,
    pub lock: PathBuf,
    /// This program, which the command may execute.
    pub program: PathBuf,
    /// Whether to try namespaces at all.
    pub namespaces: bool,
}

/// What the guard has made before the inner stage began.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Made {
    pub pid_namespace: bool,
    pub mount_namespace: bool,
    pub net_namespace: bool,
    /// This user and group are root in the namespace around the inner stage, and must be themselves again inside.
    pub back_to: Option<(u32, u32)>,
    /// Whether there is a user namespace at all.
    pub user_namespace: bool,
    /// The guard's process id, as the inner stage sees it without a PID namespace.
    pub guard_pid: i32,
}

/// From guard to inner stage.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct InnerJob {
    pub job: Job,
    pub made: Made,
}

/// Why the command did not run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Failure {
    NotFound {
        command: String,
    },
    Command {
        command: String,
        reason: String,
    },
    Dir {
        reason: String,
    },
    /// This permission cannot be given.
    Grant {
        grant: String,
        reason: String,
    },
    Setup {
        step: String,
        reason: String,
    },
}

impl Failure {
    /// For `map_err`: what was being done when the system refused.
    pub fn setup<E: ToString>(step: &str) -> impl FnOnce(E) -> Failure {
        move |reason| Failure::Setup { step: step.to_owned(), reason: reason.to_string() }
    }
}

/// One line of JSON towards the daemon. `Ended` and `Failed` are last words.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Note {
    /// Guard: please map all users of my namespace.
    Map,
    /// Inner stage: this is in force, the command comes next.
    Ready(Enforced),
    /// The command ended; one of `exit_code` and `signal` is there.
    Ended { exit_code: Option<i32>, signal: Option<i32>, enforced: Enforced },
    /// The command did not run.
    Failed(Failure),
}

impl Note {
    pub fn send(&self, mut to: &UnixStream) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        to.write_all(&line)
    }
}

/// `head` with its length before it and the length of what follows after it.
pub(super) fn frame<T: Serialize>(head: &T, stdin_bytes: usize) -> std::io::Result<Vec<u8>> {
    let json = serde_json::to_vec(head)?;
    let mut bytes = Vec::with_capacity(json.len() + 16);
    bytes.extend_from_slice(&(json.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&json);
    bytes.extend_from_slice(&(stdin_bytes as u64).to_le_bytes());
    Ok(bytes)
}

/// Reads what [`frame`] wrote; `stdin_bytes` of raw input follow in the stream. Reads not one byte more.
pub(super) fn read_frame<T: DeserializeOwned>(mut from: &UnixStream) -> std::io::Result<(T, u64)> {
    let mut number = [0; 8];
    from.read_exact(&mut number)?;
    let json_bytes = u64::from_le_bytes(number);
    if json_bytes > JOB_BYTES_MAX {
        return Err(std::io::Error::other("the job is too large"));
    }
    let mut json = Vec::new();
    from.take(json_bytes).read_to_end(&mut json)?;
    from.read_exact(&mut number)?;
    Ok((serde_json::from_slice(&json)?, u64::from_le_bytes(number)))
}

/// The socket that standard input is in both stages.
pub(super) fn socket_on_stdin() -> std::io::Result<UnixStream> {
    Ok(UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?))
}

/// Opens the lock file, making it if need be. Reading is enough for a lock.
pub(super) fn open_lock(path: &Path) -> std::io::Result<File> {
    match plain::open(OpenOptions::new().read(true), path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            plain::open(OpenOptions::new().read(true).append(true).create(true).mode(0o600), path)
        }
        other => other,
    }
}
