//! What an exploration gathers: feeds, JSON over HTTP, commands and tools that the configuration names, as one tool. A source
//! that fails is named, and stops none of the others. Whatever comes of it is somebody else's word.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::command::{ending, spec};
use crate::config::explore::{ExploreKind, ExploreSource, GATHER, Web};
use crate::config::sources::Program;
use crate::egress::{Ask, Egress, Heard, Method, Url, status_text};
use crate::error::Error;
use crate::event::{Trust, read_json};
use crate::expr::{Expr, Limits};
use crate::id::fresh;
use crate::sandbox::{self, Sandbox, WorkFolder};
use crate::tools::{Call, Calling, Output, Permission, Policy, Provider, Tool, ToolFailure, Tools};

/// Things that are gathered at the most, of all sources together: what a small model can still look at.
const ITEMS_MAX: usize = 40;
const TITLE_CHARS_MAX: usize = 200;
const SUMMARY_CHARS_MAX: usize = 500;
const WORD_CHARS_MAX: usize = 60;
const LINK_BYTES_MAX: usize = 1000;
/// Characters of the reason why a source failed.
const REASON_CHARS_MAX: usize = 300;
const BODY_BYTES_MAX: usize = 2 << 20;
const REDIRECTS_MAX: u8 = 5;

/// Gathers; cheap to clone.
#[derive(Clone)]
pub struct Explore {
    inner: Arc<Inner>,
}

struct Inner {
    sources: ArcSwap<Vec<Arc<ExploreSource>>>,
    with: Surroundings,
}

/// What it gathers with.
pub struct Surroundings {
    /// The way out.
    pub egress: Egress,
    /// Runs commands.
    pub sandbox: Sandbox,
    /// The tools that sources may be.
    pub tools: Tools,
    /// Below it every command gets a fresh folder.
    pub work: PathBuf,
}

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Item {
    /// Its number in this gathering, from 1.
    n: usize,
    source: String,
    title: String,
    /// A web address, or nothing.
    link: String,
    summary: String,
    author: String,
    published: String,
    /// Title and link for a text in Markdown, in which neither can be anything else.
    markdown: String,
}

impl Explore {
    /// Gathers from these sources.
    pub fn new(sources: &[ExploreSource], with: Surroundings) -> Explore {
        // What commands left that a crash cut off.
        let _none = std::fs::remove_dir_all(&with.work);
        let explore = Explore { inner: Arc::new(Inner { sources: ArcSwap::default(), with }) };
        explore.configure(sources);
        explore
    }

    /// Puts other sources in their place.
    pub fn configure(&self, sources: &[ExploreSource]) {
        self.inner.sources.store(Arc::new(sources.iter().cloned().map(Arc::new).collect()));
    }

    /// The names of the sources that are meant: that one, or all of them. `Conflict` `invalid_state` when there are none,
    /// `Invalid` when there is none of that name.
    pub fn meant(&self, named: Option<&str>) -> Result<Vec<String>, Error> {
        let names: Vec<String> = self.inner.sources.load().iter().map(|source| source.name.clone()).collect();
        if names.is_empty() {
            let reason = "There is nothing to explore yet. Write a source into aman.toml and run `aman config reload`, such \
                          as:  [explore.sources.news]  kind = \"feed\"  url = \"https://example.org/feed.xml\"";
            return Err(Error::conflict("invalid_state", reason));
        }
        match named {
            None => Ok(names),
            Some(name) if names.iter().any(|known| known == name) => Ok(vec![name.to_owned()]),
            Some(_) => {
                Err(Error::invalid("source", format!("is none of the sources. There are: {}.", names.join(", "))))
            }
        }
    }

