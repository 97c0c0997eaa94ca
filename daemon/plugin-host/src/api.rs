//! What the daemon does for plugins: the one trait that it implements, whatever the version of the interface.

use std::pin::Pin;

use crate::values::{
    AgentDefinition, AgentShown, AgentStored, Caller, Error, Frame, Instance, KvChange, KvPage, Level, MessagePage,
    Metric, NewEvent, NewInstance, NewSession, NewTurn, Notification, OutgoingRequest, OutgoingResponse, Rows, Session,
    SessionPage, SignalEvent, Started, Statement, TurnAnswer, TurnInfo,
};

/// The future of a function of [`HostApi`].
///
/// It is polled on the guests' own runtime, which has timers and no I/O, and dropped when the call ends early. What needs
/// the daemon's runtime, or must not be cut off half-way, is spawned there.
pub type Reply<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

/// What happens in a turn of an agent, as a plugin looks at it. Dropping it stops nothing.
pub trait TurnFrames: Send + Sync {
    /// Waits for the next frame; none after the last one. May be dropped before it is ready, and asked again.
    fn next(&mut self) -> Reply<'_, Option<Frame>>;
}

/// The daemon as a plugin sees it. One object serves one plugin; it may be made anew for each call.
///
/// The crate has checked that the manifest asks for the interface, that sizes and rates keep to its constants, and that
/// staged calls change nothing directly. Everything else is decided here: which types may be published, which hosts may be
/// called, how full a store may get.
pub trait HostApi: Send + Sync {
    /// Whether the plugin may publish this event, which a poll returned.
    fn check_publish(&self, event: &NewEvent) -> Result<(), Error>;

    /// Checks an event and keeps it in the object that the daemon made for the call. Only called when effects are staged.
    fn stage_publish(&self, event: NewEvent) -> Result<(), Error>;

    /// Checks an event and publishes it, durably; its id. Not called when effects are staged.
    fn publish<'a>(&'a self, caller: &'a Caller, event: NewEvent) -> Reply<'a, String>;

    /// The stored value of a key.
    fn kv_get<'a>(&'a self, key: &'a str) -> Reply<'a, Option<Vec<u8>>>;

    /// Some stored keys in byte order that begin with `prefix` and come after `after`, at most `limit`.
    fn kv_list<'a>(&'a self, prefix: &'a str, after: Option<&'a str>, limit: u32) -> Reply<'a, KvPage>;

    /// Applies one change, durably; false when a comparison failed. Not called when effects are staged.
    fn kv_change<'a>(&'a self, change: KvChange) -> Reply<'a, bool>;

    /// Runs statements of SQL that return no rows, all or none, and says how many rows each changed.
    ///
    /// When effects are staged, the statements of a call are one transaction: the daemon begins it with the first, keeps
    /// it in the object that it made for the call, and commits or ends it when the call is over.
    fn sql_execute<'a>(&'a self, statements: Vec<Statement>) -> Reply<'a, Vec<u64>>;

    /// Runs a query; in the same transaction as [`HostApi::sql_execute`] when effects are staged.
    fn sql_query<'a>(&'a self, statement: Statement) -> Reply<'a, Rows>;

    /// Sends a request and waits for the response. Ended by the host after the request's time limit.
    fn http_send<'a>(&'a self, caller: &'a Caller, request: OutgoingRequest) -> Reply<'a, OutgoingResponse>;

    /// Starts an instance of a workflow, or finds the one with the same key. When effects are staged, this and the next
    /// two only check what is asked for and keep it in the object that the daemon made for the call.
    fn workflow_start<'a>(&'a self, caller: &'a Caller, instance: NewInstance) -> Reply<'a, Started>;

    /// Sends an event to one instance.
    fn workflow_signal<'a>(&'a self, caller: &'a Caller, id: &'a str, event: SignalEvent) -> Reply<'a, ()>;

    /// Tells the person something.
    fn notify<'a>(&'a self, caller: &'a Caller, notification: Notification) -> Reply<'a, ()>;

    /// How an instance stands.
    fn workflow_read<'a>(&'a self, id: &'a str) -> Reply<'a, Instance>;

    /// Every agent, by id.
    fn agents_list<'a>(&'a self, caller: &'a Caller) -> Reply<'a, Vec<AgentShown>>;

    /// One agent with its definition.
    fn agent_read<'a>(&'a self, caller: &'a Caller, id: &'a str) -> Reply<'a, AgentDefinition>;

    /// Stores a definition, durably.
    fn agent_put<'a>(&'a self, caller: &'a Caller, id: &'a str, definition: &'a str) -> Reply<'a, AgentStored>;

    /// Removes an agent, durably.
    fn agent_remove<'a>(&'a self, caller: &'a Caller, id: &'a str) -> Reply<'a, ()>;

    /// Creates a session, durably. What a call changes here is never staged; when its effects are, the same call again finds
    /// what it made.
    fn chat_create<'a>(&'a self, caller: &'a Caller, session: NewSession) -> Reply<'a, Session>;

    /// Some of the plugin's sessions, at most `limit`.
    fn chat_list<'a>(
        &'a self,
        caller: &'a Caller,
        agent: Option<String>,
        after: Option<String>,
        limit: u32,
    ) -> Reply<'a, SessionPage>;

    /// How a session stands.
    fn chat_read<'a>(&'a self, caller: &'a Caller, session: &'a str) -> Reply<'a, Session>;

    /// Some of what was said in a session, at most `limit` messages.
    fn chat_history<'a>(
        &'a self,
        caller: &'a Caller,
        session: &'a str,
        after: Option<String>,
        limit: u32,
    ) -> Reply<'a, MessagePage>;

    /// Has a turn taken and waits for its end. Ended by the host when the call has waited for as long as it may; the turn goes
    /// on all the same.
    fn chat_turn<'a>(&'a self, caller: &'a Caller, turn: NewTurn) -> Reply<'a, TurnAnswer>;

    /// Has a turn taken, and looks at it.
    fn chat_stream<'a>(&'a self, caller: &'a Caller, turn: NewTurn) -> Reply<'a, (TurnInfo, Box<dyn TurnFrames>)>;

    /// Stops the turn that is under way in a session; whether there was one.
    fn chat_stop<'a>(&'a self, caller: &'a Caller, session: &'a str) -> Reply<'a, bool>;

    /// Removes a session.
    fn chat_delete<'a>(&'a self, caller: &'a Caller, session: &'a str) -> Reply<'a, ()>;

    /// The operator's settings for the plugin.
    fn settings(&self) -> Vec<(String, String)>;

    /// The value of one setting.
    fn setting(&self, key: &str) -> Option<String>;

    /// Writes a line to the log. Texts are cut and lines are counted before.
    fn log(&self, caller: &Caller, level: Level, message: &str, fields: &[(String, String)]);

    /// Changes a metric; refuses names that it does not like and more series than it keeps.
    fn metric(&self, name: &str, change: Metric, labels: &[(String, String)]) -> Result<(), Error>;

    /// Milliseconds since 1970-01-01 UTC by the daemon's clock.
    fn now_ms(&self) -> u64;
}
