//! Drives instances: reads what came, lets the machine go on, stores where it has come to, then does what it wishes for.
//! Nothing is done outside before the state that asks for it is stored.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::actions::{self, Job};
use super::record::{end_of, listeners, step_row, take};
use super::{Current, Inner, Slot, fresh, row_of, spans};
use crate::bus::{Action, NewNotification, Notices, Origin, Publish, Severity, StateWrite};
use crate::clock::Millis;
use crate::error::Error;
use crate::event::{Data, Event, NewEvent};
use crate::id::{EventSeq, TraceId};
use crate::store::Tx;
use crate::store::events::Cause;
use crate::store::workflows::{self as rows, Advance, InstanceRow, Kind, ListenerRow, Status, StepRow};
use crate::telemetry::traces;
use crate::workflow::{
    Ended, Env, Fault, Fiber, Machine, Schedule, Signal, State, Step, Stop, Waiting, Wishes, emitted,
};

/// Tasks that are journaled together.
const GROUP: usize = 1000;
/// Instances that one look finds.
const LOOK_MAX: usize = 256;
/// Rows of an inbox that are looked at together.
const INBOX_MAX: usize = 256;
/// The engine looks at the clock again after at most this long while something waits for a time.
const LOOK_AGAIN_MAX: Duration = Duration::from_secs(60);
/// The wait after the bus or the disk refused.
const RETRY: Duration = Duration::from_millis(500);
/// Instances that may start each other.
const GENERATIONS_MAX: u32 = 32;

