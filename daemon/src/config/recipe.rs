//! What a configuration is made of, so that it can be made again: with other overrides, with a file that was edited, or
//! with the last file that was good.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::secrets::References;
use super::settings::Layers;
use super::{Config, Flags, KEYRING_LOCKED, Origin, Paths, SETTINGS, Secret, build, paths};
use crate::error::Error;
use crate::id::sha256_hex;
use crate::plain;

/// Longest configuration file, in bytes; more is no configuration.
pub const FILE_BYTES_MAX: u64 = 4 << 20;

/// Values that `/config/set` put above every other layer.
pub type Overrides = BTreeMap<String, Value>;

/// The layers as they came.
#[derive(Clone)]
pub struct Recipe {
    paths: Paths,
    flags: Flags,
    environment: BTreeMap<String, String>,
    /// What the file holds; it may hold secrets.
    text: String,
}

impl fmt::Debug for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recipe")
    }
}

impl Recipe {
    fn find(flags: &Flags) -> Result<Recipe, Error> {
        super::keyring::ask_again();
        let mut paths = Paths::find(flags.home.as_deref())?;
        if let Some(file) = &flags.config {
            paths.config_file.clone_from(file);
        }
        Ok(Recipe { paths, flags: flags.clone(), environment: paths::environment(), text: String::new() })
    }

    fn read(&self) -> Result<String, Error> {
        let file = &self.paths.config_file;
        match plain::read(file, FILE_BYTES_MAX) {
            Ok(text) => Ok(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && self.flags.config.is_none() => {
                Ok(String::new())
            }
            Err(error) => Err(Error::invalid(file.display().to_string(), format!("cannot be read: {error}."))),
        }
    }

    fn layers(&self, file: &Table, overrides: &Overrides) -> Layers {
        let mut layers = Layers::new(file, self.flags.references);
        let mut environment = self.environment.clone();
        super::telemetry::take_standard(&mut environment, &mut layers);
        layers.add_environment(environment);
        for (key, value) in [("http.bind", &self.flags.bind), ("log.level", &self.flags.log)] {
            if let Some(value) = value {
                layers.set(key, Value::String(value.clone()), Origin::Flag);
            }
        }
        for setting in SETTINGS {
            if let Some(value) = overrides.get(setting.key) {
                layers.set(setting.key, value.clone(), Origin::Override);
            }
        }
        layers
    }

    fn build(&self, text: &str, overrides: &Overrides) -> Result<Config, Error> {
        let file = parse(&self.paths.config_file, text)?;
        let layers = self.layers(&file, overrides);
        let mut config = build(self.paths.clone(), &file, layers)?;
        config.recipe = Some(Recipe { text: text.to_owned(), ..self.clone() });
        Ok(config)
    }

    fn last_good(&self) -> PathBuf {
        self.paths.state.join("last-good.toml")
    }
}

/// Reads `text` as the file `path`. The error names the line and quotes nothing of it: it may hold a secret.
pub fn parse(path: &Path, text: &str) -> Result<Table, Error> {
    text.parse::<Table>().map_err(|error| {
        let line = error.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        Error::invalid(path.display().to_string(), format!("is not TOML, line {line}: {}", error.message()))
    })
}

/// Reads and checks the configuration. The error names every setting that is wrong, and where it was set.
pub fn load(flags: &Flags) -> Result<Config, Error> {
    let recipe = Recipe::find(flags)?;
    let text = recipe.read()?;
    recipe.build(&text, &Overrides::new())
}

/// Checks `text` as if it were the configuration file.
pub fn check(flags: &Flags, text: &str) -> Result<Config, Error> {
    Recipe::find(flags)?.build(text, &Overrides::new())
}

/// The static token that is configured, found wherever a reference leads; none when none is set or it cannot be found.
pub fn configured_token(flags: &Flags) -> Option<Secret> {
    let recipe = Recipe::find(flags).ok()?;
    let file = parse(&recipe.paths.config_file, &recipe.read().ok()?).ok()?;
    let mut layers = recipe.layers(&file, &Overrides::new());
    layers.references = References::Followed;
    layers.secret("http.token")
}

/// As [`load`]; when the file is broken, the last one that was good is taken, and [`Config::broken`] says why. A keyring
/// that gives nothing now does not make it broken.
pub fn load_or_last_good(flags: &Flags) -> Result<Config, Error> {
    let recipe = Recipe::find(flags)?;
    let error = match recipe.read().and_then(|text| recipe.build(&text, &Overrides::new())) {
        Ok(config) => return Ok(config),
        Err(error) => error,
    };
    if matches!(error, Error::Invalid { code: KEYRING_LOCKED, .. }) {
        return Err(error);
    }
    let Ok(text) = plain::read(&recipe.last_good(), FILE_BYTES_MAX) else { return Err(error) };
    match recipe.build(&text, &Overrides::new()) {
        Ok(config) => Ok(Config { broken: Some(error.chain().join(": ")), ..config }),
        Err(_) => Err(error),
    }
}

impl Config {
    fn made_from(&self) -> Result<&Recipe, Error> {
        super::keyring::ask_again();
        let none = || Error::conflict("invalid_state", "This configuration was not read from a file.");
        self.recipe.as_ref().ok_or_else(none)
    }

