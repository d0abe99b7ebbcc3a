//! A search step of BigGAN-deep at full size with seeded random weights, by precision and lanes in a batch: seconds of an image in the
//! paper's schedule, and the share of the device's rate in a product of large matrices.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use engine::Devices;
use projector::lanes::{Request, Transforms, Work};
use projector::projection::lane_steps;
use projector::{Lanes, Model, Target};
use proto::{Params, Precision};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::flop::{self, matrix_rate};
use crate::page::{Record, processor};
use crate::random;

#[derive(clap::Args)]
pub struct GpuArgs {
    /// Devices: `auto`, or a list such as `cuda:0`.
    #[arg(long, default_value = "auto")]
    devices: Devices,
    /// Pixels: 128, 256 or 512.
    #[arg(long, default_value_t = 256)]
    pub resolution: i64,
    /// Numbers of images side by side, one measurement each.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4, 8, 16])]
    images: Vec<u32>,
    /// Precisions, one measurement each.
    #[arg(long, value_delimiter = ',', default_values = ["bf16", "tf32", "fp32"])]
    precisions: Vec<String>,
    /// Seeds of an image.
    #[arg(long, default_value_t = 18)]
    seeds: u32,
    /// Gradient steps of a turn; the first turn does not count.
    #[arg(long, default_value_t = 20)]
    steps: u32,
    /// Write the random model into this folder, for `basin-bench --model FOLDER authors`, and measure nothing.
    #[arg(long, value_name = "FOLDER")]
    pub folder: Option<PathBuf>,
}

#[derive(Serialize, Deserialize)]
pub struct Gpu {
    device: String,
    devices: String,
    resolution: i64,
    seeds: u32,
    /// Gradient steps of a turn.
    steps: u32,
    lane_step_gflop: f64,
    /// TFLOP/s of a product of large matrices, by precision.
    matrix_tflops: Vec<(String, f64)>,
    launches_per_step: u64,
    rows: Vec<Row>,
}

#[derive(Serialize, Deserialize)]
struct Row {
    precision: String,
    lanes: usize,
    /// Lanes in a batch; it falls when memory is too small.
    block: usize,
    lane_steps_per_second: f64,
    tflops: f64,
    /// Part of the device's matrix product in that precision.
    share: f64,
    /// In the paper's schedule.
    seconds_per_image: f64,
    /// Used memory of the device after it, MB, from nvidia-smi.
    megabytes: Option<f64>,
}

pub fn run(args: &GpuArgs) -> Result<Gpu> {
    let devices = &args.devices.0;
    let model = random::model(args.resolution)?;
    let alex = random::lpips_config("alex");
    let config = random::biggan_deep(args.resolution);
    let each = flop::lane_step(flop::generator(&config), flop::perceptual(&alex, args.resolution));
    let image_steps = lane_steps(&Params::paper()) as f64;
    let (mut rows, mut ceilings) = (Vec::new(), Vec::new());
    for name in &args.precisions {
        let precision: Precision =
            serde_json::from_value(name.as_str().into()).context("--precisions are fp32, tf32 and bf16")?;
        let ceiling = matrix_rate(devices, precision)?;
        ceilings.push((name.clone(), ceiling / 1e12));
        for &images in &args.images {
            let lanes = Lanes::new(&model, devices);
            let rate = rate(&model, &lanes, precision, images, args)?;
            eprintln!("{name}, {images} images: {rate:.1} lane-steps/s");
            rows.push(Row {
                precision: name.clone(),
                lanes: (images * args.seeds) as usize,
                block: lanes.block(),
                lane_steps_per_second: rate,
                tflops: rate * each / 1e12,
                share: rate * each / ceiling,
                seconds_per_image: image_steps / rate,
                megabytes: used_megabytes(),
            });
        }
    }
    Ok(Gpu {
        device: device_name(devices),
        devices: args.devices.to_string(),
        resolution: args.resolution,
        seeds: args.seeds,
        steps: args.steps,
        lane_step_gflop: each / 1e9,
        matrix_tflops: ceilings,
        launches_per_step: launches(&model)?,
        rows,
    })
}

impl Record for Gpu {
    const NAME: &'static str = "gpu";
    const PAGE: &'static str = include_str!("../pages/gpu.md");

