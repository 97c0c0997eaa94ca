//! THE route table: method, path, scope, audit flag, confirmation, limits, handler. The router, the counters and the
//! tests of access all come from it.

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use hyper::Method;
use percent_encoding::percent_decode_str;

use super::again::Creates;
use super::auth::Scope;
use super::body::Reply;
use super::problem::Problem;
use super::{
    App, Call, agents, audit, chat, config, cron, db, dlq, events, explore, health, login, mcp, mcp_servers, memory,
    metrics, models, notifications, openai, openapi, plugins, runtime, sinks, skills, soul, sources, stream, tokens,
    tools, usage, why, workflows,
};
use crate::error::{Error, distance};
use crate::package::PACKED_MAX;
use crate::plugins::Wanted;

/// What a handler gives back.
pub type Handling = Pin<Box<dyn Future<Output = Result<Reply, Problem>> + Send>>;
/// A handler: decodes, calls, encodes.
pub type Handler = fn(Arc<App>, Call) -> Handling;

/// Largest body of a route that says nothing else, in bytes.
pub const BODY_BYTES_MAX: usize = 1 << 20;
/// What is said, with as much as may come with it in base64.
const SAID_BYTES_MAX: usize = 12 << 20;
/// A packed plugin with the form around it, and how long its compilation may take.
const INSTALL_BYTES_MAX: usize = PACKED_MAX as usize + (8 << 10);
const INSTALL_TIME_MAX: Duration = Duration::from_secs(300);
/// Longer than the limits of any plugin, and than an approval usually waits.
const TOOL_TIME_MAX: Duration = Duration::from_secs(800);
/// A model may first have to be loaded, and then be slow.
const MODEL_TIME_MAX: Duration = Duration::from_secs(600);
/// As long as somebody may wait for the end of idle work.
const IDLE_RUN_MAX: Duration = Duration::from_secs(660);
/// Time limit of a route that says nothing else.
pub const TIME_MAX: Duration = Duration::from_secs(30);

/// How long an answer of an agent may be waited for.
const TURN_TIME_MAX: Duration = Duration::from_secs(900);

/// Parts of a path that are looked at to find a route near it.
const PARTS_MAX: usize = 8;
/// Time limit of work on the whole database.
const UPKEEP_MAX: Duration = Duration::from_secs(600);

/// Whether a request must carry `x-aman-confirm: yes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confirm {
    /// No.
    No,
    /// Only with `http.strict_confirm`.
    WhenStrict,
    /// Yes.
    Always,
}

/// One row of the table.
#[derive(Clone)]
pub struct Route {
    /// The method; `GET` answers `HEAD` too.
    pub method: Method,
    /// The path, with `{name}` for one segment.
    pub path: String,
    /// What the caller must be allowed.
    pub scope: Scope,
    /// The action under which each request is recorded in the audit log; `None` = not recorded.
    pub audited: Option<&'static str>,
    /// See [`Confirm`].
    pub confirm: Confirm,
    /// Largest body, in bytes.
    pub body_bytes_max: usize,
    /// How long the handler may take.
    pub time_max: Duration,
    /// True when it is answered while the daemon starts or shuts down although it is no GET.
    pub in_any_phase: bool,
    /// Whether requests may carry an `Idempotency-Key`.
    pub creates: Creates,
    /// The plugin whose route it is; none = the daemon's own.
    pub plugin: Option<Arc<Wanted>>,
    /// Who answers.
    pub handler: Handler,
}

impl Route {
    /// A route with the usual limits.
    pub fn new(method: Method, path: impl Into<String>, scope: Scope, handler: Handler) -> Route {
        Route {
            method,
            path: path.into(),
            scope,
            audited: None,
            confirm: Confirm::No,
            body_bytes_max: BODY_BYTES_MAX,
            time_max: TIME_MAX,
            in_any_phase: false,
            creates: Creates::No,
            plugin: None,
            handler,
        }
    }

    fn audited(mut self, action: &'static str) -> Route {
        self.audited = Some(action);
        self
    }

