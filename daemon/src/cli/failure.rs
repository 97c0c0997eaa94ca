//! Why a command did not do what was asked, what to print then, and the exit code that says so.

use std::io;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::client::Reply;
use super::out::{Out, clean, text};

/// The exit code for success.
pub const OK: u8 = 0;
/// The exit code for "it was tried and failed, or the answer is no".
pub const FAILED: u8 = 1;
/// The exit code for a call that cannot be right; nothing was sent.
pub const USAGE: u8 = 2;
/// The exit code for a state that forbids it now (HTTP 409).
pub const CONFLICT: u8 = 3;
/// The exit code for a turn of an agent that was stopped before its end.
pub const STOPPED: u8 = 4;
/// The exit code for a turn of an agent that goes on, and nobody here sees its end.
pub const LEFT: u8 = 5;

/// What ended a command early.
#[derive(Debug)]
pub enum Failure {
    /// The call cannot be right; the text says what would be.
    Usage(String),
    /// Nobody listens there.
    NoDaemon {
        /// Where the daemon was looked for.
        address: String,
        /// What the attempt said.
        reason: String,
    },
    /// The daemon refused; its answer is kept as it came.
    Refused(Reply),
    /// The daemon does not let these credentials in; its answer is kept as it came.
    Locked {
        /// The daemon's answer.
        reply: Reply,
        /// Which token was shown, where it is from, and what would help.
        key: String,
    },
    /// Something on this side, or on the way, went wrong.
    Failed(String),
    /// The answer is printed and it is "no": only the exit code is left to give.
    Said(u8),
    /// Whoever read our output went away; that is their right and no error.
    PipeClosed,
}

impl Failure {
    /// For output that could not be written.
    pub fn of_output(error: &io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::PipeClosed,
            _ => Failure::Failed(format!("The output cannot be written: {error}.")),
        }
    }

    /// The process's exit code.
    pub fn code(&self) -> u8 {
        match self {
            Failure::Usage(_) => USAGE,
            Failure::Refused(reply) if reply.status == 409 => CONFLICT,
            Failure::NoDaemon { .. } | Failure::Refused(_) | Failure::Locked { .. } | Failure::Failed(_) => FAILED,
            Failure::Said(code) => *code,
            Failure::PipeClosed => OK,
        }
    }

    /// The text for people; empty when everything is said already.
    pub fn message(&self) -> String {
        match self {
            Failure::Usage(reason) | Failure::Failed(reason) => reason.clone(),
            Failure::NoDaemon { address, reason } => {
                format!("No daemon answers {address} ({reason}). Start it with `aman serve`.")
            }
            Failure::Refused(reply) => refusal(reply),
            Failure::Locked { reply, key } => format!("{key}{}", code(reply)),
            Failure::Said(_) | Failure::PipeClosed => String::new(),
        }
    }

    /// Prints it: the message to stderr, and with `--json` one document to stdout, so that a program always reads one.
    pub fn report(&self, out: &mut Out) -> ExitCode {
        let message = self.message();
        if !message.is_empty() {
            if out.json() {
                // The daemon's own answer where there is one; our own has the fields of a problem that apply.
                let printed = match self {
                    Failure::Refused(reply) | Failure::Locked { reply, .. } if reply.json().is_ok() => {
                        out.raw(&reply.body)
                    }
                    _ => out.line(&json!({ "detail": message }).to_string()),
                };
                // A second failure to print has nowhere to be told.
                drop(printed);
            }
            out.complain(&format!("aman: {message}"));
        }
        ExitCode::from(self.code())
    }
}

