//! Target 6: what the daemon costs when nothing happens, and how soon it is there.

use std::time::{Duration, Instant};

use crate::daemon::Aman;
use crate::proc::{Threads, rss_kib};
use crate::reference::http::Hyper;
use crate::reference::nats::Nats;
use crate::report::{Row, Wanted};
use crate::stats::Pairs;
use crate::{Bench, Res};

const SETTLE: Duration = Duration::from_secs(2);

pub fn run(bench: &mut Bench) -> Res<()> {
    bench.sample_disk(6)?;
    let empty = bench.folder("start")?.join("aman");
    first_start(bench)?;
    idle(bench, &empty)?;
    starts(bench, &empty)?;
    restarts(bench)
}

fn first_start(bench: &mut Bench) -> Res<()> {
    let mut times = Vec::new();
    for round in 0..bench.args.rounds {
        let aman = Aman::start(&bench.folder("start")?.join(format!("first-{round}")))?;
        times.push(aman.start.as_secs_f64() * 1000.0);
    }
    let row = Row::cost(6, "first start, makes its data folder", "ms", &times, Wanted::Nothing);
    bench.report.add(row);
    Ok(())
}

fn idle(bench: &mut Bench, home: &std::path::Path) -> Res<()> {
    let aman = Aman::start(home)?;
    let nats = Nats::start(&bench.folder("start")?, true)?;
    std::thread::sleep(SETTLE);
    let pid = aman.proc.pid();
    let length = bench.secs(20.0);
    let (begun, before) = (Instant::now(), Threads::of(pid)?);
    std::thread::sleep(length);
    let secs = begun.elapsed().as_secs_f64();
    let (cpu_us, woken) = Threads::of(pid)?.since(&before);
    let mut memory = Pairs::default();
    memory
        .push(rss_kib(&[pid]) as f64 / 1024.0, nats.as_ref().map_or(0.0, |n| rss_kib(&[n.proc.pid()]) as f64 / 1024.0));
    bench.report.add(Row::cost_beside(6, "idle memory", "MiB", &memory, "NATS", Wanted::AtMost(15.0)));
    let cpu = cpu_us as f64 / 1000.0 * 20.0 / secs;
    bench.report.add(Row::cost(6, "idle CPU in 20 s", "ms", &[cpu], Wanted::AtMost(20.0)));
    let row = Row::cost(6, "idle, threads run", "/s", &[woken as f64 / secs], Wanted::AtMost(2.0));
    bench.report.add(row.note("all threads together; no timer more than twice a second"));
    Ok(())
}

fn starts(bench: &mut Bench, home: &std::path::Path) -> Res<()> {
    let mut times = Pairs::default();
    for _ in 0..2 * bench.turns() {
        let begun = Instant::now();
        let hyper = Hyper::start()?;
        let reference = begun.elapsed().as_secs_f64() * 1000.0;
        drop(hyper);
        let aman = Aman::start(home)?;
        times.push(aman.start.as_secs_f64() * 1000.0, reference);
    }
    let row = Row::cost_beside(6, "start to ready", "ms", &times, "bare hyper process", Wanted::AtMost(30.0));
    bench.report.add(row);
    Ok(())
}

fn restarts(bench: &mut Bench) -> Res<()> {
    let empty = bench.folder("start")?.join("aman");
    let (big, events) = bench.big_store()?;
    let mut times = Pairs::default();
    let (mut filled, mut fresh) = (Aman::start(&big)?, Aman::start(&empty)?);
    for _ in 0..2 * bench.turns() {
        // Leaves something in the write-ahead log, as a crash does.
        filled.fill(2000)?;
        fresh.fill(2000)?;
        filled = filled.crash_and_start()?;
        fresh = fresh.crash_and_start()?;
        times.push(filled.start.as_secs_f64() * 1000.0, fresh.start.as_secs_f64() * 1000.0);
    }
    let name = format!("start after SIGKILL, {events} events");
    let row = Row::cost_beside(6, &name, "ms", &times, "the same, few events", Wanted::AtMost(50.0));
    bench.report.add(row);
    bench.report.add(Row::ratio(7, &name, "ms", &times, "the same, few events", Wanted::AtMost(1.1)));
    Ok(())
}
