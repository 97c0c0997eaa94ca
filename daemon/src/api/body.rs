//! Bodies: capped JSON in, JSON out.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use memmap2::MmapMut;
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::problem::Problem;
use super::stream::Stream;
use super::turn_stream::TurnStream;
use crate::error::{Error, FieldError, distance};
use crate::event;
use crate::id::TraceId;
use crate::package::PUBLIC_BODY_MAX;

/// How long a client may take to send its body.
const BODY_WAIT: Duration = Duration::from_secs(20);

/// So much of each body takes no room: small requests get in whatever others send.
const ROOM_FREE_BYTES: usize = 16 << 10;
/// Bytes that the bodies of callers with credentials may have together, from their first byte to their answer.
const ROOM_BYTES_MAX: usize = 64 << 20;
/// The same for everybody else, as whoever calls a webhook; and once more for strangers at the routes of plugins.
const ROOM_BYTES_MAX_PUBLIC: usize = PUBLIC_BODY_MAX;
/// Room is taken in steps of this size.
const ROOM_STEP_BYTES: usize = 64 << 10;
/// Bodies that may become this large are in pages of their own.
const PAGES_FROM_BYTES: usize = 64 << 10;
const ROOM_RETRY_MS: u64 = 2000;
/// Hex digits of a SHA-256.
const DIGEST_DIGITS: usize = 64;

/// The memory that bodies may take, shared by all connections. Strangers have their own, so that they cannot take that
/// of callers with credentials; at the routes of plugins another, so that a slow plugin cannot take that of webhooks.
pub struct Rooms {
    known: Arc<Semaphore>,
    public: Arc<Semaphore>,
    guests: Arc<Semaphore>,
}

impl Default for Rooms {
    fn default() -> Rooms {
        Rooms {
            known: Arc::new(Semaphore::new(ROOM_BYTES_MAX)),
            public: Arc::new(Semaphore::new(ROOM_BYTES_MAX_PUBLIC)),
            guests: Arc::new(Semaphore::new(ROOM_BYTES_MAX_PUBLIC)),
        }
    }
}

impl Rooms {
    /// Room for the body of one request; none is taken yet.
    pub fn of(&self, is_known: bool, is_guest: bool) -> Room {
        let rooms = match (is_known, is_guest) {
            (true, _) => &self.known,
            (false, false) => &self.public,
            (false, true) => &self.guests,
        };
        Room { rooms: Arc::clone(rooms), taken: None }
    }
}

/// What one body takes of [`Rooms`]; given back when it is dropped.
pub struct Room {
    rooms: Arc<Semaphore>,
    taken: Option<OwnedSemaphorePermit>,
}

impl Room {
    /// Takes room for a body that has grown to `bytes`.
    pub fn grow(&mut self, bytes: usize) -> Result<(), Problem> {
        let taken = self.taken.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let wanted = bytes.saturating_sub(ROOM_FREE_BYTES);
        if wanted <= taken {
            return Ok(());
        }
        let more = u32::try_from((wanted - taken).next_multiple_of(ROOM_STEP_BYTES)).unwrap_or(u32::MAX);
        let Ok(permit) = Arc::clone(&self.rooms).try_acquire_many_owned(more) else {
            let detail = "Other requests with large bodies take all the memory there is for them. Try again.";
            let problem = Problem::new((StatusCode::SERVICE_UNAVAILABLE, "overloaded"), detail);
            return Err(problem.retry_after_ms(ROOM_RETRY_MS));
        };
        match &mut self.taken {
            Some(taken) => taken.merge(permit),
            None => self.taken = Some(permit),
        }
        Ok(())
    }

    /// Lets `bytes` have the room: it is given back with the last that refers to them.
    pub fn leave_to(&mut self, bytes: Bytes) -> Bytes {
        match self.taken.take() {
            Some(room) => Bytes::from_owner(Housed { bytes, _room: room }),
            None => bytes,
        }
    }
}

