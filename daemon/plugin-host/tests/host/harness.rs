//! A host with a folder of its own, and the daemon's part played by [`Fake`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aman_plugin_host::{
    AgentDefinition, AgentShown, AgentStored, Artifact, Caller, Error, Event, Fault, Grants, Host, HostApi, Instance,
    KvChange, KvPage, Level, Limits, MessagePage, Metric, NewEvent, NewInstance, NewSession, NewTurn, Notification,
    OutgoingRequest, OutgoingResponse, Plugin, Priority, Reply, Request, Rows, Session, SessionPage, Setup,
    SignalEvent, SqlValue, Started, Statement, Status, Trust, TurnAnswer, TurnFrames, TurnInfo,
};

use crate::guest::Guest;

/// No call of a test takes longer, however busy the machine is.
pub const LONG: Duration = Duration::from_secs(60);

/// All permissions.
pub const ALL: Grants = Grants {
    publish: true,
    kv: true,
    sql: true,
    http: true,
    workflows: true,
    notify: true,
    agents_read: true,
    agents_manage: true,
    chat: true,
};

/// What is asked of the fake's agents: it has none.
fn nobody<'a, T>() -> Reply<'a, T> {
    Box::pin(async { Err(Error::NotFound("there are no agents here".to_owned())) })
}

/// The end of a name that makes this test binary the compiler; see `compile::compile_child`.
const COMPILER: [&str; 3] = ["compile::compile_child", "--exact", "--nocapture"];

/// A host whose compiler is this test binary.
pub struct Bench {
    pub host: Host,
    pub folder: PathBuf,
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _removed = std::fs::remove_dir_all(&self.folder);
    }
}

impl Bench {
    pub fn new() -> Bench {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("aman-host-{}-{number}", std::process::id()));
        let program = std::env::current_exe().expect("a test knows its program");
        let compiler = std::iter::once(program.into()).chain(COMPILER.map(Into::into)).collect();
        Bench { host: Host::new(folder.clone(), compiler), folder }
    }

    pub async fn compile(&self, guest: &Guest) -> Artifact {
        self.host.compile(&guest.component()).await.expect("the guest compiles")
    }

    pub fn load(&self, artifact: Artifact, grants: Grants, limits: Limits) -> Result<Plugin, Fault> {
        self.host.load(Setup { name: "test".to_owned(), version: "1.2.3".to_owned(), artifact, grants, limits })
    }

    /// Compiles and loads a guest with all permissions.
    pub async fn plugin(&self, guest: &Guest, limits: Limits) -> Plugin {
        let artifact = self.compile(guest).await;
        self.load(artifact, ALL, limits).expect("the guest can be loaded")
    }
}

/// Limits for guests that are to run into them.
pub fn tight() -> Limits {
    Limits {
        memory_bytes: 16 << 20,
        time: Duration::from_millis(300),
        wait: Duration::from_millis(500),
        max_instances: 2,
        output_bytes: 1 << 20,
        ..Limits::default()
    }
}

/// Somebody who calls.
pub fn caller() -> Caller {
    Caller {
        principal: "owner".to_owned(),
        trust: Trust::Owner,
        trace_id: "0123456789abcdef0123456789abcdef".to_owned(),
        extensions: Vec::new(),
    }
}

pub fn request() -> Request {
    Request {
        method: "GET".to_owned(),
        route: "/things/{id}".to_owned(),
        path: "/things/7".to_owned(),
        params: vec![("id".to_owned(), "7".to_owned())],
        query: Some("a=b".to_owned()),
        headers: vec![("accept".to_owned(), "text/plain".to_owned())],
        body: b"body".to_vec(),
        caller: caller(),
        extensions: Vec::new(),
    }
}

pub fn event() -> Event {
    Event {
        id: "e1".to_owned(),
        source: "files/inbox".to_owned(),
        type_: "file.created".to_owned(),
        time: "2026-01-31T08:00:00Z".to_owned(),
        subject: None,
        data_content_type: None,
        data: Some(b"{}".to_vec()),
        sequence: 1,
        trace_id: caller().trace_id,
        correlation_id: None,
        causation_id: None,
        trust: Trust::Owner,
        priority: Priority::Normal,
        delivery: aman_plugin_host::Delivery::AtLeastOnce,
        expiry_time: None,
        agent_id: None,
        partition_key: None,
        attributes: Vec::new(),
        extensions: Vec::new(),
    }
}

