//! MQTT with a real broker (mosquitto): messages as events, events as messages, and nothing lost when one side is away.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::harness::{Daemon, Folder, signal, wait};
use crate::peer::unpacked;

fn tool(name: &str) -> Command {
    let (root, libraries) = unpacked("mosquitto");
    let mut command = Command::new(root.join("usr").join(name));
    command.env("LD_LIBRARY_PATH", libraries).stdin(Stdio::null());
    command
}

/// A broker that keeps what it has over a restart.
struct Broker {
    folder: Folder,
    port: String,
    child: Option<Child>,
}

impl Broker {
    fn start() -> Broker {
        Broker::with("allow_anonymous true\n")
    }

    /// A broker with these further lines in its configuration.
    fn with(lines: &str) -> Broker {
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = free.local_addr().expect("an address").port().to_string();
        drop(free);
        let folder = Folder::new("broker");
        let place = folder.path().display();
        let text =
            format!("listener {port} 127.0.0.1\n{lines}persistence true\npersistence_location {place}/\nuser root\n");
        std::fs::write(folder.path().join("mosquitto.conf"), text).expect("a configuration");
        let mut broker = Broker { folder, port, child: None };
        broker.again();
        broker
    }

    fn again(&mut self) {
        let config = self.folder.path().join("mosquitto.conf");
        let log = std::fs::File::create(self.folder.path().join("log")).expect("a log");
        let child = tool("sbin/mosquitto").arg("-c").arg(config).stdout(Stdio::null()).stderr(log).spawn();
        self.child = Some(child.expect("scripts/setup test fetches mosquitto"));
        let listens = || std::net::TcpStream::connect(format!("127.0.0.1:{}", self.port)).ok();
        wait("the broker", listens, || std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default());
    }

    /// Ends it as its operator would: it writes down what it has.
    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            signal(child.id(), "TERM");
            child.wait().expect("it ends");
        }
    }

    fn publish(&self, topic: &str, payload: &str) {
        let mut command = tool("bin/mosquitto_pub");
        command.args(["-h", "127.0.0.1", "-p", &self.port, "-q", "1", "-t", topic, "-m", payload]);
        assert!(command.status().expect("mosquitto_pub starts").success());
    }

    /// A subscriber that the broker keeps messages for; its output.
    fn subscriber(&self, more: &[&str]) -> String {
        let mut command = tool("bin/mosquitto_sub");
        command.args(["-h", "127.0.0.1", "-p", &self.port, "-q", "1", "-t", "out/#", "-c", "-i", "listener"]);
        let output = command.args(more).output().expect("mosquitto_sub starts");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _dead = child.kill();
            let _ended = child.wait();
        }
    }
}

/// Goal: messages become events with their topic; what comes while the daemon or the broker is away comes later, in order.
#[test]
fn messages_become_events_and_none_is_lost() {
    let mut broker = Broker::start();
    let mut daemon = Daemon::configured(&format!(
        "[sources.home]\nkind = \"mqtt\"\nbroker = \"mqtt://127.0.0.1:{}\"\ntopics = [\"home/#\"]\n",
        broker.port
    ));
    let connected = |daemon: &Daemon| {
        let state = || daemon.get("/event-source/home").json["state"].clone();
        daemon.wait("the connection", || (state() == "connected").then_some(()));
    };
    let all = |daemon: &Daemon| -> Vec<Value> {
        daemon.recent("mqtt.message").iter().rev().map(|event| event["data"].clone()).collect()
    };
    connected(&daemon);
    // A subscription is in force a moment after the connection is.
    daemon.wait("the first message", || {
        broker.publish("home/kitchen/lamp", "{\"on\":true}");
        (!all(&daemon).is_empty()).then_some(())
    });
    let event = daemon.recent("mqtt.message").pop().expect("an event");
    assert_eq!((&event["subject"], &event["trust"]), (&json!("home/kitchen/lamp"), &json!("unknown")));
    assert_eq!((&event["source"], &event["data"]), (&json!("mqtt/home"), &json!({ "on": true })));
    let wanted: Vec<Value> = (0..5).map(|n| json!(n)).collect();
    let numbers = |daemon: &Daemon| all(daemon).into_iter().filter(Value::is_number).collect::<Vec<_>>();
    daemon.kill();
    (0..5).for_each(|n| broker.publish("home/count", &n.to_string()));
    broker.publish("elsewhere", "no");
    broker.stop();
    daemon.again();
    broker.again();
    connected(&daemon);
    daemon.wait("what came meanwhile", || (numbers(&daemon).len() >= wanted.len()).then_some(()));
    assert_eq!(numbers(&daemon), wanted);
    broker.publish("home/plain", "not json");
    daemon.wait("the text", || (all(&daemon).last() == Some(&json!("not json"))).then_some(()));
}

/// Goal: events become messages, also those that came while the broker was away.
#[test]
fn events_become_messages_also_later() {
    let mut broker = Broker::start();
    broker.subscriber(&["-E"]);
    let daemon = Daemon::configured(&format!(
        "[sinks.out]\nkind = \"mqtt\"\nbroker = \"127.0.0.1:{}\"\ntopic = \"out/{{type}}\"\ntypes = [\"lamp.*\"]\n",
        broker.port
    ));
    let heard = |id: &str| {
        let line = broker.subscriber(&["-C", "1", "-W", "15", "-F", "%t %p"]);
        let (topic, payload) = line.trim().split_once(' ').unwrap_or_default();
        let payload: Value = serde_json::from_str(payload).unwrap_or_default();
        assert_eq!((topic, &payload["id"]), ("out/lamp/on", &json!(id)), "{line} {}", daemon.log());
    };
    heard(&daemon.push("lamp.on", json!({ "n": 1 })));
    broker.stop();
    let id = daemon.push("lamp.on", json!({ "n": 2 }));
    daemon.settle();
    broker.again();
    let line = broker.subscriber(&["-C", "1", "-W", "15"]);
    assert!(line.contains(&id), "{line}");
}

