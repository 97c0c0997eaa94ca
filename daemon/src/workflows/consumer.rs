//! The consumer behind a workflow: events start instances and reach those that wait for them. What comes of an event
//! commits with the settlement of its delivery.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use serde_json::{Map, Value, json};

use super::record::trust_of;
use super::{Current, Inner, fresh, lifecycle, spans};
use crate::bus::{Attempt, Consumer, Delivered, Effects, Failure, Outcome, Plan};
use crate::error::Error;
use crate::event::Event;
use crate::id::SpanId;
use crate::store::Tx;
use crate::store::workflows::{self as rows, InstanceRow, Kind, ListenerRow};
use crate::telemetry::traces;
use crate::workflow::{Definition, Fault, Kind as TaskKind, Listening, Read, Schedule, Strategy, scope};

/// Sets of events that a schedule may have heard in part, and their bytes.
const SETS_MAX: usize = 256;
const SETS_BYTES_MAX: usize = 1 << 20;

/// Gets the events of one workflow.
pub(super) struct Events {
    /// The workflows.
    pub workflows: Weak<Inner>,
    /// The workflow's name.
    pub name: String,
    /// The cron expression of its schedule.
    pub schedule: Option<String>,
}

/// What an event leads to.
#[derive(Default)]
struct Found {
    start: Option<InstanceRow>,
    /// What `schedule.on` has heard now; none = as before.
    partial: Option<Option<String>>,
    /// Instances that may wait for it.
    wakes: Vec<i64>,
}

impl Consumer for Events {
    fn deliver(&self, attempt: Attempt) -> Delivered<'_> {
        Box::pin(async move {
            let Some(inner) = self.workflows.upgrade() else {
                return Outcome::Retry(Failure::new("the daemon ends"), None);
            };
            match self.find(&inner, &attempt.event).await {
                Ok(found) => Outcome::Done(effects(&inner, &self.name, &attempt.event, found)),
                Err(error) => Outcome::Retry(Failure { chain: error.chain(), timed_out: false }, None),
            }
        })
    }

    fn plan(&self) -> Option<Plan> {
        let expression = self.schedule.clone()?;
        Some(Plan { expression, timezone: None })
    }
}