    fn confirmed(mut self, confirm: Confirm) -> Route {
        self.confirm = confirm;
        self
    }

    fn creates(mut self, creates: Creates) -> Route {
        self.creates = creates;
        self
    }

    fn lasting(mut self, time_max: Duration) -> Route {
        self.time_max = time_max;
        self
    }

    fn slow(mut self, time_max: Duration) -> Route {
        self.time_max = time_max;
        self
    }

    fn large(mut self, body_bytes_max: usize) -> Route {
        self.body_bytes_max = body_bytes_max;
        self
    }

    /// Whose it is.
    fn owner(&self) -> String {
        self.plugin
            .as_ref()
            .map_or_else(|| "aman itself".to_owned(), |wanted| format!("the plugin '{}'", wanted.plugin))
    }

    fn in_any_phase(mut self) -> Route {
        self.in_any_phase = true;
        self
    }
}

macro_rules! route {
    ($method:ident $path:literal $scope:ident $module:ident :: $handler:ident) => {
        Route::new(Method::$method, $path, Scope::$scope, |app, call| Box::pin($module::$handler(app, call)))
    };
}

/// The ways in.
fn access() -> Vec<Route> {
    vec![
        route!(GET "/" Public login::page),
        route!(GET "/auth/open" Public login::open),
        route!(POST "/auth/open" Admin login::code).audited("auth.open"),
        route!(POST "/auth/logout" Admin login::logout).audited("auth.logout").in_any_phase(),
        route!(POST "/auth/ticket" EventsRead login::ticket).audited("auth.ticket"),
        route!(GET "/auth/token" Admin tokens::list),
        route!(POST "/auth/token" Admin tokens::create)
            .audited("token.create")
            .creates(Creates::Revived(tokens::revive)),
        route!(DELETE "/auth/token" Admin tokens::revoke).audited("token.revoke"),
    ]
}

/// Every route of the core.
pub fn core() -> Vec<Route> {
    let mut all = access();
    all.extend(work());
    all.extend(sinks());
    all.extend(abilities());
    all.extend(upkeep());
    all.extend(extensions());
    all.extend(tooling());
    all.extend(flows());
    all.extend(agents());
    all.extend(mind());
    all.extend(notices());
    all.extend(talk());
    all
}

/// What agents are, know and cost.
fn mind() -> Vec<Route> {
    vec![
        route!(GET "/soul/info" Admin soul::info),
        route!(GET "/soul/raw" Admin soul::raw),
        route!(GET "/soul/versions" Admin soul::versions),
        route!(GET "/soul/system-prompt" Admin soul::system_prompt),
        route!(POST "/soul/update" Admin soul::update).audited("soul.update").confirmed(Confirm::WhenStrict),
        route!(POST "/soul/rollback" Admin soul::rollback).audited("soul.rollback").confirmed(Confirm::Always),
        route!(GET "/memory" Admin memory::list),
        route!(POST "/memory" Admin memory::add).audited("memory.add").creates(Creates::Yes),
        route!(DELETE "/memory" Admin memory::forget_named).audited("memory.forget"),
        route!(GET "/memory/export" Admin memory::export),
        route!(GET "/memory/{id}" Admin memory::show),
        route!(POST "/memory/{id}" Admin memory::edit).audited("memory.edit"),
        route!(DELETE "/memory/{id}" Admin memory::forget).audited("memory.forget"),
        route!(GET "/usage" Admin usage::list),
    ]
}

/// What the person is told.
fn notices() -> Vec<Route> {
    vec![
        route!(GET "/notifications" Admin notifications::list),
        route!(GET "/notifications/unread-count" Admin notifications::unread),
        route!(GET "/notifications/{id}" Admin notifications::show),
        route!(POST "/notifications/{id}/ack" Admin notifications::acknowledge).audited("notification.ack"),
        route!(POST "/notifications/{id}/dismiss" Admin notifications::dismiss).audited("notification.dismiss"),
        route!(POST "/notifications/dismiss-all" Admin notifications::dismiss_all).audited("notification.dismiss_all"),
        route!(POST "/notifications/test" Admin notifications::test).audited("notification.test"),
    ]
}

