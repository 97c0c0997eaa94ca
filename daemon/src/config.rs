//! Every setting: its key, default, meaning and check; where it came from; where things are on disk.
//!
//! Layers: defaults < file < `AMAN_*` environment < flags. The only module that reads the environment.

mod backup;
pub mod broker;
mod change;
mod cron;
pub mod explore;
mod kept;
mod keyring;
pub mod mcp;
mod mind;
pub mod models;
mod paths;
pub mod plugins;
mod recipe;
mod retention;
mod secrets;
mod sections;
mod settings;
pub mod sinks;
pub mod sources;
mod table;
mod telemetry;
mod tools;
mod units;

pub use backup::Backups;
pub use change::{Change, change, holds_at_once, holds_reference, nearest};
pub use kept::{signing_key, token};
pub use mind::BudgetConfig;
pub use paths::{ClientEnv, Paths, client_env};
pub use recipe::{
    FILE_BYTES_MAX, Overrides, Recipe, check, configured_token, load, load_or_last_good, parse, write_private,
};
pub use retention::Retention;
pub use secrets::{References, is_reference, is_secret_name};
pub use sections::{Applied, shown};
pub use settings::{Effective, Origin, SETTINGS, Setting};
pub use table::Faults;
pub use telemetry::Telemetry;
pub use tools::{Search, ToolsConfig};
pub use units::{parse_duration, parse_size};

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use toml::{Table, Value};

use crate::error::{Error, FieldError};
use settings::Layers;

/// A value that never shows itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides `text`.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The value, for the one place that compares or sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// What a stream without credentials shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublicStream {
    /// Id, source, type, time, sequence, trace and priority.
    Metadata,
    /// Everything.
    Full,
    /// Nothing: credentials are needed.
    Off,
}

/// `[http]`
#[derive(Debug, Clone)]
pub struct Http {
    /// Where to listen.
    pub bind: SocketAddr,
    /// The static token; none = taken from, or generated into, the token file.
    pub token: Option<Secret>,
    /// False with `auth = "none"`.
    pub auth: bool,
    /// True when addresses beyond loopback may be listened on.
    pub may_be_remote: bool,
    /// Hosts besides loopback that requests may name.
    pub allowed_hosts: Vec<String>,
    /// Origins besides the daemon's own that browsers may call from.
    pub allowed_origins: Vec<String>,
    /// See [`PublicStream`].
    pub public_stream: PublicStream,
    /// True when more actions need `x-aman-confirm`.
    pub strict_confirm: bool,
    /// True when definitions that run commands may come in over HTTP.
    pub allow_exec_definitions: bool,
    /// True when the Model Context Protocol is served at `/mcp`.
    pub mcp: bool,
    /// True when agents are served at `/v1` as OpenAI serves models.
    pub openai: bool,
    /// Connections open at one time.
    pub max_connections: usize,
    /// Requests a second of each principal but the owner; 0 = no limit.
    pub rate_limit: u32,
    /// Requests a second of the owner; 0 = no limit.
    pub owner_rate_limit: u32,
    /// A Unix socket to listen on as well.
    pub socket: Option<PathBuf>,
    /// `[http.tls]`: the files of the certificate chain and of its key.
    pub tls: Option<(PathBuf, PathBuf)>,
}

/// `[bus]`
#[derive(Debug, Clone)]
pub struct BusConfig {
    /// `full`: an acknowledged event survives power loss. `normal`: it survives a crash of the process.
    pub full_durability: bool,
    /// How long keys of events are remembered.
    pub dedup_window: Duration,
    /// How many effects may follow each other.
    pub max_causation_depth: u32,
    /// Deliveries that may wait before pushes are refused.
    pub max_pending: i64,
    /// Bytes of the disk that stay free for work that is under way; below, pushes are refused.
    pub keep_free_bytes: u64,
    /// Notifications that one consumer may have in an hour; 0 = no limit.
    pub notify_per_hour: u32,
    /// What is told again within this time of the last time is counted instead of told.
    pub notify_window: Duration,
    /// How long everything is kept.
    pub retention: Retention,
}

/// `[log]`
#[derive(Debug, Clone)]
pub struct Log {
    /// What is logged: a level or a filter such as `info,aman::bus=debug`.
    pub level: String,
    /// True: lines are JSON.
    pub json: bool,
    /// None: the log goes to standard error only.
    pub files: Option<LogFiles>,
}

