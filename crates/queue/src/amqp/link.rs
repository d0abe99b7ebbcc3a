//! One connection to the broker: used until the first failure, and never repaired.
//!
//! Any failure ends the whole link, and `amqp.rs` makes a new one. Every wait for the broker has a limit, and a watchdog sends
//! a request at intervals, so that a dead connection is noticed.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use async_rs::TokioRuntime;
use async_rs::traits::Reactor;
use futures_util::future::try_join4;
use futures_util::{AsyncReadExt, AsyncWriteExt, StreamExt};
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions,
};
use lapin::tcp::AsyncTcpStream;
use lapin::types::{AMQPValue, DeliveryTag, FieldTable};
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{BasicProperties, Confirmation, ConnectionProperties, ErrorKind};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::message::{properties, text};
use super::options::Options;
use crate::{Channel, Error, Message};

/// Publications that wait for their confirmation at the same time; each has an AMQP channel of its own.
const PUBLISHERS: usize = 64;
/// Largest first frame of a server that is read.
const GREETING_BYTES: usize = 1 << 20;
/// Most messages of candidates for a leadership that wait.
const CANDIDATES: i64 = 16;
/// Limit of closing the connection.
const GOODBYE: Duration = Duration::from_secs(5);
/// Pause after deleting a queue. A broker that sees the name in use again at once does not tell the consumers
/// (seen with RabbitMQ 3.10.8, which needs less than 50 ms).
pub(super) const NEWS: Duration = Duration::from_secs(1);
/// Returns allowed by the broker for each failure allowed by `delivery_limit`. A dying broker returns a message from every
/// waiting consumer.
const RETURNS: i64 = 1000;
/// AMQP reply codes.
const ACCESS_REFUSED: u16 = 403;
const PRECONDITION_FAILED: u16 = 406;
const NOT_ALLOWED: u16 = 530;

type Stream = AsyncTcpStream<<async_rs::Tokio as Reactor>::TcpStream>;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The link is gone; a new one may succeed.
    #[error("{0}")]
    Lost(String),
    /// The link is alive, but the broker did not accept a message.
    #[error("{0}")]
    NotTaken(String),
    /// A person must act.
    #[error(transparent)]
    Lasting(Error),
}

/// Whether a queue of this server can have its own time limit for settling: RabbitMQ 3.12 or later.
fn takes_consumer_timeout(server: &str) -> bool {
    let Some(version) = server.strip_prefix("RabbitMQ ") else { return false };
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(3), Some(12))
}

/// An AMQP channel with a subscription. Dropping it closes the channel, and unsettled deliveries go back to the queue.
pub(super) struct Lane {
    pub(super) link: Arc<Link>,
    channel: lapin::Channel,
    /// Unsettled deliveries, if the broker's time limit must not apply to them ([`Lane::hold`]).
    held: Option<tokio::sync::Mutex<BTreeSet<DeliveryTag>>>,
}

impl Lane {
    /// Registers a delivery that has arrived.
    ///
    /// A RabbitMQ before 3.12 has one time limit for all acknowledgements, in its configuration, and closes the AMQP channel
    /// of a job that takes longer. The limit does not apply to deliveries acknowledged in a transaction, which are
    /// delivered again if the channel ends before the commit. So jobs are acknowledged when they arrive, and committed one by one
    /// when they end.
    pub(super) async fn hold(&self, tag: DeliveryTag) -> Result<(), Failure> {
        let Some(held) = &self.held else { return Ok(()) };
        let mut held = held.lock().await;
        self.link.ask("hold a delivery", self.send_ack(tag, false)).await?;
        held.insert(tag);
        Ok(())
    }

