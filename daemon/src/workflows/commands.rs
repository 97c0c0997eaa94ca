//! What can be asked of workflows: show, put, remove, start; of instances: show, pause, go on, retry, cancel, signal.

use std::sync::{Arc, PoisonError};

use serde_json::{Value, json};

use super::{Current, Inner, Workflows, compile, definition_row, view};
use crate::bus::{NewInstance, NewSignal};
use crate::error::Error;
use crate::store::Tx;
use crate::store::workflows::{self as rows, InstanceRow, Kind, Origin, WorkflowRow};
use crate::workflow::{self, Definition, Env, Fault, Machine, Marks, State, StepStatus};

/// Rows of the journal that are shown.
const STEPS_SHOWN: usize = 1000;

/// What a change writes besides, in the same transaction; it is given the answer to the change.
pub type Audit = Box<dyn FnOnce(&mut Tx<'_>, &Value) -> Result<(), Error> + Send>;

/// A definition that is to be stored.
pub struct Put {
    /// The name in the path.
    pub name: String,
    /// YAML or JSON.
    pub text: String,
    /// Check only.
    pub dry_run: bool,
}

impl Workflows {
    /// Every workflow by name.
    pub async fn list(&self) -> Result<Vec<Value>, Error> {
        let open = self.inner.bus.store().read(rows::open_counts).await?;
        let count = |name: &str| open.iter().find(|(known, _)| known == name).map_or(0, |(_, count)| *count);
        Ok(self.inner.held(|held| held.current.iter().map(|(name, one)| view::workflow(one, count(name))).collect()))
    }

    /// One workflow with its definition.
    pub async fn get(&self, name: &str) -> Result<Value, Error> {
        let current = self.inner.current(name)?;
        let owner = name.to_owned();
        let (open, versions) = self
            .inner
            .bus
            .store()
            .read(move |conn| Ok((rows::open_counts(conn)?, rows::definitions(conn, &owner)?)))
            .await?;
        let count = open.iter().find(|(known, _)| known == name).map_or(0, |(_, count)| *count);
        Ok(view::whole(&current, count, &versions))
    }

    /// A workflow as a Mermaid flowchart.
    pub fn chart(&self, name: &str) -> Result<String, Error> {
        Ok(workflow::render(&self.inner.current(name)?.definition, &Marks::new()))
    }

    /// Stores a definition as the one that new instances start with. Gives what is shown of it, and whether the name is
    /// new.
    pub async fn put(&self, put: Put, audit: Audit) -> Result<(Value, bool), Error> {
        let definition = compile(put.text.clone()).await.map_err(|problems| workflow::refused(&problems))?;
        if definition.name != put.name {
            let reason = format!("is '{}', and the path says '{}'; they must be equal.", definition.name, put.name);
            return Err(Error::invalid("/document/name", reason));
        }
        if definition.executes() && !self.inner.settings.allow_exec {
            let reason = "This definition runs commands, which may not come in over HTTP. Put its file into the workflows \
                          folder of the daemon's data and restart it, or set http.allow_exec_definitions = true in the \
                          configuration file.";
            return Err(Error::Forbidden { code: "exec_not_allowed", reason: reason.to_owned() });
        }
        if put.dry_run {
            let known = self.inner.current(&put.name).is_ok();
            return Ok((view::preview(&definition), !known));
        }
        let _turn = self.inner.changing.lock().await;
        let before = self.inner.current(&put.name).ok();
        if before.is_none() && self.inner.held(|held| held.current.len()) >= super::WORKFLOWS_MAX {
            let reason = format!("There are {} workflows, which is the most. Remove one first.", super::WORKFLOWS_MAX);
            return Err(Error::conflict("invalid_state", reason));
        }
        self.store(definition, put.text, before.as_ref(), audit).await
    }

    async fn store(
        &self,
        definition: Definition,
        text: String,
        before: Option<&Current>,
        audit: Audit,
    ) -> Result<(Value, bool), Error> {
        let inner = &self.inner;
        let same = before.is_some_and(|current| current.definition.digest == definition.digest);
        let next_ms = if same { before.and_then(|one| one.row.next_ms) } else { inner.first_start(&definition) };
        let row = WorkflowRow {
            name: definition.name.clone(),
            digest: Some(definition.digest.clone()),
            origin: if same { before.map_or(Origin::Api, |one| one.row.origin) } else { Origin::Api },
            file_digest: self.file_digest(&definition.name).await?,
            next_ms,
            partial: None,
            updated_ms: inner.now_ms(),
        };
        let stored = definition_row(&definition, text, inner.now_ms());
        let current = Current { row: row.clone(), definition: Arc::new(definition) };
        let mut shown = view::workflow(&current, 0);
        if let Value::Object(shown) = &mut shown {
            shown.remove("open_instances");
        }
        let answer = shown.clone();
        inner
            .bus
            .store()
            .write(move |tx| {
                rows::put_definition(tx, &stored)?;
                rows::put(tx, &row)?;
                audit(tx, &answer)
            })
            .await?;
        let name = current.definition.name.clone();
        let is_new = inner.held(|held| held.current.insert(name.clone(), current)).is_none();
        inner.register(Some(&name)).await?;
        inner.hint.notify_one();
        Ok((shown, is_new))
    }

    async fn file_digest(&self, name: &str) -> Result<Option<String>, Error> {
        let all = self.inner.bus.store().read(rows::workflows).await?;
        Ok(all.into_iter().find(|row| row.name == name).and_then(|row| row.file_digest))
    }

    /// Removes a workflow. Its instances go on to their end.
    pub async fn delete(&self, name: &str, audit: Audit) -> Result<Value, Error> {
        let _turn = self.inner.changing.lock().await;
        let current = self.inner.current(name)?;
        let row =
            WorkflowRow { digest: None, next_ms: None, partial: None, updated_ms: self.inner.now_ms(), ..current.row };
        let shown = json!({ "name": name, "deleted": true });
        let answer = shown.clone();
        self.inner
            .bus
            .store()
            .write(move |tx| {
                rows::put(tx, &row)?;
                audit(tx, &answer)
            })
            .await?;
        self.inner.held(|held| held.current.remove(name));
        self.inner.register(Some(name)).await?;
        Ok(shown)
    }

    /// What a start would make; nothing is started.
    pub fn preview(&self, wanted: NewInstance) -> Result<Value, Error> {
        let mut shown = view::instance(&self.inner.new_row(wanted)?);
        shown["id"] = Value::Null;
        shown["dry_run"] = true.into();
        Ok(shown)
    }

    /// Starts an instance, or finds the one with its key.
    pub async fn create(&self, wanted: NewInstance, audit: Audit) -> Result<Value, Error> {
        let inner = &self.inner;
        let row = inner.new_row(wanted)?;
        inner.bus.store().takes_new()?;
        let started = inner
            .bus
            .store()
            .write(move |tx| {
                let (number, _) = rows::start(tx, &row)?;
                let stored =
                    rows::current(tx, number)?.ok_or_else(|| Error::not_found("workflow instance", row.id.clone()))?;
                let shown = view::instance(&stored);
                audit(tx, &shown)?;
                Ok(shown)
            })
            .await;
        // Also when that failed: it may have been stored all the same.
        inner.hint.notify_one();
        started
    }

    /// Instances, newest first, each with its row number for the cursor.
    pub async fn instances(
        &self,
        workflow: Option<String>,
        status: Option<String>,
        before: Option<i64>,
        limit: usize,
    ) -> Result<Vec<(i64, Value)>, Error> {
        let found = self.inner.bus.store().read(move |conn| {
            rows::instances(conn, workflow.as_deref(), status.as_deref(), before.unwrap_or(i64::MAX), limit)
        });
        Ok(found.await?.iter().map(|row| (row.number, view::instance(row))).collect())
    }

    /// One instance with its journal.
    pub async fn instance(&self, id: &str) -> Result<Value, Error> {
        let row = self.inner.by_id(id).await?;
        let number = row.number;
        let steps = self.inner.bus.store().read(move |conn| rows::steps(conn, number, STEPS_SHOWN)).await?;
        Ok(view::journaled(&row, &steps))
    }

    /// The definition of an instance as a flowchart with its state marked.
    pub async fn instance_chart(&self, id: &str) -> Result<String, Error> {
        let row = self.inner.by_id(id).await?;
        let (number, definition) = (row.number, self.inner.definition(&row.digest).await?);
        let steps = self.inner.bus.store().read(move |conn| rows::steps(conn, number, STEPS_SHOWN)).await?;
        let states = view::last_states(&steps);
        let mark = |(task, one): (usize, &workflow::Task)| {
            let status = match states.get(&one.pointer)?.as_str()? {
                "running" => StepStatus::Running,
                "waiting" => StepStatus::Waiting,
                "completed" => StepStatus::Completed,
                "faulted" => StepStatus::Faulted,
                "skipped" => StepStatus::Skipped,
                _ => StepStatus::Cancelled,
            };
            Some((task, status))
        };
        let marks: Marks = definition.tasks.iter().enumerate().filter_map(mark).collect();
        Ok(workflow::render(&definition, &marks))
    }

    /// Pauses an instance: what runs ends, nothing new begins. Or lets it go on.
    pub async fn hold(&self, id: &str, hold: bool, audit: Audit) -> Result<Value, Error> {
        let row = self.inner.by_id(id).await?;
        let (number, now_ms, id) = (row.number, self.inner.now_ms(), id.to_owned());
        let told = match hold {
            true => self.inner.event_of(&row, "workflow.suspended", "suspendedAt").await,
            false => self.inner.event_of(&row, "workflow.resumed", "resumedAt").await,
        };
        let shown = self
            .inner
            .bus
            .store()
            .write(move |tx| {
                if !rows::hold(tx, number, hold, now_ms)? {
                    let why = if hold { "It is paused already, or has ended." } else { "It is not paused." };
                    return Err(Error::conflict("invalid_state", why));
                }
                told.iter().try_for_each(|event| event.store(tx))?;
                let row = rows::current(tx, number)?.ok_or_else(|| Error::not_found("workflow instance", id))?;
                let shown = view::instance(&row);
                audit(tx, &shown)?;
                Ok(shown)
            })
            .await?;
        self.inner.poke(number);
        self.inner.hint.notify_one();
        Ok(shown)
    }

    /// Ends an instance and what it runs, with the instances that it waits for.
    pub async fn cancel(&self, id: &str, audit: Audit) -> Result<Value, Error> {
        let row = self.inner.by_id(id).await?;
        let ended = || Error::conflict("invalid_state", "It has ended already. Start a new instance if one is wanted.");
        if row.status.is_ended() {
            return Err(ended());
        }
        let (number, now_ms, after) = (row.number, self.inner.now_ms(), self.inner.after(&row));
        let workflow = row.workflow.clone();
        let told = self.inner.event_of(&row, "workflow.cancelled", "cancelledAt").await;
        let change = move |tx: &mut Tx<'_>| {
            let kept = row.parent.is_some() && row.awaited;
            let mut gone = rows::cancel_below(tx, number, "[]", kept, now_ms)?;
            if !rows::cancel(tx, number, &row.workflow, kept, now_ms)? {
                return Err(ended());
            }
            let below = gone.len();
            gone.extend(rows::current(tx, number)?);
            told.iter().try_for_each(|event| event.store(tx))?;
            if let Some(parent) = row.parent.filter(|_| row.awaited) {
                let body = json!({ "key": row.parent_key, "error": cancelled() }).to_string();
                rows::bring(tx, parent, Kind::Ended, &body)?;
            }
            if let Some(next_ms) = after {
                rows::set_next(tx, &row.workflow, Some(next_ms))?;
            }
            let stored = rows::current(tx, number)?.ok_or_else(|| Error::not_found("workflow instance", row.id))?;
            let shown = view::instance(&stored);
            audit(tx, &shown)?;
            Ok((shown, gone, below))
        };
        let (shown, gone, below) = self.inner.bus.store().write(change).await?;
        self.inner.planned(&workflow, after);
        for (number, slot) in self.inner.end_drivers(&gone) {
            drop(slot.turn.lock().await);
            self.inner.leave(number, slot);
        }
        self.inner.all_closed(&gone).await;
        self.inner.tell_cancelled(&gone[..below]).await;
        self.inner.hint.notify_one();
        Ok(shown)
    }

    /// Takes a faulted instance up again at the task that failed.
    pub async fn retry(&self, id: &str, audit: Audit) -> Result<Value, Error> {
        let row = self.inner.by_id(id).await?;
        if row.status != rows::Status::Faulted {
            let reason = format!("It is {}; only a faulted instance can be tried again.", row.status.name());
            return Err(Error::conflict("invalid_state", reason));
        }
        let definition = self.inner.definition(&row.digest).await?;
        let (inner, number) = (Arc::clone(&self.inner), row.number);
        let (row, state, awaited) = tokio::task::spawn_blocking(move || {
            let Some(text) = &row.state else { return Ok((row, None, Vec::new())) };
            let state: State =
                serde_json::from_str(text).map_err(Error::internal("reading the state of an instance"))?;
            let mut machine = Machine::new(definition, state);
            let secret = |name: &str| inner.secret(name);
            machine.retry(&Env { now_ms: inner.now_ms(), id: &row.id, secret: &secret });
            let awaited: Vec<String> = machine.awaited().into_iter().map(|(_, key)| key).collect();
            let text = serde_json::to_string(&machine.state);
            let text = text.map_err(Error::internal("storing the state of an instance"))?;
            Ok::<_, Error>((row, Some(text), awaited))
        })
        .await
        .map_err(Error::internal("taking an instance up again"))??;
        let now_ms = self.inner.now_ms();
        let shown = self
            .inner
            .bus
            .store()
            .write(move |tx| {
                if !rows::reopen(tx, number, state.as_deref(), now_ms)? {
                    return Err(Error::conflict("invalid_state", "It is not faulted any more. Look at it again."));
                }
                // Nobody told it of ends that came while it had ended itself.
                for key in awaited {
                    if let Some(body) = missed(rows::child(tx, number, &key)?, &key) {
                        rows::bring(tx, number, Kind::Ended, &body)?;
                    }
                }
                let stored = rows::current(tx, number)?.ok_or_else(|| Error::not_found("workflow instance", row.id))?;
                let shown = view::instance(&stored);
                audit(tx, &shown)?;
                Ok(shown)
            })
            .await?;
        self.inner.hint.notify_one();
        Ok(shown)
    }

    /// Sends an event to one instance alone. `invalid_state` when it does not wait for it.
    pub async fn signal(&self, signal: NewSignal, audit: Audit) -> Result<Value, Error> {
        let id = signal.instance.clone();
        let (event_id, change) = self.inner.heard(signal).await?;
        let shown = json!({ "id": id, "event_id": event_id, "delivered": true });
        let answer = shown.clone();
        self.inner
            .bus
            .store()
            .write(move |tx| {
                rows::apply_all(tx, &[change])?;
                audit(tx, &answer)
            })
            .await?;
        self.inner.hint.notify_one();
        Ok(shown)
    }
}

