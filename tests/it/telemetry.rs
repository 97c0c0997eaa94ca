//! Traces for a collector: one trace from the push to the last call that comes of it, over restarts too; nothing when it is
//! off; and a collector that is gone, slow or moody that nobody notices. The collector is `tests/clients/otlp.py`: a server of
//! ours around what the official package opentelemetry-proto decodes.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aman::config::{Flags, load};
use aman::egress::Egress;
use aman::id::TraceId;
use aman::package::Manifest;
use aman::plugins::host::{Api, Services};
use aman::start::{Extras, start_with};
use aman::telemetry::traces;
use aman_plugin_host::{Caller, HostApi, OutgoingRequest};
use serde_json::{Value, json};

use crate::clients::Client;
use crate::harness::{Daemon, Folder, PATIENCE, TOKEN, command, say, wait, write_skill};
use crate::peer::Peer;
use crate::workflows::stored;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const ASKING: &str = "b7ad6b7169203331";
const CANARY: &str = "canary-of-the-collector";

/// A collector, and everything that it was sent.
struct Collector {
    client: Client,
    port: String,
    requests: Vec<Value>,
}

impl Collector {
    fn start(args: &[&str]) -> Collector {
        let client = Client::start("python", &[&["otlp.py"], args].concat());
        let port = client.line();
        Collector { client, port, requests: Vec::new() }
    }

    /// One that takes everything.
    fn good() -> Collector {
        Collector::start(&["0", "200"])
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn config(&self) -> String {
        format!("[telemetry]\nendpoint = \"{}\"\n", self.url())
    }

    /// All spans so far.
    fn spans(&mut self) -> Vec<Value> {
        while let Some(line) = self.client.line_now() {
            self.requests.push(serde_json::from_str(&line).expect("JSON"));
        }
        self.requests.iter().flat_map(|request| request["spans"].as_array().cloned().unwrap_or_default()).collect()
    }

    /// Waits until there is a span for each of these names and gives them in that order.
    fn named<const N: usize>(&mut self, daemon: &Daemon, names: [&str; N]) -> [Value; N] {
        let find = |spans: &[Value], name: &str| spans.iter().find(|span| span["name"] == name).cloned();
        let last = |spans: &[Value]| names.iter().map(|name| find(spans, name)).collect::<Option<Vec<_>>>();
        let found = wait(&format!("spans {names:?}"), || last(&self.spans()), || daemon.log());
        found.try_into().expect("as many as were asked for")
    }
}

/// Pushes an event as a part of [`TRACE`].
fn push_traced(daemon: &Daemon, kind: &str, data: &Value) -> Value {
    let (token, from) = (format!("Bearer {TOKEN}"), format!("00-{TRACE}-{ASKING}-01"));
    let event = json!({ "source": "test", "type": kind, "data": data });
    let headers = [("authorization", token.as_str()), ("traceparent", from.as_str())];
    let answer = daemon.send("POST", "/events/push", &headers, Some(&event));
    assert_eq!(answer.status, 202, "{answer:?}");
    answer.json
}

/// The `aman_telemetry_spans_total` of an outcome.
fn counted(daemon: &Daemon, outcome: &str) -> u64 {
    let text = String::from_utf8(daemon.get("/metrics").body).expect("text");
    let name = format!("aman_telemetry_spans_total{{outcome=\"{outcome}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(name.as_str())).and_then(|n| n.parse().ok()).expect("a count")
}

fn header<'a>(request: &'a str, name: &str) -> Option<&'a str> {
    request.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")))
}

/// A daemon with a skill that answers `order.new` with `order.checked`, which starts a workflow that calls `peer` and goes to a
/// webhook there. Everything that is no business of a collector holds the canary.
fn shop(collector: &Collector, peer: &Peer, home: &Folder) -> Daemon {
    let toml = format!(
        "{}headers = {{ x-key = \"{CANARY}-0\" }}\n[http_client]\nallow_private = true\n\
         [workflows]\nsecrets = {{ shop = \"{CANARY}-1\" }}\n\
         [sinks.out]\nkind = \"webhook\"\nurl = \"{}/in/{CANARY}-2\"\ntypes = [\"order.checked\"]\nsecret = \"{CANARY}-3\"\n",
        collector.config(),
        peer.url()
    );
    std::fs::write(home.path().join("aman.toml"), toml).expect("aman.toml");
    let script = format!("echo '{{\"publish\": [{{\"type\": \"order.checked\", \"data\": \"{CANARY}-4\"}}]}}'\n");
    write_skill(home.path(), "check", &["aman.on: order.new"], &script);
    let daemon = Daemon::start_in(home.path());
    let call = format!(
        "{{method: post, endpoint: {{uri: '{}/charge/{CANARY}-5', authentication: {{bearer: {{use: shop}}}}}}}}",
        peer.url()
    );
    let body = format!(
        "use: {{secrets: [shop]}}\nschedule: {{on: {{one: {{with: {{type: order.checked}}}}}}}}\n\
         do: [{{pay: {{call: http, with: {call}}}}}]"
    );
    stored(&daemon, "charge", &body);
    daemon
}

