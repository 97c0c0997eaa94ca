//! Target 13: two guests that compute without an end, and what the daemon's own routes notice of them.
//!
//! The same load three times in each turn: alone, beside the guests, alone again. The two lonely ones tell how much the
//! 99th percentile changes by itself on this machine.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::daemon::{Aman, get};
use crate::guests::Guest;
use crate::load::{self, Load};
use crate::report::{Row, Wanted};
use crate::stats::{Pairs, median};
use crate::targets::plugin_routes::NATIVE;
use crate::{Bench, Res};

const SPINNERS: [&str; 2] = ["spin-a", "spin-b"];
/// Requests a second that leave the machine room.
const RATE: f64 = 500.0;
const CONNS: usize = 32;

/// Calls of guests that do not come back.
struct Spinning(Vec<TcpStream>);

impl Spinning {
    fn start(aman: &Aman) -> Res<Spinning> {
        let mut calls = Vec::new();
        for name in SPINNERS {
            let mut socket = TcpStream::connect(aman.addr)?;
            socket.write_all(get(&format!("/api/v1/{name}/spin")).bytes())?;
            socket.set_nonblocking(true)?;
            calls.push(socket);
        }
        std::thread::sleep(Duration::from_millis(200));
        Ok(Spinning(calls))
    }

    /// Ends them, as a caller who goes away does; an error when one ended by itself.
    fn end(self) -> Res<()> {
        for mut socket in self.0 {
            let mut answer = [0; 200];
            match socket.read(&mut answer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                read => {
                    return Err(format!("a guest was to spin: {:?}", String::from_utf8_lossy(&answer[..read?])).into());
                }
            }
        }
        std::thread::sleep(Duration::from_millis(200));
        Ok(())
    }
}

pub fn run(bench: &mut Bench) -> Res<()> {
    bench.sample_disk(13)?;
    let aman = Aman::start(&bench.folder("plugin-spin")?.join("aman"))?;
    let guest = Guest::read(bench)?;
    for name in SPINNERS {
        guest.install(&aman, name)?;
        aman.get(&format!("/api/v1/{name}/search?q=nowhere"))?;
    }
    let some = format!("native route at {RATE:.0}/s");
    p99(bench, &aman, &some, Some(RATE), Wanted::AtMost(1.2))?;
    p99(bench, &aman, &format!("native route, {CONNS} connections at full speed"), None, Wanted::Nothing)
}

fn p99(bench: &mut Bench, aman: &Aman, name: &str, rate: Option<f64>, wanted: Wanted) -> Res<()> {
    let duration = bench.secs(2.0);
    let measure = || -> Res<(f64, f64)> {
        let load =
            Load { rate, duration, warmup: Duration::from_millis(200), ..Load::http(aman.addr, get(NATIVE), CONNS) };
        let outcome = load::run(load)?;
        Ok((outcome.p99_us(), outcome.rate()))
    };
    let (mut beside, mut control, mut rates) = (Pairs::default(), Pairs::default(), Pairs::default());
    for _ in 0..bench.turns() {
        let before = measure()?;
        let spinning = Spinning::start(aman)?;
        let with = measure();
        spinning.end()?;
        let (with, after) = (with?, measure()?);
        beside.push(with.0, f64::midpoint(before.0, after.0));
        control.push(after.0, before.0);
        rates.push(with.1, f64::midpoint(before.1, after.1));
    }
    let note = format!("{:.2} of the rate", median(&rates.ratios()));
    let row = Row::ratio(13, &format!("p99, {name}, two guests spin"), "us", &beside, "without guests", wanted);
    bench.report.add(row.note(note));
    let name = format!("p99, {name}, control");
    bench.report.add(Row::ratio(13, &name, "us", &control, "the same once more", Wanted::Nothing));
    Ok(())
}
