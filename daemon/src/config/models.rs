//! `[models]`, `[providers.<id>]` and `[prices."<provider>/<model>"]`: which language models are asked, and what they cost.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use toml::{Table, Value};

use super::settings::Layers;
use super::table::{Faults, Reader};
use super::{Applied, Paths, References, Secret, each_table, field, take_faults};
use crate::egress::Url;
use crate::error::FieldError;

/// Ids of what is found on this machine when no provider is configured.
pub const FOUND: [&str; 2] = ["ollama", "llamacpp"];
/// Models that one provider may name.
const MODELS_MAX: usize = 1000;
/// How long may be waited for a token.
const WAIT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);
/// Tokens that a model may look at.
const WINDOW: RangeInclusive<i64> = 256..=100_000_000;
/// The highest price of a million tokens.
const PRICE_MAX: f64 = 1e6;

/// Everything about models.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelsConfig {
    /// `provider/model` that is asked when nobody names one.
    pub default: Option<String>,
    /// What is asked when that does not answer, in this order.
    pub fallback: Vec<String>,
    /// What takes over when a budget runs low.
    pub cheap: Option<String>,
    /// How long the first token may take.
    pub first_token_timeout: Duration,
    /// How long each further token may take.
    pub token_timeout: Duration,
    /// How often one model is asked again.
    pub max_retries: u32,
    /// Where Ollama or llama.cpp is looked for when there is no provider; all on this machine.
    pub detect: Vec<Url>,
    /// By id.
    pub providers: Vec<Provider>,
    /// By `provider/model`.
    pub prices: BTreeMap<String, Price>,
}

/// Who offers models.
#[derive(Debug, Clone, PartialEq)]
pub struct Provider {
    /// Its id.
    pub id: String,
    /// Models that may be asked; empty = any.
    pub models: Vec<String>,
    /// Tokens that its models may look at, when it is told.
    pub window: Option<usize>,
    /// The rest.
    pub kind: ProviderKind,
}

/// How a provider is asked.
#[derive(Debug, Clone, PartialEq)]
pub enum ProviderKind {
    /// Over HTTP.
    Http {
        /// In which words.
        dialect: Dialect,
        /// Where; what the dialect says comes after its path.
        url: Url,
        /// What it is let in by.
        key: Option<Secret>,
        /// Further headers; values may be secrets.
        headers: Vec<(String, Secret)>,
        /// May be at a loopback or private address: whoever names it means it.
        private: bool,
    },
    /// A file with what it answers, for trials and demonstrations.
    Script {
        /// The file.
        path: PathBuf,
    },
}

impl ProviderKind {
    /// Its name in the configuration.
    pub fn name(&self) -> &'static str {
        match self {
            ProviderKind::Http { dialect, .. } => dialect.name(),
            ProviderKind::Script { .. } => "script",
        }
    }
}

/// The words of an API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// OpenAI's chat completions, which most others speak as well.
    OpenAi,
    /// Anthropic's messages.
    Anthropic,
    /// Google's Gemini API.
    Gemini,
    /// Ollama's own chat.
    Ollama,
}

impl Dialect {
    const ALL: [Dialect; 4] = [Dialect::OpenAi, Dialect::Anthropic, Dialect::Gemini, Dialect::Ollama];

    /// Its name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Dialect::OpenAi => "openai",
            Dialect::Anthropic => "anthropic",
            Dialect::Gemini => "gemini",
            Dialect::Ollama => "ollama",
        }
    }

    /// Where its maker serves it.
    fn usual_url(self) -> &'static str {
        match self {
            Dialect::OpenAi => "https://api.openai.com/v1",
            Dialect::Anthropic => "https://api.anthropic.com/v1",
            Dialect::Gemini => "https://generativelanguage.googleapis.com/v1beta",
            Dialect::Ollama => "http://127.0.0.1:11434",
        }
    }
}

