//! The socket below a connection. It ends the connection when the client takes nothing for a while, gives hyper's own
//! refusals a body, closes so that a client that is still sending can read its answer, and tells a stream when its client
//! sends no more.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::task::JoinHandle;
use tokio::time::Sleep;

use super::body::Body;
use super::fronts::Front;
use super::guests;
use super::listen::Conn;
use super::problem::Problem;
use crate::id::TraceId;

/// How long a client may take nothing of what is sent.
const STALL_MAX: Duration = Duration::from_secs(10);
/// How long, and how much, is read and thrown away after the last answer. Closing with unread bytes would reset the
/// connection, and the client could lose the answer.
const LINGER_MAX: Duration = Duration::from_secs(2);
const LINGER_BYTES_MAX: usize = 16 << 20;

/// What the socket of a connection and the stream on it tell each other.
///
/// A client that closed its sending half may still read, as `nc -N` does, or be gone: only writing tells which. So the
/// end of what it sends ends nothing by itself, and a stream writes at once when it hears of it.
#[derive(Debug, Default)]
pub struct Peer {
    streaming: AtomicBool,
    silent: AtomicBool,
}

impl Peer {
    /// A stream begins or ends; while there is one, the socket looks whether the client still sends.
    pub fn set_streaming(&self, streaming: bool) {
        self.streaming.store(streaming, Ordering::Relaxed);
    }

    /// True once the client has closed its sending half.
    pub fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed)
    }
}

/// A connection that does not wait for ever.
pub struct Socket {
    io: TokioIo<Conn>,
    front: Arc<Front>,
    peer: Arc<Peer>,
    /// What came while a stream was sent: the begin of the next request. Nothing more is read until hyper took it.
    early: Option<u8>,
    /// Runs while a write waits.
    stalled: Option<Pin<Box<Sleep>>>,
    /// What is sent in place of a refusal of hyper's own.
    refusal: Option<Refusal>,
    /// Runs while the rest of what the client sends is thrown away, with how much of it there was.
    lingering: Option<(Pin<Box<Sleep>>, usize)>,
}

/// See [`Socket`].
enum Refusal {
    /// It is being spelled, which takes a while where a plugin says how.
    Spelled(JoinHandle<Vec<u8>>),
    /// The bytes, and how many of them are sent.
    Sent(Vec<u8>, usize),
}

impl Socket {
    /// Wraps `conn`, which came to `front`.
    pub fn new(conn: Conn, front: Arc<Front>, peer: Arc<Peer>) -> Socket {
        Socket { io: TokioIo::new(conn), front, peer, early: None, stalled: None, refusal: None, lingering: None }
    }

    /// Looks whether the client of a stream still sends. hyper reads nothing while it answers.
    fn look(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.early.is_some() || self.peer.is_silent() || !self.peer.streaming.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut byte = [0_u8; 1];
        let mut buffer = ReadBuf::new(&mut byte);
        if let Poll::Ready(read) = Pin::new(self.io.inner_mut()).poll_read(cx, &mut buffer) {
            read?;
            self.early = buffer.filled().first().copied();
            if self.early.is_none() {
                self.peer.silent.store(true, Ordering::Relaxed);
                cx.waker().wake_by_ref();
            }
        }
        Ok(())
    }

