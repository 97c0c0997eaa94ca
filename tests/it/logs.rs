//! Log files: what is in them, when they change, what becomes of a disk that is slow or full, and `aman logs`.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::fcntl::OFlag;
use serde_json::{Value, json};

use crate::harness::{Daemon, Folder, command, request, wait};

fn text(home: &Path) -> String {
    fs::read_to_string(home.join("logs/aman.log")).unwrap_or_default()
}

/// The log files of a folder, the oldest first.
fn files(home: &Path) -> Vec<PathBuf> {
    let number = |path: &PathBuf| path.extension().and_then(|end| end.to_str()?.parse::<u32>().ok()).unwrap_or(0);
    let mut found: Vec<PathBuf> =
        fs::read_dir(home.join("logs")).expect("a folder").map(|e| e.expect("e").path()).collect();
    found.retain(|path| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("aman.log"))
    });
    found.sort_by_key(|path| std::cmp::Reverse(number(path)));
    found
}

fn lost(daemon: &Daemon) -> u64 {
    let metrics = String::from_utf8(daemon.get("/metrics").body).expect("text");
    let line = metrics.lines().find_map(|line| line.strip_prefix("aman_log_lines_lost_total "));
    line.expect("the metric").parse().expect("a number")
}

/// Has the daemon, when it logs at `debug`, log a thousand lines: one for each request of a pipeline.
fn noise(daemon: &Daemon) {
    let one = request("GET", "/health/live", &[], b"");
    let open = String::from_utf8_lossy(&one).replace("connection: close\r\n", "");
    let bytes = [open.repeat(999).into_bytes(), one].concat();
    let (mut stream, mut answers) = (daemon.connect(), Vec::new());
    let mut half = stream.try_clone().expect("a socket has two halves");
    let writing = std::thread::spawn(move || half.write_all(&bytes));
    stream.read_to_end(&mut answers).expect("the daemon answers all and closes");
    writing.join().expect("the writer does not panic").expect("the daemon reads all");
}

/// Goal: the daemon's log is in a private file as well as on standard error, and is read with it up or down.
#[test]
fn the_log_is_kept_and_read() {
    let mut daemon = Daemon::start();
    daemon.wait("the first lines", || text(daemon.home()).contains("Ready.").then_some(()));
    let mode = fs::metadata(daemon.home().join("logs/aman.log")).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(daemon.log().contains("Ready."), "standard error has it, too");
    let (code, out, err) = daemon.cli(&["logs"]);
    assert!(code == 0 && err.is_empty() && out.contains(" INFO aman::start: Ready."), "{out}{err}");
    let (code, out, _) = daemon.cli(&["logs", "--since", "1h", "--level", "info", "--json"]);
    let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert!(code == 0 && lines.iter().any(|line| line["level"] == "INFO"), "{out}");
    for arguments in
        [&["logs", "--level", "error"][..], &["logs", "--since", "2100-01-01T00:00:00Z"], &["logs", "-n", "0"]]
    {
        assert_eq!(daemon.cli(arguments), (0, String::new(), String::new()), "{arguments:?}");
    }
    assert_eq!(daemon.cli(&["logs", "--since", "yesterday"]).0, 2);
    assert_eq!(daemon.terminate(), Some(0));
    let (code, out, _) = daemon.cli(&["logs", "-n", "1"]);
    assert!(code == 0 && out.lines().count() == 1 && out.contains("Stopped."), "its last line is there: {out}");
}

/// Goal: JSON lines are kept whole and shown as text; where there is no log, the command says what to do.
#[test]
fn json_lines_and_no_log() {
    let daemon = Daemon::configured("[log]\nformat = \"json\"\nfiles = false\n");
    let (code, out, err) = daemon.cli(&["logs"]);
    assert!(code == 1 && out.is_empty() && err.contains("log.files"), "{out}{err}");
    let daemon = Daemon::configured("[log]\nformat = \"json\"\n");
    daemon.wait("the first lines", || text(daemon.home()).contains("Ready.").then_some(()));
    let first: Value = serde_json::from_str(text(daemon.home()).lines().next().expect("a line")).expect("JSON");
    assert!(first["timestamp"].is_string() && first["fields"]["message"].is_string(), "{first}");
    let (_, out, _) = daemon.cli(&["logs"]);
    assert!(out.contains(" INFO aman::start: Ready. "), "{out}");
    for (line, field) in
        [("max_size = \"5\"", "log.max_size"), ("dir = \"logs\"", "log.dir"), ("keep = -1", "log.keep")]
    {
        let folder = Folder::new("bad");
        fs::write(folder.path().join("aman.toml"), format!("[log]\n{line}\n")).expect("aman.toml");
        let log = Daemon::try_start_in(folder.path(), &[]).err().expect("it does not start");
        assert!(log.contains(field), "{log}");
    }
}

