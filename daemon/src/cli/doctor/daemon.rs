//! What only a running daemon can tell.

use serde_json::Value;

use super::catalogue::Id;
use super::{Check, NO_DAEMON, parts};
use crate::cli::Context;
use crate::cli::client::{Call, Client};
use crate::cli::failure::Failure;
use crate::cli::out::{count, text};
use crate::clock::{Clock, Millis, parse_rfc3339};
use crate::config::Paths;

/// Events are stamped by this machine's clock; one so far ahead means that the clock was set back.
const AHEAD_MS_MAX: Millis = 5 * 60_000;

/// What only a daemon that answers, and accepts the token, can tell.
const TOLD: [Id; 7] = [Id::Ready, Id::SameVersion, Id::Access, Id::EventTime, Id::Models, Id::DeadLetters, Id::Backups];

/// All of them, those that nobody could tell as skipped.
pub async fn checks(context: &Context, paths: &Paths) -> Vec<Check> {
    let mut checks = found(context, paths).await;
    for id in TOLD.into_iter().chain(parts::IDS) {
        if checks.iter().all(|check| check.id != id) {
            checks.push(Check::skip(id, NO_DAEMON));
        }
    }
    checks
}

async fn found(context: &Context, paths: &Paths) -> Vec<Check> {
    let client = match context.client() {
        Ok(client) => client,
        Err(failure) => return vec![absent(&failure, context, paths)],
    };
    let health = match client.call_any(Call::get("/health")).await {
        Ok(reply) => reply.json().unwrap_or(Value::Null),
        Err(failure) => return vec![absent(&failure, context, paths)],
    };
    if !health["status"].is_string() {
        let message = format!("{} answers, and is no aman daemon", client.base());
        return vec![Check::fail(Id::Daemon, message, "Another program has this port; give the right --url.")];
    }
    let mut checks = vec![Check::ok(Id::Daemon, format!("answers at {}", client.base())), ready(&health)];
    let status = match client.call(Call::get("/runtime/status")).await.and_then(|reply| reply.json()) {
        Ok(status) => status,
        Err(failure) => {
            let advice = "Give the token of this daemon, or unset AMAN_HTTP_TOKEN; `aman serve` makes the token file.";
            checks.push(Check::fail(Id::Access, failure.message(), advice));
            return checks;
        }
    };
    checks.extend([same_version(&status), access(&status)]);
    checks.extend(newest_event(&client).await);
    checks.extend(parts::checks(&client, &status, context.global.url.is_none()).await);
    checks.extend(models(&client).await);
    checks.extend(dead_letters(&client).await);
    checks.push(backups(&status["subsystems"]["backup"]["copies"]));
    checks
}

/// No daemon: fine on a machine where none was started, a failure where one left its address behind.
fn absent(failure: &Failure, context: &Context, paths: &Paths) -> Check {
    let advice = "Start it with `aman serve`.";
    let left = paths.address_files().into_iter().find(|file| file.exists());
    if let Some(file) = left.filter(|_| context.global.url.is_none()) {
        let message = format!("{} It left {} behind.", failure.message(), file.display());
        return Check::fail(Id::Daemon, message, advice);
    }
    match failure {
        Failure::NoDaemon { .. } if context.global.url.is_none() => Check::warn(Id::Daemon, "No daemon runs", advice),
        other => Check::fail(Id::Daemon, other.message(), advice),
    }
}

fn ready(health: &Value) -> Check {
    let phase = text(&health["phase"]);
    let all = health["checks"].as_object().into_iter().flatten();
    let failed: Vec<(&String, &Value)> = all.filter(|(_, check)| check["ok"] == false).collect();
    let shown: Vec<String> =
        failed.iter().map(|(name, check)| format!("{name} ({})", text(&check["detail"]))).collect();
    let shown = shown.join(", ");
    let advice = "`aman status` and the daemon's log say more.";
    if failed.is_empty() && phase == "ready" {
        Check::ok(Id::Ready, "ready, every check of its own is fine")
    } else if failed.iter().all(|(name, _)| *name == "phase") {
        Check::warn(Id::Ready, format!("It is in phase {phase}"), "Wait a moment, then try again.")
    } else if health["status"] == "ok" {
        Check::warn(Id::Ready, format!("It serves, with something amiss: {shown}"), advice)
    } else {
        Check::fail(Id::Ready, format!("It is in phase {phase}; failed: {shown}"), advice)
    }
}

