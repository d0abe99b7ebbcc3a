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

mod consumer;
mod link;
mod message;
mod options;
mod patience;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};

pub(crate) use self::consumer::{Consumer, Receipt};
use self::link::{Failure, Link};
use self::message::queue_name;
use self::options::{Options, name_part};
use self::patience::Patience;
use crate::{Channel, Error, Message};

/// Messages that are published before their confirmations are awaited.
const WINDOW: usize = 256;
/// Pause between two attempts to become the leader.
const CANDIDATE_PAUSE: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub(crate) struct Broker(Arc<Shared>);

struct Shared {
    options: Arc<Options>,
    /// Settles deliveries that are dropped outside the runtime.
    runtime: Handle,
    state: watch::Receiver<State>,
    /// Changes to true once.
    closed: watch::Sender<bool>,
    pumps: Mutex<Vec<JoinHandle<()>>>,
    server: Mutex<String>,
}

#[derive(Clone)]
enum State {
    Up(Arc<Link>),
    Down(String),
    /// The first connection was refused; `open` takes the error.
    Refused(Arc<Mutex<Option<Error>>>),
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker").field("at", &self.0.options.address()).field("prefix", &self.0.options.prefix).finish()
    }
}

impl Broker {
    pub(crate) async fn open(url: &str) -> Result<Broker, Error> {
        let options = Arc::new(Options::parse(url)?);
        let closed = watch::Sender::new(false);
        let (report, state) = watch::channel(State::Down("not connected yet".into()));
        let supervisor = supervise(Arc::clone(&options), report, closed.subscribe());
        let runtime = Handle::current();
        runtime.spawn(supervisor);
        let broker =
            Broker(Arc::new(Shared { options, runtime, state, closed, pumps: Mutex::default(), server: Mutex::default() }));
        let link = broker.link("open the queue", broker.deadline()).await?;
        *broker.0.server.lock().expect("nothing panics while it holds the lock") = link.server().name();
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

    pub(crate) fn server(&self) -> String {
        self.0.server.lock().expect("nothing panics while it holds the lock").clone()
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.0.options.give_up
    }

    fn is_closed(&self) -> bool {
        *self.0.closed.borrow()
    }

    fn check_open(&self, doing: &'static str) -> Result<(), Error> {
        if self.is_closed() { Err(Error::Closed(doing)) } else { Ok(()) }
    }

    /// Waits for a live connection.
    async fn link(&self, doing: &'static str, deadline: Instant) -> Result<Arc<Link>, Error> {
        let mut state = self.0.state.clone();
        let mut closed = self.0.closed.subscribe();
        let mut reason = String::from("not connected yet");
        loop {
            self.check_open(doing)?;
            match &*state.borrow_and_update() {
                State::Up(link) if !link.is_lost() => return Ok(Arc::clone(link)),
                State::Up(_) => {}
                State::Down(why) => reason.clone_from(why),
                State::Refused(error) => {
                    let error = error.lock().expect("nothing panics while it holds the lock").take();
                    return Err(error.unwrap_or(Error::Closed(doing)));
                }
            }
            tokio::select! {
                changed = state.changed() => changed.map_err(|_| Error::Closed(doing))?,
                _ = closed.wait_for(|closed| *closed) => {}
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
            let link = self.link(doing, patience.deadline()).await?;
            let failure = tokio::select! {
                done = work(link) => match done {
                    Ok(done) => return Ok(done),
                    Err(failure) => failure,
                },
                () = tokio::time::sleep_until(patience.deadline()) => Failure::Lost("the broker does not accept the operation".into()),
            };
            if matches!(failure, Failure::Lasting(_)) || !patience.pause().await {
                return Err(failed(&self.0.options, doing, self.0.options.give_up, failure));
            }
        }
    }

    pub(crate) async fn publish_all(&self, channel: Channel, messages: Vec<Message>) -> Result<(), Error> {
        self.check_open("publish")?;
        for window in messages.chunks(WINDOW) {
            self.on_link("publish", |link| publish(link, channel, window)).await?;
        }
        Ok(())
    }

    pub(crate) async fn depth(&self, channel: Channel) -> Result<usize, Error> {
        self.on_link("count messages", |link| async move { link.depth(channel).await }).await
    }

    pub(crate) async fn purge(&self, channel: Channel) -> Result<(), Error> {
        self.on_link("empty a queue", |link| async move { link.purge(channel).await }).await
    }

    pub(crate) async fn reset(&self, channel: Channel) -> Result<(), Error> {
        let deleted = |link: Arc<Link>| async move { link.delete(channel).await };
        self.on_link("reset a queue", deleted).await?;
        // Consumers of the deleted queue may end the connection now; any connection can declare it.
        self.on_link("reset a queue", |link| async move { link.declare(channel).await }).await
    }

    pub(crate) async fn consume(&self, channel: Channel, prefetch: u16) -> Result<Consumer, Error> {
        self.check_open("consume")?;
        Consumer::start(self, channel, prefetch.max(1)).await
    }

    fn register(&self, pump: JoinHandle<()>) {
        let mut pumps = self.pumps();
        pumps.retain(|pump| !pump.is_finished());
        pumps.push(pump);
    }

    fn pumps(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.0.pumps.lock().expect("nothing panics while it holds the lock")
    }

    pub(crate) async fn lead(&self, name: &str) -> Result<Leadership, Error> {
        let name = name_part(name)
            .ok_or_else(|| Error::InvalidUrl("a leadership's name must have 1 to 60 characters of a-z A-Z 0-9 . _ -".into()))?;
        let queue = format!("{}.lead.{name}", self.0.options.prefix);
        let mut closed = self.0.closed.subscribe();
        tokio::select! {
            _ = closed.wait_for(|closed| *closed) => Err(Error::Closed("lead")),
            leadership = self.stand_for(queue) => leadership,
        }
    }

    async fn stand_for(&self, queue: String) -> Result<Leadership, Error> {
        loop {
            let link = connect_patiently(&self.0.options, "lead").await?;
            loop {
                match link.take(&queue).await {
                    Ok(true) => {
                        link.watch(queue);
                        return Ok(Leadership { link });
                    }
                    Ok(false) => tokio::time::sleep(CANDIDATE_PAUSE).await,
                    Err(Failure::Lasting(error)) => return Err(error),
                    Err(failure) => {
                        debug!(?failure, queue, "lost the connection while waiting for the leadership");
                        tokio::time::sleep(CANDIDATE_PAUSE).await;
                        break;
                    }
                }
            }
        }
    }

    pub(crate) async fn close(&self) {
        self.0.closed.send_replace(true);
        let pumps = std::mem::take(&mut *self.pumps());
        for mut pump in pumps {
            if timeout(2 * consumer::TIDY, &mut pump).await.is_err() {
                pump.abort();
            }
        }
        let state = self.0.state.borrow().clone();
        if let State::Up(link) = state {
            link.close().await;
        }
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
async fn supervise(options: Arc<Options>, state: watch::Sender<State>, mut closed: watch::Receiver<bool>) {
    let mut patience = Patience::new(options.give_up);
    let mut connected_before = false;
    loop {
        let mut gone = std::pin::pin!(async {
            tokio::select! {
                () = state.closed() => {}
                _ = closed.wait_for(|closed| *closed) => {}
            }
        });
        let connected = tokio::select! {
            connected = connect(&options) => connected,
            () = &mut gone => return,
        };
        let reason = match connected {
            Ok(link) => {
                info!(at = options.address(), server = link.server().name(), "connected to the queue");
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
                state.send_replace(State::Refused(Arc::new(Mutex::new(Some(error)))));
                return;
            }
            Err(failure) => describe(failure),
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

async fn connect(options: &Arc<Options>) -> Result<Arc<Link>, Failure> {
    // In a task of its own: an unfinished connection is still closed when the caller's future is dropped.
    let options = Arc::clone(options);
    let connecting = async move {
        let link = Link::open(&options).await?;
        link.declare_all().await?;
        link.watch(queue_name(&options.prefix, Channel::Jobs));
        Ok(link)
    };
    tokio::spawn(connecting).await.unwrap_or_else(|e| Err(Failure::Lost(e.to_string())))
}

/// A second connection beside the supervisor's, with no queue declared.
async fn connect_patiently(options: &Arc<Options>, doing: &'static str) -> Result<Arc<Link>, Error> {
    let give_up = options.give_up;
    let mut patience = Patience::new(give_up);
    loop {
        let connecting = Arc::clone(options);
        let opened = tokio::spawn(async move { Link::open(&connecting).await }).await;
        match opened.unwrap_or_else(|e| Err(Failure::Lost(e.to_string()))) {
            Ok(link) => return Ok(link),
            Err(failure @ Failure::Lasting(_)) => return Err(failed(options, doing, give_up, failure)),
            Err(failure) if !patience.pause().await => return Err(failed(options, doing, give_up, failure)),
            Err(_) => {}
        }
    }
}

fn describe(failure: Failure) -> String {
    match failure {
        Failure::Lost(reason) | Failure::NotTaken(reason) => reason,
        Failure::Lasting(error) => error.to_string(),
    }
}

fn failed(options: &Options, doing: &'static str, waited: Duration, failure: Failure) -> Error {
    match failure {
        Failure::Lasting(error) => error,
        Failure::Lost(reason) | Failure::NotTaken(reason) => Error::Unreachable { doing, at: options.address(), waited, reason },
    }
}

/// The right to act alone under a name, while its connection lives.
pub(crate) struct Leadership {
    link: Arc<Link>,
}

impl fmt::Debug for Leadership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leadership").field("lost", &self.link.is_lost()).finish()
    }
}

impl Leadership {
    pub(crate) async fn lost(&self) {
        self.link.lost().await;
    }
}
