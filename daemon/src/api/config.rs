//! The configuration while the daemon runs: shown with its origins, changed over HTTP, read again from its file.

use std::sync::Arc;

use arc_swap::ArcSwap;
use hyper::StatusCode;
use serde_json::{Map, Value, json};
use tokio::sync::Mutex;

use super::auth::Places;
use super::body::{self, Reply};
use super::problem::Problem;
use super::query::Query;
use super::rates::Limits;
use super::{App, Call};
use crate::budget;
use crate::bus;
use crate::config::{self, Applied, Change, Config, Effective, Overrides, PublicStream};
use crate::error::{Error, FieldError};
use crate::event::{self, NewEvent, View};
use crate::redact;
use crate::registry::Registry;
use crate::store::Store;
use crate::store::overrides::{self, Stored};
use crate::telemetry;
use crate::tools;

/// Settings that one request may change.
const CHANGES_MAX: usize = 100;

/// What is looked at anew with every request.
pub struct Tuned {
    /// Hosts and origins beyond the daemon's own.
    pub places: Places,
    /// See [`PublicStream`].
    pub public_stream: PublicStream,
    /// Asks for confirmation of more than the usual.
    pub strict_confirm: bool,
    /// Lets `/inject-event` in.
    pub debug_endpoints: bool,
    /// Lets `/mcp` in.
    pub mcp: bool,
    /// Lets `/v1` in.
    pub openai: bool,
}

impl Tuned {
    /// As `config` says. `secure`: whether the listeners that run are encrypted, which a start alone can change.
    pub(super) fn of(config: &Config, secure: bool) -> Tuned {
        let lower = |texts: &[String]| texts.iter().map(|text| text.to_lowercase()).collect();
        Tuned {
            places: Places {
                hosts: lower(&config.http.allowed_hosts),
                origins: lower(&config.http.allowed_origins),
                secure,
            },
            public_stream: config.http.public_stream,
            strict_confirm: config.http.strict_confirm,
            debug_endpoints: config.debug_endpoints,
            mcp: config.http.mcp,
            openai: config.http.openai,
        }
    }

    /// What a stream without credentials shows; nothing when there may be none.
    pub(super) fn public_view(&self) -> Option<View> {
        match self.public_stream {
            PublicStream::Off => None,
            PublicStream::Metadata => Some(View::Metadata),
            PublicStream::Full => Some(View::Full),
        }
    }
}

/// The request rates that `config` says.
pub(super) fn limits(config: &Config) -> Limits {
    Limits { owner: config.http.owner_rate_limit, others: config.http.rate_limit }
}

/// What `[budget]` says.
pub fn budget(config: &Config) -> budget::Settings {
    let of = &config.budget;
    budget::Settings {
        day: budget::Limit { tokens: of.day_tokens, micros: budget::micros(of.day_money) },
        soft: of.soft,
    }
}

/// The configuration in force.
pub struct Configured {
    /// With the version of what was set over HTTP: whoever sees one sees the other.
    current: ArcSwap<(Config, i64)>,
    /// What the parts that are made once were made from.
    started: Arc<Config>,
    /// Held by whoever changes it.
    changing: Mutex<()>,
}

impl Configured {
    /// As it is at the start.
    pub(super) fn new(config: Config, version: i64) -> Configured {
        let started = Arc::new(config.clone());
        Configured { current: ArcSwap::from_pointee((config, version)), started, changing: Mutex::new(()) }
    }

    /// True in safe mode: the file is broken and an older one is in force.
    pub(super) fn is_broken(&self) -> bool {
        self.current.load().0.broken.is_some()
    }

    /// Keys whose value in `config` is not the one that runs, because they hold after a start only.
    fn waiting(&self, config: &Config) -> Vec<String> {
        let mut keys: Vec<String> = differences(&self.started, config)
            .filter(|(_, now)| !config::holds_at_once(&now.key))
            .map(|(_, now)| now.key.clone())
            .collect();
        keys.extend(config.other_sections_than(&self.started));
        keys
    }
}

/// Settings that differ: as they were and as they are.
fn differences<'a>(old: &'a Config, new: &'a Config) -> impl Iterator<Item = (&'a Effective, &'a Effective)> {
    old.effective.iter().zip(&new.effective).filter(|(old, new)| old.value != new.value)
}

