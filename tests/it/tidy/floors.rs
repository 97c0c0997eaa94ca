//! Who may import whom: the floors of the daemon's modules, read off the paths in its sources.

use super::tokens::{Kind, Token, tokens};
use super::{list, read, refuse};

/// The floors, as ARCHITECTURE.md explains them. A module imports from lower floors only.
const FLOORS: &[(u8, &[&str])] = &[
    (5, &["cli", "lib", "main", "start"]),
    (4, &["api"]),
    (3, &["agents", "cron", "mcp", "notifications", "outbox", "plugins", "skills", "sources", "upkeep", "workflows"]),
    (2, &["budget", "bus", "memory", "soul", "tools"]),
    (1, &["store"]),
    (
        0,
        &[
            "bundled",
            "clock",
            "config",
            "egress",
            "package",
            "pages",
            "error",
            "event",
            "expr",
            "id",
            "lock",
            "models",
            "plain",
            "redact",
            "registry",
            "sandbox",
            "schedule",
            "sse",
            "tasks",
            "telemetry",
            "text",
            "workflow",
        ],
    ),
];

/// Crates that only some modules may name.
const CRATES: &[(&str, &[&str])] = &[
    ("aman_mcp", &["api", "mcp"]),
    ("aman_plugin_host", &["plugins"]),
    ("rusqlite", &["store"]),
    ("landlock", &["sandbox"]),
    ("rustix", &["sandbox"]),
    ("seccompiler", &["sandbox"]),
    ("matchit", &["api"]),
    ("hyper", &["api", "cli", "egress"]),
    ("hyper_util", &["api", "cli", "egress"]),
    ("http_body_util", &["api", "cli", "egress"]),
    ("jsonschema", &["registry"]),
    ("toml_edit", &["cli"]),
];

fn floor_of(module: &str) -> Option<u8> {
    FLOORS.iter().find(|(_, modules)| modules.contains(&module)).map(|(floor, _)| *floor)
}

/// A file of the daemon: its path, the module it belongs to and its tokens.
struct Source {
    path: String,
    module: String,
    /// How many `super::` lead from the file's own module to the crate root.
    depth: usize,
    tokens: Vec<Token>,
}

fn sources() -> Vec<Source> {
    let paths = list().into_iter().filter(|path| path.starts_with("daemon/src/") && path.ends_with(".rs"));
    paths.map(|path| source(&path, &read(&path))).collect()
}

fn source(path: &str, text: &str) -> Source {
    let inner = path.trim_start_matches("daemon/src/").trim_end_matches(".rs");
    let parts: Vec<&str> = inner.split('/').collect();
    let root = matches!(inner, "lib" | "main");
    let depth = parts.len() - usize::from(root || parts.last() == Some(&"mod"));
    Source { path: path.to_owned(), module: parts[0].to_owned(), depth, tokens: tokens(text) }
}

/// The first names after `crate::`, or after the `super::`s that lead as far, with their lines; groups are opened.
fn root_names(source: &Source) -> Vec<(usize, &str)> {
    let tokens = &source.tokens;
    let is = |at: usize, text: &str| tokens.get(at).is_some_and(|t: &Token| t.is(text));
    let (mut names, mut braces, mut inline) = (Vec::new(), 0_usize, Vec::new());
    for at in 0..tokens.len() {
        if is(at, "{") {
            braces += 1;
            if at >= 2 && is(at - 2, "mod") {
                inline.push(braces);
            }
        } else if is(at, "}") {
            if inline.last() == Some(&braces) {
                inline.pop();
            }
            braces = braces.saturating_sub(1);
        } else if is(at, "crate") && is(at + 1, "::") {
            names.extend(first_names(tokens, at + 2));
        } else if is(at, "super") && !(at >= 1 && is(at - 1, "::")) {
            let mut supers = 0;
            while is(at + 2 * supers, "super") && is(at + 2 * supers + 1, "::") {
                supers += 1;
            }
            if supers > 0 && supers == source.depth + inline.len() {
                names.extend(first_names(tokens, at + 2 * supers));
            }
        }
    }
    names
}

/// `x` of `x::y`, or `x` and `z` of `{x::y, z}`.
fn first_names(tokens: &[Token], start: usize) -> Vec<(usize, &str)> {
    let Some(first) = tokens.get(start) else { return Vec::new() };
    if first.kind == Kind::Word {
        return vec![(first.line, first.text.as_str())];
    }
    let (mut names, mut depth) = (Vec::new(), 0);
    for (before, token) in tokens.iter().zip(tokens.iter().skip(1)).skip(start.saturating_sub(1)) {
        if token.is("{") {
            depth += 1;
        } else if token.is("}") {
            depth -= 1;
            if depth == 0 {
                break;
            }
        } else if depth == 1 && token.kind == Kind::Word && (before.is("{") || before.is(",")) {
            names.push((token.line, token.text.as_str()));
        } else if depth == 0 {
            break;
        }
    }
    names
}

