//! `aman workflow`: durable sequences of tasks.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::{Call, segment};
use super::failure::{FAILED, Failure};
use super::out::{clean_lines, count, digest, shorten, text, text_or_dash, time};
use super::{Context, PAGE_MAX, Paging, Sure, read_file};
use crate::workflow;

/// Characters of an error that a list shows.
const ERROR_CHARS: usize = 80;
/// Largest definition, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What can be done with workflows.
#[derive(Subcommand, Debug)]
pub enum WorkflowCommand {
    /// List all workflows
    List(ListArgs),
    /// Show one: its definition, versions and schedule
    Show(ShowArgs),
    /// Check a definition, without a daemon
    Validate(FileArgs),
    /// Store a definition; instances that run keep theirs
    Put(PutArgs),
    /// Remove a workflow; its instances go on
    Delete(DeleteArgs),
    /// Start an instance
    Start(StartArgs),
    /// List instances, newest first
    Instances(InstancesArgs),
    /// Show one instance and what its tasks came to
    ShowInstance(ShowInstanceArgs),
    /// Take a faulted instance up at the task that failed
    Retry(ConfirmedArgs),
    /// End an instance and what it runs
    Cancel(ConfirmedArgs),
    /// Let an instance begin nothing new
    Pause(InstanceArgs),
    /// Let a paused instance go on
    Resume(InstanceArgs),
    /// Answer an instance that asks (aman.approve)
    Approve(ApproveArgs),
    /// Send an event to one instance that waits for it
    Signal(SignalArgs),
}

/// Lists workflows.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  aman workflow list")]
pub struct ListArgs {}

/// Names a workflow.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman workflow show probe-until-healthy
  aman workflow show probe-until-healthy --mermaid > chart.mmd
  aman workflow show probe-until-healthy --source > probe.yaml")]
pub struct ShowArgs {
    /// The workflow
    name: String,
    /// Print it as a Mermaid flowchart
    #[arg(long, conflicts_with = "source")]
    mermaid: bool,
    /// Print its definition as it was written
    #[arg(long)]
    source: bool,
}

/// Names a file.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  aman workflow validate order.yaml\n  aman workflow validate *.yaml --mermaid")]
pub struct FileArgs {
    /// Definitions, YAML or JSON
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Print each as a Mermaid flowchart
    #[arg(long)]
    mermaid: bool,
}

/// Stores a definition.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman workflow put order.yaml
  aman workflow put order.yaml --dry-run")]
pub struct PutArgs {
    /// The definition, YAML or JSON
    file: PathBuf,
    /// Say what would happen; touch nothing
    #[arg(long)]
    dry_run: bool,
}

/// Removes a workflow.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  aman workflow delete order --yes")]
pub struct DeleteArgs {
    /// The workflow
    name: String,
    #[command(flatten)]
    sure: Sure,
}

/// Starts an instance.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman workflow start probe-until-healthy --input '{\"url\": \"https://example.org/health\"}'
  aman workflow start order --input '{}' --dedup-key order-17      one instance, however often")]
pub struct StartArgs {
    /// The workflow
    name: String,
    /// Its input, JSON
    #[arg(long, value_name = "JSON")]
    input: Option<String>,
    /// Equal keys are one instance
    #[arg(long, value_name = "KEY")]
    dedup_key: Option<String>,
    /// Say what would happen; start nothing
    #[arg(long)]
    dry_run: bool,
}

/// Lists instances.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman workflow instances
  aman workflow instances --workflow order --status faulted --all")]
pub struct InstancesArgs {
    /// Only those of this workflow
    #[arg(long, value_name = "NAME")]
    workflow: Option<String>,
    /// Only those that stand so
    #[arg(long, value_parser = ["pending", "running", "waiting", "paused", "completed", "faulted", "cancelled"])]
    status: Option<String>,
    #[command(flatten)]
    paging: Paging,
}

/// Names an instance.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman workflow show-instance 0193…
  aman workflow show-instance 0193… --mermaid > where.mmd")]
pub struct ShowInstanceArgs {
    /// The instance
    id: String,
    /// Print its workflow as a Mermaid flowchart with its state marked
    #[arg(long)]
    mermaid: bool,
}

/// Names an instance.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  aman workflow pause 0193…\n  aman workflow resume 0193…")]
pub struct InstanceArgs {
    /// The instance
    id: String,
}

