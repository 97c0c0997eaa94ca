//! Guests that mean harm, or are broken: each ends in bounded time and memory, with a typed fault in words.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use aman_plugin_host::{Body, BodyStream, Fault, Limits, Plugin, Which};

use crate::guest::Guest;
use crate::harness::{Bench, Fake, LONG, caller, event, eventually, request, tight};

/// Through which export a guest is attacked, or attacks.
#[derive(Debug, Clone, Copy)]
enum Via {
    Probe,
    Event,
    Http,
    Tool,
    Poll,
    Stream,
}

/// What must come of it.
#[derive(Debug, Clone, Copy)]
enum Ends {
    /// A trap whose message contains these words.
    Trap(&'static str),
    Timeout,
    Limit(Which),
}

async fn body(plugin: &Plugin, fake: Arc<Fake>) -> Result<BodyStream, Fault> {
    match plugin.call_http(fake, request()).await?.expect("no error").body {
        Body::Stream(stream) => Ok(stream),
        Body::Bytes(bytes) => panic!("{bytes:?} is no stream"),
    }
}

async fn fault_of(plugin: &Plugin, fake: Arc<Fake>, via: Via) -> Option<Fault> {
    match via {
        Via::Probe => plugin.probe(fake, caller()).await.err(),
        Via::Event => plugin.handle_event(fake, caller(), event()).await.err(),
        Via::Http => plugin.call_http(fake, request()).await.err(),
        Via::Tool => plugin.call_tool(fake, caller(), "tool".to_owned(), "{}".to_owned()).await.err(),
        Via::Poll => plugin.poll_source(fake, caller(), "id".to_owned(), Some("c".to_owned())).await.err(),
        Via::Stream => match body(plugin, fake).await {
            Ok(mut stream) => loop {
                match stream.next().await {
                    Some(Ok(_)) => {}
                    Some(Err(fault)) => break Some(fault),
                    None => break None,
                }
            },
            Err(fault) => Some(fault),
        },
    }
}

/// Runs a guest to its end, and checks that the end is the expected one, in time, and that nothing of the guest is left.
async fn expect(bench: &Bench, name: &str, guest: &Guest, via: Via, ends: Ends) -> Arc<Fake> {
    let plugin = bench.plugin(guest, tight()).await;
    let fake = Fake::new();
    let fault = tokio::time::timeout(LONG, fault_of(&plugin, fake.clone(), via)).await;
    let fault = fault.unwrap_or_else(|_| panic!("{name} never ended")).unwrap_or_else(|| panic!("{name} did no harm"));
    let text = fault.to_string();
    match (&fault, ends) {
        (Fault::Trap { message }, Ends::Trap(words)) => assert!(message.contains(words), "{name}: {text}"),
        (Fault::Timeout { .. }, Ends::Timeout) => {}
        (Fault::Limit { which, .. }, Ends::Limit(expected)) => assert_eq!(*which, expected, "{name}: {text}"),
        _ => panic!("{name}: {ends:?} was expected: {fault:?}"),
    }
    assert!(fault.is_misbehaviour() && text.starts_with("the plugin "), "{name}: {text}");
    assert!(text.len() < 2_000 && !text.contains('\n'), "{name}: {text}");
    let stats = plugin.stats();
    assert_eq!((stats.idle, stats.streams, stats.running), (0, 0, 0), "{name}: {stats:?}");
    fake
}

fn own(text: impl Into<String>) -> &'static str {
    Box::leak(text.into().into_boxed_str())
}

const SPIN: &str = "(loop $l (br $l)) (i32.const 0)";
const PANIC: &str = "unreachable";

/// Answers with a streamed body.
const OPEN: &str = "
    (i32.store16 offset=8 (i32.const 512) (i32.const 200))
    (i32.store8 offset=20 (i32.const 512) (i32.const 1))
    (i32.store offset=24 (i32.const 512) (call $new-stream (i32.const 1)))
    (i32.const 512)";

/// A guest that does `body` in all its exports, one of which is then called.
fn everywhere(body: &'static str) -> Vec<(Guest, Via)> {
    let base = Guest { handle_event: body, call: body, poll: body, ..Guest::default() };
    vec![
        (Guest { init: body, ..Guest::default() }, Via::Probe),
        (base.clone(), Via::Event),
        (Guest { handle_http: body, ..base.clone() }, Via::Http),
        (base.clone(), Via::Tool),
        (base, Via::Poll),
        (Guest { handle_http: OPEN, next: body, ..Guest::default() }, Via::Stream),
    ]
}

