//! The routes of plugins: a request without credentials goes in, an answer without anything that is the daemon's own
//! business comes out.

use std::cmp::Ordering;
use std::sync::Arc;

use bytes::Bytes;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode};

use super::auth::{Principal, Scope};
use super::body::{Body, Reply};
use super::fronts::{Front, Offers};
use super::problem::Problem;
use super::routes::{Route, Table};
use super::{App, Call, routes};
use crate::error::{Error, FieldError};
use crate::event::Trust;
use crate::id::TraceId;
use crate::package::Spelled;
use crate::plugins::host::trust_of;
use crate::plugins::{Caller, Kind, Payload, Refusal, Request, Served, Wanted};

/// Headers of one connection only (RFC 9110, section 7.6.1), and what proxies add.
const HOP: [&str; 16] = [
    "connection",
    "content-length",
    "forwarded",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
    "x-client-ip",
    "x-real-ip",
    "expect",
];
/// What tells who calls: plugins get that as a value.
const CREDENTIALS: [&str; 4] = ["authorization", "cookie", "traceparent", "idempotency-key"];
/// What plugins say of their answers. Everything else is the daemon's, or acts on more than the answer, as cookies do, which
/// all ports of a host share, and what tells browsers how to treat the origin from then on.
const SAID: [&str; 16] = [
    "accept-ranges",
    "allow",
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-location",
    "content-range",
    "content-type",
    "etag",
    "expires",
    "last-modified",
    "link",
    "location",
    "retry-after",
    "vary",
];
/// Names with `x-` are the plugin's, save what browsers, this daemon and proxies before it act on.
const NOT_SAID: [&str; 5] = ["x-accel-", "x-aman-", "x-content-type-options", "x-frame-options", "x-sendfile"];
/// A plugin's answer never runs as a page of the daemon's origin, whatever type it claims.
const SANDBOX: HeaderValue = HeaderValue::from_static("sandbox; default-src 'none'; frame-ancestors 'none'");
const BINARY: &str = "application/octet-stream";

/// Where a plugin's route stands in the daemon's own table. Those that are only on the plugin's listener stand there, too,
/// to be counted; as their place is no path, nothing leads to them.
pub(super) fn place(wanted: &Wanted) -> String {
    let mounted = wanted.route.mounted();
    if wanted.route.listener { format!("{}:{mounted}", wanted.plugin) } else { mounted }
}

/// The row of a plugin's route.
pub(super) fn row(wanted: Wanted, path: String) -> Route {
    let method = Method::from_bytes(wanted.route.method.as_bytes()).unwrap_or(Method::GET);
    let scope = if wanted.route.public { Scope::Public } else { Scope::Admin };
    let mut row = Route::new(method.clone(), path, scope, |app, call| Box::pin(serve(app, call)));
    // Whoever calls a public route is nobody: as with webhooks, what it leads to is recorded where it is stored.
    row.audited = (method != Method::GET && !wanted.route.public).then_some("plugin.call");
    row.body_bytes_max = usize::try_from(wanted.route.body).unwrap_or(routes::BODY_BYTES_MAX);
    row.time_max = wanted.time_max;
    row.plugin = Some(Arc::new(wanted));
    row
}

impl App {
    /// Replaces the routes of plugins, all or none; with `is_trial` only says whether that would go.
    pub(super) fn mount(self: &Arc<App>, wanted: Vec<Wanted>, is_trial: bool) -> Result<(), Error> {
        let mut all = routes::core();
        check_overlaps(&all, &wanted)?;
        all.extend(wanted.iter().map(|one| row(one.clone(), place(one))));
        let table = Table::new(all, Some(&self.front.table()))?;
        let offers = Offers::of(&wanted, &table)?;
        if !is_trial {
            self.front.set_table(table);
            self.fronts.offer(self, offers);
        }
        Ok(())
    }
}

/// Refuses routes that would take requests away from others, though their paths differ: from the daemon's own, where a
/// route with fewer parameters comes first, and from other plugins, where what comes first would be nobody's decision.
fn check_overlaps(core: &[Route], wanted: &[Wanted]) -> Result<(), Error> {
    let paths: Vec<(String, &Wanted)> = wanted.iter().map(|wanted| (place(wanted), wanted)).collect();
    let refuse = |path: &str, other: &str, owner: &str| {
        let reason = format!("{path} cannot be served: it would take requests for {other}, which {owner} serves.");
        Err(Error::conflict("already_exists", reason))
    };
    for (n, (path, wanted)) in paths.iter().enumerate() {
        if let Some(own) = core.iter().find(|own| overlap(path, &own.path) == Some(Ordering::Greater)) {
            return refuse(path, &own.path, "aman itself");
        }
        let before = paths[..n].iter().filter(|(other, owner)| owner.plugin != wanted.plugin && other != path);
        if let Some((other, owner)) = before.into_iter().find(|(other, _)| overlap(path, other).is_some()) {
            return refuse(path, other, &format!("the plugin '{}'", owner.plugin));
        }
    }
    Ok(())
}

