//! Work that nobody sits in front of: jobs of cron for agents, jobs that agents plan, skills in idle time, skills whose agent is
//! away, and what is left of a call when whoever made it is gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Daemon, Folder, TOKEN};
use crate::models::stub::{Reply, Stub};
use crate::turns::{HELD, daemon_in, pending};

/// The body of a request to a model.
fn body(request: &str) -> Value {
    serde_json::from_str(request.split_once("\r\n\r\n").expect("a body").1).expect("JSON")
}

/// The names of the tools that a model was shown.
fn shown_tools(request: &str) -> Vec<String> {
    let body = body(request);
    let tools = body["tools"].as_array().cloned().unwrap_or_default();
    tools.iter().map(|tool| tool["function"]["name"].as_str().expect("a name").to_owned()).collect()
}

/// What was said last to a model.
fn last(request: &str) -> Value {
    body(request)["messages"].as_array().and_then(|all| all.last().cloned()).expect("a message")
}

/// Goal: a job with an agent is a turn of that agent which the job pays for; a turn that fails is a failed run and tells so by an
/// event of its own, and enough of them switch the job off.
#[test]
fn a_job_of_cron_is_a_turn_of_its_agent() {
    let broken = Arc::new(AtomicBool::new(false));
    let is_broken = Arc::clone(&broken);
    let model = Stub::thinking(move |_| match is_broken.load(Ordering::Acquire) {
        true => Reply::status("401 Unauthorized", "", "{\"error\":{\"message\":\"bad key\"}}"),
        false => Reply::words(&["all is watered"]),
    });
    let folder = Folder::new("agent-cron");
    let daemon = daemon_in(&folder, &model, &[("gardener", "")], "");
    let job = json!({ "id": "plants", "expression": "0 8 1 1 *", "agent_id": "gardener", "payload": { "what": "roses" },
        "max_failures": 2 });
    let added = daemon.post("/cron/add", &job);
    assert_eq!((added.status, &added.json["agent_id"]), (201, &json!("gardener")), "{added:?}");
    let run = |wanted: &str, count: usize| {
        assert!([200, 202].contains(&daemon.post("/cron/plants/run", &json!({})).status));
        daemon.wait("the run to end", || {
            let runs = daemon.get("/cron/plants/runs").items();
            (runs.iter().filter(|run| run["status"] == wanted).count() == count).then_some(runs)
        })
    };
    run("done", 1);
    assert!(last(&model.requests()[0])["content"].to_string().contains("roses"));
    let ended = daemon.recent("aman.agent.turn.ended");
    let told = &ended[0]["data"];
    assert_eq!(
        (&told["agent"], &told["status"], &told["text"]),
        (&json!("gardener"), &json!("done"), &json!("all is watered"))
    );
    let session = daemon.get(&format!("/chat/session/{}/state", told["session"].as_str().expect("an id"))).json;
    assert_eq!((&session["kind"], &session["agent_id"]), (&json!("event"), &json!("gardener")), "{session}");
    let usage = daemon.get("/usage").json.to_string();
    assert!(usage.contains("job/cron/plants"), "{usage}");

    broken.store(true, Ordering::Release);
    run("failed", 1);
    let failed = daemon.recent("aman.agent.turn.ended");
    assert_eq!(failed.len(), 2, "the dead letter and what tells of it came together: {failed:?}");
    let failed = failed.iter().find(|event| event["data"]["status"] == "failed").expect("a failed one");
    assert_eq!(failed["data"]["error"]["code"], "model_auth", "{failed}");
    assert_eq!(daemon.get("/cron/plants").json["failures"], 1);
    run("failed", 2);
    let off = daemon
        .wait("the job to be off", || Some(daemon.get("/cron/plants").json).filter(|job| job["enabled"] == false));
    assert!(off.to_string().contains("2 runs in a row failed"), "{off}");
    assert_eq!(daemon.get("/dlq?consumer=agent/gardener").items().len(), 2);
}

