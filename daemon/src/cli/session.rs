//! `aman session`: what was talked with agents.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::{Call, segment};
use super::failure::Failure;
use super::out::{clean_lines, count, text, text_or_dash, time};
use super::{Context, Paging, Sure};

/// What can be done with sessions.
#[derive(Subcommand, Debug)]
pub enum SessionCommand {
    /// List sessions, those that changed last first
    List(ListArgs),
    /// Show one with all that was said on its branch
    Show(ShowArgs),
    /// Write a conversation out as Markdown or JSON
    Export(ExportArgs),
    /// Give one a title
    Rename(RenameArgs),
    /// Stop the turn that is under way in one; what came of it stays
    Stop(StopArgs),
    /// Let one take no messages any more
    Close(CloseArgs),
    /// Remove one with all that was said in it
    Delete(DeleteArgs),
    /// Look for words in all that was said
    Search(SearchArgs),
}

/// Lists sessions.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman session list
  aman session list --agent aman --kind event
  aman session list --all --json

Without --kind all are listed: those in which a person talks, those that an event or a schedule began, those that a workflow
or another agent asked for, and those of plugins.")]
pub struct ListArgs {
    /// Only those with this agent
    #[arg(long, value_name = "ID")]
    agent: Option<String>,
    /// Only those of this kind
    #[arg(long, value_parser = ["person", "event", "asked", "plugin"])]
    kind: Option<String>,
    #[command(flatten)]
    paging: Paging,
}

/// Shows one.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  aman session show 0193…\n  aman session show 0193… --branches all --json")]
pub struct ShowArgs {
    /// Its id, from `session list`
    id: String,
    /// With all: also what was said anew, or answered once more
    #[arg(long, value_parser = ["shown", "all"], default_value = "shown")]
    branches: String,
}

/// Exports one.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman session export 0193… > talk.md
  aman session export 0193… --format json --output talk.json

Markdown is the branch that is shown, for people, and what is written unless --json asks for JSON: all branches, with
attachments.")]
pub struct ExportArgs {
    /// Its id, from `session list`
    id: String,
    /// How it is written
    #[arg(long, value_parser = ["md", "json"])]
    format: Option<String>,
    /// Write it here, where nothing is yet, instead of stdout
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Renames one.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  aman session rename 0193… 'Plans for the garden'")]
pub struct RenameArgs {
    /// Its id, from `session list`
    id: String,
    /// One line
    title: String,
}

/// Stops a turn.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  aman session stop 0193…")]
pub struct StopArgs {
    /// Its id, from `session list`
    id: String,
}

/// Closes one.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  aman session close 0193…")]
pub struct CloseArgs {
    /// Its id, from `session list`
    id: String,
}

/// Removes one.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  aman session delete 0193…\n  aman session delete 0193… --yes")]
pub struct DeleteArgs {
    /// Its id, from `session list`
    id: String,
    #[command(flatten)]
    sure: Sure,
}

/// Searches.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  aman session search garden\n  aman session search 'tax return' --agent aman")]
pub struct SearchArgs {
    /// Words, all of which must be there; each may be the begin of one
    #[arg(required = true)]
    words: Vec<String>,
    /// Only what was said with this agent
    #[arg(long, value_name = "ID")]
    agent: Option<String>,
    /// Show at most this many
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=100))]
    limit: u64,
}

/// Runs `aman session …`.
pub async fn run(context: &mut Context, command: SessionCommand) -> Result<(), Failure> {
    match command {
        SessionCommand::List(args) => list(context, &args).await,
        SessionCommand::Show(args) => show(context, &args).await,
        SessionCommand::Export(args) => {
            let format = args.format.as_deref().unwrap_or(if context.out.json() { "json" } else { "md" });
            export_to(context, &args.id, format, args.output.as_deref()).await
        }
        SessionCommand::Rename(args) => rename(context, &args).await,
        SessionCommand::Stop(args) => stop(context, &args.id).await,
        SessionCommand::Close(args) => close(context, &args.id).await,
        SessionCommand::Delete(args) => delete(context, &args).await,
        SessionCommand::Search(args) => search(context, &args).await,
    }
}

fn place(id: &str, what: &str) -> String {
    format!("/chat/session/{}{what}", segment(id))
}

async fn list(context: &mut Context, args: &ListArgs) -> Result<(), Failure> {
    let call =
        Call::get("/chat/sessions").query_some("agent_id", args.agent.as_ref()).query_some("kind", args.kind.as_ref());
    let Some(list) = context.list(call, args.paging.limit, args.paging.all).await? else { return Ok(()) };
    if list.items.is_empty() {
        return context.out.line("There is no session. `aman chat` begins one.");
    }
    rows(context, &list.items)?;
    if list.more { context.out.line("There are more; --limit or --all shows them.") } else { Ok(()) }
}

