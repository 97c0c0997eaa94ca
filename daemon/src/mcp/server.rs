//! One server: its connection, its tools, and calls of them.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aman_mcp::{Answer, Connection, Failure, Offered, Pipes, Way};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStderr};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Inner, http, names, provider};
use crate::clock::{Clock, Millis, rfc3339};
use crate::config::mcp::{McpPlace, McpServer};
use crate::config::{Secret, shown};
use crate::error::Error;
use crate::redact;
use crate::sandbox::{self, Attended};
use crate::tools::{Call, Calling, Output, Permission, Provider, Tool, ToolFailure};

/// Tools of one server; what it has beyond is left out.
const TOOLS_MAX: usize = 256;
/// Longest description, in characters, and greatest schema, in bytes, of one tool.
const DESCRIPTION_CHARS_MAX: usize = 4000;
const SCHEMA_BYTES_MAX: usize = 32 << 10;
/// Waits before connecting again: each is twice as long as the one before.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(300);
/// A connection that lasted so long was well: the next wait is the first again.
const LONG: Duration = Duration::from_secs(60);
/// How long a call waits for a connection that is being made.
const CONNECT_WAIT: Duration = Duration::from_secs(10);
/// How long a program may take to end before it is started anew, and at the end of the daemon, which ends it anyway.
const END_WAIT: Duration = Duration::from_secs(6);
/// How often a server that says so may have its tools read again.
const RELOAD_WAIT: Duration = Duration::from_secs(1);
const LAST_WAIT: Duration = Duration::from_secs(1);
/// Of what a program says besides: characters of a line, and lines that reach the log in one run.
const SAID_CHARS_MAX: usize = 400;
const SAID_LINES_MAX: usize = 200;

/// How a server stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Switched off.
    Off,
    /// Being connected to.
    Connecting,
    /// Connected.
    Ready,
    /// Not connected; it is tried again later.
    Waiting,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            State::Off => "off",
            State::Connecting => "connecting",
            State::Ready => "ready",
            State::Waiting => "waiting",
        }
    }
}

/// A tool with its name at the server.
struct Held {
    tool: Tool,
    there: String,
}

/// What is so at present.
struct Now {
    since_ms: Millis,
    /// Why it is not connected, or was not the last time.
    error: Option<String>,
    next_ms: Option<Millis>,
    connection: Option<Arc<Connection>>,
    protocol: Option<String>,
    server: Option<String>,
    pid: Option<u32>,
    tools: Arc<Vec<Held>>,
    left_out: usize,
}

/// A server at work.
pub(super) struct Entry {
    /// As the file has it.
    pub configured: McpServer,
    clock: Clock,
    state: watch::Sender<State>,
    now: Mutex<Now>,
    /// Asked to connect anew.
    again: Notify,
    stop: CancellationToken,
    /// Cancelled once its task has ended.
    over: CancellationToken,
    /// True once the present connection was of use.
    met: AtomicBool,
    calls: AtomicU64,
    failures: AtomicU64,
}

/// A program that is attended.
struct Program {
    attendant: Child,
    /// What it says besides its messages; the last of it, at its end.
    said: JoinHandle<String>,
}

impl Entry {
    pub fn new(configured: McpServer, clock: Clock) -> Entry {
        let state = if configured.enabled { State::Connecting } else { State::Off };
        let now = Now {
            since_ms: clock.now_ms(),
            error: None,
            next_ms: None,
            connection: None,
            protocol: None,
            server: None,
            pid: None,
            tools: Arc::default(),
            left_out: 0,
        };
        Entry {
            configured,
            clock,
            state: watch::Sender::new(state),
            now: Mutex::new(now),
            again: Notify::new(),
            stop: CancellationToken::new(),
            over: CancellationToken::new(),
            met: AtomicBool::new(false),
            calls: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        }
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, state: State, change: impl FnOnce(&mut Now)) {
        let mut now = self.now();
        now.since_ms = self.clock.now_ms();
        now.next_ms = None;
        change(&mut now);
        drop(now);
        self.state.send_replace(state);
    }

    /// True while it is connected.
    pub fn is_ready(&self) -> bool {
        *self.state.borrow() == State::Ready
    }

    /// Asks it to connect anew, at once.
    pub fn reconnect(&self) {
        self.again.notify_one();
    }

