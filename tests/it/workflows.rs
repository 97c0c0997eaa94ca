//! Workflows: definitions over HTTP and from files, instances that start, wait, call, fail and go on, also after SIGKILL.

mod calls;
mod conformance;
mod crash;
mod lasting;
mod lifecycle;
mod processes;
pub mod room;
mod schedules;

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Answer, Daemon, Folder, TOKEN, say, write_skill};
use crate::peer::Peer;

/// The definition `name` with these tasks, or whole sections.
pub fn define(name: &str, body: &str) -> String {
    format!("document: {{dsl: 1.0.3, namespace: test, name: {name}, version: 1.0.0}}\n{body}\n")
}

/// Stores a definition.
pub fn put(daemon: &Daemon, name: &str, text: &str) -> Answer {
    let token = format!("Bearer {TOKEN}");
    let headers = [("authorization", token.as_str()), ("content-type", "application/yaml")];
    daemon.send_bytes("PUT", &format!("/workflow/{name}"), &headers, text.as_bytes())
}

/// Stores a definition that is good.
pub fn stored(daemon: &Daemon, name: &str, body: &str) {
    let answer = put(daemon, name, &define(name, body));
    assert!([200, 201].contains(&answer.status), "{answer:?}");
}

/// Starts an instance and gives its id.
pub fn start(daemon: &Daemon, name: &str, input: Value) -> String {
    let answer = daemon.post(&format!("/workflow/{name}/create"), &json!({ "input": input }));
    assert_eq!(answer.status, 201, "{answer:?}");
    answer.json["id"].as_str().expect("an id").to_owned()
}

/// An instance with its journal.
pub fn instance(daemon: &Daemon, id: &str) -> Value {
    daemon.get(&format!("/workflow-instance/{id}")).json
}

/// Waits until an instance stands so.
pub fn until(daemon: &Daemon, id: &str, status: &str) -> Value {
    daemon.wait(&format!("{id} to be {status}, which is {}", instance(daemon, id)), || {
        Some(instance(daemon, id)).filter(|shown| shown["status"] == status)
    })
}

/// Runs an instance to its end and gives its output.
fn completed(daemon: &Daemon, name: &str, input: Value) -> Value {
    let id = start(daemon, name, input);
    until(daemon, &id, "completed")["output"].clone()
}

#[test]
fn definitions_are_checked_stored_and_drawn() {
    let daemon = Daemon::start();
    let text = define("order", "do:\n  - a: {set: {x: 1}}\n  - b: {wait: PT1H}");
    let dry = daemon.send_bytes(
        "PUT",
        "/workflow/order?dry_run=true",
        &[("authorization", &format!("Bearer {TOKEN}")), ("content-type", "application/yaml")],
        text.as_bytes(),
    );
    assert_eq!((dry.status, dry.json["tasks"].clone()), (200, json!(["/do/0/a", "/do/1/b"])), "{dry:?}");
    assert_eq!(daemon.get("/workflow/order").status, 404);
    let first = put(&daemon, "order", &text);
    assert_eq!((first.status, first.json["name"].as_str()), (201, Some("order")), "{first:?}");
    assert_eq!(put(&daemon, "order", &text).status, 200);
    let changed = put(&daemon, "order", &text.replace("1.0.0}", "1.1.0}"));
    assert_ne!(changed.json["digest"], first.json["digest"]);
    let shown = daemon.get("/workflow/order").json;
    assert_eq!(
        (shown["versions"].as_array().map(Vec::len), &shown["definition"]["do"][0]["a"]["set"]["x"]),
        (Some(2), &json!(1))
    );
    let chart = daemon.get("/workflow/order?format=mermaid");
    assert!(String::from_utf8_lossy(&chart.body).starts_with("flowchart TD"), "{chart:?}");
    let listed: Vec<String> = daemon
        .get("/workflows")
        .items()
        .iter()
        .map(|one| one["name"].as_str().unwrap_or_default().to_owned())
        .collect();
    let bundled =
        ["approve-incoming-file", "daily-digest", "explore", "order", "probe-until-healthy", "webhook-fan-out"];
    assert_eq!(listed, bundled);

    let refused = put(&daemon, "no", &define("no", "do:\n  - a:\n      call: asyncapi\n      with: {}"));
    assert_eq!((refused.status, refused.code()), (400, "unsupported_construct"), "{refused:?}");
    assert_eq!(refused.fields(), ["/do/0/a/call"]);
    let reason = refused.json["errors"][0]["reason"].as_str().unwrap_or_default().to_owned();
    assert!(reason.contains("line 4, column 13") && reason.contains("asyncapi"), "{reason}");
    assert_eq!(put(&daemon, "other", &text).fields(), ["/document/name"]);
    let exec = put(&daemon, "sh", &define("sh", "do: [{a: {run: {shell: {command: id}}}}]"));
    assert_eq!((exec.status, exec.code()), (403, "exec_not_allowed"));
    assert_eq!(daemon.call("DELETE", "/workflow/order", None).json["deleted"], true);
    assert_eq!(daemon.get("/workflow/order").status, 404);
    let actions: Vec<Value> =
        daemon.get("/audit-log?limit=100").items().iter().map(|one| one["action"].clone()).collect();
    assert_eq!(actions.iter().filter(|action| **action == "workflow.put").count(), 6, "{actions:?}");
}

