//! What a script says on standard output: nothing, or one JSON object with its effects; checked to the letter.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::bus::{Effects, NewNotification};
use crate::event::{Data, NewEvent, read_json};

/// Events that one answer may publish.
const EVENTS_MAX: usize = 1000;
/// Notifications that one answer may ask for.
const NOTIFICATIONS_MAX: usize = 20;
const RESULT_BYTES_MAX: usize = 64 << 10;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer<'a> {
    #[serde(default, borrow)]
    publish: Vec<&'a RawValue>,
    #[serde(default, borrow)]
    notify: Vec<&'a RawValue>,
    #[serde(default, borrow)]
    result: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Item<'a> {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default, borrow)]
    data: Option<&'a RawValue>,
    #[serde(default)]
    subject: Option<String>,
}

/// Reads an answer; events get `source`. The error names the part that is wrong.
pub fn read(stdout: &[u8], source: &str) -> Result<Effects, String> {
    let text = std::str::from_utf8(stdout).map_err(|_| "stdout is not UTF-8".to_owned())?;
    if text.trim().is_empty() {
        return Ok(Effects::default());
    }
    let answer: Answer<'_> =
        object(text).map_err(|why| format!("stdout is not one JSON object with effects: {why}"))?;
    at_most("publish", answer.publish.len(), EVENTS_MAX)?;
    at_most("notify", answer.notify.len(), NOTIFICATIONS_MAX)?;
    let publish = each("publish", &answer.publish, |raw| event(raw, source))?;
    let notify = each("notify", &answer.notify, notification)?;
    let result = answer.result.map(result).transpose()?;
    Ok(Effects { publish, notify, result, ..Effects::default() })
}

/// Reads an object; an array with the fields' values in order, which serde would take as well, is none.
fn object<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, String> {
    if !text.trim_start().starts_with('{') {
        return Err("it begins with something else than {".to_owned());
    }
    serde_json::from_str(text).map_err(|error| error.to_string())
}

fn at_most(field: &str, have: usize, most: usize) -> Result<(), String> {
    if have > most { Err(format!("{field} has {have} entries; at most {most}")) } else { Ok(()) }
}

fn each<T>(field: &str, raw: &[&RawValue], read: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    let one = |(n, raw): (usize, &&RawValue)| read(raw.get()).map_err(|why| format!("{field}/{n}: {why}"));
    raw.iter().enumerate().map(one).collect()
}

fn event(raw: &str, source: &str) -> Result<NewEvent, String> {
    let item: Item<'_> = object(raw)?;
    if item.kind == "aman" || item.kind.starts_with("aman.") {
        return Err(format!("type: '{}' is one of the daemon's own; choose another beginning", item.kind));
    }
    let data = match item.data {
        Some(raw) => Data::json(raw.get()).map_err(|error| error.to_string())?,
        None => Data::None,
    };
    let event =
        NewEvent { source: source.to_owned(), kind: item.kind, subject: item.subject, data, ..NewEvent::default() };
    event.check().map_err(|error| error.to_string())?;
    Ok(event)
}

fn notification(raw: &str) -> Result<NewNotification, String> {
    let one: NewNotification = object(raw)?;
    one.check().map_err(|(field, reason)| format!("{field}: {reason}"))?;
    Ok(one)
}

fn result(raw: &RawValue) -> Result<Value, String> {
    if raw.get().len() > RESULT_BYTES_MAX {
        return Err(format!("result: has {} bytes; at most {RESULT_BYTES_MAX}", raw.get().len()));
    }
    read_json(raw.get().as_bytes()).map_err(|error| format!("result: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::Severity;

    #[test]
    fn effects_are_read() {
        assert!(read(b" \n", "skill/a").expect("empty").publish.is_empty());
        assert!(read(b"{}", "skill/a").expect("no part").result.is_none());
        let text =
            br#"{"publish": [{"type": "a.b", "data": {"n": 12345678901234567890123}, "subject": "s"}, {"type": "c"}],
            "notify": [{"title": "Hi", "severity": "warning"}], "result": [1]}"#;
        let effects = read(text, "skill/a").expect("good");
        assert_eq!(effects.publish[0].data, Data::Json(r#"{"n": 12345678901234567890123}"#.to_owned()));
        assert_eq!((effects.publish[0].source.as_str(), effects.publish[1].kind.as_str()), ("skill/a", "c"));
        assert_eq!((effects.notify[0].severity, effects.notify[0].message.as_str()), (Severity::Warning, ""));
        assert_eq!(effects.result, Some(serde_json::json!([1])));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let long = format!(r#"{{"notify":[{{"title":"{}"}}]}}"#, "x".repeat(201));
        let many = format!(r#"{{"publish":[{}]}}"#, vec![r#"{"type":"a"}"#; 1001].join(","));
        let cases: [(&[u8], &str); 19] = [
            (b"done", "not one JSON object"),
            (b"{} {}", "not one JSON object"),
            (b"[]", "not one JSON object"),
            (b"\xff", "UTF-8"),
            (br#"{"publish": [["a"]]}"#, "publish/0: it begins with"),
            (br#"{"notify": ["a"]}"#, "notify/0: it begins with"),
            (br#"{"events": []}"#, "unknown field `events`"),
            (br#"{"publish": {}}"#, "invalid type"),
            (br#"{"publish": [], "publish": []}"#, "duplicate field `publish`"),
            (br#"{"publish": [{"type": "a"}, {"type": "a", "source": "x"}]}"#, "publish/1: unknown field `source`"),
            (br#"{"publish": [{"data": 1}]}"#, "publish/0: missing field `type`"),
            (br#"{"publish": [{"type": "aman.ready"}]}"#, "publish/0: type: 'aman.ready'"),
            (br#"{"publish": [{"type": "a..b"}]}"#, "publish/0: type:"),
            (br#"{"publish": [{"type": "a", "subject": "x\ny"}]}"#, "publish/0: subject:"),
            (br#"{"notify": [{"message": "x"}]}"#, "notify/0: missing field `title`"),
            (br#"{"notify": [{"title": "x", "severity": "loud"}]}"#, "notify/0: unknown variant `loud`"),
            (br#"{"notify": [{"title": " "}]}"#, "notify/0: title:"),
            (long.as_bytes(), "notify/0: title:"),
            (many.as_bytes(), "publish has 1001 entries"),
        ];
        for (stdout, expected) in cases {
            let Err(error) = read(stdout, "skill/a") else { panic!("{expected}: was read") };
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }
}
