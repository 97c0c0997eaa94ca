//! What a command was granted, as handles: found without following links, and compared with what is the daemon's own.
//!
//! A command with the right to write somewhere can make a link there, and its next attempt, or another's, would be
//! granted what the link leads to. So every grant is opened folder by folder, a link ends the attempt, and from then on
//! only the handle counts: rules and mounts are made of it, so that nothing can be exchanged in between.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, mkdirat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, SYSFS_MAGIC, fstatfs};

use super::wire::{Failure, Job, Network};

/// Where programs, libraries and their settings live. `/proc` is granted, too, once it is the command's own.
const SYSTEM: [&str; 10] =
    ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/opt", "/nix/store"];

/// Devices without state.
const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];

/// Without this file no name is found on the network; it is often a link into `/run`.
const RESOLVER: &str = "/etc/resolv.conf";

/// Links that are followed on the way to what is the daemon's own.
const LINKS_MAX: usize = 40;

/// What may be done with a grant and all below it. In ascending order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Access {
    Device,
    Read,
    Write,
}

/// One place that the command may touch.
pub(super) struct Grant {
    /// Where it is, free of links.
    pub path: PathBuf,
    /// The place itself, whatever becomes of its path.
    pub handle: OwnedFd,
    pub folder: bool,
    pub access: Access,
    /// Device and inode.
    pub id: Id,
}

/// All of them, outer places before inner ones.
pub(super) struct Grants {
    pub all: Vec<Grant>,
    /// Links of the system itself, such as `/bin`, and where they lead.
    pub links: Vec<(PathBuf, PathBuf)>,
}

impl Grants {
    /// The grant around `path` or of it, the innermost.
    pub fn around(&self, path: &Path) -> Option<&Grant> {
        self.all.iter().rev().find(|grant| path.starts_with(&grant.path))
    }
}

/// Device and inode: the same for every path to the same place.
pub(super) type Id = (u64, u64);

/// A place, and all folders on the way to it.
pub(super) struct Found {
    pub path: PathBuf,
    pub handle: OwnedFd,
    pub folder: bool,
    /// From `/` to the place itself.
    way: Vec<Id>,
}

impl Found {
    pub fn id(&self) -> Id {
        self.way.last().copied().unwrap_or_default()
    }
}

/// Why a place was not found.
#[derive(Debug)]
pub(super) enum Lost {
    /// It is missing, or hidden from this user.
    Gone,
    /// This part of its path is a link.
    Link(PathBuf),
    Failed(Errno),
}

impl From<Errno> for Lost {
    fn from(errno: Errno) -> Lost {
        match errno {
            Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES | Errno::ENAMETOOLONG => Lost::Gone,
            errno => Lost::Failed(errno),
        }
    }
}

/// Finds an absolute path without following any link.
pub(super) fn find(path: &Path) -> Result<Found, Lost> {
    walk(path, None)
}

/// As [`find`]; makes what is missing of it below `below`, as folders of mode 0700.
fn walk(path: &Path, below: Option<&Path>) -> Result<Found, Lost> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut at = PathBuf::from("/");
    let mut handle = open("/", flags | OFlag::O_DIRECTORY, Mode::empty())?;
    let status = fstat(&handle)?;
    let (mut way, mut folder) = (vec![(status.st_dev, status.st_ino)], true);
    for part in path.components() {
        let name = match part {
            Component::RootDir => continue,
            Component::Normal(name) => name,
            _ => return Err(Lost::Failed(Errno::EINVAL)),
        };
        at.push(name);
        let next = match openat(&handle, name, flags, Mode::empty()) {
            Err(Errno::ENOENT) if below.is_some_and(|below| at.starts_with(below) && at != below) => {
                mkdirat(&handle, name, Mode::S_IRWXU)?;
                openat(&handle, name, flags, Mode::empty())
            }
            other => other,
        }?;
        let status = fstat(&next)?;
        let kind = SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT;
        if kind == SFlag::S_IFLNK {
            return Err(Lost::Link(at));
        }
        folder = kind == SFlag::S_IFDIR;
        way.push((status.st_dev, status.st_ino));
        handle = next;
    }
    Ok(Found { path: at, handle, folder, way })
}

