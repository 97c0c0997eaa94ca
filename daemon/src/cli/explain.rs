//! `aman why`: the story of one event for people, and the tables that other commands share with it.

use clap::Args;
use serde_json::Value;

use super::Context;
use super::client::{Call, segment};
use super::failure::Failure;
use super::out::{clean, clean_lines, count, shorten, text, text_or_dash, time};

/// Characters of a value that a condition saw.
const VALUES_CHARS: usize = 300;

/// Explains one event.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman why 17                                 what reacted to the event with sequence 17, with what result
  aman why 01a2011f-5c --all                  also everything that did not react, and why not
  aman why 17 --consumer skill/inbox-triage   why this one did or did not

What was decided when the event was stored is shown as it was then; the rest is evaluated now and says so.")]
pub struct WhyArgs {
    /// Its id or its sequence number, the id of a delivery or dead letter, or the beginning of an id that fits no other
    id: String,
    /// Its source, where several have such an id
    #[arg(long)]
    source: Option<String>,
    /// Also evaluate every other consumer now
    #[arg(long)]
    all: bool,
    /// Only this consumer, evaluated now if it was not considered
    #[arg(long, value_name = "CONSUMER", conflicts_with = "all")]
    consumer: Option<String>,
}

/// Prints why.
pub async fn why(context: &mut Context, args: &WhyArgs) -> Result<(), Failure> {
    let id = segment(&args.id);
    let mut call = Call::get(format!("/events/{id}/why"))
        .query_some("source", args.source.as_ref())
        .query_some("consumer", args.consumer.as_ref());
    if args.all {
        call = call.query("all", true);
    }
    let Some(answer) = context.answer(call).await? else { return Ok(()) };
    for line in story(&answer, items(&answer["deliveries"])) {
        context.out.line(&line)?;
    }
    Ok(())
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// The whole story, line by line.
fn story(answer: &Value, deliveries: &[Value]) -> Vec<String> {
    let event = &answer["event"];
    let mut lines = vec![format!("Event {}", text(&event["id"])), format!("  {}", headline(event))];
    for (name, key) in [("subject", "subject"), ("trace", "traceid"), ("expires", "expirytime")] {
        let value = text(&event[key]);
        if !value.is_empty() {
            lines.push(format!("  {name} {value}"));
        }
    }
    let status = text(&answer["status"]);
    lines.push(format!("\nStatus: {status}. {}", meaning(&status)));
    lines.push(String::new());
    let considered = items(&answer["considered"]);
    if considered.is_empty() {
        lines.push("Nobody listens to this type. `aman why ID --all` shows what each one waits for.".to_owned());
    } else {
        lines.push("Considered:".to_owned());
        lines.extend(considered.iter().flat_map(|one| consumer_lines(one, deliveries)));
    }
    // Deliveries of consumers that `considered` leaves out, as when only one was asked for.
    let named = |delivery: &&Value| !considered.iter().any(|one| one["consumer"] == delivery["consumer"]);
    let others: Vec<&Value> = deliveries.iter().filter(named).collect();
    if !others.is_empty() {
        lines.push("\nOther deliveries:".to_owned());
        lines.extend(
            others.iter().map(|delivery| format!("  {}: {}", text(&delivery["consumer"]), delivery_line(delivery))),
        );
    }
    let effects = items(&answer["effects"]);
    if !effects.is_empty() {
        lines.push("\nEffects:".to_owned());
        lines.extend(effects.iter().map(effect_line));
    }
    let ancestors = items(&answer["ancestors"]);
    if !ancestors.is_empty() {
        lines.push("\nBecause of:".to_owned());
        lines.extend(ancestors.iter().map(|one| match one.as_str() {
            Some(_) => format!("  {}", text(one)),
            None if one["type"].is_null() => {
                format!("  {}  removed by retention, {}", text(&one["id"]), text_or_dash(&one["pruned_at"]))
            }
            None => format!("  {}  {}", text(&one["id"]), headline(one)),
        }));
    }
    lines
}

/// Type, source, time, sequence and trust of an event.
fn headline(event: &Value) -> String {
    let mut parts = vec![format!("{} from {}", text(&event["type"]), text(&event["source"]))];
    let at = time(&event["time"]);
    if !at.is_empty() {
        parts.push(at);
    }
    for (name, key) in [("sequence", "amansequence"), ("trust", "trust")] {
        let value = text(&event[key]);
        if !value.is_empty() {
            parts.push(format!("{name} {value}"));
        }
    }
    parts.join(", ")
}

fn meaning(status: &str) -> &'static str {
    match status {
        "pending" => "Some consumer has still to deal with it.",
        "dead_lettered" => "A consumer failed for good; see `aman dlq list`.",
        "expired" => "Its time ran out before a consumer dealt with it.",
        "handled" => "Every consumer that matched has dealt with it.",
        "unmatched" => "No consumer matched it.",
        _ => "",
    }
}

