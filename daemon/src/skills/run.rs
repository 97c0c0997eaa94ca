//! The consumer behind a skill with a script: event in, sandbox, effects out.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::answer;
use super::clear;
use super::folder::{self, Content};
use super::manifest::Manifest;
use super::stats::Stats;
use crate::bus::{Attempt, Consumer, Delivered, Effects, Failure, Outcome, Plan};
use crate::clock::Clock;
use crate::sandbox::{self, Exit, Finished, Limits, Sandbox, SandboxError, Spec};
use crate::store::Store;
use crate::store::skills as records;

/// Exit codes that mean something to the daemon, from sysexits.h: EX_TEMPFAIL and EX_DATAERR.
const TRY_AGAIN: i32 = 75;
const REJECT: i32 = 65;
/// How much of the end of standard error is kept with a failure.
const STDERR_TAIL: usize = 4 << 10;
const STDERR_BYTES_MAX: u64 = 256 << 10;

/// Where scripts find things.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// The daemon's data folder.
    pub data: PathBuf,
    /// Below it every attempt gets a fresh folder.
    pub work: PathBuf,
    /// This program, for scripts that need `aman jq`.
    pub binary: PathBuf,
}

/// What hears of a content that is not the one that was loaded.
pub type OnChange = Arc<dyn Fn() + Send + Sync>;

/// A skill's script and what it runs with.
pub struct Script {
    /// What the skill says of itself.
    pub manifest: Arc<Manifest>,
    /// Its command and arguments.
    pub argv: Vec<String>,
    /// Its folder.
    pub folder: PathBuf,
    /// Where things are.
    pub surroundings: Arc<Surroundings>,
    /// Runs the command.
    pub sandbox: Sandbox,
}

/// Runs one skill's script for the daemon.
pub struct Runner {
    /// What runs.
    pub script: Script,
    /// Its content when it was loaded.
    pub content: Content,
    /// Counts, shared with the registry.
    pub stats: Arc<Stats>,
    /// Keeps the counts.
    pub store: Store,
    /// Tells the time for the counts.
    pub clock: Clock,
    /// See [`OnChange`].
    pub on_change: OnChange,
}

impl Consumer for Runner {
    fn deliver(&self, attempt: Attempt) -> Delivered<'_> {
        Box::pin(async move {
            let begun = Instant::now();
            let outcome = self.attempt(&attempt).await;
            let counts = self.stats.record(&outcome, begun.elapsed(), self.clock.now_ms());
            keep_stats(&self.store, &self.script.manifest.name, counts);
            outcome
        })
    }

    fn plan(&self) -> Option<Plan> {
        plan(&self.script.manifest)
    }
}

pub(super) fn plan(manifest: &Manifest) -> Option<Plan> {
    let schedule = manifest.schedule.clone()?;
    Some(Plan { expression: schedule.schedule, timezone: schedule.timezone })
}

/// Stands in for a skill that may not run, should an event reach it all the same.
pub struct Refuser {
    /// Why it may not.
    pub why: String,
    /// The skill.
    pub manifest: Arc<Manifest>,
}

impl Consumer for Refuser {
    fn deliver(&self, _: Attempt) -> Delivered<'_> {
        Box::pin(async { Outcome::Reject(Failure::new(self.why.clone())) })
    }

    fn plan(&self) -> Option<Plan> {
        plan(&self.manifest)
    }
}

impl Runner {
    async fn attempt(&self, attempt: &Attempt) -> Outcome {
        if let Err(failure) = check_content(&self.script.folder, &self.content, &self.on_change).await {
            return Outcome::Retry(failure, Some(Duration::from_secs(1)));
        }
        let (outcome, finished) = self.script.run(attempt).await;
        if let Some(finished) = finished {
            let log = tail(&finished);
            if !log.is_empty() {
                let name = &self.script.manifest.name;
                tracing::info!(skill = name, delivery = attempt.delivery_id, log, "Skill wrote to its log.");
            }
            self.stats.enforced(finished.enforced);
        }
        outcome
    }
}

/// Makes sure that what runs is what was loaded and trusted.
pub(super) async fn check_content(folder: &Path, content: &Content, on_change: &OnChange) -> Result<(), Failure> {
    let (path, loaded) = (folder.to_owned(), content.clone());
    let same = tokio::task::spawn_blocking(move || match folder::stamp(&path) {
        Ok(stamp) if stamp == loaded.stamp => Ok(true),
        Ok(_) => folder::read(&path).map(|now| now.digest == loaded.digest),
        Err(reason) => Err(reason),
    });
    match same.await {
        Ok(Ok(true)) => Ok(()),
        Ok(Ok(false)) => {
            on_change();
            Err(Failure::new("the skill's files are not the ones that were loaded; they are read again"))
        }
        Ok(Err(reason)) => Err(Failure::new("the skill's files cannot be checked").within(reason)),
        Err(error) => Err(Failure::new(error.to_string()).within("the skill's files cannot be checked")),
    }
}