    fn derived(&self) -> Value {
        json!({ "image_steps": lane_steps(&Params::paper()) })
    }
}

/// Lane-steps each second over `images` that are descended side by side.
fn rate(model: &Model, lanes: &Lanes, precision: Precision, images: u32, args: &GpuArgs) -> Result<f64> {
    let work = || descend(model, lanes, precision, images, args.seeds, args.steps);
    work()?;
    let began = Instant::now();
    work()?;
    Ok(f64::from(args.steps) * f64::from(images * args.seeds) / began.elapsed().as_secs_f64())
}

fn descend(model: &Model, lanes: &Lanes, precision: Precision, images: u32, seeds: u32, steps: u32) -> Result<()> {
    let params = Params { precision, ..Params::paper() };
    let size = model.generator.resolution();
    let targets: Vec<Target> = (0..images)
        .map(|i| {
            let image = (Tensor::arange(3 * size * size, (Kind::Float, Device::Cpu)) * (0.001 + 1e-5 * f64::from(i))).sin();
            Target { image: image.view([3, size, size]), bbox: None, mask: None, class: i64::from(i), likely: vec![], seed: 0 }
        })
        .collect();
    let start = |lane: u32| (0..model.generator.latent_dim()).map(|d| ((lane + 1) as f32 * (d as f32 + 0.5)).sin()).collect();
    let request = || Request {
        z: (0..seeds).map(start).collect(),
        c: None,
        transforms: Transforms::None,
        work: Work::Descend { steps, total: steps, track_inverted: false, record: false },
        adam: None,
        exact: false,
    };
    let outcomes = lanes.run(&params, targets.iter().map(|target| (target, request())).collect())?;
    if !outcomes.iter().flat_map(|outcome| &outcome.loss).all(|loss| loss.is_finite()) {
        bail!("the loss is not finite");
    }
    Ok(())
}

/// Operations of a search step that launch something on a GPU, counted by libtorch's profiler on a CPU.
fn launches(model: &Model) -> Result<u64> {
    let lanes = Lanes::new(model, &[Device::Cpu]);
    let mut counts = Vec::new();
    for steps in [1, 2] {
        let mut done = Ok(());
        let operations = kernels::composed(|| kernels::profile(|| done = descend(model, &lanes, Precision::Fp32, 1, 1, steps)));
        done?;
        counts.push(operations.iter().filter(|o| launching(&o.name)).map(|o| o.calls).sum::<u64>());
    }
    // The work before and after the steps is in both.
    Ok(counts[1] - counts[0])
}

/// Views, allocations and operations that only call others launch nothing.
const SILENT: &str = "as_strided view _unsafe_view reshape _reshape_alias permute transpose t numpy_T expand slice narrow select unsqueeze \
    squeeze split_with_sizes flatten detach detach_ alias empty empty_like empty_strided resize_ resize_as_ set_ zeros zeros_like \
    ones_like new_empty to _to_copy contiguous conv2d convolution _convolution linear item";

fn launching(name: &str) -> bool {
    name.strip_prefix("aten::").is_some_and(|name| !SILENT.split_whitespace().any(|silent| silent == name))
}

fn device_name(devices: &[Device]) -> String {
    match devices.first() {
        Some(Device::Cuda(_)) => nvidia("name").unwrap_or_else(|| "a GPU".into()),
        _ => processor().unwrap_or_else(|_| "a CPU".into()),
    }
}

fn used_megabytes() -> Option<f64> {
    nvidia("memory.used")?.split_whitespace().next()?.parse::<f64>().ok().map(|mebibytes| mebibytes * 1.048576)
}

/// A property of the first GPU.
fn nvidia(question: &str) -> Option<String> {
    let output = Command::new("nvidia-smi").args([&format!("--query-gpu={question}"), "--format=csv,noheader"]).output().ok()?;
    Some(String::from_utf8(output.stdout).ok()?.lines().next()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_launches_nothing_is_not_counted() {
        assert!(launching("aten::addmm") && launching("aten::mkldnn_convolution") && launching("aten::copy_"));
        assert!(!launching("aten::view") && !launching("autograd::engine::evaluate_function: X") && !launching("aten::conv2d"));
    }
}
