//! The load generator: K kept-alive connections, each with one request under way.
//!
//! It shares two cores with the server it measures, so a request is a byte string whose number is patched in place, and an
//! answer is looked at just enough to know its end and its status.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::Res;
use crate::proc::cpu_us;
use crate::stats::percentile;

/// Digits that stand where a request is numbered.
pub const NUMBER: &str = "1000000000";
/// Stands for the connection in a preamble or request; each connection puts its own four digits there.
pub const CONNECTION: &str = "@@@@";

/// How the bytes of an answer are read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Http,
    /// A NATS message on the reply subject of the connection.
    Nats,
    /// A bulk string, as `XADD` answers.
    Redis,
}

/// A request as bytes; where it holds [`NUMBER`], each copy gets its own number.
#[derive(Clone)]
pub struct Request {
    bytes: Vec<u8>,
    number_at: Option<usize>,
}

impl Request {
    pub fn new(bytes: Vec<u8>) -> Request {
        let number_at = bytes.windows(NUMBER.len()).position(|w| w == NUMBER.as_bytes());
        Request { bytes, number_at }
    }

    /// An HTTP/1.1 request with the given extra header lines (each ended by CRLF).
    pub fn http(method: &str, path: &str, headers: &str, body: &str) -> Request {
        let length = if method == "GET" { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        Request::new(format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}{length}\r\n{body}").into_bytes())
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn set_connection(&mut self, connection: u64) {
        self.bytes = named(&self.bytes, connection);
    }

    fn set_number(&mut self, number: u64) {
        let Some(at) = self.number_at else { return };
        let mut rest = number;
        // The leading 1 stays, so that the number has ten digits and is no octal look-alike.
        for digit in self.bytes[at + 1..at + NUMBER.len()].iter_mut().rev() {
            *digit = b'0' + u8::try_from(rest % 10).unwrap_or(0);
            rest /= 10;
        }
    }
}

fn named(bytes: &[u8], connection: u64) -> Vec<u8> {
    let mut named = bytes.to_vec();
    let places = bytes.windows(CONNECTION.len()).enumerate().filter(|(_, w)| *w == CONNECTION.as_bytes());
    for (at, _) in places {
        named[at..at + CONNECTION.len()].copy_from_slice(format!("{:04}", connection % 10_000).as_bytes());
    }
    named
}

/// What to send, how fast and for how long.
#[derive(Clone)]
pub struct Load {
    pub addr: SocketAddr,
    pub protocol: Protocol,
    pub request: Request,
    /// What each connection says first, and how many lines the server answers with (NATS greets and acknowledges).
    pub preamble: Vec<u8>,
    pub conns: usize,
    pub threads: usize,
    pub warmup: Duration,
    pub duration: Duration,
    /// Requests in all; then `duration` is only an upper bound.
    pub limit: Option<u64>,
    /// Requests a second, open loop; none = as fast as answers come.
    pub rate: Option<f64>,
    /// Processes whose CPU is counted between the warm-up and the end.
    pub pids: Vec<u32>,
}

impl Load {
    /// A closed loop over HTTP.
    pub fn http(addr: SocketAddr, request: Request, conns: usize) -> Load {
        Load {
            addr,
            protocol: Protocol::Http,
            request,
            preamble: Vec::new(),
            conns,
            threads: 1,
            warmup: Duration::from_millis(500),
            duration: Duration::from_secs(2),
            limit: None,
            rate: None,
            pids: Vec::new(),
        }
    }
}

/// What came of it.
pub struct Outcome {
    pub done: u64,
    pub secs: f64,
    pub cpu_us: u64,
    pub latencies_us: Vec<u32>,
}

impl Outcome {
    pub fn rate(&self) -> f64 {
        self.done as f64 / self.secs
    }

    pub fn cpu_each_us(&self) -> f64 {
        self.cpu_us as f64 / self.done.max(1) as f64
    }

    pub fn p50_us(&self) -> f64 {
        f64::from(percentile(&self.latencies_us, 0.5))
    }

    pub fn p99_us(&self) -> f64 {
        f64::from(percentile(&self.latencies_us, 0.99))
    }
}

struct Shared {
    load: Load,
    started: Instant,
    sent: AtomicU64,
    done: AtomicU64,
    connections: AtomicU64,
    alive: AtomicU64,
    stop: AtomicBool,
    recording: AtomicBool,
    latencies: Mutex<Vec<u32>>,
    failure: Mutex<Option<String>>,
}

impl Shared {
    fn fail(&self, why: String) {
        if let Ok(mut failure) = self.failure.lock() {
            failure.get_or_insert(why);
        }
        self.stop.store(true, Relaxed);
    }

    /// The number of the next request; none when enough were sent.
    fn ticket(&self) -> Option<u64> {
        let number = self.sent.fetch_add(1, Relaxed);
        let enough = self.load.limit.is_some_and(|limit| number >= limit);
        (!enough && !self.stop.load(Relaxed)).then_some(number)
    }
}

/// Runs the load to its end; any answer that is no success fails the run.
pub fn run(load: Load) -> Res<Outcome> {
    let threads = load.threads.clamp(1, load.conns.max(1));
    let shared = Arc::new(Shared {
        started: Instant::now(),
        sent: AtomicU64::new(0),
        done: AtomicU64::new(0),
        connections: AtomicU64::new(0),
        alive: AtomicU64::new(threads as u64),
        stop: AtomicBool::new(false),
        recording: AtomicBool::new(load.warmup.is_zero()),
        latencies: Mutex::default(),
        failure: Mutex::default(),
        load,
    });
    let mut joins = Vec::new();
    for index in 0..threads {
        let shared = Arc::clone(&shared);
        let conns = shared.load.conns / threads + usize::from(index < shared.load.conns % threads);
        joins.push(std::thread::spawn(move || work(&shared, conns)));
    }
    let (secs, done, cpu) = watch(&shared);
    shared.stop.store(true, Relaxed);
    for join in joins {
        join.join().map_err(|_| "a load thread panicked")?;
    }
    if let Some(why) = shared.failure.lock().map_err(|_| "poisoned")?.take() {
        return Err(why.into());
    }
    let mut latencies_us = std::mem::take(&mut *shared.latencies.lock().map_err(|_| "poisoned")?);
    latencies_us.sort_unstable();
    Ok(Outcome { done, secs, cpu_us: cpu, latencies_us })
}

/// Waits for the warm-up, then for the end; counts what happened between.
fn watch(shared: &Shared) -> (f64, u64, u64) {
    std::thread::sleep(shared.load.warmup);
    shared.recording.store(true, Relaxed);
    let (begun, done_before, cpu_before) = (Instant::now(), shared.done.load(Relaxed), cpu_us(&shared.load.pids));
    let until = begun + shared.load.duration;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || shared.alive.load(Relaxed) == 0 || shared.stop.load(Relaxed) {
            break;
        }
        let step = if shared.load.limit.is_some() { Duration::from_millis(1) } else { Duration::from_millis(20) };
        std::thread::sleep(left.min(step));
    }
    let cpu = cpu_us(&shared.load.pids).saturating_sub(cpu_before);
    (begun.elapsed().as_secs_f64(), shared.done.load(Relaxed) - done_before, cpu)
}

fn work(shared: &Arc<Shared>, conns: usize) {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(async {
            let mut tasks = JoinSet::new();
            for _ in 0..conns {
                let shared = Arc::clone(shared);
                tasks.spawn(async move {
                    if let Err(error) = connection(&shared).await {
                        shared.fail(error.to_string());
                    }
                });
            }
            while tasks.join_next().await.is_some() {}
        }),
        Err(error) => shared.fail(error.to_string()),
    }
    shared.alive.fetch_sub(1, Relaxed);
}

