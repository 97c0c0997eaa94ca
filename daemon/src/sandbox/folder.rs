//! A fresh folder for one command to work in.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// It goes with everything in it.
pub struct WorkFolder(PathBuf);

impl WorkFolder {
    /// Makes it, and what is missing above it, with this file in it.
    pub async fn make(place: PathBuf, file: Option<(&'static str, String)>) -> io::Result<WorkFolder> {
        let made = tokio::task::spawn_blocking(move || {
            let folder = WorkFolder(place);
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder.0)?;
            if let Some((name, text)) = file {
                std::fs::write(folder.0.join(name), text)?;
            }
            Ok(folder)
        });
        made.await.map_err(io::Error::other)?
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for WorkFolder {
    fn drop(&mut self) {
        let place = std::mem::take(&mut self.0);
        // Removing many files takes a while; it must not hold up the others on this thread.
        let remove = move || drop(std::fs::remove_dir_all(place));
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}
