//! What no client would send: bytes that parsers disagree about, requests that never end, connections by the hundred. Each
//! row is what goes in and all that comes out; every row has a good request behind it, so its answer tells the
//! connection's fate, and a request that was smuggled in would answer too.

mod load;
mod rows;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{Answer, Daemon, TOKEN};

/// The good request behind each row, and the last one of its connection.
const LAST: &[u8] = b"GET /health/live HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
/// Longer than each limit of time that the daemon has for a request.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is sent, what is answered: `200` at the end is the good request behind it, without it the connection was closed.
struct Row {
    name: &'static str,
    bytes: Vec<u8>,
    statuses: &'static [u16],
}

fn row(name: &'static str, bytes: impl AsRef<[u8]>, statuses: &'static [u16]) -> Row {
    Row { name, bytes: bytes.as_ref().to_vec(), statuses }
}

/// The statuses of all answers in `bytes`, and whether there is anything else in them.
fn statuses(mut bytes: &[u8]) -> Vec<u16> {
    let mut all = Vec::new();
    while let Some(answer) = Answer::read(bytes) {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").map_or(bytes.len(), |at| at + 4);
        let length = answer.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        all.push(answer.status);
        // The body of an answer to HEAD is only promised.
        let body = if bytes[end..].starts_with(b"HTTP/1.1 ") { 0 } else { length };
        bytes = bytes.get(end + body..).unwrap_or_default();
    }
    assert_eq!(String::from_utf8_lossy(bytes), "", "after {all:?}");
    all
}

/// Everything that a connection answers until it is closed.
fn read_all(mut socket: &TcpStream) -> Vec<u8> {
    socket.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    let (mut all, mut some) = (Vec::new(), [0; 16384]);
    loop {
        match socket.read(&mut some) {
            Ok(0) => return all,
            Ok(n) => all.extend_from_slice(&some[..n]),
            // Closed with bytes of ours unread.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return all,
            Err(error) => panic!("the connection is neither answered nor closed: {error}"),
        }
    }
}

/// Writes `bytes` and the good request, and reads all answers.
fn talk(daemon: &Daemon, bytes: &[u8]) -> Vec<u16> {
    let mut socket = daemon.connect();
    // Whoever is refused early need not be read to the end.
    let _cut_off = socket.write_all(&[bytes, LAST].concat());
    statuses(&read_all(&socket))
}

/// What the daemon holds: connections besides the one that asks, file descriptors, and memory in KiB.
fn held(daemon: &Daemon) -> (i64, usize, u64) {
    let connections = daemon.get("/debug/metrics").json["http"]["connections"].as_i64().expect("a count") - 1;
    let files = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("it runs").count();
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("it runs");
    let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().split(' ').next()?.parse().ok());
    (connections, files, memory.expect("its memory"))
}

/// Goal: every row of the corpus is answered as it says, and nothing that hid in one was done.
#[test]
fn every_row_is_answered_as_it_says() {
    let daemon = Daemon::start();
    let mut wrong = Vec::new();
    let all = rows::all();
    for row in &all {
        let got = talk(&daemon, &row.bytes);
        if got != row.statuses {
            wrong.push(format!("{}: {got:?}, not {:?}", row.name, row.statuses));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), all.len(), wrong.join("\n"));
    assert!(all.len() > 100);
    assert!(daemon.recent("smuggled.**").is_empty());
    let panics = daemon.get("/debug/metrics").json["http"]["panics"].clone();
    assert_eq!((panics, daemon.get("/health").status), (json!(0), 200), "{}", daemon.log());
}

/// Goal: wherever parsers could disagree about where a request ends, no second one comes out of the first.
#[test]
fn nothing_is_smuggled() {
    let daemon = Daemon::start();
    for (name, bytes) in rows::hiding() {
        let got = talk(&daemon, &bytes);
        assert!(got.len() == 1 || got[1..] == [200], "{name}: {got:?}");
    }
    assert!(daemon.recent("smuggled.**").is_empty());
}

/// Goal: requests in a row on one connection are answered in their order, each for itself, up to one that is none.
#[test]
fn pipelined_requests_are_answered_in_order() {
    let daemon = Daemon::start();
    let ask = |n: u32| format!("GET /events/dump/n{n} HTTP/1.1\r\nhost: localhost\r\nx-aman-token: {TOKEN}\r\n\r\n");
    let push = |n: u32| {
        let body = format!("{{\"source\":\"s\",\"type\":\"p.n\",\"id\":\"n{n}\"}}");
        let length = body.len();
        format!(
            "POST /events/push HTTP/1.1\r\nhost: localhost\r\nx-aman-token: {TOKEN}\r\ncontent-length: {length}\r\n\r\n{body}"
        )
    };
    // Each event is there for the request behind its push, and not for the one before it.
    let text: String = (0..50).map(|n| ask(n) + &push(n) + &ask(n)).collect();
    let got = talk(&daemon, text.as_bytes());
    let want: Vec<u16> = (0..50).flat_map(|_| [404, 202, 200]).chain([200]).collect();
    assert_eq!(got, want);
    let cut = format!("{}{}garbage\r\n\r\n{}", ask(0), ask(1), push(99));
    assert_eq!(talk(&daemon, cut.as_bytes()), [200, 200, 400]);
    assert_eq!(daemon.get("/events/dump/n99").status, 404, "what stands behind garbage is not done");
}

/// Goal: whoever sends too slowly, or nothing, is told so where HTTP has an answer for it, and loses the connection.
#[test]
fn slow_senders_are_cut_off() {
    let daemon = Daemon::start();
    let push =
        format!("POST /events/push HTTP/1.1\r\nhost: localhost\r\nx-aman-token: {TOKEN}\r\ncontent-length: 999\r\n");
    let slow = |first: &str, drip: &'static [u8]| {
        let mut socket = daemon.connect();
        socket.write_all(first.as_bytes()).expect("sent");
        let begun = Instant::now();
        let mut other = socket.try_clone().expect("a second handle");
        let dripping = std::thread::spawn(move || {
            while !drip.is_empty() && begun.elapsed() < PATIENCE && other.write_all(drip).is_ok() {
                std::thread::sleep(Duration::from_millis(250));
            }
        });
        let got = statuses(&read_all(&socket));
        let took = begun.elapsed();
        let _closed = socket.shutdown(Shutdown::Both);
        dripping.join().expect("no panic");
        (got, took)
    };
    std::thread::scope(|scope| {
        let cases = [
            ("silence", String::new(), &b""[..], &[][..]),
            ("a slow head", "GET /health/live HTTP/1.1\r\n".to_owned(), b"x: y\r\n", &[408]),
            ("half a head", "GET /health".to_owned(), b"", &[408]),
            ("a slow body", format!("{push}\r\n"), b"x", &[408]),
            ("no body", format!("{push}\r\n"), b"", &[408]),
        ];
        for (name, first, drip, want) in cases {
            let slow = &slow;
            scope.spawn(move || {
                let (got, took) = slow(&first, drip);
                // HTTP lets a server close without an answer where no request had come whole.
                assert!(got == want || got.is_empty() && !name.ends_with("body"), "{name}: {got:?}");
                assert!(took > Duration::from_secs(5) && took < PATIENCE, "{name}: {took:?}");
            });
        }
        let begun = Instant::now();
        assert_eq!(daemon.get("/health").status, 200);
        assert!(begun.elapsed() < Duration::from_secs(5), "others do not wait for the slow");
    });
    assert!(daemon.recent("**").is_empty());
}
