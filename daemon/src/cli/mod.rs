//! The command line: one file per noun. It talks HTTP to the daemon and knows nothing of its inside.

mod agent;
mod approve;
mod audit;
mod chat;
mod client;
mod completions;
mod config;
mod cron;
mod db;
mod dlq;
mod doctor;
mod editor;
mod event;
mod explain;
mod failure;
#[cfg(test)]
mod fake;
mod help;
mod jq;
mod logs;
mod mcp;
mod memory;
mod model;
mod notification;
mod out;
mod plugin;
mod plugin_author;
mod service;
mod session;
mod sink;
mod skill;
mod skill_author;
mod soul;
mod source;
mod standing;
mod status;
mod tail;
mod tls;
mod token;
mod tool;
mod tree;
mod usage;
mod workflow;

use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use serde_json::Value;

use self::client::{Call, Client, Reply};
use self::failure::{Failure, unexpected};
use self::out::Out;
use crate::config::Paths;
use crate::plain;

pub use self::db::Files;
pub use self::doctor::table as doctor_table;
pub use self::jq::{JqArgs, run as run_jq};
pub use self::skill_author::{Running, SkillFiles, Trial};

/// Most items that one page of a list may have.
const PAGE_MAX: u64 = 1000;

/// A daemon on your own machine that turns things that happen into things that get done.
#[derive(Parser, Debug)]
#[command(
    name = "aman",
    version,
    after_help = "\
Examples:
  aman serve                                  start the daemon
  aman status                                 is it there, and well?
  aman event push --type hello --data '{\"n\": 1}'
  aman tail                                   see events as they happen
  aman why 17                                 why something happened, or did not

Exit codes: 0 done, 1 failed, 2 wrong use, 3 the state forbids it now; of `chat` and `agent run` also 4 stopped and 5
it goes on; of `serve` also 75: a keyring is locked.
With --json, what a command shows is printed for programs: the daemon's answer, or a document about several."
)]
pub struct Cli {
    /// What holds for every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Reads the arguments of this process; help and mistakes are printed, and end it.
    pub fn read() -> Cli {
        if let Some(serving) = Serving::read() {
            return serving;
        }
        let mut command = help::flowing(Cli::command());
        let matches = command.get_matches_mut();
        Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.format(&mut command).exit())
    }
}

/// As much of the command line as the daemon needs. It lives long, and would hold on to the room that the description of
/// all other commands takes.
#[derive(Parser)]
struct Serving {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: ServeAlone,
}

#[derive(Subcommand)]
enum ServeAlone {
    Serve(ServeArgs),
}

impl Serving {
    /// None for other commands, and for help and mistakes, which [`Cli::read`] is there for.
    fn read() -> Option<Cli> {
        if std::env::args_os().nth(1).is_none_or(|arg| arg != "serve") {
            return None;
        }
        let Serving { global, command: ServeAlone::Serve(args) } = Serving::try_parse().ok()?;
        Some(Cli { global, command: Command::Serve(args) })
    }
}

/// Flags that every command takes.
#[derive(Args, Debug, Clone, Default)]
pub struct Global {
    /// Print documents for programs instead of text for people
    #[arg(long, global = true)]
    pub json: bool,
    /// The folder that holds everything of one daemon [env: AMAN_HOME]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Which daemon")]
    pub home: Option<PathBuf>,
    /// Its address; else the one that the running daemon wrote down
    #[arg(long, global = true, value_name = "URL", help_heading = "Which daemon")]
    pub url: Option<String>,
    /// The token; better in AMAN_HTTP_TOKEN, as other users can read a command line [default: the daemon's token file]
    #[arg(long, global = true, value_name = "TOKEN", help_heading = "Which daemon")]
    pub token: Option<String>,
}

