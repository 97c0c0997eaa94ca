//! The real binary, ended by SIGKILL at random moments under load, again and again. Nothing that was acknowledged is
//! lost, nothing is doubled, everything ends, and the audit chain is whole.

mod load;
mod verify;

use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;

use self::load::{Acked, Change, Load};
use crate::harness::{Daemon, Folder, Seed, command, write_skill};

/// Kills of one run.
const KILLS: usize = 50;
/// Threads that push.
const PUSHERS: u64 = 3;
/// Acknowledged events that are looked up after each restart, the newest first.
const LOOKED_UP: usize = 60;

/// What the script of both skills does: it notes that it ran, takes a moment, and has one effect.
const SCRIPT: &str = r#"event=$(cat)
mkdir -p "$AMAN_DATA/runs"
printf '%s %s\n' "$AMAN_EVENT_ID" "$AMAN_DELIVERY_ID" >> "$AMAN_DATA/runs/log"
sleep 0.02
case "$event" in
    *'"type":"load.reject"'*) exit 65 ;;
    *'"type":"load.flaky"'*) [ "$AMAN_ATTEMPT" -lt 2 ] && exit 75 ;;
esac
printf '{"publish": [{"type": "load.effect", "data": {"cause": "%s"}}]}' "$AMAN_EVENT_ID"
"#;

/// What the threads of the load share with the test.
pub struct Shared {
    /// `127.0.0.1:PORT` of the daemon that runs, or ran last.
    address: Mutex<String>,
    /// True when the load is to end.
    over: AtomicBool,
    /// True when the test has failed, so that nobody waits for a daemon that may never come back.
    failed: AtomicBool,
    /// What was acknowledged.
    acked: Mutex<Vec<Acked>>,
    /// What was changed, or may have been.
    changes: Mutex<Vec<Change>>,
}

impl Shared {
    fn address(&self) -> String {
        self.address.lock().expect("not poisoned").clone()
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

/// Ends the load, also when the test fails.
struct EndOfLoad<'a>(&'a Shared);

impl Drop for EndOfLoad<'_> {
    fn drop(&mut self) {
        self.0.failed.store(std::thread::panicking(), Ordering::Release);
        self.0.over.store(true, Ordering::Release);
    }
}

fn prepare(folder: &Folder) -> Daemon {
    let home = folder.path();
    let rights = "aman.permissions: write:$AMAN_DATA/runs";
    let retry = "aman.retry: attempts=4 base=1ms max=20ms";
    let parallel = ["aman.on: load.act load.reject load.flaky", "aman.concurrency: \"4\"", rights, retry];
    write_skill(home, "side-by-side", &parallel, SCRIPT);
    write_skill(home, "in-turn", &["aman.on: load.act load.turn load.flaky", rights, retry], SCRIPT);
    write_skill(home, "switched", &["aman.on: load.switched"], "exit 0");
    let daemon = Daemon::start_in(home);
    // It would sum up every death while the test makes hundreds; it has a test of its own.
    assert_eq!(daemon.post("/skill/dlq-summary/disable", &json!({})).status, 200);
    daemon
}

/// Kills the daemon at a random moment, sometimes its successor while it starts, and starts it again. Gives the kills.
fn kill_and_start(daemon: &mut Daemon, shared: &Shared, rng: &mut fastrand::Rng) -> usize {
    // Not a wait for something: the moment of the kill is what is random.
    std::thread::sleep(Duration::from_millis(rng.u64(20..350)));
    daemon.kill();
    let mut kills = 1;
    while rng.u8(..4) == 0 {
        let mut early = command(daemon.home())
            .arg("serve")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary starts");
        std::thread::sleep(Duration::from_millis(rng.u64(..200)));
        early.kill().expect("it can be killed");
        early.wait().expect("it ends");
        kills += 1;
    }
    daemon.again();
    shared.address.lock().expect("not poisoned").clone_from(&daemon.address);
    kills
}

/// The newest acknowledged events are there, exactly as they were sent.
fn look_up(daemon: &Daemon, shared: &Shared) {
    let newest: Vec<Acked> = shared.acked.lock().expect("not poisoned").iter().rev().take(LOOKED_UP).cloned().collect();
    for acked in newest {
        let dump = daemon.get(&format!("/events/dump/{}", acked.id));
        assert_eq!(dump.status, 200, "acknowledged and lost: {acked:?}; {dump:?}; log: {}", daemon.log());
        assert_eq!(dump.json["event"]["amansequence"], acked.sequence.to_string(), "{acked:?}");
        let text = String::from_utf8_lossy(&dump.body).into_owned();
        assert!(text.contains(&format!("\"data\":{}", acked.data)), "{acked:?}: {text}");
    }
}

/// Goal: SIGKILL at any moment, 50 times under load: no acknowledged event is lost, no effect is applied twice, every
/// delivery ends in one state, sequences are never reused, a stream resumes without gap, the audit chain is whole.
#[test]
fn fifty_kills() {
    let seed = Seed::take();
    let (mut rng, folder) = (seed.rng(0), Folder::new("crash"));
    let mut daemon = prepare(&folder);
    let shared = Shared {
        address: Mutex::new(daemon.address.clone()),
        over: AtomicBool::new(false),
        failed: AtomicBool::new(false),
        acked: Mutex::default(),
        changes: Mutex::default(),
    };
    let streamed = AtomicBool::new(false);
    let (load, seen) = std::thread::scope(|scope| {
        let end_of_stream = StreamEnd(&streamed);
        let reader = scope.spawn(|| load::read_stream(&shared, &streamed));
        let mut load = Load::default();
        {
            let end_of_load = EndOfLoad(&shared);
            let pushers: Vec<_> = (1..=PUSHERS)
                .map(|n| {
                    let (shared, rng) = (&shared, seed.rng(n));
                    scope.spawn(move || load::push(shared, n, rng))
                })
                .collect();
            let operator = scope.spawn(|| load::operate(&shared, seed.rng(100)));
            let (mut kills, mut drops) = (0, 0);
            while kills < KILLS {
                drops += load::drop_files(folder.path(), drops, &mut rng);
                kills += kill_and_start(&mut daemon, &shared, &mut rng);
                look_up(&daemon, &shared);
            }
            drop(end_of_load);
            load.files = drops;
            load.unanswered = pushers.into_iter().flat_map(|pusher| pusher.join().expect("pushed")).collect();
            operator.join().expect("operated");
        }
        assert_eq!(daemon.post("/skill/switched/enable", &json!({})).status, 200);
        load::revive_triage(&daemon, &shared);
        verify::wait_for_files(&daemon, load.files);
        daemon.settle();
        drop(end_of_stream);
        (load, reader.join().expect("read the stream"))
    });
    let load = Load {
        acked: shared.acked.into_inner().expect("not poisoned"),
        changes: shared.changes.into_inner().expect("not poisoned"),
        ..load
    };
    verify::everything(&daemon, &load, &seen);
}

/// Ends the reading of the stream, also when the test fails.
struct StreamEnd<'a>(&'a AtomicBool);

impl Drop for StreamEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}
