//! Which sessions there are, and what was said in them.

use rusqlite::{Connection, Row, params};

use super::{COLUMNS, Kind, Role, SessionRow, session_of, unread};
use crate::clock::Millis;
use crate::error::Error;
use crate::store::skill_words::around;
use crate::text::words::{all_of, words};

/// Which sessions are meant.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Those of this agent.
    pub agent: Option<String>,
    /// Those that this principal began.
    pub principal: Option<String>,
    /// Those of this kind.
    pub kind: Option<Kind>,
    /// Those that are closed, or those that are not.
    pub closed: Option<bool>,
}

/// Sessions, those that changed last first; `before` is where the page before ended.
pub fn sessions(
    conn: &Connection,
    filter: &Filter,
    before: Option<(Millis, i64)>,
    rows_max: usize,
) -> Result<Vec<SessionRow>, Error> {
    let (at_ms, number) = before.unwrap_or((i64::MAX, i64::MAX));
    let sql = format!(
        "SELECT {COLUMNS} FROM session WHERE closed < 2 AND (updated_ms, number) < (?1, ?2) \
         AND (?3 IS NULL OR agent = ?3) AND (?4 IS NULL OR principal = ?4) AND (?5 IS NULL OR kind = ?5) \
         AND (?6 IS NULL OR closed = ?6) ORDER BY updated_ms DESC, number DESC LIMIT ?7"
    );
    conn.prepare_cached(&sql)
        .and_then(|mut s| {
            let kind = filter.kind.map(|kind| kind as i64);
            let rows_max = i64::try_from(rows_max).unwrap_or(i64::MAX);
            let given = params![at_ms, number, filter.agent, filter.principal, kind, filter.closed, rows_max];
            s.query_map(given, session_of)?.collect()
        })
        .map_err(unread)
}

/// A message that has the words.
#[derive(Debug, Clone, PartialEq)]
pub struct Hit {
    /// Its session's id.
    pub session: String,
    /// That session's title.
    pub title: Option<String>,
    /// That session's agent.
    pub agent: String,
    /// The message's id.
    pub message: String,
    /// Whose words.
    pub role: Role,
    /// When it was appended.
    pub created_ms: Millis,
    /// The higher, the better it fits.
    pub score: f64,
    /// Its text around the first of the words.
    pub snippet: String,
}

/// Messages that have every word of `wanted`, or words that begin so, best first; none when it has no word.
pub fn search(conn: &Connection, wanted: &str, filter: &Filter, rows_max: usize) -> Result<Vec<Hit>, Error> {
    let sought = all_of(wanted);
    if sought.is_empty() {
        return Ok(Vec::new());
    }
    let hit = |row: &Row<'_>| {
        let text: String = row.get(6)?;
        Ok(Hit {
            session: row.get(0)?,
            title: row.get(1)?,
            agent: row.get(2)?,
            message: row.get(3)?,
            role: Role::of_code(row.get(4)?),
            created_ms: row.get(5)?,
            score: row.get(7)?,
            snippet: snippet(&text, wanted),
        })
    };
    conn.prepare_cached(
        "SELECT s.id, s.title, s.agent, m.id, m.role, m.created_ms, m.text, -w.rank FROM message_words w \
         JOIN message m ON m.number = w.rowid JOIN session s ON s.number = m.session \
         WHERE message_words MATCH ?1 AND s.closed < 2 AND (?2 IS NULL OR s.agent = ?2) \
         AND (?3 IS NULL OR s.principal = ?3) ORDER BY w.rank LIMIT ?4",
    )
    .and_then(|mut s| {
        let rows_max = i64::try_from(rows_max).unwrap_or(i64::MAX);
        s.query_map(params![sought, filter.agent, filter.principal, rows_max], hit)?.collect()
    })
    .map_err(unread)
}

/// `text` around the first of the words that are looked for; its begin where they stand there in another form.
fn snippet(text: &str, wanted: &str) -> String {
    let lower = text.to_lowercase();
    let at = words(wanted).filter_map(|word| lower.find(&word.to_lowercase())).min().unwrap_or(0);
    // Few characters have another length in lower case, so this is there, or near.
    around(text, text.floor_char_boundary(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: no text and no words, of whatever script, are cut within a character.
    #[test]
    fn snippets_of_any_script() {
        let long = format!("{}日本語のテキスト", "İ".repeat(300));
        assert!(snippet(&long, "テキスト").contains("テキスト"), "{}", snippet(&long, "テキスト"));
        for (text, wanted) in [("ﬁnd", "ﬁ"), ("", "x"), ("ẞ", "ß"), ("e\u{301}a", "é"), ("a\0b", "b")] {
            assert!(snippet(text, wanted).chars().count() <= text.chars().count());
        }
    }
}
