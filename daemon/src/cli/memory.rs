//! `aman memory`: what agents remember.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::{Call, segment};
use super::failure::Failure;
use super::out::{text, text_or_dash, time};
use super::{Context, Paging};

/// What can be done with memory.
#[derive(Subcommand, Debug)]
pub enum MemoryCommand {
    /// List what is remembered, newest first
    List(ListArgs),
    /// Find what is remembered by words
    Search(SearchArgs),
    /// Remember something
    Add(AddArgs),
    /// Correct something
    Edit(EditArgs),
    /// Forget something
    Forget(ForgetArgs),
    /// Write everything into a file, or print it
    Export(ExportArgs),
}

/// Lists facts.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  aman memory list\n  aman memory list --agent aman --all --json")]
pub struct ListArgs {
    /// What this agent knows: its own and what is shared [default: everything]
    #[arg(long, value_name = "ID")]
    agent: Option<String>,
    #[command(flatten)]
    paging: Paging,
}

/// Finds facts.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman memory search coffee
  aman memory search 'tax office' --agent aman

Every word must be there, or a word that begins so.")]
pub struct SearchArgs {
    /// What to look for
    #[arg(required = true)]
    words: Vec<String>,
    /// What this agent knows [default: everything]
    #[arg(long, value_name = "ID")]
    agent: Option<String>,
    /// Show at most this many, best first
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=1000))]
    limit: u64,
}

/// Adds a fact.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman memory add 'Answers in English, please.'
  aman memory add 'The printer is called Otto.' --agent aman --tag home,printer")]
pub struct AddArgs {
    /// One or two sentences
    text: String,
    /// Only this agent knows it [default: all do]
    #[arg(long, value_name = "ID")]
    agent: Option<String>,
    /// Words to file it under
    #[arg(long, value_name = "WORD", value_delimiter = ',')]
    tag: Vec<String>,
}

/// Corrects a fact.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  aman memory edit 0193… 'The printer is called Emil.'\n  aman memory edit 0193… --tag printer"
)]
pub struct EditArgs {
    /// Its id, from `memory list`
    id: String,
    /// What it says from now on
    #[arg(required_unless_present = "tag")]
    text: Option<String>,
    /// What it is filed under from now on
    #[arg(long, value_name = "WORD", value_delimiter = ',')]
    tag: Option<Vec<String>>,
}

/// Forgets a fact.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  aman memory forget 0193…\n\nWith --json a line for each.")]
pub struct ForgetArgs {
    /// Its id, from `memory list`
    #[arg(required = true)]
    ids: Vec<String>,
}

/// Takes everything along.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  aman memory export --format md\n  aman memory export --to memory.json")]
pub struct ExportArgs {
    /// How it is written
    #[arg(long, value_parser = ["json", "md"], default_value = "json")]
    format: String,
    /// What this agent knows [default: everything]
    #[arg(long, value_name = "ID")]
    agent: Option<String>,
    /// Into this file, where nothing is yet, and which only you may read [default: print it]
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
}

/// Runs `aman memory …`.
pub async fn run(context: &mut Context, command: MemoryCommand) -> Result<(), Failure> {
    match command {
        MemoryCommand::List(args) => {
            let call = Call::get("/memory").query_some("agent_id", args.agent.as_ref());
            let none = "Nothing is remembered. `aman memory add` begins.";
            list(context, call, (args.paging.limit, args.paging.all), none).await
        }
        MemoryCommand::Search(args) => {
            let call = Call::get("/memory").query("q", args.words.join(" "));
            let call = call.query_some("agent_id", args.agent.as_ref());
            list(context, call, (args.limit, false), "Nothing that is remembered has all of these words.").await
        }
        MemoryCommand::Add(args) => {
            let body = json!({ "text": args.text, "agent_id": args.agent, "tags": args.tag });
            write(context, Call::post("/memory"), &body, "is remembered").await
        }
        MemoryCommand::Edit(args) => {
            let body = json!({ "text": args.text, "tags": args.tag });
            write(context, Call::post(format!("/memory/{}", segment(&args.id))), &body, "is corrected").await
        }
        MemoryCommand::Forget(args) => forget(context, &args.ids).await,
        MemoryCommand::Export(args) => export(context, &args).await,
    }
}

async fn list(context: &mut Context, call: Call, (limit, all): (u64, bool), none: &str) -> Result<(), Failure> {
    let Some(list) = context.list(call, limit, all).await? else { return Ok(()) };
    if list.items.is_empty() {
        return context.out.line(none);
    }
    let row = |one: &Value| {
        let tags: Vec<String> = one["tags"].as_array().into_iter().flatten().map(text).collect();
        let agent = if one["agent_id"].is_null() { "(all)".to_owned() } else { text(&one["agent_id"]) };
        let source = format!("{} ({})", text(&one["source"]), text(&one["trust"]));
        vec![text(&one["id"]), agent, time(&one["updated_at"]), source, tags.join(" "), text_or_dash(&one["text"])]
    };
    context.rows(&["ID", "AGENT", "SINCE", "SAID BY", "TAGS", "TEXT"], &list, row)
}

async fn write(context: &mut Context, call: Call, body: &Value, done: &str) -> Result<(), Failure> {
    let call = call.body("application/json", body.to_string());
    let Some(fact) = context.answer(call).await? else { return Ok(()) };
    context.out.line(&format!("{} {done}: {}", text(&fact["id"]), text(&fact["text"])))
}

async fn forget(context: &mut Context, ids: &[String]) -> Result<(), Failure> {
    for id in ids {
        if context.answer(Call::delete(format!("/memory/{}", segment(id)))).await?.is_some() {
            context.out.line(&format!("{id} is forgotten."))?;
        }
    }
    Ok(())
}

async fn export(context: &mut Context, args: &ExportArgs) -> Result<(), Failure> {
    let call = Call::get("/memory/export").query("format", &args.format).query_some("agent_id", args.agent.as_ref());
    let reply = context.call(call).await?;
    context.give(&reply.body, args.to.as_deref())
}
