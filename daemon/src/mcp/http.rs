//! The way to a server by HTTP: through the daemon's one way out.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use aman_mcp::{Heard, Request, Unsent, WayOut, pieces};

use crate::config::Secret;
use crate::egress::{Ask, Egress, EgressError, Leg, Method, Url};

/// Sends requests to `url`, which the operator named: it may be on this machine. `headers` go with each.
pub fn way_out(egress: &Egress, url: &Url, headers: &[(String, Secret)], time_max: Duration) -> WayOut {
    let headers = headers.iter().map(|(name, value)| (name.clone(), value.expose().to_owned())).collect();
    let (egress, url, leg) = (egress.clone(), url.clone(), Leg { headers, private: true });
    Arc::new(move |request| {
        let (egress, url, leg) = (egress.clone(), url.clone(), leg.clone());
        Box::pin(async move { send(egress, url, leg, request, time_max).await })
    })
}

async fn send(egress: Egress, url: Url, leg: Leg, request: Request, time_max: Duration) -> Result<Heard, Unsent> {
    let method = match request.method {
        "GET" => Method::GET,
        "DELETE" => Method::DELETE,
        _ => Method::POST,
    };
    let Request { headers, body, .. } = request;
    // Messages are bounded one by one; a stream of them may be as long as the connection lasts.
    let ask = Ask { method, url, headers, body, bytes_max: usize::MAX, time_max, redirects_max: 0 };
    let streamed = egress.open(ask, leg).await.map_err(|error| Unsent {
        may_have_left: !matches!(error, EgressError::Refused(_) | EgressError::NotSent(_)),
        why: error.to_string(),
    })?;
    let (status, headers) = (streamed.head.status, streamed.head.headers.clone());
    let body = pieces(streamed, |mut streamed| async move {
        let piece = streamed.next().await.transpose()?;
        Some((piece.map_err(io::Error::other), streamed))
    });
    Ok(Heard { status, headers, body })
}
