//! For tests: a fake daemon that gives scripted answers and remembers what it was asked.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Answers one connection after the other with the next scripted text, then closes it.
pub struct Fake {
    pub base: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    pub async fn answering(answers: &[&str]) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback is there");
        let base = format!("http://{}", listener.local_addr().expect("it is bound"));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        let answers: Vec<String> = answers.iter().map(|answer| (*answer).to_owned()).collect();
        tokio::spawn(async move {
            for answer in answers {
                let Ok((mut stream, _)) = listener.accept().await else { return };
                let request = read_request(&mut stream).await;
                seen.lock().expect("no reader panics").push(request);
                stream.write_all(answer.as_bytes()).await.ok();
            }
        });
        Fake { base, requests }
    }

    /// `status` with a JSON body, as a whole answer.
    pub fn json(status: u16, body: &str) -> String {
        format!(
            "HTTP/1.1 {status} Fake\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    }

    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("no writer panics").clone()
    }
}

async fn read_request(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:").map(str::to_owned));
            if body.len() >= length.map_or(0, |length| length.trim().parse().expect("a length is a number")) {
                return text;
            }
        }
        if stream.read_buf(&mut bytes).await.expect("the request arrives") == 0 {
            return text;
        }
    }
}
