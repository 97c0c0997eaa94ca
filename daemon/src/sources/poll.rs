//! A web address that is asked again and again: what changed becomes an event. It asks only whether something changed
//! (`If-None-Match`, `If-Modified-Since`), and waits longer and longer while that fails.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::feed::{Feed, back_off};
use super::mapping::{content, shown};
use crate::bus::StateWrite;
use crate::config::sources::HttpPoll;
use crate::egress::{Ask, Egress, Heard, Method, status_text};
use crate::error::Error;
use crate::id::sha256_hex;
use crate::store::sources::{self as rows, Polled};

const BODY_BYTES_MAX: usize = 1 << 20;
const TIME_MAX: Duration = Duration::from_secs(30);
const REDIRECTS_MAX: u8 = 5;
/// The longest wait after failures, unless the period itself is longer.
const BACK_OFF_MAX: Duration = Duration::from_secs(3600);

/// A poll source, ready to run.
pub struct PollSource {
    /// The way of its events.
    pub feed: Arc<Feed>,
    /// What it asks.
    pub config: HttpPoll,
    /// The way out.
    pub egress: Egress,
}

/// What one question came to.
enum Polling {
    /// All is well.
    Well,
    /// It failed; the server may have said when to come again.
    Failed(String, Option<Duration>),
}

impl PollSource {
    /// Runs until `stop`.
    pub async fn run(&self, stop: CancellationToken) -> Result<(), Error> {
        let mut failures = 0;
        loop {
            let polled = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                polled = self.once(&stop) => polled?,
            };
            let every = self.config.every;
            let wait = match polled {
                Polling::Well => {
                    failures = 0;
                    self.feed.well("waiting");
                    every
                }
                Polling::Failed(why, after) => {
                    failures += 1;
                    self.feed.failing(why);
                    let wait = back_off(failures, every, BACK_OFF_MAX.max(every));
                    after.map_or(wait, |after| after.max(every))
                }
            };
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn once(&self, stop: &CancellationToken) -> Result<Polling, Error> {
        let id = self.feed.id.clone();
        let address = sha256_hex(self.config.url.to_string().as_bytes());
        let known = self.feed.bus.store().read(move |conn| rows::polled(conn, &id)).await?;
        let known = known.filter(|known| known.address == address);
        let heard = match self.egress.ask(self.ask(known.as_ref())).await {
            Ok(heard) => heard,
            Err(error) => return Ok(Polling::Failed(error.to_string(), None)),
        };
        if heard.status == 304 {
            return Ok(Polling::Well);
        }
        if !heard.is_success() {
            let after = heard.retry_after(self.feed.bus.clock().now_ms());
            return Ok(Polling::Failed(format!("the server answered {}", status_text(heard.status)), after));
        }
        let now = Polled {
            address,
            etag: heard.header("etag").map(str::to_owned),
            last_modified: heard.header("last-modified").map(str::to_owned),
            digest: sha256_hex(&heard.body),
        };
        if known.as_ref() == Some(&now) {
            return Ok(Polling::Well);
        }
        let changed = known.is_none_or(|known| known.digest != now.digest);
        self.tell(changed.then_some(heard), now, stop).await
    }

    fn ask(&self, known: Option<&Polled>) -> Ask {
        let given = self.config.headers.iter().map(|(name, value)| (name.clone(), value.expose().to_owned()));
        let mut headers: Vec<(String, String)> = given.collect();
        let etag = known.and_then(|known| known.etag.clone()).map(|etag| ("if-none-match".to_owned(), etag));
        let since = known.and_then(|k| k.last_modified.clone()).map(|at| ("if-modified-since".to_owned(), at));
        headers.extend(etag);
        headers.extend(since);
        Ask {
            method: Method::GET,
            url: self.config.url.clone(),
            headers,
            body: Bytes::new(),
            bytes_max: BODY_BYTES_MAX,
            time_max: TIME_MAX,
            redirects_max: REDIRECTS_MAX,
        }
    }

    /// Stores what was heard and what it means, in one transaction: nothing is told twice.
    async fn tell(&self, heard: Option<Heard>, now: Polled, stop: &CancellationToken) -> Result<Polling, Error> {
        let (id, now_ms) = (self.feed.id.clone(), self.feed.bus.clock().now_ms());
        let state = move || -> Option<StateWrite> {
            let (id, now) = (id.clone(), now.clone());
            Some(Box::new(move |tx| rows::set_polled(tx, &id, &now, now_ms)))
        };
        let events = match heard {
            None => Vec::new(),
            Some(heard) => match self.events(&heard).await {
                Ok(events) => events,
                Err(error) => return Ok(Polling::Failed(error.to_string(), None)),
            },
        };
        if events.is_empty() {
            if let Some(write) = state() {
                self.feed.bus.store().write(write).await?;
            }
        } else {
            self.feed.publish_patiently(events, state, stop).await?;
        }
        Ok(Polling::Well)
    }

    async fn events(&self, heard: &Heard) -> Result<Vec<crate::event::NewEvent>, Error> {
        let frame = &self.feed.frame;
        if let Some(events) = frame.mapped(|| shown(&heard.body)).await? {
            return Ok(events);
        }
        let (data, content_type) = content(&heard.body, heard.header("content-type"));
        let mut event = frame.plain(data);
        event.content_type = content_type;
        event.subject = Some(format!("{:?}", self.config.url));
        Ok(vec![event])
    }
}
