//! Who is asking, and from where: tokens and scopes, `Host`, `Origin` and `Sec-Fetch-Site`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hyper::header::{HOST, HeaderMap, HeaderValue, ORIGIN};
use hyper::{Method, StatusCode, Uri, Version};
use ring::digest::{SHA256, digest};

use super::jwt::Mint;
use super::problem::Problem;
use crate::clock::Millis;
use crate::error::Error;
use crate::event::Trust;
use crate::store::events::OWNER;

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

    /// Those that a token can have.
    pub const GRANTED: [Scope; 4] = [Scope::EventsRead, Scope::EventsWrite, Scope::Chat, Scope::Admin];

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
    /// The minted token behind it.
    pass: Option<Arc<Pass>>,
}

/// Until when a minted token is good.
#[derive(Debug)]
struct Pass {
    expires_ms: Millis,
    revoked: AtomicBool,
}

impl Principal {
    /// The holder of the static token.
    pub fn owner() -> Principal {
        Principal { name: OWNER.into(), trust: Trust::Owner, scopes: Scope::Admin.bit(), pass: None }
    }

    /// The holder of a minted token with these scopes.
    pub fn minted(name: &str, scopes: &[Scope], expires_ms: Millis) -> Principal {
        let trust = if scopes.contains(&Scope::Admin) { Trust::Owner } else { Trust::Paired };
        let scopes = scopes.iter().fold(0, |bits, scope| bits | scope.bit());
        let pass = Some(Arc::new(Pass { expires_ms, revoked: AtomicBool::new(false) }));
        Principal { name: name.into(), trust, scopes, pass }
    }

    /// True when it may use a route of `scope`; admin includes all.
    pub fn may(&self, scope: Scope) -> bool {
        scope.bit() == 0 || self.scopes & (scope.bit() | Scope::Admin.bit()) != 0
    }

    /// False once its token is revoked or expired.
    pub fn is_good(&self, now_ms: Millis) -> bool {
        self.pass.as_ref().is_none_or(|pass| now_ms < pass.expires_ms && !pass.revoked.load(Ordering::Acquire))
    }

    /// False when it is good for ever.
    pub fn can_end(&self) -> bool {
        self.pass.is_some()
    }

    /// Ends all that its token opened.
    pub fn revoke(&self) {
        if let Some(pass) = &self.pass {
            pass.revoked.store(true, Ordering::Release);
        }
    }

    /// True when both are the same caller with the same rights.
    pub fn is_same(&self, other: &Principal) -> bool {
        self.name == other.name && self.scopes == other.scopes
    }
}

/// How callers authenticate.
pub enum Auth {
    /// Everyone is the owner; on loopback only.
    None,
    /// The static token, and those that were minted.
    Token {
        /// SHA-256 of the token: digests have one length, so comparing them tells nothing.
        digest: [u8; 32],
        /// Signs the minted ones; none = there are none.
        mint: Option<Box<Mint>>,
    },
}

impl Auth {
    /// Authentication by this token.
    pub fn token(token: &str) -> Auth {
        Auth::Token { digest: sha256(token.as_bytes()), mint: None }
    }

    /// Authentication by this token, and by those that are signed with `key`.
    pub fn token_and_mint(token: &str, key: &[u8]) -> Auth {
        Auth::Token { digest: sha256(token.as_bytes()), mint: Some(Box::new(Mint::new(key))) }
    }

    /// Its name in `/runtime/status`.
    pub fn name(&self) -> &'static str {
        match self {
            Auth::None => "none",
            Auth::Token { .. } => "token",
        }
    }
}

pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}

/// Which hosts and origins may use the daemon.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// Host names beyond the local ones, lower case, without port.
    pub hosts: Vec<String>,
    /// Origins beyond the daemon's own, lower case, for example `https://example.org`.
    pub origins: Vec<String>,
    /// True when the daemon's own pages come over TLS.
    pub secure: bool,
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
    /// The checks of every path: `Host` first, then `Origin` and `Sec-Fetch-Site`. Where the console is, its pages may be
    /// navigated to from anywhere.
    pub fn check(
        &self,
        method: &Method,
        uri: &Uri,
        version: Version,
        headers: &HeaderMap,
        has_console: bool,
    ) -> Result<Passed, Problem> {
        let host = self.check_host(uri, version, headers)?;
        if has_console && is_page(method, uri.path(), headers) {
            return Ok(Passed::Own);
        }
        self.check_origin(host, headers)
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

    fn check_origin(&self, host: &str, headers: &HeaderMap) -> Result<Passed, Problem> {
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
                if !is_own(origin, host, self.secure) {
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

/// True for a navigation to the console, and for a file of a plugin's page.
fn is_page(method: &Method, path: &str, headers: &HeaderMap) -> bool {
    let all = |name: &str, wanted: &str| {
        let mut values = headers.get_all(name).iter();
        headers.contains_key(name) && values.all(|v| v.as_bytes().eq_ignore_ascii_case(wanted.as_bytes()))
    };
    let console = path == "/" || path == "/ui" || path.starts_with("/ui/");
    let navigation = all("sec-fetch-mode", "navigate") && all("sec-fetch-dest", "document");
    (method == Method::GET || method == Method::HEAD) && ((console && navigation) || path.starts_with("/ui/plugin/"))
}

/// The host without its port; `None` when it is no host. Brackets of IPv6 stay.
fn host_name(host: &str) -> Option<&str> {
    let end = if host.starts_with('[') { host.find(']')? + 1 } else { host.find(':').unwrap_or(host.len()) };
    let (name, port) = host.split_at(end);
    let good_port = port.is_empty() || port.strip_prefix(':').is_some_and(|p| p.bytes().all(|b| b.is_ascii_digit()));
    (good_port && !name.is_empty() && !name.contains(['@', '/'])).then_some(name)
}

/// True when `origin` is the daemon's scheme and the very host and port that the request went to.
fn is_own(origin: &str, host: &str, secure: bool) -> bool {
    let (scheme, port) = if secure { ("https://", ":443") } else { ("http://", ":80") };
    let given = origin.get(..scheme.len()).filter(|given| given.eq_ignore_ascii_case(scheme));
    let Some(place) = given.and_then(|_| origin.get(scheme.len()..)) else { return false };
    let with_port = |text: &str| text.strip_suffix(port).unwrap_or(text).to_ascii_lowercase();
    with_port(place) == with_port(host)
}

#[cfg(test)]
#[path = "auth_tests.rs"]
mod tests;
