//! Which events of the daemon's own the person is told of, and in which words. Pure.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use crate::bus::{Action, NewNotification, Severity};

/// Longest part of a text that comes from elsewhere, in characters: a title holds one or two.
const PART_CHARS_MAX: usize = 80;
/// Longest error in a message, in characters.
const ERROR_CHARS_MAX: usize = 1800;

/// What is spelled out in a path (RFC 3986, 2.3).
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Makes a notification of an event's data.
type Words = fn(&Value) -> NewNotification;

const RULES: [(&str, Words); 15] = [
    ("aman.delivery.dead", dead),
    ("aman.cron.disabled", cron),
    ("aman.source.silent", silent),
    ("aman.sink.disabled", sink),
    ("aman.plugin.quarantined", plugin),
    ("aman.workflow.faulted", workflow),
    ("aman.skill.untrusted", untrusted),
    ("aman.skill.broken", broken_skill),
    ("aman.config.broken", config),
    ("aman.retention.full", full),
    ("aman.backup.failed", backup),
    ("aman.bus.overloaded", overloaded),
    ("aman.budget.reached", budget),
    ("aman.soul.broken", soul),
    ("aman.security.refused", refused),
];

/// The types that have a rule.
pub(super) fn types() -> impl Iterator<Item = &'static str> {
    RULES.iter().map(|(kind, _)| *kind)
}

/// What the person is told of an event of this type with this data.
pub(super) fn notification(kind: &str, data: &Value) -> Option<NewNotification> {
    RULES.iter().find(|(known, _)| *known == kind).map(|(_, words)| words(data))
}

/// One line of what `data` says at `key`, or `?`.
fn part(data: &Value, key: &str) -> String {
    shown(&data[key], PART_CHARS_MAX)
}

/// A value as one line.
fn shown(value: &Value, chars_max: usize) -> String {
    let text = match value {
        Value::String(text) if text.trim().is_empty() => "?".to_owned(),
        Value::String(text) => text.clone(),
        Value::Null => "?".to_owned(),
        other => other.to_string(),
    };
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(chars_max).collect();
    if text.chars().nth(chars_max).is_some() {
        line.push('…');
    }
    line
}

fn notice(category: &str, severity: Severity, title: String, message: String, alike: &str) -> NewNotification {
    // Names of things may be long; what stands behind makes no difference then.
    let alike: String = alike.chars().filter(|c| !c.is_control()).take(NewNotification::WORD_CHARS_MAX).collect();
    NewNotification {
        title,
        message,
        severity,
        category: Some(category.to_owned()),
        action: None,
        fingerprint: Some(alike).filter(|alike| !alike.trim().is_empty()),
    }
}

/// With a link to what the daemon says at `path`.
fn linked(mut notification: NewNotification, label: &str, path: &str, id: &Value) -> NewNotification {
    let id = utf8_percent_encode(id.as_str().unwrap_or_default(), PATH).to_string();
    let url = path.replace("{}", &id);
    if !id.is_empty() && url.len() <= NewNotification::URL_BYTES_MAX {
        notification.action = Some(Action { label: label.to_owned(), url });
    }
    notification
}

fn dead(data: &Value) -> NewNotification {
    let consumer = part(data, "consumer");
    let kind = consumer.split_once('/').map_or("delivery", |(kind, _)| kind);
    let category = if ["skill", "plugin", "sink", "workflow", "agent"].contains(&kind) { kind } else { "delivery" };
    let (error, cause) = (shown(&data["error"], ERROR_CHARS_MAX), shown(&data["cause"], ERROR_CHARS_MAX));
    let why = if data["cause"].is_null() || cause == error { error } else { format!("{error}: {cause}") };
    let message = format!(
        "{why}\nIt was to handle an event of type {} ({}, attempts: {}). `aman dlq show {id}` shows all errors, \
         `aman dlq retry {id}` tries again.",
        part(data, "type"),
        part(data, "reason"),
        part(data, "attempts"),
        id = part(data, "delivery_id"),
    );
    let alike = format!("dead/{}", part(data, "fingerprint"));
    let told = notice(category, Severity::Error, format!("{consumer} failed for good"), message, &alike);
    linked(told, "Why", "/events/{}/why", &data["event_id"])
}

