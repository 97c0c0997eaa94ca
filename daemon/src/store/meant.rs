//! Which event a person means who gives a sequence number, the id of a delivery, or only the beginning of an id.

use rusqlite::{Connection, OptionalExtension, params};
use uuid::Uuid;

use super::{deliveries, events};
use crate::clock::Millis;
use crate::error::Error;
use crate::event::Event;
use crate::id::{DeliveryId, EventSeq, Ids};

/// Fewer characters are no beginning: they mean anything.
const BEGINNING_CHARS_MIN: usize = 4;
/// Events that are looked at for a beginning of an id that this database made, and that are told when several fit.
const LOOKED_AT_MAX: usize = 1000;
const TOLD_MAX: usize = 5;
/// Hex digits of an id; the first twelve say when it was made (RFC 9562, UUIDv7: 48 bits of milliseconds).
const HEX_DIGITS: usize = 32;
/// Where the dashes of a UUID stand.
const DASHES: [usize; 4] = [8, 13, 18, 23];

fn unread(error: rusqlite::Error) -> Error {
    Error::internal("looking for an event")(error)
}

/// The events that `text` can mean when no event has it as its id: a sequence number, the id of one of its deliveries, the
/// beginning of either id. Several when a beginning is too short; at most five then.
pub fn events(conn: &Connection, ids: Ids, text: &str) -> Result<Vec<Event>, Error> {
    if let Ok(sequence) = text.parse::<i64>()
        && let Some(event) = events::by_sequence(conn, ids, EventSeq(sequence))?
    {
        return Ok(vec![event]);
    }
    if let Some(delivery) = ids.delivery_of(text) {
        let Some((sequence, ..)) = deliveries::find(conn, delivery)? else { return Ok(Vec::new()) };
        return Ok(events::by_sequence(conn, ids, sequence)?.into_iter().collect());
    }
    if text.chars().count() < BEGINNING_CHARS_MIN {
        return Ok(Vec::new());
    }
    let mut sequences = given(conn, text)?;
    if let Some((from_ms, to_ms)) = times(text) {
        sequences.extend(made(conn, ids, &text.to_ascii_lowercase(), from_ms, to_ms)?);
    }
    let found = sequences.into_iter().take(TOLD_MAX).map(|sequence| events::by_sequence(conn, ids, sequence));
    found.filter_map(Result::transpose).collect()
}

/// Events whose producer gave them an id that begins so.
fn given(conn: &Connection, text: &str) -> Result<Vec<EventSeq>, Error> {
    let limit = i64::try_from(TOLD_MAX).unwrap_or(i64::MAX);
    conn.prepare_cached(
        "SELECT sequence FROM event WHERE id IS NOT NULL AND id >= ?1 AND id < ?1 || char(1114111) ORDER BY id LIMIT ?2",
    )
    .map_err(unread)?
    .query_map(params![text, limit], |row| row.get(0).map(EventSeq))
    .and_then(Iterator::collect)
    .map_err(unread)
}

/// The times, both included, that ids with this beginning were made in; none when no id of this database begins so.
fn times(text: &str) -> Option<(Millis, Millis)> {
    let mut digits = String::with_capacity(HEX_DIGITS);
    for (at, c) in text.chars().enumerate() {
        match (DASHES.contains(&at), c) {
            (true, '-') => {}
            (false, c) if c.is_ascii_hexdigit() && digits.len() < HEX_DIGITS => digits.push(c),
            _ => return None,
        }
    }
    let bound = |fill: &str| {
        let whole = format!("{digits}{}", fill.repeat(HEX_DIGITS - digits.len()));
        u128::from_str_radix(&whole, 16).ok().and_then(|bits| Millis::try_from(bits >> 80).ok())
    };
    bound("0").zip(bound("f"))
}

/// Events of that time whose own made id, or that of one of their deliveries, begins so. Times grow with the sequence, as
/// long as nobody set the clock back: what was stored out of order may be missed, and its whole id finds it.
fn made(conn: &Connection, ids: Ids, beginning: &str, from_ms: Millis, to_ms: Millis) -> Result<Vec<EventSeq>, Error> {
    let first = first_since(conn, from_ms)?;
    let limit = i64::try_from(LOOKED_AT_MAX).unwrap_or(i64::MAX);
    let mut statement = conn
        .prepare_cached(
            "SELECT sequence, received_ms, id IS NULL, delivery_first, delivery_count FROM event WHERE sequence >= ?1 \
             ORDER BY sequence LIMIT ?2",
        )
        .map_err(unread)?;
    let rows = statement
        .query_map(params![first, limit], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)))
        .map_err(unread)?;
    let begins = |id: Uuid| id.to_string().starts_with(beginning);
    let mut found = Vec::new();
    for row in rows {
        let (sequence, at_ms, is_made, first, count): (i64, Millis, bool, Option<i64>, Option<i64>) =
            row.map_err(unread)?;
        if at_ms > to_ms || found.len() >= TOLD_MAX {
            break;
        }
        let first = first.unwrap_or(0);
        let mut of_deliveries = (first..first + count.unwrap_or(0)).map(|id| ids.delivery(at_ms, DeliveryId(id)));
        if (is_made && begins(ids.event(at_ms, EventSeq(sequence)))) || of_deliveries.any(begins) {
            found.push(EventSeq(sequence));
        }
    }
    Ok(found)
}

/// The first sequence whose event was stored at `from_ms` or later, found by halves.
fn first_since(conn: &Connection, from_ms: Millis) -> Result<i64, Error> {
    let mut at = conn
        .prepare_cached("SELECT received_ms FROM event WHERE sequence >= ?1 ORDER BY sequence LIMIT 1")
        .map_err(unread)?;
    let (mut low, mut high): (i64, i64) = conn
        .query_row("SELECT coalesce(min(sequence), 0), coalesce(max(sequence), -1) + 1 FROM event", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .map_err(unread)?;
    while low < high {
        let middle = i64::midpoint(low, high);
        let ms: Option<Millis> = at.query_row([middle], |row| row.get(0)).optional().map_err(unread)?;
        if ms.is_none_or(|ms| ms >= from_ms) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    Ok(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beginnings_of_ids_are_times() {
        let id = Ids { node: 7 }.event(1_795_000_000_123, EventSeq(9)).to_string();
        for (chars, span_ms) in [(36, 0), (20, 0), (13, 0), (12, 15), (9, 65_535), (8, 65_535), (4, (1 << 32) - 1)] {
            let (from_ms, to_ms) = times(&id[..chars]).expect("a beginning");
            assert_eq!(to_ms - from_ms, span_ms, "{chars}");
            assert!((from_ms..=to_ms).contains(&1_795_000_000_123), "{chars}");
        }
        for text in ["order-17", "01a2011--", "01a20118-8cd6-7000-8000-0001e334e5c6a", "01a201188cd6"] {
            assert_eq!(times(text), None, "{text}");
        }
    }
}
