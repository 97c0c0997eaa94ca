//! What can be asked of the jobs: show, add, change, remove, run.

use serde_json::{Map, Value, json};

use super::engine::{event_of, manual};
use super::sync::defined;
use super::{Audit, Cron, Held, JOBS_MAX, State, plan, source_of, view};
use crate::bus::StateWrite;
use crate::error::{Error, FieldError};
use crate::schedule::{Job, Overlap, check_id};
use crate::store::Tx;
use crate::store::cron::{self as rows, JobRow, Origin, Slot, Status};

/// Slots that a dry run shows.
const PREVIEW: usize = 5;

/// What a change came to.
pub struct Changed {
    /// The job as it is shown.
    pub shown: Value,
    /// True when nothing was changed, as asked.
    pub dry_run: bool,
}

fn held<'a>(state: &'a State, id: &str) -> Result<&'a Held, Error> {
    state.jobs.get(id).ok_or_else(|| Error::not_found("cron job", id))
}

impl Cron {
    /// Every job by id.
    pub async fn list(&self) -> Result<Vec<Value>, Error> {
        let ids: Vec<String> = self.inner.state.lock().await.jobs.keys().cloned().collect();
        let last = self
            .inner
            .bus
            .store()
            .read(move |conn| ids.iter().map(|id| rows::slots(conn, id, None, None, 1)).collect::<Result<Vec<_>, _>>())
            .await?;
        let last: std::collections::BTreeMap<String, Slot> =
            last.into_iter().flatten().map(|slot| (slot.job.clone(), slot)).collect();
        let state = self.inner.state.lock().await;
        Ok(state.jobs.values().map(|held| view::job(held, last.get(&held.row.id))).collect())
    }

    /// One job.
    pub async fn get(&self, id: &str) -> Result<Value, Error> {
        let owner = id.to_owned();
        let last = self.inner.bus.store().read(move |conn| rows::slots(conn, &owner, None, None, 1)).await?;
        let state = self.inner.state.lock().await;
        Ok(view::job(held(&state, id)?, last.first()))
    }

    /// The ledger of a job, newest first: rows as they are shown, each with its number.
    pub async fn runs(
        &self,
        id: &str,
        status: Option<Status>,
        before: Option<i64>,
        limit: usize,
    ) -> Result<Vec<(i64, Value)>, Error> {
        held(&*self.inner.state.lock().await, id)?;
        let owner = id.to_owned();
        let slots = self.inner.bus.store().read(move |conn| rows::slots(conn, &owner, status, before, limit)).await?;
        Ok(slots.iter().map(|slot| (slot.id, view::run(slot))).collect())
    }

    /// The next `count` slots of a job, whether it is on or off.
    pub async fn next(&self, id: &str, count: usize) -> Result<Value, Error> {
        let (job, after_ms) = {
            let state = self.inner.state.lock().await;
            let held = held(&state, id)?;
            (held.job.clone(), held.row.cursor_ms.max(self.inner.now_ms()))
        };
        let id = id.to_owned();
        tokio::task::spawn_blocking(move || view::preview(&id, &job, after_ms, count))
            .await
            .map_err(Error::internal("previewing a cron job"))
    }

    /// Adds a job. `already_exists` when there is one of this id.
    pub async fn add(
        &self,
        id: &str,
        fields: Map<String, Value>,
        dry_run: bool,
        audit: Audit,
    ) -> Result<Changed, Error> {
        let job = self.checked(Some(id), fields)?;
        let mut state = self.inner.state.lock().await;
        if state.jobs.contains_key(id) {
            let reason = format!("There is a cron job '{id}' already. Update it, or choose another id.");
            return Err(Error::conflict("already_exists", reason));
        }
        if state.jobs.len() >= JOBS_MAX {
            let reason = format!("There are {JOBS_MAX} cron jobs, which is the most. Remove one first.");
            return Err(Error::conflict("invalid_state", reason));
        }
        let row = defined(id.to_owned(), Origin::Api, &job, None, self.inner.now_ms());
        self.store(&mut state, row, job, dry_run, audit).await
    }