/// Goal: a loop without end in any export is a time-out.
#[tokio::test(flavor = "multi_thread")]
async fn loops_time_out() {
    let bench = Bench::new();
    for (guest, via) in everywhere(SPIN) {
        expect(&bench, &format!("a loop in {via:?}"), &guest, via, Ends::Timeout).await;
    }
    let start = Guest { own: "(func $start (loop $l (br $l))) (start $start)", ..Guest::default() };
    expect(&bench, "a loop in the start function", &start, Via::Event, Ends::Timeout).await;
    let realloc = Guest { realloc: SPIN, ..Guest::default() };
    expect(&bench, "a loop in realloc", &realloc, Via::Event, Ends::Timeout).await;
}

/// Goal: a panic in any export is a trap.
#[tokio::test(flavor = "multi_thread")]
async fn panics_are_traps() {
    let bench = Bench::new();
    for (guest, via) in everywhere(PANIC) {
        expect(&bench, &format!("a panic in {via:?}"), &guest, via, Ends::Trap("unreachable")).await;
    }
    let start = Guest { own: "(func $start unreachable) (start $start)", ..Guest::default() };
    expect(&bench, "a panic in the start function", &start, Via::Tool, Ends::Trap("unreachable")).await;
    let division = Guest { call: "(i32.div_u (i32.const 1) (i32.const 0))", ..Guest::default() };
    expect(&bench, "a division by zero", &division, Via::Tool, Ends::Trap("divide by zero")).await;
    let outside = Guest { call: "(i32.load (i32.const -4))", ..Guest::default() };
    expect(&bench, "a read outside of memory", &outside, Via::Tool, Ends::Trap("out of bounds")).await;
}

/// Goal: memory, tables, the stack and handles have ends, and the fault says which one was met.
#[tokio::test(flavor = "multi_thread")]
async fn grabbers_meet_limits() {
    let bench = Bench::new();
    let grab = "(loop $l (br_if $l (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) unreachable";
    let cases = [
        ("a memory grab", Guest { call: grab, ..Guest::default() }, Which::Memory),
        ("a large memory at once", Guest { pages: 4_096, ..Guest::default() }, Which::Memory),
        (
            "a growing table",
            Guest {
                own: "(table $t 1 funcref)",
                call: "(loop $l (br_if $l (i32.ne (table.grow $t (ref.null func) (i32.const 999)) (i32.const -1)))) unreachable",
                ..Guest::default()
            },
            Which::Tables,
        ),
        (
            "a deep recursion",
            Guest {
                own: "(func $deep (param i64 i64 i64) (result i64)
                    (i64.add (call $deep (local.get 1) (local.get 2) (local.get 0)) (local.get 1)))",
                call: "(i32.wrap_i64 (call $deep (i64.const 1) (i64.const 2) (i64.const 3)))",
                ..Guest::default()
            },
            Which::Stack,
        ),
        (
            "a leak of resources",
            Guest { call: "(loop $l (drop (call $new-stream (i32.const 1))) (br $l)) unreachable", ..Guest::default() },
            Which::Handles,
        ),
    ];
    for (name, guest, which) in cases {
        expect(&bench, name, &guest, Via::Tool, Ends::Limit(which)).await;
    }
}

/// Goal: a component with more tables than fit is refused when it is loaded.
#[tokio::test(flavor = "multi_thread")]
async fn too_many_parts_are_refused() {
    let bench = Bench::new();
    let guest = Guest { own: own("(table 1 funcref)".repeat(60)), ..Guest::default() };
    let artifact = bench.compile(&guest).await;
    let fault = bench.load(artifact, crate::harness::ALL, tight()).expect_err("sixty tables are too many");
    assert!(matches!(&fault, Fault::Refused { reason } if reason.contains("tables")), "{fault:?}");
}

/// Writes the answer's parts, each a 32-bit number at its offset from 512, and answers with it.
fn answer(stores: &[(u32, u32)]) -> &'static str {
    let stores: String = stores
        .iter()
        .map(|(at, number)| format!("(i32.store offset={at} (i32.const 512) (i32.const {number}))"))
        .collect();
    own(format!("(drop (memory.grow (i32.const 160))) {stores} (i32.const 512)"))
}

fn tool(call: &'static str) -> Guest {
    Guest { call, ..Guest::default() }
}

fn http(handle_http: &'static str) -> Guest {
    Guest { handle_http, ..Guest::default() }
}

