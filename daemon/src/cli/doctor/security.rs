//! Who could get in, or read along: by files and settings with or without a daemon, by its answers when one runs.

use std::fs;
use std::path::PathBuf;

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::geteuid;
use serde_json::Value;
use toml::Table;

use super::catalogue::Id;
use super::files::{self, Places};
use super::machine;
use super::settings::{self, is_wide};
use super::{Check, NO_DAEMON, Verdict};
use crate::cli::client::{Call, Client};
use crate::cli::out::{count, text};
use crate::cli::{Context, PAGE_MAX};
use crate::clock::{Clock, Millis, parse_rfc3339};
use crate::config::{self, FILE_BYTES_MAX, Flags, Paths, SETTINGS};
use crate::plain;

/// A token that is good for longer is worth a thought: 100 days.
const LONG_MS: Millis = 100 * 86_400_000;
/// Longest lock file, in bytes: it holds the number of a process.
const PID_BYTES_MAX: u64 = 32;

/// All of them.
pub async fn checks(context: &Context, paths: &Paths) -> Vec<Check> {
    let loaded = config::load(&Flags::of_client(context.global.home.as_deref())).ok();
    let read = plain::read(&paths.config_file, FILE_BYTES_MAX);
    let file = match &read {
        Ok(text) => text.parse::<Table>().ok(),
        // Without a file every setting has its default; a file that is closed to us may hold anything.
        Err(error) => (error.kind() == std::io::ErrorKind::NotFound).then(Table::new),
    };
    let secrets = file.as_ref().map(settings::plain_secrets).unwrap_or_default();
    let places = Places {
        paths,
        logs: loaded.as_ref().and_then(|c| c.log.files.clone()).map_or_else(|| paths.state.clone(), |files| files.dir),
        tls_key: loaded.as_ref().and_then(|config| config.http.tls.clone()).map(|(_, key)| key),
        skill_paths: loaded.as_ref().map(|config| config.skill_paths.clone()).unwrap_or_default(),
        holds_secrets: !secrets.is_empty(),
    };
    let mut checks = files::checks(&places);
    checks.push(plain_secrets(file.is_some(), &secrets));
    let client = context.client().ok();
    let running = in_force(client.as_ref()).await;
    checks.extend(match (&running, &loaded, &file) {
        (Some(running), ..) => settings::checks(&|key| value_of(running, key)),
        (None, Some(loaded), _) => {
            let value = |key: &str| loaded.effective.iter().find(|setting| setting.key == key).map(|s| s.value.clone());
            settings::checks(&|key| value(key).unwrap_or_default())
        }
        (None, None, Some(file)) => settings::checks(&|key| value_in(file, key)),
        (None, None, None) => unreadable(&settings::checks(&|_| Value::Null)),
    });
    checks.extend(match file {
        Some(file) => settings::tables(&with_running(file, client.as_ref().filter(|_| running.is_some())).await),
        None => unreadable(&settings::tables(&Table::new())),
    });
    checks.extend(told(client.as_ref().filter(|_| running.is_some()), paths).await);
    checks.extend(machine::sandbox_parts().await);
    checks.extend(process(paths));
    checks
}

fn plain_secrets(readable: bool, secrets: &[String]) -> Check {
    let id = Id::PlainSecrets;
    if !readable {
        return Check::skip(id, "the configuration cannot be read");
    }
    if secrets.is_empty() {
        return Check::ok(id, "none");
    }
    let advice = "Write env:NAME, file:PATH or keyring:SERVICE/ACCOUNT in their place; copies and backups of the file then hold no secret.";
    Check::warn(id, format!("Secrets stand in the file: {}", secrets.join(", ")), advice)
}

/// The same checks, as not looked at.
fn unreadable(checks: &[Check]) -> Vec<Check> {
    checks.iter().map(|check| Check::skip(check.id, "the configuration cannot be read")).collect()
}

/// The settings in force of the daemon that runs.
async fn in_force(client: Option<&Client>) -> Option<Vec<Value>> {
    let shown = client?.call(Call::get("/runtime/config")).await.ok()?.json().ok()?;
    shown["items"].as_array().cloned()
}

