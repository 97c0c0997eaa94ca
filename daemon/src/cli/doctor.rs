//! `aman doctor`: checks this machine and the daemon, with or without a daemon running, and says what to do.

mod catalogue;
mod daemon;
mod files;
mod machine;
mod parts;
mod security;
mod settings;

use std::fs;
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;

use clap::Args;
use nix::fcntl::OFlag;
use serde::Serialize;
use serde_json::json;

use self::catalogue::{Id, Severity};
use super::Context;
use super::failure::{FAILED, Failure};
use super::out::clean;

pub use self::catalogue::table;

/// Checks everything.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman doctor
  aman doctor --security
  aman doctor --security --fix
  aman doctor --json | aman jq -r '.checks[] | select(.status != \"ok\") | .message'

Exit code 1 when a check fails; warnings alone are exit code 0. What could not be looked at is `skip`, as all that
needs a running daemon is without one. Each id stays what it is; daemon/docs/doctor.md lists them all.")]
pub struct DoctorArgs {
    /// Look at who could get in, or read along, as well
    #[arg(long)]
    security: bool,
    /// Take rights from files and folders that give others too many; nothing else is changed
    #[arg(long, requires = "security")]
    fix: bool,
}

/// Why a check is skipped that needs a daemon.
const NO_DAEMON: &str = "only a running daemon that accepts the token can tell";

/// How a check came out. Ordered: the later is worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// It could not be looked at.
    Skip,
    /// It works, with less than it could.
    Warn,
    /// Something does not work, or somebody could get in.
    Fail,
}

/// Rights to be taken from a file or folder.
#[derive(Debug, Clone, PartialEq)]
struct Fix {
    path: PathBuf,
    /// The bits that go.
    bits: u32,
}

/// One check with its result.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Check {
    /// Stable name for programs.
    id: Id,
    status: Verdict,
    /// How bad it is when it is not `ok`.
    severity: Severity,
    /// What was found.
    message: String,
    /// What would help.
    #[serde(rename = "do", skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
    /// What `--fix` would do.
    #[serde(skip)]
    fixes: Vec<Fix>,
}

impl Check {
    fn new(id: Id, status: Verdict, message: impl Into<String>, advice: Option<String>) -> Check {
        Check { id, status, severity: id.rule().severity, message: message.into(), advice, fixes: Vec::new() }
    }

    fn ok(id: Id, message: impl Into<String>) -> Check {
        Check::new(id, Verdict::Ok, message, None)
    }

    fn skip(id: Id, message: impl Into<String>) -> Check {
        Check::new(id, Verdict::Skip, message, None)
    }

    fn warn(id: Id, message: impl Into<String>, advice: impl Into<String>) -> Check {
        Check::new(id, Verdict::Warn, message, Some(advice.into()))
    }

    fn fail(id: Id, message: impl Into<String>, advice: impl Into<String>) -> Check {
        Check::new(id, Verdict::Fail, message, Some(advice.into()))
    }
}

/// Runs all checks and prints them; one that failed is exit code 1.
pub async fn run(context: &mut Context, args: &DoctorArgs) -> Result<(), Failure> {
    let mut checks = all(context, args.security).await?;
    let mut fixed = Vec::new();
    if args.fix {
        let fixes: Vec<Fix> = checks.iter().flat_map(|check| check.fixes.clone()).collect();
        for fix in fixes {
            match take_rights(&fix) {
                Ok(()) => fixed.push(fix.path.display().to_string()),
                Err(error) => context.out.complain(&format!("aman: {}: {error}", clean(&fix.path.to_string_lossy()))),
            }
        }
        if !fixed.is_empty() {
            checks = all(context, true).await?;
        }
    }
    show(context, &checks, &fixed)
}

async fn all(context: &Context, security: bool) -> Result<Vec<Check>, Failure> {
    let paths = context.paths()?;
    let mut checks = machine::checks(&paths, context.global.home.as_deref());
    checks.push(machine::sandbox().await);
    checks.extend(daemon::checks(context, &paths).await);
    if security {
        checks.extend(security::checks(context, &paths).await);
    }
    Ok(checks)
}

/// Takes the bits from what is at the path itself, never from what a link there leads to.
fn take_rights(fix: &Fix) -> io::Result<()> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = fs::File::options().read(true).custom_flags(flags.bits()).open(&fix.path)?;
    let mode = file.metadata()?.permissions().mode();
    file.set_permissions(fs::Permissions::from_mode(mode & 0o7777 & !fix.bits))
}

fn show(context: &mut Context, checks: &[Check], fixed: &[String]) -> Result<(), Failure> {
    let worst = checks.iter().map(|check| check.status).max().unwrap_or(Verdict::Ok);
    if context.out.json() {
        let document = json!({ "ok": worst != Verdict::Fail, "checks": checks, "fixed": fixed });
        context.out.line(&document.to_string())?;
    } else {
        let width = checks.iter().map(|check| check.id.name().len()).max().unwrap_or(0);
        for check in checks {
            let status = match check.status {
                Verdict::Ok => "ok  ",
                Verdict::Skip => "skip",
                Verdict::Warn => "warn",
                Verdict::Fail => "FAIL",
            };
            context.out.line(&format!("{status}  {:width$}  {}", check.id.name(), clean(&check.message)))?;
            if let Some(advice) = &check.advice {
                context.out.line(&format!("      {:width$}  → {}", "", clean(advice)))?;
            }
        }
        for path in fixed {
            context.out.line(&format!("fixed {}", clean(path)))?;
        }
        let number = |wanted: Verdict| checks.iter().filter(|check| check.status == wanted).count();
        let (skipped, warned, failed) = (number(Verdict::Skip), number(Verdict::Warn), number(Verdict::Fail));
        let good = checks.len() - skipped - warned - failed;
        let skipped = if skipped == 0 { String::new() } else { format!(", {skipped} skipped") };
        context.out.line(&format!("\n{} checks: {good} ok, {warned} warn, {failed} fail{skipped}", checks.len()))?;
    }
    if worst == Verdict::Fail { Err(Failure::Said(FAILED)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::cli::out::tests::Printed;

    #[test]
    fn one_failure_is_exit_code_1_and_the_document_says_it() {
        let checks = [
            Check::ok(Id::Clock, "fine"),
            Check::warn(Id::Config, "so so", "do x"),
            Check::fail(Id::Daemon, "broken", "do y"),
        ];
        let printed = Printed::default();
        let mut context = Context::fake("http://127.0.0.1:1", printed.clone(), true);
        assert_eq!(show(&mut context, &checks, &[]).expect_err("one failed").code(), 1);
        let document: Value = serde_json::from_str(&printed.text()).expect("it is one document");
        assert_eq!(document["ok"], false);
        assert_eq!(
            document["checks"][2],
            json!({ "id": "daemon", "status": "fail", "severity": "high", "message": "broken", "do": "do y" })
        );

        let printed = Printed::default();
        let mut context = Context::fake("http://127.0.0.1:1", printed.clone(), false);
        assert!(show(&mut context, &checks[..2], &[]).is_ok());
        assert_eq!(
            printed.text(),
            "ok    clock   fine\nwarn  config  so so\n              → do x\n\n2 checks: 1 ok, 1 warn, 0 fail\n"
        );
    }
}
