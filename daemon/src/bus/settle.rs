//! The end of an attempt: one transaction that ends the delivery and applies its effects, or lets it wait, or buries it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};

use super::effects::{Effects, NewIntent};
use super::notices::{self, Notices};
use super::publish::Bus;
use super::router::Entry;
use super::{Failure, spans};
use crate::clock::Millis;
use crate::error::Error;
use crate::event::{Delivery as Mode, NewEvent};
use crate::id::{DeliveryId, sha256_hex};
use crate::redact;
use crate::store::dead_letters::{Death, Reason};
use crate::store::deliveries::{Ready, Status};
use crate::store::events::Prepared;
use crate::store::{Tx, dead_letters, deliveries, events, outbox};

/// The type of the event that tells of a dead letter.
const DEAD: &str = "aman.delivery.dead";

/// What became of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// The delivery has ended, or the daemon stops.
    Ended,
    /// It waits for another attempt until then.
    Waits(Millis),
    /// Nothing was written: it stands as it stood before the attempt.
    Untouched,
}

/// Everything that an end of a delivery writes, encoded and without secrets before the writer gets it; shared, so that a
/// full disk only delays it.
struct Ending {
    id: DeliveryId,
    status: Status,
    attempt: u32,
    /// JSON.
    result: Option<String>,
    publish: Vec<Prepared>,
    notify: Notices,
    outgoing: Vec<Outgoing>,
    death: Option<Burial>,
}

/// An intent with its payload as JSON.
struct Outgoing {
    sink: String,
    payload: String,
    ttl_ms: Millis,
}

struct Burial {
    reason: Reason,
    chain: Vec<String>,
    fingerprint: String,
}

fn encode(value: &Value) -> String {
    redact::json(&value.to_string()).into_owned()
}

impl Outgoing {
    fn of(intent: NewIntent) -> Outgoing {
        let ttl_ms = i64::try_from(intent.ttl.as_millis()).unwrap_or(i64::MAX);
        Outgoing { sink: intent.sink, payload: encode(&intent.payload), ttl_ms }
    }
}

/// Why an attempt that worked is not done all the same. Nothing was written.
pub(super) enum Unsettled {
    /// Its effects may not be.
    Dies(Reason, Failure),
    /// The database refused its change of state.
    Failed(Failure),
}

/// Applies the effects of a successful attempt with its settlement.
pub(super) async fn done(bus: &Bus, entry: &Entry, ready: &Ready, effects: Effects) -> Result<Settled, Unsettled> {
    let depth_max = bus.inner.settings.load().max_causation_depth;
    // What only tells the person ends a chain, unless it answers to what was told: that can go on for ever.
    let answers = ready.event.sent.kind == notices::CREATED && !effects.notify.is_empty();
    let goes_on = answers || !effects.publish.is_empty();
    let too_deep = ready.event.depth + 1 > depth_max;
    if goes_on && too_deep {
        let failure = Failure::new(format!(
            "Its effects would be number {} of a chain; at most {depth_max}.",
            ready.event.depth + 1
        ));
        return Err(Unsettled::Dies(Reason::CausationLoop, failure));
    }
    let made = effects.publish.len() + if answers { effects.notify.len() } else { 0 };
    if !bus.inner.chains.admit(ready.event.trace, made) {
        let failure = Failure::new("Its trace has more effects than the daemon lets one cause have.");
        return Err(Unsettled::Dies(Reason::CausationLoop, failure));
    }
    if let Some((n, error)) = first_invalid(bus, &effects.publish) {
        let failure = Failure::new(format!("publish/{n}: {error}")).within("The consumer published an invalid event.");
        return Err(Unsettled::Dies(Reason::Rejected, failure));
    }
    let cause = spans::cause(bus, ready);
    let ending = Ending {
        id: ready.id,
        status: Status::Done,
        attempt: ready.attempt + 1,
        result: effects.result.as_ref().map(encode),
        publish: bus.prepare_effects(entry, &cause, effects.trust, effects.publish).await,
        notify: Notices::prepare(bus, entry, ready, (effects.notify, too_deep)).await,
        outgoing: effects.outgoing.into_iter().map(Outgoing::of).collect(),
        death: None,
    };
    let ended = match effects.state {
        None => end(bus, ready, ending).await,
        Some(state) => end_with_state(bus, ready, ending, state).await.map_err(Unsettled::Failed)?,
    };
    bus.inner.stats.done.fetch_add(u64::from(ended), Ordering::Relaxed);
    if let Some(stored) = effects.stored.filter(|_| ended) {
        stored();
    }
    Ok(Settled::Ended)
}

