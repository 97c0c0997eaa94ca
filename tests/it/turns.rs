//! Turns of agents: killed at every step, stopped, failed, tainted, over budget. The model is a stub on loopback that counts.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Daemon, Folder, Seed};
use crate::models::stub::{Reply, Stub};

/// Calls of tools that a run asks for, one after the other.
const CALLS: usize = 3;
/// Longer than any wait of a test.
const HELD: Duration = Duration::from_secs(60);
/// What may be between the last byte of an answer and its place in the journal.
const JOURNALED: Duration = Duration::from_millis(400);

/// A daemon whose default model is `stub`, with these agents and this besides in its configuration.
fn daemon_in(folder: &Folder, stub: &Stub, agents: &[(&str, &str)], besides: &str) -> Daemon {
    let toml = format!(
        "[models]\ndefault = \"stub/m\"\nmax_retries = 0\n[providers.stub]\nkind = \"openai\"\nurl = \"{}\"\nmodels = [\"m\"]\n{besides}",
        stub.url()
    );
    std::fs::write(folder.path().join("aman.toml"), toml).expect("aman.toml");
    let place = folder.path().join("agents");
    std::fs::create_dir_all(&place).expect("a folder");
    for (id, text) in agents {
        std::fs::write(place.join(format!("{id}.toml")), text).expect("an agent");
    }
    Daemon::start_in(folder.path())
}

/// Begins a run of the agent `worker`; gives the id of its event.
fn begin(daemon: &Daemon, run: &str) -> String {
    let event = json!({ "source": "test", "type": "t.work", "agent_id": "worker", "data": { "run": run } });
    let answer = daemon.post("/events/push", &event);
    assert_eq!(answer.status, 202, "{answer:?}");
    answer.json["id"].as_str().expect("an id").to_owned()
}

/// The run that a request is of, and how many results of tools it shows.
fn place(request: &str) -> (String, usize) {
    let body = request.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let body: Value = serde_json::from_str(body).expect("JSON");
    let messages = body["messages"].as_array().expect("messages");
    let said = messages.iter().find(|message| message["role"] == "user").expect("a message")["content"].to_string();
    let run = said.split("run-").nth(1).expect("a run").chars().take_while(char::is_ascii_digit).collect::<String>();
    (format!("run-{run}"), messages.iter().filter(|message| message["role"] == "tool").count())
}

/// What the model answers: a call for each of the first requests of a run, then the end.
fn think(run: &str, step: usize) -> Reply {
    if step == CALLS {
        return Reply::words(&["finished ", run]);
    }
    let arguments = json!({ "text": format!("{run} did step {step}") });
    Reply::call("working ", &format!("call-{step}"), "memory_save", &arguments)
}

/// What came of a run.
fn finished(daemon: &Daemon, id: &str) -> Value {
    daemon.until(id, "done");
    daemon.delivery(id)["result"].clone()
}

/// How often each tool of each run was done, by the key of the call.
fn done(daemon: &Daemon) -> HashMap<String, usize> {
    let mut times = HashMap::new();
    for record in daemon.all("/audit-log?action=tool.execute&limit=1000") {
        assert_eq!(record["outcome"], "done", "{record}");
        *times.entry(record["detail"]["key"].as_str().expect("a key").to_owned()).or_default() += 1;
    }
    times
}