/// Names an instance that is changed for good.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  aman workflow retry 0193… --yes\n  aman workflow cancel 0193… --yes")]
pub struct ConfirmedArgs {
    /// The instance
    id: String,
    #[command(flatten)]
    sure: Sure,
}

/// Answers an instance.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman workflow approve 0193…
  aman workflow approve 0193… --deny --reason 'not this one'
  aman workflow approve 0193… --task /do/1/ask      when several questions wait")]
pub struct ApproveArgs {
    /// The instance
    id: String,
    /// Say no
    #[arg(long)]
    deny: bool,
    /// Why
    #[arg(long)]
    reason: Option<String>,
    /// Which of several questions: the task's pointer, such as /do/1/ask
    #[arg(long, value_name = "POINTER")]
    task: Option<String>,
}

/// Sends an event.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  aman workflow signal 0193… --type order.paid --data '{\"amount\": 3}'")]
pub struct SignalArgs {
    /// The instance
    id: String,
    /// Type of the event
    #[arg(long = "type", value_name = "TYPE")]
    kind: String,
    /// Its data, JSON
    #[arg(long, value_name = "JSON")]
    data: Option<String>,
}

/// Runs `aman workflow …`.
pub async fn run(context: &mut Context, command: WorkflowCommand) -> Result<(), Failure> {
    match command {
        WorkflowCommand::List(_) => list(context).await,
        WorkflowCommand::Show(args) => show(context, &args).await,
        WorkflowCommand::Validate(args) => validate(context, &args),
        WorkflowCommand::Put(args) => put(context, &args).await,
        WorkflowCommand::Delete(args) => delete(context, &args).await,
        WorkflowCommand::Start(args) => start(context, args).await,
        WorkflowCommand::Instances(args) => instances(context, &args).await,
        WorkflowCommand::ShowInstance(args) => show_instance(context, &args).await,
        WorkflowCommand::Retry(args) => {
            context.confirm(args.sure.yes, &format!("Take the instance {} up at the task that failed?", args.id))?;
            act(context, &args.id, "retry", &json!({})).await
        }
        WorkflowCommand::Cancel(args) => {
            context.confirm(args.sure.yes, &format!("End the instance {} and what it runs?", args.id))?;
            act(context, &args.id, "cancel", &json!({})).await
        }
        WorkflowCommand::Pause(args) => act(context, &args.id, "pause", &json!({})).await,
        WorkflowCommand::Resume(args) => act(context, &args.id, "resume", &json!({})).await,
        WorkflowCommand::Approve(args) => {
            let data = json!({ "approved": !args.deny, "reason": args.reason, "task": args.task });
            act(context, &args.id, "event", &json!({ "type": "approval", "data": data })).await
        }
        WorkflowCommand::Signal(args) => {
            let data = args.data.as_deref().map_or(Ok(Value::Null), |data| read_json("--data", data))?;
            act(context, &args.id, "event", &json!({ "type": args.kind, "data": data })).await
        }
    }
}

fn read_json(flag: &str, text: &str) -> Result<Value, Failure> {
    serde_json::from_str(text).map_err(|error| Failure::Usage(format!("{flag} is not JSON: {error}.")))
}

async fn list(context: &mut Context) -> Result<(), Failure> {
    let Some(list) = context.list(Call::get("/workflows"), PAGE_MAX, false).await? else { return Ok(()) };
    if list.items.is_empty() {
        return context.out.line("No workflow yet. `aman workflow put FILE` stores one.");
    }
    let row = |one: &Value| {
        vec![
            text(&one["name"]),
            text(&one["version"]),
            digest(&one["digest"]),
            text(&one["origin"]),
            starts(&one["schedule"]),
            text(&one["open_instances"]),
            shorten(&text_or_dash(&one["title"]), ERROR_CHARS),
        ]
    };
    context.table(&["NAME", "VERSION", "DIGEST", "FROM", "STARTS", "OPEN", "TITLE"], &list.items, row)
}

/// What starts instances, in a word.
fn starts(schedule: &Value) -> String {
    let named = ["cron", "every", "after", "on"].iter().find(|name| schedule.get(**name).is_some());
    match named {
        None => "on request".to_owned(),
        Some(&"cron") => format!("cron {}", text(&schedule["cron"])),
        Some(&"on") => "on events".to_owned(),
        Some(name) => (*name).to_owned(),
    }
}

