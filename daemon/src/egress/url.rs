//! Web addresses as far as the way out needs them. Pure.

use std::fmt;

use hyper::Uri;

/// Longest address, in bytes.
const BYTES_MAX: usize = 8192;

/// An `http` or `https` address without user, password and fragment.
#[derive(Clone, PartialEq, Eq)]
pub struct Url {
    tls: bool,
    /// Host and port as they were given.
    authority: String,
    host: String,
    port: u16,
    path_and_query: String,
}

impl Url {
    /// Reads an address; the error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Url, String> {
        if text.len() > BYTES_MAX {
            return Err(format!("has more than {BYTES_MAX} bytes."));
        }
        let text = text.split('#').next().unwrap_or_default();
        let uri: Uri = text.parse().map_err(|_| "is no web address such as https://example.org/path.".to_owned())?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err("must begin with https:// or http://.".to_owned()),
        };
        let authority = uri.authority().ok_or("names no host.")?;
        if authority.as_str().contains('@') {
            return Err("must not hold a user or a password; use headers for them.".to_owned());
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err("names no host.".to_owned());
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let path_and_query = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Ok(Url {
            tls,
            authority: authority.as_str().to_owned(),
            host: host.to_owned(),
            port: authority.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            path_and_query,
        })
    }

    /// Where a `Location` header leads from here.
    pub fn join(&self, place: &str) -> Result<Url, String> {
        let scheme = if self.tls { "https" } else { "http" };
        if let Some(rest) = place.strip_prefix("//") {
            return Url::parse(&format!("{scheme}://{rest}"));
        }
        if place.split(['/', '?', '#']).next().is_some_and(|first| first.contains(':')) {
            return Url::parse(place);
        }
        let path = self.path_and_query.split('?').next().unwrap_or("/");
        let target = match place.chars().next() {
            None | Some('#') => self.path_and_query.clone(),
            Some('/') => place.to_owned(),
            Some('?') => format!("{path}{place}"),
            Some(_) => format!("{}{place}", &path[..=path.rfind('/').unwrap_or(0)]),
        };
        Url::parse(&format!("{scheme}://{}{target}", self.authority))
    }

    /// True for https.
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// Host and port as they were given.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The host, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port; without one that of the scheme.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What follows the host; begins with `/`.
    pub fn path_and_query(&self) -> &str {
        &self.path_and_query
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", if self.tls { "https" } else { "http" }, self.authority, self.path_and_query)
    }
}

impl fmt::Debug for Url {
    /// Without the query, which may hold a key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path_and_query.split('?').next().unwrap_or_default();
        write!(f, "{}://{}{path}", if self.tls { "https" } else { "http" }, self.authority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_joined() {
        let base = Url::parse("https://example.org:8443/a/b?c=1#d").expect("good");
        assert_eq!((base.host(), base.port(), base.path_and_query()), ("example.org", 8443, "/a/b?c=1"));
        for (place, wanted) in [
            ("/x", "https://example.org:8443/x"),
            ("x?y=z", "https://example.org:8443/a/x?y=z"),
            ("?q", "https://example.org:8443/a/b?q"),
            ("//other.org/z", "https://other.org/z"),
            ("http://[::1]:9/", "http://[::1]:9/"),
            ("#e", "https://example.org:8443/a/b?c=1"),
        ] {
            assert_eq!(base.join(place).expect(place).to_string(), wanted);
        }
        for bad in ["ftp://a/", "https://", "https://u:p@a/", "file:///etc/passwd", "/a", "", "https://a b/"] {
            assert!(Url::parse(bad).is_err(), "{bad}");
        }
        assert!(base.join("javascript:alert(1)").is_err());
        assert_eq!(Url::parse("http://[::1]/").expect("good").host(), "::1");
    }
}