#[test]
fn an_instance_runs_and_its_journal_tells_of_it() {
    let daemon = Daemon::start();
    stored(
        &daemon,
        "sum",
        "input: {schema: {document: {type: object, required: [n]}}}\ndo: [{a: {set: {m: '${ .n + 1 }'}, export: {as: .}}}, {s: {if: 'false', set: {}, output: {as: .}}}, {b: {set: {all: '${ [.m, $context.m, $workflow.input.n] }'}}}]"
            .replace("set: {}, output: {as: .}", "set: {x: 1}").as_str(),
    );
    assert_eq!(daemon.post("/workflow/sum/create", &json!({ "input": {} })).fields(), ["input"]);
    assert_eq!(daemon.post("/workflow/none/create", &json!({})).status, 404);
    let id = start(&daemon, "sum", json!({ "n": 1 }));
    let shown = until(&daemon, &id, "completed");
    assert_eq!(shown["output"], json!({ "all": [2, 2, 1] }));
    let steps: Vec<(Value, Value)> = shown["steps"]
        .as_array()
        .expect("steps")
        .iter()
        .map(|step| (step["task"].clone(), step["status"].clone()))
        .collect();
    let wanted = [("/do/0/a", "completed"), ("/do/1/s", "skipped"), ("/do/2/b", "completed")];
    assert_eq!(steps, wanted.map(|(task, status)| (json!(task), json!(status))));
    let keyed = |key: &str| {
        daemon.post("/workflow/sum/create", &json!({ "input": { "n": 1 }, "dedup_key": key })).json["id"].clone()
    };
    assert_eq!(keyed("k"), keyed("k"));
    assert_ne!(keyed("k"), keyed("l"));
    let done = || daemon.get("/workflow-instances?workflow=sum&status=completed").items().len();
    daemon.wait("all three to complete", || (done() == 3).then_some(()));
    let page = daemon.get("/workflow-instances?workflow=sum&status=completed&limit=2");
    assert_eq!(page.items().len(), 2);
    assert!(page.json["next_cursor"].is_string());
    assert_eq!(daemon.all("/workflow-instances?limit=1").len(), 3);
    let (code, out, err) = daemon.cli(&["workflow", "show-instance", &id]);
    assert!(code == 0 && out.contains("/do/2/b") && out.contains("completed"), "{out}{err}");
    let chart = daemon.get(&format!("/workflow-instance/{id}?format=mermaid"));
    assert!(
        String::from_utf8_lossy(&chart.body).contains("class t0,t2 done"),
        "{}",
        String::from_utf8_lossy(&chart.body)
    );
}

