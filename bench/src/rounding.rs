//! What rounding costs in loss: bfloat16 against float32, paired over real images. Cases are kept: a second start resumes.

use std::path::Path;

use anyhow::Result;
use engine::{Devices, LoadedModel};
use projector::lanes::CPU_BLOCK;
use projector::projection::lane_steps;
use projector::{Lanes, Target};
use proto::{LatentSearch, Params, Precision, SeedResult};
use results::bootstrap::{Interval, interval};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::cases::{Cases, mean, project};
use crate::page::Record;
use crate::samples::targets;

const BATCH: usize = 4;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Case {
    image: String,
    /// Loss of each seed, in the generator's frame.
    losses: Vec<f64>,
    /// Loss of each seed's inverted image inside the box.
    inverted: Vec<f64>,
}

struct Variant {
    name: &'static str,
    params: Params,
    block: usize,
}

/// The first is the reference.
fn variants() -> Vec<Variant> {
    let adam = Params { transform: None, latent: LatentSearch::Adam { steps: 300 }, ..Params::paper() };
    let variant = |name, params| Variant { name, params, block: CPU_BLOCK };
    vec![
        variant("Adam, 300 steps, fp32", adam.clone()),
        variant("Adam, 300 steps, bf16", Params { precision: Precision::Bf16, ..adam.clone() }),
        // The control: only the order of sums differs.
        Variant { block: 2 * CPU_BLOCK, ..variant("Adam, 300 steps, fp32 in other batches", adam) },
    ]
}

#[derive(Serialize, Deserialize)]
pub struct Rounding {
    model: String,
    images: usize,
    /// The first is the reference.
    variants: Vec<Measured>,
}

#[derive(Serialize, Deserialize)]
struct Measured {
    name: String,
    lane_steps: u64,
    cases: Vec<Case>,
}

/// Runs the cases that are left.
pub fn run(model: &LoadedModel, samples: &Path, work: &Path, n: usize) -> Result<Rounding> {
    let mut all = targets(model, samples, |file| file.contains("offcentre"))?;
    all.truncate(n);
    let measure = |variant: Variant| -> Result<Measured> {
        let cases = measured(model, work, &variant, &all)?;
        Ok(Measured { name: variant.name.into(), lane_steps: lane_steps(&variant.params), cases })
    };
    let variants = variants().into_iter().map(&measure).collect::<Result<_>>()?;
    Ok(Rounding { model: model.reference.name.clone(), images: all.len(), variants })
}

/// The cases of all images; runs those that are not there.
fn measured(model: &LoadedModel, work: &Path, variant: &Variant, all: &[(String, Target)]) -> Result<Vec<Case>> {
    // Other parameters have another file.
    let digest = proto::hex_sha256(variant.params.to_json().as_bytes());
    let block = if variant.block == CPU_BLOCK { String::new() } else { format!("-{}", variant.block) };
    let mut cases = Cases::open(work, &format!("rounding-{}{block}", &digest[..8]), model)?;
    let lanes = Lanes::with_block(&model.model, &Devices::automatic().0, variant.block);
    cases.complete(all.len(), BATCH, |batch| {
        let targets = batch.iter().map(|&i| all[i].1.shallow_clone()).collect();
        let solutions = project(model, &lanes, &variant.params, targets, None)?;
        let measured = batch.iter().zip(solutions).map(|(&i, solution)| {
            let rounded = |of: &dyn Fn(&SeedResult) -> f64| solution.seeds.iter().map(|s| (of(s) * 1e5).round() / 1e5).collect();
            Case { image: all[i].0.clone(), losses: rounded(&|s| s.loss), inverted: rounded(&|s| s.inverted_loss) }
        });
        eprintln!("{}: {} of {} images", variant.name, batch[batch.len() - 1] + 1, all.len());
        Ok(measured.collect())
    })?;
    Ok(cases.first(all.len()))
}

impl Record for Rounding {
    const NAME: &'static str = "rounding";
    const PAGE: &'static str = include_str!("../pages/rounding.md");

    fn derived(&self) -> Value {
        let rows: Vec<Value> = self.variants.iter().map(|variant| variant.row(&self.variants[0])).collect();
        json!({ "rows": rows })
    }
}

impl Measured {
    fn row(&self, first: &Measured) -> Value {
        let pairs = self.cases.iter().zip(&first.cases).filter(|(case, first)| case.losses.len() == first.losses.len());
        let correlations: Vec<f64> = pairs.map(|(case, first)| rank_correlation(&case.losses, &first.losses)).collect();
        let measures: [&dyn Fn(&Case) -> f64; 3] =
            [&|case| mean(&case.losses), &|case| least(&case.losses).1, &|case| case.inverted[least(&case.losses).0]];
        let losses = measures.map(|measure| {
            let values: Vec<f64> = self.cases.iter().map(measure).collect();
            let reference: Vec<f64> = first.cases.iter().map(measure).collect();
            (mean(&values), relative(&values, &reference))
        });
        json!({
            "name": self.name,
            "lane_steps": self.lane_steps,
            "losses": losses,
            "correlation": mean(&correlations),
        })
    }
}

/// Mean of the differences over the mean of the reference, in percent, with its interval.
fn relative(values: &[f64], reference: &[f64]) -> Option<Interval> {
    let scale = 100.0 / mean(reference);
    interval(&values.iter().zip(reference).map(|(a, b)| scale * (a - b)).collect::<Vec<_>>())
}

fn least(values: &[f64]) -> (usize, f64) {
    let (i, value) = values.iter().enumerate().min_by(|a, b| a.1.total_cmp(b.1)).expect("there are seeds");
    (i, *value)
}

/// Spearman's, without ties.
fn rank_correlation(a: &[f64], b: &[f64]) -> f64 {
    let ranks = |values: &[f64]| {
        let mut index: Vec<usize> = (0..values.len()).collect();
        index.sort_by(|&i, &j| values[i].total_cmp(&values[j]));
        let mut ranks = vec![0.0; values.len()];
        index.into_iter().enumerate().for_each(|(rank, i)| ranks[i] = rank as f64);
        ranks
    };
    let n = a.len() as f64;
    let squares: f64 = ranks(a).iter().zip(ranks(b)).map(|(x, y)| (x - y).powi(2)).sum();
    1.0 - 6.0 * squares / (n * (n * n - 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_that_agree_are_one_and_reversed_ones_minus_one() {
        assert_eq!(rank_correlation(&[1.0, 5.0, 2.0], &[10.0, 30.0, 20.0]), 1.0);
        assert_eq!(rank_correlation(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0]), -1.0);
    }
}
