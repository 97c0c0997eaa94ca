//! `web_search`: asks the search that the configuration names.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use super::fetch::unheard;
use super::{Shared, failed, number, text};
use crate::egress::{Ask, Leg, Method, Url, status_text};
use crate::event::Trust;
use crate::expr::Limits;
use crate::tools::{Call, Output, ToolFailure};

const BYTES_MAX: usize = 1 << 20;
const TIME_MAX: Duration = Duration::from_secs(20);
/// Results, unless the call says how many.
const RESULTS: usize = 10;

/// True for this machine, where the owner's own search may be.
fn is_here(url: &Url) -> bool {
    let host = url.host();
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

pub(super) async fn search(shared: &Shared, call: &Call) -> Result<Output, ToolFailure> {
    let settings = shared.settings.load_full();
    let search = settings.search.as_ref().ok_or_else(|| failed("no search is configured: tools.search.url"))?;
    let url = search.address(text(call, "query")).map_err(failed)?;
    // The configuration names this address; nobody else is asked, wherever the answer may point.
    let (authority, private) = (url.authority().to_owned(), is_here(&url));
    let header = search.header.as_ref().map(|(name, value)| (name.clone(), value.expose().to_owned()));
    let ask = Ask {
        method: Method::GET,
        url,
        headers: vec![("accept".to_owned(), "application/json".to_owned())],
        body: Bytes::new(),
        bytes_max: BYTES_MAX,
        time_max: TIME_MAX,
        redirects_max: 2,
    };
    let rule = |to: &Url| {
        if to.authority() != authority {
            return Err(format!("the search redirects to {}, which is not the configured address", to.authority()));
        }
        Ok(Leg { headers: header.iter().cloned().collect(), private })
    };
    let heard = shared.ground.egress.ask_by(ask, rule).await.map_err(unheard)?;
    if !heard.is_success() {
        return Err(failed(format!("the search answered {}", status_text(heard.status))));
    }
    let (body, settings) = (heard.body.clone(), std::sync::Arc::clone(&settings));
    let mapped = tokio::task::spawn_blocking(move || {
        settings.search.as_ref().map(|search| search.items.run(&body, &Limits::default()))
    });
    let mapped = mapped.await.map_err(|error| failed(error.to_string()))?;
    let unread = |why: String| failed(format!("the answer of the search does not fit tools.search.items: {why}"));
    let mut found = mapped.transpose().map_err(|error| unread(error.to_string()))?.unwrap_or_default();
    let Some(Value::Array(items)) = found.pop() else { return Err(unread("it gives no list".to_owned())) };
    let items: Vec<Value> = items.into_iter().take(number(call, "limit").unwrap_or(RESULTS)).collect();
    let mut lines = String::new();
    for item in &items {
        let word = |name: &str| item[name].as_str().unwrap_or_default();
        lines.push_str(&format!("{}\n{}\n{}\n\n", word("title"), word("url"), word("snippet")));
    }
    if items.is_empty() {
        lines.push_str("[nothing was found]");
    }
    Ok(Output { text: lines, value: Some(json!({ "items": items })), trust: Trust::Web })
}
