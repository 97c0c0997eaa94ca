//! Who is asking, and from where: tokens and scopes, `Host`, `Origin` and `Sec-Fetch-Site`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use hyper::header::{AUTHORIZATION, HOST, HeaderMap, HeaderValue, ORIGIN};
use hyper::{Method, StatusCode, Uri, Version};
use ring::digest::{SHA256, digest};
use subtle::ConstantTimeEq;

use super::problem::Problem;
use crate::error::Error;
use crate::event::Trust;
use crate::store::events::OWNER;

/// Wrong credentials that are answered 401 at once; after that many only as many per second as [`FAILURES_PER_S`].
const FAILURES_BURST: f64 = 150.0;
const FAILURES_PER_S: f64 = 5.0;

/// What a route asks of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Nothing.
    Public,
    /// Nothing; but who shows a token shows a good one, and sees more.
    PublicOrEventsRead,
    /// Reading events and dead letters.
    EventsRead,
    /// Pushing events.
    EventsWrite,
    /// Talking to agents.
    Chat,
    /// Everything.
    Admin,
}

impl Scope {
    fn bit(self) -> u8 {
        match self {
            Scope::Public => 0,
            Scope::PublicOrEventsRead | Scope::EventsRead => 1,
            Scope::EventsWrite => 2,
            Scope::Chat => 4,
            Scope::Admin => 8,
        }
    }

    /// Its name in tokens and messages.
    pub fn name(self) -> &'static str {
        match self {
            Scope::Public => "public",
            Scope::PublicOrEventsRead | Scope::EventsRead => "events:read",
            Scope::EventsWrite => "events:write",
            Scope::Chat => "chat",
            Scope::Admin => "admin",
        }
    }
}

/// An authenticated caller.
#[derive(Debug, Clone)]
pub struct Principal {
    /// Its name in events and in the audit log.
    pub name: Arc<str>,
    /// How far what it brings in is believed.
    pub trust: Trust,
    scopes: u8,
}

impl Principal {
    /// The holder of the static token.
    pub fn owner() -> Principal {
        Principal { name: OWNER.into(), trust: Trust::Owner, scopes: Scope::Admin.bit() }
    }

    /// True when it may use a route of `scope`; admin includes all.
    pub fn may(&self, scope: Scope) -> bool {
        scope.bit() == 0 || self.scopes & (scope.bit() | Scope::Admin.bit()) != 0
    }
}

/// How callers authenticate.
pub enum Auth {
    /// Everyone is the owner; on loopback only.
    None,
    /// The static token.
    Token {
        /// SHA-256 of the token: digests have one length, so comparing them tells nothing.
        digest: [u8; 32],
    },
}

impl Auth {
    /// Authentication by this token.
    pub fn token(token: &str) -> Auth {
        Auth::Token { digest: sha256(token.as_bytes()) }
    }

    /// Its name in `/runtime/status`.
    pub fn name(&self) -> &'static str {
        match self {
            Auth::None => "none",
            Auth::Token { .. } => "token",
        }
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}

/// Checks credentials and slows down whoever guesses.
pub struct Gate {
    auth: Auth,
    owner: Principal,
    failures: Mutex<(f64, Instant)>,
}

impl Gate {
    /// A gate that lets in by `auth`.
    pub fn new(auth: Auth) -> Gate {
        Gate { auth, owner: Principal::owner(), failures: Mutex::new((FAILURES_BURST, Instant::now())) }
    }

    /// See [`Auth::name`].
    pub fn name(&self) -> &'static str {
        self.auth.name()
    }

    /// The caller, if there are credentials. Every credential that is shown must be good.
    fn principal(&self, headers: &HeaderMap) -> Result<Option<Principal>, Problem> {
        let Auth::Token { digest: wanted } = &self.auth else { return Ok(Some(self.owner.clone())) };
        let mut shown = 0;
        let mut good = true;
        for value in headers.get_all(AUTHORIZATION) {
            shown += 1;
            good &= bearer(value).is_some_and(|token| bool::from(sha256(token).ct_eq(wanted)));
        }
        for value in headers.get_all("x-aman-token") {
            shown += 1;
            good &= bool::from(sha256(value.as_bytes().trim_ascii()).ct_eq(wanted));
        }
        match (shown, good) {
            (0, _) => Ok(None),
            (_, true) => Ok(Some(self.owner.clone())),
            (_, false) => Err(self.refuse_wrong()),
        }
    }

    fn refuse_wrong(&self) -> Problem {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let (left, since) = *failures;
        let left = FAILURES_PER_S.mul_add((now - since).as_secs_f64(), left).min(FAILURES_BURST);
        *failures = (if left < 1.0 { left } else { left - 1.0 }, now);
        if left < 1.0 {
            let detail = "Too many wrong tokens were tried.";
            return Problem::new((StatusCode::TOO_MANY_REQUESTS, "rate_limited"), detail).retry_after_ms(1000);
        }
        Problem::unauthorized("The token is wrong. `aman doctor` says where it is.")
    }

    /// Lets a request through to a route of `scope`, and says who it is; `None` only on public routes.
    pub fn admit(&self, scope: Scope, headers: &HeaderMap) -> Result<Option<Principal>, Problem> {
        if scope == Scope::Public {
            return Ok(None);
        }
        let Some(principal) = self.principal(headers)? else {
            if scope == Scope::PublicOrEventsRead {
                return Ok(None);
            }
            let detail = "Send the token as 'Authorization: Bearer <token>' or 'x-aman-token: <token>'.";
            return Err(Problem::unauthorized(detail));
        };
        if principal.may(scope) {
            return Ok(Some(principal));
        }
        let detail = format!("This token may not do that; it needs the scope {}.", scope.name());
        Err(Problem::new((StatusCode::FORBIDDEN, "insufficient_scope"), detail))
    }
}

