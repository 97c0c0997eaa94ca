//! Plugins for aman in Rust: implement what the plugin serves, name it in [`export!`], build for `wasm32-wasip2`.
//!
//! ```
//! use aman_plugin::{Request, Response, Result, Routes, export, json};
//!
//! struct Hello;
//!
//! impl Routes for Hello {
//!     fn handle(request: Request) -> Result<Response> {
//!         match request.target() {
//!             ("GET", "/hello/{name}") => Response::json(&json!({ "hello": request.param("name")? })),
//!             _ => Err(request.unknown()),
//!         }
//!     }
//! }
//!
//! export!(Hello: Routes);
//! # fn main() {}
//! ```
//!
//! The host calls one instance with one call at a time, and may drop it after any: what must last belongs into [`kv`] or
//! [`sql`], never into a `static`. Functions of the host work within the daemon only; in a test on your own machine they
//! panic, so keep what you test apart from them.

pub mod agents;
pub mod bindings;
pub mod chat;
mod error;
mod event;
pub mod http;
pub mod kv;
pub mod notify;
mod parts;
mod polled;
mod routes;
pub mod sql;
pub mod workflows;

pub use serde_json::{Value, json};

pub use self::bindings::aman::plugin::types::{
    Attribute, Caller, Delivery, Error, Event, InvalidField, NewEvent, Priority, Retry, Trust,
};
pub use self::bindings::aman::plugin::{bus, clock, config, log, metrics, random};
pub use self::bindings::lifecycle::exports::aman::plugin::lifecycle::Context;
pub use self::bindings::routes::exports::aman::plugin::http_handler::{Request, Response};
pub use self::bindings::source::exports::aman::plugin::source::Polled;
#[doc(hidden)]
pub use self::parts::Glue;
pub use self::parts::{Events, Lifecycle, Routes, Source, Tools};
pub use self::routes::BodyStream;

/// What the functions of plugins and of the host answer.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An operator's setting for the plugin, without blanks around it; an error that names it when it is not there.
pub fn setting(key: &str) -> Result<String> {
    let value = config::get(key).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
    value.ok_or_else(|| Error::invalid(key, "this setting of the plugin is missing; write it into aman.toml."))
}

/// Exports a type as the plugin: `export!(Hello: Routes, Events);` with what the type implements of [`Lifecycle`],
/// [`Events`], [`Routes`], [`Tools`] and [`Source`]. What is not named is not there for the host.
#[macro_export]
macro_rules! export {
    ($plugin:ty: $($part:ident),+ $(,)?) => { $($crate::__export_part!($plugin, $part);)+ };
}

/// One part of [`export!`].
#[doc(hidden)]
#[macro_export]
macro_rules! __export_part {
    ($plugin:ty, Lifecycle) => {
        $crate::__export_with!($plugin, lifecycle, export_lifecycle);
    };
    ($plugin:ty, Events) => {
        $crate::__export_with!($plugin, events, export_events);
    };
    ($plugin:ty, Routes) => {
        $crate::__export_with!($plugin, routes, export_routes);
    };
    ($plugin:ty, Tools) => {
        $crate::__export_with!($plugin, tools, export_tools);
    };
    ($plugin:ty, Source) => {
        $crate::__export_with!($plugin, source, export_source);
    };
}

/// Hands the type to the bindings' own macro.
#[doc(hidden)]
#[macro_export]
macro_rules! __export_with {
    ($plugin:ty, $module:ident, $macro:ident) => {
        const _: () = {
            type Exported = $crate::Glue<$plugin>;
    $crate::bindings::$module::$macro!(Exported with_types_in $crate::bindings::$module);
        };
    };
}
