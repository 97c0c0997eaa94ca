//! No secret that the daemon knows gets into anything that it writes: files, logs, answers, outputs of commands.

mod agents;
mod tools;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::harness::{Answer, Daemon, Folder, command, write_skill};

/// The token of the daemon, and the secret of a webhook; searched for in everything.
const TOKEN: &str = "canary-token-3f9a7c51e2";
const HOOK: &str = "canary-hook/\"secret\" ü";

/// Parts of the secrets that survive escaping.
const TRACES: [&str; 8] = [
    "canary-token-3f9a7c51e2",
    "canary-hook",
    "3f9a7c51e2",
    "canary-model/",
    "77ab01",
    "canary-program",
    "canary-service",
    "canary-search",
];

fn files(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            files(&path, into)
        } else if path.is_file() {
            into.push(path)
        }
    }
}

fn assert_clean(what: &str, bytes: &[u8]) {
    for trace in TRACES {
        let found = bytes.windows(trace.len()).position(|window| window == trace.as_bytes());
        if let Some(at) = found {
            let around = &bytes[at.saturating_sub(120)..(at + 60).min(bytes.len())];
            panic!("{what} holds a secret: …{}…", String::from_utf8_lossy(around));
        }
    }
}

fn send(daemon: &Daemon, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let all = [&[("x-aman-token", TOKEN), ("x-aman-confirm", "yes")], headers].concat();
    let answer = daemon.send_bytes(method, path, &all, body);
    assert_clean(&format!("the answer of {method} {path}"), &answer.body);
    answer
}

fn push(daemon: &Daemon, event: &Value) {
    let headers = [("content-type", "application/json")];
    let answer = send(daemon, "POST", "/events/push", &headers, event.to_string().as_bytes());
    assert_eq!(answer.status, 202, "{event}: {answer:?}");
    send(daemon, "POST", "/events/push?dry_run=true", &headers, event.to_string().as_bytes());
}

/// Events that hold a secret wherever they may hold a text.
fn push_everything(daemon: &Daemon) {
    push(daemon, &json!({ "source": "test", "type": "leak.json", "data": { "a": [TOKEN, { TOKEN: HOOK }] } }));
    push(daemon, &json!({ "source": TOKEN, "type": format!("leak.{TOKEN}"), "subject": HOOK, "id": TOKEN }));
    push(daemon, &json!({ "source": "t", "type": "leak.key", "dedup_key": TOKEN, "agent_id": TOKEN }));
    let escaped = br#"{"source":"t","type":"leak.escaped","data":"\u0063anary-token-3f9a7c51e\u0032"}"#;
    let stored = send(daemon, "POST", "/events/push", &[("content-type", "application/json")], escaped);
    assert_eq!(stored.status, 202, "{stored:?}");
    let dumped = send(daemon, "GET", &format!("/events/dump/{}", stored.json["id"].as_str().expect("an id")), &[], b"");
    assert_eq!(dumped.json["event"]["data"], "redacted");
    for media in ["text/plain", "application/octet-stream"] {
        let headers = [
            ("ce-specversion", "1.0"),
            ("ce-source", "t"),
            ("ce-type", "leak.bytes"),
            ("ce-ext", TOKEN),
            ("content-type", media),
        ];
        let body = [b"x ", TOKEN.as_bytes(), b" ", HOOK.as_bytes()].concat();
        assert_eq!(send(daemon, "POST", "/events/push", &headers, &body).status, 202);
    }
}

/// Requests that go wrong, or are recorded, with a secret in every place.
fn provoke(daemon: &Daemon) {
    for path in [
        format!("/events/dump/{TOKEN}"),
        format!("/nowhere/{TOKEN}"),
        format!("/skill/{TOKEN}"),
        format!("/events/recent?{TOKEN}=1"),
        format!("/events/recent?cursor={TOKEN}"),
        format!("/audit-log?since={TOKEN}"),
        "/runtime/config".to_owned(),
        "/runtime/status".to_owned(),
        "/debug/metrics".to_owned(),
    ] {
        send(daemon, "GET", &path, &[], b"");
    }
    let json = ("content-type", "application/json");
    let operator = ("x-aman-operator", TOKEN);
    for (path, body) in [
        ("/events/push", json!({ "source": "t", "type": "a", TOKEN: 1 })),
        ("/events/push", json!({ "source": "t", "type": HOOK })),
        ("/dlq/x/discard", json!({ "reason": TOKEN })),
        ("/skill/folder-digest/disable", json!({})),
        ("/skill/folder-digest/enable", json!({ "digest": TOKEN })),
        ("/config/set", json!({ "changes": { TOKEN: TOKEN } })),
        ("/config/set", json!({ "changes": { "http.allowed_hosts": [TOKEN] } })),
        ("/config/set", json!({ "changes": { "log.level": HOOK } })),
        ("/config/set", json!({ "changes": { "bus.max_pending": 9 } })),
        ("/config/reload", json!({})),
        ("/cron/add", json!({ "id": "leak", "expression": "0 0 1 1 *", "payload": { "a": TOKEN, TOKEN: 1 } })),
        ("/cron/leak/update", json!({ "payload": { "b": HOOK } })),
        ("/cron/leak/run", json!({})),
        ("/cron/add", json!({ "id": "wrong", "expression": TOKEN })),
    ] {
        send(daemon, "POST", path, &[json, operator], body.to_string().as_bytes());
    }
    send(daemon, "POST", "/events/push", &[json], format!("{{\"{TOKEN}").as_bytes());
    send(daemon, "POST", "/events/push", &[("content-type", TOKEN)], b"x");
    send(daemon, "GET", "/skills", &[("host", TOKEN)], b"");
    send(daemon, "GET", "/skills", &[("origin", TOKEN)], b"");
}

