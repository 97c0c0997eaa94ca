//! A delivery or a poll: its effects are staged, and commit with its end.
//!
//! SQL is the exception, since it changes a file of its own. All of it is one transaction that also stores what else the
//! call asked for, and commits first. When the daemon dies before the rest commits, the next attempt finds that row and
//! ends with what it holds; the guest is not called again.

use std::mem;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError};

use aman_plugin_host::{
    AgentDefinition, AgentShown, AgentStored, Caller, Error as Refusal, HostApi, Instance, KvChange, KvPage, Level,
    MessagePage, Metric, NewEvent as Sent, NewInstance, NewSession, NewTurn, Notification, OutgoingRequest,
    OutgoingResponse, Polled, Reply, Rows, Session as Talk, SessionPage, SignalEvent, Staged, Started, Statement,
    TurnAnswer, TurnFrames, TurnInfo, Words,
};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::agents::{Within, name_of};
use super::convert::{change_of, refusal, rows, statement};
use super::sql::Session;
use super::{Api, acts};
use crate::bus::{NewNotification, StateWrite, Wanted};
use crate::error::Error;
use crate::event::{Event, NewEvent};
use crate::id::DeliveryId;
use crate::store::Tx;
use crate::store::plugin_data::{self, Change};
use crate::store::private::{self, Private, Until};
use crate::store::workflows::{self, Change as InstanceChange};
use crate::telemetry::traces::{self, Context};

/// What a plugin is called for.
#[derive(Debug, Clone)]
pub enum Work {
    /// An event.
    Delivery {
        /// Number of the delivery.
        number: DeliveryId,
        /// Its id.
        id: String,
        /// What is delivered.
        event: Arc<Event>,
    },
    /// News of a source.
    Poll {
        /// Id of the source.
        source: String,
        /// Counts the polls that ended well; raised in the transaction that stores the poll's cursor.
        number: u64,
    },
}

impl Work {
    fn key(&self) -> (String, i64) {
        match self {
            Work::Delivery { number, id, .. } => (id.clone(), number.0),
            Work::Poll { source, number } => (format!("poll/{source}"), i64::try_from(*number).unwrap_or(i64::MAX)),
        }
    }

    /// The event that what is asked for in it is due to.
    fn cause(&self) -> Option<&Arc<Event>> {
        match self {
            Work::Delivery { event, .. } => Some(event),
            Work::Poll { .. } => None,
        }
    }
}

/// How far some work is.
pub enum Begun {
    /// The guest is to be called with this.
    Fresh(Arc<Staging>),
    /// The guest has done it before a crash; only this is left to be done.
    Settled(Ready),
}

/// Everything that commits with the end of some work.
pub struct Ready {
    /// Events: what was staged, then what a poll found.
    pub publish: Vec<NewEvent>,
    /// What the person is told.
    pub notify: Vec<NewNotification>,
    /// Changes of the plugin's keys and of instances of workflows.
    pub state: Option<StateWrite>,
    /// What the next poll gets.
    pub cursor: Option<String>,
    /// When to poll next, in milliseconds.
    pub next_ms: Option<u64>,
}

/// [`Ready`] as it is kept with SQL that was committed.
#[derive(Serialize, Deserialize)]
struct Kept {
    publish: Vec<NewEvent>,
    changes: Vec<Change>,
    #[serde(default)]
    acts: Acts,
    cursor: Option<String>,
    next_ms: Option<u64>,
}

/// What was asked of workflows and of the person.
#[derive(Default, Serialize, Deserialize)]
struct Acts {
    instances: Vec<InstanceChange>,
    notify: Vec<NewNotification>,
}

impl Acts {
    /// The instance that this work starts with the same key.
    fn started(&self, workflow: &str, key: Option<&String>) -> Option<Started> {
        let key = Some(key?);
        self.instances.iter().find_map(|change| match change {
            InstanceChange::Start(row) if row.workflow == workflow && row.dedup.as_ref() == key => {
                Some(Started { id: row.id.clone(), is_new: false })
            }
            _ => None,
        })
    }
}

