//! A search step of BigGAN-deep at full size with seeded random weights, by precision and lanes in a batch: seconds of an image in the
//! paper's schedule, and the share of what the same device does in a product of large matrices.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use engine::Devices;
use projector::lanes::{Method, Request, Transforms, Work};
use projector::nn::lpips;
use projector::projection::lane_steps;
use projector::{Lanes, Model, Target};
use proto::{Params, Precision};
use serde::Serialize;
use tch::{Device, Kind, Tensor};

use crate::flop::matrix_rate;
use crate::{flop, networks};

/// What is measured.
#[derive(clap::Args)]
pub struct Args {
    /// Where to compute: `auto`, or a list such as `cuda:0`.
    #[arg(long, default_value = "auto")]
    devices: Devices,
    /// Pixels: 128, 256 or 512.
    #[arg(long, default_value_t = 256)]
    resolution: i64,
    /// Images of 18 seeds side by side, in turn.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4, 8, 16])]
    images: Vec<u32>,
    /// Precisions, in turn.
    #[arg(long, value_delimiter = ',', default_values = ["bf16", "tf32", "fp32"])]
    precisions: Vec<String>,
    /// Seeds of an image.
    #[arg(long, default_value_t = 18)]
    seeds: u32,
    /// Gradient steps of a turn; a first turn is not counted.
    #[arg(long, default_value_t = 20)]
    steps: u32,
    /// The table; the numbers beside it as JSON.
    #[arg(long, default_value = "docs/gpu.md")]
    pub out: PathBuf,
    /// Write the random model as a folder, for `basin-bench authors --model`, and measure nothing.
    #[arg(long, value_name = "FOLDER")]
    pub folder: Option<PathBuf>,
}

/// One line of the table.
#[derive(Serialize)]
struct Row {
    precision: String,
    lanes: usize,
    /// Lanes in a batch, which falls where memory is too small.
    block: usize,
    lane_steps_per_second: f64,
    tflops: f64,
    /// Of the device's matrix product in that precision.
    share: f64,
    /// In the paper's schedule.
    seconds_per_image: f64,
    /// Memory of the device in use after it, MB, where nvidia-smi tells.
    megabytes: Option<f64>,
}

/// Measures; the table, and the numbers.
pub fn run(args: &Args) -> Result<(String, String)> {
    let devices = &args.devices.0;
    let model = networks::random_model(args.resolution)?;
    let alex = lpips::Config::named("alex").context("it is published")?;
    let config = networks::biggan_deep(args.resolution);
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
    let launches = launches(&model)?;
    let device = device_name(devices);
    let json = serde_json::json!({
        "device": device, "devices": args.devices.to_string(), "resolution": args.resolution, "lane_step_gflop": each / 1e9,
        "matrix_tflops": ceilings, "launches_per_step": launches, "rows": rows,
    });
    Ok((table(args, &device, each, &ceilings, launches, &rows), serde_json::to_string_pretty(&json)?))
}

/// Lane-steps each second over `images` that are descended side by side.
fn rate(model: &Model, lanes: &Lanes, precision: Precision, images: u32, args: &Args) -> Result<f64> {
    let work = || descend(model, lanes, precision, images, args.seeds, args.steps);
    work()?;
    let began = Instant::now();
    work()?;
    Ok(f64::from(args.steps) * f64::from(images * args.seeds) / began.elapsed().as_secs_f64())
}

fn descend(model: &Model, lanes: &Lanes, precision: Precision, images: u32, seeds: u32, steps: u32) -> Result<()> {
    let paper = Params::paper();
    let method = Method { loss: paper.loss, descent: paper.descent, align_corners: true, precision };
    let size = model.generator.resolution();
    let targets: Vec<Target> = (0..images)
        .map(|i| {
            let image = (Tensor::arange(3 * size * size, (Kind::Float, Device::Cpu)) * (0.001 + 1e-5 * f64::from(i))).sin();
            Target { image: image.view([3, size, size]), bbox: None, mask: None, class: i64::from(i), seed: 0 }
        })
        .collect();
    let start = |lane: u32| (0..model.generator.latent_dim()).map(|d| ((lane + 1) as f32 * (d as f32 + 0.5)).sin()).collect();
    let request = || Request {
        z: (0..seeds).map(start).collect(),
        c: None,
        transforms: Transforms::None,
        work: Work::Descend { steps, adam: None, track_inverted: false, record: false },
        exact: false,
    };
    let outcomes = lanes.run(&method, targets.iter().map(|target| (target, request())).collect())?;
    if !outcomes.iter().flat_map(|outcome| &outcome.loss).all(|loss| loss.is_finite()) {
        bail!("the loss is not finite");
    }
    Ok(())
}

