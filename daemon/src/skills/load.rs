//! Finds the skills on the disk: the search paths in order, the first of a name wins, what is broken is reported.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::folder::{self, Content};
use super::manifest::Manifest;
use crate::sandbox::Places;
use crate::store::skills::Decided;

/// The file that makes a folder a skill.
pub const SKILL_FILE: &str = "SKILL.md";
/// Bytes of that file.
const TEXT_BYTES_MAX: u64 = 256 << 10;
/// Skills of one search path.
const SKILLS_MAX: usize = 500;

/// Where a skill lies, which decides how far it is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// It came with the daemon.
    Bundled,
    /// In the data folder's `skills`.
    Data,
    /// In a folder that the configuration names.
    Configured,
    /// In `~/.agents/skills`, which other programs fill, too.
    Agents,
}

impl Place {
    /// Its name in JSON and in the database.
    pub fn name(self) -> &'static str {
        match self {
            Place::Bundled => "bundled",
            Place::Data => "data",
            Place::Configured => "configured",
            Place::Agents => "agents",
        }
    }
}

/// A folder whose folders are skills.
#[derive(Debug, Clone)]
pub struct SearchPath {
    /// What kind of place it is.
    pub place: Place,
    /// The folder.
    pub path: PathBuf,
}

/// A skill as it was found.
#[derive(Debug, Clone)]
pub struct Found {
    /// What it says of itself.
    pub manifest: Arc<Manifest>,
    /// Where it lies.
    pub place: Place,
    /// Its folder.
    pub path: PathBuf,
    /// What it holds.
    pub content: Content,
}

/// Something that could not be loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failed {
    /// The skill's folder, or its `SKILL.md`.
    pub path: String,
    /// What is wrong, with the fields.
    pub error: String,
}

/// A skill that another of the same name hides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shadowed {
    /// Their name.
    pub name: String,
    /// The folder that is hidden.
    pub path: String,
    /// The folder that is used.
    pub by: String,
}

/// What is on the disk.
#[derive(Debug, Default)]
pub struct Scan {
    /// The skills by name.
    pub found: BTreeMap<String, Found>,
    /// What could not be loaded.
    pub failed: Vec<Failed>,
    /// What is hidden.
    pub shadowed: Vec<Shadowed>,
}

/// Reads all search paths. A path that does not exist holds no skills.
pub fn scan(paths: &[SearchPath], places: &Places) -> Scan {
    let mut scan = Scan::default();
    for search in paths {
        let folders = match skill_folders(&search.path) {
            Ok(folders) => folders,
            Err(error) => {
                scan.failed.push(Failed { path: search.path.display().to_string(), error });
                continue;
            }
        };
        for path in folders {
            match load(&path, search.place, places) {
                Ok(found) => scan.add(found),
                Err(failed) => scan.failed.push(failed),
            }
        }
    }
    scan
}

impl Scan {
    fn add(&mut self, found: Found) {
        let name = found.manifest.name.clone();
        match self.found.get(&name) {
            // The same folder may be named twice in the configuration.
            Some(first) if first.path == found.path => {}
            Some(first) => self.shadowed.push(Shadowed {
                name,
                path: found.path.display().to_string(),
                by: first.path.display().to_string(),
            }),
            None => _ = self.found.insert(name, found),
        }
    }
}

/// The folders with a `SKILL.md` directly below `path`, by name; hidden ones are left out.
fn skill_folders(path: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(format!("cannot be read: {error}.")),
    };
    let mut folders = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| format!("cannot be read: {error}."))?;
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if !hidden && entry.path().join(SKILL_FILE).symlink_metadata().is_ok() {
            folders.push(entry.path());
        }
        if folders.len() > SKILLS_MAX {
            return Err(format!("holds more than {SKILLS_MAX} skills."));
        }
    }
    folders.sort();
    Ok(folders)
}