fn value_of(items: &[Value], key: &str) -> Value {
    let item = items.iter().find(|item| item["key"] == key);
    item.map(|item| item.get("running").unwrap_or(&item["value"]).clone()).unwrap_or_default()
}

/// The file with the sources as they run: what was changed over HTTP stands before what it says.
async fn with_running(mut file: Table, client: Option<&Client>) -> Table {
    let Some(client) = client else { return file };
    let listed = client
        .call(Call::get("/sources").query("limit", PAGE_MAX))
        .await
        .and_then(|reply| reply.json())
        .unwrap_or_default();
    let running = listed["items"].as_array().into_iter().flatten();
    let running = running.filter_map(|source| Some((source["id"].as_str()?, Table::try_from(&source["config"]).ok()?)));
    let sources: Table = running.map(|(id, config)| (id.to_owned(), config.into())).collect();
    if !sources.is_empty() {
        file.insert("sources".to_owned(), sources.into());
    }
    file
}

/// The value in a file that is wrong elsewhere, or the default.
fn value_in(file: &Table, key: &str) -> Value {
    let default = || SETTINGS.iter().find(|setting| setting.key == key)?.default.parse::<toml::Value>().ok();
    let mut parts = key.split('.');
    let found = parts.next().and_then(|section| file.get(section));
    let found = parts.try_fold(found, |value, name| Some(value?.get(name))).flatten();
    let value = found.cloned().or_else(default);
    value.and_then(|value| serde_json::to_value(value).ok()).unwrap_or_default()
}

/// What only the daemon can tell.
async fn told(client: Option<&Client>, paths: &Paths) -> Vec<Check> {
    let list = async |path: &str| match client {
        Some(client) => client.call(Call::get(path)).await.ok()?.json().ok(),
        None => None,
    };
    let (skills, tokens) = (list("/skills?limit=1000").await, list("/auth/token?limit=1000").await);
    let chain = list("/audit-log/verify").await;
    let mut checks =
        vec![skills.map_or_else(|| Check::skip(Id::SkillPermissions, NO_DAEMON), |all| rights(&all, paths))];
    match tokens {
        Some(tokens) => checks.extend(minted(&tokens)),
        None => checks.extend([Id::TokensAdmin, Id::TokensLong].map(|id| Check::skip(id, NO_DAEMON))),
    }
    checks.push(match chain {
        None => Check::skip(Id::AuditChain, NO_DAEMON),
        Some(chain) if chain["ok"] == true => {
            Check::ok(Id::AuditChain, format!("{}, whole", count(chain["checked"].as_u64().unwrap_or(0), "record")))
        }
        Some(chain) => {
            let message = format!("Record {} of the audit log is not what was written", text(&chain["first_bad"]));
            let advice = "Somebody changed the database. Compare it with a backup, and change the tokens.";
            Check::fail(Id::AuditChain, message, advice)
        }
    });
    checks
}

fn rights(skills: &Value, paths: &Paths) -> Check {
    let home = paths.home_dir.as_ref().map(|home| home.display().to_string()).unwrap_or_default();
    let wide = |path: &str| is_wide(path) || path == home || paths.data.starts_with(path);
    let has = |list: &Value| list.as_array().into_iter().flatten().filter_map(Value::as_str).any(wide);
    let all: Vec<&Value> =
        skills["items"].as_array().into_iter().flatten().filter(|s| s["standing"] == "active").collect();
    let too_wide = |skill: &&&Value| {
        let rights = &skill["permissions"];
        has(&rights["write"]) || (rights["net"] == "any" && has(&rights["read"]))
    };
    let named: Vec<String> = all.iter().filter(too_wide).map(|skill| text(&skill["name"])).collect();
    if named.is_empty() {
        return Check::ok(Id::SkillPermissions, format!("{} active skills", all.len()));
    }
    let advice = "Narrow aman.permissions in their SKILL.md to the folders that they need, or disable them.";
    Check::warn(
        Id::SkillPermissions,
        format!("These may write, or read and send, very much: {}", named.join(", ")),
        advice,
    )
}

