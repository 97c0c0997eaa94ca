//! The client's half of streamable HTTP over whatever way out the caller has: no HTTP library of its own.

use std::borrow::Cow;
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{BoxStream, Stream, StreamExt};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue, WWW_AUTHENTICATE};
use rmcp::model::{ClientJsonRpcMessage, ClientRequest, ErrorData, ServerJsonRpcMessage};
use rmcp::transport::common::client_side_sse::ExponentialBackoff;
use rmcp::transport::streamable_http_client::{
    AuthRequiredError, SseError, StreamableHttpClient, StreamableHttpClientTransportConfig, StreamableHttpError,
    StreamableHttpPostResponse,
};
use sse_stream::{Sse, SseStream};

use crate::MESSAGE_BYTES_MAX;

/// How much of an error page is told.
const PAGE_BYTES_MAX: usize = 2 << 10;
/// How long a stream is not asked for again after one has ended.
const STREAM_WAIT: Duration = Duration::from_secs(1);
const SESSION: &str = "mcp-session-id";
const LAST_EVENT: &str = "last-event-id";
const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream";

/// A request to a server; where that is its way out knows, and so what the operator wants sent with each.
#[derive(Debug, Clone)]
pub struct Request {
    /// `GET`, `POST` or `DELETE`.
    pub method: &'static str,
    /// Names in lower case, and their values.
    pub headers: Vec<(String, String)>,
    /// What is sent.
    pub body: Bytes,
}

/// A body as it comes; it ends with an error when the connection does.
pub type Pieces = Pin<Box<dyn Stream<Item = Result<Bytes, std::io::Error>> + Send>>;

/// A body that `next` gives piece by piece: what comes, with what to ask for more.
pub fn pieces<T, N, F>(from: T, next: N) -> Pieces
where
    T: Send + 'static,
    N: FnMut(T) -> F + Send + 'static,
    F: Future<Output = Option<(Result<Bytes, std::io::Error>, T)>> + Send + 'static,
{
    Box::pin(futures_util::stream::unfold(from, next))
}

/// What a server answers.
pub struct Heard {
    /// The status.
    pub status: u16,
    /// Names in lower case, and their values.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Pieces,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Unsent {
    /// In words.
    pub why: String,
    /// True when the server may have seen the request.
    pub may_have_left: bool,
}

/// A request under way.
pub type Sending = Pin<Box<dyn Future<Output = Result<Heard, Unsent>> + Send>>;
/// The way out: sends a request and gives the head of the answer as soon as it is there.
pub type WayOut = Arc<dyn Fn(Request) -> Sending + Send + Sync>;

/// How the transport is to behave.
pub(crate) fn config(url: &str) -> StreamableHttpClientTransportConfig {
    let mut config = StreamableHttpClientTransportConfig::with_uri(url);
    config.max_sse_event_size = MESSAGE_BYTES_MAX;
    config.max_json_response_size = MESSAGE_BYTES_MAX;
    // A stream is asked for again as long as the connection lasts: its end does not end that.
    let mut retry = ExponentialBackoff::default();
    (retry.max_times, retry.max_delay) = (None, Some(Duration::from_secs(60)));
    config.retry_config = Arc::new(retry);
    config
}

/// A client of one server.
#[derive(Clone)]
pub(crate) struct Out {
    /// The way out.
    pub send: WayOut,
    /// True once a stream was asked for.
    pub streamed: Arc<AtomicBool>,
}

type Failed = StreamableHttpError<Unsent>;
type Headers = HashMap<HeaderName, HeaderValue>;

impl Out {
    async fn ask(
        &self,
        method: &'static str,
        body: Bytes,
        (session, auth, custom): (Option<Arc<str>>, Option<String>, Headers),
        more: &[(&str, &str)],
    ) -> Result<Heard, Failed> {
        let mut headers: Vec<(String, String)> = Vec::new();
        let mut set = |name: &str, value: &str| {
            headers.retain(|(known, _)| known != name);
            headers.push((name.to_owned(), value.to_owned()));
        };
        for (name, value) in &custom {
            if let Ok(value) = value.to_str() {
                set(name.as_str(), value);
            }
        }
        more.iter().for_each(|(name, value)| set(name, value));
        if let Some(session) = session {
            set(SESSION, &session);
        }
        if let Some(auth) = auth {
            set(AUTHORIZATION.as_str(), &format!("Bearer {auth}"));
        }
        (self.send)(Request { method, headers, body }).await.map_err(StreamableHttpError::Client)
    }
}

