//! Packages of plugins: a tar.gz with `plugin.toml`, a WebAssembly component, pages, schemas, the digests of all of them
//! and, if its author signs, a minisign signature over those. Reading one trusts nothing in it.

mod archive;
mod envelope;
mod grant;
pub mod key;
mod manifest;
mod names;
pub mod pack;
mod permission;
mod raw;
pub mod signature;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::Error;
use crate::id::sha256_hex;

pub use archive::{ENTRIES_MAX, INFLATED_MAX, Unpacked};
pub use envelope::{Envelope, Spelled};
pub use grant::Grant;
pub use manifest::{INTERFACES, Limits, Manifest, PUBLIC_BODY_MAX, Page, Route, Source, Subscription, Tool};
pub use permission::{AgentRight, Host, HttpGrant, Permissions, SecretHeader, WorkflowGrant, WorkflowRight};

/// Bytes of a packed plugin.
pub const PACKED_MAX: u64 = 64 << 20;
/// The problem code of everything that is wrong with a package.
pub const FAULT: &str = "invalid_plugin";
/// The file with the digests of all others, and its signature.
pub const SUMS: &str = "SHA256SUMS";
/// See [`SUMS`].
pub const SIGNATURE: &str = "SHA256SUMS.minisig";
/// The manifest's file.
pub const MANIFEST: &str = "plugin.toml";
/// Bytes of the manifest, of the digests, of a signature and of a tool's schema.
const TEXT_MAX: u64 = 256 << 10;
/// Bytes of a file below `ui/`: anyone may ask for it, and it is in memory while it is sent.
const UI_FILE_MAX: u64 = 4 << 20;
/// Names that `/plugin/…` needs for itself.
const RESERVED: [&str; 1] = ["install"];
/// How a WebAssembly component and how a core module begin: the magic, then version and layer.
const COMPONENT: [u8; 8] = *b"\0asm\x0d\0\x01\0";
const MODULE: [u8; 8] = *b"\0asm\x01\0\0\0";

/// A package that was unpacked and found sound.
#[derive(Debug, Clone)]
pub struct Package {
    /// What it says of itself.
    pub manifest: Manifest,
    /// The text that was read.
    pub manifest_text: String,
    /// SHA-256 of its [`SUMS`], hex: names its whole content.
    pub digest: String,
    /// SHA-256 of the component, hex.
    pub component_sha256: String,
    /// The key id that signed it, as minisign prints it; none = unsigned.
    pub signed_by: Option<String>,
    /// Its files by path, but for the digests and the signature.
    pub files: BTreeMap<String, Unpacked>,
    /// Where it lies.
    pub folder: PathBuf,
}

/// Checks a plugin's name: `^[a-z][a-z0-9-]{0,39}$`, not reserved.
pub fn check_name(name: &str) -> Result<(), String> {
    names::check_id(name)?;
    if RESERVED.contains(&name) { Err(format!("'{name}' is reserved; choose another.")) } else { Ok(()) }
}

/// Checks the path of a file within a package, so that it stays within its folder.
pub fn check_file(path: &str) -> Result<(), String> {
    names::check(path)
}

impl Package {
    /// Unpacks into `into`, an empty folder on the file system where it will stay, and checks everything that can be told
    /// without running it. On an error the folder holds whatever was written; it is the caller's to remove.
    pub fn open(packed: impl Read, into: &Path) -> Result<Package, Error> {
        let files = archive::unpack(packed, into)?;
        Package::check(files, into)
    }

    fn check(mut files: BTreeMap<String, Unpacked>, folder: &Path) -> Result<Package, Error> {
        let sums = text_of(&files, folder, SUMS)?;
        let signature = if files.contains_key(SIGNATURE) { Some(text_of(&files, folder, SIGNATURE)?) } else { None };
        files.remove(SUMS);
        files.remove(SIGNATURE);
        check_sums(&sums, &files)?;
        let manifest_text = text_of(&files, folder, MANIFEST)?;
        let manifest = Manifest::parse(&manifest_text)?;
        let signed_by = signed_by(manifest.publisher.as_deref(), &sums, signature.as_deref())?;
        let component_sha256 = check_component(&manifest, &files, folder)?;
        if let Some((name, _)) = files.iter().find(|(name, file)| name.starts_with("ui/") && file.size > UI_FILE_MAX) {
            return Err(Error::invalid_as(FAULT, name.clone(), format!("has more than {} MiB.", UI_FILE_MAX >> 20)));
        }
        for page in &manifest.pages {
            if !files.contains_key(&page.path) {
                return Err(Error::invalid_as(FAULT, page.path.clone(), "is named by plugin.toml and missing."));
            }
        }
        for tool in &manifest.tools {
            let text = text_of(&files, folder, &tool.schema)?;
            crate::event::check_json(text.as_bytes())
                .map_err(|_| Error::invalid_as(FAULT, tool.schema.clone(), "is no JSON."))?;
            let schema: Value = serde_json::from_str(&text)
                .map_err(|error| Error::invalid_as(FAULT, tool.schema.clone(), format!("is no JSON: {error}.")))?;
            if !schema.is_object() {
                return Err(Error::invalid_as(FAULT, tool.schema.clone(), "must be a JSON Schema object."));
            }
        }
        let digest = sha256_hex(sums.as_bytes());
        let folder = folder.to_owned();
        Ok(Package { manifest, manifest_text, digest, component_sha256, signed_by, files, folder })
    }