#[test]
fn events_start_instances_and_reach_those_that_wait() {
    let daemon = Daemon::start();
    stored(
        &daemon,
        "on-order",
        "schedule: {on: {one: {with: {type: order.placed}}}}\ndo: [{w: {listen: {to: {one: {with: {type: order.paid}, correlate: {id: {from: .data.id, expect: '${ .[0].data.id }'}}}}}}}, {e: {emit: {event: {with: {source: 'https://shop', type: order.done, data: '${ {id: .[0].id} }'}}}}}]",
    );
    let one = daemon.push("order.placed", json!({ "id": 1 }));
    daemon.push("order.placed", json!({ "id": 2 }));
    let waiting = || daemon.get("/workflow-instances?workflow=on-order&status=waiting").items();
    daemon.wait("two instances that wait", || (waiting().len() == 2).then_some(()));
    daemon.push("order.paid", json!({ "id": 3 }));
    daemon.push("order.paid", json!({ "id": 2 }));
    let done = daemon.wait("the event at the end", || daemon.recent("order.done").first().cloned());
    assert_eq!(done["data"], json!({ "id": 2 }));
    assert_eq!(waiting().len(), 1);
    let left = waiting()[0].clone();
    assert_eq!(left["cause"]["id"].as_str(), Some(one.as_str()));
    let trace = daemon.dump(&one)["event"]["traceid"].clone();
    assert_eq!(left["trace_id"], trace);
    let id = left["id"].as_str().expect("an id").to_owned();
    let deaf = daemon.post(&format!("/workflow-instance/{id}/event"), &json!({ "type": "order.lost" }));
    assert_eq!((deaf.status, deaf.code()), (409, "invalid_state"));
    let heard =
        daemon.post(&format!("/workflow-instance/{id}/event"), &json!({ "type": "order.paid", "data": { "id": 1 } }));
    assert_eq!(heard.status, 200, "{heard:?}");
    until(&daemon, &id, "completed");
    let why = daemon.get(&format!("/events/{one}/why")).json;
    assert!(
        why["considered"].as_array().is_some_and(|all| all.iter().any(|c| c["consumer"] == "workflow/on-order")),
        "{why}"
    );
}

#[test]
fn calls_carry_keys_fail_and_are_taken_up_again() {
    let peer = Peer::start();
    let daemon = Daemon::configured(
        "[http_client]\nallow_private = true\n[workflows]\nsecrets = { shop = \"canary-secret-of-the-shop\" }\n",
    );
    let body = format!(
        "use: {{secrets: [shop]}}\ndo: [{{c: {{call: http, with: {{method: post, endpoint: {{uri: '{}/orders/{{id}}', authentication: {{bearer: {{use: shop}}}}}}, query: {{a: 'x y'}}, body: {{n: '${{ .n }}'}}}}}}}}, {{d: {{set: {{got: '${{ .ok }}'}}}}}}]",
        peer.url()
    );
    stored(&daemon, "shop", &body);
    peer.answer("503 Service Unavailable", &[], "busy");
    peer.answer("200 OK", &[("content-type", "application/json")], "{\"ok\": 7}");
    let id = start(&daemon, "shop", json!({ "id": "a/b", "n": 4 }));
    let faulted = until(&daemon, &id, "faulted");
    assert_eq!(faulted["error"]["status"], 503);
    assert_eq!(faulted["error"]["instance"], "/do/0/c");
    assert!(!faulted.to_string().contains("canary"), "{faulted}");
    assert_eq!(daemon.post(&format!("/workflow-instance/{id}/retry"), &json!({})).code(), "confirmation_required");
    assert_eq!(daemon.post_confirmed(&format!("/workflow-instance/{id}/retry"), &json!({})).status, 200);
    assert_eq!(until(&daemon, &id, "completed")["output"], json!({ "got": 7 }));
    let requests = peer.requests();
    assert_eq!(requests.len(), 2);
    for request in &requests {
        assert!(request.starts_with("POST /orders/a%2Fb?a=x%20y HTTP/1.1"), "{request}");
        assert!(request.contains("authorization: Bearer canary-secret-of-the-shop"), "{request}");
        assert!(request.contains("idempotency-key: ") && request.ends_with("{\"n\":4}"), "{request}");
    }
    let closed = Daemon::start();
    stored(
        &closed,
        "shop",
        &format!("do: [{{c: {{call: http, with: {{method: get, endpoint: '{}/'}}}}}}]", peer.url()),
    );
    let id = start(&closed, "shop", json!({}));
    assert_eq!(until(&closed, &id, "faulted")["error"]["status"], 403);
}