impl Heard {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn is(&self, media_type: &str) -> bool {
        let given = self.header(CONTENT_TYPE.as_str()).unwrap_or_default();
        given.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(media_type)
    }

    fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The body, at most `bytes_max` of it; more is an error, or with `cut` left out.
    async fn read(mut self, bytes_max: usize, cut: bool) -> Result<Vec<u8>, Failed> {
        let mut whole = Vec::new();
        while let Some(piece) = self.body.next().await {
            let piece = piece?;
            if whole.len() + piece.len() > bytes_max {
                if cut {
                    whole.extend_from_slice(&piece[..bytes_max - whole.len()]);
                    break;
                }
                return Err(StreamableHttpError::ResponseBodyTooLarge { max_size: bytes_max });
            }
            whole.extend_from_slice(&piece);
        }
        Ok(whole)
    }

    /// The events of the body.
    fn events(self) -> BoxStream<'static, Result<Sse, SseError>> {
        let mut size = EventSize::default();
        let bounded = self.body.map(move |piece| {
            let piece = piece?;
            if size.is_too_much(&piece) {
                return Err(std::io::Error::other(format!("an event has more than {MESSAGE_BYTES_MAX} bytes")));
            }
            Ok(piece)
        });
        SseStream::from_bytes_stream(bounded).boxed()
    }
}

/// How long the event is that is being read.
#[derive(Default)]
struct EventSize {
    event: usize,
    line: usize,
}

impl EventSize {
    fn is_too_much(&mut self, piece: &[u8]) -> bool {
        for byte in piece {
            match byte {
                b'\n' if self.line == 0 => self.event = 0,
                b'\n' => self.line = 0,
                b'\r' => {}
                _ => self.line += 1,
            }
            self.event += 1;
        }
        self.event > MESSAGE_BYTES_MAX
    }
}

/// What went wrong before a body was read, if something did.
fn refusal(heard: &Heard, had_session: bool) -> Option<Failed> {
    match heard.status {
        401 => {
            let wanted = heard.header(WWW_AUTHENTICATE.as_str()).unwrap_or("(it does not say how)").to_owned();
            Some(StreamableHttpError::AuthRequired(AuthRequiredError::new(wanted)))
        }
        404 if had_session => Some(StreamableHttpError::SessionExpired),
        _ => None,
    }
}

fn unexpected(text: String) -> Failed {
    StreamableHttpError::UnexpectedServerResponse(Cow::Owned(text))
}

/// A server of before 2026 refuses the question which versions it knows in many ways; all of them mean that.
fn as_old_server(
    message: &ClientJsonRpcMessage,
    status: u16,
    said: Option<ErrorData>,
) -> Option<StreamableHttpPostResponse> {
    let ClientJsonRpcMessage::Request(request) = message else { return None };
    if !(400..500).contains(&status) || status == 403 || !matches!(request.request, ClientRequest::DiscoverRequest(_)) {
        return None;
    }
    let said = said.unwrap_or_else(|| ErrorData::invalid_request(format!("refused with HTTP {status}"), None));
    let error = ServerJsonRpcMessage::error(said, Some(request.id.clone()));
    Some(StreamableHttpPostResponse::Json(error, None))
}

impl StreamableHttpClient for Out {
    type Error = Unsent;

