//! How the parts of a running daemon stand, and what of them needs somebody: the one list that `aman status` and
//! `aman doctor` are made of.

use serde_json::Value;

use super::PAGE_MAX;
use super::client::{Call, Client};
use super::out::{count, text};

/// What a part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What brings events in.
    Source,
    /// Where events go.
    Sink,
    /// What reacts to events by a script.
    Skill,
    /// A durable sequence of tasks.
    Workflow,
    /// A WebAssembly component.
    Plugin,
    /// Runs by a time plan.
    Job,
    /// Another program whose tools are offered.
    Mcp,
}

impl Kind {
    /// All, in the order they are shown in.
    const ALL: [Kind; 7] = [Kind::Source, Kind::Sink, Kind::Skill, Kind::Workflow, Kind::Plugin, Kind::Job, Kind::Mcp];

    /// What one is called.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Source => "source",
            Kind::Sink => "sink",
            Kind::Skill => "skill",
            Kind::Workflow => "workflow",
            Kind::Plugin => "plugin",
            Kind::Job => "job",
            Kind::Mcp => "MCP server",
        }
    }

    fn path(self) -> &'static str {
        match self {
            Kind::Source => "/event-sources",
            Kind::Sink => "/sinks",
            Kind::Skill => "/skills",
            Kind::Workflow => "/workflows",
            Kind::Plugin => "/plugins",
            Kind::Job => "/cron",
            Kind::Mcp => "/mcp-servers",
        }
    }

    /// Whether it is switched on, and may work.
    pub fn is_on(self, one: &Value) -> bool {
        match self {
            Kind::Source | Kind::Sink | Kind::Job | Kind::Mcp => one["enabled"] == true,
            Kind::Skill => one["standing"] == "active",
            Kind::Workflow => true,
            Kind::Plugin => one["state"] == "active",
        }
    }
}

/// Something that needs somebody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Amiss {
    /// Which, and what is wrong with it.
    pub what: String,
    /// What to do.
    pub advice: String,
}

/// All parts of one kind.
#[derive(Debug, Clone)]
pub struct Parts {
    /// What they are.
    pub kind: Kind,
    /// As the daemon lists them.
    pub items: Vec<Value>,
    /// What needs somebody.
    pub amiss: Vec<Amiss>,
}

impl Parts {
    /// `3 sources (2 on)`; none when there are none.
    pub fn shown(&self) -> Option<String> {
        let on = self.items.iter().filter(|one| self.kind.is_on(one)).count();
        let all = count(self.items.len() as u64, self.kind.name());
        match self.items.len() {
            0 => None,
            number if number == on => Some(all),
            _ => Some(format!("{all} ({on} on)")),
        }
    }
}

/// Asks for all of them; what the token may not see is left out. `status` is the answer of `/runtime/status`.
pub async fn all(client: &Client, status: &Value) -> Vec<Parts> {
    let mut found = Vec::new();
    for kind in Kind::ALL {
        let listed = client.call(Call::get(kind.path()).query("limit", PAGE_MAX)).await;
        let Ok(mut page) = listed.and_then(|reply| reply.json()) else { continue };
        let Value::Array(items) = page["items"].take() else { continue };
        let mut amiss: Vec<Amiss> = items.iter().filter_map(|one| needs(kind, one)).collect();
        amiss.extend(unread(kind, &status["subsystems"]));
        found.push(Parts { kind, items, amiss });
    }
    found
}

fn amiss(what: String, advice: impl Into<String>) -> Option<Amiss> {
    Some(Amiss { what, advice: advice.into() })
}

fn needs(kind: Kind, one: &Value) -> Option<Amiss> {
    let id = text(&one[if matches!(kind, Kind::Plugin | Kind::Mcp) { "name" } else { "id" }]);
    let said = |key: &str| format!("{id}: {}", text(&one[key]));
    match kind {
        Kind::Source if one["state"] == "missing" => amiss(
            format!("{id}: {} is not there", text(&one["path"])),
            "Put the folder back, or name another; nothing is told of its files until it is there.",
        ),
        Kind::Source if one["health"] == "failing" => {
            amiss(said("detail"), format!("`aman source show {id}` says more; it is tried again and again."))
        }
        Kind::Source if one["health"] == "silent" => amiss(
            said("detail"),
            format!(
                "See whether what feeds it still runs; its expect_every says how long it may be silent (`aman source show {id}`)."
            ),
        ),
        Kind::Sink if one["health"] == "failing" => {
            amiss(said("detail"), format!("`aman sink show {id}` says more, `aman sink test {id}` tries it."))
        }
        Kind::Sink if one["failed"].as_u64().is_some_and(|failed| failed > 0) => amiss(
            format!("{id}: {} failed for good", count(one["failed"].as_u64().unwrap_or(0), "sending")),
            format!("`aman sink failures {id}` shows them, `aman sink retry` sends again."),
        ),
        Kind::Plugin => plugin(one, &id),
        Kind::Job if !one["disabled_reason"].is_null() && one["enabled"] == false => amiss(
            format!("{id} is switched off: {}", text(&one["disabled_reason"])),
            format!("`aman cron runs {id}` says why, `aman cron update {id} --enable` switches it on."),
        ),
        Kind::Mcp if one["state"] == "waiting" => {
            amiss(said("detail"), format!("It is tried again by itself; `aman mcp reconnect {id}` tries at once."))
        }
        Kind::Source | Kind::Sink | Kind::Skill | Kind::Workflow | Kind::Job | Kind::Mcp => None,
    }
}

