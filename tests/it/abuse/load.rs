//! Connections that come, hang and go: what they held is given back.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

use super::{held, read_all, statuses};
use crate::harness::{Daemon, TOKEN};

/// Waits until the daemon holds about what it held before.
fn given_back(daemon: &Daemon, before: (i64, usize, u64)) {
    daemon.wait("connections and files to be given back", || {
        let (connections, files, _) = held(daemon);
        (connections <= before.0 && files <= before.1 + 4).then_some(())
    });
    let (_, _, memory) = held(daemon);
    assert!(memory < before.2 + (96 << 10), "{memory} KiB after {} KiB", before.2);
}

/// Goal: a client may vanish after any byte of its request; an event is then stored whole or not at all, and nothing
/// stays behind.
#[test]
fn clients_that_vanish_after_any_byte() {
    let daemon = Daemon::start();
    let body = r#"{"source":"s","type":"v.n","data":{"n":1}}"#;
    let request = format!(
        "POST /events/push HTTP/1.1\r\nhost: localhost\r\nx-aman-token: {TOKEN}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    daemon.push("warm.up", Value::Null);
    let before = held(&daemon);
    for sent in 0..=request.len() {
        let mut socket = daemon.connect();
        socket.write_all(&request.as_bytes()[..sent]).expect("sent");
    }
    given_back(&daemon, before);
    let stored = daemon.recent("v.n");
    assert!(stored.len() <= 1, "only the last one was whole");
    assert!(stored.iter().all(|event| event["data"]["n"] == 1));
    assert_eq!(daemon.get("/health").status, 200, "{}", daemon.log());
}

/// Goal: a flood of connections that say nothing or half a request keeps nobody else from being served, and what it held
/// is given back.
#[test]
fn floods_of_connections() {
    let daemon = Daemon::configured("[http]\nmax_connections = 600\n");
    let before = held(&daemon);
    let half = format!("POST /events/push HTTP/1.1\r\nhost: localhost\r\nx-aman-token: {TOKEN}\r\n");
    for _round in 0..3 {
        let flood: Vec<TcpStream> = (0..500)
            .map(|n| {
                let mut socket = daemon.connect();
                if n % 2 == 0 {
                    socket.write_all(half.as_bytes()).expect("sent");
                }
                socket
            })
            .collect();
        daemon.wait("all to be let in", || (held(&daemon).0 >= 500).then_some(()));
        daemon.push("flood.n", Value::Null);
        drop(flood);
        daemon.wait("the flood to be gone", || (held(&daemon).0 <= before.0).then_some(()));
    }
    given_back(&daemon, before);
    assert_eq!(daemon.recent("flood.n").len(), 3);
}

/// Goal: whoever floods on gets no more than the limit; the rest is let in once there is room.
#[test]
fn floods_beyond_the_limit() {
    let daemon = Daemon::configured("[http]\nmax_connections = 200\n");
    let (_, before, _) = held(&daemon);
    // Nobody can ask for a count while all places are taken: each connection is a file of the daemon.
    let files = || std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("it runs").count();
    let mut flood: Vec<TcpStream> = (0..250).map(|_| daemon.connect()).collect();
    daemon.wait("the limit", || (files() >= before + 195).then_some(()));
    let mut waiting = flood.pop().expect("one");
    waiting.write_all(super::LAST).expect("sent");
    waiting.set_read_timeout(Some(Duration::from_millis(500))).expect("a time limit");
    assert!(waiting.read(&mut [0; 1]).is_err(), "it waits for a place");
    assert!(files() <= before + 205, "{} after {before}", files());
    flood.drain(..100);
    assert_eq!(statuses(&read_all(&waiting)), [200]);
    daemon.push("flood.n", Value::Null);
}

/// Goal: answers that nobody reads are not gathered without end.
#[test]
fn answers_that_nobody_reads() {
    let daemon = Daemon::start();
    daemon.push("large.n", "x".repeat(500_000).into());
    let before = held(&daemon);
    let ask = format!("GET /events/recent HTTP/1.1\r\nhost: localhost\r\nx-aman-token: {TOKEN}\r\n\r\n");
    let mut deaf: Vec<TcpStream> = (0..20).map(|_| daemon.connect()).collect();
    for socket in &mut deaf {
        // 100 requests whose answers would take 50 MB on each connection.
        socket.write_all(ask.repeat(100).as_bytes()).expect("sent");
    }
    daemon.wait("the requests to arrive", || (held(&daemon).0 >= 20).then_some(()));
    for _ in 0..20 {
        assert_eq!(daemon.get("/health").status, 200);
    }
    assert!(held(&daemon).2 < before.2 + (128 << 10), "{:?} after {before:?}", held(&daemon));
    let mut last = daemon.connect();
    last.write_all(&[ask.repeat(100).as_bytes(), super::LAST].concat()).expect("sent");
    assert_eq!(statuses(&read_all(&last)), vec![200; 101], "who reads gets everything");
    drop((deaf, last));
    given_back(&daemon, before);
}
