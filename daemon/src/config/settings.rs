//! The table of settings, and the layers that a value can come from.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use serde::Serialize;
use toml::{Table, Value};

use super::secrets::{self, References};
use super::{Secret, field, parse_duration, parse_size};
use crate::error::{FieldError, distance};

/// One setting.
pub struct Setting {
    /// Section and key, as `http.bind`.
    pub key: &'static str,
    /// Default as TOML; empty = none.
    pub default: &'static str,
    /// True when its value is never shown.
    pub secret: bool,
    /// What it does, with its unit.
    pub help: &'static str,
}

const fn setting(key: &'static str, default: &'static str, help: &'static str) -> Setting {
    Setting { key, default, secret: false, help }
}

/// Every setting of the fixed sections.
pub const SETTINGS: &[Setting] = &[
    setting("http.bind", "\"127.0.0.1:9090\"", "Address and port to listen on; port 0 takes a free one."),
    Setting {
        key: "http.token",
        default: "",
        secret: true,
        help: "The static token, or env:NAME, file:PATH or keyring:SERVICE/ACCOUNT; without it one is generated.",
    },
    setting("http.auth", "\"token\"", "token, or none (loopback only)."),
    setting("http.allowed_hosts", "[]", "Host names besides localhost that requests may name."),
    setting("http.allowed_origins", "[]", "Web origins that may call the API."),
    setting("http.allow_remote", "false", "Allows a bind address beyond loopback."),
    setting(
        "http.public_stream",
        "\"metadata\"",
        "What /events/stream shows without credentials: metadata, full, off.",
    ),
    setting("http.strict_confirm", "false", "Asks for x-aman-confirm on more actions; on when bound beyond loopback."),
    setting("http.max_connections", "4096", "Connections open at one time."),
    setting("http.rate_limit", "1000", "Requests a second of each principal but the owner; 0 = no limit."),
    setting("http.owner_rate_limit", "0", "Requests a second of the owner; 0 = no limit."),
    setting("http.socket", "\"\"", "Path of a Unix socket to listen on as well, for this user only; empty = none."),
    setting("http.tls.cert", "\"\"", "PEM file with the certificate chain; with http.tls.key, HTTPS in place of HTTP."),
    setting("http.tls.key", "\"\"", "PEM file with the private key of http.tls.cert."),
    setting("http.openai", "false", "Serves agents at /v1 as OpenAI serves models, to tokens with the scope chat."),
    setting("http.mcp", "false", "Serves the Model Context Protocol at /mcp, to tokens with the scope chat."),
    setting("http.allow_exec_definitions", "false", "Lets workflows and agents that run commands come in over HTTP."),
    setting("bus.durability", "\"full\"", "full survives power loss, normal survives a crash of the process only."),
    setting("bus.dedup_window", "\"24h\"", "How long keys of events are remembered."),
    setting("bus.max_causation_depth", "64", "How many effects may follow each other."),
    setting("bus.max_pending", "1000000", "Deliveries that may wait before pushes are refused."),
    setting("bus.keep_free_mib", "64", "MiB of the disk left free; below, nothing new is taken. 0 = until it is full."),
    setting(
        "bus.retention.max_age",
        "\"30d\"",
        "How long events are kept once all work on them is done; 0s = for ever.",
    ),
    setting(
        "bus.retention.max_size",
        "\"2GiB\"",
        "Size of the database above which the oldest finished events go before their time; 0 = no limit.",
    ),
    setting("bus.retention.dead_letters", "\"30d\"", "How long a dead letter and its event are kept; 0s = for ever."),
    setting("bus.retention.notifications", "\"90d\"", "How long notifications are kept; 0s = for ever."),
    setting("bus.retention.cron_runs", "\"90d\"", "How long runs of cron jobs are on record; 0s = for ever."),
    setting(
        "bus.retention.workflows",
        "\"90d\"",
        "How long ended instances of workflows are on record; 0s = for ever.",
    ),
    setting(
        "bus.retention.sessions",
        "\"0s\"",
        "How long after the last change a person's chat is kept; 0s = for ever.",
    ),
    setting(
        "bus.retention.background_sessions",
        "\"30d\"",
        "The same of chats that events, schedules, workflows, plugins and other agents began; 0s = for ever.",
    ),
    setting("bus.retention.audit", "\"365d\"", "How long audit records are kept; 0s = for ever."),
    setting("notifications.per_hour", "60", "Notifications that one consumer may have in an hour; 0 = no limit."),
    setting(
        "notifications.window",
        "\"1h\"",
        "What is told again within this time of the last time is counted, not told anew.",
    ),
    setting(
        "backup.every",
        "\"\"",
        "How often the daemon copies the database: 24h or another duration, or a cron line in UTC; empty = never.",
    ),
    setting("backup.keep", "7", "How many such copies are kept."),
    setting("backup.folder", "\"\"", "Where they are; empty = the folder backups in the data folder."),
    setting("budget.day_tokens", "0", "Tokens that all agents together may use on a day (UTC); 0 = no limit."),
    setting(
        "budget.day_money",
        "0.0",
        "Money that all agents together may cost on a day, in units of the price table; 0 = no limit.",
    ),
    setting("budget.soft", "0.8", "The share of any budget from which on a cheaper model is taken, from 0.0 to 1.0."),
    setting(
        "content_policy.deny",
        "[]",
        "Regular expressions; a message that one of them fits is refused. Case makes no difference.",
    ),
    setting("runtime.drain_timeout", "\"30s\"", "How long a shutdown waits for running work."),
    setting("log.level", "\"info\"", "error, warn, info, debug, trace, or a filter such as info,aman::bus=debug."),
    setting("log.format", "\"text\"", "text, or json for one JSON object a line."),
    setting("log.files", "true", "Writes the log to files as well as to standard error."),
    setting("log.dir", "\"\"", "Folder of the log files; empty = the state folder."),
    setting("log.max_size", "\"16MiB\"", "A log file of this size is put aside and a new one begun."),
    setting("log.keep", "5", "How many log files that were put aside are kept."),
    setting("log.max_age", "\"30d\"", "Log files without a younger line are removed."),
    setting("http_client.allow_private", "false", "Lets outgoing calls reach loopback and private addresses."),
    setting(
        "models.default",
        "\"\"",
        "The model that is asked when nobody names one, as provider/model; empty = the first.",
    ),
    setting("models.fallback", "[]", "Models that are asked in this order when that one does not answer."),
    setting("models.cheap", "\"\"", "The model that takes over when a budget runs low; empty = none."),
    setting("models.first_token_timeout", "\"120s\"", "How long the first token of an answer may take."),
    setting("models.token_timeout", "\"60s\"", "How long each further token may take."),
    setting("models.max_retries", "2", "How often one model is asked again before the next one is."),
    setting(
        "models.detect",
        "\"http://127.0.0.1:11434 http://127.0.0.1:8080\"",
        "Where Ollama or llama.cpp is looked for on this machine while there is no [providers.<id>]; empty = nowhere.",
    ),
    setting(
        "telemetry.endpoint",
        "\"\"",
        "Where traces go, as OTLP over HTTP: the address of a collector, as http://127.0.0.1:4318; empty = nowhere.",
    ),
    Setting {
        key: "telemetry.headers",
        default: "",
        secret: true,
        help: "Headers for the collector: a table of names and values, which may be env:NAME, file:PATH or keyring:….",
    },
    setting("telemetry.service_name", "\"aman\"", "The name under which the collector shows this daemon."),
    setting("telemetry.sample_ratio", "1.0", "The share of traces that is exported, from 0.0 to 1.0."),
    setting("telemetry.timeout", "\"10s\"", "How long one request to the collector may take, at most 120s."),
    setting("tools.allow", "[]", "Tools that people and workflows may use, as read or github_*; empty = all."),
    setting("tools.deny", "[]", "Tools that they may not use, whatever tools.allow says."),
    setting("tools.approve", "[]", "Tools that they are asked about, besides those that always are."),
    setting("tools.read", "[]", "Folders that their tools may read, as ~/notes."),
    setting("tools.write", "[]", "Folders that their tools may write, and read."),
    setting("tools.hosts", "[]", "Hosts that their tools may call without asking, as example.org or *.example.org."),
    setting("tools.exec", "[]", "Commands that their tools may run, by the first word; each run is asked about."),
    setting("tools.sqlite", "[]", "SQLite databases that their tools may query; with rw: before the path, change."),
    setting("tools.approval_time", "\"10m\"", "How long a call of a tool waits for an approval, from 1s to 7d."),
    setting(
        "tools.search.url",
        "\"\"",
        "The address of a web search that answers JSON, with {query} for the words; empty = no web search.",
    ),
    setting(
        "tools.search.items",
        "\".results[:10] | map({title, url, snippet: .content})\"",
        "jq that makes a list of {title, url, snippet} of its answer; the default is for SearXNG.",
    ),
    setting("tools.search.header", "\"authorization\"", "The header in which tools.search.key is sent."),
    Setting {
        key: "tools.search.key",
        default: "",
        secret: true,
        help: "The key for the web search, or env:NAME, file:PATH or keyring:SERVICE/ACCOUNT.",
    },
    setting("skills.paths", "[]", "Folders with skills, besides the data folder's."),
    setting("skills.watch", "true", "Reads skills again as soon as their files change."),
    setting("debug.force_enable_debug_endpoints", "false", "Lets /inject-event and other test helpers answer."),
];

