//! Target 3: pushes that are answered before they are synced, against servers that do the same by default.

use std::time::Duration;

use crate::daemon::{Aman, body};
use crate::load::{self, Load};
use crate::reference::nats::Nats;
use crate::reference::redis::Redis;
use crate::report::{Row, Wanted};
use crate::stats::Pairs;
use crate::{Bench, Res};

const CONNECTIONS: usize = 64;
const NAME: &str = "push, 64 connections, not power-safe";

pub fn run(bench: &mut Bench) -> Res<()> {
    bench.sample_disk(3)?;
    let folder = bench.folder("relaxed")?;
    let aman = Aman::start_with(&folder.join("aman"), &[("AMAN_BUS_DURABILITY", "normal")])?;
    let (nats, redis) = (Nats::start(&folder, false)?, Redis::start(&folder, "everysec")?);
    let timed = |load: Load| {
        let outcome = load::run(Load { warmup: Duration::from_millis(400), duration: bench.secs(1.2), ..load });
        outcome.map(|outcome| outcome.rate())
    };
    let (mut to_nats, mut to_redis) = (Pairs::default(), Pairs::default());
    for _ in 0..bench.turns() {
        let ours = timed(aman.push_load(CONNECTIONS))?;
        if let Some(nats) = &nats {
            to_nats.push(ours, timed(nats.load(&body("bench.tick"), CONNECTIONS))?);
        }
        if let Some(redis) = &redis {
            to_redis.push(ours, timed(redis.load(&body("bench.tick"), CONNECTIONS))?);
        }
    }
    for (pairs, against, wanted) in
        [(to_nats, "NATS default", Wanted::AtLeast(0.75)), (to_redis, "Redis everysec", Wanted::Nothing)]
    {
        match pairs.ours.is_empty() {
            true => bench.report.remark(format!("target 3: no {against} here, so no comparison with it")),
            false => bench.report.add(Row::ratio(3, NAME, "/s", &pairs, against, wanted)),
        }
    }
    Ok(())
}