/// Why `from` may not import `to`; `None` when it may.
fn forbidden(from: &str, to: &str) -> Option<String> {
    if from == to || matches!(from, "lib" | "main" | "start") {
        return None;
    }
    let Some(to_floor) = floor_of(to) else {
        return Some(format!(
            "{to} is no module of a floor; name things by their module, not by what lib.rs re-exports"
        ));
    };
    let from_floor = floor_of(from)?;
    if from == "cli" && to_floor != 0 {
        return Some(format!("cli talks HTTP to the daemon and imports floor 0 only; {to} is on floor {to_floor}"));
    }
    if from_floor == 3 && to_floor == 3 {
        return Some(format!(
            "{from} and {to} are both on floor 3 and meet on the bus only; publish or consume an event"
        ));
    }
    (to_floor > from_floor).then(|| {
        format!("{from} is on floor {from_floor} and {to} on {to_floor}; hand a value or callback down, or move the shared part lower")
    })
}

/// Goal: a module imports lower floors only, floor 3 never its neighbours, the CLI nothing of the daemon's inside.
#[test]
fn modules_import_lower_floors_only() {
    let mut broken = Vec::new();
    for source in sources() {
        let Source { path, module, .. } = &source;
        if floor_of(module).is_none() {
            broken.push(format!("{path}: module {module} is on no floor; add it to FLOORS in tests/it/tidy/floors.rs"));
        }
        for (line, name) in root_names(&source) {
            broken.extend(forbidden(module, name).map(|why| format!("{path}:{line}: {why}")));
        }
    }
    refuse(broken);
}

/// Goal: the database and HTTP stay behind the modules that own them.
#[test]
fn some_crates_belong_to_one_module() {
    let mut broken = Vec::new();
    for source in sources() {
        for (at, token) in source.tokens.iter().enumerate() {
            let next = source.tokens.get(at + 1);
            let before = at.checked_sub(1).map(|before| &source.tokens[before]);
            let is_path = next.is_some_and(|t| t.is("::")) && !before.is_some_and(|t| t.is("::"));
            let is_use = before.is_some_and(|t| t.is("use"));
            let Some((name, owners)) = CRATES.iter().find(|(name, _)| token.is(name)) else { continue };
            if (is_path || is_use) && !owners.contains(&source.module.as_str()) {
                let (path, line, owners) = (&source.path, token.line, owners.join(", "));
                broken.push(format!("{path}:{line}: {name} belongs to {owners}; put what needs it there"));
            }
        }
    }
    refuse(broken);
}

/// Goal: SQL stands in the store (and in schemas/sql) only.
#[test]
fn sql_stays_in_the_store() {
    const STARTS: &[&str] = &["SELECT ", "INSERT INTO ", "INSERT OR ", "UPDATE ", "DELETE FROM ", "PRAGMA "];
    let mut broken = Vec::new();
    for source in sources().iter().filter(|source| source.module != "store") {
        for token in source.tokens.iter().filter(|t| t.kind == Kind::Text) {
            if STARTS.iter().any(|start| token.text.trim_start().starts_with(start)) {
                broken.push(format!("{}:{}: SQL outside the store; make it a store function", source.path, token.line));
            }
        }
    }
    refuse(broken);
}

/// Goal: the reader of paths sees every way to write an import.
#[test]
fn reads_every_form_of_import() {
    let text = "use crate::{bus::{self, Stats}, store};\nuse super::api;\nuse super::super::id;\nfn f() { crate::cli::g(super::h()) }\n\
                mod tests { use super::*; use super::super::super::event::E; }";
    let source = source("daemon/src/sources/files.rs", text);
    let names: Vec<&str> = root_names(&source).into_iter().map(|(_, name)| name).collect();
    assert_eq!(names, ["bus", "store", "id", "cli", "event"]);
    assert_eq!(forbidden("sources", "bus"), None);
    assert!(forbidden("sources", "skills").is_some_and(|why| why.contains("floor 3")));
    assert!(forbidden("cli", "store").is_some());
    assert!(forbidden("store", "bus").is_some());
    assert_eq!(forbidden("error", "id"), None);
}
