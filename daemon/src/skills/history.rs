//! The contents that skills had: kept by digest when they are loaded, compared, and brought back.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use serde::Serialize;
use similar::TextDiff;

use super::folder::Content;
use super::load::{self, Place};
use super::manifest::Manifest;
use super::{Inner, Shown, Skill, Skills, clear, folder, front};
use crate::error::Error;
use crate::store::skill_contents::{self as contents, Kept};
use crate::store::skill_words::{self as words, Words};
use crate::store::{Tx, skills as records};

/// Contents of one skill that are kept, and their bytes.
const KEPT_MAX: usize = 50;
const KEPT_BYTES_MAX: i64 = 64 << 20;
/// Bytes of the differences that are shown: of one file, of all.
const DIFF_BYTES_MAX: usize = 64 << 10;
const DIFFS_BYTES_MAX: usize = 1 << 20;
/// Files larger than that, or that are no text, are told to differ and no more.
const TEXT_BYTES_MAX: usize = 256 << 10;
/// How long the differences of all files are looked for; what is left then is told more coarsely.
const DIFF_TIME: Duration = Duration::from_secs(2);
/// What the history calls a content whose `SKILL.md` says no version, because it is broken.
const NO_VERSION: &str = "?";

/// What became of a file from one content to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Changed {
    /// From the skill's folder.
    pub path: String,
    /// `added`, `removed` or `changed`.
    pub change: &'static str,
    /// Bytes before; none when it was not there.
    pub old_size: Option<usize>,
    /// Bytes after; none when it is not there.
    pub new_size: Option<usize>,
    /// As a unified diff; none for what is no text, or too long.
    pub diff: Option<String>,
}

/// Two contents of a skill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diff {
    /// Digest of the older one.
    pub from: String,
    /// Digest of the newer one.
    pub to: String,
    /// What differs, by path.
    pub files: Vec<Changed>,
}

impl Inner {
    /// Keeps and indexes the contents that are not yet. One that cannot be read any more is left to the reload that finds it.
    /// Gives the names that are indexed and not there.
    pub(super) async fn keep(&self, now: &BTreeMap<String, Arc<Skill>>) -> Result<Vec<String>, Error> {
        let indexed = self.store.read(words::indexed).await?;
        for (name, skill) in now {
            let (digest, path) = (skill.found.content.digest.clone(), skill.found.path.clone());
            let wanted = digest.clone();
            let is_kept = self.store.read(move |conn| contents::is_kept(conn, &wanted)).await?;
            if is_kept && indexed.get(name) == Some(&digest) {
                continue;
            }
            let read = tokio::task::spawn_blocking(move || folder::read_all(&path));
            let Ok((content, files)) = read.await.map_err(Error::internal("keeping a skill"))? else { continue };
            if content.digest != digest {
                continue;
            }
            let words = words_of(skill, &files);
            if !is_kept {
                self.keep_files(name, digest, files).await?;
            }
            self.store.write(move |tx| words::put(tx, &words)).await?;
        }
        Ok(indexed.into_keys().filter(|name| !now.contains_key(name)).collect())
    }

    async fn keep_files(&self, name: &str, digest: String, files: Vec<Kept>) -> Result<(), Error> {
        let name = name.to_owned();
        self.store
            .write(move |tx| {
                contents::keep(tx, &digest, &files)?;
                contents::trim(tx, &name, &digest, KEPT_MAX, KEPT_BYTES_MAX)
            })
            .await
    }