/// Where a value came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Built in.
    Default,
    /// The configuration file.
    File,
    /// An `AMAN_*` variable.
    Env,
    /// The command line.
    Flag,
    /// `POST /config/set`.
    Override,
}

/// A setting as it is in force.
#[derive(Debug, Clone, Serialize)]
pub struct Effective {
    /// Section and key.
    pub key: String,
    /// Its value; a secret is `{"populated": bool}`.
    pub value: serde_json::Value,
    /// Where it came from.
    pub origin: Origin,
}

/// Collects values from all layers, and everything that is wrong with them.
pub(super) struct Layers {
    values: BTreeMap<&'static str, (Value, Origin)>,
    /// What is done with references to secrets.
    pub references: References,
    wrong: Vec<FieldError>,
    /// How many of the wrong ones are secrets that may be there later, without any change.
    pub for_now: usize,
    warnings: Vec<String>,
}

impl Layers {
    pub fn new(file: &Table, references: References) -> Layers {
        let (values, wrong, warnings) = (BTreeMap::new(), Vec::new(), Vec::new());
        let mut layers = Layers { values, references, wrong, for_now: 0, warnings };
        for setting in SETTINGS {
            if !setting.default.is_empty()
                && let Ok(value) = setting.default.parse::<Value>()
            {
                layers.values.insert(setting.key, (value, Origin::Default));
            }
            let (section, key) = setting.key.split_once('.').unwrap_or((setting.key, ""));
            if let Some(value) = file.get(section).and_then(|section| within(section, key)) {
                layers.values.insert(setting.key, (value.clone(), Origin::File));
            }
        }
        layers
    }

