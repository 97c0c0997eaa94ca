//! The spans of the bus: the storing of an event, the matching within it, and each attempt to deliver it.

use std::sync::Arc;

use super::Failure;
use super::dispatch::End;
use super::publish::{Bus, Inner};
use super::router::{Entry, Router};
use crate::clock::now_ns;
use crate::event::{Event, NewEvent};
use crate::id::{SpanId, SpanOf, TraceId};
use crate::store::deliveries::Ready;
use crate::store::events::{Cause, Prepared};
use crate::telemetry::traces::{Context, Draft, Kind, Span, Traces};

impl Bus {
    /// Collects spans.
    pub fn traces(&self) -> &Traces {
        &self.inner.traces
    }
}

/// The spans of a publication, before anything of it is stored.
pub(super) struct Drafts {
    traces: Traces,
    begun_ns: u64,
    /// What all of it comes from.
    cause: Option<(TraceId, SpanId)>,
}

impl Drafts {
    /// None while nobody collects spans.
    pub fn begin(inner: &Inner, cause: Option<&Cause>) -> Option<Drafts> {
        if !inner.traces.is_on() {
            return None;
        }
        let cause = cause.map(|cause| {
            let trace = cause.event.trace;
            let stored = || inner.store.ids().span(trace, SpanOf::Publish(cause.event.sequence));
            (trace, cause.span.unwrap_or_else(stored))
        });
        Some(Drafts { traces: inner.traces.clone(), begun_ns: now_ns(), cause })
    }

    /// The draft of one event, unless its trace is known by now to be one that is not wanted.
    pub fn of(&self, sent: &NewEvent) -> Option<Box<Draft>> {
        let (trace, parent) = match self.cause {
            Some((trace, span)) => (Some(trace), Some(span)),
            None => (sent.trace, sent.parent),
        };
        if trace.is_some_and(|trace| !self.traces.wants(trace)) {
            return None;
        }
        let (begun_ns, matched_ns) = (self.begun_ns, (now_ns(), 0));
        Some(Box::new(Draft { begun_ns, matched_ns, consumers: Vec::new(), trace, parent }))
    }
}

/// Notes who gets the event.
pub(super) fn matched(mut prepared: Prepared, draft: Option<Box<Draft>>, router: &Router) -> Prepared {
    if let Some(mut draft) = draft {
        let name = |one: &crate::store::events::Match| Some(router.by_id(one.consumer)?.spec.name.clone());
        draft.consumers = prepared.matches.iter().filter_map(name).collect();
        draft.matched_ns.1 = now_ns();
        prepared.draft = Some(draft);
    }
    prepared
}

/// Records what a commit stored.
pub(super) fn published(inner: &Inner, drafts: Vec<(Arc<Event>, Box<Draft>, bool)>) {
    for (event, draft, duplicate) in drafts {
        let stored = inner.store.ids().span(event.trace, SpanOf::Publish(event.sequence));
        let (trace, id) =
            if duplicate { (draft.trace.unwrap_or(event.trace), SpanId::random()) } else { (event.trace, stored) };
        if !inner.traces.wants(trace) {
            continue;
        }
        let sent = &event.sent;
        let span = Span::new(Kind::Producer, format!("publish {}", sent.kind), trace, id, draft.begun_ns)
            .child_of(draft.parent)
            .text("messaging.system", "aman")
            .text("messaging.operation.type", "send")
            .text("messaging.operation.name", "publish")
            .text("messaging.destination.name", sent.kind.clone())
            .text("messaging.message.id", event.id())
            .number("messaging.message.body.size", i64::try_from(sent.data.len()).unwrap_or(i64::MAX))
            .text("cloudevents.event_source", sent.source.clone())
            .number("aman.sequence", event.sequence.0)
            .text("aman.trust", event.trust.name());
        if duplicate {
            inner.traces.record(span.flag("aman.deduplicated", true).linked_to(event.trace, stored));
            continue;
        }
        let count = i64::try_from(draft.consumers.len()).unwrap_or(i64::MAX);
        let matching = Span::new(Kind::Internal, "match", trace, SpanId::random(), draft.matched_ns.0)
            .child_of(Some(id))
            .ended_at(draft.matched_ns.1)
            .number("aman.matches", count)
            .texts("aman.consumers", draft.consumers);
        inner.traces.record(span);
        inner.traces.record(matching);
    }
}