/// A table of sessions.
pub fn rows(context: &mut Context, items: &[Value]) -> Result<(), Failure> {
    let row = |one: &Value| {
        let texts = ["id", "agent_id", "kind", "state", "message_count"].map(|name| text(&one[name]));
        let mut row = texts.to_vec();
        row.extend([time(&one["updated_at"]), text_or_dash(&one["title"])]);
        row
    };
    context.table(&["ID", "AGENT", "KIND", "STATE", "MESSAGES", "CHANGED", "TITLE"], items, row)
}

async fn show(context: &mut Context, args: &ShowArgs) -> Result<(), Failure> {
    let state = context.call(Call::get(place(&args.id, "/state"))).await?.json()?;
    let call = Call::get(place(&args.id, "/history")).query("branches", &args.branches);
    let Some(list) = context.list(call, 0, true).await? else { return Ok(()) };
    let mut pairs: Vec<(&str, String)> = ["id", "title", "agent_id", "kind", "state", "version", "trust", "principal"]
        .map(|name| (name, text_or_dash(&state[name])))
        .to_vec();
    pairs.push(("changed", time(&state["updated_at"])));
    context.out.pairs(&pairs)?;
    for message in &list.items {
        let who = match message["role"].as_str() {
            Some("tool") => format!("tool {}", text(&message["tool"])),
            _ => text(&message["role"]),
        };
        context.out.line("")?;
        context.out.line(&format!("{who}, {}:", time(&message["created_at"])))?;
        let said = clean_lines(message["text"].as_str().unwrap_or_default());
        if !said.is_empty() {
            context.out.line(said.trim_end())?;
        }
        for call in message["tool_calls"].as_array().into_iter().flatten() {
            context.out.line(&format!("[{} {}]", text(&call["name"]), text(&call["arguments"])))?;
        }
        for one in message["attachments"].as_array().into_iter().flatten() {
            context.out.line(&format!("[attached: {}, {}]", text(&one["name"]), text(&one["media_type"])))?;
        }
    }
    Ok(())
}

/// Writes a conversation to a new file, or to stdout.
pub async fn export_to(context: &mut Context, id: &str, format: &str, to: Option<&Path>) -> Result<(), Failure> {
    let reply = context.call(Call::get(place(id, "/export")).query("format", format)).await?;
    context.give(&reply.body, to)
}

async fn rename(context: &mut Context, args: &RenameArgs) -> Result<(), Failure> {
    let body = json!({ "title": args.title }).to_string();
    let call = Call::post(place(&args.id, "/rename")).body("application/json", body);
    let Some(renamed) = context.answer(call).await? else { return Ok(()) };
    context.out.line(&format!("Its title is '{}' now.", text(&renamed["title"])))
}

async fn stop(context: &mut Context, id: &str) -> Result<(), Failure> {
    let Some(stopped) = context.answer(Call::post(place(id, "/stop"))).await? else { return Ok(()) };
    let what = if stopped["stopped"] == true { "Stopped. What was said stays." } else { "No turn was under way." };
    context.out.line(what)
}

async fn close(context: &mut Context, id: &str) -> Result<(), Failure> {
    let Some(closed) = context.answer(Call::post(place(id, "/close"))).await? else { return Ok(()) };
    context.out.line(&format!("{} takes no messages any more; what was said stays.", text(&closed["id"])))
}

async fn delete(context: &mut Context, args: &DeleteArgs) -> Result<(), Failure> {
    let state = context.call(Call::get(place(&args.id, "/state"))).await?.json()?;
    let messages = count(state["message_count"].as_u64().unwrap_or(0), "message");
    let title = text_or_dash(&state["title"]);
    context.confirm(args.sure.yes, &format!("Remove '{title}' with {messages} for good?"))?;
    let call = Call::delete(place(&args.id, "")).header("x-aman-confirm", "yes");
    if context.answer(call).await?.is_some() {
        context.out.line(&format!("'{title}' is gone, with {messages}."))?;
    }
    Ok(())
}

async fn search(context: &mut Context, args: &SearchArgs) -> Result<(), Failure> {
    let call = Call::get("/chat/search")
        .query("q", args.words.join(" "))
        .query_some("agent_id", args.agent.as_ref())
        .query("limit", args.limit);
    let Some(found) = context.answer(call).await? else { return Ok(()) };
    let items = found["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    if items.is_empty() {
        return context.out.line("Nobody said that.");
    }
    let row = |one: &Value| {
        vec![
            text(&one["session_id"]),
            text_or_dash(&one["title"]),
            text(&one["role"]),
            time(&one["created_at"]),
            text(&one["snippet"]),
        ]
    };
    context.table(&["ID", "TITLE", "WHO", "WHEN", "WORDS"], items, row)
}
