//! The format of `SOUL.md`: front matter and text, read and checked as a whole; what is wrong is named with its line.

use std::collections::BTreeMap;

use regex::Regex;
use serde_json::{Map, Value};

use crate::error::{Error, FieldError, distance};
use crate::id::sha256_hex;
use crate::redact;
use crate::text::document::{Document, Place, escaped};
use crate::text::{front, pattern, words};

/// Longest file, in bytes: it is part of every question to a model.
pub const BYTES_MAX: usize = 32 << 10;
const NAME_CHARS_MAX: usize = 100;
const SAYS_CHARS_MAX: usize = 500;
const BOUNDARIES_MAX: usize = 64;
const TOPICS_MAX: usize = 64;
const TOPIC_CHARS_MAX: usize = 200;
const PREFERENCES_MAX: usize = 64;
const VALUE_CHARS_MAX: usize = 500;
/// Fields of the front matter, and of a boundary.
const FIELDS: [&str; 3] = ["name", "boundaries", "preferences"];
const BOUNDARY_FIELDS: [&str; 4] = ["name", "topic", "tools", "says"];

/// What a `SOUL.md` says.
#[derive(Debug, Clone)]
pub struct Content {
    /// What the assistant is called.
    pub name: String,
    /// What it does not do, whoever asks.
    pub boundaries: Vec<Boundary>,
    /// How the person likes things.
    pub preferences: BTreeMap<String, String>,
    /// Who it is, in Markdown.
    pub body: String,
    /// SHA-256 of the whole text, hex.
    pub digest: String,
    /// The whole text.
    pub text: String,
}

/// Something that is not done.
#[derive(Debug, Clone)]
pub struct Boundary {
    /// Names it in refusals.
    pub name: String,
    /// What it is about.
    pub topics: Vec<Topic>,
    /// Patterns of tools that are not called.
    pub tools: Vec<String>,
    /// What is said in the place of what was asked for.
    pub says: String,
}

/// A topic: words, or a regular expression.
#[derive(Debug, Clone)]
pub struct Topic {
    /// As it is written.
    pub written: String,
    matcher: Matcher,
}

#[derive(Debug, Clone)]
enum Matcher {
    /// Folded words with a space before; and after, unless the last one may go on.
    Words(String),
    Pattern(Regex),
}

/// A text with what is needed to look for topics in it.
pub struct Searched<'a> {
    text: &'a str,
    folded: String,
}

impl<'a> Searched<'a> {
    /// Folds `text`.
    pub fn new(text: &'a str) -> Searched<'a> {
        Searched { text, folded: words::folded(text) }
    }
}

impl Topic {
    /// A regular expression between two slashes, or words; a `*` behind the last lets it go on.
    fn read(written: &str) -> Result<Topic, String> {
        if written.is_empty() || written.chars().count() > TOPIC_CHARS_MAX {
            return Err(format!("must have 1 to {TOPIC_CHARS_MAX} characters"));
        }
        let inner = written.strip_prefix('/').and_then(|rest| rest.strip_suffix('/'));
        let matcher = match inner {
            Some(inner) => Matcher::Pattern(pattern::compile(inner)?),
            None => {
                let folded = words::folded(written);
                if folded.trim().is_empty() {
                    return Err("has no word".to_owned());
                }
                let goes_on = written.trim_end().ends_with('*');
                Matcher::Words(if goes_on { folded.trim_end().to_owned() } else { folded })
            }
        };
        Ok(Topic { written: written.to_owned(), matcher })
    }

    fn is_in(&self, searched: &Searched<'_>) -> bool {
        match &self.matcher {
            Matcher::Words(words) => searched.folded.contains(words.as_str()),
            // Folded as well, so that no accent leads past it.
            Matcher::Pattern(regex) => regex.is_match(searched.text) || regex.is_match(&searched.folded),
        }
    }
}

impl Boundary {
    /// Whether one of its topics is in a text.
    pub fn is_met_by(&self, searched: &Searched<'_>) -> bool {
        self.topics.iter().any(|topic| topic.is_in(searched))
    }

    /// Whether it names a tool.
    pub fn names(&self, tool: &str) -> bool {
        self.tools.iter().any(|wanted| pattern::fits(wanted, tool))
    }
}

/// Reads and checks a whole text. The error names every field that is wrong, with its line, and quotes no secret.
pub fn parse(text: &str) -> Result<Content, Error> {
    if text.len() > BYTES_MAX {
        return Err(Error::invalid("content", format!("has {} bytes; at most {BYTES_MAX}.", text.len())));
    }
    if let Some((n, _)) = text.lines().enumerate().find(|(_, line)| redact::is_in(line)) {
        let reason = "holds a secret that aman knows, and would be shown to models: take it out.";
        return Err(Error::invalid("content", format!("line {}: {reason}", n + 1)));
    }
    let is_odd = |c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t');
    if let Some((n, _)) = text.lines().enumerate().find(|(_, line)| line.contains(is_odd)) {
        return Err(Error::invalid("content", format!("line {}: has a control character.", n + 1)));
    }
    let (yaml, body) = front::split(text)?;
    let document = Document::read(&yaml).map_err(|(place, reason)| {
        let line = place.map_or_else(String::new, |(line, _)| format!("line {line}: "));
        Error::invalid("front matter", format!("{line}{reason}"))
    })?;
    let mut reader = Reader { document: &document, wrong: Vec::new() };
    let content = reader.content(body, text);
    if reader.wrong.is_empty() {
        return Ok(content);
    }
    Err(Error::Invalid { code: "invalid_input", fields: reader.wrong })
}

/// Takes fields of the front matter, and gathers what is wrong with them.
struct Reader<'a> {
    document: &'a Document,
    wrong: Vec<FieldError>,
}

