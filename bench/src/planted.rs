//! Planted targets: images of the generator itself, scaled, shifted and dimmed by a known transform. The search must find the transform, and
//! with it a loss about as low as with the true one.

use std::path::Path;

use anyhow::Result;
use engine::LoadedModel;
use engine::calibrate::extent;
use projector::{Lanes, Solution, Target, transform};
use proto::{ColourTransform, Params, Transform};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::cases::{Cases, median, project};

const SCALE: (f64, f64) = (0.75, 1.5);
const SHIFT: f64 = 0.25;
const BRIGHTNESS: (f64, f64) = (0.8, 1.25);
/// Brightness above which a pixel belongs to the object, in [-1, 1].
const OBJECT_THRESHOLD: f64 = -0.8;
const BATCH: usize = 2;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PlantedCase {
    class: String,
    truth: Transform,
    found: Transform,
    /// Best seed's inverted loss: with the search, with the truth given, without any transform.
    searched: f64,
    told: f64,
    without: f64,
}

impl PlantedCase {
    fn scale_error(&self) -> f64 {
        (self.found.scale[0] / self.truth.scale[0] - 1.0).abs()
    }

    fn shift_error(&self) -> f64 {
        (0..2).map(|i| (self.found.shift[i] - self.truth.shift[i]).abs()).fold(0.0, f64::max)
    }
}

/// Target `index` and the transform that takes it back to the generator's image.
fn plant(model: &LoadedModel, index: usize) -> (Target, Transform) {
    let mut rng = ChaCha8Rng::seed_from_u64(0x9e37_0000 + index as u64);
    let generator = &model.model.generator;
    let class = (index as i64) % generator.num_classes();
    loop {
        let z: Vec<f32> = (0..generator.latent_dim()).map(|_| rng.sample::<f32, _>(StandardNormal) % 2.0).collect();
        let truth = Transform {
            scale: [rng.random_range(SCALE.0..SCALE.1); 2],
            shift: [rng.random_range(-SHIFT..SHIFT), rng.random_range(-SHIFT..SHIFT)],
            colour: vec![(ColourTransform::Brightness, rng.random_range(BRIGHTNESS.0..BRIGHTNESS.1))],
        };
        let z = Tensor::from_slice(&z).unsqueeze(0);
        let image = tch::no_grad(|| generator.generate(&z, &generator.embed(class).unsqueeze(0)));
        // T(y) = G(z, c), so y = T^-1(G(z, c)); outside of the source it is black like the data's background.
        let black = Tensor::ones_like(&image);
        let inside = transform::invert(&black, &[Transform { colour: vec![], ..truth.clone() }], true);
        let y = transform::invert(&image, std::slice::from_ref(&truth), true);
        let y = &y * &inside + (&inside - 1.0);
        let y = y.squeeze_dim(0);
        let bright = y.mean_dim(&[0i64][..], false, Kind::Float).gt(OBJECT_THRESHOLD);
        if let Some(bbox) = extent(&bright) {
            return (Target { image: y, bbox: Some(bbox), mask: None, class, seed: index as u64 }, truth);
        }
    }
}

pub fn run(model: &LoadedModel, lanes: &Lanes, work: &Path, n: usize) -> Result<Vec<PlantedCase>> {
    let mut cases = Cases::open(work, "planted", model)?;
    let params = Params::paper();
    let plain = Params { transform: None, ..params.clone() };
    cases.complete(n, BATCH, |batch| {
        let planted = || batch.iter().map(|&i| plant(model, i)).unzip::<_, _, Vec<_>, Vec<_>>();
        let (targets, truths) = planted();
        let searched = project(model, lanes, &params, targets, None)?;
        let told = project(model, lanes, &params, planted().0, Some(&truths))?;
        let without = project(model, lanes, &plain, planted().0, None)?;
        let loss = |s: &Solution| s.seeds[s.best].inverted_loss;
        let measured = batch.iter().enumerate().map(|(k, &i)| {
            let case = PlantedCase {
                class: model.manifest.classes[i % model.manifest.classes.len()].clone(),
                truth: truths[k].clone(),
                found: searched[k].transform.clone().expect("the transform was searched"),
                searched: loss(&searched[k]),
                told: loss(&told[k]),
                without: loss(&without[k]),
            };
            let (scale, shift) = (100.0 * case.scale_error(), case.shift_error());
            let PlantedCase { searched, told, without, .. } = &case;
            let losses = format!("{searched:.3} (told {told:.3}, without {without:.3})");
            eprintln!("planted {i}: scale error {scale:.1} %, shift error {shift:.3}, loss {losses}");
            case
        });
        Ok(measured.collect())
    })?;
    Ok(cases.first(n))
}

/// What the page says of the cases: how they were made, and how many reach each bar.
pub fn derived(cases: &[PlantedCase]) -> Value {
    let count = |holds: &dyn Fn(&PlantedCase) -> bool| cases.iter().filter(|case| holds(case)).count();
    json!({
        "scale": SCALE,
        "shift": SHIFT,
        "brightness": BRIGHTNESS,
        "found": count(&|c| c.scale_error() <= 0.05 && c.shift_error() <= 0.06),
        "scale_error": 100.0 * median(cases.iter().map(PlantedCase::scale_error).collect()),
        "as_told": count(&|c| c.searched <= 1.1 * c.told),
        "better": count(&|c| c.searched < c.without),
    })
}
