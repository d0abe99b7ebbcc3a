//! Directions of z that shift and zoom the images of a generator, the same for all classes, after Jahanian et al., "On the
//! 'steerability' of generative adversarial networks" (ICLR 2020): the w with the least
//! `|| m (G(z + a w, c) - edit_a(G(z, c))) ||^2`, where m masks the pixels that `edit_a` takes from outside of the picture.
//!
//! A long step leaves the z of the training, and the pictures lose their shape; so length has a price. A generator moves less than the edit
//! asks for; so each direction is then scaled until strength 1 is, on average, one unit. A direction that moves almost nothing is not kept.

use std::path::Path;

use anyhow::Result;
use engine::LoadedModel;
use engine::weights::Head;
use projector::nn::lpips::Lpips;
use projector::{Generator, Model, latent, transform};
use proto::{ModelManifest, Transform};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::kind::FLOAT_CPU;
use tch::{Device, Kind, Tensor, no_grad};

use crate::folder::{digests, put_section, remove, write_json};
use crate::vars::{Adam, Vars, write_safetensors};

/// The file in the model folder.
pub const FILE: &str = "directions.safetensors";

const BATCH: usize = 16;
const LR: f64 = 2e-2;
const ADAM: Adam = Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8 };
/// Strengths are drawn between -FARTHEST and FARTHEST.
const FARTHEST: f64 = 4.0;
/// Price of a direction: times the mean square of the farthest step's coordinates, which is 1 for z; standing still costs 1.
const PRICE: f64 = 0.1;
/// Strength 1 shifts by this share of the picture's width.
const SHIFT: f64 = 0.03;
/// Strength 1 zooms by this factor.
const ZOOM: f64 = 1.05;
/// Coordinates in `grid_sample` go from -1 to 1.
const WIDTH: f64 = 2.0;
/// A pixel counts if at least this part of it comes from inside the picture.
const COVERED: f64 = 0.999;
/// Strengths at which a direction is measured.
const STRENGTHS: [f64; 5] = [-2.0, -1.0, 0.0, 1.0, 2.0];
/// Samples on which it is measured.
pub const MEASURED: usize = 1000;
/// Least part of the wanted movement; a direction below it is not kept.
const LEAST: f64 = 1.0 / 3.0;

/// The edit that a direction learns.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Edit {
    ShiftX,
    ShiftY,
    Zoom,
}

const EDITS: [Edit; 3] = [Edit::ShiftX, Edit::ShiftY, Edit::Zoom];

impl Edit {
    fn name(self) -> &'static str {
        match self {
            Edit::ShiftX => "shift_x",
            Edit::ShiftY => "shift_y",
            Edit::Zoom => "zoom",
        }
    }

    /// `edit_a`: to the right, downwards, larger.
    fn transform(self, a: f64) -> Transform {
        let (scale, shift) = match self {
            Edit::ShiftX => (1.0, [-WIDTH * SHIFT * a, 0.0]),
            Edit::ShiftY => (1.0, [0.0, -WIDTH * SHIFT * a]),
            Edit::Zoom => (ZOOM.powf(-a), [0.0, 0.0]),
        };
        Transform { scale: [scale, scale], shift, ..Transform::IDENTITY }
    }

    /// Where images `[n, 3, r, r]` stand on the way of the edit, in units of strength from an arbitrary start: by their centre of
    /// brightness, or by the root mean square distance of the brightness from it.
    fn stand(self, images: &Tensor) -> Tensor {
        let light = (images.mean_dim(&[1i64][..], false, Kind::Double) + 1.0) / 2.0;
        let r = light.size()[2];
        let x = Tensor::arange(r, (Kind::Double, Device::Cpu)) / r as f64;
        let y = x.unsqueeze(1);
        let mean = |f: &Tensor| {
            let sum = |t: &Tensor| t.sum_dim_intlist(&[1i64, 2][..], false, None);
            sum(&(&light * f)) / sum(&light)
        };
        match self {
            Edit::ShiftX => mean(&x) / SHIFT,
            Edit::ShiftY => mean(&y) / SHIFT,
            Edit::Zoom => {
                let variance = mean(&(x.square() + y.square())) - mean(&x).square() - mean(&y).square();
                variance.log() / 2.0 / ZOOM.ln()
            }
        }
    }

    /// A distance in units of strength as people see it.
    fn seen(self, units: f64, r: i64) -> String {
        match self {
            Edit::ShiftX | Edit::ShiftY => format!("{:+.2} px", units * SHIFT * r as f64),
            Edit::Zoom => format!("x {:.3}", ZOOM.powf(units)),
        }
    }
}

