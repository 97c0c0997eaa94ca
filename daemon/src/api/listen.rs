//! Where connections come from: TCP, TLS over it, and a Unix socket that only this user may use.

use std::io::{self, IoSlice};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::error::Error;

/// How long a client may take for the TLS handshake.
const HANDSHAKE_WAIT: Duration = Duration::from_secs(10);

/// A connection.
pub enum Conn {
    /// Plain.
    Tcp(TcpStream),
    /// Encrypted.
    Tls(Box<TlsStream<TcpStream>>),
    /// Of this machine.
    Unix(UnixStream),
}

/// A place to connect to.
pub enum Listener {
    /// Plain.
    Tcp(TcpListener),
    /// Encrypted.
    Tls(TcpListener, TlsAcceptor),
    /// A socket in the file system; only processes of the user `uid` get in.
    Unix {
        /// The socket.
        listener: UnixListener,
        /// The user.
        uid: u32,
    },
}

/// A handshake under way; none when it failed.
pub type Handshake = Pin<Box<dyn Future<Output = Option<Conn>> + Send>>;

/// What was accepted.
pub enum Accepted {
    /// Ready to be served.
    Ready(Conn),
    /// Ready after its handshake.
    Tls(Handshake),
}

impl Listener {
    /// What encrypts its connections, if they are.
    pub fn acceptor(&self) -> Option<TlsAcceptor> {
        match self {
            Listener::Tls(_, acceptor) => Some(acceptor.clone()),
            Listener::Tcp(_) | Listener::Unix { .. } => None,
        }
    }

    /// The next connection. Those that may not come in are closed and passed over.
    pub async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Listener::Tcp(listener) => Ok(Accepted::Ready(Conn::Tcp(accept_tcp(listener).await?))),
            Listener::Tls(listener, acceptor) => {
                let (stream, acceptor) = (accept_tcp(listener).await?, acceptor.clone());
                Ok(Accepted::Tls(Box::pin(async move {
                    let shaken = tokio::time::timeout(HANDSHAKE_WAIT, acceptor.accept(stream)).await;
                    shaken.ok()?.ok().map(|stream| Conn::Tls(Box::new(stream)))
                })))
            }
            Listener::Unix { listener, uid } => loop {
                let (stream, _) = listener.accept().await?;
                let peer = stream.peer_cred()?.uid();
                if peer == *uid {
                    return Ok(Accepted::Ready(Conn::Unix(stream)));
                }
                tracing::warn!(peer, "A process of another user was refused at the Unix socket.");
            },
        }
    }
}

async fn accept_tcp(listener: &TcpListener) -> io::Result<TcpStream> {
    let (stream, _) = listener.accept().await?;
    // Small answers must not wait for the acknowledgement of the previous packet; without it they are only slower.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// Listens on the Unix socket `path`, closed to other users. What a killed daemon left there is removed; the caller
/// holds the lock of the data folder.
pub fn unix(path: &Path) -> Result<Listener, Error> {
    let wrong =
        |error: io::Error| Error::invalid("http.socket", format!("{} cannot be listened on: {error}.", path.display()));
    match std::fs::symlink_metadata(path) {
        Ok(there) if there.file_type().is_socket() => std::fs::remove_file(path).map_err(wrong)?,
        Ok(_) => {
            let reason = format!("{} is there and is no socket. Remove it, or choose another path.", path.display());
            return Err(Error::invalid("http.socket", reason));
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).map_err(wrong)?;
    // Until then, and whatever becomes of the mode, each peer is asked who it is.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(wrong)?;
    Ok(Listener::Unix { listener, uid: nix::unistd::geteuid().as_raw() })
}

/// What encrypts connections with the certificate chain and the key in these PEM files.
pub fn tls(cert: &Path, key: &Path) -> Result<TlsAcceptor, Error> {
    let wrong = |key: &str, path: &Path, why: &dyn std::fmt::Display| {
        Error::invalid(key, format!("{} cannot be used: {why}.", path.display()))
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect)
        .map_err(|error| wrong("http.tls.cert", cert, &error))?;
    if chain.is_empty() {
        return Err(wrong("http.tls.cert", cert, &"it holds no certificate in PEM form"));
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong("http.tls.key", key, &error))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(Error::internal("setting TLS up"))?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(|error| wrong("http.tls.key", key, &error))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Runs the same on whichever kind of connection it is.
macro_rules! each {
    ($conn:expr, $stream:ident => $act:expr) => {
        match $conn.get_mut() {
            Conn::Tcp($stream) => $act,
            Conn::Tls($stream) => $act,
            Conn::Unix($stream) => $act,
        }
    };
}

impl AsyncRead for Conn {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Conn {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Conn::Tcp(stream) => stream.is_write_vectored(),
            Conn::Tls(stream) => stream.is_write_vectored(),
            Conn::Unix(stream) => stream.is_write_vectored(),
        }
    }
}
