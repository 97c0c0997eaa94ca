//! Who can be asked: what the configuration says, or else what is found on this machine.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use serde::Serialize;
use tokio::sync::Mutex;

use super::error::{ErrorKind, ModelError};
use super::provider::Provider;
use super::standing::Last;
use super::{Price, find};
use crate::config::models::{ModelsConfig, ProviderKind};
use crate::egress::Egress;

/// How long what was found counts, and how long that nothing was.
const FOUND_FOR: Duration = Duration::from_secs(600);
const MISSED_FOR: Duration = Duration::from_secs(20);
/// What a model is taken to look at of which nothing is known.
const WINDOW: usize = 8_192;

/// The models that can be asked; cheap to clone.
#[derive(Clone)]
pub struct Models {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub egress: Egress,
    pub state: ArcSwap<State>,
    /// Held by whoever looks for models on this machine.
    looking: Mutex<()>,
    pub last: Last,
}

/// What is known at a time.
#[derive(Debug)]
pub(super) struct State {
    pub config: ModelsConfig,
    pub providers: Vec<Arc<Provider>>,
    /// When this machine was searched; none = it was not.
    searched: Option<Instant>,
}

/// A model that would be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Candidate {
    /// `provider/model`.
    pub id: String,
    /// The provider's id.
    pub provider: String,
    /// The model, as the provider calls it.
    pub model: String,
    /// True when it answers from a script.
    pub scripted: bool,
}

/// A model as it is listed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelShown {
    /// `provider/model`.
    pub id: String,
    /// The provider's id.
    pub provider: String,
    /// The provider's kind, as in the configuration.
    pub kind: &'static str,
    /// True when it answers from a script, and nothing thinks.
    pub scripted: bool,
    /// True when it was found on this machine and not configured.
    pub found: bool,
    /// Tokens that it looks at.
    pub window: usize,
    /// What it costs, where that is configured.
    pub price: Option<Price>,
    /// `default`, `fallback` and `cheap`, as far as it is one of them.
    pub roles: Vec<&'static str>,
}

impl Models {
    /// The models of `config`, asked by way of `egress`. Nothing is asked or looked for yet.
    pub fn new(config: &ModelsConfig, egress: &Egress) -> Models {
        let state = ArcSwap::from_pointee(State::of(config, &[]));
        let shared = Shared { egress: egress.clone(), state, looking: Mutex::new(()), last: Last::default() };
        Models { shared: Arc::new(shared) }
    }

    /// Puts another configuration in force; answers under way come to their end.
    pub fn configure(&self, config: &ModelsConfig) {
        let old = self.shared.state.load_full();
        if old.config != *config {
            self.shared.state.store(Arc::new(State::of(config, &old.providers)));
            self.shared.last.forget();
        }
    }

    /// What would be asked for `model`, in this order; empty = the default. With nothing configured this machine is searched.
    pub async fn resolve(&self, model: &str) -> Result<Vec<Candidate>, ModelError> {
        let state = self.state().await;
        let chain = state.chain(model, &[])?;
        Ok(chain.iter().map(|(provider, model)| candidate(provider, model)).collect())
    }

    /// Tokens that `model` looks at; empty = the default.
    pub fn window(&self, model: &str) -> usize {
        let state = self.shared.state.load();
        state.find(model).map_or(WINDOW, |(provider, _)| provider.window())
    }

    /// What `model` costs, where the configuration says; empty = the default.
    pub fn price(&self, model: &str) -> Option<Price> {
        let state = self.shared.state.load();
        state.config.prices.get(&state.id_of(model)?).copied()
    }

    /// What `model`, or whoever answers in its place, costs at the most.
    pub fn dearest(&self, model: &str, fallback: &[String]) -> Option<Price> {
        let state = self.shared.state.load();
        let chain = state.chain(model, fallback).ok()?;
        let prices = chain
            .iter()
            .filter_map(|(of, model)| state.config.prices.get(&format!("{}/{model}", of.config.id)).copied());
        prices.reduce(|one, other| Price {
            input_micros_per_mtok: one.input_micros_per_mtok.max(other.input_micros_per_mtok),
            output_micros_per_mtok: one.output_micros_per_mtok.max(other.output_micros_per_mtok),
            cached_micros_per_mtok: one.cached_micros_per_mtok.max(other.cached_micros_per_mtok),
        })
    }

    /// What takes the place of `model` when a budget runs low; none when there is nothing else.
    pub fn cheaper(&self, model: &str) -> Option<String> {
        let state = self.shared.state.load();
        let name = state.id_of(model)?;
        state.config.cheap.clone().filter(|cheap| *cheap != name)
    }

