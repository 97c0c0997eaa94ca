//! `aman cron`: jobs that run by a time plan.

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::client::{Call, segment};
use super::failure::Failure;
use super::out::{clean_lines, shorten, text, text_or_dash, time};
use super::{Context, PAGE_MAX, Paging, Sure};

/// Characters of an error that a list shows.
const ERROR_CHARS: usize = 80;

/// What can be done with cron jobs.
#[derive(Subcommand, Debug)]
pub enum CronCommand {
    /// List all jobs, and when they run next
    List(ListArgs),
    /// Show one job, and how it stands
    Show(ShowArgs),
    /// Add a job
    Add(AddArgs),
    /// Change a job; what is not named stays as it is
    Update(UpdateArgs),
    /// Remove a job; what became of its runs stays on record
    Remove(RemoveArgs),
    /// Run a job now, beside its plan
    Run(RunArgs),
    /// Show when a job runs next
    Next(NextArgs),
    /// Show what became of a job's runs, newest first
    Runs(RunsArgs),
}

/// Lists jobs.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  aman cron list\n  aman cron list --json | aman jq -r '.items[].id'")]
pub struct ListArgs {}

/// Names a job.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  aman cron show digest\n  aman cron show skill:daily-digest      the plan of a skill"
)]
pub struct ShowArgs {
    /// The job
    id: String,
}

/// What a job is made of.
#[derive(Args, Debug, Default)]
struct Definition {
    /// IANA zone of the plan [default: UTC]
    #[arg(long, value_name = "ZONE")]
    timezone: Option<String>,
    /// Type of its events [default: cron.fired]
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// Data of its events, JSON [default: the job and the time]
    #[arg(long, value_name = "JSON")]
    payload: Option<String>,
    /// The skill that gets its events
    #[arg(long)]
    skill: Option<String>,
    /// The workflow that it starts
    #[arg(long, conflicts_with = "skill")]
    workflow: Option<String>,
    /// The agent that its events are for
    #[arg(long, value_name = "ID")]
    agent: Option<String>,
    /// What becomes of missed runs: skip, run_once, run_all=N or within=10m [default: run_once]
    #[arg(long, value_name = "POLICY")]
    misfire: Option<String>,
    /// What becomes of a run while another goes on [default: skip]
    #[arg(long, value_parser = ["skip", "queue_one", "allow"])]
    overlap: Option<String>,
    /// Put each run off by up to this many seconds
    #[arg(long, value_name = "SECONDS")]
    jitter: Option<u32>,
    /// Switch it off after this many failed runs in a row; 0 = never [default: 5]
    #[arg(long, value_name = "N")]
    max_failures: Option<u32>,
    /// Say what would happen; touch nothing
    #[arg(long)]
    dry_run: bool,
}

/// Adds a job.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman cron add digest '0 8 * * 1-5' --timezone Europe/Berlin --skill daily-digest
  aman cron add tick '*/10 * * * * *' --type clock.tick        six fields: seconds first
  aman cron add report @daily --misfire within=2h --dry-run    when would it run?")]
pub struct AddArgs {
    /// Its id: lower-case letters, digits, '-', '_' and '.'
    id: String,
    /// Its plan: minute hour day month weekday, seconds first if there are six; or @daily and its like
    expression: String,
    /// Add it switched off
    #[arg(long)]
    disabled: bool,
    #[command(flatten)]
    definition: Definition,
}

/// Changes a job.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman cron update digest --expression '0 9 * * *'
  aman cron update digest --disable
  aman cron update digest --enable                    also after it was switched off by its failures")]
pub struct UpdateArgs {
    /// The job
    id: String,
    /// A new plan
    #[arg(long)]
    expression: Option<String>,
    /// Switch it on
    #[arg(long, conflicts_with = "disable")]
    enable: bool,
    /// Switch it off
    #[arg(long)]
    disable: bool,
    #[command(flatten)]
    definition: Definition,
}

/// Removes a job.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  aman cron remove digest --yes")]
pub struct RemoveArgs {
    /// The job
    id: String,
    #[command(flatten)]
    sure: Sure,
}

