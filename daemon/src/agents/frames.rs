//! What happens in turns, told as it happens to whoever looks on.
//!
//! A turn that runs has a log of its frames. Viewers read it at their own pace, each from the begin of the turn: none
//! misses anything, none holds up the turn, and the words that came since a viewer looked last are one frame to it. Beside
//! it words go to the streams of events, as they come; a stream that lags there loses them. Nothing of this is stored: what a
//! turn has led to stands in the transcript.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::broadcast;

use crate::id::TraceId;

/// Bytes that the log of one turn keeps. Words beyond are in the transcript only.
const LOG_BYTES_MAX: usize = 8 << 20;
/// Turns that ended and can still be looked at from their begin.
const ENDED_MAX: usize = 32;
/// Bytes of theirs.
const ENDED_BYTES_MAX: usize = 2 << 20;
/// What a frame of words takes besides them, with room for what is escaped.
const FRAME_BYTES: usize = 64;
/// Pieces of words that wait for the streams of events; older ones are lost to a stream that lags.
const PIECES_MAX: usize = 256;

/// What a frame tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The turn begins, or begins anew after it was cut off: `{turn_id, session_id, message_id, agent_id}`.
    Start,
    /// More words of the answer: `{text}`.
    Token,
    /// The words since the last `tool_result` or `start` are void: another answer follows. `{}`
    Restart,
    /// A tool is called: `{id, name, arguments}`.
    ToolCall,
    /// What came of it: `{id, name, text, is_error}`.
    ToolResult,
    /// The turn waits for the person: the question as `GET /tool-auth/pending` shows it, its id as `auth_id` besides.
    ApprovalRequired,
    /// What a model's answer took: `{model, input, output, cached, estimated}`.
    Usage,
    /// The turn ended: `{message_id, status: "done" | "stopped"}`.
    Done,
    /// The turn failed: `{code, detail}`.
    Error,
}

impl Kind {
    /// Its name in a stream.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Start => "start",
            Kind::Token => "token",
            Kind::Restart => "restart",
            Kind::ToolCall => "tool_call",
            Kind::ToolResult => "tool_result",
            Kind::ApprovalRequired => "approval_required",
            Kind::Usage => "usage",
            Kind::Done => "done",
            Kind::Error => "error",
        }
    }

    /// True when nothing follows it.
    pub fn is_end(self) -> bool {
        matches!(self, Kind::Done | Kind::Error)
    }
}

/// Something that happens in a turn.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    /// What it tells.
    pub kind: Kind,
    /// As [`Kind`] says.
    pub data: Value,
}

impl Frame {
    /// Appends it as a server-sent event.
    fn write(&self, out: &mut Vec<u8>) {
        write_sse(out, self.kind.name(), &self.data);
    }
}

/// The data of [`Kind::Token`].
#[derive(Serialize)]
struct Words<'a> {
    text: &'a str,
}

fn write_sse(out: &mut Vec<u8>, name: &str, data: &impl Serialize) {
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\ndata: ");
    // JSON has no raw line break, and a value can always be written.
    let _ = serde_json::to_writer(&mut *out, data);
    out.extend_from_slice(b"\n\n");
}

/// Whose a turn is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// Its session's id.
    pub session: String,
    /// Its id.
    pub turn: String,
    /// Its agent.
    pub agent: String,
    /// Who began the session.
    pub principal: String,
    /// Its trace.
    pub trace: TraceId,
}

/// A piece of words for the streams of events.
#[derive(Debug)]
pub struct Piece {
    /// Whose turn it is of.
    pub about: Arc<About>,
    /// None = the words since the last tool, or since the begin, are void.
    pub text: Option<String>,
    encoded: OnceLock<Bytes>,
}

impl Piece {
    /// It as a frame without id: `agent.token`, encoded once for all streams.
    pub fn encoded(&self) -> &Bytes {
        self.encoded.get_or_init(|| {
            let About { session, turn, agent, .. } = &*self.about;
            let mut data = json!({ "session_id": session, "turn_id": turn, "agent_id": agent });
            match &self.text {
                Some(text) => data["text"] = text.as_str().into(),
                None => data["restart"] = true.into(),
            }
            let mut out = Vec::with_capacity(256);
            write_sse(&mut out, "agent.token", &data);
            out.into()
        })
    }
}

/// A part of a log: words that follow each other are one.
enum Entry {
    Words(String),
    Told(Arc<Frame>, OnceLock<Bytes>),
}

