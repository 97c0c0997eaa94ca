//! The soul: who the assistant is, what it does not do, and what it tells models before everything else.
//!
//! The newest text of the history is in force. The file `SOUL.md` shows it, and is where people edit it: whoever asks for
//! the soul looks first whether the file is another one by now. A text that is broken changes nothing but what is told.

mod content;
mod file;
mod prompt;

use std::collections::BTreeMap;
use std::ops::{Deref, RangeInclusive};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use regex::Regex;
use serde::Serialize;
use serde_json::{Value, json};

pub use content::{BYTES_MAX, Boundary, Content, Topic};
pub use prompt::{BYTES_MAX as PROMPT_BYTES_MAX, FactLine, PromptParts, SkillLine};

use crate::bus::{self, Bus};
use crate::clock::{Millis, rfc3339};
use crate::error::Error;
use crate::event::NewEvent;
use crate::store::audit::{self, Outcome, Record};
use crate::store::soul::{self as history, Origin, Version};
use crate::store::{Store, Tx};
use content::Searched;
use file::{Place, Stamp};

/// Who is said to have edited the file.
const BY_HAND: &str = "file";
/// Who brings the text that comes with aman.
const BY_AMAN: &str = "aman";
/// The beginning of a digest that names a text.
const DIGEST_CHARS: RangeInclusive<usize> = 4..=64;

/// The soul that is in force.
#[derive(Debug, Clone)]
pub struct Parsed {
    content: Content,
    /// Where its text came from.
    pub origin: Origin,
    /// Since when.
    pub changed_ms: Millis,
}

impl Parsed {
    fn of(content: Content, origin: Origin, changed_ms: Millis) -> Parsed {
        Parsed { content, origin, changed_ms }
    }
}

impl Deref for Parsed {
    type Target = Content;

    fn deref(&self) -> &Content {
        &self.content
    }
}

/// Which text of the history is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// The one with this number.
    Number(i64),
    /// The one whose digest is this, or begins so.
    Digest(String),
}

/// A boundary as it is shown.
#[derive(Debug, Serialize)]
pub struct ShownBoundary {
    name: String,
    topic: Vec<String>,
    tools: Vec<String>,
    says: String,
}

/// The soul as it is shown.
#[derive(Debug, Serialize)]
pub struct Info {
    /// What the assistant is called.
    pub name: String,
    digest: String,
    last_changed_at: String,
    /// `bundled`, `api` or `file`.
    origin: &'static str,
    boundaries: Vec<ShownBoundary>,
    preferences: BTreeMap<String, String>,
    /// Where people edit it.
    path: String,
    /// What is wrong with that file; the text that is in force stays so.
    pub problem: Option<String>,
}

/// A text of the history as it is shown.
#[derive(Debug, Serialize)]
pub struct ShownVersion {
    /// Its number.
    pub version: i64,
    digest: String,
    origin: &'static str,
    principal: String,
    created_at: String,
    /// True for the one that is in force.
    current: bool,
}