/// Runs a job.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  aman cron run digest")]
pub struct RunArgs {
    /// The job
    id: String,
}

/// Previews a job.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  aman cron next digest --count 10")]
pub struct NextArgs {
    /// The job
    id: String,
    /// How many times to show
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=100))]
    count: u64,
}

/// Lists the runs of a job.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman cron runs digest
  aman cron runs digest --status failed --all")]
pub struct RunsArgs {
    /// The job
    id: String,
    /// Only those that stand so
    #[arg(long, value_parser = ["queued", "running", "done", "failed", "skipped"])]
    status: Option<String>,
    #[command(flatten)]
    paging: Paging,
}

/// Runs `aman cron …`.
pub async fn run(context: &mut Context, command: CronCommand) -> Result<(), Failure> {
    match command {
        CronCommand::List(_) => list(context).await,
        CronCommand::Show(args) => show(context, &args.id).await,
        CronCommand::Add(args) => add(context, args).await,
        CronCommand::Update(args) => update(context, args).await,
        CronCommand::Remove(args) => remove(context, &args).await,
        CronCommand::Run(args) => run_now(context, &args.id).await,
        CronCommand::Next(args) => next(context, &args).await,
        CronCommand::Runs(args) => runs(context, &args).await,
    }
}

/// The path of a job, or of something about it.
fn path(id: &str, what: &str) -> String {
    format!("/cron/{}{what}", segment(id))
}

async fn list(context: &mut Context) -> Result<(), Failure> {
    let Some(list) = context.list(Call::get("/cron"), PAGE_MAX, false).await? else { return Ok(()) };
    if list.items.is_empty() {
        return context.out.line("No job yet. `aman cron add --help` shows how to add one; [cron.<id>] in the configuration and skills make jobs, too.");
    }
    let row = |job: &Value| {
        let target = match (job["skill"].as_str(), job["workflow"].as_str()) {
            (Some(_), _) => format!("skill {}", text(&job["skill"])),
            (_, Some(_)) => format!("workflow {}", text(&job["workflow"])),
            _ => text(&job["type"]),
        };
        vec![
            text(&job["id"]),
            (if job["enabled"] == true { "on" } else { "off" }).to_owned(),
            text(&job["expression"]),
            text(&job["timezone"]),
            target,
            if job["next_at"].is_null() { "-".to_owned() } else { time(&job["next_at"]) },
            text_or_dash(&job["last_run"]["status"]),
        ]
    };
    context.table(&["ID", "STATE", "PLAN", "ZONE", "FIRES", "NEXT", "LAST"], &list.items, row)
}

async fn show(context: &mut Context, id: &str) -> Result<(), Failure> {
    let Some(job) = context.answer(Call::get(path(id, ""))).await? else { return Ok(()) };
    print(context, &job)
}

fn print(context: &mut Context, job: &Value) -> Result<(), Failure> {
    const ORDER: [&str; 10] = [
        "id",
        "enabled",
        "disabled_reason",
        "expression",
        "timezone",
        "description",
        "next_at",
        "next_local",
        "type",
        "skill",
    ];
    let mut pairs: Vec<(&str, String)> = Vec::new();
    let named = ORDER.iter().map(|name| (*name, &job[*name]));
    let rest = job.as_object().into_iter().flatten().map(|(name, value)| (name.as_str(), value));
    for (name, value) in named.chain(rest.filter(|(name, _)| !ORDER.contains(name))) {
        if name == "last_run" && value.is_object() {
            pairs.push(("last run", format!("{} {}", time(&value["scheduled_at"]), text(&value["status"]))));
        } else if name == "next" {
            let times = value.as_array().into_iter().flatten().map(|one| text(&one["local"]));
            pairs.push(("would run", times.collect::<Vec<_>>().join(", ")));
        } else if !value.is_null() {
            pairs.push((name, text(value)));
        }
    }
    context.out.pairs(&pairs)
}

