//! `aman doctor`: checks this machine and the daemon, with or without a daemon running, and says what to do.

mod daemon;
mod machine;

use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::Context;
use super::failure::{FAILED, Failure};
use super::out::clean;

/// Checks everything.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aman doctor
  aman doctor --json | aman jq -r '.checks[] | select(.status != \"ok\") | .message'

Exit code 1 when a check fails; warnings alone are exit code 0.")]
pub struct DoctorArgs {}

/// How a check came out. Ordered: the later is worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// It works, with less than it could.
    Warn,
    /// Something does not work.
    Fail,
}

/// One check with its result.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Check {
    /// Stable name for programs.
    id: &'static str,
    status: Verdict,
    /// What was found.
    message: String,
    /// What would help.
    #[serde(rename = "do", skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

impl Check {
    fn ok(id: &'static str, message: impl Into<String>) -> Check {
        Check { id, status: Verdict::Ok, message: message.into(), advice: None }
    }

    fn warn(id: &'static str, message: impl Into<String>, advice: impl Into<String>) -> Check {
        Check { id, status: Verdict::Warn, message: message.into(), advice: Some(advice.into()) }
    }

    fn fail(id: &'static str, message: impl Into<String>, advice: impl Into<String>) -> Check {
        Check { id, status: Verdict::Fail, message: message.into(), advice: Some(advice.into()) }
    }
}

/// Runs all checks and prints them; one that failed is exit code 1.
pub async fn run(context: &mut Context, _args: &DoctorArgs) -> Result<(), Failure> {
    let paths = context.paths()?;
    let mut checks = machine::checks(&paths, context.global.home.clone());
    checks.push(machine::sandbox().await);
    checks.extend(daemon::checks(context, &paths).await);
    show(context, &checks)
}

fn show(context: &mut Context, checks: &[Check]) -> Result<(), Failure> {
    let worst = checks.iter().map(|check| check.status).max().unwrap_or(Verdict::Ok);
    if context.out.json() {
        let document = json!({ "ok": worst != Verdict::Fail, "checks": checks });
        context.out.line(&document.to_string())?;
    } else {
        let width = checks.iter().map(|check| check.id.len()).max().unwrap_or(0);
        for check in checks {
            let status = match check.status {
                Verdict::Ok => "ok  ",
                Verdict::Warn => "warn",
                Verdict::Fail => "FAIL",
            };
            context.out.line(&format!("{status}  {:width$}  {}", check.id, clean(&check.message)))?;
            if let Some(advice) = &check.advice {
                context.out.line(&format!("      {:width$}  → {}", "", clean(advice)))?;
            }
        }
        let number = |wanted: Verdict| checks.iter().filter(|check| check.status == wanted).count();
        let (warned, failed) = (number(Verdict::Warn), number(Verdict::Fail));
        let all = checks.len();
        context.out.line(&format!("\n{all} checks: {} ok, {warned} warn, {failed} fail", all - warned - failed))?;
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
        let checks = [Check::ok("a", "fine"), Check::warn("b", "so so", "do x"), Check::fail("c", "broken", "do y")];
        let printed = Printed::default();
        let mut context = Context::fake("http://127.0.0.1:1", printed.clone(), true);
        assert_eq!(show(&mut context, &checks).expect_err("one failed").code(), 1);
        let document: Value = serde_json::from_str(&printed.text()).expect("it is one document");
        assert_eq!(document["ok"], false);
        assert_eq!(document["checks"][2], json!({ "id": "c", "status": "fail", "message": "broken", "do": "do y" }));

        let printed = Printed::default();
        let mut context = Context::fake("http://127.0.0.1:1", printed.clone(), false);
        assert!(show(&mut context, &checks[..2]).is_ok());
        assert_eq!(
            printed.text(),
            "ok    a  fine\nwarn  b  so so\n         → do x\n\n2 checks: 1 ok, 1 warn, 0 fail\n"
        );
    }
}
