//! Requests to the routes of plugins: handed to whichever version runs, and what came of it in words that HTTP can say.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use aman_plugin_host::{Body, BodyStream, Error as Said, Fault, Response, Which, Words};
use tokio_util::sync::{CancellationToken, ReusableBoxFuture, WaitForCancellationFutureOwned};

use super::running::CallFault;
use super::{Plugins, Request, Running};

/// How often a request follows its plugin to a new version.
const FOLLOWS_MAX: usize = 3;
/// After how long a caller may try again what is switched over, or busy.
const RETRY_MS: u64 = 1000;

/// What a plugin answers. Nothing of it is checked.
pub struct Served {
    /// HTTP status.
    pub status: u16,
    /// Headers.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: Payload,
}

/// A body of a plugin.
pub enum Payload {
    /// All of it.
    Bytes(Vec<u8>),
    /// Made while it is sent.
    Stream(Stream),
}

/// Why a plugin gives no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// See [`Kind`].
    pub kind: Kind,
    /// What happened, and what to do.
    pub detail: String,
    /// The field that is wrong.
    pub field: Option<String>,
    /// After how long to try again.
    pub retry_after_ms: Option<u64>,
}

/// What sort of refusal it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// There is no such plugin, or it is switched off.
    Absent,
    /// It crashed, answered what is no answer, or failed to begin.
    Trap,
    /// It took too long.
    Timeout,
    /// It reached one of its limits.
    Limit,
    /// It is busy, rests, or is being replaced.
    Unavailable,
    /// The daemon could not run it.
    Internal,
    /// It says: not allowed.
    SaysDenied,
    /// It says: not there.
    SaysNotFound,
    /// It says: a field is wrong.
    SaysInvalid,
    /// It says: not in this state.
    SaysConflict,
    /// It says: it failed.
    SaysFailed,
}

impl Refusal {
    fn new(kind: Kind, detail: impl Into<String>) -> Refusal {
        Refusal { kind, detail: detail.into(), field: None, retry_after_ms: None }
    }

    pub(super) fn of_fault(fault: &CallFault) -> Refusal {
        let (kind, retry_after_ms) = match fault {
            CallFault::Resting(left) => (Kind::Unavailable, u64::try_from(left.as_millis()).ok()),
            CallFault::Closed => (Kind::Unavailable, Some(RETRY_MS)),
            CallFault::Fault(fault) => match fault {
                Fault::Timeout { .. } => (Kind::Timeout, None),
                Fault::Limit { which: Which::Calls | Which::Streams, .. } => (Kind::Unavailable, Some(RETRY_MS)),
                Fault::Limit { .. } => (Kind::Limit, None),
                Fault::Closed => (Kind::Unavailable, Some(RETRY_MS)),
                Fault::Internal { .. } | Fault::Damaged { .. } => (Kind::Internal, None),
                Fault::Trap { .. }
                | Fault::Failed(_)
                | Fault::Missing { .. }
                | Fault::Denied { .. }
                | Fault::Refused { .. } => (Kind::Trap, None),
            },
        };
        Refusal { retry_after_ms, ..Refusal::new(kind, fault.text()) }
    }

    pub(super) fn of_words(said: &Said) -> Refusal {
        let kind = match said {
            Said::Denied(_) => Kind::SaysDenied,
            Said::NotFound(_) => Kind::SaysNotFound,
            Said::Invalid(_) => Kind::SaysInvalid,
            Said::Conflict(_) => Kind::SaysConflict,
            Said::Limit(_) | Said::Unavailable(_) => Kind::Unavailable,
            Said::Timeout(_) => Kind::Timeout,
            Said::Internal(_) => Kind::SaysFailed,
        };
        let mut refusal = Refusal::new(kind, format!("The plugin says: {}.", Words(said)));
        match said {
            Said::Invalid(wrong) => refusal.field = Some(wrong.field.clone()),
            Said::Unavailable(retry) => refusal.retry_after_ms = Some(retry.after_ms.unwrap_or(RETRY_MS)),
            _ => {}
        }
        refusal
    }

    pub(super) fn absent(name: &str) -> Refusal {
        Refusal::new(
            Kind::Absent,
            format!("The plugin '{name}' is not there, or switched off: see `aman plugin list`."),
        )
    }
}

impl Plugins {
    /// Hands a request to the plugin `name`.
    pub async fn serve(&self, name: &str, request: Request) -> Result<Served, Refusal> {
        let mut request = Some(request);
        for _ in 0..FOLLOWS_MAX {
            let Some(running) = self.running(name) else { break };
            match running.http(&mut request).await {
                Ok(Ok(Response { status, headers, body })) => {
                    let body = match body {
                        Body::Bytes(bytes) => Payload::Bytes(bytes),
                        Body::Stream(stream) => Payload::Stream(Stream::new(running, stream)),
                    };
                    return Ok(Served { status, headers, body });
                }
                Ok(Err(said)) => return Err(Refusal::of_words(&said)),
                // Another version takes its place; it has not seen the request.
                Err(CallFault::Closed) if request.is_some() => {}
                Err(fault) => return Err(Refusal::of_fault(&fault)),
            }
        }
        Err(Refusal::absent(name))
    }
}

type Next = (BodyStream, Option<Result<Vec<u8>, Fault>>);

/// A body that a plugin makes while it is sent. Dropping it ends the guest.
pub struct Stream {
    running: Arc<Running>,
    next: ReusableBoxFuture<'static, Next>,
    /// The plugin is switched off, or the daemon ends.
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    /// The listener that it is sent by ends.
    closing: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    over: bool,
}

async fn next(mut stream: BodyStream) -> Next {
    let piece = stream.next().await;
    (stream, piece)
}

impl Stream {
    fn new(running: Arc<Running>, stream: BodyStream) -> Stream {
        let cut = Box::pin(running.cut.clone().cancelled_owned());
        Stream { running, next: ReusableBoxFuture::new(next(stream)), cut, closing: None, over: false }
    }

    /// Ends it with the listener that it is sent by.
    pub fn end_with(&mut self, closing: CancellationToken) {
        self.closing = Some(Box::pin(closing.cancelled_owned()));
    }

    fn is_cut(&mut self, cx: &mut Context<'_>) -> bool {
        let closed = self.closing.as_mut().is_some_and(|closing| closing.as_mut().poll(cx).is_ready());
        closed || self.cut.as_mut().poll(cx).is_ready()
    }

    /// The next piece; `None` at its end, also when the plugin is switched off, or its listener or the daemon ends. A fault in the middle
    /// is an error, so that nobody takes what came for the whole.
    pub fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Vec<u8>, String>>> {
        if self.over || self.is_cut(cx) {
            self.over = true;
            return Poll::Ready(None);
        }
        let Poll::Ready((stream, piece)) = self.next.poll(cx) else { return Poll::Pending };
        self.over = !matches!(piece, Some(Ok(_)));
        if !self.over {
            self.next.set(next(stream));
        }
        Poll::Ready(piece.map(|piece| piece.map_err(|fault| self.running.note(fault).text())))
    }
}
