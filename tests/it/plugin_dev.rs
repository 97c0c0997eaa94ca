//! `aman plugin dev` over a folder whose build command takes a component that is there: each save is a new version.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};

use crate::harness::{self, Daemon, Folder, PATIENCE};

const ONE: &[u8] = include_bytes!("../fixtures/guests/one.wasm");
const TWO: &[u8] = include_bytes!("../fixtures/guests/two.wasm");
const MANIFEST: &str = "name = \"quick\"\nversion = \"0.1.0\"\ndescription = \"Quick\"\ninterface = \"0.1\"\n\
    component = \"plugin.wasm\"\n[[routes]]\nmethod = \"GET\"\npath = \"/t\"\n[permissions]\npublish = [\"test.**\"]\n";

/// A running `aman plugin dev`.
struct Dev {
    child: Child,
    said: Receiver<String>,
}

impl Dev {
    fn start(daemon: &Daemon, folder: &Path) -> Dev {
        let mut command = harness::command(daemon.home());
        command.args(["plugin", "dev", "--yes"]).arg(folder).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("aman starts");
        let (send, said) = channel();
        let out: Box<dyn std::io::Read + Send> = Box::new(child.stdout.take().expect("piped"));
        let err: Box<dyn std::io::Read + Send> = Box::new(child.stderr.take().expect("piped"));
        for pipe in [out, err] {
            let send = send.clone();
            std::thread::spawn(move || {
                let lines = BufReader::new(pipe).lines().map_while(Result::ok);
                lines.take_while(|line| send.send(line.clone()).is_ok()).count()
            });
        }
        Dev { child, said }
    }

    /// Waits until it says a line that holds `words`.
    fn says(&self, words: &str) {
        let mut before = Vec::new();
        loop {
            match self.said.recv_timeout(PATIENCE) {
                Ok(line) if line.contains(words) => return,
                Ok(line) => before.push(line),
                Err(_) => panic!("it never said {words:?}, but {before:?}"),
            }
        }
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _dead = self.child.kill();
        let _ended = self.child.wait();
    }
}

fn served(daemon: &Daemon) -> String {
    String::from_utf8_lossy(&daemon.get("/api/v1/t").body).into_owned()
}

/// Goal: each save builds and puts a new version in force, also where every change must be confirmed; what does not build
/// or load leaves the one before; what it may do besides is told; files in new folders are seen.
#[test]
fn each_save_is_a_new_version() {
    let daemon = Daemon::configured("http.strict_confirm = true\n");
    let folder = Folder::new("dev");
    let save = |file: &str, text: &str| fs::write(folder.path().join(file), text).expect("saved");
    let build = |command: &str| save("package.json", &format!("{{\"scripts\":{{\"build\":\"{command}\"}}}}"));
    fs::write(folder.path().join("one.wasm"), ONE).expect("written");
    fs::write(folder.path().join("two.wasm"), TWO).expect("written");
    save("plugin.toml", MANIFEST);
    build("cp one.wasm plugin.wasm");
    let (code, _, err) = daemon.cli(&["plugin", "dev", folder.path().to_str().expect("UTF-8")]);
    assert!(code == 2 && err.contains("Install quick at each save") && err.contains("--yes"), "{code} {err}");
    assert_eq!(daemon.get("/plugins").items().len(), 0, "nothing without a word");

    let dev = Dev::start(&daemon, folder.path());
    dev.says("Installed quick 0.1.0: active.");
    dev.says("it may now publish events of type test.**");
    assert_eq!(served(&daemon), "one");
    build("cp two.wasm plugin.wasm");
    dev.says("Installed quick 0.1.0: active.");
    assert_eq!(served(&daemon), "two");
    build("echo broken >&2; exit 1");
    dev.says("broken");
    dev.says("npm failed");
    save("plugin.toml", "name = 1");
    dev.says("plugin.toml");
    assert_eq!(served(&daemon), "two");
    build("cp two.wasm plugin.wasm");
    save("plugin.toml", &MANIFEST.replace("[permissions]", "[permissions]\nkv = \"1MiB\"").replace("0.1.0", "0.2.0"));
    dev.says("Installed quick 0.2.0: active.");
    dev.says("it may now keep keys and values of its own");
    fs::create_dir(folder.path().join("ui")).expect("a folder");
    // Later than what follows the hint of the folder itself.
    std::thread::sleep(std::time::Duration::from_secs(1));
    save("ui/index.html", "<h1>Quick</h1>");
    dev.says("Installed quick 0.2.0: active.");
    assert_eq!(daemon.get("/plugin/quick").json["state"], "active");
}
