//! [`Bus`]: the way in, and the registry of consumers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::StateWrite;
use super::agency::Agency;
use super::chains::Chains;
use super::flows::Flows;
use super::lane::Lane;
use super::links::Links;
use super::live::Live;
use super::overload::Overload;
use super::router::{self, Entry, Router};
use super::spans;
use crate::clock::{Clock, Millis};
use crate::config::BusConfig;
use crate::error::Error;
use crate::event::{Event, NewEvent, Priority, Trust};
use crate::id::{ConsumerId, EventSeq, TraceId};
use crate::redact;
use crate::registry::Registry;
use crate::store::events::{Appended, Cause, KeptAnswer, Match, Prepared};
use crate::store::notifications::Limits;
use crate::store::{Committed, Store, events};
use crate::telemetry::traces::Traces;

/// Bytes of events that may be on their way to the writer before more are refused.
const INCOMING_BYTES_MAX: usize = 64 << 20;

/// What the bus can be told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long keys of events are remembered, in milliseconds.
    pub dedup_window_ms: Millis,
    /// How many effects may follow each other.
    pub max_causation_depth: u32,
    /// Share of the write queue above which low priority and `at_most_once` are refused; everything else at 1.0.
    pub high_water: f64,
    /// Deliveries that may wait; above it pushes are refused.
    pub max_pending: i64,
    /// Bytes of the disk that stay free for work that is under way; below, pushes are refused.
    pub keep_free_bytes: u64,
    /// How much a consumer may tell the person.
    pub notify: Limits,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            dedup_window_ms: 86_400_000,
            max_causation_depth: 64,
            high_water: 0.5,
            max_pending: 1_000_000,
            keep_free_bytes: 64 << 20,
            notify: Limits { per_hour: 60, window_ms: 3_600_000 },
        }
    }
}

impl Settings {
    /// As `[bus]` says.
    pub fn of(config: &BusConfig) -> Settings {
        Settings {
            dedup_window_ms: i64::try_from(config.dedup_window.as_millis()).unwrap_or(i64::MAX / 2),
            max_causation_depth: config.max_causation_depth,
            max_pending: config.max_pending,
            keep_free_bytes: config.keep_free_bytes,
            notify: Limits {
                per_hour: config.notify_per_hour,
                window_ms: i64::try_from(config.notify_window.as_millis()).unwrap_or(i64::MAX / 2),
            },
            ..Settings::default()
        }
    }
}

/// Who brings events in.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The authenticated principal, or the source.
    pub principal: String,
    /// How far it is believed.
    pub trust: Trust,
    /// True for the daemon's own producers: they may use the reserved names.
    pub internal: bool,
}

impl Origin {
    /// A part of the daemon itself, of that name.
    pub fn own(name: &str) -> Origin {
        Origin { principal: name.to_owned(), trust: Trust::Owner, internal: true }
    }
}

/// The request behind a publication, so that the same one again gives the same answer.
#[derive(Debug, Clone)]
pub struct Idempotency {
    /// Hash of principal, route and `Idempotency-Key`.
    pub key: [u8; 32],
    /// Hash of the request body.
    pub body: [u8; 32],
}

/// Something to publish: all of it, or nothing.
pub struct Publish {
    /// The events, stored in this order.
    pub events: Vec<NewEvent>,
    /// Who brings them in.
    pub origin: Origin,
    /// See [`Idempotency`].
    pub idempotency: Option<Idempotency>,
    /// A change of the producer's own tables that commits with the events.
    pub state: Option<StateWrite>,
}

impl Publish {
    /// One event from `origin`.
    pub fn one(event: NewEvent, origin: Origin) -> Publish {
        Publish { events: vec![event], origin, idempotency: None, state: None }
    }
}

/// What became of one event. Once it is answered, the event is durable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// Its id.
    pub id: String,
    /// Its place in the global order.
    pub sequence: i64,
    /// Its type.
    pub kind: String,
    /// Its trace, 32 hex digits.
    pub trace_id: String,
    /// The agent it is for.
    pub agent_id: Option<String>,
    /// True when it was there already and nothing was stored.
    pub deduplicated: bool,
}

