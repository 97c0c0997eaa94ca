//! Sends spans to a collector: OTLP over HTTP, in batches, by a task that sleeps while there are none. A queue of a fixed
//! length lies between; what it does not hold, and what the collector does not take within some tries, is counted and gone.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Counts, Span, otlp};
use crate::clock::Clock;
use crate::config::Telemetry;
use crate::egress::{Ask, Egress, EgressError, Heard, Leg, Method, status_text};
use crate::id::TraceId;

/// Spans that wait; each has at most some KiB, mostly far less.
const QUEUE_MAX: usize = 4096;
/// Spans of one request.
const BATCH_MAX: usize = 512;
/// How long a span waits for company.
const GATHER: Duration = Duration::from_secs(1);
/// Tries to send a batch, and the waits between them: the first, and the longest.
const TRIES: u32 = 4;
const WAITS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// An answer that says what was not taken has a few bytes.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// The way to one collector.
pub(super) struct Exporter {
    config: Telemetry,
    /// None once it ends: nothing is taken any more.
    queue: Mutex<Option<Sender<Span>>>,
    /// Ends waits between tries.
    ending: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Exporter {
    /// Begins to send to the collector of `config`. `node` tells this daemon from others of the same service.
    pub fn start(config: Telemetry, node: u32, counts: Arc<Counts>) -> Exporter {
        let (queue, spans) = channel(QUEUE_MAX);
        let ending = CancellationToken::new();
        let sending = Sending {
            // Whoever configures a collector means it, also on this machine.
            egress: Egress::new(true),
            resource: otlp::Resource { service: config.service_name.clone(), instance: format!("{node:08x}") },
            config: config.clone(),
            ending: ending.clone(),
            counts,
            failing: false,
        };
        let task = tokio::spawn(sending.run(spans));
        Exporter { config, queue: Mutex::new(Some(queue)), ending, task: Mutex::new(Some(task)) }
    }

    /// What it was started with.
    pub fn config(&self) -> &Telemetry {
        &self.config
    }

    /// True when spans of `trace` are wanted, which its id alone decides.
    pub fn samples(&self, trace: TraceId) -> bool {
        share(trace) < self.config.sample_ratio
    }

    /// False when there is no room for it.
    pub fn take(&self, span: Span) -> bool {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.as_ref().is_some_and(|queue| queue.try_send(span).is_ok())
    }

    /// Takes nothing more, and sends what there is without waiting for a collector that does not answer well.
    pub fn end(&self) {
        self.ending.cancel();
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Waits until everything was sent or given up.
    pub fn ended(&self) -> impl Future<Output = ()> + use<> {
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        async move {
            if let Some(task) = task {
                // A panic there was logged; there is nothing left to wait for.
                let _ended = task.await;
            }
        }
    }
}

/// Where in [0, 1) a trace lies. Ids that the daemon makes differ by time and a count: they are mixed first (the finalizer of
/// SplitMix64).
fn share(trace: TraceId) -> f64 {
    let id = u128::from_be_bytes(trace.0);
    let mut mixed = u64::try_from(id >> 64).unwrap_or(0) ^ u64::try_from(id & u128::from(u64::MAX)).unwrap_or(0);
    for (shift, factor) in [(30, 0xBF58_476D_1CE4_E5B9_u64), (27, 0x94D0_49BB_1331_11EB)] {
        mixed = (mixed ^ (mixed >> shift)).wrapping_mul(factor);
    }
    mixed ^= mixed >> 31;
    #[allow(clippy::cast_precision_loss)] // 53 bits are exact
    let share = (mixed >> 11) as f64 / (1_u64 << 53) as f64;
    share
}

/// The task's own.
struct Sending {
    egress: Egress,
    resource: otlp::Resource,
    config: Telemetry,
    ending: CancellationToken,
    counts: Arc<Counts>,
    /// True since the collector last did not take a batch: it is said once.
    failing: bool,
}

/// Why a batch was not taken.
struct Refused {
    why: String,
    /// When to try again; none = never.
    again: Option<Option<Duration>>,
}

impl Sending {
    async fn run(mut self, mut spans: Receiver<Span>) {
        let mut batch = Vec::new();
        // Sleeps without a timer until the first one comes.
        while spans.recv_many(&mut batch, BATCH_MAX).await > 0 {
            let until = Instant::now() + GATHER;
            while batch.len() < BATCH_MAX {
                let room = BATCH_MAX - batch.len();
                let more = tokio::time::timeout_at(until, spans.recv_many(&mut batch, room)).await;
                if !matches!(more, Ok(1..)) {
                    break;
                }
            }
            self.deliver(&batch).await;
            batch.clear();
            batch.shrink_to(0);
        }
    }

    /// Sends a batch, and again if that makes sense.
    async fn deliver(&mut self, batch: &[Span]) {
        let body = Bytes::from(otlp::request(&self.resource, batch));
        let all = u64::try_from(batch.len()).unwrap_or(u64::MAX);
        let mut wait = WAITS.0;
        for attempt in 1.. {
            let refused = match self.send(body.clone()).await {
                Ok(rejected) => {
                    let rejected = rejected.min(all);
                    self.counts.exported.fetch_add(all - rejected, Ordering::Relaxed);
                    self.counts.dropped.fetch_add(rejected, Ordering::Relaxed);
                    return;
                }
                Err(refused) => refused,
            };
            if !std::mem::replace(&mut self.failing, true) {
                let (endpoint, why) = (&self.config.endpoint, &refused.why);
                tracing::warn!(
                    ?endpoint,
                    why,
                    "The telemetry collector does not take spans; what it misses is counted in \
                     aman_telemetry_spans_total and not kept."
                );
            }
            let Some(asked) = refused.again.filter(|_| attempt < TRIES && !self.ending.is_cancelled()) else { break };
            tokio::select! {
                () = self.ending.cancelled() => {}
                () = tokio::time::sleep(asked.map_or(wait, |asked| asked.min(WAITS.1))) => {}
            }
            wait = (wait * 2).min(WAITS.1);
        }
        self.counts.dropped.fetch_add(all, Ordering::Relaxed);
    }

    /// Sends a request once; gives how many of its spans the collector has no use for.
    async fn send(&mut self, body: Bytes) -> Result<u64, Refused> {
        let mut headers: Vec<(String, String)> =
            self.config.headers.iter().map(|(name, value)| (name.clone(), value.expose().to_owned())).collect();
        headers.push(("content-type".to_owned(), "application/x-protobuf".to_owned()));
        let ask = Ask {
            method: Method::POST,
            url: self.config.endpoint.clone(),
            headers,
            body,
            bytes_max: ANSWER_BYTES_MAX,
            time_max: self.config.timeout,
            redirects_max: 0,
        };
        let heard = self.egress.ask_by(ask, |_| Ok(Leg { private: true, ..Leg::default() })).await;
        let heard = heard.map_err(|error| Refused {
            again: (!matches!(error, EgressError::Refused(_) | EgressError::TooLong(_))).then_some(None),
            why: error.to_string(),
        })?;
        if !heard.is_success() {
            return Err(refused(&heard));
        }
        if std::mem::take(&mut self.failing) {
            tracing::info!("The telemetry collector takes spans again.");
        }
        let Some((count, why)) = otlp::rejected(&heard.body) else { return Ok(0) };
        tracing::debug!(count, %why, "The telemetry collector rejected spans.");
        Ok(count)
    }
}

/// What an answer means; which statuses are worth another try is OTLP's own list.
fn refused(heard: &Heard) -> Refused {
    let again = [429, 502, 503, 504].contains(&heard.status).then(|| heard.retry_after(Clock::System.now_ms()));
    Refused { why: format!("it answered {}", status_text(heard.status)), again }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{EventSeq, Ids};

    #[test]
    fn ids_of_our_own_are_sampled_evenly() {
        let ids = Ids { node: 0x1234_5678 };
        let traces = (1..=10_000).map(|n| TraceId(ids.event(1_795_000_000_000 + n, EventSeq(n)).into_bytes()));
        let taken = traces.filter(|trace| share(*trace) < 0.25).count();
        assert!((2_200..2_800).contains(&taken), "{taken} of 10000");
        assert!((0.0..1.0).contains(&share(TraceId([0xFF; 16]))));
    }
}
