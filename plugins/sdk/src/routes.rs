//! Requests to the plugin's routes, and what it answers.

use std::cell::RefCell;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::bindings::routes::exports::aman::plugin::http_handler::{self, Body};
use crate::{Error, Request, Response, Result};

impl Request {
    /// Method and the route's pattern, to match on: `("GET", "/feeds/{id}")`.
    pub fn target(&self) -> (&str, &str) {
        (&self.method, &self.route)
    }

    /// The error for a target that the plugin does not serve; the manifest names one too many.
    pub fn unknown(&self) -> Error {
        Error::not_found(format!("{} {}", self.method, self.route))
    }

    /// The value of a variable of the route's pattern, decoded.
    pub fn param(&self, name: &str) -> Result<&str> {
        let found = self.params.iter().find(|(found, _)| found == name);
        found.map(|(_, value)| value.as_str()).ok_or_else(|| Error::internal(format!("the route has no {{{name}}}.")))
    }

    /// The first value of a field in the query, decoded.
    pub fn query(&self, name: &str) -> Option<String> {
        let pairs = self.query.as_deref().unwrap_or_default().split('&');
        let mut pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.find(|(found, _)| decoded(found) == name).map(|(_, value)| decoded(value))
    }

    /// The first header of this name, in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    pub fn body_json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.body).map_err(|error| Error::invalid("body", format!("{error}.")))
    }
}

/// Undoes the encoding of a query; what is no UTF-8 is replaced.
fn decoded(text: &str) -> String {
    let (bytes, mut out, mut at) = (text.as_bytes(), Vec::with_capacity(text.len()), 0);
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        let byte = match (bytes[at], hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                at += 2;
                byte
            }
            (b'+', _) => b' ',
            (byte, _) => byte,
        };
        out.push(byte);
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

impl Response {
    /// A body of this media type with status 200.
    pub fn new(content_type: &str, body: impl Into<Vec<u8>>) -> Response {
        Response::with(content_type, Body::Bytes(body.into()))
    }

    /// JSON with status 200.
    pub fn json(body: &impl Serialize) -> Result<Response> {
        Ok(Response::new("application/json", serde_json::to_vec(body)?))
    }

    /// Plain text with status 200.
    pub fn text(body: impl Into<String>) -> Response {
        Response::new("text/plain; charset=utf-8", body.into())
    }

    /// Nothing, with a status such as 204.
    pub fn empty(status: u16) -> Response {
        Response { status, headers: Vec::new(), body: Body::Bytes(Vec::new()), extensions: Vec::new() }
    }

    /// A body that is made while it is sent. The host takes the next piece when the client can take it. Wait in
    /// [`crate::clock::sleep`], and hand out a piece at least every minute or so.
    pub fn stream(content_type: &str, pieces: impl Iterator<Item = Result<Vec<u8>>> + 'static) -> Response {
        let stream = BodyStream(RefCell::new(Box::new(pieces)));
        Response::with(content_type, Body::Streamed(http_handler::BodyStream::new(stream)))
    }

    /// Server-sent events; each item is the data of one.
    pub fn events(items: impl Iterator<Item = Result<String>> + 'static) -> Response {
        let framed = |data: String| {
            let lines: String = data.split('\n').map(|line| format!("data: {line}\n")).collect();
            format!("{lines}\n").into_bytes()
        };
        let response = Response::stream("text/event-stream", items.map(move |item| item.map(framed)));
        response.header("cache-control", "no-store")
    }

    /// With another status.
    pub fn status(mut self, status: u16) -> Response {
        self.status = status;
        self
    }

    /// With a header more.
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Response {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    fn with(content_type: &str, body: Body) -> Response {
        let headers = vec![("content-type".to_owned(), content_type.to_owned())];
        Response { status: 200, headers, body, extensions: Vec::new() }
    }
}

/// The pieces of a streamed body.
pub struct BodyStream(RefCell<Box<dyn Iterator<Item = Result<Vec<u8>>>>>);

impl http_handler::GuestBodyStream for BodyStream {
    fn next(&self) -> Result<Option<Vec<u8>>> {
        self.0.borrow_mut().next().transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Caller, Trust};

    fn request(query: Option<&str>) -> Request {
        Request {
            method: "GET".to_owned(),
            route: "/feeds/{id}".to_owned(),
            path: "/feeds/a%20b".to_owned(),
            params: vec![("id".to_owned(), "a b".to_owned())],
            query: query.map(str::to_owned),
            headers: vec![("accept".to_owned(), "text/plain".to_owned())],
            body: b"{\"n\": 1}".to_vec(),
            caller: Caller {
                principal: "owner".to_owned(),
                trust: Trust::Owner,
                trace_id: "0".repeat(32),
                extensions: Vec::new(),
            },
            extensions: Vec::new(),
        }
    }

    #[test]
    fn queries_are_decoded() {
        let rows = [
            (None, None),
            (Some(""), None),
            (Some("x=1"), None),
            (Some("u"), Some("")),
            (Some("x=1&u=https%3A%2F%2Fa.b%2F%3Fq%3D1&u=2"), Some("https://a.b/?q=1")),
            (Some("%75=a+b"), Some("a b")),
            (Some("u=100%&x"), Some("100%")),
            (Some("u=%2"), Some("%2")),
            (Some("u=%ff"), Some("\u{fffd}")),
        ];
        for (query, found) in rows {
            assert_eq!(request(query).query("u").as_deref(), found, "{query:?}");
        }
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let request = request(None);
        assert_eq!(request.param("id"), Ok("a b"));
        assert!(matches!(request.param("other"), Err(Error::Internal(_))));
        assert_eq!(request.body_json::<crate::Value>(), Ok(crate::json!({ "n": 1 })));
        let wrong = request.body_json::<Vec<u8>>().expect_err("it is no list");
        assert!(matches!(&wrong, Error::Invalid(field) if field.field == "body"), "{wrong:?}");
        assert_eq!((request.header("accept"), request.header("host")), (Some("text/plain"), None));
    }
}