/// Where log files are, and what becomes of full ones.
#[derive(Debug, Clone)]
pub struct LogFiles {
    /// Their folder.
    pub dir: PathBuf,
    /// A file of this size is put aside.
    pub bytes_max: u64,
    /// How many that were put aside are kept.
    pub keep: u32,
    /// What is older goes.
    pub age_max: Duration,
}

/// A `[sources.<id>]` of kind `files`.
#[derive(Debug, Clone, PartialEq)]
pub struct FileSource {
    /// Its id; its events' source is `files/<id>`.
    pub id: String,
    /// The folder, absolute.
    pub path: PathBuf,
    /// Globs over the path below the folder; empty = everything.
    pub patterns: Vec<String>,
    /// Globs that are left out.
    pub ignore: Vec<String>,
    /// True: files found at first sight become events too.
    pub emit_initial: bool,
    /// Trust of its events; default owner.
    pub trust: crate::event::Trust,
}

/// The whole configuration, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where things are.
    pub paths: Paths,
    /// `[http]`
    pub http: Http,
    /// `[bus]`
    pub bus: BusConfig,
    /// `[backup]`
    pub backup: Backups,
    /// How long a shutdown waits for running work.
    pub drain_timeout: Duration,
    /// `[log]`
    pub log: Log,
    /// `[skills] paths`
    pub skill_paths: Vec<PathBuf>,
    /// `[skills] watch`
    pub skills_watch: bool,
    /// True: `/inject-event` and other test helpers answer.
    pub debug_endpoints: bool,
    /// `[sources.*]`, and the inbox unless `[sources.default]` is something else or `enabled = false`.
    pub sources: Vec<sources::Source>,
    /// `[sinks.*]`
    pub sinks: Vec<sinks::Sink>,
    /// `[explore.sources.*]`
    pub explore: Vec<explore::ExploreSource>,
    /// `[mcp.*]`
    pub mcp: Vec<mcp::McpServer>,
    /// `[plugin.*]`
    pub plugins: Vec<plugins::PluginSection>,
    /// `[workflows] secrets`: what `use.secrets` of a workflow names.
    pub workflow_secrets: std::collections::BTreeMap<String, Secret>,
    /// `[http_client] allow_private`: outgoing calls may reach loopback and private addresses.
    pub allow_private: bool,
    /// `[telemetry]`: where spans go; none = nowhere.
    pub telemetry: Option<Telemetry>,
    /// `[tools]`
    pub tools: ToolsConfig,
    /// `[budget]`
    pub budget: BudgetConfig,
    /// `[content_policy] deny`: what messages must not hold.
    pub denied: Vec<regex::Regex>,
    /// `[models]`, `[providers.*]` and `[prices.*]`
    pub models: models::ModelsConfig,
    /// `[cron.*]`: jobs by id.
    pub cron: Vec<(String, crate::schedule::Job)>,
    /// Every setting with its value and where it came from.
    pub effective: Vec<Effective>,
    /// What was odd but not wrong; to be logged once.
    pub warnings: Vec<String>,
    /// Safe mode: what is wrong with the file, while the last one that was good is in force.
    pub broken: Option<String>,
    recipe: Option<Recipe>,
}

/// What the command line sets.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// `--home`: everything under one folder.
    pub home: Option<PathBuf>,
    /// `--config`
    pub config: Option<PathBuf>,
    /// `--bind`
    pub bind: Option<String>,
    /// `--log`
    pub log: Option<String>,
    /// What is done with references to secrets.
    pub references: References,
}

impl Flags {
    /// For the command line, which finds the daemon of `home` and needs no secret: references are not followed.
    pub fn of_client(home: Option<&std::path::Path>) -> Flags {
        Flags { home: home.map(std::path::Path::to_owned), references: References::Named, ..Flags::default() }
    }
}

/// The code of a configuration of which nothing is wrong but that the keyring gives its secrets not now.
pub const KEYRING_LOCKED: &str = "keyring_locked";