impl Reader<'_> {
    fn wrong(&mut self, pointer: &str, reason: &str) {
        let line = match self.document.place(pointer) {
            Some::<Place>((line, _)) => format!("line {line}: "),
            None => String::new(),
        };
        let field = pointer.trim_start_matches('/').to_owned();
        let field = if field.is_empty() { "front matter".to_owned() } else { field };
        self.wrong.push(FieldError { field, reason: format!("{line}{reason}.") });
    }

    fn content(&mut self, body: &str, text: &str) -> Content {
        let document = self.document;
        let nothing = Map::new();
        let front = match &document.value {
            Value::Object(front) => front,
            _ => {
                self.wrong("", "must have fields, such as 'name: aman'");
                &nothing
            }
        };
        self.check_names("", front, &FIELDS);
        let name = self.line("/name", front.get("name"), NAME_CHARS_MAX);
        let boundaries = match front.get("boundaries") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(all)) if all.len() <= BOUNDARIES_MAX => {
                all.iter().enumerate().map(|(n, one)| self.boundary(&format!("/boundaries/{n}"), one)).collect()
            }
            Some(_) => {
                self.wrong("/boundaries", &format!("must be a list of at most {BOUNDARIES_MAX} boundaries"));
                Vec::new()
            }
        };
        for (n, boundary) in boundaries.iter().enumerate() {
            if boundaries[..n].iter().any(|other: &Boundary| other.name == boundary.name) {
                self.wrong(&format!("/boundaries/{n}/name"), "is the name of another boundary");
            }
        }
        let preferences = self.preferences(front.get("preferences"));
        let digest = sha256_hex(text.as_bytes());
        Content { name, boundaries, preferences, body: body.trim_end().to_owned(), digest, text: text.to_owned() }
    }

    fn check_names(&mut self, pointer: &str, fields: &Map<String, Value>, known: &[&str]) {
        for name in fields.keys().filter(|name| !known.contains(&name.as_str())) {
            let near = known.iter().map(|k| (distance(name, k), *k)).min().filter(|(away, _)| *away <= 3);
            let hint = near.map_or_else(|| format!("Known: {}", known.join(", ")), |(_, k)| format!("Is '{k}' meant?"));
            let reason = format!("is no field here. {}", hint.trim_end_matches('?'));
            self.wrong(&format!("{pointer}/{}", escaped(name)), &reason);
        }
    }

    fn line(&mut self, pointer: &str, value: Option<&Value>, chars_max: usize) -> String {
        let text = value.and_then(scalar).map(|text| text.trim().to_owned()).unwrap_or_default();
        if text.is_empty() || text.chars().count() > chars_max || text.chars().any(char::is_control) {
            self.wrong(pointer, &format!("must be one line of 1 to {chars_max} characters"));
        }
        text
    }

    /// A text, or a list of texts.
    fn texts(&mut self, pointer: &str, value: Option<&Value>) -> Vec<(String, String)> {
        let all = match value {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(items)) => {
                items.iter().enumerate().map(|(n, item)| (format!("{pointer}/{n}"), scalar(item))).collect()
            }
            Some(one) => vec![(pointer.to_owned(), scalar(one))],
        };
        if all.len() > TOPICS_MAX {
            self.wrong(pointer, &format!("has more than {TOPICS_MAX} entries"));
        }
        let mut texts = Vec::new();
        for (pointer, text) in all {
            match text {
                Some(text) => texts.push((pointer, text)),
                None => self.wrong(&pointer, "must be a text"),
            }
        }
        texts
    }

    fn boundary(&mut self, pointer: &str, value: &Value) -> Boundary {
        let nothing = Map::new();
        let fields = match value {
            Value::Object(fields) => fields,
            _ => {
                self.wrong(pointer, "must have a name, a topic or tools, and what is said");
                &nothing
            }
        };
        if !fields.is_empty() {
            self.check_names(pointer, fields, &BOUNDARY_FIELDS);
        }
        let name = self.line(&format!("{pointer}/name"), fields.get("name"), NAME_CHARS_MAX);
        let says = match fields.get("says") {
            None | Some(Value::Null) => String::new(),
            given => self.line(&format!("{pointer}/says"), given, SAYS_CHARS_MAX),
        };
        let mut topics = Vec::new();
        for (place, text) in self.texts(&format!("{pointer}/topic"), fields.get("topic")) {
            match Topic::read(&text) {
                Ok(topic) => topics.push(topic),
                Err(reason) => self.wrong(&place, &reason),
            }
        }
        let mut tools = Vec::new();
        for (place, text) in self.texts(&format!("{pointer}/tools"), fields.get("tools")) {
            if text.is_empty() || text.len() > TOPIC_CHARS_MAX || text.contains(char::is_whitespace) {
                self.wrong(&place, "must be the name of a tool, in which * stands for any characters");
            } else {
                tools.push(text);
            }
        }
        let is_empty = |name: &str| matches!(fields.get(name), None | Some(Value::Null));
        if is_empty("topic") && is_empty("tools") && !fields.is_empty() {
            self.wrong(pointer, "needs a topic, or tools");
        }
        Boundary { name, topics, tools, says }
    }

    fn preferences(&mut self, value: Option<&Value>) -> BTreeMap<String, String> {
        let fields = match value {
            None | Some(Value::Null) => return BTreeMap::new(),
            Some(Value::Object(fields)) if fields.len() <= PREFERENCES_MAX => fields,
            Some(_) => {
                self.wrong("/preferences", &format!("must be at most {PREFERENCES_MAX} names with a value each"));
                return BTreeMap::new();
            }
        };
        let mut preferences = BTreeMap::new();
        for (name, value) in fields {
            let pointer = format!("/preferences/{}", escaped(name));
            if name.trim().is_empty() || name.chars().count() > NAME_CHARS_MAX || name.chars().any(char::is_control) {
                self.wrong(&pointer, &format!("must be named in 1 to {NAME_CHARS_MAX} characters"));
            }
            let value = self.line(&pointer, Some(value), VALUE_CHARS_MAX);
            preferences.insert(name.trim().to_owned(), value);
        }
        preferences
    }
}