/// What `aman` can do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Start the daemon in the foreground
    Serve(ServeArgs),
    /// Show whether the daemon is there, and how it is
    Status(status::StatusArgs),
    /// Talk with an agent
    Chat(chat::ChatArgs),
    /// What was talked with agents: list, show, stop, export, search, remove
    #[command(subcommand)]
    Session(session::SessionCommand),
    /// Store, see and explain events
    #[command(subcommand)]
    Event(event::EventCommand),
    /// Follow events as they are stored (same as `event tail`)
    Tail(tail::TailArgs),
    /// Explain what became of an event and why (same as `event why`)
    Why(explain::WhyArgs),
    /// What failed for good: look at it, try again, discard
    #[command(subcommand)]
    Dlq(dlq::DlqCommand),
    /// What reacts to events: look at it, switch it on and off; write, check and try it
    #[command(subcommand)]
    Skill(skill::SkillCommand),
    /// What brings events in: look at it, switch it off and on
    #[command(subcommand)]
    Source(source::SourceCommand),
    /// Where events go: look at it, switch it off and on, try it
    #[command(subcommand)]
    Sink(sink::SinkCommand),
    /// MCP servers whose tools are offered: look at them, connect anew
    #[command(subcommand)]
    Mcp(mcp::McpCommand),
    /// What you are told: look at it, take note, put it away
    #[command(subcommand)]
    Notification(notification::NotificationCommand),
    /// Who the assistant is and what it does not do: look at it, write it, go back
    #[command(subcommand)]
    Soul(soul::SoulCommand),
    /// What agents remember: look at it, add to it, correct it, take it along
    #[command(subcommand)]
    Memory(memory::MemoryCommand),
    /// Show what models cost
    Usage(usage::UsageArgs),
    /// Calls of tools that wait for your answer, and what passes without asking
    Approve(approve::ApproveArgs),
    /// What agents, workflows and you can have done: list, show, run
    #[command(subcommand)]
    Tool(tool::ToolCommand),
    /// Plugins: install, approve, list and remove them; write, build, pack and sign them
    #[command(subcommand)]
    Plugin(plugin::PluginCommand),
    /// Agents: who they are, what they may use and cost
    #[command(subcommand)]
    Agent(agent::AgentCommand),
    /// Durable sequences of tasks: write, start and steer them
    #[command(subcommand)]
    Workflow(workflow::WorkflowCommand),
    /// The language models that agents ask: list and try them
    #[command(subcommand)]
    Model(model::ModelCommand),
    /// Jobs that run by a time plan
    #[command(subcommand)]
    Cron(cron::CronCommand),
    /// Who changed what
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// The database: figures, checks, backups, room
    #[command(subcommand)]
    Db(db::DbCommand),
    /// Mint and revoke tokens for other programs
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Print an address that logs a browser in, once
    Open(token::OpenArgs),
    /// Settings: show, change, check
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Check this machine, the daemon and its security, and say what to do
    Doctor(doctor::DoctorArgs),
    /// Have systemd start the daemon
    #[command(subcommand)]
    Service(service::ServiceCommand),
    /// Read the daemon's log files
    Logs(logs::LogsArgs),
    /// Run a jq filter over JSON, for scripts on machines without jq
    Jq(JqArgs),
    /// Print what a shell needs to complete commands by Tab
    Completions(completions::CompletionsArgs),
}

/// Starts the daemon.
#[derive(Args, Debug, Clone, Default)]
#[command(after_help = "\
Examples:
  aman serve
  aman serve --home /tmp/try --bind 127.0.0.1:0
  AMAN_HOME=/tmp/try aman serve

It prints one line, `aman ready http://127.0.0.1:PORT`, when it is ready. Ctrl-C or SIGTERM ends it cleanly; what was
accepted is kept either way. One daemon per data folder.")]
pub struct ServeArgs {
    /// The configuration file [default: aman.toml of --home, else ~/.config/aman/aman.toml]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Listen here instead of 127.0.0.1:9090; port 0 takes a free one [env: AMAN_HTTP_BIND]
    #[arg(long, value_name = "ADDR")]
    pub bind: Option<String>,
    /// What is logged: error, warn, info, debug, trace, or rules such as info,aman::bus=debug
    #[arg(long, value_name = "LEVEL")]
    pub log: Option<String>,
}

/// What a command works with.
struct Context {
    global: Global,
    out: Out,
    /// What works without a daemon.
    files: Files,
}

impl Context {
    /// The way to the daemon, found anew.
    fn client(&self) -> Result<Client, Failure> {
        Client::find(&self.global)
    }

    /// Where the daemon keeps its things.
    fn paths(&self) -> Result<Paths, Failure> {
        Paths::find(self.global.home.as_deref()).map_err(|error| Failure::Usage(error.to_string()))
    }

    /// Sends `call`.
    async fn call(&self, call: Call) -> Result<Reply, Failure> {
        self.client()?.call(call).await
    }

    /// Sends `call`. For programs prints the answer as it came and gives `None`; else gives it to be shown.
    async fn answer(&mut self, call: Call) -> Result<Option<Value>, Failure> {
        let reply = self.call(call).await?;
        if self.out.json() {
            self.out.raw(&reply.body)?;
            return Ok(None);
        }
        reply.json().map(Some)
    }

    /// Reads a list: one page of `limit`, or with `all` every page. For programs prints it and gives `None`.
    async fn list(&mut self, call: Call, limit: u64, all: bool) -> Result<Option<List>, Failure> {
        if !all {
            let Some(mut page) = self.answer(call.query("limit", limit)).await? else {
                return Ok(None);
            };
            let more = page["next_cursor"].is_string();
            return Ok(Some(List { items: take_items(&mut page)?, more }));
        }
        let items = self.every_item(call).await?;
        if self.out.json() {
            let document = serde_json::json!({ "items": items, "next_cursor": null });
            self.out.line(&document.to_string())?;
            return Ok(None);
        }
        Ok(Some(List { items, more: false }))
    }

