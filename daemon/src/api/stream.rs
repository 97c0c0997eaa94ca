//! `GET /events/stream`: server-sent events with replay.
//!
//! A stream is a body that knows its place in the global order. What follows comes from the live tail, where the bytes
//! are shared by all streams, or, when the stream is behind, page by page from disk. It needs no task of its own and
//! never slows anybody: hyper asks for more only when the socket takes more.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{CACHE_CONTROL, HeaderName, HeaderValue};
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::ReusableBoxFuture;

use super::auth::Principal;
use super::body::{Body, Reply};
use super::metrics;
use super::problem::Problem;
use super::pulse::{self, Due, Pulse};
use super::socket::Peer;
use super::words::{self, Words};
use super::{App, Call, query};
use crate::bus::live::{Next, Tail, write_frame};
use crate::error::Error;
use crate::event::{Event, TypePattern, View};
use crate::id::{EventSeq, TraceId};
use crate::store::{events, retention};

/// Streams without credentials that may be open at a time.
pub const PUBLIC_STREAMS_MAX: usize = 32;
const METRICS_EVERY: Duration = Duration::from_secs(2);
const PATTERNS_MAX: usize = 64;
/// Shared batches smaller than this are gathered into one chunk, so that a burst of small commits is one write.
const GATHER_BYTES: usize = 2048;

/// Which events a stream shows.
#[derive(Debug, Default)]
pub(super) struct Filter {
    types: Vec<TypePattern>,
    agent: Option<String>,
    trace: Option<TraceId>,
}

impl Filter {
    /// Whether it shows what agents say of this agent and trace.
    pub fn wants_words(&self, agent: &str, trace: TraceId) -> bool {
        (self.types.is_empty() || self.types.iter().any(|pattern| pattern.matches(words::TYPE)))
            && self.agent.as_deref().is_none_or(|wanted| wanted == agent)
            && self.trace.is_none_or(|wanted| wanted == trace)
    }

    fn is_open(&self) -> bool {
        self.types.is_empty() && self.agent.is_none() && self.trace.is_none()
    }

    fn wants(&self, event: &Event) -> bool {
        (self.types.is_empty() || self.types.iter().any(|pattern| pattern.matches(&event.sent.kind)))
            && (self.agent.is_none() || self.agent == event.sent.agent_id)
            && self.trace.is_none_or(|trace| trace == event.trace)
    }
}

/// The receiver back, and whether it still has a sender.
type Woken = (watch::Receiver<EventSeq>, bool);
/// Events that were read from disk, as frames.
struct Page {
    /// Everything up to here is in it or was filtered out.
    last: EventSeq,
    /// The highest sequence that retention removed.
    pruned_to: EventSeq,
    frames: Vec<u8>,
}

/// An open stream.
pub struct Stream {
    app: Arc<App>,
    tail: Tail,
    /// Everything up to here was shown or filtered out.
    cursor: EventSeq,
    /// That something up to here was removed, the client knows.
    pruned_to: EventSeq,
    filter: Arc<Filter>,
    view: View,
    named: bool,
    /// Sent before anything else.
    prelude: Option<Bytes>,
    /// Becomes ready when the head moved or the daemon drains.
    wake: ReusableBoxFuture<'static, Woken>,
    /// Being read while the page before it is sent.
    page: Option<JoinHandle<Result<Page, Error>>>,
    /// Tells when a heartbeat, or metrics if they are wanted, are due.
    pulse: Pulse,
    /// What agents say; `None` when nothing of it is for this stream.
    words: Option<Words>,
    /// True when words were sent last.
    said: bool,
    /// Whose it is; it ends when their token does.
    holder: Option<Principal>,
    over: bool,
    /// Of a stream without credentials.
    permit: Option<OwnedSemaphorePermit>,
}

/// Waits for one thing only, since every stream registers anew for every event: a drain moves the head's receivers, too.
async fn moved(mut head: watch::Receiver<EventSeq>) -> Woken {
    let alive = head.changed().await.is_ok();
    (head, alive)
}

