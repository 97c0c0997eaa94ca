//! `http_fetch`: a page or a document as text. Hosts that nobody named are asked about, and a redirect leads no further
//! than the same rule would.

use std::time::Duration;

use bytes::Bytes;
use serde_json::json;

use super::html;
use super::{Shared, failed, text};
use crate::egress::{Ask, EgressError, Heard, Leg, Method, Url, status_text};
use crate::event::Trust;
use crate::tools::{Call, Output, Policy, Preview, ToolFailure, pattern};

/// Longest document, in bytes.
const BYTES_MAX: usize = 4 << 20;
const TIME_MAX: Duration = Duration::from_secs(30);
const REDIRECTS_MAX: u8 = 5;
const ACCEPT: &str = "text/html, text/plain, application/json, application/xml;q=0.9, */*;q=0.5";

fn url(call: &Call) -> Result<Url, ToolFailure> {
    Url::parse(text(call, "url")).map_err(|why| ToolFailure::Arguments("/url".to_owned(), why))
}

fn is_named(policy: &Policy, host: &str) -> bool {
    policy.hosts.iter().any(|named| pattern::fits(named, host))
}

pub(super) fn preview(call: &Call) -> Result<Preview, ToolFailure> {
    let url = url(call)?;
    let host = url.host().to_ascii_lowercase();
    let asks = (!is_named(&call.caller.policy, &host)).then(|| format!("the host '{host}' was not granted"));
    Ok(Preview { asks, ..Preview::about(host.clone(), host) })
}

pub(super) async fn fetch(shared: &Shared, call: &Call) -> Result<Output, ToolFailure> {
    let url = url(call)?;
    let (first, policy) = (url.host().to_ascii_lowercase(), &call.caller.policy);
    let ask = Ask {
        method: Method::GET,
        url,
        headers: vec![("accept".to_owned(), ACCEPT.to_owned())],
        body: Bytes::new(),
        bytes_max: BYTES_MAX,
        time_max: TIME_MAX,
        redirects_max: REDIRECTS_MAX,
    };
    // The first host has passed the gate; every other one must have been named.
    let rule = |to: &Url| {
        let host = to.host().to_ascii_lowercase();
        if host == first || is_named(policy, &host) {
            return Ok(Leg::default());
        }
        let scheme = if to.is_tls() { "https" } else { "http" };
        // The rest of the address is whatever the host wants to have read.
        Err(format!("it redirects to {scheme}://{}, whose host was not granted", to.authority()))
    };
    let heard = shared.ground.egress.ask_by(ask, rule).await.map_err(unheard)?;
    if !heard.is_success() {
        return Err(failed(format!("the host answered {}", status_text(heard.status))));
    }
    // A page of a few MiB takes a while to read.
    let read = tokio::task::spawn_blocking(move || readable(&heard)).await;
    read.map_err(|error| failed(format!("the document cannot be read: {error}")))
}

/// What an answer that did not come means.
pub(super) fn unheard(error: EgressError) -> ToolFailure {
    match error {
        EgressError::Refused(why) => ToolFailure::Refused("host_not_granted", format!("{why}.")),
        other => failed(other.to_string()),
    }
}

fn readable(heard: &Heard) -> Output {
    let kind = heard.header("content-type").unwrap_or("text/plain").to_ascii_lowercase();
    let essence = kind.split(';').next().unwrap_or_default().trim();
    let is_text =
        essence.starts_with("text/") || ["json", "xml", "javascript", "yaml"].iter().any(|end| essence.ends_with(end));
    let text = match essence {
        "text/html" | "application/xhtml+xml" => html::readable(&String::from_utf8_lossy(&heard.body)),
        _ if is_text || std::str::from_utf8(&heard.body).is_ok() => String::from_utf8_lossy(&heard.body).into_owned(),
        _ => format!("[{} bytes of {essence}, which is no text]", heard.body.len()),
    };
    let value = json!({ "status": heard.status, "content_type": essence, "bytes": heard.body.len(), "text": text });
    Output { text, value: Some(value), trust: Trust::Web }
}
