//! `[sources.<id>]`: what brings events in.

use std::path::PathBuf;
use std::time::Duration;

use toml::{Table, Value};

use super::broker::{Broker, broker};
use super::table::{Faults, Reader};
use super::{FileSource, Paths, References, Secret, paths};
use crate::egress::Url;
use crate::event::Trust;
use crate::expr::Expr;

/// Names of all kinds.
pub const KINDS: [&str; 5] = ["files", "webhook", "command", "mqtt", "http_poll"];
/// Bounds of `expect_every` and `every`.
const SECOND: Duration = Duration::from_secs(1);
const YEAR: Duration = Duration::from_secs(365 * 86_400);

/// A source as it is configured.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// Its id: lower-case letters, digits, `-` and `_`.
    pub id: String,
    /// An event is missed when none came for this long.
    pub expect_every: Option<Duration>,
    /// Its table as it was read, for whoever shows or changes it.
    pub table: Table,
    /// The rest.
    pub kind: SourceKind,
}

/// What differs between the kinds.
#[derive(Debug, Clone, PartialEq)]
pub enum SourceKind {
    /// A folder.
    Files(FileSource),
    /// Calls of `POST /hooks/{id}`.
    Webhook(Webhook),
    /// A program's output.
    Command(Command),
    /// A web address that is asked again and again.
    HttpPoll(HttpPoll),
    /// Topics of an MQTT broker.
    Mqtt(Mqtt),
}

impl SourceKind {
    /// Its name in the configuration.
    pub fn name(&self) -> &'static str {
        match self {
            SourceKind::Files(_) => "files",
            SourceKind::Webhook(_) => "webhook",
            SourceKind::Command(_) => "command",
            SourceKind::HttpPoll(_) => "http_poll",
            SourceKind::Mqtt(_) => "mqtt",
        }
    }

    /// How far its events are believed.
    pub fn trust(&self) -> Trust {
        match self {
            SourceKind::Files(files) => files.trust,
            SourceKind::Webhook(hook) => hook.mapping.trust,
            SourceKind::Command(command) => command.mapping.trust,
            SourceKind::HttpPoll(poll) => poll.mapping.trust,
            SourceKind::Mqtt(mqtt) => mqtt.mapping.trust,
        }
    }
}

/// How what came in becomes events.
#[derive(Debug, Clone, PartialEq)]
pub struct Mapping {
    /// Type of events that name none.
    pub kind: Option<String>,
    /// jq over what came in; its outputs are the events.
    pub map: Option<Expr>,
    /// How far the events are believed.
    pub trust: Trust,
}

/// Whose signatures a hook takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Standard Webhooks.
    Standard,
    /// `X-Hub-Signature-256`.
    Github,
    /// `X-Gitlab-Token`.
    Gitlab,
    /// `X-Slack-Signature`.
    Slack,
    /// `Stripe-Signature`.
    Stripe,
    /// A plain HMAC of the body in a header.
    Hmac,
}

/// Names of the schemes.
const SCHEMES: [&str; 6] = ["standard", "github", "gitlab", "slack", "stripe", "hmac"];

/// How a hook knows its sender.
#[derive(Debug, Clone, PartialEq)]
pub struct Verify {
    /// See [`Scheme`].
    pub scheme: Scheme,
    /// Any of them is good, so that a secret can be replaced without a gap.
    pub secrets: Vec<Secret>,
    /// `hmac`: the header with the signature.
    pub header: String,
    /// `hmac`: what stands before the signature, as `sha256=`.
    pub prefix: String,
    /// `hmac`: `sha256`, `sha512` or `sha1`.
    pub algorithm: &'static str,
    /// `hmac`: true when the signature is base64 rather than hex.
    pub base64: bool,
    /// `hmac`: the header with the time in seconds; then `time.body` is signed, and old ones are refused.
    pub timestamp_header: Option<String>,
    /// The header with the delivery's id, where the scheme names none.
    pub id_header: Option<String>,
}

/// `kind = "webhook"`
#[derive(Debug, Clone, PartialEq)]
pub struct Webhook {
    /// None: a token is needed.
    pub verify: Option<Verify>,
    /// See [`Mapping`].
    pub mapping: Mapping,
}

