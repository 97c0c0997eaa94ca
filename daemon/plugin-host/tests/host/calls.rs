//! What works: every export, every import, staging, streams, the pool.

use std::sync::atomic::Ordering;
use std::time::Duration;

use aman_plugin_host::{Body, Error, Fault, Isolation, KvChange, Limits, Outcome, Response, Which};

use crate::guest::Guest;
use crate::harness::{Bench, Fake, caller, event, eventually, request, tight};

/// Text at 1024 and on.
const DATA: &str = r#"(data (i32.const 1024) "test.kindkeyvaluehello")"#;

/// Publishes `test.kind` without anything else: the event's 27 flat values go through memory at 2048.
const PUBLISH: &str = "
    (i32.store offset=2060 (i32.const 0) (i32.const 1024)) (i32.store offset=2064 (i32.const 0) (i32.const 9))
    (call $publish (i32.const 2048) (i32.const 4096))";

const IMPORTS: &str = r#"
    (import "aman:plugin/bus@0.1.0" "publish" (func $publish (param i32 i32)))
    (import "aman:plugin/kv@0.1.0" "get" (func $get (param i32 i32 i32)))
    (import "aman:plugin/kv@0.1.0" "set" (func $set (param i32 i32 i32 i32 i32)))
    (import "aman:plugin/kv@0.1.0" "compare-and-swap" (func $swap (param i32 i32 i32 i32 i32 i32 i32 i32)))
    (import "aman:plugin/kv@0.1.0" "delete" (func $delete (param i32 i32 i32)))"#;

fn own(text: &str) -> &'static str {
    Box::leak(text.to_owned().into_boxed_str())
}

fn stateful() -> Guest {
    Guest { imports: &["bus", "kv"], own: own(&format!("{IMPORTS}{DATA}")), ..Guest::default() }
}

/// Sets `key` to `value`.
const SET: &str = "(call $set (i32.const 1033) (i32.const 3) (i32.const 1036) (i32.const 5) (i32.const 4096))";
/// Traps unless `key` is there.
const MUST_BE_SET: &str = "
    (call $get (i32.const 1033) (i32.const 3) (i32.const 4096))
    (if (i32.eqz (i32.load8_u offset=8 (i32.const 4096))) (then unreachable))";

/// Goal: every export answers, and the surface says which there are.
#[tokio::test(flavor = "multi_thread")]
async fn every_export_answers() {
    let bench = Bench::new();
    let plugin = bench.plugin(&Guest::default(), Limits::default()).await;
    let surface = plugin.surface();
    assert!(surface.lifecycle && surface.events && surface.http_handler && surface.tools && surface.source);
    assert!(surface.imports.is_empty() && !surface.wasi);
    let fake = Fake::new();
    plugin.probe(fake.clone(), caller()).await.expect("it begins");
    let Response { status, headers, body } =
        plugin.call_http(fake.clone(), request()).await.expect("no fault").expect("no error");
    assert!(status == 200 && headers.is_empty() && matches!(body, Body::Bytes(bytes) if bytes.is_empty()));
    let (outcome, staged) = plugin.handle_event(fake.clone(), caller(), event()).await.expect("no fault");
    assert!(outcome == Outcome::Done && staged.kv.is_empty());
    let tool = plugin.call_tool(fake.clone(), caller(), "t".to_owned(), "{}".to_owned()).await.expect("no fault");
    assert_eq!(tool, Ok(String::new()));
    let (polled, _) = plugin.poll_source(fake, caller(), "p".to_owned(), None).await.expect("no fault");
    assert!(polled.expect("no error").events.is_empty());
    let stats = plugin.stats();
    assert_eq!((stats.instances_made, stats.idle, stats.calls, stats.faults), (1, 1, 5, 0));
}

