//! Unpacks a package into an empty folder, trusting nothing that it says: every bound is checked while reading, so a bomb
//! costs what the bound allows and no more.
//!
//! Only plain ustar headers are taken (POSIX.1-1988). PAX and GNU extensions can rename an entry after it was checked and
//! no package needs them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use flate2::bufread::GzDecoder;
use ring::digest::{Context, SHA256};
use tar::{Archive, EntryType};

use super::{FAULT, PACKED_MAX, names};
use crate::error::Error;
use crate::id::hex;

/// Bytes of all files of a package.
pub const INFLATED_MAX: u64 = 256 << 20;
/// Files and folders of a package.
pub const ENTRIES_MAX: usize = 1024;
/// How many times larger than its packed form a package may be; below [`RATIO_FREE`] bytes nobody counts.
const RATIO_MAX: u64 = 100;
const RATIO_FREE: u64 = 8 << 20;

/// A file that was unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    /// Bytes.
    pub size: u64,
    /// SHA-256, hex.
    pub sha256: String,
}

fn refuse(place: &str, reason: impl Into<String>) -> Error {
    Error::invalid_as(FAULT, place, reason)
}

/// What went wrong below the checks: of the archive when it is no archive, of the machine else.
fn broken(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::InvalidData
        | io::ErrorKind::InvalidInput
        | io::ErrorKind::UnexpectedEof
        | io::ErrorKind::Other => refuse("package", format!("is no whole tar.gz: {error}.")),
        _ => Error::internal("unpacking a package")(error),
    }
}

/// Counts what is read and ends with an error at a bound.
struct Counted<R> {
    inner: R,
    read: u64,
    max: u64,
    what: &'static str,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buf)?;
        self.read += u64::try_from(read).unwrap_or(u64::MAX);
        if self.read > self.max {
            return Err(io::Error::new(io::ErrorKind::InvalidData, self.what));
        }
        Ok(read)
    }
}

/// The inflated bytes, held against the packed ones.
struct Inflated<R: BufRead>(GzDecoder<R>, u64);

impl<R: Read> Read for Inflated<BufReader<Counted<R>>> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(buf)?;
        self.1 += u64::try_from(read).unwrap_or(u64::MAX);
        let packed = self.0.get_ref().get_ref().read;
        let fault = |what: &str| Err(io::Error::new(io::ErrorKind::InvalidData, what));
        // Headers and padding count too: an entry costs at most two blocks beyond its bytes.
        if self.1 > INFLATED_MAX + (ENTRIES_MAX as u64 + 20) * 1024 {
            return fault("it holds more than 256 MiB");
        }
        if self.1 > RATIO_FREE && self.1 / RATIO_MAX > packed {
            return fault("it grows to more than a hundred times its packed size");
        }
        Ok(read)
    }
}

/// What was unpacked so far.
struct Target<'a> {
    into: &'a Path,
    files: BTreeMap<String, Unpacked>,
    folders: BTreeSet<String>,
    /// Every name in lower case: on a file system that folds case, two of them would be one.
    folded: BTreeMap<String, String>,
    entries: usize,
    bytes: u64,
}

/// Unpacks into `into`, which must be empty, and gives what was found by path. Everything is synced when it returns.
pub(super) fn unpack(packed: impl Read, into: &Path) -> Result<BTreeMap<String, Unpacked>, Error> {
    let packed = Counted { inner: packed, read: 0, max: PACKED_MAX, what: "it has more than 64 MiB" };
    let mut archive = Archive::new(Inflated(GzDecoder::new(BufReader::with_capacity(64 << 10, packed)), 0));
    let mut target = Target {
        into,
        files: BTreeMap::new(),
        folders: BTreeSet::new(),
        folded: BTreeMap::new(),
        entries: 0,
        bytes: 0,
    };
    for entry in archive.entries().map_err(broken)?.raw(true) {
        target.entry(&mut entry.map_err(broken)?)?;
    }
    nothing_behind(archive.into_inner())?;
    target.sync()?;
    Ok(target.files)
}

/// An archive ends where it ends: what stands behind could be read by another program.
fn nothing_behind<R: Read>(mut inflated: Inflated<BufReader<Counted<R>>>) -> Result<(), Error> {
    let mut block = [0; 4096];
    loop {
        let read = inflated.read(&mut block).map_err(broken)?;
        if read == 0 {
            break;
        }
        if block[..read].iter().any(|byte| *byte != 0) {
            return Err(refuse("package", "has bytes behind the end of its archive."));
        }
    }
    let mut packed = inflated.0.into_inner();
    if packed.fill_buf().map_err(broken)?.is_empty() {
        return Ok(());
    }
    Err(refuse("package", "has bytes behind the end of its gzip data."))
}

