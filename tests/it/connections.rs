//! Connections whose clients do what is rare but legal, or send more than there is memory for.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use serde_json::json;

use super::harness::{Answer, Daemon, Folder, Frame, Stream, TOKEN, request, signal};

/// Sends these bytes, closes the sending half, and reads what is answered.
fn half_closed(daemon: &Daemon, bytes: &[u8]) -> Answer {
    let mut socket = daemon.connect();
    socket.write_all(bytes).expect("sent");
    socket.shutdown(Shutdown::Write).expect("half closed");
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).expect("an answer");
    Answer::read(&answer).unwrap_or_else(|| panic!("no answer: {:?}", String::from_utf8_lossy(&answer)))
}

fn authorized(method: &str, path: &str, body: &[u8]) -> Vec<u8> {
    let token = format!("Bearer {TOKEN}");
    request(method, path, &[("authorization", &token), ("content-type", "application/json")], body)
}

fn open_streams(daemon: &Daemon) -> i64 {
    daemon.get("/debug/metrics").json["http"]["streams"].as_i64().expect("a count")
}

/// Goal: a client that closes its sending half after its request is answered each time, and what it pushed is stored.
#[test]
fn half_closing_clients_are_answered() {
    let daemon = Daemon::start();
    for round in 0..30 {
        let body = format!("{{\"source\":\"half\",\"type\":\"a.b\",\"data\":{round}}}");
        assert_eq!(half_closed(&daemon, &authorized("POST", "/events/push", body.as_bytes())).status, 202, "{round}");
        assert_eq!(half_closed(&daemon, &authorized("GET", "/health/live", b"")).status, 200, "{round}");
    }
    assert_eq!(daemon.recent("a.b").len(), 30);
    let cut_off = authorized("POST", "/events/push", b"{\"source\":\"half\",\"type\":\"a.b\"}");
    let answer = half_closed(&daemon, &cut_off[..cut_off.len() - 3]);
    assert_eq!((answer.status, answer.fields()), (400, vec!["body"]));
}

/// Goal: a half-closed stream goes on; a client that is gone is noticed soon, though nothing is sent to it.
#[test]
fn streams_whose_clients_send_no_more() {
    let daemon = Daemon::start();
    let mut half = Stream::open(&daemon, "/events/stream", &[("x-aman-token", TOKEN)]);
    half.shutdown_sending();
    // Longer than it takes to find out whether a client is gone.
    let heartbeats = (0..).map(|_| half.line().expect("goes on")).filter(|line| line == ": ").take(2).count();
    assert_eq!(heartbeats, 2);
    daemon.push("a.b", json!(1));
    assert!(matches!(half.next(), Some(Frame { data, .. }) if data["data"] == 1));
    let gone: Vec<Stream> = (0..20).map(|_| Stream::open(&daemon, "/events/stream", &[])).collect();
    assert_eq!(open_streams(&daemon), 21);
    let began = Instant::now();
    drop(gone);
    daemon.wait("the streams to end", || (open_streams(&daemon) == 1).then_some(()));
    assert!(began.elapsed() < Duration::from_secs(12), "before a heartbeat would find it: {:?}", began.elapsed());
}

/// A connection that sent all but the end of a large body.
fn half_sent(daemon: &Daemon, path: &str, token: Option<&str>) -> TcpStream {
    let mut socket = daemon.connect();
    let headers: Vec<(&str, &str)> = token.iter().map(|token| ("x-aman-token", *token)).collect();
    let bytes = request("POST", path, &headers, &vec![b' '; 1_000_000]);
    // What is refused early may not be taken as a whole.
    let _taken = socket.write_all(&bytes[..bytes.len() - 10]);
    socket
}

/// The most memory that the daemon had, and what it has, in MiB.
fn memory(daemon: &Daemon) -> (u64, u64) {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("its status");
    let read = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("kB") / 1024
    };
    (read("VmHWM:"), read("VmRSS:"))
}

/// Goal: bodies that are sent by halves take a bounded share of memory, whoever sends them: the rest is told to come
/// again, small requests get in all the while, and the memory comes back.
#[test]
fn half_sent_bodies_are_bounded() {
    let daemon = Daemon::configured(
        "[sources.door]\nkind = \"webhook\"\nverify = { scheme = \"gitlab\", secret = \"0123456789abcdef\" }\n\
         [sources.known]\nkind = \"webhook\"\n",
    );
    for round in 0..3 {
        let mut held: Vec<TcpStream> = (0..200).map(|_| half_sent(&daemon, "/events/push", Some(TOKEN))).collect();
        daemon.push("a.b", json!("small"));
        let refused = held.iter_mut().find_map(|socket| {
            socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a time limit");
            let mut answer = Vec::new();
            let _timed_out = socket.read_to_end(&mut answer);
            Answer::read(&answer)
        });
        let refused = refused.expect("some are refused");
        assert_eq!((refused.status, refused.code()), (503, "overloaded"), "{round}");
        assert!(refused.header("retry-after").is_some());
    }
    // Strangers at a webhook fill only what strangers have.
    let _strangers: Vec<TcpStream> = (0..60).map(|_| half_sent(&daemon, "/hooks/door", None)).collect();
    let whole = json!({ "source": "s", "type": "a.b", "data": "x".repeat(900_000) });
    daemon.wait("room for a large body", || (daemon.post("/events/push", &whole).status == 202).then_some(()));
    // Nor do they keep a sender out whose token the hook asks for.
    let called = daemon.send("POST", "/hooks/known", &[("x-aman-token", TOKEN)], Some(&whole));
    assert_eq!(called.status, 202, "{called:?}");
    let (most, _) = memory(&daemon);
    assert!(most < 300, "{most} MiB at the most");
    daemon.wait("the memory to come back", || (memory(&daemon).1 < 150).then_some(()));
}

/// Goal: signals that mean other programs do no harm, and are told; a data folder that cannot be written is named.
#[test]
fn signals_and_folders() {
    let mut daemon = Daemon::start();
    for name in ["USR1", "USR2"] {
        signal(daemon.pid(), name);
        daemon.wait("the log to tell", || daemon.log().contains(&format!("SIG{name}")).then_some(()));
    }
    assert_eq!(daemon.get("/health/live").status, 200);
    assert_eq!(daemon.terminate(), Some(0));
    let home = Folder::new("no-lock");
    std::fs::create_dir(home.path().join("aman.lock")).expect("what cannot be a lock");
    let log = Daemon::try_start_in(home.path(), &[]).err().expect("no daemon");
    let path = home.path().join("aman.lock").display().to_string();
    assert!(log.contains(&path) && log.contains("writable"), "{log}");
}
