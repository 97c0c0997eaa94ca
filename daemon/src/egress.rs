//! Outgoing HTTP: resolve, refuse private addresses, pin the address that was checked, check again on every redirect.
//!
//! One request, one connection: what is called here is called every few minutes, and a connection that is not kept
//! cannot point somewhere else later. Everything is bounded in time and bytes.

mod address;
pub mod mqtt;
mod stream;
mod tls;
mod trace;
mod url;

use std::fmt;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{HOST, HeaderMap, HeaderName, HeaderValue, LOCATION, USER_AGENT};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::clock::Millis;
use crate::config::broker::Secured;
pub use hyper::Method;
pub use stream::Streamed;
pub use url::Url;

/// How long one address may take to answer the connection.
const CONNECT_WAIT: Duration = Duration::from_secs(10);
/// The longest wait that the other side can ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(86_400);
/// Headers of an answer, in bytes.
const HEADER_BYTES_MAX: usize = 64 << 10;

/// What to ask.
#[derive(Debug, Clone)]
pub struct Ask {
    /// `GET` or `POST`.
    pub method: Method,
    /// Where.
    pub url: Url,
    /// Headers besides `Host` and `User-Agent`; they go to the first host only.
    pub headers: Vec<(String, String)>,
    /// What is sent.
    pub body: Bytes,
    /// Longest body of the answer; 0 = it is not read.
    pub bytes_max: usize,
    /// For everything together.
    pub time_max: Duration,
    /// How many redirects a `GET` follows.
    pub redirects_max: u8,
}

/// What one address may be asked with, decided anew wherever a redirect leads.
#[derive(Debug, Clone, Default)]
pub struct Leg {
    /// Headers for this address alone, in place of others of the same name.
    pub headers: Vec<(String, String)>,
    /// May be at a loopback or private address.
    pub private: bool,
}

/// What was answered.
#[derive(Debug, Clone)]
pub struct Heard {
    /// The status.
    pub status: u16,
    /// Names in lower case; values that are not text are left out.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Bytes,
}