fn load(path: &Path, place: Place, places: &Places) -> Result<Found, Failed> {
    let failed = |path: &Path, error: String| Failed { path: path.display().to_string(), error };
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
        return Err(failed(path, "has a name that is no UTF-8.".to_owned()));
    };
    let content = folder::read(path).map_err(|error| failed(path, error))?;
    let file = path.join(SKILL_FILE);
    let text = folder::read_capped(&file, TEXT_BYTES_MAX).map_err(|error| failed(&file, error))?;
    let text = String::from_utf8(text).map_err(|_| failed(&file, "is not UTF-8.".to_owned()))?;
    let manifest = Manifest::parse(&text, name, places).map_err(|error| failed(&file, error.to_string()))?;
    // The folder may be a link, which its owner made; from here on only where it leads counts.
    let real = fs::canonicalize(path).map_err(|error| failed(path, format!("cannot be read: {error}.")))?;
    Ok(Found { manifest: Arc::new(manifest), place, path: real, content })
}

/// The `SKILL.md` of a skill's folder.
pub fn text(path: &Path) -> Result<String, String> {
    let bytes = folder::read_capped(&path.join(SKILL_FILE), TEXT_BYTES_MAX)?;
    String::from_utf8(bytes).map_err(|_| "is not UTF-8.".to_owned())
}

/// Whether a content may run, given what was decided about its name before; nothing was, when the name is new.
///
/// What came with the daemon and what lies in its data folder is its owner's. Elsewhere a name is trusted with the
/// content it was trusted with; a folder that the configuration names may run at first sight.
pub fn is_trusted(place: Place, digest: &str, decided: Option<&Decided>) -> bool {
    match (place, decided) {
        (Place::Bundled | Place::Data, _) | (Place::Configured, None) => true,
        (Place::Configured | Place::Agents, Some(decided)) => decided.trusted.as_deref() == Some(digest),
        (Place::Agents, None) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("aman-load-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        path
    }

    fn write(folder: &Path, text: &str) {
        fs::create_dir_all(folder).expect("temporary folder");
        fs::write(folder.join(SKILL_FILE), text).expect("file");
    }

    #[test]
    fn first_of_a_name_wins_and_bad_ones_are_told() {
        let base = base("order");
        let good = |name: &str| format!("---\nname: {name}\ndescription: d\n---\n");
        write(&base.join("one/a"), &good("a"));
        write(&base.join("one/.hidden"), &good("hidden"));
        write(&base.join("one/bad"), "---\nname: bad\nmetadata: {aman.on: 'x..y'}\n---\n");
        fs::create_dir_all(base.join("one/no-skill")).expect("folder");
        write(&base.join("two/a"), &good("a"));
        write(&base.join("two/b"), &good("b"));
        let at = |place, name: &str| SearchPath { place, path: base.join(name) };
        let paths = [at(Place::Data, "one"), at(Place::Configured, "two"), at(Place::Agents, "none")];
        let found = scan(&paths, &Places { home: None, data: base.clone() });
        let names: Vec<_> = found.found.values().map(|f| (f.manifest.name.as_str(), f.place)).collect();
        assert_eq!(names, [("a", Place::Data), ("b", Place::Configured)]);
        assert_eq!(found.shadowed.len(), 1);
        assert!(found.shadowed[0].path.ends_with("two/a") && found.shadowed[0].by.ends_with("one/a"));
        assert_eq!(found.failed.len(), 1);
        assert!(found.failed[0].path.ends_with("one/bad/SKILL.md"), "{:?}", found.failed);
        for field in ["description:", "metadata.aman.on:"] {
            assert!(found.failed[0].error.contains(field), "{:?}", found.failed);
        }
        let _ = fs::remove_dir_all(&base);
    }

    #[test]
    fn trust_follows_the_place() {
        let known = |trusted: Option<&str>| Decided {
            name: "a".to_owned(),
            enabled: None,
            trusted: trusted.map(str::to_owned),
        };
        let cases = [
            (Place::Bundled, None, true),
            (Place::Data, Some(Some("old")), true),
            (Place::Configured, None, true),
            (Place::Configured, Some(Some("now")), true),
            (Place::Configured, Some(Some("old")), false),
            (Place::Configured, Some(None), false),
            (Place::Agents, None, false),
            (Place::Agents, Some(Some("now")), true),
            (Place::Agents, Some(Some("old")), false),
        ];
        for (place, trusted, expected) in cases {
            let decided = trusted.map(known);
            assert_eq!(is_trusted(place, "now", decided.as_ref()), expected, "{place:?} {trusted:?}");
        }
    }
}
