//! Stores where an instance has come to, in one transaction with everything that others must learn of it.

use std::sync::Arc;

use serde_json::json;

use super::{Driver, GENERATIONS_MAX, RETRY};
use crate::bus::{Action, NewNotification, Notices, Origin, OwnEvent, Publish, Severity, StateWrite};
use crate::clock::Millis;
use crate::error::Error;
use crate::event::NewEvent;
use crate::id::TraceId;
use crate::store::Tx;
use crate::store::workflows::{self as rows, InstanceRow, Kind};
use crate::workflow::{Child, Definition, Ended, Fault, Machine, Schedule, Signal, State, Wishes, emitted};
use crate::workflows::lifecycle::{self, Change};
use crate::workflows::record::{Moment, end_of, faulted};
use crate::workflows::{Current, Inner, fresh, spans};

impl Inner {
    /// Ends an instance that cannot go on from where it stands, for reasons that its workflow cannot catch.
    pub(super) async fn give_up(self: &Arc<Self>, row: &InstanceRow, error: &Error) -> Result<(), Error> {
        let fault = Fault::runtime(error.to_string()).at("/");
        let shown = crate::redact::json(&fault.to_value().to_string()).into_owned();
        let told = end_of(row.parent_key.as_deref(), &Ended::Faulted(fault.clone()), row.trust);
        let mut own = vec![self.faulted(row, &fault).await];
        if let Ok(definition) = self.definition(&row.digest).await {
            own.extend(self.events_of(row, &definition, vec![Change::faulted(&fault, self.now_ms())]).await);
        }
        let (number, workflow, now_ms) = (row.number, row.workflow.clone(), self.now_ms());
        let (parent, after) = (row.parent.filter(|_| row.awaited), self.after(row));
        let change = move |tx: &mut Tx<'_>| {
            if !rows::fault(tx, number, &workflow, &shown, now_ms)? {
                return Ok(false);
            }
            if let Some(parent) = parent {
                rows::bring(tx, parent, Kind::Ended, &told)?;
            }
            if let Some(next_ms) = after {
                rows::set_next(tx, &workflow, Some(next_ms))?;
            }
            own.iter().try_for_each(|event| event.store(tx)).map(|()| true)
        };
        if self.bus.store().write(change).await? {
            spans::ended(self, row, "faulted", Some(&fault));
            tracing::warn!(workflow = row.workflow, instance = row.id, %error, "A workflow was given up.");
            self.planned(&row.workflow, after);
            self.closed(&row.workflow).await?;
        }
        self.hint.notify_one();
        Ok(())
    }

    /// The event that tells of a fault, to be stored with it.
    async fn faulted(&self, row: &InstanceRow, fault: &Fault) -> OwnEvent {
        let principal = format!("workflow/{}", row.workflow);
        let origin = Origin { principal, trust: row.trust, internal: true };
        let event = NewEvent { parent: spans::id(self, row), ..faulted(row, fault) };
        self.bus.own_event(event, origin).await
    }

    /// When a workflow that starts again after its end does so, now that this instance of it ends.
    pub(in crate::workflows) fn after(&self, row: &InstanceRow) -> Option<Millis> {
        let current = self.current(&row.workflow).ok()?;
        match current.definition.schedule {
            Some(Schedule::After(ms)) if row.parent.is_none() && current.row.next_ms.is_none() => {
                Some(self.now_ms().saturating_add(ms))
            }
            _ => None,
        }
    }

    /// It is stored when a workflow starts next.
    pub(in crate::workflows) fn planned(&self, workflow: &str, next_ms: Option<Millis>) {
        let Some(next_ms) = next_ms else { return };
        self.held(|held| {
            if let Some(current) = held.current.get_mut(workflow) {
                current.row.next_ms = Some(next_ms);
            }
        });
        self.hint.notify_one();
    }
}

/// Everything that commits together.
struct Commit {
    moment: Moment,
    /// Each with the key of the one in whose place it is started.
    children: Vec<(InstanceRow, Option<String>)>,
    /// What is heard of children that cannot be started.
    refused: Vec<String>,
    questions: Notices,
    /// Events that tell of it.
    own: Vec<OwnEvent>,
    after: Option<Millis>,
    /// The keys of children that are still waited for, as JSON, when there is one that is not any more.
    kept: Option<String>,
}

