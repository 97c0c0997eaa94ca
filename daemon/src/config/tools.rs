//! `[tools]`: what people and workflows may use of the tools, how long approvals wait, and where the web is searched.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::settings::Layers;
use super::{Paths, Secret};
use crate::egress::Url;
use crate::expr::Expr;
use crate::sandbox::Places;

/// How long an approval may wait.
const TIME: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(7 * 86_400);
/// Where the words go in the address of a search.
pub const QUERY: &str = "{query}";

/// `[tools]`
#[derive(Debug, Clone)]
pub struct ToolsConfig {
    /// Patterns of names that may be used; none = all.
    pub allow: Vec<String>,
    /// Patterns of names that may not.
    pub deny: Vec<String>,
    /// Patterns of names that are asked about.
    pub approve: Vec<String>,
    /// Folders that may be read.
    pub read: Vec<String>,
    /// Folders that may be written, and read.
    pub write: Vec<String>,
    /// Hosts that may be called without asking.
    pub hosts: Vec<String>,
    /// Commands that may be run, each time after asking.
    pub exec: Vec<String>,
    /// SQLite databases that may be queried; with `rw:` before it, changed.
    pub sqlite: Vec<String>,
    /// How long an approval can be answered.
    pub approval_time: Duration,
    /// How the web is searched; none = not at all.
    pub search: Option<Search>,
}

/// `[tools.search]`
#[derive(Debug, Clone)]
pub struct Search {
    /// The address, with [`QUERY`] in it.
    pub url: String,
    /// Makes a list of `{title, url, snippet}` of the answer.
    pub items: Expr,
    /// Sent with each request.
    pub header: Option<(String, Secret)>,
}

impl Search {
    /// The address for these words.
    pub fn address(&self, words: &str) -> Result<Url, String> {
        let words = percent_encoding::utf8_percent_encode(words, percent_encoding::NON_ALPHANUMERIC).to_string();
        Url::parse(&self.url.replace(QUERY, &words))
    }
}

/// Reads the section.
pub(super) fn read(paths: &Paths, layers: &mut Layers) -> ToolsConfig {
    let places = Places { home: paths.home_dir.clone(), data: paths.data.clone() };
    let mut folders = |key: &'static str| {
        let all = layers.list(key);
        for path in &all {
            if let Err(reason) = places.expand(path.strip_prefix("rw:").unwrap_or(path)) {
                layers.wrong(key, &reason);
            }
        }
        all
    };
    let (read, write, sqlite) = (folders("tools.read"), folders("tools.write"), folders("tools.sqlite"));
    let approval_time = layers.duration("tools.approval_time");
    if !TIME.contains(&approval_time) {
        layers.wrong("tools.approval_time", "must be a duration from 1s to 7d.");
    }
    ToolsConfig {
        allow: layers.list("tools.allow"),
        deny: layers.list("tools.deny"),
        approve: layers.list("tools.approve"),
        hosts: layers.list("tools.hosts"),
        exec: layers.list("tools.exec"),
        search: search(layers),
        read,
        write,
        sqlite,
        approval_time,
    }
}

fn search(layers: &mut Layers) -> Option<Search> {
    let (url, items, header) =
        (layers.text("tools.search.url"), layers.text("tools.search.items"), layers.text("tools.search.header"));
    let key = layers.secret("tools.search.key");
    if url.is_empty() {
        return None;
    }
    if !url.contains(QUERY) {
        layers.wrong("tools.search.url", "must hold {query}, where the words go.");
        return None;
    }
    if let Err(reason) = Url::parse(&url.replace(QUERY, "words")) {
        layers.wrong("tools.search.url", &reason);
        return None;
    }
    let items = Expr::compile(&items).map_err(|error| layers.wrong("tools.search.items", &error.to_string())).ok()?;
    let header = key.map(|key| {
        let is_bearer = header.eq_ignore_ascii_case("authorization");
        let value = if is_bearer { Secret::new(format!("Bearer {}", key.expose())) } else { key };
        (header, value)
    });
    Some(Search { url, items, header })
}
