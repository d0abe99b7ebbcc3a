//! Lane-steps per second of the bundled model on this machine.

use std::time::Instant;

use anyhow::Result;
use projector::{Lanes, Projection, Target};
use proto::{LatentSearch, Params};
use tch::{Device, Kind, Tensor};
use worker::{Devices, LoadedModel, lane_steps};

const STEPS: u32 = 30;

fn target(model: &LoadedModel, i: i64) -> Target {
    let generator = &model.model.generator;
    let class = i % generator.num_classes();
    let z = Tensor::full([1, generator.latent_dim()], 0.3 + 0.1 * i as f64, (Kind::Float, Device::Cpu));
    let image = tch::no_grad(|| generator.generate(&z, &generator.embed(class).unsqueeze(0))).squeeze_dim(0);
    Target { image, bbox: None, mask: None, class, seed: i as u64 }
}

/// Lane-steps per second of `images` side by side with `block` lanes a batch.
fn rate(model: &LoadedModel, devices: &[Device], images: i64, seeds: u32, block: usize) -> Result<f64> {
    let lanes = Lanes::with_block(&model.model, devices, block);
    let params = Params { transform: None, latent: LatentSearch::Adam { steps: STEPS }, seeds, ..Params::paper() };
    let mut best: f64 = 0.0;
    for _ in 0..3 {
        let targets = (0..images).map(|i| target(model, i)).collect();
        let mut projection = Projection::new(&params, &model.model, &model.statistics, targets);
        let started = Instant::now();
        while !projection.finished() {
            projection.step(&lanes)?;
        }
        let steps = f64::from(STEPS) * f64::from(seeds) * images as f64;
        best = best.max(steps / started.elapsed().as_secs_f64());
    }
    Ok(best)
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

/// The table.
pub fn run(model: &LoadedModel) -> Result<String> {
    let devices = Devices::automatic();
    let all = &devices.0;
    let one = &all[..1];
    let batched = rate(model, all, 8, 18, projector::lanes::CPU_BLOCK)?;
    let single_image = rate(model, all, 1, 18, projector::lanes::CPU_BLOCK)?;
    let single_device = rate(model, one, 8, 18, projector::lanes::CPU_BLOCK)?;
    let one_by_one = rate(model, all, 8, 18, 1)?;
    let unfrozen = unfrozen_ratio(model);
    let per_hour = |params: &Params| 3600.0 * batched / lane_steps(params) as f64;
    Ok(format!(
        "# Speed\n\nWritten by `make bench`: model {}, devices {devices}, best of three runs of {STEPS} Adam steps.\n\n\
        | | lane-steps/s |\n|---|---|\n\
        | 8 images of 18 seeds | {batched:.0} |\n\
        | 1 image of 18 seeds | {single_image:.0} |\n\
        | 8 images, one device | {single_device:.0} |\n\
        | 8 images, one lane a batch | {one_by_one:.0} |\n\n\
        A batch of several lanes (the first row) is {:.2} times as fast as one lane a batch (the last row). A pass through the generator with gradients of all weights takes {unfrozen:.2} times\n\
        the pass with frozen weights, which the search uses.\n\n\
        | profile | lane-steps per image | images per hour |\n|---|---|---|\n\
        | paper | {} | {:.0} |\n| fast | {} | {:.0} |\n",
        model.reference.name,
        batched / one_by_one,
        lane_steps(&Params::paper()),
        per_hour(&Params::paper()),
        lane_steps(&Params::fast()),
        per_hour(&Params::fast()),
    ))
}
