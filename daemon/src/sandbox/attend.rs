//! Attends a program of the operator's own that runs on beside the daemon: not confined, but never left behind.
//!
//! The program's standard input is the leash: its other end closes when the daemon lets go of it, and when the daemon dies
//! in whatever way. Then the program has a moment to end by itself, is asked to, and is made to, with all that it started.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, setsid};

use super::{GRACE, guard};

/// How long a program may take to end after the end of its input.
const CLOSE_GRACE: Duration = Duration::from_secs(2);
/// What shells answer for a command that cannot be run.
const NOT_RUN: i32 = 127;

/// Runs the program of the arguments to its end; gives its exit code, or 128 and its signal.
pub(super) fn main() -> i32 {
    let argv: Vec<OsString> = std::env::args_os().skip(3).collect();
    attend(&argv).unwrap_or_else(|why| {
        use std::io::Write;
        // The daemon reads this as what the program has to say.
        let _told = writeln!(std::io::stderr(), "{why}");
        NOT_RUN
    })
}

fn attend(argv: &[OsString]) -> Result<i32, String> {
    let (name, rest) = argv.split_first().ok_or("no command is given")?;
    let failed = |what: &'static str| move |errno: Errno| format!("{what}: {errno}");
    setsid().map_err(failed("leaving the daemon's session"))?;
    prctl::set_child_subreaper(true).map_err(failed("becoming the reaper"))?;
    let mut child_signals = SigSet::empty();
    child_signals.add(Signal::SIGCHLD);
    child_signals.thread_block().map_err(failed("blocking SIGCHLD"))?;
    let signals = SignalFd::with_flags(&child_signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(failed("listening for SIGCHLD"))?;
    let child = Command::new(name).args(rest).process_group(0).spawn();
    let child = child.map_err(|error| format!("'{}' cannot be started: {error}", name.to_string_lossy()))?;
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
    let code = watch(&signals, pid);
    guard::sweep(pid);
    Ok(code)
}

/// Waits for the end of the program, and brings it about once its input has ended.
fn watch(signals: &SignalFd, program: Pid) -> i32 {
    let input = std::io::stdin();
    // What is done next, and when; nothing while the input is open.
    let mut next: Option<(Instant, Signal)> = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == program => return code,
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == program => return 128 + signal as i32,
            Ok(WaitStatus::StillAlive) => {}
            Ok(_) | Err(Errno::EINTR) => continue,
            Err(_) => return NOT_RUN,
        }
        let wait = next.map_or(PollTimeout::NONE, |(at, _)| {
            let left = at.saturating_duration_since(Instant::now()).as_millis() + 1;
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        // Nobody but the program reads what comes; only the end is waited for, which is told without being asked for.
        let mut both =
            [PollFd::new(signals.as_fd(), PollFlags::POLLIN), PollFd::new(input.as_fd(), PollFlags::empty())];
        let polled = if next.is_none() { poll(&mut both, wait) } else { poll(&mut both[..1], wait) };
        let closed = polled.is_ok() && next.is_none() && both[1].revents().is_some_and(|seen| !seen.is_empty());
        while let Ok(Some(_)) = signals.read_signal() {}
        if closed {
            next = Some((Instant::now() + CLOSE_GRACE, Signal::SIGTERM));
        }
        if let Some((at, signal)) = next
            && Instant::now() >= at
        {
            let _gone = killpg(program, signal);
            next = Some((Instant::now() + GRACE, Signal::SIGKILL));
        }
    }
}