/// Keeps the counts of a skill without holding up its delivery: they are queued before its end is, and so commit with it. What
/// cannot be kept now is in the next counts.
pub(super) fn keep_stats(store: &Store, name: &str, counts: records::Stats) {
    let (store, name) = (store.clone(), name.to_owned());
    tokio::spawn(async move {
        let kept = store.write(move |tx| records::keep_stats(tx, &name, &counts)).await;
        if let Err(error) = kept {
            tracing::debug!(%error, "The counts of a skill are not kept.");
        }
    });
}

impl Script {
    /// Runs the script once; gives what its end means, and what it left if it ran.
    pub async fn run(&self, attempt: &Attempt) -> (Outcome, Option<Finished>) {
        let work = match WorkFolder::make(&self.surroundings.work, attempt, &self.manifest, &self.surroundings.data) {
            Ok(work) => work,
            Err(failure) => return (Outcome::Retry(failure, None), None),
        };
        let ran = self.sandbox.run(self.spec(attempt, &work), attempt.cancel.clone()).await;
        // Removing many files takes a while; it must not hold up the others on this thread.
        let _removed = tokio::task::spawn_blocking(move || drop(work)).await;
        match ran {
            Ok(finished) => (judge(&finished, &self.manifest, &tail(&finished)), Some(finished)),
            Err(error @ SandboxError::Setup { .. }) => (Outcome::Retry(Failure::new(error.to_string()), None), None),
            Err(error) => (Outcome::Reject(Failure::new(error.to_string())), None),
        }
    }

    fn spec(&self, attempt: &Attempt, work: &WorkFolder) -> Spec {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let (surroundings, rights) = (&self.surroundings, &self.manifest.permissions);
        let env = [
            ("PATH", sandbox::PATH.to_owned()),
            ("LANG", "C.UTF-8".to_owned()),
            ("HOME", text(&work.0)),
            ("TMPDIR", text(&work.0)),
            ("AMAN_EVENT_ID", attempt.event.id()),
            ("AMAN_DELIVERY_ID", attempt.delivery_id.clone()),
            ("AMAN_ATTEMPT", attempt.number.to_string()),
            ("AMAN_SKILL_DIR", text(&self.folder)),
            ("AMAN_WORK_DIR", text(&work.0)),
            ("AMAN_DATA", text(&surroundings.data)),
            ("AMAN_BIN", text(&surroundings.binary)),
            // A skill's folder holds what was trusted and nothing that a run left there.
            ("PYTHONDONTWRITEBYTECODE", "1".to_owned()),
        ];
        let mut read = rights.read.clone();
        read.extend([self.folder.clone(), surroundings.binary.clone()]);
        Spec {
            argv: self.argv.clone(),
            dir: self.folder.clone(),
            env: env.map(|(name, value)| (name.to_owned(), value)).to_vec(),
            stdin: Bytes::from(attempt.event.to_json()),
            own: Some(work.0.clone()),
            read,
            write: rights.write.clone(),
            net: rights.net,
            limits: Limits { time: self.manifest.timeout, stderr_bytes_max: STDERR_BYTES_MAX, ..Limits::default() },
        }
    }
}

/// What an ended script means for its delivery.
fn judge(finished: &Finished, manifest: &Manifest, log: &str) -> Outcome {
    let failed = |what: String| {
        let mut failure = Failure::new(what);
        if !log.is_empty() {
            failure.chain.push(format!("stderr: {log}"));
        }
        failure
    };
    match finished.exit {
        Exit::Exited(0) => answer::read(&finished.stdout, &format!("skill/{}", manifest.name))
            .map_or_else(|why| Outcome::Reject(failed(why)), |effects: Effects| Outcome::Done(effects)),
        Exit::Exited(TRY_AGAIN) => {
            Outcome::Retry(failed("the script asks to be tried again (exit code 75)".to_owned()), None)
        }
        Exit::Exited(REJECT) => Outcome::Reject(failed("the script rejects the event (exit code 65)".to_owned())),
        Exit::Exited(code) => Outcome::Retry(failed(format!("the script failed with exit code {code}")), None),
        Exit::Signalled(signal) => Outcome::Retry(failed(format!("the script was ended by signal {signal}")), None),
        Exit::TimedOut => {
            let limit = manifest.timeout.as_secs_f64();
            let failure = failed(format!("the script took longer than its {limit} s and was ended"));
            Outcome::Retry(Failure { timed_out: true, ..failure }, None)
        }
        Exit::Cancelled => Outcome::Retry(failed("the script was ended before it was done".to_owned()), None),
        Exit::OutputTooLarge => Outcome::Reject(failed("stdout has more than 1 MiB".to_owned())),
    }
}

