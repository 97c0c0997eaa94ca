//! What a script may touch: `read:` and `write:` paths and `net:`, quoted as in a shell.

use std::path::{Component, Path, PathBuf};

use serde::{Serialize, Serializer};

use super::{Network, Private};

/// Paths that one skill may name.
const PATHS_MAX: usize = 64;

/// What `~` and `$AMAN_DATA` stand for.
#[derive(Debug, Clone)]
pub struct Places {
    /// The home of whoever runs the daemon; none when the machine names none.
    pub home: Option<PathBuf>,
    /// The daemon's data folder.
    pub data: PathBuf,
}

impl Places {
    /// The absolute path that `path` means; the error says what is wrong with it.
    pub fn expand(&self, path: &str) -> Result<PathBuf, String> {
        expand(path, path, self)
    }

    /// How a path is shown: with `~` for the home.
    pub fn shown(&self, path: &Path) -> String {
        let below = self.home.as_deref().and_then(|home| path.strip_prefix(home).ok());
        match below {
            Some(rest) if rest.as_os_str().is_empty() => "~".to_owned(),
            Some(rest) => format!("~/{}", rest.display()),
            None => path.display().to_string(),
        }
    }
}

/// The rights that a skill asks for, beyond reading the system's own folders and writing its work folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Permissions {
    /// Files and folders it may read.
    pub read: Vec<PathBuf>,
    /// Files and folders it may read and write.
    pub write: Vec<PathBuf>,
    /// The network it gets.
    #[serde(serialize_with = "network")]
    pub net: Network,
}

impl Default for Permissions {
    fn default() -> Permissions {
        Permissions { read: Vec::new(), write: Vec::new(), net: Network::None }
    }
}

fn network<S: Serializer>(net: &Network, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(match net {
        Network::None => "none",
        Network::Any => "any",
    })
}

impl Permissions {
    /// Reads `read:~/inbox "write:~/my files" net:none`; the error says which word is wrong and why.
    pub fn parse(text: &str, places: &Places) -> Result<Permissions, String> {
        let words = shell_words::split(text).map_err(|_| "has a quote that is not closed.".to_owned())?;
        if words.len() > PATHS_MAX {
            return Err(format!("names {} things; at most {PATHS_MAX}.", words.len()));
        }
        let (mut rights, mut net) = (Permissions::default(), None);
        for word in &words {
            match word.split_once(':') {
                Some(("read", path)) => rights.read.push(expand(word, path, places)?),
                Some(("write", path)) => rights.write.push(expand(word, path, places)?),
                Some(("net", wanted)) => {
                    let wanted = match wanted {
                        "none" => Network::None,
                        "any" => Network::Any,
                        _ => return Err(format!("'{word}' is neither net:none nor net:any.")),
                    };
                    if net.replace(wanted).is_some_and(|before| before != wanted) {
                        return Err("says both net:none and net:any.".to_owned());
                    }
                }
                _ => return Err(format!("'{word}' is no permission: they begin with read:, write: or net:.")),
            }
        }
        rights.net = net.unwrap_or(Network::None);
        Ok(rights)
    }

    /// The first path that it may write and that does not lie in `folder`.
    pub fn writes_outside(&self, folder: &Path) -> Option<&Path> {
        self.write.iter().map(PathBuf::as_path).find(|path| !path.starts_with(folder))
    }

    /// The first path that reaches what is private, and what that is, going by names alone: the sandbox looks at what is
    /// there.
    pub fn reaching<'a>(&'a self, private: &'a Private) -> Option<(&'a Path, &'a Path)> {
        let touches = |path: &Path, own: &Path| own.starts_with(path) || path.starts_with(own);
        let first = |paths: &'a [PathBuf], owns: &'a [PathBuf]| {
            let pairs = paths.iter().flat_map(|path| owns.iter().map(move |own| (path.as_path(), own.as_path())));
            pairs.into_iter().find(|(path, own)| touches(path, own))
        };
        first(&self.read, &private.hidden)
            .or_else(|| first(&self.write, &private.hidden))
            .or_else(|| first(&self.write, &private.unwritable))
    }
}

