//! What agents do for plugins, which ask by the bus. A plugin has the sessions that it created, is trusted no further than
//! plugins, and every change that it makes has its record here, with the change.

use std::sync::{Arc, Weak};

use serde_json::{Value, json};

use super::frames::{About, Kind as Told, Viewer};
use super::send::Errand;
use super::sessions::checked_title;
use super::transcript;
use super::{Agents, Asked, Asking, Audit, DEFAULT, Definition, Inner, Put, Range, Visitor, attachments, check_text};
use crate::bus::agency::{Agency, Asker, BegunTurn, Frames, NewTurn, Request, Said};
use crate::error::Error;
use crate::event::Trust;
use crate::id::{self, TraceId};
use crate::store::Tx;
use crate::store::audit::{self, Outcome, Record};
use crate::store::chat::{self as rows, Filter, Kind, NewSession};
use crate::store::turns::{self, TurnRow};

/// Sessions that one plugin may have.
const SESSIONS_MAX: i64 = 10_000;
/// Turns that one plugin may have under way.
const TURNS_OPEN_MAX: i64 = 16;
/// What the keys begin with that the work of a plugin has by itself, and how often a turn of it is taken anew.
const WORK: &str = "work/";
const AGAIN_MAX: u32 = 100;
/// Who stops the turns of a plugin that is switched off.
const OFF: &str = "aman/plugins";

/// What the bus hands on.
pub(super) fn agency(inner: &Arc<Inner>) -> Agency {
    let [asked, begun, answered] = [(); 3].map(|()| Arc::downgrade(inner));
    Agency {
        ask: Box::new(move |asker, request| {
            let inner = Weak::clone(&asked);
            Box::pin(async move { there(&inner)?.request(&asker, request).await })
        }),
        turn: Box::new(move |asker, wanted| {
            let inner = Weak::clone(&begun);
            Box::pin(async move { there(&inner)?.begin_turn(&asker, wanted).await })
        }),
        answer: Box::new(move |asker, turn| {
            let inner = Weak::clone(&answered);
            Box::pin(async move { there(&inner)?.inner.outcome(&asker, turn).await })
        }),
    }
}

fn there(inner: &Weak<Inner>) -> Result<Agents, Error> {
    let ending = || Error::Busy {
        code: "draining",
        what: "The daemon is shutting down and takes no new work.".to_owned(),
        retry_after_ms: 5000,
    };
    Ok(Agents { inner: inner.upgrade().ok_or_else(ending)? })
}

/// Whoever asks, as a visitor of sessions: those that it created are its own.
fn visitor(asker: &Asker) -> Visitor {
    let trust = asker.trust.min(Trust::Plugin);
    Visitor { principal: asker.principal.clone(), trust, sees_all: false, only: Some(Kind::Plugin) }
}

/// A page of rows that are one more than are shown when there is a next one.
fn page<P>(mut rows: Vec<(P, Value)>, rows_max: usize, is_cut: bool, place: impl Fn(&P) -> String) -> Value {
    let more = rows.len() > rows_max || is_cut;
    rows.truncate(rows_max);
    let next = rows.last().filter(|_| more).map(|(at, _)| place(at));
    let items: Vec<Value> = rows.into_iter().map(|(_, shown)| shown).collect();
    json!({ "items": items, "next": next })
}

/// The numbers of a place in a list.
fn place<const N: usize>(after: Option<String>) -> Result<Option<[i64; N]>, Error> {
    let Some(text) = after else { return Ok(None) };
    let numbers: Option<Vec<i64>> = text.split('.').map(|part| part.parse().ok()).collect();
    let numbers = numbers.and_then(|numbers| <[i64; N]>::try_from(numbers).ok());
    let wrong = || Error::invalid("after", "must be what an earlier page gave as its next.");
    numbers.map(Some).ok_or_else(wrong)
}

