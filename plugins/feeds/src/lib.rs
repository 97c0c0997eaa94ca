//! New entries of RSS and Atom feeds as events.
//!
//! What was seen of a feed lies in `kv` and changes together with the events: an entry is published once, whatever
//! crashes in between. An answer of 304 costs nothing.

mod feed;

use std::collections::BTreeSet;

use aman_plugin::{
    Error, NewEvent, Polled, Request, Response, Result, Routes, Source, Value, config, export, http, json, kv, log,
};
use serde::{Deserialize, Serialize};

use crate::feed::{Entry, Feed};

/// Settings `feed_1` to `feed_8`; the manifest has a host for each.
const FEEDS: u32 = 8;
/// Entries that a feed publishes when it is met for the first time.
const FIRST: usize = 10;
/// Entries of one feed in one poll; with all feeds below the host's 1,000 events.
const ENTRIES_MAX: usize = 100;
/// Ids of entries that are remembered of a feed: those of its last document.
const SEEN_MAX: usize = 2000;

struct Feeds;

export!(Feeds: Source, Routes);

/// What is known of a feed.
#[derive(Default, Serialize, Deserialize)]
struct State {
    title: String,
    etag: Option<String>,
    modified: Option<String>,
    seen: BTreeSet<String>,
    /// Why the last poll found nothing; none when it went well.
    failed: Option<String>,
}

impl Source for Feeds {
    fn poll(_id: &str, _cursor: Option<String>) -> Result<Polled> {
        let urls = urls();
        if urls.is_empty() {
            return Err(Error::invalid("feed_1", "no feed is set; write its address into the plugin's settings."));
        }
        let mut events = Vec::new();
        for url in &urls {
            let key = format!("feed/{url}");
            let before: Option<State> = kv::get_json(&key)?;
            let first = before.is_none();
            let mut state = before.unwrap_or_default();
            match fetch(url, &mut state) {
                Ok(None) => continue,
                Ok(Some(feed)) => events.extend(news(url, &feed, &mut state, first)?),
                // One feed that is gone must not keep the others from being read; an unmet one stays unmet.
                Err(error) => {
                    log::write(
                        log::Level::Warn,
                        "A feed could not be read.",
                        &[("feed".to_owned(), url.clone()), ("reason".to_owned(), error.reason())],
                    );
                    if first {
                        continue;
                    }
                    state.failed = Some(error.reason());
                }
            }
            kv::set_json(&key, &state)?;
        }
        Ok(Polled::new(events))
    }
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

fn urls() -> Vec<String> {
    let set = (1..=FEEDS).filter_map(|n| config::get(&format!("feed_{n}")));
    set.map(|url| url.trim().to_owned()).filter(|url| !url.is_empty()).collect()
}

fn view(url: &str) -> Result<Value> {
    Ok(match kv::get_json::<State>(&format!("feed/{url}"))? {
        Some(state) => json!({
            "url": url, "title": state.title, "entries": state.seen.len(), "failed": state.failed,
        }),
        None => json!({ "url": url, "title": null, "entries": 0, "failed": null }),
    })
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
    let feed = feed::parse(&feed::decode(&response.body, response.header("content-type").unwrap_or_default()))
        .map_err(|reason| Error::internal(format!("it is no feed: {reason}")))?;
    state.etag = response.header("etag").map(str::to_owned);
    state.modified = response.header("last-modified").map(str::to_owned);
    Ok(Some(feed))
}

/// The entries that were not seen, oldest first; notes them as seen.
fn news(url: &str, feed: &Feed, state: &mut State, first: bool) -> Result<Vec<NewEvent>> {
    let most = if first { FIRST } else { ENTRIES_MAX };
    let fresh: Vec<&Entry> = feed.entries.iter().filter(|entry| !state.seen.contains(&entry.id)).take(most).collect();
    // With more news than fit, those that wait for the next poll must stay unseen, and the document must come again.
    let all = first || fresh.len() < most;
    let current = feed.entries.iter().take(SEEN_MAX).map(|entry| entry.id.clone());
    let published = fresh.iter().map(|entry| entry.id.clone());
    if all {
        state.seen = current.collect();
    } else {
        state.seen = current.filter(|id| state.seen.contains(id)).chain(published).collect();
        (state.etag, state.modified) = (None, None);
    }
    state.title.clone_from(&feed.title);
    state.failed = None;
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

    fn published(feed: &Feed, state: &mut State, first: bool) -> Vec<String> {
        let events = news("https://example.org/feed", feed, state, first).expect("they can be made");
        events
            .iter()
            .map(|event| event.dedup_key.clone().expect("a key").rsplit(' ').next().unwrap_or("").to_owned())
            .collect()
    }

    #[test]
    fn each_entry_is_published_once_and_the_oldest_first() {
        let mut state = State::default();
        let ids = |ids: std::ops::Range<usize>| ids.map(|n| n.to_string()).collect::<Vec<_>>();
        assert_eq!(published(&feed(0..30), &mut state, true), ids(20..30), "the newest at first");
        assert_eq!(published(&feed(0..30), &mut state, false), ids(0..0));
        assert_eq!(published(&feed(5..32), &mut state, false), ids(30..32));
        assert_eq!(state.seen.len(), 27, "what left the feed is forgotten");
    }

    #[test]
    fn more_news_than_fit_come_with_the_next_polls() {
        let mut state = State { etag: Some("\"1\"".to_owned()), ..State::default() };
        let many = feed(0..250);
        let mut all = Vec::new();
        for _ in 0..3 {
            all.extend(published(&many, &mut state, false));
        }
        all.sort_by_key(|id| id.parse::<usize>().expect("a number"));
        assert_eq!(all, (0..250).map(|n| n.to_string()).collect::<Vec<_>>());
        assert_eq!(state.etag, None, "the document is asked for whole until all of it was published");
        assert!(published(&many, &mut state, false).is_empty());
    }
}
