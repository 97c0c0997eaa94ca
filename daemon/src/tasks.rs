//! The daemon's background tasks: each has a name, ends when told, and is restarted with back-off when it fails.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
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
    /// `running`, `waiting` (to be restarted) or `failed` (with the daemon's end). One that ended well is not shown.
    pub state: &'static str,
    /// How often it was started again.
    pub restarts: u32,
    /// Why it last failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Tells it from others that had its name before.
    #[serde(skip)]
    number: u64,
}

/// Starts, watches and ends background tasks; cheap to clone.
#[derive(Clone, Default)]
pub struct Supervisor {
    stop: CancellationToken,
    tracker: TaskTracker,
    table: Arc<Mutex<BTreeMap<String, Status>>>,
    /// Tasks so far.
    spawned: Arc<AtomicU64>,
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
        let number = self.spawned.fetch_add(1, Ordering::Relaxed);
        self.table().insert(name.clone(), Status { state: "running", restarts: 0, error: None, number });
        self.tracker.spawn(async move {
            let (mut wait, mut told) = (RESTART_FIRST, String::new());
            loop {
                let begun = std::time::Instant::now();
                let why = match tokio::spawn(make()).await {
                    Ok(Ok(())) => return supervisor.forget(&name, number),
                    Ok(Err(error)) => error.chain().join(": "),
                    Err(panic) => panic.to_string(),
                };
                // What fails the same way again and again is said once.
                if told != why {
                    tracing::error!(task = name, error = why, "A background task failed.");
                    told.clone_from(&why);
                }
                if supervisor.stop.is_cancelled() {
                    return supervisor.set(&name, number, "failed", why, false);
                }
                if begun.elapsed() > RESTART_MAX {
                    wait = RESTART_FIRST;
                }
                supervisor.set(&name, number, "waiting", why.clone(), false);
                tokio::select! {
                    () = supervisor.stop.cancelled() => return,
                    () = tokio::time::sleep(wait) => {}
                }
                wait = (wait * 2).min(RESTART_MAX);
                supervisor.set(&name, number, "running", why, true);
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

    /// Notes how task `number` stands, unless another has its name by now.
    fn set(&self, name: &str, number: u64, state: &'static str, error: String, restarted: bool) {
        if let Some(status) = self.table().get_mut(name).filter(|status| status.number == number) {
            status.state = state;
            status.error = Some(error);
            status.restarts += u32::from(restarted);
        }
    }

    fn forget(&self, name: &str, number: u64) {
        let mut table = self.table();
        if table.get(name).is_some_and(|status| status.number == number) {
            table.remove(name);
        }
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<String, Status>> {
        self.table.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
