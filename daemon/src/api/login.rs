//! Ways in for browsers: the page at `/`, the one-time login URL, the session, tickets for streams.

use std::sync::{Arc, LazyLock};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderMap, HeaderName, HeaderValue, REFERRER_POLICY, SET_COOKIE,
};
use hyper::{Method, StatusCode};
use serde_json::json;

use super::auth::sha256;
use super::body::{self, Body, Reply};
use super::problem::Problem;
use super::query::Query;
use super::secrets::{CODE_MS, SESSION_IDLE_MS, TICKET_MS};
use super::{App, Call};
use crate::bundled::{LOGIN_PAGE, PAGE, USED_PAGE};
use crate::clock::rfc3339;
use crate::error::Error;

/// Where the login page takes the value of the session header from.
const SESSION_MARK: &str = "{{session}}";

/// The policy of a page: its own script and style by their hashes, requests to the daemon, and nothing else.
fn policy(page: &str) -> HeaderValue {
    let hash = |open: &str, close: &str| {
        let text = page.split_once(open).and_then(|(_, rest)| rest.split_once(close)).map_or("", |(text, _)| text);
        format!("'sha256-{}'", STANDARD.encode(sha256(text.as_bytes())))
    };
    let (script, style) = (hash("<script>", "</script>"), hash("<style>", "</style>"));
    let text = format!(
        "default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    );
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("default-src 'none'"))
}

static PAGE_POLICY: LazyLock<HeaderValue> = LazyLock::new(|| policy(PAGE));
static LOGIN_POLICY: LazyLock<HeaderValue> = LazyLock::new(|| policy(LOGIN_PAGE));
static USED_POLICY: LazyLock<HeaderValue> = LazyLock::new(|| policy(USED_PAGE));

fn html(text: impl Into<bytes::Bytes>, policy: &HeaderValue) -> Reply {
    let headers = vec![
        (CONTENT_SECURITY_POLICY, policy.clone()),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
        (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    let body = Body::full(text);
    Reply { status: StatusCode::OK, content_type: "text/html; charset=utf-8", headers, body, trace: None }
}

/// `GET /`: a page that shows live events and dead letters to whoever is logged in.
pub(super) async fn page(_app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    Ok(html(PAGE, &PAGE_POLICY))
}

fn expiry(app: &App, after_ms: i64) -> String {
    rfc3339(app.clock.now_ms() + after_ms)
}

/// `POST /auth/open`: a URL that logs a browser in, once.
pub(super) async fn code(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    call.fields().await?.done()?;
    let principal = call.principal.as_ref().ok_or_else(|| Problem::unauthorized(Problem::HOW_TO_SHOW))?;
    let code = app.gate.secrets.make_code(principal, app.clock.now_ms());
    let answer = json!({ "path": format!("/auth/open?code={code}"), "expires_at": expiry(&app, CODE_MS) });
    body::reply(StatusCode::CREATED, &answer)
}

/// `GET /auth/open?code=`: makes a session of the code, and hands out both its parts: the cookie, which no script
/// sees, and the header, which no browser sends by itself.
pub(super) async fn open(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    let query = Query::read(&call, &["code"])?;
    let code = query.get("code").ok_or_else(|| Error::invalid("code", "is required; `aman open` gives it."))?;
    let looks_ahead = ["sec-purpose", "purpose"].iter().any(|name| call.headers.contains_key(*name));
    if call.head_only || looks_ahead {
        // Whoever looks ahead must not use the code up.
        return Err(Problem::method_not_allowed("/auth/open", Method::GET.as_str()));
    }
    let now_ms = app.clock.now_ms();
    let Some(principal) = app.gate.secrets.take_code(code, now_ms) else {
        let problem = app.refusals.count(&app, app.gate.refuse_wrong());
        return if wants_html(&call.headers) { Ok(used_up(problem)) } else { Err(problem) };
    };
    let (cookie, header) = app.gate.secrets.make_session(principal, now_ms);
    let mut reply = html(LOGIN_PAGE.replace(SESSION_MARK, &header), &LOGIN_POLICY);
    reply.headers.push(set_cookie(&app, &cookie, SESSION_IDLE_MS / 1000)?);
    Ok(reply)
}

/// A person looks: browsers name HTML among what they accept, programs that want any answer do not.
fn wants_html(headers: &HeaderMap) -> bool {
    let accepted =
        headers.get_all(ACCEPT).iter().filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(','));
    let mut essences = accepted.filter_map(|range| range.split(';').next());
    essences.any(|essence| essence.trim().eq_ignore_ascii_case("text/html"))
}

/// `problem` as a page that says what to do.
fn used_up(problem: Problem) -> Reply {
    let mut page = html(USED_PAGE, &USED_POLICY);
    page.status = problem.status;
    page.headers.extend(problem.into_headers());
    page
}

fn set_cookie(app: &App, value: &str, seconds: i64) -> Result<(HeaderName, HeaderValue), Error> {
    let secure = if app.tuned.load().places.secure { "; Secure" } else { "" };
    let name = app.gate.cookie();
    let cookie = format!("{name}={value}; Path=/; HttpOnly; SameSite=Strict; Max-Age={seconds}{secure}");
    Ok((SET_COOKIE, HeaderValue::try_from(cookie).map_err(Error::internal("making a cookie"))?))
}

/// `POST /auth/logout`: ends the caller's session, and has the browser forget its cookie.
pub(super) async fn logout(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    call.fields().await?.done()?;
    if !app.gate.log_out(&call.headers) {
        let reason = "is required, with its cookie: only a browser's session can be logged out. A token is revoked.";
        return Err(Error::invalid("x-aman-session", reason).into());
    }
    let mut reply = body::ok(&json!({ "ended": true }))?;
    reply.headers.push(set_cookie(&app, "", 0)?);
    Ok(reply)
}

/// `POST /auth/ticket`: opens one stream, for an `EventSource`, which cannot send headers.
pub(super) async fn ticket(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    call.fields().await?.done()?;
    let principal = call.principal.as_ref().ok_or_else(|| Problem::unauthorized(Problem::HOW_TO_SHOW))?;
    let ticket = app.gate.secrets.make_ticket(principal, app.clock.now_ms());
    body::reply(StatusCode::CREATED, &json!({ "ticket": ticket, "expires_at": expiry(&app, TICKET_MS) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_allow_only_their_own_script() {
        for page in [PAGE, LOGIN_PAGE] {
            let text = policy(page);
            let text = text.to_str().expect("text");
            assert!(text.starts_with("default-src 'none'; script-src 'sha256-") && !text.contains("unsafe"), "{text}");
            assert_eq!((page.matches("<script").count(), page.matches("<style").count()), (1, 1));
            assert!(!page.contains("innerHTML") && !page.contains(" style=") && !page.contains(" onclick="));
        }
        assert!(!USED_PAGE.contains("<script") && !USED_PAGE.contains(" style="));
        let script = LOGIN_PAGE.split_once("<script>").expect("a script").1;
        assert!(!script.contains(SESSION_MARK), "its hash must not depend on the session");
    }
}
