//! Target 8: what it costs to deliver an event to a consumer and to settle it, beyond storing the event.
//!
//! The consumer lives in the daemon's process and does nothing, so that only the bus is measured. A process of this program
//! starts the daemon as a library with that consumer; everything else, HTTP included, is as always.

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use aman::bus::{
    Attempt, Bus, Concurrency, Consumer, ConsumerSpec, Delivered, Effects, Failure, Outcome, RetryPolicy, Rule,
    Standing, StateWrite,
};
use aman::config::{self, Flags};
use aman::event::{NewEvent, Trust, TypePattern};
use aman::start::Extras;
use aman::store::plugin_data::{self, Change};
use serde_json::json;

use crate::daemon::{self, Aman};
use crate::load::{self, Load};
use crate::proc::cpu_us;
use crate::report::{Row, Wanted};
use crate::stats::{Pairs, median};
use crate::{Bench, Res};

/// The role's name.
pub const ROLE: &str = "settle";
/// What the consumer that does nothing gets, and the one that acts.
pub const MATCHING: &str = "bench.settle";
pub const MATCHING_NATIVE: &str = "bench.effects";
const WIDTH: usize = 64;
const PUSHERS: usize = 64;
/// Whose keys the consumer that acts changes.
const NATIVE: &str = "bench";
const PATIENCE: Duration = Duration::from_secs(120);

struct Nothing;

impl Consumer for Nothing {
    fn deliver(&self, _attempt: Attempt) -> Delivered<'_> {
        Box::pin(std::future::ready(Outcome::Done(Effects::default())))
    }
}

/// Does what the measured guest does with an event of the kind `guest.effects`: it reads a key, changes it and publishes.
#[derive(Default)]
struct Native(OnceLock<Bus>);

impl Consumer for Native {
    fn deliver(&self, attempt: Attempt) -> Delivered<'_> {
        Box::pin(async move {
            match self.act(&attempt).await {
                Ok(effects) => Outcome::Done(effects),
                Err(error) => Outcome::Reject(Failure::new(error.to_string())),
            }
        })
    }
}

impl Native {
    async fn act(&self, attempt: &Attempt) -> Res<Effects> {
        let store = self.0.get().ok_or("the bus is not there yet")?.store();
        let before = store.read(|conn| plugin_data::get(conn, NATIVE, "last")).await?.map_or(0, |value| value.len());
        let change = Change::Set { key: "last".to_owned(), value: attempt.event.id().into_bytes() };
        let state: StateWrite = Box::new(move |tx| plugin_data::change(tx, NATIVE, &[change], 1 << 20));
        let seen = NewEvent::new(NATIVE, "bench.seen", &json!({ "before": before }));
        Ok(Effects { publish: vec![seen], state: Some(state), ..Effects::default() })
    }
}

fn spec(matching: &str, width: usize) -> Res<ConsumerSpec> {
    Ok(ConsumerSpec {
        name: format!("internal/{matching}"),
        kind: "internal",
        rules: vec![Rule { pattern: TypePattern::parse(matching)?, condition: None }],
        concurrency: Concurrency::Parallel(width),
        retry: RetryPolicy::default(),
        timeout: Duration::from_secs(30),
        trust: Trust::Owner,
        standing: Standing::Active,
        acts_outside: false,
    })
}

/// The role: a daemon with two more consumers, so many deliveries wide.
pub fn serve(args: &[String]) -> Res<()> {
    let width = args.first().ok_or("one argument")?.parse()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let (nothing, native) = (Arc::new(Nothing), Arc::new(Native::default()));
        let config = config::load(&Flags::default())?;
        let consumers: Vec<(_, Arc<dyn Consumer>)> =
            vec![(spec(MATCHING, width)?, nothing), (spec(MATCHING_NATIVE, width)?, native.clone())];
        let daemon = aman::start::start_with(config, Extras { consumers, ..Extras::default() }).await?;
        native.0.set(daemon.bus().clone()).map_err(|_| "it was set already")?;
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
    let aman = Aman::start_role(&bench.folder("settle")?.join("aman"), &[ROLE, &WIDTH.to_string()])?;
    let events = bench.count(20_000, 8_000);
    let (mut rate, mut cpu, mut above) = (Pairs::default(), Pairs::default(), Vec::new());
    settle(&aman, MATCHING, 2000)?;
    for _ in 0..bench.turns() {
        let pushed = load::run(Load { duration: bench.secs(1.2), ..aman.push_load(PUSHERS) })?;
        let settled = settle(&aman, MATCHING, events)?;
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

/// What it took to push some events and to settle them.
pub struct Settled {
    pub rate: f64,
    pub cpu_each_us: f64,
}

/// Pushes events that match and waits until the last of them is settled on the disk.
pub fn settle(aman: &Aman, kind: &str, events: u64) -> Res<Settled> {
    let request = daemon::push("/events/push", kind);
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