/// Samples as the search draws them.
pub struct Samples {
    /// `[n, latent_dim]`
    pub z: Tensor,
    /// Embeddings `[n, embed_dim]` of the classes.
    pub c: Tensor,
    /// `[n]`
    pub classes: Tensor,
}

impl Samples {
    pub fn draw(generator: &dyn Generator, n: usize, rng: &mut ChaCha8Rng) -> Samples {
        let classes: Vec<i64> = (0..n).map(|_| rng.random_range(0..generator.num_classes())).collect();
        let z = latent::truncated(n * generator.latent_dim() as usize, rng);
        let c: Vec<Tensor> = classes.iter().map(|&class| generator.embed(class)).collect();
        Samples { z: Tensor::from_slice(&z).view([n as i64, -1]), c: Tensor::stack(&c, 0), classes: Tensor::from_slice(&classes) }
    }
}

/// Learns a direction for each of `EDITS`. `say` gets, after each step, the cost of each direction over the cost of no movement.
fn learn(generator: &dyn Generator, steps: u64, seed: u64, mut say: impl FnMut(u64, [f64; 3])) -> [Tensor; 3] {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut vars = Vars::default();
    let start = Tensor::zeros([generator.latent_dim()], FLOAT_CPU);
    let directions = EDITS.map(|edit| vars.parameter(edit.name(), start.copy()));
    for step in 0..steps {
        let Samples { z, c, .. } = Samples::draw(generator, BATCH, &mut rng);
        let images = no_grad(|| generator.generate(&z, &c));
        let inside = images.narrow(1, 0, 1).ones_like();
        let costs = [0, 1, 2].map(|k| {
            let a: Vec<f64> = (0..BATCH).map(|_| rng.random_range(-FARTHEST..=FARTHEST)).collect();
            let transforms: Vec<Transform> = a.iter().map(|&a| EDITS[k].transform(a)).collect();
            let target = transform::apply(&images, &transforms, false);
            let m = transform::apply_to_mask(&inside, &transforms, false).gt(COVERED).to_kind(Kind::Float);
            let cost = |x: &Tensor| ((x - &target).square() * &m).sum(Kind::Float) / m.sum(Kind::Float);
            let a = Tensor::from_slice(&a).to_kind(Kind::Float).unsqueeze(1);
            (cost(&generator.generate(&(&z + a * &directions[k]), &c)), cost(&images))
        });
        let losses: Vec<Tensor> = costs
            .iter()
            .zip(&directions)
            .map(|((moved, still), w)| moved / still + (w * FARTHEST).square().mean(Kind::Float) * PRICE)
            .collect();
        vars.adam_step(&losses, LR * (1.0 - step as f64 / steps as f64), ADAM);
        say(step + 1, costs.map(|(moved, still)| moved.double_value(&[]) / still.double_value(&[])));
    }
    directions.map(|w| w.detach())
}

/// The effect of a direction at each of `STRENGTHS`.
#[derive(Debug, PartialEq)]
struct Effect {
    /// Mean movement of a sample from strength 0, in units.
    moved: [f64; 5],
    /// Share of samples that keep their class.
    kept: Option<[f64; 5]>,
}

impl Effect {
    fn measure(model: &ModelNetworks, edit: Edit, w: &Tensor, samples: &Samples) -> Effect {
        let _no_grad = tch::no_grad_guard();
        let parts = |t: &Tensor| t.split(BATCH as i64, 0);
        let at = STRENGTHS.map(|a| {
            let parts = parts(&(&samples.z + w * a)).into_iter().zip(parts(&samples.c)).zip(parts(&samples.classes));
            let (stands, hits): (Vec<Tensor>, Vec<Option<Tensor>>) = parts
                .map(|((z, c), classes)| {
                    let images = model.generator.generate(&z, &c);
                    (edit.stand(&images), model.classes(&images).map(|given| given.eq_tensor(&classes)))
                })
                .unzip();
            let share = |hits: Vec<Tensor>| Tensor::cat(&hits, 0).to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
            (Tensor::cat(&stands, 0), hits.into_iter().collect::<Option<Vec<_>>>().map(share))
        });
        let moved = [0, 1, 2, 3, 4].map(|k| (&at[k].0 - &at[2].0).mean(Kind::Double).double_value(&[]));
        let kept = at[2].1.is_some().then(|| [0, 1, 2, 3, 4].map(|k| at[k].1.expect("as for strength 0")));
        Effect { moved, kept }
    }

