//! `aman skill new | validate | test`: for those who write skills. No daemon is needed.

use std::future::Future;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::pin::Pin;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::Context;
use super::failure::{FAILED, Failure};
use super::out::{clean_lines, text};
use crate::config::Paths;
use crate::error::Error;
use crate::plain;

/// Largest event that is tried, in bytes.
const EVENT_BYTES_MAX: u64 = 1 << 20;

/// A run that was begun.
pub type Running<'a> = Pin<Box<dyn Future<Output = Result<Value, Error>> + 'a>>;

/// What is done with folders of skills; answers are documents.
#[derive(Clone, Copy)]
pub struct SkillFiles {
    /// Makes the folder of a new skill of this name in the folder.
    pub make: fn(&str, &Path) -> Result<Value, Error>,
    /// Checks a skill's folder by every rule.
    pub check: fn(&Path, &Paths) -> Result<Value, Error>,
    /// Runs a skill's script once.
    pub run: for<'a> fn(Trial<'a>) -> Running<'a>,
}

/// A run that is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Trial<'a> {
    /// The skill's folder.
    pub folder: &'a Path,
    /// The event, JSON.
    pub event: &'a str,
    /// Whether it is run for an event that would not reach it.
    pub anyway: bool,
    /// `--home`
    pub home: Option<&'a Path>,
}

/// What an author of skills can do.
#[derive(Subcommand, Debug)]
pub enum AuthorCommand {
    /// Make the folder of a new skill
    New(NewArgs),
    /// Check skills by the rules of the Agent Skills specification and of aman
    Validate(ValidateArgs),
    /// Run a skill once for an event, and show what it asks for
    Test(TestArgs),
}

/// Makes a folder.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman skill new greet                      in the data folder, where the daemon sees it at once
  aman skill new greet --into ~/my-skills")]
pub struct NewArgs {
    /// The skill's name, and its folder's: lower-case letters, digits and hyphens
    name: String,
    /// The folder that it is made in [default: the data folder's skills]
    #[arg(long, value_name = "DIR")]
    into: Option<PathBuf>,
}

