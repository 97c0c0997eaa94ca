//! Language models: what they are asked and what they answer, in one form for all dialects.

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
