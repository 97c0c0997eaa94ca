//! `aman agent`: who the agents are.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::{Call, segment};
use super::failure::Failure;
use super::out::{clean_lines, digest, shorten, text, text_or_dash, time};
use super::usage::spent;
use super::{Context, PAGE_MAX, Sure, chat, read_file};

/// Characters of a description or an error that a list shows.
const WORDS_CHARS: usize = 80;
/// How soon what is waited for is looked at again.
const WAIT: std::time::Duration = std::time::Duration::from_millis(500);
/// Largest definition, in bytes.
const FILE_BYTES_MAX: u64 = 256 << 10;

/// What can be done with agents.
#[derive(Subcommand, Debug)]
pub enum AgentCommand {
    /// List all agents and what they are doing
    List(ListArgs),
    /// Show one: its model, tools, limits and definition
    Show(ShowArgs),
    /// Have one take a turn, and print its answer
    Run(RunArgs),
    /// Store a definition, from a TOML or JSON file
    Put(PutArgs),
    /// Remove an agent; its sessions and its history stay
    Remove(ConfirmedArgs),
    /// Switch an agent on
    Enable(NameArgs),
    /// Switch an agent off; what is for it waits
    Disable(NameArgs),
    /// Read the file of an agent again
    Reload(NameArgs),
    /// List the definitions that an agent had
    Versions(NameArgs),
    /// Put an earlier definition in force again
    Rollback(RollbackArgs),
    /// Have an agent look through the configured sources for what is new
    Explore(ExploreArgs),
}

/// Lists agents.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  aman agent list")]
pub struct ListArgs {}

/// Names an agent.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman agent show aman
  aman agent show aman --source > aman.toml")]
pub struct ShowArgs {
    /// The agent
    id: String,
    /// Print its definition as it was written
    #[arg(long)]
    source: bool,
}

/// Takes a turn.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman agent run aman 'What failed today?'
  git diff | aman agent run reviewer
  aman agent run inbox 'File this' --attach letter.txt --json

In a session of its own, which stays: `aman session list`. stdout has the answer and nothing else, with --json a line for
each frame, {\"event\": …, \"data\": …}, to the last, `done` or `error`. Calls that must be allowed are asked about on a
terminal; else they wait for `aman approve`. Ctrl-C stops the turn, once more leaves it.

Exit codes: 0 the answer is there, 1 it failed, 3 the agent takes none now, 4 it was stopped, 5 it goes on without you.")]
pub struct RunArgs {
    /// The agent
    id: String,
    /// What it is told; without it, what is piped in
    text: Option<String>,
    /// Send a text file or a picture along; - is stdin
    #[arg(long, value_name = "FILE")]
    attach: Vec<PathBuf>,
}

/// Stores a definition.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman agent put inbox inbox.toml
  aman agent put inbox inbox.toml --dry-run
An agent that may run commands is put as the file agents/<id>.toml beside the configuration, and then read by `aman agent reload`.")]
pub struct PutArgs {
    /// The agent
    id: String,
    /// The definition: TOML, or JSON when it ends with .json
    file: PathBuf,
    /// Say what would happen; touch nothing
    #[arg(long)]
    dry_run: bool,
}

/// Names an agent that is changed for good.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  aman agent remove inbox --yes")]
pub struct ConfirmedArgs {
    /// The agent
    id: String,
    #[command(flatten)]
    sure: Sure,
}

/// Names an agent.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman agent disable inbox
  aman agent enable inbox
  aman agent reload inbox
  aman agent versions inbox")]
pub struct NameArgs {
    /// The agent
    id: String,
}

/// Puts an earlier definition in force.
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  aman agent rollback inbox 4 --yes      the number is that of `aman agent versions inbox`"
)]
pub struct RollbackArgs {
    /// The agent
    id: String,
    /// The version, or its digest
    version: String,
    #[command(flatten)]
    sure: Sure,
}

