//! The way to the daemon: finds its address and token, and speaks plain HTTP/1.1 to it.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::Global;
use super::failure::Failure;
use super::tls;
use crate::config::{self, Flags, Paths};
use crate::plain;

/// How long a loopback connection may take; a daemon that is there accepts at once.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
/// The daemon ends its own work on a request after 30 s; this leaves time for the answer to arrive.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(40);
/// As long may an answer take that waits for work on the whole database.
const LASTING_TIME_MAX: Duration = Duration::from_secs(620);
/// How long the rest of a refusal may take.
const REFUSAL_TIME_MAX: Duration = Duration::from_secs(5);
/// Largest answer that is read into memory.
const ANSWER_BYTES_MAX: usize = 128 * 1024 * 1024;
/// Longest file with an address or a token, in bytes.
const OWN_FILE_BYTES_MAX: u64 = 64 << 10;

/// Everything but RFC 3986's unreserved characters is encoded, in paths and in queries alike.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// One request that is still to be sent.
#[derive(Debug, Clone)]
pub struct Call {
    method: Method,
    target: String,
    headers: Vec<(&'static str, String)>,
    body: Bytes,
    time_max: Duration,
}

impl Call {
    /// Reads `path`, whose segments are encoded already; see [`segment`].
    pub fn get(path: impl Into<String>) -> Call {
        let (headers, body) = (Vec::new(), Bytes::new());
        Call { method: Method::GET, target: path.into(), headers, body, time_max: ANSWER_TIME_MAX }
    }

    /// Sends an empty object to `path`.
    pub fn post(path: impl Into<String>) -> Call {
        Call { method: Method::POST, ..Call::get(path) }.body("application/json", "{}")
    }

    /// Stores at `path`; the body follows.
    pub fn put(path: impl Into<String>) -> Call {
        Call { method: Method::PUT, ..Call::get(path) }
    }

    /// Removes what `path` names.
    pub fn delete(path: impl Into<String>) -> Call {
        Call { method: Method::DELETE, ..Call::get(path) }
    }

    /// The body and what it is.
    pub fn body(mut self, content_type: &str, body: impl Into<Bytes>) -> Call {
        self.headers.retain(|(name, _)| *name != "content-type");
        self.headers.push(("content-type", content_type.to_owned()));
        self.body = body.into();
        self
    }

    /// The answer may take long.
    pub fn lasting(self) -> Call {
        Call { time_max: LASTING_TIME_MAX, ..self }
    }

    /// Adds a query parameter.
    pub fn query(mut self, name: &str, value: impl fmt::Display) -> Call {
        let gap = if self.target.contains('?') { '&' } else { '?' };
        self.target.push_str(&format!("{gap}{name}={}", segment(&value.to_string())));
        self
    }

    /// Adds a query parameter when there is a value.
    pub fn query_some(self, name: &str, value: Option<impl fmt::Display>) -> Call {
        match value {
            Some(value) => self.query(name, value),
            None => self,
        }
    }

    /// Adds a header.
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Call {
        self.headers.push((name, value.into()));
        self
    }
}

/// `text` as one segment of a path.
pub fn segment(text: &str) -> String {
    utf8_percent_encode(text, ENCODED).to_string()
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The body as it came.
    pub body: Bytes,
}

impl Reply {
    /// The body as JSON: an object, as every answer of a daemon is.
    pub fn json(&self) -> Result<Value, Failure> {
        serde_json::from_slice(&self.body).map(Value::Object).map_err(|error| {
            Failure::Failed(format!("The answer is no JSON object ({error}). Is that an aman daemon?"))
        })
    }

