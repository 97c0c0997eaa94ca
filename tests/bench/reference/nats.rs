//! NATS JetStream with a file store: the durable broker that people would take instead.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::program;
use crate::Res;
use crate::load::{Load, Protocol, Request, receive};
use crate::proc::{Proc, free_port, wait_port};

const CONNECT: &str =
    "CONNECT {\"verbose\":false,\"pedantic\":false,\"lang\":\"bench\",\"version\":\"1\",\"protocol\":1}\r\n";
const SUBJECT: &str = "bench.tick";
const INBOX: &str = "_INBOX.bench@@@@";

/// A running server with one stream.
pub struct Nats {
    pub proc: Proc,
    pub addr: SocketAddr,
}

impl Nats {
    /// Starts one that syncs before every acknowledgement, or as it does by default, every two minutes; none when no
    /// `nats-server` is installed.
    pub fn start(folder: &Path, always: bool) -> Res<Option<Nats>> {
        let Some(binary) = program("nats-server", "nats-server") else { return Ok(None) };
        let port = free_port()?;
        let config = folder.join("nats.conf");
        let store = folder.join("nats");
        std::fs::write(
            &config,
            format!(
                "listen: \"127.0.0.1:{port}\"\njetstream {{ store_dir: \"{}\"{} }}\n",
                store.display(),
                if always { ", sync_interval: always" } else { "" }
            ),
        )?;
        let mut command = Command::new(binary);
        command.arg("-c").arg(&config).arg("-l").arg(folder.join("nats.log"));
        let proc = Proc::spawn(command)?;
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        wait_port(addr)?;
        let nats = Nats { proc, addr };
        nats.make_stream()?;
        Ok(Some(nats))
    }

    fn make_stream(&self) -> Res<()> {
        let config =
            r#"{"name":"BENCH","subjects":["bench.>"],"storage":"file","retention":"limits","num_replicas":1}"#;
        let request = format!("{}PUB $JS.API.STREAM.CREATE.BENCH {INBOX} {}\r\n{config}\r\n", preamble(), config.len());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut socket = TcpStream::connect(self.addr).await?;
            socket.write_all(request.as_bytes()).await?;
            receive(&mut socket, &mut Vec::new(), Protocol::Nats).await
        })
    }

    /// Publishes with one acknowledgement under way per connection.
    pub fn load(&self, body: &str, conns: usize) -> Load {
        let publish = format!("PUB {SUBJECT} {INBOX} {}\r\n{body}\r\n", body.len());
        Load {
            protocol: Protocol::Nats,
            preamble: preamble().into_bytes(),
            pids: vec![self.proc.pid()],
            ..Load::http(self.addr, Request::new(publish.into_bytes()), conns)
        }
    }
}

/// Greets, and listens on an inbox of the connection's own.
fn preamble() -> String {
    format!("{CONNECT}SUB {INBOX} 1\r\n")
}