/// What the effects of an attempt, or of its failure, come from.
pub(super) fn cause(bus: &Bus, ready: &Ready) -> Cause {
    let span = bus.traces().is_on().then(|| id_of(bus, ready, ready.attempt + 1));
    Cause { event: Arc::clone(&ready.event), delivery: Some(ready.id), span }
}

fn id_of(bus: &Bus, ready: &Ready, number: u32) -> SpanId {
    bus.store().ids().span(ready.event.trace, SpanOf::Attempt(ready.id, number))
}

/// The span of attempt `number`, which begins now; none when nobody wants it.
fn begun(bus: &Bus, entry: &Entry, ready: &Ready, number: u32) -> Option<Span> {
    let (event, consumer) = (&ready.event, &entry.spec.name);
    if !bus.traces().wants(event.trace) {
        return None;
    }
    let ids = bus.store().ids();
    let id = id_of(bus, ready, number);
    let span = Span::new(Kind::Consumer, format!("deliver {consumer}"), event.trace, id, now_ns())
        .child_of(Some(ids.span(event.trace, SpanOf::Publish(event.sequence))))
        .text("messaging.system", "aman")
        .text("messaging.operation.type", "process")
        .text("messaging.operation.name", "deliver")
        .text("messaging.destination.name", event.sent.kind.clone())
        .text("messaging.message.id", event.id())
        .text("messaging.consumer.group.name", consumer.clone())
        .text("aman.delivery.id", ids.delivery(event.received_ms, ready.id).to_string())
        .number("aman.attempt", number);
    Some(match number {
        0 | 1 => span,
        later => span.linked_to(event.trace, id_of(bus, ready, later - 1)),
    })
}

/// The span of an attempt that begins now.
pub(super) fn attempt(bus: &Bus, entry: &Entry, ready: &Ready) -> Option<Span> {
    begun(bus, entry, ready, ready.attempt + 1)
}

/// Where a consumer stands that handles an event.
pub(super) fn handling(inner: &Inner, ready: &Ready, number: u32) -> Option<Context> {
    let span = || inner.store.ids().span(ready.event.trace, SpanOf::Attempt(ready.id, number));
    if inner.traces.is_on() { inner.traces.context(ready.event.trace, Some(span())) } else { None }
}

/// Says how an attempt came out; none for one that did not begin.
pub(super) fn ended(span: Span, end: &End) -> Option<Span> {
    let failed = |span: Span, outcome, kind: &str, failure: &Failure| {
        Some(span.text("aman.outcome", outcome).failed(kind, failure.chain.join(": ")))
    };
    match end {
        End::Done(_) => Some(span.text("aman.outcome", "done")),
        End::Expires => Some(span.text("aman.outcome", "expired")),
        End::Dies(reason, failure) | End::Died(_, reason, failure) => failed(span, "dead", reason.name(), failure),
        End::Waits(_, failure) if failure.timed_out => failed(span, "retry", "timeout", failure),
        End::Waits(_, failure) => failed(span, "retry", "failed", failure),
        End::Postponed(_) | End::Untold(_) => None,
    }
}

/// Records an attempt that the last end of the daemon cut off, so that what comes of it has a parent.
pub(super) fn cut_off(bus: &Bus, entry: &Entry, ready: &Ready, why: &str) {
    if let Some(span) = begun(bus, entry, ready, ready.attempt) {
        bus.traces().record(span.text("aman.outcome", "cut_off").failed("cut_off", why));
    }
}
