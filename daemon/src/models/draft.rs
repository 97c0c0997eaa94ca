//! An answer while it comes, whatever the dialect.

use serde_json::{Value, json};

use super::error::{ErrorKind, ModelError};
use super::{Answer, Delta, Request, Stop, ToolCall, Usage, estimate};

/// Longest answer, its calls included, in bytes.
const BYTES_MAX: usize = 8 << 20;
/// Calls of one answer.
const CALLS_MAX: usize = 128;
/// What made-up ids consist of: every dialect takes 9 letters and digits.
const ID_LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
const ID_CHARS: usize = 9;

/// What has come of an answer.
#[derive(Debug, Default)]
pub struct Draft {
    text: String,
    calls: Vec<Call>,
    /// Why it ended, once that is told.
    pub stop: Option<Stop>,
    /// What it took, once that is told.
    pub usage: Option<Usage>,
    ended: bool,
    live: bool,
    bytes: usize,
    news: Vec<Delta>,
}

#[derive(Debug)]
struct Call {
    /// The number under which more of it comes.
    place: u64,
    id: String,
    name: String,
    arguments: Arguments,
    told: bool,
}

#[derive(Debug)]
enum Arguments {
    Text(String),
    Whole(Value),
}

impl Draft {
    /// More words.
    pub fn text(&mut self, piece: &str) {
        if !piece.is_empty() {
            self.live = true;
            self.bytes += piece.len();
            self.text.push_str(piece);
            self.news.push(Delta::Text(piece.to_owned()));
        }
    }

    /// The model thinks: nothing to tell, but it lives.
    pub fn thought(&mut self) {
        self.live = true;
    }

    /// More of the call at `place`, which begins with the first of it. Another id at the same place is another call.
    pub fn call(&mut self, place: u64, id: Option<&str>, name: Option<&str>) {
        self.live = true;
        let (id, name) = (id.unwrap_or_default(), name.unwrap_or_default());
        self.bytes += id.len() + name.len();
        let known = self.calls.iter_mut().rev().find(|call| call.place == place);
        let call = match known.filter(|call| id.is_empty() || call.id.is_empty() || call.id == id) {
            Some(call) => call,
            None => {
                // The answer is refused as it is; looking through more of them for each would take too long.
                if self.calls.len() > CALLS_MAX {
                    return;
                }
                self.calls.push(Call {
                    place,
                    id: String::new(),
                    name: String::new(),
                    arguments: Arguments::Text(String::new()),
                    told: false,
                });
                self.calls.last_mut().expect("one was just added")
            }
        };
        if call.id.is_empty() && !call.told {
            id.clone_into(&mut call.id);
        }
        if call.name.is_empty() {
            name.clone_into(&mut call.name);
        }
        if !call.told && !call.name.is_empty() {
            call.told = true;
            if call.id.is_empty() {
                call.id = (0..ID_CHARS).map(|_| char::from(ID_LETTERS[fastrand::usize(..ID_LETTERS.len())])).collect();
            }
            self.news.push(Delta::Call { id: call.id.clone(), name: call.name.clone() });
        }
    }

    /// More of the arguments of the call at `place`, as JSON text.
    pub fn arguments(&mut self, place: u64, piece: &str) {
        self.live = true;
        self.bytes += piece.len();
        if let Some(call) = self.calls.iter_mut().rev().find(|call| call.place == place)
            && let Arguments::Text(text) = &mut call.arguments
        {
            text.push_str(piece);
        }
    }

    /// A call that comes whole.
    pub fn whole_call(&mut self, id: Option<&str>, name: &str, arguments: Value) {
        let place = self.next_place();
        self.call(place, id, Some(name));
        self.bytes += arguments.to_string().len();
        if let Some(call) = self.calls.last_mut() {
            call.arguments = Arguments::Whole(arguments);
        }
    }

