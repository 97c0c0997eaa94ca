//! For those who write skills, without a daemon: a folder to begin with, what is wrong with one, and one run.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use super::load::{self, SKILL_FILE};
use super::manifest::{Manifest, Run, check_name};
use super::run::{Script, Surroundings, tail};
use super::{Settings, clear, folder, front};
use crate::bus::{Attempt, Effects, NewNotification, Outcome};
use crate::clock::Clock;
use crate::error::{Error, FieldError};
use crate::event::{Event, NewEvent, Trust, read_json};
use crate::expr::Limits;
use crate::id::{self, DeliveryId, EventSeq, TraceId};
use crate::sandbox::{Enforced, Exit, Places, Sandbox};

/// Lines of a `SKILL.md` that the Agent Skills specification advises to stay below.
const LINES_ADVISED: usize = 500;
/// Endings of what a command most likely means as a file of the skill.
const SCRIPTS: [&str; 6] = [".sh", ".py", ".js", ".mjs", ".rb", ".pl"];

/// The files of a new skill.
const TEMPLATE: [(&str, &str); 3] = [
    (
        SKILL_FILE,
        "\
---
name: {{name}}
description: Greets whoever asks. Use it when an event of type hello.asked arrives.
metadata:
  aman.version: \"0.1.0\"
  aman.on: \"hello.asked\"
  aman.run: \"sh scripts/run.sh\"
---

# {{name}}

What the skill does, for people and for models that use it. `scripts/run.sh` does it: the event comes as JSON on standard
input, and what it prints says what is to happen.
",
    ),
    (
        "scripts/run.sh",
        "\
# The event comes as JSON on standard input; one JSON object on standard output says what is to happen:
# {\"publish\": [{\"type\", \"data\", \"subject\"}], \"notify\": [{\"title\", \"message\", \"severity\"}], \"result\": any}
# Exit code 0 is done, 75 try again, 65 give up; anything else is a failed attempt. Standard error is the log.
exec \"$AMAN_BIN\" jq -c '{
    publish: [{type: \"hello.said\", data: {text: (\"Hello, \" + (.data.name // \"world\") + \"!\")}}]
}'
",
    ),
    ("assets/event.json", "{\"type\": \"hello.asked\", \"data\": {\"name\": \"Ada\"}}\n"),
];

/// A folder that was made.
#[derive(Debug, Serialize)]
pub struct Made {
    /// The skill's name.
    pub name: String,
    /// Its folder.
    pub path: PathBuf,
    /// The type of event that it waits for.
    pub on: &'static str,
}

/// Makes the folder of a new skill in `parent`; it appears whole.
pub fn make(name: &str, parent: &Path) -> Result<Made, Error> {
    check_name(name).map_err(|reason| Error::invalid("name", reason))?;
    let path = parent.join(name);
    let unmade = |error: std::io::Error| Error::invalid("into", format!("{} cannot be made: {error}.", path.display()));
    if path.symlink_metadata().is_ok() {
        return Err(Error::conflict("already_exists", format!("{} is there already.", path.display())));
    }
    // No name that a daemon's next reading would clear away as what a rollback left.
    let making = parent.join(format!(".{name}.aman-making"));
    let write = || {
        fs::create_dir_all(parent)?;
        clear::remove(&making)?;
        for (file, text) in TEMPLATE {
            let file = making.join(file);
            fs::create_dir_all(file.parent().unwrap_or(&making))?;
            fs::write(file, text.replace("{{name}}", name))?;
        }
        fs::rename(&making, &path)
    };
    write().map_err(unmade)?;
    Ok(Made { name: name.to_owned(), path, on: "hello.asked" })
}

/// What a check found.
#[derive(Debug, Serialize)]
pub struct Checked {
    /// The skill's folder.
    pub path: PathBuf,
    /// The name that the daemon would know it by.
    pub name: Option<String>,
    /// True when nothing is wrong.
    pub ok: bool,
    /// Whether the daemon would load it all the same.
    pub loads: bool,
    /// What breaks a rule of the Agent Skills specification, or of aman's keys.
    pub errors: Vec<Wrong>,
    /// What is odd.
    pub warnings: Vec<String>,
    /// SHA-256 over its files, hex.
    pub digest: Option<String>,
}

/// A broken rule.
#[derive(Debug, Serialize)]
pub struct Wrong {
    /// The field, or the file.
    pub field: String,
    /// What is wrong and what would be right.
    pub reason: String,
}

impl From<FieldError> for Wrong {
    fn from(FieldError { field, reason }: FieldError) -> Wrong {
        Wrong { field, reason }
    }
}

/// Checks a skill's folder, or the `SKILL.md` in it, by every rule.
pub fn check(path: &Path, places: &Places) -> Checked {
    let path = home(path);
    let mut checked =
        Checked { path, name: None, ok: false, loads: false, errors: Vec::new(), warnings: Vec::new(), digest: None };
    match examine(&checked.path, places) {
        Ok((skill, wrong)) => {
            checked.loads = wrong.is_empty();
            checked.warnings = skill.manifest.warnings.clone();
            checked.warnings.extend(oddities(&skill, &checked.path));
            checked.errors = wrong.into_iter().chain(skill.manifest.breaks).map(Wrong::from).collect();
            checked.name = Some(skill.manifest.name).filter(|name| !name.is_empty());
            checked.digest = Some(skill.digest);
        }
        Err(Error::Invalid { fields, .. }) => checked.errors = fields.into_iter().map(Wrong::from).collect(),
        Err(error) => checked.errors.push(Wrong { field: "folder".to_owned(), reason: error.to_string() }),
    }
    checked.ok = checked.errors.is_empty();
    checked
}

/// The real folder that `path` means: itself, or the one that holds the `SKILL.md` that it names.
fn home(path: &Path) -> PathBuf {
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    match real.parent() {
        Some(parent) if real.file_name().is_some_and(|name| name == SKILL_FILE) => parent.to_owned(),
        _ => real,
    }
}

struct Examined {
    manifest: Manifest,
    text: String,
    digest: String,
}

fn examine(path: &Path, places: &Places) -> Result<(Examined, Vec<FieldError>), Error> {
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| Error::invalid("folder", "has a name that is no UTF-8."))?;
    let digest = folder::read(path).map_err(|reason| Error::invalid("folder", reason))?.digest;
    if path.join(SKILL_FILE).symlink_metadata().is_err() {
        return Err(Error::invalid(SKILL_FILE, "is missing; that file makes a folder a skill."));
    }
    let text = load::text(path).map_err(|reason| Error::invalid(SKILL_FILE, reason))?;
    let (manifest, wrong) = Manifest::examine(&text, name, places)?;
    Ok((Examined { manifest, text, digest }, wrong))
}