    /// Acknowledges a delivery for good.
    pub(super) async fn acknowledge(&self, tag: DeliveryTag) -> Result<(), Failure> {
        let Some(held) = &self.held else {
            return self.link.ask("acknowledge", self.send_ack(tag, false)).await;
        };
        let mut held = held.lock().await;
        held.remove(&tag);
        let others = held.last().copied();
        let hold_others = async {
            match others {
                Some(last) => self.send_ack(last, true).await,
                None => Ok(()),
            }
        };
        // Sent in this order and at once, so that the broker has hardly any time to check its limit in between.
        let (undo, commit) = (self.channel.tx_rollback(), self.channel.tx_commit());
        self.link.ask("acknowledge", try_join4(undo, self.send_ack(tag, false), commit, hold_others)).await?;
        Ok(())
    }

    async fn send_ack(&self, tag: DeliveryTag, multiple: bool) -> lapin::Result<()> {
        self.channel.basic_ack(tag, BasicAckOptions { multiple }).await
    }

    /// Ends the subscription; `subscription` still yields what has arrived.
    pub(super) async fn cancel(&self, subscription: &lapin::Consumer) -> Result<(), Failure> {
        let cancelled = self.channel.basic_cancel(subscription.tag(), BasicCancelOptions::default());
        self.link.ask("end a subscription", cancelled).await
    }
}

/// A second handle to the connection's socket: shutting it down ends lapin's thread in any state.
#[derive(Clone, Debug, Default)]
struct Socket(Arc<Mutex<Option<TcpStream>>>);

impl Socket {
    fn lock(&self) -> MutexGuard<'_, Option<TcpStream>> {
        self.0.lock().expect("nothing panics while it holds the lock")
    }

    fn shut(&self) {
        if let Some(socket) = self.lock().take() {
            // It may be closed already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

pub(crate) struct Link {
    options: Arc<Options>,
    /// Product and version.
    pub(super) server: String,
    connection: lapin::Connection,
    socket: Socket,
    /// Why the link ended.
    lost: watch::Sender<Option<String>>,
    /// For requests other than publishing and consuming.
    control: tokio::sync::Mutex<lapin::Channel>,
    /// Free channels in confirm mode.
    publishers: Mutex<Vec<lapin::Channel>>,
    places: Semaphore,
}

/// Without the options and the connection, which hold the user's name.
impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("lost", &self.is_lost()).finish_non_exhaustive()
    }
}

impl Link {
    pub(super) async fn open(options: &Arc<Options>) -> Result<Arc<Link>, Failure> {
        let runtime = TokioRuntime::tokio_current();
        let limit = options.heartbeat;
        let greeted = async { greeting(options, &runtime).await.map_err(|error| unreachable(options, error)) };
        let server = in_time(limit, "send a greeting", greeted).await?;
        let socket = Socket::default();
        let connecting = connect(Arc::clone(options), runtime, socket.clone());
        let connection = in_time(2 * limit, "finish the handshake", connecting).await.inspect_err(|_| socket.shut())?;
        let opening = async { connection.create_channel().await.map_err(|error| refusal(options, &error)) };
        let control = in_time(limit, "open a channel", opening).await.inspect_err(|_| socket.shut())?;
        let link = Arc::new(Link {
            options: Arc::clone(options),
            server,
            connection,
            socket,
            lost: watch::Sender::new(None),
            control: tokio::sync::Mutex::new(control),
            publishers: Mutex::default(),
            places: Semaphore::new(PUBLISHERS),
        });
        tokio::spawn(listen(Arc::downgrade(&link), link.connection.events_listener(), link.lost.subscribe()));
        Ok(link)
    }

    /// Starts the watchdog, which looks up the queue `name` at intervals.
    pub(super) fn watch(self: &Arc<Link>, name: String) {
        tokio::spawn(keep_watch(Arc::downgrade(self), name, self.options.watch_interval(), self.lost.subscribe()));
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost.borrow().is_some()
    }

    /// Waits for the end of the link, and returns the reason.
    pub(crate) async fn lost(&self) -> String {
        let mut lost = self.lost.subscribe();
        let reason = lost.wait_for(Option::is_some).await.expect("this link holds the sender");
        reason.clone().unwrap_or_default()
    }

