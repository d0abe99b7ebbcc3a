//! The queue of a fleet: quorum queues of RabbitMQ, reached through lapin.
//!
//! * A supervisor keeps one connection ([`link::Link`]). Any failure ends it, and the next one is made after growing
//!   pauses; lapin's own recovery is not used, because it can fail forever without an error.
//! * Operations and consumers wait for the next connection, but no longer than `give_up`: then they fail, so that a
//!   service stops with an error instead of waiting forever.
//! * A delivery belongs to its connection. If that is lost, the message is delivered again: the store decides which of two
//!   results counts.
//! * A header counts failures (see [`message`]): a message that goes back is published again, and only then is the first copy
//!   acknowledged. A crash between the two leaves two copies; the contract allows it.

mod broadcast;
mod consumer;
mod link;
mod message;
mod options;
mod patience;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use telemetry::messaging::Destination;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

pub(crate) use self::consumer::{Consumer, Receipt};
use self::link::Failure;
pub(crate) use self::link::Link;
use self::options::{Options, name_part};
use self::patience::Patience;
use crate::{Channel, Error, Message, check_open};

/// Messages that are published before their confirmations are awaited.
const WINDOW: usize = 256;
/// Pause between two attempts to become the leader.
const CANDIDATE_PAUSE: Duration = Duration::from_secs(1);

/// A leadership: its subscription and its connection.
pub(crate) type Seat = (JoinSet<()>, Arc<Link>);

#[derive(Clone)]
pub(crate) struct Broker(Arc<Shared>);

struct Shared {
    options: Arc<Options>,
    /// Settles deliveries that are dropped outside the runtime.
    runtime: Handle,
    state: watch::Receiver<State>,
    closed: CancellationToken,
    pumps: Mutex<JoinSet<()>>,
    /// Product and version, set by the first connection.
    server: OnceLock<String>,
}

#[derive(Clone)]
enum State {
    Up(Arc<Link>),
    Down(String),
    /// The first connection was refused.
    Refused(Error),
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker").field("at", &self.0.options.address()).field("prefix", &self.0.options.prefix).finish()
    }
}

impl Broker {
    pub(crate) async fn open(url: &str) -> Result<Broker, Error> {
        let options = Arc::new(Options::parse(url)?);
        let closed = CancellationToken::new();
        let (report, state) = watch::channel(State::Down("not connected yet".into()));
        let (runtime, deadline) = (Handle::current(), Instant::now() + options.give_up);
        runtime.spawn(supervise(Arc::clone(&options), report, closed.clone()));
        let (pumps, server) = Default::default();
        let broker = Broker(Arc::new(Shared { options, runtime, state, closed, pumps, server }));
        let link = broker.link("open the queue", deadline).await?;
        broker.0.server.get_or_init(|| link.server.clone());
        Ok(broker)
    }

    /// Deletes a queue that cannot be opened, and declares it anew.
    pub(crate) async fn reset_at(url: &str, channel: Channel) -> Result<(), Error> {
        let options = Arc::new(Options::parse(url)?);
        let link = connect_patiently(&options, "reset a queue").await?;
        let done = async {
            link.delete(channel).await?;
            link.declare(channel).await
        };
        let done = done.await.map_err(|failure| failed(&options, "reset a queue", Duration::ZERO, failure));
        link.close().await;
        done
    }

    pub(crate) fn destination(&self, channel: Channel) -> Destination {
        let options = &self.0.options;
        let server = Some((options.host.clone(), options.port));
        Destination { system: "rabbitmq", name: options.queue_name(channel), server }
    }

    pub(crate) fn server(&self) -> String {
        self.0.server.get().cloned().unwrap_or_default()
    }

    /// Waits for a live connection.
    async fn link(&self, doing: &'static str, deadline: Instant) -> Result<Arc<Link>, Error> {
        let mut state = self.0.state.clone();
        let mut reason = String::from("not connected yet");
        loop {
            check_open(&self.0.closed, doing)?;
            match &*state.borrow_and_update() {
                State::Up(link) if !link.is_lost() => return Ok(Arc::clone(link)),
                State::Up(_) => {}
                State::Down(why) => reason.clone_from(why),
                State::Refused(error) => return Err(error.clone()),
            }
            tokio::select! {
                changed = state.changed() => changed.map_err(|_| Error::Closed(doing))?,
                () = self.0.closed.cancelled() => {}
                () = tokio::time::sleep_until(deadline) => {
                    return Err(failed(&self.0.options, doing, self.0.options.give_up, Failure::Lost(reason)));
                }
            }
        }
    }