    /// Units moved for each unit of strength, by least squares.
    fn gain(&self) -> f64 {
        let (a, moved) = (STRENGTHS.iter(), self.moved.iter());
        a.zip(moved).map(|(a, moved)| a * moved).sum::<f64>() / STRENGTHS.iter().map(|a| a * a).sum::<f64>()
    }

    fn monotone(&self) -> bool {
        self.moved.is_sorted_by(|a, b| a < b)
    }
}

#[derive(Debug)]
struct Found {
    edit: Edit,
    w: Tensor,
    /// Units moved for each wanted unit, before the scaling.
    gain: f64,
    /// On samples that were not used for learning.
    effect: Effect,
}

impl Found {
    fn works(&self) -> bool {
        self.gain >= LEAST && self.effect.monotone()
    }
}

/// Scales each direction so that strength 1 moves a sample by one unit on average, unless it moves almost nothing, and measures it on
/// other samples. Neither are those of [`learn`] with the same seed.
fn find(model: &ModelNetworks, directions: &[Tensor; 3], measured: usize, seed: u64) -> Vec<Found> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(1);
    let [first, others] = [(); 2].map(|()| Samples::draw(&*model.generator, measured, &mut rng));
    let found = |(edit, w): (Edit, &Tensor)| {
        let gain = Effect::measure(model, edit, w, &first).gain();
        let w = if gain >= LEAST { w / gain } else { w.shallow_clone() };
        Found { edit, effect: Effect::measure(model, edit, &w, &others), w, gain }
    };
    EDITS.into_iter().zip(directions).map(found).collect()
}

/// The networks of a model folder.
pub struct ModelNetworks {
    pub generator: Box<dyn Generator>,
    pub lpips: Lpips,
    classifier: Option<Head>,
}

impl ModelNetworks {
    pub fn read(dir: &Path) -> Result<(ModelNetworks, ModelManifest)> {
        let LoadedModel { model: Model { generator, lpips, .. }, head: classifier, manifest, .. } = engine::load(dir)?;
        Ok((ModelNetworks { generator, lpips, classifier }, manifest))
    }

    /// A generator and one random convolution, for tests.
    #[cfg(test)]
    pub fn plain(generator: crate::drawn::Drawn) -> ModelNetworks {
        use projector::nn::{Weights, lpips};
        let layer = lpips::Layer::Conv { index: 0, channels: 4, kernel: 3, stride: 1, padding: 1, tap: true };
        let config = lpips::Config { shift: [0.0; 3], scale: [1.0; 3], layers: vec![layer] };
        let tensor = |shape: &[i64]| Tensor::rand(shape, FLOAT_CPU);
        let tensors = [("features.0.weight", tensor(&[4, 3, 3, 3])), ("features.0.bias", tensor(&[4]))];
        let head = ("lin0.model.1.weight", tensor(&[1, 4, 1, 1]) * 0.1);
        let tensors = tensors.into_iter().chain([head]).map(|(n, t)| (n.to_owned(), t));
        let lpips = Lpips::load(&config, &mut Weights::new(tensors)).expect("fits");
        ModelNetworks { generator: Box::new(generator), lpips, classifier: None }
    }

    fn classes(&self, images: &Tensor) -> Option<Tensor> {
        Some(self.classifier.as_ref()?.logits(&self.lpips, images).argmax(-1, false))
    }
}

