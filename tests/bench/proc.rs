//! Processes under measurement: started on loopback, read through /proc, stopped by pid.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Res;

/// One clock tick of /proc/<pid>/stat; USER_HZ is 100 on every Linux that this runs on.
const TICK_US: u64 = 10_000;

/// A child that is stopped when it goes out of scope.
pub struct Proc {
    child: Child,
}

impl Proc {
    /// Starts `command` with its standard output piped.
    pub fn spawn(mut command: Command) -> Res<Proc> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        Ok(Proc { child: child.map_err(|e| format!("{}: {e}", command.get_program().to_string_lossy()))? })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The first line on standard output that begins with `prefix`, without it. The rest of the output is read away.
    pub fn line(&mut self, prefix: &str) -> Res<String> {
        let output = self.child.stdout.take().ok_or("the output was taken already")?;
        let mut lines = BufReader::new(output).lines();
        for line in lines.by_ref() {
            if let Some(rest) = line?.strip_prefix(prefix) {
                let rest = rest.trim().to_owned();
                std::thread::spawn(move || lines.for_each(drop));
                return Ok(rest);
            }
        }
        Err(format!("the process ended without a line {prefix:?}").into())
    }

    /// Waits for the end by itself.
    pub fn wait(&mut self) -> Res<()> {
        match self.child.wait()?.success() {
            true => Ok(()),
            false => Err("the process failed".into()),
        }
    }

    /// Ends it at once, as a power cut would.
    pub fn kill(&mut self) -> Res<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to end and waits a while for that.
    pub fn terminate(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).unwrap_or(i32::MAX));
        if kill(pid, Signal::SIGTERM).is_err() {
            return;
        }
        let until = Instant::now() + Duration::from_secs(5);
        while Instant::now() < until {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.terminate();
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// This program again, in another role: references run in processes of their own so that their CPU is their own.
pub fn role(name: &str, args: &[&str]) -> Res<Proc> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--role").arg(name).args(args);
    Proc::spawn(command)
}

/// Microseconds of CPU that the processes and their direct children have used, in steps of 10 ms.
pub fn cpu_us(pids: &[u32]) -> u64 {
    pids.iter().map(|pid| stat_us(*pid).unwrap_or(0)).sum()
}

fn stat_us(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold blanks; what follows the last bracket is regular.
    let fields: Vec<&str> = stat[stat.rfind(')')? + 2..].split_ascii_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|f| f.parse::<u64>().ok());
    Some((ticks(11)? + ticks(12)?) * TICK_US)
}

/// What each living thread has done: nanoseconds that it ran, and how often it was given a processor.
pub struct Threads(HashMap<String, (u64, u64)>);

impl Threads {
    pub fn of(pid: u32) -> Res<Threads> {
        let mut threads = HashMap::new();
        for task in std::fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
            // A thread that ended meanwhile is no matter.
            let Ok(text) = std::fs::read_to_string(task.path().join("schedstat")) else { continue };
            let numbers: Vec<u64> = text.split_ascii_whitespace().filter_map(|n| n.parse().ok()).collect();
            let [ran, _, times] = numbers[..] else { return Err("a strange schedstat".into()) };
            threads.insert(task.file_name().to_string_lossy().into_owned(), (ran, times));
        }
        Ok(Threads(threads))
    }

    /// Microseconds that threads ran since `before`, and how often they were woken.
    pub fn since(&self, before: &Threads) -> (u64, u64) {
        let mut sum = (0, 0);
        for (thread, (ran, times)) in &self.0 {
            let (ran_before, times_before) = before.0.get(thread).copied().unwrap_or_default();
            sum = (sum.0 + ran - ran_before, sum.1 + times - times_before);
        }
        (sum.0 / 1000, sum.1)
    }
}

/// How busy the processors are from now on.
pub struct Busy {
    used: u64,
    all: u64,
}

impl Busy {
    pub fn now() -> Res<Busy> {
        let stat = std::fs::read_to_string("/proc/stat")?;
        let line = stat.lines().next().ok_or("an empty /proc/stat")?;
        let ticks: Vec<u64> = line.split_ascii_whitespace().skip(1).filter_map(|t| t.parse().ok()).collect();
        let [user, nice, system, idle, waiting, interrupts, soft_interrupts, ..] = ticks[..] else {
            return Err("a strange /proc/stat".into());
        };
        let used = user + nice + system + interrupts + soft_interrupts;
        Ok(Busy { used, all: used + idle + waiting })
    }

    /// The share of all processors that was used since, 0 to 1.
    pub fn share(&self) -> Res<f64> {
        let now = Busy::now()?;
        Ok((now.used - self.used) as f64 / (now.all - self.all).max(1) as f64)
    }
}

/// Resident memory in KiB.
pub fn rss_kib(pids: &[u32]) -> u64 {
    let one = |pid: &u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
        line.trim().trim_end_matches(" kB").parse::<u64>().ok()
    };
    pids.iter().filter_map(one).sum()
}

/// The direct children of a process.
pub fn children(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_ascii_whitespace().filter_map(|p| p.parse().ok()).collect()
}

/// A port that was free a moment ago.
pub fn free_port() -> Res<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Waits until something accepts on `addr`.
pub fn wait_port(addr: SocketAddr) -> Res<()> {
    let until = Instant::now() + Duration::from_secs(20);
    while Instant::now() < until {
        if TcpStream::connect(addr).is_ok() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Err(format!("nothing listens on {addr}").into())
}

/// Thousands of connections need thousands of files; the children inherit it.
pub fn raise_open_files() -> Res<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(65_536), hard)?;
    Ok(())
}

/// Bytes that a file takes on the disk; 0 when it is not there.
pub fn file_bytes(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |m| m.len())
}