/// Prints an answer that is text for programs and people alike.
async fn chart(context: &mut Context, path: String) -> Result<(), Failure> {
    let reply = context.call(Call::get(path).query("format", "mermaid")).await?;
    context.out.raw(&reply.body)
}

async fn show(context: &mut Context, args: &ShowArgs) -> Result<(), Failure> {
    let path = format!("/workflow/{}", segment(&args.name));
    if args.mermaid {
        return chart(context, path).await;
    }
    let Some(shown) = context.answer(Call::get(path)).await? else { return Ok(()) };
    if args.source {
        return context.out.line(clean_lines(shown["source"].as_str().unwrap_or_default()).trim_end());
    }
    let mut pairs: Vec<(&str, String)> = Vec::new();
    for name in ["name", "namespace", "version", "title", "summary", "digest", "origin", "next_at", "open_instances"] {
        if !shown[name].is_null() {
            pairs.push((name, text(&shown[name])));
        }
    }
    pairs.push(("starts", starts(&shown["schedule"])));
    context.out.pairs(&pairs)?;
    let versions = shown["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let row = |one: &Value| {
        let mark = if one["current"] == true { "current" } else { "" };
        vec![text(&one["version"]), digest(&one["digest"]), time(&one["created_at"]), mark.to_owned()]
    };
    context.out.line("")?;
    context.out.table(&["VERSION", "DIGEST", "STORED", ""], &versions.iter().map(row).collect::<Vec<_>>())?;
    context.out.line("\n`--source` prints the definition, `--mermaid` draws it.")
}

fn validate(context: &mut Context, args: &FileArgs) -> Result<(), Failure> {
    let mut bad = false;
    for file in &args.files {
        let (shown, source) = (file.display().to_string(), read_file(file, FILE_BYTES_MAX)?);
        match workflow::parse(&source) {
            Ok(definition) if args.mermaid => {
                context.out.raw(workflow::render(&definition, &workflow::Marks::new()).as_bytes())?;
            }
            Ok(definition) if context.out.json() => {
                let answer = json!({ "file": shown, "ok": true, "name": definition.name, "digest": definition.digest });
                context.out.line(&answer.to_string())?;
            }
            Ok(definition) => {
                let line = format!(
                    "{shown}: good. {} {}, {}.",
                    definition.name,
                    definition.version,
                    count(definition.tasks.len() as u64, "task")
                );
                context.out.line(&clean_lines(&line))?;
            }
            Err(problems) => {
                bad = true;
                tell(context, &shown, &problems)?;
            }
        }
    }
    if bad { Err(Failure::Said(FAILED)) } else { Ok(()) }
}

fn tell(context: &mut Context, file: &str, problems: &[workflow::Problem]) -> Result<(), Failure> {
    if context.out.json() {
        let one = |problem: &workflow::Problem| {
            json!({
                "pointer": problem.pointer,
                "line": problem.place.map(|(line, _)| line),
                "column": problem.place.map(|(_, column)| column),
                "unsupported": problem.unsupported,
                "reason": problem.reason,
            })
        };
        let problems: Vec<Value> = problems.iter().map(one).collect();
        return context.out.line(&json!({ "file": file, "ok": false, "problems": problems }).to_string());
    }
    for problem in problems {
        let place = problem.place.map_or_else(String::new, |(line, column)| format!(":{line}:{column}"));
        context.out.line(&clean_lines(&format!("{file}{place}: {} {}", problem.pointer, problem.reason)))?;
    }
    Ok(())
}

async fn put(context: &mut Context, args: &PutArgs) -> Result<(), Failure> {
    let source = read_file(&args.file, FILE_BYTES_MAX)?;
    let definition = match workflow::parse(&source) {
        Ok(definition) => definition,
        Err(problems) => {
            tell(context, &args.file.display().to_string(), &problems)?;
            return Err(Failure::Said(FAILED));
        }
    };
    let call = Call::put(format!("/workflow/{}", segment(&definition.name))).body("application/yaml", source);
    let call = if args.dry_run { call.query("dry_run", true) } else { call };
    let Some(shown) = context.answer(call).await? else { return Ok(()) };
    let (name, version) = (text(&shown["name"]), text(&shown["version"]));
    if args.dry_run {
        return context.out.line(&format!("Nothing was touched. {name} {version} would be stored."));
    }
    context.out.line(&format!("Stored {name} {version}. Start it: aman workflow start {name}"))
}

