//! The front matter of a `SKILL.md`: YAML read into typed fields within a budget; scalars keep the text they were
//! written in, so that `aman.version: 1.0` stays `1.0`.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::error::{Error, FieldError};

/// Bytes of the front matter.
const BYTES_MAX: usize = 32 << 10;
/// Scalars, lists and maps.
const NODES_MAX: usize = 2000;
const DEPTH_MAX: usize = 16;

/// The fields as they were written; which of them must be there is the manifest's business.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Front {
    /// `name`
    pub name: Option<String>,
    /// `description`
    pub description: Option<String>,
    /// `license`
    pub license: Option<String>,
    /// `compatibility`
    pub compatibility: Option<String>,
    /// `allowed-tools`
    pub allowed_tools: Option<String>,
    /// The keys of `metadata` that begin with `aman.`; everyone else's are none of our business.
    pub aman: BTreeMap<String, String>,
    /// Fields that the Agent Skills specification does not know.
    pub unknown: Vec<String>,
}

/// Splits a `SKILL.md` into its front matter and the instructions below, and reads the former.
pub fn split(text: &str) -> Result<(Front, &str), Error> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut lines = text.split_inclusive('\n');
    let first = lines.next().unwrap_or_default();
    if first.trim_end() != "---" {
        return Err(Error::invalid("front matter", "is missing: the first line must be '---'."));
    }
    let mut end = first.len();
    for line in lines {
        if line.trim_end() == "---" {
            // The empty line stands for the first '---', so that messages count lines as an editor does.
            let yaml = format!("\n{}", &text[first.len()..end]);
            return Ok((parse(&yaml)?, text[end + line.len()..].trim_start_matches(['\r', '\n'])));
        }
        end += line.len();
    }
    Err(Error::invalid("front matter", "has no end: a line '---' must stand below it."))
}

fn parse(yaml: &str) -> Result<Front, Error> {
    if yaml.len() > BYTES_MAX {
        return Err(Error::invalid("front matter", format!("has {} bytes; at most {BYTES_MAX}.", yaml.len())));
    }
    let options = serde_saphyr::options! {
        with_snippet: false,
        budget: serde_saphyr::budget! {
            max_nodes: NODES_MAX,
            max_events: 3 * NODES_MAX,
            max_depth: DEPTH_MAX,
            max_aliases: 0,
            max_anchors: 0,
            max_documents: 1,
        },
    };
    serde_saphyr::from_str_with_options(yaml, options).map_err(|error| {
        let text = error.to_string();
        let line = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        // Fields put their name before a mark that no message contains.
        match line.split_once(MARK) {
            Some((before, reason)) => {
                let field = before.rsplit(' ').next().unwrap_or(before);
                Error::Invalid {
                    code: "invalid_input",
                    fields: vec![FieldError { field: field.to_owned(), reason: reason.to_owned() }],
                }
            }
            None => Error::invalid("front matter", line),
        }
    })
}

/// Stands between the name of a field and what is wrong with it, while both travel in one text.
const MARK: char = '\u{241f}';

fn named<E: serde::de::Error>(field: &str) -> impl FnOnce(E) -> E {
    move |error| E::custom(format!("{field}{MARK}{error}"))
}

impl<'de> Deserialize<'de> for Front {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Front, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Front;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("fields such as 'name: my-skill'")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Front, A::Error> {
                let mut front = Front::default();
                while let Some(field) = map.next_key::<String>()? {
                    let text = match field.as_str() {
                        "name" => &mut front.name,
                        "description" => &mut front.description,
                        "license" => &mut front.license,
                        "compatibility" => &mut front.compatibility,
                        "allowed-tools" => {
                            front.allowed_tools =
                                map.next_value::<Option<Words>>().map_err(named(&field))?.map(|w| w.0);
                            continue;
                        }
                        "metadata" => {
                            front.aman = map.next_value::<Option<Metadata>>()?.map(|m| m.0).unwrap_or_default();
                            continue;
                        }
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                            front.unknown.push(field);
                            continue;
                        }
                    };
                    *text = map.next_value::<Option<String>>().map_err(named(&field))?;
                }
                Ok(front)
            }
        }
        from.deserialize_map(Fields)
    }
}

/// The `aman.` part of `metadata`.
struct Metadata(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Metadata, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Metadata;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("keys with texts, such as 'aman.on: \"file.created\"'")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metadata, A::Error> {
                let mut kept = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    if !key.starts_with("aman.") {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let value = map.next_value::<Option<String>>().map_err(|error| {
                        A::Error::custom(format!("metadata.{key}{MARK}must be a text in quotes: {error}"))
                    })?;
                    kept.insert(key, value.unwrap_or_default());
                }
                Ok(Metadata(kept))
            }
        }
        from.deserialize_map(Keys)
    }
}

/// A text, or a list of words that many skills write instead.
struct Words(String);

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Words, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Words;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("words separated by spaces")
            }

            fn visit_str<E>(self, text: &str) -> Result<Words, E> {
                Ok(Words(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Words, A::Error> {
                let mut words = Vec::new();
                while let Some(word) = seq.next_element::<String>()? {
                    words.push(word);
                }
                Ok(Words(words.join(" ")))
            }
        }
        from.deserialize_any(Either)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_keep_their_text() {
        let text = "\u{feff}---\r\nname: a\r\nlicense: no\r\nmodel: {x: [1, 2]}\r\nallowed-tools: [Read, Bash]\r\nmetadata:\r\n  \
            aman.version: 1.0\r\n  aman.when:\r\n  other: {nested: true}\r\n---\r\n\r\n# Body\r\n---\r\n";
        let (front, body) = split(text).expect("good");
        assert_eq!(body, "# Body\r\n---\r\n");
        assert_eq!(front.name.as_deref(), Some("a"));
        assert_eq!(front.license.as_deref(), Some("no"));
        assert_eq!(front.allowed_tools.as_deref(), Some("Read Bash"));
        assert_eq!(front.unknown, ["model"]);
        let aman: Vec<_> = front.aman.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(aman, [("aman.version", "1.0"), ("aman.when", "")]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let bomb = format!("---\na: &a [x]\nb: [{}]\n---\n", "*a,".repeat(50));
        let deep = format!("---\na: {}{}\n---\n", "[".repeat(40), "]".repeat(40));
        let cases = [
            ("", "front matter", "first line"),
            ("# Title\n", "front matter", "first line"),
            ("---\nname: a\n", "front matter", "no end"),
            ("---\nname: [a]\n---\n", "name", "line 2"),
            ("---\nname: a\nname: b\n---\n", "front matter", "duplicate"),
            ("---\nname: a: b\n---\n", "front matter", "line 2"),
            ("---\n- a\n---\n", "front matter", "line 2"),
            ("---\nmetadata: {aman.on: [a, b]}\n---\n", "metadata.aman.on", "text in quotes"),
            ("---\nmetadata: {aman.on: {a: b}}\n---\n", "metadata.aman.on", "text in quotes"),
            (bomb.as_str(), "front matter", ""),
            (deep.as_str(), "front matter", ""),
        ];
        for (text, field, reason) in cases {
            let Err(Error::Invalid { fields, .. }) = split(text) else { panic!("{text:?} was read") };
            assert_eq!(fields[0].field, field, "{text:?}: {fields:?}");
            assert!(fields[0].reason.contains(reason), "{text:?}: {fields:?}");
            assert!(!fields[0].reason.contains(MARK), "{text:?}: {fields:?}");
        }
    }
}
