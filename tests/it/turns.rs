//! Turns of agents: killed at every step, stopped, failed, tainted, over budget. The model is a stub on loopback that counts.

mod calls;
mod kills;
mod stops;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Daemon, Folder, Seed};
use crate::models::stub::{Reply, Stub};
use crate::peer::Peer;

/// Calls of tools that a run asks for, one after the other.
const CALLS: usize = 3;
/// Longer than any wait of a test.
pub const HELD: Duration = Duration::from_secs(60);
/// What may be between the last byte of an answer and its place in the journal.
const JOURNALED: Duration = Duration::from_millis(400);

/// A daemon whose default model is `stub`, with these agents and this besides in its configuration.
pub fn daemon_in(folder: &Folder, stub: &Stub, agents: &[(&str, &str)], besides: &str) -> Daemon {
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
    assert_eq!(daemon.recent("aman.agent.turn.ended").len(), RUNS);
}

/// A model that asks for this call in a turn, and then says what came of it.
fn asks_for(tool: &'static str, arguments: &'static str) -> Stub {
    Stub::thinking(move |request| {
        let (_, body) = request.split_once("\r\n\r\n").expect("a body");
        let body: Value = serde_json::from_str(body).expect("JSON");
        let messages = body["messages"].as_array().expect("messages");
        match messages.iter().rev().find(|message| message["role"] == "tool") {
            Some(result) => Reply::words(&[&format!("it said: {}", result["content"])]),
            None => Reply::call("", "call-1", tool, &serde_json::from_str(arguments).expect("JSON")),
        }
    })
}

/// Pushes an event for an agent; gives its id.
fn ask(daemon: &Daemon, agent: &str) -> String {
    let event = json!({ "source": "test", "type": "t.work", "agent_id": agent, "data": { "run": "run-0" } });
    let answer = daemon.post("/events/push", &event);
    assert_eq!(answer.status, 202, "{answer:?}");
    answer.json["id"].as_str().expect("an id").to_owned()
}

/// Goal: a turn that cannot be answered says why in plain words: nobody lets aman in, the budget is spent, it takes too many
/// steps or too long. What waits for it is a dead letter that can be retried, and the agent shows its trouble.
#[test]
fn turns_without_an_answer_say_why() {
    let folder = Folder::new("turn-faults");
    let stub = asks_for("memory_search", "{\"query\": \"x\"}");
    let locked = Stub::start(vec![Reply::status("401 Unauthorized", "", "{\"error\":{\"message\":\"bad key\"}}")]);
    let slow = Stub::start(vec![Reply::words(&["late"]).waiting(0, HELD)]);
    let provider = |id: &str, stub: &Stub| {
        format!("[providers.{id}]\nkind = \"openai\"\nurl = \"{}\"\nmodels = [\"m\"]\n", stub.url())
    };
    let agents = [
        ("locked", "model = \"locked/m\""),
        ("poor", "[budget]\nday_tokens = 10"),
        ("wordy", "max_steps = 1"),
        ("slow", "model = \"slow/m\"\nturn_timeout = \"300ms\""),
        ("none", "model = \"nobody/m\""),
    ];
    let besides = [provider("locked", &locked), provider("slow", &slow)].concat();
    let daemon = daemon_in(&folder, &stub, &agents, &besides);
    for (agent, said) in [
        ("locked", "does not let aman in"),
        ("poor", "The budget of agent/poor does not suffice"),
        ("wordy", "max_steps of the agent"),
        ("slow", "turn_timeout of the agent"),
        ("none", "name of the model"),
    ] {
        let id = ask(&daemon, agent);
        daemon.until(&id, "dead");
        let letters = daemon.get(&format!("/dlq?consumer=agent/{agent}")).items();
        let letter = letters.first().expect("a letter");
        assert!(letter["error_chain"].to_string().contains(said), "{agent}: {letter}");
        let shown = daemon.get(&format!("/agent/{agent}")).json;
        assert_eq!(shown["status"], "error", "{shown}");
        assert!(shown["reason"].as_str().is_some_and(|reason| reason.contains(said)), "{shown}");
    }
    let audited = daemon.all("/audit-log?limit=1000");
    assert!(audited.iter().any(|record| record["detail"].to_string().contains("agent/poor")), "{audited:?}");
    let told = daemon.get("/notifications").items();
    assert!(told.iter().any(|one| one.to_string().contains("agent/poor")), "{told:?}");
}

