//! Every setting: its key, default, meaning and check; where it came from; where things are on disk.
//!
//! Layers: defaults < file < `AMAN_*` environment < flags. The only module that reads the environment.

mod paths;
mod settings;

pub use paths::{ClientEnv, Paths, client_env};
pub use settings::{Effective, Origin, SETTINGS, Setting};

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
    /// Hosts besides loopback that requests may name.
    pub allowed_hosts: Vec<String>,
    /// Origins besides the daemon's own that browsers may call from.
    pub allowed_origins: Vec<String>,
    /// See [`PublicStream`].
    pub public_stream: PublicStream,
    /// True when more actions need `x-aman-confirm`.
    pub strict_confirm: bool,
    /// Connections open at one time.
    pub max_connections: usize,
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
}

/// A `[sources.<id>]` of kind `files`.
#[derive(Debug, Clone)]
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
    /// How long a shutdown waits for running work.
    pub drain_timeout: Duration,
    /// What is logged: a level or a filter such as `info,aman::bus=debug`.
    pub log: String,
    /// True: logs are JSON lines.
    pub log_json: bool,
    /// `[skills] paths`
    pub skill_paths: Vec<PathBuf>,
    /// True: `/inject-event` and other test helpers answer.
    pub debug_endpoints: bool,
    /// `[sources.*]`; without any, the inbox.
    pub sources: Vec<FileSource>,
    /// Every setting with its value and where it came from.
    pub effective: Vec<Effective>,
    /// What was odd but not wrong; to be logged once.
    pub warnings: Vec<String>,
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
}

/// Reads and checks the configuration. The error names every setting that is wrong, and where it was set.
pub fn load(flags: &Flags) -> Result<Config, Error> {
    let mut paths = Paths::find(flags.home.as_deref())?;
    if let Some(file) = &flags.config {
        paths.config_file.clone_from(file);
    }
    let file = read_file(&paths.config_file, flags.config.is_some())?;
    let mut layers = Layers::new(&file);
    layers.add_environment(paths::environment());
    let flags = [("http.bind", &flags.bind), ("runtime.log", &flags.log)];
    for (key, value) in flags {
        if let Some(value) = value {
            layers.set(key, Value::String(value.clone()), Origin::Flag);
        }
    }
    build(paths, &file, layers)
}

