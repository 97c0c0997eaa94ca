//! The command's own root: it holds the system's folders, the grants and a `/proc` of its own, and nothing else.
//!
//! What is not there can be neither read nor named, and no socket in it connected to, which Landlock refuses on the
//! newest kernels only. What is there is mounted read-only unless it may be written, so that nobody changes the mode,
//! the owner or the times of what they may only read; Landlock knows nothing of those.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, pivot_root};

use super::grants::{self, Access, Grants};
use super::wire::{Failure, Job};

/// Where the root may be made before it becomes the root: any folder will do that is there and in no grant, for a grant
/// is shown with everything that is mounted in it.
const STAGES: [&str; 4] = ["/sys", "/mnt", "/tmp", "/srv"];

/// Empty folders that programs may expect.
const EMPTY: [&str; 3] = ["/tmp", "/run", "/var/tmp"];

/// Names of a process's own streams.
const STREAMS: [(&str, &str); 4] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];

const NOTHING: Option<&str> = None;

/// With its inner mounts: without them a place cannot be shown in a namespace with fewer rights.
const BIND: MsFlags = MsFlags::MS_BIND.union(MsFlags::MS_REC);

/// What the command sees.
pub(super) struct Root {
    /// Whether `/proc` shows its own processes only.
    pub own_proc: bool,
}

/// Gives this mount namespace a root of its own, still writable; `None` where the machine does not allow that, and then
/// everything is as before. What goes wrong with a grant is no reason to do without: a script may have brought it about.
pub(super) fn arrange(job: &Job, grants: &Grants) -> Result<Option<Root>, Failure> {
    let free = |stage: &&Path| stage.is_dir() && !stage.is_symlink() && grants.around(stage).is_none();
    let Some(stage) = STAGES.iter().map(Path::new).find(free) else { return Ok(None) };
    // First of all nothing mounted here may show outside.
    let private = mount(NOTHING, "/", NOTHING, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NOTHING);
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    if private.and_then(|()| mount(Some("tmpfs"), stage, Some("tmpfs"), flags, Some("mode=0755,size=1m"))).is_err() {
        return Ok(None);
    }
    let own_proc = match furnish(stage, job, grants) {
        Ok(own_proc) => own_proc,
        Err(error) if error.kind() == ErrorKind::PermissionDenied => return leave(stage),
        Err(error) => return Err(Failure::setup("make the root")(error)),
    };
    // Not possible where the machine's root is still the one that it started from.
    if chdir(stage).and_then(|()| pivot_root(".", ".")).is_err() {
        return leave(stage);
    }
    // The old root lies over the new one now.
    umount2(".", MntFlags::MNT_DETACH).and_then(|()| chdir("/")).map_err(Failure::setup("leave the old root"))?;
    Ok(Some(Root { own_proc }))
}

/// Gives up the root that was begun.
fn leave(stage: &Path) -> Result<Option<Root>, Failure> {
    umount2(stage, MntFlags::MNT_DETACH).map_err(Failure::setup("give up the root"))?;
    Ok(None)
}

/// Makes everything read-only that may not be written, and makes sure of it. `/proc` stays as it is for whoever holds a
/// handle of it already.
pub(super) fn seal(grants: &Grants) -> Result<(), Failure> {
    let failed = Failure::setup::<std::io::Error>;
    mount(Some("/proc"), "/proc", NOTHING, BIND, NOTHING).map_err(Failure::setup("cover /proc"))?;
    for (path, now) in mounts().map_err(failed("list the mounts"))? {
        let wanted = now | wanted(&path, grants);
        if wanted != now {
            let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | wanted;
            mount(NOTHING, &path, NOTHING, flags, NOTHING)
                .map_err(Failure::setup(&format!("protect '{}'", path.display())))?;
        }
    }
    // A path may have led elsewhere while that was done: what counts is what is there now.
    let open = mounts().map_err(failed("list the mounts"))?;
    match open.into_iter().find(|(path, now)| !now.contains(wanted(path, grants))) {
        Some((path, _)) => Err(Failure::setup("protect")(format!("'{}' is still open", path.display()))),
        None => Ok(()),
    }
}