#[test]
fn instances_are_paused_cancelled_and_asked() {
    let daemon = Daemon::start();
    stored(&daemon, "wait", "do: [{w: {wait: {milliseconds: 3000}}}, {d: {set: {done: 1}}}]");
    stored(
        &daemon,
        "ask",
        "do: [{q: {call: aman.approve, with: {title: May I?, message: Please.}}}, {d: {set: {said: '${ .approved }', why: '${ .reason }'}}}]",
    );
    stored(&daemon, "outer", "do: [{r: {run: {workflow: {namespace: test, name: ask, version: latest}}}}]");
    let id = start(&daemon, "wait", json!({}));
    let path = |what: &str| format!("/workflow-instance/{id}/{what}");
    assert_eq!(daemon.post(&path("pause"), &json!({})).json["status"], "paused");
    assert_eq!(daemon.post(&path("pause"), &json!({})).code(), "invalid_state");
    std::thread::sleep(Duration::from_millis(3500));
    assert_eq!(instance(&daemon, &id)["status"], "paused");
    assert_eq!(daemon.post(&path("resume"), &json!({})).status, 200);
    assert_eq!(until(&daemon, &id, "completed")["output"], json!({ "done": 1 }));
    assert_eq!(daemon.post_confirmed(&path("cancel"), &json!({})).code(), "invalid_state");

    // Some are paused before their first step.
    let ids: Vec<String> = (0..20).map(|_| start(&daemon, "wait", json!({}))).collect();
    for id in &ids {
        assert_eq!(daemon.post(&format!("/workflow-instance/{id}/pause"), &json!({})).json["status"], "paused");
    }
    for id in &ids {
        assert_eq!(daemon.post(&format!("/workflow-instance/{id}/resume"), &json!({})).status, 200);
    }
    for id in &ids {
        until(&daemon, id, "completed");
    }

    for (deny, wanted) in [(false, json!({ "said": true, "why": null })), (true, json!({ "said": false, "why": "no" }))]
    {
        let id = start(&daemon, "ask", json!({}));
        until(&daemon, &id, "waiting");
        let (code, out, err) = if deny {
            daemon.cli(&["workflow", "approve", &id, "--deny", "--reason", "no"])
        } else {
            daemon.cli(&["workflow", "approve", &id])
        };
        assert_eq!(code, 0, "{out}{err}");
        assert_eq!(until(&daemon, &id, "completed")["output"], wanted);
    }
    let outer = start(&daemon, "outer", json!({}));
    until(&daemon, &outer, "waiting");
    let inner = daemon
        .wait("the inner instance", || daemon.get("/workflow-instances?workflow=ask&status=waiting").items().pop());
    assert_eq!(
        daemon.post_confirmed(&format!("/workflow-instance/{outer}/cancel"), &json!({})).json["status"],
        "cancelled"
    );
    until(&daemon, inner["id"].as_str().expect("an id"), "cancelled");
    let outer = start(&daemon, "outer", json!({}));
    let inner = daemon
        .wait("the inner instance", || daemon.get("/workflow-instances?workflow=ask&status=waiting").items().pop());
    assert_eq!(daemon.cli(&["workflow", "approve", inner["id"].as_str().expect("an id")]).0, 0);
    assert_eq!(until(&daemon, &outer, "completed")["output"]["said"], true);
}

