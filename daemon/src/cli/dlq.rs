//! `aman dlq`: dead letters, the deliveries that failed for good.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::{Call, Reply, segment};
use super::explain::{error_text, event_id};
use super::failure::Failure;
use super::out::{clean_lines, count, shorten, text, text_or_dash, time};
use super::{Context, PAGE_MAX, Paging, Sure};

/// Characters of an error that a list shows.
const ERROR_CHARS: usize = 80;

/// What can be done with dead letters.
#[derive(Subcommand, Debug)]
pub enum DlqCommand {
    /// List what failed for good
    List(ListArgs),
    /// List the same failures together
    Groups(GroupsArgs),
    /// Show one, with its event and every error
    Show(ShowArgs),
    /// Try one, or all alike, again
    Retry(RetryArgs),
    /// Give one up; a record of it stays
    Discard(DiscardArgs),
}

/// Lists dead letters.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman dlq list
  aman dlq list --consumer skill/inbox-triage --reason timeout
  aman dlq list --all --json")]
pub struct ListArgs {
    /// Only with this reason
    #[arg(long, value_parser = ["attempts_exhausted", "rejected", "timeout", "causation_loop", "interrupted",
        "unknown_outcome"])]
    reason: Option<String>,
    /// Only of this event source
    #[arg(long)]
    source: Option<String>,
    /// Only of this event type
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// Only of this consumer
    #[arg(long)]
    consumer: Option<String>,
    /// Only failures alike; `dlq groups` shows fingerprints
    #[arg(long)]
    fingerprint: Option<String>,
    #[command(flatten)]
    paging: Paging,
}

/// Lists groups.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  aman dlq groups")]
pub struct GroupsArgs {}

/// Shows one.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  aman dlq show 01a20340-d59b-7000-8000-0002782cf4a7")]
pub struct ShowArgs {
    /// Its id, from `dlq list`; the beginning of one is enough where no other begins so
    id: String,
}

/// Tries again.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman dlq retry 01a20340-d59b-7000-8000-0002782cf4a7
  aman dlq retry 01a20340-d59b-7000-8000-0002782cf4a7 --yes --reason 'disk is free again'
  aman dlq retry --all-like 728d1f06c4d2e518
  aman dlq retry --all-like 728d1f06c4d2e518 --dry-run

It asks first; where no terminal is there to ask on, --yes is needed. A letter that fails again keeps its id.")]
pub struct RetryArgs {
    /// Its id, from `dlq list`
    #[arg(required_unless_present = "all_like", conflicts_with = "all_like")]
    id: Option<String>,
    /// Every one with this fingerprint
    #[arg(long, value_name = "FINGERPRINT")]
    all_like: Option<String>,
    /// Why, for the audit log
    #[arg(long)]
    reason: Option<String>,
    #[command(flatten)]
    sure: Sure,
    /// Say what would happen; touch nothing
    #[arg(long)]
    dry_run: bool,
}

/// Gives one up.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  aman dlq discard 01a20340-d59b-7000-8000-0002782cf4a7 --reason 'was a test'")]
pub struct DiscardArgs {
    /// Its id, from `dlq list`
    id: String,
    /// Why, for the audit log
    #[arg(long)]
    reason: Option<String>,
    /// Do not ask, where the daemon wants a confirmation
    #[arg(long, short = 'y')]
    yes: bool,
}

/// Runs `aman dlq …`.
pub async fn run(context: &mut Context, command: DlqCommand) -> Result<(), Failure> {
    match command {
        DlqCommand::List(args) => list(context, &args).await,
        DlqCommand::Groups(_) => groups(context).await,
        DlqCommand::Show(args) => show(context, &args.id).await,
        DlqCommand::Retry(args) => retry(context, &args).await,
        DlqCommand::Discard(args) => discard(context, &args).await,
    }
}

async fn list(context: &mut Context, args: &ListArgs) -> Result<(), Failure> {
    let call = Call::get("/dlq")
        .query_some("reason", args.reason.as_ref())
        .query_some("source", args.source.as_ref())
        .query_some("type", args.kind.as_ref())
        .query_some("consumer", args.consumer.as_ref())
        .query_some("fingerprint", args.fingerprint.as_ref());
    let Some(list) = context.list(call, args.paging.limit, args.paging.all).await? else { return Ok(()) };
    if list.items.is_empty() {
        let filtered = [&args.reason, &args.source, &args.kind, &args.consumer, &args.fingerprint];
        return context.out.line(if filtered.iter().any(|one| one.is_some()) {
            "Nothing of that kind failed for good. `aman dlq list` shows all dead letters."
        } else {
            "Nothing failed for good. What does will wait here until you try it again or discard it."
        });
    }
    let row = |item: &Value| {
        vec![
            text(&item["id"]),
            time(&item["last_failed_at"]),
            text(&item["consumer"]),
            text(&item["event"]["type"]),
            text(&item["reason"]),
            text(&item["attempts"]),
            shorten(&error_text(&item["error_chain"]), ERROR_CHARS),
        ]
    };
    context.rows(&["ID", "FAILED", "CONSUMER", "TYPE", "REASON", "ATTEMPTS", "ERROR"], &list, row)
}

