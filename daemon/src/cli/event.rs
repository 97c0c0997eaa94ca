//! `aman event`: store one, look at some.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};

use clap::{Args, Subcommand};
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

use super::client::{Call, segment};
use super::explain::{self, WhyArgs};
use super::failure::Failure;
use super::out::{clean_lines, count, shorten, text, time};
use super::tail::{self, TailArgs};
use super::tree;
use super::{Context, Paging};
use crate::config;

/// Characters of subject and data that a list shows.
const DATA_CHARS: usize = 60;

/// What can be done with events.
#[derive(Subcommand, Debug)]
pub enum EventCommand {
    /// Store an event
    Push(Box<PushArgs>),
    /// Follow events as they are stored
    Tail(TailArgs),
    /// Show an event and what became of it
    Show(ShowArgs),
    /// Draw everything that came of one cause
    Trace(TraceArgs),
    /// Explain what became of an event and why
    Why(WhyArgs),
    /// List the types seen so far
    Types(TypesArgs),
    /// List the newest events
    Recent(RecentArgs),
}

/// Stores an event.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman event push --type hello
  aman event push --type mail.received --source mail --data '{\"from\": \"ada\"}' --dedup-key 4711
  aman event push --type report --data @report.json --priority high --ttl 10m
  aman event push --cloudevent event.json        one CloudEvent, or an array of them
  aman event push --type hello --dry-run         what would react?

It answers when the event is on disk.")]
pub struct PushArgs {
    /// What happened, such as mail.received
    #[arg(long = "type", short = 't', value_name = "TYPE", required_unless_present = "cloudevent")]
    kind: Option<String>,
    /// Who says so
    #[arg(long, short = 's', default_value = "cli")]
    source: String,
    /// JSON; @FILE reads it from a file, - from stdin
    #[arg(long, short = 'd', value_name = "JSON|@FILE|-")]
    data: Option<String>,
    /// What it happened to
    #[arg(long)]
    subject: Option<String>,
    /// Who goes first among the ready
    #[arg(long, value_parser = ["low", "normal", "high"])]
    priority: Option<String>,
    /// What a cut-off attempt means
    #[arg(long, value_parser = ["at_most_once", "at_least_once", "exactly_once"])]
    delivery: Option<String>,
    /// Not delivered any more after this time: 500ms, 30s, 10m, 2h, 1d
    #[arg(long, value_name = "DURATION", value_parser = duration_ms)]
    ttl: Option<u64>,
    /// Events of one source with an equal key are one event
    #[arg(long, value_name = "KEY")]
    dedup_key: Option<String>,
    /// Events with an equal key keep their order
    #[arg(long, value_name = "KEY")]
    partition_key: Option<String>,
    /// Its id; else the daemon makes one
    #[arg(long)]
    id: Option<String>,
    /// A further attribute; can be given more than once
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    ext: Vec<(String, String)>,
    /// Say what would match and happen; store nothing
    #[arg(long)]
    dry_run: bool,
    /// A CloudEvent in JSON, or an array of them; - is stdin
    #[arg(long, value_name = "FILE", conflicts_with_all = ["kind", "source", "data", "subject", "priority", "delivery",
        "ttl", "dedup_key", "partition_key", "id", "ext"])]
    cloudevent: Option<String>,
}

/// Shows one event.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  aman event show 17\n  aman event show order-17 --source shop")]
pub struct ShowArgs {
    /// Its id or sequence number, or the beginning of its id
    id: String,
    /// Its source, where several have such an id
    #[arg(long)]
    source: Option<String>,
}

/// Draws a trace.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  aman event trace 4bf92f3577b34da6a3ce929d0e0e4736")]
pub struct TraceArgs {
    /// 32 hex digits; push, show and why print it
    trace_id: String,
}

/// Lists types.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  aman event types")]
pub struct TypesArgs {}

/// Lists the newest events.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman event recent
  aman event recent --types 'file.**' --limit 10")]
