//! Answers that are read while they come. The connection lasts as long as the answer, and ends when it is dropped.

use std::sync::OnceLock;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::{Ask, Driving, Egress, EgressError, Heard, Leg, silent, texts, trace};

/// An answer whose head is there and whose body comes.
pub struct Streamed {
    /// Status and headers; its body is empty.
    pub head: Heard,
    body: Incoming,
    /// Bytes that may still come.
    left: usize,
    driving: Driving,
}

impl Streamed {
    /// The next bytes, as they come off the connection; none at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, EgressError> {
        while let Some(frame) = self.driving.until(self.body.frame()).await {
            let frame = frame.map_err(|error| EgressError::BadAnswer(format!("the answer was cut off: {error}")))?;
            let Ok(data) = frame.into_data() else { continue };
            let Some(left) = self.left.checked_sub(data.len()) else {
                return Err(EgressError::TooLong("the answer has more bytes than it may".to_owned()));
            };
            self.left = left;
            return Ok(Some(data));
        }
        Ok(None)
    }
}

impl Egress {
    /// Asks once and gives the answer as soon as its head is there, which may take `ask.time_max`; how long the body may
    /// take is the caller's to say. No redirect is followed: what is asked so may hold credentials.
    pub async fn open(&self, mut ask: Ask, leg: Leg) -> Result<Streamed, EgressError> {
        let sent = OnceLock::new();
        let span = trace::begin(&mut ask);
        let opened = match tokio::time::timeout(ask.time_max, self.send(&ask, &leg, &sent)).await {
            Ok(opened) => opened,
            Err(_) => Err(silent(ask.time_max, &sent)),
        };
        let streamed = opened.map(|(response, driving)| {
            let (parts, body) = response.into_parts();
            let head = Heard { status: parts.status.as_u16(), headers: texts(&parts.headers), body: Bytes::new() };
            Streamed { head, body, left: ask.bytes_max, driving }
        });
        if let Some(span) = span {
            trace::end(span, &streamed.as_ref().map(|streamed| &streamed.head));
        }
        streamed
    }
}
