//! `aman jq`: the daemon's expression language as a filter, so that skill scripts need nothing but `sh`.

use std::io::{self, BufWriter, Read, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::expr::{Expr, Limits};

/// Exit code when the last output was `false` or `null`, or none came, with `-e`.
const EXIT_FALSE: u8 = 1;
/// Exit code for a filter that does not compile.
const EXIT_FILTER: u8 = 2;
/// Exit code for input that is no JSON, and for a filter that fails while it runs; the same number as jq's.
const EXIT_RUN: u8 = 5;

/// A person or script waits for this and can end it: the limits only keep a slip from eating the machine.
const LIMITS: Limits = Limits {
    time: Duration::from_secs(60),
    input_bytes: 64 << 20,
    outputs: 10_000_000,
    output_bytes: 256 << 20,
    memory: 4 << 30,
};
/// More input than this is refused: it is read whole before the first document is looked at.
const STDIN_BYTES_MAX: u64 = 64 << 20;

/// Runs a filter over each JSON document on stdin.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
Examples:
  aman event recent --json | aman jq -r '.items[].type'
  aman jq -n '{a: 1, b: [2, 3]}'
  echo '{\"size\": 7}' | aman jq -e '.size > 5' && echo large

Stdin may hold several documents. Whole numbers are exact to 64 bits; objects come out ordered by key. There are no
modules, no environment and no endless generators.
Exit codes: 0 done, 1 with -e: the last output is false or null, or there is none, 2 wrong filter, 5 wrong input or the
filter failed.")]
pub struct JqArgs {
    /// The filter
    #[arg(value_name = "FILTER")]
    filter: String,
    /// Print strings without quotes
    #[arg(long, short = 'r')]
    raw_output: bool,
    /// One line for each output
    #[arg(long, short = 'c')]
    compact_output: bool,
    /// Read no input; the filter gets null once
    #[arg(long, short = 'n')]
    null_input: bool,
    /// Read all documents into one array first
    #[arg(long, short = 's', conflicts_with = "null_input")]
    slurp: bool,
    /// Let the exit code tell whether the last output is neither false nor null
    #[arg(long, short = 'e')]
    exit_status: bool,
}

/// Why it ended early: what to say, and the exit code.
type Ended = (String, u8);

/// Runs the filter over stdin.
pub fn run(args: &JqArgs) -> ExitCode {
    let input = if args.null_input { Ok("null".to_owned()) } else { read_stdin() };
    let mut stdout = BufWriter::new(io::stdout().lock());
    let done = input.and_then(|input| filter(args, &input, &mut stdout));
    let done = done.and_then(|code| stdout.flush().map(|()| code).or_else(|error| not_written(&error)));
    match done {
        Ok(code) => ExitCode::from(code),
        Err((message, code)) => {
            // stderr may be closed, too; then only the exit code is left.
            drop(writeln!(io::stderr().lock(), "aman jq: {message}"));
            ExitCode::from(code)
        }
    }
}

fn read_stdin() -> Result<String, Ended> {
    let mut text = String::new();
    let read = io::stdin().lock().take(STDIN_BYTES_MAX + 1).read_to_string(&mut text);
    read.map_err(|error| (format!("stdin cannot be read: {error}"), EXIT_RUN))?;
    if text.len() as u64 > STDIN_BYTES_MAX {
        return Err((format!("stdin holds more than {STDIN_BYTES_MAX} bytes"), EXIT_RUN));
    }
    Ok(text)
}

/// A reader that went away is no failure of ours.
fn not_written(error: &io::Error) -> Result<u8, Ended> {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Ok(0),
        _ => Err((format!("the output cannot be written: {error}"), EXIT_RUN)),
    }
}