    /// The digest that `wanted` means: a digest, the beginning of one, or a version of the skill, newest first.
    async fn meant(&self, name: &str, field: &'static str, wanted: &str) -> Result<String, Error> {
        let (name_of, wanted_of) = (name.to_owned(), wanted.to_owned());
        let all = self.store.read(move |conn| records::versions(conn, &name_of, usize::MAX)).await?;
        let by_digest: BTreeSet<&str> = all
            .iter()
            .map(|one| one.digest.as_str())
            .filter(|digest| wanted.len() >= 6 && digest.starts_with(&wanted.to_lowercase()))
            .collect();
        if by_digest.len() > 1 {
            return Err(Error::invalid(
                field,
                format!("'{wanted}' is the beginning of several digests; give more of it."),
            ));
        }
        let found = by_digest.into_iter().next().map(str::to_owned);
        let by_version = || all.iter().find(|one| one.version == wanted_of).map(|one| one.digest.clone());
        found.or_else(by_version).ok_or_else(|| Error::not_found("version of the skill", wanted))
    }

    async fn files(&self, digest: &str) -> Result<Vec<Kept>, Error> {
        let wanted = digest.to_owned();
        let files = self.store.read(move |conn| contents::files(conn, &wanted)).await?;
        if files.is_empty() {
            let reason =
                format!("The content {digest} is not kept any more; only the newest {KEPT_MAX} of a skill are.");
            return Err(Error::conflict("invalid_state", reason));
        }
        Ok(files)
    }
}

/// What a skill is found by.
fn words_of(skill: &Skill, files: &[Kept]) -> Words {
    let manifest = &skill.found.manifest;
    let text = files.iter().find(|file| file.path == load::SKILL_FILE).and_then(|f| std::str::from_utf8(&f.bytes).ok());
    Words {
        name: manifest.name.clone(),
        digest: skill.found.content.digest.clone(),
        tags: manifest.tags.join(" "),
        description: manifest.description.clone(),
        body: text.map(|text| front::body(text).to_owned()).unwrap_or_default(),
    }
}

/// Where a skill lies, or lay.
struct Home {
    folder: PathBuf,
    origin: String,
    /// Digest of the newest content in its history.
    newest: String,
}

impl Inner {
    /// Where a skill lies; one that is broken or gone, where it lay, if skills are still looked for there.
    async fn home(&self, name: &str) -> Result<Home, Error> {
        if let Ok(skill) = self.skill(name) {
            return Ok(Home {
                folder: skill.found.path.clone(),
                origin: skill.found.place.name().to_owned(),
                newest: skill.found.content.digest.clone(),
            });
        }
        let wanted = name.to_owned();
        let newest = self.store.read(move |conn| records::versions(conn, &wanted, 1)).await?.pop();
        let newest = newest.ok_or_else(|| Error::not_found("skill", name))?;
        let folder = PathBuf::from(&newest.path);
        let paths = self.settings.search_paths();
        let looked_at = |path: &Path| fs::canonicalize(path).is_ok_and(|path| folder.starts_with(path));
        if !paths.iter().any(|search| looked_at(&search.path)) {
            return Err(Error::not_found("skill", name));
        }
        Ok(Home { folder, origin: newest.origin, newest: newest.digest })
    }

    /// What is in a skill's folder now; none when there is no folder.
    async fn present(&self, home: &Home) -> Result<Present, Error> {
        let (folder, places) = (home.folder.clone(), self.settings.places.clone());
        let read = tokio::task::spawn_blocking(move || present(&folder, &places)).await;
        read.map_err(Error::internal("keeping a skill"))?.map_err(|reason| {
            let folder = home.folder.display();
            let what_to_do = "Put that in order, or move the folder away, first";
            Error::conflict("invalid_state", format!("What is in {folder} now cannot be kept: {reason} {what_to_do}."))
        })
    }

    /// Puts what is in a skill's folder into the history, if it is not its newest entry, so that nothing is lost when another
    /// content takes its place. Gives its digest; none when there is no folder.
    async fn keep_present(&self, name: &str, home: &Home) -> Result<Option<String>, Error> {
        let Some((content, files, version)) = self.present(home).await? else { return Ok(None) };
        let digest = content.digest;
        // Also what is in the history already: its modes may be others by now.
        self.keep_files(name, digest.clone(), files).await?;
        if digest != home.newest {
            let seen = records::Found {
                name: name.to_owned(),
                digest: digest.clone(),
                version,
                origin: home.origin.clone(),
                path: home.folder.display().to_string(),
                trusted: false,
            };
            let now_ms = self.clock.now_ms();
            self.store.write(move |tx| records::see(tx, &seen, now_ms)).await?;
        }
        Ok(Some(digest))
    }
}

