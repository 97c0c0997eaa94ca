//! What a command prints: lines and tables for people, documents for programs.

use std::io::{self, IsTerminal, Write};

use comfy_table::{ColumnConstraint, ContentArrangement, LineStyle, Table as Grid, TableStyle};
use serde_json::Value;

use super::failure::Failure;
use crate::config;

/// Columns that a line for people has when stdout is no terminal.
const WIDTH_ELSEWHERE: usize = 120;
/// Columns of a terminal that does not tell.
const WIDTH_UNKNOWN: u16 = 80;
/// Narrower terminals are treated as this wide; wrapped lines read better than one letter a line.
const WIDTH_MIN: usize = 40;

/// Columns that are copied into the next command, and are never broken into lines.
const WHOLE: [&str; 4] = ["ID", "DELIVERY", "FINGERPRINT", "SEQUENCE"];
/// Hex digits of a digest that is shown.
pub const DIGEST_CHARS: usize = 12;
/// Characters of any other column that may still be read well when the rest is wrapped.
const CELL_CHARS_LEAST: usize = 16;

/// Standard output with what is known of its reader.
pub struct Out {
    sink: Box<dyn Write>,
    json: bool,
    /// Columns of the terminal; `None` when stdout is none.
    columns: Option<usize>,
}

impl Out {
    /// Standard output; `json` asks for documents instead of text.
    pub fn stdout(json: bool) -> Out {
        let columns = io::stdout().is_terminal().then(|| {
            let measured = || terminal_size::terminal_size_of(io::stdout()).map(|(width, _)| width.0);
            let columns = config::client_env().columns.or_else(measured).unwrap_or(WIDTH_UNKNOWN);
            usize::from(columns).max(WIDTH_MIN)
        });
        Out { sink: Box::new(io::BufWriter::new(io::stdout())), json, columns }
    }

    #[cfg(test)]
    pub fn to(sink: impl Write + 'static, json: bool, columns: Option<usize>) -> Out {
        Out { sink: Box::new(sink), json, columns }
    }

    /// Whether a program reads this.
    pub fn json(&self) -> bool {
        self.json
    }

    /// Whether a person reads this.
    pub fn is_terminal(&self) -> bool {
        self.columns.is_some()
    }

    /// Columns that a line may have.
    pub fn width(&self) -> usize {
        self.columns.unwrap_or(WIDTH_ELSEWHERE)
    }

    /// One line. The text must be clean of control characters already; see [`clean`].
    pub fn line(&mut self, line: &str) -> Result<(), Failure> {
        writeln!(self.sink, "{line}").map_err(|error| Failure::of_output(&error))
    }

    /// Words as they come, without an end of line. They must be clean already; see [`clean_lines`].
    pub fn words(&mut self, words: &str) -> Result<(), Failure> {
        self.sink.write_all(words.as_bytes()).map_err(|error| Failure::of_output(&error))
    }

    /// Bytes as they came, ended by a line break.
    pub fn raw(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let end: &[u8] = if bytes.ends_with(b"\n") { b"" } else { b"\n" };
        self.sink.write_all(bytes).and_then(|()| self.sink.write_all(end)).map_err(|error| Failure::of_output(&error))
    }

    /// Hands what was printed to the reader.
    pub fn flush(&mut self) -> Result<(), Failure> {
        self.sink.flush().map_err(|error| Failure::of_output(&error))
    }

    /// One line to stderr, after everything printed so far.
    pub fn complain(&mut self, line: &str) {
        // Nobody can be told that stderr, or a stdout that is about to be closed, does not take more.
        drop(self.sink.flush());
        drop(writeln!(io::stderr().lock(), "{line}"));
    }

