//! The plugin that scripts/bench measures: what a native route or consumer does, done by a guest.

use aman_plugin::{Error, Event, Events, NewEvent, Request, Response, Result, Routes, clock, config, export, json, kv};
use aman_plugin::{Value, metrics};

struct Guest;

export!(Guest: Routes, Events);

/// What is searched, as the daemon's own search of skills looks at its one bundled skill.
struct Entry {
    name: &'static str,
    tags: &'static [&'static str],
    description: &'static str,
}

const ENTRIES: [Entry; 1] = [Entry {
    name: "an-entry-of-the-guest",
    tags: &["measure", "bench"],
    description: "What a search looks through: a name, some tags and a sentence or two that say what the thing is good for \
                  and when it had better be left alone, so that there is something to be made lower case.",
}];

impl Routes for Guest {
    fn handle(request: Request) -> Result<Response> {
        match request.path.rsplit('/').next() {
            Some("search") => search(&request),
            Some("spin") => spin(),
            _ => Err(request.unknown()),
        }
    }
}

fn search(request: &Request) -> Result<Response> {
    let wanted = request.query("q").ok_or_else(|| Error::invalid("q", "is required."))?.to_lowercase();
    let words: Vec<&str> = wanted.split_whitespace().collect();
    let items: Vec<Value> = ENTRIES.iter().filter(|entry| fits(entry, &words)).map(|entry| json!(entry.name)).collect();
    Response::json(&json!({ "items": items, "next_cursor": null }))
}

fn fits(entry: &Entry, words: &[&str]) -> bool {
    let fields = [entry.name.to_lowercase(), entry.tags.join(" ").to_lowercase(), entry.description.to_lowercase()];
    words.iter().all(|word| fields.iter().any(|field| field.contains(word)))
}

/// Never ends by itself.
fn spin() -> ! {
    loop {
        std::hint::spin_loop();
    }
}

impl Events for Guest {
    fn handle(event: Event) -> Result<()> {
        match event.type_.rsplit('.').next() {
            Some("calls") => {
                let step = config::get("step").and_then(|step| step.parse().ok()).unwrap_or(1);
                let label = if clock::now_ms().is_multiple_of(2) { "even" } else { "odd" };
                metrics::count("bench_events", step, &[("half".to_owned(), label.to_owned())])
            }
            Some("effects") => {
                let before = kv::get("last")?.map_or(0, |value| value.len());
                kv::set("last", event.id.as_bytes())?;
                NewEvent::new("guest.seen").json(&json!({ "before": before }))?.publish().map(drop)
            }
            _ => Ok(()),
        }
    }
}
