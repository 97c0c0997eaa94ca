//! The definition of an agent: TOML read into typed fields. Every complaint names its field.

use std::time::Duration;

use serde_json::{Value, json};
use toml::{Table, Value as Toml};

use crate::budget::{Limits, MONEY_MAX};
use crate::config::parse_duration;
use crate::config::sources::is_id;
use crate::error::{Error, FieldError, distance};
use crate::event::{Trust, TypePattern};
use crate::expr::Expr;
use crate::id::sha256_hex;
use crate::tools::Policy;

/// Ids that routes use.
const RESERVED: [&str; 2] = ["start", "shutdown"];
/// Longest definition, in bytes.
pub const TEXT_BYTES_MAX: usize = 256 << 10;
const INSTRUCTIONS_CHARS_MAX: usize = 64 << 10;
const DESCRIPTION_CHARS_MAX: usize = 1024;
/// The largest whole number that every reader of JSON keeps exactly.
const TOKENS_MAX: i64 = (1 << 53) - 1;
const LIST_MAX: usize = 256;
/// Longest text of a list.
const ITEM_CHARS_MAX: usize = 1000;
const TURN_TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);

/// What an agent is.
#[derive(Debug, Clone)]
pub struct Definition {
    /// What it is for.
    pub description: String,
    /// `provider/model`; empty = the default of the configuration.
    pub model: String,
    /// Models that are asked when that one does not answer.
    pub fallback: Vec<String>,
    /// What it is told besides the soul.
    pub instructions: String,
    /// How freely it answers, 0 to 2.
    pub temperature: Option<f64>,
    /// Longest answer, in tokens.
    pub max_tokens: Option<u32>,
    /// What it may use.
    pub tools: Policy,
    /// Patterns of the names of skills that it is told of.
    pub skills: Vec<String>,
    /// Facts of the memory that it is told in each turn.
    pub recall: usize,
    /// What its turns may cost.
    pub budget: Limits,
    /// Types of events that begin a turn, besides those that are for it.
    pub on: Vec<TypePattern>,
    /// Which of those.
    pub when: Option<Expr>,
    /// What it does is trusted no further than this.
    pub trust: Trust,
    /// How long a turn may work; waiting for approvals does not count.
    pub turn_timeout: Duration,
    /// Steps of a turn: answers of the model, and calls of tools.
    pub max_steps: usize,
    /// Turns side by side.
    pub concurrency: usize,
    /// SHA-256 of the text, hex.
    pub digest: String,
    /// TOML, as it was written.
    pub text: String,
}

/// Checks the id of an agent.
pub fn check_id(id: &str) -> Result<(), Error> {
    if RESERVED.contains(&id) {
        let reason = format!("'{id}' is reserved: /agent/{id} means something else. Choose another.");
        return Err(Error::invalid_as("reserved_name", "id", reason));
    }
    if !is_id(id) {
        return Err(Error::invalid("id", "must be 1 to 64 lower-case letters, digits, '-' and '_'."));
    }
    Ok(())
}

impl Definition {
    /// Reads a definition.
    pub fn parse(text: &str) -> Result<Definition, Error> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(Error::invalid("definition", format!("has {} bytes; at most {TEXT_BYTES_MAX}.", text.len())));
        }
        let table: Table = text.parse().map_err(|error: toml::de::Error| {
            let line = error.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            Error::invalid("definition", format!("is not TOML, line {line}: {}", error.message()))
        })?;
        let mut reader = Reader { table: &table, prefix: "", known: Vec::new(), wrong: Vec::new() };
        let definition = reader.definition(text);
        if reader.wrong.is_empty() {
            return Ok(definition);
        }
        Err(Error::Invalid { code: "invalid_input", fields: reader.wrong })
    }

    /// Reads a definition that came as JSON; it is kept as TOML.
    pub fn parse_json(value: &Value) -> Result<Definition, Error> {
        if !value.is_object() {
            return Err(Error::invalid("definition", "must be an object."));
        }
        let mut value = value.clone();
        without_nulls(&mut value);
        let text = toml::to_string_pretty(&value)
            .map_err(|error| Error::invalid("definition", format!("cannot be kept: {error}.")))?;
        Definition::parse(&text)
    }

    /// The definition as JSON.
    pub fn to_json(&self) -> Value {
        toml::from_str(&self.text).unwrap_or_else(|_| json!({}))
    }

    /// Whether it can have commands run.
    pub fn executes(&self) -> bool {
        !self.tools.exec.is_empty()
    }
}

fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(without_nulls);
        }
        Value::Array(all) => all.iter_mut().for_each(without_nulls),
        _ => {}
    }
}

/// Reads each key of a table once, and notes what is wrong.
struct Reader<'a> {
    table: &'a Table,
    prefix: &'static str,
    known: Vec<&'static str>,
    wrong: Vec<FieldError>,
}

impl<'a> Reader<'a> {
    fn definition(&mut self, text: &str) -> Definition {
        let definition = Definition {
            description: self.text("description", DESCRIPTION_CHARS_MAX),
            model: self.text("model", 256),
            fallback: self.list("fallback"),
            instructions: self.text("instructions", INSTRUCTIONS_CHARS_MAX),
            temperature: self.temperature(),
            max_tokens: self.number("max_tokens", 1, 1_000_000).and_then(|number| u32::try_from(number).ok()),
            tools: self.below("tools", Reader::policy).unwrap_or_default(),
            skills: self.skills(),
            recall: self.number("recall", 0, 50).map_or(6, size),
            budget: self.below("budget", Reader::limits).unwrap_or_default(),
            on: self.patterns("on"),
            when: self.condition("when"),
            trust: self.trust("trust"),
            turn_timeout: self.duration("turn_timeout").unwrap_or(Duration::from_secs(600)),
            max_steps: self.number("max_steps", 1, 1000).map_or(50, size),
            concurrency: self.number("concurrency", 1, 1024).map_or(256, size),
            digest: sha256_hex(text.as_bytes()),
            text: text.to_owned(),
        };
        if definition.when.is_some() && definition.on.is_empty() {
            self.refuse("when", "means nothing without 'on'.");
        }
        self.finish();
        definition
    }

    fn policy(&mut self) -> Policy {
        Policy {
            allow: self.list("allow"),
            deny: self.list("deny"),
            approve: self.list("approve"),
            read: self.list("read"),
            write: self.list("write"),
            hosts: self.list("hosts"),
            exec: self.list("exec"),
            sqlite: self.list("sqlite"),
            unattended: self.flag("unattended"),
            of_people: false,
            only: None,
        }
    }

    fn limits(&mut self) -> Limits {
        Limits {
            day_tokens: self.tokens("day_tokens"),
            day_money: self.money("day_money"),
            session_tokens: self.tokens("session_tokens"),
            session_money: self.money("session_money"),
            job_tokens: self.tokens("job_tokens"),
            job_money: self.money("job_money"),
        }
    }

    fn refuse(&mut self, key: &str, reason: impl Into<String>) {
        self.wrong.push(FieldError { field: format!("{}{key}", self.prefix), reason: reason.into() });
    }

    /// All of them, unless it says which.
    fn skills(&mut self) -> Vec<String> {
        let named = self.list("skills");
        if self.table.contains_key("skills") { named } else { vec!["*".to_owned()] }
    }