/// Goal: a plugin exports what it likes, and what it does not export is missing, not an accident.
#[tokio::test(flavor = "multi_thread")]
async fn exports_are_optional() {
    let bench = Bench::new();
    let guest = Guest { exports: &["tools"], ..Guest::default() };
    let plugin = bench.plugin(&guest, Limits::default()).await;
    assert!(plugin.surface().tools && !plugin.surface().events);
    let fault = plugin.handle_event(Fake::new(), caller(), event()).await.expect_err("there is no such export");
    assert_eq!(fault, Fault::Missing { export: "aman:plugin/events" });
    assert!(!fault.is_misbehaviour());
    plugin.probe(Fake::new(), caller()).await.expect("a plugin without lifecycle begins");
}

/// Goal: in an event what is published and stored is staged, and reads see it; in a route it is done at once.
#[tokio::test(flavor = "multi_thread")]
async fn effects_are_staged_in_events_only() {
    let bench = Bench::new();
    let body = own(&format!("{PUBLISH} {SET} {MUST_BE_SET} (i32.const 0)"));
    let guest = Guest { handle_event: body, call: body, poll: body, ..stateful() };
    let plugin = bench.plugin(&guest, Limits::default()).await;
    let fake = Fake::new();
    let expected = [KvChange::Set { key: "key".to_owned(), value: b"value".to_vec() }];
    let (outcome, staged) = plugin.handle_event(fake.clone(), caller(), event()).await.expect("no fault");
    assert_eq!((outcome, staged.kv.as_slice()), (Outcome::Done, expected.as_slice()));
    let published = std::mem::take(&mut *fake.staged.lock().expect("nobody panics with it"));
    assert_eq!(published.iter().map(|event| event.type_.as_str()).collect::<Vec<_>>(), ["test.kind"]);
    let (polled, staged) = plugin.poll_source(fake.clone(), caller(), "p".to_owned(), None).await.expect("no fault");
    assert!(polled.is_ok() && staged.kv == expected);
    assert_eq!(fake.staged.lock().expect("nobody panics with it").len(), 1);
    assert!(
        fake.kv.lock().expect("nobody panics with it").is_empty()
            && fake.published.lock().expect("nobody panics with it").is_empty()
    );
    let tool = plugin.call_tool(fake.clone(), caller(), String::new(), String::new()).await.expect("no fault");
    assert!(tool.is_ok());
    assert_eq!(fake.kv.lock().expect("nobody panics with it")["key"], b"value");
    assert_eq!(fake.published.lock().expect("nobody panics with it").len(), 1);
}

/// Goal: a retry and an error leave nothing staged.
#[tokio::test(flavor = "multi_thread")]
async fn retry_leaves_no_trace() {
    let bench = Bench::new();
    let retry = own(&format!("{SET} (i32.store8 (i32.const 512) (i32.const 1)) (i32.const 512)"));
    let guest = Guest { handle_event: retry, poll: retry, ..stateful() };
    let plugin = bench.plugin(&guest, Limits::default()).await;
    let (outcome, staged) = plugin.handle_event(Fake::new(), caller(), event()).await.expect("no fault");
    assert!(matches!(outcome, Outcome::Retry(_)) && staged.kv.is_empty(), "{outcome:?} {staged:?}");
    let (polled, staged) = plugin.poll_source(Fake::new(), caller(), String::new(), None).await.expect("no fault");
    assert!(matches!(polled, Err(Error::Denied(_))) && staged.kv.is_empty());
}

/// Goal: a staged comparison sees what was staged before it, and is handed on for the commit.
#[tokio::test(flavor = "multi_thread")]
async fn staged_swaps_see_staged_values() {
    let bench = Bench::new();
    // swap(none → value) succeeds, swap(none → value) again fails, delete, swap(none → value) succeeds.
    let swap = "(call $swap (i32.const 1033) (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 0)
        (i32.const 1036) (i32.const 5) (i32.const 4096))";
    let must_be = |expected: u32| {
        format!(
            "{swap} (if (i32.ne (i32.load8_u offset=8 (i32.const 4096)) (i32.const {expected})) (then unreachable))"
        )
    };
    let body = own(&format!(
        "{} {} (call $delete (i32.const 1033) (i32.const 3) (i32.const 4096)) {} (i32.const 0)",
        must_be(1),
        must_be(0),
        must_be(1)
    ));
    let plugin = bench.plugin(&Guest { handle_event: body, ..stateful() }, Limits::default()).await;
    let (_, staged) = plugin.handle_event(Fake::new(), caller(), event()).await.expect("no fault");
    assert!(
        matches!(staged.kv.as_slice(), [KvChange::Swap { .. }, KvChange::Delete { .. }, KvChange::Swap { .. }]),
        "{:?}",
        staged.kv
    );
}