#[test]
fn files_skills_schedules_and_commands() {
    let folder = Folder::new("flows");
    let flows = folder.path().join("workflows");
    std::fs::create_dir_all(&flows).expect("a folder");
    let shell = define(
        "sh",
        "do: [{a: {run: {shell: {command: 'cat; printf %s \"$1 $X\"', arguments: ['${ .n }'], environment: {X: y}, stdin: '${ .text }'}, return: all}}}]",
    );
    std::fs::write(flows.join("sh.yaml"), shell).expect("a file");
    std::fs::write(flows.join("broken.yaml"), "do: [").expect("a file");
    write_skill(folder.path(), "echo", &[], "cat > /dev/null; echo '{\"result\": {\"hello\": 1}}'\n");
    std::fs::write(folder.path().join("aman.toml"), "").expect("aman.toml");
    let daemon = Daemon::start_in(folder.path());
    assert!(daemon.log().contains("broken.yaml"), "{}", daemon.log());
    let output = completed(&daemon, "sh", json!({ "n": 3, "text": "in " }));
    assert_eq!(output, json!({ "code": 0, "stdout": "in 3 y", "stderr": "" }));
    stored(&daemon, "skilled", "do: [{s: {call: aman.skill, with: {name: echo, input: {a: 1}}}}]");
    assert_eq!(completed(&daemon, "skilled", json!({})), json!({ "hello": 1 }));
    stored(&daemon, "unskilled", "do: [{s: {call: aman.skill, with: {name: nobody}}}]");
    let id = start(&daemon, "unskilled", json!({}));
    assert_eq!(until(&daemon, &id, "faulted")["error"]["title"], "Not configured");
    stored(&daemon, "often", "schedule: {every: {seconds: 1}}\ndo: [{a: {set: {x: 1}}}]");
    stored(&daemon, "planned", "schedule: {cron: '* * * * * *'}\ndo: [{a: {set: {x: 1}}}]");
    let count = |name: &str| daemon.get(&format!("/workflow-instances?workflow={name}&status=completed")).items().len();
    daemon.wait("two runs of each", || (count("often") >= 2 && count("planned") >= 2).then_some(()));
    assert_eq!(daemon.get("/cron/workflow%3Aplanned").json["workflow"], "planned");
    let (code, out, _) = daemon.cli(&["workflow", "validate", &flows.join("broken.yaml").display().to_string()]);
    assert!(code == 1 && out.contains("broken.yaml:"), "{out}");
}

#[test]
fn bundled_workflows_do_what_they_say() {
    let peer = Peer::start();
    let daemon = Daemon::configured("[http_client]\nallow_private = true\n");
    peer.answer("500 Internal Server Error", &[], "");
    peer.answer("200 OK", &[], "");
    let output = completed(&daemon, "probe-until-healthy", json!({ "url": peer.url(), "wait_seconds": 0.01 }));
    assert_eq!(output, json!({ "healthy": true, "round": 1 }));
    assert_eq!(daemon.recent("probe.recovered").len(), 1);
    let sick = Peer::start();
    sick.answer("503 Service Unavailable", &[], "");
    let id = start(&daemon, "probe-until-healthy", json!({ "url": sick.url(), "wait_seconds": 0.01 }));
    until(&daemon, &id, "waiting");
    daemon.wait("the alarm", || daemon.recent("probe.alarm").pop());
    daemon.wait("the question", || (daemon.cli(&["workflow", "approve", &id]).0 == 0).then_some(()));
    assert_eq!(until(&daemon, &id, "completed")["output"], json!({ "healthy": false, "seen": true }));

    let (good, bad) = (Peer::start(), Peer::start());
    bad.answer("400 Bad Request", &[], "");
    let target =
        |peer: &Peer| json!({ "url": format!("{}/do", peer.url()), "undo_url": format!("{}/undo", peer.url()) });
    let told = completed(&daemon, "webhook-fan-out", json!({ "message": "m", "targets": [target(&good)] }));
    assert_eq!(told, json!({ "told": [format!("{}/do", good.url())] }));
    let id = start(&daemon, "webhook-fan-out", json!({ "message": "m", "targets": [target(&good), target(&bad)] }));
    assert_eq!(until(&daemon, &id, "faulted")["error"]["status"], 502);
    let paths: Vec<String> =
        good.requests().iter().filter_map(|request| request.lines().next().map(str::to_owned)).collect();
    assert_eq!(paths, ["POST /do HTTP/1.1", "POST /do HTTP/1.1", "POST /undo HTTP/1.1"]);

    let digest = completed(&daemon, "daily-digest", json!({}));
    assert!(digest.get("folder").is_some() && digest.get("dead_letters").is_some(), "{digest}");
}