/// Checks skills.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman skill validate
  aman skill validate ~/my-skills/*

The daemon is more lenient: what breaks a rule and leaves no doubt it loads, with a warning.")]
pub struct ValidateArgs {
    /// Folders of skills, or names of skills in the data folder
    #[arg(default_value = ".")]
    skills: Vec<PathBuf>,
}

/// Tries a skill.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman skill test greet --event event.json
  aman event show 0193… --json | aman skill test greet --event -

The script runs as under the daemon, in its sandbox: what its permissions let it write it really writes. What it publishes
and tells is shown and goes nowhere. The event is a JSON object with `type`, and `source`, `subject` and `data` if you like.")]
pub struct TestArgs {
    /// The folder of a skill, or the name of one in the data folder
    skill: PathBuf,
    /// The event, JSON; `-` is standard input
    #[arg(long, value_name = "FILE")]
    event: PathBuf,
    /// Run it also when such an event would not reach it
    #[arg(long)]
    anyway: bool,
}

/// Runs one of them.
pub async fn run(context: &mut Context, command: AuthorCommand) -> Result<(), Failure> {
    match command {
        AuthorCommand::New(args) => new(context, &args),
        AuthorCommand::Validate(args) => validate(context, &args),
        AuthorCommand::Test(args) => test(context, &args).await,
    }
}

fn refused(error: &Error) -> Failure {
    Failure::Failed(error.to_string())
}

fn new(context: &mut Context, args: &NewArgs) -> Result<(), Failure> {
    let into = match &args.into {
        Some(into) => into.clone(),
        None => context.paths()?.data.join("skills"),
    };
    let made = (context.files.skills.make)(&args.name, &into).map_err(|error| refused(&error))?;
    if context.out.json() {
        return context.out.line(&made.to_string());
    }
    let (path, on) = (text(&made["path"]), text(&made["on"]));
    context.out.line(&format!("Made {path}."))?;
    context.out.line(&format!("Try it: aman skill test '{path}' --event '{path}/assets/event.json'"))?;
    context.out.line(&format!("Where the daemon looks for skills, it reacts at once: aman event push --type {on}"))
}

/// The folder that an argument means: itself, or that of a skill in the data folder.
fn folder(context: &Context, named: &Path) -> Result<PathBuf, Failure> {
    if named.exists() || named.components().count() != 1 {
        return Ok(named.to_owned());
    }
    let installed = context.paths()?.data.join("skills").join(named);
    Ok(if installed.is_dir() { installed } else { named.to_owned() })
}

fn validate(context: &mut Context, args: &ValidateArgs) -> Result<(), Failure> {
    let (paths, mut all) = (context.paths()?, Vec::new());
    for named in &args.skills {
        let path = folder(context, named)?;
        all.push((context.files.skills.check)(&path, &paths).map_err(|error| refused(&error))?);
    }
    let good = all.iter().all(|one| one["ok"] == true);
    if context.out.json() {
        context.out.line(&json!({ "ok": good, "skills": all }).to_string())?;
    } else {
        all.iter().try_for_each(|one| tell(context, one))?;
    }
    if good { Ok(()) } else { Err(Failure::Said(FAILED)) }
}

fn tell(context: &mut Context, one: &Value) -> Result<(), Failure> {
    let path = text(&one["path"]);
    let verdict = match (one["ok"] == true, one["loads"] == true) {
        (true, _) => "good",
        (false, true) => "not by the rules; the daemon loads it all the same",
        (false, false) => "broken",
    };
    context.out.line(&clean_lines(&format!("{path}: {verdict}")))?;
    for wrong in one["errors"].as_array().into_iter().flatten() {
        let line = format!("  error: {}: {}", text(&wrong["field"]), text(&wrong["reason"]));
        context.out.line(&clean_lines(&line))?;
    }
    for odd in one["warnings"].as_array().into_iter().flatten() {
        context.out.line(&clean_lines(&format!("  warning: {}", text(odd))))?;
    }
    Ok(())
}

async fn test(context: &mut Context, args: &TestArgs) -> Result<(), Failure> {
    let path = folder(context, &args.skill)?;
    let event = read(&args.event).map_err(|error| Failure::Failed(format!("{}: {error}.", args.event.display())))?;
    let home = context.global.home.clone();
    let trial = Trial { folder: &path, event: &event, anyway: args.anyway, home: home.as_deref() };
    let tried = (context.files.skills.run)(trial).await.map_err(|error| refused(&error))?;
    let good = tried["outcome"] == "done" && tried["matches"] == true;
    if context.out.json() {
        context.out.line(&tried.to_string())?;
    } else {
        show(context, &tried)?;
    }
    if good { Ok(()) } else { Err(Failure::Said(FAILED)) }
}

/// The text of a file, or of standard input.
fn read(file: &Path) -> io::Result<String> {
    if file != Path::new("-") {
        return plain::read(file, EVENT_BYTES_MAX);
    }
    let mut text = String::new();
    let read = io::stdin().take(EVENT_BYTES_MAX + 1).read_to_string(&mut text)?;
    if u64::try_from(read).unwrap_or(u64::MAX) > EVENT_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("has more than {EVENT_BYTES_MAX} bytes")));
    }
    Ok(text)
}

fn show(context: &mut Context, tried: &Value) -> Result<(), Failure> {
    let (matches, why) = (tried["matches"] == true, text(&tried["why"]));
    let mark = if matches { "Such an event reaches" } else { "Such an event does not reach" };
    context.out.line(&clean_lines(&format!("{mark} {}: {why}.", text(&tried["name"]))))?;
    let Some(outcome) = tried["outcome"].as_str() else {
        return context.out.line("It was not run. --anyway runs it all the same.");
    };
    let end = match outcome {
        "done" => "done",
        "retry" => "failed; the daemon would try again",
        _ => "rejected; a dead letter",
    };
    let exit = tried["exit"].as_str().map(|exit| format!(", {exit}")).unwrap_or_default();
    context.out.line(&clean_lines(&format!("It ran for {} ms{exit}: {end}.", text(&tried["took_ms"]))))?;
    for line in tried["error"].as_array().into_iter().flatten() {
        context.out.line(&clean_lines(&format!("  error: {}", text(line))))?;
    }
    for event in tried["publish"].as_array().into_iter().flatten() {
        let subject = event["subject"].as_str().map(|subject| format!(" {subject}")).unwrap_or_default();
        context.out.line(&clean_lines(&format!("  event {}{subject} {}", text(&event["type"]), event["data"])))?;
    }
    for one in tried["notify"].as_array().into_iter().flatten() {
        let line =
            format!("  notification ({}) {}: {}", text(&one["severity"]), text(&one["title"]), text(&one["message"]));
        context.out.line(&clean_lines(&line))?;
    }
    if !tried["result"].is_null() {
        context.out.line(&clean_lines(&format!("  result {}", tried["result"])))?;
    }
    match tried["log"].as_str() {
        None | Some("") => Ok(()),
        Some(log) => context.out.line(&clean_lines(&format!("  log:\n{log}"))),
    }
}
