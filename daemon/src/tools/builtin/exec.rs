//! `exec`: a command that was granted, without a shell and without network, in the sandbox.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use nix::sys::stat::SFlag;
use serde_json::json;

use super::reach::Reach;
use super::{Shared, failed, number, said, text};
use crate::clock::rfc3339;
use crate::id::sha256_hex;
use crate::sandbox::{self, Exit, Finished, Limits, Network, SandboxError, Spec, WorkFolder};
use crate::tools::{Call, Output, Preview, ToolFailure};

/// Seconds, unless the call says how many.
const TIME_S: usize = 60;
const STDERR_BYTES_MAX: u64 = 64 << 10;
/// What of either output is shown, in bytes.
const SHOWN_BYTES_MAX: usize = 24 << 10;

fn argv(call: &Call) -> Vec<String> {
    let words = call.arguments["argv"].as_array();
    words.into_iter().flatten().filter_map(|word| word.as_str().map(str::to_owned)).collect()
}

/// The words, if the first of them was granted.
fn granted(call: &Call) -> Result<Vec<String>, ToolFailure> {
    let (argv, exec) = (argv(call), &call.caller.policy.exec);
    let command = argv.first().map_or("", String::as_str);
    if exec.iter().any(|granted| granted == command) {
        return Ok(argv);
    }
    let named: Vec<&str> = exec.iter().take(20).map(String::as_str).collect();
    let reason = format!("the command '{command}' was not granted; those are {}.", named.join(", "));
    Err(ToolFailure::Refused("exec_not_allowed", reason))
}

/// The program that the sandbox would find.
fn program(command: &str) -> Result<PathBuf, ToolFailure> {
    let missing = || failed(format!("the command '{command}' was not found"));
    if command.contains('/') {
        let path = Path::new(command);
        let is_there = path.is_absolute() && path.is_file();
        return if is_there { Ok(path.to_owned()) } else { Err(missing()) };
    }
    sandbox::PATH
        .split(':')
        .map(|folder| Path::new(folder).join(command))
        .find(|path| path.is_file())
        .ok_or_else(missing)
}

/// The words as a shell would have to be given them.
fn shown(argv: &[String]) -> String {
    shell_words::join(argv)
}

/// What stands before the words where rules are concerned: the folder and the digest of what the command reads, if the call
/// gives them, since the same words do something else there. Words are quoted where they hold a bracket, so none of them
/// can look like it.
fn around(folder: Option<&str>, stdin: &str) -> String {
    let folder = folder.map(|folder| format!("in {}", shell_words::quote(folder)));
    let stdin = (!stdin.is_empty()).then(|| format!("stdin sha256 {}", sha256_hex(stdin.as_bytes())));
    let all: Vec<String> = folder.into_iter().chain(stdin).collect();
    if all.is_empty() { String::new() } else { format!("({}) ", all.join(", ")) }
}

