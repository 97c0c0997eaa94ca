//! What a change of a setting needs, and which settings only the file may change.

use serde_json::Value;

use super::{SETTINGS, is_reference};

/// What it takes to change a setting while the daemon runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It holds at once.
    Live,
    /// It holds after the next start.
    Restart,
    /// Only the file, the environment or the command line sets it.
    FileOnly,
}

impl Change {
    /// Its name in answers.
    pub fn name(self) -> &'static str {
        match self {
            Change::Live => "live",
            Change::Restart => "restart",
            Change::FileOnly => "file_only",
        }
    }
}

/// Settings that are looked at whenever they matter.
const LIVE: &[&str] = &[
    "backup.every",
    "backup.keep",
    "budget.day_money",
    "budget.day_tokens",
    "budget.soft",
    "bus.dedup_window",
    "bus.keep_free_mib",
    "bus.max_causation_depth",
    "bus.max_pending",
    "bus.retention.audit",
    "bus.retention.cron_runs",
    "bus.retention.background_sessions",
    "bus.retention.dead_letters",
    "bus.retention.max_age",
    "bus.retention.max_size",
    "bus.retention.notifications",
    "bus.retention.sessions",
    "bus.retention.workflows",
    "content_policy.deny",
    "debug.force_enable_debug_endpoints",
    "http.allowed_hosts",
    "http.allowed_origins",
    "http.owner_rate_limit",
    "http.public_stream",
    "http.rate_limit",
    "http.strict_confirm",
    "log.level",
    "models.cheap",
    "models.default",
    "models.fallback",
    "models.max_retries",
    "notifications.per_hour",
    "notifications.window",
    "telemetry.sample_ratio",
    "telemetry.service_name",
    "telemetry.timeout",
];
/// Settings that only the file changes, and that hold as soon as it is read again.
const LIVE_BY_FILE: &[&str] = &[
    "http.mcp",
    "http.openai",
    "models.detect",
    "models.first_token_timeout",
    "models.token_timeout",
    "telemetry.endpoint",
    "telemetry.headers",
];
/// Settings that say what may be read, written, called and run: for the file alone, and in force once it is read again.
const TOOLS: &str = "tools.";
/// Settings that decide who may do what: whoever has a token must not be able to open the door further.
/// The collector is given secret headers, and whoever is found as a model is told everything.
const ACCESS: &[&str] = &[
    "http.allow_remote",
    "http.auth",
    "http.mcp",
    "http.openai",
    "http_client.allow_private",
    "models.detect",
    "telemetry.endpoint",
];
/// Words in a key that name an executable, a path or a secret.
const GUARDED: &[&str] = &[
    "argv",
    "bin",
    "binary",
    "cert",
    "command",
    "dir",
    "env",
    "exec",
    "executable",
    "file",
    "files",
    "folder",
    "headers",
    "key",
    "keys",
    "password",
    "path",
    "paths",
    "program",
    "providers",
    "run",
    "script",
    "secret",
    "secrets",
    "shell",
    "socket",
    "token",
    "tokens",
    "verify",
];

/// What a change of `key` needs.
pub fn change(key: &str) -> Change {
    let secret = SETTINGS.iter().any(|setting| setting.key == key && setting.secret);
    if secret || key.starts_with(TOOLS) || ACCESS.contains(&key) {
        Change::FileOnly
    } else if LIVE.contains(&key) {
        // Also what only sounds guarded: tokens of models are no secrets.
        Change::Live
    } else if key.split(['.', '_']).any(|word| GUARDED.contains(&word)) {
        Change::FileOnly
    } else {
        Change::Restart
    }
}

/// True when a changed value of `key` holds without a start, wherever it may be changed.
pub fn holds_at_once(key: &str) -> bool {
    change(key) == Change::Live || key.starts_with(TOOLS) || LIVE_BY_FILE.contains(&key)
}

/// True for a value that refers to a secret or a file.
pub fn holds_reference(value: &Value) -> bool {
    match value {
        Value::String(text) => is_reference(text),
        Value::Array(items) => items.iter().any(holds_reference),
        Value::Object(fields) => fields.values().any(holds_reference),
        _ => false,
    }
}

/// The known setting that is nearest to `key`.
pub fn nearest(key: &str) -> Option<&'static str> {
    let all = SETTINGS.iter().map(|setting| (crate::error::distance(setting.key, key), setting.key));
    all.min().filter(|(away, _)| *away <= 4).map(|(_, key)| key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_told_apart() {
        for (key, wanted) in [
            ("log.level", Change::Live),
            ("http.public_stream", Change::Live),
            ("bus.durability", Change::Restart),
            ("http.bind", Change::Restart),
            ("http.token", Change::FileOnly),
            ("budget.day_tokens", Change::Live),
            ("http.auth", Change::FileOnly),
            ("http.mcp", Change::FileOnly),
            ("skills.paths", Change::FileOnly),
            ("sources.x.command", Change::FileOnly),
            ("sinks.x.secret", Change::FileOnly),
            ("http.unix_socket", Change::FileOnly),
            ("log.dir", Change::FileOnly),
            ("log.files", Change::FileOnly),
            ("log.keep", Change::Restart),
            ("models.default", Change::Live),
            ("models.detect", Change::FileOnly),
            ("providers.x.url", Change::FileOnly),
            ("telemetry.endpoint", Change::FileOnly),
            ("telemetry.headers", Change::FileOnly),
            ("telemetry.timeout", Change::Live),
            ("tools.allow", Change::FileOnly),
        ] {
            assert_eq!(change(key), wanted, "{key}");
        }
        for key in LIVE.iter().chain(ACCESS).chain(LIVE_BY_FILE) {
            assert!(SETTINGS.iter().any(|setting| setting.key == *key), "{key} is no setting");
        }
        assert_eq!(nearest("http.publicstream"), Some("http.public_stream"));
        assert_eq!(nearest("something.else"), None);
        let holds = |value: Value| holds_reference(&value);
        assert!(holds(serde_json::json!(["a", "env:B"])) && !holds(serde_json::json!("environment")));
    }
}
