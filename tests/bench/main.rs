//! Ratios of the daemon against references that run beside it, in the same run, in turn.
//!
//! On a machine with two noisy cores a number of milliseconds says nothing, so nothing here asserts one: every line is a ratio
//! to a reference measured in the neighbouring seconds, or CPU (or bytes) per event. `scripts/bench --help` lists the options.

mod args;
mod daemon;
mod fanout;
mod guests;
mod load;
mod proc;
mod reference;
mod report;
mod sse;
mod stats;
mod targets;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use args::Args;
use daemon::Aman;
use proc::Busy;
use reference::disk::RawSync;
use report::{Regime, Report, figure, say};

/// How long other programs' use of the processors is watched.
const BUSY_SAMPLE: Duration = Duration::from_millis(500);

/// Anything that went wrong ends the target it happened in, with its text in the report.
pub(crate) type Res<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// What every target needs.
pub(crate) struct Bench {
    pub(crate) args: Args,
    pub(crate) report: Report,
    folder: PathBuf,
    big_store: Option<u64>,
}

impl Bench {
    /// A new folder on the disk that the build is on; a memory file system would say nothing about syncing.
    pub(crate) fn folder(&self, name: &str) -> Res<PathBuf> {
        let folder = self.folder.join(name);
        std::fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// Short turns of ours and the reference: the machine's mood changes within seconds, so many short ones in turn say
    /// more than a few long ones.
    pub(crate) fn turns(&self) -> usize {
        self.args.rounds * if self.args.quick { 2 } else { 3 }
    }

    /// A length of time, shorter with `--quick`.
    pub(crate) fn secs(&self, secs: f64) -> Duration {
        Duration::from_secs_f64(if self.args.quick { secs * 0.5 } else { secs })
    }

    /// `full` as it is, `quick` with `--quick`.
    pub(crate) fn count(&self, full: u64, quick: u64) -> u64 {
        if self.args.quick { quick } else { full }
    }

    /// A data folder with many stored events, and how many; filled when it is first asked for. No daemon runs on it.
    pub(crate) fn big_store(&mut self) -> Res<(PathBuf, u64)> {
        let folder = self.folder("big")?.join("aman");
        if let Some(events) = self.big_store {
            return Ok((folder, events));
        }
        let events = if self.args.full { 5_000_000 } else { self.count(1_000_000, 100_000) };
        let aman = Aman::start(&folder)?;
        let begun = Instant::now();
        aman.fill(events)?;
        let rate = events as f64 / begun.elapsed().as_secs_f64();
        self.report.remark(format!("stored {events} events in batches of 1000: {}/s", figure(rate)));
        self.big_store = Some(events);
        Ok((folder, events))
    }

    /// What the disk does now, and how busy other programs keep the processors.
    pub(crate) fn sample_disk(&mut self, target: u8) -> Res<f64> {
        self.sample_disk_beside(target, "")
    }

    /// As [`Bench::sample_disk`], with a word on what runs beside it.
    pub(crate) fn sample_disk_beside(&mut self, target: u8, beside: &str) -> Res<f64> {
        let busy = Busy::now()?;
        std::thread::sleep(BUSY_SAMPLE);
        // Syncing takes its own part of the processors, so the two are looked at one after the other.
        let busy = busy.share()?;
        let p50 = RawSync::open(&self.folder)?.p50_us(self.secs(1.0))?;
        self.report.regime(Regime { target, beside: beside.to_owned(), fdatasync_p50_us: p50, busy });
        Ok(p50)
    }
}

fn main() -> ExitCode {
    // A daemon in this program starts it again to compile plugins.
    if let Some(output) = aman::plugins::compiles() {
        std::process::exit(aman::plugins::compile_main(&output));
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    let result = match args.split_first() {
        Some((first, rest)) if first == "--role" => role(rest),
        _ => bench(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("bench: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn role(args: &[String]) -> Res<()> {
    let (name, rest) = args.split_first().ok_or("a role needs a name")?;
    match name.as_str() {
        reference::http::ROLE => reference::http::serve(),
        reference::sqlite::ROLE => reference::sqlite::serve(rest),
        reference::sqlite::ROLE_READ => reference::sqlite::serve_read(rest),
        targets::settle::ROLE => targets::settle::serve(rest),
        targets::push::ROLE_SPIN => targets::push::spin(rest),
        _ => Err(format!("no role {name}").into()),
    }
}

fn bench(args: &[String]) -> Res<()> {
    let Some(args) = args::parse(args)? else { return Ok(()) };
    proc::raise_open_files()?;
    let folder = scratch()?;
    let mut bench = Bench { args, report: Report::default(), folder: folder.clone(), big_store: None };
    let begun = Instant::now();
    let failed = targets::run(&mut bench);
    bench.report.remark(format!("whole run: {:.0} s", begun.elapsed().as_secs_f64()));
    std::fs::remove_dir_all(&folder)?;
    bench.report.print()?;
    if let Some(path) = &bench.args.json {
        bench.report.write_json(path)?;
    }
    if failed.is_empty() {
        return Ok(());
    }
    Err(format!("not measured: target {}", failed.join(", ")).into())
}

/// A folder of this run's own; what killed runs left is removed.
fn scratch() -> Res<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    std::fs::create_dir_all(target)?;
    for entry in std::fs::read_dir(target)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.strip_prefix("bench-").is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    let folder = target.join(format!("bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}
