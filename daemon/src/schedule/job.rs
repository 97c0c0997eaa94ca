//! The definition of a job: read the same way from a request, the configuration file and the database.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::Schedule;
use crate::clock::Millis;
use crate::config::parse_duration;
use crate::error::FieldError;
use crate::event::{ID_BYTES_MAX, check_type, whole};

/// Most slots that `run_all` makes up for.
pub const RUN_ALL_MAX: u32 = 100;
/// Longest jitter, in seconds.
pub const JITTER_S_MAX: u32 = 3600;
/// Most failed runs in a row that switch a job off.
pub const FAILURES_MAX: u32 = 1000;
const FAILURES_DEFAULT: u32 = 5;
const PAYLOAD_BYTES_MAX: usize = 256 << 10;
const WITHIN_MAX: Duration = Duration::from_secs(366 * 86_400);
/// The names of a definition's fields.
const FIELDS: [&str; 12] = [
    "expression",
    "timezone",
    "payload",
    "type",
    "agent_id",
    "skill",
    "workflow",
    "misfire",
    "overlap",
    "jitter_s",
    "max_failures",
    "enabled",
];

/// What happens to slots that passed while nobody could run them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misfire {
    /// None of them runs.
    Skip,
    /// The newest runs, for all of them.
    RunOnce,
    /// The newest of them run, at most this many, one after another.
    RunAll(u32),
    /// The newest runs when it is no older than this many milliseconds.
    Within(Millis),
}

/// What happens to a slot while an earlier run goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overlap {
    /// It is left out.
    Skip,
    /// One waits for the end of the run; more are left out.
    QueueOne,
    /// It runs beside the others, as long as these are not too many.
    Allow,
}

impl Overlap {
    fn name(self) -> &'static str {
        match self {
            Overlap::Skip => "skip",
            Overlap::QueueOne => "queue_one",
            Overlap::Allow => "allow",
        }
    }
}

/// A job as it was defined.
#[derive(Debug, Clone)]
pub struct Job {
    /// When.
    pub schedule: Schedule,
    /// The expression as it was written.
    pub expression: String,
    /// IANA name of its zone.
    pub timezone: String,
    /// Data of its events; none = the job and the slot.
    pub payload: Option<Value>,
    /// Type of its events.
    pub kind: String,
    /// The agent that its events are for.
    pub agent_id: Option<String>,
    /// The skill that gets its events, whatever else it listens to.
    pub skill: Option<String>,
    /// The workflow that its slots start.
    pub workflow: Option<String>,
    /// See [`Misfire`].
    pub misfire: Misfire,
    /// See [`Overlap`].
    pub overlap: Overlap,
    /// Each run is put off by a part of this many seconds, always the same part for the same slot.
    pub jitter_s: u32,
    /// Failed runs in a row that switch it off; 0 = never.
    pub max_failures: u32,
    /// Whether it runs.
    pub enabled: bool,
}

impl Job {
    /// What is wrong with the names of a definition or of a patch for one.
    pub fn unknown<'a>(names: impl Iterator<Item = &'a String>) -> Vec<FieldError> {
        let unknown = names.filter(|name| !FIELDS.contains(&name.as_str()));
        let reason = || format!("is no field of a job. Known: {}.", FIELDS.join(", "));
        unknown.map(|name| FieldError { field: name.clone(), reason: reason() }).collect()
    }

    /// Reads a definition. `null` counts as absent; the error names every field that is wrong or unknown.
    pub fn read(mut fields: Map<String, Value>) -> Result<Job, Vec<FieldError>> {
        fields.retain(|_, value| !value.is_null());
        let mut reader = Reader { fields, wrong: Vec::new() };
        let job = reader.job();
        reader.wrong.extend(Job::unknown(reader.fields.keys()));
        match job {
            Some(job) if reader.wrong.is_empty() => Ok(job),
            _ => Err(reader.wrong),
        }
    }

    /// The definition with every field, as [`Job::read`] reads it back.
    pub fn to_value(&self) -> Value {
        let mut shown = json!({
            "expression": self.expression,
            "timezone": self.timezone,
            "payload": self.payload,
            "type": self.kind,
            "agent_id": self.agent_id,
            "skill": self.skill,
            "misfire": match self.misfire {
                Misfire::Skip => json!("skip"),
                Misfire::RunOnce => json!("run_once"),
                Misfire::RunAll(max) => json!({ "run_all": { "max": max } }),
                Misfire::Within(ms) => json!({ "within": duration(ms) }),
            },
            "overlap": self.overlap.name(),
            "jitter_s": self.jitter_s,
            "max_failures": self.max_failures,
            "enabled": self.enabled,
        });
        // Definitions that were stored before there were workflows stay as they are.
        if let Some(workflow) = &self.workflow {
            shown["workflow"] = workflow.as_str().into();
        }
        shown
    }

    /// The longest that a run may be put off, in milliseconds.
    pub fn jitter_ms(&self) -> Millis {
        Millis::from(self.jitter_s) * 1000
    }
}

/// A duration in the largest unit that divides it.
fn duration(ms: Millis) -> String {
    let units = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)];
    let unit = units.into_iter().find(|(_, size)| ms % size == 0);
    unit.map_or_else(|| format!("{ms}ms"), |(name, size)| format!("{}{name}", ms / size))
}

/// Checks the id of a job that is not a skill's own: 1 to 64 lower-case letters, digits, `-`, `_` and `.`; not `add`.
pub fn check_id(id: &str) -> Result<(), String> {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
    if !(1..=64).contains(&id.len()) || !id.bytes().all(good) || id.starts_with('.') {
        return Err(
            "must have 1 to 64 lower-case letters, digits, '-', '_' and '.', such as morning-digest.".to_owned()
        );
    }
    if id == "add" {
        return Err("'add' is reserved: it is a path of the API. Choose another id.".to_owned());
    }
    Ok(())
}