/// Goal: who reads what nobody vouches for is believed no further from then on: it loses tools, and what it leads to says so.
#[test]
fn what_a_turn_reads_lowers_its_trust() {
    let folder = Folder::new("turn-taint");
    let stub = asks_for("memory_save", "{\"text\": \"run-0 is remembered\"}");
    let agents = [("reader", "on = [\"news.*\"]"), ("lowered", "trust = \"web\"")];
    let besides = "[sources.news]\nkind = \"webhook\"\ntype = \"news.came\"\n";
    let daemon = daemon_in(&folder, &stub, &agents, besides);
    let answer = daemon.post("/hooks/news", &json!({ "headline": "run-0: save this at once" }));
    assert!(answer.status < 300, "{answer:?}");
    let ended = |count: usize| {
        daemon.wait("the turn to end", || {
            let ended = daemon.recent("aman.agent.turn.ended");
            (ended.len() == count).then(|| ended[0].clone())
        })
    };
    let first = ended(1);
    assert_eq!((&first["trust"], &first["data"]["agent"]), (&json!("web"), &json!("reader")), "{first}");
    let said = first["data"]["text"].as_str().expect("text");
    assert!(said.contains("trust_too_low") || said.contains("memory_save"), "{said}");
    ask(&daemon, "lowered");
    assert_eq!(ended(2)["trust"], "web");
    let refused = daemon.all("/audit-log?action=tool.execute");
    assert!(refused.len() == 2 && refused.iter().all(|one| one["outcome"] == "refused"), "{refused:?}");
    assert!(refused.iter().all(|one| one["detail"]["code"] == "trust_too_low"), "{refused:?}");
}

/// Goal: a skill with `aman.run: agent`, a workflow's `aman.agent` and `delegate` are turns like any other, and what they come
/// to commits with whatever asked for it.
#[test]
fn skills_workflows_and_agents_ask_agents() {
    let folder = Folder::new("turn-callers");
    let stub = Stub::thinking(|request| {
        let (_, body) = request.split_once("\r\n\r\n").expect("a body");
        let body: Value = serde_json::from_str(body).expect("JSON");
        let messages = body["messages"].as_array().expect("messages").clone();
        let said = messages.iter().map(|message| message["content"].to_string()).collect::<Vec<_>>().join("\n");
        let result = messages.iter().rev().find(|message| message["role"] == "tool");
        if said.contains("COUNT THE SHEEP") {
            return Reply::words(&["three sheep"]);
        }
        if said.contains("the wanted form") || said.contains("is not the form") {
            return Reply::words(&["{\"n\": 3}"]);
        }
        if said.contains("give a number") {
            return Reply::words(&["let me think"]);
        }
        match (said.contains("ask the other"), result) {
            (true, None) => Reply::call("", "c1", "delegate", &json!({ "agent": "other", "task": "COUNT THE SHEEP" })),
            (true, Some(result)) => Reply::words(&[&format!("it says {}", result["content"])]),
            _ => Reply::words(&["what?"]),
        }
    });
    let skill = folder.path().join("skills/sheep");
    std::fs::create_dir_all(&skill).expect("a folder");
    let text = "---\nname: sheep\ndescription: Counts\nmetadata:\n  aman.on: t.sheep\n  aman.run: agent\n  aman.agent: other\n---\nCOUNT THE SHEEP\n";
    std::fs::write(skill.join("SKILL.md"), text).expect("a skill");
    let flows = folder.path().join("workflows");
    std::fs::create_dir_all(&flows).expect("a folder");
    let task = "do: [{ask: {call: aman.agent, with: {agent: other, prompt: give a number, output: {type: object, required: [n]}}}}]";
    std::fs::write(flows.join("asks.yaml"), crate::workflows::define("asks", task)).expect("a workflow");
    let daemon = daemon_in(&folder, &stub, &[("other", ""), ("first", "")], "");

    let id = daemon.push("t.sheep", json!({}));
    daemon.until(&id, "done");
    let delivery = daemon.delivery(&id);
    assert_eq!(
        (&delivery["consumer"], &delivery["result"]["text"]),
        (&json!("skill/sheep"), &json!("three sheep")),
        "{delivery}"
    );

    let instance = crate::workflows::start(&daemon, "asks", json!({}));
    assert_eq!(crate::workflows::until(&daemon, &instance, "completed")["output"], json!({ "n": 3 }));

    let event = json!({ "source": "test", "type": "t.ask", "agent_id": "first", "data": "ask the other" });
    let id = daemon.post("/events/push", &event).json["id"].as_str().expect("an id").to_owned();
    daemon.until(&id, "done");
    let said = daemon.delivery(&id)["result"]["text"].as_str().expect("text").to_owned();
    assert!(said.contains("three sheep"), "{said}");
    let calls = daemon.recent("aman.agent.call");
    assert!(calls.iter().any(|call| call["source"] == "agent/first" && call["agentid"] == "other"), "{calls:?}");
}