    /// The place of the call that came last.
    pub fn last_place(&self) -> Option<u64> {
        self.calls.last().map(|call| call.place)
    }

    /// A place that no call has.
    pub fn next_place(&self) -> u64 {
        self.calls.iter().map(|call| call.place.saturating_add(1)).max().unwrap_or(0)
    }

    /// The id of the call that came last.
    pub fn last_id(&self) -> Option<&str> {
        self.calls.last().map(|call| call.id.as_str())
    }

    /// Nothing follows.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// True once nothing follows.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// True when something came since this was asked last.
    pub fn take_life(&mut self) -> bool {
        std::mem::take(&mut self.live)
    }

    /// What came and was not told yet.
    pub fn take_news(&mut self) -> Vec<Delta> {
        std::mem::take(&mut self.news)
    }

    /// Whether it grows beyond all measure.
    pub fn check(&self) -> Result<(), ModelError> {
        if self.bytes > BYTES_MAX || self.calls.len() > CALLS_MAX {
            return Err(ModelError::new(ErrorKind::Broken, "The answer is longer than any answer may be."));
        }
        Ok(())
    }

    /// The whole answer of `model`, an error when its end is missing.
    pub fn finish(self, model: &str, request: &Request) -> Result<Answer, ModelError> {
        let Some(stop) = self.stop.or(self.ended.then_some(Stop::End)) else {
            return Err(ModelError::new(ErrorKind::Broken, "The answer was cut off."));
        };
        let usage = self.usage.unwrap_or_else(|| {
            let written = |call: &Call| match &call.arguments {
                Arguments::Text(text) => estimate(text),
                Arguments::Whole(value) => estimate(&value.to_string()),
            };
            let output = estimate(&self.text) + self.calls.iter().map(written).sum::<u64>();
            Usage { input: request.tokens(), output, cached: 0, estimated: true }
        });
        let calls: Vec<ToolCall> =
            self.calls.into_iter().filter(|call| !call.name.is_empty()).map(Call::finish).collect();
        let stop = if stop == Stop::End && !calls.is_empty() { Stop::Calls } else { stop };
        Ok(Answer { model: model.to_owned(), text: self.text, calls, stop, usage })
    }
}

impl Call {
    fn finish(self) -> ToolCall {
        let arguments = match self.arguments {
            Arguments::Whole(value) => value,
            Arguments::Text(text) if text.trim().is_empty() => json!({}),
            Arguments::Text(text) => serde_json::from_str(&text).unwrap_or(Value::String(text)),
        };
        ToolCall { id: self.id, name: self.name, arguments }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_put_together_and_told_once() {
        let mut draft = Draft::default();
        draft.call(0, Some("a"), Some("read"));
        draft.call(1, None, Some("list"));
        draft.arguments(0, "{\"path\":");
        draft.arguments(1, "not JSON");
        draft.call(0, Some("a"), Some("read"));
        draft.arguments(0, "\"x\"}");
        draft.call(0, Some("b"), Some("find"));
        assert_eq!(draft.take_news().len(), 3);
        draft.stop = Some(Stop::End);
        let answer = draft.finish("p/m", &Request::default()).expect("whole");
        let names: Vec<&str> = answer.calls.iter().map(|call| call.name.as_str()).collect();
        assert_eq!((names, answer.stop), (vec!["read", "list", "find"], Stop::Calls));
        assert_eq!(answer.calls[0].arguments, json!({ "path": "x" }));
        assert_eq!(answer.calls[1].arguments, json!("not JSON"));
        assert_eq!(answer.calls[2].arguments, json!({}));
        assert_eq!(answer.calls[1].id.len(), ID_CHARS);
        assert!(answer.usage.estimated);
    }

    #[test]
    fn what_is_cut_off_is_no_answer() {
        let mut draft = Draft::default();
        draft.text("half");
        assert_eq!(draft.finish("p/m", &Request::default()).expect_err("half").kind, ErrorKind::Broken);
    }
}