    fn value(&mut self, key: &'static str) -> Option<&'a Toml> {
        self.known.push(key);
        self.table.get(key)
    }

    fn text(&mut self, key: &'static str, chars_max: usize) -> String {
        match self.value(key) {
            None => {}
            Some(Toml::String(text)) => match text.chars().count() {
                chars if chars <= chars_max => return text.clone(),
                chars => self.refuse(key, format!("has {chars} characters; at most {chars_max}.")),
            },
            Some(_) => self.refuse(key, "must be a text in quotes."),
        }
        String::new()
    }

    fn list(&mut self, key: &'static str) -> Vec<String> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let texts: Option<Vec<String>> =
            value.as_array().and_then(|all| all.iter().map(|v| v.as_str().map(str::to_owned)).collect());
        match texts {
            Some(texts) if texts.len() <= LIST_MAX && texts.iter().all(|text| is_item(text)) => texts,
            Some(_) => {
                self.refuse(key, format!("must have at most {LIST_MAX} texts of 1 to {ITEM_CHARS_MAX} characters."));
                Vec::new()
            }
            None => {
                self.refuse(key, "must be a list of texts.");
                Vec::new()
            }
        }
    }

    fn flag(&mut self, key: &'static str) -> bool {
        match self.value(key) {
            None => false,
            Some(Toml::Boolean(flag)) => *flag,
            Some(_) => {
                self.refuse(key, "must be true or false.");
                false
            }
        }
    }

    fn number(&mut self, key: &'static str, least: i64, most: i64) -> Option<i64> {
        let number = self.value(key)?.as_integer().filter(|number| (least..=most).contains(number));
        if number.is_none() {
            self.refuse(key, format!("must be a whole number from {least} to {most}."));
        }
        number
    }

    fn tokens(&mut self, key: &'static str) -> u64 {
        self.number(key, 0, TOKENS_MAX).map_or(0, i64::unsigned_abs)
    }

    fn money(&mut self, key: &'static str) -> f64 {
        let amount = match self.value(key) {
            None => return 0.0,
            Some(Toml::Float(amount)) => Some(*amount),
            Some(Toml::Integer(amount)) => i32::try_from(*amount).ok().map(f64::from),
            Some(_) => None,
        };
        amount.filter(|amount| (0.0..=MONEY_MAX).contains(amount)).unwrap_or_else(|| {
            self.refuse(key, "must be an amount of money, 0 or more, in the currency of the prices; 0 = no limit.");
            0.0
        })
    }

    fn temperature(&mut self) -> Option<f64> {
        let given = match self.value("temperature")? {
            Toml::Float(number) => Some(*number),
            Toml::Integer(number @ 0..=2) => Some(f64::from(i32::try_from(*number).unwrap_or(0))),
            _ => None,
        };
        let fits = given.filter(|number| (0.0..=2.0).contains(number));
        if fits.is_none() {
            self.refuse("temperature", "must be a number from 0 to 2.");
        }
        fits
    }

    fn patterns(&mut self, key: &'static str) -> Vec<TypePattern> {
        let texts = self.list(key);
        let parsed: Result<Vec<TypePattern>, String> = texts.iter().map(|text| TypePattern::parse(text)).collect();
        parsed.unwrap_or_else(|reason| {
            self.refuse(key, reason);
            Vec::new()
        })
    }

    fn condition(&mut self, key: &'static str) -> Option<Expr> {
        let text = self.text(key, 16 << 10);
        if text.is_empty() {
            return None;
        }
        Expr::compile(&text).map_err(|error| self.refuse(key, error.message)).ok()
    }

    fn trust(&mut self, key: &'static str) -> Trust {
        let text = self.text(key, 16);
        if text.is_empty() {
            return Trust::Owner;
        }
        Trust::of_name(&text).unwrap_or_else(|| {
            self.refuse(key, format!("must be one of {}.", Trust::NAMES.join(", ")));
            Trust::Owner
        })
    }

    fn duration(&mut self, key: &'static str) -> Option<Duration> {
        let text = self.text(key, 32);
        if text.is_empty() {
            return None;
        }
        let found = parse_duration(&text).filter(|wait| !wait.is_zero() && *wait <= TURN_TIMEOUT_MAX);
        if found.is_none() {
            self.refuse(key, "must be a duration such as 90s, 10m or 2h, at most 24h.");
        }
        found
    }

    /// A table below this one.
    fn below<T>(&mut self, key: &'static str, read: impl FnOnce(&mut Reader<'a>) -> T) -> Option<T> {
        let Some(table) = self.value(key)?.as_table() else {
            self.refuse(key, format!("must be a table, as [{key}]."));
            return None;
        };
        let prefix = if key == "tools" { "tools." } else { "budget." };
        let mut reader = Reader { table, prefix, known: Vec::new(), wrong: Vec::new() };
        let read = read(&mut reader);
        reader.finish();
        self.wrong.append(&mut reader.wrong);
        Some(read)
    }