fn minted(tokens: &Value) -> [Check; 2] {
    let good: Vec<&Value> =
        tokens["items"].as_array().into_iter().flatten().filter(|t| t["status"] == "good").collect();
    let now_ms = Clock::System.now_ms();
    let is_admin = |token: &&&Value| text(&token["scope"]).split(' ').any(|scope| scope == "admin");
    let is_long = |token: &&&Value| {
        parse_rfc3339(token["expires_at"].as_str().unwrap_or_default()).is_none_or(|ends| ends > now_ms + LONG_MS)
    };
    let check = |id: Id, wrong: Vec<String>, what: &str, advice: &str| match wrong.is_empty() {
        true => Check::ok(id, format!("{} minted tokens", good.len())),
        false => Check::warn(id, format!("{what}: {}", wrong.join(", ")), advice),
    };
    let named = |token: &&Value| text(&token["sub"]);
    [
        check(
            Id::TokensAdmin,
            good.iter().filter(is_admin).map(named).collect(),
            "These tokens may do everything",
            "Mint ones with the scopes that are needed, then `aman token revoke` these.",
        ),
        check(
            Id::TokensLong,
            good.iter().filter(is_long).map(named).collect(),
            "These tokens are good for more than 100 days",
            "Mint shorter ones with --ttl, then `aman token revoke` these.",
        ),
    ]
}

/// The process that has the data folder: its user, and whether it may write its memory to the disk when it crashes.
fn daemon_of(paths: &Paths) -> Option<(u32, bool)> {
    let pid = plain::read(&paths.lock_file, PID_BYTES_MAX).ok()?.trim().parse::<u32>().ok()?;
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).ok();
    // The number of a daemon that is gone may be another program's by now.
    let is_ours = read("comm")?.trim() == "aman";
    let (status, limits) = (read("status").filter(|_| is_ours)?, read("limits")?);
    let after = |text: &str, name: &str, n: usize| {
        let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
        rest.split_whitespace().nth(n).map(str::to_owned)
    };
    let dumps = after(&limits, "Max core file size", 0)? != "0";
    Some((after(&status, "Uid:", 1)?.parse().ok()?, dumps))
}

/// What the kernel lets other programs do with the daemon that runs; without one, with a daemon that this user starts here.
fn process(paths: &Paths) -> Vec<Check> {
    let running = daemon_of(paths);
    let (user, whose) = match running {
        Some((user, _)) => (user, "The daemon runs"),
        None => (geteuid().as_raw(), "A daemon started here would run"),
    };
    let root = if user == 0 {
        let advice = "Run it as a user of its own; a skill or a hole in aman is otherwise a hole in the machine.";
        Check::warn(Id::Root, format!("{whose} as root"), advice)
    } else {
        Check::ok(Id::Root, format!("{whose} as user {user}"))
    };
    let dumps =
        running.map_or_else(|| getrlimit(Resource::RLIMIT_CORE).map(|(soft, _)| soft > 0), |(_, dumps)| Ok(dumps));
    let dumps = match dumps {
        Ok(false) => Check::ok(Id::CoreDumps, "off"),
        Ok(true) => {
            let advice = "Start it with `ulimit -c 0`; the unit of `aman service install` has it.";
            let writes = if running.is_some() { "The daemon" } else { "A daemon started here" };
            let message = format!("{writes} writes its memory to the disk when it crashes");
            Check::warn(Id::CoreDumps, message, advice)
        }
        Err(error) => Check::skip(Id::CoreDumps, error.to_string()),
    };
    let scope = fs::read_to_string(PathBuf::from("/proc/sys/kernel/yama/ptrace_scope"));
    let ptrace = match scope.as_deref().map(str::trim) {
        Ok("0") => {
            let advice = "sysctl kernel.yama.ptrace_scope=1";
            Check::warn(Id::Ptrace, "Every program of this user can read the memory of every other", advice)
        }
        Ok(scope) => Check::ok(Id::Ptrace, format!("restricted (scope {scope})")),
        Err(_) => Check::new(Id::Ptrace, Verdict::Skip, "this kernel has no Yama", None),
    };
    vec![root, dumps, ptrace]
}
