//! Receives broadcasts.

use tokio::sync::broadcast::{self, error::RecvError};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Broadcasts that wait for a slow listener; the oldest are lost first.
pub(crate) const WAITING: usize = 64;

/// Receives the messages of [`Queue::broadcast`](crate::Queue::broadcast).
#[derive(Debug)]
pub struct Listener {
    pub(crate) messages: broadcast::Receiver<Vec<u8>>,
    pub(crate) closed: CancellationToken,
    /// Ends what listens to a broker.
    pub(crate) _stop: Option<DropGuard>,
}

impl Listener {
    /// Waits for the next message. `None`: the queue is closed. The returned future may be dropped; nothing more is lost.
    pub async fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            let message = tokio::select! {
                biased;
                () = self.closed.cancelled() => return None,
                message = self.messages.recv() => message,
            };
            match message {
                Ok(message) => return Some(message),
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    }
}
