//! The ordering of the methods on real off-centre images, paired, with bootstrap intervals (paper, Table 1).

use std::path::Path;

use anyhow::{Context, Result};
use projector::{Lanes, Target};
use proto::{Box2d, LatentSearch, Params};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use tch::Tensor;
use worker::LoadedModel;

use crate::cases::{Cases, project};

const METHODS: [&str; 3] = ["BasinCMA + transform", "BasinCMA", "Adam"];
/// Gradient steps of the Adam row (the authors' code).
const ADAM_STEPS: u32 = 500;
const BATCH: usize = 2;
const RESAMPLES: usize = 10_000;

/// L1 inside the box after inversion, for each method: mean over the seeds, and the best seed's.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Case {
    image: String,
    mean: [f64; 3],
    best: [f64; 3],
}

#[derive(Deserialize)]
struct Coco {
    images: Vec<CocoImage>,
    annotations: Vec<CocoAnnotation>,
    categories: Vec<CocoCategory>,
}

#[derive(Deserialize)]
struct CocoImage {
    id: u64,
    file_name: String,
}

#[derive(Deserialize)]
struct CocoAnnotation {
    image_id: u64,
    category_id: u64,
    bbox: [f64; 4],
}

#[derive(Deserialize)]
struct CocoCategory {
    id: u64,
    name: String,
}

/// The off-centre images, in the order of the annotations.
fn targets(model: &LoadedModel, samples: &Path, n: usize) -> Result<Vec<(String, Target)>> {
    let path = samples.join("annotations.json");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let coco: Coco = serde_json::from_str(&text).with_context(|| format!("cannot parse {}", path.display()))?;
    let r = model.reference.resolution;
    coco.images
        .iter()
        .filter(|i| i.file_name.contains("offcentre"))
        .take(n)
        .enumerate()
        .map(|(seed, image)| {
            let found = coco.annotations.iter().find(|a| a.image_id == image.id);
            let annotation = found.with_context(|| format!("{} has no annotation", image.file_name))?;
            let category = coco.categories.iter().find(|c| c.id == annotation.category_id).context("unknown category")?;
            let class = model.classes.iter().position(|c| *c == category.name).context("a class of another model")?;
            let [x, y, width, height] = annotation.bbox;
            let path = samples.join("images").join(&image.file_name);
            let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let decoded = worker::codec::decode(&bytes, Some(Box2d { x, y, width, height }), r)?;
            let pixels = Tensor::from_slice(&decoded.pixels).view([3, i64::from(r), i64::from(r)]);
            let target = Target { image: pixels, bbox: decoded.bbox, class: class as i64, seed: seed as u64 };
            Ok((image.file_name.clone(), target))
        })
        .collect()
}

/// Runs what is not done, and tells the table.
pub fn run(model: &LoadedModel, lanes: &Lanes, samples: &Path, work: &Path, n: usize) -> Result<String> {
    let mut cases: Cases<Case> = Cases::open(work, "ordering", model)?;
    let paper = Params::paper();
    let basin = Params { transform: None, ..paper.clone() };
    let adam = Params { latent: LatentSearch::Adam { steps: ADAM_STEPS }, ..basin.clone() };
    let methods = [paper, basin, adam];
    let all = targets(model, samples, n)?;
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

/// Mean of paired differences and its 95 % interval.
fn bootstrap(differences: &[f64]) -> (f64, f64, f64) {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let n = differences.len();
    let mut means: Vec<f64> =
        (0..RESAMPLES).map(|_| (0..n).map(|_| differences[rng.random_range(0..n)]).sum::<f64>() / n as f64).collect();
    means.sort_by(f64::total_cmp);
    (differences.iter().sum::<f64>() / n as f64, means[RESAMPLES / 40], means[RESAMPLES - RESAMPLES / 40 - 1])
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
        let (mean, low, high) = bootstrap(&differences);
        text += &format!("| {} against {} | {mean:.4} | {low:.4} to {high:.4} |\n", METHODS[a], METHODS[b]);
    }
    text
}
