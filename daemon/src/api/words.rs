//! `agent.token` in the streams of events: what agents say while they say it. It is not stored, and a stream that lags
//! loses it: whoever must have every word looks at the turn itself.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio_util::sync::ReusableBoxFuture;

use super::App;
use super::auth::{Principal, Scope};
use super::stream::Filter;
use crate::agents::frames::Piece;

/// Its name in streams, and to their `types`.
pub const TYPE: &str = "agent.token";
/// Bytes that are gathered into one chunk.
const GATHER_BYTES: usize = 16 << 10;

type Heard = (Receiver<Arc<Piece>>, Result<Arc<Piece>, RecvError>);

/// What a stream hears of agents.
pub struct Words {
    /// Ready with the next piece; `None` once there will be none.
    next: Option<ReusableBoxFuture<'static, Heard>>,
    filter: Arc<Filter>,
    /// Of sessions that this principal began; `None` = of all.
    whose: Option<Arc<str>>,
}

async fn heard(mut from: Receiver<Arc<Piece>>) -> Heard {
    let piece = from.recv().await;
    (from, piece)
}

impl Words {
    /// Begins to listen. Administrators hear every agent; whoever may talk to agents hears what is said in sessions of their
    /// own; nobody else hears anything, also if they may read events.
    pub fn hear(app: &App, holder: &Principal, filter: &Arc<Filter>) -> Option<Words> {
        let whose = match (holder.may(Scope::Admin), holder.may(Scope::Chat)) {
            (true, _) => None,
            (false, true) => Some(Arc::clone(&holder.name)),
            (false, false) => return None,
        };
        let next = Some(ReusableBoxFuture::new(heard(app.agents.frames().listen())));
        Some(Words { next, filter: Arc::clone(filter), whose })
    }

    fn wants(&self, piece: &Piece) -> bool {
        let about = &piece.about;
        self.whose.as_ref().is_none_or(|whose| **whose == *about.principal)
            && self.filter.wants_words(&about.agent, about.trace)
    }

    /// What was said since it looked last; registers for more.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Option<Bytes> {
        let mut out: Vec<u8> = Vec::new();
        while out.len() < GATHER_BYTES {
            let Poll::Ready((mut from, piece)) = self.next.as_mut()?.poll(cx) else { break };
            let mut piece = match piece {
                Ok(piece) => Some(piece),
                Err(RecvError::Lagged(_)) => None,
                Err(RecvError::Closed) => {
                    self.next = None;
                    break;
                }
            };
            while out.len() < GATHER_BYTES {
                if let Some(piece) = piece.take().filter(|piece| self.wants(piece)) {
                    out.extend_from_slice(piece.encoded());
                }
                match from.try_recv() {
                    Ok(next) => piece = Some(next),
                    Err(TryRecvError::Lagged(_)) => {}
                    Err(TryRecvError::Empty | TryRecvError::Closed) => break,
                }
            }
            // What is left over at the limit is read with the next look.
            if let Some(piece) = piece.filter(|piece| self.wants(piece)) {
                out.extend_from_slice(piece.encoded());
            }
            self.next.as_mut()?.set(heard(from));
        }
        (!out.is_empty()).then(|| out.into())
    }
}
