//! Target 11: an event that a plugin handles, against the same delivery to a consumer in the daemon's own code.
//!
//! Three host calls that need no store are held against a consumer that does nothing; three that read a key, change it and
//! publish are held against a consumer that does just that, so that what the effects themselves cost is in both.

use crate::daemon::Aman;
use crate::guests::{Guest, NAME};
use crate::report::{Row, Wanted};
use crate::stats::median;
use crate::targets::settle::{self, MATCHING, MATCHING_NATIVE, settle};
use crate::{Bench, Res};

/// Deliveries side by side, as the guest's manifest has it.
const WIDTH: &str = "4";

pub fn run(bench: &mut Bench) -> Res<()> {
    bench.sample_disk(11)?;
    let aman = Aman::start_role(&bench.folder("plugin-events")?.join("aman"), &[settle::ROLE, WIDTH])?;
    Guest::read(bench)?.install(&aman, NAME)?;
    let events = bench.count(12_000, 5_000);
    let kinds = [
        MATCHING.to_owned(),
        format!("{NAME}.nothing"),
        format!("{NAME}.calls"),
        MATCHING_NATIVE.to_owned(),
        format!("{NAME}.effects"),
    ];
    let mut costs: [Vec<f64>; 5] = Default::default();
    for kind in &kinds {
        settle(&aman, kind, 1000)?;
    }
    for _ in 0..bench.turns() {
        for (kind, costs) in kinds.iter().zip(&mut costs) {
            costs.push(settle(&aman, kind, events)?.cpu_each_us);
        }
    }
    let [nothing, empty, calls, native, effects] = costs;
    let mut add = |name: &str, with: &[f64], without: &[f64], wanted: Wanted| {
        let above: Vec<f64> = with.iter().zip(without).map(|(with, without)| with - without).collect();
        let row = Row::cost(11, &format!("event to a plugin, {name}, CPU above native"), "us", &above, wanted);
        let (with, without) = (median(with), median(without));
        bench.report.add(row.note(format!("{with:.1} us pushed and settled, {without:.1} us by a native consumer")));
    };
    add("no host call", &empty, &nothing, Wanted::Nothing);
    add("three host calls", &calls, &nothing, Wanted::AtMost(15.0));
    add("three with effects", &effects, &native, Wanted::AtMost(15.0));
    Ok(())
}