/// Goal: with the log at its loudest and every kind of error provoked, no file, answer or output holds a secret.
#[test]
fn no_secret_is_written_anywhere() {
    let folder = Folder::new("canary");
    let home = folder.path();
    let config = "[sources.hook]\nkind = \"webhook\"\nverify = { scheme = \"github\", secret = \"env:CANARY_HOOK\" }\n";
    std::fs::write(home.join("aman.toml"), config).expect("aman.toml");
    // The skill knows the token from elsewhere, and tells it in every way that it has.
    let script = "T=$(printf '%s%s' canary-token-3f9a 7c51e2)\necho \"log $T\" >&2\n\
        if [ \"$AMAN_ATTEMPT\" = 1 ]; then exit 75; fi\ncase $(cat) in *die*) echo \"dead $T\" >&2; exit 65;; esac\n\
        printf '{\"publish\":[{\"type\":\"leak.effect\",\"data\":\"%s\"}],\"notify\":[{\"title\":\"%s\",\"message\":\"%s\",\
        \"severity\":\"info\"}],\"result\":\"%s\"}' \"$T\" \"$T\" \"$T\" \"$T\"\n";
    write_skill(home, "teller", &["aman.on: tell.all tell.die"], script);
    let env = [("AMAN_HTTP_TOKEN", TOKEN), ("CANARY_HOOK", HOOK), ("AMAN_LOG_LEVEL", "trace")];
    let mut daemon = Daemon::try_start_in(home, &env).unwrap_or_else(|log| panic!("it did not start: {log}"));
    push_everything(&daemon);
    push(&daemon, &json!({ "source": "t", "type": "tell.all" }));
    push(&daemon, &json!({ "source": "t", "type": "tell.die", "data": "die" }));
    provoke(&daemon);
    daemon.wait("the skill to have told", || {
        let effects = send(&daemon, "GET", "/events/recent?types=leak.effect", &[], b"").items();
        let dead = send(&daemon, "GET", "/dlq/depth", &[], b"").json["depth"] != 0;
        (!effects.is_empty() && dead).then_some(())
    });
    std::fs::write(home.join("aman.toml"), format!("[sources.x]\nkind = \"{TOKEN}\"\n")).expect("aman.toml");
    let answer = send(&daemon, "POST", "/config/reload", &[], b"");
    assert_eq!(answer.code(), "invalid_config");
    std::fs::write(home.join("aman.toml"), config).expect("aman.toml");
    for path in ["/events/recent?limit=1000", "/dlq", "/dlq/groups", "/audit-log?limit=1000", "/events/types"] {
        assert_eq!(send(&daemon, "GET", path, &[], b"").status, 200, "{path}");
    }
    for arguments in [
        &["status"][..],
        &["doctor"],
        &["config", "get"],
        &["config", "get", "http.token"],
        &["config", "check"],
        &["audit", "list", "--json"],
        &["dlq", "list"],
        &["event", "recent"],
        &["event", "dump", TOKEN],
        &["why", TOKEN],
        &["logs", "-n", "1000000"],
        &["logs", "--since", "1h", "--json"],
    ] {
        let output = command(home).args(arguments).envs(env).output().expect("the binary starts");
        assert_clean(&format!("the output of {arguments:?}"), &[output.stdout, output.stderr].concat());
    }
    assert!(daemon.log().contains("log redacted"), "what the skill says is logged, without the secret");
    assert_eq!(daemon.terminate(), Some(0));
    let mut all = Vec::new();
    files(home, &mut all);
    assert!(all.iter().any(|path| path.ends_with("aman.db")) && all.iter().any(|path| path.ends_with("stderr.log")));
    let log = std::fs::read_to_string(home.join("logs/aman.log")).expect("a log file");
    assert!(log.contains("log redacted"), "the log file has what the skill says, without the secret");
    for path in all.iter().filter(|path| !path.ends_with("token")) {
        assert_clean(&path.display().to_string(), &std::fs::read(path).expect("a file"));
    }
}
