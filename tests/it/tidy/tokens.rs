//! Just enough of Rust's grammar to read paths and string literals without being fooled by comments.

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An identifier, keyword or number.
    Word,
    /// The inside of a string, byte string or character literal, escapes as written.
    Text,
    /// `::` or one other character.
    Mark,
}

/// A piece of Rust code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub kind: Kind,
    pub text: String,
    /// Counted from 1.
    pub line: usize,
}

impl Token {
    /// Whether this is the word or mark `text`; never true for a literal.
    pub fn is(&self, text: &str) -> bool {
        self.kind != Kind::Text && self.text == text
    }
}

/// The tokens of `source` without comments, white space and lifetimes.
pub fn tokens(source: &str) -> Vec<Token> {
    let mut reader = Reader { chars: source.chars().collect(), at: 0, line: 1, out: Vec::new() };
    while reader.at < reader.chars.len() {
        reader.next();
    }
    reader.out
}

struct Reader {
    chars: Vec<char>,
    at: usize,
    line: usize,
    out: Vec<Token>,
}

impl Reader {
    fn peek(&self, ahead: usize) -> char {
        self.chars.get(self.at + ahead).copied().unwrap_or('\0')
    }

    fn take(&mut self) -> char {
        let c = self.peek(0);
        self.at += 1;
        self.line += usize::from(c == '\n');
        c
    }

    fn push(&mut self, kind: Kind, text: String, line: usize) {
        self.out.push(Token { kind, text, line });
    }

    fn next(&mut self) {
        let (c, line) = (self.peek(0), self.line);
        match (c, self.peek(1)) {
            ('/', '/') => self.skip_line(),
            ('/', '*') => self.skip_block(),
            ('"', _) => self.string(),
            ('\'', _) => self.quote(),
            (':', ':') => {
                self.at += 2;
                self.push(Kind::Mark, "::".to_owned(), line);
            }
            _ if c.is_whitespace() => {
                self.take();
            }
            _ if c.is_alphanumeric() || c == '_' => self.word(),
            _ => {
                let mark = self.take();
                self.push(Kind::Mark, mark.to_string(), line);
            }
        }
    }

    fn skip_line(&mut self) {
        while self.at < self.chars.len() && self.peek(0) != '\n' {
            self.at += 1;
        }
    }

    fn skip_block(&mut self) {
        let mut depth = 0;
        while self.at < self.chars.len() {
            match (self.peek(0), self.peek(1)) {
                ('/', '*') => {
                    depth += 1;
                    self.at += 2;
                }
                ('*', '/') => {
                    depth -= 1;
                    self.at += 2;
                    if depth == 0 {
                        return;
                    }
                }
                _ => {
                    self.take();
                }
            }
        }
    }

    fn string(&mut self) {
        let line = self.line;
        let mut text = String::new();
        self.take();
        while self.at < self.chars.len() && self.peek(0) != '"' {
            let c = self.take();
            text.push(c);
            if c == '\\' {
                text.push(self.take());
            }
        }
        self.take();
        self.push(Kind::Text, text, line);
    }

    fn raw_string(&mut self) {
        let line = self.line;
        let hashes = (0..).take_while(|n| self.peek(*n) == '#').count();
        self.at += hashes + 1;
        let ends = |reader: &Reader| reader.peek(0) == '"' && (1..=hashes).all(|n| reader.peek(n) == '#');
        let mut text = String::new();
        while self.at < self.chars.len() && !ends(self) {
            text.push(self.take());
        }
        self.at += hashes + 1;
        self.push(Kind::Text, text, line);
    }

    /// A character literal, or a lifetime, which is dropped.
    fn quote(&mut self) {
        let line = self.line;
        if self.peek(1) != '\\' && self.peek(2) != '\'' {
            self.at += 1;
            while self.peek(0).is_alphanumeric() || self.peek(0) == '_' {
                self.at += 1;
            }
            return;
        }
        self.take();
        let mut text = String::new();
        while self.at < self.chars.len() && self.peek(0) != '\'' {
            let c = self.take();
            text.push(c);
            if c == '\\' {
                text.push(self.take());
            }
        }
        self.take();
        self.push(Kind::Text, text, line);
    }

    fn word(&mut self) {
        let line = self.line;
        let mut text = String::new();
        while self.peek(0).is_alphanumeric() || self.peek(0) == '_' {
            text.push(self.take());
        }
        match (text.as_str(), self.peek(0), self.peek(1)) {
            ("r" | "br" | "cr", '"', _) | ("r" | "br" | "cr", '#', '"' | '#') => self.raw_string(),
            ("b" | "c", '"', _) => self.string(),
            ("b", '\'', _) => self.quote(),
            _ => self.push(Kind::Word, text, line),
        }
    }
}

/// Goal: comments, literals of every form and lifetimes do not hide or invent words.
#[test]
fn reads_literals_and_comments() {
    let source = r###"
        // crate::no
        /* crate::no /* nested */ crate::no */
        use crate::{store, bus::x}; // "
        let a: &'static str = "a \" crate::no";
        let b = (r#"crate::"no""#, b"bytes", 'c', '\'', b'\n', '"');
        crate::yes
    "###;
    let tokens = tokens(source);
    let texts: Vec<&str> = tokens.iter().filter(|t| t.kind == Kind::Text).map(|t| t.text.as_str()).collect();
    assert_eq!(texts, [r#"a \" crate::no"#, r#"crate::"no""#, "bytes", "c", "\\'", "\\n", "\""]);
    let words: Vec<&str> = tokens.iter().filter(|t| t.kind == Kind::Word).map(|t| t.text.as_str()).collect();
    assert_eq!(words, ["use", "crate", "store", "bus", "x", "let", "a", "str", "let", "b", "crate", "yes"]);
    assert_eq!(tokens.last().map(|t| t.line), Some(7));
}
