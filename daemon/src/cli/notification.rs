//! `aman notification`: what the person is told.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::{Call, segment};
use super::failure::Failure;
use super::out::{clean_lines, count, text, text_or_dash, time};
use super::{Context, Paging};

/// What can be done with notifications.
#[derive(Subcommand, Debug)]
pub enum NotificationCommand {
    /// List what you were told, newest first
    List(ListArgs),
    /// Show one with all it says
    Show(ShowArgs),
    /// Take note of one: it stays, and counts what is like it
    Ack(AckArgs),
    /// Put one, or all, away
    Dismiss(DismissArgs),
    /// Have the daemon tell something, to see where it comes out
    Test(TestArgs),
}

/// Lists notifications.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman notification list
  aman notification list --severity error,critical
  aman notification list --dismissed --all --json

Without --dismissed it shows what nobody put away.")]
pub struct ListArgs {
    /// Only these: info, warning, error, critical
    #[arg(long, value_name = "SEVERITY", value_delimiter = ',', value_parser = ["info", "warning", "error", "critical"])]
    severity: Vec<String>,
    /// Only of this category, such as skill, cron, security
    #[arg(long)]
    category: Option<String>,
    /// Also what was put away
    #[arg(long)]
    dismissed: bool,
    #[command(flatten)]
    paging: Paging,
}

/// Shows one.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  aman notification show 0193…")]
pub struct ShowArgs {
    /// Its id, from `notification list`
    id: String,
}

/// Acknowledges one.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  aman notification ack 0193…")]
pub struct AckArgs {
    /// Its id, from `notification list`
    id: String,
}

/// Dismisses.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman notification dismiss 0193…
  aman notification dismiss --all
  aman notification dismiss --all --severity info")]
pub struct DismissArgs {
    /// Its id, from `notification list`
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    id: Option<String>,
    /// All of them
    #[arg(long)]
    all: bool,
    /// With --all: only these
    #[arg(long, value_name = "SEVERITY", value_delimiter = ',', requires = "all",
        value_parser = ["info", "warning", "error", "critical"])]
    severity: Vec<String>,
    /// With --all: only of this category
    #[arg(long, requires = "all")]
    category: Option<String>,
}

/// Tries.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman notification test
  aman notification test --severity critical --title 'Is anybody there?'

Only with debug.force_enable_debug_endpoints = true, or without a token; `aman sink test` tries one sink always.")]
pub struct TestArgs {
    /// One line
    #[arg(long)]
    title: Option<String>,
    /// The rest
    #[arg(long)]
    message: Option<String>,
    /// How loud
    #[arg(long, value_parser = ["info", "warning", "error", "critical"], default_value = "info")]
    severity: String,
}

/// Runs `aman notification …`.
pub async fn run(context: &mut Context, command: NotificationCommand) -> Result<(), Failure> {
    match command {
        NotificationCommand::List(args) => list(context, &args).await,
        NotificationCommand::Show(args) => show(context, &args.id).await,
        NotificationCommand::Ack(args) => change(context, &args.id, "ack", "is noted").await,
        NotificationCommand::Dismiss(args) => dismiss(context, &args).await,
        NotificationCommand::Test(args) => test(context, &args).await,
    }
}

async fn list(context: &mut Context, args: &ListArgs) -> Result<(), Failure> {
    let mut call = Call::get("/notifications").query_some("category", args.category.as_ref());
    if !args.severity.is_empty() {
        call = call.query("severity", args.severity.join(","));
    }
    if !args.dismissed {
        call = call.query("active_only", true);
    }
    let Some(list) = context.list(call, args.paging.limit, args.paging.all).await? else { return Ok(()) };
    if list.items.is_empty() {
        return context.out.line("Nothing new for you. With --dismissed it shows what you put away.");
    }
    let row = |one: &Value| {
        let texts = ["id", "severity", "status", "category"].map(|name| text(&one[name]));
        let mut row = texts.to_vec();
        row.extend([text(&one["count"]), time(&one["last_at"]), text(&one["title"])]);
        row
    };
    context.rows(&["ID", "SEVERITY", "STATUS", "CATEGORY", "TIMES", "LAST", "TITLE"], &list, row)
}

