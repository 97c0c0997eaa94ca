//! A provider that answers from a file, for trials and demonstrations: no model thinks there, and every list says so.
//!
//! The file is read anew for each answer. Which of its turns is taken depends on the conversation alone, so a conversation
//! goes on after a restart where it was.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout_at};

use super::draft::Draft;
use super::error::{ErrorKind, ModelError};
use super::provider::Asking;
use super::{Answer, Delta, Message, Stop, Usage};
use crate::config::parse_duration;
use crate::plain;

/// Longest script, in bytes, and the values that it may hold.
const BYTES_MAX: u64 = 1 << 20;
const NODES_MAX: usize = 100_000;

/// A whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Script {
    turns: Vec<Turn>,
}

/// One answer.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Turn {
    /// When it is the answer; without, it is the answer when it is its turn.
    when: Option<When>,
    /// The words, or the pieces in which they come; `{text}` is what was said last.
    say: Say,
    /// How long each piece takes.
    delay: Option<String>,
    calls: Vec<Call>,
    usage: Option<Counts>,
    stop: Option<Stop>,
    /// What goes wrong first, once each.
    fails: Vec<Fail>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct When {
    /// Part of what was said last, in any case.
    #[serde(default)]
    text: String,
    /// The tool whose result came last; without, a person spoke last.
    after: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Say {
    Text(String),
    Pieces(Vec<String>),
}

impl Default for Say {
    fn default() -> Say {
        Say::Pieces(Vec::new())
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Call {
    name: String,
    #[serde(default)]
    arguments: Option<Value>,
    id: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Counts {
    input: u64,
    output: u64,
    #[serde(default)]
    cached: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fail {
    kind: FailKind,
    /// After so many pieces.
    #[serde(default)]
    after: usize,
    retry_after: Option<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum FailKind {
    Auth,
    Overloaded,
    Timeout,
    Broken,
    TooLong,
    Filtered,
    Invalid,
}

impl FailKind {
    fn kind(self) -> ErrorKind {
        match self {
            FailKind::Auth => ErrorKind::Auth,
            FailKind::Overloaded => ErrorKind::Overloaded,
            FailKind::Timeout => ErrorKind::Timeout,
            FailKind::Broken => ErrorKind::Broken,
            FailKind::TooLong => ErrorKind::TooLong,
            FailKind::Filtered => ErrorKind::Filtered,
            FailKind::Invalid => ErrorKind::Invalid,
        }
    }
}

/// How many of its failures each turn had.
#[derive(Debug, Default)]
pub struct Failed(Mutex<BTreeMap<usize, usize>>);

impl Failed {
    /// The next failure of `turn`, which is had by that.
    fn next<'a>(&self, number: usize, turn: &'a Turn) -> Option<&'a Fail> {
        let mut had = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let had = had.entry(number).or_default();
        let fail = turn.fails.get(*had)?;
        *had += 1;
        Some(fail)
    }
}

/// Whether the script can be used.
pub fn check(path: &Path) -> Result<(), ModelError> {
    read(path).map(drop)
}

fn read(path: &Path) -> Result<Script, ModelError> {
    let wrong = |why: String| ModelError::new(ErrorKind::Invalid, format!("The script {}: {why}", path.display()));
    let text = plain::read(path, BYTES_MAX).map_err(|error| wrong(error.to_string()))?;
    let options = serde_saphyr::options! {
        with_snippet: false,
        budget: serde_saphyr::budget! { max_nodes: NODES_MAX, max_events: 3 * NODES_MAX, max_depth: 64, max_documents: 1 },
    };
    let script: Script = serde_saphyr::from_str_with_options(&text, options)
        .map_err(|error| wrong(error.to_string().lines().next().unwrap_or_default().to_owned()))?;
    for (number, turn) in script.turns.iter().enumerate() {
        let mut times = turn.delay.iter().chain(turn.fails.iter().filter_map(|fail| fail.retry_after.as_ref()));
        if let Some(time) = times.find(|time| parse_duration(time).is_none()) {
            return Err(wrong(format!("turn {}: '{time}' is no duration such as 20ms.", number + 1)));
        }
    }
    Ok(script)
}

fn duration(text: Option<&String>) -> Option<Duration> {
    text.and_then(|text| parse_duration(text))
}

/// What was said last, and by which tool if one did.
fn last(messages: &[Message]) -> (&str, Option<&str>) {
    match messages.last() {
        Some(Message::User { text, .. }) => (text, None),
        Some(Message::Tool { text, name, .. }) => (text, Some(name)),
        Some(Message::Assistant { .. }) | None => ("", None),
    }
}

impl Script {
    /// The answer to these messages: the first whose `when` holds, else the one whose turn it is.
    fn turn(&self, messages: &[Message]) -> Option<(usize, &Turn)> {
        let (text, tool) = last(messages);
        let text = text.to_lowercase();
        let holds = |when: &When| when.after.as_deref() == tool && text.contains(&when.text.to_lowercase());
        let mut turns = self.turns.iter().enumerate();
        let chosen = turns.find(|(_, turn)| turn.when.as_ref().is_some_and(holds));
        let answers = messages.iter().filter(|message| matches!(message, Message::Assistant { .. })).count();
        chosen.or_else(|| self.turns.iter().enumerate().filter(|(_, turn)| turn.when.is_none()).nth(answers))
    }
}

/// Each word a piece, with the spaces that follow it.
fn pieces(say: &Say, last: &str) -> Vec<String> {
    let filled = |text: &str| text.replace("{text}", last);
    match say {
        Say::Pieces(pieces) => pieces.iter().map(|piece| filled(piece)).collect(),
        Say::Text(text) => filled(text).split_inclusive(' ').map(str::to_owned).collect(),
    }
}

/// Answers as the script at `path` says.
pub async fn answer(
    path: &Path,
    failed: &Failed,
    asking: &Asking<'_>,
    tell: &mut (dyn FnMut(Delta) + Send),
) -> Result<Answer, ModelError> {
    let place = path.to_owned();
    let script = tokio::task::spawn_blocking(move || read(&place)).await;
    let script = script.map_err(|error| ModelError::new(ErrorKind::Broken, error.to_string()))??;
    let messages = &asking.request.messages;
    let none = || ModelError::new(ErrorKind::Invalid, "The script has no turn for this.");
    let (number, turn) = script.turn(messages).ok_or_else(none)?;
    let fail = failed.next(number, turn);
    let (mut draft, mut deadline) = (Draft::default(), Instant::now() + asking.first);
    for (said, piece) in pieces(&turn.say, last(messages).0).into_iter().enumerate() {
        if let Some(fail) = fail.filter(|fail| fail.after <= said) {
            return Err(simulated(fail));
        }
        if let Some(delay) = duration(turn.delay.as_ref()) {
            let late = |_| ModelError::new(ErrorKind::Timeout, "No token came in time.");
            timeout_at(deadline, sleep(delay)).await.map_err(late)?;
        }
        draft.text(&piece);
        draft.take_news().into_iter().for_each(&mut *tell);
        deadline = Instant::now() + asking.between;
    }
    if let Some(fail) = fail {
        return Err(simulated(fail));
    }
    for call in &turn.calls {
        draft.whole_call(call.id.as_deref(), &call.name, call.arguments.clone().unwrap_or_else(|| json!({})));
    }
    draft.take_news().into_iter().for_each(&mut *tell);
    draft.stop = Some(turn.stop.unwrap_or(Stop::End));
    draft.usage = turn.usage.as_ref().map(|counts| Usage {
        input: counts.input,
        output: counts.output,
        cached: counts.cached,
        estimated: false,
    });
    draft.finish(&asking.id(), asking.request)
}

fn simulated(fail: &Fail) -> ModelError {
    let kind = fail.kind.kind();
    let error = ModelError::new(kind, format!("The script fails on purpose: {}.", kind.name()));
    ModelError { retry_after: duration(fail.retry_after.as_ref()), ..error }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(text: &str) -> Message {
        Message::User { text: text.to_owned(), images: Vec::new() }
    }

    #[test]
    fn turns_follow_the_conversation() {
        let yaml = "turns:\n  - say: first\n  - when: { text: Weather }\n    say: [\"look\", \"ing\"]\n    calls: [{ name: get }]\n  \
                    - when: { after: get }\n    say: \"It is {text}.\"\n  - say: second {text} here\n";
        let path = std::env::temp_dir().join(format!("aman-script-{:016x}", fastrand::u64(..)));
        std::fs::write(&path, yaml).expect("the folder is writable");
        let script = read(&path).expect("good");
        std::fs::remove_file(&path).expect("it is ours");
        let answer = Message::Assistant { text: "x".into(), calls: Vec::new() };
        let result =
            Message::Tool { call_id: "a".into(), name: "get".into(), text: "the weather".into(), is_error: false };
        for (messages, wanted) in [
            (vec![user("hi")], Some(0)),
            (vec![user("the weather?")], Some(1)),
            (vec![user("the weather?"), answer.clone(), result], Some(2)),
            (vec![user("hi"), answer.clone(), user("ho")], Some(3)),
            (vec![user("hi"), answer.clone(), user("ho"), answer, user("hu")], None),
        ] {
            assert_eq!(script.turn(&messages).map(|(number, _)| number), wanted, "{messages:?}");
        }
        assert_eq!(pieces(&script.turns[3].say, "x"), ["second ", "x ", "here"]);
        assert_eq!(pieces(&script.turns[1].say, "x"), ["look", "ing"]);
        for bad in ["turns: 1", "turns: [{ sya: x }]", "turns: [{ delay: soon }]", "turns: [{ fails: [{ kind: x }] }]"]
        {
            std::fs::write(&path, bad).expect("the folder is writable");
            assert_eq!(read(&path).expect_err(bad).kind, ErrorKind::Invalid);
        }
        std::fs::remove_file(&path).expect("it is ours");
    }
}
