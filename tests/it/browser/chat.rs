//! Conversations and approvals in the page. The model is a script: a file of answers, no model.

use serde_json::{Value, json};

use super::{Browser, LIVE};
use crate::harness::{Daemon, Folder};

/// What would show that an answer was taken for more than text.
const MARKUP: &str =
    "<img src=x onerror=document.title='hacked'><script>document.title='hacked'</script> **bold** \u{202e}done";

/// A daemon whose agent answers by a script, and asks before it publishes.
fn scripted() -> Daemon {
    let folder = Folder::new("page-chat");
    let slow: Vec<String> = (1..=400).map(|n| format!("\"w{n} \"")).collect();
    let call = json!({ "name": "publish_event", "arguments": { "type": "page.made", "data": { "n": MARKUP } } });
    let script = format!(
        "turns:\n  - when: {{ text: hello }}\n    say: \"Hello there, my friend.\"\n  - when: {{ text: slow }}\n    \
         say: [{}]\n    delay: 25ms\n  - when: {{ text: markup }}\n    say: {}\n  - when: {{ text: publish }}\n    \
         say: \"One moment.\"\n    calls: [{call}]\n  - when: {{ after: publish_event }}\n    say: \"All is done.\"\n  - \
         when: {{ text: broken }}\n    fails: [{{ kind: auth }}, {{ kind: auth }}, {{ kind: auth }}]\n    say: \
         \"mended\"\n",
        slow.join(", "),
        json!(MARKUP)
    );
    let path = folder.path().join("script.yaml");
    std::fs::write(&path, script).expect("the script");
    let toml = format!("[models]\ndefault = \"demo/script\"\n[providers.demo]\nkind = \"script\"\npath = {path:?}\n");
    std::fs::write(folder.path().join("aman.toml"), toml).expect("aman.toml");
    std::fs::create_dir(folder.path().join("agents")).expect("a folder");
    let agent = "[tools]\napprove = [\"publish_event\"]\n";
    std::fs::write(folder.path().join("agents/aman.toml"), agent).expect("an agent");
    Daemon::start_keeping(folder)
}

/// An expression that is true once the element has this in its text.
fn has(id: &str, text: &str) -> String {
    format!("document.getElementById('{id}').innerText.includes({})", json!(text))
}

/// Says something as a person would: by the keyboard.
fn say(browser: &mut Browser, text: &str) {
    browser.wait("!document.getElementById('send').disabled");
    browser.eval("document.getElementById('text').focus()");
    browser.type_line(text);
}

/// The session that the address names.
fn session(browser: &mut Browser) -> String {
    browser.wait("location.hash.startsWith('#chat=')");
    let hash = browser.eval("location.hash");
    hash.as_str().and_then(|hash| hash.strip_prefix("#chat=")).expect("a session").to_owned()
}

/// Goal: a person talks with an agent in the page: the answer appears while it is written, can be stopped, is text whatever
/// it looks like, and stays; what goes wrong is said with what to do.
#[test]
fn a_conversation_in_a_browser() {
    let daemon = scripted();
    let mut browser = Browser::start();
    // A link that was opened before the login leads on after it, in whichever tab that is.
    browser.open(&format!("http://{}/#chat", daemon.address));
    browser.wait("document.getElementById('login')?.hidden === false");
    let linked = browser.new_tab();
    browser.log_in(&daemon);
    browser.eval("document.querySelector('#views a[data-to=chat]').click()");
    browser.wait("document.getElementById('agent').value === 'aman'");
    browser.go_to(linked);
    browser.wait("document.getElementById('agent').value === 'aman'");
    say(&mut browser, "slow");
    browser.wait(&has("log", "w1 w2 w3"));
    let id = session(&mut browser);
    assert_eq!(
        daemon.get(&format!("/chat/session/{id}/state")).json["state"],
        "running",
        "it appears while it is written"
    );
    assert_eq!(browser.eval("document.getElementById('log').ariaBusy"), "true");
    browser.eval("document.getElementById('stop').click()");
    browser.wait(&has("log", "(stopped)"));
    browser.wait("document.getElementById('stop').disabled && document.getElementById('text').value === ''");
    assert_eq!(daemon.get(&format!("/chat/session/{id}/state")).json["turn"]["status"], "stopped");

    say(&mut browser, "markup");
    browser.wait(&has("log", MARKUP));
    browser.wait("!document.getElementById('send').disabled");
    assert_eq!(browser.eval(&has("log", "aman, by demo/script")), true, "who answers is shown");
    let made = "[document.title, document.querySelectorAll('#log :is(img, script, b, strong)').length]";
    assert_eq!(browser.eval(made), json!(["aman", 0]), "an answer is text");
    say(&mut browser, "broken");
    browser.wait(&has("trouble", "model_auth"));
    assert_eq!(browser.eval("document.querySelector('#trouble button').textContent"), "Try again");

    // What is said elsewhere appears, and all of it is there in another tab, and after a restart of the daemon.
    browser.wait("!document.getElementById('send').disabled");
    assert_eq!(daemon.cli(&["chat", "--session", &id, "-m", "hello"]).0, 0);
    browser.wait(&has("log", "Hello there, my friend."));
    let shown = browser.eval("document.getElementById('log').innerText");
    browser.new_tab();
    browser.open(&format!("http://{}/#chat={id}", daemon.address));
    browser.wait(&format!("document.getElementById('log')?.innerText === {shown}"));
    browser.wait(&has("sessions", "slow"));

    let without = Daemon::configured("[models]\ndetect = \"\"\n");
    browser.log_in(&without);
    browser.eval("location.hash = '#chat'");
    browser.wait("document.getElementById('agent').value === 'aman'");
    say(&mut browser, "hello");
    browser.wait(&has("trouble", "Ollama"));
    assert_eq!(browser.eval("document.getElementById('text').value"), "hello", "what was written stays");
}

