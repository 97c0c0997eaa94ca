//! The integration tests, one binary: each module is a feature or a rule.

mod access;
mod auth_coverage;
mod browser;
mod bus;
mod config;
mod crash;
mod cron;
mod files;
mod harness;
mod hooks;
mod http;
mod model;
mod mqtt;
mod openapi;
mod peer;
mod push;
mod redaction;
mod sandbox;
mod sinks;
mod skills;
mod sources;
mod stream;
mod tidy;