/// Whether some request fits both paths; greater = it goes to the first, since the table prefers what is written out.
fn overlap(one: &str, other: &str) -> Option<Ordering> {
    // How much a part takes: all that is left, anything, or one text.
    let rank = |part: &str| if part.starts_with("{*") { 0 } else { 1 + i32::from(!part.starts_with('{')) };
    let (mut ones, mut others) = (one.split('/'), other.split('/'));
    let mut first = Ordering::Equal;
    while let (Some(one), Some(other)) = (ones.next(), others.next()) {
        first = first.then(rank(one).cmp(&rank(other)));
        match (rank(one), rank(other)) {
            (0, _) | (_, 0) => return Some(first),
            (2, 2) if one != other => return None,
            _ => {}
        }
    }
    (one.split('/').count() == other.split('/').count()).then_some(first)
}

/// Answers a request to a plugin's route.
async fn serve(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    let Some(wanted) = call.route.route.plugin.clone() else {
        return Err(Problem::internal("a plugin's route names no plugin".to_owned()));
    };
    let body = call.bytes().await?;
    let request = request(&call, &wanted, body.into());
    match app.plugins.serve(&wanted.plugin, request).await {
        Ok(served) => reply(served),
        Err(refusal) => Err(problem(refusal)),
    }
}

/// The caller as plugins see him.
pub(super) fn caller(principal: Option<&Principal>, trace: TraceId) -> Caller {
    Caller {
        principal: principal.map_or("anonymous", |principal| &principal.name).to_owned(),
        trust: trust_of(principal.map_or(Trust::Web, |principal| principal.trust)),
        trace_id: trace.to_string(),
        extensions: Vec::new(),
    }
}

fn request(call: &Call, wanted: &Wanted, body: Vec<u8>) -> Request {
    let path = call.uri.path();
    let is_whole = call.route.route.path == wanted.route.path;
    let path = if is_whole { path } else { path.strip_prefix("/api/v1").unwrap_or(path) };
    Request {
        method: wanted.route.method.clone(),
        route: wanted.route.path.clone(),
        path: path.to_owned(),
        params: call.params.clone(),
        query: call.uri.query().map(str::to_owned),
        headers: passed_on(&call.headers),
        body,
        caller: caller(call.principal.as_ref(), call.trace),
        extensions: Vec::new(),
    }
}

/// What a plugin may see of the headers.
fn passed_on(headers: &HeaderMap) -> Vec<(String, String)> {
    let named: Vec<String> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(|name| name.trim().to_ascii_lowercase()))
        .collect();
    let kept = |name: &str| {
        !HOP.contains(&name)
            && !CREDENTIALS.contains(&name)
            && !name.starts_with("x-aman-")
            && !name.starts_with("x-forwarded-")
            && !named.iter().any(|hop| hop == name)
    };
    let kept = headers.iter().filter(|(name, _)| kept(name.as_str()));
    kept.filter_map(|(name, value)| Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned()))).collect()
}

/// Whether a plugin's answer may have this header.
fn may_say(name: &str) -> bool {
    let own = name.starts_with("x-") && !HOP.contains(&name) && !NOT_SAID.iter().any(|not| name.starts_with(not));
    own || SAID.contains(&name)
}

/// What of a plugin's headers is sent, with what holds for all of its answers.
fn headers(given: Vec<(String, String)>) -> Result<Vec<(HeaderName, HeaderValue)>, &'static str> {
    let mut headers = Vec::with_capacity(given.len() + 1);
    for (name, value) in given {
        let name = HeaderName::try_from(name).map_err(|_| "with a header whose name is none")?;
        let value = HeaderValue::try_from(value).map_err(|_| "with a header whose value is none")?;
        if may_say(name.as_str()) {
            headers.push((name, value));
        }
    }
    headers.push((header::CONTENT_SECURITY_POLICY, SANDBOX));
    Ok(headers)
}

/// The answer to a problem of `method path` at `front`: as the plugin whose listener it is spells it, or the daemon's own.
pub(super) async fn refusal(
    front: &Arc<Front>,
    problem: Problem,
    (method, path): (Method, String),
    trace: TraceId,
) -> Reply {
    if front.envelope().is_none() {
        return problem.reply(&path, trace);
    }
    let front = Arc::clone(front);
    let spelling = tokio::task::spawn_blocking(move || refusal_now(&front, problem, (Some(&method), &path), trace));
    let failed = |error: tokio::task::JoinError| Problem::internal(error.to_string()).reply("", trace);
    spelling.await.unwrap_or_else(failed)
}