    /// The same layers with these overrides on top.
    pub fn with_overrides(&self, overrides: &Overrides) -> Result<Config, Error> {
        let recipe = self.made_from()?;
        Ok(Config { broken: self.broken.clone(), ..recipe.build(&recipe.text, overrides)? })
    }

    /// The configuration with the file as it is now.
    pub fn reread(&self, overrides: &Overrides) -> Result<Config, Error> {
        let recipe = self.made_from()?;
        recipe.build(&recipe.read()?, overrides)
    }

    /// The same, with a note of what is wrong with the file by now.
    pub fn in_safe_mode(&self, error: String) -> Config {
        Config { broken: Some(error), ..self.clone() }
    }

    /// Keeps the file that this came from as the last one that was good; does nothing in safe mode. Without such a copy a
    /// later start has nothing to fall back on, which is told.
    pub fn keep_copy(&self) {
        if let Err(error) = self.keep_as_last_good() {
            tracing::warn!(error = error.chain().join(": "), "No copy of the configuration could be kept.");
        }
    }

    fn keep_as_last_good(&self) -> Result<(), Error> {
        let Some(recipe) = self.recipe.as_ref().filter(|_| self.broken.is_none()) else { return Ok(()) };
        let file = recipe.last_good();
        if plain::read(&file, FILE_BYTES_MAX).is_ok_and(|kept| kept == recipe.text) {
            return Ok(());
        }
        write_private(&file, &recipe.text).map_err(Error::internal("keeping a copy of the configuration"))
    }

    /// Sections beside the fixed settings and those that take effect live, that the file of `other` fills in another way.
    pub fn other_sections_than(&self, other: &Config) -> Vec<String> {
        let tables = |config: &Config| {
            let mut table =
                config.recipe.as_ref().and_then(|recipe| recipe.text.parse::<Table>().ok()).unwrap_or_default();
            table.retain(|section, _| {
                let fixed = SETTINGS.iter().any(|setting| setting.key.split('.').next() == Some(section));
                !fixed && !super::sections::LIVE.contains(&section)
            });
            table
        };
        let (mine, others) = (tables(self), tables(other));
        let mut names: Vec<String> = mine.keys().chain(others.keys()).cloned().collect();
        names.sort();
        names.dedup();
        names.retain(|name| mine.get(name) != others.get(name));
        names
    }

    /// SHA-256 of every setting in force, secrets left out.
    pub fn digest(&self) -> String {
        let shown: Vec<_> = self.effective.iter().map(|setting| (&setting.key, &setting.value)).collect();
        sha256_hex(serde_json::to_string(&shown).unwrap_or_default().as_bytes())
    }
}

/// Replaces a file in one step; only its owner may read it, who stays the same.
pub fn write_private(file: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
    let mut name = file.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    let making = file.with_file_name(name);
    let _old = std::fs::remove_file(&making);
    let mut out = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&making)?;
    if let Ok(old) = file.metadata()
        && old.uid() != out.metadata()?.uid()
    {
        // As after `sudo aman config set`: the daemon would not be able to read a file of root's.
        fchown(&out, Some(old.uid()), Some(old.gid()))?;
    }
    out.write_all(text.as_bytes()).and_then(|()| out.sync_all())?;
    std::fs::rename(&making, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe() -> Recipe {
        let paths = Paths::under("/home/me/aman".into(), None);
        Recipe { paths, flags: Flags::default(), environment: BTreeMap::new(), text: String::new() }
    }

    #[test]
    fn each_layer_hides_the_ones_below() {
        let mut recipe = recipe();
        let origin = |config: &Config| {
            let found = config.effective.iter().find(|setting| setting.key == "log.level").expect("a setting");
            (found.value.as_str().unwrap_or_default().to_owned(), found.origin)
        };
        let none = Overrides::new();
        assert_eq!(origin(&recipe.build("", &none).expect("valid")), ("info".to_owned(), Origin::Default));
        let text = "[log]\nlevel = \"warn\"\n";
        assert_eq!(origin(&recipe.build(text, &none).expect("valid")), ("warn".to_owned(), Origin::File));
        recipe.environment.insert("AMAN_LOG_LEVEL".to_owned(), "error".to_owned());
        assert_eq!(origin(&recipe.build(text, &none).expect("valid")), ("error".to_owned(), Origin::Env));
        recipe.flags.log = Some("debug".to_owned());
        assert_eq!(origin(&recipe.build(text, &none).expect("valid")), ("debug".to_owned(), Origin::Flag));
        let overrides = Overrides::from([("log.level".to_owned(), Value::from("trace"))]);
        let config = recipe.build(text, &overrides).expect("valid");
        assert_eq!(origin(&config), ("trace".to_owned(), Origin::Override));
        let without = config.with_overrides(&none).expect("valid");
        assert_eq!(origin(&without), ("debug".to_owned(), Origin::Flag));
        assert_ne!(config.digest(), without.digest());
    }

    #[test]
    fn what_is_not_toml_is_told_by_line_and_not_quoted() {
        let error = recipe().build("[http]\ntoken = \"very secret text\n", &Overrides::new()).expect_err("broken");
        let text = error.to_string();
        assert!(text.contains("line 2") && !text.contains("very secret"), "{text}");
    }
}
