//! Publishing to a hub with many stream clients: the same measurements for the daemon and for its reference.

use std::net::SocketAddr;
use std::time::Duration;

use crate::Res;
use crate::load::{self, Load, Request};
use crate::proc::{cpu_us, rss_kib};
use crate::sse::Clients;

const PATIENCE: Duration = Duration::from_secs(60);
/// Time for connections to settle before memory is read or a measurement begins.
const SETTLE: Duration = Duration::from_millis(300);

/// A server that publishes to streams.
pub struct Hub {
    pub addr: SocketAddr,
    pub publish: Request,
    pub subscribe: Request,
    pub pids: Vec<u32>,
}

/// What a run gave.
pub struct Outcome {
    pub published_rate: f64,
    pub delivered_rate: f64,
    pub cpu_each_us: f64,
}

impl Hub {
    fn load(&self, conns: usize, events: u64, rate: Option<f64>) -> Load {
        Load {
            warmup: Duration::ZERO,
            duration: PATIENCE,
            limit: Some(events),
            rate,
            ..Load::http(self.addr, self.publish.clone(), conns)
        }
    }

    /// Opens `readers` reading and `stalled` sleeping clients, publishes `events` over `conns` connections (at `rate` a
    /// second, else as fast as they are taken) and waits until every reader has every one.
    pub fn run(&self, clients: &Clients, readers: usize, conns: usize, events: u64, rate: Option<f64>) -> Res<Outcome> {
        let (frames, cpu, begun) = (clients.frames(), cpu_us(&self.pids), clients.now());
        let published = load::run(self.load(conns, events, rate))?;
        let last = clients.wait(frames, events, PATIENCE)?;
        let cpu = cpu_us(&self.pids).saturating_sub(cpu);
        let delivered = (events * readers as u64) as f64;
        Ok(Outcome {
            published_rate: published.rate(),
            delivered_rate: delivered / (last - begun).max(1e-6),
            cpu_each_us: cpu as f64 / delivered,
        })
    }

    /// Opens clients and lets them settle.
    pub fn connect(&self, readers: usize, stalled: usize) -> Res<Clients> {
        let clients = Clients::connect(self.addr, self.subscribe.bytes(), readers, stalled)?;
        std::thread::sleep(SETTLE);
        Ok(clients)
    }

    /// KiB of memory that each idle client takes.
    pub fn idle_kib(&self, clients: usize) -> Res<f64> {
        let before = rss_kib(&self.pids);
        let opened = self.connect(clients, 0)?;
        let after = rss_kib(&self.pids);
        drop(opened);
        Ok(after.saturating_sub(before) as f64 / clients as f64)
    }
}