/// What a folder holds and which version it says it is; none when there is no folder.
type Present = Option<(Content, Vec<Kept>, String)>;

fn present(path: &Path, places: &crate::sandbox::Places) -> Result<Present, String> {
    if path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        return Ok(None);
    }
    let (content, files) = folder::read_all(path)?;
    let text = files.iter().find(|file| file.path == load::SKILL_FILE).and_then(|f| std::str::from_utf8(&f.bytes).ok());
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let manifest = text.and_then(|text| Manifest::parse(text, name, places).ok());
    let version = manifest.map_or_else(|| NO_VERSION.to_owned(), |manifest| manifest.version);
    Ok(Some((content, files, version)))
}

impl Skills {
    /// What differs between two contents of a skill; without `from` the one before `to`, without `to` the present one.
    pub async fn diff(&self, name: &str, from: Option<&str>, to: Option<&str>) -> Result<Diff, Error> {
        let inner = &self.inner;
        let present = inner.home(name).await?.newest;
        let to = match to {
            Some(to) => inner.meant(name, "to", to).await?,
            None => present,
        };
        let from = match from {
            Some(from) => inner.meant(name, "from", from).await?,
            None => {
                let name = name.to_owned();
                let all = inner.store.read(move |conn| records::versions(conn, &name, usize::MAX)).await?;
                let before = all.iter().skip_while(|one| one.digest != to).find(|one| one.digest != to);
                before.map_or_else(|| to.clone(), |one| one.digest.clone())
            }
        };
        let (old, new) = (inner.files(&from).await?, inner.files(&to).await?);
        let files = tokio::task::spawn_blocking(move || compare(&old, &new));
        Ok(Diff { from, to, files: files.await.map_err(Error::internal("comparing a skill"))? })
    }

    /// What a rollback to `wanted` would change in the folder as it is now; from no digest when there is no folder.
    pub async fn preview(&self, name: &str, wanted: &str) -> Result<(Option<String>, Diff), Error> {
        let inner = &self.inner;
        let home = inner.home(name).await?;
        let to = inner.meant(name, "digest", wanted).await?;
        let (now, new) = (inner.present(&home).await?, inner.files(&to).await?);
        let (from, old) = now.map_or((None, Vec::new()), |(content, files, _)| (Some(content.digest), files));
        let files = tokio::task::spawn_blocking(move || compare(&old, &new));
        let files = files.await.map_err(Error::internal("comparing a skill"))?;
        Ok((from.clone(), Diff { from: from.unwrap_or_default(), to, files }))
    }