    /// Ends the link with `reason`, unless it has ended.
    pub(super) fn fail(&self, reason: impl Into<String>) -> Failure {
        let reason = reason.into();
        self.lost.send_if_modified(|lost| {
            let first = lost.is_none();
            lost.get_or_insert_with(|| reason.clone());
            first
        });
        self.socket.shut();
        Failure::Lost(reason)
    }

    /// Closes the link in order: the broker processes everything sent before.
    pub(super) async fn close(&self) {
        let goodbye = self.connection.close(200, "OK".into());
        if !matches!(timeout(GOODBYE, goodbye).await, Ok(Ok(()))) {
            debug!("the broker did not confirm the close");
        }
        self.fail("closed");
    }

    /// Waits for the broker's response. An error or a timeout ends the link.
    pub(super) async fn ask<T>(&self, what: &str, request: impl Future<Output = lapin::Result<T>>) -> Result<T, Failure> {
        tokio::pin!(request);
        loop {
            tokio::select! {
                biased;
                answer = &mut request => {
                    return answer.map_err(|error| self.refused(what, &error));
                }
                reason = self.lost() => return Err(Failure::Lost(reason)),
                () = tokio::time::sleep(self.options.heartbeat) => {
                    // A broker short of memory or disk reports it, and responds later.
                    if !self.connection.status().blocked() {
                        return Err(self.fail(format!("cannot {what}: the broker does not respond")));
                    }
                }
            }
        }
    }

    /// Ends the link because the broker answers a request with an error.
    fn refused(&self, what: &str, error: &lapin::Error) -> Failure {
        match refusal(&self.options, error) {
            Failure::Lost(reason) => self.fail(format!("cannot {what}: {reason}")),
            lasting => {
                self.fail(format!("cannot {what}: {error}"));
                lasting
            }
        }
    }

    /// Declares all queues.
    pub(super) async fn declare_all(&self) -> Result<(), Failure> {
        for channel in [Channel::DeadLetters, Channel::Jobs, Channel::Events] {
            self.declare(channel).await?;
        }
        Ok(())
    }

    pub(super) async fn declare(&self, channel: Channel) -> Result<(), Failure> {
        let name = self.options.queue_name(channel);
        let control = self.control.lock().await;
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let declared = control.queue_declare(name.as_str().into(), options, self.arguments(channel));
        match self.ask("declare a queue", async { Ok(declared.await) }).await? {
            Ok(_) => Ok(()),
            Err(error) if code(&error) == Some(PRECONDITION_FAILED) => {
                self.fail(format!("cannot declare {name}: {error}"));
                Err(Failure::Lasting(Error::Mismatch(self.options.address(), error.to_string())))
            }
            Err(error) => Err(self.refused(&format!("declare {name}"), &error)),
        }
    }

