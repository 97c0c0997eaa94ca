//! The words of skills: a full-text index, and the search in it.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Connection, OptionalExtension, params};

use super::Tx;
use crate::error::Error;

/// Stands between characters of scripts that put no spaces between words, so that each is a word to the index.
const GAP: char = '\u{200b}';
/// Stands before what was found, in the fields that the database gives.
const MARK: char = '\u{1}';
/// Characters of a snippet before what was found, and from there on.
const SNIPPET_BEFORE: usize = 60;
const SNIPPET_AFTER: usize = 180;
/// Characters of a field up to which the database marks what was found. Marking takes time by the square of the hits, so a
/// longer field is searched for the words as they stand there.
const MARKED_MAX: usize = 8192;
/// What a hit in each field weighs.
const WEIGHTS: &str = "10.0, 5.0, 3.0, 1.0";
/// The fields, in the order of the index.
const FIELDS: [&str; 4] = ["name", "tags", "description", "body"];

/// What is indexed of a skill.
#[derive(Debug, Clone)]
pub struct Words {
    /// Its name.
    pub name: String,
    /// Digest of its content.
    pub digest: String,
    /// Its tags.
    pub tags: String,
    /// What it does and when to use it.
    pub description: String,
    /// Its instructions.
    pub body: String,
}

/// A skill that has the words.
#[derive(Debug, Clone, PartialEq)]
pub struct Hit {
    /// Its name.
    pub name: String,
    /// The higher, the better it fits.
    pub score: f64,
    /// The field in which the words weigh most: `name`, `tags`, `description` or `body`.
    pub field: &'static str,
    /// That field around the first of them.
    pub snippet: String,
}

fn unwritten(error: rusqlite::Error) -> Error {
    Error::internal("indexing a skill")(error)
}

fn unread(error: rusqlite::Error) -> Error {
    Error::internal("searching the skills")(error)
}

/// The digest of the content that is indexed of each skill.
pub fn indexed(conn: &Connection) -> Result<BTreeMap<String, String>, Error> {
    conn.prepare_cached("SELECT name, digest FROM skill_indexed")
        .and_then(|mut s| s.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect())
        .map_err(unread)
}

/// Indexes a skill in the place of what is indexed of it.
pub fn put(tx: &Tx<'_>, words: &Words) -> Result<(), Error> {
    remove(tx, &words.name)?;
    tx.conn
        .prepare_cached("INSERT INTO skill_indexed (name, digest) VALUES (?1, ?2)")
        .and_then(|mut s| s.execute(params![words.name, words.digest]))
        .map_err(unwritten)?;
    let id = tx.conn.last_insert_rowid();
    let [name, tags, description, body] =
        [&words.name, &words.tags, &words.description, &words.body].map(|text| spaced(text));
    tx.conn
        .prepare_cached("INSERT INTO skill_words (rowid, name, tags, description, body) VALUES (?1, ?2, ?3, ?4, ?5)")
        .and_then(|mut s| s.execute(params![id, name, tags, description, body]))
        .map(drop)
        .map_err(unwritten)
}

/// Takes a skill out of the index.
pub fn remove(tx: &Tx<'_>, name: &str) -> Result<(), Error> {
    let id: Option<i64> = tx
        .conn
        .prepare_cached("DELETE FROM skill_indexed WHERE name = ?1 RETURNING id")
        .and_then(|mut s| s.query_row([name], |row| row.get(0)).optional())
        .map_err(unwritten)?;
    let Some(id) = id else { return Ok(()) };
    tx.conn
        .prepare_cached("DELETE FROM skill_words WHERE rowid = ?1")
        .and_then(|mut s| s.execute([id]))
        .map(drop)
        .map_err(unwritten)
}

