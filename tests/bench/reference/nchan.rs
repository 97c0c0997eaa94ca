//! nginx with the nchan module: a fan-out server in C, for the streams.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::program;
use crate::Res;
use crate::daemon::body;
use crate::fanout::Hub;
use crate::load::Request;
use crate::proc::{Proc, children, free_port, wait_port};

const MODULE: &str = "nginx/usr/lib/nginx/modules/ngx_nchan_module.so";

/// A running nginx with one worker and one channel.
pub struct Nchan {
    proc: Proc,
    addr: SocketAddr,
}

impl Nchan {
    /// Starts it in `folder`; none when it is not installed.
    pub fn start(folder: &Path) -> Res<Option<Nchan>> {
        let Some(binary) = program("nginx/usr/sbin/nginx", "nginx") else { return Ok(None) };
        let own = std::env::var_os("AMAN_BENCH_PEERS").map(|peers| Path::new(&peers).join(MODULE));
        let system = Path::new("/usr/lib/nginx/modules/ngx_nchan_module.so").to_owned();
        let Some(module) = own.into_iter().chain([system]).find(|m| m.is_file()) else { return Ok(None) };
        let port = free_port()?;
        let home = folder.join("nchan");
        std::fs::create_dir_all(&home)?;
        std::fs::write(home.join("nginx.conf"), configuration(&module, port))?;
        let mut command = Command::new(binary);
        command.arg("-p").arg(format!("{}/", home.display())).args(["-c", "nginx.conf", "-e", "error.log"]);
        let proc = Proc::spawn(command)?;
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        wait_port(addr)?;
        // The port listens before the worker is there.
        while children(proc.pid()).is_empty() {
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Some(Nchan { proc, addr }))
    }

    /// The worker does all the work.
    fn pids(&self) -> Vec<u32> {
        let mut pids = children(self.proc.pid());
        pids.push(self.proc.pid());
        pids
    }

    /// It as a hub; a stream begins with what comes after it was opened.
    pub fn hub(&self) -> Hub {
        Hub {
            addr: self.addr,
            publish: Request::http("POST", "/pub", "Content-Type: application/json\r\n", &body("bench.tick")),
            subscribe: Request::http("GET", "/sub", "Accept: text/event-stream\r\n", ""),
            pids: self.pids(),
        }
    }
}

fn configuration(module: &Path, port: u16) -> String {
    format!(
        "load_module {};\ndaemon off;\nworker_processes 1;\nworker_rlimit_nofile 65536;\npid nginx.pid;\n\
         error_log error.log warn;\nevents {{ worker_connections 16384; }}\nhttp {{\n  access_log off;\n  \
         keepalive_requests 100000000;\n  client_body_temp_path body;\n  proxy_temp_path proxy;\n  \
         fastcgi_temp_path fastcgi;\n  uwsgi_temp_path uwsgi;\n  scgi_temp_path scgi;\n  \
         nchan_shared_memory_size 512M;\n  server {{\n    listen 127.0.0.1:{port} backlog=4096;\n    \
         location = /pub {{ nchan_publisher; nchan_channel_id bench; nchan_message_buffer_length 100000; \
         nchan_message_timeout 10m; }}\n    \
         location = /sub {{ nchan_subscriber eventsource; nchan_channel_id bench; \
         nchan_subscriber_first_message newest; }}\n  }}\n}}\n",
        module.display()
    )
}
