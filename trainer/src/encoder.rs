//! Trains the encoder of the paper's Table 1, which predicts z from an image and its class, for any generator and on its images: the E with the least `|z - E(y, c)|^2` plus the loss (Equation 4, without a mask) of `G(E(y, c), c)` against `y = G(z, c)`.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use projector::Generator;
use projector::loss::LossTarget;
use projector::nn::Weights;
use projector::nn::encoder::{Config, Encoder};
use projector::nn::lpips::Lpips;
use proto::{EncoderManifest, ModelManifest, Params};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::kind::FLOAT_CPU;
use tch::{Kind, Tensor, no_grad};

use crate::directions::{ModelNetworks, Samples};
use crate::folder::{digests, put_section, write_json};
use crate::vars::{Adam, Vars, entry, read_safetensors, write_safetensors};

/// The files in the model folder: sizes and weights.
pub const FILES: [&str; 2] = ["encoder.json", "encoder.safetensors"];

const BATCH: usize = 32;
const LR: f64 = 2e-3;
/// The learning rate rises in the first steps, and falls to zero as the time runs out.
const WARM_UP: f64 = 200.0;
const ADAM: Adam = Adam { beta1: 0.9, beta2: 0.99, eps: 1e-8 };
/// Channels of the first block; each has twice as many as the one before, up to two for each pixel of the picture's width.
const CHANNELS: i64 = 24;
const GROUPS: i64 = 8;
const SAID: u64 = 50;
const SAVE_EVERY: u64 = 200;
/// Samples of the measurement, a multiple of the batch.
pub const MEASURED: usize = 1024;

fn config(generator: &dyn Generator) -> Config {
    let resolution = generator.resolution();
    let blocks = (resolution / 4).ilog2();
    Config {
        resolution,
        embed_dim: generator.embed_dim(),
        latent_dim: generator.latent_dim(),
        channels: (0..blocks).map(|i| (CHANNELS << i).min(2 * resolution)).collect(),
        groups: GROUPS,
    }
}

/// Tensors to start from: blocks add nothing, and normalisations do not see the class.
fn start(vars: &mut Vars, config: &Config) -> Result<()> {
    for (name, shape) in config.layout()? {
        let zero = shape.len() == 1 || name.contains("norm") || name.ends_with("conv2.weight");
        let deviation = (2.0 / shape[1..].iter().product::<i64>() as f64).sqrt();
        let noise = Tensor::randn(&shape[..], FLOAT_CPU) * deviation;
        let _ = vars.parameter(&name, if zero { noise.zeros_like() } else { noise });
    }
    Ok(())
}

/// The network on the trained tensors themselves.
fn network(vars: &Vars, config: &Config) -> Result<Encoder> {
    let tensors = vars.parameters().map(|(n, t)| (n.to_owned(), t.shallow_clone()));
    Ok(Encoder::load(config, &mut Weights::new(tensors))?)
}

/// Equation 4 without a mask, `[n]`.
fn loss(lpips: &Lpips, images: &Tensor, targets: &Tensor) -> Tensor {
    let everywhere = targets.narrow(1, 0, 1).ones_like();
    LossTarget::new(lpips, &Params::paper().loss, targets, &everywhere).loss(lpips, images)
}

/// Trains until `seconds` of `clock`, which starts at 0, have been spent in all; resumes from `state` if it exists. Returns the
/// encoder's tensors and the steps.
fn train(
    model: &ModelNetworks,
    config: &Config,
    (seconds, clock): (f64, &dyn Fn() -> f64),
    seed: u64,
    state: &Path,
) -> Result<(Vec<(String, Tensor)>, u64)> {
    tch::manual_seed(seed as i64);
    let mut vars = Vars::default();
    start(&mut vars, config)?;
    let (mut step, mut before) = (0, 0.0);
    if state.exists() {
        let tensors = read_safetensors(state)?;
        vars.restore("encoder", &tensors)?;
        step = entry(&tensors, "step")?.int64_value(&[0]) as u64;
        before = entry(&tensors, "seconds")?.double_value(&[0]);
        println!("encoder: going on from step {step}, {:.1} min", before / 60.0);
    }
    let encoder = network(&vars, config)?;
    // A resumed run draws other numbers than one without a break, but the same ones each time.
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ step);
    let mut sums = [0.0; 2];
    loop {
        let spent = before + clock();
        let finished = spent >= seconds;
        if finished || (step > 0 && step.is_multiple_of(SAVE_EVERY)) {
            let mut tensors = vars.state("encoder");
            tensors.push(("step".into(), Tensor::from(step as i64).view([1])));
            tensors.push(("seconds".into(), Tensor::from(spent).view([1])));
            write_safetensors(state, &tensors)?;
        }
        if finished {
            return Ok((vars.tensors(), step));
        }
        let Samples { z, c, .. } = Samples::draw(&*model.generator, BATCH, &mut rng);
        let images = no_grad(|| model.generator.generate(&z, &c));
        let guess = encoder.encode(&images, &c);
        let far = (&guess - &z).square().mean(Kind::Float);
        let unlike = loss(&model.lpips, &model.generator.generate(&guess, &c), &images).mean(Kind::Float);
        vars.adam_step(&[&far + &unlike], LR * (1.0 - spent / seconds) * (step as f64 / WARM_UP).min(1.0), ADAM);
        sums = [sums[0] + far.double_value(&[]), sums[1] + unlike.double_value(&[])];
        step += 1;
        if step.is_multiple_of(SAID) {
            let [far, unlike] = sums.map(|sum| sum / SAID as f64);
            let left = (seconds - spent) / 60.0;
            println!("encoder step {step}, squared error of z {far:.3}, loss of the image {unlike:.3}, {left:.1} min left");
            sums = [0.0; 2];
        }
    }
}

