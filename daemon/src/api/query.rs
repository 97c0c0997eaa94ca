//! Query strings: decoded once, unknown names refused, values parsed with the parameter's name in the error.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use percent_encoding::percent_decode_str;
use serde::Serialize;
use serde_json::json;

use super::Call;
use super::body::{self, Reply};
use super::problem::Problem;
use crate::error::{Error, FieldError};
use crate::event::TypePattern;

/// Items of a list without `limit`.
pub const LIMIT_DEFAULT: usize = 50;
/// Items of a list at the most.
pub const LIMIT_MAX: usize = 1000;

/// The parameters of a request.
#[derive(Debug)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads the query of `call`; refuses parameters that are not in `known`, and any that comes twice.
    pub fn read(call: &Call, known: &'static [&'static str]) -> Result<Query, Error> {
        Query::parse(call.uri.query(), known)
    }

    fn parse(text: Option<&str>, known: &[&str]) -> Result<Query, Error> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        let mut fields = Vec::new();
        for pair in text.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decode(name).ok_or_else(|| Error::invalid("query", "has a name that is not UTF-8."))?;
            let mut wrong = |reason: String| fields.push(FieldError { field: name.clone(), reason });
            match decode(value) {
                _ if !known.contains(&name.as_str()) => wrong(body::unknown(&name, known)),
                _ if pairs.iter().any(|(seen, _)| *seen == name) => wrong("may be given once only.".to_owned()),
                None => wrong("is not UTF-8.".to_owned()),
                Some(value) => pairs.push((name, value)),
            }
        }
        if fields.is_empty() { Ok(Query(pairs)) } else { Err(Error::Invalid { code: "invalid_input", fields }) }
    }

    /// The value of `name`; an empty one counts as absent.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str()).filter(|v| !v.is_empty())
    }

    /// As [`Query::get`], owned.
    pub fn text(&self, name: &str) -> Option<String> {
        self.get(name).map(str::to_owned)
    }

    /// The value of `name` as `parse` reads it, an empty one too; `reason` says what would be right.
    pub fn parsed<T>(&self, name: &str, reason: &str, parse: impl Fn(&str) -> Option<T>) -> Result<Option<T>, Error> {
        let value = self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        value.map(|value| parse(value).ok_or_else(|| Error::invalid(name, reason))).transpose()
    }

    /// A yes or no; `?name` alone is a yes.
    pub fn flag(&self, name: &str, default: bool) -> Result<bool, Error> {
        match self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str()) {
            None => Ok(default),
            Some("" | "true" | "1" | "yes") => Ok(true),
            Some("false" | "0" | "no") => Ok(false),
            Some(_) => Err(Error::invalid(name, "must be true or false.")),
        }
    }

    /// Type patterns, separated by commas.
    pub fn patterns(&self, name: &str, count_max: usize) -> Result<Vec<TypePattern>, Error> {
        let Some(text) = self.get(name) else { return Ok(Vec::new()) };
        let patterns: Result<Vec<_>, _> = text.split(',').map(str::trim).map(TypePattern::parse).collect();
        let patterns = patterns.map_err(|reason| Error::invalid(name, reason))?;
        if patterns.len() > count_max {
            return Err(Error::invalid(name, format!("has {} patterns; at most {count_max}.", patterns.len())));
        }
        Ok(patterns)
    }

    /// Answers with one page of `all`, a list in a stable order that is called `list` by its cursors.
    pub fn page<T: Serialize>(&self, list: &str, all: impl IntoIterator<Item = T>) -> Result<Reply, Problem> {
        let (limit, skip) = (self.limit()?, self.cursor::<1>(list)?.map_or(0, |[n]| usize::try_from(n).unwrap_or(0)));
        let mut rest = all.into_iter().skip(skip);
        let items: Vec<T> = rest.by_ref().take(limit).collect();
        let next = rest.next().map(|_| cursor(list, &[i64::try_from(skip + items.len()).unwrap_or(i64::MAX)]));
        body::ok(&json!({ "items": items, "next_cursor": next }))
    }

    /// `limit`: [`LIMIT_DEFAULT`] without one, clamped to [`LIMIT_MAX`].
    pub fn limit(&self) -> Result<usize, Error> {
        Ok(self.count("limit", LIMIT_MAX)?.unwrap_or(LIMIT_DEFAULT))
    }

    /// A number of things, 1 or more; one over `max`, however long it is, counts as `max`.
    pub fn count(&self, name: &str, max: usize) -> Result<Option<usize>, Error> {
        let count = |text: &str| {
            let digits = text.trim_start_matches('0');
            let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            is_number.then(|| digits.parse().unwrap_or(max).min(max))
        };
        self.parsed(name, "must be a whole number, 1 or more.", count)
    }

    /// `cursor`, of which an empty one is the first page: the numbers that [`cursor`] hid, for a list called `list`.
    pub fn cursor<const N: usize>(&self, list: &str) -> Result<Option<[i64; N]>, Error> {
        let read = |text: &str| {
            let text = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
            let numbers = text.strip_prefix(list)?.strip_prefix(':')?;
            let numbers: Option<Vec<i64>> = numbers.split(',').map(|n| n.parse().ok()).collect();
            numbers?.try_into().ok()
        };
        if self.get("cursor").is_none() {
            return Ok(None);
        }
        self.parsed("cursor", "is none that this list gave. Take next_cursor of an earlier answer.", read)
    }
}