fn same_version(status: &Value) -> Check {
    let (ours, theirs) = (env!("CARGO_PKG_VERSION"), text(&status["version"]));
    if theirs == ours {
        return Check::ok(Id::SameVersion, format!("the daemon is version {theirs}, too"));
    }
    let message = format!("The daemon is version {theirs}, this program {ours}");
    Check::warn(Id::SameVersion, message, "Restart the daemon with the new program.")
}

fn access(status: &Value) -> Check {
    if status["safe_mode"] == true {
        let advice = "`aman config reload` says what is wrong; correct it, then reload again.";
        return Check::fail(Id::Access, "It runs in safe mode: the configuration file is broken", advice);
    }
    match text(&status["auth"]).as_str() {
        "none" => {
            let advice = "Remove http.auth = \"none\"; now every program of every user here may use it.";
            Check::warn(Id::Access, "The daemon asks nobody for a token", advice)
        }
        _ => Check::ok(Id::Access, "the token is accepted"),
    }
}

fn backups(copies: &Value) -> Check {
    let (folder, newest) = (text(&copies["folder"]), &copies["newest_at"]);
    if text(&copies["every"]).is_empty() {
        return Check::ok(Id::Backups, "the daemon is not told to make copies (backup.every)");
    }
    let newest = if newest.is_null() { "none".to_owned() } else { text(newest) };
    if !copies["error"].is_null() {
        let message = format!("None since {}: {}", text(&copies["failing_since"]), text(&copies["error"]));
        let advice = format!("See to {folder} or set backup.folder; the newest copy there is: {newest}.");
        return Check::fail(Id::Backups, message, advice);
    }
    Check::ok(Id::Backups, format!("{} in {folder}, the newest: {newest}", text(&copies["copies"])))
}

async fn newest_event(client: &Client) -> Option<Check> {
    let reply = client.call(Call::get("/events/recent").query("limit", 1)).await.ok()?;
    let page = reply.json().ok()?;
    let Some(newest) = page["items"].as_array()?.first() else {
        return Some(Check::ok(Id::EventTime, "there is no event yet"));
    };
    let at_ms = parse_rfc3339(newest["time"].as_str()?)?;
    let ahead_ms = at_ms - Clock::System.now_ms();
    Some(if ahead_ms > AHEAD_MS_MAX {
        let message = format!("The newest event is {} minutes ahead of the machine's clock", ahead_ms / 60_000);
        let advice = "Its producer's clock is wrong, or this machine's was set back.";
        Check::warn(Id::EventTime, message, advice)
    } else {
        Check::ok(Id::EventTime, "the newest event is not ahead of the clock")
    })
}

/// Without a model everything but agents works.
async fn models(client: &Client) -> Option<Check> {
    let listed = client.call(Call::get("/models").query("limit", 1)).await.ok()?.json().ok()?;
    let health = client.call_any(Call::get("/health/llm")).await.ok()?.json().ok()?;
    let (answer, detail) = (&health["checks"]["llm"], text(&health["checks"]["llm"]["detail"]));
    Some(if answer["ok"] == true {
        Check::ok(Id::Models, detail)
    } else if listed["items"].as_array().is_some_and(Vec::is_empty) && detail == "no provider configured" {
        Check::ok(Id::Models, "none is configured; agents need one (daemon/docs/models.md)")
    } else {
        let advice = "`aman model test` says more; [providers.<id>] in aman.toml names address and key.";
        Check::warn(Id::Models, format!("No model answers: {detail}"), advice)
    })
}