/// A change of the soul, recorded in its transaction: with the digests before and after.
pub type Audit = Box<dyn FnOnce(&mut Tx<'_>, &str, &str) -> Result<(), Error> + Send>;

/// The soul; cheap to clone.
#[derive(Clone)]
pub struct Soul {
    inner: Arc<Inner>,
}

struct Inner {
    bus: Bus,
    store: Store,
    place: Arc<Place>,
    current: ArcSwap<Parsed>,
    seen: Mutex<Seen>,
    /// Patterns of `content_policy.deny`.
    denied: ArcSwap<Vec<Regex>>,
    /// Held by whoever changes it.
    changing: tokio::sync::Mutex<()>,
}

/// How the file was when it was last looked at.
#[derive(Default)]
struct Seen {
    looked: bool,
    stamp: Option<Stamp>,
    problem: Option<String>,
}

impl Soul {
    /// The soul of the folder `folder`, which need not exist; `bundled` is in force until somebody writes another. Ends
    /// what a crash left undone.
    pub async fn start(bus: &Bus, folder: PathBuf, bundled: &str) -> Result<Soul, Error> {
        let (store, place) = (bus.store().clone(), Arc::new(Place::new(folder)));
        let [newest, before] = store.read_now(history::newest_two)?;
        let now_ms = bus.clock().now_ms();
        let bundled = content::parse(bundled)?;
        let (current, unplaced) = match newest {
            Some(version) if version.origin != Origin::Bundled => match content::parse(&version.text) {
                Ok(content) => (Parsed::of(content, version.origin, version.created_ms), Some((version, before))),
                Err(error) => {
                    // Rules can become stricter with a new version of aman.
                    tracing::error!(error = error.to_string(), "The soul in force is not understood any more.");
                    (Parsed::of(bundled, Origin::Bundled, now_ms), None)
                }
            },
            Some(version) if version.digest == bundled.digest => {
                (Parsed::of(bundled, Origin::Bundled, version.created_ms), None)
            }
            _ => {
                let new = version(&bundled, Origin::Bundled, BY_AMAN, now_ms);
                store.write(move |tx| history::add(tx, &new)).await?;
                (Parsed::of(bundled, Origin::Bundled, now_ms), None)
            }
        };
        let inner = Inner {
            bus: bus.clone(),
            store,
            place,
            current: ArcSwap::from_pointee(current),
            seen: Mutex::default(),
            denied: ArcSwap::default(),
            changing: tokio::sync::Mutex::default(),
        };
        let soul = Soul { inner: Arc::new(inner) };
        if let Some((version, before)) = unplaced.filter(|(version, _)| !version.placed) {
            soul.place_again(&version, before.as_ref()).await;
        }
        let _taken_over = soul.current();
        Ok(soul)
    }

    /// Changes what `content_policy.deny` says.
    pub fn configure(&self, denied: &[Regex]) {
        self.inner.denied.store(Arc::new(denied.to_vec()));
    }

    /// The soul that is in force, after a look at its file.
    pub fn current(&self) -> Arc<Parsed> {
        self.look();
        self.inner.current.load_full()
    }

    /// What a model is told before everything else.
    pub fn system_prompt(&self, parts: &PromptParts<'_>) -> String {
        prompt::compile(&self.current(), parts)
    }

    /// Refuses a message: 400 `content_policy` when a pattern of the configuration is in it, 403 `soul_boundary` when a
    /// topic of a boundary is. Neither says what was found.
    pub fn admit_text(&self, text: &str) -> Result<(), Error> {
        let denied = self.inner.denied.load();
        if let Some(n) = denied.iter().position(|rule| rule.is_match(text)) {
            let reason = format!(
                "is against rule {} of content_policy.deny in the configuration. Say it in other words, or change the rule.",
                n + 1
            );
            return Err(Error::invalid_as("content_policy", "text", reason));
        }
        let soul = self.current();
        let searched = Searched::new(text);
        let met = soul.boundaries.iter().find(|boundary| boundary.is_met_by(&searched));
        met.map_or(Ok(()), |boundary| {
            let reason = told(boundary, "what was said is about it");
            Err(Error::Forbidden { code: "soul_boundary", reason })
        })
    }

    /// Refuses a call of a tool, for a boundary that names the tool, or a topic that is in the arguments; says why.
    pub fn admit_tool(&self, tool: &str, arguments: &Value) -> Result<(), String> {
        let soul = self.current();
        if let Some(boundary) = soul.boundaries.iter().find(|boundary| boundary.names(tool)) {
            return Err(told(boundary, &format!("it names the tool {tool}")));
        }
        if soul.boundaries.iter().all(|boundary| boundary.topics.is_empty()) {
            return Ok(());
        }
        let mut text = String::new();
        texts(arguments, &mut text);
        let searched = Searched::new(&text);
        let met = soul.boundaries.iter().find(|boundary| boundary.is_met_by(&searched));
        met.map_or(Ok(()), |boundary| Err(told(boundary, "the arguments are about it")))
    }

    /// The soul as it is shown.
    pub fn info(&self) -> Info {
        let soul = self.current();
        let problem = self.inner.seen().problem.clone();
        self.show(&soul, problem)
    }

    fn show(&self, soul: &Parsed, problem: Option<String>) -> Info {
        let boundary = |one: &Boundary| ShownBoundary {
            name: one.name.clone(),
            topic: one.topics.iter().map(|topic| topic.written.clone()).collect(),
            tools: one.tools.clone(),
            says: one.says.clone(),
        };
        Info {
            name: soul.name.clone(),
            digest: soul.digest.clone(),
            last_changed_at: rfc3339(soul.changed_ms),
            origin: soul.origin.name(),
            boundaries: soul.boundaries.iter().map(boundary).collect(),
            preferences: soul.preferences.clone(),
            path: self.inner.place.file().display().to_string(),
            problem,
        }
    }

    /// The history below the version `before`, newest first, `rows_max` of it.
    pub async fn versions(&self, before: Option<i64>, rows_max: usize) -> Result<Vec<ShownVersion>, Error> {
        let _alone = self.inner.changing.lock().await;
        let soul = self.current();
        self.inner.take_note().await?;
        let found = self.inner.store.read(move |conn| history::list(conn, before, rows_max)).await?;
        let newest = self.inner.store.read(history::newest_two).await?;
        let newest = newest[0].as_ref().filter(|newest| newest.digest == soul.digest).map(|newest| newest.number);
        let shown = found.into_iter().map(|one| ShownVersion {
            version: one.number,
            digest: one.digest,
            origin: one.origin.name(),
            principal: one.principal,
            created_at: rfc3339(one.created_ms),
            current: Some(one.number) == newest,
        });
        Ok(shown.collect())
    }

    /// Checks a text as [`Soul::update`] would, and shows what would be in force; changes nothing.
    pub fn check(&self, text: &str, expected: Option<&str>) -> Result<Info, Error> {
        let content = content::parse(text)?;
        expect(expected, &self.current())?;
        Ok(self.show(&Parsed::of(content, Origin::Api, self.inner.bus.clock().now_ms()), None))
    }

    /// Puts a text in force, for `principal`. With `expected` only while the one with that digest is.
    pub async fn update(&self, text: &str, expected: Option<&str>, principal: &str, audit: Audit) -> Result<(), Error> {
        let content = content::parse(text)?;
        let _alone = self.inner.changing.lock().await;
        let before = self.current();
        self.inner.take_note().await?;
        expect(expected, &before)?;
        if before.digest == content.digest && self.inner.seen().problem.is_none() {
            return Ok(());
        }
        self.inner.change(content, &before, principal, audit).await
    }

    /// Puts an earlier text in force again, as a new one of the history.
    pub async fn rollback(&self, wanted: &Wanted, principal: &str, audit: Audit) -> Result<(), Error> {
        let _alone = self.inner.changing.lock().await;
        let before = self.current();
        self.inner.take_note().await?;
        let version = self.inner.meant(wanted).await?;
        if version.digest == before.digest && self.inner.seen().problem.is_none() {
            return Err(Error::conflict("invalid_state", "This text is in force already."));
        }
        let content = content::parse(&version.text)?;
        self.inner.change(content, &before, principal, audit).await
    }

    /// Looks whether the file is another one than before, and if so, takes over what it says.
    fn look(&self) {
        let inner = &self.inner;
        let stamp = inner.place.stamp();
        let mut seen = inner.seen();
        if seen.looked && seen.stamp == stamp {
            return;
        }
        let first = !std::mem::replace(&mut seen.looked, true);
        seen.stamp = stamp;
        let current = inner.current.load_full();
        let found = match stamp {
            None if current.origin == Origin::Bundled => Ok(None),
            None => Err("it is gone; `aman soul rollback` or `aman soul edit` write it again".to_owned()),
            Some(_) => {
                inner.place.read().and_then(|text| content::parse(&text).map(Some).map_err(|error| error.to_string()))
            }
        };
        let was = seen.problem.take();
        match found {
            Ok(Some(content)) if content.digest != current.digest => {
                tracing::info!(digest = content.digest, "The soul was edited by hand.");
                inner.current.store(Arc::new(Parsed::of(content, Origin::File, inner.bus.clock().now_ms())));
                self.later(None);
            }
            Ok(_) => {}
            Err(problem) => {
                let path = inner.place.file().display().to_string();
                tracing::warn!(path, problem, "The soul's file cannot be used; what was in force stays so.");
                if was.as_ref() != Some(&problem) || first {
                    self.later(Some(json!({ "path": path, "error": problem })));
                }
                seen.problem = Some(problem);
            }
        }
    }

    /// Records what was taken over, or tells what is broken, in the background; what the end of the daemon leaves undone the
    /// next start finds again.
    fn later(&self, broken: Option<Value>) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let inner = Arc::clone(&self.inner);
        runtime.spawn(async move {
            if let Some(data) = broken {
                return inner.tell("aman.soul.broken", &data).await;
            }
            let _alone = inner.changing.lock().await;
            if let Err(error) = inner.take_note().await {
                tracing::warn!(error = error.chain().join(": "), "A soul edited by hand is not in its history yet.");
            }
        });
    }

    /// Writes the file of a text that a crash kept from being written, unless somebody edited the file since.
    async fn place_again(&self, version: &Version, before: Option<&Version>) {
        let inner = &self.inner;
        let found = inner.place.stamp().and_then(|_| inner.place.read().ok());
        let found = found.map(|text| crate::id::sha256_hex(text.as_bytes()));
        let is_old = found.is_none() || found.as_deref() == before.map(|before| before.digest.as_str());
        if is_old && let Err(error) = inner.place.stage(&version.text).and_then(|()| inner.place.put(false)) {
            // The file is the older one: it must not be taken for an edit by hand.
            let problem = Some(format!("it could not be written: {error}"));
            *inner.seen() = Seen { looked: true, stamp: inner.place.stamp(), problem };
            return tracing::warn!(%error, "The soul's file could not be written; its text is in force all the same.");
        }
        let number = version.number;
        if let Err(error) = inner.store.write(move |tx| history::placed(tx, number)).await {
            tracing::warn!(error = error.chain().join(": "), "The next start writes the soul's file once more.");
        }
    }
}

