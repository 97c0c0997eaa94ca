//! Where jobs come from: the database, the configuration file, the skills. And who gets their events.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Held, Inner, State, source_of};
use crate::bus::Rule;
use crate::clock::Millis;
use crate::config::Applied;
use crate::error::Error;
use crate::event::TypePattern;
use crate::expr::Expr;
use crate::schedule::Job;
use crate::store::cron::{self as rows, JobRow, Origin, Status};

/// The name under which the rules of jobs are linked to skills.
const OWNER: &str = "cron";

impl Inner {
    /// Reads every job from the database. One that cannot be read is told and left out.
    pub(super) async fn load(&self, state: &mut State) -> Result<(), Error> {
        for row in self.bus.store().read(rows::jobs).await? {
            match read(&row.definition) {
                Ok(job) => drop(state.jobs.insert(row.id.clone(), Held::new(row, job))),
                Err(reason) => {
                    tracing::warn!(job = row.id, reason, "A stored cron job cannot be read and is left out.")
                }
            }
        }
        Ok(())
    }

    /// Gives the open slots of the ledger back to their jobs.
    pub(super) async fn adopt_open(&self, state: &mut State) -> Result<(), Error> {
        for slot in self.bus.store().read(rows::open).await? {
            let Some(held) = state.jobs.get_mut(&slot.job) else { continue };
            match slot.status {
                Status::Queued => held.queued.push_back(slot),
                _ => held.running.push(slot),
            }
        }
        Ok(())
    }

    /// Reads everything again if a change failed: what was stored all the same would be known to nobody.
    pub(super) async fn be_sure(&self, state: &mut State) -> Result<(), Error> {
        if !state.unsure {
            return Ok(());
        }
        let mut read = State { linked: std::mem::take(&mut state.linked), ..State::default() };
        let all = match self.load(&mut read).await {
            Ok(()) => self.adopt_open(&mut read).await,
            failed => failed,
        };
        if all.is_err() {
            state.linked = read.linked;
            return all;
        }
        *state = read;
        Ok(())
    }

    /// Takes over the jobs of the configuration file, and drops those that it does not name any more.
    pub(super) async fn take_configured(&self, state: &mut State, jobs: &[(String, Job)]) -> Result<(), Error> {
        let wanted = jobs.iter().map(|(id, job)| (id.clone(), job.clone())).collect();
        self.take(state, Origin::Config, wanted).await
    }

    /// Takes over the plans of the skills, when their consumers changed since the last time.
    pub(super) async fn take_skills(&self, state: &mut State) -> Result<(), Error> {
        let count = *self.bus.consumers().borrow();
        if state.synced == Some(count) {
            return Ok(());
        }
        let mut wanted = BTreeMap::new();
        for entry in self.bus.router().entries() {
            let Some((kind, name)) = entry.spec.name.split_once('/') else { continue };
            let Some(plan) = entry.consumer.plan().filter(|_| ["skill", "workflow"].contains(&kind)) else { continue };
            let definition = json!({ "expression": plan.expression, "timezone": plan.timezone, kind: name });
            match read(&definition.to_string()) {
                // No id that a request may choose has a colon.
                Ok(job) => drop(wanted.insert(format!("{kind}:{name}"), job)),
                Err(reason) => tracing::warn!(kind, name, reason, "The time plan of a consumer cannot be read."),
            }
        }
        self.take(state, Origin::Skill, wanted).await?;
        state.synced = Some(count);
        Ok(())
    }

