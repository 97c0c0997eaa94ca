//! Secrets in a keyring: the real GNOME Keyring on a D-Bus of its own, asked by the real `secret-tool`. And everything that
//! can be missing of that: the daemon says what, soon, and does not hang.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::{Daemon, Folder, command, wait};
use crate::peer::unpacked;

const CANARY: &str = "canary-of-the-keyring-1";

/// A session of somebody who is logged in: a bus, and a keyring on it.
struct Session {
    folder: Folder,
    address: String,
    children: Vec<Child>,
}

impl Session {
    /// A session with a bus only.
    fn start() -> Session {
        let folder = Folder::new("session");
        let mut bus = Command::new("dbus-daemon");
        // Nothing that the machine offers is started on this bus.
        bus.args(["--session", "--nofork", "--print-address=1"]).env("XDG_DATA_DIRS", folder.path());
        bus.env("XDG_DATA_HOME", folder.path()).env_remove("DBUS_SESSION_BUS_ADDRESS");
        let mut bus =
            bus.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("dbus-daemon");
        let mut address = String::new();
        let out = bus.stdout.take().expect("stdout is piped");
        BufReader::new(out).read_line(&mut address).expect("it tells its address");
        Session { folder, address: address.trim().to_owned(), children: vec![bus] }
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        let (root, libraries) = unpacked("keyring");
        let path = std::env::var("PATH").unwrap_or_default();
        vec![
            ("DBUS_SESSION_BUS_ADDRESS", self.address.clone()),
            ("LD_LIBRARY_PATH", libraries),
            ("PATH", format!("{}:{path}", root.join("usr/bin").display())),
            ("XDG_RUNTIME_DIR", self.folder.path().display().to_string()),
        ]
    }