    async fn gather(&self, call: &Call, cancel: &CancellationToken) -> Result<Output, ToolFailure> {
        let query = call.arguments["query"].as_str().unwrap_or_default().to_owned();
        let named: Option<Vec<&str>> =
            call.arguments["sources"].as_array().map(|names| names.iter().filter_map(Value::as_str).collect());
        let all = self.inner.sources.load_full();
        let mut failed = Vec::new();
        for name in named.iter().flatten().filter(|name| !all.iter().any(|source| source.name == **name)) {
            failed.push(json!({ "source": name, "reason": "there is no source of this name any more" }));
        }
        let meant = all.iter().filter(|source| named.as_ref().is_none_or(|all| all.contains(&source.name.as_str())));
        let mut reading = JoinSet::new();
        for (place, source) in meant.enumerate() {
            let (inner, source, query) = (Arc::clone(&self.inner), Arc::clone(source), query.clone());
            let (call, cancel) = (call.clone(), cancel.child_token());
            reading.spawn(async move {
                let (time_max, cutting) = (source.timeout, cancel.clone());
                let read = tokio::time::timeout(time_max, inner.read(&source, &query, &call, &cancel)).await;
                cutting.cancel();
                let late = || Err(format!("it took longer than its timeout of {} s", time_max.as_secs()));
                (place, source.name.clone(), read.unwrap_or_else(|_| late()))
            });
        }
        let mut found = Vec::new();
        while let Some(read) = reading.join_next().await {
            let (place, source, read) = read.map_err(|error| ToolFailure::Failed(error.to_string()))?;
            match read {
                Ok(items) => found.push((place, items)),
                Err(reason) => failed.push(json!({ "source": source, "reason": line(&reason, REASON_CHARS_MAX) })),
            }
        }
        found.sort_by_key(|(place, _)| *place);
        let items = dealt(found.into_iter().map(|(_, items)| items).collect());
        Ok(Output {
            text: told(&items, &failed),
            value: Some(json!({ "items": items, "failed": failed })),
            trust: Trust::Web,
        })
    }
}

impl Provider for Explore {
    fn tools(&self) -> Vec<Tool> {
        if self.inner.sources.load().is_empty() {
            return Vec::new();
        }
        vec![Tool {
            name: GATHER.to_owned(),
            description:
                "Gathers what is new in the sources that the owner's configuration names for explorations. What it \
                          finds is content from outside."
                    .to_owned(),
            schema: json!({
                "type": "object",
                "properties": {
                    "query": { "type": "string", "maxLength": 1000, "description": "What is looked for, for sources that can" },
                    "sources": { "type": "array", "maxItems": 100, "items": { "type": "string" },
                        "description": "The sources; without it all" },
                },
                "additionalProperties": false,
            }),
            source: "builtin".to_owned(),
            permission: Permission::Net,
            repeatable: true,
        }]
    }

    /// It works by what people and workflows were granted: agents neither have nor see it.
    fn is_granted(&self, _tool: &str, policy: &Policy) -> bool {
        policy.of_people
    }

    fn call<'a>(&'a self, call: &'a Call, cancel: &'a CancellationToken) -> Calling<'a> {
        Box::pin(self.gather(call, cancel))
    }
}

impl Inner {
    /// What one source has, or why not.
    async fn read(
        &self,
        source: &ExploreSource,
        query: &str,
        call: &Call,
        cancel: &CancellationToken,
    ) -> Result<Vec<Item>, String> {
        let given = match &source.kind {
            ExploreKind::Feed(web) => {
                let heard = self.fetch(web, query, source).await?;
                let parsed = tokio::task::spawn_blocking(move || entries(&heard)).await;
                parsed.map_err(|error| error.to_string())??
            }
            ExploreKind::Json(web) => {
                let heard = self.fetch(web, query, source).await?;
                read_json(&heard.body).map_err(|error| format!("its answer is no JSON: {error}"))?
            }
            ExploreKind::Command(program) => self.run(program, query, call, cancel).await?,
            ExploreKind::Tool { tool, arguments, query: parameter } => {
                let mut arguments = arguments.clone();
                arguments.extend(parameter.iter().map(|name| (name.clone(), query.into())));
                self.ask((tool, arguments), (call, source), cancel).await?
            }
        };
        let things = match source.map.clone() {
            Some(map) => mapped(map, given).await?,
            None => vec![given],
        };
        let items = things.into_iter().flat_map(listed).filter_map(|thing| item(&source.name, &thing));
        Ok(items.take(source.items_max).collect())
    }

