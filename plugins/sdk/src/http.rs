//! Outgoing HTTP to the hosts that the manifest names.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::bindings::aman::plugin::http_client;
use crate::{Error, Result};

pub use crate::bindings::aman::plugin::http_client::Response;

/// A request to be sent.
pub struct Outgoing(http_client::Request);

/// A GET request.
pub fn get(url: impl Into<String>) -> Outgoing {
    request("GET", url)
}

/// A POST request.
pub fn post(url: impl Into<String>) -> Outgoing {
    request("POST", url)
}

/// A request with any method.
pub fn request(method: &str, url: impl Into<String>) -> Outgoing {
    Outgoing(http_client::Request {
        method: method.to_owned(),
        url: url.into(),
        headers: Vec::new(),
        body: Vec::new(),
        timeout_ms: None,
        extensions: Vec::new(),
    })
}

impl Outgoing {
    /// With a header.
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Outgoing {
        self.0.headers.push((name.to_owned(), value.into()));
        self
    }

    /// With a JSON body.
    pub fn json(mut self, body: &impl Serialize) -> Result<Outgoing> {
        self.0.body = serde_json::to_vec(body)?;
        Ok(self.header("content-type", "application/json"))
    }

    /// With another time to wait than 30 seconds.
    pub fn timeout_ms(mut self, timeout_ms: u64) -> Outgoing {
        self.0.timeout_ms = Some(timeout_ms);
        self
    }

    /// Sends it and waits. Any status is an answer; see [`Response::ok`].
    pub fn send(self) -> Result<Response> {
        http_client::send(&self.0)
    }
}

impl Response {
    /// The first header of this name, in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// Itself when its status is 200 to 299. Otherwise an error: 404 and 410 are not found, 408, 429 and 5xx may pass,
    /// and whatever else is somebody's fault.
    pub fn ok(self) -> Result<Response> {
        let told = format!("the server answered HTTP {}.", self.status);
        match self.status {
            200..=299 => Ok(self),
            404 | 410 => Err(Error::not_found(told)),
            408 | 429 | 500.. => Err(Error::unavailable(told)),
            _ => Err(Error::internal(told)),
        }
    }

    /// The body as JSON.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.body).map_err(|error| Error::internal(format!("the server's JSON: {error}.")))
    }

    /// The body as text; what is no UTF-8 is replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}
