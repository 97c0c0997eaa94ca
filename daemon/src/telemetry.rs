//! Logs: to standard error, as text or JSON lines.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

use crate::config::Config;
use crate::error::Error;

/// Sets the log up once, for the whole process. Fails on a filter that cannot be read.
pub fn init(config: &Config) -> Result<(), Error> {
    let filter = EnvFilter::try_new(&config.log).map_err(|error| {
        Error::invalid("runtime.log", format!("is no level or filter: {error}. Use info, or info,aman::bus=debug."))
    })?;
    let to = std::io::stderr;
    let done = if config.log_json {
        fmt().json().with_env_filter(filter).with_writer(to).try_init()
    } else {
        let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
        fmt().with_env_filter(filter).with_writer(to).with_ansi(colours).try_init()
    };
    done.map_err(Error::internal("setting up the log"))
}