/// Skills that need a model may run now, or not any more; nobody waits for that.
fn look_at_skills(app: &App) {
    let skills = app.skills.clone();
    tokio::spawn(async move {
        if let Err(error) = skills.refresh().await {
            tracing::warn!(%error, "Skills that need a model stay as they were.");
        }
    });
}

/// Puts `config` in force as far as that works without a start.
fn apply(app: &App, config: Config, version: i64) -> Result<(), Error> {
    telemetry::set_filter(&config.log.level)?;
    app.bus.retune(bus::Settings::of(&config.bus));
    app.upkeep.retune(config.bus.retention);
    app.upkeep.backups().retune(&config.backup);
    app.rates.retune(limits(&config));
    app.tools.configure(tools::Settings::of(&config.tools));
    app.soul.configure(&config.denied);
    app.budget.configure(budget(&config));
    app.models.configure(&config.models);
    look_at_skills(app);
    app.bus.traces().configure(config.telemetry.as_ref(), app.store.ids().node);
    let secure = app.tuned.load().places.secure;
    app.tuned.store(Arc::new(Tuned::of(&config, secure)));
    app.configured.current.store(Arc::new((config, version)));
    // Streams that may show no longer what they show end.
    app.live.wake();
    Ok(())
}

/// `GET /runtime/config`
pub(super) async fn show(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    let current = app.configured.current.load_full();
    let (config, version) = &*current;
    let running = &app.configured.started.effective;
    let items: Vec<Value> = config
        .effective
        .iter()
        .zip(running)
        .map(|(setting, running)| {
            let change = config::change(&setting.key);
            let mut shown = json!(setting);
            shown["change"] = change.name().into();
            if !config::holds_at_once(&setting.key) && running.value != setting.value {
                shown["running"] = running.value.clone();
            }
            shown
        })
        .collect();
    body::ok(&json!({
        "items": items,
        "version": version,
        "safe_mode": config.broken.is_some(),
        "error": config.broken.as_deref().map(redact::text),
        "warnings": config.warnings,
        "requires_restart": app.configured.waiting(config),
        "config_file": config.paths.config_file,
        "data": config.paths.data,
        "state": config.paths.state,
        "runtime": config.paths.runtime,
    }))
}

/// A value as the file would hold it; none for null.
fn as_toml(key: &str, value: &Value) -> Result<Option<toml::Value>, Error> {
    if value.is_null() {
        return Ok(None);
    }
    let wrong =
        |_| Error::invalid(format!("changes.{key}"), "must be a text, a number, true, false or a list of texts.");
    toml::Value::try_from(value).map(Some).map_err(wrong)
}

/// Refuses what may not be set over HTTP: 403 for what the file alone decides, 400 for what is no setting.
fn check_keys(changes: &Map<String, Value>) -> Result<(), Error> {
    if changes.is_empty() || changes.len() > CHANGES_MAX {
        return Err(Error::invalid("changes", format!("must have 1 to {CHANGES_MAX} keys.")));
    }
    for (key, value) in changes {
        if config::change(key) == Change::FileOnly || config::holds_reference(value) || holds_secret(value) {
            let reason = format!(
                "{key} cannot be set over HTTP: it names an executable, a path or a secret, or decides who is let in. \
                 Set it in the file (`aman config set`), then restart."
            );
            return Err(Error::Forbidden { code: "not_settable", reason });
        }
    }
    let unknown = changes.keys().filter(|key| !config::SETTINGS.iter().any(|setting| setting.key == key.as_str()));
    let fields: Vec<FieldError> = unknown
        .map(|key| {
            let near = config::nearest(key).map_or_else(String::new, |near| format!(" Is '{near}' meant?"));
            let reason = format!("is no setting that can be set here.{near} GET /runtime/config lists them.");
            FieldError { field: format!("changes.{key}"), reason }
        })
        .collect();
    if fields.is_empty() { Ok(()) } else { Err(Error::Invalid { code: "invalid_input", fields }) }
}

/// What is set over HTTP is stored and shown, so no known secret may be part of it.
fn holds_secret(value: &Value) -> bool {
    redact::is_in(&value.to_string())
}

fn overrides_of(stored: Stored) -> Overrides {
    let read = |(key, value): (String, Value)| Some((key.clone(), as_toml(&key, &value).ok()??));
    stored.values.into_iter().filter_map(read).collect()
}

