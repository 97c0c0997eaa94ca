//! Behaviour under faults of the machine. Each test ends with nothing lost, and with a message that says what to do.
//!
//! Disks of their own are mounted in a mount namespace of the test's thread, which its daemons inherit: when both have
//! ended nothing stays mounted, however they ended.

mod clock;
mod damage;
mod descriptors;
mod disk;
mod files;
mod folders;

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

use crate::harness::{Answer, Daemon, Folder, say, wait, write_skill};

/// A disk of its own for a daemon's home. Its log lies outside, so that it tells of a full one.
struct Disk {
    folder: Folder,
    home: PathBuf,
}

impl Disk {
    /// A tmpfs with `mib` MiB; none, loudly, where this user may not mount.
    fn tmpfs(mib: u32) -> Option<Disk> {
        let disk = Disk::prepare()?;
        let size = format!("size={mib}m");
        mount(Some("aman-test"), &disk.home, Some("tmpfs"), MsFlags::empty(), Some(size.as_str())).expect("a tmpfs");
        disk.link_log();
        Some(disk)
    }

    /// An ext4 file system in a file: it becomes read-only by itself when it meets an error.
    fn ext4(mib: u64) -> Option<Disk> {
        let disk = Disk::prepare()?;
        let image = fs::File::create(disk.image()).and_then(|file| file.set_len(mib << 20));
        image.expect("a file for the disk");
        run("mkfs.ext4", &["-q", &text(&disk.image())]);
        disk.mount_image();
        disk.link_log();
        Some(disk)
    }

    fn prepare() -> Option<Disk> {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNS) {
            assert!(!nix::unistd::geteuid().is_root(), "root may not make a mount namespace here: {error}");
            say("NOT TESTED HERE: this needs a disk of its own, and only root may mount one. Run it as root.");
            return None;
        }
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .expect("a namespace of this thread may be made private");
        let folder = Folder::new("disk");
        let home = folder.path().join("home");
        fs::create_dir(&home).expect("a folder to mount on");
        Some(Disk { folder, home })
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    fn mount_image(&self) {
        run("mount", &["-o", "loop,errors=remount-ro", &text(&self.image()), &text(&self.home)]);
    }

    fn remount(&self, options: &str) {
        run("mount", &["-o", &format!("remount,{options}"), &text(&self.home)]);
    }

    fn unmount(&self) {
        // What watches over a script has a file open here until it has noticed that its daemon was killed.
        let unmounted = || nix::mount::umount(&self.home).is_ok().then_some(());
        wait("nobody to be on the disk", unmounted, String::new);
    }

    fn link_log(&self) {
        symlink(self.folder.path().join("stderr.log"), self.home.join("stderr.log")).expect("a link to the log");
    }

    fn configure(&self, toml: &str) {
        fs::write(self.home.join("aman.toml"), toml).expect("aman.toml");
    }

    fn free(&self) -> u64 {
        let found = nix::sys::statvfs::statvfs(&self.home).expect("the disk tells its size");
        found.blocks_available() * found.fragment_size()
    }

    /// Writes a file until only `leave` bytes are free.
    fn fill(&self, leave: u64) {
        let mut file = fs::File::options().create(true).append(true).open(self.home.join("fill")).expect("a file");
        let block = [1_u8; 4096];
        while self.free() > leave && file.write_all(&block).is_ok() {}
    }

    fn empty(&self) {
        fs::remove_file(self.home.join("fill")).expect("what filled the disk can be removed");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The folder cannot be removed before; what fails here ends with the namespace.
        let _unmounted = Command::new("umount").args(["-l", &text(&self.home)]).status();
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A skill whose script notes that it began, and ends when the file `runs/go` is there.
fn write_waiting_skill(home: &Path) {
    let script = r#"cat > /dev/null
echo "$AMAN_EVENT_ID" >> "$AMAN_DATA/runs/log"
while [ ! -e "$AMAN_DATA/runs/go" ]; do sleep 0.05; done
printf '{"publish": [{"type": "work.done"}]}'
"#;
    fs::create_dir_all(home.join("runs")).expect("a folder for the runs");
    let metadata = ["aman.on: work.do", "aman.permissions: write:$AMAN_DATA/runs", "aman.timeout: 120s"];
    write_skill(home, "waiting", &metadata, script);
}

/// How often the script of [`write_waiting_skill`] began.
fn runs(home: &Path) -> usize {
    fs::read_to_string(home.join("runs/log")).unwrap_or_default().lines().count()
}

fn try_push(daemon: &Daemon, kind: &str, data: &Value) -> Answer {
    daemon.post("/events/push", &json!({ "source": "test", "type": kind, "data": data }))
}

/// Every one of these events is there, and the audit log is whole.
fn nothing_lost(daemon: &Daemon, ids: &[String]) {
    for id in ids {
        let dump = daemon.get(&format!("/events/dump/{id}"));
        assert_eq!(dump.status, 200, "acknowledged and lost: {id}; {dump:?}; log: {}", daemon.log());
    }
    assert_eq!(daemon.get("/audit-log/verify").json["ok"], true);
}

/// A refusal with this code that says what to do.
fn refused(answer: &Answer, code: &str, what_to_do: &str) {
    assert_eq!((answer.status, answer.code()), (503, code), "{answer:?}");
    let detail = answer.json["detail"].as_str().expect("a detail");
    assert!(detail.contains(what_to_do), "{detail}");
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
}

/// The status says the same as the refusal, and the daemon lives on.
fn degraded(daemon: &Daemon, code: &str) {
    let health = daemon.get("/health");
    assert_eq!((health.status, health.json["status"].as_str()), (503, Some("degraded")), "{health:?}");
    assert_eq!(health.json["checks"]["store"]["ok"], false, "{health:?}");
    assert_eq!(daemon.get("/health/live").status, 200);
    let store = daemon.get("/runtime/status").json["subsystems"]["store"].clone();
    assert_eq!((&store["state"], &store["fault"]["code"]), (&json!("degraded"), &json!(code)), "{store}");
    assert!(store["fault"]["what_to_do"].is_string(), "{store}");
}

fn healthy(daemon: &Daemon) {
    daemon.wait("a healthy daemon", || (daemon.get("/health").status == 200).then_some(()));
}

/// How often the log says that nothing can be stored.
fn told(daemon: &Daemon) -> usize {
    daemon.log().matches("Nothing new can be stored").count()
}