/// Goal: one trace, whose root is the span that the push names: push, match, delivery, the event that came of it, its delivery
/// to a workflow, the workflow, its task, the call; and beside it the delivery to a webhook and its call. Each call tells the
/// other side which span it is. No secret, no data and no path of an address is in any of it.
#[test]
fn one_trace_leads_from_the_push_to_the_last_call() {
    let (mut collector, peer, home) = (Collector::good(), Peer::start(), Folder::new("home"));
    let daemon = shop(&collector, &peer, &home);
    let event = push_traced(&daemon, "order.new", &json!({ "card": format!("{CANARY}-6") }));
    assert_eq!(event["trace_id"], TRACE);

    let [push, skill, effect, to_workflow, workflow, task, to_sink, sending] = collector.named(
        &daemon,
        [
            "publish order.new",
            "deliver skill/check",
            "publish order.checked",
            "deliver workflow/charge",
            "workflow charge",
            "task /do/0/pay",
            "deliver sink/out",
            "send sink/out",
        ],
    );
    let spans = collector.spans();
    let below = |parent: &Value, name: &str| {
        let found = spans.iter().find(|span| span["name"] == name && span["parent"] == parent["id"]);
        found.unwrap_or_else(|| panic!("no {name} below {parent} in {spans:#?}")).clone()
    };
    assert!(spans.iter().all(|span| span["trace"] == TRACE && span["flags"] == 1), "{spans:#?}");
    assert_eq!(push["parent"], ASKING);
    assert_eq!(below(&push, "match")["attributes"]["aman.consumers"], json!(["skill/check"]));
    for (child, parent) in [
        (&skill, &push),
        (&effect, &skill),
        (&to_workflow, &effect),
        (&workflow, &to_workflow),
        (&task, &workflow),
        (&to_sink, &effect),
        (&sending, &to_sink),
    ] {
        assert_eq!(child["parent"], parent["id"], "{} is no child of {}", child["name"], parent["name"]);
        assert!(child["start"].as_u64() <= child["end"].as_u64(), "{child}");
    }
    let ids: std::collections::HashSet<&str> = spans.iter().filter_map(|span| span["id"].as_str()).collect();
    assert_eq!(ids.len(), spans.len(), "each span has an id of its own");
    for (parent, target) in [(&task, "/charge"), (&sending, "/in")] {
        let call = below(parent, "POST");
        let asked =
            peer.requests().into_iter().find(|request| request.contains(&format!("POST {target}/"))).expect(target);
        let told = format!("00-{TRACE}-{}-01", call["id"].as_str().expect("an id"));
        assert_eq!(header(&asked, "traceparent"), Some(told.as_str()), "{asked}");
        let shown = &call["attributes"];
        assert_eq!((&call["kind"], &shown["http.response.status_code"]), (&json!(3), &json!(200)));
        assert_eq!(shown["server.address"], "127.0.0.1");
    }
    assert_eq!((&push["kind"], &skill["kind"]), (&json!(4), &json!(5)));
    assert_eq!(
        (&push["attributes"]["messaging.message.id"], &push["attributes"]["cloudevents.event_source"]),
        (&event["id"], &json!("test"))
    );
    assert_eq!(
        (&skill["attributes"]["aman.outcome"], &skill["attributes"]["aman.attempt"]),
        (&json!("done"), &json!(1))
    );
    let resource = &push["resource"];
    assert_eq!((&resource["service.name"], &push["scope"]), (&json!("aman"), &json!("aman")));
    let request = &collector.requests[0];
    assert_eq!((&request["path"], &request["headers"]["x-key"]), (&json!("/v1/traces"), &json!(format!("{CANARY}-0"))));
    assert_eq!(request["headers"]["content-type"], "application/x-protobuf");
    let everything: Vec<&Value> = collector.requests.iter().map(|request| &request["spans"]).collect();
    assert!(!json!(everything).to_string().contains("canary"), "{everything:#?}");
}