    /// True for 2xx.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// Where the daemon is and what opens it. Every call is a connection of its own.
#[derive(Clone)]
pub struct Client {
    /// `http://host:port`, for messages.
    base: String,
    host: String,
    port: u16,
    way: Way,
    token: Option<HeaderValue>,
    /// For a daemon that does not let it in: which token that is, and what would help.
    key: String,
}

/// How to reach a daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Way {
    Plain,
    /// By TLS; its certificate is in this file.
    Tls(Option<PathBuf>),
    /// By the Unix socket at this path.
    Unix(PathBuf),
}

/// A connection, whatever it is made of.
trait Link: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Link for T {}

impl Client {
    /// Finds the daemon: `--url`, else the address file that a running daemon keeps, else where it would listen.
    ///
    /// Its token: `--token`, else `AMAN_HTTP_TOKEN`, else, for an address of this machine, the configured or generated
    /// one.
    pub fn find(global: &Global) -> Result<Client, Failure> {
        let paths = Paths::find(global.home.as_deref()).map_err(|error| Failure::Usage(error.to_string()))?;
        let env = config::client_env();
        // A configuration that is broken must not keep anybody from asking the daemon; `aman doctor` tells of it.
        let flags = Flags::of_client(global.home.as_deref());
        let loaded = config::load(&flags).ok();
        let written = paths.address_files().iter().find_map(|file| plain::read(file, OWN_FILE_BYTES_MAX).ok());
        let may_guess = env.bind.is_some() || !paths.portable;
        let guessed =
            loaded.as_ref().filter(|_| may_guess).map(|config| config.http.bind).filter(|bind| bind.port() != 0);
        let base = match (&global.url, &written, guessed) {
            (Some(url), ..) => url.clone(),
            (None, Some(address), _) => address.clone(),
            (None, None, Some(bind)) => format!("http://{bind}"),
            (None, None, None) => {
                let address = format!("for the data folder {}", paths.data.display());
                return Err(Failure::NoDaemon { address, reason: format!("no {}", paths.address_file.display()) });
            }
        };
        let (base, host, port, mut way) = parse_url(base.trim())?;
        if let Way::Tls(cert) = &mut way {
            *cert = loaded.as_ref().and_then(|config| config.http.tls.as_ref()).map(|(cert, _)| cert.clone());
        }
        let given = global.token.clone().map(|token| (token, "--token".to_owned()));
        let given = given.or(env.token.map(|token| (token.expose().to_owned(), "AMAN_HTTP_TOKEN".to_owned())));
        let is_given = given.is_some();
        let own = || {
            let configured = config::configured_token(&flags).map(|token| token.expose().to_owned());
            let configured = configured.map(|token| (token, format!("http.token of {}", paths.config_file.display())));
            // The generated token is the key to one daemon, and only a written address is surely that daemon's.
            let known = global.url.is_some() || written.is_some();
            let kept = || plain::read(&paths.token_file, OWN_FILE_BYTES_MAX).ok().filter(|_| known);
            configured.or_else(|| Some((kept()?, paths.token_file.display().to_string())))
        };
        let token = given.or_else(|| if is_loopback(&host) { own() } else { None });
        let own = match plain::read(&paths.token_file, OWN_FILE_BYTES_MAX) {
            Err(error) => format!("{} cannot be read: {error}", paths.token_file.display()),
            Ok(_) => format!("{} is for addresses of this machine only", paths.token_file.display()),
        };
        let key = match &token {
            Some((_, from)) => key(&base, from, is_given, &paths),
            None => format!(
                "The daemon at {base} wants a token, and there is none: {own}. --home names the daemon's folder, \
                 AMAN_HTTP_TOKEN holds a token itself."
            ),
        };
        let token = token.map(|(token, _)| bearer(token.trim())).transpose()?;
        Ok(Client { base, host, port, way, token, key })
    }

    #[cfg(test)]
    pub fn at(base: &str) -> Client {
        let (base, host, port, way) = parse_url(base).expect("a test gives a valid URL");
        Client { base, host, port, way, token: None, key: String::new() }
    }

    /// `http://host:port`, `https://host:port` or `unix:/path`.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Sends `call`; an answer other than 2xx is a failure, see [`Client::refused`].
    pub async fn call(&self, call: Call) -> Result<Reply, Failure> {
        let reply = self.call_any(call).await?;
        if reply.is_success() { Ok(reply) } else { Err(self.refused(reply)) }
    }

    /// What an answer other than 2xx means.
    pub fn refused(&self, reply: Reply) -> Failure {
        match reply.status {
            401 => Failure::Locked { reply, key: self.key.clone() },
            _ => Failure::Refused(reply),
        }
    }

    /// Sends `call` and takes any status.
    pub async fn call_any(&self, call: Call) -> Result<Reply, Failure> {
        let time_max = call.time_max;
        let exchange = async {
            let response = self.send(call).await?;
            let status = response.status().as_u16();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|error| self.broken(error.as_ref()))?.to_bytes();
            Ok(Reply { status, body })
        };
        timeout(time_max, exchange).await.unwrap_or_else(|_| Err(self.silent(time_max)))
    }

    /// Sends `call` and gives the answer as soon as its head is there; the body is read by the caller.
    pub async fn open(&self, call: Call) -> Result<Response<Incoming>, Failure> {
        timeout(ANSWER_TIME_MAX, self.send(call)).await.unwrap_or_else(|_| Err(self.silent(ANSWER_TIME_MAX)))
    }

    /// Sends `call` for a stream, which is read by the caller; any answer but 200 is a failure.
    pub async fn stream(&self, call: Call) -> Result<Incoming, Failure> {
        let response = self.open(call).await?;
        let status = response.status().as_u16();
        if status == 200 {
            return Ok(response.into_body());
        }
        let body = timeout(REFUSAL_TIME_MAX, response.into_body().collect()).await;
        let body = body.ok().and_then(Result::ok).map(http_body_util::Collected::to_bytes).unwrap_or_default();
        Err(self.refused(Reply { status, body }))
    }

