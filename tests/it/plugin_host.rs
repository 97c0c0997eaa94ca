//! What the daemon does for plugins, driven as a guest would drive it, over a real bus, store and files: quotas, swaps,
//! outgoing requests, and SQL whose effects happen once wherever the daemon is killed.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aman::bus::{
    Attempt, Concurrency, Consumer, ConsumerSpec, Delivered, Effects, Failure, Origin, Outcome, Publish, RetryPolicy,
    Rule, Standing,
};
use aman::config::{Flags, Secret, load, plugins::PluginSection};
use aman::egress::Egress;
use aman::event::{NewEvent, Trust, TypePattern};
use aman::package::Manifest;
use aman::plugins::host::{Api, Begun, Services, Work, purge_rows};
use aman::start::{Daemon, Extras, start_with};
use aman::store::deliveries::Status;
use aman::store::workflows::{self, InstanceRow};
use aman::store::{deliveries, events, notifications};
use aman_plugin_host::{
    Caller, Error, HostApi, KvChange, Level, Metric, NewEvent as Sent, NewInstance, Notification, OutgoingRequest,
    Polled, Severity, SqlValue, Staged, Statement,
};
use serde_json::json;

use crate::harness::{self, Folder, PATIENCE, Seed, say};
use crate::peer::Peer;

const CANARY: &str = "canary-of-a-plugins-secret";

async fn start(folder: &Path) -> Daemon {
    let flags = Flags { home: Some(folder.to_owned()), bind: Some("127.0.0.1:0".to_owned()), ..Flags::default() };
    let config = load(&flags).expect("an empty configuration is valid");
    start_with(config, Extras::default()).await.expect("the daemon starts")
}

fn manifest(permissions: &str) -> Arc<Manifest> {
    let text = format!("{}[permissions]\n{permissions}\n", harness::manifest("probe", "1.0.0"));
    Arc::new(Manifest::parse(&text).expect("a good manifest"))
}

const USUAL: &str = "publish = [\"probe.**\"]\nkv = \"4KiB\"\nsql = \"256KiB\"\nnotify = true\n\
    workflows = [{ name = \"count\", may = [\"start\", \"signal\", \"read\"] }]";

fn services(daemon: &Daemon, folder: &Path, sections: &[PluginSection]) -> Services {
    Services::new(daemon.bus(), &Egress::new(false), &folder.join("databases"), sections)
}

fn caller() -> Caller {
    Caller {
        principal: "owner".to_owned(),
        trust: aman_plugin_host::Trust::Owner,
        trace_id: "0af7651916cd43dd8448eb211c80319c".to_owned(),
        extensions: Vec::new(),
    }
}

fn sent(kind: &str) -> Sent {
    Sent {
        id: None,
        type_: kind.to_owned(),
        subject: None,
        time: None,
        data_content_type: None,
        data: Some(b"{\"n\":1}".to_vec()),
        priority: None,
        delivery: None,
        ttl_ms: None,
        dedup_key: None,
        agent_id: None,
        partition_key: None,
        attributes: Vec::new(),
        extensions: Vec::new(),
    }
}

/// A start of the workflow that [`with_workflow`] put there.
fn counted(key: Option<&str>) -> NewInstance {
    NewInstance {
        workflow: "count".to_owned(),
        input: Some("1".to_owned()),
        dedup_key: key.map(str::to_owned),
        extensions: Vec::new(),
    }
}

fn told() -> Notification {
    Notification {
        title: "Told".to_owned(),
        message: String::new(),
        severity: Severity::Info,
        category: None,
        action: None,
        fingerprint: None,
        extensions: Vec::new(),
    }
}

/// Puts a workflow that does next to nothing into the data of a daemon.
fn with_workflow(folder: &Path) {
    let text = "document: {dsl: 1.0.3, namespace: test, name: count, version: 1.0.0}\ndo: [{a: {set: {x: 1}}}]\n";
    std::fs::create_dir_all(folder.join("workflows")).expect("a folder");
    std::fs::write(folder.join("workflows/count.yaml"), text).expect("a file");
}

