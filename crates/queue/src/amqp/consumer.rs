//! Deliveries: a pump keeps the subscription and fills an inbox, the consumer empties it, receipts settle.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use futures_util::StreamExt;
use lapin::types::DeliveryTag;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, warn};

use super::link::{Failure, Lane};
use super::message::received;
use super::patience::Patience;
use super::{Broker, failed, publish, refused_until};
use crate::{Channel, Error, Message, Outcome, check_open};

/// A subscription that lived this long resets the pauses.
const SUCCESS: Duration = Duration::from_secs(5);
/// Limit of releasing the deliveries in the inbox.
pub(super) const TIDY: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Consumer {
    subscription: Arc<Subscription>,
    _stop: DropGuard,
}

/// What a consumer and its pump share.
#[derive(Debug)]
struct Subscription {
    broker: Broker,
    channel: Channel,
    prefetch: u16,
    /// Deliveries that the consumer has not taken yet; the prefetch bounds it.
    inbox: Mutex<VecDeque<(Message, Receipt)>>,
    /// The error that ended the pump.
    failure: OnceLock<Error>,
    /// Signals the consumer that `inbox` or `failure` changed.
    changed: Notify,
    /// The consumer is gone, or the queue closed.
    stopped: CancellationToken,
}

impl Consumer {
    /// Subscribes. A task keeps the subscription until the consumer is dropped.
    pub(super) async fn start(broker: &Broker, channel: Channel, prefetch: u16) -> Result<Consumer, Error> {
        let stopped = broker.0.closed.child_token();
        let _stop = stopped.clone().drop_guard();
        let (inbox, failure, changed) = Default::default();
        let subscription = Arc::new(Subscription { broker: broker.clone(), channel, prefetch, inbox, failure, changed, stopped });
        let (ready, started) = oneshot::channel();
        {
            let mut pumps = broker.pumps();
            while pumps.try_join_next().is_some() {}
            pumps.spawn_on(Arc::clone(&subscription).pump(ready), &broker.0.runtime);
        }
        match started.await {
            Ok(()) => Ok(Consumer { subscription, _stop }),
            Err(_) => Err(subscription.failure.get().cloned().unwrap_or(Error::Closed("consume"))),
        }
    }

    pub(crate) async fn next(&mut self) -> Result<Option<(Message, Receipt)>, Error> {
        let closed = &self.subscription.broker.0.closed;
        while !closed.is_cancelled() {
            while let Some((message, receipt)) = { self.subscription.inbox().pop_front() } {
                // The broker delivers it again.
                if !receipt.lane.link.is_lost() {
                    return Ok(Some((message, receipt)));
                }
            }
            if let Some(error) = self.subscription.failure.get() {
                return Err(error.clone());
            }
            tokio::select! {
                () = self.subscription.changed.notified() => {}
                () = closed.cancelled() => {}
            }
        }
        Ok(None)
    }
}

