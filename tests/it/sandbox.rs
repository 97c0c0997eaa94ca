//! The sandbox through the real binary, with namespaces and without: what a script's author and a user would notice.

use std::fs;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use aman::sandbox::{Exit, Finished, Limits, Network, NetworkGuard, ProcessGuard, Sandbox, SandboxError, Spec};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::harness::{Daemon, say, write_skill};

/// Says to the copy of this test binary that plays the daemon which folder to use.
const HELPER: &str = "AMAN_TEST_SANDBOX_HELPER";

/// Says to the copy that plays a client where to look for sockets.
const CLIENT: &str = "AMAN_TEST_SANDBOX_CLIENT";

/// A folder of its own, removed at the end: `work` may be written, `granted` read, the rest is foreign.
struct Place {
    root: PathBuf,
    sandbox: Sandbox,
}

impl Place {
    fn new() -> Place {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let root = std::env::temp_dir().join(format!("aman-sandbox-{}-{n}", std::process::id()));
        for folder in ["work", "granted", "run", "foreign"] {
            fs::create_dir_all(root.join(folder)).expect("make folder");
        }
        fs::write(root.join("granted/open.txt"), "open").expect("write");
        fs::write(root.join("foreign/secret.txt"), "secret").expect("write");
        Place { sandbox: sandbox(&root), root }
    }

    /// The two kinds of machine.
    fn sandboxes(&self) -> [Sandbox; 2] {
        [self.sandbox.clone(), self.sandbox.without_namespaces()]
    }

    fn spec(&self, argv: &[&str]) -> Spec {
        spec_in(&self.root, argv)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _best_effort = fs::remove_dir_all(&self.root);
    }
}

fn sandbox(root: &Path) -> Sandbox {
    Sandbox::with_program(&root.join("run"), Path::new(env!("CARGO_BIN_EXE_aman")))
}

fn spec_in(root: &Path, argv: &[&str]) -> Spec {
    Spec {
        argv: argv.iter().map(|word| (*word).to_owned()).collect(),
        dir: root.join("work"),
        env: vec![("PATH".to_owned(), aman::sandbox::PATH.to_owned())],
        stdin: Bytes::new(),
        own: None,
        read: vec![root.join("granted")],
        write: vec![root.join("work")],
        net: Network::None,
        limits: Limits { time: Duration::from_secs(20), ..Limits::default() },
    }
}

