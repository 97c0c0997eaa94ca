//! Plugins change while everything is in use: nobody else notices, and no event is lost or handled twice.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{EVENTS, ONE, PUBLISH, body, install, installed, package, packed};
use crate::harness::{Daemon, manifest, signal};

/// Pushes of one run: the list of recent events shows all of their effects.
const PUSHES_MAX: usize = 900;

/// Runs `work` again and again until it is told to stop; gives how often.
fn again_and_again(stop: &Arc<AtomicBool>, mut work: impl FnMut(usize) + Send + 'static) -> JoinHandle<usize> {
    let stop = Arc::clone(stop);
    std::thread::spawn(move || {
        let mut times = 0;
        while !stop.load(Ordering::Relaxed) {
            work(times);
            times += 1;
        }
        times
    })
}

/// Asserts that each of the pushed events was handled by the plugin, and none of them twice.
pub fn assert_handled_once(daemon: &Daemon, pushed: &[String]) {
    daemon.settle();
    let effects = daemon.recent("test.kind");
    let causes: Vec<&str> = effects.iter().filter_map(|event| event["causationid"].as_str()).collect();
    let distinct: BTreeSet<&str> = causes.iter().copied().collect();
    let wanted: BTreeSet<&str> = pushed.iter().map(String::as_str).collect();
    assert_eq!(causes.len(), distinct.len(), "nothing is handled twice");
    assert_eq!(distinct, wanted, "nothing is lost; {}", daemon.log());
    assert_eq!(daemon.get("/dlq/depth").json["depth"], 0);
}

/// Goal: install, upgrade, disable, enable, rollback and uninstall while natives, another plugin, the plugin itself, its
/// tools and its events are in use: only what was switched off is not there, and only then.
#[test]
fn changes_disturb_nobody() {
    let daemon = Arc::new(Daemon::start());
    let more = "permissions = { publish = [\"test.**\"] }\n[[routes]]\nmethod = \"GET\"\npath = \"/o\"\n";
    installed(&daemon, &package(&format!("{}{more}", manifest("other", "1.0.0")), ONE), "approve=true");
    let stop = Arc::new(AtomicBool::new(false));
    let neighbours = {
        let daemon = Arc::clone(&daemon);
        again_and_again(&stop, move |_| {
            assert_eq!(daemon.get("/health/live").status, 200);
            let answer = daemon.get("/api/v1/o");
            assert_eq!((answer.status, body(&answer).as_str()), (200, "one"), "{answer:?}");
        })
    };
    let with = format!("{EVENTS}{PUBLISH}");
    installed(&daemon, &packed("1.0.0", "one", &with), "approve=true");
    let off = Arc::new(AtomicBool::new(false));
    let (callers, pushing) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let own = {
        let (daemon, off) = (Arc::clone(&daemon), Arc::clone(&off));
        again_and_again(&callers, move |_| {
            let before = off.load(Ordering::SeqCst);
            let (route, tool) = (daemon.get("/api/v1/t"), daemon.post("/tools/probe_it/execute", &json!({})));
            let is_on = !before && !off.load(Ordering::SeqCst);
            for answer in [route, tool] {
                assert!(answer.status == 200 || (!is_on && answer.status == 404), "{answer:?}; {}", daemon.log());
            }
        })
    };
    let (ids, pushes) = {
        let (daemon, ids) = (Arc::clone(&daemon), Arc::new(std::sync::Mutex::new(Vec::new())));
        let (noted, gate, off) = (Arc::clone(&ids), Arc::clone(&pushing), Arc::clone(&off));
        let pushes = again_and_again(&gate, move |n| {
            let mut ids = noted.lock().expect("nobody panics with it");
            // Some are left for the time that it is switched off, however long the rest takes.
            let most = if off.load(Ordering::SeqCst) { PUSHES_MAX } else { PUSHES_MAX - 100 };
            if ids.len() < most {
                ids.push(daemon.push("in.one", json!({ "n": n })));
            } else {
                drop(ids);
                std::thread::yield_now();
            }
        });
        (ids, pushes)
    };
    installed(&daemon, &packed("1.1.0", "two", &with), "approve=true");
    off.store(true, Ordering::SeqCst);
    assert_eq!(daemon.post_confirmed("/plugin/probe/disable", &json!({})).json["state"], "disabled");
    let had = ids.lock().expect("nobody panics with it").len();
    daemon.wait("pushes while it is off", || {
        let now = ids.lock().expect("nobody panics with it").len();
        (now >= had + 5).then_some(())
    });
    assert_eq!(daemon.post("/plugin/probe/enable", &json!({})).json["state"], "active");
    off.store(false, Ordering::SeqCst);
    assert_eq!(daemon.post_confirmed("/plugin/probe/rollback", &json!({})).json["version"], "1.0.0");
    let refused = install(&daemon, &packed("0.9.0", "two", &with), "approve=true");
    assert_eq!(refused.code(), "plugin_downgrade");
    callers.store(true, Ordering::Relaxed);
    pushing.store(true, Ordering::Relaxed);
    assert!(own.join().expect("its own requests went well") > 0);
    pushes.join().expect("every push was taken");
    assert_handled_once(&daemon, &ids.lock().expect("nobody panics with it"));
    let gone = daemon.post("/plugin/probe/uninstall", &json!({ "purge_data": true }));
    assert_eq!(gone.json["deleted"], true, "{gone:?}");
    assert_eq!(daemon.get("/api/v1/t").status, 404);
    stop.store(true, Ordering::Relaxed);
    assert!(neighbours.join().expect("no request to others failed") > 0);
}