#[derive(Default)]
struct State {
    entries: Vec<Entry>,
    /// Of words, and something for each frame.
    bytes: usize,
    /// What the frames that are no words take besides, as values and encoded.
    told_bytes: usize,
    ended: bool,
    /// Who waits for more.
    waiting: Vec<Waker>,
    /// Who waits for the end.
    attending: Vec<Waker>,
}

impl State {
    /// Bytes of memory, about.
    fn held(&self) -> usize {
        self.bytes + self.told_bytes
    }
}

struct Log {
    about: Arc<About>,
    state: Mutex<State>,
}

impl Log {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the log unless it ended, and wakes who waits for that.
    fn add(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        if state.ended {
            return;
        }
        change(&mut state);
        let mut waiting = std::mem::take(&mut state.waiting);
        if state.ended {
            waiting.append(&mut state.attending);
        }
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
    }

    fn wake(&self) {
        let waiting = std::mem::take(&mut self.state().waiting);
        waiting.into_iter().for_each(Waker::wake);
    }
}

#[derive(Default)]
struct Logs {
    /// By session: the turn that runs, or was the last.
    by_session: HashMap<String, Arc<Log>>,
    /// Sessions whose turn ended, the oldest first, with the turn's id.
    ended: VecDeque<(String, String)>,
}

struct Inner {
    logs: Mutex<Logs>,
    /// Made when the first stream listens.
    pieces: OnceLock<broadcast::Sender<Arc<Piece>>>,
}

/// Where frames go and come from; cheap to clone.
#[derive(Clone)]
pub struct Frames {
    inner: Arc<Inner>,
}

impl Default for Frames {
    fn default() -> Frames {
        Frames { inner: Arc::new(Inner { logs: Mutex::default(), pieces: OnceLock::new() }) }
    }
}

impl Frames {
    fn logs(&self) -> MutexGuard<'_, Logs> {
        self.inner.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of a turn from now on; the turn of that session before it is forgotten.
    pub fn turn(&self, about: About) -> TurnFrames {
        let log = self.log(about);
        TurnFrames { frames: self.clone(), log }
    }

    /// Looks at a turn that runs, or is about to: from its begin, and whatever comes.
    pub fn view(&self, about: About) -> Viewer {
        Viewer { log: self.log(about), entry: 0, byte: 0, over: false }
    }

    /// Looks at the turn of a session that runs or was the last, if it is still known.
    pub fn watch(&self, session: &str) -> Option<Viewer> {
        let log = self.logs().by_session.get(session).map(Arc::clone)?;
        Some(Viewer { log, entry: 0, byte: 0, over: false })
    }

    /// Takes back that a turn is about to run, or forgets whatever the session's turn was.
    pub fn forget(&self, session: &str, turn: Option<&str>) {
        let mut logs = self.logs();
        if logs.by_session.get(session).is_some_and(|log| turn.is_none_or(|turn| log.about.turn == turn))
            && let Some(log) = logs.by_session.remove(session)
        {
            drop(logs);
            log.add(|state| state.ended = true);
        }
    }

    /// Hears the words of all turns from now on.
    pub fn listen(&self) -> broadcast::Receiver<Arc<Piece>> {
        self.inner.pieces.get_or_init(|| broadcast::Sender::new(PIECES_MAX)).subscribe()
    }

    /// Wakes every viewer, so that it looks whether it is to end.
    pub fn wake(&self) {
        let logs: Vec<Arc<Log>> = self.logs().by_session.values().map(Arc::clone).collect();
        logs.iter().for_each(|log| log.wake());
    }

    fn log(&self, about: About) -> Arc<Log> {
        let mut logs = self.logs();
        if let Some(known) = logs.by_session.get(&about.session)
            && known.about.turn == about.turn
        {
            return Arc::clone(known);
        }
        let session = about.session.clone();
        let log = Arc::new(Log { about: Arc::new(about), state: Mutex::default() });
        let before = logs.by_session.insert(session, Arc::clone(&log));
        drop(logs);
        // Whoever still looks at the turn before has seen all there will be of it.
        if let Some(before) = before {
            before.add(|state| state.ended = true);
        }
        log
    }

    /// Notes that a turn ended; the oldest of those that did are forgotten.
    fn ended(&self, about: &About) {
        let mut logs = self.logs();
        logs.ended.push_back((about.session.clone(), about.turn.clone()));
        let is_last = |logs: &Logs, (session, turn): &(String, String)| {
            logs.by_session.get(session).is_some_and(|log| log.about.turn == *turn)
        };
        let mut bytes: usize = 0;
        let mut kept = VecDeque::new();
        while let Some(one) = logs.ended.pop_back() {
            if !is_last(&logs, &one) || kept.contains(&one) {
                continue;
            }
            bytes += logs.by_session.get(&one.0).map_or(0, |log| log.state().held());
            if kept.len() < ENDED_MAX && (kept.is_empty() || bytes <= ENDED_BYTES_MAX) {
                kept.push_front(one);
            } else {
                logs.by_session.remove(&one.0);
            }
        }
        logs.ended = kept;
    }
}

