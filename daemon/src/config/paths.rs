//! Where things are: the XDG folders, or one folder for all with `AMAN_HOME`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::Secret;
use crate::error::Error;
use crate::redact;

/// Every place that the daemon or the command line touches.
#[derive(Debug, Clone)]
pub struct Paths {
    /// The configuration file; it need not exist.
    pub config_file: PathBuf,
    /// Database, skills, workflows, plugins, soul, inbox.
    pub data: PathBuf,
    /// Logs.
    pub state: PathBuf,
    /// Lock, address, working folders of scripts.
    pub runtime: PathBuf,
    /// The database.
    pub db_file: PathBuf,
    /// Private databases of plugins.
    pub plugin_data: PathBuf,
    /// The generated token, mode 0600.
    pub token_file: PathBuf,
    /// The key that signs minted tokens, mode 0600.
    pub signing_key_file: PathBuf,
    /// Holds the address of the running daemon.
    pub address_file: PathBuf,
    /// Held by the running daemon.
    pub lock_file: PathBuf,
    /// The person's home folder, for `~`.
    pub home_dir: Option<PathBuf>,
    /// True when `AMAN_HOME` (or `--home`) puts everything under one folder.
    pub portable: bool,
}

impl Paths {
    /// Finds the folders: `home` or `AMAN_HOME` if set, else XDG.
    pub fn find(home: Option<&Path>) -> Result<Paths, Error> {
        let home_dir = variable("HOME").map(|home| real(Path::new(&home)));
        if let Some(home) = home.map(Path::to_owned).or_else(|| variable("AMAN_HOME").map(PathBuf::from)) {
            let home = std::path::absolute(&home).map_err(Error::internal("finding AMAN_HOME"))?;
            return Ok(Paths::under(real(&home), home_dir));
        }
        let Some(person) = home_dir.clone() else {
            return Err(Error::invalid("HOME", "is not set. Set HOME, or AMAN_HOME to a folder for aman."));
        };
        let xdg = |name: &str, default: &str| {
            let folder = variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
            real(&folder.unwrap_or_else(|| person.join(default)).join("aman"))
        };
        let state = xdg("XDG_STATE_HOME", ".local/state");
        let runtime = match variable("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute()) {
            Some(folder) => real(&folder.join("aman")),
            // As `address_files` knows.
            None => state.join("run"),
        };
        let config_file = xdg("XDG_CONFIG_HOME", ".config").join("aman.toml");
        Ok(Paths::of(config_file, xdg("XDG_DATA_HOME", ".local/share"), state, runtime, home_dir, false))
    }

    /// Everything under `home`.
    pub fn under(home: PathBuf, home_dir: Option<PathBuf>) -> Paths {
        Paths::of(home.join("aman.toml"), home.clone(), home.join("logs"), home.join("run"), home_dir, true)
    }

    fn of(
        config_file: PathBuf,
        data: PathBuf,
        state: PathBuf,
        runtime: PathBuf,
        home_dir: Option<PathBuf>,
        portable: bool,
    ) -> Paths {
        Paths {
            db_file: data.join("aman.db"),
            plugin_data: data.join("plugins/.data"),
            token_file: data.join("token"),
            signing_key_file: data.join("signing.key"),
            address_file: runtime.join("address"),
            lock_file: data.join("aman.lock"),
            config_file,
            data,
            state,
            runtime,
            home_dir,
            portable,
        }
    }

    /// Where a running daemon may have written its address: one that was started without a login session, as by cron, has
    /// its runtime folder below the state folder, also where the session of whoever asks has one of its own.
    pub fn address_files(&self) -> [PathBuf; 2] {
        [self.address_file.clone(), self.state.join("run").join("address")]
    }

    /// Where agents are defined: beside the configuration.
    pub fn agents(&self) -> PathBuf {
        self.config_file.parent().unwrap_or(&self.data).join("agents")
    }

    /// Makes the folders, closed to others.
    pub fn make(&self) -> Result<(), Error> {
        use std::os::unix::fs::DirBuilderExt;
        for folder in [&self.data, &self.state, &self.runtime] {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| {
                let what = format!("{} cannot be made: {error}.", folder.display());
                let advice = "Let this user write there, or choose another folder with --home or AMAN_HOME.";
                Error::conflict("data_unusable", format!("{what} {advice}"))
            })?;
        }
        Ok(())
    }
}

/// What the command line takes from the environment to find a daemon.
#[derive(Debug, Clone, Default)]
pub struct ClientEnv {
    /// `AMAN_HTTP_TOKEN`
    pub token: Option<Secret>,
    /// `AMAN_HTTP_BIND`
    pub bind: Option<String>,
    /// `VISUAL`, else `EDITOR`
    pub editor: Option<String>,
    /// `COLUMNS`
    pub columns: Option<u16>,
    /// `XDG_CONFIG_HOME`
    pub config_home: Option<PathBuf>,
}

/// Reads [`ClientEnv`].
pub fn client_env() -> ClientEnv {
    ClientEnv {
        token: variable("AMAN_HTTP_TOKEN").map(known),
        bind: variable("AMAN_HTTP_BIND"),
        editor: variable("VISUAL").or_else(|| variable("EDITOR")),
        columns: variable("COLUMNS").and_then(|text| text.parse().ok()),
        config_home: variable("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute()),
    }
}

/// The `AMAN_*` variables that are settings, and those of OpenTelemetry.
pub(super) fn environment() -> BTreeMap<String, String> {
    const NOT_SETTINGS: [&str; 2] = ["AMAN_HOME", "AMAN_BIN"];
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, value)| {
            let is_ours = name.starts_with("AMAN_") && !NOT_SETTINGS.contains(&name.as_str());
            (is_ours || super::telemetry::STANDARD.contains(&name.as_str())) && !value.is_empty()
        })
        .collect()
}

pub(super) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// A secret that is taken out of everything written.
fn known(text: String) -> Secret {
    redact::learn(&text);
    Secret::new(text)
}

/// The path without links, as far as it is there. Links on the way to the daemon's own folders are their owner's; in the
/// folders themselves nothing follows any, so they must not begin with one.
fn real(path: &Path) -> PathBuf {
    for there in path.ancestors() {
        if let (Ok(found), Ok(rest)) = (std::fs::canonicalize(there), path.strip_prefix(there)) {
            return if rest.as_os_str().is_empty() { found } else { found.join(rest) };
        }
    }
    path.to_owned()
}

/// `~` and `~/…` in the person's home folder.
pub(super) fn expand(path: &str, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix('~'), home) {
        (Some(""), Some(home)) => home.to_owned(),
        (Some(rest), Some(home)) if rest.starts_with('/') => home.join(rest.trim_start_matches('/')),
        _ => PathBuf::from(path),
    }
}