pub struct RecentArgs {
    /// Only types that match one of these comma-separated patterns
    #[arg(long, value_name = "PATTERNS")]
    types: Option<String>,
    /// Only of this source
    #[arg(long)]
    source: Option<String>,
    #[command(flatten)]
    paging: Paging,
}

/// Runs `aman event …`.
pub async fn run(context: &mut Context, command: EventCommand) -> Result<(), Failure> {
    match command {
        EventCommand::Push(args) => push(context, &args).await,
        EventCommand::Tail(args) => tail::run(context, &args).await,
        EventCommand::Show(args) => show(context, &args).await,
        EventCommand::Trace(args) => trace(context, &args).await,
        EventCommand::Why(args) => explain::why(context, &args).await,
        EventCommand::Types(_) => types(context).await,
        EventCommand::Recent(args) => recent(context, &args).await,
    }
}

async fn push(context: &mut Context, args: &PushArgs) -> Result<(), Failure> {
    let (content_type, body) = match &args.cloudevent {
        Some(file) => cloudevent(file)?,
        None => ("application/json", body_of(args)?),
    };
    let mut call = Call::post("/events/push").body(content_type, body);
    if args.dry_run {
        call = call.query("dry_run", true);
    }
    let Some(answer) = context.answer(call).await? else { return Ok(()) };
    if args.dry_run {
        return dry_run(context, &answer);
    }
    match answer["items"].as_array() {
        Some(items) => {
            items.iter().try_for_each(|item| stored(context, item))?;
            context.out.line(&format!("{}.", count(items.len() as u64, "event")))
        }
        None => stored(context, &answer),
    }
}

fn stored(context: &mut Context, answer: &Value) -> Result<(), Failure> {
    let already = answer["deduplicated"].as_bool() == Some(true);
    let verb = if already { "Already there" } else { "Stored" };
    let (id, sequence) = (text(&answer["id"]), text(&answer["sequence"]));
    context.out.line(&format!(
        "{verb}: event {id}, sequence {sequence}, type {}, trace {}",
        text(&answer["type"]),
        text(&answer["trace_id"])
    ))
}

fn dry_run(context: &mut Context, answer: &Value) -> Result<(), Failure> {
    context.out.line("Nothing was stored. It would be considered like this:")?;
    let answers = answer["items"].as_array().map_or_else(|| vec![answer], |items| items.iter().collect());
    for answer in answers {
        if let Some(considered) = answer["considered"].as_array() {
            explain::considered(context, considered)?;
        } else {
            context.out.line(&clean_lines(&format!("{answer:#}")))?;
        }
    }
    Ok(())
}

/// The plain JSON form of the event. `data` travels as it was written: its numbers and its order stay.
fn body_of(args: &PushArgs) -> Result<Vec<u8>, Failure> {
    let mut body: BTreeMap<&str, Box<RawValue>> = BTreeMap::new();
    let defect = |error: serde_json::Error| Failure::Failed(format!("The event cannot be written as JSON: {error}."));
    for (name, value) in &args.ext {
        body.insert(name, to_raw_value(value).map_err(defect)?);
    }
    let texts = [
        ("type", &args.kind),
        ("source", &Some(args.source.clone())),
        ("subject", &args.subject),
        ("priority", &args.priority),
        ("delivery", &args.delivery),
        ("dedup_key", &args.dedup_key),
        ("partitionkey", &args.partition_key),
        ("id", &args.id),
    ];
    for (name, value) in texts {
        if let Some(value) = value {
            body.insert(name, to_raw_value(value).map_err(defect)?);
        }
    }
    if let Some(ttl_ms) = args.ttl {
        body.insert("ttl_ms", to_raw_value(&ttl_ms).map_err(defect)?);
    }
    if let Some(data) = &args.data {
        let (text, from) = match data.strip_prefix('@') {
            Some(file) => (read(file)?, file),
            None if data == "-" => (read("-")?, "stdin"),
            None => (data.clone(), "--data"),
        };
        let data = RawValue::from_string(text).map_err(|error| {
            let hint = "A text needs quotes of its own: --data '\"hello\"'.";
            Failure::Usage(format!("{from} is not JSON: {error}. {hint}"))
        })?;
        body.insert("data", data);
    }
    serde_json::to_vec(&body).map_err(defect)
}