impl Driver {
    /// Stores where it has come to, with everything it wishes for. False when it was ended from outside.
    pub(super) async fn commit(&mut self, moment: Moment) -> Result<bool, Error> {
        let commit = match self.gather(moment).await {
            Err(Error::Busy { .. }) => return Ok(false),
            gathered => Arc::new(gathered?),
        };
        let mut may_be_stored = false;
        loop {
            match self.write(&commit).await {
                Ok(open) => {
                    // What was seen is gone with this, and SQLite gives its numbers again.
                    self.seen = 0;
                    if !(commit.children.is_empty() && commit.refused.is_empty()) {
                        self.inner.hint.notify_one();
                    }
                    self.inner.planned(&self.row.workflow, commit.after.filter(|_| open || may_be_stored));
                    return Ok(open);
                }
                Err(Error::Busy { code: "draining", .. }) => return Ok(false),
                Err(Error::Busy { .. }) => {
                    may_be_stored = true;
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

    async fn gather(&mut self, mut moment: Moment) -> Result<Commit, Error> {
        let advance = &mut moment.advance;
        advance.seen = self.seen;
        let wanted = advance.listeners.take().unwrap_or_default();
        advance.listeners = Some(wanted).filter(|wanted| *wanted != self.listeners);
        let (mut children, mut refused) = (Vec::new(), Vec::new());
        for child in &moment.wishes.children {
            match self.child_at_last(child).await? {
                Ok(row) => children.push((row, child.after.clone())),
                // Whoever waits for it hears why.
                Err(fault) => {
                    let (parent, error) = (&self.row.id, &fault.detail);
                    tracing::warn!(parent, workflow = child.name, error, "A workflow could not start another one.");
                    refused.push(json!({ "key": child.key, "error": fault }).to_string());
                }
            }
        }
        let left = self.awaited.iter().any(|key| !moment.awaited.contains(key));
        self.awaited.clone_from(&moment.awaited);
        let ended = moment.advance.status.is_ended();
        let definition = Arc::clone(&self.machine().definition);
        let changes = std::mem::take(&mut moment.changes);
        let mut own = self.inner.events_of(&self.row, &definition, changes).await;
        if let Some(fault) = &moment.fault {
            own.push(self.inner.faulted(&self.row, fault).await);
        }
        Ok(Commit {
            questions: self.questions(&moment.wishes).await,
            own,
            after: if ended { self.inner.after(&self.row) } else { None },
            kept: left.then(|| json!(moment.awaited).to_string()),
            children,
            refused,
            moment,
        })
    }

    /// As [`Driver::child`], however busy the store is: what was done outside is not forgotten for that.
    async fn child_at_last(&self, child: &Child) -> Result<Result<InstanceRow, Fault>, Error> {
        loop {
            match self.child(child).await {
                Err(Error::Busy { code, .. }) if code != "draining" && !self.inner.abort.is_cancelled() => {
                    tokio::time::sleep(RETRY).await;
                }
                made => return made,
            }
        }
    }

    /// The instance that it starts, or why that cannot be.
    async fn child(&self, child: &Child) -> Result<Result<InstanceRow, Fault>, Error> {
        let number = self.row.number;
        let depth = self.inner.bus.store().read(move |conn| rows::generations(conn, number)).await?;
        if depth >= GENERATIONS_MAX {
            return Ok(Err(Fault::runtime(format!("more than {GENERATIONS_MAX} workflows started each other"))));
        }
        let missing = |what: String| Ok(Err(Fault::configuration(what)));
        let current = match self.inner.current(&child.name) {
            Ok(current) => current,
            Err(error) => return missing(error.to_string()),
        };
        let definition = if child.version == "latest" || child.version == current.definition.version {
            Arc::clone(&current.definition)
        } else {
            let name = child.name.clone();
            let all = self.inner.bus.store().read(move |conn| rows::definitions(conn, &name)).await?;
            let Some(found) = all.into_iter().find(|row| row.version == child.version) else {
                return missing(format!("'{}' has no version {}", child.name, child.version));
            };
            match self.inner.definition(&found.digest).await {
                Ok(definition) => definition,
                Err(error @ (Error::NotFound { .. } | Error::Invalid { .. })) => return missing(error.to_string()),
                Err(error) => return Err(error),
            }
        };
        if definition.namespace != child.namespace {
            return missing(format!(
                "'{}' is in the namespace '{}', not '{}'",
                child.name, definition.namespace, child.namespace
            ));
        }
        let row = fresh(
            &Current { row: current.row, definition: Arc::clone(&definition) },
            &child.input,
            self.inner.now_ms(),
        );
        Ok(Ok(InstanceRow {
            state: self.inherited(child, &row, definition).await?,
            trace: self.row.trace.clone(),
            trust: self.row.trust,
            principal: self.row.principal.clone(),
            cause: self.row.cause.clone(),
            parent: Some(self.row.number),
            parent_key: Some(child.key.clone()),
            awaited: child.awaited,
            dedup: Some(child.key.clone()),
            ..row
        }))
    }

    /// Where an instance begins that takes the place of one that was cut off: with the keys of what that one did outside, so
    /// that the other side can tell that it is the same.
    async fn inherited(
        &self,
        child: &Child,
        row: &InstanceRow,
        definition: Arc<Definition>,
    ) -> Result<Option<String>, Error> {
        let (Some(key), name) = (child.after.clone(), child.name.clone()) else { return Ok(None) };
        let before = self.inner.bus.store().read(move |conn| rows::by_key(conn, &name, &key)).await?;
        // In another definition the same place is another one.
        let Some(text) = before.filter(|before| before.digest == row.digest).and_then(|before| before.state) else {
            return Ok(None);
        };
        let (input, created_ms) = (child.input.clone(), row.created_ms);
        let begun = tokio::task::spawn_blocking(move || {
            let open = Machine::new(definition, serde_json::from_str(&text).ok()?).left_open();
            let state = State { open, ..State::new(input, created_ms) };
            if state.open.is_empty() { None } else { serde_json::to_string(&state).ok() }
        });
        begun.await.map_err(Error::internal("looking at an instance that was cut off"))
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
        self.inner
            .bus
            .notices((&consumer, "workflow"), self.row.trust, lifecycle::cause(&self.inner, &self.row), asked.collect())
            .await
    }

    async fn write(&mut self, commit: &Arc<Commit>) -> Result<bool, Error> {
        let (number, workflow, now_ms) = (self.row.number, self.row.workflow.clone(), self.inner.now_ms());
        let parent = self.row.parent.filter(|_| self.row.awaited);
        let (open, answer) = tokio::sync::oneshot::channel();
        let stored = Arc::clone(commit);
        let change: StateWrite = Box::new(move |tx: &mut Tx<'_>| {
            if !rows::advance(tx, &stored.moment.advance, &workflow, now_ms)? {
                // An error undoes everything that came with it.
                return Err(Error::not_found("open instance", number.to_string()));
            }
            let may_try_again = stored.moment.advance.status != rows::Status::Completed;
            let cancel = |kept: &String| rows::cancel_below(tx, number, kept, may_try_again, now_ms);
            let left = stored.kept.as_ref().map(cancel).transpose()?;
            for (child, after) in &stored.children {
                rows::start(tx, child)?;
                if let Some(key) = after {
                    rows::replaced(tx, &child.workflow, key)?;
                }
            }
            for body in &stored.refused {
                rows::bring(tx, number, Kind::Ended, body)?;
            }
            stored.questions.store(tx, now_ms)?;
            if let (Some(parent), Some(told)) = (parent, &stored.moment.told) {
                rows::bring(tx, parent, Kind::Ended, told)?;
            }
            if let Some(next_ms) = stored.after {
                rows::set_next(tx, &workflow, Some(next_ms))?;
            }
            stored.own.iter().try_for_each(|event| event.store(tx))?;
            let held = rows::is_held_now(tx, number)?;
            let _heard = open.send((held, left.unwrap_or_default()));
            Ok(())
        });
        let events = self.events(&commit.moment.wishes);
        let done = if events.is_empty() {
            self.inner.bus.store().write(change).await
        } else {
            let origin =
                Origin { principal: format!("workflow/{}", self.row.workflow), trust: self.row.trust, internal: false };
            let publish = Publish { events, origin, idempotency: None, state: Some(change) };
            self.inner.bus.publish_caused(publish, lifecycle::cause(&self.inner, &self.row)).await.map(drop)
        };
        match done {
            Err(Error::NotFound { kind: "open instance", .. }) => Ok(false),
            Err(error) => Err(error),
            Ok(()) => {
                spans::tasks(&self.inner, &self.row, &commit.moment.advance.steps);
                let (held, left) = answer.await.unwrap_or_default();
                self.row.hold = held;
                self.inner.end_drivers(&left).into_iter().for_each(|(number, slot)| self.inner.leave(number, slot));
                self.inner.all_closed(&left).await;
                self.inner.tell_cancelled(&left).await;
                if let Some(listeners) = &commit.moment.advance.listeners {
                    self.listeners.clone_from(listeners);
                }
                Ok(true)
            }
        }
    }

    fn events(&self, wishes: &Wishes) -> Vec<NewEvent> {
        let mut events: Vec<NewEvent> = wishes.events.iter().map(emitted).collect();
        let trace: Option<TraceId> = self.row.trace.parse().ok();
        events.iter_mut().for_each(|event| event.trace = trace);
        events
    }

    /// Tells of its end.
    pub(super) async fn ended(&mut self) -> Result<(), Error> {
        let (workflow, instance) = (self.row.workflow.clone(), self.row.id.clone());
        match self.machine().state.ended.clone() {
            Some(Ended::Faulted(fault)) => {
                spans::ended(&self.inner, &self.row, "faulted", Some(&fault));
                tracing::warn!(workflow, instance, error = fault.detail, "A workflow faulted.");
            }
            _ => {
                spans::ended(&self.inner, &self.row, "completed", None);
                tracing::info!(workflow, instance, "A workflow completed.");
            }
        }
        self.inner.closed(&workflow).await?;
        self.inner.hint.notify_one();
        Ok(())
    }
}