fn build(paths: Paths, file: &Table, mut layers: Layers) -> Result<Config, Error> {
    let http = http(&paths, &mut layers);
    let bus = BusConfig {
        full_durability: layers.one_of("bus.durability", &["full", "normal"]) == "full",
        dedup_window: layers.duration("bus.dedup_window"),
        max_causation_depth: u32::try_from(layers.number("bus.max_causation_depth", 1..=10_000)).unwrap_or(64),
        max_pending: layers.number("bus.max_pending", 1..=i64::MAX),
        keep_free_bytes: layers.number("bus.keep_free_mib", 0..=1 << 30).unsigned_abs() << 20,
        notify_per_hour: u32::try_from(layers.number("notifications.per_hour", 0..=100_000)).unwrap_or(60),
        notify_window: layers.duration("notifications.window"),
        retention: Retention::read(&mut layers),
    };
    let backup = Backups::read(&paths, &mut layers, bus.keep_free_bytes);
    let drain_timeout = layers.duration("runtime.drain_timeout");
    let log = log(&paths, &mut layers);
    let home = paths.home_dir.clone();
    let skill_paths = layers.list("skills.paths").iter().map(|path| paths::expand(path, home.as_deref())).collect();
    let skills_watch = layers.flag("skills.watch");
    let debug_endpoints = layers.flag("debug.force_enable_debug_endpoints");
    let sources = sources(file, &paths, &mut layers);
    let sinks = sinks(file, &paths, &mut layers);
    let explore = explore(file, &paths, &mut layers);
    let mcp = mcp(file, &paths, &mut layers);
    let plugins = plugins(file, &http, &mut layers);
    let workflow_secrets = workflow_secrets(file, &mut layers);
    let allow_private = layers.flag("http_client.allow_private");
    let telemetry = telemetry::read(&mut layers);
    let tools = tools::read(&paths, &mut layers);
    let (budget, denied) = (BudgetConfig::read(&mut layers), mind::denied(&mut layers));
    let models = models::read(file, &paths, &mut layers);
    let cron = cron::jobs(file, &mut layers);
    let for_now = layers.for_now;
    let (effective, warnings, wrong) = layers.finish(file);
    if !wrong.is_empty() {
        let code = if wrong.len() == for_now { KEYRING_LOCKED } else { "invalid_config" };
        return Err(Error::Invalid { code, fields: wrong });
    }
    Ok(Config {
        paths,
        http,
        bus,
        backup,
        drain_timeout,
        log,
        skill_paths,
        skills_watch,
        debug_endpoints,
        sources,
        sinks,
        explore,
        mcp,
        plugins,
        workflow_secrets,
        allow_private,
        telemetry,
        tools,
        budget,
        denied,
        models,
        cron,
        effective,
        warnings,
        broken: None,
        recipe: None,
    })
}

fn http(paths: &Paths, layers: &mut Layers) -> Http {
    let bind_text = layers.text("http.bind");
    let bind = bind_text.parse::<SocketAddr>().unwrap_or_else(|_| {
        layers.wrong("http.bind", "must be an address and a port, such as 127.0.0.1:9090.");
        SocketAddr::from(([127, 0, 0, 1], 9090))
    });
    let token = layers.secret("http.token");
    let mut http = Http {
        may_be_remote: false,
        auth: layers.one_of("http.auth", &["token", "none"]) == "token",
        allowed_hosts: layers.list("http.allowed_hosts"),
        allowed_origins: layers.list("http.allowed_origins"),
        public_stream: match layers.one_of("http.public_stream", &["metadata", "full", "off"]) {
            "full" => PublicStream::Full,
            "off" => PublicStream::Off,
            _ => PublicStream::Metadata,
        },
        strict_confirm: layers.flag("http.strict_confirm") || !bind.ip().is_loopback(),
        allow_exec_definitions: layers.flag("http.allow_exec_definitions"),
        mcp: layers.flag("http.mcp"),
        openai: layers.flag("http.openai"),
        max_connections: usize::try_from(layers.number("http.max_connections", 1..=100_000)).unwrap_or(1),
        rate_limit: u32::try_from(layers.number("http.rate_limit", 0..=1_000_000)).unwrap_or(0),
        owner_rate_limit: u32::try_from(layers.number("http.owner_rate_limit", 0..=1_000_000)).unwrap_or(0),
        socket: optional_path("http.socket", paths, layers),
        tls: tls(paths, layers),
        bind,
        token,
    };
    http.may_be_remote = layers.is_set("http.token") && http.auth && layers.flag("http.allow_remote");
    if !(bind.ip().is_loopback() || http.may_be_remote) {
        layers.wrong(
            "http.bind",
            "is not a loopback address: that needs http.token and http.allow_remote = true. \
             Bind 127.0.0.1 unless other machines are to reach the daemon.",
        );
    }
    http
}

/// The path in `key`; empty = none.
fn optional_path(key: &'static str, paths: &Paths, layers: &mut Layers) -> Option<PathBuf> {
    let text = layers.text(key);
    if text.is_empty() {
        return None;
    }
    let path = paths::expand(&text, paths.home_dir.as_deref());
    if !path.is_absolute() {
        layers.wrong(key, "must be an absolute path, or begin with ~/.");
        return None;
    }
    Some(path)
}