fn cloudevent(file: &str) -> Result<(&'static str, Vec<u8>), Failure> {
    let text = read(file)?;
    let wrong = |error| Failure::Usage(format!("{file} is not JSON: {error}."));
    let document: &RawValue = serde_json::from_str(&text).map_err(wrong)?;
    let batch = document.get().starts_with('[');
    let content_type = if batch { "application/cloudevents-batch+json" } else { "application/cloudevents+json" };
    Ok((content_type, text.into_bytes()))
}

fn read(file: &str) -> Result<String, Failure> {
    let mut text = String::new();
    let result = if file == "-" {
        io::stdin().lock().read_to_string(&mut text).map(drop)
    } else {
        fs::File::open(file).and_then(|mut file| file.read_to_string(&mut text)).map(drop)
    };
    result.map_err(|error| Failure::Failed(format!("{file} cannot be read: {error}.")))?;
    Ok(text)
}

async fn show(context: &mut Context, args: &ShowArgs) -> Result<(), Failure> {
    let call = Call::get(format!("/events/dump/{}", segment(&args.id))).query_some("source", args.source.as_ref());
    let Some(answer) = context.answer(call).await? else { return Ok(()) };
    attributes(context, &answer["event"])?;
    let deliveries = answer["deliveries"].as_array().map(Vec::as_slice).unwrap_or_default();
    context.out.line("")?;
    explain::deliveries(context, deliveries)
}

/// Every attribute, the known ones first, then the data.
fn attributes(context: &mut Context, event: &Value) -> Result<(), Failure> {
    const FIRST: [&str; 10] =
        ["id", "type", "source", "subject", "time", "amansequence", "traceid", "causationid", "correlationid", "trust"];
    let none = serde_json::Map::new();
    let all = event.as_object().unwrap_or(&none);
    let mut pairs: Vec<(&str, String)> = Vec::new();
    for name in FIRST {
        if let Some(value) = all.get(name) {
            pairs.push((name, text(value)));
        }
    }
    for (name, value) in all {
        if !FIRST.contains(&name.as_str()) && !matches!(name.as_str(), "data" | "data_base64" | "specversion") {
            pairs.push((name, text(value)));
        }
    }
    context.out.pairs(&pairs)?;
    match (&event["data"], &event["data_base64"]) {
        (Value::Null, Value::Null) => Ok(()),
        (Value::Null, Value::String(bytes)) => {
            context.out.line(&format!("\ndata: about {}", super::out::size(bytes.len() as u64 / 4 * 3)))
        }
        (Value::String(data), _) => context.out.line(&format!("\n{}", clean_lines(data))),
        (data, _) => context.out.line(&format!("\n{}", clean_lines(&format!("{data:#}")))),
    }
}

async fn trace(context: &mut Context, args: &TraceArgs) -> Result<(), Failure> {
    let call = Call::get(format!("/events/trace/{}", segment(&args.trace_id)));
    let Some(answer) = context.answer(call).await? else { return Ok(()) };
    for line in tree::draw(&answer) {
        let line = shorten(&line, context.out.width());
        context.out.line(&line)?;
    }
    Ok(())
}

async fn types(context: &mut Context) -> Result<(), Failure> {
    let Some(list) = context.list(Call::get("/events/types"), super::PAGE_MAX, false).await? else { return Ok(()) };
    let row = |item: &Value| vec![text(&item["type"]), text(&item["count"]), time(&item["last_seen"])];
    if list.items.is_empty() {
        return context.out.line("No event yet. `aman event push --type hello` stores one.");
    }
    context.table(&["TYPE", "COUNT", "LAST SEEN"], &list.items, row)
}

