//! `plugin.toml` as it is spelled: unknown keys are errors, and nothing is checked yet.

use serde::Deserialize;

use super::permission::SecretHeader;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    pub name: String,
    pub version: String,
    pub description: String,
    pub license: Option<String>,
    pub interface: String,
    pub component: String,
    pub publisher: Option<String>,
    #[serde(default)]
    pub permissions: Permissions,
    #[serde(default)]
    pub routes: Vec<Route>,
    #[serde(default)]
    pub events: Vec<Events>,
    #[serde(default)]
    pub tools: Vec<Tool>,
    #[serde(default)]
    pub sources: Vec<Source>,
    #[serde(default)]
    pub pages: Vec<Page>,
    pub errors: Option<Errors>,
    #[serde(default)]
    pub limits: Limits,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Permissions {
    pub publish: Vec<String>,
    pub http: Vec<Http>,
    pub kv: Option<String>,
    pub sql: Option<String>,
    pub workflows: Vec<Workflows>,
    pub notify: bool,
    pub agents: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Workflows {
    pub name: String,
    pub may: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Http {
    pub host: String,
    pub methods: Option<Vec<String>>,
    pub secret_header: Option<SecretHeader>,
    #[serde(default)]
    pub private: bool,
    #[serde(default)]
    pub insecure: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Route {
    pub method: String,
    pub path: String,
    #[serde(default)]
    pub public: bool,
    #[serde(default)]
    pub root: bool,
    #[serde(default)]
    pub listener: bool,
    pub body: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Events {
    pub types: Vec<String>,
    pub when: Option<String>,
    pub concurrency: Option<toml::Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tool {
    pub name: String,
    pub description: String,
    pub schema: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Source {
    pub id: String,
    pub every: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    pub id: String,
    pub title: String,
    pub path: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Errors {
    pub envelope: String,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Limits {
    pub memory: Option<String>,
    pub time: Option<String>,
    pub wait: Option<String>,
    pub max_instances: Option<u64>,
    pub max_calls_per_instance: Option<u64>,
    pub output: Option<String>,
    pub isolation: Option<String>,
}
