//! `aman sink`: where events go.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::{Call, segment};
use super::failure::Failure;
use super::out::{clean_lines, count, text, text_or_dash, time};
use super::{Context, PAGE_MAX, Paging, Sure};

/// What can be done with sinks.
#[derive(Subcommand, Debug)]
pub enum SinkCommand {
    /// List all sinks and how they stand
    List(ListArgs),
    /// Show one: its settings, what it sent, what waits, what went wrong
    Show(NameArgs),
    /// Switch one off; what is for it waits, also over restarts
    Pause(PauseArgs),
    /// Switch one on again, also after its other side answered 410 Gone
    Resume(ResumeArgs),
    /// List what could not be sent for good, newest first
    Failures(FailuresArgs),
    /// Send again what failed
    Retry(RetryArgs),
    /// Give up what waits to be sent
    Discard(DiscardArgs),
    /// Send one event that is made for it, and see how that ends
    Test(TestArgs),
}

/// Lists sinks.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  aman sink list\n  aman sink list --json | aman jq -r '.items[] | select(.health == \"failing\").id'"
)]
pub struct ListArgs {}

/// Names a sink.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  aman sink show orders")]
pub struct NameArgs {
    /// Its id, from `sink list`
    id: String,
}

/// Pauses a sink.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  aman sink pause orders

Events for it wait until `aman sink resume`, for as long as the sink's `keep` says.")]
pub struct PauseArgs {
    /// Its id, from `sink list`
    id: String,
}

/// Resumes a sink.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  aman sink resume orders")]
pub struct ResumeArgs {
    /// Its id, from `sink list`
    id: String,
}

/// Lists failures.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  aman sink failures orders\n  aman sink failures orders --all --json")]
pub struct FailuresArgs {
    /// Its id, from `sink list`
    id: String,
    #[command(flatten)]
    paging: Paging,
}

/// Retries failures.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman sink retry orders 0193…-0
  aman sink retry orders --all

It is sent under the same key, so a receiver that has it already can tell.")]
pub struct RetryArgs {
    /// Its id, from `sink list`
    id: String,
    /// Which, from `sink failures`
    #[arg(required_unless_present = "all")]
    key: Option<String>,
    /// All of them
    #[arg(long, conflicts_with = "key")]
    all: bool,
}

/// Discards what waits.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman sink discard orders
  aman sink discard orders --yes

Also for a sink that is in the configuration no more, which `sink list` shows as long as something waits for it. What waited
to be sent is listed by `sink failures`, and `sink retry` sends it again. Events that had not reached such a sink are given
up for good; `aman why` shows them as discarded.")]
pub struct DiscardArgs {
    /// Its id, from `sink list`
    id: String,
    #[command(flatten)]
    sure: Sure,
}

/// Tries a sink.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman sink test orders --dry-run
  aman sink test orders --data '{\"n\": 1}'

Exit code 1 when the other side did not take it.")]
pub struct TestArgs {
    /// Its id, from `sink list`
    id: String,
    /// The event's data as JSON
    #[arg(long, value_name = "JSON")]
    data: Option<String>,
    /// Show what would be sent, and where
    #[arg(long)]
    dry_run: bool,
}

/// Runs `aman sink …`.
pub async fn run(context: &mut Context, command: SinkCommand) -> Result<(), Failure> {
    match command {
        SinkCommand::List(_) => list(context).await,
        SinkCommand::Show(args) => show(context, &args.id).await,
        SinkCommand::Pause(args) => switch(context, &args.id, "pause", "is paused").await,
        SinkCommand::Resume(args) => switch(context, &args.id, "resume", "goes on").await,
        SinkCommand::Failures(args) => failures(context, &args).await,
        SinkCommand::Retry(args) => retry(context, &args).await,
        SinkCommand::Discard(args) => discard(context, &args).await,
        SinkCommand::Test(args) => test(context, &args).await,
    }
}

async fn list(context: &mut Context) -> Result<(), Failure> {
    let Some(list) = context.list(Call::get("/sinks"), PAGE_MAX, false).await? else { return Ok(()) };
    if list.items.is_empty() {
        return context.out.line(
            "No sink yet: events stay here. `aman config set sinks.NAME.kind=…` adds one; the README shows each kind.",
        );
    }
    let row = |sink: &Value| {
        vec![
            text(&sink["id"]),
            text_or_dash(&sink["kind"]),
            text(&sink["health"]),
            text(&sink["state"]),
            text_or_dash(&sink["sent"]),
            text(&sink["queue"]["waiting"]),
            text_or_dash(&sink["failed"]),
            text_or_dash(&sink["detail"]),
        ]
    };
    context.table(&["ID", "KIND", "HEALTH", "STATE", "SENT", "WAITING", "FAILED", "DETAIL"], &list.items, row)
}

