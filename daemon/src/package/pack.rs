//! Makes a package of a folder: the same bytes for the same files, whenever and by whomever it is packed.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use flate2::{Compression, GzBuilder};
use tar::{EntryType, Header};

use super::{ENTRIES_MAX, FAULT, INFLATED_MAX, MANIFEST, Manifest, SIGNATURE, SUMS, names};
use crate::error::Error;
use crate::id::sha256_hex;

/// Top-level files that go into a package besides the manifest and the component, if they are there.
const TEXTS: [&str; 5] = ["README.md", "LICENSE", "LICENSE-MIT", "LICENSE-APACHE", "CHANGELOG.md"];
/// Folders that go into a package whole.
const FOLDERS: [&str; 2] = ["schemas", "ui"];

/// The content of a package, ready to be signed.
pub struct Content {
    /// What it says of itself.
    pub manifest: Manifest,
    files: BTreeMap<String, Vec<u8>>,
}

impl Content {
    /// Reads what belongs into the package of the plugin in `folder`; everything else there is left out.
    pub fn read(folder: &Path) -> Result<Content, Error> {
        let mut found = Content { manifest: read_manifest(folder)?, files: BTreeMap::new() };
        let component = found.manifest.component.clone();
        if !folder.join(&component).is_file() {
            let reason = "is not there yet. Build it first: aman plugin build.";
            return Err(Error::invalid_as(FAULT, component, reason));
        }
        for name in [MANIFEST, &component].into_iter().chain(TEXTS) {
            if folder.join(name).is_file() {
                found.add(folder, name.to_owned())?;
            }
        }
        for name in FOLDERS {
            if folder.join(name).is_dir() {
                found.folder(folder, name)?;
            }
        }
        let sums: String = found.files.iter().map(|(name, bytes)| format!("{}  {name}\n", sha256_hex(bytes))).collect();
        found.files.insert(SUMS.to_owned(), sums.into_bytes());
        Ok(found)
    }

    /// The bytes that a signature signs.
    pub fn sums(&self) -> &[u8] {
        &self.files[SUMS]
    }

    /// Adds the text of a minisign signature over [`Content::sums`].
    pub fn sign(&mut self, signature: String) {
        self.files.insert(SIGNATURE.to_owned(), signature.into_bytes());
    }

    /// Writes the package.
    pub fn write(&self, to: impl Write) -> io::Result<()> {
        // No time and no name in the header: they would differ from one packing to the next.
        let mut archive = tar::Builder::new(GzBuilder::new().write(to, Compression::best()));
        for (name, bytes) in &self.files {
            let mut header = Header::new_ustar();
            header.set_path(name)?;
            header.set_entry_type(EntryType::Regular);
            header.set_mode(0o644);
            header.set_size(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
            header.set_cksum();
            archive.append(&header, bytes.as_slice())?;
        }
        archive.into_inner()?.finish()?.flush()
    }

    fn folder(&mut self, root: &Path, name: &str) -> Result<(), Error> {
        let listed = fs::read_dir(root.join(name)).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        for entry in listed.map_err(Error::internal("listing a plugin's folder"))? {
            let file_name = entry.file_name();
            let Some(inner) = file_name.to_str() else {
                return Err(Error::invalid_as(FAULT, name, "holds a name that is no UTF-8."));
            };
            let path = format!("{name}/{inner}");
            names::check(&path).map_err(|reason| Error::invalid_as(FAULT, path.clone(), reason))?;
            let kind = entry.file_type().map_err(Error::internal("listing a plugin's folder"))?;
            if kind.is_dir() {
                self.folder(root, &path)?;
            } else if kind.is_file() {
                self.add(root, path)?;
            } else {
                return Err(Error::invalid_as(FAULT, path, "is a link or a device; a package holds plain files."));
            }
        }
        Ok(())
    }

    fn add(&mut self, root: &Path, name: String) -> Result<(), Error> {
        let bytes = fs::read(root.join(&name)).map_err(Error::internal("reading a plugin's file"))?;
        let whole: usize = self.files.values().map(Vec::len).sum::<usize>() + bytes.len();
        if self.files.len() + 3 > ENTRIES_MAX || u64::try_from(whole).unwrap_or(u64::MAX) > INFLATED_MAX {
            let reason = format!("goes beyond {ENTRIES_MAX} files or {} MiB.", INFLATED_MAX >> 20);
            return Err(Error::invalid_as(FAULT, name, reason));
        }
        self.files.insert(name, bytes);
        Ok(())
    }
}

/// Reads and checks the `plugin.toml` in `folder`.
pub fn read_manifest(folder: &Path) -> Result<Manifest, Error> {
    let path = folder.join(MANIFEST);
    let text = fs::read_to_string(&path).map_err(|error| {
        Error::invalid_as(FAULT, MANIFEST, format!("cannot be read at {}: {error}.", path.display()))
    })?;
    Manifest::parse(&text)
}