#[test]
fn an_incoming_file_moves_once_it_is_approved() {
    let folder = Folder::new("approvals");
    let place = folder.path().join("approvals");
    std::fs::create_dir_all(&place).expect("a folder");
    let toml = format!("[sources.approvals]\nkind = \"files\"\npath = \"{}\"\npatterns = [\"*\"]\n", place.display());
    std::fs::write(folder.path().join("aman.toml"), toml).expect("aman.toml");
    let daemon = Daemon::start_in(folder.path());
    for (name, answer, into) in [("yes.txt", None, ".approved"), ("no.txt", Some("--deny"), ".rejected")] {
        std::fs::write(place.join(name), "text").expect("a file");
        let found = daemon.wait("the question", || {
            daemon.get("/workflow-instances?workflow=approve-incoming-file&status=waiting").items().pop()
        });
        let mut args = vec!["workflow", "approve", found["id"].as_str().expect("an id")];
        args.extend(answer);
        assert_eq!(daemon.cli(&args).0, 0);
        until(&daemon, found["id"].as_str().expect("an id"), "completed");
        assert!(place.join(into).join(name).exists() && !place.join(name).exists(), "{name}");
    }
}

/// Goal: what comes while a call is under way is not lost: the second event has the row number that the first one had.
#[test]
fn events_wait_for_a_call_to_end() {
    let daemon = Daemon::configured("[http_client]\nallow_private = true\n");
    let slow = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/", slow.local_addr().expect("an address"));
    let (asked, calls) = std::sync::mpsc::channel();
    let (go_on, may_answer) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        for connection in slow.incoming() {
            let Ok(mut connection) = connection else { return };
            let _head = std::io::Read::read(&mut connection, &mut [0; 4096]);
            if asked.send(()).is_err() || may_answer.recv().is_err() {
                return;
            }
            let answer =
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";
            let _sent = std::io::Write::write_all(&mut connection, answer.as_bytes());
        }
    });
    stored(
        &daemon,
        "each",
        &format!(
            "do: [{{l: {{listen: {{to: {{any: [{{with: {{type: ping.sent}}}}], until: 'length == 2'}}}}, foreach: {{item: event, do: [{{c: {{call: http, with: {{method: get, endpoint: '{url}'}}}}}}]}}}}}}, {{o: {{set: {{done: 1}}}}}}]"
        ),
    );
    let id = start(&daemon, "each", json!({}));
    until(&daemon, &id, "waiting");
    daemon.push("ping.sent", json!({ "n": 1 }));
    calls.recv_timeout(crate::harness::PATIENCE).expect("the first call");
    daemon.push("ping.sent", json!({ "n": 2 }));
    daemon.settle();
    go_on.send(()).expect("the server waits");
    calls.recv_timeout(crate::harness::PATIENCE).expect("the second call, though its event came during the first");
    go_on.send(()).expect("the server waits");
    assert_eq!(until(&daemon, &id, "completed")["output"], json!({ "done": 1 }));
}