/// The instances of that workflow, and how often the person was told by the plugin.
async fn acted(daemon: &Daemon) -> (Vec<InstanceRow>, i64) {
    let read = |conn: &aman::store::Reading| {
        let told = notifications::list(conn, &notifications::Filter::default(), None, 0, 100)?;
        let told = told.iter().filter(|one| one.consumer == "plugin/probe").map(|one| one.count).sum();
        Ok((workflows::instances(conn, Some("count"), None, i64::MAX, 1000)?, told))
    };
    daemon.bus().store().read(read).await.expect("a read")
}

fn sql(text: &str, params: &[&str]) -> Statement {
    Statement { sql: text.to_owned(), params: params.iter().map(|text| SqlValue::Text((*text).to_owned())).collect() }
}

fn set(key: &str, value: &[u8]) -> KvChange {
    KvChange::Set { key: key.to_owned(), value: value.to_vec() }
}

async fn counts(daemon: &Daemon, pattern: &str) -> Vec<aman::event::Event> {
    let (store, pattern) = (daemon.bus().store(), TypePattern::parse(pattern).expect("a pattern"));
    let (ids, mut all, mut since) = (store.ids(), Vec::new(), aman::id::EventSeq(0));
    loop {
        let page = store.read(move |conn| events::after(conn, ids, since)).await.expect("a read");
        let Some(last) = page.last() else { return all };
        since = last.sequence;
        all.extend(page.into_iter().filter(|event| pattern.matches(&event.sent.kind)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_have_one_owner_one_size_and_one_winner() {
    let folder = Folder::new("plugin-kv");
    let daemon = start(folder.path()).await;
    let services = services(&daemon, folder.path(), &[]);
    let (api, other) = (
        Api::of("probe", &manifest("kv = \"1KiB\""), &services),
        Api::of("other", &manifest("kv = \"1KiB\""), &services),
    );
    for (key, value) in [("a/1", "x"), ("a/2", "y"), ("b", "z"), ("a/é", "w")] {
        assert!(api.kv_change(set(key, value.as_bytes())).await.expect("room"));
    }
    let page = api.kv_list("a/", None, 2).await.expect("a page");
    assert_eq!((page.keys, page.next.as_deref()), (vec!["a/1".to_owned(), "a/2".to_owned()], Some("a/2")));
    let page = api.kv_list("a/", Some("a/2"), 2).await.expect("a page");
    assert_eq!((page.keys, page.next), (vec!["a/é".to_owned()], None));
    assert_eq!(other.kv_get("b").await.expect("a look"), None, "nobody sees another's keys");
    let full = api.kv_change(set("big", &[0; 1020])).await;
    assert!(matches!(full, Err(Error::Limit(_))), "{full:?}");
    assert!(api.kv_change(set("b", &[0; 900])).await.expect("it fits"));
    let usage = api.usage().await.expect("a look");
    assert_eq!((usage.kv_bytes, usage.kv_quota), (901 + 3 + 1 + 3 + 1 + 4 + 1, Some(1024)));
    let smaller = Api::of("probe", &manifest("kv = \"64B\""), &services);
    assert!(matches!(smaller.kv_change(set("c", b"1")).await, Err(Error::Limit(_))));
    assert!(smaller.kv_change(set("b", b"smaller")).await.expect("what shrinks may"));
    // Twenty at once count to twenty.
    let counting = (0..20).map(|_| {
        let api = Arc::clone(&other);
        tokio::spawn(async move {
            loop {
                let expected = api.kv_get("n").await.expect("a look");
                let n = expected.as_ref().map_or(0, |bytes| bytes[0]);
                let swap = KvChange::Swap { key: "n".to_owned(), expected, value: vec![n + 1] };
                if api.kv_change(swap).await.expect("room") {
                    return;
                }
            }
        })
    });
    for one in counting.collect::<Vec<_>>() {
        one.await.expect("no panic");
    }
    assert_eq!(other.kv_get("n").await.expect("a look"), Some(vec![20]));
    daemon.bus().store().write(|tx| purge_rows(tx, "probe")).await.expect("purged");
    assert_eq!(api.usage().await.expect("a look").kv_bytes, 0);
    assert_eq!(other.kv_get("n").await.expect("a look"), Some(vec![20]));
    let none = Api::of("none", &manifest(""), &services);
    assert!(matches!(none.kv_get("b").await, Err(Error::Denied(_))));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_granted_types_are_published_and_they_say_where_they_come_from() {
    let folder = Folder::new("plugin-publish");
    let daemon = start(folder.path()).await;
    let services = services(&daemon, folder.path(), &[]);
    let api = Api::of("probe", &manifest("publish = [\"**\"]"), &services);
    let id = api.publish(&caller(), sent("probe.made")).await.expect("granted");
    let made = counts(&daemon, "probe.**").await;
    assert_eq!((made.len(), made[0].id()), (1, id));
    let event = &made[0];
    assert_eq!((event.sent.source.as_str(), event.principal.as_str()), ("plugin/probe", "plugin/probe"));
    assert_eq!((event.trust, event.trace.to_string()), (Trust::Plugin, caller().trace_id));
    let below = Caller { trust: aman_plugin_host::Trust::Web, ..caller() };
    api.publish(&below, sent("probe.below")).await.expect("granted");
    assert_eq!(counts(&daemon, "probe.below").await[0].trust, Trust::Web, "the lower of both");
    let mut bad = sent("probe.bad");
    bad.data = Some(b"{".to_vec());
    assert!(matches!(api.check_publish(&bad), Err(Error::Invalid(field)) if field.field == "data"));
    assert!(matches!(api.check_publish(&sent("a..b")), Err(Error::Invalid(field)) if field.field == "type"));
    assert!(matches!(api.check_publish(&sent("aman.config.broken")), Err(Error::Denied(_))));
    let narrow = Api::of("probe", &manifest(USUAL), &services);
    assert!(matches!(narrow.publish(&caller(), sent("other.made")).await, Err(Error::Denied(_))));
    // A call that ends early has asked for it all the same.
    let asked = caller();
    let mut publishing = api.publish(&asked, sent("probe.dropped"));
    tokio::select! {
        biased;
        _ = &mut publishing => {}
        () = std::future::ready(()) => {}
    }
    drop(publishing);
    let begun = Instant::now();
    while counts(&daemon, "probe.dropped").await.is_empty() {
        assert!(begun.elapsed() < PATIENCE, "what was begun ends");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_go_to_the_granted_host_only_and_are_never_seen() {
    let folder = Folder::new("plugin-http");
    let daemon = start(folder.path()).await;
    let (home, elsewhere) = (Peer::start(), Peer::start());
    let place = |peer: &Peer| peer.url().trim_start_matches("http://").to_owned();
    let header = "secret_header = { name = \"authorization\", secret = \"TOKEN\", prefix = \"Bearer \" }";
    let http = |private: bool, others: &str| {
        manifest(&format!(
            "http = [{{ host = \"{}\", methods = [\"GET\", \"POST\"], private = {private}, insecure = true, {header} }}{others}]",
            place(&home)
        ))
    };
    let secrets = [("TOKEN".to_owned(), Secret::new(CANARY))].into();
    aman::redact::learn(CANARY);
    let section = PluginSection {
        name: "probe".to_owned(),
        bind: None,
        expect_every: None,
        settings: Default::default(),
        secrets,
    };
    let services = services(&daemon, folder.path(), std::slice::from_ref(&section));
    let get = |url: String| OutgoingRequest {
        method: "GET".to_owned(),
        url,
        headers: vec![("x-mine".to_owned(), "1".to_owned())],
        body: Vec::new(),
        timeout_ms: None,
        extensions: Vec::new(),
    };
    let other = format!(", {{ host = \"{}\", private = true, insecure = true }}", place(&elsewhere));
    let (alone, both) =
        (Api::of("probe", &http(true, ""), &services), Api::of("probe", &http(true, &other), &services));
    let echo = format!("you sent Bearer {CANARY}!");
    home.answer("200 OK", &[("x-echo", CANARY)], &echo);
    let heard = alone.http_send(&caller(), get(format!("{}/a", home.url()))).await.expect("granted");
    assert!(home.requests()[0].contains(&format!("authorization: Bearer {CANARY}")), "{:?}", home.requests());
    assert_eq!((heard.status, heard.body.as_slice()), (200, b"you sent Bearer redacted!".as_slice()));
    assert!(!format!("{heard:?}").contains("canary"));
    // A redirect to a host that is not granted ends it; to one that is, it goes on without the secret.
    let there = format!("{}/b", elsewhere.url());
    home.answer("302 Found", &[("location", &there)], "");
    let last = alone.http_send(&caller(), get(home.url())).await.expect("granted");
    assert_eq!(last.status, 200, "the answer before is given once more");
    let refused = alone.http_send(&caller(), get(home.url())).await;
    assert!(matches!(&refused, Err(Error::Denied(why)) if why.contains("does not grant")), "{refused:?}");
    assert!(elsewhere.requests().is_empty());
    let heard = both.http_send(&caller(), get(home.url())).await.expect("both are granted");
    assert_eq!(heard.status, 200);
    let came = elsewhere.requests().concat();
    assert!(came.contains("GET /b") && !came.contains("authorization") && !came.contains("canary"), "{came}");
    for (api, method, url) in [
        (&Api::of("probe", &http(false, ""), &services), "GET", home.url()),
        (&alone, "DELETE", home.url()),
        (&alone, "GET", "http://169.254.169.254/latest".to_owned()),
        (&alone, "GET", home.url().replace("http:", "https:")),
    ] {
        let refused = api.http_send(&caller(), OutgoingRequest { method: method.into(), ..get(url) }).await;
        let words = format!("{refused:?}");
        assert!(refused.is_err() && !words.contains("canary"), "{method}: {words}");
    }
    services.configure(&[]);
    let unset = alone.http_send(&caller(), get(home.url())).await;
    assert!(matches!(&unset, Err(Error::Denied(why)) if why.contains("TOKEN")), "{unset:?}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_and_metrics_are_the_plugins_own() {
    let folder = Folder::new("plugin-settings");
    let daemon = start(folder.path()).await;
    let services = services(&daemon, folder.path(), &[]);
    let api = Api::of("probe", &manifest(""), &services);
    assert!(api.settings().is_empty());
    let section = |name: &str, value: &str| PluginSection {
        name: name.to_owned(),
        bind: None,
        expect_every: None,
        settings: [("url".to_owned(), value.to_owned())].into(),
        secrets: [("TOKEN".to_owned(), Secret::new(CANARY))].into(),
    };
    services.configure(&[section("probe", "mine"), section("other", "others")]);
    assert_eq!(api.settings(), [("url".to_owned(), "mine".to_owned())]);
    assert_eq!((api.setting("url").as_deref(), api.setting("TOKEN")), (Some("mine"), None));
    api.metric("seen", Metric::Count(2), &[]).expect("a good name");
    api.log(&caller(), Level::Info, "a line\nand no other", &[("a".to_owned(), "b".to_owned())]);
    let mut text = String::new();
    services.write_metrics(&mut text);
    assert!(text.contains("aman_plugin_seen{plugin=\"probe\"} 2"), "{text}");
    assert!(api.now_ms() > 1_700_000_000_000);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_query_ends_and_gives_the_database_back() {
    let folder = Folder::new("plugin-sql");
    let daemon = start(folder.path()).await;
    let services = services(&daemon, folder.path(), &[]);
    let api = Api::of("probe", &manifest(USUAL), &services);
    let endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c";
    assert_eq!(api.sql_execute(vec![sql("CREATE TABLE t (a)", &[])]).await.expect("a table"), [0]);
    let short = Duration::from_millis(200);
    assert!(tokio::time::timeout(short, api.sql_query(sql(endless, &[]))).await.is_err());
    let begun = Instant::now();
    loop {
        match api.sql_query(sql("SELECT count(*) FROM t", &[])).await {
            Ok(rows) => break assert_eq!(rows.rows, [[SqlValue::Integer(0)]]),
            Err(Error::Unavailable(_)) => assert!(begun.elapsed() < PATIENCE, "it must be free by now"),
            Err(other) => panic!("{other:?}"),
        }
    }
    let ended = api.sql_query(sql(endless, &[])).await;
    assert!(matches!(ended, Err(Error::Timeout(_))), "{ended:?}");
    let refused = api.sql_query(sql("ATTACH '/etc/passwd' AS p", &[])).await;
    assert!(matches!(refused, Err(Error::Denied(_))), "{refused:?}");
    // A transaction that SQLite undid does not go on as if nothing had been.
    let work = Work::Poll { source: "s".to_owned(), number: 0 };
    let Begun::Fresh(staging) = api.begin(work).await.expect("its turn") else { panic!("nothing was settled") };
    staging.sql_execute(vec![sql("INSERT INTO t VALUES (1)", &[])]).await.expect("inside");
    let endless = format!("INSERT INTO t {endless}");
    assert!(matches!(staging.sql_execute(vec![sql(&endless, &[])]).await, Err(Error::Timeout(_))));
    assert!(staging.sql_execute(vec![sql("INSERT INTO t VALUES (2)", &[])]).await.is_err());
    assert!(staging.commit(Staged::default(), None).await.is_err());
    drop(staging);
    let rows = api.sql_query(sql("SELECT count(*) FROM t", &[])).await.expect("a query");
    assert_eq!(rows.rows, [[SqlValue::Integer(0)]]);
    let put_back = {
        let mut alone = services.alone_with("probe").await;
        alone.put_aside().expect("it is there");
        alone.put_back()
    };
    put_back.expect("it is there");
    let rows = api.sql_query(sql("SELECT count(*) FROM t", &[])).await.expect("what was put back is whole");
    assert_eq!(rows.rows, [[SqlValue::Integer(0)]]);
    let mut alone = services.alone_with("probe").await;
    alone.put_aside().expect("it is there");
    alone.remove().expect("removed");
    assert!(std::fs::read_dir(folder.path().join("databases")).expect("it is there").next().is_none());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poll_that_was_committed_is_not_polled_again() {
    let folder = Folder::new("plugin-poll");
    with_workflow(folder.path());
    let daemon = start(folder.path()).await;
    let services = services(&daemon, folder.path(), &[]);
    let api = Api::of("probe", &manifest(USUAL), &services);
    let poll = |number| Work::Poll { source: "s".to_owned(), number };
    let polled = || Polled {
        events: vec![sent("probe.polled")],
        cursor: Some("next".to_owned()),
        next_ms: Some(5),
        extensions: Vec::new(),
    };
    let staged = || Staged { kv: vec![set("k", b"v")] };
    let Begun::Fresh(staging) = api.begin(poll(7)).await.expect("its turn") else { panic!("nothing was settled") };
    staging.sql_execute(vec![sql("CREATE TABLE t (a)", &[])]).await.expect("inside");
    staging.stage_publish(sent("probe.staged")).expect("it may");
    assert!(matches!(staging.stage_publish(sent("other.staged")), Err(Error::Denied(_))));
    staging.workflow_start(&caller(), counted(Some("k"))).await.expect("it may");
    // Here the daemon dies: nothing of this is published. A route is faster with the key than what is done again.
    drop(staging.commit(staged(), Some(polled())).await.expect("committed"));
    assert!(api.workflow_start(&caller(), counted(Some("k"))).await.expect("it may").is_new);
    let Begun::Settled(ready) = api.begin(poll(7)).await.expect("its turn") else { panic!("it was settled") };
    let kinds: Vec<&str> = ready.publish.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!((kinds, ready.cursor.as_deref()), (vec!["probe.staged", "probe.polled"], Some("next")));
    assert_eq!(ready.next_ms, Some(5));
    let state = ready.state.expect("there is a key to set");
    daemon.bus().store().write(move |tx| state(tx)).await.expect("what is settled takes effect");
    assert_eq!(api.kv_get("k").await.expect("a look").as_deref(), Some(&b"v"[..]));
    assert_eq!(acted(&daemon).await.0.len(), 1, "one key is one instance");
    let begun = api.begin(poll(8)).await.expect("its turn");
    assert!(matches!(begun, Begun::Fresh(_)), "the next poll is another");
    drop(begun);
    // What cannot be committed leaves nothing, in no place.
    let Begun::Fresh(staging) = api.begin(poll(8)).await.expect("its turn") else { panic!("nothing was settled") };
    staging.sql_execute(vec![sql("INSERT INTO t VALUES (1)", &[])]).await.expect("inside");
    let lost = KvChange::Swap { key: "k".to_owned(), expected: Some(b"other".to_vec()), value: Vec::new() };
    assert!(staging.commit(Staged { kv: vec![lost] }, None).await.is_err());
    drop(staging);
    let rows = api.sql_query(sql("SELECT count(*) FROM t", &[])).await.expect("a query");
    assert_eq!(rows.rows, [[SqlValue::Integer(0)]]);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_started_for_an_event_is_trusted_no_further_and_keys_have_one_winner() {
    let folder = Folder::new("plugin-acts");
    with_workflow(folder.path());
    let daemon = start(folder.path()).await;
    let services = services(&daemon, folder.path(), &[]);
    let may = "workflows = [{ name = \"count\", may = [\"start\"] }]\nnotify = true";
    let api = Api::of("probe", &manifest(may), &services);
    let origin = Origin { principal: "hook/shop".to_owned(), trust: Trust::Web, internal: false };
    daemon.bus().publish(Publish::one(NewEvent::new("shop", "shop.paid", &json!({})), origin)).await.expect("accepted");
    let event = Arc::new(counts(&daemon, "shop.paid").await.remove(0));
    let begin = |n: i64| {
        let (api, event) = (Arc::clone(&api), Arc::clone(&event));
        async move {
            let work = Work::Delivery { number: aman::id::DeliveryId(n), id: n.to_string(), event };
            match api.begin(work).await.expect("its turn") {
                Begun::Fresh(staging) => staging,
                Begun::Settled(_) => panic!("nothing was settled"),
            }
        }
    };
    let (first, second) = (begin(1).await, begin(2).await);
    let started = first.workflow_start(&caller(), counted(Some("k"))).await.expect("it may");
    let again = first.workflow_start(&caller(), counted(Some("k"))).await.expect("it may");
    assert_eq!((started.is_new, again.is_new, &again.id), (true, false, &started.id));
    first.notify(&caller(), told()).await.expect("it may");
    second.workflow_start(&caller(), counted(Some("k"))).await.expect("nobody has the key yet");
    assert_eq!(acted(&daemon).await.0.len(), 0, "nothing is done before the end");
    for (n, staging) in [first, second].into_iter().enumerate() {
        let ready = staging.commit(Staged::default(), None).await.expect("it keeps to the rules");
        assert_eq!(ready.notify.len(), 1 - n);
        let state = ready.state.expect("there is something to do");
        let written = daemon.bus().store().write(move |tx| state(tx)).await;
        assert_eq!(written.is_ok(), n == 0, "the key has one winner: {written:?}");
    }
    let (rows, _) = acted(&daemon).await;
    let row = &rows[0];
    assert_eq!((rows.len(), &row.id, row.trust), (1, &started.id, Trust::Web));
    assert_eq!((row.principal.as_str(), row.trace.as_str()), ("plugin/probe", caller().trace_id.as_str()));
    assert!(row.cause.as_ref().is_some_and(|cause| cause.contains(&event.id())), "{row:?}");
    let direct = api.workflow_start(&caller(), counted(Some("k"))).await.expect("it may");
    assert_eq!((direct.is_new, direct.id), (false, started.id));
    daemon.stop().await;
}

/// Where the victim of [`killed`] dies by itself.
#[derive(Clone, Copy, PartialEq)]
enum Dies {
    Never,
    BeforeCommit,
    AfterCommit,
}

/// A plugin as far as its handler goes: it counts in SQL and in keys, and publishes.
struct Handler {
    api: Arc<Api>,
    calls: std::path::PathBuf,
    dies: Dies,
}

impl Handler {
    async fn handle(&self, attempt: Attempt) -> Result<Effects, Failure> {
        let failed = |error: aman::error::Error| Failure { chain: error.chain(), timed_out: false };
        let (number, event) = (attempt.delivery, Arc::clone(&attempt.event));
        let work = Work::Delivery { number, id: attempt.delivery_id.clone(), event };
        let ready = match self.api.begin(work).await.map_err(failed)? {
            Begun::Settled(ready) => ready,
            Begun::Fresh(staging) => {
                let id = attempt.event.id();
                let mut calls =
                    std::fs::OpenOptions::new().append(true).create(true).open(&self.calls).expect("a file");
                writeln!(calls, "{id}").expect("it can be written");
                let table = sql("CREATE TABLE IF NOT EXISTS seen (id TEXT NOT NULL)", &[]);
                let insert = sql("INSERT INTO seen VALUES (?1)", &[&id]);
                for statement in [table, insert] {
                    staging.sql_execute(vec![statement]).await.expect("it fits");
                }
                let n = staging.kv_get("n").await.expect("a look");
                let next = n.as_ref().map_or(1, |n| String::from_utf8_lossy(n).parse::<u32>().expect("a number") + 1);
                let swap = KvChange::Swap { key: "n".to_owned(), expected: n, value: next.to_string().into_bytes() };
                staging.workflow_start(&caller(), counted(None)).await.expect("it may");
                staging.notify(&caller(), told()).await.expect("it may");
                self.die_at(Dies::BeforeCommit);
                let effect = Sent { subject: Some(id), ..sent("probe.effect") };
                staging.stage_publish(effect).expect("it may");
                let ready = staging.commit(Staged { kv: vec![swap] }, None).await.map_err(failed)?;
                self.die_at(Dies::AfterCommit);
                ready
            }
        };
        Ok(Effects { publish: ready.publish, notify: ready.notify, state: ready.state, ..Effects::default() })
    }

    fn die_at(&self, place: Dies) {
        if self.dies == place {
            let _dead = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
        }
    }
}

impl Consumer for Handler {
    fn deliver(&self, attempt: Attempt) -> Delivered<'_> {
        Box::pin(async move {
            match self.handle(attempt).await {
                Ok(effects) => Outcome::Done(effects),
                Err(failure) => Outcome::Retry(failure, Some(Duration::from_millis(1))),
            }
        })
    }
}

async fn handling(folder: &Path, dies: Dies, concurrency: Concurrency) -> (Daemon, Arc<Api>) {
    with_workflow(folder);
    let daemon = start(folder).await;
    let api = Api::of("probe", &manifest(USUAL), &services(&daemon, folder, &[]));
    let spec = ConsumerSpec {
        name: "plugin/probe".to_owned(),
        kind: "plugin",
        rules: vec![Rule { pattern: TypePattern::parse("work.todo").expect("a pattern"), condition: None }],
        concurrency,
        retry: RetryPolicy { base: Duration::from_millis(1), max_attempts: 100, ..RetryPolicy::default() },
        timeout: Duration::from_secs(60),
        trust: Trust::Plugin,
        standing: Standing::Active,
        acts_outside: false,
    };
    let handler = Handler { api: Arc::clone(&api), calls: folder.join("calls"), dies };
    daemon.bus().register(vec![(spec, Arc::new(handler) as Arc<dyn Consumer>)]).await.expect("registered");
    (daemon, api)
}

async fn push(daemon: &Daemon, count: usize) {
    let origin = Origin { principal: "owner".to_owned(), trust: Trust::Owner, internal: false };
    let events = (0..count).map(|n| NewEvent::new("test", "work.todo", &json!({ "n": n }))).collect();
    let publish = Publish { events, origin, idempotency: None, state: None };
    daemon.bus().publish(publish).await.expect("accepted");
}

/// Runs in a process of its own, which is killed.
#[test]
#[ignore = "only as a victim of the test below"]
fn victim() {
    let Some(folder) = std::env::var_os("AMAN_TEST_VICTIM") else { return };
    let dies = match std::env::var("AMAN_TEST_DIES").as_deref() {
        Ok("before") => Dies::BeforeCommit,
        Ok("after") => Dies::AfterCommit,
        _ => Dies::Never,
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let concurrency = if dies == Dies::Never { Concurrency::Parallel(4) } else { Concurrency::Serial };
        let (daemon, _api) = handling(Path::new(&folder), dies, concurrency).await;
        push(&daemon, 10).await;
        std::future::pending::<()>().await;
    });
}

/// Runs the victim until it dies by itself, or is killed after `time`.
fn killed(folder: &Path, dies: &str, time: Option<Duration>) {
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["plugin_host::victim", "--exact", "--ignored", "--nocapture"])
        .env("AMAN_TEST_VICTIM", folder)
        .env("AMAN_TEST_DIES", dies)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("the victim starts");
    if let Some(time) = time {
        std::thread::sleep(time);
        child.kill().expect("it can be killed");
    }
    let begun = Instant::now();
    while child.try_wait().expect("a look").is_none() {
        assert!(begun.elapsed() < Duration::from_secs(90), "the victim must die");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until everything is handled, and checks that each event was once.
async fn settled(folder: &Path, concurrency: Concurrency) -> usize {
    let (daemon, api) = handling(folder, Dies::Never, concurrency).await;
    let begun = Instant::now();
    let pushed = counts(&daemon, "work.todo").await;
    let mut done = 0;
    while done < pushed.len() {
        assert!(begun.elapsed() < Duration::from_secs(90), "{done} of {} are done", pushed.len());
        tokio::time::sleep(Duration::from_millis(20)).await;
        let (store, mut now) = (daemon.bus().store().clone(), 0);
        for event in &pushed {
            let sequence = event.sequence;
            let all = store.read(move |conn| deliveries::of_event(conn, sequence)).await.expect("a read");
            now += usize::from(all.iter().all(|one| one.status == Status::Done));
        }
        done = now;
    }
    let effects = counts(&daemon, "probe.effect").await;
    let mut subjects: Vec<_> = effects.iter().filter_map(|event| event.sent.subject.clone()).collect();
    subjects.sort();
    let mut wanted: Vec<String> = pushed.iter().map(aman::event::Event::id).collect();
    wanted.sort();
    assert_eq!(subjects, wanted, "one effect of each");
    let rows = if pushed.is_empty() {
        Vec::new()
    } else {
        api.sql_query(sql("SELECT id FROM seen ORDER BY id", &[])).await.expect("a query").rows
    };
    let seen: Vec<_> = wanted.iter().map(|id| vec![SqlValue::Text(id.clone())]).collect();
    assert_eq!(rows, seen, "one row of each");
    let counted = api.kv_get("n").await.expect("a look").map(|n| String::from_utf8(n).expect("a number"));
    assert_eq!(counted.unwrap_or_else(|| "0".to_owned()), pushed.len().to_string(), "each counted once");
    let (started, told) = acted(&daemon).await;
    assert_eq!(
        (started.len(), told),
        (pushed.len(), i64::try_from(pushed.len()).expect("a few")),
        "one start, one word of each"
    );
    daemon.stop().await;
    pushed.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_and_effects_happen_once_wherever_the_daemon_is_killed() {
    for (dies, again) in [("before", 1), ("after", 0)] {
        let folder = Folder::new("plugin-once");
        killed(folder.path(), dies, None);
        assert_eq!(settled(folder.path(), Concurrency::Serial).await, 10);
        let calls = std::fs::read_to_string(folder.path().join("calls")).expect("the guest was called");
        assert_eq!(calls.lines().count(), 10 + again, "{dies}: a guest whose SQL is committed is not called again");
    }
    let (folder, mut rng) = (Folder::new("plugin-once-anywhere"), Seed::take().rng(1));
    for _ in 0..6 {
        let time = Duration::from_millis(rng.u64(200..1500));
        killed(folder.path(), "never", Some(time));
    }
    // Side by side some lose their swap, and are tried again.
    let events = settled(folder.path(), Concurrency::Parallel(4)).await;
    say(&format!("{events} events were handled once over 6 kills"));
}