    /// Brings an earlier content of a skill back, in the place of the present one, and trusts it: whoever asks for it by name
    /// has seen it. Also for a skill that is broken, or whose folder is gone. `begun` commits before a file changes, `done`
    /// with the new entry of the history; that is also told what was there before, if anything was.
    pub async fn rollback<B, D>(&self, name: &str, wanted: &str, begun: B, done: D) -> Result<Shown, Error>
    where
        B: FnOnce(&mut Tx<'_>, &str) -> Result<(), Error> + Send + 'static,
        D: FnOnce(&mut Tx<'_>, Option<String>, &str) -> Result<(), Error> + Send + 'static,
    {
        let inner = &self.inner;
        let _alone = inner.changing.lock().await;
        let home = inner.home(name).await?;
        if home.origin == Place::Bundled.name() {
            let folder = home.folder.display();
            let reason = format!(
                "'{name}' comes with aman, which restores it at every start. Copy it from {folder} to the data folder's \
                 skills, under a name of your own, first."
            );
            return Err(Error::conflict("invalid_state", reason));
        }
        let digest = inner.meant(name, "digest", wanted).await?;
        let files = inner.files(&digest).await?;
        let kept = inner.keep_present(name, &home).await?;
        if kept.as_ref() == Some(&digest) {
            return Err(Error::conflict("invalid_state", format!("'{name}' has this content already.")));
        }
        let wanted = digest.clone();
        inner.store.write(move |tx| begun(tx, &wanted)).await?;
        let (folder, before) = (home.folder.clone(), kept.clone());
        tokio::task::spawn_blocking(move || replace(&folder, &files, kept.as_deref()))
            .await
            .map_err(Error::internal("bringing a skill back"))?
            .map_err(|error| unplaced(&home.folder, &error))?;
        let placed = digest.clone();
        inner.load(Some((name, &digest)), move |tx| done(tx, before, &placed)).await?;
        self.get(name).map_err(|_| {
            let reason = format!(
                "The content {digest} is back in {}, and cannot be loaded by this aman: `aman skill reload` says why.",
                home.folder.display()
            );
            Error::conflict("invalid_state", reason)
        })
    }
}

/// Why the files of a skill did not get into their place.
fn unplaced(folder: &Path, error: &io::Error) -> Error {
    let what = format!("The files of {} could not be put in place, so nothing was changed: {error}.", folder.display());
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Error::Busy { code: "disk_full", what, retry_after_ms: 60_000 }
        }
        _ => Error::conflict("invalid_state", what),
    }
}

/// Puts `files` in the place of what is in `folder`, which must be the content `kept`: what is not kept gets its place back.
/// They are complete beside it before they take its place, in one step where the file system can; what a crash leaves beside
/// it the next reading puts in order.
fn replace(folder: &Path, files: &[Kept], kept: Option<&str>) -> io::Result<()> {
    let unnamed = || io::Error::other("the folder has no name");
    let (making, old) = load::beside(folder).ok_or_else(unnamed)?;
    clear::remove(&making)?;
    clear::remove(&old)?;
    let placed = write_all(&making, files)
        .and_then(|()| match fs::metadata(folder) {
            Ok(data) => fs::set_permissions(&making, data.permissions()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        })
        .and_then(|()| exchange(&making, folder, &old))
        .and_then(|out| match out {
            // Somebody wrote there since it was kept.
            Some(out) if !folder::read(out).is_ok_and(|now| Some(now.digest.as_str()) == kept) => {
                exchange(out, folder, if out == making { &old } else { &making })?;
                Err(io::Error::other("its files changed meanwhile"))
            }
            _ => Ok(()),
        });
    if placed.is_ok() {
        let synced = fs::File::open(folder.parent().ok_or_else(unnamed)?).and_then(|parent| parent.sync_all());
        if let Err(error) = synced {
            tracing::warn!(path = %folder.display(), %error, "A power loss may undo a rollback.");
        }
    }
    let _next_reading_does = clear::remove(&making);
    // What got neither its place back nor a successor may be all that there is of the skill.
    if placed.is_ok() {
        let _next_reading_does = clear::remove(&old);
    }
    placed
}

/// Gives `folder` the place of `making`, and the other way round. Where that is not one step, what was there is under `old`
/// between the two. Gives where it is then; none when nothing was there.
fn exchange<'a>(making: &'a Path, folder: &Path, old: &'a Path) -> io::Result<Option<&'a Path>> {
    if folder.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        return fs::rename(making, folder).map(|()| None);
    }
    match renameat2(AT_FDCWD, making, AT_FDCWD, folder, RenameFlags::RENAME_EXCHANGE) {
        Ok(()) => Ok(Some(making)),
        Err(Errno::EINVAL | Errno::ENOSYS) => {
            fs::rename(folder, old)?;
            fs::rename(making, folder).or_else(|error| fs::rename(old, folder).and(Err(error)))?;
            Ok(Some(old))
        }
        Err(error) => Err(error.into()),
    }
}

