//! Names of things: sequences, event and delivery ids, trace ids. Parsed once, then typed.

use std::fmt;
use std::str::FromStr;

use ring::rand::{SecureRandom, SystemRandom};
use uuid::Uuid;

use crate::clock::Millis;

/// The place of an event in the daemon's one global order; starts at 1, never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct EventSeq(pub i64);

/// The row number of a delivery; starts at 1, never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeliveryId(pub i64);

/// The row number of a consumer's record, stable over restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConsumerId(pub i64);

/// A W3C trace id: 16 bytes, not all zero, written as 32 lower-case hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId(pub [u8; 16]);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for TraceId {
    type Err = ();

    fn from_str(text: &str) -> Result<TraceId, ()> {
        if !is_lower_hex(text, 32) {
            return Err(());
        }
        let value = u128::from_str_radix(text, 16).map_err(|_| ())?;
        if value == 0 { Err(()) } else { Ok(TraceId(value.to_be_bytes())) }
    }
}

impl TraceId {
    /// A new random trace id.
    pub fn random() -> TraceId {
        TraceId(random_bytes())
    }
}

/// A W3C parent id, which names a span of a trace: 8 bytes, not all zero, written as 16 lower-case hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId(pub [u8; 8]);

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for SpanId {
    type Err = ();

    fn from_str(text: &str) -> Result<SpanId, ()> {
        if !is_lower_hex(text, 16) {
            return Err(());
        }
        let value = u64::from_str_radix(text, 16).map_err(|_| ())?;
        if value == 0 { Err(()) } else { Ok(SpanId(value.to_be_bytes())) }
    }
}

impl SpanId {
    /// A new random one, for a span that nobody has to find again.
    pub fn random() -> SpanId {
        SpanId(fastrand::u64(1..).to_be_bytes())
    }
}

/// What a `traceparent` says: the trace, and the span in it that asks (W3C Trace Context).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traceparent {
    /// The trace.
    pub trace: TraceId,
    /// Whose child whatever follows is.
    pub span: SpanId,
}

impl Traceparent {
    /// Reads a `traceparent` header or attribute, version 00 and later.
    pub fn parse(text: &str) -> Option<Traceparent> {
        let mut parts = text.split('-');
        let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        if !is_lower_hex(version, 2) || version == "ff" || !is_lower_hex(flags, 2) {
            return None;
        }
        if version == "00" && parts.next().is_some() {
            return None;
        }
        Some(Traceparent { trace: trace.parse().ok()?, span: parent.parse().ok()? })
    }
}

impl fmt::Display for Traceparent {
    /// As a header, marked as sampled.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-01", self.trace, self.span)
    }
}

fn is_lower_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Bytes from the machine's secure random source.
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0_u8; N];
    SystemRandom::new().fill(&mut bytes).expect("the kernel's random source answers");
    bytes
}

/// `bytes` as lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    let mut out = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _ = write!(out, "{byte:02x}");
    }
    out
}

/// SHA-256 of `bytes` as lower-case hex.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref())
}

/// A fresh UUIDv7 for things that have no row number of their own.
pub fn fresh() -> String {
    Uuid::now_v7().to_string()
}