    /// Asks a yes-or-no question on the terminal; `None` when no person is there to answer.
    pub fn ask(&mut self, question: &str) -> Option<bool> {
        if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            return None;
        }
        drop(self.sink.flush());
        let mut stderr = io::stderr().lock();
        write!(stderr, "{question} [y/N] ").and_then(|()| stderr.flush()).ok()?;
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).ok()?;
        Some(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
    }

    /// A table: fitted to the terminal, or aligned and whole when a program or file takes it. Where the terminal is too
    /// narrow for columns, each row becomes a block of lines.
    pub fn table(&mut self, head: &[&str], rows: &[Vec<String>]) -> Result<(), Failure> {
        // The cells hold what others wrote; a table cell is one line.
        let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| clean(cell)).collect()).collect();
        if self.columns.is_some_and(|columns| least_width(head, &rows) > columns) {
            return self.blocks(head, &rows);
        }
        let mut grid = Grid::new();
        grid.set_header(head.iter().map(|name| (*name).to_owned()).collect::<Vec<String>>());
        match self.columns {
            Some(columns) => {
                grid.load_style(TableStyle::new().header_separator(LineStyle::none().fill('─')));
                grid.set_content_arrangement(ContentArrangement::Dynamic);
                grid.set_width(u16::try_from(columns).unwrap_or(u16::MAX));
            }
            None => {
                grid.load_style(TableStyle::new());
                grid.set_content_arrangement(ContentArrangement::Disabled);
            }
        }
        grid.add_rows(rows);
        for (column, name) in grid.column_iter_mut().zip(head) {
            column.set_padding((0, 2));
            if WHOLE.contains(name) {
                column.set_constraint(ColumnConstraint::ContentWidth);
            }
        }
        self.line(&grid.trim_fmt())
    }

    fn blocks(&mut self, head: &[&str], rows: &[Vec<String>]) -> Result<(), Failure> {
        for (at, row) in rows.iter().enumerate() {
            if at > 0 {
                self.line("")?;
            }
            let filled = head.iter().zip(row).filter(|(_, cell)| !cell.is_empty());
            let pairs: Vec<(&str, String)> = filled.map(|(name, cell)| (*name, cell.clone())).collect();
            self.pairs(&pairs)?;
        }
        Ok(())
    }

    /// `name  value` lines, the values aligned.
    pub fn pairs(&mut self, pairs: &[(&str, String)]) -> Result<(), Failure> {
        let width = pairs.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        for (name, value) in pairs {
            self.line(&format!("{name:width$}  {}", clean(value)))?;
        }
        Ok(())
    }
}

/// The fewest columns that such a table can be read in.
fn least_width(head: &[&str], rows: &[Vec<String>]) -> usize {
    let widest = |at: usize| rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max();
    let column = |(at, name): (usize, &&str)| {
        let cells = widest(at).unwrap_or(0);
        let cells = if WHOLE.contains(name) { cells } else { cells.min(CELL_CHARS_LEAST) };
        cells.max(name.chars().count()) + 2
    };
    head.iter().enumerate().map(column).sum()
}

/// `text` on one line without anything that would steer a terminal: control and direction-changing characters become
/// `�`, line breaks and tabs a space. Event data is whatever its producer wrote.
pub fn clean(text: &str) -> String {
    text.chars().map(|c| if matches!(c, '\n' | '\t') { ' ' } else { harmless(c) }).collect()
}

/// As [`clean`], for a text of several lines.
pub fn clean_lines(text: &str) -> String {
    text.replace("\r\n", "\n").chars().map(|c| if matches!(c, '\n' | '\t') { c } else { harmless(c) }).collect()
}

fn harmless(c: char) -> char {
    let steers = c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        || c == '\u{feff}';
    if steers { char::REPLACEMENT_CHARACTER } else { c }
}

/// At most `chars_max` characters, the last one `…` when something was cut.
pub fn shorten(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        None => text.to_owned(),
        Some(_) => text.chars().take(chars_max.saturating_sub(1)).chain(['…']).collect(),
    }
}

/// The begin of a digest: as much of it as lists show, and as tells it from others.
pub fn digest(value: &Value) -> String {
    shorten(&text(value), DIGEST_CHARS)
}

/// A JSON value as a cell: a string without quotes, null as nothing, the rest compact.
pub fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => clean(text),
        other => clean(&other.to_string()),
    }
}

/// As [`text`], and `-` for nothing.
pub fn text_or_dash(value: &Value) -> String {
    let text = text(value);
    if text.is_empty() { "-".to_owned() } else { text }
}

