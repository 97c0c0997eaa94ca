//! What every request goes through, in this order: `Host`, `Origin`, route, credentials, rate, phase, confirmation; then
//! its handler reads the body and looks for the thing. The one place that decides access.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};

use super::again::{self, Again, Creates};
use super::auth::{Passed, Principal, Scope};
use super::body::{Body, Reply};
use super::fronts::Front;
use super::problem::Problem;
use super::routes::{Confirm, Found, Handling, Mounted, Params};
use super::{App, Call, audit, body, gate, guests, openai};
use crate::id::{TraceId, Traceparent};

const CONFIRM: HeaderName = HeaderName::from_static("x-aman-confirm");
const OPERATOR: HeaderName = HeaderName::from_static("x-aman-operator");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const NOSNIFF: HeaderName = HeaderName::from_static("x-content-type-options");
const CORS_HEADERS: HeaderValue = HeaderValue::from_static(
    "authorization, content-type, idempotency-key, last-event-id, traceparent, x-aman-confirm, x-aman-operator, \
     x-aman-session, x-aman-token",
);
const CORS_METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE");
const CORS_EXPOSED: HeaderValue = HeaderValue::from_static("location, retry-after, traceparent");

/// How far a request came, for whoever finishes it.
#[derive(Default)]
struct Progress {
    origin: Option<HeaderValue>,
    mounted: Option<Arc<Mounted>>,
}

impl Progress {
    /// Whether the client reads errors as OpenAI spells them.
    fn is_openai(&self) -> bool {
        let route = self.mounted.as_ref().map(|mounted| &mounted.route);
        route.is_some_and(|route| route.plugin.is_none() && route.path.starts_with("/v1/"))
    }
}

/// Answers one request that came to `front`; never fails and never panics.
pub async fn handle(app: Arc<App>, front: Arc<Front>, request: Request<Incoming>) -> Response<Body> {
    let (parts, incoming) = request.into_parts();
    let parent = parts.headers.get(TRACEPARENT).and_then(|v| v.to_str().ok()).and_then(Traceparent::parse);
    let trace = parent.map_or_else(|| TraceId(fastrand::u128(1..).to_be_bytes()), |parent| parent.trace);
    let (path, method) = (parts.uri.clone(), parts.method.clone());
    let mut progress = Progress::default();
    let answered = answer((&app, &front), parts, incoming, (trace, parent), &mut progress).await;
    let reply = match answered {
        Ok(reply) => reply,
        Err(problem) if progress.is_openai() => openai::refusal(problem, path.path(), trace),
        Err(problem) => guests::refusal(&front, problem, (method, path.path().to_owned()), trace).await,
    };
    tracing::debug!(path = path.path(), status = reply.status.as_u16(), trace_id = %trace, "Answered.");
    if let Some(mounted) = &progress.mounted {
        let class = usize::from(reply.status.as_u16() / 100).clamp(1, 5) - 1;
        mounted.answers[class].fetch_add(1, Ordering::Relaxed);
    } else {
        app.counters.refused.fetch_add(1, Ordering::Relaxed);
    }
    respond(reply, trace, progress.origin)
}

fn respond(reply: Reply, trace: TraceId, origin: Option<HeaderValue>) -> Response<Body> {
    let mut response = Response::new(reply.body);
    *response.status_mut() = reply.status;
    let headers = response.headers_mut();
    headers.reserve(8);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(reply.content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(NOSNIFF, HeaderValue::from_static("nosniff"));
    headers.insert(TRACEPARENT, traceparent(reply.trace.unwrap_or(trace)));
    for (name, value) in reply.headers {
        headers.insert(name, value);
    }
    if let Some(origin) = origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, CORS_EXPOSED);
        headers.insert(header::VARY, HeaderValue::from_static("origin"));
    }
    response
}

fn traceparent(trace: TraceId) -> HeaderValue {
    use std::io::Write;
    let mut text = Vec::with_capacity(55);
    let _ = write!(text, "00-{:032x}-{:016x}-01", u128::from_be_bytes(trace.0), fastrand::u64(1..));
    HeaderValue::from_maybe_shared(bytes::Bytes::from(text)).unwrap_or(HeaderValue::from_static("-"))
}