    /// Changes a job by a merge patch (RFC 7396). Of one that is defined elsewhere only `enabled` can be changed.
    pub async fn update(
        &self,
        id: &str,
        patch: Map<String, Value>,
        dry_run: bool,
        audit: Audit,
    ) -> Result<Changed, Error> {
        let mut state = self.inner.state.lock().await;
        let held = held(&state, id)?;
        if patch.get("id").is_some_and(|given| given != id) {
            return Err(Error::invalid("id", "cannot be changed. Add a job under the other id, and remove this one."));
        }
        let patch: Map<String, Value> = patch.into_iter().filter(|(name, _)| name != "id").collect();
        let now_ms = self.inner.now_ms();
        if held.row.origin != Origin::Api {
            let row = switched(held, &patch, now_ms)?;
            let job = held.job.clone();
            return self.store(&mut state, row, job, dry_run, audit).await;
        }
        let mut definition = held.job.to_value();
        definition["enabled"] = held.row.enabled.into();
        // One policy takes the place of another; its parts do not mix.
        if patch.contains_key("misfire") {
            definition["misfire"] = Value::Null;
        }
        // A job runs one or the other.
        for (given, other) in [("skill", "workflow"), ("workflow", "skill")] {
            if patch.get(given).is_some_and(|value| !value.is_null()) && !patch.contains_key(other) {
                definition[other] = Value::Null;
            }
        }
        let Value::Object(fields) = merge(definition, Value::Object(patch)) else { return Err(not_an_object()) };
        let job = self.checked(None, fields)?;
        let row = defined(id.to_owned(), Origin::Api, &job, Some(held), now_ms);
        self.store(&mut state, row, job, dry_run, audit).await
    }

    async fn store(
        &self,
        state: &mut State,
        row: JobRow,
        job: Job,
        dry_run: bool,
        audit: Audit,
    ) -> Result<Changed, Error> {
        if dry_run {
            let mut shown = view::job(&Held::new(row.clone(), job.clone()), None);
            let preview = view::preview(&row.id, &job, self.inner.now_ms(), PREVIEW);
            shown["next"] = preview["items"].clone();
            shown["dry_run"] = true.into();
            return Ok(Changed { shown, dry_run });
        }
        let mut held = Held::new(row.clone(), job.clone());
        if let Some(before) = state.jobs.get(&row.id) {
            held.running.clone_from(&before.running);
            held.queued.clone_from(&before.queued);
        }
        let shown = view::job(&held, None);
        let (stored, answer) = (row.clone(), shown.clone());
        let written = self.inner.bus.store().write(move |tx| {
            rows::put(tx, &stored)?;
            audit(tx, &answer)
        });
        written.await.inspect_err(|_| self.doubt(state))?;
        state.replace(row, job);
        self.inner.link(state).await?;
        self.inner.hint.notify_one();
        Ok(Changed { shown, dry_run })
    }

    /// Removes a job; its ledger stays.
    pub async fn remove(&self, id: &str, audit: Audit) -> Result<Value, Error> {
        let mut state = self.inner.state.lock().await;
        if held(&state, id)?.row.origin != Origin::Api {
            return Err(elsewhere(held(&state, id)?, "Disable it, or remove it there."));
        }
        let (owner, now_ms) = (id.to_owned(), self.inner.now_ms());
        let shown = json!({ "id": id, "deleted": true });
        let answer = shown.clone();
        let written = self.inner.bus.store().write(move |tx| {
            rows::remove(tx, &owner, now_ms)?;
            audit(tx, &answer)
        });
        written.await.inspect_err(|_| self.doubt(&mut state))?;
        state.jobs.remove(id);
        self.inner.link(&mut state).await?;
        self.inner.hint.notify_one();
        Ok(shown)
    }

