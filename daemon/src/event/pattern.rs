//! Type patterns: dot-separated segments, `*` = one segment, `**` = one or more to the end.

use std::fmt;

use crate::event::TYPE_BYTES_MAX;

/// A checked type pattern. `a.**` matches `a.b` and `a.b.c`, not `a`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TypePattern(String);

impl TypePattern {
    /// Checks and keeps `text`; the error says what is wrong with it.
    pub fn parse(text: &str) -> Result<TypePattern, String> {
        if text.is_empty() || text.len() > TYPE_BYTES_MAX {
            return Err(format!("A type pattern has 1 to {TYPE_BYTES_MAX} bytes; this has {}.", text.len()));
        }
        let segments: Vec<&str> = text.split('.').collect();
        for (n, segment) in segments.iter().enumerate() {
            let literal =
                !segment.is_empty() && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
            let open_end = *segment == "**" && n + 1 == segments.len();
            if !(literal || *segment == "*" || open_end) {
                return Err(format!(
                    "'{text}' is no type pattern: segments are letters, digits, '_' and '-', or '*'; '**' only at the end."
                ));
            }
        }
        Ok(TypePattern(text.to_owned()))
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The segments in order.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.0.split('.')
    }

    /// True when an event of type `kind` matches.
    pub fn matches(&self, kind: &str) -> bool {
        let mut given = kind.split('.');
        for want in self.segments() {
            match (want, given.next()) {
                ("**", Some(_)) => return true,
                ("*", Some(_)) => {}
                (want, Some(have)) if want == have => {}
                _ => return false,
            }
        }
        given.next().is_none()
    }
}

impl serde::Serialize for TypePattern {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

impl fmt::Display for TypePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_by_segment() {
        let cases = [
            ("a.b", "a.b", true),
            ("a.b", "a.b.c", false),
            ("a.*", "a.b", true),
            ("a.*", "a", false),
            ("a.*.c", "a.b.c", true),
            ("a.**", "a", false),
            ("a.**", "a.b.c.d", true),
            ("**", "a", true),
            ("*", "a.b", false),
            ("*.b", "a.b", true),
        ];
        for (pattern, kind, expected) in cases {
            assert_eq!(TypePattern::parse(pattern).expect(pattern).matches(kind), expected, "{pattern} ~ {kind}");
        }
        for bad in ["", "a..b", "**.a", "a.b*", "a b", ".", "ä"] {
            assert!(TypePattern::parse(bad).is_err(), "{bad}");
        }
    }
}
