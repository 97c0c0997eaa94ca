//! What tests stand on: the real binary in a folder of its own, and a small HTTP client over a real socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The token of every test daemon.
pub const TOKEN: &str = "test-token-0123456789";
/// How long a test waits for a state before it fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A folder that is removed when the test ends well.
pub struct Folder(PathBuf);

impl Folder {
    /// A new, empty folder.
    pub fn new(name: &str) -> Folder {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("aman-it-{}-{number}-{name}", std::process::id()));
        // A failed run with the same process id may have left its own.
        let _gone = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("a temporary folder");
        Folder(path)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _gone = std::fs::remove_dir_all(&self.0);
        }
    }
}

/// A running `aman serve`; killed when dropped.
pub struct Daemon {
    child: Child,
    home: PathBuf,
    /// `127.0.0.1:PORT`
    pub address: String,
    _folder: Option<Folder>,
}

impl Daemon {
    /// A daemon without configuration in a new folder.
    pub fn start() -> Daemon {
        Daemon::configured("")
    }

    /// A daemon with this `aman.toml` in a new folder.
    pub fn configured(toml: &str) -> Daemon {
        let folder = Folder::new("home");
        std::fs::write(folder.path().join("aman.toml"), toml).expect("aman.toml");
        Daemon::start_keeping(folder)
    }

    /// A daemon in a folder that is its own from now on.
    pub fn start_keeping(folder: Folder) -> Daemon {
        let mut daemon = Daemon::start_in(folder.path());
        daemon._folder = Some(folder);
        daemon
    }

    /// A daemon in a folder that is there; panics with its log when it does not become ready.
    pub fn start_in(home: &Path) -> Daemon {
        Daemon::try_start_in(home, &[]).unwrap_or_else(|log| panic!("the daemon did not start: {log}"))
    }

    /// As [`Daemon::start_in`] with further variables; gives the log when the daemon ends before it is ready.
    pub fn try_start_in(home: &Path, env: &[(&str, &str)]) -> Result<Daemon, String> {
        let log = std::fs::File::options().create(true).append(true).open(home.join("stderr.log")).expect("log file");
        let mut child = command(home)
            .arg("serve")
            .envs(env.iter().copied())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("the binary starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("stdout is piped");
        BufReader::new(stdout).read_line(&mut line).expect("stdout is readable");
        let url = line.trim().strip_prefix("aman ready ");
        match url.and_then(|url| url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"))) {
            Some(address) => Ok(Daemon { child, home: home.to_owned(), address: address.to_owned(), _folder: None }),
            None => {
                let _ended = child.wait();
                Err(std::fs::read_to_string(home.join("stderr.log")).unwrap_or_default())
            }
        }
    }

    /// Its folder.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.home.join("stderr.log")).unwrap_or_default()
    }

    /// SIGKILL, and waits for its end. The folder stays until [`Daemon::again`] or the drop.
    pub fn kill(&mut self) {
        self.child.kill().expect("the daemon can be killed");
        self.child.wait().expect("the daemon ends");
    }

    /// Starts once more in the same folder.
    pub fn again(&mut self) {
        let mut next = Daemon::start_in(&self.home);
        // The ended child goes to `next`, whose drop then has nothing left to kill.
        std::mem::swap(&mut self.child, &mut next.child);
        std::mem::swap(&mut self.address, &mut next.address);
    }

    /// SIGTERM; the exit code, once it has ended by itself.
    pub fn terminate(&mut self) -> Option<i32> {
        signal(self.pid(), "TERM");
        self.ended_within(PATIENCE)
    }

    /// The exit code, once it has ended by itself.
    pub fn ended_within(&mut self, patience: Duration) -> Option<i32> {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().expect("waiting works") {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("the daemon did not end; its log: {}", self.log());
    }

    /// A request with the token; the body is JSON or empty.
    pub fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        self.send(method, path, &[("authorization", &format!("Bearer {TOKEN}"))], body)
    }

    /// GET with the token.
    pub fn get(&self, path: &str) -> Answer {
        self.call("GET", path, None)
    }