impl Accepted {
    fn of(appended: &Appended) -> Accepted {
        let event = appended.event();
        Accepted {
            id: event.id(),
            sequence: event.sequence.0,
            kind: event.sent.kind.clone(),
            trace_id: event.trace.to_string(),
            agent_id: event.sent.agent_id.clone(),
            deduplicated: matches!(appended, Appended::Duplicate(_)),
        }
    }
}

/// Counts since the start.
#[derive(Debug, Default)]
pub struct Stats {
    /// Events stored, effects included.
    pub published: AtomicU64,
    /// Pushes that named an event which was there already.
    pub deduplicated: AtomicU64,
    /// Publications refused by back-pressure.
    pub refused: AtomicU64,
    /// Attempts begun.
    pub attempts: AtomicU64,
    /// Deliveries settled as done.
    pub done: AtomicU64,
    /// Attempts that failed and will be repeated.
    pub retried: AtomicU64,
    /// Deliveries given up.
    pub dead: AtomicU64,
    /// Deliveries whose event was too old.
    pub expired: AtomicU64,
    /// Deliveries that wait or run.
    pub pending: AtomicI64,
}

/// The bus; cheap to clone.
#[derive(Clone)]
pub struct Bus {
    pub(super) inner: Arc<Inner>,
}

/// Bytes on their way to the writer, until they are answered.
struct Incoming<'a>(&'a AtomicUsize, usize);

impl Drop for Incoming<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

pub(super) struct Inner {
    pub store: Store,
    pub clock: Clock,
    pub settings: ArcSwap<Settings>,
    /// Types whose data must fit a schema.
    pub types: ArcSwap<Registry>,
    pub router: ArcSwap<Router>,
    pub live: Live,
    pub lanes: Mutex<HashMap<ConsumerId, Lane>>,
    pub stats: Stats,
    pub draining: AtomicBool,
    /// What was cut off is settled, and lanes may work.
    pub delivering: AtomicBool,
    /// Bytes of events that are on their way to the writer.
    pub incoming: AtomicUsize,
    pub chains: Chains,
    pub overload: Overload,
    /// Ends the claiming of new work.
    pub stop: CancellationToken,
    /// Collects spans.
    pub traces: Traces,
    /// Cancels attempts that still run when the drain time is over.
    pub abort: CancellationToken,
    pub lane_tasks: tokio_util::task::TaskTracker,
    /// Changes whenever an intent is added to the outbox.
    pub intents: tokio::sync::watch::Sender<u64>,
    /// Changes whenever consumers come, change or go.
    pub consumers: tokio::sync::watch::Sender<u64>,
    /// Changes whenever a delivery ends.
    pub ended: tokio::sync::watch::Sender<u64>,
    pub links: Links,
    /// What agents do for others.
    pub agency: OnceLock<Agency>,
    /// How instances of workflows are changed.
    pub flows: OnceLock<Flows>,
}

impl Bus {
    /// A bus over `store`, without consumers. Deliveries begin with [`Bus::start`].
    pub fn new(store: Store, clock: Clock, settings: Settings) -> Bus {
        let live = Live::new(store.head_at_open());
        store.keep_free(settings.keep_free_bytes);
        let inner = Arc::new(Inner {
            store: store.clone(),
            clock,
            settings: ArcSwap::from_pointee(settings),
            types: ArcSwap::default(),
            router: ArcSwap::default(),
            live,
            lanes: Mutex::default(),
            stats: Stats { pending: AtomicI64::new(store.deliveries_at_open()), ..Stats::default() },
            draining: AtomicBool::new(false),
            delivering: AtomicBool::new(false),
            incoming: AtomicUsize::new(0),
            chains: Chains::default(),
            overload: Overload::default(),
            traces: Traces::default(),
            stop: CancellationToken::new(),
            abort: CancellationToken::new(),
            lane_tasks: tokio_util::task::TaskTracker::new(),
            intents: tokio::sync::watch::Sender::new(0),
            consumers: tokio::sync::watch::Sender::new(0),
            ended: tokio::sync::watch::Sender::new(0),
            links: Links::default(),
            agency: OnceLock::new(),
            flows: OnceLock::new(),
        });
        let weak = Arc::downgrade(&inner);
        store.on_commit(Box::new(move |committed: Committed| {
            if let Some(inner) = weak.upgrade() {
                inner.committed(committed);
            }
        }));
        Bus { inner }
    }

