//! Message queues with at-least-once delivery.
//!
//! A [`Queue`] is a clonable handle opened from a URL; callers need not know which system is behind it. The back-ends are
//! private: `embedded.rs` in memory, `amqp.rs` over RabbitMQ.
//!
//! Every back-end guarantees:
//! * After `publish` returns, the message is delivered until a consumer acknowledges it or it becomes a dead letter.
//! * A [`Delivery`] is settled once, by value. One that is dropped unsettled goes back and counts as failed, as it does
//!   when a process dies.
//! * A message whose counted deliveries reach the delivery limit becomes a dead letter; dead letters wait until acknowledged.
//!
//! No back-end guarantees order, or that a message is delivered only once: consumers must be able to do the same work twice.
//! The queue can be lost: the store is the truth, and the coordinator plans again from it.
//!
//! Beside the channels there are broadcasts, which guarantee nothing: every [`Listener`] that is there should get them at once.
//!
//! No operation waits forever for a broker that is away: operations and consumers fail when it cannot be reached for `give_up`. A broker
//! that says that it is short of memory or disk is waited for ([`Queue::trouble`]).

#![warn(missing_docs)]

mod amqp;
mod embedded;
mod listener;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use telemetry::messaging::Destination;
use tokio_util::sync::CancellationToken;

pub use listener::Listener;

/// Counted deliveries after which a message becomes a dead letter, unless the URL sets `delivery_limit`.
pub const DEFAULT_DELIVERY_LIMIT: u32 = 20;

/// The queue that a message goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Channel {
    /// Jobs, from the coordinator to the workers.
    Jobs,
    /// Events, from the workers to the coordinator.
    Events,
    /// Dead letters: messages rejected or delivered too often. Only the queue publishes here.
    DeadLetters,
}

impl Channel {
    /// Every channel.
    pub const ALL: [Channel; 3] = [Channel::Jobs, Channel::Events, Channel::DeadLetters];

    /// Last part of the queue's name.
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
        f.write_str(if *self == Channel::DeadLetters { "dead letters" } else { self.name() })
    }
}

/// The headers that are kept, those of W3C trace context; others are dropped.
const CONTEXT: [&str; 2] = ["traceparent", "tracestate"];

/// A message to publish.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parcel {
    /// The message's body.
    pub payload: Vec<u8>,
    /// Headers, kept through copies and dead letters; the queue does not read them. Those other than W3C's `traceparent` and
    /// `tracestate` are dropped.
    pub context: BTreeMap<String, String>,
}

impl From<Vec<u8>> for Parcel {
    fn from(payload: Vec<u8>) -> Parcel {
        Parcel { payload, ..Parcel::default() }
    }
}

/// Why an operation failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The URL does not name a queue. The text repeats no part of the URL that could hold a password.
    #[error("cannot open the queue: {0}")]
    InvalidUrl(String),
    /// The queue is closed.
    #[error("cannot {0}: the queue is closed")]
    Closed(&'static str),
    /// The broker could not be reached, or did not accept the operation, for `give_up`.
    #[error("cannot {doing}: the broker at {at} failed for {} s: {reason}", waited.as_secs())]
    Unreachable {
        /// The operation.
        doing: &'static str,
        /// Host and port of the broker.
        at: String,
        /// Time since the operation started.
        waited: Duration,
        /// The last failure.
        reason: String,
    },
    /// The broker (its host and port) refuses with a message: wrong password, unknown virtual host, no permission, untrusted
    /// certificate.
    #[error("the broker at {0} refuses: {1}")]
    Refused(String, String),
    /// The queue exists at the broker (its host and port) with settings other than those of this URL; the broker's message has the
    /// queue and the setting.
    #[error(
        "a queue of the broker at {0} has other settings: {1}; use the same settings, or start the coordinator once with \
        --reset-queues (its jobs are published again)"
    )]
    Mismatch(String, String),
}