/// Goal: with two questions open, an answer that names none answers none; each is asked with its own words.
#[test]
fn an_answer_is_for_one_question() {
    let daemon = Daemon::start();
    let ask = "call: aman.approve, with: {title: May I?, message: Please.}";
    stored(&daemon, "two", &format!("do: [{{f: {{fork: {{branches: [{{a: {{{ask}}}}}, {{b: {{{ask}}}}}]}}}}}}]"));
    let id = start(&daemon, "two", json!({}));
    until(&daemon, &id, "waiting");
    let told =
        daemon.wait("both questions", || Some(daemon.get("/notifications").items()).filter(|all| all.len() == 2));
    let tasks = ["/do/0/f/fork/branches/0/a", "/do/0/f/fork/branches/1/b"];
    for task in tasks {
        let words = format!("--task {task}");
        assert!(told.iter().any(|one| one["message"].as_str().is_some_and(|text| text.ends_with(&words))), "{told:?}");
    }
    let answer = |data: Value| {
        daemon.post(&format!("/workflow-instance/{id}/event"), &json!({ "type": "approval", "data": data }))
    };
    let unnamed = answer(json!({ "approved": true }));
    assert_eq!(unnamed.fields(), ["data.task"], "{unnamed:?}");
    assert!(tasks.iter().all(|task| unnamed.json.to_string().contains(task)), "{unnamed:?}");
    assert_eq!(answer(json!({ "approved": true, "task": "/do/9/x" })).fields(), ["data.task"]);
    assert_eq!(answer(json!({ "approved": "yes", "task": tasks[0] })).fields(), ["data.approved"]);
    let (code, _, err) = daemon.cli(&["workflow", "approve", &id]);
    assert!(code != 0 && err.contains("--task") && err.contains(tasks[1]), "{err}");
    assert_eq!(answer(json!({ "approved": true, "task": tasks[0] })).status, 200);
    daemon.wait("the first to be answered", || {
        let steps = instance(&daemon, &id)["steps"].as_array().cloned().unwrap_or_default();
        steps.iter().any(|step| step["task"] == tasks[0] && step["status"] == "completed").then_some(())
    });
    assert_eq!(instance(&daemon, &id)["status"], "waiting", "the other is not answered");
    answer(json!({ "approved": false, "task": tasks[1] }));
    let output = until(&daemon, &id, "completed")["output"].clone();
    assert_eq!((&output[0]["approved"], &output[1]["approved"]), (&json!(true), &json!(false)), "{output}");
    // Both branches call one function: their questions have names of their own all the same.
    let fork = "do: [{f: {fork: {branches: [{a: {call: ask}}, {b: {call: ask}}]}}}]";
    stored(&daemon, "shared", &format!("use: {{functions: {{ask: {{{ask}}}}}}}\n{fork}"));
    let id = start(&daemon, "shared", json!({}));
    until(&daemon, &id, "waiting");
    let approve = |task: &str| daemon.cli(&["workflow", "approve", &id, "--task", task]);
    let (_, _, err) = approve("/use/functions/ask");
    let names: Vec<&str> =
        err.split([' ', ',', '.', '"']).filter(|word| word.starts_with("/use/functions/ask~")).collect();
    assert!(names.len() == 2 && names[0] != names[1], "{err}");
    assert_eq!(approve(names[0]).0, 0);
    daemon.wait("one to be left", || (daemon.cli(&["workflow", "approve", &id, "--deny"]).0 == 0).then_some(()));
    let output = until(&daemon, &id, "completed")["output"].to_string();
    assert!(output.contains("\"approved\":true") && output.contains("\"approved\":false"), "{output}");
    stored(&daemon, "mute", "do: [{w: {wait: PT1H}}]");
    let id = start(&daemon, "mute", json!({}));
    until(&daemon, &id, "waiting");
    let (code, _, err) = daemon.cli(&["workflow", "approve", &id]);
    assert!(code != 0 && err.contains("No question"), "{err}");
}

/// Goal: what a workflow does with somebody's event is trusted no further than that event.
#[test]
fn trust_comes_with_what_was_heard() {
    let daemon = Daemon::start();
    stored(
        &daemon,
        "hears",
        "do: [{l: {listen: {to: {one: {with: {type: told.me}}}}}}, {e: {emit: {event: {with: {source: 'https://t', type: told.on}}}}}]",
    );
    let id = start(&daemon, "hears", json!({}));
    until(&daemon, &id, "waiting");
    let made = daemon.post("/auth/token", &json!({ "sub": "friend", "scope": "events:write", "ttl": "1h" }));
    let token = made.json["token"].as_str().expect("a token").to_owned();
    let event = json!({ "source": "friend", "type": "told.me", "data": {} });
    assert_eq!(daemon.send("POST", "/events/push", &[("x-aman-token", &token)], Some(&event)).status, 202);
    until(&daemon, &id, "completed");
    let told = daemon.wait("what it told", || daemon.recent("told.on").pop());
    assert_eq!(told["trust"], "paired", "{told}");
}

