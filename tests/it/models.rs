//! Language models: asked in their dialects, again, and one after the other; tried over HTTP and on the command line.

mod real;
pub mod stub;

use std::time::{Duration, Instant};

use aman::config::{self, Flags};
use aman::egress::Egress;
use aman::models::{Answer, Delta, ErrorKind, Message, ModelError, Models, Request};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use self::stub::{Reply, Stub, said};
use crate::harness::{Daemon, Folder, TOKEN};

/// The models of a configuration, in this process.
fn models(toml: &str) -> Models {
    let folder = Folder::new("models");
    let flags = Flags { home: Some(folder.path().to_owned()), ..Flags::default() };
    let config = config::check(&flags, toml).expect("a good configuration");
    Models::new(&config.models, &Egress::new(false))
}

/// `[providers.<id>]` of this kind at `url`.
fn provider(id: &str, kind: &str, url: &str) -> String {
    format!("[providers.{id}]\nkind = \"{kind}\"\nurl = \"{url}\"\nmodels = [\"m\"]\nkey = \"canary-of-{id}\"\n")
}

/// Asks `text`; what was told, in short, and how it ended.
async fn ask(models: &Models, text: &str) -> (String, Result<Answer, ModelError>) {
    let messages = vec![Message::User { text: text.to_owned(), images: Vec::new() }];
    let (request, mut told) = (Request { messages, ..Request::default() }, String::new());
    let mut on = |delta| match delta {
        Delta::Text(text) => told.push_str(&text),
        Delta::Call { name, .. } => told.push_str(&format!("[{name}]")),
        Delta::Restart => told.push('|'),
    };
    let answer = models.ask(request, &mut on, &CancellationToken::new()).await;
    (told, answer)
}