impl Error {
    /// The attribute `error.type` of metrics.
    fn kind(&self) -> &'static str {
        match self {
            Error::InvalidUrl(_) => "invalid_url",
            Error::Closed(_) => "closed",
            Error::Unreachable { .. } => "unreachable",
            Error::Refused(..) => "refused",
            Error::Mismatch(..) => "mismatch",
        }
    }
}

/// Handle to a queue; clones share it.
#[derive(Clone, Debug)]
pub struct Queue {
    backend: Backend,
    /// In the order of [`Channel::ALL`].
    destinations: Arc<[Arc<Destination>; 3]>,
}

#[derive(Clone, Debug)]
enum Backend {
    Embedded(embedded::Broker),
    Amqp(amqp::Broker),
}

impl Queue {
    /// Opens the queue at `url`.
    ///
    /// `embedded:` is a new queue in the memory of this process, shared by clones of the handle only;
    /// `embedded:?delivery_limit=5` sets the number of counted deliveries after which a message becomes a dead letter.
    ///
    /// `amqp://user:password@host:5672/vhost?option=value&…` (`amqps:` with TLS) is a RabbitMQ 3.10 or later. Options:
    ///
    /// | option | default | meaning |
    /// |---|---|---|
    /// | `prefix` | `basin` | the queues are `<prefix>.jobs`, `<prefix>.events`, `<prefix>.dead` |
    /// | `delivery_limit` | 20 | counted deliveries after which a message becomes a dead letter |
    /// | `give_up` | 600 | seconds without the broker until operations and consumers fail |
    /// | `heartbeat` | 30 | seconds between heartbeats, and limit of one response of the broker |
    /// | `consumer_timeout` | 21600 | seconds a delivery may be unsettled (RabbitMQ 3.12 or later; before, jobs have no limit) |
    /// | `password_file` | | file with the password, read at each connect |
    /// | `ca_file` | | PEM file with authorities trusted besides the system's |
    /// | `cert_file`, `key_file` | | PEM files with this client's certificate and its key, read at each connect |
    ///
    /// A user or password that the URL lacks comes from `BASIN_AMQP_USER` or `BASIN_AMQP_PASSWORD`.
    ///
    /// Waits for a broker that does not run yet, and fails at once if the broker refuses.
    pub async fn open(url: &str) -> Result<Queue, Error> {
        let backend = match url.split_once(':') {
            Some(("embedded", rest)) => Backend::Embedded(embedded::Broker::new(delivery_limit(rest)?)),
            Some(("amqp" | "amqps", _)) => Backend::Amqp(amqp::Broker::open(url).await?),
            _ => return Err(Error::InvalidUrl("the URL must start with embedded:, amqp: or amqps:".into())),
        };
        let destinations = Channel::ALL.map(|channel| Arc::new(backend.destination(channel)));
        Ok(Queue { backend, destinations: Arc::new(destinations) })
    }

    /// Deletes `channel` at `url` with all its messages, and declares it anew: the remedy for [`Error::Mismatch`].
    pub async fn reset_at(url: &str, channel: Channel) -> Result<(), Error> {
        match url.split_once(':') {
            Some(("amqp" | "amqps", _)) => amqp::Broker::reset_at(url, channel).await,
            _ => Queue::open(url).await?.reset(channel).await,
        }
    }

    /// A channel as telemetry names it.
    pub fn destination(&self, channel: Channel) -> &Destination {
        &self.destinations[channel as usize]
    }

    /// Product and version of the broker; `None` for the embedded queue.
    pub fn server(&self) -> Option<String> {
        match &self.backend {
            Backend::Embedded(_) => None,
            Backend::Amqp(broker) => Some(broker.server()),
        }
    }

    /// Why the queue cannot be used now: the broker is away, or accepts no messages because it is short of memory or disk. `None`: it
    /// can. Operations wait meanwhile; a broker that is away makes them fail after `give_up`, a full one does not.
    pub fn trouble(&self) -> Option<String> {
        match &self.backend {
            Backend::Embedded(_) => None,
            Backend::Amqp(broker) => broker.trouble(),
        }
    }

