//! What a `SKILL.md` says, read and checked. Every complaint names its field; what is merely odd is a warning.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::front::{self, Front};
use crate::bus::retry::Backoff;
use crate::bus::{Concurrency, RetryPolicy, Rule};
use crate::error::{Error, FieldError, distance};
use crate::event::TypePattern;
use crate::expr::Expr;
use crate::sandbox::{Permissions, Places};
use crate::schedule;

/// Characters of a name, a description and a compatibility note: the limits of the Agent Skills specification.
const NAME_CHARS_MAX: usize = 64;
const DESCRIPTION_CHARS_MAX: usize = 1024;
const COMPATIBILITY_CHARS_MAX: usize = 500;
/// Type patterns of one skill.
const PATTERNS_MAX: usize = 64;
/// How long one attempt may take at the most.
const TIMEOUT_MAX: Duration = Duration::from_secs(3600);
/// Attempts that run side by side when a skill says `parallel`, and what a number may say at the most.
const PARALLEL: usize = 8;
const PARALLEL_MAX: usize = 64;
const ATTEMPTS_MAX: u32 = 100;
const WAIT_MAX: Duration = Duration::from_secs(24 * 3600);

/// The keys of `metadata` that mean something to the daemon.
const KEYS: [&str; 12] = [
    "aman.agent",
    "aman.concurrency",
    "aman.on",
    "aman.permissions",
    "aman.retry",
    "aman.run",
    "aman.schedule",
    "aman.tags",
    "aman.timeout",
    "aman.timezone",
    "aman.version",
    "aman.when",
];

/// What happens when a skill is triggered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Run {
    /// Nothing: its text is for whoever reads it.
    Nothing,
    /// This command, in the skill's folder.
    Script(Vec<String>),
    /// A turn of an agent with the text as instructions.
    Agent,
}

/// A time plan as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Schedule {
    /// Cron expression.
    pub schedule: String,
    /// IANA zone it is meant in.
    pub timezone: Option<String>,
}

/// What a skill says of itself.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// Its name, the same as its folder's.
    pub name: String,
    /// What it does and when to use it.
    pub description: String,
    /// `license`, as it stands there.
    pub license: Option<String>,
    /// `compatibility`, as it stands there.
    pub compatibility: Option<String>,
    /// `allowed-tools`, as it stands there; acted upon by agents.
    pub allowed_tools: Option<String>,
    /// `aman.version`; `0` when it has none.
    pub version: String,
    /// `aman.on` and `aman.when`: any of these rules brings it an event.
    pub rules: Vec<Rule>,
    /// `aman.when` as it was written.
    pub when: Option<String>,
    /// `aman.schedule`.
    pub schedule: Option<Schedule>,
    /// `aman.run`.
    pub run: Run,
    /// `aman.agent`: who does it when `run` says that an agent does.
    pub agent: Option<String>,
    /// `aman.timeout`: how long one attempt may take.
    pub timeout: Duration,
    /// Whether it says `aman.timeout`.
    pub timed: bool,
    /// `aman.concurrency`.
    pub concurrency: Concurrency,
    /// `aman.retry`.
    pub retry: RetryPolicy,
    /// `aman.permissions`.
    pub permissions: Permissions,
    /// `aman.tags`.
    pub tags: Vec<String>,
    /// What breaks the Agent Skills specification and did not stop it from being loaded.
    pub breaks: Vec<FieldError>,
    /// What is odd besides.
    pub warnings: Vec<String>,
}

impl Manifest {
    /// Reads the text of a `SKILL.md` that lies in the folder `folder`. It is lenient where the Agent Skills specification is
    /// broken and the meaning is clear, which `breaks` tells; the error holds every field that leaves none.
    pub fn parse(text: &str, folder: &str, places: &Places) -> Result<Manifest, Error> {
        let (manifest, wrong) = Manifest::examine(text, folder, places)?;
        if wrong.is_empty() { Ok(manifest) } else { Err(Error::Invalid { code: "invalid_input", fields: wrong }) }
    }

