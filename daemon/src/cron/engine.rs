//! The engine: looks what is due, publishes it, and settles the runs that have ended.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::plan::{self, Act, Standing};
use super::wake::Wake;
use super::{Held, Inner, State, key_of, put_off_ms, slot, source_of};
use crate::bus::{self, Origin, Publish, StateWrite};
use crate::clock::{Millis, rfc3339};
use crate::error::Error;
use crate::event::NewEvent;
use crate::schedule::Job;
use crate::store::Tx;
use crate::store::cron::{self as rows, Fate, Slot, Status};

/// The engine looks at the clock again after at most this long, whoever else wakes it.
const LOOK_AGAIN_MAX: Duration = Duration::from_secs(60);
/// How long after a slot is due the engine looks by itself, should the wake-up fail.
const GUARD_MS: Millis = 2_000;
/// The wait after the bus or the disk refused.
const RETRY: Duration = Duration::from_secs(1);
/// Between two looks at runs that are going on.
const ENDED_PAUSE: Duration = Duration::from_millis(100);

/// What a look found.
pub(super) struct Look {
    /// When the next slot is due.
    due_ms: Option<Millis>,
    /// True while runs are going on.
    running: bool,
}

impl Inner {
    /// Runs until it is stopped; may be called again.
    pub(super) async fn run(self: Arc<Self>, stop: CancellationToken) -> Result<(), Error> {
        let mut wake = Wake::new(Arc::clone(&self.hint));
        let mut consumers = self.bus.consumers();
        let mut ended = None;
        while !self.stop.is_cancelled() && !stop.is_cancelled() {
            consumers.mark_unchanged();
            let wait = match self.look().await {
                Ok(Look { running: true, .. }) if ended.is_none() => {
                    // What ended before the subscription is seen by another look.
                    ended = Some(self.bus.ended());
                    continue;
                }
                Ok(look) => {
                    if !look.running {
                        ended = None;
                    }
                    let now_ms = self.now_ms();
                    wake.arm(look.due_ms, now_ms).await;
                    look.due_ms.map(|due_ms| {
                        let wait_ms = (due_ms - now_ms).max(0).saturating_add(GUARD_MS).unsigned_abs();
                        Duration::from_millis(wait_ms).min(LOOK_AGAIN_MAX)
                    })
                }
                Err(Error::Busy { code: "draining", .. }) => break,
                Err(Error::Busy { what, .. }) => {
                    tracing::debug!(what, "What is due waits until it can be stored.");
                    tokio::select! {
                        () = self.stop.cancelled() => {}
                        () = stop.cancelled() => {}
                        () = self.bus.store().until_clear() => {}
                    }
                    Some(RETRY)
                }
                Err(error) => {
                    tracing::warn!(error = error.chain().join(": "), "Cron could not do what is due; it tries again.");
                    Some(RETRY)
                }
            };
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = stop.cancelled() => {}
                () = self.hint.notified() => {}
                _ = consumers.changed() => {}
                () = run_ended(&mut ended) => tokio::time::sleep(ENDED_PAUSE).await,
                () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
            }
        }
        wake.end().await;
        self.ended.cancel();
        Ok(())
    }

    /// Does everything that is due now.
    pub(super) async fn look(&self) -> Result<Look, Error> {
        let mut state = self.state.lock().await;
        self.be_sure(&mut state).await?;
        self.take_skills(&mut state).await?;
        let now_ms = self.now_ms();
        let mut failed = None;
        // An event that nobody gets has ended at once, and may let the next one begin.
        loop {
            let mut moved = false;
            for held in state.jobs.values_mut() {
                match self.advance(held, now_ms).await {
                    Ok(did) => moved |= did,
                    // The other jobs have their turn all the same.
                    Err(error) => failed = Some(error),
                }
            }
            if !moved || failed.is_some() {
                break;
            }
        }
        if let Some(error) = failed {
            state.unsure = true;
            return Err(error);
        }
        Ok(look_of(&state))
    }

    /// Ends what has ended, begins what may begin, decides what is due. True when it did something.
    async fn advance(&self, held: &mut Held, now_ms: Millis) -> Result<bool, Error> {
        let mut moved = false;
        while let Some(ended) = self.one_ended(held).await? {
            self.settle(held, ended, now_ms).await?;
            moved = true;
        }
        // Where runs may go on beside each other, what waits needs no more than room: later slots would always be before it.
        while plan::has_room(held.job.overlap, held.running.len())
            && let Some(waiting) = held.queued.front().cloned()
        {
            self.begin(held, waiting, now_ms).await?;
            moved = true;
        }
        if held.row.cursor_ms > now_ms + plan::SET_BACK_MS {
            let (id, before) = (held.row.id.clone(), rfc3339(held.row.cursor_ms));
            tracing::warn!(job = id, before, "The clock was set back far; the cron job goes on from the new time.");
            self.bus.store().write(move |tx| rows::set_cursor(tx, &id, now_ms)).await?;
            held.set_cursor(now_ms);
        }
        if held.due_ms().is_some_and(|due_ms| due_ms <= now_ms) {
            self.decide(held, now_ms).await?;
            moved = true;
        }
        Ok(moved)
    }

    /// A run whose deliveries have all ended, and how.
    async fn one_ended(&self, held: &Held) -> Result<Option<(usize, Fate)>, Error> {
        if held.running.is_empty() {
            return Ok(None);
        }
        let source = source_of(&held.row.id);
        let keys: Vec<String> = held.running.iter().map(|run| run.key.clone()).collect();
        let look = move |conn: &_| {
            for (n, key) in keys.iter().enumerate() {
                let fate = rows::fate(conn, &source, key)?;
                if fate != Fate::Open {
                    return Ok(Some((n, fate)));
                }
            }
            Ok(None)
        };
        self.bus.store().read(look).await
    }

    /// Records the end of a run; too many failures in a row switch the job off, and say so.
    async fn settle(&self, held: &mut Held, (n, fate): (usize, Fate), now_ms: Millis) -> Result<(), Error> {
        let (id, key) = (held.row.id.clone(), held.running[n].key.clone());
        let error = match fate {
            Fate::Dead(error) => Some(error),
            Fate::Done | Fate::Open => None,
        };
        let failures = if error.is_some() { held.row.failures + 1 } else { 0 };
        let off = held.row.enabled && held.job.max_failures > 0 && failures >= held.job.max_failures;
        let last = error.clone().unwrap_or_default();
        let note = off.then(|| format!("{failures} runs in a row failed; the last: {last}"));
        let told = note.clone();
        let (job, text) = (id.clone(), error.clone());
        let change: StateWrite = Box::new(move |tx: &mut Tx<'_>| {
            let status = if text.is_some() { Status::Failed } else { Status::Done };
            rows::end(tx, &key, status, None, text.as_deref(), now_ms)?;
            rows::set_failures(tx, &job, failures, told.as_deref())
        });
        if off {
            let data = json!({
                "job": id,
                "failures": failures,
                "last_error": last,
                "last_run": held.running[n].key,
                "expression": held.job.expression,
            });
            let mut event = NewEvent::new("aman/cron", "aman.cron.disabled", &data);
            event.subject = Some(id.clone());
            self.bus.append_unrefused(event, Origin::own("aman/cron"), Some(change)).await?;
            tracing::warn!(job = id, failures, "A cron job was switched off: its runs fail.");
        } else {
            self.bus.store().write(change).await?;
        }
        held.running.remove(n);
        held.row.failures = failures;
        if note.is_some() {
            held.row.enabled = false;
            held.row.note = note;
        }
        Ok(())
    }

    /// Publishes the event of a slot that waited.
    async fn begin(&self, held: &mut Held, waiting: Slot, now_ms: Millis) -> Result<(), Error> {
        let key = waiting.key.clone();
        if let Err(reason) = self.target(&held.job) {
            self.bus.store().write(move |tx| rows::end(tx, &key, Status::Skipped, Some(reason), None, now_ms)).await?;
            held.queued.pop_front();
            return Ok(());
        }
        let event = event_of(&held.row.id, &held.job, &waiting);
        let change: StateWrite = Box::new(move |tx: &mut Tx<'_>| rows::begin(tx, &key, now_ms));
        self.publish(&source_of(&held.row.id), vec![event], change).await?;
        held.queued.pop_front();
        held.running.push(Slot { status: Status::Running, started_ms: Some(now_ms), ..waiting });
        Ok(())
    }

    /// Decides about every slot that is due; rows, events and the cursor commit together.
    async fn decide(&self, held: &mut Held, now_ms: Millis) -> Result<(), Error> {
        let (id, job, cursor_ms) = (held.row.id.clone(), held.job.clone(), held.row.cursor_ms);
        let gathered = tokio::task::spawn_blocking(move || {
            plan::gather(&job.schedule, cursor_ms, now_ms, |slot_ms| put_off_ms(&id, &job, slot_ms))
        });
        let due = gathered.await.map_err(Error::internal("gathering the slots of a cron job"))?;
        let (id, first) = (held.row.id.clone(), due.folded.map(|(first, _)| first).or(due.slots.first().copied()));
        let Some(first) = first else { return Ok(()) };
        let owner = id.clone();
        let taken = self.bus.store().read(move |conn| rows::taken(conn, &owner, first)).await?;
        let last = due.slots.last().copied().or(due.folded.map(|(_, last)| last)).unwrap_or(now_ms);
        let fresh: Vec<Millis> = due.slots.into_iter().filter(|slot_ms| !taken.contains(slot_ms)).collect();
        let standing = Standing {
            misfire: held.job.misfire,
            overlap: held.job.overlap,
            jitter_ms: held.job.jitter_ms(),
            running: held.running.len(),
            queued: !held.queued.is_empty(),
        };
        let target = self.target(&held.job);
        let mut added: Vec<Slot> = Vec::new();
        if let Some((from_ms, until_ms)) = due.folded.filter(|(from_ms, _)| !taken.contains(from_ms)) {
            let folded = slot(&id, from_ms, Status::Skipped, now_ms);
            added.push(Slot { until_ms: Some(until_ms), reason: Some("misfire".to_owned()), ..folded });
        }
        for (slot_ms, act) in plan::decide(&fresh, now_ms, standing) {
            let act = match (act, target) {
                (Act::Fire | Act::Queue, Err(reason)) => Act::Skip(reason),
                (act, _) => act,
            };
            added.push(match act {
                Act::Fire => slot(&id, slot_ms, Status::Running, now_ms),
                Act::Queue => slot(&id, slot_ms, Status::Queued, now_ms),
                Act::Skip(reason) => {
                    Slot { reason: Some(reason.to_owned()), ..slot(&id, slot_ms, Status::Skipped, now_ms) }
                }
            });
        }
        self.record(held, added, last).await
    }

    async fn record(&self, held: &mut Held, added: Vec<Slot>, cursor_ms: Millis) -> Result<(), Error> {
        let (id, rows) = (held.row.id.clone(), added.clone());
        let change: StateWrite = Box::new(move |tx: &mut Tx<'_>| {
            rows.iter().try_for_each(|row| rows::add(tx, row))?;
            rows::set_cursor(tx, &id, cursor_ms)
        });
        let fired = added.iter().filter(|slot| slot.status == Status::Running);
        let events: Vec<NewEvent> = fired.map(|slot| event_of(&held.row.id, &held.job, slot)).collect();
        if events.is_empty() {
            self.bus.store().write(change).await?;
        } else {
            self.publish(&source_of(&held.row.id), events, change).await?;
        }
        for slot in added {
            tracing::debug!(slot = slot.key, status = slot.status.name(), reason = slot.reason, "Cron slot.");
            match slot.status {
                Status::Running => held.running.push(slot),
                Status::Queued => held.queued.push_back(slot),
                _ => {}
            }
        }
        held.set_cursor(cursor_ms);
        Ok(())
    }

    /// Publishes events together with a change of the tables.
    pub(super) async fn publish(
        &self,
        principal: &str,
        events: Vec<NewEvent>,
        change: StateWrite,
    ) -> Result<(), Error> {
        let origin = Origin::own(principal);
        self.bus.publish(Publish { events, origin, idempotency: None, state: Some(change) }).await.map(drop)
    }

    /// Why the skill of a job would not get its event.
    pub(super) fn target(&self, job: &Job) -> Result<(), &'static str> {
        if let Some(workflow) = &job.workflow {
            let there = self.bus.router().by_name(&format!("workflow/{workflow}")).is_some();
            return if there { Ok(()) } else { Err("workflow_missing") };
        }
        let Some(skill) = &job.skill else { return Ok(()) };
        match self.bus.router().by_name(&format!("skill/{skill}")) {
            None => Err("skill_missing"),
            Some(entry) if entry.spec.standing != bus::Standing::Active => Err("skill_off"),
            Some(_) => Ok(()),
        }
    }
}

