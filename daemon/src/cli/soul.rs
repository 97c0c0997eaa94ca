//! `aman soul`: who the assistant is, and what it does not do.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::Call;
use super::failure::{FAILED, Failure};
use super::out::{DIGEST_CHARS, clean_lines, digest, text, text_or_dash, time};
use super::{Context, Paging, Sure, editor, read_file};
use crate::config;

/// Longest file that is read; the daemon takes less, and says how much.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What can be done with the soul.
#[derive(Subcommand, Debug)]
pub enum SoulCommand {
    /// Show who it is, and its boundaries
    Show(ShowArgs),
    /// Write it in an editor, or put a file in force
    Edit(EditArgs),
    /// Check a text; change nothing
    Check(CheckArgs),
    /// List the texts that were in force, newest first
    Versions(VersionsArgs),
    /// Put an earlier text in force again
    Rollback(RollbackArgs),
    /// Print what models are told before everything else
    Prompt(PromptArgs),
}

/// Shows it.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  aman soul show\n  aman soul show --raw > SOUL.md")]
pub struct ShowArgs {
    /// Print the whole text
    #[arg(long)]
    raw: bool,
}

/// Writes it.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  EDITOR=nano aman soul edit
  aman soul edit --from SOUL.md

The daemon checks the text before it is in force, and keeps the one before it. A text that was changed by somebody else \
meanwhile is left so. The file soul/SOUL.md of the data folder may be edited as well: what is saved there is taken over.")]
pub struct EditArgs {
    /// Take this file instead of opening an editor; - is standard input
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
}

/// Checks a text.
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  aman soul check SOUL.md\n\nExit code 1 when it is wrong; each field is named with its line."
)]
pub struct CheckArgs {
    /// The file; - is standard input
    file: PathBuf,
}

/// Lists the history.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  aman soul versions")]
pub struct VersionsArgs {
    #[command(flatten)]
    paging: Paging,
}

/// Goes back.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman soul rollback 3
  aman soul rollback 9f86d081 --yes

What is in force now stays in the history. It asks first.")]
pub struct RollbackArgs {
    /// A version, or the beginning of a digest, from `soul versions`
    #[arg(value_name = "VERSION|DIGEST")]
    to: String,
    #[command(flatten)]
    sure: Sure,
}

/// Prints the prompt.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  aman soul prompt\n  aman soul prompt --agent aman")]
pub struct PromptArgs {
    /// As this agent is told
    #[arg(long, value_name = "ID")]
    agent: Option<String>,
}

/// Runs `aman soul …`.
pub async fn run(context: &mut Context, command: SoulCommand) -> Result<(), Failure> {
    match command {
        SoulCommand::Show(args) => show(context, args.raw).await,
        SoulCommand::Edit(args) => edit(context, args.from.as_deref()).await,
        SoulCommand::Check(args) => check(context, &args.file).await,
        SoulCommand::Versions(args) => versions(context, &args.paging).await,
        SoulCommand::Rollback(args) => rollback(context, &args).await,
        SoulCommand::Prompt(args) => prompt(context, args.agent.as_ref()).await,
    }
}

