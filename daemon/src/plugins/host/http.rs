//! Outgoing HTTP of plugins: to granted hosts only, with secrets that the plugin never holds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use aman_plugin_host::{Error as Refusal, InvalidField, OutgoingRequest, OutgoingResponse, Retry, limits};
use bytes::Bytes;
use tokio_util::task::AbortOnDropHandle;

use super::convert::refusal;
use super::{Api, Services};
use crate::config::plugins::PluginSection;
use crate::egress::{Ask, EgressError, Heard, Leg, Method, Url};
use crate::error::Error;
use crate::package::{Host, HttpGrant, Manifest};
use crate::redact;
use crate::telemetry::traces::{self, Context};

const BODY_BYTES_MAX: usize = 4 << 20;
const TIME_MAX: Duration = Duration::from_secs(3_600);
const REDIRECTS_MAX: u8 = 5;
/// Headers about the connection (RFC 9110, 7.6.1, and what older programs send), and those that the host sets.
const HOSTS_OWN: [&str; 13] = [
    "connection",
    "content-length",
    "expect",
    "forwarded",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
];
/// Headers that carry credentials: those come from the configuration.
const CREDENTIALS: [&str; 4] = ["authorization", "cookie", "proxy-authenticate", "proxy-authorization"];

fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Refusal {
    Refusal::Invalid(InvalidField { field: field.into(), reason: reason.into() })
}

impl Api {
    /// Sends a request as a part of `context`, and follows a redirect of a `GET` as far as it leads to granted hosts.
    pub(super) async fn send(
        &self,
        request: OutgoingRequest,
        context: Option<Context>,
    ) -> Result<OutgoingResponse, Refusal> {
        let (ask, time_max) = ask(request)?;
        let rule = Rule {
            services: self.services.clone(),
            plugin: self.room.plugin.clone(),
            manifest: Arc::clone(&self.manifest),
            method: ask.method.to_string(),
        };
        rule.leg(&ask.url).map_err(Refusal::Denied)?;
        let (egress, begun) = (self.services.inner.egress.clone(), Instant::now());
        // Connections belong to the daemon's runtime; the request ends with the call that wants it.
        let asking = async move {
            let heard = egress.ask_by(ask, |url| rule.leg(url)).await;
            heard.map(|heard| if rule.has_secrets() { without_secrets(heard) } else { heard })
        };
        let heard = AbortOnDropHandle::new(self.services.inner.runtime.spawn(traces::within(context, asking))).await;
        let heard = heard.map_err(|error| refusal(Error::internal("sending a request of a plugin")(error)))?;
        let heard = heard.map_err(|error| unanswered(error, begun.elapsed() >= time_max))?;
        let Heard { status, headers, body } = heard;
        Ok(OutgoingResponse { status, headers, body: body.to_vec(), extensions: Vec::new() })
    }
}

fn ask(request: OutgoingRequest) -> Result<(Ask, Duration), Refusal> {
    let method = Method::from_bytes(request.method.as_bytes()).map_err(|_| invalid("method", "is no HTTP method"))?;
    let url = Url::parse(&request.url).map_err(|reason| invalid("url", reason))?;
    for (name, value) in &request.headers {
        let lower = name.to_ascii_lowercase();
        let field = || format!("headers/{lower}");
        if CREDENTIALS.contains(&lower.as_str()) {
            return Err(invalid(field(), "carries credentials: name a secret_header in the manifest instead"));
        }
        if HOSTS_OWN.contains(&lower.as_str()) {
            return Err(invalid(field(), "is set by the host"));
        }
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if name.is_empty()
            || !name.bytes().all(token)
            || !value.bytes().all(|b| b == b'\t' || (b' '..=b'~').contains(&b))
        {
            return Err(invalid(
                "headers",
                "a header has a name of letters, digits and '-', and a value of plain ASCII",
            ));
        }
    }
    let time_max = request.timeout_ms.map_or(limits::OUTGOING_TIME, Duration::from_millis).min(TIME_MAX);
    let ask = Ask {
        method,
        url,
        headers: request.headers,
        body: Bytes::from(request.body),
        bytes_max: BODY_BYTES_MAX,
        time_max,
        redirects_max: REDIRECTS_MAX,
    };
    Ok((ask, time_max))
}

/// What the manifest grants and the configuration says, looked up for each address anew.
struct Rule {
    services: Services,
    plugin: String,
    manifest: Arc<Manifest>,
    method: String,
}

impl Rule {
    /// What goes to `url`, or why nothing may.
    fn leg(&self, url: &Url) -> Result<Leg, String> {
        let sections = self.services.inner.sections.load();
        let section = sections.get(&self.plugin);
        let place = format!("{} {}:{}", self.method, url.host(), url.port());
        let reached = |grant: &&HttpGrant| grant.methods.contains(&self.method) && reaches(&grant.host, url, section);
        let grants: Vec<&HttpGrant> = self.manifest.permissions.http.iter().filter(reached).collect();
        if grants.is_empty() {
            return Err(format!("the manifest does not grant {place}"));
        }
        let grants: Vec<&HttpGrant> = grants.into_iter().filter(|grant| url.is_tls() || grant.insecure).collect();
        if grants.is_empty() {
            return Err(format!("the manifest grants {place} with https only"));
        }
        let mut leg = Leg { private: grants.iter().any(|grant| grant.private), ..Leg::default() };
        for header in grants.iter().filter_map(|grant| grant.secret_header.as_ref()) {
            let Some(secret) = section.and_then(|section| section.secrets.get(&header.secret)) else {
                let (plugin, name) = (&self.plugin, &header.secret);
                return Err(format!("the secret {name} is not set; put it under [plugin.{plugin}.secrets]"));
            };
            leg.headers.push((header.name.clone(), format!("{}{}", header.prefix, secret.expose())));
        }
        Ok(leg)
    }