/// A text, or what is one to people.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(text: &str) -> String {
        match parse(text) {
            Ok(content) => panic!("{text:?} is taken: {content:?}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, wanted) in [
            ("no front", "front matter: is missing"),
            ("---\nname: a\n", "has no end"),
            ("---\n---\n", "front matter"),
            ("---\nname: [\n---\n", "line "),
            ("---\nname: ''\n---\n", "name: line 2: must be one line"),
            ("---\nname: a\nboundarys: []\n---\n", "boundarys: line 3: is no field here. Is 'boundaries' meant"),
            ("---\nname: a\nboundaries: 3\n---\n", "boundaries: line 3"),
            ("---\nname: a\nboundaries:\n  - name: b\n---\n", "boundaries/0: line 4: needs a topic, or tools"),
            ("---\nname: a\nboundaries:\n  - {name: b, topic: '!!'}\n---\n", "boundaries/0/topic: line 4: has no word"),
            (
                "---\nname: a\nboundaries:\n  - name: b\n    topic: [ok, '/(/']\n---\n",
                "boundaries/0/topic/1: line 5: is no regular",
            ),
            (
                "---\nname: a\nboundaries:\n  - {name: b, tools: x}\n  - {name: b, tools: y}\n---\n",
                "boundaries/1/name: line 5: is the name of another",
            ),
            ("---\nname: a\npreferences: {x: [1]}\n---\n", "preferences/x: line 3"),
            ("---\nname: a\n---\nbell \u{7}\n", "content: line 4: has a control"),
        ] {
            let told = wrong(text);
            assert!(told.contains(wanted), "{text:?}: {told}");
        }
        assert!(wrong(&"x".repeat(BYTES_MAX + 1)).contains("at most"));
    }

    #[test]
    fn topics_are_matched_as_words() {
        let text = "---\nname: a\npreferences: {tone: dry, lines: 3, Ünits: true}\nboundaries:\n  - name: b\n    \
                    topic: [crédit card, dosag*, 密码, '/\\bpin\\W*code\\b/']\n    tools: [exec, mail_*]\n---\n\nBody.\n\n";
        let content = parse(text).expect("good");
        assert_eq!((content.name.as_str(), content.body.as_str()), ("a", "Body."));
        assert_eq!(content.preferences.get("lines").map(String::as_str), Some("3"));
        let boundary = &content.boundaries[0];
        for (text, wanted) in [
            ("my CREDIT-CARD, please", true),
            ("credit  card", true),
            ("credits card", false),
            ("a discredit card", false),
            ("the credit of a card", false),
            ("what dosages?", true),
            ("overdosage", false),
            ("我的密码是", true),
            ("码密", false),
            ("PIN: code", true),
            ("pín code", true),
            ("pinecode", false),
            ("", false),
        ] {
            assert_eq!(boundary.is_met_by(&Searched::new(text)), wanted, "{text}");
        }
        assert!(boundary.names("mail_send") && boundary.names("exec") && !boundary.names("execute"));
    }
}
