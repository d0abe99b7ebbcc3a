//! Work in, work out, at least once.
//!
//! A [`Queue`] is a clonable handle opened from a URL; which system stands behind it changes nothing for the caller. The
//! back-ends are private: `embedded.rs` in memory, `amqp.rs` over RabbitMQ.
//!
//! What every back-end keeps:
//! * A message whose `publish` returned is delivered until somebody settles it with `ack` or it becomes a dead letter.
//! * A [`Delivery`] is settled once, by value. One that is dropped unsettled goes back and counts as failed, as it does
//!   when a process dies.
//! * A message whose counted deliveries reach the delivery limit becomes a dead letter; dead letters wait until acked.
//!
//! What no back-end promises: order, or that a message comes only once. Whoever consumes must be able to do the same
//! work twice. The queue can be lost: the store is the truth, and the plan is made again from it.
//!
//! No operation waits for ever: a broker that cannot be reached for `give_up` is an error, of consumers too.

#![warn(missing_docs)]

mod amqp;
mod embedded;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

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

impl Channel {
    /// All of them.
    pub const ALL: [Channel; 3] = [Channel::Jobs, Channel::Events, Channel::DeadLetters];

    /// Last part of its queue's name.
    pub fn name(self) -> &'static str {
        match self {
            Channel::Jobs => "jobs",
            Channel::Events => "events",
            Channel::DeadLetters => "dead",
        }
    }
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

/// What travels beside a payload and stays with it through copies and dead letters; the queue reads none of it.
pub type Context = BTreeMap<String, String>;

/// The names that a context may have: those of W3C trace context. Others are dropped.
pub const CONTEXT: [&str; 2] = ["traceparent", "tracestate"];

/// What is published: a payload, and its context if there is one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parcel {
    /// The bytes.
    pub payload: Vec<u8>,
    /// See [`CONTEXT`].
    pub context: Context,
}

impl From<Vec<u8>> for Parcel {
    fn from(payload: Vec<u8>) -> Parcel {
        Parcel { payload, context: Context::new() }
    }
}

/// What can go wrong.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The URL does not name a queue. The text repeats no part of the URL that could hold a password.
    #[error("cannot open the queue: {0}")]
    InvalidUrl(String),
    /// The queue was closed before.
    #[error("cannot {0}: the queue is closed")]
    Closed(&'static str),
    /// The broker was not there, or did not do it, for as long as the URL allows.
    #[error("cannot {doing}: no success with the broker at {at} for {} s: {reason}", waited.as_secs())]
    Unreachable {
        /// What was tried.
        doing: &'static str,
        /// Host and port.
        at: String,
        /// How long.
        waited: Duration,
        /// What went wrong last.
        reason: String,
    },
    /// The broker is there and says no: wrong password, no such virtual host, no permission, a certificate not trusted.
    #[error("the broker at {at} refuses: {reason}")]
    Refused {
        /// Host and port.
        at: String,
        /// What it says.
        reason: String,
    },
    /// A queue is there already, with other settings than this URL gives it.
    #[error(
        "a queue of the broker at {at} has other settings: {reason}; give the settings it has, or start the coordinator once with \
        --reset-queues (which loses nothing but time)"
    )]
    Mismatch {
        /// Host and port.
        at: String,
        /// Which queue and setting, as the broker says.
        reason: String,
    },
}

/// Handle to a queue; clones share it.
#[derive(Clone, Debug)]
pub struct Queue {
    backend: Backend,
}

#[derive(Clone, Debug)]
enum Backend {
    Embedded(embedded::Broker),
    Amqp(amqp::Broker),
}

impl Queue {
    /// Opens the queue at `url`.
    ///
    /// `embedded:` is a new queue in the memory of this process, reached through clones of the handle only;
    /// `embedded:?delivery_limit=5` sets after how many counted deliveries a message becomes a dead letter.
    ///
    /// `amqp://user:password@host:5672/vhost?option=value&…` (`amqps:` with TLS) is a RabbitMQ, at least 3.10. Options:
    ///
    /// | option | default | what |
    /// |---|---|---|
    /// | `prefix` | `basin` | the queues are `<prefix>.jobs`, `<prefix>.events`, `<prefix>.dead` |
    /// | `delivery_limit` | 20 | counted deliveries after which a message becomes a dead letter |
    /// | `give_up` | 600 | seconds without the broker until operations and consumers fail |
    /// | `heartbeat` | 30 | seconds; also how long one answer of the broker may take |
    /// | `consumer_timeout` | 21600 | seconds a delivery may be unsettled (RabbitMQ 3.12 or later; before, jobs have no limit) |
    /// | `password_file` | | file with the password, read at each connect |
    /// | `ca_file` | | PEM file with authorities trusted besides the system's |
    ///
    /// Without user or password in the URL, `BASIN_AMQP_USER` and `BASIN_AMQP_PASSWORD` give them.
    ///
    /// A broker that is not there yet is waited for; one that refuses is an error at once.
    pub async fn open(url: &str) -> Result<Queue, Error> {
        let backend = match url.split_once(':') {
            Some(("embedded", rest)) => Backend::Embedded(embedded::Broker::new(delivery_limit(rest)?)),
            Some(("amqp" | "amqps", _)) => Backend::Amqp(amqp::Broker::open(url).await?),
            _ => return Err(Error::InvalidUrl("the URL must begin with embedded:, amqp: or amqps:".into())),
        };
        Ok(Queue { backend })
    }

