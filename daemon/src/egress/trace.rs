//! The span of a call, for whoever asks as a part of a trace.

use super::{Ask, EgressError, Heard};
use crate::telemetry::traces::{self, Context, Kind, Span};

const TRACEPARENT: &str = "traceparent";

/// Begins the span, and tells the other side of it where that is wanted; none outside of a trace. Of the address only the
/// host is noted: paths and queries hold keys.
pub(super) fn begin(ask: &mut Ask) -> Option<(Context, Span)> {
    let context = traces::current()?;
    let scheme = if ask.url.is_tls() { "https" } else { "http" };
    let span = context
        .child(Kind::Client, ask.method.as_str())
        .text("http.request.method", ask.method.as_str())
        .text("url.scheme", scheme)
        .text("server.address", ask.url.host())
        .number("server.port", ask.url.port());
    if let Some(header) = context.header(span.id())
        && !ask.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(TRACEPARENT))
    {
        // As all headers it goes to the host that was named, not to where that redirects.
        ask.headers.push((TRACEPARENT.to_owned(), header));
    }
    Some((context, span))
}

/// Ends the span as the call did.
pub(super) fn end((context, span): (Context, Span), heard: &Result<&Heard, &EgressError>) {
    let span = match heard {
        Ok(heard) => {
            let span = span.number("http.response.status_code", heard.status);
            if heard.status < 400 {
                span
            } else {
                span.failed(heard.status.to_string(), super::status_text(heard.status))
            }
        }
        Err(error) => span.failed(kind(error), error.to_string()),
    };
    context.record(span);
}

fn kind(error: &EgressError) -> &'static str {
    match error {
        EgressError::Refused(_) => "refused",
        EgressError::NotSent(_) => "not_sent",
        EgressError::Unknown(_) => "no_answer",
        EgressError::BadAnswer(_) => "bad_answer",
        EgressError::TooLong(_) => "answer_too_long",
    }
}
