//! Target 1: durable pushes with auth, validation and routing, against bare SQLite, NATS JetStream and Redis Streams.

use std::hint::spin_loop;
use std::time::Duration;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::{Pid, getppid};

use crate::daemon::{Aman, body, data};
use crate::load::{self, Load, Outcome};
use crate::proc::{Proc, role};
use crate::reference::nats::Nats;
use crate::reference::redis::Redis;
use crate::reference::sqlite;
use crate::report::{Row, Wanted};
use crate::stats::Pairs;
use crate::{Bench, Res};

/// The role of a process that only takes CPU.
pub const ROLE_SPIN: &str = "spin";
/// On a busy box it answers in bursts, seconds apart.
const NATS_SECONDS: Duration = Duration::from_millis(1500);
const WARMUP: Duration = Duration::from_millis(400);

/// Makes one processor busy, as other programs' builds and browsers do: a writer that slept in fsync then waits for the
/// scheduler. Bound to its processor, else several may share one and leave the other free.
pub fn spin(args: &[String]) -> Res<()> {
    let mut processors = CpuSet::new();
    processors.set(args.first().ok_or("one argument")?.parse()?)?;
    sched_setaffinity(Pid::from_raw(0), &processors)?;
    loop {
        for _ in 0..1000 {
            spin_loop();
        }
        // Gone with its parent, should that be killed.
        if getppid().as_raw() == 1 {
            return Ok(());
        }
    }
}

#[derive(Default)]
struct Measured {
    sqlite: Pairs,
    nats: Pairs,
    redis: Pairs,
    cpu: Pairs,
}

pub fn run(bench: &mut Bench) -> Res<()> {
    bench.sample_disk(1)?;
    let folder = bench.folder("push")?;
    let aman = Aman::start(&folder.join("aman"))?;
    let (nats, redis) = (Nats::start(&folder, true)?, Redis::start(&folder, "always")?);
    if nats.is_none() {
        bench.report.remark("target 1: no nats-server here, so no comparison with it".to_owned());
    }
    if redis.is_none() {
        bench.report.remark("target 1: no redis-server here, so no comparison with it".to_owned());
    }
    for busy in [true, false] {
        let spinners = if busy { spinners()? } else { Vec::new() };
        if busy {
            bench.sample_disk_beside(1, ", busy rows, a process spins on every processor")?;
        }
        for conns in [64, 256] {
            let measured = rounds(bench, &aman, nats.as_ref(), redis.as_ref(), conns)?;
            add_rows(bench, &measured, conns, busy);
        }
        drop(spinners);
    }
    Ok(())
}

fn spinners() -> Res<Vec<Proc>> {
    let processors = std::thread::available_parallelism()?.get();
    (0..processors).map(|processor| role(ROLE_SPIN, &[&processor.to_string()])).collect()
}

fn rounds(bench: &Bench, aman: &Aman, nats: Option<&Nats>, redis: Option<&Redis>, conns: usize) -> Res<Measured> {
    let folder = bench.folder("push")?;
    let (duration, data) = (bench.secs(1.2), data("bench.tick"));
    let timed = |load: Load| load::run(Load { warmup: WARMUP, duration, ..load });
    let mut measured = Measured::default();
    for _ in 0..bench.turns() {
        let bare = sqlite::run(&folder, conns, WARMUP, duration, &data)?;
        let ours: Outcome = timed(aman.push_load(conns))?;
        measured.sqlite.push(ours.rate(), bare.rate);
        measured.cpu.push(ours.cpu_each_us(), bare.cpu_each_us);
        if let Some(nats) = nats {
            measured.nats.push(
                ours.rate(),
                load::run(Load { warmup: WARMUP, duration: NATS_SECONDS, ..nats.load(&body("bench.tick"), conns) })?
                    .rate(),
            );
        }
        if let Some(redis) = redis {
            measured.redis.push(ours.rate(), timed(redis.load(&body("bench.tick"), conns))?.rate());
        }
    }
    Ok(measured)
}

fn add_rows(bench: &mut Bench, measured: &Measured, conns: usize, busy: bool) {
    let place = if busy { "busy box" } else { "box as it is" };
    let name = format!("push, {conns} connections, {place}");
    // The bounds are for a busy box; on a quiet one the disk is so fast that HTTP itself is the difference.
    let wanted = |bound: Wanted| if busy { bound } else { Wanted::Nothing };
    bench.report.add(Row::ratio(1, &name, "/s", &measured.sqlite, "bare SQLite", wanted(Wanted::AtLeast(0.8))));
    if !measured.nats.ours.is_empty() {
        bench.report.add(Row::ratio(1, &name, "/s", &measured.nats, "NATS always", wanted(Wanted::AtLeast(8.0))));
    }
    if !measured.redis.ours.is_empty() {
        bench.report.add(Row::ratio(1, &name, "/s", &measured.redis, "Redis always", Wanted::Nothing));
    }
    let wanted = if conns == 64 { Wanted::AtMost(40.0) } else { Wanted::Nothing };
    let name = format!("server CPU per push, {conns}, {place}");
    bench.report.add(Row::cost_beside(1, &name, "us", &measured.cpu, "bare SQLite", wanted));
}
