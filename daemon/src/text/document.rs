//! YAML or JSON text as a value, with the line and column of everything in it. JSON is read as the YAML that it is.

use std::collections::HashMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use serde_saphyr::Spanned;

/// Bytes of a definition.
pub const BYTES_MAX: usize = 4 << 20;
const NODES_MAX: usize = 400_000;
const DEPTH_MAX: usize = 90;

/// Line and column, from 1.
pub type Place = (u64, u64);

/// A value that knows where each of its parts stood, by JSON pointer.
#[derive(Debug)]
pub struct Document {
    /// What was written.
    pub value: Value,
    places: HashMap<String, Place>,
}

impl Document {
    /// Reads `text`; the error says where it breaks.
    pub fn read(text: &str) -> Result<Document, (Option<Place>, String)> {
        if text.len() > BYTES_MAX {
            return Err((None, format!("has {} bytes; at most {BYTES_MAX}.", text.len())));
        }
        let options = serde_saphyr::options! {
            with_snippet: false,
            strict_booleans: true,
            budget: serde_saphyr::budget! {
                max_nodes: NODES_MAX,
                max_events: 3 * NODES_MAX,
                max_depth: DEPTH_MAX,
                max_documents: 1,
            },
        };
        let read: Result<Spanned<Node>, _> = serde_saphyr::from_str_with_options(text, options);
        let root = read.map_err(|error| {
            let place = error.location().map(|at| (at.line(), at.column()));
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
            (place, line)
        })?;
        let mut places = HashMap::new();
        let value = unfold(root, &mut String::new(), &mut places);
        Ok(Document { value, places })
    }

    /// Where the value at `pointer` stands, or the nearest thing around it.
    pub fn place(&self, pointer: &str) -> Option<Place> {
        let mut pointer = pointer;
        loop {
            if let Some(place) = self.places.get(pointer) {
                return Some(*place);
            }
            pointer = &pointer[..pointer.rfind('/')?];
        }
    }
}

enum Node {
    Leaf(Value),
    List(Vec<Spanned<Node>>),
    Map(Vec<(String, Spanned<Node>)>),
}

/// A part of a JSON pointer (RFC 6901).
pub fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

fn unfold(node: Spanned<Node>, pointer: &mut String, places: &mut HashMap<String, Place>) -> Value {
    places.insert(pointer.clone(), (node.referenced.line(), node.referenced.column()));
    let length = pointer.len();
    match node.value {
        Node::Leaf(value) => value,
        Node::List(items) => {
            let mut list = Vec::with_capacity(items.len());
            for (n, item) in items.into_iter().enumerate() {
                pointer.push_str(&format!("/{n}"));
                list.push(unfold(item, pointer, places));
                pointer.truncate(length);
            }
            Value::Array(list)
        }
        Node::Map(entries) => {
            let mut map = Map::new();
            for (name, item) in entries {
                pointer.push('/');
                pointer.push_str(&escaped(&name));
                map.insert(name, unfold(item, pointer, places));
                pointer.truncate(length);
            }
            Value::Object(map)
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Node, D::Error> {
        from.deserialize_any(Any)
    }
}

struct Any;

impl<'de> Visitor<'de> for Any {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("YAML that JSON could say")
    }
    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Leaf(Value::Null))
    }
    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Leaf(Value::Null))
    }
    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Node, D::Error> {
        from.deserialize_any(Any)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Leaf(value.into()))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Leaf(value.into()))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Leaf(value.into()))
    }
    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Node, E> {
        let number = serde_json::Number::from_f64(value);
        number.map(|number| Node::Leaf(Value::Number(number))).ok_or_else(|| E::custom("JSON has no such number"))
    }
    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Leaf(value.into()))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = from.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Node, A::Error> {
        let mut entries: Vec<(String, Spanned<Node>)> = Vec::new();
        while let Some((name, item)) = from.next_entry::<String, _>()? {
            if name.starts_with("$serde_json::private::") {
                return Err(A::Error::custom(format!("the name '{name}' cannot be kept")));
            }
            entries.push((name, item));
        }
        Ok(Node::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn everything_has_its_place() {
        let text = "a:\n  - b: 1\n    c: [x, 'y']\n  - true\nd/e: 1.0.0\nthen: end\non: 1.5\n";
        let document = Document::read(text).expect("YAML");
        let wanted = json!({ "a": [{ "b": 1, "c": ["x", "y"] }, true], "d/e": "1.0.0", "then": "end", "on": 1.5 });
        assert_eq!(document.value, wanted);
        assert_eq!(document.place("/a/0/c/1"), Some((3, 12)));
        assert_eq!(document.place("/d~1e"), Some((5, 6)));
        assert_eq!(document.place("/a/1/nothing/here"), Some((4, 5)));
        let json = Document::read("{\"a\": {\"b\": [1,\n 2]}}").expect("JSON");
        assert_eq!((json.value.clone(), json.place("/a/b/1")), (json!({ "a": { "b": [1, 2] } }), Some((2, 2))));
        let (place, why) = Document::read("a: [1\nb: 2").expect_err("broken");
        assert!(place.is_some(), "{why}");
        assert!(Document::read("a: 1\na: 2").is_err(), "a name that comes twice");
    }
}