/// Learns the directions of the model in `dir`, measures them, and writes those that work into the folder; the card shows all of them. The
/// same seed writes the same files.
pub fn run(dir: &Path, (steps, measured): (u64, usize), seed: u64) -> Result<()> {
    // More threads would add up in another order.
    tch::set_num_threads(1);
    let (model, manifest) = ModelNetworks::read(dir)?;

    const SAID: u64 = 50;
    let mut sums = [0.0; 3];
    let directions = learn(&*model.generator, steps, seed, |step, shares| {
        sums = [0, 1, 2].map(|k| sums[k] + shares[k] / SAID as f64);
        if step % SAID == 0 {
            let each: Vec<String> = EDITS.iter().zip(sums).map(|(edit, sum)| format!("{} {sum:.3}", edit.name())).collect();
            println!("directions step {step}/{steps}, loss over that of standing still: {}", each.join(", "));
            sums = [0.0; 3];
        }
    });
    let found = find(&model, &directions, measured, seed);
    let section = section(&found, model.generator.resolution(), (steps, measured), seed);
    println!("{section}");
    let kept = found.iter().filter(|f| f.works()).map(|f| (f.edit.name().to_owned(), f.w.shallow_clone()));
    write(dir, manifest, &kept.collect::<Vec<_>>(), &section)
}

/// Puts directions into a model folder and replaces earlier ones. `model.json` is written last.
fn write(dir: &Path, mut manifest: ModelManifest, kept: &[(String, Tensor)], section: &str) -> Result<()> {
    if let Some(former) = manifest.directions.take() {
        manifest.sha256.remove(&former);
    }
    // Until the files are whole, the model has none; so a stop in between leaves a model that can be read.
    write_json(&dir.join("model.json"), &manifest)?;
    remove(&dir.join(FILE))?;
    if !kept.is_empty() {
        write_safetensors(&dir.join(FILE), kept)?;
        manifest.sha256.extend(digests(dir, &[FILE])?);
        manifest.directions = Some(FILE.into());
    }
    put_section(dir, "Directions", section)?;
    write_json(&dir.join("model.json"), &manifest)
}

