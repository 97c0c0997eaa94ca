//! Secrets that the process knows, and their removal from everything that it writes: logs, events, audit records,
//! errors. A value is learned where it is resolved, once; it is forgotten only with the process.

use std::borrow::Cow;
use std::io::{self, Write};
use std::sync::{Arc, LazyLock};

use arc_swap::ArcSwap;
use serde_json::{Map, Value};

use crate::event::{Data, NewEvent, read_json};

/// What stands where a secret stood. Letters only, so that it fits wherever an identifier may stand.
pub const REDACTED: &str = "redacted";
/// Shorter texts are too common to be taken out of everything.
const BYTES_MIN: usize = 8;

/// Bytes from which on a text that ends like a secret begins is held back.
const HELD_MIN: usize = 4;

/// Every known secret in every form in which it could be written, longest first.
static KNOWN: LazyLock<ArcSwap<Vec<String>>> = LazyLock::new(ArcSwap::default);

/// Makes a secret known. Shorter ones than 8 bytes are not: taking them out would spoil other texts.
pub fn learn(secret: &str) {
    if secret.len() < BYTES_MIN || REDACTED.contains(secret) {
        return;
    }
    let mut forms = vec![secret.to_owned()];
    let json = Value::from(secret).to_string();
    forms.push(json.trim_matches('"').to_owned());
    forms.push(format!("{secret:?}").trim_matches('"').to_owned());
    forms.push(percent_encoding::utf8_percent_encode(secret, percent_encoding::NON_ALPHANUMERIC).to_string());
    KNOWN.rcu(|known| {
        let mut all = Vec::clone(known);
        all.extend(forms.iter().filter(|form| form.len() >= BYTES_MIN && !known.contains(form)).cloned());
        all.sort_by_key(|form| std::cmp::Reverse(form.len()));
        all.dedup();
        Arc::new(all)
    });
}

/// `text` without secrets; borrowed when it holds none.
pub fn text(text: &str) -> Cow<'_, str> {
    let known = KNOWN.load();
    let mut clean = Cow::Borrowed(text);
    for secret in known.iter().filter(|secret| secret.len() <= text.len()) {
        if clean.contains(secret.as_str()) {
            clean = Cow::Owned(clean.replace(secret.as_str(), REDACTED));
        }
    }
    clean
}

/// True when `text` holds a secret.
pub fn is_in(text: &str) -> bool {
    KNOWN.load().iter().any(|secret| text.contains(secret.as_str()))
}

/// Takes secrets out of a text in place.
pub fn string(text: &mut String) {
    if let Cow::Owned(clean) = self::text(text) {
        *text = clean;
    }
}

/// Takes secrets out of every text and every name of a value; a number that is one becomes a text.
pub fn value(value: &mut Value) {
    match value {
        Value::String(text) => string(text),
        Value::Number(number) => {
            if is_in(&number.to_string()) {
                *value = REDACTED.into();
            }
        }
        Value::Array(items) => items.iter_mut().for_each(self::value),
        Value::Object(fields) => object(fields),
        Value::Null | Value::Bool(_) => {}
    }
}

/// As [`value`], for the fields of an object.
pub fn object(fields: &mut Map<String, Value>) {
    fields.values_mut().for_each(value);
    if fields.keys().any(|name| is_in(name)) {
        let named = std::mem::take(fields).into_iter().map(|(name, value)| (text(&name).into_owned(), value));
        *fields = named.collect();
    }
}

/// JSON text without secrets, still JSON.
pub fn json(text: &str) -> Cow<'_, str> {
    let known = KNOWN.load();
    if known.is_empty() {
        return Cow::Borrowed(text);
    }
    // JSON can write one text in several ways; such a text is looked at as what it means.
    let escaped = text.contains("\\u") || text.contains("\\/");
    if !escaped && !known.iter().any(|secret| text.contains(secret.as_str())) {
        return Cow::Borrowed(text);
    }
    let Ok(mut parsed) = read_json::<Value>(text.as_bytes()) else { return self::text(text) };
    let before = parsed.clone();
    value(&mut parsed);
    if parsed == before { Cow::Borrowed(text) } else { Cow::Owned(parsed.to_string()) }
}

/// Takes secrets out of all that a producer sent.
pub fn event(sent: &mut NewEvent) {
    if KNOWN.load().is_empty() {
        return;
    }
    string(&mut sent.source);
    string(&mut sent.kind);
    let texts = [
        &mut sent.id,
        &mut sent.subject,
        &mut sent.time,
        &mut sent.content_type,
        &mut sent.dedup_key,
        &mut sent.agent_id,
        &mut sent.partition_key,
    ];
    texts.into_iter().flatten().for_each(string);
    object(&mut sent.extensions);
    match &mut sent.data {
        Data::None => {}
        Data::Json(text) => {
            if let Cow::Owned(clean) = json(text) {
                *text = clean;
            }
        }
        Data::Text(text) => string(text),
        Data::Binary(bytes) => {
            if let Cow::Owned(clean) = self::bytes(bytes) {
                *bytes = clean;
            }
        }
    }
}

/// Bytes without secrets.
pub fn bytes(bytes: &[u8]) -> Cow<'_, [u8]> {
    let known = KNOWN.load();
    let mut clean = Cow::Borrowed(bytes);
    for secret in known.iter().map(String::as_bytes) {
        while let Some(at) = clean.windows(secret.len()).position(|window| window == secret) {
            clean.to_mut().splice(at..at + secret.len(), REDACTED.bytes());
        }
    }
    clean
}

