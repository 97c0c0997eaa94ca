//! The guides about plugins are followed to the letter: their commands are run, their files written, and what they show
//! must be what is said.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::bundled_plugins::{package, root, toolchains};
use crate::harness::{self, Daemon, Folder, PATIENCE, TOKEN};
use crate::peer::Peer;

/// The address in the guides.
const USUAL: &str = "127.0.0.1:9090";
/// What only reads, so that it may be asked again until its answer is the guide's.
const READS: [&str; 2] = ["curl ", "aman event recent"];

/// A guide that is being followed.
struct Guide<'a> {
    name: &'a str,
    /// Where its commands are run.
    folder: &'a Path,
    daemon: &'a Daemon,
}

impl Guide<'_> {
    fn follow(&self) {
        let text = fs::read_to_string(root().join(self.name)).expect("the guide is there");
        let (mut lines, mut label, mut steps) = (text.lines(), "", 0);
        while let Some(line) = lines.next() {
            let Some(language) = line.strip_prefix("```") else {
                label = if line.is_empty() { label } else { line };
                continue;
            };
            let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            match (language, label.strip_prefix('`').and_then(|label| label.split_once('`'))) {
                ("console", _) => steps += self.run_all(&block),
                (_, Some((file, ":"))) => self.write(file, &block, false),
                (_, Some((file, ", at its end:"))) => self.write(file, &block, true),
                _ => {}
            }
            label = "";
        }
        assert!(steps > 5, "{} shows {steps} commands: it was not read as it is meant", self.name);
    }

    fn write(&self, file: &str, block: &[&str], append: bool) {
        let path = self.folder.join(file);
        fs::create_dir_all(path.parent().expect("it has one")).expect("a folder");
        let before = if append { fs::read_to_string(&path).expect("it is there") + "\n" } else { String::new() };
        fs::write(path, before + &block.join("\n") + "\n").expect("written");
    }

    /// Runs each line that begins with `$ `, which may go on behind a backslash; what follows it is what it must say, with
    /// `…` for anything. How many there were.
    fn run_all(&self, block: &[&str]) -> usize {
        let (mut at, mut steps) = (0, 0);
        while at < block.len() {
            let mut command = block[at].strip_prefix("$ ").unwrap_or_else(|| panic!("{}", block[at])).to_owned();
            at += 1;
            while command.ends_with('\\') {
                command = format!("{command}\n{}", block[at]);
                at += 1;
            }
            let end = block[at..].iter().position(|line| line.starts_with("$ ")).map_or(block.len(), |end| at + end);
            let said = block[at..end].join("\n");
            at = end;
            self.run(&command, &said);
            steps += 1;
        }
        steps
    }

    fn run(&self, command: &str, said: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = self.shell(command).output().expect("sh starts");
            let mut found = String::from_utf8_lossy(&output.stdout).into_owned();
            if !output.status.success() {
                found.push_str(&String::from_utf8_lossy(&output.stderr));
            }
            let found = found.replace(&self.daemon.address, USUAL);
            if is_like(&plain(&found), &plain(said)) {
                break;
            }
            let again = READS.iter().any(|start| command.starts_with(start)) && Instant::now() < deadline;
            assert!(
                again,
                "{}: $ {command}\n{found}\nbut the guide shows\n{said}\n{}",
                self.name,
                String::from_utf8_lossy(&output.stderr)
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        if command == "aman plugin new weather" {
            // The versions of the bundled plugins, which are fetched already.
            let lock = self.folder.join("weather/Cargo.lock");
            fs::copy(root().join("plugins/Cargo.lock"), lock).expect("it is there");
        }
    }

    /// The command as a person would type it: `aman` means this one, with its daemon.
    fn shell(&self, command: &str) -> Command {
        let mut shell = harness::command(self.daemon.home());
        let programs = self.folder.join(".programs");
        fs::create_dir_all(&programs).expect("a folder");
        let _is_there = std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_aman"), programs.join("aman"));
        let tools = root().join("target/tools");
        let mut path =
            vec![programs, tools.join("componentize-js/node_modules/.bin"), tools.join("componentize-py/bin")];
        if !can_build_rust() {
            path.insert(0, tools.join("rust-web/bin"));
        }
        path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
        path.push(tools.join("clients/bin"));
        let mut run = Command::new("sh");
        run.args(["-c", &command.replace(USUAL, &self.daemon.address)]).current_dir(self.folder).stdin(Stdio::null());
        run.env_clear().envs(shell.env("TOKEN", TOKEN).get_envs().filter_map(|(key, value)| Some((key, value?))));
        run.envs(toolchains()).env("HOME", self.folder).env("PATH", std::env::join_paths(path).expect("paths"));
        run.env("CARGO_TARGET_DIR", root().join("target/plugins/build"));
        run
    }
}

/// Without what is another in each run: digests, keys, ids, times and ports become one sign for each of their kinds.
fn plain(text: &str) -> String {
    let is_hex = |word: &str| word.len() >= 11 && word.bytes().all(|b| b.is_ascii_hexdigit());
    let is_time = |word: &str| word.len() >= 9 && word.bytes().all(|b| b.is_ascii_digit() || b"-:Z".contains(&b));
    let word = |word: &str| match word {
        _ if is_hex(word) => "<hex>".to_owned(),
        _ if is_time(word) => "<time>".to_owned(),
        _ => word.to_owned(),
    };
    let gap = |c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == ':');
    text.split_inclusive(gap)
        .map(|piece| {
            let end = piece.find(gap).unwrap_or(piece.len());
            word(&piece[..end]) + &piece[end..]
        })
        .collect()
}

