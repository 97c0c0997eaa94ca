//! The regular expressions behind `test`, `match`, `capture`, `scan`, `split/2`, `sub` and `gsub`.
//!
//! The engine works in time proportional to the size of the pattern times the length of the text, and a search cannot
//! be interrupted. So a longer text allows only a smaller pattern.

use super::budget::{self, STEP, charge};
use super::value::{Map, Res, V};
use jaq_core::Error;
use regex_bites::bytes::{Match, Regex, RegexBuilder};
use std::rc::Rc;

/// The longest text that is searched.
const MAX_TEXT: usize = 128 << 10;
/// The longest pattern.
const MAX_PATTERN: usize = 4 << 10;
/// Bytes of compiled pattern times bytes of text that a search may cost.
const MAX_WORK: usize = 1 << 28;
/// Sizes of a compiled pattern between which the length of the text decides.
const SIZES: (usize, usize) = (4 << 10, 64 << 10);

/// What a search returns.
#[derive(Clone, Copy)]
pub(super) struct Parts {
    pub mismatches: bool,
    pub matches: bool,
}

#[derive(Default)]
struct Flags {
    global: bool,
    no_empty: bool,
}

fn text(value: &V) -> Res<&Rc<String>> {
    match value {
        V::Str(text) => Ok(text),
        other => Err(Error::typ(other.share(), "string")),
    }
}

fn compile(pattern: &str, flags: &str, limit: usize) -> Result<Regex, String> {
    let mut builder = RegexBuilder::new(pattern);
    builder.size_limit(limit).nest_limit(32);
    for flag in flags.chars() {
        match flag {
            'g' | 'n' => {}
            'i' => _ = builder.case_insensitive(true),
            'x' => _ = builder.ignore_whitespace(true),
            's' => _ = builder.dot_matches_new_line(true),
            'm' => _ = builder.multi_line(true),
            'p' => _ = builder.multi_line(true).dot_matches_new_line(true),
            'l' => _ = builder.swap_greed(true),
            other => return Err(format!("invalid regex flag: {other}")),
        }
    }
    builder.build().map_err(|error| match error.to_string() {
        // the engine's own words for what `limit` refuses
        text if text.contains("size limit") => "regex is too complex for a text of this length".to_owned(),
        text => format!("invalid regex: {text}"),
    })
}

/// Searches `input`; the parts that do not match are texts, the matches are arrays of objects, one for each group.
pub(super) fn search(input: &V, pattern: &V, flags: &V, wanted: Parts) -> Res {
    let (input, pattern, flags) = (text(input)?, text(pattern)?, text(flags)?);
    if input.len() > MAX_TEXT {
        return Err(Error::str(format_args!("text of {} bytes is too long for a regex", input.len())));
    }
    if pattern.len() > MAX_PATTERN {
        return Err(Error::str(format_args!("regex of {} bytes is too long", pattern.len())));
    }
    // every group makes the engine copy two more positions at each step
    let groups = 1 + pattern.bytes().filter(|b| *b == b'(').count() / 4;
    let limit = (MAX_WORK / groups / (input.len() + 64)).clamp(SIZES.0, SIZES.1);
    let key = format!("{flags}/{pattern}");
    let regex = budget::cached_regex(&key, limit, || {
        charge(limit);
        compile(pattern, flags, limit)
    });
    budget::check_time();
    let flags = Flags { global: flags.contains('g'), no_empty: flags.contains('n') };
    let regex = regex.map_err(Error::str)?;
    Ok(run(input, &regex, &flags, wanted))
}

fn run(input: &str, regex: &Regex, flags: &Flags, wanted: Parts) -> V {
    charge(STEP + input.len());
    let (mut out, mut last) = (Vec::new(), 0);
    let mut chars = Chars { text: input.as_bytes(), byte: 0, char: 0 };
    for captures in regex.captures_iter(input.as_bytes()) {
        budget::check_time();
        let Some(whole) = captures.get(0) else { continue };
        if flags.no_empty && whole.is_empty() {
            continue;
        }
        if wanted.mismatches {
            charge(STEP);
            out.push(V::text(String::from_utf8_lossy(&input.as_bytes()[last..whole.start()])));
            last = whole.end();
        }
        if wanted.matches {
            let names = regex.capture_names();
            let groups =
                captures.iter().zip(names).filter_map(|(group, name)| Some(describe(&group?, name, &mut chars)));
            out.push(groups.collect());
        }
        if !flags.global {
            break;
        }
    }
    if wanted.mismatches {
        out.push(V::text(String::from_utf8_lossy(&input.as_bytes()[last..])));
    }
    V::array(out)
}

fn describe(group: &Match<'_>, name: Option<&str>, chars: &mut Chars<'_>) -> V {
    charge(2 * STEP);
    let found = String::from_utf8_lossy(group.as_bytes());
    let mut fields = Map::new();
    let mut field = |name: &str, value| _ = fields.insert(Rc::new(name.to_owned()), value);
    field("offset", V::from(chars.at(group.start())));
    field("length", V::from(found.chars().count()));
    field("string", V::text(found));
    if let Some(name) = name {
        field("name", V::text(name));
    }
    V::object(fields)
}

/// Positions in characters, counted on from the last one asked for.
struct Chars<'t> {
    text: &'t [u8],
    byte: usize,
    char: usize,
}

impl Chars<'_> {
    fn at(&mut self, byte: usize) -> usize {
        if byte < self.byte {
            (self.byte, self.char) = (0, 0);
        }
        charge((byte - self.byte) / 4);
        // bytes that do not continue a character begin one
        self.char += self.text[self.byte..byte].iter().filter(|b| **b & 0xC0 != 0x80).count();
        self.byte = byte;
        self.char
    }
}
