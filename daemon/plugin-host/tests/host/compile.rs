//! The compiler's child, the cache, and what may be loaded.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use aman_plugin_host::{Artifact, COMPONENT_BYTES_MAX, Fault, Grants, Host, Limits, sha256_hex};

use crate::guest::Guest;
use crate::harness::{ALL, Bench, Fake, caller};

/// Not a test of its own: what [`Bench`] starts as the compiler, with the output's path as the last argument.
#[test]
fn compile_child() {
    let last = std::env::args().next_back().map(PathBuf::from);
    if let Some(output) = last.filter(|path| path.is_absolute() && path.extension().is_some_and(|end| end == "tmp")) {
        std::process::exit(aman_plugin_host::compile_child(&output));
    }
}

fn files(bench: &Bench) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(&bench.folder).map(|entries| entries.flatten().map(|entry| entry.path()).collect());
    entries.unwrap_or_default()
}

/// Goal: compiled code lies in a private folder under the digest of its component, and nothing else does.
#[tokio::test(flavor = "multi_thread")]
async fn code_is_cached_by_digest() {
    let bench = Bench::new();
    let component = Guest::default().component();
    let artifact = bench.host.compile(&component).await.expect("it compiles");
    assert_eq!(artifact.component_sha256, sha256_hex(&component));
    let [file]: [PathBuf; 1] = files(&bench).try_into().expect("one file");
    let code = std::fs::read(&file).expect("it can be read");
    assert_eq!((artifact.sha256.clone(), artifact.bytes), (sha256_hex(&code), code.len() as u64));
    let mode = |path: &PathBuf| std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!((mode(&bench.folder), mode(&file)), (0o700, 0o600));
    // Compiled again while a plugin runs on it: the same code under the same name, and nothing of another engine's.
    let plugin = bench.load(artifact.clone(), ALL, Limits::default()).expect("it loads");
    let old = bench.folder.join(format!("{}-0000000000000000.code", artifact.component_sha256));
    std::fs::write(&old, b"of before").expect("it can be written");
    assert_eq!(bench.host.compile(&component).await.expect("it compiles"), artifact);
    assert_eq!(files(&bench), [file]);
    plugin.probe(Fake::new(), caller()).await.expect("it begins");
    bench.host.forget(&artifact);
    assert!(files(&bench).is_empty());
    plugin.probe(Fake::new(), caller()).await.expect("what is loaded stays");
    let fault = bench.load(artifact, ALL, Limits::default()).expect_err("the code is gone");
    assert!(matches!(fault, Fault::Damaged { .. }), "{fault:?}");
}

/// Goal: what is no component is refused in words, and leaves nothing behind.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_component_is_refused() {
    let bench = Bench::new();
    let artifact = bench.compile(&Guest::default()).await;
    let code = std::fs::read(&files(&bench)[0]).expect("it can be read");
    bench.host.forget(&artifact);
    let component = Guest::default().component();
    let mut bad_section = component.clone();
    bad_section.extend([0x7f, 0x01, 0x00]);
    let cases: [(&str, Vec<u8>, &str); 7] = [
        ("nothing", Vec::new(), "no WebAssembly component"),
        ("text", b"(component)".to_vec(), "no WebAssembly component"),
        ("a core module", wat::parse_str("(module)").expect("a module"), "core module"),
        ("compiled code", code, "compiled code"),
        ("half a component", component[..component.len() / 2].to_vec(), ""),
        ("an unknown section", bad_section, ""),
        ("too much", [component, vec![0; COMPONENT_BYTES_MAX]].concat(), "at most"),
    ];
    for (name, bytes, words) in cases {
        let fault = bench.host.compile(&bytes).await.expect_err(name);
        assert!(matches!(&fault, Fault::Refused { reason } if reason.contains(words)), "{name}: {fault:?}");
        assert!(files(&bench).is_empty(), "{name}");
    }
}

/// Goal: code that is not what the daemon compiled never runs, however it was changed.
#[tokio::test(flavor = "multi_thread")]
async fn damaged_code_is_never_loaded() {
    let bench = Bench::new();
    let artifact = bench.compile(&Guest::default()).await;
    let file = files(&bench).remove(0);
    let code = std::fs::read(&file).expect("it can be read");
    let mut flipped = code.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    for (name, bytes) in [("flipped", flipped), ("cut", code[..code.len() / 2].to_vec()), ("empty", Vec::new())] {
        // As the cache replaces files: by renaming.
        let new = file.with_extension("x");
        std::fs::write(&new, bytes).expect("it can be written");
        std::fs::rename(&new, &file).expect("it can be renamed");
        let fault = bench.load(artifact.clone(), ALL, Limits::default()).expect_err(name);
        assert!(matches!(fault, Fault::Damaged { .. }), "{name}: {fault:?}");
    }
    // Even a digest that fits does not make code of what is none.
    std::fs::write(&file, b"nonsense").expect("it can be written");
    let forged = Artifact { sha256: sha256_hex(b"nonsense"), ..artifact.clone() };
    let fault = bench.load(forged, ALL, Limits::default()).expect_err("nonsense is no code");
    assert!(matches!(fault, Fault::Refused { .. }), "{fault:?}");
    let escaping = Artifact { component_sha256: "../../../../etc/passwd".to_owned(), ..artifact.clone() };
    assert!(bench.load(escaping, ALL, Limits::default()).is_err());
    let again = bench.host.compile(&Guest::default().component()).await.expect("it compiles again");
    assert_eq!(again, artifact);
    bench.load(again, ALL, Limits::default()).expect("and loads");
}

