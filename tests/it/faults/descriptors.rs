//! No more files can be opened, little memory.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{healthy, nothing_lost, run};
use crate::harness::{Daemon, TOKEN};

/// Seconds of processor time that a process has used.
fn cpu_s(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process is there");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
    let ticks = |n: usize| fields[n].parse::<f64>().expect("a number");
    (ticks(11) + ticks(12)) / 100.0
}

/// One request on a connection that stays open.
fn ask(stream: &mut TcpStream, method: &str, path: &str, body: &str) -> String {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {TOKEN}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).expect("the connection is open");
    let (mut answer, mut part) = (Vec::new(), [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&answer).into_owned();
        if let Some((head, rest)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if rest.len() >= length.and_then(|n| n.trim().parse().ok()).unwrap_or(0) {
                return text;
            }
        }
        let read = stream.read(&mut part).expect("an answer comes");
        assert!(read > 0, "the connection ended: {text}");
        answer.extend_from_slice(&part[..read]);
    }
}

/// Goal: out of file descriptors, those who are connected are served, the daemon does not spin, says it once in the
/// log and in its health; once connections end the others get in.
#[test]
fn out_of_descriptors() {
    let daemon = Daemon::start();
    let ids = [daemon.push("a.b", json!(1))];
    let mut kept = daemon.connect();
    assert!(ask(&mut kept, "GET", "/events/recent", "").starts_with("HTTP/1.1 200"));
    let open = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("its files").count();
    run("prlimit", &["--pid", &daemon.pid().to_string(), &format!("--nofile={0}:{0}", open + 10)]);
    let crowd: Vec<TcpStream> = (0..60).map(|_| daemon.connect()).collect();
    daemon.wait("the log to say so", || daemon.log().contains("Connections cannot be accepted").then_some(()));
    let (before, begun) = (cpu_s(daemon.pid()), Instant::now());
    let push = json!({ "source": "test", "type": "a.b" }).to_string();
    while begun.elapsed() < Duration::from_secs(2) {
        assert!(ask(&mut kept, "POST", "/events/push", &push).starts_with("HTTP/1.1 202"));
        let health = ask(&mut kept, "GET", "/health", "");
        assert!(health.contains("too many files are open") && health.contains("degraded"), "{health}");
        std::thread::sleep(Duration::from_millis(100));
    }
    let used = cpu_s(daemon.pid()) - before;
    assert!(used < begun.elapsed().as_secs_f64() / 2.0, "{used} s of processor time in {:?}", begun.elapsed());
    assert_eq!(daemon.log().matches("Connections cannot be accepted").count(), 1, "{}", daemon.log());
    drop(crowd);
    healthy(&daemon);
    nothing_lost(&daemon, &ids);
}

/// Goal: a process that may open few files keeps some of them back from connections, and says so.
#[test]
fn few_descriptors_from_the_start() {
    let (home, limit) = (crate::harness::Folder::new("few"), "--nofile=96:96");
    let pid = std::process::id().to_string();
    // Only what this test starts next lives with the limit; its own few connections do as well.
    run("prlimit", &["--pid", &pid, limit]);
    let daemon = Daemon::start_in(home.path());
    assert!(daemon.log().contains("Fewer connections than http.max_connections"), "{}", daemon.log());
    let crowd: Vec<TcpStream> = (0..60).map(|_| daemon.connect()).collect();
    assert!(!daemon.log().contains("cannot be accepted"), "{}", daemon.log());
    drop(crowd);
    let id = daemon.push("a.b", json!(1));
    nothing_lost(&daemon, &[id]);
}

/// Goal: a daemon that gets no more memory may end, and loses nothing that it acknowledged.
#[test]
fn little_memory() {
    let mut daemon = Daemon::start();
    let pid = daemon.pid().to_string();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let kib = status.lines().find_map(|line| line.strip_prefix("VmSize:")).expect("its size");
    let kib: u64 = kib.trim().trim_end_matches(" kB").parse().expect("a number");
    run("prlimit", &["--pid", &pid, &format!("--as={}", (kib << 10) + (24 << 20))]);
    let big = json!({ "source": "test", "type": "a.b", "data": "x".repeat(900_000) }).to_string();
    let headers = [("authorization", "Bearer test-token-0123456789"), ("content-type", "application/json")];
    let request = crate::harness::request("POST", "/events/push", &headers, big.as_bytes());
    let acked: Vec<String> = std::thread::scope(|scope| {
        let pushers: Vec<_> = (0..12)
            .map(|_| scope.spawn(|| (0..5).filter_map(|_| daemon.raw(&request).ok()).collect::<Vec<_>>()))
            .collect();
        let answers = pushers.into_iter().flat_map(|pusher| pusher.join().expect("pushed"));
        answers.filter(|answer| answer.status == 202).filter_map(|a| a.json["id"].as_str().map(str::to_owned)).collect()
    });
    daemon.kill();
    assert!(!acked.is_empty(), "none of the pushes was taken, so nothing could be lost: {}", daemon.log());
    daemon.again();
    nothing_lost(&daemon, &acked);
}