/// Begins an exploration.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman agent explore
  aman agent explore rust releases --wait
  aman agent explore --source news --agent reader
The sources stand in aman.toml, as [explore.sources.news] with kind = \"feed\" and url = \"https://…\".")]
pub struct ExploreArgs {
    /// What is looked for; without it whatever is new
    words: Vec<String>,
    /// Look there only
    #[arg(long)]
    source: Option<String>,
    /// The agent that looks through it
    #[arg(long)]
    agent: Option<String>,
    /// Wait for what it finds, and print that
    #[arg(long)]
    wait: bool,
}

/// Runs `aman agent …`.
pub async fn run(context: &mut Context, command: AgentCommand) -> Result<(), Failure> {
    match command {
        AgentCommand::List(_) => list(context).await,
        AgentCommand::Show(args) => show(context, &args).await,
        AgentCommand::Run(args) => chat::run_once(context, args.id, args.text, &args.attach).await,
        AgentCommand::Put(args) => put(context, &args).await,
        AgentCommand::Remove(args) => remove(context, &args).await,
        AgentCommand::Enable(args) => act(context, &args.id, "status", &json!({ "status": "idle" })).await,
        AgentCommand::Disable(args) => act(context, &args.id, "status", &json!({ "status": "disabled" })).await,
        AgentCommand::Reload(args) => act(context, &args.id, "reload", &json!({})).await,
        AgentCommand::Explore(args) => explore(context, &args).await,
        AgentCommand::Versions(args) => versions(context, &args.id).await,
        AgentCommand::Rollback(args) => {
            context.confirm(args.sure.yes, &format!("Put version {} of {} in force again?", args.version, args.id))?;
            let key = if args.version.len() == 64 { "digest" } else { "version" };
            act(context, &args.id, "rollback", &json!({ key: args.version })).await
        }
    }
}

async fn explore(context: &mut Context, args: &ExploreArgs) -> Result<(), Failure> {
    let query = Some(args.words.join(" ")).filter(|words| !words.is_empty());
    let body = json!({ "agent_id": args.agent, "source": args.source, "query": query });
    let call = Call::post("/explore/start").body("application/json", body.to_string());
    if !args.wait {
        let Some(begun) = context.answer(call).await? else { return Ok(()) };
        let session = text(&begun["session_id"]);
        context.out.line(&format!("It looks through {}.", words(&begun["sources"])))?;
        return context.out.line(&format!("What it finds will be in: aman session show {session}"));
    }
    let begun = context.call(call).await?.json()?;
    let instance = format!("/workflow-instance/{}", segment(&text(&begun["instance_id"])));
    loop {
        let shown = context.call(Call::get(instance.clone())).await?.json()?;
        match shown["status"].as_str() {
            Some("completed") => break,
            Some("faulted" | "cancelled") => {
                let why = text(&shown["error"]["detail"]);
                return Err(Failure::Failed(format!(
                    "The exploration has no result: {}. {why}",
                    text(&shown["status"])
                )));
            }
            _ => tokio::time::sleep(WAIT).await,
        }
    }
    let state = format!("/chat/session/{}/state", segment(&text(&begun["session_id"])));
    let Some(state) = context.answer(Call::get(state)).await? else { return Ok(()) };
    let said = state["messages"].as_array().and_then(|all| all.iter().rev().find(|one| one["role"] == "assistant"));
    let said = said.and_then(|one| one["text"].as_str()).unwrap_or("It said nothing.");
    context.out.line(clean_lines(said).trim_end())?;
    context.out.line(&format!("\nTalk about it: aman chat --session {}", text(&state["id"])))
}

/// The texts of a list.
fn words(list: &Value) -> String {
    let words: Vec<String> = list.as_array().into_iter().flatten().map(text).collect();
    words.join(", ")
}

fn path(id: &str) -> String {
    format!("/agent/{}", segment(id))
}

