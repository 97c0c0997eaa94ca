//! The Model Context Protocol, in every version that is in use: spoken to servers, and answered to clients.
//!
//! The only crate that knows `rmcp`, which makes much code of its generic calls: here that is compiled once. It opens no
//! connection and starts no program: whoever calls hands in the pipes of one that runs, or how an HTTP request is sent, and
//! how a tool is called.

mod client;
mod server;
mod streamable;

pub use client::{Answer, Connection, Failure, Offered, Pipes, Way};
pub use server::{Asked, Calling, Given, Server, Shown};
pub use streamable::{Heard, Pieces, Request, Sending, Unsent, WayOut, pieces};

/// The greatest message that is read, in bytes; what is larger is dropped, and the request for it fails.
const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// What aman calls itself.
fn implementation() -> rmcp::model::Implementation {
    rmcp::model::Implementation::new("aman", env!("CARGO_PKG_VERSION"))
}