/// Goal: over `mqtts://` both directions work with the certificates that are named, and nobody else is talked to: neither a
/// broker that nobody vouches for, nor by a client without its certificate, nor under another name.
#[test]
fn encrypted_connections_trust_whom_they_are_told_to() {
    let fixture = |name: &str| format!("{}/../tests/fixtures/tls/{name}", env!("CARGO_MANIFEST_DIR"));
    let (cert, key) = (fixture("cert.pem"), fixture("key.pem"));
    let broker = Broker::with(&format!(
        "allow_anonymous true\ncafile {cert}\ncertfile {cert}\nkeyfile {key}\nrequire_certificate true\n"
    ));
    let section = |id: &str, host: &str, more: &str| {
        let port = &broker.port;
        format!("[{id}]\nkind = \"mqtt\"\nbroker = \"mqtts://{host}:{port}\"\n{more}\n")
    };
    let (named, own) = (format!("ca = {cert:?}"), format!("cert = {cert:?}\nkey = {key:?}"));
    let whole = format!("{named}\n{own}");
    let topics = |more: &str| format!("topics = [\"out/#\"]\n{more}");
    let daemon = Daemon::configured(
        &[
            section("sources.good", "localhost", &topics(&whole)),
            section("sources.unvouched", "localhost", &topics(&own)),
            section("sources.unknown", "localhost", &topics(&named)),
            section("sources.renamed", "127.1", &topics(&whole)),
            section("sources.nofile", "localhost", &topics("ca = \"/nowhere/ca.pem\"")),
            section("sinks.out", "localhost", &format!("types = [\"lamp.*\"]\ntopic = \"out/{{type}}\"\n{whole}")),
        ]
        .concat(),
    );
    let shown = |id: &str| daemon.get(&format!("/event-source/{id}")).json;
    daemon.wait("the connection", || (shown("good")["state"] == "connected").then_some(()));
    let id = daemon.push("lamp.on", json!({ "n": 1 }));
    // A subscription is in force a moment after the connection is, so the first message may pass it by.
    let came = || {
        daemon.push("lamp.on", json!({ "n": 2 }));
        daemon.recent("mqtt.message").pop()
    };
    let event = daemon.wait("the message that the sink sent", came);
    assert_eq!((&event["source"], &event["subject"]), (&json!("mqtt/good"), &json!("out/lamp/on")), "{id}");
    for (id, why) in [
        ("unvouched", "UnknownIssuer"),
        ("unknown", "no connection"),
        ("renamed", "127.1"),
        ("nofile", "/nowhere/ca.pem cannot be used"),
    ] {
        daemon.wait(id, || {
            let source = shown(id);
            let told = source["last_error"].as_str().unwrap_or_default().to_owned();
            (source["health"] == "failing" && told.contains(why)).then_some(())
        });
    }
    assert!(daemon.recent("mqtt.message").iter().all(|event| event["source"] == "mqtt/good"));
}

/// Goal: other topics are listened to without a restart, and no message of the others is lost or told twice meanwhile; a
/// topic that is not listened to any more is not told of, though the broker remembers it.
#[test]
fn topics_change_while_messages_come() {
    let broker = Broker::start();
    let folder = Folder::new("home");
    let write = |topics: &str| {
        let port = &broker.port;
        let text =
            format!("[sources.home]\nkind = \"mqtt\"\nbroker = \"mqtt://127.0.0.1:{port}\"\ntopics = [{topics}]\n");
        std::fs::write(folder.path().join("aman.toml"), text).expect("aman.toml");
    };
    write("\"home/#\"");
    let daemon = Daemon::start_in(folder.path());
    let subjects =
        || -> Vec<Value> { daemon.recent("mqtt.message").iter().rev().map(|event| event["subject"].clone()).collect() };
    daemon.wait("the first message", || {
        broker.publish("home/first", "1");
        (!subjects().is_empty()).then_some(())
    });
    for round in 0..3 {
        (0..5).for_each(|n| broker.publish(&format!("home/{round}/{n}"), "1"));
        write(["\"home/#\", \"garden/#\"", "\"home/#\""][round % 2]);
        let answer = daemon.post("/config/reload", &json!({}));
        assert_eq!(answer.json["changed"], json!(["sources.home"]), "{answer:?}");
    }
    let counted = || subjects().into_iter().filter(|subject| subject != "home/first").collect::<Vec<_>>();
    let wanted: Vec<Value> = (0..3).flat_map(|round| (0..5).map(move |n| json!(format!("home/{round}/{n}")))).collect();
    daemon.wait("all messages", || (counted().len() >= wanted.len()).then_some(()));
    daemon.wait("the new topic", || {
        broker.publish("garden/gate", "1");
        subjects().contains(&json!("garden/gate")).then_some(())
    });
    write("\"home/#\"");
    assert_eq!(daemon.post("/config/reload", &json!({})).status, 200);
    let before = subjects().iter().filter(|subject| **subject == "garden/gate").count();
    broker.publish("garden/gate", "2");
    broker.publish("home/last", "1");
    daemon.wait("the last message", || subjects().contains(&json!("home/last")).then_some(()));
    assert_eq!(subjects().iter().filter(|subject| **subject == "garden/gate").count(), before);
    let home =
        |subject: &Value| subject.as_str().is_some_and(|text| text.starts_with("home/")) && subject != "home/last";
    assert_eq!(counted().into_iter().filter(home).collect::<Vec<_>>(), wanted);
}
