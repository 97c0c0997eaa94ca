//! The words of skills: a full-text index, and the search in it.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, params};

use super::Tx;
use crate::error::Error;
use crate::text::words::{self, GAP, MARK, spaced};

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
    let wanted = words::all_of(text);
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
        let wanted: Vec<String> = words::words(wanted).map(|word| spaced(word).to_lowercase()).collect();
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
