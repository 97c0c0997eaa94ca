//! An event as a message for a person: what sinks show that reach people rather than programs.

use serde_json::Value;

/// What a person gets to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    /// One line.
    pub title: String,
    /// The rest.
    pub body: String,
    /// `info`, `warning`, `error` or `critical`.
    pub severity: String,
    /// Where to go, if that is an address that any device can open.
    pub link: Option<String>,
}

impl Message {
    /// The message of a CloudEvent: a notification says itself what it says, of another event type, subject and data are
    /// shown. At most `bytes_max` bytes of text.
    pub fn of(event: &Value, bytes_max: usize) -> Message {
        let (data, kind) = (&event["data"], event["type"].as_str().unwrap_or_default());
        let text = |name: &str| data[name].as_str().unwrap_or_default().to_owned();
        if kind == "aman.notification.created" {
            let link = data["action"]["url"].as_str().filter(|url| !url.starts_with('/')).map(str::to_owned);
            let body = shortened(text("message"), bytes_max);
            return Message { title: text("title"), body, severity: text("severity"), link };
        }
        let told = match data {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let subject = event["subject"].as_str().unwrap_or_default();
        let gap = if subject.is_empty() || told.is_empty() { "" } else { "\n" };
        let body = shortened(format!("{subject}{gap}{told}"), bytes_max);
        Message { title: kind.to_owned(), body, severity: "info".to_owned(), link: None }
    }
}

/// At most `bytes_max` bytes of `text`, cut between characters.
fn shortened(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        let end = text.floor_char_boundary(bytes_max.saturating_sub('…'.len_utf8()));
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn notifications_speak_for_themselves_and_others_are_shown() {
        let told = json!({ "type": "aman.notification.created", "data": {
            "title": "Übel", "message": "äöü", "severity": "error", "action": { "label": "Why", "url": "/events/1/why" } } });
        let message = Message::of(&told, 5);
        assert_eq!((message.title.as_str(), message.body.as_str(), message.severity.as_str()), ("Übel", "ä…", "error"));
        assert_eq!(message.link, None, "a path means nothing on another device");
        for (event, body) in [
            (json!({ "type": "a.b", "subject": "s", "data": { "n": 1 } }), "s\n{\"n\":1}"),
            (json!({ "type": "a.b", "data": "text" }), "text"),
            (json!({ "type": "a.b", "subject": "s" }), "s"),
        ] {
            let message = Message::of(&event, 100);
            assert_eq!((message.title.as_str(), message.body.as_str()), ("a.b", body));
        }
    }
}