/// What a mount at `path` must be at least.
fn wanted(path: &Path, grants: &Grants) -> MsFlags {
    let writable = grants.around(path).is_some_and(|grant| grant.access == Access::Write);
    let mut flags = MsFlags::MS_NOSUID;
    flags.set(MsFlags::MS_RDONLY, !writable);
    flags.set(MsFlags::MS_NODEV, !path.starts_with("/dev"));
    flags
}

/// Puts everything in its place below `stage`; says whether `/proc` is the command's own.
fn furnish(stage: &Path, job: &Job, grants: &Grants) -> std::io::Result<bool> {
    let staged = |path: &Path| stage.join(path.strip_prefix("/").unwrap_or(path));
    let is_inner = |path: &Path| grants.all.iter().any(|outer| path != outer.path && path.starts_with(&outer.path));
    for grant in grants.all.iter().filter(|grant| !is_inner(&grant.path)) {
        let target = staged(&grant.path);
        if grant.folder {
            fs::create_dir_all(&target)?;
        } else {
            fs::create_dir_all(target.parent().unwrap_or(stage))?;
            fs::File::create(&target)?;
        }
    }
    for folder in EMPTY.iter().map(Path::new).chain([Path::new("/proc"), Path::new("/dev"), &job.dir]) {
        if grants.around(folder).is_none() {
            fs::create_dir_all(staged(folder))?;
        }
    }
    let streams = STREAMS.iter().map(|(link, to)| (Path::new(*link), Path::new(*to)));
    for (link, to) in grants.links.iter().map(|(link, to)| (link.as_path(), to.as_path())).chain(streams) {
        if grants.around(link).is_none() {
            std::os::unix::fs::symlink(to, staged(link))?;
        }
    }
    let proc = staged(Path::new("/proc"));
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let own_proc = mount(Some("proc"), &proc, Some("proc"), flags, NOTHING).is_ok();
    if !own_proc {
        mount(Some("/proc"), &proc, NOTHING, BIND, NOTHING)?;
    }
    for grant in &grants.all {
        let target = grants::find(&staged(&grant.path)).map_err(|_| Errno::ESTALE)?;
        // An inner place is found through an outer one, where others may move things meanwhile.
        if is_inner(&grant.path) && target.id() != grant.id {
            return Err(Errno::ESTALE.into());
        }
        mount(Some(&by_handle(&grant.handle)), &by_handle(&target.handle), NOTHING, BIND, NOTHING)?;
    }
    Ok(own_proc)
}

fn by_handle(handle: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd()))
}

/// Where something is mounted, and how; of mounts over each other the one that shows.
fn mounts() -> std::io::Result<BTreeMap<PathBuf, MsFlags>> {
    let list = fs::read("/proc/self/mountinfo")?;
    let mut mounts = BTreeMap::new();
    for line in list.split(|byte| *byte == b'\n') {
        // proc_pid_mountinfo(5): the fifth field is the place, the sixth has the mount's own options.
        let mut fields = line.split(|byte| *byte == b' ').skip(4);
        let (Some(place), Some(options)) = (fields.next(), fields.next()) else { continue };
        let options = options.split(|byte| *byte == b',').map(|option| match option {
            b"ro" => MsFlags::MS_RDONLY,
            b"nosuid" => MsFlags::MS_NOSUID,
            b"nodev" => MsFlags::MS_NODEV,
            b"noexec" => MsFlags::MS_NOEXEC,
            _ => MsFlags::empty(),
        });
        mounts.insert(unescape(place), options.fold(MsFlags::empty(), |all, one| all | one));
    }
    Ok(mounts)
}

/// A path of that file, where blanks and the like are written as a backslash and three octal digits.
fn unescape(text: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_paths_are_read() {
        for (text, path) in [("/a\\040b", "/a b"), ("/plain", "/plain"), ("/a\\134", "/a\\"), ("/x\\04", "/x\\04")] {
            assert_eq!(unescape(text.as_bytes()), Path::new(path));
        }
    }
}