impl Inner {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn tell(&self, kind: &str, data: &Value) {
        self.bus.announce(NewEvent::new("aman/soul", kind, data), bus::Origin::own("aman/soul")).await;
    }

    /// Records a text that was taken over from the file; the caller holds `changing`.
    async fn take_note(&self) -> Result<(), Error> {
        let soul = self.current.load_full();
        let [newest, _] = self.store.read(history::newest_two).await?;
        if soul.origin != Origin::File || newest.as_ref().is_some_and(|newest| newest.digest == soul.digest) {
            return Ok(());
        }
        let new = version(&soul.content, Origin::File, BY_HAND, soul.changed_ms);
        let before = newest.map(|newest| newest.digest);
        let data = json!({ "digest": soul.digest, "before": before, "principal": BY_HAND, "origin": "file" });
        let record = Record {
            at_ms: self.bus.clock().now_ms(),
            principal: BY_HAND.to_owned(),
            claimed_operator: None,
            action: "soul.edit".to_owned(),
            target: "soul".to_owned(),
            outcome: Outcome::Done,
            status: 200,
            trace: None,
            detail: json!({}),
            before_digest: before,
            after_digest: Some(soul.digest.clone()),
        };
        let write = move |tx: &mut Tx<'_>| {
            history::add(tx, &new)?;
            audit::append(tx, &record).map(drop)
        };
        self.store.write(write).await?;
        self.tell("aman.soul.changed", &data).await;
        Ok(())
    }

    /// The text of the history that is meant.
    async fn meant(&self, wanted: &Wanted) -> Result<Version, Error> {
        let mut found = match wanted.clone() {
            Wanted::Number(number) => {
                self.store.read(move |conn| history::numbered(conn, number)).await?.into_iter().collect()
            }
            Wanted::Digest(digest) => {
                let digest = digest.to_ascii_lowercase();
                if !DIGEST_CHARS.contains(&digest.len()) || !digest.bytes().all(|b| b.is_ascii_hexdigit()) {
                    let reason = format!(
                        "must be a digest of `aman soul versions`, or its first digits, {} or more.",
                        DIGEST_CHARS.start()
                    );
                    return Err(Error::invalid("digest", reason));
                }
                self.store.read(move |conn| history::beginning(conn, &digest)).await?
            }
        };
        if found.len() > 1 {
            return Err(Error::conflict("ambiguous_id", "Several digests begin so; give more of it."));
        }
        let name = || match wanted {
            Wanted::Number(number) => number.to_string(),
            Wanted::Digest(digest) => digest.clone(),
        };
        found.pop().ok_or_else(|| Error::not_found("version of the soul", name()))
    }

    /// Puts `content` in force: its file is complete beside the old one before it is decided, and takes its place after.
    async fn change(&self, content: Content, before: &Parsed, principal: &str, audit: Audit) -> Result<(), Error> {
        let (place, text) = (Arc::clone(&self.place), content.text.clone());
        let staged = tokio::task::spawn_blocking(move || place.stage(&text)).await;
        staged.map_err(Error::internal("writing the soul"))?.map_err(|error| unplaced(&self.place, &error))?;
        let now_ms = self.bus.clock().now_ms();
        let new = Version { placed: false, ..version(&content, Origin::Api, principal, now_ms) };
        let (old, digest) = (before.digest.clone(), content.digest.clone());
        let decide = move |tx: &mut Tx<'_>| {
            let number = history::add(tx, &new)?;
            audit(tx, &old, &digest)?;
            Ok(number)
        };
        let number = match self.store.write(decide).await {
            Ok(number) => number,
            Err(error) => {
                self.place.unstage();
                return Err(error);
            }
        };
        let data =
            json!({ "digest": content.digest, "before": before.digest, "principal": principal, "origin": "api" });
        if self.put_in_place(content, now_ms)
            && let Err(error) = self.store.write(move |tx| history::placed(tx, number)).await
        {
            tracing::warn!(error = error.chain().join(": "), "The next start writes the soul's file once more.");
        }
        self.tell("aman.soul.changed", &data).await;
        Ok(())
    }
}