/// Goal: answers that are too large are a limit.
#[tokio::test(flavor = "multi_thread")]
async fn large_answers_are_refused() {
    let bench = Bench::new();
    let events = Guest { poll: answer(&[(8, 131_072), (12, 2_000)]), ..Guest::default() };
    // Two thousand headers of nothing but one, whose name is as long as all headers may be.
    let headers = "(i32.store (i32.const 131072) (i32.const 196608)) (i32.store (i32.const 131076) (i32.const 40000))";
    let headers = own(format!(
        "(drop (memory.grow (i32.const 2))) {headers} {}",
        answer(&[(8, 200), (12, 131_072), (16, 2_000)])
    ));
    let cases = [
        ("a huge body", http(answer(&[(8, 200), (28, 4_000_000)])), Via::Http),
        ("a huge answer", tool(answer(&[(12, 4_000_000)])), Via::Tool),
        ("very many events", events, Via::Poll),
        ("very long headers", http(headers), Via::Http),
    ];
    for (name, guest, via) in cases {
        expect(&bench, name, &guest, via, Ends::Limit(Which::Output)).await;
    }
}

/// Goal: answers that are none of the interface's are traps.
#[tokio::test(flavor = "multi_thread")]
async fn malformed_answers_are_traps() {
    let bench = Bench::new();
    let bad_text =
        own(format!("(i32.store (i32.const 1024) (i32.const 0xfffefdfc)) {}", answer(&[(8, 1_024), (12, 4)])));
    let cases = [
        ("a pointer outside", tool(answer(&[(8, u32::MAX - 63), (12, 32)])), Via::Tool, "out of bounds"),
        ("an answer outside", tool("(i32.const -8)"), Via::Tool, "out of bounds"),
        ("a pointer that is not aligned", tool("(i32.const 513)"), Via::Tool, "aligned"),
        ("bad UTF-8", tool(bad_text), Via::Tool, "utf-8"),
        ("no discriminant", tool(answer(&[(0, 7)])), Via::Tool, "discriminant"),
        ("an unknown handle", http(answer(&[(8, 200), (20, 1), (24, 77)])), Via::Http, "handle"),
        ("status 99", http(answer(&[(8, 99)])), Via::Http, "status 99"),
    ];
    for (name, guest, via, words) in cases {
        expect(&bench, name, &guest, via, Ends::Trap(words)).await;
    }
}

const LOG: &str = r#"(import "aman:plugin/log@0.1.0" "write" (func $log (param i32 i32 i32 i32 i32)))"#;

/// Goal: floods of calls of the host end at the time limit, and what they leave is bounded.
#[tokio::test(flavor = "multi_thread")]
async fn floods_end() {
    let bench = Bench::new();
    let clock = Guest {
        imports: &["clock"],
        own: r#"(import "aman:plugin/clock@0.1.0" "now-ms" (func $now (result i64)))"#,
        call: "(loop $l (drop (call $now)) (br $l)) (i32.const 0)",
        ..Guest::default()
    };
    expect(&bench, "a flood of clock calls", &clock, Via::Tool, Ends::Timeout).await;

    let log = Guest {
        imports: &["log"],
        own: LOG,
        call: "(loop $l (call $log (i32.const 1) (i32.const 0) (i32.const 1000) (i32.const 0) (i32.const 0)) (br $l)) (i32.const 0)",
        ..Guest::default()
    };
    let began = Instant::now();
    let fake = expect(&bench, "a flood of log lines", &log, Via::Tool, Ends::Timeout).await;
    let lines = fake.lines.lock().expect("nobody panics with it").len() as u64;
    assert!((1..=100 * (began.elapsed().as_secs() + 2)).contains(&lines), "{lines} lines");

    let sleep = Guest {
        imports: &["clock"],
        own: r#"(import "aman:plugin/clock@0.1.0" "sleep" (func $sleep (param i32 i32)))"#,
        call: "(loop $l (call $sleep (i32.const 0) (i32.const 4096)) (br $l)) (i32.const 0)",
        ..Guest::default()
    };
    expect(&bench, "a flood of sleeps", &sleep, Via::Tool, Ends::Timeout).await;

    let publish = Guest {
        imports: &["bus"],
        own: r#"(import "aman:plugin/bus@0.1.0" "publish" (func $publish (param i32 i32))) (data (i32.const 1024) "test.x")"#,
        handle_event: "
            (i32.store offset=2060 (i32.const 0) (i32.const 1024)) (i32.store offset=2064 (i32.const 0) (i32.const 6))
            (loop $l (call $publish (i32.const 2048) (i32.const 4096)) (br_if $l (i32.eqz (i32.load8_u (i32.const 4096)))))
            ;; The refusal must be a limit, number 4 of the errors; then it goes on for ever.
            (if (i32.ne (i32.load8_u offset=8 (i32.const 4096)) (i32.const 4)) (then unreachable))
            (loop $m (call $publish (i32.const 2048) (i32.const 4096)) (br $m)) (i32.const 0)",
        ..Guest::default()
    };
    let fake = expect(&bench, "a flood of events", &publish, Via::Event, Ends::Timeout).await;
    assert!(fake.published.lock().expect("nobody panics with it").is_empty());
}

