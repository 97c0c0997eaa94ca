//! Target 12: what a Rust plugin costs while nobody calls it, and what many installed ones add to the start.

use std::time::Duration;

use crate::daemon::Aman;
use crate::guests::Guest;
use crate::proc::rss_kib;
use crate::report::{Row, Wanted};
use crate::stats::Pairs;
use crate::{Bench, Res};

const PLUGINS: usize = 100;
/// After so long without a call an instance is given back.
const IDLE: Duration = Duration::from_secs(70);

pub fn run(bench: &mut Bench) -> Res<()> {
    let folder = bench.folder("plugin-costs")?;
    let (empty, many) = (folder.join("empty"), folder.join("many"));
    let guest = Guest::read(bench)?;
    let aman = Aman::start(&many)?;
    for number in 0..PLUGINS {
        guest.install(&aman, &name(number))?;
    }
    drop(aman);
    drop(Aman::start(&empty)?);
    starts(bench, &many, &empty)?;
    memory(bench, &many, &empty)
}

fn name(number: usize) -> String {
    format!("bench-{number:03}")
}

fn starts(bench: &mut Bench, many: &std::path::Path, empty: &std::path::Path) -> Res<()> {
    let (mut times, mut added) = (Pairs::default(), Vec::new());
    for _ in 0..2 * bench.turns() {
        let ms = |home| Aman::start(home).map(|aman| aman.start.as_secs_f64() * 1000.0);
        let (without, with) = (ms(empty)?, ms(many)?);
        times.push(with, without);
        added.push(with - without);
    }
    let name = format!("start to ready, {PLUGINS} plugins installed");
    bench.report.add(Row::cost_beside(12, &name, "ms", &times, "none", Wanted::Nothing));
    bench.report.add(Row::cost(12, &format!("what {PLUGINS} plugins add to it"), "ms", &added, Wanted::AtMost(100.0)));
    Ok(())
}

/// Each plugin is another one for the daemon: its code is compiled, kept and mapped by itself.
fn memory(bench: &mut Bench, many: &std::path::Path, empty: &std::path::Path) -> Res<()> {
    let (without, aman) = (Aman::start(empty)?, Aman::start(many)?);
    std::thread::sleep(Duration::from_secs(1));
    let rss = |aman: &Aman| rss_kib(&aman.pids()) as f64;
    let installed = (rss(&aman) - rss(&without)) / PLUGINS as f64;
    let row = Row::cost(12, "memory per plugin, installed, never called", "KiB", &[installed], Wanted::Nothing);
    bench.report.add(row);
    // The first one pays for the engine.
    let call = |number| aman.get(&format!("/api/v1/{}/search?q=nowhere", name(number)));
    call(0)?;
    let first = rss(&aman);
    for number in 1..PLUGINS {
        call(number)?;
    }
    let each = |now: f64| (now - first) / (PLUGINS - 1) as f64;
    let row =
        Row::cost(12, "memory per plugin, loaded, an instance kept", "KiB", &[each(rss(&aman))], Wanted::AtMost(512.0));
    bench.report.add(row.note(format!("over {} plugins; resident, with code mapped from files", PLUGINS - 1)));
    if !bench.args.quick {
        std::thread::sleep(IDLE);
        let row = Row::cost(12, "the same after a minute without calls", "KiB", &[each(rss(&aman))], Wanted::Nothing);
        bench.report.add(row);
    }
    Ok(())
}