    /// POST with the token.
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.call("POST", path, Some(body))
    }

    /// POST with the token and `x-aman-confirm: yes`.
    pub fn post_confirmed(&self, path: &str, body: &Value) -> Answer {
        let token = format!("Bearer {TOKEN}");
        self.send("POST", path, &[("authorization", &token), ("x-aman-confirm", "yes")], Some(body))
    }

    /// A request with just these headers, besides Host, Content-Length and Content-Type: application/json for a body.
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Option<&Value>) -> Answer {
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut headers = headers.to_vec();
        if !body.is_empty() && !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")) {
            headers.push(("content-type", "application/json"));
        }
        self.send_bytes(method, path, &headers, body.as_bytes())
    }

    /// As [`Daemon::send`] with any body and no Content-Type of its own.
    pub fn send_bytes(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let bytes = request(method, path, headers, body);
        self.raw(&bytes).unwrap_or_else(|error| panic!("{method} {path}: {error}; log: {}", self.log()))
    }

    /// Writes these bytes to a new connection and reads one answer.
    pub fn raw(&self, bytes: &[u8]) -> Result<Answer, String> {
        exchange(&self.address, bytes)
    }

    /// A new connection with time limits.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).expect("the daemon listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
        stream.set_write_timeout(Some(PATIENCE)).expect("a time limit");
        stream
    }

    /// Pushes an event and gives its id.
    pub fn push(&self, kind: &str, data: Value) -> String {
        let answer = self.post("/events/push", &serde_json::json!({ "source": "test", "type": kind, "data": data }));
        assert_eq!(answer.status, 202, "{answer:?}");
        answer.json["id"].as_str().expect("an id").to_owned()
    }

    /// `/events/dump/{id}`.
    pub fn dump(&self, id: &str) -> Value {
        self.get(&format!("/events/dump/{id}")).json
    }

    /// The first delivery of an event; null when it has none.
    pub fn delivery(&self, id: &str) -> Value {
        self.dump(id)["deliveries"][0].clone()
    }

    /// How the first delivery of an event stands.
    pub fn outcome(&self, id: &str) -> String {
        self.delivery(id)["status"].as_str().unwrap_or("none").to_owned()
    }

    /// Waits until the first delivery of an event stands so.
    pub fn until(&self, id: &str, outcome: &str) {
        self.wait(&format!("{id} to be {outcome}"), || (self.outcome(id) == outcome).then_some(()));
    }

    /// Waits until `look` gives something; panics with `what` and the log when it does not.
    pub fn wait<T>(&self, what: &str, look: impl FnMut() -> Option<T>) -> T {
        wait(what, look, || self.log())
    }

    /// Recent events of these types, newest first.
    pub fn recent(&self, types: &str) -> Vec<Value> {
        let answer = self.get(&format!("/events/recent?limit=1000&types={types}"));
        answer.json["items"].as_array().cloned().unwrap_or_default()
    }

    /// Every item of a list over all its pages; `path` holds the query with `limit`.
    pub fn all(&self, path: &str) -> Vec<Value> {
        let (mut all, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = self.get(&format!("{path}&cursor={cursor}"));
            all.extend(page.items());
            match page.json["next_cursor"].as_str() {
                Some(next) => next.clone_into(&mut cursor),
                None => return all,
            }
        }
    }

    /// Waits until nothing was committed for so long.
    pub fn writes_nothing_for(&self, time: Duration) {
        let commits = || {
            let text = String::from_utf8(self.get("/metrics").body).expect("text");
            text.lines().find_map(|line| line.strip_prefix("aman_commits_total ").map(str::to_owned))
        };
        self.wait("a time without a commit", || {
            let before = commits();
            std::thread::sleep(time);
            (before.is_some() && commits() == before).then_some(())
        });
    }

    /// Waits until no delivery is open any more; fails when nothing ends for a while.
    pub fn settle(&self) {
        let (mut least, mut since) = (i64::MAX, Instant::now());
        loop {
            let bus = self.get("/debug/metrics").json["bus"].clone();
            let counts = bus["open_by_consumer"].as_object().expect("counts of open deliveries");
            let open: i64 = counts.values().filter_map(Value::as_i64).sum();
            // What back-pressure goes by must not drift from what is there.
            let open = open.max(bus["pending"].as_i64().expect("a count").abs());
            if open == 0 {
                return;
            }
            if open < least {
                (least, since) = (open, Instant::now());
            }
            assert!(since.elapsed() < PATIENCE, "these deliveries never end: {bus}; log: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Runs the command line against this daemon: exit code, stdout, stderr.
    pub fn cli(&self, args: &[&str]) -> (i32, String, String) {
        let output = command(&self.home).args(args).output().expect("the binary starts");
        (
            output.status.code().unwrap_or(-1),
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _dead = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// A request as bytes, with Host and Content-Length, on a connection of its own.
pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        head.push_str("host: localhost\r\n");
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// Writes these bytes to a new connection and reads one whole answer; for daemons that may be dead or die.
pub fn exchange(address: &str, bytes: &[u8]) -> Result<Answer, String> {
    let mut stream = TcpStream::connect(address).map_err(|error| error.to_string())?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(|error| error.to_string())?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(|error| error.to_string())?;
    // A daemon that refuses early may close before it took everything: its answer still counts.
    let written = stream.write_all(bytes);
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    let whole = Answer::read(&answer).filter(|answer| bytes.starts_with(b"HEAD ") || answer.is_whole());
    whole.ok_or_else(|| format!("no HTTP answer: {written:?}, {read:?}, {}", String::from_utf8_lossy(&answer)))
}

/// An address on this machine that nobody listens on, for daemons that must come back where they were.
pub fn free_address() -> String {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    free.local_addr().expect("an address").to_string()
}

/// Writes a line that nextest shows with a failure, and always with `--no-capture`.
pub fn say(text: &str) {
    let _shown = writeln!(std::io::stderr(), "{text}");
}

/// A seed for random operations: `AMAN_TEST_SEED`, or a new one; told when the test fails.
pub struct Seed(pub u64);

impl Seed {
    /// Takes the seed of this run.
    pub fn take() -> Seed {
        let given = std::env::var("AMAN_TEST_SEED").ok().and_then(|text| text.parse().ok());
        Seed(given.unwrap_or_else(|| fastrand::u64(..1_000_000_000)))
    }

    /// A generator of its own for each `stream` of operations.
    pub fn rng(&self, stream: u64) -> fastrand::Rng {
        fastrand::Rng::with_seed(self.0.wrapping_mul(1_000_003).wrapping_add(stream))
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            say(&format!("To repeat this: AMAN_TEST_SEED={}", self.0));
        }
    }
}

/// Writes a skill with one script into `home`; `metadata` are lines such as `aman.on: a.b`.
pub fn write_skill(home: &Path, name: &str, metadata: &[&str], script: &str) {
    let path = home.join("skills").join(name);
    std::fs::create_dir_all(path.join("scripts")).expect("a folder for the skill");
    let metadata: String = metadata.iter().map(|line| format!("  {line}\n")).collect();
    let text =
        format!("---\nname: {name}\ndescription: A test.\nmetadata:\n  aman.run: sh scripts/run.sh\n{metadata}---\n");
    std::fs::write(path.join("SKILL.md"), text).expect("SKILL.md");
    std::fs::write(path.join("scripts/run.sh"), script).expect("script");
}

/// What a manifest of a plugin begins with.
pub fn manifest(name: &str, version: &str) -> String {
    format!(
        "name = \"{name}\"\nversion = \"{version}\"\ndescription = \"A test\"\ninterface = \"0.1\"\n\
         component = \"plugin.wasm\"\n"
    )
}

/// The binary with the environment of an isolated daemon in `home`.
pub fn command(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aman"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    command.env_clear().env("PATH", path).env("HOME", home).env("AMAN_HOME", home);
    command.env("AMAN_HTTP_BIND", "127.0.0.1:0").env("AMAN_HTTP_TOKEN", TOKEN).stdin(Stdio::null());
    // Models of whoever runs the tests are not theirs to ask.
    command.env("AMAN_MODELS_DETECT", "");
    command
}

/// The command line with these words on a terminal, which the program `script` is: what is written to it is typed.
pub fn on_terminal(home: &Path, words: &str) -> Command {
    // In the place of the shell, which Ctrl-C would end.
    let line = format!("exec {} {words}", env!("CARGO_BIN_EXE_aman"));
    let plain = command(home);
    let variables = plain.get_envs().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())));
    let mut terminal = Command::new("script");
    terminal.args(["--quiet", "--return", "--command", &line, "/dev/null"]).env_clear().envs(variables);
    terminal.env("SHELL", "/bin/sh").stdin(Stdio::piped()).stdout(Stdio::piped());
    terminal
}

/// Sends a signal by name.
pub fn signal(pid: u32, name: &str) {
    let sent = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().expect("kill starts");
    assert!(sent.success(), "kill -{name} {pid}");
}

/// Waits until `look` gives something; panics with `what` when it does not.
pub fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>, log: impl Fn() -> String) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}; log: {}", log());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// An HTTP answer.
#[derive(Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Headers in order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// The body as JSON; null when it is none.
    pub json: Value,
}