/// The daemon as a plugin sees it during one delivery or poll.
pub struct Staging {
    api: Arc<Api>,
    work: Work,
    sql: Mutex<Sql>,
    acts: Mutex<Acts>,
    /// Sessions and turns that it asked for: a number for each, the same when the work is done again.
    asked: AtomicU32,
    /// What was published, in order.
    events: std::sync::Mutex<Vec<NewEvent>>,
    /// The attempt that this is part of, if its trace is collected: calls come from another runtime.
    context: Option<Context>,
}

enum Sql {
    /// The manifest does not ask for it.
    None,
    /// Its turn, from the beginning of the work on: handlers of a plugin with a database run one at a time.
    Turn(Session),
    /// SQLite undid the transaction, or a call was cut off: what comes now would be half of it.
    Lost,
    Over,
}

fn lost() -> Error {
    Error::conflict("invalid_state", "the transaction was undone after an error; end the call, it will be tried again")
}

impl Api {
    /// Begins a delivery or a poll. An error means that it can be tried again later.
    pub async fn begin(self: &Arc<Api>, work: Work) -> Result<Begun, Error> {
        let mut sql = Sql::None;
        if let Some(quota) = self.manifest.permissions.sql {
            let (key, number) = work.key();
            let look = move |private: &mut Private, _: &Until| private.settled(&key, number);
            let (session, kept) = self.session(quota).await.run(self, look).await?;
            if let Some(kept) = kept? {
                let mut kept: Kept =
                    serde_json::from_slice(&kept).map_err(Error::internal("reading what a plugin asked for"))?;
                drop(session);
                let instances = mem::take(&mut kept.acts.instances);
                let untaken = move |conn: &_| workflows::untaken(conn, instances);
                kept.acts.instances = self.bus().store().read(untaken).await?;
                return Ok(Begun::Settled(self.ready(kept, Before::Sql(None)).await));
            }
            sql = Sql::Turn(session);
        }
        let (api, sql, context) = (Arc::clone(self), Mutex::new(sql), traces::current());
        let (acts, asked, events) = (Mutex::default(), AtomicU32::default(), std::sync::Mutex::default());
        Ok(Begun::Fresh(Arc::new(Staging { api, work, sql, acts, asked, events, context })))
    }

    /// What is to commit with the end of the work.
    async fn ready(&self, kept: Kept, before: Before) -> Ready {
        let Kept { publish, changes, acts: Acts { instances, notify }, cursor, next_ms } = kept;
        let mut state: Option<StateWrite> = None;
        if !(changes.is_empty() && instances.is_empty()) {
            let instances = match &before {
                Before::Nothing => self.bus().change_instances(instances),
                // The guest is not asked again.
                Before::Sql(_) => self.bus().change_instances_at_last(&self.source(), instances).await,
            };
            let gate = match before {
                Before::Sql(Some(gate)) => gate,
                _ => Gate::Shared { _open: Arc::clone(&self.room.gate).read_owned().await },
            };
            let (plugin, quota) = (self.room.plugin.clone(), self.manifest.permissions.kv.unwrap_or(0));
            state = Some(Box::new(move |tx: &mut Tx<'_>| {
                let _gate = gate;
                plugin_data::change(tx, &plugin, &changes, quota)?;
                instances(tx)
            }));
        }
        Ready { publish, notify, state, cursor, next_ms }
    }
}

/// What of some work is committed before the rest.
enum Before {
    Nothing,
    /// Its SQL; the gate is held until the rest has followed.
    Sql(Option<Gate>),
}

/// Held until changes of keys commit.
enum Gate {
    Shared { _open: tokio::sync::OwnedRwLockReadGuard<()> },
    Alone { _closed: tokio::sync::OwnedRwLockWriteGuard<()> },
}

