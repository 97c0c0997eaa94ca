//! Sessions: what is talked with agents. Who may see which is decided here, in [`Inner::seen`], and nowhere else.

use serde_json::{Value, json};

use super::{Agents, Audit, Inner, transcript};
use crate::clock::{Millis, rfc3339};
use crate::error::Error;
use crate::event::Trust;
use crate::id;
use crate::store::chat::{self as rows, Filter, Kind, MessageRow, NewSession, SessionRow};
use crate::store::{Tx, turns};

/// Characters of a title.
const TITLE_CHARS_MAX: usize = 200;
/// Characters of a title that is made of the first words.
const TITLE_CHARS_MADE: usize = 60;
/// Messages that the state of a session shows; the rest is in its history.
const MESSAGES_SHOWN: usize = 100;
/// Hits of a search.
pub const HITS_MAX: usize = 100;
/// Bytes of messages that an export holds.
const EXPORT_BYTES_MAX: usize = 64 << 20;
/// Messages that are read at a time.
const PAGE_ROWS: usize = 500;

/// Who talks, or looks at what is talked. An administrator sees every session, everybody else their own: those that a
/// principal of the same name began.
#[derive(Debug, Clone)]
pub struct Visitor {
    /// The authenticated principal, or whoever asks on its behalf.
    pub principal: String,
    /// How far what it says is believed.
    pub trust: Trust,
    /// True for administrators.
    pub sees_all: bool,
    /// The only kind of sessions that is theirs; none = of every kind.
    pub only: Option<Kind>,
}

/// A session that is wanted.
#[derive(Debug, Clone)]
pub struct WantedSession {
    /// Its agent; none = the default one.
    pub agent: Option<String>,
    /// Its title; none = one is made of the first words.
    pub title: Option<String>,
    /// Who talks in it.
    pub kind: Kind,
}

/// Which messages of a session are meant.
#[derive(Debug, Clone, Copy)]
pub struct Range {
    /// Those behind this one.
    pub after: Option<i64>,
    /// As many of them.
    pub rows_max: usize,
    /// Those of all branches, not only of the one that is shown.
    pub all: bool,
}

/// How a conversation is written out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Markdown, for people: the branch that is shown.
    Markdown,
    /// JSON, for programs: all branches, with attachments.
    Json,
}

