//! What plugins ask of workflows and of the person: checked here, done at once by [`Api`], kept by
//! [`Staging`](super::Staging) until the work ends.

use std::sync::Arc;

use aman_plugin_host::{
    Caller, Error as Refusal, Instance, InvalidField, NewInstance as Wants, Notification, Severity as Loud,
    SignalEvent, Started, Status as Stands,
};
use serde_json::Value;

use super::Api;
use super::convert::{refusal, trust_from};
use crate::bus::{Action, NewInstance, NewNotification, NewSignal, Severity, Wanted};
use crate::error::Error;
use crate::event::{Event, Trust, check_type, read_json};
use crate::package::WorkflowRight;
use crate::redact;
use crate::store::Tx;
use crate::store::workflows::{self as rows, Change, InstanceRow, Status};

/// Longest key of a start, in bytes.
const KEY_BYTES_MAX: usize = 200;

pub(super) fn invalid(field: &str, reason: impl Into<String>) -> Refusal {
    Refusal::Invalid(InvalidField { field: field.to_owned(), reason: reason.into() })
}

/// A JSON text of a plugin as a value, without secrets.
fn json(field: &str, text: Option<&str>) -> Result<Value, Refusal> {
    let Some(text) = text else { return Ok(Value::Null) };
    let mut value: Value =
        read_json(text.as_bytes()).map_err(|error| invalid(field, format!("is no JSON that can be kept: {error}")))?;
    redact::value(&mut value);
    Ok(value)
}

/// The message that a plugin means, if it keeps to the rules.
pub(super) fn notification(sent: Notification) -> Result<NewNotification, Refusal> {
    let notification = NewNotification {
        title: sent.title,
        message: sent.message,
        severity: match sent.severity {
            Loud::Info => Severity::Info,
            Loud::Warning => Severity::Warning,
            Loud::Error => Severity::Error,
            Loud::Critical => Severity::Critical,
        },
        category: sent.category,
        action: sent.action.map(|action| Action { label: action.label, url: action.url }),
        fingerprint: sent.fingerprint,
    };
    notification.check().map_err(|(field, reason)| invalid(field, reason))?;
    Ok(notification)
}

/// An instance as plugins see it.
fn instance(row: InstanceRow) -> Instance {
    Instance {
        status: match row.status {
            status if row.hold && !status.is_ended() => Stands::Paused,
            Status::Pending => Stands::Pending,
            Status::Running => Stands::Running,
            Status::Waiting => Stands::Waiting,
            Status::Completed => Stands::Completed,
            Status::Faulted => Stands::Faulted,
            Status::Cancelled => Stands::Cancelled,
        },
        id: row.id,
        workflow: row.workflow,
        input: row.input,
        output: row.output,
        error: row.error,
        created_ms: row.created_ms.max(0).unsigned_abs(),
        updated_ms: row.updated_ms.max(0).unsigned_abs(),
        extensions: Vec::new(),
    }
}

impl Api {
    /// Denies what the manifest does not ask for.
    fn may(&self, right: WorkflowRight, workflow: &str) -> Result<(), Refusal> {
        let grants = &self.manifest.permissions.workflows;
        if grants.iter().any(|grant| grant.may.contains(&right) && grant.covers(workflow)) {
            return Ok(());
        }
        Err(Refusal::Denied(format!("the manifest does not ask to {} the workflow '{workflow}'", right.name())))
    }

    /// How far what a caller asks for is trusted: no further than plugins, nor than the event that led to it.
    pub(super) fn trust(caller: &Caller, cause: Option<&Event>) -> Trust {
        let trust = trust_from(caller.trust).min(Trust::Plugin);
        cause.map_or(trust, |event| trust.min(event.trust))
    }

    /// The instance that the plugin wants.
    pub(super) fn new_instance(
        &self,
        caller: &Caller,
        wants: Wants,
        cause: Option<&Arc<Event>>,
    ) -> Result<NewInstance, Refusal> {
        self.may(WorkflowRight::Start, &wants.workflow)?;
        if wants.dedup_key.as_ref().is_some_and(|key| key.is_empty() || key.len() > KEY_BYTES_MAX) {
            return Err(invalid("dedup-key", format!("must have 1 to {KEY_BYTES_MAX} bytes")));
        }
        Ok(NewInstance {
            input: json("input", wants.input.as_deref())?,
            workflow: wants.workflow,
            // No other plugin, nor anybody else, has keys that begin so.
            dedup: wants.dedup_key.map(|key| format!("{}/{key}", self.source())),
            principal: self.source(),
            trust: Api::trust(caller, cause.map(AsRef::as_ref)),
            trace: caller.trace_id.parse().map_err(|_| invalid("trace-id", "is no trace"))?,
            cause: cause.cloned(),
            span: None,
        })
    }