/// Plugins, and what they add besides routes of their own.
fn extensions() -> Vec<Route> {
    vec![
        route!(GET "/plugins" Admin plugins::list),
        route!(POST "/plugin/install" Admin plugins::install)
            .audited("plugin.install")
            .confirmed(Confirm::WhenStrict)
            .creates(Creates::Yes)
            .large(INSTALL_BYTES_MAX)
            .slow(INSTALL_TIME_MAX),
        route!(GET "/plugin/{name}" Admin plugins::show),
        route!(POST "/plugin/{name}/approve" Admin plugins::approve)
            .audited("plugin.approve")
            .confirmed(Confirm::Always)
            .slow(INSTALL_TIME_MAX),
        route!(POST "/plugin/{name}/enable" Admin plugins::enable).audited("plugin.enable").slow(INSTALL_TIME_MAX),
        route!(POST "/plugin/{name}/disable" Admin plugins::disable)
            .audited("plugin.disable")
            .confirmed(Confirm::Always),
        route!(POST "/plugin/{name}/rollback" Admin plugins::rollback)
            .audited("plugin.rollback")
            .confirmed(Confirm::Always)
            .slow(INSTALL_TIME_MAX),
        route!(POST "/plugin/{name}/uninstall" Admin plugins::uninstall)
            .audited("plugin.uninstall")
            .confirmed(Confirm::WhenStrict)
            .slow(INSTALL_TIME_MAX),
        route!(GET "/v1/models" Chat openai::models),
        route!(GET "/v1/models/{id}" Chat openai::show),
        route!(POST "/v1/chat/completions" Chat openai::complete).audited("chat.complete").slow(TURN_TIME_MAX),
        route!(POST "/mcp" Chat mcp::serve),
        route!(GET "/mcp-servers" Admin mcp_servers::list),
        route!(GET "/mcp-server/{name}" Admin mcp_servers::show),
        route!(POST "/mcp-server/{name}/reconnect" Admin mcp_servers::reconnect).audited("mcp.reconnect"),
        route!(GET "/ui/pages" Public plugins::pages),
        route!(GET "/ui/plugin/{name}/{*path}" Public plugins::page),
    ]
}

/// What can be called, and the approvals that calls wait for.
fn tooling() -> Vec<Route> {
    vec![
        route!(GET "/capabilities" Chat tools::capabilities),
        route!(GET "/tools" Admin tools::list),
        route!(POST "/tools/{name}/execute" Admin tools::execute)
            .audited("tool.execute")
            .confirmed(Confirm::WhenStrict)
            .creates(Creates::Yes)
            .slow(TOOL_TIME_MAX),
        route!(GET "/tool-auth/pending" Admin tools::pending),
        route!(POST "/tool-auth/respond" Admin tools::respond).audited("approval.respond"),
        route!(GET "/tool-auth/rules" Admin tools::rules),
        route!(DELETE "/tool-auth/rules" Admin tools::revoke).audited("approval.revoke"),
    ]
}

/// Agents.
fn agents() -> Vec<Route> {
    vec![
        route!(GET "/agents" Chat agents::list),
        route!(GET "/agent/{id}" Chat agents::show),
        route!(PUT "/agent/{id}" Admin agents::put).audited("agent.put"),
        route!(DELETE "/agent/{id}" Admin agents::delete).audited("agent.delete"),
        route!(POST "/agent/{id}/status" Admin agents::status).audited("agent.status"),
        route!(POST "/agent/{id}/reload" Admin agents::reload).audited("agent.reload"),
        route!(GET "/agents/idle-availability" Admin agents::idle_availability),
        route!(POST "/idle-run" Admin agents::idle_run)
            .audited("agent.idle_run")
            .creates(Creates::Yes)
            .lasting(IDLE_RUN_MAX),
        route!(POST "/explore/start" Admin explore::start).audited("agent.explore").creates(Creates::Yes),
        route!(GET "/agent/{id}/versions" Admin agents::versions),
        route!(POST "/agent/{id}/rollback" Admin agents::rollback).audited("agent.rollback").confirmed(Confirm::Always),
    ]
}