/// Goal: whatever answer a kill comes before, the answers before it are not asked for again, the tools before it are not run
/// again, and the turn comes to its end.
#[test]
fn a_killed_turn_asks_again_only_what_was_not_answered() {
    let asked: Arc<Mutex<HashMap<(String, usize), usize>>> = Arc::default();
    let counting = Arc::clone(&asked);
    let stub = Stub::thinking(move |request| {
        let (run, step) = place(request);
        let times = {
            let mut asked = counting.lock().expect("not poisoned");
            let times = asked.entry((run.clone(), step)).or_default();
            *times += 1;
            *times
        };
        let held = run == format!("run-{step}") && times == 1;
        if held { think(&run, step).waiting(0, HELD) } else { think(&run, step) }
    });
    let folder = Folder::new("turn-kills");
    let mut daemon = daemon_in(&folder, &stub, &[("worker", "instructions = \"Work.\"")], "");
    let runs: Vec<(String, String)> =
        (0..=CALLS).map(|n| format!("run-{n}")).map(|run| (begin(&daemon, &run), run)).collect();
    daemon.wait("every run to wait for its answer", || {
        let asked = asked.lock().expect("not poisoned");
        (0..=CALLS).all(|n| asked.contains_key(&(format!("run-{n}"), n))).then_some(())
    });
    daemon.kill();
    daemon.again();
    for (id, run) in &runs {
        let result = finished(&daemon, id);
        assert_eq!(
            (&result["status"], &result["text"]),
            (&json!("done"), &json!(format!("finished {run}"))),
            "{result}"
        );
    }
    let asked = asked.lock().expect("not poisoned");
    for ((run, step), times) in asked.iter() {
        let held = *run == format!("run-{step}");
        assert_eq!(*times, if held { 2 } else { 1 }, "{run} at step {step}");
    }
    let times = done(&daemon);
    assert_eq!((times.len(), times.values().all(|times| *times == 1)), ((CALLS + 1) * CALLS, true), "{times:?}");
    let ended = daemon.recent("aman.agent.turn.ended");
    assert_eq!(ended.len(), CALLS + 1, "{ended:?}");
}

/// Goal: kills at random moments between any two steps: every turn ends once, each of its tools is run once, and no answer is
/// asked for that had come.
#[test]
fn kills_between_any_two_steps_repeat_nothing() {
    const RUNS: usize = 24;
    const KILLS: usize = 5;
    let seed = Seed::take();
    let mut rng = seed.rng(7);
    let waits = Mutex::new(seed.rng(8));
    let stub = Stub::thinking(move |request| {
        let (run, step) = place(request);
        let wait = Duration::from_millis(waits.lock().expect("not poisoned").u64(1..40));
        think(&run, step).waiting(1, wait)
    });
    let folder = Folder::new("turn-mix");
    let mut daemon = daemon_in(&folder, &stub, &[("worker", "instructions = \"Work.\"\nconcurrency = 6")], "");
    let runs: Vec<(String, String)> =
        (0..RUNS).map(|n| format!("run-{n}")).map(|run| (begin(&daemon, &run), run)).collect();
    let mut killed = Vec::new();
    for _ in 0..KILLS {
        std::thread::sleep(Duration::from_millis(rng.u64(20..160)));
        killed.push(Instant::now());
        daemon.kill();
        daemon.again();
    }
    for (id, run) in &runs {
        let result = finished(&daemon, id);
        assert_eq!(
            (&result["status"], &result["text"]),
            (&json!("done"), &json!(format!("finished {run}"))),
            "{result}"
        );
    }
    let times = done(&daemon);
    assert_eq!((times.len(), times.values().all(|times| *times == 1)), (RUNS * CALLS, true), "{times:?}");
    let mut asked: HashMap<(String, usize), Vec<usize>> = HashMap::new();
    for (n, request) in stub.requests().iter().enumerate() {
        asked.entry(place(request)).or_default().push(n);
    }
    for ((run, step), requests) in &asked {
        // All but the last: each was cut off by a kill, before its answer was in the journal.
        for request in &requests[..requests.len() - 1] {
            let Some(at) = stub.answered(*request) else { continue };
            let cut_off = killed.iter().any(|kill| at + JOURNALED > *kill);
            assert!(cut_off, "{run}, step {step}: an answer that had come was asked for again");
        }
    }
    assert_eq!(asked.len(), RUNS * (CALLS + 1));
    assert_eq!(daemon.recent("aman.agent.turn.ended&limit=1000").len(), RUNS);
}
