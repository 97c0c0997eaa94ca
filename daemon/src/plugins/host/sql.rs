//! A plugin's private database: one user at a time, off the async threads, ended when nobody waits any more.

use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use aman_plugin_host::{Error as Refusal, Rows, Statement};
use tokio::sync::OwnedMutexGuard;

use super::convert::{refusal, rows, statement};
use super::{Api, Room};
use crate::error::Error;
use crate::store::private::{Private, Until};

/// How long the SQL of one call may run.
const TIME_MAX: Duration = Duration::from_secs(5);
/// How long a call waits for a handler of an event to be done with the database.
const TURN_WAIT: Duration = Duration::from_secs(2);

/// The right to use a private database alone. When it is dropped, a transaction that was not ended leaves no trace.
pub(super) struct Session {
    room: Arc<Room>,
    quota: u64,
    open: OwnedMutexGuard<Option<Private>>,
}

impl Session {
    /// Opens the database if it is not; blocks.
    fn database(&mut self) -> Result<&mut Private, Error> {
        if self.open.is_none() {
            if let Some(folder) = self.room.sql_file.parent() {
                let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
                made.map_err(Error::internal("making the folder of plugins' databases"))?;
            }
            *self.open = Some(Private::open(&self.room.sql_file, self.quota)?);
        }
        let private = self.open.as_mut().expect("it was opened above");
        private.set_quota(self.quota)?;
        Ok(private)
    }

    /// True while a transaction of several calls goes on.
    pub fn is_begun(&self) -> bool {
        self.open.as_ref().is_some_and(Private::is_begun)
    }

    /// Runs `work` where it may block, and hands the session back. When nobody waits for it any more its SQL ends.
    pub async fn run<R: Send + 'static>(
        mut self,
        api: &Api,
        work: impl FnOnce(&mut Private, &Until) -> Result<R, Error> + Send + 'static,
    ) -> Result<(Session, Result<R, Error>), Error> {
        let until = Until { deadline: Instant::now() + TIME_MAX, cancelled: Arc::default() };
        let _awaited = Awaited(Arc::clone(&until.cancelled));
        let blocking = api.services.inner.runtime.spawn_blocking(move || {
            let done = self.database().and_then(|private| work(private, &until));
            (self, done)
        });
        blocking.await.map_err(Error::internal("working with the private database of a plugin"))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(private) = self.open.as_ref() {
            private.roll_back();
        }
    }
}

/// Tells the SQL when the one who waits for it is gone.
struct Awaited(Arc<AtomicBool>);

impl Drop for Awaited {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Api {
    pub(super) fn sql_quota(&self) -> Result<u64, Refusal> {
        self.manifest.permissions.sql.ok_or_else(|| Refusal::Denied("the manifest does not ask for sql".to_owned()))
    }

    /// Waits for the turn of whoever asks.
    pub(super) async fn session(&self, quota: u64) -> Session {
        let open = Arc::clone(&self.room.sql).lock_owned().await;
        Session { room: Arc::clone(&self.room), quota, open }
    }

    async fn now<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Private, &Until) -> Result<R, Error> + Send + 'static,
    ) -> Result<R, Refusal> {
        let quota = self.sql_quota()?;
        let busy = |_| Error::Busy {
            code: "storage",
            what: "A handler of events uses the plugin's database.".to_owned(),
            retry_after_ms: 1000,
        };
        let session = tokio::time::timeout(TURN_WAIT, self.session(quota)).await.map_err(busy).map_err(refusal)?;
        let (_session, done) = session.run(self, work).await.map_err(refusal)?;
        done.map_err(refusal)
    }

    /// Statements outside of a delivery: on disk when it returns.
    pub(super) async fn execute_now(&self, statements: Vec<Statement>) -> Result<Vec<u64>, Refusal> {
        let statements: Vec<_> = statements.into_iter().map(statement).collect();
        self.now(move |private, until| private.execute(&statements, until)).await
    }

    /// As [`Api::execute_now`], for what returns rows.
    pub(super) async fn query_now(&self, query: Statement) -> Result<Rows, Refusal> {
        let query = statement(query);
        self.now(move |private, until| private.query(&query, until)).await.map(rows)
    }
}