    /// Stores events durably and answers once they are: all of them, or none.
    ///
    /// `Invalid` names broken fields (in a batch as `/3/type`), `Forbidden` reserved names, `Busy` back-pressure,
    /// draining or a disk that cannot be written, `Mismatch` a reused `Idempotency-Key`.
    pub async fn publish(&self, publish: Publish) -> Result<Vec<Accepted>, Error> {
        self.publish_caused(publish, None).await
    }

    /// As [`Bus::publish`], for what an earlier event has led to. `Conflict` `causation_loop` when the chain is too long,
    /// or its trace has too many effects.
    pub async fn publish_caused(&self, publish: Publish, cause: Option<Cause>) -> Result<Vec<Accepted>, Error> {
        let _incoming = self.admit(&publish)?;
        check(&publish, &self.inner.types.load())?;
        if let Some(cause) = &cause {
            self.check_chain(cause, publish.events.len())?;
        }
        let Publish { events, origin, idempotency, state } = publish;
        let now_ms = self.inner.clock.now_ms();
        let prepared = self.prepare(events, origin, cause).await;
        let (answers, replayed) = match (idempotency, state) {
            (None, None) => (self.inner.store.write_hot(move |tx| append_all(tx, prepared)).await?, false),
            (idempotency, state) => {
                let keep_until = now_ms + self.inner.settings.load().dedup_window_ms;
                let change = move |tx: &mut crate::store::Tx<'_>| {
                    if let Some(request) = &idempotency
                        && let Some(answers) = answered_before(tx, request, now_ms)?
                    {
                        return Ok((answers, true));
                    }
                    if let Some(state) = state {
                        state(tx)?;
                    }
                    let answers = append_all(tx, prepared)?;
                    if let Some(request) = &idempotency {
                        keep(tx, request, &answers, keep_until)?;
                    }
                    Ok((answers, false))
                };
                self.inner.store.write(change).await?
            }
        };
        let again = answers.iter().filter(|answer| replayed || answer.deduplicated).count();
        self.inner.stats.deduplicated.fetch_add(u64::try_from(again).unwrap_or(0), Ordering::Relaxed);
        Ok(answers)
    }

    pub(super) fn check_chain(&self, cause: &Cause, effects: usize) -> Result<(), Error> {
        let depth_max = self.inner.settings.load().max_causation_depth;
        let depth = cause.event.depth + 1;
        if depth <= depth_max && self.inner.chains.admit(cause.event.trace, effects) {
            return Ok(());
        }
        let reason = format!(
            "This would be number {depth} of a chain of effects that may have {depth_max}, or one too many. \
                 Break the loop, or raise bus.max_causation_depth."
        );
        Err(Error::conflict("causation_loop", reason))
    }

    /// What would happen to these events: the same checks, nothing stored. For each event, who would get it and why.
    pub async fn preview(&self, publish: Publish) -> Result<Vec<Vec<super::explain::Considered>>, Error> {
        check(&publish, &self.inner.types.load())?;
        let now_ms = self.inner.clock.now_ms();
        let router = self.inner.router.load_full();
        if let [event] = publish.events.as_slice()
            && router.candidates(&event.kind, event.agent_id.as_deref()).is_empty()
        {
            return Ok(vec![Vec::new()]);
        }
        let consider = move |sent| {
            let event = provisional(sent, publish.origin.trust, None, now_ms);
            super::explain::consider_now(&router, &event)
        };
        Ok(blocking(move || publish.events.into_iter().map(consider).collect()).await)
    }

    fn admit(&self, publish: &Publish) -> Result<Incoming<'_>, Error> {
        if self.inner.draining.load(Ordering::Acquire) {
            return Err(Error::Busy {
                code: "draining",
                what: "The daemon is shutting down and takes no new work.".to_owned(),
                retry_after_ms: 5000,
            });
        }
        self.inner.store.takes_new()?;
        let bytes = publish.events.iter().map(|event| event.data.len() + 512).sum();
        let incoming = Incoming(&self.inner.incoming, bytes);
        let before = self.inner.incoming.fetch_add(bytes, Ordering::Relaxed);
        let load = self.inner.store.load();
        let first_refused = publish
            .events
            .iter()
            .any(|event| event.priority == Priority::Low || event.delivery == crate::event::Delivery::AtMostOnce);
        let full = load >= 1.0 || (first_refused && load >= self.inner.settings.load().high_water);
        let waiting = self.inner.stats.pending.load(Ordering::Relaxed) > self.inner.settings.load().max_pending;
        if full || waiting || before > INCOMING_BYTES_MAX {
            self.inner.stats.refused.fetch_add(1, Ordering::Relaxed);
            self.tell_overload();
            return Err(Error::Busy {
                code: "overloaded",
                what: "More is waiting than the daemon lets wait (bus.max_pending).".to_owned(),
                retry_after_ms: 1000,
            });
        }
        Ok(incoming)
    }

    /// Prepares effects of a delivery; their trust is the lowest of the cause's, the consumer's and `read`.
    pub(super) async fn prepare_effects(
        &self,
        entry: &Entry,
        cause: &Cause,
        read: Option<Trust>,
        events: Vec<NewEvent>,
    ) -> Vec<Prepared> {
        let trust = cause.event.trust.min(entry.spec.trust);
        let origin = Origin {
            principal: entry.spec.name.clone(),
            trust: read.map_or(trust, |read| trust.min(read)),
            internal: false,
        };
        self.prepare(events, origin, Some(cause.clone())).await
    }

    /// Stores an event of the daemon's own, however much is waiting: the limits are for what comes from outside. `state`
    /// commits with it. `Busy` only while nothing at all can be stored.
    pub async fn append_unrefused(
        &self,
        event: NewEvent,
        origin: Origin,
        state: Option<StateWrite>,
    ) -> Result<(), Error> {
        let prepared = self.prepare(vec![event], origin, None).await;
        let change = move |tx: &mut crate::store::Tx<'_>| {
            if let Some(state) = state {
                state(tx)?;
            }
            append_all(tx, prepared)
        };
        self.inner.store.write(change).await.map(drop)
    }

    /// As [`Bus::append_unrefused`] for what must not fail: what the disk does not take now it takes later, unless the
    /// daemon ends before. Waits for nothing of that.
    pub async fn announce(&self, mut event: NewEvent, origin: Origin) {
        // A commit that is said to have failed may stand all the same; the next try must find its event then.
        event.dedup_key.get_or_insert_with(|| TraceId::random().to_string());
        if self.is_announced(&event, &origin).await {
            return;
        }
        self.try_again(move |bus| {
            let (event, origin) = (event.clone(), origin.clone());
            async move { bus.is_announced(&event, &origin).await }
        });
    }

    /// False when it is to be tried again.
    async fn is_announced(&self, event: &NewEvent, origin: &Origin) -> bool {
        match self.append_unrefused(event.clone(), origin.clone(), None).await {
            Ok(()) => true,
            Err(Error::Busy { .. }) => false,
            Err(error) => {
                let error = error.chain().join(": ");
                tracing::error!(error, kind = event.kind, "An event of the daemon's own could not be stored.");
                true
            }
        }
    }

    /// Finds out who gets each event. Conditions are evaluated off the async threads.
    pub(super) async fn prepare(&self, events: Vec<NewEvent>, origin: Origin, cause: Option<Cause>) -> Vec<Prepared> {
        let router = self.inner.router.load_full();
        let now_ms = self.inner.clock.now_ms();
        let until_ms = now_ms + self.inner.settings.load().dedup_window_ms;
        let drafts = spans::Drafts::begin(&self.inner, cause.as_ref());
        let conditions = events.iter().any(|event| {
            let candidates = router.candidates(&event.kind, event.agent_id.as_deref());
            router.needs_conditions(&candidates)
        });
        let prepare = move || {
            let one = |sent: NewEvent| {
                let draft = drafts.as_ref().and_then(|drafts| drafts.of(&sent));
                let prepared = prepare(&router, sent, &origin, cause.clone(), (now_ms, until_ms));
                spans::matched(prepared, draft, &router)
            };
            events.into_iter().map(one).collect::<Vec<_>>()
        };
        if conditions { blocking(prepare).await } else { prepare() }
    }

    /// The present consumers.
    pub fn router(&self) -> Arc<Router> {
        self.inner.router.load_full()
    }

    /// Replaces the types whose data must fit a schema.
    pub fn set_types(&self, types: Registry) {
        self.inner.types.store(Arc::new(types));
    }

    /// The types whose data must fit a schema.
    pub fn types(&self) -> Arc<Registry> {
        self.inner.types.load_full()
    }

    /// Changes the settings; what is under way goes on with the old ones.
    pub fn retune(&self, settings: Settings) {
        self.inner.store.keep_free(settings.keep_free_bytes);
        self.inner.settings.store(Arc::new(settings));
    }

    /// The live tail.
    pub fn live(&self) -> &Live {
        &self.inner.live
    }

    /// Changes whenever an intent is added to the outbox.
    pub fn intents(&self) -> tokio::sync::watch::Receiver<u64> {
        self.inner.intents.subscribe()
    }

    /// Changes whenever consumers come, change or go.
    pub fn consumers(&self) -> tokio::sync::watch::Receiver<u64> {
        self.inner.consumers.subscribe()
    }

    /// Changes whenever a delivery ends. Costs every delivery something while it is held.
    pub fn ended(&self) -> tokio::sync::watch::Receiver<u64> {
        self.inner.ended.subscribe()
    }

    /// Counts since the start.
    pub fn stats(&self) -> &Stats {
        &self.inner.stats
    }

    /// The store below.
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// The clock.
    pub fn clock(&self) -> &Clock {
        &self.inner.clock
    }

    /// Cancelled once the daemon begins to end: nothing new is begun from then on.
    pub fn stopping(&self) -> &CancellationToken {
        &self.inner.stop
    }

    /// True once new work is refused.
    pub fn is_draining(&self) -> bool {
        self.inner.draining.load(Ordering::Acquire)
    }
}