    /// Runs a job now, on or off, beside its plan. Its overlap decides while another run goes on: `in_progress` when it
    /// is to be left out.
    pub async fn run_now(&self, id: &str, audit: Audit) -> Result<Value, Error> {
        let mut state = self.inner.state.lock().await;
        let now_ms = self.inner.now_ms();
        let held = state.jobs.get_mut(id).ok_or_else(|| Error::not_found("cron job", id))?;
        if self.inner.target(&held.job) == Err("workflow_missing") {
            let workflow = held.job.workflow.clone().unwrap_or_default();
            let reason = format!("The workflow '{workflow}' of this job is not there. Put it, or update the job.");
            return Err(Error::conflict("invalid_state", reason));
        }
        if let Err(reason) = self.inner.target(&held.job) {
            let skill = held.job.skill.clone().unwrap_or_default();
            let why = if reason == "skill_off" {
                "may not run: enable it first"
            } else {
                "is not there: add it, or update the job"
            };
            return Err(Error::conflict("invalid_state", format!("The skill '{skill}' of this job {why}.")));
        }
        let busy = !held.running.is_empty() || !held.queued.is_empty();
        let queue = match held.job.overlap {
            Overlap::Skip if busy => {
                return Err(Error::conflict(
                    "in_progress",
                    format!(
                        "A run of '{id}' is going on; it allows no other. Wait for its end, or change its overlap."
                    ),
                ));
            }
            Overlap::QueueOne if !held.queued.is_empty() => {
                return Err(Error::conflict(
                    "in_progress",
                    format!("A run of '{id}' waits already; it allows one. Wait for its end."),
                ));
            }
            Overlap::Allow if !plan::has_room(Overlap::Allow, held.running.len()) => {
                let reason = format!(
                    "{} runs of '{id}' are going on, which is the most. Wait for the end of some.",
                    plan::RUNS_MAX
                );
                return Err(Error::conflict("in_progress", reason));
            }
            Overlap::QueueOne => busy,
            Overlap::Skip | Overlap::Allow => false,
        };
        let slot = manual(id, now_ms, if queue { Status::Queued } else { Status::Running });
        let shown = json!({ "id": id, "event_id": (!queue).then_some(&slot.key), "run": view::run(&slot) });
        let (row, answer) = (slot.clone(), shown.clone());
        let change: StateWrite = Box::new(move |tx: &mut Tx<'_>| {
            rows::add(tx, &row)?;
            audit(tx, &answer)
        });
        let event = event_of(id, &held.job, &slot);
        let stored = match queue {
            true => self.inner.bus.store().write(change).await,
            false => self.inner.publish(&source_of(id), vec![event], change).await,
        };
        match stored {
            Ok(()) if queue => held.queued.push_back(slot),
            Ok(()) => held.running.push(slot),
            Err(error) => {
                self.doubt(&mut state);
                return Err(error);
            }
        }
        self.inner.hint.notify_one();
        Ok(shown)
    }

    /// A change failed, and may have been stored all the same.
    fn doubt(&self, state: &mut State) {
        state.unsure = true;
        self.inner.hint.notify_one();
    }

    /// Reads a definition from a request; `id` is checked with it.
    fn checked(&self, id: Option<&str>, fields: Map<String, Value>) -> Result<Job, Error> {
        let mut wrong = Vec::new();
        if let Some(Err(reason)) = id.map(check_id) {
            wrong.push(FieldError { field: "id".to_owned(), reason });
        }
        let read = Job::read(fields);
        if let Ok(job) = &read
            && self.inner.target(job) == Err("skill_missing")
        {
            let skill = job.skill.as_deref().unwrap_or_default();
            let reason = format!("there is no skill '{skill}' that could run; `aman skill list` shows what there is.");
            wrong.push(FieldError { field: "skill".to_owned(), reason });
        }
        if let Ok(job) = &read
            && self.inner.target(job) == Err("workflow_missing")
        {
            let workflow = job.workflow.as_deref().unwrap_or_default();
            let reason = format!("there is no workflow '{workflow}'; `aman workflow list` shows what there is.");
            wrong.push(FieldError { field: "workflow".to_owned(), reason });
        }
        match read {
            Ok(job) if wrong.is_empty() => Ok(job),
            Ok(_) => Err(Error::Invalid { code: "invalid_input", fields: wrong }),
            Err(more) => {
                wrong.extend(more);
                Err(Error::Invalid { code: "invalid_input", fields: wrong })
            }
        }
    }
}

/// The row of a job from elsewhere, switched on or off.
fn switched(held: &Held, patch: &Map<String, Value>, now_ms: i64) -> Result<JobRow, Error> {
    let enabled = match patch.get("enabled") {
        Some(Value::Bool(enabled)) if patch.len() == 1 => *enabled,
        Some(other) if !other.is_boolean() => return Err(Error::invalid("enabled", "must be true or false.")),
        _ => return Err(elsewhere(held, "Here it can be enabled and disabled only.")),
    };
    let cursor_ms = if held.row.enabled { held.row.cursor_ms } else { now_ms };
    Ok(JobRow { enabled, cursor_ms, failures: 0, note: None, updated_ms: now_ms, ..held.row.clone() })
}

fn elsewhere(held: &Held, what: &str) -> Error {
    let place = if held.row.origin == Origin::Skill && held.job.workflow.is_some() {
        "its workflow's schedule"
    } else if held.row.origin == Origin::Skill {
        "its skill's SKILL.md"
    } else {
        "the configuration file"
    };
    Error::conflict("invalid_state", format!("The job '{}' is defined in {place}. {what}", held.row.id))
}

fn not_an_object() -> Error {
    Error::invalid("body", "must be a JSON object.")
}

/// RFC 7396: objects merge, null removes, everything else replaces.
fn merge(target: Value, patch: Value) -> Value {
    let Value::Object(patch) = patch else { return patch };
    let mut merged = if let Value::Object(target) = target { target } else { Map::new() };
    for (name, value) in patch {
        if value.is_null() {
            merged.remove(&name);
        } else {
            let before = merged.remove(&name).unwrap_or(Value::Null);
            merged.insert(name, merge(before, value));
        }
    }
    Value::Object(merged)
}
