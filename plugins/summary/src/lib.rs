//! What a web page is about, for people and agents: its title, its description and its main sentences. Cached.

mod page;

use aman_plugin::{
    Caller, Error, Request, Response, Result, Routes, Tools, Value, clock, config, export, http, json, kv,
};
use serde::{Deserialize, Serialize};

use crate::page::Summary;

/// Minutes that a summary is kept, unless the setting `minutes` says otherwise.
const MINUTES: u64 = 60;
/// Bytes of an address; it is part of a key.
const URL_BYTES_MAX: usize = 500;
/// Cached pages that go when the space is used up.
const EVICTED: usize = 200;

struct Pages;

export!(Pages: Routes, Tools);

#[derive(Serialize, Deserialize)]
struct Cached {
    stored_ms: u64,
    summary: Summary,
}

impl Routes for Pages {
    fn handle(request: Request) -> Result<Response> {
        match request.target() {
            ("GET", "/summary") => {
                let url =
                    request.query("url").ok_or_else(|| Error::invalid("url", "is missing: /summary?url=https://…"))?;
                Response::json(&answer(&url)?)
            }
            _ => Err(request.unknown()),
        }
    }
}

impl Tools for Pages {
    fn call(name: &str, input: Value, _caller: Caller) -> Result<Value> {
        match (name, input["url"].as_str()) {
            ("summarize_page", Some(url)) => answer(url),
            ("summarize_page", None) => Err(Error::invalid("url", "must be a text.")),
            _ => Err(Error::not_found(name)),
        }
    }
}

fn answer(url: &str) -> Result<Value> {
    let web = url.starts_with("https://") || url.starts_with("http://");
    if !web || url.len() > URL_BYTES_MAX {
        return Err(Error::invalid(
            "url",
            format!("must be an https or http address of at most {URL_BYTES_MAX} bytes."),
        ));
    }
    // What follows '#' is for browsers.
    let url = url.split('#').next().unwrap_or(url);
    let key = format!("page/{url}");
    let now_ms = clock::now_ms();
    let minutes = config::get("minutes").and_then(|text| text.trim().parse().ok()).unwrap_or(MINUTES);
    let cached = kv::get_json::<Cached>(&key)?;
    // A clock that was set back must not make a page last for ever.
    let fresh = cached.filter(|found| found.stored_ms <= now_ms && now_ms - found.stored_ms < minutes * 60_000);
    if let Some(found) = fresh {
        return Ok(json!({ "url": url, "cached": true, "summary": found.summary }));
    }
    let summary = fetch(url)?;
    let entry = Cached { stored_ms: now_ms, summary };
    match kv::set_json(&key, &entry) {
        Err(Error::Limit(_)) => {
            for old in kv::keys("page/", EVICTED)? {
                kv::delete(&old)?;
            }
            kv::set_json(&key, &entry)?;
        }
        done => done?,
    }
    Ok(json!({ "url": url, "cached": false, "summary": entry.summary }))
}

fn fetch(url: &str) -> Result<Summary> {
    let response = http::get(url).header("accept", "text/html, text/plain;q=0.8").send()?.ok()?;
    let kind = response.header("content-type").unwrap_or("text/html").to_ascii_lowercase();
    match kind.split(';').next().unwrap_or_default().trim() {
        "text/html" | "application/xhtml+xml" => Ok(page::summarize(&response.text())),
        "text/plain" => Ok(page::summarize_text(&response.text())),
        other => Err(Error::invalid("url", format!("leads to {other}; only pages and plain text can be summarized."))),
    }
}