/// Goal: what the beginning of an instance may not do is denied, and its error is the call's.
#[tokio::test(flavor = "multi_thread")]
async fn beginning_changes_nothing() {
    let bench = Bench::new();
    // The answer of `set` is the answer of `init`: the first byte says error, the payload follows as in its own type.
    let guest = Guest { init: own(&format!("{SET} (i32.const 4096)")), ..stateful() };
    let plugin = bench.plugin(&guest, Limits::default()).await;
    let fake = Fake::new();
    let fault = plugin.probe(fake.clone(), caller()).await.expect_err("init fails");
    assert!(matches!(&fault, Fault::Failed(Error::Denied(text)) if text.contains("lifecycle.init")), "{fault:?}");
    assert!(fault.is_misbehaviour() && fake.kv.lock().expect("nobody panics with it").is_empty());
}

/// Streams `hello` in pieces of one byte, after an empty one.
fn streaming() -> Guest {
    Guest {
        own: own(&format!("{DATA} (global $at (mut i32) (i32.const 0))")),
        handle_http: "
            (i32.store16 offset=8 (i32.const 512) (i32.const 200))
            (i32.store8 offset=20 (i32.const 512) (i32.const 1))
            (i32.store offset=24 (i32.const 512) (call $new-stream (i32.const 1)))
            (global.set $at (i32.const 0))
            (i32.const 512)",
        next: "
            (global.set $at (i32.add (global.get $at) (i32.const 1)))
            (i32.store8 offset=8 (i32.const 768) (i32.le_u (global.get $at) (i32.const 6)))
            (i32.store offset=12 (i32.const 768) (i32.add (i32.const 1039) (global.get $at)))
            (i32.store offset=16 (i32.const 768) (i32.gt_u (global.get $at) (i32.const 1)))
            (i32.const 768)",
        ..Guest::default()
    }
}

async fn stream(plugin: &aman_plugin_host::Plugin) -> aman_plugin_host::BodyStream {
    let response = plugin.call_http(Fake::new(), request()).await.expect("no fault").expect("no error");
    match response.body {
        Body::Stream(stream) => stream,
        Body::Bytes(bytes) => panic!("{bytes:?} is no stream"),
    }
}

/// Goal: a streamed body arrives piece by piece, and its instance serves again afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn streams_arrive_and_end() {
    let bench = Bench::new();
    let plugin = bench.plugin(&streaming(), Limits { max_instances: 1, ..Limits::default() }).await;
    for _ in 0..2 {
        let mut body = stream(&plugin).await;
        assert_eq!(plugin.stats().streams, 1);
        let mut text = Vec::new();
        while let Some(piece) = body.next().await {
            let piece = piece.expect("no fault");
            assert_eq!(piece.len(), 1);
            text.extend(piece);
        }
        assert_eq!(text, b"hello");
        assert!(body.next().await.is_none());
    }
    let stats = plugin.stats();
    assert_eq!((stats.instances_made, stats.streams, stats.idle), (1, 0, 1));
}

/// Goal: streams leave the instances for calls alone, have a limit of their own, and a dropped one frees its place.
#[tokio::test(flavor = "multi_thread")]
async fn streams_have_their_own_limit() {
    let bench = Bench::new();
    let limits = Limits { max_instances: 1, max_streams: 3, ..Limits::default() };
    let plugin = bench.plugin(&streaming(), limits).await;
    let mut open = vec![stream(&plugin).await, stream(&plugin).await, stream(&plugin).await];
    let fault = plugin.call_http(Fake::new(), request()).await.expect_err("a fourth is too much");
    assert!(matches!(&fault, Fault::Limit { which: Which::Streams, .. }) && !fault.is_misbehaviour(), "{fault:?}");
    assert!(plugin.call_tool(Fake::new(), caller(), String::new(), String::new()).await.expect("no fault").is_ok());
    open.pop();
    eventually("the place of a dropped stream", || plugin.stats().streams == 2).await;
    let _another = stream(&plugin).await;
}

