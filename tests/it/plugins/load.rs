//! Plugins change while everything is in use: nobody else notices, and no event is lost or handled twice.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use serde_json::{Value, json};

use super::{EVENTS, ONE, PUBLISH, body, install, installed, package, packed};
use crate::harness::{Daemon, manifest};

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
        let (noted, gate) = (Arc::clone(&ids), Arc::clone(&pushing));
        let pushes = again_and_again(&gate, move |n| {
            if n < PUSHES_MAX {
                noted.lock().expect("nobody panics with it").push(daemon.push("in.one", json!({ "n": n })));
            } else {
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
        (now >= had + 5 || now == PUSHES_MAX).then_some(())
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

/// Goal: a plugin that is being compiled keeps nobody from switching another one off.
#[test]
fn switching_off_waits_for_no_installation() {
    let daemon = Arc::new(Daemon::start());
    installed(&daemon, &packed("1.0.0", "one", PUBLISH), "approve=true");
    let installing = {
        let daemon = Arc::clone(&daemon);
        std::thread::spawn(move || {
            let more = (0..4).map(|n| {
                let head = manifest(&format!("more{n}"), "1.0.0");
                let manifest = format!("{head}permissions = {{ publish = [\"test.**\"] }}\n");
                install(&daemon, &package(&manifest, ONE), "").status
            });
            more.collect::<Vec<u16>>()
        })
    };
    for _ in 0..5 {
        assert_eq!(daemon.post_confirmed("/plugin/probe/disable", &json!({})).json["state"], "disabled");
        assert_eq!(daemon.post("/plugin/probe/enable", &json!({})).json["state"], "active");
    }
    assert_eq!(installing.join().expect("each answered"), [201; 4]);
    let names: Vec<Value> = daemon.get("/plugins").items().iter().map(|plugin| plugin["name"].clone()).collect();
    assert_eq!(names, ["more0", "more1", "more2", "more3", "probe"]);
}
