//! The gate: whose credentials these are, and what they may do. Slows down whoever guesses.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::Instant;

use hyper::StatusCode;
use hyper::header::{AUTHORIZATION, COOKIE, HeaderMap, HeaderValue};
use subtle::ConstantTimeEq;

use super::auth::{Auth, Principal, Scope, sha256};
use super::jwt::Claims;
use super::problem::Problem;
use super::secrets::Secrets;
use crate::clock::{Clock, Millis};
use crate::error::Error;
use crate::store::tokens::Token;

/// Wrong credentials that are answered 401 at once; after that many only as many per second as [`FAILURES_PER_S`].
const FAILURES_BURST: f64 = 150.0;
const FAILURES_PER_S: f64 = 5.0;

/// Checks credentials and slows down whoever guesses.
pub struct Gate {
    auth: Auth,
    clock: Clock,
    owner: Principal,
    /// The name of the session cookie. Cookies are shared by all ports of a host, so each daemon has a name of its own.
    cookie: String,
    failures: Mutex<(f64, Instant)>,
    /// Minted tokens that are good, by their id.
    minted: RwLock<HashMap<String, Principal>>,
    /// Codes, tickets and sessions.
    pub secrets: Secrets,
}

/// The scopes of a list of names; the error is the first name that is none.
pub fn scopes(names: &str) -> Result<Vec<Scope>, String> {
    let mut scopes = Vec::new();
    for name in names.split([' ', ',']).filter(|name| !name.is_empty()) {
        let scope = Scope::GRANTED.into_iter().find(|scope| scope.name() == name).ok_or_else(|| name.to_owned())?;
        if !scopes.contains(&scope) {
            scopes.push(scope);
        }
    }
    Ok(scopes)
}

impl Gate {
    /// A gate that lets in by `auth`; `cookie` is the name of its session cookie.
    pub fn new(auth: Auth, clock: Clock, cookie: String) -> Gate {
        Gate {
            auth,
            clock,
            owner: Principal::owner(),
            cookie,
            failures: Mutex::new((FAILURES_BURST, Instant::now())),
            minted: RwLock::default(),
            secrets: Secrets::default(),
        }
    }

