//! Spans as OTLP's protobuf messages (opentelemetry-proto 1.x, `trace/v1/trace.proto`, `collector/trace/v1`): pure. Written by
//! hand, since it is one message that is only written, and one number that is read.

use std::borrow::Cow;

use super::{Span, Value};
use crate::redact;

/// What all spans have in common.
pub(super) struct Resource {
    /// `service.name`
    pub service: String,
    /// `service.instance.id`
    pub instance: String,
}

/// A message that is being written: fields with their numbers, in protobuf's wire format.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(u8::try_from(value & 0x7F).unwrap_or(0) | 0x80);
            value >>= 7;
        }
        self.0.push(u8::try_from(value).unwrap_or(0));
    }

    fn key(&mut self, field: u32, wire_type: u32) {
        self.varint(u64::from(field << 3 | wire_type));
    }

    fn number(&mut self, field: u32, value: u64) {
        self.key(field, 0);
        self.varint(value);
    }

    fn fixed64(&mut self, field: u32, value: u64) {
        self.key(field, 1);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn fixed32(&mut self, field: u32, value: u32) {
        self.key(field, 5);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.key(field, 2);
        self.varint(u64::try_from(bytes.len()).unwrap_or(0));
        self.0.extend_from_slice(bytes);
    }

    /// A text without secrets.
    fn text(&mut self, field: u32, text: &str) {
        self.bytes(field, redact::text(text).as_bytes());
    }

    fn message(&mut self, field: u32, write: impl FnOnce(&mut Message)) {
        let mut inner = Message::default();
        write(&mut inner);
        self.bytes(field, &inner.0);
    }
}

/// An `ExportTraceServiceRequest`.
pub(super) fn request(resource: &Resource, spans: &[Span]) -> Vec<u8> {
    let mut request = Message::default();
    request.message(1, |of_resource| {
        of_resource.message(1, |message| {
            for (name, text) in [
                ("service.name", resource.service.as_str()),
                ("service.version", env!("CARGO_PKG_VERSION")),
                ("service.instance.id", resource.instance.as_str()),
                ("telemetry.sdk.name", "aman"),
                ("telemetry.sdk.language", "rust"),
                ("telemetry.sdk.version", env!("CARGO_PKG_VERSION")),
            ] {
                attribute(message, 1, name, &Value::Text(text.to_owned()));
            }
        });
        of_resource.message(2, |of_scope| {
            of_scope.message(1, |scope| {
                scope.text(1, "aman");
                scope.text(2, env!("CARGO_PKG_VERSION"));
            });
            spans.iter().for_each(|one| of_scope.message(2, |message| span(message, one)));
        });
    });
    request.0
}

/// The W3C flags of a span: sampled.
const FLAGS: u32 = 1;

fn span(message: &mut Message, span: &Span) {
    message.bytes(1, &span.trace.0);
    message.bytes(2, &span.id.0);
    if let Some(parent) = span.parent {
        message.bytes(4, &parent.0);
    }
    message.text(5, &span.name);
    message.number(6, span.kind as u64);
    message.fixed64(7, span.start_ns);
    message.fixed64(8, span.end_ns);
    span.attributes.iter().for_each(|(name, value)| attribute(message, 9, name, value));
    if let Some((trace, id)) = span.link {
        message.message(13, |link| {
            link.bytes(1, &trace.0);
            link.bytes(2, &id.0);
        });
    }
    if let Some(why) = &span.error {
        message.message(15, |status| {
            status.text(2, why);
            status.number(3, 2);
        });
    }
    message.fixed32(16, FLAGS);
}

fn attribute(message: &mut Message, field: u32, name: &str, value: &Value) {
    message.message(field, |pair| {
        pair.text(1, name);
        pair.message(2, |any| any_value(any, value));
    });
}

fn any_value(any: &mut Message, value: &Value) {
    match value {
        Value::Text(text) => any.text(1, text),
        Value::Flag(flag) => any.number(2, u64::from(*flag)),
        // A negative number is written as its two's complement.
        Value::Number(number) => any.number(3, number.cast_unsigned()),
        Value::Texts(texts) => any.message(5, |list| {
            texts.iter().for_each(|text| list.message(1, |any| any.text(1, text)));
        }),
    }
}

/// What an `ExportTraceServiceResponse` says of spans that the collector did not take: how many, and why.
pub(super) fn rejected(body: &[u8]) -> Option<(u64, Cow<'_, str>)> {
    let Found::Bytes(partial) = find(body, 1)? else { return None };
    let Found::Number(count @ 1..) = find(partial, 1)? else { return None };
    let why = match find(partial, 2) {
        Some(Found::Bytes(why)) => String::from_utf8_lossy(why),
        _ => Cow::Borrowed(""),
    };
    Some((count, why))
}

enum Found<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The first field of that number; none also for what is no message.
fn find(mut rest: &[u8], wanted: u64) -> Option<Found<'_>> {
    while !rest.is_empty() {
        let key = varint(&mut rest)?;
        let found = match key & 7 {
            0 => Found::Number(varint(&mut rest)?),
            1 => Found::Bytes(rest.split_off(..8)?),
            2 => {
                let length = usize::try_from(varint(&mut rest)?).ok()?;
                Found::Bytes(rest.split_off(..length)?)
            }
            5 => Found::Bytes(rest.split_off(..4)?),
            _ => return None,
        };
        if key >> 3 == wanted {
            return Some(found);
        }
    }
    None
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *rest.split_off_first()?;
        value |= u64::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The answers that the specification describes, encoded by hand; requests are decoded by the official package in
    /// `tests/it/telemetry.rs`.
    #[test]
    fn answers_are_read() {
        assert_eq!(rejected(b""), None);
        let partial = [&[8_u8, 0xAC, 2, 0x12, 4][..], b"full"].concat();
        let body = [&[0x0A, 9][..], &partial].concat();
        assert_eq!(rejected(&body), Some((300, Cow::Borrowed("full"))));
        // Nothing rejected, only a warning.
        assert_eq!(rejected(&[0x0A, 3, 0x12, 1, b'x']), None);
        for cut in 0..body.len() {
            assert_eq!(rejected(&body[..cut]), None, "{cut}");
        }
        assert_eq!(rejected(&[0xFF; 32]), None);
        assert_eq!(rejected(b"<html>"), None);
    }

    #[test]
    fn numbers_are_written_as_protobuf_does() {
        let mut message = Message::default();
        message.number(16, 300);
        message.fixed32(16, 1);
        assert_eq!(message.0, [0x80, 1, 0xAC, 2, 0x85, 1, 1, 0, 0, 0]);
        let mut any = Message::default();
        any_value(&mut any, &Value::Number(-1));
        assert_eq!(any.0, [0x18, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 1]);
    }
}