    async fn fetch(&self, web: &Web, query: &str, source: &ExploreSource) -> Result<Heard, String> {
        let mut headers: Vec<(String, String)> =
            web.headers.iter().map(|(name, value)| (name.clone(), value.expose().to_owned())).collect();
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("accept")) {
            let accept = match source.kind {
                ExploreKind::Feed(_) => "application/atom+xml, application/rss+xml, application/xml, */*;q=0.5",
                _ => "application/json",
            };
            headers.push(("accept".to_owned(), accept.to_owned()));
        }
        let ask = Ask {
            method: Method::GET,
            url: address(web, query)?,
            headers,
            body: Bytes::new(),
            bytes_max: BODY_BYTES_MAX,
            time_max: source.timeout,
            redirects_max: REDIRECTS_MAX,
        };
        let heard = self.with.egress.ask(ask).await.map_err(|error| error.to_string())?;
        if heard.is_success() { Ok(heard) } else { Err(format!("the server answered {}", status_text(heard.status))) }
    }

    /// Runs a command: JSON, or lines of JSON or text.
    async fn run(
        &self,
        program: &Program,
        query: &str,
        call: &Call,
        cancel: &CancellationToken,
    ) -> Result<Value, String> {
        if call.caller.trust < Trust::Paired {
            let trust = call.caller.trust.name();
            return Err(format!("commands are not run for what came with trust '{trust}'"));
        }
        let place = self.with.work.join(fresh());
        let folder = WorkFolder::make(place, None).await.map_err(|why| format!("its folder cannot be made: {why}"))?;
        let limits = sandbox::Limits { time: program.timeout, ..sandbox::Limits::default() };
        // A program finds a variable of its own where it was given one of that name.
        let query = vec![("AMAN_QUERY".to_owned(), query.replace('\0', " "))];
        let spec = spec(program, folder.path(), query, limits);
        let finished = self.with.sandbox.run(spec, cancel.clone()).await.map_err(|error| error.to_string())?;
        if let Some(why) = ending(&finished) {
            return Err(why);
        }
        if program.text {
            let text = String::from_utf8_lossy(&finished.stdout).into_owned();
            return Ok(text.lines().filter(|line| !line.trim().is_empty()).collect());
        }
        if let Ok(whole) = read_json::<Value>(&finished.stdout) {
            return Ok(whole);
        }
        let lines = finished.stdout.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
        let read: Result<Vec<Value>, _> = lines.map(read_json::<Value>).collect();
        read.map(Value::from).map_err(|error| format!("what it writes is no JSON: {error}"))
    }

    /// Calls a tool, for the workflow: by what the owner grants people and workflows, and the name in the configuration.
    async fn ask(
        &self,
        (tool, arguments): (&str, Map<String, Value>),
        (call, source): (&Call, &ExploreSource),
        cancel: &CancellationToken,
    ) -> Result<Value, String> {
        let mut asked = call.clone();
        (asked.tool, asked.arguments) = (tool.to_owned(), Value::Object(arguments));
        asked.key = format!("{}/{}", call.key, source.name);
        let policy = Policy { allow: vec![tool.to_owned()], ..Policy::clone(&self.with.tools.policy()) };
        asked.caller.policy = Arc::new(policy);
        match self.with.tools.call(asked, cancel, &|_| {}).await {
            // What is no list is for programs that know the tool; its words are what was found.
            Ok(Output { value: Some(value), .. })
                if source.map.is_some() || value.is_array() || value["items"].is_array() =>
            {
                Ok(value)
            }
            Ok(output) => Ok(unmarked(output).into()),
            Err(ToolFailure::Arguments(place, why)) => Err(format!("{tool}: arguments{place} {why}")),
            Err(ToolFailure::Refused(code, why)) => Err(format!("{tool}: {code}: {why}")),
            Err(ToolFailure::Failed(why) | ToolFailure::Unknown(why)) => Err(format!("{tool}: {why}")),
        }
    }
}

/// The address with what is looked for.
fn address(web: &Web, query: &str) -> Result<Url, String> {
    let Some(name) = web.query.as_ref().filter(|_| !query.is_empty()) else { return Ok(web.url.clone()) };
    let encoded =
        |text: &str| percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string();
    let whole = web.url.to_string();
    let joint = if whole.contains('?') { '&' } else { '?' };
    Url::parse(&format!("{whole}{joint}{}={}", encoded(name), encoded(query)))
}

