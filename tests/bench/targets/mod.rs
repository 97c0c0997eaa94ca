//! One file per target.

pub mod disk;
pub mod growth;
pub mod http;
pub mod latency;
pub mod model_stops;
pub mod model_streams;
pub mod plugin_costs;
pub mod plugin_events;
pub mod plugin_routes;
pub mod plugin_spin;
pub mod push;
pub mod references;
pub mod relaxed;
pub mod settle;
pub mod start;
pub mod streams;
pub mod workflow_tasks;
pub mod workflow_waits;

use crate::report::say;
use crate::{Bench, Res};

type Target = (u8, &'static str, fn(&mut Bench) -> Res<()>);

const ALL: [Target; 19] = [
    (0, "the references alone", references::run),
    (1, "durable push", push::run),
    (2, "latency of one publisher", latency::run),
    (3, "relaxed durability", relaxed::run),
    (4, "plain HTTP", http::run),
    (5, "streams", streams::run),
    (6, "idle and start", start::run),
    (7, "growth", growth::run),
    (8, "deliver and settle", settle::run),
    (9, "disk", disk::run),
    (10, "plugin routes", plugin_routes::run),
    (11, "plugin events", plugin_events::run),
    (12, "plugin memory and start", plugin_costs::run),
    (13, "guests that spin", plugin_spin::run),
    (14, "workflows: the journal", workflow_tasks::run),
    (15, "workflows: waiting", workflow_waits::run),
    (16, "models: the first word", model_streams::first),
    (17, "models: many streams", model_streams::many),
    (18, "models: a stop", model_stops::run),
];

/// Runs the targets that were asked for; names those that could not be measured.
pub fn run(bench: &mut Bench) -> Vec<String> {
    let mut failed = Vec::new();
    for (number, name, target) in ALL {
        if !bench.args.only.contains(&number) {
            continue;
        }
        say(&format!("== target {number}: {name}"));
        if let Err(error) = target(bench) {
            bench.report.remark(format!("target {number} ({name}) was not measured: {error}"));
            failed.push(number.to_string());
        }
    }
    failed
}
