//! What happens in one turn, as server-sent events: from its begin to its end. The turn goes on whoever looks, and whether
//! anybody does.
//!
//! It needs no task of its own: hyper asks for more when the socket takes more, and gets all that came meanwhile in one
//! piece. So a slow client loses nothing and holds up nobody; one that takes nothing at all is let go by its socket.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{CACHE_CONTROL, HeaderName, HeaderValue};

use super::App;
use super::auth::Principal;
use super::body::{Body, Reply};
use super::openai::Chunks;
use super::pulse::{self, Due, Pulse};
use super::socket::Peer;
use crate::agents::frames::Viewer;

/// An open stream.
pub struct TurnStream {
    app: Arc<App>,
    viewer: Viewer,
    /// What makes chunks of a completion of the frames; none = they are sent as they are.
    chunks: Option<Box<Chunks>>,
    pulse: Pulse,
    /// Sent before anything else, so that the client sees at once that it is heard.
    prelude: Option<Bytes>,
    /// Whose it is; it ends when their token does.
    holder: Option<Principal>,
}

impl TurnStream {
    /// The answer that shows a turn.
    pub fn reply(app: &Arc<App>, viewer: Viewer, holder: Option<&Principal>) -> Reply {
        TurnStream::reply_as(app, viewer, holder, None)
    }

    /// As [`TurnStream::reply`], as chunks of a completion where they are given.
    pub fn reply_as(app: &Arc<App>, viewer: Viewer, holder: Option<&Principal>, chunks: Option<Box<Chunks>>) -> Reply {
        app.counters.streams.fetch_add(1, Ordering::Relaxed);
        let stream = TurnStream {
            app: Arc::clone(app),
            viewer,
            chunks,
            pulse: Pulse::new(None),
            prelude: Some(Bytes::from_static(pulse::BEAT)),
            holder: holder.filter(|holder| holder.can_end()).cloned(),
        };
        Reply { body: Body::Turn(Box::new(stream)), ..TurnStream::head() }
    }

    /// The same without a body.
    pub fn head() -> Reply {
        Reply {
            status: StatusCode::OK,
            content_type: "text/event-stream",
            headers: vec![
                (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
                (CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform")),
            ],
            body: Body::Full(None),
            trace: None,
        }
    }

    /// Lets it hear of its client's end.
    pub fn attend(&mut self, peer: Arc<Peer>) {
        self.pulse.attend(peer);
    }

    /// The next bytes to send; `None` ends the stream.
    pub fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let ended = self.holder.as_ref().is_some_and(|holder| !holder.is_good(self.app.clock.now_ms()));
        if ended {
            return Poll::Ready(None);
        }
        if let Some(prelude) = self.prelude.take() {
            return Poll::Ready(Some(prelude));
        }
        let polled = match &mut self.chunks {
            Some(chunks) => chunks.poll_bytes(&self.app, &mut self.viewer, cx),
            None => self.viewer.poll_bytes(cx),
        };
        match polled {
            Poll::Ready(Some(bytes)) => {
                self.pulse.sent();
                Poll::Ready(Some(bytes))
            }
            Poll::Ready(None) => Poll::Ready(None),
            // What was there is sent; what is still to come, the next start goes on with.
            Poll::Pending if self.app.lifecycle.is_draining() => Poll::Ready(None),
            Poll::Pending => match self.pulse.poll(cx) {
                Poll::Ready(Due::Beat | Due::Other) => Poll::Ready(Some(Bytes::from_static(pulse::BEAT))),
                Poll::Pending => Poll::Pending,
            },
        }
    }
}

impl Drop for TurnStream {
    fn drop(&mut self) {
        self.app.counters.streams.fetch_sub(1, Ordering::Relaxed);
    }
}