    fn has_secrets(&self) -> bool {
        self.services.inner.sections.load().get(&self.plugin).is_some_and(|section| !section.secrets.is_empty())
    }
}

/// Whether `url` is at the host, and at its port: the named one, otherwise the one of the scheme.
fn reaches(host: &Host, url: &Url, section: Option<&PluginSection>) -> bool {
    let name = url.host().to_ascii_lowercase();
    let usual = if url.is_tls() { 443 } else { 80 };
    match host {
        Host::Exact(wanted) => match wanted.split_once(':') {
            Some((host, port)) => host == name && port.parse() == Ok(url.port()),
            None => *wanted == name && url.port() == usual,
        },
        Host::Below(above) => {
            url.port() == usual
                && name.strip_suffix(above.as_str()).is_some_and(|below| below.len() > 1 && below.ends_with('.'))
        }
        Host::Setting(granted) => {
            let set = section.into_iter().flat_map(|section| &section.settings);
            let set =
                set.filter(|(key, _)| Host::is_set_in(granted, key)).filter_map(|(_, text)| Url::parse(text).ok());
            set.into_iter().any(|set| {
                set.host().eq_ignore_ascii_case(&name) && set.port() == url.port() && set.is_tls() == url.is_tls()
            })
        }
    }
}

/// Takes out what a server sent back of the secrets that it was given.
fn without_secrets(heard: Heard) -> Heard {
    let length = heard.body.len();
    let clean = |(name, value): (String, String)| (name, redact::text(&value).into_owned());
    let mut headers: Vec<_> = heard.headers.into_iter().map(clean).collect();
    let body = match std::str::from_utf8(&heard.body) {
        Ok(text) if redact::is_in(text) => Bytes::from(redact::text(text).into_owned()),
        Ok(_) => heard.body,
        Err(_) => Bytes::from(redact::bytes(&heard.body).into_owned()),
    };
    if body.len() != length {
        headers.retain(|(name, _)| name != "content-length");
    }
    Heard { status: heard.status, headers, body }
}

fn unanswered(error: EgressError, is_late: bool) -> Refusal {
    let why = redact::text(&error.to_string()).into_owned();
    match error {
        EgressError::Refused(_) => Refusal::Denied(why),
        EgressError::TooLong(_) => Refusal::Limit(why),
        EgressError::NotSent(_) | EgressError::Unknown(_) if is_late => Refusal::Timeout(why),
        EgressError::NotSent(_) | EgressError::Unknown(_) | EgressError::BadAnswer(_) => {
            Refusal::Unavailable(Retry { reason: why, after_ms: None })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn hosts_and_ports_are_held_to_the_grant() {
        let set = [("base", "http://Home.local:8123/api"), ("other", "not an address"), ("feed_1", "https://a.org/x")];
        let settings: BTreeMap<_, _> = set.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let section =
            PluginSection { name: "a".to_owned(), bind: None, expect_every: None, settings, secrets: BTreeMap::new() };
        let exact = |host: &str| Host::Exact(host.to_owned());
        let (below, setting) = (Host::Below("example.org".to_owned()), Host::Setting("base".to_owned()));
        let many = Host::Setting("feed_*".to_owned());
        for (host, url, wanted) in [
            (&exact("example.org"), "https://example.org/x", true),
            (&exact("example.org"), "https://EXAMPLE.org/x", true),
            (&exact("example.org"), "http://example.org/x", true),
            (&exact("example.org"), "https://example.org:444/", false),
            (&exact("example.org"), "https://example.org.evil.net/", false),
            (&exact("example.org"), "https://evil.net/example.org", false),
            (&exact("example.org:444"), "https://example.org:444/", true),
            (&exact("example.org:444"), "https://example.org/", false),
            (&below, "https://a.example.org/", true),
            (&below, "https://a.b.example.org/", true),
            (&below, "https://example.org/", false),
            (&below, "https://.example.org/", false),
            (&below, "https://badexample.org/", false),
            (&below, "https://a.example.org:8443/", false),
            (&setting, "http://home.local:8123/other", true),
            (&setting, "https://home.local:8123/", false),
            (&setting, "http://home.local/", false),
            (&Host::Setting("none".to_owned()), "http://home.local:8123/", false),
            (&Host::Setting("feed_".to_owned()), "https://a.org/", false),
            (&many, "https://a.org/", true),
            (&many, "http://a.org/", false),
            (&many, "http://home.local:8123/", false),
        ] {
            let found = Url::parse(url).is_ok_and(|url| reaches(host, &url, Some(&section)));
            assert_eq!(found, wanted, "{host:?} {url}");
        }
    }

    #[test]
    fn headers_that_are_not_the_plugins_are_refused() {
        let with = |name: &str, value: &str| OutgoingRequest {
            method: "GET".to_owned(),
            url: "https://example.org/".to_owned(),
            headers: vec![(name.to_owned(), value.to_owned())],
            body: Vec::new(),
            timeout_ms: None,
            extensions: Vec::new(),
        };
        for name in ["Authorization", "cookie", "Proxy-Authorization", "Host", "connection", "TE", "content-length"] {
            assert!(matches!(ask(with(name, "x")), Err(Refusal::Invalid(_))), "{name}");
        }
        for (name, value) in [("", "x"), ("a b", "x"), ("a", "x\r\nhost: evil"), ("a", "é")] {
            assert!(matches!(ask(with(name, value)), Err(Refusal::Invalid(_))), "{name}: {value}");
        }
        assert!(ask(with("x-mine", "1")).is_ok());
    }
}
