//! The cost of a fleet's messages and objects: how many per second, and how much CPU time of the client, in turns with the client libraries
//! alone. The servers are other processes than the one that is measured.

use anyhow::{Context, Result};
use harness::RabbitMq;
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;

use crate::compare::{Extent, Row};
use crate::page::{Machine, Page, Record, number};
use crate::{messages, objects};

#[derive(Serialize, Deserialize)]
pub struct Throughput {
    turns: usize,
    /// Name and version.
    broker: String,
    rows: Vec<Row>,
}

/// Measures; `quick` does a small part of everything.
pub fn run(quick: bool) -> Result<Throughput> {
    let extent = Extent::new(quick);
    let runtime = Runtime::new().context("cannot start threads")?;
    let rabbitmq = RabbitMq::start();
    let (broker, mut rows) = runtime.block_on(messages::measure(&rabbitmq, extent))?;
    drop(rabbitmq);
    rows.extend(objects::measure_apart(&runtime, quick)?);
    Ok(Throughput { turns: extent.turns, broker, rows })
}

impl Record for Throughput {
    const NAME: &'static str = "throughput";

    fn page(&self, machine: &Machine) -> Page {
        let row = |Row { what, unit, ours, alone }: &Row| {
            vec![
                what.clone(),
                unit.clone(),
                number(1.0 / ours.seconds, 0),
                number(1.0 / alone.seconds, 0),
                number(alone.seconds / ours.seconds, 2),
                number(1000.0 * ours.cpu_seconds, 3),
                number(1000.0 * alone.cpu_seconds, 3),
            ]
        };
        Page::new("Throughput")
            .text(&format!(
                "Written by `make throughput` on {machine}: medians of {} turns, ours and the client library alone (lapin, aws-sdk-s3) one \
                after the other. {} with one scheduler thread shares the cores, as does a server that keeps objects in memory and checks \
                nothing. Quorum queues, persistent messages, real jobs and events; requests to the store are signed. CPU seconds are the \
                client's: 1,000 divided by them is the rate of one core.",
                self.turns, self.broker
            ))
            .table(
                &["", "unit", "ours, per second", "alone", "ours / alone", "CPU s for 1,000, ours", "alone"],
                self.rows.iter().map(row),
            )
    }
}
