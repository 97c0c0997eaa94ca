//! The person's editor.

use std::path::Path;
use std::process::Command;

use super::failure::Failure;
use crate::config::{self, FILE_BYTES_MAX};
use crate::plain;

/// Opens `file` in the editor, and gives what that made of it.
pub fn edited(file: &Path) -> Result<String, Failure> {
    let editor = config::client_env().editor.unwrap_or_else(|| "vi".to_owned());
    let words = shell_words::split(&editor).unwrap_or_default();
    let Some((program, arguments)) = words.split_first() else {
        return Err(Failure::Usage("EDITOR is no command.".to_owned()));
    };
    let ended = Command::new(program).args(arguments).arg(file).status();
    let ended = ended.map_err(|error| Failure::Failed(format!("{program} cannot be started: {error}. Set EDITOR.")))?;
    if !ended.success() {
        return Err(Failure::Failed(format!("{program} failed; nothing was changed.")));
    }
    let read = plain::read(file, FILE_BYTES_MAX);
    read.map_err(|error| Failure::Failed(format!("{} cannot be read: {error}.", file.display())))
}

/// What was written and cannot be used; it is kept.
pub fn kept(copy: &Path, what: &str) -> Failure {
    Failure::Failed(format!("{what}; what you wrote is kept in {}.", copy.display()))
}