fn read_file(path: &std::path::Path, must_exist: bool) -> Result<Table, Error> {
    match std::fs::read_to_string(path) {
        Ok(text) => text.parse::<Table>().map_err(|error| {
            // The parser's own text quotes the line, which may hold a secret.
            let line = error.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            Error::invalid(path.display().to_string(), format!("is not TOML, line {line}: {}", error.message()))
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !must_exist => Ok(Table::new()),
        Err(error) => Err(Error::invalid(path.display().to_string(), format!("cannot be read: {error}"))),
    }
}

fn build(paths: Paths, file: &Table, mut layers: Layers) -> Result<Config, Error> {
    let bind_text = layers.text("http.bind");
    let bind = bind_text.parse::<SocketAddr>().unwrap_or_else(|_| {
        layers.wrong("http.bind", "must be an address and a port, such as 127.0.0.1:9090.");
        SocketAddr::from(([127, 0, 0, 1], 9090))
    });
    let token = layers.secret("http.token");
    let http = Http {
        auth: layers.one_of("http.auth", &["token", "none"]) == "token",
        allowed_hosts: layers.list("http.allowed_hosts"),
        allowed_origins: layers.list("http.allowed_origins"),
        public_stream: match layers.one_of("http.public_stream", &["metadata", "full", "off"]) {
            "full" => PublicStream::Full,
            "off" => PublicStream::Off,
            _ => PublicStream::Metadata,
        },
        strict_confirm: layers.flag("http.strict_confirm") || !bind.ip().is_loopback(),
        max_connections: usize::try_from(layers.number("http.max_connections", 1..=100_000)).unwrap_or(1),
        bind,
        token,
    };
    let remote = http.token.is_some() && http.auth && layers.flag("http.allow_remote");
    if !bind.ip().is_loopback() && !remote {
        layers.wrong(
            "http.bind",
            "is not a loopback address: that needs http.token and http.allow_remote = true. \
             Bind 127.0.0.1 unless other machines are to reach the daemon.",
        );
    }
    let bus = BusConfig {
        full_durability: layers.one_of("bus.durability", &["full", "normal"]) == "full",
        dedup_window: layers.duration("bus.dedup_window"),
        max_causation_depth: u32::try_from(layers.number("bus.max_causation_depth", 1..=10_000)).unwrap_or(64),
        max_pending: layers.number("bus.max_pending", 1..=i64::MAX),
    };
    let drain_timeout = layers.duration("runtime.drain_timeout");
    let log = layers.text("runtime.log");
    let log_json = layers.one_of("runtime.log_format", &["text", "json"]) == "json";
    let home = paths.home_dir.clone();
    let skill_paths = layers.list("skills.paths").iter().map(|path| paths::expand(path, home.as_deref())).collect();
    let debug_endpoints = layers.flag("debug.force_enable_debug_endpoints");
    let sources = sources(file, &paths, &mut layers);
    let (effective, warnings, wrong) = layers.finish(file);
    if !wrong.is_empty() {
        return Err(Error::Invalid { code: "invalid_config", fields: wrong });
    }
    Ok(Config {
        paths,
        http,
        bus,
        drain_timeout,
        log,
        log_json,
        skill_paths,
        debug_endpoints,
        sources,
        effective,
        warnings,
    })
}

fn sources(file: &Table, paths: &Paths, layers: &mut Layers) -> Vec<FileSource> {
    let Some(table) = file.get("sources").and_then(Value::as_table) else {
        return vec![FileSource {
            id: "default".to_owned(),
            path: paths.data.join("inbox"),
            patterns: Vec::new(),
            ignore: Vec::new(),
            emit_initial: false,
            trust: crate::event::Trust::Owner,
        }];
    };
    let mut found = Vec::new();
    for (id, settings) in table {
        let key = format!("sources.{id}");
        let good_id = (1..=64).contains(&id.len())
            && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_');
        if !good_id {
            layers.wrong(&key, "is no id: 1 to 64 lower-case letters, digits, '-' and '_'.");
            continue;
        }
        let Some(settings) = settings.as_table() else {
            layers.wrong(&key, "must be a table, such as [sources.inbox].");
            continue;
        };
        match settings.get("kind").and_then(Value::as_str) {
            Some("files") => found.extend(file_source(id, settings, paths, layers)),
            Some(kind) => {
                layers.wrong(&format!("{key}.kind"), &format!("'{kind}' is not known; this version has: files."))
            }
            None => layers.wrong(&format!("{key}.kind"), "is missing; this version has: files."),
        }
    }
    found
}

fn file_source(id: &str, settings: &Table, paths: &Paths, layers: &mut Layers) -> Option<FileSource> {
    let at = |key: &str| format!("sources.{id}.{key}");
    const KNOWN: [&str; 6] = ["kind", "path", "patterns", "ignore", "initial", "trust"];
    for key in settings.keys().filter(|key| !KNOWN.contains(&key.as_str())) {
        layers.warn_unknown(&at(key), key, &KNOWN);
    }
    let mut list = |key: &str| match settings.get(key) {
        None => Vec::new(),
        Some(value) => match value.as_array().map(|all| all.iter().map(|v| v.as_str().map(str::to_owned)).collect()) {
            Some(Some(texts)) => texts,
            _ => {
                layers.wrong(&at(key), "must be a list of texts.");
                Vec::new()
            }
        },
    };
    let (patterns, ignore) = (list("patterns"), list("ignore"));
    let emit_initial = match settings.get("initial").map(Value::as_str) {
        None | Some(Some("baseline")) => false,
        Some(Some("emit")) => true,
        Some(_) => {
            layers.wrong(&at("initial"), "must be \"baseline\" or \"emit\".");
            false
        }
    };
    let trust = match settings.get("trust").map(|value| value.as_str().and_then(crate::event::Trust::of_name)) {
        None => crate::event::Trust::Owner,
        Some(Some(trust)) => trust,
        Some(None) => {
            layers.wrong(&at("trust"), &format!("must be one of {}.", crate::event::Trust::NAMES.join(", ")));
            crate::event::Trust::Unknown
        }
    };
    let Some(path) = settings.get("path").and_then(Value::as_str) else {
        layers.wrong(&at("path"), "is missing: the folder to watch.");
        return None;
    };
    let path = paths::expand(path, paths.home_dir.as_deref());
    if !path.is_absolute() {
        layers.wrong(&at("path"), "must be an absolute path, or begin with ~/.");
        return None;
    }
    Some(FileSource { id: id.to_owned(), path, patterns, ignore, emit_initial, trust })
}

/// Reads `250ms`, `30s`, `10m`, `24h` or `7d`; also the sum of several, as `1h30m`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let millis = match &rest[..unit] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        total = total.checked_add(Duration::from_millis(number.checked_mul(millis)?))?;
        rest = &rest[unit..];
    }
    Some(total)
}

/// The static token: the configured one, else the one in the token file, else a new one written there (mode 0600).
pub fn token(config: &Config) -> Result<Secret, Error> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    if let Some(token) = &config.http.token {
        return Ok(token.clone());
    }
    let file = &config.paths.token_file;
    match std::fs::read_to_string(file) {
        Ok(text) if text.trim().len() >= 16 => return Ok(Secret::new(text.trim())),
        Ok(_) => {
            return Err(Error::invalid(
                file.display().to_string(),
                "holds no token of at least 16 characters. Remove the file to have a new one made.",
            ));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::internal("reading the token file")(error)),
    }
    let made = crate::id::hex(&crate::id::random_bytes::<32>());
    let mut out = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .map_err(Error::internal("making the token file"))?;
    writeln!(out, "{made}").and_then(|()| out.sync_all()).map_err(Error::internal("writing the token file"))?;
    Ok(Secret::new(made))
}

/// Settings that later parts of the program define; named so that a file written for them gives a fitting warning.
const LATER: [&str; 6] = ["http_client", "cron", "plugin", "workflows", "agents", "notifications"];

fn field(field: &str, reason: String) -> FieldError {
    FieldError { field: field.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Config, Error> {
        let file: Table = text.parse().expect("TOML");
        let layers = Layers::new(&file);
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
    fn unknown_keys_warn_with_a_suggestion() {
        let config = check("[http]\nbin = \"127.0.0.1:1\"\n[buss]\n[cron.x]\n").expect("valid");
        let all = config.warnings.join("\n");
        assert!(all.contains("http.bin") && all.contains("http.bind"), "{all}");
        assert!(all.contains("buss") && all.contains("cron"), "{all}");
    }

    #[test]
    fn durations_are_read() {
        let cases =
            [("250ms", Some(250)), ("30s", Some(30_000)), ("1h30m", Some(5_400_000)), ("7d", Some(604_800_000))];
        for (text, millis) in cases {
            assert_eq!(parse_duration(text), millis.map(Duration::from_millis), "{text}");
        }
        for bad in ["", "s", "5", "5x", "-1s", "99999999999999999999s", "1.5s"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }
}