    /// The models that are known by name, by provider. With nothing configured this machine is searched.
    pub async fn list(&self) -> Vec<ModelShown> {
        let state = self.state().await;
        let default = state.default_model();
        let config = &state.config;
        let mut names: Vec<(Arc<Provider>, String)> = Vec::new();
        for provider in &state.providers {
            let prefix = format!("{}/", provider.config.id);
            let named = default.iter().chain(&config.fallback).chain(&config.cheap);
            let named = named.filter_map(|name| name.strip_prefix(&prefix)).map(str::to_owned);
            for name in provider.config.models.iter().cloned().chain(named) {
                if !names.iter().any(|(known, model)| known.config.id == provider.config.id && *model == name) {
                    names.push((Arc::clone(provider), name));
                }
            }
        }
        let shown = |(provider, model): (Arc<Provider>, String)| {
            let Candidate { id, provider: owner, scripted, .. } = candidate(&provider, &model);
            let role = |is: bool, name| is.then_some(name);
            let roles = [
                role(default.as_ref() == Some(&id), "default"),
                role(config.fallback.contains(&id), "fallback"),
                role(config.cheap.as_ref() == Some(&id), "cheap"),
            ];
            ModelShown {
                provider: owner,
                kind: provider.config.kind.name(),
                scripted,
                found: state.searched.is_some(),
                window: provider.window(),
                price: config.prices.get(&id).copied(),
                roles: roles.into_iter().flatten().collect(),
                id,
            }
        };
        names.into_iter().map(shown).collect()
    }

    /// What is known, after a search of this machine when nothing is configured and the last one is too long ago.
    pub(super) async fn state(&self) -> Arc<State> {
        let state = self.shared.state.load_full();
        if state.is_settled() {
            return state;
        }
        let _looking = self.shared.looking.lock().await;
        let state = self.shared.state.load_full();
        if state.is_settled() {
            return state;
        }
        let found = find::look(&self.shared.egress, &state.config.detect).await;
        let providers = renewed(found, &state.providers);
        let next = Arc::new(State { config: state.config.clone(), providers, searched: Some(Instant::now()) });
        // A configuration that came meanwhile stands.
        self.shared.state.compare_and_swap(&state, Arc::clone(&next));
        next
    }

    /// Forgets what was found on this machine, so that the next question searches it again: something there has ended.
    pub(super) fn search_again(&self, state: &Arc<State>) {
        if state.searched.is_some() {
            let next = State { config: state.config.clone(), providers: Vec::new(), searched: None };
            self.shared.state.compare_and_swap(state, Arc::new(next));
        }
    }
}

fn candidate(provider: &Provider, model: &str) -> Candidate {
    let config = &provider.config;
    Candidate {
        id: format!("{}/{model}", config.id),
        provider: config.id.clone(),
        model: model.to_owned(),
        scripted: matches!(config.kind, ProviderKind::Script { .. }),
    }
}

/// Providers that are the same as before keep what was learned of them.
fn renewed(wanted: Vec<crate::config::models::Provider>, known: &[Arc<Provider>]) -> Vec<Arc<Provider>> {
    let same = |config: &crate::config::models::Provider| known.iter().find(|one| one.config == *config).cloned();
    wanted.into_iter().map(|config| same(&config).unwrap_or_else(|| Arc::new(Provider::new(config)))).collect()
}

impl State {
    fn of(config: &ModelsConfig, known: &[Arc<Provider>]) -> State {
        State { config: config.clone(), providers: renewed(config.providers.clone(), known), searched: None }
    }

    /// True when no search could tell more now.
    fn is_settled(&self) -> bool {
        if !self.config.providers.is_empty() || self.config.detect.is_empty() {
            return true;
        }
        let wait = if self.providers.is_empty() { MISSED_FOR } else { FOUND_FOR };
        self.searched.is_some_and(|at| at.elapsed() < wait)
    }

    /// The model that is asked when nobody names one.
    pub fn default_model(&self) -> Option<String> {
        let first = || {
            let one = self.providers.iter().find(|provider| !provider.config.models.is_empty())?;
            Some(format!("{}/{}", one.config.id, one.config.models[0]))
        };
        self.config.default.clone().or_else(first)
    }

    /// The provider of `model`, and what the model is called there; empty = the default.
    fn find(&self, model: &str) -> Result<(Arc<Provider>, String), ModelError> {
        if self.providers.is_empty() {
            return Err(ModelError::new(ErrorKind::None, none(&self.config)));
        }
        let invalid = |why: String| ModelError::new(ErrorKind::Invalid, why);
        let name = match model {
            "" => self.default_model().ok_or_else(|| {
                ModelError::new(ErrorKind::None, "No default model: set models.default, or providers.<id>.models.")
            })?,
            named => named.to_owned(),
        };
        let (id, model) = name.split_once('/').unwrap_or((&name, ""));
        let Some(provider) = self.providers.iter().find(|provider| provider.config.id == id) else {
            let known: Vec<&str> = self.providers.iter().map(|provider| provider.config.id.as_str()).collect();
            return Err(invalid(format!("'{name}': there is no provider '{id}'; there is {}.", known.join(", "))));
        };
        let listed = &provider.config.models;
        let model = match listed.first().filter(|_| model.is_empty()) {
            Some(first) => first.clone(),
            None => model.to_owned(),
        };
        if !crate::config::models::is_model(&model) {
            return Err(invalid(format!("'{name}' must be a provider and a model, such as {id}/qwen3.")));
        }
        if !listed.is_empty() && !listed.contains(&model) {
            return Err(invalid(format!("'{name}' is none of providers.{id}.models.")));
        }
        Ok((Arc::clone(provider), model))
    }

