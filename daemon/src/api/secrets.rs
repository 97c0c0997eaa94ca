//! What opens the door besides tokens, kept in memory only: codes for a login, tickets for a stream, sessions of a
//! browser. Each is kept as a digest, and each kind is bounded: the one that ends first makes room.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use subtle::ConstantTimeEq;

use super::auth::{Principal, sha256};
use crate::clock::Millis;
use crate::id::{hex, random_bytes};

/// How long the code of a login URL is good.
pub const CODE_MS: Millis = 5 * 60_000;
/// How long a ticket is good.
pub const TICKET_MS: Millis = 30_000;
/// How long a session lives without being used, and at the most.
pub const SESSION_IDLE_MS: Millis = 12 * 3_600_000;
const SESSION_MS: Millis = 7 * 86_400_000;

const CODES_MAX: usize = 64;
const TICKETS_MAX: usize = 1024;
const SESSIONS_MAX: usize = 256;

/// Texts that open something once, for whoever they were made for.
struct Once {
    count_max: usize,
    kept: HashMap<[u8; 32], (Principal, Millis)>,
}

impl Once {
    fn new(count_max: usize) -> Once {
        Once { count_max, kept: HashMap::new() }
    }

    fn make(&mut self, principal: &Principal, now_ms: Millis, until_ms: Millis) -> String {
        self.kept.retain(|_, (_, until)| *until > now_ms);
        if self.kept.len() >= self.count_max {
            let first = self.kept.iter().min_by_key(|(_, (_, until))| *until).map(|(key, _)| *key);
            first.map(|key| self.kept.remove(&key));
        }
        let text = hex(&random_bytes::<32>());
        self.kept.insert(sha256(text.as_bytes()), (principal.clone(), until_ms));
        text
    }

    fn take(&mut self, text: &str, now_ms: Millis) -> Option<Principal> {
        let (principal, until) = self.kept.remove(&sha256(text.as_bytes()))?;
        (until > now_ms && principal.is_good(now_ms)).then_some(principal)
    }
}

struct Session {
    /// SHA-256 of the header that must come with the cookie.
    header: [u8; 32],
    principal: Principal,
    used_ms: Millis,
    until_ms: Millis,
}

impl Session {
    fn is_over(&self, now_ms: Millis) -> bool {
        now_ms >= self.until_ms || now_ms - self.used_ms >= SESSION_IDLE_MS || !self.principal.is_good(now_ms)
    }
}

struct Kept {
    codes: Once,
    tickets: Once,
    sessions: HashMap<[u8; 32], Session>,
}

/// The codes, tickets and sessions that are good.
pub struct Secrets(Mutex<Kept>);

impl Default for Secrets {
    fn default() -> Secrets {
        Secrets(Mutex::new(Kept {
            codes: Once::new(CODES_MAX),
            tickets: Once::new(TICKETS_MAX),
            sessions: HashMap::new(),
        }))
    }
}

impl Secrets {
    fn with<T>(&self, act: impl FnOnce(&mut Kept) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A code that logs in as `principal`, once, within [`CODE_MS`].
    pub fn make_code(&self, principal: &Principal, now_ms: Millis) -> String {
        self.with(|kept| kept.codes.make(principal, now_ms, now_ms + CODE_MS))
    }

    /// Whom `code` logs in; it is used up by that.
    pub fn take_code(&self, code: &str, now_ms: Millis) -> Option<Principal> {
        self.with(|kept| kept.codes.take(code, now_ms))
    }

    /// A ticket for one stream as `principal`, within [`TICKET_MS`].
    pub fn make_ticket(&self, principal: &Principal, now_ms: Millis) -> String {
        self.with(|kept| kept.tickets.make(principal, now_ms, now_ms + TICKET_MS))
    }

    /// Whose stream `ticket` opens; it is used up by that.
    pub fn take_ticket(&self, ticket: &str, now_ms: Millis) -> Option<Principal> {
        self.with(|kept| kept.tickets.take(ticket, now_ms))
    }

    /// A session of `principal`: the values of its cookie and of its header.
    pub fn make_session(&self, principal: Principal, now_ms: Millis) -> (String, String) {
        let (cookie, header) = (hex(&random_bytes::<32>()), hex(&random_bytes::<32>()));
        let session =
            Session { header: sha256(header.as_bytes()), principal, used_ms: now_ms, until_ms: now_ms + SESSION_MS };
        self.with(|kept| {
            kept.sessions.retain(|_, session| !session.is_over(now_ms));
            if kept.sessions.len() >= SESSIONS_MAX {
                let idle = kept.sessions.iter().min_by_key(|(_, session)| session.used_ms).map(|(key, _)| *key);
                idle.map(|key| kept.sessions.remove(&key));
            }
            kept.sessions.insert(sha256(cookie.as_bytes()), session);
        });
        (cookie, header)
    }

    /// Ends the session of `cookie`; false when there is none.
    pub fn end_session(&self, cookie: &[u8]) -> bool {
        self.with(|kept| kept.sessions.remove(&sha256(cookie)).is_some())
    }

    /// Whose session this is; only cookie and header together say it.
    pub fn session(&self, cookie: &[u8], header: &[u8], now_ms: Millis) -> Option<Principal> {
        let (cookie, header) = (sha256(cookie), sha256(header));
        self.with(|kept| {
            let session = kept.sessions.get_mut(&cookie)?;
            if session.is_over(now_ms) {
                kept.sessions.remove(&cookie);
                return None;
            }
            if !bool::from(session.header.ct_eq(&header)) {
                return None;
            }
            session.used_ms = now_ms;
            Some(session.principal.clone())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_tickets_open_once_and_in_time() {
        let (secrets, owner) = (Secrets::default(), Principal::owner());
        let ticket = secrets.make_ticket(&owner, 0);
        assert!(secrets.take_code(&ticket, 1).is_none(), "a ticket is no code");
        assert!(secrets.take_ticket(&ticket, TICKET_MS - 1).is_some());
        assert!(secrets.take_ticket(&ticket, 1).is_none(), "used");
        let late = secrets.make_ticket(&owner, 0);
        assert!(secrets.take_ticket(&late, TICKET_MS).is_none());
        let code = secrets.make_code(&owner, 0);
        assert!(secrets.take_code(&code, CODE_MS).is_none());
        let codes: Vec<String> = (0..=CODES_MAX).map(|n| secrets.make_code(&owner, n as Millis)).collect();
        assert!(secrets.take_code(&codes[0], 100).is_none(), "the oldest made room");
        assert!(secrets.take_code(&codes[1], 100).is_some());
    }

    #[test]
    fn a_session_needs_both_parts_and_ends() {
        let secrets = Secrets::default();
        let (cookie, header) = secrets.make_session(Principal::owner(), 0);
        let open =
            |cookie: &str, header: &str, now| secrets.session(cookie.as_bytes(), header.as_bytes(), now).is_some();
        assert!(open(&cookie, &header, 1));
        assert!(!open(&cookie, &cookie, 1) && !open(&header, &header, 1) && !open("", "", 1));
        assert!(open(&cookie, &header, SESSION_IDLE_MS), "use keeps it");
        assert!(!open(&cookie, &header, 3 * SESSION_IDLE_MS));
        let (cookie, header) = secrets.make_session(Principal::owner(), 0);
        (1..14).for_each(|n| assert!(open(&cookie, &header, n * (SESSION_IDLE_MS - 1))));
        assert!(!open(&cookie, &header, SESSION_MS));
    }
}