impl Inner {
    /// Puts a text in force that was decided, and its file in its place; false when the file could not be written.
    fn put_in_place(&self, content: Content, now_ms: Millis) -> bool {
        // Nobody looks at the file between the two.
        let mut seen = self.seen();
        if self.place.stamp() != seen.stamp {
            // Somebody saved the file in this moment: that is newer still, and is taken over with the next look.
            self.place.unstage();
            return true;
        }
        self.current.store(Arc::new(Parsed::of(content, Origin::Api, now_ms)));
        let broken = seen.problem.is_some() && seen.stamp.is_some();
        match self.place.put(broken) {
            Ok(()) => {
                (seen.stamp, seen.problem) = (self.place.stamp(), None);
                true
            }
            Err(error) => {
                tracing::warn!(%error, "The soul's file could not be written; its text is in force all the same.");
                seen.problem = Some(format!("it could not be written: {error}"));
                false
            }
        }
    }
}

fn version(content: &Content, origin: Origin, principal: &str, created_ms: Millis) -> Version {
    Version {
        number: 0,
        digest: content.digest.clone(),
        text: content.text.clone(),
        origin,
        principal: principal.to_owned(),
        placed: true,
        created_ms,
    }
}

fn expect(expected: Option<&str>, soul: &Parsed) -> Result<(), Error> {
    if expected.is_none_or(|expected| expected.eq_ignore_ascii_case(&soul.digest)) {
        return Ok(());
    }
    let reason = format!("The soul in force has the digest {}. Look at it again and decide anew.", soul.digest);
    Err(Error::conflict("version_conflict", reason))
}

