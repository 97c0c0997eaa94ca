//! Minted tokens: create, list, revoke.

use std::sync::Arc;

use hyper::StatusCode;
use hyper::header::{HeaderValue, LOCATION};
use serde_json::{Value, json};

use super::auth::Scope;
use super::body::{self, Reply};
use super::gate;
use super::jwt::Claims;
use super::problem::Problem;
use super::query::{self, Query};
use super::{App, Call};
use crate::clock::{Millis, parse_rfc3339, rfc3339};
use crate::config::parse_duration;
use crate::error::Error;
use crate::id;
use crate::store::tokens::{self, Token};

/// Tokens that may be good at a time.
const TOKENS_MAX: usize = 10_000;
const SUB_CHARS_MAX: usize = 64;
const TTL_DEFAULT_MS: Millis = 30 * 86_400_000;
const TTL_MS_MAX: Millis = 366 * 86_400_000;
/// Names that the daemon's own principals have.
const RESERVED: [&str; 3] = ["owner", "anonymous", "aman"];

fn token_json(token: &Token, now_ms: Millis) -> Value {
    let status = match token.revoked_ms {
        Some(_) => "revoked",
        None if token.expires_ms <= now_ms => "expired",
        None => "good",
    };
    json!({
        "id": token.jti,
        "sub": token.sub,
        "scope": token.scope,
        "status": status,
        "minted_by": token.minted_by,
        "created_at": rfc3339(token.issued_ms),
        "expires_at": rfc3339(token.expires_ms),
        "revoked_at": token.revoked_ms.map(rfc3339),
    })
}

fn check_sub(sub: &str) -> Result<(), Error> {
    let good = |c: char| c.is_ascii_alphanumeric() || ".-_@+".contains(c);
    if sub.is_empty() || sub.len() > SUB_CHARS_MAX || !sub.chars().all(good) {
        let reason = format!("must have 1 to {SUB_CHARS_MAX} letters, digits or . - _ @ +.");
        return Err(Error::invalid("sub", reason));
    }
    if RESERVED.iter().any(|reserved| sub.eq_ignore_ascii_case(reserved)) {
        return Err(Error::invalid("sub", format!("'{sub}' is a name of the daemon's own. Choose another.")));
    }
    Ok(())
}

fn check_scope(names: &str) -> Result<String, Error> {
    let known = || Scope::GRANTED.map(Scope::name).join(", ");
    let scopes = gate::scopes(names)
        .map_err(|name| Error::invalid("scope", format!("'{name}' is no scope; there are: {}.", known())))?;
    if scopes.is_empty() {
        return Err(Error::invalid("scope", format!("is required: one or more of {}.", known())));
    }
    Ok(scopes.iter().map(|scope| scope.name()).collect::<Vec<_>>().join(" "))
}

fn check_ttl(text: Option<&str>) -> Result<Millis, Error> {
    let Some(text) = text else { return Ok(TTL_DEFAULT_MS) };
    let ttl = parse_duration(text).and_then(|ttl| Millis::try_from(ttl.as_millis()).ok());
    ttl.filter(|ttl| (1000..=TTL_MS_MAX).contains(ttl))
        .ok_or_else(|| Error::invalid("ttl", "must be a duration from 1s to 366d, such as 12h or 30d."))
}

fn claims(token: &Token) -> Claims {
    Claims::new(&token.sub, &token.scope, &token.jti, token.issued_ms, token.expires_ms)
}

/// `POST /auth/token`: mints a token. It is shown in this answer only.
pub(super) async fn create(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    let mut fields = call.fields().await?;
    let (sub, scope, ttl) = (fields.required_text("sub"), fields.required_text("scope"), fields.text("ttl"));
    fields.done()?;
    check_sub(&sub)?;
    let (scope, ttl_ms) = (check_scope(&scope)?, check_ttl(ttl.as_deref())?);
    if app.gate.minted() >= TOKENS_MAX {
        let reason = format!("{TOKENS_MAX} tokens are good. Revoke some first.");
        return Err(Error::conflict("limit_reached", reason).into());
    }
    // Whole seconds, as the token itself can say no more.
    let issued_ms = app.clock.now_ms() / 1000 * 1000;
    let token = Token {
        jti: id::fresh(),
        sub,
        scope,
        minted_by: call.principal.as_ref().map_or_else(String::new, |who| who.name.to_string()),
        issued_ms,
        expires_ms: issued_ms + ttl_ms / 1000 * 1000,
        revoked_ms: None,
    };
    let signed = app.gate.sign(&claims(&token))?;
    let mut shown = token_json(&token, issued_ms);
    let (draft, again, kept, added) = (call.draft.clone(), call.again.clone(), shown.clone(), token.clone());
    app.store
        .write(move |tx| {
            tokens::add(tx, &added)?;
            again.keep(tx, StatusCode::CREATED, Some("/auth/token"), &kept)?;
            let detail = json!({ "sub": added.sub, "scope": added.scope, "expires_at": rfc3339(added.expires_ms) });
            draft.record(tx, &added.jti, detail)
        })
        .await?;
    app.gate.add(&token);
    shown["token"] = signed.into();
    let mut reply = body::reply(StatusCode::CREATED, &shown)?;
    reply.headers.push((LOCATION, HeaderValue::from_static("/auth/token")));
    Ok(reply)
}

/// Completes a kept answer of [`create`]: the token is not stored, but the same claims give it again.
pub(super) fn revive(app: &App, kept: &mut Value) -> Result<(), Error> {
    let text = |name: &str| kept[name].as_str().unwrap_or_default();
    let time = |name: &str| parse_rfc3339(text(name)).unwrap_or_default();
    let claims = Claims::new(text("sub"), text("scope"), text("id"), time("created_at"), time("expires_at"));
    kept["token"] = app.gate.sign(&claims)?.into();
    Ok(())
}

/// `GET /auth/token`: what was minted, newest first, without the tokens themselves.
pub(super) async fn list(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    let query = Query::read(&call, &["limit", "cursor"])?;
    let (limit, before) = (query.limit()?, query.cursor::<1>("token")?.map(|[row]| row));
    let mut found = app.store.read(move |conn| tokens::list(conn, before, limit + 1)).await?;
    let next = query::cut(&mut found, limit, "token", |(row, _)| *row);
    let now_ms = app.clock.now_ms();
    let items: Vec<Value> = found.iter().map(|(_, token)| token_json(token, now_ms)).collect();
    body::ok(&json!({ "items": items, "next_cursor": next }))
}

/// `DELETE /auth/token?id=`: revokes a token, and ends the sessions and streams that it opened.
pub(super) async fn revoke(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    let query = Query::read(&call, &["id"])?;
    let jti = query.text("id").ok_or_else(|| Error::invalid("id", "is required: the id of the token, as ?id=."))?;
    let (draft, now_ms, wanted) = (call.draft.clone(), app.clock.now_ms(), jti.clone());
    app.store
        .write(move |tx| {
            let token = tokens::revoke(tx, &wanted, now_ms)?;
            draft.record(tx, &wanted, json!({ "sub": token.sub, "scope": token.scope }))
        })
        .await?;
    app.gate.remove(&jti);
    body::ok(&json!({ "deleted": true }))
}