async fn run(sandbox: &Sandbox, spec: Spec) -> Finished {
    sandbox.run(spec, CancellationToken::new()).await.expect("the sandbox starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Whether any process of this machine has `word` in its command line.
fn alive(word: &str) -> bool {
    let Ok(processes) = fs::read_dir("/proc") else { return false };
    processes
        .flatten()
        .filter_map(|process| fs::read(process.path().join("cmdline")).ok())
        .any(|line| line.split(|byte| *byte == 0).any(|argument| argument == word.as_bytes()))
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not happen in 10 s");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// An argument for `sleep` that no other process has.
fn unique_seconds() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    format!("3600.{}{:03}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Goal: a script reads the system and what it was granted, and nothing else.
#[tokio::test]
async fn reads_only_what_was_granted() {
    let place = Place::new();
    let granted = place.root.join("granted/open.txt");
    let foreign = place.root.join("foreign/secret.txt");
    for sandbox in place.sandboxes() {
        let open = run(&sandbox, place.spec(&["cat", &granted.to_string_lossy()])).await;
        assert_eq!((open.exit, text(&open.stdout).as_str()), (Exit::Exited(0), "open"), "{open:?}");
        let system = run(&sandbox, place.spec(&["ls", "/usr/bin"])).await;
        assert_eq!(system.exit, Exit::Exited(0), "{system:?}");
        let secret = run(&sandbox, place.spec(&["cat", &foreign.to_string_lossy()])).await;
        assert_eq!((secret.exit, text(&secret.stdout).as_str()), (Exit::Exited(1), ""));
        let reason = text(&secret.stderr);
        assert!(reason.contains("ermission denied") || reason.contains("No such file"), "{secret:?}");
    }
}

/// Goal: a script writes only where it may, private files of the daemon's own user.
#[tokio::test]
async fn writes_only_where_granted() {
    let place = Place::new();
    for sandbox in place.sandboxes() {
        let script = "echo new > file && mkdir -p sub && mv file sub/file && : > sub/file && echo kept > sub/file";
        let inside = run(&sandbox, place.spec(&["sh", "-c", script])).await;
        assert_eq!(inside.exit, Exit::Exited(0), "{inside:?}");
        let written = place.root.join("work/sub/file");
        assert_eq!(fs::read_to_string(&written).expect("written"), "kept\n");
        let (file, folder) = (fs::metadata(&written).expect("file"), fs::metadata(&place.root).expect("folder"));
        assert_eq!((file.uid(), file.gid()), (folder.uid(), folder.gid()));
        assert_eq!(file.mode() & 0o077, 0, "private");
        for target in ["granted/open.txt", "granted/new.txt", "foreign/secret.txt"] {
            let target = place.root.join(target);
            let outside = run(&sandbox, place.spec(&["sh", "-c", "echo x > \"$0\"", &target.to_string_lossy()])).await;
            assert_eq!(outside.exit, Exit::Exited(2), "{} {outside:?}", target.display());
        }
        assert_eq!(fs::read_to_string(place.root.join("granted/open.txt")).expect("unchanged"), "open");
        assert!(!place.root.join("granted/new.txt").exists());
    }
}

/// Goal: without network a script reaches not even this machine; with it, it does; and the report says which.
#[tokio::test]
async fn network_only_when_granted() {
    let place = Place::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let address = format!("/dev/tcp/127.0.0.1/{}", listener.local_addr().expect("address").port());
    for sandbox in place.sandboxes() {
        let mut spec = place.spec(&["bash", "-c", "exec 3<>\"$0\"", &address]);
        let refused = run(&sandbox, spec.clone()).await;
        assert_eq!(refused.exit, Exit::Exited(1), "{refused:?}");
        let guard = refused.enforced.network;
        assert!(matches!(guard, NetworkGuard::Namespace | NetworkGuard::Filter | NetworkGuard::Partial), "{guard:?}");
        spec.net = Network::Any;
        let connected = run(&sandbox, spec).await;
        assert_eq!((connected.exit, connected.enforced.network), (Exit::Exited(0), NetworkGuard::Allowed));
    }
}

/// Plays the program that talks to every socket it can think of; does nothing by itself.
#[test]
fn as_client() {
    let Ok(folders) = std::env::var(CLIENT) else { return };
    for folder in folders.split(':') {
        let socket = Path::new(folder).join("bus");
        say(&format!(
            "stream in {folder}: {}",
            if UnixStream::connect(&socket).is_ok() { "reached" } else { "refused" }
        ));
        // A pair needs no right to make sockets, and datagrams of one may be addressed to others.
        let sent = UnixDatagram::pair().and_then(|(one, _)| one.send_to(b"do it", Path::new(folder).join("log")));
        say(&format!("datagram in {folder}: {}", if sent.is_ok() { "reached" } else { "refused" }));
        let name = SocketAddr::from_abstract_name(folder.as_bytes()).expect("a short name");
        say(&format!(
            "abstract {folder}: {}",
            if UnixStream::connect_addr(&name).is_ok() { "reached" } else { "refused" }
        ));
    }
}

/// Goal: a script without network cannot ask a program on this machine to act for it, not even through a socket in a
/// folder that it was granted.
#[tokio::test]
async fn sockets_of_others_are_out_of_reach() {
    let place = Place::new();
    let folders = ["foreign", "granted", "work"].map(|name| place.root.join(name));
    let abstract_name = |folder: &Path| SocketAddr::from_abstract_name(folder.as_os_str().as_encoded_bytes());
    let _listeners: Vec<_> = folders
        .iter()
        .map(|folder| {
            let stream = UnixListener::bind(folder.join("bus")).expect("listen");
            let datagram = UnixDatagram::bind(folder.join("log")).expect("listen");
            let name = abstract_name(folder).expect("a short name");
            (stream, datagram, UnixListener::bind_addr(&name).expect("listen"))
        })
        .collect();
    let program = std::env::current_exe().expect("own path");
    let listed = folders.iter().map(|folder| folder.to_string_lossy()).collect::<Vec<_>>().join(":");
    for sandbox in place.sandboxes() {
        let mut spec = place.spec(&[&program.to_string_lossy(), "--exact", "sandbox::as_client", "--nocapture"]);
        spec.env.push((CLIENT.to_owned(), listed.clone()));
        spec.read.push(program.clone());
        let filtered =
            |finished: &Finished| finished.enforced.limits.iter().any(|limit| limit == "system calls filtered");
        let finished = run(&sandbox, spec.clone()).await;
        let said = text(&finished.stderr);
        assert_eq!(said.matches("refused").count() + said.matches("reached").count(), 9, "{finished:?}");
        if filtered(&finished) {
            assert!(!said.contains("reached"), "{finished:?}");
        }
        // With network, sockets in what was granted are part of it; others are there no more, or said to be open.
        spec.net = Network::Any;
        let finished = run(&sandbox, spec).await;
        let said = text(&finished.stderr);
        assert!(said.contains(&format!("stream in {}: reached", folders[1].display())), "{finished:?}");
        let foreign = said.contains(&format!("stream in {}: reached", folders[0].display()));
        assert!(!foreign || finished.enforced.gaps.iter().any(|gap| gap.contains("socket")), "{finished:?}");
    }
}

/// Goal: what a script may only read it cannot change in any way, nor anything that it cannot see.
#[tokio::test]
async fn modes_and_times_elsewhere_stay() {
    let place = Place::new();
    let program = place.root.join("granted/open.txt");
    let script = r#"cd "$0" || exit 9
        for file in granted granted/open.txt foreign foreign/secret.txt . run; do
            chmod 777 "$file"; touch -d 2000-01-01 "$file"; touch -h -d 2000-01-01 "$file"; chown 1:1 "$file"
            setfattr -n user.mark -v x "$file"; ln "$file" work/hard; mv "$file" work/moved
        done
        chmod 700 work && touch -d 2000-01-01 work && echo own"#;
    let look = |name: &str| {
        let found = fs::metadata(place.root.join(name)).expect("it is there");
        (found.mode(), found.uid(), found.gid(), found.mtime(), found.nlink())
    };
    let names = ["granted", "granted/open.txt", "foreign", "foreign/secret.txt", ".", "run"];
    let before = names.map(look);
    let mut spec = place.spec(&["sh", "-c", script, &place.root.to_string_lossy()]);
    spec.dir = place.root.clone();
    let finished = run(&place.sandbox, spec).await;
    if !finished.enforced.gaps.iter().any(|gap| gap.contains("Mode, owner and times")) {
        assert_eq!(names.map(look), before, "{finished:?}");
        assert_eq!(text(&finished.stdout), "own\n", "{finished:?}");
    }
    assert_eq!(fs::read_to_string(program).expect("unchanged"), "open");
}

/// Goal: nothing that would widen its rights later is left to a script: capabilities, user namespaces, memory of others,
/// keys, settings of the kernel.
#[tokio::test]
async fn no_powers_are_left() {
    let place = Place::new();
    for sandbox in place.sandboxes() {
        let script = "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status; unshare -Ur true && echo namespace; \
                      (echo 1 > /proc/sys/vm/drop_caches) && echo setting; cat /proc/1/environ && echo environment; \
                      (echo 5 > /proc/$PPID/oom_score_adj) && echo score; mount -t tmpfs none /tmp && echo mount; \
                      cp /bin/true own && chmod 4755 own && echo bit; chmod 2755 . && echo bit; \
                      install -m 6755 /bin/true own; :";
        let finished = run(&sandbox, place.spec(&["sh", "-c", script])).await;
        let said = text(&finished.stdout);
        for line in said.lines() {
            let (name, value) = line.split_once(":\t").unwrap_or((line, ""));
            let expected = if name == "NoNewPrivs" { "1" } else { "0000000000000000" };
            assert!(value == expected || (name == "Seccomp" && value == "2"), "{line}: {finished:?}");
        }
        assert!(said.contains("CapEff"), "{finished:?}");
        let filtered = finished.enforced.limits.iter().any(|limit| limit == "system calls filtered");
        for name in ["work/own", "work"].iter().filter(|_| filtered) {
            assert_eq!(fs::metadata(place.root.join(name)).expect("it is there").mode() & 0o6000, 0, "{name}");
        }
    }
}

/// Runs this script as a skill with these permissions; gives its delivery once it has ended.
fn attempt(daemon: &Daemon, name: &str, permissions: &str, script: &str) -> Value {
    let kind = format!("t.{name}");
    let (on, permissions) = (format!("aman.on: {kind}"), format!("aman.permissions: \"{permissions}\""));
    write_skill(daemon.home(), name, &[&on, "aman.retry: attempts=2 base=10ms", &permissions], script);
    assert_eq!(daemon.post("/skills/reload", &json!({})).status, 200);
    let event = daemon.push(&kind, json!({}));
    crate::skills::ended(daemon, &event, name)
}

/// Goal: a script that makes links in a folder that it may write gets nothing by them, in no later attempt.
#[test]
fn links_widen_no_grant() {
    let daemon = Daemon::start();
    let home = daemon.home().to_owned();
    fs::write(home.join("token"), "TOKEN-OF-THE-DAEMON").expect("token");
    let cases = [
        ("final", "write:$AMAN_DATA/a read:$AMAN_DATA/a/key", "ln -s ../token $AMAN_DATA/a/key", "$AMAN_DATA/a/key"),
        (
            "middle",
            "write:$AMAN_DATA/b read:$AMAN_DATA/b/up/token",
            "ln -s .. $AMAN_DATA/b/up",
            "$AMAN_DATA/b/up/token",
        ),
        (
            "swapped",
            "write:$AMAN_DATA/c write:$AMAN_DATA/c/all",
            "rmdir $AMAN_DATA/c/all; ln -s .. $AMAN_DATA/c/all",
            "$AMAN_DATA/c/all/token",
        ),
        (
            "made",
            "write:$AMAN_DATA/d write:$AMAN_DATA/d/up/new",
            "rm -r $AMAN_DATA/d/up; ln -s .. $AMAN_DATA/d/up",
            "/",
        ),
    ];
    for (name, permissions, make, look) in cases {
        let script =
            format!("[ $AMAN_ATTEMPT = 2 ] && {{ cat {look} >&2; echo x > {look}; exit 65; }}\n{make}\nexit 75\n");
        let delivery = attempt(&daemon, name, permissions, &script);
        let error = delivery["error"].to_string();
        assert_eq!(delivery["status"], "dead", "{delivery}");
        assert!(!error.contains("TOKEN-OF"), "{name}: {error}");
        // Before the sandbox the daemon itself makes folders that are to be written.
        let expected =
            if name == "made" { ["d/up/new'", "cannot be made"] } else { ["permission '", "a symbolic link"] };
        assert!(expected.iter().all(|part| error.contains(part)), "{name}: {error}");
    }
    assert_eq!(fs::read_to_string(home.join("token")).expect("token"), "TOKEN-OF-THE-DAEMON");
    assert!(!home.join("new").exists(), "the daemon follows no link either");
}

/// Goal: no permission reaches what is the daemon's own, by whatever name; and the owner hears of it before it runs.
#[test]
fn the_daemons_own_is_granted_to_nobody() {
    let daemon = Daemon::start();
    let home = daemon.home().to_owned();
    fs::write(home.join("token"), "TOKEN-OF-THE-DAEMON").expect("token");
    fs::create_dir(home.join("box")).expect("folder");
    fs::hard_link(home.join("token"), home.join("box/hard")).expect("hard link");
    for folder in ["plugins/.code", "plugins/.data", "plugins/probe/0"] {
        fs::create_dir_all(home.join(folder)).expect("folder");
    }
    let cases = [
        ("all", "read:$AMAN_DATA", true),
        ("above", "write:/", true),
        ("token", "read:$AMAN_DATA/token", true),
        ("database", "read:$AMAN_DATA/aman.db-wal", true),
        ("config", "write:$AMAN_DATA/aman.toml", true),
        ("run", "read:$AMAN_DATA/run/work", true),
        ("skills", "write:$AMAN_DATA/skills", true),
        ("schemas", "write:$AMAN_DATA/schemas", true),
        ("plugins", "write:$AMAN_DATA/plugins", true),
        ("compiled", "write:$AMAN_DATA/plugins/.code", true),
        ("installed", "write:$AMAN_DATA/plugins/probe/0", true),
        ("kept", "read:$AMAN_DATA/plugins/.data", true),
        ("other-name", "read:$AMAN_DATA/box/hard", false),
    ];
    for (name, permissions, told) in cases {
        let delivery = attempt(&daemon, name, permissions, "cat $AMAN_DATA/token $AMAN_DATA/box/hard >&2; exit 65");
        let error = delivery["error"].to_string();
        assert!(error.contains("permission '") && error.contains("is refused"), "{name}: {delivery}");
        let warnings = daemon.get(&format!("/skill/{name}")).json["warnings"].to_string();
        assert_eq!(warnings.contains("will be refused"), told, "{name}: {warnings}");
    }
    let delivery =
        attempt(&daemon, "reader", "read:$AMAN_DATA/skills write:$AMAN_DATA/box2", "ls $AMAN_DATA/skills >&2");
    assert_eq!(delivery["status"], "done", "{delivery}");
}

/// Goal: the environment is exactly what was given, and the script knows nothing of the daemon's.
#[tokio::test]
async fn environment_is_scrubbed() {
    let place = Place::new();
    for sandbox in place.sandboxes() {
        let mut spec = place.spec(&["env"]);
        spec.env = vec![("AMAN_EVENT_ID".to_owned(), "e 1".to_owned())];
        let finished = run(&sandbox, spec).await;
        assert_eq!(text(&finished.stdout), "AMAN_EVENT_ID=e 1\n");
    }
}

/// Goal: exit codes and signals arrive exactly as the script made them.
#[tokio::test]
async fn exit_codes_are_exact() {
    let place = Place::new();
    for sandbox in place.sandboxes() {
        for code in [0, 1, 2, 65, 75, 126, 127, 137, 255] {
            let finished = run(&sandbox, place.spec(&["sh", "-c", &format!("exit {code}")])).await;
            assert_eq!(finished.exit, Exit::Exited(code));
        }
        for (name, number) in [("KILL", 9), ("TERM", 15), ("SEGV", 11), ("PIPE", 13)] {
            let finished = run(&sandbox, place.spec(&["sh", "-c", &format!("kill -{name} $$")])).await;
            assert_eq!(finished.exit, Exit::Signalled(number));
        }
    }
}

/// Goal: a megabyte goes in and comes out whole; a script that ignores its input is none the worse.
#[tokio::test]
async fn large_input_round_trip() {
    let place = Place::new();
    let input: Vec<u8> = (0..1_048_576_u32).map(|n| n.to_le_bytes()[(n % 3) as usize]).collect();
    for sandbox in place.sandboxes() {
        for argv in [&["cat"][..], &["cat", "/dev/stdin"], &["true"]] {
            let mut spec = place.spec(argv);
            spec.stdin = Bytes::from(input.clone());
            let finished = run(&sandbox, spec).await;
            let expected: &[u8] = if argv == ["true"] { &[] } else { &input };
            assert_eq!(finished.exit, Exit::Exited(0), "{argv:?} {}", text(&finished.stderr));
            assert!(finished.stdout == expected, "{argv:?} gave {} bytes", finished.stdout.len());
        }
    }
}

/// Goal: too much output ends the script, too much log does not.
#[tokio::test]
async fn output_is_limited() {
    let place = Place::new();
    for sandbox in place.sandboxes() {
        let mut spec = place.spec(&["yes"]);
        spec.limits.stdout_bytes_max = 10_000;
        let finished = run(&sandbox, spec).await;
        assert_eq!((finished.exit, finished.stdout.len()), (Exit::OutputTooLarge, 10_000));
        assert!(finished.duration < Duration::from_secs(5), "{finished:?}");

        let mut spec = place.spec(&["sh", "-c", "head -c 200000 /dev/zero >&2; echo ok"]);
        spec.limits.stderr_bytes_max = 1_000;
        let finished = run(&sandbox, spec).await;
        assert_eq!((finished.exit, text(&finished.stdout).as_str()), (Exit::Exited(0), "ok\n"));
        assert_eq!((finished.stderr.len(), finished.stderr_truncated), (1_000, true));
    }
}

/// Goal: after the time limit nothing the script started is alive, however it tried to get away.
#[tokio::test]
async fn time_limit_ends_everything() {
    let place = Place::new();
    for sandbox in place.sandboxes() {
        let seconds = unique_seconds();
        let script = "setsid sleep \"$0\" & (setsid sh -c \"trap '' TERM; sleep $0; :\" &) ; sleep \"$0\"";
        let mut spec = place.spec(&["sh", "-c", script, &seconds]);
        spec.limits.time = Duration::from_millis(300);
        let finished = run(&sandbox, spec).await;
        assert_eq!(finished.exit, Exit::TimedOut, "{finished:?}");
        assert!(finished.duration < Duration::from_secs(5), "{finished:?}");
        assert!(!alive(&seconds));
    }
}

/// Goal: a script told to stop may tidy up, and one that will not is killed a second later.
#[tokio::test]
async fn cancelled_with_grace() {
    let place = Place::new();
    for sandbox in place.sandboxes() {
        let started = place.root.join("work/started");
        for (on_term, output) in [("echo tidy; exit 0", "tidy\n"), (":", "")] {
            let _fresh = fs::remove_file(&started);
            let script = format!("trap '{on_term}' TERM; : > started; while :; do sleep 0.05; done");
            let cancel = CancellationToken::new();
            let running = sandbox.run(place.spec(&["sh", "-c", &script]), cancel.clone());
            let (finished, ()) = tokio::join!(running, async {
                eventually("the start", || started.exists()).await;
                cancel.cancel();
            });
            let finished = finished.expect("the sandbox starts");
            assert_eq!((finished.exit, text(&finished.stdout).as_str()), (Exit::Cancelled, output));
            assert!(finished.duration < Duration::from_secs(5), "{finished:?}");
        }
    }
}

/// Goal: a script that ends while something it left behind holds its output is over at once, and so is that.
#[tokio::test]
async fn leftovers_die_with_the_script() {
    let place = Place::new();
    for sandbox in place.sandboxes() {
        let seconds = unique_seconds();
        let script = "setsid sleep \"$0\" & echo done";
        let finished = run(&sandbox, place.spec(&["sh", "-c", script, &seconds])).await;
        assert_eq!((finished.exit, text(&finished.stdout).as_str()), (Exit::Exited(0), "done\n"));
        assert!(finished.duration < Duration::from_secs(5), "{finished:?}");
        assert!(!alive(&seconds));
    }
}

/// Goal: dropping a run ends it, too.
#[tokio::test]
async fn dropped_run_ends_everything() {
    let place = Place::new();
    for sandbox in place.sandboxes() {
        let seconds = unique_seconds();
        let argv = ["sh", "-c", "setsid sleep \"$0\" & sleep \"$0\"", &seconds];
        let running = tokio::time::timeout(Duration::from_secs(1), run(&sandbox, place.spec(&argv)));
        assert!(running.await.is_err(), "it sleeps");
        eventually("the end", || !alive(&seconds)).await;
    }
}

/// Goal: what cannot run is told apart from what ran and failed, by name.
#[tokio::test]
async fn commands_that_cannot_run() {
    let place = Place::new();
    fs::write(place.root.join("work/plain"), "no program").expect("write");
    fs::write(place.root.join("work/orphan"), "#!/no/such/interpreter\n").expect("write");
    for name in ["plain", "orphan"] {
        let mut rights = fs::metadata(place.root.join("work").join(name)).expect("file").permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut rights, 0o755);
        fs::set_permissions(place.root.join("work").join(name), rights).expect("executable");
    }
    for sandbox in place.sandboxes() {
        for (command, expected) in [
            ("no-such-command", "command 'no-such-command' was not found in"),
            ("./no-such-script", "command './no-such-script' was not found"),
            ("./plain", "it is neither a program nor a script"),
            ("./orphan", "the interpreter named in its first line does not exist"),
            ("../work", "command '../work' could not be started"),
        ] {
            let error = sandbox.run(place.spec(&[command]), CancellationToken::new()).await.expect_err(command);
            assert!(error.to_string().contains(expected), "{error}");
            let not_found = matches!(&error, SandboxError::CommandNotFound { command: named } if named == command);
            assert_eq!(not_found, command.contains("no-such"), "{error:?}");
        }
        let mut spec = place.spec(&["true"]);
        spec.dir = place.root.join("nowhere");
        let error = sandbox.run(spec, CancellationToken::new()).await.expect_err("no folder");
        assert!(matches!(error, SandboxError::Invalid { field: "dir", .. }), "{error}");
        let error = sandbox.run(place.spec(&[]), CancellationToken::new()).await.expect_err("no command");
        assert!(matches!(error, SandboxError::Invalid { field: "argv", .. }), "{error}");
    }
}

/// Goal: memory, file size and open files are held to their limits, and the report names them.
#[tokio::test]
async fn resources_are_limited() {
    let place = Place::new();
    for sandbox in place.sandboxes() {
        let mut spec = place.spec(&["dd", "if=/dev/zero", "of=/dev/null", "bs=600M", "count=1"]);
        spec.limits.memory_bytes_max = 256 << 20;
        let finished = run(&sandbox, spec).await;
        assert_eq!(finished.exit, Exit::Exited(1), "{finished:?}");
        assert!(text(&finished.stderr).contains("memory exhausted"), "{finished:?}");
        assert!(finished.enforced.limits.iter().any(|limit| limit.starts_with("memory 268435456 bytes")));

        let mut spec = place.spec(&["dd", "if=/dev/zero", "of=big", "bs=1000", "count=100"]);
        spec.limits.file_bytes_max = 50_000;
        let finished = run(&sandbox, spec).await;
        assert_eq!(finished.exit, Exit::Signalled(25), "SIGXFSZ: {finished:?}");

        let mut spec = place.spec(&["sh", "-c", "ulimit -n"]);
        spec.limits.files_max = 32;
        assert_eq!(text(&run(&sandbox, spec).await.stdout), "32\n");
    }
}

/// Goal: a script that forks without end runs into its limit or its time, and the machine survives.
#[tokio::test]
async fn fork_bomb_is_contained() {
    let place = Place::new();
    let seconds = unique_seconds();
    let script = "i=0; while [ $i -lt 2000 ]; do sleep \"$0\" & i=$((i+1)); done; echo all; wait";
    let mut spec = place.spec(&["sh", "-c", script, &seconds]);
    spec.limits.time = Duration::from_secs(3);
    spec.limits.processes_max = 20;
    let finished = run(&place.sandbox, spec).await;
    if finished.enforced.limits.iter().any(|limit| limit.starts_with("processes ")) {
        assert_ne!(text(&finished.stdout), "all\n", "{finished:?}");
    }
    assert!(!alive(&seconds));
}

/// Goal: what is reported is what this machine does, and the same for a probe and a run.
#[tokio::test]
async fn report_says_what_is_in_force() {
    let place = Place::new();
    for sandbox in place.sandboxes() {
        let probed = sandbox.probe().await.expect("probe").clone();
        let finished = run(&sandbox, place.spec(&["sh", "-c", "cat /proc/self/status; ls -d /proc/[0-9]*"])).await;
        let status = text(&finished.stdout);
        assert_eq!(
            (&finished.enforced.filesystem, finished.enforced.network, finished.enforced.processes),
            (&probed.filesystem, probed.network, probed.processes)
        );
        assert!(status.contains("NoNewPrivs:\t1"), "{status}");
        if probed.processes == ProcessGuard::PidNamespace {
            assert!(status.lines().filter(|line| line.starts_with("/proc/")).count() < 6, "{status}");
        }
        let json = serde_json::to_value(&probed).expect("json");
        let network = json["network"].as_str().expect("text").to_owned();
        assert!(["namespace", "filter", "partial", "none"].contains(&network.as_str()), "{json}");
    }
}

/// Plays the daemon for `killed_daemon_takes_its_scripts_along`; does nothing by itself.
#[tokio::test]
async fn as_daemon() {
    let Ok(setting) = std::env::var(HELPER) else { return };
    let mut words = setting.splitn(3, ' ').map(str::to_owned);
    let (Some(kind), Some(seconds), Some(root)) = (words.next(), words.next(), words.next()) else { return };
    let root = PathBuf::from(root);
    let sandbox = if kind == "bare" { sandbox(&root).without_namespaces() } else { sandbox(&root) };
    let script = "setsid sleep \"$0\" & : > started; sleep \"$0\"; :";
    run(&sandbox, spec_in(&root, &["sh", "-c", script, &seconds])).await;
}

/// Goal: after `kill -9` of the daemon its scripts are gone, and the next daemon can wait for that.
#[tokio::test]
async fn killed_daemon_takes_its_scripts_along() {
    for kind in ["namespaces", "bare"] {
        let place = Place::new();
        let (seconds, run_dir) = (unique_seconds(), place.root.join("run"));
        assert!(Sandbox::wait_for_strays(&run_dir, Duration::ZERO).await.expect("lock"), "nothing runs yet");
        let mut daemon = Command::new(std::env::current_exe().expect("own path"))
            .args(["--exact", "sandbox::as_daemon", "--nocapture"])
            .env(HELPER, format!("{kind} {seconds} {}", place.root.display()))
            .stdout(Stdio::null())
            .spawn()
            .expect("start the daemon");
        eventually("the script's start", || place.root.join("work/started").exists() && alive(&seconds)).await;
        assert!(!Sandbox::wait_for_strays(&run_dir, Duration::ZERO).await.expect("lock"), "the script runs");
        daemon.kill().expect("SIGKILL");
        daemon.wait().expect("reap");
        assert!(Sandbox::wait_for_strays(&run_dir, Duration::from_secs(10)).await.expect("lock"), "{kind}: strays");
        assert!(!alive(&seconds), "{kind}");
    }
}

/// Goal: know the price of a run; it is shown, not judged.
#[tokio::test]
async fn price_of_a_run() {
    use std::io::Write;
    let place = Place::new();
    for (name, sandbox) in ["namespaces", "bare"].iter().zip(place.sandboxes()) {
        let mut times = Vec::new();
        for _ in 0..20 {
            times.push(run(&sandbox, place.spec(&["true"])).await.duration);
        }
        times.sort();
        let enforced = &sandbox.probe().await.expect("probe");
        writeln!(std::io::stderr(), "{name}: median {:?}, slowest {:?}; {enforced:?}", times[10], times[19])
            .expect("stderr");
    }
}
