//! A skill's folder: its files within limits, the digest that names their content, and a stamp that shows change cheaply.

use std::fs::{self, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};
use serde::Serialize;

use crate::id::hex;
use crate::plain;
use crate::store::skill_contents::Kept;

/// Files of one skill.
pub const FILES_MAX: usize = 500;
/// Bytes of all files of one skill.
pub const BYTES_MAX: u64 = 16 << 20;
/// Folders within folders.
const DEPTH_MAX: usize = 8;

/// Why a folder is not read that somebody writes at this moment; the next reading may find it complete.
pub const CHANGED: &str = "changed while it was read; reload once it is complete.";

/// A file of a skill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct File {
    /// Path from the skill's folder, with slashes.
    pub path: String,
    /// Bytes.
    pub size: u64,
}

/// What the file system says of a folder without reading its files. Equal stamps mean equal content, unless someone
/// with the owner's rights went to the trouble of hiding a change from the change time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp(Vec<(PathBuf, [i64; 7])>);

/// What a skill's folder holds.
#[derive(Debug, Clone)]
pub struct Content {
    /// SHA-256 over the sorted relative paths and the bytes of all files, hex.
    pub digest: String,
    /// The files, sorted by path.
    pub files: Vec<File>,
    /// When it was read.
    pub stamp: Stamp,
}

/// Lists a folder without reading files; refuses links, devices, odd names and what is over a limit.
pub fn stamp(folder: &Path) -> Result<Stamp, String> {
    let (mut found, mut files, mut bytes) = (Vec::new(), 0, 0);
    let mut waiting = vec![(PathBuf::new(), 0)];
    let root = fs::symlink_metadata(folder).map_err(|error| told(folder, &error))?;
    if root.is_symlink() {
        return Err("is a symbolic link; put the folder itself here, or its parent into [skills] paths.".to_owned());
    }
    found.push((PathBuf::new(), figures(&root)));
    while let Some((inside, depth)) = waiting.pop() {
        let here = folder.join(&inside);
        for entry in fs::read_dir(&here).map_err(|error| told(&here, &error))? {
            let entry = entry.map_err(|error| told(&here, &error))?;
            let path = inside.join(entry.file_name());
            let data = fs::symlink_metadata(entry.path()).map_err(|error| told(&entry.path(), &error))?;
            if path.to_str().is_none() {
                return Err(format!("'{}' has a name that is no UTF-8.", path.display()));
            }
            if data.is_dir() {
                if depth + 1 > DEPTH_MAX {
                    return Err(format!("'{}' is nested deeper than {DEPTH_MAX} folders.", path.display()));
                }
                waiting.push((path.clone(), depth + 1));
            } else if data.is_file() {
                files += 1;
                bytes += data.len();
            } else {
                let what = if data.is_symlink() { "a symbolic link" } else { "neither a file nor a folder" };
                return Err(format!("'{}' is {what}; a skill is made of plain files.", path.display()));
            }
            if files > FILES_MAX || found.len() > 2 * FILES_MAX || bytes > BYTES_MAX {
                let mib = BYTES_MAX >> 20;
                return Err(format!("holds more than {FILES_MAX} files or {mib} MiB; a skill is smaller than that."));
            }
            found.push((path, figures(&data)));
        }
    }
    found.sort();
    Ok(Stamp(found))
}

/// Reads a folder and gives its digest. What changes while it is read is refused.
pub fn read(folder: &Path) -> Result<Content, String> {
    read_each(folder, |_, _, _| {})
}

/// As [`read`], with the files themselves.
pub fn read_all(folder: &Path) -> Result<(Content, Vec<Kept>), String> {
    let mut all = Vec::new();
    let keep = |path: &str, mode: i64, bytes: Vec<u8>| {
        all.push(Kept { path: path.to_owned(), mode: u32::try_from(mode & 0o777).unwrap_or(0o600), bytes });
    };
    read_each(folder, keep).map(|content| (content, all))
}