/// Makes `path`, which lies below the folder `base`, following no link on the way.
pub fn make_folder(base: &Path, path: &Path) -> Result<(), String> {
    match walk(path, Some(base)) {
        Ok(_) => Ok(()),
        Err(Lost::Link(link)) => Err(link_refused(&link)),
        Err(Lost::Gone) => Err("its folder cannot be reached".to_owned()),
        Err(Lost::Failed(errno)) => Err(errno.to_string()),
    }
}

fn link_refused(link: &Path) -> String {
    format!(
        "'{}' is a symbolic link; links are not followed, because a script could have made them. Name the place itself",
        link.display()
    )
}

/// Where `path` would be made, free of links: of what is missing, the folder that is there is resolved.
fn resolved(path: &Path, links_max: usize) -> PathBuf {
    let there = path.ancestors().find_map(|above| Some((above, fs::canonicalize(above).ok()?)));
    let Some((above, real)) = there else { return path.to_owned() };
    let Ok(rest) = path.strip_prefix(above) else { return path.to_owned() };
    let mut parts = rest.components();
    let Some(first) = parts.next() else { return real };
    match fs::read_link(real.join(first)) {
        // A link to what is not there yet.
        Ok(to) if links_max > 0 => resolved(&real.join(to).join(parts.as_path()), links_max - 1),
        _ => real.join(rest),
    }
}

/// What no grant may reach, by what it is and not by its name.
struct Private {
    at: BTreeMap<Id, PathBuf>,
    above: BTreeMap<Id, PathBuf>,
    /// What is not there yet, by where it would be.
    missing: Vec<PathBuf>,
}

impl Private {
    fn of(paths: &[PathBuf]) -> Private {
        let id = |path: &Path| fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
        // One look at each folder is enough, however much lies in it.
        let mut above: BTreeMap<PathBuf, &PathBuf> = BTreeMap::new();
        for path in paths {
            let real = fs::canonicalize(path).ok();
            for way in [Some(path), real.as_ref()].into_iter().flatten() {
                above.extend(way.ancestors().skip(1).map(|folder| (folder.to_owned(), path)));
            }
        }
        Private {
            at: paths.iter().filter_map(|path| Some((id(path)?, path.clone()))).collect(),
            above: above.iter().filter_map(|(folder, path)| Some((id(folder)?, (*path).clone()))).collect(),
            missing: paths.iter().filter(|path| id(path).is_none()).map(|path| resolved(path, LINKS_MAX)).collect(),
        }
    }

    /// How `found` touches it.
    fn touched_by(&self, found: &Found) -> Option<String> {
        let inside = || found.way.iter().find_map(|id| Some(format!("it is part of '{}'", self.at.get(id)?.display())));
        let around = self.above.get(&found.id()).map(|path| format!("it holds '{}'", path.display()));
        let how = around.or_else(inside)?;
        Some(format!("{how}, which is the daemon's own. Name the files or folders that are really needed"))
    }
}

/// A place for the daemon's own tools: found part by part, without following links, and not what is the daemon's own.
pub struct Place {
    /// Where it is, free of links.
    pub path: PathBuf,
    /// The place itself, whatever becomes of its path; for looking, not for reading.
    pub handle: OwnedFd,
    /// What it is.
    pub status: FileStat,
}

impl Place {
    fn at(path: PathBuf, handle: OwnedFd) -> Result<Place, String> {
        let status = fstat(&handle).map_err(|errno| errno.to_string())?;
        Ok(Place { path, handle, status })
    }

    /// Whether it is of that kind.
    pub fn is(&self, kind: SFlag) -> bool {
        SFlag::from_bits_truncate(self.status.st_mode) & SFlag::S_IFMT == kind
    }

    /// Opens the very thing, if it is a plain file, for reading.
    pub fn open(&self) -> std::io::Result<fs::File> {
        if !self.is(SFlag::S_IFREG) {
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is no plain file"));
        }
        fs::File::open(format!("/proc/self/fd/{}", self.handle.as_raw_fd()))
    }