/// One considered consumer: its verdict, its rule, what the condition saw, its deliveries.
fn consumer_lines(one: &Value, deliveries: &[Value]) -> Vec<String> {
    let matched = one["matched"].as_bool() == Some(true);
    let mark = if matched { "✔" } else { "✘" };
    let reason = text(&one["reason"]);
    let when = if one["evaluated"] == "now" { " (evaluated now)" } else { "" };
    let mut lines = vec![format!("  {mark} {}: {}{when}", text(&one["consumer"]), verdict(&reason, matched))];
    let rule = rule_text(&one["rule"]);
    if !rule.is_empty() {
        lines.push(format!("      rule: {rule}"));
    }
    match one["values"].as_object() {
        Some(values) => {
            let shown = values.iter().map(|(path, value)| format!("      {} = {value}", clean(path)));
            lines.extend(shown.map(|line| shorten(&clean(&line), VALUES_CHARS)));
        }
        None if one["values"].is_null() => {}
        None => lines.push(format!("      {}", shorten(&text(&one["values"]), VALUES_CHARS))),
    }
    let error = text(&one["error"]);
    if !error.is_empty() {
        lines.push(format!("      error: {error}"));
    }
    let own = deliveries.iter().filter(|delivery| delivery["consumer"] == one["consumer"]);
    lines.extend(own.map(|delivery| format!("      {}", delivery_line(delivery))));
    lines
}

fn verdict(reason: &str, matched: bool) -> String {
    let said = match reason {
        "matched" => "matched",
        "type_mismatch" => "waits for another type",
        "condition_false" => "its condition was not true",
        "condition_error" => "its condition failed",
        "disabled" => "is disabled",
        "untrusted" => "is not trusted; enable it with the digest that is shown",
        "added_later" => "came after the event was stored",
        "" if matched => "matched",
        "" => "did not match",
        other => other,
    };
    said.to_owned()
}

/// A rule is a text, or an object with a pattern and a condition.
fn rule_text(rule: &Value) -> String {
    let Some(parts) = rule.as_object() else { return text(rule) };
    let part = |names: [&str; 2]| names.iter().find_map(|name| parts.get(*name)).map(text).unwrap_or_default();
    let (on, when) = (part(["pattern", "on"]), part(["condition", "when"]));
    match (on.is_empty(), when.is_empty()) {
        (true, true) => text(rule),
        (_, true) => on,
        (true, false) => format!("when {when}"),
        (false, false) => format!("{on} when {when}"),
    }
}

/// Status, attempts, next try and error of a delivery.
fn delivery_line(delivery: &Value) -> String {
    let attempts = count(delivery["attempt"].as_u64().unwrap_or(0), "attempt");
    let mut line = format!("delivery {}: {} after {attempts}", text(&delivery["id"]), text(&delivery["status"]));
    let next = time(&delivery["next_at"]);
    if !next.is_empty() {
        line.push_str(&format!(", next try {next}"));
    }
    // The last failure whole, where it is told: its cause is what helps.
    let whole = items(&delivery["failures"]).last().map(|failure| error_text(&failure["error_chain"]));
    let error = whole.filter(|error| !error.is_empty()).unwrap_or_else(|| error_text(&delivery["error"]));
    if !error.is_empty() {
        line.push_str(&format!("\n        {error}"));
    }
    line
}

/// An error as one line: a text, or a chain of them, outermost first.
pub fn error_text(error: &Value) -> String {
    match error {
        Value::Array(chain) => chain.iter().map(text).collect::<Vec<_>>().join(": "),
        other => text(other),
    }
}

