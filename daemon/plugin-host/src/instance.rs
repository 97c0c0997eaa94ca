//! One instance of a plugin: its memory, its exports, and the calls of them.

use std::sync::Arc;

use wasmtime::component::{InstancePre, ResourceAny};
use wasmtime::{Store, UpdateDeadline};

use crate::bindings::exports::aman::plugin::{events, http_handler, lifecycle, source, tools};
use crate::fault::{Fault, Which};
use crate::imports::check_event;
use crate::limits::{HEADER_BYTES_MAX, Limiter, Limits, Meter, POLLED_MAX};
use crate::state::{Call, Common, Mode, State, TimeIsOver};
use crate::values::{Answer, Event, NewEvent, Outcome, Polled, Request, Words};

/// Handles of resources that one instance may hold.
const HANDLES_MAX: usize = 10_000;

/// Where a component's exports are; those that it does not have are `None`.
pub(crate) struct Exports {
    lifecycle: Option<lifecycle::GuestIndices>,
    events: Option<events::GuestIndices>,
    http_handler: Option<http_handler::GuestIndices>,
    tools: Option<tools::GuestIndices>,
    source: Option<source::GuestIndices>,
}

impl Exports {
    /// Finds the exports that `surface` lists; a function that is missing in one of them refuses the component.
    pub fn find(pre: &InstancePre<State>, surface: &crate::Surface) -> wasmtime::Result<Exports> {
        Ok(Exports {
            lifecycle: surface.lifecycle.then(|| lifecycle::GuestIndices::new(pre)).transpose()?,
            events: surface.events.then(|| events::GuestIndices::new(pre)).transpose()?,
            http_handler: surface.http_handler.then(|| http_handler::GuestIndices::new(pre)).transpose()?,
            tools: surface.tools.then(|| tools::GuestIndices::new(pre)).transpose()?,
            source: surface.source.then(|| source::GuestIndices::new(pre)).transpose()?,
        })
    }

    /// The exports of `instance`; refuses functions of other types than the interface's.
    fn load(
        &self,
        store: &mut Store<State>,
        instance: &wasmtime::component::Instance,
    ) -> Result<(Option<lifecycle::Guest>, Guest), Fault> {
        macro_rules! of {
            ($interface:ident) => {
                self.$interface.as_ref().map(|at| at.load(&mut *store, instance)).transpose().map_err(|error| {
                    let name = stringify!($interface).replace('_', "-");
                    Fault::refused(format!("a function of its {name} is not the interface's: {error:#}"))
                })?
            };
        }
        let lifecycle = of!(lifecycle);
        let guest =
            Guest { events: of!(events), http_handler: of!(http_handler), tools: of!(tools), source: of!(source) };
        Ok((lifecycle, guest))
    }
}

/// The exports of one instance.
struct Guest {
    events: Option<events::Guest>,
    http_handler: Option<http_handler::Guest>,
    tools: Option<tools::Guest>,
    source: Option<source::Guest>,
}

/// What a guest is asked.
pub(crate) enum Job {
    /// Nothing: that the instance begins is all.
    Probe,
    Http(Request),
    Event(Event),
    Tool {
        name: String,
        input: String,
    },
    Poll {
        id: String,
        cursor: Option<String>,
    },
}

impl Job {
    /// The interface that it needs.
    pub fn export(&self) -> &'static str {
        match self {
            Job::Probe => "aman:plugin/lifecycle",
            Job::Http(_) => "aman:plugin/http-handler",
            Job::Event(_) => "aman:plugin/events",
            Job::Tool { .. } => "aman:plugin/tools",
            Job::Poll { .. } => "aman:plugin/source",
        }
    }
}

/// What a guest answered.
pub(crate) enum Done {
    Probe,
    Http(Answer<http_handler::Response>),
    Event(Outcome),
    Tool(Answer<String>),
    Poll(Answer<Polled>),
}

/// See the module. After any fault it is thrown away.
pub(crate) struct Instance {
    store: Store<State>,
    guest: Guest,
    pub meter: Arc<Meter>,
    output_bytes_max: usize,
    /// Calls that it has handled.
    pub calls: u32,
}

fn new_store(pre: &InstancePre<State>, common: Arc<Common>, limits: &Limits, meter: Arc<Meter>) -> Store<State> {
    let mut store = Store::new(pre.engine(), State::new(common, Limiter::new(limits), meter));
    store.limiter(|state| &mut state.limiter);
    store.set_hostcall_fuel(limits.output_bytes);
    store.set_max_component_handles(HANDLES_MAX);
    store.epoch_deadline_callback(|context| {
        if context.data().meter.left_to_run().is_zero() {
            return Err(TimeIsOver.into());
        }
        Ok(UpdateDeadline::Yield(1))
    });
    store.set_epoch_deadline(1);
    store
}

