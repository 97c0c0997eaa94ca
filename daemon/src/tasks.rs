//! The daemon's background tasks: each has a name, ends when told, and is restarted with back-off when it fails.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde::Serialize;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::Error;

const RESTART_FIRST: Duration = Duration::from_secs(1);
const RESTART_MAX: Duration = Duration::from_secs(60);

/// How a task stands.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// `running`, `waiting` (to be restarted), `failed` (with the daemon's end) or `ended`.
    pub state: &'static str,
    /// How often it was started again.
    pub restarts: u32,
    /// Why it last failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Starts, watches and ends background tasks; cheap to clone.
#[derive(Clone, Default)]
pub struct Supervisor {
    stop: CancellationToken,
    tracker: TaskTracker,
    table: Arc<Mutex<BTreeMap<String, Status>>>,
}

impl Supervisor {
    /// A supervisor without tasks.
    pub fn new() -> Supervisor {
        Supervisor::default()
    }

    /// Cancelled when every task is to end.
    pub fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Starts a task. `make` is called for every start; the future ends with `Ok` once the stop token is cancelled or
    /// its work is done. One that fails or panics is started again after 1 s, then twice as long each time, up to 60 s.
    pub fn spawn<F, T>(&self, name: impl Into<String>, make: F)
    where
        F: Fn() -> T + Send + 'static,
        T: Future<Output = Result<(), Error>> + Send + 'static,
    {
        let (supervisor, name) = (self.clone(), name.into());
        supervisor.set(&name, "running", None, false);
        self.tracker.spawn(async move {
            let (mut wait, mut told) = (RESTART_FIRST, String::new());
            loop {
                let begun = std::time::Instant::now();
                let why = match tokio::spawn(make()).await {
                    Ok(Ok(())) => return supervisor.set(&name, "ended", None, false),
                    Ok(Err(error)) => error.chain().join(": "),
                    Err(panic) => panic.to_string(),
                };
                // What fails the same way again and again is said once.
                if told != why {
                    tracing::error!(task = name, error = why, "A background task failed.");
                    told.clone_from(&why);
                }
                if supervisor.stop.is_cancelled() {
                    return supervisor.set(&name, "failed", Some(why), false);
                }
                if begun.elapsed() > RESTART_MAX {
                    wait = RESTART_FIRST;
                }
                supervisor.set(&name, "waiting", Some(why.clone()), false);
                tokio::select! {
                    () = supervisor.stop.cancelled() => return,
                    () = tokio::time::sleep(wait) => {}
                }
                wait = (wait * 2).min(RESTART_MAX);
                supervisor.set(&name, "running", Some(why), true);
            }
        });
    }

    /// Every task by name.
    pub fn status(&self) -> BTreeMap<String, Status> {
        self.table().clone()
    }

    /// Tells every task to end and waits for them, at most `grace`. True when all ended.
    pub async fn end(&self, grace: Duration) -> bool {
        self.stop.cancel();
        self.tracker.close();
        tokio::time::timeout(grace, self.tracker.wait()).await.is_ok()
    }

    fn set(&self, name: &str, state: &'static str, error: Option<String>, restarted: bool) {
        let mut table = self.table();
        let status = table.entry(name.to_owned()).or_insert(Status { state, restarts: 0, error: None });
        status.state = state;
        status.error = error;
        status.restarts += u32::from(restarted);
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<String, Status>> {
        self.table.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