/// Goal: a kill between two attempts breaks no trace: what was cut off is a span, the next attempt is linked to it, both are
/// children of the publication before the kill, and what comes of it is in the same trace. A clean end loses no span.
#[test]
fn a_trace_goes_on_after_a_kill() {
    let (mut collector, home) = (Collector::good(), Folder::new("home"));
    std::fs::write(home.path().join("aman.toml"), collector.config()).expect("aman.toml");
    let script = "[ \"$AMAN_ATTEMPT\" -gt 1 ] || sleep 60\necho '{\"publish\": [{\"type\": \"slow.done\"}]}'\n";
    write_skill(home.path(), "slow", &["aman.on: slow.new"], script);
    let mut daemon = Daemon::start_in(home.path());
    let event = push_traced(&daemon, "slow.new", &json!({}));
    let [push] = collector.named(&daemon, ["publish slow.new"]);
    let id = event["id"].as_str().expect("an id").to_owned();
    daemon.wait("the attempt", || (daemon.dump(&id)["deliveries"][0]["status"] == "running").then_some(()));
    daemon.kill();
    daemon.again();
    let [effect] = collector.named(&daemon, ["publish slow.done"]);
    let attempts: Vec<Value> = wait(
        "both attempts",
        || {
            let mut found = collector.spans();
            found.retain(|span| span["name"] == "deliver skill/slow");
            found.sort_by_key(|span| span["attributes"]["aman.attempt"].as_i64());
            (found.len() >= 2).then_some(found)
        },
        || daemon.log(),
    );
    let [cut_off, second] = attempts.as_slice() else { panic!("{attempts:#?}") };
    assert_eq!((&cut_off["attributes"]["aman.outcome"], &cut_off["error"].is_string()), (&json!("cut_off"), &true));
    assert_eq!(second["links"], json!([{ "trace": TRACE, "id": cut_off["id"] }]));
    assert_eq!(second["attributes"]["aman.outcome"], "done");
    for attempt in &attempts {
        assert_eq!((&attempt["trace"], &attempt["parent"]), (&json!(TRACE), &push["id"]));
    }
    assert_eq!((&effect["trace"], &effect["parent"]), (&json!(TRACE), &second["id"]));

    for n in 0..40 {
        daemon.push("last.words", json!(n));
    }
    assert_eq!(daemon.terminate(), Some(0));
    let told = wait(
        "the last spans",
        || {
            Some(collector.spans().iter().filter(|span| span["name"] == "publish last.words").count())
                .filter(|n| *n >= 40)
        },
        || daemon.log(),
    );
    assert_eq!(told, 40);
}

/// Goal: off, nothing is exported and nobody is told of traces; a reload switches it on and off without a restart; over HTTP
/// nobody turns the traces, and the headers with them, to another address.
#[test]
fn it_is_off_until_it_is_configured_and_a_reload_is_enough() {
    let (mut collector, peer, home) = (Collector::good(), Peer::start(), Folder::new("home"));
    let sink = format!(
        "[http_client]\nallow_private = true\n[sinks.out]\nkind = \"webhook\"\nurl = \"{}/in\"\ntypes = [\"a.*\"]\nsecret = \"x\"\n",
        peer.url()
    );
    let write = |toml: &str| std::fs::write(home.path().join("aman.toml"), format!("{toml}{sink}")).expect("aman.toml");
    write("");
    let daemon = Daemon::start_in(home.path());
    daemon.push("a.off", json!({}));
    daemon.wait("the call", || (peer.requests().len() == 1).then_some(()));
    assert_eq!(header(&peer.requests()[0], "traceparent"), None);
    let set = daemon.post_confirmed("/config/set", &json!({ "changes": { "telemetry.endpoint": collector.url() } }));
    assert_eq!((set.status, set.code()), (403, "not_settable"));

    write(&format!("{}headers = {{ authorization = \"Bearer {CANARY}\" }}\n", collector.config()));
    let applied = daemon.post("/config/reload", &json!({})).json;
    assert!(applied["applied"].to_string().contains("telemetry.endpoint"), "{applied}");
    assert_eq!(applied["requires_restart"], json!([]), "{applied}");
    daemon.push("a.on", json!({}));
    let [on] = collector.named(&daemon, ["send sink/out"]);
    assert!(on["parent"].as_str().is_some_and(|parent| !parent.is_empty()));
    assert_eq!(collector.requests[0]["headers"]["authorization"], format!("Bearer {CANARY}"));
    assert!(header(&peer.requests()[1], "traceparent").is_some_and(|told| told.starts_with("00-")));
    let shown = daemon.get("/runtime/config");
    assert!(!String::from_utf8_lossy(&shown.body).contains(CANARY), "{shown:?}");

    // What the other side does not take is told without its address.
    peer.answer("503 Service Unavailable", &[("retry-after", "3600")], "");
    daemon.push("a.on-again", json!({}));
    let untaken = daemon.wait("an attempt that failed", || {
        collector.spans().into_iter().find(|span| span["attributes"]["aman.outcome"] == "retry")
    });
    assert_eq!(
        (&untaken["name"], &untaken["error"]),
        (&json!("send sink/out"), &json!("it is tried again")),
        "{untaken}"
    );
    assert!(!json!(collector.spans()).to_string().contains(&format!("{}/in", peer.url())), "{:#?}", collector.spans());

    write("");
    assert_eq!(daemon.post("/config/reload", &json!({})).status, 200);
    daemon.push("a.off-again", json!({}));
    daemon.wait("the call", || (peer.requests().len() == 4).then_some(()));
    assert_eq!(header(&peer.requests()[3], "traceparent"), None);
    let exported = daemon.wait("what is on its way", || {
        let (exported, spans) = (counted(&daemon, "exported"), collector.spans().len());
        (u64::try_from(spans) == Ok(exported)).then_some(exported)
    });
    assert!(exported >= 4);
    let names: Vec<Value> = collector.spans().into_iter().map(|span| span["name"].clone()).collect();
    assert!(names.iter().all(|name| !name.to_string().contains("a.off")), "{names:?}");
    assert_eq!(counted(&daemon, "dropped"), 0);
}

