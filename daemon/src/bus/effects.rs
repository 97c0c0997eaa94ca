//! What a consumer answers, and what it may ask for: its effects are applied in the transaction that settles it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::Error;
use crate::event::{NewEvent, Trust};
use crate::store::Tx;

pub use crate::store::notifications::Severity;

/// A change of the consumer's own tables that commits with the delivery.
pub type StateWrite = Box<dyn FnOnce(&mut Tx<'_>) -> Result<(), Error> + Send>;

/// What a consumer asks for. All of it commits with the delivery, or none.
#[derive(Default)]
pub struct Effects {
    /// New events; their trust is the lower of the cause's and the consumer's.
    pub publish: Vec<NewEvent>,
    /// Messages for the person.
    pub notify: Vec<NewNotification>,
    /// What is to leave the machine.
    pub outgoing: Vec<NewIntent>,
    /// Kept with the delivery, for whoever asks.
    pub result: Option<Value>,
    /// A change of the consumer's own tables.
    pub state: Option<StateWrite>,
    /// What the consumer read besides the event is believed no further than this, and neither are its events.
    pub trust: Option<Trust>,
    /// Told once all of it is stored.
    pub stored: Option<Box<dyn FnOnce() + Send>>,
}

/// A message for the person.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewNotification {
    /// One line.
    pub title: String,
    /// The rest.
    #[serde(default)]
    pub message: String,
    /// How loud.
    #[serde(default)]
    pub severity: Severity,
    /// What it is about, for filters; none = the kind of its consumer.
    #[serde(default)]
    pub category: Option<String>,
    /// Where the person can do something about it.
    #[serde(default)]
    pub action: Option<Action>,
    /// What is alike has the same, and is told once in a while only; none = the same text is alike.
    #[serde(default)]
    pub fingerprint: Option<String>,
}

/// A link of a notification.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Action {
    /// What it does.
    pub label: String,
    /// An address of the web, or a path of the daemon's own.
    pub url: String,
}

impl NewNotification {
    /// Longest title.
    pub const TITLE_CHARS_MAX: usize = 200;
    /// Longest message.
    pub const MESSAGE_CHARS_MAX: usize = 4096;
    /// Longest address of an action.
    pub const URL_BYTES_MAX: usize = 2000;
    /// Longest label, category or fingerprint.
    pub const WORD_CHARS_MAX: usize = 100;

    /// With a title and a message that are as long as they may be.
    #[must_use]
    pub fn fitted(mut self) -> NewNotification {
        let shown = self.title.chars().map(|c| if c.is_control() { ' ' } else { c });
        self.title = shown.take(NewNotification::TITLE_CHARS_MAX).collect();
        if let Some((end, _)) = self.message.char_indices().nth(NewNotification::MESSAGE_CHARS_MAX) {
            self.message.truncate(end);
        }
        self
    }

    /// Says which field is wrong, and what would be right.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if !is_line(&self.title, NewNotification::TITLE_CHARS_MAX) {
            let reason = format!("must be one line of 1 to {} characters", NewNotification::TITLE_CHARS_MAX);
            return Err(("title", reason));
        }
        let (chars, most) = (self.message.chars().count(), NewNotification::MESSAGE_CHARS_MAX);
        if chars > most {
            return Err(("message", format!("has {chars} characters; at most {most}")));
        }
        let is_word = |text: &str| {
            let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
            (1..=NewNotification::WORD_CHARS_MAX).contains(&text.len()) && text.bytes().all(allowed)
        };
        if self.category.as_deref().is_some_and(|category| !is_word(category)) {
            return Err(("category", "must be one word of lower-case letters, digits, '-', '_' and '.'".to_owned()));
        }
        let line = || format!("must be one line of 1 to {} characters", NewNotification::WORD_CHARS_MAX);
        let is_short = |text: &str| is_line(text, NewNotification::WORD_CHARS_MAX);
        if self.fingerprint.as_deref().is_some_and(|fingerprint| !is_short(fingerprint)) {
            return Err(("fingerprint", line()));
        }
        match &self.action {
            Some(action) if !is_short(&action.label) => Err(("action.label", line())),
            Some(action) if !is_link(&action.url) => {
                Err(("action.url", "must begin with https://, http:// or one /, and hold no blanks".to_owned()))
            }
            _ => Ok(()),
        }
    }
}