async fn show(context: &mut Context, raw: bool) -> Result<(), Failure> {
    if raw {
        let Some(answer) = context.answer(Call::get("/soul/raw")).await? else { return Ok(()) };
        return context.out.raw(clean_lines(answer["raw"].as_str().unwrap_or_default()).as_bytes());
    }
    let Some(soul) = context.answer(Call::get("/soul/info")).await? else { return Ok(()) };
    let mut pairs = vec![
        ("name", text(&soul["name"])),
        ("digest", digest(&soul["digest"])),
        ("since", time(&soul["last_changed_at"])),
        ("from", text(&soul["origin"])),
        ("file", text(&soul["path"])),
    ];
    if !soul["problem"].is_null() {
        pairs.push(("problem", text(&soul["problem"])));
    }
    for (name, value) in soul["preferences"].as_object().into_iter().flatten() {
        pairs.push(("prefers", format!("{name}: {}", text(value))));
    }
    context.out.pairs(&pairs)?;
    let boundaries = soul["boundaries"].as_array().map(Vec::as_slice).unwrap_or_default();
    if boundaries.is_empty() {
        return context.out.line("It has no boundaries; soul/README.md shows how they are written.");
    }
    context.out.line("")?;
    let list = |value: &Value| {
        let items: Vec<String> = value.as_array().into_iter().flatten().map(text).collect();
        if items.is_empty() { "-".to_owned() } else { items.join(", ") }
    };
    let row =
        |one: &Value| vec![text(&one["name"]), list(&one["topic"]), list(&one["tools"]), text_or_dash(&one["says"])];
    context.table(&["BOUNDARY", "TOPICS", "TOOLS", "SAYS"], boundaries, row)
}

fn update(content: &str, expected: Option<&str>, dry_run: bool) -> Call {
    let body = json!({ "content": content, "expected_digest": expected }).to_string();
    let path = if dry_run { "/soul/update?dry_run=true" } else { "/soul/update" };
    Call::post(path).body("application/json", body).header("x-aman-confirm", "yes")
}

async fn edit(context: &mut Context, from: Option<&Path>) -> Result<(), Failure> {
    let before = context.call(Call::get("/soul/raw")).await?.json()?;
    let (old, digest) = (before["raw"].as_str().unwrap_or_default(), before["digest"].as_str().map(str::to_owned));
    if let Some(file) = from {
        let new = read_file(file, FILE_BYTES_MAX)?;
        return tell(context, update(&new, digest.as_deref(), false)).await;
    }
    let copy = std::env::temp_dir().join(format!("aman-soul-{}.md", std::process::id()));
    let unwritten = |error| Failure::Failed(format!("{} cannot be written: {error}.", copy.display()));
    config::write_private(&copy, old).map_err(unwritten)?;
    loop {
        let new = match editor::edited(&copy) {
            Ok(new) if new != old => new,
            other => {
                let _gone = fs::remove_file(&copy);
                other?;
                return context.out.line("Nothing was changed.");
            }
        };
        match context.call(update(&new, digest.as_deref(), true)).await {
            Ok(_) => {
                let told = tell(context, update(&new, digest.as_deref(), false)).await;
                if told.is_ok() {
                    let _gone = fs::remove_file(&copy);
                }
                return told.map_err(|failure| editor::kept(&copy, failure.message().trim_end_matches('.')));
            }
            Err(failure @ Failure::Refused(_)) => context.out.complain(&failure.message()),
            Err(failure) => return Err(editor::kept(&copy, failure.message().trim_end_matches('.'))),
        }
        if context.out.ask("It cannot be used so. Edit it again?") != Some(true) {
            return Err(editor::kept(&copy, "Nothing was changed"));
        }
    }
}

async fn tell(context: &mut Context, call: Call) -> Result<(), Failure> {
    let Some(soul) = context.answer(call).await? else { return Ok(()) };
    let digest = digest(&soul["digest"]);
    context.out.line(&format!("{} has this soul from now on (digest {digest}).", text(&soul["name"])))
}

async fn check(context: &mut Context, file: &Path) -> Result<(), Failure> {
    let content = read_file(file, FILE_BYTES_MAX)?;
    match context.answer(update(&content, None, true)).await {
        Ok(Some(soul)) => {
            let count = soul["boundaries"].as_array().map_or(0, Vec::len);
            let boundaries = super::out::count(u64::try_from(count).unwrap_or(u64::MAX), "boundary");
            context.out.line(&format!("It is good: {}, {boundaries}.", text(&soul["name"])))
        }
        Ok(None) => Ok(()),
        Err(failure @ Failure::Refused(_)) if !context.out.json() => {
            context.out.complain(&failure.message());
            Err(Failure::Said(FAILED))
        }
        Err(failure) => Err(failure),
    }
}