    /// `AMAN_HTTP_BIND` sets `http.bind`; lists cannot be set so.
    pub fn add_environment(&mut self, variables: BTreeMap<String, String>) {
        for (name, text) in variables {
            let Some(setting) = SETTINGS.iter().find(|s| s.key.replace('.', "_").to_uppercase() == name[5..]) else {
                self.warnings.push(format!("The variable {name} is no setting of aman and has no effect."));
                continue;
            };
            let value = match setting.default.parse::<Value>() {
                Ok(Value::Boolean(_)) => text.parse().map_or(Value::String(text), Value::Boolean),
                Ok(Value::Integer(_)) => text.parse().map_or(Value::String(text), Value::Integer),
                Ok(Value::Float(_)) => text.parse().map_or(Value::String(text), Value::Float),
                Ok(Value::Array(_)) => {
                    self.warnings.push(format!("{name}: a list is set in the file, not by a variable."));
                    continue;
                }
                _ => Value::String(text),
            };
            self.set(setting.key, value, Origin::Env);
        }
    }

    pub fn set(&mut self, key: &'static str, value: Value, origin: Origin) {
        self.values.insert(key, (value, origin));
    }

    /// True when no layer but the default says anything about `key`.
    pub fn is_untouched(&self, key: &str) -> bool {
        self.values.get(key).is_none_or(|(_, origin)| *origin == Origin::Default)
    }