/// Goal: what a guest hands to the host is cut, refused or a limit, and strings are checked.
#[tokio::test(flavor = "multi_thread")]
async fn arguments_are_checked() {
    let bench = Bench::new();
    let log = |len: u32, first: &str| Guest {
        imports: &["log"],
        own: LOG,
        pages: 64,
        call: own(format!(
            "(i32.store8 (i32.const 1024) (i32.const {first}))
             (call $log (i32.const 1) (i32.const 1024) (i32.const {len}) (i32.const 0) (i32.const 0)) (i32.const 0)"
        )),
        ..Guest::default()
    };
    expect(&bench, "a huge log line", &log(2_000_000, "65"), Via::Tool, Ends::Limit(Which::Output)).await;
    expect(&bench, "a log line of bad UTF-8", &log(10, "255"), Via::Tool, Ends::Trap("utf-8")).await;
    let plugin = bench.plugin(&log(1_000_000, "65"), tight()).await;
    let fake = Fake::new();
    assert_eq!(fault_of(&plugin, fake.clone(), Via::Tool).await, None, "a long line is cut");
    assert!(fake.lines.lock().expect("nobody panics with it")[0].len() < 5_000);

    // Random bytes without end are refused as an error, number 2 of the errors.
    let random = Guest {
        imports: &["random"],
        own: r#"(import "aman:plugin/random@0.1.0" "bytes" (func $random (param i32 i32)))"#,
        call: "(call $random (i32.const -1) (i32.const 4096))
            (if (i32.ne (i32.load8_u offset=8 (i32.const 4096)) (i32.const 2)) (then unreachable)) (i32.const 0)",
        ..Guest::default()
    };
    let plugin = bench.plugin(&random, tight()).await;
    assert_eq!(fault_of(&plugin, Fake::new(), Via::Tool).await, None);

    // The host may not be called while it hands over arguments.
    let reentrant = Guest {
        imports: &["clock"],
        own: r#"(import "aman:plugin/clock@0.1.0" "now-ms" (func $now (result i64)))"#,
        realloc: "(drop (call $now)) (i32.const 65536)",
        ..Guest::default()
    };
    expect(&bench, "a call out of realloc", &reentrant, Via::Event, Ends::Trap("cannot leave")).await;
}

/// Goal: a body without end flows only as long as somebody takes it; one of empty pieces ends.
#[tokio::test(flavor = "multi_thread")]
async fn endless_bodies_are_harmless() {
    let bench = Bench::new();
    let empty = Guest {
        handle_http: OPEN,
        next: "(i32.store8 offset=8 (i32.const 768) (i32.const 1)) (i32.const 768)",
        ..Guest::default()
    };
    expect(&bench, "a body of nothing", &empty, Via::Stream, Ends::Limit(Which::Output)).await;

    let endless = Guest {
        handle_http: OPEN,
        next: "(i32.store8 offset=8 (i32.const 768) (i32.const 1))
            (i32.store offset=16 (i32.const 768) (i32.const 1000)) (i32.const 768)",
        ..Guest::default()
    };
    let plugin = bench.plugin(&endless, tight()).await;
    let mut stream = body(&plugin, Fake::new()).await.expect("it opens");
    for _ in 0..1_000 {
        assert_eq!(stream.next().await.expect("it never ends").expect("no fault").len(), 1_000);
    }
    drop(stream);
    eventually("the stream is gone", || plugin.stats().streams == 0).await;
    assert_eq!(plugin.stats().idle, 0, "an instance whose stream was cut off is not used again");
}