/// Goal: who is busy, breaks off or refuses is asked again or passed over; what was told before is taken back.
#[tokio::test]
async fn models_are_asked_until_one_answers() {
    let busy = || Reply::status("429 Too Many Requests", "retry-after: 0\r\n", "{\"error\":{\"message\":\"slow\"}}");
    let refused = Reply::status("401 Unauthorized", "", "{\"error\":{\"message\":\"no canary-of-a here\"}}");
    let good = || Reply::words(&["Grüß ", "dich 😀"]);
    let broken = good().cut_after(1);
    let said_so = Reply::events(&[&said("x"), "{\"error\":{\"message\":\"full\",\"code\":503}}"]);
    for (replies, told, asked) in [
        (vec![busy(), good()], "Grüß dich 😀", 2),
        (vec![broken.clone(), good()], "Grüß |Grüß dich 😀", 2),
        (vec![said_so, good()], "x|Grüß dich 😀", 2),
        (vec![refused], "second", 1),
        (vec![busy(), broken.clone(), broken], "Grüß |Grüß |second", 3),
    ] {
        let (first, second) = (Stub::start(replies), Stub::start(vec![Reply::words(&["second"])]));
        let models = models(&format!(
            "[models]\nfallback = [\"b/m\"]\n{}{}",
            provider("a", "openai", &format!("{}/v1", first.url())),
            provider("b", "openai", &second.url())
        ));
        let (heard, answer) = ask(&models, "hi").await;
        let answer = answer.expect("an answer");
        assert_eq!((heard.as_str(), first.requests().len()), (told, asked));
        assert_eq!(heard.rsplit('|').next(), Some(answer.text.as_str()));
        assert_eq!(answer.model, if told.ends_with("second") { "b/m" } else { "a/m" });
        assert_eq!((answer.usage.input, answer.usage.output, answer.usage.estimated), (3, 4, false));
        let request = &first.requests()[0];
        assert!(request.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"), "{request}");
        assert!(request.contains("authorization: Bearer canary-of-a\r\n"), "{request}");
    }
    let (first, second) = (Stub::start(vec![busy()]), Stub::start(vec![Reply::status("500 X", "", "canary-of-b")]));
    let both = [provider("a", "openai", &first.url()), provider("b", "openai", &second.url())].concat();
    let models = models(&format!("[models]\nfallback = [\"b/m\"]\nmax_retries = 0\n{both}"));
    let error = ask(&models, "hi").await.1.expect_err("nobody answers");
    assert_eq!((error.kind, error.retry_after), (ErrorKind::Overloaded, Some(Duration::ZERO)));
    assert!(error.detail.contains("a/m: ") && error.detail.contains("b/m: "), "{error}");
    assert!(!error.detail.contains("canary"), "{error}");
}

/// Goal: a redirect is not followed, so that nobody else is given the key.
#[tokio::test]
async fn keys_do_not_follow_redirects() {
    let thief = Stub::start(vec![Reply::words(&["thanks"])]);
    let moved = Reply::status("307 Temporary Redirect", &format!("location: {}\r\n", thief.url()), "");
    let models = models(&provider("a", "openai", &Stub::start(vec![moved]).url()));
    let error = ask(&models, "hi").await.1.expect_err("not followed");
    assert_eq!((error.kind, thief.requests().len()), (ErrorKind::Invalid, 0), "{error}");
}

/// Goal: servers that refuse what OpenAI added later are asked without it, and from then on at once.
#[tokio::test]
async fn what_a_server_does_not_know_is_left_out() {
    let refused = Reply::status("400 Bad Request", "", "{\"error\":\"unknown field: stream_options\"}");
    let stub = Stub::start(vec![refused, Reply::words(&["ok"])]);
    let models = models(&provider("a", "openai", &stub.url()));
    for _ in 0..2 {
        assert_eq!(ask(&models, "hi").await.0, "ok");
    }
    let with: Vec<bool> = stub.requests().iter().map(|request| request.contains("stream_options")).collect();
    assert_eq!(with, [true, false, false]);
}

/// Goal: whoever stops an answer is told so within 100 ms, and the provider is left; silence has an end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_stopped_and_waited_for_only_so_long() {
    let hour = Duration::from_secs(3600);
    let stub = Stub::start(vec![Reply::words(&["one", "two"]).waiting(1, hour)]);
    let models_of =
        |url: &str, more: &str| models(&format!("[models]\nmax_retries = 0\n{more}{}", provider("a", "openai", url)));
    let (cancel, asked) = (CancellationToken::new(), models_of(&stub.url(), ""));
    let mut stopped = None;
    let mut on = |delta| {
        if delta == Delta::Text("one".into()) {
            stopped = Some(Instant::now());
            cancel.cancel();
        }
    };
    let answer = asked.ask(Request::default(), &mut on, &cancel).await;
    let (ended, stopped) = (Instant::now(), stopped.expect("a word came"));
    assert_eq!(answer.expect_err("stopped").kind, ErrorKind::Cancelled);
    assert!(ended - stopped < Duration::from_millis(100), "{:?}", ended - stopped);
    let left = tokio::task::spawn_blocking(move || stub.left()).await.expect("it ends");
    assert!(left - stopped < Duration::from_millis(500), "{:?}", left - stopped);
    for (piece, waits) in [(0, "first_token_timeout"), (1, "token_timeout")] {
        let stub = Stub::start(vec![Reply::words(&["one", "two"]).waiting(piece, hour)]);
        let asked = models_of(&stub.url(), &format!("{waits} = \"200ms\"\n"));
        let begun = Instant::now();
        assert_eq!(ask(&asked, "hi").await.1.expect_err(waits).kind, ErrorKind::Timeout);
        assert!(begun.elapsed() >= Duration::from_millis(200) && begun.elapsed() < Duration::from_secs(5));
    }
    // Only the counts are missing: the answer is whole.
    let stub = Stub::start(vec![Reply::words(&["one"]).cut_after(2)]);
    let answer = ask(&models_of(&stub.url(), ""), "hi").await.1.expect("whole");
    assert_eq!((answer.text.as_str(), answer.usage.estimated), ("one", true));
}

const SCRIPT: &str = "turns:\n  - say: \"Hello, world.\"\n    usage: { input: 7, output: 3 }\n\
    \x20 - when: { text: fail }\n    say: [\"one\", \"two\"]\n    fails: [{ kind: overloaded, retry_after: 10ms }, { kind: broken, after: 1 }]\n\
    \x20 - when: { text: file }\n    calls: [{ name: read, arguments: { path: a.txt } }]\n";