impl Events {
    async fn find(&self, inner: &Arc<Inner>, event: &Arc<Event>) -> Result<Found, Error> {
        let mut found = Found::default();
        let json = event.to_value();
        // Only who names its type means what is told of workflows; any event is one that something else made.
        let named = lifecycle::is_one(event);
        if let Ok(current) = inner.current(&self.name) {
            if event.sent.source.starts_with("cron/")
                && event.sent.subject.as_deref() == Some(&format!("workflow/{}", self.name))
            {
                found.start = Some(started(&current, inner, event, &event.sent.data.to_value()));
            } else if let Some(Schedule::On(strategy)) = &current.definition.schedule
                && (!named || strategy.kinds().is_some())
            {
                self.hear(inner, &current, strategy, (event, &json), &mut found).await?;
            }
        }
        let (name, kind, sequence) = (self.name.clone(), event.sent.kind.clone(), event.sequence.0);
        let mut waiting = inner.bus.store().read(move |conn| rows::listeners(conn, &name, &kind, sequence)).await?;
        waiting.retain(|one| !named || !one.kind.is_empty());
        let mut definitions: HashMap<String, Arc<Definition>> = HashMap::new();
        for one in &waiting {
            if !definitions.contains_key(&one.digest) {
                match inner.definition(&one.digest).await {
                    Ok(definition) => drop(definitions.insert(one.digest.clone(), definition)),
                    // It is woken as one without filters, and given up; the others get their event.
                    Err(Error::NotFound { .. } | Error::Invalid { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        found.wakes = tokio::task::spawn_blocking(move || may_wait(&waiting, &definitions, &json))
            .await
            .map_err(Error::internal("looking who waits for an event"))?;
        Ok(found)
    }

    /// What `schedule.on` makes of an event.
    async fn hear(
        &self,
        inner: &Arc<Inner>,
        current: &Current,
        strategy: &Strategy,
        (event, json): (&Arc<Event>, &Value),
        found: &mut Found,
    ) -> Result<(), Error> {
        let name = self.name.clone();
        let partial = inner.bus.store().read(move |conn| rows::partial(conn, &name)).await?;
        let before = partial.as_deref().and_then(|text| serde_json::from_str::<Vec<Listening>>(text).ok());
        let (taken, mut sets) = {
            let (strategy, json, mut sets) = (strategy.clone(), json.clone(), before.unwrap_or_default());
            let heard = tokio::task::spawn_blocking(move || (offer(&strategy, &json, &mut sets), sets));
            heard.await.map_err(Error::internal("hearing an event"))?
        };
        match taken {
            Ok(None) => return Ok(()),
            Ok(Some(n)) if sets[n].done => {
                let heard = sets.remove(n).heard;
                // As little as the least of those that it waited for.
                let trust = heard.iter().map(trust_of).min().unwrap_or_default().min(event.trust);
                found.start = Some(InstanceRow { trust, ..started(current, inner, event, &Value::Array(heard)) });
            }
            Ok(Some(n)) => sets[n].queue.clear(),
            // The event is not one that it can make anything of.
            Err(fault) => {
                tracing::warn!(workflow = self.name, error = fault.detail, "schedule.on could not look at an event.");
                return Ok(());
            }
        }
        let written = |sets: &[Listening]| serde_json::to_string(sets).map_err(Error::internal("hearing an event"));
        let mut text = written(&sets)?;
        while sets.len() > SETS_MAX || (text.len() > SETS_BYTES_MAX && sets.len() > 1) {
            sets.remove(0);
            text = written(&sets)?;
            tracing::warn!(workflow = self.name, "schedule.on forgot the oldest events whose counterparts never came.");
        }
        found.partial = Some(Some(text).filter(|_| !sets.is_empty()));
        Ok(())
    }
}

/// Offers an event to what was heard so far: the sets of events that belong together, oldest first. Says which of them
/// took it, which may be a new one.
fn offer(strategy: &Strategy, event: &Value, sets: &mut Vec<Listening>) -> Result<Option<usize>, Fault> {
    let now = Value::Null;
    let scope = scope(&now);
    for (n, set) in sets.iter_mut().enumerate() {
        if set.offer(strategy, event, Read::Envelope, &scope)? {
            return Ok(Some(n));
        }
    }
    // Only correlations say that events belong to different sets.
    if !sets.is_empty() && strategy.filters().iter().all(|filter| filter.correlate.is_empty()) {
        return Ok(None);
    }
    let mut new = Listening::new(strategy, &scope)?;
    if !new.offer(strategy, event, Read::Envelope, &scope)? {
        return Ok(None);
    }
    sets.push(new);
    Ok(Some(sets.len() - 1))
}

/// What an instance keeps of the event that led to it, and of the span that it is a child of.
pub(super) fn cause_of(event: &Event, span: Option<SpanId>) -> String {
    let mut cause = json!({
        "id": event.id(),
        "sequence": event.sequence.0,
        "depth": event.depth,
        "correlation": event.correlation,
    });
    if lifecycle::is_one(event) {
        cause["lifecycle"] = true.into();
    }
    spans::note(&mut cause, span);
    cause.to_string()
}

/// The instance that an event starts.
fn started(current: &Current, inner: &Inner, event: &Arc<Event>, input: &Value) -> InstanceRow {
    InstanceRow {
        trace: event.trace.to_string(),
        trust: event.trust,
        principal: event.principal.clone(),
        cause: Some(cause_of(event, traces::current().and_then(|here| here.span()))),
        // However often it is delivered, it starts one.
        dedup: Some(format!("event-{}", event.sequence.0)),
        ..fresh(current, input, inner.now_ms())
    }
}

/// The instances whose correlations do not rule the event out; the machine of each looks at the rest.
fn may_wait(waiting: &[ListenerRow], definitions: &HashMap<String, Arc<Definition>>, event: &Value) -> Vec<i64> {
    type Filters = Vec<Option<Map<String, Value>>>;
    let mut known: HashMap<(&str, i64), Filters> = HashMap::new();
    let now = Value::Null;
    let mut wakes = Vec::new();
    for one in waiting {
        let filters = known.entry((&one.digest, one.task)).or_insert_with(|| {
            let task = usize::try_from(one.task).ok().and_then(|task| definitions.get(&one.digest)?.tasks.get(task));
            let Some(TaskKind::Listen { to, .. }) = task.map(|task| &task.kind) else { return Vec::new() };
            let none = Map::new();
            to.filters().into_iter().map(|filter| filter.correlated(event, &none, &scope(&now))).collect()
        });
        let expected: Map<String, Value> = serde_json::from_str(&one.expected).unwrap_or_default();
        let agrees = |found: &Map<String, Value>| {
            found.iter().all(|(name, value)| expected.get(name).is_none_or(|wanted| wanted == value))
        };
        // Without filters any event is waited for.
        if filters.is_empty() || filters.iter().flatten().any(agrees) {
            wakes.push(one.instance);
        }
    }
    wakes.sort_unstable();
    wakes.dedup();
    wakes
}

fn effects(inner: &Arc<Inner>, name: &str, event: &Arc<Event>, found: Found) -> Effects {
    if found.start.is_none() && found.partial.is_none() && found.wakes.is_empty() {
        return Effects::default();
    }
    let result = json!({ "started": found.start.as_ref().map(|row| row.id.clone()), "reached": found.wakes.len() });
    let (inner, name, body) = (Arc::clone(inner), name.to_owned(), event.to_value().to_string());
    let state = move |tx: &mut Tx<'_>| {
        if let Some(row) = &found.start {
            rows::start(tx, row)?;
        }
        if let Some(partial) = &found.partial {
            rows::set_partial(tx, &name, partial.as_deref())?;
        }
        for instance in &found.wakes {
            rows::bring(tx, *instance, Kind::Event, &body)?;
        }
        // Looked at behind this change: the engine waits for its commit.
        inner.hint.notify_one();
        Ok(())
    };
    Effects { result: Some(result), state: Some(Box::new(state)), ..Effects::default() }
}