/// A problem document as text: what happened, each wrong field, what to do, and the code that programs match on.
fn refusal(reply: &Reply) -> String {
    let Ok(problem) = reply.json() else {
        return format!("The answer was HTTP {} without an explanation. Is that an aman daemon?", reply.status);
    };
    let detail = ["detail", "message", "title"].iter().map(|key| text(&problem[*key])).find(|found| !found.is_empty());
    let mut message = detail.unwrap_or_else(|| format!("The daemon answered HTTP {}.", reply.status));
    let fields = problem["errors"].as_array().map(Vec::as_slice).unwrap_or_default();
    for field in fields {
        let name = ["field", "pointer", "name"].iter().map(|key| text(&field[*key])).find(|found| !found.is_empty());
        let reason =
            ["reason", "detail", "message"].iter().map(|key| text(&field[*key])).find(|found| !found.is_empty());
        let line = format!("{}: {}", name.unwrap_or_default(), reason.unwrap_or_default());
        if !message.contains(&line) {
            message.push_str(&format!("\n  {line}"));
        }
    }
    if let Some(advice) = advice(reply.status, &text(&problem["code"])) {
        message.push_str(&format!("\n  {advice}"));
    }
    message.push_str(&code(reply));
    message
}

/// The line with what programs match on, and where the log says more.
fn code(reply: &Reply) -> String {
    let problem = reply.json().unwrap_or_default();
    let (code, trace) = (text(&problem["code"]), text(&problem["trace_id"]));
    match (code.is_empty(), trace.is_empty()) {
        (true, _) => format!("\n  (HTTP {})", reply.status),
        (false, true) => format!("\n  (code {code}, HTTP {})", reply.status),
        (false, false) => format!("\n  (code {code}, HTTP {}, trace {trace})", reply.status),
    }
}

/// What helps, where the daemon cannot know that a person at a terminal asks.
fn advice(status: u16, code: &str) -> Option<&'static str> {
    match (status, code) {
        (403, "insufficient_scope") => {
            Some("The daemon's own token may do everything; it is used when no other is given.")
        }
        (403, "tool_denied") => {
            Some("Yours stand under [tools] of the configuration file; daemon/docs/tools.md has them.")
        }
        (409, "confirmation_required") => Some("Repeat it with --yes."),
        (421, _) => Some("Use 127.0.0.1 or localhost in --url, or list the name in http.allowed_hosts."),
        (429, _) => Some("Wait a moment, then try again."),
        (503, "overloaded") => Some("Try again in a moment; `aman status` shows how it stands."),
        (500, _) => Some("This is a defect of the daemon; its log has the whole story under the trace id."),
        _ => None,
    }
}

/// For a part of an answer that is not what the contract says.
pub fn unexpected(what: &str, found: &Value) -> Failure {
    let mut shown = clean(&found.to_string());
    if let Some((end, _)) = shown.char_indices().nth(200) {
        shown.truncate(end);
    }
    Failure::Failed(format!("The daemon's answer has no {what}: {shown}. Do CLI and daemon have the same version?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, body: &Value) -> Failure {
        Failure::Refused(Reply { status, body: body.to_string().into() })
    }

    #[test]
    fn a_problem_reads_as_sentences() {
        let failure = refused(
            400,
            &json!({ "detail": "The request has a wrong field.", "code": "invalid_input", "trace_id": "ab",
                "errors": [{ "field": "type", "reason": "must not be empty." }] }),
        );
        assert_eq!(
            failure.message(),
            "The request has a wrong field.\n  type: must not be empty.\n  (code invalid_input, HTTP 400, trace ab)"
        );
        assert_eq!(failure.code(), FAILED);
    }

    #[test]
    fn a_field_that_the_detail_names_is_not_repeated() {
        let failure = refused(
            400,
            &json!({ "detail": "type: is wrong.", "errors": [{ "field": "type", "reason": "is wrong." }] }),
        );
        assert_eq!(failure.message(), "type: is wrong.\n  (HTTP 400)");
    }

    #[test]
    fn exit_codes() {
        assert_eq!(refused(409, &json!({})).code(), CONFLICT);
        assert_eq!(refused(500, &json!({})).code(), FAILED);
        assert_eq!(Failure::Usage(String::new()).code(), USAGE);
        assert_eq!(Failure::PipeClosed.code(), OK);
        let failure = Failure::NoDaemon { address: "at http://127.0.0.1:1".into(), reason: "refused".into() };
        assert!(failure.message().contains("Start it with `aman serve`"));
    }

    #[test]
    fn an_answer_that_is_no_json_is_said_so() {
        let failure = Failure::Refused(Reply { status: 404, body: "<html>".into() });
        assert!(failure.message().contains("HTTP 404"));
    }
}