/// The questions that wait.
fn pending(daemon: &Daemon) -> Vec<Value> {
    daemon.get("/tool-auth/pending").items()
}

/// A button of the newest card in a part of the page.
fn button(part: &str, name: &str) -> String {
    format!(
        "[...document.querySelectorAll('#{part} article:last-of-type button')].find(b => b.textContent === '{name}')"
    )
}

/// Has a question asked in the conversation that is open; gives it.
fn asked(daemon: &Daemon, browser: &mut Browser) -> Value {
    say(browser, "publish");
    let asked = daemon.wait("the question", || pending(daemon).pop());
    browser.wait(&format!("Boolean({})", button("log", "No")));
    asked
}

/// Goal: a call that needs a yes is asked about in the page, with exactly what would run; it can be answered there, in any
/// tab, and by whoever is first; every other place sees how it ended. The link of the notification leads to it.
#[test]
fn questions_are_answered_in_a_browser() {
    let daemon = scripted();
    let mut browser = Browser::logged_in(&daemon);
    browser.eval("location.hash = '#chat'");
    browser.wait("document.getElementById('agent').value === 'aman'");
    let question = asked(&daemon, &mut browser);
    let id = question["id"].as_str().expect("an id");
    let told = daemon.get("/notifications?category=approval").items().remove(0);
    assert_eq!(told["action"]["url"], format!("/#approval={id}"));
    browser.wait("document.title === '(1) aman' && document.getElementById('waiting').textContent === '(1)'");

    let mut first = browser.new_tab();
    browser.open(&format!("http://{}{}", daemon.address, told["action"]["url"].as_str().expect("a link")));
    browser.wait(&format!("{LIVE} && document.activeElement.dataset.approval === '{id}'"));
    let card = browser.eval("document.activeElement.innerText");
    let card = card.as_str().expect("a card");
    for part in
        ["The agent aman asks", "\"page.made\"", "<img src=x", "\\u{202e}done", "publish_event: page.made", "Expires"]
    {
        assert!(card.contains(part), "{part} in {card}");
    }
    let names = "[...document.activeElement.querySelectorAll('button')].map(one => one.textContent)";
    assert_eq!(browser.eval(names), json!(["Yes, once", "Yes, in this conversation", "Yes, always", "No"]));
    // By the keyboard alone: the link to the conversation, then the first button.
    (0..2).for_each(|_| browser.press("Tab", "\t"));
    assert_eq!(browser.eval("document.activeElement.textContent"), "Yes, once");
    browser.press("Enter", "\r");
    browser.wait(&has("approvals", "Allowed by "));
    let mut second = browser.go_to(first);
    browser.wait(&has("log", "All is done."));
    browser.wait(&has("approvals", "Allowed by ").replace("innerText", "textContent"));
    assert_eq!(browser.eval("document.querySelector('#log details').open"), false, "results are folded");
    assert_eq!(browser.eval("document.querySelectorAll('#log details pre').length"), 2);
    assert_eq!(daemon.recent("page.made")[0]["data"]["n"], MARKUP);

    // A tab that has not heard of the answer gives its own, which is too late, and says so.
    let question = asked(&daemon, &mut browser);
    first = browser.go_to(second);
    browser.wait(&format!("Boolean({})", button("approvals", "Yes, always")));
    browser.eval("stream.close()");
    second = browser.go_to(first);
    browser.eval(&format!("{}.click()", button("log", "No")));
    daemon.wait("the answer", || pending(&daemon).is_empty().then_some(()));
    first = browser.go_to(second);
    browser.eval(&format!("{}.click()", button("approvals", "Yes, always")));
    browser.wait("document.querySelector('#approvals article:last-of-type').innerText.includes('Refused by ')");
    assert!(daemon.get("/tool-auth/rules").items().is_empty());
    // The link leads to how it ended.
    browser.open("about:blank");
    let id = question["id"].as_str().expect("an id");
    browser.open(&format!("http://{}/#approval={id}", daemon.address));
    browser
        .wait(&format!("Boolean(document.getElementById('approval-told')) && {}", has("approval-told", "Refused by ")));

    // "Always" makes the rule that it shows; like calls are not asked about any more.
    browser.go_to(first);
    asked(&daemon, &mut browser);
    browser.eval(&format!("{}.click()", button("log", "Yes, always")));
    daemon.wait("the rule", || daemon.get("/tool-auth/rules").items().pop());
    say(&mut browser, "publish");
    daemon.wait("the event", || (daemon.recent("page.made").len() == 3).then_some(()));
    assert_eq!(browser.eval("document.title"), "aman");
}
