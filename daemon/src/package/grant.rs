//! What an operator agrees to when a plugin is installed, each in a sentence, and what an upgrade adds to it.

use serde::{Deserialize, Serialize};

use super::manifest::Manifest;
use super::permission::{AgentRight, Host, HttpGrant, WorkflowGrant, WorkflowRight};
use crate::event::TypePattern;

/// One thing that a plugin may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The same for the same right, whatever the amount: `kv`, `publish feed.**`, `http GET api.example.org`.
    pub key: String,
    /// What people read.
    pub text: String,
    /// How much of it, where it is an amount in bytes; 0 elsewhere.
    pub amount: u64,
}

impl Grant {
    fn new(key: impl Into<String>, text: impl Into<String>) -> Grant {
        Grant { key: key.into(), text: text.into(), amount: 0 }
    }

    pub(super) fn all(manifest: &Manifest) -> Vec<Grant> {
        let permissions = &manifest.permissions;
        let mut grants = Vec::new();
        for pattern in manifest.events.iter().flat_map(|events| &events.types).map(TypePattern::as_str) {
            grants.push(Grant::new(format!("events {pattern}"), format!("receive every event of type {pattern}")));
        }
        for pattern in permissions.publish.iter().map(TypePattern::as_str) {
            grants.push(Grant::new(format!("publish {pattern}"), format!("publish events of type {pattern}")));
        }
        grants.extend(permissions.http.iter().flat_map(http));
        grants.extend(permissions.workflows.iter().flat_map(workflows));
        grants.extend(permissions.agents.iter().map(|right| agents(*right)));
        if permissions.notify {
            grants.push(Grant::new("notify", "show you notifications"));
        }
        for (key, bytes, what) in
            [("kv", permissions.kv, "keys and values of its own"), ("sql", permissions.sql, "a database of its own")]
        {
            if let Some(amount) = bytes {
                let text = format!("keep {what}, up to {} KiB", amount.div_ceil(1024));
                grants.push(Grant { key: key.to_owned(), text, amount });
            }
        }
        for route in manifest.routes.iter().filter(|route| route.public || route.root) {
            let shown = route.shown();
            if route.public {
                let text = format!("answer {shown} to anyone, without credentials");
                grants.push(Grant::new(format!("public {shown}"), text));
            }
            if route.root {
                grants.push(Grant::new(format!("root {shown}"), format!("serve {shown}, outside /api/v1")));
            }
        }
        grants.sort_by(|a, b| a.key.cmp(&b.key));
        grants.dedup();
        grants
    }

    /// What `new` holds beyond `old`.
    pub fn widened(new: &[Grant], old: &[Grant]) -> Vec<Grant> {
        let covered = |grant: &Grant| old.iter().any(|had| had.key == grant.key && had.amount >= grant.amount);
        new.iter().filter(|grant| !covered(grant)).cloned().collect()
    }
}

/// A grant for each right.
fn workflows(grant: &WorkflowGrant) -> impl Iterator<Item = Grant> {
    let which = match grant.name.strip_suffix('*') {
        None => format!("the workflow '{}'", grant.name),
        Some("") => "any workflow".to_owned(),
        Some(start) => format!("any workflow whose name begins with '{start}'"),
    };
    grant.may.iter().map(move |right| {
        let text = match right {
            WorkflowRight::Start => format!("start {which}"),
            WorkflowRight::Signal => format!("send events to instances of {which}"),
            WorkflowRight::Read => format!("read instances of {which}, with what went in and came out"),
        };
        Grant::new(format!("workflows {} {}", right.name(), grant.name), text)
    })
}

fn agents(right: AgentRight) -> Grant {
    let text = match right {
        AgentRight::Read => "see your agents, with what they are told and may use",
        AgentRight::Chat => {
            "talk with your agents, which takes tokens: what they know, and read in the folders and at the hosts that they have, \
             can reach it"
        }
        AgentRight::Manage => {
            "make, change and remove agents, within the folders, hosts, commands, events and budgets that each has already"
        }
    };
    Grant::new(format!("agents {}", right.name()), text)
}

/// A grant for each method, and one for each thing beyond plain calls: what is added later is seen as added.
fn http(http: &HttpGrant) -> Vec<Grant> {
    let (host, words) = match &http.host {
        Host::Exact(name) => (name.clone(), name.clone()),
        Host::Below(name) => (format!("*.{name}"), format!("any host below {name}")),
        Host::Setting(name) if name.ends_with('*') => {
            (format!("setting:{name}"), format!("the hosts in its settings '{name}'"))
        }
        Host::Setting(name) => (format!("setting:{name}"), format!("the host in its setting '{name}'")),
    };
    let each = http.methods.iter();
    let mut grants: Vec<Grant> = each
        .map(|method| Grant::new(format!("http {method} {host}"), format!("send {method} requests to {words}")))
        .collect();
    if http.private {
        let text = format!("reach {words} at loopback and private addresses, too");
        grants.push(Grant::new(format!("http private {host}"), text));
    }
    if http.insecure {
        grants.push(Grant::new(format!("http insecure {host}"), format!("reach {words} without TLS, too")));
    }
    if let Some(header) = &http.secret_header {
        let text = format!("have the secret {} sent to {words} as header {}", header.secret, header.name);
        grants.push(Grant::new(format!("http secret {} {} {host}", header.secret, header.name), text));
    }
    grants
}