    /// The component's file.
    pub fn component(&self) -> PathBuf {
        self.folder.join(&self.manifest.component)
    }
}

/// A small text file of the package.
fn text_of(files: &BTreeMap<String, Unpacked>, folder: &Path, name: &str) -> Result<String, Error> {
    let file = files.get(name).ok_or_else(|| {
        Error::invalid_as(FAULT, name, "is missing. 'aman plugin pack' makes a package with everything it needs.")
    })?;
    if file.size > TEXT_MAX {
        return Err(Error::invalid_as(FAULT, name, format!("has more than {} KiB.", TEXT_MAX >> 10)));
    }
    let bytes = fs::read(folder.join(name)).map_err(Error::internal("reading a file of a package"))?;
    String::from_utf8(bytes).map_err(|_| Error::invalid_as(FAULT, name, "is no UTF-8 text."))
}

/// Holds the listed digests against what was unpacked: each file once, none too few and none too many.
fn check_sums(sums: &str, files: &BTreeMap<String, Unpacked>) -> Result<(), Error> {
    let refuse = |reason: String| Error::invalid_as(FAULT, SUMS, reason);
    let mut listed = BTreeMap::new();
    for (number, line) in (1..).zip(sums.lines()) {
        let (digest, name) = line
            .split_once(' ')
            .and_then(|(digest, rest)| Some((digest, rest.strip_prefix([' ', '*'])?)))
            .ok_or_else(|| refuse(format!("line {number} is not '<sha256>  <file>', as sha256sum writes it.")))?;
        if listed.insert(name, digest).is_some() {
            return Err(refuse(format!("lists '{}' twice.", name.escape_default())));
        }
    }
    for (name, file) in files {
        match listed.remove(name.as_str()) {
            Some(digest) if digest.eq_ignore_ascii_case(&file.sha256) => {}
            Some(_) => {
                return Err(Error::invalid_as(FAULT, name.clone(), "is not what SHA256SUMS says; it was changed."));
            }
            None => return Err(Error::invalid_as(FAULT, name.clone(), "is not listed in SHA256SUMS.")),
        }
    }
    match listed.keys().next() {
        Some(name) => Err(refuse(format!("lists '{}', which is not in the package.", name.escape_default()))),
        None => Ok(()),
    }
}

fn signed_by(publisher: Option<&str>, sums: &str, signature: Option<&str>) -> Result<Option<String>, Error> {
    match (publisher, signature) {
        (Some(key), Some(signature)) => {
            signature::verify(key, sums.as_bytes(), signature)
                .map_err(|reason| Error::invalid_as(FAULT, SIGNATURE, reason))?;
            signature::key_id(key).map(Some).map_err(|reason| Error::invalid_as(FAULT, "publisher", reason))
        }
        (None, Some(_)) => {
            Err(Error::invalid_as(FAULT, SIGNATURE, "is there, but plugin.toml names no publisher to check it by."))
        }
        (_, None) => Ok(None),
    }
}

fn check_component(manifest: &Manifest, files: &BTreeMap<String, Unpacked>, folder: &Path) -> Result<String, Error> {
    let name = &manifest.component;
    let refuse = |reason: &str| Error::invalid_as(FAULT, name.clone(), reason);
    let file = files.get(name).ok_or_else(|| refuse("is named by plugin.toml and missing."))?;
    let mut head = Vec::new();
    fs::File::open(folder.join(name))
        .and_then(|file| file.take(8).read_to_end(&mut head))
        .map_err(Error::internal("reading a component"))?;
    if head == MODULE {
        return Err(refuse(
            "is a core module; build it for wasm32-wasip2, or make a component of it with 'aman plugin pack'.",
        ));
    }
    if head.starts_with(b"\x7fELF") {
        return Err(refuse(
            "is compiled to machine code already; a package holds the component, the daemon compiles it.",
        ));
    }
    if head != COMPONENT {
        return Err(refuse("is no WebAssembly component."));
    }
    Ok(file.sha256.clone())
}
