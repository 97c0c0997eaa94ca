//! The end of one delivery, for whoever called a consumer by an event and waits for what comes of it.

use serde_json::Value;

use super::publish::Bus;
use crate::error::Error;
use crate::id::EventSeq;
use crate::store::deliveries::{self, Status};
use crate::store::events;

/// What a delivery came to.
#[derive(Debug, Clone, PartialEq)]
pub enum Awaited {
    /// It worked, with this result.
    Done(Value),
    /// It was given up, and this is why.
    Failed(String),
    /// Its event was too old.
    Expired,
    /// The consumer did not get the event.
    Missed,
    /// What became of it is not on record any more.
    Forgotten,
}

impl Bus {
    /// Waits for the end of the delivery of an event to a consumer.
    pub async fn end_of(&self, sequence: EventSeq, consumer: &str) -> Result<Awaited, Error> {
        // Before it is looked at, so that no end is missed.
        let mut ended = self.ended();
        loop {
            let ids = self.store().ids();
            let found = self.store().read(move |conn| {
                let event = events::by_sequence(conn, ids, sequence)?;
                Ok((event.is_some(), deliveries::of_event(conn, sequence)?))
            });
            let (there, records) = found.await?;
            let Some(record) = records.into_iter().find(|record| record.consumer == consumer) else {
                return Ok(if there { Awaited::Missed } else { Awaited::Forgotten });
            };
            match record.status {
                Status::Done => return Ok(Awaited::Done(record.result.unwrap_or(Value::Null))),
                Status::Dead | Status::Discarded => {
                    let chain = record.failures.last().map(|(_, _, chain)| chain.join(": ")).unwrap_or_default();
                    return Ok(Awaited::Failed(chain));
                }
                Status::Expired => return Ok(Awaited::Expired),
                Status::Pending | Status::Running | Status::Retrying => {}
            }
            ended.changed().await.map_err(Error::internal("waiting for the end of a delivery"))?;
        }
    }
}