async fn groups(context: &mut Context) -> Result<(), Failure> {
    let Some(list) = context.list(Call::get("/dlq/groups"), PAGE_MAX, false).await? else { return Ok(()) };
    if list.items.is_empty() {
        return context.out.line("Nothing failed for good. What does will wait here, the same failures together.");
    }
    let row = |item: &Value| {
        let error =
            ["error_chain", "error", "sample"].iter().map(|name| error_text(&item[*name])).find(|e| !e.is_empty());
        vec![
            text(&item["fingerprint"]),
            text(&item["count"]),
            text(&item["consumer"]),
            text_or_dash(&item["type"]),
            text(&item["reason"]),
            time(&item["last_failed_at"]),
            shorten(&error.unwrap_or_default(), ERROR_CHARS),
        ]
    };
    context.table(&["FINGERPRINT", "COUNT", "CONSUMER", "TYPE", "REASON", "LAST FAILED", "ERROR"], &list.items, row)
}

async fn show(context: &mut Context, id: &str) -> Result<(), Failure> {
    // The contract has no route for one letter: it is found in the list.
    let items = context.every_item(Call::get("/dlq")).await?;
    let mut like = items.iter().filter(|item| text(&item["id"]).starts_with(id));
    let item = match (like.next(), like.next()) {
        (Some(item), None) => item,
        (Some(_), Some(_)) => {
            let what = format!("Several dead letters have ids that begin with '{id}'. Give more of the one you mean.");
            return Err(Failure::Failed(what));
        }
        (None, _) => {
            return Err(Failure::Failed(format!("There is no dead letter '{id}'. `aman dlq list --all` shows them.")));
        }
    };
    let id = text(&item["id"]);
    if context.out.json() {
        return context.out.line(&item.to_string());
    }
    let mut pairs: Vec<(&str, String)> = ["id", "consumer", "reason", "attempts", "fingerprint"]
        .iter()
        .map(|name| (*name, text(&item[*name])))
        .collect();
    for name in ["first_failed_at", "last_failed_at", "expires_at"] {
        pairs.push((name, if item[name].is_null() { "never".to_owned() } else { time(&item[name]) }));
    }
    pairs.push(("event", event_id(&item["event"])));
    context.out.pairs(&pairs)?;
    context.out.line("\nErrors, outermost first:")?;
    for error in item["error_chain"].as_array().map(Vec::as_slice).unwrap_or_default() {
        context.out.line(&format!("  {}", clean_lines(&error_text(error))))?;
    }
    if item["event"].is_object() {
        context.out.line("\nEvent:")?;
        context.out.line(&clean_lines(&format!("{:#}", item["event"])))?;
    }
    context.out.line(&format!("\nTry it again: aman dlq retry {id}"))
}

async fn retry(context: &mut Context, args: &RetryArgs) -> Result<(), Failure> {
    let mut body = reason(args.reason.as_ref());
    let (path, what) = match (&args.id, &args.all_like) {
        (Some(id), _) => (format!("/dlq/{}/retry", segment(id)), format!("dead letter {id}")),
        (None, Some(like)) => {
            body["fingerprint"] = json!(like);
            ("/dlq/retry".to_owned(), format!("every dead letter with fingerprint {like}"))
        }
        (None, None) => return Err(Failure::Usage("Say which: an id or --all-like FINGERPRINT.".to_owned())),
    };
    let call = Call::post(path).body("application/json", body.to_string());
    let call = call.header("x-aman-confirm", "yes");
    if args.dry_run {
        let Some(answer) = context.answer(call.query("dry_run", true)).await? else { return Ok(()) };
        context.out.line("Nothing was touched. This would happen:")?;
        return context.out.line(&clean_lines(&format!("{answer:#}")));
    }
    context.confirm(args.sure.yes, &format!("Try {what} again? What it did outside the daemon may happen twice."))?;
    let Some(answer) = context.answer(call).await? else { return Ok(()) };
    let retried = match answer["items"].as_array() {
        Some(items) => count(items.len() as u64, "dead letter"),
        None => match ["retried", "count"].iter().find_map(|name| answer[*name].as_u64()) {
            Some(number) => count(number, "dead letter"),
            None => what,
        },
    };
    let event = text(&answer["event_id"]);
    let follow = if event.is_empty() { String::new() } else { format!(" Follow it: aman why {event}") };
    context.out.line(&format!("Trying {retried} again.{follow}"))
}