    /// Notes something odd that is not wrong.
    pub fn warn(&mut self, text: &str) {
        self.warnings.push(text.to_owned());
    }

    /// The value of `key` as it came.
    pub fn raw(&self, key: &'static str) -> Option<&Value> {
        self.value(key)
    }

    pub fn wrong(&mut self, key: &str, reason: &str) {
        let origin = self.values.get(key).map(|(_, origin)| *origin);
        let place = match origin {
            Some(Origin::Env) => " (set by the environment)",
            Some(Origin::Flag) => " (set on the command line)",
            Some(Origin::Override) => " (set by /config/set)",
            _ => "",
        };
        self.wrong.push(field(key, format!("{reason}{place}")));
    }

    /// Notes the fields of an error of another module.
    pub fn wrong_of(&mut self, error: crate::error::Error) {
        if let crate::error::Error::Invalid { fields, .. } = error {
            fields.iter().for_each(|field| self.wrong(&field.field, &field.reason));
        }
    }

    fn value(&self, key: &'static str) -> Option<&Value> {
        self.values.get(key).map(|(value, _)| value)
    }

    pub fn text(&mut self, key: &'static str) -> String {
        match self.value(key) {
            Some(Value::String(text)) => text.clone(),
            Some(_) => {
                self.wrong(key, "must be a text in quotes.");
                String::new()
            }
            None => String::new(),
        }
    }