    /// What lies in the very folder.
    pub fn entries(&self) -> std::io::Result<fs::ReadDir> {
        fs::read_dir(format!("/proc/self/fd/{}", self.handle.as_raw_fd()))
    }
}

/// What no tool may reach, as it is now.
pub struct Guard {
    hidden: Private,
    kept: Private,
}

impl Guard {
    /// Looks at what is `private`.
    pub fn new(private: &super::wire::Private) -> Guard {
        Guard { hidden: Private::of(&private.hidden), kept: Private::of(&private.unwritable) }
    }

    /// Finds `path`, for changing it if `write`; none when nothing is there. The error says why it is out of reach.
    pub fn find(&self, path: &Path, write: bool) -> Result<Option<Place>, String> {
        let found = match find_or_link(path, &mut Vec::new()) {
            Ok(found) => found,
            Err(Lost::Gone) if self.would_be_own(&resolved(path, LINKS_MAX), write) => {
                return Err("it is the daemon's own".to_owned());
            }
            Err(Lost::Gone) => return Ok(None),
            Err(Lost::Link(link)) => return Err(link_refused(&link)),
            Err(Lost::Failed(errno)) => return Err(errno.to_string()),
        };
        // What was missing a moment ago may be there by now.
        if found.way.iter().any(|id| self.is_own(*id, write)) || self.would_be_own(&found.path, write) {
            return Err("it is the daemon's own".to_owned());
        }
        Guard::admit(&found.handle)?;
        Place::at(found.path, found.handle).map(Some)
    }

    /// Finds what lies in `folder` under a name; none when nothing is there, or a link.
    pub fn find_in(&self, folder: &Place, name: &OsStr, write: bool) -> Result<Option<Place>, String> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let handle = match openat(&folder.handle, name, flags, Mode::empty()) {
            Ok(handle) => handle,
            Err(Errno::ENOENT | Errno::EACCES) => return Ok(None),
            Err(errno) => return Err(errno.to_string()),
        };
        let place = Place::at(folder.path.join(name), handle)?;
        if place.is(SFlag::S_IFLNK) {
            return Ok(None);
        }
        if self.is_own((place.status.st_dev, place.status.st_ino), write) {
            return Err("it is the daemon's own".to_owned());
        }
        Guard::admit(&place.handle)?;
        Ok(Some(place))
    }

    fn is_own(&self, id: Id, write: bool) -> bool {
        self.hidden.at.contains_key(&id) || (write && self.kept.at.contains_key(&id))
    }

    /// Whether what would be at `path` is part of what is not there yet.
    fn would_be_own(&self, path: &Path, write: bool) -> bool {
        let among = |private: &Private| private.missing.iter().any(|own| path.starts_with(own));
        among(&self.hidden) || (write && among(&self.kept))
    }

    /// Refuses what the kernel shows as files: secrets of this process among it.
    fn admit(handle: &OwnedFd) -> Result<(), String> {
        let kind = fstatfs(handle).map_err(|errno| errno.to_string())?.filesystem_type();
        if [PROC_SUPER_MAGIC, SYSFS_MAGIC].contains(&kind) {
            return Err("it is a part of the kernel that only looks like a file".to_owned());
        }
        Ok(())
    }
}

