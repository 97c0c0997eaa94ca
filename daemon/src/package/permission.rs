//! `[permissions]` of `plugin.toml`: what a plugin may do beyond computing.

use serde::{Deserialize, Serialize};

use super::manifest::{Checker, GRANTS_MAX};
use super::raw;
use crate::event::TypePattern;

/// Methods of requests that a plugin may send.
const METHODS: [&str; 6] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"];
/// Longest name of a workflow, in bytes.
const WORKFLOW_BYTES_MAX: usize = 100;

/// What a plugin may do beyond computing; empty unless asked for.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Permissions {
    /// Types of events that it may publish.
    pub publish: Vec<TypePattern>,
    /// Hosts that it may call.
    pub http: Vec<HttpGrant>,
    /// Bytes of its own keys and values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv: Option<u64>,
    /// Bytes of its own database.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sql: Option<u64>,
    /// Workflows that it may start, signal and read.
    pub workflows: Vec<WorkflowGrant>,
    /// Whether it may tell the person something.
    pub notify: bool,
    /// What it may do with agents.
    pub agents: Vec<AgentRight>,
}

/// A host that a plugin may call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HttpGrant {
    /// Whom.
    pub host: Host,
    /// With which methods.
    pub methods: Vec<String>,
    /// A header that the host adds, so that the plugin never holds the secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_header: Option<SecretHeader>,
    /// May be a loopback or private address.
    pub private: bool,
    /// May be reached without TLS.
    pub insecure: bool,
}

/// Whom a plugin may call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Host {
    /// This name, with this port if one is given.
    Exact(String),
    /// Any name below this one.
    Below(String),
    /// The host of the address in this setting of the plugin, which the operator writes; with `*` at its end, of those in
    /// all settings that begin so.
    Setting(String),
}

impl Host {
    /// Whether a grant for the host in the setting `granted` covers the setting `key`.
    pub fn is_set_in(granted: &str, key: &str) -> bool {
        granted.strip_suffix('*').map_or(granted == key, |start| key.starts_with(start))
    }
}

/// Workflows that a plugin may do something with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WorkflowGrant {
    /// A name, or the beginning of names and `*`.
    pub name: String,
    /// What.
    pub may: Vec<WorkflowRight>,
}

impl WorkflowGrant {
    /// Whether it is about the workflow of this name.
    pub fn covers(&self, workflow: &str) -> bool {
        self.name.strip_suffix('*').map_or(self.name == workflow, |start| workflow.starts_with(start))
    }
}

/// What a plugin may do with a workflow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkflowRight {
    /// Start instances.
    Start,
    /// Send events to single instances.
    Signal,
    /// Read instances.
    Read,
}

impl WorkflowRight {
    pub(super) const ALL: [WorkflowRight; 3] = [WorkflowRight::Start, WorkflowRight::Signal, WorkflowRight::Read];

    /// As manifests spell it.
    pub fn name(self) -> &'static str {
        match self {
            WorkflowRight::Start => "start",
            WorkflowRight::Signal => "signal",
            WorkflowRight::Read => "read",
        }
    }
}

/// What a plugin may do with agents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentRight {
    /// See which there are, and their definitions.
    Read,
    /// Talk with them, in sessions of its own.
    Chat,
    /// Make, change and remove them.
    Manage,
}

impl AgentRight {
    pub(super) const ALL: [AgentRight; 3] = [AgentRight::Read, AgentRight::Chat, AgentRight::Manage];

    /// As manifests spell it.
    pub fn name(self) -> &'static str {
        match self {
            AgentRight::Read => "read",
            AgentRight::Chat => "chat",
            AgentRight::Manage => "manage",
        }
    }
}

/// A header whose value the plugin never sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretHeader {
    /// Name of the header, lower case.
    pub name: String,
    /// Key under `[plugin.<name>.secrets]`.
    pub secret: String,
    /// What stands before the secret, such as `Bearer `.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub prefix: String,
}