    /// Refuses what nobody took.
    fn finish(&mut self) {
        for key in self.table.keys().filter(|key| !self.known.contains(&key.as_str())).cloned().collect::<Vec<_>>() {
            let near = self.known.iter().map(|known| (distance(&key, known), *known)).min();
            let hint = near.filter(|(far, _)| *far <= 3).map_or_else(
                || format!(" There are {}.", self.known.join(", ")),
                |(_, known)| format!(" Did you mean {known}?"),
            );
            self.refuse(&key, format!("is no field of an agent.{hint}"));
        }
    }
}

fn is_item(text: &str) -> bool {
    !text.trim().is_empty() && text.chars().count() <= ITEM_CHARS_MAX
}

fn size(number: i64) -> usize {
    usize::try_from(number).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            ("modle = \"a\"", "modle", "model"),
            ("model = 1", "model", "text"),
            ("[tools]\nalow = []", "tools.alow", "allow"),
            ("tools = 1", "tools", "table"),
            ("temperature = 3.0", "temperature", "0 to 2"),
            ("max_steps = 0", "max_steps", "1 to"),
            ("on = [\"a..b\"]", "on", ""),
            ("on = [\"a\"]\nwhen = \".a |\"", "when", ""),
            ("when = \".a\"", "when", "'on'"),
            ("trust = \"all\"", "trust", "owner"),
            ("turn_timeout = \"48h\"", "turn_timeout", "24h"),
            ("[budget]\nday_money = -1", "budget.day_money", "amount"),
            ("a = [", "definition", "line 1"),
        ];
        for (text, field, reason) in cases {
            let Err(Error::Invalid { fields, .. }) = Definition::parse(text) else { panic!("{text} was read") };
            assert_eq!(fields[0].field, field, "{text}: {fields:?}");
            assert!(fields[0].reason.contains(reason), "{text}: {fields:?}");
        }
        for (id, good) in [("a-1", true), ("start", false), ("shutdown", false), ("A", false), ("", false)] {
            assert_eq!(check_id(id).is_ok(), good, "{id}");
        }
    }

    #[test]
    fn json_and_toml_are_one() {
        let json = json!({"model": "a/b", "fallback": null, "tools": {"exec": ["git"], "unattended": true}, "max_steps": 3,
            "budget": {"day_money": 1.5}});
        let definition = Definition::parse_json(&json).expect("good");
        let again = Definition::parse(&definition.text).expect("its own text");
        assert_eq!((again.model.as_str(), again.max_steps, again.executes()), ("a/b", 3, true));
        assert!((again.budget.day_money - 1.5).abs() < f64::EPSILON);
        assert!(again.tools.unattended && again.to_json()["tools"]["exec"][0] == "git");
    }

    #[test]
    fn the_schema_names_what_is_read() {
        let schema: Value = serde_json::from_str(super::super::SCHEMA).expect("JSON");
        let names = |at: &Value| at["properties"].as_object().expect("fields").keys().cloned().collect::<Vec<_>>();
        for (prefix, place) in
            [("", &schema), ("tools.", &schema["properties"]["tools"]), ("budget.", &schema["properties"]["budget"])]
        {
            let mut known = names(place);
            known.sort();
            let text = if prefix.is_empty() {
                "no-such-field = 1".to_owned()
            } else {
                format!("[{}]\nno-such-field = 1", prefix.trim_end_matches('.'))
            };
            let Err(Error::Invalid { fields, .. }) = Definition::parse(&text) else { panic!("{text}") };
            let listed = fields[0].reason.rsplit("There are ").next().unwrap_or_default().trim_end_matches('.');
            let mut read: Vec<String> = listed.split(", ").map(str::to_owned).collect();
            read.sort();
            assert_eq!(read, known, "{prefix}");
        }
    }

    #[test]
    fn the_bundled_agents_are_read() {
        for (id, text) in crate::bundled::AGENTS {
            check_id(id).expect("an id");
            Definition::parse(text).expect("good");
        }
    }
}
