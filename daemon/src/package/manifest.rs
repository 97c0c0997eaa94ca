//! `plugin.toml`: what a plugin is, what it offers and what it asks for. Every complaint names its key.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use semver::Version;
use serde::Serialize;

use super::envelope::Envelope;
use super::grant::Grant;
use super::permission::Permissions;
use super::raw::Raw;
use super::{FAULT, check_name, names, signature};
use crate::error::{Error, FieldError};
use crate::event::TypePattern;
use crate::expr::Expr;

/// The versions of the plugin interface that this host serves.
pub const INTERFACES: [&str; 1] = ["0.1"];
/// Routes, subscriptions, tools, sources or pages of one plugin.
const ITEMS_MAX: usize = 64;
/// Patterns or hosts of one permission.
pub(super) const GRANTS_MAX: usize = 64;
/// Methods of routes; what answers GET answers HEAD.
const ROUTE_METHODS: [&str; 5] = ["GET", "POST", "PUT", "PATCH", "DELETE"];
const DESCRIPTION_CHARS_MAX: usize = 1024;
const PATH_BYTES_MAX: usize = 200;
/// Body of a request to a route: unless the route asks for more, and at the most.
const BODY_DEFAULT: u64 = 1 << 20;
const BODY_MAX: u64 = 64 << 20;
/// The same for a route that anybody may call: what all strangers' bodies may take together.
pub const PUBLIC_BODY_MAX: usize = 16 << 20;
/// The shortest time between two polls.
const EVERY: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(7 * 86_400);

/// A checked `plugin.toml`.
#[derive(Debug, Clone, Serialize)]
pub struct Manifest {
    /// `^[a-z][a-z0-9-]{0,39}$`, and none of the names that the routes of the API need.
    pub name: String,
    /// Semantic version.
    pub version: Version,
    /// What it does, for people.
    pub description: String,
    /// Its licence, as it stands there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
    /// Version of the plugin interface, one of [`INTERFACES`].
    pub interface: String,
    /// The file that holds the component.
    pub component: String,
    /// The minisign public key (base64) that signs its packages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub publisher: Option<String>,
    /// What it may do beyond computing.
    pub permissions: Permissions,
    /// HTTP routes.
    pub routes: Vec<Route>,
    /// Events that it wants.
    pub events: Vec<Subscription>,
    /// Tools that agents may call.
    pub tools: Vec<Tool>,
    /// What it polls.
    pub sources: Vec<Source>,
    /// Pages for the console.
    pub pages: Vec<Page>,
    /// How it spells errors on a listener of its own; none = as the daemon does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errors: Option<Arc<Envelope>>,
    /// What it may use up.
    pub limits: Limits,
}

/// A route of a plugin.
#[derive(Debug, Clone, Serialize)]
pub struct Route {
    /// HTTP method.
    pub method: String,
    /// Path as `matchit` reads it, below `/api/v1` unless `root`.
    pub path: String,
    /// Without credentials.
    pub public: bool,
    /// At the root instead of below `/api/v1`.
    pub root: bool,
    /// Only on a listener of the plugin's own.
    pub listener: bool,
    /// Bytes of a request's body at the most.
    pub body: u64,
}

impl Route {
    /// Where it is, on the daemon's listener unless it is only on the plugin's own.
    pub fn mounted(&self) -> String {
        if self.root || self.listener { self.path.clone() } else { format!("/api/v1{}", self.path) }
    }

    /// Method and place, for people.
    pub fn shown(&self) -> String {
        let place = if self.listener { " on its own listener" } else { "" };
        format!("{} {}{place}", self.method, self.mounted())
    }
}

/// Events that a plugin wants.
#[derive(Debug, Clone, Serialize)]
pub struct Subscription {
    /// Any of these types.
    pub types: Vec<TypePattern>,
    /// jq over the event.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "source_of")]
    pub when: Option<Expr>,
    /// Attempts side by side; 1 = in order.
    pub concurrency: usize,
}

fn source_of<S: serde::Serializer>(expr: &Option<Expr>, to: S) -> Result<S::Ok, S::Error> {
    expr.as_ref().map(Expr::source).serialize(to)
}

