//! Target 8: what it costs to deliver an event to a consumer and to settle it, beyond storing the event.
//!
//! The consumer lives in the daemon's process and does nothing, so that only the bus is measured. A process of this program
//! starts the daemon as a library with that consumer; everything else, HTTP included, is as always.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aman::bus::{
    Attempt, Concurrency, Consumer, ConsumerSpec, Delivered, Effects, Outcome, RetryPolicy, Rule, Standing,
};
use aman::config::{self, Flags};
use aman::event::{Trust, TypePattern};
use aman::start::Extras;

use crate::daemon::{self, Aman};
use crate::load::{self, Load};
use crate::proc::cpu_us;
use crate::report::{Row, Wanted};
use crate::stats::{Pairs, median};
use crate::{Bench, Res};

/// The role's name.
pub const ROLE: &str = "settle";
const WIDTH: usize = 64;
const PUSHERS: usize = 64;
const MATCHING: &str = "bench.settle";
const PATIENCE: Duration = Duration::from_secs(120);

struct Nothing;

impl Consumer for Nothing {
    fn deliver(&self, _attempt: Attempt) -> Delivered<'_> {
        Box::pin(std::future::ready(Outcome::Done(Effects::default())))
    }
}

/// The role: a daemon with one more consumer.
pub fn serve() -> Res<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let spec = ConsumerSpec {
            name: "internal/bench".to_owned(),
            kind: "internal",
            rules: vec![Rule { pattern: TypePattern::parse(MATCHING)?, condition: None }],
            concurrency: Concurrency::Parallel(WIDTH),
            retry: RetryPolicy::default(),
            timeout: Duration::from_secs(30),
            trust: Trust::Owner,
            standing: Standing::Active,
            acts_outside: false,
        };
        let consumer: Arc<dyn Consumer> = Arc::new(Nothing);
        let config = config::load(&Flags::default())?;
        let extras = Extras { consumers: vec![(spec, consumer)], ..Extras::default() };
        let daemon = aman::start::start_with(config, extras).await?;
        let mut out = std::io::stdout().lock();
        writeln!(out, "aman ready http://{}", daemon.address())?;
        out.flush()?;
        drop(out);
        std::future::pending::<()>().await;
        Ok(())
    })
}

pub fn run(bench: &mut Bench) -> Res<()> {
    bench.sample_disk(8)?;
    let aman = Aman::start_role(&bench.folder("settle")?.join("aman"), ROLE)?;
    let events = bench.count(20_000, 8_000);
    let (mut rate, mut cpu, mut above) = (Pairs::default(), Pairs::default(), Vec::new());
    settle(&aman, 2000)?;
    for _ in 0..bench.turns() {
        let pushed = load::run(Load { duration: bench.secs(1.2), ..aman.push_load(PUSHERS) })?;
        let settled = settle(&aman, events)?;
        rate.push(settled.rate, pushed.rate());
        cpu.push(settled.cpu_each_us, pushed.cpu_each_us());
        above.push(settled.cpu_each_us - pushed.cpu_each_us());
    }
    let name = format!("settled/s, {WIDTH} wide, pushed by {PUSHERS}");
    bench.report.add(Row::ratio(8, &name, "/s", &rate, "push only", Wanted::AtLeast(0.5)));
    let row = Row::cost(8, "CPU to deliver and settle, on top of the push", "us", &above, Wanted::AtMost(60.0));
    bench.report.add(row.note(format!(
        "{:.1} us with it, {:.1} us without",
        median(&cpu.ours),
        median(&cpu.reference)
    )));
    Ok(())
}

struct Settled {
    rate: f64,
    cpu_each_us: f64,
}

/// Pushes events that match and waits until the last of them is settled on the disk.
fn settle(aman: &Aman, events: u64) -> Res<Settled> {
    let request = daemon::push("/events/push", MATCHING);
    let pids = aman.pids();
    let (begun, cpu) = (Instant::now(), cpu_us(&pids));
    let load = Load {
        warmup: Duration::ZERO,
        duration: PATIENCE,
        limit: Some(events),
        ..Load::http(aman.addr, request, PUSHERS)
    };
    load::run(load)?;
    wait_settled(&aman.database())?;
    let secs = begun.elapsed().as_secs_f64();
    Ok(Settled { rate: events as f64 / secs, cpu_each_us: cpu_us(&pids).saturating_sub(cpu) as f64 / events as f64 })
}

fn wait_settled(database: &Path) -> Res<()> {
    let conn = rusqlite::Connection::open_with_flags(database, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let until = Instant::now() + PATIENCE;
    loop {
        // A partial index holds the open ones, so this is cheap.
        let open: i64 = conn.query_row("SELECT count(*) FROM delivery WHERE status < 3", [], |row| row.get(0))?;
        if open == 0 {
            return Ok(());
        }
        if Instant::now() > until {
            return Err(format!("{open} deliveries were never settled").into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