async fn discard(context: &mut Context, args: &DiscardArgs) -> Result<(), Failure> {
    let call = Call::post(format!("/dlq/{}/discard", segment(&args.id)))
        .body("application/json", reason(args.reason.as_ref()).to_string());
    let confirmed = call.clone().header("x-aman-confirm", "yes");
    let client = context.client()?;
    let first = client.call(if args.yes { confirmed.clone() } else { call }).await;
    let reply = match first {
        // Only a daemon that is set to be strict asks for it.
        Err(Failure::Refused(reply)) if !args.yes && wants_confirmation(&reply) => {
            context.confirm(false, &format!("Discard dead letter {}?", args.id))?;
            client.call(confirmed).await?
        }
        other => other?,
    };
    if context.out.json() {
        return context.out.raw(&reply.body);
    }
    context.out.line(&format!("Dead letter {} is discarded; a record of it stays.", args.id))
}

fn wants_confirmation(reply: &Reply) -> bool {
    reply.status == 409 && reply.json().is_ok_and(|problem| problem["code"] == "confirmation_required")
}

/// The body that says why.
fn reason(reason: Option<&String>) -> Value {
    reason.map_or_else(|| json!({}), |reason| json!({ "reason": reason }))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::fake::Fake;
    use crate::cli::out::tests::Printed;
    use crate::cli::{Cli, Command};

    async fn play(fake: &Fake, words: &[&str], json: bool) -> (Result<(), Failure>, String) {
        let cli = Cli::try_parse_from([&["aman", "dlq"], words].concat()).expect("the words are a command");
        let Command::Dlq(command) = cli.command else { panic!("not a dlq command") };
        let printed = Printed::default();
        let mut context = Context::fake(&fake.base, printed.clone(), json);
        let done = run(&mut context, command).await;
        (done, printed.text())
    }

    #[tokio::test]
    async fn retry_needs_a_yes_and_sends_it() {
        let fake = Fake::answering(&[&Fake::json(
            200,
            "{\"id\":17,\"delivery_id\":17,\"event_id\":\"e\",\"status\":\"retrying\"}",
        )])
        .await;
        let (done, printed) = play(&fake, &["retry", "17", "--yes", "--reason", "x"], false).await;
        assert!(done.is_ok());
        assert_eq!(printed, "Trying dead letter 17 again. Follow it: aman why e\n");
        let request = &fake.requests()[0];
        assert!(request.starts_with("POST /dlq/17/retry ") && request.contains("x-aman-confirm: yes"), "{request}");
        assert!(request.ends_with("{\"reason\":\"x\"}"));
    }

    #[tokio::test]
    async fn all_alike_are_named_by_fingerprint() {
        let fake = Fake::answering(&[&Fake::json(200, "{\"items\":[{},{}]}")]).await;
        let (done, printed) = play(&fake, &["retry", "--all-like", "f1", "-y"], false).await;
        assert!(done.is_ok());
        assert_eq!(printed, "Trying 2 dead letters again.\n");
        assert!(fake.requests()[0].ends_with("{\"fingerprint\":\"f1\"}"));
    }

    #[tokio::test]
    async fn a_conflict_is_exit_code_3_and_the_answer_is_kept_for_programs() {
        let body = "{\"code\":\"invalid_state\",\"detail\":\"It is done already.\"}";
        let fake = Fake::answering(&[&Fake::json(409, body)]).await;
        let (done, _) = play(&fake, &["retry", "17", "-y"], true).await;
        assert_eq!(done.expect_err("409 is a failure").code(), 3);
    }

    #[tokio::test]
    async fn show_finds_one_in_the_list() {
        let list = "{\"items\":[{\"id\":16},{\"id\":17,\"consumer\":\"skill/x\",\"event\":{\"id\":\"e\"},\"error_chain\":[\"a\",\"b\"]}],\"next_cursor\":null}";
        let fake = Fake::answering(&[&Fake::json(200, list), &Fake::json(200, list)]).await;
        let (done, printed) = play(&fake, &["show", "17"], false).await;
        assert!(done.is_ok());
        assert!(printed.contains("skill/x") && printed.contains("  a\n  b\n"), "{printed}");
        let (done, _) = play(&fake, &["show", "18"], false).await;
        assert!(done.expect_err("18 is not there").message().contains("no dead letter '18'"));
    }
}
