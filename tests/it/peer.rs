//! Others that tests need: a web server that answers what it is told and keeps what it was asked, and real programs that
//! were unpacked for them.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// A web server on a free port: it serves its pages, and elsewhere the last answer that was set, again and again.
pub struct Peer {
    address: String,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    answers: std::collections::VecDeque<Vec<u8>>,
    pages: BTreeMap<String, Page>,
    requests: Vec<String>,
}

struct Page {
    etag: Option<String>,
    answer: Vec<u8>,
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
        self.shared.lock().expect("not poisoned").answers.push_back(made(status, headers, body));
    }

    /// Sets what is served at `target`, a path with its query. With an `etag` among the headers it is answered with 304 to
    /// who has it (RFC 9110, 13.1.2).
    pub fn page(&self, target: &str, status: &str, headers: &[(&str, &str)], body: &str) {
        let etag = headers.iter().find(|(name, _)| *name == "etag").map(|(_, value)| (*value).to_owned());
        let page = Page { etag, answer: made(status, headers, body) };
        self.shared.lock().expect("not poisoned").pages.insert(target.to_owned(), page);
    }

    /// The requests to `target` so far.
    pub fn asked(&self, target: &str) -> Vec<String> {
        let mut requests = self.requests();
        requests.retain(|request| target_of(request) == target);
        requests
    }

    /// Every request so far: head and body, the names of headers in lower case.
    pub fn requests(&self) -> Vec<String> {
        self.shared.lock().expect("not poisoned").requests.clone()
    }
}

fn made(status: &str, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n", body.len());
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    format!("{text}\r\n{body}").into_bytes()
}

fn target_of(request: &str) -> &str {
    request.split(' ').nth(1).unwrap_or_default()
}

impl Shared {
    fn answer_to(&mut self, request: &str) -> Vec<u8> {
        if let Some(page) = self.pages.get(target_of(request)) {
            let has_it = |etag: &String| request.contains(&format!("\r\nif-none-match: {etag}\r\n"));
            return match page.etag.as_ref().filter(|etag| has_it(etag)) {
                Some(etag) => made("304 Not Modified", &[("etag", etag)], ""),
                None => page.answer.clone(),
            };
        }
        match self.answers.len() {
            0 => made("200 OK", &[], ""),
            1 => self.answers[0].clone(),
            _ => self.answers.pop_front().unwrap_or_default(),
        }
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
        let request = String::from_utf8_lossy(&bytes).into_owned();
        let answer = shared.answer_to(&request);
        shared.requests.push(request);
        answer
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
