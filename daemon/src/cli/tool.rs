//! `aman tool`: what agents, workflows and you can have done.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::{Call, segment};
use super::failure::Failure;
use super::out::{clean_lines, shorten, text};
use super::{Context, Paging};

/// What can be done with tools.
#[derive(Subcommand, Debug)]
pub enum ToolCommand {
    /// List the tools that there are
    List(ListArgs),
    /// Show what one does and takes
    Show(ShowArgs),
    /// Call one, by the policy that the section tools of the configuration says
    Run(RunArgs),
}

/// Lists tools.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman tool list
  aman tool list --able

With --able only those that [tools] of the configuration file grants you.")]
pub struct ListArgs {
    /// Only those that you could call
    #[arg(long)]
    able: bool,
    #[command(flatten)]
    paging: Paging,
}

/// Shows one.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  aman tool show http_fetch")]
pub struct ShowArgs {
    /// Its name, from `tool list`
    name: String,
}

/// Calls one.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman tool run http_fetch '{\"url\": \"https://example.org/\"}'
  aman tool run read '{\"path\": \"~/notes/today.md\"}'
  aman tool run exec '{\"argv\": [\"git\", \"status\"]}' --dry-run

A call that needs an approval waits for it: answer in another window, with `aman approve`.")]
pub struct RunArgs {
    /// Its name, from `tool list`
    name: String,
    /// Its input as JSON
    #[arg(default_value = "{}")]
    input: String,
    /// Only say what it would touch, and whether you would be asked
    #[arg(long)]
    dry_run: bool,
}

/// Runs `aman tool …`.
pub async fn run(context: &mut Context, command: ToolCommand) -> Result<(), Failure> {
    match command {
        ToolCommand::List(args) => list(context, &args).await,
        ToolCommand::Show(args) => show(context, &args.name).await,
        ToolCommand::Run(args) => call(context, &args).await,
    }
}

async fn list(context: &mut Context, args: &ListArgs) -> Result<(), Failure> {
    let path = if args.able { "/capabilities" } else { "/tools" };
    let Some(list) = context.list(Call::get(path), args.paging.limit, args.paging.all).await? else { return Ok(()) };
    if list.items.is_empty() {
        return context
            .out
            .line("There are no tools that you could call. Grant some under [tools] of the configuration file.");
    }
    let row = |one: &Value| {
        let what = shorten(&text(&one["description"]), 80);
        vec![text(&one["name"]), text(&one["permission"]), text(&one["source"]), what]
    };
    context.rows(&["NAME", "CAN", "SOURCE", "WHAT IT DOES"], &list, row)
}

async fn show(context: &mut Context, name: &str) -> Result<(), Failure> {
    let items = context.every_item(Call::get("/tools")).await?;
    let Some(tool) = items.iter().find(|tool| tool["name"] == name) else {
        return Err(Failure::Failed(format!("There is no tool '{name}'. `aman tool list` shows them.")));
    };
    if context.out.json() {
        return context.out.line(&tool.to_string());
    }
    let pairs: Vec<(&str, String)> =
        ["name", "source", "permission"].iter().map(|name| (*name, text(&tool[*name]))).collect();
    context.out.pairs(&pairs)?;
    context.out.line(&format!("\n{}\n", clean_lines(&text(&tool["description"]))))?;
    let schema = serde_json::to_string_pretty(&tool["schema"]).unwrap_or_default();
    context.out.line(&clean_lines(&schema))
}

async fn call(context: &mut Context, args: &RunArgs) -> Result<(), Failure> {
    let input: Value = serde_json::from_str(&args.input)
        .map_err(|error| Failure::Usage(format!("The input is no JSON: {error}. Put it in single quotes.")))?;
    let body = json!({ "input": input }).to_string();
    let mut call = Call::post(format!("/tools/{}/execute", segment(&args.name))).body("application/json", body);
    if args.dry_run {
        call = call.query("dry_run", true);
    }
    let call = call.header("x-aman-confirm", "yes").lasting();
    let Some(answer) = context.answer(call).await? else { return Ok(()) };
    if args.dry_run {
        let asked = answer["asks"]
            .as_str()
            .map_or_else(|| "It would run without asking.".to_owned(), |why| format!("You would be asked: {why}"));
        let what = answer["preview"].as_str().map_or_else(String::new, |what| format!("It {what}\n"));
        return context.out.line(&clean_lines(&format!("{what}{asked}")));
    }
    let output = &answer["output"];
    let readable = ["content", "text", "stdout"].iter().find_map(|name| output[*name].as_str()).or(output.as_str());
    match readable {
        Some(text) => context.out.line(&clean_lines(text)),
        None => context.out.line(&clean_lines(&serde_json::to_string_pretty(output).unwrap_or_default())),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::fake::Fake;
    use crate::cli::out::tests::Printed;
    use crate::cli::{Cli, Command};

    #[tokio::test]
    async fn tools_are_listed_shown_and_called() {
        let list = "{\"items\":[{\"name\":\"read\",\"permission\":\"read\",\"source\":\"builtin\",\
                    \"description\":\"Reads a file.\",\"schema\":{\"type\":\"object\"}}],\"next_cursor\":null}";
        let read = "{\"tool\":\"read\",\"output\":{\"content\":\"hello\"}}";
        let dry = "{\"tool\":\"exec\",\"dry_run\":true,\"preview\":\"runs ls\",\"asks\":\"It runs a command.\"}";
        let answers = [list, list, read, dry].map(|body| Fake::json(200, body));
        let fake = Fake::answering(&answers.each_ref().map(String::as_str)).await;
        for (words, wanted) in [
            (["list", "--able"].as_slice(), "Reads a file."),
            (&["show", "read"], "\"object\""),
            (&["run", "read", "{\"path\":\"~/a\"}"], "hello"),
            (&["run", "exec", "--dry-run"], "It runs ls\nYou would be asked: It runs a command."),
        ] {
            let cli = Cli::try_parse_from([&["aman", "tool"], words].concat()).expect("the words are a command");
            let Command::Tool(command) = cli.command else { panic!("not a tool command") };
            let printed = Printed::default();
            let mut context = Context::fake(&fake.base, printed.clone(), false);
            run(&mut context, command).await.expect("it works");
            assert!(printed.text().contains(wanted), "{}", printed.text());
        }
        assert!(fake.requests()[2].ends_with("{\"input\":{\"path\":\"~/a\"}}"), "{}", fake.requests()[2]);
    }
}