/// Goal: full files are put aside and old ones removed, and who follows the log reads each line once over every change.
#[test]
fn files_change_and_a_follower_misses_nothing() {
    let folder = Folder::new("follow");
    let home = folder.path();
    fs::write(home.join("aman.toml"), "[log]\nlevel = \"trace\"\nmax_size = \"64KiB\"\nkeep = 900\n")
        .expect("aman.toml");
    let mut follower =
        command(home).args(["logs", "--follow", "-n", "1000000"]).stdout(Stdio::piped()).spawn().expect("it starts");
    let out = BufReader::new(follower.stdout.take().expect("a pipe"));
    let reading = std::thread::spawn(move || {
        let mut lines = Vec::new();
        for line in out.lines() {
            let line = line.expect("text");
            let last = line.ends_with(" INFO aman::start: Stopped.");
            lines.push(line);
            if last {
                break;
            }
        }
        lines
    });
    let mut daemon = Daemon::start_in(home);
    daemon.wait("the files to change", || {
        noise(&daemon);
        (files(home).len() > 4).then_some(())
    });
    assert_eq!(daemon.terminate(), Some(0));
    let followed = reading.join().expect("the reader does not panic");
    follower.kill().expect("it runs");
    follower.wait().expect("it ends");
    let mut written = String::new();
    for path in files(home) {
        let file = fs::read_to_string(&path).expect("a file");
        assert!(file.len() <= 64 << 10, "{} has {} bytes", path.display(), file.len());
        written.push_str(&file);
    }
    let written: Vec<&str> = written.lines().collect();
    assert_eq!(followed.len(), written.len());
    assert!(followed.iter().zip(&written).all(|(shown, kept)| shown == kept), "the same lines in the same order");

    fs::write(home.join("aman.toml"), "[log]\nmax_size = \"64KiB\"\nkeep = 1\n").expect("aman.toml");
    let daemon = Daemon::start_in(home);
    daemon.wait("the files to be removed", || (files(home).len() <= 2).then_some(()));
}

/// Goal: a disk that takes nothing stops nothing; the lines are counted, and told once there is room again.
#[test]
fn a_full_disk_costs_lines_only() {
    let folder = Folder::new("full");
    let log = folder.path().join("logs/aman.log");
    fs::create_dir_all(folder.path().join("logs")).expect("a folder");
    std::os::unix::fs::symlink("/dev/full", &log).expect("a link");
    let daemon = Daemon::start_in(folder.path());
    daemon.wait("lines to be lost", || (lost(&daemon) > 0).then_some(()));
    assert!(daemon.log().contains("The log files take nothing"), "{}", daemon.log());
    assert!(fs::metadata("/dev/full").expect("a device").file_type().is_char_device());
    fs::remove_file(&log).expect("the link is ours");
    daemon.wait("the log to go on", || {
        for level in ["debug", "trace"] {
            let answer = daemon.post_confirmed("/config/set", &json!({ "changes": { "log.level": level } }));
            assert_eq!(answer.status, 200, "{answer:?}");
        }
        text(folder.path()).contains("lines of this log are lost").then_some(())
    });
}

/// Goal: a disk that hangs does not hold up the daemon, whose memory for lines is bounded.
#[test]
fn a_slow_disk_costs_lines_only() {
    let folder = Folder::new("slow");
    let log = folder.path().join("logs/aman.log");
    fs::create_dir_all(folder.path().join("logs")).expect("a folder");
    assert!(Command::new("mkfifo").arg(&log).status().expect("mkfifo is there").success());
    fs::write(folder.path().join("aman.toml"), "[log]\nlevel = \"trace\"\n").expect("aman.toml");
    let mut daemon = Daemon::start_in(folder.path());
    daemon.wait("lines to be lost", || {
        noise(&daemon);
        (lost(&daemon) > 0).then_some(())
    });
    // A reader comes: what waited gets through, with the note of what did not.
    let mut end = fs::File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&log).expect("a reader");
    let mut seen = String::new();
    wait(
        "the note",
        || {
            let mut bytes = Vec::new();
            // Without a writer, or without more for now, it ends early.
            let _more = end.read_to_end(&mut bytes);
            seen.push_str(&String::from_utf8_lossy(&bytes));
            noise(&daemon);
            seen.contains("lines of this log are lost").then_some(())
        },
        String::new,
    );
    drop(end);
    assert_eq!(daemon.terminate(), Some(0));
}

/// Goal: why a start failed is in the log, and a second daemon writes nothing into the log of the first.
#[test]
fn a_start_that_fails_is_on_record() {
    let first = Daemon::start();
    first.wait("the first lines", || text(first.home()).contains("Ready.").then_some(()));
    let before = text(first.home());
    let refused = Daemon::try_start_in(first.home(), &[]).err().expect("one daemon a folder");
    assert!(refused.contains("Another aman"), "{refused}");
    assert_eq!(text(first.home()), before);
    let folder = Folder::new("bind");
    let bind = [("AMAN_HTTP_BIND", first.address.as_str())];
    Daemon::try_start_in(folder.path(), &bind).err().expect("the port is taken");
    let output = command(folder.path()).args(["logs", "--level", "error"]).output().expect("the binary starts");
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(out.contains("http.bind") && out.contains("cannot be listened on"), "{out}");
}
