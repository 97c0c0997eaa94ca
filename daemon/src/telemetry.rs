//! Logs: to standard error and to files, as text or JSON lines, without secrets. [`traces`] are for collectors.

mod files;
pub mod traces;

use std::io::Write;
use std::sync::OnceLock;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

use self::files::Queue;
use crate::clock::{Clock, rfc3339};
use crate::config::{Config, Log};
use crate::error::Error;
use crate::redact::Redacting;

pub use self::files::all as log_files;

/// Libraries that tell of every step, or write down what strangers say; what matters of it the daemon says itself.
const CHATTY: [&str; 2] = ["rmcp", "tokio_cron_scheduler"];

/// Changes what is logged; there is one log in a process.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();
/// The way into the files, once the log is set up; and whether lines are JSON.
static FILES: OnceLock<(Queue, bool)> = OnceLock::new();

fn filter(text: &str) -> Result<EnvFilter, Error> {
    let mut text = text.to_owned();
    for library in CHATTY.into_iter().filter(|library| !text.contains(library)).collect::<Vec<_>>() {
        text.push_str(&format!(",{library}=off"));
    }
    EnvFilter::try_new(text).map_err(|error| {
        Error::invalid("log.level", format!("is no level or filter: {error}. Use info, or info,aman::bus=debug."))
    })
}

/// Refuses what [`set_filter`] would refuse.
pub fn check_filter(text: &str) -> Result<(), Error> {
    filter(text).map(drop)
}

/// Sets the log up once, for the whole process. Fails on a filter that cannot be read.
///
/// What is to go to files waits until [`open_files`] is called, so that a second daemon that finds the data folder
/// locked does not write into the log of the first.
pub fn init(log: &Log) -> Result<(), Error> {
    let (filter, handle) = reload::Layer::new(filter(&log.level)?);
    let queue = log.files.is_some().then(Queue::new);
    let subscriber = tracing_subscriber::registry().with(filter);
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let shown = fmt::layer().with_writer(|| Redacting(std::io::stderr()));
    let shown = if log.json { shown.json().boxed() } else { shown.with_ansi(colours).boxed() };
    let kept = queue.clone().map(|queue| {
        let kept = fmt::layer().with_ansi(false).with_writer(move || Redacting(queue.clone()));
        if log.json { kept.json().boxed() } else { kept.boxed() }
    });
    subscriber.with(shown).with(kept).try_init().map_err(Error::internal("setting up the log"))?;
    std::panic::set_hook(Box::new(|panic| {
        let line = format!("{panic}\n");
        let _told = Redacting(std::io::stderr().lock()).write_all(line.as_bytes());
        note("ERROR", "aman", &panic.to_string());
    }));
    // Set only here, and only after the one log was set up.
    let _first = FILTER.set(handle);
    let _first = queue.map(|queue| FILES.set((queue, log.json)));
    Ok(())
}

/// Begins to write the log files, with what was logged until now. Whatever is wrong with them stops nothing.
pub fn open_files(config: &Config) {
    let (Some((queue, _)), Some(files)) = (FILES.get(), &config.log.files) else { return };
    if let Err(error) = queue.open(files, |text| line("WARN", "aman::telemetry", text)) {
        tracing::warn!(%error, "The log goes to no file: no thread could be started for it.");
    }
}

/// Writes one line to the log files only.
pub fn note(level: &str, target: &str, text: &str) {
    if let Some((queue, _)) = FILES.get() {
        // A queue takes what it can and counts the rest.
        drop(Redacting(queue.clone()).write_all(line(level, target, text).as_bytes()));
    }
}

/// A line such as the log has them.
fn line(level: &str, target: &str, text: &str) -> String {
    let now = rfc3339(Clock::System.now_ms());
    if FILES.get().is_some_and(|(_, json)| *json) {
        let fields = serde_json::json!({ "message": text });
        let line = serde_json::json!({ "timestamp": now, "level": level, "fields": fields, "target": target });
        return format!("{line}\n");
    }
    format!("{now} {level:>5} {target}: {}\n", text.replace('\n', "\\n"))
}

/// Waits, a second at the most, until the log files hold what was logged.
pub fn flush() {
    if let Some((queue, _)) = FILES.get() {
        queue.wait_written();
    }
}

/// Log lines that no file holds, as the disk was too slow or took nothing.
pub fn lines_lost() -> u64 {
    FILES.get().map_or(0, |(queue, _)| queue.lost())
}

/// Changes what is logged from now on; without a log, as in tests, it only checks.
pub fn set_filter(text: &str) -> Result<(), Error> {
    let new = filter(text)?;
    match FILTER.get() {
        Some(handle) => handle.reload(new).map_err(Error::internal("changing what is logged")),
        None => Ok(()),
    }
}
