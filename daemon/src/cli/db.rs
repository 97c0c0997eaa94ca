//! `aman db`: the database: how it stands, whether it is whole, copies of it, and making room.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::Value;

use super::client::Call;
use super::failure::{FAILED, Failure};
use super::out::{clean, count, size, text, text_or_dash, time};
use super::skill_author::SkillFiles;
use super::{Context, Sure};
use crate::config::Paths;
use crate::error::Error;

/// What is done with the files themselves, without a daemon; answers are documents as the daemon would give them.
#[derive(Clone, Copy)]
pub struct Files {
    /// Copies the database of these folders to the file; replaces it when told so.
    pub backup: fn(&Paths, &Path, bool) -> Result<Value, Error>,
    /// Restores the first file as the database of the folder.
    pub restore: fn(&Path, &Path) -> Result<Value, Error>,
    /// Looks whether the file is whole.
    pub check: fn(&Path) -> Result<Value, Error>,
    /// What is done with folders of skills.
    pub skills: SkillFiles,
}

/// What can be done with the database.
#[derive(Subcommand, Debug)]
pub enum DbCommand {
    /// Show what is in the database, how much room it takes and how it grows
    Stats(StatsArgs),
    /// Look whether the database is whole
    Check(CheckArgs),
    /// Copy the database, also while the daemon works with it
    Backup(BackupArgs),
    /// Make a new data folder with the database of a backup
    Restore(RestoreArgs),
    /// Remove now what is kept long enough (retention does it by itself)
    Prune(PruneArgs),
    /// Give free room in the file back to the disk
    Vacuum(VacuumArgs),
}

/// Shows figures.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  aman db stats\n  aman db stats --json")]
pub struct StatsArgs {}

/// Checks.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman db check
  aman db check --offline                  the daemon does not run
  aman db check ~/backups/aman.db          a backup

It looks at SQLite's pages and indexes, the schema, the audit chain, and whether events, deliveries and dead letters fit
together. Exit code 0: whole, 1: not.")]
pub struct CheckArgs {
    /// Check this file
    file: Option<PathBuf>,
    /// Read the database's file here, without the daemon
    #[arg(long)]
    offline: bool,
}

/// Copies.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman db backup ~/backups/aman-$(date +%F).db
  aman db backup /mnt/stick/aman.db --force

The copy is of one moment, and is verified before it gets its name. Only its owner may read it: it holds all events with
their data, the audit log, and what plugins keep in databases of their own. It does not hold the token, the signing key, the
configuration, skills or packages of plugins; those are files beside the database.")]
pub struct BackupArgs {
    /// Where to
    file: PathBuf,
    /// Replace a file that is there
    #[arg(long)]
    force: bool,
}

/// Restores.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  aman db restore ~/backups/aman-2026-11-22.db --to ~/restored
  AMAN_HOME=~/restored aman serve

It never touches a folder that holds something. What was under way when the copy was made goes on when the restored daemon
starts: deliveries that ended since then run again.")]
pub struct RestoreArgs {
    /// The backup
    file: PathBuf,
    /// The folder to make
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
}

/// Removes what is old.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman db prune --dry-run
  aman db prune --yes

How long things are kept: `aman config get bus.retention.max_age`, and the other keys of bus.retention.")]
pub struct PruneArgs {
    /// Say what would go; touch nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    sure: Sure,
}

/// Gives room back.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  aman db vacuum")]
pub struct VacuumArgs {}

/// Runs `aman db …`.
pub async fn run(context: &mut Context, command: DbCommand) -> Result<(), Failure> {
    match command {
        DbCommand::Stats(_) => stats(context).await,
        DbCommand::Check(args) => check(context, &args).await,
        DbCommand::Backup(args) => backup(context, &args),
        DbCommand::Restore(args) => restore(context, &args),
        DbCommand::Prune(args) => prune(context, &args).await,
        DbCommand::Vacuum(_) => vacuum(context).await,
    }
}

fn bytes(value: &Value) -> String {
    size(value.as_i64().unwrap_or(0).max(0).unsigned_abs())
}

fn number(value: &Value) -> u64 {
    value.as_i64().unwrap_or(0).max(0).unsigned_abs()
}

async fn stats(context: &mut Context) -> Result<(), Failure> {
    let Some(answer) = context.answer(Call::get("/db/stats").lasting()).await? else { return Ok(()) };
    let events = &answer["events"];
    let copies = &answer["backup"];
    let copied = match (&copies["error"], &copies["newest_at"]) {
        (Value::Null, Value::Null) => "the daemon makes none (backup.every)".to_owned(),
        (Value::Null, newest) => {
            format!("{} in {}, the newest of {}", text(&copies["copies"]), text(&copies["folder"]), time(newest))
        }
        (error, _) => format!("failing since {}: {}", time(&copies["failing_since"]), clean(&text(error))),
    };
    let pairs = [
        ("size", format!("{}, of it {} free", bytes(&answer["bytes"]), bytes(&answer["free_bytes"]))),
        ("log", bytes(&answer["wal_bytes"])),
        ("events", format!("{}, {} since yesterday", text(&events["count"]), text(&events["last_day"]))),
        ("oldest", format!("{}  sequence {}", time(&events["oldest_at"]), text_or_dash(&events["oldest"]))),
        ("newest", format!("{}  sequence {}", time(&events["newest_at"]), text_or_dash(&events["newest"]))),
        ("growth", format!("about {} a day", bytes(&events["bytes_a_day"]))),
        ("removed", format!("up to sequence {}", text(&events["pruned_to"]))),
        ("copies", copied),
    ];
    context.out.pairs(&pairs)?;
    let tables = answer["tables"].as_array().map(Vec::as_slice).unwrap_or_default();
    let row = |table: &Value| {
        vec![text(&table["name"]), text(&table["rows"]), bytes(&table["bytes"]), bytes(&table["index_bytes"])]
    };
    context.out.line("")?;
    context.out.table(&["TABLE", "ROWS", "SIZE", "INDEXES"], &tables.iter().map(row).collect::<Vec<_>>())
}

