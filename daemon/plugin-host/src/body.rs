//! Bodies that a guest makes while they are sent.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;
use tokio_util::task::AbortOnDropHandle;
use wasmtime::component::ResourceAny;

use crate::fault::{Fault, Which};
use crate::instance::Instance;
use crate::plugin::{Shared, within};

/// Pieces without content that a guest may hand out one after the other.
const EMPTY_PIECES_MAX: usize = 100;

/// A streamed body. The guest's instance belongs to it until it ends; dropping it before that ends the instance too.
pub struct BodyStream {
    plugin: Arc<Shared>,
    live: Option<Live>,
}

/// A stream that can go on.
pub(crate) struct Live {
    pub instance: Box<Instance>,
    pub resource: ResourceAny,
    pub permit: OwnedSemaphorePermit,
}

impl fmt::Debug for BodyStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodyStream").field("ended", &self.live.is_none()).finish_non_exhaustive()
    }
}

impl BodyStream {
    pub(crate) fn new(plugin: Arc<Shared>, live: Live) -> BodyStream {
        BodyStream { plugin, live: Some(live) }
    }

    /// The next piece, never an empty one; `None` at the end, and after a fault. Each piece has the limits of a call.
    ///
    /// Dropping the future before it is ready ends the stream.
    pub async fn next(&mut self) -> Option<Result<Vec<u8>, Fault>> {
        let live = self.live.take()?;
        let task = self.plugin.machine.runtime().spawn(pull(Arc::clone(&self.plugin), live));
        match AbortOnDropHandle::new(task).await {
            Ok(Ok(Some((piece, live)))) => {
                self.live = Some(live);
                Some(Ok(piece))
            }
            Ok(Ok(None)) => None,
            Ok(Err(fault)) => Some(Err(fault)),
            Err(ended) => Some(Err(Fault::internal(format!("the task of a stream ended: {ended}")))),
        }
    }
}

impl Drop for BodyStream {
    fn drop(&mut self) {
        if let Some(live) = self.live.take() {
            // Giving memory back takes system calls; not on the thread that serves HTTP.
            self.plugin.machine.runtime().spawn(async move { drop(live) });
        }
    }
}

/// One piece, with the stream when it goes on. At the end the instance goes back to the others.
async fn pull(plugin: Arc<Shared>, mut live: Live) -> Result<Option<(Vec<u8>, Live)>, Fault> {
    let meter = Arc::clone(&live.instance.meter);
    let work = pin!(async {
        for _ in 0..EMPTY_PIECES_MAX {
            match live.instance.next_piece(live.resource).await? {
                Some(piece) if piece.is_empty() => {}
                Some(piece) => return Ok(Some((piece, live))),
                None => {
                    live.instance.end_stream(live.resource).await?;
                    let Live { instance, permit, .. } = live;
                    plugin.keep(instance);
                    drop(permit);
                    return Ok(None);
                }
            }
        }
        let message = format!("{EMPTY_PIECES_MAX} pieces of a body without content, one after the other");
        Err(Fault::Limit { which: Which::Output, message })
    });
    within(&plugin, &meter, work).await
}
