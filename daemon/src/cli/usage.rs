//! `aman usage`: what models cost.

use clap::Args;
use serde_json::Value;

use super::Context;
use super::client::Call;
use super::failure::Failure;
use super::out::{count, text};

/// Shows it.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman usage                          today, by agent and job
  aman usage --day 2026-11-21
  aman usage --ever --scope session/  each session, of all time

Days are those of UTC. Money is in units of the price table ([prices] of the configuration).")]
pub struct UsageArgs {
    /// Another day
    #[arg(long, value_name = "YYYY-MM-DD", conflicts_with = "ever")]
    day: Option<String>,
    /// Of all time
    #[arg(long)]
    ever: bool,
    /// Only what begins so: all, agent/, session/, job/
    #[arg(long, value_name = "PREFIX")]
    scope: Option<String>,
    /// Show at most this many
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=1000))]
    limit: u64,
}

/// Names in an answer, and what stands above them.
const COLUMNS: [(&str, &str); 8] = [
    ("scope", "SCOPE"),
    ("calls", "CALLS"),
    ("input", "ASKED"),
    ("output", "ANSWERED"),
    ("lost", "LOST"),
    ("reserved", "RESERVED"),
    ("money", "MONEY"),
    ("refused", "REFUSED"),
];
const RARE: [&str; 4] = ["lost", "reserved", "money", "refused"];

/// What was spent, in words.
pub fn spent(usage: &Value) -> String {
    let calls = count(usage["calls"].as_u64().unwrap_or(0), "call");
    let tokens = count(usage["tokens"].as_u64().unwrap_or(0), "token");
    match usage["money"].as_f64().filter(|money| *money > 0.0) {
        Some(money) => format!("{tokens} in {calls}, {money} of money"),
        None => format!("{tokens} in {calls}"),
    }
}

/// The limits of a day for all agents together, in words.
fn limits(limits: &Value) -> String {
    let set = |name: &str| limits[name].as_f64().filter(|limit| *limit > 0.0);
    let tokens = set("day_tokens").map(|limit| format!("{limit} tokens"));
    let money = set("day_money").map(|limit| format!("{limit} of money"));
    let all: Vec<String> = tokens.into_iter().chain(money).collect();
    match (all.is_empty(), set("soft")) {
        (true, _) => "No limit is set for a day.".to_owned(),
        (false, None) => format!("Limits of a day: {}.", all.join(", ")),
        (false, Some(soft)) => format!("Limits of a day: {}; a cheaper model from {} %.", all.join(", "), soft * 100.0),
    }
}

/// Runs `aman usage`.
pub async fn run(context: &mut Context, args: &UsageArgs) -> Result<(), Failure> {
    let day = if args.ever { Some("all") } else { args.day.as_deref() };
    let call = Call::get("/usage").query_some("day", day).query_some("scope", args.scope.as_ref());
    let Some(answer) = context.answer(call.query("limit", args.limit)).await? else { return Ok(()) };
    let when = answer["day"].as_str().map_or("Of all time.".to_owned(), |day| format!("On {day} (UTC)."));
    context.out.line(&format!("{when} {}", limits(&answer["limits"])))?;
    let items = answer["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    if items.is_empty() {
        return context.out.line("No model was called.");
    }
    // What rarely is more than nothing is a column only then.
    let is_there = |(name, _): &(&str, &str)| {
        !RARE.contains(name) || items.iter().any(|one| one[*name].as_f64().is_some_and(|value| value > 0.0))
    };
    let columns: Vec<(&str, &str)> = COLUMNS.into_iter().filter(is_there).collect();
    let head: Vec<&str> = columns.iter().map(|(_, head)| *head).collect();
    context.table(&head, items, |one| columns.iter().map(|(name, _)| text(&one[*name])).collect())?;
    if answer["next_cursor"].is_string() { context.out.line("There are more; --limit shows them.") } else { Ok(()) }
}