    /// The instance that has this key already.
    pub(super) async fn started_before(&self, wanted: &NewInstance) -> Result<Option<Started>, Refusal> {
        let Some(key) = wanted.dedup.clone() else { return Ok(None) };
        let workflow = wanted.workflow.clone();
        let id = self.bus().store().read(move |conn| rows::with_key(conn, &workflow, &key)).await.map_err(refusal)?;
        Ok(id.map(|id| Started { id, is_new: false }))
    }

    /// Makes a change of what is wanted; on the daemon's runtime, since expressions may have to be looked at.
    pub(super) async fn prepared(&self, wanted: Wanted) -> Result<Change, Refusal> {
        let bus = self.bus().clone();
        let prepared = self.services.inner.runtime.spawn(async move { bus.prepare_instance(wanted).await }).await;
        prepared.map_err(|error| refusal(Error::internal("preparing a workflow for a plugin")(error)))?.map_err(refusal)
    }

    /// As [`Api::prepared`], with the id that the instance will have.
    pub(super) async fn prepared_start(&self, wanted: NewInstance) -> Result<(String, Change), Refusal> {
        let change = self.prepared(Wanted::Start(wanted)).await?;
        let Change::Start(row) = &change else { return Err(Refusal::Internal("a start is no signal".to_owned())) };
        Ok((row.id.clone(), change))
    }

    /// The signal that the plugin means, to an instance that it may signal.
    pub(super) async fn new_signal(
        &self,
        caller: &Caller,
        id: &str,
        event: SignalEvent,
        cause: Option<&Arc<Event>>,
    ) -> Result<NewSignal, Refusal> {
        check_type(&event.type_).map_err(|reason| invalid("type", reason))?;
        let data = json("data", event.data.as_deref())?;
        let wanted = id.to_owned();
        let workflow = self.bus().store().read(move |conn| rows::workflow_of(conn, &wanted)).await.map_err(refusal)?;
        let missing = || refusal(Error::not_found("workflow instance", id));
        self.may(WorkflowRight::Signal, &workflow.ok_or_else(missing)?)?;
        Ok(NewSignal {
            instance: id.to_owned(),
            kind: event.type_,
            data,
            principal: self.source(),
            trust: Api::trust(caller, cause.map(AsRef::as_ref)),
        })
    }

    /// Starts an instance, durably; whoever asks may vanish.
    pub(super) async fn start_now(&self, caller: &Caller, wants: Wants) -> Result<Started, Refusal> {
        let wanted = self.new_instance(caller, wants, None)?;
        self.bus().store().takes_new().map_err(refusal)?;
        loop {
            // A delivery whose SQL is committed counts on the plugin's keys.
            let gate = Arc::clone(&self.room.gate).read_owned().await;
            if let Some(started) = self.started_before(&wanted).await? {
                return Ok(started);
            }
            let (id, change) = self.prepared_start(wanted.clone()).await?;
            let state = self.bus().change_instances(vec![change]);
            let write = move |tx: &mut Tx<'_>| {
                let _open = gate;
                state(tx)
            };
            match self.bus().store().write(write).await {
                Ok(()) => return Ok(Started { id, is_new: true }),
                Err(Error::Conflict { code: rows::KEY_TAKEN, .. }) => {}
                Err(error) => return Err(refusal(error)),
            }
        }
    }

    /// Signals an instance, durably; whoever asks may vanish.
    pub(super) async fn signal_now(&self, caller: &Caller, id: &str, event: SignalEvent) -> Result<(), Refusal> {
        let signal = self.new_signal(caller, id, event, None).await?;
        let state = self.bus().change_instances(vec![self.prepared(Wanted::Signal(signal)).await?]);
        self.bus().store().write(move |tx| state(tx)).await.map_err(refusal)
    }

    /// Tells the person, durably; whoever asks may vanish.
    pub(super) async fn notify_now(&self, caller: &Caller, sent: Notification) -> Result<(), Refusal> {
        self.may_notify()?;
        let asked = vec![notification(sent)?];
        let (bus, source, trust) = (self.bus().clone(), self.source(), Api::trust(caller, None));
        let telling = async move {
            let notices = bus.notices((&source, "plugin"), trust, None, asked).await;
            let now_ms = bus.clock().now_ms();
            bus.store().write(move |tx| notices.store(tx, now_ms)).await
        };
        let told = self.services.inner.runtime.spawn(telling).await;
        told.map_err(|error| refusal(Error::internal("telling of a plugin")(error)))?.map_err(refusal)
    }

    pub(super) fn may_notify(&self) -> Result<(), Refusal> {
        if self.manifest.permissions.notify {
            return Ok(());
        }
        Err(Refusal::Denied("the manifest does not ask for notify".to_owned()))
    }

    /// How an instance stands.
    pub(super) async fn look_at(&self, id: &str) -> Result<Instance, Refusal> {
        let wanted = id.to_owned();
        let row = self.bus().store().read(move |conn| rows::by_id(conn, &wanted)).await.map_err(refusal)?;
        let row = row.ok_or_else(|| refusal(Error::not_found("workflow instance", id)))?;
        self.may(WorkflowRight::Read, &row.workflow)?;
        Ok(instance(row))
    }
}