/// What a million tokens cost, in millionths of whatever currency the file counts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Price {
    /// Of what is asked.
    pub input_micros_per_mtok: u64,
    /// Of what is answered.
    pub output_micros_per_mtok: u64,
    /// Of what is asked and the provider still knows.
    pub cached_micros_per_mtok: u64,
}

/// What makes `after` of `before`; all of it takes effect at once.
pub fn plan(before: &ModelsConfig, after: &ModelsConfig) -> Applied {
    fn by_id(config: &ModelsConfig) -> impl Iterator<Item = (&str, &Provider)> {
        config.providers.iter().map(|provider| (provider.id.as_str(), provider))
    }
    Applied::plan("providers", by_id(before), by_id(after))
}

/// Reads all three sections.
pub(super) fn read(file: &Table, paths: &Paths, layers: &mut Layers) -> ModelsConfig {
    let name = |text: String| Some(text).filter(|text| !text.is_empty());
    let mut wait = |key| {
        let wait = layers.duration(key);
        if !WAIT.contains(&wait) {
            layers.wrong(key, "must be a duration from 100ms to 1h.");
        }
        wait
    };
    let (first_token_timeout, token_timeout) = (wait("models.first_token_timeout"), wait("models.token_timeout"));
    let config = ModelsConfig {
        default: name(layers.text("models.default")),
        fallback: layers.list("models.fallback"),
        cheap: name(layers.text("models.cheap")),
        first_token_timeout,
        token_timeout,
        max_retries: u32::try_from(layers.number("models.max_retries", 0..=10)).unwrap_or(0),
        detect: detect(layers),
        providers: providers(file, paths, layers),
        prices: prices(file, layers),
    };
    let named = [("models.default", config.default.iter()), ("models.cheap", config.cheap.iter())];
    for (key, model) in named {
        model.for_each(|model| check_model(key, model, &config.providers, layers));
    }
    config.fallback.iter().for_each(|model| check_model("models.fallback", model, &config.providers, layers));
    config
}

fn detect(layers: &mut Layers) -> Vec<Url> {
    let (mut found, text) = (Vec::new(), layers.text("models.detect"));
    for place in text.split_whitespace() {
        let url = Url::parse(place).ok().filter(|url| ["127.0.0.1", "::1", "localhost"].contains(&url.host()));
        match url {
            Some(url) => found.push(url),
            None => layers.wrong("models.detect", "must be addresses of this machine, such as http://127.0.0.1:11434."),
        }
    }
    found
}

/// Says what is wrong with a model that is named in `key`.
fn check_model(key: &'static str, model: &str, providers: &[Provider], layers: &mut Layers) {
    let Some((id, name)) = model.split_once('/').filter(|(_, name)| is_model(name)) else {
        layers.wrong(key, &format!("'{model}' must be a provider and a model, such as \"local/qwen3\"."));
        return;
    };
    let is_found = providers.is_empty() && FOUND.contains(&id);
    match providers.iter().find(|provider| provider.id == id) {
        None if !is_found => layers.wrong(key, &format!("'{model}': there is no [providers.{id}].")),
        Some(one) if !one.models.is_empty() && !one.models.iter().any(|known| known == name) => {
            layers.wrong(key, &format!("'{model}' is none of providers.{id}.models."));
        }
        _ => {}
    }
}

/// True for what can be the name of a model.
pub fn is_model(name: &str) -> bool {
    (1..=200).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic() && !b"?#%\\\"".contains(&b))
}

fn providers(file: &Table, paths: &Paths, layers: &mut Layers) -> Vec<Provider> {
    let Some(table) = file.get("providers").and_then(Value::as_table) else { return Vec::new() };
    let references = layers.references;
    each_table("providers", table, layers, |id, table, faults| provider(id, table, paths, references, faults))
}