/// `POST /config/set`
pub(super) async fn set(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    let dry_run = Query::read(&call, &["dry_run"])?.flag("dry_run", false)?;
    if dry_run {
        call.draft.skip();
    }
    let mut fields = call.fields().await?;
    let (changes, expected) = (fields.value("changes"), fields.value("expected_version"));
    fields.done()?;
    let Some(Value::Object(changes)) = changes else {
        return Err(Error::invalid("changes", "is required: an object of keys and values.").into());
    };
    let expected = match expected {
        None => None,
        Some(value) => Some(event::whole(&value).ok_or_else(|| {
            Error::invalid("expected_version", "must be a whole number, as GET /runtime/config shows it.")
        })?),
    };
    check_keys(&changes)?;
    let _changing = app.configured.changing.lock().await;
    let stored = app.store.read(overrides::all).await?;
    let version = stored.version;
    if expected.is_some_and(|expected| expected != version) {
        let reason = format!("The configuration has version {version}. Look at it again and decide anew.");
        return Err(Error::conflict("version_conflict", reason).into());
    }
    let current = app.configured.current.load_full();
    let old = &current.0;
    let mut wanted = overrides_of(stored);
    for (key, value) in &changes {
        match as_toml(key, value)? {
            Some(value) => wanted.insert(key.clone(), value),
            None => wanted.remove(key),
        };
    }
    let new = old.with_overrides(&wanted).map_err(named)?;
    let mut answer = changed_json(&app, old, &new, &changes);
    if dry_run {
        answer["version"] = version.into();
        answer["dry_run"] = true.into();
        return body::ok(&answer);
    }
    let (draft, detail, now_ms) = (call.draft.clone(), answer["items"].clone(), app.clock.now_ms());
    let (before, after) = (old.digest(), new.digest());
    let changes: Vec<(String, Option<Value>)> =
        changes.into_iter().map(|(key, value)| (key, Some(value).filter(|value| !value.is_null()))).collect();
    let version = app
        .store
        .write(move |tx| {
            let version = overrides::change(tx, version, &changes, now_ms)?;
            let detail = json!({ "version": version, "changes": detail });
            draft.record_with(tx, "config", detail, Some(before), Some(after))?;
            Ok(version)
        })
        .await?;
    apply(&app, new, version)?;
    answer["version"] = version.into();
    body::ok(&answer)
}

/// What is wrong with a request whose values make no configuration.
fn named(error: Error) -> Error {
    match error {
        Error::Invalid { fields, .. } => Error::Invalid {
            code: "invalid_input",
            fields: fields.into_iter().map(|f| FieldError { field: format!("changes.{}", f.field), ..f }).collect(),
        },
        other => other,
    }
}

fn changed_json(app: &App, old: &Config, new: &Config, changes: &Map<String, Value>) -> Value {
    let value = |config: &Config, key: &str| {
        config.effective.iter().find(|setting| setting.key == key).map(|setting| setting.value.clone())
    };
    let items: Vec<Value> = changes
        .keys()
        .map(|key| {
            let (before, now) = (value(old, key), value(new, key));
            json!({ "key": key, "before": before, "value": now, "effect": config::change(key).name() })
        })
        .collect();
    let waiting = app.configured.waiting(new);
    let waiting: Vec<&String> = waiting.iter().filter(|key| changes.contains_key(*key)).collect();
    let applied: Vec<&String> = changes.keys().filter(|key| config::change(key) == Change::Live).collect();
    json!({ "items": items, "applied": applied, "requires_restart": waiting })
}

