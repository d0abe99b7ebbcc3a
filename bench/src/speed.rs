//! Lane-steps per second of the bundled model on this machine, what each speed-up brings, and what a step is made of.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};
use engine::{Devices, LoadedModel, lane_steps};
use projector::{Lanes, Projection, Target};
use proto::{LatentSearch, Params, Precision};
use tch::{Device, Kind, Tensor};

use crate::authors::lane_step_flop;
use crate::fleet::processor;
use crate::flop::matrix_rate;

/// As many as a projection asks for at a time.
const STEPS: u32 = 50;

fn target(model: &LoadedModel, i: i64) -> Target {
    let generator = &model.model.generator;
    let class = i % generator.num_classes();
    let z = Tensor::full([1, generator.latent_dim()], 0.3 + 0.1 * i as f64, (Kind::Float, Device::Cpu));
    let image = tch::no_grad(|| generator.generate(&z, &generator.embed(class).unsqueeze(0))).squeeze_dim(0);
    Target { image, bbox: None, mask: None, class, seed: i as u64 }
}

/// Lane-steps per second of `images` side by side.
fn rate(model: &LoadedModel, lanes: &Lanes, images: i64, precision: Precision) -> Result<f64> {
    let seeds = 18;
    // Twice as many as are timed, since the last ones are float32 always.
    let latent = LatentSearch::Adam { steps: 2 * STEPS };
    let params = Params { transform: None, latent, seeds, precision, ..Params::paper() };
    let mut best: f64 = 0.0;
    for _ in 0..3 {
        let targets = (0..images).map(|i| target(model, i)).collect();
        let mut projection = Projection::new(&params, &model.model, &model.statistics, targets);
        let started = Instant::now();
        projection.step(lanes)?;
        let steps = projection.progress().done as f64;
        best = best.max(steps / started.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// The rates of so many processes that compute on one core each, at the same time: what the machine gives without a split.
fn apart(count: usize) -> Result<f64> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let start = |_| Command::new(&program).arg("alone").stdout(Stdio::piped()).spawn();
    let children = (0..count).map(start).collect::<Result<Vec<_>, _>>().context("cannot start this program again")?;
    let rates = children.into_iter().map(|child| {
        let output = child.wait_with_output().context("a process did not end")?;
        String::from_utf8(output.stdout)?.trim().parse::<f64>().context("a process did not say its rate")
    });
    rates.sum()
}

/// The rate of one CPU device, for `apart`.
pub fn alone(model: &LoadedModel) -> Result<f64> {
    rate(model, &Lanes::new(&model.model, &[Device::Cpu]), 4, Precision::Fp32)
}

/// One forward and backward pass through the generator as a training framework would do it: the weights ask for their gradients.
fn unfrozen_ratio(model: &LoadedModel) -> f64 {
    let time = |weights: bool| {
        let generator = model.model.generator.replicate(Device::Cpu);
        let parameters: Vec<Tensor> = generator.weights().into_iter().map(|(_, weight)| weight).collect();
        for p in &parameters {
            let _ = p.set_requires_grad(weights);
        }
        let z = Tensor::zeros([9, generator.latent_dim()], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let c = generator.embed(0).unsqueeze(0).repeat([9, 1]).detach().set_requires_grad(true);
        let mut best = f64::INFINITY;
        for _ in 0..12 {
            let started = Instant::now();
            let sum = generator.generate(&z, &c).sum(Kind::Float);
            let mut wanted = vec![&z, &c];
            if weights {
                wanted.extend(parameters.iter());
            }
            let _ = Tensor::run_backward(&[sum], &wanted, false, false);
            best = best.min(started.elapsed().as_secs_f64());
        }
        best
    };
    tch::set_num_threads(1);
    let (frozen, unfrozen) = (time(false), time(true));
    unfrozen / frozen
}

/// The document.
pub fn run(model: &LoadedModel, folder: &Path) -> Result<String> {
    let devices = Devices::automatic();
    let all = &devices.0;
    let flop = lane_step_flop(model, folder)?;
    let whole = Lanes::new(&model.model, all);
    let several = rate(model, &whole, 8, Precision::Fp32)?;
    let one_image = rate(model, &whole, 1, Precision::Fp32)?;
    let bf16 = rate(model, &whole, 8, Precision::Bf16)?;
    let composed = kernels::composed(|| rate(model, &whole, 8, Precision::Fp32))?;
    let one_device = rate(model, &Lanes::new(&model.model, &all[..1]), 8, Precision::Fp32)?;
    let one_by_one = rate(model, &Lanes::with_block(&model.model, all, 1), 8, Precision::Fp32)?;
    let eighteen = rate(model, &Lanes::with_block(&model.model, all, 18), 8, Precision::Fp32)?;
    let shared = rate(model, &Lanes::shared(&model.model, all, 72), 8, Precision::Fp32)?;
    drop(whole);
    let apart = apart(all.len())?;
    let matrix = matrix_rate(all, Precision::Fp32)?;
    let unfrozen = unfrozen_ratio(model);
    let per_hour = |params: &Params| 3600.0 * several / lane_steps(params) as f64;
    let mut text = format!(
        "# Speed\n\nWritten by `make bench`: model {}, devices {devices} ({}), best of three turns of {STEPS} Adam steps, 18 seeds.\n\n\
        | | lane-steps/s |\n|---|---|\n\
        | 8 images | {several:.0} |\n\
        | 8 images, generator and perceptual network in bfloat16 | {bf16:.0} |\n\
        | 8 images, libtorch's operations alone | {composed:.0} |\n\
        | 8 images, 18 lanes in a batch instead of 9 | {eighteen:.0} |\n\
        | 8 images, batches of lanes of any images, as on a GPU | {shared:.0} |\n\
        | 8 images, one lane a batch | {one_by_one:.0} |\n\
        | 1 image | {one_image:.0} |\n\
        | 8 images, one device | {one_device:.0} |\n\
        | a process for each device, at the same time, together | {apart:.0} |\n\n\
        The split over {} devices costs {:.1} % (the first row against the last). A lane-step is {:.3} GFLOP by its shapes, so that the first\n\
        row is {:.0} GFLOP/s: {:.0} % of a product of large matrices in float32 ({:.0} GFLOP/s). A pass through the generator with gradients\n\
        of all weights takes {unfrozen:.2} times the pass with frozen weights, which the search uses.\n\n\
        | profile | lane-steps per image | images per hour, at the rate of the first row |\n|---|---|---|\n\
        | paper | {} | {:.0} |\n| fast | {} | {:.0} |\n\n",
        model.reference.name,
        processor()?,
        all.len(),
        100.0 * (1.0 - several / apart),
        flop / 1e9,
        several * flop / 1e9,
        100.0 * several * flop / matrix,
        matrix / 1e9,
        lane_steps(&Params::paper()),
        per_hour(&Params::paper()),
        lane_steps(&Params::fast()),
        per_hour(&Params::fast()),
    );
    text += &composition(model, &all[..1])?;
    Ok(text)
}

/// What a search step spends its time in.
fn composition(model: &LoadedModel, device: &[Device]) -> Result<String> {
    let lanes = Lanes::new(&model.model, device);
    rate(model, &lanes, 1, Precision::Fp32)?;
    let mut failed = Ok(0.0);
    let operations = kernels::profile(|| failed = rate(model, &lanes, 1, Precision::Fp32));
    failed?;
    let total: f64 = operations.iter().map(|o| o.seconds).sum();
    let mut text = String::from(
        "Where a step on one core spends its time, by libtorch's profiler (our two operations are seen on the way back only):\n\n\
        | operation | calls in a step of 9 lanes | share, % |\n|---|---|---|\n",
    );
    // Three turns of as many steps, in two blocks.
    let steps = f64::from(3 * STEPS * 2);
    for o in operations.iter().take(12) {
        let name = o
            .name
            .replace("autograd::engine::evaluate_function: torch::autograd::CppNode<(anonymous namespace)::", "back through ");
        let name = name.trim_end_matches('>');
        text += &format!("| {name} | {:.1} | {:.1} |\n", o.calls as f64 / steps, 100.0 * o.seconds / total);
    }
    Ok(text)
}