/// The skills that have every word of `text`, or words that begin so, best first; none when `text` has no word.
pub fn search(conn: &Connection, text: &str, rows_max: usize) -> Result<Vec<Hit>, Error> {
    let wanted = expression(text);
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    // Only the order by `rank` lets the index sort, so that what is not shown is not marked; the weights are those of this query.
    let fields: String = (FIELDS.iter().enumerate())
        .map(|(n, f)| {
            format!(
                ", CASE WHEN length({f}) <= {MARKED_MAX} THEN highlight(skill_words, {n}, char(1), '') ELSE {f} END"
            )
        })
        .collect();
    let sql = format!(
        "SELECT (SELECT i.name FROM skill_indexed i WHERE i.id = skill_words.rowid), -rank{fields} FROM skill_words \
         WHERE skill_words MATCH ?1 AND rank MATCH 'bm25({WEIGHTS})' ORDER BY rank LIMIT ?2"
    );
    let hit = |row: &rusqlite::Row<'_>| {
        let texts: [String; 4] = [row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?];
        let (place, at) = found_at(&texts, text);
        Ok(Hit { name: row.get(0)?, score: row.get(1)?, field: FIELDS[place], snippet: around(&texts[place], at) })
    };
    let rows_max = i64::try_from(rows_max).unwrap_or(i64::MAX);
    let mut hits: Vec<Hit> = conn
        .prepare_cached(&sql)
        .and_then(|mut s| s.query_map(params![wanted, rows_max], hit)?.collect())
        .map_err(unread)?;
    hits.sort_by(|one, other| other.score.total_cmp(&one.score).then_with(|| one.name.cmp(&other.name)));
    Ok(hits)
}

/// In which of the fields the first word is, and from which byte on: the first that is marked, or else one too long for marks.
fn found_at(texts: &[String; 4], wanted: &str) -> (usize, usize) {
    let marked = || texts.iter().enumerate().find_map(|(place, text)| Some((place, text.find(MARK)?)));
    let long = || texts.iter().enumerate().filter(|(_, text)| text.chars().count() > MARKED_MAX);
    let as_it_stands = || {
        let wanted: Vec<String> = words(wanted).map(|word| spaced(word).to_lowercase()).collect();
        long().find_map(|(place, text)| {
            let lower = text.to_lowercase();
            let at = wanted.iter().filter_map(|word| lower.find(word.as_str())).min()?;
            // Few characters have another length in lower case, so this is there, or near.
            Some((place, text.floor_char_boundary(at)))
        })
    };
    marked().or_else(as_it_stands).or_else(|| long().next().map(|(place, _)| (place, 0))).unwrap_or((0, 0))
}

/// What is shown of `text` around the byte `at`.
pub(super) fn around(text: &str, at: usize) -> String {
    let shown = |c: &char| !matches!(*c, GAP | MARK);
    let (before, after) = text.split_at(at);
    let (mut before, mut after) = (before.chars().rev().filter(shown), after.chars().filter(shown));
    let mut snippet: Vec<char> = before.by_ref().take(SNIPPET_BEFORE).collect();
    snippet.extend(before.next().map(|_| '…'));
    snippet.reverse();
    snippet.extend(after.by_ref().take(SNIPPET_AFTER));
    snippet.extend(after.next().map(|_| '…'));
    snippet.into_iter().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The words that are looked for in `text`. One without a letter or digit is none to the index, and would find nothing.
pub fn words(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control() || c == '"');
    words.filter(|word| word.chars().any(char::is_alphanumeric))
}

/// The words of `text` as an expression of the index: each a phrase whose last word may go on, once.
pub(super) fn expression(text: &str) -> String {
    let words: BTreeSet<String> = words(text).map(|word| spaced(word).to_lowercase()).collect();
    words.iter().map(|word| format!("\"{word}\"*")).collect::<Vec<_>>().join(" ")
}

/// `text` with gaps around each character of a script that puts no spaces between words.
pub(super) fn spaced(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars().filter(|c| !matches!(*c, GAP | MARK | '\0')) {
        if is_a_word(c) {
            out.extend([GAP, c, GAP]);
        } else {
            out.push(c);
        }
    }
    out
}

/// Thai, Lao, Myanmar, Khmer, kana and ideographs: their scripts are written without spaces between words.
fn is_a_word(c: char) -> bool {
    matches!(u32::from(c),
        0x0e00..=0x0eff | 0x1000..=0x109f | 0x1780..=0x17ff | 0x3040..=0x30ff | 0x31f0..=0x31ff
        | 0x3400..=0x4dbf | 0x4e00..=0x9fff | 0xf900..=0xfaff | 0xff66..=0xff9d | 0x2_0000..=0x3_ffff)
}
