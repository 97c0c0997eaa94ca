//! Removal of what scripts leave, however deep, wide or closed it is.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::libc::{O_DIRECTORY, O_NOFOLLOW, O_PATH};

/// Removes a folder and everything in it; one that is not there is removed already.
///
/// Folders are taken up to the top before they are emptied, so neither the stack, nor open files, nor the length of a
/// path grow with their depth. Links are removed, never followed, also when one takes the place of a folder meanwhile: then
/// it is an error, or the link goes. Nothing else may change what lies around `root`.
pub fn remove(root: &Path) -> io::Result<()> {
    match fs::symlink_metadata(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(found) if !found.is_dir() => return fs::remove_file(root),
        Ok(_) => drop(held(root)?),
    }
    let mut number = 0_u64;
    loop {
        let mut empty = true;
        for entry in fs::read_dir(root)? {
            let entry = entry?;
            empty = false;
            if entry.file_type()?.is_dir() {
                let (_held, at) = held(&entry.path())?;
                take_up(&at, root, &mut number)?;
                fs::remove_dir(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        if empty {
            return fs::remove_dir(root);
        }
    }
}

/// Empties `folder`: its folders move into `root` under names that are free there.
fn take_up(folder: &Path, root: &Path, number: &mut u64) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            fs::remove_file(entry.path())?;
            continue;
        }
        // A folder that moves gets another parent, which it must let be written.
        drop(held(&entry.path())?);
        let mut to = root.join(format!(".{number}"));
        while fs::symlink_metadata(&to).is_ok() {
            *number += 1;
            to = root.join(format!(".{number}"));
        }
        fs::rename(entry.path(), to)?;
    }
    Ok(())
}

/// Opens a folder to its owner and holds it: the path leads to this folder as long as the handle lives, whatever takes its
/// place. A link is refused.
fn held(folder: &Path) -> io::Result<(File, PathBuf)> {
    let handle = OpenOptions::new().read(true).custom_flags(O_PATH | O_DIRECTORY | O_NOFOLLOW).open(folder)?;
    let at = PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd()));
    fs::set_permissions(&at, Permissions::from_mode(0o700))?;
    Ok((handle, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deep_closed_and_linked_is_gone_and_nothing_else() {
        let base = std::env::temp_dir().join(format!("aman-clear-{}", std::process::id()));
        let (root, kept) = (base.join("root"), base.join("kept"));
        fs::create_dir_all(root.join("a/b/c")).expect("folders");
        fs::create_dir_all(&kept).expect("folder");
        fs::write(kept.join("file"), "").expect("file");
        std::os::unix::fs::symlink(&kept, root.join("a/link")).expect("link");
        fs::write(root.join("a/b/file"), "").expect("file");
        fs::create_dir(root.join(".0")).expect("folder");
        fs::set_permissions(root.join("a/b/c"), Permissions::from_mode(0o000)).expect("closed");
        // Deeper than paths and open files allow: each level is put above the one before.
        for _ in 0..3000 {
            fs::rename(&root, base.join("below")).expect("moved");
            fs::create_dir(&root).expect("folder");
            fs::rename(base.join("below"), root.join("below")).expect("moved");
        }
        // What became a link since it was listed is not gone through.
        std::os::unix::fs::symlink(&kept, base.join("swapped")).expect("link");
        assert!(held(&base.join("swapped")).is_err());
        let (_held, at) = held(&base.join("root")).expect("a folder");
        fs::rename(&root, base.join("elsewhere")).expect("moved");
        std::os::unix::fs::symlink(&kept, &root).expect("link");
        assert!(at.join("below").exists() && !at.join("file").exists(), "the folder itself is held");
        fs::remove_file(&root).expect("ours");
        fs::rename(base.join("elsewhere"), &root).expect("moved");
        remove(&root).expect("removed");
        remove(&root).expect("already removed");
        assert!(!root.exists() && kept.join("file").exists());
        remove(&base).expect("removed");
    }
}
