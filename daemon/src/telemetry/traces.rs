//! Spans: what was done within a trace, for a collector that speaks OTLP. While none is configured nothing is made, and
//! all it costs is to look at one flag.
//!
//! Ids of spans that others come back to are computed ([`Ids::span`](crate::id::Ids::span)), so a child finds its parent over
//! threads, queues and restarts.

mod export;
mod otlp;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;

use self::export::Exporter;
use crate::clock;
use crate::config::Telemetry;
use crate::id::{SpanId, TraceId, Traceparent};
use crate::redact;

/// Longest text of an attribute, in bytes.
const TEXT_BYTES_MAX: usize = 256;
/// Longest error, in bytes.
const ERROR_BYTES_MAX: usize = 1024;
/// Texts of one attribute.
const TEXTS_MAX: usize = 32;

tokio::task_local! {
    /// Where the work of this task stands.
    static CURRENT: Context;
}

/// Collects spans, if anybody wants them; cheap to clone.
#[derive(Clone, Default)]
pub struct Traces {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// True while there is an exporter.
    on: AtomicBool,
    exporter: ArcSwapOption<Exporter>,
    counts: Arc<Counts>,
}

/// What became of spans since the start.
#[derive(Debug, Default)]
pub struct Counts {
    /// The collector has them.
    pub exported: AtomicU64,
    /// Nobody has them: the queue was full, or the collector did not take them.
    pub dropped: AtomicU64,
}

impl Traces {
    /// Exports as `config` says from now on; what was collected for another collector still goes there.
    ///
    /// Must be called within the runtime. Does nothing when nothing has changed.
    pub fn configure(&self, config: Option<&Telemetry>, node: u32) {
        let before = self.shared.exporter.load_full();
        if before.as_ref().map(|exporter| exporter.config()) == config {
            return;
        }
        let next =
            config.map(|config| Arc::new(Exporter::start(config.clone(), node, Arc::clone(&self.shared.counts))));
        self.shared.on.store(next.is_some(), Ordering::Relaxed);
        self.shared.exporter.store(next);
        if let Some(before) = before {
            before.end();
        }
    }

    /// Sends what is left, for at most `grace`, and collects nothing more.
    pub async fn stop(&self, grace: Duration) {
        self.shared.on.store(false, Ordering::Relaxed);
        let Some(exporter) = self.shared.exporter.swap(None) else { return };
        exporter.end();
        let ended = exporter.ended();
        drop(exporter);
        if tokio::time::timeout(grace, ended).await.is_err() {
            tracing::warn!("The telemetry collector did not take the last spans in time.");
        }
    }

    /// True while spans are collected.
    pub fn is_on(&self) -> bool {
        self.shared.on.load(Ordering::Relaxed)
    }

    /// True when spans of `trace` are collected. The same trace has the same answer, today and after a restart.
    pub fn wants(&self, trace: TraceId) -> bool {
        self.is_on() && self.shared.exporter.load().as_ref().is_some_and(|exporter| exporter.samples(trace))
    }

    /// Where work within `trace` stands, if its spans are collected.
    pub fn context(&self, trace: TraceId, span: Option<SpanId>) -> Option<Context> {
        self.wants(trace).then(|| Context { traces: self.clone(), trace, span, told: false })
    }

