//! Target 5: the live streams, against nginx with nchan.

use crate::daemon::{self, Aman};
use crate::fanout::Hub;
use crate::reference::nchan::Nchan;
use crate::reference::sqlite;
use crate::report::{Row, Wanted, figure};
use crate::sse::Clients;
use crate::stats::{Pairs, median};
use crate::{Bench, Res};

const MANY: usize = 1000;
const PUBLISHERS: usize = 32;
/// Of so many clients, so many sleep.
const FEW: usize = 30;
const STALLED: usize = 10;
const RESUME_CONNECTIONS: usize = 1;

pub fn run(bench: &mut Bench) -> Res<()> {
    bench.sample_disk(5)?;
    let folder = bench.folder("streams")?;
    let aman = Aman::start(&folder.join("aman"))?;
    let nchan = Nchan::start(&folder)?;
    if nchan.is_none() {
        bench.report.remark("target 5: no nginx with nchan here, so no comparison with it".to_owned());
    }
    let ours = hub(&aman);
    let theirs = nchan.as_ref().map(Nchan::hub);
    memory(bench, &ours, theirs.as_ref())?;
    saturated(bench, &ours, theirs.as_ref())?;
    fixed_rate(bench, &ours, theirs.as_ref())?;
    stalled(bench, &ours, theirs.as_ref())?;
    resume(bench, &aman)
}

/// The daemon as a hub.
pub fn hub(aman: &Aman) -> Hub {
    Hub {
        addr: aman.addr,
        publish: daemon::push("/events/push", "bench.tick"),
        subscribe: daemon::stream(None),
        pids: aman.pids(),
    }
}

/// Ours and theirs in turn; without a reference its figures are 0 and the row says so.
fn compare(
    bench: &Bench,
    ours: &Hub,
    theirs: Option<&Hub>,
    measure: impl Fn(&Hub) -> Res<Vec<f64>>,
) -> Res<Vec<Pairs>> {
    let mut all: Vec<Pairs> = Vec::new();
    for _ in 0..bench.args.rounds {
        let reference = theirs.map(&measure).transpose()?;
        let measured = measure(ours)?;
        all.resize(measured.len(), Pairs::default());
        for (index, pairs) in all.iter_mut().enumerate() {
            pairs.push(measured[index], reference.as_ref().map_or(0.0, |r| r[index]));
        }
    }
    Ok(all)
}

fn add(bench: &mut Bench, name: &str, unit: &'static str, pairs: &Pairs, has_reference: bool, wanted: Wanted) {
    let row = Row::ratio(5, name, unit, pairs, "nchan", if has_reference { wanted } else { Wanted::Nothing });
    bench.report.add(if has_reference { row } else { row.note("no reference") });
}

fn memory(bench: &mut Bench, ours: &Hub, theirs: Option<&Hub>) -> Res<()> {
    // Once each: what the first crowd made the allocator fetch, the second would not pay for.
    let (mine, reference) = (ours.idle_kib(MANY)?, theirs.map_or(Ok(0.0), |hub| hub.idle_kib(MANY))?);
    let mut pairs = Pairs::default();
    pairs.push(mine, reference);
    let row =
        Row::cost_beside(5, &format!("memory per idle client, {MANY}"), "KiB", &pairs, "nchan", Wanted::AtMost(24.0));
    bench.report.add(row);
    Ok(())
}

fn saturated(bench: &mut Bench, ours: &Hub, theirs: Option<&Hub>) -> Res<()> {
    let events = bench.count(400, 150);
    let all = compare(bench, ours, theirs, |hub| {
        let clients = hub.connect(MANY, 0)?;
        let outcome = hub.run(&clients, MANY, PUBLISHERS, events, None)?;
        Ok(vec![outcome.delivered_rate, outcome.cpu_each_us])
    })?;
    add(bench, &format!("delivered, saturated, {MANY} clients"), "/s", &all[0], theirs.is_some(), Wanted::AtLeast(3.0));
    add(bench, "CPU per delivery, saturated", "us", &all[1], theirs.is_some(), Wanted::Nothing);
    Ok(())
}

