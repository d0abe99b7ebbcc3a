//! The queue of one process: three lists in memory.
//!
//! Nothing survives the process, and nothing need: the coordinator plans again from the store. The lists have no bound;
//! who publishes keeps the window.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::{Channel, DeadLetter, Error, Message, Outcome};

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
        }))
    }

    pub(crate) fn publish(&self, channel: Channel, payload: Vec<u8>) -> Result<(), Error> {
        self.check_open("publish")?;
        self.list(channel).push_back(Message { payload, ..Message::default() });
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
    /// As many permits as deliveries may be unsettled.
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
    pub(crate) fn settle(self, doing: &'static str, mut message: Message, outcome: Outcome) -> Result<(), Error> {
        self.broker.check_open(doing)?;
        let here = self.broker.list(self.channel);
        let reason = match outcome {
            Outcome::Done => return Ok(()),
            Outcome::Returned => {
                here.push_front(message);
                return Ok(());
            }
            Outcome::Failed => {
                message.failures += 1;
                if message.failures < self.broker.0.delivery_limit || self.channel == Channel::DeadLetters {
                    here.push_back(message);
                    return Ok(());
                }
                format!("given up after {} deliveries", message.failures)
            }
            Outcome::Refused(reason) => {
                message.failures += 1;
                reason
            }
        };
        // A dead letter that is rejected keeps where it came from and how often it was tried.
        let (channel, attempts) = match message.dead_letter {
            Some(before) => (before.channel, before.attempts),
            None => (self.channel, message.failures),
        };
        let dead_letter = Some(DeadLetter { channel, reason, attempts });
        self.broker.0.dead_letters.push_back(Message { payload: message.payload, failures: 0, dead_letter });
        Ok(())
    }
}