impl Stream {
    /// Lets it hear of its client's end.
    pub fn attend(&mut self, peer: Arc<Peer>) {
        self.pulse.attend(peer);
    }

    /// Whether it may go on no longer: its holder's token ended, or streams without credentials show something else by now.
    fn is_shut_out(&self) -> bool {
        let ended = self.holder.as_ref().is_some_and(|holder| !holder.is_good(self.app.clock.now_ms()));
        ended || self.permit.is_some() && self.app.tuned.load().public_view() != Some(self.view)
    }

    /// The next bytes to send; `None` ends the stream.
    pub fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.over || self.is_shut_out() || self.app.lifecycle.is_draining() {
            return Poll::Ready(None);
        }
        if let Some(prelude) = self.prelude.take() {
            return self.send(prelude);
        }
        // Events and words by turns, so that neither waits for the end of the other.
        if !std::mem::take(&mut self.said)
            && let Some(said) = self.say(cx)
        {
            return self.send(said);
        }
        loop {
            if let Some(reading) = &mut self.page {
                let Poll::Ready(read) = Pin::new(reading).poll(cx) else { return self.idle(cx) };
                self.page = None;
                match read.map_err(Error::internal("reading a page")).flatten() {
                    Ok(page) => {
                        self.cursor = self.cursor.max(page.last);
                        self.pruned_to = self.pruned_to.max(page.pruned_to);
                        if matches!(self.tail.next(self.cursor), Next::Behind) {
                            self.page = Some(self.read_page());
                        }
                        if !page.frames.is_empty() {
                            return self.send(page.frames.into());
                        }
                    }
                    Err(error) => {
                        tracing::warn!(chain = error.chain().join(": "), "A stream could not read on and was ended.");
                        self.over = true;
                        return Poll::Ready(None);
                    }
                }
                continue;
            }
            match self.tail.next(self.cursor) {
                Next::Batch(batch) => {
                    let whole = self.filter.is_open() && batch.first() > self.cursor;
                    let bytes = if whole && batch.events().len() > 1 {
                        self.cursor = batch.last();
                        Some(batch.frames(self.view, self.named))
                    } else if whole {
                        Some(self.gather(batch.last(), batch.frames(self.view, self.named)))
                    } else {
                        let wanted: Vec<&Event> = batch.events().iter().map(|event| &**event).collect();
                        self.take(&wanted, batch.last())
                    };
                    if let Some(bytes) = bytes {
                        return self.send(bytes);
                    }
                }
                Next::Behind => self.page = Some(self.read_page()),
                Next::UpToDate => match self.wake.poll(cx) {
                    Poll::Ready((head, alive)) => {
                        if !alive || self.app.lifecycle.is_draining() {
                            self.over = true;
                            return Poll::Ready(None);
                        }
                        self.wake.set(moved(head));
                    }
                    Poll::Pending => return self.idle(cx),
                },
            }
        }
    }

    /// Adds the small batches that follow to `first`, up to [`GATHER_BYTES`].
    fn gather(&mut self, last: EventSeq, first: Bytes) -> Bytes {
        self.cursor = last;
        let mut gathered: Vec<u8> = Vec::new();
        while first.len() + gathered.len() < GATHER_BYTES {
            let Next::Batch(batch) = self.tail.next(self.cursor) else { break };
            if gathered.is_empty() {
                gathered.extend_from_slice(&first);
            }
            gathered.extend_from_slice(&batch.frames(self.view, self.named));
            self.cursor = batch.last();
        }
        if gathered.is_empty() { first } else { gathered.into() }
    }

    /// Reads and encodes what follows the cursor on disk, off the async threads.
    fn read_page(&self) -> JoinHandle<Result<Page, Error>> {
        let (store, filter) = (self.app.store.clone(), Arc::clone(&self.filter));
        let (cursor, view, named, told) = (self.cursor, self.view, self.named, self.pruned_to);
        let head = self.app.live.head();
        tokio::spawn(async move {
            let ids = store.ids();
            let read = store.read(move |conn| {
                let events = events::after(conn, ids, cursor)?;
                // Nothing after the cursor is left on disk: what the tail holds is next, even if numbers were skipped.
                let last = events.last().map_or(head, |event| event.sequence);
                // After the page, so that nothing is removed unnoticed before it was read.
                let pruned_to = retention::pruned_to(conn)?;
                let mut frames = Vec::with_capacity(events.len() * 512);
                if pruned_to > cursor.max(told) {
                    let oldest = events.first().map_or(EventSeq(last.0 + 1), |event| event.sequence);
                    frames.extend_from_slice(reset(oldest, head, "older_than_retention").as_bytes());
                }
                for event in events.iter().filter(|event| filter.wants(event)) {
                    write_frame(&mut frames, event, view, named);
                }
                Ok(Page { last, pruned_to, frames })
            });
            read.await
        })
    }

    fn take(&mut self, events: &[&Event], last: EventSeq) -> Option<Bytes> {
        let mut out = Vec::new();
        for event in events {
            if event.sequence > self.cursor && self.filter.wants(event) {
                write_frame(&mut out, event, self.view, self.named);
            }
        }
        self.cursor = self.cursor.max(last);
        (!out.is_empty()).then(|| out.into())
    }

    fn send(&mut self, bytes: Bytes) -> Poll<Option<Bytes>> {
        self.pulse.sent();
        Poll::Ready(Some(bytes))
    }

    /// What agents said since it looked last.
    fn say(&mut self, cx: &mut Context<'_>) -> Option<Bytes> {
        let said = self.words.as_mut()?.poll(cx);
        self.said = said.is_some();
        said
    }

    /// Nothing to show: words, a heartbeat or metrics if they are due, else sleep until they may be.
    fn idle(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Some(said) = self.say(cx) {
            return self.send(said);
        }
        match self.pulse.poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Due::Beat) => self.send(Bytes::from_static(pulse::BEAT)),
            Poll::Ready(Due::Other) => {
                self.pulse.also_at(Instant::now() + METRICS_EVERY);
                let frame = format!("event: aman.metrics\ndata: {}\n\n", metrics::snapshot(&self.app));
                self.send(frame.into())
            }
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.app.counters.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a request for a stream says.
struct Wanted {
    filter: Filter,
    named: bool,
    metrics: bool,
    cursor: Option<EventSeq>,
    ticket: Option<String>,
}