/// The entries of a feed as JSON.
fn entries(heard: &Heard) -> Result<Value, String> {
    let text = aman_feed::decode(&heard.body, heard.header("content-type").unwrap_or_default());
    let feed = aman_feed::parse(&text).map_err(|why| format!("it is no feed: {why}"))?;
    let entry = |one: aman_feed::Entry| {
        json!({ "title": one.title, "link": one.link, "summary": one.summary, "author": one.author,
            "published": one.published, "id": one.id })
    };
    Ok(feed.entries.into_iter().map(entry).collect())
}

async fn mapped(map: Expr, given: Value) -> Result<Vec<Value>, String> {
    let ran = tokio::task::spawn_blocking(move || map.run_value(&given, &Limits::transform())).await;
    ran.map_err(|error| error.to_string())?.map_err(|error| format!("map: {error}"))
}

/// The words of a tool without the marks that say for a model where they come from: all that is gathered is marked again.
fn unmarked(output: Output) -> String {
    let text = output.text;
    if output.trust >= Trust::Paired {
        return text;
    }
    let inner = text.split_once('\n').and_then(|(_, rest)| rest.rsplit_once('\n')).map(|(inner, _)| inner.to_owned());
    inner.unwrap_or(text)
}

/// The things in what a source gave: of a list, or of an object with a list `items`.
fn listed(mut given: Value) -> Vec<Value> {
    match given {
        Value::Array(things) => things,
        Value::Object(_) if given["items"].is_array() => listed(given["items"].take()),
        other => vec![other],
    }
}

/// A thing that a source gave; none when it has neither a title nor a text.
fn item(source: &str, thing: &Value) -> Option<Item> {
    let text = |names: &[&str], chars_max: usize| {
        let found = names.iter().find_map(|name| match &thing[*name] {
            Value::String(text) if !text.trim().is_empty() => Some(line(text, chars_max)),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        });
        found.unwrap_or_default()
    };
    let link = web(thing["link"].as_str().or_else(|| thing["url"].as_str()).unwrap_or_default());
    let (title, summary) = match thing {
        // A text alone is all there is of it.
        Value::String(text) => {
            let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
            (line(first, TITLE_CHARS_MAX), line(text, SUMMARY_CHARS_MAX))
        }
        _ => (
            text(&["title", "name"], TITLE_CHARS_MAX),
            text(&["summary", "snippet", "description", "text"], SUMMARY_CHARS_MAX),
        ),
    };
    let title = match (title.is_empty(), summary.is_empty()) {
        (false, _) => title,
        (true, false) => line(&summary, TITLE_CHARS_MAX),
        (true, true) => return None,
    };
    let markdown = markdown(&title, &link);
    let (author, published) =
        (text(&["author", "by"], WORD_CHARS_MAX), text(&["published", "date", "created_at"], WORD_CHARS_MAX));
    Some(Item { n: 0, source: source.to_owned(), title, link, summary, author, published, markdown })
}

/// One line without control characters, and no longer than that.
fn line(text: &str, chars_max: usize) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ").chars().take(chars_max).collect()
}

/// A web address as it is safe to open, or nothing.
fn web(link: &str) -> String {
    let link = link.trim();
    let is_web = ["https://", "http://"].iter().any(|scheme| link.starts_with(scheme));
    let is_plain = !link.chars().any(|c| c.is_control() || c.is_whitespace());
    if is_web && is_plain && link.len() <= LINK_BYTES_MAX { link.to_owned() } else { String::new() }
}

fn markdown(title: &str, link: &str) -> String {
    let mut words = String::with_capacity(title.len());
    for c in title.chars() {
        if "\\`*_[]<>#|~!".contains(c) {
            words.push('\\');
        }
        words.push(c);
    }
    if link.is_empty() {
        return words;
    }
    let mut address = String::with_capacity(link.len());
    for c in link.chars() {
        match c {
            '(' => address.push_str("%28"),
            ')' => address.push_str("%29"),
            '<' => address.push_str("%3C"),
            '>' => address.push_str("%3E"),
            '\\' => address.push_str("%5C"),
            c => address.push(c),
        }
    }
    format!("[{words}]({address})")
}