    /// Publishes a message; when this returns, the queue has it.
    pub async fn publish(&self, channel: Channel, parcel: impl Into<Parcel>) -> Result<(), Error> {
        self.publish_all(channel, vec![parcel]).await
    }

    /// Publishes several messages, faster than one by one. After an error or a lost connection, some may be in the queue, and
    /// some twice.
    pub async fn publish_all(&self, channel: Channel, parcels: Vec<impl Into<Parcel>>) -> Result<(), Error> {
        let messages: Vec<Message> = parcels.into_iter().map(|parcel| Message::of(parcel.into())).collect();
        let (begun, count) = (Instant::now(), messages.len());
        let published = match &self.backend {
            Backend::Embedded(broker) => broker.publish_all(channel, messages),
            Backend::Amqp(broker) => broker.publish_all(channel, messages).await,
        };
        self.destination(channel).published(count, begun.elapsed(), published.as_ref().err().map(Error::kind));
        published
    }

    /// Starts to consume `channel`, with at most `prefetch` (at least 1) deliveries unsettled at a time.
    pub async fn consume(&self, channel: Channel, prefetch: u16) -> Result<Consumer, Error> {
        let inner = match &self.backend {
            Backend::Embedded(broker) => ConsumerBackend::Embedded(broker.consume(channel, prefetch)?),
            Backend::Amqp(broker) => ConsumerBackend::Amqp(broker.consume(channel, prefetch).await?),
        };
        Ok(Consumer { inner, destination: self.destinations[channel as usize].clone() })
    }

    /// Number of messages that wait in `channel`, without unsettled deliveries.
    pub async fn depth(&self, channel: Channel) -> Result<usize, Error> {
        match &self.backend {
            Backend::Embedded(broker) => broker.depth(channel),
            Backend::Amqp(broker) => broker.depth(channel).await,
        }
    }

    /// Deletes the messages that wait in `channel`. Unsettled deliveries stay with their consumers.
    pub async fn purge(&self, channel: Channel) -> Result<(), Error> {
        match &self.backend {
            Backend::Embedded(broker) => broker.reset(channel),
            Backend::Amqp(broker) => broker.purge(channel).await,
        }
    }

    /// Deletes `channel` with all its messages, and declares it anew. For a broken queue: the coordinator fills it again
    /// from the store.
    pub async fn reset(&self, channel: Channel) -> Result<(), Error> {
        match &self.backend {
            Backend::Embedded(broker) => broker.reset(channel),
            Backend::Amqp(broker) => broker.reset(channel).await,
        }
    }

    /// Waits until no other process leads under `name`, and leads.
    ///
    /// This is not a lock: a process that lost its connection acts on until it notices. Use a conditional write to the store
    /// for what must not happen twice.
    pub async fn lead(&self, name: &str) -> Result<Leadership, Error> {
        let inner = match &self.backend {
            Backend::Embedded(broker) => LeadershipBackend::Embedded(broker.lead(name).await?),
            Backend::Amqp(broker) => LeadershipBackend::Amqp(broker.lead(name).await?),
        };
        Ok(Leadership { inner })
    }

    /// Sends a message to every listener that is there now. It may be lost, also without an error: what it says must be found in another
    /// way, too. Waits a few seconds for the broker at most.
    pub async fn broadcast(&self, payload: Vec<u8>) -> Result<(), Error> {
        match &self.backend {
            Backend::Embedded(broker) => broker.broadcast(payload),
            Backend::Amqp(broker) => broker.broadcast(payload).await,
        }
    }

    /// Listens for broadcasts. While the broker is away, or refuses, nothing comes.
    pub fn listen(&self) -> Listener {
        match &self.backend {
            Backend::Embedded(broker) => broker.listen(),
            Backend::Amqp(broker) => broker.listen(),
        }
    }

    /// Closes the queue for all clones: consumers end; publishing and settling fail from now on.
    pub async fn close(&self) {
        match &self.backend {
            Backend::Embedded(broker) => broker.close(),
            Backend::Amqp(broker) => broker.close().await,
        }
    }
}