/// Figures on samples that were not used for training.
#[derive(Debug)]
struct Errors {
    /// Mean squared error of z: of the prediction, of 0, and of a random z.
    z: [f64; 3],
    /// Loss of the images of the same.
    image: [f64; 3],
}

impl Errors {
    fn measure(model: &ModelNetworks, encoder: &Encoder, samples: usize, seed: u64) -> Errors {
        let _no_grad = tch::no_grad_guard();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(1);
        let batches = samples / BATCH;
        let mut errors = Errors { z: [0.0; 3], image: [0.0; 3] };
        for _ in 0..batches {
            let Samples { z, c, .. } = Samples::draw(&*model.generator, BATCH, &mut rng);
            let random = Samples::draw(&*model.generator, BATCH, &mut rng).z;
            let images = model.generator.generate(&z, &c);
            let guesses = [encoder.encode(&images, &c), z.zeros_like(), random];
            let mean = |t: Tensor| t.mean(Kind::Float).double_value(&[]) / batches as f64;
            for (k, guess) in guesses.iter().enumerate() {
                errors.z[k] += mean((guess - &z).square());
                errors.image[k] += mean(loss(&model.lpips, &model.generator.generate(guess, &c), &images));
            }
        }
        errors
    }
}

/// Trains an encoder of the model in `dir` for some minutes, measures it, and writes it into the folder and its card. The state of
/// the training is kept under `work`.
pub fn run(dir: &Path, (minutes, measured): (f64, usize), work: &Path, seed: u64) -> Result<()> {
    let (model, manifest) = ModelNetworks::read(dir)?;
    let config = config(&*model.generator);
    // The encoder of another generator is useless.
    let digest = &manifest.sha256[&manifest.generator.weights];
    let state = work.join(format!("encoder-{}.safetensors", digest.get(..12).unwrap_or(digest)));
    let started = Instant::now();
    let (tensors, steps) = train(&model, &config, (60.0 * minutes, &|| started.elapsed().as_secs_f64()), seed, &state)?;
    let numbers: usize = tensors.iter().map(|(_, t)| t.numel()).sum();
    let encoder = Encoder::load(&config, &mut Weights::new(tensors.iter().map(|(n, t)| (n.clone(), t.shallow_clone()))))?;
    let Errors { z, image } = Errors::measure(&model, &encoder, measured, seed);
    let section = format!(
        "`{}` guesses z from an image and its class ({numbers} numbers). Trained on samples of the generator for {minutes} minutes\n\
        ({steps} steps of Adam with batch {BATCH}, {LR} falling to zero, seed {seed}) to have the least `|z - E(y, c)|^2` plus the loss of\n\
        `G(E(y, c), c)` against y, without a mask. `trainer encoder` repeats it.\n\n\
        On {measured} samples that it was not trained on:\n\n\
        | z | squared error of z | loss of the image |\n|---|---|---|\n\
        | guessed | {:.3} | {:.3} |\n| 0 | {:.3} | {:.3} |\n| random | | {:.3} |\n",
        FILES[1], z[0], image[0], z[1], image[1], image[2]
    );
    println!("{section}");
    write(dir, manifest, &config, &tensors, &section)
}

