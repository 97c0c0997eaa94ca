//! Plain hyper: a hello world, and a JSON POST that is parsed and checked. What HTTP itself costs on this machine.

use std::convert::Infallible;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Deserialize;

use crate::Res;
use crate::proc::{Proc, role};

/// The role's name.
pub const ROLE: &str = "hyper";

/// A running plain hyper server.
pub struct Hyper {
    pub proc: Proc,
    pub addr: SocketAddr,
}

impl Hyper {
    pub fn start() -> Res<Hyper> {
        let mut proc = role(ROLE, &[])?;
        let addr = proc.line("ready ")?.parse()?;
        Ok(Hyper { proc, addr })
    }
}

/// What a push must hold at least.
#[derive(Deserialize)]
struct Push {
    source: String,
    #[serde(rename = "type")]
    kind: String,
    payload: Box<serde_json::value::RawValue>,
}

/// Serves until it is ended.
pub fn serve() -> Res<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let mut out = std::io::stdout().lock();
        writeln!(out, "ready {}", listener.local_addr()?)?;
        out.flush()?;
        drop(out);
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(async move {
                let mut server = hyper::server::conn::http1::Builder::new();
                // A client that goes away is no matter here.
                let _ =
                    server.timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service_fn(answer)).await;
            });
        }
    })
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.method() == hyper::Method::GET {
        return Ok(reply(StatusCode::OK, Bytes::from_static(b"{\"status\":\"ok\"}")));
    }
    let body = match request.into_body().collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => return Ok(reply(StatusCode::BAD_REQUEST, Bytes::new())),
    };
    let valid = serde_json::from_slice::<Push>(&body)
        .is_ok_and(|push| !push.source.is_empty() && is_type(&push.kind) && !push.payload.get().is_empty());
    let status = if valid { StatusCode::OK } else { StatusCode::BAD_REQUEST };
    Ok(reply(status, Bytes::from(format!("{{\"ok\":{valid},\"matched\":[]}}"))))
}

fn is_type(kind: &str) -> bool {
    kind.len() <= 255 && kind.split('.').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric()))
}

fn reply(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static("application/json"));
    response
}