impl Agents {
    /// Begins a session.
    pub async fn create_session(&self, who: &Visitor, wanted: WantedSession, audit: Audit) -> Result<Value, Error> {
        let agent = wanted.agent.unwrap_or_else(|| super::DEFAULT.to_owned());
        self.ready(&agent)?;
        let title = wanted.title.map(|title| checked_title(&title)).transpose()?;
        let (principal, trust, at_ms) = (who.principal.clone(), who.trust, self.inner.now_ms());
        let new = NewSession { id: id::fresh(), agent, title, kind: wanted.kind, principal, trust, at_ms };
        let store = self.inner.bus.store();
        store.takes_new()?;
        let change = move |tx: &mut Tx<'_>| {
            let shown = transcript::session(&rows::create(tx, &new)?, None);
            audit(tx, &shown)?;
            Ok(shown)
        };
        store.write(change).await
    }

    /// Sessions that `who` may see, those that changed last first, each with its place in the list.
    pub async fn sessions(
        &self,
        who: &Visitor,
        filter: Filter,
        before: Option<(Millis, i64)>,
        rows_max: usize,
    ) -> Result<Vec<((Millis, i64), Value)>, Error> {
        let filter = who.limited(filter);
        let read = self.inner.bus.store().read(move |conn| {
            let found = rows::sessions(conn, &filter, before, rows_max)?;
            let one = |row: SessionRow| {
                let turn = turns::open_of_session(conn, row.number)?;
                Ok(((row.updated_ms, row.number), transcript::session(&row, turn.as_ref())))
            };
            found.into_iter().map(one).collect()
        });
        read.await
    }

    /// How a session stands, with the newest messages of the branch that is shown.
    pub async fn session_state(&self, who: &Visitor, id: &str) -> Result<Value, Error> {
        let row = self.inner.seen(who, id).await?;
        let approvals = self.inner.parts.tools.pending().await?;
        let (_, usage) = self.inner.parts.budget.usage(&format!("session/{}", row.id)).await?;
        let read = self.inner.bus.store().read(move |conn| {
            // Once more: state, turn and messages of one moment.
            let row = rows::by_number(conn, row.number)?.ok_or_else(|| Error::not_found("session", row.id))?;
            let turn = turns::newest_of_session(conn, row.number)?;
            let path = rows::path_to(conn, row.head, MESSAGES_SHOWN, rows::READ_BYTES_MAX)?;
            Ok(transcript::state(&row, turn.as_ref(), &path))
        });
        let mut shown = read.await?;
        shown["usage"] = json!(usage);
        let waits = approvals.iter().filter(|asked| asked.session.as_deref() == Some(id));
        shown["approvals"] = waits.map(|asked| json!(asked)).collect();
        if !shown["approvals"].as_array().is_none_or(Vec::is_empty) && shown["state"] == "running" {
            shown["state"] = "waiting".into();
        }
        Ok(shown)
    }

    /// Messages of a session, oldest first, each with its number; and whether they are fewer than were asked for and are
    /// there.
    pub async fn history(&self, who: &Visitor, id: &str, range: Range) -> Result<(Vec<(i64, Value)>, bool), Error> {
        let row = self.inner.seen(who, id).await?;
        let read = self.inner.bus.store().read(move |conn| {
            let found = if range.all {
                rows::page_of_all(conn, row.number, range.after, range.rows_max)?
            } else {
                rows::page(conn, row.head, range.after, range.rows_max)?
            };
            let shown = |message: &MessageRow| (message.number, transcript::message(message, false));
            Ok((found.messages.iter().map(shown).collect(), found.is_cut))
        });
        read.await
    }

    /// Messages that have all the words, of sessions that `who` may see, best first.
    pub async fn search_chats(
        &self,
        who: &Visitor,
        words: String,
        filter: Filter,
        rows_max: usize,
    ) -> Result<Vec<Value>, Error> {
        let filter = who.limited(filter);
        let rows_max = rows_max.min(HITS_MAX);
        let read = self.inner.bus.store().read(move |conn| rows::search(conn, &words, &filter, rows_max));
        Ok(read.await?.iter().map(transcript::hit).collect())
    }

    /// A conversation written out.
    pub async fn export(&self, who: &Visitor, id: &str, format: Format) -> Result<String, Error> {
        let row = self.inner.seen(who, id).await?;
        let now = rfc3339(self.inner.now_ms());
        let read = self.inner.bus.store().read_alone(move |conn| {
            let (mut writer, mut after) = (transcript::Writer::new(format, &row, &now), None);
            loop {
                let page = match format {
                    Format::Markdown => rows::page(conn, row.head, after, PAGE_ROWS)?,
                    Format::Json => rows::page_of_all(conn, row.number, after, PAGE_ROWS)?,
                };
                let Some(last) = page.messages.last() else { break };
                after = Some(last.number);
                page.messages.iter().for_each(|message| writer.add(message));
                if writer.bytes() > EXPORT_BYTES_MAX {
                    writer.cut();
                    break;
                }
            }
            Ok(writer.end())
        });
        read.await
    }

    /// Gives a session a title.
    pub async fn rename_session(&self, who: &Visitor, id: &str, title: &str, audit: Audit) -> Result<Value, Error> {
        let (title, now_ms) = (checked_title(title)?, self.inner.now_ms());
        self.inner.change(who, id, audit, move |tx, row| rows::set_title(tx, row.number, &title, true, now_ms)).await
    }

    /// Lets a session take no messages any more. What is under way ends by itself.
    pub async fn close_session(&self, who: &Visitor, id: &str, audit: Audit) -> Result<Value, Error> {
        let now_ms = self.inner.now_ms();
        let close = move |tx: &Tx<'_>, row: &SessionRow| {
            if row.closed {
                return Err(Error::conflict("invalid_state", "It is closed already. Begin a new session to talk on."));
            }
            rows::close(tx, row.number, now_ms)
        };
        self.inner.change(who, id, audit, close).await
    }

    /// Stops the turn that is under way in a session; what came of it stays.
    pub async fn stop_session(&self, who: &Visitor, id: &str, audit: Audit) -> Result<Value, Error> {
        let row = self.inner.seen(who, id).await?;
        let record = move |tx: &mut Tx<'_>, any: bool| audit(tx, &json!({ "stopped": any }));
        let any = self.stop(row.number, &who.principal, record).await?;
        Ok(json!({ "id": row.id, "stopped": any }))
    }

    /// Removes a session with all that was said in it. The events that it led to, which hold none of it, stay.
    pub async fn delete_session(&self, who: &Visitor, id: &str, audit: Audit) -> Result<Value, Error> {
        let row = self.inner.seen(who, id).await?;
        let (store, number, now_ms) = (self.inner.bus.store(), row.number, self.inner.now_ms());
        let hide = move |tx: &mut Tx<'_>| {
            turns::end_orphans(tx, Some(number), now_ms)?;
            if rows::open_turn_in(tx, number)?.is_some() {
                return Err(under_way());
            }
            rows::hide(tx, number)?;
            audit(tx, &json!({ "id": row.id, "agent_id": row.agent, "messages": row.messages }))
        };
        store.write(hide).await?;
        self.inner.frames.forget(id, None);
        // Nobody sees it any more; what a fault keeps of it goes with the next run of retention.
        loop {
            match store.write(move |tx| rows::purge(tx, number)).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    let error = error.chain().join(": ");
                    tracing::warn!(error, "What is left of a removed session goes with the next run of retention.");
                    break;
                }
            }
        }
        Ok(json!({ "deleted": true, "id": id }))
    }
}

