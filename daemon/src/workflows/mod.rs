//! Workflows: which there are, what starts them, and who may change them. An instance is rows; it is in memory only while
//! it does something. Events reach instances as deliveries of the bus, and what came is stored with their settlement.

mod actions;
mod asked;
mod commands;
mod consumer;
mod engine;
mod http;
mod lifecycle;
mod openapi;
mod process;
mod record;
mod spans;
mod view;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use commands::{Audit, Put};

use crate::bus::{Bus, Concurrency, Consumer, ConsumerSpec, RetryPolicy, Rule, Standing};
use crate::clock::Millis;
use crate::config::Secret;
use crate::egress::Egress;
use crate::error::Error;
use crate::event::{Trust, TypePattern};
use crate::expr::Expr;
use crate::plain;
use crate::sandbox::{Places, Sandbox};
use crate::store::Reading;
use crate::store::workflows::{self as rows, DefinitionRow, Origin, WorkflowRow};
use crate::tasks::Supervisor;
use crate::tools::Tools;
use crate::workflow::{self, Definition, Fault, Schedule};

/// Workflows at the most.
const WORKFLOWS_MAX: usize = 1000;
/// Definitions that are kept ready besides those in force.
const READY_MAX: usize = 256;
/// Instances in memory: they do something, or wait for something that is done outside: a call, a command, a skill.
const ACTIVE_MAX: usize = 1024;
/// Instances that do something at the same time.
const WORKING_MAX: usize = 64;
/// Calls over HTTP at the same time.
const CALLS_MAX: usize = 512;
/// Commands at the same time.
const COMMANDS_MAX: usize = 64;
/// Bytes of a definition's file.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// The owner of the links to skills.
const OWNER: &str = "workflows";
/// The type of the event that calls a skill.
pub(crate) const CALL: &str = "aman.workflow.call";
/// How long an attempt to deliver an event to a workflow may take.
const DELIVERY_MAX: std::time::Duration = std::time::Duration::from_secs(60);

/// What workflows work with.
pub struct Settings {
    /// Where definitions lie as files.
    pub folder: PathBuf,
    /// Below it every process gets a fresh folder.
    pub work: PathBuf,
    /// What `use.secrets` names.
    pub secrets: BTreeMap<String, Secret>,
    /// Whether definitions that run commands may come in over HTTP.
    pub allow_exec: bool,
    /// What `~` and `$AMAN_DATA` stand for.
    pub places: Places,
    /// What `aman.tool` calls.
    pub tools: Tools,
}

/// The workflows of this daemon; cheap to clone.
#[derive(Clone)]
pub struct Workflows {
    inner: Arc<Inner>,
}

struct Inner {
    bus: Bus,
    egress: Egress,
    sandbox: Sandbox,
    settings: Settings,
    held: Mutex<Held>,
    /// Held while workflows are changed.
    changing: tokio::sync::Mutex<()>,
    /// Held while the bus is told what workflows wait for, so that what was read last counts.
    registering: tokio::sync::Mutex<()>,
    /// Told when there may be something to do.
    hint: Notify,
    active: Mutex<HashMap<i64, Arc<Slot>>>,
    /// Of [`ACTIVE_MAX`].
    room: Arc<Semaphore>,
    /// Of [`WORKING_MAX`].
    places: Arc<Semaphore>,
    /// Those who wait for their first place; no more than there are places, so that each look has few to leave out.
    queue: Arc<Semaphore>,
    /// Of [`CALLS_MAX`].
    calls: Semaphore,
    /// Of [`COMMANDS_MAX`].
    commands: Semaphore,
    stop: CancellationToken,
    /// Ends what still runs when the time to end is over.
    abort: CancellationToken,
    drivers: TaskTracker,
}

/// What is in memory of the tables.
#[derive(Default)]
struct Held {
    current: BTreeMap<String, Current>,
    /// What could not be read at the start: where it lies, and why.
    left_out: Vec<(String, String)>,
    /// The digests whose instances get their events, by workflow.
    reached: HashMap<String, HashSet<String>>,
    ready: HashMap<String, Arc<Definition>>,
}

#[derive(Clone)]
struct Current {
    row: WorkflowRow,
    definition: Arc<Definition>,
}