/// Ends when a delivery has ended; never without a subscription.
async fn run_ended(ended: &mut Option<tokio::sync::watch::Receiver<u64>>) {
    let told = match ended {
        Some(receiver) => receiver.changed().await.is_ok(),
        None => false,
    };
    if !told {
        std::future::pending::<()>().await;
    }
}

fn look_of(state: &State) -> Look {
    Look {
        due_ms: state.jobs.values().filter_map(Held::due_ms).min(),
        running: state.jobs.values().any(|held| !held.running.is_empty()),
    }
}

/// The event of a slot; its id is the slot's key.
pub(super) fn event_of(id: &str, job: &Job, slot: &Slot) -> NewEvent {
    let scheduled = rfc3339(slot.slot_ms);
    let data = match &job.payload {
        Some(payload) => payload.clone(),
        None => json!({ "job": id, "scheduled_at": scheduled, "manual": slot.manual }),
    };
    let mut event = NewEvent::new(source_of(id), &job.kind, &data);
    event.id = Some(slot.key.clone());
    // A workflow tells by it what is to start it from what it may listen to.
    event.subject = Some(job.workflow.as_ref().map_or_else(|| id.to_owned(), |name| format!("workflow/{name}")));
    event.agent_id.clone_from(&job.agent_id);
    event.extensions.insert("scheduledtime".to_owned(), Value::String(scheduled));
    event
}

/// The row of a run that somebody asked for.
pub(super) fn manual(id: &str, now_ms: Millis, status: Status) -> Slot {
    let number = crate::id::hex(&crate::id::random_bytes::<3>());
    let key = format!("{}-manual-{number}", key_of(id, now_ms));
    Slot { key, manual: true, ..slot(id, now_ms, status, now_ms) }
}
