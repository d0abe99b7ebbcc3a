//! The authors' code against ours: the same torch, checkpoint, images, schedule and number of seeds, one image at a time, in turns.
//!
//! `bench/authors/pix2latent.py` drives their optimiser classes from a checkout that the caller names.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use engine::{Devices, LoadedModel};
use projector::nn::{biggan_deep, lpips};
use projector::{Lanes, Target, mask};
use proto::{LastDescent, LatentSearch, Params, Precision, Told};
use results::bootstrap::{Interval, interval};
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use crate::cases::project;
use crate::fleet::processor;
use crate::flop::{self, matrix_rate};
use crate::samples::targets;
use crate::services::peak_megabytes;

/// What is compared.
#[derive(clap::Args)]
pub struct Args {
    /// A checkout of minyoungg/pix2latent, branch master.
    #[arg(long)]
    checkout: PathBuf,
    /// Python with torch 2.11, lpips, cma, pytorch-pretrained-biggan and what their code imports (bench/authors/requirements.txt).
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// Where both compute: `auto`, or a list such as `cpu,cpu` or `cuda:0`; theirs takes as many threads as there are CPU devices.
    #[arg(long, default_value = "auto")]
    devices: Devices,
    /// Images.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    images: u16,
    /// Generations of BasinCMA (paper: 30).
    #[arg(long, default_value_t = 10)]
    generations: u32,
    /// Gradient steps of each (paper: 30).
    #[arg(long, default_value_t = 10)]
    steps: u32,
    /// Gradient steps of the last descent (paper: 300).
    #[arg(long, default_value_t = 100)]
    final_steps: u32,
    /// The table; the numbers beside it as JSON.
    #[arg(long, default_value = "docs/authors.md")]
    pub out: PathBuf,
    /// The model folder.
    #[arg(skip)]
    pub model: PathBuf,
}

/// Of one image, by one side.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Run {
    seconds: f64,
    lane_steps: u64,
    /// Of each seed, after the last step.
    losses: Vec<f64>,
}

/// What their side prints.
#[derive(Deserialize)]
struct Theirs {
    #[serde(flatten)]
    run: Run,
    /// Most memory of the process (on a GPU: of the device), bytes.
    peak: f64,
    torch: String,
}

/// Everything that was measured.
#[derive(Serialize)]
struct Figures {
    model: String,
    devices: String,
    processor: String,
    torch: String,
    seeds: u32,
    schedule: [u32; 3],
    /// GFLOP of a lane-step by its shapes.
    lane_step_gflop: f64,
    /// GFLOP/s of a matrix product on all devices together.
    matrix_gflops: f64,
    peak_megabytes: Sides<f64>,
    images: Vec<(String, Sides<Run>)>,
}

/// Of both sides.
#[derive(Clone, Copy, Debug, Serialize)]
struct Sides<T> {
    theirs: T,
    ours: T,
}