fn bearer(value: &HeaderValue) -> Option<&[u8]> {
    let bytes = value.as_bytes().trim_ascii();
    let (scheme, token) = bytes.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token.trim_ascii())
}

/// Which hosts and origins may use the daemon.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// Host names beyond the local ones, lower case, without port.
    pub hosts: Vec<String>,
    /// Origins beyond the daemon's own, lower case, for example `https://example.org`.
    pub origins: Vec<String>,
}

/// A request's origin that passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Passed {
    /// The daemon's own pages, or no browser.
    Own,
    /// A listed origin: the answer needs CORS headers.
    Listed(HeaderValue),
}

impl Places {
    /// The checks of every path: `Host` first, then `Origin` and `Sec-Fetch-Site`.
    pub fn check(&self, method: &Method, uri: &Uri, version: Version, headers: &HeaderMap) -> Result<Passed, Problem> {
        let host = self.check_host(uri, version, headers)?;
        self.check_origin(method, uri.path(), host, headers)
    }

    fn check_host<'a>(&self, uri: &'a Uri, version: Version, headers: &'a HeaderMap) -> Result<&'a str, Problem> {
        let misdirected = |host: &str| {
            let detail =
                format!("'{host}' is not this daemon's name. Use localhost, or list it in http.allowed_hosts.");
            Problem::new((StatusCode::MISDIRECTED_REQUEST, "host_not_allowed"), detail)
        };
        let mut given = headers.get_all(HOST).iter();
        let host = match (given.next(), given.next()) {
            (Some(host), None) => host.to_str().map_err(|_| misdirected("(unreadable)"))?,
            (Some(_), Some(_)) => return Err(Error::invalid("Host", "may be given once only.").into()),
            (None, _) if version >= Version::HTTP_11 => {
                return Err(Error::invalid("Host", "is required in HTTP/1.1.").into());
            }
            (None, _) => uri.authority().map_or("", |authority| authority.as_str()),
        };
        if let Some(authority) = uri.authority()
            && !authority.as_str().eq_ignore_ascii_case(host)
        {
            return Err(Error::invalid("Host", "contradicts the address in the request line.").into());
        }
        let name = host_name(host).ok_or_else(|| misdirected(host))?;
        let local = ["localhost", "127.0.0.1", "[::1]"].iter().any(|known| name.eq_ignore_ascii_case(known));
        if local || self.hosts.iter().any(|known| name.eq_ignore_ascii_case(known)) {
            return Ok(host);
        }
        Err(misdirected(name))
    }

    fn check_origin(&self, method: &Method, path: &str, host: &str, headers: &HeaderMap) -> Result<Passed, Problem> {
        let all = |name: &str, wanted: &str| {
            let mut values = headers.get_all(name).iter();
            headers.contains_key(name) && values.all(|v| v.as_bytes().eq_ignore_ascii_case(wanted.as_bytes()))
        };
        if method == Method::GET || method == Method::HEAD {
            let console = path == "/" || path == "/ui" || path.starts_with("/ui/");
            let navigation = all("sec-fetch-mode", "navigate") && all("sec-fetch-dest", "document");
            if (console && navigation) || path.starts_with("/ui/plugin/") {
                return Ok(Passed::Own);
            }
        }
        let foreign = |what: &str| {
            let detail =
                format!("{what} may not use this daemon. List its origin in http.allowed_origins to allow it.");
            Problem::new((StatusCode::FORBIDDEN, "origin_not_allowed"), detail)
        };
        let mut origins = headers.get_all(ORIGIN).iter();
        match (origins.next(), origins.next()) {
            (Some(_), Some(_)) => return Err(foreign("A page with two origins")),
            (Some(value), None) => {
                let origin = value.to_str().map_err(|_| foreign("A page of unreadable origin"))?;
                if self.origins.iter().any(|known| origin.eq_ignore_ascii_case(known)) {
                    return Ok(Passed::Listed(value.clone()));
                }
                if !is_own(origin, host) {
                    return Err(foreign(&format!("A page of '{origin}'")));
                }
            }
            (None, _) => {}
        }
        let own_site = |value: &HeaderValue| {
            [&b"same-origin"[..], b"none"].iter().any(|good| value.as_bytes().eq_ignore_ascii_case(good))
        };
        if headers.get_all("sec-fetch-site").iter().all(own_site) {
            return Ok(Passed::Own);
        }
        Err(foreign("A page of another site"))
    }
}

/// The host without its port; `None` when it is no host. Brackets of IPv6 stay.
fn host_name(host: &str) -> Option<&str> {
    let end = if host.starts_with('[') { host.find(']')? + 1 } else { host.find(':').unwrap_or(host.len()) };
    let (name, port) = host.split_at(end);
    let good_port = port.is_empty() || port.strip_prefix(':').is_some_and(|p| p.bytes().all(|b| b.is_ascii_digit()));
    (good_port && !name.is_empty() && !name.contains(['@', '/'])).then_some(name)
}

/// True when `origin` is `http://` and the very host and port that the request went to.
fn is_own(origin: &str, host: &str) -> bool {
    let Some(place) = origin.get(..7).filter(|s| s.eq_ignore_ascii_case("http://")).and_then(|_| origin.get(7..))
    else {
        return false;
    };
    let with_port = |text: &str| text.strip_suffix(":80").unwrap_or(text).to_ascii_lowercase();
    with_port(place) == with_port(host)
}

#[cfg(test)]
#[path = "auth_tests.rs"]
mod tests;