impl Visitor {
    /// `filter` with what this visitor may not see left out.
    fn limited(&self, filter: Filter) -> Filter {
        let filter = Filter { kind: self.only.or(filter.kind), ..filter };
        if self.sees_all { filter } else { Filter { principal: Some(self.principal.clone()), ..filter } }
    }
}

impl Inner {
    /// The session of that id, if `who` may see it. To everybody else it is not there: ids of others cannot be told from
    /// ids that are none.
    pub(super) async fn seen(&self, who: &Visitor, id: &str) -> Result<SessionRow, Error> {
        let wanted = id.to_owned();
        let found = self.bus.store().read(move |conn| rows::session(conn, &wanted)).await?;
        let is_open = |row: &SessionRow| {
            who.sees_all || row.principal == who.principal && who.only.is_none_or(|kind| row.kind == kind)
        };
        found.filter(is_open).ok_or_else(|| Error::not_found("session", id))
    }

    /// Changes a session together with its record; what is shown of it then.
    async fn change(
        &self,
        who: &Visitor,
        id: &str,
        audit: Audit,
        change: impl FnOnce(&Tx<'_>, &SessionRow) -> Result<(), Error> + Send + 'static,
    ) -> Result<Value, Error> {
        self.seen(who, id).await?;
        let id = id.to_owned();
        let write = self.bus.store().write(move |tx| {
            let find = |tx: &Tx<'_>| rows::session_in(tx, &id)?.ok_or_else(|| Error::not_found("session", id.clone()));
            change(tx, &find(tx)?)?;
            let row = find(tx)?;
            let shown = transcript::session(&row, rows::open_turn_in(tx, row.number)?.as_ref());
            audit(tx, &shown)?;
            Ok(shown)
        });
        write.await
    }
}

/// 409 while a turn is under way.
pub(super) fn under_way() -> Error {
    let reason = "A turn is under way in this session. Wait for its end, or stop it with POST /chat/session/{id}/stop \
                  (`aman session stop`).";
    Error::conflict("in_progress", reason)
}

pub(super) fn checked_title(title: &str) -> Result<String, Error> {
    if title.trim().is_empty() || title.chars().count() > TITLE_CHARS_MAX || title.chars().any(char::is_control) {
        return Err(Error::invalid("title", format!("must be one line of 1 to {TITLE_CHARS_MAX} characters.")));
    }
    Ok(title.trim().to_owned())
}

/// A title of the first words of a text; none when it has none.
pub(super) fn made_title(text: &str) -> Option<String> {
    let line = text.lines().map(str::trim).find(|line| !line.is_empty())?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let line: String = words.join(" ").chars().filter(|c| !c.is_control()).collect();
    let Some((end, _)) = line.char_indices().nth(TITLE_CHARS_MADE) else { return Some(line) };
    let cut = &line[..end];
    // At the end of a word, unless that leaves too little.
    let cut = cut.rfind(' ').filter(|at| *at > end / 2).map_or(cut, |at| &cut[..at]);
    Some(format!("{}…", cut.trim_end_matches([' ', ',', '.', ':', ';'])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles_are_made_of_the_first_words() {
        for (text, title) in
            [("\n  Hello,   you \nmore", Some("Hello, you")), ("", None), (" \n\t", None), ("日本語", Some("日本語"))]
        {
            assert_eq!(made_title(text).as_deref(), title, "{text:?}");
        }
        let long = made_title(&"word, ".repeat(30)).expect("a title");
        assert!(long.chars().count() <= TITLE_CHARS_MADE + 1 && long.ends_with("word…"), "{long}");
        let one = made_title(&"é".repeat(100)).expect("a title");
        assert_eq!(one.chars().count(), TITLE_CHARS_MADE + 1);
    }
}