/// Measures; the table, and the numbers.
pub fn run(model: &LoadedModel, samples: &Path, args: &Args) -> Result<(String, String)> {
    let flop = lane_step_flop(model, &args.model)?;
    let devices = &args.devices.0;
    let gpu = devices.iter().any(|device| matches!(device, Device::Cuda(_)));
    // CMA-ES' own rule, which their code leaves to pycma.
    let seeds = 4 + (3.0 * (model.model.generator.latent_dim() as f64).ln()) as u32;
    let [generations, steps, final_steps] = [args.generations, args.steps, args.final_steps];
    let latent =
        LatentSearch::BasinCma { generations, steps, final_steps, told: Told::Sampled, sigma: 1.0, last: LastDescent::Fresh };
    let params = Params { transform: None, latent, seeds, ..Params::pix2latent() };
    let mut all = targets(model, samples, |_| true)?;
    // Evenly spread over classes, and over centred and off-centre images.
    let wanted = usize::from(args.images);
    let every = (all.len() / wanted).max(1);
    all = all.into_iter().step_by(every).take(wanted).collect();
    // The whole image counts: with a box theirs tells CMA-ES the loss with the background, ours the loss inside the box.
    all.iter_mut().for_each(|(_, target)| target.bbox = None);
    ensure!(all.len() == wanted, "there are only {} images in {}", all.len(), samples.display());

    let file = std::env::temp_dir().join(format!("basin-authors-{}.safetensors", std::process::id()));
    write_targets(model, &params, &all, &file)?;
    let mut theirs = Authors::start(args, &file)?;
    let lanes = Lanes::new(&model.model, devices);
    let warm_up = Params { latent: LatentSearch::Adam { steps: 2 }, ..params.clone() };
    project(model, &lanes, &warm_up, vec![all[0].1.shallow_clone()], None)?;

    let mut images = Vec::new();
    let (mut torch, mut their_peak) = (String::new(), 0.0);
    for (i, (name, target)) in all.iter().enumerate() {
        let other = theirs.project(i)?;
        let began = Instant::now();
        let solution = project(model, &lanes, &params, vec![target.shallow_clone()], None)?.remove(0);
        let seconds = began.elapsed().as_secs_f64();
        let losses = solution.seeds.iter().map(|seed| seed.loss).collect();
        let ours = Run { seconds, lane_steps: solution.lane_steps, losses };
        ensure!(ours.losses.len() == other.run.losses.len(), "theirs has {} seeds, ours {seeds}", other.run.losses.len());
        eprintln!("{name}: theirs {:.1} s, ours {:.1} s", other.run.seconds, ours.seconds);
        (torch, their_peak) = (other.torch, other.peak / 1e6);
        images.push((name.clone(), Sides { theirs: other.run, ours }));
    }
    drop(theirs);
    let _ = std::fs::remove_file(&file);
    let figures = Figures {
        model: model.reference.name.clone(),
        devices: args.devices.to_string(),
        processor: processor()?,
        torch,
        seeds,
        schedule: [generations, steps, final_steps],
        lane_step_gflop: flop / 1e9,
        matrix_gflops: matrix_rate(devices, Precision::Fp32)? / 1e9,
        peak_megabytes: Sides { theirs: their_peak, ours: if gpu { f64::NAN } else { peak_megabytes(std::process::id())? } },
        images,
    };
    Ok((table(&figures), serde_json::to_string_pretty(&figures)?))
}

/// FLOP of a lane-step of the model.
pub fn lane_step_flop(model: &LoadedModel, folder: &Path) -> Result<f64> {
    let read = |name: &str| std::fs::read(folder.join(name)).with_context(|| format!("cannot read {name}"));
    let generator: biggan_deep::Config = serde_json::from_slice(&read(&model.manifest.generator.config)?)?;
    let perceptual: lpips::Config = serde_json::from_slice(&read(&model.manifest.perceptual.config)?)?;
    Ok(flop::lane_step(flop::generator(&generator), flop::perceptual(&perceptual, generator.output_dim)))
}

/// What both see, as their script reads it.
fn write_targets(model: &LoadedModel, params: &Params, all: &[(String, Target)], file: &Path) -> Result<()> {
    let mut tensors = Vec::new();
    for (i, (_, target)) in all.iter().enumerate() {
        let binary = mask::of(target, model.model.generator.resolution());
        tensors.push((format!("image.{i}"), target.image.contiguous()));
        tensors.push((format!("weight.{i}"), mask::weights(&binary, params.loss.background).squeeze_dim(0).contiguous()));
        tensors.push((format!("class.{i}"), Tensor::from_slice(&[target.class])));
    }
    Tensor::write_safetensors(&tensors, file).with_context(|| format!("cannot write {}", file.display()))
}

