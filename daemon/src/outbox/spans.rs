//! The span of an attempt to send: a child of the attempt to deliver that asked for it.

use super::Sent;
use crate::bus::Bus;
use crate::clock::now_ns;
use crate::id::SpanOf;
use crate::store::outbox::{self as rows, Intent};
use crate::telemetry::traces::{Context, Kind, Span};

/// Begins it; none when nobody collects spans of its trace, or its event is gone.
pub(super) async fn begin(bus: &Bus, sink: &str, intent: &Intent) -> Option<Span> {
    if !bus.traces().is_on() {
        return None;
    }
    let (ids, id) = (bus.store().ids(), intent.id);
    // Whatever is wrong with the database is found out, and told, by whoever needs it.
    let (delivery, attempt, trace) = bus.store().read(move |conn| rows::origin(conn, ids, id)).await.ok()??;
    if !bus.traces().wants(trace) {
        return None;
    }
    let number = intent.attempt + 1;
    let span = ids.span(trace, SpanOf::Sending(intent.id, number));
    let span = Span::new(Kind::Internal, format!("send {sink}"), trace, span, now_ns())
        .child_of(Some(ids.span(trace, SpanOf::Attempt(delivery, attempt))))
        .text("aman.sink", sink)
        .text("aman.intent.key", intent.key.clone())
        .number("aman.attempt", number);
    Some(match number {
        0 | 1 => span,
        later => span.linked_to(trace, ids.span(trace, SpanOf::Sending(intent.id, later - 1))),
    })
}

/// Where the sink stands while it sends.
pub(super) fn context(bus: &Bus, span: Option<&Span>) -> Option<Context> {
    span.and_then(|span| bus.traces().context(span.trace(), Some(span.id())))
}

/// Ends it. Why is not told: it names the address, whose path can be a key.
pub(super) fn end(bus: &Bus, span: Option<Span>, sent: &Sent) {
    let Some(span) = span else { return };
    bus.traces().record(match sent {
        Sent::Yes => span.text("aman.outcome", "sent"),
        Sent::Later(..) => span.text("aman.outcome", "retry").failed("failed", "it is tried again"),
        Sent::Unknown(_) => span.text("aman.outcome", "unknown").failed("unknown", "nobody knows whether it arrived"),
        Sent::Refused(_) => span.text("aman.outcome", "refused").failed("refused", "it was not taken"),
    });
}
