//! The ordering of the methods on real off-centre images, paired, with bootstrap intervals (paper, Table 1).

use std::path::Path;

use anyhow::Result;
use engine::LoadedModel;
use projector::Lanes;
use proto::{LatentSearch, Params};
use results::bootstrap::{Interval, interval};
use serde::{Deserialize, Serialize};

use crate::cases::{Cases, project};
use crate::samples::targets;

const METHODS: [&str; 3] = ["BasinCMA + transform", "BasinCMA", "Adam"];
/// Gradient steps of the Adam row (the authors' code).
const ADAM_STEPS: u32 = 500;
const BATCH: usize = 2;

/// L1 inside the box after inversion, for each method: mean over the seeds, and the best seed's.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Case {
    image: String,
    mean: [f64; 3],
    best: [f64; 3],
}

/// Runs what is not done, and tells the table.
pub fn run(model: &LoadedModel, lanes: &Lanes, samples: &Path, work: &Path, n: usize) -> Result<String> {
    let mut cases: Cases<Case> = Cases::open(work, "ordering", model)?;
    let paper = Params::paper();
    let basin = Params { transform: None, ..paper.clone() };
    let adam = Params { latent: LatentSearch::Adam { steps: ADAM_STEPS }, ..basin.clone() };
    let methods = [paper, basin, adam];
    let mut all = targets(model, samples, |file| file.contains("offcentre"))?;
    all.truncate(n);
    let left: Vec<usize> = (0..all.len()).filter(|i| !cases.done.contains_key(i)).collect();
    for batch in left.chunks(BATCH) {
        let mut mean = vec![[0.0; 3]; batch.len()];
        let mut best = vec![[0.0; 3]; batch.len()];
        for (m, params) in methods.iter().enumerate() {
            let targets = batch.iter().map(|&i| all[i].1.shallow_clone()).collect();
            for (k, solution) in project(model, lanes, params, targets, None)?.iter().enumerate() {
                mean[k][m] = solution.seeds.iter().map(|s| s.l1).sum::<f64>() / solution.seeds.len() as f64;
                best[k][m] = solution.seeds[solution.best].l1;
            }
        }
        for (k, &i) in batch.iter().enumerate() {
            eprintln!("ordering {i}: L1 {:.3?}, best {:.3?}", mean[k], best[k]);
            cases.push(i, Case { image: all[i].0.clone(), mean: mean[k], best: best[k] })?;
        }
    }
    let cases: Vec<&Case> = cases.done.range(..n).map(|(_, c)| c).collect();
    Ok(table(&cases))
}

fn table(cases: &[&Case]) -> String {
    if cases.is_empty() {
        return "## Ordering of the methods\n\nNo case was run.\n".into();
    }
    let n = cases.len();
    let mut text = format!(
        "## Ordering of the methods\n\n\
        {n} real off-centre images, the same seeds and class for each method; Adam takes {ADAM_STEPS} steps.\n\
        L1 inside the box after inversion: sum over channels, mean over pixels.\n\n\
        | method | average of seeds | best seed |\n|---|---|---|\n"
    );
    for (m, name) in METHODS.iter().enumerate() {
        let average = |f: &dyn Fn(&Case) -> f64| cases.iter().map(|c| f(c)).sum::<f64>() / n as f64;
        text += &format!("| {name} | {:.4} | {:.4} |\n", average(&|c| c.mean[m]), average(&|c| c.best[m]));
    }
    text += "\nPaired differences of the averages with 95 % bootstrap intervals; negative: the first is better.\n\n\
        | comparison | difference | interval |\n|---|---|---|\n";
    for (a, b) in [(0, 1), (1, 2), (0, 2)] {
        let differences: Vec<f64> = cases.iter().map(|c| c.mean[a] - c.mean[b]).collect();
        let Interval { mean, low, high } = interval(&differences).expect("there are cases");
        text += &format!("| {} against {} | {mean:.4} | {low:.4} to {high:.4} |\n", METHODS[a], METHODS[b]);
    }
    text
}