fn provider(id: &str, table: &Table, paths: &Paths, references: References, faults: &mut Faults) -> Option<Provider> {
    let mut reader = Reader::new(format!("providers.{id}"), table, references);
    let wrong_before = faults.wrong.len();
    let mut models = reader.list("models");
    if models.len() > MODELS_MAX || models.iter().any(|name| !is_model(name)) {
        reader.wrong("models", format!("must be at most {MODELS_MAX} names of models."));
    }
    let window = reader.number("window", WINDOW).and_then(|tokens| usize::try_from(tokens).ok());
    let kinds = "openai, anthropic, gemini, ollama or script.";
    let kind = match reader.required("kind", kinds).as_deref() {
        None => None,
        Some("script") => {
            if models.is_empty() {
                models.push("script".to_owned());
            }
            if !table.contains_key("path") {
                reader.wrong("path", "is missing: the YAML file with what it answers.");
            }
            reader.path("path", paths.home_dir.as_deref()).map(|path| ProviderKind::Script { path })
        }
        Some(name) => match Dialect::ALL.into_iter().find(|dialect| dialect.name() == name) {
            Some(dialect) => http(dialect, &mut reader, table),
            None => {
                reader.wrong("kind", format!("'{name}' is not known; this version has: {kinds}"));
                None
            }
        },
    };
    reader.finish(faults);
    let kind = kind.filter(|_| faults.wrong.len() == wrong_before)?;
    Some(Provider { id: id.to_owned(), models, window, kind })
}

fn http(dialect: Dialect, reader: &mut Reader<'_>, table: &Table) -> Option<ProviderKind> {
    let named = table.contains_key("url");
    let url = if named { reader.url("url", "where it is.") } else { Url::parse(dialect.usual_url()).ok() };
    if url.as_ref().is_some_and(|url| url.path_and_query().contains('?')) {
        reader.wrong("url", "must have no query; what lets you in belongs in `key` or `headers`.");
    }
    let keys = reader.secrets("key");
    if keys.len() > 1 || keys.iter().any(|key| !key.expose().bytes().all(|b| (b' '..=b'~').contains(&b))) {
        reader.wrong("key", "must be one text of plain characters, best as env:NAME, file:PATH or keyring:….");
    }
    if keys.is_empty() && !named && dialect != Dialect::Ollama {
        reader.wrong("key", "is missing: the provider's API key, best as env:NAME, file:PATH or keyring:….");
    }
    let headers = reader.headers("headers");
    let private = named || dialect == Dialect::Ollama;
    Some(ProviderKind::Http { dialect, url: url?, key: keys.into_iter().next(), headers, private })
}

fn prices(file: &Table, layers: &mut Layers) -> BTreeMap<String, Price> {
    let mut found = BTreeMap::new();
    let Some(tables) = file.get("prices").and_then(Value::as_table) else { return found };
    let mut faults = Faults::default();
    for (model, table) in tables {
        let key = format!("prices.\"{model}\"");
        if !model.contains('/') {
            faults.wrong.push(field(&key, "must name a provider and a model, as [prices.\"local/qwen3\"].".to_owned()));
            continue;
        }
        let Some(table) = table.as_table() else {
            faults.wrong.push(field(&key, format!("must be a section, such as [{key}].")));
            continue;
        };
        let mut reader = Reader::new(key.clone(), table, layers.references);
        let (input, output) = (micros(&mut reader, "input"), micros(&mut reader, "output"));
        let cached = micros(&mut reader, "cached").or(input);
        reader.finish(&mut faults);
        match (input, output, cached) {
            (Some(input), Some(output), Some(cached)) => drop(found.insert(
                model.clone(),
                Price { input_micros_per_mtok: input, output_micros_per_mtok: output, cached_micros_per_mtok: cached },
            )),
            _ => faults.wrong.push(FieldError {
                field: key,
                reason: "needs input and output: what a million tokens cost.".to_owned(),
            }),
        }
    }
    take_faults(faults, layers);
    found
}