fn wanted(call: &Call) -> Result<Wanted, Problem> {
    let query = query::Query::read(call, &["types", "agent_id", "trace_id", "since", "named", "metrics", "ticket"])?;
    let types = query.patterns("types", PATTERNS_MAX)?;
    let trace = query.parsed("trace_id", "must be 32 lower-case hex digits, not all zero.", |t| t.parse().ok())?;
    let agent = query.get("agent_id").map(str::to_owned);
    let sequence = |text: &str| text.trim().parse::<i64>().ok().filter(|n| *n >= 0).map(EventSeq);
    let since = query.parsed("since", "must be a sequence, 0 or more.", sequence)?;
    // A browser that comes back repeats its address and adds the header: the header is newer.
    let cursor = match call.headers.get("last-event-id") {
        Some(value) if !value.is_empty() => {
            let known = value.to_str().ok().and_then(sequence);
            let unreadable = || Error::invalid("Last-Event-ID", "must be the id of a frame: a sequence, 0 or more.");
            Some(known.ok_or_else(unreadable)?)
        }
        _ => since,
    };
    Ok(Wanted {
        filter: Filter { types, agent, trace },
        named: query.flag("named", true)?,
        metrics: query.flag("metrics", false)?,
        cursor,
        ticket: query.text("ticket"),
    })
}

/// Whose stream this is: the caller's, else the one's who took out the ticket. Like every credential that is shown, a
/// ticket must be good.
fn holder(app: &Arc<App>, call: &Call, ticket: Option<&str>) -> Result<Option<Principal>, Problem> {
    let Some(ticket) = ticket else { return Ok(call.principal.clone()) };
    match app.gate.secrets.take_ticket(ticket, app.clock.now_ms()) {
        Some(principal) => Ok(Some(call.principal.clone().unwrap_or(principal))),
        None => Err(app.refusals.count(app, app.gate.refuse_wrong())),
    }
}

