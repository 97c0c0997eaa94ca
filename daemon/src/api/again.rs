//! `Idempotency-Key` on requests that create something: the same request again gives the same answer, and creates
//! nothing. Pushes have their own way to it, in the bus, since their answer is made of many.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hyper::StatusCode;
use hyper::header::{HeaderMap, HeaderValue, LOCATION};
use ring::digest::{Context, SHA256};
use serde_json::{Value, json};

use super::body::{self, Body, Reply};
use super::problem::Problem;
use super::{App, Call};
use crate::clock::Millis;
use crate::error::Error;
use crate::store::Tx;
use crate::store::events::{self, KeptAnswer};

const KEY_BYTES_MAX: usize = 255;
/// Larger bodies are hashed where they hold up nobody.
const HASH_BYTES_MAX: usize = 1 << 20;
/// How long an answer is kept.
const KEPT_MS: Millis = 86_400_000;

/// Completes a kept answer by what is not stored, as a secret.
pub type Revive = fn(&App, &mut Value) -> Result<(), Error>;

/// Whether a route creates something, so that its requests may carry an `Idempotency-Key`.
#[derive(Clone, Copy)]
pub enum Creates {
    /// No, or it sees to that itself.
    No,
    /// Yes.
    Yes,
    /// Yes, and kept answers are completed before they are given again.
    Revived(Revive),
}

/// The key of this request, unless it has none; hashed with its principal and route.
pub fn key(headers: &HeaderMap, principal: &str, route: &str) -> Result<Option<[u8; 32]>, Error> {
    let mut given = headers.get_all("idempotency-key").iter();
    let (Some(key), again) = (given.next(), given.next()) else { return Ok(None) };
    let key = key.as_bytes();
    if again.is_some() || key.is_empty() || key.len() > KEY_BYTES_MAX {
        let reason = format!("must be given once, with 1 to {KEY_BYTES_MAX} bytes.");
        return Err(Error::invalid("Idempotency-Key", reason));
    }
    Ok(Some(hash(&[principal.as_bytes(), route.as_bytes(), key])))
}

/// One hash over `parts` and where each ends.
pub fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Context::new(&SHA256);
    for part in parts {
        hash.update(&(part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let mut out = [0; 32];
    out.copy_from_slice(hash.finish().as_ref());
    out
}

/// Keys whose requests are being handled.
#[derive(Default)]
pub struct Turns(Mutex<HashSet<[u8; 32]>>);

struct Turn {
    app: Arc<App>,
    key: [u8; 32],
}

impl Turn {
    fn take(app: &Arc<App>, key: [u8; 32]) -> Result<Turn, Error> {
        if app.turns.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key) {
            return Ok(Turn { app: Arc::clone(app), key });
        }
        Err(Error::conflict("in_progress", "A request with this Idempotency-Key is being handled. Wait for its end."))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.app.turns.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

/// The answer to a request, to be kept for its `Idempotency-Key`; nothing for a request without one.
#[derive(Clone, Default)]
pub struct Again(Option<Arc<Inner>>);

struct Inner {
    key: [u8; 32],
    body: [u8; 32],
    until_ms: Millis,
    kept: AtomicBool,
}

impl Again {
    /// Keeps the answer in the transaction that creates the thing: then neither is without the other.
    pub fn keep(&self, tx: &Tx<'_>, status: StatusCode, location: Option<&str>, answer: &Value) -> Result<(), Error> {
        let Some(inner) = &self.0 else { return Ok(()) };
        let answer = json!({ "location": location, "body": answer }).to_string();
        let kept = KeptAnswer { body: inner.body, status: status.as_u16(), answer };
        events::keep_answer(tx, &inner.key, &kept, inner.until_ms)?;
        inner.kept.store(true, Ordering::Release);
        Ok(())
    }
}

/// Handles a request to a route that creates something.
pub(super) async fn handle(app: &Arc<App>, mut call: Call, creates: Creates) -> Result<Reply, Problem> {
    let handler = call.route.route.handler;
    let name = call.principal.as_ref().map_or("anonymous", |principal| &principal.name).to_owned();
    let Some(key) = key(&call.headers, &name, &call.route.route.path)? else {
        return handler(Arc::clone(app), call).await;
    };
    let bytes = call.bytes().await?;
    let target = call.uri.path_and_query().map_or("", |target| target.as_str()).to_owned();
    call.read = Some(bytes.clone());
    let hashing = move || hash(&[&bytes, target.as_bytes()]);
    // A package takes a tenth of a second, in which nobody else should wait.
    let body = if call.read.as_ref().is_some_and(|read| read.len() > HASH_BYTES_MAX) {
        tokio::task::spawn_blocking(hashing).await.map_err(Error::internal("hashing a request"))?
    } else {
        hashing()
    };
    let _turn = Turn::take(app, key)?;
    let now_ms = app.clock.now_ms();
    if let Some(kept) = app.store.read(move |conn| events::kept_answer(conn, &key, now_ms)).await? {
        if kept.body != body {
            let reason = "This Idempotency-Key came before with another request. Use a new key for a new request.";
            return Err(Error::Mismatch { code: "idempotency_mismatch", reason: reason.to_owned() }.into());
        }
        call.draft.skip();
        return replay(app, &kept, creates);
    }
    let again = Again(Some(Arc::new(Inner { key, body, until_ms: now_ms + KEPT_MS, kept: AtomicBool::new(false) })));
    call.again = again.clone();
    let draft = call.draft.clone();
    let reply = handler(Arc::clone(app), call).await?;
    keep_late(app, &again, &reply, draft.is_skipped()).await?;
    Ok(reply)
}

fn replay(app: &App, kept: &KeptAnswer, creates: Creates) -> Result<Reply, Problem> {
    let mut answer: Value = serde_json::from_str(&kept.answer).map_err(Error::internal("reading a kept answer"))?;
    let location = answer["location"].as_str().and_then(|text| HeaderValue::from_str(text).ok());
    let mut shown = answer["body"].take();
    if let Creates::Revived(revive) = creates {
        revive(app, &mut shown)?;
    }
    let mut reply = body::reply(StatusCode::from_u16(kept.status).unwrap_or(StatusCode::OK), &shown)?;
    reply.headers.extend(location.map(|location| (LOCATION, location)));
    Ok(reply)
}

/// Keeps the answer of a handler that did not see to it: successes only, and nothing of a dry run.
async fn keep_late(app: &Arc<App>, again: &Again, reply: &Reply, is_dry: bool) -> Result<(), Error> {
    let is_kept = again.0.as_ref().is_none_or(|inner| inner.kept.load(Ordering::Acquire));
    let Body::Full(Some(bytes)) = &reply.body else { return Ok(()) };
    if is_kept || is_dry || !reply.status.is_success() {
        return Ok(());
    }
    let answer: Value = serde_json::from_slice(bytes).map_err(Error::internal("keeping an answer"))?;
    let location = reply.headers.iter().find(|(name, _)| *name == LOCATION);
    let location = location.and_then(|(_, value)| value.to_str().ok()).map(str::to_owned);
    let (again, status) = (again.clone(), reply.status);
    app.store.write(move |tx| again.keep(tx, status, location.as_deref(), &answer)).await
}
