//! What goes wrong with a plugin: counted, told as events and in the audit log, and when it is too much, a rest that grows.

use std::collections::{BTreeMap, VecDeque};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aman_plugin_host::Fault;
use serde::Serialize;
use serde_json::json;
use tokio::sync::Notify;

use super::running::CallFault;
use crate::bus::{Bus, Origin};
use crate::clock::{Millis, rfc3339};
use crate::event::NewEvent;
use crate::store::audit::{self, Outcome, Record};
use crate::store::plugins::{self as records, Rest, Version};

/// So many misbehaviours within [`WINDOW`] send a plugin to rest.
const MISBEHAVIOURS_MAX: usize = 5;
const WINDOW: Duration = Duration::from_secs(60);
/// The first rest; each further one is twice as long.
const REST_FIRST: Duration = Duration::from_secs(5);
/// The longest rest.
const REST_MAX: Duration = Duration::from_secs(300);
/// After so long without a rest the next one is the first again.
const FORGIVEN: Duration = Duration::from_secs(1800);
/// Faults are told at most this often; what comes between is counted.
const TOLD_EVERY: Duration = Duration::from_secs(60);
/// Who tells.
const NAME: &str = "aman/plugins";

/// See the module.
pub struct Health {
    name: String,
    version: String,
    digest: String,
    bus: Bus,
    begun: Instant,
    /// Milliseconds after `begun` at which its rest ends; 0 = it does not rest.
    rests_until: AtomicU64,
    /// Told when a rest is ended before its time.
    ended: Notify,
    trouble: Mutex<Trouble>,
}

#[derive(Default)]
struct Trouble {
    recent: VecDeque<Instant>,
    rests: u32,
    rested: Option<Instant>,
    told: Option<Instant>,
    untold: u64,
    counts: BTreeMap<&'static str, u64>,
    last: Option<(Millis, String)>,
}

/// How a plugin is.
#[derive(Debug, Clone, Serialize)]
pub struct Shown {
    /// Faults since it was loaded first, by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// The last one.
    pub last_fault: Option<String>,
    /// When that was.
    pub last_fault_at: Option<String>,
    /// Milliseconds for which it still rests; absent when it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rests_ms: Option<u128>,
    /// When its rest ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rests_until: Option<String>,
    /// How often in a row it was sent to rest; each time is twice as long as the one before.
    pub rests: u32,
}

/// The kind of a fault, as metrics and events name it.
fn kind(fault: &Fault) -> &'static str {
    match fault {
        Fault::Trap { .. } => "trap",
        Fault::Timeout { .. } => "timeout",
        Fault::Limit { which, .. } => which.name(),
        Fault::Failed(_) => "failed",
        Fault::Missing { .. } => "missing",
        Fault::Denied { .. } => "denied",
        Fault::Refused { .. } => "refused",
        Fault::Damaged { .. } => "damaged",
        Fault::Closed => "closed",
        Fault::Internal { .. } => "internal",
    }
}

impl Health {
    /// All is well.
    pub fn new(version: &Version, bus: &Bus) -> Health {
        Health {
            name: version.name.clone(),
            version: version.version.clone(),
            digest: version.digest.clone(),
            bus: bus.clone(),
            begun: Instant::now(),
            rests_until: AtomicU64::new(0),
            ended: Notify::new(),
            trouble: Mutex::default(),
        }
    }

    /// Goes on with what was left of a rest when the daemon ended, and remembers how many there were.
    pub fn take_up(&self, rest: &Rest) {
        let left_ms = rest.until_ms - self.bus.clock().now_ms();
        let since = Duration::from_millis(u64::try_from(-left_ms).unwrap_or(0));
        if rest.digest != self.digest || since > FORGIVEN {
            return;
        }
        let now = Instant::now();
        let left = Duration::from_millis(u64::try_from(left_ms).unwrap_or(0)).min(REST_MAX);
        let mut trouble = self.trouble();
        trouble.rests = rest.rests;
        trouble.rested = (now + left).checked_sub(since);
        trouble.last = Some((rest.at_ms, rest.message.clone()));
        self.rest_until(self.begun.elapsed() + left);
    }

    /// Ends a rest before its time, and forgets how many there were.
    pub fn end_rest(&self) {
        let mut trouble = self.trouble();
        (trouble.rests, trouble.rested) = (0, None);
        trouble.recent.clear();
        drop(trouble);
        self.rests_until.store(0, Ordering::Release);
        self.ended.notify_waiters();
    }

    /// Waits until it does not rest.
    pub async fn rested(&self) {
        loop {
            let mut ended = pin!(self.ended.notified());
            ended.as_mut().enable();
            let Err(left) = self.admit() else { return };
            tokio::select! {
                () = ended => {}
                () = tokio::time::sleep(left) => {}
            }
        }
    }

    fn rest_until(&self, since_begin: Duration) {
        let until = u64::try_from(since_begin.as_millis()).unwrap_or(u64::MAX);
        self.rests_until.store(until, Ordering::Release);
    }