/// The section of the model card.
fn section(found: &[Found], r: i64, (steps, measured): (u64, usize), seed: u64) -> String {
    let row = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let rows = found.iter().flat_map(|f| {
        let Found { edit, effect, .. } = f;
        let name = format!("`{}`{}", edit.name(), if f.works() { "" } else { " (not kept)" });
        let moved = effect.moved.iter().map(|&units| edit.seen(units, r));
        let kept = effect.kept.iter().map(|kept| {
            let shares = kept.iter().map(|share| format!("{:.1} %", 100.0 * share));
            row(["given their class".to_owned()].into_iter().chain(shares).collect())
        });
        [row([name].into_iter().chain(moved).collect())].into_iter().chain(kept).collect::<Vec<_>>()
    });
    let table: String = rows.collect();
    let gains: Vec<String> = found.iter().map(|f| format!("{:.2} (`{}`)", f.gain, f.edit.name())).collect();
    let file = match found.iter().any(Found::works) {
        true => format!("`{FILE}` has directions of z, the same for all classes: `z + strength * direction`."),
        false => "No direction of z works well enough to be kept.".into(),
    };
    format!(
        "{file} Strength 1 of `shift_x` and `shift_y`\n\
        moves the object by {:.0} % of the picture's width to the right or down ({:.2} px), of `zoom` makes it {:.0} % larger; on average,\n\
        by the centre of brightness and the root mean square distance of the brightness from it.\n\n\
        After Jahanian et al. (ICLR 2020): each is the w with the least `|| m (G(z + a w, c) - edit_a(G(z, c))) ||^2`, over\n\
        that of w = 0, plus {PRICE} times the mean square of {FARTHEST} w; a in -{FARTHEST} to {FARTHEST}, {steps} steps of Adam with batch {BATCH}, {LR} falling to\n\
        zero, seed {seed}. For each unit asked for, the generator gave {}. What gives\n\
        less than {LEAST:.2}, or does not move steadily, is not kept; the others were made longer by as much. `trainer directions` repeats it.\n\n\
        On {measured} samples that they were not learned from:\n\n\
        | strength | {} |\n|---|{}\n{table}",
        100.0 * SHIFT,
        SHIFT * r as f64,
        100.0 * (ZOOM - 1.0),
        gains.join(", "),
        STRENGTHS.map(|a| a.to_string()).join(" | "),
        "---|".repeat(STRENGTHS.len()),
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::sync::Arc;

    use super::*;
    use crate::drawn::Drawn;

    /// A blob of light on black, which z moves by two pixels a unit in x and y and makes larger by a tenth, if it `moves`.
    fn blob(moves: bool) -> Drawn {
        let draw = move |z: &Tensor, _: &Tensor| {
            let pixel = Tensor::arange(32, FLOAT_CPU);
            let z = z * if moves { 1.0 } else { 0.0 };
            let at = |k: i64| z.narrow(1, k, 1).unsqueeze(2);
            let (x, y) = (pixel.view([1, 1, 32]) - (at(0) * 2.0 + 15.5), pixel.view([1, 32, 1]) - (at(1) * 2.0 + 15.5));
            let size = (at(2) * 1.1f64.ln()).exp() * 4.0;
            let light = ((x.square() + y.square()) / size.square() / -2.0).exp();
            (light.unsqueeze(1) * 2.0 - 1.0).expand([-1, 3, -1, -1], false)
        };
        Drawn { latent_dim: 5, classes: 2, resolution: 32, draw: Arc::new(draw) }
    }

    fn blobs(moves: bool, steps: u64) -> (Vec<Found>, Vec<[f64; 3]>) {
        let model = ModelNetworks::plain(blob(moves));
        let mut shares = vec![];
        let directions = learn(&*model.generator, steps, 1, |_, each| shares.push(each));
        (find(&model, &directions, 300, 1), shares)
    }

    #[test]
    fn directions_do_what_they_say() {
        let (found, shares) = blobs(true, 200);
        for (k, (found, units)) in found.iter().zip([SHIFT * 32.0 / 2.0, SHIFT * 32.0 / 2.0, ZOOM.ln() / 1.1f64.ln()]).enumerate()
        {
            assert!(found.works(), "{found:?}");
            let w: Vec<f32> = Vec::try_from(&found.w).unwrap();
            for (i, w) in w.into_iter().enumerate() {
                let wanted = if i == k { units } else { 0.0 };
                assert!((f64::from(w) - wanted).abs() < 0.1 * units, "{found:?} has {w}, not {wanted}, at {i}");
            }
            for (moved, a) in found.effect.moved.iter().zip(STRENGTHS) {
                assert!((moved - a).abs() < 0.15, "{found:?}");
            }
            assert_eq!(found.effect.kept, None);
            let mean = |shares: &[[f64; 3]]| shares.iter().map(|s| s[k]).sum::<f64>() / shares.len() as f64;
            assert!(mean(&shares[..5]) > 0.8 && mean(&shares[195..]) < 0.2, "{shares:?}");
        }
    }

    #[test]
    fn a_direction_that_does_nothing_is_not_kept() {
        let (found, _) = blobs(false, 3);
        for found in &found {
            assert!(!found.works(), "{found:?}");
        }
        let section = section(&found, 32, (3, 300), 1);
        assert!(section.starts_with("No direction") && section.contains("`zoom` (not kept)"), "{section}");
    }

    fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
        let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
        entries.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())).collect()
    }

    #[test]
    fn the_command_writes_a_model_that_loads_and_the_same_one_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let export = || crate::export::random_model(dir);
        export();
        fs::write(dir.join("README.md"), "# random\n\nCard.\n").unwrap();
        run(dir, (4, 20), 5).unwrap();
        let first = files(dir);
        engine::load(dir).unwrap();
        run(dir, (4, 20), 5).unwrap();
        assert!(files(dir) == first, "a second run changed the folder");

        // What a random network does is chance: these stand for directions that work.
        let manifest = engine::read_manifest(dir).unwrap().0;
        let kept = [("zoom", 0.5), ("shift_x", -0.25)].map(|(name, v)| (name.to_owned(), Tensor::from_slice(&[v as f32; 8])));
        write(dir, manifest, &kept, "Two.\n").unwrap();
        let wanted = BTreeMap::from([("zoom".to_owned(), vec![0.5; 8]), ("shift_x".to_owned(), vec![-0.25; 8])]);
        assert_eq!(engine::load(dir).unwrap().directions, wanted);
        assert_eq!(files(dir)["README.md"], b"# random\n\nCard.\n\n## Directions\n\nTwo.\n");

        // Another generator has none.
        export();
        assert!(engine::load(dir).unwrap().directions.is_empty());
        assert!(!files(dir).contains_key(FILE));
    }
}
