//! Adversarial training: hinge loss, two discriminator steps for each generator step, an exponential moving average of the
//! *folded* weights. (An average of u and v would spoil sigma and turn samples into blocks.)

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::kind::FLOAT_CPU;
use tch::{Kind, Tensor, no_grad};

use crate::data::{CLASSES, Split};
use crate::discriminator::{Discriminator, GROUP};
use crate::generator::{Config, Spectral, TrainableGenerator};
use crate::vars::{Adam, Vars, entry, read_safetensors, write_safetensors};

const GROUPS: usize = 12;
const BATCH: i64 = GROUPS as i64 * GROUP;
const DISCRIMINATOR_STEPS: u32 = 2;
const LR_GENERATOR: f64 = 4e-4;
const LR_DISCRIMINATOR: f64 = 6e-4;
const ADAM: Adam = Adam { beta1: 0.0, beta2: 0.99, eps: 1e-8 };
const EMA_DECAY: f64 = 0.998;
/// The learning rate falls linearly to zero over this last share of the steps.
const DECAY_SHARE: f64 = 0.4;
const SAVE_EVERY: u64 = 250;

pub const HOW: &str = "Hinge loss, projection discriminator with spectral norm and the deviation within groups of four samples of \
one class as a feature, two discriminator steps of batch 48 + 48 for each generator step of batch 48, Adam (0, 0.99) at 4e-4 and \
6e-4 falling to zero over the last 40 %, moving average (0.998) of the folded weights, statistics measured for each truncation.";

/// Tensors of a generator by checkpoint name.
pub type Average = Vec<(String, Tensor)>;

/// Trains for `steps` generator steps, resuming from `state` if it exists. `monitor` gets each saved average.
pub fn train(config: &Config, data: &Split, steps: u64, seed: u64, state: &Path, monitor: impl Fn(&Average)) -> Result<()> {
    tch::manual_seed(seed as i64);
    let mut vars_g = Vars::default();
    let mut vars_d = Vars::default();
    let generator = TrainableGenerator::new(&mut vars_g, config);
    let discriminator = Discriminator::new(&mut vars_d, config.num_classes);
    let mut average: Average = Vec::new();
    let mut first = 0;
    if state.exists() {
        let tensors = read_safetensors(state)?;
        vars_g.restore("g", &tensors)?;
        vars_d.restore("d", &tensors)?;
        average = averaged(&tensors);
        first = entry(&tensors, "step")?.int64_value(&[0]) as u64;
        println!("gan: going on from step {first}");
    }
    // A resumed run draws other numbers than one without a break, but the same ones each time.
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ first);
    tch::manual_seed((seed ^ first) as i64);
    let by_class = data.by_class();
    let started = Instant::now();
    let (mut sum_d, mut sum_g) = (0.0, 0.0);

    for step in first..steps {
        let progress = step as f64 / steps as f64;
        let rate = ((1.0 - progress) / DECAY_SHARE).min(1.0) * (step as f64 / 100.0).min(1.0);

        for _ in 0..DISCRIMINATOR_STEPS {
            let (real, real_labels) = real_batch(data, &by_class, &mut rng);
            let (z, labels) = latent_batch(config, &mut rng);
            let fake = no_grad(|| generator.forward(&z, &labels).0);
            vars_d.iterate(1);
            let (images, labels) = (Tensor::cat(&[real, fake], 0), Tensor::cat(&[real_labels, labels], 0));
            let scores = discriminator.forward(&images, &labels, Spectral::weight);
            let loss = (-scores.narrow(0, 0, BATCH) + 1.0).relu().mean(Kind::Float)
                + (scores.narrow(0, BATCH, BATCH) + 1.0).relu().mean(Kind::Float);
            vars_d.adam_step(&[&loss], LR_DISCRIMINATOR * rate, ADAM);
            sum_d += loss.double_value(&[]);
        }

        let (z, labels) = latent_batch(config, &mut rng);
        vars_g.iterate(1);
        let (fake, folded) = generator.forward(&z, &labels);
        let loss = -discriminator.forward(&fake, &labels, Spectral::constant_weight).mean(Kind::Float);
        update_average(&mut average, &vars_g, folded, step);
        vars_g.adam_step(&[&loss], LR_GENERATOR * rate, ADAM);
        sum_g += loss.double_value(&[]);

        let done = step + 1;
        if done % 50 == 0 {
            let each = started.elapsed().as_secs_f64() / (done - first) as f64;
            let (d, g) = (sum_d / 50.0 / f64::from(DISCRIMINATOR_STEPS), sum_g / 50.0);
            let left = each * (steps - done) as f64 / 60.0;
            println!("gan step {done}/{steps} d {d:.3} g {g:.3} {each:.3} s/step, {left:.0} min left");
            (sum_d, sum_g) = (0.0, 0.0);
        }
        if done % SAVE_EVERY == 0 || done == steps {
            let mut tensors = vars_g.state("g");
            tensors.extend(vars_d.state("d"));
            tensors.extend(average.iter().map(|(n, t)| (format!("average.{n}"), t.shallow_clone())));
            tensors.push(("step".into(), Tensor::from(done as i64).view([1])));
            write_safetensors(state, &tensors)?;
            monitor(&average);
        }
    }
    Ok(())
}

