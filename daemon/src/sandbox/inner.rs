//! The inner stage: limits itself for good, then starts the command, or becomes it where there is no PID namespace.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, Flock, FlockArg, OFlag, fcntl, open, openat};
use nix::sched::{CloneFlags, unshare};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{Mode, umask};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, Uid, chdir, getppid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
};

use super::wire::{self, Enforced, Failure, Filesystem, InnerJob, Job, Made, NetworkGuard, Note, ProcessGuard};
use super::{Network, PATH, filter, grants, landlocked, mounts};

/// The kernel never gives these process ids again after the first round, so a limit of ids must lie above them.
const RESERVED_PIDS: u64 = 300;

/// Runs the inner stage. Only returns when the command is over or could not be started.
pub(super) fn main() -> i32 {
    let Ok(socket) = wire::socket_on_stdin() else { return 1 };
    match inner(&socket) {
        Ok(()) => 0,
        Err(failure) => {
            let _unheard = Note::Failed(failure).send(&socket);
            1
        }
    }
}

fn inner(socket: &UnixStream) -> Result<(), Failure> {
    die_with_parent()?;
    let (InnerJob { job, made }, stdin_bytes) = wire::read_frame(socket).map_err(Failure::setup("read the job"))?;
    let alone = if made.pid_namespace { Pid::this().as_raw() != 1 } else { getppid().as_raw() != made.guard_pid };
    if alone {
        return Err(Failure::setup("find the guard")("it is gone"));
    }
    let stdin = input_file(socket, stdin_bytes).map_err(Failure::setup("keep the input"))?;
    SigSet::empty().thread_set_mask().map_err(Failure::setup("unblock signals"))?;
    hold_lock(&job, &made)?;
    let start_there =
        || chdir(&job.dir).map_err(|errno| Failure::Dir { reason: format!("'{}': {errno}", job.dir.display()) });
    // It must be there in truth, not only in the root that is made next.
    start_there()?;
    umask(Mode::from_bits_truncate(0o077));
    let grants = grants::open_all(&job)?;
    let root = if made.mount_namespace { mounts::arrange(&job, &grants)? } else { None };
    let mut limits = Vec::new();
    limit_namespaces(&job, &made, &mut limits);
    let own_proc = open("/proc/self", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
    if let Some(root) = &root {
        mounts::seal(&grants)?;
        limits.push("own root, read-only but for grants".to_owned());
        if root.own_proc {
            limits.push("own process list".to_owned());
        }
    }
    if let Some((uid, gid)) = made.back_to {
        let own_proc = own_proc.as_ref().map_err(|errno| Failure::setup("become the user again")(*errno))?;
        become_user_again(own_proc, uid, gid)?;
    }
    drop(own_proc);
    start_there()?;
    prctl::set_no_new_privs().map_err(Failure::setup("forbid new privileges"))?;
    let abi = landlocked::restrict(job.net, &grants).map_err(Failure::setup("restrict files"))?;
    drop(grants);
    limit_resources(&job, &made, &mut limits);
    drop_capabilities().map_err(Failure::setup("drop capabilities"))?;
    limits.push("no capabilities".to_owned());
    let filtered = filter::apply(job.net, made.net_namespace);
    if filtered {
        limits.push("system calls filtered".to_owned());
    }
    let enforced = Facts { net: job.net, made, root: root.is_some(), abi, filtered }.enforced(limits);
    // Changing users forgets the parent's death; from here on no user changes.
    die_with_parent()?;
    Note::Ready(enforced.clone()).send(socket).map_err(Failure::setup("report"))?;
    match job.argv.first() {
        Some(name) => start(name, &job, &made, stdin, enforced, socket),
        None => Ok(()),
    }
}

fn die_with_parent() -> Result<(), Failure> {
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(Failure::setup("tie to the guard"))
}

/// The command's input as a file in memory: whoever reads slowly or not at all blocks nobody.
fn input_file(socket: &UnixStream, stdin_bytes: u64) -> std::io::Result<File> {
    let mut file = File::from(memfd_create(c"stdin", MFdFlags::MFD_CLOEXEC)?);
    if std::io::copy(&mut socket.take(stdin_bytes), &mut file)? != stdin_bytes {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}

/// Takes the shared lock a second time. Without a PID namespace the command and all its children inherit it; with one
/// they end together with this process.
fn hold_lock(job: &Job, made: &Made) -> Result<(), Failure> {
    let file = wire::open_lock(&job.lock).map_err(Failure::setup("open the lock file"))?;
    if !made.pid_namespace {
        fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty())).map_err(Failure::setup("pass the lock on"))?;
    }
    let lock = Flock::lock(file, FlockArg::LockSharedNonblock).map_err(|(_, e)| e).map_err(Failure::setup("lock"))?;
    // Stays open on purpose until the last process of the command is gone.
    std::mem::forget(lock);
    Ok(())
}