async fn delete(context: &mut Context, args: &DeleteArgs) -> Result<(), Failure> {
    context.confirm(args.sure.yes, &format!("Remove the workflow {}?", args.name))?;
    if context.answer(Call::delete(format!("/workflow/{}", segment(&args.name)))).await?.is_none() {
        return Ok(());
    }
    context.out.line(&format!("Removed {}. Instances that run go on.", args.name))
}

async fn start(context: &mut Context, args: StartArgs) -> Result<(), Failure> {
    let mut body = json!({});
    if let Some(input) = &args.input {
        body["input"] = read_json("--input", input)?;
    }
    if let Some(key) = args.dedup_key {
        body["dedup_key"] = key.into();
    }
    let call =
        Call::post(format!("/workflow/{}/create", segment(&args.name))).body("application/json", body.to_string());
    let call = if args.dry_run { call.query("dry_run", true) } else { call };
    let Some(shown) = context.answer(call).await? else { return Ok(()) };
    if args.dry_run {
        return context.out.line("Nothing was started. The input is good.");
    }
    context.out.line(&format!("Started {}. Follow it: aman workflow show-instance {}", args.name, text(&shown["id"])))
}

async fn instances(context: &mut Context, args: &InstancesArgs) -> Result<(), Failure> {
    let call = Call::get("/workflow-instances")
        .query_some("workflow", args.workflow.as_deref())
        .query_some("status", args.status.as_deref());
    let Some(list) = context.list(call, args.paging.limit, args.paging.all).await? else { return Ok(()) };
    if list.items.is_empty() {
        return context
            .out
            .line("None runs or ran. `aman workflow start NAME` starts one, `aman workflow list` shows the names.");
    }
    let row = |one: &Value| {
        let error = text(&one["error"]["title"]);
        vec![
            text(&one["id"]),
            text(&one["workflow"]),
            text(&one["status"]),
            text_or_dash(&one["current"]),
            time(&one["created_at"]),
            if error.is_empty() { "-".to_owned() } else { shorten(&error, ERROR_CHARS) },
        ]
    };
    context.rows(&["ID", "WORKFLOW", "STATUS", "AT", "STARTED", "ERROR"], &list, row)
}

async fn show_instance(context: &mut Context, args: &ShowInstanceArgs) -> Result<(), Failure> {
    let path = format!("/workflow-instance/{}", segment(&args.id));
    if args.mermaid {
        return chart(context, path).await;
    }
    let Some(shown) = context.answer(Call::get(path)).await? else { return Ok(()) };
    let mut pairs: Vec<(&str, String)> = Vec::new();
    for name in ["id", "workflow", "status", "current", "due_at", "input", "output", "error", "created_at", "trace_id"]
    {
        if !shown[name].is_null() {
            pairs.push((name, shorten(&text(&shown[name]), 400)));
        }
    }
    context.out.pairs(&pairs)?;
    let steps = shown["steps"].as_array().map(Vec::as_slice).unwrap_or_default();
    if steps.is_empty() {
        return Ok(());
    }
    let row = |step: &Value| {
        let came = if step["error"].is_null() { text_or_dash(&step["output"]) } else { text(&step["error"]["detail"]) };
        vec![
            text(&step["task"]),
            text(&step["status"]),
            text(&step["attempt"]),
            time(&step["started_at"]),
            shorten(&came, ERROR_CHARS),
        ]
    };
    context.out.line("")?;
    context.out.table(&["TASK", "STATUS", "TRY", "STARTED", "CAME TO"], &steps.iter().map(row).collect::<Vec<_>>())
}

async fn act(context: &mut Context, id: &str, what: &str, body: &Value) -> Result<(), Failure> {
    let call = Call::post(format!("/workflow-instance/{}/{what}", segment(id)))
        .body("application/json", body.to_string())
        .header("x-aman-confirm", "yes");
    let Some(shown) = context.answer(call).await? else { return Ok(()) };
    let status = text(&shown["status"]);
    context.out.line(&if status.is_empty() { "Delivered.".to_owned() } else { format!("It is {status} now.") })
}
