//! Messages on the desktop of the person's session, by the freedesktop notification service.
//!
//! libnotify's `notify-send` is asked, as a program of its own: a D-Bus library would bring some sixty crates and an async
//! runtime of its own into the daemon, for a message now and then.

use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;

use super::message::Message;
use super::{Sending, Sent, Sink, patient};
use crate::bus::RetryPolicy;

/// How long the program may take.
const TIME_MAX: Duration = Duration::from_secs(10);
/// What fits into a bubble, in bytes.
const BODY_BYTES_MAX: usize = 800;
/// What is kept of an error of the program, in bytes.
const ERROR_BYTES_MAX: usize = 500;

/// The desktop.
pub struct DesktopSink {
    /// The sink's name in intents.
    pub(super) name: String,
}

impl Sink for DesktopSink {
    fn name(&self) -> &str {
        &self.name
    }

    /// A bubble that comes twice is better than none.
    fn is_idempotent(&self) -> bool {
        true
    }

    /// Nobody may be logged in for long.
    fn retry(&self) -> RetryPolicy {
        patient(Duration::from_secs(10), Duration::from_secs(600))
    }

    fn send<'a>(&'a self, _: &'a str, payload: &'a Value) -> Sending<'a> {
        Box::pin(async move {
            let mut command = Command::new("notify-send");
            command.args(arguments(&Message::of(payload, BODY_BYTES_MAX)));
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
            match tokio::time::timeout(TIME_MAX, command.output()).await {
                Ok(Ok(said)) if said.status.success() => Sent::Yes,
                Ok(Ok(said)) => {
                    let error = said.stderr.get(..ERROR_BYTES_MAX).unwrap_or(&said.stderr);
                    let error = String::from_utf8_lossy(error);
                    Sent::Later(format!("notify-send failed: {}. Is a desktop session there?", error.trim()), None)
                }
                Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => {
                    let why = "notify-send is not there; install libnotify-bin (Debian, Ubuntu) or libnotify.";
                    Sent::Later(why.to_owned(), None)
                }
                Ok(Err(error)) => Sent::Later(format!("notify-send cannot be started: {error}"), None),
                Err(_) => Sent::Later(format!("notify-send did not end within {} s", TIME_MAX.as_secs()), None),
            }
        })
    }
}

/// What the program is given. Servers read the text as markup, so what is none is spelled out.
fn arguments(message: &Message) -> Vec<String> {
    let urgency = match message.severity.as_str() {
        "critical" => "critical",
        "info" => "low",
        _ => "normal",
    };
    let body = message.body.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let mut arguments = vec!["--app-name=aman".to_owned(), format!("--urgency={urgency}"), "--".to_owned()];
    arguments.extend([message.title.replace('\0', ""), body.replace('\0', "")]);
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_no_options_and_no_markup() {
        let message = Message {
            title: "--help".to_owned(),
            body: "a <b> & \0c".to_owned(),
            severity: "critical".to_owned(),
            link: None,
        };
        let wanted = ["--app-name=aman", "--urgency=critical", "--", "--help", "a &lt;b&gt; &amp; c"];
        assert_eq!(arguments(&message), wanted);
    }
}