impl Checker {
    pub(super) fn permissions(&mut self, raw: &raw::Raw) -> Permissions {
        let raw = &raw.permissions;
        self.count("permissions.http", raw.http.len(), GRANTS_MAX);
        self.count("permissions.workflows", raw.workflows.len(), GRANTS_MAX);
        Permissions {
            publish: self.patterns("permissions.publish", &raw.publish),
            http: (0..).zip(&raw.http).filter_map(|(n, http)| self.http(n, http)).collect(),
            kv: raw.kv.as_deref().and_then(|text| self.size("permissions.kv", text)),
            sql: raw.sql.as_deref().and_then(|text| self.size("permissions.sql", text)),
            workflows: (0..).zip(&raw.workflows).map(|(n, grant)| self.workflows(n, grant)).collect(),
            notify: raw.notify,
            agents: self.agents(&raw.agents),
        }
    }

    fn agents(&mut self, raw: &[String]) -> Vec<AgentRight> {
        let rights: Vec<AgentRight> =
            AgentRight::ALL.into_iter().filter(|right| raw.iter().any(|name| name == right.name())).collect();
        if rights.len() != raw.len() {
            self.wrong("permissions.agents", "must be some of read, chat, manage, each once.");
        }
        rights
    }

    fn workflows(&mut self, n: usize, raw: &raw::Workflows) -> WorkflowGrant {
        let key = format!("permissions.workflows[{n}]");
        let start = raw.name.strip_suffix('*').unwrap_or(&raw.name);
        let plain = start.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if raw.name.is_empty() || raw.name.len() > WORKFLOW_BYTES_MAX || !plain {
            let reason = "must be the name of a workflow, or the beginning of names and a '*', such as order-*.";
            self.wrong(format!("{key}.name"), reason);
        }
        let right = |name: &String| WorkflowRight::ALL.into_iter().find(|right| right.name() == name);
        let may: Vec<WorkflowRight> = raw.may.iter().filter_map(right).collect();
        if may.is_empty() || may.len() < raw.may.len() {
            self.wrong(format!("{key}.may"), "must be some of start, signal, read.");
        }
        WorkflowGrant { name: raw.name.clone(), may }
    }

    fn http(&mut self, n: usize, raw: &raw::Http) -> Option<HttpGrant> {
        let key = format!("permissions.http[{n}]");
        let host = self.take(&format!("{key}.host"), parse_host(&raw.host));
        let methods: Vec<String> = raw.methods.clone().unwrap_or_else(|| vec!["GET".to_owned()]);
        if methods.is_empty() || methods.iter().any(|method| !METHODS.contains(&method.as_str())) {
            self.wrong(format!("{key}.methods"), format!("must be some of {}.", METHODS.join(", ")));
        }
        if let Some(header) = &raw.secret_header {
            let plain = |text: &str| text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
            if header.name.is_empty() || !plain(&header.name) {
                self.wrong(format!("{key}.secret_header.name"), "must be the name of a header in lower case.");
            }
            if header.secret.is_empty() || !header.secret.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                self.wrong(format!("{key}.secret_header.secret"), "must be letters, digits and '_'.");
            }
            if !header.prefix.bytes().all(|b| (b' '..=b'~').contains(&b)) {
                self.wrong(format!("{key}.secret_header.prefix"), "must be plain ASCII.");
            }
        }
        let (secret_header, private, insecure) = (raw.secret_header.clone(), raw.private, raw.insecure);
        host.map(|host| HttpGrant { host, methods, secret_header, private, insecure })
    }
}

/// Reads `api.example.org`, `api.example.org:8443`, `*.example.org`, `setting:base_url` or `setting:site_*`.
fn parse_host(text: &str) -> Result<Host, String> {
    if let Some(setting) = text.strip_prefix("setting:") {
        let name = setting.strip_suffix('*').unwrap_or(setting);
        let good = !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        return if good {
            Ok(Host::Setting(setting.to_owned()))
        } else {
            let reason = "'setting:' is followed by the name of a setting: lower-case letters, digits and '_'; with '*' \
                          behind it all settings that begin so are meant.";
            Err(reason.to_owned())
        };
    }
    let (below, name) = text.strip_prefix("*.").map_or((false, text), |name| (true, name));
    let (host, port) = name.split_once(':').map_or((name, None), |(host, port)| (host, Some(port)));
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    let labels = host.split('.').count();
    let good = host.len() <= 253
        && host.split('.').all(label)
        && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
        && !(below && (labels < 2 || port.is_some()));
    if !good {
        return Err(format!(
            "'{text}' is no host; write api.example.org, api.example.org:8443, *.example.org or setting:NAME, in lower case."
        ));
    }
    Ok(if below { Host::Below(name.to_owned()) } else { Host::Exact(name.to_owned()) })
}