/// Leaves `limit` of what was `found`, and gives the cursor of the rest when one more was there. `place` is where an item
/// stands in the list.
pub fn cut<T>(found: &mut Vec<T>, limit: usize, list: &str, place: impl Fn(&T) -> i64) -> Option<String> {
    let more = found.len() > limit;
    found.truncate(limit);
    found.last().filter(|_| more).map(|last| cursor(list, &[place(last)]))
}

/// An opaque cursor of numbers, readable only by the list of that name.
pub fn cursor(list: &str, numbers: &[i64]) -> String {
    let numbers: Vec<String> = numbers.iter().map(i64::to_string).collect();
    URL_SAFE_NO_PAD.encode(format!("{list}:{}", numbers.join(",")))
}

fn decode(text: &str) -> Option<String> {
    let spaced = text.replace('+', " ");
    percent_decode_str(&spaced).decode_utf8().ok().map(std::borrow::Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Result<Query, Error> {
        Query::parse(Some(text), &["types", "limit", "cursor", "named", "q"])
    }

    #[test]
    fn values_are_decoded_and_names_checked() {
        let good = query("q=a%20b+c%26&named&limit=5000&types=a.*,b.**").expect("good");
        assert_eq!(good.get("q"), Some("a b c&"));
        assert!(good.flag("named", false).expect("flag"));
        assert_eq!(good.limit().expect("limit"), LIMIT_MAX);
        let limit = |text: &str| query(text).expect(text).limit().expect(text);
        assert_eq!(
            (limit("limit=007"), limit("limit=99999999999999999999999"), limit("")),
            (7, LIMIT_MAX, LIMIT_DEFAULT)
        );
        assert_eq!(good.patterns("types", 2).expect("patterns").len(), 2);
        assert!(good.patterns("types", 1).is_err());
        for bad in ["typs=a", "q=%ff", "q=1&q=2", "%ff=1"] {
            assert!(matches!(query(bad), Err(Error::Invalid { .. })), "{bad}");
        }
        for bad in ["limit=x", "limit=-1", "limit=0", "limit=1.5", "limit=%2B5", "limit="] {
            assert!(query(bad).expect(bad).limit().is_err(), "{bad}");
        }
        assert!(query("named=maybe").expect("read").flag("named", true).is_err());
        assert!(query("types=a..b").expect("read").patterns("types", 9).is_err());
    }

    #[test]
    fn cursors_belong_to_their_list() {
        let text = format!("cursor={}", cursor("dlq", &[-3, 7]));
        assert_eq!(query(&text).expect("read").cursor("dlq").expect("cursor"), Some([-3, 7]));
        assert!(query(&text).expect("read").cursor::<2>("audit").is_err());
        assert!(query(&text).expect("read").cursor::<1>("dlq").is_err());
        assert!(query("cursor=xx!").expect("read").cursor::<1>("dlq").is_err());
        assert_eq!(query("cursor=").expect("read").cursor::<1>("dlq").expect("none"), None);
    }
}