/// A tool of a plugin.
#[derive(Debug, Clone, Serialize)]
pub struct Tool {
    /// `^[a-z][a-z0-9_]{0,63}$`.
    pub name: String,
    /// What it does and when to use it.
    pub description: String,
    /// The file with the JSON Schema of its arguments.
    pub schema: String,
}

/// Something that a plugin polls.
#[derive(Debug, Clone, Serialize)]
pub struct Source {
    /// Its id within the plugin.
    pub id: String,
    /// Milliseconds between two polls, unless a poll asks for another time.
    #[serde(rename = "every_ms", serialize_with = "millis")]
    pub every: Duration,
}

/// A page of a plugin.
#[derive(Debug, Clone, Serialize)]
pub struct Page {
    /// Its id within the plugin.
    pub id: String,
    /// What people read.
    pub title: String,
    /// The file, below `ui/`.
    pub path: String,
}

/// What a plugin may use up, within what the host allows.
#[derive(Debug, Clone, Serialize)]
pub struct Limits {
    /// Bytes of linear memory of one instance.
    pub memory: u64,
    /// Running time of one call, milliseconds.
    #[serde(rename = "time_ms", serialize_with = "millis")]
    pub time: Duration,
    /// Time that one call may wait for others, milliseconds.
    #[serde(rename = "wait_ms", serialize_with = "millis")]
    pub wait: Duration,
    /// Instances side by side.
    pub max_instances: usize,
    /// Calls after which an instance is replaced.
    pub max_calls_per_instance: u64,
    /// Bytes that one call may answer.
    pub output: u64,
    /// A fresh instance for each call.
    pub per_call: bool,
}

fn millis<S: serde::Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

/// Collects what is wrong, each with its key.
pub(super) struct Checker {
    wrong: Vec<FieldError>,
}

impl Checker {
    pub(super) fn wrong(&mut self, key: impl Into<String>, reason: impl Into<String>) {
        self.wrong.push(FieldError { field: key.into(), reason: reason.into() });
    }

    /// The value, or a complaint and nothing.
    pub(super) fn take<T>(&mut self, key: &str, value: Result<T, String>) -> Option<T> {
        value.map_err(|reason| self.wrong(key, reason)).ok()
    }

    /// A complaint unless the text has 1 to `chars_max` characters and none that controls a terminal.
    fn text(&mut self, key: &str, text: &str, chars_max: usize) {
        if text.trim().is_empty() || text.chars().count() > chars_max || text.chars().any(char::is_control) {
            self.wrong(key, format!("must have 1 to {chars_max} characters, none of them control characters."));
        }
    }

    pub(super) fn count(&mut self, key: &str, count: usize, max: usize) {
        if count > max {
            self.wrong(key, format!("has {count} entries; at most {max}."));
        }
    }

    pub(super) fn patterns(&mut self, key: &str, texts: &[String]) -> Vec<TypePattern> {
        self.count(key, texts.len(), GRANTS_MAX);
        texts
            .iter()
            .filter_map(|text| self.take(key, TypePattern::parse(text).map_err(|why| format!("'{text}' {why}"))))
            .collect()
    }

    fn duration(&mut self, key: &str, text: &str) -> Option<Duration> {
        let read = crate::config::parse_duration(text).filter(|duration| !duration.is_zero());
        self.take(key, read.ok_or_else(|| format!("'{text}' is no duration; write one such as 250ms, 5s or 15m.")))
    }

    pub(super) fn size(&mut self, key: &str, text: &str) -> Option<u64> {
        let read = crate::config::parse_size(text).filter(|size| *size > 0);
        self.take(key, read.ok_or_else(|| format!("'{text}' is no size; write one such as 64KiB, 4MiB or 1GiB.")))
    }
}