    async fn send(&self, call: Call) -> Result<Response<Incoming>, Failure> {
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(self.link().await?)).await.map_err(|error| self.broken(&error))?;
        // Its failures also arrive at the sender or the body, which report them.
        tokio::spawn(connection);
        let request = self.request(call)?;
        sender.send_request(request).await.map_err(|error| self.broken(&error))
    }

    async fn link(&self) -> Result<Box<dyn Link>, Failure> {
        let no_daemon = |reason: String| Failure::NoDaemon { address: format!("at {}", self.base), reason };
        let late = || no_daemon(format!("no connection within {} s", CONNECT_TIME_MAX.as_secs()));
        if let Way::Unix(path) = &self.way {
            let connected = timeout(CONNECT_TIME_MAX, UnixStream::connect(path)).await.map_err(|_| late())?;
            return Ok(Box::new(connected.map_err(|error| no_daemon(reason_of(&error)))?));
        }
        let host = self.host.trim_start_matches('[').trim_end_matches(']');
        let connected = timeout(CONNECT_TIME_MAX, TcpStream::connect((host, self.port))).await.map_err(|_| late())?;
        let stream = connected.map_err(|error| no_daemon(reason_of(&error)))?;
        // Small requests must not wait for the acknowledgement of the previous packet; without it they are only slower.
        drop(stream.set_nodelay(true));
        match &self.way {
            Way::Plain | Way::Unix(_) => Ok(Box::new(stream)),
            Way::Tls(Some(cert)) => {
                let encrypted =
                    timeout(CONNECT_TIME_MAX, tls::encrypt(stream, host, cert)).await.map_err(|_| late())?;
                let wrong =
                    |why| Failure::Failed(format!("{} is not the daemon of this configuration: {why}.", self.base));
                Ok(Box::new(encrypted.map_err(wrong)?))
            }
            Way::Tls(None) => Err(Failure::Usage(
                "For https the daemon's certificate must be known: set http.tls.cert (and key) in aman.toml."
                    .to_owned(),
            )),
        }
    }

    fn request(&self, call: Call) -> Result<Request<Full<Bytes>>, Failure> {
        let mut request = Request::new(Full::new(call.body));
        *request.method_mut() = call.method;
        *request.uri_mut() = call
            .target
            .parse::<Uri>()
            .map_err(|error| Failure::Usage(format!("'{}' is no path: {error}.", call.target)))?;
        let authority = format!("{}:{}", self.host, self.port);
        let authority = HeaderValue::try_from(authority)
            .map_err(|_| Failure::Usage("The host in --url has characters that no host has.".to_owned()))?;
        let headers = request.headers_mut();
        headers.insert(header::HOST, authority);
        headers.insert(header::USER_AGENT, HeaderValue::from_static(concat!("aman/", env!("CARGO_PKG_VERSION"))));
        for (name, value) in call.headers {
            let value = HeaderValue::try_from(value)
                .map_err(|_| Failure::Usage(format!("The value for {name} has characters that no header carries.")))?;
            headers.insert(HeaderName::from_static(name), value);
        }
        if let Some(token) = &self.token {
            headers.insert(header::AUTHORIZATION, token.clone());
        }
        Ok(request)
    }

    fn broken(&self, error: &(dyn std::error::Error + 'static)) -> Failure {
        let mut reason = error.to_string();
        let mut below = error.source();
        while let Some(error) = below {
            reason.push_str(&format!(": {error}"));
            below = error.source();
        }
        Failure::Failed(format!("The connection to {} broke ({reason}). It may have acted already.", self.base))
    }

    fn silent(&self, after: Duration) -> Failure {
        Failure::Failed(format!(
            "{} did not answer within {} s. It may have acted already.",
            self.base,
            after.as_secs()
        ))
    }
}