/// Workflows and their instances.
fn flows() -> Vec<Route> {
    vec![
        route!(GET "/workflows" Admin workflows::list),
        route!(GET "/workflow/{name}" Admin workflows::show),
        route!(PUT "/workflow/{name}" Admin workflows::put).audited("workflow.put"),
        route!(DELETE "/workflow/{name}" Admin workflows::delete).audited("workflow.delete"),
        route!(POST "/workflow/{name}/create" Admin workflows::create).audited("workflow.create").creates(Creates::Yes),
        route!(GET "/workflow-instances" Admin workflows::instances),
        route!(GET "/workflow-instance/{id}" Admin workflows::instance),
        route!(POST "/workflow-instance/{id}/retry" Admin workflows::retry)
            .audited("workflow_instance.retry")
            .confirmed(Confirm::Always),
        route!(POST "/workflow-instance/{id}/cancel" Admin workflows::cancel)
            .audited("workflow_instance.cancel")
            .confirmed(Confirm::Always),
        route!(POST "/workflow-instance/{id}/event" Admin workflows::signal).audited("workflow_instance.event"),
        route!(POST "/workflow-instance/{id}/pause" Admin workflows::pause).audited("workflow_instance.pause"),
        route!(POST "/workflow-instance/{id}/resume" Admin workflows::resume).audited("workflow_instance.resume"),
    ]
}

/// Sessions with agents, and what is said in them.
fn talk() -> Vec<Route> {
    vec![
        route!(GET "/chat/sessions" Chat chat::list),
        route!(GET "/chat/search" Chat chat::search),
        route!(POST "/chat/session/create" Chat chat::create).audited("chat.create").creates(Creates::Yes),
        route!(GET "/chat/session/{id}/state" Chat chat::state),
        route!(GET "/chat/session/{id}/history" Chat chat::history),
        route!(GET "/chat/session/{id}/export" Chat chat::export),
        route!(GET "/chat/session/{id}/stream" Chat chat::stream),
        route!(POST "/chat/session/{id}/send" Chat chat::send)
            .audited("chat.send")
            .creates(Creates::Yes)
            .large(SAID_BYTES_MAX),
        route!(POST "/chat/session/{id}/edit" Chat chat::edit).audited("chat.edit").creates(Creates::Yes),
        route!(POST "/chat/session/{id}/retry" Chat chat::retry).audited("chat.retry").creates(Creates::Yes),
        route!(POST "/chat/session/{id}/stop" Chat chat::stop).audited("chat.stop"),
        route!(POST "/chat/session/{id}/rename" Chat chat::rename).audited("chat.rename"),
        route!(POST "/chat/session/{id}/close" Chat chat::close).audited("chat.close"),
        route!(DELETE "/chat/session/{id}" Chat chat::delete).audited("chat.delete").confirmed(Confirm::WhenStrict),
    ]
}

/// Skills and their history.
fn abilities() -> Vec<Route> {
    vec![
        route!(GET "/skills" Admin skills::list),
        route!(GET "/llm-skills" Admin skills::for_models),
        route!(GET "/skills/search" Admin skills::search),
        route!(POST "/skills/reload" Admin skills::reload).audited("skill.reload"),
        route!(GET "/skill/{name}" Admin skills::show),
        route!(GET "/skill/{name}/content" Admin skills::content),
        route!(GET "/skill/{name}/versions" Admin skills::versions),
        route!(GET "/skill/{name}/diff" Admin skills::diff),
        route!(POST "/skill/{name}/rollback" Admin skills::rollback)
            .audited("skill.rollback")
            .confirmed(Confirm::Always),
        route!(POST "/skill/{name}/enable" Admin skills::enable).audited("skill.enable"),
        route!(POST "/skill/{name}/disable" Admin skills::disable).audited("skill.disable"),
    ]
}

