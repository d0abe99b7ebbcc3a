//! Two ways to do the same, measured in turns, so that both see the same machine.

use std::time::Instant;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::cases::median;
use crate::process::cpu_seconds;

/// Turns that count.
const TURNS: usize = 5;

/// How much is measured.
#[derive(Clone, Copy)]
pub struct Extent {
    pub turns: usize,
    part: usize,
}

impl Extent {
    /// Everything, or a small part to see that it works.
    pub fn new(quick: bool) -> Extent {
        if quick { Extent { turns: 1, part: 20 } } else { Extent { turns: TURNS, part: 1 } }
    }

    /// `count`, or a small part of it.
    pub fn of(self, count: usize) -> usize {
        count.div_ceil(self.part)
    }
}

#[derive(Clone, Copy, Serialize, Deserialize)]
pub struct Cost {
    pub seconds: f64,
    pub cpu_seconds: f64,
}

/// Does `work`; its time.
pub async fn timed<E: Into<anyhow::Error>>(work: impl Future<Output = Result<(), E>>) -> Result<Cost> {
    let (cpu, started) = (cpu_seconds(std::process::id())?, Instant::now());
    work.await.map_err(Into::into)?;
    Ok(Cost { seconds: started.elapsed().as_secs_f64(), cpu_seconds: cpu_seconds(std::process::id())? - cpu })
}

/// Medians for one `unit`, of both sides.
#[derive(Serialize, Deserialize)]
pub struct Row {
    pub what: String,
    pub unit: String,
    pub ours: Cost,
    pub alone: Cost,
}

impl Row {
    /// Measures both in turns; a turn does `amount` units.
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