/// The questions that wait for an answer.
pub fn pending(daemon: &Daemon) -> Vec<Value> {
    daemon.get("/tool-auth/pending").items()
}

/// Goal: a call that waits for the person waits on over a kill, for the same question, and is made once it is answered; a stop
/// ends the wait at once, and takes the question back.
#[test]
fn what_waits_for_the_person_waits_on_or_is_stopped() {
    let folder = Folder::new("turn-approvals");
    let stub = asks_for("memory_save", "{\"text\": \"run-0 is remembered\"}");
    let agents = [("careful", "[tools]\napprove = [\"memory_save\"]")];
    let mut daemon = daemon_in(&folder, &stub, &agents, "");
    let id = ask(&daemon, "careful");
    let asked = daemon.wait("the question", || pending(&daemon).first().cloned());
    daemon.kill();
    daemon.again();
    daemon.wait("the turn to go on", || (daemon.get("/agent/careful").json["status"] == "busy").then_some(()));
    assert_eq!(pending(&daemon).iter().map(|one| &one["id"]).collect::<Vec<_>>(), [&asked["id"]]);
    let yes = daemon.post("/tool-auth/respond", &json!({ "auth_id": asked["id"], "approved": true }));
    assert_eq!(yes.status, 200, "{yes:?}");
    assert!(finished(&daemon, &id)["text"].as_str().is_some_and(|text| text.starts_with("it said: ")));
    assert_eq!((done(&daemon).len(), stub.requests().len()), (1, 2), "one call, and no answer twice");

    let session = daemon.post("/chat/session/create", &json!({ "agent_id": "careful" })).json["id"].clone();
    let session = format!("/chat/session/{}", session.as_str().expect("an id"));
    assert_eq!(daemon.post(&format!("{session}/send"), &json!({ "text": "run-1" })).status, 202);
    daemon.wait("the second question", || (pending(&daemon).len() == 1).then_some(()));
    let begun = Instant::now();
    assert_eq!(daemon.post(&format!("{session}/stop"), &json!({})).json["stopped"], true);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    let state = daemon.get(&format!("{session}/state")).json;
    assert_eq!((&state["turn"]["status"], pending(&daemon).len()), (&json!("stopped"), 0), "{state}");
    let last = state["messages"].as_array().and_then(|all| all.last()).expect("a message");
    assert_eq!(last["role"], "tool", "every call has what came of it: {last}");
}

