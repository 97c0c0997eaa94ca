//! `aman source`: what brings events in.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::{Call, segment};
use super::failure::Failure;
use super::out::{clean_lines, text, text_or_dash, time};
use super::{Context, PAGE_MAX};

/// What can be done with sources.
#[derive(Subcommand, Debug)]
pub enum SourceCommand {
    /// List all sources and how they stand
    List(ListArgs),
    /// Show one: its settings, what it told, what went wrong
    Show(NameArgs),
    /// Switch one off; it stays off over restarts
    Pause(PauseArgs),
    /// Switch one on again
    Resume(ResumeArgs),
}

/// Lists sources.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  aman source list\n  aman source list --json | aman jq -r '.items[].id'")]
pub struct ListArgs {}

/// Names a source.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  aman source show default")]
pub struct NameArgs {
    /// Its id, from `source list`
    id: String,
}

/// Pauses a source.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  aman source pause default

What a folder misses meanwhile is told after `aman source resume`; a paused hook answers 503, so its sender tries again.")]
pub struct PauseArgs {
    /// Its id, from `source list`
    id: String,
}

/// Resumes a source.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  aman source resume default")]
pub struct ResumeArgs {
    /// Its id, from `source list`
    id: String,
}

/// Runs `aman source …`.
pub async fn run(context: &mut Context, command: SourceCommand) -> Result<(), Failure> {
    match command {
        SourceCommand::List(_) => list(context).await,
        SourceCommand::Show(args) => show(context, &args.id).await,
        SourceCommand::Pause(args) => switch(context, &args.id, "pause", "is paused").await,
        SourceCommand::Resume(args) => switch(context, &args.id, "resume", "goes on").await,
    }
}

async fn list(context: &mut Context) -> Result<(), Failure> {
    let Some(list) = context.list(Call::get("/event-sources"), PAGE_MAX, false).await? else { return Ok(()) };
    if list.items.is_empty() {
        return context
            .out
            .line("No source yet: events are pushed only. `aman config set sources.NAME.kind=…` adds one; the README shows each kind.");
    }
    let row = |source: &Value| {
        vec![
            text(&source["id"]),
            text(&source["kind"]),
            text(&source["health"]),
            text(&source["state"]),
            text(&source["events"]),
            if source["last_event_at"].is_null() { "-".to_owned() } else { time(&source["last_event_at"]) },
            text_or_dash(&source["detail"]),
        ]
    };
    context.table(&["ID", "KIND", "HEALTH", "STATE", "EVENTS", "LAST EVENT", "DETAIL"], &list.items, row)
}

async fn show(context: &mut Context, id: &str) -> Result<(), Failure> {
    let Some(source) = context.answer(Call::get(format!("/event-source/{}", segment(id)))).await? else {
        return Ok(());
    };
    let mut pairs = Vec::new();
    for key in ["id", "kind", "source", "health", "state", "detail", "trust", "path", "url", "events", "skipped"] {
        if !source[key].is_null() && source[key] != "" {
            pairs.push((key, text(&source[key])));
        }
    }
    for key in ["last_poll_at", "next_poll_at", "last_event_at", "silent_since"] {
        if !source[key].is_null() {
            pairs.push((key, time(&source[key])));
        }
    }
    if !source["last_error"].is_null() {
        pairs.push(("last error", text(&source["last_error"])));
    }
    context.out.pairs(&pairs)?;
    context.out.line("\nSettings:")?;
    context.out.line(&clean_lines(&format!("{:#}", source["config"])))?;
    let changed: Vec<String> = source["changed"].as_array().into_iter().flatten().map(text).collect();
    if changed.is_empty() {
        return Ok(());
    }
    context.out.line(&format!("\nChanged while it ran, before the file's: {}", changed.join(", ")))
}

async fn switch(context: &mut Context, id: &str, action: &str, done: &str) -> Result<(), Failure> {
    let call = Call::post(format!("/event-source/{}/{action}", segment(id)));
    let call = call.body("application/json", json!({}).to_string());
    let Some(_) = context.answer(call).await? else { return Ok(()) };
    context.out.line(&format!("The source {id} {done}."))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::fake::Fake;
    use crate::cli::out::tests::Printed;
    use crate::cli::{Cli, Command};

    #[tokio::test]
    async fn sources_are_listed_and_switched() {
        let list = "{\"items\":[{\"id\":\"a\",\"kind\":\"files\",\"health\":\"ok\",\"state\":\"watching\",\"events\":3}],\
                    \"next_cursor\":null}";
        let fake = Fake::answering(&[&Fake::json(200, list), &Fake::json(200, "{\"id\":\"a\"}")]).await;
        for (words, wanted) in [(["list"].as_slice(), "watching"), (&["pause", "a"], "The source a is paused.")] {
            let cli = Cli::try_parse_from([&["aman", "source"], words].concat()).expect("the words are a command");
            let Command::Source(command) = cli.command else { panic!("not a source command") };
            let printed = Printed::default();
            let mut context = Context::fake(&fake.base, printed.clone(), false);
            run(&mut context, command).await.expect("it answers");
            assert!(printed.text().contains(wanted), "{}", printed.text());
        }
        assert!(fake.requests()[1].starts_with("POST /event-source/a/pause "));
    }
}
