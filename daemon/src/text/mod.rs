//! Texts that people write: YAML with its places, the front matter that some begin with, words, and regular expressions.

pub mod document;
pub mod front;
pub mod pattern;
pub mod words;