    /// As [`Manifest::parse`], with the wrong fields beside what the others say.
    pub fn examine(text: &str, folder: &str, places: &Places) -> Result<(Manifest, Vec<FieldError>), Error> {
        let (front, mended) = front::read(text)?;
        let mut check = Checker { aman: &front.aman, wrong: Vec::new(), breaks: Vec::new(), warnings: Vec::new() };
        if let Some(Error::Invalid { fields, .. }) = mended {
            check.breaks.extend(fields);
        }
        let name = check.name(front.name.as_deref(), folder);
        check.plain(&front);
        let condition = check.read("aman.when", |text| Expr::compile(text).map_err(|error| error.message));
        let patterns = check.read("aman.on", patterns).unwrap_or_default();
        let manifest = Manifest {
            name,
            description: front.description.clone().unwrap_or_default(),
            license: front.license.clone(),
            compatibility: front.compatibility.clone(),
            allowed_tools: front.allowed_tools.clone().filter(|tools| !tools.trim().is_empty()),
            version: check.read("aman.version", |text| short(text, 64)).unwrap_or_else(|| "0".to_owned()),
            rules: patterns.into_iter().map(|pattern| Rule { pattern, condition: condition.clone() }).collect(),
            when: condition.map(|condition| condition.source().to_owned()),
            schedule: check.schedule(),
            run: check.read("aman.run", command).unwrap_or(Run::Nothing),
            agent: check.read("aman.agent", agent),
            timed: front.aman.contains_key("aman.timeout"),
            timeout: check.read("aman.timeout", |text| duration(text, TIMEOUT_MAX)).unwrap_or(Duration::from_secs(30)),
            concurrency: check.read("aman.concurrency", concurrency).unwrap_or(Concurrency::Serial),
            retry: check.read("aman.retry", retry).unwrap_or_default(),
            permissions: check.read("aman.permissions", |text| Permissions::parse(text, places)).unwrap_or_default(),
            tags: check.read("aman.tags", tags).unwrap_or_default(),
            breaks: Vec::new(),
            warnings: Vec::new(),
        };
        check.odd(&manifest);
        Ok((Manifest { breaks: check.breaks, warnings: check.warnings, ..manifest }, check.wrong))
    }

    /// Everything that is odd, for people.
    pub fn told(&self) -> Vec<String> {
        let breaks = self.breaks.iter().map(|one| format!("{}: {}", one.field, one.reason));
        breaks.chain(self.warnings.iter().cloned()).collect()
    }

    /// How long an agent may work on it; none = as the agent says.
    pub fn time_max(&self) -> Option<Duration> {
        self.timed.then_some(self.timeout)
    }

    /// What it is: `script`, `agent`, or `instructions` for whoever reads them.
    pub fn kind(&self) -> &'static str {
        match self.run {
            Run::Script(_) => "script",
            Run::Agent => "agent",
            Run::Nothing => "instructions",
        }
    }
}

struct Checker<'a> {
    aman: &'a BTreeMap<String, String>,
    wrong: Vec<FieldError>,
    breaks: Vec<FieldError>,
    warnings: Vec<String>,
}