async fn versions(context: &mut Context, paging: &Paging) -> Result<(), Failure> {
    let Some(list) = context.list(Call::get("/soul/versions"), paging.limit, paging.all).await? else { return Ok(()) };
    let row = |one: &Value| {
        let current = if one["current"] == true { "now" } else { "-" };
        let digest = digest(&one["digest"]);
        let who = format!("{} ({})", text(&one["principal"]), text(&one["origin"]));
        vec![text(&one["version"]), digest, time(&one["created_at"]), who, current.to_owned()]
    };
    context.rows(&["VERSION", "DIGEST", "SINCE", "BY", "CURRENT"], &list, row)
}

async fn rollback(context: &mut Context, args: &RollbackArgs) -> Result<(), Failure> {
    context.confirm(args.sure.yes, &format!("Put the soul's text {} in force again?", args.to))?;
    // Short numbers are versions; a digest that begins with as many digits is written longer.
    let body = match args.to.parse::<u32>() {
        Ok(number) if args.to.len() < DIGEST_CHARS => json!({ "version": number }),
        _ => json!({ "digest": args.to.trim_end_matches('…') }),
    };
    let call = Call::post("/soul/rollback").body("application/json", body.to_string());
    tell(context, call.header("x-aman-confirm", "yes")).await
}

async fn prompt(context: &mut Context, agent: Option<&String>) -> Result<(), Failure> {
    let Some(answer) = context.answer(Call::get("/soul/system-prompt").query_some("agent_id", agent)).await? else {
        return Ok(());
    };
    context.out.raw(clean_lines(answer["system_prompt"].as_str().unwrap_or_default()).as_bytes())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::fake::Fake;
    use crate::cli::out::tests::Printed;
    use crate::cli::{Cli, Command};

    #[tokio::test]
    async fn the_soul_is_shown_and_brought_back() {
        let soul = "{\"name\":\"aman\",\"digest\":\"0123456789abcdef\",\"origin\":\"api\",\"path\":\"/x/SOUL.md\",\
                    \"last_changed_at\":\"2026-11-22T10:00:00.000Z\",\"problem\":null,\"preferences\":{\"tone\":\"dry\"},\
                    \"boundaries\":[{\"name\":\"money\",\"topic\":[\"pay\"],\"tools\":[],\"says\":\"No.\"}]}";
        let list = "{\"items\":[{\"version\":2,\"digest\":\"0123456789abcdef\",\"origin\":\"file\",\"principal\":\"file\",\
                    \"created_at\":\"2026-11-22T10:00:00.000Z\",\"current\":true}],\"next_cursor\":null}";
        let answers =
            [soul, list, soul, soul, "{\"system_prompt\":\"You are aman.\"}"].map(|body| Fake::json(200, body));
        let fake = Fake::answering(&answers.each_ref().map(String::as_str)).await;
        for (words, wanted) in [
            (["show"].as_slice(), "money"),
            (&["versions"], "file (file)"),
            (&["rollback", "2", "--yes"], "aman has this soul"),
            (&["rollback", "01234567", "--yes"], "aman has this soul"),
            (&["prompt", "--agent", "a"], "You are aman."),
        ] {
            let cli = Cli::try_parse_from([&["aman", "soul"], words].concat()).expect("the words are a command");
            let Command::Soul(command) = cli.command else { panic!("not a soul command") };
            let printed = Printed::default();
            let mut context = Context::fake(&fake.base, printed.clone(), false);
            run(&mut context, command).await.expect("it works");
            assert!(printed.text().contains(wanted), "{}", printed.text());
        }
        let asked = fake.requests();
        assert!(asked[2].ends_with("{\"version\":2}"), "{}", asked[2]);
        assert!(asked[4].starts_with("GET /soul/system-prompt?agent_id=a "), "{}", asked[4]);
    }
}