/// What a turn tells by; cheap to clone.
#[derive(Clone)]
pub struct TurnFrames {
    frames: Frames,
    log: Arc<Log>,
}

impl TurnFrames {
    /// Tells more words of the answer.
    pub fn words(&self, text: &str) {
        if text.is_empty() {
            return;
        }
        self.log.add(|state| {
            if state.bytes + text.len() > LOG_BYTES_MAX {
                return;
            }
            state.bytes += text.len();
            match state.entries.last_mut() {
                Some(Entry::Words(words)) => words.push_str(text),
                _ => state.entries.push(Entry::Words(text.to_owned())),
            }
        });
        self.pass_on(|| Some(text.to_owned()));
    }

    /// Tells anything; after [`Kind::Done`] and [`Kind::Error`] nothing more is heard of the turn.
    pub fn emit(&self, kind: Kind, data: Value) {
        if kind == Kind::Token {
            return self.words(data["text"].as_str().unwrap_or_default());
        }
        if kind == Kind::Restart {
            self.pass_on(|| None);
        }
        let told_bytes = 2 * data.to_string().len();
        let frame = Arc::new(Frame { kind, data });
        self.log.add(|state| {
            state.bytes += 64;
            state.told_bytes += told_bytes;
            state.entries.push(Entry::Told(frame, OnceLock::new()));
            state.ended = kind.is_end();
        });
        if kind.is_end() {
            self.frames.ended(&self.log.about);
        }
    }

    fn pass_on(&self, text: impl FnOnce() -> Option<String>) {
        if let Some(pieces) = self.frames.inner.pieces.get()
            && pieces.receiver_count() > 0
        {
            let piece = Piece { about: Arc::clone(&self.log.about), text: text(), encoded: OnceLock::new() };
            // The last of them may have left meanwhile.
            let _heard = pieces.send(Arc::new(piece));
        }
    }
}

/// Whoever looks at one turn.
#[derive(Clone)]
pub struct Viewer {
    log: Arc<Log>,
    /// The entry that is next, and how many of its bytes were seen.
    entry: usize,
    byte: usize,
    over: bool,
}

impl Viewer {
    /// The turn that it looks at.
    pub fn about(&self) -> &About {
        &self.log.about
    }

    /// What came since it looked last; none once the turn ended and all was seen. Words come as one frame.
    pub async fn next(&mut self) -> Option<Frame> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Waits until all is there that will be: whoever wants no more than that is not woken for each word.
    pub async fn ended(&self) {
        std::future::poll_fn(|cx| {
            let mut state = self.log.state();
            if state.ended {
                return Poll::Ready(());
            }
            if !state.attending.iter().any(|waker| waker.will_wake(cx.waker())) {
                state.attending.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }

    /// As [`Viewer::next`].
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
        let log = Arc::clone(&self.log);
        let mut state = log.state();
        match self.take(&state) {
            Some(Seen::Words(text)) => Poll::Ready(Some(Frame { kind: Kind::Token, data: json!({ "text": text }) })),
            Some(Seen::Told(frame, _)) => Poll::Ready(Some(Frame::clone(frame))),
            None => self.rest(&mut state, cx).map(|()| None),
        }
    }

    /// All that came since it looked last as server-sent events; none once the turn ended and all was seen.
    pub fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let log = Arc::clone(&self.log);
        let mut state = log.state();
        let mut out: Vec<u8> = Vec::new();
        while let Some(seen) = self.take(&state) {
            match seen {
                Seen::Words(text) => {
                    out.reserve(text.len() + FRAME_BYTES);
                    write_sse(&mut out, Kind::Token.name(), &Words { text });
                }
                Seen::Told(frame, encoded) => out.extend_from_slice(encoded.get_or_init(|| {
                    let mut bytes = Vec::with_capacity(128);
                    frame.write(&mut bytes);
                    bytes.into()
                })),
            }
        }
        if out.is_empty() { self.rest(&mut state, cx).map(|()| None) } else { Poll::Ready(Some(out.into())) }
    }

    /// The next that was not seen yet.
    fn take<'a>(&mut self, state: &'a State) -> Option<Seen<'a>> {
        loop {
            match state.entries.get(self.entry)? {
                Entry::Words(text) => {
                    let rest = &text[self.byte..];
                    if rest.is_empty() {
                        // The last entry may still grow.
                        if self.entry + 1 == state.entries.len() {
                            return None;
                        }
                        (self.entry, self.byte) = (self.entry + 1, 0);
                        continue;
                    }
                    self.byte = text.len();
                    return Some(Seen::Words(rest));
                }
                Entry::Told(frame, encoded) => {
                    (self.entry, self.byte) = (self.entry + 1, 0);
                    return Some(Seen::Told(frame, encoded));
                }
            }
        }
    }

    /// Nothing is left: the end, or a wait for more.
    fn rest(&mut self, state: &mut State, cx: &Context<'_>) -> Poll<()> {
        if state.ended || self.over {
            self.over = true;
            return Poll::Ready(());
        }
        if !state.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            state.waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }
}