/// What a rule is made of: the command with its first word, if that names an action of it, and any others; else just this
/// call. So `git status -s` gives `git status *`, and `python3 x.py` itself.
fn pattern(argv: &[String]) -> String {
    let is_action = |word: &&String| {
        let mut bytes = word.bytes();
        bytes.next().is_some_and(|first| first.is_ascii_lowercase())
            && bytes.all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    match (argv.first(), argv.get(1).filter(is_action)) {
        (Some(command), Some(action)) => format!("{} *", shown(&[command.clone(), action.clone()])),
        _ => shown(argv),
    }
}

pub(super) fn preview(shared: &Shared, call: &Call) -> Result<Preview, ToolFailure> {
    let argv = granted(call)?;
    let program = program(&argv[0])?;
    let of = std::fs::metadata(&program).map_err(|error| failed(format!("'{}': {error}", program.display())))?;
    let folder = folder(shared, call)?;
    let folder = folder.map(|folder| shared.ground.places.shown(&folder));
    let around = around(folder.as_deref(), text(call, "stdin"));
    let place = folder.unwrap_or_else(|| "a new folder of its own".to_owned());
    let fed = match text(call, "stdin").len() {
        0 => String::new(),
        bytes => format!(" with {bytes} bytes of input"),
    };
    // Another program in its place, or another content of it, is not what was approved.
    let what = format!(
        "runs {}{fed} in {place} ({}, {} bytes, number {}, of {})",
        shown(&argv),
        program.display(),
        of.len(),
        of.ino(),
        rfc3339(of.mtime() * 1000)
    );
    let (subject, rule) = (format!("{around}{}", shown(&argv)), format!("{around}{}", pattern(&argv)));
    Ok(Preview { text: Some(what), ..Preview::about(subject, rule) })
}

/// The folder that it is to start in, if the call names one.
fn folder(shared: &Shared, call: &Call) -> Result<Option<PathBuf>, ToolFailure> {
    let wanted = text(call, "dir");
    if wanted.is_empty() {
        return Ok(None);
    }
    let reach = Reach::new(shared, &call.caller.policy);
    let granted = reach.within(wanted, "dir", false)?;
    let place = reach.there(&granted)?;
    if place.is(SFlag::S_IFDIR) {
        Ok(Some(place.path))
    } else {
        Err(failed(format!("'{}' is no folder", granted.shown)))
    }
}

pub(super) async fn run(shared: &Shared, call: &Call) -> Result<Output, ToolFailure> {
    let argv = granted(call)?;
    let named = folder(shared, call)?;
    let own = WorkFolder::make(shared.ground.work.join(crate::id::fresh()), None).await;
    let own = own.map_err(|error| failed(format!("the folder of the command cannot be made: {error}")))?;
    let reach = Reach::new(shared, &call.caller.policy);
    let place = own.path().to_string_lossy().into_owned();
    let time = Duration::from_secs(number(call, "timeout_s").unwrap_or(TIME_S) as u64);
    let env = [
        ("PATH", sandbox::PATH),
        ("LANG", "C.UTF-8"),
        ("HOME", &place),
        ("TMPDIR", &place),
        ("AMAN_IDEMPOTENCY_KEY", &call.key),
    ];
    let spec = Spec {
        argv,
        dir: named.unwrap_or_else(|| own.path().to_owned()),
        env: env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        stdin: Bytes::from(text(call, "stdin").to_owned()),
        own: Some(own.path().to_owned()),
        read: reach.grants(false),
        write: reach.grants(true),
        net: Network::None,
        limits: Limits { time, stderr_bytes_max: STDERR_BYTES_MAX, ..Limits::default() },
    };
    // Whoever cancels the call drops it, which kills everything that it started.
    let never = tokio_util::sync::CancellationToken::new();
    let finished = shared.ground.sandbox.run(spec, never).await.map_err(not_run)?;
    judge(&finished, time)
}

fn not_run(error: SandboxError) -> ToolFailure {
    match error {
        SandboxError::Refused { .. } => ToolFailure::Refused("path_not_granted", format!("{error}.")),
        other => failed(other.to_string()),
    }
}

/// The end of an output that is too long says more than its beginning.
fn end_of(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    if text.len() <= SHOWN_BYTES_MAX {
        return text.into_owned();
    }
    let from = text.len() - SHOWN_BYTES_MAX;
    let from = (from..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    format!("[the first {from} of {} bytes are not shown]\n{}", text.len(), &text[from..])
}

fn judge(finished: &Finished, time: Duration) -> Result<Output, ToolFailure> {
    let (stdout, stderr) = (end_of(&finished.stdout), end_of(&finished.stderr));
    let begun = || format!("It may have done a part. It had said: {stdout} {stderr}");
    let code = match finished.exit {
        Exit::Exited(code) => code,
        Exit::Signalled(signal) => {
            return Err(failed(format!("the command was ended by signal {signal}. {}", begun())));
        }
        Exit::TimedOut => {
            return Err(failed(format!(
                "the command took longer than {} s, and was ended. {}",
                time.as_secs(),
                begun()
            )));
        }
        Exit::Cancelled => return Err(ToolFailure::Unknown("the command was stopped".to_owned())),
        Exit::OutputTooLarge => return Err(failed("the command wrote more than 1 MiB, and was ended")),
    };
    let mut text = format!("exit code {code}\n");
    for (name, output) in [("stdout", &stdout), ("stderr", &stderr)] {
        if !output.is_empty() {
            text.push_str(&format!("--- {name}\n{output}\n"));
        }
    }
    Ok(said(text, Some(json!({ "exit_code": code, "stdout": stdout, "stderr": stderr }))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_made_of_what_a_command_does() {
        for (words, wanted) in [
            ("git status -s", "git status *"),
            ("git -c 'a=b' status", "git -c 'a=b' status"),
            ("python3 x.py", "python3 x.py"),
            ("ls", "ls"),
            ("echo 'a b' c", "echo 'a b' c"),
            ("find . -delete", "find . -delete"),
            ("npm run-script x", "npm run-script *"),
        ] {
            let argv = shell_words::split(words).expect("words");
            assert_eq!(pattern(&argv), wanted, "{words}");
            assert!(crate::tools::pattern::fits(&pattern(&argv), &shown(&argv)), "{words}");
        }
    }

    #[test]
    fn rules_hold_for_the_folder_and_the_input_of_their_call() {
        let argv = |words: &str| shell_words::split(words).expect("words");
        let status = (argv("git status"), argv("git status -s"));
        let all = [(None, ""), (Some("~/notes"), ""), (Some("~/a) b"), ""), (None, "in"), (Some("~/notes"), "in")];
        for (folder, stdin) in all {
            let rule = format!("{}{}", around(folder, stdin), pattern(&status.0));
            for (other, input) in all {
                let subject = format!("{}{}", around(other, input), shown(&status.1));
                let same = (folder, stdin) == (other, input);
                assert_eq!(crate::tools::pattern::fits(&rule, &subject), same, "{rule}: {subject}");
            }
        }
        let pretends = shown(&argv("'(in ~/notes)' git status"));
        assert!(!crate::tools::pattern::fits("(in ~/notes) git status *", &pretends), "{pretends}");
        assert!(!crate::tools::pattern::fits(&format!("{}git status *", around(Some("~/notes"), "")), &pretends));
    }
}
