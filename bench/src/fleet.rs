//! What the messages and objects of a fleet cost: how many each second, and how much CPU time of the client, in turns with the
//! client libraries alone, so that both see the same machine.
//!
//! The servers are other processes than the one that is measured.

use std::time::Instant;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;

use crate::cases::median;
use crate::services::cpu_seconds;
use crate::{messages, objects};
use harness::RabbitMq;

/// Turns that count.
const TURNS: usize = 5;

/// How much is measured.
#[derive(Clone, Copy)]
pub struct Extent {
    turns: usize,
    part: usize,
}

impl Extent {
    /// All of it, or enough to see that it works.
    pub fn new(quick: bool) -> Extent {
        if quick { Extent { turns: 1, part: 20 } } else { Extent { turns: TURNS, part: 1 } }
    }

    /// `count`, or a small part of it.
    pub fn of(self, count: usize) -> usize {
        count.div_ceil(self.part)
    }
}

/// What something took.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub struct Cost {
    seconds: f64,
    cpu_seconds: f64,
}

/// Does `work` and tells what it took.
pub async fn timed<E: Into<anyhow::Error>>(work: impl Future<Output = Result<(), E>>) -> Result<Cost> {
    let (cpu, started) = (cpu_seconds(std::process::id())?, Instant::now());
    work.await.map_err(Into::into)?;
    Ok(Cost { seconds: started.elapsed().as_secs_f64(), cpu_seconds: cpu_seconds(std::process::id())? - cpu })
}

/// A line of the table.
#[derive(Serialize, Deserialize)]
pub struct Row {
    what: String,
    unit: String,
    ours: Cost,
    alone: Cost,
}

impl Row {
    /// Measures both in turns: medians for one `unit`, of which a turn does `amount`.
    pub async fn measure(
        (what, unit): (&str, &str),
        extent: Extent,
        amount: f64,
        mut ours: impl AsyncFnMut() -> Result<Cost>,
        mut alone: impl AsyncFnMut() -> Result<Cost>,
    ) -> Result<Row> {
        eprintln!("{what}");
        let (mut of_ours, mut of_alone) = (Vec::new(), Vec::new());
        // The first turn opens channels and connections, and does not count.
        for turn in 0..=extent.turns {
            let costs = (
                ours().await.with_context(|| format!("{what}: ours"))?,
                alone().await.with_context(|| format!("{what}: alone"))?,
            );
            if turn > 0 {
                of_ours.push(costs.0);
                of_alone.push(costs.1);
            }
        }
        let each = |costs: &[Cost]| Cost {
            seconds: median(costs.iter().map(|c| c.seconds / amount).collect()),
            cpu_seconds: median(costs.iter().map(|c| c.cpu_seconds / amount).collect()),
        };
        Ok(Row { what: what.into(), unit: unit.into(), ours: each(&of_ours), alone: each(&of_alone) })
    }
}

/// The table.
pub fn run(quick: bool) -> Result<String> {
    let extent = Extent::new(quick);
    let runtime = Runtime::new().context("cannot start threads")?;
    let broker = RabbitMq::start();
    let (server, mut rows) = runtime.block_on(messages::measure(&broker, extent))?;
    drop(broker);
    rows.extend(objects::measure_apart(&runtime, quick)?);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut text = format!(
        "# Throughput\n\n\
        Written by `make throughput` on {cores} cores of {}: medians of {} turns, ours and the client library alone (lapin,\n\
        aws-sdk-s3) one after the other. {server} with one scheduler thread shares the cores, as does a server that keeps objects in\n\
        memory and checks nothing. Quorum queues, persistent messages, real jobs and events; requests to the store are signed. CPU\n\
        seconds are the client's: 1,000 divided by them is what one core does in a second.\n\n\
        | | unit | ours, each second | alone | ours / alone | CPU s for 1,000, ours | alone |\n|---|---|---|---|---|---|---|\n",
        processor()?,
        extent.turns,
    );
    for Row { what, unit, ours, alone } in rows {
        text += &format!(
            "| {what} | {unit} | {:.0} | {:.0} | {:.2} | {:.3} | {:.3} |\n",
            1.0 / ours.seconds,
            1.0 / alone.seconds,
            alone.seconds / ours.seconds,
            1000.0 * ours.cpu_seconds,
            1000.0 * alone.cpu_seconds,
        );
    }
    Ok(text)
}

pub fn processor() -> Result<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").context("cannot read what the processor is")?;
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    Ok(name.map_or("an unknown processor", |(_, name)| name.trim()).into())
}