/// `run_all=3` and `within=10m` as the API takes them.
fn misfire(given: &str) -> Result<Value, Failure> {
    match given.split_once('=') {
        None => Ok(json!(given)),
        Some(("run_all", max)) => match max.parse::<u32>() {
            Ok(max) => Ok(json!({ "run_all": { "max": max } })),
            Err(_) => Err(Failure::Usage(format!("--misfire run_all={max}: write a whole number."))),
        },
        Some(("within", time)) => Ok(json!({ "within": time })),
        Some(_) => Err(Failure::Usage("--misfire takes skip, run_once, run_all=N or within=10m.".to_owned())),
    }
}

impl Definition {
    /// The fields that were given.
    fn fields(&self) -> Result<Map<String, Value>, Failure> {
        let mut fields = Map::new();
        let texts = [
            ("timezone", &self.timezone),
            ("type", &self.kind),
            ("skill", &self.skill),
            ("workflow", &self.workflow),
            ("agent_id", &self.agent),
            ("overlap", &self.overlap),
        ];
        for (name, value) in texts {
            if let Some(value) = value {
                fields.insert(name.to_owned(), json!(value));
            }
        }
        for (name, value) in [("jitter_s", self.jitter), ("max_failures", self.max_failures)] {
            if let Some(value) = value {
                fields.insert(name.to_owned(), json!(value));
            }
        }
        if let Some(payload) = &self.payload {
            let payload: Value = serde_json::from_str(payload)
                .map_err(|error| Failure::Usage(format!("--payload is not JSON: {error}.")))?;
            fields.insert("payload".to_owned(), payload);
        }
        if let Some(given) = &self.misfire {
            fields.insert("misfire".to_owned(), misfire(given)?);
        }
        Ok(fields)
    }
}

async fn send(
    context: &mut Context,
    path: String,
    fields: Map<String, Value>,
    dry_run: bool,
) -> Result<Option<Value>, Failure> {
    let call = Call::post(path).body("application/json", Value::Object(fields).to_string());
    let call = if dry_run { call.query("dry_run", true) } else { call };
    let Some(job) = context.answer(call).await? else { return Ok(None) };
    if dry_run {
        context.out.line("Nothing was touched. It would be:")?;
        print(context, &job)?;
        return Ok(None);
    }
    Ok(Some(job))
}

/// When a job runs next, in words.
fn when(job: &Value) -> String {
    match job["next_at"].as_str() {
        Some(_) => format!("It runs next at {}.", text(&job["next_local"])),
        None if job["enabled"] == false => "It is switched off.".to_owned(),
        None => "It does not run any more.".to_owned(),
    }
}

async fn add(context: &mut Context, args: AddArgs) -> Result<(), Failure> {
    let mut fields = args.definition.fields()?;
    fields.insert("id".to_owned(), json!(args.id));
    fields.insert("expression".to_owned(), json!(args.expression));
    if args.disabled {
        fields.insert("enabled".to_owned(), json!(false));
    }
    let sent = send(context, "/cron/add".to_owned(), fields, args.definition.dry_run).await?;
    let Some(job) = sent else { return Ok(()) };
    context.out.line(&format!(
        "Added {}: {} ({}). {}",
        args.id,
        text(&job["description"]),
        text(&job["timezone"]),
        when(&job)
    ))
}

async fn update(context: &mut Context, args: UpdateArgs) -> Result<(), Failure> {
    let mut fields = args.definition.fields()?;
    if let Some(expression) = &args.expression {
        fields.insert("expression".to_owned(), json!(expression));
    }
    if args.enable || args.disable {
        fields.insert("enabled".to_owned(), json!(args.enable));
    }
    if fields.is_empty() {
        return Err(Failure::Usage("Say what to change, as in --expression '0 9 * * *' or --disable.".to_owned()));
    }
    let sent = send(context, path(&args.id, "/update"), fields, args.definition.dry_run).await?;
    let Some(job) = sent else { return Ok(()) };
    context.out.line(&format!("Changed {}. {}", args.id, when(&job)))
}