async fn list(context: &mut Context) -> Result<(), Failure> {
    let Some(list) = context.list(Call::get("/agents"), PAGE_MAX, false).await? else { return Ok(()) };
    let row = |one: &Value| {
        let model = text(&one["model"]);
        vec![
            text(&one["id"]),
            text(&one["status"]),
            if model.is_empty() { "default".to_owned() } else { model },
            text(&one["origin"]),
            text(&one["usage"]["today"]["tokens"]),
            shorten(&text_or_dash(&one["description"]), WORDS_CHARS),
        ]
    };
    context.table(&["ID", "STATUS", "MODEL", "FROM", "TOKENS TODAY", "WHAT FOR"], &list.items, row)
}

async fn show(context: &mut Context, args: &ShowArgs) -> Result<(), Failure> {
    let Some(shown) = context.answer(Call::get(path(&args.id))).await? else { return Ok(()) };
    let source = clean_lines(shown["text"].as_str().unwrap_or_default());
    if args.source {
        return context.out.line(source.trim_end());
    }
    let mut pairs: Vec<(&str, String)> = Vec::new();
    let names = ["id", "status", "reason", "description", "model", "trust", "origin", "digest", "updated_at", "usage"];
    for name in names {
        if name == "usage" {
            let usage = &shown[name];
            pairs.push((name, format!("today {}; ever {}", spent(&usage["today"]), spent(&usage["ever"]))));
        } else if !shown[name].is_null() && shown[name] != "" {
            pairs.push((name, shorten(&text(&shown[name]), 400)));
        }
    }
    context.out.pairs(&pairs)?;
    context.out.line(&format!("\n{}", source.trim_end()))
}

async fn put(context: &mut Context, args: &PutArgs) -> Result<(), Failure> {
    let source = read_file(&args.file, FILE_BYTES_MAX)?;
    let kind =
        if args.file.extension().is_some_and(|end| end == "json") { "application/json" } else { "application/toml" };
    let call = Call::put(path(&args.id)).body(kind, source);
    let call = if args.dry_run { call.query("dry_run", true) } else { call };
    let Some(shown) = context.answer(call).await? else { return Ok(()) };
    let id = text(&shown["id"]);
    if args.dry_run {
        return context.out.line(&format!("Nothing was touched. {id} would be stored."));
    }
    context.out.line(&format!("Stored {id}. Talk to it: aman chat --agent {id}"))
}

async fn remove(context: &mut Context, args: &ConfirmedArgs) -> Result<(), Failure> {
    context.confirm(args.sure.yes, &format!("Remove the agent {}?", args.id))?;
    if context.answer(Call::delete(path(&args.id))).await?.is_none() {
        return Ok(());
    }
    context.out.line(&format!("Removed {}. Its sessions stay; what is for it waits until it comes back.", args.id))
}

async fn act(context: &mut Context, id: &str, what: &str, body: &Value) -> Result<(), Failure> {
    let call = Call::post(format!("{}/{what}", path(id)))
        .body("application/json", body.to_string())
        .header("x-aman-confirm", "yes");
    let Some(shown) = context.answer(call).await? else { return Ok(()) };
    let digest = digest(&shown["digest"]);
    context.out.line(&format!("{id} is {} now, by the definition {digest}.", text(&shown["status"])))
}

async fn versions(context: &mut Context, id: &str) -> Result<(), Failure> {
    let call = Call::get(format!("{}/versions", path(id)));
    let Some(list) = context.list(call, PAGE_MAX, false).await? else { return Ok(()) };
    let row = |one: &Value| {
        let mark = if one["current"] == true { "current" } else { "" };
        vec![
            text(&one["version"]),
            digest(&one["digest"]),
            time(&one["created_at"]),
            text(&one["principal"]),
            mark.to_owned(),
        ]
    };
    context.table(&["VERSION", "DIGEST", "STORED", "BY", ""], &list.items, row)
}
