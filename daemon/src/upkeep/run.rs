//! One run of retention: step by step, with pauses.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;

use super::{Recorder, Upkeep, millis};
use crate::bus::Standing;
use crate::clock::Millis;
use crate::config::Retention;
use crate::error::Error;
use crate::id::{EventSeq, Ids};
use crate::store::retention::{self, Aged, Due, Stop, Tally};
use crate::store::{Reading, Tx, audit, deliveries, outbox, space};

/// After a step the writer is left alone for as long as the step took, and for this long at the least.
const PAUSE_MIN: Duration = Duration::from_millis(2);
/// A sink at work ends what became too old within this time.
const STRANDED_MS: Millis = 3_600_000;
/// Intents of a step.
const STRANDED_ROWS: i64 = 256;
/// How much longer when changes are waiting for the writer.
const PAUSE_WHEN_BUSY: u32 = 4;
/// Rows of a step of audit records.
const AUDIT_ROWS: i64 = 256;
/// How long a preview may count.
const PREVIEW_MAX: Duration = Duration::from_secs(15);
/// How long an expired token stays on the list.
const TOKENS_KEPT_MS: Millis = 30 * 86_400_000;

/// What a run removed, or would remove.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// Events.
    pub events: i64,
    /// Of these, the ones that went before their time, for the size of the database.
    pub for_size: i64,
    /// Events that are old enough and stay: work on them is open, or a dead letter is kept.
    pub held: i64,
    /// Deliveries of the events.
    pub deliveries: i64,
    /// Dead letters whose time is over.
    pub dead_letters: i64,
    /// Notifications.
    pub notifications: i64,
    /// Slots of cron jobs.
    pub cron_runs: i64,
    /// Ended instances of workflows, with their journals.
    pub workflow_instances: i64,
    /// Definitions of workflows that nothing used any more.
    pub workflow_definitions: i64,
    /// Conversations with all that was said in them.
    pub sessions: i64,
    /// Expired keys of events and requests.
    pub keys: i64,
    /// Expired tokens.
    pub tokens: i64,
    /// Audit records.
    pub audit: i64,
    /// About how many bytes the events took.
    pub bytes: i64,
    /// Events that only told of earlier runs: by themselves they are not worth another such event.
    #[serde(skip)]
    pub own: i64,
    /// Bytes that went back to the disk.
    pub given_back: i64,
    /// True when the database is larger than its limit and nothing more may be removed.
    pub is_full: bool,
    /// False when there is more to do: a run that was cut short, or a preview that took too long.
    pub complete: bool,
    /// The last audit record that is to go.
    #[serde(skip)]
    pub audit_through: Option<audit::Anchor>,
    /// When the oldest event that is too young came.
    #[serde(skip)]
    pub young_ms: Option<Millis>,
}

impl Report {
    /// True when something went that somebody could look for, or when the limit of size cannot be kept.
    pub fn is_worth_telling(&self) -> bool {
        let rows = self.events - self.own + self.dead_letters + self.notifications + self.cron_runs + self.audit;
        rows + self.workflow_instances + self.workflow_definitions + self.sessions > 0 || self.is_full
    }

    fn count(&mut self, what: Aged, rows: i64) {
        match what {
            Aged::DeadLetters => self.dead_letters += rows,
            Aged::Notifications => self.notifications += rows,
            Aged::CronRuns => self.cron_runs += rows,
            Aged::Instances => self.workflow_instances += rows,
            Aged::Definitions => self.workflow_definitions += rows,
            Aged::Sessions | Aged::BackgroundSessions | Aged::HiddenSessions => self.sessions += rows,
            Aged::Keys => self.keys += rows,
            Aged::Tokens => self.tokens += rows,
        }
    }

    fn look(&mut self, due: &Due, for_size: bool) {
        if !for_size {
            self.held += due.held;
            if let Stop::Young(at_ms) = due.stop {
                self.young_ms = Some(at_ms);
            }
        }
    }

    fn take(&mut self, gone: Tally, for_size: bool) {
        self.events += gone.events;
        self.own += gone.own;
        self.deliveries += gone.deliveries;
        self.bytes += gone.bytes;
        if for_size {
            self.for_size += gone.events;
        }
    }
}

/// Every kind of row with its cutoff, none for what is kept for ever. Dead letters first: they hold their events.
fn aged(policy: &Retention, now_ms: Millis) -> [(Aged, Option<Millis>); 10] {
    let cutoff = |age| millis(age).map(|age| now_ms.saturating_sub(age));
    [
        (Aged::DeadLetters, cutoff(policy.dead_letters)),
        (Aged::Keys, Some(now_ms)),
        (Aged::Tokens, Some(now_ms.saturating_sub(TOKENS_KEPT_MS))),
        (Aged::Notifications, cutoff(policy.notifications)),
        (Aged::CronRuns, cutoff(policy.cron_runs)),
        (Aged::Instances, cutoff(policy.workflows)),
        (Aged::Definitions, cutoff(policy.workflows)),
        (Aged::HiddenSessions, Some(now_ms)),
        (Aged::Sessions, cutoff(policy.sessions)),
        (Aged::BackgroundSessions, cutoff(policy.background_sessions)),
    ]
}