    fn arguments(&self, channel: Channel) -> FieldTable {
        let mut arguments = self.consumer_arguments();
        let mut set = |name: &str, value: &str| {
            arguments.insert(name.into(), AMQPValue::LongString(value.into()));
        };
        set("x-queue-type", "quorum");
        if channel != Channel::DeadLetters {
            set("x-dead-letter-exchange", "");
            set("x-dead-letter-routing-key", &self.options.queue_name(Channel::DeadLetters));
            set("x-dead-letter-strategy", "at-least-once");
            set("x-overflow", "reject-publish");
        }
        // Our own limit takes effect first; the broker's is for messages that none of our consumers sees. Without this argument,
        // RabbitMQ 4 sets a limit of 20.
        let limit = match channel {
            Channel::DeadLetters => i64::from(u32::MAX),
            Channel::Jobs | Channel::Events => RETURNS * i64::from(self.options.delivery_limit),
        };
        arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(limit));
        arguments
    }

    /// The queue's time limit for settling, in ms; older brokers have one limit for all queues, in their configuration.
    fn consumer_arguments(&self) -> FieldTable {
        let mut arguments = FieldTable::default();
        if takes_consumer_timeout(&self.server) {
            let milliseconds = self.options.consumer_timeout.as_millis() as i64;
            arguments.insert("x-consumer-timeout".into(), AMQPValue::LongLongInt(milliseconds));
        }
        arguments
    }

    /// Deletes a queue, and waits until its consumers know.
    pub(super) async fn delete(&self, channel: Channel) -> Result<(), Failure> {
        let name = self.options.queue_name(channel);
        let control = self.control.lock().await;
        let deleted = control.queue_delete(name.as_str().into(), QueueDeleteOptions::default());
        self.ask(&format!("delete {name}"), deleted).await?;
        tokio::time::sleep(NEWS).await;
        Ok(())
    }

    pub(super) async fn purge(&self, channel: Channel) -> Result<(), Failure> {
        let name = self.options.queue_name(channel);
        let control = self.control.lock().await;
        self.ask(&format!("empty {name}"), control.queue_purge(name.as_str().into(), QueuePurgeOptions::default())).await?;
        Ok(())
    }

    /// The numbers of messages that wait and of consumers.
    pub(super) async fn look_up(&self, channel: Channel) -> Result<lapin::Queue, Failure> {
        self.look_up_name(&self.options.queue_name(channel)).await
    }

    async fn look_up_name(&self, name: &str) -> Result<lapin::Queue, Failure> {
        let control = self.control.lock().await;
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        self.ask(&format!("look up {name}"), control.queue_declare(name.into(), options, FieldTable::default())).await
    }

    /// Waits for the leadership that the queue `name` stands for. It lasts as long as this link.
    ///
    /// The broker delivers to one consumer alone, the first (`x-single-active-consumer`): the candidate that gets a message leads. So
    /// every candidate subscribes, and sends a message now and then. An exclusive queue would do, too, but the broker calls its refusal an
    /// error, and the library logs one for each question.
    ///
    /// Returns what keeps the subscription; dropping it ends it.
    pub(super) async fn stand(self: &Arc<Link>, name: &str, pause: Duration) -> Result<JoinSet<()>, Failure> {
        let channel = self.ask("open a channel", self.connection.create_channel()).await?;
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
        arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(CANDIDATES));
        self.ask("ask for the leadership", channel.queue_declare(name.into(), options, arguments)).await?;
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let consuming = channel.basic_consume(name.into(), "".into(), options, FieldTable::default());
        let mut messages = self.ask("ask for the leadership", consuming).await?;
        loop {
            let message =
                channel.basic_publish("".into(), name.into(), BasicPublishOptions::default(), b"", BasicProperties::default());
            self.ask("ask for the leadership", message).await?;
            tokio::select! {
                message = messages.next() => match message {
                    Some(Ok(_)) => break,
                    _ => return Err(self.fail("the subscription to the leadership ended")),
                },
                reason = self.lost() => return Err(Failure::Lost(reason)),
                () = tokio::time::sleep(pause) => {}
            }
        }
        let link = Arc::downgrade(self);
        let mut subscription = JoinSet::new();
        subscription.spawn(async move {
            let _open = channel;
            // The messages of the other candidates.
            while let Some(Ok(_)) = messages.next().await {}
            if let Some(link) = link.upgrade() {
                link.fail("the subscription to the leadership ended");
            }
        });
        Ok(subscription)
    }

    /// A channel for what may fail without an end of the link.
    pub(super) async fn spare_channel(&self) -> lapin::Result<lapin::Channel> {
        self.connection.create_channel().await
    }

    /// Whether the broker accepts no messages for now.
    pub(super) fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    /// Publishes to `channel`, and waits until the broker has all of `messages`.
    ///
    /// It uses its AMQP channel alone, and if any message came back, all count as not accepted: it is uncertain which
    /// confirmation a returned message arrives with.
    pub(super) async fn publish(&self, channel: Channel, messages: &[Message]) -> Result<(), Failure> {
        let _place = self.places.acquire().await.expect("never closed");
        let queue = self.options.queue_name(channel);
        let publisher = self.publisher().await?;
        let mut confirmations = Vec::with_capacity(messages.len());
        for message in messages {
            let options = BasicPublishOptions { mandatory: true, immediate: false };
            let sent = publisher.basic_publish("".into(), queue.as_str().into(), options, &message.payload, properties(message));
            confirmations.push(self.ask("publish", sent).await?);
        }
        let mut refused = None;
        for confirmation in confirmations {
            match self.ask("publish", confirmation).await? {
                Confirmation::Ack(None) => {}
                Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)) => {
                    refused = Some(format!("{queue} did not get a message: {}", returned.reply_text));
                }
                Confirmation::Nack(None) => refused = Some(format!("{queue} did not accept a message")),
                Confirmation::NotRequested => refused = Some("the channel does not confirm messages".into()),
            }
        }
        self.free_publishers().push(publisher);
        refused.map_or(Ok(()), |reason| Err(Failure::NotTaken(reason)))
    }

    fn free_publishers(&self) -> MutexGuard<'_, Vec<lapin::Channel>> {
        self.publishers.lock().expect("nothing panics while it holds the lock")
    }

    async fn publisher(&self) -> Result<lapin::Channel, Failure> {
        if let Some(free) = self.free_publishers().pop() {
            return Ok(free);
        }
        let channel = self.ask("open a channel", self.connection.create_channel()).await?;
        self.ask("have publications confirmed", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(channel)
    }

    pub(super) async fn subscribe(self: &Arc<Link>, channel: Channel, prefetch: u16) -> Result<(Lane, lapin::Consumer), Failure> {
        let name = self.options.queue_name(channel);
        let lane = self.ask("open a channel", self.connection.create_channel()).await?;
        let holds = channel == Channel::Jobs && !takes_consumer_timeout(&self.server);
        if holds {
            self.ask("start a transaction", lane.tx_select()).await?;
        }
        self.ask("set the prefetch", lane.basic_qos(prefetch, BasicQosOptions { global: false })).await?;
        let (options, arguments) = (BasicConsumeOptions::default(), self.consumer_arguments());
        let subscribed = lane.basic_consume(name.as_str().into(), "".into(), options, arguments);
        let consumer = self.ask(&format!("consume {name}"), subscribed).await?;
        Ok((Lane { link: Arc::clone(self), channel: lane, held: holds.then(Default::default) }, consumer))
    }
}

