//! Which parts of its input an expression reads, so that a human can be shown their values.

use super::natives::TICK;
use jaq_core::load::lex::StrPart;
use jaq_core::load::parse::{BinaryOp, Pattern, Term};
use jaq_core::path::{Part, Path};
use std::collections::BTreeMap;

/// Functions whose first argument sees the elements of their input.
const OVER_ELEMENTS: &[&str] =
    &["map", "any", "all", "sort_by", "group_by", "unique_by", "min_by", "max_by", "map_values", "with_entries", "add"];
/// Functions whose arguments see something that we cannot name.
const OVER_OTHERS: &[&str] = &["walk", "recurse", "while", "until", "paths", "sub", "gsub"];

/// Where a term looks: the path of its input as far as it is known.
type Place = Option<String>;

/// The paths in order of appearance, each an expression with one output, such as `.data.name`.
pub(super) fn of(term: &Term<&str>) -> Vec<String> {
    let mut reader = Reader::default();
    let place = reader.term(term, &Some(String::new()));
    reader.note(place);
    reader.found
}

#[derive(Default)]
struct Reader<'s> {
    found: Vec<String>,
    vars: BTreeMap<&'s str, Place>,
}

impl<'s> Reader<'s> {
    /// Keeps what was read, up to the first iteration; the whole input is not worth a mention.
    fn note(&mut self, place: Place) {
        let Some(place) = place else { return };
        let path = place.split("[]").next().unwrap_or_default().to_owned();
        if !path.is_empty() && !self.found.contains(&path) {
            self.found.push(path);
        }
    }

    fn read(&mut self, term: &Term<&'s str>, at: &Place) {
        let place = self.term(term, at);
        self.note(place);
    }

    /// Reads a term; the answer is its own path if it is one.
    fn term(&mut self, term: &Term<&'s str>, at: &Place) -> Place {
        match term {
            Term::Id => return at.clone(),
            Term::Var(name) => return self.vars.get(name).cloned().flatten(),
            Term::Path(head, Path(parts)) => return self.path(head, parts, at),
            Term::TryCatch(body, None) => return self.term(body, at),
            Term::BinOp(l, BinaryOp::Pipe(pattern), r) => return self.pipe(l, pattern.as_ref(), r, at),
            Term::BinOp(l, _, r) => {
                self.read(l, at);
                self.read(r, at);
            }
            Term::Str(_, parts) => parts.iter().for_each(|part| {
                if let StrPart::Term(term) = part {
                    self.read(term, at);
                }
            }),
            Term::Arr(Some(inner)) | Term::Neg(inner) | Term::Label(_, inner) => self.read(inner, at),
            Term::Obj(entries) => entries.iter().for_each(|(key, value)| match (key, value) {
                (key, Some(value)) => {
                    self.read(key, at);
                    self.read(value, at);
                }
                (Term::Var(_), None) => self.read(key, at),
                (key, None) => {
                    let place = join(at.as_deref(), key);
                    self.note(place);
                }
            }),
            Term::Fold(_, xs, _, args) => {
                self.read(xs, at);
                args.iter().for_each(|arg| self.read(arg, &None));
            }
            Term::TryCatch(body, Some(catch)) => {
                self.read(body, at);
                self.read(catch, &None);
            }
            Term::IfThenElse(branches, otherwise) => {
                for (condition, then) in branches {
                    self.read(condition, at);
                    self.read(then, at);
                }
                otherwise.iter().for_each(|otherwise| self.read(otherwise, at));
            }
            Term::Def(_, body) => return self.term(body, at),
            Term::Call(name, args) => return self.call(name, args, at),
            Term::Recurse | Term::Num(_) | Term::Arr(None) | Term::Break(_) => {}
        }
        None
    }

    fn pipe(&mut self, l: &Term<&'s str>, pattern: Option<&Pattern<&'s str>>, r: &Term<&'s str>, at: &Place) -> Place {
        if matches!(l, Term::Call(TICK, _)) {
            return self.term(r, at);
        }
        let place = self.term(l, at);
        match pattern {
            None => {
                // the input of a call that goes no further is what it reads
                if !matches!(r, Term::Path(..) | Term::BinOp(_, BinaryOp::Pipe(_), _) | Term::Id) {
                    self.note(place.clone());
                }
                self.term(r, &place)
            }
            Some(pattern) => {
                if let Pattern::Var(name) = pattern {
                    self.vars.insert(name, place);
                } else {
                    self.note(place);
                }
                self.term(r, at)
            }
        }
    }

    fn call(&mut self, name: &'s str, args: &[Term<&'s str>], at: &Place) -> Place {
        let mut places = args.iter().enumerate().map(|(i, _)| match (name, i) {
            ("any" | "all", 1) => None,
            (name, 0) if OVER_ELEMENTS.contains(&name) && args.len() == 1 => at.as_ref().map(|at| format!("{at}[]")),
            (name, _) if OVER_OTHERS.contains(&name) => None,
            _ => at.clone(),
        });
        let mut generator: Place = None;
        for (i, arg) in args.iter().enumerate() {
            let place = places.next().flatten();
            // the condition of `any(.tags[]; . == "x")` sees what the generator yields
            let place = if i == 1 && matches!(name, "any" | "all") { generator.take() } else { place };
            let read = self.term(arg, &place);
            self.note(read.clone());
            generator = read;
        }
        matches!(name, "select").then(|| at.clone()).flatten()
    }

    fn path(
        &mut self,
        head: &Term<&'s str>,
        parts: &[(Part<Term<&'s str>>, jaq_core::path::Opt)],
        at: &Place,
    ) -> Place {
        let mut place = self.term(head, at);
        for (part, _) in parts {
            let next = match part {
                Part::Index(index) => match join(place.as_deref(), index) {
                    Some(next) => Some(next),
                    None => {
                        self.read(index, at);
                        None
                    }
                },
                Part::Range(None, None) => place.as_ref().map(|place| format!("{place}[]")),
                Part::Range(from, upto) => {
                    from.iter().chain(upto).for_each(|bound| self.read(bound, at));
                    None
                }
            };
            if next.is_none() {
                self.note(place.take());
            }
            place = next;
        }
        place
    }
}

/// The path one step further, if the step is a constant.
fn join(at: Option<&str>, index: &Term<&str>) -> Place {
    let at = at?;
    match index {
        Term::Str(None, parts) => match &parts[..] {
            [StrPart::Str(key)] if is_word(key) => Some(format!("{at}.{key}")),
            [StrPart::Str(key)] => {
                let dot = if at.is_empty() { "." } else { "" };
                Some(format!("{at}{dot}[\"{key}\"]"))
            }
            _ => None,
        },
        Term::Num(number) => {
            let dot = if at.is_empty() { "." } else { "" };
            Some(format!("{at}{dot}[{number}]"))
        }
        _ => None,
    }
}

fn is_word(key: &str) -> bool {
    !key.is_empty()
        && !key.starts_with(|c: char| c.is_ascii_digit())
        && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}
