//! Target 10: a route that a plugin serves, against a route of the daemon's own that does the same behind the same auth.
//!
//! Both look through a short list in memory and answer the same empty page. The guest does the search besides.

use std::time::Duration;

use crate::daemon::{Aman, get};
use crate::guests::{Guest, NAME};
use crate::load::{self, Load, Outcome};
use crate::report::{Row, Wanted};
use crate::stats::{Pairs, median};
use crate::{Bench, Res};

/// A list of the daemon's own in memory, which is empty here. Its own search of skills is a full-text query.
pub const NATIVE: &str = "/mcp-servers";

pub fn run(bench: &mut Bench) -> Res<()> {
    let aman = Aman::start(&bench.folder("plugin-routes")?.join("aman"))?;
    Guest::read(bench)?.install(&aman, NAME)?;
    let plugin = format!("/api/v1/{NAME}/search?q=nowhere");
    let (ours, theirs) = (aman.get(&plugin)?, aman.get(NATIVE)?);
    if ours != theirs {
        return Err(format!("the plugin answers {ours}, the daemon {theirs}").into());
    }
    for conns in [32, 64] {
        let duration = bench.secs(1.2);
        let timed = |path: &str| -> Res<Outcome> {
            let load = Load { pids: aman.pids(), ..Load::http(aman.addr, get(path), conns) };
            load::run(Load { warmup: Duration::from_millis(300), duration, ..load })
        };
        let (mut rate, mut cpu, mut above) = (Pairs::default(), Pairs::default(), Vec::new());
        for _ in 0..bench.turns() {
            let (native, plugin) = (timed(NATIVE)?, timed(&plugin)?);
            rate.push(plugin.rate(), native.rate());
            cpu.push(plugin.cpu_each_us(), native.cpu_each_us());
            above.push(plugin.cpu_each_us() - native.cpu_each_us());
        }
        let name = format!("plugin route, {conns} connections");
        bench.report.add(Row::ratio(10, &name, "/s", &rate, "native route", Wanted::AtLeast(0.75)));
        let row = Row::cost(10, &format!("{name}, CPU above native"), "us", &above, Wanted::AtMost(6.0));
        let (with, without) = (median(&cpu.ours), median(&cpu.reference));
        bench.report.add(row.note(format!("{with:.1} us by the plugin, {without:.1} us native")));
    }
    Ok(())
}
