//! Language models: what they are asked and what they answer, in one form for all dialects.
//!
//! [`Models`] is the face: it knows who may be asked, in which order, and asks until somebody answers. Each dialect turns a
//! [`Request`] into the words of an API, and what streams back into [`Delta`]s and an [`Answer`].

mod ask;
mod dialects;
mod draft;
mod error;
mod find;
mod provider;
mod registry;
mod script;
mod standing;

pub use crate::config::models::Price;
pub use error::{ErrorKind, ModelError};
pub use registry::{Candidate, ModelShown, Models};
pub use standing::Standing;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A tool that a model may ask for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ToolSpec {
    /// Its name: letters, digits, `_` and `-`, at most 64.
    pub name: String,
    /// What it does and when to use it.
    pub description: String,
    /// JSON Schema of its arguments.
    pub schema: Value,
}

/// A call that a model asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ToolCall {
    /// Names the call within its conversation; made up where the dialect has none.
    pub id: String,
    /// The tool.
    pub name: String,
    /// Its arguments; a string where the model wrote what is no JSON.
    pub arguments: Value,
}

/// Something that is shown to a model besides text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// For example `image/png`.
    pub media_type: String,
    /// The bytes in base64.
    pub base64: String,
}

/// A part of a conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "snake_case")]
pub enum Message {
    /// Of a person, or of what takes their place.
    User {
        /// The words.
        text: String,
        /// Pictures.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        images: Vec<Image>,
    },
    /// Of the model.
    Assistant {
        /// The words; may be empty when there are calls.
        text: String,
        /// What it asked for.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        calls: Vec<ToolCall>,
    },
    /// What came of a call.
    Tool {
        /// The call's id.
        call_id: String,
        /// The tool.
        name: String,
        /// What it answered.
        text: String,
        /// True when it failed or was refused.
        #[serde(default)]
        is_error: bool,
    },
}

/// What a model is asked.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// `provider/model`; empty = the default of the configuration.
    pub model: String,
    /// Who is asked when that one does not answer, in place of what the configuration says; empty = as it says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fallback: Vec<String>,
    /// What it is told before everything else.
    pub system: String,
    /// The conversation, oldest first.
    pub messages: Vec<Message>,
    /// What it may ask for.
    pub tools: Vec<ToolSpec>,
    /// Longest answer, in tokens.
    pub max_tokens: Option<u32>,
    /// How freely it answers, 0 to 2.
    pub temperature: Option<f64>,
}

/// A piece of an answer, as it comes.
#[derive(Debug, Clone, PartialEq)]
pub enum Delta {
    /// More words.
    Text(String),
    /// A call begins to be asked for; its arguments come whole with the [`Answer`].
    Call {
        /// The call's id.
        id: String,
        /// The tool.
        name: String,
    },
    /// What came so far is void: it is asked again, or another model is.
    Restart,
}

/// Tokens, as the provider counts them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Of what was asked.
    pub input: u64,
    /// Of what was answered.
    pub output: u64,
    /// Of `input`, what the provider had in its cache.
    #[serde(default)]
    pub cached: u64,
    /// True when the provider did not count, and this is a guess from the length of the text.
    #[serde(default)]
    pub estimated: bool,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stop {
    /// It was complete.
    End,
    /// It waits for its calls.
    Calls,
    /// It became too long.
    Length,
    /// The provider held it back.
    Filtered,
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Who answered, as `provider/model`.
    pub model: String,
    /// The words.
    pub text: String,
    /// The calls, in the order in which they were asked for.
    pub calls: Vec<ToolCall>,
    /// See [`Stop`].
    pub stop: Stop,
    /// See [`Usage`].
    pub usage: Usage,
}

/// About how many tokens a text has: a fourth of its ASCII characters, and each other character.
pub fn estimate(text: &str) -> u64 {
    let plain = text.bytes().filter(u8::is_ascii).count();
    let others = text.chars().filter(|c| !c.is_ascii()).count();
    (plain.div_ceil(4) + others) as u64
}

/// Tokens that a picture counts for when nobody says; providers take from 85 to about 1,600.
const IMAGE_TOKENS: u64 = 1_000;
/// Tokens that a message takes besides its text.
const MESSAGE_TOKENS: u64 = 4;

impl Message {
    /// About how many tokens it has.
    pub fn tokens(&self) -> u64 {
        let inside = match self {
            Message::User { text, images } => estimate(text) + images.len() as u64 * IMAGE_TOKENS,
            Message::Assistant { text, calls } => {
                let call = |call: &ToolCall| estimate(&call.name) + estimate(&call.arguments.to_string());
                estimate(text) + calls.iter().map(call).sum::<u64>()
            }
            Message::Tool { name, text, .. } => estimate(name) + estimate(text),
        };
        inside + MESSAGE_TOKENS
    }
}

impl Request {
    /// About how many tokens it has.
    pub fn tokens(&self) -> u64 {
        let tool =
            |tool: &ToolSpec| estimate(&tool.name) + estimate(&tool.description) + estimate(&tool.schema.to_string());
        let tools = self.tools.iter().map(tool).sum::<u64>();
        estimate(&self.system) + self.messages.iter().map(Message::tokens).sum::<u64>() + tools
    }
}

impl Usage {
    /// What it costs, in millionths of the currency that the price is in; what is begun is paid.
    pub fn cost(&self, price: &Price) -> u64 {
        let cached = self.cached.min(self.input);
        let parts = [
            (self.input - cached, price.input_micros_per_mtok),
            (cached, price.cached_micros_per_mtok),
            (self.output, price.output_micros_per_mtok),
        ];
        let all: u128 = parts.iter().map(|(tokens, micros)| u128::from(*tokens) * u128::from(*micros)).sum();
        u64::try_from(all.div_ceil(1_000_000)).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_and_costs_are_counted() {
        assert_eq!((estimate(""), estimate("abcd"), estimate("abcde"), estimate("日本")), (0, 1, 2, 2));
        let price = Price {
            input_micros_per_mtok: 3_000_000,
            output_micros_per_mtok: 15_000_000,
            cached_micros_per_mtok: 300_000,
        };
        let usage = Usage { input: 1_000, output: 100, cached: 500, estimated: false };
        assert_eq!(usage.cost(&price), 1_500 + 1_500 + 150);
        assert_eq!(Usage { input: 1, ..Usage::default() }.cost(&price), 3);
        assert_eq!(Usage { input: u64::MAX, output: u64::MAX, ..Usage::default() }.cost(&price), u64::MAX);
    }
}
