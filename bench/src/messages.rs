//! Messages: the queue against lapin alone, on other queues of the same broker.

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use harness::{RabbitMq, large_run_job};
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Connection};
use proto::Event;
use queue::{Channel, Queue};

use crate::compare::{Cost, Effort, Row, timed};
use crate::simulated::{connect, succeeded};

/// Messages that wait for their confirmation, as in the queue.
const WINDOW: usize = 256;
/// Events published at the same time, as in the queue.
const PUBLISHERS: usize = 64;
/// Unsettled jobs of a worker with a batch of 8 images.
const JOBS_HELD: u16 = 16;
/// Unsettled events of a coordinator.
const EVENTS_HELD: u16 = 256;
const PERSISTENT: u8 = 2;
const UNIT: &str = "messages";

struct Sides {
    ours: Queue,
    /// Declares, fills and purges the queues of the other side.
    keeper: Queue,
    alone: Connection,
    publisher: lapin::Channel,
    effort: Effort,
}

/// Name and version of the broker, and the rows.
pub async fn measure(broker: &RabbitMq, effort: Effort) -> Result<(String, Vec<Row>)> {
    let alone = connect(broker).await?;
    let publisher = alone.create_channel().await?;
    publisher.confirm_select(ConfirmSelectOptions::default()).await?;
    let ours = Queue::open(&broker.url("prefix=ours")).await?;
    let keeper = Queue::open(&broker.url("prefix=alone")).await?;
    let sides = Sides { ours, keeper, alone, publisher, effort };

    let jobs: Vec<Vec<u8>> = (0..effort.of(20_000)).map(|i| large_run_job(i).encode()).collect();
    let event = |i| Event::about(&large_run_job(i), "worker-7f9c4d5b6-x2x8q", succeeded(61.5));
    let events: Vec<Vec<u8>> = (0..effort.of(20_000)).map(|i| event(i).encode()).collect();
    let rows = vec![
        sides.publish_all(&jobs).await?,
        sides.publish(&events[..effort.of(2_000)], 1).await?,
        sides.publish(&events, PUBLISHERS).await?,
        sides.consume(Channel::Jobs, &jobs[..effort.of(10_000)], JOBS_HELD).await?,
        sides.consume(Channel::Events, &events, EVENTS_HELD).await?,
    ];
    Ok((sides.ours.server().context("a broker has a name")?, rows))
}

impl Sides {
    async fn publish_all(&self, jobs: &[Vec<u8>]) -> Result<Row> {
        let what = format!("jobs of {} bytes published in one call, {WINDOW} unconfirmed", jobs[0].len());
        let ours = || self.ours.publish_all(Channel::Jobs, jobs.to_vec());
        self.compare(&what, (Channel::Jobs, jobs.len()), ours, || self.publish_alone("alone.jobs", jobs)).await
    }

    async fn publish(&self, events: &[Vec<u8>], at_once: usize) -> Result<Row> {
        let what = format!("events of {} bytes published singly, {at_once} at a time", events[0].len());
        let publish = |event: &Vec<u8>| self.ours.publish(Channel::Events, event.clone());
        let ours = || stream::iter(events).map(Ok).try_for_each_concurrent(at_once, publish);
        let publish = |event| self.publish_alone("alone.events", std::slice::from_ref(event));
        let alone = || stream::iter(events).map(Ok).try_for_each_concurrent(at_once, publish);
        self.compare(&what, (Channel::Events, events.len()), ours, alone).await
    }

    /// Compares two ways to publish; the queue of each is emptied after its turn.
    async fn compare<E: Into<anyhow::Error>, O: Future<Output = Result<(), E>>, A: Future<Output = Result<()>>>(
        &self,
        what: &str,
        (channel, count): (Channel, usize),
        ours: impl Fn() -> O,
        alone: impl Fn() -> A,
    ) -> Result<Row> {
        let ours = async || {
            let cost = timed(ours()).await;
            self.ours.purge(channel).await?;
            cost
        };
        let alone = async || {
            let cost = timed(alone()).await;
            self.keeper.purge(channel).await?;
            cost
        };
        Row::measure((what, UNIT), self.effort, count as f64, ours, alone).await
    }

    async fn publish_alone(&self, queue: &str, payloads: &[Vec<u8>]) -> Result<()> {
        let properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
        for window in payloads.chunks(WINDOW) {
            let mut confirmations = Vec::with_capacity(window.len());
            for payload in window {
                let options = BasicPublishOptions::default();
                let sent = self.publisher.basic_publish("".into(), queue.into(), options, payload, properties.clone());
                confirmations.push(sent.await?);
            }
            for confirmation in confirmations {
                ensure!(confirmation.await?.is_ack(), "{queue} did not take a message");
            }
        }
        Ok(())
    }

    async fn consume(&self, channel: Channel, payloads: &[Vec<u8>], held: u16) -> Result<Row> {
        let what = format!("{channel} consumed and acknowledged, {held} unsettled");
        let lane = self.alone.create_channel().await?;
        lane.basic_qos(held, BasicQosOptions::default()).await?;
        let options = BasicConsumeOptions::default();
        let mut alone = lane.basic_consume(format!("alone.{channel}").into(), "".into(), options, FieldTable::default()).await?;
        let mut ours = self.ours.consume(channel, held).await?;
        let count = payloads.len();
        let take_ours = async || -> Result<Cost> {
            self.ours.publish_all(channel, payloads.to_vec()).await?;
            timed(async {
                for _ in 0..count {
                    ours.next().await?.context("the queue is closed")?.ack().await?;
                }
                anyhow::Ok(())
            })
            .await
        };
        let take_alone = async || -> Result<Cost> {
            self.keeper.publish_all(channel, payloads.to_vec()).await?;
            timed(async {
                for _ in 0..count {
                    alone.next().await.context("the subscription ended")??.ack(BasicAckOptions::default()).await?;
                }
                anyhow::Ok(())
            })
            .await
        };
        Row::measure((&what, UNIT), self.effort, count as f64, take_ours, take_alone).await
    }
}