impl Answer {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The problem's code, also where it is spelled as OpenAI does.
    pub fn code(&self) -> &str {
        let own = self.json["code"].as_str();
        own.or_else(|| self.json["error"]["code"].as_str()).unwrap_or_default()
    }

    /// False when the connection ended before the whole body had come.
    fn is_whole(&self) -> bool {
        let promised = self.header("content-length").and_then(|text| text.parse::<usize>().ok());
        promised.is_none_or(|length| self.body.len() >= length)
    }

    /// The names of the fields that a problem complains of.
    pub fn fields(&self) -> Vec<&str> {
        self.json["errors"].as_array().into_iter().flatten().filter_map(|error| error["field"].as_str()).collect()
    }

    /// The items of a list.
    pub fn items(&self) -> Vec<Value> {
        self.json["items"].as_array().unwrap_or_else(|| panic!("no list: {self:?}")).clone()
    }

    /// Reads the first answer in `bytes`.
    pub fn read(bytes: &[u8]) -> Option<Answer> {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
        let head = std::str::from_utf8(&bytes[..end]).ok()?;
        let mut lines = head.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
            .collect();
        let chunked = headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
        let rest = &bytes[end + 4..];
        let body = if chunked { unchunk(rest) } else { rest.to_vec() };
        let json = serde_json::from_slice(&body).unwrap_or(Value::Null);
        Some(Answer { status, headers, body, json })
    }
}