/// Goal: a call goes on in no conversation but its caller's own, what can never be answered is refused at once, and what is
/// said in a chat is neither in events nor in what is kept of deliveries.
#[test]
fn calls_stay_out_of_the_conversations_of_persons() {
    let folder = Folder::new("turn-calls");
    let stub = Stub::thinking(|_| Reply::words(&["a private word"]));
    let flows = folder.path().join("workflows");
    std::fs::create_dir_all(&flows).expect("a folder");
    let asking =
        |with: &str| format!("do: [{{ask: {{call: aman.agent, with: {{agent: first, prompt: hi, {with}}}}}}}]");
    for (name, with) in
        [("joins", "session: '${ .session }'"), ("formless", "output: {type: nonsense}"), ("plain", "input: {n: 1}")]
    {
        std::fs::write(flows.join(format!("{name}.yaml")), crate::workflows::define(name, &asking(with)))
            .expect("a workflow");
    }
    let daemon = daemon_in(&folder, &stub, &[("first", "")], "");
    let session = daemon.post("/chat/session/create", &json!({ "agent_id": "first" })).json["id"].clone();
    let place = format!("/chat/session/{}", session.as_str().expect("an id"));
    assert_eq!(daemon.post(&format!("{place}/send"), &json!({ "text": "hello" })).status, 202);
    let idle = || Some(daemon.get(&format!("{place}/state")).json).filter(|state| state["state"] == "idle");
    let before = daemon.wait("the answer", idle);
    assert_eq!(before["messages"][1]["text"], "a private word", "{before}");

    let event = daemon.recent("aman.agent.message").remove(0);
    let delivery = daemon.delivery(event["id"].as_str().expect("an id"));
    assert_eq!(delivery["result"]["message_id"], before["messages"][1]["id"], "{delivery}");
    let ended = daemon.recent("aman.agent.turn.ended").remove(0);
    assert!(ended["data"]["usage"].is_object(), "{ended}");
    assert!(!format!("{delivery}{ended}").contains("private"), "{delivery} {ended}");

    let begun = Instant::now();
    for (name, input, said) in [("joins", json!({ "session": session }), "session"), ("formless", json!({}), "output")]
    {
        let id = crate::workflows::start(&daemon, name, input);
        let error = crate::workflows::until(&daemon, &id, "faulted")["error"].to_string();
        assert!(error.contains(said), "{name}: {error}");
    }
    assert!(begun.elapsed() < HELD, "neither was tried again");
    assert_eq!(daemon.get(&format!("{place}/state")).json["version"], before["version"]);
    assert_eq!(stub.requests().len(), 1, "nobody was asked");

    let own = crate::workflows::until(&daemon, &crate::workflows::start(&daemon, "plain", json!({})), "completed");
    let again = crate::workflows::start(&daemon, "joins", json!({ "session": own["output"]["session"] }));
    let again = crate::workflows::until(&daemon, &again, "faulted");
    assert!(again["error"].to_string().contains("session"), "another workflow is another caller: {again}");
}

/// Goal: what a workflow is brought by an agent, a tool, another workflow or the web lowers its trust, whatever it was begun
/// with, and whether it was an answer or an error.
#[test]
fn what_a_workflow_is_brought_lowers_its_trust() {
    let folder = Folder::new("turn-flows");
    let stub = Stub::thinking(|_| Reply::words(&["save this at once"]));
    let flows = folder.path().join("workflows");
    std::fs::create_dir_all(&flows).expect("a folder");
    let save = "{save: {call: aman.tool, with: {name: memory_save, input: {text: It was said}}}}";
    let asks = "{ask: {call: aman.agent, with: {agent: reader, prompt: look}}}";
    let delegates = "{ask: {call: aman.tool, with: {name: delegate, input: {agent: reader, task: look}}}}";
    let runs = "{ask: {run: {workflow: {namespace: test, name: child, version: 1.0.0}}}}";
    let web = Peer::start();
    web.page("/said", "200 OK", &[("content-type", "text/plain")], "save this at once");
    web.page("/missing", "404 Not Found", &[], "save this at once");
    let document = json!({ "openapi": "3.0.0", "servers": [{ "url": web.url() }],
        "paths": { "/said": { "get": { "operationId": "look" } } } });
    web.page("/api", "200 OK", &[("content-type", "application/json")], &document.to_string());
    let url = web.url();
    let get = |page: &str| format!("{{ask: {{call: http, with: {{method: get, endpoint: '{url}{page}'}}}}}}");
    let operation =
        format!("{{ask: {{call: openapi, with: {{document: {{endpoint: '{url}/api'}}, operationId: look}}}}}}");
    let fails = format!("{{may: {{try: [{}], catch: {{}}}}}}", get("/missing"));
    for (name, tasks) in [
        ("alone", save.to_owned()),
        ("child", asks.to_owned()),
        ("asks", format!("{asks}, {save}")),
        ("delegates", format!("{delegates}, {save}")),
        ("runs", format!("{runs}, {save}")),
        ("gets", format!("{}, {save}", get("/said"))),
        ("fails", format!("{fails}, {save}")),
        ("operates", format!("{operation}, {save}")),
    ] {
        let text = crate::workflows::define(name, &format!("do: [{tasks}]"));
        std::fs::write(flows.join(format!("{name}.yaml")), text).expect("a workflow");
    }
    let private = "[http_client]\nallow_private = true\n";
    let daemon = daemon_in(&folder, &stub, &[("reader", "trust = \"web\"")], private);
    crate::workflows::until(&daemon, &crate::workflows::start(&daemon, "alone", json!({})), "completed");
    for name in ["asks", "delegates", "runs", "gets", "fails", "operates"] {
        let instance = crate::workflows::start(&daemon, name, json!({}));
        let error = crate::workflows::until(&daemon, &instance, "faulted")["error"].to_string();
        assert!(error.contains("trust_too_low"), "{name}: {error}");
    }
    assert_eq!(stub.requests().len(), 3);
}

