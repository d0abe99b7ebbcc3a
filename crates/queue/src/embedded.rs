//! The queue of one process: three lists in memory.
//!
//! Nothing survives the process: the coordinator plans again from the store. The lists have no bound; the publisher limits
//! its window.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore, watch};

use crate::{Channel, Error, Message, Outcome};

#[derive(Clone, Debug)]
pub(crate) struct Broker(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    delivery_limit: u32,
    /// Changes to true once.
    closed: watch::Sender<bool>,
    jobs: List,
    events: List,
    dead_letters: List,
    leaderships: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

#[derive(Debug)]
struct List {
    messages: Mutex<VecDeque<Message>>,
    /// One permit for each message; taken, and forgotten, before the message is popped.
    waiting: Semaphore,
}

impl List {
    fn new() -> List {
        List { messages: Mutex::default(), waiting: Semaphore::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Message>> {
        self.messages.lock().expect("nothing panics while it holds the lock")
    }

    fn push_back(&self, message: Message) {
        self.lock().push_back(message);
        self.waiting.add_permits(1);
    }

    fn push_front(&self, message: Message) {
        self.lock().push_front(message);
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
        Broker(Arc::new(Shared {
            delivery_limit,
            closed: watch::Sender::new(false),
            jobs: List::new(),
            events: List::new(),
            dead_letters: List::new(),
            leaderships: Mutex::default(),
        }))
    }

    pub(crate) fn publish_all(&self, channel: Channel, messages: Vec<Message>) -> Result<(), Error> {
        self.check_open("publish")?;
        messages.into_iter().for_each(|message| self.list(channel).push_back(message));
        Ok(())
    }

    pub(crate) fn consume(&self, channel: Channel, prefetch: u16) -> Result<Consumer, Error> {
        self.check_open("consume")?;
        let places = Arc::new(Semaphore::new(usize::from(prefetch.max(1))));
        Ok(Consumer { broker: self.clone(), closed: self.0.closed.subscribe(), channel, places })
    }

    pub(crate) fn depth(&self, channel: Channel) -> Result<usize, Error> {
        self.check_open("count messages")?;
        Ok(self.list(channel).lock().len())
    }

    pub(crate) fn reset(&self, channel: Channel) -> Result<(), Error> {
        self.check_open("reset a queue")?;
        self.list(channel).clear();
        Ok(())
    }

    pub(crate) async fn lead(&self, name: &str) -> Result<Leadership, Error> {
        let seat = {
            let mut leaderships = self.0.leaderships.lock().expect("nothing panics while it holds the lock");
            Arc::clone(leaderships.entry(name.to_owned()).or_default())
        };
        let mut closed = self.0.closed.subscribe();
        let seat = tokio::select! {
            biased;
            _ = closed.wait_for(|closed| *closed) => return Err(Error::Closed("lead")),
            seat = seat.lock_owned() => seat,
        };
        Ok(Leadership { _seat: seat, closed })
    }

    pub(crate) fn close(&self) {
        self.0.closed.send_replace(true);
    }

    fn check_open(&self, doing: &'static str) -> Result<(), Error> {
        if *self.0.closed.borrow() { Err(Error::Closed(doing)) } else { Ok(()) }
    }

    fn list(&self, channel: Channel) -> &List {
        match channel {
            Channel::Jobs => &self.0.jobs,
            Channel::Events => &self.0.events,
            Channel::DeadLetters => &self.0.dead_letters,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Consumer {
    broker: Broker,
    closed: watch::Receiver<bool>,
    channel: Channel,
    /// One permit for each delivery that may be unsettled.
    places: Arc<Semaphore>,
}

impl Consumer {
    pub(crate) async fn next(&mut self) -> Option<(Message, Receipt)> {
        let Consumer { broker, closed, channel, places } = self;
        let take = async {
            let place = Arc::clone(places).acquire_owned().await.expect("never closed");
            (broker.list(*channel).pop().await, place)
        };
        tokio::select! {
            biased;
            _ = closed.wait_for(|closed| *closed) => None,
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
        self.broker.check_open(doing)?;
        let returned = matches!(outcome, Outcome::Returned);
        match message.settled(self.channel, self.broker.0.delivery_limit, outcome) {
            None => {}
            Some((channel, message)) if returned => self.broker.list(channel).push_front(message),
            Some((channel, message)) => self.broker.list(channel).push_back(message),
        }
        Ok(())
    }
}

/// The right to act alone under a name.
#[derive(Debug)]
pub(crate) struct Leadership {
    _seat: OwnedMutexGuard<()>,
    closed: watch::Receiver<bool>,
}

impl Leadership {
    pub(crate) async fn lost(&mut self) {
        // An error means that the queue itself is gone.
        let _ = self.closed.wait_for(|closed| *closed).await;
    }
}
