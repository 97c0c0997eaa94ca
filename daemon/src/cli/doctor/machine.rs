//! What can be checked without a daemon: folders, files, limits of the machine.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access};

use super::catalogue::Id;
use super::{Check, files};
use crate::cli::out::size;
use crate::clock::{Clock, Millis, is_plausible, rfc3339};
use crate::config::{self, FILE_BYTES_MAX, Flags, Paths};
use crate::error::Error;
use crate::plain;
use crate::sandbox::Sandbox;

/// Below this the daemon may stop soon: SQLite needs room for its log beside the database.
const DISK_BYTES_FAIL: u64 = 100 << 20;
const DISK_BYTES_WARN: u64 = 1 << 30;
/// Connections, streams, scripts and the database together stay well below this.
const FILES_WARN: u64 = 1024;
/// One watch is one folder of a watched tree.
const WATCHES_WARN: u64 = 8192;
const INSTANCES_WARN: u64 = 64;
/// A write-ahead log of this size means that no checkpoint gets through.
const WAL_BYTES_WARN: u64 = 512 << 20;

/// All of them, in the order in which a person would look.
pub fn checks(paths: &Paths, home: Option<&Path>) -> Vec<Check> {
    vec![
        Check::ok(Id::Version, format!("aman {}", env!("CARGO_PKG_VERSION"))),
        clock(Clock::System.now_ms()),
        data_folder(&paths.data),
        disk_space(&paths.data),
        config_file(&paths.config_file, home),
        token_file(&paths.token_file),
        database(&paths.db_file),
        files::database_integrity(&paths.db_file),
        open_files(),
        inotify(Path::new("/proc/sys/fs/inotify")),
    ]
}

fn clock(now_ms: Millis) -> Check {
    let shown = rfc3339(now_ms);
    if is_plausible(now_ms) {
        return Check::ok(Id::Clock, shown);
    }
    let advice = "Set the clock, as with `timedatectl set-ntp true`; expiry, retries and schedules go by it.";
    Check::fail(Id::Clock, format!("The machine's clock shows {shown}"), advice)
}

fn data_folder(data: &Path) -> Check {
    let shown = data.display();
    match fs::metadata(data) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let above = existing(data);
            if access(&above, AccessFlags::W_OK | AccessFlags::X_OK).is_ok() {
                return Check::ok(Id::DataFolder, format!("{shown} is not there yet; the first start makes it"));
            }
            let advice = format!("Make {shown} writable for this user, or choose another with --home.");
            Check::fail(Id::DataFolder, format!("{shown} is not there and cannot be made"), advice)
        }
        Err(error) => Check::fail(Id::DataFolder, format!("{shown}: {error}"), "Let this user read it."),
        Ok(found) if !found.is_dir() => {
            Check::fail(Id::DataFolder, format!("{shown} is no folder"), "Move it away, or choose another with --home.")
        }
        Ok(_) if access(data, AccessFlags::R_OK | AccessFlags::W_OK | AccessFlags::X_OK).is_err() => {
            let advice = format!("Give it to the user who runs aman: chown -R $USER {shown}");
            Check::fail(Id::DataFolder, format!("{shown} cannot be written"), advice)
        }
        Ok(_) => Check::ok(Id::DataFolder, format!("{shown} is there and writable")),
    }
}

