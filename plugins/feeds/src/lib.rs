//! New entries of RSS and Atom feeds as events.
//!
//! What was seen of a feed lies in `kv` and changes together with the events: an entry is published once, whatever
//! crashes in between. An answer of 304 costs nothing.

use std::collections::BTreeSet;

use aman_plugin::notify::{Notification, Severity};
use aman_plugin::{
    Error, NewEvent, Polled, Request, Response, Result, Routes, Source, Value, config, export, http, json, kv, log,
};
use serde::{Deserialize, Serialize};

use aman_feed::{Entry, Feed};

/// Feeds that are read; the manifest grants the hosts of all settings that begin so.
const FEEDS_MAX: usize = 8;
const FEED: &str = "feed_";
/// Seconds between two polls, unless the setting `every_seconds` says otherwise.
const EVERY_SECONDS: u64 = 900;
/// Bytes of an address; it is part of keys.
const URL_BYTES_MAX: usize = 400;
/// Entries that a feed publishes when it is met for the first time.
const FIRST: usize = 10;
/// Entries of one feed in one poll; with all feeds below the host's 1,000 events.
const ENTRIES_MAX: usize = 100;
/// After so many polls in a row that found nothing but a fault, the person is told.
const FAILURES_TOLD: u32 = 3;
/// Ids of entries that are remembered of a feed: those of its last document.
const SEEN_MAX: usize = 2000;

struct Feeds;

export!(Feeds: Source, Routes);

/// What is known of a feed.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
struct State {
    /// Whether it was read before; what it holds at first is not all news.
    met: bool,
    title: String,
    etag: Option<String>,
    modified: Option<String>,
    /// Hashes of the ids of entries, which may be long.
    seen: BTreeSet<u64>,
    /// Why the last poll found nothing; none when it went well.
    failed: Option<String>,
    /// How many polls in a row failed.
    #[serde(default)]
    failures: u32,
}

impl Source for Feeds {
    fn poll(_id: &str, _cursor: Option<String>) -> Result<Polled> {
        let urls = urls();
        if urls.is_empty() {
            let reason = "no feed is set; write an address into the setting feed_1 of the plugin.";
            return Err(Error::invalid("feed_1", reason));
        }
        let mut events = Vec::new();
        for url in &urls {
            let key = key(url);
            let before: Option<State> = kv::get_json(&key)?;
            let mut state = before.clone().unwrap_or_default();
            match read(url, &mut state) {
                Ok(found) => {
                    (state.failed, state.failures) = (None, 0);
                    events.extend(found);
                }
                // One feed that is gone must not keep the others from being read.
                Err(error) => {
                    let reason = error.reason();
                    if state.failed.as_ref() != Some(&reason) {
                        let fields = [("feed".to_owned(), url.clone()), ("reason".to_owned(), reason.clone())];
                        log::write(log::Level::Warn, "A feed could not be read.", &fields);
                    }
                    state.failures = state.failures.saturating_add(1);
                    if state.failures == FAILURES_TOLD {
                        gone(url, &state, &reason).send()?;
                    }
                    state.failed = Some(reason);
                }
            }
            if before.as_ref() != Some(&state) {
                kv::set_json(&key, &state)?;
            }
        }
        let every = config::get("every_seconds").and_then(|text| text.trim().parse().ok()).unwrap_or(EVERY_SECONDS);
        Ok(Polled::new(events).next_ms(every.max(1).saturating_mul(1000)))
    }
}

/// What the person is told of a feed that cannot be read any more.
fn gone(url: &str, state: &State, reason: &str) -> Notification {
    let cut = |text: &str, chars: usize| text.chars().filter(|c| !c.is_control()).take(chars).collect::<String>();
    let name = if state.title.trim().is_empty() { url } else { &state.title };
    let message = format!("{url}\n{}\nIt is tried again with every poll.", cut(reason, 1000));
    Notification::new(Severity::Warning, format!("The feed '{}' cannot be read", cut(name, 100)))
        .message(message)
        .action("Feeds", "/api/v1/feeds")
        .fingerprint(key(url))
}

impl Routes for Feeds {
    fn handle(request: Request) -> Result<Response> {
        match request.target() {
            ("GET", "/feeds") => {
                let items = urls().iter().map(|url| view(url)).collect::<Result<Vec<Value>>>()?;
                Response::json(&json!({ "items": items }))
            }
            _ => Err(request.unknown()),
        }
    }
}

/// The addresses in the settings, in the order of their names, each once.
fn urls() -> Vec<String> {
    let mut set = config::all();
    set.retain(|(key, _)| key.starts_with(FEED));
    set.sort();
    let mut urls: Vec<String> = Vec::new();
    for (_, url) in set {
        let url = url.trim();
        if !url.is_empty() && !urls.iter().any(|known| known == url) {
            urls.push(url.to_owned());
        }
    }
    urls.truncate(FEEDS_MAX);
    urls
}

/// Where the state of a feed lies: a hash, because an address may be longer than a key.
fn key(url: &str) -> String {
    format!("feed/{:016x}", hash(url))
}

/// FNV-1a with 64 bits: the same in every build of the plugin.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

fn view(url: &str) -> Result<Value> {
    Ok(match kv::get_json::<State>(&key(url))? {
        Some(state) => json!({
            "url": url, "title": state.title, "entries": state.seen.len(), "failed": state.failed,
        }),
        None => json!({ "url": url, "title": null, "entries": 0, "failed": null }),
    })
}

