//! `aman logs`: reads the log files of the daemon, whether it runs or not.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::Context;
use super::failure::Failure;
use super::out::{clean, text};
use crate::clock::{Clock, Millis, parse_rfc3339};
use crate::config::{self, Flags};
use crate::telemetry;

/// How often `--follow` looks for more.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Longer lines are cut: one is never so long unless the file is no log.
const LINE_BYTES_MAX: usize = 1 << 20;

/// Reads the log.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman logs
  aman logs --follow --level warn
  aman logs --since 1h
  aman logs --since 2026-11-22T08:00:00Z --json | aman jq -r '.fields.message // .message'

It reads files, so it works while the daemon is down. Where they are and how much is kept: log.dir, log.max_size,
log.keep and log.max_age, see `aman config get`. What is logged: log.level.")]
pub struct LogsArgs {
    /// Show what comes as well, until Ctrl-C
    #[arg(long, short)]
    follow: bool,
    /// Only lines since then: a time such as 2026-11-22T08:00:00Z, or 30m, 12h, 7d ago
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only lines of this level and above
    #[arg(long, value_enum, value_name = "LEVEL")]
    level: Option<Level>,
    /// At most so many lines, the last ones [default: 100, with --since all]
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(0..=1_000_000))]
    lines: Option<u64>,
}

/// How grave a line is. Ordered: the later is graver.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

impl Level {
    fn of(name: &str) -> Option<Level> {
        Level::from_str(name, true).ok()
    }
}

/// What a line says of itself.
struct Head {
    at_ms: Millis,
    level: Level,
    /// Time, level and the rest as text.
    shown: String,
    document: Value,
}

/// Which lines are wanted.
struct Wanted {
    since_ms: Option<Millis>,
    level: Option<Level>,
    json: bool,
    /// Whether the record that goes on is wanted: a line without a head belongs to the one before.
    within: bool,
}

impl Wanted {
    /// The line as it is to be printed; `None` when it is not wanted.
    fn take(&mut self, line: &str) -> Option<String> {
        let Some(head) = head(line) else {
            return (self.within && !line.is_empty()).then(|| match self.json {
                true => json!({ "message": line }).to_string(),
                false => clean(line),
            });
        };
        let late = self.since_ms.is_none_or(|since| head.at_ms >= since);
        self.within = late && self.level.is_none_or(|least| head.level >= least);
        self.within.then(|| if self.json { head.document.to_string() } else { clean(&head.shown) })
    }
}

/// Reads `2026-11-22T01:13:00.123456Z  INFO aman::start: Ready.` or the same as a JSON object.
fn head(line: &str) -> Option<Head> {
    if line.starts_with('{') {
        let document: Value = serde_json::from_str(line).ok()?;
        let (time, level) = (text(&document["timestamp"]), text(&document["level"]));
        let mut shown =
            format!("{time} {level:>5} {}: {}", text(&document["target"]), text(&document["fields"]["message"]));
        for (name, value) in document["fields"].as_object()?.iter().filter(|(name, _)| *name != "message") {
            shown.push_str(&format!(" {name}={value}"));
        }
        return Some(Head { at_ms: parse_rfc3339(&time)?, level: Level::of(&level)?, shown, document });
    }
    let (time, rest) = line.split_once(' ')?;
    let (level, rest) = rest.trim_start().split_once(' ')?;
    let (at_ms, grave) = (parse_rfc3339(time)?, Level::of(level)?);
    let document = json!({ "timestamp": time, "level": level, "message": rest });
    Some(Head { at_ms, level: grave, shown: line.to_owned(), document })
}

/// A log file that is being read.
struct Reading {
    identity: (u64, u64),
    reader: BufReader<File>,
    /// A line of which the end is not there yet.
    begun: Vec<u8>,
}

impl Reading {
    fn open(path: &Path) -> std::io::Result<Reading> {
        let file = File::open(path)?;
        let found = file.metadata()?;
        Ok(Reading { identity: (found.dev(), found.ino()), reader: BufReader::new(file), begun: Vec::new() })
    }

    /// The next whole line; `None` when no more is there now.
    fn next(&mut self) -> Result<Option<String>, Failure> {
        let unreadable = |error: std::io::Error| Failure::Failed(format!("The log cannot be read: {error}."));
        loop {
            let bytes = self.reader.fill_buf().map_err(unreadable)?;
            if bytes.is_empty() {
                return Ok(None);
            }
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(bytes.len(), |end| end + 1);
            let room = LINE_BYTES_MAX.saturating_sub(self.begun.len());
            self.begun.extend_from_slice(&bytes[..end.unwrap_or(taken).min(room)]);
            self.reader.consume(taken);
            if end.is_some() {
                let line = String::from_utf8_lossy(&self.begun).into_owned();
                self.begun.clear();
                return Ok(Some(line));
            }
        }
    }
}

/// The files that are newer than the one with this identity, the oldest first; without an identity all.
///
/// They are opened from the newest on: one that is put aside meanwhile is then found twice, and never missed.
fn newer(dir: &Path, than: Option<(u64, u64)>) -> Vec<Reading> {
    let mut found: Vec<Reading> = Vec::new();
    for path in telemetry::log_files(dir) {
        // A file that is gone by now was too old to be kept.
        let Ok(file) = Reading::open(&path) else { continue };
        if Some(file.identity) == than {
            break;
        }
        if found.iter().all(|other| other.identity != file.identity) {
            found.push(file);
        }
    }
    found.reverse();
    found
}