/// The nearest folder above `path` that is there.
fn existing(path: &Path) -> PathBuf {
    let here = path.ancestors().find(|above| above.is_dir());
    here.map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

fn disk_space(data: &Path) -> Check {
    let folder = existing(data);
    let found = match statvfs(&folder) {
        Ok(found) => found,
        Err(error) => {
            let message = format!("The free space of {} is unknown: {error}", folder.display());
            return Check::warn(Id::DiskSpace, message, "Check it by hand with df.");
        }
    };
    let free = found.blocks_available().saturating_mul(found.fragment_size());
    let message = format!("{} free", size(free));
    let advice = "Make room on the disk of the data folder; below `bus.keep_free_mib` nothing new is taken.";
    if free < DISK_BYTES_FAIL {
        Check::fail(Id::DiskSpace, message, advice)
    } else if free < DISK_BYTES_WARN {
        Check::warn(Id::DiskSpace, message, advice)
    } else if found.files() > 0 && found.files_available() < 1000 {
        Check::warn(Id::DiskSpace, format!("only {} inodes free", found.files_available()), advice)
    } else {
        Check::ok(Id::DiskSpace, message)
    }
}

fn config_file(file: &Path, home: Option<&Path>) -> Check {
    let shown = file.display();
    let text = match plain::read(file, FILE_BYTES_MAX) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Check::ok(Id::Config, format!("no {shown}; everything has its default"));
        }
        Err(error) => return Check::fail(Id::Config, format!("{shown}: {error}"), "Let this user read it."),
    };
    let advice = "Correct it; until then the daemon runs with the last good one, or does not start.";
    if let Err(error) = text.parse::<toml::Table>() {
        // The message alone: the lines it would quote may hold a secret.
        let line = error.span().map(|span| text[..span.start.min(text.len())].lines().count().max(1));
        let at = line.map_or_else(String::new, |line| format!(" line {line}"));
        return Check::fail(Id::Config, format!("{shown}{at}: {}", error.message()), advice);
    }
    match config::load(&Flags::of_client(home)) {
        Ok(config) if config.warnings.is_empty() => Check::ok(Id::Config, format!("{shown} is read and right")),
        Ok(config) => Check::warn(Id::Config, config.warnings.join(" "), format!("Look at {shown}.")),
        Err(Error::Internal { context, source }) => {
            Check::fail(Id::Config, format!("{context} failed: {source}"), advice)
        }
        Err(error) => Check::fail(Id::Config, error.to_string(), advice),
    }
}

fn token_file(file: &Path) -> Check {
    let shown = file.display();
    match fs::metadata(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Check::ok(Id::TokenFile, format!("{shown} is not there yet; the first start makes it"))
        }
        Err(error) => Check::fail(Id::TokenFile, format!("{shown}: {error}"), "Let this user read its folder."),
        Ok(found) if !found.is_file() => {
            let message = format!("{shown} is no plain file; the daemon does not start");
            Check::fail(Id::TokenFile, message, "Move it away; the next start makes a new token.")
        }
        Ok(found) if found.permissions().mode() & 0o077 != 0 => {
            let mode = found.permissions().mode() & 0o777;
            let message = format!("{shown} has mode {mode:04o}: other users can use the daemon");
            Check::fail(
                Id::TokenFile,
                message,
                format!("chmod 600 {shown}; then delete it and restart for a new token."),
            )
        }
        Ok(found) if found.len() == 0 => {
            Check::fail(Id::TokenFile, format!("{shown} is empty"), "Delete it; the next start makes a new token.")
        }
        Ok(_) if access(file, AccessFlags::R_OK).is_err() => {
            let advice = "Run as the user who runs the daemon, or set AMAN_HTTP_TOKEN.";
            Check::warn(Id::TokenFile, format!("{shown} cannot be read by this user"), advice)
        }
        Ok(_) => Check::ok(Id::TokenFile, format!("{shown} is readable by its owner only")),
    }
}

fn database(file: &Path) -> Check {
    let Ok(found) = fs::metadata(file) else {
        return Check::ok(Id::Database, format!("{} is not there yet; the first start makes it", file.display()));
    };
    let mut log = file.as_os_str().to_owned();
    log.push("-wal");
    let log_bytes = fs::metadata(PathBuf::from(log)).map_or(0, |found| found.len());
    let message = format!("{}, write-ahead log {}", size(found.len()), size(log_bytes));
    if found.permissions().mode() & 0o077 != 0 && found.permissions().mode() & 0o044 != 0 {
        let readable = file.parent().and_then(|folder| fs::metadata(folder).ok());
        if readable.is_none_or(|folder| folder.permissions().mode() & 0o011 != 0) {
            let advice = format!("chmod 600 {}*", file.display());
            return Check::warn(Id::Database, format!("{message}; other users can read it"), advice);
        }
    }
    if log_bytes > WAL_BYTES_WARN {
        let advice = "Restart the daemon; if it grows again, some program holds the database open.";
        return Check::warn(Id::Database, message, advice);
    }
    Check::ok(Id::Database, message)
}

