//! A program whose lines become events: it runs on and is started again when it ends, or it runs once in a while.
//!
//! It runs in the sandbox, so it dies with the daemon and touches what it was given only. While the daemon is too busy
//! to take its lines, it waits.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::feed::{Feed, back_off};
use crate::config::sources::{Command, Program};
use crate::error::Error;
use crate::event::{Data, NewEvent};
use crate::sandbox::{self, Exit, Finished, Limits, Network, Sandbox, SandboxError, Spec};

/// Longest line, in bytes.
const LINE_BYTES_MAX: usize = 1 << 20;
/// Events that are stored together at the most.
const BATCH_MAX: usize = 100;
const RESTART_FIRST: Duration = Duration::from_secs(1);
const RESTART_MAX: Duration = Duration::from_secs(60);
/// A command that ran this long was well: the next wait is the first again.
const LONG_RUN: Duration = Duration::from_secs(60);
/// No limit, for commands that are meant to run on.
const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 86_400);
/// How much of standard error is shown with a failure.
const STDERR_CHARS: usize = 300;

/// A command source, ready to run.
pub struct CommandSource {
    /// The way of its events.
    pub feed: Arc<Feed>,
    /// What it runs.
    pub config: Command,
    /// Where it runs.
    pub sandbox: Sandbox,
    /// The folder it starts in when none is configured; it may write there.
    pub own_dir: PathBuf,
}