fn expand(word: &str, path: &str, places: &Places) -> Result<PathBuf, String> {
    let below = |rest: &str| rest.is_empty() || rest.starts_with('/');
    let joined = |base: &Path, rest: &str| match rest.trim_start_matches('/') {
        "" => base.to_owned(),
        rest => base.join(rest),
    };
    let full = if let Some(rest) = path.strip_prefix('~').filter(|rest| below(rest)) {
        let home = places.home.as_deref().ok_or_else(|| format!("'{word}': this user has no home folder."))?;
        joined(home, rest)
    } else if let Some(rest) = path.strip_prefix("$AMAN_DATA").filter(|rest| below(rest)) {
        joined(&places.data, rest)
    } else {
        PathBuf::from(path)
    };
    if path.contains(['\0', '\n']) {
        return Err(format!("'{}' holds a control character.", word.escape_debug()));
    }
    if !full.is_absolute() {
        return Err(format!("'{word}' is no absolute path; begin it with /, ~ or $AMAN_DATA."));
    }
    if full.components().any(|part| part == Component::ParentDir) {
        return Err(format!("'{word}' contains '..'; write the path without it."));
    }
    Ok(full.components().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places() -> Places {
        Places { home: Some("/home/ada".into()), data: "/srv/aman".into() }
    }

    #[test]
    fn paths_are_expanded_and_quoted() {
        let cases: [(&str, &[&str], &[&str], Network); 7] = [
            ("", &[], &[], Network::None),
            ("net:any", &[], &[], Network::Any),
            ("read:~/inbox write:~ net:none", &["/home/ada/inbox"], &["/home/ada"], Network::None),
            ("read:$AMAN_DATA write:$AMAN_DATA/filed/", &["/srv/aman"], &["/srv/aman/filed"], Network::None),
            ("'read:/a b' read:\"/c d\" read:/e\\ f", &["/a b", "/c d", "/e f"], &[], Network::None),
            ("read:/~x read:/a//b/./c", &["/~x", "/a/b/c"], &[], Network::None),
            ("net:none net:none", &[], &[], Network::None),
        ];
        for (text, read, write, net) in cases {
            let rights = Permissions::parse(text, &places()).expect(text);
            let paths = |all: &[&str]| all.iter().map(PathBuf::from).collect::<Vec<_>>();
            assert_eq!((rights.read, rights.write, rights.net), (paths(read), paths(write), net), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            ("read:inbox", "read:inbox"),
            ("read:", "read:"),
            ("read:~bob/x", "read:~bob/x"),
            ("write:$AMAN_DATABASE", "write:$AMAN_DATABASE"),
            ("write:/a/../b", ".."),
            ("net:some", "net:some"),
            ("net:none net:any", "both"),
            ("exec:/bin/sh", "exec:/bin/sh"),
            ("everything", "everything"),
            ("'read:/a", "quote"),
        ];
        for (text, expected) in cases {
            let error = Permissions::parse(text, &places()).expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
        let homeless = Places { home: None, ..places() };
        assert!(Permissions::parse("read:~/x", &homeless).expect_err("no home").contains("no home"));
    }

    #[test]
    fn reach_is_by_whole_folders() {
        let rights = Permissions::parse("read:/srv write:$AMAN_DATA/filed", &places()).expect("good");
        assert_eq!(rights.writes_outside(Path::new("/srv/aman")), None);
        assert_eq!(rights.writes_outside(Path::new("/srv/aman/f")), Some(Path::new("/srv/aman/filed")));
        let (token, skills, run) = (Path::new("/srv/aman/token"), Path::new("/home/s"), Path::new("/run/aman"));
        let private = Private { hidden: vec![token.into(), run.into()], unwritable: vec![skills.into()] };
        let cases = [
            ("read:/srv", Some(("/srv", token))),
            ("write:/srv/aman/token", Some(("/srv/aman/token", token))),
            ("read:/srv/aman/tokens read:/home/s", None),
            ("write:/home", Some(("/home", skills))),
            ("read:/run/aman/work", Some(("/run/aman/work", run))),
        ];
        for (text, expected) in cases {
            let rights = Permissions::parse(text, &places()).expect(text);
            let expected = expected.map(|(path, own)| (Path::new(path), own));
            assert_eq!(rights.reaching(&private), expected, "{text}");
        }
    }
}