impl Backend {
    fn destination(&self, channel: Channel) -> Destination {
        match self {
            Backend::Embedded(_) => Destination { system: "basin", name: format!("basin.{}", channel.name()), server: None },
            Backend::Amqp(broker) => broker.destination(channel),
        }
    }
}

/// The right to lead alone under a name. Dropping it ends it.
#[derive(Debug)]
#[must_use = "a dropped leadership ends"]
pub struct Leadership {
    inner: LeadershipBackend,
}

#[derive(Debug)]
enum LeadershipBackend {
    Embedded(embedded::Seat),
    Amqp(amqp::Seat),
}

impl Leadership {
    /// Waits until the leadership is lost, because the connection ended or the queue was closed.
    ///
    /// The returned future may be dropped; nothing is lost.
    pub async fn lost(&mut self) {
        match &mut self.inner {
            LeadershipBackend::Embedded((_, closed)) => closed.cancelled().await,
            LeadershipBackend::Amqp((_, link)) => drop(link.lost().await),
        }
    }
}

/// Receives the deliveries of one channel.
#[derive(Debug)]
pub struct Consumer {
    inner: ConsumerBackend,
    destination: Arc<Destination>,
}

#[derive(Debug)]
enum ConsumerBackend {
    Embedded(embedded::Consumer),
    Amqp(amqp::Consumer),
}

impl Consumer {
    /// Waits for a message, and until fewer than `prefetch` deliveries are unsettled. `None`: the queue is closed.
    ///
    /// Fails if the broker was away for `give_up`; do not call it again after an error. The returned future may be dropped;
    /// nothing is lost.
    pub async fn next(&mut self) -> Result<Option<Delivery>, Error> {
        let next = match &mut self.inner {
            ConsumerBackend::Embedded(consumer) => consumer.next().await.map(|(m, receipt)| (m, Receipt::Embedded(receipt))),
            ConsumerBackend::Amqp(consumer) => consumer.next().await?.map(|(m, receipt)| (m, Receipt::Amqp(receipt))),
        };
        Ok(next.map(|(message, receipt)| {
            self.destination.consumed();
            Delivery { message, receipt: Some(receipt), destination: self.destination.clone(), delivered: Instant::now() }
        }))
    }
}

/// A message as it travels through a back-end.
#[derive(Debug, Default)]
struct Message {
    payload: Vec<u8>,
    context: BTreeMap<String, String>,
    /// Deliveries that failed and were counted.
    failures: u32,
    dead_letter: Option<DeadLetter>,
}

impl Message {
    fn of(Parcel { payload, mut context }: Parcel) -> Message {
        context.retain(|name, _| CONTEXT.contains(&name.as_str()));
        Message { payload, context, ..Message::default() }
    }