fn is_line(text: &str, chars_max: usize) -> bool {
    !text.trim().is_empty() && text.chars().count() <= chars_max && !text.chars().any(char::is_control)
}

/// True for what is safe to open: no script, no other program's scheme, no path that means another host.
fn is_link(url: &str) -> bool {
    let rest = ["https://", "http://"].iter().find_map(|scheme| url.strip_prefix(scheme));
    let is_web = rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'));
    let is_path = url.starts_with('/') && !url.starts_with("//");
    let is_plain = !url.chars().any(|c| c.is_control() || c.is_whitespace() || c == '\\');
    url.len() <= NewNotification::URL_BYTES_MAX && is_plain && (is_web || is_path)
}

/// Something that is to leave the machine through the sink of that name.
#[derive(Debug, Clone, PartialEq)]
pub struct NewIntent {
    /// Name of the sink.
    pub sink: String,
    /// What it gets.
    pub payload: Value,
    /// After this time it is not sent any more.
    pub ttl: Duration,
}

/// Why an attempt failed: outermost message first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Messages from the outside in; never empty.
    pub chain: Vec<String>,
    /// True when the attempt was ended by its time limit.
    pub timed_out: bool,
}

impl Failure {
    /// A failure with one message.
    pub fn new(message: impl Into<String>) -> Failure {
        Failure { chain: vec![message.into()], timed_out: false }
    }

    /// Puts what was being done before the chain.
    #[must_use]
    pub fn within(mut self, message: impl Into<String>) -> Failure {
        self.chain.insert(0, message.into());
        self
    }
}

/// How an attempt ended.
pub enum Outcome {
    /// It worked; these are its effects.
    Done(Effects),
    /// It failed and may work later: after the consumer's back-off, or after the time given here.
    Retry(Failure, Option<Duration>),
    /// It failed and cannot work: dead letter at once.
    Reject(Failure),
    /// As [`Outcome::Reject`]; of these effects the events and the change of state commit with the dead letter.
    Buried(Failure, Box<Effects>),
    /// It did not begin, because the consumer is away: it is tried again after this time, and counts as no attempt.
    Postponed(Duration),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notifications_are_checked() {
        let good = NewNotification {
            title: "Ü".repeat(200),
            category: Some("my-own".to_owned()),
            action: Some(Action { label: "Look".to_owned(), url: "/events/1/why".to_owned() }),
            fingerprint: Some("a b".to_owned()),
            message: "é".repeat(4096),
            ..NewNotification::default()
        };
        assert_eq!(good.check(), Ok(()));
        let link = |url: &str| Some(Action { label: "Look".to_owned(), url: url.to_owned() });
        let wrong = [
            NewNotification { title: " ".to_owned(), ..good.clone() },
            NewNotification { message: "é".repeat(4097), ..good.clone() },
            NewNotification { category: Some("Two words".to_owned()), ..good.clone() },
            NewNotification { fingerprint: Some("a\nb".to_owned()), ..good.clone() },
            NewNotification { action: link("javascript:alert(1)"), ..good.clone() },
            NewNotification { action: link("//evil.example"), ..good.clone() },
            NewNotification { action: link("/\\evil.example"), ..good.clone() },
            NewNotification { action: link("https:///x"), ..good.clone() },
        ];
        let fields =
            ["title", "message", "category", "fingerprint", "action.url", "action.url", "action.url", "action.url"];
        for (notification, field) in wrong.iter().zip(fields) {
            assert_eq!(notification.check().map_err(|(field, _)| field), Err(field), "{notification:?}");
        }
    }
}