    /// Does `work` on the current connection, and again on the next one if that is lost, until the deadline.
    async fn on_link<T, F>(&self, doing: &'static str, mut work: impl FnMut(Arc<Link>) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let mut patience = Patience::new(self.0.options.give_up);
        loop {
            let link = self.link(doing, patience.deadline).await?;
            let failure = tokio::select! {
                done = work(Arc::clone(&link)) => match done {
                    Ok(done) => return Ok(done),
                    Err(failure) => failure,
                },
                () = refused_until(&link, patience.deadline) => Failure::Lost("the broker does not accept the operation".into()),
            };
            if matches!(failure, Failure::Lasting(_)) || !patience.pause().await {
                return Err(failed(&self.0.options, doing, self.0.options.give_up, failure));
            }
        }
    }

    pub(crate) fn trouble(&self) -> Option<String> {
        match &*self.0.state.borrow() {
            State::Up(link) if link.is_blocked() => Some("the broker accepts no messages: it is short of memory or disk".into()),
            State::Up(link) if !link.is_lost() => None,
            State::Up(_) => Some("the connection to the broker is lost".into()),
            State::Down(why) => Some(why.clone()),
            State::Refused(error) => Some(error.to_string()),
        }
    }

    pub(crate) async fn publish_all(&self, channel: Channel, messages: Vec<Message>) -> Result<(), Error> {
        check_open(&self.0.closed, "publish")?;
        for window in messages.chunks(WINDOW) {
            self.on_link("publish", |link| publish(link, channel, window)).await?;
        }
        Ok(())
    }

    pub(crate) async fn depth(&self, channel: Channel) -> Result<usize, Error> {
        let found = self.on_link("count messages", |link| async move { link.look_up(channel).await }).await?;
        Ok(found.message_count() as usize)
    }

    pub(crate) async fn purge(&self, channel: Channel) -> Result<(), Error> {
        self.on_link("empty a queue", |link| async move { link.purge(channel).await }).await
    }

    pub(crate) async fn reset(&self, channel: Channel) -> Result<(), Error> {
        self.on_link("reset a queue", |link| async move { link.delete(channel).await }).await?;
        // Consumers of the deleted queue may end the connection now; any connection can declare it.
        self.on_link("reset a queue", |link| async move { link.declare(channel).await }).await
    }

    pub(crate) async fn consume(&self, channel: Channel, prefetch: u16) -> Result<Consumer, Error> {
        check_open(&self.0.closed, "consume")?;
        Consumer::start(self, channel, prefetch.max(1)).await
    }

    fn pumps(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.0.pumps.lock().expect("nothing panics while it holds the lock")
    }

    /// The leadership lasts as long as the returned connection.
    pub(crate) async fn lead(&self, name: &str) -> Result<Seat, Error> {
        let name = name_part(name)
            .ok_or_else(|| Error::InvalidUrl("a leadership's name must have 1 to 60 characters of a-z A-Z 0-9 . _ -".into()))?;
        let queue = format!("{}.lead.{name}", self.0.options.prefix);
        tokio::select! {
            () = self.0.closed.cancelled() => Err(Error::Closed("lead")),
            leadership = self.stand_for(queue) => leadership,
        }
    }

    async fn stand_for(&self, queue: String) -> Result<Seat, Error> {
        let mut told = false;
        loop {
            let link = connect_patiently(&self.0.options, "lead").await?;
            match link.stand(&queue, CANDIDATE_PAUSE).await {
                Ok(subscription) => {
                    link.watch(queue);
                    return Ok((subscription, link));
                }
                Err(Failure::Lasting(error)) => return Err(error),
                Err(failure) if !std::mem::replace(&mut told, true) => {
                    warn!(%failure, queue, "cannot ask for the leadership; trying again");
                }
                Err(failure) => debug!(%failure, queue, "cannot ask for the leadership"),
            }
            tokio::time::sleep(CANDIDATE_PAUSE).await;
        }
    }