async fn show(context: &mut Context, id: &str) -> Result<(), Failure> {
    let Some(sink) = context.answer(Call::get(format!("/sink/{}", segment(id)))).await? else { return Ok(()) };
    let mut pairs = Vec::new();
    for key in ["id", "kind", "to", "health", "state", "detail", "sent", "retries", "failed", "unknown"] {
        if !sink[key].is_null() && sink[key] != "" {
            pairs.push((key, text(&sink[key])));
        }
    }
    let queue = &sink["queue"];
    pairs.push(("waiting", text(&queue["waiting"])));
    for (name, at) in [
        ("oldest waits since", &queue["oldest_at"]),
        ("next is tried", &queue["next_at"]),
        ("last sent", &sink["last_sent_at"]),
        ("last failed", &sink["last_error_at"]),
    ] {
        if !at.is_null() {
            pairs.push((name, time(at)));
        }
    }
    if !sink["last_error"].is_null() {
        pairs.push(("last error", text(&sink["last_error"])));
    }
    context.out.pairs(&pairs)?;
    context.out.line("\nSettings:")?;
    context.out.line(&clean_lines(&format!("{:#}", sink["config"])))
}

async fn switch(context: &mut Context, id: &str, action: &str, done: &str) -> Result<(), Failure> {
    let call = Call::post(format!("/sink/{}/{action}", segment(id)));
    let call = call.body("application/json", json!({}).to_string());
    let Some(_) = context.answer(call).await? else { return Ok(()) };
    context.out.line(&format!("The sink {id} {done}."))
}

async fn failures(context: &mut Context, args: &FailuresArgs) -> Result<(), Failure> {
    let call = Call::get(format!("/sink/{}/failures", segment(&args.id)));
    let Some(list) = context.list(call, args.paging.limit, args.paging.all).await? else { return Ok(()) };
    if list.items.is_empty() {
        return context.out.line("Nothing failed for good: all that was sent arrived, or is still tried.");
    }
    let row = |failed: &Value| {
        let texts = [&failed["id"], &failed["event"]["type"], &failed["event"]["id"], &failed["attempts"]];
        let mut row: Vec<String> = texts.into_iter().map(text).collect();
        row.extend([time(&failed["failed_at"]), text_or_dash(&failed["error"])]);
        row
    };
    context.table(&["KEY", "TYPE", "EVENT", "ATTEMPTS", "FAILED", "ERROR"], &list.items, row)?;
    if list.more { context.out.line("There are more; --all shows them.") } else { Ok(()) }
}

async fn retry(context: &mut Context, args: &RetryArgs) -> Result<(), Failure> {
    let place = format!("/sink/{}/failure", segment(&args.id));
    let call =
        |key: &str| Call::post(format!("{place}/{}/retry", segment(key))).body("application/json", "{}".to_owned());
    if let Some(key) = &args.key {
        let Some(_) = context.answer(call(key)).await? else { return Ok(()) };
        return context.out.line(&format!("{key} is sent again."));
    }
    let failed = context.every_item(Call::get(format!("/sink/{}/failures", segment(&args.id)))).await?;
    let client = context.client()?;
    let mut retried = 0;
    for one in &failed {
        match client.call(call(one["id"].as_str().unwrap_or_default())).await {
            Ok(_) => retried += 1,
            // Somebody else has retried it meanwhile, or retention has taken it.
            Err(Failure::Refused(reply)) if [404, 409].contains(&reply.status) => {}
            Err(other) => {
                context.out.complain(&format!("{retried} of {} are sent again.", failed.len()));
                return Err(other);
            }
        }
    }
    if context.out.json() {
        return context.out.line(&json!({ "retried": retried }).to_string());
    }
    context.out.line(&format!("{retried} are sent again."))
}

async fn discard(context: &mut Context, args: &DiscardArgs) -> Result<(), Failure> {
    context.confirm(args.sure.yes, &format!("Give up everything that waits to be sent by {}?", args.id))?;
    let call = Call::post(format!("/sink/{}/discard", segment(&args.id))).header("x-aman-confirm", "yes");
    let Some(answer) = context.answer(call.body("application/json", json!({}).to_string())).await? else {
        return Ok(());
    };
    let given_up = [&answer["discarded"], &answer["undelivered"]].into_iter().filter_map(Value::as_u64).sum();
    context.out.line(&format!("{} given up.", count(given_up, "message")))
}