/// An instance that is being driven.
#[derive(Default)]
struct Slot {
    /// Held by whoever drives or changes it.
    turn: tokio::sync::Mutex<()>,
    /// Told when something came for it.
    poke: Notify,
    /// Ends what it does.
    cancel: CancellationToken,
}

impl Workflows {
    /// Reads all workflows, takes over what is in the folder and in this binary, and registers them with the bus. Nothing
    /// runs before [`Workflows::run`].
    pub async fn start(bus: &Bus, egress: &Egress, sandbox: &Sandbox, settings: Settings) -> Result<Workflows, Error> {
        // Their parts are secrets before anybody uses them: whoever repeats one may do so in an event.
        for secret in settings.secrets.values() {
            let value = secret_value(secret);
            value
                .as_object()
                .into_iter()
                .flatten()
                .filter_map(|(_, part)| part.as_str())
                .for_each(crate::redact::learn);
        }
        let work = settings.work.clone();
        // Whatever ran in there was waited for before.
        let removed = tokio::task::spawn_blocking(move || match std::fs::remove_dir_all(&work) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %work.display(), %error, "What commands of workflows left could not be removed.");
            }
            _ => {}
        });
        removed.await.map_err(Error::internal("removing what commands of workflows left"))?;
        let workflows = Workflows {
            inner: Arc::new(Inner {
                bus: bus.clone(),
                egress: egress.clone(),
                sandbox: sandbox.clone(),
                settings,
                held: Mutex::default(),
                changing: tokio::sync::Mutex::default(),
                registering: tokio::sync::Mutex::default(),
                hint: Notify::new(),
                active: Mutex::default(),
                room: Arc::new(Semaphore::new(ACTIVE_MAX)),
                places: Arc::new(Semaphore::new(WORKING_MAX)),
                queue: Arc::new(Semaphore::new(WORKING_MAX)),
                calls: Semaphore::new(CALLS_MAX),
                commands: Semaphore::new(COMMANDS_MAX),
                stop: CancellationToken::new(),
                abort: CancellationToken::new(),
                drivers: TaskTracker::new(),
            }),
        };
        workflows.inner.load().await?;
        bus.serve_flows(asked::flows(&workflows.inner));
        Ok(workflows)
    }

    /// Begins to drive instances. The bus delivers by now, and everyone whom they call is there.
    pub fn run(&self, supervisor: &Supervisor) {
        let (inner, stop) = (Arc::clone(&self.inner), supervisor.stop_token());
        supervisor.spawn("workflows", move || Arc::clone(&inner).schedule(stop.clone()));
    }

    /// What could not be read: where it lies or what it is called, and why.
    pub fn left_out(&self) -> Vec<(String, String)> {
        self.inner.held(|held| held.left_out.clone())
    }

    /// Begins nothing new, and lets what runs end for up to `grace`; what is cut off is taken up by the next start.
    pub async fn stop(&self, grace: std::time::Duration) {
        self.inner.stop.cancel();
        self.inner.drivers.close();
        if tokio::time::timeout(grace, self.inner.drivers.wait()).await.is_err() {
            self.inner.abort.cancel();
            let _late = tokio::time::timeout(std::time::Duration::from_secs(5), self.inner.drivers.wait()).await;
        }
    }
}

impl Inner {
    fn now_ms(&self) -> Millis {
        self.bus.clock().now_ms()
    }