/// Goal: what the manifest does not ask for is denied by name before any code runs.
#[tokio::test(flavor = "multi_thread")]
async fn undeclared_imports_are_denied() {
    let bench = Bench::new();
    let guest = Guest {
        imports: &["kv", "bus"],
        own: r#"
            (import "aman:plugin/kv@0.1.0" "delete" (func (param i32 i32 i32)))
            (import "aman:plugin/bus@0.1.0" "publish" (func (param i32 i32)))"#,
        ..Guest::default()
    };
    let artifact = bench.compile(&guest).await;
    let grants = Grants { kv: true, ..Grants::default() };
    let fault = bench.load(artifact.clone(), grants, Limits::default()).expect_err("bus is not granted");
    assert_eq!(fault, Fault::Denied { imports: vec!["aman:plugin/bus".to_owned()] });
    assert!(fault.to_string().contains("aman:plugin/bus"));
    let plugin = bench.load(artifact, ALL, Limits::default()).expect("both are granted");
    assert_eq!(plugin.surface().imports, ["bus", "kv"]);
}

/// Goal: a plugin of another version is refused in words; a later patch of this one is served.
#[tokio::test(flavor = "multi_thread")]
async fn wrong_versions_are_refused_in_words() {
    let bench = Bench::new();
    for (version, served) in [("0.2.0", false), ("1.0.0", false), ("0.1.7", true)] {
        let component = Guest::default().of_version(version);
        let artifact = bench.host.compile(&component).await.expect("it is a component");
        match bench.load(artifact, ALL, Limits::default()) {
            Ok(plugin) if served => plugin.probe(Fake::new(), caller()).await.expect("it begins"),
            Err(Fault::Refused { reason }) if !served => {
                let minor = &version[..3];
                assert!(reason.contains(&format!("interface {minor}")) && reason.contains("serves 0.1"), "{reason}");
            }
            other => panic!("{version}: {other:?}"),
        }
    }
}

/// Goal: components that do not fit the interface are refused with what is wrong.
#[tokio::test(flavor = "multi_thread")]
async fn misfits_are_refused() {
    let bench = Bench::new();
    let of_text = |text: &str| wat::parse_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let event = "aman:plugin/events@0.1.0";
    let cases = [
        ("nothing at all", "(component)".to_owned(), "could do nothing"),
        (
            "an unknown import",
            r#"(component (import "evil:thing/files@1.0.0" (instance)))"#.to_owned(),
            "evil:thing/files",
        ),
        (
            "sockets",
            r#"(component (import "wasi:sockets/network@0.2.0" (instance)))"#.to_owned(),
            "wasi:sockets/network",
        ),
        (
            "an import of another type",
            format!(
                r#"(component
                  (import "aman:plugin/clock@0.1.0" (instance (export "now-ms" (func (result string)))))
                  (instance (export "{event}")))"#
            ),
            "does not fit",
        ),
        (
            "an unknown function",
            format!(
                r#"(component
                  (import "aman:plugin/clock@0.1.0" (instance (export "stop" (func))))
                  (instance (export "{event}")))"#
            ),
            "does not fit",
        ),
        ("an export without functions", format!(r#"(component (instance (export "{event}")))"#), "handle"),
    ];
    for (name, text, words) in cases {
        let artifact = bench.host.compile(&of_text(&text)).await.expect(name);
        let fault = bench.load(artifact, ALL, Limits::default()).expect_err(name);
        assert!(fault.to_string().contains(words), "{name}: {fault}");
        assert!(matches!(fault, Fault::Refused { .. }), "{name}: {fault:?}");
    }
}

/// Goal: an export with another type than the interface's is found out when the plugin is probed.
#[tokio::test(flavor = "multi_thread")]
async fn exports_of_another_type_fail_the_probe() {
    let bench = Bench::new();
    let text = r#"(component
        (core module $m (func (export "f")))
        (core instance $i (instantiate $m))
        (func $f (canon lift (core func $i "f")))
        (instance $e (export "handle" (func $f)))
        (export "aman:plugin/events@0.1.0" (instance $e)))"#;
    let artifact = bench.host.compile(&wat::parse_str(text).expect("a component")).await.expect("it compiles");
    let plugin = bench.load(artifact, ALL, Limits::default()).expect("names fit");
    let fault = plugin.probe(Fake::new(), caller()).await.expect_err("types do not");
    assert!(matches!(&fault, Fault::Refused { reason } if reason.contains("events")), "{fault:?}");
}