/// `kind = "command"`
#[derive(Debug, Clone, PartialEq)]
pub struct Command {
    /// What is run.
    pub program: Program,
    /// Run again this long after its start; none = it runs on, and is started again when it ends.
    pub every: Option<Duration>,
    /// See [`Mapping`].
    pub mapping: Mapping,
}

/// A command, and what it may touch.
#[derive(Debug, Clone, PartialEq)]
pub struct Program {
    /// The command and its arguments; no shell reads them.
    pub argv: Vec<String>,
    /// How long one run may take that is to end.
    pub timeout: Duration,
    /// The folder it starts in; none = one of its own.
    pub dir: Option<PathBuf>,
    /// Variables; values may be secrets.
    pub env: Vec<(String, Secret)>,
    /// What it may read besides the system's folders.
    pub read: Vec<PathBuf>,
    /// What it may write.
    pub write: Vec<PathBuf>,
    /// True when it may use the network.
    pub net: bool,
    /// True: a line is text; false: a line is JSON.
    pub text: bool,
}

/// `kind = "http_poll"`
#[derive(Debug, Clone, PartialEq)]
pub struct HttpPoll {
    /// What is asked.
    pub url: Url,
    /// How often.
    pub every: Duration,
    /// Headers; values may be secrets.
    pub headers: Vec<(String, Secret)>,
    /// See [`Mapping`].
    pub mapping: Mapping,
}

/// `kind = "mqtt"`
#[derive(Debug, Clone, PartialEq)]
pub struct Mqtt {
    /// See [`Broker`].
    pub broker: Broker,
    /// Topic filters.
    pub topics: Vec<String>,
    /// See [`Mapping`].
    pub mapping: Mapping,
}

/// True when `id` names a source or sink well.
pub fn is_id(id: &str) -> bool {
    (1..=64).contains(&id.len())
        && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
}

/// The source that watches the inbox, beside what is configured.
pub(super) fn inbox(paths: &Paths) -> Source {
    let path = paths.data.join("inbox");
    let mut table = Table::new();
    table.insert("kind".to_owned(), "files".into());
    table.insert("path".to_owned(), Value::String(path.to_string_lossy().into_owned()));
    let files = FileSource {
        id: "default".to_owned(),
        path,
        patterns: Vec::new(),
        ignore: Vec::new(),
        emit_initial: false,
        trust: Trust::Owner,
    };
    Source { id: "default".to_owned(), expect_every: None, table, kind: SourceKind::Files(files) }
}

/// Reads the table of a source; `None` when it cannot be used, and then `faults` says why.
pub fn source(id: &str, table: &Table, paths: &Paths, references: References, faults: &mut Faults) -> Option<Source> {
    let mut reader = Reader::new(format!("sources.{id}"), table, references);
    let wrong_before = faults.wrong.len();
    let expect_every = reader.duration("expect_every", SECOND..=YEAR);
    let kind = match reader.required("kind", &format!("one of {}.", KINDS.join(", "))).as_deref() {
        None => None,
        Some("files") => files(id, &mut reader, paths).map(SourceKind::Files),
        Some("webhook") => Some(SourceKind::Webhook(webhook(&mut reader, faults))),
        Some("command") => command(&mut reader, paths).map(SourceKind::Command),
        Some("http_poll") => http_poll(&mut reader).map(SourceKind::HttpPoll),
        Some("mqtt") => mqtt(&mut reader, paths).map(SourceKind::Mqtt),
        Some(other) => {
            reader.wrong("kind", format!("'{other}' is not known; this version has: {}.", KINDS.join(", ")));
            // Which keys it has cannot be told, so none is called unknown.
            let mut only_wrong = Faults::default();
            reader.finish(&mut only_wrong);
            faults.wrong.extend(only_wrong.wrong);
            return None;
        }
    };
    reader.finish(faults);
    let kind = kind.filter(|_| faults.wrong.len() == wrong_before)?;
    Some(Source { id: id.to_owned(), expect_every, table: table.clone(), kind })
}

fn mapping(reader: &mut Reader<'_>, highest: Trust) -> Mapping {
    Mapping { kind: reader.event_type("type"), map: reader.expr("map"), trust: reader.trust(highest) }
}