/// `2026-11-22T01:13:00.123Z` as `2026-11-22 01:13:00Z`; anything else unchanged.
pub fn time(value: &Value) -> String {
    let text = text(value);
    match text.split_once('T') {
        Some((date, clock)) if clock.ends_with('Z') && clock.len() >= 9 && clock.is_ascii() => {
            format!("{date} {}Z", &clock[..8])
        }
        _ => text,
    }
}

/// `3 d 4 h`, `5 min 10 s`, `42 s`: the two largest units.
pub fn duration(seconds: u64) -> String {
    let units = [("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)];
    let mut left = seconds;
    let mut parts = Vec::new();
    for (unit, size) in units {
        if left >= size || (unit == "s" && parts.is_empty()) {
            parts.push(format!("{} {unit}", left / size));
            left %= size;
        }
    }
    parts.truncate(2);
    parts.join(" ")
}

/// `1.5 GiB`, `12 KiB`, `7 B`.
pub fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut whole, mut rest, mut unit) = (bytes, 0, 0);
    while whole >= 1024 && unit + 1 < units.len() {
        rest = whole % 1024 * 10 / 1024;
        whole /= 1024;
        unit += 1;
    }
    if unit == 0 || whole >= 10 {
        format!("{whole} {}", units[unit])
    } else {
        format!("{whole}.{rest} {}", units[unit])
    }
}

/// `3 events`, `1 event`.
pub fn count(number: u64, thing: &str) -> String {
    match (number, thing.strip_suffix('y')) {
        (1, _) => format!("1 {thing}"),
        (_, Some(stem)) => format!("{number} {stem}ies"),
        (_, None) => format!("{number} {thing}s"),
    }
}

#[cfg(test)]
pub mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What was printed, for other modules' tests.
    #[derive(Clone, Default)]
    pub struct Printed(Arc<Mutex<Vec<u8>>>);

    impl Printed {
        pub fn text(&self) -> String {
            String::from_utf8(self.0.lock().expect("no writer panics").clone()).expect("output is UTF-8")
        }
    }

    impl Write for Printed {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no writer panics").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nothing_of_an_event_steers_the_terminal() {
        assert_eq!(clean("a\u{1b}[31mb\nc\u{202e}d"), "a�[31mb c�d");
        assert_eq!(clean("\u{61c}a\u{200f}\u{2028}\u{2029}\u{2066}\u{feff}"), "�a�����");
        assert_eq!(clean_lines("a\r\nb\rc"), "a\nb�c");
        assert_eq!(shorten("abcdef", 4), "abc…");
        assert_eq!(shorten("abcd", 4), "abcd");
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!(size(7), "7 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(20 * 1024 * 1024), "20 MiB");
        assert_eq!(duration(0), "0 s");
        assert_eq!(duration(3_700), "1 h 1 min");
        assert_eq!(duration(90_061), "1 d 1 h");
        assert_eq!(count(1, "event"), "1 event");
        assert_eq!(count(2, "delivery"), "2 deliveries");
        assert_eq!(time(&"2026-11-22T01:13:00.123Z".into()), "2026-11-22 01:13:00Z");
        assert_eq!(time(&"soon".into()), "soon");
    }

    #[test]
    fn tables_fit_a_terminal_and_stay_whole_elsewhere() {
        let rows = vec![vec!["a".to_owned(), "word ".repeat(30)], vec!["\u{1b}b".to_owned(), String::new()]];
        let printed = Printed::default();
        Out::to(printed.clone(), false, Some(50)).table(&["NAME", "TEXT"], &rows).expect("memory takes it");
        let shown = printed.text();
        assert!(shown.lines().all(|line| line.chars().count() <= 50), "{shown}");
        let printed = Printed::default();
        Out::to(printed.clone(), false, Some(11))
            .table(&["NAME", "TEXT"], &[vec!["a".into(), "b c".into()]])
            .expect("memory");
        assert_eq!(printed.text(), "NAME  a\nTEXT  b c\n");
        let printed = Printed::default();
        Out::to(printed.clone(), false, None).table(&["NAME", "TEXT"], &rows).expect("memory takes it");
        assert_eq!(printed.text().lines().count(), 3, "{}", printed.text());
        assert!(!printed.text().contains('\u{1b}'));
        assert!(printed.text().lines().all(|line| line.trim_end() == line));
    }
}
