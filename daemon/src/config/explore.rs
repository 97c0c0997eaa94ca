//! `[explore.sources.<name>]`: what an exploration gathers from.

use std::time::Duration;

use serde_json::{Map, Value};
use toml::Table;

use super::sources::{Program, program};
use super::table::{Faults, Reader};
use super::{Applied, Paths, References, Secret};
use crate::egress::Url;
use crate::expr::Expr;

/// The tool that gathers from all of these sources.
pub const GATHER: &str = "explore_gather";
/// Names of all kinds.
const KINDS: [&str; 4] = ["feed", "json", "command", "tool"];
/// Things that are taken of a source, and how long it may take, unless it says otherwise.
const ITEMS: usize = 15;
const TIMEOUT: Duration = Duration::from_secs(30);
const TIMEOUT_MIN: Duration = Duration::from_secs(1);
const TIMEOUT_MAX: Duration = Duration::from_secs(300);

/// A source as it is configured.
#[derive(Debug, Clone, PartialEq)]
pub struct ExploreSource {
    /// Its name.
    pub name: String,
    /// As many things of it are taken, the first ones.
    pub items_max: usize,
    /// How long it may take.
    pub timeout: Duration,
    /// Makes things of what it gives: objects with `title` and more. None: it gives such things, or texts.
    pub map: Option<Expr>,
    /// Where it is.
    pub kind: ExploreKind,
}

/// What differs between the kinds.
#[derive(Debug, Clone, PartialEq)]
pub enum ExploreKind {
    /// RSS or Atom.
    Feed(Web),
    /// JSON over HTTP.
    Json(Web),
    /// A program that ends; what is looked for is its variable `AMAN_QUERY`.
    Command(Program),
    /// A tool.
    Tool {
        /// Its name.
        tool: String,
        /// Its arguments.
        arguments: Map<String, Value>,
        /// The argument that says what is looked for.
        query: Option<String>,
    },
}

impl ExploreKind {
    /// Its name in the configuration.
    pub fn name(&self) -> &'static str {
        match self {
            ExploreKind::Feed(_) => KINDS[0],
            ExploreKind::Json(_) => KINDS[1],
            ExploreKind::Command(_) => KINDS[2],
            ExploreKind::Tool { .. } => KINDS[3],
        }
    }
}

/// Something that is asked for with GET.
#[derive(Debug, Clone, PartialEq)]
pub struct Web {
    /// What is asked.
    pub url: Url,
    /// Headers; values may be secrets.
    pub headers: Vec<(String, Secret)>,
    /// The parameter of the address that says what is looked for.
    pub query: Option<String>,
}

/// What makes `after` of `before`.
pub fn plan(before: &[ExploreSource], after: &[ExploreSource]) -> Applied {
    fn by_name(source: &ExploreSource) -> (&str, &ExploreSource) {
        (&source.name, source)
    }
    Applied::plan("explore.sources", before.iter().map(by_name), after.iter().map(by_name))
}

/// Reads the table of a source; `None` when it cannot be used, and then `faults` says why.
pub(super) fn source(
    name: &str,
    table: &Table,
    paths: &Paths,
    references: References,
    faults: &mut Faults,
) -> Option<ExploreSource> {
    let mut reader = Reader::new(format!("explore.sources.{name}"), table, references);
    let wrong_before = faults.wrong.len();
    let items_max = reader.number("items", 1..=40).and_then(|items| usize::try_from(items).ok()).unwrap_or(ITEMS);
    let map = reader.expr("map");
    let mut timeout = None;
    let kind = match reader.required("kind", &format!("one of {}.", KINDS.join(", "))).as_deref() {
        None => None,
        Some("feed") => web(&mut reader).map(ExploreKind::Feed),
        Some("json") => web(&mut reader).map(ExploreKind::Json),
        Some("command") => {
            let program = program(&mut reader, paths);
            timeout = program.as_ref().map(|program| program.timeout);
            program.map(ExploreKind::Command)
        }
        Some("tool") => tool(&mut reader),
        Some(other) => {
            reader.wrong("kind", format!("'{other}' is not known; there are: {}.", KINDS.join(", ")));
            faults.wrong.extend({
                // Which keys it has cannot be told, so none is called unknown.
                let mut only_wrong = Faults::default();
                reader.finish(&mut only_wrong);
                only_wrong.wrong
            });
            return None;
        }
    };
    let timeout =
        timeout.or_else(|| reader.duration("timeout", TIMEOUT_MIN..=TIMEOUT_MAX)).unwrap_or(TIMEOUT).min(TIMEOUT_MAX);
    reader.finish(faults);
    let kind = kind.filter(|_| faults.wrong.len() == wrong_before)?;
    Some(ExploreSource { name: name.to_owned(), items_max, timeout, map, kind })
}

fn web(reader: &mut Reader<'_>) -> Option<Web> {
    let (headers, query) = (reader.headers("headers"), reader.text("query"));
    Some(Web { url: reader.url("url", "the address to ask.")?, headers, query })
}

fn tool(reader: &mut Reader<'_>) -> Option<ExploreKind> {
    let name = reader.required("tool", "the name of the tool to call.");
    if name.as_deref() == Some(GATHER) {
        reader.wrong("tool", "is the tool that asks all of these sources; name another.");
    }
    let query = reader.text("query");
    let arguments = reader.raw_table("arguments").cloned().unwrap_or_default();
    let arguments = match serde_json::to_value(arguments) {
        Ok(Value::Object(arguments)) => arguments,
        _ => Map::new(),
    };
    Some(ExploreKind::Tool { tool: name?, arguments, query })
}