/// Goal: an instance is replaced after its number of calls; with isolation after each.
#[tokio::test(flavor = "multi_thread")]
async fn instances_are_replaced() {
    let bench = Bench::new();
    let artifact = bench.compile(&Guest::default()).await;
    for (limits, made) in [
        (Limits { max_calls_per_instance: 3, ..Limits::default() }, 4),
        (Limits { isolation: Isolation::PerCall, ..Limits::default() }, 10),
        (Limits::default(), 1),
    ] {
        let plugin = bench.load(artifact.clone(), crate::harness::ALL, limits).expect("it loads");
        for _ in 0..10 {
            plugin.handle_event(Fake::new(), caller(), event()).await.expect("no fault");
        }
        assert_eq!(plugin.stats().instances_made, made);
    }
}

/// Goal: calls beyond the instances wait for their turn; those beyond the queue are refused, which is nobody's fault.
#[tokio::test(flavor = "multi_thread")]
async fn calls_wait_and_are_refused_in_order() {
    let bench = Bench::new();
    let guest = Guest {
        imports: &["clock"],
        own: r#"(import "aman:plugin/clock@0.1.0" "sleep" (func $sleep (param i32 i32)))"#,
        handle_event: "(call $sleep (i32.const 60000) (i32.const 4096)) (i32.const 0)",
        ..Guest::default()
    };
    let limits = Limits { max_instances: 1, max_waiting: 2, ..Limits::default() };
    let plugin = bench.plugin(&guest, limits).await;
    let call = |plugin: aman_plugin_host::Plugin| {
        tokio::spawn(async move { plugin.handle_event(Fake::new(), caller(), event()).await })
    };
    let running = call(plugin.clone());
    eventually("the first call runs", || plugin.stats().running == 1).await;
    let waiting = [call(plugin.clone()), call(plugin.clone())];
    eventually("two calls wait", || plugin.stats().waiting == 2).await;
    let fault = plugin.handle_event(Fake::new(), caller(), event()).await.expect_err("the queue is full");
    assert!(matches!(&fault, Fault::Limit { which: Which::Calls, .. }) && !fault.is_misbehaviour(), "{fault:?}");
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
    running.abort();
    eventually("dropped calls free their places", || plugin.stats().running + plugin.stats().waiting == 0).await;
}

/// Goal: closing lets running calls end, refuses new ones at once and keeps nothing.
#[tokio::test(flavor = "multi_thread")]
async fn closed_plugins_refuse() {
    let bench = Bench::new();
    let guest = Guest {
        imports: &["clock"],
        own: r#"(import "aman:plugin/clock@0.1.0" "sleep" (func $sleep (param i32 i32)))"#,
        handle_event: "(call $sleep (i32.const 2000) (i32.const 4096)) (i32.const 0)",
        ..Guest::default()
    };
    let plugin = bench.plugin(&guest, Limits { max_instances: 1, ..Limits::default() }).await;
    let call = plugin.clone();
    let running = tokio::spawn(async move { call.handle_event(Fake::new(), caller(), event()).await });
    eventually("the call runs", || plugin.stats().running == 1).await;
    let closing = plugin.clone();
    let closing = tokio::spawn(async move { closing.close().await });
    tokio::task::yield_now().await;
    let refused = async {
        loop {
            // Before the other task has begun to close, a call may still be let in, and wait.
            let call = plugin.call_tool(Fake::new(), caller(), String::new(), String::new()).await;
            if let Err(fault) = call {
                break fault;
            }
        }
    };
    assert_eq!(refused.await, Fault::Closed);
    closing.await.expect("it closes");
    let (outcome, _) = running.await.expect("it was not cut off").expect("no fault");
    assert_eq!((outcome, plugin.stats().idle), (Outcome::Done, 0));
    let fault = plugin.handle_event(Fake::new(), caller(), event()).await.expect_err("it is closed");
    assert_eq!(fault, Fault::Closed);
}