async fn connection(shared: &Shared) -> Res<()> {
    let load = &shared.load;
    let mut socket = TcpStream::connect(load.addr).await?;
    socket.set_nodelay(true)?;
    let index = shared.connections.fetch_add(1, Relaxed);
    let mut request = load.request.clone();
    request.set_connection(index);
    let mut input = Vec::with_capacity(16 * 1024);
    if load.protocol == Protocol::Nats {
        socket.write_all(&named(&load.preamble, index)).await?;
    }
    let mut latencies = Vec::new();
    while let Some(number) = shared.ticket() {
        let mut begun = Instant::now();
        if let Some(rate) = load.rate {
            let due = shared.started + Duration::from_secs_f64(number as f64 / rate);
            if due > begun {
                tokio::time::sleep_until(due.into()).await;
                begun = Instant::now();
            }
        }
        request.set_number(number);
        socket.write_all(&request.bytes).await?;
        receive(&mut socket, &mut input, load.protocol).await.map_err(|e| format!("connection {index}: {e}"))?;
        shared.done.fetch_add(1, Relaxed);
        if shared.recording.load(Relaxed) {
            latencies.push(u32::try_from(begun.elapsed().as_micros()).unwrap_or(u32::MAX));
        }
    }
    shared.latencies.lock().map_err(|_| "poisoned")?.append(&mut latencies);
    Ok(())
}