    pub(crate) async fn close(&self) {
        self.0.closed.cancel();
        let mut pumps = std::mem::take(&mut *self.pumps());
        // Those that are late are aborted with the set.
        let _ = timeout(2 * consumer::TIDY, async move { while pumps.join_next().await.is_some() {} }).await;
        let state = self.0.state.borrow().clone();
        if let State::Up(link) = state {
            link.close().await;
        }
    }
}

/// Waits until the deadline, and on while the broker says that it is short of memory or disk.
async fn refused_until(link: &Link, deadline: Instant) {
    tokio::time::sleep_until(deadline).await;
    while link.is_blocked() && !link.is_lost() {
        tokio::time::sleep(link::NEWS).await;
    }
}

async fn publish(link: Arc<Link>, channel: Channel, messages: &[Message]) -> Result<(), Failure> {
    let published = link.publish(channel, messages).await;
    if let Err(Failure::NotTaken(reason)) = &published {
        warn!(reason, "the broker did not accept a message; publishing it again");
        // The queue may have been deleted just now.
        tokio::time::sleep(link::NEWS).await;
        link.declare(channel).await?;
    }
    published
}

/// Keeps a connection with all queues declared, until the queue is closed or its last handle is dropped.
async fn supervise(options: Arc<Options>, state: watch::Sender<State>, closed: CancellationToken) {
    let mut patience = Patience::new(options.give_up);
    let mut connected_before = false;
    loop {
        let mut gone = std::pin::pin!(async {
            tokio::select! {
                () = state.closed() => {}
                () = closed.cancelled() => {}
            }
        });
        let connected = tokio::select! {
            connected = connect(&options, true) => connected,
            () = &mut gone => return,
        };
        let reason = match connected {
            Ok(link) => {
                info!(at = options.address(), server = link.server, "connected to the queue");
                patience = Patience::new(options.give_up);
                connected_before = true;
                state.send_replace(State::Up(Arc::clone(&link)));
                let lost = tokio::select! {
                    reason = link.lost() => Some(reason),
                    () = &mut gone => None,
                };
                // On a close, `Broker::close` closes the connection.
                let Some(reason) = lost else { return };
                warn!(at = options.address(), reason, "lost the connection to the queue");
                reason
            }
            Err(Failure::Lasting(error)) if !connected_before => {
                state.send_replace(State::Refused(error));
                return;
            }
            Err(failure) => failure.to_string(),
        };
        debug!(at = options.address(), reason, "no connection to the queue");
        state.send_replace(State::Down(reason));
        tokio::select! {
            // It never stops trying; the waiting operations have the deadline.
            _ = patience.pause() => {}
            () = &mut gone => return,
        }
    }
}

async fn connect(options: &Arc<Options>, with_queues: bool) -> Result<Arc<Link>, Failure> {
    // In a task of its own: an unfinished connection is still closed when the caller's future is dropped.
    let options = Arc::clone(options);
    let connecting = async move {
        let link = Link::open(&options).await?;
        if with_queues {
            link.declare_all().await?;
            link.watch(options.queue_name(Channel::Jobs));
        }
        Ok(link)
    };
    tokio::spawn(connecting).await.unwrap_or_else(|e| Err(Failure::Lost(e.to_string())))
}

/// A second connection beside the supervisor's, with no queue declared.
async fn connect_patiently(options: &Arc<Options>, doing: &'static str) -> Result<Arc<Link>, Error> {
    let mut patience = Patience::new(options.give_up);
    loop {
        match connect(options, false).await {
            Ok(link) => return Ok(link),
            Err(failure) if matches!(failure, Failure::Lasting(_)) || !patience.pause().await => {
                return Err(failed(options, doing, options.give_up, failure));
            }
            Err(_) => {}
        }
    }
}

fn failed(options: &Options, doing: &'static str, waited: Duration, failure: Failure) -> Error {
    match failure {
        Failure::Lasting(error) => error,
        Failure::Lost(reason) | Failure::NotTaken(reason) => Error::Unreachable { doing, at: options.address(), waited, reason },
    }
}
