//! `aman service`: the unit it writes, with a fake `systemctl` in place of systemd, and without any.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::harness::{Daemon, Folder, command};

/// A person's home with a fake `systemctl`, which keeps what it was asked in `asked` and the service's state in `state`.
struct Desk {
    folder: Folder,
}

const FAKE: &str = "#!/bin/sh
printf '%s\\n' \"$*\" >> \"$HOME/asked\"
case \"$*\" in
    *ActiveState*) cat \"$HOME/state\" 2>/dev/null || echo inactive ;;
    *' start '*|*' restart '*) echo active > \"$HOME/state\" ;;
    *' disable '*) echo inactive > \"$HOME/state\" ;;
esac
";

impl Desk {
    fn new(systemd: bool) -> Desk {
        let folder = Folder::new("desk home");
        let bin = folder.path().join("bin");
        fs::create_dir(&bin).expect("a folder");
        let fake = if systemd { FAKE } else { "#!/bin/sh\necho 'Failed to connect to bus' >&2\nexit 1\n" };
        fs::write(bin.join("systemctl"), fake).expect("a script");
        fs::set_permissions(bin.join("systemctl"), fs::Permissions::from_mode(0o755)).expect("ours");
        Desk { folder }
    }

    fn home(&self) -> &Path {
        self.folder.path()
    }

    fn unit(&self) -> PathBuf {
        self.home().join(".config/systemd/user/aman.service")
    }

    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        let path = format!("{}:/usr/bin:/bin", self.home().join("bin").display());
        let mut command = command(self.home());
        // As at a desk: the XDG folders below HOME, no folder of its own.
        command.env_remove("AMAN_HOME").env_remove("AMAN_HTTP_BIND").env("PATH", path);
        let output =
            command.arg("--url").arg("http://127.0.0.1:9").args(arguments).output().expect("the binary starts");
        texts(&output)
    }

    fn asked(&self) -> Vec<String> {
        let text = fs::read_to_string(self.home().join("asked")).unwrap_or_default();
        let _cleared = fs::remove_file(self.home().join("asked"));
        text.lines().filter(|line| !line.contains(" show ")).map(str::to_owned).collect()
    }
}