/// Goal: an agent plans a job, and removes it again, when the person agrees to exactly that; a no leaves everything as it is.
#[test]
fn an_agent_plans_jobs_with_an_approval() {
    let model = Stub::thinking(|request| {
        let last = last(request);
        let said = last["content"].to_string();
        if last["role"] == "tool" {
            return Reply::words(&["so: ", &said]);
        }
        let (tool, arguments) = match said.contains("PLAN IT") {
            true => ("schedule_add", json!({ "id": "walk", "expression": "0 9 * * *", "payload": { "dog": "Rex" } })),
            false => ("schedule_remove", json!({ "id": "walk" })),
        };
        Reply::call("", "call-1", tool, &arguments)
    });
    let folder = Folder::new("agent-plans");
    let agents = [("planner", "[tools]\nallow = [\"schedule_*\"]\napprove = [\"schedule_*\"]")];
    let daemon = daemon_in(&folder, &model, &agents, "");
    let turn = |words: &str, approved: bool| {
        let event = json!({ "source": "test", "type": "t.plan", "agent_id": "planner", "data": words });
        let id = daemon.post("/events/push", &event).json["id"].as_str().expect("an id").to_owned();
        let asked = daemon.wait("the question", || pending(&daemon).first().cloned());
        assert!(asked.to_string().contains("agent.planner.walk"), "{asked}");
        let answer = daemon.post("/tool-auth/respond", &json!({ "auth_id": asked["id"], "approved": approved }));
        assert_eq!(answer.status, 200, "{answer:?}");
        daemon.until(&id, "done");
        daemon.delivery(&id)["result"]["text"].as_str().expect("text").to_owned()
    };
    assert!(turn("PLAN IT", false).contains("approval_denied"));
    assert_eq!(daemon.get("/cron/agent.planner.walk").status, 404);
    assert!(turn("PLAN IT", true).contains("Planned"));
    let job = daemon.get("/cron/agent.planner.walk").json;
    assert_eq!((&job["agent_id"], &job["payload"]["dog"]), (&json!("planner"), &json!("Rex")), "{job}");
    assert!(turn("drop it", false).contains("approval_denied"));
    assert_eq!(daemon.get("/cron/agent.planner.walk").status, 200);
    assert!(turn("drop it", true).contains("Removed"));
    assert_eq!(daemon.get("/cron/agent.planner.walk").status, 404);
    let records = daemon.all("/audit-log?action=tool.execute");
    let outcomes: Vec<&str> = records.iter().filter_map(|record| record["outcome"].as_str()).collect();
    assert_eq!(outcomes, ["done", "refused", "done", "refused"], "{records:?}");
}

/// A skill for idle time.
fn idle_skill(folder: &Folder, name: &str, kind: &str) {
    let place = folder.path().join("skills").join(name);
    std::fs::create_dir_all(&place).expect("a folder");
    let text = format!(
        "---\nname: {name}\ndescription: For idle time\nallowed-tools: memory_search Bash(git:*) Read(x)\nmetadata:\n  \
         aman.tags: idle_run {kind}\n---\nREAD ON IN THE BOOK\n"
    );
    std::fs::write(place.join("SKILL.md"), text).expect("a skill");
}