/// Why something is refused.
fn told(boundary: &Boundary, why: &str) -> String {
    let says = if boundary.says.is_empty() { String::new() } else { format!(" {}", boundary.says) };
    format!(
        "The boundary '{}' of the soul forbids this: {why}.{says} `aman soul show` lists the boundaries.",
        boundary.name
    )
}

/// Every text and every name of a value, a line each.
fn texts(value: &Value, into: &mut String) {
    let mut add = |text: &str| {
        into.push_str(text);
        into.push('\n');
    };
    match value {
        Value::String(text) => add(text),
        Value::Number(number) => add(&number.to_string()),
        Value::Array(items) => items.iter().for_each(|item| texts(item, into)),
        Value::Object(fields) => fields.iter().for_each(|(name, value)| {
            into.push_str(name);
            into.push('\n');
            texts(value, into);
        }),
        Value::Null | Value::Bool(_) => {}
    }
}

/// Why the file of a text could not be made.
fn unplaced(place: &Place, error: &std::io::Error) -> Error {
    use std::io::ErrorKind;
    let what = format!("{} cannot be written, so nothing was changed: {error}.", place.file().display());
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            Error::Busy { code: "disk_full", what, retry_after_ms: 60_000 }
        }
        _ => Error::conflict("invalid_state", what),
    }
}
