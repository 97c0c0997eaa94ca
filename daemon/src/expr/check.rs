//! What is refused before an expression ever runs, and the ticks that bound it when it does.

use super::natives::TICK;
use super::{CompileError, prelude, terms};
use jaq_core::load::lex::{Lexer, Tok, Token};
use jaq_core::load::parse::{BinaryOp, Parser, Term};
use jaq_core::path::{Part, Path};

/// Bytes of source text.
pub(super) const MAX_SOURCE: usize = 8 << 10;
/// Parentheses, brackets, braces and texts open at once.
const MAX_NESTING: usize = 64;
/// Words, numbers, operators and other tokens.
const MAX_TOKENS: usize = 4096;
/// Levels of a term between two ticks.
const TICK_EVERY: usize = 8;

/// Functions of jq that are not here, and why.
const REFUSED: &[(&str, &str)] = &[
    ("repeat", "never ends; use range, until or recurse"),
    ("input", "an expression has one input"),
    ("inputs", "an expression has one input"),
    ("input_line_number", "an expression has one input"),
    ("input_filename", "an expression has one input"),
    ("debug", "an expression has no log"),
    ("stderr", "an expression has no log"),
    ("env", "an expression cannot read the environment"),
    ("$ENV", "an expression cannot read the environment"),
    ("$__loc__", "an expression has no file"),
    ("halt", "an expression cannot end the program"),
    ("halt_error", "an expression cannot end the program"),
    ("import", "modules are not available"),
    ("include", "modules are not available"),
    ("module", "modules are not available"),
    ("modulemeta", "modules are not available"),
    ("get_search_list", "modules are not available"),
    ("jn", "has no bound"),
    ("yn", "has no bound"),
];

/// An error that says where in `source` the slice `at` of it stands.
pub(super) fn error_at(source: &str, at: &str, what: &str) -> CompileError {
    let offset = (at.as_ptr().addr()).checked_sub(source.as_ptr().addr()).filter(|offset| *offset <= source.len());
    let Some(before) = offset.and_then(|offset| source.get(..offset)) else {
        return CompileError { message: what.to_owned() };
    };
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or(before).chars().count() + 1;
    CompileError { message: format!("line {line}, column {column}: {what}") }
}

/// Bounds size and nesting, so that the recursive parser behind it is safe.
pub(super) fn scan(source: &str) -> Result<(), CompileError> {
    if source.len() > MAX_SOURCE {
        let message = format!("is {} bytes long, more than {MAX_SOURCE}", source.len());
        return Err(CompileError { message });
    }
    let mut open: Vec<char> = Vec::new();
    let mut chars = source.char_indices();
    while let Some((at, c)) = chars.next() {
        match (open.last(), c) {
            (Some('"'), '\\') => {
                if let Some((_, '(')) = chars.next() {
                    open.push('(');
                }
            }
            (Some('"'), '"') => _ = open.pop(),
            (Some('"'), _) => {}
            (_, '#') => _ = chars.find(|(_, c)| *c == '\n'),
            (_, '"' | '(' | '[' | '{') => open.push(c),
            (_, ')' | ']' | '}') => _ = open.pop(),
            _ => {}
        }
        if open.len() > MAX_NESTING {
            return Err(error_at(source, &source[at..], &format!("is nested deeper than {MAX_NESTING} levels")));
        }
    }
    Ok(())
}

/// Parses, checks and prepares the expression. `vars` are the names of global variables with their `$`.
pub(super) fn parse<'s>(source: &'s str, vars: &[&str]) -> Result<Term<&'s str>, CompileError> {
    scan(source)?;
    let tokens = Lexer::new(source).lex().map_err(|errors| {
        errors.first().map_or_else(CompileError::unknown, |(expected, at)| {
            error_at(source, at, &format!("expected {}", expected.as_str()))
        })
    })?;
    if count(&tokens) > MAX_TOKENS {
        return Err(CompileError { message: format!("has more than {MAX_TOKENS} words and operators") });
    }
    if let Some(Token(word @ ("import" | "include" | "module"), _)) = tokens.first() {
        return Err(error_at(source, word, &format!("{word}: modules are not available")));
    }
    let mut term = Parser::new(&tokens).parse(|p| p.term()).map_err(|errors| {
        errors.first().map_or_else(CompileError::unknown, |(expected, found)| {
            let at = Token::opt_as_str(*found, source);
            error_at(source, at, &format!("expected {}", expected.as_str()))
        })
    })?;
    let mut checker = Checker { source, vars, scope: Vec::new(), problem: None };
    checker.term(&mut term, 1);
    checker.problem.map_or(Ok(term), Err)
}

