//! The guests of the daemon's own tests, kept as components in tests/fixtures/guests, so that those tests need no tools.

use std::path::Path;

use crate::guest::Guest;

const OWN: &str = r#"
    (import "aman:plugin/bus@0.1.0" "publish" (func $publish (param i32 i32)))
    (global $at (mut i32) (i32.const 0))
    (data (i32.const 1024) "test.kind")
    (data (i32.const 1040) "data: 1\n\n")
    (data (i32.const 1056) "one")
    (data (i32.const 1064) "two")"#;
/// Answers by the length of the route: `/t` text, `/sse` a stream of three pieces, `/endless` one of very many, `/trap`
/// crashes, `/loops` never ends.
const HTTP: &str = "
    (local.set $i (i32.load offset=12 (local.get 0)))
    (i32.store16 offset=8 (i32.const 512) (i32.const 200))
    (if (i32.eq (local.get $i) (i32.const 5)) (then unreachable))
    (if (i32.eq (local.get $i) (i32.const 6)) (then (loop $l (br $l))))
    (i32.store8 offset=20 (i32.const 512) (i32.const 0))
    (i32.store offset=24 (i32.const 512) (i32.const TEXT))
    (i32.store offset=28 (i32.const 512) (i32.const 3))
    (if (i32.eq (local.get $i) (i32.const 4)) (then
      (i32.store8 offset=20 (i32.const 512) (i32.const 1))
      (i32.store offset=24 (i32.const 512) (call $new-stream (i32.const 1)))
      (global.set $at (i32.const 0))))
    (if (i32.eq (local.get $i) (i32.const 8)) (then
      (i32.store8 offset=20 (i32.const 512) (i32.const 1))
      (i32.store offset=24 (i32.const 512) (call $new-stream (i32.const 1)))
      (global.set $at (i32.const -2000000000))))
    (i32.const 512)";
const NEXT: &str = "
    (global.set $at (i32.add (global.get $at) (i32.const 1)))
    (i32.store8 offset=8 (i32.const 768) (i32.le_s (global.get $at) (i32.const 3)))
    (i32.store offset=12 (i32.const 768) (i32.const 1040))
    (i32.store offset=16 (i32.const 768) (i32.const 9))
    (i32.const 768)";
/// An event of type `test.kind` at 2048.
const EVENT: &str = "
    (i32.store offset=2060 (i32.const 0) (i32.const 1024)) (i32.store offset=2064 (i32.const 0) (i32.const 9))";
const POLL: &str = "
    (i32.store offset=8 (i32.const 800) (i32.const 2048)) (i32.store offset=12 (i32.const 800) (i32.const 1))
    (i32.const 800)";

fn leak(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

/// A guest with every export, whose text is at this place of its memory.
fn probe(text_at: &str) -> Vec<u8> {
    let guest = Guest {
        imports: &["bus"],
        own: OWN,
        handle_http: leak(HTTP.replace("TEXT", text_at)),
        next: NEXT,
        handle_event: leak(format!("{EVENT} (call $publish (i32.const 2048) (i32.const 4096)) (i32.const 0)")),
        poll: leak(format!("{EVENT}{POLL}")),
        ..Guest::default()
    };
    guest.component()
}

/// What [`keeper`] works with.
const KEEPER: &str = r#"
    (import "aman:plugin/kv@0.1.0" "get" (func $get (param i32 i32 i32)))
    (import "aman:plugin/kv@0.1.0" "set" (func $set (param i32 i32 i32 i32 i32)))
    (import "aman:plugin/sql@0.1.0" "execute" (func $execute (param i32 i32 i32 i32 i32)))
    (data (i32.const 1024) "key")
    (data (i32.const 1032) "value")
    (data (i32.const 1040) "CREATE TABLE IF NOT EXISTS t (x)")"#;
/// `/t` is 200 when the key is there and else 404; `/put` sets it and makes a table.
const KEEPS: &str = "
    (i32.store16 offset=8 (i32.const 512) (i32.const 200))
    (if (i32.eq (i32.load offset=12 (local.get 0)) (i32.const 4))
      (then
        (call $set (i32.const 1024) (i32.const 3) (i32.const 1032) (i32.const 5) (i32.const 4096))
        (call $execute (i32.const 1040) (i32.const 32) (i32.const 0) (i32.const 0) (i32.const 4352))
        (if (i32.or (i32.load8_u (i32.const 4096)) (i32.load8_u (i32.const 4352))) (then unreachable)))
      (else
        (call $get (i32.const 1024) (i32.const 3) (i32.const 4608))
        (if (i32.eqz (i32.load8_u offset=8 (i32.const 4608)))
          (then (i32.store16 offset=8 (i32.const 512) (i32.const 404))))))
    (i32.const 512)";

/// A guest that keeps something.
fn keeper() -> Vec<u8> {
    Guest { imports: &["kv", "sql"], own: KEEPER, handle_http: KEEPS, ..Guest::default() }.component()
}

/// What [`echo`] works with: `$put` appends a text and a byte to what is written from 8192 on.
const ECHO: &str = "
    (global $out (mut i32) (i32.const 0))
    (global $end (mut i32) (i32.const 0))
    (func $put (param i32 i32 i32)
      (memory.copy (global.get $out) (local.get 0) (local.get 1))
      (global.set $out (i32.add (global.get $out) (local.get 1)))
      (i32.store8 (global.get $out) (local.get 2))
      (global.set $out (i32.add (global.get $out) (i32.const 1))))";
/// Answers with the headers of the request, as headers and, a line each, as body.
const ECHOES: &str = "
    (global.set $out (i32.const 8192))
    (local.set $i (i32.load offset=44 (local.get 0)))
    (global.set $end
      (i32.add (local.get $i) (i32.shl (i32.load offset=48 (local.get 0)) (i32.const 4))))
    (block $done (loop $next
      (br_if $done (i32.ge_u (local.get $i) (global.get $end)))
      (call $put (i32.load (local.get $i)) (i32.load offset=4 (local.get $i)) (i32.const 61))
      (call $put (i32.load offset=8 (local.get $i)) (i32.load offset=12 (local.get $i)) (i32.const 10))
      (local.set $i (i32.add (local.get $i) (i32.const 16)))
      (br $next)))
    (i32.store16 offset=8 (i32.const 512) (i32.const 200))
    (i32.store offset=12 (i32.const 512) (i32.load offset=44 (local.get 0)))
    (i32.store offset=16 (i32.const 512) (i32.load offset=48 (local.get 0)))
    (i32.store8 offset=20 (i32.const 512) (i32.const 0))
    (i32.store offset=24 (i32.const 512) (i32.const 8192))
    (i32.store offset=28 (i32.const 512) (i32.sub (global.get $out) (i32.const 8192)))
    (i32.const 512)";

/// A guest that tells what it was told.
fn echo() -> Vec<u8> {
    Guest { own: ECHO, handle_http: ECHOES, ..Guest::default() }.component()
}

/// Goal: the committed guests are what their text here makes; scripts/bless writes them.
#[test]
fn golden_guests_are_the_committed_ones() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/guests");
    let all =
        [("one.wasm", probe("1056")), ("two.wasm", probe("1064")), ("keeper.wasm", keeper()), ("echo.wasm", echo())];
    for (name, made) in all {
        let path = folder.join(name);
        if std::env::var_os("AMAN_BLESS").is_some() {
            std::fs::create_dir_all(&folder).expect("a folder can be made");
            std::fs::write(&path, &made).expect("a file can be written");
        }
        assert!(std::fs::read(&path).is_ok_and(|kept| kept == made), "{name} is another one: run scripts/bless");
    }
}
