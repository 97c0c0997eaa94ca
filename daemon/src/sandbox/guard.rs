//! The guard: makes the namespaces, starts the inner stage, holds the leash, kills, and reports how it ended.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Gid, Pid, Uid, setsid};

use super::wire::{self, Enforced, Failure, InnerJob, Job, Made, Network, Note};

/// How often what is left of a process group is looked for before it is given up.
const SWEEPS_MAX: u32 = 2_000;

/// Runs the guard; its exit code means nothing, the leash carries the report.
pub(super) fn main() -> i32 {
    let Ok(leash) = wire::socket_on_stdin() else { return 1 };
    let note = match guard(&leash) {
        Ok(note) => note,
        Err(failure) => Note::Failed(failure),
    };
    i32::from(note.send(&leash).is_err())
}

fn guard(leash: &UnixStream) -> Result<Note, Failure> {
    let (job, stdin_bytes): (Job, u64) = wire::read_frame(leash).map_err(Failure::setup("read the job"))?;
    let mut stdin = Vec::new();
    let read = leash.take(stdin_bytes).read_to_end(&mut stdin).map_err(Failure::setup("read the input"))?;
    if read as u64 != stdin_bytes {
        return Err(Failure::setup("read the input")("it ended early"));
    }
    setsid().map_err(Failure::setup("leave the daemon's session"))?;
    // Whoever waits for strays waits for this, too; a lock that is taken exclusively means that our daemon is dead.
    let file = wire::open_lock(&job.lock).map_err(Failure::setup("open the lock file"))?;
    let _lock = Flock::lock(file, FlockArg::LockSharedNonblock).map_err(|(_, e)| e).map_err(Failure::setup("lock"))?;
    prctl::set_child_subreaper(true).map_err(Failure::setup("become the reaper"))?;

    let mut made = if job.namespaces { make_namespaces(leash, job.net)? } else { Made::default() };
    made.guard_pid = Pid::this().as_raw();
    let mut child_signals = SigSet::empty();
    child_signals.add(Signal::SIGCHLD);
    child_signals.thread_block().map_err(Failure::setup("block SIGCHLD"))?;
    let signals = SignalFd::with_flags(&child_signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(Failure::setup("listen for SIGCHLD"))?;

    let (ours, theirs) = UnixStream::pair().map_err(Failure::setup("make a socket"))?;
    let child = Command::new("/proc/self/exe")
        .args([wire::SUBCOMMAND, wire::INNER])
        .process_group(0)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()
        .map_err(Failure::setup("start the inner stage"))?;
    let inner = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
    let head = wire::frame(&InnerJob { job, made }, stdin.len()).map_err(Failure::setup("pass the job on"))?;
    // An inner stage that has died cannot listen; how it ended is found out below.
    let _heard = (&ours).write_all(&head).and_then(|()| (&ours).write_all(&stdin));
    drop(stdin);

    let status = watch(leash, &signals, inner);
    if !made.pid_namespace {
        sweep(inner);
    }
    Ok(last_word(&ours, status))
}

/// Puts this process into as many new namespaces as the machine allows.
fn make_namespaces(leash: &UnixStream, net: Network) -> Result<Made, Failure> {
    let (uid, gid) = (Uid::effective(), Gid::effective());
    let user = CloneFlags::CLONE_NEWUSER;
    let own_net = if net == Network::None { CloneFlags::CLONE_NEWNET } else { CloneFlags::empty() };
    let whole = CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | own_net;
    // Best first. Without a user namespace only root gets any, and then keeps its powers inside.
    let Some(flags) = [user | whole, whole, user | own_net, own_net].into_iter().find(|flags| unshare(*flags).is_ok())
    else {
        return Ok(Made::default());
    };
    let mut made = Made {
        pid_namespace: flags.contains(CloneFlags::CLONE_NEWPID),
        mount_namespace: flags.contains(CloneFlags::CLONE_NEWNS),
        net_namespace: flags.contains(CloneFlags::CLONE_NEWNET),
        user_namespace: flags.contains(user),
        ..Made::default()
    };
    if made.user_namespace && !(uid.is_root() && mapped_by_daemon(leash)?) {
        let write = |file: &str, text: String| {
            std::fs::write(format!("/proc/self/{file}"), text).map_err(Failure::setup("map the user"))
        };
        write("setgroups", "deny".to_owned())?;
        write("uid_map", format!("0 {uid} 1"))?;
        write("gid_map", format!("0 {gid} 1"))?;
        made.back_to = (!uid.is_root()).then_some((uid.as_raw(), gid.as_raw()));
    }
    Ok(made)
}

fn mapped_by_daemon(mut leash: &UnixStream) -> Result<bool, Failure> {
    let mut answer = [0];
    Note::Map.send(leash).map_err(Failure::setup("ask for users"))?;
    leash.read_exact(&mut answer).map_err(Failure::setup("wait for users"))?;
    match answer[0] {
        wire::MAPPED => Ok(true),
        wire::NOT_MAPPED => Ok(false),
        _ => Err(Failure::setup("wait for users")("the run was ended")),
    }
}

/// Waits for the end of the inner stage, and brings it about when the daemon says so or is gone.
fn watch(mut leash: &UnixStream, signals: &SignalFd, inner: Pid) -> WaitStatus {
    let mut kill_at: Option<Instant> = None;
    let mut listening = true;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(status) if status.pid() == Some(inner) => return status,
            Ok(WaitStatus::StillAlive) => {}
            Ok(_) | Err(Errno::EINTR) => continue,
            Err(_) => return WaitStatus::Signaled(inner, Signal::SIGKILL, false),
        }
        let wait = kill_at.map_or(PollTimeout::NONE, |at| {
            let left = at.saturating_duration_since(Instant::now()).as_millis() + 1;
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        let events = if listening { PollFlags::POLLIN } else { PollFlags::empty() };
        let mut both = [PollFd::new(signals.as_fd(), PollFlags::POLLIN), PollFd::new(leash.as_fd(), events)];
        let polled = if listening { poll(&mut both, wait) } else { poll(&mut both[..1], wait) };
        let order = listening && polled.is_ok() && both[1].any().unwrap_or(false);
        while let Ok(Some(_)) = signals.read_signal() {}
        if order {
            let mut word = [0];
            match leash.read(&mut word) {
                Ok(1) if word[0] == wire::TERMINATE => {
                    // Pid 1 of a namespace does not feel this; the command shares its group and does.
                    let _gone = killpg(inner, Signal::SIGTERM);
                    kill_at = Some(Instant::now() + super::GRACE);
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                // The order to kill, or the daemon is gone.
                _ => {
                    listening = false;
                    kill_at = Some(Instant::now());
                }
            }
        }
        if kill_at.is_some_and(|at| Instant::now() >= at) {
            let _gone = kill(inner, Signal::SIGKILL);
            kill_at = None;
        }
    }
}

/// Without a PID namespace: kills the command's group and every process it left to us, until none is there.
pub(super) fn sweep(inner: Pid) {
    let _gone = killpg(inner, Signal::SIGKILL);
    let own = format!("/proc/self/task/{}/children", Pid::this());
    for _ in 0..SWEEPS_MAX {
        // Children of what dies become ours, because we are the reaper, and are found in the next round.
        let children = std::fs::read_to_string(&own).unwrap_or_default();
        for pid in children.split_whitespace().filter_map(|pid| pid.parse().ok()) {
            let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => break,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// What the inner stage said before it ended, or what the kernel says about its end.
fn last_word(inner: &UnixStream, status: WaitStatus) -> Note {
    let mut said = String::new();
    let mut enforced: Option<Enforced> = None;
    // Another process cannot hold the other end: it closes on exec, and everything inside is dead.
    let _complete = inner.set_nonblocking(true).and_then(|()| (&mut &*inner).read_to_string(&mut said).map(drop));
    for line in said.lines() {
        match serde_json::from_str(line) {
            Ok(Note::Ready(ready)) => enforced = Some(ready),
            Ok(note @ (Note::Ended { .. } | Note::Failed(_))) => return note,
            Ok(Note::Map) | Err(_) => {}
        }
    }
    let Some(enforced) = enforced else {
        return Note::Failed(Failure::setup("limit the command")(format!("the inner stage ended early: {status:?}")));
    };
    match status {
        WaitStatus::Exited(_, code) => Note::Ended { exit_code: Some(code), signal: None, enforced },
        WaitStatus::Signaled(_, signal, _) => Note::Ended { exit_code: None, signal: Some(signal as i32), enforced },
        _ => Note::Ended { exit_code: None, signal: None, enforced },
    }
}
