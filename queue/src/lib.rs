//! Work in, work out, at least once.
//!
//! A [`Queue`] is a clonable handle opened from a URL; which system stands behind it changes nothing for the caller. The
//! back-ends are private, one file each (`embedded.rs`).
//!
//! What every back-end keeps:
//! * A message whose `publish` returned is delivered until somebody settles it with `ack` or it becomes a dead letter.
//! * A [`Delivery`] is settled once, by value. One that is dropped unsettled goes back and counts as failed, as it does
//!   when a process dies.
//! * A message whose counted deliveries reach the delivery limit becomes a dead letter; dead letters wait until acked.
//!
//! What no back-end promises: order, or that a message comes only once. Whoever consumes must be able to do the same
//! work twice. The queue can be lost: the store is the truth, and the plan is made again from it.

mod embedded;

use std::fmt;

/// Counted deliveries after which a message becomes a dead letter, when the URL says nothing.
pub const DEFAULT_DELIVERY_LIMIT: u32 = 20;

/// Where a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Channel {
    /// Work to do, from the coordinator to the workers.
    Jobs,
    /// What happened, from the workers to the coordinator.
    Events,
    /// What was given up: rejected, or delivered too often. Filled by the queue.
    DeadLetters,
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Channel::Jobs => "jobs",
            Channel::Events => "events",
            Channel::DeadLetters => "dead letters",
        })
    }
}

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The URL does not name a queue. The text repeats no part of the URL that could hold a password.
    #[error("cannot open the queue: {0}")]
    InvalidUrl(String),
    /// The queue was closed before.
    #[error("cannot {0}: the queue is closed")]
    Closed(&'static str),
}

/// Handle to a queue; clones share it.
#[derive(Clone, Debug)]
pub struct Queue {
    backend: Backend,
}

#[derive(Clone, Debug)]
enum Backend {
    Embedded(embedded::Broker),
}

impl Queue {
    /// Opens the queue at `url`:
    /// `embedded:` is a new queue in the memory of this process, reached through clones of the handle only;
    /// `embedded:?delivery_limit=5` sets after how many counted deliveries a message becomes a dead letter.
    pub async fn open(url: &str) -> Result<Queue, Error> {
        let (scheme, rest) = url.split_once(':').unwrap_or(("", url));
        let backend = match scheme {
            "embedded" => Backend::Embedded(embedded::Broker::new(delivery_limit(rest)?)),
            "" => return Err(Error::InvalidUrl("the URL has no scheme (supported: embedded:)".into())),
            other => {
                return Err(Error::InvalidUrl(format!("unknown scheme {other:?} (supported: embedded:)")));
            }
        };
        Ok(Queue { backend })
    }

    /// Hands `payload` over; when this returns, the queue owns it.
    pub async fn publish(&self, channel: Channel, payload: Vec<u8>) -> Result<(), Error> {
        match &self.backend {
            Backend::Embedded(broker) => broker.publish(channel, payload),
        }
    }

    /// Starts to consume `channel`, with at most `prefetch` (at least 1) deliveries unsettled at a time.
    pub async fn consume(&self, channel: Channel, prefetch: u16) -> Result<Consumer, Error> {
        let inner = match &self.backend {
            Backend::Embedded(broker) => ConsumerBackend::Embedded(broker.consume(channel, prefetch)?),
        };
        Ok(Consumer { inner })
    }

    /// Number of messages that wait in `channel`, without those delivered and not settled yet.
    pub async fn depth(&self, channel: Channel) -> Result<usize, Error> {
        match &self.backend {
            Backend::Embedded(broker) => broker.depth(channel),
        }
    }

    /// Closes the queue for all clones: consumers end, and publishing and settling fail from now on.
    pub async fn close(&self) {
        match &self.backend {
            Backend::Embedded(broker) => broker.close(),
        }
    }
}

/// Source of deliveries.
#[derive(Debug)]
pub struct Consumer {
    inner: ConsumerBackend,
}

#[derive(Debug)]
enum ConsumerBackend {
    Embedded(embedded::Consumer),
}