fn log(paths: &Paths, layers: &mut Layers) -> Log {
    let level = layers.text("log.level");
    if let Err(error) = crate::telemetry::check_filter(&level) {
        layers.wrong_of(error);
    }
    let json = layers.one_of("log.format", &["text", "json"]) == "json";
    let files = LogFiles {
        dir: optional_path("log.dir", paths, layers).unwrap_or_else(|| paths.state.clone()),
        bytes_max: layers.size("log.max_size", 64 << 10..=1 << 40),
        keep: u32::try_from(layers.number("log.keep", 0..=1000)).unwrap_or(0),
        age_max: layers.duration("log.max_age"),
    };
    Log { level, json, files: Some(files).filter(|_| layers.flag("log.files")) }
}

fn tls(paths: &Paths, layers: &mut Layers) -> Option<(PathBuf, PathBuf)> {
    let mut path = |key| optional_path(key, paths, layers);
    match (path("http.tls.cert"), path("http.tls.key")) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        (Some(_), None) => {
            layers.wrong("http.tls.key", "is missing: http.tls.cert needs its private key.");
            None
        }
        (None, Some(_)) => {
            layers.wrong("http.tls.cert", "is missing: http.tls.key needs its certificate.");
            None
        }
    }
}

fn sources(file: &Table, paths: &Paths, layers: &mut Layers) -> Vec<sources::Source> {
    let inbox = sources::inbox(paths);
    let Some(table) = file.get("sources").and_then(Value::as_table) else { return vec![inbox] };
    let references = layers.references;
    let mut found = each_table("sources", table, layers, |id, table, faults| {
        let is_off = id == inbox.id && table.get("enabled") == Some(&Value::Boolean(false));
        if is_off { None } else { sources::source(id, table, paths, references, faults) }
    });
    let folder = |one: &sources::Source| match &one.kind {
        sources::SourceKind::Files(files) => Some(files.path.clone()),
        _ => None,
    };
    // Whoever watches that folder under a name of their own is not told twice.
    if !table.contains_key(&inbox.id) && !found.iter().any(|one| folder(one) == folder(&inbox)) {
        found.push(inbox);
    }
    found
}

fn sinks(file: &Table, paths: &Paths, layers: &mut Layers) -> Vec<sinks::Sink> {
    let Some(table) = file.get("sinks").and_then(Value::as_table) else { return Vec::new() };
    let references = layers.references;
    each_table("sinks", table, layers, |id, table, faults| sinks::sink(id, table, paths, references, faults))
}

fn explore(file: &Table, paths: &Paths, layers: &mut Layers) -> Vec<explore::ExploreSource> {
    let Some(section) = file.get("explore").and_then(Value::as_table) else { return Vec::new() };
    for key in section.keys().filter(|key| *key != "sources") {
        layers.warn_unknown(&format!("explore.{key}"), key, &["sources"]);
    }
    let Some(sources) = section.get("sources") else { return Vec::new() };
    let Some(table) = sources.as_table() else {
        layers.wrong("explore.sources", "must be sections with a name each, such as [explore.sources.news].");
        return Vec::new();
    };
    let references = layers.references;
    each_table("explore.sources", table, layers, |name, table, faults| {
        explore::source(name, table, paths, references, faults)
    })
}

fn mcp(file: &Table, paths: &Paths, layers: &mut Layers) -> Vec<mcp::McpServer> {
    let Some(table) = file.get("mcp").and_then(Value::as_table) else { return Vec::new() };
    let references = layers.references;
    each_table("mcp", table, layers, |name, table, faults| mcp::server(name, table, paths, references, faults))
}

fn plugins(file: &Table, http: &Http, layers: &mut Layers) -> Vec<plugins::PluginSection> {
    let Some(table) = file.get("plugin").and_then(Value::as_table) else { return Vec::new() };
    let references = layers.references;
    each_table("plugin", table, layers, |name, table, faults| {
        plugins::section(name, table, http.may_be_remote, references, faults)
    })
}