impl Manifest {
    /// Reads the text of a `plugin.toml`; the error holds every broken key.
    pub fn parse(text: &str) -> Result<Manifest, Error> {
        let raw: Raw = toml::from_str(text).map_err(|error| {
            // Without the lines themselves: they may be long, and are not ours to repeat.
            let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            Error::invalid_as(FAULT, "plugin.toml", format!("line {line}: {}.", error.message()))
        })?;
        let mut check = Checker { wrong: Vec::new() };
        let version = check.identity(&raw);
        let manifest = Manifest {
            permissions: check.permissions(&raw),
            routes: check.routes(&raw),
            events: check.events(&raw),
            tools: check.tools(&raw),
            sources: check.sources(&raw),
            pages: check.pages(&raw),
            errors: check.errors(&raw),
            limits: check.limits(&raw),
            version: version.unwrap_or_else(|| Version::new(0, 0, 0)),
            name: raw.name,
            description: raw.description,
            license: raw.license,
            interface: raw.interface,
            component: raw.component,
            publisher: raw.publisher,
        };
        if check.wrong.is_empty() {
            return Ok(manifest);
        }
        let fields = check.wrong.into_iter().map(|f| FieldError { field: format!("plugin.toml: {}", f.field), ..f });
        Err(Error::Invalid { code: FAULT, fields: fields.collect() })
    }

    /// What the operator must agree to, in words. Empty = nothing.
    pub fn grants(&self) -> Vec<Grant> {
        Grant::all(self)
    }
}

impl Checker {
    /// The interface is looked at first: a plugin for another host may say things that this one cannot read.
    fn identity(&mut self, raw: &Raw) -> Option<Version> {
        if !INTERFACES.contains(&raw.interface.as_str()) {
            let served = INTERFACES.join(", ");
            self.wrong(
                "interface",
                format!("'{}' is not served here; this aman serves {served}. Build the plugin for it.", raw.interface),
            );
        }
        if let Err(reason) = check_name(&raw.name) {
            self.wrong("name", reason);
        }
        self.text("description", &raw.description, DESCRIPTION_CHARS_MAX);
        if let Some(license) = &raw.license {
            self.text("license", license, 100);
        }
        if let Err(reason) = names::check(&raw.component).and_then(|()| wasm_at_top(&raw.component)) {
            self.wrong("component", reason);
        }
        if let Some(Err(reason)) = raw.publisher.as_deref().map(signature::key_id) {
            self.wrong("publisher", reason);
        }
        let version = Version::parse(&raw.version)
            .map_err(|error| format!("'{}' is no semantic version such as 1.2.0: {error}.", raw.version));
        self.take("version", version)
    }

    fn routes(&mut self, raw: &Raw) -> Vec<Route> {
        self.count("routes", raw.routes.len(), ITEMS_MAX);
        let mut seen = BTreeSet::new();
        let mut found = Vec::new();
        for (n, route) in raw.routes.iter().enumerate() {
            let key = format!("routes[{n}]");
            if !ROUTE_METHODS.contains(&route.method.as_str()) {
                let reason = format!("must be one of {}; GET answers HEAD too.", ROUTE_METHODS.join(", "));
                self.wrong(format!("{key}.method"), reason);
            }
            if route.path != "/" || !route.listener {
                let checked = check_path(&route.path);
                checked.unwrap_or_else(|reason| self.wrong(format!("{key}.path"), reason));
            }
            if route.root && route.listener {
                self.wrong(format!("{key}.root"), "means nothing with listener = true, which is at the root there.");
            }
            // A listener of its own has all of them at the root.
            if !seen.insert((&route.method, &route.path)) {
                self.wrong(&key, format!("{} {} stands there twice.", route.method, route.path));
            }
            let asked = route.body.as_deref().and_then(|text| self.size(&format!("{key}.body"), text));
            let (most, where_to) =
                if route.public { (PUBLIC_BODY_MAX as u64, " on a public route") } else { (BODY_MAX, "") };
            if asked.is_some_and(|asked| asked > most) {
                self.wrong(format!("{key}.body"), format!("may be {} MiB at the most{where_to}.", most >> 20));
            }
            found.push(Route {
                method: route.method.clone(),
                path: route.path.clone(),
                public: route.public,
                root: route.root,
                listener: route.listener,
                body: asked.unwrap_or(BODY_DEFAULT),
            });
        }
        found
    }