    /// Ends it, and waits for that, but not for ever.
    pub async fn end(&self) {
        self.stop.cancel();
        if self.configured.enabled {
            let _late = tokio::time::timeout(END_WAIT, self.over.cancelled()).await;
        }
    }

    /// Is connected until it is stopped.
    pub async fn run(self: Arc<Self>, inner: Arc<Inner>, stop: CancellationToken) -> Result<(), Error> {
        let (mut failures, mut old_first) = (0_u32, false);
        loop {
            let begun = Instant::now();
            let ended = self.once(&inner, &stop, old_first).await;
            // What cannot be spoken to in one way is greeted in the other next time.
            old_first ^= !self.met.swap(false, Ordering::Relaxed);
            if self.stop.is_cancelled() || stop.is_cancelled() {
                break;
            }
            let Some(why) = ended else { continue };
            failures = if begun.elapsed() >= LONG { 1 } else { failures.saturating_add(1) };
            let doubled = RETRY_FIRST.saturating_mul(1_u32.checked_shl(failures - 1).unwrap_or(u32::MAX));
            let wait = doubled.min(RETRY_MAX);
            self.wait_for_next(why, wait);
            tokio::select! {
                () = self.stopped(&stop) => break,
                () = self.again.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
        self.over.cancel();
        Ok(())
    }

    fn wait_for_next(&self, why: String, wait: Duration) {
        let server = &self.configured.name;
        if self.now().error.as_ref() != Some(&why) {
            tracing::warn!(server, why, "An MCP server is not connected; it is tried again.");
        }
        let next_ms = self.clock.now_ms() + Millis::try_from(wait.as_millis()).unwrap_or(Millis::MAX);
        self.enter(State::Waiting, |now| (now.error, now.next_ms) = (Some(why), Some(next_ms)));
    }

    /// One connection from its beginning to its end; why it ended, unless that was asked for.
    async fn once(&self, inner: &Inner, stop: &CancellationToken, old_first: bool) -> Option<String> {
        self.enter(State::Connecting, |_| {});
        let changed = Arc::new(Notify::new());
        let (way, mut program) = match self.way(inner) {
            Ok(way) => way,
            Err(why) => return Some(why),
        };
        let opening =
            tokio::time::timeout(self.configured.timeout, Connection::open(way, old_first, Arc::clone(&changed)));
        let opened = tokio::select! {
            opened = opening => opened.unwrap_or_else(|_| {
                Err(format!("it said nothing within {} s", self.configured.timeout.as_secs()))
            }),
            () = self.stopped(stop) => Err("it was stopped".to_owned()),
        };
        let ended = match opened {
            Ok(connection) => self.stay(inner, Arc::new(connection), program.as_mut(), &changed, stop).await,
            Err(why) => Some(why),
        };
        let (said, how) = self.end_program(program, stop).await;
        self.now().pid = None;
        ended.map(|why| format!("{}{how}{said}", clean(&why, SAID_CHARS_MAX)))
    }

    /// Ends once this server, or the daemon, is to end.
    async fn stopped(&self, stop: &CancellationToken) {
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = stop.cancelled() => {}
        }
    }

    /// Stays with a connection and closes it; why it ended, unless that was asked for.
    async fn stay(
        &self,
        inner: &Inner,
        connection: Arc<Connection>,
        program: Option<&mut Program>,
        changed: &Notify,
        stop: &CancellationToken,
    ) -> Option<String> {
        let ended = self.attend(inner, &connection, program, changed, stop).await;
        // Whoever calls it from here on waits for what comes next.
        self.enter(State::Connecting, |now| now.connection = None);
        connection.close().await;
        ended
    }

    /// Waits for the end of a program whose input has ended: its last words, and how it ended.
    async fn end_program(&self, program: Option<Program>, stop: &CancellationToken) -> (String, String) {
        let Some(mut program) = program else { return (String::new(), String::new()) };
        let wait = if stop.is_cancelled() { LAST_WAIT } else { END_WAIT };
        let how = match tokio::time::timeout(wait, program.attendant.wait()).await {
            Ok(Ok(status)) => exit(status),
            Ok(Err(_)) | Err(_) => String::new(),
        };
        let said = match tokio::time::timeout(LAST_WAIT, program.said).await {
            Ok(Ok(said)) => said,
            Ok(Err(_)) | Err(_) => String::new(),
        };
        (if said.is_empty() { said } else { format!(". Its last words: {said}") }, how)
    }

    /// Stays with a connection until it ends, and says why; none when that is asked for.
    async fn attend(
        &self,
        inner: &Inner,
        connection: &Arc<Connection>,
        mut program: Option<&mut Program>,
        changed: &Notify,
        stop: &CancellationToken,
    ) -> Option<String> {
        tokio::select! {
            loaded = self.load(inner, connection) => match loaded {
                Ok(()) => {}
                Err(why) => return Some(why),
            },
            () = self.stopped(stop) => return None,
        }
        let (protocol, server) = connection.server();
        let name = &self.configured.name;
        tracing::info!(server = name, protocol, tools = self.now().tools.len(), "An MCP server is connected.");
        self.met.store(true, Ordering::Relaxed);
        self.enter(State::Ready, |now| {
            now.error = None;
            now.connection = Some(Arc::clone(connection));
            now.protocol = Some(protocol);
            now.server = server.map(|text| clean(&text, SAID_CHARS_MAX));
        });
        loop {
            tokio::select! {
                () = self.stopped(stop) => return None,
                () = connection.ended() => return Some("the server ended the connection".to_owned()),
                () = over(program.as_deref_mut()) => return Some("its program ended".to_owned()),
                () = self.again.notified() => return None,
                () = changed.notified() => tokio::select! {
                    () = self.stopped(stop) => return None,
                    () = connection.ended() => return Some("the server ended the connection".to_owned()),
                    () = over(program.as_deref_mut()) => return Some("its program ended".to_owned()),
                    () = self.again.notified() => return None,
                    () = self.load_again(inner, connection) => {}
                },
            }
        }
    }

    /// Asks for the tools anew; a server that says without end that they changed is asked once in a while.
    async fn load_again(&self, inner: &Inner, connection: &Connection) {
        if let Err(why) = self.load(inner, connection).await {
            let (server, why) = (&self.configured.name, clean(&why, SAID_CHARS_MAX));
            tracing::warn!(server, why, "The tools of an MCP server changed and could not be read.");
        }
        tokio::time::sleep(RELOAD_WAIT).await;
    }

    /// Asks which tools there are, and offers them.
    async fn load(&self, inner: &Inner, connection: &Connection) -> Result<(), String> {
        let listed = tokio::time::timeout(self.configured.timeout, connection.tools(TOOLS_MAX)).await;
        let offered = listed.map_err(|_| "it did not tell its tools in time".to_owned())??;
        let _alone = inner.naming.lock().unwrap_or_else(PoisonError::into_inner);
        let own = provider(&self.configured.name);
        let others = inner.tools.list().into_iter().filter(|tool| tool.source != own);
        let mut taken: BTreeSet<String> = others.map(|tool| tool.name).collect();
        let (mut held, mut left_out) = (Vec::new(), 0);
        for one in offered {
            if one.schema.to_string().len() > SCHEMA_BYTES_MAX {
                let (server, tool) = (&self.configured.name, clean(&one.name, SAID_CHARS_MAX));
                tracing::warn!(server, tool, "A tool of an MCP server is left out: its schema is too large.");
                left_out += 1;
                continue;
            }
            let name = names::name(&self.configured.name, &one.name, &taken);
            taken.insert(name.clone());
            held.push(self.held(name, own.clone(), one));
        }
        let mut now = self.now();
        (now.tools, now.left_out) = (Arc::new(held), left_out);
        Ok(())
    }

    fn held(&self, name: String, source: String, offered: Offered) -> Held {
        let tool = Tool {
            name,
            description: clean(&offered.description, DESCRIPTION_CHARS_MAX),
            schema: offered.schema,
            source,
            permission: Permission::Foreign,
            // A hint is the server's word; whether that counts the operator says.
            repeatable: offered.read_only && self.configured.trusted_annotations,
        };
        Held { tool, there: offered.name }
    }

    /// The way to the server; starts its program if it is one.
    fn way(&self, inner: &Inner) -> Result<(Way, Option<Program>), String> {
        let around = &inner.surroundings;
        match &self.configured.place {
            McpPlace::Http { url, headers } => {
                let send = http::way_out(&around.egress, url, headers, self.configured.timeout);
                Ok((Way::Http(url.to_string(), send), None))
            }
            McpPlace::Program { argv, dir, env } => {
                let home = around.home.clone().unwrap_or_else(|| "/".into());
                let started = around.sandbox.attend(argv, dir.as_deref().unwrap_or(&home), &variables(&home, env));
                let failed = |error| format!("'{}' cannot be started: {error}", argv[0]);
                let Attended { stdin, stdout, stderr, attendant } = started.map_err(failed)?;
                self.now().pid = attendant.id();
                let said = tokio::spawn(note(self.configured.name.clone(), stderr));
                let pipes = Pipes { stdin: Box::new(stdin), stdout: Box::new(stdout) };
                Ok((Way::Pipes(pipes), Some(Program { attendant, said })))
            }
        }
    }

    /// As JSON.
    pub fn show(&self) -> Value {
        let state = *self.state.borrow();
        let now = self.now();
        let tool = |held: &Held| json!({ "name": held.tool.name, "tool": clean(&held.there, SAID_CHARS_MAX), "repeatable": held.tool.repeatable });
        let transport = match self.configured.place {
            McpPlace::Program { .. } => "stdio",
            McpPlace::Http { .. } => "http",
        };
        json!({
            "name": self.configured.name,
            "enabled": self.configured.enabled,
            "transport": transport,
            "state": state.name(),
            "since": rfc3339(now.since_ms),
            "detail": now.error,
            "next_try_at": now.next_ms.map(rfc3339),
            "server": now.server,
            "protocol": now.protocol,
            "pid": now.pid,
            "trust": self.configured.trust.name(),
            "tools": now.tools.iter().map(tool).collect::<Vec<_>>(),
            "tools_left_out": now.left_out,
            "calls": self.calls.load(Ordering::Relaxed),
            "failures": self.failures.load(Ordering::Relaxed),
            "config": shown(&self.configured.table),
        })
    }

    /// The connection, once there is one; why there is none.
    async fn connected(&self) -> Result<Arc<Connection>, String> {
        let mut state = self.state.subscribe();
        let settled = state.wait_for(|state| !matches!(state, State::Connecting));
        let _late = tokio::time::timeout(CONNECT_WAIT, settled).await;
        let now = self.now();
        let name = &self.configured.name;
        now.connection.clone().ok_or_else(|| match &now.error {
            Some(why) => format!("The MCP server '{name}' is not connected: {why}. Nothing was called."),
            None => format!("The MCP server '{name}' is not connected yet. Nothing was called."),
        })
    }

    async fn call(&self, call: &Call, cancel: &CancellationToken) -> Result<Output, ToolFailure> {
        let tools = Arc::clone(&self.now().tools);
        let Some(held) = tools.iter().find(|held| held.tool.name == call.tool) else {
            return Err(ToolFailure::Failed(format!("The MCP server no longer has a tool '{}'.", call.tool)));
        };
        let arguments = match &call.arguments {
            Value::Object(fields) => fields.clone(),
            Value::Null => Map::new(),
            _ => return Err(ToolFailure::Arguments(String::new(), "must be an object".to_owned())),
        };
        let connection = tokio::select! {
            () = cancel.cancelled() => return Err(ToolFailure::Failed("It was stopped before it began.".to_owned())),
            connection = self.connected() => connection.map_err(ToolFailure::Failed)?,
        };
        let timeout = self.configured.timeout;
        let answer = tokio::select! {
            biased;
            () = cancel.cancelled() => {
                return Err(ToolFailure::Unknown("It was stopped; the server was told, and may have done it.".to_owned()));
            }
            answer = tokio::time::timeout(timeout, connection.call(&held.there, arguments)) => answer,
        };
        match answer {
            Ok(Ok(answer)) => self.output(answer),
            Ok(Err(Failure::Refused(why))) => Err(ToolFailure::Failed(cut(redact::text(&why).into_owned()))),
            Ok(Err(Failure::Lost(why))) => Err(ToolFailure::Unknown(clean(&why, SAID_CHARS_MAX))),
            Err(_) => {
                let why = format!("No answer within {} s; the server may still do it.", timeout.as_secs());
                Err(ToolFailure::Unknown(why))
            }
        }
    }

    fn output(&self, answer: Answer) -> Result<Output, ToolFailure> {
        let text = cut(redact::text(&answer.text).into_owned());
        if answer.failed {
            return Err(ToolFailure::Failed(text));
        }
        let value = answer.value.and_then(|value| {
            let json = value.to_string();
            // A value that is too large, or holds a secret, is worth no more than its text.
            (json.len() <= Output::BYTES_MAX && !redact::is_in(&json)).then_some(value)
        });
        Ok(Output { text, value, trust: self.configured.trust })
    }
}

/// Ends with the program; never when there is none.
async fn over(program: Option<&mut Program>) {
    match program {
        Some(program) => drop(program.attendant.wait().await),
        None => std::future::pending().await,
    }
}

/// The tools of a server, as they are offered.
pub(super) struct Offer(pub Arc<Entry>);

impl Provider for Offer {
    fn tools(&self) -> Vec<Tool> {
        self.0.now().tools.iter().map(|held| held.tool.clone()).collect()
    }