/// A UUIDv8 (RFC 9562) that is the same for the same parts, and for no others.
pub fn named(parts: &[&str]) -> String {
    let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
    for part in parts {
        hash.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(part.as_bytes());
    }
    let mut bytes = [0_u8; 16];
    bytes.copy_from_slice(&hash.finish().as_ref()[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid().to_string()
}

/// What a span with a computed id is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanOf {
    /// The storing of an event.
    Publish(EventSeq),
    /// An attempt to deliver, counted from 1.
    Attempt(DeliveryId, u32),
    /// An instance of a workflow, by its row.
    Workflow(i64),
    /// A task of an instance: the instance's row, the row of the journal, the attempt.
    Task(i64, i64, u32),
    /// An attempt to send an intent, counted from 1.
    Sending(i64, u32),
}

/// Makes the ids of events and deliveries out of their row numbers, and reads them back.
///
/// An id is a UUIDv7 (RFC 9562) whose 74 free bits hold the 42-bit row number and the 32-bit number of this database.
/// So ids sort by time, name their row, and cost the hot table neither a column nor an index.
#[derive(Debug, Clone, Copy)]
pub struct Ids {
    /// Drawn at random when the database is made; keeps two daemons' ids apart.
    pub node: u32,
}

impl Ids {
    /// The id of event `sequence`, stored at `at_ms`.
    pub fn event(self, at_ms: Millis, sequence: EventSeq) -> Uuid {
        Self::pack(at_ms, sequence.0, self.node)
    }

    /// The id of a delivery of an event that was stored at `at_ms`.
    pub fn delivery(self, at_ms: Millis, delivery: DeliveryId) -> Uuid {
        Self::pack(at_ms, delivery.0, !self.node)
    }

    /// The sequence inside an event id that this database made; the caller compares the row's time with the id.
    pub fn sequence_of(self, id: Uuid) -> Option<(Millis, EventSeq)> {
        Self::unpack(id, self.node).map(|(at, n)| (at, EventSeq(n)))
    }

    /// The delivery inside an id text that this database made.
    pub fn delivery_of(self, text: &str) -> Option<DeliveryId> {
        Self::unpack(Uuid::parse_str(text).ok()?, !self.node).map(|(_, n)| DeliveryId(n))
    }

    /// The id of a span. It is computed, so that whoever comes later, even after a restart, knows whose child it is without
    /// anything being stored.
    pub fn span(self, trace: TraceId, of: SpanOf) -> SpanId {
        let (what, numbers) = match of {
            SpanOf::Publish(EventSeq(event)) => (1_u8, [event, 0, 0]),
            SpanOf::Attempt(DeliveryId(delivery), attempt) => (2, [delivery, i64::from(attempt), 0]),
            SpanOf::Workflow(instance) => (3, [instance, 0, 0]),
            SpanOf::Task(instance, step, attempt) => (4, [instance, step, i64::from(attempt)]),
            SpanOf::Sending(intent, attempt) => (5, [intent, i64::from(attempt), 0]),
        };
        let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
        hash.update(&trace.0);
        hash.update(&self.node.to_be_bytes());
        hash.update(&[what]);
        numbers.iter().for_each(|number| hash.update(&number.to_be_bytes()));
        let mut id = [0; 8];
        id.copy_from_slice(&hash.finish().as_ref()[..8]);
        SpanId(if id == [0; 8] { [1; 8] } else { id })
    }

    fn pack(at_ms: Millis, number: i64, node: u32) -> Uuid {
        let at = u128::from(at_ms.max(0).unsigned_abs()) & 0xFFFF_FFFF_FFFF;
        let number = u128::from(number.max(0).unsigned_abs()) & 0x3FF_FFFF_FFFF;
        let free = (number << 32) | u128::from(node);
        let rand_a = free >> 62;
        let rand_b = free & 0x3FFF_FFFF_FFFF_FFFF;
        Uuid::from_u128((at << 80) | (0x7 << 76) | (rand_a << 64) | (0b10 << 62) | rand_b)
    }

    fn unpack(id: Uuid, node: u32) -> Option<(Millis, i64)> {
        let bits = id.as_u128();
        if (bits >> 76) & 0xF != 0x7 || (bits >> 62) & 0b11 != 0b10 || bits & 0xFFFF_FFFF != u128::from(node) {
            return None;
        }
        let free = (((bits >> 64) & 0xFFF) << 62) | (bits & 0x3FFF_FFFF_FFFF_FFFF);
        Some((i64::try_from(bits >> 80).ok()?, i64::try_from(free >> 32).ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_name_their_row() {
        let ids = Ids { node: 0xDEAD_BEEF };
        for number in [1, 2, 1023, 1 << 30, (1 << 42) - 1] {
            let id = ids.event(1_795_000_000_123, EventSeq(number));
            assert_eq!(id.get_version_num(), 7);
            assert_eq!(ids.sequence_of(id), Some((1_795_000_000_123, EventSeq(number))));
            let delivery = ids.delivery(1_795_000_000_123, DeliveryId(number)).to_string();
            assert_eq!(ids.delivery_of(&delivery), Some(DeliveryId(number)));
            assert_eq!(ids.delivery_of(&id.to_string()), None, "an event id is no delivery id");
        }
        assert!(ids.event(1, EventSeq(1)) < ids.event(1, EventSeq(2)));
        assert!(ids.event(1, EventSeq(9)) < ids.event(2, EventSeq(3)));
        assert_eq!(ids.sequence_of(Uuid::now_v7()), None);
    }

    #[test]
    fn spans_have_ids_of_their_own_that_can_be_computed_again() {
        let (ids, trace) = (Ids { node: 7 }, TraceId([3; 16]));
        let all = [
            SpanOf::Publish(EventSeq(1)),
            SpanOf::Publish(EventSeq(2)),
            SpanOf::Attempt(DeliveryId(1), 1),
            SpanOf::Attempt(DeliveryId(1), 2),
            SpanOf::Workflow(1),
            SpanOf::Task(1, 1, 1),
            SpanOf::Task(1, 1, 2),
            SpanOf::Sending(1, 1),
        ];
        let made: std::collections::HashSet<SpanId> = all.iter().map(|of| ids.span(trace, *of)).collect();
        assert_eq!(made.len(), all.len());
        assert_eq!(ids.span(trace, all[0]), Ids { node: 7 }.span(TraceId([3; 16]), all[0]));
        assert_ne!(ids.span(trace, all[0]), Ids { node: 8 }.span(trace, all[0]));
        assert_ne!(ids.span(trace, all[0]), ids.span(TraceId([4; 16]), all[0]));
        let asked = Traceparent { trace, span: ids.span(trace, all[0]) };
        assert_eq!(Traceparent::parse(&asked.to_string()), Some(asked));
    }

    #[test]
    fn trace_ids_are_checked() {
        let cases = [
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", true),
            ("00-00000000000000000000000000000000-b7ad6b7169203331-01", false),
            ("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", false),
            ("00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", false),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x", false),
            ("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x", true),
            ("ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", false),
            ("nonsense", false),
        ];
        for (text, good) in cases {
            assert_eq!(Traceparent::parse(text).is_some(), good, "{text}");
        }
    }
}