/// Limits what the command may make in these namespaces: process ids, and further user namespaces, in which it would
/// have capabilities again.
fn limit_namespaces(job: &Job, made: &Made, limits: &mut Vec<String>) {
    // Root is exempt from the limit of processes, but not from a lack of process ids.
    if made.pid_namespace && Uid::effective().is_root() && made.back_to.is_none() && limit_pids(job) {
        limits.push(format!("processes {}", RESERVED_PIDS + job.limits.processes_max));
    }
    // Elsewhere this setting is the whole machine's. One more is needed to become the user again.
    let more = if made.back_to.is_some() { "1" } else { "0" };
    if made.user_namespace && std::fs::write("/proc/sys/user/max_user_namespaces", more).is_ok() {
        limits.push("no user namespaces".to_owned());
    }
}

/// Limits the process ids of this PID namespace. Older kernels have one such setting for the whole machine, which is
/// not ours to change.
fn limit_pids(job: &Job) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut parts = release.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    let ids_max = RESERVED_PIDS + job.limits.processes_max;
    version >= (6, 14) && std::fs::write("/proc/sys/kernel/pid_max", (ids_max + 1).to_string()).is_ok()
}

/// In a further namespace the daemon's user is itself again, and without any power over the namespaces around it.
/// `own_proc` is this process in a `/proc` that can still be written.
fn become_user_again(own_proc: &OwnedFd, uid: u32, gid: u32) -> Result<(), Failure> {
    unshare(CloneFlags::CLONE_NEWUSER).map_err(Failure::setup("become the user again"))?;
    let write = |file: &str, text: String| {
        openat(own_proc, file, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(std::io::Error::from)
            .and_then(|file| File::from(file).write_all(text.as_bytes()))
            .map_err(Failure::setup("become the user again"))
    };
    write("setgroups", "deny".to_owned())?;
    write("uid_map", format!("{uid} 0 1"))?;
    write("gid_map", format!("{gid} 0 1"))
}

/// Gives up every capability for good: in the namespaces made here, and those of root where there are none.
fn drop_capabilities() -> rustix::io::Result<()> {
    // Not allowed to those who have none, and the end of the list is an error, too.
    let known = (0..u64::BITS).map(|bit| CapabilitySet::from_bits_retain(1 << bit));
    let _dropped = known.map_while(|one| remove_capability_from_bounding_set(one).ok()).count();
    clear_ambient_capability_set()?;
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
}

fn limit_resources(job: &Job, made: &Made, limits: &mut Vec<String>) {
    let wanted = &job.limits;
    let seconds = wanted.time.as_secs() + u64::from(wanted.time.subsec_nanos() > 0);
    let mut set = |resource, value: u64, words: String| {
        if setrlimit(resource, value, value).is_ok() && !words.is_empty() {
            limits.push(words);
        }
    };
    set(Resource::RLIMIT_CORE, 0, String::new());
    set(Resource::RLIMIT_CPU, seconds + 1, format!("processor time {} s a process", seconds + 1));
    set(Resource::RLIMIT_NOFILE, wanted.files_max, format!("open files {} a process", wanted.files_max));
    set(Resource::RLIMIT_FSIZE, wanted.file_bytes_max, format!("file size {} bytes", wanted.file_bytes_max));
    // The kernel counts this per user; only in a namespace of its own that is the command alone.
    if made.back_to.is_some() {
        // The inner stage is one of them.
        set(Resource::RLIMIT_NPROC, wanted.processes_max + 1, format!("processes {}", wanted.processes_max));
    }
    set(Resource::RLIMIT_AS, wanted.memory_bytes_max, format!("memory {} bytes a process", wanted.memory_bytes_max));
    limits.push(format!("time {} s", wanted.time.as_secs_f64()));
    limits.push(format!("output {} bytes", wanted.stdout_bytes_max));
    limits.push("no new privileges".to_owned());
}

/// What is in force.
struct Facts {
    net: Network,
    made: Made,
    /// Whether the command has a root of its own.
    root: bool,
    /// Landlock's version, or 0.
    abi: u32,
    /// Whether system calls are filtered.
    filtered: bool,
}

impl Facts {
    fn enforced(&self, limits: Vec<String>) -> Enforced {
        let filesystem = match self.abi {
            0 if self.root => Filesystem::Mounts,
            0 => Filesystem::None,
            abi => Filesystem::Landlock(abi),
        };
        let network = match self.net {
            Network::Any => NetworkGuard::Allowed,
            Network::None if self.made.net_namespace => NetworkGuard::Namespace,
            Network::None if self.filtered => NetworkGuard::Filter,
            Network::None if self.abi >= landlocked::TCP => NetworkGuard::Partial,
            Network::None => NetworkGuard::None,
        };
        let processes = if self.made.pid_namespace { ProcessGuard::PidNamespace } else { ProcessGuard::Group };
        Enforced { filesystem, network, processes, limits, gaps: self.gaps() }
    }

    fn gaps(&self) -> Vec<String> {
        let no_sockets = self.net == Network::None && self.filtered;
        let gaps = [
            (!self.root && self.abi == 0, "Files are protected by nothing but their modes."),
            (!self.root, "Mode, owner and times of this user's files elsewhere can be changed."),
            (
                !self.root && !no_sockets && self.abi < landlocked::SOCKETS,
                "Programs that listen on a socket with a path can be talked to.",
            ),
            (
                self.net == Network::Any && self.abi < landlocked::SCOPES,
                "Programs that listen on a socket without a path can be talked to.",
            ),
            (
                !self.made.pid_namespace,
                "Other processes can be seen, and memory used that programs of this user share.",
            ),
            (!self.made.pid_namespace && self.abi < landlocked::SCOPES, "Processes of this user can be sent signals."),
            (!self.filtered, "System calls are not filtered."),
            (
                Uid::effective().is_root(),
                "It is root's: what only root may read below /etc and /usr can be read. Run the daemon as another user.",
            ),
        ];
        gaps.into_iter().filter(|(there, _)| *there).map(|(_, gap)| gap.to_owned()).collect()
    }
}

fn start(
    name: &str,
    job: &Job,
    made: &Made,
    stdin: File,
    enforced: Enforced,
    socket: &UnixStream,
) -> Result<(), Failure> {
    let path = resolve(name, job).ok_or_else(|| Failure::NotFound { command: name.to_owned() })?;
    if !has_loader(&path) {
        return Err(Failure::Command {
            command: name.to_owned(),
            reason: "it is neither a program nor a script that begins with '#!'".to_owned(),
        });
    }
    let mut command = Command::new(path);
    command.arg0(name).args(&job.argv[1..]).env_clear().stdin(Stdio::from(stdin));
    command.envs(job.env.iter().map(|(name, value)| (name, value)));
    let failed = |error: std::io::Error| Failure::Command { command: name.to_owned(), reason: explain(&error) };
    if !made.pid_namespace {
        return Err(failed(command.exec()));
    }
    // The command has the same user; it may neither look into this process nor speak for it.
    prctl::set_dumpable(false).map_err(Failure::setup("close this process"))?;
    let child = command.spawn().map_err(failed)?;
    drop(command);
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
    // As pid 1 this process inherits all orphans; they are reaped on the way.
    let (exit_code, signal) = loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(ended, code)) if ended == pid => break (Some(code), None),
            Ok(WaitStatus::Signaled(ended, signal, _)) if ended == pid => break (None, Some(signal as i32)),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(Failure::setup("wait for the command")(errno)),
        }
    };
    Note::Ended { exit_code, signal, enforced }.send(socket).map_err(Failure::setup("report"))
}

fn explain(error: &std::io::Error) -> String {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT) => "the interpreter named in its first line does not exist".to_owned(),
        Some(Errno::EACCES) => "permission denied; the sandbox may not execute it or its interpreter".to_owned(),
        _ => error.to_string(),
    }
}

/// Whether the kernel can run this file. Without this check the C library would hand any text file to a shell.
fn has_loader(path: &Path) -> bool {
    let mut magic = [0; 4];
    match File::open(path).and_then(|mut file| file.read_exact(&mut magic)) {
        Ok(()) => magic.starts_with(b"#!") || magic == *b"\x7fELF",
        // Too short for a program; or not readable, then the kernel decides.
        Err(error) => error.kind() != std::io::ErrorKind::UnexpectedEof,
    }
}

fn resolve(name: &str, job: &Job) -> Option<PathBuf> {
    if name.contains('/') {
        let path = job.dir.join(name);
        return path.exists().then_some(path);
    }
    PATH.split(':')
        .map(|folder| PathBuf::from(folder).join(name))
        .find(|path| path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0))
}
