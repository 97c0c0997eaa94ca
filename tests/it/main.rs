//! The integration tests, one binary: each module is a feature or a rule.

mod audit;
mod auth_coverage;
mod bus;
mod cli;
mod crash;
mod dlq;
mod files;
mod harness;
mod http;
mod model;
mod push;
mod routes;
mod sandbox;
mod skills;
mod stream;
mod tidy;