    /// Deletes `channel` at `url` with all that waits in it, and makes it anew: the way out of [`Error::Mismatch`].
    pub async fn reset_at(url: &str, channel: Channel) -> Result<(), Error> {
        match url.split_once(':') {
            Some(("amqp" | "amqps", _)) => amqp::Broker::reset_at(url, channel).await,
            _ => Queue::open(url).await?.reset(channel).await,
        }
    }

    /// Name of the system behind it, as telemetry calls it.
    pub fn system(&self) -> &'static str {
        match &self.backend {
            Backend::Embedded(_) => "basin",
            Backend::Amqp(_) => "rabbitmq",
        }
    }

    /// Product and version of the broker; `None` if there is none.
    pub fn server(&self) -> Option<String> {
        match &self.backend {
            Backend::Embedded(_) => None,
            Backend::Amqp(broker) => Some(broker.server()),
        }
    }

    /// Hands `parcel` over; when this returns, the queue owns it.
    pub async fn publish(&self, channel: Channel, parcel: impl Into<Parcel>) -> Result<(), Error> {
        self.publish_all(channel, vec![parcel]).await
    }

    /// Hands all `parcels` over, faster than one by one. After an error or a lost connection, some may be there, and
    /// some twice.
    pub async fn publish_all(&self, channel: Channel, parcels: Vec<impl Into<Parcel>>) -> Result<(), Error> {
        let messages = parcels.into_iter().map(|parcel| Message::of(parcel.into())).collect();
        match &self.backend {
            Backend::Embedded(broker) => broker.publish_all(channel, messages),
            Backend::Amqp(broker) => broker.publish_all(channel, messages).await,
        }
    }

    /// Starts to consume `channel`, with at most `prefetch` (at least 1) deliveries unsettled at a time.
    pub async fn consume(&self, channel: Channel, prefetch: u16) -> Result<Consumer, Error> {
        let inner = match &self.backend {
            Backend::Embedded(broker) => ConsumerBackend::Embedded(broker.consume(channel, prefetch)?),
            Backend::Amqp(broker) => ConsumerBackend::Amqp(broker.consume(channel, prefetch).await?),
        };
        Ok(Consumer { inner })
    }

    /// Number of messages that wait in `channel`, without those delivered and not settled yet.
    pub async fn depth(&self, channel: Channel) -> Result<usize, Error> {
        match &self.backend {
            Backend::Embedded(broker) => broker.depth(channel),
            Backend::Amqp(broker) => broker.depth(channel).await,
        }
    }

    /// Forgets what waits in `channel`; what is delivered and not settled stays with whoever has it.
    pub async fn purge(&self, channel: Channel) -> Result<(), Error> {
        match &self.backend {
            Backend::Embedded(broker) => broker.reset(channel),
            Backend::Amqp(broker) => broker.purge(channel).await,
        }
    }

    /// Deletes `channel` with all that waits in it, and makes it anew. For a queue that is broken: it is filled again
    /// from the store.
    pub async fn reset(&self, channel: Channel) -> Result<(), Error> {
        match &self.backend {
            Backend::Embedded(broker) => broker.reset(channel),
            Backend::Amqp(broker) => broker.reset(channel).await,
        }
    }

    /// Waits until nobody else leads under `name`, and leads.
    ///
    /// This is no lock: who lost its connection may act on for the time it takes to notice. What must not be done twice
    /// needs a condition in the store.
    pub async fn lead(&self, name: &str) -> Result<Leadership, Error> {
        let inner = match &self.backend {
            Backend::Embedded(broker) => LeadershipBackend::Embedded(broker.lead(name).await?),
            Backend::Amqp(broker) => LeadershipBackend::Amqp(broker.lead(name).await?),
        };
        Ok(Leadership { inner })
    }

    /// Closes the queue for all clones: consumers end, and publishing and settling fail from now on.
    pub async fn close(&self) {
        match &self.backend {
            Backend::Embedded(broker) => broker.close(),
            Backend::Amqp(broker) => broker.close().await,
        }
    }
}