/// The database.
fn upkeep() -> Vec<Route> {
    vec![
        route!(GET "/db/stats" Admin db::stats).lasting(UPKEEP_MAX),
        route!(GET "/db/check" Admin db::check).lasting(UPKEEP_MAX),
        route!(POST "/db/prune" Admin db::prune).audited("db.prune").confirmed(Confirm::Always).lasting(UPKEEP_MAX),
        route!(POST "/db/vacuum" Admin db::vacuum).audited("db.vacuum").lasting(UPKEEP_MAX),
    ]
}

/// Where events go.
fn sinks() -> Vec<Route> {
    vec![
        route!(GET "/sinks" Admin sinks::list),
        route!(GET "/sink/{id}" Admin sinks::show),
        route!(POST "/sink/{id}/pause" Admin sinks::pause).audited("sink.pause"),
        route!(POST "/sink/{id}/resume" Admin sinks::resume).audited("sink.resume"),
        route!(GET "/sink/{id}/failures" Admin sinks::failures),
        route!(POST "/sink/{id}/failure/{key}/retry" Admin sinks::retry).audited("sink.retry"),
        route!(POST "/sink/{id}/discard" Admin sinks::discard).audited("sink.discard").confirmed(Confirm::Always),
        route!(POST "/sink/{id}/test" Admin sinks::test).audited("sink.test"),
    ]
}

/// What goes on behind the gate.
fn work() -> Vec<Route> {
    vec![
        route!(GET "/health" Public health::ready),
        route!(GET "/health/live" Public health::live),
        route!(GET "/health/ready" Public health::ready),
        route!(GET "/health/llm" Public health::llm),
        route!(GET "/models" Admin models::list),
        route!(POST "/models/test" Admin models::test).audited("model.test").slow(MODEL_TIME_MAX),
        route!(GET "/metrics" Public metrics::prometheus),
        route!(GET "/debug/metrics" Admin metrics::debug),
        route!(POST "/agent/start" Admin runtime::start).audited("agent.start").in_any_phase(),
        route!(POST "/agent/shutdown" Admin runtime::shutdown)
            .audited("agent.shutdown")
            .confirmed(Confirm::Always)
            .in_any_phase(),
        route!(GET "/runtime/status" Admin runtime::status),
        route!(GET "/openapi.json" Public openapi::serve),
        route!(POST "/config/set" Admin config::set).audited("config.set").confirmed(Confirm::Always),
        route!(POST "/config/reload" Admin config::reload).audited("config.reload"),
        route!(GET "/runtime/config" Admin config::show),
        route!(POST "/events/push" EventsWrite events::push),
        route!(POST "/inject-event" Admin events::inject),
        route!(GET "/events/stream" PublicOrEventsRead stream::open),
        route!(GET "/events/recent" EventsRead events::recent),
        route!(GET "/events/types" EventsRead events::types),
        route!(GET "/events/dump/{id}" EventsRead events::dump),
        route!(GET "/events/trace/{trace_id}" EventsRead events::trace),
        route!(GET "/events/{id}/why" EventsRead why::why),
        route!(GET "/dlq" EventsRead dlq::list),
        route!(GET "/dlq/depth" EventsRead dlq::depth),
        route!(GET "/dlq/groups" EventsRead dlq::groups),
        route!(POST "/dlq/retry" Admin dlq::retry_group).audited("dlq.retry").confirmed(Confirm::Always),
        route!(POST "/dlq/{id}/retry" Admin dlq::retry).audited("dlq.retry").confirmed(Confirm::Always),
        route!(POST "/dlq/{id}/discard" Admin dlq::discard).audited("dlq.discard").confirmed(Confirm::WhenStrict),
        route!(GET "/audit-log" Admin audit::list),
        route!(GET "/audit-log/verify" Admin audit::verify),
        route!(GET "/event-sources" Admin sources::list),
        route!(GET "/event-source/{id}" Admin sources::show),
        route!(POST "/event-source/{id}/pause" Admin sources::pause).audited("source.pause"),
        route!(POST "/event-source/{id}/resume" Admin sources::resume).audited("source.resume"),
        route!(PUT "/event-source/{id}/config" Admin sources::configure).audited("source.config"),
        route!(GET "/sources" Admin sources::list),
        route!(GET "/source/{id}" Admin sources::show),
        route!(POST "/source/{id}/pause" Admin sources::pause).audited("source.pause"),
        route!(POST "/source/{id}/resume" Admin sources::resume).audited("source.resume"),
        route!(PUT "/source/{id}/config" Admin sources::configure).audited("source.config"),
        route!(POST "/hooks/{id}" Public sources::hook),
        route!(POST "/im-channel/{platform}/{instance}/reload" Admin sources::reload_channel).audited("channel.reload"),
        route!(GET "/cron" Admin cron::list),
        route!(POST "/cron/add" Admin cron::add).audited("cron.add").creates(Creates::Yes),
        route!(GET "/cron/{id}" Admin cron::show),
        route!(GET "/cron/{id}/runs" Admin cron::runs),
        route!(GET "/cron/{id}/next" Admin cron::next),
        route!(POST "/cron/{id}/update" Admin cron::update).audited("cron.update"),
        route!(POST "/cron/{id}/remove" Admin cron::remove).audited("cron.remove").confirmed(Confirm::WhenStrict),
        route!(POST "/cron/{id}/run" Admin cron::run).audited("cron.run").creates(Creates::Yes),
    ]
}

