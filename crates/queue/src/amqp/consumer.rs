//! Deliveries: a pump keeps the subscription and fills an inbox, the consumer empties it, receipts settle.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::StreamExt;
use lapin::types::DeliveryTag;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use super::link::{Failure, Lane, Link};
use super::message::received;
use super::patience::Patience;
use super::{Broker, describe, failed, publish};
use crate::{Channel, Error, Message, Outcome};

/// A subscription that lived this long resets the pauses.
const SUCCESS: Duration = Duration::from_secs(5);
/// Limit of releasing the deliveries in the inbox.
pub(super) const TIDY: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Consumer {
    broker: Broker,
    subscription: Arc<Subscription>,
}

/// State shared by a consumer and its pump.
#[derive(Debug)]
struct Subscription {
    /// Deliveries that the consumer has not taken yet; the prefetch bounds it.
    inbox: Mutex<VecDeque<(Message, Receipt)>>,
    /// The error that ended the pump.
    failure: Mutex<Option<Error>>,
    /// Signals the consumer that `inbox` or `failure` changed.
    changed: Notify,
    /// Changes to true once, when the consumer is gone.
    stop: watch::Sender<bool>,
}

impl Subscription {
    fn inbox(&self) -> MutexGuard<'_, VecDeque<(Message, Receipt)>> {
        self.inbox.lock().expect("nothing panics while it holds the lock")
    }

    fn failure(&self) -> Option<Error> {
        self.failure.lock().expect("nothing panics while it holds the lock").clone()
    }

    fn fail(&self, error: Error) {
        *self.failure.lock().expect("nothing panics while it holds the lock") = Some(error);
        self.changed.notify_one();
    }
}

impl Consumer {
    /// Subscribes. A task keeps the subscription until the consumer is dropped.
    pub(super) async fn start(broker: &Broker, channel: Channel, prefetch: u16) -> Result<Consumer, Error> {
        let subscription = Arc::new(Subscription {
            inbox: Mutex::default(),
            failure: Mutex::default(),
            changed: Notify::new(),
            stop: watch::Sender::new(false),
        });
        let (ready, started) = oneshot::channel();
        let consumer = Consumer { broker: broker.clone(), subscription: Arc::clone(&subscription) };
        let pump = Pump { broker: broker.clone(), channel, prefetch, subscription };
        broker.register(broker.0.runtime.spawn(pump.run(ready)));
        match started.await {
            Ok(()) => Ok(consumer),
            Err(_) => Err(consumer.subscription.failure().unwrap_or(Error::Closed("consume"))),
        }
    }

    pub(crate) async fn next(&mut self) -> Result<Option<(Message, Receipt)>, Error> {
        let mut closed = self.broker.0.closed.subscribe();
        loop {
            if *closed.borrow() {
                return Ok(None);
            }
            while let Some((message, receipt)) = { self.subscription.inbox().pop_front() } {
                // The broker delivers it again.
                if !receipt.link.is_lost() {
                    return Ok(Some((message, receipt)));
                }
            }
            if let Some(error) = self.subscription.failure() {
                return Err(error);
            }
            tokio::select! {
                () = self.subscription.changed.notified() => {}
                _ = closed.wait_for(|closed| *closed) => {}
            }
        }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.subscription.stop.send_replace(true);
    }
}

struct Pump {
    broker: Broker,
    channel: Channel,
    prefetch: u16,
    subscription: Arc<Subscription>,
}

/// How a subscription ended.
enum End {
    /// The consumer was dropped, or the queue closed.
    Stopped,
    Lost(String),
}

impl Pump {
    async fn run(self, ready: oneshot::Sender<()>) {
        let mut ready = Some(ready);
        let mut patience = Patience::new(self.broker.0.options.give_up);
        loop {
            let link = tokio::select! {
                link = self.broker.link("consume", patience.deadline()) => link,
                () = self.stopped() => return,
            };
            let link = match link {
                Ok(link) => link,
                Err(Error::Closed(_)) => return,
                Err(error) => return self.subscription.fail(error),
            };
            let since = Instant::now();
            let reason = match link.subscribe(self.channel, self.prefetch).await {
                Ok((lane, deliveries)) => {
                    ready.take().map(|ready| ready.send(()));
                    match self.receive(&link, &Arc::new(lane), deliveries).await {
                        End::Stopped => return,
                        End::Lost(reason) => reason,
                    }
                }
                Err(Failure::Lasting(error)) => return self.subscription.fail(error),
                Err(Failure::Lost(reason) | Failure::NotTaken(reason)) => reason,
            };
            // Any end of the subscription ends the connection, too.
            link.fail(format!("no deliveries of {}: {reason}", self.channel));
            if since.elapsed() >= SUCCESS {
                patience.renew();
            }
            if !patience.pause().await {
                let (waited, at) = (self.broker.0.options.give_up, self.broker.0.options.address());
                return self.subscription.fail(Error::Unreachable { doing: "consume", at, waited, reason });
            }
        }
    }