/// Whether `text` is `pattern`, in which `…` stands for anything.
fn is_like(text: &str, pattern: &str) -> bool {
    let (text, mut parts) = (text.trim_end(), pattern.trim_end().split('…'));
    let Some(mut rest) = text.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// Whether this toolchain builds components, without what scripts/build-plugins puts in its place.
fn can_build_rust() -> bool {
    let asked = Command::new("rustc").args(["--print", "target-libdir", "--target", "wasm32-wasip2"]).output();
    asked.is_ok_and(|output| Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir())
}

/// A folder that is the same in each run: cargo keeps what it built for another path for ever.
fn lasting(name: &str) -> PathBuf {
    let folder = root().join("target/plugins/guides").join(name);
    let _old = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("a folder");
    folder
}

#[test]
fn patterns_are_like_texts() {
    for (text, pattern, like) in [
        ("a b c\n", "a b c", true),
        ("a b c", "a…c", true),
        ("a\nb\nc", "a\n…\nc", true),
        ("a b c d", "a…c", false),
        ("a b", "…b", true),
        ("", "", true),
        ("x", "", false),
        ("x", "…", true),
    ] {
        assert_eq!(is_like(text, pattern), like, "{text:?} {pattern:?}");
    }
}

/// Goal: from nothing to a signed plugin in Rust, and on with `aman plugin dev`: a save is a new version that serves.
#[test]
fn rust() {
    let peer = Peer::start();
    peer.page("/now?city=Oslo", "200 OK", &[], "{\"city\":\"Oslo\",\"rain\":true}");
    let settings = format!("[plugin.weather.settings]\nurl = \"{}\"\n", peer.url());
    let daemon = Daemon::configured(&format!("http_client.allow_private = true\n{settings}"));
    let folder = lasting("rust");
    let guide = Guide { name: "plugins/rust.md", folder: &folder, daemon: &daemon };
    guide.follow();
    let shown = daemon.get("/plugin/weather").json;
    assert!(shown["signed_by"].is_string(), "{shown}");

    // The key of the installed version is not this folder's secret: what `dev` installs is unsigned.
    assert_eq!(daemon.post_confirmed("/plugin/weather/uninstall", &json!({ "purge_data": true })).status, 200);
    let source = folder.join("weather/src/lib.rs");
    let code = fs::read_to_string(&source).expect("it is there");
    let mut dev = guide.shell("exec aman plugin dev weather --yes").stdout(Stdio::piped()).spawn().expect("sh starts");
    let mut said = BufReader::new(dev.stdout.take().expect("piped")).lines().map_while(Result::ok);
    assert_eq!(said.find(|line| line.starts_with("Installed")).as_deref(), Some("Installed weather 0.1.0: active."));
    fs::write(&source, code.replace("_ => Err(request.unknown())", "_ => Ok(Response::text(\"saved\"))"))
        .expect("saved");
    assert_eq!(said.find(|line| line.starts_with("Installed")).as_deref(), Some("Installed weather 0.1.0: active."));
    assert_eq!(daemon.get("/api/v1/weather/hello/you").body, b"saved");
    dev.kill().expect("it runs");
    dev.wait().expect("it ends");
}

/// What the page for operators is about: two versions of feeds by one publisher, one by another, and one unsigned.
const PACKAGES: &str = r#"set -e
mkdir made; tar -xzf "$PACKAGE" -C made; cp "$PACKAGE" unsigned.tar.gz; cp made/plugin.toml plugin.toml
for name in own other; do aman plugin keygen --key $name.key --no-password; done
pack() {
    sed -e "1i publisher = \"$(tail -n 1 $1.pub)\"" -e "s/^version = .*/version = \"$2\"/" -e "s/^kv = .*/kv = \"$3\"/" \
        plugin.toml >made/plugin.toml
    aman plugin pack made --key $1.key --output $4
}
pack own 0.1.0 2MiB feeds-0.1.0.tar.gz
pack own 0.2.0 4MiB feeds-0.2.0.tar.gz
pack other 0.3.0 2MiB somebody-elses.tar.gz"#;

/// Goal: what the page for operators shows is what an operator gets.
#[test]
fn operators() {
    let (daemon, folder) = (Daemon::start(), Folder::new("guide"));
    let guide = Guide { name: "daemon/docs/plugins.md", folder: folder.path(), daemon: &daemon };
    let made = guide.shell(PACKAGES).env("PACKAGE", package("feeds")).output().expect("sh starts");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    guide.follow();
}

/// Goal: from nothing to a signed plugin in JavaScript that serves a route, an event and a tool.
#[test]
fn javascript() {
    let (daemon, folder) = (Daemon::start(), Folder::new("guide"));
    Guide { name: "plugins/javascript.md", folder: folder.path(), daemon: &daemon }.follow();
}

/// Goal: from nothing to a signed plugin in Python that serves a route, an event and a tool.
#[test]
fn python() {
    let (daemon, folder) = (Daemon::start(), Folder::new("guide"));
    Guide { name: "plugins/python.md", folder: folder.path(), daemon: &daemon }.follow();
}
