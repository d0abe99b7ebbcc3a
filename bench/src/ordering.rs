//! The ordering of the methods on real off-centre images, paired, with bootstrap intervals (paper, Table 1).

use std::path::Path;

use anyhow::Result;
use engine::LoadedModel;
use projector::Lanes;
use proto::{LatentSearch, Params};
use results::bootstrap::{Interval, interval};
use serde::{Deserialize, Serialize};

use crate::cases::{Cases, project};
use crate::page::{Page, number};
use crate::samples::targets;

const METHODS: [&str; 3] = ["BasinCMA + transform", "BasinCMA", "Adam"];
/// Gradient steps of the Adam row (the authors' code).
const ADAM_STEPS: u32 = 500;
const BATCH: usize = 2;

/// L1 inside the box after inversion, for each method: mean over the seeds, and of the best seed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Case {
    image: String,
    mean: [f64; 3],
    best: [f64; 3],
}

/// Runs the cases that are left.
pub fn run(model: &LoadedModel, lanes: &Lanes, samples: &Path, work: &Path, n: usize) -> Result<Vec<Case>> {
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
    Ok(cases.done.into_iter().take_while(|(i, _)| *i < n).map(|(_, case)| case).collect())
}

/// Adds the section of the ordering.
pub fn section(page: Page, cases: &[Case]) -> Page {
    let page = page.section("Ordering of the methods");
    let n = cases.len();
    if n == 0 {
        return page.text("No case was run.");
    }
    let average = |f: &dyn Fn(&Case) -> f64| number(cases.iter().map(f).sum::<f64>() / n as f64, 4);
    let methods = METHODS.iter().enumerate();
    let methods = methods.map(|(m, name)| vec![(*name).into(), average(&|c| c.mean[m]), average(&|c| c.best[m])]);
    let comparisons = [(0, 1), (1, 2), (0, 2)].map(|(a, b)| {
        let differences: Vec<f64> = cases.iter().map(|c| c.mean[a] - c.mean[b]).collect();
        let Interval { mean, low, high } = interval(&differences).expect("there are cases");
        let name = format!("{} against {}", METHODS[a], METHODS[b]);
        vec![name, number(mean, 4), format!("{low:.4} to {high:.4}")]
    });
    page.text(&format!(
        "{n} real off-centre images, the same seeds and class for each method; Adam takes {ADAM_STEPS} steps. L1 inside the box after \
        inversion: sum over channels, mean over pixels."
    ))
    .table(&["method", "average of seeds", "best seed"], methods)
    .text("Paired differences of the averages with 95 % bootstrap intervals; negative: the first is better.")
    .table(&["comparison", "difference", "interval"], comparisons)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_section_has_a_line_for_each_method_and_each_pair() {
        let case = |mean: [f64; 3]| Case { image: "a.png".into(), mean, best: mean };
        let page = section(Page::new("Validation"), &[case([1.0, 2.0, 4.0]), case([2.0, 3.0, 5.0])]).to_string();
        assert!(
            page.contains(
                "| BasinCMA + transform | 1.5000 | 1.5000 |\n| BasinCMA | 2.5000 | 2.5000 |\n| Adam | 4.5000 | 4.5000 |"
            ),
            "{page}"
        );
        assert!(page.ends_with("| BasinCMA + transform against Adam | -3.0000 | -3.0000 to -3.0000 |\n"), "{page}");
    }
}