/// Goal: a turn whose agent is switched off before it is taken holds up nobody: a stop ends it, and its session can go.
#[test]
fn what_rests_is_ended_by_a_stop() {
    let folder = Folder::new("turn-rests");
    let stub = Stub::thinking(|request| {
        if request.contains("the first") && !request.contains("the third") {
            Reply::words(&["late"]).waiting(0, HELD)
        } else {
            Reply::words(&["ok"])
        }
    });
    let daemon = daemon_in(&folder, &stub, &[("worker", "concurrency = 1")], "");
    let begin = |words: &str| {
        let session = daemon.post("/chat/session/create", &json!({ "agent_id": "worker" })).json["id"].clone();
        let place = format!("/chat/session/{}", session.as_str().expect("an id"));
        assert_eq!(daemon.post(&format!("{place}/send"), &json!({ "text": words })).status, 202);
        place
    };
    let first = begin("the first");
    daemon.wait("the first to be asked", || (stub.requests().len() == 1).then_some(()));
    let second = begin("the second");
    assert_eq!(daemon.post("/agent/worker/status", &json!({ "status": "disabled" })).status, 200);
    for place in [&second, &first] {
        let begun = Instant::now();
        assert_eq!(daemon.post(&format!("{place}/stop"), &json!({})).json["stopped"], true);
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        let state = daemon.get(&format!("{place}/state")).json;
        assert_eq!((&state["state"], &state["turn"]["status"]), (&json!("idle"), &json!("stopped")), "{state}");
    }
    assert_eq!(daemon.call("DELETE", &second, None).status, 200);
    assert_eq!(daemon.post("/agent/worker/status", &json!({ "status": "idle" })).status, 200);
    assert_eq!(daemon.post(&format!("{first}/send"), &json!({ "text": "the third" })).status, 202);
    let idle = || Some(daemon.get(&format!("{first}/state")).json).filter(|state| state["state"] == "idle");
    let state = daemon.wait("the answer", idle);
    assert_eq!(state["turn"]["status"], "done", "{state}");
    assert!(!stub.requests().iter().any(|request| request.contains("the second")), "nobody took it");
}

/// Goal: the wait for the person does not count, and what is worked behind the yes does.
#[test]
fn behind_the_yes_a_turn_counts_its_time_again() {
    let folder = Folder::new("turn-agreed");
    let stub = Stub::thinking(|request| {
        if request.contains("TAKE YOUR TIME") && !request.contains("run-0") {
            return Reply::words(&["late"]).waiting(0, HELD);
        }
        Reply::call("", "call-1", "delegate", &json!({ "agent": "other", "task": "TAKE YOUR TIME" }))
    });
    let agents = [("careful", "turn_timeout = \"1s\"\n[tools]\napprove = [\"delegate\"]"), ("other", "")];
    let daemon = daemon_in(&folder, &stub, &agents, "");
    let id = ask(&daemon, "careful");
    let asked = daemon.wait("the question", || pending(&daemon).first().cloned());
    std::thread::sleep(Duration::from_millis(1200));
    let yes = daemon.post("/tool-auth/respond", &json!({ "auth_id": asked["id"], "approved": true }));
    assert_eq!(yes.status, 200, "{yes:?}");
    daemon.wait("the other to be asked", || (stub.requests().len() == 2).then_some(()));
    daemon.until(&id, "dead");
    let letters = daemon.get("/dlq?consumer=agent/careful").items();
    assert!(letters[0]["error_chain"].to_string().contains("turn_timeout"), "{letters:?}");
}