async fn dead_letters(client: &Client) -> Option<Check> {
    let reply = client.call(Call::get("/dlq/depth")).await.ok()?;
    let depth = reply.json().ok()?["depth"].as_u64()?;
    Some(if depth == 0 {
        Check::ok(Id::DeadLetters, "none")
    } else {
        let advice = "`aman dlq groups` shows them, `aman dlq retry` tries again.";
        let waits = if depth == 1 { "waits" } else { "wait" };
        Check::warn(Id::DeadLetters, format!("{} {waits} for a decision", count(depth, "dead letter")), advice)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::doctor::Verdict;
    use crate::cli::fake::Fake;
    use crate::cli::out::tests::Printed;

    #[tokio::test]
    async fn a_daemon_that_is_well() {
        let status = json!({ "version": env!("CARGO_PKG_VERSION"), "auth": "token", "ready": true }).to_string();
        let fake = Fake::answering(&[
            &Fake::json(200, r#"{"status":"ok","phase":"ready","checks":{"store":{"ok":true,"detail":""}}}"#),
            &Fake::json(200, &status),
            &Fake::json(200, r#"{"items":[{"time":"2020-01-01T00:00:00.000Z"}]}"#),
            &Fake::json(200, r#"{"items":[{"id":"a","health":"silent","detail":"No event since noon."}]}"#),
            &Fake::json(200, r#"{"items":[]}"#),
            &Fake::json(200, r#"{"items":[{"name":"a","standing":"active"}]}"#),
            &Fake::json(200, r#"{"items":[]}"#),
            &Fake::json(200, r#"{"items":[{"name":"a","state":"active","listener":{"error":"no"}}]}"#),
            &Fake::json(200, r#"{"items":[{"id":"a","enabled":false,"disabled_reason":null}]}"#),
            &Fake::json(200, r#"{"items":[{"name":"a","enabled":true,"state":"ready"}]}"#),
            &Fake::json(200, r#"{"items":[{"id":"a/m"}]}"#),
            &Fake::json(503, r#"{"checks":{"llm":{"ok":false,"detail":"the provider refuses the key"}}}"#),
            &Fake::json(200, r#"{"depth":2,"by_consumer":{}}"#),
        ])
        .await;
        let context = Context::fake(&fake.base, Printed::default(), false);
        let paths = context.paths().expect("the test has a home");
        let found: Vec<_> = checks(&context, &paths).await.into_iter().map(|check| (check.id, check.status)).collect();
        let ok = Verdict::Ok;
        assert_eq!(
            found,
            [
                (Id::Daemon, ok),
                (Id::Ready, ok),
                (Id::SameVersion, ok),
                (Id::Access, ok),
                (Id::EventTime, ok),
                (Id::Sources, Verdict::Warn),
                (Id::Sinks, ok),
                (Id::Skills, ok),
                (Id::Workflows, ok),
                (Id::Plugins, Verdict::Warn),
                (Id::Jobs, ok),
                (Id::McpServers, ok),
                (Id::Models, Verdict::Warn),
                (Id::DeadLetters, Verdict::Warn),
                (Id::Backups, ok)
            ]
        );
    }

    #[test]
    fn health_that_is_not_well() {
        let health = json!({ "phase": "ready", "checks": { "store": { "ok": false, "detail": "disk full" } } });
        let check = ready(&health);
        assert_eq!(check.status, Verdict::Fail);
        assert!(check.message.contains("store (disk full)"));
        let starting =
            json!({ "status": "unavailable", "phase": "bus", "checks": { "phase": { "ok": false, "detail": "bus" } } });
        assert_eq!(ready(&starting).status, Verdict::Warn);
        let limping =
            json!({ "status": "ok", "phase": "ready", "checks": { "tasks": { "ok": false, "detail": "1 failed" } } });
        assert_eq!(ready(&limping).status, Verdict::Warn);
    }
}
