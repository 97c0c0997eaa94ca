//! Tells when something is mounted or unmounted: no hint comes from a folder whose file system went away.

use std::fs::File;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The table of mounts, which the kernel marks as urgent to read when it changes.
pub struct Mounts(Option<AsyncFd<File>>);

impl Mounts {
    /// Begins to listen. Where the table cannot be read, nothing will ever be told.
    #[expect(
        deprecated,
        reason = "the sound replacement is unsafe to call; a File keeps its descriptor as long as it lives"
    )]
    pub fn open() -> Mounts {
        let table = File::open("/proc/self/mountinfo");
        Mounts(table.and_then(|table| AsyncFd::with_interest(table, Interest::PRIORITY)).ok())
    }

    /// Waits for the next change.
    pub async fn changed(&self) {
        let Some(table) = &self.0 else { return std::future::pending().await };
        match table.ready(Interest::PRIORITY).await {
            Ok(mut ready) => ready.clear_ready(),
            Err(_) => std::future::pending().await,
        }
    }
}
