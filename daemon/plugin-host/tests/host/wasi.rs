//! The inert stubs of WASI, for toolchains that import it whether it is used or not.

use aman_plugin_host::{Fault, Limits};

use crate::harness::{ALL, Bench, Fake, caller};

/// A component that imports parts of WASI and calls one of them in its tool; `@call@` is a core expression.
const COMPONENT: &str = r#"(component
          (import "wasi:io/error@0.2.6" (instance $error (export "error" (type (sub resource)))))
          (alias export $error "error" (type $io-error))
          (import "wasi:io/streams@0.2.6" (instance $streams
            (alias outer 1 $io-error (type $outer-error))
            (export "error" (type $error (eq $outer-error)))
            (type $failed (variant (case "last-operation-failed" (own $error)) (case "closed")))
            (export "stream-error" (type $stream-error (eq $failed)))
            (export "output-stream" (type $out (sub resource)))
            (export "[method]output-stream.blocking-write-and-flush"
              (func (param "self" (borrow $out)) (param "contents" (list u8))
                (result (result (error $stream-error)))))))
          (alias export $streams "output-stream" (type $output))
          (import "wasi:cli/stderr@0.2.6" (instance $stderr
            (alias outer 1 $output (type $outer-output))
            (export "output-stream" (type $out (eq $outer-output)))
            (export "get-stderr" (func (result (own $out))))))
          (import "wasi:cli/environment@0.2.6" (instance $environment
            (export "get-environment" (func (result (list (tuple string string)))))))
          (import "wasi:cli/exit@0.2.6" (instance $exit
            (export "exit" (func (param "status" (result))))))
          (import "wasi:clocks/wall-clock@0.2.6" (instance $clock
            (type $datetime (record (field "seconds" u64) (field "nanoseconds" u32)))
            (export "datetime" (type $time (eq $datetime)))
            (export "now" (func (result $time)))))
          (import "wasi:random/insecure-seed@0.2.6" (instance $seed
            (export "insecure-seed" (func (result (tuple u64 u64))))))
          (import "wasi:filesystem/types@0.2.6" (instance $files
            (export "filesystem-error-code" (func (param "x" u32) (result u32)))))

          (core module $memory
            (memory (export "memory") 1)
            (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 32768)))
          (core instance $memory (instantiate $memory))
          (alias core export $memory "memory" (core memory $mem))
          (alias core export $memory "realloc" (core func $realloc))
          (alias export $streams "[method]output-stream.blocking-write-and-flush" (func $write))
          (alias export $stderr "get-stderr" (func $get-stderr))
          (alias export $environment "get-environment" (func $get-environment))
          (alias export $exit "exit" (func $exit-func))
          (alias export $clock "now" (func $now))
          (alias export $seed "insecure-seed" (func $insecure-seed))
          (alias export $files "filesystem-error-code" (func $error-code))
          (core func $core-write (canon lower (func $write) (memory $mem)))
          (core func $core-stderr (canon lower (func $get-stderr)))
          (core func $core-environment (canon lower (func $get-environment) (memory $mem) (realloc $realloc)))
          (core func $core-exit (canon lower (func $exit-func)))
          (core func $core-now (canon lower (func $now) (memory $mem)))
          (core func $core-seed (canon lower (func $insecure-seed) (memory $mem)))
          (core func $core-files (canon lower (func $error-code)))

          (core module $main
            (import "host" "memory" (memory 1))
            (import "host" "write" (func $write (param i32 i32 i32 i32)))
            (import "host" "stderr" (func $stderr (result i32)))
            (import "host" "environment" (func $environment (param i32)))
            (import "host" "exit" (func $exit (param i32)))
            (import "host" "now" (func $now (param i32)))
            (import "host" "seed" (func $seed (param i32)))
            (import "host" "files" (func $files (param i32) (result i32)))
            (data (i32.const 1024) "panicked at 'why'")
            (func (export "call") (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
              @call@ (i32.const 0)))
          (core instance $main (instantiate $main (with "host" (instance
            (export "memory" (memory $mem))
            (export "write" (func $core-write))
            (export "stderr" (func $core-stderr))
            (export "environment" (func $core-environment))
            (export "exit" (func $core-exit))
            (export "now" (func $core-now))
            (export "seed" (func $core-seed))
            (export "files" (func $core-files))))))

          @tools@)"#;