/// Answers by status class, 1xx to 5xx.
pub type Answers = Arc<[AtomicU64; 5]>;

/// A route in the router, with what is counted for it.
pub struct Mounted {
    /// The row.
    pub route: Route,
    /// See [`Answers`].
    pub answers: Answers,
}

/// The routes as they are served; replaced as a whole.
#[derive(Default)]
pub struct Table {
    paths: matchit::Router<Vec<Arc<Mounted>>>,
    all: Vec<Arc<Mounted>>,
}

/// The values of a path by name, decoded.
pub type Params = Vec<(String, String)>;

/// What a path leads to.
pub enum Found {
    /// A route, and the decoded values of its path.
    Route(Arc<Mounted>, Params),
    /// The path exists, the method does not; these do.
    OtherMethods(String),
    /// No such path.
    Nothing,
}

impl Table {
    /// A table of `routes`, which counts on where `before` is; fails when two of them cannot be told apart.
    pub fn new(routes: Vec<Route>, before: Option<&Table>) -> Result<Table, Error> {
        let known = before.map(Table::counts).unwrap_or_default();
        Table::counting(routes, |route| known.get(&(&route.method, route.path.as_str())).cloned())
    }

    /// What counts the answers, by method and path.
    pub fn counts(&self) -> HashMap<(&Method, &str), Answers> {
        let all = self.all.iter();
        all.map(|one| ((&one.route.method, one.route.path.as_str()), Arc::clone(&one.answers))).collect()
    }

    /// As [`Table::new`]; `known` says where a route's answers are counted already.
    pub fn counting(routes: Vec<Route>, known: impl Fn(&Route) -> Option<Answers>) -> Result<Table, Error> {
        let mut by_path: BTreeMap<String, Vec<Arc<Mounted>>> = BTreeMap::new();
        let mut table = Table::default();
        for route in routes {
            let answers = known(&route).unwrap_or_default();
            let mounted = Arc::new(Mounted { route, answers });
            let same_path = by_path.entry(mounted.route.path.clone()).or_default();
            if let Some(other) = same_path.iter().find(|other| other.route.method == mounted.route.method) {
                let (method, path, owner) = (&mounted.route.method, &mounted.route.path, other.route.owner());
                let taken = format!("{method} {path} is there already: {owner} serves it.");
                return Err(Error::conflict("already_exists", taken));
            }
            same_path.push(Arc::clone(&mounted));
            table.all.push(mounted);
        }
        // The daemon's own first, so that whoever clashes with them is named as the one who does.
        let mut by_path: Vec<_> = by_path.into_iter().collect();
        by_path.sort_by_key(|(_, routes)| routes.iter().all(|mounted| mounted.route.plugin.is_some()));
        for (path, routes) in by_path {
            let clash = |error: matchit::InsertError| {
                let owner = match &error {
                    matchit::InsertError::Conflict { with } => {
                        let other = table.all.iter().find(|mounted| mounted.route.path == *with);
                        other.map_or_else(String::new, |other| format!(", which {} serves", other.route.owner()))
                    }
                    _ => String::new(),
                };
                Error::conflict("already_exists", format!("{path} cannot be served: {error}{owner}."))
            };
            table.paths.insert(path.clone(), routes).map_err(clash)?;
        }
        Ok(table)
    }

