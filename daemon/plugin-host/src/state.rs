//! What the host keeps for one instance of a plugin, and for the call that it handles.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use crate::api::{HostApi, TurnFrames};
use crate::engine::Ticker;
use crate::fault::{Fault, Which};
use crate::limits::{Limiter, Meter, Rates};
use crate::values::{Caller, Error, Staged};

/// What a call may change, and when that takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// An instance begins: nothing may be changed.
    Begin,
    /// At once.
    Direct,
    /// With the end of the delivery.
    Staged,
}

/// What a call of a guest works with. It is with the instance only as long as the call.
pub(crate) struct Call {
    pub api: Arc<dyn HostApi>,
    pub caller: Caller,
    pub mode: Mode,
    pub staged: Staged,
    pub staged_bytes: usize,
    /// Events that it published, which the daemon keeps.
    pub events: usize,
    /// What it asked of workflows and of the person, which the daemon keeps.
    pub acts: usize,
    /// The turns that it looks at, by the number of the guest's handle. They end with it.
    pub turns: HashMap<u32, Box<dyn TurnFrames>>,
}

impl Call {
    pub fn new(api: Arc<dyn HostApi>, caller: Caller, mode: Mode) -> Call {
        Call {
            api,
            caller,
            mode,
            staged: Staged::default(),
            staged_bytes: 0,
            events: 0,
            acts: 0,
            turns: HashMap::new(),
        }
    }
}

/// What all instances of a plugin share.
pub(crate) struct Common {
    pub name: String,
    pub version: String,
    pub grants: crate::Grants,
    pub rates: Rates,
    pub ticker: Arc<Ticker>,
}

/// The store's data.
pub(crate) struct State {
    pub common: Arc<Common>,
    pub limiter: Limiter,
    pub meter: Arc<Meter>,
    pub origin: Instant,
    pub call: Option<Call>,
    /// Turns that its calls have looked at; numbers the next one.
    pub turns: u32,
    /// The end of what the guest wrote to its standard error: a panic's message.
    pub complaint: String,
}

/// How much of [`State::complaint`] is kept, in bytes.
const COMPLAINT_BYTES_MAX: usize = 1 << 10;

/// The guest's running time is over; raised at a tick.
#[derive(Debug)]
pub(crate) struct TimeIsOver;

impl std::fmt::Display for TimeIsOver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the running time is over")
    }
}

impl std::error::Error for TimeIsOver {}

impl State {
    pub fn new(common: Arc<Common>, limiter: Limiter, meter: Arc<Meter>) -> State {
        State { common, limiter, meter, origin: Instant::now(), call: None, turns: 0, complaint: String::new() }
    }

    /// The call that the guest handles.
    pub fn call(&mut self) -> Result<&mut Call, Error> {
        self.call.as_mut().ok_or_else(|| Error::Denied("the host is only there during a call".to_owned()))
    }

    /// Takes note of what the guest says on its standard error or output.
    pub fn complain(&mut self, bytes: &[u8]) {
        self.complaint.push_str(&String::from_utf8_lossy(bytes));
        if self.complaint.len() > COMPLAINT_BYTES_MAX {
            let mut start = self.complaint.len() - COMPLAINT_BYTES_MAX;
            while !self.complaint.is_char_boundary(start) {
                start += 1;
            }
            self.complaint.drain(..start);
        }
    }

    /// What an error of wasmtime's means.
    pub fn fault(&mut self, error: &wasmtime::Error) -> Fault {
        if error.downcast_ref::<TimeIsOver>().is_some() {
            return self.time_is_over();
        }
        let refused = self.limiter.take_refused();
        let trap = error.downcast_ref::<wasmtime::Trap>();
        let text = error.root_cause().to_string();
        let which = match trap {
            Some(wasmtime::Trap::StackOverflow) => Some(Which::Stack),
            Some(wasmtime::Trap::Interrupt) => return self.time_is_over(),
            _ if error.downcast_ref::<wasmtime::PoolConcurrencyLimitError>().is_some() => Some(Which::Calls),
            // These two errors of wasmtime's have no public type.
            _ if text.contains("fuel allocated for hostcalls has been exhausted") => Some(Which::Output),
            _ if text.contains("handle") && text.contains("limit") => Some(Which::Handles),
            _ => refused,
        };
        let said = self.complaint.split_whitespace().collect::<Vec<_>>().join(" ");
        let text = if said.is_empty() { text } else { format!("{text}; it said: {said}") };
        let message = match which {
            None => return Fault::trap(text),
            Some(Which::Memory) => format!("a growth of its memory was refused, then: {text}"),
            Some(Which::Tables) => format!("a growth of a table, or one more of its parts, was refused, then: {text}"),
            Some(Which::Stack) => "its calls nest too deeply".to_owned(),
            Some(Which::Output) => "it handed out too much at once".to_owned(),
            Some(Which::Calls) => "the instances of all plugins together are too many".to_owned(),
            Some(Which::Handles | Which::Streams) => format!("it holds too many handles: {text}"),
        };
        Fault::Limit { which: which.expect("matched above"), message }
    }

    fn time_is_over(&self) -> Fault {
        Fault::Timeout { message: self.meter.message() }
    }
}