    async fn post_message(
        &self,
        _uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        auth_header: Option<String>,
        custom_headers: Headers,
    ) -> Result<StreamableHttpPostResponse, Failed> {
        let body = Bytes::from(serde_json::to_vec(&message)?);
        let had_session = session_id.is_some();
        let more = [(CONTENT_TYPE.as_str(), JSON), (ACCEPT.as_str(), "application/json, text/event-stream")];
        let heard = self.ask("POST", body, (session_id, auth_header, custom_headers), &more).await?;
        if let Some(refusal) = refusal(&heard, had_session) {
            return Err(refusal);
        }
        let (status, is_json) = (heard.status, heard.is(JSON));
        let session = heard.header(SESSION).map(str::to_owned);
        if matches!(status, 202 | 204) {
            return Ok(StreamableHttpPostResponse::Accepted);
        }
        if !heard.is_success() {
            let bytes_max = if is_json { MESSAGE_BYTES_MAX } else { PAGE_BYTES_MAX };
            let page = heard.read(bytes_max, !is_json).await?;
            let said = match serde_json::from_slice::<ServerJsonRpcMessage>(&page) {
                Ok(ServerJsonRpcMessage::Error(error)) => Some(error),
                _ => None,
            };
            let told = said.as_ref().map(|error| error.error.clone());
            if let Some(old) = as_old_server(&message, status, told).filter(|_| !had_session) {
                return Ok(old);
            }
            if let Some(error) = said {
                return Ok(StreamableHttpPostResponse::Json(ServerJsonRpcMessage::Error(error), session));
            }
            let page = String::from_utf8_lossy(&page[..page.len().min(PAGE_BYTES_MAX)]).into_owned();
            return Err(unexpected(format!("HTTP {status}: {}", page.trim())));
        }
        let awaits = matches!(message, ClientJsonRpcMessage::Request(_));
        if heard.is(EVENTS) {
            return Ok(StreamableHttpPostResponse::Sse(heard.events(), session));
        }
        if !awaits {
            return Ok(StreamableHttpPostResponse::Accepted);
        }
        if !is_json {
            let given = heard.header(CONTENT_TYPE.as_str()).map(str::to_owned);
            return Err(StreamableHttpError::UnexpectedContentType(given));
        }
        let body = heard.read(MESSAGE_BYTES_MAX, false).await?;
        let parsed = serde_json::from_slice(&body);
        let parsed = parsed.map_err(|error| unexpected(format!("its answer is no message: {error}")))?;
        Ok(StreamableHttpPostResponse::Json(parsed, session))
    }

    async fn delete_session(
        &self,
        _uri: Arc<str>,
        session_id: Arc<str>,
        auth_header: Option<String>,
        custom_headers: Headers,
    ) -> Result<(), Failed> {
        let heard = self.ask("DELETE", Bytes::new(), (Some(session_id), auth_header, custom_headers), &[]).await?;
        match heard.status {
            405 => Err(StreamableHttpError::ServerDoesNotSupportDeleteSession),
            _ if heard.is_success() => Ok(()),
            status => Err(unexpected(format!("HTTP {status}"))),
        }
    }

    async fn get_stream(
        &self,
        _uri: Arc<str>,
        session_id: Option<Arc<str>>,
        last_event_id: Option<String>,
        auth_header: Option<String>,
        custom_headers: Headers,
    ) -> Result<BoxStream<'static, Result<Sse, SseError>>, Failed> {
        // The library asks again at once when a stream breaks, however often that is.
        if self.streamed.swap(true, Ordering::Relaxed) {
            tokio::time::sleep(STREAM_WAIT).await;
        }
        let had_session = session_id.is_some();
        let mut more = vec![(ACCEPT.as_str(), EVENTS)];
        more.extend(last_event_id.as_deref().map(|id| (LAST_EVENT, id)));
        let heard = self.ask("GET", Bytes::new(), (session_id, auth_header, custom_headers), &more).await?;
        if heard.status == 405 {
            return Err(StreamableHttpError::ServerDoesNotSupportSse);
        }
        if let Some(refusal) = refusal(&heard, had_session) {
            return Err(refusal);
        }
        if !heard.is_success() {
            return Err(unexpected(format!("HTTP {}", heard.status)));
        }
        if !heard.is(EVENTS) {
            return Err(StreamableHttpError::ServerDoesNotSupportSse);
        }
        Ok(heard.events())
    }
}