/// What is allowed and most likely not meant.
fn oddities(skill: &Examined, path: &Path) -> Vec<String> {
    let mut odd = Vec::new();
    let lines = skill.text.lines().count();
    if lines > LINES_ADVISED {
        odd.push(format!("{SKILL_FILE} has {lines} lines; below {LINES_ADVISED} a model reads all of it. Move details to other files."));
    }
    if front::body(&skill.text).trim().is_empty() {
        odd.push(format!("{SKILL_FILE} has no text below the front matter: nothing tells what the skill does."));
    }
    if let Run::Script(argv) = &skill.manifest.run {
        let is_file = |(n, word): &(usize, &String)| {
            let relative = !word.starts_with(['/', '-', '~', '$']);
            relative && ((*n == 0 && word.contains('/')) || SCRIPTS.iter().any(|ending| word.ends_with(ending)))
        };
        let missing = argv.iter().enumerate().filter(is_file).filter(|(_, word)| !path.join(word).is_file());
        odd.extend(
            missing.map(|(_, word)| format!("metadata.aman.run names '{word}', which is no file of the skill.")),
        );
    }
    odd
}

/// What a run came to.
#[derive(Debug, Serialize)]
pub struct Tried {
    /// The skill's name.
    pub name: String,
    /// Whether an event like this reaches it.
    pub matches: bool,
    /// Why.
    pub why: String,
    /// How the delivery would have ended: `done`, `retry` or `reject`; none when it was not run.
    pub outcome: Option<&'static str>,
    /// How the script ended, in words.
    pub exit: Option<String>,
    /// How long that took, in milliseconds.
    pub took_ms: u64,
    /// The events that it asks for.
    pub publish: Vec<Value>,
    /// The notifications that it asks for.
    pub notify: Vec<Value>,
    /// Its result.
    pub result: Option<Value>,
    /// Why it failed, outermost first.
    pub error: Vec<String>,
    /// The end of its standard error.
    pub log: String,
    /// What was in force while it ran.
    pub enforced: Option<Enforced>,
}

/// Runs a skill's script for one event as the daemon would, and tells what it asks for instead of doing it. What its
/// permissions let it write it writes. An event that would not reach it runs only when `anyway`.
pub async fn run(path: &Path, event: &[u8], anyway: bool, settings: &Settings) -> Result<Tried, Error> {
    let path = home(path);
    let (skill, wrong) = examine(&path, &settings.places)?;
    if !wrong.is_empty() {
        return Err(Error::Invalid { code: "invalid_input", fields: wrong });
    }
    let manifest = Arc::new(skill.manifest);
    let Run::Script(argv) = manifest.run.clone() else {
        return Err(Error::invalid("metadata.aman.run", "names no script, so there is nothing to run."));
    };
    let event = Arc::new(read_event(event)?);
    let (matches, why) = reaches(&manifest, &event);
    let mut tried = Tried {
        name: manifest.name.clone(),
        matches,
        why,
        outcome: None,
        exit: None,
        took_ms: 0,
        publish: Vec::new(),
        notify: Vec::new(),
        result: None,
        error: Vec::new(),
        log: String::new(),
        enforced: None,
    };
    if !matches && !anyway {
        return Ok(tried);
    }
    let room = std::env::temp_dir().join(format!("aman-skill-{}", id::hex(&id::random_bytes::<8>())));
    let made = fs::DirBuilder::new().mode(0o700).create(&room);
    made.map_err(|error| Error::invalid("TMPDIR", format!("{} cannot be made: {error}.", room.display())))?;
    let work = room.join("work");
    let surroundings = Surroundings { data: settings.places.data.clone(), work, binary: settings.binary.clone() };
    let sandbox = Sandbox::new(&room).with_private(settings.private.clone());
    let script = Script { manifest, argv, folder: path, surroundings: Arc::new(surroundings), sandbox };
    let delivery_id = id::fresh();
    let attempt = Attempt { event, delivery: DeliveryId(1), delivery_id, number: 1, cancel: CancellationToken::new() };
    let begun = Instant::now();
    let (outcome, finished) = script.run(&attempt).await;
    tried.took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    let _nobody_else_looks = clear::remove(&room);
    if let Some(finished) = finished {
        tried.log = tail(&finished);
        tried.exit = Some(in_words(finished.exit));
        tried.enforced = Some(finished.enforced);
    }
    tried.end(outcome);
    Ok(tried)
}