/// The daemon's part, in memory. It may be asked by many instances at once.
#[derive(Default)]
pub struct Fake {
    pub kv: Mutex<BTreeMap<String, Vec<u8>>>,
    pub published: Mutex<Vec<NewEvent>>,
    pub lines: Mutex<Vec<String>>,
    pub metrics: Mutex<Vec<String>>,
    pub staged: Mutex<Vec<NewEvent>>,
    /// Outgoing requests that began, and how many of them were dropped before their end.
    pub sent: AtomicUsize,
    pub cut_off: AtomicUsize,
}

impl Fake {
    pub fn new() -> Arc<Fake> {
        Arc::default()
    }
}

/// Counts an outgoing request that is dropped before it ended.
struct Sending<'a> {
    fake: &'a Fake,
    is_done: bool,
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            self.fake.cut_off.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl HostApi for Fake {
    fn check_publish(&self, event: &NewEvent) -> Result<(), Error> {
        if event.type_.starts_with("test.") { Ok(()) } else { Err(Error::Denied(format!("type {}", event.type_))) }
    }

    fn stage_publish(&self, event: NewEvent) -> Result<(), Error> {
        self.check_publish(&event)?;
        self.staged.lock().expect("nobody panics with it").push(event);
        Ok(())
    }

    fn publish<'a>(&'a self, _caller: &'a Caller, event: NewEvent) -> Reply<'a, String> {
        Box::pin(async move {
            self.check_publish(&event)?;
            self.published.lock().expect("nobody panics with it").push(event);
            Ok("id".to_owned())
        })
    }

    fn kv_get<'a>(&'a self, key: &'a str) -> Reply<'a, Option<Vec<u8>>> {
        Box::pin(async move { Ok(self.kv.lock().expect("nobody panics with it").get(key).cloned()) })
    }

    fn kv_list<'a>(&'a self, prefix: &'a str, after: Option<&'a str>, limit: u32) -> Reply<'a, KvPage> {
        Box::pin(async move {
            let kv = self.kv.lock().expect("nobody panics with it");
            let here =
                kv.keys().filter(|key| key.starts_with(prefix) && after.is_none_or(|after| key.as_str() > after));
            let mut keys: Vec<String> = here.take(limit as usize + 1).cloned().collect();
            let next = (keys.len() > limit as usize).then(|| {
                keys.pop();
                keys.last().cloned().unwrap_or_default()
            });
            Ok(KvPage { keys, next })
        })
    }

    fn kv_change<'a>(&'a self, change: KvChange) -> Reply<'a, bool> {
        Box::pin(async move {
            let mut kv = self.kv.lock().expect("nobody panics with it");
            match change {
                KvChange::Set { key, value } => drop(kv.insert(key, value)),
                KvChange::Delete { key } => drop(kv.remove(&key)),
                KvChange::Swap { key, expected, value } => {
                    if kv.get(&key) != expected.as_ref() {
                        return Ok(false);
                    }
                    kv.insert(key, value);
                }
            }
            Ok(true)
        })
    }

    fn sql_execute<'a>(&'a self, statements: Vec<Statement>) -> Reply<'a, Vec<u64>> {
        Box::pin(async move { Ok(statements.iter().map(|statement| statement.params.len() as u64).collect()) })
    }

    fn sql_query<'a>(&'a self, statement: Statement) -> Reply<'a, Rows> {
        Box::pin(async move { Ok(Rows { columns: vec![statement.sql], rows: vec![vec![SqlValue::Integer(1)]] }) })
    }

    /// Answers the method; `HANG` never ends.
    fn http_send<'a>(&'a self, _caller: &'a Caller, request: OutgoingRequest) -> Reply<'a, OutgoingResponse> {
        Box::pin(async move {
            self.sent.fetch_add(1, Ordering::SeqCst);
            let mut sending = Sending { fake: self, is_done: false };
            if request.method == "HANG" {
                std::future::pending::<()>().await;
            }
            sending.is_done = true;
            let body = request.method.into_bytes();
            Ok(OutgoingResponse { status: 200, headers: request.headers, body, extensions: Vec::new() })
        })
    }

    /// The id is the key.
    fn workflow_start<'a>(&'a self, _caller: &'a Caller, instance: NewInstance) -> Reply<'a, Started> {
        Box::pin(async move { Ok(Started { id: instance.dedup_key.unwrap_or_default(), is_new: true }) })
    }

    fn workflow_signal<'a>(&'a self, _caller: &'a Caller, _id: &'a str, _event: SignalEvent) -> Reply<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn notify<'a>(&'a self, _caller: &'a Caller, notification: Notification) -> Reply<'a, ()> {
        self.lines.lock().expect("nobody panics with it").push(notification.title);
        Box::pin(async { Ok(()) })
    }

    fn workflow_read<'a>(&'a self, id: &'a str) -> Reply<'a, Instance> {
        let instance = Instance {
            id: id.to_owned(),
            workflow: "w".to_owned(),
            status: Status::Waiting,
            input: "null".to_owned(),
            output: None,
            error: None,
            created_ms: 1,
            updated_ms: 2,
            extensions: Vec::new(),
        };
        Box::pin(async { Ok(instance) })
    }

    fn agents_list<'a>(&'a self, _caller: &'a Caller) -> Reply<'a, Vec<AgentShown>> {
        nobody()
    }

    fn agent_read<'a>(&'a self, _caller: &'a Caller, _id: &'a str) -> Reply<'a, AgentDefinition> {
        nobody()
    }

    fn agent_put<'a>(&'a self, _caller: &'a Caller, _id: &'a str, _text: &'a str) -> Reply<'a, AgentStored> {
        nobody()
    }

    fn agent_remove<'a>(&'a self, _caller: &'a Caller, _id: &'a str) -> Reply<'a, ()> {
        nobody()
    }

    fn chat_create<'a>(&'a self, _caller: &'a Caller, _session: NewSession) -> Reply<'a, Session> {
        nobody()
    }

    fn chat_list<'a>(
        &'a self,
        _caller: &'a Caller,
        _agent: Option<String>,
        _after: Option<String>,
        _limit: u32,
    ) -> Reply<'a, SessionPage> {
        nobody()
    }

    fn chat_read<'a>(&'a self, _caller: &'a Caller, _session: &'a str) -> Reply<'a, Session> {
        nobody()
    }

    fn chat_history<'a>(
        &'a self,
        _caller: &'a Caller,
        _session: &'a str,
        _after: Option<String>,
        _limit: u32,
    ) -> Reply<'a, MessagePage> {
        nobody()
    }

    fn chat_turn<'a>(&'a self, _caller: &'a Caller, _turn: NewTurn) -> Reply<'a, TurnAnswer> {
        nobody()
    }

    fn chat_stream<'a>(&'a self, _caller: &'a Caller, _turn: NewTurn) -> Reply<'a, (TurnInfo, Box<dyn TurnFrames>)> {
        nobody()
    }

    fn chat_stop<'a>(&'a self, _caller: &'a Caller, _session: &'a str) -> Reply<'a, bool> {
        nobody()
    }

    fn chat_delete<'a>(&'a self, _caller: &'a Caller, _session: &'a str) -> Reply<'a, ()> {
        nobody()
    }

    fn settings(&self) -> Vec<(String, String)> {
        vec![("colour".to_owned(), "green".to_owned())]
    }

    fn setting(&self, key: &str) -> Option<String> {
        self.settings().into_iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    fn log(&self, caller: &Caller, level: Level, message: &str, fields: &[(String, String)]) {
        self.lines
            .lock()
            .expect("nobody panics with it")
            .push(format!("{} {level:?} {message} {fields:?}", caller.principal));
    }

    fn metric(&self, name: &str, change: Metric, labels: &[(String, String)]) -> Result<(), Error> {
        self.metrics.lock().expect("nobody panics with it").push(format!("{name} {change:?} {labels:?}"));
        Ok(())
    }

    fn now_ms(&self) -> u64 {
        1_700_000_000_000
    }
}

/// Waits until `is` is true.
pub async fn eventually(what: &str, is: impl Fn() -> bool) {
    let deadline = Instant::now() + LONG;
    while !is() {
        assert!(Instant::now() < deadline, "{what}: never happened");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