/// What is new in a feed; nothing when its server says that it is as it was.
fn read(url: &str, state: &mut State) -> Result<Vec<NewEvent>> {
    if url.len() > URL_BYTES_MAX {
        return Err(Error::invalid("url", format!("the address has more than {URL_BYTES_MAX} bytes.")));
    }
    match fetch(url, state)? {
        Some(feed) => news(url, &feed, state),
        None => Ok(Vec::new()),
    }
}

/// The feed if it changed.
fn fetch(url: &str, state: &mut State) -> Result<Option<Feed>> {
    let mut request =
        http::get(url).header("accept", "application/atom+xml, application/rss+xml, application/xml, */*;q=0.5");
    if let Some(etag) = &state.etag {
        request = request.header("if-none-match", etag);
    }
    if let Some(modified) = &state.modified {
        request = request.header("if-modified-since", modified);
    }
    let response = request.send()?;
    if response.status == 304 {
        return Ok(None);
    }
    let response = response.ok()?;
    let feed =
        aman_feed::parse(&aman_feed::decode(&response.body, response.header("content-type").unwrap_or_default()))
            .map_err(|reason| Error::internal(format!("it is no feed: {reason}")))?;
    state.etag = response.header("etag").map(str::to_owned);
    state.modified = response.header("last-modified").map(str::to_owned);
    Ok(Some(feed))
}

/// The entries that were not seen, oldest first; notes them as seen.
fn news(url: &str, feed: &Feed, state: &mut State) -> Result<Vec<NewEvent>> {
    // Nothing at all is a fault of the other side; what was seen is not new when it comes back.
    if state.met && feed.entries.is_empty() {
        return Ok(Vec::new());
    }
    let most = if state.met { ENTRIES_MAX } else { FIRST };
    let is_new = |entry: &&Entry| !state.seen.contains(&hash(&entry.id));
    let fresh: Vec<&Entry> = feed.entries.iter().take(SEEN_MAX).filter(is_new).take(most).collect();
    // With more news than fit, those that wait for the next poll must stay unseen, and the document must come again.
    let all = !state.met || fresh.len() < most;
    let current = feed.entries.iter().take(SEEN_MAX).map(|entry| hash(&entry.id));
    let published = fresh.iter().map(|entry| hash(&entry.id));
    if all {
        state.seen = current.collect();
    } else {
        state.seen = current.filter(|id| state.seen.contains(id)).chain(published).collect();
        (state.etag, state.modified) = (None, None);
    }
    state.met = true;
    state.title.clone_from(&feed.title);
    fresh.into_iter().rev().map(|entry| event(url, feed, entry)).collect()
}

fn event(url: &str, feed: &Feed, entry: &Entry) -> Result<NewEvent> {
    let data = json!({
        "feed": { "url": url, "title": feed.title },
        "id": entry.id, "title": entry.title, "link": entry.link, "author": entry.author,
        "summary": entry.summary, "published": entry.published,
    });
    let event = NewEvent::new("feed.entry").json(&data)?.partition_key(url).dedup_key(format!("{url} {}", entry.id));
    let event = if entry.link.is_empty() { event } else { event.subject(&entry.link) };
    Ok(match &entry.published {
        Some(time) => event.time(time),
        None => event,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(ids: std::ops::Range<usize>) -> Feed {
        // Newest first, as feeds are.
        let entries = ids.rev().map(|n| Entry { id: n.to_string(), title: format!("Entry {n}"), ..Entry::default() });
        Feed { title: "A feed".to_owned(), entries: entries.collect() }
    }

    fn published(feed: &Feed, state: &mut State) -> Vec<String> {
        let events = news("https://example.org/feed", feed, state).expect("they can be made");
        events
            .iter()
            .map(|event| event.dedup_key.clone().expect("a key").rsplit(' ').next().unwrap_or("").to_owned())
            .collect()
    }

    #[test]
    fn each_entry_is_published_once_and_the_oldest_first() {
        let mut state = State::default();
        let ids = |ids: std::ops::Range<usize>| ids.map(|n| n.to_string()).collect::<Vec<_>>();
        assert_eq!(published(&feed(0..30), &mut state), ids(20..30), "the newest at first");
        assert_eq!(published(&feed(0..30), &mut state), ids(0..0));
        assert_eq!(published(&feed(5..32), &mut state), ids(30..32));
        assert_eq!(state.seen.len(), 27, "what left the feed is forgotten");
    }

    #[test]
    fn old_entries_do_not_come_again() {
        let mut state = State::default();
        assert_eq!(published(&feed(0..2500), &mut state).len(), FIRST);
        for feed in [feed(0..2500), feed(0..0), feed(0..2500)] {
            assert!(published(&feed, &mut state).is_empty());
        }
    }

    #[test]
    fn more_news_than_fit_come_with_the_next_polls() {
        let mut state = State { met: true, etag: Some("\"1\"".to_owned()), ..State::default() };
        let many = feed(0..250);
        let mut all = Vec::new();
        for _ in 0..3 {
            all.extend(published(&many, &mut state));
        }
        all.sort_by_key(|id| id.parse::<usize>().expect("a number"));
        assert_eq!(all, (0..250).map(|n| n.to_string()).collect::<Vec<_>>());
        assert_eq!(state.etag, None, "the document is asked for whole until all of it was published");
        assert!(published(&many, &mut state).is_empty());
    }
}
