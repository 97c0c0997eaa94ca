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

/// Goal: the committed guests are what their text here makes; scripts/bless writes them.
#[test]
fn golden_guests_are_the_committed_ones() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/guests");
    for (name, made) in [("one.wasm", probe("1056")), ("two.wasm", probe("1064"))] {
        let path = folder.join(name);
        if std::env::var_os("AMAN_BLESS").is_some() {
            std::fs::create_dir_all(&folder).expect("a folder can be made");
            std::fs::write(&path, &made).expect("a file can be written");
        }
        assert!(std::fs::read(&path).is_ok_and(|kept| kept == made), "{name} is another one: run scripts/bless");
    }
}