/// Goal: an idle agent does a skill that is made for it, with the tools that the skill names and no other, and goes on with the
/// same work in the same session; whoever is busy, off or not there is not asked.
#[test]
fn idle_agents_do_what_is_made_for_idle_time() {
    let model = Stub::thinking(|request| {
        let slow = if request.contains("TAKE YOUR TIME") { HELD } else { Duration::ZERO };
        let pages = body(request)["messages"]
            .as_array()
            .map_or(0, |all| all.iter().filter(|one| one["role"] == "user").count());
        Reply::words(&[&format!("read page {pages}")]).waiting(0, slow)
    });
    let folder = Folder::new("agent-idle");
    idle_skill(&folder, "reading", "study");
    let daemon = daemon_in(&folder, &model, &[("off", ""), ("busy", "instructions = \"TAKE YOUR TIME\"")], "");
    assert_eq!(daemon.post("/agent/off/status", &json!({ "status": "disabled" })).status, 200);
    let available = || daemon.get("/agents/idle-availability").json["agents"].clone();
    let study = json!({ "work": false, "study": true, "fun": false });
    let none = json!({ "work": false, "study": false, "fun": false });
    assert_eq!(available(), json!({ "aman": study, "busy": study, "off": none }));

    let run = |body: Value| daemon.post("/idle-run", &body);
    let waited = |work: &str| {
        let ran = run(json!({ "tag": "study", "background": false, "project_key": "book", "work_id": work }));
        assert_eq!((ran.status, &ran.json["skill"]), (202, &json!("reading")), "{ran:?}");
        assert_eq!(ran.json["result"]["status"], "done", "{ran:?}");
        (ran.json["session_id"].as_str().expect("an id").to_owned(), ran.json["result"]["text"].clone())
    };
    let (first, text) = waited("one");
    assert_eq!(text, "read page 1");
    assert_eq!(waited("one"), (first.clone(), json!("read page 2")), "it goes on where it was");
    let (other, text) = waited("two");
    assert!(other != first && text == "read page 1", "{other} {text}");
    let asked = &model.requests()[0];
    assert!(asked.contains("READ ON IN THE BOOK") && asked.contains("project: book"), "{asked}");
    assert_eq!(shown_tools(asked), ["memory_search", "read_skill"], "what the skill names, and what reads it");

    let token = format!("Bearer {TOKEN}");
    let headers = [("authorization", token.as_str()), ("idempotency-key", "k1")];
    let once = json!({ "tag": "study", "agent_key": "busy" }).to_string();
    let begun = daemon.send_bytes("POST", "/idle-run", &headers, once.as_bytes());
    assert!(begun.status == 202 && begun.json.get("result").is_none(), "in the background: {begun:?}");
    daemon.wait("the agent to be busy", || (daemon.get("/agent/busy").json["status"] == "busy").then_some(()));
    let again = daemon.send_bytes("POST", "/idle-run", &headers, once.as_bytes());
    assert_eq!((again.status, &again.json["run_id"]), (202, &begun.json["run_id"]), "{again:?}");
    assert_eq!(available()["busy"], none);
    for (body, status, code, word) in [
        (json!({ "tag": "study", "agent_key": "busy" }), 409, "invalid_state", "busy"),
        (json!({ "tag": "study", "agent_key": "off" }), 409, "invalid_state", "switched off"),
        (json!({ "tag": "study", "agent_key": "nobody" }), 404, "not_found", "nobody"),
        (json!({ "tag": "fun" }), 409, "invalid_state", "idle_run"),
        (json!({ "tag": "sleep" }), 400, "invalid_input", "tag"),
        (json!({}), 400, "invalid_input", "tag"),
        (json!({ "tag": "study", "background": "yes" }), 400, "invalid_input", "background"),
        (json!({ "tag": "study", "work_id": "" }), 400, "invalid_input", "work_id"),
    ] {
        let answer = run(body.clone());
        assert_eq!((answer.status, answer.code()), (status, code), "{body}: {answer:?}");
        assert!(answer.json.to_string().contains(word), "{body}: {answer:?}");
    }
    let records = daemon.all("/audit-log?action=agent.idle_run");
    assert_eq!(records.iter().filter(|record| record["outcome"] == "done").count(), 4, "{records:?}");
}

