//! Secrets of the configuration: references to them (`env:NAME`, `file:PATH`, `keyring:SERVICE/ACCOUNT`), and the names of
//! settings that hold one.

use std::path::{Path, PathBuf};

use super::{keyring, paths};
use crate::{plain, redact};

/// Longest file with a secret, in bytes.
pub(super) const BYTES_MAX: u64 = 64 << 10;
/// What stands for a secret that was not looked up; long enough for every check of a value.
pub(super) const STAND_IN: &str = "(not looked up, this is no secret)";
/// How a reference begins.
const SCHEMES: [&str; 3] = ["env:", "file:", "keyring:"];
/// Names of settings that hold secrets, and ends of such names.
const NAMES: [&str; 9] =
    ["token", "secret", "secrets", "password", "passwd", "api_key", "apikey", "authorization", "cookie"];
const NAME_ENDS: [&str; 5] = ["_token", "_secret", "_password", "_key", "_credentials"];

/// What is done with references when a configuration is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum References {
    /// They are followed, and one that leads nowhere is an error: for the daemon, which needs the secrets.
    #[default]
    Followed,
    /// They stand for themselves: for the command line, which needs none of the secrets and may not see them. Where the
    /// daemon has a variable or a keyring, a shell, a cron job or another user often has not.
    Named,
}

/// Why there is no secret behind a reference. Never holds one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Missing {
    /// What is wrong and what would be right.
    pub reason: String,
    /// True when it may be there later without any change of the configuration.
    pub for_now: bool,
}

impl Missing {
    pub fn for_good(reason: impl Into<String>) -> Missing {
        Missing { reason: reason.into(), for_now: false }
    }

    pub fn for_now(reason: impl Into<String>) -> Missing {
        Missing { reason: reason.into(), for_now: true }
    }
}

/// True for a text that refers to a secret and is none itself.
pub fn is_reference(text: &str) -> bool {
    SCHEMES.iter().any(|scheme| text.starts_with(scheme))
}

/// True for the name of a setting, a header or a variable that most likely holds a secret.
pub fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace('-', "_");
    NAMES.contains(&name.as_str()) || NAME_ENDS.iter().any(|end| name.ends_with(end))
}

/// The value behind a reference, made known to [`redact`]; any other text is the value itself.
pub(super) fn resolve(text: &str) -> Result<String, Missing> {
    let found = if let Some(name) = text.strip_prefix("env:") {
        let unset = || Missing::for_good(format!("names the variable {name}, which is not set."));
        paths::variable(name).ok_or_else(unset)?
    } else if let Some(path) = text.strip_prefix("file:") {
        let path = paths::expand(path, paths::variable("HOME").map(PathBuf::from).as_deref());
        let unread = |error: std::io::Error| Missing::for_good(format!("names the file {}: {error}.", path.display()));
        plain::read(&path, BYTES_MAX).map_err(unread)?.trim().to_owned()
    } else if let Some(place) = text.strip_prefix("keyring:") {
        keyring::look_up(place)?
    } else {
        return Ok(text.to_owned());
    };
    // A variable such as HOME may be referred to as well; its value is no secret.
    let place = Path::new(&found);
    if !(place.is_absolute() && place.exists()) {
        redact::learn(&found);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_and_names_are_told_apart() {
        for (text, wanted) in
            [("env:A", true), ("file:/a", true), ("keyring:a/b", true), ("environment", false), ("", false)]
        {
            assert_eq!(is_reference(text), wanted, "{text}");
        }
        for (name, wanted) in [
            ("Authorization", true),
            ("x-api-key", true),
            ("GITHUB_TOKEN", true),
            ("secrets", true),
            ("key", false),
            ("accept", false),
            ("tokens_max", false),
        ] {
            assert_eq!(is_secret_name(name), wanted, "{name}");
        }
    }

    #[test]
    fn a_file_that_is_none_is_refused_at_once() {
        let folder = std::env::temp_dir().join(format!("aman-secret-{:016x}", fastrand::u64(..)));
        std::fs::create_dir(&folder).expect("the folder is writable");
        let pipe = folder.join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("the folder is writable");
        let long = folder.join("long");
        std::fs::write(&long, "x".repeat(70_000)).expect("the folder is writable");
        for (path, what) in
            [(pipe.as_path(), "a named pipe"), (Path::new("/dev/zero"), "a device"), (&long, "more than")]
        {
            let missing = resolve(&format!("file:{}", path.display())).expect_err(what);
            assert!(missing.reason.contains(what) && !missing.for_now, "{missing:?}");
        }
        std::fs::remove_dir_all(&folder).expect("it is ours");
    }
}