    /// The message's next channel and form after a delivery of `here` ended with `outcome`; `None`: it is done.
    fn settled(mut self, here: Channel, delivery_limit: u32, outcome: Outcome) -> Option<(Channel, Message)> {
        match outcome {
            Outcome::Done => None,
            Outcome::Returned => Some((here, self)),
            Outcome::Failed => {
                self.failures += 1;
                let again = self.failures < delivery_limit || here == Channel::DeadLetters;
                Some(if again { (here, self) } else { (Channel::DeadLetters, self.given_up(here)) })
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

    /// A rejected dead letter keeps its channel and its number of attempts.
    fn dead(self, here: Channel, reason: String) -> Message {
        let (channel, attempts) = self.dead_letter.map_or((here, self.failures), |before| (before.channel, before.attempts));
        Message { failures: 0, dead_letter: Some(DeadLetter { channel, reason, attempts }), ..self }
    }
}

/// Why a message became a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Its channel before.
    pub channel: Channel,
    /// The reason given by the rejecting consumer, or that the delivery limit was reached.
    pub reason: String,
    /// Counted deliveries, the last one included.
    pub attempts: u32,
}

/// A delivered message, until it is settled by one of the methods that take it by value.
///
/// Dropped unsettled (a panic, an early return), it goes back and counts as a failed delivery, as if the process had died:
/// a message that kills its consumer becomes a dead letter.
#[derive(Debug)]
#[must_use = "a delivery that is dropped counts as failed"]
pub struct Delivery {
    message: Message,
    /// `None` once settled.
    receipt: Option<Receipt>,
    destination: Arc<Destination>,
    delivered: Instant,
}

#[derive(Debug)]
enum Receipt {
    Embedded(embedded::Receipt),
    Amqp(amqp::Receipt),
}

/// How a delivery is settled.
#[derive(Debug)]
enum Outcome {
    Done,
    Failed,
    Returned,
    Refused(String),
}

impl Outcome {
    /// The name of the operation that settles, and the attribute `error.type` of the work that ends: metrics of messages have both.
    fn names(&self) -> (&'static str, Option<&'static str>) {
        match self {
            Outcome::Done => ("ack", None),
            Outcome::Returned => ("nack", None),
            Outcome::Failed => ("nack", Some("retried")),
            Outcome::Refused(_) => ("reject", Some("rejected")),
        }
    }
}

impl Delivery {
    /// The message's body.
    pub fn payload(&self) -> &[u8] {
        &self.message.payload
    }

    /// The message's headers.
    pub fn context(&self) -> &BTreeMap<String, String> {
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

    /// Acknowledges the message: it is done and gone.
    pub async fn ack(self) -> Result<(), Error> {
        self.settle("acknowledge a delivery", Outcome::Done).await
    }

    /// Counts a failure. The message is delivered again at once (any wait is the caller's), or becomes a dead letter if this was
    /// the last delivery that the limit allows.
    pub async fn retry(self) -> Result<(), Error> {
        self.settle("retry a delivery", Outcome::Failed).await
    }

    /// Releases the message: it goes back to the channel, and the delivery is not counted.
    pub async fn release(self) -> Result<(), Error> {
        self.settle("release a delivery", Outcome::Returned).await
    }

    /// Makes the message a dead letter with `reason`. A rejected dead letter stays one.
    pub async fn reject(self, reason: &str) -> Result<(), Error> {
        self.settle("reject a delivery", Outcome::Refused(reason.to_owned())).await
    }

    /// Settling a delivery of a lost connection succeeds, and the message is delivered again.
    async fn settle(mut self, doing: &'static str, outcome: Outcome) -> Result<(), Error> {
        let message = std::mem::take(&mut self.message);
        let (operation, failure) = outcome.names();
        self.destination.processed(self.delivered.elapsed(), failure);
        let begun = Instant::now();
        let settled = match self.receipt.take() {
            Some(Receipt::Embedded(receipt)) => receipt.settle(doing, message, outcome),
            Some(Receipt::Amqp(receipt)) => receipt.settle(doing, message, outcome).await,
            None => unreachable!("a delivery is settled by value"),
        };
        self.destination.settled(operation, begun.elapsed(), settled.as_ref().err().map(Error::kind));
        settled
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        let message = std::mem::take(&mut self.message);
        if self.receipt.is_some() {
            self.destination.processed(self.delivered.elapsed(), Some("dropped"));
        }
        match self.receipt.take() {
            // It fails only if the queue is closed.
            Some(Receipt::Embedded(receipt)) => {
                let _ = receipt.settle("return a dropped delivery", message, Outcome::Failed);
            }
            Some(Receipt::Amqp(receipt)) => receipt.abandon(message),
            None => {}
        }
    }
}

fn check_open(closed: &CancellationToken, doing: &'static str) -> Result<(), Error> {
    if closed.is_cancelled() { Err(Error::Closed(doing)) } else { Ok(()) }
}

/// Parses `?delivery_limit=N`, the only option.
fn delivery_limit(rest: &str) -> Result<u32, Error> {
    if rest.is_empty() {
        return Ok(DEFAULT_DELIVERY_LIMIT);
    }
    let limit = rest.strip_prefix("?delivery_limit=").and_then(|n| n.parse().ok()).filter(|n| *n > 0);
    limit.ok_or_else(|| Error::InvalidUrl("after embedded: only ?delivery_limit=N with N > 0 may follow".into()))
}
