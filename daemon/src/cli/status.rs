//! `aman status`: is the daemon there, how is it, and what of it needs somebody?

use clap::Args;
use serde_json::Value;

use super::client::{Call, Client};
use super::failure::{FAILED, Failure};
use super::out::{clean, count, duration, text, text_or_dash, time};
use super::standing::{self, Amiss, Kind, Parts};
use super::{Context, PAGE_MAX};
use crate::clock::{Clock, Millis, parse_rfc3339};

/// Jobs that are shown as next.
const NEXT_MAX: usize = 3;

/// Shows the daemon's state.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman status                             what works, what needs you, what comes next
  aman status --verbose                   every part of it
  aman status --json | aman jq -r .phase

Exit code 0 when the daemon is ready, 1 when it is not or does not answer.")]
pub struct StatusArgs {
    /// Show every part of the daemon, as --json does for programs
    #[arg(long, short)]
    verbose: bool,
}

/// Prints it; a daemon that is not ready is exit code 1.
pub async fn run(context: &mut Context, args: &StatusArgs) -> Result<(), Failure> {
    let client = context.client()?;
    let reply = client.call(Call::get("/runtime/status")).await?;
    let status = reply.json()?;
    let ready = status["ready"].as_bool() == Some(true);
    if context.out.json() {
        context.out.raw(&reply.body)?;
    } else if args.verbose {
        everything(context, client.base(), &status)?;
    } else {
        summary(context, &client, &status).await?;
    }
    if ready { Ok(()) } else { Err(Failure::Said(FAILED)) }
}

/// What a person wants to know at a glance.
async fn summary(context: &mut Context, client: &Client, status: &Value) -> Result<(), Failure> {
    let parts = standing::all(client, status).await;
    let mut amiss = own(status);
    for parts in &parts {
        amiss.extend(parts.amiss.iter().map(|one| {
            let what = format!("{} {}", parts.kind.name(), one.what);
            Amiss { what, advice: one.advice.clone() }
        }));
    }
    amiss.extend(waiting(client).await);
    context.out.line(&headline(client.base(), status))?;
    let works: Vec<String> = parts.iter().filter_map(Parts::shown).collect();
    if !works.is_empty() {
        context.out.line(&format!("It has {}.", works.join(", ")))?;
    }
    if amiss.is_empty() {
        context.out.line("\nNothing needs you.")?;
    } else {
        context.out.line("\nNeeds you:")?;
    }
    for one in &amiss {
        context.out.line(&format!("  {}", clean(&one.what)))?;
        context.out.line(&format!("    → {}", clean(&one.advice)))?;
    }
    let jobs = parts.iter().find(|parts| parts.kind == Kind::Job);
    let next = jobs.map(|jobs| next(&jobs.items, Clock::System.now_ms())).unwrap_or_default();
    if !next.is_empty() {
        context.out.line("\nNext jobs:")?;
        next.iter().try_for_each(|line| context.out.line(line))?;
    }
    context.out.line("\n`aman status --verbose` shows every part, `aman doctor` checks the machine, too.")
}

fn uptime(status: &Value) -> String {
    status["uptime_s"].as_f64().map_or_else(|| "-".to_owned(), |seconds| duration(seconds.max(0.0) as u64))
}

fn headline(base: &str, status: &Value) -> String {
    let standing = match (status["ready"].as_bool(), text(&status["phase"]).as_str()) {
        (Some(true), _) => "ready".to_owned(),
        (_, "draining") => "shutting down".to_owned(),
        (_, phase) => format!("starting (phase {phase})"),
    };
    let events = match status["sequence"].as_u64() {
        None | Some(0) => "no event yet".to_owned(),
        Some(newest) => format!("newest event {newest}"),
    };
    let (version, up) = (text_or_dash(&status["version"]), uptime(status));
    format!("aman {version} is {standing} at {base}, up for {up}, {events}.")
}