async fn in_time<T>(limit: Duration, what: &str, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    timeout(limit, work).await.unwrap_or_else(|_| Err(Failure::Lost(format!("the broker did not {what}"))))
}

/// Handles lapin's own reports about the connection.
async fn listen(
    link: Weak<Link>,
    events: impl futures_util::Stream<Item = lapin::Event>,
    mut lost: watch::Receiver<Option<String>>,
) {
    tokio::pin!(events);
    loop {
        let event = tokio::select! {
            _ = lost.changed() => return,
            event = events.next() => event,
        };
        match (event, link.upgrade()) {
            // The end of one channel is seen where the channel is used.
            (Some(lapin::Event::Error(error)), Some(link)) if !error.is_amqp_soft_error() => {
                link.fail(error.to_string());
            }
            (Some(lapin::Event::ConnectionBlocked(reason)), _) => warn!(reason, "the broker accepts no messages for now"),
            (Some(_), Some(_)) => {}
            (None, _) | (_, None) => return,
        }
    }
}

async fn keep_watch(link: Weak<Link>, watched: String, every: Duration, mut lost: watch::Receiver<Option<String>>) {
    loop {
        tokio::select! {
            _ = lost.changed() => return,
            () = tokio::time::sleep(every) => {}
        }
        let Some(link) = link.upgrade() else { return };
        if !link.connection.status().connected() {
            link.fail("the connection is closed");
        } else if !link.connection.status().blocked() {
            // A failure ends the link by itself.
            let _ = link.look_up_name(&watched).await;
        }
    }
}