enum Seen<'a> {
    Words(&'a str),
    Told(&'a Arc<Frame>, &'a OnceLock<Bytes>),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(session: &str, turn: &str) -> About {
        About {
            session: session.to_owned(),
            turn: turn.to_owned(),
            agent: "aman".to_owned(),
            principal: "owner".to_owned(),
            trace: TraceId([1; 16]),
        }
    }

    async fn all(mut viewer: Viewer) -> Vec<(&'static str, Value)> {
        let mut seen = Vec::new();
        while let Some(frame) = viewer.next().await {
            seen.push((frame.kind.name(), frame.data));
        }
        seen
    }

    /// Goal: every viewer sees the whole turn, whenever it comes, with the words that it has not seen as one frame.
    #[tokio::test]
    async fn viewers_miss_nothing() {
        let frames = Frames::default();
        let mut early = frames.view(about("s", "t"));
        let turn = frames.turn(about("s", "t"));
        turn.emit(Kind::Start, json!({ "turn_id": "t" }));
        turn.words("Hél");
        assert_eq!(early.next().await.map(|frame| frame.kind), Some(Kind::Start));
        assert_eq!(early.next().await.map(|frame| frame.data), Some(json!({ "text": "Hél" })));
        turn.words("l");
        turn.words("o");
        turn.emit(Kind::Done, json!({}));
        turn.words("never");
        assert_eq!(all(early).await, [("token", json!({ "text": "lo" })), ("done", json!({}))]);
        let late = all(frames.watch("s").expect("it is known")).await;
        assert_eq!(
            late,
            [("start", json!({ "turn_id": "t" })), ("token", json!({ "text": "Héllo" })), ("done", json!({}))]
        );
    }

    /// Goal: what is looked at as bytes is one chunk; a turn that is forgotten, or follows, ends the look at the other.
    #[tokio::test]
    async fn looks_end() {
        let frames = Frames::default();
        let turn = frames.turn(about("s", "t"));
        let mut listener = frames.listen();
        turn.words("a\nb");
        turn.emit(Kind::Usage, json!({ "input": 1 }));
        let mut viewer = frames.watch("s").expect("it is known");
        let bytes = std::future::poll_fn(|cx| viewer.poll_bytes(cx)).await.expect("frames");
        let wanted = "event: token\ndata: {\"text\":\"a\\nb\"}\n\nevent: usage\ndata: {\"input\":1}\n\n";
        assert_eq!(std::str::from_utf8(&bytes).expect("text"), wanted);
        let _next = frames.turn(about("s", "u"));
        assert_eq!(viewer.next().await, None);
        let waiting = frames.view(about("s", "u"));
        frames.forget("s", Some("u"));
        assert!(all(waiting).await.is_empty() && frames.watch("s").is_none());
        let piece = listener.recv().await.expect("the words were heard");
        assert_eq!((piece.text.as_deref(), piece.about.session.as_str()), (Some("a\nb"), "s"));
        assert!(piece.encoded().starts_with(b"event: agent.token\ndata: {"));
    }

    /// Goal: what ended does not pile up.
    #[test]
    fn only_the_last_that_ended_are_kept() {
        let frames = Frames::default();
        for number in 0..100 {
            let turn = frames.turn(about(&format!("s{number}"), "t"));
            turn.emit(Kind::Done, json!({}));
        }
        assert_eq!(frames.logs().by_session.len(), ENDED_MAX);
        assert!(frames.watch("s99").is_some() && frames.watch("s0").is_none());
        for number in 100..110 {
            let turn = frames.turn(about(&format!("s{number}"), "t"));
            turn.emit(Kind::ToolResult, json!({ "text": "x".repeat(ENDED_BYTES_MAX / 8) }));
            turn.emit(Kind::Done, json!({}));
        }
        assert_eq!(frames.logs().by_session.len(), 3, "a result of a tool counts as well");
    }
}