impl Consumer {
    /// Waits for a message, and for a free place among the unsettled deliveries. `None`: the queue is closed.
    ///
    /// Loses nothing when the returned future is dropped.
    pub async fn next(&mut self) -> Option<Delivery> {
        let (message, receipt) = match &mut self.inner {
            ConsumerBackend::Embedded(consumer) => {
                let (message, receipt) = consumer.next().await?;
                (message, Receipt::Embedded(receipt))
            }
        };
        Some(Delivery { message, receipt: Some(receipt) })
    }
}

/// A message as it travels through a back-end.
#[derive(Debug, Default)]
struct Message {
    payload: Vec<u8>,
    /// Deliveries that failed and were counted.
    failures: u32,
    dead_letter: Option<DeadLetter>,
}

/// Why a message was given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Where it came from.
    pub channel: Channel,
    /// What the rejecting consumer said, or that the delivery limit was reached.
    pub reason: String,
    /// Counted deliveries, the last one included.
    pub attempts: u32,
}

/// A message in somebody's hands, until settled by one of the methods that take it by value.
///
/// Dropped unsettled (a panic, an early return), it goes back and counts as a failed delivery, as when the process had
/// died: so a message that kills its consumer ends among the dead letters.
#[derive(Debug)]
#[must_use = "a delivery that is dropped counts as failed"]
pub struct Delivery {
    message: Message,
    /// `None` once settled.
    receipt: Option<Receipt>,
}

#[derive(Debug)]
enum Receipt {
    Embedded(embedded::Receipt),
}

/// How a delivery ended.
#[derive(Debug)]
enum Outcome {
    Done,
    Failed,
    Returned,
    Refused(String),
}

impl Delivery {
    /// What was published.
    pub fn payload(&self) -> &[u8] {
        &self.message.payload
    }

    /// 1 for the first delivery, one more after each counted failure. Starts again at 1 among the dead letters.
    pub fn attempt(&self) -> u32 {
        self.message.failures + 1
    }

    /// Why this message is a dead letter; `None` on other channels.
    pub fn dead_letter(&self) -> Option<&DeadLetter> {
        self.message.dead_letter.as_ref()
    }

    /// Done: the message is gone.
    pub async fn ack(self) -> Result<(), Error> {
        self.settle("acknowledge a delivery", Outcome::Done).await
    }

    /// Failed, may work next time: counted, and delivered again (at once: any wait is the caller's) or a dead letter
    /// when this was the last delivery that the limit allows.
    pub async fn retry(self) -> Result<(), Error> {
        self.settle("retry a delivery", Outcome::Failed).await
    }

    /// Not tried: goes back to the head of the channel, not counted.
    pub async fn release(self) -> Result<(), Error> {
        self.settle("release a delivery", Outcome::Returned).await
    }

    /// Can never work: becomes a dead letter with `reason`. A dead letter that is rejected stays one.
    pub async fn reject(self, reason: &str) -> Result<(), Error> {
        self.settle("reject a delivery", Outcome::Refused(reason.to_owned())).await
    }

    async fn settle(mut self, doing: &'static str, outcome: Outcome) -> Result<(), Error> {
        let message = std::mem::take(&mut self.message);
        match self.receipt.take() {
            Some(Receipt::Embedded(receipt)) => receipt.settle(doing, message, outcome),
            None => unreachable!("a delivery is settled by value"),
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        let message = std::mem::take(&mut self.message);
        if let Some(Receipt::Embedded(receipt)) = self.receipt.take() {
            // A closed queue has no use for it any more.
            let _ = receipt.settle("return a dropped delivery", message, Outcome::Failed);
        }
    }
}

/// Reads `?delivery_limit=N`, the only option.
fn delivery_limit(rest: &str) -> Result<u32, Error> {
    if rest.is_empty() {
        return Ok(DEFAULT_DELIVERY_LIMIT);
    }
    let limit = rest.strip_prefix("?delivery_limit=").and_then(|n| n.parse().ok()).filter(|n| *n > 0);
    limit.ok_or_else(|| Error::InvalidUrl("after embedded: only ?delivery_limit=N with N > 0 may follow".into()))
}