fn open_files() -> Check {
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, hard)) if soft < FILES_WARN => {
            let advice = format!("Raise it with `ulimit -n {}` before the start.", hard.min(65_536));
            Check::warn(Id::OpenFiles, format!("A process may open only {soft} files"), advice)
        }
        Ok((soft, _)) => Check::ok(Id::OpenFiles, format!("a process may open {soft} files")),
        Err(error) => {
            Check::warn(Id::OpenFiles, format!("The limit is unknown: {error}"), "Check it with `ulimit -n`.")
        }
    }
}

fn inotify(folder: &Path) -> Check {
    let read = |name: &str| fs::read_to_string(folder.join(name)).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let (Some(watches), Some(instances)) = (read("max_user_watches"), read("max_user_instances")) else {
        let advice = "Watching folders needs inotify; other sources work without.";
        return Check::warn(Id::Inotify, "The limits of inotify are unknown", advice);
    };
    let message = format!("{watches} watched folders, {instances} instances allowed for each user");
    if watches < WATCHES_WARN || instances < INSTANCES_WARN {
        let advice = "Raise them: sysctl fs.inotify.max_user_watches=524288 fs.inotify.max_user_instances=512";
        return Check::warn(Id::Inotify, message, advice);
    }
    Check::ok(Id::Inotify, message)
}

const SANDBOX_ADVICE: &str = "Scripts of skills run with less protection; run only skills you trust. A kernel with \
                              Landlock and user namespaces gives all of it.";

/// What the machine offers to keep scripts in bounds, as one check.
pub async fn sandbox() -> Check {
    let Found { parts, gaps } = match probe().await {
        Ok(found) => found,
        Err(check) => return check,
    };
    let in_force = parts.iter().map(|(part, by)| format!("{part}: {by}")).collect::<Vec<_>>().join(", ");
    let message = [vec![in_force], gaps.clone()].concat().join(". ");
    if !gaps.is_empty() || parts.iter().any(|(_, by)| is_weak(by)) {
        return Check::warn(Id::Sandbox, message, SANDBOX_ADVICE);
    }
    Check::ok(Id::Sandbox, message)
}

/// The same, each part for itself.
pub async fn sandbox_parts() -> Vec<Check> {
    let ids = [Id::SandboxFilesystem, Id::SandboxNetwork, Id::SandboxProcesses];
    let parts = match probe().await {
        Ok(found) => found.parts,
        Err(check) => return ids.map(|id| Check::skip(id, check.message.clone())).into(),
    };
    let check = |(id, (_, by)): (Id, &(&str, String))| match is_weak(by) {
        true => Check::warn(id, format!("enforced: {by}"), SANDBOX_ADVICE),
        false => Check::ok(id, by.clone()),
    };
    ids.into_iter().zip(&parts).map(check).collect()
}

/// True when a part is not enforced as the catalogue promises: `by` is what the sandbox says of it.
fn is_weak(by: &str) -> bool {
    matches!(by, "none" | "unknown" | "group" | "partial")
}

