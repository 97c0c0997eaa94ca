//! Others that tests need: a web server that answers what it is told and keeps what it was asked, and real programs that
//! were unpacked for them.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// A web server on a free port; the last answer that was set is repeated.
pub struct Peer {
    address: String,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    answers: std::collections::VecDeque<Vec<u8>>,
    requests: Vec<String>,
}

impl Peer {
    /// A server that answers 200 until it is told otherwise.
    pub fn start() -> Peer {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let shared = Arc::new(Mutex::new(Shared::default()));
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&serving);
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Peer { address, shared }
    }

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Sets the next answer; the last one stays.
    pub fn answer(&self, status: &str, headers: &[(&str, &str)], body: &str) {
        let mut text = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n", body.len());
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        let answer = format!("{text}\r\n{body}").into_bytes();
        self.shared.lock().expect("not poisoned").answers.push_back(answer);
    }

    /// Every request so far: head and body, the names of headers in lower case.
    pub fn requests(&self) -> Vec<String> {
        self.shared.lock().expect("not poisoned").requests.clone()
    }
}

fn serve(mut stream: TcpStream, shared: &Mutex<Shared>) {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    while !is_whole(&bytes) {
        match stream.read(&mut buffer) {
            Ok(n @ 1..) => bytes.extend_from_slice(&buffer[..n]),
            _ => return,
        }
    }
    let answer = {
        let mut shared = shared.lock().expect("not poisoned");
        shared.requests.push(String::from_utf8_lossy(&bytes).into_owned());
        let default = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_vec();
        match shared.answers.len() {
            0 => default,
            1 => shared.answers[0].clone(),
            _ => shared.answers.pop_front().unwrap_or(default),
        }
    };
    let _gone = stream.write_all(&answer);
}

fn is_whole(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let Some(end) = text.find("\r\n\r\n") else { return false };
    let length = text[..end].lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    bytes.len() >= end + 4 + length.unwrap_or(0)
}

/// Where `scripts/setup test` unpacked the Debian packages of `name`, and the `LD_LIBRARY_PATH` of what is in it.
pub fn unpacked(name: &str) -> (PathBuf, String) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools").join(name);
    let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu"];
    let paths: Vec<String> = libraries.iter().map(|path| root.join(path).display().to_string()).collect();
    (root, paths.join(":"))
}