    /// Takes a span that has ended. Never waits: what does not fit is counted and gone.
    pub fn record(&self, mut span: Span) {
        if span.end_ns == 0 {
            span.end_ns = clock::now_ns();
        }
        // The clock may have been set back meanwhile.
        span.end_ns = span.end_ns.max(span.start_ns);
        let exporter = self.shared.exporter.load();
        if let Some(exporter) = exporter.as_ref()
            && !exporter.take(span)
        {
            self.shared.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What became of spans since the start.
    pub fn counts(&self) -> &Counts {
        &self.shared.counts
    }
}

/// Where some work stands: its trace, and the span whose children are what it does.
#[derive(Clone)]
pub struct Context {
    traces: Traces,
    trace: TraceId,
    span: Option<SpanId>,
    told: bool,
}

impl Context {
    /// Its trace.
    pub fn trace(&self) -> TraceId {
        self.trace
    }

    /// Its span; none for what begins a trace.
    pub fn span(&self) -> Option<SpanId> {
        self.span
    }

    /// A child that begins now, under an id that nobody has to find again.
    pub fn child(&self, kind: Kind, name: impl Into<String>) -> Span {
        Span::new(kind, name, self.trace, SpanId::random(), clock::now_ns()).child_of(self.span)
    }

    /// What is told to the other side of a call whose span is `span`; none when it is none of its business.
    pub fn header(&self, span: SpanId) -> Option<String> {
        self.told.then(|| Traceparent { trace: self.trace, span }.to_string())
    }

    /// Takes a span that has ended.
    pub fn record(&self, span: Span) {
        self.traces.record(span);
    }
}

/// Where the work of this task stands, if it is traced.
pub fn current() -> Option<Context> {
    CURRENT.try_with(Context::clone).ok()
}

/// Does `work` as a part of `context`.
pub async fn within<W: Future>(context: Option<Context>, work: W) -> W::Output {
    match context {
        Some(context) => CURRENT.scope(context, work).await,
        None => work.await,
    }
}

/// Does `work`, whose calls may tell the other side of the trace: it is the person's own choice, and no third party's.
pub async fn telling<W: Future>(work: W) -> W::Output {
    within(current().map(|context| Context { told: true, ..context }), work).await
}

/// What part a span has in its trace, numbered as OTLP does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Something inside the daemon.
    Internal = 1,
    /// A call of another program.
    Client = 3,
    /// An event that others will handle.
    Producer = 4,
    /// The handling of an event.
    Consumer = 5,
}

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Text(String),
    Number(i64),
    Flag(bool),
    Texts(Vec<String>),
}

/// Something that was done. Attributes hold names, numbers and ids: never data of events, headers or paths of addresses.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    pub(crate) trace: TraceId,
    pub(crate) id: SpanId,
    pub(crate) parent: Option<SpanId>,
    pub(crate) kind: Kind,
    pub(crate) name: String,
    pub(crate) start_ns: u64,
    /// 0 = when it is recorded.
    pub(crate) end_ns: u64,
    pub(crate) attributes: Vec<(&'static str, Value)>,
    pub(crate) link: Option<(TraceId, SpanId)>,
    pub(crate) error: Option<String>,
}

impl Span {
    /// A span that began at `start_ns` (since 1970).
    pub fn new(kind: Kind, name: impl Into<String>, trace: TraceId, id: SpanId, start_ns: u64) -> Span {
        Span {
            trace,
            id,
            parent: None,
            kind,
            name: shortened(name.into(), TEXT_BYTES_MAX),
            start_ns,
            end_ns: 0,
            attributes: Vec::new(),
            link: None,
            error: None,
        }
    }

    /// Its trace.
    pub fn trace(&self) -> TraceId {
        self.trace
    }

    /// Its id.
    pub fn id(&self) -> SpanId {
        self.id
    }

    /// Gives it a parent.
    #[must_use]
    pub fn child_of(mut self, parent: Option<SpanId>) -> Span {
        self.parent = parent;
        self
    }

    /// Refers to another span, whose child it is not.
    #[must_use]
    pub fn linked_to(mut self, trace: TraceId, span: SpanId) -> Span {
        self.link = Some((trace, span));
        self
    }

    /// Says when it ended, where that is not when it is recorded.
    #[must_use]
    pub fn ended_at(mut self, end_ns: u64) -> Span {
        self.end_ns = end_ns;
        self
    }