async fn remove(context: &mut Context, args: &RemoveArgs) -> Result<(), Failure> {
    context.confirm(args.sure.yes, &format!("Remove the cron job {}?", args.id))?;
    let call = Call::post(path(&args.id, "/remove")).header("x-aman-confirm", "yes");
    if context.answer(call).await?.is_none() {
        return Ok(());
    }
    context.out.line(&format!("Removed {}.", args.id))
}

async fn run_now(context: &mut Context, id: &str) -> Result<(), Failure> {
    let Some(answer) = context.answer(Call::post(path(id, "/run"))).await? else { return Ok(()) };
    let event = text(&answer["event_id"]);
    if event.is_empty() {
        return context.out.line(&format!("A run of {id} waits for the end of the one that is going on."));
    }
    context.out.line(&format!("Running {id}. Follow it: aman why {event}"))
}

async fn next(context: &mut Context, args: &NextArgs) -> Result<(), Failure> {
    let call = Call::get(path(&args.id, "/next")).query("count", args.count);
    let Some(answer) = context.answer(call).await? else { return Ok(()) };
    let items = answer["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    if items.is_empty() {
        return context.out.line("It does not run any more.");
    }
    for item in items {
        context.out.line(&clean_lines(&format!("{}  {}", text(&item["scheduled_at"]), text(&item["local"]))))?;
    }
    Ok(())
}

async fn runs(context: &mut Context, args: &RunsArgs) -> Result<(), Failure> {
    let call = Call::get(path(&args.id, "/runs")).query_some("status", args.status.as_deref());
    let Some(list) = context.list(call, args.paging.limit, args.paging.all).await? else { return Ok(()) };
    if list.items.is_empty() {
        return context
            .out
            .line("It has not run yet. `aman cron next` shows when it will, `aman cron run` runs it now.");
    }
    let row = |run: &Value| {
        let why = if run["error"].is_null() { text_or_dash(&run["reason"]) } else { text(&run["error"]) };
        vec![
            time(&run["scheduled_at"]),
            text(&run["kind"]),
            text(&run["status"]),
            if run["ended_at"].is_null() { "-".to_owned() } else { time(&run["ended_at"]) },
            shorten(&why, ERROR_CHARS),
            text_or_dash(&run["event_id"]),
        ]
    };
    context.rows(&["SCHEDULED", "KIND", "STATUS", "ENDED", "WHY", "EVENT"], &list, row)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::fake::Fake;
    use crate::cli::out::tests::Printed;

    #[tokio::test]
    async fn a_job_is_added_with_what_was_given() {
        let body = r#"{"description":"At 08:00.","timezone":"UTC","enabled":true,"next_at":"x","next_local":"then"}"#;
        let fake = Fake::answering(&[&Fake::json(201, body)]).await;
        let printed = Printed::default();
        let mut context = Context::fake(&fake.base, printed.clone(), false);
        let definition = Definition {
            misfire: Some("run_all=3".to_owned()),
            payload: Some("{\"a\":1}".to_owned()),
            jitter: Some(9),
            ..Definition::default()
        };
        let args = AddArgs { id: "d".to_owned(), expression: "0 8 * * *".to_owned(), disabled: false, definition };
        run(&mut context, CronCommand::Add(args)).await.expect("it is added");
        assert_eq!(printed.text(), "Added d: At 08:00. (UTC). It runs next at then.\n");
        let sent = &fake.requests()[0];
        let sent: Value = serde_json::from_str(&sent[sent.find("\r\n\r\n").expect("a body")..]).expect("JSON");
        let expected = json!({
            "id": "d", "expression": "0 8 * * *", "misfire": { "run_all": { "max": 3 } }, "payload": { "a": 1 },
            "jitter_s": 9,
        });
        assert_eq!(sent, expected);
    }

    #[test]
    fn misfire_policies_are_read() {
        assert_eq!(misfire("skip").ok(), Some(json!("skip")));
        assert_eq!(misfire("within=10m").ok(), Some(json!({ "within": "10m" })));
        assert!(misfire("run_all=x").is_err() && misfire("later=1").is_err());
    }
}