    async fn take(&self, state: &mut State, origin: Origin, wanted: BTreeMap<String, Job>) -> Result<(), Error> {
        let now_ms = self.now_ms();
        let gone: Vec<String> = state
            .jobs
            .values()
            .filter(|held| held.row.origin == origin && !wanted.contains_key(&held.row.id))
            .map(|held| held.row.id.clone())
            .collect();
        let mut changed = Vec::new();
        for (id, job) in wanted {
            let before = state.jobs.get(&id);
            let definition = job.to_value().to_string();
            if before.is_some_and(|held| held.row.origin == origin && held.row.definition == definition) {
                continue;
            }
            if before.is_some_and(|held| held.row.origin != origin) {
                // What somebody added stays: it would be lost once the file names it no more.
                let origin = origin.name();
                tracing::warn!(
                    job = id,
                    origin,
                    "There is a cron job of this id already; the one defined here is left out."
                );
                continue;
            }
            changed.push((defined(id, origin, &job, before, now_ms), job));
        }
        if gone.is_empty() && changed.is_empty() {
            return self.link(state).await;
        }
        let (rows, removed): (Vec<JobRow>, _) = (changed.iter().map(|(row, _)| row.clone()).collect(), gone.clone());
        self.bus
            .store()
            .write(move |tx| {
                removed.iter().try_for_each(|id| rows::remove(tx, id, now_ms))?;
                rows.iter().try_for_each(|row| rows::put(tx, row))
            })
            .await?;
        for id in gone {
            tracing::info!(job = id, "A cron job is gone from where it was defined.");
            state.jobs.remove(&id);
        }
        for (row, job) in changed {
            state.replace(row, job);
        }
        self.link(state).await
    }

    /// Has the bus bring the events of jobs to the skills they are for.
    pub(super) async fn link(&self, state: &mut State) -> Result<(), Error> {
        let wanted: Vec<(String, String, String)> = state
            .jobs
            .values()
            .filter_map(|held| {
                let skill = held.job.skill.as_ref().map(|skill| format!("skill/{skill}"));
                let consumer = skill.or_else(|| Some(format!("workflow/{}", held.job.workflow.as_ref()?)))?;
                Some((consumer, held.job.kind.clone(), source_of(&held.row.id)))
            })
            .collect();
        if wanted == state.linked {
            return Ok(());
        }
        let mut links = Vec::new();
        for (consumer, kind, source) in &wanted {
            let pattern = TypePattern::parse(kind).map_err(|reason| Error::invalid("type", reason))?;
            let condition = format!(".source == {}", Value::from(source.as_str()));
            let condition = Expr::compile(&condition).map_err(|error| Error::invalid("skill", error.message))?;
            links.push((consumer.clone(), Rule { pattern, condition: Some(condition) }));
        }
        self.bus.link(OWNER, links).await?;
        state.linked = wanted;
        Ok(())
    }
}

impl State {
    /// What putting the jobs of the configuration file in force would change.
    pub(super) fn plan(&self, configured: &[(String, Job)]) -> Applied {
        let held = self.jobs.values().filter(|held| held.row.origin == Origin::Config);
        let before = held.map(|held| (held.row.id.as_str(), &held.row.definition));
        let wanted: Vec<(&str, String)> =
            configured.iter().map(|(id, job)| (id.as_str(), job.to_value().to_string())).collect();
        Applied::plan("cron", before, wanted.iter().map(|(id, definition)| (*id, definition)))
    }

    /// Puts a job in the place of the one of the same id; what that one has going on goes on.
    pub(super) fn replace(&mut self, row: JobRow, job: Job) {
        let mut held = Held::new(row, job);
        if let Some(before) = self.jobs.remove(&held.row.id) {
            held.running = before.running;
            held.queued = before.queued;
        }
        self.jobs.insert(held.row.id.clone(), held);
    }
}

/// The row of a job that is new, or defined anew: switched on or off as it says, and with a new plan from now on.
pub(super) fn defined(id: String, origin: Origin, job: &Job, before: Option<&Held>, now_ms: Millis) -> JobRow {
    let same_plan = |held: &&Held| {
        held.job.expression == job.expression
            && held.job.timezone == job.timezone
            && held.row.enabled
            && held.row.origin == origin
    };
    JobRow {
        id,
        origin,
        definition: job.to_value().to_string(),
        enabled: job.enabled,
        note: None,
        failures: 0,
        cursor_ms: before.filter(same_plan).map_or(now_ms, |held| held.row.cursor_ms),
        created_ms: before.map_or(now_ms, |held| held.row.created_ms),
        updated_ms: now_ms,
    }
}

fn read(definition: &str) -> Result<Job, String> {
    let fields = serde_json::from_str(definition).map_err(|error| error.to_string())?;
    Job::read(fields).map_err(|wrong| {
        wrong.into_iter().map(|one| format!("{}: {}", one.field, one.reason)).collect::<Vec<_>>().join(" ")
    })
}