/// The end of standard error, without what could play tricks on a terminal.
pub fn tail(finished: &Finished) -> String {
    let from = finished.stderr.len().saturating_sub(STDERR_TAIL);
    let text = String::from_utf8_lossy(&finished.stderr[from..]);
    let visible = |c: &char| !c.is_control() || matches!(c, '\n' | '\t');
    let cut = if from > 0 { "… " } else { "" };
    let more = if finished.stderr_truncated { " … (more was not kept)" } else { "" };
    let text: String = text.trim().chars().filter(visible).collect();
    if text.is_empty() { text } else { format!("{cut}{text}{more}") }
}

/// A fresh folder for one attempt; it goes with everything in it when this is dropped.
struct WorkFolder(PathBuf);

impl WorkFolder {
    fn make(below: &Path, attempt: &Attempt, manifest: &Manifest, data: &Path) -> Result<WorkFolder, Failure> {
        let failed = |path: &Path| {
            let context = format!("the folder '{}' cannot be made", path.display());
            move |error: std::io::Error| Failure::new(error.to_string()).within(context)
        };
        let path = below.join(format!("{}-{}", attempt.delivery_id, attempt.number));
        clear::remove(&path).map_err(failed(&path))?;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(failed(&path))?;
        let work = WorkFolder(path);
        // A right to write below the data folder is a right to have a place there.
        for folder in manifest.permissions.write.iter().filter(|path| path.starts_with(data)) {
            if !folder.exists() {
                sandbox::make_folder(data, folder).map_err(std::io::Error::other).map_err(failed(folder))?;
            }
        }
        Ok(work)
    }
}

impl Drop for WorkFolder {
    fn drop(&mut self) {
        if let Err(error) = clear::remove(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "A work folder could not be removed.");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::Enforced;
    use crate::sandbox::Places;

    fn finished(exit: Exit, stdout: &str, stderr: &[u8]) -> Finished {
        Finished {
            exit,
            stdout: stdout.into(),
            stderr: stderr.into(),
            stderr_truncated: false,
            duration: Duration::ZERO,
            enforced: Enforced::default(),
        }
    }

    #[test]
    fn ends_are_judged() {
        let places = Places { home: None, data: "/d".into() };
        let text = "---\nname: a\ndescription: d\n---\n";
        let manifest = Manifest::parse(text, "a", &places).expect("good");
        let cases = [
            (Exit::Exited(0), "", "done", ""),
            (Exit::Exited(0), "{\"result\": 1}", "done", ""),
            (Exit::Exited(0), "{\"rslt\": 1}", "reject", "unknown field `rslt`"),
            (Exit::Exited(75), "", "retry", "75"),
            (Exit::Exited(65), "", "reject", "65"),
            (Exit::Exited(1), "{}", "retry", "exit code 1"),
            (Exit::Signalled(9), "", "retry", "signal 9"),
            (Exit::TimedOut, "", "retry", "30 s"),
            (Exit::Cancelled, "", "retry", "before it was done"),
            (Exit::OutputTooLarge, "", "reject", "1 MiB"),
        ];
        for (exit, stdout, expected, message) in cases {
            let (end, failure) = match judge(&finished(exit, stdout, b""), &manifest, "") {
                Outcome::Done(_) => ("done", None),
                Outcome::Retry(failure, _) => ("retry", Some(failure)),
                Outcome::Reject(failure) | Outcome::Buried(failure, _) => ("reject", Some(failure)),
                Outcome::Postponed(_) => ("postponed", None),
            };
            assert_eq!(end, expected, "{exit:?}");
            let said = failure.as_ref().map(|failure| failure.chain[0].clone()).unwrap_or_default();
            assert!(said.contains(message), "{exit:?}: {said}");
            assert_eq!(failure.is_some_and(|failure| failure.timed_out), exit == Exit::TimedOut);
        }
    }

    #[test]
    fn logs_are_cut_and_tamed() {
        assert_eq!(tail(&finished(Exit::Exited(1), "", b"\x1b[31mred\x07\n\xff\n")), "[31mred\n\u{fffd}");
        let long = [b"x".repeat(5000), b"end".to_vec()].concat();
        let kept = tail(&finished(Exit::Exited(1), "", &long));
        assert!(kept.starts_with("… x") && kept.ends_with("xend") && kept.len() < 4200, "{}", kept.len());
    }
}
