//! Mounts of the inner stage: its own `/proc`, and folders where other programs keep their sockets made empty.
//!
//! Landlock does not refuse connecting to a socket that has a path, and a container engine, a session bus or a service
//! manager behind one would undo the sandbox. So those folders show only what was granted.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;

use super::wire::{Job, Network};

/// Where programs put sockets.
const SOCKET_FOLDERS: [&str; 2] = ["/run", "/tmp"];

/// Without this file no name is found on the network; it is often a link into `/run`.
const RESOLVER: &str = "/etc/resolv.conf";

/// What could be done; each failure leaves the machine's own view in place.
pub(super) struct Mounted {
    /// `/proc` shows the command's own processes only.
    pub proc: bool,
    /// Of [`SOCKET_FOLDERS`], those that show only what was granted.
    pub emptied: Vec<&'static str>,
}

/// Arranges the mounts of this mount namespace.
pub(super) fn arrange(job: &Job) -> Mounted {
    let nothing = None::<&str>;
    // First of all nothing mounted here may show outside.
    if mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).is_err() {
        return Mounted { proc: false, emptied: Vec::new() };
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let proc = mount(Some("proc"), "/proc", Some("proc"), flags, nothing).is_ok();
    Mounted { proc, emptied: SOCKET_FOLDERS.into_iter().filter(|folder| empty(Path::new(folder), job)).collect() }
}

/// Lets a command with network read the resolver's settings, wherever they really are.
pub(super) fn grant_resolver(job: &mut Job) {
    if job.net == Network::Any
        && let Ok(real) = fs::canonicalize(RESOLVER)
    {
        job.read.push(real);
    }
}

/// Covers `folder` with an empty one that holds only the job's grants; `false` when it stays as it is.
fn empty(folder: &Path, job: &Job) -> bool {
    // To start in a folder is no grant of what lies below.
    let start = Some(&job.dir).filter(|dir| !folder.starts_with(dir));
    let granted = start.into_iter().chain([&job.program]).chain(&job.read).chain(&job.write);
    let mut kept: Vec<(&PathBuf, OwnedFd)> = Vec::new();
    for path in granted {
        let Ok(real) = fs::canonicalize(path) else { continue };
        if folder.starts_with(&real) {
            return false;
        }
        if !real.starts_with(folder) {
            // A link from here to elsewhere would be lost.
            if path.starts_with(folder) {
                return false;
            }
            continue;
        }
        if real != *path {
            return false;
        }
        let Ok(handle) = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()) else { return false };
        kept.push((path, handle));
    }
    // Outer folders first: what lies in one that is there already needs no mount of its own.
    kept.sort_by(|a, b| a.0.cmp(b.0));
    kept.dedup_by(|inner, outer| inner.0.starts_with(outer.0));
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    if mount(Some("tmpfs"), folder, Some("tmpfs"), flags, Some("mode=0755,size=1m")).is_err() {
        return false;
    }
    let whole = kept.iter().all(|(path, handle)| put_back(path, handle).is_ok());
    if !whole {
        let _as_before = umount2(folder, MntFlags::MNT_DETACH);
    }
    whole
}

fn put_back(path: &Path, handle: &OwnedFd) -> std::io::Result<()> {
    let source = PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd()));
    if source.is_dir() {
        fs::create_dir_all(path)?;
    } else {
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
        fs::File::create_new(path)?;
    }
    Ok(mount(Some(&source), path, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?)
}