async fn show(context: &mut Context, id: &str) -> Result<(), Failure> {
    let Some(one) = context.answer(Call::get(format!("/notifications/{}", segment(id)))).await? else { return Ok(()) };
    let mut pairs: Vec<(&str, String)> = ["id", "title", "severity", "status", "category", "consumer", "count"]
        .iter()
        .map(|name| (*name, text_or_dash(&one[*name])))
        .collect();
    for name in ["created_at", "last_at", "acknowledged_at", "dismissed_at"] {
        if !one[name].is_null() {
            pairs.push((name, time(&one[name])));
        }
    }
    if one["event_id"].is_string() {
        pairs.push(("event", text(&one["event_id"])));
    }
    if one["action"].is_object() {
        pairs.push(("action", format!("{}: {}", text(&one["action"]["label"]), text(&one["action"]["url"]))));
    }
    context.out.pairs(&pairs)?;
    let message = one["message"].as_str().unwrap_or_default();
    if message.is_empty() {
        return Ok(());
    }
    context.out.line(&format!("\n{}", clean_lines(message)))
}

async fn change(context: &mut Context, id: &str, action: &str, done: &str) -> Result<(), Failure> {
    let call = Call::post(format!("/notifications/{}/{action}", segment(id)));
    let Some(_) = context.answer(call.body("application/json", "{}".to_owned())).await? else { return Ok(()) };
    context.out.line(&format!("{id} {done}."))
}

async fn dismiss(context: &mut Context, args: &DismissArgs) -> Result<(), Failure> {
    if let Some(id) = &args.id {
        return change(context, id, "dismiss", "is put away").await;
    }
    let mut body = json!({});
    if !args.severity.is_empty() {
        body["severity"] = args.severity.join(",").into();
    }
    if let Some(category) = &args.category {
        body["category"] = category.as_str().into();
    }
    let call = Call::post("/notifications/dismiss-all").body("application/json", body.to_string());
    let Some(answer) = context.answer(call).await? else { return Ok(()) };
    let dismissed = count(answer["dismissed"].as_u64().unwrap_or(0), "notification");
    context.out.line(&format!("Put away: {dismissed}."))
}

async fn test(context: &mut Context, args: &TestArgs) -> Result<(), Failure> {
    let mut body = json!({ "severity": args.severity });
    for (name, value) in [("title", &args.title), ("message", &args.message)] {
        if let Some(value) = value {
            body[name] = value.as_str().into();
        }
    }
    let call = Call::post("/notifications/test").body("application/json", body.to_string());
    let Some(answer) = context.answer(call).await? else { return Ok(()) };
    context.out.line(&format!("Told as {}. Sinks get it as aman.notification.created.", text(&answer["id"])))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::fake::Fake;
    use crate::cli::out::tests::Printed;
    use crate::cli::{Cli, Command};

    #[tokio::test]
    async fn notifications_are_listed_shown_and_put_away() {
        let one = "{\"id\":\"n-1\",\"status\":\"unread\",\"severity\":\"error\",\"category\":\"skill\",\"title\":\"It failed\",\
                   \"message\":\"why\\nhow\",\"count\":3,\"action\":{\"label\":\"Why\",\"url\":\"/x\"}}";
        let list = format!("{{\"items\":[{one}],\"next_cursor\":null}}");
        let answers = [&list, one, one, "{\"dismissed\":2}"].map(|body| Fake::json(200, body));
        let fake = Fake::answering(&answers.each_ref().map(String::as_str)).await;
        for (words, wanted) in [
            (["list", "--severity", "error,critical"].as_slice(), "It failed"),
            (&["show", "n-1"], "Why: /x"),
            (&["ack", "n-1"], "n-1 is noted."),
            (&["dismiss", "--all", "--category", "skill"], "Put away: 2 notifications."),
        ] {
            let cli =
                Cli::try_parse_from([&["aman", "notification"], words].concat()).expect("the words are a command");
            let Command::Notification(command) = cli.command else { panic!("not a notification command") };
            let printed = Printed::default();
            let mut context = Context::fake(&fake.base, printed.clone(), false);
            run(&mut context, command).await.expect("it works");
            assert!(printed.text().contains(wanted), "{}", printed.text());
        }
        let asked = fake.requests();
        assert!(
            asked[0].starts_with("GET /notifications?severity=error%2Ccritical&active_only=true&limit=50 "),
            "{}",
            asked[0]
        );
        assert!(asked[3].ends_with("{\"category\":\"skill\"}"), "{}", asked[3]);
    }
}
