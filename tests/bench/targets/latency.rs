//! Target 2: one publisher waits for each answer; how much longer than the disk's own sync does it take?

use std::time::Duration;

use crate::daemon::Aman;
use crate::load::{self, Load};
use crate::reference::disk::RawSync;
use crate::report::{Row, Wanted};
use crate::stats::Pairs;
use crate::{Bench, Res};

pub fn run(bench: &mut Bench) -> Res<()> {
    bench.sample_disk(2)?;
    let folder = bench.folder("latency")?;
    let aman = Aman::start(&folder.join("aman"))?;
    let mut raw = RawSync::open(&folder)?;
    let turn = bench.secs(0.5);
    let (mut pairs, mut above) = (Pairs::default(), Vec::new());
    for _ in 0..2 * bench.turns() {
        let disk = raw.p50_us(turn)? / 1000.0;
        let load = Load { warmup: Duration::from_millis(100), duration: turn, ..aman.push_load(1) };
        let ours = load::run(load)?.p50_us() / 1000.0;
        pairs.push(ours, disk);
        above.push(ours - disk);
    }
    bench.report.add(Row::ratio(2, "answer p50, one publisher", "ms", &pairs, "4 KiB + fdatasync", Wanted::Nothing));
    bench.report.add(Row::cost(2, "answer p50 above the disk's own", "ms", &above, Wanted::AtMost(0.25)));
    Ok(())
}