fn write_all(folder: &Path, files: &[Kept]) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let mut folders = BTreeSet::from([folder.to_owned()]);
    for file in files {
        let path: PathBuf = folder.join(&file.path);
        for parent in path.ancestors().skip(1).take_while(|parent| parent.starts_with(folder)) {
            folders.insert(parent.to_owned());
        }
        fs::create_dir_all(path.parent().unwrap_or(folder))?;
        let mut out = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        out.write_all(&file.bytes)?;
        // Never more than the file had, and nothing that gives it another user's rights.
        out.set_permissions(fs::Permissions::from_mode(file.mode & 0o777))?;
        out.sync_all()?;
    }
    folders.iter().try_for_each(|folder| fs::File::open(folder)?.sync_all())
}

fn compare(old: &[Kept], new: &[Kept]) -> Vec<Changed> {
    fn by_path(files: &[Kept]) -> BTreeMap<&str, &[u8]> {
        files.iter().map(|file| (file.path.as_str(), file.bytes.as_slice())).collect()
    }
    let (old, new) = (by_path(old), by_path(new));
    let paths: BTreeSet<&str> = old.keys().chain(new.keys()).copied().collect();
    let (until, mut bytes_left) = (Instant::now() + DIFF_TIME, DIFFS_BYTES_MAX);
    let one = |path: &str| {
        let (before, after) = (old.get(path).copied(), new.get(path).copied());
        let change = match (before, after) {
            (before, after) if before == after => return None,
            (None, _) => "added",
            (_, None) => "removed",
            _ => "changed",
        };
        let diff = unified(path, before.unwrap_or_default(), after.unwrap_or_default(), until);
        let diff = diff.filter(|text| text.len() <= bytes_left);
        bytes_left -= diff.as_ref().map_or(0, String::len);
        let (old_size, new_size) = (before.map(<[u8]>::len), after.map(<[u8]>::len));
        Some(Changed { path: path.to_owned(), change, old_size, new_size, diff })
    };
    paths.into_iter().filter_map(one).collect()
}

fn unified(path: &str, before: &[u8], after: &[u8], until: Instant) -> Option<String> {
    if before.len().max(after.len()) > TEXT_BYTES_MAX {
        return None;
    }
    let (before, after) = (std::str::from_utf8(before).ok()?, std::str::from_utf8(after).ok()?);
    if before.contains('\0') || after.contains('\0') {
        return None;
    }
    let path: String = path.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect();
    let mut text = TextDiff::configure()
        .deadline(until)
        .diff_lines(before, after)
        .unified_diff()
        .header(&format!("a/{path}"), &format!("b/{path}"))
        .to_string();
    if text.len() > DIFF_BYTES_MAX {
        text.truncate(text.floor_char_boundary(DIFF_BYTES_MAX));
        text.push_str("\n…\n");
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_kept_gets_its_place_back() {
        let base = std::env::temp_dir().join(format!("aman-replace-{}", std::process::id()));
        let skill = base.join("skill");
        fs::create_dir_all(&skill).expect("folders");
        fs::write(skill.join("SKILL.md"), "before").expect("file");
        let kept = folder::read(&skill).expect("readable").digest;
        fs::write(skill.join("SKILL.md"), "saved meanwhile").expect("file");
        let files = [Kept { path: "SKILL.md".to_owned(), mode: 0o600, bytes: b"brought back".to_vec() }];
        let text = || fs::read_to_string(skill.join("SKILL.md")).expect("file");
        for unkept in [Some(kept.as_str()), None] {
            replace(&skill, &files, unkept).expect_err("it changed");
            assert_eq!((text().as_str(), fs::read_dir(&base).expect("folder").count()), ("saved meanwhile", 1));
        }
        let kept = folder::read(&skill).expect("readable").digest;
        replace(&skill, &files, Some(&kept)).expect("it is kept");
        assert_eq!((text().as_str(), fs::read_dir(&base).expect("folder").count()), ("brought back", 1));
        clear::remove(&base).expect("ours");
    }
}
