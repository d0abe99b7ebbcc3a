//! The queue of one process: three lists in memory.
//!
//! Nothing survives the process: the coordinator plans again from the store. The lists have no bound; the publisher limits
//! its window.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::listener::{Listener, WAITING};
use crate::{Channel, Error, Message, Outcome, check_open};

/// The right to act alone under a name, and what tells its end.
pub(crate) type Seat = (OwnedMutexGuard<()>, CancellationToken);

#[derive(Clone, Debug)]
pub(crate) struct Broker(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    delivery_limit: u32,
    closed: CancellationToken,
    /// One for each [`Channel`].
    lists: [List; 3],
    leaderships: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    broadcasts: tokio::sync::broadcast::Sender<Vec<u8>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}

#[derive(Debug)]
struct List {
    messages: Mutex<VecDeque<Message>>,
    /// One permit for each message; taken, and forgotten, before the message is popped.
    waiting: Semaphore,
}

impl List {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Message>> {
        self.messages.lock().expect("nothing panics while it holds the lock")
    }

    /// Adds a message at the end, or at the front if it was `returned`.
    fn push(&self, message: Message, returned: bool) {
        let mut messages = self.lock();
        if returned {
            messages.push_front(message);
        } else {
            messages.push_back(message);
        }
        self.waiting.add_permits(1);
    }

    fn clear(&self) {
        // A message goes with its permit; one whose permit is taken goes to the taker.
        while let Ok(permit) = self.waiting.try_acquire() {
            permit.forget();
            self.lock().pop_front();
        }
    }

    async fn pop(&self) -> Message {
        self.waiting.acquire().await.expect("never closed").forget();
        self.lock().pop_front().expect("there is a message for each permit")
    }
}

impl Broker {
    pub(crate) fn new(delivery_limit: u32) -> Broker {
        let lists = std::array::from_fn(|_| List { messages: Mutex::default(), waiting: Semaphore::new(0) });
        let (closed, broadcasts) = (CancellationToken::new(), tokio::sync::broadcast::Sender::new(WAITING));
        Broker(Arc::new(Shared { delivery_limit, closed, lists, leaderships: Mutex::default(), broadcasts }))
    }

    pub(crate) fn publish_all(&self, channel: Channel, messages: Vec<Message>) -> Result<(), Error> {
        check_open(&self.0.closed, "publish")?;
        messages.into_iter().for_each(|message| self.list(channel).push(message, false));
        Ok(())
    }

    pub(crate) fn consume(&self, channel: Channel, prefetch: u16) -> Result<Consumer, Error> {
        check_open(&self.0.closed, "consume")?;
        let places = Arc::new(Semaphore::new(usize::from(prefetch.max(1))));
        Ok(Consumer { broker: self.clone(), channel, places })
    }

    pub(crate) fn depth(&self, channel: Channel) -> Result<usize, Error> {
        check_open(&self.0.closed, "count messages")?;
        Ok(self.list(channel).lock().len())
    }

    pub(crate) fn reset(&self, channel: Channel) -> Result<(), Error> {
        check_open(&self.0.closed, "reset a queue")?;
        self.list(channel).clear();
        Ok(())
    }

    pub(crate) async fn lead(&self, name: &str) -> Result<Seat, Error> {
        let seat = {
            let mut leaderships = self.0.leaderships.lock().expect("nothing panics while it holds the lock");
            Arc::clone(leaderships.entry(name.to_owned()).or_default())
        };
        tokio::select! {
            biased;
            () = self.0.closed.cancelled() => Err(Error::Closed("lead")),
            seat = seat.lock_owned() => Ok((seat, self.0.closed.clone())),
        }
    }

    pub(crate) fn broadcast(&self, payload: Vec<u8>) -> Result<(), Error> {
        check_open(&self.0.closed, "broadcast")?;
        // There may be no listener.
        let _ = self.0.broadcasts.send(payload);
        Ok(())
    }

    pub(crate) fn listen(&self) -> Listener {
        Listener { messages: self.0.broadcasts.subscribe(), closed: self.0.closed.clone(), _stop: None }
    }

    pub(crate) fn close(&self) {
        self.0.closed.cancel();
    }

    fn list(&self, channel: Channel) -> &List {
        &self.0.lists[channel as usize]
    }
}

#[derive(Debug)]
pub(crate) struct Consumer {
    broker: Broker,
    channel: Channel,
    /// One permit for each delivery that may be unsettled.
    places: Arc<Semaphore>,
}

impl Consumer {
    pub(crate) async fn next(&mut self) -> Option<(Message, Receipt)> {
        let Consumer { broker, channel, places } = self;
        let take = async {
            let place = Arc::clone(places).acquire_owned().await.expect("never closed");
            (broker.list(*channel).pop().await, place)
        };
        tokio::select! {
            biased;
            () = broker.0.closed.cancelled() => None,
            (message, place) = take => {
                Some((message, Receipt { broker: broker.clone(), channel: *channel, _place: place }))
            }
        }
    }
}

/// The right to settle one delivery.
#[derive(Debug)]
pub(crate) struct Receipt {
    broker: Broker,
    channel: Channel,
    _place: OwnedSemaphorePermit,
}

impl Receipt {
    pub(crate) fn settle(self, doing: &'static str, message: Message, outcome: Outcome) -> Result<(), Error> {
        check_open(&self.broker.0.closed, doing)?;
        let returned = matches!(outcome, Outcome::Returned);
        if let Some((channel, message)) = message.settled(self.channel, self.broker.0.delivery_limit, outcome) {
            self.broker.list(channel).push(message, returned);
        }
        Ok(())
    }
}