    fn command(&self, program: &str) -> Command {
        let (root, _) = unpacked("keyring");
        let mut command = Command::new(root.join("usr/bin").join(program));
        command.envs(self.environment()).env("XDG_DATA_HOME", self.folder.path()).env("HOME", self.folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Starts the keyring, opened with a password or locked, in the place of the one that runs.
    fn keyring(&mut self, password: Option<&str>) {
        self.end_keyring();
        let mut keyring = self.command("gnome-keyring-daemon");
        keyring.args(["--foreground", "--components=secrets"]);
        keyring.args(password.map(|_| "--unlock")).stdin(Stdio::piped());
        let mut keyring = keyring.spawn().expect("scripts/setup test fetches gnome-keyring");
        let mut stdin = keyring.stdin.take().expect("stdin is piped");
        stdin.write_all(password.unwrap_or_default().as_bytes()).expect("it reads its password");
        drop(stdin);
        self.children.push(keyring);
        let answers = || {
            let mut ask = self.command("secret-tool");
            let asked = ask.args(["search", "nothing", "here"]).status();
            asked.expect("secret-tool starts").success().then_some(())
        };
        wait("the keyring", answers, String::new);
    }

    fn end_keyring(&mut self) {
        while self.children.len() > 1 {
            self.children.pop().into_iter().for_each(end);
        }
    }

    fn store(&self, account: &str, secret: &str) {
        let mut store = self.command("secret-tool");
        store.args(["store", "--label=test", "service", "aman-test", "account", account]).stdin(Stdio::piped());
        let mut child = store.spawn().expect("secret-tool starts");
        child.stdin.take().expect("stdin is piped").write_all(secret.as_bytes()).expect("it reads the secret");
        assert!(child.wait().expect("it ends").success());
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.children.drain(..).for_each(end);
    }
}

fn end(mut child: Child) {
    let _dead = child.kill();
    let _ended = child.wait();
}

fn start(home: &Path, environment: &[(&str, String)]) -> Result<Daemon, String> {
    let mut all: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    all.push(("AMAN_HTTP_TOKEN", ""));
    let _old = std::fs::remove_file(home.join("stderr.log"));
    Daemon::try_start_in(home, &all)
}

/// The exit code of a start that ends by itself.
fn serve(home: &Path, environment: &[(&str, String)]) -> Option<i32> {
    let environment = environment.iter().map(|(name, value)| (*name, value.as_str()));
    let mut serve = command(home);
    serve.arg("serve").env_remove("AMAN_HTTP_TOKEN").envs(environment).stdout(Stdio::null()).stderr(Stdio::null());
    serve.status().expect("the binary starts").code()
}

fn configured(account: &str) -> (Folder, PathBuf) {
    let home = Folder::new("home");
    let file = home.path().join("aman.toml");
    std::fs::write(&file, format!("[http]\ntoken = \"keyring:aman-test/{account}\"\n")).expect("aman.toml");
    (home, file)
}

/// Goal: a secret comes out of the keyring and shows up nowhere; what is missing or locked is named, at once.
#[test]
fn secrets_come_from_the_keyring() {
    let mut session = Session::start();
    session.keyring(Some("opened"));
    session.store("token", CANARY);
    let (home, file) = configured("token");
    let daemon = start(home.path(), &session.environment()).expect("it starts");
    let answer = daemon.send("GET", "/runtime/config", &[("x-aman-token", CANARY)], None);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(!String::from_utf8_lossy(&answer.body).contains(CANARY) && !daemon.log().contains(CANARY));
    let reload = daemon.send("POST", "/config/reload", &[("x-aman-token", CANARY)], None);
    assert_eq!(reload.status, 200, "it is asked again while the daemon runs: {reload:?}");
    let check = |environment: &[(&str, String)]| {
        let envs = environment.iter().map(|(name, value)| (*name, value.as_str()));
        let output = command(home.path()).env_remove("AMAN_HTTP_TOKEN").args(["config", "check"]).envs(envs).output();
        let output = output.expect("the binary starts");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(check(&session.environment()), (true, String::new()));
    drop(daemon);
    session.keyring(None);
    let locked = serve(home.path(), &session.environment());
    assert_eq!(locked, Some(75), "a service tries again; the last good file is not taken for that");
    let refused = |why: &str, environment: &[(&str, String)]| {
        let _old = std::fs::remove_file(home.path().join("logs/last-good.toml"));
        let begun = Instant::now();
        let log = start(home.path(), environment).err().unwrap_or_else(|| panic!("refused: {why}"));
        assert!(log.contains("http.token") && log.contains(why), "{why}: {log}");
        assert!(begun.elapsed() < Duration::from_secs(15), "{why} took {:?}", begun.elapsed());
        let (good, said) = check(environment);
        assert!(!good && said.contains(why), "{said}");
    };
    refused("is locked", &session.environment());
    session.keyring(Some("opened"));
    std::fs::write(&file, "[http]\ntoken = \"keyring:aman-test/other\"\n").expect("aman.toml");
    refused("does not hold", &session.environment());
    assert_eq!(serve(home.path(), &session.environment()), Some(2), "that does not get better by itself");
    session.end_keyring();
    refused("none runs here", &session.environment());
    let mut without_bus = session.environment();
    without_bus.retain(|(name, _)| *name != "DBUS_SESSION_BUS_ADDRESS" && *name != "XDG_RUNTIME_DIR");
    refused("none runs here", &without_bus);
    let nowhere = home.path().join("no-programs").display().to_string();
    refused("libsecret-tools", &[("PATH", nowhere)]);
}

/// Goal: a keyring that never answers is waited for once and not for long, however many secrets are in it. The program
/// that asks it is a fake here.
#[test]
fn a_silent_keyring_does_not_hang_the_start() {
    let (home, file) = configured("token");
    std::fs::create_dir(home.path().join("bin")).expect("a folder");
    let fake = home.path().join("bin/secret-tool");
    std::fs::write(&fake, "#!/bin/sh\nexec sleep 300\n").expect("a fake");
    std::fs::set_permissions(&fake, std::fs::Permissions::from_mode(0o755)).expect("it can run");
    let sinks: String = (0..5)
        .map(|n| {
            format!(
                "[sinks.s{n}]\nkind = \"webhook\"\ntypes = [\"a\"]\nurl = \"https://localhost/\"\n\
                 secret = \"keyring:aman-test/s{n}\"\n"
            )
        })
        .collect();
    let text = std::fs::read_to_string(&file).expect("aman.toml");
    std::fs::write(&file, text + &sinks).expect("aman.toml");
    let path = format!("{}:{}", home.path().join("bin").display(), std::env::var("PATH").unwrap_or_default());
    let begun = Instant::now();
    let log = start(home.path(), &[("PATH", path)]).err().expect("it does not start");
    assert!(log.contains("http.token") && log.contains("did not answer within 10 s"), "{log}");
    assert!(log.contains("sinks.s4.secret"), "{log}");
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}