/// What the daemon says of itself that needs somebody.
fn own(status: &Value) -> Vec<Amiss> {
    let mut found = Vec::new();
    let mut add = |what: String, advice: &str| found.push(Amiss { what, advice: advice.to_owned() });
    if status["safe_mode"] == true {
        let what = "the configuration file is broken; the last good one is in force (safe mode)";
        add(what.to_owned(), "`aman config reload` says what is wrong for the daemon; `aman config edit` mends it.");
    }
    let subsystems = &status["subsystems"];
    let fault = &subsystems["store"]["fault"];
    if fault.is_object() {
        add(format!("nothing new can be stored: {}", text(&fault["why"])), &text(&fault["what_to_do"]));
    }
    let soul = &subsystems["soul"]["problem"];
    if !soul.is_null() {
        let what = format!("the soul's file cannot be used: {}", text(soul));
        add(
            what,
            "What was in force stays so; `aman soul show` names the file, `aman soul check FILE` says what is wrong.",
        );
    }
    if let Some(refused) = status["usage"]["refused"].as_u64().filter(|refused| *refused > 0) {
        let what = format!("the day's budget of models did not suffice for {}", count(refused, "call"));
        add(what, "`aman usage` shows what was used, `aman config get budget.day_tokens` the limit.");
    }
    let copies = &subsystems["backup"]["copies"];
    if !copies["error"].is_null() {
        let what = format!("no backup since {}: {}", text(&copies["failing_since"]), text(&copies["error"]));
        add(what, "See to the folder of backup.folder; `aman doctor` says more.");
    }
    for (name, task) in subsystems.as_object().into_iter().flatten() {
        // Only the daemon's own tasks are started again; how sources and plugins stand is told with them.
        if task["restarts"].is_u64() && ["failed", "waiting"].contains(&text(&task["state"]).as_str()) {
            add(format!("{name} has failed: {}", text_or_dash(&task["error"])), "`aman logs --level warn` says more.");
        }
    }
    found
}

/// What waits for a decision of somebody; what the token may not see is left out.
async fn waiting(client: &Client) -> Vec<Amiss> {
    let mut found = Vec::new();
    for (call, key, thing, verbs, advice) in [
        (
            Call::get("/dlq/depth"),
            "depth",
            "dead letter",
            ("waits for a decision", "wait for a decision"),
            "`aman dlq list` shows what failed for good, `aman dlq retry ID` tries it again.",
        ),
        (
            Call::get("/workflow-instances").query("status", "faulted").query("limit", PAGE_MAX),
            "items",
            "workflow instance",
            ("has failed", "have failed"),
            "`aman workflow instances --status faulted` shows them, `aman workflow retry ID` takes one up again.",
        ),
        (
            Call::get("/notifications/unread-count"),
            "count",
            "notification",
            ("is unread", "are unread"),
            "`aman notification list` shows what you are told.",
        ),
    ] {
        let Ok(answer) = client.call(call).await.and_then(|reply| reply.json()) else { continue };
        let number = answer[key].as_array().map(|all| all.len() as u64).or(answer[key].as_u64()).unwrap_or(0);
        if number > 0 {
            let verb = if number == 1 { verbs.0 } else { verbs.1 };
            found.push(Amiss { what: format!("{} {verb}", count(number, thing)), advice: advice.to_owned() });
        }
    }
    found
}

/// The jobs that run next, soonest first.
fn next(jobs: &[Value], now_ms: Millis) -> Vec<String> {
    let due = |job: &Value| parse_rfc3339(job["next_at"].as_str()?);
    let mut coming: Vec<(Millis, &Value)> = jobs.iter().filter_map(|job| Some((due(job)?, job))).collect();
    coming.sort_by_key(|(at_ms, _)| *at_ms);
    let shown = coming.iter().take(NEXT_MAX).map(|(at_ms, job)| {
        let seconds = u64::try_from((at_ms - now_ms).max(0) / 1000).unwrap_or(0);
        format!("  {}  {}, in {}", time(&job["next_at"]), text(&job["id"]), duration(seconds))
    });
    shown.collect()
}

fn everything(context: &mut Context, base: &str, status: &Value) -> Result<(), Failure> {
    let yes_no = |value: &Value| match value.as_bool() {
        Some(true) => "yes".to_owned(),
        Some(false) => "no".to_owned(),
        None => text_or_dash(value),
    };
    context.out.pairs(&[
        ("address", base.to_owned()),
        ("version", text_or_dash(&status["version"])),
        ("phase", text_or_dash(&status["phase"])),
        ("ready", yes_no(&status["ready"])),
        ("draining", yes_no(&status["draining"])),
        ("safe mode", yes_no(&status["safe_mode"])),
        ("auth", text_or_dash(&status["auth"])),
        ("up for", uptime(status)),
        ("newest event", text_or_dash(&status["sequence"])),
    ])?;
    let subsystems = subsystem_rows(&status["subsystems"]);
    if subsystems.is_empty() {
        return Ok(());
    }
    context.out.line("")?;
    context.out.table(&["PART", "STATE", "DETAIL"], &subsystems)
}