    fn events(&mut self, raw: &Raw) -> Vec<Subscription> {
        self.count("events", raw.events.len(), ITEMS_MAX);
        let mut found = Vec::new();
        for (n, events) in raw.events.iter().enumerate() {
            let key = format!("events[{n}]");
            if events.types.is_empty() {
                self.wrong(format!("{key}.types"), "needs at least one type, such as \"file.created\".");
            }
            let when = events.when.as_deref().and_then(|text| {
                self.take(&format!("{key}.when"), Expr::compile(text).map_err(|error| error.to_string()))
            });
            let concurrency = self.take(&format!("{key}.concurrency"), parse_concurrency(events.concurrency.as_ref()));
            found.push(Subscription {
                types: self.patterns(&format!("{key}.types"), &events.types),
                when,
                concurrency: concurrency.unwrap_or(1),
            });
        }
        found
    }

    fn tools(&mut self, raw: &Raw) -> Vec<Tool> {
        self.count("tools", raw.tools.len(), ITEMS_MAX);
        let mut seen = BTreeSet::new();
        for (n, tool) in raw.tools.iter().enumerate() {
            let key = format!("tools[{n}]");
            let starts_well = tool.name.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
            let plain = tool.name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
            if !starts_well || !plain || tool.name.len() > 64 {
                self.wrong(
                    format!("{key}.name"),
                    "must be 1 to 64 lower-case letters, digits and '_', a letter first.",
                );
            }
            if !seen.insert(&tool.name) {
                self.wrong(format!("{key}.name"), format!("'{}' stands there twice.", tool.name));
            }
            self.text(&format!("{key}.description"), &tool.description, DESCRIPTION_CHARS_MAX);
            if names::check(&tool.schema).is_err() || !tool.schema.starts_with("schemas/") {
                self.wrong(format!("{key}.schema"), "must be a file below schemas/.");
            }
        }
        let of = |tool: &super::raw::Tool| Tool {
            name: tool.name.clone(),
            description: tool.description.clone(),
            schema: tool.schema.clone(),
        };
        raw.tools.iter().map(of).collect()
    }

    fn sources(&mut self, raw: &Raw) -> Vec<Source> {
        self.count("sources", raw.sources.len(), ITEMS_MAX);
        let mut seen = BTreeSet::new();
        let mut found = Vec::new();
        for (n, source) in raw.sources.iter().enumerate() {
            let key = format!("sources[{n}]");
            self.id(&key, &source.id, &mut seen);
            let Some(every) = self.duration(&format!("{key}.every"), &source.every) else { continue };
            if !EVERY.contains(&every) {
                self.wrong(format!("{key}.every"), "must be from 1s to 7d.");
            }
            found.push(Source { id: source.id.clone(), every });
        }
        found
    }

    fn pages(&mut self, raw: &Raw) -> Vec<Page> {
        self.count("pages", raw.pages.len(), ITEMS_MAX);
        let mut seen = BTreeSet::new();
        for (n, page) in raw.pages.iter().enumerate() {
            let key = format!("pages[{n}]");
            self.id(&key, &page.id, &mut seen);
            self.text(&format!("{key}.title"), &page.title, 100);
            if names::check(&page.path).is_err() || !page.path.starts_with("ui/") || !page.path.ends_with(".html") {
                self.wrong(format!("{key}.path"), "must be an .html file below ui/.");
            }
        }
        let of =
            |page: &super::raw::Page| Page { id: page.id.clone(), title: page.title.clone(), path: page.path.clone() };
        raw.pages.iter().map(of).collect()
    }

    fn errors(&mut self, raw: &Raw) -> Option<Arc<Envelope>> {
        let text = &raw.errors.as_ref()?.envelope;
        self.take("errors.envelope", Envelope::compile(text)).map(Arc::new)
    }