/// Being the only one that acts under a name; dropping it gives it up.
#[derive(Debug)]
#[must_use = "a leadership that is dropped is given up"]
pub struct Leadership {
    inner: LeadershipBackend,
}

#[derive(Debug)]
enum LeadershipBackend {
    Embedded(embedded::Leadership),
    Amqp(amqp::Leadership),
}

impl Leadership {
    /// Waits until the leadership is lost: to the end of the connection, or of the queue.
    ///
    /// Loses nothing when the returned future is dropped.
    pub async fn lost(&mut self) {
        match &mut self.inner {
            LeadershipBackend::Embedded(leadership) => leadership.lost().await,
            LeadershipBackend::Amqp(leadership) => leadership.lost().await,
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
    Amqp(amqp::Consumer),
}

impl Consumer {
    /// Waits for a message, and for a free place among the unsettled deliveries. `None`: the queue is closed.
    ///
    /// An error is the last thing that comes: the broker was away for too long. Loses nothing when the returned future
    /// is dropped.
    pub async fn next(&mut self) -> Result<Option<Delivery>, Error> {
        let next = match &mut self.inner {
            ConsumerBackend::Embedded(consumer) => consumer.next().await.map(|(m, receipt)| (m, Receipt::Embedded(receipt))),
            ConsumerBackend::Amqp(consumer) => consumer.next().await?.map(|(m, receipt)| (m, Receipt::Amqp(receipt))),
        };
        Ok(next.map(|(message, receipt)| Delivery { message, receipt: Some(receipt) }))
    }
}

/// A message as it travels through a back-end.
#[derive(Debug, Default)]
struct Message {
    payload: Vec<u8>,
    context: Context,
    /// Deliveries that failed and were counted.
    failures: u32,
    dead_letter: Option<DeadLetter>,
}

impl Message {
    fn of(Parcel { payload, mut context }: Parcel) -> Message {
        context.retain(|name, _| CONTEXT.contains(&name.as_str()));
        Message { payload, context, ..Message::default() }
    }

    /// Where the message goes, and as what, when a delivery of `here` ended so; `None`: it is done.
    fn settled(mut self, here: Channel, delivery_limit: u32, outcome: Outcome) -> Option<(Channel, Message)> {
        match outcome {
            Outcome::Done => None,
            Outcome::Returned => Some((here, self)),
            Outcome::Failed => {
                self.failures += 1;
                if self.failures < delivery_limit || here == Channel::DeadLetters {
                    Some((here, self))
                } else {
                    Some((Channel::DeadLetters, self.given_up(here)))
                }
            }
            Outcome::Refused(reason) => {
                self.failures += 1;
                Some((Channel::DeadLetters, self.dead(here, reason)))
            }
        }
    }

    fn given_up(self, here: Channel) -> Message {
        let reason = format!("given up after {} deliveries", self.failures);
        self.dead(here, reason)
    }

    /// A dead letter that is rejected keeps where it came from and how often it was tried.
    fn dead(self, here: Channel, reason: String) -> Message {
        let (channel, attempts) = match self.dead_letter {
            Some(before) => (before.channel, before.attempts),
            None => (here, self.failures),
        };
        Message { failures: 0, dead_letter: Some(DeadLetter { channel, reason, attempts }), ..self }
    }
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
    Amqp(amqp::Receipt),
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

    /// What was published beside it.
    pub fn context(&self) -> &Context {
        &self.message.context
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

    /// Not tried: goes back to the channel, not counted.
    pub async fn release(self) -> Result<(), Error> {
        self.settle("release a delivery", Outcome::Returned).await
    }

    /// Can never work: becomes a dead letter with `reason`. A dead letter that is rejected stays one.
    pub async fn reject(self, reason: &str) -> Result<(), Error> {
        self.settle("reject a delivery", Outcome::Refused(reason.to_owned())).await
    }

    /// A delivery of a lost connection settles without an error, and comes again.
    async fn settle(mut self, doing: &'static str, outcome: Outcome) -> Result<(), Error> {
        let message = std::mem::take(&mut self.message);
        match self.receipt.take() {
            Some(Receipt::Embedded(receipt)) => receipt.settle(doing, message, outcome),
            Some(Receipt::Amqp(receipt)) => receipt.settle(doing, message, outcome).await,
            None => unreachable!("a delivery is settled by value"),
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        let message = std::mem::take(&mut self.message);
        match self.receipt.take() {
            // A closed queue has no use for it any more.
            Some(Receipt::Embedded(receipt)) => {
                let _ = receipt.settle("return a dropped delivery", message, Outcome::Failed);
            }
            Some(Receipt::Amqp(receipt)) => receipt.abandon(message),
            None => {}
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
