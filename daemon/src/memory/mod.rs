//! Memory: facts that agents remember from one conversation to the next, each with who said it and how far that one is
//! believed. Whoever is trusted less than a paired program writes none, whatever anybody approves.

mod tools;

use std::fmt::Write;

use serde::Serialize;
use serde_json::{Value, json};

pub use tools::MemoryTools;

use crate::bus::Bus;
use crate::clock::{Clock, rfc3339};
use crate::error::{Error, FieldError};
use crate::event::Trust;
use crate::id::fresh;
use crate::redact;
use crate::store::memory::{self as rows, Fact, Whose};
use crate::store::{Store, Tx};
use crate::text::words;

/// Longest fact, in characters.
pub const TEXT_CHARS_MAX: usize = 2000;
/// Words that a fact is filed under, and the longest of them.
pub const TAGS_MAX: usize = 16;
/// Characters of a tag.
pub const TAG_CHARS_MAX: usize = 50;
/// Facts of one agent, or shared ones; and of all together.
const FACTS_MAX: (i64, i64) = (5_000, 20_000);
/// Characters and words that are looked for.
const SEARCH_CHARS_MAX: usize = 256;
/// Words of a message that are looked for in memory.
const RECALL_WORDS_MAX: usize = 48;
/// Characters of a message that are looked at for that.
const RECALL_CHARS_MAX: usize = 4000;

/// Who wants to write.
#[derive(Debug, Clone)]
pub struct Writer {
    /// Named in what is written.
    pub source: String,
    /// How far it is believed, all that led to it included.
    pub trust: Trust,
}

/// A fact to be remembered.
#[derive(Debug, Clone, Default)]
pub struct NewFact {
    /// Whose; none = every agent's.
    pub agent: Option<String>,
    /// What it says.
    pub text: String,
    /// Words that it is filed under.
    pub tags: Vec<String>,
}

/// What is to change of a fact; none = stays.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// What it says.
    pub text: Option<String>,
    /// Words that it is filed under.
    pub tags: Option<Vec<String>>,
}

/// Whose facts are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Of {
    /// Everybody's.
    All,
    /// An agent's own and the shared ones.
    Agent(String),
    /// The shared ones.
    Shared,
}

impl Of {
    fn whose(&self) -> Whose<'_> {
        match self {
            Of::All => Whose::All,
            Of::Agent(agent) => Whose::Agent(agent),
            Of::Shared => Whose::Shared,
        }
    }
}

/// A fact as it is shown.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct Shown {
    /// Its id.
    pub id: String,
    /// Whose it is; null = every agent's.
    pub agent_id: Option<String>,
    /// What it says.
    pub text: String,
    /// Words that it is filed under.
    pub tags: Vec<String>,
    /// Who says so.
    pub source: String,
    /// How far that one is believed.
    pub trust: Trust,
    /// Since when.
    pub created_at: String,
    /// When it was last changed, or said again.
    pub updated_at: String,
    /// Its place in lists.
    #[serde(skip)]
    pub number: i64,
}

impl From<Fact> for Shown {
    fn from(fact: Fact) -> Shown {
        Shown {
            id: fact.id,
            agent_id: fact.agent,
            text: fact.text,
            tags: fact.tags.split_whitespace().map(str::to_owned).collect(),
            source: fact.source,
            trust: fact.trust,
            created_at: rfc3339(fact.created_ms),
            updated_at: rfc3339(fact.updated_ms),
            number: fact.number,
        }
    }
}

