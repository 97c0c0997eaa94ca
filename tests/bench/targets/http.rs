//! Target 4: what routing, auth and the daemon's own checks cost on top of plain hyper.

use std::time::Duration;

use crate::daemon::{Aman, auth, body, push};
use crate::load::{self, Load, Outcome, Request};
use crate::reference::http::Hyper;
use crate::report::{Row, Wanted};
use crate::stats::Pairs;
use crate::{Bench, Res};

const CONNS: usize = 64;

pub fn run(bench: &mut Bench) -> Res<()> {
    let aman = Aman::start(&bench.folder("http")?.join("aman"))?;
    let hyper = Hyper::start()?;
    let json = format!("{}Content-Type: application/json\r\n", auth());
    let live = Request::http("GET", "/health/live", "", "");
    let hello = Request::http("GET", "/", "", "");
    let dry = push("/events/push?dry_run=true", "bench.tick");
    let plain = Request::http("POST", "/", &json, &body("bench.tick"));
    pair(bench, &aman, &hyper, ("GET /health/live", live, hello), ("hyper hello", 0.8))?;
    pair(bench, &aman, &hyper, ("push, dry run", dry, plain), ("hyper JSON POST", 0.7))
}

fn pair(
    bench: &mut Bench,
    aman: &Aman,
    hyper: &Hyper,
    (name, ours, theirs): (&str, Request, Request),
    (against, bound): (&str, f64),
) -> Res<()> {
    let duration = bench.secs(1.0);
    let timed =
        |load: Load| -> Res<Outcome> { load::run(Load { warmup: Duration::from_millis(300), duration, ..load }) };
    let (mut rate, mut cpu) = (Pairs::default(), Pairs::default());
    for _ in 0..bench.turns() {
        let reference = Load { pids: vec![hyper.proc.pid()], ..Load::http(hyper.addr, theirs.clone(), CONNS) };
        let reference = timed(reference)?;
        let daemon = timed(Load { pids: aman.pids(), ..Load::http(aman.addr, ours.clone(), CONNS) })?;
        rate.push(daemon.rate(), reference.rate());
        cpu.push(daemon.cpu_each_us(), reference.cpu_each_us());
    }
    bench.report.add(Row::ratio(
        4,
        &format!("{name}, {CONNS} connections"),
        "/s",
        &rate,
        against,
        Wanted::AtLeast(bound),
    ));
    bench.report.add(Row::ratio(4, &format!("{name}, server CPU"), "us", &cpu, against, Wanted::Nothing));
    Ok(())
}
