//! Opens files that the start depends on. A named pipe in their place would hold it up for ever, a device might never
//! end, so whatever is no plain file is refused by name.

use std::fs::{File, FileType, OpenOptions};
use std::io::{Error, ErrorKind, Read, Result};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::libc::{O_NOCTTY, O_NONBLOCK};

/// Opens `path` as `options` say; an error of kind `InvalidInput` when it is there and no plain file.
pub fn open(options: &mut OpenOptions, path: &Path) -> Result<File> {
    // Opening a device may already do something. What is there may change until it is open, so it is looked at twice.
    if let Ok(found) = path.metadata() {
        check(path, found.file_type())?;
    }
    let file = options.custom_flags(O_NONBLOCK | O_NOCTTY).open(path)?;
    check(path, file.metadata()?.file_type())?;
    Ok(file)
}

/// The text of a plain file of at most `bytes_max` bytes.
pub fn read(path: &Path, bytes_max: u64) -> Result<String> {
    let mut text = String::new();
    let file = open(OpenOptions::new().read(true), path)?;
    if file.take(bytes_max + 1).read_to_string(&mut text)? as u64 > bytes_max {
        let reason = format!("'{}' has more than {bytes_max} bytes", path.display());
        return Err(Error::new(ErrorKind::InvalidInput, reason));
    }
    Ok(text)
}

fn check(path: &Path, found: FileType) -> Result<()> {
    let what = match found {
        found if found.is_file() => return Ok(()),
        found if found.is_dir() => "a folder",
        found if found.is_fifo() => "a named pipe",
        found if found.is_socket() => "a socket",
        _ => "a device",
    };
    let reason = format!("'{}' is {what} and must be a plain file. Move it away and try again", path.display());
    Err(Error::new(ErrorKind::InvalidInput, reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_files_are_read() {
        let file = std::env::temp_dir().join(format!("aman-plain-{}", std::process::id()));
        std::fs::write(&file, "text").expect("the folder is writable");
        assert_eq!(read(&file, 4).expect("it is plain"), "text");
        assert!(read(&file, 3).expect_err("too long").to_string().contains("more than 3 bytes"));
        std::fs::remove_file(&file).expect("it is ours");
        nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).expect("the folder is writable");
        for (path, what) in
            [(file.as_path(), "a named pipe"), (Path::new("/dev/zero"), "a device"), (Path::new("/"), "a folder")]
        {
            assert!(read(path, 10).expect_err(what).to_string().contains(what));
        }
        std::fs::remove_file(&file).expect("it is ours");
        assert_eq!(read(&file, 10).expect_err("gone").kind(), ErrorKind::NotFound);
    }
}