/// As [`refusal`]; blocks for a short while. There is no method where none could be read.
pub(super) fn refusal_now(
    front: &Front,
    problem: Problem,
    (method, path): (Option<&Method>, &str),
    trace: TraceId,
) -> Reply {
    let Some(envelope) = front.envelope() else { return problem.reply(path, trace) };
    let spelled = envelope.spell(&problem.seen(method, path, trace));
    let spelled = spelled.and_then(|mut one| {
        let given = std::mem::take(&mut one.headers);
        headers(given).map(|headers| (headers, one)).map_err(str::to_owned)
    });
    match spelled {
        Ok((mut all, Spelled { status, content_type, body, .. })) => {
            problem.log(path, trace);
            let status = StatusCode::from_u16(status).unwrap_or(problem.status);
            // What HTTP itself asks for (`Allow`, `Retry-After`, `WWW-Authenticate`) stays.
            all.extend(problem.into_headers());
            Reply { status, content_type, headers: all, body: Body::full(body), trace: None }
        }
        Err(why) => {
            envelope.tell(front.name(), &why);
            problem.reply(path, trace)
        }
    }
}

fn reply(served: Served) -> Result<Reply, Problem> {
    let broken = |what: &str| {
        let detail =
            format!("The plugin answered {what}. That is an error of the plugin; `aman plugin show` has its state.");
        Problem::new((StatusCode::BAD_GATEWAY, "plugin_trap"), detail)
    };
    let status = StatusCode::from_u16(served.status).ok().filter(|status| (200..600).contains(&status.as_u16()));
    let status = status.ok_or_else(|| broken("with a status that is none"))?;
    let headers = headers(served.headers).map_err(broken)?;
    let body = match served.body {
        Payload::Bytes(bytes) => Body::full(Bytes::from(bytes)),
        Payload::Stream(stream) => Body::Guest(Box::new(stream)),
    };
    Ok(Reply { status, content_type: BINARY, headers, body, trace: None })
}

/// What HTTP says of a plugin that gives no answer.
pub(super) fn problem(refusal: Refusal) -> Problem {
    let status_and_code = match refusal.kind {
        Kind::Absent => (StatusCode::NOT_FOUND, "not_found"),
        Kind::Trap => (StatusCode::BAD_GATEWAY, "plugin_trap"),
        Kind::Timeout => (StatusCode::GATEWAY_TIMEOUT, "plugin_timeout"),
        Kind::Limit => (StatusCode::SERVICE_UNAVAILABLE, "plugin_limit"),
        Kind::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "plugin_unavailable"),
        Kind::Internal => return Problem::internal(refusal.detail),
        Kind::SaysDenied => (StatusCode::FORBIDDEN, "plugin_denied"),
        Kind::SaysNotFound => (StatusCode::NOT_FOUND, "not_found"),
        Kind::SaysInvalid => (StatusCode::BAD_REQUEST, "invalid_input"),
        Kind::SaysConflict => (StatusCode::CONFLICT, "invalid_state"),
        Kind::SaysFailed => (StatusCode::BAD_GATEWAY, "plugin_failed"),
    };
    let mut problem = Problem::new(status_and_code, refusal.detail.clone());
    problem.fields.extend(refusal.field.map(|field| FieldError { field, reason: refusal.detail }));
    match refusal.retry_after_ms {
        Some(after_ms) => problem.retry_after_ms(after_ms),
        None => problem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_say_nothing_of_the_origin() {
        for said in [
            "cache-control",
            "content-disposition",
            "content-type",
            "etag",
            "link",
            "location",
            "retry-after",
            "vary",
            "x-request-id",
            "x-total-count",
        ] {
            assert!(may_say(said), "{said}");
        }
        for kept in [
            "accept-ch",
            "access-control-allow-origin",
            "alt-svc",
            "clear-site-data",
            "connection",
            "content-length",
            "content-security-policy",
            "nel",
            "origin-agent-cluster",
            "report-to",
            "reporting-endpoints",
            "set-cookie",
            "speculation-rules",
            "strict-transport-security",
            "traceparent",
            "transfer-encoding",
            "www-authenticate",
            "x-accel-redirect",
            "x-aman-token",
            "x-content-type-options",
            "x-real-ip",
        ] {
            assert!(!may_say(kept), "{kept}");
        }
    }

    #[test]
    fn who_gets_a_request_that_fits_two_paths_is_known() {
        for (one, other, wanted) in [
            ("/a/b", "/a/b", Some(Ordering::Equal)),
            ("/a/b", "/a/c", None),
            ("/a/b", "/a/{x}", Some(Ordering::Greater)),
            ("/a/{x}/c", "/a/b/{y}", Some(Ordering::Less)),
            ("/a/{x}", "/a/{y}/c", None),
            ("/a", "/a/{*rest}", None),
            ("/a/b/c", "/a/{*rest}", Some(Ordering::Greater)),
            ("/{*rest}", "/a/{x}", Some(Ordering::Less)),
            ("/plugin/x/approve", "/plugin/{name}/approve", Some(Ordering::Greater)),
        ] {
            assert_eq!(overlap(one, other), wanted, "{one} {other}");
            assert_eq!(overlap(other, one), wanted.map(Ordering::reverse), "{other} {one}");
        }
    }
}