impl Heard {
    /// The first value of a header; `name` in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// True for 2xx.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// How long `Retry-After` asks to wait, given as seconds or as a date; at most a day.
    pub fn retry_after(&self, now_ms: Millis) -> Option<Duration> {
        let text = self.header("retry-after")?.trim();
        let wait = match text.parse::<u64>() {
            Ok(seconds) => Duration::from_secs(seconds),
            Err(_) => {
                let at = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
                Duration::from_millis(u64::try_from(at.as_millisecond().saturating_sub(now_ms)).unwrap_or(0))
            }
        };
        Some(wait.min(RETRY_AFTER_MAX))
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EgressError {
    /// It may not be called: a private address, a bad redirect.
    Refused(String),
    /// It could not be reached; it has not seen the request.
    NotSent(String),
    /// The request left, and nobody knows what became of it.
    Unknown(String),
    /// The answer came and cannot be used.
    BadAnswer(String),
    /// The answer came and has more bytes than were wanted.
    TooLong(String),
}

impl fmt::Display for EgressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EgressError::Refused(why)
            | EgressError::NotSent(why)
            | EgressError::Unknown(why)
            | EgressError::BadAnswer(why)
            | EgressError::TooLong(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for EgressError {}

/// The way out; cheap to clone.
#[derive(Clone)]
pub struct Egress {
    shared: Arc<Shared>,
}

struct Shared {
    allow_private: bool,
    /// Made when the first https address is called: reading the machine's certificates takes a while.
    tls: OnceLock<Result<TlsConnector, String>>,
}

impl Egress {
    /// A way out; `allow_private` lets it reach loopback, private, link-local and metadata addresses.
    pub fn new(allow_private: bool) -> Egress {
        Egress { shared: Arc::new(Shared { allow_private, tls: OnceLock::new() }) }
    }

    /// Asks, and follows redirects of a `GET`.
    pub async fn ask(&self, ask: Ask) -> Result<Heard, EgressError> {
        self.ask_by(ask, |_| Ok(Leg::default())).await
    }

    /// As [`Egress::ask`]; `rule` decides for the address and for wherever a redirect leads, or says why not.
    pub async fn ask_by(
        &self,
        mut ask: Ask,
        rule: impl Fn(&Url) -> Result<Leg, String> + Sync,
    ) -> Result<Heard, EgressError> {
        let (time_max, sent) = (ask.time_max, Arc::new(OnceLock::new()));
        let span = trace::begin(&mut ask);
        let heard = match tokio::time::timeout(time_max, self.follow(ask, &rule, &sent)).await {
            Ok(heard) => heard,
            Err(_) => Err(silent(time_max, &sent)),
        };
        if let Some(span) = span {
            trace::end(span, &heard.as_ref());
        }
        heard
    }

    async fn follow(
        &self,
        mut ask: Ask,
        rule: &(impl Fn(&Url) -> Result<Leg, String> + Sync),
        sent: &OnceLock<()>,
    ) -> Result<Heard, EgressError> {
        loop {
            let leg = rule(&ask.url).map_err(EgressError::Refused)?;
            let heard = self.once(&ask, &leg, sent).await?;
            let moved = [301, 302, 303, 307, 308].contains(&heard.status);
            let Some(place) = heard.header(LOCATION.as_str()).filter(|_| moved && ask.method == Method::GET) else {
                return Ok(heard);
            };
            if ask.redirects_max == 0 {
                return Ok(heard);
            }
            let next = ask.url.join(place).map_err(|why| EgressError::Refused(format!("redirected: {why}")))?;
            if ask.url.is_tls() && !next.is_tls() {
                return Err(EgressError::Refused("redirected from https to http".to_owned()));
            }
            if next.authority() != ask.url.authority() || next.is_tls() != ask.url.is_tls() {
                // They may hold credentials, which are meant for the host that was named.
                ask.headers.clear();
            }
            ask.url = next;
            ask.redirects_max -= 1;
        }
    }

    async fn once(&self, ask: &Ask, leg: &Leg, sent: &OnceLock<()>) -> Result<Heard, EgressError> {
        let (response, mut driving) = self.send(ask, leg, sent).await?;
        let (parts, body) = response.into_parts();
        let body = driving.until(read(body, ask.bytes_max)).await?;
        Ok(Heard { status: parts.status.as_u16(), headers: texts(&parts.headers), body })
    }

    /// Sends the request over a connection of its own, which ends with what drives it.
    async fn send(&self, ask: &Ask, leg: &Leg, sent: &OnceLock<()>) -> Result<Answering, EgressError> {
        let tcp = self.connect(&ask.url, leg.private).await?;
        if !ask.url.is_tls() {
            return exchange(tcp, ask, leg, sent).await;
        }
        let tls = self.encrypt(tcp, ask.url.host(), &Secured::default()).await;
        let tls = tls.map_err(EgressError::NotSent)?;
        exchange(tls, ask, leg, sent).await
    }

    /// Encrypts a connection to `host`, which must have a certificate for that name.
    async fn encrypt(&self, tcp: TcpStream, host: &str, secured: &Secured) -> Result<TlsStream<TcpStream>, String> {
        let connector = match secured {
            Secured { ca: None, client: None } => self.shared.tls.get_or_init(tls::usual).clone()?,
            named => tls::connector(named)?,
        };
        let no_name = |_| format!("'{host}' is no name that a certificate can have");
        let name = ServerName::try_from(host.to_owned()).map_err(no_name)?;
        let failed = |error| format!("no secure connection to {host}: {error}");
        connector.connect(name, tcp).await.map_err(failed)
    }

    /// Connects to an address that was checked: what the name means a moment later does not matter. `private` allows
    /// private addresses for this connection.
    async fn connect(&self, url: &Url, private: bool) -> Result<TcpStream, EgressError> {
        let private = private || self.shared.allow_private;
        let host = url.host();
        let found = tokio::net::lookup_host((host, url.port())).await;
        let all: Vec<SocketAddr> =
            found.map_err(|error| EgressError::NotSent(format!("'{host}' cannot be resolved: {error}")))?.collect();
        let allowed: Vec<&SocketAddr> = all.iter().filter(|at| private || address::is_public(at.ip())).collect();
        if allowed.is_empty() {
            let Some(first) = all.first() else {
                return Err(EgressError::NotSent(format!("'{host}' has no address")));
            };
            let why = format!(
                "'{host}' is at {}, a private address; http_client.allow_private = true would allow it",
                first.ip()
            );
            return Err(EgressError::Refused(why));
        }
        let mut last = String::new();
        for at in allowed {
            match tokio::time::timeout(CONNECT_WAIT, TcpStream::connect(at)).await {
                Ok(Ok(stream)) => {
                    let _faster = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Ok(Err(error)) => last = error.to_string(),
                Err(_) => last = format!("no connection within {} s", CONNECT_WAIT.as_secs()),
            }
        }
        Err(EgressError::NotSent(format!("{host}:{} cannot be reached: {last}", url.port())))
    }
}

/// Why there is no answer after `time_max`.
fn silent(time_max: Duration, sent: &OnceLock<()>) -> EgressError {
    let why = format!("no answer within {} s", time_max.as_secs_f64());
    if sent.get().is_some() { EgressError::Unknown(why) } else { EgressError::NotSent(why) }
}

/// The head of an answer, and what reads the rest of it off the connection.
type Answering = (Response<Incoming>, Driving);

/// A connection, driven by whoever waits for something that comes off it: a task of its own would have to be woken, and
/// would have to wake the one that waits, for each piece of an answer.
struct Driving(Option<Driven>);

/// A connection until its end.
type Driven = Pin<Box<dyn Future<Output = Result<(), hyper::Error>> + Send>>;

impl Driving {
    /// Drives the connection until `wanted` is there, which hears of its end by itself.
    async fn until<T>(&mut self, wanted: impl Future<Output = T>) -> T {
        let mut wanted = pin!(wanted);
        poll_fn(|cx| {
            if self.0.as_mut().is_some_and(|connection| connection.as_mut().poll(cx).is_ready()) {
                self.0 = None;
            }
            wanted.as_mut().poll(cx)
        })
        .await
    }
}

async fn exchange<S>(stream: S, ask: &Ask, leg: &Leg, sent: &OnceLock<()>) -> Result<Answering, EgressError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let unsent = |error: hyper::Error| EgressError::NotSent(error.to_string());
    let request = request(ask, leg)?;
    let (mut sender, connection) =
        http1::Builder::new().max_buf_size(HEADER_BYTES_MAX).handshake(TokioIo::new(stream)).await.map_err(unsent)?;
    let mut driving = Driving(Some(Box::pin(connection)));
    let _first = sent.set(());
    let lost = |error: hyper::Error| EgressError::Unknown(format!("the connection broke: {error}"));
    Ok((driving.until(sender.send_request(request)).await.map_err(lost)?, driving))
}

/// Headers whose values are text.
fn texts(headers: &HeaderMap) -> Vec<(String, String)> {
    let text =
        |(name, value): (&HeaderName, &HeaderValue)| Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned()));
    headers.iter().filter_map(text).collect()
}

fn request(ask: &Ask, leg: &Leg) -> Result<Request<Full<Bytes>>, EgressError> {
    let bad = |what: &str| EgressError::Refused(format!("{what} cannot be sent as a header"));
    let mut request = Request::new(Full::new(ask.body.clone()));
    *request.method_mut() = ask.method.clone();
    *request.uri_mut() =
        ask.url.path_and_query().parse().map_err(|_| EgressError::Refused("the path is not valid".to_owned()))?;
    let headers = request.headers_mut();
    for (name, value) in &ask.headers {
        let header = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad(name))?;
        headers.append(header, HeaderValue::from_str(value).map_err(|_| bad(name))?);
    }
    for (name, value) in &leg.headers {
        let header = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad(name))?;
        let mut value = HeaderValue::from_str(value).map_err(|_| bad(name))?;
        value.set_sensitive(true);
        headers.insert(header, value);
    }
    headers.insert(HOST, HeaderValue::from_str(ask.url.authority()).map_err(|_| bad("the host"))?);
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("aman/", env!("CARGO_PKG_VERSION"))));
    Ok(request)
}

