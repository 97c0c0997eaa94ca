//! The stream client: N connections that read server-sent events and count frames by their `id:` lines.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;

use crate::Res;

/// Connections that are opened at the same time.
const OPENING_MAX: usize = 32;
/// A stalled reader's socket holds little, as a sleeping laptop's does.
const STALLED_BUFFER: u32 = 8 * 1024;
const SCRATCH: usize = 256 * 1024;

struct Shared {
    frames: AtomicU64,
    bytes: AtomicU64,
    open: AtomicU64,
    closed: AtomicU64,
    stop: AtomicBool,
    started: Instant,
    last_us: AtomicU64,
    failure: Mutex<Option<String>>,
}

/// Subscribed clients; dropping it closes them.
pub struct Clients {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
    readers: u64,
}

impl Clients {
    /// Connects `readers` clients that read and `stalled` ones that never do, with the same request each; returns once
    /// every one of them has the head of its answer.
    pub fn connect(addr: SocketAddr, request: &[u8], readers: usize, stalled: usize) -> Res<Clients> {
        let shared = Arc::new(Shared {
            frames: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            open: AtomicU64::new(0),
            closed: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            started: Instant::now(),
            last_us: AtomicU64::new(0),
            failure: Mutex::default(),
        });
        let (theirs, request) = (Arc::clone(&shared), request.to_vec());
        let thread = std::thread::spawn(move || serve(&theirs, addr, &request, readers, stalled));
        let clients = Clients { shared, thread: Some(thread), readers: readers as u64 };
        let until = Instant::now() + Duration::from_secs(60);
        while clients.shared.open.load(Relaxed) < (readers + stalled) as u64 {
            if let Some(why) = clients.failure() {
                return Err(why.into());
            }
            if Instant::now() > until {
                return Err("the streams did not all open".into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(clients)
    }

    fn failure(&self) -> Option<String> {
        self.shared.failure.lock().ok().and_then(|f| f.clone())
    }

    /// Frames of all reading clients so far.
    pub fn frames(&self) -> u64 {
        self.shared.frames.load(Relaxed)
    }

    /// Waits until every reading client has had `each` frames more than the `before` of all of them; the time of the last
    /// one, in seconds since the clients began. Missing frames are an error.
    pub fn wait(&self, before: u64, each: u64, patience: Duration) -> Res<f64> {
        let wanted = before + each * self.readers;
        let until = Instant::now() + patience;
        while self.frames() < wanted {
            if let Some(why) = self.failure() {
                return Err(why.into());
            }
            if Instant::now() > until {
                let (got, closed) = (self.frames() - before, self.shared.closed.load(Relaxed));
                return Err(format!("{got} of {} frames came, {closed} streams ended", each * self.readers).into());
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        Ok(self.shared.last_us.load(Relaxed) as f64 / 1e6)
    }

    /// Seconds since the clients began.
    pub fn now(&self) -> f64 {
        self.shared.started.elapsed().as_secs_f64()
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(shared: &Arc<Shared>, addr: SocketAddr, request: &[u8], readers: usize, stalled: usize) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        fail(shared, "no runtime".to_owned());
        return;
    };
    runtime.block_on(async {
        let opening = Arc::new(Semaphore::new(OPENING_MAX));
        for index in 0..readers + stalled {
            let (shared, opening, request) = (Arc::clone(shared), Arc::clone(&opening), request.to_vec());
            tokio::spawn(async move {
                if let Err(error) = client(&shared, &opening, addr, &request, index >= readers).await {
                    shared.closed.fetch_add(1, Relaxed);
                    if index < readers && !shared.stop.load(Relaxed) {
                        fail(&shared, error.to_string());
                    }
                }
            });
        }
        while !shared.stop.load(Relaxed) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}

fn fail(shared: &Shared, why: String) {
    if let Ok(mut failure) = shared.failure.lock() {
        failure.get_or_insert(why);
    }
}

async fn client(shared: &Shared, opening: &Semaphore, addr: SocketAddr, request: &[u8], stalled: bool) -> Res<()> {
    let permit = opening.acquire().await?;
    let socket = TcpSocket::new_v4()?;
    if stalled {
        socket.set_recv_buffer_size(STALLED_BUFFER)?;
    }
    let mut socket = socket.connect(addr).await?;
    socket.write_all(request).await?;
    let rest = head(&mut socket).await?;
    drop(permit);
    shared.open.fetch_add(1, Relaxed);
    if stalled {
        // Keeps the socket open and takes nothing.
        std::future::pending::<()>().await;
    }
    read(shared, &socket, rest).await
}

/// Reads the head of the answer; what came after it is the beginning of the stream.
async fn head(socket: &mut TcpStream) -> Res<Vec<u8>> {
    let mut input = Vec::with_capacity(4096);
    loop {
        if let Some(end) = input.windows(4).position(|w| w == b"\r\n\r\n") {
            if input.get(9..12) != Some(b"200") {
                return Err(String::from_utf8_lossy(&input).into_owned().into());
            }
            return Ok(input.split_off(end + 4));
        }
        if socket.read_buf(&mut input).await? == 0 {
            return Err("closed before the head of the answer".into());
        }
    }
}

thread_local! {
    /// One buffer for all clients of the thread: a thousand of their own would not stay in the cache.
    static BUFFER: std::cell::RefCell<Vec<u8>> = std::cell::RefCell::new(vec![0; SCRATCH]);
}

async fn read(shared: &Shared, socket: &TcpStream, rest: Vec<u8>) -> Res<()> {
    let mut counter = Counter::default();
    let first = counter.count(&rest);
    drop(rest);
    add(shared, first, 0);
    loop {
        socket.readable().await?;
        let took = BUFFER.with_borrow_mut(|buffer| match socket.try_read(buffer) {
            Ok(0) => Err("the server ended the stream".into()),
            Ok(n) => Ok((counter.count(&buffer[..n]), n)),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => Ok((0, 0)),
            Err(e) => Err(Box::<dyn std::error::Error + Send + Sync>::from(e)),
        });
        let (frames, bytes) = took?;
        add(shared, frames, bytes as u64);
    }
}

fn add(shared: &Shared, frames: u64, bytes: u64) {
    if frames > 0 {
        shared.frames.fetch_add(frames, Relaxed);
        let now = u64::try_from(shared.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        shared.last_us.fetch_max(now, Relaxed);
    }
    shared.bytes.fetch_add(bytes, Relaxed);
}

/// Counts `\nid:` over a stream that comes in pieces. JSON holds no raw newline, so nothing else looks like it.
#[derive(Default)]
pub struct Counter {
    tail: Vec<u8>,
}

impl Counter {
    /// Occurrences that end in this piece.
    pub fn count(&mut self, piece: &[u8]) -> u64 {
        self.tail.extend_from_slice(&piece[..piece.len().min(3)]);
        let mut found = matches(&self.tail);
        if piece.len() >= 3 {
            self.tail.clear();
            self.tail.extend_from_slice(&piece[piece.len() - 3..]);
            found += matches(piece);
        } else {
            // The whole piece went into the seam: what of it was not counted lies in the last three bytes.
            let keep = self.tail.len().min(3);
            self.tail.drain(..self.tail.len() - keep);
        }
        found
    }
}

/// Written so that the compiler turns it into vector compares.
fn matches(bytes: &[u8]) -> u64 {
    if bytes.len() < 4 {
        return 0;
    }
    let (a, b, c, d) = (bytes, &bytes[1..], &bytes[2..], &bytes[3..]);
    let mut found = 0u64;
    for ((chunk_a, chunk_b), (chunk_c, chunk_d)) in
        a.chunks(128).zip(b.chunks(128)).zip(c.chunks(128).zip(d.chunks(128)))
    {
        let hits = chunk_a.iter().zip(chunk_b).zip(chunk_c.iter().zip(chunk_d)).map(|((a, b), (c, d))| {
            u8::from(*a == b'\n') & u8::from(*b == b'i') & u8::from(*c == b'd') & u8::from(*d == b':')
        });
        found += u64::from(hits.sum::<u8>());
    }
    found
}