fn effect_line(effect: &Value) -> String {
    let consumer = text(&effect["consumer"]);
    let by = if consumer.is_empty() { String::new() } else { format!("  by {consumer}") };
    let what = [&effect["type"], &effect["title"]].into_iter().map(text).find(|what| !what.is_empty());
    let what = what.map_or_else(String::new, |what| format!(" {what}"));
    format!("  {}{what} {}{by}", text(&effect["kind"]), text(&effect["id"]))
}

/// The considered consumers alone.
pub fn considered(context: &mut Context, considered: &[Value]) -> Result<(), Failure> {
    if considered.is_empty() {
        return context.out.line(
            "  Nobody listens to this type. `aman skill list` and `aman workflow list` show who listens to what.",
        );
    }
    considered
        .iter()
        .flat_map(|one| consumer_lines(one, &[]))
        .try_for_each(|line| context.out.line(&clean_lines(&line)))
}

/// Deliveries as a table.
pub fn deliveries(context: &mut Context, deliveries: &[Value]) -> Result<(), Failure> {
    if deliveries.is_empty() {
        return context.out.line(
            "It was delivered to nobody, as nobody waits for it. `aman why ID --all` says what each one waits for.",
        );
    }
    let row = |delivery: &Value| {
        vec![
            text(&delivery["id"]),
            text(&delivery["consumer"]),
            text(&delivery["status"]),
            text(&delivery["attempt"]),
            time(&delivery["next_at"]),
            error_text(&delivery["error"]),
        ]
    };
    let rows: Vec<Vec<String>> = deliveries.iter().map(row).collect();
    context.out.table(&["DELIVERY", "CONSUMER", "STATUS", "ATTEMPTS", "NEXT TRY", "ERROR"], &rows)
}

/// Where a dead letter's event is described: the whole event, or its id only.
pub fn event_id(event: &Value) -> String {
    match event {
        Value::Object(event) => event.get("id").map(text_or_dash).unwrap_or_default(),
        other => text_or_dash(other),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_story_says_who_reacted_and_who_did_not() {
        let answer = json!({
            "event": { "id": "e1", "type": "file.created", "source": "files/default", "time": "2026-11-22T01:13:00.000Z",
                "amansequence": "12", "trust": "owner", "traceid": "abc" },
            "status": "dead_lettered",
            "considered": [
                { "consumer": "skill/triage", "kind": "skill", "matched": true, "rule": { "pattern": "file.*", "condition": ".data.size > 1" },
                    "reason": "matched", "evaluated": "then", "values": { ".data.size": 7 } },
                { "consumer": "skill/other", "kind": "skill", "matched": false, "rule": "file.*", "reason": "condition_false",
                    "evaluated": "now", "values": null }],
            "effects": [{ "kind": "event", "id": "e2", "consumer": "skill/triage" }],
            "ancestors": [{ "id": "e0", "type": "start", "source": "cli" }],
        });
        let deliveries = [
            json!({ "id": 3, "consumer": "skill/triage", "status": "retrying", "attempt": 2, "next_at": "2026-11-22T01:14:00.000Z", "error": ["exit 1", "no\u{1b}space"] }),
            json!({ "id": 4, "consumer": "skill/gone", "status": "done", "attempt": 1, "next_at": null, "error": null }),
            json!({ "id": 5, "consumer": "skill/late", "status": "dead", "attempt": 1, "error": "it failed",
                "failures": [{ "error_chain": ["it failed", "no paper"] }] }),
        ];
        assert_eq!(
            story(&answer, &deliveries).join("\n"),
            "\
Event e1
  file.created from files/default, 2026-11-22 01:13:00Z, sequence 12, trust owner
  trace abc

Status: dead_lettered. A consumer failed for good; see `aman dlq list`.

Considered:
  ✔ skill/triage: matched
      rule: file.* when .data.size > 1
      .data.size = 7
      delivery 3: retrying after 2 attempts, next try 2026-11-22 01:14:00Z
        exit 1: no�space
  ✘ skill/other: its condition was not true (evaluated now)
      rule: file.*

Other deliveries:
  skill/gone: delivery 4: done after 1 attempt
  skill/late: delivery 5: dead after 1 attempt
        it failed: no paper

Effects:
  event e2  by skill/triage

Because of:
  e0  start from cli"
        );
    }

    #[test]
    fn a_story_of_nothing() {
        let lines = story(&json!({ "event": { "id": "e" }, "status": "unmatched" }), &[]);
        assert!(lines.iter().any(|line| line.contains("Nobody listens")));
    }
}