fn count(tokens: &[Token<&str>]) -> usize {
    use jaq_core::load::lex::StrPart;
    let inner = |token: &Token<&str>| match &token.1 {
        Tok::Block(tokens) => count(tokens),
        Tok::Str(parts) => {
            parts.iter().map(|part| if let StrPart::Term(t) = part { count(std::slice::from_ref(t)) } else { 1 }).sum()
        }
        _ => 0,
    };
    tokens.iter().map(|token| 1 + inner(token)).sum()
}

struct Named<'s> {
    name: &'s str,
    arity: usize,
    /// The definition is still open: calling it here would be recursion.
    open: bool,
}

struct Checker<'s, 'v> {
    source: &'s str,
    vars: &'v [&'v str],
    scope: Vec<Named<'s>>,
    problem: Option<CompileError>,
}

impl<'s> Checker<'s, '_> {
    fn refuse(&mut self, at: &str, what: &str) {
        let error = error_at(self.source, at, what);
        self.problem.get_or_insert(error);
    }

    fn term(&mut self, term: &mut Term<&'s str>, depth: usize) {
        match term {
            Term::Call(name, args) => self.call(name, args),
            Term::Var(name) if !self.vars.contains(name) => self.by_name(name),
            Term::Def(defs, body) => {
                let outside = self.scope.len();
                for def in defs {
                    if def.name.starts_with("__") {
                        self.refuse(def.name, &format!("{}: such names are reserved", def.name));
                    }
                    let inside = self.scope.len();
                    self.scope.push(Named { name: def.name, arity: def.args.len(), open: true });
                    let params = def.args.iter().map(|name| Named { name, arity: 0, open: false });
                    self.scope.extend(params);
                    self.term(&mut def.body, 1);
                    tick(&mut def.body);
                    self.scope.truncate(inside);
                    self.scope.push(Named { name: def.name, arity: def.args.len(), open: false });
                }
                self.term(body, depth + 1);
                self.scope.truncate(outside);
                return;
            }
            _ => {}
        }
        terms::children(term, &mut |child| self.term(child, depth + 1));
        // a leaf needs none, and a variable as the key of an object would lose its meaning
        if depth.is_multiple_of(TICK_EVERY) && !matches!(term, Term::Id | Term::Num(_) | Term::Var(_) | Term::Break(_))
        {
            tick(term);
        }
    }

    fn by_name(&mut self, name: &'s str) {
        if let Some((_, why)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
            self.refuse(name, &format!("{name}: {why}"));
        }
    }

    fn call(&mut self, name: &'s str, args: &[Term<&'s str>]) {
        if let Some(known) = self.scope.iter().rev().find(|known| known.name == name && known.arity == args.len()) {
            if known.open {
                self.refuse(name, &format!("{name}: a function cannot call itself"));
            }
            return;
        }
        if name.starts_with("__") || name.contains("::") {
            self.refuse(name, &format!("{name}: no such function"));
        }
        self.by_name(name);
        match (name, args) {
            ("recurse", [f] | [f, _]) if !descends(f) => {
                self.refuse(name, "recurse: its argument must go into the value, as in recurse(.children[]?)");
            }
            ("range", args) if args.iter().any(is_infinite) => self.refuse(name, "range: never ends"),
            _ => {}
        }
    }
}

/// Puts a tick in front of the term.
fn tick(term: &mut Term<&str>) {
    let body = std::mem::take(term);
    *term = Term::BinOp(Box::new(Term::Call(TICK, Vec::new())), BinaryOp::Pipe(None), Box::new(body));
}

/// Whether the outputs of a term are parts of its input, so that recursion over it comes to an end.
fn descends(term: &Term<&str>) -> bool {
    match term {
        Term::TryCatch(body, None) => descends(body),
        Term::Path(head, Path(parts)) => {
            matches!(**head, Term::Id) && parts.iter().any(|(part, _)| matches!(part, Part::Range(None, None)))
        }
        Term::BinOp(l, BinaryOp::Pipe(None), r) => descends(l) && matches!(**r, Term::Call("select", _)),
        _ => false,
    }
}

fn is_infinite(term: &Term<&str>) -> bool {
    matches!(term, Term::Call("infinite", _)) || matches!(term, Term::Neg(inner) if is_infinite(inner))
}

/// Whether the term asks for the time or the zone of this machine, so that it can answer differently another time.
pub(super) fn reads_clock(term: &Term<&str>) -> bool {
    let mut found = false;
    terms::calls(term, &mut |name, _| found |= matches!(name, "now" | "localtime" | "strflocaltime"));
    found
}

/// Whether a function that the compiler does not know exists with another number of arguments.
pub(super) fn other_arities(name: &str) -> Vec<usize> {
    (0..=5).filter(|arity| prelude::has(name, *arity)).collect()
}