impl Checker<'_> {
    fn refuse(&mut self, field: &str, reason: impl Into<String>) {
        self.wrong.push(FieldError { field: field.to_owned(), reason: reason.into() });
    }

    /// Reads one key of `metadata`; none when it is missing, empty or wrong.
    fn read<T>(&mut self, key: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let text = self.aman.get(key).map(|text| text.trim()).filter(|text| !text.is_empty())?;
        match parse(text) {
            Ok(value) => Some(value),
            Err(reason) => {
                self.refuse(&format!("metadata.{key}"), reason);
                None
            }
        }
    }

    fn breaks(&mut self, field: &str, reason: impl Into<String>) {
        self.breaks.push(FieldError { field: field.to_owned(), reason: reason.into() });
    }

    /// The name it goes by: what `name` says if that is a name, else its folder's, else what is left of either without what
    /// no name may have.
    fn name(&mut self, said: Option<&str>, folder: &str) -> String {
        let said = said.filter(|name| !name.is_empty());
        let reason = match said {
            None => "is missing; it is the name of the skill's folder.".to_owned(),
            Some(name) => match check_name(name) {
                Err(reason) => reason,
                Ok(()) if name == folder => return name.to_owned(),
                Ok(()) => {
                    self.breaks("name", format!("'{name}' is not the name of its folder, which is '{folder}'."));
                    return name.to_owned();
                }
            },
        };
        let tamed = said.into_iter().chain([folder]).map(tame);
        let name = std::iter::once(folder.to_owned()).chain(tamed).find(|name| check_name(name).is_ok());
        match name {
            Some(name) => {
                self.breaks("name", format!("{reason} It goes by '{name}'."));
                name
            }
            None => {
                self.refuse("name", reason);
                String::new()
            }
        }
    }

    /// The other fields of the Agent Skills specification.
    fn plain(&mut self, front: &Front) {
        match front.description.as_deref().map(str::trim) {
            None | Some("") => self.refuse("description", "is missing; say what the skill does and when to use it."),
            Some(text) if text.chars().count() > DESCRIPTION_CHARS_MAX => {
                self.breaks("description", format!("has more than {DESCRIPTION_CHARS_MAX} characters."));
            }
            Some(_) => {}
        }
        if front.compatibility.as_ref().is_some_and(|text| text.chars().count() > COMPATIBILITY_CHARS_MAX) {
            self.breaks("compatibility", format!("has more than {COMPATIBILITY_CHARS_MAX} characters."));
        }
        if front.tools_listed {
            self.breaks("allowed-tools", "must be one text with spaces between the tools, not a list.");
        }
        for key in &front.nested {
            self.breaks(&format!("metadata.{key}"), "must be a text, not a list or a map.");
        }
        for field in &front.unknown {
            let hint = if field.starts_with("aman.") { " Keys of aman stand below 'metadata'." } else { "" };
            self.breaks(field, format!("is no field of a SKILL.md and was left out.{hint}"));
        }
    }

    fn schedule(&mut self) -> Option<Schedule> {
        let timezone = self.read("aman.timezone", |text| {
            schedule::Schedule::parse("@daily", text).map(|_| text.to_owned()).map_err(|(_, reason)| reason)
        });
        let schedule = self.read("aman.schedule", |text| {
            schedule::Schedule::parse(text, "UTC").map(|_| text.to_owned()).map_err(|(_, reason)| reason)
        });
        if schedule.is_none() && timezone.is_some() {
            self.warnings.push("metadata.aman.timezone means nothing without aman.schedule.".to_owned());
        }
        schedule.map(|schedule| Schedule { schedule, timezone })
    }

    /// Warns of what has no effect.
    fn odd(&mut self, manifest: &Manifest) {
        for key in self.aman.keys().filter(|key| !KEYS.contains(&key.as_str())) {
            let hint = nearest(key).map_or_else(String::new, |known| format!(" Did you mean {known}?"));
            self.warnings.push(format!("metadata.{key} is unknown and was left out.{hint}"));
        }
        let triggered = !manifest.rules.is_empty() || manifest.schedule.is_some();
        if manifest.when.is_some() && manifest.rules.is_empty() {
            self.warnings.push("metadata.aman.when means nothing without aman.on.".to_owned());
        }
        if manifest.run != Run::Nothing && !triggered {
            self.warnings
                .push("metadata.aman.run has neither aman.on nor aman.schedule: nothing triggers it.".to_owned());
        }
        if manifest.agent.is_some() && manifest.run != Run::Agent {
            self.warnings.push("metadata.aman.agent means nothing without aman.run: agent.".to_owned());
        }
        if manifest.run == Run::Nothing && triggered {
            self.warnings.push("It has no aman.run: its text is kept for agents, events do not reach it.".to_owned());
        }
    }
}

/// Checks a name by the rules of the Agent Skills specification.
pub fn check_name(name: &str) -> Result<(), String> {
    let chars = name.chars().count();
    let reason = if chars == 0 || chars > NAME_CHARS_MAX {
        format!("must have 1 to {NAME_CHARS_MAX} characters; it has {chars}.")
    } else if name != name.to_lowercase() {
        format!("'{name}' must be in lower case.")
    } else if !name.chars().all(|c| c.is_alphanumeric() || c == '-') {
        format!("'{}' must be made of letters, digits and hyphens.", name.escape_debug())
    } else if name.starts_with('-') || name.ends_with('-') || name.contains("--") {
        format!("'{name}' must have no hyphen at its ends and no two in a row.")
    } else {
        return Ok(());
    };
    Err(reason)
}

/// What is left of a text when everything is taken out that no name may have.
fn tame(text: &str) -> String {
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    let name: String = words.collect::<Vec<_>>().join("-").to_lowercase().chars().take(NAME_CHARS_MAX).collect();
    name.trim_end_matches('-').to_owned()
}

fn short(text: &str, chars_max: usize) -> Result<String, String> {
    if text.chars().count() > chars_max || text.chars().any(char::is_control) {
        return Err(format!("must be one line of at most {chars_max} characters."));
    }
    Ok(text.to_owned())
}

