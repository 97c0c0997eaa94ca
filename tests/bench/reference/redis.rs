//! Redis Streams with an append-only file: one `XADD` per event.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use super::program;
use crate::Res;
use crate::load::{Load, Protocol, Request};
use crate::proc::{Proc, free_port, wait_port};

/// A running server.
pub struct Redis {
    pub proc: Proc,
    pub addr: SocketAddr,
}

impl Redis {
    /// Starts one whose `appendfsync` is `always` or `everysec`; none when no `redis-server` is installed.
    pub fn start(folder: &Path, appendfsync: &str) -> Res<Option<Redis>> {
        let Some(binary) = program("redis/usr/bin/redis-server", "redis-server") else { return Ok(None) };
        let home = folder.join(format!("redis-{appendfsync}"));
        std::fs::create_dir_all(&home)?;
        let port = free_port()?;
        let mut command = Command::new(&binary);
        if let Some(usr) = binary.parent().and_then(Path::parent) {
            // Its libraries lie beside it where it was unpacked and not installed.
            command.env("LD_LIBRARY_PATH", usr.join("lib").join(format!("{}-linux-gnu", std::env::consts::ARCH)));
        }
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "yes"]);
        command.args(["--appendfsync", appendfsync, "--dir"]).arg(&home);
        let proc = Proc::spawn(command)?;
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        wait_port(addr)?;
        Ok(Some(Redis { proc, addr }))
    }

    /// Appends to one stream, each connection waiting for its own answers.
    pub fn load(&self, body: &str, conns: usize) -> Load {
        let words = ["XADD", "bench", "*", "event", body];
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        Load {
            protocol: Protocol::Redis,
            pids: vec![self.proc.pid()],
            ..Load::http(self.addr, Request::new(request.into_bytes()), conns)
        }
    }
}
