//! Targets 16 and 17: what the daemon adds to the words of a model on their way to whoever chats. The provider is a stub on
//! loopback that writes into each word when it left, so every word that arrives tells how long it took; the reference reads
//! the same words straight from the stub.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::daemon::{self, Aman};
use crate::report::{Row, Wanted};
use crate::stats::{Pairs, percentile};
use crate::{Bench, Res};

/// Sessions that stream at one time.
const MANY: usize = 200;
/// Between two words of one answer; models write about as fast.
const GAP: Duration = Duration::from_millis(50);
/// Before the first word, so that everything else is done.
const FIRST: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(60);

/// How the stub answers.
struct Plan {
    begun: Instant,
    words: u64,
}

/// A word that arrived: when it left and when it came, in nanoseconds of one clock.
type Word = (u64, u64);

/// Target 16.
pub fn first(bench: &mut Bench) -> Res<()> {
    bench.sample_disk(16)?;
    let turns = bench.count(60, 15);
    let mut pairs = Pairs::default();
    let mut worst: u64 = 0;
    for _ in 0..bench.args.rounds {
        let (ours, straight) = one_by_one(bench, turns)?;
        worst = worst.max(ours.iter().copied().max().unwrap_or_default());
        pairs.push(millis(&ours, 0.5), millis(&straight, 0.5));
    }
    let row = Row::cost_beside(
        16,
        "first word, provider to client",
        "ms",
        &pairs,
        "straight from the stub",
        Wanted::AtMost(5.0),
    );
    bench.report.add(row.note(format!("median of {turns}; the slowest of all {:.1} ms", worst as f64 / 1e6)));
    Ok(())
}

/// Target 17.
pub fn many(bench: &mut Bench) -> Res<()> {
    bench.sample_disk(17)?;
    let words = bench.count(160, 60);
    let (mut p99, mut p50) = (Pairs::default(), Pairs::default());
    for _ in 0..bench.args.rounds {
        let (ours, straight) = side_by_side(bench, words)?;
        p99.push(millis(&ours, 0.99), millis(&straight, 0.99));
        p50.push(millis(&ours, 0.5), millis(&straight, 0.5));
    }
    let against = "straight from the stub";
    let name = format!("p99 of a word, {MANY} streams at once");
    let row = Row::cost_beside(17, &name, "ms", &p99, against, Wanted::AtMost(20.0));
    bench.report.add(
        row.note(format!("{} words a second each; stub and clients share the processors", 1000 / GAP.as_millis())),
    );
    let name = format!("p50 of a word, {MANY} streams at once");
    bench.report.add(Row::cost_beside(17, &name, "ms", &p50, against, Wanted::Nothing));
    Ok(())
}

fn runtime() -> Res<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

/// Times of first words, by the daemon and without it.
fn one_by_one(bench: &Bench, turns: u64) -> Res<(Vec<u64>, Vec<u64>)> {
    let (runtime, plan) = (runtime()?, Arc::new(Plan { begun: Instant::now(), words: 3 }));
    let stub = runtime.block_on(stub(Arc::clone(&plan)))?;
    let aman = aman(bench, stub)?;
    let (mut ours, mut straight) = (Vec::new(), Vec::new());
    for _ in 0..turns {
        let session = session(&aman)?;
        let by_us = runtime.block_on(read(aman.addr, send(&session), Arc::clone(&plan)))?;
        let bare = runtime.block_on(read(stub, ask(), Arc::clone(&plan)))?;
        for (words, times) in [(by_us, &mut ours), (bare, &mut straight)] {
            let (left, came) = *words.first().ok_or("an answer without a word")?;
            times.push(came - left);
        }
    }
    Ok((ours, straight))
}

/// Times of all words while every stream is open, by the daemon and without it.
fn side_by_side(bench: &Bench, words: u64) -> Res<(Vec<u64>, Vec<u64>)> {
    let (runtime, plan) = (runtime()?, Arc::new(Plan { begun: Instant::now(), words }));
    let stub = runtime.block_on(stub(Arc::clone(&plan)))?;
    let straight = runtime.block_on(crowd(stub, vec![ask(); MANY], Arc::clone(&plan)))?;
    let aman = aman(bench, stub)?;
    let sessions: Vec<String> = (0..MANY).map(|_| session(&aman)).collect::<Res<_>>()?;
    let sends = sessions.iter().map(|session| send(session)).collect();
    let ours = runtime.block_on(crowd(aman.addr, sends, Arc::clone(&plan)))?;
    Ok((ours, straight))
}

/// Reads many answers at once; what counts is what left after all had begun and before any had ended.
async fn crowd(at: SocketAddr, requests: Vec<String>, plan: Arc<Plan>) -> Res<Vec<u64>> {
    let mut reading = JoinSet::new();
    for request in requests {
        reading.spawn(read(at, request, Arc::clone(&plan)));
    }
    let answers = reading.join_all().await.into_iter().collect::<Res<Vec<Vec<Word>>>>()?;
    let edge = |word: fn(&Vec<Word>) -> Option<&Word>| answers.iter().filter_map(word).map(|word| word.0);
    let begun = edge(|words| words.first()).max().ok_or("no answer had a word")?;
    let ended = edge(|words| words.last()).min().ok_or("no answer had a word")?;
    let together: Vec<u64> = answers
        .iter()
        .flatten()
        .filter(|(left, _)| (begun..=ended).contains(left))
        .map(|(left, came)| came - left)
        .collect();
    if together.len() < answers.len() {
        return Err("the streams were never all open at one time".into());
    }
    Ok(together)
}