/// Operations of a search step that launch something on a GPU, counted by libtorch's profiler on a CPU.
pub fn launches(model: &Model) -> Result<u64> {
    let lanes = Lanes::new(model, &[Device::Cpu]);
    let mut counts = Vec::new();
    for steps in [1, 2] {
        let mut done = Ok(());
        let operations = kernels::composed(|| kernels::profile(|| done = descend(model, &lanes, Precision::Fp32, 1, 1, steps)));
        done?;
        counts.push(operations.iter().filter(|o| launching(&o.name)).map(|o| o.calls).sum::<u64>());
    }
    // What a descent does before and after its steps is in both.
    Ok(counts[1] - counts[0])
}

/// Views, allocations and what only calls others launch nothing.
fn launching(name: &str) -> bool {
    const SILENT: [&str; 38] = [
        "as_strided",
        "view",
        "_unsafe_view",
        "reshape",
        "_reshape_alias",
        "permute",
        "transpose",
        "t",
        "numpy_T",
        "expand",
        "slice",
        "narrow",
        "select",
        "unsqueeze",
        "squeeze",
        "split_with_sizes",
        "flatten",
        "detach",
        "detach_",
        "alias",
        "empty",
        "empty_like",
        "empty_strided",
        "resize_",
        "resize_as_",
        "set_",
        "zeros",
        "zeros_like",
        "ones_like",
        "new_empty",
        "to",
        "_to_copy",
        "contiguous",
        "conv2d",
        "convolution",
        "_convolution",
        "linear",
        "item",
    ];
    name.strip_prefix("aten::").is_some_and(|name| !SILENT.contains(&name))
}

fn device_name(devices: &[Device]) -> String {
    match devices.first() {
        Some(Device::Cuda(_)) => nvidia("name").unwrap_or_else(|| "a GPU".into()),
        _ => crate::fleet::processor().unwrap_or_else(|_| "a CPU".into()),
    }
}

fn used_megabytes() -> Option<f64> {
    nvidia("memory.used")?.split_whitespace().next()?.parse::<f64>().ok().map(|mebibytes| mebibytes * 1.048576)
}

/// The first GPU's answer.
fn nvidia(question: &str) -> Option<String> {
    let output = Command::new("nvidia-smi").args([&format!("--query-gpu={question}"), "--format=csv,noheader"]).output().ok()?;
    Some(String::from_utf8(output.stdout).ok()?.lines().next()?.trim().to_owned())
}

fn table(args: &Args, device: &str, each: f64, ceilings: &[(String, f64)], launches: u64, rows: &[Row]) -> String {
    let mut text = format!(
        "# BigGAN-deep-{} on {device}\n\n\
        Written by `make bench-gpu`: seeded random weights, LPIPS-Alex, {} Adam steps of images with {} seeds side by side on {}. A\n\
        lane-step is {:.1} GFLOP; the paper's schedule has {} for each image. The share is of a product of large matrices in the same\n\
        precision, measured in the same run: {}. A step launches {launches} operations (libtorch's profiler on the CPU).\n\n\
        | precision | lanes | in a batch | lane-steps/s | TFLOP/s | share, % | s per image, paper's schedule | memory, MB |\n|---|---|---|---|---|---|---|---|\n",
        args.resolution,
        args.steps,
        args.seeds,
        args.devices,
        each / 1e9,
        lane_steps(&Params::paper()),
        ceilings.iter().map(|(name, rate)| format!("{name} {rate:.1} TFLOP/s")).collect::<Vec<_>>().join(", "),
    );
    for row in rows {
        text += &format!(
            "| {} | {} | {} | {:.1} | {:.2} | {:.1} | {:.1} | {} |\n",
            row.precision,
            row.lanes,
            row.block.min(row.lanes),
            row.lane_steps_per_second,
            row.tflops,
            100.0 * row.share,
            row.seconds_per_image,
            row.megabytes.map_or("-".into(), |megabytes| format!("{megabytes:.0}")),
        );
    }
    text
}

/// Writes the random model as a folder.
pub fn write_folder(resolution: i64, samples: &Path, into: &Path) -> Result<()> {
    #[derive(serde::Deserialize)]
    struct Annotations {
        categories: Vec<Category>,
    }
    #[derive(serde::Deserialize)]
    struct Category {
        name: String,
    }
    let path = samples.join("annotations.json");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let annotations: Annotations = serde_json::from_str(&text).with_context(|| format!("cannot parse {}", path.display()))?;
    let classes: Vec<String> = annotations.categories.into_iter().map(|category| category.name).collect();
    networks::random_folder(resolution, &classes, into)
}

impl Args {
    /// Pixels of the network.
    pub fn resolution(&self) -> i64 {
        self.resolution
    }
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
