//! `aman event tail`: events as they are stored, across restarts of the daemon and broken connections.

use std::time::Duration;

use clap::Args;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::Value;
use tokio::time::{sleep, timeout};

use super::Context;
use super::client::{Call, Client};
use super::failure::Failure;
use super::out::{clean, shorten, text, time};
use crate::sse::{Frame, Parser};

/// The daemon sends a comment every 15 s: after three missed ones the connection is dead.
const SILENCE_MAX: Duration = Duration::from_secs(50);
/// Waits between attempts to connect again; the server's `retry:` replaces the first.
const RETRY_FIRST_MS: u64 = 500;
const RETRY_MAX_MS: u64 = 10_000;
/// Largest frame that is kept; a longer one is cut, as no event may be that large.
const FRAME_BYTES_MAX: usize = 16 << 20;

/// Follows events as they are stored.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman event tail
  aman event tail --types 'file.**,mail.received'
  aman event tail --since 0                 from the oldest event that is kept
  aman event tail --json | aman jq -c '{type, data}'

One line an event: time, sequence, type, source, subject, data. With --json each line is the whole event. A broken
connection is taken up again where it ended, also after a restart of the daemon. Ctrl-C ends it.")]
pub struct TailArgs {
    /// Only types that match one of these comma-separated patterns (* one segment, ** the rest)
    #[arg(long, value_name = "PATTERNS")]
    types: Option<String>,
    /// Begin after this sequence instead of now; 0 is the oldest that is kept
    #[arg(long, value_name = "SEQUENCE")]
    since: Option<u64>,
    /// Only events for this agent
    #[arg(long, value_name = "AGENT")]
    agent: Option<String>,
    /// Only events of this trace
    #[arg(long, value_name = "TRACE_ID")]
    trace: Option<String>,
    /// End after this many events
    #[arg(long, short = 'n', value_name = "N")]
    count: Option<u64>,
}

/// Where the tail is and what it has still to show.
struct Tail<'a> {
    args: &'a TailArgs,
    /// The last sequence that was shown; sent as `Last-Event-ID`.
    cursor: Option<String>,
    left: Option<u64>,
    retry_ms: u64,
}

/// Why one connection is over.
enum End {
    /// Everything asked for was shown.
    Enough,
    /// The connection ended; another one can go on.
    Broken(String),
}

pub async fn run(context: &mut Context, args: &TailArgs) -> Result<(), Failure> {
    let mut client = context.client()?;
    let cursor = match args.since {
        Some(since) => Some(since.to_string()),
        None => newest_sequence(&client).await,
    };
    let mut tail = Tail { args, cursor, left: args.count, retry_ms: RETRY_FIRST_MS };
    let mut stream = connect(&client, &tail).await?;
    if context.out.is_terminal() && !context.out.json() {
        context.out.complain("Events appear here as they happen; Ctrl-C ends this.");
    }
    let mut wait_ms = 0;
    loop {
        let before = tail.cursor.clone();
        let reason = match follow(context, &mut tail, stream).await? {
            End::Enough => return Ok(()),
            End::Broken(reason) => reason,
        };
        context.out.complain(&format!("aman: the stream ended ({reason}); connecting again."));
        if tail.cursor != before {
            wait_ms = 0;
        }
        stream = loop {
            wait_ms = if wait_ms == 0 { tail.retry_ms } else { (wait_ms * 2).min(RETRY_MAX_MS) };
            sleep(Duration::from_millis(wait_ms)).await;
            // A restarted daemon may listen on another port.
            if let Ok(found) = context.client() {
                client = found;
            }
            match connect(&client, &tail).await {
                Ok(stream) => break stream,
                Err(failure) if passes(&failure) => {}
                Err(failure) => return Err(failure),
            }
        };
    }
}

/// The newest sequence, so that nothing between two connections is missed even when no event came on the first. A
/// token that may not read the status does without.
async fn newest_sequence(client: &Client) -> Option<String> {
    let reply = client.call(Call::get("/runtime/status")).await.ok()?;
    reply.json().ok()?["sequence"].as_u64().map(|sequence| sequence.to_string())
}

/// Whether waiting may help.
fn passes(failure: &Failure) -> bool {
    match failure {
        Failure::NoDaemon { .. } | Failure::Failed(_) => true,
        Failure::Refused(reply) => matches!(reply.status, 429 | 500 | 502 | 503 | 504),
        Failure::Locked { .. } | Failure::Usage(_) | Failure::Said(_) | Failure::PipeClosed => false,
    }
}

async fn connect(client: &Client, tail: &Tail<'_>) -> Result<Incoming, Failure> {
    let mut call = Call::get("/events/stream")
        .query_some("types", tail.args.types.as_ref())
        .query_some("agent_id", tail.args.agent.as_ref())
        .query_some("trace_id", tail.args.trace.as_ref())
        .header("accept", "text/event-stream");
    if let Some(cursor) = &tail.cursor {
        call = call.header("last-event-id", cursor.clone());
    }
    client.stream(call).await
}