async fn read(mut body: Incoming, bytes_max: usize) -> Result<Bytes, EgressError> {
    if bytes_max == 0 {
        return Ok(Bytes::new());
    }
    let mut whole = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| EgressError::BadAnswer(format!("the answer was cut off: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if whole.len() + data.len() > bytes_max {
            return Err(EgressError::TooLong(format!("the answer has more than {bytes_max} bytes")));
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.into())
}

/// The words of a status, such as `404 Not Found`.
pub fn status_text(status: u16) -> String {
    let known = StatusCode::from_u16(status).ok().and_then(|code| code.canonical_reason());
    known.map_or_else(|| status.to_string(), |words| format!("{status} {words}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_read_in_both_forms() {
        let heard = |value: &str| Heard {
            status: 429,
            headers: vec![("retry-after".to_owned(), value.to_owned())],
            body: Bytes::new(),
        };
        let now_ms = crate::clock::parse_rfc3339("2026-11-22T03:00:00Z").expect("a time");
        for (value, seconds) in [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("Sun, 22 Nov 2026 03:01:00 GMT", Some(60)),
            ("Sun, 22 Nov 2026 02:00:00 GMT", Some(0)),
            ("99999999999", Some(86_400)),
            ("Mon, 22 Nov 2027 03:00:00 GMT", Some(86_400)),
            ("soon", None),
        ] {
            assert_eq!(heard(value).retry_after(now_ms), seconds.map(Duration::from_secs), "{value}");
        }
    }

    #[tokio::test]
    async fn private_addresses_are_refused() {
        let egress = Egress::new(false);
        for url in ["http://127.0.0.1:1/", "http://localhost:1/", "http://[::1]:1/", "http://169.254.169.254/latest"] {
            let ask = Ask {
                method: Method::GET,
                url: Url::parse(url).expect(url),
                headers: Vec::new(),
                body: Bytes::new(),
                bytes_max: 10,
                time_max: Duration::from_secs(5),
                redirects_max: 0,
            };
            assert!(matches!(egress.ask(ask).await, Err(EgressError::Refused(_))), "{url}");
        }
    }
}