/// The first event that breaks a rule of the envelope, or does not fit the schema of its type.
fn first_invalid(bus: &Bus, events: &[NewEvent]) -> Option<(usize, Error)> {
    let types = bus.types();
    let check = |event: &NewEvent| event.check().and_then(|()| types.check(&event.kind, &event.data));
    events.iter().enumerate().find_map(|(n, event)| check(event).err().map(|error| (n, error)))
}

/// Ends a delivery whose event is too old.
pub(super) async fn expire(bus: &Bus, entry: &Entry, ready: &Ready) -> Settled {
    tracing::info!(consumer = entry.spec.name, event = ready.event.id(), "Delivery expired.");
    let ended = end(bus, ready, Ending::bare(ready.id, Status::Expired, ready.attempt)).await;
    bus.inner.stats.expired.fetch_add(u64::from(ended), Ordering::Relaxed);
    Settled::Ended
}

/// Gives a delivery up: dead letter, and an event that says so.
pub(super) async fn die(bus: &Bus, entry: &Entry, ready: &Ready, reason: Reason, failure: Failure) -> Settled {
    let attempts = if reason == Reason::AttemptsExhausted && ready.attempt >= entry.spec.retry.max_attempts {
        ready.attempt
    } else {
        ready.attempt + 1
    };
    tell_dead(entry, ready, reason, &failure);
    let ending = bury(bus, entry, ready, reason, failure.chain, attempts).await;
    let ended = end(bus, ready, ending).await;
    bus.inner.stats.dead.fetch_add(u64::from(ended), Ordering::Relaxed);
    Settled::Ended
}

/// As [`die`], with what the consumer has to say of it: events, unless they may not be, and a change of state. The failure is
/// that nothing was stored.
pub(super) async fn buried(
    bus: &Bus,
    entry: &Entry,
    ready: &Ready,
    failure: &Failure,
    effects: Effects,
) -> Result<Settled, Failure> {
    tell_dead(entry, ready, Reason::Rejected, failure);
    let mut ending = bury(bus, entry, ready, Reason::Rejected, failure.chain.clone(), ready.attempt + 1).await;
    let is_deep = ready.event.depth + 1 > bus.inner.settings.load().max_causation_depth;
    if !is_deep && first_invalid(bus, &effects.publish).is_none() {
        let cause = spans::cause(bus, ready);
        ending.publish.extend(bus.prepare_effects(entry, &cause, effects.trust, effects.publish).await);
    }
    let ended = match effects.state {
        None => end(bus, ready, ending).await,
        Some(state) => end_with_state(bus, ready, ending, state).await?,
    };
    bus.inner.stats.dead.fetch_add(u64::from(ended), Ordering::Relaxed);
    if let Some(stored) = effects.stored.filter(|_| ended) {
        stored();
    }
    Ok(Settled::Ended)
}

fn tell_dead(entry: &Entry, ready: &Ready, reason: Reason, failure: &Failure) {
    tracing::warn!(
        consumer = entry.spec.name,
        event = ready.event.id(),
        reason = reason.name(),
        error = failure.chain.join(": "),
        "Delivery is dead."
    );
}

async fn bury(bus: &Bus, entry: &Entry, ready: &Ready, reason: Reason, chain: Vec<String>, attempts: u32) -> Ending {
    let fingerprint = fingerprint(&entry.spec.name, reason, &chain);
    let mut publish = Vec::new();
    // No death of a death, nor of what tells the person of one: consumers of everything that all fail would breed.
    let may_breed = [DEAD, notices::CREATED].contains(&ready.event.sent.kind.as_str());
    if ready.event.depth < bus.inner.settings.load().max_causation_depth && !may_breed {
        let ids = bus.store().ids();
        let id = ready.id;
        // Counted as its letter counts them. What cannot be read now is told by the letter alone.
        let before = bus.store().read(move |conn| dead_letters::attempts_before(conn, id)).await.unwrap_or(0);
        let data = json!({
            "delivery_id": ids.delivery(ready.event.received_ms, ready.id).to_string(),
            "event_id": ready.event.id(),
            "type": ready.event.sent.kind,
            "consumer": entry.spec.name,
            "reason": reason,
            "error": chain.first(),
            "cause": chain.last(),
            "attempts": before + attempts,
            "fingerprint": fingerprint,
        });
        let cause = spans::cause(bus, ready);
        let mut told = bus.prepare_effects(entry, &cause, None, vec![NewEvent::new("aman/bus", DEAD, &data)]).await;
        for event in &mut told {
            // It is the bus that says so, whatever its consumer may say.
            event.principal = "aman/bus".to_owned();
            event.trust = ready.event.trust;
        }
        publish = told;
    }
    let death = Some(Burial { reason, chain, fingerprint });
    Ending { publish, death, ..Ending::bare(ready.id, Status::Dead, attempts) }
}