/// Goal: OpenTelemetry's own variables are enough, and a sample of none is none.
#[test]
fn the_standard_variables_are_enough() {
    let (mut collector, home) = (Collector::good(), Folder::new("home"));
    let url = collector.url();
    let env = [("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str()), ("OTEL_SERVICE_NAME", "my-aman")];
    let mut daemon = Daemon::try_start_in(home.path(), &env).expect("it starts");
    daemon.push("a.b", json!({}));
    let [push] = collector.named(&daemon, ["publish a.b"]);
    assert_eq!(push["resource"]["service.name"], "my-aman");
    assert_eq!(push["parent"], "");
    let answer = daemon.post_confirmed("/config/set", &json!({ "changes": { "telemetry.sample_ratio": 0.0 } }));
    assert_eq!(answer.json["applied"], json!(["telemetry.sample_ratio"]), "{answer:?}");
    daemon.push("a.c", json!({}));
    assert_eq!(daemon.terminate(), Some(0));
    assert!(collector.spans().iter().all(|span| span["name"] != "publish a.c"));
    let shown = command(home.path()).args(["config", "get", "telemetry.sample_ratio"]).output().expect("it runs");
    assert!(shown.status.success(), "{shown:?}");
}

/// Goal: a collector that does not answer costs pushes nothing, is told of once, and what it misses is counted and bounded;
/// the end of the daemon does not wait for it.
#[test]
fn a_dead_collector_costs_nothing() {
    // Takes connections and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = silent.local_addr().expect("an address");
    let mut on = Daemon::configured(&format!("[telemetry]\nendpoint = \"http://{address}\"\ntimeout = \"1s\"\n"));
    let off = Daemon::start();
    let token = format!("Bearer {TOKEN}");
    let headers = [("authorization", token.as_str()), ("content-type", "application/cloudevents-batch+json")];
    let mut pushes = 0;
    let mut push = |daemon: &Daemon| {
        pushes += 1;
        let event = |n| json!({ "specversion": "1.0", "id": format!("{pushes}-{n}"), "source": "test", "type": "a.b" });
        let body = (0..500).map(event).collect::<Value>().to_string();
        let begun = Instant::now();
        let answer = daemon.send_bytes("POST", "/events/push", &headers, body.as_bytes());
        assert_eq!(answer.status, 202, "{answer:?}");
        begun.elapsed()
    };
    let (mut with, mut without): (Vec<Duration>, Vec<Duration>) = (0..20).map(|_| (push(&on), push(&off))).unzip();
    with.sort();
    without.sort();
    say(&format!("500 events with a dead collector: {:?}; without any: {:?} (medians)", with[10], without[10]));
    assert!(with[10] < without[10] * 4 + Duration::from_millis(50), "{:?} and {:?}", with[10], without[10]);
    // 20,000 spans went into a queue for 4,096.
    let dropped = on.wait("what did not fit", || Some(counted(&on, "dropped")).filter(|count| *count > 10_000));
    on.wait("the warning", || on.log().contains("does not take spans").then_some(()));
    on.wait("another try", || Some(counted(&on, "dropped")).filter(|count| *count > dropped));
    assert_eq!(on.log().matches("does not take spans").count(), 1, "{}", on.log());
    assert_eq!(counted(&on, "exported"), 0);
    let begun = Instant::now();
    assert_eq!(on.terminate(), Some(0));
    assert!(begun.elapsed() < PATIENCE / 2, "{:?}", begun.elapsed());
}

/// Goal: what a collector takes later is not lost; what it refuses for good is counted and not sent again.
#[test]
fn a_collector_that_is_busy_is_asked_again() {
    let mut collector = Collector::start(&["0", "503", "200", "400", "200"]);
    let daemon = Daemon::configured(&collector.config());
    daemon.push("a.b", json!({}));
    collector.named(&daemon, ["publish a.b"]);
    let statuses: Vec<Value> = collector.requests.iter().map(|request| request["status"].clone()).collect();
    assert_eq!(statuses, [503, 200]);
    assert_eq!(counted(&daemon, "dropped"), 0);
    daemon.push("a.refused", json!({}));
    // The event and its match.
    daemon.wait("the refusal", || (counted(&daemon, "dropped") == 2).then_some(()));
    daemon.push("a.c", json!({}));
    collector.named(&daemon, ["publish a.c"]);
    assert!(collector.spans().iter().all(|span| span["name"] != "publish a.refused"));
    assert_eq!(counted(&daemon, "exported"), 4);
}

/// Goal: the call of a plugin is a child of the delivery that it is made for, and of the request's trace elsewhere; third
/// parties hear nothing of traces.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_of_plugins_belong_to_their_trace() {
    let (mut collector, peer, folder) = (Collector::good(), Peer::start(), Folder::new("plugin-trace"));
    std::fs::write(folder.path().join("aman.toml"), collector.config()).expect("aman.toml");
    let flags =
        Flags { home: Some(folder.path().to_owned()), bind: Some("127.0.0.1:0".to_owned()), ..Flags::default() };
    let daemon = start_with(load(&flags).expect("valid"), Extras::default()).await.expect("the daemon starts");
    let host = peer.url().trim_start_matches("http://").to_owned();
    let manifest = Manifest::parse(&format!(
        "name = \"probe\"\nversion = \"1.0.0\"\ndescription = \"A probe\"\ninterface = \"0.1\"\ncomponent = \"plugin.wasm\"\n\
         [permissions]\nhttp = [{{ host = \"{host}\", methods = [\"GET\"], private = true, insecure = true }}]\n"
    ));
    let services = Services::new(daemon.bus(), &Egress::new(false), &folder.path().join("databases"), &[]);
    let api = Api::of("probe", &Arc::new(manifest.expect("a good manifest")), &services);
    let caller = Caller {
        principal: "owner".to_owned(),
        trust: aman_plugin_host::Trust::Owner,
        trace_id: TRACE.to_owned(),
        extensions: Vec::new(),
    };
    let get = || OutgoingRequest {
        method: "GET".to_owned(),
        url: peer.url(),
        headers: Vec::new(),
        body: Vec::new(),
        timeout_ms: None,
        extensions: Vec::new(),
    };
    api.http_send(&caller, get()).await.expect("granted");
    let trace: TraceId = TRACE.parse().expect("a trace");
    let delivery = daemon.bus().traces().context(trace, ASKING.parse().ok());
    let work = aman::plugins::host::Work::Poll { source: "s".to_owned(), number: 1 };
    let begun = traces::within(delivery, api.begin(work)).await.expect("it begins");
    let aman::plugins::host::Begun::Fresh(staging) = begun else { panic!("nothing was settled before") };
    // As from the guests' own runtime.
    staging.http_send(&caller, get()).await.expect("granted");
    daemon.stop().await;
    let parents = wait(
        "both calls",
        || {
            let spans = collector.spans();
            let calls: Vec<&Value> = spans.iter().filter(|span| span["name"] == "GET").collect();
            let good = calls.iter().all(|span| span["trace"] == TRACE);
            assert!(good, "{calls:#?}");
            let parents: Vec<Value> = calls.iter().map(|span| span["parent"].clone()).collect();
            (parents.len() == 2).then_some(parents)
        },
        String::new,
    );
    assert_eq!(parents, ["", ASKING]);
    assert!(peer.requests().iter().all(|request| header(request, "traceparent").is_none()));
}