/// Goal: when the caller goes away, the guest ends soon, wherever it is, and its instance with it.
#[tokio::test(flavor = "multi_thread")]
async fn guests_end_with_their_callers() {
    let bench = Bench::new();
    let patient = Limits { time: LONG, wait: LONG, ..tight() };
    let spinning = Guest { handle_event: SPIN, handle_http: OPEN, next: SPIN, ..Guest::default() };
    let plugin = bench.plugin(&spinning, patient.clone()).await;
    let call = plugin.clone();
    let running = tokio::spawn(async move { call.handle_event(Fake::new(), caller(), event()).await });
    eventually("the guest runs", || plugin.stats().instances_made == 1).await;
    tokio::time::sleep(Duration::from_millis(30)).await;
    running.abort();
    eventually("the guest ends with its caller", || plugin.stats().running == 0).await;
    assert_eq!(plugin.stats().idle, 0);

    let mut stream = body(&plugin, Fake::new()).await.expect("it opens");
    assert!(tokio::time::timeout(Duration::from_millis(50), stream.next()).await.is_err());
    assert!(stream.next().await.is_none(), "a stream that was cut off has ended");
    eventually("the stream is gone", || plugin.stats().streams == 0).await;

    let sending = Guest {
        imports: &["http-client"],
        own: r#"(import "aman:plugin/http-client@0.1.0" "send"
              (func $send (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i64 i32 i32 i32)))
            (data (i32.const 1024) "HANG")"#,
        handle_event: "
            (call $send (i32.const 1024) (i32.const 4) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)
              (i32.const 0) (i32.const 0) (i32.const 0) (i64.const 0) (i32.const 0) (i32.const 0) (i32.const 4096))
            (i32.const 0)",
        ..Guest::default()
    };
    let plugin = bench.plugin(&sending, patient).await;
    let (fake, call) = (Fake::new(), plugin.clone());
    let api = fake.clone();
    let running = tokio::spawn(async move { call.handle_event(api, caller(), event()).await });
    eventually("the request is sent", || fake.sent.load(Ordering::SeqCst) == 1).await;
    running.abort();
    eventually("the request ends with its caller", || fake.cut_off.load(Ordering::SeqCst) == 1).await;
    eventually("nobody holds the daemon's object", || Arc::strong_count(&fake) == 1).await;
}

/// Bytes of memory that this process holds.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux tells");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("Linux tells");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<usize>().ok()).expect("a number") << 10
}

/// Goal: what guests grabbed is given back: forty grabs cost no more memory than one.
#[tokio::test(flavor = "multi_thread")]
async fn memory_is_given_back() {
    let bench = Bench::new();
    // Touches each page of all memory that it can get, then traps.
    let grab = "
        (loop $l (br_if $l (i32.ne (memory.grow (i32.const 16)) (i32.const -1))))
        (loop $t
          (i32.store (local.get $i) (i32.const 1))
          (local.set $i (i32.add (local.get $i) (i32.const 4096)))
          (br_if $t (i32.lt_u (local.get $i) (i32.shl (memory.size) (i32.const 16)))))
        unreachable";
    let guest = Guest { call: grab, ..Guest::default() };
    let plugin = bench.plugin(&guest, Limits { memory_bytes: 64 << 20, time: LONG, ..tight() }).await;
    let fault = fault_of(&plugin, Fake::new(), Via::Tool).await.expect("it traps");
    assert!(matches!(fault, Fault::Limit { which: Which::Memory, .. }), "{fault:?}");
    let before = resident();
    for _ in 0..40 {
        fault_of(&plugin, Fake::new(), Via::Tool).await.expect("it traps");
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 48 << 20, "{} MiB more than before", grown >> 20);
}

/// Goal: two guests that never stop do not keep a neighbour from answering, nor the runtime of the caller.
#[tokio::test(flavor = "multi_thread")]
async fn neighbours_are_served() {
    let bench = Bench::new();
    let spinning = Guest { handle_event: SPIN, ..Guest::default() };
    let spinner = bench.plugin(&spinning, Limits { time: LONG, ..tight() }).await;
    let neighbour = bench.plugin(&Guest::default(), Limits { time: LONG, ..tight() }).await;
    let spin = |plugin: Plugin| tokio::spawn(async move { plugin.handle_event(Fake::new(), caller(), event()).await });
    let spinning = [spin(spinner.clone()), spin(spinner.clone())];
    eventually("both spin", || spinner.stats().instances_made == 2).await;
    let began = Instant::now();
    for _ in 0..20 {
        assert_eq!(fault_of(&neighbour, Fake::new(), Via::Tool).await, None);
    }
    // A turn of the others is 10 ms; a busy machine takes its time besides.
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    spinning.iter().for_each(tokio::task::JoinHandle::abort);
    eventually("they end", || spinner.stats().running == 0).await;
}