/// Goal: a script answers as it says, with the failures that it says, and is called a script everywhere.
#[test]
fn scripts_answer_and_are_called_so() {
    let folder = Folder::new("home");
    std::fs::write(folder.path().join("demo.yaml"), SCRIPT).expect("the script");
    let path = folder.path().join("demo.yaml").display().to_string();
    let toml = format!("[providers.demo]\nkind = \"script\"\npath = \"{path}\"\n");
    std::fs::write(folder.path().join("aman.toml"), &toml).expect("aman.toml");
    let daemon = Daemon::start_in(folder.path());
    let listed = daemon.get("/models").items();
    assert_eq!((&listed[0]["id"], &listed[0]["scripted"]), (&json!("demo/script"), &json!(true)));
    assert_eq!(listed[0]["roles"], json!(["default"]));
    let answer = daemon.post("/models/test", &json!({ "prompt": "hi" }));
    assert_eq!((&answer.json["outcome"], &answer.json["text"]), (&json!("answered"), &json!("Hello, world.")));
    assert_eq!((&answer.json["scripted"], &answer.json["usage"]["input"]), (&json!(true), &json!(7)));
    assert_eq!(daemon.send("GET", "/health/llm", &[], None).status, 200);
    let failed = daemon.post("/models/test", &json!({ "prompt": "fail" })).json;
    assert_eq!((&failed["outcome"], &failed["kind"]), (&json!("failed"), &json!("overloaded")));
    assert_eq!(daemon.post("/models/test", &json!({ "model": "nobody/x" })).status, 400);
    let audited = daemon.get("/audit-log?action=model.test").items();
    assert_eq!((audited.len(), &audited[1]["target"]), (3, &json!("demo/script")), "{audited:?}");
    // Another file, another answer; and what cannot be read is told by line, with no daemon harmed.
    std::fs::write(folder.path().join("demo.yaml"), "turns:\n  - sya: x\n").expect("the script");
    let wrong = daemon.post("/models/test", &json!({})).json;
    assert!(wrong["detail"].as_str().is_some_and(|detail| detail.contains("sya")), "{wrong}");
    let models = models(&toml);
    std::fs::write(folder.path().join("demo.yaml"), SCRIPT).expect("the script");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    assert_eq!(runtime.block_on(ask(&models, "please FAIL")).0, "one|onetwo");
    let (told, answer) = runtime.block_on(ask(&models, "the file"));
    assert_eq!((told.as_str(), &answer.expect("calls").calls[0].arguments), ("[read]", &json!({ "path": "a.txt" })));
}