impl Instance {
    /// Makes an instance and runs its beginning; `call` is the one that it is made for.
    pub async fn begin(
        pre: &InstancePre<State>,
        exports: &Exports,
        common: Arc<Common>,
        limits: &Limits,
        (meter, mut call): (Arc<Meter>, Call),
    ) -> Result<Box<Instance>, Fault> {
        let mode = std::mem::replace(&mut call.mode, Mode::Begin);
        let mut store = new_store(pre, Arc::clone(&common), limits, Arc::clone(&meter));
        store.data_mut().call = Some(call);
        let instance = match pre.instantiate_async(&mut store).await {
            Ok(instance) => instance,
            Err(error) => return Err(store.data_mut().fault(&error)),
        };
        let (lifecycle, guest) = exports.load(&mut store, &instance)?;
        if let Some(lifecycle) = lifecycle {
            let context = lifecycle::Context {
                name: common.name.clone(),
                version: common.version.clone(),
                settings: store.data_mut().call().map_or_else(|_| Vec::new(), |call| call.api.settings()),
                extensions: Vec::new(),
            };
            match lifecycle.call_init(&mut store, &context).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(Fault::Failed(error)),
                Err(error) => return Err(store.data_mut().fault(&error)),
            }
        }
        if let Some(call) = &mut store.data_mut().call {
            call.mode = mode;
        }
        let output_bytes_max = limits.output_bytes;
        Ok(Box::new(Instance { store, guest, meter, output_bytes_max, calls: 0 }))
    }

    /// The instance takes up its next call.
    pub fn take_up(&mut self, call: Call) {
        self.store.data_mut().call = Some(call);
        self.store.set_epoch_deadline(1);
    }

    /// What the call worked with, now that it is over.
    pub fn lay_down(&mut self) -> Option<Call> {
        let state = self.store.data_mut();
        state.complaint.clear();
        state.limiter.take_refused();
        state.call.take()
    }

    /// Whether so little memory is left that it had better be replaced.
    pub fn is_nearly_full(&self) -> bool {
        self.store.data().limiter.is_nearly_full()
    }

    /// Runs a job in the call that was taken up.
    pub async fn perform(&mut self, job: Job) -> Result<Done, Fault> {
        self.calls += 1;
        let missing = Fault::Missing { export: job.export() };
        let store = &mut self.store;
        let done = match job {
            Job::Probe => Ok(Done::Probe),
            Job::Http(request) => match &self.guest.http_handler {
                Some(guest) => guest.call_handle(store, &request).await.map(Done::Http),
                None => return Err(missing),
            },
            Job::Event(event) => match &self.guest.events {
                Some(guest) => guest.call_handle(store, &event).await.map(Done::Event),
                None => return Err(missing),
            },
            Job::Tool { name, input } => match &self.guest.tools {
                Some(guest) => {
                    let caller = store.data_mut().call().map(|call| call.caller.clone()).map_err(Fault::Failed)?;
                    guest.call_call(store, &name, &input, &caller).await.map(Done::Tool)
                }
                None => return Err(missing),
            },
            Job::Poll { id, cursor } => match &self.guest.source {
                Some(guest) => guest.call_poll(store, &id, cursor.as_deref()).await.map(Done::Poll),
                None => return Err(missing),
            },
        };
        let done = done.map_err(|error| self.store.data_mut().fault(&error))?;
        self.check(&done)?;
        Ok(done)
    }

    fn too_much(&self, what: &str) -> Fault {
        let message = format!("{what} has more than {} bytes", self.output_bytes_max);
        Fault::Limit { which: Which::Output, message }
    }

    /// Checks that an answer keeps to the interface's rules and to the limit of output.
    fn check(&mut self, done: &Done) -> Result<(), Fault> {
        match done {
            Done::Http(Ok(response)) => {
                if !(200..=599).contains(&response.status) {
                    let status = response.status;
                    return Err(Fault::trap(format!("it answered with status {status}; 200 to 599 are allowed")));
                }
                let headers: usize = response.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
                if headers > HEADER_BYTES_MAX {
                    let message = format!("the headers have {headers} bytes; at most {HEADER_BYTES_MAX}");
                    return Err(Fault::Limit { which: Which::Output, message });
                }
                match &response.body {
                    http_handler::Body::Bytes(bytes) if bytes.len() > self.output_bytes_max => {
                        Err(self.too_much("the body"))
                    }
                    http_handler::Body::Bytes(_) | http_handler::Body::Streamed(_) => Ok(()),
                }
            }
            Done::Tool(Ok(answer)) if answer.len() > self.output_bytes_max => Err(self.too_much("the answer")),
            Done::Poll(Ok(polled)) => self.check_polled(polled),
            Done::Probe | Done::Http(Err(_)) | Done::Event(_) | Done::Tool(_) | Done::Poll(Err(_)) => Ok(()),
        }
    }

    fn check_polled(&mut self, polled: &Polled) -> Result<(), Fault> {
        if polled.events.len() > POLLED_MAX {
            let message = format!("a poll returned {} events; at most {POLLED_MAX}", polled.events.len());
            return Err(Fault::Limit { which: Which::Output, message });
        }
        let call = self.store.data_mut().call().map_err(Fault::Failed)?;
        let allowed = |event: &NewEvent| check_event(event).and_then(|()| call.api.check_publish(event));
        match polled.events.iter().try_for_each(allowed) {
            Ok(()) => Ok(()),
            Err(error) => Err(Fault::trap(format!("a polled event may not be published: {}", Words(&error)))),
        }
    }

    /// The next piece of a streamed body.
    pub async fn next_piece(&mut self, resource: ResourceAny) -> Result<Option<Vec<u8>>, Fault> {
        let Some(guest) = &self.guest.http_handler else {
            return Err(Fault::Missing { export: "aman:plugin/http-handler" });
        };
        self.store.set_epoch_deadline(1);
        let piece = guest.body_stream().call_next(&mut self.store, resource).await;
        match piece {
            Ok(Ok(Some(piece))) if piece.len() > self.output_bytes_max => Err(self.too_much("a piece of the body")),
            Ok(Ok(piece)) => Ok(piece),
            Ok(Err(error)) => Err(Fault::Failed(error)),
            Err(error) => Err(self.store.data_mut().fault(&error)),
        }
    }

    /// Lets the guest clean up after a streamed body, whose call is then over.
    pub async fn end_stream(&mut self, resource: ResourceAny) -> Result<(), Fault> {
        let dropped = resource.resource_drop_async(&mut self.store).await;
        dropped.map_err(|error| self.store.data_mut().fault(&error))?;
        self.lay_down();
        Ok(())
    }
}
