//! Planted targets: images of the generator itself, scaled, shifted and dimmed by a known transform. The search must find the transform, and
//! with it a loss about as low as with the true one.

use std::path::Path;

use anyhow::Result;
use engine::LoadedModel;
use projector::{Lanes, Target, transform};
use proto::{Box2d, ColourTransform, Params, Transform};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::cases::{Cases, median, project};
use crate::page::Page;

const SCALE: (f64, f64) = (0.75, 1.5);
const SHIFT: f64 = 0.25;
const BRIGHTNESS: (f64, f64) = (0.8, 1.25);
/// Brightness above which a pixel belongs to the object, in [-1, 1].
const OBJECT_THRESHOLD: f64 = -0.8;
/// Images side by side.
const BATCH: usize = 2;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Case {
    class: String,
    truth: Transform,
    found: Transform,
    /// Best seed's inverted loss: with the search, with the truth given, without any transform.
    searched: f64,
    told: f64,
    without: f64,
}

impl Case {
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
        let inside = transform::invert(&black, std::slice::from_ref(&spatial(&truth)), true);
        let y = transform::invert(&image, std::slice::from_ref(&truth), true);
        let y = &y * &inside + (&inside - 1.0);
        let y = y.squeeze_dim(0);
        if let Some(bbox) = object_box(&y) {
            return (Target { image: y, bbox: Some(bbox), mask: None, class, seed: index as u64 }, truth);
        }
    }
}

fn spatial(t: &Transform) -> Transform {
    Transform { colour: vec![], ..t.clone() }
}

/// Box around the bright pixels of `[3, r, r]`.
fn object_box(image: &Tensor) -> Option<Box2d> {
    let bright = image.mean_dim(&[0i64][..], false, Kind::Float).gt(OBJECT_THRESHOLD);
    let extent = |dim: i64| {
        let any: Vec<bool> = Vec::try_from(bright.any_dim(dim, false)).expect("a vector of bools");
        let first = any.iter().position(|&b| b)?;
        let last = any.iter().rposition(|&b| b)?;
        Some((first as f64, (last - first + 1) as f64))
    };
    let ((y, height), (x, width)) = (extent(1)?, extent(0)?);
    Some(Box2d { x, y, width, height })
}

/// Runs the cases that are left.
pub fn run(model: &LoadedModel, lanes: &Lanes, work: &Path, n: usize) -> Result<Vec<Case>> {
    let mut cases: Cases<Case> = Cases::open(work, "planted", model)?;
    let params = Params::paper();
    let plain = Params { transform: None, ..params.clone() };
    let left: Vec<usize> = (0..n).filter(|i| !cases.done.contains_key(i)).collect();
    for batch in left.chunks(BATCH) {
        let planted = || batch.iter().map(|&i| plant(model, i)).unzip::<_, _, Vec<_>, Vec<_>>();
        let (targets, truths) = planted();
        let searched = project(model, lanes, &params, targets, None)?;
        let told = project(model, lanes, &params, planted().0, Some(&truths))?;
        let without = project(model, lanes, &plain, planted().0, None)?;
        for (k, &i) in batch.iter().enumerate() {
            let loss = |s: &projector::Solution| s.seeds[s.best].inverted_loss;
            let case = Case {
                class: model.manifest.classes[i % model.manifest.classes.len()].clone(),
                truth: truths[k].clone(),
                found: searched[k].transform.clone().expect("the transform was searched"),
                searched: loss(&searched[k]),
                told: loss(&told[k]),
                without: loss(&without[k]),
            };
            eprintln!(
                "planted {i}: scale error {:.1} %, shift error {:.3}, loss {:.3} (told {:.3}, without {:.3})",
                100.0 * case.scale_error(),
                case.shift_error(),
                case.searched,
                case.told,
                case.without
            );
            cases.push(i, case)?;
        }
    }
    Ok(cases.done.into_iter().take_while(|(i, _)| *i < n).map(|(_, case)| case).collect())
}

/// Adds the section of planted targets.
pub fn section(page: Page, cases: &[Case]) -> Page {
    let n = cases.len();
    let count = |f: &dyn Fn(&Case) -> bool| format!("{} of {n}", cases.iter().filter(|c| f(c)).count());
    let scale = 100.0 * median(cases.iter().map(Case::scale_error).collect());
    let bars = [
        (
            "scale within 5 % and shift within 0.06, in at least 14 of 20",
            count(&|c| c.scale_error() <= 0.05 && c.shift_error() <= 0.06),
        ),
        ("median scale error at most 2 %", format!("{scale:.2} %")),
        ("loss at most 1.1 times that with the true transform, in at least 16 of 20", count(&|c| c.searched <= 1.1 * c.told)),
        ("loss below that without any transform, in at least 18 of 20", count(&|c| c.searched < c.without)),
    ];
    page.section("Planted targets")
        .text(&format!(
            "{n} images T^-1(G(z, c)) with scale {} to {}, shift up to {SHIFT}, brightness {} to {}.",
            SCALE.0, SCALE.1, BRIGHTNESS.0, BRIGHTNESS.1
        ))
        .table(&["bar", "reached"], bars.map(|(bar, reached)| vec![bar.into(), reached]))
        .text("Losses are the best seed's inverted loss inside the box, the same function for all three.")
        .table(
            &[
                "class",
                "scale: true, found",
                "shift x: true, found",
                "shift y: true, found",
                "brightness: true, found",
                "loss: searched, told, without",
            ],
            cases.iter().map(Case::row),
        )
}

impl Case {
    fn row(&self) -> Vec<String> {
        let (t, f) = (&self.truth, &self.found);
        let brightness = |t: &Transform| t.colour.first().map_or(1.0, |c| c.1);
        vec![
            self.class.clone(),
            format!("{:.3}, {:.3}", t.scale[0], f.scale[0]),
            format!("{:.3}, {:.3}", t.shift[0], f.shift[0]),
            format!("{:.3}, {:.3}", t.shift[1], f.shift[1]),
            format!("{:.2}, {:.2}", brightness(t), brightness(f)),
            format!("{:.3}, {:.3}, {:.3}", self.searched, self.told, self.without),
        ]
    }
}
