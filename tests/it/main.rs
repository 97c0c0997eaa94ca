//! The integration tests, one binary: each module is a feature or a rule.

mod bus;
mod harness;
mod sandbox;
mod tidy;