/// A price as it is written, in millionths.
fn micros(reader: &mut Reader<'_>, key: &'static str) -> Option<u64> {
    let price = reader.decimal(key, 0.0..=PRICE_MAX)?;
    // At most 1e12, of which no digit is lost.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    Some((price * 1e6).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<ModelsConfig, Vec<String>> {
        let file: Table = text.parse().expect("TOML");
        let mut layers = Layers::new(&file, References::Followed);
        let config = read(&file, &Paths::under("/home/me/aman".into(), Some("/home/me".into())), &mut layers);
        let (_, warnings, wrong) = layers.finish(&file);
        let fields: Vec<String> = wrong.into_iter().map(|one| one.field).chain(warnings).collect();
        if fields.is_empty() { Ok(config) } else { Err(fields) }
    }

    #[test]
    fn providers_and_prices_are_read() {
        let text = "[models]\ndefault = \"local/a/b\"\nfallback = [\"far/x\"]\ncheap = \"demo/script\"\n\
            token_timeout = \"5s\"\n[providers.local]\nkind = \"openai\"\nurl = \"http://127.0.0.1:8080/v1\"\n\
            window = 4096\n[providers.far]\nkind = \"anthropic\"\nkey = \"canary-of-a-model\"\nmodels = [\"x\"]\n\
            [providers.demo]\nkind = \"script\"\npath = \"~/demo.yaml\"\n\
            [prices.\"far/x\"]\ninput = 3\noutput = 15.5\ncached = 0.3\n";
        let config = check(text).expect("good");
        assert_eq!(
            config.providers.iter().map(|one| one.kind.name()).collect::<Vec<_>>(),
            ["script", "anthropic", "openai"]
        );
        let private = |provider: &Provider| matches!(provider.kind, ProviderKind::Http { private: true, .. });
        assert!(private(&config.providers[2]) && !private(&config.providers[1]));
        assert_eq!(
            config.prices["far/x"],
            Price {
                input_micros_per_mtok: 3_000_000,
                output_micros_per_mtok: 15_500_000,
                cached_micros_per_mtok: 300_000
            }
        );
        assert!(!format!("{config:?}").contains("canary"));
        assert_eq!(crate::redact::text("a canary-of-a-model"), "a redacted");
        assert_eq!(check("").expect("nothing").detect.len(), 2);
        assert_eq!(check("[models]\ndetect = \"\"").expect("nowhere").detect.len(), 0);
        assert!(check("[models]\ndefault = \"ollama/qwen3\"").is_ok());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, wanted) in [
            ("[providers.a]", "providers.a.kind"),
            ("[providers.a]\nkind = \"x\"", "providers.a.kind"),
            ("[providers.a]\nkind = \"openai\"", "providers.a.key"),
            ("[providers.a]\nkind = \"openai\"\nurl = \"https://a/?key=1\"", "providers.a.url"),
            ("[providers.a]\nkind = \"gemini\"\nkey = \"env:NOBODY_SET_THIS\"", "providers.a.key"),
            ("[providers.a]\nkind = \"script\"", "providers.a.path"),
            ("[providers.a]\nkind = \"ollama\"\nwindow = 1", "providers.a.window"),
            ("[providers.a]\nkind = \"ollama\"\nmodels = [\"a b\"]", "providers.a.models"),
            ("[models]\ndefault = \"a\"", "models.default"),
            ("[models]\ndefault = \"a/b\"", "models.default"),
            ("[models]\nfallback = [\"a/b\"]", "models.fallback"),
            ("[models]\ncheap = \"a/b\"\n[providers.a]\nkind = \"ollama\"\nmodels = [\"c\"]", "models.cheap"),
            ("[models]\ntoken_timeout = \"0s\"", "models.token_timeout"),
            ("[models]\ndetect = \"http://example.org\"", "models.detect"),
            ("[prices.a]\ninput = 1\noutput = 1", "prices.\"a\""),
            ("[prices.\"a/b\"]\ninput = 1", "prices.\"a/b\""),
            ("[prices.\"a/b\"]\ninput = -1\noutput = 1", "prices.\"a/b\".input"),
            ("providers = 1", "providers"),
        ] {
            assert_eq!(check(text).expect_err(text)[0], wanted, "{text}");
        }
    }
}
