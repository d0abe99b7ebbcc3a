//! Times, and two ways to do the same, measured in turns, so that both see the same machine.

use std::time::Instant;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::cases::median;
use crate::process::cpu_seconds;

/// Seconds of the best of several turns.
pub fn best_seconds<T, E: Into<anyhow::Error>>(turns: usize, work: impl Fn() -> Result<T, E>) -> Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..turns {
        let started = Instant::now();
        let result = work().map_err(Into::into)?;
        best = best.min(started.elapsed().as_secs_f64());
        drop(result);
    }
    Ok(best)
}

const TURNS: usize = 5;

#[derive(Clone, Copy)]
pub struct Effort {
    pub turns: usize,
    part: usize,
}

impl Effort {
    /// Everything, or a small part to see that it works.
    pub fn new(quick: bool) -> Effort {
        if quick { Effort { turns: 1, part: 20 } } else { Effort { turns: TURNS, part: 1 } }
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
        effort: Effort,
        amount: f64,
        mut ours: impl AsyncFnMut() -> Result<Cost>,
        mut alone: impl AsyncFnMut() -> Result<Cost>,
    ) -> Result<Row> {
        eprintln!("{what}");
        let mut turns = Vec::new();
        for _ in 0..=effort.turns {
            let ours = ours().await.with_context(|| format!("{what}: ours"))?;
            turns.push([ours, alone().await.with_context(|| format!("{what}: alone"))?]);
        }
        let each = |side: usize| {
            // The first turn opens channels and connections, and does not count.
            let median = |of: fn(&Cost) -> f64| median(turns[1..].iter().map(|costs| of(&costs[side]) / amount).collect());
            Cost { seconds: median(|cost| cost.seconds), cpu_seconds: median(|cost| cost.cpu_seconds) }
        };
        Ok(Row { what: what.into(), unit: unit.into(), ours: each(0), alone: each(1) })
    }
}