/// What letters with the same cause share: consumer, reason and error without its numbers.
fn fingerprint(consumer: &str, reason: Reason, chain: &[String]) -> String {
    let error = chain.last().map_or("", String::as_str);
    let shape: String = error.chars().map(|c| if c.is_ascii_digit() { '#' } else { c }).take(500).collect();
    sha256_hex(format!("{consumer}\n{}\n{shape}", reason.name()).as_bytes())[..16].to_owned()
}

/// Lets a delivery wait for another attempt.
pub(super) async fn wait(bus: &Bus, ready: &Ready, wait: Duration, failure: Failure) -> Settled {
    bus.inner.stats.retried.fetch_add(1, Ordering::Relaxed);
    let (id, attempt) = (ready.id, ready.attempt + 1);
    let chain = Arc::new(failure.chain);
    tracing::info!(event = ready.event.id(), attempt, error = chain.join(": "), "Attempt failed; it is tried again.");
    let stored = until_stored(bus, || {
        let chain = Arc::clone(&chain);
        let now_ms = bus.clock().now_ms();
        let next_ms = now_ms.saturating_add(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX));
        move |tx: &mut Tx<'_>| {
            if deliveries::wait(tx, id, attempt, next_ms)? {
                deliveries::record_failure(tx, id, attempt, now_ms, &chain)?;
            }
            Ok(next_ms)
        }
    });
    // What is in the row: the clock may have jumped since.
    stored.await.map_or(Settled::Ended, Settled::Waits)
}

