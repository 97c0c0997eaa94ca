//! Target 7: nothing slows down as events, consumers and clients become many.

use std::path::Path;
use std::time::Duration;

use super::streams::{hub, newest, resume_rate};
use crate::daemon::Aman;
use crate::load::{self, Load};
use crate::report::{Row, Wanted};
use crate::stats::Pairs;
use crate::{Bench, Res};

/// What the small store holds; also how many events a resumed stream is given.
const FEW_EVENTS: u64 = 50_000;
const CONSUMERS: usize = 1000;
const PUSHERS: usize = 64;
const TAIL_READERS: usize = 10;
const MANY: usize = 1000;

pub fn run(bench: &mut Bench) -> Res<()> {
    bench.sample_disk(7)?;
    let folder = bench.folder("growth")?;
    let (big, events) = bench.big_store()?;
    let big = Aman::start(&big)?;
    let small = Aman::start(&folder.join("small"))?;
    small.fill(FEW_EVENTS)?;
    stored(bench, &big, &small, events)?;
    drop(big);
    consumers(bench, &folder, &small)?;
    clients(bench, &small)
}

fn push(bench: &Bench, aman: &Aman) -> Res<load::Outcome> {
    load::run(Load { warmup: Duration::from_millis(300), duration: bench.secs(1.0), ..aman.push_load(PUSHERS) })
}

fn stored(bench: &mut Bench, big: &Aman, small: &Aman, events: u64) -> Res<()> {
    let (mut rate, mut cpu, mut tail, mut resume) =
        (Pairs::default(), Pairs::default(), Pairs::default(), Pairs::default());
    for _ in 0..bench.turns() {
        let (few, many) = (push(bench, small)?, push(bench, big)?);
        rate.push(many.rate(), few.rate());
        cpu.push(many.cpu_each_us(), few.cpu_each_us());
        tail.push(tail_rate(bench, big)?, tail_rate(bench, small)?);
        let since = |aman: &Aman| -> Res<u64> { Ok(newest(aman)?.saturating_sub(FEW_EVENTS)) };
        let few = resume_rate(small, since(small)?, FEW_EVENTS)?;
        resume.push(resume_rate(big, since(big)?, FEW_EVENTS)?, few);
    }
    let against = format!("{FEW_EVENTS} stored");
    let mut add = |name: &str, unit, pairs: &Pairs, wanted| {
        bench.report.add(Row::ratio(7, &format!("{name}, {events} stored"), unit, pairs, &against, wanted));
    };
    add("push/s, 64 connections", "/s", &rate, Wanted::AtLeast(0.9));
    add("CPU per push", "us", &cpu, Wanted::AtMost(1.1));
    add("tail, delivered/s", "/s", &tail, Wanted::AtLeast(0.9));
    add("resume, events/s", "/s", &resume, Wanted::AtLeast(0.9));
    Ok(())
}

fn tail_rate(bench: &Bench, aman: &Aman) -> Res<f64> {
    let hub = hub(aman);
    let clients = hub.connect(TAIL_READERS, 0)?;
    Ok(hub.run(&clients, TAIL_READERS, 16, bench.count(6000, 3000), None)?.delivered_rate)
}

fn consumers(bench: &mut Bench, folder: &Path, small: &Aman) -> Res<()> {
    let home = folder.join("consumers");
    for number in 0..CONSUMERS {
        write_skill(&home, number)?;
    }
    let crowded = Aman::start(&home)?;
    std::thread::sleep(Duration::from_secs(1));
    let (mut rate, mut cpu) = (Pairs::default(), Pairs::default());
    for _ in 0..bench.turns() {
        let (few, many) = (push(bench, small)?, push(bench, &crowded)?);
        rate.push(many.rate(), few.rate());
        cpu.push(many.cpu_each_us(), few.cpu_each_us());
    }
    let name = format!("{CONSUMERS} consumers that do not match");
    let against = "no consumers but the bundled";
    bench.report.add(Row::ratio(7, &format!("push/s, {name}"), "/s", &rate, against, Wanted::AtLeast(0.95)));
    bench.report.add(Row::ratio(7, &format!("CPU per push, {name}"), "us", &cpu, against, Wanted::AtMost(1.05)));
    Ok(())
}

/// A skill whose pattern shares its beginning with what is pushed and never matches it.
fn write_skill(home: &Path, number: usize) -> Res<()> {
    let folder = home.join(format!("skills/never-{number}"));
    std::fs::create_dir_all(&folder)?;
    let text = format!(
        "---\nname: never-{number}\ndescription: Waits for something that does not happen.\nmetadata:\n  \
         aman.on: \"bench.never.n{number}.* never.matches.n{number}\"\n  aman.run: \"true\"\n---\nNothing to do.\n"
    );
    Ok(std::fs::write(folder.join("SKILL.md"), text)?)
}

fn clients(bench: &mut Bench, aman: &Aman) -> Res<()> {
    let events = bench.count(120, 50);
    let hub = hub(aman);
    let few_clients = MANY / 10;
    let mut linear = Pairs::default();
    for _ in 0..bench.args.rounds {
        let few = hub.connect(few_clients, 0)?;
        let small = hub.run(&few, few_clients, 1, events * 10, Some(300.0))?.cpu_each_us;
        drop(few);
        let many = hub.connect(MANY, 0)?;
        linear.push(hub.run(&many, MANY, 1, events, Some(30.0))?.cpu_each_us, small);
    }
    let name = format!("CPU per delivery, {MANY} clients");
    let row = Row::ratio(7, &name, "us", &linear, &format!("{few_clients} clients"), Wanted::AtMost(1.1));
    bench.report.add(row.note("30,000 deliveries/s in both"));
    Ok(())
}
