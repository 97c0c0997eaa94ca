//! A stub of a model's API on loopback: it answers what it is told, byte for byte and piece by piece, for cases that no real
//! server can be brought to.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::harness::PATIENCE;

/// One answer.
#[derive(Clone, Default)]
pub struct Reply {
    head: String,
    pieces: Vec<(Duration, String)>,
    cut: bool,
}

impl Reply {
    /// A stream of server-sent events, one a piece.
    pub fn events(documents: &[&str]) -> Reply {
        let pieces = documents.iter().map(|one| (Duration::ZERO, format!("data: {one}\n\n"))).collect();
        Reply { head: "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n".into(), pieces, cut: false }
    }

    /// A whole answer with this status, these further headers and this body.
    pub fn status(status: &str, headers: &str, body: &str) -> Reply {
        let head = format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\n{headers}");
        Reply { head, pieces: vec![(Duration::ZERO, body.into())], cut: false }
    }

    /// Documents of Ollama's dialect, one a line.
    pub fn lines(text: &str) -> Reply {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\n".into();
        Reply { head, pieces: vec![(Duration::ZERO, text.into())], cut: false }
    }

    /// Words of OpenAI's dialect, each a piece, and a proper end.
    pub fn words(words: &[&str]) -> Reply {
        let mut documents: Vec<String> = words.iter().map(|word| said(word)).collect();
        documents.push("{\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}".into());
        documents.push("{\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4}}".into());
        documents.push("[DONE]".into());
        Reply::events(&documents.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// A call of a tool in OpenAI's dialect, after these words.
    pub fn call(words: &str, id: &str, tool: &str, arguments: &serde_json::Value) -> Reply {
        Reply::calls(words, &[(id, tool, arguments.clone())])
    }

    /// As [`Reply::call`], with several calls in one answer.
    pub fn calls(words: &str, calls: &[(&str, &str, serde_json::Value)]) -> Reply {
        let call = |(n, (id, tool, arguments)): (usize, &(&str, &str, serde_json::Value))| {
            serde_json::json!({ "index": n, "id": id, "type": "function",
                "function": { "name": tool, "arguments": arguments.to_string() } })
        };
        let calls: Vec<serde_json::Value> = calls.iter().enumerate().map(call).collect();
        let asks = serde_json::json!({ "choices": [{ "delta": { "tool_calls": calls } }] }).to_string();
        let end = "{\"choices\":[{\"delta\":{},\"finish_reason\":\"tool_calls\"}]}";
        let usage = "{\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4}}";
        Reply::events(&[&said(words), &asks, end, usage, "[DONE]"])
    }

    /// The same, at the cost of so many tokens.
    pub fn costing(mut self, tokens: u64) -> Reply {
        for (_, piece) in &mut self.pieces {
            *piece = piece.replace("\"prompt_tokens\":3", &format!("\"prompt_tokens\":{tokens}"));
        }
        self
    }

    /// The same, broken off after so many pieces.
    pub fn cut_after(mut self, pieces: usize) -> Reply {
        self.pieces.truncate(pieces);
        self.cut = true;
        self
    }

    /// The same, with a wait before this piece.
    pub fn waiting(mut self, piece: usize, wait: Duration) -> Reply {
        self.pieces[piece].0 = wait;
        self
    }
}

/// A document with one word.
pub fn said(word: &str) -> String {
    serde_json::json!({ "choices": [{ "delta": { "content": word } }] }).to_string()
}

/// What a server answers to a request.
type Think = Box<dyn Fn(&str) -> Reply + Send + Sync>;

#[derive(Default)]
struct Shared {
    think: Option<Think>,
    replies: Mutex<std::collections::VecDeque<Reply>>,
    requests: Mutex<Vec<String>>,
    /// Which requests were answered to the end, and when.
    answered: Mutex<Vec<(usize, Instant)>>,
    /// When connections ended that the other side gave up.
    left: Mutex<Vec<Instant>>,
    changed: Condvar,
}

/// The server.
pub struct Stub {
    address: String,
    shared: Arc<Shared>,
}

impl Stub {
    /// A server that gives these answers in order; the last one stays.
    pub fn start(replies: Vec<Reply>) -> Stub {
        Stub::serving(Shared { replies: Mutex::new(replies.into()), ..Shared::default() })
    }

    /// A server that looks at each request before it answers.
    pub fn thinking(think: impl Fn(&str) -> Reply + Send + Sync + 'static) -> Stub {
        Stub::serving(Shared { think: Some(Box::new(think)), ..Shared::default() })
    }

    fn serving(shared: Shared) -> Stub {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let shared = Arc::new(shared);
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&serving);
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Stub { address, shared }
    }

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Every request so far: head and body.
    pub fn requests(&self) -> Vec<String> {
        self.shared.requests.lock().expect("not poisoned").clone()
    }

    /// When this request, counted from 0, was answered to the end, if it was.
    pub fn answered(&self, request: usize) -> Option<Instant> {
        let answered = self.shared.answered.lock().expect("not poisoned");
        answered.iter().find(|(n, _)| *n == request).map(|(_, at)| *at)
    }

    /// When the other side gave up a connection, once it did.
    pub fn left(&self) -> Instant {
        let (left, deadline) = (self.shared.left.lock().expect("not poisoned"), Instant::now() + PATIENCE);
        let (left, _) = self
            .shared
            .changed
            .wait_timeout_while(left, deadline.saturating_duration_since(Instant::now()), |left| left.is_empty())
            .expect("not poisoned");
        *left.first().expect("the connection is given up")
    }
}

fn serve(mut stream: TcpStream, shared: &Shared) {
    let _faster = stream.set_nodelay(true);
    let Some(request) = read(&mut stream) else { return };
    let number = {
        let mut requests = shared.requests.lock().expect("not poisoned");
        requests.push(request.clone());
        requests.len() - 1
    };
    let thought = shared.think.as_ref().map(|think| think(&request));
    let reply = {
        let mut replies = shared.replies.lock().expect("not poisoned");
        if replies.len() > 1 { replies.pop_front() } else { replies.front().cloned() }
    };
    let reply = thought.or(reply).unwrap_or_default();
    let _sent = stream.write_all(format!("{}transfer-encoding: chunked\r\n\r\n", reply.head).as_bytes());
    for (wait, piece) in &reply.pieces {
        if !wait.is_zero() && is_left(&mut stream, *wait) {
            shared.left.lock().expect("not poisoned").push(Instant::now());
            shared.changed.notify_all();
            return;
        }
        let _sent = stream.write_all(format!("{:x}\r\n{piece}\r\n", piece.len()).as_bytes());
    }
    if !reply.cut {
        let _sent = stream.write_all(b"0\r\n\r\n");
        shared.answered.lock().expect("not poisoned").push((number, Instant::now()));
    }
}

/// Waits, and tells whether the other side left meanwhile.
fn is_left(stream: &mut TcpStream, wait: Duration) -> bool {
    let _limit = stream.set_read_timeout(Some(wait));
    matches!(stream.read(&mut [0; 16]), Ok(0)) || {
        // A reset is an end as well; a time limit is none.
        stream.peek(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
    }
}

fn read(stream: &mut TcpStream) -> Option<String> {
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length =
                head.to_lowercase().split("content-length: ").nth(1).map_or(0, |rest| {
                    rest.split("\r\n").next().and_then(|number| number.trim().parse().ok()).unwrap_or(0)
                });
            if body.len() >= length {
                return Some(text);
            }
        }
        match stream.read(&mut buffer) {
            Ok(n @ 1..) => bytes.extend_from_slice(&buffer[..n]),
            _ => return None,
        }
    }
}
