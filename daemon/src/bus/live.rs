//! The live tail: what was just committed, for the streams.
//!
//! Each commit's events form a batch whose frames are encoded once, when the first stream asks, and shared by all.
//! A stream that is further behind than the ring reaches reads from disk. While nobody listens nothing is kept.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use bytes::Bytes;
use tokio::sync::watch;

use crate::event::{Event, View};
use crate::id::EventSeq;

const RING_BYTES_MAX: usize = 4 << 20;
const RING_BATCHES_MAX: usize = 4096;

/// The events of one commit.
pub struct Batch {
    events: Vec<Arc<Event>>,
    bytes: usize,
    frames: [OnceLock<Bytes>; 4],
}

impl Batch {
    fn new(events: Vec<Arc<Event>>) -> Batch {
        // The events themselves and their frames, once encoded.
        let bytes = events.iter().map(|event| event.weight() * 2).sum();
        Batch { events, bytes, frames: Default::default() }
    }

    /// Its events in order; never empty.
    pub fn events(&self) -> &[Arc<Event>] {
        &self.events
    }

    /// Sequence of its first event.
    pub fn first(&self) -> EventSeq {
        self.events.first().map_or(EventSeq(0), |event| event.sequence)
    }

    /// Sequence of its last event.
    pub fn last(&self) -> EventSeq {
        self.events.last().map_or(EventSeq(0), |event| event.sequence)
    }

    /// The frames of all its events, encoded once for everyone.
    pub fn frames(&self, view: View, named: bool) -> Bytes {
        let slot = usize::from(view == View::Full) * 2 + usize::from(named);
        let encode = || {
            let mut out = Vec::with_capacity(self.bytes / 2);
            for event in &self.events {
                write_frame(&mut out, event, view, named);
            }
            Bytes::from(out)
        };
        self.frames[slot].get_or_init(encode).clone()
    }
}

/// Appends the server-sent event of `event`: `id:` is the sequence, `event:` the type unless `named` is false.
pub fn write_frame(out: &mut Vec<u8>, event: &Event, view: View, named: bool) {
    let _ = std::io::Write::write_fmt(out, format_args!("id: {}\n", event.sequence.0));
    if named {
        out.extend_from_slice(b"event: ");
        out.extend_from_slice(event.sent.kind.as_bytes());
        out.push(b'\n');
    }
    out.extend_from_slice(b"data: ");
    event.write_json(out, view);
    out.extend_from_slice(b"\n\n");
}

struct Ring {
    batches: VecDeque<Arc<Batch>>,
    bytes: usize,
    /// Everything after this sequence is in the ring.
    floor: EventSeq,
}

/// Where streams hear of new events; cheap to clone.
#[derive(Clone)]
pub struct Live {
    inner: Arc<Inner>,
}

struct Inner {
    ring: Mutex<Ring>,
    head: watch::Sender<EventSeq>,
    listeners: AtomicUsize,
}

/// What follows a cursor.
pub enum Next {
    /// Nothing yet.
    UpToDate,
    /// A batch with events after the cursor; it may begin before it.
    Batch(Arc<Batch>),
    /// More than the ring holds: read from disk.
    Behind,
}

impl Live {
    /// A tail whose newest event is `head`.
    pub fn new(head: EventSeq) -> Live {
        let ring = Ring { batches: VecDeque::new(), bytes: 0, floor: head };
        let inner = Inner { ring: Mutex::new(ring), head: watch::Sender::new(head), listeners: AtomicUsize::new(0) };
        Live { inner: Arc::new(inner) }
    }

    /// Adds what was committed and wakes every stream. Called by the writer, in order.
    pub fn push(&self, events: Vec<Arc<Event>>) {
        let Some(last) = events.last().map(|event| event.sequence) else { return };
        {
            let mut ring = self.ring();
            if self.inner.listeners.load(Ordering::Acquire) == 0 {
                ring.batches.clear();
                (ring.bytes, ring.floor) = (0, last);
            } else {
                let batch = Arc::new(Batch::new(events));
                ring.bytes += batch.bytes;
                ring.batches.push_back(batch);
                while ring.bytes > RING_BYTES_MAX || ring.batches.len() > RING_BATCHES_MAX {
                    let Some(old) = ring.batches.pop_front() else { break };
                    ring.bytes -= old.bytes;
                    ring.floor = old.last();
                }
            }
        }
        self.inner.head.send_replace(last);
    }

    /// The newest committed sequence.
    pub fn head(&self) -> EventSeq {
        *self.inner.head.borrow()
    }

    /// Wakes every stream without news, so that it looks whether it is to end.
    pub fn wake(&self) {
        self.inner.head.send_modify(|_| ());
    }

    /// Streams that listen now.
    pub fn listeners(&self) -> usize {
        self.inner.listeners.load(Ordering::Relaxed)
    }

    /// Begins to listen: what is committed from now on is kept for a while.
    pub fn subscribe(&self) -> Tail {
        self.inner.listeners.fetch_add(1, Ordering::AcqRel);
        Tail { head: self.inner.head.subscribe(), live: self.clone() }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.inner.ring.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// One listener.
pub struct Tail {
    live: Live,
    head: watch::Receiver<EventSeq>,
}

impl Tail {
    /// A receiver whose value is the newest sequence; changes wake it.
    pub fn head(&self) -> watch::Receiver<EventSeq> {
        self.head.clone()
    }

    /// What follows `cursor`.
    pub fn next(&self, cursor: EventSeq) -> Next {
        let ring = self.live.ring();
        if cursor < ring.floor {
            return Next::Behind;
        }
        let at = ring.batches.partition_point(|batch| batch.last() <= cursor);
        ring.batches.get(at).map_or(Next::UpToDate, |batch| Next::Batch(Arc::clone(batch)))
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.live.inner.listeners.fetch_sub(1, Ordering::AcqRel);
    }
}
