//! The gate as agents meet it: sessions, tools of others, and callers that give up.

use std::time::Duration;

use serde_json::json;

use super::*;
use crate::bus;
use crate::clock::Clock;
use crate::store::{Durability, Store, audit};

/// A provider of two tools of another program, which it names: one answers, one never does.
struct Others(&'static str);

impl Provider for Others {
    fn tools(&self) -> Vec<Tool> {
        let tool = |name: &str| Tool {
            name: name.to_owned(),
            description: String::new(),
            schema: json!({ "type": "object" }),
            source: self.0.to_owned(),
            permission: Permission::Foreign,
            repeatable: false,
        };
        vec![tool("others_quick"), tool("others_endless")]
    }

    fn call<'a>(&'a self, call: &'a Call, _cancel: &'a CancellationToken) -> Calling<'a> {
        Box::pin(async move {
            if call.tool == "others_endless" {
                std::future::pending::<()>().await;
            }
            Ok(Output { text: "done".to_owned(), value: None, trust: Trust::Plugin })
        })
    }

    fn preview(&self, _call: &Call) -> Result<Preview, ToolFailure> {
        Ok(Preview::about("it", ""))
    }
}

struct Place(std::path::PathBuf);

impl Drop for Place {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}

fn gate() -> (Tools, Place) {
    let folder = std::env::temp_dir().join(format!("aman-gate-{}", crate::id::fresh()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let store = Store::open(&folder.join("aman.db"), Durability::Normal).expect("a database");
    let bus = Bus::new(store, Clock::default(), bus::Settings::default());
    let settings = Settings { policy: Arc::default(), approval_time: Duration::from_secs(60), search: None };
    let tools = Tools::new(&bus, Arc::new(|_, _| Ok(())), settings);
    tools.offer("others", Arc::new(Others("mcp/others")));
    (tools, Place(folder))
}

fn call(key: &str, tool: &str, session: &str, policy: &Policy) -> Call {
    Call {
        key: key.to_owned(),
        tool: tool.to_owned(),
        arguments: json!({}),
        caller: Caller {
            principal: "agent/a".to_owned(),
            agent: Some("a".to_owned()),
            session: Some(session.to_owned()),
            trust: Trust::Owner,
            trace: TraceId::random(),
            cause: None,
            policy: Arc::new(policy.clone()),
        },
    }
}

async fn until<T, F: Future<Output = Option<T>>>(look: impl Fn() -> F) -> T {
    for _ in 0..500 {
        if let Some(found) = look().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("waited in vain");
}

#[tokio::test]
async fn agents_are_asked_about_what_others_do() {
    let (tools, _place) = gate();
    let never = CancellationToken::new();
    let alone = Policy { unattended: true, ..Policy::default() };
    let refused = tools.call(call("1", "others_quick", "s1", &alone), &never, &|_| {}).await;
    assert!(matches!(refused, Err(ToolFailure::Refused("no_approver", _))), "{refused:?}");
    let named = Policy { allow: vec!["others_*".to_owned()], ..alone.clone() };
    let done = tools.call(call("2", "others_quick", "s1", &named), &never, &|_| {}).await.expect("it is named");
    assert!(done.text.contains("comes from outside") && done.text.contains("done"), "{}", done.text);

    let asking = tools.clone();
    let first = tokio::spawn(async move {
        let (never, policy) = (CancellationToken::new(), Policy::default());
        asking.call(call("3", "others_quick", "s1", &policy), &never, &|_| {}).await
    });
    let asked = until(|| async { tools.pending().await.expect("pending").pop() }).await;
    assert_eq!(asked.remember, [Remember::Once, Remember::Session, Remember::Always]);
    tools.respond(&asked.id, true, Remember::Session, "owner").await.expect("answered");
    first.await.expect("no panic").expect("approved");
    // A yes holds for one run, and a question that was taken back can be asked again.
    for (round, approved) in [(1, true), (2, true), (3, false)] {
        let (asking, key) = (tools.clone(), format!("again{}", round / 3));
        let call = tokio::spawn(async move {
            let (never, policy) = (CancellationToken::new(), Policy::default());
            asking.call(call(&key, "others_quick", "s9", &policy), &never, &|_| {}).await
        });
        let asked = until(|| async { tools.pending().await.expect("pending").pop() }).await;
        tools.respond(&asked.id, approved, Remember::Once, "owner").await.expect("asked anew");
        assert_eq!(call.await.expect("no panic").is_ok(), approved, "{round}");
    }
    let given_up = {
        let (asking, cancel) = (tools.clone(), never.child_token());
        let ending = cancel.clone();
        let waits = tokio::spawn(async move {
            asking.call(call("5", "others_quick", "s9", &Policy::default()), &cancel, &|_| {}).await
        });
        let asked = until(|| async { tools.pending().await.expect("pending").pop() }).await;
        ending.cancel();
        assert!(waits.await.expect("no panic").is_err());
        asked.id
    };
    let asking = tools.clone();
    let once_more = tokio::spawn(async move {
        asking.call(call("5", "others_quick", "s9", &Policy::default()), &CancellationToken::new(), &|_| {}).await
    });
    let asked = until(|| async { tools.pending().await.expect("pending").pop() }).await;
    assert_ne!(asked.id, given_up);
    tools.respond(&asked.id, true, Remember::Once, "owner").await.expect("answered");
    once_more.await.expect("no panic").expect("approved");
    // Where nobody is there to ask, the rule shows by what passes.
    assert!(tools.call(call("4", "others_quick", "s1", &alone), &never, &|_| {}).await.is_ok(), "in that session");
    let other = tools.call(call("5", "others_quick", "s2", &alone), &never, &|_| {}).await;
    assert!(matches!(other, Err(ToolFailure::Refused("no_approver", _))), "in that session only: {other:?}");
    // What comes in its place under the same name is something else.
    tools.offer("others", Arc::new(Others("plugin/others")));
    let another = tools.call(call("6", "others_quick", "s1", &alone), &never, &|_| {}).await;
    assert!(matches!(another, Err(ToolFailure::Refused("no_approver", _))), "{another:?}");
    let rules = tools.rules().await.expect("rules");
    assert_eq!((rules.len(), rules[0].source.as_str()), (1, "mcp/others"));
}

#[tokio::test]
async fn calls_that_are_given_up_are_on_record() {
    let (tools, _place) = gate();
    let never = CancellationToken::new();
    let named = Policy { allow: vec!["others_*".to_owned()], ..Policy::default() };
    let short = Duration::from_millis(200);
    let running = tools.call(call("1", "others_endless", "s", &named), &never, &|_| {});
    assert!(tokio::time::timeout(short, running).await.is_err());
    let cancelled = never.child_token();
    let stopping = async {
        tokio::time::sleep(short).await;
        cancelled.cancel();
        std::time::Instant::now()
    };
    let stopped = tools.call(call("2", "others_endless", "s", &named), &cancelled, &|_| {});
    let (stopped, at) = tokio::join!(stopped, stopping);
    assert!(matches!(stopped, Err(ToolFailure::Unknown(_))), "{stopped:?}");
    assert!(at.elapsed() < Duration::from_millis(100), "{:?}", at.elapsed());
    let policy = Policy::default();
    let asking = tools.call(call("3", "others_quick", "s", &policy), &never, &|_| {});
    assert!(tokio::time::timeout(short, asking).await.is_err());
    let records = until(|| async {
        let all = tools.inner.bus.store().read(|conn| audit::list(conn, &audit::Filter::default(), None, 10)).await;
        all.ok().filter(|all| all.len() == 3)
    });
    let outcomes: Vec<String> = records.await.iter().map(|record| record.body["outcome"].to_string()).collect();
    assert_eq!(outcomes, ["\"failed\"", "\"unknown\"", "\"unknown\""], "newest first");
    assert!(tools.pending().await.expect("pending").is_empty(), "nobody is asked for nothing");
}

#[test]
fn a_skill_leaves_an_agent_the_tools_that_it_names() {
    let policy = Policy { exec: vec!["git".to_owned(), "sh".to_owned()], ..Policy::default() };
    let names = ["read", "exec", "http_fetch", "home_light", "Home_light"];
    for (allowed, left, commands) in [
        ("Read", "read", ""),
        ("Read,  WebFetch", "read http_fetch", ""),
        ("Bash(git:*) Bash(rm -rf *)", "exec", "git"),
        ("Bash(git status)", "exec", "git"),
        ("Bash exec(sh:*)", "exec", "git sh"),
        ("Read(~/x/**) home_light", "home_light", ""),
        ("nothing(", "", ""),
    ] {
        let limited = policy.limited_to(allowed);
        let of = |names: &[&'static str]| {
            names.iter().filter(|name| gate::is_allowed(name, &limited)).copied().collect::<Vec<_>>()
        };
        assert_eq!(of(&names).join(" "), left, "{allowed}");
        assert_eq!(limited.exec.join(" "), commands, "{allowed}");
        assert_eq!(of(&["read_skill"]).len(), 1, "{allowed}");
    }
    let denied = Policy { deny: vec!["read".to_owned()], allow: vec!["r*".to_owned()], ..Policy::default() };
    assert!(
        !gate::is_allowed("read", &denied.limited_to("read")) && !gate::is_allowed("exec", &denied.limited_to("exec"))
    );
}
