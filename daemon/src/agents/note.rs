//! An answer that a workflow made, put into the session of whoever started it: no model is asked, and the message is stored with
//! the settlement of the delivery that brings it.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::Inner;
use super::delivery::Job;
use crate::bus::{Effects, Failure, Outcome};
use crate::error::Error;
use crate::event::Trust;
use crate::id::fresh;
use crate::store::chat::{self, Body, NewMessage, Role};
use crate::store::{Tx, turns};

/// How soon a session is looked at again in which a turn is under way.
const AGAIN: Duration = Duration::from_secs(1);

/// How the session of an answer stands.
enum Place {
    /// It is closed, or was removed.
    None,
    /// A turn is under way in it.
    Busy,
    /// The answer can go behind what is said there: the session's number.
    Free(i64),
}

/// An answer and where it goes.
pub(super) struct Note {
    /// The session's id.
    pub session: String,
    /// Who started what made it; the session is theirs.
    pub principal: String,
    /// The words.
    pub text: String,
    /// How far they are believed.
    pub trust: Trust,
}

impl Inner {
    /// Puts an answer into its session, behind the end of what is said there now.
    pub(super) async fn note(self: &Arc<Self>, job: &Job, note: Note) -> Outcome {
        match self.place(job, &note).await {
            Ok(Place::Free(session)) => self.noted(session, note),
            // It waits outside of the agent's lane: the turn may need the place.
            Ok(Place::Busy) => Outcome::Postponed(AGAIN),
            Ok(Place::None) => unread(&note),
            Err(error @ Error::NotFound { .. }) => Outcome::Reject(Failure { chain: error.chain(), timed_out: false }),
            Err(error) => Outcome::Retry(Failure { chain: error.chain(), timed_out: false }, None),
        }
    }

    /// How the session stands.
    async fn place(&self, job: &Job, note: &Note) -> Result<Place, Error> {
        let id = note.session.clone();
        let read = self.bus.store().read(move |conn| {
            let Some(session) = chat::session(conn, &id)? else { return Ok(None) };
            let open = turns::open_of_session(conn, session.number)?;
            Ok(Some((session, open.is_some())))
        });
        let Some((session, busy)) = read.await?.filter(|(session, _)| !session.closed) else { return Ok(Place::None) };
        if session.agent != job.agent || session.principal != note.principal {
            // To whoever is not let in it is not there.
            return Err(Error::not_found("session", note.session.clone()));
        }
        Ok(if busy { Place::Busy } else { Place::Free(session.number) })
    }

    fn noted(&self, session: i64, note: Note) -> Outcome {
        let (id, now_ms) = (fresh(), self.now_ms());
        let result = json!({
            "status": "done", "session_id": note.session, "message_id": id, "trust": note.trust.name(),
        });
        let Note { text, trust, .. } = note;
        let message =
            NewMessage { id, turn: None, role: Role::Assistant, text, body: Body::default(), trust, at_ms: now_ms };
        let state = move |tx: &mut Tx<'_>| {
            if chat::by_number_in(tx, session)?.is_none() {
                return Ok(());
            }
            turns::end_orphans(tx, Some(session), now_ms)?;
            // It began in between: the next attempt waits for its end.
            if chat::open_turn_in(tx, session)?.is_some() {
                return Err(super::sessions::under_way());
            }
            chat::append(tx, session, &message).map(drop)
        };
        Outcome::Done(Effects {
            result: Some(result),
            state: Some(Box::new(state)),
            trust: Some(trust),
            ..Effects::default()
        })
    }
}

/// Nobody reads it any more.
fn unread(note: &Note) -> Outcome {
    let result = json!({
        "status": "done", "session_id": null, "message_id": null, "trust": note.trust.name(),
    });
    Outcome::Done(Effects { result: Some(result), trust: Some(note.trust), ..Effects::default() })
}
