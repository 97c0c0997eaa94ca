//! Notifications for the person. In `Events::handle` and `Source::poll` they are told with the call's end.

use crate::Result;
use crate::bindings::aman::plugin::notify as host;

pub use crate::bindings::aman::plugin::notify::{Action, Notification, Severity};

impl Notification {
    /// One line, at most 200 characters.
    pub fn new(severity: Severity, title: impl Into<String>) -> Notification {
        Notification {
            title: title.into(),
            message: String::new(),
            severity,
            category: None,
            action: None,
            fingerprint: None,
            extensions: Vec::new(),
        }
    }

    /// With more text, at most 4,096 characters.
    pub fn message(mut self, message: impl Into<String>) -> Notification {
        self.message = message.into();
        self
    }

    /// With a link: an address of the web, or a path of the daemon's own.
    pub fn action(mut self, label: impl Into<String>, url: impl Into<String>) -> Notification {
        self.action = Some(Action { label: label.into(), url: url.into() });
        self
    }

    /// With what makes it the same as another, however its text differs: such are told once in a while only.
    pub fn fingerprint(mut self, fingerprint: impl Into<String>) -> Notification {
        self.fingerprint = Some(fingerprint.into());
        self
    }

    /// Tells it.
    pub fn send(&self) -> Result<()> {
        host::send(self)
    }
}