fn component(call: &str) -> Vec<u8> {
    let text = COMPONENT.replace("@call@", call).replace("@tools@", TOOLS);
    wat::parse_str(&text).unwrap_or_else(|error| panic!("{error}"))
}

/// The export of `tools`, with the types of the interface spelled out.
const TOOLS: &str = r#"
  (import "aman:plugin/types@0.1.0" (instance $types
    (type $invalid' (record (field "field" string) (field "reason" string)))
    (export "invalid-field" (type $invalid (eq $invalid')))
    (type $retry' (record (field "reason" string) (field "after-ms" (option u64))))
    (export "retry" (type $retry (eq $retry')))
    (type $error' (variant (case "denied" string) (case "not-found" string) (case "invalid" $invalid)
      (case "conflict" string) (case "limit" string) (case "unavailable" $retry) (case "timeout" string)
      (case "internal" string)))
    (export "error" (type (eq $error')))
    (type $trust' (enum "unknown" "web" "plugin" "group" "paired" "owner"))
    (export "trust" (type $trust (eq $trust')))
    (type $caller' (record (field "principal" string) (field "trust" $trust) (field "trace-id" string)
      (field "extensions" (list (tuple string string)))))
    (export "caller" (type (eq $caller')))))
  (alias export $types "error" (type $error))
  (alias export $types "caller" (type $caller))
  (func $call (param "name" string) (param "input" string) (param "caller" $caller) (result (result string (error $error)))
    (canon lift (core func $main "call") (memory $mem) (realloc $realloc)))
  (instance $tools (export "call" (func $call)))
  (export "aman:plugin/tools@0.1.0" (instance $tools))"#;

async fn run(bench: &Bench, call: &str) -> Result<(), Fault> {
    let artifact = bench.host.compile(&component(call)).await.expect("it compiles");
    let plugin = bench.load(artifact, ALL, Limits::default()).expect("it loads");
    assert!(plugin.surface().wasi && plugin.surface().tools);
    plugin.call_tool(Fake::new(), caller(), String::new(), String::new()).await.map(|answer| {
        assert_eq!(answer, Ok(String::new()));
    })
}

/// Goal: what a toolchain asks at the beginning has an answer without content, and clocks and seeds are real.
#[tokio::test(flavor = "multi_thread")]
async fn stubs_answer() {
    let bench = Bench::new();
    let call = "
        (call $environment (i32.const 4096))
        (if (i32.load offset=4 (i32.const 4096)) (then unreachable))
        (call $now (i32.const 4096))
        (if (i64.lt_u (i64.load (i32.const 4096)) (i64.const 1700000000)) (then unreachable))
        (call $seed (i32.const 4096))
        (if (i64.eq (i64.load (i32.const 4096)) (i64.load offset=8 (i32.const 4096))) (then unreachable))
        (i64.store (i32.const 4096) (i64.const 0)) (i64.store (i32.const 4104) (i64.const 0))";
    run(&bench, call).await.expect("all answer");
}

/// Goal: a panic's message is in the fault, and what a plugin does not have is named.
#[tokio::test(flavor = "multi_thread")]
async fn last_words_are_kept() {
    let bench = Bench::new();
    let cases = [
        (
            "(call $write (call $stderr) (i32.const 1024) (i32.const 17) (i32.const 4096)) unreachable",
            "`unreachable` instruction executed; it said: panicked at 'why'",
        ),
        ("(call $exit (i32.const 1))", "it called exit"),
        (
            "(drop (call $files (i32.const 1)))",
            "it called wasi:filesystem/types#filesystem-error-code, which a plugin does not have",
        ),
    ];
    for (call, words) in cases {
        let fault = run(&bench, call).await.expect_err(words);
        assert!(matches!(&fault, Fault::Trap { message } if message.contains(words)), "{fault:?}");
    }
}
