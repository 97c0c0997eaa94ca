//! Clients that other people wrote, against the real daemon: the CloudEvents SDK and the Standard Webhooks library of
//! PyPI, and the EventSource of npm. `scripts/setup test` installs them; `tests/clients` drives them.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use serde_json::{Value, json};

use crate::contract::{client, file};
use crate::harness::{Daemon, Folder, PATIENCE, TOKEN, free_address};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// A client that runs, and the lines that it writes.
pub struct Client {
    child: Child,
    lines: Receiver<String>,
}

impl Client {
    /// Starts a program of `target/tools/clients` with a script of `tests/clients` and its arguments.
    pub fn start(program: &str, args: &[&str]) -> Client {
        let mut child = Command::new(client(program))
            .arg(file(args[0]))
            .args(&args[1..])
            .env("AMAN_TOOLS", client("").join("../"))
            .stdout(Stdio::piped())
            .spawn()
            .expect("the client starts");
        let (sender, lines) = channel();
        let output = BufReader::new(child.stdout.take().expect("piped"));
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Client { child, lines }
    }

    /// The next line.
    pub fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("the client writes a line")
    }

    /// The next line, if there is one by now.
    pub fn line_now(&self) -> Option<String> {
        self.lines.try_recv().ok()
    }

    /// The next line that begins with `word`; others are passed over.
    fn line_of(&self, word: &str) -> String {
        loop {
            let line = self.line();
            if line.split(' ').next() == Some(word) {
                return line;
            }
        }
    }

    /// Everything that is left, once it has ended well.
    fn ended(mut self) -> Vec<String> {
        let rest = self.lines.iter().collect();
        let status = self.child.wait().expect("waiting works");
        assert!(status.success(), "{status}: {rest:?}");
        rest
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _dead = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// Goal: what the SDK of CloudEvents sends, in binary, structured and batch form, is stored as it was meant and reads
/// back with the SDK as the same event.
#[test]
fn the_cloudevents_sdk() {
    let daemon = Daemon::start();
    let sdk = Client::start("python", &["cloudevents_push.py", &format!("http://{}", daemon.address), TOKEN]);
    let forms: Vec<String> = sdk.ended().iter().map(|line| line.split(' ').next().unwrap_or_default().into()).collect();
    let wanted = ["binary", "binary-text", "binary-bytes", "structured", "structured-bytes", "batch", "batch", "batch"];
    assert_eq!(forms, wanted);
    assert_eq!(daemon.recent("sdk.*").len(), wanted.len());
}

/// Goal: the library of Standard Webhooks signs what our hook takes, and what it must refuse is refused; its published
/// example holds.
#[test]
fn the_standard_webhooks_library_signs_for_a_hook() {
    Client::start("python", &["webhooks.py", "vector"]).ended();
    let daemon = Daemon::configured(&format!(
        "[sources.in]\nkind = \"webhook\"\nverify = {{ scheme = \"standard\", secret = \"{SECRET}\" }}\n"
    ));
    let url = format!("http://{}/hooks/in", daemon.address);
    let answers = Client::start("python", &["webhooks.py", "send", &url, SECRET]).ended();
    let shown: Vec<(String, String, Value)> = answers
        .iter()
        .map(|line| {
            let mut parts = line.splitn(3, ' ').map(str::to_owned);
            let mut next = || parts.next().expect("three parts");
            (next(), next(), serde_json::from_str(&next()).expect("JSON"))
        })
        .collect();
    let statuses: Vec<String> = shown.iter().map(|(what, status, _)| format!("{what} {status}")).collect();
    assert_eq!(statuses, ["good 202", "again 202", "old 401", "early 401", "tampered 401", "stranger 401"]);
    assert_eq!((&shown[0].2["deduplicated"], &shown[1].2["deduplicated"]), (&json!(false), &json!(true)));
    let events = daemon.recent("webhook.**");
    assert_eq!((events.len(), &events[0]["data"]["text"]), (1, &json!("ü")));
}

/// Goal: the library verifies what our sink sends.
#[test]
fn the_standard_webhooks_library_verifies_a_sink() {
    let receiver = Client::start("python", &["webhooks.py", "receive", SECRET]);
    let port = receiver.line();
    let daemon = Daemon::configured(&format!(
        "[http_client]\nallow_private = true\n[sinks.out]\nkind = \"webhook\"\ntypes = [\"order.*\"]\n\
         url = \"http://127.0.0.1:{port}/in\"\nsecret = [\"{SECRET}\"]\n"
    ));
    let id = daemon.push("order.paid", json!({ "text": "ü", "n": 1 }));
    let sent: Value = serde_json::from_str(&receiver.line()).expect("a CloudEvent");
    assert_eq!((&sent["id"], &sent["data"]), (&json!(id), &json!({ "text": "ü", "n": 1 })));
    receiver.ended();
}

/// Goal: npm's EventSource connects with a token, gets events by their names, comes back by itself after the daemon was
/// killed, and goes on where it was: nothing twice, nothing left out.
#[test]
fn npms_eventsource_resumes_after_a_restart() {
    let bind = free_address();
    let home = Folder::new("home");
    let start = || Daemon::try_start_in(home.path(), &[("AMAN_HTTP_BIND", &bind)]).expect("it starts");
    let mut daemon = start();
    let url = format!("http://{bind}/events/stream?types=a.*");
    let source = Client::start("node", &["eventsource.mjs", &url, TOKEN, "a.one", "a.two"]);
    assert_eq!(source.line(), "open");
    let (mut wanted, mut got) = (Vec::new(), Vec::new());
    let mut push = |daemon: &Daemon, kind: &str, n: u64| {
        daemon.push("b.other", json!(n));
        wanted.push(format!("{kind} {}", daemon.push(kind, json!({ "n": n }))));
    };
    let mut take = |kind: &str| {
        let line = source.line_of(kind);
        let mut parts = line.splitn(3, ' ').skip(1);
        let (sequence, data) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let event: Value = serde_json::from_str(data).expect("JSON");
        assert_eq!(event["amansequence"], *sequence, "{line}");
        assert!(event["data"]["n"].is_u64(), "with the token there is data: {line}");
        got.push(format!("{kind} {}", event["id"].as_str().unwrap_or_default()));
    };
    push(&daemon, "a.one", 1);
    push(&daemon, "a.two", 2);
    take("a.one");
    take("a.two");
    daemon.kill();
    assert_eq!(source.line(), "error ");
    daemon = start();
    for n in 3..6 {
        push(&daemon, "a.one", n);
    }
    for _ in 3..6 {
        take("a.one");
    }
    push(&daemon, "a.two", 6);
    take("a.two");
    drop(daemon);
    assert_eq!(got, wanted);
}

/// Goal: EventSource is told of a wrong token, and without one it gets what everybody may see.
#[test]
fn npms_eventsource_without_the_right_token() {
    let daemon = Daemon::start();
    let url = format!("http://{}/events/stream", daemon.address);
    let wrong = Client::start("node", &["eventsource.mjs", &url, "wrong"]);
    assert_eq!(wrong.line(), "error 401");
    wrong.ended();
    let public = Client::start("node", &["eventsource.mjs", &url, "", "a.b"]);
    assert_eq!(public.line(), "open");
    daemon.push("a.b", json!({ "secret": 1 }));
    let line = public.line();
    assert!(line.starts_with("a.b 1 {") && !line.contains("secret"), "{line}");
}