/// `POST /config/reload`
pub(super) async fn reload(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    let dry_run = Query::read(&call, &["dry_run"])?.flag("dry_run", false)?;
    if dry_run {
        call.draft.skip();
    }
    call.fields().await?.done()?;
    let _changing = app.configured.changing.lock().await;
    let stored = app.store.read(overrides::all).await?;
    let (version, wanted) = (stored.version, overrides_of(stored));
    let current = app.configured.current.load_full();
    let old = &current.0;
    let new = match old.reread(&wanted) {
        Ok(new) => new,
        Err(error) if dry_run => return Err(refused(error)),
        Err(error) => {
            let text = error.chain().join(": ");
            tracing::error!(error = text, "The configuration file is broken; the last good one stays in force.");
            app.configured.current.store(Arc::new((old.in_safe_mode(text.clone()), version)));
            tell_broken(&app.bus, old, &text).await;
            return Err(refused(error));
        }
    };
    let applied: Vec<String> = differences(old, &new)
        .filter(|(_, now)| config::holds_at_once(&now.key))
        .map(|(_, now)| now.key.clone())
        .collect();
    let read = sections_read(old, &new);
    let planned = [
        app.sinks.plan(&new.sinks),
        app.cron.plan(&new.cron).await,
        app.sources.plan(&new.sources),
        app.mcp.plan(&new.mcp),
    ];
    let planned = [planned.as_slice(), &read].concat();
    let mut answer = json!({
        "version": version,
        "applied": applied,
        "requires_restart": app.configured.waiting(&new),
        "overridden": wanted.keys().collect::<Vec<_>>(),
        "warnings": new.warnings,
    });
    tell_sections(&mut answer, &applied, &planned);
    if dry_run {
        answer["dry_run"] = true.into();
        return body::ok(&answer);
    }
    let (draft, detail, before, after) = (call.draft.clone(), answer.clone(), old.digest(), new.digest());
    app.store.write(move |tx| draft.record_with(tx, "config", detail, Some(before), Some(after))).await?;
    let (types, faults) = Registry::load(&new.paths.data.join("schemas"));
    app.bus.set_types(types);
    faults.iter().for_each(|fault| tracing::warn!("{fault}"));
    new.keep_copy();
    // What takes events is there before what brings them in.
    let sections = [
        app.sinks.apply(&new.sinks).await,
        app.cron.apply(&new.cron).await,
        app.sources.apply(&new.sources).await,
        app.mcp.apply(&new.mcp).await,
    ];
    let sections = [sections.as_slice(), &read].concat();
    tell_sections(&mut answer, &applied, &sections);
    app.plugins.configure(&new.plugins);
    app.explore.configure(&new.explore);
    app.fronts.configure(&app, &new.plugins);
    apply(&app, new, version)?;
    body::ok(&answer)
}

/// What becomes of the sections that are read whenever they are needed: nothing of them is started or stopped.
fn sections_read(old: &Config, new: &Config) -> [Applied; 3] {
    [
        config::plugins::plan(&old.plugins, &new.plugins),
        config::models::plan(&old.models, &new.models),
        config::explore::plan(&old.explore, &new.explore),
    ]
}

/// Puts into the answer what becomes of sinks, jobs and sources.
fn tell_sections(answer: &mut Value, settings: &[String], sections: &[Applied]) {
    let of = |ids: fn(&Applied) -> Vec<String>| sections.iter().flat_map(ids).collect::<Vec<String>>();
    let failed = sections.iter().flat_map(|one| &one.failed);
    answer["started"] = json!(of(Applied::started_keys));
    answer["stopped"] = json!(of(Applied::stopped_keys));
    answer["changed"] = json!(of(Applied::changed_keys));
    answer["failed"] = failed.map(|one| json!({ "field": one.field, "reason": one.reason })).collect();
    let all = sections.iter().flat_map(Applied::keys);
    answer["applied"] = settings.iter().cloned().chain(all).collect::<Vec<_>>().into();
}

fn refused(error: Error) -> Problem {
    let detail = format!("The configuration file is broken; nothing was changed. {error}");
    let mut problem = Problem::new((StatusCode::CONFLICT, "invalid_config"), detail);
    if let Error::Invalid { fields, .. } = error {
        problem.fields = fields;
    }
    problem
}

/// The configuration with what was set over HTTP; without it, and with a warning, when that does not fit any more.
pub fn with_stored(config: Config, store: &Store) -> Result<Config, Error> {
    let wanted = overrides_of(store.read_now(overrides::all)?);
    if wanted.is_empty() {
        return Ok(config);
    }
    match config.with_overrides(&wanted) {
        Ok(config) => Ok(config),
        Err(error) => {
            tracing::warn!(
                error = error.to_string(),
                "What /config/set changed does not fit the file, and is left out."
            );
            Ok(config)
        }
    }
}

/// Publishes `aman.config.broken`, however much is waiting.
pub async fn tell_broken(bus: &bus::Bus, config: &Config, error: &str) {
    let data = json!({ "file": config.paths.config_file, "error": error });
    bus.announce(NewEvent::new("aman/config", "aman.config.broken", &data), bus::Origin::own("aman/config")).await;
}