/// Reads until one whole answer has come, and takes it off `input`.
pub async fn receive(socket: &mut TcpStream, input: &mut Vec<u8>, protocol: Protocol) -> Res<()> {
    loop {
        let length = match protocol {
            Protocol::Http => http_length(input)?,
            Protocol::Nats => nats_length(input)?,
            Protocol::Redis => redis_length(input)?,
        };
        if let Some(length) = length {
            // Almost always this is all there is.
            if length == input.len() {
                input.clear();
            } else {
                input.drain(..length);
            }
            return Ok(());
        }
        if socket.read_buf(input).await? == 0 {
            return Err("the server closed the connection".into());
        }
    }
}

/// The length of the HTTP answer at the start of `input` when it is whole; an error when it is no success.
pub fn http_length(input: &[u8]) -> Res<Option<usize>> {
    let Some(head) = find(input, b"\r\n\r\n") else { return Ok(None) };
    let body = head + 4;
    let length = content_length(&input[..head]).ok_or("an answer without Content-Length")?;
    if input.len() < body + length {
        return Ok(None);
    }
    if input.get(9) != Some(&b'2') {
        return Err(String::from_utf8_lossy(&input[..body + length]).into_owned().into());
    }
    Ok(Some(body + length))
}

fn content_length(head: &[u8]) -> Option<usize> {
    const NAME: &[u8] = b"content-length:";
    for line in head.split(|b| *b == b'\n') {
        if line.len() > NAME.len() && line[..NAME.len()].eq_ignore_ascii_case(NAME) {
            return std::str::from_utf8(&line[NAME.len()..]).ok()?.trim().parse().ok();
        }
    }
    None
}

/// Where the JetStream acknowledgement ends; lines of the protocol before it are skipped with it.
fn nats_length(input: &[u8]) -> Res<Option<usize>> {
    let mut at = 0;
    while let Some(end) = find(&input[at..], b"\r\n") {
        let line = &input[at..at + end];
        let next = at + end + 2;
        if line.starts_with(b"-ERR") {
            return Err(String::from_utf8_lossy(line).into_owned().into());
        }
        if line.starts_with(b"MSG ") {
            let size = line.rsplit(|b| *b == b' ').next().and_then(|s| std::str::from_utf8(s).ok());
            let size: usize = size.ok_or("a MSG line without size")?.parse()?;
            let Some(body) = input.get(next..next + size + 2) else { return Ok(None) };
            if find(body, b"\"error\"").is_some() {
                return Err(String::from_utf8_lossy(body).into_owned().into());
            }
            return Ok(Some(next + size + 2));
        }
        at = next;
    }
    Ok(None)
}

/// The length of the bulk string at the start of `input` when it is whole.
fn redis_length(input: &[u8]) -> Res<Option<usize>> {
    let Some(end) = find(input, b"\r\n") else { return Ok(None) };
    let Some((b'$', size)) = input[..end].split_first() else {
        return Err(String::from_utf8_lossy(&input[..end]).into_owned().into());
    };
    let whole = end + 2 + std::str::from_utf8(size)?.parse::<usize>()? + 2;
    Ok((input.len() >= whole).then_some(whole))
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}