async fn recent(context: &mut Context, args: &RecentArgs) -> Result<(), Failure> {
    let call =
        Call::get("/events/recent").query_some("types", args.types.as_ref()).query_some("source", args.source.as_ref());
    let Some(list) = context.list(call, args.paging.limit, args.paging.all).await? else { return Ok(()) };
    let row = |event: &Value| {
        let more = [text(&event["subject"]), text(&event["data"])].join("  ");
        vec![
            text(&event["amansequence"]),
            time(&event["time"]),
            text(&event["type"]),
            text(&event["source"]),
            text(&event["id"]),
            shorten(more.trim(), DATA_CHARS),
        ]
    };
    if list.items.is_empty() {
        return context
            .out
            .line("None yet. `aman event push --type hello` stores one; `aman event types` shows what is kept.");
    }
    context.rows(&["SEQUENCE", "TIME", "TYPE", "SOURCE", "ID", "SUBJECT, DATA"], &list, row)
}

/// `10m` in milliseconds.
fn duration_ms(text: &str) -> Result<u64, String> {
    let parsed = config::parse_duration(text).and_then(|duration| u64::try_from(duration.as_millis()).ok());
    parsed.filter(|ms| *ms > 0).ok_or_else(|| "write a number and a unit: 500ms, 30s, 10m, 2h, 1d".to_owned())
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write it as KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::fake::Fake;
    use crate::cli::out::tests::Printed;
    use crate::cli::{Cli, Command};

    fn parsed(words: &[&str]) -> EventCommand {
        let cli = Cli::try_parse_from([&["aman", "event"], words].concat()).expect("the words are a command");
        let Command::Event(command) = cli.command else { panic!("not an event command") };
        command
    }

    #[tokio::test]
    async fn push_sends_what_was_written() {
        let fake =
            Fake::answering(&[&Fake::json(202, "{\"id\":\"x\",\"sequence\":3,\"type\":\"a\",\"trace_id\":\"t\"}")])
                .await;
        let printed = Printed::default();
        let mut context = Context::fake(&fake.base, printed.clone(), false);
        let words = ["push", "--type", "a", "--data", "{\"b\":1.10,\"a\":2}", "--ttl", "2m", "--ext", "shop=x=y"];
        run(&mut context, parsed(&words)).await.expect("it is stored");
        assert_eq!(printed.text(), "Stored: event x, sequence 3, type a, trace t\n");
        let body =
            "{\"data\":{\"b\":1.10,\"a\":2},\"shop\":\"x=y\",\"source\":\"cli\",\"ttl_ms\":120000,\"type\":\"a\"}";
        assert!(fake.requests()[0].ends_with(body), "{}", fake.requests()[0]);
    }

    #[tokio::test]
    async fn push_refuses_data_that_is_no_json() {
        let mut context = Context::fake("http://127.0.0.1:1", Printed::default(), false);
        let failure =
            run(&mut context, parsed(&["push", "-t", "a", "-d", "hello"])).await.expect_err("hello is no JSON");
        assert_eq!(failure.code(), 2);
    }

    #[test]
    fn durations() {
        assert_eq!(duration_ms("500ms"), Ok(500));
        assert_eq!(duration_ms("1d"), Ok(86_400_000));
        for wrong in ["", "5", "0s", "-1s", "1 h", "99999999999999999999s", "9999999999999999d"] {
            assert!(duration_ms(wrong).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn show_prints_attributes_data_and_deliveries() {
        let body = r#"{"event":{"specversion":"1.0","id":"e","type":"a","source":"s","shop":"x","data":{"n":"\u001b[2J"}},
            "deliveries":[{"id":7,"consumer":"skill/t","status":"dead","attempt":3,"next_at":null,"error":"boom"}]}"#;
        let fake = Fake::answering(&[&Fake::json(200, body)]).await;
        let printed = Printed::default();
        let mut context = Context::fake(&fake.base, printed.clone(), false);
        run(&mut context, parsed(&["show", "a/b"])).await.expect("it is there");
        let shown = printed.text();
        for part in ["id      e", "shop    x", "skill/t", "dead", "boom"] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
        assert!(!shown.contains('\u{1b}'));
        assert!(fake.requests()[0].starts_with("GET /events/dump/a%2Fb "));
    }
}