    fn tool(&self, name: &str) -> Option<Tool> {
        self.0.now().tools.iter().find(|held| held.tool.name == name).map(|held| held.tool.clone())
    }

    fn call<'a>(&'a self, call: &'a Call, cancel: &'a CancellationToken) -> Calling<'a> {
        Box::pin(async move {
            self.0.calls.fetch_add(1, Ordering::Relaxed);
            let done = self.0.call(call, cancel).await;
            if done.is_err() {
                self.0.failures.fetch_add(1, Ordering::Relaxed);
            }
            done
        })
    }
}

/// The whole environment of a program: nothing is inherited from the daemon.
fn variables(home: &Path, own: &[(String, Secret)]) -> Vec<(String, String)> {
    let home = home.to_string_lossy();
    let path = format!("{home}/.local/bin:{}", sandbox::PATH);
    let mut all = vec![
        ("PATH".to_owned(), path),
        ("HOME".to_owned(), home.into_owned()),
        ("LANG".to_owned(), "C.UTF-8".to_owned()),
    ];
    all.retain(|(name, _)| !own.iter().any(|(set, _)| set == name));
    all.extend(own.iter().map(|(name, value)| (name.clone(), value.expose().to_owned())));
    all
}

/// Writes what a program says besides its messages to the log, as far as that is bounded, and keeps the last of it.
async fn note(server: String, stderr: ChildStderr) -> String {
    let mut lines = BufReader::new(stderr);
    let (mut line, mut told, mut last) = (Vec::new(), 0_usize, String::new());
    loop {
        line.clear();
        // A longer line comes as several.
        let most = (SAID_CHARS_MAX * 4) as u64;
        match (&mut lines).take(most).read_until(b'\n', &mut line).await {
            Ok(1..) => {}
            Ok(0) | Err(_) => return last,
        }
        let text = clean(String::from_utf8_lossy(&line).trim(), SAID_CHARS_MAX);
        if text.is_empty() {
            continue;
        }
        told += 1;
        match told.cmp(&SAID_LINES_MAX) {
            std::cmp::Ordering::Less => tracing::info!(server, text, "An MCP server says."),
            std::cmp::Ordering::Equal => tracing::info!(server, "An MCP server says more than is logged of one run."),
            std::cmp::Ordering::Greater => {}
        }
        last = text;
    }
}

/// Without secrets and control characters, and not too long.
fn clean(text: &str, chars_max: usize) -> String {
    let text = redact::text(text);
    let plain = |c: char| if c.is_control() && c != '\n' { ' ' } else { c };
    text.chars().take(chars_max).map(plain).collect()
}

/// At most as long as an output may be.
fn cut(mut text: String) -> String {
    const NOTE: &str = "\n[cut off here: the answer is longer]";
    if text.len() > Output::BYTES_MAX {
        text.truncate(text.floor_char_boundary(Output::BYTES_MAX - NOTE.len()));
        text.push_str(NOTE);
    }
    text
}

/// How a program ended, in words to be added.
fn exit(status: ExitStatus) -> String {
    status.code().map_or_else(String::new, |code| format!(" (its program ended with exit code {code})"))
}