    /// Adds a text; a long one is cut.
    #[must_use]
    pub fn text(mut self, name: &'static str, text: impl Into<String>) -> Span {
        self.attributes.push((name, Value::Text(shortened(text.into(), TEXT_BYTES_MAX))));
        self
    }

    /// Adds a number.
    #[must_use]
    pub fn number(mut self, name: &'static str, number: impl Into<i64>) -> Span {
        self.attributes.push((name, Value::Number(number.into())));
        self
    }

    /// Adds something that is or is not so.
    #[must_use]
    pub fn flag(mut self, name: &'static str, flag: bool) -> Span {
        self.attributes.push((name, Value::Flag(flag)));
        self
    }

    /// Adds a list of texts; of a long one the beginning.
    #[must_use]
    pub fn texts(mut self, name: &'static str, texts: Vec<String>) -> Span {
        let texts = texts.into_iter().take(TEXTS_MAX).map(|text| shortened(text, TEXT_BYTES_MAX)).collect();
        self.attributes.push((name, Value::Texts(texts)));
        self
    }

    /// Says that it failed: a short word for what kind of failure it is, and why.
    #[must_use]
    pub fn failed(mut self, kind: impl Into<String>, why: impl Into<String>) -> Span {
        self.error = Some(shortened(why.into(), ERROR_BYTES_MAX));
        self.text("error.type", kind)
    }
}

/// At most `bytes_max` bytes of `text`, cut between characters. Secrets are taken out before: of one that is cut, nobody
/// would know the rest.
fn shortened(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        redact::string(&mut text);
        text.truncate(text.floor_char_boundary(bytes_max));
        text.shrink_to_fit();
    }
    text
}

/// What is known of an event before it is stored, for its spans.
#[derive(Debug, Clone)]
pub struct Draft {
    /// When its storing began.
    pub begun_ns: u64,
    /// When it was found out who gets it.
    pub matched_ns: (u64, u64),
    /// Who gets it.
    pub consumers: Vec<String>,
    /// The trace that it was sent to belong to.
    pub trace: Option<TraceId>,
    /// What it comes from.
    pub parent: Option<SpanId>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_knows_where_it_stands_and_calls_are_told_of_it_only_by_choice() {
        let traces = Traces::default();
        assert!(!traces.is_on() && traces.context(TraceId([1; 16]), None).is_none());
        let (trace, span) = (TraceId([1; 16]), SpanId([2; 8]));
        let context = Context { traces, trace, span: Some(span), told: false };
        assert!(current().is_none());
        within(Some(context), async {
            let here = current().expect("within");
            assert_eq!((here.trace(), here.span(), here.header(span)), (trace, Some(span), None));
            let told = telling(async { current().and_then(|here| here.header(span)) }).await;
            assert_eq!(told.as_deref(), Some("00-01010101010101010101010101010101-0202020202020202-01"));
            let child = here.child(Kind::Client, "GET");
            assert_eq!((child.trace, child.parent), (trace, Some(span)));
        })
        .await;
        assert!(telling(async { current().is_none() }).await);
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let span = Span::new(Kind::Internal, "ü".repeat(400), TraceId([1; 16]), SpanId([1; 8]), 0)
            .text("a", "ü".repeat(400))
            .texts("b", vec!["x".to_owned(); 100])
            .failed("timeout", "é".repeat(4000));
        assert_eq!((span.name.len(), span.error.as_ref().map(String::len)), (256, Some(1024)));
        assert!(matches!(&span.attributes[0].1, Value::Text(text) if text.len() == 256));
        assert!(matches!(&span.attributes[1].1, Value::Texts(texts) if texts.len() == TEXTS_MAX));
    }

    #[test]
    fn no_part_of_a_secret_is_left_at_the_cut() {
        redact::learn("canary-of-the-spans");
        for before in 240..256 {
            let text = format!("{}canary-of-the-spans and more", "-".repeat(before));
            assert!(!shortened(text, 256).contains("cana"), "{before}");
        }
    }
}
