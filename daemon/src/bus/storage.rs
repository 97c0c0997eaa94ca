//! What is told of a disk that took nothing, once it takes something again.

use serde_json::{Value, json};

use super::publish::Bus;
use super::{Origin, StateWrite};
use crate::clock::rfc3339;
use crate::event::NewEvent;
use crate::store::fault::Fault;
use crate::store::{Tx, audit};

const NAME: &str = "aman/storage";

/// Waits for faults of the store; after each one an event `aman.storage.recovered` and a row of the
/// audit log tell of it. What the start found lost is told as `aman.storage.lost`.
pub(super) async fn tell_of_faults(bus: Bus) {
    let lost = bus.store().lost().map(|lost| json!({ "transactions": lost.transactions, "kept": lost.kept }));
    if let Some(lost) = lost {
        tell(&bus, ("lost", "aman.db-wal"), lost).await;
    }
    let mut faults = bus.store().faults();
    let mut begun: Option<(Fault, i64)> = None;
    loop {
        let now = *faults.borrow_and_update();
        match (now, begun) {
            (Some(fault), None) => begun = Some((fault, bus.clock().now_ms())),
            (None, Some((fault, since_ms))) => {
                // When it comes back at once, both are told as one.
                let data = json!({
                    "code": fault.code(),
                    "why": fault.what(),
                    "since": rfc3339(since_ms),
                    "until": rfc3339(bus.clock().now_ms()),
                });
                if tell(&bus, ("recovered", fault.code()), data).await {
                    begun = None;
                }
            }
            (Some(_), Some(_)) | (None, None) => {}
        }
        tokio::select! {
            () = bus.inner.stop.cancelled() => return,
            changed = faults.changed() => if changed.is_err() { return },
        }
    }
}

async fn tell(bus: &Bus, (what, target): (&str, &str), data: Value) -> bool {
    let record = audit::Record {
        at_ms: bus.clock().now_ms(),
        principal: NAME.to_owned(),
        claimed_operator: None,
        action: format!("storage.{what}"),
        target: target.to_owned(),
        outcome: audit::Outcome::Done,
        status: 0,
        trace: None,
        detail: data.clone(),
        before_digest: None,
        after_digest: None,
    };
    let event = NewEvent::new(NAME, format!("aman.storage.{what}"), &data);
    let state: StateWrite = Box::new(move |tx: &mut Tx<'_>| audit::append(tx, &record).map(drop));
    bus.append_unrefused(event, Origin::own(NAME), Some(state)).await.is_ok()
}