/// Goal: sleeping and outgoing requests count as waiting, end at the limit with an error that the guest can handle, and
/// the request is dropped.
#[tokio::test(flavor = "multi_thread")]
async fn waiting_has_its_own_limit() {
    let bench = Bench::new();
    let guest = Guest {
        imports: &["http-client"],
        own: r#"(import "aman:plugin/http-client@0.1.0" "send"
              (func $send (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i64 i32 i32 i32)))
            (data (i32.const 1024) "HANG")"#,
        // The answer must be an error, and a time-out, which is number 6.
        call: "
            (call $send (i32.const 1024) (i32.const 4) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)
              (i32.const 0) (i32.const 0) (i32.const 0) (i64.const 0) (i32.const 0) (i32.const 0) (i32.const 4096))
            (if (i32.ne (i32.load8_u offset=8 (i32.const 4096)) (i32.const 6)) (then unreachable))
            (i32.const 0)",
        ..Guest::default()
    };
    let limits = Limits { time: Duration::from_secs(30), ..tight() };
    let plugin = bench.plugin(&guest, limits).await;
    let fake = Fake::new();
    let tool = plugin.call_tool(fake.clone(), caller(), String::new(), String::new()).await.expect("no fault");
    assert!(tool.is_ok());
    assert_eq!((fake.sent.load(Ordering::SeqCst), fake.cut_off.load(Ordering::SeqCst)), (1, 1));
}

/// Goal: the small imports work: log, metrics, config, clock, random.
#[tokio::test(flavor = "multi_thread")]
async fn small_imports_work() {
    let bench = Bench::new();
    let guest = Guest {
        imports: &["log", "metrics", "config", "clock", "random"],
        own: r#"
            (import "aman:plugin/log@0.1.0" "write" (func $log (param i32 i32 i32 i32 i32)))
            (import "aman:plugin/metrics@0.1.0" "count" (func $count (param i32 i32 i64 i32 i32 i32)))
            (import "aman:plugin/config@0.1.0" "get" (func $config (param i32 i32 i32)))
            (import "aman:plugin/clock@0.1.0" "now-ms" (func $now (result i64)))
            (import "aman:plugin/random@0.1.0" "bytes" (func $random (param i32 i32)))
            (data (i32.const 1024) "colourthings")"#,
        call: "
            (call $log (i32.const 1) (i32.const 1030) (i32.const 6) (i32.const 0) (i32.const 0))
            (call $count (i32.const 1030) (i32.const 6) (i64.const 3) (i32.const 0) (i32.const 0) (i32.const 4096))
            (if (i64.ne (call $now) (i64.const 1700000000000)) (then unreachable))
            (call $random (i32.const 32) (i32.const 4096))
            (if (i32.ne (i32.load offset=12 (i32.const 4096)) (i32.const 32)) (then unreachable))
            (call $config (i32.const 1024) (i32.const 6) (i32.const 4112))
            (i32.store offset=8 (i32.const 512) (i32.load offset=4 (i32.const 4112)))
            (i32.store offset=12 (i32.const 512) (i32.load offset=8 (i32.const 4112)))
            (i32.const 512)",
        ..Guest::default()
    };
    let plugin = bench.plugin(&guest, Limits::default()).await;
    let fake = Fake::new();
    let tool = plugin.call_tool(fake.clone(), caller(), String::new(), String::new()).await.expect("no fault");
    assert_eq!(tool, Ok("green".to_owned()));
    assert_eq!(*fake.lines.lock().expect("nobody panics with it"), ["owner Level::Info things []"]);
    assert_eq!(*fake.metrics.lock().expect("nobody panics with it"), ["things Count(3) []"]);
}
