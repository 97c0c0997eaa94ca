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
/// Folders of one search path that are looked into for skills, and how deep they may lie.
const FOLDERS_MAX: usize = 2000;
const DEPTH_MAX: usize = 4;
/// Endings of the hidden names that a skill's folder has while another content takes its place.
const MAKING: &str = ".aman-new";
const REPLACED: &str = ".aman-old";

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
    /// The skill's real folder when somebody writes in it at this moment.
    #[serde(skip)]
    pub unfinished: Option<PathBuf>,
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
        let walk = walk(&search.path, &mut |_| {});
        for path in &walk.leftovers {
            mend(path);
        }
        scan.failed.extend(walk.failed);
        let put_back = walk.leftovers.iter().filter_map(|path| replaced_by(path)).filter(|path| is_skill(path));
        let mut folders: Vec<PathBuf> = walk.skills.into_iter().chain(put_back).collect();
        folders.sort();
        folders.dedup();
        for path in folders {
            match load(&path, search.place, places) {
                Ok(found) => scan.add(found),
                Err(failed) => scan.failed.push(failed),
            }
        }
    }
    scan
}

/// The hidden name beside `folder` under which a new content of it is made, and the one that the old content gets where
/// the two cannot be exchanged in one step.
pub fn beside(folder: &Path) -> Option<(PathBuf, PathBuf)> {
    let (parent, name) = folder.parent().zip(folder.file_name()?.to_str())?;
    Some((parent.join(format!(".{name}{MAKING}")), parent.join(format!(".{name}{REPLACED}"))))
}

/// The folder whose old content `hidden` is; none when it is no such name.
fn replaced_by(hidden: &Path) -> Option<PathBuf> {
    let name = hidden.file_name()?.to_str()?.strip_prefix('.')?.strip_suffix(REPLACED)?;
    (!name.is_empty()).then(|| hidden.with_file_name(name))
}

fn is_leftover(name: &str) -> bool {
    name.starts_with('.') && (name.ends_with(MAKING) || name.ends_with(REPLACED))
}

/// Ends what a crash cut off: an old content whose place is empty goes back there, everything else was not to stay.
fn mend(leftover: &Path) {
    let done = match replaced_by(leftover) {
        Some(folder) if folder.symlink_metadata().is_err() => fs::rename(leftover, folder),
        _ => super::clear::remove(leftover),
    };
    if let Err(error) = done {
        tracing::warn!(path = %leftover.display(), %error, "What a rollback left could not be put in order.");
    }
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

/// What lies below a search path.
#[derive(Debug, Default)]
pub struct Walk {
    /// The folders with a `SKILL.md`.
    pub skills: Vec<PathBuf>,
    /// What could not be looked at.
    pub failed: Vec<Failed>,
    /// What a rollback left that was cut off.
    leftovers: Vec<PathBuf>,
}

/// Looks for skills below `path`, also in folders of folders; hidden ones, `node_modules` and links to folders that are no
/// skills are left out. `enter` hears of every folder before it is listed. A path that does not exist holds nothing.
pub fn walk(path: &Path, enter: &mut dyn FnMut(&Path)) -> Walk {
    let mut found = Walk::default();
    let mut waiting = vec![(path.to_owned(), 0)];
    let mut looked = 0;
    while let Some((folder, depth)) = waiting.pop() {
        looked += 1;
        if looked > FOLDERS_MAX || found.skills.len() > SKILLS_MAX {
            let error = format!(
                "holds more than {FOLDERS_MAX} folders or {SKILLS_MAX} skills; what comes after them was not looked at."
            );
            found.failed.push(Failed::new(path, error));
            break;
        }
        enter(&folder);
        match fs::read_dir(&folder).and_then(Iterator::collect::<std::io::Result<Vec<_>>>) {
            Ok(entries) => entries.iter().for_each(|entry| found.sort(entry, depth, &mut waiting)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => found.failed.push(Failed::new(&folder, format!("cannot be read: {error}."))),
        }
    }
    found.skills.sort();
    found
}

impl Walk {
    fn sort(&mut self, entry: &fs::DirEntry, depth: usize, waiting: &mut Vec<(PathBuf, usize)>) {
        let (path, name) = (entry.path(), entry.file_name());
        if name.as_encoded_bytes().starts_with(b".") {
            if name.to_str().is_some_and(is_leftover) {
                self.leftovers.push(path);
            }
        } else if is_skill(&path) {
            self.skills.push(path);
        } else if depth < DEPTH_MAX && name != "node_modules" && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            waiting.push((path, depth + 1));
        }
    }
}

/// Tells `enter` of a skill's folder and every folder in it, each before it is listed.
pub fn folders(skill: &Path, enter: &mut dyn FnMut(&Path)) {
    let (mut waiting, mut told) = (vec![skill.to_owned()], 0);
    while let Some(folder) = waiting.pop().filter(|_| told <= 2 * folder::FILES_MAX) {
        if !folder.symlink_metadata().is_ok_and(|data| data.is_dir()) {
            continue;
        }
        told += 1;
        enter(&folder);
        waiting.extend(fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path()));
    }
}

fn is_skill(path: &Path) -> bool {
    path.join(SKILL_FILE).symlink_metadata().is_ok()
}

impl Failed {
    fn new(path: &Path, error: String) -> Failed {
        Failed { path: path.display().to_string(), error, unfinished: None }
    }
}

fn load(path: &Path, place: Place, places: &Places) -> Result<Found, Failed> {
    let Some(folder) = path.file_name().and_then(|name| name.to_str()) else {
        return Err(Failed::new(path, "has a name that is no UTF-8.".to_owned()));
    };
    // Text and digest are of the same bytes: what was trusted is what is read.
    let mut text = None;
    let read = folder::read_each(path, |name, _, bytes| {
        if name == SKILL_FILE {
            text = Some(bytes);
        }
    });
    let content = read.map_err(|error| {
        let unfinished = if error == folder::CHANGED { fs::canonicalize(path).ok() } else { None };
        Failed { unfinished, ..Failed::new(path, error) }
    })?;
    let file = path.join(SKILL_FILE);
    let text = text.ok_or_else(|| "is missing.".to_owned()).and_then(decode);
    let text = text.map_err(|error| Failed::new(&file, error))?;
    let manifest = Manifest::parse(&text, folder, places).map_err(|error| Failed::new(&file, error.to_string()))?;
    // Folders on the way may be links, which their owner made; from here on only where they lead counts.
    let real = fs::canonicalize(path).map_err(|error| Failed::new(path, format!("cannot be read: {error}.")))?;
    Ok(Found { manifest: Arc::new(manifest), place, path: real, content })
}

/// The `SKILL.md` of a skill's folder.
pub fn text(path: &Path) -> Result<String, String> {
    folder::read_capped(&path.join(SKILL_FILE), TEXT_BYTES_MAX).and_then(decode)
}

fn decode(bytes: Vec<u8>) -> Result<String, String> {
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > TEXT_BYTES_MAX {
        return Err(format!("has more than {TEXT_BYTES_MAX} bytes."));
    }
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