fn plugin(one: &Value, id: &str) -> Option<Amiss> {
    let more = format!("`aman plugin show {id}` says more.");
    match text(&one["state"]).as_str() {
        "failed" | "quarantined" => amiss(format!("{id}: {}", text(&one["reason"])), more),
        "pending_consent" => {
            amiss(format!("{id} waits for your consent"), format!("`aman plugin approve {id}` shows what it asks for."))
        }
        _ => amiss(format!("{id}: {}", one["listener"]["error"].as_str()?), more),
    }
}

/// What could not be read, and so is in no list.
fn unread(kind: Kind, subsystems: &Value) -> Vec<Amiss> {
    let (left_out, place, advice) = match kind {
        Kind::Skill => (&subsystems["skills"]["failed"], "path", "Correct it, then `aman skill reload`."),
        Kind::Workflow => (
            &subsystems["workflows"]["left_out"],
            "place",
            "Correct it, see `aman workflow validate FILE`, then restart the daemon.",
        ),
        Kind::Source | Kind::Sink | Kind::Plugin | Kind::Job | Kind::Mcp => return Vec::new(),
    };
    let all = left_out.as_array().into_iter().flatten();
    all.filter_map(|one| amiss(format!("{}: {}", text(&one[place]), text(&one["error"])), advice)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_needs_somebody_is_told_with_what_to_do() {
        let cases = [
            (Kind::Source, json!({ "id": "a", "health": "ok" }), None),
            (Kind::Source, json!({ "id": "a", "health": "paused" }), None),
            (Kind::Source, json!({ "id": "a", "health": "failing", "detail": "no" }), Some(("a: no", "source show a"))),
            (Kind::Source, json!({ "id": "a", "health": "silent", "detail": "no" }), Some(("a: no", "expect_every"))),
            (Kind::Sink, json!({ "id": "a", "health": "failing", "detail": "no" }), Some(("a: no", "sink test a"))),
            (Kind::Sink, json!({ "id": "a", "health": "ok", "failed": 0 }), None),
            (Kind::Sink, json!({ "id": "a", "health": "ok", "failed": 2 }), Some(("a: 2 sendings", "failures a"))),
            (Kind::Plugin, json!({ "name": "a", "state": "active" }), None),
            (Kind::Plugin, json!({ "name": "a", "state": "quarantined", "reason": "no" }), Some(("a: no", "show a"))),
            (Kind::Plugin, json!({ "name": "a", "state": "pending_consent" }), Some(("a waits", "approve a"))),
            (Kind::Plugin, json!({ "name": "a", "listener": { "error": "no" } }), Some(("a: no", "show a"))),
            (Kind::Job, json!({ "id": "a", "enabled": false, "disabled_reason": null }), None),
            (Kind::Job, json!({ "id": "a", "enabled": false, "disabled_reason": "no" }), Some(("off: no", "--enable"))),
            (Kind::Mcp, json!({ "name": "a", "state": "ready", "detail": null }), None),
            (Kind::Mcp, json!({ "name": "a", "state": "waiting", "detail": "no" }), Some(("a: no", "reconnect a"))),
            (Kind::Skill, json!({ "name": "a", "standing": "untrusted" }), None),
        ];
        for (kind, one, wanted) in cases {
            let found = needs(kind, &one);
            match (&found, wanted) {
                (None, None) => {}
                (Some(found), Some((what, advice))) => {
                    assert!(found.what.contains(what) && found.advice.contains(advice), "{one}: {found:?}");
                }
                _ => panic!("{one}: {found:?}"),
            }
        }
        let subsystems = json!({ "skills": { "failed": [{ "path": "/s", "error": "no" }] },
            "workflows": { "left_out": [{ "place": "/w", "error": "no" }] } });
        assert_eq!(unread(Kind::Skill, &subsystems)[0].what, "/s: no");
        assert_eq!(unread(Kind::Workflow, &subsystems)[0].what, "/w: no");
        assert!(unread(Kind::Source, &subsystems).is_empty() && unread(Kind::Skill, &Value::Null).is_empty());
    }
}