fn texts(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

/// Goal: install, again, status, uninstall, again: each does what is left to do and says how things stand.
#[test]
fn from_nothing_to_running_and_back() {
    let desk = Desk::new(true);
    let (code, out, _) = desk.run(&["service", "status"]);
    assert!(code == 1 && out.contains("not installed"), "{out}");
    let (code, out, _) = desk.run(&["service", "install", "--dry-run"]);
    assert!(code == 0 && out.contains("Would write") && !desk.unit().exists() && desk.asked().is_empty(), "{out}");
    let (code, out, err) = desk.run(&["service", "install"]);
    assert!(code == 0 && out.contains("runs") && out.contains("enable-linger"), "{out}{err}");
    assert_eq!(desk.asked(), ["--user daemon-reload", "--user enable aman.service", "--user start aman.service"]);
    let (code, out, _) = desk.run(&["service", "status"]);
    assert!(code == 0 && out.contains("installed and running"), "{out}");
    let before = fs::read_to_string(desk.unit()).expect("a unit");
    assert_eq!(desk.run(&["service", "install"]).0, 0);
    assert_eq!(
        desk.asked(),
        ["--user enable aman.service", "--user start aman.service"],
        "nothing to write or restart"
    );
    assert_eq!(fs::read_to_string(desk.unit()).expect("a unit"), before);
    fs::write(desk.unit(), before.replace("RestartSec=5", "RestartSec=7")).expect("ours");
    assert_eq!(desk.run(&["service", "install"]).0, 0);
    assert_eq!(desk.asked().last().map(String::as_str), Some("--user restart aman.service"), "an old unit is replaced");
    fs::write(desk.home().join("state"), "failed\n").expect("ours");
    let (code, out, _) = desk.run(&["service", "status", "--json"]);
    let shown: Value = serde_json::from_str(&out).expect("JSON");
    assert!(code == 1 && shown["state"] == "not_running" && shown["active"] == "failed", "{shown}");
    fs::write(desk.home().join("state"), "activating\n").expect("ours");
    let (code, out, _) = desk.run(&["service", "status"]);
    assert!(code == 1 && out.contains("waits to be started again"), "a crash loop is not running: {out}");
    fs::create_dir_all(desk.home().join(".local/share/aman")).expect("a folder");
    fs::write(desk.home().join(".local/share/aman/aman.db"), "data").expect("a file");
    let (code, out, _) = desk.run(&["service", "uninstall", "--dry-run"]);
    assert!(code == 0 && out.contains("Would stop") && desk.unit().exists(), "{out}");
    let (code, out, _) = desk.run(&["service", "uninstall"]);
    assert!(code == 0 && out.contains("stays in") && !desk.unit().exists(), "{out}");
    assert_eq!(desk.asked(), ["--user disable --now aman.service", "--user daemon-reload"]);
    assert!(desk.home().join(".local/share/aman/aman.db").exists());
    let (code, out, _) = desk.run(&["service", "uninstall"]);
    assert!(code == 0 && out.contains("was not installed") && desk.asked().is_empty(), "{out}");
}

/// Goal: without a systemd that serves the user nothing is written, and the words that help are printed.
#[test]
fn without_systemd() {
    let desk = Desk::new(false);
    let (code, out, _) = desk.run(&["service", "install"]);
    assert!(code == 1 && out.contains("@reboot") && out.contains("setsid") && out.contains("--print"), "{out}");
    assert!(!desk.unit().exists());
    let (code, out, _) = desk.run(&["service", "install", "--json"]);
    let shown: Value = serde_json::from_str(&out).expect("JSON");
    assert!(
        code == 1 && shown["state"] == "not_installed" && shown["cron"].as_str().is_some_and(|c| c.ends_with(" serve")),
        "{shown}"
    );
    // The advice is run as it stands, with a `crontab` that keeps what it is given.
    let (portable, bin) = (desk.home().join("it's 100 %"), desk.home().join("bin"));
    let fake = "#!/bin/sh\n[ \"$1\" = -l ] && echo '# mine' || cat > \"$HOME/table\"\n";
    fs::write(bin.join("crontab"), fake).expect("a script");
    fs::set_permissions(bin.join("crontab"), fs::Permissions::from_mode(0o755)).expect("ours");
    let (_, out, _) = desk.run(&["--home", &portable.display().to_string(), "service", "install"]);
    let advice = out.lines().find_map(|line| line.split_once("by cron:")).expect("a line for cron").1;
    let path = format!("{}:/usr/bin:/bin", bin.display());
    let done = Command::new("sh").args(["-c", advice]).env("HOME", desk.home()).env("PATH", path).status();
    assert!(done.expect("a shell").success());
    let table = fs::read_to_string(desk.home().join("table")).expect("a table");
    let (mine, line) = table.split_once('\n').expect("two lines");
    assert!(mine == "# mine" && line.starts_with("@reboot ") && line.contains("100 \\%"), "{table}");
    // crontab(5): a percent sign ends the command unless a backslash is before it, which goes.
    let command = line.trim_start_matches("@reboot ").replace("\\%", "%");
    let words = Command::new("sh").args(["-c", &format!("printf '%s|' {command}")]).output().expect("a shell").stdout;
    let words = String::from_utf8_lossy(&words).into_owned();
    assert!(words.ends_with(&format!("|serve|--home|{}|", portable.display())), "{words}");
    let (code, out, _) = desk.run(&["service", "install", "--print"]);
    assert!(code == 0 && out.contains("Type=notify") && !desk.unit().exists(), "{out}");
    assert_eq!(desk.run(&["service", "status"]).0, 1);
    assert_eq!(desk.run(&["service", "uninstall"]).0, 0);
}

/// Goal: a unit that somebody else wrote, a daemon that runs by hand, and a bad name change nothing.
#[test]
fn what_is_not_ours_stays() {
    let desk = Desk::new(true);
    fs::create_dir_all(desk.unit().parent().expect("a folder")).expect("a folder");
    fs::write(desk.unit(), "[Service]\nExecStart=/bin/true\n").expect("a unit");
    for verb in ["install", "uninstall", "status"] {
        let (code, _, err) = desk.run(&["service", verb]);
        assert!(code == 1 && err.contains("not written by aman"), "{verb}: {err}");
    }
    assert!(desk.unit().exists() && desk.asked().is_empty());
    for name in ["../x", "", "UPPER", "a b"] {
        assert_eq!(desk.run(&["service", "install", "--name", name]).0, 2, "{name}");
    }
    let daemon = Daemon::start();
    let mut by_hand = command(daemon.home());
    by_hand.env("PATH", format!("{}:/usr/bin:/bin", desk.home().join("bin").display()));
    let (code, _, err) = texts(&by_hand.args(["service", "install", "--name", "other"]).output().expect("it starts"));
    assert!(code == 1 && err.contains("outside the service"), "{err}");
}

/// What `systemd-analyze verify` says of a unit; nothing when it is good.
fn complaints(folder: &Path, unit: &str) -> String {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/systemd");
    let libraries = ["x86_64-linux-gnu", "aarch64-linux-gnu"].map(|machine| {
        let library = tools.join("usr/lib").join(machine);
        format!("{}:{}", library.display(), library.join("systemd").display())
    });
    let own = Path::new("/usr/bin/systemd-analyze");
    let mut verify = Command::new(if own.exists() { own.to_owned() } else { tools.join("usr/bin/systemd-analyze") });
    if !own.exists() {
        verify.env("LD_LIBRARY_PATH", libraries.join(":"));
    }
    let file = folder.join("aman.service");
    fs::write(&file, unit).expect("a unit");
    verify.env("XDG_RUNTIME_DIR", folder).env("HOME", folder).args(["--user", "verify", "--man=no"]).arg(&file);
    let (_, out, err) = texts(&verify.output().expect("scripts/setup test fetches systemd-analyze"));
    format!("{out}{err}")
}

/// Goal: systemd finds nothing wrong with the unit, whatever the folder is called, and would find it.
#[test]
fn systemd_accepts_the_unit() {
    let folder = Folder::new("verify");
    let homes = ["plain", "with space", "a $HOME ${b} 100% \"q\" \\ ü"].map(|name| folder.path().join(name));
    for home in &homes {
        let mut print = command(home);
        let (code, unit, err) = texts(&print.args(["service", "install", "--print"]).output().expect("it starts"));
        assert_eq!((code, err.as_str()), (0, ""));
        assert_eq!(complaints(folder.path(), &unit), "", "{unit}");
        for setting in ["NoNewPrivileges=yes", "Restart=on-failure", "LimitCORE=0", "WantedBy=default.target"] {
            assert!(unit.lines().any(|line| line == setting), "{unit}");
        }
        let bad = unit.replace("LockPersonality=", "LockPersonalitie=");
        assert!(complaints(folder.path(), &bad).contains("LockPersonalitie"), "it does find mistakes");
    }
    let mut print = command(&folder.path().join("a\nb"));
    assert_eq!(print.args(["service", "install", "--print"]).output().expect("it starts").status.code(), Some(2));
}

/// Goal: with what the unit forbids the daemon, it can still confine scripts as well as without.
#[test]
fn the_hardening_leaves_the_sandbox_whole() {
    let folder = Folder::new("hardened");
    let sandbox = |mut doctor: Command| -> Vec<Value> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        doctor.env_clear().env("PATH", path).env("HOME", folder.path()).env("AMAN_HOME", folder.path());
        let (_, out, err) = texts(&doctor.args(["doctor", "--security", "--json"]).output().expect("it starts"));
        let shown: Value = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}"));
        let checks = shown["checks"].as_array().expect("checks").clone();
        checks.into_iter().filter(|check| check["id"].as_str().is_some_and(|id| id.starts_with("sandbox"))).collect()
    };
    let binary = env!("CARGO_BIN_EXE_aman");
    let mut hardened = Command::new("prlimit");
    hardened.args(["--core=0", "setpriv", "--no-new-privs", binary]);
    let found = sandbox(hardened);
    assert_eq!(found.len(), 4, "{found:?}");
    assert_eq!(found, sandbox(Command::new(binary)));
}

/// Goal: a daemon that cron started, which has no runtime folder of a session, is found from a session that has one.
#[test]
fn a_daemon_without_a_session_is_found_from_one() {
    let (folder, session) = (Folder::new("cron"), Folder::new("session"));
    let _daemon = Daemon::try_start_in(folder.path(), &[("AMAN_HOME", ""), ("AMAN_HTTP_TOKEN", "")])
        .unwrap_or_else(|log| panic!("{log}"));
    let mut status = command(folder.path());
    status.env_remove("AMAN_HOME").env_remove("AMAN_HTTP_TOKEN").env("XDG_RUNTIME_DIR", session.path());
    let (code, out, err) = texts(&status.args(["event", "recent"]).output().expect("the binary starts"));
    assert_eq!(code, 0, "{out}{err}");
}