impl Tried {
    fn end(&mut self, outcome: Outcome) {
        let (name, failure) = match outcome {
            Outcome::Done(Effects { publish, notify, result, .. }) => {
                self.publish = publish.iter().map(event_shown).collect();
                self.notify = notify.iter().map(notification_shown).collect();
                self.result = result;
                ("done", None)
            }
            Outcome::Retry(failure, _) => ("retry", Some(failure)),
            Outcome::Reject(failure) | Outcome::Buried(failure, _) => ("reject", Some(failure)),
            Outcome::Postponed(_) => ("retry", None),
        };
        self.outcome = Some(name);
        self.error = failure.map(|failure| failure.chain).unwrap_or_default();
    }
}

fn event_shown(event: &NewEvent) -> Value {
    json!({ "type": event.kind, "source": event.source, "subject": event.subject, "data": event.data.to_value() })
}

fn notification_shown(one: &NewNotification) -> Value {
    json!({
        "title": one.title,
        "message": one.message,
        "severity": one.severity,
        "category": one.category,
        "action": one.action,
        "fingerprint": one.fingerprint,
    })
}

fn in_words(exit: Exit) -> String {
    match exit {
        Exit::Exited(code) => format!("exit code {code}"),
        Exit::Signalled(signal) => format!("signal {signal}"),
        Exit::TimedOut => "ended: it took too long".to_owned(),
        Exit::Cancelled => "ended".to_owned(),
        Exit::OutputTooLarge => "ended: more than 1 MiB on standard output".to_owned(),
    }
}

/// The event of a file: a JSON object with `type`, and `source`, `subject`, `id`, `time` and `data` if it likes.
fn read_event(bytes: &[u8]) -> Result<Event, Error> {
    let mut fields: Map<String, Value> =
        read_json(bytes).map_err(|error| Error::invalid("event", format!("is no JSON object: {error}.")))?;
    // `aman event show --json` has it beside what became of it.
    if let Some(Value::Object(event)) = fields.remove("event") {
        fields = event;
    }
    let text = |name: &str| match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(Error::invalid(name, "must be a text.")),
    };
    let kind =
        text("type")?.ok_or_else(|| Error::invalid("type", "is required: what happened, such as file.created."))?;
    let sent = NewEvent {
        id: Some(text("id")?.unwrap_or_else(id::fresh)),
        subject: text("subject")?,
        time: text("time")?,
        ..NewEvent::new(
            text("source")?.unwrap_or_else(|| "test".to_owned()),
            kind,
            fields.get("data").unwrap_or(&Value::Null),
        )
    };
    sent.check()?;
    Ok(Event {
        sequence: EventSeq(1),
        received_ms: Clock::System.now_ms(),
        made_id: None,
        sent,
        trace: TraceId::random(),
        correlation: None,
        causation: None,
        cause: None,
        depth: 0,
        trust: Trust::Owner,
        principal: "test".to_owned(),
    })
}

/// Whether an event reaches the skill, and why.
fn reaches(manifest: &Manifest, event: &Event) -> (bool, String) {
    if manifest.rules.is_empty() {
        return (true, "it has no aman.on: it runs by its schedule, or when it is called".to_owned());
    }
    let kind = &event.sent.kind;
    let Some(rule) = manifest.rules.iter().find(|rule| rule.pattern.matches(kind)) else {
        return (false, format!("aman.on has no pattern for the type {kind}"));
    };
    let pattern = rule.pattern.as_str();
    match rule.condition.as_ref().map(|condition| condition.test(&event.to_json(), &Limits::default())) {
        None | Some(Ok(true)) => (true, format!("aman.on has {pattern}")),
        Some(Ok(false)) => (false, format!("aman.on has {pattern}, but aman.when does not hold")),
        Some(Err(error)) => (false, format!("aman.when cannot be evaluated: {error}")),
    }
}