/// The averaged weights of a training state, and its step.
pub fn read_average(state: &Path) -> Result<(Average, i64)> {
    let tensors = read_safetensors(state).context("no generator; run `trainer gan` first")?;
    Ok((averaged(&tensors), entry(&tensors, "step")?.int64_value(&[0])))
}

fn averaged(tensors: &HashMap<String, Tensor>) -> Average {
    tensors.iter().filter_map(|(n, t)| n.strip_prefix("average.").map(|n| (n.to_owned(), t.shallow_clone()))).collect()
}

/// The averaged generator, its u and v recovered by power iteration.
pub fn averaged_generator(config: &Config, average: &Average) -> Result<(Vars, TrainableGenerator)> {
    let mut vars = Vars::default();
    let generator = TrainableGenerator::new(&mut vars, config);
    vars.assign(average)?;
    vars.iterate(100);
    Ok((vars, generator))
}

fn update_average(average: &mut Average, vars: &Vars, folded: Average, step: u64) {
    no_grad(|| {
        let plain = vars.parameters().filter(|(n, _)| !n.ends_with("weight_orig"));
        let now = folded.into_iter().map(|(n, t)| (n, t.detach())).chain(plain.map(|(n, t)| (n.to_owned(), t.detach())));
        if average.is_empty() {
            *average = now.map(|(n, t)| (n, t.copy())).collect();
            return;
        }
        let decay = EMA_DECAY.min((1.0 + step as f64) / (10.0 + step as f64));
        let mut by_name: HashMap<String, Tensor> = now.collect();
        for (name, mean) in average.iter_mut() {
            let value = by_name.remove(name).expect("the parameters have the same names at each step");
            let _ = mean.lerp_(&value, 1.0 - decay);
        }
    });
}

fn latent_batch(config: &Config, rng: &mut ChaCha8Rng) -> (Tensor, Tensor) {
    let groups: Vec<i64> = (0..GROUPS).map(|_| rng.random_range(0..config.num_classes)).collect();
    let labels = Tensor::from_slice(&groups).repeat_interleave_self_int(GROUP, 0, None);
    (Tensor::randn([BATCH, config.z_dim], FLOAT_CPU), labels)
}

fn real_batch(data: &Split, by_class: &[Vec<i64>], rng: &mut ChaCha8Rng) -> (Tensor, Tensor) {
    let index: Vec<i64> = (0..GROUPS)
        .flat_map(|_| {
            let class = rng.random_range(0..CLASSES.len());
            (0..GROUP).map(|_| by_class[class][rng.random_range(0..by_class[class].len())]).collect::<Vec<_>>()
        })
        .collect();
    data.batch(&Tensor::from_slice(&index))
}
