//! Broadcasts: a fanout exchange, and for each listener a queue that ends with its connection.
//!
//! They use AMQP channels of their own, and no failure of theirs ends the link: a broker that refuses the exchange costs the
//! broadcasts and nothing else.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, ExchangeKind};
use tokio::sync::broadcast;
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use super::link::{Failure, Link};
use super::{Broker, failed};
use crate::listener::{Listener, WAITING};
use crate::{Error, check_open};

/// Limit of sending a broadcast, and of each step of a listener's start.
const LIMIT: Duration = Duration::from_secs(5);
/// Pause after the broker refused a listener, or its subscription ended.
const AGAIN: Duration = Duration::from_secs(10);

impl Broker {
    pub(crate) async fn broadcast(&self, payload: Vec<u8>) -> Result<(), Error> {
        check_open(&self.0.closed, "broadcast")?;
        let link = self.link("broadcast", Instant::now() + LIMIT).await?;
        in_time(send(&link, &self.exchange(), &payload))
            .await
            .map_err(|reason| failed(&self.0.options, "broadcast", LIMIT, Failure::Lost(reason)))
    }

    pub(crate) fn listen(&self) -> Listener {
        let stopped = self.0.closed.child_token();
        let (messages, receiver) = broadcast::channel(WAITING);
        let (broker, stop) = (self.clone(), stopped.clone());
        self.0.runtime.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = broker.forward(messages) => {}
            }
        });
        Listener { messages: receiver, closed: self.0.closed.clone(), _stop: Some(stopped.drop_guard()) }
    }

    fn exchange(&self) -> String {
        format!("{}.broadcast", self.0.options.prefix)
    }

    /// Hands on what comes, over all connections.
    async fn forward(&self, messages: broadcast::Sender<Vec<u8>>) {
        let mut told = false;
        loop {
            // A connection that lasts long away is waited for, and the other users of the queue fail.
            let Ok(link) = self.link("listen", Instant::now() + self.0.options.give_up).await else {
                tokio::time::sleep(AGAIN).await;
                continue;
            };
            let exchange = self.exchange();
            match in_time(subscribe(&link, &exchange)).await {
                Ok((_channel, mut deliveries)) => {
                    told = false;
                    loop {
                        tokio::select! {
                            delivery = deliveries.next() => match delivery {
                                // There may be nobody who listens any more.
                                Some(Ok(delivery)) => drop(messages.send(delivery.data)),
                                _ => break,
                            },
                            _ = link.lost() => break,
                        }
                    }
                }
                Err(reason) if !std::mem::replace(&mut told, true) => {
                    warn!(exchange, reason, "cannot listen for broadcasts: changes of a run are seen later");
                }
                Err(reason) => debug!(exchange, reason, "cannot listen for broadcasts"),
            }
            tokio::time::sleep(AGAIN.mul_f64(rand::random_range(0.1..1.0))).await;
        }
    }
}

async fn in_time<T>(work: impl Future<Output = lapin::Result<T>>) -> Result<T, String> {
    match timeout(LIMIT, work).await {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(_) => Err("the broker does not respond".into()),
    }
}

async fn open(link: &Link, exchange: &str) -> lapin::Result<lapin::Channel> {
    let channel = link.spare_channel().await?;
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    channel.exchange_declare(exchange.into(), ExchangeKind::Fanout, options, FieldTable::default()).await?;
    Ok(channel)
}

async fn send(link: &Arc<Link>, exchange: &str, payload: &[u8]) -> lapin::Result<()> {
    let channel = open(link, exchange).await?;
    let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
    channel.basic_publish(exchange.into(), "".into(), options, payload, properties).await?.await?;
    // After this the broker has it.
    channel.close(200, "OK".into()).await
}

async fn subscribe(link: &Arc<Link>, exchange: &str) -> lapin::Result<(lapin::Channel, lapin::Consumer)> {
    let channel = open(link, exchange).await?;
    let name = format!("{exchange}.{:016x}", rand::random::<u64>());
    let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(WAITING as i64));
    channel.queue_declare(name.as_str().into(), options, arguments).await?;
    channel
        .queue_bind(name.as_str().into(), exchange.into(), "".into(), QueueBindOptions::default(), FieldTable::default())
        .await?;
    let options = BasicConsumeOptions { no_ack: true, exclusive: true, ..BasicConsumeOptions::default() };
    let consumer = channel.basic_consume(name.as_str().into(), "".into(), options, FieldTable::default()).await?;
    Ok((channel, consumer))
}