/// Takes secrets out of a text that comes in pieces, also those that go over several of them. What could be the beginning of
/// a secret waits for the next piece, from its fourth byte on: what is shorter would hold up every other piece.
#[derive(Default)]
pub struct Pieces {
    /// The last bytes that were given out: a secret may have begun there.
    tail: String,
    held: String,
}

impl Pieces {
    /// What can be told of the text with this piece.
    pub fn add(&mut self, piece: &str) -> String {
        let known = KNOWN.load();
        if known.is_empty() {
            return piece.to_owned();
        }
        let from = self.tail.len();
        let mut text = std::mem::take(&mut self.tail) + &std::mem::take(&mut self.held) + piece;
        for secret in known.iter() {
            let mut looked = 0;
            while let Some(at) = text[looked..].find(secret.as_str()).map(|at| looked + at) {
                let begin = at.max(from);
                text.replace_range(begin..at + secret.len(), REDACTED);
                looked = begin + REDACTED.len();
            }
        }
        let begins = |secret: &String| {
            let least = text.len().saturating_sub(secret.len() - 1);
            let most = text.len().saturating_sub(HELD_MIN - 1);
            (least..most).find(|at| text.is_char_boundary(*at) && secret.starts_with(&text[*at..]))
        };
        let until = known.iter().filter_map(begins).min().unwrap_or(text.len()).max(from);
        self.held = text.split_off(until);
        let told = text[from..].to_owned();
        self.tail = text.split_off(text.floor_char_boundary(text.len().saturating_sub(HELD_MIN - 1)));
        told
    }

    /// What is left, when the text is over.
    pub fn end(&mut self) -> String {
        self.tail.clear();
        std::mem::take(&mut self.held)
    }
}

/// A writer that takes secrets out of what passes. Each write must be a whole text, as a line of a log is.
pub struct Redacting<W>(pub W);

impl<W: Write> Write for Redacting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match std::str::from_utf8(bytes) {
            Ok(line) => self.0.write_all(text(line).as_bytes())?,
            Err(_) => self.0.write_all(&self::bytes(bytes))?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_form_of_a_secret_is_taken_out() {
        let secret = "cana\"ry/secr\\et ü-1";
        learn(secret);
        learn("short");
        for written in [
            format!("a {secret} b"),
            format!("a {} b", json!(secret)),
            format!("a {secret:?} b"),
            format!("a {}", percent_encoding::utf8_percent_encode(secret, percent_encoding::NON_ALPHANUMERIC)),
        ] {
            let clean = text(&written);
            assert!(!clean.contains("cana") && clean.contains(REDACTED), "{written} became {clean}");
        }
        assert_eq!(text("a short b"), "a short b");
        assert!(matches!(text("nothing here"), Cow::Borrowed(_)));
    }

    #[test]
    fn secrets_over_several_pieces_are_taken_out() {
        let secret = "cänary-of-the-pieces";
        learn(secret);
        let text = format!("before {secret} between {secret}{secret} cän and cänary-of-no after");
        let clean = format!("before {REDACTED} between {REDACTED}{REDACTED} cän and cänary-of-no after");
        for size in 1..12 {
            let (mut pieces, mut told) = (Pieces::default(), String::new());
            let chars: Vec<char> = text.chars().collect();
            for piece in chars.chunks(size) {
                told.push_str(&pieces.add(&piece.iter().collect::<String>()));
            }
            told.push_str(&pieces.end());
            // What was told before the fourth byte of a secret stays.
            let without = told.replace("cän", "").replace("cä", "").replace('c', "");
            assert!(!told.contains("ary-of-the"), "{size}: {told}");
            assert_eq!(without, clean.replace("cän", "").replace('c', ""), "{size}");
        }
        let mut pieces = Pieces::default();
        assert_eq!((pieces.add("no secret"), pieces.end()), ("no secret".to_owned(), String::new()));
    }

    #[test]
    fn json_stays_json() {
        learn("99887766554433");
        learn("canary-of-the-json");
        for (given, wanted) in [
            (r#"{"a":99887766554433}"#, json!({ "a": REDACTED })),
            (r#"{"canary-of-the-json":[1,"x canary-of-the-json y"]}"#, json!({ REDACTED: [1, "x redacted y"] })),
            (r#"{"a":"canary\u002dof-the-json","b":"\/"}"#, json!({ "a": REDACTED, "b": "/" })),
        ] {
            let clean: Value = serde_json::from_str(&json(given)).expect("JSON");
            assert_eq!(clean, wanted, "{given}");
        }
        assert!(matches!(json(r#"{"a":"\u00e9"}"#), Cow::Borrowed(_)));
    }

    #[test]
    fn whole_events_and_lines_are_cleaned() {
        learn("canary-of-the-event");
        let mut sent =
            NewEvent::new("src/canary-of-the-event", "a.canary-of-the-event", &json!(["canary-of-the-event"]));
        sent.extensions.insert("ext".to_owned(), "canary-of-the-event".into());
        sent.subject = Some("canary-of-the-event".to_owned());
        event(&mut sent);
        assert!(!format!("{sent:?}").contains("canary"), "{sent:?}");
        assert_eq!(sent.kind, "a.redacted");
        sent.data = Data::Binary(b"\xff canary-of-the-event".to_vec());
        event(&mut sent);
        assert_eq!(sent.data, Data::Binary(b"\xff redacted".to_vec()));
        let mut out = Vec::new();
        Redacting(&mut out).write_all(b"x canary-of-the-event\n").expect("a Vec takes all");
        assert_eq!(out, b"x redacted\n");
    }
}