async fn follow(context: &mut Context, tail: &mut Tail<'_>, mut stream: Incoming) -> Result<End, Failure> {
    let mut parser = Parser::new(FRAME_BYTES_MAX);
    loop {
        let part = match timeout(SILENCE_MAX, stream.frame()).await {
            Err(_) => return Ok(End::Broken(format!("nothing for {} s", SILENCE_MAX.as_secs()))),
            Ok(None) => return Ok(End::Broken("closed by the daemon".to_owned())),
            Ok(Some(Err(error))) => return Ok(End::Broken(error.to_string())),
            Ok(Some(Ok(part))) => part,
        };
        let Ok(bytes) = part.into_data() else { continue };
        for frame in parser.feed(&bytes) {
            if show(context, tail, frame)? {
                context.out.flush()?;
                return Ok(End::Enough);
            }
        }
        if let Some(retry_ms) = parser.retry_ms() {
            tail.retry_ms = retry_ms.clamp(1, RETRY_MAX_MS);
        }
        context.out.flush()?;
    }
}

/// Prints one frame; true when it was the last one asked for.
fn show(context: &mut Context, tail: &mut Tail<'_>, frame: Frame) -> Result<bool, Failure> {
    let Some(id) = frame.id else {
        if frame.event.as_deref() == Some("aman.reset") {
            let note = clean(&frame.data);
            context
                .out
                .complain(&format!("aman: events before the oldest kept one are gone; going on from there: {note}"));
        }
        return Ok(false);
    };
    if context.out.json() {
        context.out.line(&frame.data)?;
    } else {
        let event: Value = serde_json::from_str(&frame.data).unwrap_or(Value::Null);
        let line = line_of(&event, &id, context.out.width());
        context.out.line(&line)?;
    }
    tail.cursor = Some(id);
    if let Some(left) = &mut tail.left {
        *left = left.saturating_sub(1);
    }
    Ok(tail.left == Some(0))
}

/// Time, sequence, type, source, subject and as much of the data as fits.
fn line_of(event: &Value, sequence: &str, width: usize) -> String {
    let subject = text(&event["subject"]);
    let mut line = format!(
        "{}  {:>6}  {}  {}",
        time(&event["time"]),
        clean(sequence),
        text(&event["type"]),
        text(&event["source"])
    );
    for more in [subject, text(&event["data"])] {
        if !more.is_empty() {
            line.push_str("  ");
            line.push_str(&more);
        }
    }
    shorten(&line, width)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::fake::Fake;
    use crate::cli::out::tests::Printed;

    fn event(sequence: u64) -> String {
        format!(
            "id: {sequence}\nevent: a.b\ndata: {{\"type\":\"a.b\",\"source\":\"s\",\"time\":\"2026-11-22T01:13:00.123Z\",\"data\":{{\"n\":{sequence}}}}}\n\n"
        )
    }

    fn stream(frames: &str) -> String {
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\nretry: 1\n\n{frames}")
    }

    fn args(count: u64) -> TailArgs {
        TailArgs { types: Some("a.**".into()), since: None, agent: None, trace: None, count: Some(count) }
    }

    #[tokio::test]
    async fn goes_on_where_the_connection_broke() {
        let status = Fake::json(200, "{\"sequence\": 4}");
        let busy = Fake::json(503, "{\"code\": \"draining\"}");
        let (first, second) =
            (stream(&(event(5) + "event: aman.metrics\ndata: {}\n\n")), stream(&(event(6) + &event(7))));
        let fake = Fake::answering(&[&status, &first, &busy, &second]).await;
        let printed = Printed::default();
        let mut context = Context::fake(&fake.base, printed.clone(), false);
        run(&mut context, &args(2)).await.expect("two events come");
        assert_eq!(
            printed.text(),
            "2026-11-22 01:13:00Z       5  a.b  s  {\"n\":5}\n2026-11-22 01:13:00Z       6  a.b  s  {\"n\":6}\n"
        );
        let requests = fake.requests();
        assert!(requests[1].contains("GET /events/stream?types=a.%2A%2A "), "{}", requests[1]);
        assert!(requests[1].contains("last-event-id: 4\r\n"));
        assert!(requests[3].contains("last-event-id: 5\r\n"));
    }

    #[tokio::test]
    async fn a_refusal_ends_it() {
        let refusal = Fake::json(401, "{\"detail\": \"The token is wrong.\"}");
        let fake = Fake::answering(&[&refusal, &refusal]).await;
        let mut context = Context::fake(&fake.base, Printed::default(), true);
        let failure = run(&mut context, &args(1)).await.expect_err("a wrong token ends it");
        assert!(matches!(failure, Failure::Locked { .. }));
    }
}
