//! Looks for models on this machine, for people who configured none.

use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;

use crate::config::models::{Dialect, FOUND, Provider, ProviderKind, is_model};
use crate::egress::{Ask, Egress, Leg, Method, Url};

/// How long one question may take: what is on this machine answers at once.
const WAIT: Duration = Duration::from_secs(2);
/// Longest answer, in bytes.
const BYTES_MAX: usize = 4 << 20;
/// Models that are taken of one place.
const MODELS_MAX: usize = 200;

/// The providers at these places, none where nobody answers as one of them does.
pub async fn look(egress: &Egress, places: &[Url]) -> Vec<Provider> {
    let mut found: Vec<Provider> = Vec::new();
    for place in places {
        if let Some(provider) = at(egress, place).await
            && found.iter().all(|known| known.id != provider.id)
        {
            found.push(provider);
        }
    }
    found
}

async fn at(egress: &Egress, place: &Url) -> Option<Provider> {
    let provider = |id: &str, dialect, url, models, window| Provider {
        id: id.to_owned(),
        models,
        window,
        kind: ProviderKind::Http { dialect, url, key: None, headers: Vec::new(), private: true },
    };
    let listed = get(egress, place, "/v1/models").await?;
    let items = listed["data"].as_array()?;
    // Both list models so, and each says who it is.
    if let Some(first) = items.iter().find(|item| item["owned_by"] == "llamacpp") {
        let window = first["meta"]["n_ctx"].as_u64().and_then(|tokens| usize::try_from(tokens).ok());
        let models = items.iter().filter_map(|item| item["id"].as_str()).map(short);
        let (url, models) = (place.join("/v1").ok()?, names(models));
        return Some(provider(FOUND[1], Dialect::OpenAi, url, models, window.filter(|tokens| *tokens > 0)));
    }
    let tags = get(egress, place, "/api/tags").await?;
    let models = names(tags["models"].as_array()?.iter().filter_map(|item| item["name"].as_str()));
    Some(provider(FOUND[0], Dialect::Ollama, place.clone(), models, None))
}

/// llama.cpp names a model by its file, and takes any name for it.
fn short(id: &str) -> &str {
    let name = id.rsplit('/').next().unwrap_or(id);
    name.strip_suffix(".gguf").unwrap_or(name)
}

fn names<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    names.filter(|name| is_model(name)).take(MODELS_MAX).map(str::to_owned).collect()
}

async fn get(egress: &Egress, place: &Url, path: &str) -> Option<Value> {
    let ask = Ask {
        method: Method::GET,
        url: place.join(path).ok()?,
        headers: Vec::new(),
        body: Bytes::new(),
        bytes_max: BYTES_MAX,
        time_max: WAIT,
        redirects_max: 0,
    };
    let heard = egress.ask_by(ask, |_| Ok(Leg { private: true, ..Leg::default() })).await.ok()?;
    serde_json::from_slice(&heard.body).ok().filter(|_| heard.is_success())
}