fn millis(nanos: &[u64], p: f64) -> f64 {
    let mut micros: Vec<u32> = nanos.iter().map(|nanos| u32::try_from(nanos / 1000).unwrap_or(u32::MAX)).collect();
    micros.sort_unstable();
    f64::from(percentile(&micros, p)) / 1000.0
}

/// A daemon whose only model is the stub.
fn aman(bench: &Bench, stub: SocketAddr) -> Res<Aman> {
    let home = bench.folder("models")?.join(format!("aman-{stub}").replace(':', "-"));
    std::fs::create_dir_all(&home)?;
    let toml = format!("[providers.stub]\nkind = \"openai\"\nurl = \"http://{stub}/v1\"\nmodels = [\"words\"]\n");
    std::fs::write(home.join("aman.toml"), toml)?;
    Aman::start(&home)
}

fn session(aman: &Aman) -> Res<String> {
    let answer: Value = serde_json::from_str(&aman.call("POST", "/chat/session/create", "application/json", b"{}")?)?;
    Ok(answer["id"].as_str().ok_or_else(|| format!("no session: {answer}"))?.to_owned())
}

/// A message whose turn is streamed back.
fn send(session: &str) -> String {
    let headers = format!("{}Accept: text/event-stream\r\n", daemon::auth());
    post(&format!("/chat/session/{session}/send"), &headers, &json!({ "text": "Write." }))
}

/// A question straight to the stub.
fn ask() -> String {
    post("/v1/chat/completions", "", &json!({ "messages": [] }))
}

fn post(path: &str, headers: &str, body: &Value) -> String {
    let body = body.to_string();
    format!(
        "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n{headers}Content-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Reads one streamed answer to its end.
async fn read(at: SocketAddr, request: String, plan: Arc<Plan>) -> Res<Vec<Word>> {
    let reading = async {
        let mut socket = TcpStream::connect(at).await?;
        socket.set_nodelay(true)?;
        socket.write_all(request.as_bytes()).await?;
        let (mut text, mut buffer, mut words) = (String::new(), vec![0; 64 << 10], Vec::new());
        loop {
            let length = socket.read(&mut buffer).await?;
            let came = nanos(plan.begun);
            if length == 0 {
                break;
            }
            text.push_str(&String::from_utf8_lossy(&buffer[..length]));
            // Words are `<nanoseconds>w`; the last may not be whole yet.
            let whole = text.rfind('w').map_or(0, |at| at + 1);
            let found = text[..whole].split('w').filter_map(|before| {
                let digits = before.len() - before.bytes().rev().take_while(u8::is_ascii_digit).count();
                before[digits..].parse::<u64>().ok().filter(|_| before.len() - digits >= 8)
            });
            words.extend(found.map(|left| (left, came)));
            text.drain(..whole);
        }
        if words.len() as u64 == plan.words {
            return Ok(words);
        }
        Err(format!("{} of {} words came; the end: {text}", words.len(), plan.words).into())
    };
    tokio::time::timeout(PATIENCE, reading).await?
}

fn nanos(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// A stub of a provider: where it listens.
async fn stub(plan: Arc<Plan>) -> Res<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let plan = Arc::clone(&plan);
            // Who leaves early is no matter here.
            tokio::spawn(async move { drop(answer(socket, &plan).await) });
        }
    });
    Ok(address)
}

async fn answer(mut socket: TcpStream, plan: &Plan) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let (mut request, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
    while !is_whole(&request) {
        match socket.read(&mut buffer).await? {
            0 => return Ok(()),
            length => request.extend_from_slice(&buffer[..length]),
        }
    }
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";
    socket.write_all(head.as_bytes()).await?;
    // Spread, as those of many people are.
    tokio::time::sleep(FIRST + GAP.mul_f64(fastrand::f64())).await;
    let mut next = tokio::time::Instant::now();
    for _ in 0..plan.words {
        tokio::time::sleep_until(next).await;
        next += GAP;
        // Always enough digits to be told from other numbers.
        let word = format!("{:010}w", nanos(plan.begun));
        let line = json!({ "choices": [{ "delta": { "content": word } }] });
        socket.write_all(format!("data: {line}\n\n").as_bytes()).await?;
    }
    let end = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":1,\
               \"completion_tokens\":1}}\n\ndata: [DONE]\n\n";
    socket.write_all(end.as_bytes()).await
}

fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let head = head.to_ascii_lowercase();
    let length = head.split("content-length:").nth(1).and_then(|rest| rest.lines().next());
    length.and_then(|length| length.trim().parse::<usize>().ok()).is_none_or(|length| body.len() >= length)
}
