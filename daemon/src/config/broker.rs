//! How an MQTT broker is reached, by a source or a sink.

use std::path::PathBuf;

use super::table::Reader;
use super::{Paths, Secret};

/// Where a broker is, and as whom it is spoken to.
#[derive(Debug, Clone, PartialEq)]
pub struct Broker {
    /// Name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// `mqtts://`: the connection is encrypted, and the broker must have a certificate for `host`.
    pub tls: Option<Secured>,
    /// How the broker knows this client again; none = made from the daemon's number and the id.
    pub client_id: Option<String>,
    /// User and password.
    pub login: Option<(String, Secret)>,
}

/// Whom an encrypted connection trusts, and how it shows who it is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Secured {
    /// PEM file with the certificates that are trusted; none = those of the machine.
    pub ca: Option<PathBuf>,
    /// PEM files of a certificate of this client and of its key.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// Reads `broker`, `client_id`, `username`, `password`, `ca`, `cert` and `key`.
pub(super) fn broker(reader: &mut Reader<'_>, paths: &Paths) -> Option<Broker> {
    let (client_id, username) = (reader.text("client_id"), reader.text("username"));
    let password = reader.secrets("password").into_iter().next();
    let home = paths.home_dir.as_deref();
    let mut path = |key| reader.path(key, home);
    let (ca, cert, key) = (path("ca"), path("cert"), path("key"));
    let client = match (cert, key) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        (Some(_), None) => {
            reader.wrong("key", "is missing: cert needs its private key.");
            None
        }
        (None, Some(_)) => {
            reader.wrong("cert", "is missing: key needs its certificate.");
            None
        }
    };
    let text = reader.required("broker", "the broker, such as mqtt://localhost:1883 or mqtts://example.org.")?;
    let Some((encrypted, host, port)) = place(&text) else {
        reader.wrong("broker", "must be a host and a port, such as mqtt://localhost:1883 or mqtts://example.org:8883.");
        return None;
    };
    if !encrypted && (ca.is_some() || client.is_some()) {
        reader.wrong(
            "broker",
            "must begin with mqtts:// where there is a ca, a cert or a key: mqtt:// is not encrypted.",
        );
        return None;
    }
    let login = username.map(|name| (name, password.unwrap_or_else(|| Secret::new(""))));
    Some(Broker { host, port, tls: encrypted.then_some(Secured { ca, client }), client_id, login })
}

/// Whether it is encrypted, the host and the port.
fn place(text: &str) -> Option<(bool, String, u16)> {
    let (encrypted, rest) = match text.split_once("://") {
        Some(("mqtts", rest)) => (true, rest),
        Some(("mqtt", rest)) => (false, rest),
        Some(_) => return None,
        None => (false, text),
    };
    let rest = rest.trim_end_matches('/');
    let usual = if encrypted { 8883 } else { 1883 };
    let (host, port) = match (rest.strip_prefix('[').and_then(|inner| inner.split_once(']')), rest.rsplit_once(':')) {
        (Some((host, "")), _) => (host, usual),
        (Some((host, port)), _) => (host, port.strip_prefix(':')?.parse().ok()?),
        (None, Some((host, port))) => (host, port.parse().ok()?),
        (None, None) => (rest, usual),
    };
    let is_host = !host.is_empty() && !host.contains(|c: char| "/@?#[]".contains(c) || c.is_whitespace());
    is_host.then(|| (encrypted, host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read() {
        for (text, wanted) in [
            ("mqtt://a:1", Some((false, "a", 1))),
            ("a", Some((false, "a", 1883))),
            ("mqtts://a.b/", Some((true, "a.b", 8883))),
            ("mqtts://[::1]:7", Some((true, "::1", 7))),
            ("mqtt://[::1]", Some((false, "::1", 1883))),
            ("ws://a", None),
            ("mqtts://u:p@a", None),
            ("mqtt://a:b", None),
            ("mqtt://", None),
        ] {
            let wanted = wanted.map(|(encrypted, host, port)| (encrypted, host.to_owned(), port));
            assert_eq!(place(text), wanted, "{text}");
        }
    }
}