impl Agents {
    async fn request(&self, asker: &Asker, request: Request) -> Result<Value, Error> {
        let who = visitor(asker);
        match request {
            Request::Agents => Ok(Value::Array(self.list().await?)),
            Request::Agent(id) => self.get(&id).await,
            Request::Put { id, definition } => self.put_for(asker, id, definition).await,
            Request::Remove(id) => {
                let before = self.definition(&id).ok().map(|definition| definition.digest.clone());
                let removed = self.remove(&id, self.inner.digests(asker, "agent.delete", &id, before)).await;
                self.inner.refused(asker, "agent.delete", &id, removed).await
            }
            Request::Create { agent, title, key } => self.create_for(asker, agent, title, key).await,
            Request::Sessions { agent, after, rows_max } => {
                let before = place(after)?.map(|[at, number]| (at, number));
                let filter = Filter { agent, ..Filter::default() };
                let found = self.sessions(&who, filter, before, rows_max + 1).await?;
                Ok(page(found, rows_max, false, |(at, number)| format!("{at}.{number}")))
            }
            Request::Session(id) => self.standing(&who, &id).await,
            Request::History { session, after, rows_max } => {
                let after = place(after)?.map(|[number]| number);
                let range = Range { after, rows_max: rows_max + 1, all: false };
                let (found, is_cut) = self.history(&who, &session, range).await?;
                Ok(page(found, rows_max, is_cut, i64::to_string))
            }
            Request::Stop(id) => {
                let record = self.inner.record(asker, "chat.stop", &id, |shown| json!({ "stopped": shown["stopped"] }));
                self.stop_session(&who, &id, record).await
            }
            Request::Delete(id) => {
                let detail = |gone: &Value| json!({ "agent_id": gone["agent_id"], "messages": gone["messages"] });
                let record = self.inner.record(asker, "chat.delete", &id, detail);
                self.delete_session(&who, &id, record).await
            }
            Request::StopAll => self.stop_all(asker).await,
        }
    }

    /// Stores a definition, trusted no further than whoever asks, and with nothing that the agent does not have.
    async fn put_for(&self, asker: &Asker, id: String, mut definition: Value) -> Result<Value, Error> {
        let most = asker.trust.min(Trust::Plugin);
        if let Value::Object(fields) = &mut definition
            && fields.get("trust").is_none_or(Value::is_null)
        {
            fields.insert("trust".to_owned(), most.name().into());
        }
        let definition = Definition::parse_json(&definition)?;
        let before = self.definition(&id).ok().map(|definition| definition.digest.clone());
        let record = self.inner.digests(asker, "agent.put", &id, before);
        let put =
            Put { id: id.clone(), definition, principal: asker.principal.clone(), narrow: Some(most), dry_run: false };
        let stored = self.put(put, record).await;
        let shown = stored.map(|(shown, is_new)| json!({ "agent": shown, "is_new": is_new }));
        self.inner.refused(asker, "agent.put", &id, shown).await
    }