    async fn stopped(&self) {
        let mut stop = self.subscription.stop.subscribe();
        let mut closed = self.broker.0.closed.subscribe();
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => {}
            _ = closed.wait_for(|closed| *closed) => {}
        }
    }

    async fn receive(&self, link: &Arc<Link>, lane: &Arc<Lane>, mut deliveries: lapin::Consumer) -> End {
        let mut checks = tokio::time::interval(self.broker.0.options.watch_interval());
        checks.reset();
        loop {
            let delivery = tokio::select! {
                () = self.stopped() => {
                    if !matches!(timeout(TIDY, self.tidy(link, lane, &mut deliveries)).await, Ok(Ok(()))) {
                        debug!(channel = %self.channel, "some deliveries were not released; the broker redelivers them");
                    }
                    return End::Stopped;
                }
                reason = link.lost() => return End::Lost(reason),
                // Consumers do not always hear that a queue was deleted and declared anew.
                _ = checks.tick() => match link.has_consumers(self.channel).await {
                    Ok(true) => continue,
                    Ok(false) => return End::Lost("the broker forgot the subscription".into()),
                    Err(failure) => return End::Lost(describe(failure)),
                },
                delivery = deliveries.next() => delivery,
            };
            match delivery {
                Some(Ok(delivery)) => {
                    let placed = async {
                        let (message, receipt) = self.open(link, lane, delivery).await?;
                        self.place(message, receipt).await
                    };
                    if let Err(failure) = placed.await {
                        return End::Lost(describe(failure));
                    }
                }
                Some(Err(error)) => return End::Lost(error.to_string()),
                None => return End::Lost("the broker ended the subscription".into()),
            }
        }
    }

    async fn open(
        &self,
        link: &Arc<Link>,
        lane: &Arc<Lane>,
        delivery: lapin::message::Delivery,
    ) -> Result<(Message, Receipt), Failure> {
        link.hold(lane, delivery.delivery_tag).await?;
        let message = received(self.channel, &delivery.properties, delivery.redelivered, delivery.data);
        let receipt = Receipt {
            broker: self.broker.clone(),
            link: Arc::clone(link),
            channel: self.channel,
            lane: Arc::clone(lane),
            tag: delivery.delivery_tag,
            again: delivery.redelivered,
        };
        Ok((message, receipt))
    }

    /// Puts a delivery into the inbox. A redelivered one is replaced by a copy with the new count instead.
    async fn place(&self, message: Message, receipt: Receipt) -> Result<(), Failure> {
        let dead = self.channel == Channel::DeadLetters;
        if !dead && message.failures >= self.broker.0.options.delivery_limit {
            warn!(channel = %self.channel, attempts = message.failures, "a message reached the delivery limit");
            return receipt.replace(Channel::DeadLetters, message.given_up(self.channel)).await;
        }
        if receipt.again {
            return receipt.replace(self.channel, message).await;
        }
        self.subscription.inbox().push_back((message, receipt));
        self.subscription.changed.notify_one();
        Ok(())
    }

    /// Ends the subscription, and releases the deliveries that were not taken.
    async fn tidy(&self, link: &Arc<Link>, lane: &Arc<Lane>, deliveries: &mut lapin::Consumer) -> Result<(), Failure> {
        link.ask("end a subscription", lane.cancel(deliveries)).await?;
        let mut left = std::mem::take(&mut *self.subscription.inbox());
        while let Some(Ok(delivery)) = deliveries.next().await {
            let (message, receipt) = self.open(link, lane, delivery).await?;
            left.push_back((message, receipt));
        }
        for (message, receipt) in left {
            receipt.apply(message, Outcome::Returned).await?;
        }
        Ok(())
    }
}

/// The right to settle one delivery, while its connection lives.
pub(crate) struct Receipt {
    broker: Broker,
    link: Arc<Link>,
    channel: Channel,
    lane: Arc<Lane>,
    tag: DeliveryTag,
    /// The broker delivered it before.
    again: bool,
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receipt").field("broker", &self.broker).field("channel", &self.channel).finish()
    }
}

impl Receipt {
    pub(crate) async fn settle(self, doing: &'static str, message: Message, outcome: Outcome) -> Result<(), Error> {
        self.broker.check_open(doing)?;
        let give_up = self.broker.0.options.give_up;
        let settled = match timeout(give_up, self.apply(message, outcome)).await {
            Ok(settled) => settled,
            Err(_) => Err(Failure::NotTaken("the broker does not accept the operation".into())),
        };
        match settled {
            Ok(()) => Ok(()),
            Err(Failure::Lost(reason)) => {
                self.broker.check_open(doing)?;
                warn!(channel = %self.channel, reason, "cannot {doing}: its connection is lost; the message is delivered again");
                Ok(())
            }
            Err(failure) => Err(failed(&self.broker.0.options, doing, give_up, failure)),
        }
    }

    async fn apply(&self, message: Message, outcome: Outcome) -> Result<(), Failure> {
        let limit = self.broker.0.options.delivery_limit;
        match message.settled(self.channel, limit, outcome) {
            None => self.link.acknowledge(&self.lane, self.tag).await,
            Some((to, copy)) => self.replace(to, copy).await,
        }
    }

    /// Publishes `copy`, and only then acknowledges the original. On this connection only: on another one the original is
    /// delivered again.
    async fn replace(&self, to: Channel, copy: Message) -> Result<(), Failure> {
        let copy = [copy];
        let mut patience = Patience::new(self.broker.0.options.give_up);
        while let Err(failure) = publish(Arc::clone(&self.link), to, &copy).await {
            if !matches!(failure, Failure::NotTaken(_)) || !patience.pause().await {
                return Err(failure);
            }
        }
        self.link.acknowledge(&self.lane, self.tag).await
    }

    /// Counts a dropped delivery as failed.
    pub(crate) fn abandon(self, message: Message) {
        if self.broker.is_closed() || self.link.is_lost() {
            return;
        }
        self.broker.0.runtime.clone().spawn(async move {
            // If this fails, the broker redelivers and counts when the connection ends.
            if let Err(failure) = self.apply(message, Outcome::Failed).await {
                self.link.fail(describe(failure));
            }
        });
    }
}