/// `[workflows] secrets = { name = "env:NAME" }`
fn workflow_secrets(file: &Table, layers: &mut Layers) -> std::collections::BTreeMap<String, Secret> {
    let Some(section) = file.get("workflows") else { return std::collections::BTreeMap::new() };
    // That it must be a section is said with the other sections.
    let Some(section) = section.as_table() else { return std::collections::BTreeMap::new() };
    let (mut reader, mut faults) =
        (table::Reader::new("workflows".to_owned(), section, layers.references), Faults::default());
    let secrets = reader.variables("secrets");
    reader.finish(&mut faults);
    take_faults(faults, layers);
    if layers.references == References::Followed {
        secrets.iter().for_each(|(_, secret)| crate::redact::learn(secret.expose()));
    }
    secrets.into_iter().collect()
}

/// Reads every `[section.<id>]`; what is wrong goes to `layers`.
fn each_table<T>(
    section: &str,
    tables: &Table,
    layers: &mut Layers,
    read: impl Fn(&str, &Table, &mut Faults) -> Option<T>,
) -> Vec<T> {
    let (mut found, mut faults) = (Vec::new(), Faults::default());
    for (id, settings) in tables {
        let key = format!("{section}.{id}");
        if !sources::is_id(id) {
            layers.wrong(&key, "is no id: 1 to 64 lower-case letters, digits, '-' and '_'.");
            continue;
        }
        match settings.as_table() {
            Some(settings) => found.extend(read(id, settings, &mut faults)),
            None => layers.wrong(&key, &format!("must be a table, such as [{section}.{id}].")),
        }
    }
    take_faults(faults, layers);
    found
}

fn take_faults(faults: Faults, layers: &mut Layers) {
    for (key, known) in &faults.unknown {
        layers.warn_unknown(key, key.rsplit('.').next().unwrap_or(key), known);
    }
    layers.for_now += faults.for_now;
    for fault in faults.wrong {
        layers.wrong(&fault.field, &fault.reason);
    }
}