    /// Every item of a list, page after page.
    async fn every_item(&self, call: Call) -> Result<Vec<Value>, Failure> {
        let client = self.client()?;
        let call = call.query("limit", PAGE_MAX);
        let (mut items, mut next) = (Vec::new(), call.clone());
        loop {
            let mut page = client.call(next).await?.json()?;
            items.append(&mut take_items(&mut page)?);
            match page["next_cursor"].as_str() {
                Some(cursor) => next = call.clone().query("cursor", cursor),
                None => return Ok(items),
            }
        }
    }

    /// Shows a list that was read as a table, and says when there is more.
    fn rows(&mut self, head: &[&str], list: &List, row: impl Fn(&Value) -> Vec<String>) -> Result<(), Failure> {
        self.table(head, &list.items, row)?;
        if list.more { self.out.line("There are more; --limit or --all shows them.") } else { Ok(()) }
    }

    /// Shows items as a table, each as a row.
    fn table(&mut self, head: &[&str], items: &[Value], row: impl Fn(&Value) -> Vec<String>) -> Result<(), Failure> {
        let rows: Vec<Vec<String>> = items.iter().map(row).collect();
        self.out.table(head, &rows)
    }

    /// Prints what is written out for somebody, or puts it into a new file that only its owner may read.
    fn give(&mut self, bytes: &[u8], to: Option<&Path>) -> Result<(), Failure> {
        let Some(to) = to else { return self.out.raw(bytes) };
        let unwritten = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => {
                Failure::Usage(format!("{} is there already; name another file.", to.display()))
            }
            _ => Failure::Failed(format!("{} cannot be written: {error}.", to.display())),
        };
        let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(to).map_err(unwritten)?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(unwritten)?;
        let shown = to.display().to_string();
        if self.out.json() {
            return self.out.line(&serde_json::json!({ "file": shown, "bytes": bytes.len() }).to_string());
        }
        self.out.line(&format!("{} has it, {} bytes.", out::clean(&shown), bytes.len()))
    }

    /// Makes sure that a person, or the caller by `--yes`, wants this.
    fn confirm(&mut self, yes: bool, question: &str) -> Result<(), Failure> {
        if yes {
            return Ok(());
        }
        match self.out.ask(question) {
            Some(true) => Ok(()),
            Some(false) => Err(Failure::Failed("Nothing was done.".to_owned())),
            None => Err(Failure::Usage(format!("{question} Confirm with --yes; no terminal is there to ask on."))),
        }
    }

    #[cfg(test)]
    fn fake(base: &str, printed: out::tests::Printed, json: bool) -> Context {
        let global = Global { url: Some(base.to_owned()), token: Some("fake".to_owned()), json, ..Global::default() };
        fn none() -> Result<Value, crate::error::Error> {
            Err(crate::error::Error::not_found("database", "fake"))
        }
        let skills = SkillFiles { make: |_, _| none(), check: |_, _| none(), run: |_| Box::pin(async { none() }) };
        let files = Files { backup: |_, _, _| none(), restore: |_, _| none(), check: |_| none(), skills };
        Context { global, out: Out::to(printed, json, None), files }
    }
}

/// A list as it was read.
struct List {
    items: Vec<Value>,
    /// Whether there is more than was asked for.
    more: bool,
}

fn take_items(page: &mut Value) -> Result<Vec<Value>, Failure> {
    match page["items"].take() {
        Value::Array(items) => Ok(items),
        _ => Err(unexpected("items", page)),
    }
}

/// The text of a file of at most so many bytes, or with `-` of standard input.
fn read_file(file: &Path, bytes_max: u64) -> Result<String, Failure> {
    let failed = |error: std::io::Error| Failure::Failed(format!("{} cannot be read: {error}.", file.display()));
    if file != Path::new("-") {
        return plain::read(file, bytes_max).map_err(failed);
    }
    let mut text = String::new();
    std::io::stdin().take(bytes_max + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > bytes_max {
        return Err(Failure::Usage(format!(
            "Standard input has more than {} KiB, which is the most.",
            bytes_max >> 10
        )));
    }
    Ok(text)
}

/// `--limit` and `--all` of every list.
#[derive(Args, Debug, Clone)]
struct Paging {
    /// Show at most this many, newest first
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=1000))]
    limit: u64,
    /// Show all of them
    #[arg(long, conflicts_with = "limit")]
    all: bool,
}

/// `--yes` of what asks before it changes something for good.
#[derive(Args, Debug, Clone, Copy)]
struct Sure {
    /// Do not ask
    #[arg(long, short = 'y')]
    yes: bool,
}