/// Takes a claim back that could not be stored for certain: where it was stored all the same, nobody else would find it.
pub(super) async fn unclaim(bus: &Bus, ready: &Ready) -> Settled {
    let (id, attempt, now_ms) = (ready.id, ready.attempt, bus.clock().now_ms());
    until_stored(bus, || move |tx: &mut Tx<'_>| deliveries::unclaim(tx, id, attempt, now_ms)).await;
    Settled::Untouched
}

/// Lets a delivery wait whose attempt did not begin.
pub(super) async fn postpone(bus: &Bus, ready: &Ready, wait: Duration) -> Settled {
    let (id, attempt) = (ready.id, ready.attempt);
    let wait_ms = i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
    let next_ms = bus.clock().now_ms().saturating_add(wait_ms);
    until_stored(bus, || move |tx: &mut Tx<'_>| deliveries::wait(tx, id, attempt, next_ms)).await;
    Settled::Waits(next_ms)
}

impl Ending {
    fn bare(id: DeliveryId, status: Status, attempt: u32) -> Ending {
        Ending {
            id,
            status,
            attempt,
            result: None,
            publish: Vec::new(),
            notify: Notices::default(),
            outgoing: Vec::new(),
            death: None,
        }
    }

    /// Ends the delivery and applies everything, unless it had ended already.
    fn apply(&self, tx: &mut Tx<'_>, publish: Vec<Prepared>, ready: &Ready, now_ms: Millis) -> Result<bool, Error> {
        if !deliveries::end(tx, self.id, self.status, self.attempt, now_ms, self.result.as_deref())? {
            return Ok(false);
        }
        if let Some(death) = &self.death {
            deliveries::record_failure(tx, self.id, self.attempt, now_ms, &death.chain)?;
            let death = Death {
                id: self.id,
                event: &ready.event,
                consumer: ready.consumer,
                reason: death.reason,
                chain: &death.chain,
                attempts: self.attempt,
                fingerprint: &death.fingerprint,
            };
            dead_letters::bury(tx, &death, now_ms)?;
        } else if self.status == Status::Done {
            dead_letters::resolve(tx, self.id)?;
        } else {
            dead_letters::give_up(tx, self.id)?;
        }
        for event in publish {
            events::append(tx, event)?;
        }
        self.notify.store(tx, now_ms)?;
        for (number, intent) in self.outgoing.iter().enumerate() {
            let event = &ready.event;
            let origin =
                outbox::Origin { delivery: self.id, event: event.sequence, event_ms: event.received_ms, number };
            let expires_ms = now_ms.saturating_add(intent.ttl_ms);
            outbox::add(tx, &origin, &intent.sink, &intent.payload, now_ms, expires_ms)?;
        }
        Ok(true)
    }
}

/// True when this ended the delivery; false when it had ended before, or the daemon stops.
async fn end(bus: &Bus, ready: &Ready, ending: Ending) -> bool {
    let ending = Arc::new(ending);
    let ended = until_stored(bus, || {
        let (ending, publish) = (Arc::clone(&ending), ending.publish.clone());
        let (ready, now_ms) = (ready.clone(), bus.clock().now_ms());
        move |tx: &mut Tx<'_>| ending.apply(tx, publish, &ready, now_ms)
    })
    .await
    .unwrap_or(false);
    bus.inner.tell_ended();
    ended
}

/// As [`end`]; a change of state runs once, so when it cannot be stored the attempt has failed.
async fn end_with_state(
    bus: &Bus,
    ready: &Ready,
    mut ending: Ending,
    state: super::StateWrite,
) -> Result<bool, Failure> {
    let (ready, now_ms) = (ready.clone(), bus.clock().now_ms());
    let publish = std::mem::take(&mut ending.publish);
    let change = move |tx: &mut Tx<'_>| {
        let ended = ending.apply(tx, publish, &ready, now_ms)?;
        if ended {
            state(tx)?;
        }
        Ok(ended)
    };
    let ended = bus.store().write(change).await.map_err(|error| {
        let failure = Failure { chain: error.chain(), timed_out: false };
        failure.within("The effects could not be stored.")
    })?;
    bus.inner.tell_ended();
    Ok(ended)
}

/// Writes until the disk takes it; none when the daemon stops before. Nothing of an attempt is lost to a full disk.
async fn until_stored<F, C, R>(bus: &Bus, change: F) -> Option<R>
where
    F: Fn() -> C,
    C: FnOnce(&mut Tx<'_>) -> Result<R, Error> + Send + 'static,
    R: Send + 'static,
{
    loop {
        match bus.store().write_hot(change()).await {
            Ok(done) => return Some(done),
            // The store has said why, and says when it is over.
            Err(Error::Busy { .. }) => {}
            Err(error) => tracing::error!(error = ?error, "A settlement could not be stored; it is tried again."),
        }
        tokio::select! {
            () = bus.inner.abort.cancelled() => return None,
            () = bus.pause_until_writable() => {}
        }
    }
}

/// Settles what the end of the last run cut off of this consumer, by the delivery mode of each event.
pub(super) async fn recover(bus: &Bus, entry: &Entry) -> Result<(), Error> {
    let (ids, consumer) = (bus.store().ids(), entry.id);
    let cut_off = bus.store().read(move |conn| deliveries::cut_off(conn, ids, consumer)).await?;
    for (mut ready, outside) in cut_off {
        let (attempt, now_ms) = (ready.attempt, bus.clock().now_ms());
        let chain = vec!["The attempt was cut off by the end of the daemon.".to_owned()];
        tracing::warn!(event = ready.event.id(), attempt, "A delivery was cut off by the last end of the daemon.");
        spans::cut_off(bus, entry, &ready, &chain[0]);
        let reason = match ready.event.sent.delivery {
            Mode::AtMostOnce => Some(Reason::Interrupted),
            Mode::ExactlyOnce if outside => Some(Reason::UnknownOutcome),
            Mode::ExactlyOnce | Mode::AtLeastOnce => None,
        };
        let Some(reason) = reason else {
            let change = move |tx: &mut Tx<'_>| {
                deliveries::wait(tx, ready.id, attempt, now_ms)?;
                deliveries::record_failure(tx, ready.id, attempt, now_ms, &chain)
            };
            bus.store().write(change).await?;
            continue;
        };
        // The claimed attempt is counted already.
        ready.attempt = attempt.saturating_sub(1);
        let mut ending = bury(bus, entry, &ready, reason, chain, attempt).await;
        let publish = std::mem::take(&mut ending.publish);
        let ended = bus.store().write(move |tx| ending.apply(tx, publish, &ready, now_ms)).await?;
        bus.inner.stats.dead.fetch_add(u64::from(ended), Ordering::Relaxed);
    }
    Ok(())
}
