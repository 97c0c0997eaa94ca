//! Bare SQLite in one process: producers that each wait for their commit, one thread that commits what is queued.
//!
//! The same library, table, rows and settings as the daemon's, and nothing else: no HTTP, no auth, no routing.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, params};
use serde_json::{Value, json};

use crate::Res;
use crate::proc::{cpu_us, role};

/// The roles' names.
pub const ROLE: &str = "sqlite";
pub const ROLE_READ: &str = "sqlite-read";

const SCHEMA: &str = include_str!("../../../schemas/sql/0001_core.sql");
const SETTINGS: &str = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA temp_store = MEMORY;
    PRAGMA cache_size = -16000; PRAGMA wal_autocheckpoint = 4000; PRAGMA journal_size_limit = 67108864;";
const INSERT: &str =
    "INSERT INTO event (sequence, received_ms, source, type, priority, mode, trust, depth, data_kind, data)
    VALUES (?1, ?2, ?3, ?4, 1, 1, 0, 0, 1, ?5)";
const BATCH_MAX: usize = 1024;

/// What a run gave.
pub struct Outcome {
    pub rate: f64,
    pub cpu_each_us: f64,
}

/// Runs the producers in a process of its own; the database stays in `folder` for the next round.
pub fn run(folder: &Path, producers: usize, warmup: Duration, duration: Duration, data: &str) -> Res<Outcome> {
    let folder = folder.to_str().ok_or("a folder that is no UTF-8")?;
    let (producers, warmup, millis) =
        (producers.to_string(), warmup.as_millis().to_string(), duration.as_millis().to_string());
    let mut proc = role(ROLE, &[folder, &producers, &warmup, &millis, data])?;
    let answer: Value = serde_json::from_str(&proc.line("result ")?)?;
    proc.wait()?;
    let field = |name: &str| answer[name].as_f64().ok_or("a result without numbers");
    Ok(Outcome { rate: field("rate")?, cpu_each_us: field("cpu_each_us")? })
}

/// Rows a second when one thread pages through the events of a database as the daemon's replay does.
pub fn read_rate(database: &Path, from: i64, count: u64) -> Res<f64> {
    let database = database.to_str().ok_or("a path that is no UTF-8")?;
    let mut proc = role(ROLE_READ, &[database, &from.to_string(), &count.to_string()])?;
    let rate = proc.line("result ")?.parse()?;
    proc.wait()?;
    Ok(rate)
}

struct Row {
    data: Arc<str>,
    answer: Sender<i64>,
}

struct Counts {
    done: AtomicU64,
    stop: AtomicBool,
}

/// The role behind [`run`].
pub fn serve(args: &[String]) -> Res<()> {
    let [folder, producers, warmup, millis, data] = args else { return Err("five arguments".into()) };
    let database = Path::new(folder).join("bare.db");
    let fresh = !database.exists();
    let conn = Connection::open(database)?;
    conn.execute_batch(SETTINGS)?;
    if fresh {
        conn.execute_batch(SCHEMA)?;
    }
    let counts = Arc::new(Counts { done: AtomicU64::new(0), stop: AtomicBool::new(false) });
    let (rows, queue) = sync_channel::<Row>(8192);
    let data: Arc<str> = Arc::from(data.as_str());
    let mut joins = Vec::new();
    for _ in 0..producers.parse::<usize>()? {
        let (rows, data, counts) = (rows.clone(), Arc::clone(&data), Arc::clone(&counts));
        joins.push(std::thread::Builder::new().stack_size(64 * 1024).spawn(move || produce(&rows, &data, &counts))?);
    }
    drop(rows);
    let writer = std::thread::spawn(move || write(&conn, &queue));
    std::thread::sleep(Duration::from_millis(warmup.parse()?));
    let pids = [std::process::id()];
    let (begun, done, cpu) = (Instant::now(), counts.done.load(Relaxed), cpu_us(&pids));
    std::thread::sleep(Duration::from_millis(millis.parse()?));
    let secs = begun.elapsed().as_secs_f64();
    let (done, cpu) = (counts.done.load(Relaxed) - done, cpu_us(&pids) - cpu);
    counts.stop.store(true, Relaxed);
    for join in joins {
        join.join().map_err(|_| "a producer panicked")?;
    }
    writer.join().map_err(|_| "the writer panicked")??;
    let result = json!({"rate": done as f64 / secs, "cpu_each_us": cpu as f64 / done.max(1) as f64});
    Ok(writeln!(std::io::stdout().lock(), "result {result}")?)
}

fn produce(rows: &SyncSender<Row>, data: &Arc<str>, counts: &Counts) {
    while !counts.stop.load(Relaxed) {
        let (answer, answered) = channel();
        if rows.send(Row { data: Arc::clone(data), answer }).is_err() || answered.recv().is_err() {
            return;
        }
        counts.done.fetch_add(1, Relaxed);
    }
}

fn write(conn: &Connection, queue: &Receiver<Row>) -> Res<()> {
    let mut sequence: i64 = conn.query_row("SELECT coalesce(max(sequence), 0) FROM event", [], |row| row.get(0))?;
    let mut batch = Vec::with_capacity(BATCH_MAX);
    while let Ok(first) = queue.recv() {
        batch.push(first);
        batch.extend(queue.try_iter().take(BATCH_MAX - 1));
        conn.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        let mut insert = conn.prepare_cached(INSERT)?;
        let first_of_batch = sequence + 1;
        let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
        for row in &batch {
            sequence += 1;
            insert.execute(params![sequence, now, "bench", "bench.tick", row.data.as_bytes()])?;
        }
        drop(insert);
        conn.prepare_cached("COMMIT")?.execute([])?;
        for (sequence, row) in (first_of_batch..).zip(batch.drain(..)) {
            // The producer waits; if it is gone, nobody minds.
            let _ = row.answer.send(sequence);
        }
    }
    Ok(())
}

/// The role behind [`read_rate`].
pub fn serve_read(args: &[String]) -> Res<()> {
    let [database, from, count] = args else { return Err("three arguments".into()) };
    let conn = Connection::open_with_flags(database, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let (mut cursor, count): (i64, u64) = (from.parse()?, count.parse()?);
    let (begun, mut read, mut bytes) = (Instant::now(), 0u64, 0u64);
    while read < count {
        let mut page = conn.prepare_cached("SELECT * FROM event WHERE sequence > ?1 ORDER BY sequence LIMIT 500")?;
        let mut rows = page.query([cursor])?;
        let before = read;
        while let Some(row) = rows.next()? {
            cursor = row.get(0)?;
            bytes += row.get_ref(9)?.as_blob().map_or(0, <[u8]>::len) as u64;
            read += 1;
        }
        if read == before {
            break;
        }
    }
    let rate = read as f64 / begun.elapsed().as_secs_f64();
    if bytes == 0 {
        return Err("nothing was read".into());
    }
    Ok(writeln!(std::io::stdout().lock(), "result {rate}")?)
}
