//! What a caller's policy lets its tools touch: folders by name, then everything below them by handle.

use std::path::{Path, PathBuf};

use nix::sys::stat::SFlag;

use super::Shared;
use crate::id::sha256_hex;
use crate::sandbox::{Guard, Place};
use crate::tools::{Policy, ToolFailure};

/// Largest file that is read as a whole, in bytes.
pub(super) const FILE_BYTES_MAX: u64 = 4 << 20;
/// Folders that a refusal names.
const NAMED_MAX: usize = 8;

/// The reach of one call.
pub(super) struct Reach<'a> {
    shared: &'a Shared,
    policy: &'a Policy,
    pub guard: Guard,
}

/// A path that was granted, by its name.
pub(super) struct Granted {
    /// The absolute path, without links as far as names go.
    pub path: PathBuf,
    /// The grant that covers it.
    pub grant: PathBuf,
    /// As people see it.
    pub shown: String,
}

fn refused(shown: &str, why: &str) -> ToolFailure {
    ToolFailure::Refused("path_not_granted", format!("'{shown}' cannot be used: {why}."))
}

impl<'a> Reach<'a> {
    pub fn new(shared: &'a Shared, policy: &'a Policy) -> Reach<'a> {
        Reach { shared, policy, guard: Guard::new(&shared.ground.private) }
    }

    fn expand(&self, path: &str, argument: &str) -> Result<PathBuf, ToolFailure> {
        self.shared.ground.places.expand(path).map_err(|why| ToolFailure::Arguments(format!("/{argument}"), why))
    }

    /// The grants for reading, or for writing.
    pub fn grants(&self, write: bool) -> Vec<PathBuf> {
        let read = self.policy.read.iter().filter(|_| !write);
        self.policy.write.iter().chain(read).filter_map(|path| self.shared.ground.places.expand(path).ok()).collect()
    }

    /// The path that the argument means, if a grant covers it.
    pub fn within(&self, path: &str, argument: &str, write: bool) -> Result<Granted, ToolFailure> {
        let path = self.expand(path, argument)?;
        let (places, grants) = (&self.shared.ground.places, self.grants(write));
        let shown = places.shown(&path);
        // The widest one, so that missing folders are made below what is there.
        match grants.iter().filter(|grant| path.starts_with(grant)).min_by_key(|grant| grant.as_os_str().len()) {
            Some(grant) if grant.parent().is_none() => Err(refused(&shown, "the whole machine cannot be granted")),
            Some(grant) => Ok(Granted { grant: grant.clone(), path, shown }),
            None => {
                let verb = if write { "written" } else { "read" };
                let named: Vec<String> = grants.iter().take(NAMED_MAX).map(|grant| places.shown(grant)).collect();
                Err(refused(&shown, &format!("what may be {verb} lies in {}", named.join(", "))))
            }
        }
    }

    /// What is there; `None` when nothing is.
    pub fn find(&self, granted: &Granted, write: bool) -> Result<Option<Place>, ToolFailure> {
        self.guard.find(&granted.path, write).map_err(|why| refused(&granted.shown, &why))
    }

    /// What is there, which must be something.
    pub fn there(&self, granted: &Granted) -> Result<Place, ToolFailure> {
        let found = self.find(granted, false)?;
        found.ok_or_else(|| ToolFailure::Failed(format!("there is no '{}', or it cannot be read", granted.shown)))
    }

    /// As people see a path.
    pub fn shown(&self, path: &Path) -> String {
        self.shared.ground.places.shown(path)
    }
}

/// What a rule about a path is made of: everything in its folder.
pub(super) fn pattern(granted: &Granted, is_folder: bool) -> String {
    if is_folder {
        return format!("{}/**", granted.shown.trim_end_matches('/'));
    }
    match granted.shown.rsplit_once('/') {
        Some((folder, _)) if !folder.is_empty() => format!("{folder}/**"),
        _ => granted.shown.clone(),
    }
}

/// The bytes of a plain file.
pub(super) fn plain(place: &Place, shown: &str) -> Result<Vec<u8>, ToolFailure> {
    use std::io::Read;
    if !place.is(SFlag::S_IFREG) {
        return Err(refused(shown, "it is no plain file"));
    }
    let failed = |error: std::io::Error| ToolFailure::Failed(format!("'{shown}' cannot be read: {error}"));
    let mut bytes = Vec::new();
    place.open().map_err(failed)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(ToolFailure::Failed(format!("'{shown}' has more than {FILE_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}

/// The bytes of a plain file, and their digest.
pub(super) fn bytes(place: &Place, shown: &str) -> Result<(Vec<u8>, String), ToolFailure> {
    let bytes = plain(place, shown)?;
    let digest = sha256_hex(&bytes);
    Ok((bytes, digest))
}

/// The text of a plain file, and its digest.
pub(super) fn content(place: &Place, shown: &str) -> Result<(String, String), ToolFailure> {
    let (bytes, digest) = bytes(place, shown)?;
    let text = String::from_utf8(bytes).map_err(|error| {
        ToolFailure::Failed(format!("'{shown}' is no text in UTF-8; it has {} bytes", error.as_bytes().len()))
    })?;
    Ok((text, digest))
}