/// Opens everything that the command may touch. Missing places are left out.
pub(super) fn open_all(job: &Job) -> Result<Grants, Failure> {
    let mut grants = Grants { all: Vec::new(), links: Vec::new() };
    let mut own = vec![(job.program.clone(), Access::Read)];
    own.extend(SYSTEM.iter().map(|path| (PathBuf::from(path), Access::Read)));
    own.extend(DEVICES.iter().map(|path| (PathBuf::from(path), Access::Device)));
    if job.net == Network::Any {
        own.extend(fs::canonicalize(RESOLVER).ok().map(|real| (real, Access::Read)));
    }
    own.extend(job.own.iter().map(|path| (path.clone(), Access::Write)));
    for (path, access) in own {
        let failed = |reason| Failure::Setup { step: format!("find '{}'", path.display()), reason };
        match find_or_link(&path, &mut grants.links) {
            Ok(found) => grants.add(found, access),
            Err(Lost::Gone) => {}
            Err(Lost::Link(link)) => return Err(failed(link_refused(&link))),
            Err(Lost::Failed(errno)) => return Err(failed(errno.to_string())),
        }
    }
    let (hidden, kept) = (Private::of(&job.private.hidden), Private::of(&job.private.unwritable));
    let read = job.read.iter().map(|path| (path, Access::Read));
    for (path, access) in read.chain(job.write.iter().map(|path| (path, Access::Write))) {
        let word = if access == Access::Write { "write" } else { "read" };
        let refused = |reason| Failure::Grant { grant: format!("{word}:{}", path.display()), reason };
        let found = match find_or_link(path, &mut grants.links) {
            Ok(found) => found,
            Err(Lost::Gone) => continue,
            Err(Lost::Link(link)) => return Err(refused(link_refused(&link))),
            Err(Lost::Failed(errno)) => return Err(refused(errno.to_string())),
        };
        if found.path.parent().is_none() {
            return Err(refused("the whole machine cannot be granted".to_owned()));
        }
        let touched = hidden.touched_by(&found);
        if let Some(how) = touched.or_else(|| kept.touched_by(&found).filter(|_| access == Access::Write)) {
            return Err(refused(how));
        }
        grants.add(found, access);
    }
    grants.sort();
    Ok(grants)
}

/// As [`find`], but follows a link directly below `/`: those are part of how a system is laid out, as `/bin` is.
fn find_or_link(path: &Path, links: &mut Vec<(PathBuf, PathBuf)>) -> Result<Found, Lost> {
    let lost = match find(path) {
        Err(Lost::Link(link)) if link.parent() == Some(Path::new("/")) => link,
        other => return other,
    };
    let (Ok(real), Ok(rest)) = (fs::canonicalize(&lost), path.strip_prefix(&lost)) else { return Err(Lost::Gone) };
    let found = find(&real.join(rest))?;
    if !links.iter().any(|(link, _)| *link == lost) {
        links.push((lost, real));
    }
    Ok(found)
}

impl Grants {
    fn add(&mut self, found: Found, access: Access) {
        let id = found.id();
        self.all.push(Grant { path: found.path, handle: found.handle, folder: found.folder, access, id });
    }

    /// Outer places first, and without those that an outer one covers. Rights add up: a place that may be read within
    /// one that may be written may be written.
    fn sort(&mut self) {
        self.all.sort_by(|a, b| a.path.cmp(&b.path).then(b.access.cmp(&a.access)));
        let mut kept: Vec<Grant> = Vec::new();
        for grant in self.all.drain(..) {
            let covers = |outer: &Grant| outer.access >= grant.access && grant.path.starts_with(&outer.path);
            if grant.access == Access::Device || !kept.iter().any(covers) {
                kept.push(grant);
            }
        }
        self.all = kept;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_is_not_there_yet_is_protected() {
        let base = std::env::temp_dir().join(format!("aman-guard-{}", crate::id::fresh()));
        fs::create_dir_all(base.join("real")).expect("a folder");
        let base = fs::canonicalize(&base).expect("it is there");
        symlink("real", base.join("link")).expect("a link");
        symlink("real/later", base.join("dangling")).expect("a link");
        let hidden = vec![base.join("none/token"), base.join("link/key")];
        let unwritable = vec![base.join("agents"), base.join("dangling/agents")];
        let guard = Guard::new(&crate::sandbox::Private { hidden, unwritable });
        for (path, read, write) in [
            ("none/token", false, false),
            ("none/other", true, true),
            ("real/key", false, false),
            ("real/key/x", false, false),
            ("real/keys", true, true),
            ("agents/x.toml", true, false),
            ("agents", true, false),
            ("real/later/agents/x", true, false),
            ("real/later/x", true, true),
        ] {
            let may = [false, true].map(|write| guard.find(&base.join(path), write).is_ok());
            assert_eq!(may, [read, write], "{path}");
        }
        fs::create_dir(base.join("agents")).expect("a folder");
        assert!(guard.find(&base.join("agents"), true).is_err(), "made after the guard looked");
        fs::remove_dir_all(&base).expect("it is there");
    }
}