fn cron(data: &Value) -> NewNotification {
    let job = part(data, "job");
    let message = format!(
        "{} runs in a row failed; the last: {}\n`aman cron runs {job}` shows them, `aman cron update {job} --enable` \
         switches it on again.",
        part(data, "failures"),
        shown(&data["last_error"], ERROR_CHARS_MAX),
    );
    let title = format!("The cron job '{job}' was switched off");
    let told = notice("cron", Severity::Warning, title, message, &format!("cron/{job}"));
    linked(told, "Runs", "/cron/{}/runs", &data["job"])
}

fn budget(data: &Value) -> NewNotification {
    let (scope, unit) = (part(data, "scope"), part(data, "unit"));
    let whose = if scope == "all" { "all agents together".to_owned() } else { scope.clone() };
    let when = data["day"].as_str().map_or("altogether".to_owned(), |day| format!("on {day} (UTC)"));
    let message = format!(
        "{} of {} {unit} are used or reserved {when}, and a call of a model would need more: it was refused. `aman usage` shows \
         what was used; the limits are `[budget]` of the configuration and the budget of each agent.",
        part(data, "used"),
        part(data, "limit"),
    );
    let alike = format!("budget/{scope}/{unit}/{}", part(data, "day"));
    notice("budget", Severity::Warning, format!("The budget of {whose} is used up"), message, &alike)
}

fn soul(data: &Value) -> NewNotification {
    let message = format!(
        "{}: {}\nWhat was in force stays so. `aman soul check FILE` says what is wrong, `aman soul versions` lists what there was.",
        part(data, "path"),
        shown(&data["error"], ERROR_CHARS_MAX),
    );
    notice("soul", Severity::Warning, "The soul's file cannot be used".to_owned(), message, "soul")
}

fn silent(data: &Value) -> NewNotification {
    let id = part(data, "id");
    let message = format!("{} `aman source show {id}` tells more.", shown(&data["message"], ERROR_CHARS_MAX));
    let title = format!("The source '{id}' is silent");
    let told = notice("source", Severity::Warning, title, message, &format!("silent/{id}"));
    linked(told, "Source", "/event-source/{}", &data["id"])
}

fn sink(data: &Value) -> NewNotification {
    let id = part(data, "id");
    let message = shown(&data["message"], ERROR_CHARS_MAX);
    let told = notice("sink", Severity::Error, format!("The sink '{id}' is off"), message, &format!("sink/{id}"));
    linked(told, "Sink", "/sink/{}", &data["id"])
}

fn plugin(data: &Value) -> NewNotification {
    let name = part(data, "plugin");
    let message = format!(
        "It failed too often and rests; the last: {}\n`aman plugin show {name}` tells more, `aman plugin enable {name}` \
         ends the rest.",
        shown(&data["message"], ERROR_CHARS_MAX),
    );
    let title = format!("The plugin '{name}' rests");
    let told = notice("plugin", Severity::Warning, title, message, &format!("plugin/{name}"));
    linked(told, "Plugin", "/plugin/{}", &data["plugin"])
}

fn workflow(data: &Value) -> NewNotification {
    let (name, error) = (part(data, "workflow"), &data["error"]);
    let what = if error["detail"].is_string() { &error["detail"] } else { &error["title"] };
    let message = format!(
        "{}: {}\nThe instance is {}.",
        shown(&error["type"], PART_CHARS_MAX),
        shown(what, ERROR_CHARS_MAX),
        part(data, "instance"),
    );
    let alike = format!("workflow/{name}/{}", shown(&error["instance"], PART_CHARS_MAX));
    let told = notice("workflow", Severity::Error, format!("The workflow '{name}' faulted"), message, &alike);
    linked(told, "Instance", "/workflow-instance/{}", &data["instance"])
}

fn untrusted(data: &Value) -> NewNotification {
    let (name, digest) = (part(data, "name"), part(data, "digest"));
    let message = format!(
        "The content in {} is not what you agreed to, so it does not run. Look at it, then: aman skill enable {name} \
         --digest {digest}",
        shown(&data["path"], ERROR_CHARS_MAX),
    );
    let title = format!("The skill '{name}' was changed");
    let told = notice("security", Severity::Warning, title, message, &format!("untrusted/{name}/{digest}"));
    linked(told, "Skill", "/skill/{}", &data["name"])
}