    /// Creates a session, or finds the one with the same key.
    async fn create_for(
        &self,
        asker: &Asker,
        agent: Option<String>,
        title: Option<String>,
        key: Option<String>,
    ) -> Result<Value, Error> {
        let (who, agent) = (visitor(asker), agent.unwrap_or_else(|| DEFAULT.to_owned()));
        let id = key.map(|key| id::named(&["session", &who.principal, &key]));
        if let Some(id) = &id
            && let Ok(known) = self.standing(&who, id).await
        {
            return Ok(known);
        }
        self.ready(&agent)?;
        let (title, at_ms) = (title.map(|title| checked_title(&title)).transpose()?, self.inner.now_ms());
        let store = self.inner.bus.store();
        store.takes_new()?;
        let (is_named, id) = (id.is_some(), id.unwrap_or_else(id::fresh));
        let record = self.inner.record(asker, "chat.create", &id, |shown| json!({ "agent_id": shown["agent_id"] }));
        let Visitor { principal, trust, .. } = who;
        let new = NewSession { id, agent, title, kind: Kind::Plugin, principal, trust, at_ms };
        let create = move |tx: &mut Tx<'_>| {
            if is_named && let Some(known) = rows::session_in(tx, &new.id)? {
                // Somebody was faster with the same key.
                return Ok(transcript::session(&known, rows::open_turn_in(tx, known.number)?.as_ref()));
            }
            if is_named && rows::is_known_in(tx, &new.id)? {
                return Err(Error::conflict(
                    "invalid_state",
                    "The session with this key was removed; take another key.",
                ));
            }
            if rows::count_in(tx, &new.principal, Kind::Plugin)? >= SESSIONS_MAX {
                let reason = format!("{} has {SESSIONS_MAX} sessions, which is the most. Delete one.", new.principal);
                return Err(Error::conflict("invalid_state", reason));
            }
            let shown = transcript::session(&rows::create(tx, &new)?, None);
            record(tx, &shown)?;
            Ok(shown)
        };
        store.write(create).await
    }

    /// How a session stands, without what was said in it.
    async fn standing(&self, who: &Visitor, id: &str) -> Result<Value, Error> {
        let row = self.inner.seen(who, id).await?;
        let number = row.number;
        let turn = self.inner.bus.store().read(move |conn| turns::open_of_session(conn, number)).await?;
        let mut shown = transcript::session(&row, turn.as_ref());
        if turn.is_some() {
            let asked = self.inner.parts.tools.pending().await?;
            if asked.iter().any(|asked| asked.session.as_deref() == Some(id)) {
                shown["state"] = "waiting".into();
            }
        }
        Ok(shown)
    }

    /// Stops every turn in sessions of the asker's.
    async fn stop_all(&self, asker: &Asker) -> Result<Value, Error> {
        let principal = asker.principal.clone();
        let busy = self.inner.bus.store().read(move |conn| rows::at_work(conn, &principal, Kind::Plugin)).await?;
        let count = busy.len();
        let mut failed = None;
        for session in busy {
            if let Err(error) = self.stop(session, OFF, |_, _| Ok(())).await {
                failed = Some(error);
            }
        }
        failed.map_or_else(|| Ok(json!({ "stopped": count })), Err)
    }

    /// Has a turn taken, or finds the one with the same key.
    async fn begin_turn(&self, asker: &Asker, wanted: NewTurn) -> Result<BegunTurn, Error> {
        let who = visitor(asker);
        let session = self.inner.seen(&who, &wanted.session).await?.id;
        let turn = match &wanted.key {
            Some(key) => Some(self.inner.turn_of(&who.principal, &session, key).await?),
            None => None,
        };
        if let Some(known) = self.inner.known(asker, turn.as_deref()).await? {
            return Ok(known);
        }
        if asker.cause.is_none() {
            self.inner.bus.admit_to_trace(asker.trace)?;
        }
        let (asked, action) = match wanted.said {
            Said::Send { text, attachments } => {
                check_text(&text)?;
                (Asked::Send { text, attachments: attachments::read(&attachments)? }, "chat.send")
            }
            Said::Edit { message, text } => {
                check_text(&text)?;
                (Asked::Edit { message, text }, "chat.edit")
            }
            Said::Retry => (Asked::Retry, "chat.retry"),
        };
        let asking = Asking { asked, expected_version: wanted.expected_version, trace: asker.trace };
        let errand = Errand { turn: turn.clone(), cause: asker.cause.clone(), open_max: Some(TURNS_OPEN_MAX) };
        let detail = |shown: &Value| json!({ "message_id": shown["message_id"], "turn_id": shown["turn_id"], "agent_id": shown["agent_id"] });
        let record = self.inner.record(asker, action, &session, detail);
        match self.ask_on(&who, &session, asking, errand, record).await {
            Ok(begun) => Ok(begun_turn(begun.viewer, true)),
            Err(error @ Error::Conflict { code: "already_exists", .. }) if turn.is_some() => {
                self.inner.known(asker, turn.as_deref()).await?.ok_or(error)
            }
            Err(error) => Err(error),
        }
    }
}

fn begun_turn(viewer: Viewer, is_new: bool) -> BegunTurn {
    let About { session, turn, trace, .. } = viewer.about().clone();
    BegunTurn { id: turn, session, trace: trace.to_string(), is_new, frames: frames_of(viewer) }
}

fn frames_of(mut viewer: Viewer) -> Frames {
    Box::new(move |cx| viewer.poll_next(cx).map(|frame| frame.map(|frame| (frame.kind.name(), frame.data))))
}

/// What is told of a turn that ended before anybody looked: its answer and its end.
fn told_again(outcome: &Value) -> Frames {
    let mut frames = Vec::new();
    if let Some(text) = outcome["text"].as_str().filter(|text| !text.is_empty()) {
        frames.push((Told::Token.name(), json!({ "text": text })));
    }
    frames.push(match outcome["status"].as_str() {
        Some("failed") => (Told::Error.name(), outcome["error"].clone()),
        status => (Told::Done.name(), json!({ "message_id": outcome["message_id"], "status": status })),
    });
    let mut frames = frames.into_iter();
    Box::new(move |_| std::task::Poll::Ready(frames.next()))
}

