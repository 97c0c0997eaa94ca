//! Who has a file open for writing: a look through `/proc`, for the files where no hint told that they are complete.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A file by its file system and its number there.
pub type FileNumber = (u64, u64);

/// What the look through `/proc` showed.
#[derive(Debug, Default)]
pub struct Writers {
    /// Files that are open for writing, with the path by which they were opened.
    pub open: HashMap<FileNumber, PathBuf>,
    /// False when some processes could not be looked into, being another user's.
    pub saw_all: bool,
}

/// Looks which of `files` are open for writing in a process that this one may look into.
///
/// Costs a `readlink` for each open file of the machine and a `stat` for those below `/`: some milliseconds, so it is
/// asked for many files at once.
pub fn of(files: &HashSet<FileNumber>) -> Writers {
    let mut writers = Writers { open: HashMap::new(), saw_all: true };
    let Ok(processes) = fs::read_dir("/proc") else {
        writers.saw_all = false;
        return writers;
    };
    for process in processes.flatten() {
        if process.file_name().as_bytes().iter().all(u8::is_ascii_digit) {
            look_into(&process.path(), files, &mut writers);
        }
    }
    writers
}

fn look_into(process: &Path, files: &HashSet<FileNumber>, writers: &mut Writers) {
    let descriptors = match fs::read_dir(process.join("fd")) {
        Ok(descriptors) => descriptors,
        Err(error) => {
            // A process that ended meanwhile has nothing open.
            writers.saw_all &= error.kind() == std::io::ErrorKind::NotFound || error.raw_os_error() == Some(3);
            return;
        }
    };
    for descriptor in descriptors.flatten() {
        let Ok(target) = fs::read_link(descriptor.path()) else { continue };
        if !target.has_root() {
            continue;
        }
        let Ok(found) = fs::metadata(descriptor.path()) else { continue };
        let number = (found.dev(), found.ino());
        if files.contains(&number) && is_for_writing(process, &descriptor.file_name()) {
            writers.open.insert(number, target);
        }
    }
}

/// Reads the access mode from `fdinfo`: the last octal digit of `flags` is 0 for reading, 1 or 2 with writing.
fn is_for_writing(process: &Path, descriptor: &std::ffi::OsStr) -> bool {
    let mut text = String::new();
    let read = fs::File::open(process.join("fdinfo").join(descriptor))
        .and_then(|file| file.take(512).read_to_string(&mut text));
    if read.is_err() {
        return false;
    }
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:")).map(str::trim);
    flags.and_then(|octal| u32::from_str_radix(octal, 8).ok()).is_some_and(|flags| flags & 0o3 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_writer_is_seen_and_a_reader_is_not() {
        let path = std::env::temp_dir().join(format!("aman-writers-{}", std::process::id()));
        let writer = fs::File::create(&path).expect("the temporary folder can be written");
        let found = writer.metadata().expect("it is open");
        let number = (found.dev(), found.ino());
        assert_eq!(of(&HashSet::from([number])).open.get(&number), Some(&path));
        drop(writer);
        let reader = fs::File::open(&path).expect("it was made");
        assert!(of(&HashSet::from([number])).open.is_empty());
        drop(reader);
        fs::remove_file(&path).expect("it was made");
    }
}