/// The process of a daemon that compiles, if one does now.
fn compiler(daemon: u32) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{daemon}/task/{daemon}/children")).unwrap_or_default();
    let tasks = std::fs::read_dir(format!("/proc/{daemon}/task")).ok()?.flatten();
    let of_task = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
    let all: String = tasks.map(of_task).chain([children]).collect::<Vec<_>>().join(" ");
    all.split_whitespace().filter_map(|child| child.parse().ok()).find(|child: &u32| {
        std::fs::read(format!("/proc/{child}/cmdline"))
            .is_ok_and(|line| line.split(|byte| *byte == 0).any(|word| word == b"__compile"))
    })
}

/// Stops a process as it is; false when it had ended by then.
fn held(pid: u32) -> bool {
    let sent = Command::new("kill").args(["-STOP", &pid.to_string()]).stderr(Stdio::null()).status();
    let is_stopped = || std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") T "));
    let deadline = Instant::now() + Duration::from_secs(2);
    sent.is_ok_and(|sent| sent.success())
        && std::iter::repeat_with(is_stopped).any(|held| held || Instant::now() > deadline)
        && is_stopped()
}

/// Goal: a plugin that is being compiled, however long that takes, keeps nobody from switching another one off; a second
/// package is sent back meanwhile instead of being kept in memory.
#[test]
fn switching_off_waits_for_no_installation() {
    let daemon = Arc::new(Daemon::start());
    installed(&daemon, &packed("1.0.0", "one", PUBLISH), "approve=true");
    let more = |n: usize| {
        let head = manifest(&format!("more{n}"), "1.0.0");
        package(&format!("{head}permissions = {{ publish = [\"test.**\"] }}\n"), ONE)
    };
    // Caught in the act: a compiler that is over before it is seen was too fast, and the next one is tried.
    let (stopped, installing) = (0..20)
        .find_map(|n| {
            let (daemon, packed) = (Arc::clone(&daemon), more(n));
            let pid = daemon.pid();
            let installing = std::thread::spawn(move || install(&daemon, &packed, "").status);
            while !installing.is_finished() {
                if let Some(child) = compiler(pid).filter(|child| held(*child)) {
                    return Some((child, installing));
                }
            }
            assert_eq!(installing.join().expect("it was answered"), 201);
            None
        })
        .expect("a compiler is seen");
    for _ in 0..5 {
        assert_eq!(daemon.post_confirmed("/plugin/probe/disable", &json!({})).json["state"], "disabled");
        assert_eq!(daemon.post("/plugin/probe/enable", &json!({})).json["state"], "active");
    }
    let second = install(&daemon, &more(99), "");
    assert_eq!((second.status, second.code()), (503, "overloaded"), "{second:?}");
    assert!(second.header("retry-after").is_some() && !installing.is_finished());
    signal(stopped, "CONT");
    assert_eq!(installing.join().expect("it was answered"), 201);
    assert_eq!(install(&daemon, &more(99), "").status, 201, "now it is its turn");
}
