//! When to look again: a one-shot of `tokio-cron-scheduler` for the next due slot.
//!
//! It is a wake-up and nothing else: what is due is decided from the ledger and the clock, so an activation that comes
//! twice, early or never costs nothing but time. It compares with the wall clock every 500 ms, so that a clock that jumps,
//! or a machine that was suspended, is noticed at once. It is started with the first job.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_cron_scheduler::{Job, JobScheduler, JobSchedulerError};

use crate::clock::Millis;

/// How long the scheduler may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) struct Wake {
    scheduler: Option<JobScheduler>,
    armed: Option<(uuid::Uuid, Millis)>,
    hint: Arc<Notify>,
}

impl Wake {
    /// Nothing runs yet; `hint` is told when it is time to look.
    pub fn new(hint: Arc<Notify>) -> Wake {
        Wake { scheduler: None, armed: None, hint }
    }

    /// Sets when to look next; none = not by time.
    pub async fn arm(&mut self, due_ms: Option<Millis>, now_ms: Millis) {
        if let Some((_, armed_ms)) = self.armed
            && due_ms == Some(armed_ms)
            && armed_ms > now_ms
        {
            return;
        }
        match tokio::time::timeout(PATIENCE, self.rearm(due_ms, now_ms)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "The wake-up for cron jobs does not work; they may run late."),
            Err(_) => tracing::warn!("The wake-up for cron jobs does not answer; they may run late."),
        }
    }

    async fn rearm(&mut self, due_ms: Option<Millis>, now_ms: Millis) -> Result<(), JobSchedulerError> {
        if let (Some((id, armed_ms)), Some(scheduler)) = (self.armed.take(), &self.scheduler)
            && armed_ms > now_ms
        {
            scheduler.remove(&id).await?;
        }
        let Some(due_ms) = due_ms else { return Ok(()) };
        let scheduler = match &self.scheduler {
            Some(scheduler) => scheduler,
            None => {
                let scheduler = JobScheduler::new().await?;
                scheduler.start().await?;
                self.scheduler.insert(scheduler)
            }
        };
        // The scheduler adds whole seconds to the whole second of now: from there to the second that is not too early.
        let wait_s = (due_ms + 999).div_euclid(1000) - now_ms.div_euclid(1000);
        let wait = Duration::from_secs(u64::try_from(wait_s).unwrap_or(0));
        let hint = Arc::clone(&self.hint);
        let shot = Job::new_one_shot(wait, move |_, _| hint.notify_one())?;
        let id = scheduler.add(shot).await?;
        self.armed = Some((id, due_ms));
        Ok(())
    }

    /// Ends the polling.
    pub async fn end(mut self) {
        if let Some(mut scheduler) = self.scheduler.take() {
            let _ended = scheduler.shutdown().await;
        }
    }
}