/// What the machine does to keep scripts in bounds.
struct Found {
    /// What enforces each part.
    parts: [(&'static str, String); 3],
    /// What stays open all the same.
    gaps: Vec<String>,
}

/// Finds it by trying it; or gives a check that says why it could not be tried.
async fn probe() -> Result<Found, Check> {
    // A folder of its own: the lock in the daemon's would make its next start wait for this probe.
    let run_dir = Path::new("/tmp").join(format!("aman-doctor-{:016x}", fastrand::u64(..)));
    if let Err(error) = fs::create_dir(&run_dir) {
        let message = format!("Not tried: {} cannot be made: {error}", run_dir.display());
        return Err(Check::warn(Id::Sandbox, message, "Make /tmp writable."));
    }
    let sandbox = Sandbox::new(&run_dir);
    let found = sandbox.probe().await.map(|enforced| serde_json::to_value(enforced).unwrap_or_default());
    // What stays behind is one empty folder in /tmp.
    drop(fs::remove_dir_all(&run_dir));
    let enforced =
        found.map_err(|error| Check::fail(Id::Sandbox, format!("No script can run: {error}"), SANDBOX_ADVICE))?;
    let by = |part: &'static str| (part, enforced[part].as_str().unwrap_or("unknown").to_owned());
    let gaps = enforced["gaps"].as_array().into_iter().flatten().filter_map(|gap| gap.as_str());
    let gaps = gaps.map(|gap| gap.trim_end_matches('.').to_owned()).collect();
    Ok(Found { parts: ["filesystem", "network", "processes"].map(by), gaps })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::doctor::Verdict;

    /// A folder below the system's temporary one that ends with the test.
    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Folder {
            let path = std::env::temp_dir().join(format!("aman-doctor-test-{:016x}", fastrand::u64(..)));
            fs::create_dir(&path).expect("the temporary folder is writable");
            Folder(path)
        }

        fn file(&self, name: &str, text: &str, mode: u32) -> PathBuf {
            let path = self.0.join(name);
            fs::write(&path, text).expect("the folder is writable");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("the file is ours");
            path
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.0));
        }
    }

    #[test]
    fn clocks() {
        assert_eq!(clock(1_795_000_000_000).status, Verdict::Ok);
        assert_eq!(clock(0).status, Verdict::Fail);
        assert_eq!(clock(i64::MAX).status, Verdict::Fail);
    }

    #[test]
    fn files_of_a_home() {
        let folder = Folder::new();
        assert_eq!(data_folder(&folder.0).status, Verdict::Ok);
        assert_eq!(data_folder(&folder.0.join("a/b")).status, Verdict::Ok);
        assert_eq!(data_folder(&folder.file("plain", "", 0o600)).status, Verdict::Fail);
        assert_eq!(token_file(&folder.0.join("none")).status, Verdict::Ok);
        assert_eq!(token_file(&folder.file("token", "t", 0o600)).status, Verdict::Ok);
        assert_eq!(token_file(&folder.file("open", "t", 0o640)).status, Verdict::Fail);
        let config = |text: &str| config_file(&folder.file("aman.toml", text, 0o600), Some(&folder.0));
        assert_eq!(config_file(&folder.0.join("none"), None).status, Verdict::Ok);
        assert_eq!(config("[http]\nbind = \"127.0.0.1:0\"\n").status, Verdict::Ok);
        assert_eq!(config("[http]\nbind = \"nowhere\"\n").status, Verdict::Fail);
        assert_eq!(config("[htttp]\nbind = \"127.0.0.1:0\"\n").status, Verdict::Warn);
        let broken = config("[http]\ntoken = \"secret\n");
        assert_eq!(broken.status, Verdict::Fail);
        assert!(broken.message.contains("line 2") && !broken.message.contains("secret"), "{}", broken.message);
        assert_eq!(database(&folder.file("db", "x", 0o600)).status, Verdict::Ok);
    }

    #[test]
    fn every_word_for_what_is_enforced_is_judged() {
        use crate::sandbox::{Filesystem, NetworkGuard, ProcessGuard};
        let word = |part: serde_json::Value| part.as_str().expect("a word").to_owned();
        for (weak, by) in [
            (true, word(json!(Filesystem::None))),
            (false, word(json!(Filesystem::Mounts))),
            (false, word(json!(Filesystem::Landlock(3)))),
            (false, word(json!(NetworkGuard::Namespace))),
            (false, word(json!(NetworkGuard::Filter))),
            (true, word(json!(NetworkGuard::Partial))),
            (true, word(json!(NetworkGuard::None))),
            (false, word(json!(ProcessGuard::PidNamespace))),
            (true, word(json!(ProcessGuard::Group))),
            (true, "unknown".to_owned()),
        ] {
            assert_eq!(is_weak(&by), weak, "{by}");
        }
    }

    #[test]
    fn watch_limits() {
        let folder = Folder::new();
        assert_eq!(inotify(&folder.0).status, Verdict::Warn);
        folder.file("max_user_watches", "65536\n", 0o600);
        folder.file("max_user_instances", "128\n", 0o600);
        assert_eq!(inotify(&folder.0).status, Verdict::Ok);
        folder.file("max_user_watches", "100\n", 0o600);
        assert_eq!(inotify(&folder.0).status, Verdict::Warn);
    }
}