/// Runs `aman logs`.
pub async fn run(context: &mut Context, args: &LogsArgs) -> Result<(), Failure> {
    let dir = folder(context)?;
    let since_ms = args.since.as_deref().map(since).transpose()?;
    let mut wanted = Wanted { since_ms, level: args.level, json: context.out.json(), within: false };
    let lines_max = match (args.lines, since_ms) {
        (Some(lines), _) => usize::try_from(lines).unwrap_or(usize::MAX),
        (None, Some(_)) => usize::MAX,
        (None, None) => 100,
    };
    let mut files = newer(&dir, None);
    if files.is_empty() && !args.follow {
        let message = match std::fs::read_dir(&dir) {
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                format!("{} cannot be read: {error}. Do this as the user who runs aman.", dir.display())
            }
            _ => format!("No log is in {}. `aman serve` writes it, unless log.files = false.", dir.display()),
        };
        return Err(Failure::Failed(message));
    }
    let mut last = VecDeque::new();
    for file in &mut files {
        while let Some(line) = file.next()? {
            let Some(line) = wanted.take(&line) else { continue };
            if lines_max == usize::MAX {
                context.out.line(&line)?;
                continue;
            }
            last.push_back(line);
            if last.len() > lines_max {
                last.pop_front();
            }
        }
    }
    for line in last {
        context.out.line(&line)?;
    }
    if args.follow { follow(context, &dir, files.pop(), wanted).await } else { Ok(()) }
}

/// Prints what comes, over every change of file; ends with the program.
async fn follow(context: &mut Context, dir: &Path, from: Option<Reading>, mut wanted: Wanted) -> Result<(), Failure> {
    let mut files: VecDeque<Reading> = from.into_iter().collect();
    loop {
        while let Some(file) = files.front_mut() {
            while let Some(line) = file.next()? {
                if let Some(line) = wanted.take(&line) {
                    context.out.line(&line)?;
                }
            }
            if files.len() == 1 {
                break;
            }
            files.pop_front();
        }
        context.out.flush()?;
        tokio::time::sleep(LOOK_EVERY).await;
        // Looked for before the last file is read again, so that its last lines are not passed over.
        let identity = files.back().map(|file| file.identity);
        files.extend(newer(dir, identity));
    }
}

/// Where the log is, by the configuration; by default when that is broken.
fn folder(context: &Context) -> Result<PathBuf, Failure> {
    let loaded = config::load(&Flags::of_client(context.global.home.as_deref())).ok();
    match loaded.and_then(|config| config.log.files) {
        Some(files) => Ok(files.dir),
        None => Ok(context.paths()?.state),
    }
}

fn since(text: &str) -> Result<Millis, Failure> {
    let ago = || {
        let ago = config::parse_duration(text)?;
        Some(Clock::System.now_ms().saturating_sub(Millis::try_from(ago.as_millis()).ok()?))
    };
    parse_rfc3339(text).or_else(ago).ok_or_else(|| {
        Failure::Usage(format!("--since '{text}' is no time: write 30m, 12h or 7d, or 2026-11-22T08:00:00Z."))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "2026-11-22T01:13:00.123456Z  INFO aman::start: Ready. address=127.0.0.1:1";
    const JSON: &str = "{\"timestamp\":\"2026-11-22T01:13:01Z\",\"level\":\"WARN\",\"fields\":{\"message\":\"Odd.\",\"n\":1},\"target\":\"a::b\"}";

    fn wanted(level: Option<Level>, json: bool) -> Wanted {
        Wanted { since_ms: parse_rfc3339("2026-11-22T01:13:00Z"), level, json, within: false }
    }

    #[test]
    fn both_forms_are_read() {
        let mut people = wanted(None, false);
        assert_eq!(people.take(TEXT).as_deref(), Some(TEXT));
        assert_eq!(people.take("  a line\u{1b} more").as_deref(), Some("  a line\u{fffd} more"));
        assert_eq!(people.take(JSON).as_deref(), Some("2026-11-22T01:13:01Z  WARN a::b: Odd. n=1"));
        assert_eq!(people.take(&TEXT.replace("2026", "2025")), None);
        assert_eq!(people.take("belongs to the line before"), None);
        let mut programs = wanted(Some(Level::Warn), true);
        assert_eq!(programs.take(TEXT), None);
        assert_eq!(
            programs.take(JSON).map(|line| serde_json::from_str::<Value>(&line).ok()),
            Some(serde_json::from_str(JSON).ok())
        );
        let shown = wanted(None, true).take(TEXT).expect("wanted");
        assert!(shown.contains("\"level\":\"INFO\"") && shown.contains("Ready."), "{shown}");
    }

    #[test]
    fn times() {
        assert_eq!(since("2026-11-22T01:13:00Z").ok(), parse_rfc3339("2026-11-22T01:13:00Z"));
        assert!(since("1h").is_ok_and(|at| at < Clock::System.now_ms()));
        assert!(since("soon").is_err());
    }
}