/// Gives every output of every document to `sink`, and the exit code.
fn filter(args: &JqArgs, input: &str, sink: &mut impl Write) -> Result<u8, Ended> {
    let expr = Expr::compile(&args.filter).map_err(|error| (error.to_string(), EXIT_FILTER))?;
    let mut last = None;
    let mut failed = None;
    let mut documents = Vec::new();
    for document in serde_json::Deserializer::from_str(input).into_iter::<&RawValue>() {
        let document = document.map_err(|error| (format!("stdin is not JSON: {error}"), EXIT_RUN));
        match document {
            Ok(document) if args.slurp => documents.push(document.get()),
            Ok(document) => match outputs(args, &expr, document.get(), sink, &mut last)? {
                Go::On => {}
                Go::Failed(message) => failed = Some(message),
                Go::Closed => return Ok(0),
            },
            Err(ended) => {
                // What came before the broken part is shown before the complaint.
                sink.flush().or_else(|error| not_written(&error).map(drop))?;
                return Err(ended);
            }
        }
    }
    if args.slurp {
        let all = format!("[{}]", documents.join(","));
        match outputs(args, &expr, &all, sink, &mut last)? {
            Go::On => {}
            Go::Failed(message) => failed = Some(message),
            Go::Closed => return Ok(0),
        }
    }
    if let Some(message) = failed {
        sink.flush().or_else(|error| not_written(&error).map(drop))?;
        return Err((message, EXIT_RUN));
    }
    let is_true = !matches!(last, None | Some(Value::Null | Value::Bool(false)));
    Ok(if args.exit_status && !is_true { EXIT_FALSE } else { 0 })
}

/// What follows a document.
enum Go {
    On,
    /// The filter failed on this document; the next one is still tried.
    Failed(String),
    /// Nobody reads any more.
    Closed,
}

fn outputs(
    args: &JqArgs,
    expr: &Expr,
    document: &str,
    sink: &mut impl Write,
    last: &mut Option<Value>,
) -> Result<Go, Ended> {
    let values = match expr.run(document.as_bytes(), &LIMITS) {
        Ok(values) => values,
        Err(error) => return Ok(Go::Failed(error.to_string())),
    };
    for value in values {
        let text = match &value {
            Value::String(text) if args.raw_output => text.clone(),
            value if args.compact_output => value.to_string(),
            value => format!("{value:#}"),
        };
        if let Err(error) = writeln!(sink, "{text}") {
            return not_written(&error).map(|_| Go::Closed);
        }
        *last = Some(value);
    }
    Ok(Go::On)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(flags: &str, source: &str, input: &str, expected: Result<(&str, u8), u8>) {
        let args = JqArgs {
            filter: source.to_owned(),
            raw_output: flags.contains('r'),
            compact_output: flags.contains('c'),
            null_input: flags.contains('n'),
            slurp: flags.contains('s'),
            exit_status: flags.contains('e'),
        };
        let mut printed = Vec::new();
        let found = filter(&args, input, &mut printed);
        let printed = String::from_utf8(printed).expect("output is UTF-8");
        match (&found, expected) {
            (Ok(code), Ok((text, wanted))) => assert_eq!((printed.as_str(), *code), (text, wanted), "{source}"),
            (Err((_, code)), Err(wanted)) => assert_eq!(*code, wanted, "{source}"),
            _ => panic!("{source}: {found:?}"),
        }
    }

    #[test]
    fn filters() {
        check("", ".a", "{\"a\": {\"b\": [1]}}", Ok(("{\n  \"b\": [\n    1\n  ]\n}\n", 0)));
        check("c", ".", "{\"a\": 1} [2]\n3", Ok(("{\"a\":1}\n[2]\n3\n", 0)));
        check("r", ".a", "{\"a\": \"x\\ny\"}", Ok(("x\ny\n", 0)));
        check("", ".a", "{\"a\": \"x\"}", Ok(("\"x\"\n", 0)));
        check("c", "length", "", Ok(("", 0)));
        check("cs", ".", "1 {\"a\":2}", Ok(("[1,{\"a\":2}]\n", 0)));
        check("e", ".a", "{\"a\": false}", Ok(("false\n", 1)));
        check("e", ".a", "{\"a\": 0}", Ok(("0\n", 0)));
        check("e", "empty", "1", Ok(("", 1)));
    }

    #[test]
    fn failures() {
        check("", ".a |", "{}", Err(2));
        check("", "nosuch", "{}", Err(2));
        check("", ".", "{\"a\":", Err(5));
        check("", ".a", "[1]", Err(5));
        check("", "error(\"x\")", "1", Err(5));
    }
}