impl CommandSource {
    /// Runs until `stop`.
    pub async fn run(&self, stop: CancellationToken) -> Result<(), Error> {
        let mut failures = 0;
        loop {
            let started = Instant::now();
            self.feed.well("running");
            let failed = self.once(&stop).await;
            if stop.is_cancelled() {
                return Ok(());
            }
            let wait = match (failed, self.config.every) {
                (None, Some(every)) => {
                    self.feed.well("waiting");
                    every.saturating_sub(started.elapsed())
                }
                (Some(why), Some(every)) => {
                    self.feed.failing(why);
                    every.saturating_sub(started.elapsed())
                }
                (failed, None) => {
                    failures = if started.elapsed() >= LONG_RUN { 1 } else { failures + 1 };
                    self.feed.failing(failed.unwrap_or_else(|| "the command ended; it is started again".to_owned()));
                    back_off(failures, RESTART_FIRST, RESTART_MAX)
                }
            };
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Runs the command once; gives what went wrong.
    async fn once(&self, stop: &CancellationToken) -> Option<String> {
        if let Err(error) = std::fs::create_dir_all(&self.own_dir) {
            return Some(format!("its folder cannot be made: {error}"));
        }
        let limits = Limits {
            time: if self.config.every.is_some() { self.config.program.timeout } else { FOR_EVER },
            stdout_bytes_max: u64::MAX,
            ..Limits::default()
        };
        let spec = spec(&self.config.program, &self.own_dir, Vec::new(), limits);
        let cancel = stop.child_token();
        let (sender, receiver) = mpsc::channel(4);
        let running = self.sandbox.stream(spec, cancel.clone(), sender);
        let taking = async {
            let taken = self.take(receiver, &cancel).await;
            if taken.is_err() {
                cancel.cancel();
            }
            taken
        };
        match tokio::join!(running, taking) {
            (_, Err(error)) => Some(error.chain().join(": ")),
            (Ok(finished), Ok(())) => ending(&finished),
            (Err(error @ SandboxError::Setup { .. }), _) => Some(error.to_string()),
            (Err(error), _) => Some(format!("{error}; correct `command` in the configuration")),
        }
    }

    /// Publishes every line until the output ends.
    async fn take(&self, mut pieces: mpsc::Receiver<Bytes>, cancel: &CancellationToken) -> Result<(), Error> {
        let (mut rest, mut too_long) = (Vec::new(), false);
        while let Some(piece) = pieces.recv().await {
            let mut events = Vec::new();
            let mut parts = piece.split(|byte| *byte == b'\n').peekable();
            while let Some(part) = parts.next() {
                if rest.len() + part.len() > LINE_BYTES_MAX {
                    rest.clear();
                    too_long = true;
                }
                if !too_long {
                    rest.extend_from_slice(part);
                }
                if parts.peek().is_none() {
                    break;
                }
                if std::mem::take(&mut too_long) {
                    self.feed.skip(format!("a line has more than {LINE_BYTES_MAX} bytes"));
                } else {
                    events.extend(self.events(&std::mem::take(&mut rest)).await);
                }
            }
            self.publish(events, cancel).await?;
        }
        // The last line may have no end.
        let events = if too_long { Vec::new() } else { self.events(&rest).await };
        self.publish(events, cancel).await
    }

    async fn publish(&self, events: Vec<NewEvent>, cancel: &CancellationToken) -> Result<(), Error> {
        for batch in events.chunks(BATCH_MAX) {
            if !self.feed.publish_patiently(batch.to_vec(), || None, cancel).await? {
                break;
            }
        }
        Ok(())
    }

    /// The events that a line makes; what makes none is counted.
    async fn events(&self, line: &[u8]) -> Vec<NewEvent> {
        let line = line.trim_ascii();
        if line.is_empty() {
            return Vec::new();
        }
        let frame = &self.feed.frame;
        let made = if self.config.program.text {
            let text = String::from_utf8_lossy(line).into_owned();
            match frame.mapped(|| Value::String(text.clone())).await {
                Ok(None) => {
                    Ok(vec![NewEvent { content_type: Some("text/plain".to_owned()), ..frame.plain(Data::Text(text)) }])
                }
                other => other.map(Option::unwrap_or_default),
            }
        } else {
            match crate::event::read_json::<Value>(line) {
                Err(error) => Err(Error::invalid("line", format!("is not JSON: {error}."))),
                Ok(value) => match frame.mapped(|| value.clone()).await {
                    Ok(None) => frame.loose(value).map(|event| vec![event]),
                    other => other.map(Option::unwrap_or_default),
                },
            }
        };
        made.unwrap_or_else(|error| {
            self.feed.skip(error.to_string());
            Vec::new()
        })
    }
}

/// What is run of a command that may write in the folder `own`, with these variables besides.
pub(super) fn spec(program: &Program, own: &Path, besides: Vec<(String, String)>, limits: Limits) -> Spec {
    let home = own.to_string_lossy().into_owned();
    let mut env: Vec<(String, String)> = [("PATH", sandbox::PATH), ("LANG", "C.UTF-8"), ("HOME", &home)]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
    env.extend(besides);
    env.retain(|(name, _)| !program.env.iter().any(|(set, _)| set == name));
    env.extend(program.env.iter().map(|(name, value)| (name.clone(), value.expose().to_owned())));
    let mut read = program.read.clone();
    read.extend(program.dir.clone());
    Spec {
        argv: program.argv.clone(),
        dir: program.dir.clone().unwrap_or_else(|| own.to_owned()),
        env,
        stdin: Bytes::new(),
        own: Some(own.to_owned()),
        read,
        write: program.write.clone(),
        net: if program.net { Network::Any } else { Network::None },
        limits,
    }
}

/// What a run's end means; `None` when all went well.
pub(super) fn ending(finished: &Finished) -> Option<String> {
    let how = match finished.exit {
        Exit::Exited(0) | Exit::Cancelled => return None,
        Exit::Exited(code) => format!("the command failed with exit code {code}"),
        Exit::Signalled(signal) => format!("the command was ended by signal {signal}"),
        Exit::TimedOut => "the command took longer than its `timeout` and was ended".to_owned(),
        Exit::OutputTooLarge => "the command wrote too much".to_owned(),
    };
    let log: String = String::from_utf8_lossy(&finished.stderr).trim().chars().take(STDERR_CHARS).collect();
    let log: String = log.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    Some(if log.is_empty() { how } else { format!("{how}: {log}") })
}