impl Inner {
    /// Runs until it is stopped; may be called again.
    pub(super) async fn schedule(self: Arc<Self>, stop: CancellationToken) -> Result<(), Error> {
        loop {
            let next_ms = match self.look().await {
                Ok(next_ms) => next_ms,
                Err(Error::Busy { .. }) => Some(self.now_ms() + 500),
                Err(error) => return Err(error),
            };
            let wait = next_ms.map(|at| Duration::from_millis((at - self.now_ms()).max(0).unsigned_abs()));
            let wait = async {
                match wait {
                    Some(wait) => tokio::time::sleep(wait.min(LOOK_AGAIN_MAX)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = self.stop.cancelled() => return Ok(()),
                () = self.hint.notified() => {}
                () = wait => {}
            }
        }
    }

    /// Starts everything that is due, and says when the next thing is.
    async fn look(self: &Arc<Self>) -> Result<Option<Millis>, Error> {
        // Whoever told us may have done so within a change that is not committed yet: ours comes after it.
        self.bus.store().write_hot(|_| Ok(())).await?;
        let planned = self.start_planned().await?;
        let now_ms = self.now_ms();
        let (due, next) = self.bus.store().read(move |conn| rows::due(conn, now_ms, LOOK_MAX)).await?;
        let full = due.len() >= LOOK_MAX;
        for number in due {
            let running = {
                let active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
                active.get(&number).cloned()
            };
            if let Some(slot) = running {
                slot.poke.notify_one();
                continue;
            }
            let Ok(permit) = Arc::clone(&self.room).try_acquire_owned() else { break };
            let (inner, slot) = (Arc::clone(self), self.slot(number));
            self.drivers.spawn(async move {
                let ended = {
                    let _turn = slot.turn.lock().await;
                    let driven = inner.drive(number, &slot).await;
                    driven.inspect_err(
                        |error| tracing::error!(number, error = ?error, "An instance could not be driven."),
                    )
                };
                drop(permit);
                inner.leave(number, slot);
                if ended.is_err() {
                    tokio::time::sleep(RETRY).await;
                }
                inner.hint.notify_one();
            });
        }
        // The end of each of those is told; without them the rest would never be looked at.
        let more = full && self.drivers.is_empty();
        Ok(if more { Some(now_ms) } else { next.into_iter().chain(planned).min() })
    }

    /// Starts instances of workflows whose schedule says so.
    async fn start_planned(self: &Arc<Self>) -> Result<Option<Millis>, Error> {
        let now_ms = self.now_ms();
        let due: Vec<Current> = self.held(|held| {
            let is_due = |one: &&Current| one.row.next_ms.is_some_and(|at| at <= now_ms);
            held.current.values().filter(is_due).cloned().collect()
        });
        for one in due {
            let slot_ms = one.row.next_ms.unwrap_or(now_ms);
            let next_ms = match one.definition.schedule {
                // What was missed while nobody was there is left out.
                Some(Schedule::Every(ms)) => Some(slot_ms + ((now_ms - slot_ms) / ms + 1) * ms),
                _ => None,
            };
            let mut row = fresh(&one, &Value::Null, now_ms);
            row.trace = TraceId::random().to_string();
            row.principal = format!("workflow/{}", row.workflow);
            let name = one.definition.name.clone();
            let change = move |tx: &mut Tx<'_>| {
                rows::start(tx, &row)?;
                rows::set_next(tx, &row.workflow, next_ms)
            };
            self.bus.store().write(change).await?;
            self.held(|held| {
                if let Some(current) = held.current.get_mut(&name) {
                    current.row.next_ms = next_ms;
                }
            });
        }
        Ok(self.held(|held| held.current.values().filter_map(|one| one.row.next_ms).min()))
    }

    /// Drives one instance until it waits for nothing that is done here, or has ended.
    async fn drive(self: &Arc<Self>, number: i64, slot: &Slot) -> Result<(), Error> {
        let row = self.bus.store().read(move |conn| row_of(conn, number)).await?;
        if row.status.is_ended() || row.hold {
            return Ok(());
        }
        let definition = match self.definition(&row.digest).await {
            Ok(definition) => definition,
            Err(error) => return self.give_up(&row, &error).await,
        };
        let state = match &row.state {
            Some(text) => serde_json::from_str(text).map_err(Error::internal("reading the state of an instance"))?,
            None => {
                let input =
                    serde_json::from_str(&row.input).map_err(Error::internal("reading the input of an instance"))?;
                State::new(input, row.created_ms)
            }
        };
        let mut driver = Driver {
            inner: Arc::clone(self),
            machine: Some(Machine::new(definition, state)),
            row,
            jobs: JoinSet::new(),
            begun: HashMap::new(),
            next_job: 0,
            cut_off: HashSet::new(),
            listeners: None,
            seen: 0,
        };
        driver.note_cut_off();
        let done = driver.go(slot).await;
        driver.jobs.abort_all();
        done
    }

    /// Ends an instance whose definition cannot be read any more.
    async fn give_up(self: &Arc<Self>, row: &InstanceRow, error: &Error) -> Result<(), Error> {
        let fault = Fault::runtime(error.to_string()).at("/");
        let advance = Advance {
            number: row.number,
            status: Status::Faulted,
            state: row.state.clone(),
            output: None,
            error: Some(fault.to_value().to_string()),
            current: None,
            due_ms: None,
            steps: Vec::new(),
            listeners: None,
            seen: 0,
            trust: row.trust,
        };
        let (workflow, now_ms) = (row.workflow.clone(), self.now_ms());
        let parent = row.parent.filter(|_| row.awaited);
        let told = json!({ "key": row.parent_key, "error": Fault { instance: String::new(), ..fault.clone() } });
        let change = move |tx: &mut Tx<'_>| {
            let is_new = rows::advance(tx, &advance, &workflow, now_ms)?;
            if let Some(parent) = parent.filter(|_| is_new) {
                rows::bring(tx, parent, Kind::Ended, &told.to_string())?;
            }
            Ok(is_new)
        };
        if self.bus.store().write(change).await? {
            spans::ended(self, row, "faulted", Some(&fault));
            actions::tell(self, row, "aman.workflow.faulted", json!({ "error": fault.to_value() })).await;
        }
        self.hint.notify_one();
        Ok(())
    }
}