    /// Gives up on a client that takes nothing for too long. With TLS what was written may still wait for that, too.
    fn watch<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let timer = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(STALL_MAX)));
        if timer.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    }

    /// Sends the refusal, then says that the `replaced` bytes of hyper's are written.
    fn poll_refusal(&mut self, cx: &mut Context<'_>, replaced: usize) -> Poll<io::Result<usize>> {
        while let Some(refusal) = &mut self.refusal {
            match refusal {
                Refusal::Spelled(spelling) => {
                    let spelled = ready!(Pin::new(spelling).poll(cx)).map_err(io::Error::other)?;
                    self.refusal = Some(Refusal::Sent(spelled, 0));
                }
                Refusal::Sent(bytes, sent) => {
                    let written = Pin::new(&mut self.io).poll_write(cx, &bytes[*sent..]);
                    *sent += ready!(written)?;
                    if *sent == bytes.len() {
                        self.refusal = None;
                    }
                }
            }
        }
        Poll::Ready(Ok(replaced))
    }

    /// Throws away what the client still sends, until it ends or there was enough of it.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (timer, seen) = self.lingering.get_or_insert_with(|| (Box::pin(tokio::time::sleep(LINGER_MAX)), 0));
        let mut thrown = [0_u8; 4096];
        while *seen < LINGER_BYTES_MAX && timer.as_mut().poll(cx).is_pending() {
            let mut buffer = ReadBuf::new(&mut thrown);
            match ready!(Pin::new(self.io.inner_mut()).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => *seen += buffer.filled().len(),
                Ok(()) | Err(_) => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// What to send in place of `head`, if that is an answer that hyper made: ours all have a `traceparent`.
fn problem_for(head: &[u8]) -> Option<Problem> {
    if !head.starts_with(b"HTTP/1.1 4") || !head.ends_with(b"\r\n\r\n") {
        return None;
    }
    let text = std::str::from_utf8(head).ok()?;
    let is_ours = text.contains("\r\ntraceparent: ");
    if is_ours || text.matches("\r\n\r\n").count() != 1 || !text.contains("\r\ncontent-length: 0\r\n") {
        return None;
    }
    if text[9..].starts_with("400") {
        let detail = "This is not a readable HTTP/1.1 request. With http.tls set, call it by https.";
        return Some(Problem::new((StatusCode::BAD_REQUEST, "malformed_request"), detail));
    }
    // hyper tells no more than the status, whichever of its limits was met.
    let detail = "The head of the request is too large: the request line and the headers may have 32 KiB together, the \
                  headers may be 100, and a Content-Length must be a number of bytes that could be sent.";
    Some(Problem::new((StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "headers_too_large"), detail))
}

/// The whole answer to `problem` at `front`; blocks for a short while where a plugin spells it.
fn spell(front: &Front, problem: Problem) -> Vec<u8> {
    let reply = guests::refusal_now(front, problem, (None, ""), TraceId(fastrand::u128(1..).to_be_bytes()));
    let body = if let Body::Full(Some(body)) = reply.body { body } else { Bytes::new() };
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(reply.content_type));
    headers.extend(reply.headers);
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    headers.insert(header::CONTENT_LENGTH, body.len().into());
    let mut out = format!("HTTP/1.1 {}\r\n", reply.status).into_bytes();
    for (name, value) in &headers {
        out.extend_from_slice(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(&body);
    out
}

fn refusal_for(front: &Arc<Front>, head: &[u8]) -> Option<Refusal> {
    let problem = problem_for(head)?;
    if front.envelope().is_none() {
        return Some(Refusal::Sent(spell(front, problem), 0));
    }
    // Strangers may cause it, and whoever waits for I/O on this thread must not wait for it.
    let front = Arc::clone(front);
    Some(Refusal::Spelled(tokio::task::spawn_blocking(move || spell(&front, problem))))
}

impl Read for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        if buf.remaining() > 0
            && let Some(byte) = self.early.take()
        {
            buf.put_slice(&[byte]);
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl Write for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.look(cx)?;
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.watch(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingering.is_none() {
            let closed = Pin::new(&mut self.io).poll_shutdown(cx);
            ready!(self.watch(cx, closed))?;
        }
        self.poll_linger(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [head] = bufs
            && self.refusal.is_none()
        {
            self.refusal = refusal_for(&self.front, head);
        }
        let written = if self.refusal.is_some() {
            let replaced = bufs.iter().map(|buf| buf.len()).sum();
            self.poll_refusal(cx, replaced)
        } else {
            Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
        };
        self.watch(cx, written)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::path::Path;

    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, ServerName};
    use tokio::net::TcpSocket;

    use super::super::listen::{self, Accepted, Listener};
    use super::*;

    fn front() -> Arc<Front> {
        Arc::new(Front::of_daemon(super::super::routes::Table::default()))
    }

    /// A connection with TLS between sockets that hold little.
    async fn encrypted() -> (Conn, tokio_rustls::client::TlsStream<tokio::net::TcpStream>) {
        let fixture = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tls").join(name);
        let (here, there) = (TcpSocket::new_v4().expect("a socket"), TcpSocket::new_v4().expect("a socket"));
        here.set_send_buffer_size(16 << 10).expect("a size");
        there.set_recv_buffer_size(4 << 10).expect("a size");
        here.bind(([127, 0, 0, 1], 0).into()).expect("a free port");
        let listener = here.listen(1).expect("it listens");
        let address = listener.local_addr().expect("an address");
        let acceptor = listen::tls(&fixture("cert.pem"), &fixture("key.pem")).expect("a certificate");
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(fixture("cert.pem")).expect("a certificate")).expect("a root");
        let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let client = async {
            let name = ServerName::try_from("localhost").expect("a name");
            let connected = there.connect(address).await.expect("it listens");
            tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, connected).await.expect("a handshake")
        };
        let server = async {
            match Listener::Tls(listener, acceptor).accept().await.expect("a connection") {
                Accepted::Tls(handshake) => handshake.await.expect("a handshake"),
                Accepted::Ready(conn) => conn,
            }
        };
        tokio::join!(server, client)
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_is_let_go_also_with_tls() {
        let (conn, _deaf) = encrypted().await;
        let mut socket = std::pin::pin!(Socket::new(conn, front(), Arc::default()));
        // Until neither the system nor TLS takes more: the rest would go with the end of the connection.
        poll_fn(|cx| {
            while let Poll::Ready(taken) = socket.as_mut().poll_write(cx, &[0; 4096]) {
                taken.expect("taken");
            }
            Poll::Ready(())
        })
        .await;
        let closed = poll_fn(|cx| socket.as_mut().poll_shutdown(cx));
        let closed = tokio::time::timeout(STALL_MAX * 4, closed).await.expect("it does not wait for ever");
        assert_eq!(closed.expect_err("nobody took it").kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn only_answers_of_hyper_are_replaced() {
        let own = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        let text = String::from_utf8(spell(&front(), problem_for(own).expect("replaced"))).expect("text");
        assert!(text.starts_with("HTTP/1.1 431 ") && text.contains("headers_too_large"), "{text}");
        for ours in [
            &b"HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n{}"[..],
            b"HTTP/1.1 404 Not Found\r\ncontent-length: 20\r\n\r\n",
            b"HTTP/1.1 404 Not Found\r\ntraceparent: 00-1-2-01\r\ncontent-length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            b"HTTP/1.1 4",
        ] {
            assert!(problem_for(ours).is_none());
        }
    }
}
