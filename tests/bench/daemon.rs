//! The real daemon in a data folder of its own.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::Res;
use crate::load::{self, Load, NUMBER, Request};
use crate::proc::{Proc, file_bytes};

const TOKEN: &str = "bench-token-0123456789abcdef0123456789abcdef";
const BATCH: u64 = 1000;
/// The whole body of one event, in bytes.
pub const BODY: usize = 300;

/// A running daemon.
pub struct Aman {
    pub proc: Proc,
    pub addr: SocketAddr,
    pub home: PathBuf,
    /// From the start of the process to its ready line.
    pub start: Duration,
}

impl Aman {
    /// Starts it with no configuration but an address and a token.
    pub fn start(home: &Path) -> Res<Aman> {
        Aman::start_with(home, &[])
    }

    /// As [`Aman::start`], with some more variables.
    pub fn start_with(home: &Path, variables: &[(&str, &str)]) -> Res<Aman> {
        let own = std::env::var_os("AMAN_BENCH_BIN").map(PathBuf::from);
        let mut command = Command::new(own.unwrap_or_else(|| env!("CARGO_BIN_EXE_aman").into()));
        command.arg("serve");
        Aman::start_command(home, command, variables)
    }

    /// Starts this program in a role that serves as the daemon does.
    pub fn start_role(home: &Path, role: &[&str]) -> Res<Aman> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--role").args(role);
        Aman::start_command(home, command, &[])
    }

    fn start_command(home: &Path, mut command: Command, variables: &[(&str, &str)]) -> Res<Aman> {
        std::fs::create_dir_all(home)?;
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("AMAN_HOME", home).env("AMAN_HTTP_BIND", "127.0.0.1:0").env("AMAN_HTTP_TOKEN", TOKEN);
        command.envs(variables.iter().copied());
        let log = home.join("bench-stderr.log");
        command.stderr(std::fs::OpenOptions::new().create(true).append(true).open(&log)?);
        let begun = Instant::now();
        let mut proc = Proc::spawn(command)?;
        let ready = proc.line("aman ready http://");
        let start = begun.elapsed();
        let said = || std::fs::read_to_string(&log).unwrap_or_default();
        let addr = ready.map_err(|error| format!("{error}; it said: {}", said().trim()))?;
        Ok(Aman { proc, addr: addr.parse()?, home: home.to_owned(), start })
    }

    /// Ends it by SIGKILL and starts it again on the same folder.
    pub fn crash_and_start(mut self) -> Res<Aman> {
        self.proc.kill()?;
        Aman::start(&self.home)
    }

    pub fn pids(&self) -> Vec<u32> {
        vec![self.proc.pid()]
    }

    /// A closed loop of durable pushes that match nothing.
    pub fn push_load(&self, conns: usize) -> Load {
        Load { pids: self.pids(), ..Load::http(self.addr, push("/events/push", "bench.tick"), conns) }
    }

    /// Stores `count` events in batches, then returns the newest sequence's database size with the log written back.
    pub fn fill(&self, count: u64) -> Res<()> {
        let batches = count.div_ceil(BATCH);
        let load = Load {
            warmup: Duration::ZERO,
            duration: Duration::from_secs(600),
            limit: Some(batches),
            ..Load::http(self.addr, batch(BATCH), 2)
        };
        let outcome = load::run(load)?;
        if outcome.done == batches {
            return Ok(());
        }
        Err(format!("only {} of {batches} batches were stored", outcome.done).into())
    }

    /// The body of one answer, which is a success.
    pub fn call(&self, method: &str, path: &str, content_type: &str, body: &[u8]) -> Res<String> {
        let mut socket = TcpStream::connect(self.addr)?;
        let headers = format!("{}Content-Type: {content_type}\r\nContent-Length: {}\r\n", auth(), body.len());
        write!(socket, "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n{headers}\r\n")?;
        socket.write_all(body)?;
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer)?;
        let length = load::http_length(&answer)?.ok_or("an answer was cut off")?;
        let answer = String::from_utf8(answer[..length].to_vec())?;
        Ok(answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
    }

    /// As [`Aman::call`], to read something.
    pub fn get(&self, path: &str) -> Res<String> {
        self.call("GET", path, "text/plain", b"")
    }

    /// The database file of the data folder.
    pub fn database(&self) -> PathBuf {
        self.home.join("aman.db")
    }

    /// Bytes of the database and of its write-ahead log.
    pub fn bytes(&self) -> (u64, u64) {
        (file_bytes(&self.database()), file_bytes(&self.home.join("aman.db-wal")))
    }
}

/// `Authorization` and nothing else.
pub fn auth() -> String {
    format!("Authorization: Bearer {TOKEN}\r\n")
}

/// The body of one event of 300 bytes.
pub fn body(kind: &str) -> String {
    let empty =
        format!("{{\"source\":\"bench\",\"type\":\"{kind}\",\"payload\":{{\"number\":{NUMBER},\"text\":\"\"}}}}");
    let text = "x".repeat(BODY.saturating_sub(empty.len()));
    empty.replace("\"text\":\"\"", &format!("\"text\":\"{text}\""))
}

/// What of [`body`] ends up in the column `data`.
pub fn data(kind: &str) -> String {
    let body = body(kind);
    let from = body.find("{\"number\"").unwrap_or(0);
    body[from..body.len() - 1].to_owned()
}

/// A push of one event.
pub fn push(path: &str, kind: &str) -> Request {
    Request::http("POST", path, &format!("{}Content-Type: application/json\r\n", auth()), &body(kind))
}

fn batch(count: u64) -> Request {
    let event = format!(
        "{{\"specversion\":\"1.0\",\"source\":\"bench\",\"type\":\"bench.tick\",\"data\":{}}}",
        data("bench.tick").replace(NUMBER, "1234567890")
    );
    let body = format!("[{}]", vec![event; usize::try_from(count).unwrap_or(0)].join(","));
    let headers = format!("{}Content-Type: application/cloudevents-batch+json\r\n", auth());
    Request::http("POST", "/events/push", &headers, &body)
}

/// Reads something.
pub fn get(path: &str) -> Request {
    Request::http("GET", path, &auth(), "")
}

/// Opens a stream; `since` resumes after that sequence.
pub fn stream(since: Option<u64>) -> Request {
    let resume = since.map_or_else(String::new, |since| format!("Last-Event-ID: {since}\r\n"));
    Request::http("GET", "/events/stream", &format!("{}Accept: text/event-stream\r\n{resume}", auth()), "")
}