/// A record of a change, in its transaction: the fact as it is then.
pub type Audit = Box<dyn FnOnce(&mut Tx<'_>, &Shown) -> Result<(), Error> + Send>;

/// The memory of all agents; cheap to clone.
#[derive(Clone)]
pub struct Memory {
    store: Store,
    clock: Clock,
}

impl Memory {
    /// What the database holds.
    pub fn new(bus: &Bus) -> Memory {
        Memory { store: bus.store().clone(), clock: bus.clock().clone() }
    }

    /// Remembers a fact, and tells whether it is new: what is remembered word for word is not remembered twice.
    /// 403 `trust_too_low`, 409 `memory_full`.
    pub async fn remember(&self, new: NewFact, by: Writer, audit: Audit) -> Result<(Shown, bool), Error> {
        may_write(&by)?;
        let (text, tags) = checked(&new.text, &new.tags)?;
        let now_ms = self.clock.now_ms();
        let source = redact::text(&by.source).into_owned();
        let fact = Fact {
            number: 0,
            id: fresh(),
            agent: new.agent,
            text,
            tags,
            source,
            trust: by.trust,
            created_ms: now_ms,
            updated_ms: now_ms,
        };
        self.store
            .write(move |tx| {
                if let Some(known) = rows::same(tx, fact.agent.as_deref(), &fact.text)? {
                    let merged = merged(&known, &fact);
                    rows::update(tx, &merged)?;
                    let shown = Shown::from(merged);
                    audit(tx, &shown)?;
                    return Ok((shown, false));
                }
                let (own, all) = rows::counts(tx, fact.agent.as_deref())?;
                if own >= FACTS_MAX.0 || all >= FACTS_MAX.1 {
                    let reason = format!(
                        "There are {own} memories of this kind and {all} altogether; at most {} and {}. Forget some \
                         first: `aman memory list`, `aman memory forget`.",
                        FACTS_MAX.0, FACTS_MAX.1
                    );
                    return Err(Error::conflict("memory_full", reason));
                }
                let number = rows::insert(tx, &fact)?;
                let shown = Shown::from(Fact { number, ..fact });
                audit(tx, &shown)?;
                Ok((shown, true))
            })
            .await
    }

    /// Changes what a fact says; who changed it says so from then on.
    pub async fn edit(&self, id: &str, change: Change, by: Writer, audit: Audit) -> Result<Shown, Error> {
        may_write(&by)?;
        let (id, now_ms) = (id.to_owned(), self.clock.now_ms());
        self.store
            .write(move |tx| {
                let known = rows::find_in(tx, &id)?.ok_or_else(|| Error::not_found("memory", id))?;
                let tags = known.tags.split_whitespace().map(str::to_owned).collect();
                let text = change.text.unwrap_or_else(|| known.text.clone());
                let (text, tags) = checked(&text, &change.tags.unwrap_or(tags))?;
                let same = rows::same(tx, known.agent.as_deref(), &text)?;
                if let Some(other) = same.filter(|other| other.number != known.number) {
                    let reason = format!("Another memory says this already: {}.", other.id);
                    return Err(Error::conflict("already_exists", reason));
                }
                // Other tags do not make what was said the word of whoever sets them.
                let (source, trust) = match text == known.text {
                    true => (known.source.clone(), known.trust),
                    false => (redact::text(&by.source).into_owned(), by.trust),
                };
                let fact = Fact { text, tags, source, trust, updated_ms: now_ms, ..known };
                rows::update(tx, &fact)?;
                let shown = Shown::from(fact);
                audit(tx, &shown)?;
                Ok(shown)
            })
            .await
    }

    /// Forgets a fact for good. `of` says whose it may be: [`Of::Agent`] means that agent's own, not the shared ones.
    pub async fn forget(&self, id: &str, of: Of, by: Writer, audit: Audit) -> Result<(), Error> {
        may_write(&by)?;
        let id = id.to_owned();
        self.store
            .write(move |tx| {
                let known = rows::find_in(tx, &id)?;
                let is_theirs = |fact: &Fact| match &of {
                    Of::All => true,
                    Of::Agent(agent) => fact.agent.as_ref() == Some(agent),
                    Of::Shared => fact.agent.is_none(),
                };
                let Some(known) = known.filter(is_theirs) else { return Err(Error::not_found("memory", id)) };
                rows::delete(tx, &known.id)?;
                audit(tx, &Shown::from(known))
            })
            .await
    }

    /// One fact.
    pub async fn get(&self, id: &str) -> Result<Shown, Error> {
        let wanted = id.to_owned();
        let found = self.store.read(move |conn| rows::find(conn, &wanted)).await?;
        found.map(Shown::from).ok_or_else(|| Error::not_found("memory", id))
    }

    /// Facts below the number `before`, newest first.
    pub async fn list(&self, of: Of, before: Option<i64>, rows_max: usize) -> Result<Vec<Shown>, Error> {
        let found = self.store.read(move |conn| rows::list(conn, of.whose(), before, rows_max)).await?;
        Ok(found.into_iter().map(Shown::from).collect())
    }

    /// Facts that have every word of `text`, or words that begin so, best first.
    pub async fn search(&self, of: Of, text: &str, rows_max: usize) -> Result<Vec<Shown>, Error> {
        if text.chars().count() > SEARCH_CHARS_MAX {
            return Err(Error::invalid("q", format!("has more than {SEARCH_CHARS_MAX} characters.")));
        }
        let wanted = words::all_of(text);
        let found = self.store.read(move |conn| rows::search(conn, of.whose(), &wanted, rows_max)).await?;
        Ok(found.into_iter().map(Shown::from).collect())
    }

    /// At most `count` facts that an agent may want for `text`: those that share the rarest words with it, and then the newest.
    pub async fn recall(&self, agent: &str, text: &str, count: usize) -> Result<Vec<Shown>, Error> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let end = text.char_indices().nth(RECALL_CHARS_MAX).map_or(text.len(), |(at, _)| at);
        let (wanted, agent) = (words::any_of(&text[..end], RECALL_WORDS_MAX), agent.to_owned());
        let find = move |conn: &crate::store::Reading| {
            let mut found = rows::search(conn, Whose::Agent(&agent), &wanted, count)?;
            if found.len() < count {
                let newest = rows::list(conn, Whose::Agent(&agent), None, count)?;
                found.extend(
                    newest
                        .into_iter()
                        .filter(|one| !found.iter().any(|known| known.number == one.number))
                        .collect::<Vec<_>>(),
                );
                found.truncate(count);
            }
            Ok(found)
        };
        Ok(self.store.read(find).await?.into_iter().map(Shown::from).collect())
    }

    /// Every fact as JSON, oldest first.
    pub async fn export(&self, of: Of) -> Result<Value, Error> {
        Ok(json!({ "items": self.everything(of).await?, "exported_at": rfc3339(self.clock.now_ms()) }))
    }

    /// Every fact as Markdown: a heading for each agent, oldest first.
    pub async fn export_markdown(&self, of: Of) -> Result<String, Error> {
        let mut all = self.everything(of).await?;
        all.sort_by(|one, other| one.agent_id.cmp(&other.agent_id).then(one.number.cmp(&other.number)));
        let mut text = "# Memory\n".to_owned();
        let mut heading: Option<Option<String>> = None;
        for fact in all {
            if heading.as_ref() != Some(&fact.agent_id) {
                let title = fact.agent_id.as_deref().unwrap_or("Shared by all agents");
                let _ = write!(text, "\n## {}\n\n", one_line(title));
                heading = Some(fact.agent_id.clone());
            }
            let tags: String = fact.tags.iter().map(|tag| format!(" #{tag}")).collect();
            // The day is enough here.
            let day = fact.updated_at.get(..10).unwrap_or_default();
            let (said, source) = (one_line(&fact.text), one_line(&fact.source));
            let _ = writeln!(text, "- {said}{tags} ({source}, {}, {day})", fact.trust.name());
        }
        Ok(text)
    }

    async fn everything(&self, of: Of) -> Result<Vec<Shown>, Error> {
        let most = usize::try_from(FACTS_MAX.1).unwrap_or(usize::MAX);
        let mut all = self.store.read_alone(move |conn| rows::list(conn, of.whose(), None, most)).await?;
        all.reverse();
        Ok(all.into_iter().map(Shown::from).collect())
    }
}