impl Staging {
    /// Ends the work well: what it asked for is checked, and its SQL commits. Whatever is not committed when the work is
    /// dropped never was.
    ///
    /// An error means that the attempt failed without a trace: an event that breaks a rule, a full room, a swap that was
    /// lost, a database that takes nothing.
    pub async fn commit(&self, staged: Staged, polled: Option<Polled>) -> Result<Ready, Error> {
        let acts = mem::take(&mut *self.acts.lock().await);
        let (kept, api) = (self.kept(staged, acts, polled)?, &self.api);
        let session = match mem::replace(&mut *self.sql.lock().await, Sql::Over) {
            Sql::None => return Ok(api.ready(kept, Before::Nothing).await),
            Sql::Turn(session) => session,
            Sql::Lost | Sql::Over => return Err(lost()),
        };
        if !session.is_begun() {
            drop(session);
            return Ok(api.ready(kept, Before::Nothing).await);
        }
        let gate = self.close_gate(&kept).await?;
        let store = api.bus().store();
        let (session, old) = session.run(api, |private, _| private.old_deliveries()).await?;
        let old = old?;
        let over = if old.is_empty() { old } else { store.read(move |conn| private::over(conn, &old)).await? };
        let effects = serde_json::to_vec(&kept).map_err(Error::internal("keeping what a plugin asked for"))?;
        let ((key, number), now_ms) = (self.work.key(), api.bus().clock().now_ms());
        let settle = move |private: &mut Private, _: &Until| {
            private.forget(&over)?;
            private.settle(&key, number, &effects, now_ms)
        };
        let (session, done) = session.run(api, settle).await?;
        drop(session);
        done?;
        Ok(api.ready(kept, Before::Sql(gate)).await)
    }

    /// Once the SQL is committed the rest must succeed: what could prevent that waits from now on.
    async fn close_gate(&self, kept: &Kept) -> Result<Option<Gate>, Error> {
        if kept.changes.is_empty() && kept.acts.instances.is_empty() {
            return Ok(None);
        }
        let (api, changes, instances) = (&self.api, kept.changes.clone(), kept.acts.instances.clone());
        let gate = Gate::Alone { _closed: Arc::clone(&api.room.gate).write_owned().await };
        let (plugin, quota) = (api.room.plugin.clone(), api.manifest.permissions.kv.unwrap_or(0));
        // By the writer, since whoever had the gate before may not have committed yet.
        let check = move |tx: &mut Tx<'_>| {
            plugin_data::check(tx, &plugin, &changes, quota)?;
            workflows::check(tx, &instances)
        };
        api.bus().store().write(check).await?;
        Ok(Some(gate))
    }

    fn kept(&self, staged: Staged, acts: Acts, polled: Option<Polled>) -> Result<Kept, Error> {
        let (cursor, next_ms) = polled.as_ref().map_or((None, None), |it| (it.cursor.clone(), it.next_ms));
        let mut publish = mem::take(&mut *self.events());
        for (n, event) in polled.into_iter().flat_map(|polled| polled.events).enumerate() {
            let refused = |why: Refusal| Error::invalid(format!("events/{n}"), Words(&why).to_string());
            publish.push(self.api.new_event(event).map_err(refused)?);
        }
        Ok(Kept { publish, changes: staged.kv.into_iter().map(change_of).collect(), acts, cursor, next_ms })
    }

    /// What is asked of agents next in this work. Should the work be done again and ask the same in the same order, it finds
    /// what was made the first time.
    fn within(&self, what: &str) -> Within<'_> {
        let (key, number) = self.work.key();
        let asked = self.asked.fetch_add(1, Ordering::Relaxed);
        Within { cause: self.work.cause(), key: Some(format!("{key}/{number}/{asked}\n{what}")) }
    }

    fn events(&self) -> std::sync::MutexGuard<'_, Vec<NewEvent>> {
        // Nothing panics while it is held.
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks a start and keeps it. One with the same key may be there already, or among what is kept.
    async fn keep_start(&self, caller: &Caller, wants: NewInstance) -> Result<Started, Refusal> {
        let mut wanted = self.api.new_instance(caller, wants, self.work.cause())?;
        wanted.span = self.context.as_ref().and_then(Context::span);
        let mut acts = self.acts.lock().await;
        let before = match acts.started(&wanted.workflow, wanted.dedup.as_ref()) {
            Some(started) => Some(started),
            None => self.api.started_before(&wanted).await?,
        };
        if let Some(started) = before {
            return Ok(started);
        }
        let (id, change) = self.api.prepared_start(wanted).await?;
        acts.instances.push(change);
        Ok(Started { id, is_new: true })
    }

    /// Checks a signal and keeps it.
    async fn keep_signal(&self, caller: &Caller, id: &str, event: SignalEvent) -> Result<(), Refusal> {
        let signal = self.api.new_signal(caller, id, event, self.work.cause()).await?;
        let change = self.api.prepared(Wanted::Signal(signal)).await?;
        self.acts.lock().await.instances.push(change);
        Ok(())
    }

    /// Checks a notification and keeps it.
    async fn keep_notification(&self, sent: Notification) -> Result<(), Refusal> {
        self.api.may_notify()?;
        let notification = acts::notification(sent)?;
        self.acts.lock().await.notify.push(notification);
        Ok(())
    }

    /// Runs SQL within the one transaction of the work.
    async fn in_sql<R: Send + 'static>(
        &self,
        run: impl FnOnce(&mut Private, &Until) -> Result<R, Error> + Send + 'static,
    ) -> Result<R, Refusal> {
        self.api.sql_quota()?;
        let mut sql = self.sql.lock().await;
        // Whatever happens now, even the end of this future, must not let half of a transaction pass for all of it.
        let session = match mem::replace(&mut *sql, Sql::Lost) {
            Sql::Turn(session) => session,
            Sql::None | Sql::Lost | Sql::Over => return Err(refusal(lost())),
        };
        let run = move |private: &mut Private, until: &Until| {
            if !private.is_begun() {
                private.begin()?;
            }
            run(private, until)
        };
        let (session, done) = session.run(&self.api, run).await.map_err(refusal)?;
        if session.is_begun() {
            *sql = Sql::Turn(session);
        }
        done.map_err(refusal)
    }
}