fn field(field: &str, reason: String) -> FieldError {
    FieldError { field: field.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Config, Error> {
        let file: Table = text.parse().expect("TOML");
        let layers = Layers::new(&file, References::Followed);
        build(Paths::under("/home/me/aman".into(), Some("/home/me".into())), &file, layers)
    }

    #[test]
    fn an_empty_file_watches_the_inbox() {
        let config = check("").expect("valid");
        assert_eq!(config.http.bind.to_string(), "127.0.0.1:9090");
        assert_eq!(config.bus.dedup_window, Duration::from_secs(86_400));
        assert_eq!((config.sources.len(), config.sources[0].id.as_str()), (1, "default"));
        assert!(config.warnings.is_empty());
    }

    #[test]
    fn wrong_settings_are_named() {
        let cases = [
            ("[http]\nbind = \"nowhere\"", "http.bind"),
            ("[http]\nbind = \"0.0.0.0:1\"", "http.bind"),
            ("[http]\nbind = \"0.0.0.0:1\"\ntoken = \"0123456789abcdef\"", "http.bind"),
            ("[http]\ntoken = \"short\"", "http.token"),
            ("[http]\nauth = \"maybe\"", "http.auth"),
            ("[bus]\ndedup_window = \"long\"", "bus.dedup_window"),
            ("[bus]\nmax_pending = 0", "bus.max_pending"),
            ("[http]\nallowed_hosts = \"a\"", "http.allowed_hosts"),
            ("[sources.a]\nkind = \"files\"", "sources.a.path"),
            ("[sources.a]\nkind = \"files\"\npath = \"rel\"", "sources.a.path"),
            ("[sources.A]\nkind = \"files\"", "sources.A"),
            ("[sources.a]\nkind = \"stars\"", "sources.a.kind"),
            ("[sources.a]\nkind = \"webhook\"\ntrust = \"owner\"", "sources.a.trust"),
            ("[sources.a]\nkind = \"webhook\"\nverify = { scheme = \"github\" }", "sources.a.verify.secret"),
            ("[[sources]]\nid = \"a\"", "sources"),
            ("sources = 5", "sources"),
            ("sources = []", "sources"),
            ("sinks = \"a\"", "sinks"),
            ("plugin = 1", "plugin"),
            ("[plugin.A]", "plugin.A"),
            ("[plugin.a]\nbind = \"x\"", "plugin.a.bind"),
            ("[plugin.a]\nbind = \"0.0.0.0:1\"", "plugin.a.bind"),
            ("[plugin.a]\nsettings = { b = [1] }", "plugin.a.settings"),
            ("[plugin.a]\nsettings = { B = 1 }", "plugin.a.settings"),
            ("[plugin.a]\nsecrets = { B = \"short\" }", "plugin.a.secrets"),
            ("[plugin.a]\nsecrets = { B = 1 }", "plugin.a.secrets"),
            ("[[cron]]\nid = \"a\"", "cron"),
            ("http = 5", "http"),
            ("http.tls = \"cert.pem\"", "http.tls"),
            ("[sources.a]\nkind = \"command\"", "sources.a.command"),
            ("[sources.a]\nkind = \"http_poll\"\nurl = \"ftp://x\"", "sources.a.url"),
            ("[sources.a]\nkind = \"mqtt\"\nbroker = \"ws://x\"\ntopics = [\"a\"]", "sources.a.broker"),
            ("[sources.a]\nkind = \"mqtt\"\nbroker = \"mqtt://x\"\ntopics = [\"a\"]\nca = \"/a\"", "sources.a.broker"),
            ("[sources.a]\nkind = \"mqtt\"\nbroker = \"mqtts://x\"\ntopics = [\"a\"]\ncert = \"/a\"", "sources.a.key"),
            ("[sources.a]\nkind = \"mqtt\"\nbroker = \"mqtts://x\"\ntopics = [\"a\"]\nca = \"a\"", "sources.a.ca"),
            ("[sinks.a]\nkind = \"webhook\"\ntypes = [\"a\"]\nurl = \"https://a\"", "sinks.a.secret"),
        ];
        for (text, wanted) in cases {
            match check(text) {
                Err(Error::Invalid { fields, .. }) => assert_eq!(fields[0].field, wanted, "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
        let remote = "[http]\nbind = \"0.0.0.0:1\"\ntoken = \"0123456789abcdef\"\nallow_remote = true";
        assert!(check(remote).expect("valid").http.strict_confirm);
    }

    #[test]
    fn references_that_are_not_followed_are_checked_in_form_only() {
        let text = "[http]\nbind = \"0.0.0.0:1\"\nallow_remote = true\ntoken = \"env:NOBODY_SET_THIS\"\n\
            [sources.a]\nkind = \"webhook\"\nverify = { scheme = \"github\", secret = \"file:/nowhere\" }\n\
            [sources.b]\nkind = \"command\"\ncommand = \"x\"\nenv = { A = \"env:NOBODY_SET_THIS\" }\n\
            [sinks.a]\nkind = \"webhook\"\ntypes = [\"a\"]\nurl = \"https://a\"\nsecret = \"keyring:a/b\"\n\
            headers = { b = \"env:NOBODY_SET_THIS\" }\n[plugin.a]\nsecrets = { B = \"env:NOBODY_SET_THIS\" }\n";
        let file: Table = text.parse().expect("TOML");
        let paths = || Paths::under("/home/me/aman".into(), None);
        let named = build(paths(), &file, Layers::new(&file, References::Named)).expect("nothing is looked up");
        assert!(named.http.token.is_none(), "what stands for a secret is not sent as one");
        let Err(Error::Invalid { code, fields }) = build(paths(), &file, Layers::new(&file, References::Followed))
        else {
            panic!("nothing is there");
        };
        let keys: Vec<&str> = fields.iter().map(|field| field.field.as_str()).collect();
        let mut wanted = vec!["http.token", "sources.a.verify.secret", "sources.b.env", "sinks.a.headers"];
        wanted.extend(["sinks.a.secret", "plugin.a.secrets"]);
        assert!(wanted.iter().all(|key| keys.iter().filter(|one| *one == key).count() == 1), "{keys:?}");
        assert_eq!((code, keys.len()), ("invalid_config", 6), "{keys:?}");
    }

    #[test]
    fn secrets_that_stand_in_headers_and_variables_are_known() {
        let text = "[sources.a]\nkind = \"http_poll\"\nurl = \"https://a\"\n\
            headers = { Authorization = \"Bearer canary-of-a-header\", accept = \"text/canary-of-none\" }\n\
            [sources.b]\nkind = \"command\"\ncommand = \"x\"\nenv = { A_TOKEN = \"canary-of-a-variable\" }\n";
        check(text).expect("valid");
        let said = crate::redact::text("canary-of-a-header, canary-of-a-variable, text/canary-of-none").into_owned();
        assert_eq!(said, "redacted, redacted, text/canary-of-none");
    }

    #[test]
    fn unknown_keys_warn_with_a_suggestion() {
        let config = check("[http]\nbin = \"127.0.0.1:1\"\n[buss]\n[workflows.x]\n").expect("valid");
        let all = config.warnings.join("\n");
        assert!(all.contains("http.bin") && all.contains("http.bind"), "{all}");
        assert!(all.contains("buss") && all.contains("workflows"), "{all}");
    }
}