/// Goal: waiting costs rows, not polling; and what waits wakes when it is due.
#[test]
fn ten_thousand_wait_without_cost() {
    let mut daemon = Daemon::start();
    stored(&daemon, "sleeper", "do: [{w: {wait: '${ {milliseconds: (.ms // 3600000)} }'}}]");
    stored(
        &daemon,
        "starter",
        "do: [{l: {for: {in: '[range(10000)]'}, do: [{s: {run: {workflow: {namespace: test, name: sleeper, version: latest, input: {}}, await: false}}}]}}]",
    );
    start(&daemon, "starter", json!({}));
    let open = |status: &str| daemon.get(&format!("/workflow-instances?status={status}&limit=1")).items().len();
    let deadline = Instant::now() + Duration::from_secs(240);
    while daemon.get("/workflow/sleeper").json["open_instances"] != 10_000 || open("pending") + open("running") > 0 {
        assert!(Instant::now() < deadline, "they do not all come to wait: {}", daemon.get("/workflow/sleeper").json);
        std::thread::sleep(Duration::from_millis(200));
    }
    daemon.kill();
    let begun = Instant::now();
    daemon.again();
    say(&format!("start with 10,000 waiting instances: {:?}", begun.elapsed()));
    std::thread::sleep(Duration::from_millis(500));
    let before = cpu_ticks(daemon.pid());
    std::thread::sleep(Duration::from_secs(3));
    let used = cpu_ticks(daemon.pid()) - before;
    say(&format!("processor time of three idle seconds: {} ms", used * 10));
    // A tick is 10 ms; a debug build on a busy machine may take a few.
    assert!(used <= 9, "{used} ticks in three idle seconds");
    let late: Vec<i64> = (0..5)
        .map(|n| {
            let id = start(&daemon, "sleeper", json!({ "ms": 200 + 50 * n }));
            let shown = until(&daemon, &id, "completed");
            millis(&shown["updated_at"]) - millis(&shown["steps"][0]["started_at"]) - (200 + 50 * n)
        })
        .collect();
    say(&format!("woken this many ms after their time: {late:?}"));
    assert!(late.iter().all(|late| (0..5000).contains(late)), "{late:?}");
}

fn millis(time: &Value) -> i64 {
    aman::clock::parse_rfc3339(time.as_str().unwrap_or_default()).expect("a time")
}

/// Goal: tasks without effect are journaled in groups, with `aman.journal: strict` one by one, and both journals are whole.
/// What they cost is told beside as many durable commits of one row; only a debug build on a busy machine is behind it here.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_tasks_are_journaled() {
    let daemon = Daemon::start();
    let tasks: String = (0..1000).map(|n| format!("  - t{n}: {{set: {{n: '${{ .n + 1 }}'}}}}\n")).collect();
    stored(&daemon, "grouped", &format!("do:\n{tasks}"));
    let strict =
        define("strict", &format!("do:\n{tasks}")).replace("1.0.0}", "1.0.0, metadata: {aman.journal: strict}}");
    assert_eq!(put(&daemon, "strict", &strict).status, 201);
    let took = |name: &str| {
        let id = start(&daemon, name, json!({ "n": 0 }));
        let shown = until(&daemon, &id, "completed");
        assert_eq!((&shown["output"], shown["steps"].as_array().map(Vec::len)), (&json!({ "n": 1000 }), Some(1000)));
        let first = millis(&shown["steps"][0]["started_at"]);
        millis(&shown["updated_at"]) - first
    };
    let folder = Folder::new("commits");
    let store =
        aman::store::Store::open(&folder.path().join("t.db"), aman::store::Durability::Full).expect("a database");
    let (mut one_by_one, mut together, mut commits) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..3 {
        one_by_one.push(took("strict"));
        together.push(took("grouped"));
        let begun = Instant::now();
        for n in 0..1000 {
            let name = format!("{round}-{n}");
            let write = move |tx: &mut aman::store::Tx<'_>| aman::store::consumers::ensure(tx, &name, "test").map(drop);
            store.write_hot(write).await.expect("it is stored");
        }
        commits.push(begun.elapsed().as_millis());
    }
    say(&format!("1,000 tasks, ms: strict {one_by_one:?}, grouped {together:?}; 1,000 durable commits {commits:?}"));
    assert!(
        together.iter().sum::<i64>() < one_by_one.iter().sum::<i64>(),
        "grouped {together:?}, strict {one_by_one:?}"
    );
}

/// Processor time of a process in clock ticks.
fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap_or(0) + fields[12].parse::<u64>().unwrap_or(0)
}
