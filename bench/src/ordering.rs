//! The ordering of the methods on real off-centre images, paired, with bootstrap intervals (paper, Table 1).

use std::path::Path;

use anyhow::Result;
use engine::LoadedModel;
use projector::Lanes;
use proto::{LatentSearch, Params};
use results::bootstrap::interval;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::cases::{Cases, mean, project};
use crate::samples::targets;

const METHODS: [&str; 3] = ["BasinCMA + transform", "BasinCMA", "Adam"];
/// Gradient steps of the Adam row (the authors' code).
const ADAM_STEPS: u32 = 500;
const BATCH: usize = 2;

/// L1 inside the box after inversion, for each method: mean over the seeds, and of the best seed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OrderingCase {
    image: String,
    mean: [f64; 3],
    best: [f64; 3],
}

pub fn run(model: &LoadedModel, lanes: &Lanes, samples: &Path, work: &Path, n: usize) -> Result<Vec<OrderingCase>> {
    let mut cases = Cases::open(work, "ordering", model)?;
    let paper = Params::paper();
    let basin = Params { transform: None, ..paper.clone() };
    let adam = Params { latent: LatentSearch::Adam { steps: ADAM_STEPS }, ..basin.clone() };
    let methods = [paper, basin, adam];
    let mut all = targets(model, samples, |file| file.contains("offcentre"))?;
    all.truncate(n);
    cases.complete(all.len(), BATCH, |batch| {
        let case = |&i: &usize| OrderingCase { image: all[i].0.clone(), mean: [0.0; 3], best: [0.0; 3] };
        let mut measured: Vec<OrderingCase> = batch.iter().map(case).collect();
        for (m, params) in methods.iter().enumerate() {
            let targets = batch.iter().map(|&i| all[i].1.shallow_clone()).collect();
            for (case, solution) in measured.iter_mut().zip(project(model, lanes, params, targets, None)?) {
                case.mean[m] = mean(&solution.seeds.iter().map(|s| s.l1).collect::<Vec<_>>());
                case.best[m] = solution.seeds[solution.best].l1;
            }
        }
        for (i, OrderingCase { mean, best, .. }) in batch.iter().zip(&measured) {
            eprintln!("ordering {i}: L1 {mean:.3?}, best {best:.3?}");
        }
        Ok(measured)
    })?;
    Ok(cases.first(n))
}

/// What the page says of the cases: means of the methods, and their paired differences.
pub fn derived(cases: &[OrderingCase]) -> Value {
    let average = |of: &dyn Fn(&OrderingCase) -> f64| mean(&cases.iter().map(of).collect::<Vec<_>>());
    let method = |m: usize| json!({ "name": METHODS[m], "mean": average(&|c| c.mean[m]), "best": average(&|c| c.best[m]) });
    let comparisons = [(0, 1), (1, 2), (0, 2)].map(|(a, b)| {
        let differences: Vec<f64> = cases.iter().map(|c| c.mean[a] - c.mean[b]).collect();
        (format!("{} against {}", METHODS[a], METHODS[b]), interval(&differences))
    });
    let methods = [0, 1, 2].map(method);
    json!({ "adam_steps": ADAM_STEPS, "methods": methods, "comparisons": comparisons })
}
