//! The parts of a running daemon, one check for each kind of them.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Check;
use super::catalogue::Id;
use super::settings::broker_host;
use crate::cli::client::Client;
use crate::cli::out::{count, text};
use crate::cli::standing::{self, Amiss, Kind, Parts};
use crate::egress::Url;

/// How long the name of a host may take to be looked up.
const LOOKUP_MAX: Duration = Duration::from_secs(5);

/// The checks of these parts.
pub const IDS: [Id; 7] = [Id::Sources, Id::Sinks, Id::Skills, Id::Workflows, Id::Plugins, Id::Jobs, Id::McpServers];

fn id(kind: Kind) -> Id {
    match kind {
        Kind::Source => Id::Sources,
        Kind::Sink => Id::Sinks,
        Kind::Skill => Id::Skills,
        Kind::Workflow => Id::Workflows,
        Kind::Plugin => Id::Plugins,
        Kind::Job => Id::Jobs,
        Kind::Mcp => Id::McpServers,
    }
}

/// One check for each kind that the daemon tells of. `here`: it runs on this machine, so hosts are looked up, too.
pub async fn checks(client: &Client, status: &Value, here: bool) -> Vec<Check> {
    let mut checks = Vec::new();
    for mut parts in standing::all(client, status).await {
        if here && [Kind::Source, Kind::Sink].contains(&parts.kind) {
            look_up(&mut parts).await;
        }
        checks.push(check(&parts));
    }
    checks
}

fn check(parts: &Parts) -> Check {
    if parts.amiss.is_empty() {
        let all = count(parts.items.len() as u64, parts.kind.name());
        let all = if parts.items.is_empty() { "none".to_owned() } else { format!("{all}, none amiss") };
        return Check::ok(id(parts.kind), all);
    }
    let said = |part: fn(&Amiss) -> &str| {
        let all: BTreeSet<&str> = parts.amiss.iter().map(part).collect();
        all.into_iter().collect::<Vec<_>>().join(" ")
    };
    let what: Vec<String> = parts.amiss.iter().map(|one| one.what.trim_end_matches('.').to_owned()).collect();
    Check::warn(id(parts.kind), what.join("; "), said(|one| &one.advice))
}

/// Adds the sources and sinks that are said to be well, and whose host this machine cannot resolve: what goes out there
/// once has to wait.
async fn look_up(parts: &mut Parts) {
    let well = parts.items.iter().filter(|one| one["health"] == "ok" && parts.kind.is_on(one));
    let hosts: BTreeSet<(String, String)> =
        well.filter_map(|one| Some((text(&one["id"]), host(&one["config"])?))).collect();
    let mut asking = JoinSet::new();
    for (id, host) in hosts {
        asking.spawn(async move {
            let known = match timeout(LOOKUP_MAX, tokio::net::lookup_host((host.clone(), 0))).await {
                Ok(Ok(mut all)) => all.next().is_some(),
                Ok(Err(_)) | Err(_) => false,
            };
            (id, host, known)
        });
    }
    let mut answers = asking.join_all().await;
    answers.sort();
    for (id, host, _) in answers.into_iter().filter(|(_, _, known)| !known) {
        parts.amiss.push(Amiss {
            what: format!("{id}: '{host}' cannot be resolved"),
            advice: format!("Mind how it is spelled (`aman {} show {id}`), and the network.", parts.kind.name()),
        });
    }
}

/// The host that the settings of a source or sink name.
fn host(config: &Value) -> Option<String> {
    if let Some(url) = config["url"].as_str() {
        return Some(Url::parse(url.trim_end_matches('…')).ok()?.host().to_owned());
    }
    let broker = config["broker"].as_str()?;
    let broker = broker.strip_prefix("mqtts://").unwrap_or(broker);
    Some(broker_host(broker).trim_start_matches('[').trim_end_matches(']').to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::doctor::Verdict;

    #[test]
    fn hosts_are_found_in_settings() {
        for (config, wanted) in [
            (json!({ "url": "https://a.example/x?…" }), Some("a.example")),
            (json!({ "broker": "mqtts://b.example:8883/" }), Some("b.example")),
            (json!({ "broker": "c.example" }), Some("c.example")),
            (json!({ "broker": "mqtt://[::1]" }), Some("::1")),
            (json!({ "broker": "[::1]:1883" }), Some("::1")),
            (json!({ "path": "/x" }), None),
        ] {
            assert_eq!(host(&config).as_deref(), wanted, "{config}");
        }
    }

    #[tokio::test]
    async fn a_host_that_nobody_knows_is_told() {
        let sink = |id: &str, url: &str| json!({ "id": id, "enabled": true, "health": "ok", "config": { "url": url } });
        let items = vec![sink("here", "http://127.0.0.1:1/"), sink("nowhere", "https://nobody.invalid/")];
        let mut parts = Parts { kind: Kind::Sink, items, amiss: Vec::new() };
        look_up(&mut parts).await;
        assert_eq!(parts.amiss.len(), 1, "{parts:?}");
        let check = check(&parts);
        assert_eq!((check.id, check.status), (Id::Sinks, Verdict::Warn));
        assert!(check.message.starts_with("nowhere: 'nobody.invalid' cannot be resolved"), "{check:?}");
    }
}
