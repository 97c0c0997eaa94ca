//! Drives instances: reads what came, lets the machine go on, stores where it has come to, then does what it wishes for.
//! Nothing is done outside before the state that asks for it is stored.

mod commit;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::actions::{self, Job};
use super::lifecycle::Before;
use super::record::{Moment, listeners, take};
use super::{Current, Inner, Slot, fresh, row_of, spans};
use crate::clock::Millis;
use crate::error::Error;
use crate::event::Trust;
use crate::id::TraceId;
use crate::store::workflows::{self as rows, InstanceRow, Kind, ListenerRow};
use crate::store::{Reading, Tx};
use crate::telemetry::traces;
use crate::workflow::{Env, Fault, Fiber, Machine, Schedule, State, Stop};

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
/// An instance whose state has more bytes keeps its place among those at work while it waits for something outside, so that
/// only so many large ones are in memory.
const SMALL_BYTES: usize = 256 << 10;
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
        let active = {
            let active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
            Value::from_iter(active.keys().copied()).to_string()
        };
        let due = self.bus.store().read(move |conn| rows::due(conn, &active, now_ms, LOOK_MAX)).await?;
        due.heard.into_iter().for_each(|number| self.poke(number));
        let full = due.ready.len() >= LOOK_MAX;
        for number in due.ready {
            // Whoever leaves or gives its place back tells so, and then the others are looked for again.
            let Ok(turn) = Arc::clone(&self.queue).try_acquire_owned() else { return Ok(planned) };
            let Ok(room) = Arc::clone(&self.room).try_acquire_owned() else { return Ok(planned) };
            self.begin(number, room, turn);
        }
        Ok(if full { Some(now_ms) } else { due.next_ms.into_iter().chain(planned).min() })
    }

    /// Has an instance driven that nobody drives, once its turn comes.
    fn begin(self: &Arc<Self>, number: i64, room: OwnedSemaphorePermit, turn: OwnedSemaphorePermit) {
        let (inner, slot) = (Arc::clone(self), self.slot(number));
        self.drivers.spawn(async move {
            let driven = {
                let _turn = slot.turn.lock().await;
                let driven = inner.drive(number, &slot, turn).await;
                driven.inspect_err(|error| tracing::error!(number, error = ?error, "An instance could not be driven."))
            };
            drop(room);
            inner.leave(number, slot);
            if driven.is_err() {
                tokio::time::sleep(RETRY).await;
            }
            inner.hint.notify_one();
        });
    }

    /// A place among those at work, once there is one; none when it is not to go on.
    async fn place(&self, slot: &Slot, stop: &CancellationToken) -> Option<OwnedSemaphorePermit> {
        tokio::select! {
            biased;
            () = slot.cancel.cancelled() => None,
            () = stop.cancelled() => None,
            place = Arc::clone(&self.places).acquire_owned() => place.ok(),
        }
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
            // What was stored although the disk refused to say so is not started again.
            row.dedup = Some(format!("schedule-{slot_ms}"));
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
    async fn drive(self: &Arc<Self>, number: i64, slot: &Slot, turn: OwnedSemaphorePermit) -> Result<(), Error> {
        let Some(place) = self.place(slot, &self.stop).await else { return Ok(()) };
        drop(turn);
        let mut row = self.bus.store().read(move |conn| row_of(conn, number)).await?;
        if row.status.is_ended() || row.hold {
            return Ok(());
        }
        let definition = match self.definition(&row.digest).await {
            Ok(definition) => definition,
            Err(error @ (Error::NotFound { .. } | Error::Invalid { .. })) => return self.give_up(&row, &error).await,
            Err(error) => return Err(error),
        };
        self.reach(&row.workflow, &row.digest).await?;
        let (text, input, created_ms) = (row.state.take(), std::mem::take(&mut row.input), row.created_ms);
        // A state may be large; reading it must not hold up the others on this thread.
        let read = tokio::task::spawn_blocking(move || match text {
            Some(text) => serde_json::from_str(&text).map_err(Error::internal("reading the state of an instance")),
            None => match serde_json::from_str(&input) {
                Ok(input) => Ok(State::new(input, created_ms)),
                Err(error) => Err(Error::internal("reading the input of an instance")(error)),
            },
        });
        let state = match read.await.map_err(Error::internal("reading an instance"))? {
            Ok(state) => state,
            // No later look reads it either.
            Err(error) => return self.give_up(&row, &error).await,
        };
        let mut driver = Driver {
            inner: Arc::clone(self),
            place: Some(place),
            machine: Some(Machine::new(definition, state)),
            bytes: 0,
            row,
            jobs: JoinSet::new(),
            begun: HashMap::new(),
            next_job: 0,
            cut_off: HashSet::new(),
            listeners: Vec::new(),
            awaited: Vec::new(),
            seen: 0,
        };
        driver.note_stored();
        let done = driver.go(slot).await;
        driver.jobs.abort_all();
        done
    }
}

/// What came of something that was done outside: its key, the result, and how far that is trusted.
type Came = (String, (Result<Value, Fault>, Trust));

/// An instance in memory.
struct Driver {
    inner: Arc<Inner>,
    /// Among those at work; none while it waits for something outside.
    place: Option<OwnedSemaphorePermit>,
    /// None only while it runs on another thread.
    machine: Option<Machine>,
    /// Of its state, as it was stored last.
    bytes: usize,
    row: InstanceRow,
    /// What is being done outside.
    jobs: JoinSet<(u64, Came)>,
    /// By key: what is still waited for, with its number and what ends it. What was given up ends in its own time, and may
    /// be done again with the same key before.
    begun: HashMap<String, (u64, CancellationToken)>,
    next_job: u64,
    /// Keys of what was being done when the daemon ended.
    cut_off: HashSet<String>,
    /// What the tables say that it listens to.
    listeners: Vec<ListenerRow>,
    /// Keys of the instances whose end it waited for when it was stored last.
    awaited: Vec<String>,
    seen: i64,
}