/// Runs every command that asks the daemon; `serve` and `jq` are the caller's, and answered with a usage error here.
pub async fn run(cli: Cli, files: Files) -> ExitCode {
    let out = Out::stdout(cli.global.json);
    let mut context = Context { global: cli.global, out, files };
    let done = dispatch(&mut context, cli.command).await;
    let done = done.and_then(|()| context.out.flush());
    match done {
        Ok(()) => ExitCode::from(failure::OK),
        Err(failure) => {
            let code = failure.report(&mut context.out);
            // The failure itself is told already; a reader that left does not change it.
            drop(context.out.flush());
            code
        }
    }
}

async fn dispatch(context: &mut Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::Status(args) => status::run(context, &args).await,
        Command::Chat(args) => chat::run(context, args).await,
        Command::Session(command) => session::run(context, command).await,
        Command::Event(command) => event::run(context, command).await,
        Command::Tail(args) => tail::run(context, &args).await,
        Command::Why(args) => explain::why(context, &args).await,
        Command::Dlq(command) => dlq::run(context, command).await,
        Command::Skill(command) => skill::run(context, command).await,
        Command::Source(command) => source::run(context, command).await,
        Command::Sink(command) => sink::run(context, command).await,
        Command::Mcp(command) => mcp::run(context, command).await,
        Command::Notification(command) => notification::run(context, command).await,
        Command::Soul(command) => soul::run(context, command).await,
        Command::Memory(command) => memory::run(context, command).await,
        Command::Usage(args) => usage::run(context, &args).await,
        Command::Approve(args) => approve::run(context, args).await,
        Command::Tool(command) => tool::run(context, command).await,
        Command::Plugin(command) => plugin::run(context, command).await,
        Command::Agent(command) => agent::run(context, command).await,
        Command::Workflow(command) => workflow::run(context, command).await,
        Command::Model(command) => model::run(context, command).await,
        Command::Cron(command) => cron::run(context, command).await,
        Command::Audit(command) => audit::run(context, command).await,
        Command::Db(command) => db::run(context, command).await,
        Command::Token(command) => token::run(context, command).await,
        Command::Open(args) => token::open(context, &args).await,
        Command::Config(command) => config::run(context, command).await,
        Command::Doctor(args) => doctor::run(context, &args).await,
        Command::Service(command) => service::run(context, command).await,
        Command::Logs(args) => logs::run(context, &args).await,
        Command::Completions(args) => completions::run(context, &args),
        Command::Serve(_) | Command::Jq(_) => Err(Failure::Usage("This command needs no daemon.".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::fake::Fake;
    use crate::cli::out::tests::Printed;

    #[test]
    fn definitions_hold_together_and_each_command_has_examples() {
        fn check(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            if command.has_subcommands() {
                command.get_subcommands().filter(|sub| sub.get_name() != "help").for_each(|sub| check(sub, &path));
            } else {
                let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("Example"), "{path} shows no example in --help");
                assert!(command.get_about().is_some(), "{path} does not say what it does");
            }
        }
        Cli::command().debug_assert();
        check(&Cli::command(), "");
    }

    #[tokio::test]
    async fn lists_are_read_page_after_page() {
        let first = Fake::json(200, "{\"items\":[1,2],\"next_cursor\":\"a b\"}");
        let last = Fake::json(200, "{\"items\":[3],\"next_cursor\":null}");
        let fake = Fake::answering(&[&first, &last]).await;
        let context = Context::fake(&fake.base, Printed::default(), false);
        let items = context.every_item(Call::get("/dlq").query("reason", "timeout")).await.expect("both pages come");
        assert_eq!(items, [1, 2, 3]);
        assert!(fake.requests()[1].starts_with("GET /dlq?reason=timeout&limit=1000&cursor=a%20b "));
    }

    #[tokio::test]
    async fn what_no_daemon_answers_is_refused() {
        for body in ["[]", "7", "null", "{", ""] {
            let fake = Fake::answering(&[&Fake::json(200, body)]).await;
            let context = Context::fake(&fake.base, Printed::default(), false);
            let failure = context.every_item(Call::get("/dlq")).await.expect_err("no daemon answers so");
            assert!(failure.message().contains("Is that an aman daemon?"), "{body}: {failure:?}");
        }
    }

    #[tokio::test]
    async fn programs_get_the_answer_unchanged() {
        let body = "{ \"z\": 1,\n \"a\": 1.0e2 }";
        let fake = Fake::answering(&[&Fake::json(200, body)]).await;
        let printed = Printed::default();
        let mut context = Context::fake(&fake.base, printed.clone(), true);
        assert!(context.answer(Call::get("/x")).await.expect("it answers").is_none());
        assert_eq!(printed.text(), format!("{body}\n"));
    }
}
