//! Lane-steps per second of the bundled model on this machine, what each speed-up brings, and what a step is made of.

use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result};
use engine::{Devices, LoadedModel, lane_steps};
use projector::{Lanes, Projection, Target};
use proto::{LatentSearch, Params, Precision};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::compare::best_seconds;
use crate::flop::{self, matrix_rate};
use crate::page::Record;
use crate::process::this_program;

/// Adam steps of one `Projection::step`.
const STEPS: u32 = 50;

fn target(model: &LoadedModel, i: i64) -> Target {
    let generator = &model.model.generator;
    let class = i % generator.num_classes();
    let z = Tensor::full([1, generator.latent_dim()], 0.3 + 0.1 * i as f64, (Kind::Float, Device::Cpu));
    let image = tch::no_grad(|| generator.generate(&z, &generator.embed(class).unsqueeze(0))).squeeze_dim(0);
    Target { image, bbox: None, mask: None, class, likely: vec![], seed: i as u64 }
}

/// Lane-steps per second of `images` side by side.
fn rate(model: &LoadedModel, lanes: &Lanes, images: i64, precision: Precision) -> Result<f64> {
    let seeds = 18;
    // Twice the steps that are timed: the last ones are always float32.
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

/// Sum of the rates of `count` processes at the same time, each on one core: the machine without a split.
fn apart(count: usize) -> Result<f64> {
    let start = |_| Ok(this_program()?.arg("alone").stdout(Stdio::piped()).spawn()?);
    let children = (0..count).map(start).collect::<Result<Vec<_>>>().context("cannot start this program again")?;
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

/// Time of a forward and backward pass through the generator with gradients of the weights, over that without.
fn unfrozen_ratio(model: &LoadedModel) -> Result<f64> {
    let time = |weights: bool| {
        let generator = model.model.generator.replicate(Device::Cpu);
        let parameters: Vec<Tensor> = generator.weights().into_iter().map(|(_, weight)| weight).collect();
        for p in &parameters {
            let _ = p.set_requires_grad(weights);
        }
        let z = Tensor::zeros([9, generator.latent_dim()], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let c = generator.embed(0).unsqueeze(0).repeat([9, 1]).detach().set_requires_grad(true);
        let mut wanted = vec![&z, &c];
        if weights {
            wanted.extend(parameters.iter());
        }
        best_seconds(12, || Tensor::f_run_backward(&[generator.generate(&z, &c).sum(Kind::Float)], &wanted, false, false))
    };
    tch::set_num_threads(1);
    let (frozen, unfrozen) = (time(false)?, time(true)?);
    Ok(unfrozen / frozen)
}

/// Lane-steps per second, and where their time goes.
#[derive(Serialize, Deserialize)]
pub struct Speed {
    model: String,
    devices: String,
    device_count: usize,
    /// Lane-steps per second; the first is of 8 images on all devices, the last without a split.
    rates: Vec<(String, f64)>,
    lane_step_gflop: f64,
    /// GFLOP/s of a product of large matrices in float32 on all devices.
    matrix_gflops: f64,
    /// Time of a pass with gradients of all weights over that with frozen weights.
    unfrozen: f64,
    /// Lane-steps of an image by profile.
    profiles: Vec<(String, u64)>,
    operations: Vec<Operation>,
}

/// A part of a search step on one device.
#[derive(Serialize, Deserialize)]
struct Operation {
    name: String,
    /// In a step of 9 lanes.
    calls: f64,
    /// Share of the time, %.
    share: f64,
}

/// Measures the model of `folder` on all devices.
pub fn run(model: &LoadedModel, folder: &Path) -> Result<Speed> {
    let devices = Devices::automatic();
    let rates = rates(model, &devices.0)?;
    let profiles = [("paper", Params::paper()), ("fast", Params::fast())];
    Ok(Speed {
        model: model.reference.name.clone(),
        devices: devices.to_string(),
        device_count: devices.0.len(),
        rates,
        lane_step_gflop: flop::of_model(model, folder)? / 1e9,
        matrix_gflops: matrix_rate(&devices.0, Precision::Fp32)? / 1e9,
        unfrozen: unfrozen_ratio(model)?,
        profiles: profiles.map(|(name, params)| (name.to_owned(), lane_steps(&params))).into(),
        operations: operations(model, &devices.0[..1])?,
    })
}

fn rates(model: &LoadedModel, all: &[Device]) -> Result<Vec<(String, f64)>> {
    let whole = Lanes::new(&model.model, all);
    let of = |lanes: &Lanes| rate(model, lanes, 8, Precision::Fp32);
    let rates = vec![
        ("8 images", of(&whole)?),
        ("8 images, generator and perceptual network in bfloat16", rate(model, &whole, 8, Precision::Bf16)?),
        ("8 images, libtorch's operations alone", kernels::composed(|| of(&whole))?),
        ("8 images, 18 lanes in a batch instead of 9", of(&Lanes::with_block(&model.model, all, 18))?),
        ("8 images, batches of lanes of any images, as on a GPU", of(&Lanes::shared(&model.model, all, 72))?),
        ("8 images, one lane a batch", of(&Lanes::with_block(&model.model, all, 1))?),
        ("1 image", rate(model, &whole, 1, Precision::Fp32)?),
        ("8 images, one device", of(&Lanes::new(&model.model, &all[..1]))?),
    ];
    drop(whole);
    let apart = ("one process for each device, at the same time, together", apart(all.len())?);
    Ok(rates.into_iter().chain([apart]).map(|(name, rate)| (name.to_owned(), rate)).collect())
}

/// The largest parts of a search step.
fn operations(model: &LoadedModel, device: &[Device]) -> Result<Vec<Operation>> {
    let lanes = Lanes::new(&model.model, device);
    rate(model, &lanes, 1, Precision::Fp32)?;
    let mut failed = Ok(0.0);
    let operations = kernels::profile(|| failed = rate(model, &lanes, 1, Precision::Fp32));
    failed?;
    let total: f64 = operations.iter().map(|o| o.seconds).sum();
    // Three turns of as many steps, in two blocks.
    let steps = f64::from(3 * STEPS * 2);
    let largest = operations.iter().take(12).map(|o| {
        let name = o
            .name
            .replace("autograd::engine::evaluate_function: torch::autograd::CppNode<(anonymous namespace)::", "back through ");
        Operation { name: name.trim_end_matches('>').into(), calls: o.calls as f64 / steps, share: 100.0 * o.seconds / total }
    });
    Ok(largest.collect())
}

impl Record for Speed {
    const NAME: &'static str = "speed";
    const PAGE: &'static str = include_str!("../pages/speed.md");

    fn derived(&self) -> Value {
        json!({ "steps": STEPS })
    }
}
