//! Instances of workflows as other consumers start and signal them. Neither knows the other: whoever runs workflows tells
//! the bus how ([`Flows`]), and consumers ask the bus. What is wanted is prepared first, so that it can commit with a delivery.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use serde_json::Value;

use super::publish::Bus;
use super::{Action, NewNotification, StateWrite};
use crate::error::Error;
use crate::event::{Event, Trust};
use crate::id::{SpanId, TraceId};
use crate::store::Tx;
use crate::store::events::Cause;
use crate::store::workflows::{self as rows, Change};

/// An instance that somebody wants.
#[derive(Debug, Clone)]
pub struct NewInstance {
    /// Its workflow.
    pub workflow: String,
    /// Its input, without secrets.
    pub input: Value,
    /// Equal keys of one workflow are one instance.
    pub dedup: Option<String>,
    /// Who asks.
    pub principal: String,
    /// How far they are believed.
    pub trust: Trust,
    /// The trace that it belongs to.
    pub trace: TraceId,
    /// The event that led to it.
    pub cause: Option<Arc<Event>>,
    /// The span of the trace that asks.
    pub span: Option<SpanId>,
}

/// An event for one instance alone.
#[derive(Debug, Clone)]
pub struct NewSignal {
    /// The instance's id.
    pub instance: String,
    /// The event's type.
    pub kind: String,
    /// Its data, without secrets.
    pub data: Value,
    /// Who sends it.
    pub principal: String,
    /// How far they are believed.
    pub trust: Trust,
}

/// What is wanted of workflows.
#[derive(Debug, Clone)]
pub enum Wanted {
    /// A start.
    Start(NewInstance),
    /// A signal.
    Signal(NewSignal),
}

/// The future of a change that is being prepared.
pub type Preparing = Pin<Box<dyn Future<Output = Result<Change, Error>> + Send>>;

/// How instances are changed, as whoever runs workflows says it.
pub struct Flows {
    /// Checks what is wanted and makes a change of it; nothing is stored.
    pub prepare: Box<dyn Fn(Wanted) -> Preparing + Send + Sync>,
    /// Told within the transaction of a change; what it wakes looks behind the commit.
    pub hint: Box<dyn Fn() + Send + Sync>,
}

impl Bus {
    /// Sets how instances are changed; only the first call counts.
    pub fn serve_flows(&self, flows: Flows) {
        let _first = self.inner.flows.set(flows);
    }

    /// Checks what is wanted and makes a change of it, which takes effect with [`Bus::change_instances`].
    pub async fn prepare_instance(&self, wanted: Wanted) -> Result<Change, Error> {
        let starting =
            || Error::Busy { code: "starting", what: "Workflows are not there yet.".to_owned(), retry_after_ms: 1000 };
        if let Wanted::Start(NewInstance { cause: Some(event), .. }) = &wanted {
            self.check_chain(&Cause { event: Arc::clone(event), delivery: None, span: None }, 1)?;
        }
        (self.inner.flows.get().ok_or_else(starting)?.prepare)(wanted).await
    }

    /// Applies changes in the transaction that it is run in: `invalid_state` when an event is not taken up, since its
    /// instance has ended or too much waits for it.
    pub fn change_instances(&self, changes: Vec<Change>) -> StateWrite {
        self.changing(move |tx| rows::apply_all(tx, &changes))
    }

    /// As [`Bus::change_instances`], for what cannot be asked for anew since the rest of it stands: that the instance of an
    /// event has ended is told to the person, as from `consumer`, a plugin.
    pub async fn change_instances_at_last(&self, consumer: &str, changes: Vec<Change>) -> StateWrite {
        let mut told = Vec::with_capacity(changes.len());
        for change in &changes {
            let asked = match change {
                Change::Start(_) => Vec::new(),
                Change::Signal { id, body, .. } => vec![late(id, body)],
            };
            told.push(self.notices((consumer, "plugin"), Trust::Plugin, None, asked).await);
        }
        let now_ms = self.clock().now_ms();
        self.changing(move |tx| rows::apply(tx, &changes)?.into_iter().try_for_each(|n| told[n].store(tx, now_ms)))
    }

    fn changing(&self, change: impl FnOnce(&mut Tx<'_>) -> Result<(), Error> + Send + 'static) -> StateWrite {
        let bus = self.clone();
        Box::new(move |tx| {
            change(tx)?;
            if let Some(flows) = bus.inner.flows.get() {
                (flows.hint)();
            }
            Ok(())
        })
    }
}

/// Tells of an event whose instance had ended.
fn late(id: &str, body: &str) -> NewNotification {
    let event: Value = serde_json::from_str(body).unwrap_or_default();
    let kind = event["type"].as_str().unwrap_or_default();
    NewNotification {
        title: "An event came too late for its workflow".to_owned(),
        message: format!("'{kind}' was sent to the instance {id}, which had ended. Nothing was done with it."),
        action: Some(Action { label: "Instance".to_owned(), url: format!("/workflow-instance/{id}") }),
        // Each is another one.
        fingerprint: event["id"].as_str().map(str::to_owned),
        ..NewNotification::default()
    }
}