async fn answer(
    (app, front): (&Arc<App>, &Front),
    parts: Parts,
    incoming: Incoming,
    (trace, parent): (TraceId, Option<Traceparent>),
    progress: &mut Progress,
) -> Result<Reply, Problem> {
    check_coding(&parts.headers)?;
    let early = |problem: Problem| app.refusals.count(app, problem);
    let tuned = app.tuned.load();
    let passed = tuned.places.check(&parts.method, &parts.uri, parts.version, &parts.headers, front.has_console());
    drop(tuned);
    let passed = passed.map_err(early)?;
    if let Passed::Listed(origin) = passed {
        progress.origin = Some(origin);
    }
    let Some((mounted, params)) = route(front, &parts, progress.origin.is_some())? else { return Ok(preflight()) };
    progress.mounted = Some(Arc::clone(&mounted));
    let principal = app.gate.identify(mounted.route.scope, &parts.headers).map_err(early)?;
    let draft = audit::Draft::new(app, &mounted.route, principal.as_ref(), &parts.headers, &parts.uri, trace);
    if let Err(problem) = gate::permit(principal.as_ref(), mounted.route.scope) {
        return draft.settle(app, Err(problem)).await;
    }
    if let Some(principal) = &principal {
        app.rates.admit(principal).map_err(early)?;
    }
    let call = Call {
        head_only: parts.method == Method::HEAD,
        uri: parts.uri,
        headers: parts.headers,
        body: Some(incoming),
        read: None,
        room: app.rooms.of(principal.is_some(), mounted.route.plugin.is_some()),
        params,
        route: mounted,
        principal,
        parent,
        trace,
        draft,
        again: Again::default(),
    };
    run(app, call).await
}

/// Whoever asked for one route, and so for others that it leads to.
#[derive(Clone)]
pub(super) struct Caller {
    principal: Option<Principal>,
    operator: Option<HeaderValue>,
    trace: TraceId,
    parent: Option<Traceparent>,
}

impl Caller {
    /// The caller of a request that came through the gate.
    pub fn of(call: &Call) -> Caller {
        let operator = call.headers.get(OPERATOR).cloned();
        Caller { principal: call.principal.clone(), operator, trace: call.trace, parent: call.parent }
    }

    /// Whether it has a scope.
    pub fn may(&self, scope: Scope) -> bool {
        gate::permit(self.principal.as_ref(), scope).is_ok()
    }
}

/// Asks for another route in the name of a caller: scope, phase, confirmation and audit are as if the request had come from
/// there. `target` is a path with its query, `body` is JSON.
pub(super) async fn inside(
    app: &Arc<App>,
    caller: &Caller,
    method: &Method,
    target: &str,
    body: bytes::Bytes,
    confirmed: bool,
) -> Result<Reply, Problem> {
    let uri: hyper::Uri = target.parse().map_err(|_| Problem::internal(format!("{target} is no address")))?;
    let (principal, trace) = (caller.principal.clone(), caller.trace);
    let Found::Route(mounted, params) = app.front.table().find(method, uri.path())? else {
        return Err(Problem::internal(format!("{method} {} is no route", uri.path())));
    };
    let mut headers = HeaderMap::new();
    headers.extend(caller.operator.clone().map(|operator| (OPERATOR, operator)));
    if confirmed {
        headers.insert(CONFIRM, HeaderValue::from_static("yes"));
    }
    let draft = audit::Draft::new(app, &mounted.route, principal.as_ref(), &headers, &uri, trace);
    if let Err(problem) = gate::permit(principal.as_ref(), mounted.route.scope) {
        return draft.settle(app, Err(problem)).await;
    }
    let call = Call {
        head_only: false,
        uri,
        headers,
        body: None,
        read: Some(body),
        room: app.rooms.of(principal.is_some(), false),
        params,
        route: mounted,
        principal,
        parent: caller.parent,
        trace,
        draft,
        again: Again::default(),
    };
    run(app, call).await
}

/// Refuses codings that nobody would undo: a body may be chunked, once, and no more (RFC 9112, section 6.1).
fn check_coding(headers: &HeaderMap) -> Result<(), Problem> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let is_plain = match (codings.next(), codings.next()) {
        (None, _) => true,
        (Some(only), None) => only.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked"),
        _ => false,
    };
    if is_plain {
        return Ok(());
    }
    let detail = "The only Transfer-Encoding that is understood here is 'chunked', once. Send the body as it is.";
    Err(Problem::new((StatusCode::NOT_IMPLEMENTED, "unsupported_coding"), detail).closing())
}