/// Bytes with the room that they take.
struct Housed {
    bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Housed {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// What is sent: bytes that are there, or a stream that goes on.
pub enum Body {
    /// All of it; `None` once it is sent.
    Full(Option<Bytes>),
    /// Server-sent events.
    Stream(Box<Stream>),
    /// The frames of one turn.
    Turn(Box<TurnStream>),
    /// What a plugin makes while it is sent.
    Guest(Box<crate::plugins::Stream>),
}

impl Body {
    /// A body of these bytes.
    pub fn full(bytes: impl Into<Bytes>) -> Body {
        Body::Full(Some(bytes.into()))
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        match &mut *self {
            Body::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Body::Stream(stream) => stream.poll_bytes(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes)))),
            Body::Turn(stream) => stream.poll_bytes(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes)))),
            Body::Guest(stream) => stream.poll_piece(cx).map(|piece| {
                let frame = |piece: Vec<u8>| Frame::data(Bytes::from(piece));
                piece.map(|piece| piece.map(frame).map_err(std::io::Error::other))
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Full(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Body::Stream(_) | Body::Turn(_) | Body::Guest(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Body::Stream(_) | Body::Turn(_) | Body::Guest(_) => SizeHint::default(),
        }
    }
}

/// What a handler answers.
pub struct Reply {
    /// HTTP status.
    pub status: StatusCode,
    /// Media type of the body.
    pub content_type: &'static str,
    /// Headers beyond those that every answer has.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// What is sent.
    pub body: Body,
    /// The trace that the request began, when that is not the request's own.
    pub trace: Option<TraceId>,
}

/// An answer of JSON text that is already written.
pub fn raw(status: StatusCode, json: impl Into<Bytes>) -> Reply {
    Reply { status, content_type: "application/json", headers: Vec::new(), body: Body::full(json), trace: None }
}

/// An answer with `value` as JSON.
pub fn reply(status: StatusCode, value: &impl Serialize) -> Result<Reply, Problem> {
    let json = serde_json::to_vec(value).map_err(Error::internal("encoding an answer"))?;
    Ok(raw(status, json))
}

/// 200 with `value` as JSON.
pub fn ok(value: &impl Serialize) -> Result<Reply, Problem> {
    reply(StatusCode::OK, value)
}

/// Reads a whole body of at most `bytes_max` bytes. Its memory grows as the bytes come, whatever the headers promise,
/// and only as far as there is `room`.
pub async fn bytes(
    headers: &HeaderMap,
    mut body: Incoming,
    bytes_max: usize,
    room: &mut Room,
) -> Result<Bytes, Problem> {
    let too_large = || {
        let detail = format!("The body may have at most {bytes_max} bytes. Send less, or several requests.");
        Problem::new((StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"), detail)
    };
    if body.size_hint().exact().is_some_and(|n| n > bytes_max as u64) {
        return Err(too_large());
    }
    if headers.contains_key(hyper::header::CONTENT_ENCODING) {
        let detail = "Send the body as it is, without Content-Encoding.";
        return Err(Problem::new((StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type"), detail));
    }
    let length = body.size_hint().exact().and_then(|n| usize::try_from(n).ok()).unwrap_or(bytes_max);
    let read = async {
        // Most bodies are one frame: no copy then.
        let (mut first, mut more): (Bytes, Option<Gathered>) = (Bytes::new(), None);
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else {
                return Err(Error::invalid("body", "could not be read: it was cut off or is broken.").into());
            };
            let Ok(data) = frame.into_data() else { continue };
            let size = more.as_ref().map_or(first.len(), Gathered::len) + data.len();
            if size > bytes_max {
                return Err(too_large());
            }
            room.grow(size)?;
            match &mut more {
                Some(gathered) => gathered.add(&data),
                None if first.is_empty() => first = data,
                None => {
                    let mut gathered = Gathered::new(length)?;
                    gathered.add(&std::mem::take(&mut first));
                    gathered.add(&data);
                    more = Some(gathered);
                }
            }
        }
        Ok(more.map_or(first, Gathered::into_bytes))
    };
    match tokio::time::timeout(BODY_WAIT, read).await {
        Ok(result) => result,
        Err(_) => {
            let detail = format!("The body did not arrive within {} s. Send it in one go.", BODY_WAIT.as_secs());
            Err(Problem::new((StatusCode::REQUEST_TIMEOUT, "request_timeout"), detail))
        }
    }
}

/// A body of several frames. A large one is in pages of its own, which exist once bytes are in them and which the system
/// has back with the last byte that refers to them: an allocator would keep most of them, scattered, for good.
enum Gathered {
    Small(Vec<u8>),
    Large(Pages),
}

struct Pages {
    map: MmapMut,
    filled: usize,
}

impl AsRef<[u8]> for Pages {
    fn as_ref(&self) -> &[u8] {
        &self.map[..self.filled]
    }
}

impl Gathered {
    /// For at most `bytes_max` bytes.
    fn new(bytes_max: usize) -> Result<Gathered, Problem> {
        if bytes_max < PAGES_FROM_BYTES {
            return Ok(Gathered::Small(Vec::new()));
        }
        let map = MmapMut::map_anon(bytes_max).map_err(|_| {
            let detail = "There is no memory for so large a body at the moment. Try again.";
            Problem::new((StatusCode::SERVICE_UNAVAILABLE, "overloaded"), detail).retry_after_ms(ROOM_RETRY_MS)
        })?;
        Ok(Gathered::Large(Pages { map, filled: 0 }))
    }

    fn len(&self) -> usize {
        match self {
            Gathered::Small(bytes) => bytes.len(),
            Gathered::Large(pages) => pages.filled,
        }
    }

    /// Adds bytes; the caller has seen that they are not too many.
    fn add(&mut self, data: &[u8]) {
        match self {
            Gathered::Small(bytes) => bytes.extend_from_slice(data),
            Gathered::Large(pages) => {
                pages.map[pages.filled..pages.filled + data.len()].copy_from_slice(data);
                pages.filled += data.len();
            }
        }
    }

    fn into_bytes(self) -> Bytes {
        match self {
            Gathered::Small(bytes) => bytes.into(),
            Gathered::Large(pages) => Bytes::from_owner(pages),
        }
    }
}

/// The media type of a request without its parameters, in lower case; `None` when there is none.
pub fn media_type(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get(CONTENT_TYPE) else { return Ok(None) };
    let text = value.to_str().map_err(|_| unsupported("(unreadable)"))?;
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    Ok((!essence.is_empty()).then_some(essence))
}

/// 415 for a media type that the route does not take.
pub fn unsupported(given: &str) -> Problem {
    let detail = format!("Content-Type '{given}' is not taken here. Send application/json (with curl: --json).");
    Problem::new((StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type"), detail)
}

/// The fields of a JSON object, taken one by one; what is wrong is gathered, what nobody takes is refused by name.
pub struct Fields {
    left: Map<String, Value>,
    known: Vec<&'static str>,
    wrong: Vec<FieldError>,
}

impl Fields {
    /// Reads `bytes` as a JSON object; nothing counts as `{}`.
    pub fn read(headers: &HeaderMap, bytes: &[u8]) -> Result<Fields, Problem> {
        if let Some(essence) = media_type(headers)?
            && !event::is_json(&essence)
        {
            return Err(unsupported(&essence));
        }
        let left = if bytes.iter().all(u8::is_ascii_whitespace) {
            Map::new()
        } else {
            event::read_json::<Map<String, Value>>(bytes)
                .map_err(|error| Error::invalid("body", format!("must be a JSON object: {error}.")))?
        };
        Ok(Fields { left, known: Vec::new(), wrong: Vec::new() })
    }

    /// Fields that came otherwise than as a body.
    pub fn of(left: Map<String, Value>) -> Fields {
        Fields { left, known: Vec::new(), wrong: Vec::new() }
    }

    /// A field of any name, if it is there; `null` counts as absent.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.left.remove(name).filter(|value| !value.is_null())
    }

    /// An optional text; `null` counts as absent.
    pub fn text(&mut self, name: &'static str) -> Option<String> {
        self.known.push(name);
        match self.left.remove(name) {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Some(text),
            Some(_) => {
                self.wrong.push(FieldError { field: name.to_owned(), reason: "must be a string.".to_owned() });
                None
            }
        }
    }

    /// The digest of some content, as it is shown; `null` counts as absent.
    pub fn digest(&mut self, name: &'static str) -> Option<String> {
        let text = self.text(name)?;
        if text.len() == DIGEST_DIGITS && text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Some(text);
        }
        let reason = format!("must be the {DIGEST_DIGITS} hex digits that are shown.");
        self.wrong.push(FieldError { field: name.to_owned(), reason });
        None
    }

    /// Any value; `null` counts as absent.
    pub fn value(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        self.left.remove(name).filter(|value| !value.is_null())
    }

    /// A text that must be there; empty once something is wrong.
    pub fn required_text(&mut self, name: &'static str) -> String {
        let wrong_before = self.wrong.len();
        let text = self.text(name).filter(|text| !text.is_empty());
        if text.is_none() && self.wrong.len() == wrong_before {
            self.wrong.push(FieldError { field: name.to_owned(), reason: "is required.".to_owned() });
        }
        text.unwrap_or_default()
    }

    /// Every field that is left, for whoever reads them in his own way.
    pub fn rest(&mut self) -> Map<String, Value> {
        std::mem::take(&mut self.left)
    }

    /// Every field, for routes that look at them elsewhere.
    pub fn into_map(self) -> Map<String, Value> {
        self.left
    }

    /// Refuses what is wrong and what is unknown.
    pub fn done(mut self) -> Result<(), Problem> {
        for name in self.left.keys() {
            self.wrong.push(FieldError { field: name.clone(), reason: unknown(name, &self.known) });
        }
        if self.wrong.is_empty() {
            return Ok(());
        }
        Err(Error::Invalid { code: "invalid_input", fields: self.wrong }.into())
    }
}

/// Why an unknown field is refused, with the known name that is nearest.
pub fn unknown(name: &str, known: &[&str]) -> String {
    let near = known.iter().map(|k| (distance(name, k), *k)).min();
    match near {
        Some((away, near)) if away <= 1 + near.len() / 3 => format!("is no field of this request. Is '{near}' meant?"),
        _ if known.is_empty() => "is no field of this request, which takes none.".to_owned(),
        _ => format!("is no field of this request. Known: {}.", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Wrong = Vec<(String, String)>;

    fn check(json: &str) -> Result<(Option<String>, String), Wrong> {
        let wrong = |problem: Problem| problem.fields.into_iter().map(|f| (f.field, f.reason)).collect::<Wrong>();
        let mut fields = Fields::read(&HeaderMap::new(), json.as_bytes()).map_err(wrong)?;
        let (reason, name) = (fields.text("reason"), fields.required_text("fingerprint"));
        fields.done().map_err(wrong)?;
        Ok((reason, name))
    }

    #[test]
    fn fields_are_named_when_wrong() {
        assert_eq!(check(r#"{"fingerprint":"a"}"#), Ok((None, "a".to_owned())));
        assert_eq!(check(r#"{"fingerprint":"a","reason":null}"#), Ok((None, "a".to_owned())));
        let names = |json: &str| check(json).unwrap_err().into_iter().map(|(f, _)| f).collect::<Vec<_>>().join(",");
        assert_eq!(names(""), "fingerprint");
        assert_eq!(names(" \n"), "fingerprint");
        assert_eq!(names("[]"), "body");
        assert_eq!(names("{"), "body");
        assert_eq!(names(r#"{"fingerprint":"","reason":1}"#), "reason,fingerprint");
        let wrong = check(r#"{"fingerprint":"a","reasn":"x"}"#).unwrap_err();
        assert_eq!(wrong[0].0, "reasn");
        assert!(wrong[0].1.contains("'reason'"), "{}", wrong[0].1);
    }

    /// Whoever keeps only the bytes keeps no more than their room, and everyone else's is there again with their end.
    #[test]
    fn room_goes_with_the_bytes() {
        let rooms = Rooms::default();
        let (mut one, mut two) = (rooms.of(true, false), rooms.of(true, false));
        assert!(one.grow(ROOM_BYTES_MAX).is_ok());
        let bytes = one.leave_to(Bytes::from_static(b"x"));
        drop(one);
        assert!(two.grow(ROOM_BYTES_MAX).is_err());
        assert!(rooms.of(false, false).grow(PUBLIC_BODY_MAX).is_ok(), "strangers have their own");
        let mut guest = rooms.of(false, true);
        assert!(guest.grow(PUBLIC_BODY_MAX).is_ok() && rooms.of(false, false).grow(PUBLIC_BODY_MAX).is_ok());
        drop((bytes.slice(..), bytes));
        assert!(two.grow(ROOM_BYTES_MAX).is_ok());
    }
}