    pub fn one_of(&mut self, key: &'static str, names: &[&'static str]) -> &'static str {
        let text = self.text(key);
        if let Some(name) = names.iter().find(|name| **name == text) {
            return name;
        }
        self.wrong(key, &format!("must be one of {}.", names.join(", ")));
        names[0]
    }

    pub fn flag(&mut self, key: &'static str) -> bool {
        match self.value(key) {
            Some(Value::Boolean(flag)) => *flag,
            _ => {
                self.wrong(key, "must be true or false.");
                false
            }
        }
    }

    pub fn number(&mut self, key: &'static str, range: RangeInclusive<i64>) -> i64 {
        match self.value(key) {
            Some(Value::Integer(number)) if range.contains(number) => *number,
            _ => {
                self.wrong(key, &format!("must be a whole number from {} to {}.", range.start(), range.end()));
                *range.start()
            }
        }
    }

    /// A share of a whole, from 0 to 1.
    pub fn share(&mut self, key: &'static str) -> f64 {
        let share = match self.value(key) {
            Some(Value::Float(share)) => Some(*share),
            Some(Value::Integer(whole @ 0..=1)) => Some(if *whole == 1 { 1.0 } else { 0.0 }),
            _ => None,
        };
        share.filter(|share| (0.0..=1.0).contains(share)).unwrap_or_else(|| {
            self.wrong(key, "must be a number from 0.0 to 1.0.");
            1.0
        })
    }

    pub fn duration(&mut self, key: &'static str) -> Duration {
        let text = self.text(key);
        parse_duration(&text).unwrap_or_else(|| {
            self.wrong(key, "must be a duration such as 250ms, 30s, 10m, 24h or 7d.");
            Duration::ZERO
        })
    }

    /// A number of bytes, such as 64MiB, within bounds.
    pub fn size(&mut self, key: &'static str, range: RangeInclusive<u64>) -> u64 {
        let text = self.text(key);
        parse_size(&text).filter(|bytes| range.contains(bytes)).unwrap_or_else(|| {
            let (least, most) = (range.start(), range.end());
            self.wrong(key, &format!("must be a size such as 512KiB, 64MiB or 2GiB, from {least} to {most} bytes."));
            *range.start()
        })
    }

    pub fn list(&mut self, key: &'static str) -> Vec<String> {
        let texts = match self.value(key) {
            Some(Value::Array(all)) => all.iter().map(|v| v.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>(),
            _ => None,
        };
        texts.unwrap_or_else(|| {
            self.wrong(key, "must be a list of texts.");
            Vec::new()
        })
    }

    /// True when any layer sets `key`, or it has a default.
    pub fn is_set(&self, key: &'static str) -> bool {
        self.value(key).is_some()
    }

    /// A secret, given as itself or as a reference such as `env:NAME`; none for a reference that is not followed. At least
    /// 16 characters.
    pub fn secret(&mut self, key: &'static str) -> Option<Secret> {
        self.value(key)?;
        let text = self.text(key);
        if self.references == References::Named && secrets::is_reference(&text) {
            return None;
        }
        match secrets::resolve(&text) {
            Ok(value) if value.len() >= 16 && !value.chars().any(char::is_control) => {
                crate::redact::learn(&value);
                Some(Secret::new(value))
            }
            Ok(_) => {
                self.wrong(key, "must have at least 16 characters, none of them a control character.");
                None
            }
            Err(missing) => {
                self.wrong(key, &missing.reason);
                self.for_now += usize::from(missing.for_now);
                None
            }
        }
    }

    pub fn warn_unknown(&mut self, shown: &str, key: &str, known: &[&str]) {
        let near = known.iter().min_by_key(|name| distance(name, key)).filter(|name| distance(name, key) <= 3);
        let hint = near.map_or_else(String::new, |name| {
            let section = shown.strip_suffix(key).unwrap_or_default();
            format!(" Did you mean {section}{name}?")
        });
        self.warnings.push(format!("{shown} is not a setting and has no effect.{hint}"));
    }

    /// The effective values, the warnings and everything that is wrong.
    pub fn finish(mut self, file: &Table) -> (Vec<Effective>, Vec<String>, Vec<FieldError>) {
        let mut sections: Vec<&str> = SETTINGS.iter().filter_map(|s| s.key.split_once('.')).map(|(s, _)| s).collect();
        sections.dedup();
        for (section, content) in file {
            if section == "cron" {
                continue;
            }
            if ["explore", "mcp", "sources", "sinks", "plugin", "prices", "providers", "workflows"]
                .contains(&section.as_str())
            {
                if !content.is_table() {
                    let reason = format!("must be sections with an id each, such as [{section}.my-id].");
                    self.wrong.push(field(section, reason));
                }
            } else if section == "agents" {
                self.warnings
                    .push("[agents] has no effect: each agent is a file of its own, agents/<id>.toml.".to_owned());
            } else if !sections.contains(&section.as_str()) {
                self.warn_unknown(section, section, &sections);
            } else if let Some(table) = content.as_table() {
                let prefix = format!("{section}.");
                let known: Vec<&str> = SETTINGS.iter().filter_map(|s| s.key.strip_prefix(&prefix)).collect();
                for key in keys(table, &known).iter().filter(|key| !known.contains(&key.as_str())) {
                    let inner = format!("{key}.");
                    if known.iter().any(|name| name.starts_with(&inner)) {
                        self.wrong.push(field(
                            &format!("{section}.{key}"),
                            format!("must be a section, such as [{section}.{key}]."),
                        ));
                        continue;
                    }
                    self.warn_unknown(&format!("{section}.{key}"), key, &known);
                }
            } else {
                self.wrong.push(field(section, format!("must be a section, such as [{section}].")));
            }
        }
        let effective = SETTINGS.iter().map(|setting| {
            let (value, origin) = match self.values.get(setting.key) {
                Some((value, origin)) => (serde_json::to_value(value).unwrap_or_default(), *origin),
                None => (serde_json::Value::Null, Origin::Default),
            };
            let value = if setting.secret { serde_json::json!({ "populated": !value.is_null() }) } else { value };
            Effective { key: setting.key.to_owned(), value, origin }
        });
        (effective.collect(), self.warnings, self.wrong)
    }
}

/// The value at `key` inside a section; dots lead into its tables.
fn within<'a>(section: &'a Value, key: &str) -> Option<&'a Value> {
    key.split('.').try_fold(section, |value, name| value.get(name))
}

/// The keys of a section; those of its own tables as `table.key` where settings are named so.
fn keys(section: &Table, known: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for (key, value) in section {
        let prefix = format!("{key}.");
        match value.as_table().filter(|_| known.iter().any(|name| name.starts_with(&prefix))) {
            Some(table) => found.extend(table.keys().map(|inner| format!("{prefix}{inner}"))),
            None => found.push(key.clone()),
        }
    }
    found
}