/// Goal: providers change while the daemon runs, their keys are nowhere, and only the file sets what holds one.
#[test]
fn providers_change_live_and_keys_stay_hidden() {
    let stub = Stub::start(vec![Reply::status("401 Unauthorized", "", "{\"error\":\"no canary-of-a\"}")]);
    let daemon = Daemon::start();
    let health = |daemon: &Daemon| daemon.send("GET", "/health/llm", &[], None);
    assert_eq!(health(&daemon).json["checks"]["llm"]["detail"], "no provider configured");
    let none = daemon.post("/models/test", &json!({})).json;
    assert_eq!((&none["outcome"], &none["kind"]), (&json!("failed"), &json!("no_model")), "{none}");
    let price = "[prices.\"a/m\"]\ninput = 1.5\noutput = 2\n";
    let toml = format!("{}{price}", provider("a", "openai", &stub.url()));
    std::fs::write(daemon.home().join("aman.toml"), toml).expect("aman.toml");
    let reloaded = daemon.post("/config/reload", &json!({})).json;
    assert_eq!(reloaded["started"], json!(["providers.a"]), "{reloaded}");
    assert_eq!(reloaded["requires_restart"], json!([]), "{reloaded}");
    let listed = daemon.get("/models").items();
    assert_eq!((&listed[0]["id"], &listed[0]["price"]["input_micros_per_mtok"]), (&json!("a/m"), &json!(1_500_000)));
    let asked = health(&daemon);
    assert_eq!((asked.status, &asked.json["checks"]["llm"]["detail"]), (503, &json!("the provider refuses the key")));
    assert_eq!(health(&daemon).status, 503);
    assert_eq!(stub.requests().len(), 1, "a second look within a minute asks nobody");
    let failed = daemon.post("/models/test", &json!({})).json;
    assert_eq!(failed["kind"], "auth", "{failed}");
    for (changes, status) in [
        (json!({ "models.default": "a/m", "models.max_retries": 1 }), 200),
        (json!({ "models.default": "b/m" }), 400),
        (json!({ "providers.a.url": "http://127.0.0.1:1" }), 403),
        (json!({ "providers.a.key": "x" }), 403),
        (json!({ "models.detect": "" }), 403),
    ] {
        let answer = daemon.post_confirmed("/config/set", &json!({ "changes": changes }));
        assert_eq!(answer.status, status, "{changes}: {answer:?}");
    }
    let everywhere = [
        daemon.get("/runtime/config").json.to_string(),
        daemon.get("/models").json.to_string(),
        daemon.get("/audit-log").json.to_string(),
        asked.json.to_string(),
        failed.to_string(),
        daemon.log(),
    ];
    for text in everywhere {
        assert!(!text.contains("canary-of-a") && !text.contains(TOKEN), "{text}");
    }
}

/// Goal: Ollama on this machine is found, and asked in its own words (a stub: no package has the real one).
#[tokio::test]
async fn ollama_is_found_and_asked() {
    let listed = "{\"object\":\"list\",\"data\":[{\"id\":\"qwen3:8b\",\"owned_by\":\"library\"}]}";
    let tags = "{\"models\":[{\"name\":\"qwen3:8b\",\"model\":\"qwen3:8b\"}]}";
    let lines = "{\"message\":{\"content\":\"Hi\"},\"done\":false}\n\
                 {\"message\":{\"content\":\"\"},\"done\":true,\"prompt_eval_count\":2,\"eval_count\":1}\n";
    let whole = |body| Reply::status("200 OK", "", body);
    let stub = Stub::start(vec![whole(listed), whole(tags), Reply::lines(lines)]);
    let models = models(&format!("[models]\ndetect = \"{}\"\n", stub.url()));
    let (told, answer) = ask(&models, "hi").await;
    assert_eq!((told.as_str(), answer.expect("an answer").model.as_str()), ("Hi", "ollama/qwen3:8b"));
    let requests = stub.requests();
    let paths: Vec<&str> = requests.iter().filter_map(|request| request.split(' ').nth(1)).collect();
    assert_eq!(paths, ["/v1/models", "/api/tags", "/api/chat"]);
    assert!(requests[2].contains("\"num_ctx\":8192"), "{}", requests[2]);
}

/// Goal: what the guide shows is a good configuration and a good script.
#[tokio::test]
async fn the_guide_shows_what_works() {
    let guide = std::fs::read_to_string(crate::contract::file("../../daemon/docs/models.md")).expect("the guide");
    let block = |kind: &str, with: &str| {
        let mut blocks = guide.split("```").filter(|block| block.starts_with(kind) && block.contains(with));
        blocks.next().expect("a block of the guide")[kind.len()..].to_owned()
    };
    let folder = Folder::new("guide");
    let flags =
        Flags { home: Some(folder.path().to_owned()), references: config::References::Named, ..Flags::default() };
    let config = config::check(&flags, &block("toml", "[models]")).expect("a good configuration");
    assert_eq!((config.warnings.len(), config.models.providers.len(), config.models.prices.len()), (0, 2, 1));
    let path = folder.path().join("demo.yaml");
    std::fs::write(&path, block("yaml", "turns:")).expect("the script");
    let toml = block("toml", "script").replace("~/demo.yaml", &path.display().to_string());
    let models = models(&toml);
    assert_eq!(ask(&models, "hi").await.0, "Hello. Ask me for the weather.");
    assert_eq!(ask(&models, "the weather?").await.0, "One moment.[http_fetch]");
}