async fn test(context: &mut Context, args: &TestArgs) -> Result<(), Failure> {
    let mut body = json!({});
    if let Some(data) = &args.data {
        body["data"] =
            serde_json::from_str(data).map_err(|error| Failure::Usage(format!("--data is no JSON: {error}.")))?;
    }
    let call = Call::post(format!("/sink/{}/test", segment(&args.id))).body("application/json", body.to_string());
    let call = if args.dry_run { call.query("dry_run", true) } else { call };
    let answer = context.call(call).await?;
    let (raw, answer) = (answer.body.clone(), answer.json()?);
    let outcome = answer["outcome"].as_str().unwrap_or_default();
    if context.out.json() {
        context.out.raw(&raw)?;
    } else if args.dry_run {
        context.out.line(&format!("To {} would go:", text(&answer["to"])))?;
        context.out.line(&clean_lines(&format!("{:#}", answer["event"])))?;
    } else if outcome == "sent" {
        context.out.line(&format!("{} took the event {}.", text(&answer["to"]), text(&answer["event"]["id"])))?;
    }
    if args.dry_run || outcome == "sent" {
        return Ok(());
    }
    let why = answer["detail"].as_str().unwrap_or_default();
    Err(Failure::Failed(format!("The event was not taken ({}): {why}", outcome.replace('_', " "))))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::fake::Fake;
    use crate::cli::out::tests::Printed;
    use crate::cli::{Cli, Command};

    #[tokio::test]
    async fn sinks_are_listed_switched_and_tried() {
        let list = "{\"items\":[{\"id\":\"a\",\"kind\":\"mqtt\",\"health\":\"ok\",\"state\":\"idle\",\"sent\":3,\
                    \"queue\":{\"waiting\":7}}],\"next_cursor\":null}";
        let sent = "{\"id\":\"a\",\"to\":\"https://x/\",\"event\":{\"id\":\"test-1\"},\"outcome\":\"sent\"}";
        let failed = "{\"id\":\"a\",\"to\":\"https://x/\",\"event\":{},\"outcome\":\"not_sent\",\"detail\":\"500\"}";
        let answers = [list, "{\"id\":\"a\"}", sent, failed].map(|body| Fake::json(200, body));
        let fake = Fake::answering(&answers.each_ref().map(String::as_str)).await;
        for (words, wanted) in [
            (["list"].as_slice(), Ok("idle")),
            (&["resume", "a"], Ok("The sink a goes on.")),
            (&["test", "a"], Ok("https://x/ took the event test-1.")),
            (&["test", "a", "--data", "[1]"], Err("not taken (not sent): 500")),
        ] {
            let cli = Cli::try_parse_from([&["aman", "sink"], words].concat()).expect("the words are a command");
            let Command::Sink(command) = cli.command else { panic!("not a sink command") };
            let printed = Printed::default();
            let mut context = Context::fake(&fake.base, printed.clone(), false);
            let done = run(&mut context, command).await;
            match (done, wanted) {
                (Ok(()), Ok(wanted)) => assert!(printed.text().contains(wanted), "{}", printed.text()),
                (Err(failure), Err(wanted)) => assert!(format!("{failure:?}").contains(wanted), "{failure:?}"),
                (done, _) => panic!("{words:?}: {done:?}"),
            }
        }
        assert!(fake.requests()[1].starts_with("POST /sink/a/resume "));
    }

    #[tokio::test]
    async fn what_somebody_else_retried_does_not_stop_the_others() {
        let list = "{\"items\":[{\"id\":\"1\"},{\"id\":\"2\"},{\"id\":\"3\"}],\"next_cursor\":null}";
        let answers =
            [(200, list), (200, "{}"), (409, "{}"), (200, "{}")].map(|(status, body)| Fake::json(status, body));
        let fake = Fake::answering(&answers.each_ref().map(String::as_str)).await;
        let printed = Printed::default();
        let mut context = Context::fake(&fake.base, printed.clone(), false);
        let cli = Cli::try_parse_from(["aman", "sink", "retry", "a", "--all"]).expect("the words are a command");
        let Command::Sink(command) = cli.command else { panic!("not a sink command") };
        run(&mut context, command).await.expect("two of three are retried");
        assert_eq!(printed.text(), "2 are sent again.\n");
    }
}