/// Their side: a process that waits for the number of an image and answers with a line.
struct Authors {
    child: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Authors {
    fn start(args: &Args, targets: &Path) -> Result<Authors> {
        let cpus = args.devices.0.iter().filter(|device| **device == Device::Cpu).count();
        let device = if cpus > 0 { "cpu".to_owned() } else { args.devices.to_string() };
        let script = Path::new("bench/authors/pix2latent.py");
        ensure!(script.exists(), "{} is not there: start this in the project's folder", script.display());
        ensure!(args.checkout.join("pix2latent/optimizer").is_dir(), "--checkout {} is no pix2latent", args.checkout.display());
        let mut child = Command::new(&args.python)
            .arg(script)
            .arg("--checkout")
            .arg(&args.checkout)
            .arg("--model")
            .arg(&args.model)
            .args(["--device", &device, "--threads", &cpus.to_string()])
            .arg("--targets")
            .arg(targets)
            .args(["--generations", &args.generations.to_string(), "--steps", &args.steps.to_string()])
            .args(["--final-steps", &args.final_steps.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", args.python.display()))?;
        let ask = child.stdin.take().expect("it is piped");
        let answers = BufReader::new(child.stdout.take().expect("it is piped"));
        Ok(Authors { child, ask, answers })
    }

    fn project(&mut self, image: usize) -> Result<Theirs> {
        writeln!(self.ask, "{image}").and_then(|()| self.ask.flush()).context("their side has ended, see above")?;
        let mut line = String::new();
        ensure!(self.answers.read_line(&mut line)? > 0, "their side has ended, see above");
        serde_json::from_str(&line).with_context(|| format!("their side says {line:?}"))
    }
}

impl Drop for Authors {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn table(figures: &Figures) -> String {
    let n = figures.images.len() as f64;
    let average = |of: &dyn Fn(&Run) -> f64| {
        let mean = |side: &dyn Fn(&Sides<Run>) -> f64| figures.images.iter().map(|(_, sides)| side(sides)).sum::<f64>() / n;
        Sides { theirs: mean(&|sides| of(&sides.theirs)), ours: mean(&|sides| of(&sides.ours)) }
    };
    let mean = |run: &Run| run.losses.iter().sum::<f64>() / run.losses.len() as f64;
    let best = |run: &Run| run.losses.iter().copied().fold(f64::INFINITY, f64::min);
    let seconds = average(&|run| run.seconds);
    let rate = average(&|run| run.lane_steps as f64 / run.seconds);
    let share = |rate: f64| 100.0 * rate * figures.lane_step_gflop / figures.matrix_gflops;
    let paired = |of: &dyn Fn(&Run) -> f64| {
        let differences: Vec<f64> = figures.images.iter().map(|(_, sides)| of(&sides.ours) - of(&sides.theirs)).collect();
        interval(&differences).expect("there are images")
    };
    let ratios: Vec<f64> = figures.images.iter().map(|(_, sides)| sides.theirs.seconds / sides.ours.seconds).collect();
    let Interval { mean: ratio, low, high } = interval(&ratios).expect("there are images");
    let [generations, steps, final_steps] = figures.schedule;
    let mut text = format!(
        "# Against the authors' code\n\n\
        Written by `basin-bench authors` (docs/performance.md says how to set it up): model {}, {} images of `samples/`, BasinCMA\n\
        {generations} x {steps} + {final_steps} with {} seeds, no transform, no box, one image at a time, theirs and ours in turns, on {} ({}). Theirs:\n\
        minyoungg/pix2latent, branch master, in Python on torch {}. Both minimise the same loss with the same learning rates.\n\n\
        | | theirs | ours |\n|---|---|---|\n",
        figures.model,
        figures.images.len(),
        figures.seeds,
        figures.devices,
        figures.processor,
        figures.torch,
    );
    let mut row = |name: &str, Sides { theirs, ours }: Sides<f64>, digits: usize| {
        let cell = |value: f64| if value.is_nan() { "-".into() } else { format!("{value:.digits$}") };
        text += &format!("| {name} | {} | {} |\n", cell(theirs), cell(ours));
    };
    row("seconds per image", seconds, 2);
    row("lane-steps each second", rate, 0);
    row("share of the rate of a matrix product, %", Sides { theirs: share(rate.theirs), ours: share(rate.ours) }, 1);
    row("most memory, MB", figures.peak_megabytes, 0);
    row("final loss, mean of the seeds", average(&mean), 4);
    row("final loss, best seed", average(&best), 4);
    let differences = |Interval { mean, low, high }: Interval| format!("{mean:.4} ({low:.4} to {high:.4})");
    text += &format!(
        "\nOurs takes 1/{ratio:.2} of the time (95 % interval over the images: {low:.2} to {high:.2}). Ours less theirs, paired, with 95 %\n\
        bootstrap intervals: mean of the seeds {}, best seed {}. A lane-step is {:.3} GFLOP by its shapes, of which theirs computes\n\
        more (gradients of weights, output channels that are dropped); a product of large matrices runs at {:.0} GFLOP/s.\n",
        differences(paired(&mean)),
        differences(paired(&best)),
        figures.lane_step_gflop,
        figures.matrix_gflops,
    );
    text
}