    /// All routes in order of the table.
    pub fn all(&self) -> &[Arc<Mounted>] {
        &self.all
    }

    /// What `method path` leads to. Fails when a path value is not UTF-8.
    pub fn find(&self, method: &Method, path: &str) -> Result<Found, Error> {
        let Ok(found) = self.paths.at(path) else { return Ok(Found::Nothing) };
        let wanted = if method == Method::HEAD { &Method::GET } else { method };
        let Some(mounted) = found.value.iter().find(|mounted| mounted.route.method == *wanted) else {
            return self.shadowed(wanted, path).map_or_else(|| Ok(Found::OtherMethods(methods(found.value))), Err);
        };
        let mut params = Vec::with_capacity(found.params.len());
        for (name, value) in found.params.iter() {
            let value = percent_decode_str(value)
                .decode_utf8()
                .map_err(|_| Error::invalid(name, "in the path is not UTF-8 when its percent signs are decoded."))?;
            if value.chars().any(char::is_control) {
                return Err(Error::invalid(name, "in the path must not contain control characters."));
            }
            params.push((name.to_owned(), value.into_owned()));
        }
        Ok(Found::Route(Arc::clone(mounted), params))
    }

    /// Why nothing can be put or removed at a path that a route has for itself, where others have names of things: no thing can
    /// have that name. None for any other.
    fn shadowed(&self, method: &Method, path: &str) -> Option<Error> {
        if *method != Method::PUT && *method != Method::DELETE {
            return None;
        }
        let given: Vec<&str> = path.split('/').collect();
        let named = |mounted: &Arc<Mounted>| {
            let parts: Vec<&str> = mounted.route.path.split('/').collect();
            let mut pairs = parts.iter().zip(&given);
            let fits = pairs.all(|(part, value)| part == value || part.starts_with('{'));
            let named = parts.iter().zip(&given).find(|(part, _)| part.starts_with('{'));
            let (name, value) = named.filter(|_| fits && parts.len() == given.len())?;
            Some((name.trim_matches(['{', '}']).to_owned(), (*value).to_owned()))
        };
        let (name, value) = self.all.iter().filter(|mounted| mounted.route.method == *method).find_map(named)?;
        let reason = format!("'{value}' is reserved: {path} means something else. Choose another.");
        Some(Error::invalid_as("reserved_name", name, reason))
    }

    /// The route whose path is nearest to `path`, with the values of `path` where the route takes any; none when none is
    /// near. A path of a plugin is as good as one of the daemon's own.
    pub fn nearest(&self, path: &str) -> Option<String> {
        let given: Vec<&str> = path.split('/').take(PARTS_MAX).collect();
        let fitted = |route: &Route| {
            let known: Vec<&str> = route.path.split('/').collect();
            let parts = known.iter().enumerate().map(|(n, part)| match given.get(n) {
                Some(value) if part.starts_with('{') && !value.is_empty() => *value,
                _ => *part,
            });
            parts.collect::<Vec<_>>().join("/")
        };
        let near = |fitted: &String| distance(path, fitted);
        let paths = self.all.iter().map(|mounted| fitted(&mounted.route)).filter(|path| path != "/");
        let best = paths.min_by_key(near)?;
        (near(&best) <= 2 + best.len() / 8).then_some(best)
    }

