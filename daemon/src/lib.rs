//! aman: a daemon on your own machine that turns things that happen into things that get done.
//!
//! Read `ARCHITECTURE.md` first, then `main.rs`, then [`bus`].

pub mod start;
pub mod api;
pub mod skills;
pub mod sources;
pub mod outbox;
pub mod bus;
pub mod store;
pub mod cli;
pub mod config;
pub mod error;
pub mod clock;
pub mod id;
pub mod event;
pub mod expr;
pub mod sandbox;
pub mod tasks;
pub mod telemetry;
pub mod bundled;