fn fixed_rate(bench: &mut Bench, ours: &Hub, theirs: Option<&Hub>) -> Res<()> {
    let events = bench.count(120, 50);
    let all = compare(bench, ours, theirs, |hub| {
        let clients = hub.connect(MANY, 0)?;
        Ok(vec![hub.run(&clients, MANY, 1, events, Some(30.0))?.cpu_each_us])
    })?;
    add(bench, "CPU per delivery, 30 events/s", "us", &all[0], theirs.is_some(), Wanted::AtMost(1.2));
    Ok(())
}

/// Thirty clients that all read, against thirty of which ten sleep: the other twenty should notice nothing.
fn stalled(bench: &mut Bench, ours: &Hub, theirs: Option<&Hub>) -> Res<()> {
    let events = bench.count(20_000, 6000);
    let (mut delivered, mut published) = (Pairs::default(), Pairs::default());
    for _ in 0..bench.args.rounds {
        let (without, with) = (some_stalled(ours, 0, events)?, some_stalled(ours, STALLED, events)?);
        delivered.push(with.0, without.0);
        published.push(with.1, without.1);
    }
    let note = match theirs {
        Some(hub) => nchan_stalled(hub),
        None => String::new(),
    };
    let mut add = |what: &str, pairs: &Pairs, note: String| {
        let name = format!("{what}, {STALLED} of {FEW} stalled");
        bench.report.add(Row::ratio(5, &name, "/s", pairs, "none stalled", Wanted::AtLeast(0.9)).note(note));
    };
    add("delivered to each other client", &delivered, note);
    add("published", &published, String::new());
    Ok(())
}

/// Events a second that each reading client got, and that were published.
fn some_stalled(hub: &Hub, stalled: usize, events: u64) -> Res<(f64, f64)> {
    let awake = FEW - stalled;
    let clients = hub.connect(awake, stalled)?;
    let outcome = hub.run(&clients, awake, PUBLISHERS, events, None)?;
    Ok((outcome.delivered_rate / awake as f64, outcome.published_rate))
}

/// The reference's own fall is the reason for the target; it takes long, so it is shown once.
fn nchan_stalled(hub: &Hub) -> String {
    const EVENTS: u64 = 12_000;
    match (some_stalled(hub, 0, EVENTS), some_stalled(hub, STALLED, EVENTS)) {
        (Ok(without), Ok(with)) => format!("nchan publishes {} of its rate then", figure(with.1 / without.1)),
        (Err(error), _) | (_, Err(error)) => format!("nchan: {error}"),
    }
}

/// A client that was away takes up where it stopped.
fn resume(bench: &mut Bench, aman: &Aman) -> Res<()> {
    let events = bench.count(200_000, 50_000);
    aman.fill(events)?;
    let newest = newest(aman)?;
    let mut pairs = Pairs::default();
    for _ in 0..bench.args.rounds {
        let bare = sqlite::read_rate(&aman.database(), i64::try_from(newest - events)?, events)?;
        pairs.push(resume_rate(aman, newest - events, events)?, bare);
    }
    let row = Row::cost_beside(
        5,
        "resume, events to one client",
        "/s",
        &pairs,
        "bare SQLite rows",
        Wanted::AtLeast(500_000.0),
    );
    bench.report.add(row.note(format!("{events} events; median {:.2} of reading the rows", median(&pairs.ratios()))));
    Ok(())
}

/// Events a second that one client gets when it resumes after `since`.
pub fn resume_rate(aman: &Aman, since: u64, events: u64) -> Res<f64> {
    let begun = std::time::Instant::now();
    let request = daemon::stream(Some(since));
    let clients = Clients::connect(aman.addr, request.bytes(), RESUME_CONNECTIONS, 0)?;
    let lead = begun.elapsed().as_secs_f64() - clients.now();
    let last = clients.wait(0, events, std::time::Duration::from_secs(120))?;
    Ok(events as f64 / (last + lead.max(0.0)))
}

/// The newest sequence, read from the disk.
pub fn newest(aman: &Aman) -> Res<u64> {
    let conn = rusqlite::Connection::open_with_flags(aman.database(), rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let newest: i64 = conn.query_row("SELECT coalesce(max(sequence), 0) FROM event", [], |row| row.get(0))?;
    Ok(u64::try_from(newest)?)
}