/// Who may see what: with credentials everything, without what `http.public_stream` says.
fn view(app: &App, holder: Option<&Principal>) -> Result<(View, Option<OwnedSemaphorePermit>), Problem> {
    if holder.is_some() {
        return Ok((View::Full, None));
    }
    let view = app.tuned.load().public_view();
    let view = view.ok_or_else(|| {
        Problem::unauthorized(
            "The stream needs credentials here: a token in a header, or ?ticket= from POST /auth/ticket.",
        )
    })?;
    let permit = Arc::clone(&app.public_streams).try_acquire_owned().map_err(|_| {
        let detail = format!("{PUBLIC_STREAMS_MAX} streams without credentials are open. Use a token.");
        Problem::new((StatusCode::SERVICE_UNAVAILABLE, "overloaded"), detail).retry_after_ms(10_000)
    })?;
    Ok((view, Some(permit)))
}

fn reset(oldest: EventSeq, head: EventSeq, reason: &str) -> String {
    let data = json!({ "oldest": oldest.0, "sequence": head.0, "reason": reason });
    format!("event: aman.reset\ndata: {data}\n\n")
}

/// Where a stream begins.
struct Place {
    cursor: EventSeq,
    /// See [`Stream::pruned_to`].
    pruned_to: EventSeq,
    /// The frame that tells when that is not where the client wanted, or something is missing there.
    reset: Option<String>,
}

async fn place(app: &App, cursor: Option<EventSeq>, head: EventSeq) -> Result<Place, Problem> {
    let Some(cursor) = cursor else { return Ok(Place { cursor: head, pruned_to: head, reset: None }) };
    if cursor > head {
        let oldest = app.store.read(events::oldest).await?.unwrap_or(EventSeq(head.0 + 1));
        return Ok(Place { cursor: head, pruned_to: head, reset: Some(reset(oldest, head, "newer_than_head")) });
    }
    let (pruned_to, next) =
        app.store.read(move |conn| Ok((retention::pruned_to(conn)?, events::next_after(conn, cursor)?))).await?;
    // Zero means the oldest that is there, whatever was before it.
    let gap = cursor > EventSeq(0) && cursor < pruned_to;
    let oldest = next.unwrap_or(EventSeq(head.0 + 1));
    Ok(Place { cursor, pruned_to, reset: gap.then(|| reset(oldest, head, "older_than_retention")) })
}

/// `GET /events/stream`
pub(super) async fn open(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    let wanted = wanted(&call)?;
    let holder = if call.head_only { call.principal.clone() } else { holder(&app, &call, wanted.ticket.as_deref())? };
    let (view, permit) = view(&app, holder.as_ref())?;
    if app.lifecycle.is_draining() {
        return Err(super::draining());
    }
    let headers = vec![
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
        (CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform")),
    ];
    let reply = |body| Reply { status: StatusCode::OK, content_type: "text/event-stream", headers, body, trace: None };
    if call.head_only {
        return Ok(reply(Body::Full(None)));
    }
    let tail = app.live.subscribe();
    let head = app.live.head();
    let Place { cursor, pruned_to, reset } = place(&app, wanted.cursor, head).await?;
    let filter = Arc::new(wanted.filter);
    app.counters.streams.fetch_add(1, Ordering::Relaxed);
    let stream = Stream {
        wake: ReusableBoxFuture::new(moved(tail.head())),
        pulse: Pulse::new(wanted.metrics.then(Instant::now)),
        words: holder.as_ref().and_then(|holder| Words::hear(&app, holder, &filter)),
        prelude: Some(format!("retry: 2000\n\n{}", reset.unwrap_or_default()).into()),
        tail,
        cursor,
        pruned_to,
        filter,
        view,
        named: wanted.named,
        said: false,
        page: None,
        holder: holder.filter(Principal::can_end),
        over: false,
        permit,
        app,
    };
    Ok(reply(Body::Stream(Box::new(stream))))
}