    /// See [`Auth::name`].
    pub fn name(&self) -> &'static str {
        self.auth.name()
    }

    /// The name of the session cookie.
    pub fn cookie(&self) -> &str {
        &self.cookie
    }

    /// Lets in whoever has the token that `minted` tells of.
    pub fn add(&self, minted: &Token) {
        // Names that a later version gave are no scopes here, and grant nothing.
        let scopes: Vec<Scope> = minted.scope.split(' ').filter_map(|name| scopes(name).ok()).flatten().collect();
        let principal = Principal::minted(&minted.sub, &scopes, minted.expires_ms);
        let now_ms = self.clock.now_ms();
        let mut all = self.minted.write().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, principal| principal.is_good(now_ms));
        all.insert(minted.jti.clone(), principal);
    }

    /// Shuts out the token `jti` and all that it opened.
    pub fn remove(&self, jti: &str) {
        let removed = self.minted.write().unwrap_or_else(PoisonError::into_inner).remove(jti);
        removed.iter().for_each(Principal::revoke);
    }

    /// Minted tokens that are good.
    pub fn minted(&self) -> usize {
        self.minted.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The token that says `claims`. Fails where nothing is minted.
    pub fn sign(&self, claims: &Claims) -> Result<String, Error> {
        match &self.auth {
            Auth::Token { mint: Some(mint), .. } => mint.sign(claims),
            _ => Err(Error::conflict("invalid_state", "With http.auth = \"none\" there are no tokens.")),
        }
    }

    /// Whose token this is.
    fn known(&self, token: &[u8], now_ms: Millis) -> Option<Principal> {
        let Auth::Token { digest, mint } = &self.auth else { return Some(self.owner.clone()) };
        if bool::from(sha256(token).ct_eq(digest)) {
            return Some(self.owner.clone());
        }
        let claims = mint.as_ref()?.read(token)?;
        let all = self.minted.read().unwrap_or_else(PoisonError::into_inner);
        all.get(&claims.jti).filter(|principal| *principal.name == *claims.sub && principal.is_good(now_ms)).cloned()
    }

    /// The caller, if there are credentials. Every credential that is shown must be good, and all must be the same
    /// caller's. A cookie alone is none: the browser sends it whoever asks.
    fn principal(&self, headers: &HeaderMap) -> Result<Option<Principal>, Problem> {
        if matches!(self.auth, Auth::None) {
            return Ok(Some(self.owner.clone()));
        }
        let now_ms = self.clock.now_ms();
        let bearers = headers.get_all(AUTHORIZATION).iter().map(bearer);
        let plain = headers.get_all("x-aman-token").iter().map(|value| Some(value.as_bytes().trim_ascii()));
        let tokens = bearers.chain(plain).map(|token| token.and_then(|token| self.known(token, now_ms)));
        let sessions = headers.get_all("x-aman-session").iter().map(|value| self.session(headers, value, now_ms));
        let mut found: Option<Principal> = None;
        for shown in tokens.chain(sessions) {
            match shown {
                Some(principal) if found.as_ref().is_none_or(|other| other.is_same(&principal)) => {
                    found = Some(principal);
                }
                _ => return Err(self.refuse_wrong()),
            }
        }
        Ok(found)
    }

    fn session(&self, headers: &HeaderMap, header: &HeaderValue, now_ms: Millis) -> Option<Principal> {
        let header = header.as_bytes().trim_ascii();
        self.cookies(headers).find_map(|cookie| self.secrets.session(cookie, header, now_ms))
    }

    /// Ends the sessions that these headers prove; false when they prove none.
    pub fn log_out(&self, headers: &HeaderMap) -> bool {
        let now_ms = self.clock.now_ms();
        let mut ended = false;
        for header in headers.get_all("x-aman-session") {
            let header = header.as_bytes().trim_ascii();
            // The header proves that the caller is no foreign page, which could send the cookie as well.
            for cookie in self.cookies(headers).filter(|cookie| self.secrets.session(cookie, header, now_ms).is_some())
            {
                ended |= self.secrets.end_session(cookie);
            }
        }
        ended
    }

    fn cookies<'a>(&'a self, headers: &'a HeaderMap) -> impl Iterator<Item = &'a [u8]> {
        let lines = headers.get_all(COOKIE).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
        lines.filter_map(|pair| {
            let pair = pair.trim_ascii();
            pair.strip_prefix(self.cookie.as_bytes())?.strip_prefix(b"=")
        })
    }

    /// 401 for wrong credentials, or 429 when there were too many of them; either is never said to good ones.
    pub fn refuse_wrong(&self) -> Problem {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let (left, since) = *failures;
        let left = FAILURES_PER_S.mul_add((now - since).as_secs_f64(), left).min(FAILURES_BURST);
        *failures = (if left < 1.0 { left } else { left - 1.0 }, now);
        if left < 1.0 {
            let detail =
                "Too many wrong tokens were tried. Wait for Retry-After; a good token is let in all the while.";
            return Problem::new((StatusCode::TOO_MANY_REQUESTS, "rate_limited"), detail).retry_after_ms(1000);
        }
        Problem::unauthorized(
            "The token, or what was shown instead, is wrong, used up, expired or revoked. The owner's token is in the file \
             'token' of the data folder unless http.token is set; `aman token create` makes others.",
        )
    }

    /// Who asks for a route of `scope`; `None` only on public routes.
    pub fn identify(&self, scope: Scope, headers: &HeaderMap) -> Result<Option<Principal>, Problem> {
        if scope == Scope::Public {
            return Ok(None);
        }
        let found = self.principal(headers)?;
        if found.is_none() && scope != Scope::PublicOrEventsRead {
            return Err(Problem::unauthorized(Problem::HOW_TO_SHOW));
        }
        Ok(found)
    }
}

/// 403 when a known caller may not use routes of `scope`.
pub fn permit(principal: Option<&Principal>, scope: Scope) -> Result<(), Problem> {
    if principal.is_none_or(|principal| principal.may(scope)) {
        return Ok(());
    }
    let detail = format!(
        "This token may not do that; it needs the scope {0}: `aman token create NAME --scope {0}` makes one that has it.",
        scope.name()
    );
    Err(Problem::new((StatusCode::FORBIDDEN, "insufficient_scope"), detail))
}

fn bearer(value: &HeaderValue) -> Option<&[u8]> {
    let bytes = value.as_bytes().trim_ascii();
    let (scheme, token) = bytes.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token.trim_ascii())
}