    /// The methods that a path answers, for `Allow`; `None` when there is no such path.
    pub fn methods_of(&self, path: &str) -> Option<String> {
        self.paths.at(path).ok().map(|found| methods(found.value))
    }
}

fn methods(routes: &[Arc<Mounted>]) -> String {
    let mut names: Vec<&str> = routes.iter().map(|mounted| mounted.route.method.as_str()).collect();
    if names.contains(&"GET") {
        names.push("HEAD");
    }
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: Method, path: &str) -> String {
        let table = Table::new(core(), None).expect("the table is sound");
        match table.find(&method, path) {
            Ok(Found::Route(mounted, params)) => {
                let params: Vec<String> = params.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
                format!("{} {}", mounted.route.path, params.join(" ")).trim().to_owned()
            }
            Ok(Found::OtherMethods(allow)) => format!("405 {allow}"),
            Ok(Found::Nothing) => "404".to_owned(),
            Err(error) => format!("400 {error}"),
        }
    }

    #[test]
    fn paths_lead_where_they_should() {
        for (method, path, want) in [
            (Method::GET, "/dlq/depth", "/dlq/depth"),
            (Method::HEAD, "/dlq/depth", "/dlq/depth"),
            (Method::POST, "/dlq/depth", "405 GET, HEAD"),
            (Method::POST, "/dlq/x/retry", "/dlq/{id}/retry id=x"),
            (Method::POST, "/dlq/retry", "/dlq/retry"),
            (Method::GET, "/dlq/retry", "405 POST"),
            (Method::GET, "/agent/start", "405 POST"),
            (Method::PUT, "/dlq/retry", "405 POST"),
            (Method::GET, "/events/dump/a%2Fb%20c", "/events/dump/{id} id=a/b c"),
            (Method::GET, "/events/recent/why", "/events/{id}/why id=recent"),
            (Method::GET, "/events/dump/why", "/events/dump/{id} id=why"),
            (Method::GET, "/events/recent/", "404"),
            (Method::GET, "/events", "404"),
            (Method::GET, "//events/recent", "404"),
            (Method::GET, "/events/../metrics", "404"),
            (Method::GET, "*", "404"),
            (Method::GET, "", "404"),
        ] {
            assert_eq!(check(method.clone(), path), want, "{method} {path}");
        }
        let table = Table::new(core(), None).expect("the table is sound");
        for (path, near) in [
            ("/events/recent/", Some("/events/recent")),
            ("/event/recent", Some("/events/recent")),
            ("/dql", Some("/dlq")),
            ("/skil/digest", Some("/skill/digest")),
            ("/events/17/wy", Some("/events/17/why")),
            ("/something/else", None),
        ] {
            assert_eq!(table.nearest(path).as_deref(), near, "{path}");
        }
        // Nobody is called as a route is.
        for route in core() {
            let Some(id) = route.path.strip_prefix("/agent/").filter(|id| !id.contains(['/', '{'])) else { continue };
            assert!(crate::agents::check_id(id).is_err(), "{id}");
            assert!(check(Method::PUT, &route.path).contains("is reserved"), "{id}");
            assert!(check(Method::DELETE, &route.path).contains("is reserved"), "{id}");
        }
        assert!(check(Method::GET, "/events/dump/%ff").starts_with("400 id"));
        assert!(check(Method::GET, "/events/dump/%00").starts_with("400 id"));
    }

    #[test]
    fn what_changes_something_is_audited_or_ingestion() {
        for route in core() {
            let changes = route.method != Method::GET;
            // What is asked for at /mcp is another route, which sees to its record.
            let ingests = ["/events/push", "/inject-event", "/hooks/{id}", "/mcp"].contains(&route.path.as_str());
            assert_eq!(changes && !ingests, route.audited.is_some(), "{} {}", route.method, route.path);
        }
    }
}