/// The route of a request; none for a CORS preflight of a listed origin.
fn route(front: &Front, parts: &Parts, listed: bool) -> Result<Option<(Arc<Mounted>, Params)>, Problem> {
    let served = front.served();
    let table = &served.table;
    let path = parts.uri.path();
    let preflight =
        parts.method == Method::OPTIONS && parts.headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    if listed && preflight && table.methods_of(path).is_some() {
        return Ok(None);
    }
    match table.find(&parts.method, path)? {
        Found::Route(mounted, params) => Ok(Some((mounted, params))),
        Found::OtherMethods(allow) => Err(Problem::method_not_allowed(path, &allow)),
        Found::Nothing => {
            let near = table.nearest(path).map_or_else(String::new, |near| format!(" Is {near} meant?"));
            let all = if front.has_console() { " GET /openapi.json lists them all." } else { "" };
            let detail = format!("There is no route {path}.{near}{all}");
            Err(Problem::new((StatusCode::NOT_FOUND, "route_not_found"), detail))
        }
    }
}

fn preflight() -> Reply {
    let mut reply = body::raw(StatusCode::OK, "{}");
    reply.headers = vec![
        (header::ACCESS_CONTROL_ALLOW_METHODS, CORS_METHODS),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, CORS_HEADERS),
        (header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600")),
    ];
    reply
}

/// Phase and confirmation, for callers that are known.
fn permit(app: &App, call: &Call) -> Result<(), Problem> {
    let route = &call.route.route;
    if route.method != Method::GET && !route.in_any_phase {
        app.lifecycle.admit_work()?;
    }
    let wanted = match route.confirm {
        Confirm::No => false,
        Confirm::WhenStrict => app.tuned.load().strict_confirm,
        Confirm::Always => true,
    };
    if wanted && !is_confirmed(&call.headers) {
        let detail = "This needs confirmation. Send the header 'x-aman-confirm: yes' if you mean it.";
        return Err(Problem::new((StatusCode::CONFLICT, "confirmation_required"), detail));
    }
    Ok(())
}

fn is_confirmed(headers: &HeaderMap) -> bool {
    headers.get(CONFIRM).is_some_and(|value| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"yes"))
}

async fn run(app: &Arc<App>, call: Call) -> Result<Reply, Problem> {
    let route = &call.route.route;
    let (time_max, audited) = (route.time_max, route.audited.is_some());
    let permitted = permit(app, &call);
    if !audited {
        permitted?;
        let handling = guarded(app, handling(app, call));
        return tokio::time::timeout(time_max, handling).await.unwrap_or_else(|_| Err(too_slow(time_max.as_secs())));
    }
    // Runs to its end, and is recorded, whatever becomes of the client.
    let (task_app, draft) = (Arc::clone(app), call.draft.clone());
    let task = app.running.spawn(async move {
        let result = match permitted {
            Ok(()) => guarded(&task_app, handling(&task_app, call)).await,
            Err(problem) => Err(problem),
        };
        draft.settle(&task_app, result).await
    });
    match tokio::time::timeout(time_max, task).await {
        Ok(Ok(result)) => result,
        Ok(Err(error)) => Err(Problem::internal(error.to_string())),
        Err(_) => Err(too_slow(time_max.as_secs())),
    }
}

/// What answers `call`.
fn handling(app: &Arc<App>, call: Call) -> Handling {
    let (app, route) = (Arc::clone(app), &call.route.route);
    match route.creates {
        Creates::No => (route.handler)(app, call),
        creates @ (Creates::Yes | Creates::Revived(_)) => {
            Box::pin(async move { again::handle(&app, call, creates).await })
        }
    }
}

fn too_slow(seconds: u64) -> Problem {
    let detail =
        format!("This took longer than {seconds} s. What it began may still happen: look before you send it again.");
    Problem::new((StatusCode::GATEWAY_TIMEOUT, "timeout"), detail)
}

/// A handler whose panic is an answer.
async fn guarded(app: &App, mut handling: Handling) -> Result<Reply, Problem> {
    std::future::poll_fn(|cx| {
        let polled = std::panic::catch_unwind(AssertUnwindSafe(|| handling.as_mut().poll(cx)));
        polled.unwrap_or_else(|_| {
            app.counters.panics.fetch_add(1, Ordering::Relaxed);
            Poll::Ready(Err(Problem::internal("a handler panicked".to_owned())))
        })
    })
    .await
}
