//! `aman usage`: what models cost.

use clap::Args;
use serde_json::Value;

use super::Context;
use super::client::Call;
use super::failure::Failure;
use super::out::text;

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

/// Runs `aman usage`.
pub async fn run(context: &mut Context, args: &UsageArgs) -> Result<(), Failure> {
    let day = if args.ever { Some("all") } else { args.day.as_deref() };
    let call = Call::get("/usage").query_some("day", day).query_some("scope", args.scope.as_ref());
    let Some(answer) = context.answer(call.query("limit", args.limit)).await? else { return Ok(()) };
    let limits = &answer["limits"];
    let or_none = |value: &Value| if value.as_f64() == Some(0.0) { "none".to_owned() } else { text(value) };
    context.out.line(&format!(
        "{}; limits of a day for all agents together: {} tokens, {} of money; from {} of a limit on a cheaper model.",
        answer["day"].as_str().map_or("Of all time".to_owned(), |day| format!("On {day} (UTC)")),
        or_none(&limits["day_tokens"]),
        or_none(&limits["day_money"]),
        text(&limits["soft"]),
    ))?;
    let items = answer["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    if items.is_empty() {
        return context.out.line("No model was called.");
    }
    let row = |one: &Value| {
        ["scope", "calls", "input", "output", "lost", "reserved", "money", "refused"]
            .map(|name| text(&one[name]))
            .to_vec()
    };
    context.table(&["SCOPE", "CALLS", "ASKED", "ANSWERED", "LOST", "RESERVED", "MONEY", "REFUSED"], items, row)?;
    if answer["next_cursor"].is_string() { context.out.line("There are more; --limit shows them.") } else { Ok(()) }
}