    fn held<R>(&self, look: impl FnOnce(&mut Held) -> R) -> R {
        look(&mut self.held.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn current(&self, name: &str) -> Result<Current, Error> {
        let found = self.held(|held| held.current.get(name).cloned());
        found.ok_or_else(|| Error::not_found("workflow", name))
    }

    /// The definition with this digest.
    async fn definition(&self, digest: &str) -> Result<Arc<Definition>, Error> {
        let known = self.held(|held| {
            let current = held.current.values().find(|current| current.definition.digest == digest);
            current.map(|current| Arc::clone(&current.definition)).or_else(|| held.ready.get(digest).cloned())
        });
        if let Some(known) = known {
            return Ok(known);
        }
        let wanted = digest.to_owned();
        let row = self.bus.store().read(move |conn| rows::definition(conn, &wanted)).await?;
        let row = row.ok_or_else(|| Error::not_found("definition", digest))?;
        let loaded = workflow::load(&row.text).map_err(|problems| workflow::refused(&problems))?;
        let definition = Arc::new(loaded);
        self.held(|held| {
            if held.ready.len() >= READY_MAX {
                held.ready.clear();
            }
            held.ready.insert(digest.to_owned(), Arc::clone(&definition));
        });
        Ok(definition)
    }

    async fn load(self: &Arc<Self>) -> Result<(), Error> {
        let stored = self.bus.store().read(rows::workflows).await?;
        let mut known: BTreeMap<String, WorkflowRow> = stored.into_iter().map(|row| (row.name.clone(), row)).collect();
        let mut found: Vec<(Origin, String, String)> = crate::bundled::WORKFLOWS
            .iter()
            .map(|(name, text)| (Origin::Bundled, (*name).to_owned(), (*text).to_owned()))
            .collect();
        found.extend(self.files());
        for (origin, place, text) in found {
            let taken = |definition: &Definition| {
                let row = known.get(&definition.name);
                row.is_some_and(|row| row.file_digest.as_ref() == Some(&definition.digest))
            };
            // What was taken over before was checked then, and what is in this binary by its tests.
            let loaded = workflow::load(&text).ok().filter(|one| origin == Origin::Bundled || taken(one));
            let read = match loaded {
                Some(definition) => Ok(definition),
                None => compile(text.clone()).await,
            };
            match read {
                Ok(definition) => self.take(&mut known, origin, &definition, text).await?,
                Err(problems) => {
                    self.leave_out(place, workflow::refused(&problems).to_string());
                }
            }
        }
        for row in known.into_values() {
            let Some(digest) = &row.digest else { continue };
            match self.definition(digest).await {
                Ok(definition) => {
                    self.held(|held| held.current.insert(row.name.clone(), Current { row: row.clone(), definition }));
                }
                Err(error) => self.leave_out(row.name, error.to_string()),
            }
        }
        self.register(None).await
    }

    /// Notes that a workflow cannot be read.
    fn leave_out(&self, place: String, error: String) {
        tracing::warn!(place, error, "A workflow cannot be read and is left out.");
        self.held(|held| held.left_out.push((place, error)));
    }

    /// The definitions in the data folder.
    fn files(&self) -> Vec<(Origin, String, String)> {
        let Ok(listed) = std::fs::read_dir(&self.settings.folder) else { return Vec::new() };
        let mut files: Vec<PathBuf> = listed.flatten().map(|entry| entry.path()).collect();
        files.retain(|file| file.extension().is_some_and(|e| ["yaml", "yml", "json"].iter().any(|known| e == *known)));
        files.sort();
        let read = |file: PathBuf| match plain::read(&file, FILE_BYTES_MAX) {
            Ok(text) => Some((Origin::File, file.display().to_string(), text)),
            Err(error) => {
                self.leave_out(file.display().to_string(), format!("cannot be read: {error}."));
                None
            }
        };
        files.into_iter().take(WORKFLOWS_MAX).filter_map(read).collect()
    }

    /// Takes a definition from a file over, unless this very content was taken over before: what was changed last counts.
    async fn take(
        &self,
        known: &mut BTreeMap<String, WorkflowRow>,
        origin: Origin,
        definition: &Definition,
        text: String,
    ) -> Result<(), Error> {
        let (before, digest) = (known.get(&definition.name), definition.digest.clone());
        if before.is_some_and(|row| row.file_digest.as_ref() == Some(&digest)) {
            return Ok(());
        }
        // A file of the operator's own stands above one of the same name in this binary.
        if origin == Origin::Bundled && before.is_some_and(|row| row.origin != Origin::Bundled && row.digest.is_some())
        {
            return Ok(());
        }
        let row = WorkflowRow {
            name: definition.name.clone(),
            digest: Some(digest.clone()),
            origin,
            file_digest: Some(digest),
            next_ms: self.first_start(definition),
            partial: None,
            updated_ms: self.now_ms(),
        };
        let (stored, put) = (definition_row(definition, text, self.now_ms()), row.clone());
        self.bus
            .store()
            .write(move |tx| {
                rows::put_definition(tx, &stored)?;
                rows::put(tx, &put)
            })
            .await?;
        known.insert(row.name.clone(), row);
        Ok(())
    }

    /// When a schedule of a definition that is new starts its first instance.
    fn first_start(&self, definition: &Definition) -> Option<Millis> {
        match definition.schedule {
            Some(Schedule::Every(ms) | Schedule::After(ms)) => Some(self.now_ms().saturating_add(ms)),
            _ => None,
        }
    }

    /// Has the bus bring workflows what they wait for: all of them, or one that changed. One that was removed gets its
    /// events until its last instance has ended.
    async fn register(self: &Arc<Self>, only: Option<&str>) -> Result<(), Error> {
        let _turn = self.registering.lock().await;
        let open = self.bus.store().read(rows::open_definitions).await?;
        let current: Vec<Current> = self.held(|held| held.current.values().cloned().collect());
        let mut served: BTreeMap<String, Vec<Arc<Definition>>> = BTreeMap::new();
        for one in &current {
            served.insert(one.definition.name.clone(), vec![Arc::clone(&one.definition)]);
        }
        for (name, digest) in open {
            let definitions = served.entry(name).or_default();
            if definitions.iter().all(|definition| definition.digest != digest) {
                definitions.extend(self.definition(&digest).await.ok());
            }
        }
        // Links are replaced as a whole: those of all, also when only one changed.
        let skills: HashSet<String> = served.values().flatten().flat_map(|definition| definition.skills()).collect();
        let mut consumers: Vec<(ConsumerSpec, Arc<dyn Consumer>)> = Vec::new();
        for (name, definitions) in served.iter().filter(|(name, _)| only.is_none_or(|only| only == *name)) {
            let schedule = self.current(name).ok().and_then(|current| current.definition.schedule.clone());
            let consumer = consumer::Events {
                workflows: Arc::downgrade(self),
                name: name.clone(),
                schedule: cron(schedule.as_ref()),
            };
            consumers.push((spec(name, schedule.as_ref(), definitions)?, Arc::new(consumer)));
        }
        self.bus.register(consumers).await?;
        if let Some(gone) = only.filter(|only| !served.contains_key(*only)) {
            self.bus.unregister(&[format!("workflow/{gone}")]).await;
        }
        let digests = |all: &Vec<Arc<Definition>>| all.iter().map(|definition| definition.digest.clone()).collect();
        let reached = served.iter().map(|(name, all)| (name.clone(), digests(all))).collect();
        self.held(|held| held.reached = reached);
        self.link(skills).await
    }

    /// Has the bus bring calls to these skills.
    async fn link(&self, skills: HashSet<String>) -> Result<(), Error> {
        let mut links = Vec::new();
        for skill in skills {
            let pattern = TypePattern::parse(CALL).map_err(|reason| Error::invalid("type", reason))?;
            let condition = format!(".subject == {}", Value::from(skill.as_str()));
            let condition = Expr::compile(&condition).map_err(|error| Error::invalid("skill", error.message))?;
            links.push((format!("skill/{skill}"), Rule { pattern, condition: Some(condition) }));
        }
        self.bus.link(OWNER, links).await
    }

    /// Sees to it that events reach an instance of this definition, before it listens: it may be an old one, or that of a
    /// workflow that was removed.
    async fn reach(self: &Arc<Self>, workflow: &str, digest: &str) -> Result<(), Error> {
        let known = |held: &mut Held| held.reached.get(workflow).is_some_and(|digests| digests.contains(digest));
        if self.held(known) { Ok(()) } else { self.register(Some(workflow)).await }
    }

    /// An instance has ended: a workflow that was removed may need no more events.
    async fn closed(self: &Arc<Self>, workflow: &str) -> Result<(), Error> {
        if self.current(workflow).is_ok() { Ok(()) } else { self.register(Some(workflow)).await }
    }

    /// As [`Inner::closed`], for instances that were cancelled. What is stored by then does not fail for it.
    async fn all_closed(self: &Arc<Self>, gone: &[rows::InstanceRow]) {
        let names: BTreeSet<&str> = gone.iter().map(|row| row.workflow.as_str()).collect();
        for workflow in names {
            if let Err(error) = self.closed(workflow).await {
                tracing::warn!(workflow, %error, "A removed workflow gets events until the next start.");
            }
        }
    }

    /// The value of a secret.
    fn secret(&self, name: &str) -> Result<Value, Fault> {
        let Some(secret) = self.settings.secrets.get(name) else {
            let reason = format!(
                "there is no secret '{name}'; the configuration names it: [workflows] secrets = {{ {name} = \"env:NAME\" }}"
            );
            return Err(Fault::authorization(reason));
        };
        Ok(secret_value(secret))
    }

    fn slot(&self, number: i64) -> Arc<Slot> {
        let mut active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(active.entry(number).or_default())
    }

    /// These instances were cancelled: ends what their drivers do. Gives those that were at work.
    fn end_drivers(&self, gone: &[rows::InstanceRow]) -> Vec<(i64, Arc<Slot>)> {
        gone.iter().for_each(|row| spans::ended(self, row, "cancelled", None));
        let active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        let slots = gone.iter().filter_map(|row| Some((row.number, Arc::clone(active.get(&row.number)?))));
        slots.inspect(|(_, slot)| slot.cancel.cancel()).collect()
    }

    /// Forgets a slot that nobody holds any more.
    fn leave(&self, number: i64, slot: Arc<Slot>) {
        let mut active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        drop(slot);
        if active.get(&number).is_some_and(|slot| Arc::strong_count(slot) == 1) {
            active.remove(&number);
        }
    }
}

/// A JSON object becomes one, any other text is itself.
fn secret_value(secret: &Secret) -> Value {
    let text = secret.expose();
    match serde_json::from_str::<Value>(text) {
        Ok(fields @ Value::Object(_)) => fields,
        _ => Value::from(text),
    }
}

fn cron(schedule: Option<&Schedule>) -> Option<String> {
    match schedule {
        Some(Schedule::Cron(expression)) => Some(expression.clone()),
        _ => None,
    }
}

fn definition_row(definition: &Definition, text: String, now_ms: Millis) -> DefinitionRow {
    DefinitionRow {
        digest: definition.digest.clone(),
        name: definition.name.clone(),
        namespace: definition.namespace.clone(),
        version: definition.version.clone(),
        text,
        created_ms: now_ms,
    }
}

/// Compiles off the async threads: every expression takes a moment.
async fn compile(text: String) -> Result<Definition, Vec<workflow::Problem>> {
    let compiled = tokio::task::spawn_blocking(move || workflow::parse(&text)).await;
    compiled.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// What the bus must know of a workflow: the types that its schedule and the listeners of these definitions wait for.
fn spec(name: &str, schedule: Option<&Schedule>, definitions: &[Arc<Definition>]) -> Result<ConsumerSpec, Error> {
    let mut kinds: Vec<Option<Vec<String>>> = definitions.iter().flat_map(|one| one.listens()).collect();
    if let Some(Schedule::On(strategy)) = schedule {
        kinds.push(strategy.kinds());
    }
    let mut patterns: Vec<String> = if kinds.iter().any(Option::is_none) {
        vec!["**".to_owned()]
    } else {
        kinds.into_iter().flatten().flatten().collect()
    };
    patterns.sort();
    patterns.dedup();
    let rule = |pattern: &String| match TypePattern::parse(pattern) {
        Ok(pattern) => Ok(Rule { pattern, condition: None }),
        Err(reason) => Err(Error::invalid("type", reason)),
    };
    Ok(ConsumerSpec {
        name: format!("workflow/{name}"),
        kind: "workflow",
        rules: patterns.iter().map(rule).collect::<Result<_, _>>()?,
        concurrency: Concurrency::Serial,
        retry: RetryPolicy::default(),
        timeout: DELIVERY_MAX,
        trust: Trust::Owner,
        standing: Standing::Active,
        acts_outside: false,
    })
}

/// Reads a row of the instances.
fn row_of(conn: &Reading, number: i64) -> Result<rows::InstanceRow, Error> {
    rows::by_number(conn, number)?.ok_or_else(|| Error::not_found("workflow instance", number.to_string()))
}

/// A new instance as a row.
fn fresh(current: &Current, input: &Value, now_ms: Millis) -> rows::InstanceRow {
    rows::InstanceRow {
        number: 0,
        id: crate::id::fresh(),
        workflow: current.definition.name.clone(),
        digest: current.definition.digest.clone(),
        status: rows::Status::Pending,
        hold: false,
        state: None,
        input: record::clean(input.to_string()),
        output: None,
        error: None,
        current: None,
        due_ms: None,
        created_ms: now_ms,
        updated_ms: now_ms,
        trace: String::new(),
        trust: Trust::Owner,
        principal: String::new(),
        cause: None,
        parent: None,
        parent_key: None,
        awaited: false,
        dedup: None,
    }
}