    fn id<'a>(&mut self, key: &str, id: &'a str, seen: &mut BTreeSet<&'a str>) {
        if let Err(reason) = names::check_id(id) {
            self.wrong(format!("{key}.id"), reason);
        }
        if !seen.insert(id) {
            self.wrong(format!("{key}.id"), format!("'{id}' stands there twice."));
        }
    }

    /// What is asked for beyond what the host allows is cut down to it.
    fn limits(&mut self, raw: &Raw) -> Limits {
        let raw = &raw.limits;
        let mut size = |key: &str, text: &Option<String>, default: u64, max: u64| {
            text.as_deref().and_then(|text| self.size(&format!("limits.{key}"), text)).unwrap_or(default).min(max)
        };
        let memory = size("memory", &raw.memory, 64 << 20, 512 << 20);
        let output = size("output", &raw.output, 8 << 20, 64 << 20);
        let mut time = |key: &str, text: &Option<String>, default: u64, max: u64| {
            let asked = text.as_deref().and_then(|text| self.duration(&format!("limits.{key}"), text));
            asked.unwrap_or(Duration::from_secs(default)).min(Duration::from_secs(max))
        };
        let (time, wait) = (time("time", &raw.time, 5, 60), time("wait", &raw.wait, 60, 600));
        for (key, number) in
            [("max_instances", raw.max_instances), ("max_calls_per_instance", raw.max_calls_per_instance)]
        {
            if number == Some(0) {
                self.wrong(format!("limits.{key}"), "must be at least 1.");
            }
        }
        let isolation = raw.isolation.as_deref().unwrap_or("pooled");
        if !["pooled", "per-call"].contains(&isolation) {
            self.wrong("limits.isolation", "must be \"pooled\" or \"per-call\".");
        }
        let instances = raw.max_instances.unwrap_or(4).clamp(1, 16);
        Limits {
            memory,
            time,
            wait,
            max_instances: usize::try_from(instances).unwrap_or(1),
            max_calls_per_instance: raw.max_calls_per_instance.unwrap_or(10_000).clamp(1, 1_000_000),
            output,
            per_call: isolation == "per-call",
        }
    }
}

fn wasm_at_top(name: &str) -> Result<(), String> {
    let good = name.ends_with(".wasm") && !name.contains('/');
    good.then_some(()).ok_or_else(|| "must be a .wasm file beside plugin.toml, such as \"plugin.wasm\".".to_owned())
}

/// `serial`, `parallel` (8 side by side) or a number from 1 to 64.
fn parse_concurrency(value: Option<&toml::Value>) -> Result<usize, String> {
    match value {
        None => Ok(1),
        Some(toml::Value::String(text)) if text == "serial" => Ok(1),
        Some(toml::Value::String(text)) if text == "parallel" => Ok(8),
        Some(toml::Value::Integer(number @ 1..=64)) => Ok(usize::try_from(*number).unwrap_or(1)),
        Some(_) => Err("must be \"serial\", \"parallel\" or a number from 1 to 64.".to_owned()),
    }
}

/// Checks a route's path: `/feeds`, `/feeds/{id}`, `/files/{*rest}`.
fn check_path(path: &str) -> Result<(), String> {
    if path.len() > PATH_BYTES_MAX || !path.starts_with('/') || path.len() < 2 {
        return Err(format!("must begin with '/' and have 2 to {PATH_BYTES_MAX} bytes."));
    }
    let segments: Vec<&str> = path[1..].split('/').collect();
    let mut names = BTreeSet::new();
    for (n, segment) in segments.iter().enumerate() {
        if let Some(name) = segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
            let (rest, name) = name.strip_prefix('*').map_or((false, name), |name| (true, name));
            let good = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase())
                && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
            if !good || !names.insert(name) {
                return Err(format!("'{segment}' is no parameter of its own such as {{id}}."));
            }
            if rest && n + 1 != segments.len() {
                return Err(format!("'{segment}' takes the rest of the path, so it must be its last part."));
            }
        } else if segment.is_empty()
            || matches!(*segment, "." | "..")
            || !segment.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'~' | b'-'))
        {
            return Err(format!(
                "'{segment}' is no part of a path: letters, digits, '.', '_', '~', '-', or a {{name}}."
            ));
        }
    }
    Ok(())
}