impl Inner {
    pub(super) async fn by_id(&self, id: &str) -> Result<InstanceRow, Error> {
        let wanted = id.to_owned();
        let found = self.bus.store().read(move |conn| rows::by_id(conn, &wanted)).await?;
        found.ok_or_else(|| Error::not_found("workflow instance", id))
    }

    pub(super) fn poke(&self, number: i64) {
        let active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = active.get(&number) {
            slot.poke.notify_one();
        }
    }
}

/// What the parent of a cancelled instance hears. How far that came nobody knows.
fn cancelled() -> Fault {
    Fault::runtime("the workflow that was run was cancelled").unknown()
}

/// What its parent must still hear of a child, as of its end; none while that goes on.
fn missed(child: Option<InstanceRow>, key: &str) -> Option<String> {
    let fault = match child {
        None => Fault::runtime("what became of the workflow that was run is not on record any more").unknown(),
        Some(row) if !row.status.is_ended() => return None,
        Some(InstanceRow { output: Some(output), trust, .. }) => {
            let output: Value = serde_json::from_str(&output).unwrap_or_default();
            return Some(json!({ "key": key, "output": output, "trust": trust }).to_string());
        }
        Some(InstanceRow { error: Some(error), trust, .. }) => {
            let fault = serde_json::from_str(&error).unwrap_or_else(|_| Fault::runtime("it failed"));
            let fault = Fault { instance: String::new(), ..fault };
            return Some(json!({ "key": key, "error": fault, "trust": trust }).to_string());
        }
        Some(_) => cancelled(),
    };
    Some(json!({ "key": key, "error": fault }).to_string())
}