/// What was found, in turns from each source, each thing once, and numbered.
fn dealt(found: Vec<Vec<Item>>) -> Vec<Item> {
    let (mut known, mut dealt) = (HashSet::new(), Vec::new());
    let longest = found.iter().map(Vec::len).max().unwrap_or(0);
    for place in 0..longest {
        for item in found.iter().filter_map(|items| items.get(place)) {
            let key = if item.link.is_empty() { item.title.clone() } else { item.link.clone() };
            if dealt.len() < ITEMS_MAX && known.insert(key) {
                dealt.push(Item { n: dealt.len() + 1, ..item.clone() });
            }
        }
    }
    dealt
}

/// The same in words, for a model.
fn told(items: &[Item], failed: &[Value]) -> String {
    let mut text = String::new();
    for item in items {
        text.push_str(&format!("{}. {} ({})\n{}\n{}\n\n", item.n, item.title, item.source, item.link, item.summary));
    }
    if items.is_empty() {
        text.push_str("[nothing was found]\n");
    }
    for one in failed {
        let word = |name: &str| one[name].as_str().unwrap_or_default();
        text.push_str(&format!("[{} failed: {}]\n", word("source"), word("reason")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_of_any_source_become_items_that_are_safe_to_show() {
        let one = |thing: Value| item("s", &thing).expect("an item");
        let hacker = one(json!({ "title": "A [b](javascript:x)\n# c", "url": "https://e.org/a(1)", "by": "me" }));
        assert_eq!(hacker.markdown, "[A \\[b\\](javascript:x) \\# c](https://e.org/a%281%29)");
        assert_eq!((hacker.link.as_str(), hacker.author.as_str()), ("https://e.org/a(1)", "me"));
        assert_eq!(one(json!({ "title": "t", "link": "javascript:alert(1)" })).markdown, "t");
        let words = one(json!("\n  just\twords \nand more"));
        assert_eq!((words.title.as_str(), words.summary.as_str()), ("just words", "just words and more"));
        assert_eq!(one(json!({ "snippet": "only that" })).title, "only that");
        assert_eq!(item("s", &json!({ "link": "https://e.org" })), None);
        assert_eq!(listed(json!({ "items": [1, 2] })).len(), 2);
        assert_eq!(one(json!({ "title": "x".repeat(5000) })).title.len(), TITLE_CHARS_MAX);
    }

    #[test]
    fn every_source_has_its_turn_and_nothing_comes_twice() {
        let many = |source: &str, count: usize| {
            let thing =
                |n: usize| json!({ "title": format!("{source}{n}"), "link": format!("https://e.org/{source}/{n}") });
            (0..count).filter_map(|n| item(source, &thing(n))).collect::<Vec<_>>()
        };
        let found = dealt(vec![many("a", 100), many("b", 2), many("a", 3)]);
        assert_eq!(found.len(), ITEMS_MAX);
        let first: Vec<&str> = found.iter().take(4).map(|item| item.title.as_str()).collect();
        assert_eq!((first, found[3].n), (vec!["a0", "b0", "a1", "b1"], 4));
    }

    #[test]
    fn what_is_looked_for_goes_into_the_address() {
        let url = |text: &str| Url::parse(text).expect("an address");
        let web = |text: &str, query: Option<&str>| Web {
            url: url(text),
            headers: Vec::new(),
            query: query.map(str::to_owned),
        };
        for (at, name, query, wanted) in [
            ("https://e.org/s", Some("q"), "a b&c", "https://e.org/s?q=a%20b%26c"),
            ("https://e.org/s?x=1", Some("q"), "a", "https://e.org/s?x=1&q=a"),
            ("https://e.org/s", Some("q"), "", "https://e.org/s"),
            ("https://e.org/s", None, "a", "https://e.org/s"),
        ] {
            assert_eq!(address(&web(at, name), query).expect("an address").to_string(), wanted);
        }
    }
}
