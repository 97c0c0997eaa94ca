//! Values from JSON and back.

use super::budget::{self, charge};
use super::value::{Map, V};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use std::fmt;
use std::rc::Rc;

/// Parses exactly one JSON value.
pub(super) fn read(json: &[u8]) -> Result<V, serde_json::Error> {
    serde_json::from_slice(json)
}

struct AnyJson;

impl<'de> Visitor<'de> for AnyJson {
    type Value = V;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<V, E> {
        Ok(V::NULL)
    }

    fn visit_bool<E>(self, value: bool) -> Result<V, E> {
        Ok(V::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<V, E> {
        Ok(V::Int(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<V, E> {
        Ok(i64::try_from(value).map_or(V::Float(value as f64), V::Int))
    }

    fn visit_f64<E>(self, value: f64) -> Result<V, E> {
        Ok(V::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<V, E> {
        charge(48);
        Ok(V::text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<V, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            charge(16);
            items.push(item);
        }
        Ok(V::array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<V, A::Error> {
        let mut map = Map::new();
        while let Some((key, value)) = entries.next_entry::<String, V>()? {
            charge(64 + key.len());
            map.insert(Rc::new(key), value);
        }
        Ok(V::object(map))
    }
}

impl<'de> Deserialize<'de> for V {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyJson)
    }
}

/// Whole floating-point numbers are written as whole numbers, as jq does: `6 / 2` is `3`.
fn number(float: f64) -> Value {
    if float.fract() == 0.0 && float.abs() < 1e17 {
        return Value::from(float as i64);
    }
    // what JSON cannot say: the largest number for infinity, null for NaN
    let finite = if float.is_infinite() { f64::MAX.copysign(float) } else { float };
    serde_json::Number::from_f64(finite).map_or(Value::Null, Value::Number)
}

/// The value for the caller.
pub(super) fn to_value(value: &V) -> Value {
    charge(32);
    match value {
        V::Null(_) => Value::Null,
        V::Bool(b) => Value::Bool(*b),
        V::Int(i) => Value::from(*i),
        V::Float(f) => number(*f),
        V::Str(s) => Value::String(s.as_str().to_owned()),
        V::Arr(a) => Value::Array(a.items.iter().map(to_value).collect()),
        V::Obj(o) => Value::Object(o.items.iter().map(|(k, v)| (k.as_str().to_owned(), to_value(v))).collect()),
    }
}

/// About the bytes of the value as JSON.
pub(super) fn size(value: &V) -> usize {
    charge(16);
    match value {
        V::Null(_) | V::Bool(_) => 4,
        V::Int(i) => 1 + i.unsigned_abs().checked_ilog10().unwrap_or(0) as usize,
        V::Float(_) => 12,
        V::Str(s) => s.len() + 2,
        V::Arr(a) => 2 + a.items.iter().map(|item| size(item) + 1).sum::<usize>(),
        V::Obj(o) => 2 + o.items.iter().map(|(key, item)| key.len() + size(item) + 4).sum::<usize>(),
    }
}

/// Writes the value as compact JSON.
pub(super) fn write(value: &V) -> String {
    let mut out = String::new();
    write_into(value, &mut out, usize::MAX);
    out
}

/// Writes at least the beginning of the value: nothing more is begun after `enough` bytes.
fn write_into(value: &V, out: &mut String, enough: usize) {
    let before = out.len();
    match value {
        V::Null(_) => out.push_str("null"),
        V::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        V::Int(i) => out.push_str(&i.to_string()),
        V::Float(f) => out.push_str(&number(*f).to_string()),
        V::Str(s) if s.len() > enough => {
            let cut = s.floor_char_boundary(enough);
            write_text(&s[..cut], out);
        }
        V::Str(s) => write_text(s, out),
        V::Arr(a) => {
            out.push('[');
            for (i, item) in a.items.iter().enumerate() {
                if out.len() > enough {
                    break;
                }
                if i > 0 {
                    out.push(',');
                }
                write_into(item, out, enough);
            }
            out.push(']');
        }
        V::Obj(o) => {
            out.push('{');
            for (i, (key, item)) in o.items.iter().enumerate() {
                if out.len() > enough {
                    break;
                }
                if i > 0 {
                    out.push(',');
                }
                write_text(key, out);
                out.push(':');
                write_into(item, out, enough);
            }
            out.push('}');
        }
    }
    charge(16 + (out.len() - before) / 8);
    budget::check_size(out.len());
}

fn write_text(text: &str, out: &mut String) {
    charge(text.len());
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' || c == '\u{7f}' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
}

/// For error messages: the beginning of the value.
impl fmt::Display for V {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const ENOUGH: usize = 60;
        let mut out = String::new();
        write_into(self, &mut out, ENOUGH);
        if out.len() > ENOUGH {
            out.truncate(out.floor_char_boundary(ENOUGH));
            out.push('…');
        }
        f.write_str(&out)
    }
}