/// A fact that is said again: with the tags of both, and the better of both sources.
fn merged(known: &Fact, new: &Fact) -> Fact {
    let mut tags: Vec<&str> = known.tags.split(' ').chain(new.tags.split(' ')).filter(|tag| !tag.is_empty()).collect();
    tags.sort_unstable();
    tags.dedup();
    tags.truncate(TAGS_MAX);
    let better = if new.trust > known.trust { new } else { known };
    Fact {
        tags: tags.join(" "),
        source: better.source.clone(),
        trust: better.trust,
        updated_ms: new.updated_ms.max(known.updated_ms),
        ..known.clone()
    }
}

fn may_write(by: &Writer) -> Result<(), Error> {
    if by.trust >= Trust::Paired {
        return Ok(());
    }
    let reason = format!(
        "Memory is written by the owner and by paired programs only, and by agents that heard of nobody else; this comes \
         from {} (trust {}). What strangers say would otherwise speak in every later conversation.",
        by.source,
        by.trust.name()
    );
    Err(Error::Forbidden { code: "trust_too_low", reason })
}

/// A fact and its tags as they are stored: trimmed, and without secrets.
fn checked(text: &str, tags: &[String]) -> Result<(String, String), Error> {
    let mut wrong = Vec::new();
    let mut add = |field: &str, reason: String| wrong.push(FieldError { field: field.to_owned(), reason });
    let chars = text.chars().count();
    let text = text.trim();
    if text.is_empty() || chars > TEXT_CHARS_MAX {
        add("text", format!("must have 1 to {TEXT_CHARS_MAX} characters; it has {chars}."));
    } else if text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\t' | '\r')) {
        add("text", "must have no control characters.".to_owned());
    }
    if tags.len() > TAGS_MAX {
        add("tags", format!("has {} entries; at most {TAGS_MAX}.", tags.len()));
    }
    for (n, tag) in tags.iter().enumerate() {
        let is_word = !tag.chars().any(|c| c.is_whitespace() || c.is_control());
        let has_length = (1..=TAG_CHARS_MAX).contains(&tag.chars().count());
        if !is_word || !has_length {
            add(&format!("tags/{n}"), format!("must be one word of 1 to {TAG_CHARS_MAX} characters."));
        }
    }
    if !wrong.is_empty() {
        return Err(Error::Invalid { code: "invalid_input", fields: wrong });
    }
    let mut tags: Vec<String> = tags.iter().map(|tag| redact::text(tag).into_owned()).collect();
    tags.sort_unstable();
    tags.dedup();
    Ok((redact::text(text).into_owned(), tags.join(" ")))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