impl Target<'_> {
    fn entry(&mut self, entry: &mut tar::Entry<'_, impl Read>) -> Result<(), Error> {
        self.entries += 1;
        if self.entries > ENTRIES_MAX {
            return Err(refuse("package", format!("has more than {ENTRIES_MAX} files and folders.")));
        }
        let path = String::from_utf8(entry.path_bytes().into_owned())
            .map_err(|_| refuse("package", "has a name that is no UTF-8."))?;
        let shown: String = path.chars().take(200).flat_map(char::escape_default).collect();
        let kind = entry.header().entry_type();
        if !matches!(kind, EntryType::Regular | EntryType::Directory) {
            return Err(refuse(&shown, kind_refused(kind)));
        }
        let folder = kind == EntryType::Directory;
        // `tar -cf x .` writes `./` and `./name`.
        let name = path.strip_prefix("./").unwrap_or(&path);
        let name = if folder { name.strip_suffix('/').unwrap_or(name) } else { name };
        if folder && (name.is_empty() || name == ".") {
            return Ok(());
        }
        names::check(name).map_err(|reason| refuse(&shown, reason))?;
        let size = entry.header().entry_size().map_err(broken)?;
        if folder {
            return if size == 0 { self.folder(name) } else { Err(refuse(name, "is a folder with bytes.")) };
        }
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > INFLATED_MAX {
            return Err(refuse(name, format!("goes beyond the {} MiB of a package.", INFLATED_MAX >> 20)));
        }
        self.file(name, size, entry)
    }

    /// Notes a name; false = the same folder once more.
    fn note(&mut self, name: &str, folder: bool) -> Result<bool, Error> {
        if folder && self.folders.contains(name) {
            return Ok(false);
        }
        match self.folded.insert(name.to_ascii_lowercase(), name.to_owned()) {
            None => Ok(true),
            Some(had) if had == name => Err(refuse(name, "stands in the package twice.")),
            Some(had) => Err(refuse(name, format!("and '{had}' differ in case only."))),
        }
    }

    fn folder(&mut self, name: &str) -> Result<(), Error> {
        self.parents(name)?;
        if self.note(name, true)? {
            let made = DirBuilder::new().mode(0o700).create(self.into.join(name));
            made.map_err(Error::internal("making a folder of a package"))?;
            self.folders.insert(name.to_owned());
        }
        Ok(())
    }

    /// The folders that `name` lies in; a file among them is found out by its name.
    fn parents(&mut self, name: &str) -> Result<(), Error> {
        match name.rsplit_once('/') {
            Some((above, _)) if !self.folders.contains(above) => self.folder(above),
            _ => Ok(()),
        }
    }

    fn file(&mut self, name: &str, size: u64, from: &mut impl Read) -> Result<(), Error> {
        self.parents(name)?;
        self.note(name, false)?;
        let path = self.into.join(name);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(Error::internal("making a file of a package"))?;
        let (mut sum, mut left, mut block) = (Context::new(&SHA256), size, vec![0; 64 << 10]);
        while left > 0 {
            let read = from.read(&mut block).map_err(broken)?;
            if read == 0 {
                return Err(refuse(name, "ends before its size says."));
            }
            sum.update(&block[..read]);
            file.write_all(&block[..read]).map_err(Error::internal("writing a file of a package"))?;
            left = left.saturating_sub(u64::try_from(read).unwrap_or(u64::MAX));
        }
        file.sync_all().map_err(Error::internal("writing a file of a package"))?;
        self.files.insert(name.to_owned(), Unpacked { size, sha256: hex(sum.finish().as_ref()) });
        Ok(())
    }

    fn sync(&self) -> Result<(), Error> {
        let folders = self.folders.iter().map(|name| self.into.join(name));
        for folder in folders.chain([PathBuf::from(self.into)]) {
            File::open(folder)
                .and_then(|folder| folder.sync_all())
                .map_err(Error::internal("writing a folder of a package"))?;
        }
        Ok(())
    }
}

fn kind_refused(kind: EntryType) -> String {
    let what = match kind {
        EntryType::Link | EntryType::Symlink => "is a link",
        EntryType::Char | EntryType::Block | EntryType::Fifo => "is a device or a pipe",
        EntryType::XHeader | EntryType::XGlobalHeader | EntryType::GNULongName | EntryType::GNULongLink => {
            return "is an extension of the tar format; pack with 'aman plugin pack' or 'tar --format=ustar'."
                .to_owned();
        }
        EntryType::GNUSparse => "is a sparse file",
        _ => "is of an unknown kind",
    };
    format!("{what}; a package holds plain files and folders only.")
}
