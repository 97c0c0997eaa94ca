//! Logs: to standard error, as text or JSON lines, without secrets.

use std::io::Write;
use std::sync::OnceLock;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

use crate::config::Config;
use crate::error::Error;
use crate::redact::Redacting;

const CHATTY: &str = "tokio_cron_scheduler";

/// Changes what is logged; there is one log in a process.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

fn filter(text: &str) -> Result<EnvFilter, Error> {
    // The wake-up of cron tells of every step; what matters of it the daemon says itself.
    let text = if text.contains(CHATTY) { text.to_owned() } else { format!("{text},{CHATTY}=error") };
    EnvFilter::try_new(text).map_err(|error| {
        Error::invalid("runtime.log", format!("is no level or filter: {error}. Use info, or info,aman::bus=debug."))
    })
}

/// Refuses what [`set_filter`] would refuse.
pub fn check_filter(text: &str) -> Result<(), Error> {
    filter(text).map(drop)
}

/// Sets the log up once, for the whole process. Fails on a filter that cannot be read.
pub fn init(config: &Config) -> Result<(), Error> {
    let (filter, handle) = reload::Layer::new(filter(&config.log)?);
    let to = || Redacting(std::io::stderr());
    let lines = if config.log_json {
        fmt::layer().json().with_writer(to).boxed()
    } else {
        let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
        fmt::layer().with_writer(to).with_ansi(colours).boxed()
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init()
        .map_err(Error::internal("setting up the log"))?;
    std::panic::set_hook(Box::new(|panic| {
        let line = format!("{panic}\n");
        let _told = Redacting(std::io::stderr().lock()).write_all(line.as_bytes());
    }));
    // Set only here, and only after the one log was set up.
    let _first = FILTER.set(handle);
    Ok(())
}

/// Changes what is logged from now on; without a log, as in tests, it only checks.
pub fn set_filter(text: &str) -> Result<(), Error> {
    let new = filter(text)?;
    match FILTER.get() {
        Some(handle) => handle.reload(new).map_err(Error::internal("changing what is logged")),
        None => Ok(()),
    }
}