    fn trouble(&self) -> MutexGuard<'_, Trouble> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says for how long it still rests, if it does.
    pub fn admit(&self) -> Result<(), Duration> {
        let until = self.rests_until.load(Ordering::Acquire);
        if until == 0 {
            return Ok(());
        }
        match Duration::from_millis(until).checked_sub(self.begun.elapsed()) {
            Some(left) if !left.is_zero() => Err(left),
            _ => Ok(()),
        }
    }

    /// Counts a fault, tells of it, and sends the plugin to rest when there were too many.
    pub fn note(&self, fault: Fault) -> CallFault {
        let (kind, message) = (kind(&fault), fault.to_string());
        let now = Instant::now();
        let mut trouble = self.trouble();
        *trouble.counts.entry(kind).or_default() += 1;
        trouble.last = Some((self.bus.clock().now_ms(), message.clone()));
        trouble.untold += 1;
        let rest = if fault.is_misbehaviour() { self.rest(&mut trouble, now) } else { None };
        let due = trouble.told.is_none_or(|told| now - told >= TOLD_EVERY);
        if let Some(rest) = rest {
            tracing::warn!(
                plugin = self.name,
                kind,
                message,
                rest_s = rest.as_secs(),
                "A plugin rests: it failed too often."
            );
            self.tell("quarantined", kind, message, trouble.untold, Some((rest, trouble.rests)));
        } else if due {
            tracing::warn!(plugin = self.name, kind, why = message, "A plugin failed.");
            self.tell("failed", kind, message, trouble.untold, None);
        }
        if rest.is_some() || due {
            trouble.told = Some(now);
            trouble.untold = 0;
        }
        CallFault::Fault(fault)
    }

    /// The rest that begins now, if one does.
    fn rest(&self, trouble: &mut Trouble, now: Instant) -> Option<Duration> {
        trouble.recent.push_back(now);
        while trouble.recent.front().is_some_and(|first| now - *first > WINDOW) {
            trouble.recent.pop_front();
        }
        if trouble.recent.len() < MISBEHAVIOURS_MAX || self.admit().is_err() {
            return None;
        }
        trouble.recent.clear();
        if trouble.rested.is_some_and(|last| now - last > FORGIVEN) {
            trouble.rests = 0;
        }
        let rest = REST_FIRST.saturating_mul(1_u32.checked_shl(trouble.rests).unwrap_or(u32::MAX)).min(REST_MAX);
        trouble.rests += 1;
        trouble.rested = Some(now + rest);
        self.rest_until(self.begun.elapsed() + rest);
        Some(rest)
    }

    /// Publishes `aman.plugin.failed` or `aman.plugin.quarantined`, with a row of the audit log and the record of the rest,
    /// and how many there were in a row by now, in the same transaction.
    fn tell(&self, what: &'static str, kind: &'static str, message: String, count: u64, rest: Option<(Duration, u32)>) {
        let (bus, name) = (self.bus.clone(), self.name.clone());
        let rest_ms = rest.map(|(rest, _)| Millis::try_from(rest.as_millis()).unwrap_or(Millis::MAX));
        let at_ms = bus.clock().now_ms();
        let stored = rest.map(|(_, rests)| Rest {
            digest: self.digest.clone(),
            rests,
            until_ms: at_ms.saturating_add(rest_ms.unwrap_or(0)),
            message: crate::redact::text(&message).into_owned(),
            at_ms,
        });
        let data = json!({
            "plugin": name, "version": self.version, "fault": kind, "message": message, "count": count, "rest_ms": rest_ms,
        });
        let record = Record {
            at_ms,
            principal: format!("plugin/{name}"),
            claimed_operator: None,
            action: format!("plugin.{what}"),
            target: name,
            outcome: Outcome::Failed,
            status: if kind == "timeout" { 504 } else { 502 },
            trace: None,
            detail: data.clone(),
            before_digest: None,
            after_digest: None,
        };
        let event = NewEvent::new(NAME, format!("aman.plugin.{what}"), &data);
        let write = move |tx: &mut crate::store::Tx<'_>| {
            audit::append(tx, &record)?;
            stored.iter().try_for_each(|rest| records::set_rest(tx, &record.target, rest))
        };
        tokio::spawn(async move {
            if let Err(error) = bus.append_unrefused(event, Origin::own(NAME), Some(Box::new(write))).await {
                tracing::warn!(error = error.chain().join(": "), "A fault of a plugin could not be told as an event.");
            }
        });
    }

    /// How it is.
    pub fn show(&self) -> Shown {
        let trouble = self.trouble();
        let rests_ms = self.admit().err().map(|left| left.as_millis());
        let until = |left: u128| rfc3339(self.bus.clock().now_ms() + Millis::try_from(left).unwrap_or(0));
        Shown {
            faults: trouble.counts.clone(),
            last_fault: trouble.last.as_ref().map(|(_, message)| crate::redact::text(message).into_owned()),
            last_fault_at: trouble.last.as_ref().map(|(at_ms, _)| rfc3339(*at_ms)),
            rests_until: rests_ms.map(until),
            rests_ms,
            rests: trouble.rests,
        }
    }
}
