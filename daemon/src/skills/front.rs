//! The front matter of a `SKILL.md`: YAML read into typed fields within a budget; scalars keep the text they were
//! written in, so that `aman.version: 1.0` stays `1.0`.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::error::{Error, FieldError};
use crate::text::front::split;

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
    /// Whether `allowed-tools` is a list, which that specification does not know either.
    pub tools_listed: bool,
    /// Keys of `metadata` whose value is no text but a list or a map.
    pub nested: Vec<String>,
}

/// Reads the front matter of a `SKILL.md`.
///
/// Many that were written for other programs hold texts with a colon in them, which is no YAML without quotes: such lines are
/// read as if they had quotes, and the error that a strict reader would have is given with what was read.
pub fn read(text: &str) -> Result<(Front, Option<Error>), Error> {
    let (yaml, _) = split(text)?;
    match parse(&yaml) {
        Ok(front) => Ok((front, None)),
        Err(error) => match parse(&quoted(&yaml)) {
            Ok(front) => Ok((front, Some(error))),
            Err(_) => Err(error),
        },
    }
}

/// The instructions below the front matter; everything when there is none.
pub fn body(text: &str) -> &str {
    split(text).map_or(text, |(_, body)| body)
}

/// `yaml` with quotes around the texts of one line that have a colon and no quotes.
fn quoted(yaml: &str) -> String {
    const TEXTS: [&str; 4] = ["name", "description", "license", "compatibility"];
    let line = |line: &str| {
        let known = line.split_once(": ").filter(|(key, _)| TEXTS.contains(key));
        let plain = known.map(|(key, value)| (key, value.trim())).filter(|(_, value)| {
            value.contains(':') && !value.starts_with(['"', '\'', '|', '>', '[', '{', '&', '*', '!', '%', '@', '#'])
        });
        match plain {
            Some((key, value)) => format!("{key}: '{}'\n", value.replace('\'', "''")),
            None => line.to_owned(),
        }
    };
    yaml.split_inclusive('\n').map(line).collect()
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
                            let words = map.next_value::<Option<Words>>().map_err(named(&field))?;
                            front.tools_listed = words.as_ref().is_some_and(|words| words.listed);
                            front.allowed_tools = words.map(|words| words.text);
                            continue;
                        }
                        "metadata" => {
                            let metadata = map.next_value::<Option<Metadata>>()?.unwrap_or_default();
                            (front.aman, front.nested) = (metadata.aman, metadata.nested);
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

/// The `aman.` part of `metadata`, and what else of it is no text.
#[derive(Default)]
struct Metadata {
    aman: BTreeMap<String, String>,
    nested: Vec<String>,
}

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Metadata, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Metadata;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("keys with texts, such as 'aman.on: \"file.created\"'")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metadata, A::Error> {
                let mut kept = Metadata::default();
                while let Some(key) = map.next_key::<String>()? {
                    if !key.starts_with("aman.") {
                        if map.next_value::<Nested>()?.0 {
                            kept.nested.push(key);
                        }
                        continue;
                    }
                    let value = map.next_value::<Option<String>>().map_err(|error| {
                        A::Error::custom(format!("metadata.{key}{MARK}must be a text in quotes: {error}"))
                    })?;
                    kept.aman.insert(key, value.unwrap_or_default());
                }
                Ok(kept)
            }
        }
        from.deserialize_map(Keys)
    }
}

/// True for a list or a map, whatever they hold.
struct Nested(bool);

impl<'de> Deserialize<'de> for Nested {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Nested, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Nested;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }

            fn visit_bool<E>(self, _: bool) -> Result<Nested, E> {
                Ok(Nested(false))
            }

            fn visit_i64<E>(self, _: i64) -> Result<Nested, E> {
                Ok(Nested(false))
            }

            fn visit_u64<E>(self, _: u64) -> Result<Nested, E> {
                Ok(Nested(false))
            }

            fn visit_f64<E>(self, _: f64) -> Result<Nested, E> {
                Ok(Nested(false))
            }

            fn visit_str<E>(self, _: &str) -> Result<Nested, E> {
                Ok(Nested(false))
            }

            fn visit_unit<E>(self) -> Result<Nested, E> {
                Ok(Nested(false))
            }

            fn visit_none<E>(self) -> Result<Nested, E> {
                Ok(Nested(false))
            }

            fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Nested, D::Error> {
                Nested::deserialize(from)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Nested, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Nested(true))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Nested, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Nested(true))
            }
        }
        from.deserialize_any(Any)
    }
}

/// A text, or a list of words that many skills write instead.
struct Words {
    text: String,
    listed: bool,
}

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Words, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Words;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("words separated by spaces")
            }

            fn visit_str<E>(self, text: &str) -> Result<Words, E> {
                Ok(Words { text: text.to_owned(), listed: false })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Words, A::Error> {
                let mut words = Vec::new();
                while let Some(word) = seq.next_element::<String>()? {
                    words.push(word);
                }
                Ok(Words { text: words.join(" "), listed: true })
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
        let (front, odd) = read(text).expect("good");
        assert!(odd.is_none() && front.tools_listed, "{odd:?}");
        assert_eq!(body(text), "# Body\r\n---\r\n");
        assert_eq!(front.nested, ["other"]);
        assert_eq!(front.name.as_deref(), Some("a"));
        assert_eq!(front.license.as_deref(), Some("no"));
        assert_eq!(front.allowed_tools.as_deref(), Some("Read Bash"));
        assert_eq!(front.unknown, ["model"]);
        let aman: Vec<_> = front.aman.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(aman, [("aman.version", "1.0"), ("aman.when", "")]);
    }

    #[test]
    fn colons_without_quotes_are_read_and_told() {
        let text = "---\nname: a\ndescription: Use it when: it's late\nlicense: \"b: c\"\n---\n";
        let (front, odd) = read(text).expect("readable");
        assert_eq!(front.description.as_deref(), Some("Use it when: it's late"));
        assert_eq!(front.license.as_deref(), Some("b: c"));
        assert!(odd.is_some_and(|odd| odd.to_string().contains("line 3")));
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
            ("---\nnote: a: b\n---\n", "front matter", "line 2"),
            ("---\n- a\n---\n", "front matter", "line 2"),
            ("---\nmetadata: {aman.on: [a, b]}\n---\n", "metadata.aman.on", "text in quotes"),
            ("---\nmetadata: {aman.on: {a: b}}\n---\n", "metadata.aman.on", "text in quotes"),
            (bomb.as_str(), "front matter", ""),
            (deep.as_str(), "front matter", ""),
        ];
        for (text, field, reason) in cases {
            let Err(Error::Invalid { fields, .. }) = read(text) else { panic!("{text:?} was read") };
            assert_eq!(fields[0].field, field, "{text:?}: {fields:?}");
            assert!(fields[0].reason.contains(reason), "{text:?}: {fields:?}");
            assert!(!fields[0].reason.contains(MARK), "{text:?}: {fields:?}");
        }
    }
}