/// Goal: a skill whose agent is switched off waits without a look at the clock, and is done as soon as the agent is back.
#[test]
fn a_skill_waits_for_its_agent() {
    let model = Stub::thinking(|_| Reply::words(&["done at last"]));
    let folder = Folder::new("agent-away");
    let place = folder.path().join("skills/errand");
    std::fs::create_dir_all(&place).expect("a folder");
    let text = "---\nname: errand\ndescription: Runs errands\nmetadata:\n  aman.on: t.errand\n  aman.run: agent\n  \
                aman.agent: worker\n---\nRun\n";
    std::fs::write(place.join("SKILL.md"), text).expect("a skill");
    let mut daemon = daemon_in(&folder, &model, &[("worker", "")], "");
    let set = |daemon: &Daemon, status: &str| {
        assert_eq!(daemon.post("/agent/worker/status", &json!({ "status": status })).status, 200);
    };
    set(&daemon, "disabled");
    let id = daemon.push("t.errand", json!({}));
    daemon.writes_nothing_for(Duration::from_millis(1500));
    assert_eq!((daemon.delivery(&id)["attempt"].clone(), model.requests().len()), (json!(0), 0));
    daemon.kill();
    daemon.again();
    daemon.writes_nothing_for(Duration::from_millis(300));
    let begun = Instant::now();
    set(&daemon, "idle");
    daemon.until(&id, "done");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(model.requests().len(), 1);

    set(&daemon, "disabled");
    let late = daemon.push("t.errand", json!({}));
    daemon.writes_nothing_for(Duration::from_millis(300));
    assert_eq!(daemon.post("/skill/errand/disable", &json!({})).status, 200);
    set(&daemon, "idle");
    daemon.writes_nothing_for(Duration::from_secs(1));
    assert!(daemon.outcome(&late) != "done" && model.requests().len() == 1, "it was switched off meanwhile");
}

/// Goal: when the delivery of a turn that waits for another agent dies with the daemon, that turn ends as interrupted and its
/// session goes on; whom it asked comes to an end of its own, once.
#[test]
fn a_call_outlives_the_turn_that_made_it() {
    let model = Stub::thinking(|request| {
        if request.contains("TAKE YOUR TIME") && !request.contains("ask the other") {
            return Reply::words(&["here I am"]).waiting(0, Duration::from_secs(3));
        }
        Reply::call("", "call-1", "delegate", &json!({ "agent": "other", "task": "TAKE YOUR TIME" }))
    });
    let folder = Folder::new("agent-orphans");
    let mut daemon = daemon_in(&folder, &model, &[("first", ""), ("other", "")], "");
    let event = json!({ "source": "test", "type": "t.ask", "agent_id": "first", "data": "ask the other",
        "delivery": "at_most_once" });
    let id = daemon.post("/events/push", &event).json["id"].as_str().expect("an id").to_owned();
    daemon.wait("the other to be asked", || (model.requests().len() == 2).then_some(()));
    daemon.kill();
    daemon.again();
    daemon.until(&id, "dead");
    let letters = daemon.get("/dlq?consumer=agent/first").items();
    assert_eq!(letters[0]["reason"], "interrupted", "{letters:?}");
    let sessions = daemon.get("/chat/sessions?agent_id=first").items();
    let place = format!("/chat/session/{}/state", sessions[0]["id"].as_str().expect("an id"));
    let state = daemon.get(&place).json;
    assert_eq!((&state["state"], &state["turn"]["status"]), (&json!("idle"), &json!("failed")), "{state}");
    assert_eq!(state["turn"]["error"]["code"], "interrupted", "{state}");
    // Named after the step that asked: `<turn>/<number>`.
    let call = daemon.recent("aman.agent.call").remove(0)["id"].as_str().expect("an id").replace('/', "%2F");
    daemon.until(&call, "done");
    assert_eq!(daemon.delivery(&call)["result"]["text"], "here I am");
    let ended = daemon.recent("aman.agent.turn.ended");
    assert_eq!(ended.iter().filter(|event| event["data"]["agent"] == "other").count(), 1, "{ended:?}");
    daemon.wait("nobody to be busy", || {
        ["first", "other"].iter().all(|id| daemon.get(&format!("/agent/{id}")).json["status"] == "idle").then_some(())
    });
}