impl Subscription {
    fn inbox(&self) -> MutexGuard<'_, VecDeque<(Message, Receipt)>> {
        self.inbox.lock().expect("nothing panics while it holds the lock")
    }

    fn fail(&self, error: Error) {
        self.failure.get_or_init(|| error);
        self.changed.notify_one();
    }

    /// Keeps the subscription, over all connections, until it is stopped.
    async fn pump(self: Arc<Self>, ready: oneshot::Sender<()>) {
        let mut ready = Some(ready);
        let options = &self.broker.0.options;
        let mut patience = Patience::new(options.give_up);
        loop {
            let link = tokio::select! {
                link = self.broker.link("consume", patience.deadline) => link,
                () = self.stopped.cancelled() => return,
            };
            let link = match link {
                Ok(link) => link,
                Err(Error::Closed(_)) => return,
                Err(error) => return self.fail(error),
            };
            let since = Instant::now();
            let reason = match link.subscribe(self.channel, self.prefetch).await {
                Ok((lane, deliveries)) => {
                    ready.take().map(|ready| ready.send(()));
                    match self.receive(&Arc::new(lane), deliveries).await {
                        Ok(()) => return,
                        Err(failure) => failure.to_string(),
                    }
                }
                Err(Failure::Lasting(error)) => return self.fail(error),
                Err(failure) => failure.to_string(),
            };
            // Any end of the subscription ends the connection, too.
            link.fail(format!("no deliveries of {}: {reason}", self.channel));
            if since.elapsed() >= SUCCESS {
                patience = Patience::new(options.give_up);
            }
            if !patience.pause().await {
                return self.fail(failed(options, "consume", options.give_up, Failure::Lost(reason)));
            }
        }
    }

    /// Fills the inbox until the subscription is stopped; fails if it is lost.
    async fn receive(&self, lane: &Arc<Lane>, mut deliveries: lapin::Consumer) -> Result<(), Failure> {
        let mut checks = tokio::time::interval(self.broker.0.options.watch_interval());
        checks.reset();
        loop {
            let delivery = tokio::select! {
                () = self.stopped.cancelled() => {
                    if !matches!(timeout(TIDY, self.tidy(lane, &mut deliveries)).await, Ok(Ok(()))) {
                        debug!(channel = %self.channel, "some deliveries were not released; the broker redelivers them");
                    }
                    return Ok(());
                }
                reason = lane.link.lost() => return Err(Failure::Lost(reason)),
                // Consumers do not always hear that a queue was deleted and declared anew.
                _ = checks.tick() => match lane.link.look_up(self.channel).await?.consumer_count() {
                    0 => return Err(Failure::Lost("the broker forgot the subscription".into())),
                    _ => continue,
                },
                delivery = deliveries.next() => delivery,
            };
            let Some(delivery) = delivery else { return Err(Failure::Lost("the broker ended the subscription".into())) };
            let delivery = delivery.map_err(|error| Failure::Lost(error.to_string()))?;
            let (message, receipt) = self.open(lane, delivery).await?;
            self.place(message, receipt).await?;
        }
    }

    async fn open(&self, lane: &Arc<Lane>, delivery: lapin::message::Delivery) -> Result<(Message, Receipt), Failure> {
        let (tag, again) = (delivery.delivery_tag, delivery.redelivered);
        lane.hold(tag).await?;
        let message = received(self.channel, &delivery.properties, again, delivery.data);
        let receipt = Receipt { broker: self.broker.clone(), channel: self.channel, lane: Arc::clone(lane), tag, again };
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
        self.inbox().push_back((message, receipt));
        self.changed.notify_one();
        Ok(())
    }

    /// Ends the subscription, and releases the deliveries that were not taken.
    async fn tidy(&self, lane: &Arc<Lane>, deliveries: &mut lapin::Consumer) -> Result<(), Failure> {
        lane.cancel(deliveries).await?;
        let mut left = std::mem::take(&mut *self.inbox());
        while let Some(Ok(delivery)) = deliveries.next().await {
            left.push_back(self.open(lane, delivery).await?);
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
        check_open(&self.broker.0.closed, doing)?;
        let give_up = self.broker.0.options.give_up;
        let settled = tokio::select! {
            settled = self.apply(message, outcome) => settled,
            () = refused_until(&self.lane.link, Instant::now() + give_up) => {
                Err(Failure::NotTaken("the broker does not accept the operation".into()))
            }
        };
        match settled {
            Ok(()) => Ok(()),
            Err(Failure::Lost(reason)) => {
                check_open(&self.broker.0.closed, doing)?;
                warn!(channel = %self.channel, reason, "cannot {doing}: its connection is lost; the message is delivered again");
                Ok(())
            }
            Err(failure) => Err(failed(&self.broker.0.options, doing, give_up, failure)),
        }
    }

    async fn apply(&self, message: Message, outcome: Outcome) -> Result<(), Failure> {
        let limit = self.broker.0.options.delivery_limit;
        match message.settled(self.channel, limit, outcome) {
            None => self.lane.acknowledge(self.tag).await,
            Some((to, copy)) => self.replace(to, copy).await,
        }
    }

    /// Publishes `copy`, and only then acknowledges the original. On this connection only: on another one the original is
    /// delivered again.
    async fn replace(&self, to: Channel, copy: Message) -> Result<(), Failure> {
        let copy = [copy];
        let mut patience = Patience::new(self.broker.0.options.give_up);
        while let Err(failure) = publish(Arc::clone(&self.lane.link), to, &copy).await {
            if !matches!(failure, Failure::NotTaken(_)) || !patience.pause().await {
                return Err(failure);
            }
        }
        self.lane.acknowledge(self.tag).await
    }

    /// Counts a dropped delivery as failed.
    pub(crate) fn abandon(self, message: Message) {
        if self.broker.0.closed.is_cancelled() || self.lane.link.is_lost() {
            return;
        }
        self.broker.0.runtime.clone().spawn(async move {
            // If this fails, the broker redelivers and counts when the connection ends.
            if let Err(failure) = self.apply(message, Outcome::Failed).await {
                self.lane.link.fail(failure.to_string());
            }
        });
    }
}