/// What a sink gave up after this time may still be wanted: it is kept as long as a dead letter.
fn given_up_ms(policy: &Retention, now_ms: Millis) -> Millis {
    millis(policy.dead_letters).map_or(Millis::MIN, |age| now_ms.saturating_sub(age))
}

/// Down to where the size is brought once it is too large, so that it does not have to be brought down all the time.
fn size_wanted(limit: u64) -> u64 {
    limit - limit / 20
}

/// A run at work.
pub(super) struct Run<'a> {
    upkeep: &'a Upkeep,
    policy: Retention,
    now_ms: Millis,
    report: Report,
}

impl<'a> Run<'a> {
    pub fn new(upkeep: &'a Upkeep, policy: Retention) -> Run<'a> {
        let report = Report { complete: true, ..Report::default() };
        Run { upkeep, policy, now_ms: upkeep.now_ms(), report }
    }

    /// Removes all that is due, besides audit records. What went before an error is in the report.
    pub async fn all(mut self) -> (Report, Result<(), Error>) {
        let done = self.remove().await;
        self.report.complete &= done.is_ok();
        (self.report, done)
    }

    async fn remove(&mut self) -> Result<(), Error> {
        self.strand().await?;
        for (what, cutoff_ms) in aged(&self.policy, self.now_ms) {
            let Some(cutoff_ms) = cutoff_ms else { continue };
            loop {
                let begun = Instant::now();
                let step = self.upkeep.store().write(move |tx| retention::remove_aged(tx, what, cutoff_ms)).await?;
                self.report.count(what, step.rows);
                if !step.more || !self.goes_on(begun).await {
                    break;
                }
            }
        }
        if let Some(age) = millis(self.policy.max_age) {
            self.give_up(self.now_ms.saturating_sub(age)).await?;
            self.events(Some(self.now_ms.saturating_sub(age))).await?;
        }
        if self.too_large(self.policy.max_size).await? {
            self.events(None).await?;
            self.report.is_full = self.report.complete && self.too_large(self.policy.max_size).await?;
        }
        if self.report.events > 0 {
            self.upkeep.store().write(retention::trim_record).await?;
            self.types().await?;
        }
        let (policy, now_ms) = (self.policy, self.now_ms);
        let audit = self.upkeep.store().read(move |conn| audit_due(conn, &policy, now_ms)).await?;
        self.report.audit = audit.as_ref().map_or(0, |(_, rows)| *rows);
        self.report.audit_through = audit.map(|(through, _)| through);
        Ok(())
    }

    /// Forgets types of which no event is left.
    async fn types(&mut self) -> Result<(), Error> {
        loop {
            let begun = Instant::now();
            let types = self.upkeep.store().read(retention::types_gone).await?;
            if types.is_empty() {
                return Ok(());
            }
            self.upkeep.store().write(move |tx| retention::forget_types(tx, &types)).await?;
            if !self.goes_on(begun).await {
                return Ok(());
            }
        }
    }

    /// Ends what waits for sinks that are not there any more, so that it holds its events no longer.
    async fn strand(&mut self) -> Result<(), Error> {
        let now_ms = self.now_ms;
        loop {
            let begun = Instant::now();
            let write = move |tx: &mut Tx<'_>| outbox::strand(tx, now_ms - STRANDED_MS, now_ms, STRANDED_ROWS);
            let rows = self.upkeep.store().write(write).await?;
            if rows > 0 {
                tracing::warn!(rows, "What was to be sent by sinks that are not there any more was given up.");
            }
            if rows < STRANDED_ROWS || !self.goes_on(begun).await {
                return Ok(());
            }
        }
    }

    /// Ends what has waited for consumers that are away or were removed for as long as events are kept, so that it holds
    /// them no longer.
    async fn give_up(&self, until_ms: Millis) -> Result<(), Error> {
        let bus = &self.upkeep.inner.bus;
        let open = self.upkeep.store().read(deliveries::open_counts).await?;
        let is_away =
            |name: &str| bus.router().by_name(name).is_none_or(|entry| entry.spec.standing == Standing::Paused);
        for (consumer, _) in open {
            // Asked only now: it may have come back while others were given up.
            if !is_away(&consumer) {
                continue;
            }
            let events = bus.give_up(&consumer, until_ms).await?;
            if events > 0 {
                tracing::warn!(consumer, events, "Events waited for a consumer that is away for too long: given up.");
            }
        }
        Ok(())
    }

    async fn too_large(&self, limit: u64) -> Result<bool, Error> {
        Ok(limit > 0 && self.upkeep.store().read(space::read).await?.used_bytes().unsigned_abs() > limit)
    }

    /// Removes events up to `cutoff_ms`; with none the oldest, until the size is as wanted.
    async fn events(&mut self, cutoff_ms: Option<Millis>) -> Result<(), Error> {
        let (store, now_ms) = (self.upkeep.store(), self.now_ms);
        let ids = store.ids();
        let mut after = EventSeq(0);
        loop {
            if cutoff_ms.is_none() && !self.too_large(size_wanted(self.policy.max_size)).await? {
                return Ok(());
            }
            let times = (now_ms, given_up_ms(&self.policy, now_ms));
            let due = store.read(move |conn| retention::due(conn, ids, after, cutoff_ms, times)).await?;
            self.report.look(&due, cutoff_ms.is_none());
            after = due.last;
            let stop = due.stop;
            let begun = Instant::now();
            if due.tally.events > 0 {
                let gone = store.write(move |tx| retention::remove(tx, &due, now_ms)).await?;
                self.report.take(gone, cutoff_ms.is_none());
            }
            if stop != Stop::More {
                return Ok(());
            }
            if !self.goes_on(begun).await {
                return Ok(());
            }
        }
    }

    /// Leaves the writer to others for a while after a step; false when the daemon ends.
    async fn goes_on(&mut self, begun: Instant) -> bool {
        let goes_on = pause(self.upkeep, begun).await;
        self.report.complete &= goes_on;
        goes_on
    }
}

async fn pause(upkeep: &Upkeep, begun: Instant) -> bool {
    let busy = upkeep.store().load() > 0.0;
    let pause = begun.elapsed().max(PAUSE_MIN) * if busy { PAUSE_WHEN_BUSY } else { 1 };
    tokio::select! {
        () = upkeep.inner.stop.cancelled() => false,
        () = tokio::time::sleep(pause) => !upkeep.inner.bus.is_draining(),
    }
}

fn audit_due(conn: &Reading, policy: &Retention, now_ms: Millis) -> Result<Option<(audit::Anchor, i64)>, Error> {
    match millis(policy.audit) {
        Some(age) => audit::due(conn, now_ms.saturating_sub(age)),
        None => Ok(None),
    }
}

/// Records the run, then removes the audit records that are due, up to the one that the record names. Gives how many
/// went.
pub(super) async fn audit(upkeep: &Upkeep, report: &Report, record: Recorder) -> Result<i64, Error> {
    let store = upkeep.store();
    let mut detail = json!(report);
    if let Some(through) = &report.audit_through {
        detail["audit"] = json!({ "rows": report.audit, "seq": through.seq, "hash": through.hash });
    }
    store.write(move |tx| record(tx, detail)).await?;
    let Some(through) = report.audit_through.as_ref().map(|through| through.seq) else { return Ok(0) };
    let mut gone = 0;
    loop {
        let begun = Instant::now();
        let rows = store.write(move |tx| audit::remove(tx, through, AUDIT_ROWS)).await?;
        gone += i64::try_from(rows).unwrap_or(i64::MAX);
        if rows == 0 || !pause(upkeep, begun).await {
            return Ok(gone);
        }
    }
}

/// Gives free pages above `keep_pages` back to the disk; how many bytes that were.
pub(super) async fn give_back(upkeep: &Upkeep, keep_pages: i64) -> Result<i64, Error> {
    let store = upkeep.store();
    let before = store.read(space::read).await?;
    loop {
        let begun = Instant::now();
        let more = store.write(move |tx| space::give_back(tx, keep_pages)).await?;
        if !more || !pause(upkeep, begun).await {
            break;
        }
    }
    let after = store.read(space::read).await?;
    let bytes = (before.pages - after.pages).max(0) * before.page_bytes;
    if bytes > 0 {
        store.checkpoint_gently().await?;
        upkeep.inner.counts.given_back.fetch_add(bytes.unsigned_abs(), Ordering::Relaxed);
    }
    Ok(bytes)
}

/// What a run would remove now.
pub(super) fn preview(conn: &Reading, ids: Ids, policy: &Retention, now_ms: Millis) -> Result<Report, Error> {
    let until = Instant::now() + PREVIEW_MAX;
    let mut report = Report { complete: true, ..Report::default() };
    for (what, cutoff_ms) in aged(policy, now_ms) {
        if let Some(cutoff_ms) = cutoff_ms {
            report.count(what, retention::count_aged(conn, what, cutoff_ms)?);
        }
    }
    report.audit = audit_due(conn, policy, now_ms)?.map_or(0, |(_, rows)| rows);
    let used = space::read(conn)?.used_bytes();
    let wanted = i64::try_from(size_wanted(policy.max_size)).unwrap_or(i64::MAX);
    let too_large = policy.max_size > 0 && used.unsigned_abs() > policy.max_size;
    let mut after = EventSeq(0);
    let mut cutoffs = Vec::from_iter(millis(policy.max_age).map(|age| Some(now_ms.saturating_sub(age))));
    cutoffs.extend(too_large.then_some(None));
    for cutoff_ms in cutoffs {
        loop {
            if cutoff_ms.is_none() && used - report.bytes <= wanted {
                break;
            }
            let due = retention::due(conn, ids, after, cutoff_ms, (now_ms, given_up_ms(policy, now_ms)))?;
            after = due.last;
            report.look(&due, cutoff_ms.is_none());
            report.take(due.tally, cutoff_ms.is_none());
            if due.stop != Stop::More {
                break;
            }
            if Instant::now() >= until {
                report.complete = false;
                return Ok(report);
            }
        }
    }
    Ok(report)
}