/// One row a subsystem: its state if it names one, and everything else as `name value`.
fn subsystem_rows(subsystems: &Value) -> Vec<Vec<String>> {
    let row = |(name, part): (&String, &Value)| {
        let Some(fields) = part.as_object() else { return vec![name.clone(), text(part), String::new()] };
        let state = ["status", "state", "ok"].iter().find_map(|key| fields.get(*key).map(|value| (*key, value)));
        let shown = match state {
            Some((_, Value::Bool(true))) => "ok".to_owned(),
            Some((_, Value::Bool(false))) => "failed".to_owned(),
            Some((_, value)) => text(value),
            None => "-".to_owned(),
        };
        let is_nothing = |value: &Value| value.is_null() || value == "" || value.as_array().is_some_and(Vec::is_empty);
        let others =
            fields.iter().filter(|(key, value)| Some(key.as_str()) != state.map(|(key, _)| key) && !is_nothing(value));
        let others: Vec<String> = others.map(|(key, value)| format!("{key} {}", text(value))).collect();
        vec![name.clone(), shown, others.join(", ")]
    };
    subsystems.as_object().into_iter().flatten().map(row).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::fake::Fake;
    use crate::cli::out::tests::Printed;

    #[tokio::test]
    async fn a_daemon_that_is_not_ready_is_exit_code_1() {
        let body = r#"{"phase":"draining","ready":false,"uptime_s":61.4,"subsystems":{"bus":{"ok":true,"queue":3}}}"#;
        let fake = Fake::answering(&[&Fake::json(200, body)]).await;
        let printed = Printed::default();
        let mut context = Context::fake(&fake.base, printed.clone(), false);
        let failure = run(&mut context, &StatusArgs { verbose: true }).await.expect_err("it drains");
        assert_eq!(failure.code(), 1);
        let shown = printed.text();
        assert!(shown.contains("1 min 1 s") && shown.contains("bus") && shown.contains("queue 3"), "{shown}");
    }

    #[tokio::test]
    async fn a_glance_says_what_needs_somebody() {
        let status = json!({ "phase": "ready", "ready": true, "version": "9", "uptime_s": 5, "sequence": 7, "safe_mode": true,
            "subsystems": { "watch": { "state": "failed", "restarts": 2, "error": "no" } } });
        let items = |items: Value| Fake::json(200, &json!({ "items": items }).to_string());
        let none = items(json!([]));
        let fake = Fake::answering(&[
            &Fake::json(200, &status.to_string()),
            &items(json!([{ "id": "a", "enabled": true, "health": "failing", "detail": "no\u{1b}" }, { "id": "b" }])),
            &none,
            &items(json!([{ "name": "s", "standing": "active" }])),
            &none,
            &none,
            &items(json!([{ "id": "late", "enabled": true, "next_at": "2999-01-01T00:00:00Z" },
                { "id": "soon", "enabled": true, "next_at": "2000-01-01T00:00:00Z" }])),
            &none,
            &Fake::json(200, r#"{"depth":1}"#),
            &none,
            &Fake::json(403, "{}"),
        ])
        .await;
        let printed = Printed::default();
        let mut context = Context::fake(&fake.base, printed.clone(), false);
        run(&mut context, &StatusArgs { verbose: false }).await.expect("it is ready");
        let shown = printed.text();
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines[0], format!("aman 9 is ready at {}, up for 5 s, newest event 7.", fake.base));
        assert_eq!(lines[1], "It has 2 sources (1 on), 1 skill, 2 jobs.");
        for wanted in ["safe mode", "watch has failed: no", "  source a: no\u{fffd}\n", "  1 dead letter waits for"] {
            assert!(shown.contains(wanted), "{wanted}: {shown}");
        }
        assert!(shown.find("soon, in 0 s") < shown.find("late, in"), "{shown}");
    }
}