fn unchunk(mut bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(end) = bytes.windows(2).position(|two| two == b"\r\n") {
        let size = std::str::from_utf8(&bytes[..end]).ok().and_then(|hex| usize::from_str_radix(hex.trim(), 16).ok());
        let Some(size) = size.filter(|size| *size > 0 && bytes.len() >= end + 2 + size) else { break };
        out.extend_from_slice(&bytes[end + 2..end + 2 + size]);
        bytes = bytes.get(end + 2 + size + 2..).unwrap_or_default();
    }
    out
}

/// A stream of server-sent events.
pub struct Stream {
    lines: BufReader<TcpStream>,
    /// The answer's status.
    pub status: u16,
    /// The answer's headers, names in lower case.
    pub headers: Vec<(String, String)>,
}

/// One server-sent event.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Frame {
    /// `id:`
    pub id: String,
    /// `event:`
    pub event: String,
    /// `data:`, as JSON
    pub data: Value,
}

impl Stream {
    /// Opens `path` with these headers; panics unless it answers.
    pub fn open(daemon: &Daemon, path: &str, headers: &[(&str, &str)]) -> Stream {
        Stream::connect(&daemon.address, path, headers).unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    /// As [`Stream::open`], for daemons that may be dead or die.
    pub fn connect(address: &str, path: &str, headers: &[(&str, &str)]) -> Result<Stream, std::io::Error> {
        Stream::request(address, ("GET", path), headers, "")
    }

    /// As [`Stream::connect`] with any method and body. HTTP/1.0, so that no chunks come between the lines.
    pub fn request(
        address: &str,
        (method, path): (&str, &str),
        headers: &[(&str, &str)],
        body: &str,
    ) -> Result<Stream, std::io::Error> {
        let mut socket = TcpStream::connect(address)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut request = format!("{method} {path} HTTP/1.0\r\nhost: localhost\r\naccept: text/event-stream\r\n");
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() {
            request.push_str(&format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len()));
        }
        request.push_str("\r\n");
        request.push_str(body);
        socket.write_all(request.as_bytes())?;
        let mut stream = Stream { lines: BufReader::new(socket), status: 0, headers: Vec::new() };
        let first = stream.line()?;
        stream.status = first.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or(std::io::ErrorKind::Other)?;
        loop {
            let header = stream.line()?;
            let Some((name, value)) = header.split_once(':') else { return Ok(stream) };
            stream.headers.push((name.to_lowercase(), value.trim().to_owned()));
        }
    }

    /// Changes how long [`Stream::try_next`] waits.
    pub fn set_patience(&self, patience: Duration) {
        self.lines.get_ref().set_read_timeout(Some(patience)).expect("a time limit");
    }

    /// Closes the sending half of its connection.
    pub fn shutdown_sending(&self) {
        self.lines.get_ref().shutdown(std::net::Shutdown::Write).expect("half closed");
    }

    /// The next whole line without its end; an error when the stream ends before that.
    pub fn line(&mut self) -> Result<String, std::io::Error> {
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        match line.strip_suffix('\n') {
            Some(whole) => Ok(whole.trim_end_matches('\r').to_owned()),
            None => Err(std::io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// The next event; none when the stream ends. Comments and `retry:` are passed over.
    pub fn next(&mut self) -> Option<Frame> {
        match self.try_next() {
            Ok(frame) => Some(frame),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => None,
            Err(error) => panic!("the stream is not readable: {error}"),
        }
    }

    /// As [`Stream::next`]; an error of kind `UnexpectedEof` when the stream ends.
    pub fn try_next(&mut self) -> Result<Frame, std::io::Error> {
        let mut frame = Frame::default();
        loop {
            let line = self.line()?;
            match line.split_once(": ") {
                Some(("id", id)) => id.clone_into(&mut frame.id),
                Some(("event", event)) => event.clone_into(&mut frame.event),
                Some(("data", data)) => frame.data = serde_json::from_str(data).expect("data is JSON"),
                _ if line.is_empty() && !frame.data.is_null() => return Ok(frame),
                _ => {}
            }
        }
    }
}