async fn connect(options: Arc<Options>, runtime: TokioRuntime, socket: Socket) -> Result<lapin::Connection, Failure> {
    let password = options.password().map_err(|reason| refused(&options, reason))?;
    let uri = AMQPUri {
        scheme: if options.tls { AMQPScheme::AMQPS } else { AMQPScheme::AMQP },
        authority: AMQPAuthority {
            userinfo: AMQPUserInfo { username: options.user.clone(), password },
            host: options.host.clone(),
            port: options.port,
        },
        vhost: options.vhost.clone(),
        query: AMQPQueryString { heartbeat: Some(options.heartbeat.as_secs() as u16), ..AMQPQueryString::default() },
    };
    let named = ConnectionProperties::default().with_connection_name(format!("basin {}", std::process::id()).into());
    let dialled = Arc::clone(&options);
    let connecting = lapin::Connection::connector(
        uri,
        runtime,
        async move |_, runtime| {
            let stream = timeout(dialled.heartbeat, dial(&dialled, &runtime, &socket)).await;
            Ok(stream.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?)
        },
        named,
    );
    connecting.await.map_err(|error| refusal(&options, &error))
}

async fn dial(options: &Options, runtime: &TokioRuntime, socket: &Socket) -> io::Result<Stream> {
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((options.host.as_str(), options.port)).await?.collect();
    let stream: Stream = AsyncTcpStream::connect(runtime, addresses).await?;
    if let AsyncTcpStream::Plain(plain) = &stream {
        *socket.lock() = Some(plain.get_ref().as_fd().try_clone_to_owned()?.into());
    }
    if !options.tls {
        return Ok(stream);
    }
    stream.into_tls(&options.host, options.tls_config()?.as_ref()).await
}

/// Reads the broker's product and version, which lapin does not expose.
async fn greeting(options: &Options, runtime: &TokioRuntime) -> io::Result<String> {
    let mut stream = dial(options, runtime, &Socket::default()).await?;
    stream.write_all(b"AMQP\x00\x00\x09\x01").await?;
    stream.flush().await?;
    // Type, channel and length of the frame.
    let mut head = [0; 7];
    stream.read_exact(&mut head).await?;
    let length = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
    if head[..3] != [1, 0, 0] || length > GREETING_BYTES {
        return Err(io::Error::other("the server is not an AMQP 0-9-1 broker"));
    }
    let mut frame = vec![0; length];
    stream.read_exact(&mut frame).await?;
    let start = frame.strip_prefix(&[0, 10, 0, 10]).and_then(|body| lapin::protocol::connection::parse_start(body).ok());
    let (_, start) = start.ok_or_else(|| io::Error::other("the broker's greeting cannot be read"))?;
    let property = |name| text(&start.server_properties, name).unwrap_or_else(|| "unknown".into());
    Ok(format!("{} {}", property("product"), property("version")))
}

fn code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}

fn refusal(options: &Options, error: &lapin::Error) -> Failure {
    // The broker names the user in some of its texts.
    let reason = error.to_string().replace(&format!("user '{}'", options.user), "this user");
    match code(error) {
        Some(ACCESS_REFUSED | NOT_ALLOWED) => refused(options, reason),
        _ => match error.kind() {
            ErrorKind::IOError(error) if error.kind() == io::ErrorKind::InvalidData => refused(options, reason),
            _ => Failure::Lost(reason),
        },
    }
}

fn unreachable(options: &Options, error: io::Error) -> Failure {
    match error.kind() {
        // An untrusted certificate has this kind, too.
        io::ErrorKind::InvalidData => refused(options, error.to_string()),
        _ => Failure::Lost(error.to_string()),
    }
}

fn refused(options: &Options, reason: String) -> Failure {
    Failure::Lasting(Error::Refused(options.address(), reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        assert!(!takes_consumer_timeout("RabbitMQ 3.10.8"));
        assert!(takes_consumer_timeout("RabbitMQ 3.12.0-rc.1"));
        assert!(takes_consumer_timeout("RabbitMQ 4.0.2"));
        assert!(!takes_consumer_timeout("Other 9.9"));
    }
}
