//! The API against its own document: schemathesis reads `/openapi.json` and plays requests that fit it and that do not,
//! with every check that it has. `tests/clients/schemathesis.toml` says what limits it, and why.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{Daemon, TOKEN, write_skill};
use crate::plugins;

/// Requests that are invented for each route, besides those of the phase that looks at every boundary.
const EXAMPLES: &str = "25";
/// It takes about a minute alone on two cores, and eight on a machine that has six times as much to do.
const PATIENCE: Duration = Duration::from_secs(580);

/// A program of `target/tools/clients`.
pub fn client(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/clients/bin").join(name);
    assert!(path.exists(), "{} is missing; `scripts/setup test` installs it", path.display());
    path
}

/// A file of `tests/clients`.
pub fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/clients").join(name)
}

/// A daemon that has something of everything: events, a skill, a dead letter, a job, sources, a token, a plugin.
fn example() -> Daemon {
    let daemon = Daemon::configured(
        "[debug]\nforce_enable_debug_endpoints = true\n\
         [sinks.out]\nkind = \"webhook\"\nurl = \"http://127.0.0.1:9/in\"\ntypes = [\"order.paid\"]\nsecret = \"x\"\n\
         [sources.hook]\nkind = \"webhook\"\n\
         [sources.default]\nkind = \"files\"\npath = \"~/inbox\"\n",
    );
    write_skill(daemon.home(), "broken", &["aman.on: test.fails"], "exit 65\n");
    daemon.post("/skills/reload", &json!({}));
    assert_eq!(daemon.post("/skill/broken/enable", &json!({})).status, 200);
    assert_eq!(daemon.post("/cron/add", &json!({ "id": "j1", "expression": "0 0 1 1 *" })).status, 201);
    assert_eq!(daemon.post("/auth/token", &json!({ "sub": "phone", "scope": "events:read" })).status, 201);
    for (id, kind) in [("e1", "note.added"), ("e2", "test.fails")] {
        let event = json!({ "id": id, "source": "test", "type": kind, "data": { "n": 1 } });
        assert_eq!(daemon.post("/events/push", &event).status, 202);
    }
    // Time enough for a busy machine.
    let manifest = plugins::MANIFEST.replace("200ms", "60s");
    let manifest = format!("version = \"1.0.0\"\n{manifest}{}", plugins::PUBLISH);
    let installed = plugins::install(&daemon, &plugins::package(&manifest, plugins::ONE), "approve=true");
    assert_eq!((installed.status, &installed.json["status"]), (201, &json!("active")), "{installed:?}");
    daemon.wait("a dead letter", || (daemon.get("/dlq/depth").json["depth"] == 1).then_some(()));
    daemon
}

/// The number behind the last `word` of a report.
fn number(report: &str, word: &str) -> Option<u32> {
    report.rsplit_once(word)?.1.split_whitespace().next()?.parse().ok()
}

/// Goal: whatever the document promises holds for thousands of requests, good and bad: statuses, types and schemas of
/// answers, what must be refused, what must be taken, who is let in; and the daemon is well afterwards.
#[test]
fn schemathesis_finds_nothing() {
    let daemon = example();
    let report = daemon.home().join("schemathesis.txt");
    let output = File::create(&report).expect("a file");
    let mut player = Command::new(client("st"))
        .arg("--config-file")
        .arg(file("schemathesis.toml"))
        .args(["run", &format!("http://{}/openapi.json", daemon.address), "--checks", "all", "--no-color"])
        .args(["--phases", "examples,coverage,fuzzing,stateful", "--max-examples", EXAMPLES])
        .env("AMAN_TOKEN", TOKEN)
        .env("AMAN_CLIENTS", file(""))
        .current_dir(daemon.home())
        .stdout(output.try_clone().expect("a file"))
        .stderr(output)
        .spawn()
        .expect("schemathesis starts");
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = player.try_wait().expect("waiting works") {
            break status;
        }
        if begun.elapsed() > PATIENCE {
            let _dead = player.kill();
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let report = std::fs::read_to_string(report).unwrap_or_default();
    assert!(status.success(), "{report}");
    // What was played, and that answers led to further requests.
    assert!(number(&report, "Test cases:").is_some_and(|played| played > 1000), "{report}");
    assert!(number(&report, "API Links:").is_some_and(|covered| covered > 0), "{report}");
    assert_eq!(daemon.get("/health").status, 200);
    assert_eq!(daemon.get("/audit-log/verify").json["ok"], true);
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
}