impl Inner {
    /// The id of the turn with this key. Work that is done again has one taken anew that came to no answer; a key that the
    /// asker chose is one turn, whatever becomes of it.
    async fn turn_of(&self, principal: &str, session: &str, key: &str) -> Result<String, Error> {
        let named = |n: u32| id::named(&["turn", principal, session, key, &n.to_string()]);
        let mut n = 0;
        while key.starts_with(WORK) && n < AGAIN_MAX {
            let id = named(n);
            let row = self.bus.store().read(move |conn| turns::by_id(conn, &id)).await?;
            let is_void = |row: TurnRow| row.status == turns::Status::Failed || row.stopped_by.as_deref() == Some(OFF);
            if !row.is_some_and(is_void) {
                break;
            }
            n += 1;
        }
        Ok(named(n))
    }

    /// A turn of the asker's that is there, from its begin.
    async fn known(&self, asker: &Asker, turn: Option<&str>) -> Result<Option<BegunTurn>, Error> {
        let Some(turn) = turn.map(str::to_owned) else { return Ok(None) };
        let Some(row) = self.bus.store().read(move |conn| turns::by_id(conn, &turn)).await? else { return Ok(None) };
        let viewer = self.frames.watch(&row.session_id).filter(|viewer| viewer.about().turn == row.id);
        if let Some(viewer) = viewer {
            return Ok(Some(begun_turn(viewer, false)));
        }
        let TurnRow { id, session_id: session, trace, agent, .. } = row;
        match self.outcome(asker, id.clone()).await? {
            Some(outcome) => Ok(Some(BegunTurn { id, session, trace, is_new: false, frames: told_again(&outcome) })),
            None => {
                // It waits for its delivery, as after a restart.
                let trace: TraceId =
                    trace.parse().map_err(|()| Error::internal("reading a turn")("its trace is none"))?;
                let about = About { session, turn: id, agent, principal: asker.principal.clone(), trace };
                Ok(Some(begun_turn(self.frames.view(about), false)))
            }
        }
    }

    /// What came of a turn in a session of the asker's; none before its end.
    async fn outcome(&self, asker: &Asker, turn: String) -> Result<Option<Value>, Error> {
        let who = visitor(asker);
        let read = self.bus.store().read(move |conn| {
            let Some(row) = turns::by_id(conn, &turn)? else { return Err(Error::not_found("turn", turn)) };
            let answer = rows::answer_of(conn, row.number)?;
            Ok((row, answer))
        });
        let (row, answer) = read.await?;
        self.seen(&who, &row.session_id).await?;
        if !row.status.is_ended() {
            return Ok(None);
        }
        let (message, text) = answer.unzip();
        Ok(Some(json!({
            "status": row.status.name(), "text": text.unwrap_or_default(), "message_id": message, "error": row.error,
        })))
    }

    fn row_of(&self, asker: &Asker, action: &str, target: &str) -> Record {
        Record {
            at_ms: self.now_ms(),
            principal: asker.principal.clone(),
            claimed_operator: None,
            action: action.to_owned(),
            target: target.to_owned(),
            outcome: Outcome::Done,
            status: 200,
            trace: Some(asker.trace.to_string()),
            detail: json!({}),
            before_digest: None,
            after_digest: None,
        }
    }

    /// The record of a change, with what `detail` makes of its answer.
    fn record(&self, asker: &Asker, action: &str, target: &str, detail: fn(&Value) -> Value) -> Audit {
        let row = self.row_of(asker, action, target);
        Box::new(move |tx, shown| audit::append(tx, &Record { detail: detail(shown), ..row }).map(drop))
    }

    /// The record of a change of a definition, with the digests before and after.
    fn digests(&self, asker: &Asker, action: &str, target: &str, before: Option<String>) -> Audit {
        let row = Record { before_digest: before, ..self.row_of(asker, action, target) };
        Box::new(move |tx, shown| {
            let after_digest = shown["digest"].as_str().map(str::to_owned);
            let detail = json!({ "status": shown["status"] });
            audit::append(tx, &Record { detail, after_digest, ..row }).map(drop)
        })
    }

    /// Records that a change was not allowed, if it was not; gives what came of it.
    async fn refused(
        &self,
        asker: &Asker,
        action: &str,
        target: &str,
        done: Result<Value, Error>,
    ) -> Result<Value, Error> {
        let Err(Error::Forbidden { code, .. }) = &done else { return done };
        let row = self.row_of(asker, action, target);
        let row = Record { outcome: Outcome::Refused, status: 403, detail: json!({ "code": code }), ..row };
        self.bus.store().write(move |tx| audit::append(tx, &row)).await?;
        done
    }
}
