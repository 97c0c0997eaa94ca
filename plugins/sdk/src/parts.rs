//! What a plugin can serve, each a trait, and how they become the exports of the component.

use std::marker::PhantomData;

use serde_json::Value;

use crate::bindings::events::exports::aman::plugin::events::{self, Outcome};
use crate::bindings::lifecycle::exports::aman::plugin::lifecycle;
use crate::bindings::routes::exports::aman::plugin::http_handler;
use crate::bindings::source::exports::aman::plugin::source;
use crate::bindings::tools::exports::aman::plugin::tools;
use crate::{BodyStream, Caller, Context, Error, Event, Polled, Request, Response, Result, Retry};

/// The beginning of an instance.
pub trait Lifecycle {
    /// Runs once in each new instance, before its first call. Keep it cheap. It may read [`crate::kv`] and settings; an
    /// error fails the call that needed the instance, and the installation.
    fn init(context: Context) -> Result<()>;
}

/// The events that the manifest subscribes to.
pub trait Events {
    /// Handles one event; what it publishes, stores in [`crate::kv`], starts or signals in [`crate::workflows`] and tells
    /// with [`crate::notify`] takes effect when it ends well, and never otherwise. An error that may pass ([`Error::may_pass`]) and an internal one bring the event again; any other makes
    /// a dead letter of it at once.
    fn handle(event: Event) -> Result<()>;
}

/// The routes of the manifest.
pub trait Routes {
    /// Handles one request. An error becomes a problem document with the status that fits it.
    fn handle(request: Request) -> Result<Response>;
}

/// The tools of the manifest, for agents and workflows.
pub trait Tools {
    /// Runs the tool `name` with arguments that fit its schema.
    fn call(name: &str, input: Value, caller: Caller) -> Result<Value>;
}

/// The sources of the manifest, which the host polls.
pub trait Source {
    /// Looks for news of the source `id` since `cursor`, which is none the first time. After an error the same cursor
    /// comes again.
    fn poll(id: &str, cursor: Option<String>) -> Result<Polled>;
}

/// A plugin as the bindings want it.
#[doc(hidden)]
pub struct Glue<T>(PhantomData<T>);

impl<T: Lifecycle + 'static> lifecycle::Guest for Glue<T> {
    fn init(context: Context) -> Result<()> {
        T::init(context)
    }
}

impl<T: Events + 'static> events::Guest for Glue<T> {
    fn handle(event: Event) -> Outcome {
        match T::handle(event) {
            Ok(()) => Outcome::Done,
            Err(Error::Unavailable(retry)) => Outcome::Retry(retry),
            Err(error) if error.may_pass() || matches!(error, Error::Internal(_)) => {
                Outcome::Retry(Retry { reason: error.reason(), after_ms: None })
            }
            Err(error) => Outcome::Reject(error.reason()),
        }
    }
}

impl<T: Routes + 'static> http_handler::Guest for Glue<T> {
    type BodyStream = BodyStream;

    fn handle(request: Request) -> Result<Response> {
        T::handle(request)
    }
}

impl<T: Tools + 'static> tools::Guest for Glue<T> {
    fn call(name: String, input: String, caller: Caller) -> Result<String> {
        let input = serde_json::from_str(&input).map_err(|error| Error::invalid("input", format!("{error}.")))?;
        T::call(&name, input, caller).map(|answer| answer.to_string())
    }
}

impl<T: Source + 'static> source::Guest for Glue<T> {
    fn poll(id: String, cursor: Option<String>) -> Result<Polled> {
        T::poll(&id, cursor)
    }
}