/// As [`read`], with path, mode and bytes of each file.
pub fn read_each(folder: &Path, mut heed: impl FnMut(&str, i64, Vec<u8>)) -> Result<Content, String> {
    let before = stamp(folder)?;
    let (mut sum, mut files) = (Context::new(&SHA256), Vec::new());
    for (path, [_, mode, size, .., is_file]) in &before.0 {
        if *is_file == 0 {
            continue;
        }
        let bytes = read_capped(&folder.join(path), BYTES_MAX)?;
        let name = path.to_str().expect("stamp() refuses names that are no UTF-8");
        // Lengths stand before their texts, so that no two folders give the same row of bytes.
        for part in [name.as_bytes(), &bytes] {
            sum.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            sum.update(part);
        }
        files.push(File { path: name.to_owned(), size: u64::try_from(*size).unwrap_or(0) });
        heed(name, *mode, bytes);
    }
    if stamp(folder)? != before {
        return Err(CHANGED.to_owned());
    }
    Ok(Content { digest: hex(sum.finish().as_ref()), files, stamp: before })
}

/// Reads a whole file of at most `bytes_max` bytes.
pub fn read_capped(path: &Path, bytes_max: u64) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    // A named pipe that took the file's place since it was listed would never be read to its end.
    let file = plain::open(fs::OpenOptions::new().read(true), path).map_err(|error| told(path, &error))?;
    file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(|error| told(path, &error))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > bytes_max {
        return Err(format!("'{}' has more than {bytes_max} bytes.", path.display()));
    }
    Ok(bytes)
}

fn told(path: &Path, error: &io::Error) -> String {
    format!("'{}' cannot be read: {error}.", path.display())
}

fn figures(data: &Metadata) -> [i64; 7] {
    let number = |n: u64| i64::try_from(n & (u64::MAX >> 1)).unwrap_or(0);
    [
        number(data.ino()),
        i64::from(data.mode()),
        // The size of a folder is the file system's affair.
        if data.is_file() { number(data.len()) } else { 0 },
        data.mtime().wrapping_mul(1_000_000_000).wrapping_add(data.mtime_nsec()),
        data.ctime().wrapping_mul(1_000_000_000).wrapping_add(data.ctime_nsec()),
        number(data.dev()),
        i64::from(data.is_file()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("aman-folder-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(path.join("scripts")).expect("temporary folder");
        fs::write(path.join("SKILL.md"), "one").expect("file");
        fs::write(path.join("scripts/a.sh"), "two").expect("file");
        path
    }

    #[test]
    fn digests_follow_names_and_bytes() {
        let path = folder("digest");
        let first = read(&path).expect("readable");
        let names: Vec<_> = first.files.iter().map(|f| (f.path.as_str(), f.size)).collect();
        assert_eq!(names, [("SKILL.md", 3), ("scripts/a.sh", 3)]);
        fs::rename(path.join("scripts/a.sh"), path.join("scripts/b.sh")).expect("rename");
        let renamed = read(&path).expect("readable");
        assert_ne!(first.digest, renamed.digest);
        fs::rename(path.join("scripts/b.sh"), path.join("scripts/a.sh")).expect("rename");
        fs::write(path.join("scripts/a.sh"), "two").expect("file");
        let same = read(&path).expect("readable");
        assert_eq!(first.digest, same.digest);
        assert_ne!(first.stamp, same.stamp);
        assert_eq!(stamp(&path).expect("readable"), same.stamp);
        let _ = fs::remove_dir_all(&path);
    }

    #[test]
    fn links_and_crowds_are_refused() {
        let path = folder("links");
        std::os::unix::fs::symlink("/etc/passwd", path.join("scripts/passwd")).expect("link");
        assert!(read(&path).expect_err("link").contains("scripts/passwd' is a symbolic link"));
        fs::remove_file(path.join("scripts/passwd")).expect("removable");
        let link = path.with_extension("link");
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(&path, &link).expect("link");
        assert!(read(&link).expect_err("link").contains("symbolic link"));
        let _ = fs::remove_file(&link);
        for n in 0..FILES_MAX {
            fs::write(path.join(n.to_string()), "").expect("file");
        }
        assert!(read(&path).expect_err("crowd").contains("more than 500 files"));
        let _ = fs::remove_dir_all(&path);
    }
}