impl Driver {
    fn machine(&mut self) -> &mut Machine {
        self.machine.as_mut().expect("the machine is here but while it runs")
    }

    /// What the tables say of it besides.
    fn note_stored(&mut self) {
        let number = self.row.number;
        self.listeners = listeners(self.machine(), number);
        let actions = self.machine().actions();
        self.cut_off = actions.iter().filter(|(_, action)| action.sent).map(|(_, action)| action.key.clone()).collect();
        self.awaited = self.machine().awaited().into_iter().map(|(_, key)| key).collect();
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
        let mut results: Vec<Came> = Vec::new();
        let mut came = self.came(slot).await?;
        loop {
            let (done, held) = (std::mem::take(&mut results), self.row.hold);
            let (number, key, before_it) = (self.row.number, self.row.parent_key.clone(), self.row.trust);
            let (stop, trust, moment) = self
                .with(move |machine, env| {
                    let before = Before::of(machine);
                    machine.tick(env);
                    // What it does with what it was brought is trusted no further than that.
                    let mut trust = before_it;
                    for (key, (result, read)) in done {
                        machine.resolve(&key, result, env);
                        trust = trust.min(read);
                    }
                    for (kind, body) in &came {
                        trust = trust.min(take(machine, *kind, body, env));
                    }
                    let stop = if held { Stop::Idle } else { machine.run(env, GROUP) };
                    let whose = (number, key.as_deref(), trust);
                    (stop, trust, Moment::of(machine, whose, held, (before, env.now_ms)))
                })
                .await;
            self.row.trust = trust;
            came = Vec::new();
            let moment = moment?;
            self.bytes = moment.advance.state.as_ref().map_or(0, String::len);
            if !self.commit(moment).await? {
                return Ok(());
            }
            if self.machine().state.ended.is_some() {
                return self.ended().await;
            }
            self.dispatch().await;
            if stop == Stop::Full && !self.row.hold {
                continue;
            }
            if self.begun.is_empty() {
                return Ok(());
            }
            if self.bytes <= SMALL_BYTES {
                self.place = None;
                self.inner.hint.notify_one();
            }
            if !self.wait(slot, &mut results, &mut came).await? {
                return Ok(());
            }
            if self.place.is_none() {
                self.place = self.inner.place(slot, &self.inner.abort).await;
            }
            if self.place.is_none() {
                return Ok(());
            }
        }
    }

    /// Waits until there is something to go on with. False when it is not to go on.
    async fn wait(
        &mut self,
        slot: &Slot,
        results: &mut Vec<Came>,
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
                    if let Ok((job, (key, result))) = ended
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
            *came = self.came(slot).await?;
            if !came.is_empty() {
                return Ok(true);
            }
        }
    }

    /// What came for it since the last time, and whether it was paused.
    async fn came(&mut self, slot: &Slot) -> Result<Vec<(Kind, Value)>, Error> {
        let (number, after) = (self.row.number, self.seen);
        let look = move |conn: &Reading| {
            let found = rows::inbox(conn, number, after, INBOX_MAX)?;
            let (last, full) = (found.last().map_or(after, |row| row.id), found.len() >= INBOX_MAX);
            let read = |row: rows::InboxRow| Some((row.kind, serde_json::from_str(&row.body).ok()?));
            let came: Vec<(Kind, Value)> = found.into_iter().filter_map(read).collect();
            Ok((came, last, full, rows::is_held(conn, number)?))
        };
        let (came, last, full, held) = self.inner.bus.store().read(look).await?;
        (self.seen, self.row.hold) = (last, held);
        if full {
            // Nobody else tells of the rest.
            slot.poke.notify_one();
        }
        Ok(came)
    }

    /// Begins what the state asks for, and ends what it does not ask for any more.
    async fn dispatch(&mut self) {
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
            let job = self.job(fiber, &key, was_cut_off, cancel.clone()).await;
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
                    Err(fault) => (Err(fault), Trust::Owner),
                };
                (number, (key, result))
            }));
        }
    }

    async fn job(&mut self, fiber: u32, key: &str, was_cut_off: bool, cancel: CancellationToken) -> Result<Job, Fault> {
        let row = self.row.clone();
        let machine = self.machine();
        let action = machine.actions().into_iter().find(|(known, _)| *known == fiber).map(|(_, action)| action.clone());
        let action = action.ok_or_else(|| Fault::runtime("the machine lost its place"))?;
        let definition = Arc::clone(&machine.definition);
        let task = &definition.tasks[action.task];
        if was_cut_off && actions::is_process(&task.kind) && !task.idempotent {
            let detail = "unknown_outcome: the daemon ended while it ran, and nobody knows how far it came";
            return Err(Fault::new("runtime", 500, "unknown_outcome", detail).unknown());
        }
        // What holds secrets is not stored, so after a restart it is made anew.
        let args = match action.live {
            Some(args) => args,
            None if definition.secrets.is_empty() => action.args.clone(),
            None => self.with(move |machine, env| machine.arguments(fiber, env)).await?,
        };
        Ok(Job { key: key.to_owned(), args, definition, task: action.task, row, was_cut_off, cancel })
    }
}