fn broken_skill(data: &Value) -> NewNotification {
    let path = shown(&data["path"], ERROR_CHARS_MAX / 2);
    let message = format!(
        "{path}: {}\nIt gets no events until that is corrected; `aman skill validate` says what is wrong.",
        shown(&data["error"], ERROR_CHARS_MAX),
    );
    let title = "A skill cannot be loaded".to_owned();
    notice("skill", Severity::Warning, title, message, &format!("skill/broken/{}", part(data, "path")))
}

fn config(data: &Value) -> NewNotification {
    let message = format!(
        "{}\nThe daemon goes on with the last configuration that was good. Correct {}, then `aman config reload`.",
        shown(&data["error"], ERROR_CHARS_MAX),
        shown(&data["file"], ERROR_CHARS_MAX),
    );
    let title = "The configuration file is broken".to_owned();
    notice("config", Severity::Error, title, message, "config/broken")
}

fn full(_: &Value) -> NewNotification {
    let message = "All that may go has gone, and the database is still larger than bus.retention.max_size. \
                   `aman db stats` shows what takes the room.";
    let title = "The database is larger than it may be".to_owned();
    notice("storage", Severity::Warning, title, message.to_owned(), "retention/full")
}

fn backup(data: &Value) -> NewNotification {
    let message = format!("{}\nThe folder is {}.", shown(&data["reason"], ERROR_CHARS_MAX), part(data, "folder"));
    let title = "The database could not be copied".to_owned();
    notice("storage", Severity::Error, title, message, "backup/failed")
}

fn overloaded(data: &Value) -> NewNotification {
    let message = format!(
        "{} pushes were refused since the start; {} deliveries wait, and {} may. `aman status` shows what is slow.",
        part(data, "refused"),
        part(data, "pending"),
        part(data, "max_pending"),
    );
    let title = "Events are refused: too much is waiting".to_owned();
    notice("bus", Severity::Warning, title, message, "bus/overloaded")
}

fn refused(data: &Value) -> NewNotification {
    let code = part(data, "code");
    let why = match code.as_str() {
        "rate_limited" | "unauthorized" => "somebody tries tokens",
        "origin_not_allowed" => "a page of another site calls the daemon",
        "host_not_allowed" => "somebody calls the daemon by a name that is not its own",
        _ => "requests were refused",
    };
    let message = format!(
        "{} requests were answered {} ({code}) within a minute. `aman audit log --action http.refused` shows when.",
        part(data, "count"),
        part(data, "status"),
    );
    notice("security", Severity::Warning, format!("Refused: {why}"), message, &format!("refused/{code}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Goal: whatever an event of these types says, what is told of it keeps to the rules.
    #[test]
    fn all_words_keep_to_the_rules() {
        let long = "ä\n\u{7}".repeat(5000);
        let full = |value: Value| {
            let names = [
                "consumer",
                "type",
                "reason",
                "attempts",
                "delivery_id",
                "event_id",
                "fingerprint",
                "error",
                "job",
                "failures",
                "last_error",
                "id",
                "message",
                "plugin",
                "workflow",
                "instance",
                "name",
                "digest",
                "path",
                "file",
                "folder",
                "refused",
                "pending",
                "max_pending",
                "code",
                "count",
                "status",
            ];
            Value::Object(names.iter().map(|name| ((*name).to_owned(), value.clone())).collect())
        };
        for kind in types() {
            for data in
                [json!(null), json!({}), json!([1]), full(json!("")), full(json!(long)), full(json!({ "a": 1 }))]
            {
                let told = notification(kind, &data).expect("it has a rule");
                assert_eq!(told.check(), Ok(()), "{kind} {told:?}");
            }
        }
        assert!(notification("aman.other", &json!({})).is_none());
    }

    #[test]
    fn a_dead_letter_says_what_to_do() {
        let data = json!({
            "consumer": "skill/x", "type": "a.b", "reason": "rejected", "attempts": 1, "delivery_id": "d-1",
            "event_id": "order/1", "fingerprint": "f", "error": "no disk",
        });
        let told = notification("aman.delivery.dead", &data).expect("it has a rule");
        assert_eq!((told.title.as_str(), told.category.as_deref()), ("skill/x failed for good", Some("skill")));
        assert!(told.message.contains("no disk") && told.message.contains("aman dlq retry d-1"), "{}", told.message);
        assert_eq!(told.action.map(|action| action.url).as_deref(), Some("/events/order%2F1/why"));
    }
}