/// An instance in memory.
struct Driver {
    inner: Arc<Inner>,
    /// None only while it runs on another thread.
    machine: Option<Machine>,
    row: InstanceRow,
    /// What is being done outside.
    jobs: JoinSet<(u64, String, Result<Value, Fault>)>,
    /// By key: what is still waited for, with its number and what ends it. What was given up ends in its own time, and may
    /// be done again with the same key before.
    begun: HashMap<String, (u64, CancellationToken)>,
    next_job: u64,
    /// Keys of what was being done when the daemon ended.
    cut_off: HashSet<String>,
    /// What the tables say that it listens to; none = unknown.
    listeners: Option<Vec<ListenerRow>>,
    seen: i64,
}

impl Driver {
    fn machine(&mut self) -> &mut Machine {
        self.machine.as_mut().expect("the machine is here but while it runs")
    }

    fn note_cut_off(&mut self) {
        let actions = self.machine().actions();
        self.cut_off = actions.iter().filter(|(_, action)| action.sent).map(|(_, action)| action.key.clone()).collect();
    }

    /// Lends the machine to a thread on which expressions may take their time.
    async fn with<R: Send + 'static>(&mut self, work: impl FnOnce(&mut Machine, &Env<'_>) -> R + Send + 'static) -> R {
        let mut machine = self.machine.take().expect("the machine is here but while it runs");
        let (inner, id) = (Arc::clone(&self.inner), self.row.id.clone());
        let ran = tokio::task::spawn_blocking(move || {
            let secret = |name: &str| inner.secret(name);
            let env = Env { now_ms: inner.now_ms(), id: &id, secret: &secret };
            let result = work(&mut machine, &env);
            (machine, result)
        });
        match ran.await {
            Ok((machine, result)) => {
                self.machine = Some(machine);
                result
            }
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    async fn go(&mut self, slot: &Slot) -> Result<(), Error> {
        let mut results: Vec<(String, Result<Value, Fault>)> = Vec::new();
        let mut came = self.came().await?;
        loop {
            let (done, held) = (std::mem::take(&mut results), self.row.hold);
            let (stop, trust) = self
                .with(move |machine, env| {
                    machine.tick(env);
                    for (key, result) in done {
                        machine.resolve(&key, result, env);
                    }
                    let trust = came.iter().map(|(kind, body)| take(machine, *kind, body, env)).min();
                    (if held { Stop::Idle } else { machine.run(env, GROUP) }, trust)
                })
                .await;
            // What it does with an event is trusted no further than that event.
            self.row.trust = trust.map_or(self.row.trust, |trust| trust.min(self.row.trust));
            came = Vec::new();
            if !self.commit().await? {
                return Ok(());
            }
            if self.machine().state.ended.is_some() {
                return self.ended().await;
            }
            self.dispatch();
            if stop == Stop::Full && !self.row.hold {
                continue;
            }
            if self.begun.is_empty() {
                return Ok(());
            }
            if !self.wait(slot, &mut results, &mut came).await? {
                return Ok(());
            }
        }
    }

    /// Waits until there is something to go on with. False when it is not to go on.
    async fn wait(
        &mut self,
        slot: &Slot,
        results: &mut Vec<(String, Result<Value, Fault>)>,
        came: &mut Vec<(Kind, Value)>,
    ) -> Result<bool, Error> {
        loop {
            let due = self.machine().due_ms().map(|at| (at - self.inner.now_ms()).max(0).unsigned_abs());
            let due = async {
                match due {
                    Some(ms) => tokio::time::sleep(Duration::from_millis(ms).min(LOOK_AGAIN_MAX)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(ended) = self.jobs.join_next() => {
                    if let Ok((job, key, result)) = ended
                        && self.begun.get(&key).is_some_and(|(known, _)| *known == job)
                    {
                        self.begun.remove(&key);
                        results.push((key, result));
                        return Ok(true);
                    }
                }
                () = slot.poke.notified() => {}
                () = slot.cancel.cancelled() => return Ok(false),
                () = self.inner.abort.cancelled() => return Ok(false),
                () = due => return Ok(true),
            }
            // Whoever pokes may mean nothing by it.
            *came = self.came().await?;
            if !came.is_empty() {
                return Ok(true);
            }
        }
    }

    /// What came for it since the last time, and whether it was paused.
    async fn came(&mut self) -> Result<Vec<(Kind, Value)>, Error> {
        let (number, after) = (self.row.number, self.seen);
        let store = self.inner.bus.store();
        let found =
            store.read(move |conn| Ok((rows::inbox(conn, number, after, INBOX_MAX)?, row_of(conn, number)?.hold)));
        let (found, hold) = found.await?;
        self.row.hold = hold;
        self.seen = found.last().map_or(self.seen, |row| row.id);
        let read = |row: rows::InboxRow| Some((row.kind, serde_json::from_str(&row.body).ok()?));
        Ok(found.into_iter().filter_map(read).collect())
    }

    /// Stores where it has come to, with everything it wishes for. False when it was ended from outside.
    async fn commit(&mut self) -> Result<bool, Error> {
        let wishes = self.machine().take_wishes();
        if !self.row.hold {
            self.machine().mark_sent();
        }
        let (mut children, mut refused) = (Vec::new(), Vec::new());
        for child in &wishes.children {
            match self.child(child).await {
                Ok(row) => children.push(row),
                // Whoever waits for it hears why.
                Err(fault) => {
                    let (parent, error) = (&self.row.id, &fault.detail);
                    tracing::warn!(parent, workflow = child.name, error, "A workflow could not start another one.");
                    refused.push(json!({ "key": child.key, "error": fault }).to_string());
                }
            }
        }
        loop {
            match self.write(&wishes, &children, &refused).await {
                Ok(open) => {
                    // What was seen is gone with this, and SQLite gives its numbers again.
                    self.seen = 0;
                    if !(children.is_empty() && refused.is_empty()) {
                        self.inner.hint.notify_one();
                    }
                    return Ok(open);
                }
                Err(Error::Busy { code: "draining", .. }) => return Ok(false),
                Err(Error::Busy { .. }) => {
                    tokio::select! {
                        () = self.inner.abort.cancelled() => return Ok(false),
                        () = async { tokio::time::sleep(RETRY).await; self.inner.bus.store().until_writable().await } => {}
                    }
                }
                // What the bus does not take is the workflow's error, not ours.
                Err(error @ (Error::Invalid { .. } | Error::Forbidden { .. } | Error::Conflict { .. })) => {
                    self.inner.give_up(&self.row, &error).await?;
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn child(&self, child: &crate::workflow::Child) -> Result<InstanceRow, Fault> {
        let number = self.row.number;
        let depth = self.inner.bus.store().read(move |conn| rows::generations(conn, number)).await.unwrap_or(0);
        if depth >= GENERATIONS_MAX {
            return Err(Fault::runtime(format!("more than {GENERATIONS_MAX} workflows started each other")));
        }
        let missing = |what: String| Fault::configuration(what);
        let current = self.inner.current(&child.name).map_err(|error| missing(error.to_string()))?;
        let definition = if child.version == "latest" || child.version == current.definition.version {
            Arc::clone(&current.definition)
        } else {
            let name = child.name.clone();
            let all = self.inner.bus.store().read(move |conn| rows::definitions(conn, &name)).await;
            let all = all.map_err(|error| Fault::runtime(error.to_string()))?;
            let found = all.into_iter().find(|row| row.version == child.version);
            let found = found.ok_or_else(|| missing(format!("'{}' has no version {}", child.name, child.version)))?;
            self.inner.definition(&found.digest).await.map_err(|error| missing(error.to_string()))?
        };
        if definition.namespace != child.namespace {
            return Err(missing(format!(
                "'{}' is in the namespace '{}', not '{}'",
                child.name, definition.namespace, child.namespace
            )));
        }
        let row = fresh(&Current { row: current.row, definition }, &child.input, self.inner.now_ms());
        Ok(InstanceRow {
            trace: self.row.trace.clone(),
            trust: self.row.trust,
            principal: self.row.principal.clone(),
            cause: self.row.cause.clone(),
            parent: Some(self.row.number),
            parent_key: Some(child.key.clone()),
            awaited: child.awaited,
            dedup: Some(child.key.clone()),
            ..row
        })
    }

    /// What the person is asked.
    async fn questions(&self, wishes: &Wishes) -> Notices {
        let id = &self.row.id;
        let ask = |one: &Signal| {
            let answer = format!("Answer: aman workflow approve {id} --task {}", one.task);
            let room = NewNotification::MESSAGE_CHARS_MAX.saturating_sub(answer.chars().count() + 1);
            let message: String = one.message.chars().take(room).collect();
            NewNotification {
                title: one.title.clone(),
                message: format!("{message} {answer}"),
                severity: Severity::Warning,
                action: Some(Action { label: "Instance".to_owned(), url: format!("/workflow-instance/{id}") }),
                // Each question is asked, however alike they are.
                fingerprint: Some(format!("{id} {}", one.step)),
                ..NewNotification::default()
            }
        };
        let asked = wishes.signals.iter().map(ask);
        let consumer = format!("workflow/{}", self.row.workflow);
        self.inner.bus.notices(&consumer, "workflow", self.row.trust, asked.collect()).await
    }

    async fn write(&mut self, wishes: &Wishes, children: &[InstanceRow], refused: &[String]) -> Result<bool, Error> {
        let advance = self.advance(&wishes.steps)?;
        let listened = advance.listeners.clone();
        let parent = self.row.parent.filter(|_| self.row.awaited && advance.status.is_ended());
        let row = self.row.clone();
        let told = parent.map(|parent| (parent, end_of(&row, self.machine())));
        let after = self.after();
        let questions = self.questions(wishes).await;
        let (children, workflow, now_ms) = (children.to_vec(), self.row.workflow.clone(), self.inner.now_ms());
        let refused = refused.to_vec();
        let number = self.row.number;
        let (open, answer) = tokio::sync::oneshot::channel();
        let change: StateWrite = Box::new(move |tx: &mut Tx<'_>| {
            if !rows::advance(tx, &advance, &workflow, now_ms)? {
                // An error undoes everything that came with it.
                return Err(Error::not_found("open instance", number.to_string()));
            }
            for child in &children {
                rows::start(tx, child)?;
            }
            for body in &refused {
                rows::bring(tx, number, Kind::Ended, body)?;
            }
            questions.store(tx, now_ms)?;
            if let Some((parent, body)) = &told {
                rows::bring(tx, *parent, Kind::Ended, body)?;
            }
            if let Some(next_ms) = after {
                rows::set_next(tx, &workflow, Some(next_ms))?;
            }
            let held = rows::current(tx, number)?.is_some_and(|row| row.hold);
            let _heard = open.send(held);
            Ok(())
        });
        let events = self.events(wishes);
        let stored = if events.is_empty() {
            self.inner.bus.store().write(change).await
        } else {
            let origin =
                Origin { principal: format!("workflow/{}", self.row.workflow), trust: self.row.trust, internal: false };
            let publish = Publish { events, origin, idempotency: None, state: Some(change) };
            self.inner.bus.publish_caused(publish, self.cause()).await.map(drop)
        };
        match stored {
            Err(Error::NotFound { kind: "open instance", .. }) => Ok(false),
            Err(error) => Err(error),
            Ok(()) => {
                let definition = Arc::clone(&self.machine().definition);
                spans::tasks(&self.inner, &self.row, &definition, &wishes.steps);
                self.row.hold = answer.await.unwrap_or(false);
                if listened.is_some() {
                    self.listeners = listened;
                }
                if let Some(next_ms) = after {
                    let name = self.row.workflow.clone();
                    self.inner.held(|held| {
                        if let Some(current) = held.current.get_mut(&name) {
                            current.row.next_ms = Some(next_ms);
                        }
                    });
                    self.inner.hint.notify_one();
                }
                Ok(true)
            }
        }
    }

    /// When a workflow that runs again after its end does so.
    fn after(&mut self) -> Option<Millis> {
        self.machine().state.ended.as_ref()?;
        let current = self.inner.current(&self.row.workflow).ok()?;
        match current.definition.schedule {
            Some(Schedule::After(ms)) if self.row.parent.is_none() && current.row.next_ms.is_none() => {
                Some(self.inner.now_ms().saturating_add(ms))
            }
            _ => None,
        }
    }

    fn advance(&mut self, steps: &[Step]) -> Result<Advance, Error> {
        let (number, seen, before, trust) = (self.row.number, self.seen, self.listeners.clone(), self.row.trust);
        let machine = self.machine();
        let faulted = matches!(machine.state.ended, Some(Ended::Faulted(_)));
        let idle = machine.state.fibers.values().all(|fiber| fiber.wait.is_some());
        let waits = |wait: &Option<Waiting>| !matches!(wait, Some(Waiting::Action(_)));
        let resting = idle && machine.state.fibers.values().all(|fiber| waits(&fiber.wait));
        let status = match &machine.state.ended {
            Some(Ended::Completed(_)) => Status::Completed,
            Some(Ended::Faulted(_)) => Status::Faulted,
            None if resting => Status::Waiting,
            None => Status::Running,
        };
        let state = if machine.state.ended.is_none() || faulted {
            Some(serde_json::to_string(&machine.state).map_err(Error::internal("storing the state of an instance"))?)
        } else {
            None
        };
        let wanted = listeners(machine, number);
        let definition = Arc::clone(&machine.definition);
        let mut written: Vec<StepRow> = Vec::with_capacity(steps.len());
        for step in steps {
            let row = step_row(&definition.tasks[step.task].pointer, step);
            match written.last_mut().filter(|last| last.number == row.number) {
                Some(last) => *last = row,
                None => written.push(row),
            }
        }
        Ok(Advance {
            number,
            status,
            state,
            output: match &machine.state.ended {
                Some(Ended::Completed(output)) => Some(output.to_string()),
                _ => None,
            },
            error: match &machine.state.ended {
                Some(Ended::Faulted(fault)) => Some(fault.to_value().to_string()),
                _ => None,
            },
            current: machine.current().first().map(|pointer| (*pointer).to_owned()),
            due_ms: machine.due_ms(),
            steps: written,
            listeners: Some(wanted.clone())
                .filter(|_| before.as_ref() != Some(&wanted) && !(before.is_none() && wanted.is_empty())),
            seen,
            trust,
        })
    }

    fn events(&self, wishes: &Wishes) -> Vec<NewEvent> {
        let mut events: Vec<NewEvent> = wishes.events.iter().map(emitted).collect();
        let trace: Option<TraceId> = self.row.trace.parse().ok();
        events.iter_mut().for_each(|event| event.trace = trace);
        events
    }

    /// The event that started it, as far as effects need it.
    fn cause(&self) -> Option<Cause> {
        let stored: Value = serde_json::from_str(self.row.cause.as_ref()?).ok()?;
        let id = stored["id"].as_str()?.to_owned();
        let sent = NewEvent { id: Some(id), data: Data::None, ..NewEvent::default() };
        let event = Event {
            sequence: EventSeq(stored["sequence"].as_i64()?),
            received_ms: 0,
            made_id: None,
            sent,
            trace: self.row.trace.parse().ok()?,
            correlation: stored["correlation"].as_str().map(str::to_owned),
            causation: None,
            cause: None,
            depth: stored["depth"].as_u64().and_then(|depth| u32::try_from(depth).ok()).unwrap_or(0),
            trust: self.row.trust,
            principal: self.row.principal.clone(),
        };
        Some(Cause { event: Arc::new(event), delivery: None, span: spans::id(&self.inner, &self.row) })
    }

    /// Begins what the state asks for, and ends what it does not ask for any more.
    fn dispatch(&mut self) {
        // What is stored as sent begins, also when it was paused meanwhile; nothing else does.
        let actions = self.machine().actions().into_iter();
        let wanted: Vec<(u32, String)> =
            actions.filter(|(_, action)| action.sent).map(|(fiber, action)| (fiber, action.key.clone())).collect();
        let gone: Vec<String> =
            self.begun.keys().filter(|key| !wanted.iter().any(|(_, known)| known == *key)).cloned().collect();
        for key in gone {
            if let Some((_, cancel)) = self.begun.remove(&key) {
                cancel.cancel();
            }
        }
        for (fiber, key) in wanted {
            if self.begun.contains_key(&key) {
                continue;
            }
            let cancel = CancellationToken::new();
            let was_cut_off = self.cut_off.remove(&key);
            let job = self.job(fiber, &key, was_cut_off, cancel.clone());
            let doing =
                self.machine().state.fibers.get(&fiber).and_then(Fiber::doing).map(|one| (one.step, one.attempt));
            let context = spans::of_task(&self.inner, &self.row, doing);
            let number = self.next_job;
            self.next_job += 1;
            self.begun.insert(key.clone(), (number, cancel));
            let inner = Arc::clone(&self.inner);
            self.jobs.spawn(traces::within(context, async move {
                let result = match job {
                    Ok(job) => actions::run(&inner, job).await,
                    Err(fault) => Err(fault),
                };
                (number, key, result)
            }));
        }
    }

    fn job(&mut self, fiber: u32, key: &str, was_cut_off: bool, cancel: CancellationToken) -> Result<Job, Fault> {
        let (inner, id, row) = (Arc::clone(&self.inner), self.row.id.clone(), self.row.clone());
        let machine = self.machine();
        let action = machine.actions().into_iter().find(|(known, _)| *known == fiber).map(|(_, action)| action.clone());
        let action = action.ok_or_else(|| Fault::runtime("the machine lost its place"))?;
        let definition = Arc::clone(&machine.definition);
        let task = &definition.tasks[action.task];
        if was_cut_off && actions::is_process(&task.kind) && !task.idempotent {
            let detail = "unknown_outcome: the daemon ended while it ran, and nobody knows how far it came";
            return Err(Fault::new("runtime", 500, "unknown_outcome", detail).unknown());
        }
        let secret = |name: &str| inner.secret(name);
        let env = Env { now_ms: inner.now_ms(), id: &id, secret: &secret };
        // What holds secrets is not stored, so after a restart it is made anew.
        let args = match action.live {
            Some(args) => args,
            None if definition.secrets.is_empty() => action.args.clone(),
            None => machine.arguments(fiber, &env)?,
        };
        Ok(Job { key: key.to_owned(), args, definition, task: action.task, row, cancel })
    }

    /// Tells of its end.
    async fn ended(&mut self) -> Result<(), Error> {
        let (row, inner) = (self.row.clone(), Arc::clone(&self.inner));
        match self.machine().state.ended.clone() {
            Some(Ended::Faulted(fault)) => {
                spans::ended(&inner, &row, "faulted", Some(&fault));
                tracing::warn!(workflow = row.workflow, instance = row.id, error = fault.detail, "A workflow faulted.");
                actions::tell(&inner, &row, "aman.workflow.faulted", json!({ "error": fault.to_value() })).await;
            }
            _ => {
                spans::ended(&inner, &row, "completed", None);
                tracing::info!(workflow = row.workflow, instance = row.id, "A workflow completed.");
            }
        }
        inner.hint.notify_one();
        Ok(())
    }
}