/// `(http://host:port, host, port, way)` of a base URL.
fn parse_url(text: &str) -> Result<(String, String, u16, Way), Failure> {
    if let Some(path) = text.strip_prefix("unix:") {
        return Ok((text.to_owned(), "localhost".to_owned(), 80, Way::Unix(PathBuf::from(path))));
    }
    let wrong = |why: &str| {
        Failure::Usage(format!("'{text}' is no address of a daemon: {why}. Example: http://127.0.0.1:9090"))
    };
    let text_with_scheme = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let uri: Uri = text_with_scheme.parse().map_err(|error| wrong(&format!("{error}")))?;
    let (scheme, way, port) = match uri.scheme_str() {
        Some("http") => ("http", Way::Plain, 80),
        Some("https") => ("https", Way::Tls(None), 443),
        _ => return Err(wrong("only http, https and unix are spoken here")),
    };
    if uri.path() != "/" || uri.query().is_some() {
        return Err(wrong("it has a path"));
    }
    let authority = uri.authority().ok_or_else(|| wrong("it has no host"))?;
    if authority.as_str().contains('@') {
        // Not quoted: what stands before the @ may be a password.
        return Err(Failure::Usage("--url must not hold a user or password; use AMAN_HTTP_TOKEN.".to_owned()));
    }
    let port = authority.port_u16().unwrap_or(port);
    Ok((format!("{scheme}://{}:{port}", authority.host()), authority.host().to_owned(), port, way))
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Says that `base` does not let in the token that was found at `from`, and what helps; `is_given`: the caller chose it.
fn key(base: &str, from: &str, is_given: bool, paths: &Paths) -> String {
    if is_given {
        return format!(
            "The daemon at {base} does not know the token in {from}, or not any more. Without it the daemon's own would be \
             used, from {}; --home names the folder of another daemon.",
            paths.token_file.display()
        );
    }
    format!(
        "The daemon at {base} does not know the token in {from}, which may be another daemon's. --home names the folder of \
         the one that is meant, AMAN_HTTP_TOKEN holds a token itself."
    )
}

fn bearer(token: &str) -> Result<HeaderValue, Failure> {
    let mut value = HeaderValue::try_from(format!("Bearer {token}"))
        .map_err(|_| Failure::Usage("The token has characters that no header carries.".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

fn reason_of(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::fake::Fake;

    #[test]
    fn urls() {
        for (given, expected) in [
            ("http://127.0.0.1:9090", Some("http://127.0.0.1:9090")),
            ("http://127.0.0.1:9090/", Some("http://127.0.0.1:9090")),
            ("localhost:81", Some("http://localhost:81")),
            ("http://[::1]:9", Some("http://[::1]:9")),
            ("http://box", Some("http://box:80")),
            ("https://127.0.0.1:9090", Some("https://127.0.0.1:9090")),
            ("https://box", Some("https://box:443")),
            ("unix:/run/aman.sock", Some("unix:/run/aman.sock")),
            ("ftp://box", None),
            ("http://127.0.0.1:9090/api", None),
            ("http://me:secret@127.0.0.1", None),
            ("", None),
        ] {
            let found = parse_url(given);
            match (&found, expected) {
                (Ok((base, ..)), Some(expected)) => assert_eq!(base, expected),
                (Err(failure), None) => assert!(!failure.message().contains("secret")),
                _ => panic!("{given}: {found:?}"),
            }
        }
        assert!(is_loopback("[::1]") && is_loopback("127.3.2.1") && is_loopback("LocalHost"));
        assert!(!is_loopback("127.0.0.1.example.com") && !is_loopback("10.0.0.1"));
    }

    #[test]
    fn paths_and_queries_are_encoded() {
        let call = Call::get(format!("/events/{}/why", segment("a/b c?ü")))
            .query("source", "x&y=1")
            .query_some("all", None::<bool>);
        assert_eq!(call.target, "/events/a%2Fb%20c%3F%C3%BC/why?source=x%26y%3D1");
    }

    #[tokio::test]
    async fn sends_what_the_daemon_needs_and_keeps_its_answer() {
        let fake = Fake::answering(&["HTTP/1.1 202 Accepted\r\ncontent-length: 9\r\n\r\n{\"id\": 1}"]).await;
        let mut client = Client::at(&fake.base);
        client.token = Some(bearer("t0ken").expect("a plain token is a header"));
        let reply =
            client.call(Call::post("/events/push").header("x-aman-confirm", "yes")).await.expect("202 is success");
        assert_eq!((reply.status, reply.body.as_ref()), (202, b"{\"id\": 1}".as_slice()));
        let [request] = fake.requests().try_into().expect("one request came");
        assert!(request.starts_with("POST /events/push HTTP/1.1\r\n"), "{request}");
        for line in ["authorization: Bearer t0ken", "x-aman-confirm: yes", "content-type: application/json"] {
            assert!(request.to_ascii_lowercase().contains(&line.to_ascii_lowercase()), "{line} in {request}");
        }
        assert!(request.ends_with("\r\n\r\n{}"));
    }

    #[tokio::test]
    async fn nobody_there_is_said_so() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback is there");
        let base = format!("http://{}", listener.local_addr().expect("it is bound"));
        drop(listener);
        let failure = Client::at(&base).call(Call::get("/health")).await.expect_err("nobody listens");
        assert_eq!(
            failure.message(),
            format!("No daemon answers at {base} (connection refused). Start it with `aman serve`.")
        );
    }
}