fn never() -> Refusal {
    Refusal::Internal("a staged call changes nothing directly".to_owned())
}

impl HostApi for Staging {
    fn check_publish(&self, event: &Sent) -> Result<(), Refusal> {
        self.api.check_publish(event)
    }

    fn stage_publish(&self, event: Sent) -> Result<(), Refusal> {
        let event = self.api.new_event(event)?;
        self.events().push(event);
        Ok(())
    }

    fn publish<'a>(&'a self, _caller: &'a Caller, _event: Sent) -> Reply<'a, String> {
        Box::pin(async { Err(never()) })
    }

    fn kv_get<'a>(&'a self, key: &'a str) -> Reply<'a, Option<Vec<u8>>> {
        self.api.kv_get(key)
    }

    fn kv_list<'a>(&'a self, prefix: &'a str, after: Option<&'a str>, limit: u32) -> Reply<'a, KvPage> {
        self.api.kv_list(prefix, after, limit)
    }

    fn kv_change<'a>(&'a self, _change: KvChange) -> Reply<'a, bool> {
        Box::pin(async { Err(never()) })
    }

    fn sql_execute<'a>(&'a self, statements: Vec<Statement>) -> Reply<'a, Vec<u64>> {
        let statements: Vec<_> = statements.into_iter().map(statement).collect();
        Box::pin(self.in_sql(move |private, until| private.execute(&statements, until)))
    }

    fn sql_query<'a>(&'a self, query: Statement) -> Reply<'a, Rows> {
        let query = statement(query);
        Box::pin(async move { self.in_sql(move |private, until| private.query(&query, until)).await.map(rows) })
    }

    fn http_send<'a>(&'a self, caller: &'a Caller, request: OutgoingRequest) -> Reply<'a, OutgoingResponse> {
        match &self.context {
            Some(context) => Box::pin(self.api.send(request, Some(context.clone()))),
            None => self.api.http_send(caller, request),
        }
    }

    fn workflow_start<'a>(&'a self, caller: &'a Caller, instance: NewInstance) -> Reply<'a, Started> {
        Box::pin(self.keep_start(caller, instance))
    }

    fn workflow_signal<'a>(&'a self, caller: &'a Caller, id: &'a str, event: SignalEvent) -> Reply<'a, ()> {
        Box::pin(self.keep_signal(caller, id, event))
    }

    fn notify<'a>(&'a self, _caller: &'a Caller, notification: Notification) -> Reply<'a, ()> {
        Box::pin(self.keep_notification(notification))
    }

    fn workflow_read<'a>(&'a self, id: &'a str) -> Reply<'a, Instance> {
        self.api.workflow_read(id)
    }

    fn agents_list<'a>(&'a self, caller: &'a Caller) -> Reply<'a, Vec<AgentShown>> {
        self.api.agents_list(caller)
    }

    fn agent_read<'a>(&'a self, caller: &'a Caller, id: &'a str) -> Reply<'a, AgentDefinition> {
        self.api.agent_read(caller, id)
    }

    fn agent_put<'a>(&'a self, caller: &'a Caller, id: &'a str, definition: &'a str) -> Reply<'a, AgentStored> {
        Box::pin(self.api.put_agent(caller, (id, definition), self.work.cause()))
    }

    fn agent_remove<'a>(&'a self, caller: &'a Caller, id: &'a str) -> Reply<'a, ()> {
        self.api.agent_remove(caller, id)
    }

    fn chat_create<'a>(&'a self, caller: &'a Caller, session: NewSession) -> Reply<'a, Talk> {
        let within = self.within(session.agent.as_deref().unwrap_or_default());
        Box::pin(self.api.create_session(caller, session, within))
    }

    fn chat_list<'a>(
        &'a self,
        caller: &'a Caller,
        agent: Option<String>,
        after: Option<String>,
        limit: u32,
    ) -> Reply<'a, SessionPage> {
        self.api.chat_list(caller, agent, after, limit)
    }

    fn chat_read<'a>(&'a self, caller: &'a Caller, session: &'a str) -> Reply<'a, Talk> {
        self.api.chat_read(caller, session)
    }

    fn chat_history<'a>(
        &'a self,
        caller: &'a Caller,
        session: &'a str,
        after: Option<String>,
        limit: u32,
    ) -> Reply<'a, MessagePage> {
        self.api.chat_history(caller, session, after, limit)
    }

    fn chat_turn<'a>(&'a self, caller: &'a Caller, turn: NewTurn) -> Reply<'a, TurnAnswer> {
        let within = self.within(&name_of(&turn));
        Box::pin(self.api.take_turn(caller, turn, within))
    }

    fn chat_stream<'a>(&'a self, caller: &'a Caller, turn: NewTurn) -> Reply<'a, (TurnInfo, Box<dyn TurnFrames>)> {
        let within = self.within(&name_of(&turn));
        Box::pin(self.api.watch_turn(caller, turn, within))
    }

    fn chat_stop<'a>(&'a self, caller: &'a Caller, session: &'a str) -> Reply<'a, bool> {
        self.api.chat_stop(caller, session)
    }

    fn chat_delete<'a>(&'a self, caller: &'a Caller, session: &'a str) -> Reply<'a, ()> {
        self.api.chat_delete(caller, session)
    }

    fn settings(&self) -> Vec<(String, String)> {
        self.api.settings()
    }

    fn setting(&self, key: &str) -> Option<String> {
        self.api.setting(key)
    }

    fn log(&self, caller: &Caller, level: Level, message: &str, fields: &[(String, String)]) {
        self.api.log(caller, level, message, fields);
    }

    fn metric(&self, name: &str, change: Metric, labels: &[(String, String)]) -> Result<(), Refusal> {
        self.api.metric(name, change, labels)
    }

    fn now_ms(&self) -> u64 {
        self.api.now_ms()
    }
}
