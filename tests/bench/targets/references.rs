//! The references alone: what this machine gives, and that the load generator and the stream client work.

use std::time::Duration;

use crate::daemon::{body, data};
use crate::load::{self, Load, Outcome, Request};
use crate::proc::rss_kib;
use crate::reference::http::Hyper;
use crate::reference::nats::Nats;
use crate::reference::nchan::Nchan;
use crate::reference::redis::Redis;
use crate::reference::sqlite;
use crate::report::{Row, Wanted};
use crate::{Bench, Res};

const READERS: usize = 1000;

pub fn run(bench: &mut Bench) -> Res<()> {
    let disk = bench.sample_disk(0)?;
    add(bench, "4 KiB append + fdatasync, p50", "us", disk);
    hyper(bench)?;
    durable(bench)?;
    streams(bench)
}

fn add(bench: &mut Bench, name: &str, unit: &'static str, value: f64) {
    bench.report.add(Row::cost(0, name, unit, &[value], Wanted::Nothing));
}

fn timed(bench: &Bench, load: Load) -> Res<Outcome> {
    load::run(Load { duration: bench.secs(2.0), ..load })
}

fn hyper(bench: &mut Bench) -> Res<()> {
    let hyper = Hyper::start()?;
    let hello = Request::http("GET", "/", "", "");
    let post = Request::http("POST", "/", "Content-Type: application/json\r\n", &body("bench.tick"));
    for (name, request) in [("hyper hello", hello), ("hyper JSON POST", post)] {
        for conns in [1, 64] {
            let load = Load { pids: vec![hyper.proc.pid()], ..Load::http(hyper.addr, request.clone(), conns) };
            let outcome = timed(bench, load)?;
            add(bench, &format!("{name}, {conns}"), "/s", outcome.rate());
            add(bench, &format!("{name}, {conns}, CPU"), "us", outcome.cpu_each_us());
        }
    }
    Ok(())
}

fn durable(bench: &mut Bench) -> Res<()> {
    let folder = bench.folder("references")?;
    let (nats, redis) = (Nats::start(&folder, true)?, Redis::start(&folder, "always")?);
    for conns in [64, 256] {
        let duration = bench.secs(2.0);
        let bare = sqlite::run(&folder, conns, Duration::from_millis(500), duration, &data("bench.tick"))?;
        add(bench, &format!("bare SQLite, {conns} producers"), "/s", bare.rate);
        add(bench, &format!("bare SQLite, {conns} producers, CPU"), "us", bare.cpu_each_us);
        if let Some(nats) = &nats {
            let outcome = timed(bench, nats.load(&body("bench.tick"), conns))?;
            add(bench, &format!("NATS always, {conns}"), "/s", outcome.rate());
        }
        if let Some(redis) = &redis {
            let outcome = timed(bench, redis.load(&body("bench.tick"), conns))?;
            add(bench, &format!("Redis always, {conns}"), "/s", outcome.rate());
        }
    }
    Ok(())
}

fn streams(bench: &mut Bench) -> Res<()> {
    let folder = bench.folder("references")?;
    let Some(nchan) = Nchan::start(&folder)? else { return Ok(()) };
    let hub = nchan.hub();
    add(bench, "nchan idle client", "KiB", hub.idle_kib(READERS)?);
    let clients = hub.connect(READERS, 0)?;
    let fast = hub.run(&clients, READERS, 32, 200, None)?;
    add(bench, "nchan delivered, saturated, 1000", "/s", fast.delivered_rate);
    let slow = hub.run(&clients, READERS, 1, 60, Some(30.0))?;
    add(bench, "nchan CPU per delivery, 30/s", "us", slow.cpu_each_us);
    add(bench, "nchan memory", "KiB", rss_kib(&hub.pids) as f64);
    Ok(())
}