fn patterns(text: &str) -> Result<Vec<TypePattern>, String> {
    let mut patterns = text.split_whitespace().map(TypePattern::parse).collect::<Result<Vec<_>, _>>()?;
    if patterns.len() > PATTERNS_MAX {
        return Err(format!("has {} patterns; at most {PATTERNS_MAX}.", patterns.len()));
    }
    patterns.sort();
    patterns.dedup();
    Ok(patterns)
}

fn command(text: &str) -> Result<Run, String> {
    if text == "agent" {
        return Ok(Run::Agent);
    }
    let argv = shell_words::split(text).map_err(|_| "has a quote that is not closed.".to_owned())?;
    let program = argv.first().filter(|program| !program.is_empty()).ok_or("names no command.")?;
    if !program.starts_with('/') && program.split('/').any(|part| part == "..") {
        return Err(format!("'{program}' leads out of the skill's folder."));
    }
    if argv.iter().any(|word| word.contains('\0')) {
        return Err("holds a NUL character.".to_owned());
    }
    Ok(Run::Script(argv))
}

fn agent(text: &str) -> Result<String, String> {
    if crate::config::sources::is_id(text) {
        return Ok(text.to_owned());
    }
    Err(format!("'{text}' is no id of an agent: 1 to 64 lower-case letters, digits, '-' and '_'."))
}

fn concurrency(text: &str) -> Result<Concurrency, String> {
    match (text, text.parse()) {
        ("serial", _) => Ok(Concurrency::Serial),
        ("parallel", _) => Ok(Concurrency::Parallel(PARALLEL)),
        (_, Ok(number @ 1..=PARALLEL_MAX)) => Ok(Concurrency::Parallel(number)),
        _ => Err(format!("'{text}' is neither serial, nor parallel, nor a number from 1 to {PARALLEL_MAX}.")),
    }
}

fn duration(text: &str, longest: Duration) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit_ms = match &text[digits..] {
        "ms" => Some(1),
        "s" => Some(1000),
        "m" | "min" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    };
    let wait = text[..digits].parse::<u64>().ok().zip(unit_ms).and_then(|(n, unit)| n.checked_mul(unit));
    match wait.map(Duration::from_millis) {
        Some(wait) if !wait.is_zero() && wait <= longest => Ok(wait),
        Some(_) => Err(format!("'{text}' must be longer than nothing and at most {} s.", longest.as_secs())),
        None => Err(format!("'{text}' is no duration; write a whole number and ms, s, m or h, such as 30s.")),
    }
}

/// Reads `attempts=5 backoff=exponential base=100ms max=60s jitter=true`; what is missing keeps its default.
fn retry(text: &str) -> Result<RetryPolicy, String> {
    let mut policy = RetryPolicy::default();
    for word in text.split_whitespace() {
        let bad = || {
            format!(
                "'{word}' is none of attempts=1..{ATTEMPTS_MAX}, backoff=fixed|exponential, base=, max=, jitter=true|false."
            )
        };
        let (key, value) = word.split_once('=').ok_or_else(bad)?;
        match (key, value) {
            ("attempts" | "max_attempts", _) => {
                let number = value.parse().ok().filter(|n| (1..=ATTEMPTS_MAX).contains(n));
                policy.max_attempts = number.ok_or_else(bad)?;
            }
            ("backoff", "fixed") => policy.backoff = Backoff::Fixed,
            ("backoff", "exponential") => policy.backoff = Backoff::Exponential,
            ("base", _) => policy.base = duration(value, WAIT_MAX)?,
            ("max", _) => policy.max = duration(value, WAIT_MAX)?,
            ("jitter", "true" | "false") => policy.jitter = value == "true",
            _ => return Err(bad()),
        }
    }
    if policy.base > policy.max {
        return Err("base must not be longer than max.".to_owned());
    }
    Ok(policy)
}

fn tags(text: &str) -> Result<Vec<String>, String> {
    text.split_whitespace().map(|tag| short(tag, 64)).collect()
}

/// The known key that `key` was most likely meant to be.
fn nearest(key: &str) -> Option<&'static str> {
    KEYS.into_iter()
        .map(|known| (distance(key, known), known))
        .min()
        .filter(|(far, _)| *far <= 3)
        .map(|(_, known)| known)
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