/// A number in the binary format.
fn leb(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = (number & 0x7f) as u8;
        number >>= 7;
        if number == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

fn section(id: u8, content: &[u8]) -> Vec<u8> {
    [vec![id], leb(content.len()), content.to_vec()].concat()
}

/// A component that holds one module, which has functions without arguments and results of these bodies.
fn component_of(bodies: &[Vec<u8>]) -> Vec<u8> {
    let functions = [leb(bodies.len()), vec![0; bodies.len()]].concat();
    let code = bodies.iter().flat_map(|body| [leb(body.len() + 1), vec![0], body.clone()].concat());
    let code: Vec<u8> = leb(bodies.len()).into_iter().chain(code).collect();
    let module =
        [b"\0asm\x01\0\0\0".to_vec(), section(1, &[1, 0x60, 0, 0]), section(3, &functions), section(10, &code)];
    [b"\0asm\x0d\0\x01\0".to_vec(), section(1, &module.concat())].concat()
}

/// Goal: giant components cost the daemon nothing: the child compiles them or gives up, in bounded time.
#[tokio::test(flavor = "multi_thread")]
async fn giant_components_end_in_bounded_time() {
    let bench = Bench::new();
    let nop_end = || vec![0x01, 0x0b];
    let blocks = |depth: usize| [[0x02, 0x40].repeat(depth), vec![0x0b; depth + 1]].concat();
    let cases = [
        ("very many functions", vec![nop_end(); 10_000]),
        ("very deep blocks", vec![blocks(20_000)]),
        ("a function that is too long", vec![[vec![0x01; 8_000_000], vec![0x0b]].concat()]),
    ];
    for (name, bodies) in cases {
        let began = std::time::Instant::now();
        let compiled = bench.host.compile(&component_of(&bodies)).await;
        assert!(began.elapsed() < std::time::Duration::from_secs(100), "{name}");
        let fault = match compiled {
            Ok(artifact) => bench.load(artifact, ALL, Limits::default()).expect_err("it exports nothing"),
            Err(fault) => fault,
        };
        assert!(matches!(fault, Fault::Refused { .. }), "{name}: {fault:?}");
    }
}

/// Goal: a compiler that crashes, talks without end, says nothing or cannot be started is a fault; it ends with whoever waits.
#[tokio::test(flavor = "multi_thread")]
async fn compilers_may_fail() {
    let (bench, component) = (Bench::new(), Guest::default().component());
    let shell = |script: &str| Host::new(bench.folder.clone(), ["/bin/sh", "-c", script].map(Into::into).to_vec());
    let fault = shell("kill -SEGV $$").compile(&component).await.expect_err("it crashes");
    assert!(matches!(&fault, Fault::Refused { reason } if reason.contains("signal: 11")), "{fault:?}");
    let fault = shell("cat; echo no >&2; exit 65").compile(&component).await.expect_err("it refuses");
    assert_eq!(fault, Fault::Refused { reason: "no".to_owned() });
    let fault =
        shell("head -c 9000000 /dev/zero | tr '\\0' x >&2; exit 3").compile(&component).await.expect_err("it fails");
    assert!(matches!(&fault, Fault::Internal { reason } if reason.len() < 5_000), "{}", fault.to_string().len());
    let fault = shell("exit 0").compile(&component).await.expect_err("it wrote nothing");
    assert!(matches!(fault, Fault::Internal { .. }), "{fault:?}");
    let none = Host::new(bench.folder.clone(), vec!["/no/such/program".into()]);
    assert!(matches!(none.compile(&component).await, Err(Fault::Internal { .. })));

    let mark = bench.folder.join("pid");
    let hanging = shell(&format!("echo $$ > '{}'; exec sleep 600", mark.display()));
    let waited = tokio::time::timeout(std::time::Duration::from_secs(5), hanging.compile(&component)).await;
    assert!(waited.is_err());
    let pid = std::fs::read_to_string(&mark).expect("the compiler started").trim().to_owned();
    let comm = format!("/proc/{pid}/comm");
    let ended = || !std::fs::read_to_string(&comm).is_ok_and(|name| name.trim() == "sleep");
    crate::harness::eventually("the compiler ends with whoever waits", ended).await;
    assert_eq!(files(&bench), [mark], "no compiler left anything behind");
}

/// Goal: without a plugin there is no thread, and after the last one there is none.
#[test]
fn nothing_runs_without_plugins() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let guests = || {
        let tasks = std::fs::read_dir("/proc/self/task").expect("Linux lists threads").flatten();
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
        names.filter(|name| name.starts_with("aman-")).count()
    };
    let bench = Bench::new();
    assert_eq!(guests(), 0);
    let artifact = runtime.block_on(bench.compile(&Guest::default()));
    let plugin = bench.load(artifact, ALL, Limits::default()).expect("it loads");
    runtime.block_on(plugin.probe(Fake::new(), caller())).expect("it begins");
    // A thread says its name itself, when it comes to run.
    runtime.block_on(crate::harness::eventually("the threads are there", || guests() >= 2));
    drop(plugin);
    runtime.block_on(crate::harness::eventually("the threads end", || guests() == 0));
}
