//! `aman audit`: who changed what, and whether the record is whole.

use clap::{Args, Subcommand};
use serde_json::Value;

use super::client::Call;
use super::failure::{FAILED, Failure};
use super::out::{clean, count, text, text_or_dash, time};
use super::{Context, Paging};

/// What can be done with the audit log.
#[derive(Subcommand, Debug)]
pub enum AuditCommand {
    /// List the newest records
    List(ListArgs),
    /// Check that no record was changed or removed
    Verify(VerifyArgs),
}

/// Lists records.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman audit list
  aman audit list --action dlq.retry --since 2026-11-01T00:00:00Z
  aman audit list --outcome refused --all --json")]
pub struct ListArgs {
    /// Only this action
    #[arg(long)]
    action: Option<String>,
    /// Only with this claimed operator
    #[arg(long)]
    operator: Option<String>,
    /// Only by this authenticated principal
    #[arg(long)]
    principal: Option<String>,
    /// Only with this outcome
    #[arg(long)]
    outcome: Option<String>,
    /// Only from this time on, such as 2026-11-22T00:00:00Z
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only before this time
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    #[command(flatten)]
    paging: Paging,
}

/// Verifies the chain.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman audit verify && echo whole
  aman audit verify --head 41:9f86d081884c7d65…

Exit code 1 when a record does not fit the chain, or some at its end are missing. Whoever can write the database can
also write a new chain with a new end: a head that you kept elsewhere tells.")]
pub struct VerifyArgs {
    /// The head that an earlier verification printed: also check that the log still holds it
    #[arg(long, value_name = "SEQ:HASH")]
    head: Option<String>,
}

/// Runs `aman audit …`.
pub async fn run(context: &mut Context, command: AuditCommand) -> Result<(), Failure> {
    match command {
        AuditCommand::List(args) => list(context, &args).await,
        AuditCommand::Verify(args) => verify(context, &args).await,
    }
}

async fn list(context: &mut Context, args: &ListArgs) -> Result<(), Failure> {
    let call = Call::get("/audit-log")
        .query_some("action", args.action.as_ref())
        .query_some("operator", args.operator.as_ref())
        .query_some("principal", args.principal.as_ref())
        .query_some("outcome", args.outcome.as_ref())
        .query_some("since", args.since.as_ref())
        .query_some("until", args.until.as_ref());
    let Some(list) = context.list(call, args.paging.limit, args.paging.all).await? else { return Ok(()) };
    if list.items.is_empty() {
        return context.out.line("Nothing recorded. Each change, by whomever and whatever way, gets a line here.");
    }
    let row = |record: &Value| {
        let claimed = text(&record["claimed_operator"]);
        let who = text(&record["principal"]);
        vec![
            text(&record["seq"]),
            time(&record["time"]),
            if claimed.is_empty() { who } else { format!("{who} (as {claimed})") },
            text(&record["action"]),
            text_or_dash(&record["target"]),
            text(&record["outcome"]),
            text(&record["status"]),
        ]
    };
    context.rows(&["SEQ", "TIME", "WHO", "ACTION", "TARGET", "OUTCOME", "STATUS"], &list, row)
}

async fn verify(context: &mut Context, args: &VerifyArgs) -> Result<(), Failure> {
    let reply = context.call(Call::get("/audit-log/verify").query_some("head", args.head.as_ref())).await?;
    let answer = reply.json()?;
    let whole = answer["ok"].as_bool() == Some(true);
    if context.out.json() {
        context.out.raw(&reply.body)?;
    } else {
        let checked = count(answer["checked"].as_u64().unwrap_or(0), "record");
        let verdict = if whole {
            let head = answer["head"].as_str().map(|head| format!("\nIts head, to keep elsewhere: {}", clean(head)));
            format!("The audit log is whole: {checked} checked.{}", head.unwrap_or_default())
        } else {
            let first_bad = text_or_dash(&answer["first_bad"]);
            let what = match answer["fault"].as_str() {
                Some("missing") => "and what followed is missing",
                Some("replaced") => "is not the one of the head that was given",
                _ => "does not fit the chain",
            };
            format!("The audit log was changed: record {first_bad} {what} ({checked} checked).")
        };
        verdict.lines().try_for_each(|line| context.out.line(line))?;
    }
    if whole { Ok(()) } else { Err(Failure::Said(FAILED)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::fake::Fake;
    use crate::cli::out::tests::Printed;

    #[tokio::test]
    async fn a_broken_chain_is_exit_code_1() {
        let fake =
            Fake::answering(&[&Fake::json(200, r#"{"ok":false,"checked":9,"first_bad":7,"fault":"altered"}"#)]).await;
        let printed = Printed::default();
        let mut context = Context::fake(&fake.base, printed.clone(), false);
        let failure =
            run(&mut context, AuditCommand::Verify(VerifyArgs { head: None })).await.expect_err("it is broken");
        assert_eq!(failure.code(), 1);
        assert!(printed.text().contains("record 7 does not fit"));
    }
}
