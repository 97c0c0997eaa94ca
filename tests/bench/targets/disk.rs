//! Target 9: bytes on the disk for an event that matches nothing.

use std::time::Duration;

use crate::daemon::{Aman, BODY};
use crate::load::{self, Load};
use crate::report::{Row, Wanted};
use crate::{Bench, Res};

const PUSHERS: usize = 256;

pub fn run(bench: &mut Bench) -> Res<()> {
    let events = bench.count(100_000, 20_000);
    let home = bench.folder("disk")?.join("aman");
    let aman = Aman::start(&home)?;
    aman.fill(1000)?;
    let before = stop(aman)?;
    let aman = Aman::start(&home)?;
    let load = Load {
        warmup: Duration::ZERO,
        duration: Duration::from_secs(300),
        limit: Some(events),
        ..aman.push_load(PUSHERS)
    };
    let done = load::run(load)?.done;
    let after = stop(aman)?;
    let each = after.saturating_sub(before) as f64 / (done as f64 * BODY as f64);
    let name = format!("bytes on disk per byte of body, {BODY}-byte events");
    let row = Row::cost(9, &name, "", &[each], Wanted::AtMost(1.8));
    bench.report.add(row.note(format!("{done} events pushed one by one; {} KiB in all", after / 1024)));
    Ok(())
}

/// Ends it, writes the log back into the database, and gives the bytes of both.
fn stop(mut aman: Aman) -> Res<u64> {
    aman.proc.terminate();
    let conn = rusqlite::Connection::open(aman.database())?;
    conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    let (database, log) = aman.bytes();
    Ok(database + log)
}
