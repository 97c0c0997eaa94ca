//! The functions that are written in jq, and which of them an expression needs.

use super::terms;
use jaq_core::load::parse::{Def, Term};
use std::collections::BTreeSet;
use std::sync::LazyLock;

/// Definitions of the libraries that are replaced, have a native of the same name, or have no place here.
const DROPPED: &[(&str, usize)] = &[
    ("true", 0),
    ("false", 0),
    ("null", 0),
    ("nan", 0),
    ("infinite", 0),
    ("isnan", 0),
    ("type", 0),
    ("join", 1),
    ("flatten", 0),
    ("flatten", 1),
    ("from_entries", 0),
    ("with_entries", 1),
    ("stderr", 0),
    ("debug", 0),
    ("debug", 1),
    ("halt", 0),
    ("halt_error", 0),
    ("halt_error", 1),
];

struct Entry {
    def: Def<&'static str>,
    calls: BTreeSet<(String, usize)>,
}

static ALL: LazyLock<Vec<Entry>> = LazyLock::new(|| {
    let theirs = jaq_core::defs().chain(jaq_std::defs());
    let theirs = theirs.filter(|def| !DROPPED.contains(&(def.name, def.args.len())));
    let ours = jaq_core::load::parse(include_str!("prelude.jq"), |p| p.defs()).unwrap_or_default();
    let entry = |def: Def<&'static str>| {
        let mut calls = BTreeSet::new();
        terms::calls(&def.body, &mut |name, arity| _ = calls.insert((name.to_owned(), arity)));
        Entry { def, calls }
    };
    theirs.chain(ours).map(entry).collect()
});

/// Whether there is such a function.
pub(super) fn has(name: &str, arity: usize) -> bool {
    ALL.iter().any(|entry| entry.def.name == name && entry.def.args.len() == arity)
}

/// The definitions that `term` calls, directly or not, in the order in which they refer to each other.
///
/// A compiled expression holds its definitions, and all of them would be a hundred kilobytes for each.
pub(super) fn needed_by(term: &Term<&str>) -> Vec<Def<&'static str>> {
    let mut wanted = BTreeSet::new();
    terms::calls(term, &mut |name, arity| _ = wanted.insert((name.to_owned(), arity)));
    let mut needed = Vec::new();
    // a definition refers to earlier ones and to itself only
    for entry in ALL.iter().rev() {
        if wanted.contains(&(entry.def.name.to_owned(), entry.def.args.len())) {
            wanted.extend(entry.calls.iter().cloned());
            needed.push(entry.def.clone());
        }
    }
    needed.reverse();
    needed
}

#[cfg(test)]
mod tests {
    use super::ALL;

    #[test]
    fn own_definitions_parse() {
        assert!(ALL.iter().any(|entry| entry.def.name == "@tsv"));
    }
}