fn files(id: &str, reader: &mut Reader<'_>, paths: &Paths) -> Option<FileSource> {
    let (patterns, ignore) = (reader.list("patterns"), reader.list("ignore"));
    let emit_initial = reader.one_of("initial", &["baseline", "emit"], "baseline") == "emit";
    let trust = reader.trust(Trust::Owner);
    let path = paths::expand(&reader.required("path", "the folder to watch.")?, paths.home_dir.as_deref());
    if !path.is_absolute() {
        reader.wrong("path", "must be an absolute path, or begin with ~/.");
        return None;
    }
    Some(FileSource { id: id.to_owned(), path, patterns, ignore, emit_initial, trust })
}

fn webhook(reader: &mut Reader<'_>, faults: &mut Faults) -> Webhook {
    let verify = reader.table("verify").map(|mut inner| {
        let scheme = match inner.one_of("scheme", &SCHEMES, "standard") {
            "github" => Scheme::Github,
            "gitlab" => Scheme::Gitlab,
            "slack" => Scheme::Slack,
            "stripe" => Scheme::Stripe,
            "hmac" => Scheme::Hmac,
            _ => Scheme::Standard,
        };
        if inner.text("scheme").is_none() {
            inner.wrong("scheme", format!("is missing: one of {}.", SCHEMES.join(", ")));
        }
        let secrets = inner.secrets("secret");
        if secrets.is_empty() {
            inner.wrong(
                "secret",
                "is missing: what the sender signs with, best as env:NAME, file:PATH or keyring:SERVICE/ACCOUNT.",
            );
        }
        let lower = |text: String| text.to_ascii_lowercase();
        let verify = Verify {
            scheme,
            secrets,
            header: inner.text("header").map_or_else(|| "x-signature".to_owned(), lower),
            prefix: inner.text("prefix").unwrap_or_default(),
            algorithm: inner.one_of("algorithm", &["sha256", "sha512", "sha1"], "sha256"),
            base64: inner.one_of("encoding", &["hex", "base64"], "hex") == "base64",
            timestamp_header: inner.text("timestamp_header").map(lower),
            id_header: inner.text("id_header").map(lower),
        };
        inner.finish(faults);
        verify
    });
    Webhook { verify, mapping: mapping(reader, Trust::Web) }
}

fn command(reader: &mut Reader<'_>, paths: &Paths) -> Option<Command> {
    let every = reader.duration("every", SECOND..=YEAR);
    let (program, mapping) = (program(reader, paths), mapping(reader, Trust::Owner));
    Some(Command { program: program?, every, mapping })
}

/// Reads what a command is and may touch.
pub(super) fn program(reader: &mut Reader<'_>, paths: &Paths) -> Option<Program> {
    let home = paths.home_dir.as_deref();
    let argv = reader.words("command");
    if argv.is_empty() {
        reader.wrong("command", "is missing: the program and its arguments.");
    }
    let timeout = reader.duration("timeout", SECOND..=YEAR).unwrap_or(Duration::from_secs(60));
    let dir = reader.text("dir").map(|dir| paths::expand(&dir, home));
    if dir.as_ref().is_some_and(|dir| !dir.is_absolute()) {
        reader.wrong("dir", "must be an absolute path, or begin with ~/.");
    }
    let program = Program {
        timeout,
        dir,
        env: reader.variables("env"),
        read: reader.paths("read", home),
        write: reader.paths("write", home),
        net: reader.one_of("net", &["none", "any"], "none") == "any",
        text: reader.one_of("format", &["json", "text"], "json") == "text",
        argv,
    };
    Some(program).filter(|program| !program.argv.is_empty())
}

fn http_poll(reader: &mut Reader<'_>) -> Option<HttpPoll> {
    let every = reader.duration("every", SECOND..=YEAR).unwrap_or(Duration::from_secs(300));
    let (headers, mapping) = (reader.headers("headers"), mapping(reader, Trust::Web));
    Some(HttpPoll { url: reader.url("url", "the address to ask.")?, every, headers, mapping })
}

fn mqtt(reader: &mut Reader<'_>, paths: &Paths) -> Option<Mqtt> {
    let topics = reader.list("topics");
    if topics.is_empty() {
        reader.wrong("topics", "is missing: topic filters, such as [\"home/#\"].");
    }
    let mapping = mapping(reader, Trust::Unknown);
    Some(Mqtt { broker: broker(reader, paths)?, topics, mapping })
}
