//! aman: a daemon on your own machine that turns things that happen into things that get done.
//!
//! Read `ARCHITECTURE.md` first, then `main.rs`, then [`bus`].

pub mod agents;
pub mod api;
pub mod budget;
pub mod bundled;
pub mod bus;
pub mod cli;
pub mod clock;
pub mod config;
pub mod cron;
pub mod egress;
pub mod error;
pub mod event;
pub mod expr;
pub mod id;
pub mod lock;
pub mod mcp;
pub mod memory;
pub mod models;
pub mod notifications;
pub mod outbox;
pub mod package;
pub mod pages;
pub mod plain;
pub mod plugins;
pub mod redact;
pub mod registry;
pub mod sandbox;
pub mod schedule;
pub mod skills;
pub mod soul;
pub mod sources;
pub mod sse;
pub mod start;
pub mod store;
pub mod tasks;
pub mod telemetry;
pub mod text;
pub mod tools;
pub mod upkeep;
pub mod workflow;
pub mod workflows;
