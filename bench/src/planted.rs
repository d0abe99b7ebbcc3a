//! Planted targets: images of the generator itself, scaled, shifted and dimmed by a known transform. The search must find the transform, and
//! with it a loss about as low as with the true one.

use std::path::Path;

use anyhow::Result;
use engine::LoadedModel;
use engine::calibrate::extent;
use projector::{Lanes, Solution, Target, transform};
use proto::{ColourTransform, Descent, Params, Transform, TransformSearch};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use results::bootstrap::interval;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::cases::{Cases, median, project};

const SHIFT: f64 = 0.25;
const BRIGHTNESS: (f64, f64) = (0.8, 1.25);
/// Brightness above which a pixel belongs to the object, in [-1, 1].
const OBJECT_THRESHOLD: f64 = -0.8;
const BATCH: usize = 2;

/// Planted targets, and the search that must find their transforms.
pub struct Planting {
    pub title: &'static str,
    /// Name of the cases' file.
    file: &'static str,
    params: Params,
    scale: (f64, f64),
    /// Largest rotation in degrees.
    rotation: f64,
    /// Number of targets.
    pub targets: usize,
    /// Added to the index of a target.
    seed: u64,
}

/// All of them.
pub fn plantings() -> Vec<Planting> {
    let balanced = Params::balanced();
    let rotation = Some(30.0);
    let turned = Params { transform: balanced.transform.clone().map(|t| TransformSearch { rotation, ..t }), ..balanced.clone() };
    let paper = Planting {
        title: "The paper's search",
        file: "planted",
        params: Params::paper(),
        scale: (0.75, 1.5),
        rotation: 0.0,
        targets: 20,
        seed: 0,
    };
    let ours = Planting {
        title: "Profile `balanced`",
        file: "planted-balanced",
        params: balanced,
        scale: (0.4, 1.6),
        targets: 40,
        seed: 1000,
        ..paper
    };
    let turned = Planting {
        title: "Profile `balanced`, rotated targets",
        file: "planted-rotated",
        params: turned,
        rotation: 45.0,
        scale: (0.75, 1.5),
        targets: 20,
        seed: 2000,
    };
    vec![paper, ours, turned]
}

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

/// The cases of one planting.
#[derive(Serialize, Deserialize)]
pub struct Planted {
    title: String,
    profile: String,
    scale: (f64, f64),
    rotation: f64,
    cases: Vec<PlantedCase>,
}

impl PlantedCase {
    fn scale_error(&self) -> f64 {
        (self.found.scale[0] / self.truth.scale[0] - 1.0).abs()
    }

    fn shift_error(&self) -> f64 {
        (0..2).map(|i| (self.found.shift[i] - self.truth.shift[i]).abs()).fold(0.0, f64::max)
    }

    /// In degrees.
    fn rotation_error(&self) -> f64 {
        let difference = (self.found.rotation - self.truth.rotation).rem_euclid(360.0);
        difference.min(360.0 - difference)
    }
}

/// Target `index` and the transform that takes it back to the generator's image.
fn plant(model: &LoadedModel, planting: &Planting, index: usize) -> (Target, Transform) {
    let mut rng = ChaCha8Rng::seed_from_u64(0x9e37_0000 + planting.seed + index as u64);
    let generator = &model.model.generator;
    let class = (index as i64) % generator.num_classes();
    loop {
        let z: Vec<f32> = (0..generator.latent_dim()).map(|_| rng.sample::<f32, _>(StandardNormal) % 2.0).collect();
        let truth = Transform {
            scale: [rng.random_range(planting.scale.0..planting.scale.1); 2],
            shift: [rng.random_range(-SHIFT..SHIFT), rng.random_range(-SHIFT..SHIFT)],
            colour: vec![(ColourTransform::Brightness, rng.random_range(BRIGHTNESS.0..BRIGHTNESS.1))],
            rotation: if planting.rotation > 0.0 { rng.random_range(-planting.rotation..planting.rotation) } else { 0.0 },
            ..Transform::IDENTITY
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
            return (Target { image: y, bbox: Some(bbox), mask: None, class, likely: vec![], seed: index as u64 }, truth);
        }
    }
}

/// Runs the cases that are left, at most `most`.
pub fn run(model: &LoadedModel, lanes: &Lanes, work: &Path, planting: &Planting, most: usize) -> Result<Planted> {
    let n = planting.targets.min(most);
    let mut cases = Cases::open(work, planting.file, model)?;
    let Planting { title, params, scale, rotation, .. } = planting;
    let plain = Params { transform: None, descent: Descent { lr_transform: 0.0, ..params.descent.clone() }, ..params.clone() };
    // The true transform stays as it is.
    let told = Params { descent: Descent { lr_transform: 0.0, ..params.descent.clone() }, ..params.clone() };
    cases.complete(n, BATCH, |batch| {
        let planted = || batch.iter().map(|&i| plant(model, planting, i)).unzip::<_, _, Vec<_>, Vec<_>>();
        let (targets, truths) = planted();
        let searched = project(model, lanes, params, targets, None)?;
        let told = project(model, lanes, &told, planted().0, Some(&truths))?;
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
            let (scale, shift, angle) = (100.0 * case.scale_error(), case.shift_error(), case.rotation_error());
            let PlantedCase { searched, told, without, .. } = &case;
            let losses = format!("{searched:.3} (told {told:.3}, without {without:.3})");
            eprintln!("{title} {i}: scale error {scale:.1} %, shift error {shift:.3}, angle {angle:.1}, loss {losses}");
            case
        });
        Ok(measured.collect())
    })?;
    let (title, profile, cases) = ((*title).into(), params.profile.clone(), cases.first(n));
    Ok(Planted { title, profile, scale: *scale, rotation: *rotation, cases })
}

/// What the page says of the cases: how they were made, and how many reach each bar.
pub fn derived(Planted { cases, .. }: &Planted) -> Value {
    let count = |holds: &dyn Fn(&PlantedCase) -> bool| cases.iter().filter(|case| holds(case)).count();
    let bias = |of: &dyn Fn(f64) -> bool| {
        let some: Vec<f64> = cases
            .iter()
            .filter(|case| of(case.truth.scale[0]))
            .map(|case| 100.0 * (case.found.scale[0] / case.truth.scale[0]).ln())
            .collect();
        interval(&some)
    };
    json!({
        "shift": SHIFT,
        "brightness": BRIGHTNESS,
        "found": count(&|c| c.scale_error() <= 0.05 && c.shift_error() <= 0.06),
        "scale_error": 100.0 * median(cases.iter().map(PlantedCase::scale_error).collect()),
        "turned": count(&|c| c.rotation_error() <= 5.0),
        "as_told": count(&|c| c.searched <= 1.1 * c.told),
        "better": count(&|c| c.searched < c.without),
        "enlarged": bias(&|scale| scale < 1.0),
        "reduced": bias(&|scale| scale > 1.2),
        "told": median(cases.iter().map(|c| c.told).collect()),
    })
}
