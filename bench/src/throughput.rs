//! The cost of a fleet's messages and objects: how many per second, and how much CPU time of the client, in turns with the client libraries
//! alone. The servers are other processes than the one that is measured.

use anyhow::{Context, Result};
use harness::RabbitMq;
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;

use crate::compare::{Effort, Row};
use crate::page::Record;
use crate::{messages, objects};

#[derive(Serialize, Deserialize)]
pub struct Throughput {
    turns: usize,
    /// Name and version.
    broker: String,
    rows: Vec<Row>,
}

pub fn run(quick: bool) -> Result<Throughput> {
    let effort = Effort::new(quick);
    let runtime = Runtime::new().context("cannot start threads")?;
    let rabbitmq = RabbitMq::start();
    let (broker, mut rows) = runtime.block_on(messages::measure(&rabbitmq, effort))?;
    drop(rabbitmq);
    rows.extend(objects::measure_apart(&runtime, quick)?);
    Ok(Throughput { turns: effort.turns, broker, rows })
}

impl Record for Throughput {
    const NAME: &'static str = "throughput";
    const PAGE: &'static str = include_str!("../pages/throughput.md");
}
