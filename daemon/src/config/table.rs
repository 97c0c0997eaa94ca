//! Reads the table of one source or sink: each key once, everything that is wrong with it, and what nobody took.

use std::ops::RangeInclusive;
use std::time::Duration;

use toml::{Table, Value};

use super::secrets::{self, References, STAND_IN};
use super::{Secret, parse_duration, paths};
use crate::egress::Url;
use crate::error::FieldError;
use crate::event::{Trust, TypePattern};
use crate::expr::Expr;

/// A table that is being read.
pub(super) struct Reader<'a> {
    prefix: String,
    table: &'a Table,
    references: References,
    known: Vec<&'static str>,
    wrong: Vec<FieldError>,
    for_now: usize,
}

/// What is wrong with a table.
#[derive(Debug, Default)]
pub struct Faults {
    /// Values that cannot be used.
    pub wrong: Vec<FieldError>,
    /// How many of these are secrets that may be there later, without any change.
    pub for_now: usize,
    /// Keys that mean nothing, and those that would.
    pub unknown: Vec<(String, Vec<&'static str>)>,
}

impl<'a> Reader<'a> {
    /// A reader whose errors name `prefix.key`.
    pub fn new(prefix: String, table: &'a Table, references: References) -> Reader<'a> {
        Reader { prefix, table, references, known: Vec::new(), wrong: Vec::new(), for_now: 0 }
    }

    /// Notes what is wrong with `key`.
    pub fn wrong(&mut self, key: &str, reason: impl Into<String>) {
        self.wrong.push(FieldError { field: format!("{}.{key}", self.prefix), reason: reason.into() });
    }

    fn value(&mut self, key: &'static str) -> Option<&'a Value> {
        self.known.push(key);
        self.table.get(key)
    }

    /// An optional text.
    pub fn text(&mut self, key: &'static str) -> Option<String> {
        match self.value(key)? {
            Value::String(text) => Some(text.clone()),
            _ => {
                self.wrong(key, "must be a text in quotes.");
                None
            }
        }
    }

    /// A text that must be there.
    pub fn required(&mut self, key: &'static str, what: &str) -> Option<String> {
        if self.table.get(key).is_none() {
            self.known.push(key);
            self.wrong(key, format!("is missing: {what}"));
            return None;
        }
        self.text(key)
    }

    /// A list of texts; absent = empty.
    pub fn list(&mut self, key: &'static str) -> Vec<String> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let texts: Option<Vec<String>> =
            value.as_array().and_then(|all| all.iter().map(|v| v.as_str().map(str::to_owned)).collect());
        texts.unwrap_or_else(|| {
            self.wrong(key, "must be a list of texts.");
            Vec::new()
        })
    }

    /// A command: a list of words, or one text that is split as a shell would split it.
    pub fn words(&mut self, key: &'static str) -> Vec<String> {
        let Some(Value::String(text)) = self.table.get(key) else { return self.list(key) };
        self.known.push(key);
        shell_words::split(text).unwrap_or_else(|_| {
            self.wrong(key, "has a quote that does not end.");
            Vec::new()
        })
    }

    /// One of some names.
    pub fn one_of(&mut self, key: &'static str, names: &[&'static str], default: &'static str) -> &'static str {
        let Some(text) = self.text(key) else { return default };
        names.iter().find(|name| **name == text).copied().unwrap_or_else(|| {
            self.wrong(key, format!("must be one of {}.", names.join(", ")));
            default
        })
    }

    /// A whole number within bounds.
    pub fn number(&mut self, key: &'static str, range: RangeInclusive<i64>) -> Option<i64> {
        let found = self.value(key)?.as_integer().filter(|number| range.contains(number));
        if found.is_none() {
            self.wrong(key, format!("must be a whole number from {} to {}.", range.start(), range.end()));
        }
        found
    }

    /// A number within bounds, whole or not.
    pub fn decimal(&mut self, key: &'static str, range: RangeInclusive<f64>) -> Option<f64> {
        let found = match self.value(key)? {
            Value::Float(number) => Some(*number),
            Value::Integer(whole) => i32::try_from(*whole).ok().map(f64::from),
            _ => None,
        };
        let found = found.filter(|number| range.contains(number));
        if found.is_none() {
            self.wrong(key, format!("must be a number from {} to {}.", range.start(), range.end()));
        }
        found
    }

    /// A yes or no.
    pub fn flag(&mut self, key: &'static str, default: bool) -> bool {
        let Some(value) = self.value(key) else { return default };
        value.as_bool().unwrap_or_else(|| {
            self.wrong(key, "must be true or false.");
            default
        })
    }

    /// A duration within bounds.
    pub fn duration(&mut self, key: &'static str, range: RangeInclusive<Duration>) -> Option<Duration> {
        let text = self.text(key)?;
        let found = parse_duration(&text).filter(|duration| range.contains(duration));
        if found.is_none() {
            let (least, most) = (range.start().as_secs_f64(), range.end().as_secs());
            self.wrong(key, format!("must be a duration such as 30s, 10m or 24h, from {least} s to {most} s."));
        }
        found
    }

    /// A jq expression.
    pub fn expr(&mut self, key: &'static str) -> Option<Expr> {
        let text = self.text(key)?;
        Expr::compile(&text).map_err(|error| self.wrong(key, error.to_string())).ok()
    }

    /// A web address.
    pub fn url(&mut self, key: &'static str, what: &str) -> Option<Url> {
        let text = self.required(key, what)?;
        Url::parse(&text).map_err(|reason| self.wrong(key, reason)).ok()
    }

    /// An event type; absent = `default`.
    pub fn event_type(&mut self, key: &'static str) -> Option<String> {
        let text = self.text(key)?;
        match crate::event::check_type(&text) {
            Ok(()) => Some(text),
            Err(reason) => {
                self.wrong(key, reason);
                None
            }
        }
    }

    /// Type patterns.
    pub fn patterns(&mut self, key: &'static str) -> Vec<TypePattern> {
        let texts = self.list(key);
        texts
            .iter()
            .filter_map(|text| TypePattern::parse(text).map_err(|why| self.wrong(key, format!("'{text}' {why}"))).ok())
            .collect()
    }

    /// How far the source is believed, at most `highest`, which is also the default.
    pub fn trust(&mut self, highest: Trust) -> Trust {
        let Some(text) = self.text("trust") else { return highest };
        match Trust::of_name(&text) {
            Some(trust) if trust <= highest => trust,
            Some(_) => {
                self.wrong("trust", format!("may be lowered only; a source of this kind has '{}'.", highest.name()));
                highest
            }
            None => {
                self.wrong("trust", format!("must be one of {}.", Trust::NAMES.join(", ")));
                Trust::Unknown
            }
        }
    }

    /// A secret, or one of several, each as itself or as a reference.
    pub fn secrets(&mut self, key: &'static str) -> Vec<Secret> {
        let one_text = matches!(self.table.get(key), Some(Value::String(_)));
        let texts = if one_text { self.text(key).into_iter().collect() } else { self.list(key) };
        let mut found = Vec::new();
        for text in texts {
            match self.resolved(key, "", &text) {
                Some(value) if value.is_empty() => self.wrong(key, "is empty."),
                Some(value) => {
                    crate::redact::learn(&value);
                    found.push(Secret::new(value));
                }
                None => found.push(Secret::new(STAND_IN)),
            }
        }
        found
    }

    /// What `text` says or refers to; `None` for a reference that is not followed, or leads nowhere, which is noted.
    fn resolved(&mut self, key: &str, name: &str, text: &str) -> Option<String> {
        if self.references == References::Named && secrets::is_reference(text) {
            return None;
        }
        let missing = match secrets::resolve(text) {
            Ok(value) => return Some(value),
            Err(missing) => missing,
        };
        let of = if name.is_empty() { String::new() } else { format!("'{name}' ") };
        self.wrong(key, format!("{of}{}", missing.reason));
        self.for_now += usize::from(missing.for_now);
        None
    }

    /// The value of a header or a variable.
    fn named(&mut self, key: &str, name: &str, text: &str) -> Secret {
        let Some(value) = self.resolved(key, name, text) else { return Secret::new(STAND_IN) };
        if secrets::is_secret_name(name) {
            crate::redact::learn(&value);
            // Whoever tells of it may leave out the word that says what kind of secret it is, as in `Bearer …`.
            if name.eq_ignore_ascii_case("authorization")
                && let Some((_, bare)) = value.rsplit_once(' ')
            {
                crate::redact::learn(bare);
            }
        }
        Secret::new(value)
    }

    /// Headers: names with values that may be references to secrets.
    pub fn headers(&mut self, key: &'static str) -> Vec<(String, Secret)> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let Some(table) = value.as_table() else {
            self.wrong(key, "must be a table of names and texts.");
            return Vec::new();
        };
        let mut found = Vec::new();
        for (name, value) in table {
            let good = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
            let value = value.as_str().map(|text| self.named(key, name, text));
            match value.filter(|value| good && value.expose().bytes().all(|b| (b' '..=b'~').contains(&b))) {
                Some(value) => found.push((name.to_ascii_lowercase(), value)),
                None => self.wrong(key, format!("'{name}' is no header with a plain text.")),
            }
        }
        found
    }

    /// Variables of an environment; values may be references to secrets.
    pub fn variables(&mut self, key: &'static str) -> Vec<(String, Secret)> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let mut found = Vec::new();
        for (name, value) in value.as_table().into_iter().flatten() {
            let value = value.as_str().map(|text| self.named(key, name, text));
            match value.filter(|value| !name.is_empty() && !value.expose().contains('\0')) {
                Some(value) => found.push((name.clone(), value)),
                None => self.wrong(key, format!("'{name}' must be a text.")),
            }
        }
        if !value.is_table() {
            self.wrong(key, "must be a table of names and texts.");
        }
        found
    }

    /// A table inside this one.
    pub fn table(&mut self, key: &'static str) -> Option<Reader<'a>> {
        match self.value(key)? {
            Value::Table(table) => Some(Reader::new(format!("{}.{key}", self.prefix), table, self.references)),
            _ => {
                self.wrong(key, "must be a table, such as { scheme = \"github\", secret = \"env:NAME\" }.");
                None
            }
        }
    }

    /// A table whose keys are the person's own.
    pub fn raw_table(&mut self, key: &'static str) -> Option<&'a Table> {
        let table = self.value(key)?.as_table();
        if table.is_none() {
            self.wrong(key, "must be a table of names and values.");
        }
        table
    }

    /// Paths: `~/` is the person's home; anything else must be absolute.
    pub fn paths(&mut self, key: &'static str, home: Option<&std::path::Path>) -> Vec<std::path::PathBuf> {
        let all: Vec<_> = self.list(key).iter().map(|text| paths::expand(text, home)).collect();
        if all.iter().any(|path| !path.is_absolute()) {
            self.wrong(key, "must be absolute paths, or begin with ~/.");
        }
        all
    }

    /// One path, read as [`Reader::paths`] are.
    pub fn path(&mut self, key: &'static str, home: Option<&std::path::Path>) -> Option<std::path::PathBuf> {
        let path = paths::expand(&self.text(key)?, home);
        if !path.is_absolute() {
            self.wrong(key, "must be an absolute path, or begin with ~/.");
        }
        Some(path)
    }

    /// Everything that is wrong, and what nobody asked for.
    pub fn finish(self, faults: &mut Faults) {
        for key in self.table.keys().filter(|key| !self.known.contains(&key.as_str())) {
            faults.unknown.push((format!("{}.{key}", self.prefix), self.known.clone()));
        }
        faults.wrong.extend(self.wrong);
        faults.for_now += self.for_now;
    }
}