struct Reader {
    fields: Map<String, Value>,
    wrong: Vec<FieldError>,
}

impl Reader {
    fn refuse(&mut self, field: &str, reason: impl Into<String>) {
        self.wrong.push(FieldError { field: field.to_owned(), reason: reason.into() });
    }

    fn job(&mut self) -> Option<Job> {
        let expression = self.text("expression");
        let timezone = self.text("timezone").unwrap_or_else(|| "UTC".to_owned());
        let schedule = match &expression {
            Some(expression) => match Schedule::parse(expression, &timezone) {
                Ok(schedule) => Some(schedule),
                Err((zone, reason)) => {
                    self.refuse(if zone { "timezone" } else { "expression" }, reason);
                    None
                }
            },
            None if self.wrong.is_empty() => {
                self.refuse("expression", "is required: when it runs, such as '0 8 * * 1-5'.");
                None
            }
            None => None,
        };
        let payload = self.fields.remove("payload");
        if payload.as_ref().is_some_and(|value| value.to_string().len() > PAYLOAD_BYTES_MAX) {
            self.refuse("payload", format!("must have at most {PAYLOAD_BYTES_MAX} bytes."));
        }
        if self.fields.contains_key("skill") && self.fields.contains_key("workflow") {
            self.refuse("workflow", "and skill exclude each other: a job is for one of them.");
        }
        let job = Job {
            payload,
            kind: self.kind(),
            agent_id: self.short("agent_id"),
            skill: self.short("skill"),
            workflow: self.short("workflow"),
            misfire: self.misfire(),
            overlap: self.overlap(),
            jitter_s: self.number("jitter_s", 0, JITTER_S_MAX),
            max_failures: self.number("max_failures", FAILURES_DEFAULT, FAILURES_MAX),
            enabled: self.flag("enabled", true),
            schedule: schedule?,
            expression: expression?,
            timezone,
        };
        Some(job)
    }

    fn text(&mut self, name: &'static str) -> Option<String> {
        match self.fields.remove(name) {
            None => None,
            Some(Value::String(text)) => Some(text),
            Some(_) => {
                self.refuse(name, "must be a text.");
                None
            }
        }
    }

    fn short(&mut self, name: &'static str) -> Option<String> {
        let text = self.text(name)?;
        if text.is_empty() || text.len() > ID_BYTES_MAX || text.chars().any(char::is_control) {
            self.refuse(name, format!("must have 1 to {ID_BYTES_MAX} bytes, none of them a control character."));
            return None;
        }
        Some(text)
    }

    fn kind(&mut self) -> String {
        let kind = self.text("type").unwrap_or_else(|| "cron.fired".to_owned());
        if let Err(reason) = check_type(&kind) {
            self.refuse("type", reason);
        } else if kind.starts_with("aman.") {
            self.refuse("type", format!("'{kind}' begins with 'aman.', which only the daemon uses. Choose another."));
        }
        kind
    }

    fn number(&mut self, name: &'static str, default: u32, max: u32) -> u32 {
        let Some(value) = self.fields.remove(name) else { return default };
        match whole(&value).and_then(|n| u32::try_from(n).ok()).filter(|n| *n <= max) {
            Some(number) => number,
            None => {
                self.refuse(name, format!("must be a whole number from 0 to {max}."));
                default
            }
        }
    }

    fn flag(&mut self, name: &'static str, default: bool) -> bool {
        match self.fields.remove(name) {
            None => default,
            Some(Value::Bool(flag)) => flag,
            Some(_) => {
                self.refuse(name, "must be true or false.");
                default
            }
        }
    }

    fn overlap(&mut self) -> Overlap {
        let Some(text) = self.text("overlap") else { return Overlap::Skip };
        match text.as_str() {
            "skip" => Overlap::Skip,
            "queue_one" => Overlap::QueueOne,
            "allow" => Overlap::Allow,
            _ => {
                self.refuse("overlap", "must be skip, queue_one or allow.");
                Overlap::Skip
            }
        }
    }

    fn misfire(&mut self) -> Misfire {
        let read = match self.fields.remove("misfire") {
            None => Some(Misfire::RunOnce),
            Some(Value::String(text)) if text == "skip" => Some(Misfire::Skip),
            Some(Value::String(text)) if text == "run_once" => Some(Misfire::RunOnce),
            Some(Value::Object(object)) if object.len() == 1 => misfire_with(&object),
            Some(_) => None,
        };
        read.unwrap_or_else(|| {
            self.refuse(
                "misfire",
                format!(
                    "must be \"skip\", \"run_once\", {{\"run_all\": {{\"max\": 1 to {RUN_ALL_MAX}}}}} or \
                     {{\"within\": \"10m\"}}."
                ),
            );
            Misfire::RunOnce
        })
    }
}

fn misfire_with(object: &Map<String, Value>) -> Option<Misfire> {
    if let Some(all) = object.get("run_all") {
        let all = all.as_object().filter(|all| all.len() == 1)?;
        let max = whole(all.get("max")?).and_then(|n| u32::try_from(n).ok())?;
        return (1..=RUN_ALL_MAX).contains(&max).then_some(Misfire::RunAll(max));
    }
    let within = parse_duration(object.get("within")?.as_str()?)?;
    let ms = Millis::try_from(within.as_millis()).ok()?;
    (!within.is_zero() && within <= WITHIN_MAX).then_some(Misfire::Within(ms))
}