/// Puts an encoder into a model folder and replaces an earlier one. `model.json` is written last.
fn write(dir: &Path, mut manifest: ModelManifest, config: &Config, tensors: &[(String, Tensor)], section: &str) -> Result<()> {
    if manifest.encoder.take().is_some() {
        FILES.iter().for_each(|file| drop(manifest.sha256.remove(*file)));
        write_json(&dir.join("model.json"), &manifest)?;
    }
    write_json(&dir.join(FILES[0]), config)?;
    write_safetensors(&dir.join(FILES[1]), tensors)?;
    manifest.sha256.extend(digests(dir, &FILES)?);
    manifest.encoder = Some(EncoderManifest { config: FILES[0].into(), weights: FILES[1].into() });
    put_section(dir, "Encoder", section)?;
    write_json(&dir.join("model.json"), &manifest)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs;
    use std::sync::Arc;

    use super::*;
    use crate::drawn::Drawn;

    /// A light that z moves in x and y, on black; its colour is the class.
    fn light() -> Drawn {
        let draw = |z: &Tensor, c: &Tensor| {
            let pixel = Tensor::arange(16, FLOAT_CPU) - 7.5;
            let at = |k: i64| z.narrow(1, k, 1).unsqueeze(2) * 2.0;
            let far = (pixel.view([1, 1, 16]) - at(0)).square() + (pixel.view([1, 16, 1]) - at(1)).square();
            let light = (far / -8.0).exp().unsqueeze(1);
            light * c.view([-1, 3, 1, 1]) * 2.0 - 1.0
        };
        Drawn { latent_dim: 2, classes: 3, resolution: 16, draw: Arc::new(draw) }
    }

    #[test]
    fn an_encoder_learns_what_its_generator_does_and_goes_on_where_it_was_stopped() {
        let model = ModelNetworks::plain(light());
        let config = config(&light());
        let work = tempfile::tempdir().unwrap();
        // A second for each step.
        let train = |seconds: f64, state: &str| {
            let now = Cell::new(-1.0);
            let clock = || now.replace(now.get() + 1.0) + 1.0;
            let (tensors, steps) = train(&model, &config, (seconds, &clock), 1, &work.path().join(state)).unwrap();
            (Encoder::load(&config, &mut Weights::new(tensors)).unwrap(), steps)
        };
        let (untrained, steps) = train(0.0, "untrained");
        assert_eq!(steps, 0);
        let before = Errors::measure(&model, &untrained, 128, 1);
        assert_eq!(train(60.0, "half").1, 60);
        let (trained, steps) = train(150.0, "half");
        assert_eq!(steps, 150);
        let after = Errors::measure(&model, &trained, 128, 1);
        assert!(after.z[0] < 0.2 * after.z[1] && after.image[0] < 0.5 * after.image[1], "{after:?}");
        assert!(before.z[0] > after.z[1] && before.z[1] == after.z[1], "{before:?} {after:?}");
        // What is finished is not trained any more.
        let (again, steps) = train(150.0, "half");
        assert_eq!(steps, 150);
        assert_eq!(Errors::measure(&model, &again, 128, 1).z, after.z);
    }

    #[test]
    fn the_command_writes_an_encoder_that_loads_and_a_section_of_the_card() {
        let dir = tempfile::tempdir().unwrap();
        let (dir, work) = (dir.path().join("model"), dir.path());
        fs::create_dir(&dir).unwrap();
        crate::export::random_model(&dir);
        fs::write(dir.join("README.md"), "# random\n\n## Encoder\n\nOld.\n\n## Limits\n\nMany.\n").unwrap();
        run(&dir, (0.0, BATCH), work, 5).unwrap();
        let encoder = engine::load(&dir).unwrap().model.encoder.unwrap();
        let tensor = |shape: &[i64]| Tensor::ones(shape, FLOAT_CPU);
        assert_eq!(encoder.encode(&tensor(&[2, 3, 32, 32]), &tensor(&[2, 8])).size(), [2, 8]);
        let card = fs::read_to_string(dir.join("README.md")).unwrap();
        assert!(card.starts_with("# random\n\n## Encoder\n\n`encoder.safetensors` guesses"), "{card}");
        assert!(card.ends_with("|\n\n## Limits\n\nMany.\n") && !card.contains("Old."), "{card}");

        let manifest = || engine::read_manifest(&dir).unwrap().0;
        assert_eq!(manifest().encoder.map(|e| [e.config, e.weights]), Some(FILES.map(String::from)));

        // Another generator has none.
        crate::export::random_model(&dir);
        assert!(manifest().encoder.is_none());
        assert!(FILES.iter().all(|file| !dir.join(file).exists()));
    }
}