async fn check(context: &mut Context, args: &CheckArgs) -> Result<(), Failure> {
    let report = if args.offline || args.file.is_some() {
        let file = match &args.file {
            Some(file) => file.clone(),
            None => context.paths()?.db_file,
        };
        (context.files.check)(&file).map_err(told)?
    } else {
        context.call(Call::get("/db/check").lasting()).await?.json()?
    };
    if context.out.json() {
        context.out.line(&report.to_string())?;
    } else {
        for one in report["checks"].as_array().map(Vec::as_slice).unwrap_or_default() {
            let ok = one["ok"] == true;
            context.out.line(&format!("{}  {}", if ok { "ok  " } else { "FAIL" }, text(&one["check"])))?;
            for fault in one["faults"].as_array().map(Vec::as_slice).unwrap_or_default() {
                context.out.line(&format!("      {}", text(fault)))?;
            }
        }
        if report["ok"] != true {
            context
                .out
                .line("\nThe database is damaged. Stop the daemon, keep a copy of its folder, and restore the last")?;
            context.out.line("good backup: aman db restore FILE --to DIR")?;
        }
    }
    if report["ok"] == true { Ok(()) } else { Err(Failure::Said(FAILED)) }
}

/// A failure of work on files.
fn told(error: Error) -> Failure {
    match error {
        Error::Invalid { .. } => Failure::Usage(error.to_string()),
        other => Failure::Failed(other.chain().join(": ")),
    }
}

fn backup(context: &mut Context, args: &BackupArgs) -> Result<(), Failure> {
    let made = (context.files.backup)(&context.paths()?, &args.file, args.force).map_err(told)?;
    if context.out.json() {
        return context.out.line(&made.to_string());
    }
    let events = count(number(&made["rows"]["event"]), "event");
    context.out.line(&format!(
        "{}: {}, {events} up to sequence {}; verified.",
        text(&made["file"]),
        bytes(&made["bytes"]),
        text(&made["sequence"])
    ))?;
    context.out.line("It holds the data of all events, and no token or key. Only you can read it.")?;
    let plugins = made["plugin_databases"].as_array().map_or(0, Vec::len);
    if plugins > 0 {
        let with = if plugins == 1 {
            "the private database of a plugin".to_owned()
        } else {
            format!("those of {plugins} plugins")
        };
        context
            .out
            .line(&format!("With it: {with}. Their packages are not in it; keep those, or the folder plugins."))?;
    }
    Ok(())
}

fn restore(context: &mut Context, args: &RestoreArgs) -> Result<(), Failure> {
    let made = (context.files.restore)(&args.file, &args.to).map_err(told)?;
    if context.out.json() {
        return context.out.line(&made.to_string());
    }
    let events = count(number(&made["rows"]["event"]), "event");
    context.out.line(&format!("{}: {events}; verified.", text(&made["file"])))?;
    let folder = clean(&args.to.display().to_string());
    context.out.line(&format!(
        "\nTo switch over: stop the daemon, copy what you need from its folder into {folder} (aman.toml, token,\n\
         signing.key, agents, soul, skills, and of plugins everything but .data, which is restored), then start it with\n\
         AMAN_HOME={folder} aman serve. What was under way when the backup was made goes on then."
    ))
}

async fn prune(context: &mut Context, args: &PruneArgs) -> Result<(), Failure> {
    if !args.dry_run {
        context.confirm(args.sure.yes, "Remove for good what is kept long enough?")?;
    }
    let call = Call::post("/db/prune").header("x-aman-confirm", "yes").lasting();
    let call = call.query_some("dry_run", args.dry_run.then_some(true));
    let Some(answer) = context.answer(call).await? else { return Ok(()) };
    let mut pairs = vec![(
        "events",
        format!(
            "{} with {}, about {}",
            text(&answer["events"]),
            count(number(&answer["deliveries"]), "delivery"),
            bytes(&answer["bytes"])
        ),
    )];
    for (name, key) in [
        ("kept back", "held"),
        ("dead letters", "dead_letters"),
        ("notifications", "notifications"),
        ("cron runs", "cron_runs"),
        ("workflow instances", "workflow_instances"),
        ("workflow definitions", "workflow_definitions"),
        ("chats", "sessions"),
        ("audit records", "audit"),
    ] {
        pairs.push((name, text(&answer[key])));
    }
    if !args.dry_run {
        pairs.push(("given back", bytes(&answer["given_back"])));
    }
    context.out.line(if args.dry_run { "This would be removed:" } else { "This was removed:" })?;
    context.out.pairs(&pairs)?;
    if answer["complete"] == false {
        context.out.line("There is more; it was not counted to the end.")?;
    }
    Ok(())
}

async fn vacuum(context: &mut Context) -> Result<(), Failure> {
    let Some(answer) = context.answer(Call::post("/db/vacuum").lasting()).await? else { return Ok(()) };
    context.out.line(&format!("{} went back to the disk.", bytes(&answer["given_back"])))
}
