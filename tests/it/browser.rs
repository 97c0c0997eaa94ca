//! The built-in page in a real browser: Chromium without a window, driven over pipes by the DevTools protocol.

mod chat;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Daemon, Folder, free_address, write_skill};

/// How long the browser may take for anything; its first start on a busy machine is slow.
const PATIENCE: Duration = Duration::from_secs(90);

/// The page is there, and hears of what happens.
const LIVE: &str = "location.pathname === '/' && document.getElementById('state')?.textContent === 'Live.'";

/// A tab that is in the background.
struct Tab(Option<String>);

struct Browser {
    child: Child,
    input: ChildStdin,
    output: Receiver<Value>,
    next: u64,
    session: Option<String>,
    _profile: Folder,
}

impl Browser {
    /// A browser with one empty page.
    fn start() -> Browser {
        let profile = Folder::new("chromium");
        // The protocol's pipes are the file descriptors 3 and 4.
        let mut child = Command::new("sh")
            .args(["-c", "exec chromium \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>&1", "chromium"])
            .args(["--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-quic"])
            .args(["--no-first-run", "--disable-background-networking", "--disable-component-update"])
            .args(["--disable-sync", "--disable-dev-shm-usage"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh is there");
        let (input, answers) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        let (sender, output) = channel();
        std::thread::spawn(move || {
            for message in BufReader::new(answers).split(0) {
                let Some(message) = message.ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()) else { return };
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        let mut browser = Browser { child, input, output, next: 0, session: None, _profile: profile };
        browser.new_tab();
        browser
    }

    /// A browser that is logged in, with the page before it.
    fn logged_in(daemon: &Daemon) -> Browser {
        let mut browser = Browser::start();
        browser.log_in(daemon);
        browser
    }

    fn log_in(&mut self, daemon: &Daemon) {
        let url = daemon.cli(&["open"]).1;
        self.open(url.trim());
        self.wait(LIVE);
    }

    /// Opens a tab and goes there; gives the one where it was.
    fn new_tab(&mut self) -> Tab {
        let before = Tab(self.session.take());
        let target = self.call("Target.createTarget", json!({ "url": "about:blank" }))["targetId"].clone();
        let attached = self.call("Target.attachToTarget", json!({ "targetId": target, "flatten": true }));
        self.session = attached["sessionId"].as_str().map(str::to_owned);
        before
    }

    /// Goes to another tab; gives the one where it was.
    fn go_to(&mut self, tab: Tab) -> Tab {
        Tab(std::mem::replace(&mut self.session, tab.0))
    }

    /// Types into what has the focus, and presses Enter.
    fn type_line(&mut self, text: &str) {
        self.call("Input.insertText", json!({ "text": text }));
        self.press("Enter", "\r");
    }

    fn press(&mut self, key: &str, text: &str) {
        for kind in ["keyDown", "keyUp"] {
            let text = if kind == "keyDown" { text } else { "" };
            self.call("Input.dispatchKeyEvent", json!({ "type": kind, "key": key, "code": key, "text": text }));
        }
    }

    fn call(&mut self, method: &str, params: Value) -> Value {
        let answer = self.ask(method, params);
        assert!(answer["error"].is_null(), "{method}: {answer}");
        answer["result"].clone()
    }

    /// The whole answer to a command, which may be an error.
    fn ask(&mut self, method: &str, params: Value) -> Value {
        self.next += 1;
        let mut message = json!({ "id": self.next, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        let sent = self.input.write_all(format!("{message}\0").as_bytes()).and_then(|()| self.input.flush());
        sent.expect("the browser listens; `scripts/setup test` installs chromium");
        loop {
            let answer = self.output.recv_timeout(PATIENCE);
            let answer = answer.expect("the browser answers; `scripts/setup test` installs chromium");
            if answer["id"] == self.next {
                return answer;
            }
        }
    }

    fn open(&mut self, url: &str) {
        self.call("Page.navigate", json!({ "url": url }));
    }

    /// The value of a script's expression; null while the page gives way to the next.
    fn eval(&mut self, script: &str) -> Value {
        let params = json!({ "expression": script, "returnByValue": true, "awaitPromise": true });
        self.ask("Runtime.evaluate", params)["result"]["result"]["value"].clone()
    }

    /// Waits until the expression is true.
    fn wait(&mut self, script: &str) {
        let begun = Instant::now();
        while self.eval(script) != true {
            assert!(begun.elapsed() < PATIENCE, "never true: {script}; {}", self.eval("document.body.innerText"));
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _dead = self.child.kill();
        let _ended = self.child.wait();
    }
}

const ROWS: &str = "[...document.querySelectorAll('#events tbody tr')]";

/// Goal: a person logs in by the one-time URL, sees what is there, what happens and what failed, and acts on it.
#[test]
fn the_page_in_a_browser() {
    let mut daemon = Daemon::start();
    write_skill(daemon.home(), "broken", &["aman.on: test.fails"], "exit 65\n");
    daemon.post("/skills/reload", &json!({}));
    daemon.post("/skill/broken/enable", &json!({}));
    let early = daemon.push("test.early", json!({ "n": "<img src=x onerror=document.title='hacked'>" }));
    let mut browser = Browser::start();
    browser.open(&format!("http://{}/", daemon.address));
    browser.wait("!document.getElementById('login').hidden && document.getElementById('inside').hidden");
    browser.log_in(&daemon);
    assert_eq!(browser.eval("location.search + document.cookie"), "", "no secret where a script or a log sees it");
    browser.wait(&format!("{ROWS}.some(row => row.dataset.id === '{early}')"));
    let late = daemon.push("test.late", json!({ "n": 2 }));
    browser.wait(&format!("{ROWS}[0]?.dataset.id === '{late}' && {ROWS}[0].textContent.includes('test.late')"));
    assert_eq!(browser.eval("document.title"), "aman", "data is shown, not run");
    let fails = daemon.push("test.fails", json!({}));
    browser.wait("document.querySelectorAll('#letters tbody tr').length === 1");
    browser.eval("navigator.clipboard.writeText = async (text) => { window.copied = text; }");
    let copied = |browser: &mut Browser, list: &str, id: &str| {
        let button = format!("document.querySelector('#{list} tr[data-id=\"{id}\"] button.id')");
        assert_eq!(browser.eval(&format!("{button}.textContent")), format!("…{}", &id[id.len() - 12..]));
        browser.eval(&format!("{button}.click()"));
        browser.wait(&format!("window.copied === '{id}'"));
    };
    copied(&mut browser, "events", &fails);
    let letter = daemon.get("/dlq").items()[0]["id"].as_str().expect("an id").to_owned();
    copied(&mut browser, "letters", &letter);
    // The columns of times, ids and types keep their words whole, also beside data of any length.
    daemon.push("test.a_rather_long_type_of_event.that_happened", json!({ "n": "x".repeat(4000) }));
    browser.wait(&format!("{ROWS}[0].textContent.includes('a_rather_long_type')"));
    let whole = "(() => { const range = document.createRange(); return [...document.querySelectorAll(
        '#events tbody tr:first-child :is(.fixed, a), #letters tbody a')].map((cell) => { range.selectNodeContents(cell);
        return range.getBoundingClientRect().height < 30; }); })()";
    assert_eq!(browser.eval(whole), json!([true, true, true, true, true]), "one line each");
    browser.eval("document.querySelector('#letters tbody a').click()");
    browser.wait("!document.getElementById('why').hidden");
    let story = browser.eval("document.getElementById('why').innerText");
    let story = story.as_str().expect("a story");
    assert!(story.contains("dead_lettered") && story.contains("skill/broken: dead after 1 attempt"), "{story}");
    browser.eval("location.hash = ''");
    browser.wait("document.getElementById('why').hidden");
    browser.eval("[...document.querySelectorAll('#letters button')].find(b => b.textContent === 'Discard').click()");
    browser.wait("!document.getElementById('letters-empty').hidden");
    assert_eq!(daemon.get("/dlq/depth").json["depth"], 0);
    daemon.kill();
    browser.wait("document.getElementById('state').textContent !== 'Live.'");
}

/// Goal: a browser's own EventSource: with a ticket it sees everything, with the cookie alone no more than anybody; it gets
/// events by their names, comes back by itself when the daemon does, and misses none.
#[test]
fn a_browsers_event_source() {
    let (home, bind) = (Folder::new("home"), free_address());
    let start = || Daemon::try_start_in(home.path(), &[("AMAN_HTTP_BIND", &bind)]).expect("it starts");
    let mut daemon = start();
    let mut browser = Browser::logged_in(&daemon);
    browser.eval(
        "(async () => {
            const listen = (query) => {
                const seen = [], source = new EventSource('/events/stream?types=a.*' + query);
                for (const type of ['message', 'a.one', 'a.two']) {
                    source.addEventListener(type, (event) => {
                        const { id, data } = JSON.parse(event.data);
                        seen.push([event.type, event.lastEventId, id, data ?? null]);
                    });
                }
                return { seen, source };
            };
            const headers = { 'x-aman-session': localStorage.getItem('aman-session') };
            const { ticket } = await (await fetch('/auth/ticket', { method: 'POST', headers })).json();
            window.full = listen('&ticket=' + encodeURIComponent(ticket));
            window.cookie = listen('');
        })()",
    );
    browser.wait("full.source.readyState === 1 && cookie.source.readyState === 1");
    let first = daemon.push("a.one", json!({ "n": 1 }));
    browser.wait("full.seen.length === 1 && cookie.seen.length === 1");
    assert_eq!(browser.eval("full.seen"), json!([["a.one", "1", first, { "n": 1 }]]));
    assert_eq!(browser.eval("cookie.seen"), json!([["a.one", "1", first, null]]));
    daemon.kill();
    browser.wait("cookie.source.readyState === 0");
    daemon = start();
    let missed = daemon.push("a.two", json!({ "n": 2 }));
    browser.wait("cookie.seen.length === 2");
    let last = daemon.push("a.one", json!({ "n": 3 }));
    browser.wait("cookie.seen.length === 3");
    assert_eq!(
        browser.eval("cookie.seen"),
        json!([["a.one", "1", first, null], ["a.two", "2", missed, null], ["a.one", "3", last, null]])
    );
    browser.wait("full.source.readyState === 2");
    assert_eq!(browser.eval("full.seen.length"), 1, "a ticket is good once");
}
