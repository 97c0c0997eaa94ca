//! `run: shell` and `run: script`: a command in the sandbox, in a fresh folder of its own.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use super::Inner;
use super::actions::{Job, trusted};
use super::http::text;
use crate::sandbox::{self, Exit, Finished, Limits, Permissions, SandboxError, Spec, WorkFolder};
use crate::workflow::{Fault, Kind, Return, Run};

/// How long a command may take when its task says nothing shorter.
const TIME_MAX: Duration = Duration::from_secs(600);
const STDERR_BYTES_MAX: u64 = 256 << 10;

/// Runs the command of a task.
pub(super) async fn run(inner: &Arc<Inner>, job: &Job) -> Result<Value, Fault> {
    let task = &job.definition.tasks[job.task];
    let Kind::Run(Run::Process(process)) = &task.kind else { return Err(Fault::runtime("is no process")) };
    trusted(&job.row)?;
    let permissions = task.written["metadata"]["aman.permissions"].as_str().unwrap_or_default();
    let rights = Permissions::parse(permissions, &inner.settings.places)
        .map_err(|why| Fault::configuration(format!("aman.permissions: {why}")))?;
    // A run that was given up may still be ending when the next one with its key begins.
    let place = inner.settings.work.join(format!("{}-{}", job.key, crate::id::fresh()));
    let code = job.args["process"]["code"].as_str().ok_or_else(|| Fault::expression("the command is no text"))?;
    // A file of its own, so that arguments stand where scripts look for them, and errors name lines.
    let file = match process.program {
        "sh" => None,
        "node" => Some("script.js"),
        _ => Some("script.py"),
    };
    let folder = WorkFolder::make(place, file.map(|name| (name, code.to_owned()))).await;
    let folder = folder.map_err(|why| Fault::runtime(format!("the folder of the process cannot be made: {why}")))?;
    let spec = spec(job, process.program, (code, file), rights, folder.path())?;
    let finished = inner.sandbox.run(spec, job.cancel.clone()).await.map_err(not_run)?;
    judge(&finished, process.wanted)
}

fn not_run(error: SandboxError) -> Fault {
    match error {
        SandboxError::CommandNotFound { .. } | SandboxError::Invalid { .. } => Fault::configuration(error.to_string()),
        SandboxError::Refused { .. } => Fault::authorization(error.to_string()),
        SandboxError::CommandFailed { .. } | SandboxError::Setup { .. } => Fault::runtime(error.to_string()),
    }
}

/// The command: `code` as its argument, or in a `file` of its folder.
fn spec(
    job: &Job,
    program: &str,
    (code, file): (&str, Option<&str>),
    rights: Permissions,
    folder: &Path,
) -> Result<Spec, Fault> {
    let args = &job.args["process"];
    let mut argv = vec![program.to_owned()];
    match file {
        None => argv.extend(["-c".to_owned(), code.to_owned(), "sh".to_owned()]),
        Some(name) => argv.push(name.to_owned()),
    }
    match &args["arguments"] {
        Value::Null => {}
        Value::Array(all) => argv.extend(all.iter().map(text)),
        _ => return Err(Fault::expression("arguments are no list")),
    }
    let place = folder.to_string_lossy().into_owned();
    let mut env: Vec<(String, String)> = vec![
        ("PATH".to_owned(), sandbox::PATH.to_owned()),
        ("LANG".to_owned(), "C.UTF-8".to_owned()),
        ("HOME".to_owned(), place.clone()),
        ("TMPDIR".to_owned(), place),
        ("AMAN_IDEMPOTENCY_KEY".to_owned(), job.key.clone()),
        ("AMAN_INSTANCE_ID".to_owned(), job.row.id.clone()),
    ];
    if program == "node" {
        // Whether a script is a module it finds out by itself, and says that this takes time.
        env.push(("NODE_NO_WARNINGS".to_owned(), "1".to_owned()));
    }
    for (name, value) in args["environment"].as_object().into_iter().flatten() {
        let good = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !good {
            return Err(Fault::validation(format!("environment: '{}' is no name", name.escape_debug())));
        }
        env.retain(|(known, _)| known != name);
        env.push((name.clone(), text(value)));
    }
    let stdin = match &args["stdin"] {
        Value::Null => Bytes::new(),
        value => Bytes::from(text(value)),
    };
    Ok(Spec {
        argv,
        dir: folder.to_owned(),
        env,
        stdin,
        own: Some(folder.to_owned()),
        read: rights.read,
        write: rights.write,
        net: rights.net,
        limits: Limits { time: TIME_MAX, stderr_bytes_max: STDERR_BYTES_MAX, ..Limits::default() },
    })
}

fn judge(finished: &Finished, wanted: Return) -> Result<Value, Fault> {
    let (stdout, stderr) = (String::from_utf8_lossy(&finished.stdout), String::from_utf8_lossy(&finished.stderr));
    let code = match finished.exit {
        Exit::Exited(code) => code,
        Exit::Signalled(signal) => return Err(Fault::runtime(format!("the process was ended by signal {signal}"))),
        Exit::TimedOut => return Err(Fault::timeout(format!("the process took longer than {} s", TIME_MAX.as_secs()))),
        Exit::Cancelled => return Err(Fault::runtime("the process was ended before it was done").unknown()),
        Exit::OutputTooLarge => return Err(Fault::runtime("the process wrote more than 1 MiB")),
    };
    match wanted {
        Return::Code => Ok(code.into()),
        Return::All => Ok(json!({ "code": code, "stdout": stdout, "stderr": stderr })),
        _ if code != 0 => {
            let end: String = stderr.chars().rev().take(500).collect::<Vec<_>>().into_iter().rev().collect();
            Err(Fault::runtime(format!("the process ended with exit code {code}: {}", end.trim())))
        }
        Return::Stdout => Ok(stdout.into_owned().into()),
        Return::Stderr => Ok(stderr.into_owned().into()),
        Return::Nothing => Ok(Value::Null),
    }
}