    /// `provider/model` of what is named, as far as that is known; empty = the default.
    fn id_of(&self, model: &str) -> Option<String> {
        match self.find(model) {
            Ok((provider, model)) => Some(format!("{}/{model}", provider.config.id)),
            Err(_) if model.is_empty() => self.default_model(),
            Err(_) => Some(model.to_owned()),
        }
    }

    /// Who is asked, in this order: `model`, then `fallback`, or without one what the configuration says.
    pub fn chain(&self, model: &str, fallback: &[String]) -> Result<Vec<(Arc<Provider>, String)>, ModelError> {
        let mut chain = vec![self.find(model)?];
        let fallback = if fallback.is_empty() { &self.config.fallback } else { fallback };
        for name in fallback {
            let (provider, model) = self.find(name)?;
            if !chain.iter().any(|(known, name)| known.config.id == provider.config.id && *name == model) {
                chain.push((provider, model));
            }
        }
        Ok(chain)
    }
}

/// Why there is no model, and what to do.
fn none(config: &ModelsConfig) -> String {
    let searched =
        if config.detect.is_empty() { "" } else { ", and neither Ollama nor llama.cpp was found on this machine" };
    format!("No model is configured{searched}. Add a [providers.<id>] to aman.toml; daemon/docs/models.md shows how.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::models::{Dialect, Provider as Configured};
    use crate::egress::Url;

    fn config() -> ModelsConfig {
        let provider = |id: &str, models: &[&str], window| Configured {
            id: id.to_owned(),
            models: models.iter().map(|name| (*name).to_owned()).collect(),
            window,
            kind: ProviderKind::Http {
                dialect: Dialect::OpenAi,
                url: Url::parse("http://127.0.0.1:1/v1").expect("good"),
                key: None,
                headers: Vec::new(),
                private: true,
            },
        };
        let price = Price { input_micros_per_mtok: 1, output_micros_per_mtok: 2, cached_micros_per_mtok: 1 };
        ModelsConfig {
            default: Some("a/x/y".to_owned()),
            fallback: vec!["b/one".to_owned(), "a/x/y".to_owned()],
            cheap: Some("b/two".to_owned()),
            first_token_timeout: Duration::from_secs(1),
            token_timeout: Duration::from_secs(1),
            max_retries: 0,
            detect: Vec::new(),
            providers: vec![provider("a", &[], Some(99)), provider("b", &["one", "two"], None)],
            prices: [("a/x/y".to_owned(), price)].into(),
        }
    }

    #[tokio::test]
    async fn models_are_resolved_listed_and_priced() {
        let models = Models::new(&config(), &Egress::new(false));
        let ids = |found: Vec<Candidate>| found.into_iter().map(|one| one.id).collect::<Vec<_>>();
        assert_eq!(ids(models.resolve("").await.expect("the default")), ["a/x/y", "b/one"]);
        assert_eq!(ids(models.resolve("b").await.expect("its first")), ["b/one", "a/x/y"]);
        for (name, kind) in [("c/x", ErrorKind::Invalid), ("b/three", ErrorKind::Invalid), ("a/", ErrorKind::Invalid)] {
            assert_eq!(models.resolve(name).await.expect_err(name).kind, kind, "{name}");
        }
        assert_eq!((models.window(""), models.window("b/one"), models.window("c/x")), (99, 8_192, 8_192));
        assert!(models.price("").is_some() && models.price("b/one").is_none());
        let dear = Price { input_micros_per_mtok: 9, output_micros_per_mtok: 1, cached_micros_per_mtok: 0 };
        let priced = ModelsConfig {
            prices: [("a/x/y".to_owned(), models.price("").expect("one")), ("b/one".to_owned(), dear)].into(),
            ..config()
        };
        let both = Models::new(&priced, &Egress::new(false));
        assert_eq!(both.price("b"), Some(dear), "by its provider alone");
        let most = both.dearest("", &["b".to_owned()]).expect("both have one");
        let first = both.price("").expect("one");
        assert_eq!(most.input_micros_per_mtok, first.input_micros_per_mtok.max(9));
        assert_eq!(most.output_micros_per_mtok, first.output_micros_per_mtok.max(1));
        assert_eq!((models.cheaper("").as_deref(), models.cheaper("b/two")), (Some("b/two"), None));
        let shown: Vec<(String, Vec<&str>)> = models.list().await.into_iter().map(|one| (one.id, one.roles)).collect();
        let wanted = [("a/x/y", vec!["default", "fallback"]), ("b/one", vec!["fallback"]), ("b/two", vec!["cheap"])];
        assert_eq!(shown, wanted.map(|(id, roles)| (id.to_owned(), roles)));
        let before = models.shared.state.load_full();
        models.configure(&ModelsConfig { cheap: None, ..config() });
        let after = models.shared.state.load_full();
        assert!(Arc::ptr_eq(&before.providers[0], &after.providers[0]) && models.cheaper("").is_none());
        models.configure(&ModelsConfig { providers: Vec::new(), ..config() });
        assert_eq!(models.resolve("").await.expect_err("none").kind, ErrorKind::None);
    }
}