impl Inner {
    /// Tells those who wait for the end of deliveries, if there are any.
    pub fn tell_ended(&self) {
        if self.ended.receiver_count() > 0 {
            self.ended.send_modify(|count| *count += 1);
        }
    }

    /// Tells the streams and the lanes what a commit added. Wake-ups carry no data: whoever wakes looks for itself.
    fn committed(&self, committed: Committed) {
        spans::published(self, committed.drafts);
        self.stats.published.fetch_add(u64::try_from(committed.events.len()).unwrap_or(0), Ordering::Relaxed);
        self.live.push(committed.events);
        self.stats.pending.fetch_add(committed.deliveries, Ordering::Relaxed);
        if committed.intents {
            self.intents.send_modify(|count| *count += 1);
        }
        if committed.woken.is_empty() && committed.anew.is_empty() {
            return;
        }
        let Ok(lanes) = self.lanes.lock() else { return };
        for (consumer, priority) in committed.woken {
            if let Some(lane) = lanes.get(&consumer) {
                lane.wake(priority);
            }
        }
        committed.anew.iter().filter_map(|consumer| lanes.get(consumer)).for_each(Lane::look_anew);
    }
}

/// Runs `work` off the async threads; a panic in it is one here.
async fn blocking<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> R {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// What producers that are not the daemon's own must keep to besides the envelope.
fn checked_outside(event: &NewEvent, types: &Registry) -> Result<(), Error> {
    event.check_names_free()?;
    types.check(&event.kind, &event.data)
}

fn check(publish: &Publish, types: &Registry) -> Result<(), Error> {
    let batch = publish.events.len() > 1;
    for (n, event) in publish.events.iter().enumerate() {
        let checked =
            event.check().and_then(|()| if publish.origin.internal { Ok(()) } else { checked_outside(event, types) });
        checked.map_err(|error| if batch { error.at(&format!("/{n}")) } else { error })?;
    }
    Ok(())
}

/// The event as far as it is known before it is stored: conditions see it without the id and sequence that the daemon
/// makes.
fn provisional(sent: NewEvent, trust: Trust, cause: Option<&Cause>, now_ms: Millis) -> Event {
    let trace = cause.map(|c| c.event.trace).or(sent.trace).unwrap_or(TraceId([0; 16]));
    Event {
        sequence: EventSeq(0),
        received_ms: now_ms,
        made_id: None,
        trace,
        correlation: cause.map(|c| c.event.correlation.clone().unwrap_or_else(|| c.event.id())),
        causation: cause.map(|c| c.event.id()),
        cause: cause.map(|c| c.event.sequence),
        depth: cause.map_or(0, |c| c.event.depth + 1),
        trust,
        principal: String::new(),
        sent,
    }
}

fn prepare(
    router: &Router,
    sent: NewEvent,
    origin: &Origin,
    cause: Option<Cause>,
    (now_ms, dedup_until_ms): (Millis, Millis),
) -> Prepared {
    let mut sent = sent;
    redact::event(&mut sent);
    let candidates = router.candidates(&sent.kind, sent.agent_id.as_deref());
    let (matches, decisions) = if candidates.is_empty() {
        (Vec::<Match>::new(), Vec::new())
    } else {
        let event = provisional(sent.clone(), origin.trust, cause.as_ref(), now_ms);
        router.decide(&candidates, || event.to_json())
    };
    Prepared {
        dedup: sent.dedup_keys(),
        decision: router::encode(&decisions),
        matches,
        trust: origin.trust,
        principal: origin.principal.clone(),
        received_ms: now_ms,
        cause,
        dedup_until_ms,
        draft: None,
        sent,
    }
}

fn append_all(tx: &mut crate::store::Tx<'_>, prepared: Vec<Prepared>) -> Result<Vec<Accepted>, Error> {
    prepared.into_iter().map(|one| events::append(tx, one).map(|appended| Accepted::of(&appended))).collect()
}

fn answered_before(
    tx: &crate::store::Tx<'_>,
    request: &Idempotency,
    now_ms: Millis,
) -> Result<Option<Vec<Accepted>>, Error> {
    let Some(kept) = events::kept_answer_in(tx, &request.key, now_ms)? else { return Ok(None) };
    if kept.body != request.body {
        return Err(Error::Mismatch {
            code: "idempotency_mismatch",
            reason: "This Idempotency-Key came before with another body. Use a new key for a new request.".to_owned(),
        });
    }
    serde_json::from_str(&kept.answer).map(Some).map_err(Error::internal("reading a kept answer"))
}

fn keep(tx: &crate::store::Tx<'_>, request: &Idempotency, answers: &[Accepted], until_ms: Millis) -> Result<(), Error> {
    let answer = serde_json::to_string(answers).map_err(Error::internal("keeping an answer"))?;
    events::keep_answer(tx, &request.key, &KeptAnswer { body: request.body, status: 202, answer }, until_ms)
}
