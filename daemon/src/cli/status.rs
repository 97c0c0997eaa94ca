//! `aman status`: is the daemon there, and how is it?

use clap::Args;
use serde_json::Value;

use super::Context;
use super::client::Call;
use super::failure::{FAILED, Failure};
use super::out::{duration, text, text_or_dash};

/// Shows the daemon's state.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman status
  aman status --json | aman jq -r .phase

Exit code 0 when the daemon is ready, 1 when it is not or does not answer.")]
pub struct StatusArgs {}

/// Prints it; a daemon that is not ready is exit code 1.
pub async fn run(context: &mut Context, _args: &StatusArgs) -> Result<(), Failure> {
    let client = context.client()?;
    let reply = client.call(Call::get("/runtime/status")).await?;
    let status = reply.json()?;
    let ready = status["ready"].as_bool() == Some(true);
    if context.out.json() {
        context.out.raw(&reply.body)?;
    } else {
        show(context, client.base(), &status)?;
    }
    if ready { Ok(()) } else { Err(Failure::Said(FAILED)) }
}

fn show(context: &mut Context, base: &str, status: &Value) -> Result<(), Failure> {
    let yes_no = |value: &Value| match value.as_bool() {
        Some(true) => "yes".to_owned(),
        Some(false) => "no".to_owned(),
        None => text_or_dash(value),
    };
    let uptime = status["uptime_s"].as_f64().map_or_else(|| "-".to_owned(), |s| duration(s.max(0.0) as u64));
    context.out.pairs(&[
        ("address", base.to_owned()),
        ("version", text_or_dash(&status["version"])),
        ("phase", text_or_dash(&status["phase"])),
        ("ready", yes_no(&status["ready"])),
        ("draining", yes_no(&status["draining"])),
        ("safe mode", yes_no(&status["safe_mode"])),
        ("auth", text_or_dash(&status["auth"])),
        ("up for", uptime),
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
        let others =
            fields.iter().filter(|(key, value)| Some(key.as_str()) != state.map(|(key, _)| key) && !value.is_null());
        let others: Vec<String> = others.map(|(key, value)| format!("{key} {}", text(value))).collect();
        vec![name.clone(), shown, others.join(", ")]
    };
    subsystems.as_object().into_iter().flatten().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::fake::Fake;
    use crate::cli::out::tests::Printed;

    #[tokio::test]
    async fn a_daemon_that_is_not_ready_is_exit_code_1() {
        let body = r#"{"phase":"draining","ready":false,"uptime_s":61.4,"subsystems":{"bus":{"ok":true,"queue":3}}}"#;
        let fake = Fake::answering(&[&Fake::json(200, body)]).await;
        let printed = Printed::default();
        let mut context = Context::fake(&fake.base, printed.clone(), false);
        let failure = run(&mut context, &StatusArgs {}).await.expect_err("it drains");
        assert_eq!(failure.code(), 1);
        let shown = printed.text();
        assert!(shown.contains("1 min 1 s") && shown.contains("bus") && shown.contains("queue 3"), "{shown}");
    }
}
