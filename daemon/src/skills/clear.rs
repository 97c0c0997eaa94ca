//! Removal of what scripts leave, however deep, wide or closed it is.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Removes a folder and everything in it; one that is not there is removed already.
///
/// Folders are taken up to the top before they are emptied, so neither the stack, nor open files, nor the length of a
/// path grow with their depth. Links are removed, never followed. Nothing else may change the folder meanwhile.
pub fn remove(root: &Path) -> io::Result<()> {
    match fs::symlink_metadata(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(found) if !found.is_dir() => return fs::remove_file(root),
        Ok(_) => open(root)?,
    }
    let mut number = 0_u64;
    loop {
        let mut empty = true;
        for entry in fs::read_dir(root)? {
            let entry = entry?;
            empty = false;
            if entry.file_type()?.is_dir() {
                open(&entry.path())?;
                take_up(&entry.path(), root, &mut number)?;
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
        open(&entry.path())?;
        let mut to = root.join(format!(".{number}"));
        while fs::symlink_metadata(&to).is_ok() {
            *number += 1;
            to = root.join(format!(".{number}"));
        }
        fs::rename(entry.path(), to)?;
    }
    Ok(())
}

fn open(folder: &Path) -> io::Result<()> {
    fs::set_permissions(folder, Permissions::from_mode(0o700))
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
        remove(&root).expect("removed");
        remove(&root).expect("already removed");
        assert!(!root.exists() && kept.join("file").exists());
        remove(&base).expect("removed");
    }
}
